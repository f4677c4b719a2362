//! User namespaces that say how a mount's owners are shown (mount_setattr(2)): on disk a root's files belong to the ids 0
//! to 65535, in its container and to us to a range of their own. Without threads or locks.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

use super::confinement::Confinement;
use super::sys;
use crate::base::{At, Error, Result};

/// How many users and groups a container has.
pub const IDS: u32 = 65536;

/// A namespace in which 0 to 65535 are `first` and the following.
///
/// The server's own id 0 is 65536 there: overlayfs makes its whiteouts and working files as whoever mounted it, and they
/// need an owner on disk; no id of the container is that one.
///
/// # Errors
/// When user namespaces are forbidden, or as many as allowed are in use.
pub fn ids_from(first: u32) -> Result<OwnedFd> {
    let sleeper = sys::sleeper_in_user_namespace().map_err(|error| refused(&error))?;
    let made = ["uid_map", "gid_map"].iter().try_for_each(|map| {
        let path = format!("/proc/{}/{map}", sleeper.pid);
        let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        // One write(2), as the kernel wants it (user_namespaces(7)).
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

/// Has a mount show its owners as the user namespace behind `userns` maps them (mount_setattr(2), Linux 5.12), and takes
/// writing away if `read_only`. The mount must not be attached anywhere yet.
///
/// # Errors
/// What mount_setattr(2) said: EINVAL where the file system cannot.
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

/// Why there is no user namespace. ENOSPC means that there are as many as allowed, not a full disk (user_namespaces(7)).
pub fn refused(error: &std::io::Error) -> Error {
    let why = match error.raw_os_error() {
        Some(libc::ENOSPC) => "as many as allowed are in use (user.max_user_namespaces)".to_owned(),
        _ => {
            match Errno::from_io_error(error).and_then(|errno| Confinement::from_proc_self().explains(errno))
            {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            }
        }
    };
    Error::internal(format!("No user namespace can be made: {why}"))
}
