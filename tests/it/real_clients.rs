//! Third-party HTTP clients with their default settings: their requests are answered, and hop-by-hop headers are not
//! forwarded.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::procs::secs;
use crate::server::{HOST_TOKEN, NIL, Server, Setup};
use crate::upstream::Upstream;

/// The first request of Java 17's HttpClient on every connection, byte by byte.
fn java_post(path: &str, host: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: {}\r\nHost: {host}\r\n\
         HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nUpgrade: h2c\r\nUser-Agent: Java-http-client/17.0.18\r\n\
         Authorization: Bearer {HOST_TOKEN}\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn an_offer_of_another_protocol_is_answered_in_http_1() {
    let server = Server::start();
    let exec = format!("/api/workspaces/{NIL}/exec");
    let mut client = TcpStream::connect(server.address).unwrap();
    client.set_read_timeout(Some(secs(30))).unwrap();
    // The connection stays open: each request contains the offer, and each is answered.
    for word in ["one", "two"] {
        let body = format!(r#"{{"command":"echo {word}"}}"#);
        client.write_all(java_post(&exec, "localhost", &body).as_bytes()).unwrap();
        let mut answer = String::new();
        while !answer.ends_with("}") {
            let mut piece = [0; 4096];
            let count = client.read(&mut piece).unwrap();
            assert!(count > 0, "{answer}");
            answer.push_str(std::str::from_utf8(&piece[..count]).unwrap());
        }
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(word), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("\r\nupgrade:"), "{answer}");
    }
}

#[test]
fn curl_can_offer_http_2() {
    let server = Server::start();
    let curl = |path: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--http2", "-sS", "-N", "--max-time", "30", "-w", " %{http_code} %{http_version}"])
            .args(more);
        curl.arg("-H").arg(format!("Authorization: Bearer {HOST_TOKEN}"));
        let done = curl.arg(format!("http://{}{path}", server.address)).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    };
    assert!(curl("/health", &[]).ends_with(" 200 1.1"));
    assert!(curl("/health", &["-H", "Connection: Upgrade", "-H", "Upgrade: TLS/1.2"]).ends_with(" 200 1.1"));
    assert!(
        curl("/health", &["--http1.0", "-H", "Connection: Upgrade", "-H", "Upgrade: h2c"]).contains(" 200 ")
    );
    let exec = format!("/api/workspaces/{NIL}/exec");
    let reply = curl(&exec, &["-d", r#"{"command":"echo hi"}"#]);
    assert!(reply.contains(r#""stdout":"hi\n""#) && reply.ends_with(" 200 1.1"), "{reply}");
    let events = curl(&format!("{exec}?stream=sse"), &["-d", r#"{"command":"echo hi"}"#]);
    assert!(events.contains("event: ") && events.contains("hi") && events.ends_with(" 200 1.1"), "{events}");
}

#[test]
fn javas_http_client_works_with_its_defaults() {
    if Command::new("java").arg("-version").output().is_err() {
        eprintln!("java is not installed; its bytes are sent by another test");
        return;
    }
    let server = Server::start();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/JavaClient.java");
    let mut java = Command::new("java");
    java.args(["-Xmx64m", "-XX:TieredStopAtLevel=1"]).arg(source).arg(format!("http://{}", server.address));
    java.args([HOST_TOKEN, NIL]).arg(format!("/api/workspaces/{NIL}/exec?stream=sse"));
    let done = java.output().unwrap();
    let reply = String::from_utf8_lossy(&done.stdout);
    let expected = "exec 200 HTTP_1_1 true\n".repeat(3) + "health 200\nsse 200 text/event-stream true\n";
    assert_eq!(reply, expected, "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn an_offer_of_another_protocol_does_not_reach_an_opencode() {
    let upstream = Upstream::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let server = upstream.setup().start();
    let mut client = TcpStream::connect(server.address).unwrap();
    client.set_read_timeout(Some(secs(30))).unwrap();
    client.write_all(java_post("/opencode/session", "localhost", "{}").as_bytes()).unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let seen = upstream.seen();
    for header in ["upgrade", "http2-settings", "te"] {
        assert_eq!(seen.header(header), None, "{seen:?}");
    }
    assert!(
        seen.header("connection").is_none_or(|value| !value.to_ascii_lowercase().contains("upgrade")),
        "{seen:?}"
    );
}

#[test]
fn a_compressed_body_is_refused_but_forwarded_to_opencode() {
    let upstream = Upstream::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let server = upstream.setup().start();
    let (owner, exec) = (server.owner(), format!("/api/workspaces/{NIL}/exec"));
    let body = serde_json::to_vec(&json!({"command": "echo hi"})).unwrap();
    for coding in ["gzip", "GZIP", "identity, br", "deflate", "x"] {
        let reply = owner.send("POST", &exec, &[("Content-Encoding", coding)], Some(&body)).expect(415);
        assert_eq!(reply.value()["code"], "unsupported_encoding", "{reply}");
        assert_eq!(reply.header("accept-encoding"), Some("identity"));
    }
    for coding in ["identity", "Identity", ""] {
        owner.send("POST", &exec, &[("Content-Encoding", coding)], Some(&body)).expect(200);
    }
    // An empty body has no encoding to refuse; without a credential no detail is returned.
    owner.send("GET", "/status", &[("Content-Encoding", "gzip")], None).expect(200);
    server.anyone().send("POST", &exec, &[("Content-Encoding", "gzip")], Some(&body)).expect(401);
    owner.send("POST", "/opencode/x", &[("Content-Encoding", "gzip")], Some(b"\x1f\x8b")).expect(200);
    let seen = upstream.seen();
    assert_eq!(
        (seen.header("content-encoding"), seen.body.as_slice()),
        (Some("gzip"), b"\x1f\x8b".as_slice())
    );
}

/// Headers of real clients that request an optional behaviour which berth does not support (RFC 9110).
#[test]
fn optional_request_headers_are_ignored() {
    let server = Setup::new().start();
    let owner = server.owner();
    for (name, value) in [
        ("TE", "trailers, deflate;q=0.5"),
        ("Trailer", "Expires"),
        ("Prefer", "respond-async, wait=10"),
        ("Keep-Alive", "timeout=5, max=100"),
        ("Proxy-Connection", "keep-alive"),
        ("Range", "bytes=0-1"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Accept", "text/html;q=0.1, application/vnd.x+json"),
        ("If-None-Match", "\"x\""),
        ("Upgrade-Insecure-Requests", "1"),
        ("Early-Data", "1"),
        ("Priority", "u=1, i"),
        ("DNT", "1"),
        ("Max-Forwards", "10"),
        ("Forwarded", "for=192.0.2.1;proto=https"),
        ("Cookie", "a=b"),
        ("Sec-WebSocket-Key", "x"),
        ("Via", "1.1 proxy"),
    ] {
        owner.send("GET", "/health", &[(name, value)], None).expect(200);
    }
}
