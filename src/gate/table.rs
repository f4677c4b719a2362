//! The table of open connections. It enforces the limit, and keeps a record of each connection for `/status`,
//! draining and shutdown. Independent of HTTP.
//!
//! **Invariant:** a connection that waits for its client does not keep a new client out. When all slots are in use,
//! the table evicts a connection of which the client has not sent a complete request, does not read its answer, or
//! has received its last answer ([`ConnectionTable::admit`]). Connections with a request in progress, and sockets
//! that were handed over, are never evicted.
//!
//! Threads: any. Lock: one, for the slots. A thread that holds it takes only the leaf locks of a record and of
//! [`Disconnects`].

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::record::{ConnectionRecord, ConnectionState, ConnectionView, EvictionRank, Peer};
use super::wire;
use crate::base::thread::lock;
use crate::http::client::{Disconnects, Socket};

/// How often a thread that waits for a slot checks again. A connection thread notices EOF or a request within this
/// time.
const SLOT_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum number of connections examined in a search for one to evict. Connections with input that their threads
/// have not read yet are skipped.
const EVICTION_CANDIDATES: usize = 16;

#[derive(Debug)]
pub(super) struct ConnectionTable {
    cap: usize,
    reserved: usize,
    /// Maximum number of evicted connections that have not closed yet, in addition to `cap` and `reserved`.
    leaving: usize,
    /// How long a new connection may stay silent before it can be evicted. This allows 5000 new connections per
    /// second; further ones wait in the listener's queue.
    silence: Duration,
    next: AtomicU64,
    evictions: AtomicU64,
    /// The length of `ConnectionSlots::records`, readable without the lock.
    taken: AtomicUsize,
    slots: Mutex<ConnectionSlots>,
    slot_freed: Condvar,
    draining: AtomicBool,
    disconnects: Disconnects,
}

#[derive(Debug, Default)]
struct ConnectionSlots {
    records: HashMap<u64, Arc<ConnectionRecord>>,
    on_reserve: usize,
    /// Number of evicted connections that their threads have not closed yet. These are no longer in `records`.
    leaving: usize,
}

/// The result of a search for a connection to evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eviction {
    /// A connection was evicted and its slot is free.
    FreedSlot,
    /// A connection was evicted, but it used a reserved slot beyond the limit.
    BeyondCap,
    /// No connection can be evicted now, but one can be shortly.
    Soon,
    /// No connection can be evicted, because all have a request in progress.
    Nothing,
}

/// The socket of a new connection for which there is no slot.
#[derive(Debug)]
pub(super) struct NoSlot {
    pub(super) socket: Socket,
    /// Whether a slot will be free shortly.
    soon: bool,
}

/// The slot of one connection; dropping it frees the slot.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    pub(super) record: Arc<ConnectionRecord>,
    table: Arc<ConnectionTable>,
}

impl ConnectionTable {
    pub(super) fn new(
        cap: usize,
        reserved: usize,
        leaving: usize,
        disconnects: Disconnects,
    ) -> ConnectionTable {
        ConnectionTable {
            cap,
            reserved,
            leaving,
            silence: (Duration::from_micros(200) * u32::try_from(cap).unwrap_or(u32::MAX))
                .clamp(Duration::from_millis(50), Duration::from_millis(100)),
            next: AtomicU64::new(1),
            evictions: AtomicU64::new(0),
            taken: AtomicUsize::new(0),
            slots: Mutex::default(),
            slot_freed: Condvar::new(),
            draining: AtomicBool::new(false),
            disconnects,
        }
    }

    /// Returns a slot for a new connection, or the socket if there is none. When all slots are in use, evicts a
    /// connection that waits for its client. If none can be evicted, now or (unless `use_reserve`) shortly, uses one
    /// of the few reserved slots, each of which serves one short request of an owner.
    pub(super) fn admit(
        self: &Arc<ConnectionTable>,
        socket: Socket,
        peer: Peer,
        local: Option<IpAddr>,
        use_reserve: bool,
    ) -> Result<ConnectionSlot, NoSlot> {
        let mut slots = lock(&self.slots);
        let mut on_reserve = false;
        if slots.records.len() - slots.on_reserve >= self.cap {
            let eviction = self.evict_one(&mut slots);
            on_reserve = eviction != Eviction::FreedSlot;
            let soon = eviction == Eviction::Soon;
            if on_reserve && (slots.on_reserve >= self.reserved || (soon && !use_reserve)) {
                return Err(NoSlot { socket, soon });
            }
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let record = Arc::new(ConnectionRecord::new(id, Arc::new(socket), peer, local, on_reserve));
        slots.on_reserve += usize::from(on_reserve);
        slots.records.insert(record.id, record.clone());
        self.taken.store(slots.records.len(), Ordering::Relaxed);
        drop(slots);
        self.disconnects.open(record.id, on_reserve);
        Ok(ConnectionSlot { record, table: self.clone() })
    }

    /// Evicts the connection with the lowest rank from the network with the most evictable connections, so that
    /// clients of other networks keep their connections.
    fn evict_one(&self, slots: &mut ConnectionSlots) -> Eviction {
        if slots.leaving >= self.leaving {
            return Eviction::Soon;
        }
        let now = Instant::now();
        let mut spare: Vec<(EvictionRank, Instant, ConnectionState, Peer, u64)> = Vec::new();
        let mut networks: HashMap<Peer, usize> = HashMap::new();
        for record in slots.records.values() {
            let state = record.state();
            let Some((rank, since)) = record.rank(state, self.disconnects.is_owners(record.id), now) else {
                continue;
            };
            let network = record.peer.network();
            *networks.entry(network).or_default() += usize::from(rank != EvictionRank::Owners);
            spare.push((rank, since, state, network, record.id));
        }
        let most = networks.into_iter().max_by_key(|(_, count)| *count).map(|(network, _)| network);
        spare.sort_unstable_by_key(|(rank, since, _, network, id)| {
            (*rank == EvictionRank::Owners, Some(*network) != most, *rank, *since, *id)
        });
        let mut soon = false;
        for (rank, since, state, _, id) in spare.into_iter().take(EVICTION_CANDIDATES) {
            if rank == EvictionRank::Silent && now.saturating_duration_since(since) < self.silence {
                soon = true;
                break;
            }
            let Some(record) = slots.records.get(&id).cloned() else { continue };
            // Input has arrived that the connection's thread has not read yet.
            let waits = matches!(
                state,
                ConnectionState::Idle | ConnectionState::Reading | ConnectionState::Receiving
            );
            if waits && wire::has_input(&*record.socket) {
                soon = true;
                continue;
            }
            if record.evict(state) {
                slots.on_reserve -= usize::from(record.on_reserve);
                slots.records.remove(&id);
                slots.leaving += 1;
                self.evictions.fetch_add(1, Ordering::Relaxed);
                return if record.on_reserve { Eviction::BeyondCap } else { Eviction::FreedSlot };
            }
            soon = true;
        }
        if soon { Eviction::Soon } else { Eviction::Nothing }
    }

    /// Returns whether so many slots are in use that the share of each token is enforced.
    pub(super) fn is_crowded(&self) -> bool {
        self.taken.load(Ordering::Relaxed) > self.cap / 2
    }

    /// Returns the number of connections evicted so far.
    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Waits briefly for a slot. Returns `false` at once if no slot is about to be free.
    pub(super) fn wait_for_slot(&self, refused: &NoSlot) -> bool {
        let slots = lock(&self.slots);
        let sockets: Vec<&Socket> = slots.records.values().map(|record| &*record.socket).collect();
        let worth = refused.soon || wire::any_closed(&sockets);
        if worth {
            let taken = |slots: &ConnectionSlots| slots.records.len() + slots.leaving;
            let before = taken(&slots);
            drop(
                self.slot_freed.wait_timeout_while(slots, SLOT_POLL_INTERVAL, |slots| taken(slots) >= before),
            );
        }
        worth
    }

    /// Returns whether connections must close after their current answer.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Closes idle connections, and from now on each connection that becomes idle.
    pub(super) fn close_idle(&self) {
        // A connection first sets its state and then reads this flag; this function first sets the flag and then
        // reads the state. With SeqCst, at least one of the two threads sees the other's write.
        self.draining.store(true, Ordering::SeqCst);
        for record in self.records() {
            if matches!(record.state(), ConnectionState::Idle | ConnectionState::Reading) {
                // Only reading is shut down. Input that has arrived stays readable, so a complete request is still
                // answered.
                record.socket.shutdown(Shutdown::Read);
            }
        }
    }

    /// Waits until all connections have closed. Returns `false` at the deadline.
    pub(super) fn wait_empty(&self, deadline: Instant) -> bool {
        let mut slots = lock(&self.slots);
        while !slots.records.is_empty() || slots.leaving > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            slots = self.slot_freed.wait_timeout(slots, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Closes every connection, in any state. Returns the number of connections.
    pub(super) fn cut(&self) -> usize {
        let records = self.records();
        for record in &records {
            record.socket.shutdown(Shutdown::Both);
        }
        records.len()
    }

    /// Returns the views of all connections, oldest first.
    pub(super) fn list(&self) -> Vec<ConnectionView> {
        let mut list: Vec<ConnectionView> = self.records().iter().map(|record| record.view()).collect();
        list.sort_unstable_by_key(|connection| connection.id);
        list
    }

    fn records(&self) -> Vec<Arc<ConnectionRecord>> {
        lock(&self.slots).records.values().cloned().collect()
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let id = self.record.id;
        self.table.disconnects.close(id);
        let mut slots = lock(&self.table.slots);
        match slots.records.remove(&id) {
            Some(_) => slots.on_reserve -= usize::from(self.record.on_reserve),
            None => slots.leaving -= 1,
        }
        self.table.taken.store(slots.records.len(), Ordering::Relaxed);
        drop(slots);
        self.table.slot_freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::record::PROMPT;
    use std::os::unix::net::UnixStream;

    /// Returns the socket of a silent client that stays connected.
    fn socket() -> Socket {
        let (here, there) = UnixStream::pair().unwrap();
        std::mem::forget(there);
        Socket::Unix(here)
    }

    fn far(network: u8) -> Peer {
        Peer::Ip([192, 0, 2, network].into())
    }

    /// Fills a table of two slots. It also has one reserved slot, and room for one evicted connection that is
    /// closing.
    fn full(table: &Arc<ConnectionTable>, peers: [Peer; 2]) -> [ConnectionSlot; 2] {
        peers.map(|peer| table.admit(socket(), peer, None, true).unwrap())
    }

    /// Waits for a slot within the limit, not a reserved one.
    fn patient(table: &Arc<ConnectionTable>, peer: Peer) -> ConnectionSlot {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let slot = table.admit(socket(), peer, None, true).ok().filter(|slot| !slot.record.on_reserve);
            if let Some(slot) = slot {
                return slot;
            }
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn table() -> Arc<ConnectionTable> {
        Arc::new(ConnectionTable::new(2, 1, 1, Disconnects::default()))
    }

    #[test]
    fn requests_in_progress_keep_their_slots_and_the_reserve_is_extra() {
        let table = table();
        let mut slots: Vec<ConnectionSlot> = full(&table, [far(1); 2]).into();
        slots.iter().for_each(|slot| assert!(slot.record.begin_request("r")));
        let slot = table.admit(socket(), far(1), None, true).unwrap();
        assert!(slot.record.on_reserve && slot.record.begin_request("r"));
        slots.push(slot);
        assert!(!table.admit(socket(), Peer::Unix, None, true).unwrap_err().soon);
        slots.remove(0);
        let slot = table.admit(socket(), far(1), None, true).unwrap();
        assert!(!slot.record.on_reserve);
        assert_eq!(table.list().len(), 3);
        drop(slot);
        slots.clear();
        assert!(table.wait_empty(Instant::now()));
    }

    #[test]
    fn connections_without_a_request_are_evicted_a_few_at_a_time() {
        let table = table();
        let [first, second] = full(&table, [Peer::Unix; 2]);
        assert!(
            table.admit(socket(), Peer::Unix, None, true).unwrap().record.on_reserve,
            "both have just connected"
        );
        let third = patient(&table, Peer::Unix);
        assert!(first.record.is_evicted() && !third.record.on_reserve, "the oldest");
        assert!(
            !first.record.set(ConnectionState::Reading) && !first.record.begin_request("r"),
            "eviction is final"
        );
        assert_eq!(table.evictions(), 1);
        assert!(third.record.begin_request("r"));
        // The thread of the evicted connection has not ended yet.
        let on_reserve = table.admit(socket(), Peer::Unix, None, true).unwrap();
        assert!(on_reserve.record.on_reserve && !second.record.is_evicted());
        let refused = table.admit(socket(), Peer::Unix, None, true).unwrap_err();
        assert!(refused.soon && table.wait_for_slot(&refused));
        drop(first);
        let fourth = patient(&table, Peer::Unix);
        assert!(second.record.is_evicted() && !fourth.record.on_reserve);
        drop((second, third, on_reserve, fourth));
        assert!(table.wait_empty(Instant::now()));
    }

    #[test]
    fn unread_input_protects_a_connection_from_eviction() {
        let table = table();
        let (here, there) = UnixStream::pair().unwrap();
        let first = table.admit(Socket::Unix(here), Peer::Unix, None, true).unwrap();
        let second = table.admit(socket(), Peer::Unix, None, true).unwrap();
        std::io::Write::write_all(&mut &there, b"G").unwrap();
        let third = patient(&table, Peer::Unix);
        assert!(!first.record.is_evicted() && second.record.is_evicted());
        drop((first, second, third));
    }

    #[test]
    fn the_longest_idle_of_the_largest_network_is_evicted_first_and_owners_last() {
        let table = Arc::new(ConnectionTable::new(8, 1, 8, Disconnects::default()));
        let slots: Vec<ConnectionSlot> =
            (0..8).map(|_| table.admit(socket(), far(1), None, true).unwrap()).collect();
        let states = [
            ConnectionState::Lingering,
            ConnectionState::Paused,
            ConnectionState::Reading,
            ConnectionState::Receiving,
            ConnectionState::Unread,
            ConnectionState::Idle,
            ConnectionState::Busy,
            ConnectionState::Taken,
        ];
        slots
            .iter()
            .zip(states)
            .for_each(|(slot, state)| assert!(slot.record.begin_request("r") && slot.record.set(state)));
        let ranks = |owners: bool, after: Duration| {
            let at = Instant::now() + after;
            let rank = |slot: &ConnectionSlot| {
                slot.record.rank(slot.record.state(), owners, at).map(|(rank, _)| rank)
            };
            slots.iter().map(rank).collect::<Vec<_>>()
        };
        let [answered, slow, idle, prompt, silent, owner] = [
            EvictionRank::Answered,
            EvictionRank::Slow,
            EvictionRank::Idle,
            EvictionRank::Prompt,
            EvictionRank::Silent,
            EvictionRank::Owners,
        ]
        .map(Some);
        let (now, later) = (Duration::ZERO, PROMPT + Duration::from_secs(1));
        assert_eq!(ranks(false, now), [answered, answered, prompt, prompt, None, prompt, None, None]);
        assert_eq!(ranks(false, later), [answered, answered, slow, slow, slow, idle, None, None]);
        assert_eq!(ranks(true, later), [answered, answered, owner, owner, owner, owner, None, None]);
        assert!(answered < slow && slow < idle && idle < prompt && prompt < silent && silent < owner);
        drop(slots);
        // The largest network loses a connection, although a connection of another network is older.
        let table = Arc::new(ConnectionTable::new(3, 1, 8, Disconnects::default()));
        let slots = [far(1), far(2), far(2)].map(|peer| table.admit(socket(), peer, None, true).unwrap());
        let new = patient(&table, far(3));
        assert_eq!(slots.each_ref().map(|slot| slot.record.is_evicted()), [false, true, false]);
        drop((slots, new));
    }

    #[test]
    fn eviction_sends_a_delayed_answer_at_once() {
        let table = table();
        let slots = full(&table, [Peer::Unix; 2]);
        slots.iter().for_each(|slot| assert!(slot.record.begin_request("r")));
        std::thread::scope(|scope| {
            let begun = Instant::now();
            let waiting = scope.spawn(|| slots[0].record.pause(Duration::from_secs(20)));
            while table.admit(socket(), Peer::Unix, None, true).is_ok_and(|slot| slot.record.on_reserve) {
                std::thread::yield_now();
            }
            waiting.join().unwrap();
            assert!(begun.elapsed() < Duration::from_secs(10));
        });
    }

    #[test]
    fn slots_of_disconnected_clients_are_waited_for() {
        let table = Arc::new(ConnectionTable::new(1, 0, 1, Disconnects::default()));
        let (here, there) = UnixStream::pair().unwrap();
        let slot = table.admit(Socket::Unix(here), Peer::Unix, None, true).unwrap();
        assert!(slot.record.begin_request("r"));
        let refused = table.admit(socket(), Peer::Unix, None, true).unwrap_err();
        assert!(!table.wait_for_slot(&refused), "no client has disconnected");
        drop(there);
        assert!(table.wait_for_slot(&refused));
        drop(slot);
        assert!(table.admit(socket(), Peer::Unix, None, true).is_ok());
    }
}
