//! The record of a running container, a file in its workspace's directory through which a later server finds the
//! container. Its content is not trusted: each PID is compared with the kernel's current data. No locks.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::binds::BindMount;
use super::network::VethLink;
use super::protocol;
use crate::base::Result;
use crate::base::ids::Network;
use crate::proc::{Group, boot_id};
use crate::roots;
use crate::store::file;

/// Content of `<workspace>/machine.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    /// Protocol version of the agent.
    pub(super) protocol: u32,
    /// Version of the agent's binary.
    pub(super) agent_version: String,
    /// ID of the boot in which the container started; after a reboot, its PIDs are meaningless.
    boot_id: String,
    /// The process of nspawn.
    leader: ProcessIdentity,
    /// The process of the agent, PID 1 inside.
    init: ProcessIdentity,
    /// Path of the container's cgroup, as in /proc/PID/cgroup.
    pub(super) cgroup: PathBuf,
    pub(super) started_at: DateTime<Utc>,
    #[serde(default)]
    pub(super) network: Network,
    #[serde(default)]
    pub(super) link: Option<VethLink>,
    #[serde(default)]
    pub(super) mounts: Vec<BindMount>,
}

/// Identity of a process: its PID, and its start time in clock ticks since boot, because PIDs are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    pub pid: i32,
    start: u64,
}

const FILE: &str = "machine.json";

impl ProcessIdentity {
    /// Returns the identity of the process that currently has this PID; `None` if there is none.
    pub fn from_pid(pid: i32) -> Option<ProcessIdentity> {
        Some(ProcessIdentity { pid, start: start_time(pid)? })
    }

    /// Opens the stat file of the process, to check repeatedly whether the process is being killed.
    pub(super) fn open_stat(self) -> Option<ProcStat> {
        let stat = ProcStat(File::open(format!("/proc/{}/stat", self.pid)).ok()?);
        (stat.field(22)? == self.start).then_some(stat)
    }

    /// Returns a pidfd of exactly this process if it is alive and in `group`.
    fn find(self, group: &Group) -> Option<OwnedFd> {
        // Open the descriptor before the checks: from then on it refers to one process.
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        (start_time(self.pid) == Some(self.start) && group.contains(self.pid)).then_some(fd)
    }
}

/// An open /proc/PID/stat. The file refers to one process, even if the process's PID is reused.
#[derive(Debug)]
pub(super) struct ProcStat(File);

impl ProcStat {
    /// Returns whether the process has been killed, even if the kill has no visible effect yet: a PID namespace
    /// whose init was killed accepts commands until the kernel has killed all its processes.
    pub(super) fn is_being_killed(&self) -> bool {
        /// Flags of the kernel's sched.h: PF_EXITING, and PF_SIGNALED, which is set once the signal is no longer
        /// pending.
        const EXITING: u64 = 0x4 | 0x400;
        const KILL: u64 = 1 << (libc::SIGKILL - 1);
        let look = || {
            let mut bytes = [0; 1024];
            let stat = self.read(&mut bytes);
            let of = |field| stat.and_then(|stat| field_of(stat, field));
            of(9).is_none_or(|flags| flags & EXITING != 0) || of(31).is_none_or(|pending| pending & KILL != 0)
        };
        // The kernel reads the flags before the pending signals. A process that handles its signal between the two
        // shows neither, so look twice.
        look() || look()
    }

    fn field(&self, field: usize) -> Option<u64> {
        field_of(self.read(&mut [0; 1024])?, field)
    }

    fn read<'a>(&self, bytes: &'a mut [u8]) -> Option<&'a str> {
        let length = self.0.read_at(bytes, 0).ok()?;
        std::str::from_utf8(&bytes[..length]).ok()
    }
}

/// Parses the number in one field of /proc/PID/stat; fields are counted as in proc(5). Field two, the command
/// name, may contain any character.
fn field_of(stat: &str, field: usize) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

impl ContainerRecord {
    pub(super) fn new(leader: ProcessIdentity, init: ProcessIdentity, cgroup: PathBuf) -> ContainerRecord {
        ContainerRecord {
            protocol: protocol::VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id(),
            leader,
            init,
            cgroup,
            started_at: Utc::now(),
            network: Network::Host,
            link: None,
            mounts: Vec::new(),
        }
    }

    /// Reads the record in `folder`; returns `None` if it is missing, invalid or from an earlier boot.
    pub(super) fn read(folder: &Path) -> Option<ContainerRecord> {
        let bytes = file::read_optional(&folder.join(FILE), 64 << 10).ok()??;
        serde_json::from_slice(&bytes).ok().filter(|state: &ContainerRecord| state.boot_id == boot_id())
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| {
            crate::base::Error::internal("Could not serialize machine.json").with_source(error)
        })?;
        file::replace(&folder.join(FILE), &bytes, 0o600)
    }

    pub(super) fn remove(folder: &Path) {
        let _ = std::fs::remove_file(folder.join(FILE));
    }

    /// Opens the stat files of nspawn and the agent.
    pub(super) fn open_stats(&self) -> Option<[ProcStat; 2]> {
        Some([self.leader.open_stat()?, self.init.open_stat()?])
    }

    /// Returns pidfds of nspawn and the agent if both are still the recorded processes and in `group`.
    pub(super) fn find(&self, group: &Group) -> Option<(OwnedFd, OwnedFd)> {
        Some((self.leader.find(group)?, self.init.find(group)?))
    }

    pub(super) fn leader_pid(&self) -> i32 {
        self.leader.pid
    }

    pub(super) fn init_pid(&self) -> i32 {
        self.init.pid
    }
}

/// Returns the directories of the workspaces in a data directory whose container is running, even if their server
/// was killed.
///
/// # Errors
/// When the data directory cannot be read.
pub fn running_in(data_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = roots::workspace_folders(data_dir)?;
    found.retain(|folder| ContainerRecord::read(folder).is_some_and(|state| state.open_stats().is_some()));
    Ok(found)
}

/// Returns the start time of a process in clock ticks since boot; `None` for a zombie (Z) or dead (X) process, which
/// keeps its PID until its parent waits for it (proc_pid_stat(5)).
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.rsplit_once(')')?.1.trim_start();
    if state.starts_with(['Z', 'X']) { None } else { field_of(&stat, 22) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_identified_by_pid_and_start_time() {
        let own = ProcessIdentity::from_pid(std::process::id() as i32).unwrap();
        assert_eq!(ProcessIdentity::from_pid(own.pid), Some(own));
        assert!(own.start > 0);
        assert_eq!(ProcessIdentity::from_pid(i32::MAX), None);
        assert!(!own.open_stat().unwrap().is_being_killed());
        assert!(ProcessIdentity { start: own.start + 1, ..own }.open_stat().is_none());
    }

    #[test]
    fn a_killed_process_is_detected_before_it_exits() {
        #[expect(
            clippy::disallowed_methods,
            reason = "the test needs a child that the code under test did not start"
        )]
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let stat = ProcessIdentity::from_pid(child.id() as i32).unwrap().open_stat().unwrap();
        assert!(!stat.is_being_killed());
        let who = ProcessIdentity::from_pid(child.id() as i32);
        assert!(who.is_some());
        child.kill().unwrap();
        assert!(stat.is_being_killed(), "at once");
        // The process is a zombie until this process waits for it.
        rustix::process::waitid(
            rustix::process::WaitId::Pid(Pid::from_child(&child)),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(ProcessIdentity::from_pid(child.id() as i32), None);
        child.wait().unwrap();
        assert!(stat.is_being_killed(), "forever");
    }
}
