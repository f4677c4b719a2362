//! Reads mount points from `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::base::{At, Result};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Returns the mount points at `path` and below it, oldest first. To unmount them, begin at the end of the list.
///
/// # Errors
/// `Internal` when `/proc` cannot be read.
pub fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    mounts_below_real(&real)
}

/// Returns the mount points as [`mounts_below`] does, for a path without links.
pub(super) fn mounts_below_real(path: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read(MOUNTINFO).at("read", MOUNTINFO)?;
    Ok(parse(&table).filter(|point| point.starts_with(path)).collect())
}

fn parse(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    // proc(5): "36 35 98:0 /mnt1 /mnt2 rw,noatime …"; the fifth field is the mount point.
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(unescape)
}

/// Decodes space, tab, newline and backslash, which the file writes as `\040` and so on.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::{TestFolder, TestMount};

    #[test]
    fn mount_points_are_decoded() {
        let table =
            b"36 35 98:0 / /mnt rw - ext4 /dev/x rw\n37 36 0:5 / /mnt/a\\040b\\134c\\377 rw - tmpfs t rw\n";
        let points: Vec<_> = parse(table).collect();
        assert_eq!(points[0], Path::new("/mnt"));
        assert_eq!(points[1].as_os_str().as_encoded_bytes(), b"/mnt/a b\\c\xff");
    }

    #[test]
    fn whole_components_are_compared() {
        let dir = TestFolder::new();
        let source = dir.join("source");
        fs::create_dir(&source).unwrap();
        let odd = TestMount::bind(&source, dir.join("a/in side"));
        let _other = TestMount::bind(&source, dir.join("ab"));
        let real = fs::canonicalize(&*dir).unwrap();
        assert_eq!(mounts_below(&dir.join("a")).unwrap(), [real.join("a/in side")]);
        assert_eq!(mounts_below(&dir.join("ab")).unwrap(), [real.join("ab")], "the path itself is included");
        assert_eq!(mounts_below(&dir).unwrap().len(), 2);
        drop(odd);
        assert!(mounts_below(&dir.join("a")).unwrap().is_empty());
    }
}
