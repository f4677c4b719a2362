//! The state of the OpenCode process that this server runs itself: its address if it is running, or the reason why it
//! is not. The module `host` starts and monitors the process and updates this state; all other modules only read it.
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

/// The phase of OpenCode's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// OpenCode was started, or waits for its next start, and does not respond yet.
    Starting,
    /// OpenCode responds to requests.
    Running,
    /// OpenCode failed and is not restarted automatically.
    Failed,
    Stopped,
}

impl Phase {
    /// Returns the phase's name in API replies and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Failed => "failed",
            Phase::Stopped => "stopped",
        }
    }
}

/// A snapshot of OpenCode's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedState {
    pub phase: Phase,
    /// OpenCode's current address, or its last address if it is not running.
    pub url: Option<String>,
    pub version: Option<String>,
    pub pid: Option<i32>,
    /// How often OpenCode was started.
    pub starts: u64,
    /// Why OpenCode last exited, or why its last start failed. Secrets are redacted.
    pub reason: Option<String>,
}

/// The host name in OpenCode's address if berth reaches OpenCode through an [`UpstreamRoute`] instead of a network.
/// RFC 2606 reserves `.invalid`, so no real host has this name.
pub const ROUTED: &str = "opencode.sandbox.invalid";

/// Connects to an OpenCode that listens in a container without a network address.
pub trait UpstreamRoute: Send + Sync {
    /// Requests a connection to this port. The returned stream is non-blocking. The first byte that it yields reports
    /// the result; if the stream ends without a byte, the connection failed.
    ///
    /// # Errors
    /// Fails if the container does not accept connections.
    fn connect(&self, port: u16) -> io::Result<UnixStream>;

    /// Returns whether this first byte reports a successful connection.
    fn is_connected(&self, answer: u8) -> bool;
}

/// The state of the OpenCode that this server runs itself, and the settings that are the same for each start of it.
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
    /// Creates the state before the first start. `password_is_shared` is true if the caller that started the server
    /// supplied the password and may read it back. `directory` is OpenCode's working directory in its container, or
    /// `None` if OpenCode uses the host's files.
    ///
    /// # Errors
    /// Fails if this process has no file descriptors left.
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

    /// Returns the user name and password for basic authentication.
    pub fn credential(&self) -> (&str, &str) {
        (&self.username, &self.password)
    }

    /// Returns whether the orchestrator that supplied the password may read it back.
    pub fn password_is_shared(&self) -> bool {
        self.password_is_shared
    }

    /// Returns the memory limit for OpenCode and its child processes, or `None` if this machine cannot enforce one.
    pub fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }

    /// Returns OpenCode's working directory in its container, or `None` if OpenCode uses the host's files. An OpenCode
    /// in a container serves only this directory.
    pub fn directory(&self) -> Option<&str> {
        self.directory.as_deref()
    }

    /// Returns the route to OpenCode, or `None` if OpenCode is reached over a network.
    pub(super) fn route(&self) -> Option<Arc<dyn UpstreamRoute>> {
        lock(&self.route).clone()
    }

    pub fn set_route(&self, route: Arc<dyn UpstreamRoute>) {
        *lock(&self.route) = Some(route);
    }

    /// Returns OpenCode's URL, or `None` if OpenCode is not reached over a network.
    pub fn direct_url(&self) -> Option<String> {
        self.state().url.filter(|_| self.route().is_none())
    }

    /// Returns a snapshot of the state.
    pub fn state(&self) -> ManagedState {
        lock(&self.state).clone()
    }

    /// Changes the state and wakes all threads that wait for a change.
    pub fn update(&self, change: impl FnOnce(&mut ManagedState)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    /// Refuses a call while OpenCode is not running.
    ///
    /// # Errors
    /// Fails with `OpencodeStarting`, `OpencodeFailed` or `ShuttingDown`.
    pub fn check(&self) -> Result<()> {
        let state = lock(&self.state);
        match state.phase {
            Phase::Running => Ok(()),
            Phase::Starting => Err(starting()),
            Phase::Stopped => Err(Error::new(Code::ShuttingDown, "The server is shutting down")),
            Phase::Failed => Err(Error::new(
                Code::OpencodeFailed,
                "OpenCode failed and is not restarted; POST /workspace/ID/engine/reload starts it again, GET /status and \
                 host/opencode.log in the data folder show why it exited",
            )),
        }
    }

    /// Requests another start of OpenCode if it has failed.
    pub fn request_restart(&self) {
        self.update(|state| {
            if state.phase == Phase::Failed {
                state.phase = Phase::Starting;
            }
        });
        self.again.wake();
    }

    /// Returns the waker that is readable from a call of [`Managed::request_restart`] until it is cleared.
    pub fn restart_waker(&self) -> &Waker {
        &self.again
    }

    /// Waits until the state differs from `seen`, and returns the new state.
    pub fn changed_since(&self, seen: &ManagedState) -> ManagedState {
        let state = lock(&self.state);
        let same = |state: &mut ManagedState| state == seen;
        self.changed.wait_while(state, same).unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until OpenCode responds or has failed.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Managed::check`].
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

/// Returns the error for calls that arrive before OpenCode responds.
pub(super) fn starting() -> Error {
    Error::new(Code::OpencodeStarting, "OpenCode is starting; try again in a moment")
}
