//! Real OpenCode, the oldest version that OpenWork used and the newest, behind the proxy: its SDK sees no difference,
//! its terminals work, its events flow for minutes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

use crate::opencode::mount;
use crate::opencode_serve::package;
use crate::opencode_server::Opencode;
use crate::procs::{secs, wait_for};
use crate::server::{CLIENT_TOKEN, Server, Setup, run};

/// An OpenCode and a berth before it.
fn pair(version: &str) -> (Opencode, Server) {
    pair_with(version, "--opencode-shell=owner")
}

fn pair_with(version: &str, argument: &str) -> (Opencode, Server) {
    let setup = Setup::new().arg(argument);
    let scratch = setup.scratch().path().to_owned();
    let work = scratch.join("work");
    fs::create_dir(work.join("größe & co")).unwrap();
    fs::write(work.join("größe & co/read me.txt"), "needle in here\n").unwrap();
    fs::write(work.join("large.txt"), "y".repeat(300_000)).unwrap();
    let opencode = Opencode::start(version, &scratch);
    let server = opencode.named_to(setup).arg("--approval=auto").start();
    (opencode, server)
}

fn transcript(base: &str, authorization: &str, server: &Server) -> Vec<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/opencode_sdk.mjs");
    let reply = run(
        Command::new("node")
            .arg(script)
            .arg(package("@opencode-ai/sdk"))
            .args([base, authorization])
            .arg(&server.work),
        secs(240),
    );
    assert_eq!(reply.code, Some(0), "{}{}", reply.stdout, reply.stderr);
    reply.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sdk_sees_no_difference(version: &str) {
    let (opencode, server) = pair(version);
    let direct = || transcript(&opencode.url(), &opencode.authorization(), &server);
    let base = format!("http://{}{}", server.address, mount(&server));
    // The first run needs an unused directory.
    direct();
    let (direct, proxied) = (direct(), transcript(&base, &format!("Bearer {CLIENT_TOKEN}"), &server));
    assert!(direct.len() > 25, "{direct:#?}");
    for (direct, proxied) in direct.iter().zip(&proxied) {
        assert_eq!(direct, proxied);
    }
    assert_eq!(direct.len(), proxied.len());
    let failed = direct.iter().filter(|reply| reply["status"].as_u64().is_some_and(|status| status >= 500));
    assert_eq!(failed.count(), 0, "{direct:#?}");
}

#[test]
fn the_sdk_sees_no_difference_with_the_old_opencode() {
    sdk_sees_no_difference("opencode-old");
}

#[test]
fn the_sdk_sees_no_difference_with_the_new_opencode() {
    sdk_sees_no_difference("opencode-new");
}

#[test]
fn terminals_of_opencode_work_through_the_proxy() {
    let (_opencode, server) = pair_with("opencode-new", "--opencode-shell=collaborator");
    let mount = mount(&server);
    let created =
        server.collaborator().post(200, &format!("{mount}/pty"), json!({"command": "/bin/sh", "args": []}));
    let mut request =
        format!("ws://{}{mount}/pty/{}/connect", server.address, created["id"].as_str().unwrap())
            .into_client_request()
            .unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", format!("jwt.{CLIENT_TOKEN}").parse().unwrap());
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(secs(30))).unwrap();
    // Only the token was offered: it is for the proxy, so no subprotocol is selected.
    let (mut socket, _) = match tungstenite::client(request, stream) {
        Ok(opened) => opened,
        Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::SecWebSocketSubProtocolError(_),
        ))) => with_bearer(&server, &mount, created["id"].as_str().unwrap()),
        Err(error) => panic!("{error}"),
    };
    socket.send(Message::text("echo $((6 * 7))\r")).unwrap();
    let mut seen = String::new();
    while !seen.contains("\r\n42") {
        match socket.read().unwrap() {
            Message::Text(text) => seen.push_str(&text),
            Message::Binary(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Message::Close(frame) => panic!("{frame:?} after {seen:?}"),
            _ => {}
        }
    }
}

fn with_bearer(
    server: &Server,
    mount: &str,
    id: &str,
) -> (tungstenite::WebSocket<TcpStream>, tungstenite::http::Response<Option<Vec<u8>>>) {
    let mut request =
        format!("ws://{}{mount}/pty/{id}/connect", server.address).into_client_request().unwrap();
    request.headers_mut().insert("Authorization", format!("Bearer {CLIENT_TOKEN}").parse().unwrap());
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(secs(30))).unwrap();
    tungstenite::client(request, stream).unwrap()
}

/// In CI, as long as a person leaves a page open; otherwise long enough to show that silence does not end the stream.
fn patience() -> Duration {
    if std::env::var_os("CI").is_some() { secs(185) } else { secs(45) }
}

#[test]
fn events_flow_for_minutes() {
    let (_opencode, server) = pair("opencode-old");
    let mount = mount(&server);
    let mut stream = TcpStream::connect(server.address).unwrap();
    // OpenCode sends a heartbeat every 30 s.
    stream.set_read_timeout(Some(secs(60))).unwrap();
    let head = format!(
        "GET {mount}/event HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {CLIENT_TOKEN}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream);
    let mut received = 0;
    let mut until = |what: &str| loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "ended before {what}");
        if line.contains(what) {
            return;
        }
    };
    until("server.connected");
    let started = Instant::now();
    while started.elapsed() < patience() {
        until("server.heartbeat");
        received += 1;
    }
    assert!(received > 0);
    let created = server.collaborator().post(200, &format!("{mount}/session"), json!({"title": "late"}));
    until(created["id"].as_str().unwrap());
}

#[test]
fn an_engine_is_reloaded() {
    let (_opencode, server) = pair("opencode-new");
    let mount = mount(&server);
    let command = |server: &Server| {
        let list = server.collaborator().get(200, &format!("{mount}/command"));
        list.as_array().unwrap().iter().any(|command| command["name"] == "greet")
    };
    assert!(!command(&server));
    fs::create_dir_all(server.work.join(".opencode/command")).unwrap();
    fs::write(server.work.join(".opencode/command/greet.md"), "---\ndescription: x\n---\nSay hello\n")
        .unwrap();
    let id = server.owner().get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
    assert!(!command(&server), "OpenCode reloaded by itself: the test proves nothing");
    let reply = server.collaborator().post(200, &format!("/workspace/{id}/engine/reload"), json!({}));
    assert_eq!(reply["ok"], true);
    wait_for("the new command", secs(30), || command(&server).then_some(()));
}
