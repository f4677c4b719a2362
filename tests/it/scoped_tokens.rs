//! Scoped tokens: created, used on both APIs, limited, revoked, and the file that stores them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::events::Events;
use crate::fixture::Place;
use crate::golden::golden;
use crate::procs::{secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{NIL, Server, Setup, read};
use crate::socket::Socket;

/// Returns the secret and the id of a new token.
#[track_caller]
pub fn make(server: &Server, body: Value) -> (String, String) {
    let created = server.owner().post(201, "/tokens", body);
    let text = |key: &str| created[key].as_str().unwrap().to_owned();
    (text("token"), text("id"))
}

/// A client that uses such a token.
#[track_caller]
pub fn client(server: &Server, body: Value) -> Client {
    server.with_token(&make(server, body).0)
}

pub fn revoke(server: &Server, id: &str) {
    assert_eq!(server.owner().delete(200, &format!("/tokens/{id}")), json!({"ok": true}));
}

#[test]
fn each_scope_has_its_rights_on_both_apis_until_revoked() {
    let server = Server::start();
    let (viewer, viewer_id) = make(&server, json!({"scope": "viewer", "label": "  screen  "}));
    let collaborator = client(&server, json!({"scope": "collaborator"}));
    let owner = client(&server, json!({"scope": "owner"}));
    assert!(viewer.starts_with("owt_") && viewer.len() == 36, "{viewer}");
    let viewer = server.with_token(&viewer);
    for (client, scope) in [(&viewer, "viewer"), (&collaborator, "collaborator"), (&owner, "owner")] {
        let actor = client.get(200, "/whoami")["actor"].clone();
        assert_eq!((&actor["type"], &actor["scope"]), (&json!("remote"), &json!(scope)));
        client.get(200, "/api/workspaces");
        client.get(200, "/workspaces");
    }
    let exec = format!("/api/workspaces/{NIL}/exec");
    let reply = viewer.refused(403, "forbidden", "POST", &exec, Some(json!({"command": "id"})));
    let message = reply["message"].as_str().unwrap();
    assert!(
        message.starts_with("Insufficient token scope") && message.contains("viewer token 'screen'"),
        "{reply}"
    );
    assert_eq!(reply["details"], json!({"required": "collaborator", "scope": "viewer"}));
    owner.post(200, &exec, json!({"command": "id"}));
    collaborator.refused(401, "unauthorized", "GET", "/tokens", None);
    let items = owner.get(200, "/tokens")["items"].clone();
    assert_eq!(items.as_array().unwrap().len(), 3);
    assert_eq!(items[2]["label"], "screen");
    assert!(!items.to_string().contains("hash"), "{items}");
    revoke(&server, &viewer_id);
    let reply = viewer.refused(401, "unauthorized", "GET", "/whoami", None);
    assert!(reply["message"].as_str().unwrap().contains("unknown or revoked bearer token"), "{reply}");
    server.owner().refused(404, "token_not_found", "DELETE", &format!("/tokens/{viewer_id}"), None);
}

#[test]
fn invalid_token_requests_are_refused() {
    let server = Server::start();
    for (code, body) in [
        ("invalid_scope", json!({})),
        ("invalid_scope", json!({"scope": "admin"})),
        ("invalid_scope", json!({"scope": null})),
        ("invalid_scope", json!({"scope": 3})),
        ("invalid_payload", json!({"scope": "viewer", "label": 5})),
        ("invalid_payload", json!({"scope": "viewer", "label": "x".repeat(201)})),
        ("invalid_payload", json!({"scope": "viewer", "expiresInSecs": 0})),
        ("invalid_payload", json!({"scope": "viewer", "expiresInSecs": -1})),
        ("invalid_payload", json!({"scope": "viewer", "expiresInSecs": 1e30})),
        ("invalid_payload", json!({"scope": "viewer", "workspaceIds": []})),
        ("invalid_payload", json!({"scope": "viewer", "workspaceIds": "ws_1"})),
        ("invalid_payload", json!([])),
        ("invalid_payload", json!(null)),
    ] {
        server.owner().refused(400, code, "POST", "/tokens", Some(body));
    }
    let body = json!({"scope": "viewer", "workspaceIds": ["ws_000000000000"]});
    server.owner().refused(404, "workspace_not_found", "POST", "/tokens", Some(body));
    assert_eq!(server.owner().get(200, "/tokens"), json!({"items": []}));
    assert!(!server.data.join("tokens.json").exists());
}

/// The OpenWork server kept 39 of them in memory and fewer in its file, which every user could read.
#[test]
fn forty_concurrent_tokens_are_all_stored_in_a_private_file() {
    let setup = Setup::new();
    let server = setup.start();
    let secrets: Vec<String> = thread::scope(|scope| {
        let created: Vec<_> = (0..40)
            .map(|n| {
                let server = &server;
                scope.spawn(move || make(server, json!({"scope": "viewer", "label": n.to_string()})).0)
            })
            .collect();
        created.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let path = server.data.join("tokens.json");
    let stored: Value = serde_json::from_str(&read(&path)).unwrap();
    assert_eq!(stored["schemaVersion"], 1);
    assert_eq!(stored["tokens"].as_array().unwrap().len(), 40);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!secrets.iter().any(|secret| stored.to_string().contains(secret)));
    server.stop();
    let server = setup.start();
    for secret in &secrets {
        server.with_token(secret).get(200, "/whoami");
    }
}

/// `tokens.json` as the OpenWork server 0.1.2 writes it.
fn openwork_store(secret: &str) -> String {
    let hash = sha256(secret);
    format!(
        "{{\n  \"schemaVersion\": 1,\n  \"updatedAt\": 1770000000000,\n  \"tokens\": [\n    {{\n      \"id\": \
         \"5b6ad0a8-7a2d-4a39-9d2a-3f30a8fdd3c1\",\n      \"hash\": \"{hash}\",\n      \"scope\": \"collaborator\",\n      \
         \"createdAt\": 1770000000000,\n      \"label\": \"phone\"\n    }}\n  ]\n}}\n"
    )
}

pub fn sha256(text: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_existing_openwork_store_is_imported_from_each_location() {
    let secret = "owt_0123456789abcdef0123456789abcdef";
    let beside = |scratch: &Scratch, folder: &str| {
        let folder = scratch.folder(folder);
        fs::write(folder.join("tokens.json"), openwork_store(secret)).unwrap();
        fs::set_permissions(folder.join("tokens.json"), fs::Permissions::from_mode(0o644)).unwrap();
        folder
    };
    let check = |setup: Setup, folder: &std::path::Path| {
        let server = setup.start();
        assert_eq!(server.with_token(secret).get(200, "/whoami")["actor"]["scope"], "collaborator");
        assert!(server.log().contains("was readable by other users"), "{}", server.log());
        let (created, _) = make(&server, json!({"scope": "viewer"}));
        server.with_token(&created).get(200, "/whoami");
        let store = folder.join("tokens.json");
        let stored: Value = serde_json::from_str(&read(&store)).unwrap();
        assert_eq!(stored["tokens"].as_array().unwrap().len(), 2);
        assert_eq!(stored["tokens"][1]["label"], "phone");
        assert_eq!(fs::metadata(&store).unwrap().permissions().mode() & 0o777, 0o600);
    };
    let setup = Setup::new();
    let folder = beside(setup.scratch(), "named");
    check(setup.env("OPENWORK_TOKEN_STORE", folder.join("tokens.json").to_str().unwrap()), &folder);
    let setup = Setup::new();
    let folder = beside(setup.scratch(), "etc");
    fs::write(folder.join("server.json"), "{}").unwrap();
    let config = folder.join("server.json").to_str().unwrap().to_owned();
    check(setup.arg(format!("--config={config}")), &folder);
    let setup = Setup::new();
    let folder = beside(setup.scratch(), "home/.config/openwork");
    check(setup, &folder);
}

#[test]
fn a_damaged_token_store_is_moved_aside_and_reported() {
    let setup = Setup::new();
    fs::create_dir_all(setup.data_dir()).unwrap();
    let store = setup.data_dir().join("tokens.json");
    fs::write(&store, "{\"tokens\": [").unwrap();
    let server = setup.start();
    let aside = || {
        let names = fs::read_dir(&server.data).unwrap().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("tokens.json.damaged-")).collect::<Vec<_>>()
    };
    assert_eq!(aside().len(), 1);
    assert!(server.log().contains(&aside()[0]), "{}", server.log());
    make(&server, json!({"scope": "viewer"}));
    assert_eq!(read(server.data.join(&aside()[0])), "{\"tokens\": [");
    // The server cannot move a folder out of the way: the start reports it.
    let setup = Setup::new();
    let place = setup.scratch().folder("store");
    let ended = setup.env("OPENWORK_TOKEN_STORE", place.to_str().unwrap()).run();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("token store") && ended.stderr.contains("store"), "{ended:?}");
}

#[test]
fn editing_the_file_and_expiry_revoke_tokens() {
    let server = Server::start();
    let (by_hand, id) = make(&server, json!({"scope": "viewer"}));
    let (short, _) = make(&server, json!({"scope": "viewer", "expiresInSecs": 1, "label": "short"}));
    let (by_hand, short) = (server.with_token(&by_hand), server.with_token(&short));
    let view = by_hand.get(200, "/whoami");
    assert_eq!(view["actor"].get("expiresAt"), None);
    assert!(short.get(200, "/whoami")["actor"]["expiresAt"].is_u64());
    let store = server.data.join("tokens.json");
    let mut stored: Value = serde_json::from_str(&read(&store)).unwrap();
    stored["tokens"].as_array_mut().unwrap().retain(|token| token["id"] != id.as_str());
    fs::write(&store, stored.to_string()).unwrap();
    by_hand.refused(401, "unauthorized", "GET", "/whoami", None);
    let response = wait_for("a token to expire", secs(10), || {
        let reply = short.call("GET", "/whoami", None);
        (reply.status == 401).then(|| reply.value())
    });
    assert!(
        response["message"].as_str().unwrap().contains("the viewer token 'short', which expired at"),
        "{response}"
    );
    assert_eq!(server.owner().get(200, "/tokens")["items"][0]["label"], "short");
}

#[test]
fn a_limited_token_sees_only_its_workspaces() {
    let setup = Setup::new();
    setup.scratch().folder("other");
    let server = setup.arg("--workspace=other").start();
    let all = server.owner().get(200, "/workspaces");
    let (first, second) = (all["items"][0]["id"].clone(), all["items"][1]["id"].clone());
    let (first, second) = (first.as_str().unwrap(), second.as_str().unwrap());
    // Named by the id of /api; shown with the id of the OpenWork API.
    let uuids = server.owner().get(200, "/api/workspaces");
    let of = |path: &str| {
        let found = uuids.as_array().unwrap().iter().find(|w| w["path"].as_str().unwrap().ends_with(path));
        found.unwrap()["id"].as_str().unwrap().to_owned()
    };
    let (work, other) = (of("/work"), of("/other"));
    let created = server.owner().post(201, "/tokens", json!({"scope": "owner", "workspaceIds": [other]}));
    assert_eq!(created["workspaceIds"], json!([second]));
    let limited = server.with_token(created["token"].as_str().unwrap());
    assert_eq!(limited.get(200, "/whoami")["actor"]["workspaceIds"], json!([second]));
    let seen = limited.get(200, "/workspaces");
    assert_eq!((seen["items"].as_array().unwrap().len(), &seen["activeId"]), (1, &json!(second)));
    let status = limited.get(200, "/status");
    assert_eq!((&status["workspaceCount"], &status["activeWorkspaceId"]), (&json!(1), &json!(second)));
    let seen = limited.get(200, "/api/workspaces");
    assert_eq!((seen.as_array().unwrap().len(), &seen[0]["id"]), (1, &json!(other)));
    limited.get(200, &format!("/w/{second}/status"));
    limited.get(200, &format!("/api/workspaces/{other}"));
    limited.post(200, &format!("/api/workspaces/{other}/exec"), json!({"command": "true"}));
    for path in [format!("/w/{first}/status"), format!("/api/workspaces/{work}"), "/tokens".into()] {
        let reply = limited.refused(403, "forbidden", "GET", &path, None);
        assert!(reply["message"].as_str().unwrap().contains(&format!("limited to {second}")), "{reply}");
    }
    let body = Some(json!({"command": "true"}));
    limited.refused(403, "forbidden", "POST", &format!("/api/workspaces/{work}/exec"), body);
    // A missing workspace is indistinguishable from one that the token may not see.
    for unknown in ["/w/ws_000000000000/status", "/api/workspaces/11111111-1111-4111-8111-111111111111"] {
        limited.refused(403, "forbidden", "GET", unknown, None);
    }
    // The token cannot remove its own limit.
    limited.refused(403, "forbidden", "POST", "/tokens", Some(json!({"scope": "owner"})));
    let id = created["id"].as_str().unwrap();
    limited.refused(403, "forbidden", "DELETE", &format!("/tokens/{id}"), None);
    limited.refused(403, "forbidden", "POST", "/api/workspaces", Some(json!({"name": "x"})));
}

#[test]
fn replies_have_the_observed_shape() {
    let server = Server::start();
    let workspace = server.owner().get(200, "/workspaces")["items"][0]["id"].as_str().unwrap().to_owned();
    let body = json!({"scope": "viewer", "label": "tv", "expiresInSecs": 60, "workspaceIds": [workspace]});
    let created = server.owner().post(201, "/tokens", body);
    let plain = server.owner().post(201, "/tokens", json!({"scope": "owner"}));
    let text = |created: &Value, key: &str| created[key].as_str().unwrap().to_owned();
    let (secret, id) = (text(&created, "token"), text(&created, "id"));
    let (plain_secret, plain_id) = (text(&plain, "token"), text(&plain, "id"));
    let hash = sha256(&secret);
    let steady = [
        (secret.as_str(), "token"),
        (&id, "id"),
        (&plain_secret, "token"),
        (&plain_id, "other id"),
        (&workspace, "workspace"),
        (&hash, "hash"),
    ];
    golden("token_made_limited", &created, &steady);
    golden("token_made", &plain, &steady);
    golden("tokens", &server.owner().get(200, "/tokens"), &steady);
    golden("whoami_limited", &server.with_token(&secret).get(200, "/whoami"), &steady);
    golden("token_deleted", &server.owner().delete(200, &format!("/tokens/{id}")), &steady);
    let refused = server.owner().refused(404, "token_not_found", "DELETE", "/tokens/x", None);
    golden("token_not_found", &refused, &steady);
    let scope = server.owner().refused(400, "invalid_scope", "POST", "/tokens", Some(json!({"scope": "x"})));
    golden("token_invalid_scope", &scope, &steady);
    golden("unauthorized", &server.anyone().refused(401, "unauthorized", "GET", "/whoami", None), &steady);
    let host = server.collaborator().refused(401, "unauthorized", "GET", "/tokens", None);
    golden("unauthorized_host", &host, &steady);
    let body = Some(json!({"name": "x"}));
    let low = server.collaborator().refused(403, "forbidden", "POST", "/api/workspaces", body);
    golden("forbidden", &low, &steady);
}

#[test]
fn refusals_name_the_credential_sent_and_the_one_required() {
    let server = Server::start();
    let message = |client: &Client, path: &str| {
        let reply = client.call("GET", path, None).expect(401);
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        reply.value()["message"].as_str().unwrap().to_owned()
    };
    let nothing = message(&server.anyone(), "/whoami");
    assert!(nothing.starts_with("Invalid bearer token: no credential was sent; this needs"), "{nothing}");
    let wrong = message(&server.with_token("wrong"), "/approvals");
    assert!(wrong.starts_with("Invalid host token: an unknown or revoked bearer token"), "{wrong}");
    assert!(wrong.contains("X-OpenWork-Host-Token"), "{wrong}");
    let wrong = message(&server.anyone().with("X-OpenWork-Host-Token", "wrong"), "/status");
    assert!(wrong.contains("an X-OpenWork-Host-Token that is not the host token was sent"), "{wrong}");
    let low = message(&server.collaborator(), "/tokens");
    assert!(low.contains("the client token (a collaborator's) was sent"), "{low}");
    for message in [nothing, wrong, low] {
        assert!(!message.contains("it-client") && !message.contains("it-host"), "{message}");
    }
}

/// Everything that a token has open ends with it; connections of other tokens stay open.
#[test]
fn revoking_a_token_closes_its_connections() {
    let server = Server::start();
    let place = Place::host(&server);
    let (secret, id) = make(&server, json!({"scope": "owner"}));
    let (short, _) = make(&server, json!({"scope": "owner", "expiresInSecs": 3}));
    let run = |command: &str| {
        let created = server.owner().post(201, &place.path("/runs"), json!({"command": command}));
        place.path(&format!("/runs/{}", created["id"].as_str().unwrap()))
    };
    let (quiet, loud) = (run("sleep 60"), run("while echo tick; do sleep 0.05; done"));
    let follow = |token: &str, run: &str| {
        Events::ask_as(&server, token, &format!("GET {run}/events HTTP/1.1\r\n"), None)
    };
    let (silent, busy, expiring) = (follow(&secret, &quiet), follow(&secret, &loud), follow(&short, &quiet));
    let mut other = Events::follow(&server, &loud, None);
    let exec = json!({"command": "sleep 60"});
    let exec = Events::ask_as(
        &server,
        &secret,
        &format!("POST {}?stream=sse HTTP/1.1\r\n", place.path("/exec")),
        Some(&exec),
    );
    let bearer = format!("Bearer {secret}");
    let mut shell =
        Socket::try_open(&server, &place.path("/shell"), &[("Authorization", &bearer)]).ok().unwrap();
    thread::scope(|scope| {
        let wait = |run: &str| {
            let (path, client) = (format!("{run}/wait?timeout_secs=60"), server.with_token(&secret));
            scope.spawn(move || client.call("POST", &path, None))
        };
        let waiting = wait(&quiet);
        let plain = {
            let (path, client) = (place.path("/exec"), server.with_token(&secret));
            scope.spawn(move || client.call("POST", &path, Some(&json!({"command": "sleep 60"}))))
        };
        wait_for("two execs, two runs and a shell", secs(20), || {
            (server.owner().get(200, "/status")["runs"].as_u64()? >= 5).then_some(())
        });
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        revoke(&server, &id);
        silent.until_cut();
        busy.until_cut();
        exec.until_cut();
        let reply = waiting.join().unwrap().expect(401).value();
        assert!(reply["message"].as_str().unwrap().contains("revoked"), "{reply}");
        plain.join().unwrap().expect(401);
        assert_eq!(shell.until_closed().code, 1008);
        assert!(start.elapsed() < secs(2), "{:?}", start.elapsed());
    });
    expiring.until_cut();
    for _ in 0..10 {
        assert!(other.next().is_some(), "the stream of another token stayed open");
    }
    // Its commands end too, as if their client had disconnected; the shell stays for a grace period, as after a
    // disconnect.
    wait_for("both execs to end", secs(20), || {
        (server.owner().get(200, "/status")["runs"].as_u64()? == 3).then_some(())
    });
}

#[test]
fn revoking_a_token_withdraws_its_pending_approvals() {
    let server = Setup::new().arg("--approval=manual").start();
    let created =
        server.owner().post(200, "/api/workspaces", json!({"name": "c", "workspace_type": "container"}));
    let (secret, id) = make(&server, json!({"scope": "collaborator"}));
    let path = format!("/api/workspaces/{}/sync", created["id"].as_str().unwrap());
    let client = server.with_token(&secret);
    let waiting = thread::spawn(move || client.call("POST", &path, None));
    let approval =
        wait_for("a question", secs(20), || server.owner().get(200, "/approvals")["items"].get(0).cloned());
    revoke(&server, &id);
    let reply = waiting.join().unwrap().expect(401).value();
    assert!(reply["message"].as_str().unwrap().contains("revoked"), "{reply}");
    assert_eq!(server.owner().get(200, "/approvals"), json!({"items": []}));
    let path = format!("/approvals/{}", approval["id"].as_str().unwrap());
    server.owner().refused(404, "approval_not_found", "POST", &path, Some(json!({"reply": "allow"})));
}
