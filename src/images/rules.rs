//! How a tree is packed and unpacked. An image may come from a stranger, and contains what a container can have: it is
//! bounded, and its devices, foreign owners and host attributes are left out. A backup is as large as the server's data, and
//! every entry is kept exactly. Pure.

use crate::base::limits;

/// The rules for one archive.
#[derive(Debug)]
pub(super) struct ArchiveRules {
    /// Owners, modes, devices, all attributes, times to the nanosecond and holes are kept, and no entry replaces another.
    pub(super) exact: bool,
    /// Bytes that it unpacks to.
    pub(super) bytes: u64,
    /// The same as a multiple of its own size, beyond `limits::IMAGE_RATIO_FREE`.
    pub(super) ratio: u64,
    pub(super) entries: u64,
    /// The deepest folder.
    pub(super) depth: usize,
    /// Where anything else than files and folders may be.
    pub(super) links: fn(&[u8]) -> bool,
}

pub(super) const IMAGE: ArchiveRules = ArchiveRules {
    exact: false,
    bytes: limits::IMAGE_BYTES,
    ratio: limits::IMAGE_RATIO,
    entries: limits::IMAGE_ENTRIES,
    depth: limits::IMAGE_DEPTH,
    links: |_| true,
};

/// What a restore unpacks is bounded by the room on the disk. A workload can make deeper trees than any path can name; what
/// is below this depth is left out of a backup, and the backup says so.
pub(super) const BACKUP: ArchiveRules = ArchiveRules {
    exact: true,
    bytes: u64::MAX,
    ratio: u64::MAX,
    entries: u64::MAX,
    depth: 512,
    links: may_be_link,
};

/// The folder with the data.
pub const DATA: &str = "data";

/// Whether links and devices may have this name: in files of workspaces and images, in the homes of sandboxes and in the
/// library. Everywhere else berth opens files by name, so a link in an archive would lead it out of the folder.
pub(super) fn may_be_link(path: &[u8]) -> bool {
    let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    if parts.next() != Some(DATA.as_bytes()) {
        return false;
    }
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(b"library"), Some(_), _, _) => true,
        (Some(b"sandbox"), Some(_), Some(_), _) => true,
        (Some(b"workspaces"), Some(_), Some(b"root" | b"files"), Some(_)) => true,
        (Some(b"workspaces"), Some(_), Some(b"snapshots"), Some(_)) => {
            parts.next() == Some(b"root") && parts.next().is_some()
        }
        (Some(b"layers"), Some(_), Some(b"fs"), Some(_)) => true,
        (Some(b"images"), Some(_), Some(b"root"), Some(_)) => true,
        _ => false,
    }
}
