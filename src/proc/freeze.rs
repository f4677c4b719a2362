//! Groups that stand still for a moment, and what ended commands have left in one. Without threads or locks.

use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, XattrFlags, fgetxattr, fsetxattr, openat};

use super::Group;
use super::cgroup::{LEFTOVER_XATTR, read_in, write_in};
use crate::base::{Code, Error, Result, limits};

impl Group {
    /// Stops every process of the group where it is, and returns when all stand still; or lets them go on. They do not
    /// notice, and nothing inside can prevent it.
    ///
    /// # Errors
    /// `Unavailable` where groups are no cgroups, or when a process cannot be stopped (it waits for a broken disk); all go
    /// on then.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let Some(folder) = self.folder() else {
            if !frozen {
                return Ok(());
            }
            let message =
                "What runs in the container cannot be frozen on this host; stop the container first";
            return Err(Error::new(Code::Unavailable, message));
        };
        write_in(folder, "cgroup.freeze", if frozen { "1" } else { "0" })?;
        let deadline = Instant::now() + limits::FREEZE;
        while frozen && !read_in(folder, "cgroup.events")?.lines().any(|line| line == "frozen 1") {
            if Instant::now() >= deadline {
                write_in(folder, "cgroup.freeze", "0")?;
                let message = "What runs in the container could not be frozen; stop the container first";
                return Err(Error::new(Code::Unavailable, message));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Notes that its command has ended by itself: what lives in it from now on is no part of it any more. To be called
    /// before anybody is told of the end, for a server that is killed a moment later leaves nothing but this note.
    pub fn mark_leftover(&self) {
        if let Some(folder) = self.folder() {
            // Without attributes (before Linux 5.7) the next server ends it.
            let _ = fsetxattr(folder, LEFTOVER_XATTR, b"1", XattrFlags::empty());
        }
    }

    /// Whether its command had ended, as [`Group::mark_leftover`] noted.
    pub fn is_leftover(&self) -> bool {
        self.folder().is_some_and(|folder| fgetxattr(folder, LEFTOVER_XATTR, &mut [0u8; 8]).is_ok())
    }

    /// Whether something still runs in a group below `below` whose command has ended.
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
