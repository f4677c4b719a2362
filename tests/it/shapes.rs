//! The shape of every response of the OpenWork API as a file in `tests/golden`: one for each row of the route table
//! that returns JSON, and one for each kind of refusal of a row. A row without a file fails here.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::thread;

use berth::api::routes::ROUTES;
use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::events::Events;
use crate::golden::golden;
use crate::procs::{secs, wait_for};
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, Setup};
use crate::trays::{Trays, id_of};
use crate::upstream::Upstream;

/// Rows whose responses have no JSON of berth: files, proxied streams, the page. Other tests cover them.
const SHAPELESS: [&str; 7] = [
    "/ui",
    "/w/:id/ui",
    "/ui/assets/toy.css",
    "/ui/assets/toy.js",
    "/opencode",
    "/w/:id/opencode",
    "/workspace/:id/opencode",
];

/// Rows whose golden files are written by the tests of their own module.
const ELSEWHERE: [&str; 23] = [
    "GET /workspace/:id/scheduler/jobs",
    "DELETE /workspace/:id/scheduler/jobs/:name",
    "GET /workspace/:id/audit",
    "GET /audit",
    "GET /tokens",
    "POST /tokens",
    "DELETE /tokens/:id",
    "GET /workspace/:id/config",
    "GET /workspace/:id/export",
    "GET /workspace/:id/plugins",
    "POST /workspace/:id/plugins",
    "DELETE /workspace/:id/plugins/*name",
    "GET /workspace/:id/skills",
    "GET /workspace/:id/skills/*name",
    "POST /workspace/:id/skills",
    "DELETE /workspace/:id/skills/*name",
    "GET /workspace/:id/mcp",
    "POST /workspace/:id/mcp",
    "DELETE /workspace/:id/mcp/:name",
    "GET /workspace/:id/commands",
    "POST /workspace/:id/commands",
    "GET /workspace/:id/events",
    // Bytes; their headers are tested in `trays`.
    "GET /workspace/:id/artifacts/:artifactId",
];

/// One server, and the set of rows seen.
struct Shapes {
    trays: Trays,
    seen: BTreeSet<String>,
}

impl Shapes {
    fn new(setup: Setup) -> Shapes {
        Shapes { trays: Trays::new(setup), seen: BTreeSet::new() }
    }

    fn id(&self) -> String {
        self.trays.path.trim_start_matches("/workspace/").to_owned()
    }

    /// Compares; `pattern` is the row as in the route table.
    #[track_caller]
    fn shape(&mut self, name: &str, row: &str, value: &Value) {
        self.seen.insert(row.to_owned());
        let server = &self.trays.server;
        let (id, port) = (self.id(), server.address.port());
        let (work, home) = (self.trays.work.to_str().unwrap(), server.scratch().path().to_str().unwrap());
        let hashes = [CLIENT_TOKEN, HOST_TOKEN].map(crate::scoped_tokens::sha256);
        let mut value = value.clone();
        plain(&mut value, port);
        let steady = [
            (work, "workspace"),
            (home, "scratch"),
            (&*id, "id"),
            (hashes[0].as_str(), "client hash"),
            (hashes[1].as_str(), "host hash"),
            (env!("CARGO_PKG_VERSION"), "version"),
        ];
        golden(name, &value, &steady);
    }
}

/// Replaces values that differ from run to run: numbers, and ids of approvals and events.
fn plain(value: &mut Value, port: u16) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let is_id = value.as_str().is_some_and(|text| uuid::Uuid::parse_str(text).is_ok());
                match key.as_str() {
                    "uptimeMs" | "expires_in_ms" => *value = json!(0),
                    // Keyed with a secret of the data folder, unless it is the observed SHA-256 of a token.
                    "tokenHash" if is_keyed(value) => *value = json!("{keyed hash}"),
                    "port" if *value == json!(port) => *value = json!("{port}"),
                    _ if is_id => *value = json!("{uuid}"),
                    _ => plain(value, port),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| plain(item, port)),
        _ => {}
    }
}

fn is_keyed(hash: &Value) -> bool {
    let observed = [CLIENT_TOKEN, HOST_TOKEN].map(crate::scoped_tokens::sha256);
    hash.as_str().is_some_and(|hash| {
        hash.len() == 64
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !observed.iter().any(|observed| observed == hash)
    })
}

fn json_reply(reply: Reply, status: u16) -> Value {
    reply.expect(status).value()
}

#[test]
fn every_reply_has_its_observed_shape() {
    let upstream = Upstream::start(|seen, stream| {
        let answer: &[u8] = match seen.line.contains("dispose") {
            true => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue",
            false => b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        };
        stream.write_all(answer).is_ok()
    });
    let setup = Setup::new()
        .args(&["--approval=auto", "--opencode-username=opencode", "--opencode-password=s3cret"])
        .arg(format!("--opencode-base-url={}", upstream.url()));
    let mut all = Shapes::new(setup);
    let (owner, client, anyone) =
        (all.trays.server.owner(), all.trays.server.collaborator(), all.trays.server.anyone());
    let viewer = crate::scoped_tokens::client(&all.trays.server, json!({"scope": "viewer", "label": "tv"}));
    let (id, w) = (all.id(), all.trays.path.clone());
    let address = upstream.address.to_string();
    let with_upstream = |value: Value| -> Value {
        serde_json::from_str(&value.to_string().replace(&address, "{upstream}")).unwrap()
    };

    // The server.
    all.shape("health", "GET /health", &anyone.get(200, "/health"));
    all.shape("health", "GET /w/:id/health", &anyone.get(200, &format!("/w/{id}/health")));
    all.shape("status", "GET /status", &with_upstream(busy_free(client.get(200, "/status"))));
    let mounted = client.get(200, &format!("/w/{id}/status"));
    all.shape("status", "GET /w/:id/status", &with_upstream(busy_free(mounted)));
    all.shape("status_viewer", "GET /status", &with_upstream(busy_free(viewer.get(200, "/status"))));
    all.shape("capabilities", "GET /capabilities", &client.get(200, "/capabilities"));
    all.shape("capabilities", "GET /capabilities", &viewer.get(200, "/capabilities"));
    let mounted = client.get(200, &format!("/w/{id}/capabilities"));
    all.shape("capabilities", "GET /w/:id/capabilities", &mounted);
    let phone = all.trays.server.collaborator().with("X-OpenWork-Client-Id", "phone");
    all.shape("whoami", "GET /whoami", &phone.get(200, "/whoami"));
    all.shape("whoami_host", "GET /whoami", &owner.get(200, "/whoami"));
    all.shape("workspaces", "GET /workspaces", &with_upstream(client.get(200, "/workspaces")));
    all.shape("workspaces_viewer", "GET /workspaces", &with_upstream(viewer.get(200, "/workspaces")));
    let mounted = client.get(200, &format!("/w/{id}/workspaces"));
    all.shape("workspaces", "GET /w/:id/workspaces", &with_upstream(mounted));
    let active = owner.post(200, &format!("/workspaces/{id}/activate"), json!({}));
    all.shape("activate", "POST /workspaces/:id/activate", &with_upstream(active));

    let row = "PATCH /workspaces/:id";
    let url = json!({"baseUrl": format!("http://{address}/x"), "directory": "/d", "opencodeUsername": "u"});
    let moved = json_reply(owner.call("PATCH", &format!("/workspaces/{id}"), Some(&url)), 200);
    all.shape("workspace_patched", row, &with_upstream(moved));
    let url = Some(json!({"baseUrl": "http://169.254.169.254"}));
    let invalid = owner.refused(400, "invalid_base_url", "PATCH", &format!("/workspaces/{id}"), url);
    all.shape("workspace_patch_refused", row, &invalid);
    owner.call("PATCH", &format!("/workspaces/{id}"), Some(&json!({"baseUrl": null}))).expect(200);

    // Files.
    let sent =
        json_reply(all.trays.upload("/inbox?path=a/b.txt", &[("name=file; filename=x", b"hello")]), 200);
    all.shape("inbox_upload", "POST /workspace/:id/inbox", &sent);
    all.shape("inbox", "GET /workspace/:id/inbox", &client.get(200, &format!("{w}/inbox")));
    let none =
        client.refused(404, "inbox_item_not_found", "GET", &format!("{w}/inbox/{}", id_of("no")), None);
    all.shape("inbox_item_not_found", "GET /workspace/:id/inbox/:inboxId", &none);
    all.trays.offer("out/r.txt", b"12345");
    all.shape("artifacts", "GET /workspace/:id/artifacts", &client.get(200, &format!("{w}/artifacts")));
    let none =
        client.refused(404, "artifact_not_found", "GET", &format!("{w}/artifacts/{}", id_of("no")), None);
    all.shape("artifact_not_found", "GET /workspace/:id/artifacts/:artifactId", &none);
    let invalid = client.refused(400, "invalid_artifact", "GET", &format!("{w}/artifacts/%21"), None);
    all.shape("artifact_invalid", "GET /workspace/:id/artifacts/:artifactId", &invalid);
    let row = "POST /workspace/:id/inbox";
    let up = json_reply(all.trays.upload("/inbox?path=..", &[("name=file; filename=x", b"1")]), 400);
    all.shape("inbox_invalid_path", row, &up);
    let missing = json_reply(all.trays.upload("/inbox", &[("name=other; filename=x", b"1")]), 400);
    all.shape("inbox_file_required", row, &missing);
    let json = client.refused(400, "invalid_payload", "POST", &format!("{w}/inbox"), Some(json!({})));
    all.shape("inbox_not_multipart", row, &json);

    // Skills, commands, MCP servers and plugins.
    let patched =
        json_reply(client.call("PATCH", &format!("{w}/config"), Some(&json!({"openwork": {"a": 1}}))), 200);
    all.shape("config_patched", "PATCH /workspace/:id/config", &patched);
    let empty = client.refused(400, "invalid_payload", "PATCH", &format!("{w}/config"), Some(json!({})));
    all.shape("config_patch_empty", "PATCH /workspace/:id/config", &empty);
    // A change of a list returns the new list.
    for (list, body, name) in [
        ("plugins", json!({"spec": "p@1"}), "p"),
        ("mcp", json!({"name": "m", "config": {"type": "remote", "url": "http://h"}}), "m"),
        ("commands", json!({"name": "c", "template": "t"}), ""),
    ] {
        let path = format!("{w}/{list}");
        let created = client.post(200, &path, body);
        assert_eq!((&created, created["items"].as_array().unwrap().len()), (&client.get(200, &path), 1));
        if !name.is_empty() {
            let remaining = client.delete(200, &format!("{path}/{name}"));
            assert_eq!((&remaining, &remaining["items"]), (&client.get(200, &path), &json!([])));
        }
    }
    let row = "DELETE /workspace/:id/commands/*name";
    all.shape("command_deleted", row, &client.delete(200, &format!("{w}/commands/c")));
    let skill = json!({"name": "s", "content": "# s", "description": "d"});
    let body = json!({"openwork": {"b": 2}, "skills": [skill], "commands": [{"name": "n", "template": "t"}]});
    let row = "POST /workspace/:id/import";
    all.shape("import_dry", row, &client.post(200, &format!("{w}/import?dryRun=true"), body.clone()));
    all.shape("imported", row, &client.post(200, &format!("{w}/import"), body));
    let invalid = json!({"skills": [{"name": "No Name", "content": "x"}]});
    let invalid = client.refused(400, "invalid_skill_name", "POST", &format!("{w}/import"), Some(invalid));
    all.shape("import_refused", row, &invalid);
    let mut feed = Events::ask(
        &all.trays.server,
        &format!("GET {w}/events/stream HTTP/1.1\r\nLast-Event-ID: 0\r\n"),
        None,
    );
    let first = feed.next().unwrap();
    all.shape("event_streamed", "GET /workspace/:id/events/stream", &json!([first.name, first.data]));
    let reloaded = client.post(200, &format!("{w}/engine/reload"), json!({}));
    all.shape("engine_reloaded", "POST /workspace/:id/engine/reload", &reloaded);

    // Refusals of a row.
    let none = client.refused(404, "workspace_not_found", "GET", "/workspace/ws_000000000000/config", None);
    all.shape("workspace_not_found", "GET /workspace/:id/config", &none);
    all.shape("not_found", "", &client.refused(404, "not_found", "GET", "/nothing", None));
    let body = [("Content-Type", "application/json")];
    let invalid = client.send("PATCH", &format!("{w}/config"), &body, Some(b"{"));
    all.shape("json_invalid", "PATCH /workspace/:id/config", &json_reply(invalid, 400));
    let low = viewer.refused(403, "forbidden", "PATCH", &format!("{w}/config"), Some(json!({})));
    all.shape("forbidden_viewer", "PATCH /workspace/:id/config", &low);
    let low = viewer.refused(403, "forbidden", "POST", "/opencode/session", Some(json!({})));
    all.shape("proxy_viewer", "POST /opencode/*", &low);
    let low = client.refused(403, "forbidden", "POST", "/opencode/permission/p/reply", Some(json!({})));
    all.shape("proxy_permission", "POST /opencode/*", &low);
    let none =
        owner.refused(404, "approval_not_found", "POST", "/approvals/x", Some(json!({"reply": "allow"})));
    all.shape("approval_not_found", "POST /approvals/:id", &none);

    let others = [gated(), closed(), unreachable()].concat();
    all.seen.extend(others);
    every_row_was_seen(&all.seen);
}

/// Counters that vary.
fn busy_free(mut status: Value) -> Value {
    for key in ["connections", "runs"] {
        assert!(status.as_object_mut().unwrap().remove(key).is_some(), "{key}: {status}");
    }
    status
}

/// Writes that wait for approval, and their outcomes.
fn gated() -> Vec<String> {
    let setup = Setup::new().args(&["--approval=manual", "--approval-timeout=60000"]);
    let mut all = Shapes::new(setup);
    let owner = all.trays.server.owner();
    let row = "GET /approvals";
    all.shape("approvals_none", row, &owner.get(200, row.trim_start_matches("GET ")));
    let mut feed = Events::ask(&all.trays.server, "GET /approvals/events HTTP/1.1\r\n", None);
    let pending = feed.next().unwrap();
    all.shape("approvals_pending", "GET /approvals/events", &json!([pending.name, pending.data]));
    let write = |client: Client, path: String| {
        thread::spawn(move || client.call("PATCH", &path, Some(&json!({"openwork": {"a": 1}}))))
    };
    // Denied first, so that both find the same file.
    for (reply, status) in [("deny", 403), ("allow", 200)] {
        let waiting = write(all.trays.server.collaborator(), format!("{}/config", all.trays.path));
        let list = wait_for("a question", secs(60), || {
            Some(owner.get(200, "/approvals")).filter(|list| list["items"][0].is_object())
        });
        all.shape("approvals", row, &list);
        let approval = feed.next().unwrap();
        all.shape("approval_asked", "GET /approvals/events", &json!([approval.name, approval.data]));
        let path = format!("/approvals/{}", list["items"][0]["id"].as_str().unwrap());
        all.shape("approval_whole", "GET /approvals/:id", &owner.get(200, &path));
        let answered = owner.post(200, &path, json!({ "reply": reply }));
        all.shape(&format!("approval_{reply}"), "POST /approvals/:id", &answered);
        let ended = feed.next().unwrap();
        all.shape(
            &format!("approval_ended_{reply}"),
            "GET /approvals/events",
            &json!([ended.name, ended.data]),
        );
        let response = json_reply(waiting.join().unwrap(), status);
        if status == 403 {
            all.shape("write_denied", "PATCH /workspace/:id/config", &response);
        }
    }
    all.seen.into_iter().collect()
}

/// A server in read-only mode without trays.
fn closed() -> Vec<String> {
    let setup = Setup::new()
        .args(&["--approval=auto", "--read-only"])
        .env("OPENWORK_INBOX_ENABLED", "0")
        .env("OPENWORK_OUTBOX_ENABLED", "0")
        .env("OPENWORK_TOY_UI", "0");
    let mut all = Shapes::new(setup);
    let (client, w) = (all.trays.server.collaborator(), all.trays.path.clone());
    all.shape("capabilities_closed", "GET /capabilities", &client.get(200, "/capabilities"));
    let reply =
        client.refused(403, "read_only", "PATCH", &format!("{w}/config"), Some(json!({"openwork": {}})));
    all.shape("read_only", "PATCH /workspace/:id/config", &reply);
    let reply = client.refused(404, "inbox_disabled", "GET", &format!("{w}/inbox/{}", id_of("x")), None);
    all.shape("inbox_disabled", "GET /workspace/:id/inbox/:inboxId", &reply);
    let reply = client.refused(404, "outbox_disabled", "GET", &format!("{w}/artifacts/{}", id_of("x")), None);
    all.shape("outbox_disabled", "GET /workspace/:id/artifacts/:artifactId", &reply);
    all.shape("trays_disabled", "GET /workspace/:id/artifacts", &client.get(200, &format!("{w}/artifacts")));
    let reply = all.trays.server.anyone().refused(404, "ui_disabled", "GET", "/ui", None);
    all.shape("ui_disabled", "GET /ui", &reply);
    let reply = client.refused(400, "opencode_unconfigured", "GET", "/opencode/x", None);
    all.shape("opencode_unconfigured", "GET /opencode/*", &reply);
    all.seen.into_iter().collect()
}

/// An OpenCode that is not running, and one that does not reload.
fn unreachable() -> Vec<String> {
    let upstream = Upstream::saying(
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nno",
    );
    let mut all = Shapes::new(
        Setup::new().arg("--approval=auto").arg(format!("--opencode-base-url={}", upstream.url())),
    );
    let (client, path) = (all.trays.server.collaborator(), format!("{}/engine/reload", all.trays.path));
    let reply = client.refused(502, "opencode_reload_failed", "POST", &path, None);
    all.shape("engine_reload_failed", "POST /workspace/:id/engine/reload", &reply);
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut without_upstream = Shapes::new(Setup::new().arg(format!("--opencode-base-url=http://{unused}")));
    let reply = without_upstream.trays.server.collaborator().refused(
        502,
        "opencode_unreachable",
        "GET",
        "/opencode/x",
        None,
    );
    let reply = serde_json::from_str(&reply.to_string().replace(&unused.to_string(), "{upstream}")).unwrap();
    without_upstream.shape("opencode_unreachable", "GET /opencode/*", &reply);
    all.seen.into_iter().chain(without_upstream.seen).collect()
}

fn every_row_was_seen(seen: &BTreeSet<String>) {
    let mut missing = Vec::new();
    for route in ROUTES.iter().filter(|route| !route.pattern.starts_with("/api/")) {
        let row = format!("{} {}", route.method.as_str(), route.pattern);
        let shapeless = SHAPELESS.contains(&route.pattern.trim_end_matches("/*"));
        if !shapeless && !ELSEWHERE.contains(&row.as_str()) && !seen.contains(&row) {
            missing.push(row);
        }
    }
    assert!(missing.is_empty(), "no golden file shows the responses of these rows: {missing:#?}");
}
