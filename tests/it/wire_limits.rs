//! The gate's deadlines, limits and listeners, on the real binary: clients that are too slow or too many, and the
//! other listeners.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use crate::procs::{secs, wait_for};
use crate::server::{HOST_TOKEN, Server, Setup};
use crate::wire::{Raw, assert_served, connect, get};

#[test]
fn deadlines() {
    let server = Server::start();
    // Each waits for its own deadline; concurrently they take as long as the longest.
    thread::scope(|scope| {
        let ends = |send: &'static str, want: Option<u16>, low: u64, high: u64| {
            let server = &server;
            scope.spawn(move || {
                let (mut stream, start) = (connect(server), Instant::now());
                stream.write_all(send.as_bytes()).unwrap();
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let (text, took) = (String::from_utf8_lossy(&all), start.elapsed());
                let status = text.get(9..12).map(|digits| digits.parse::<u16>().unwrap());
                assert_eq!(status, want, "{send:?} after {took:?}: {text}");
                assert!(took >= secs(low) && took <= secs(high), "{send:?} ended after {took:?}");
            });
        };
        ends("GET /health HTTP/1.1\r\nHost: loc", Some(408), 9, 13);
        ends(
            "POST /api/workspaces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
            Some(408),
            29,
            34,
        );
        ends("", None, 59, 65);
        // One byte a second is too slow: the deadline covers the whole head.
        let server = &server;
        scope.spawn(move || {
            let (mut stream, start) = (connect(server), Instant::now());
            stream.set_read_timeout(Some(secs(1))).unwrap();
            let mut answer = [0; 12];
            for byte in "GET /health HTTP/1.1\r\nHost: localhost\r\n".bytes() {
                let _ = stream.write_all(&[byte]);
                match stream.read_exact(&mut answer) {
                    Ok(()) => break,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert_eq!(&answer, b"HTTP/1.1 408");
            assert!(start.elapsed() < secs(14), "{:?}", start.elapsed());
        });
    });
}

#[test]
fn bursts_on_a_fresh_server_are_all_answered() {
    for size in [6, 12, 30] {
        let server = Server::start();
        for _ in 0..50 {
            let mut streams: Vec<TcpStream> = (0..size).map(|_| connect(&server)).collect();
            for stream in &mut streams {
                stream.write_all(get("Connection: close\r\n").as_bytes()).unwrap();
            }
            for stream in &mut streams {
                assert_eq!(Raw::read(stream).unwrap().status, 200);
            }
        }
    }
}

/// Open files and threads of the server.
fn held(server: &Server) -> (usize, usize) {
    let count = |folder: &str| fs::read_dir(format!("/proc/{}/{folder}", server.pid)).unwrap().count();
    (count("fd"), count("task"))
}

#[test]
fn ten_thousand_resets_leave_no_thread_or_descriptor() {
    let server = Server::start();
    // The server prints its address before all of its threads have started.
    let (mut before, mut same) = (held(&server), 0);
    wait_for("the start to finish", secs(10), || {
        let now = held(&server);
        same = if now == before { same + 1 } else { 0 };
        before = now;
        (same > 60).then_some(())
    });
    for number in 0..10_000 {
        let mut stream = connect(&server);
        if number % 3 == 1 {
            let _ = stream.write_all(b"GET /health HTTP/1.1\r\n");
        }
        if number % 3 == 2 {
            let _ = stream.write_all(get("").as_bytes());
        }
        set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    }
    let start = Instant::now();
    assert_served(&server);
    assert!(start.elapsed() < secs(1), "served only after {:?}", start.elapsed());
    assert!(!server.log().contains("panicked"), "{}", server.log());
    // Threads and internal connections are kept for the next client for 10 s.
    let now = wait_for(&format!("{before:?} open files and threads"), secs(40), || {
        let now = held(&server);
        (now.0 <= before.0 && now.1 <= before.1).then_some(now)
    });
    eprintln!("open files and threads: {before:?} before, {now:?} {:?} after 10,000 resets", start.elapsed());
    assert_served(&server);
}

#[test]
fn few_descriptors_limit_only_the_connections() {
    let server = Setup::new().start_through(&["prlimit", "--nofile=64:64"]);
    for _ in 0..3 {
        let streams: Vec<TcpStream> = (0..200)
            .filter_map(|_| {
                let stream = TcpStream::connect(server.address).ok()?;
                let _ = (&stream).write_all(get("").as_bytes());
                Some(stream)
            })
            .collect();
        assert!(streams.len() > 100);
        drop(streams);
        let start = Instant::now();
        loop {
            let mut stream = connect(&server);
            let _ = stream.write_all(get("Connection: close\r\n").as_bytes());
            match Raw::read(&mut stream) {
                Ok(reply) if reply.status == 200 => break,
                _ => assert!(start.elapsed() < secs(1), "no longer served; {}", server.log()),
            }
        }
    }
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn unix_sockets_have_their_mode_and_are_removed_with_the_server() {
    let setup = Setup::new();
    let path = setup.scratch().path().join("b.sock");
    let server =
        setup.arg(format!("--listen=unix:{}?mode=660", path.display())).arg("--listen=127.0.0.1:0").start();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.set_read_timeout(Some(secs(10))).unwrap();
    let request = format!(
        "GET /api/workspaces HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    assert_eq!(Raw::read(&mut stream).unwrap().status, 200);
    let mut foreign = UnixStream::connect(&path).unwrap();
    foreign.write_all(b"GET /health HTTP/1.1\r\nHost: evil.test\r\n\r\n").unwrap();
    assert_eq!(Raw::read(&mut foreign).unwrap().status, 403);
    assert!(server.stop().success());
    assert!(!path.exists());
}

#[test]
fn allowed_hosts_and_origins_are_accepted() {
    let server = Setup::new().arg("--allowed-host=box.example").arg("--cors=http://app.test").start();
    for (head, want) in [
        ("GET /health HTTP/1.1\r\nHost: Box.Example.:8787\r\n\r\n", 200),
        ("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (
            "POST /api/workspaces HTTP/1.1\r\nHost: localhost\r\nOrigin: http://app.test\r\nContent-Length: 0\r\n\r\n",
            401,
        ),
        (
            "POST /api/workspaces HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.test\r\nContent-Length: 0\r\n\r\n",
            403,
        ),
    ] {
        let mut stream = connect(&server);
        stream.write_all(head.as_bytes()).unwrap();
        assert_eq!(Raw::read(&mut stream).unwrap().status, want, "{head}");
    }
}

#[test]
fn idle_connections_do_not_delay_the_shutdown() {
    let server = Server::start();
    let mut idle: Vec<TcpStream> = (0..20).map(|_| connect(&server)).collect();
    idle[0].write_all(get("").as_bytes()).unwrap();
    assert_eq!(Raw::read(&mut idle[0]).unwrap().status, 200);
    idle[1].write_all(b"GET / HT").unwrap();
    let start = Instant::now();
    assert!(server.stop().success());
    assert!(start.elapsed() < secs(3), "{:?}", start.elapsed());
    for mut stream in idle {
        let _ = stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
}
