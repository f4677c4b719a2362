//! Groups that stand still for a moment, and what ended commands have left in one. Without threads or locks.

use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, fgetxattr, openat};

use super::Group;
use super::cgroup::{LEFT, read_in, write_in};
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

    /// Whether something still runs in a group below `below` whose command has ended.
    pub fn has_left_overs(&self, below: &str) -> bool {
        let Some(folder) = self.folder() else { return true };
        self.children(below).iter().any(|name| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let Ok(group) = openat(folder, format!("{below}/{name}"), flags, Mode::empty()) else {
                return false;
            };
            fgetxattr(&group, LEFT, &mut [0u8; 8]).is_ok()
                && read_in(&group, "cgroup.events")
                    .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
        })
    }
}
