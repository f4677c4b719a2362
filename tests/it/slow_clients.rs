//! Clients that send or read slowly, more of them than there are threads that answer: nobody else waits for them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;

use crate::procs::secs;
use crate::server::{HOST_TOKEN, Server, Setup};
use crate::wire::connect;

const CLIENTS: usize = 12;

fn all_send(server: &Server, request: &str) -> Vec<TcpStream> {
    let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| connect(server)).collect();
    for mut client in &clients {
        client.write_all(request.as_bytes()).unwrap();
    }
    clients
}

fn others_are_served(server: &Server) {
    for _ in 0..20 {
        let start = Instant::now();
        server.owner().get(200, "/api/workspaces/00000000-0000-0000-0000-000000000000");
        assert!(start.elapsed() < secs(2), "{:?}", start.elapsed());
    }
}

#[test]
fn bodies_that_trickle_in_hold_up_nobody() {
    let server = Setup::new().arg("--http-threads=2").start();
    let head = format!(
        "POST /api/workspaces HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\
         Content-Type: application/json\r\nContent-Length: 200000\r\n\r\n{}",
        " ".repeat(100_000)
    );
    let mut clients = all_send(&server, &head);
    others_are_served(&server);
    // One of them goes on, and gets its answer.
    let body = format!("{{\"name\": \"late\"}}{}", " ".repeat(100_000 - 16));
    clients[0].write_all(body.as_bytes()).unwrap();
    let mut status = [0; 12];
    clients[0].read_exact(&mut status).unwrap();
    assert_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 200");
}

#[test]
fn large_answers_that_nobody_reads_hold_up_nobody() {
    let server = Setup::new().arg("--http-threads=2").start();
    for number in 0..8 {
        let script = "#".repeat(1 << 20);
        server.owner().post(
            200,
            "/api/workspaces",
            json!({ "name": format!("w{number}"), "workspace_type": "container", "init_script": script }),
        );
    }
    let request = format!(
        "GET /api/workspaces HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\nConnection: close\r\n\r\n"
    );
    let mut clients = all_send(&server, &request);
    // Its answer has begun, so it stands before what nobody reads.
    for client in &clients {
        assert!(client.peek(&mut [0; 12]).unwrap() > 0);
    }
    others_are_served(&server);
    let mut answer = Vec::new();
    clients[0].read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.len() > 8 << 20 && answer.ends_with(b"]"));
}
