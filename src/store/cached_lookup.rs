//! Looks at files without waiting for a disk or a file system: what the kernel has in its caches, on the file system of
//! the tree's top. A file system that a workload has mounted, or that does not answer, is never asked, so the threads that
//! serve everything else may do this. A caller that gets `None` has to look as usual, on a thread that may wait.
//!
//! Any thread; no locks.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;

use super::beneath::{IN_ROOT, Root};
use super::file_cache::FileStat;

impl Root {
    /// As [`Root::open`], for a folder whose path is in the kernel's cache.
    pub fn open_cached(path: &Path) -> Option<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let how = ResolveFlags::CACHED | ResolveFlags::NO_MAGICLINKS;
        openat2(CWD, path, flags, Mode::empty(), how).ok().map(Root::from_fd)
    }

    /// As [`Root::stat`] for a regular file that is no link; the inner `None` when there is none.
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
    #[expect(clippy::disallowed_methods, reason = "a test's own files")]
    fn a_file_is_seen_as_usual_and_a_link_is_left_to_others() {
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
        // Once it was looked for as usual, the kernel knows that it is not there.
        assert!(usual.stat("none").unwrap().is_none());
        assert!(root.stat_cached("none").is_none_or(|found| found.is_none()));
        assert!(Root::open_cached(&dir.join("none")).is_none());
    }
}
