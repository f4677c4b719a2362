//! The approval that an approver is shown: the whole request, marked where it is truncated, and hidden from everybody
//! else.

use std::fs;
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::client::Reply;
use crate::fixture::{Place, seeded};
use crate::procs::{secs, wait_for};
use crate::scoped_tokens;
use crate::server::{Server, Setup};

/// A pending request: its item in the list of approvals, and the thread that waits for the reply.
struct Pending {
    item: Value,
    answer: thread::JoinHandle<Reply>,
}

fn ask(
    server: &Server,
    token: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Pending {
    let (client, method, path, body) =
        (server.with_token(token), method.to_owned(), path.to_owned(), body.to_owned());
    let headers: Vec<(String, String)> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let answer = thread::spawn(move || {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        client.send(&method, &path, &headers, Some(&body))
    });
    let item =
        wait_for("a question", secs(60), || server.owner().get(200, "/approvals")["items"].get(0).cloned());
    Pending { item, answer }
}

impl Pending {
    fn whole(&self, server: &Server) -> Value {
        server.owner().get(200, &format!("/approvals/{}", self.item["id"].as_str().unwrap()))
    }

    fn reply(self, server: &Server, reply: &str) -> Reply {
        let path = format!("/approvals/{}", self.item["id"].as_str().unwrap());
        server.owner().post(200, &path, json!({ "reply": reply }));
        self.answer.join().unwrap()
    }
}

fn manual() -> Server {
    Setup::new().args(&["--approval=manual", "--approval-timeout=120000"]).start()
}

fn container(server: &Server) -> Value {
    server.owner().post(200, "/api/workspaces", json!({"name": "c", "workspace_type": "container"}))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string"))
}

#[test]
fn the_approval_has_the_whole_request_and_its_caller() {
    let server = manual();
    let created = container(&server);
    let path = |call: &str| format!("/api/workspaces/{}{call}", text(&created["id"]));
    let (token, id) = scoped_tokens::make(&server, json!({"scope": "collaborator", "label": "bot"}));
    let body = json!({"command": "true && echo harmless", "env": {"BASH_ENV": "/dev/stdin"}, "stdin": "echo EVIL\n",
        "user": "root", "cwd": "/etc", "timeout_secs": 7});
    let pending = ask(&server, &token, "POST", &path("/exec?x=%20y"), &[], body.to_string().as_bytes());
    let item = pending.item.clone();
    let request = &item["request"];
    assert_eq!(request["body"], body, "{item}");
    assert_eq!((&request["method"], &request["path"]), (&json!("POST"), &json!(path("/exec"))));
    assert_eq!((&request["query"], &request["bodyEncoding"]), (&json!("x=%20y"), &json!("json")));
    let summary = text(&item["summary"]);
    assert!(summary.contains("true && echo harmless") && summary.contains("stdin"), "{summary}");
    let remaining = item["expires_in_ms"].as_u64().unwrap();
    assert!((60_000..=120_000).contains(&remaining), "{remaining}");
    assert_eq!(item["workspace"]["uuid"], created["id"]);
    assert_eq!(item["workspace"]["name"], "c");
    assert!(text(&item["workspace"]["id"]).starts_with("ws_"), "{item}");
    let asker = &item["asker"];
    assert_eq!((&asker["label"], &asker["tokenId"]), (&json!("bot"), &json!(id)));
    assert_eq!(asker["address"], "127.0.0.1");
    assert!(item.get("truncated").is_none(), "{item}");
    assert_eq!(pending.whole(&server)["request"], *request);
    pending.reply(&server, "deny").expect(403);

    let pending = ask(&server, &token, "POST", &path("/build?rebuild=true"), &[], b"");
    assert_eq!(pending.item["request"]["query"], "rebuild=true");
    assert_eq!(pending.item["request"]["bodyEncoding"], "none");
    assert!(text(&pending.item["summary"]).contains("rebuild=true"), "{}", pending.item);
    pending.reply(&server, "deny").expect(403);

    let command = format!("echo harmless #{}\necho EVIL2 \u{202e}", " ".repeat(450));
    let pending =
        ask(&server, &token, "POST", &path("/exec"), &[], json!({"command": command}).to_string().as_bytes());
    let summary = text(&pending.item["summary"]);
    assert!(summary.ends_with(" more bytes)"), "{summary}");
    assert_eq!(pending.item["request"]["body"]["command"], command);
    pending.reply(&server, "deny").expect(403);
    let command = "a\u{1b}[2K\u{202e}\"b\"\\c";
    let pending =
        ask(&server, &token, "POST", &path("/exec"), &[], json!({"command": command}).to_string().as_bytes());
    let summary = text(&pending.item["summary"]);
    assert!(summary.ends_with("a\\u{1b}[2K\\u{202e}\"b\"\\c"), "{summary}");
    pending.reply(&server, "deny").expect(403);

    let bytes = [0xff, 0, 1, b'x'];
    for (body, encoding, shown) in [
        (&bytes[..], "base64", json!(BASE64_STANDARD.encode(bytes))),
        (b"[1] typed\n", "text", json!("[1] typed\n")),
        (b"{\"a\":1}", "text", json!("{\"a\":1}")),
    ] {
        let kind = [("Content-Type", "application/octet-stream")];
        let pending = ask(&server, &token, "POST", &path("/runs/x/stdin"), &kind, body);
        let request = &pending.item["request"];
        assert_eq!((&request["bodyEncoding"], &request["body"]), (&json!(encoding), &shown), "{request}");
        pending.reply(&server, "deny").expect(403);
    }
    server.with_token(&token).refused(401, "unauthorized", "GET", "/approvals/x", None);
    server.owner().refused(404, "approval_not_found", "GET", "/approvals/x", None);
}

#[test]
fn a_large_request_is_truncated_in_the_list_complete_by_id_and_deleted_afterwards() {
    let server = manual();
    let created = container(&server);
    let path = format!("/api/workspaces/{}/exec", text(&created["id"]));
    let (token, _) = scoped_tokens::make(&server, json!({"scope": "collaborator"}));
    let many: Vec<u32> = (0..200_000).collect();
    for body in [
        json!({"stdin": "A\"\n\u{1}ß".repeat(300_000), "command": "cat"}),
        json!({"command": "cat", "args": many}),
        json!({"command": "B".repeat(1 << 20), "env": {"X": "Y"}}),
    ] {
        let pending = ask(&server, &token, "POST", &path, &[], body.to_string().as_bytes());
        let item = &pending.item;
        assert!(item.to_string().len() <= 64 << 10, "{}", item.to_string().len());
        assert!(!item["truncated"].as_array().unwrap().is_empty());
        assert!(
            text(&item["request"]["body"]["command"]).starts_with(['c', 'B']),
            "fields after a long text are included"
        );
        let whole = pending.whole(&server);
        assert!(whole["request"]["body"] == body && whole.get("truncated").is_none());
        assert_eq!(whole["actor"], item["actor"]);
        assert_eq!(whole["paths"], item["paths"]);
        pending.reply(&server, "deny").expect(403);
    }
    let odd = [b"x".repeat(200_000), vec![0xfe]].concat();
    let pending = ask(&server, &token, "POST", &path, &[], &odd);
    assert_eq!(pending.item["request"]["bodyEncoding"], "base64");
    assert_eq!(pending.whole(&server)["request"]["body"], BASE64_STANDARD.encode(&odd));
    assert_eq!(fs::read_dir(server.data.join("approvals")).unwrap().count(), 0, "the spool file has a name");
    let open = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", server.pid)).unwrap().flatten();
        let spool = server.data.join("approvals");
        fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(&spool))).count()
    };
    assert!(open() > 0);
    pending.reply(&server, "deny").expect(403);
    wait_for("the spool to be empty", secs(20), || (open() == 0).then_some(()));
}

#[test]
fn the_approved_request_runs_and_its_secrets_are_in_no_log() {
    let server = seeded().args(&["--approval=manual", "--approval-timeout=120000"]).start();
    let place = Place::ready(&server, json!({}));
    let (token, _) = scoped_tokens::make(&server, json!({"scope": "collaborator"}));
    let stdin = "0123456789".repeat(30_000);
    let body =
        json!({"command": "wc -c; echo $API_KEY", "env": {"API_KEY": "sk-VERYSECRET"}, "stdin": stdin});
    let pending = ask(&server, &token, "POST", &place.path("/exec"), &[], body.to_string().as_bytes());
    let done = pending.reply(&server, "allow").expect(200).value();
    assert_eq!(done["stdout"], "300000\nsk-VERYSECRET\n");
    let run = json!({"command": "read x; echo got", "env": {"API_KEY": "sk-VERYSECRET"}, "open_stdin": true});
    let pending = ask(&server, &token, "POST", &place.path("/runs"), &[], run.to_string().as_bytes());
    let run = pending.reply(&server, "allow").value();
    let stdin = place.path(&format!("/runs/{}/stdin?eof=true", text(&run["id"])));
    let kind = [("Content-Type", "application/octet-stream")];
    let pending = ask(&server, &token, "POST", &stdin, &kind, b"hunter2-typed\n");
    assert_eq!(pending.item["request"]["body"], "hunter2-typed\n");
    pending.reply(&server, "allow").expect(200);
    let mut logs = server.log();
    for entry in fs::read_dir(server.data.join("audit")).unwrap().flatten() {
        logs += &fs::read_to_string(entry.path()).unwrap();
    }
    assert!(logs.contains("workspace.exec in ") && logs.contains("\"action\":\"approval.allow\""), "{logs}");
    for secret in ["sk-VERYSECRET", "hunter2", "0123456789"] {
        assert!(!logs.contains(secret), "{secret}: {logs}");
    }
    // Late followers of the feed receive no secret either.
    let mut feed =
        crate::events::Events::ask(&server, "GET /approvals/events HTTP/1.1\r\nLast-Event-ID: 1\r\n", None);
    let asked = feed.wait("asked");
    assert!(!asked.data.to_string().contains("SECRET"), "{}", asked.data);
}

#[test]
fn of_concurrent_replies_only_one_is_accepted() {
    let server = manual();
    let created = container(&server);
    let path = format!("/api/workspaces/{}/exec", text(&created["id"]));
    let (token, _) = scoped_tokens::make(&server, json!({"scope": "collaborator"}));
    for _ in 0..10 {
        let pending = ask(&server, &token, "POST", &path, &[], b"{\"command\": \"true\"}");
        let answer = format!("/approvals/{}", text(&pending.item["id"]));
        let replies: Vec<u16> = thread::scope(|scope| {
            let reply = || server.owner().call("POST", &answer, Some(&json!({"reply": "deny"}))).status;
            let all: Vec<_> = (0..4).map(|_| scope.spawn(reply)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(replies.iter().filter(|status| **status == 200).count(), 1, "{replies:?}");
        pending.answer.join().unwrap().expect(403);
    }
}
