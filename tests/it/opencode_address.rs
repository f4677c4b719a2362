//! The address of a workspace's OpenCode: set by an owner while the server runs; and addresses that are refused in
//! every spelling, also if a name resolves to one later.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::client::Client;
use crate::opencode::mount;
use crate::scoped_tokens;
use crate::server::{Server, Setup};
use crate::upstream::Upstream;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn path(server: &Server) -> String {
    format!("/workspaces/{}", server.owner().get(200, "/workspaces")["activeId"].as_str().unwrap())
}

#[track_caller]
fn patch(client: &Client, path: &str, body: Value) -> Value {
    client.call("PATCH", path, Some(&body)).expect(200).value()
}

#[test]
fn an_owner_sets_the_address_of_opencode() {
    let (first, second) = (Upstream::saying(OK), Upstream::saying(OK));
    let setup = Setup::new()
        .args(&["--approval=auto", "--opencode-username=u"])
        .env("OPENWORK_OPENCODE_PASSWORD", "configured")
        .env("OPENWORK_OPENCODE_BASE_URL", first.url());
    let server = setup.start();
    let (owner, path) = (server.owner(), path(&server));
    let body = json!({"baseUrl": second.url(), "opencodeUsername": "v", "opencodePassword": "s3cret"});
    // No other client does: neither by a request nor by a file in the workspace.
    server.collaborator().refused(401, "unauthorized", "PATCH", &path, Some(body.clone()));
    let viewer = scoped_tokens::client(&server, json!({"scope": "viewer"}));
    viewer.refused(401, "unauthorized", "PATCH", &path, Some(body.clone()));
    let workspace = path.replace("/workspaces/", "/workspace/");
    let config = json!({"openwork": {"baseUrl": second.url(), "opencode": {"baseUrl": second.url()}}});
    server.collaborator().call("PATCH", &format!("{workspace}/config"), Some(&config)).expect(200);
    server.collaborator().post(200, &format!("{workspace}/import"), config);
    owner.get(200, "/opencode/a");
    assert_eq!(first.seen().header("authorization"), Some("Basic dTpjb25maWd1cmVk"));
    second.saw_nothing();

    let reply = patch(&owner, &path, body);
    assert_eq!(reply["workspace"]["baseUrl"], json!(second.url()));
    assert_eq!(reply["workspace"]["opencode"]["username"], "v");
    server.collaborator().get(200, &format!("{}/b", mount(&server)));
    let seen = second.seen();
    assert_eq!((seen.target(), seen.header("authorization")), ("/b", Some("Basic djpzM2NyZXQ=")));
    first.saw_nothing();
    let list = viewer.get(200, "/workspaces");
    assert_eq!(list["items"][0]["baseUrl"], json!(second.url()));
    assert!(!list.to_string().contains("s3cret"), "{list}");
    let log = owner.get(200, &format!("{workspace}/audit"));
    let line = log["items"].as_array().unwrap().iter().find(|line| line["action"] == "workspace.patch");
    assert!(line.unwrap()["summary"].as_str().unwrap().contains(&second.url()), "{log}");
    assert!(!log.to_string().contains("s3cret"), "{log}");

    // It survives a restart, and ends when the configuration names another address.
    server.stop();
    let server = setup.start();
    server.owner().get(200, "/opencode/c");
    assert_eq!(second.seen().target(), "/c");
    server.stop();
    let third = Upstream::saying(OK);
    let server = setup.clone().env("OPENWORK_OPENCODE_BASE_URL", third.url()).start();
    server.owner().get(200, "/opencode/d");
    assert_eq!(third.seen().target(), "/d");
    server.stop();
    // A new address does not inherit the credential of the old one; null restores the configured address.
    let server = setup.start();
    patch(&server.owner(), &path, json!({"baseUrl": third.url()}));
    server.owner().get(200, "/opencode/e");
    assert_eq!(third.seen().header("authorization"), None);
    patch(&server.owner(), &path, json!({"baseUrl": null}));
    server.owner().get(200, "/opencode/f");
    assert_eq!(first.seen().header("authorization"), Some("Basic dTpjb25maWd1cmVk"));
    let reply = server.owner().call("PATCH", &path, Some(&json!({"path": "/"}))).expect(200).value();
    assert_eq!(reply["warnings"], json!(["unknown field `path`"]));
    for body in [json!({"baseUrl": 1}), json!([])] {
        server.owner().refused(400, "invalid_payload", "PATCH", &path, Some(body));
    }
}

#[test]
fn forbidden_addresses_are_refused_in_every_spelling() {
    let server = Server::start();
    let (owner, path, port) = (server.owner(), path(&server), server.address.port());
    for (url, why) in [
        (format!("http://127.0.0.1:{port}"), "belongs to this server"),
        (format!("http://localhost:{port}/w"), "belongs to this server"),
        (format!("http://2130706433:{port}"), "belongs to this server"),
        (format!("http://0x7f000001:{port}"), "belongs to this server"),
        (format!("http://0177.0.0.1:{port}"), "belongs to this server"),
        (format!("http://127.1:{port}"), "belongs to this server"),
        (format!("http://[::ffff:127.0.0.1]:{port}"), "belongs to this server"),
        (format!("http://[::ffff:7f00:1]:{port}"), "belongs to this server"),
        ("http://169.254.169.254/latest".into(), "link-local"),
        ("http://2852039166".into(), "link-local"),
        ("http://0xa9fea9fe:80".into(), "link-local"),
        ("http://169.254.43518".into(), "link-local"),
        ("http://[::ffff:169.254.169.254]".into(), "link-local"),
        ("http://[64:ff9b::a9fe:a9fe]".into(), "link-local"),
        ("http://[fe80::1]:80".into(), "link-local"),
        ("http://100.100.100.200".into(), "metadata"),
        ("http://[fd00:ec2::254]".into(), "metadata"),
        ("http://[fd00:ec2::23]".into(), "metadata"),
        ("http://[fd20:ce::254]".into(), "metadata"),
        ("http://[::169.254.169.254]".into(), "link-local"),
        ("http://[64:ff9b:1::a9fe:a9fe]".into(), "link-local"),
        ("http://0.0.0.0:4096".into(), "not identify a single host"),
        ("http://0:4096".into(), "not identify a single host"),
        ("http://[::]:4096".into(), "not identify a single host"),
        ("http://224.0.0.1".into(), "not identify a single host"),
        ("https://example.org".into(), "tunnel or proxy on this machine"),
        ("http://u:p@127.0.0.1:4096".into(), "opencodeUsername"),
        ("file:///etc/passwd".into(), "http://"),
        ("gopher://127.0.0.1:6379".into(), "http://"),
        ("http://".into(), "no valid host"),
        ("nonsense".into(), "not a URL"),
        ("http://there-is-no.invalid".into(), "does not resolve"),
    ] {
        let reply = owner.refused(400, "invalid_base_url", "PATCH", &path, Some(json!({ "baseUrl": url })));
        assert!(reply["message"].as_str().unwrap().contains(why), "{url}: {reply}");
        assert_eq!(reply["details"]["baseUrl"], json!(url));
    }
    owner.refused(400, "opencode_unconfigured", "GET", "/opencode/x", None);
    // A token limited to other workspaces cannot change this one.
    let read_only = Setup::new().arg("--read-only").start();
    let body = Some(json!({"baseUrl": "http://127.0.0.1:4096"}));
    read_only.owner().refused(403, "read_only", "PATCH", &path, body);
}

#[test]
fn a_host_name_is_checked_at_each_connection() {
    let upstream = Upstream::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        false
    });
    let setup = Setup::new();
    let hosts = setup.scratch().file("hosts", "127.0.0.1 opencode.test\n");
    let own = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let server = setup.start_through(&["unshare", "--mount", "sh", "-c", &own, "sh"]);
    let url = format!("http://opencode.test:{}", upstream.address.port());
    patch(&server.owner(), &path(&server), json!({ "baseUrl": url }));
    server.owner().get(200, "/opencode/x");
    upstream.seen();
    for (address, why) in [
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("0.0.0.0", "not identify a single host"),
    ] {
        rewrite(&hosts, &format!("{address} opencode.test\n"));
        let reply = server.owner().refused(502, "opencode_unreachable", "GET", "/opencode/x", None);
        assert!(reply["message"].as_str().unwrap().contains(why), "{reply}");
    }
    upstream.saw_nothing();
    rewrite(&hosts, "127.0.0.1 opencode.test\n");
    server.owner().get(200, "/opencode/x");
}

/// Writes into the same inode: a replacement would not be visible through the bind mount.
fn rewrite(file: &Path, text: &str) {
    fs::OpenOptions::new().write(true).truncate(true).open(file).unwrap().write_all(text.as_bytes()).unwrap();
}
