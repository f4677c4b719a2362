//! Signals to a run from any thread, while another one waits for its end: by pidfd and cgroup, so that they reach the
//! process that was meant or nobody, whoever has its number by then. No threads, no locks.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::{Signal, pidfd_send_signal};

use super::Group;

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The process that was started, and everything it started.
    All,
    /// That process only.
    Main,
}

/// A process and its group. Cheap to clone; holds both, so it should go when the process has gone.
#[derive(Clone, Debug)]
pub struct Reach {
    /// The process's number, by which its session is found where there are no cgroups.
    pub pid: i32,
    /// The process.
    pub pidfd: Arc<OwnedFd>,
    /// What it started.
    pub group: Arc<Group>,
}

impl Reach {
    /// Sends `signal`; who has ended gets nothing. KILL for all ends also what is being forked meanwhile, where there
    /// are cgroups.
    pub fn signal(&self, signal: Signal, whom: Whom) {
        match whom {
            Whom::Main => {
                let _ = pidfd_send_signal(&*self.pidfd, signal);
            }
            Whom::All if signal == Signal::KILL => self.group.kill_now(Some(self.pid)),
            Whom::All => self.group.signal(signal, Some(self.pid)),
        }
    }
}
