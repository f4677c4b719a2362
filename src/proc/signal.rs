//! Sends signals to a run from any thread while another thread waits for the run's end. **Invariant:** signals are sent
//! through a pidfd and a cgroup, so a signal never reaches an unrelated process that reuses a number. No threads, no
//! locks.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::{Signal, pidfd_send_signal};

use super::Group;

/// The receivers of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalTarget {
    /// The started process and all processes that it started.
    Group,
    /// Only the started process.
    Leader,
}

/// A process and its group. A handle is cheap to clone. It keeps two descriptors open, so drop it once the process has
/// ended.
#[derive(Clone, Debug)]
pub struct SignalHandle {
    /// The process id, which is also the id of its session: without cgroups, the session identifies the processes.
    pub pid: i32,
    pub pidfd: Arc<OwnedFd>,
    /// The group of the process and of all processes that it started.
    pub group: Arc<Group>,
}

impl SignalHandle {
    /// Sends `signal`, unless the process has ended. With cgroups, SIGKILL to the group also kills processes that are
    /// being forked.
    pub fn signal(&self, signal: Signal, whom: SignalTarget) {
        match whom {
            SignalTarget::Leader => {
                let _ = pidfd_send_signal(&*self.pidfd, signal);
            }
            SignalTarget::Group if signal == Signal::KILL => self.group.kill_now(Some(self.pid)),
            SignalTarget::Group => self.group.signal(signal, Some(self.pid)),
        }
    }
}
