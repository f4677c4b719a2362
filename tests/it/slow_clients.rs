//! Clients that send or read slowly, more of them than there are worker threads: they do not delay other clients.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use crate::procs::secs;
use crate::server::{HOST_TOKEN, NIL, Server, Setup};
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
fn slow_request_bodies_do_not_delay_others() {
    let server = Setup::new().arg("--http-threads=2").start();
    let head = format!(
        "POST /api/workspaces HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\
         Content-Type: application/json\r\nContent-Length: 200000\r\n\r\n{}",
        " ".repeat(100_000)
    );
    let mut clients = all_send(&server, &head);
    others_are_served(&server);
    // One of them continues, and gets its response.
    let body = format!("{{\"name\": \"late\"}}{}", " ".repeat(100_000 - 16));
    clients[0].write_all(body.as_bytes()).unwrap();
    let mut status = [0; 12];
    clients[0].read_exact(&mut status).unwrap();
    assert_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 200");
}

#[test]
fn large_unread_responses_do_not_delay_others() {
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
    // Its response has begun, so it comes before the unread data.
    for client in &clients {
        assert!(client.peek(&mut [0; 12]).unwrap() > 0);
    }
    others_are_served(&server);
    let mut answer = Vec::new();
    clients[0].read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.len() > 8 << 20 && answer.ends_with(b"]"));
}

/// A command with 50 MB of output, requested by a client that has read the first bytes of the response.
fn large_answer(server: &Server) -> TcpStream {
    let body = json!({"command": "head -c 50000000 /dev/zero | tr '\\0' x"}).to_string();
    let mut stream = connect(server);
    let request = format!(
        "POST /api/workspaces/{NIL}/exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(String::from_utf8_lossy(&status), "HTTP/1.1 200");
    stream
}

/// Whether the server disconnects it within this time. The client reads no byte meanwhile.
fn is_cut(stream: &TcpStream, longest: Duration) -> bool {
    let longest = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: 0 };
    poll(&mut [PollFd::new(stream, PollFlags::empty())], Some(&longest)).unwrap() > 0
}

#[test]
fn readers_may_be_slow_but_must_read() {
    let server = Setup::new().arg("--output-limit=64000000").start();
    thread::scope(|scope| {
        let server = &server;
        let stops = scope.spawn(move || {
            let (stream, start) = (large_answer(server), Instant::now());
            assert!(is_cut(&stream, secs(40)), "a client that reads nothing is still connected after 40 s");
            start.elapsed()
        });
        let one_byte = scope.spawn(move || {
            let mut stream = large_answer(server);
            for _ in 0..10 {
                stream.read_exact(&mut [0]).unwrap();
                thread::sleep(secs(1));
            }
            let stopped = Instant::now();
            assert!(is_cut(&stream, secs(40)), "it is still connected 40 s after its last byte");
            stopped.elapsed()
        });
        // The kernel buffers some MB, and reports a socket as writable only when a third of them is free; at this
        // speed that takes longer than the stall timeout.
        let steady = scope.spawn(move || {
            let (mut stream, start, mut piece) = (large_answer(server), Instant::now(), [0; 2000]);
            let mut answer = Vec::new();
            while start.elapsed() < secs(40) {
                stream.read_exact(&mut piece).unwrap();
                answer.extend_from_slice(&piece);
                thread::sleep(Duration::from_millis(100));
            }
            // Then it reads at full speed, and receives everything.
            stream.shutdown(Shutdown::Write).unwrap();
            if let Err(error) = stream.read_to_end(&mut answer) {
                panic!(
                    "a client that read 20 kB a second was disconnected after {} bytes: {error}",
                    answer.len()
                );
            }
            assert!(answer.len() > 50_000_000 && answer.ends_with(b"}"), "{} bytes came", answer.len());
        });
        let mut longest = Duration::ZERO;
        while !(stops.is_finished() && one_byte.is_finished() && steady.is_finished()) {
            let start = Instant::now();
            server.anyone().get(200, "/health");
            server.owner().post(200, &format!("/api/workspaces/{NIL}/exec"), json!({"command": "true"}));
            longest = longest.max(start.elapsed());
            thread::sleep(Duration::from_millis(50));
        }
        let (stops, one_byte) = (stops.join().unwrap(), one_byte.join().unwrap());
        steady.join().unwrap();
        eprintln!(
            "disconnected {stops:?} after the start, {one_byte:?} after the last of ten bytes; others waited at most {longest:?}"
        );
        assert!(stops >= secs(29) && stops <= secs(36), "{stops:?}");
        // For TCP, which opens its window in large steps, those ten bytes made no difference.
        assert!(one_byte >= secs(15) && one_byte <= secs(36), "{one_byte:?}");
        assert!(longest < secs(2), "{longest:?}");
    });
}
