//! The record of one connection: its client, its state, and its rank for eviction when a new client needs its slot.
//! Independent of HTTP.
//!
//! Threads: any. Lock: one leaf lock. The state is atomic because it changes several times per request.

use std::net::{IpAddr, Shutdown};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::base::thread::lock;
use crate::http::client::Socket;

/// How long a client may take to send or read while the table is full. A client that takes longer counts as slow and
/// is evicted first. A head arrives in one packet, or in two with a round trip between them.
pub(super) const PROMPT: Duration = Duration::from_secs(1);

/// Where a client connects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An IP address. IPv4-mapped IPv6 addresses are stored as IPv4.
    Ip(IpAddr),
    /// A process on this machine, over a Unix socket.
    Unix,
}

impl Peer {
    /// Returns the network in which the client can choose its address freely. For IPv6 that is a /64, the size that
    /// providers assign.
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

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// The connection waits for the first byte of a request.
    Idle,
    /// The gate is receiving a request head.
    Reading,
    /// The gate is receiving a request body and has sent nothing to the backend yet.
    Receiving,
    /// A request is being answered.
    Busy,
    /// The client does not read its answer.
    Unread,
    /// The answer is being delayed.
    Paused,
    /// The last answer has been sent; the gate discards further input.
    Lingering,
    /// The socket was handed over to another thread.
    Taken,
    /// The gate closed the connection to make room for another one.
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

#[derive(Debug)]
pub(super) struct ConnectionRecord {
    pub(super) id: u64,
    pub(super) peer: Peer,
    /// The local address that the client connected to; `None` on a Unix socket.
    pub(super) local: Option<IpAddr>,
    /// Whether the connection uses a reserved slot beyond the limit: it serves one short request of an owner, then
    /// the slot is freed.
    pub(super) on_reserve: bool,
    pub(super) socket: Arc<Socket>,
    opened: Instant,
    state: AtomicU8,
    /// When the state last changed, in milliseconds since `opened`.
    since: AtomicU64,
    requests: AtomicU64,
    request: Mutex<String>,
    evicted: Condvar,
}

impl ConnectionRecord {
    pub(super) fn new(
        id: u64,
        socket: Arc<Socket>,
        peer: Peer,
        local: Option<IpAddr>,
        on_reserve: bool,
    ) -> ConnectionRecord {
        ConnectionRecord {
            id,
            peer,
            local,
            on_reserve,
            socket,
            opened: Instant::now(),
            state: AtomicU8::new(ConnectionState::Idle as u8),
            since: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            request: Mutex::default(),
            evicted: Condvar::new(),
        }
    }

    /// Returns the view of this connection for `/status`.
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

    /// Changes the state. Returns `false` and changes nothing if the connection was evicted.
    pub(super) fn set(&self, state: ConnectionState) -> bool {
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(millis, Ordering::Relaxed);
        // SeqCst: see `ConnectionTable::close_idle`.
        let change = |now| (now != ConnectionState::Evicted as u8).then_some(state as u8);
        self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).is_ok()
    }

    /// Records that a request is being answered. Returns `false` if the connection was evicted.
    pub(super) fn begin_request(&self, request: &str) -> bool {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut current = lock(&self.request);
        current.clear();
        current.push_str(request);
        drop(current);
        self.set(ConnectionState::Busy)
    }

    /// Delays the answer by `time`. An eviction ends the delay early.
    pub(super) fn pause(&self, time: Duration) {
        if !time.is_zero() && self.set(ConnectionState::Paused) {
            let request = lock(&self.request);
            drop(self.evicted.wait_timeout_while(request, time, |_| !self.is_evicted()));
            self.set(ConnectionState::Busy);
        }
    }

    pub(super) fn is_evicted(&self) -> bool {
        self.state() == ConnectionState::Evicted
    }

    pub(super) fn state(&self) -> ConnectionState {
        let number = usize::from(self.state.load(Ordering::SeqCst));
        ConnectionState::ALL.get(number).copied().unwrap_or(ConnectionState::Evicted)
    }

    /// Evicts the connection if it is still in state `from`. If its answer is being delayed, the answer is sent at
    /// once.
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

    /// Returns the eviction rank and the time since when the client has been idle, or `None` if the connection
    /// cannot be evicted. `owners` is true if its last request was from an owner.
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

/// The ranks of connections for eviction; the lowest rank is evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum EvictionRank {
    /// The request has been answered; only a delayed answer or the close remains.
    Answered,
    /// The client is slow to send its request or to read its answer.
    Slow,
    /// The client has received its answers and sends no further request.
    Idle,
    /// The client would rank as `Slow` or `Idle`, but has been so for less than [`PROMPT`].
    Prompt,
    /// The client is new and has not had time to send anything.
    Silent,
    /// The client is idle and its last request was from an owner.
    Owners,
}

/// A connection as `/status` shows it.
#[derive(Clone, Debug)]
pub struct ConnectionView {
    /// The number of the connection, counted from start-up.
    pub id: u64,
    pub peer: Peer,
    pub state: ConnectionState,
    pub age: Duration,
    /// Number of requests that the connection has carried.
    pub requests: u64,
    /// The id of the last request; empty before the first.
    pub request: String,
}
