//! Who is connected: at most so many at once, and a record of each for `/status`, the drain and the cut.
//! Knows nothing of HTTP.
//!
//! **Invariant:** a connection that waits for its client does not keep a new one out. When all seats are taken, the table
//! closes one whose client has not sent a whole request, does not take its answer, or has got its last one
//! ([`Table::admit`]). Only requests that are being answered, and sockets that were handed over, are never closed so.
//!
//! Threads: any. Lock: the table's, a leaf but for the short leaves in a record and in [`Gone`].

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::record::{ConnectionRecord, ConnectionState, ConnectionView, EvictionRank, Peer};
use super::wire;
use crate::base::thread::lock;
use crate::http::client::{Disconnects, Socket};

/// After so long it is checked again whether a seat is free: a thread needs less to see its client's end or its request.
const SLOT_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Connections that are looked at for one that can be closed. Those before it have sent something that their threads have
/// not read yet.
const EVICTION_CANDIDATES: usize = 16;

/// The seats.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    cap: usize,
    reserved: usize,
    /// How many may be on their way out beside those.
    leaving: usize,
    /// How long a new connection may be silent before it is closed for another one. The seats allow 5000 connections a
    /// second then; those beyond wait in the queue of the listener.
    silence: Duration,
    next: AtomicU64,
    evictions: AtomicU64,
    /// As many as there are records.
    taken: AtomicUsize,
    slots: Mutex<ConnectionSlots>,
    slot_freed: Condvar,
    draining: AtomicBool,
    gone: Disconnects,
}

#[derive(Debug, Default)]
struct ConnectionSlots {
    records: HashMap<u64, Arc<ConnectionRecord>>,
    on_reserve: usize,
    /// Evicted connections whose threads have not ended them yet; they are not in `records` any more.
    leaving: usize,
}

/// What became of the search for a connection that can be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eviction {
    /// Its seat is free.
    FreedSlot,
    /// It was one beyond the cap.
    BeyondCap,
    /// One can be closed in a moment.
    Soon,
    /// All have requests that are being answered.
    Nothing,
}

/// Why there is no seat.
#[derive(Debug)]
pub(super) struct NoSlot {
    pub(super) socket: Socket,
    /// Some seat will be free in a moment.
    soon: bool,
}

/// One connection's place; free again when this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    pub(super) record: Arc<ConnectionRecord>,
    table: Arc<ConnectionTable>,
}

impl ConnectionTable {
    pub(super) fn new(cap: usize, reserved: usize, leaving: usize, gone: Disconnects) -> ConnectionTable {
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
            gone,
        }
    }

    /// A seat for a new connection, or the socket back. When all are taken, one that waits for its client is closed. When
    /// there is none, and there will be none in a moment or `hurry` says not to wait for it, a few seats beyond the cap are
    /// there for owners, who get one prompt request each.
    pub(super) fn admit(
        self: &Arc<ConnectionTable>,
        socket: Socket,
        peer: Peer,
        local: Option<IpAddr>,
        hurry: bool,
    ) -> Result<ConnectionSlot, NoSlot> {
        let mut seats = lock(&self.slots);
        let mut hurried = false;
        if seats.records.len() - seats.on_reserve >= self.cap {
            let eviction = self.evict_one(&mut seats);
            hurried = eviction != Eviction::FreedSlot;
            let soon = eviction == Eviction::Soon;
            if hurried && (seats.on_reserve >= self.reserved || (soon && !hurry)) {
                return Err(NoSlot { socket, soon });
            }
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let record = Arc::new(ConnectionRecord::new(id, Arc::new(socket), peer, local, hurried));
        seats.on_reserve += usize::from(hurried);
        seats.records.insert(record.id, record.clone());
        self.taken.store(seats.records.len(), Ordering::Relaxed);
        drop(seats);
        self.gone.open(record.id, hurried);
        Ok(ConnectionSlot { record, table: self.clone() })
    }

    /// Closes the connection that can best be spared: one of the network that has most of those that can be spared, so that
    /// a client elsewhere keeps its own.
    fn evict_one(&self, seats: &mut ConnectionSlots) -> Eviction {
        if seats.leaving >= self.leaving {
            return Eviction::Soon;
        }
        let now = Instant::now();
        let mut spare: Vec<(EvictionRank, Instant, ConnectionState, Peer, u64)> = Vec::new();
        let mut networks: HashMap<Peer, usize> = HashMap::new();
        for record in seats.records.values() {
            let state = record.state();
            let Some((rank, since)) = record.rank(state, self.gone.is_owners(record.id), now) else {
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
            let Some(record) = seats.records.get(&id).cloned() else { continue };
            // Its thread has not had the processor since.
            let waits = matches!(
                state,
                ConnectionState::Idle | ConnectionState::Reading | ConnectionState::Receiving
            );
            if waits && wire::has_input(&*record.socket) {
                soon = true;
                continue;
            }
            if record.evict(state) {
                seats.on_reserve -= usize::from(record.on_reserve);
                seats.records.remove(&id);
                seats.leaving += 1;
                self.evictions.fetch_add(1, Ordering::Relaxed);
                return if record.on_reserve { Eviction::BeyondCap } else { Eviction::FreedSlot };
            }
            soon = true;
        }
        if soon { Eviction::Soon } else { Eviction::Nothing }
    }

    /// Whether so many seats are taken that a token can have more than its share of them.
    pub(super) fn is_crowded(&self) -> bool {
        self.taken.load(Ordering::Relaxed) > self.cap / 2
    }

    /// How many connections were closed to make room for others.
    pub(super) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Waits for a moment if some seat will be free in one: `soon`, or its client has left. Otherwise `false`.
    pub(super) fn wait_for_slot(&self, refused: &NoSlot) -> bool {
        let seats = lock(&self.slots);
        let sockets: Vec<&Socket> = seats.records.values().map(|record| &*record.socket).collect();
        let worth = refused.soon || wire::any_closed(&sockets);
        if worth {
            let taken = |seats: &ConnectionSlots| seats.records.len() + seats.leaving;
            let before = taken(&seats);
            drop(
                self.slot_freed.wait_timeout_while(seats, SLOT_POLL_INTERVAL, |seats| taken(seats) >= before),
            );
        }
        worth
    }

    /// Whether no connection may wait for another request.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Ends the connections that wait for a request, now and from now on.
    pub(super) fn close_idle(&self) {
        // A connection sets its state and then looks at the flag; here it is the other way round. With SeqCst one of
        // the two sees the other.
        self.draining.store(true, Ordering::SeqCst);
        for record in self.records() {
            if matches!(record.state(), ConnectionState::Idle | ConnectionState::Reading) {
                // What has arrived stays readable, so a complete request is still answered.
                record.socket.shutdown(Shutdown::Read);
            }
        }
    }

    /// Waits until nobody is connected any more; `false` when that took too long.
    pub(super) fn wait_empty(&self, deadline: Instant) -> bool {
        let mut seats = lock(&self.slots);
        while !seats.records.is_empty() || seats.leaving > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            seats = self.slot_freed.wait_timeout(seats, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Ends every connection, whatever it is doing; returns how many there were.
    pub(super) fn cut(&self) -> usize {
        let records = self.records();
        for record in &records {
            record.socket.shutdown(Shutdown::Both);
        }
        records.len()
    }

    /// All connections, the oldest first.
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
        self.table.gone.close(id);
        let mut seats = lock(&self.table.slots);
        match seats.records.remove(&id) {
            Some(_) => seats.on_reserve -= usize::from(self.record.on_reserve),
            None => seats.leaving -= 1,
        }
        self.table.taken.store(seats.records.len(), Ordering::Relaxed);
        drop(seats);
        self.table.slot_freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::record::PROMPT;
    use std::os::unix::net::UnixStream;

    /// Of a client that stays and says nothing.
    fn socket() -> Socket {
        let (here, there) = UnixStream::pair().unwrap();
        std::mem::forget(there);
        Socket::Unix(here)
    }

    fn far(network: u8) -> Peer {
        Peer::Ip([192, 0, 2, network].into())
    }

    /// A full table of two, with one seat for owners, and one that may be on its way out.
    fn full(table: &Arc<ConnectionTable>, peers: [Peer; 2]) -> [ConnectionSlot; 2] {
        peers.map(|peer| table.admit(socket(), peer, None, true).unwrap())
    }

    /// A seat that is none beyond the cap, once there is one.
    fn patient(table: &Arc<ConnectionTable>, peer: Peer) -> ConnectionSlot {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let seat = table.admit(socket(), peer, None, true).ok().filter(|seat| !seat.record.on_reserve);
            if let Some(seat) = seat {
                return seat;
            }
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn table() -> Arc<ConnectionTable> {
        Arc::new(ConnectionTable::new(2, 1, 1, Disconnects::default()))
    }

    #[test]
    fn what_is_being_answered_keeps_its_seat_and_the_reserve_is_beyond() {
        let table = table();
        let mut seats: Vec<ConnectionSlot> = full(&table, [far(1); 2]).into();
        seats.iter().for_each(|seat| assert!(seat.record.begin_request("r")));
        let seat = table.admit(socket(), far(1), None, true).unwrap();
        assert!(seat.record.on_reserve && seat.record.begin_request("r"));
        seats.push(seat);
        assert!(!table.admit(socket(), Peer::Unix, None, true).unwrap_err().soon);
        seats.remove(0);
        let seat = table.admit(socket(), far(1), None, true).unwrap();
        assert!(!seat.record.on_reserve);
        assert_eq!(table.list().len(), 3);
        drop(seat);
        seats.clear();
        assert!(table.wait_empty(Instant::now()));
    }

    #[test]
    fn a_connection_without_a_request_makes_room_and_few_leave_at_once() {
        let table = table();
        let [first, second] = full(&table, [Peer::Unix; 2]);
        assert!(
            table.admit(socket(), Peer::Unix, None, true).unwrap().record.on_reserve,
            "they have just come"
        );
        let third = patient(&table, Peer::Unix);
        assert!(first.record.is_evicted() && !third.record.on_reserve, "the oldest");
        assert!(
            !first.record.set(ConnectionState::Reading) && !first.record.begin_request("r"),
            "that is final"
        );
        assert_eq!(table.evictions(), 1);
        assert!(third.record.begin_request("r"));
        // Its thread has not ended it yet.
        let hurried = table.admit(socket(), Peer::Unix, None, true).unwrap();
        assert!(hurried.record.on_reserve && !second.record.is_evicted());
        let refused = table.admit(socket(), Peer::Unix, None, true).unwrap_err();
        assert!(refused.soon && table.wait_for_slot(&refused));
        drop(first);
        let fourth = patient(&table, Peer::Unix);
        assert!(second.record.is_evicted() && !fourth.record.on_reserve);
        drop((second, third, hurried, fourth));
        assert!(table.wait_empty(Instant::now()));
    }

    #[test]
    fn input_that_was_not_read_yet_saves_a_connection() {
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
    fn those_who_wait_for_longest_in_the_largest_network_go_first_and_owners_last() {
        let table = Arc::new(ConnectionTable::new(8, 1, 8, Disconnects::default()));
        let seats: Vec<ConnectionSlot> =
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
        seats
            .iter()
            .zip(states)
            .for_each(|(seat, state)| assert!(seat.record.begin_request("r") && seat.record.set(state)));
        let ranks = |owners: bool, after: Duration| {
            let at = Instant::now() + after;
            let rank = |seat: &ConnectionSlot| {
                seat.record.rank(seat.record.state(), owners, at).map(|(rank, _)| rank)
            };
            seats.iter().map(rank).collect::<Vec<_>>()
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
        drop(seats);
        // The network with most of them loses one, although another one's is older.
        let table = Arc::new(ConnectionTable::new(3, 1, 8, Disconnects::default()));
        let seats = [far(1), far(2), far(2)].map(|peer| table.admit(socket(), peer, None, true).unwrap());
        let new = patient(&table, far(3));
        assert_eq!(seats.each_ref().map(|seat| seat.record.is_evicted()), [false, true, false]);
        drop((seats, new));
    }

    #[test]
    fn an_answer_that_is_held_back_is_sent_when_the_seat_is_needed() {
        let table = table();
        let seats = full(&table, [Peer::Unix; 2]);
        seats.iter().for_each(|seat| assert!(seat.record.begin_request("r")));
        std::thread::scope(|scope| {
            let begun = Instant::now();
            let waiting = scope.spawn(|| seats[0].record.pause(Duration::from_secs(20)));
            while table.admit(socket(), Peer::Unix, None, true).is_ok_and(|seat| seat.record.on_reserve) {
                std::thread::yield_now();
            }
            waiting.join().unwrap();
            assert!(begun.elapsed() < Duration::from_secs(10));
        });
    }

    #[test]
    fn a_seat_whose_client_has_left_is_waited_for() {
        let table = Arc::new(ConnectionTable::new(1, 0, 1, Disconnects::default()));
        let (here, there) = UnixStream::pair().unwrap();
        let seat = table.admit(Socket::Unix(here), Peer::Unix, None, true).unwrap();
        assert!(seat.record.begin_request("r"));
        let refused = table.admit(socket(), Peer::Unix, None, true).unwrap_err();
        assert!(!table.wait_for_slot(&refused), "no client has left");
        drop(there);
        assert!(table.wait_for_slot(&refused));
        drop(seat);
        assert!(table.admit(socket(), Peer::Unix, None, true).is_ok());
    }
}
