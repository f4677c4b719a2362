//! A full connection table: clients without a request are closed to accept others, and owners always get a connection.
//! `tests/bench/crowd.py` is the long form.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fair_shares::{Over, token};
use crate::fixture::Place;
use crate::procs::{secs, wait_for};
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, Server, Setup};
use crate::wire::{Raw, connect, get};

fn request(method: &str, path: &str, token: &str, body: &str) -> String {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\n{length}\r\n{body}"
    )
}

/// Sends a request on a new connection and returns the response.
fn try_ask(server: &Server, request: &str) -> io::Result<Raw> {
    let mut stream = connect(server);
    stream.write_all(request.as_bytes())?;
    Raw::read(&mut stream)
}

fn ask(server: &Server, request: &str) -> Raw {
    try_ask(server, request).unwrap_or_else(|error| panic!("{error} instead of a response to {request}"))
}

#[test]
fn owners_can_connect_while_all_connections_are_in_use() {
    let server = Setup::new().arg("--max-connections=4").start();
    let places = [0; 2].map(|_| Place::another_host(&server));
    let tokens = [0, 1].map(|at| token(&server, &places[at]));
    let exec = |at: usize| {
        let body = json!({"command": "sleep 1000"}).to_string();
        request("POST", &places[at].path("/exec"), &tokens[at], &body)
    };
    let running = || -> usize {
        let runs = |place: &Place<'_>| server.owner().get(200, &place.path("/runs"));
        places.iter().map(|place| runs(place).as_array().unwrap().len()).sum()
    };
    let mut streams: Vec<TcpStream> = Vec::new();
    for at in [0, 0, 1, 1] {
        // The owner's own connection may occupy the last slot at this moment.
        let started = wait_for("a command", secs(20), || {
            let mut stream = connect(&server);
            stream.write_all(exec(at).as_bytes()).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            wait_for("a command or a refusal", secs(20), || {
                let refused = stream.peek(&mut [0]).is_ok();
                (refused || running() > streams.len()).then_some(!refused)
            })
            .then_some(stream)
        });
        streams.push(started);
    }
    // The owner's own request is not counted against those four.
    wait_for("all connections to be in use", secs(10), || {
        (server.owner().get(200, "/status")["connections"]["busy"].as_u64() >= Some(5)).then_some(())
    });
    let refused = ask(&server, &request("GET", "/api/workspaces", CLIENT_TOKEN, ""));
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("Retry-After: ") && refused.closes(), "{}", refused.text);
    let health = ask(&server, &get(""));
    assert!(health.status == 200 && health.closes(), "{}", health.text);
    // Idle connections beyond the limit do not block the owner either.
    let silent: Vec<TcpStream> = (0..20).map(|_| connect(&server)).collect();
    for place in &places {
        let runs = ask(&server, &request("GET", &place.path("/runs"), HOST_TOKEN, ""));
        assert!(runs.status == 200 && runs.closes(), "{}", runs.text);
    }
    drop((silent, streams));
    wait_for("a connection that stays", secs(10), || (!ask(&server, &get("")).closes()).then_some(()));
}

#[test]
fn connections_without_a_request_are_closed_for_new_clients() {
    let server = Setup::new().arg("--max-connections=4").start();
    let begun = |text: &str, answered: bool| {
        let mut stream = connect(&server);
        stream.write_all(text.as_bytes()).unwrap();
        if answered {
            assert_eq!(Raw::read(&mut stream).unwrap().status, 200);
        }
        stream
    };
    let half_body = request("POST", "/api/workspaces", CLIENT_TOKEN, "{}").replace("h: 2", "h: 200");
    for round in 0..3 {
        let waiting = [
            begun("", false),
            begun("GET /health HTTP/1.1\r\nHost: loc", false),
            begun(&half_body, false),
            begun(&get(""), true),
        ];
        let mut open = Vec::new();
        for _ in 0..8 {
            let mut stream = connect(&server);
            stream.write_all(get("").as_bytes()).unwrap();
            let reply = Raw::read(&mut stream).unwrap();
            assert!(reply.status == 200 && !reply.closes(), "{round}: {}", reply.text);
            open.push(stream);
        }
        for mut stream in waiting {
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            // Closed, or reset if a part of a request was not read; a new connection is kept for a moment.
            wait_for("the end of a client without a request", secs(20), || {
                open.push(begun(&get(""), true));
                let read = stream.read(&mut [0; 100]);
                assert!(!read.as_ref().is_ok_and(|count| *count > 0), "{round}");
                read.map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |_| true).then_some(())
            });
        }
    }
    let line = server.stdout.line_with("closing idle ones to accept new clients", secs(5));
    assert!(line.is_some(), "{}", server.log());
    // The owner's connection is closed last.
    let mut own = begun(&request("GET", "/status", HOST_TOKEN, ""), true);
    let silent: Vec<TcpStream> = (0..20).map(|_| connect(&server)).collect();
    own.write_all(request("GET", "/status", HOST_TOKEN, "").as_bytes()).unwrap();
    assert_eq!(Raw::read(&mut own).unwrap().status, 200);
    drop(silent);
}

/// Opens connections that send `text`, keeps the last 40 of them, and reads nothing.
fn flood(server: &Server, text: &str, over: &AtomicBool, opened: &AtomicUsize) {
    let mut held = VecDeque::new();
    while !over.load(Ordering::SeqCst) {
        let Ok(mut stream) = TcpStream::connect(server.address) else { continue };
        let _ = stream.write_all(text.as_bytes());
        held.push_back(stream);
        if held.len() > 40 {
            held.pop_front();
        }
        opened.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_micros(500));
    }
}

#[test]
fn a_flood_of_incomplete_requests_does_not_lock_out_owners() {
    let server = Setup::new().arg("--max-connections=64").start();
    let place = Place::another_host(&server);
    let token = token(&server, &place);
    let list = request("GET", "/api/workspaces", &token, "");
    let body = request("POST", &place.path("/exec"), &token, "{}").replace("h: 2", "h: 100000");
    let wrong = request("GET", "/api/workspaces", "wrong", "");
    let half = "GET /health HTTP/1.1\r\nHost: x";
    let all: [&str; 5] = ["", half, &list, &body, &wrong];
    for kinds in [&all[1..2], &all[2..3], &all[3..4], &all[4..], &all] {
        let (over, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
        let mut slowest = Duration::ZERO;
        thread::scope(|scope| {
            let _over = Over(&over);
            for kind in kinds {
                scope.spawn(|| flood(&server, kind, &over, &opened));
            }
            wait_for("the flood", secs(20), || (opened.load(Ordering::SeqCst) > 100).then_some(()));
            for _ in 0..25 {
                let start = Instant::now();
                let list = request("GET", "/api/workspaces", HOST_TOKEN, "");
                // The server cannot distinguish a client that has not sent its request yet from one that never will: on
                // a busy machine the owner may have to reconnect.
                let reply = match try_ask(&server, &list) {
                    Err(_) if kinds.contains(&"") => ask(&server, &list),
                    reply => reply.unwrap(),
                };
                slowest = slowest.max(start.elapsed());
                assert_eq!(reply.status, 200, "{kinds:?}: {}", reply.text);
            }
        });
        eprintln!("{} connections beside an owner, maximum latency {slowest:?}", opened.into_inner());
        assert!(slowest < secs(3), "{kinds:?}: {slowest:?}");
    }
}

#[test]
fn a_token_over_its_connection_share_is_refused_before_its_body_is_read() {
    let server = Setup::new().arg("--max-connections=4").start();
    let place = Place::another_host(&server);
    let token = token(&server, &place);
    let exec = |body: &str| request("POST", &place.path("/exec"), &token, body);
    let sleeping: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = connect(&server);
            stream.write_all(exec(r#"{"command": "sleep 1000"}"#).as_bytes()).unwrap();
            stream
        })
        .collect();
    wait_for("both commands", secs(10), || {
        (server.owner().get(200, &place.path("/runs")).as_array().unwrap().len() == 2).then_some(())
    });
    let half_body = exec("{").replace("h: 1", "h: 100000");
    wait_for("a refusal", secs(10), || {
        let refused = ask(&server, &half_body);
        assert_eq!(refused.status, 429, "{}", refused.text);
        let whole = refused.text.contains("over_share") && refused.text.contains("Retry-After: ");
        assert!(whole && refused.text.contains("\"share\":\"token\""), "{}", refused.text);
        // Until the table is half full, the request is refused by the handler and its connection stays open.
        refused.closes().then_some(())
    });
    drop(sleeping);
}
