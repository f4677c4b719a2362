//! The door. It accepts clients, reads and checks what they say, and relays requests to tiny_http on a private Unix
//! socket; tiny_http never meets the wire, and no byte of a refused request reaches it. It owns the clients' sockets,
//! so it can tell the inside when a client has gone, and hand a socket over. Knows nothing of routes.
//!
//! In reading order: `listen`, `holder` and `accept` (who comes in), `table` and `record` (who is in), `relay` (one connection), `head`,
//! `who`, `body` (what is let through), `exchange` and `answer` (one request), `inside` (the way to tiny_http),
//! `refuse`, `throttle`, `wire`. What a thread of the gate can answer itself, since it waits for that client only, does
//! not go inside ([`DirectLookup`]); what that is, others know. What the inside may do with a client is in `http::client`.
//!
//! Threads: `gate-accept`, owned by [`Gate`]; `gate-N`, one for each connection. Locks: none is held while another is
//! taken, but for the inside's own two.

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

/// The largest body that goes in, for a method and a path; without a known route, the largest of all.
pub type BodyCap = Arc<dyn Fn(&str, &str) -> usize + Send + Sync>;

/// Answers one request on the client's own thread, before it returns.
pub type DirectHandler = Box<dyn FnOnce(Request)>;

/// Who answers the request of this path and query so; `None`: it goes inside. Never asked for what comes in pieces, or
/// wants another protocol.
pub type DirectLookup = Arc<dyn Fn(&str, &str) -> Option<DirectHandler> + Send + Sync>;

/// Counts a connection for the token of its request, whose head goes in so, before anything else is done for it. Asked
/// while many are connected; what it refuses does not go inside.
pub type ConnectionClaim = Arc<dyn Fn(u64, &str) -> Result<()> + Send + Sync>;

/// What was decided before the start.
pub struct GateSettings {
    /// Connections at once; fewer when the limit of open files says so.
    pub max_connections: usize,
    /// The limit of open files, from [`raise_file_limit`].
    pub max_files: u64,
    /// Names by which clients may call on loopback, besides those of loopback itself.
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may write and open WebSockets; `*` for all.
    pub cors_origins: Vec<String>,
    /// How large bodies may be.
    pub body_cap: BodyCap,
    /// Which requests do not go inside.
    pub direct: DirectLookup,
    /// Whose connections there are.
    pub claim: ConnectionClaim,
    /// Made with mode 0700, and removed at the end; the socket to tiny_http lies in it.
    pub private_folder: PathBuf,
    /// Shared with the inside: who wants to know about clients that have gone.
    pub gone: Disconnects,
    /// Shared with the inside: sockets to hand over.
    pub tickets: Tickets,
}

/// What the connections share.
struct GateShared {
    table: Arc<ConnectionTable>,
    backend: Backend,
    rules: HostRules,
    body_cap: BodyCap,
    direct: DirectLookup,
    claim: ConnectionClaim,
    gone: Disconnects,
    tickets: Tickets,
    throttle: AuthThrottle,
    start_id: String,
}

/// The running door. Dropping it is the same as [`Gate::stop`].
pub struct Gate {
    shared: Arc<GateShared>,
    stop: Cancel,
    accepting: Mutex<Option<JoinOnDrop>>,
    workers: Arc<Mutex<Option<ConnectionThreads>>>,
}

impl Gate {
    /// Starts the inside with `open` and lets clients in.
    ///
    /// # Errors
    /// `Config` for an allowed host that is none; whatever `open` says; a machine without room.
    pub fn start(doors: Listeners, settings: GateSettings, open: StartBackend) -> Result<Gate> {
        let rules = HostRules::new(&settings.allowed_hosts, &settings.cors_origins)?;
        let room = ConnectionLimits::new(settings.max_connections, settings.max_files);
        if room.cap < settings.max_connections {
            log::warn!(
                "The limit of {} open files allows {} connections, not {}",
                settings.max_files,
                room.cap,
                settings.max_connections
            );
        }
        let mut random = [0; 4];
        getrandom::fill(&mut random)
            .map_err(|error| Error::internal("The kernel gives no random bytes").with_source(error))?;
        let shared = Arc::new(GateShared {
            table: Arc::new(ConnectionTable::new(
                room.cap,
                room.reserved,
                room.leaving,
                settings.gone.clone(),
            )),
            backend: Backend::new(&settings.private_folder, open)?,
            rules,
            body_cap: settings.body_cap,
            direct: settings.direct,
            claim: settings.claim,
            gone: settings.gone,
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

    /// Everybody who is connected now.
    pub fn connections(&self) -> Vec<ConnectionView> {
        self.shared.table.list()
    }

    /// Closes the listeners and the connections that wait for a request; the others end with the answer they are
    /// getting. Returns `true` once all have ended, `false` at the deadline: then [`Gate::stop`] cuts the rest.
    pub fn drain(&self, deadline: Instant) -> bool {
        self.close_listeners();
        self.shared.table.close_idle();
        self.shared.table.wait_empty(deadline)
    }

    /// Ends everything now. The inside must still be there; it can end afterwards.
    pub fn stop(&self) {
        self.close_listeners();
        self.shared.table.close_idle();
        let cut = self.shared.table.cut();
        if cut > 0 {
            log::info!("Cut {}", logging::counted(cut, "connection"));
        }
        let workers = lock(&self.workers).take();
        if let Some(workers) = workers {
            workers.join();
        }
    }

    /// Joins the accept loop: nobody is let in any more once this returns.
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
