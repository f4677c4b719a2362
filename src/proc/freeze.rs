//! Freezes groups, and marks groups in which a command left background processes. No threads, no locks.

use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, XattrFlags, fgetxattr, fsetxattr, openat};

use super::Group;
use super::cgroup::{LEFTOVER_XATTR, read_in, write_in};
use crate::base::{Code, Error, Result};

/// How long the processes of a container may take to freeze for a snapshot.
const FREEZE: Duration = Duration::from_secs(2);

impl Group {
    /// Freezes every process of the group and waits until all are frozen; or thaws them. They do not notice, and cannot
    /// prevent it.
    ///
    /// # Errors
    /// `Unavailable` if groups are not cgroups, or a process cannot be frozen (for example while it waits for a failed disk);
    /// all are thawed then.
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

    /// Marks that the group's command has ended by itself: remaining processes are no longer part of it. Call this before the
    /// end is reported: if the server is killed a moment later, the mark is the only record.
    pub fn mark_leftover(&self) {
        if let Some(folder) = self.folder() {
            // Before Linux 5.7 there are no attributes, and the next server kills the processes.
            let _ = fsetxattr(folder, LEFTOVER_XATTR, b"1", XattrFlags::empty());
        }
    }

    /// Whether the command had ended, as [`Group::mark_leftover`] recorded.
    pub fn is_leftover(&self) -> bool {
        self.folder().is_some_and(|folder| fgetxattr(folder, LEFTOVER_XATTR, &mut [0u8; 8]).is_ok())
    }

    /// Whether a group below `below` has processes although its command has ended.
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
