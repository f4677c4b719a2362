//! Finds and kills foreign processes in the cgroup of nspawn and the agent. Every command has a cgroup of its own,
//! and no process can trace the agent. A process that executes another program in the agent's cgroup has left its
//! command's cgroup in some way and would escape limits and deadlines. The check runs at the end of each command.
//! No locks.

use std::os::unix::fs::MetadataExt as _;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::proc::Group;

/// Upper limit of passes over the cgroup; a process may fork during a pass.
const PASSES: usize = 20;

/// A process in the cgroup of nspawn and the agent.
struct GroupMember {
    pidfd: std::os::fd::OwnedFd,
    /// PIDs in all nested PID namespaces, the server's first (`NSpid` in proc_pid_status(5)).
    numbers: Vec<u32>,
    /// Device and inode of the process's executable.
    program: Option<(u64, u64)>,
}

impl GroupMember {
    fn find(pid: i32, group: &Group) -> Option<GroupMember> {
        // Open the descriptor before any lookup by PID: from then on, the checks below detect a reused PID.
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let numbers = pid_numbers(&pid.to_string())?;
        let program = std::fs::metadata(format!("/proc/{pid}/exe")).ok();
        let program = program.map(|file| (file.dev(), file.ino()));
        group.contains(pid).then_some(GroupMember { pidfd, numbers, program })
    }
}

/// Kills every foreign process in `agents`, the cgroup of nspawn and the agent.
pub(super) fn kill_intruders(agents: &Group) {
    let Some(outside) = pid_numbers("self").map(|numbers| numbers.len()) else { return };
    for _ in 0..PASSES {
        let members: Vec<_> =
            agents.members().into_iter().filter_map(|pid| GroupMember::find(pid, agents)).collect();
        let is_first =
            |member: &&GroupMember| member.numbers.len() == outside + 1 && member.numbers.last() == Some(&1);
        let Some(agent) = members.iter().find(is_first).and_then(|member| member.program) else { return };
        // nspawn is in this group but outside the container's PID namespace, so it is no intruder.
        let is_intruder =
            |member: &&GroupMember| member.numbers.len() > outside && member.program != Some(agent);
        let mut found = false;
        for intruder in members.iter().filter(is_intruder) {
            found |= pidfd_send_signal(&intruder.pidfd, Signal::KILL).is_ok();
        }
        if !found {
            return;
        }
        log::warn!("Killed foreign processes in the cgroup of a container's agent");
    }
}

fn pid_numbers(process: &str) -> Option<Vec<u32>> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}
