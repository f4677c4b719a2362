//! The OpenWork server's own routes, as its clients use them: health, status, capabilities, whoami, workspaces,
//! activate, the mounted forms, CORS, read-only mode, and the form of refusals.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::Reply;
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, NIL, Server, Setup};

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Two workspaces, `one` and `two`.
fn two_workspaces() -> Setup {
    let setup = Setup::bare().env("OPENWORK_TOKEN", CLIENT_TOKEN).env("OPENWORK_HOST_TOKEN", HOST_TOKEN);
    setup.scratch().folder("one");
    setup.scratch().folder("two");
    setup.args(&["--workspace=one", "--workspace=two"])
}

#[test]
fn health_needs_no_token() {
    let server = Server::start();
    let reply = server.anyone().get(200, "/health");
    assert_eq!(keys(&reply), ["ok", "uptimeMs", "version"]);
    assert_eq!((&reply["ok"], &reply["version"]), (&json!(true), &json!(env!("CARGO_PKG_VERSION"))));
    assert!(reply["uptimeMs"].is_u64());
}

#[test]
fn health_of_the_workspace_api() {
    let reply = Server::start().anyone().get(200, "/api/health");
    assert_eq!((&reply["status"], &reply["version"]), (&json!("ok"), &json!(env!("CARGO_PKG_VERSION"))));
    assert_eq!(reply["auth_required"], true);
}

#[test]
fn status() {
    let server = Server::start();
    let reply = server.collaborator().get(200, "/status");
    for field in ["uptimeMs", "version", "corsOrigins", "authorizedRoots", "activeWorkspaceId", "workspace"] {
        assert!(reply.get(field).is_some(), "{field} is missing: {reply}");
    }
    assert_eq!(
        (&reply["ok"], &reply["readOnly"], &reply["workspaceCount"]),
        (&json!(true), &json!(false), &json!(1))
    );
    assert_eq!(reply["approval"], json!({"mode": "manual", "timeoutMs": 30000}));
    assert_eq!(reply["server"]["configPath"], Value::Null);
    assert_eq!(reply["activeWorkspaceId"], reply["workspace"]["id"]);
    server.anyone().refused(401, "unauthorized", "GET", "/status", None);
}

#[test]
fn capabilities() {
    let server = Server::start();
    let reply = server.collaborator().get(200, "/capabilities");
    assert_eq!(reply["schemaVersion"], 1);
    assert_eq!(reply["serverVersion"], env!("CARGO_PKG_VERSION"));
    for area in ["skills", "plugins", "mcp", "commands", "config"] {
        assert!(reply[area]["read"].is_boolean() && reply[area]["write"].is_boolean(), "{area}: {reply}");
    }
    assert_eq!(reply["approvals"], json!({"mode": "manual", "timeoutMs": 30000}));
    assert_eq!(reply["sandbox"], json!({"enabled": false, "backend": "none"}));
    assert_eq!(reply["tokens"]["scopes"], json!(["owner", "collaborator", "viewer"]));
    let files = &reply["toolProviders"]["files"];
    assert_eq!(files["inboxPath"], ".opencode/openwork/inbox/");
    assert_eq!(files["outboxPath"], ".opencode/openwork/outbox/");
    let browser = &reply["toolProviders"]["browser"];
    assert_eq!(keys(browser), ["enabled", "mode", "placement"]);
}

#[test]
fn whoami() {
    let server = Server::start();
    let reply = server.collaborator().with("X-OpenWork-Client-Id", "phone").get(200, "/whoami");
    let actor = json!({
        "type": "remote", "clientId": "phone", "tokenHash": sha256(CLIENT_TOKEN), "scope": "collaborator"
    });
    assert_eq!(reply, json!({"ok": true, "actor": actor}));
    let owner = json!({"type": "host", "tokenHash": sha256(HOST_TOKEN), "scope": "owner"});
    assert_eq!(server.owner().get(200, "/whoami")["actor"], owner);
    let header = server.anyone().with("X-OpenWork-Host-Token", HOST_TOKEN);
    assert_eq!(header.get(200, "/whoami")["actor"], owner);
}

#[test]
fn schemes_are_case_insensitive_and_exact() {
    let server = Server::start();
    for (value, status) in [
        (format!("bearer {CLIENT_TOKEN}"), 200),
        (format!("BEARER {CLIENT_TOKEN}"), 200),
        (format!("Bearer {CLIENT_TOKEN}x"), 401),
        (format!("Bearer {}", &CLIENT_TOKEN[1..]), 401),
        ("Bearer ".to_owned(), 401),
        ("Bearer".to_owned(), 401),
        (format!("Basic {CLIENT_TOKEN}"), 401),
        (CLIENT_TOKEN.to_owned(), 401),
    ] {
        let reply = server.anyone().send("GET", "/whoami", &[("Authorization", &value)], None);
        assert_eq!(reply.status, status, "{value:?}: {reply}");
    }
}

#[test]
fn workspaces() {
    let server = two_workspaces().start();
    let reply = server.collaborator().get(200, "/workspaces");
    let items = reply["items"].as_array().unwrap();
    let names: Vec<_> = items.iter().map(|item| item["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["one", "two"]);
    for item in items {
        let path = item["path"].as_str().unwrap();
        assert_eq!(item["id"], format!("ws_{}", &sha256(path)[..12]), "{item}");
        assert_eq!(item["workspaceType"], "local");
    }
    assert_eq!(reply["activeId"], items[0]["id"]);
}

#[test]
fn both_apis_list_the_same_workspaces() {
    let server = two_workspaces().start();
    let created = server.owner().post(200, "/api/workspaces", json!({"name": "by api"}));
    let paths = |list: &Value| {
        let mut paths: Vec<String> =
            list.as_array().unwrap().iter().map(|w| w["path"].as_str().unwrap().to_owned()).collect();
        paths.sort();
        paths
    };
    let ours = server.owner().get(200, "/api/workspaces");
    let openwork = server.owner().get(200, "/workspaces");
    assert_eq!(paths(&ours), paths(&openwork["items"]));
    assert!(paths(&ours).contains(&created["path"].as_str().unwrap().to_owned()));
    let first = server.owner().get(200, &format!("/api/workspaces/{NIL}"));
    assert!(first["path"].as_str().unwrap().ends_with("/one"), "the nil id is the first configured: {first}");
}

#[test]
fn activate() {
    let server = two_workspaces().start();
    let list = server.owner().get(200, "/workspaces");
    let second = list["items"][1]["id"].as_str().unwrap().to_owned();
    let path = format!("/workspaces/{second}/activate");
    // Observed: this is a 401, not a 403, also for a valid collaborator.
    let reply = server.collaborator().refused(401, "unauthorized", "POST", &path, None);
    // The message names the credential that was sent.
    let message = reply["message"].as_str().unwrap();
    assert!(message.starts_with("Invalid host token: the client token"), "{message}");
    server.anyone().refused(401, "unauthorized", "POST", &path, None);
    assert_eq!(server.owner().get(200, "/workspaces")["activeId"], list["activeId"]);
    let reply = server.owner().call("POST", &path, None).expect(200).value();
    assert_eq!((&reply["activeId"], &reply["workspace"]["id"]), (&json!(second), &json!(second)));
    let list = server.owner().get(200, "/workspaces");
    assert_eq!((&list["activeId"], &list["items"][0]["id"]), (&json!(second), &json!(second)));
    server.owner().refused(404, "workspace_not_found", "POST", "/workspaces/ws_000000000000/activate", None);
}

#[test]
fn mounted_forms() {
    let server = two_workspaces().start();
    let list = server.owner().get(200, "/workspaces");
    let second = list["items"][1]["id"].as_str().unwrap();
    let client = server.collaborator();
    assert_eq!(server.anyone().get(200, &format!("/w/{second}/health"))["ok"], true);
    let status = client.get(200, &format!("/w/{second}/status"));
    assert_eq!((&status["workspaceCount"], &status["workspace"]["id"]), (&json!(1), &json!(second)));
    assert_eq!(client.get(200, &format!("/w/{second}/capabilities"))["schemaVersion"], 1);
    let listed = client.get(200, &format!("/w/{second}/workspaces"));
    assert_eq!((listed["items"].as_array().unwrap().len(), &listed["items"][0]["id"]), (1, &json!(second)));
    for path in ["status", "workspaces"] {
        client.refused(404, "workspace_not_found", "GET", &format!("/w/ws_000000000000/{path}"), None);
        server.anyone().refused(401, "unauthorized", "GET", &format!("/w/{second}/{path}"), None);
    }
    for path in ["whoami", "tokens", "approvals", ""] {
        client.refused(404, "not_found", "GET", &format!("/w/{second}/{path}"), None);
    }
}

#[test]
fn unknown_routes_and_methods() {
    let server = Server::start();
    let owner = server.owner();
    for path in [
        "/",
        "/nothing",
        "/health/",
        "/status/",
        "/api",
        "/api/",
        "/api/workspaces/",
        "/workspace",
        "//health",
    ] {
        owner.refused(404, "not_found", "GET", path, None);
    }
    // Each family as observed: OpenWork has no 405, sandboxed.sh has one.
    owner.refused(404, "not_found", "POST", "/health", None);
    owner.refused(404, "not_found", "DELETE", "/status", None);
    for (method, path) in [
        ("PATCH", "/api/workspaces".to_owned()),
        ("DELETE", "/api/workspaces".to_owned()),
        ("POST", format!("/api/workspaces/{NIL}")),
        ("GET", format!("/api/workspaces/{NIL}/exec")),
        ("POST", "/api/health".to_owned()),
    ] {
        owner.refused(405, "method_not_allowed", method, &path, None);
        let reply = owner.call(method, &path, None);
        assert!(reply.header("allow").is_some(), "a 405 must name the allowed methods: {reply}");
    }
}

#[test]
fn strange_paths_are_refused_not_served() {
    let server = Server::start();
    for path in ["/%zz", "/w/%/status", "/w/%ff/status", "/w/..%2f..%2fetc/status", "/api/workspaces/%2e%2e"]
    {
        let reply = server.owner().send("GET", path, &[], None);
        assert!((400..500).contains(&reply.status), "{path}: {reply}");
        assert!(reply.value()["code"].is_string(), "{path}: {reply}");
    }
    server.anyone().get(200, "/health?whatever=%zz");
}

#[test]
fn credentials_are_checked_before_any_detail_is_returned() {
    let server = Server::start();
    for (method, path) in [
        ("GET", "/api/workspaces".to_owned()),
        ("POST", "/api/workspaces".to_owned()),
        ("GET", format!("/api/workspaces/{NIL}")),
        ("GET", "/api/workspaces/not-an-id".to_owned()),
        ("DELETE", "/api/workspaces/11111111-1111-4111-8111-111111111111".to_owned()),
        ("POST", format!("/api/workspaces/{NIL}/exec")),
        ("GET", "/capabilities".to_owned()),
        ("GET", "/whoami".to_owned()),
        ("GET", "/workspaces".to_owned()),
    ] {
        server.anyone().refused(401, "unauthorized", method, &path, None);
        server.with_token("wrong").refused(401, "unauthorized", method, &path, None);
    }
}

#[test]
fn collaborators_cannot_use_owner_routes() {
    let server = Server::start();
    let id = "11111111-1111-4111-8111-111111111111";
    let client = server.collaborator();
    for (method, path, body) in [
        ("POST", "/api/workspaces".to_owned(), json!({"name": "x"})),
        ("PUT", format!("/api/workspaces/{NIL}"), json!({"name": "x"})),
        ("DELETE", format!("/api/workspaces/{id}"), Value::Null),
    ] {
        let reply = client.refused(403, "forbidden", method, &path, Some(body));
        assert_eq!(reply["details"], json!({"required": "owner", "scope": "collaborator"}));
    }
    client.get(200, "/api/workspaces");
    client.get(200, &format!("/api/workspaces/{NIL}"));
}

#[test]
fn read_only_refuses_writes() {
    let server = two_workspaces().arg("--read-only").start();
    let owner = server.owner();
    for (method, path, body) in [
        ("POST", "/api/workspaces".to_owned(), json!({"name": "x"})),
        ("PUT", format!("/api/workspaces/{NIL}"), json!({"name": "x"})),
        ("DELETE", format!("/api/workspaces/{NIL}"), Value::Null),
        ("POST", format!("/api/workspaces/{NIL}/exec"), json!({"command": "touch written"})),
        ("POST", format!("/api/workspaces/{NIL}/build"), Value::Null),
        ("POST", format!("/api/workspaces/{NIL}/rerun-init"), Value::Null),
    ] {
        let reply = owner.refused(403, "read_only", method, &path, Some(body));
        assert_eq!(reply["message"], "Server is read-only");
    }
    assert_eq!(owner.get(200, "/status")["readOnly"], true);
    assert_eq!(owner.get(200, "/capabilities")["config"]["write"], false);
    owner.get(200, "/api/workspaces");
    // Observed: activate works in read-only mode, because it is stored in memory only.
    let second = owner.get(200, "/workspaces")["items"][1]["id"].as_str().unwrap().to_owned();
    owner.call("POST", &format!("/workspaces/{second}/activate"), None).expect(200);
}

fn allowed_origin(reply: &Reply) -> Option<&str> {
    reply.header("access-control-allow-origin")
}

#[test]
fn cors() {
    let server = Setup::new().arg("--cors=http://a.example,http://b.example").start();
    let from = |origin: &str| server.anyone().send("GET", "/health", &[("Origin", origin)], None).expect(200);
    let listed = from("http://b.example");
    assert_eq!(allowed_origin(&listed), Some("http://b.example"));
    assert!(listed.header("vary").is_some_and(|vary| vary.to_lowercase().contains("origin")), "{listed}");
    for other in ["http://c.example", "null", "http://a.example.evil", "https://a.example"] {
        assert_eq!(allowed_origin(&from(other)), None, "{other}");
    }
    // Pages can read errors, too.
    let refused = server.anyone().send("GET", "/status", &[("Origin", "http://a.example")], None).expect(401);
    assert_eq!(allowed_origin(&refused), Some("http://a.example"));
}

#[test]
fn cors_for_all() {
    let server = Setup::new().arg("--cors=*").start();
    let reply = server.anyone().send("GET", "/health", &[("Origin", "http://a.example")], None).expect(200);
    assert_eq!(allowed_origin(&reply), Some("*"));
}

#[test]
fn options_on_anything() {
    let server = Setup::new().arg("--cors=http://a.example").start();
    for path in ["/health", "/status", "/nothing", "/api/workspaces", "/api/workspaces/x/exec"] {
        let reply =
            server.anyone().send("OPTIONS", path, &[("Origin", "http://a.example")], None).expect(204);
        assert!(reply.body.is_empty());
        let list = |name: &str| reply.header(name).unwrap_or_default().to_ascii_lowercase();
        for method in ["get", "post", "put", "patch", "delete", "options"] {
            assert!(list("access-control-allow-methods").contains(method), "{method}: {reply}");
        }
        for header in [
            "authorization",
            "content-type",
            "x-openwork-host-token",
            "x-openwork-client-id",
            "x-opencode-directory",
        ] {
            assert!(list("access-control-allow-headers").contains(header), "{header}: {reply}");
        }
    }
}

#[test]
fn responses_have_a_content_type() {
    let server = Server::start();
    for (path, status) in [("/health", 200), ("/nothing", 404), ("/status", 401)] {
        let reply = server.anyone().call("GET", path, None).expect(status);
        let kind = reply.header("content-type").unwrap_or_default().to_owned();
        assert!(kind.starts_with("application/json"), "{path}: {kind}");
    }
}

#[test]
fn many_requests_on_one_connection() {
    let server = Server::start();
    let client = server.owner();
    for n in 0..500 {
        client.get(200, if n % 2 == 0 { "/health" } else { "/api/workspaces" });
        client.refused(404, "not_found", "POST", "/nothing", Some(json!({"with": "a body"})));
    }
}

/// The OpenWork server has this form for clients that use the address of one workspace as the server's address.
#[test]
fn a_workspace_has_its_routes_below_its_mount_as_well() {
    let server = two_workspaces().start();
    let list = server.owner().get(200, "/workspaces");
    let id = |n: usize| list["items"][n]["id"].as_str().unwrap().to_owned();
    let (first, second) = (id(0), id(1));
    for call in ["audit", "config", "artifacts", "skills"] {
        let plain = server.collaborator().get(200, &format!("/workspace/{second}/{call}"));
        let mounted = server.collaborator().get(200, &format!("/w/{second}/workspace/{second}/{call}"));
        assert_eq!(plain, mounted);
    }
    // The required scope is the same, and missing resources give the same errors.
    let skill = format!("/w/{second}/workspace/{second}/skills/x");
    server.anyone().refused(401, "unauthorized", "GET", &skill, None);
    for path in [
        format!("/w/{first}/workspace/{second}/config"),
        format!("/w/{first}/workspace/{first}"),
        format!("/w/{first}/workspace/"),
        format!("/w/{first}/whoami"),
        format!("/w/{first}/tokens"),
        format!("/w/{first}/approvals"),
    ] {
        server.owner().refused(404, "not_found", "GET", &path, None);
    }
    server.owner().refused(404, "workspace_not_found", "GET", "/w/x/workspace/x/config", None);
    let status = server.collaborator().get(200, &format!("/w/{second}/status"));
    assert_eq!((&status["workspaceCount"], &status["activeWorkspaceId"]), (&json!(1), &json!(second)));
    let seen = server.collaborator().get(200, &format!("/w/{second}/workspaces"));
    assert_eq!((seen["items"].as_array().unwrap().len(), &seen["activeId"]), (1, &json!(second)));
    for call in ["health", "capabilities"] {
        // Observed: the id is ignored.
        server.collaborator().get(200, &format!("/w/nowhere/{call}"));
    }
}

/// The OpenWork server gave OpenCode's password to every client. Its own orchestrator compares it with the client
/// token, so a collaborator gets it; a viewer does not, on any route that shows a workspace.
#[test]
fn viewers_cannot_read_the_password_of_opencode() {
    let server = two_workspaces()
        .env("OPENWORK_OPENCODE_BASE_URL", "http://127.0.0.1:4096")
        .env("OPENWORK_OPENCODE_USERNAME", "opencode")
        .env("OPENWORK_OPENCODE_PASSWORD", "s3cret-of-opencode")
        .start();
    let viewer = crate::scoped_tokens::client(&server, json!({"scope": "viewer"}));
    let list = server.collaborator().get(200, "/workspaces");
    let opencode = &list["items"][0]["opencode"];
    assert_eq!(
        (&opencode["username"], &opencode["password"]),
        (&json!("opencode"), &json!("s3cret-of-opencode"))
    );
    let id = list["items"][0]["id"].as_str().unwrap();
    for path in [
        "/workspaces",
        "/status",
        &format!("/w/{id}/status"),
        &format!("/w/{id}/workspaces"),
        "/capabilities",
    ] {
        let seen = viewer.call("GET", path, None).expect(200).text();
        assert!(!seen.contains("s3cret") && !seen.contains("username"), "{path}: {seen}");
    }
    assert_eq!(viewer.get(200, "/workspaces")["items"][0]["opencode"]["baseUrl"], "http://127.0.0.1:4096");
    // A stored token is not the token that the orchestrator set.
    let password = |client: &crate::client::Client| {
        client.get(200, "/workspaces")["items"][0]["opencode"]["password"].clone()
    };
    let stored = |scope: &str| crate::scoped_tokens::client(&server, json!({ "scope": scope }));
    assert_eq!(password(&stored("collaborator")), json!(null));
    assert_eq!(password(&stored("owner")), "s3cret-of-opencode");
    // The client token does not see an address and password that an owner has set.
    let change =
        json!({"baseUrl": "http://127.0.0.1:4097", "opencodeUsername": "u", "opencodePassword": "set-later"});
    server.owner().call("PATCH", &format!("/workspaces/{id}"), Some(&change)).expect(200);
    assert_eq!(password(&server.owner()), "set-later");
    assert_eq!(password(&server.collaborator()), json!(null));
}

/// Activating a workspace with a limited owner token affects that token only.
#[test]
fn activate_by_a_limited_owner_affects_only_its_token() {
    let server = two_workspaces().start();
    let list = server.owner().get(200, "/workspaces");
    let id = |at: usize| list["items"][at]["id"].as_str().unwrap().to_owned();
    let limited =
        |ids: Value| crate::scoped_tokens::client(&server, json!({"scope": "owner", "workspaceIds": ids}));
    let (one, both) = (limited(json!([id(1)])), limited(json!([id(0), id(1)])));
    for client in [&one, &both] {
        let reply = client.call("POST", &format!("/workspaces/{}/activate", id(1)), None).expect(200).value();
        assert_eq!(reply["activeId"], id(1));
        assert_eq!(client.get(200, "/workspaces")["activeId"], id(1));
        assert_eq!(client.get(200, "/status")["activeWorkspaceId"], id(1));
    }
    one.refused(403, "forbidden", "POST", &format!("/workspaces/{}/activate", id(0)), None);
    for client in [server.owner(), server.collaborator(), limited(json!([id(0), id(1)]))] {
        assert_eq!(client.get(200, "/workspaces")["activeId"], list["activeId"]);
    }
    // `/opencode` follows the active workspace, and never leads to a workspace that the token may not use.
    for (at, url) in [(0, "http://127.0.0.1:1"), (1, "http://127.0.0.1:2")] {
        server
            .owner()
            .call("PATCH", &format!("/workspaces/{}", id(at)), Some(&json!({"baseUrl": url})))
            .expect(200);
    }
    for (client, url) in [(one, ":2"), (both, ":2"), (server.collaborator(), ":1")] {
        let reply = client.refused(502, "opencode_unreachable", "GET", "/opencode/agent", None);
        assert!(reply["details"]["baseUrl"].as_str().unwrap().ends_with(url), "{reply}");
    }
}
