//! Pastes: up to 8 MiB in one message or body reach a program completely and in order, however slowly it reads, and
//! use a bounded amount of memory if it does not read.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use sha2::{Digest, Sha256};
use tungstenite::Message;

use crate::fixture::Place;
use crate::procs::{secs, wait_for};
use crate::server::{HOST_TOKEN, Server};
use crate::socket::{Socket, raw_socket};
use crate::terminal::Terminal;
use crate::terminals_limits::frame;

/// A text in which every piece contains its own position.
fn text(length: usize) -> String {
    let lines = (0..).map(|n: u64| format!("{:016x}\r", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let mut text = String::with_capacity(length + 20);
    for line in lines {
        text.push_str(&line);
        if text.len() >= length {
            text.truncate(length);
            return text;
        }
    }
    text
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads `length` bytes in raw mode after a pause, and prints their hash.
fn reader(length: usize, pause: &str) -> String {
    format!("stty raw -echo; echo ready; sleep {pause}; head -c {length} | sha256sum; sleep 60")
}

#[test]
fn a_paste_of_megabytes_arrives_completely_in_every_form() {
    let server = Server::start();
    let place = Place::host(&server);
    let paste = text(5 << 20);
    let expected = hash(paste.as_bytes());
    for form in ["binary", "json", "fragments", "body", "base64"] {
        let terminal = Terminal::start(&place, json!({"command": reader(paste.len(), "0.3"), "cols": 100}));
        terminal.shows("ready");
        let body = |kind: &str, body: &[u8]| {
            let reply =
                place.client.send("POST", &terminal.path("/input"), &[("Content-Type", kind)], Some(body));
            assert_eq!(reply.expect(200).value(), json!({"bytes": paste.len()}));
        };
        let mut socket = terminal.socket("");
        match form {
            "binary" => socket.send_raw(Message::binary(paste.clone())),
            "json" => socket.send(json!({"t": "i", "d": paste})),
            "fragments" => {
                let mut raw = raw_socket(&server, &terminal.path("/ws?takeover=true"));
                let pieces: Vec<&[u8]> = paste.as_bytes().chunks(5000).collect();
                for (at, piece) in pieces.iter().enumerate() {
                    let opcode = if at == 0 { 0x02 } else { 0x00 };
                    let last = if at + 1 == pieces.len() { 0x80 } else { 0 };
                    raw.write_all(&frame(opcode | last, piece)).unwrap();
                    if at % 100 == 0 {
                        // A control frame may be between the fragments.
                        raw.write_all(&frame(0x8a, b"pong")).unwrap();
                    }
                }
                terminal.until(form, |text| text.contains(&expected));
            }
            "body" => body("application/octet-stream", paste.as_bytes()),
            _ => {
                let json = json!({"base64": BASE64_STANDARD.encode(&paste)});
                body("application/json", &serde_json::to_vec(&json).unwrap());
            }
        }
        terminal.until(form, |text| text.contains(&expected));
        drop(socket);
    }
    // The shell's socket, too. After the paste the connection works as before.
    let mut shell = Socket::open(&server, &place.path("/shell?cols=100"));
    shell.type_in(&format!("stty raw -echo; echo go-; head -c {} | sha256sum; stty sane\r", paste.len()));
    shell.until("it reads", |socket| socket.rows().iter().any(|row| row.ends_with("go-")).then_some(()));
    shell.type_in(&paste);
    shell.until("the hash", |socket| socket.text.contains(&expected).then_some(()));
    shell.type_in("echo still-$((40+2))\r");
    shell.until("an answer", |socket| socket.text.contains("still-42").then_some(()));
}

#[test]
fn a_slow_program_receives_the_whole_paste_in_order() {
    let server = Server::start();
    let place = Place::host(&server);
    let paste = text(400_000);
    // Eight pieces with a pause before each.
    let slow = "stty raw -echo; echo ready; (for i in 1 2 3 4 5 6 7 8; do sleep 0.2; head -c 50000; done) | sha256sum; sleep 60";
    let terminal = Terminal::start(&place, json!({"command": slow, "cols": 100}));
    terminal.shows("ready");
    let mut socket = terminal.socket("");
    // Several large messages in a row, without waiting for any of them.
    for piece in [&paste[..150_000], &paste[150_000..150_001], &paste[150_001..]] {
        socket.send_raw(Message::binary(piece.to_owned()));
    }
    terminal.until("the hash", |text| text.contains(&hash(paste.as_bytes())));

    let terminal = Terminal::start(&place, json!({"command": slow, "cols": 100}));
    terminal.shows("ready");
    // Input of other clients is queued after the paste, never inside of it.
    thread::scope(|scope| {
        let large = scope.spawn(|| {
            server.owner().send(
                "POST",
                &terminal.path("/input"),
                &[("Content-Type", "x/y")],
                Some(paste.as_bytes()),
            )
        });
        wait_for("the paste to be in progress", secs(20), || {
            let reply =
                server.owner().send("POST", &terminal.path("/input"), &[("Content-Type", "x/y")], Some(b""));
            (reply.status == 200).then_some(())
        });
        assert_eq!(large.join().unwrap().expect(200).value()["bytes"], paste.len());
    });
    terminal.until("the hash", |text| text.contains(&hash(paste.as_bytes())));
}

#[test]
fn a_run_may_read_its_stdin_slowly() {
    let server = Server::start();
    let place = Place::host(&server);
    let data = text(8 << 20);
    let start = |command: &str| {
        let run =
            place.client.post(201, &place.path("/runs"), json!({"command": command, "open_stdin": true}));
        place.path(&format!("/runs/{}", run["id"].as_str().unwrap()))
    };
    let put = |run: &str, body: &[u8]| {
        let path = format!("{run}/stdin?eof=true");
        place.client.send("POST", &path, &[("Content-Type", "x/y")], Some(body)).expect(200).value()
    };
    let output = |run: &str| {
        place.client.post(200, &format!("{run}/wait"), json!({}));
        place.client.call("GET", &format!("{run}/output?stream=stdout"), None).expect(200).text()
    };
    let fast = start("sha256sum");
    assert_eq!(put(&fast, data.as_bytes())["bytes_taken"], data.len());
    assert!(output(&fast).starts_with(&hash(data.as_bytes())));
    // Longer in total than the timeout for a command that reads nothing.
    let part = &data[..700_000];
    let slow = start("(for i in 1 2 3 4 5 6 7; do sleep 0.8; head -c 100000; done; cat) | sha256sum");
    assert_eq!(put(&slow, part.as_bytes())["bytes_taken"], part.len());
    assert!(output(&slow).starts_with(&hash(part.as_bytes())));
}

fn memory(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn programs_that_do_not_read_use_bounded_memory_and_delay_no_others() {
    let server = Server::start();
    let place = Place::host(&server);
    let other = Place::another_host(&server);
    let paste = vec![b'x'; 8 << 20];
    let terminals: Vec<Terminal<'_>> = (0..8)
        .map(|_| Terminal::start(&place, json!({"command": "stty raw -echo; echo ready; sleep 300"})))
        .collect();
    terminals.iter().for_each(|terminal| drop(terminal.shows("ready")));
    let before = memory(&server);
    let sockets: Vec<TcpStream> = terminals
        .iter()
        .map(|terminal| {
            let mut socket = raw_socket(&server, &terminal.path("/ws"));
            socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            // The client's socket buffers hold the input that the server does not read.
            let _ = socket.write_all(&frame(0x82, &paste));
            socket
        })
        .collect();
    // Two of the pastes are in memory, the others wait in their sockets.
    let path = terminals[0].path("/input");
    wait_for("the workspace's share to be in use", secs(30), || {
        let reply = place.client.send("POST", &path, &[("Content-Type", "x/y")], Some(&paste[..100_000]));
        (reply.status == 503).then_some(())
    });
    let growth = memory(&server).saturating_sub(before);
    assert!(growth < 64 << 20, "{growth} bytes for pastes that no program reads");
    // Small input, and another workspace, are not delayed.
    let small = Terminal::start(&place, json!({"command": "cat"}));
    small.type_in("small\r");
    small.shows("small");
    let elsewhere = Terminal::start(&other, json!({"command": reader(1 << 20, "0"), "cols": 100}));
    elsewhere.shows("ready");
    let mut socket = elsewhere.socket("");
    socket.send_raw(Message::binary(paste[..1 << 20].to_vec()));
    elsewhere.until("the hash", |text| text.contains(&hash(&paste[..1 << 20])));
    // A client that disconnects releases its memory.
    drop(sockets);
    wait_for("the share to be free", secs(30), || {
        let started = TcpStream::connect(server.address).unwrap();
        let mut started = started;
        started.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\nContent-Length: 100000\r\n\r\n"
        );
        started.write_all(head.as_bytes()).unwrap();
        started.write_all(&paste[..100_000]).unwrap();
        // No response: the request waits for its program.
        started.read(&mut [0]).is_err().then_some(())
    });
    // The end of a terminal ends the request.
    let waiting = &terminals[1];
    let started = Instant::now();
    thread::scope(|scope| {
        let reply = scope.spawn(|| {
            server.owner().send("POST", &waiting.path("/input"), &[("Content-Type", "x/y")], Some(&paste))
        });
        wait_for("the paste to be in progress", secs(20), || {
            let tries =
                server.owner().send("POST", &waiting.path("/input"), &[("Content-Type", "x/y")], Some(b"x"));
            (tries.status == 409).then_some(())
        });
        place.client.delete(200, &waiting.path(""));
        let reply = reply.join().unwrap().expect(409).value();
        assert_eq!(reply["code"], "terminal_ended", "{reply}");
        assert!(reply["details"]["bytes_taken"].is_u64(), "{reply}");
    });
    assert!(started.elapsed() < secs(25), "{:?}", started.elapsed());
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn a_paste_beyond_the_limit_is_refused() {
    let server = Server::start();
    let place = Place::host(&server);
    let terminal = Terminal::start(&place, json!({"command": "stty raw -echo; echo ready; cat >/dev/null"}));
    terminal.shows("ready");
    let long = vec![b'x'; (8 << 20) + 1];
    let reply = place.client.send("POST", &terminal.path("/input"), &[("Content-Type", "x/y")], Some(&long));
    assert_eq!(reply.expect(413).value()["code"], "body_too_large");
    let mut socket = terminal.socket("");
    socket.send_raw(Message::binary(long));
    assert_eq!(socket.until_closed().code, 1009);
    assert_eq!(terminal.show()["status"], "running");
}
