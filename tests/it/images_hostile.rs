//! Hostile archives: an import leaves no files of them, changes no file outside, and exhausts neither disk nor memory.
//! Safe archives give the same tree as GNU tar.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tar::EntryType;

use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::{BINARY, Ended, berth, run};
use crate::tape::{Tape, header};

struct Store(Scratch);

impl Store {
    fn new() -> Store {
        let store = Store(Scratch::in_memory());
        fs::write(store.0.path().join("canary"), "alive").unwrap();
        store
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    fn image(&self, args: &[&str]) -> Ended {
        let data = self.data();
        let args: Vec<&str> = ["image"].iter().chain(args).copied().collect();
        berth(&self.0, &args, &[("BERTH_DATA_DIR", data.to_str().unwrap())])
    }

    #[track_caller]
    fn import(&self, name: &str, source: &Path) -> String {
        let reply = self.image(&["import", name, source.to_str().unwrap()]);
        assert_eq!(reply.code, Some(0), "{}{}", reply.stdout, reply.stderr);
        reply.stdout.split_whitespace().next().unwrap().to_owned()
    }

    fn tree(&self, id: &str) -> PathBuf {
        self.data().join("images").join(id).join("root")
    }

    /// The import fails with this message, and leaves no trace.
    #[track_caller]
    fn refuses(&self, what: &str, archive: &[u8], words: &str) {
        let path = self.0.path().join("archive");
        fs::write(&path, archive).unwrap();
        let reply = self.image(&["import", "evil", path.to_str().unwrap()]);
        assert_eq!(reply.code, Some(1), "{what}: {}{}", reply.stdout, reply.stderr);
        assert!(reply.stderr.contains(words), "{what}: {}", reply.stderr);
        self.untouched(what);
    }

    #[track_caller]
    fn untouched(&self, what: &str) {
        let mut remaining = names(&self.data().join("images"));
        remaining.retain(|name| name != ".lock" && name != "names");
        assert!(remaining.is_empty(), "{what} left {remaining:?} behind");
        assert!(names(&self.data().join("images/names")).is_empty(), "{what}");
        assert_eq!(names(self.0.path()), ["archive", "canary", "data", "home"], "{what}");
        assert_eq!(fs::read_to_string(self.0.path().join("canary")).unwrap(), "alive", "{what}");
        assert_eq!(fs::metadata(self.0.path().join("canary")).unwrap().nlink(), 1, "{what}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn no_entry_is_written_outside_of_the_tree() {
    let store = Store::new();
    let outside = store.0.path().join("canary");
    let outside = outside.to_str().unwrap();
    let folder = store.0.path().to_str().unwrap();
    for (what, tape, words) in [
        ("..", Tape::system().file("../evil", 0o644, b"x"), "leads out"),
        (".. later", Tape::system().file("a/../../evil", 0o644, b"x"), "leads out"),
        (
            "a settings file beside the tree",
            Tape::system().file("../root.nspawn", 0o644, b"[Exec]"),
            "leads out",
        ),
        (
            "link to a folder, then a file in it",
            Tape::system().symlink("l", folder).file("l/evil", 0o644, b"x"),
            "not a directory",
        ),
        (
            "link upwards, then a file",
            Tape::system().symlink("l", "../../../../../..").file("l/tmp/../x", 0o644, b""),
            "leads out",
        ),
        ("hard link out", Tape::system().link("evil", outside), "missing file"),
        ("hard link out, relative", Tape::system().link("evil", "../../../../canary"), "leads out"),
        (
            "hard link through a link",
            Tape::system().symlink("l", folder).link("evil", "l/canary"),
            "missing file",
        ),
        ("hard link to a folder", Tape::system().link("evil", "bin"), "cannot be created"),
        ("hard link to itself", Tape::system().link("evil", "evil"), "itself"),
        ("a file in a file", Tape::system().file("bin/sh/x", 0o644, b""), "not a directory"),
        (
            "links in a circle",
            Tape::system().symlink("a", "b").symlink("b", "a").file("a/x", 0o644, b""),
            "loop of links",
        ),
    ] {
        store.refuses(what, &tape.end(), words);
    }
}

#[test]
fn ambiguous_archives_are_refused() {
    let store = Store::new();
    let hidden = Tape::default().file("etc/hidden", 0o4755, b"x").0;
    let short = |size: u64| size.to_string().into_bytes();
    let mut no_end = Tape::system().0;
    let mut sized = header("link", EntryType::Link, 0o644);
    sized.set_link_name_literal("bin/sh").unwrap();
    sized.set_size(512);
    sized.set_cksum();
    let mut long = header("././@LongLink", EntryType::GNULongName, 0o644);
    long.set_size(4 << 30);
    long.set_cksum();
    let mut pax_long = header("x", EntryType::XHeader, 0o644);
    pax_long.set_size(1 << 40);
    pax_long.set_cksum();
    let mut damaged = Tape::system().end();
    damaged[0] ^= 1;
    for (what, archive, words) in [
        (
            "a size that hides a member",
            Tape::system().pax(EntryType::XHeader, &[("size", &short(0))]).file("a", 0o644, &hidden).end(),
            "two different sizes",
        ),
        (
            "a size that swallows a member",
            Tape::system().pax(EntryType::XHeader, &[("size", &short(1024))]).file("a", 0o644, b"").end(),
            "two different sizes",
        ),
        (
            "a size before a long name",
            {
                let mut name = header("././@LongLink", EntryType::GNULongName, 0o644);
                name.set_size(4);
                name.set_cksum();
                let tape = Tape::system().pax(EntryType::XHeader, &[("size", &short(2048))]);
                tape.raw(&name, b"name").file("a", 0o644, b"16 bytes of this").file("b", 0o644, b"x").end()
            },
            "two different sizes",
        ),
        ("a link with content", Tape::system().raw(&sized, &[7; 512]).end(), "cannot have any"),
        (
            "a global name",
            Tape::system().pax(EntryType::XGlobalHeader, &[("path", b"x")]).end(),
            "global header",
        ),
        (
            "a NUL in a name",
            Tape::system().pax(EntryType::XHeader, &[("path", b"a\0b")]).file("c", 0o644, b"").end(),
            "NUL",
        ),
        (
            "a name without a member",
            Tape::system().pax(EntryType::XHeader, &[("path", b"a")]).end(),
            "missing member",
        ),
        ("a long name of 4 GiB", Tape::system().raw(&long, b"").end(), "too long"),
        ("an extended header of 1 TiB", Tape::system().raw(&pax_long, b"").end(), "too long"),
        ("an unknown type", Tape::system().special("x", EntryType::new(b'M')).end(), "unknown type"),
        ("no end", std::mem::take(&mut no_end), "truncated"),
        ("half a member", Tape::system().file("a", 0o644, &[1; 9000]).0[..4096].to_vec(), "truncated"),
        ("a damaged header", damaged, "not a tar archive"),
        ("a zip", b"PK\x03\x04".repeat(300), "not a tar archive"),
        ("nothing", Vec::new(), "truncated"),
        ("half a gzip", gzip(&Tape::system().end())[..60].to_vec(), "damaged or incomplete"),
        (
            "a name of 300 bytes",
            Tape::system().pax(EntryType::XHeader, &[("path", &[b'x'; 300])]).file("c", 0o644, b"").end(),
            "too long",
        ),
        (
            "a path of 5000 bytes",
            Tape::system().pax(EntryType::XHeader, &[("path", &b"a/".repeat(2500))]).folder("c", 0o755).end(),
            "too long",
        ),
        (
            "200 folders deep",
            Tape::system().pax(EntryType::XHeader, &[("path", &b"a/".repeat(200))]).folder("c", 0o755).end(),
            "deeper",
        ),
        ("no system", Tape::default().file("readme", 0o644, b"hello").end(), "no /bin/sh"),
    ] {
        store.refuses(what, &archive, words);
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn decompression_bombs_are_stopped() {
    let store = Store::new();
    let zeros = |encoder: &mut dyn std::io::Write| {
        let size = 512_u64 << 20;
        let mut head = header("zeros", EntryType::Regular, 0o644);
        head.set_size(size);
        head.set_cksum();
        encoder.write_all(&Tape::system().raw(&head, b"").0).unwrap();
        let block = vec![0; 1 << 20];
        for _ in 0..size >> 20 {
            encoder.write_all(&block).unwrap();
        }
        encoder.write_all(&[0; 1024]).unwrap();
    };
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zeros(&mut gz);
    store.refuses("a gzip bomb", &gz.finish().unwrap(), "bomb");
    let mut zst = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zeros(&mut zst);
    store.refuses("a zstd bomb", &zst.finish().unwrap(), "bomb");

    let mut sparse = header("sparse", EntryType::GNUSparse, 0o644);
    sparse.as_gnu_mut().unwrap().set_real_size(10 << 30);
    sparse.set_cksum();
    store.refuses("10 GB of nothing", &Tape::system().raw(&sparse, b"").end(), "bomb");
    let mut outside = header("sparse", EntryType::GNUSparse, 0o644);
    let gnu = outside.as_gnu_mut().unwrap();
    gnu.set_real_size(100);
    gnu.sparse[0].set_offset(u64::MAX / 2);
    gnu.sparse[0].set_length(512);
    outside.set_size(512);
    outside.set_cksum();
    store.refuses("a part outside its file", &Tape::system().raw(&outside, &[1; 512]).end(), "outside");

    // Decoders that would allocate all memory: a frame with a window of 2^41, a block with a dictionary of 4 GiB.
    store.refuses("a zstd window", &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00], "memory");
    store.refuses("an xz dictionary", &xz_with_dictionary(40), "memory");

    let many = store.0.path().join("archive");
    {
        let mut out = zstd::Encoder::new(fs::File::create(&many).unwrap(), 1).unwrap();
        out.write_all(&Tape::system().0).unwrap();
        // FIFOs are skipped, so only the limit on the number of entries applies.
        let one = Tape::default().special("f", EntryType::Fifo).0.repeat(1000);
        for _ in 0..1000 {
            out.write_all(&one).unwrap();
        }
        out.write_all(&[0; 1024]).unwrap();
        out.finish().unwrap();
    }
    // With the memory of a small machine.
    let mut command = Command::new("prlimit");
    command
        .args(["--as=500000000", BINARY, "image", "import", "evil"])
        .arg(&many)
        .env("BERTH_DATA_DIR", store.data());
    command.env("HOME", store.0.folder("home"));
    let reply = run(&mut command, secs(120));
    assert_eq!(reply.code, Some(1), "{}{}", reply.stdout, reply.stderr);
    assert!(reply.stderr.contains("more than"), "{}", reply.stderr);
    store.untouched("a million entries");
}

/// An xz file whose block requests a dictionary of this size class, with correct checksums.
fn xz_with_dictionary(class: u8) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    let mut file = vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0, 1];
    file.extend(crc(&[0, 1]));
    // Header of 12 bytes: size, one filter, LZMA2 with one byte of properties, padding.
    let block = [2, 0, 0x21, 1, class, 0, 0, 0];
    file.extend(block);
    file.extend(crc(&block));
    file.extend([1, 0, 0, b'x', 0]);
    file
}

#[test]
fn devices_are_skipped_and_privileges_kept_where_valid() {
    let store = Store::new();
    let mut other_user = header("usr/bin/stranger", EntryType::Regular, 0o6755);
    other_user.set_uid(4_000_000);
    other_user.set_cksum();
    let tape = Tape::system()
        .special("dev/null", EntryType::Char)
        .special("usr/disk", EntryType::Block)
        .special("usr/fifo", EntryType::Fifo)
        .file("usr/bin/sudo", 0o4755, b"x")
        .folder("usr/share", 0o7777)
        .raw(&other_user, b"")
        .pax(
            EntryType::XHeader,
            &[("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\n\0\0\0\0\0\0\0\0\0\0\0\0\0\0")],
        )
        .file("usr/bin/ping", 0o755, b"x")
        .pax(
            EntryType::XHeader,
            &[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.security.selinux", b"x")],
        )
        .folder("usr/opaque", 0o755)
        .file("root.nspawn", 0o644, b"[Exec]\nPrivateUsers=no\n");
    let path = store.0.path().join("archive");
    tape.save(&path);
    let reply = store.image(&["import", "mixed", path.to_str().unwrap(), "--json"]);
    assert_eq!(reply.code, Some(0), "{}", reply.stderr);
    let reply: serde_json::Value = serde_json::from_str(&reply.stdout).unwrap();
    assert_eq!(reply["left_out"], serde_json::json!({"devices": 3, "owners": 1, "attributes": 2}));
    let folder = store.data().join("images").join(reply["id"].as_str().unwrap());
    assert_eq!(
        names(&folder),
        ["image.json", "listing", "root", "unsynced"],
        "a settings file beside the tree"
    );
    let meta = |path: &str| fs::symlink_metadata(folder.join("root").join(path)).unwrap();
    let mode = |path: &str| meta(path).permissions().mode() & 0o7777;
    assert_eq!((mode("usr/bin/sudo"), mode("usr/share"), mode("usr/bin/stranger")), (0o4755, 0o3777, 0o755));
    assert_eq!((meta("usr/bin/stranger").uid(), meta("usr/bin/sudo").uid()), (65534, 0));
    for removed in ["dev/null", "usr/disk", "usr/fifo"] {
        assert!(!folder.join("root").join(removed).exists(), "{removed}");
    }
    let listing = fs::read_to_string(folder.join("listing")).unwrap();
    let ping = listing.lines().find(|line| line.contains("/usr/bin/ping")).unwrap();
    assert!(ping.contains(" security.capability=01000002000a"), "{ping}");
    assert!(!listing.contains("trusted") && !listing.contains("selinux"), "{listing}");
    assert_eq!(store.image(&["verify"]).code, Some(0));
}

/// Trees that GNU tar archives in its different formats, and archives that are safe to pass to it.
#[test]
fn safe_archives_unpack_as_with_gnu_tar() {
    let store = Store::new();
    let scratch = store.0.path().to_owned();
    let source = scratch.join("source");
    for folder in ["bin", "usr/lib", "a/b"] {
        fs::create_dir_all(source.join(folder)).unwrap();
    }
    fs::write(source.join("bin/sh"), "#!").unwrap();
    fs::write(source.join("a/File"), "upper").unwrap();
    fs::write(source.join("a/file"), "lower").unwrap();
    fs::write(source.join("a").join("y".repeat(200)), "long").unwrap();
    fs::write(source.join("a/\u{e4} b\n\\c"), "odd").unwrap();
    fs::hard_link(source.join("a/file"), source.join("usr/lib/same")).unwrap();
    symlink("usr/lib", source.join("lib")).unwrap();
    symlink("/nowhere/".to_owned() + &"z".repeat(300), source.join("a/far")).unwrap();
    let holes = fs::File::create(source.join("a/holes")).unwrap();
    holes.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&holes, b"middle", 1 << 20).unwrap();
    fs::set_permissions(source.join("a/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(source.join("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(source.join("a/b"), Some(1000), Some(2_097_152 % 65536)).unwrap();
    let expected = store.import("folder", &source);
    for format in ["gnu", "oldgnu", "posix", "posix --sparse-version=0.1", "posix --pax-option=delete=atime"]
    {
        for sparse in ["", "-S"] {
            let archive = scratch.join("made.tar");
            let line =
                format!("tar --format={format} {sparse} -C {} -cf {} .", source.display(), archive.display());
            assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success(), "{line}");
            assert_eq!(store.import("tar", &archive), expected, "{line}");
        }
    }
    // With each compression, and in several pieces.
    for tool in ["gzip -c", "xz -0 -c", "zstd -q -c", "sh -c '{ head -c 5000 | gzip; gzip; }'"] {
        let line = format!("{tool} < {0}/made.tar > {0}/packed", scratch.display());
        assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success(), "{line}");
        assert_eq!(store.import("packed", &scratch.join("packed")), expected, "{line}");
    }

    // Duplicate names, names that are a folder, a file and a link in turn, absolute names, links in the tree.
    let tape = Tape::system()
        .folder("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .file("twice", 0o644, b"first")
        .file("twice", 0o600, b"second")
        .file("Twice", 0o644, b"case")
        .file("/absolute", 0o644, b"x")
        .file("./dotted/./file", 0o644, b"x")
        .symlink("turn", "nowhere")
        .file("turn", 0o644, b"file")
        .link("other", "turn")
        .file("turn", 0o644, b"new file")
        .file("sub/deep/er", 0o644, b"no folder before it")
        .folder("empty", 0o700)
        .file("empty", 0o644, b"now a file");
    let path = scratch.join("turns.tar");
    tape.save(&path);
    let by_tar = scratch.join("by-tar");
    fs::create_dir(&by_tar).unwrap();
    let line = format!("umask 022; tar -C {} --numeric-owner -xpf {} 2>&1", by_tar.display(), path.display());
    let reply = run(Command::new("sh").args(["-c", &line]), secs(20));
    assert_eq!(reply.code, Some(0), "{}", reply.stdout);
    assert_eq!(store.import("turns", &path), store.import("by-tar", &by_tar));
    let verified = store.image(&["verify"]);
    assert_eq!(verified.code, Some(0), "{}", verified.stdout);
}

#[test]
fn an_exported_image_is_imported_unchanged() {
    let store = Store::new();
    let path = store.0.path().join("archive");
    Tape::system()
        .folder("etc", 0o755)
        .file("etc/hostname", 0o600, b"old\n")
        .symlink("l", "/x")
        .link("k", "bin/sh")
        .save(&path);
    let id = store.import("first", &path);
    for ending in ["tar", "tar.gz", "tar.zst"] {
        let out = store.0.path().join(format!("out.{ending}"));
        assert_eq!(store.image(&["export", "first", out.to_str().unwrap()]).code, Some(0));
        assert_eq!(store.import(&format!("again-{}", ending.replace('.', "-")), &out), id, "{ending}");
    }
    // GNU tar reads it as well.
    let unpacked = store.0.folder("unpacked");
    let line = format!(
        "tar -C {} --numeric-owner -xpf {}",
        unpacked.display(),
        store.0.path().join("out.tar").display()
    );
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    assert_eq!(store.import("unpacked", &unpacked), id);
    let list = store.image(&["list"]).stdout;
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(list.contains("again-tar,again-tar-gz,again-tar-zst,first,unpacked"), "{list}");
    fs::write(store.tree(&id).join("etc/passwd"), "evil").unwrap();
    let verified = store.image(&["verify", "first"]);
    assert_eq!(verified.code, Some(1));
    assert!(
        verified.stdout.contains("+ f 0644 0 0 4 ") && verified.stdout.contains("/etc/passwd"),
        "{}",
        verified.stdout
    );
    assert_eq!(store.image(&["remove", &id[..8]]).code, Some(0));
    assert_eq!(names(&store.data().join("images/names")), [""; 0]);
    assert_eq!(store.image(&["remove", "first"]).code, Some(1));
}

#[test]
fn an_interrupted_import_leaves_no_files() {
    let store = Store::new();
    let begin = || {
        let mut import = Command::new(BINARY)
            .args(["image", "import", "half", "-"])
            .env("BERTH_DATA_DIR", store.data())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = import.stdin.take().unwrap();
        stdin.write_all(&Tape::system().file("big", 0o644, &vec![7; 4 << 20]).0).unwrap();
        crate::procs::wait_for("something on disk", secs(20), || {
            let half = names(&store.data().join("images"));
            half.iter().any(|name| name.starts_with(".new-")).then_some(())
        });
        (import, stdin)
    };
    fs::write(store.0.path().join("archive"), "").unwrap();
    store.0.folder("home");
    let (mut import, stdin) = begin();
    crate::procs::signal(import.id(), rustix::process::Signal::TERM);
    drop(stdin);
    assert_eq!(import.wait().unwrap().code(), Some(1));
    store.untouched("SIGTERM");
    let (mut import, stdin) = begin();
    import.kill().unwrap();
    import.wait().unwrap();
    drop(stdin);
    // The next command removes the partial files.
    assert_eq!(store.image(&["list"]).code, Some(0));
    store.untouched("SIGKILL");
    let full = Scratch::in_memory();
    let data = full.folder("data");
    let mount =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=300m", "none"]).arg(&data).status().unwrap();
    assert!(mount.success());
    let path = full.path().join("archive");
    Tape::system().file("big", 0o644, &vec![7; 80 << 20]).save(&path);
    let reply = berth(
        &full,
        &["image", "import", "x", path.to_str().unwrap()],
        &[("BERTH_DATA_DIR", data.to_str().unwrap())],
    );
    let remaining = names(&data.join("images"));
    assert!(Command::new("umount").arg(&data).status().unwrap().success());
    assert_eq!(reply.code, Some(1), "{}", reply.stdout);
    assert!(reply.stderr.contains("Not enough free space"), "{}", reply.stderr);
    assert_eq!(remaining, [".lock", "names"]);
}
