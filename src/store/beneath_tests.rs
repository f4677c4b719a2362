//! Tests [`super::Root`] against trees that a hostile workload has prepared.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, mknodat, renameat_with};

use super::*;
use crate::store::file::write_atomic;
use crate::store::scratch::TestFolder;

/// `tree` belongs to the workload; it must not reach `outside/secret`.
fn hostile() -> (TestFolder, Root) {
    let dir = TestFolder::new();
    fs::create_dir_all(dir.join("tree/sub")).unwrap();
    fs::create_dir(dir.join("outside")).unwrap();
    write_atomic(&dir.join("outside/secret"), b"secret", 0o600).unwrap();
    write_atomic(&dir.join("tree/sub/file"), b"one\ntwo\nthree", 0o644).unwrap();
    let root = Root::open(&dir.join("tree")).unwrap();
    (dir, root)
}

fn code<T>(done: Result<T>) -> Code {
    done.err().expect("is refused").code()
}

#[test]
fn reads_files_tails_and_line_counts() {
    let (dir, root) = hostile();
    assert_eq!(root.read("sub/file", 13).unwrap().unwrap(), b"one\ntwo\nthree");
    assert_eq!(root.read("/sub/../sub/file", 99).unwrap().unwrap().len(), 13);
    assert_eq!(code(root.read("sub/file", 12)), Code::InvalidPath);
    let tail = root.read_tail("sub/file", 5).unwrap().unwrap();
    assert_eq!((&tail.bytes[..], tail.total_size, tail.complete), (&b"three"[..], 13, false));
    assert!(root.read_tail("sub/file", 13).unwrap().unwrap().complete);
    assert_eq!(root.count_lines("sub/file").unwrap(), Some(3));
    write_atomic(&dir.join("tree/even"), b"a\nb\n", 0o600).unwrap();
    write_atomic(&dir.join("tree/empty"), b"", 0o600).unwrap();
    assert_eq!(root.count_lines("even").unwrap(), Some(2));
    assert_eq!(root.count_lines("empty").unwrap(), Some(0));
    File::create(dir.join("tree/huge")).unwrap().set_len(limits::LINE_COUNT_BYTES + 1).unwrap();
    assert_eq!(root.count_lines("huge").unwrap(), None);
    for absent in ["nothing", "nothing/x", "sub/file/x"] {
        assert!(root.read(absent, 9).unwrap().is_none());
        assert!(root.read_tail(absent, 9).unwrap().is_none());
        assert!(root.metadata(absent).unwrap().is_none());
        assert!(!root.exists(absent).unwrap());
        assert_eq!(root.count_lines(absent).unwrap(), None);
        assert_eq!(root.entry_count(absent).unwrap(), None);
        assert!(!root.remove(absent).unwrap());
    }
    assert_eq!(root.metadata("sub/file").unwrap().unwrap().len(), 13);
    assert!(root.is_dir("").unwrap() && root.is_dir("/sub").unwrap() && !root.is_dir("sub/file").unwrap());
    assert_eq!(root.entry_count("/").unwrap(), Some(4));
    assert_eq!(root.entry_count("sub/file").unwrap(), None);
    assert_eq!(code(root.read("a\0b", 9)), Code::InvalidPath);
}

#[test]
fn links_resolve_as_for_a_process_in_the_tree() {
    let (dir, root) = hostile();
    let tree = dir.join("tree");
    fs::create_dir(tree.join("etc")).unwrap();
    symlink("/etc/shadow", tree.join("end")).unwrap();
    symlink("/etc", tree.join("middle")).unwrap();
    symlink("../../../../../../etc", tree.join("up")).unwrap();
    symlink(dir.join("outside"), tree.join("out")).unwrap();
    symlink("../outside", tree.join("beside")).unwrap();
    for path in ["end", "middle/shadow", "up/shadow", "out/secret", "beside/secret", "../outside/secret"] {
        assert!(root.read(path, 9999).unwrap().is_none(), "{path}");
        assert!(!root.exists(path).unwrap(), "{path}");
    }
    write_atomic(&tree.join("etc/shadow"), b"own", 0o600).unwrap();
    for path in ["end", "middle/shadow", "up/shadow"] {
        assert_eq!(root.read(path, 9999).unwrap().unwrap(), b"own", "{path}");
    }
    symlink("loop", tree.join("loop")).unwrap();
    assert_eq!(code(root.read("loop", 9)), Code::InvalidPath);
    assert_eq!(code(root.read("loop/x", 9)), Code::InvalidPath);
}

#[test]
fn magic_links_are_refused() {
    let root = Root::open(Path::new("/")).unwrap();
    assert_eq!(code(root.read("proc/self/root/etc/hostname", 999)), Code::InvalidPath);
    assert_eq!(code(root.read("proc/self/exe", 999)), Code::InvalidPath);
    assert_eq!(code(root.dir_beneath("proc/self/cwd")), Code::InvalidPath);
}

#[test]
fn special_files_are_neither_opened_nor_waited_for() {
    let (dir, root) = hostile();
    dir.fifo("tree/fifo");
    let device = rustix::fs::makedev(1, 3);
    mknodat(CWD, dir.join("tree/null"), FileType::CharacterDevice, Mode::RUSR, device).unwrap();
    let _socket = UnixListener::bind(dir.join("tree/socket")).unwrap();
    for name in ["fifo", "null", "socket", "sub"] {
        assert_eq!(code(root.read(name, 9)), Code::InvalidPath, "{name}");
        assert_eq!(code(root.read_tail(name, 9)), Code::InvalidPath, "{name}");
        assert_eq!(code(root.count_lines(name)), Code::InvalidPath, "{name}");
        assert_eq!(code(root.append_open(name)), Code::InvalidPath, "{name}");
        assert!(root.exists(name).unwrap());
    }
    root.write_new("fifo", b"x", 0o600).unwrap();
    assert_eq!(fs::read(dir.join("tree/fifo")).unwrap(), b"x", "replaced, not written to");
    assert!(root.remove("null").unwrap());
    assert_eq!(code(root.remove("sub")), Code::InvalidPath);
    assert_eq!(code(root.write_new("sub", b"x", 0o600)), Code::InvalidPath);
    assert_eq!(fs::read_dir(dir.join("tree")).unwrap().count(), 3, "a temporary file remains");
}

#[test]
fn writes_replace_links_instead_of_following_them() {
    let (dir, root) = hostile();
    let secret = dir.join("outside/secret");
    symlink(&secret, dir.join("tree/link")).unwrap();
    fs::hard_link(&secret, dir.join("tree/hard")).unwrap();
    symlink(dir.join("outside"), dir.join("tree/folder")).unwrap();
    assert_eq!(code(root.append_open("link")), Code::InvalidPath);
    assert_eq!(code(root.append_open("hard")), Code::InvalidPath);
    root.write_new("link", b"mine", 0o640).unwrap();
    root.write_new("/hard", b"mine", 0o640).unwrap();
    assert_eq!(fs::metadata(dir.join("tree/link")).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(root.read("hard", 9).unwrap().unwrap(), b"mine");
    assert_eq!(code(root.write_new("folder/secret", b"mine", 0o600)), Code::InvalidPath);
    assert_eq!(code(root.append_open("folder/secret")), Code::InvalidPath);
    assert!(!root.remove("folder/secret").unwrap());
    assert!(root.remove("folder").unwrap(), "the link itself");
    for name in ["", "/", ".", "..", "sub/", "sub/..", "missing/x"] {
        assert_eq!(code(root.write_new(name, b"", 0o600)), Code::InvalidPath, "{name:?}");
    }
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
}

#[test]
fn appends_and_gives_new_files_the_owner_of_their_folder() {
    let (dir, root) = hostile();
    chown(dir.join("tree/sub"), Some(1234), Some(4321)).unwrap();
    for part in [b"a", b"b"] {
        root.append_open("sub/log").unwrap().write_all(part).unwrap();
    }
    root.write_new("sub/new", b"", 0o4755).unwrap();
    assert_eq!(root.read("sub/log", 9).unwrap().unwrap(), b"ab");
    for (name, mode) in [("log", 0o644), ("new", 0o4755)] {
        let metadata = fs::metadata(dir.join("tree/sub").join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (1234, 4321, mode));
    }
}

#[test]
fn working_directory_is_refused_with_a_reason() {
    let (dir, root) = hostile();
    let tree = dir.join("tree");
    symlink("sub", tree.join("inside")).unwrap();
    symlink(dir.join("outside"), tree.join("out")).unwrap();
    let reason = |path: &str| {
        let error = root.dir_beneath(path).expect_err(path);
        assert_eq!(error.code(), Code::InvalidCwd);
        error.body()["details"]["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(reason("missing"), "missing");
    assert_eq!(reason("sub/file"), "not_a_directory");
    for path in ["..", "../outside", "/", "/etc", "out", "sub/../../tree"] {
        assert_eq!(reason(path), "leaves_the_tree", "{path}");
    }
    for path in ["", ".", "sub", "inside", "sub/.."] {
        let opened = File::from(root.dir_beneath(path).unwrap()).metadata().unwrap();
        assert_eq!(opened.ino(), fs::metadata(tree.join(path)).unwrap().ino(), "{path}");
    }
}

#[test]
fn folder_that_is_moved_away_is_missing_and_does_not_lead_out() {
    let (dir, root) = hostile();
    let (sub, away) = (dir.join("tree/sub"), dir.join("outside/sub"));
    fs::create_dir_all(sub.join("a/b/c")).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20_000 {
                fs::rename(&sub, &away).unwrap();
                fs::rename(&away, &sub).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            if let Err(error) = root.dir_beneath("sub/a/b/c") {
                assert_eq!(error.body()["details"]["reason"], "missing", "{error}");
            }
        }
    });
}

#[test]
fn folder_swapped_with_a_link_in_a_loop_never_leads_out() {
    let (dir, root) = hostile();
    let tree = dir.join("tree");
    symlink("../../../../../outside", tree.join("evil")).unwrap();
    fs::create_dir_all(dir.join("outside/deep")).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (sub, evil) = (tree.join("sub"), tree.join("evil"));
            for _ in 0..10_000 {
                renameat_with(CWD, &sub, CWD, &evil, RenameFlags::EXCHANGE).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        let mut rounds = 0;
        while !done.load(Ordering::Acquire) || rounds < 100 {
            rounds += 1;
            let expected = |code| assert!(matches!(code, Code::InvalidPath | Code::Busy), "{code:?}");
            match root.read("sub/file", 99) {
                Ok(bytes) => assert!(bytes.is_none_or(|bytes| bytes == b"one\ntwo\nthree")),
                Err(error) => expected(error.code()),
            }
            let outcomes = [
                root.read("sub/secret", 99).map(|found| assert!(found.is_none())),
                root.write_new("sub/new", b"new", 0o600),
                root.append_open("sub/secret-log")
                    .and_then(|mut file| file.write_all(b"x").at("append to", "it")),
                root.remove("sub/secret").map(|removed| assert!(!removed)),
                root.is_dir("sub/deep").map(|found| assert!(!found)),
                root.remove("sub/new").map(drop),
            ];
            outcomes.into_iter().filter_map(Result::err).for_each(|error| expected(error.code()));
        }
    });
    assert_eq!(fs::read(dir.join("outside/secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(dir.join("outside")).unwrap().count(), 2);
}
