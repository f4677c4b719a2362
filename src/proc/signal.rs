//! Signals to a run from any thread, while another one waits for its end: by pidfd and cgroup, so that they reach the
//! process that was meant or nobody, whoever has its number by then. No threads, no locks.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::{Signal, pidfd_send_signal};

use super::Group;

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalTarget {
    /// The process that was started, and everything it started.
    Group,
    /// That process only.
    Leader,
}

/// A process and its group. Cheap to clone; holds both, so it should go when the process has gone.
#[derive(Clone, Debug)]
pub struct SignalHandle {
    /// The process's number, by which its session is found where there are no cgroups.
    pub pid: i32,
    /// The process.
    pub pidfd: Arc<OwnedFd>,
    /// What it started.
    pub group: Arc<Group>,
}

impl SignalHandle {
    /// Sends `signal`; who has ended gets nothing. KILL for all ends also what is being forked meanwhile, where there
    /// are cgroups.
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
