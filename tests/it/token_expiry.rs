//! A token that expires ends the connections that were opened with it, without further requests: WebSockets and
//! streams of berth, and those of OpenCode on both paths of the proxy. Connections of other tokens stay open.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;

use crate::events::Events;
use crate::procs::secs;
use crate::scoped_tokens;
use crate::server::{NIL, Server};
use crate::socket::Socket;
use crate::upstream::{Upstream, expect_end};

const LIFE: u64 = 8;

/// A stream or a WebSocket of OpenCode: its head has arrived, and the upstream sends no more.
fn open(server: &Server, token: &str, rest: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(secs(60))).unwrap();
    let head = format!("GET /opencode{rest}Host: localhost\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
        seen.extend(byte);
    }
    stream
}

const UPGRADE: &str = "/pty/x/connect HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: \
                       13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn connections_of_an_expired_token_are_closed() {
    let upstream = Upstream::start(|seen, stream| {
        let answer: &[u8] = match seen.header("upgrade") {
            Some(_) => {
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            }
            None => {
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            }
        };
        stream.write_all(answer).unwrap();
        // The run never ends by itself; the stream reports the reason of its end.
        expect_end_of_all(stream);
        false
    });
    let server = upstream.setup().start();
    let started = Instant::now();
    let (token, _) = scoped_tokens::make(&server, json!({"scope": "owner", "expiresInSecs": LIFE}));
    let (other, _) = scoped_tokens::make(&server, json!({"scope": "owner"}));
    let id = server.owner().get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
    let events = format!("GET /workspace/{id}/events/stream HTTP/1.1\r\nLast-Event-ID: 0\r\n");
    let own_stream = Events::ask_as(&server, &token, &events, None);
    let approvals = Events::ask_as(&server, &token, "GET /approvals/events HTTP/1.1\r\n", None);
    let bearer = format!("Bearer {token}");
    let shell = format!("/api/workspaces/{NIL}/shell");
    let mut shell = Socket::try_open(&server, &shell, &[("Authorization", &bearer)]).ok().unwrap();
    let event = "/event HTTP/1.1\r\n";
    let (mut stream, mut socket) = (open(&server, &token, event), open(&server, &token, UPGRADE));
    let (others_stream, others_socket) = (open(&server, &other, event), open(&server, &other, UPGRADE));

    assert_eq!(shell.until_closed().code, 1008);
    own_stream.until_cut();
    approvals.until_cut();
    expect_end(&mut stream);
    expect_end(&mut socket);
    assert!(
        started.elapsed() >= secs(LIFE - 1),
        "it was closed before the token expired: {:?}",
        started.elapsed()
    );
    server.with_token(&token).refused(401, "unauthorized", "GET", "/whoami", None);
    for mut open in [others_stream, others_socket] {
        open.set_nonblocking(true).unwrap();
        let silent = open.read(&mut [0]).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// Reads until the end, for minutes if necessary.
fn expect_end_of_all(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(secs(120))).unwrap();
    while matches!(stream.read(&mut [0; 64]), Ok(1..)) {}
}
