//! Groups of processes on hosts without a writable cgroup tree. The members of a group have a certain environment
//! variable or belong to the session of the group's first process, and are found by reading /proc. A process can escape
//! by changing both. No threads, no locks.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The variable that marks processes. Its value is the server's name, a dot, and the group's id.
const VARIABLE: &str = "BERTH_RUN_ID";

/// A group's marker. No process has an empty marker.
#[derive(Debug, Default)]
pub(super) struct EnvMarker {
    /// The environment entry, `NAME=value`.
    text: String,
    id: String,
}

impl EnvMarker {
    /// Creates the marker of the group that would have the path `path` in a cgroup tree.
    pub(super) fn new(server: &str, path: &str) -> EnvMarker {
        let id = marker_id(path);
        EnvMarker { text: format!("{VARIABLE}={server}.{id}"), id }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Returns the marker as an environment entry.
    pub(super) fn variable(&self) -> &str {
        &self.text
    }

    /// Returns the processes that have the marker or belong to the session of `leader`. They are returned as
    /// descriptors, which cannot refer to other processes later.
    pub(super) fn members(&self, leader: Option<i32>) -> Vec<OwnedFd> {
        let wanted = |entry: &[u8]| !self.is_empty() && entry == self.text.as_bytes();
        find(|pid| is_marked(pid, wanted, leader))
    }
}

fn marker_id(path: &str) -> String {
    path.replace('/', "-")
}

/// Returns the processes of all groups of `server`, except those of the groups in `keep`, which are paths or ids.
pub(super) fn find_by_server(server: &str, keep: &[String]) -> Vec<OwnedFd> {
    let keep: Vec<String> = keep.iter().map(|kept| marker_id(kept)).collect();
    let start = format!("{VARIABLE}={server}.");
    let wanted = |entry: &[u8]| {
        entry.strip_prefix(start.as_bytes()).is_some_and(|id| !keep.iter().any(|kept| kept.as_bytes() == id))
    };
    find(|pid| is_marked(pid, wanted, None))
}

fn find(is_wanted: impl Fn(i32) -> bool) -> Vec<OwnedFd> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id() as i32;
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own && is_wanted(*pid))
        .filter_map(|pid| {
            let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            // Checked again: the process that the descriptor refers to may not be the one that was checked before.
            is_wanted(pid).then_some(fd)
        })
        .collect()
}

fn is_marked(pid: i32, wanted: impl Fn(&[u8]) -> bool, leader: Option<i32>) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The fields after the command name, which may contain any characters: state, ppid, pgrp, session.
    let mut after = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let state = after.next();
    let session = after.nth(2).and_then(|field| field.parse::<i32>().ok());
    if state.is_none_or(|state| state == "Z" || state == "X") {
        return false;
    }
    leader.is_some() && session == leader
        || fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| env.split(|byte| *byte == 0).any(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, pidfd_send_signal};

    #[test]
    fn marker_finds_a_child_that_left_its_session() {
        let server = format!("test-{}", std::process::id());
        let mark = EnvMarker::new(&server, "runs/one");
        let (name, value) = mark.variable().split_once('=').unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "the test needs a child that the code under test did not start"
        )]
        let mut child =
            std::process::Command::new("setsid").args(["sleep", "1000"]).env(name, value).spawn().unwrap();
        let found = loop {
            let found = mark.members(None);
            if !found.is_empty() {
                break found;
            }
        };
        assert_eq!(find_by_server(&server, &[]).len(), 1);
        assert!(
            find_by_server(&server, &["runs/one".into()]).is_empty()
                && find_by_server("test", &[]).is_empty()
        );
        assert!(EnvMarker::new(&server, "two").members(None).is_empty());
        assert!(EnvMarker::default().members(None).is_empty());
        for fd in found {
            let _ = pidfd_send_signal(&fd, Signal::KILL);
        }
        assert!(!child.wait().unwrap().success());
    }
}
