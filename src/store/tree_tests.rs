//! Tests with trees that are hard to remove, and trees that try to get other files removed.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, mknodat, renameat_with};

use super::*;
use crate::store::file::write_atomic;
use crate::store::scratch::{TestFolder, TestMount};

/// Creates a folder `tree` to remove and a folder `outside` that must stay.
fn scene() -> TestFolder {
    let dir = TestFolder::new();
    fill(&dir);
    dir
}

fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("tree/sub/more")).unwrap();
    fs::create_dir_all(dir.join("outside/folder")).unwrap();
    write_atomic(&dir.join("outside/canary"), b"alive", 0o600).unwrap();
    write_atomic(&dir.join("tree/sub/file"), b"x", 0o600).unwrap();
}

fn check_canary(dir: &Path) {
    assert_eq!(fs::read(dir.join("outside/canary")).unwrap(), b"alive");
    assert!(dir.join("outside/folder").is_dir());
}

#[test]
fn removes_every_kind_of_entry_and_follows_no_link() {
    let dir = scene();
    let tree = dir.join("tree");
    symlink(dir.join("outside"), tree.join("link")).unwrap();
    symlink("../../outside/canary", tree.join("sub/link")).unwrap();
    symlink("/nowhere", tree.join("dangling")).unwrap();
    fs::hard_link(dir.join("outside/canary"), tree.join("hard")).unwrap();
    dir.fifo("tree/fifo");
    mknodat(CWD, tree.join("null"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3))
        .unwrap();
    let _socket = UnixListener::bind(tree.join("socket")).unwrap();
    write_atomic(&tree.join("odd\nname \\"), b"", 0o000).unwrap();
    remove_tree(&dir, "tree").unwrap();
    assert!(!tree.exists());
    remove_tree(&dir, "tree").unwrap();
    remove_tree(&dir.join("missing"), "tree").unwrap();
    check_canary(&dir);
}

#[test]
fn folders_without_permissions_are_made_accessible() {
    let dir = scene();
    // Root ignores permissions; other users need the chmod.
    for (folder, mode) in [("tree/sub/more", 0o000), ("tree/sub", 0o500), ("tree", 0o000)] {
        fs::set_permissions(dir.join(folder), fs::Permissions::from_mode(mode)).unwrap();
    }
    remove_tree(&dir, "tree").unwrap();
    assert!(!dir.join("tree").exists());
}

#[test]
fn entry_itself_may_be_a_link_or_a_file() {
    let dir = scene();
    symlink("outside", dir.join("link")).unwrap();
    write_atomic(&dir.join("file"), b"", 0o600).unwrap();
    remove_tree(&dir, "link").unwrap();
    remove_tree(&dir, "file").unwrap();
    assert_eq!(fs::read_dir(&*dir).unwrap().count(), 2);
    for name in ["", ".", "..", "a/b", "/", "tree/", "a\0b"] {
        assert_eq!(remove_tree(&dir, name).unwrap_err().code(), Code::InvalidPath, "{name:?}");
    }
    check_canary(&dir);
}

#[test]
fn deep_and_wide_trees_are_removed() {
    let dir = TestFolder::new();
    // The tree is on a tmpfs, because on a disk creating it takes a minute although removing it takes two seconds.
    let _mount = dir.mount_tmpfs("fast", "");
    let fast = dir.join("fast");
    fs::create_dir_all(fast.join("tree/sub")).unwrap();
    dir.deep("fast/tree", 5000);
    dir.deep("fast/tree/sub", TREE_EDGE);
    remove_tree(&fast, "tree").unwrap();
    for folder in 0..10 {
        let folder = fast.join(format!("tree/{folder}"));
        fs::create_dir_all(&folder).unwrap();
        (0..10_000).for_each(|file| drop(fs::File::create(folder.join(file.to_string())).unwrap()));
    }
    remove_tree(&fast, "tree").unwrap();
    assert_eq!(fs::read_dir(&fast).unwrap().count(), 0);
}

/// The depth at which folders begin to be moved up.
const TREE_EDGE: usize = limits::TREE_DEPTH + 1;

#[test]
fn mount_inside_prevents_the_removal() {
    let dir = scene();
    let mount = TestMount::bind(&dir.join("outside"), dir.join("tree/sub/mnt"));
    let failed = remove_tree(&dir, "tree").unwrap_err();
    assert_eq!(failed.code(), Code::MountedInside);
    let point = fs::canonicalize(&*dir).unwrap().join("tree/sub/mnt");
    assert_eq!(failed.body()["details"]["path"], point.to_str().unwrap());
    assert!(dir.join("tree/sub/file").exists(), "something was removed");

    // A mount that appears after the mount table was read.
    let late = remove(&dir, c"tree", dir.join("tree")).unwrap_err();
    assert_eq!(late.code(), Code::MountedInside);
    assert_eq!(late.body()["details"]["path"], dir.join("tree/sub/mnt").to_str().unwrap());
    check_canary(&dir);
    drop(mount);
    remove_tree(&dir, "tree").unwrap();
    check_canary(&dir);
}

#[test]
fn mounted_top_or_file_is_left_alone() {
    let dir = scene();
    let top = TestMount::bind(&dir.join("outside"), dir.join("tree"));
    assert_eq!(remove_tree(&dir, "tree").unwrap_err().code(), Code::MountedInside);
    assert_eq!(remove(&dir, c"tree", dir.join("tree")).unwrap_err().code(), Code::MountedInside);
    check_canary(&dir);
    drop(top);
    let file = TestMount::bind_file(&dir.join("outside/canary"), dir.join("tree/sub/file"));
    assert_eq!(remove_tree(&dir, "tree").unwrap_err().code(), Code::MountedInside);
    assert_eq!(remove(&dir, c"tree", dir.join("tree")).unwrap_err().code(), Code::MountedInside);
    check_canary(&dir);
    drop(file);
    remove_tree(&dir, "tree").unwrap();
}

#[test]
fn folder_swapped_with_a_link_in_a_loop_never_leads_out() {
    let scratch = TestFolder::new();
    let _mount = scratch.mount_tmpfs("fast", "");
    let dir = scratch.join("fast");
    fill(&dir);
    let tree = dir.join("tree");
    let (sub, evil) = (tree.join("sub"), tree.join("evil"));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10_000 {
                let _ = fs::create_dir_all(sub.join("more"));
                let _ = symlink(dir.join("outside"), &evil);
                let _ = renameat_with(CWD, &sub, CWD, &evil, RenameFlags::EXCHANGE);
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            if let Err(error) = remove_tree(&dir, "tree") {
                assert_eq!(error.code(), Code::Conflict, "{error}");
            }
        }
    });
    remove_tree(&dir, "tree").unwrap();
    check_canary(&dir);
}

#[test]
fn concurrent_removals_do_not_disturb_each_other() {
    let dir = scene();
    dir.deep("tree", 200);
    thread::scope(|scope| {
        let racers: Vec<_> = (0..4).map(|_| scope.spawn(|| remove_tree(&dir, "tree"))).collect();
        racers.into_iter().for_each(|racer| racer.join().unwrap().unwrap());
    });
    assert!(!dir.join("tree").exists());
}
