//! The inbox and the outbox of a workspace: files to agents and from agents, of any size and with any name, and never
//! outside of the workspace.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::fixture::{Place, shared_box};
use crate::procs::{self, secs, wait_for};
use crate::server::{HOST_TOKEN, Server, Setup, run};
use crate::wire::connect;

const INBOX: &str = ".opencode/openwork/inbox";
pub const OUTBOX: &str = ".opencode/openwork/outbox";
const BOUNDARY: &str = "----berth-test-3f9a";

/// A server in automatic mode, the URL path of its workspace, and the workspace's folder.
pub struct Trays {
    pub server: Server,
    pub path: String,
    pub work: PathBuf,
}

impl Trays {
    pub fn new(setup: Setup) -> Trays {
        let server = setup.start();
        let id = server.owner().get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
        let work = server.work.clone();
        Trays { server, path: format!("/workspace/{id}"), work }
    }

    pub fn auto() -> Trays {
        Trays::new(Setup::new().arg("--approval=auto"))
    }

    pub fn client(&self) -> Client {
        self.server.collaborator()
    }

    pub fn upload(&self, call: &str, parts: &[(&str, &[u8])]) -> Reply {
        upload(&self.client(), &format!("{}{call}", self.path), parts)
    }

    pub fn put(&self, name: &str, text: &[u8]) -> Reply {
        self.upload("/inbox", &[(&format!("name=\"file\"; filename=\"{name}\""), text)])
    }

    #[track_caller]
    fn refused(&self, status: u16, code: &str, reply: Reply) -> Value {
        let response = reply.expect(status).value();
        assert_eq!(response["code"], code, "{response}");
        self.no_partial_uploads();
        response
    }

    #[track_caller]
    fn no_partial_uploads(&self) {
        let remaining = temps(&self.work);
        assert!(remaining.is_empty(), "{remaining:?}");
    }

    /// Puts a file into the outbox and returns the path of its download.
    pub fn offer(&self, path: &str, text: &[u8]) -> String {
        let file = self.work.join(OUTBOX).join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        self.artifact(path)
    }

    fn artifact(&self, path: &str) -> String {
        format!("{}/artifacts/{}", self.path, id_of(path))
    }
}

pub fn id_of(path: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(path)
}

fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (disposition, data) in parts {
        write!(body, "--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n").unwrap();
        body.extend_from_slice(data);
        body.extend_from_slice(b"\r\n");
    }
    write!(body, "--{BOUNDARY}--\r\n").unwrap();
    body
}

fn upload(client: &Client, path: &str, parts: &[(&str, &[u8])]) -> Reply {
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    client.send("POST", path, &[("Content-Type", &kind)], Some(&form(parts)))
}

/// Temporary files below `folder`.
fn temps(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(temps(&path));
        } else if entry.file_name().to_string_lossy().starts_with(".tmp-") {
            found.push(path);
        }
    }
    found
}

#[test]
fn curl_uploads_and_downloads() {
    let trays = Trays::auto();
    let source = trays.server.scratch().file("großes bild.png", vec![7; 3_000_000]);
    let url = |call: &str| format!("http://{}{}{call}", trays.server.address, trays.path);
    let curl = |args: &[&str]| {
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--fail-with-body", "-H", &format!("Authorization: Bearer {HOST_TOKEN}")])
            .args(args);
        let ended = run(command.current_dir(trays.server.scratch().folder("got")), secs(60));
        assert_eq!(ended.code, Some(0), "{args:?}: {}{}", ended.stdout, ended.stderr);
        ended.stdout
    };
    let reply = curl(&["-F", &format!("file=@{}", source.display()), &url("/inbox")]);
    let reply: Value = serde_json::from_str(&reply).unwrap();
    assert_eq!(reply, json!({"ok": true, "path": "großes bild.png", "bytes": 3_000_000}));
    assert_eq!(fs::read(trays.work.join(INBOX).join("großes bild.png")).unwrap(), vec![7; 3_000_000]);
    // Chunked, from a pipe, and with the path after the file, as the OpenWork app sends it.
    let piped = format!(
        "head -c 200000 /dev/zero | curl -sS --fail-with-body -H 'Authorization: Bearer {HOST_TOKEN}' \
         -H 'Transfer-Encoding: chunked' -F 'file=@-;filename=x' -F path=a/b/zeros '{}'",
        url("/inbox")
    );
    let ended = run(Command::new("bash").args(["-c", &piped]), secs(60));
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert_eq!(fs::metadata(trays.work.join(INBOX).join("a/b/zeros")).unwrap().len(), 200_000);
    // It is saved under its own name, in any script.
    let artifact = trays.offer("报告/résumé \"1\".txt", b"hello");
    curl(&["-OJ", &format!("http://{}{artifact}", trays.server.address)]);
    let got = trays.server.scratch().path().join("got");
    let names: Vec<_> = fs::read_dir(&got).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(fs::read(got.join(&names[0])).unwrap(), b"hello");
}

#[test]
fn the_inbox_answers_as_observed() {
    let trays = Trays::auto();
    let file = |name: &str| format!("name=\"file\"; filename=\"{name}\"");
    let accepted = |reply: Reply| reply.expect(200).value();
    assert_eq!(accepted(trays.put("a.txt", b"one")), json!({"ok": true, "path": "a.txt", "bytes": 3}));
    // The query has precedence over the form field, which has precedence over the file name; the last field wins and
    // replaces an existing file.
    let (path, x) = ("name=\"path\"", file("a.txt"));
    for (call, parts, want) in [
        ("/inbox", vec![(x.as_str(), b"2".as_slice()), (path, b"form.txt")], "form.txt"),
        ("/inbox", vec![(path, b"/etc/first"), (x.as_str(), b"3")], "etc/first"),
        ("/inbox?path=q%20q%5Cdeep", vec![(path, b"form.txt"), (x.as_str(), b"4")], "q q/deep"),
        ("/inbox?path=", vec![(x.as_str(), b"5")], "a.txt"),
    ] {
        assert_eq!(
            accepted(trays.upload(call, &parts)),
            json!({"ok": true, "path": want, "bytes": 1}),
            "{call} {want}"
        );
    }
    assert_eq!(fs::read(trays.work.join(INBOX).join("a.txt")).unwrap(), b"5");
    // The observed server returned 500 here; berth stores the file and returns its path.
    assert_eq!(accepted(trays.put("empty", b"")), json!({"ok": true, "path": "empty", "bytes": 0}));
    let meta = fs::metadata(trays.work.join(INBOX).join("q q/deep")).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o644);
    for bad in ["..", "../x", "a/../b", "a/./b", ".", "a\u{0}b"] {
        let reply = trays.upload("/inbox", &[(&file("x"), b"1"), (path, bad.as_bytes())]);
        trays.refused(400, "invalid_path", reply);
        let reply = trays.upload(&format!("/inbox?path={}", bad.replace('\0', "%00")), &[(&file("x"), b"1")]);
        trays.refused(400, "invalid_path", reply);
    }
    trays.refused(400, "file_required", trays.upload("/inbox", &[(path, b"a")]));
    trays.refused(400, "file_required", trays.upload("/inbox", &[("name=\"file\"", b"a text")]));
    trays.refused(400, "file_required", trays.upload("/inbox", &[(&file(""), b"")]));
    trays.refused(400, "invalid_payload", trays.upload("/inbox", &[(&file("a"), b"1"), (&file("b"), b"2")]));
    trays.refused(
        400,
        "invalid_payload",
        trays.client().call("POST", &format!("{}/inbox", trays.path), Some(&json!({}))),
    );
    let call = format!("{}/inbox", trays.path);
    for (kind, body) in [
        (format!("multipart/form-data; boundary={BOUNDARY}"), b"no boundary at all".to_vec()),
        (format!("multipart/form-data; boundary={BOUNDARY}"), form(&[(&file("x"), b"1")])[..80].to_vec()),
        ("multipart/form-data".into(), form(&[(&file("x"), b"1")])),
        ("multipart/mixed; boundary=x".into(), b"--x--".to_vec()),
    ] {
        let reply = trays.client().send("POST", &call, &[("Content-Type", &kind)], Some(&body));
        let response = reply.expect(400).value();
        assert!(
            ["invalid_payload", "invalid_request"].contains(&response["code"].as_str().unwrap()),
            "{response}"
        );
    }
    let items = trays.client().get(200, &call)["items"].as_array().unwrap().clone();
    assert_eq!(items.len(), 5, "{items:?}");
    let deep = items.iter().find(|item| item["path"] == "q q/deep").unwrap();
    assert_eq!(
        (&deep["name"], &deep["size"], &deep["id"]),
        (&json!("deep"), &json!(1), &json!(id_of("q q/deep")))
    );
    let got = trays.client().call("GET", &format!("{call}/{}", id_of("q q/deep")), None).expect(200);
    assert_eq!(got.text(), "4");
    trays.client().refused(404, "inbox_item_not_found", "GET", &format!("{call}/{}", id_of("no")), None);
    trays.client().refused(400, "invalid_inbox_item", "GET", &format!("{call}/{}", id_of("../x")), None);
    trays.client().refused(404, "workspace_not_found", "GET", "/workspace/ws_0123456789ab/inbox", None);
}

#[test]
fn the_upload_limit_is_exact_and_refused_early() {
    let setup = Setup::new().arg("--approval=auto").env("OPENWORK_INBOX_MAX_BYTES", "200000");
    let trays = Trays::new(setup);
    trays.put("fits", &vec![1; 200_000]).expect(200);
    let reply = trays.refused(413, "file_too_large", trays.put("x", &vec![1; 200_001]));
    assert_eq!(reply["details"], json!({"maxBytes": 200_000, "size": 200_001}));
    let reply = trays.refused(413, "file_too_large", trays.put("x", &vec![1; 300_000]));
    assert_eq!(reply["details"]["size"], 300_000);
    // A terabyte is refused by its Content-Length.
    let mut stream = connect(&trays.server);
    let head = format!(
        "POST {}/inbox HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: 1000000000000\r\n\r\n",
        trays.path
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 413");
    // A chunked upload without end is refused during the transfer.
    let mut stream = connect(&trays.server);
    let head = head.replace("Content-Length: 1000000000000", "Transfer-Encoding: chunked");
    let begin = form(&[("name=\"file\"; filename=\"x\"", b"")]);
    let length = begin.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
    stream.write_all(format!("{head}{length:x}\r\n").as_bytes()).unwrap();
    stream.write_all(&begin[..length]).unwrap();
    stream.write_all(b"\r\n").unwrap();
    let chunk = [format!("{:x}\r\n", 50_000).into_bytes(), vec![b'x'; 50_000], b"\r\n".to_vec()].concat();
    // Until the server disconnects.
    for _ in 0..1000 {
        if stream.write_all(&chunk).is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(
        String::from_utf8_lossy(&answer).contains("file_too_large"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    trays.no_partial_uploads();
    assert_eq!(fs::read_dir(trays.work.join(INBOX)).unwrap().count(), 1);
}

#[test]
fn disabled_trays_are_reported() {
    let setup = Setup::new().args(&["--approval=auto"]);
    let trays = Trays::new(setup.env("OPENWORK_INBOX_ENABLED", "0").env("OPENWORK_OUTBOX_ENABLED", "0"));
    let artifact = trays.offer("x", b"x");
    trays.refused(404, "inbox_disabled", trays.put("x", b"1"));
    let (call, client) = (|call: &str| format!("{}{call}", trays.path), trays.client());
    client.refused(404, "inbox_disabled", "GET", &call("/inbox/eA"), None);
    client.refused(404, "outbox_disabled", "GET", &artifact, None);
    assert_eq!(client.get(200, &call("/inbox")), json!({"items": []}));
    assert_eq!(client.get(200, &call("/artifacts")), json!({"items": []}));
}

#[test]
fn upload_conflicts_are_reported_and_leave_no_files() {
    let trays = Trays::auto();
    let inbox = trays.work.join(INBOX);
    trays.put("file", b"1").expect(200);
    fs::create_dir_all(inbox.join("folder/inside")).unwrap();
    for path in ["folder", "folder/inside", "file/below"] {
        trays.refused(
            400,
            "invalid_path",
            trays.upload(&format!("/inbox?path={path}"), &[("name=file; filename=x", b"1")]),
        );
        // Only known after the file.
        let parts: [(&str, &[u8]); 2] = [("name=file; filename=x", b"1"), ("name=path", path.as_bytes())];
        trays.refused(400, "invalid_path", trays.upload("/inbox", &parts));
    }
    let secret = trays.server.scratch().file("outside/secret", "secret");
    symlink(secret.parent().unwrap(), inbox.join("out")).unwrap();
    symlink(&secret, inbox.join("link")).unwrap();
    trays.refused(
        400,
        "invalid_path",
        trays.upload("/inbox?path=out/new", &[("name=file; filename=x", b"1")]),
    );
    trays.refused(
        400,
        "invalid_path",
        trays.upload("/inbox?path=out/secret", &[("name=file; filename=x", b"1")]),
    );
    // A link itself is replaced, not followed.
    trays.put("link", b"mine").expect(200);
    assert_eq!(fs::read(inbox.join("link")).unwrap(), b"mine");
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
    assert_eq!(fs::read_dir(secret.parent().unwrap()).unwrap().count(), 1);
    for (name, link) in
        [(".opencode/openwork/inbox", "inbox"), (".opencode/openwork", "openwork"), (".opencode", "opencode")]
    {
        let path = trays.work.join(name);
        fs::rename(&path, trays.work.join(format!("{link}.real"))).unwrap();
        symlink(secret.parent().unwrap(), &path).unwrap();
        trays.refused(400, "invalid_path", trays.put("x", b"1"));
        fs::remove_file(&path).unwrap();
        fs::rename(trays.work.join(format!("{link}.real")), &path).unwrap();
    }
    assert_eq!(fs::read_dir(secret.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_large_upload_is_complete_and_uses_little_memory() {
    // More than the 128 MiB at which the OpenWork server cut an upload that it had promised to accept.
    const SIZE: usize = 140_000_000;
    let trays = Trays::new(Setup::new().arg("--approval=auto").env("OPENWORK_INBOX_MAX_BYTES", "150000000"));
    trays.put("first", &vec![1; 200_000]).expect(200);
    let resting = procs::memory(trays.server.pid, "VmRSS");
    let (begin, end) = {
        let empty = form(&[("name=\"file\"; filename=\"big\"", b"")]);
        let at = empty.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
        (empty[..at].to_vec(), empty[at..].to_vec())
    };
    let mut stream = connect(&trays.server);
    let length = begin.len() + SIZE + end.len();
    let head = format!(
        "POST {}/inbox HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n\r\n",
        trays.path
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&begin).unwrap();
    let chunk: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 253) as u8).collect();
    for _ in 0..SIZE / chunk.len() {
        stream.write_all(&chunk).unwrap();
    }
    stream.write_all(&end).unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200");
    let growth = procs::memory(trays.server.pid, "VmHWM").saturating_sub(resting);
    assert!(growth < 4 << 20, "{growth} bytes");
    let file = fs::File::open(trays.work.join(INBOX).join("big")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SIZE as u64);
    let mut last = vec![0; chunk.len()];
    file.read_exact_at(&mut last, (SIZE - chunk.len()) as u64).unwrap();
    assert!(last == chunk);
}

/// A large upload in progress: its temporary file exists and grows.
fn half_sent(trays: &Trays) -> TcpStream {
    let mut stream = connect(&trays.server);
    let head = format!(
        "POST {}/inbox HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: 10000000\r\n\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"half\"\r\n\r\n",
        trays.path
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&vec![b'x'; 1_000_000]).unwrap();
    wait_for("the upload to be in progress", secs(20), || {
        temps(&trays.work)
            .first()
            .filter(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 500_000))
            .map(|_| ())
    });
    stream
}

#[test]
fn a_disconnected_upload_leaves_no_files() {
    let trays = Trays::auto();
    for how in [Shutdown::Write, Shutdown::Both] {
        let stream = half_sent(&trays);
        stream.shutdown(how).unwrap();
        wait_for("the temporary file to be removed", secs(20), || {
            temps(&trays.work).is_empty().then_some(())
        });
    }
    drop(half_sent(&trays));
    wait_for("the temporary file to be removed", secs(20), || temps(&trays.work).is_empty().then_some(()));
    assert_eq!(fs::read_dir(trays.work.join(INBOX)).unwrap().count(), 0);
    assert_eq!(trays.server.stop().code(), Some(0));
}

#[test]
fn temporary_files_of_a_killed_server_are_removed_but_not_active_ones() {
    let setup = Setup::new().arg("--approval=auto");
    let trays = Trays::new(setup.clone());
    let stream = half_sent(&trays);
    trays.server.crash();
    drop(stream);
    let remaining = setup.scratch().path().join("work");
    assert_eq!(temps(&remaining).len(), 1);
    let trays = Trays::new(setup);
    wait_for("the sweep", secs(20), || temps(&trays.work).is_empty().then_some(()));
    let stream = half_sent(&trays);
    assert_eq!(trays.client().get(200, &format!("{}/inbox", trays.path))["items"], json!([]));
    trays.put("other", b"1").expect(200);
    assert_eq!(temps(&trays.work).len(), 1, "another upload has removed the file");
    drop(stream);
}

#[test]
fn artifacts_are_listed_as_they_are() {
    let trays = Trays::auto();
    let outbox = trays.work.join(OUTBOX);
    let list = |client: Client| client.get(200, &format!("{}/artifacts", trays.path))["items"].clone();
    assert_eq!(list(trays.client()), json!([]));
    trays.offer("old.txt", b"123");
    let file = fs::File::options().write(true).open(outbox.join("old.txt")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_millis(1_500_000_000_250)).unwrap();
    trays.offer("deep/er/日本.txt", b"12");
    trays.offer("secret", b"x");
    fs::remove_file(outbox.join("secret")).unwrap();
    let outside = trays.server.scratch().file("outside/secret", "secret");
    symlink(&outside, outbox.join("link.txt")).unwrap();
    symlink(outside.parent().unwrap(), outbox.join("linked")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, outbox.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        outbox.join("zero"),
        rustix::fs::FileType::CharacterDevice,
        0o600.into(),
        rustix::fs::makedev(1, 5),
    )
    .unwrap();
    let _socket = UnixListener::bind(outbox.join("socket")).unwrap();
    let items = list(trays.client());
    let items = items.as_array().unwrap();
    assert_eq!(items.len(), 2, "{items:?}");
    assert_eq!((&items[0]["path"], &items[0]["size"]), (&json!("deep/er/日本.txt"), &json!(2)));
    assert_eq!(
        items[1],
        json!({"id": id_of("old.txt"), "path": "old.txt", "size": 3, "updatedAt": 1_500_000_000_250_u64})
    );
    // None of the others can be downloaded by its id either.
    for path in ["link.txt", "linked/secret", "pipe", "zero", "socket", "deep", "missing", "old.txt/x"] {
        trays.client().refused(404, "artifact_not_found", "GET", &trays.artifact(path), None);
    }
    for id in ["..", "*", "Li4vb3V0c2lkZS9zZWNyZXQ", "AA", "_y8uLg"] {
        let path = format!("{}/artifacts/{id}", trays.path);
        trays.client().refused(400, "invalid_artifact", "GET", &path, None);
    }
    let viewers = trays.server.anyone();
    viewers.refused(401, "unauthorized", "GET", &trays.artifact("old.txt"), None);
}

#[test]
fn downloads_support_ranges_etags_and_file_names() {
    let trays = Trays::auto();
    let text: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let client = trays.client();
    for (name, text) in [("small.bin", &text[..1000]), ("large.bin", &text[..])] {
        let path = trays.offer(name, text);
        let get = |headers: &[(&str, &str)]| client.send("GET", &path, headers, None);
        let whole = get(&[]).expect(200);
        assert_eq!(whole.body, text);
        assert_eq!(whole.header("content-type"), Some("application/octet-stream"));
        assert_eq!(
            whole.header("content-disposition"),
            Some(format!("attachment; filename=\"{name}\"").as_str())
        );
        assert_eq!(whole.header("content-length"), Some(text.len().to_string().as_str()));
        let head = client.send("HEAD", &path, &[("Range", "bytes=0-1")], None).expect(200);
        assert_eq!(head.header("content-length"), whole.header("content-length"));
        assert_eq!(head.header("accept-ranges"), Some("bytes"));
        // A tag becomes strong when the file is older than the granularity of the clock.
        let tag = wait_for("a strong tag", secs(20), || {
            let reply = client.send("HEAD", &path, &[], None).expect(200);
            reply.header("etag").filter(|tag| !tag.starts_with("W/")).map(str::to_owned)
        });
        let part = get(&[("Range", "bytes=10-19")]).expect(206);
        assert_eq!(part.body, &text[10..20]);
        assert_eq!(part.header("content-range"), Some(format!("bytes 10-19/{}", text.len()).as_str()));
        assert_eq!(get(&[("Range", "bytes=-5")]).expect(206).body, &text[text.len() - 5..]);
        assert_eq!(get(&[("Range", "bytes=200-")]).expect(206).body, &text[200..]);
        assert_eq!(get(&[("Range", "bytes=0-1,5-6")]).expect(200).body, text);
        let beyond = get(&[("Range", "bytes=300000-")]).expect(416);
        assert_eq!(beyond.header("content-range"), Some(format!("bytes */{}", text.len()).as_str()));
        let same = get(&[("If-None-Match", &tag)]).expect(304);
        assert_eq!((same.header("etag"), same.header("content-length")), (Some(tag.as_str()), None));
        assert_eq!(get(&[("If-Range", &tag), ("Range", "bytes=1-2")]).expect(206).body, &text[1..3]);
        // The agent replaces the file.
        trays.offer(name, &text[1..]);
        assert_eq!(get(&[("If-Range", &tag), ("Range", "bytes=1-2")]).expect(200).body, &text[1..]);
        assert_eq!(get(&[("If-None-Match", &tag)]).expect(200).body, &text[1..]);
    }
    let named = client.send("GET", &trays.offer("a\"b\\ü\n.txt", b"x"), &[], None).expect(200);
    let expected = "attachment; filename=\"a_b___.txt\"; filename*=UTF-8''a%22b%5C%C3%BC%0A.txt";
    assert_eq!(named.header("content-disposition"), Some(expected));
    // If a file becomes shorter during a download, the connection is closed early.
    let path = trays.offer("shrinks", &vec![1; 20_000_000]);
    let mut stream = connect(&trays.server);
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    fs::File::options()
        .write(true)
        .open(trays.work.join(OUTBOX).join("shrinks"))
        .unwrap()
        .set_len(1000)
        .unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 20_000_000);
}

#[test]
fn a_large_sparse_file_is_handled_as_one_file() {
    let trays = Trays::auto();
    let path = trays.offer("giant", b"");
    let giant = fs::File::options().write(true).open(trays.work.join(OUTBOX).join("giant")).unwrap();
    giant.set_len(5 << 40).unwrap();
    giant.write_at(b"end", (5 << 40) - 3).unwrap();
    let part = trays.client().send("GET", &path, &[("Range", "bytes=-3")], None).expect(206);
    assert_eq!(part.text(), "end");
}

#[test]
fn containers_have_an_inbox_and_an_outbox() {
    let place = shared_box();
    let path = container_path(&place);
    let reply =
        upload(&place.client, &format!("{path}/inbox?path=sub/x"), &[("name=file; filename=x", b"hi")]);
    assert_eq!(reply.expect(200).value()["bytes"], 2);
    assert_eq!(place.sh(&format!("cd /{INBOX}/sub; cat x; stat -c %u:%g x . ..")), "hi0:0\n0:0\n0:0\n");
    place.sh(&format!("mkdir -p /{OUTBOX}; echo out > /{OUTBOX}/y; ln -sf /etc/passwd /{OUTBOX}/passwd"));
    let items = place.client.get(200, &format!("{path}/artifacts"))["items"].as_array().unwrap().clone();
    assert!(items.len() == 1 && items[0]["path"] == "y", "{items:?}");
    let got = place.client.call("GET", &format!("{path}/artifacts/{}", id_of("y")), None).expect(200);
    assert_eq!(got.text(), "out\n");
}

fn container_path(place: &Place<'_>) -> String {
    let all = place.server.owner().get(200, "/workspaces")["items"].as_array().unwrap().clone();
    let root = place.root.to_str().unwrap();
    let ours =
        all.iter().find(|item| item["path"] == root).unwrap_or_else(|| panic!("{root} is not in {all:?}"));
    format!("/workspace/{}", ours["id"].as_str().unwrap())
}

#[test]
fn uploads_waiting_for_approval_use_no_memory_and_no_disk() {
    let trays = Trays::new(Setup::new().arg("--approval=manual"));
    let text = vec![b'x'; 8_000_000];
    let begin = |name: &str| {
        let (client, path) = (trays.client(), format!("{}/inbox", trays.path));
        let (disposition, text) = (format!("name=file; filename={name}"), text.clone());
        thread::spawn(move || upload(&client, &path, &[(&disposition, &text)]))
    };
    let asked = || {
        wait_for("the question", secs(20), || {
            let items = trays.server.owner().get(200, "/approvals")["items"].as_array().unwrap().clone();
            items.first().cloned()
        })
    };
    let answer = |asked: &Value, reply: &str| {
        let path = format!("/approvals/{}", asked["id"].as_str().unwrap());
        trays.server.owner().post(200, &path, json!({ "reply": reply }));
    };
    let resting = procs::memory(trays.server.pid, "VmRSS");
    let waiting = begin("asked.bin");
    let question = asked();
    // Longer than the client needs to fill any buffer that would accept more of the upload.
    thread::sleep(Duration::from_millis(300));
    let growth = procs::memory(trays.server.pid, "VmRSS").saturating_sub(resting);
    assert!(growth < 4 << 20, "{growth} bytes for a waiting upload");
    assert_eq!(question["action"], "workspace.inbox.upload");
    assert!(question["summary"].as_str().unwrap().starts_with("Upload asked.bin"), "{question}");
    assert!(question["paths"][0].as_str().unwrap().ends_with("/inbox/asked.bin"), "{question}");
    assert!(!trays.work.join(INBOX).exists(), "a file was written before the approval");
    answer(&question, "allow");
    assert_eq!(waiting.join().unwrap().expect(200).value()["bytes"], 8_000_000);
    let waiting = begin("denied.bin");
    answer(&asked(), "deny");
    assert_eq!(waiting.join().unwrap().expect(403).value()["code"], "write_denied");
    assert_eq!(fs::read_dir(trays.work.join(INBOX)).unwrap().count(), 1);
}
