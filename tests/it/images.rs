//! Base images over HTTP and beside a running server: imported, uploaded, listed, used, locked while in use and
//! removed, with their events.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::fixture::{DISTRO, Place, image_root, seeded, tools};
use crate::procs::{secs, wait_for};
use crate::server::{BINARY, HOST_TOKEN, Server, Setup, run};
use crate::tape::Tape;

const ARCHIVE: &[(&str, &str)] = &[("Content-Type", "application/octet-stream")];

fn image_files(server: &Server) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(server.data.join("images"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name != "names" && name != ".lock")
        .collect();
    names.sort();
    names
}

/// The kinds of stored events, with their data.
fn events(server: &Server) -> Vec<Value> {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(secs(1))).unwrap();
    write!(
        stream,
        "GET /api/images/events?stream=ndjson HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\r\n",
        server.address
    )
    .unwrap();
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n) = stream.read(&mut piece) {
        if n == 0 {
            break;
        }
        text.extend_from_slice(&piece[..n]);
    }
    let text = String::from_utf8(text).unwrap();
    text.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn archives_are_uploaded_and_imported_listed_and_removed() {
    let server = Server::start();
    let owner = server.owner();
    let archive = Tape::system().file("etc/os-release", 0o644, b"PRETTY_NAME=\"Tiny 1\"\n").end();
    let created = owner.send("POST", "/api/images?name=small", ARCHIVE, Some(&archive)).expect(201).value();
    assert_eq!(
        (&created["name"], &created["source"], &created["os"]),
        (&json!("small"), &json!("imported"), &json!("Tiny 1"))
    );
    let id = created["id"].as_str().unwrap().to_owned();
    // Larger than the buffer of a request body: it is streamed. The same content under another name is the same image.
    let big = Tape::system().file("usr/big", 0o644, &vec![7; 8 << 20]).end();
    let big = zstd::encode_all(&big[..], 1).unwrap();
    let large = Tape::system().file("usr/noise", 0o644, &noise(3 << 20)).end();
    for (name, body) in [("big", &big), ("large", &large)] {
        let path = format!("/api/images?name={name}");
        let reply = owner.send("POST", &path, ARCHIVE, Some(body)).expect(201).value();
        assert_eq!(reply["names"], json!([name]));
    }
    let path = server.scratch().file("small.tar", &archive);
    let body = json!({"name": "again", "path": path});
    assert_eq!(owner.post(201, "/api/images", body)["id"], id.as_str());
    assert_eq!(owner.get(200, &format!("/api/images/{}", &id[..12]))["names"], json!(["again", "small"]));
    let list = server.collaborator().get(200, "/api/images");
    assert_eq!(list.as_array().unwrap().len(), 3);

    for (code, status, path, body) in [
        ("invalid_name", 400, "/api/images", json!({"path": "/x"})),
        ("invalid_name", 400, "/api/images", json!({"name": "../x", "path": "/x"})),
        ("invalid_path", 400, "/api/images", json!({"name": "x", "path": "/no/such/file"})),
        ("invalid_path", 400, "/api/images", json!({"name": "x", "path": "relative"})),
        ("invalid_path", 400, "/api/images", json!({"name": "x", "path": "/dev/null"})),
        ("invalid_path", 400, "/api/images", json!({"name": "x", "path": server.data.parent().unwrap()})),
        ("invalid_payload", 400, "/api/images", json!({})),
        ("invalid_payload", 400, "/api/images", json!({"build": "noble", "pull": "sometimes"})),
        ("invalid_distro", 400, "/api/images", json!({"build": "windows"})),
        ("image_not_found", 404, "/api/images", json!({"build": "noble", "pull": "never"})),
    ] {
        owner.refused(status, code, "POST", path, Some(body));
    }
    server.collaborator().refused(403, "forbidden", "POST", "/api/images", Some(json!({})));
    let evil = Tape::system().file("../evil", 0o644, b"x").end();
    let reply = owner.send("POST", "/api/images?name=evil", ARCHIVE, Some(&evil)).expect(400).value();
    assert_eq!(reply["code"], "invalid_image");
    owner.refused(404, "image_not_found", "GET", "/api/images/evil", None);
    owner.refused(404, "image_not_found", "DELETE", "/api/images/evil", None);

    // An upload that is cut off, with a Content-Length or chunked.
    for head in ["Content-Length: 4000000", "Transfer-Encoding: chunked"] {
        let before = image_files(&server);
        let mut half = TcpStream::connect(server.address).unwrap();
        write!(
            half,
            "POST /api/images?name=half HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {HOST_TOKEN}\r\n{head}\r\n\r\n",
            server.address
        )
        .unwrap();
        if head.starts_with('T') {
            write!(half, "{:x}\r\n", 4_000_000).unwrap();
        }
        half.write_all(&large[..2 << 20]).unwrap();
        wait_for("the import to begin", secs(20), || {
            (image_files(&server).len() > before.len()).then_some(())
        });
        drop(half);
        wait_for("the partial image to be removed", secs(20), || {
            (image_files(&server) == before).then_some(())
        });
    }
    owner.refused(404, "image_not_found", "GET", "/api/images/half", None);

    owner.call("DELETE", "/api/images/small", None).expect(204);
    owner.refused(404, "image_not_found", "GET", "/api/images/again", None);
    assert_eq!(image_files(&server).len(), 2);

    let reply = events(&server);
    let kinds = |name: &str| -> Vec<&str> {
        let of = reply.iter().filter(|event| event["name"] == name);
        of.map(|event| event["event"].as_str().unwrap()).filter(|kind| *kind != "progress").collect()
    };
    assert_eq!(kinds("small"), ["started", "done"]);
    assert_eq!(kinds("evil"), ["started", "failed"]);
    // The second upload may begin before the client knows that the first has failed.
    let mut half = kinds("half");
    half.sort_unstable();
    assert_eq!(half, ["failed", "failed", "started", "started"]);
    let progress =
        reply.iter().find(|event| event["name"] == "large" && event["event"] == "progress").unwrap();
    assert!(progress["step"] == "unpack" && progress["total_bytes"] == large.len(), "{progress}");
    assert!(reply.iter().any(|event| event["event"] == "removed" && event["id"] == id.as_str()));
}

/// Incompressible bytes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(length)
    .collect()
}

/// `berth image` with the server's own data folder.
fn image(server: &Server, args: &[&str]) -> String {
    let mut command = Command::new(BINARY);
    command
        .arg("image")
        .args(args)
        .env("BERTH_DATA_DIR", &server.data)
        .env("HOME", server.scratch().folder("home"));
    let reply = run(&mut command, secs(60));
    assert_eq!(reply.code, Some(0), "{args:?}: {}{}", reply.stdout, reply.stderr);
    reply.stdout
}

/// Imports the base image with an additional `/usr/more` as another image of this name; returns the archive of the
/// base.
pub fn with_a_file_more(server: &Server, name: &str) -> PathBuf {
    let base = server.scratch().path().join("base.tar");
    image(server, &["export", DISTRO, base.to_str().unwrap()]);
    let archive = server.scratch().path().join("mine.tar");
    server.scratch().file("more/usr/more", "more");
    let line = format!(
        "cp {0} {1} && tar -C {2} --owner=0 --group=0 -rf {1} usr/more",
        base.display(),
        archive.display(),
        server.scratch().path().join("more").display()
    );
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    // Beside the running server, which sees it at once.
    image(server, &["import", name, archive.to_str().unwrap()]);
    base
}

#[test]
fn workspaces_are_created_from_imported_images() {
    tools();
    // The server cannot bootstrap an image: using the network would fail.
    let server = seeded().arg("--mirror=debian-bookworm=http://127.0.0.1:1/debian").start();
    let owner = server.owner();
    let base = with_a_file_more(&server, "mine");
    let id = owner.get(200, "/api/images/mine")["id"].as_str().unwrap().to_owned();
    owner.call("DELETE", &format!("/api/images/{DISTRO}"), None).expect(204);
    for body in [json!({"image": "mine"}), json!({"distro": "mine"}), json!({"image": &id[..10]})] {
        let mut whole = json!({"name": "imported", "workspace_type": "container"});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        let created = owner.post(200, "/api/workspaces", whole);
        assert!(created["image"].is_string(), "{created}");
        let place = Place::of(&server, &created);
        place.build();
        assert_eq!(place.sh("head -c 2 /etc/debian_version; cat /usr/more"), "12more");
        assert_eq!(place.sh("stat -c %U:%a /usr/bin/su"), "root:4755\n");
    }
    let refused = json!({"name": "x", "workspace_type": "container", "image": "other"});
    owner.refused(404, "image_not_found", "POST", "/api/workspaces", Some(refused));
    let refused = json!({"name": "x", "workspace_type": "container", "distro": "other"});
    owner.refused(400, "invalid_distro", "POST", "/api/workspaces", Some(refused));
    // The image of a distribution is the one that its name refers to, from any source.
    image(&server, &["import", DISTRO, base.to_str().unwrap()]);
    let place = Place::ready(&server, json!({"name": "by distro"}));
    assert_eq!(place.show()["image"], Value::Null);
    assert_eq!(place.sh("echo fine"), "fine\n");
}

#[test]
fn bootstrapped_images_contain_no_machine_identity() {
    let setup = seeded();
    let root: PathBuf = image_root(setup.data_dir());
    let count = |folder: &str| fs::read_dir(root.join(folder)).map_or(0, Iterator::count);
    assert_eq!(fs::read(root.join("etc/machine-id")).unwrap(), b"");
    let packages = fs::read_dir(root.join("var/cache/apt/archives")).unwrap().flatten();
    assert_eq!(packages.filter(|entry| entry.path().extension().is_some_and(|end| end == "deb")).count(), 0);
    assert_eq!((count("dev"), count("proc")), (2, 0), "only folders, for the mounts");
    assert!(count("var/lib/apt/lists") <= 2 && !root.join("var/log/bootstrap.log").exists());
    assert!(!root.join(".opencode").exists() && !root.join("root/.opencode").exists());
}

/// Two at once, in processes of their own, with the real mirror: the second waits for the first.
#[test]
fn a_distribution_is_bootstrapped_once() {
    tools();
    let setup = Setup::new();
    let server = setup.start();
    thread::scope(|scope| {
        let by_cli = scope.spawn(|| {
            let mut command = Command::new(BINARY);
            command.args(["image", "build", DISTRO]).env("BERTH_DATA_DIR", &server.data);
            run(&mut command, secs(900))
        });
        wait_for("the bootstrap to begin", secs(60), || (image_files(&server).len() > 1).then_some(()));
        let by_api = owner_builds(&server);
        let by_cli = by_cli.join().unwrap();
        assert_eq!(by_cli.code, Some(0), "{}{}", by_cli.stdout, by_cli.stderr);
        assert_eq!(by_api["id"], by_cli.stdout.trim());
    });
    assert_eq!(server.owner().get(200, "/api/images").as_array().unwrap().len(), 1);
    // And no second time, unless requested.
    assert_eq!(owner_builds(&server)["source"], "built");
}

/// A bootstrap on a busy machine takes longer than the timeout of the other tests' client.
fn owner_builds(server: &Server) -> Value {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "900", "-H", "Content-Type: application/json"]);
    curl.args([
        "-H",
        &format!("Authorization: Bearer {HOST_TOKEN}"),
        "-d",
        &json!({"build": DISTRO}).to_string(),
    ]);
    let reply = run(curl.arg(format!("http://{}/api/images", server.address)), secs(910));
    assert_eq!(reply.code, Some(0), "{}", reply.stderr);
    serde_json::from_str(&reply.stdout).unwrap()
}
