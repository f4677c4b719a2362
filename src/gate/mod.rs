//! The public side of the HTTP server. The gate accepts connections, parses and validates request heads, and relays
//! requests to tiny_http (the backend) over a private Unix socket. It owns the client sockets, so it detects
//! disconnects and can hand a socket over to another thread.
//!
//! **Invariant:** tiny_http never reads from a client socket, and no byte of a refused request reaches it.
//!
//! Reading order: `listen`, `listener_process` and `accept` (accepting clients), `table` and `record` (open
//! connections), `relay` (one connection), `head`, `host_check` and `body` (validation), `exchange` and `answer`
//! (one request), `backend` (connections to tiny_http), then `refuse`, `throttle` and `wire`. A request for which
//! [`DirectLookup`] returns a handler is answered on the thread of its connection, without the backend.
//! `http::client` is the interface between the backend and client sockets. The gate is independent of the routes.
//!
//! Threads: `gate-accept`, owned by [`Gate`]; one `gate-N` per connection. Locks: no thread takes a second lock
//! while it holds one, except for the two in `backend`.

mod accept;
mod answer;
mod backend;
mod body;
mod exchange;
mod head;
mod host_check;
mod listen;
mod listener_process;
#[cfg(test)]
mod properties;
mod record;
#[cfg(any(test, fuzzing))]
pub mod reference;
mod refuse;
mod relay;
mod table;
mod throttle;
mod wire;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Error, Result, limits, logging};
use crate::proc::Cancel;

use crate::http::Request;
use crate::http::client::{Disconnects, Tickets};
use accept::{AcceptLoop, ConnectionLimits, ConnectionThreads};
use backend::Backend;
use host_check::HostRules;
use table::ConnectionTable;
use throttle::AuthThrottle;

pub use accept::raise_file_limit;
pub use backend::{PROBE_HEADER, StartBackend};
pub use listen::{Listen, ListenAddress, Listeners};
pub use record::{ConnectionState, ConnectionView, Peer};

/// Returns the body limit for a method and path, or the largest limit if no route matches.
pub type BodyCap = Arc<dyn Fn(&str, &str) -> usize + Send + Sync>;

/// Answers one request on the thread of its connection.
pub type DirectHandler = Box<dyn FnOnce(Request)>;

/// Returns the handler for a path and query, or `None` if the request goes to the backend. The gate does not call it
/// for streamed bodies or for upgrades.
pub type DirectLookup = Arc<dyn Fn(&str, &str) -> Option<DirectHandler> + Send + Sync>;

/// Counts a connection against the token in its request head, while many connections are open. If it returns an
/// error, the request does not reach the backend.
pub type ConnectionClaim = Arc<dyn Fn(u64, &str) -> Result<()> + Send + Sync>;

/// The configuration of a gate.
pub struct GateSettings {
    /// Maximum number of connections at once. A low open-file limit reduces it.
    pub max_connections: usize,
    /// The limit of open files, as returned by [`raise_file_limit`].
    pub max_files: u64,
    /// Host names that clients may use on loopback, in addition to the names of loopback itself.
    pub allowed_hosts: Vec<String>,
    /// Origins that may send state-changing requests and open WebSockets; `*` allows all.
    pub cors_origins: Vec<String>,
    /// The body limit per route.
    pub body_cap: BodyCap,
    /// Selects the requests that are answered without the backend.
    pub direct: DirectLookup,
    pub claim: ConnectionClaim,
    /// The folder of the socket to tiny_http. The gate creates it with mode 0700 and removes it when it stops.
    pub private_folder: PathBuf,
    /// The subscribers to disconnects, shared with the backend.
    pub disconnects: Disconnects,
    /// The handlers that wait for a client socket, shared with the backend.
    pub tickets: Tickets,
}

/// State shared by all connections.
struct GateShared {
    table: Arc<ConnectionTable>,
    backend: Backend,
    rules: HostRules,
    body_cap: BodyCap,
    direct: DirectLookup,
    claim: ConnectionClaim,
    disconnects: Disconnects,
    tickets: Tickets,
    throttle: AuthThrottle,
    start_id: String,
}

/// A running gate. Dropping a gate stops it, as [`Gate::stop`] does.
pub struct Gate {
    shared: Arc<GateShared>,
    stop: Cancel,
    accepting: Mutex<Option<JoinOnDrop>>,
    workers: Arc<Mutex<Option<ConnectionThreads>>>,
}

impl Gate {
    /// Starts the backend with `open` and begins to accept clients.
    ///
    /// # Errors
    /// `Config` for an invalid allowed host, an error from `open`, or too few file descriptors or threads.
    pub fn start(doors: Listeners, settings: GateSettings, open: StartBackend) -> Result<Gate> {
        let rules = HostRules::new(&settings.allowed_hosts, &settings.cors_origins)?;
        let room = ConnectionLimits::new(settings.max_connections, settings.max_files);
        if room.cap < settings.max_connections {
            log::warn!(
                "The limit of {} open files allows only {} of {} connections; raise it with ulimit -n or LimitNOFILE=",
                settings.max_files,
                room.cap,
                settings.max_connections
            );
        }
        let mut random = [0; 4];
        getrandom::fill(&mut random)
            .map_err(|error| Error::internal("Cannot read random bytes").with_source(error))?;
        let shared = Arc::new(GateShared {
            table: Arc::new(ConnectionTable::new(
                room.cap,
                room.reserved,
                room.leaving,
                settings.disconnects.clone(),
            )),
            backend: Backend::new(&settings.private_folder, open)?,
            rules,
            body_cap: settings.body_cap,
            direct: settings.direct,
            claim: settings.claim,
            disconnects: settings.disconnects,
            tickets: settings.tickets,
            throttle: AuthThrottle::default(),
            start_id: format!("{:08x}", u32::from_ne_bytes(random)),
        });
        let stop = Cancel::new()?;
        let accepting = AcceptLoop::new(shared.clone(), doors.listeners, room, stop.clone());
        let workers = Arc::new(Mutex::new(None));
        let left = workers.clone();
        let thread = spawn("gate-accept".into(), limits::GATE_STACK, move || {
            let workers = accepting.run();
            *lock(&left) = Some(workers);
        })?;
        Ok(Gate { shared, stop, accepting: Mutex::new(Some(thread)), workers })
    }

    /// Returns the open connections.
    pub fn connections(&self) -> Vec<ConnectionView> {
        self.shared.table.list()
    }

    /// Closes the listeners and all idle connections; the other connections close after their current answer.
    /// Returns `true` when all have closed. Returns `false` at the deadline; the caller then calls [`Gate::stop`].
    pub fn drain(&self, deadline: Instant) -> bool {
        self.close_listeners();
        self.shared.table.close_idle();
        self.shared.table.wait_empty(deadline)
    }

    /// Closes all connections at once. The caller must call this before it stops the backend.
    pub fn stop(&self) {
        self.close_listeners();
        self.shared.table.close_idle();
        let cut = self.shared.table.cut();
        if cut > 0 {
            log::info!("Closed {} with unfinished requests", logging::counted(cut, "connection"));
        }
        let workers = lock(&self.workers).take();
        if let Some(workers) = workers {
            workers.join();
        }
    }

    /// Ends and joins the accept loop. No client is accepted after this function has returned.
    fn close_listeners(&self) {
        self.stop.cancel();
        let accepting = lock(&self.accepting).take();
        drop(accepting);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.stop();
    }
}
