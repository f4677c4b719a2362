//! The event stream of approvals, and `berth approvals` and `berth status` beside a running server.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::thread;

use serde_json::{Value, json};

use crate::audit::upload;
use crate::client::Reply;
use crate::events::Events;
use crate::procs::{secs, wait_for};
use crate::scoped_tokens;
use crate::server::{BINARY, HOST_TOKEN, Server, Setup, berth};

fn manual() -> Server {
    Setup::new().args(&["--approval=manual", "--approval-timeout=60000"]).start()
}

fn workspace(server: &Server) -> String {
    server.owner().get(200, "/workspaces")["items"][0]["id"].as_str().unwrap().to_owned()
}

/// Starts an upload that waits for approval; the thread returns its reply.
fn write(server: &Server, name: &'static str) -> thread::JoinHandle<Reply> {
    let (client, workspace) = (server.collaborator(), workspace(server));
    thread::spawn(move || upload(&client, &workspace, name))
}

fn answer(server: &Server, id: &Value, reply: &str) {
    let path = format!("/approvals/{}", id.as_str().unwrap());
    server.owner().post(200, &path, json!({ "reply": reply }));
}

#[test]
fn the_stream_lists_pending_approvals_then_each_start_and_end_and_resumes() {
    let server = manual();
    let early = write(&server, "early");
    let waiting = || server.owner().get(200, "/approvals")["items"].as_array().unwrap().clone();
    let first = wait_for("a question", secs(20), || waiting().pop());
    let follow = |last: &str| {
        let resume = if last.is_empty() { String::new() } else { format!("Last-Event-ID: {last}\r\n") };
        Events::ask(&server, &format!("GET /approvals/events HTTP/1.1\r\n{resume}"), None)
    };
    let mut feed = follow("");
    let pending = feed.next().unwrap();
    let steady = |item: &Value| {
        let mut item = item.clone();
        item["expires_in_ms"] = json!(0);
        item
    };
    assert_eq!((pending.name.as_str(), steady(&pending.data["items"][0])), ("pending", steady(&first)));
    let late = write(&server, "late");
    let question = feed.next().unwrap();
    assert_eq!(
        (question.name.as_str(), &question.data["approval"]["action"]),
        ("asked", &json!("workspace.inbox.upload"))
    );
    answer(&server, &first["id"], "deny");
    let ended = feed.next().unwrap();
    let denied = json!({"approvalId": first["id"], "workspaceId": workspace(&server), "reason": "denied"});
    assert_eq!((ended.name.as_str(), &ended.data), ("ended", &denied));
    early.join().unwrap().expect(403);
    // A follower that reconnects receives the events since its last one, and no others.
    drop(feed);
    answer(&server, &question.data["approval"]["id"], "allow");
    late.join().unwrap().expect(200);
    for mut again in [follow(&question.id), follow(&pending.id)] {
        let mut next = again.next().unwrap();
        if next.name == "asked" {
            next = again.next().unwrap();
        }
        assert_eq!(next.data, denied);
        assert_eq!(again.next().unwrap().data["reason"], "allowed");
    }
    // The disconnect of a waiting client is reported without a poll.
    let mut feed = follow("");
    assert_eq!(feed.next().unwrap().data, json!({"items": []}));
    let head = format!(
        "POST /workspace/{}/inbox HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\nContent-Type: \
         multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n",
        workspace(&server),
        FORM.len()
    );
    let mut client = crate::wire::connect(&server);
    std::io::Write::write_all(&mut client, format!("{head}{FORM}").as_bytes()).unwrap();
    feed.wait("asked");
    drop(client);
    assert_eq!(feed.wait("ended").data["reason"], "gone");
    server.collaborator().refused(401, "unauthorized", "GET", "/approvals/events", None);
    // The shutdown of the server is reported too.
    server.stop();
    assert_eq!(feed.next().unwrap().name, "end");
    assert!(feed.next().is_none());
}

const FORM: &str =
    "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nhello\r\n--b--\r\n";

#[test]
fn the_stream_of_a_revoked_owner_closes_and_limited_owners_are_refused() {
    let server = manual();
    let (secret, id) = scoped_tokens::make(&server, json!({"scope": "owner"}));
    let mut feed = Events::ask_as(&server, &secret, "GET /approvals/events HTTP/1.1\r\n", None);
    assert_eq!(feed.next().unwrap().name, "pending");
    scoped_tokens::revoke(&server, &id);
    feed.until_cut();
    let limited = json!({"scope": "owner", "workspaceIds": [workspace(&server)]});
    let limited = scoped_tokens::client(&server, limited);
    limited.refused(403, "forbidden", "GET", "/approvals/events", None);
    // They can still list and answer the approvals of their own workspaces.
    let waiting = write(&server, "a");
    let approval =
        wait_for("a question", secs(20), || limited.get(200, "/approvals")["items"].get(0).cloned());
    limited.post(200, &format!("/approvals/{}", approval["id"].as_str().unwrap()), json!({"reply": "allow"}));
    waiting.join().unwrap().expect(200);
}

#[test]
fn the_summary_of_a_large_body_is_its_size_and_type() {
    let server = manual();
    let created =
        server.owner().post(200, "/api/workspaces", json!({"name": "c", "workspace_type": "container"}));
    let path = format!("/api/workspaces/{}/exec", created["id"].as_str().unwrap());
    let client = server.collaborator();
    let body = json!({"command": format!("true {}", "x".repeat(100_000))}).to_string();
    let size = body.len();
    let waiting = thread::spawn(move || client.send("POST", &path, &[], Some(body.as_bytes())));
    let approval =
        wait_for("a question", secs(20), || server.owner().get(200, "/approvals")["items"].get(0).cloned());
    let summary = approval["summary"].as_str().unwrap();
    assert!(summary.contains(&format!("a body of {size} bytes, application/json")), "{summary}");
    answer(&server, &approval["id"], "deny");
    waiting.join().unwrap().expect(403);
}

#[test]
fn the_command_line_lists_answers_and_watches_approvals() {
    let setup = Setup::new().args(&["--approval=manual", "--approval-timeout=60000"]);
    let server = setup.start();
    let url = format!("http://{}", server.address);
    let env = [("OPENWORK_URL", url.as_str()), ("OPENWORK_HOST_TOKEN", HOST_TOKEN)];
    let call = |args: &[&str]| berth(setup.scratch(), args, &env);
    assert_eq!(call(&["approvals", "list"]).stdout, "Nothing waits for approval.\n");
    let mut watch = Command::new(BINARY)
        .args(["approvals", "watch", "--openwork-url", &url, "--host-token", HOST_TOKEN])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .env("HOME", setup.scratch().folder("home"))
        .spawn()
        .unwrap();
    // Indented lines continue the line before.
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut lines = lines.filter(|line| !line.starts_with(' '));
    let waiting = write(&server, "one");
    let first = lines.next().unwrap();
    let id = first.split(' ').next().unwrap().to_owned();
    assert!(first.contains("workspace.inbox.upload") && first.contains("(a collaborator, "), "{first}");
    let listed = call(&["approvals", "list"]);
    assert!(listed.code == Some(0) && listed.stdout.starts_with(&id), "{listed:?}");
    let listed: Value = serde_json::from_str(&call(&["approvals", "list", "--json"]).stdout).unwrap();
    assert_eq!(listed["items"][0]["id"], id.as_str());
    let status: Value = serde_json::from_str(&call(&["status", "--json"]).stdout).unwrap();
    assert_eq!((&status["ok"], status["openwork"]["approvals"].as_array().unwrap().len()), (&json!(true), 1));
    assert_eq!(status["openwork"]["status"]["approval"]["mode"], "manual");
    let replied = call(&["approvals", "reply", &id, "--allow"]);
    assert_eq!((replied.code, replied.stdout.as_str()), (Some(0), "Allowed.\n"), "{replied:?}");
    waiting.join().unwrap().expect(200);
    assert_eq!(lines.next().unwrap(), format!("{id}  allowed"));
    let again = call(&["approvals", "reply", "--deny", &id]);
    assert!(again.code == Some(1) && again.stderr.contains("404: Approval request not found"), "{again:?}");
    let text = call(&["status"]).stdout;
    assert!(text.contains(": ok, version ") && text.contains("approval is manual, 0 waiting"), "{text}");
    // A request that fails has another exit code than a server that does not answer.
    for wrong in [
        &["approvals"][..],
        &["approvals", "reply", &id],
        &["approvals", "reply", &id, "--allow", "--deny"],
        &["approvals", "reply", "../x", "--allow"],
        &["approvals", "list", "--nonsense"],
        &["status", "--openwork-url", "https://x"],
        &["status", "--allow"],
    ] {
        let ended = call(wrong);
        assert_eq!(ended.code, Some(2), "{wrong:?}: {ended:?}");
    }
    let refused = berth(
        setup.scratch(),
        &["approvals", "list"],
        &[("OPENWORK_URL", &url), ("OPENWORK_HOST_TOKEN", "x")],
    );
    assert!(
        refused.code == Some(1) && refused.stderr.contains("answered 401: Invalid host token"),
        "{refused:?}"
    );
    // An OpenCode server that does not answer.
    let engine = call(&["status", "--opencode-url", "http://127.0.0.1:1"]);
    assert!(engine.code == Some(1) && engine.stdout.contains("OpenCode http://127.0.0.1:1: "), "{engine:?}");
    server.stop();
    let gone = call(&["status"]);
    assert!(gone.code == Some(1) && gone.stdout.contains("No answer from"), "{gone:?}");
    assert_eq!(watch.wait().unwrap().code(), Some(1));
}

/// Without a token, the command uses the one that a server on this machine stored.
#[test]
fn the_stored_token_is_used_by_default() {
    let setup = Setup::bare().arg("--workspace=work");
    let server = setup.start();
    let url = format!("http://{}", server.address);
    let data = setup.data_dir().to_str().unwrap();
    let listed =
        berth(setup.scratch(), &["approvals", "list", "--data-dir", data, "--openwork-url", &url], &[]);
    assert_eq!(
        (listed.code, listed.stdout.as_str()),
        (Some(0), "Nothing waits for approval.\n"),
        "{listed:?}"
    );
}
