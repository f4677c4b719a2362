//! The audit log: its entries, their shape, and the cost of reading.

use std::fs;
use std::io::Write as _;
use std::thread;

use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::golden::golden;
use crate::procs::{memory, secs, wait_for};
use crate::scoped_tokens;
use crate::server::{NIL, Server, Setup};

/// Uploads a file, which needs approval in manual mode.
pub fn upload(client: &Client, workspace: &str, name: &str) -> Reply {
    let body = format!(
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\nhello\r\n--b--\r\n"
    );
    let kind = [("Content-Type", "multipart/form-data; boundary=b")];
    client.send("POST", &format!("/workspace/{workspace}/inbox"), &kind, Some(body.as_bytes()))
}

fn workspace(server: &Server) -> String {
    server.owner().get(200, "/workspaces")["items"][0]["id"].as_str().unwrap().to_owned()
}

fn items(server: &Server, path: &str) -> Vec<Value> {
    server.owner().get(200, path)["items"].as_array().unwrap().clone()
}

fn keys(line: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[test]
fn writes_are_recorded_also_when_denied_or_failed() {
    let server = Setup::new().arg("--approval=auto").start();
    let id = workspace(&server);
    let path = format!("/workspace/{id}/audit");
    let client = server.collaborator().with("X-OpenWork-Client-Id", "phone");
    upload(&client, &id, "a.txt").expect(200);
    let line = items(&server, &path).remove(0);
    assert_eq!(keys(&line), ["action", "actor", "id", "summary", "target", "timestamp", "workspaceId"]);
    assert_eq!((&line["action"], &line["workspaceId"]), (&json!("workspace.inbox.upload"), &json!(id)));
    assert_eq!(line["target"], ".opencode/openwork/inbox/a.txt");
    let actor = client.get(200, "/whoami")["actor"].clone();
    assert_eq!((&line["actor"]["scope"], &actor["clientId"]), (&actor["scope"], &json!("phone")));
    assert_eq!((&line["actor"]["type"], &line["actor"]["clientId"]), (&json!("remote"), &json!("phone")));
    // Viewers read this log: it identifies the token by a keyed hash; only the holder is shown the plain hash, as
    // observed.
    assert_ne!(line["actor"]["tokenHash"], actor["tokenHash"]);
    assert!(line["timestamp"].as_u64().unwrap() > 1_700_000_000_000, "{line}");
    // The configuration reports the same entry as its last change.
    let config = client.get(200, &format!("/workspace/{id}/config"));
    assert_eq!(config["updatedAt"], line["timestamp"]);
    // One write denied by its token's scope, and one that failed.
    let viewer = scoped_tokens::client(&server, json!({"scope": "viewer"}));
    upload(&viewer, &id, "b.txt").expect(403);
    upload(&client, &id, "..").expect(400);
    let exec = format!("/api/workspaces/{NIL}/exec");
    client.refused(403, "forbidden", "POST", &exec, Some(json!({"command": "id"})));
    server.owner().post(200, &exec, json!({"command": "id"}));
    let lines = items(&server, &path);
    let reply: Vec<_> = lines
        .iter()
        .map(|line| (line["action"].as_str().unwrap(), line["result"].as_str(), line["status"].as_u64()))
        .collect();
    assert_eq!(
        reply,
        [
            ("workspace.exec", None, None),
            ("workspace.exec", Some("denied"), Some(403)),
            ("workspace.inbox.upload", Some("failed"), Some(400)),
            ("workspace.inbox.upload", Some("denied"), Some(403)),
            ("workspace.inbox.upload", None, None),
        ]
    );
    assert_eq!((&lines[3]["code"], &lines[3]["actor"]["scope"]), (&json!("forbidden"), &json!("viewer")));
    // Reads are not recorded.
    assert_eq!(items(&server, &format!("{path}?limit=1000")).len(), 5);
    assert_eq!(items(&server, &format!("{path}?limit=2")).len(), 2);
    assert_eq!(items(&server, &format!("{path}?limit=x")).len(), 5);
    viewer.get(200, &path);
    assert_eq!(client.get(200, &format!("/workspace/{id}/config")), config, "only successful changes count");
    server.owner().refused(404, "workspace_not_found", "GET", "/workspace/ws_000000000000/audit", None);
}

#[test]
fn decisions_tokens_and_failed_logins_are_recorded() {
    let server = Setup::new().arg("--approval=manual").start();
    let id = workspace(&server);
    let write = |name: &'static str, reply: &str, status: u16| {
        let (client, workspace) = (server.owner(), id.clone());
        let waiting = thread::spawn(move || upload(&client, &workspace, name));
        let request = wait_for("a question", secs(20), || items(&server, "/approvals").first().cloned());
        let path = format!("/approvals/{}", request["id"].as_str().unwrap());
        server.owner().post(200, &path, json!({ "reply": reply }));
        waiting.join().unwrap().expect(status);
        request
    };
    let denied = write("a", "deny", 403);
    let allowed = write("b", "allow", 200);
    let lines = items(&server, &format!("/workspace/{id}/audit"));
    let of = |action: &str| lines.iter().filter(|line| line["action"] == action).collect::<Vec<_>>();
    assert_eq!(of("approval.allow")[0]["target"], allowed["id"]);
    assert_eq!(of("approval.deny")[0]["target"], denied["id"]);
    assert_eq!(of("approval.deny")[0]["summary"], denied["summary"]);
    assert_eq!(of("approval.deny")[0]["actor"]["type"], "host");
    let writes = of("workspace.inbox.upload");
    assert_eq!((writes.len(), &writes[0]["result"]), (2, &Value::Null));
    assert_eq!((&writes[1]["result"], &writes[1]["code"]), (&json!("denied"), &json!("write_denied")));
    assert_eq!(lines.len(), 4);
    let hash = lines[0]["actor"]["tokenHash"].as_str().unwrap().to_owned();
    let shape = |name: &str, value: &Value| {
        let mut steady =
            vec![(hash.as_str(), "hash"), (&*id, "workspace"), (server.work.to_str().unwrap(), "folder")];
        let ids: Vec<String> =
            [&denied, &allowed].iter().map(|request| request["id"].as_str().unwrap().into()).collect();
        steady.extend(ids.iter().map(|id| (id.as_str(), "approval")));
        // The routes own the text of their summaries, so it is not part of the shape.
        let expected = [&denied, &allowed].map(|request| request["summary"].as_str().unwrap());
        steady.extend(expected.map(|summary| (summary, "summary")));
        let lines: Vec<String> = lines.iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
        steady.extend(lines.iter().map(|id| (id.as_str(), "line")));
        golden(name, value, &steady);
    };
    // The value varies from run to run.
    let mut steady = denied.clone();
    steady["expires_in_ms"] = json!(0);
    shape("approval", &steady);
    shape("audit_decisions", &json!([of("approval.allow"), of("approval.deny")]));
    shape("audit_writes", &json!(writes));

    let (secret, token) = scoped_tokens::make(&server, json!({"scope": "viewer", "label": "tv"}));
    scoped_tokens::revoke(&server, &token);
    server.with_token(&secret).refused(401, "unauthorized", "GET", "/whoami", None);
    for _ in 0..5 {
        server.with_token("guess").refused(401, "unauthorized", "GET", "/status", None);
    }
    let lines = items(&server, "/audit");
    let answer: Vec<_> = lines.iter().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(answer, ["auth.failed", "tokens.delete", "tokens.create"]);
    assert_eq!((&lines[1]["target"], &lines[1]["summary"]), (&json!(token), &json!("the viewer token 'tv'")));
    assert!(lines[0]["summary"].as_str().unwrap().contains("127.0.0.1"), "{}", lines[0]);
    // No entry contains a secret.
    for entry in fs::read_dir(server.data.join("audit")).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap();
        assert!(!text.contains(&secret) && !text.contains("guess") && !text.contains("it-host"), "{text}");
    }
    server.collaborator().refused(401, "unauthorized", "GET", "/audit", None);
}

#[test]
fn the_old_log_in_the_workspace_is_read_without_following_links() {
    let server = Server::start();
    let id = workspace(&server);
    let path = format!("/workspace/{id}/audit");
    let folder = server.work.join(".opencode/openwork");
    fs::create_dir_all(&folder).unwrap();
    let line = |timestamp: u64| {
        json!({"id": "x", "workspaceId": id, "actor": {"type": "remote"}, "action": "config.patch", "target":
            "opencode.json", "summary": "Patched workspace config", "timestamp": timestamp})
    };
    let mut old = fs::File::create(folder.join("audit.jsonl")).unwrap();
    for n in 0..300 {
        writeln!(old, "{}", line(1_770_000_000_000 + n)).unwrap();
    }
    let lines = items(&server, &format!("{path}?limit=200"));
    assert_eq!((lines.len(), &lines[0]), (200, &line(1_770_000_000_299)));
    // A link to a file outside the workspace is not followed.
    let outside = server.scratch().file("outside.jsonl", line(1).to_string());
    fs::remove_file(folder.join("audit.jsonl")).unwrap();
    std::os::unix::fs::symlink(outside, folder.join("audit.jsonl")).unwrap();
    assert!(items(&server, &path).is_empty());
    // A FIFO does not block the request.
    fs::remove_file(folder.join("audit.jsonl")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.join("audit.jsonl"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(items(&server, &path).is_empty());
}

/// Reading a log of 64 MB, most of it in one unterminated line, takes a few MB of memory.
#[test]
fn reading_the_log_takes_constant_memory() {
    let server = Server::start();
    let id = workspace(&server);
    let path = format!("/workspace/{id}/audit?limit=200");
    let folder = server.work.join(".opencode/openwork");
    fs::create_dir_all(&folder).unwrap();
    let mut old = fs::File::create(folder.join("audit.jsonl")).unwrap();
    old.set_len(64 << 20).unwrap();
    std::io::Seek::seek(&mut old, std::io::SeekFrom::End(0)).unwrap();
    writeln!(old, "\n{}", json!({"action": "last", "timestamp": 1})).unwrap();
    items(&server, "/audit");
    let before = memory(server.pid, "VmHWM");
    let lines = items(&server, &path);
    assert_eq!(lines.len(), 1);
    let grown = memory(server.pid, "VmHWM").saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes");
}
