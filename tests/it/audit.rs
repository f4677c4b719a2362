//! The audit log: what is in it, in which shape, and what it costs to read.

use std::fs;
use std::io::Write as _;
use std::thread;

use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::golden::golden;
use crate::procs::{memory, secs, wait_for};
use crate::scoped_tokens;
use crate::server::{NIL, Server, Setup};

/// A write that waits for approval in manual mode.
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
fn writes_are_there_in_the_observed_shape_also_those_that_were_denied_or_failed() {
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
    // Viewers read this: it names the token by a keyed hash, while its holder is shown the plain one, as observed.
    assert_ne!(line["actor"]["tokenHash"], actor["tokenHash"]);
    assert!(line["timestamp"].as_u64().unwrap() > 1_700_000_000_000, "{line}");
    // It is what the configuration calls its last change.
    let config = client.get(200, &format!("/workspace/{id}/config"));
    assert_eq!(config["updatedAt"], line["timestamp"]);
    // Denied by its scope, and failed.
    let viewer = scoped_tokens::client(&server, json!({"scope": "viewer"}));
    upload(&viewer, &id, "b.txt").expect(403);
    upload(&client, &id, "..").expect(400);
    let exec = format!("/api/workspaces/{NIL}/exec");
    client.refused(403, "forbidden", "POST", &exec, Some(json!({"command": "id"})));
    server.owner().post(200, &exec, json!({"command": "id"}));
    let lines = items(&server, &path);
    let told: Vec<_> = lines
        .iter()
        .map(|line| (line["action"].as_str().unwrap(), line["result"].as_str(), line["status"].as_u64()))
        .collect();
    assert_eq!(
        told,
        [
            ("workspace.exec", None, None),
            ("workspace.exec", Some("denied"), Some(403)),
            ("workspace.inbox.upload", Some("failed"), Some(400)),
            ("workspace.inbox.upload", Some("denied"), Some(403)),
            ("workspace.inbox.upload", None, None),
        ]
    );
    assert_eq!((&lines[3]["code"], &lines[3]["actor"]["scope"]), (&json!("forbidden"), &json!("viewer")));
    // Reads are no writes.
    assert_eq!(items(&server, &format!("{path}?limit=1000")).len(), 5);
    assert_eq!(items(&server, &format!("{path}?limit=2")).len(), 2);
    assert_eq!(items(&server, &format!("{path}?limit=x")).len(), 5);
    viewer.get(200, &path);
    assert_eq!(client.get(200, &format!("/workspace/{id}/config")), config, "only a change is one");
    server.owner().refused(404, "workspace_not_found", "GET", "/workspace/ws_000000000000/audit", None);
}

#[test]
fn decisions_tokens_and_failed_logins_are_there() {
    let server = Setup::new().arg("--approval=manual").start();
    let id = workspace(&server);
    let write = |name: &'static str, reply: &str, status: u16| {
        let (client, workspace) = (server.owner(), id.clone());
        let waiting = thread::spawn(move || upload(&client, &workspace, name));
        let asked = wait_for("a question", secs(20), || items(&server, "/approvals").first().cloned());
        let path = format!("/approvals/{}", asked["id"].as_str().unwrap());
        server.owner().post(200, &path, json!({ "reply": reply }));
        waiting.join().unwrap().expect(status);
        asked
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
            [&denied, &allowed].iter().map(|asked| asked["id"].as_str().unwrap().into()).collect();
        steady.extend(ids.iter().map(|id| (id.as_str(), "approval")));
        // What it says is the business of whoever writes there.
        let said = [&denied, &allowed].map(|asked| asked["summary"].as_str().unwrap());
        steady.extend(said.map(|summary| (summary, "summary")));
        let lines: Vec<String> = lines.iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
        steady.extend(lines.iter().map(|id| (id.as_str(), "line")));
        golden(name, value, &steady);
    };
    // What varies from run to run.
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
    let told: Vec<_> = lines.iter().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(told, ["auth.failed", "tokens.delete", "tokens.create"]);
    assert_eq!((&lines[1]["target"], &lines[1]["summary"]), (&json!(token), &json!("the viewer token 'tv'")));
    assert!(lines[0]["summary"].as_str().unwrap().contains("127.0.0.1"), "{}", lines[0]);
    // No secret of anybody stands in any of them.
    for entry in fs::read_dir(server.data.join("audit")).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap();
        assert!(!text.contains(&secret) && !text.contains("guess") && !text.contains("it-host"), "{text}");
    }
    server.collaborator().refused(401, "unauthorized", "GET", "/audit", None);
}

#[test]
fn the_old_place_is_read_beneath_the_workspace_and_a_link_leads_nowhere() {
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
    // A link to a file outside is a file inside, or nothing.
    let outside = server.scratch().file("outside.jsonl", line(1).to_string());
    fs::remove_file(folder.join("audit.jsonl")).unwrap();
    std::os::unix::fs::symlink(outside, folder.join("audit.jsonl")).unwrap();
    assert!(items(&server, &path).is_empty());
    // A FIFO keeps nobody waiting.
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

/// 64 MB of log, most of it in one line without an end, cost a few.
#[test]
fn reading_takes_constant_memory() {
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
