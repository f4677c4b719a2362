//! What the kernel says of a container's processes, asked and set from outside. A number may mean another process by the
//! time it is used: whoever changes something holds the pidfd, and looks again before the change.
//!
//! No threads, no locks.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use crate::proc::spawn::open_dir;

/// Whether the process is over; it may not have been waited for yet.
pub(super) fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
}

/// The number of the process that a pidfd means (pidfd_open(2): `Pid:` in fdinfo); `None` once it has been reaped.
pub(super) fn pidfd_pid(pidfd: BorrowedFd<'_>) -> Option<Pid> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    Pid::from_raw(text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?)
}

/// Takes nspawn's own oom score from a process inside, and so from all that it starts. Set by us it is also the least that
/// anyone inside can choose (proc_pid_oom_score_adj(5)). nspawn's --oom-score-adjust= fails on common kernels: by then it
/// may not write the file any more.
pub(super) fn make_expendable(process: BorrowedFd<'_>) {
    let Some(pid) = pidfd_pid(process) else { return };
    let Ok(folder) = open_dir(format!("/proc/{}", pid.as_raw_nonzero())) else { return };
    // It still lives, so the folder is its own.
    if !has_ended(process) {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, "oom_score_adj", flags, Mode::empty());
        // Without CAP_SYS_RESOURCE nspawn has the same score.
        let _ = file.and_then(|file| rustix::io::write(&file, b"0"));
    }
}

/// Its parent, while it lives.
pub(super) fn parent_of(pid: i32) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Pid::from_raw(status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?)
}

/// The first uid of a process's user namespace, on the host.
pub(super) fn uid_base(pid: i32) -> Option<u32> {
    std::fs::metadata(format!("/proc/{pid}")).ok().map(|proc_dir| proc_dir.uid())
}
