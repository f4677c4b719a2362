//! Limits and fidelity for packing and unpacking. An image is untrusted and can contain only entries that are valid in
//! a container: it is bounded, and devices, foreign owners and host attributes are omitted. A backup is as large as the
//! server's data, and every entry is preserved exactly. Pure.

use crate::base::limits;

/// Maximum unpacked size of an image: a desktop with toolchains takes 20 GiB.
const IMAGE_BYTES: u64 = 64 << 30;
/// Maximum ratio of an image's unpacked size to the size of its archive. Archives of root file systems shrink to a
/// quarter; deflate reaches at most a thousandth, zstd and xz a ten-thousandth.
const IMAGE_RATIO: u64 = 100;

/// The rules for one archive.
#[derive(Debug)]
pub(super) struct ArchiveRules {
    /// Whether to preserve owners, modes, devices, all attributes, nanosecond times and holes. If set, no entry may
    /// replace another.
    pub(super) exact: bool,
    /// Maximum unpacked size in bytes.
    pub(super) bytes: u64,
    /// Maximum ratio of unpacked to packed size; it applies above an unpacked size of `limits::IMAGE_RATIO_FREE`.
    pub(super) ratio: u64,
    pub(super) entries: u64,
    /// Maximum depth of a directory.
    pub(super) depth: usize,
    /// Returns whether an entry with this name may be a link or a device.
    pub(super) links: fn(&[u8]) -> bool,
}

pub(super) const IMAGE: ArchiveRules = ArchiveRules {
    exact: false,
    bytes: IMAGE_BYTES,
    ratio: IMAGE_RATIO,
    entries: limits::IMAGE_ENTRIES,
    depth: limits::IMAGE_DEPTH,
    links: |_| true,
};

/// The rules for backups. The free disk space limits a restore, so there is no maximum size. A workload can create
/// trees that are deeper than any path; entries below this depth are omitted from a backup, which reports them.
pub(super) const BACKUP: ArchiveRules = ArchiveRules {
    exact: true,
    bytes: u64::MAX,
    ratio: u64::MAX,
    entries: u64::MAX,
    depth: 512,
    links: may_be_link,
};

/// The directory of the archive that contains the data.
pub const DATA: &str = "data";

/// Returns whether links and devices may have this name. They may be in files of workspaces and images, in the homes of
/// sandboxes and in the library. berth opens all other files by name, so a link in an archive would lead berth out of
/// the directory.
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
