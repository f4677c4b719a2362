//! The OpenCode that this server runs itself, as all its callers see it: where it answers at this moment, or why it does
//! not. `host` starts it, watches it and keeps this up to date.
//!
//! Threads: any. Lock: the state, a leaf.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::base::thread::lock;
use crate::base::{Code, Error, Result};
use crate::proc::Waker;

/// Whether it can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has been started, or will be at the end of a pause, and does not answer yet.
    Starting,
    /// It answers.
    Running,
    /// It is not started again by itself.
    Failed,
    /// The server is stopping.
    Stopped,
}

impl Phase {
    /// The word of replies and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Failed => "failed",
            Phase::Stopped => "stopped",
        }
    }
}

/// What is known of it at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedState {
    /// Whether it can be called.
    pub phase: Phase,
    /// Where it answers, or answered last.
    pub url: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its process.
    pub pid: Option<i32>,
    /// How often it was started.
    pub starts: u64,
    /// Why it ended last, or why its start failed. Secrets are hidden.
    pub reason: Option<String>,
}

/// The host name in the address of an OpenCode that is reached by a [`UpstreamRoute`] and not over a network. RFC 2606 keeps it from
/// being one anywhere else.
pub const ROUTED: &str = "opencode.sandbox.invalid";

/// The way to an OpenCode whose port no address leads to.
pub trait UpstreamRoute: Send + Sync {
    /// Asks for a connection to this port. The returned stream does not block; its first byte shows whether the connection
    /// was made, and its end that it was not.
    ///
    /// # Errors
    /// When the other side does not take connections.
    fn connect(&self, port: u16) -> io::Result<UnixStream>;

    /// Whether this first byte means a connection.
    fn is_connected(&self, answer: u8) -> bool;
}

/// Its state, and what is the same for each of its starts.
pub struct Managed {
    username: String,
    password: String,
    password_is_shared: bool,
    memory_bytes: Option<u64>,
    directory: Option<String>,
    route: Mutex<Option<Arc<dyn UpstreamRoute>>>,
    state: Mutex<ManagedState>,
    changed: Condvar,
    again: Waker,
}

impl fmt::Debug for Managed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Managed({:?})", lock(&self.state).phase)
    }
}

impl Managed {
    /// One that has not been started. `password_is_shared`: the caller that started the server passed the password in, and
    /// may see it. `directory`: the folder that it works on as it calls it, where it does not see the host's files.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn new(
        (username, password): (String, String),
        password_is_shared: bool,
        memory_bytes: Option<u64>,
        directory: Option<String>,
    ) -> Result<Managed> {
        let state = ManagedState {
            phase: Phase::Starting,
            url: None,
            version: None,
            pid: None,
            starts: 0,
            reason: None,
        };
        Ok(Managed {
            username,
            password,
            password_is_shared,
            memory_bytes,
            directory,
            route: Mutex::new(None),
            state: Mutex::new(state),
            changed: Condvar::new(),
            again: Waker::new()?,
        })
    }

    /// User and password for basic authentication.
    pub fn credential(&self) -> (&str, &str) {
        (&self.username, &self.password)
    }

    /// Whether the orchestrator that passed the password in may see it again.
    pub fn password_is_shared(&self) -> bool {
        self.password_is_shared
    }

    /// The most memory that it may use with all it starts, where this machine can enforce that.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }

    /// The folder that it works on, as it calls it, where it does not see the host's files; it has that one only.
    pub fn directory(&self) -> Option<&str> {
        self.directory.as_deref()
    }

    /// The way to it, where that is no network.
    pub(super) fn route(&self) -> Option<Arc<dyn UpstreamRoute>> {
        lock(&self.route).clone()
    }

    /// Sets the way to it.
    pub fn set_route(&self, route: Arc<dyn UpstreamRoute>) {
        *lock(&self.route) = Some(route);
    }

    /// Its address, where one leads to it.
    pub fn direct_url(&self) -> Option<String> {
        self.state().url.filter(|_| self.route().is_none())
    }

    /// As of now.
    pub fn state(&self) -> ManagedState {
        lock(&self.state).clone()
    }

    /// Changes the state and wakes all who wait for a change.
    pub fn update(&self, change: impl FnOnce(&mut ManagedState)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    /// Refuses a call while there is nothing to call.
    ///
    /// # Errors
    /// `OpencodeStarting`, `OpencodeFailed`.
    pub fn check(&self) -> Result<()> {
        let state = lock(&self.state);
        match state.phase {
            Phase::Running => Ok(()),
            Phase::Starting => Err(starting()),
            Phase::Stopped => Err(Error::new(Code::ShuttingDown, "The server is going down")),
            Phase::Failed => Err(Error::new(
                Code::OpencodeFailed,
                "OpenCode failed and is not restarted; POST /workspace/ID/engine/reload starts it again, GET /status and \
                 host/opencode.log in the data folder show why it ended",
            )),
        }
    }

    /// Has a failed OpenCode started again.
    pub fn request_restart(&self) {
        self.update(|state| {
            if state.phase == Phase::Failed {
                state.phase = Phase::Starting;
            }
        });
        self.again.wake();
    }

    /// Readable once [`Managed::request_restart`] was called, until cleared.
    pub fn restart_waker(&self) -> &Waker {
        &self.again
    }

    /// Waits until the state is not `seen` any more.
    pub fn changed_since(&self, seen: &ManagedState) -> ManagedState {
        let state = lock(&self.state);
        let same = |state: &mut ManagedState| state == seen;
        self.changed.wait_while(state, same).unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it answers or has failed.
    ///
    /// # Errors
    /// As [`Managed::check`].
    pub fn wait(&self, deadline: Instant) -> Result<()> {
        let mut state = lock(&self.state);
        while state.phase == Phase::Starting {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let woken = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
            state = woken.0;
        }
        drop(state);
        self.check()
    }
}

/// What a call is refused with until there is something to call.
pub(super) fn starting() -> Error {
    Error::new(Code::OpencodeStarting, "OpenCode is starting; try again in a moment")
}
