//! Manual approval mode: pending requests and how they end.

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Place, seeded};
use crate::procs::secs;
use crate::server::{CLIENT_TOKEN, Server, Setup};
use crate::wire::connect;

fn items(server: &Server) -> Vec<Value> {
    server.owner().get(200, "/approvals")["items"].as_array().unwrap().clone()
}

fn wait_for(server: &Server, count: usize) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let items = items(server);
        if items.len() == count {
            return items;
        }
        assert!(start.elapsed() < secs(20), "{items:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn answer(server: &Server, item: &Value, reply: &str) -> Value {
    let path = format!("/approvals/{}", item["id"].as_str().unwrap());
    server.owner().post(200, &path, json!({ "reply": reply }))
}

#[test]
fn a_command_waits_for_the_host_and_runs_once() {
    let server = seeded().arg("--approval=manual").start();
    let place = Place::ready(&server, json!({}));
    let exec = place.path("/exec");
    let run = |command: &str| {
        let (client, exec, body) = (server.collaborator(), exec.clone(), json!({ "command": command }));
        thread::spawn(move || client.call("POST", &exec, Some(&body)))
    };
    let waiting = run("echo once >> /ran; cat /ran");
    let approval = wait_for(&server, 1).remove(0);
    assert_eq!((&approval["action"], &approval["workspaceId"]), (&json!("workspace.exec"), &json!(place.id)));
    assert!(approval["summary"].as_str().unwrap().contains("echo once >> /ran; cat /ran"), "{approval}");
    assert_eq!(approval["actor"]["scope"], "collaborator");
    assert_eq!(approval["paths"], json!([place.root]));
    assert_eq!(answer(&server, &approval, "allow"), json!({"ok": true, "allowed": true}));
    let done = waiting.join().unwrap().expect(200).value();
    assert_eq!(done["stdout"], "once\n");
    // A second reply to the same approval is refused.
    let path = format!("/approvals/{}", approval["id"].as_str().unwrap());
    server.owner().refused(404, "approval_not_found", "POST", &path, Some(json!({"reply": "allow"})));
    let waiting = run("echo twice >> /ran");
    assert_eq!(answer(&server, &wait_for(&server, 1)[0], "no")["allowed"], false);
    let reply = waiting.join().unwrap().expect(403).value();
    assert_eq!((&reply["code"], &reply["message"]), (&json!("write_denied"), &json!("Write request denied")));
    assert_eq!(reply["details"]["reason"], "denied");
    // The owner's own requests need no approval, and clients cannot reply to approvals.
    assert_eq!(place.sh("cat /ran"), "once\n");
    server.collaborator().refused(401, "unauthorized", "GET", "/approvals", None);
}

#[test]
fn invalid_requests_are_refused_without_approval() {
    let server = seeded().arg("--approval=manual").start();
    let host = "/api/workspaces/00000000-0000-0000-0000-000000000000";
    for call in ["exec", "runs", "terminals"] {
        let body = Some(json!({ "command": "id" }));
        server.collaborator().refused(403, "forbidden", "POST", &format!("{host}/{call}"), body);
    }
    assert_eq!(server.owner().get(200, "/approvals")["items"], json!([]));
}

#[test]
fn a_disconnected_client_is_not_served_after_approval() {
    let server = seeded().arg("--approval=manual").start();
    let place = Place::ready(&server, json!({}));
    let body = r#"{"command": "touch /ran"}"#;
    let mut client = connect(&server);
    let approval = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {CLIENT_TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
        place.path("/exec"),
        body.len()
    );
    client.write_all(approval.as_bytes()).unwrap();
    let approval = wait_for(&server, 1).remove(0);
    client.shutdown(Shutdown::Both).unwrap();
    wait_for(&server, 0);
    let path = format!("/approvals/{}", approval["id"].as_str().unwrap());
    server.owner().refused(404, "approval_not_found", "POST", &path, Some(json!({"reply": "allow"})));
    assert_eq!(place.sh("ls /ran 2>&1 || true"), "ls: cannot access '/ran': No such file or directory\n");
}

#[test]
fn waiting_occupies_no_thread_and_times_out() {
    let server =
        Setup::new().args(&["--approval=manual", "--approval-timeout=3000", "--http-threads=2"]).start();
    let created =
        server.owner().post(200, "/api/workspaces", json!({"name": "c", "workspace_type": "container"}));
    let build = format!("/api/workspaces/{}/build", created["id"].as_str().unwrap());
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..17)
            .map(|_| scope.spawn(|| server.collaborator().call("POST", &build, Some(&json!({})))))
            .collect();
        wait_for(&server, 16);
        let start = Instant::now();
        server.anyone().get(200, "/health");
        assert!(start.elapsed() < secs(1), "{:?}", start.elapsed());
        let statuses: Vec<u16> = waiting.into_iter().map(|call| call.join().unwrap().status).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 403).count(), 16, "{statuses:?}");
    });
    assert!(items(&server).is_empty());
}

#[test]
fn shutdown_answers_pending_requests_with_503() {
    let server = Setup::new().arg("--approval=manual").start();
    let created =
        server.owner().post(200, "/api/workspaces", json!({"name": "c", "workspace_type": "container"}));
    let build = format!("/api/workspaces/{}/build", created["id"].as_str().unwrap());
    let client = server.collaborator();
    let waiting = thread::spawn(move || client.call("POST", &build, Some(&json!({}))));
    wait_for(&server, 1);
    let start = Instant::now();
    assert!(server.stop().success());
    assert!(start.elapsed() < secs(8), "{:?}", start.elapsed());
    let reply = waiting.join().unwrap().expect(503).value();
    assert_eq!(reply["code"], "shutting_down");
}
