//! Requests that the workspace API refuses, with their codes; a refusal changes nothing.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::server::{NIL, Server, Setup};

/// Expects a refusal of `body` for create, and of its fields that PUT accepts also for PUT.
#[track_caller]
fn refused(server: &Server, code: &str, body: Value) {
    let before = server.owner().get(200, "/api/workspaces");
    server.owner().refused(400, code, "POST", "/api/workspaces", Some(body));
    assert_eq!(
        server.owner().get(200, "/api/workspaces"),
        before,
        "a refused create has left files or records"
    );
}

#[track_caller]
fn put_refused(server: &Server, code: &str, body: Value) {
    let before = server.owner().get(200, "/api/workspaces");
    server.owner().refused(400, code, "PUT", &format!("/api/workspaces/{NIL}"), Some(body));
    assert_eq!(
        server.owner().get(200, "/api/workspaces"),
        before,
        "a refused update has changed the workspace"
    );
}

#[test]
fn names() {
    let server = Server::start();
    let long = "x".repeat(256);
    for name in ["", " ", "a/b", "a\\b", "..", "a..b", ".hidden", "a\nb", "a\u{1b}[31m", "a\0b", &long] {
        refused(&server, "invalid_name", json!({"name": name}));
        put_refused(&server, "invalid_name", json!({"name": name}));
    }
    let reply =
        server.owner().refused(400, "invalid_name", "POST", "/api/workspaces", Some(json!({"name": ""})));
    assert_eq!(reply["message"], "Name cannot be empty");
}

#[test]
fn distros() {
    let server = Server::start();
    for distro in ["gentoo", "Debian-Bookworm", "../noble", "noble\0"] {
        refused(
            &server,
            "invalid_distro",
            json!({"name": "a", "workspace_type": "container", "distro": distro}),
        );
        put_refused(&server, "invalid_distro", json!({"distro": distro}));
    }
    let body = json!({"name": "a", "workspace_type": "container", "distro": "x"});
    let reply = server.owner().refused(400, "invalid_distro", "POST", "/api/workspaces", Some(body));
    let expected = "Unknown distro 'x'. Supported: ubuntu-noble, ubuntu-jammy, debian-bookworm, arch-linux";
    assert_eq!(reply["message"], expected);
}

#[test]
fn environments() {
    let server = Server::start();
    for env in [
        json!({"A B": "x"}),
        json!({"1A": "x"}),
        json!({"A=B": "x"}),
        json!({"A\0": "x"}),
        json!({"A": "x\0"}),
    ] {
        refused(&server, "invalid_env", json!({"name": "a", "env_vars": env}));
        put_refused(&server, "invalid_env", json!({"env_vars": env}));
    }
}

#[test]
fn shapes() {
    let server = Server::start();
    for body in [
        json!({}),
        json!({"name": 1}),
        json!({"name": null}),
        json!([]),
        json!(null),
        json!("a"),
        json!({"name": "a", "workspace_type": "vm"}),
        json!({"name": "a", "skills": "x"}),
        json!({"name": "a", "skills": [1]}),
        json!({"name": "a", "env_vars": []}),
        json!({"name": "a", "env_vars": {"A": 1}}),
        json!({"name": "a", "shared_network": "yes"}),
        json!({"name": "a", "tailscale_mode": "sometimes"}),
        json!({"name": "a", "path": 1}),
    ] {
        refused(&server, "invalid_payload", body);
    }
    let owner = server.owner();
    for text in ["", "{", "{\"name\":\"a\"", "{'name':'a'}", "\u{feff}", "{\"name\":\"a\"} x"] {
        let reply = owner.send("POST", "/api/workspaces", &[], Some(text.as_bytes())).expect(400);
        assert_eq!(reply.value()["code"], "invalid_json", "{text:?}: {reply}");
    }
    let reply = owner.send("POST", "/api/workspaces", &[], Some(b"{\"name\":\"\xff\xfe\"}")).expect(400);
    assert_eq!(reply.value()["code"], "invalid_json", "{reply}");
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    owner.send("POST", "/api/workspaces", &[], Some(nested.as_bytes())).expect(400);
    server.anyone().get(200, "/health");
}

/// A list whose elements fit the fields of an object is not such an object.
#[test]
fn a_list_where_an_object_belongs() {
    let server = Server::start();
    let owner = server.owner();
    let limits = json!({"memory_bytes": 512 << 20, "pids": 100});
    let stored = owner.put(200, &format!("/api/workspaces/{NIL}"), json!({"resources": limits}));
    for body in [
        json!(["a"]),
        json!({"name": "a", "resources": []}),
        json!({"name": "a", "resources": [33_554_432]}),
        json!({"name": "a", "resources": [33_554_432, null, null, null, null]}),
        json!({"name": "a", "resources": 5}),
        json!({"name": "a", "mounts": [["/srv", "/srv", true]]}),
        json!({"name": "a", "mounts": {}}),
    ] {
        refused(&server, "invalid_payload", body.clone());
        put_refused(&server, "invalid_payload", body);
    }
    assert_eq!(owner.get(200, &format!("/api/workspaces/{NIL}"))["resources"], stored["resources"]);
    let refused = |method: &str, path: String, body: Value| {
        owner.refused(400, "invalid_payload", method, &path, Some(body));
    };
    for call in ["runs", "exec"] {
        let path = format!("/api/workspaces/{NIL}/{call}");
        refused("POST", path.clone(), json!(["true"]));
        refused("POST", path.clone(), json!({"command": "true", "limits": [67_108_864]}));
        refused("POST", path.clone(), json!({"command": "true", "limits": []}));
        refused("POST", path, json!({"command": "true", "pty": [80, 24]}));
    }
    refused("POST", format!("/api/workspaces/{NIL}/terminals"), json!([]));
    let template = "/api/library/workspace-template/x".to_owned();
    refused("PUT", template, json!({"mounts": [["/srv", "/srv", true]]}));
}

#[test]
fn bodies_have_a_size() {
    let server = Server::start();
    let body = json!({"name": "a", "init_script": "x".repeat(3 << 20)}).to_string();
    let reply = server.owner().send("POST", "/api/workspaces", &[], Some(body.as_bytes())).expect(413);
    assert_eq!(reply.value()["code"], "body_too_large", "{reply}");
    server.owner().get(200, "/api/workspaces");
}

#[test]
fn ids() {
    let server = Server::start();
    for id in [
        "x",
        "00000000",
        "ws_000000000000",
        "{00000000-0000-0000-0000-000000000000}",
        "%00",
        "00000000000000000000000000000000",
    ] {
        for (method, call) in
            [("GET", ""), ("DELETE", ""), ("POST", "/build"), ("GET", "/debug"), ("GET", "/init-log")]
        {
            let path = format!("/api/workspaces/{id}{call}");
            server.owner().refused(400, "invalid_id", method, &path, None);
        }
    }
    let unknown = "/api/workspaces/11111111-1111-4111-8111-111111111111";
    for (method, call) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/build"),
        ("GET", "/debug"),
        ("GET", "/init-log"),
        ("POST", "/rerun-init"),
    ] {
        server.owner().refused(404, "workspace_not_found", method, &format!("{unknown}{call}"), None);
    }
    server.owner().refused(404, "workspace_not_found", "PUT", unknown, Some(json!({"name": "a"})));
}

#[test]
fn host_folders() {
    let setup = Setup::new();
    let server = setup.start();
    let work = fs::canonicalize(&server.work).unwrap();
    let data = fs::canonicalize(&server.data).unwrap();
    let outside = fs::canonicalize(setup.scratch().folder("outside")).unwrap();
    symlink(&outside, work.join("way-out")).unwrap();
    fs::write(work.join("file"), "").unwrap();
    for path in [
        json!("/"),
        json!("/etc"),
        json!(outside),
        json!(work.parent().unwrap()),
        json!(data),
        json!(data.join("workspaces")),
        json!(work.join("..")),
        json!(work.join("way-out")),
        json!(work.join("way-out/new")),
        json!(work.join("file")),
        json!(work.join("a\0b")),
        json!("/proc/self/root"),
    ] {
        refused(&server, "invalid_path", json!({"name": "a", "path": path}));
    }
}

#[test]
fn container_folders() {
    let setup = Setup::new();
    let server = setup.start();
    let work = fs::canonicalize(&server.work).unwrap();
    let data = fs::canonicalize(&server.data).unwrap();
    fs::create_dir(work.join("existing")).unwrap();
    symlink("/etc", work.join("way-out")).unwrap();
    for path in [
        json!("/"),
        json!("."),
        json!("/etc"),
        json!(work),
        json!(work.parent().unwrap()),
        json!(data),
        json!(work.join("existing")),
        json!(work.join("../x")),
        json!(work.join("way-out/new")),
        json!("/no/such/folder"),
        json!(data.join("images")),
        json!(data.join("credentials.json")),
    ] {
        refused(&server, "invalid_path", json!({"name": "a", "workspace_type": "container", "path": path}));
    }
    assert!(work.join("existing").is_dir());
    // A folder that does not exist yet, at a path that the operator has allowed.
    let body = json!({"name": "a", "workspace_type": "container", "path": work.join("new")});
    let created = server.owner().post(200, "/api/workspaces", body.clone());
    assert_eq!(created["path"], work.join("new").to_str().unwrap());
    // The path is in use now, also before the first build.
    refused(&server, "invalid_path", body);
}

#[test]
fn build_bodies() {
    let server = Server::start();
    let created =
        server.owner().post(200, "/api/workspaces", json!({"name": "c", "workspace_type": "container"}));
    let path = format!("/api/workspaces/{}/build", created["id"].as_str().unwrap());
    let owner = server.owner();
    owner.refused(400, "invalid_distro", "POST", &path, Some(json!({"distro": "gentoo"})));
    owner.refused(400, "invalid_payload", "POST", &path, Some(json!({"rebuild": "perhaps"})));
    let reply = owner.send("POST", &path, &[], Some(b"{\"rebuild\":")).expect(400);
    assert_eq!(reply.value()["code"], "invalid_json", "a malformed body must not start a build: {reply}");
    assert_eq!(owner.get(200, path.trim_end_matches("/build"))["status"], "pending");
}
