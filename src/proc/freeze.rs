//! Freezes groups, and marks groups in which a command left background processes. No threads, no locks.

use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, XattrFlags, fgetxattr, fsetxattr, openat};

use super::Group;
use super::cgroup::{LEFTOVER_XATTR, read_in, write_in};
use crate::base::{Code, Error, Result};

/// How long the processes of a container may take to freeze for a snapshot.
const FREEZE: Duration = Duration::from_secs(2);

impl Group {
    /// Freezes every process of the group and waits until all are frozen, or thaws them if `frozen` is `false`. The
    /// processes do not notice this and cannot prevent it.
    ///
    /// # Errors
    /// `Unavailable` if groups are not cgroups, or if a process cannot be frozen, for example while it waits for a
    /// failed disk. In this case, all processes of the group are thawed.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let Some(folder) = self.folder() else {
            if !frozen {
                return Ok(());
            }
            let message =
                "The processes in the container cannot be frozen on this host; stop the container first";
            return Err(Error::new(Code::Unavailable, message));
        };
        write_in(folder, "cgroup.freeze", if frozen { "1" } else { "0" })?;
        let deadline = Instant::now() + FREEZE;
        while frozen && !read_in(folder, "cgroup.events")?.lines().any(|line| line == "frozen 1") {
            if Instant::now() >= deadline {
                write_in(folder, "cgroup.freeze", "0")?;
                let message = "The processes in the container could not be frozen; stop the container first";
                return Err(Error::new(Code::Unavailable, message));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Marks that the group's command has ended by itself, so that the remaining processes are no longer part of the
    /// command. Call this before the end is reported: if the server is killed a moment later, the mark is the only
    /// record of the end.
    pub fn mark_leftover(&self) {
        if let Some(folder) = self.folder() {
            // Before Linux 5.7, cgroups have no extended attributes, and the next server kills the remaining processes.
            let _ = fsetxattr(folder, LEFTOVER_XATTR, b"1", XattrFlags::empty());
        }
    }

    /// Returns whether [`Group::mark_leftover`] has marked the group: its command has ended.
    pub fn is_leftover(&self) -> bool {
        self.folder().is_some_and(|folder| fgetxattr(folder, LEFTOVER_XATTR, &mut [0u8; 8]).is_ok())
    }

    /// Returns whether a group in the folder `below` has processes although its command has ended.
    pub fn has_leftovers(&self, below: &str) -> bool {
        let Some(folder) = self.folder() else { return true };
        self.children(below).iter().any(|name| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let Ok(group) = openat(folder, format!("{below}/{name}"), flags, Mode::empty()) else {
                return false;
            };
            fgetxattr(&group, LEFTOVER_XATTR, &mut [0u8; 8]).is_ok()
                && read_in(&group, "cgroup.events")
                    .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
        })
    }
}
