//! Looks up files without blocking on a disk or a file system. It uses only the kernel's caches, and only the file
//! system of the tree's root. A file system that a workload has mounted, or that does not respond, is never accessed,
//! so the threads `http-N` may use this module. `None` means that the caller must look up the file normally, on a
//! thread that may block.
//!
//! Any thread may use this module; there are no locks.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;

use super::beneath::{IN_ROOT, Root};
use super::file_cache::FileStat;

impl Root {
    /// Opens a root as [`Root::open`] does, if the path is in the kernel's cache.
    pub fn open_cached(path: &Path) -> Option<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let how = ResolveFlags::CACHED | ResolveFlags::NO_MAGICLINKS;
        openat2(CWD, path, flags, Mode::empty(), how).ok().map(Root::from_fd)
    }

    /// Returns the metadata as [`Root::stat`] does, for a regular file that is not a link. The inner `None` means that
    /// the file does not exist.
    pub fn stat_cached(&self, rel: &str) -> Option<Option<FileStat>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let how = IN_ROOT | ResolveFlags::CACHED | ResolveFlags::NO_XDEV;
        let found = match openat2(self, rel, flags, Mode::empty(), how) {
            Err(Errno::NOENT) => return Some(None),
            found => found.ok()?,
        };
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = FileStat::from(statx(found, "", flags, StatxFlags::BASIC_STATS).ok()?);
        stat.is_file().then_some(Some(stat))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::store::scratch::TestFolder;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test's own files")]
    fn regular_files_are_found_and_links_are_left_to_normal_lookups() {
        let dir = TestFolder::new();
        fs::write(dir.join("f"), "x").unwrap();
        symlink("f", dir.join("link")).unwrap();
        fs::create_dir(dir.join("folder")).unwrap();
        let usual = Root::open(&dir).unwrap();
        let seen = usual.stat("f").unwrap().unwrap();
        let root = Root::open_cached(&dir).unwrap();
        let stat = root.stat_cached("f").unwrap().unwrap();
        assert_eq!((stat.inode(), stat.size(), stat.times()), (seen.inode(), seen.size(), seen.times()));
        assert!(root.stat_cached("link").is_none() && root.stat_cached("folder").is_none());
        assert!(root.stat_cached("/proc/self/stat").is_none_or(|found| found.is_none()));
        // After a normal lookup, the kernel's cache knows that the file does not exist.
        assert!(usual.stat("none").unwrap().is_none());
        assert!(root.stat_cached("none").is_none_or(|found| found.is_none()));
        assert!(Root::open_cached(&dir.join("none")).is_none());
    }
}
