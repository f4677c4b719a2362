//! `berth backup` and `berth restore`: beside a running server, at another path, and with damaged or malicious
//! archives. The roots of containers are in `backup_containers`.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tar::EntryType;

use crate::diskfull::SmallDisk;
use crate::procs::{secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{self, BINARY, Ended, NIL, Server, Setup};
use crate::tape::Tape;

/// Runs `berth WORDS --data-dir DATA` with a timeout that suffices for large data.
#[track_caller]
pub fn on(data: &Path, words: &[&str]) -> Ended {
    let mut command = Command::new(BINARY);
    command.args(words).arg(format!("--data-dir={}", data.display()));
    command.env_clear().env("HOME", "/nowhere").env("PATH", std::env::var("PATH").unwrap());
    command.env("OPENWORK_HOST_TOKEN", server::HOST_TOKEN);
    server::run(&mut command, secs(300))
}

#[track_caller]
pub fn backup(server: &Server, file: &Path, flags: &[&str]) {
    let url = format!("--openwork-url=http://{}", server.address);
    let ended = on(&server.data, &[&["backup", file.to_str().unwrap(), &url], flags].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[track_caller]
pub fn restore(file: &Path, data: &Path) {
    let ended = on(data, &["restore", file.to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(names(data.parent().unwrap()).iter().filter(|name| name.starts_with('.')).count(), 0);
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The metadata that a backup preserves.
fn facts(path: &Path) -> (u32, u32, u32, u64, i64, i64, u64) {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let size = if meta.is_dir() { 0 } else { meta.size() };
    (meta.mode(), meta.uid(), meta.gid(), size, meta.mtime(), meta.mtime_nsec(), meta.rdev())
}

/// Creates files of every kind.
fn furnish(folder: &Path) {
    fs::write(folder.join("plain"), "hello").unwrap();
    fs::set_permissions(folder.join("plain"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(folder.join("plain"), folder.join("second name")).unwrap();
    symlink("/etc/passwd", folder.join("link")).unwrap();
    for name in ["before 1970", "just before 1970", "long before 1970"] {
        fs::write(folder.join(name), name).unwrap();
    }
    fs::create_dir(folder.join("closed")).unwrap();
    fs::write(folder.join("closed/ä\n\\"), "odd").unwrap();
    fs::set_permissions(folder.join("closed"), fs::Permissions::from_mode(0o1500)).unwrap();
    let sparse = File::create(folder.join("sparse")).unwrap();
    sparse.write_all_at(b"in the middle", 5 << 20).unwrap();
    sparse.set_len(1 << 30).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    for words in [
        &["mkfifo", &path("fifo")][..],
        &["mknod", &path("device"), "c", "0", "0"],
        &["chown", "--no-dereference", "1234:4000000000", &path("link"), &path("sparse"), &path("fifo")],
        &["python3", "-c", "import os, sys; os.setxattr(sys.argv[1], 'user.mine', b'yours')", &path("plain")],
        &["touch", "-d", "2001-02-03 04:05:06.789012345", &path("plain"), &path("closed")],
        &["touch", "-d", "@-1.25", &path("before 1970")],
        &["touch", "-d", "@-0.5", &path("just before 1970")],
        &["touch", "-d", "@-1234567890", &path("long before 1970")],
    ] {
        let ended = server::run(Command::new(words[0]).args(&words[1..]), secs(20));
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn a_running_server_is_backed_up_and_restored_at_another_path() {
    let setup = Setup::new();
    let server = setup.start();
    let owner = server.owner();
    let created = owner.post(200, "/api/workspaces", json!({"name": "inside"}));
    let (id, folder) = (created["id"].as_str().unwrap(), PathBuf::from(created["path"].as_str().unwrap()));
    assert!(folder.starts_with(&server.data));
    furnish(&folder);
    let run = |command: &str, detach: bool| {
        let body = json!({"command": command, "detach": detach});
        let run = owner.post(201, &format!("/api/workspaces/{NIL}/runs"), body);
        format!("/api/workspaces/{NIL}/runs/{}", run["id"].as_str().unwrap())
    };
    let ended = run("echo first; exit 3", false);
    owner.post(200, &format!("{ended}/wait?timeout_secs=30"), json!({}));
    let goes_on = run("sleep 4711", true);
    let openwork = |server: &Server| {
        let all = server.owner().get(200, "/workspaces")["items"].clone();
        let found =
            all.as_array().unwrap().iter().find(|one| one["path"].as_str().unwrap().contains(id)).cloned();
        found.unwrap()["id"].as_str().unwrap().to_owned()
    };
    let limited = json!({"scope": "collaborator", "workspaceIds": [openwork(&server)]});
    let limited = owner.post(201, "/tokens", limited)["token"].as_str().unwrap().to_owned();
    server.with_token(&limited).get(200, &format!("/workspace/{}/audit", openwork(&server)));

    setup.scratch().file("data/sandbox/home/file", "kept");
    symlink("file", server.data.join("sandbox/home/link")).unwrap();
    // No link is expected there, and links are not followed.
    symlink("/etc/passwd", server.data.join("audit/link")).unwrap();

    // A process writes during the backup.
    let file = setup.scratch().path().join("backup.tar.zst");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                owner.post(201, "/tokens", json!({"scope": "viewer"}));
                let body = json!({"command": "head -c 100000 /dev/urandom"});
                owner.post(201, &format!("/api/workspaces/{NIL}/runs"), body);
            }
        });
        backup(&server, &file, &[]);
        stop.store(true, Ordering::Relaxed);
    });
    let again = on(&server.data, &["backup", file.to_str().unwrap()]);
    assert!(again.code == Some(2) && again.stderr.contains("exists already"), "{again:?}");
    let listed = server::run(Command::new("tar").args(["--zstd", "-tf"]).arg(&file), secs(60));
    assert!(
        listed.stdout.starts_with("backup.json\ndata/\n") && listed.stdout.ends_with("\nsums\n"),
        "{listed:?}"
    );

    let other = setup.scratch().path().join("else/where");
    restore(&file, &other);
    assert_eq!(facts(&other).0 & 0o7777, 0o700);
    let restored = setup.clone().data(&other).start();
    assert_eq!(server::read(other.join("sandbox/home/link")), "kept");
    assert!(!other.join("audit/link").exists());
    let there = other.join("workspaces").join(id).join("files");
    for name in names(&folder) {
        assert_eq!(facts(&folder.join(&name)), facts(&there.join(&name)), "{name}");
    }
    assert_eq!(fs::read_link(there.join("link")).unwrap(), Path::new("/etc/passwd"));
    let ino = |name: &str| fs::metadata(there.join(name)).unwrap().ino();
    assert_eq!(ino("plain"), ino("second name"));
    assert_eq!(facts(&folder.join("closed/ä\n\\")), facts(&there.join("closed/ä\n\\")));
    let script = "import os, sys; print(os.getxattr(sys.argv[1], 'user.mine').decode())";
    let kept = server::run(Command::new("python3").args(["-c", script]).arg(there.join("plain")), secs(20));
    assert_eq!(kept.stdout, "yours\n", "{kept:?}");
    let sparse = fs::metadata(there.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    let mut middle = [0; 13];
    File::open(there.join("sparse")).unwrap().read_exact_at(&mut middle, 5 << 20).unwrap();
    assert_eq!(&middle, b"in the middle");

    assert_eq!(restored.owner().get(200, &format!("/api/workspaces/{id}"))["path"], there.to_str().unwrap());
    assert_ne!(openwork(&server), openwork(&restored));
    restored.with_token(&limited).get(200, &format!("/workspace/{}/audit", openwork(&restored)));
    assert_eq!(restored.owner().get(200, &ended)["exit_code"], 3);
    assert_eq!(restored.owner().call("GET", &format!("{ended}/output"), None).text(), "first\n");
    let lost = restored.owner().get(200, &goes_on);
    assert!(lost["status"] != "running" && lost["status"] != "exited", "{lost}");
    assert_eq!(server.owner().get(200, &goes_on)["status"], "running", "the original is still running");
    assert!(!restored.owner().get(200, "/tokens")["items"].as_array().unwrap().is_empty());
    server.owner().call("DELETE", &goes_on, None).expect(204);
    drop(restored);

    // An existing folder is replaced only with --replace, and never while a server uses it.
    let words = ["restore", file.to_str().unwrap()];
    let full = on(&other, &words);
    assert!(full.code == Some(2) && full.stderr.contains("--replace"), "{full:?}");
    let strange = setup.scratch().folder("strange");
    fs::write(strange.join("mine"), "x").unwrap();
    let refused = on(&strange, &[&words[..], &["--replace"]].concat());
    assert!(refused.code == Some(2) && refused.stderr.contains("no data folder of berth"), "{refused:?}");
    assert_eq!(names(&strange), ["mine"]);
    let running = on(&server.data, &[&words[..], &["--replace"]].concat());
    assert!(running.code == Some(2) && running.stderr.contains("another berth"), "{running:?}");
    fs::write(other.join("mine"), "x").unwrap();
    let replaced = on(&other, &[&words[..], &["--replace"]].concat());
    assert_eq!(replaced.code, Some(0), "{replaced:?}");
    assert!(!other.join("mine").exists() && names(other.parent().unwrap()) == ["where"]);
    // Also a folder that no server has used yet.
    let again = on(&other, &[&words[..], &["--replace"]].concat());
    assert_eq!(again.code, Some(0), "{again:?}");
    // Backup through a pipe, without a server.
    drop(server);
    let pipe = setup.scratch().path().join("pipe");
    let script = r#""$0" backup - --data-dir "$1" | "$0" restore - --data-dir "$2""#;
    let mut piped = Command::new("sh");
    piped.args(["-c", script, BINARY]).arg(&other).arg(&pipe);
    let piped = server::run(&mut piped, secs(120));
    assert_eq!(piped.code, Some(0), "{piped:?}");
    assert_eq!(names(&pipe.join("workspaces")), names(&other.join("workspaces")));
}

const INFO: &str =
    r#"{"format": 1, "data_format": 1, "version": "0", "created_at": "", "containers": true, "paths": {}}"#;

fn begun() -> Tape {
    Tape::default().file("backup.json", 0o600, INFO.as_bytes()).folder("data/", 0o700)
}

fn save(tape: Tape, path: &Path) {
    fs::write(path, zstd::encode_all(&tape.end()[..], 1).unwrap()).unwrap();
}

#[test]
fn malicious_archives_are_refused() {
    let scratch = Scratch::new();
    let (file, data) = (scratch.path().join("archive"), scratch.path().join("data"));
    let outside = scratch.folder("outside");
    let away = outside.to_str().unwrap();
    let newer = |field: &str| {
        Tape::default().file(
            "backup.json",
            0o600,
            INFO.replace(&format!("{field}\": 1"), &format!("{field}\": 9")).as_bytes(),
        )
    };
    let id = "0".repeat(8) + "-0000-4000-8000-000000000000";
    let root = format!("data/workspaces/{id}/root");
    for (what, tape, code, words) in [
        ("nothing", Tape::default(), 1, "its checksums"),
        ("something else", Tape::system(), 1, "not a backup of berth"),
        ("a newer archive", newer("\"format"), 3, "archive format 9"),
        ("newer data", newer("data_format"), 3, "data format 9"),
        ("no checksums", begun().file("data/format", 0o600, b"1\n"), 1, "its checksums"),
        ("empty checksums", begun().file("sums", 0o600, b""), 1, "damaged or was changed"),
        ("false checksums", begun().file("sums", 0o600, b"f 0600\n"), 1, "damaged or was changed"),
        ("more behind them", begun().file("sums", 0o600, b"").file("data/x", 0o600, b""), 1, "damaged"),
        ("a way out", begun().file("data/../../evil", 0o600, b"x"), 1, ".."),
        ("a way out in the middle", begun().file("data/x/../../../evil", 0o600, b"x"), 1, ".."),
        ("an absolute name", begun().file("/evil", 0o600, b"x"), 1, "unexpected entry"),
        ("another name", begun().file("evil", 0o600, b"x"), 1, "unexpected entry"),
        ("a name that looks like it", begun().file("data2/evil", 0o600, b"x"), 1, "unexpected entry"),
        ("a link for the folder", begun().symlink("data", away), 1, "unexpected entry"),
        ("a link in it", begun().symlink("data/workspaces", away), 1, "link or device"),
        ("a link for a record", begun().symlink("data/tokens.json", "/etc/passwd"), 1, "link or device"),
        ("a link for a layer", begun().symlink("data/layers/x", away), 1, "link or device"),
        ("a device", begun().special("data/format", EntryType::Char), 1, "link or device"),
        (
            "another name of a secret",
            begun().file("data/private_key", 0o600, b"k").link(&format!("{root}/k"), "data/private_key"),
            1,
            "link or device",
        ),
        (
            "a file behind a link",
            begun().symlink(&format!("{root}/etc"), away).file(&format!("{root}/etc/evil"), 0o644, b"x"),
            1,
            "behind a link",
        ),
        (
            "a file twice",
            begun().file("data/format", 0o600, b"1").file("data/format", 0o600, b"2"),
            1,
            "twice",
        ),
        (
            "a file for a folder",
            begun().file("data/a", 0o600, b"").file("data/a/b", 0o600, b""),
            1,
            "not a directory",
        ),
    ] {
        save(tape, &file);
        let ended = on(&data, &["restore", file.to_str().unwrap()]);
        assert_eq!(ended.code, Some(code), "{what}: {ended:?}");
        assert!(ended.stderr.contains(words), "{what}: {ended:?}");
        assert!(ended.stderr.contains(file.to_str().unwrap()), "{what}: {ended:?}");
        assert_eq!(names(scratch.path()), ["archive", "outside"], "{what}");
        assert!(names(&outside).is_empty(), "{what}");
    }
}

#[test]
fn damage_anywhere_in_an_archive_is_detected() {
    let setup = Setup::new();
    setup.start().stop();
    setup.scratch().file("data/library/script.sh", "#!/bin/sh\n".repeat(500));
    let file = setup.scratch().path().join("backup");
    let ended = on(setup.data_dir(), &["backup", file.to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let whole = fs::read(&file).unwrap();
    let scratch = Scratch::new();
    let (file, data) = (scratch.path().join("damaged"), scratch.path().join("data"));
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&file, bytes).unwrap();
        let ended = on(&data, &["restore", file.to_str().unwrap()]);
        assert_eq!(ended.code, Some(1), "{what}: {ended:?}");
        assert_eq!(names(scratch.path()), ["damaged"], "{what}");
    };
    for cut in [0, 1, 100, whole.len() / 2, whole.len() - 5, whole.len() - 1] {
        refused(&whole[..cut], &format!("cut after {cut} of {} bytes", whole.len()));
    }
    // The archive repacked by an attacker: contents, modes and names are all covered by the checksums.
    let plain = zstd::decode_all(&whole[..]).unwrap();
    let at = |text: &str| plain.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap();
    let mut edited = plain.clone();
    edited[at("#!/bin/sh\n") + 3] ^= 1;
    refused(&zstd::encode_all(&edited[..], 1).unwrap(), "an edited file");
    refused(&edited, "an edited file, not compressed");
    let member = at("data/library/script.sh") / 512 * 512;
    let mut edited = plain.clone();
    edited[member + 104] = b'7';
    let sum: u32 = edited[member..member + 512]
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    edited[member + 148..member + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    refused(&zstd::encode_all(&edited[..], 1).unwrap(), "an edited mode");
    fs::write(&file, &plain).unwrap();
    restore(&file, &data);
}

#[test]
fn a_full_disk_leaves_neither_a_backup_nor_a_data_folder() {
    let setup = Setup::new();
    setup.start().stop();
    let noise = server::run(
        Command::new("dd")
            .args(["if=/dev/urandom", "bs=1M", "count=4", "status=none"])
            .arg(format!("of={}", setup.data_dir().join("library/noise").display())),
        secs(60),
    );
    assert_eq!(noise.code, Some(0), "{noise:?}");
    let disk = SmallDisk::new(&setup, "2m");
    let ended = on(setup.data_dir(), &["backup", disk.0.join("backup").to_str().unwrap()]);
    assert!(ended.code == Some(1) && ended.stderr.contains("disk"), "{ended:?}");
    assert!(names(&disk.0).is_empty());
    let file = setup.scratch().path().join("backup");
    let ended = on(setup.data_dir(), &["backup", file.to_str().unwrap()]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let ended = on(&disk.0.join("data"), &["restore", file.to_str().unwrap()]);
    assert!(ended.code == Some(1) && ended.stderr.contains("space"), "{ended:?}");
    let free = format!("are free in {};", disk.0.display());
    for said in [file.to_str().unwrap(), "The backup needs 2", " MiB, and 2.0 MiB ", &free] {
        assert!(ended.stderr.contains(said), "{said}: {ended:?}");
    }
    assert!(names(&disk.0).is_empty());
    // A mount point cannot be replaced.
    let ended = on(&disk.0, &["restore", file.to_str().unwrap()]);
    assert!(ended.code != Some(0), "{ended:?}");
    assert!(names(&disk.0).is_empty());
}

#[test]
fn a_killed_backup_or_restore_leaves_no_partial_result() {
    let setup = Setup::new();
    setup.start().stop();
    let big = File::create(setup.data_dir().join("library/big")).unwrap();
    let mut noise = File::open("/dev/urandom").unwrap();
    std::io::copy(&mut std::io::Read::take(&mut noise, 64 << 20), &mut &big).unwrap();
    let folder = setup.scratch().folder("out");
    let begin = |words: &[&str], data: &Path| {
        let mut command = Command::new(BINARY);
        command.args(words).arg(format!("--data-dir={}", data.display()));
        command.env_clear().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let file = folder.join("backup");
    let words = ["backup", file.to_str().unwrap()];
    let mut first = begin(&words, setup.data_dir());
    // The file has no name yet.
    wait_for("the backup to begin", secs(60), || writes_into(first.id(), &folder).then_some(()));
    assert!(names(&folder).is_empty());
    // Two at once.
    let second = on(setup.data_dir(), &["backup", folder.join("other").to_str().unwrap()]);
    let _ = first.kill();
    first.wait().unwrap();
    assert!(second.code == Some(1) && second.stderr.contains("Another berth backup"), "{second:?}");
    assert!(names(&folder).is_empty());
    // What an older version, or one on a file system without unnamed files, has left goes with the next backup into the
    // folder, whatever that is called; what is still written to stays.
    let part = |name: &str| folder.join(format!(".{name}.part-{}", uuid::Uuid::new_v4()));
    let (left, busy, fifo) = (part("other"), part("busy"), part("fifo"));
    fs::write(&left, "half").unwrap();
    let held = File::create(&busy).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert_eq!(server::run(Command::new("mkfifo").arg(&fifo), secs(20)).code, Some(0));
    let ended = on(setup.data_dir(), &words);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!left.exists() && busy.exists() && fifo.exists());
    fs::remove_file(&busy).unwrap();
    fs::remove_file(&fifo).unwrap();
    assert_eq!(names(&folder), ["backup"]);

    let there = setup.scratch().folder("there");
    let data = there.join("data");
    let words = ["restore", file.to_str().unwrap()];
    let mut first = begin(&words, &data);
    wait_for("the restore to begin", secs(60), || (!names(&there).is_empty()).then_some(()));
    let _ = first.kill();
    first.wait().unwrap();
    assert!(!data.exists(), "{:?}", names(&there));
    // Two restores at the same time: one of them wins.
    let mut first = begin(&words, &data);
    let second = on(&data, &words);
    let first = first.wait().unwrap();
    assert!(first.success() != (second.code == Some(0)), "{first:?} {second:?}");
    let remaining =
        wait_for("the folder to be clean", secs(30), || Some(names(&there)).filter(|names| names.len() == 1));
    assert_eq!(remaining, ["data"]);
    setup.clone().data(&data).start().stop();
}

/// Whether a process writes a file without a name in this folder.
fn writes_into(pid: u32, folder: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path.starts_with(folder))
}

#[test]
fn an_interrupt_ends_a_backup_in_the_middle_of_a_file() {
    let setup = Setup::new();
    setup.start().stop();
    let big = File::create(setup.data_dir().join("library/big")).unwrap();
    let mut noise = File::open("/dev/urandom").unwrap();
    std::io::copy(&mut std::io::Read::take(&mut noise, 32 << 20), &mut &big).unwrap();
    let mut command = Command::new(BINARY);
    command.args(["backup", "-"]).arg(format!("--data-dir={}", setup.data_dir().display()));
    let mut child = command.env_clear().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut out, &mut vec![0; 1 << 20]).unwrap();
    crate::procs::signal(child.id(), rustix::process::Signal::INT);
    let tasks = format!("/proc/{}/task", child.id());
    wait_for("the interrupt to be seen", secs(60), || {
        let names = fs::read_dir(&tasks).ok()?.flatten();
        let waits = names
            .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
            .any(|name| name == "interrupt\n");
        (!waits).then_some(())
    });
    let rest = std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("cancelled"), "{ended:?}");
    assert!(rest < 16 << 20, "{rest} bytes came afterwards");
}

#[test]
fn a_restore_follows_a_link_and_names_what_is_wrong() {
    let setup = Setup::new();
    let server = setup.start();
    let owner = server.owner();
    let made = owner.post(200, "/api/workspaces", json!({"name": "box", "workspace_type": "container"}));
    server.stop();
    let scratch = Scratch::new();
    let file = scratch.path().join("archive");
    let name = file.to_str().unwrap();
    let record = setup.data_dir().join("workspaces").join(made["id"].as_str().unwrap()).join("root.json");
    fs::write(&record, "{").unwrap();
    let damaged = on(setup.data_dir(), &["backup", name]);
    assert!(damaged.code == Some(1) && damaged.stderr.contains("root.json is damaged"), "{damaged:?}");
    assert!(damaged.stderr.contains("--without-containers"), "{damaged:?}");
    fs::remove_file(&record).unwrap();
    assert_eq!(on(setup.data_dir(), &["backup", name]).code, Some(0));

    let (folder, link) = (scratch.folder("there/empty"), scratch.path().join("link"));
    symlink(&folder, &link).unwrap();
    let done = on(&link, &["restore", name]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && folder.join("workspaces").is_dir());
    assert_eq!(names(folder.parent().unwrap()), ["empty"]);
    let again = on(&link, &["restore", name, "--replace"]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(names(folder.parent().unwrap()), ["empty"]);
    let nowhere = scratch.path().join("nowhere");
    symlink("/nowhere/at/all", &nowhere).unwrap();
    for (target, said) in [(&nowhere, "a link that leads nowhere"), (&file, "is not a folder")] {
        let refused = on(target, &["restore", name]);
        assert!(refused.code == Some(2) && refused.stderr.contains(said), "{refused:?}");
    }
    let refused = on(&scratch.path().join("new"), &["restore", folder.to_str().unwrap()]);
    assert!(refused.code == Some(2) && refused.stderr.contains("is a folder, not a backup"), "{refused:?}");

    // A version and a time that steer a terminal, in an archive that is right otherwise.
    let plain = zstd::decode_all(&fs::read(&file).unwrap()[..]).unwrap();
    let size = usize::from_str_radix(std::str::from_utf8(&plain[124..135]).unwrap(), 8).unwrap();
    let info = std::str::from_utf8(&plain[512..512 + size]).unwrap().to_owned();
    let time =
        json!(serde_json::from_str::<serde_json::Value>(&info).unwrap()["created_at"].as_str().unwrap());
    let length = time.as_str().unwrap().len();
    let evil = info.replace(time.as_str().unwrap(), &format!("{:x<length$}", "\\u001b[31m"));
    assert_eq!(evil.len(), size);
    let digest = |text: &str| {
        let path = scratch.file("info", text);
        let summed = server::run(Command::new("sha256sum").arg(path), secs(20));
        summed.stdout.split(' ').next().unwrap().to_owned()
    };
    let (before, after) = (digest(&info), digest(&evil));
    let mut edited = plain.clone();
    edited[512..512 + size].copy_from_slice(evil.as_bytes());
    let at = edited.windows(64).position(|bytes| bytes == before.as_bytes()).unwrap();
    edited[at..at + 64].copy_from_slice(after.as_bytes());
    fs::write(&file, edited).unwrap();
    let shown = on(&scratch.path().join("evil"), &["restore", name]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stderr.contains("\\u{1b}[31m") && !shown.stderr.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn wrong_arguments_are_refused() {
    let scratch = Scratch::new();
    let data = scratch.folder("data");
    let file = scratch.path().join("file");
    let file = file.to_str().unwrap();
    let used = scratch.folder("used/workspaces");
    let inside = used.join("file");
    let inside = inside.to_str().unwrap();
    for (words, expected) in [
        (&["backup"][..], "say `berth backup FILE`"),
        (&["backup", "a", "b"], "say `berth backup FILE`"),
        (&["backup", file, "--containers", "--without-containers"], "contradicts"),
        (&["backup", file, "--nonsense"], "unknown flag"),
        (&["backup", file], "has no data of berth"),
        (&["backup", inside], "is in the data folder itself"),
        (&["restore"], "say `berth restore FILE`"),
        (&["restore", file], "No such file"),
        (&["restore", file, "--data-dir"], "needs a value"),
    ] {
        let data = if words.contains(&inside) { used.parent().unwrap() } else { &data };
        let refused = on(data, words);
        assert!(refused.code == Some(2) && refused.stderr.contains(expected), "{words:?}: {refused:?}");
    }
    assert!(names(&data).is_empty());
}
