//! Who is connected: at most so many at once, and a record of each for `/status`, the drain and the cut.
//! Knows nothing of HTTP.
//!
//! Threads: any. Lock: the table's, a leaf but for the short leaf in a record; a record's state is atomic because it
//! changes twice per request.

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::wire;
use crate::base::thread::lock;
use crate::http::client::{Gone, Socket};

/// Where a client sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// At this address; IPv4 also when it came mapped into IPv6.
    Ip(IpAddr),
    /// On this machine, over a Unix socket.
    Unix,
}

impl Peer {
    /// Nobody off this machine.
    pub fn is_local(self) -> bool {
        match self {
            Peer::Ip(address) => address.is_loopback(),
            Peer::Unix => true,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Ip(address) => address.fmt(f),
            Peer::Unix => f.write_str("unix"),
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for the first byte of a request.
    Idle,
    /// A request is arriving.
    Reading,
    /// A request is being answered.
    Busy,
    /// Its socket was handed over.
    Taken,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) id: u64,
    pub(super) peer: Peer,
    /// The address that the client called; `None` on a Unix socket.
    pub(super) local: Option<IpAddr>,
    /// Beyond the cap: one prompt request, then the seat is needed again.
    pub(super) hurried: bool,
    pub(super) socket: Arc<Socket>,
    opened: Instant,
    state: AtomicU8,
    requests: AtomicU64,
    request: Mutex<String>,
}

impl Record {
    pub(super) fn set(&self, state: State) {
        // SeqCst: see `Table::close_idle`.
        self.state.store(state as u8, Ordering::SeqCst);
    }

    pub(super) fn begin(&self, request: &str) {
        self.set(State::Busy);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut current = lock(&self.request);
        current.clear();
        current.push_str(request);
    }

    fn state(&self) -> State {
        match self.state.load(Ordering::SeqCst) {
            0 => State::Idle,
            1 => State::Reading,
            2 => State::Busy,
            _ => State::Taken,
        }
    }
}

/// A connection as `/status` shows it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Its number since the start.
    pub id: u64,
    /// From where.
    pub peer: Peer,
    /// What it is doing.
    pub state: State,
    /// For how long it has been open.
    pub age: Duration,
    /// Requests that were let through.
    pub requests: u64,
    /// The last one's id; empty before the first.
    pub request: String,
}

/// The seats.
#[derive(Debug)]
pub(super) struct Table {
    cap: usize,
    reserved: usize,
    next: AtomicU64,
    seats: Mutex<Seats>,
    left: Condvar,
    draining: AtomicBool,
    gone: Gone,
}

#[derive(Debug, Default)]
struct Seats {
    records: HashMap<u64, Arc<Record>>,
    hurried: usize,
}

/// One connection's place; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) record: Arc<Record>,
    table: Arc<Table>,
}

impl Table {
    pub(super) fn new(cap: usize, reserved: usize, gone: Gone) -> Table {
        Table {
            cap,
            reserved,
            next: AtomicU64::new(1),
            seats: Mutex::default(),
            left: Condvar::new(),
            draining: AtomicBool::new(false),
            gone,
        }
    }

    /// A seat for a new connection, or the socket back. Beyond the cap a few seats are kept for people on this
    /// machine, who get one prompt request each: whoever fills the table from elsewhere, or with silence, cannot keep
    /// the operator out.
    pub(super) fn admit(
        self: &Arc<Table>,
        socket: Socket,
        peer: Peer,
        local: Option<IpAddr>,
    ) -> Result<Seat, Socket> {
        let mut seats = lock(&self.seats);
        let hurried = seats.records.len() - seats.hurried >= self.cap;
        if hurried && !(peer.is_local() && seats.hurried < self.reserved) {
            return Err(socket);
        }
        let record = Arc::new(Record {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            peer,
            local,
            hurried,
            socket: Arc::new(socket),
            opened: Instant::now(),
            state: AtomicU8::new(State::Idle as u8),
            requests: AtomicU64::new(0),
            request: Mutex::default(),
        });
        seats.hurried += usize::from(hurried);
        seats.records.insert(record.id, record.clone());
        drop(seats);
        self.gone.open(record.id);
        Ok(Seat { record, table: self.clone() })
    }

    /// Waits until somebody's seat is free again, if there is one whose client has left; not longer than so long.
    pub(super) fn wait_for_the_gone(&self, at_most: Duration) {
        let seats = lock(&self.seats);
        let sockets: Vec<&Socket> = seats.records.values().map(|record| &*record.socket).collect();
        if wire::any_gone(&sockets) {
            let taken = seats.records.len();
            drop(self.left.wait_timeout_while(seats, at_most, |seats| seats.records.len() >= taken));
        }
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
            if matches!(record.state(), State::Idle | State::Reading) {
                // What has arrived stays readable, so a complete request is still answered.
                record.socket.shutdown(Shutdown::Read);
            }
        }
    }

    /// Waits until nobody is connected any more; `false` when that took too long.
    pub(super) fn wait_empty(&self, deadline: Instant) -> bool {
        let mut seats = lock(&self.seats);
        while !seats.records.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            seats = self.left.wait_timeout(seats, left).unwrap_or_else(PoisonError::into_inner).0;
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
    pub(super) fn list(&self) -> Vec<Connection> {
        let mut list: Vec<Connection> = self
            .records()
            .iter()
            .map(|record| Connection {
                id: record.id,
                peer: record.peer,
                state: record.state(),
                age: record.opened.elapsed(),
                requests: record.requests.load(Ordering::Relaxed),
                request: lock(&record.request).clone(),
            })
            .collect();
        list.sort_unstable_by_key(|connection| connection.id);
        list
    }

    fn records(&self) -> Vec<Arc<Record>> {
        lock(&self.seats).records.values().cloned().collect()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let id = self.record.id;
        self.table.gone.close(id);
        let mut seats = lock(&self.table.seats);
        seats.records.remove(&id);
        seats.hurried -= usize::from(self.record.hurried);
        drop(seats);
        self.table.left.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    const RESERVED: usize = 3;

    fn socket() -> Socket {
        Socket::Unix(UnixStream::pair().unwrap().0)
    }

    #[test]
    fn the_cap_holds_and_the_reserve_is_for_this_machine() {
        let table = Arc::new(Table::new(2, RESERVED, Gone::default()));
        let far = Peer::Ip("192.0.2.1".parse().unwrap());
        let mut seats: Vec<Seat> = (0..2).map(|_| table.admit(socket(), far, None).unwrap()).collect();
        assert!(table.admit(socket(), far, None).is_err());
        for _ in 0..RESERVED {
            let seat = table.admit(socket(), Peer::Unix, None).unwrap();
            assert!(seat.record.hurried);
            seats.push(seat);
        }
        assert!(table.admit(socket(), Peer::Unix, None).is_err());
        seats.remove(0);
        let seat = table.admit(socket(), far, None).unwrap();
        assert!(!seat.record.hurried);
        assert_eq!(table.list().len(), 2 + RESERVED);
        drop(seat);
        seats.clear();
        assert!(table.wait_empty(Instant::now()));
    }

    #[test]
    fn a_seat_whose_client_has_left_is_waited_for() {
        let table = Arc::new(Table::new(1, 0, Gone::default()));
        let (here, there) = UnixStream::pair().unwrap();
        let seat = table.admit(Socket::Unix(here), Peer::Unix, None).unwrap();
        let start = Instant::now();
        table.wait_for_the_gone(Duration::from_secs(10));
        assert!(start.elapsed() < Duration::from_secs(5), "nobody has left");
        drop(there);
        std::thread::scope(|scope| {
            scope.spawn(move || drop(seat));
            table.wait_for_the_gone(Duration::from_secs(10));
        });
        assert!(table.admit(socket(), Peer::Unix, None).is_ok());
    }
}
