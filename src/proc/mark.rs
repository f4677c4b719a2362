//! Groups of processes without cgroups: a variable in their environment and the session of the first one, found by reading
//! /proc. Good against forgetfulness, not against malice. No threads, no locks.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The variable by which processes are found.
pub(super) const MARK: &str = "BERTH_RUN_ID";

/// Processes that carry the mark or belong to the session of `leader`: descriptors, so that none means another process later.
pub(super) fn marked(wanted: &str, leader: Option<i32>) -> Vec<OwnedFd> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id() as i32;
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own && is_marked(*pid, wanted, leader))
        .filter_map(|pid| {
            let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            // Again: now it is about the process that the descriptor means.
            is_marked(pid, wanted, leader).then_some(fd)
        })
        .collect()
}

fn is_marked(pid: i32, wanted: &str, leader: Option<i32>) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Fields after the command name, which may contain anything: state, ppid, pgrp, session.
    let mut after = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let state = after.next();
    let session = after.nth(2).and_then(|field| field.parse::<i32>().ok());
    if state.is_none_or(|state| state == "Z" || state == "X") {
        return false;
    }
    leader.is_some() && session == leader
        || fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|env| env.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, pidfd_send_signal};

    #[test]
    fn a_mark_finds_a_child_that_left_its_session() {
        let wanted = format!("{MARK}=test-{}", std::process::id());
        #[expect(
            clippy::disallowed_methods,
            reason = "the test needs a child that the code under test did not start"
        )]
        let mut child = std::process::Command::new("setsid")
            .args(["sleep", "1000"])
            .env(MARK, &wanted[MARK.len() + 1..])
            .spawn()
            .unwrap();
        let found = loop {
            let found = marked(&wanted, None);
            if !found.is_empty() {
                break found;
            }
        };
        for fd in found {
            let _ = pidfd_send_signal(&fd, Signal::KILL);
        }
        assert!(!child.wait().unwrap().success());
    }
}
