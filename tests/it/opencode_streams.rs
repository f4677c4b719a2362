//! Long-lasting traffic to and from an OpenCode: streams, large bodies, WebSockets, slow and failing connections. A
//! stream holds no worker that other requests need, the end of each side closes the other, and a truncated response
//! never looks complete.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::procs::{memory, secs};
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, Server};
use crate::upstream::{Upstream, expect_end};

const SSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A request in progress on its own connection.
fn open(server: &Server, request: &str) -> TcpStream {
    open_as(CLIENT_TOKEN, server, request)
}

fn open_as(token: &str, server: &Server, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(secs(30))).unwrap();
    let (line, rest) = request.split_once("\r\n").unwrap_or((request, ""));
    let head = format!("{line}\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{rest}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

/// Reads until `text` arrives.
#[track_caller]
fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        let mut byte = [0];
        let count = stream.read(&mut byte).unwrap();
        assert_eq!(count, 1, "ended before {text:?}: {:?}", String::from_utf8_lossy(&read));
        read.push(byte[0]);
    }
    String::from_utf8(read).unwrap()
}

/// Reads to the end, and returns whether the connection ended with a reset.
fn read_all(stream: &mut TcpStream) -> (String, bool) {
    let mut read = Vec::new();
    let reset = match stream.read_to_end(&mut read) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            true
        }
    };
    (String::from_utf8_lossy(&read).into_owned(), reset)
}

/// An upstream that hands each of its connections to the test.
fn handing() -> (Upstream, Receiver<TcpStream>) {
    let (hand, handed) = channel();
    let hand = Mutex::new(hand);
    let upstream = Upstream::start(move |seen, stream| {
        if seen.target() == "/ok" {
            return stream.write_all(OK).is_ok();
        }
        hand.lock().unwrap().send(stream.try_clone().unwrap()).unwrap();
        false
    });
    (upstream, handed)
}

fn next(handed: &Receiver<TcpStream>) -> TcpStream {
    handed.recv_timeout(secs(20)).unwrap()
}

#[test]
fn events_arrive_as_sent_and_hold_no_worker() {
    let (upstream, handed) = handing();
    let server = upstream.setup().args(&["--max-proxied=2", "--http-threads=2", "--max-streams=40"]).start();
    let mut streams = Vec::new();
    // An owner, because any other token has at most half of the permits.
    for number in 0..40 {
        let mut client =
            open_as(HOST_TOKEN, &server, "GET /opencode/event HTTP/1.1\r\nAccept: text/event-stream\r\n");
        let mut far = next(&handed);
        far.write_all(SSE).unwrap();
        let head = read_until(&mut client, "\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/event-stream"), "{head}");
        far.write_all(format!("9\r\ndata: {number:02}\n\r\n").as_bytes()).unwrap();
        assert_eq!(read_until(&mut client, "\n\r\n"), format!("9\r\ndata: {number:02}\n\r\n"));
        streams.push((client, far));
    }
    // All stream permits are in use: the next stream is refused, and short requests continue.
    let mut late = open_as(HOST_TOKEN, &server, "GET /opencode/event HTTP/1.1\r\nConnection: close\r\n");
    let mut far = next(&handed);
    far.write_all(SSE).unwrap();
    let (reply, _) = read_all(&mut late);
    assert!(reply.starts_with("HTTP/1.1 503 ") && reply.contains("--max-streams"), "{reply}");
    expect_end(&mut far);
    for _ in 0..10 {
        server.owner().get(200, "/opencode/ok");
    }
    // An upstream that delays its response head does not hold a worker either.
    let slow: Vec<_> =
        (0..2).map(|_| open_as(HOST_TOKEN, &server, "GET /opencode/slow HTTP/1.1\r\n")).collect();
    drop(streams.drain(..4));
    let slow_far: Vec<_> = slow.iter().map(|_| next(&handed)).collect();
    server.owner().get(200, "/opencode/ok");
    let (clients, fars): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
    for mut far in slow_far {
        far.write_all(OK).unwrap();
    }
    for mut far in fars {
        far.write_all(b"1\r\nx\r\n0\r\n\r\n").unwrap();
    }
    for mut client in slow {
        assert!(read_until(&mut client, "ok").starts_with("HTTP/1.1 200 "));
    }
    for mut client in clients {
        assert_eq!(read_until(&mut client, "0\r\n\r\n"), "1\r\nx\r\n0\r\n\r\n");
    }
}

#[test]
fn a_client_disconnect_closes_the_upstream_connection() {
    let (upstream, handed) = handing();
    let server = upstream.setup().start();
    // Before the head of the response, and in its body.
    for begun in [false, true] {
        let mut client = open(&server, "GET /opencode/event HTTP/1.1\r\n");
        let mut far = next(&handed);
        if begun {
            far.write_all(SSE).unwrap();
            far.write_all(b"2\r\nab\r\n").unwrap();
            read_until(&mut client, "ab\r\n");
        }
        drop(client);
        expect_end(&mut far);
    }
    // In the middle of a request body.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = crate::server::Setup::new().arg(format!("--opencode-base-url={url}")).start();
    // The body of a collaborator would be inspected first.
    let mut client = TcpStream::connect(server.address).unwrap();
    let owner = crate::server::HOST_TOKEN;
    let head = format!("Host: localhost\r\nAuthorization: Bearer {owner}\r\nContent-Length: 1000000\r\n\r\n");
    client.write_all(format!("POST /opencode/x HTTP/1.1\r\n{head}").as_bytes()).unwrap();
    client.write_all(&[b'x'; 200_000]).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    read_until(&mut far, "xxxx");
    drop(client);
    let (rest, _) = read_all(&mut far);
    assert!(!rest.ends_with("0\r\n\r\n"), "a truncated body looked complete");
}

#[test]
fn a_truncated_response_is_never_a_clean_end() {
    let (upstream, handed) = handing();
    let server = upstream.setup().start();
    let reset = |far: TcpStream| {
        rustix::net::sockopt::set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
    };
    let length = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegun";
    let chunks = [SSE, b"5\r\nbegun\r\n"].concat();
    let torn = [SSE, b"9\r\nbegun"].concat();
    let to_the_end = b"HTTP/1.0 200 OK\r\n\r\nbegun";
    for (answer, by_reset) in [
        (&length[..], false),
        (&length[..], true),
        (&chunks, false),
        (&chunks, true),
        (&torn, false),
        (&to_the_end[..], true),
    ] {
        for version in ["1.1", "1.0"] {
            let place = format!("{} {by_reset} {version}", String::from_utf8_lossy(answer));
            let mut client = open(&server, &format!("GET /opencode/x HTTP/{version}\r\n"));
            let mut far = next(&handed);
            far.write_all(answer).unwrap();
            let head = read_until(&mut client, "begun");
            if by_reset {
                reset(far)
            } else {
                drop(far)
            }
            let (rest, was_reset) = read_all(&mut client);
            if head.contains("chunked") {
                assert!(!rest.contains("0\r\n\r\n"), "{place}: {rest:?}");
            } else if !head.contains("Content-Length") {
                assert!(was_reset, "{place}: only a reset shows that the response is truncated");
            }
        }
    }
    // A short response is buffered until it is complete: if the upstream closes early, the client gets an error.
    let mut client = open(&server, "GET /opencode/x HTTP/1.1\r\nConnection: close\r\n");
    next(&handed).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun").unwrap();
    let (reply, _) = read_all(&mut client);
    assert!(reply.starts_with("HTTP/1.1 502 ") && reply.contains("opencode_unreachable"), "{reply}");
}

#[test]
fn http_1_0_clients_get_the_same_without_chunks() {
    let (upstream, handed) = handing();
    let server = upstream.setup().start();
    let mut client = open(&server, "GET /opencode/x HTTP/1.0\r\n");
    let mut far = next(&handed);
    far.write_all(&[SSE, b"3\r\nabc\r\n"].concat()).unwrap();
    read_until(&mut client, "\r\n\r\nabc");
    far.write_all(b"3\r\ndef\r\n0\r\n\r\n").unwrap();
    assert_eq!(read_all(&mut client), ("def".into(), false));
}

#[test]
fn large_bodies_are_forwarded_without_buffering() {
    const SIZE: usize = 64 << 20;
    let upstream = Upstream::start(|seen, stream| {
        assert_eq!(seen.body.len(), if seen.line.starts_with("POST") { SIZE } else { 0 });
        let answer = vec![b'y'; SIZE];
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
        stream.write_all(head.as_bytes()).is_ok() && stream.write_all(&answer).is_ok()
    });
    let server = upstream.setup().start();
    let before = memory(server.pid, "VmRSS");
    let mut client = open(&server, &format!("POST /opencode/x HTTP/1.1\r\nContent-Length: {SIZE}\r\n"));
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..SIZE >> 20 {
        client.write_all(&chunk).unwrap();
    }
    let head = read_until(&mut client, "\r\n\r\n");
    assert!(head.contains(&format!("Content-Length: {SIZE}\r\n")), "{head}");
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    while read < SIZE {
        let count = client.read(&mut buffer).unwrap();
        assert!(count > 0 && buffer[..count].iter().all(|byte| *byte == b'y'));
        read += count;
    }
    let growth = memory(server.pid, "VmHWM").saturating_sub(before);
    assert!(growth < 4 << 20, "grown by {growth} bytes");
}

#[test]
fn an_early_response_is_forwarded_before_the_request_ends() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answering = std::thread::spawn(move || {
        let (mut far, _) = listener.accept().unwrap();
        read_until(&mut far, "\r\n\r\n");
        far.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
            .unwrap();
        // Without reading the rest: a close would reset the connection.
        far.shutdown(std::net::Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    });
    let server = crate::server::Setup::new().arg(format!("--opencode-base-url={url}")).start();
    let large = vec![b'x'; 30 << 20];
    let reply = server.owner().send("POST", "/opencode/x", &[], Some(&large)).expect(413);
    assert_eq!(reply.text(), "big");
    answering.join().unwrap();
}

#[test]
fn stopping_the_server_ends_proxied_streams() {
    let (upstream, handed) = handing();
    let server = upstream.setup().start();
    let mut client = open(&server, "GET /opencode/event HTTP/1.1\r\n");
    let mut far = next(&handed);
    far.write_all(SSE).unwrap();
    read_until(&mut client, "\r\n\r\n");
    let started = Instant::now();
    assert!(server.stop().success());
    assert!(started.elapsed() < secs(5), "{:?}", started.elapsed());
    assert!(!read_all(&mut client).0.contains("0\r\n\r\n"));
    expect_end(&mut far);
}

#[test]
fn revoking_a_token_ends_its_proxied_streams() {
    let (upstream, handed) = handing();
    let server = upstream.setup().start();
    let created = server
        .owner()
        .call("POST", "/tokens", Some(&serde_json::json!({"scope": "viewer"})))
        .expect(201)
        .value();
    let token = created["token"].as_str().unwrap();
    let ask = || {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(secs(30))).unwrap();
        let head = format!(
            "GET /opencode/event HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let (mut flowing, mut far) = (ask(), next(&handed));
    far.write_all(SSE).unwrap();
    read_until(&mut flowing, "\r\n\r\n");
    let (mut waiting, mut silent) = (ask(), next(&handed));
    server.owner().delete(200, &format!("/tokens/{}", created["id"].as_str().unwrap()));
    assert!(!read_all(&mut flowing).0.contains("0\r\n\r\n"));
    expect_end(&mut far);
    assert!(read_until(&mut waiting, "\r\n").starts_with("HTTP/1.1 401 "));
    expect_end(&mut silent);
}

/// The client's end of a WebSocket through the proxy, and the upstream's.
fn sockets(
    server: &Server,
    handed: &Receiver<(TcpStream, String)>,
) -> (WebSocket<TcpStream>, WebSocket<TcpStream>, String) {
    let mut request =
        format!("ws://{}/opencode/pty/x/connect?cursor=1", server.address).into_client_request().unwrap();
    let offered = format!("jwt.{CLIENT_TOKEN}, tty, other");
    request.headers_mut().insert("Sec-WebSocket-Protocol", offered.parse().unwrap());
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(secs(30))).unwrap();
    let (near, response) = tungstenite::client(request, stream).unwrap();
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "tty");
    let (far, head) = handed.recv_timeout(secs(20)).unwrap();
    (near, WebSocket::from_raw_socket(far, tungstenite::protocol::Role::Server, None), head)
}

#[test]
fn websockets_pass_both_ways() {
    let (hand, handed) = channel();
    let hand = Mutex::new(hand);
    let upstream = Upstream::start(move |seen, stream| {
        let Some(key) = seen.header("sec-websocket-key") else {
            return stream.write_all(OK).is_ok();
        };
        let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
        // The first message arrives in the same packet as the response.
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: tty\r\n\r\n"
        );
        stream.write_all(&[answer.as_bytes(), b"\x81\x05hello"].concat()).unwrap();
        hand.lock().unwrap().send((stream.try_clone().unwrap(), format!("{seen:?}"))).unwrap();
        false
    });
    let server = upstream
        .setup()
        .arg("--opencode-shell=collaborator")
        .args(&["--max-streams=4", "--max-proxied=1"])
        .start();
    let (mut near, mut far, head) = sockets(&server, &handed);
    assert!(!head.contains(CLIENT_TOKEN) && head.contains("\"tty, other\""), "{head}");
    assert!(head.contains("GET /pty/x/connect?cursor=1 HTTP/1.1"), "{head}");
    assert_eq!(near.read().unwrap(), Message::text("hello"));
    for size in [0, 1, 125, 126, 70_000, 3_000_000] {
        let message = Message::binary(vec![7; size]);
        near.send(message.clone()).unwrap();
        assert_eq!(far.read().unwrap(), message);
        let sending = std::thread::spawn({
            let message = message.clone();
            move || {
                far.send(message).unwrap();
                far
            }
        });
        assert_eq!(near.read().unwrap(), message);
        far = sending.join().unwrap();
    }
    // Neither side waits for the other: both send more than any buffer holds before they read.
    let both = std::thread::spawn(move || {
        far.send(Message::binary(vec![1; 1 << 20])).unwrap();
        (far.read().unwrap().len(), far)
    });
    near.send(Message::binary(vec![2; 1 << 20])).unwrap();
    assert_eq!(near.read().unwrap().len(), 1 << 20);
    let (len, mut far) = both.join().unwrap();
    assert_eq!(len, 1 << 20);
    server.owner().get(200, "/opencode/ok");
    // The close of each side closes the other.
    near.close(None).unwrap();
    assert!(matches!(far.read().unwrap(), Message::Close(_)));
    let _ = far.flush();
    assert!(matches!(near.read(), Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed)));
    for near_first in [true, false] {
        let (near, far, _) = sockets(&server, &handed);
        let (first, mut other) = if near_first {
            (near, far.get_ref().try_clone().unwrap())
        } else {
            (far, near.get_ref().try_clone().unwrap())
        };
        drop(first);
        let _ = other.set_read_timeout(Some(secs(20)));
        let mut rest = Vec::new();
        let _ = other.read_to_end(&mut rest);
    }
}

#[test]
fn a_refused_upgrade_is_answered() {
    let upstream = Upstream::saying("HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\nno such");
    let server = upstream.setup().arg("--opencode-shell=collaborator").start();
    let refused = crate::socket::Socket::try_open(
        &server,
        "/opencode/pty/x/connect",
        &[("Authorization", &format!("Bearer {CLIENT_TOKEN}"))],
    );
    let reply = refused.err().unwrap().expect(404);
    assert_eq!(reply.text(), "no such");
}
