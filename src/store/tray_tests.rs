//! Tests of trays in folders that a hostile workload has prepared.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::store::file::write_atomic;
use crate::store::scratch::TestFolder;

fn put(tray: &Tray, path: &str, text: &[u8]) -> Result<()> {
    let mut deposit = tray.create()?;
    deposit.write_all(text).unwrap();
    deposit.commit(path)
}

#[test]
fn files_appear_whole_and_are_listed() {
    let dir = TestFolder::new();
    let root = Root::open(&dir).unwrap();
    assert!(root.tray("a/in").unwrap().is_none());
    let tray = root.make_tray("a/in").unwrap();
    put(&tray, "x", b"one").unwrap();
    put(&tray, "x", b"two").unwrap();
    put(&tray, "sub/deep/y", b"").unwrap();
    let mut begun = tray.create().unwrap();
    begun.write_all(b"half").unwrap();
    assert_eq!(fs::read(dir.join("a/in/x")).unwrap(), b"two");
    assert_eq!(fs::metadata(dir.join("a/in/x")).unwrap().permissions().mode() & 0o7777, 0o644);
    symlink("x", dir.join("a/in/link")).unwrap();
    dir.fifo("a/in/pipe");
    let mut paths: Vec<_> =
        tray.list().unwrap().files.into_iter().map(|found| (found.path, found.size)).collect();
    paths.sort();
    assert_eq!(paths, [(b"sub/deep/y".to_vec(), 0), (b"x".to_vec(), 3)]);
    // A file is not swept while it is being written, but it is swept if it remains after its writer is dropped.
    root.make_tray("a/in").unwrap();
    let temp = begun.temp.clone();
    assert!(dir.join("a/in").join(&temp).exists());
    drop(begun);
    write_atomic(&dir.join("a/in").join(&temp), b"left by kill -9", 0o600).unwrap();
    root.make_tray("a/in").unwrap();
    assert!(!dir.join("a/in").join(&temp).exists());
    assert_eq!(fs::read_dir(dir.join("a/in")).unwrap().count(), 4);
}

#[test]
fn links_are_not_followed() {
    let (dir, outside) = (TestFolder::new(), TestFolder::new());
    write_atomic(&outside.join("secret"), b"secret", 0o600).unwrap();
    let root = Root::open(&dir).unwrap();
    let tray = root.make_tray("in").unwrap();
    symlink(&*outside, dir.join("in/out")).unwrap();
    symlink(outside.join("secret"), dir.join("in/file")).unwrap();
    for path in ["out/secret", "out/new", "file/x", "../x", "a/../../x"] {
        assert_eq!(put(&tray, path, b"x").unwrap_err().code(), Code::InvalidPath, "{path}");
        assert!(tray.open(path.as_bytes()).map_or(true, |file| file.is_none()), "{path}");
    }
    assert!(tray.open(b"/etc/passwd").is_err() && tray.open(b"file").is_err());
    put(&tray, "file", b"mine").unwrap();
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read(dir.join("in/file")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(&*outside).unwrap().count(), 1);
    fs::rename(dir.join("in"), dir.join("before")).unwrap();
    symlink(&*outside, dir.join("in")).unwrap();
    assert_eq!(root.make_tray("in").unwrap_err().code(), Code::InvalidPath);
    assert_eq!(root.tray("in").unwrap_err().code(), Code::InvalidPath);
}

#[test]
fn folder_is_not_replaced_and_nothing_is_left() {
    let dir = TestFolder::new();
    let tray = Root::open(&dir).unwrap().make_tray("in").unwrap();
    fs::create_dir_all(dir.join("in/taken/inside")).unwrap();
    write_atomic(&dir.join("in/file"), b"", 0o600).unwrap();
    for path in ["taken", "file/x", "taken/inside"] {
        assert_eq!(tray.check_free(path).unwrap_err().code(), Code::InvalidPath, "{path}");
        assert_eq!(put(&tray, path, b"x").unwrap_err().code(), Code::InvalidPath, "{path}");
    }
    tray.check_free("file").unwrap();
    tray.check_free("new/file").unwrap();
    assert_eq!(fs::read_dir(dir.join("in")).unwrap().count(), 2);
}

#[test]
fn listing_is_bounded() {
    let dir = TestFolder::new();
    let tray = Root::open(&dir).unwrap().make_tray("in").unwrap();
    for number in 0..limits::TRAY_ENTRIES + 5 {
        fs::File::create(dir.join(format!("in/{number}"))).unwrap();
    }
    let listing = tray.list().unwrap();
    assert!(listing.more);
    assert_eq!(listing.files.len(), limits::TRAY_ENTRIES);
    dir.deep("in", 2500);
    assert!(tray.list().is_ok());
}

#[test]
fn changed_file_has_another_tag() {
    let dir = TestFolder::new();
    let path = dir.join("x");
    write_atomic(&path, b"one", 0o600).unwrap();
    let file = fs::File::open(&path).unwrap();
    let (first, sure) = tag(&file).unwrap();
    assert!(!sure, "the file is too fresh");
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(b"two").unwrap();
    assert_ne!(tag(&file).unwrap().0, first);
}
