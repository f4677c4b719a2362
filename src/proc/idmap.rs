//! User namespaces for id-mapped mounts (mount_setattr(2)). On disk, a root's files belong to the ids 0 to 65535. In
//! the container and on the host, they appear with the container's own range of ids. No threads, no locks.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::confinement::Confinement;
use super::sys;
use crate::base::{At, Error, Result};

/// Number of user ids, and of group ids, that a container has.
pub const IDS: u32 = 65536;

/// Creates a user namespace that maps the ids 0 to 65535 to `first` and the ids that follow it.
///
/// The namespace also maps 65536 to the server's own id 0: overlayfs creates its whiteouts and working files as the
/// user that mounted it, and on disk these files need an owner that is not an id of the container.
///
/// # Errors
/// When user namespaces are forbidden, or when their maximum number is reached.
pub fn ids_from(first: u32) -> Result<OwnedFd> {
    let sleeper = sys::sleeper_in_user_namespace().map_err(|error| refused(&error))?;
    let made = ["uid_map", "gid_map"].iter().try_for_each(|map| {
        let path = format!("/proc/{}/{map}", sleeper.pid);
        let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        // The kernel requires a single write(2) (user_namespaces(7)).
        let text = format!("0 {first} {IDS}\n{IDS} 0 1\n");
        file.and_then(|file| rustix::io::write(file, text.as_bytes())).map(drop).at("write", path)
    });
    let namespace = made.and_then(|()| {
        let path = format!("/proc/{}/ns/user", sleeper.pid);
        rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at("open", path)
    });
    let _ = pidfd_send_signal(&sleeper.pidfd, Signal::KILL);
    let _ = sys::reap(sleeper.pidfd.as_fd(), true);
    namespace
}

/// Makes a mount map the owners of its files through the user namespace `userns` (mount_setattr(2), Linux 5.12); with
/// `read_only`, also makes the mount read-only. The mount must not be attached yet.
///
/// # Errors
/// The error of mount_setattr(2), which is EINVAL if the file system does not support id-mapped mounts.
pub fn id_map(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>, read_only: bool) -> std::io::Result<()> {
    sys::set_mount_attributes(
        mount,
        &libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP | if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
            attr_clr: 0,
            propagation: 0,
            userns_fd: userns.as_raw_fd() as u64,
        },
    )
}

/// Returns the error for a namespace that could not be created. ENOSPC means that the maximum number of namespaces is
/// reached, not that a disk is full (user_namespaces(7)).
pub fn refused(error: &std::io::Error) -> Error {
    let why = match error.raw_os_error() {
        Some(libc::ENOSPC) => "as many as allowed are in use (raise user.max_user_namespaces)".to_owned(),
        _ => {
            match Errno::from_io_error(error).and_then(|errno| Confinement::from_proc_self().explains(errno))
            {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            }
        }
    };
    Error::internal(format!("Could not create a user namespace: {why}"))
}
