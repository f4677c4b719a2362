//! Measures the disk usage of a tree. It never follows a link or crosses a mount, and uses limited memory and
//! descriptors for any tree. It only reads.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Statx, StatxFlags, open, openat, seek,
    statx,
};
use rustix::io::Errno;

use super::beneath::{Root, is_dots, open_resolved, openat2_missing};
use crate::base::{At, Code, Error, Result, limits};

/// Maximum number of files with several names that a measurement remembers (some 24 bytes each). Further files of this
/// kind count once for each name.
const USAGE_LINKS: usize = 1_000_000;
/// Maximum depth of a tree in a measurement; each level takes some 50 bytes.
const USAGE_DEPTH: usize = 100_000;

/// Returns the number of bytes that the tree at `path` uses on disk, as du(1) does: allocated blocks count, and a file
/// with several names counts once. Returns 0 if the entry does not exist. Unreadable entries, mounts, and entries
/// deeper than `USAGE_DEPTH` are not counted.
///
/// # Errors
/// `Busy` when folders are moved during the measurement, `Internal` when the disk fails.
pub fn disk_usage(path: &Path) -> Result<u64> {
    let top = match open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(0),
        top => top.at("open", path)?,
    };
    map_usage_error(measure(&top, &|| true), path).map(Option::unwrap_or_default)
}

/// Measures the tree below `root` while `go_on` returns true. Returns `None` if `go_on` returned false.
///
/// # Errors
/// The same as for [`disk_usage`].
pub fn disk_usage_below(root: &Root, go_on: &dyn Fn() -> bool) -> Result<Option<u64>> {
    map_usage_error(measure(root, go_on), Path::new("the tree"))
}

fn map_usage_error(measured: rustix::io::Result<Option<u64>>, path: &Path) -> Result<Option<u64>> {
    match measured {
        Err(Errno::NOSYS) => Err(openat2_missing()),
        Err(Errno::STALE) => {
            let message = format!("{} is being changed; try again", path.display());
            Err(Error::new(Code::Busy, message))
        }
        total => total.at("measure", path),
    }
}

/// The device and the inode of a file.
type HardLinkKey = (u32, u32, u64);

struct FolderLevel {
    identity: HardLinkKey,
    /// The open folder. It is closed while the current folder is more than `TREE_DEPTH` levels below it.
    dir: Option<Dir>,
    /// The position in the folder at which reading continues.
    offset: u64,
}

fn measure(top: impl AsFd, go_on: &dyn Fn() -> bool) -> rustix::io::Result<Option<u64>> {
    let top = top.as_fd();
    let status = stat(top, c"")?;
    let mut tally = Tally { total: 0, seen: HashSet::new(), mount: status.stx_mnt_id };
    let mut levels = Vec::new();
    if tally.add(&status) {
        levels.extend(enter(top, c".", identity(&status))?);
    }
    while let Some(level) = levels.last_mut() {
        let FolderLevel { dir: Some(dir), offset, .. } = level else { return Err(Errno::STALE) };
        let Some(entry) = dir.read() else {
            leave(&mut levels)?;
            continue;
        };
        let entry = entry?;
        *offset = entry.offset() as u64;
        let name = entry.file_name();
        if is_dots(name.to_bytes()) {
            continue;
        }
        let status = match stat(dir.fd()?, name) {
            Err(Errno::NOENT | Errno::ACCESS) => continue,
            status => status?,
        };
        if tally.add(&status) {
            if !go_on() {
                return Ok(None);
            }
            let below = enter(dir.fd()?, name, identity(&status))?;
            if levels.len() < USAGE_DEPTH {
                levels.extend(below);
            }
            if let Some(far) = levels.len().checked_sub(limits::TREE_DEPTH + 1) {
                levels[far].dir = None;
            }
        }
    }
    Ok(Some(tally.total))
}

/// Opens a folder. Returns `None` if the folder was removed, replaced or mounted over, or is not accessible.
fn enter(at: impl AsFd, name: &CStr, identity: HardLinkKey) -> rustix::io::Result<Option<FolderLevel>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    match open_resolved(at, name, flags, ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::ACCESS) => Ok(None),
        dir => Ok(Some(FolderLevel { identity, dir: Some(Dir::new(dir?)?), offset: 0 })),
    }
}

fn leave(levels: &mut Vec<FolderLevel>) -> rustix::io::Result<()> {
    let Some(FolderLevel { dir: Some(done), .. }) = levels.pop() else { return Err(Errno::STALE) };
    let Some(above) = levels.last_mut().filter(|above| above.dir.is_none()) else { return Ok(()) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let up = match openat(done.fd()?, c"..", flags, Mode::empty()) {
        Err(Errno::NOENT) => return Err(Errno::STALE),
        up => up?,
    };
    // `..` is the folder's current parent, which may have changed.
    if identity(&stat(&up, c"")?) != above.identity {
        return Err(Errno::STALE);
    }
    seek(&up, SeekFrom::Start(above.offset))?;
    above.dir = Some(Dir::new(up)?);
    Ok(())
}

struct Tally {
    total: u64,
    /// Files with several names that have been counted.
    seen: HashSet<HardLinkKey>,
    mount: u64,
}

impl Tally {
    /// Counts an entry. Returns whether the entry is a folder whose entries must be counted, too.
    fn add(&mut self, status: &Statx) -> bool {
        if status.stx_mnt_id != self.mount {
            return false;
        }
        let is_dir = FileType::from_raw_mode(status.stx_mode.into()) == FileType::Directory;
        if !is_dir && status.stx_nlink > 1 {
            let identity = identity(status);
            let room = self.seen.len() < USAGE_LINKS;
            let known = if room { !self.seen.insert(identity) } else { self.seen.contains(&identity) };
            if known {
                return false;
            }
        }
        // `stx_blocks` is in units of 512 bytes, whatever the block size of the file system (stat(2)).
        self.total = self.total.saturating_add(status.stx_blocks.saturating_mul(512));
        is_dir
    }
}

fn identity(status: &Statx) -> HardLinkKey {
    (status.stx_dev_major, status.stx_dev_minor, status.stx_ino)
}

/// Returns the metadata of the entry `name` of the folder `at`, or of `at` itself if the name is empty.
fn stat(at: impl AsFd, name: &CStr) -> rustix::io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    // Before Linux 5.8, there is no mount id and all ids are 0; then only openat2(2) prevents crossing mounts.
    statx(at, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::store::file::write_atomic;
    use crate::store::scratch::{TestFolder, TestMount};

    fn blocks(path: &Path) -> u64 {
        fs::symlink_metadata(path).unwrap().blocks() * 512
    }

    #[test]
    fn counts_blocks_once_and_stays_inside() {
        let dir = TestFolder::new();
        let tree = dir.join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        fs::create_dir(dir.join("outside")).unwrap();
        write_atomic(&dir.join("outside/big"), &[1; 1 << 20], 0o600).unwrap();
        write_atomic(&tree.join("sub/file"), &[1; 100_000], 0o600).unwrap();
        fs::hard_link(tree.join("sub/file"), tree.join("again")).unwrap();
        symlink(dir.join("outside"), tree.join("link")).unwrap();
        symlink(dir.join("outside/big"), tree.join("sub/link")).unwrap();
        fs::File::create(tree.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        let expected: u64 = ["", "sub", "sub/file", "link", "sub/link", "sparse"]
            .map(|name| blocks(&tree.join(name)))
            .iter()
            .sum();
        assert_eq!(disk_usage(&tree).unwrap(), expected);
        let _mount = TestMount::bind(&dir.join("outside"), tree.join("mnt"));
        assert_eq!(disk_usage(&tree).unwrap(), expected);
        assert_eq!(disk_usage(&dir.join("missing")).unwrap(), 0);
        assert_eq!(disk_usage(&tree.join("link")).unwrap(), blocks(&tree.join("link")));
        assert_eq!(disk_usage(&tree.join("again")).unwrap(), blocks(&tree.join("again")));
    }

    #[test]
    fn counting_continues_after_the_way_back_up() {
        let dir = TestFolder::new();
        fs::create_dir(dir.join("tree")).unwrap();
        dir.deep("tree", 300);
        let one = blocks(&dir.join("tree/d"));
        // Entries after the deep folder are only found after the way back up.
        let counted = disk_usage(&dir.join("tree")).unwrap();
        assert_eq!(counted, blocks(&dir.join("tree")) + 600 * one);
    }
}
