//! Disk limits for the files of a folder: project quotas of ext4 and XFS, which the kernel enforces on file systems
//! that are mounted with `prjquota`. Files created in a project's folder belong to the project; only host root can take
//! a file out of it. No threads, no locks.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::base::{At, Result};
use crate::proc::sys::{extended_attributes, project_quota};

/// FS_XFLAG_PROJINHERIT of linux/fs.h.
const INHERIT: u32 = 0x200;
/// FS_QUOTA_PDQ_ENFD of linux/dqblk_xfs.h.
const ENFORCED: u16 = 1 << 5;
/// Offset of `fsx_projid` in the struct fsxattr.
const PROJECT_AT: usize = 12;

/// Advice for the user when [`check`] fails.
pub const HELP: &str =
    "put the data folder on ext4 (made with -O project,quota) or XFS, and mount it with prjquota";

fn open(folder: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder, flags, Mode::empty())?)
}

/// Checks that the file system of `folder` enforces project quotas.
///
/// # Errors
/// The reason why quotas are not enforced, as a sentence.
pub fn check(folder: &Path) -> std::result::Result<(), String> {
    let state = || -> io::Result<u16> {
        let mut data = [0; 256];
        data[0] = 1; // FS_QSTATV_VERSION1
        project_quota(open(folder)?.as_fd(), false, 0, &mut data)?;
        Ok(u16::from_ne_bytes([data[2], data[3]]))
    };
    match state() {
        Ok(flags) if flags & ENFORCED != 0 => Ok(()),
        _ => Err("the file system of the data folder does not enforce project quotas".into()),
    }
}

/// Returns the project of a folder; 0 means none.
pub fn project_of(folder: &Path) -> Option<u32> {
    let mut data = [0; 28];
    extended_attributes(open(folder).ok()?.as_fd(), false, &mut data).ok()?;
    data[PROJECT_AT..][..4].try_into().ok().map(u32::from_ne_bytes)
}

/// Makes an empty folder, and everything that is created in it, belong to the project.
///
/// # Errors
/// When the file system does not support projects.
pub fn join(folder: &Path, project: u32) -> Result<()> {
    let set = || -> io::Result<()> {
        let (fd, mut data) = (open(folder)?, [0; 28]);
        extended_attributes(fd.as_fd(), false, &mut data)?;
        let flags = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]) | INHERIT;
        data[..4].copy_from_slice(&flags.to_ne_bytes());
        data[PROJECT_AT..][..4].copy_from_slice(&project.to_ne_bytes());
        extended_attributes(fd.as_fd(), true, &mut data)
    };
    set().at("put into a project", folder)
}

/// Sets the limit for all files of the project; `None` removes the limit.
///
/// # Errors
/// When the file system of `folder` has no quotas.
pub fn limit(folder: &Path, project: u32, bytes: Option<u64>) -> Result<()> {
    const QIF_BLIMITS: u32 = 1;
    let mut data = [0; 256];
    // `dqb_bhardlimit` is in blocks of 1024 bytes, where 0 means no limit; `dqb_valid` is at offset 64.
    let blocks = bytes.map_or(0, |bytes| (bytes / 1024).max(1));
    data[..8].copy_from_slice(&blocks.to_ne_bytes());
    data[64..][..4].copy_from_slice(&QIF_BLIMITS.to_ne_bytes());
    open(folder)
        .and_then(|fd| project_quota(fd.as_fd(), true, project, &mut data))
        .at("set the disk limit of", folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_without_quotas_is_reported() {
        // proc has neither projects nor quotas.
        let proc = Path::new("/proc");
        assert!(check(proc).unwrap_err().contains("project quotas"));
        assert!(join(proc, 7).is_err() && limit(proc, 7, Some(1 << 20)).is_err());
        assert_eq!(project_of(proc), None);
    }
}
