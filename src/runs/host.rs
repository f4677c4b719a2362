//! Starts commands on the host itself, in a workspace's directory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{Gid, Uid};

use crate::base::{Code, Error, Result};
use crate::proc::spawn::open_dir;
use crate::proc::{Cgroups, Child, CommandSpec, Launcher, Process, Pty, Stdio};
use crate::store::beneath::Root;
use crate::store::file;

/// Launches commands of one workspace on the host.
pub struct HostLauncher {
    pub cgroups: Cgroups,
    /// Parent cgroup of the commands' cgroups.
    pub group: String,
    pub folder: PathBuf,
}

impl HostLauncher {
    /// Opens the working directory once; the child enters the opened directory even if another directory takes its
    /// name.
    fn cwd(&self, cwd: &str) -> Result<OwnedFd> {
        let refuse = |error: Error| {
            Error::new(
                Code::InvalidCwd,
                format!("The working directory cannot be entered: {}", error.message()),
            )
            .detail("cwd", cwd)
        };
        if cwd.starts_with('/') {
            return open_dir(cwd).map_err(refuse);
        }
        let root = Root::open(&self.folder).map_err(|error| {
            Error::new(
                Code::InvalidCwd,
                format!("The workspace's folder cannot be entered: {}", error.message()),
            )
        })?;
        match cwd {
            "" | "." => open_dir(&self.folder).map_err(refuse),
            _ => root.dir_beneath(cwd).map_err(refuse),
        }
    }
}

impl Launcher for HostLauncher {
    fn launch(&self, id: &str, command: &CommandSpec, stdio: Stdio) -> Result<Box<dyn Process>> {
        let cwd = self.cwd(&command.cwd)?;
        let group =
            self.cgroups.group_with_limits(&format!("{}/{id}", self.group), command.limits.as_ref())?;
        let user = command.user.as_ref();
        if let Some(user) = user {
            stdio.give_to(Uid::from_raw(user.uid), Gid::from_raw(user.gid), command.tty);
        }
        let (argvs, env, tty) = (&command.attempts, &command.env, command.tty);
        Ok(Box::new(Child::start(argvs, env, cwd.as_fd(), &stdio, tty, user, group)?))
    }

    fn file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        file::read_optional(Path::new(path), max_bytes)
    }

    fn terminal(&self) -> Result<Pty> {
        Pty::open()
    }
}
