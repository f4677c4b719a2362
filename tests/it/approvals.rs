//! Manual mode: what waits for a person, and what becomes of it.

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
    let asked = wait_for(&server, 1).remove(0);
    assert_eq!((&asked["action"], &asked["workspaceId"]), (&json!("workspace.exec"), &json!(place.id)));
    assert!(asked["summary"].as_str().unwrap().contains("echo once >> /ran; cat /ran"), "{asked}");
    assert_eq!(asked["actor"]["scope"], "collaborator");
    assert_eq!(asked["paths"], json!([place.root]));
    assert_eq!(answer(&server, &asked, "allow"), json!({"ok": true, "allowed": true}));
    let done = waiting.join().unwrap().expect(200).value();
    assert_eq!(done["stdout"], "once\n");
    // An answer is good once.
    let path = format!("/approvals/{}", asked["id"].as_str().unwrap());
    server.owner().refused(404, "approval_not_found", "POST", &path, Some(json!({"reply": "allow"})));
    let waiting = run("echo twice >> /ran");
    assert_eq!(answer(&server, &wait_for(&server, 1)[0], "no")["allowed"], false);
    let told = waiting.join().unwrap().expect(403).value();
    assert_eq!((&told["code"], &told["message"]), (&json!("write_denied"), &json!("Write request denied")));
    assert_eq!(told["details"]["reason"], "denied");
    // Nobody asks the host about what the host does, nor lets a client answer.
    assert_eq!(place.sh("cat /ran"), "once\n");
    server.collaborator().refused(401, "unauthorized", "GET", "/approvals", None);
}

#[test]
fn nobody_is_asked_for_what_is_refused_anyway() {
    let server = seeded().arg("--approval=manual").start();
    let host = "/api/workspaces/00000000-0000-0000-0000-000000000000";
    for call in ["exec", "runs", "terminals"] {
        let body = Some(json!({ "command": "id" }));
        server.collaborator().refused(403, "forbidden", "POST", &format!("{host}/{call}"), body);
    }
    assert_eq!(server.owner().get(200, "/approvals")["items"], json!([]));
}

#[test]
fn who_has_hung_up_is_not_served_later() {
    let server = seeded().arg("--approval=manual").start();
    let place = Place::ready(&server, json!({}));
    let body = r#"{"command": "touch /ran"}"#;
    let mut client = connect(&server);
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {CLIENT_TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
        place.path("/exec"),
        body.len()
    );
    client.write_all(request.as_bytes()).unwrap();
    let asked = wait_for(&server, 1).remove(0);
    client.shutdown(Shutdown::Both).unwrap();
    wait_for(&server, 0);
    let path = format!("/approvals/{}", asked["id"].as_str().unwrap());
    server.owner().refused(404, "approval_not_found", "POST", &path, Some(json!({"reply": "allow"})));
    assert_eq!(place.sh("ls /ran 2>&1 || true"), "ls: cannot access '/ran': No such file or directory\n");
}

#[test]
fn waiting_holds_no_thread_and_has_an_end() {
    let server =
        Setup::new().args(&["--approval=manual", "--approval-timeout=3000", "--http-threads=2"]).start();
    let made =
        server.owner().post(200, "/api/workspaces", json!({"name": "c", "workspace_type": "container"}));
    let build = format!("/api/workspaces/{}/build", made["id"].as_str().unwrap());
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
fn the_end_of_the_server_is_told_to_those_who_wait() {
    let server = Setup::new().arg("--approval=manual").start();
    let made =
        server.owner().post(200, "/api/workspaces", json!({"name": "c", "workspace_type": "container"}));
    let build = format!("/api/workspaces/{}/build", made["id"].as_str().unwrap());
    let client = server.collaborator();
    let waiting = thread::spawn(move || client.call("POST", &build, Some(&json!({}))));
    wait_for(&server, 1);
    let start = Instant::now();
    assert!(server.stop().success());
    assert!(start.elapsed() < secs(8), "{:?}", start.elapsed());
    let told = waiting.join().unwrap().expect(503).value();
    assert_eq!(told["code"], "shutting_down");
}
