//! One connection's record: whose it is, what it is doing, and how well it can be spared when others need its seat.
//! Knows nothing of HTTP.
//!
//! Threads: any. Lock: one, a leaf; the state is atomic because it changes several times per request.

use std::net::{IpAddr, Shutdown};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::base::thread::lock;
use crate::http::client::Socket;

/// How long a client may take for what it sends or reads while the table is full before slower ones are no longer closed
/// first. A head comes in one packet, or in two with a round trip between them.
pub(super) const PROMPT: Duration = Duration::from_secs(1);

/// Where a client sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// At this address; IPv4 also when it came mapped into IPv6.
    Ip(IpAddr),
    /// On this machine, over a Unix socket.
    Unix,
}

impl Peer {
    /// The network that it can choose addresses of: of IPv6 a /64, as providers assign it.
    pub(super) fn network(self) -> Peer {
        match self {
            Peer::Ip(IpAddr::V6(address)) => Peer::Ip(IpAddr::V6((u128::from(address) >> 64 << 64).into())),
            other => other,
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
pub enum ConnectionState {
    /// Waits for the first byte of a request.
    Idle,
    /// A request's head is arriving.
    Reading,
    /// A request's body is arriving, and nothing of the request has gone inside.
    Receiving,
    /// A request is being answered.
    Busy,
    /// The client does not take its answer.
    Unread,
    /// An answer is held back for a while.
    Paused,
    /// The last answer has been sent; what the client still sends is dropped.
    Lingering,
    /// Its socket was handed over.
    Taken,
    /// It is closed to make room for another one.
    Evicted,
}

impl ConnectionState {
    const ALL: [ConnectionState; 9] = [
        ConnectionState::Idle,
        ConnectionState::Reading,
        ConnectionState::Receiving,
        ConnectionState::Busy,
        ConnectionState::Unread,
        ConnectionState::Paused,
        ConnectionState::Lingering,
        ConnectionState::Taken,
        ConnectionState::Evicted,
    ];
}

/// One connection.
#[derive(Debug)]
pub(super) struct ConnectionRecord {
    pub(super) id: u64,
    pub(super) peer: Peer,
    /// The address that the client called; `None` on a Unix socket.
    pub(super) local: Option<IpAddr>,
    /// Beyond the cap: one prompt request of an owner, then the seat is needed again.
    pub(super) on_reserve: bool,
    pub(super) socket: Arc<Socket>,
    opened: Instant,
    state: AtomicU8,
    /// When the state was last changed, in milliseconds since `opened`.
    since: AtomicU64,
    requests: AtomicU64,
    request: Mutex<String>,
    evicted: Condvar,
}

impl ConnectionRecord {
    /// Of a connection that has sent nothing yet.
    pub(super) fn new(
        id: u64,
        socket: Arc<Socket>,
        peer: Peer,
        local: Option<IpAddr>,
        hurried: bool,
    ) -> ConnectionRecord {
        ConnectionRecord {
            id,
            peer,
            local,
            on_reserve: hurried,
            socket,
            opened: Instant::now(),
            state: AtomicU8::new(ConnectionState::Idle as u8),
            since: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            request: Mutex::default(),
            evicted: Condvar::new(),
        }
    }

    /// As `/status` shows it.
    pub(super) fn view(&self) -> ConnectionView {
        ConnectionView {
            id: self.id,
            peer: self.peer,
            state: self.state(),
            age: self.opened.elapsed(),
            requests: self.requests.load(Ordering::Relaxed),
            request: lock(&self.request).clone(),
        }
    }

    /// Changes the state; `false` when the connection was closed to make room for another one, which is final.
    pub(super) fn set(&self, state: ConnectionState) -> bool {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(millis, Ordering::Relaxed);
        // SeqCst: see `Table::close_idle`.
        let change = |now| (now != ConnectionState::Evicted as u8).then_some(state as u8);
        self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).is_ok()
    }

    /// Notes that a request is answered from now on; `false` as above.
    pub(super) fn begin_request(&self, request: &str) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut current = lock(&self.request);
        current.clear();
        current.push_str(request);
        drop(current);
        self.set(ConnectionState::Busy)
    }

    /// Holds an answer back, unless the seat is needed.
    pub(super) fn pause(&self, time: Duration) {
        if !time.is_zero() && self.set(ConnectionState::Paused) {
            let request = lock(&self.request);
            drop(self.evicted.wait_timeout_while(request, time, |_| !self.is_evicted()));
            self.set(ConnectionState::Busy);
        }
    }

    /// Whether the connection was closed to make room for another one.
    pub(super) fn is_evicted(&self) -> bool {
        self.state() == ConnectionState::Evicted
    }

    pub(super) fn state(&self) -> ConnectionState {
        let number = usize::from(self.state.load(Ordering::SeqCst));
        ConnectionState::ALL.get(number).copied().unwrap_or(ConnectionState::Evicted)
    }

    /// Closes the connection if it is still in this state. A client whose answer is held back gets it at once.
    pub(super) fn evict(&self, from: ConnectionState) -> bool {
        let (from, to) = (from as u8, ConnectionState::Evicted as u8);
        if self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return false;
        }
        if from == ConnectionState::Paused as u8 {
            drop(lock(&self.request));
            self.evicted.notify_all();
        } else {
            self.socket.shutdown(Shutdown::Both);
        }
        true
    }

    /// How soon it is closed to make room for another one, and since when nothing has come of it; `None` for never.
    /// `owners`: its last request was an owner's.
    pub(super) fn rank(
        &self,
        state: ConnectionState,
        owners: bool,
        now: Instant,
    ) -> Option<(EvictionRank, Instant)> {
        let since = self.opened + Duration::from_millis(self.since.load(Ordering::Relaxed));
        let prompt = now.saturating_duration_since(since) < PROMPT;
        let fresh = self.requests.load(Ordering::Relaxed) == 0;
        let rank = match state {
            ConnectionState::Lingering | ConnectionState::Paused => EvictionRank::Answered,
            ConnectionState::Busy | ConnectionState::Taken | ConnectionState::Evicted => return None,
            ConnectionState::Unread if prompt => return None,
            _ if owners => EvictionRank::Owners,
            ConnectionState::Idle if fresh && prompt => EvictionRank::Silent,
            _ if prompt => EvictionRank::Prompt,
            ConnectionState::Idle if !fresh => EvictionRank::Idle,
            ConnectionState::Idle
            | ConnectionState::Reading
            | ConnectionState::Receiving
            | ConnectionState::Unread => EvictionRank::Slow,
        };
        Some((rank, since))
    }
}

/// Connections in the order in which they are closed when room is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EvictionRank {
    /// Only the last answer, or the end, is still to come.
    Answered,
    /// The client sends its request, or takes its answer, more slowly than it need.
    Slow,
    /// The client has got its answers and asks for nothing.
    Idle,
    /// The same two, only just.
    Prompt,
    /// The client has not had the time to send anything yet.
    Silent,
    /// An owner's that asks for nothing.
    Owners,
}

/// A connection as `/status` shows it.
#[derive(Clone, Debug)]
pub struct ConnectionView {
    /// Its number since the start.
    pub id: u64,
    /// From where.
    pub peer: Peer,
    /// What it is doing.
    pub state: ConnectionState,
    /// For how long it has been open.
    pub age: Duration,
    /// Requests that were let through.
    pub requests: u64,
    /// The last one's id; empty before the first.
    pub request: String,
}
