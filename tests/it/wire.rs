//! Valid and invalid bytes on the wire: raw requests with the exact status that each must get, and after each one
//! proof that the server still serves.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::procs::secs;
use crate::server::Server;

/// A raw conversation: the bytes sent, the expected statuses, and whether the connection stays open.
struct Case {
    send: Vec<u8>,
    want: &'static [u16],
    lives: bool,
}

fn case(send: impl AsRef<[u8]>, want: &'static [u16], lives: bool) -> Case {
    Case { send: send.as_ref().to_vec(), want, lives }
}

/// Must be refused with this status, and the connection must close.
fn no(status: &'static [u16], send: impl AsRef<[u8]>) -> Case {
    case(send, status, false)
}

/// Must be answered, and the connection must stay open.
fn yes(statuses: &'static [u16], send: impl AsRef<[u8]>) -> Case {
    case(send, statuses, true)
}

/// GET of a public route with these further header lines.
pub fn get(lines: &str) -> String {
    format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")
}

/// POST to an unknown path: 404 shows that the gate accepted it. (A 401 would be delayed after a few.)
pub fn post(lines: &str, body: &str) -> String {
    format!("POST /api/nothing HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{body}")
}

/// POST to a route that accepts 2 MiB; without a credential, so that it has no effect.
fn post_known(lines: &str, body: &str) -> String {
    format!("POST /api/workspaces HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{body}")
}

/// A request that must never be seen, hidden in a refused one.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn request_lines() -> Vec<Case> {
    let line = |line: &str| format!("{line}\r\nHost: localhost\r\n\r\n");
    vec![
        yes(&[200], line("GET /health HTTP/1.1")),
        yes(&[200], line("GET /health?x=%zz&y HTTP/1.1")),
        yes(&[404], line("GET //health HTTP/1.1")),
        yes(&[404], line("GET /h%C3%A4 HTTP/1.1")),
        yes(&[200], format!("\r\n{}", line("GET /health HTTP/1.1"))),
        no(&[400], format!("\r\n\r\n{}", line("GET /health HTTP/1.1"))),
        no(&[400], line("GET /health")),
        no(&[400], line("GET  /health HTTP/1.1")),
        no(&[400], line("GET /health  HTTP/1.1")),
        no(&[400], line(" GET /health HTTP/1.1")),
        no(&[400], line("GET /health HTTP/1.1 ")),
        no(&[400], line("GET\t/health\tHTTP/1.1")),
        no(&[400], line("GET /he alth HTTP/1.1")),
        no(&[400], line("GET health HTTP/1.1")),
        no(&[400], line("GET /health#x HTTP/1.1")),
        no(&[400], line("GET * HTTP/1.1")),
        yes(&[204], line("OPTIONS * HTTP/1.1")),
        no(&[400], line("GET /h\u{e4} HTTP/1.1")),
        no(&[400], line("GET /health HTTP/1.1x")),
        no(&[400], line("GET /health HTTP/11")),
        no(&[400], line("GET /health http/1.1")),
        no(&[400], line("GET /health ICY/1.1")),
        no(&[505], line("GET /health HTTP/1.2")),
        no(&[505], line("GET /health HTTP/0.9")),
        no(&[505], line("GET /health HTTP/3.0")),
        no(&[505], "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        no(&[501], line("get /health HTTP/1.1")),
        no(&[501], line("TRACE /health HTTP/1.1")),
        no(&[501], line("CONNECT localhost:80 HTTP/1.1")),
        no(&[501], line("BREW /health HTTP/1.1")),
        no(&[400], line("G@T /health HTTP/1.1")),
        no(&[400], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        no(&[400], b"\0\0\0\0"),
        yes(&[200], line("GET http://localhost/health HTTP/1.1")),
        yes(&[200], line("GET HTTP://LOCALHOST.:80/health HTTP/1.1")),
        no(&[400], line("GET http://evil.test/health HTTP/1.1")),
        no(&[400], line("GET http://localhost:81/health HTTP/1.1")),
        no(&[400], line("GET http://user@localhost/health HTTP/1.1")),
        no(&[400], line("GET ftp://localhost/health HTTP/1.1")),
        no(&[400], line("GET http:///health HTTP/1.1")),
    ]
}

fn hosts() -> Vec<Case> {
    let host = |host: &str| format!("GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut cases = vec![
        no(&[400], "GET /health HTTP/1.1\r\n\r\n"),
        no(&[400], "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"),
        no(&[400], "GET /health HTTP/1.0\r\nHost: localhost\r\nHost: evil.test\r\n\r\n"),
        no(&[200], "GET /health HTTP/1.0\r\n\r\n"),
        no(&[200], "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    ];
    for good in [
        "localhost:1",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1.:8787",
        "[::1]:8787",
        "a.localhost",
    ] {
        cases.push(yes(&[200], host(good)));
    }
    for foreign in [
        "evil.test",
        "evil.test:8787",
        "evil.test.",
        "EVIL.test",
        "localhost.evil.test",
        "",
        "10.0.0.1",
        "[2001:db8::1]",
    ] {
        cases.push(no(&[403], host(foreign)));
    }
    for broken in [
        "u@localhost",
        "localhost:x",
        "localhost:99999",
        "[::1",
        "local host",
        "localhost/",
        "http://localhost",
    ] {
        cases.push(no(&[400], host(broken)));
    }
    cases
}

fn fields() -> Vec<Case> {
    let many = "X: y\r\n".repeat(99);
    let long = format!("X: {}\r\n", "y".repeat(16 << 10));
    vec![
        yes(&[200], get(&many)),
        yes(&[200], get("X:\r\n")),
        yes(&[200], get("X:\t y \t\r\n")),
        yes(&[200], get("X-Berth-Peer: 1.2.3.4\r\nX-Berth-Ping: 1\r\nX-Berth-Connection: 1\r\n")),
        no(&[431], get(&format!("{many}X: y\r\n"))),
        no(&[431], get(&long)),
        no(&[431], format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(16 << 10))),
        no(&[431], "X".repeat(20 << 10)),
        no(&[400], get("X : y\r\n")),
        no(&[400], get("X\t: y\r\n")),
        no(&[400], get(": y\r\n")),
        no(&[400], get("X\r\n")),
        no(&[400], get("X(: y\r\n")),
        no(&[400], get(" X: y\r\n")),
        no(&[400], get("X: y\r\n z\r\n")),
        no(&[400], get("X: y\r\n\tz\r\n")),
        no(&[400], "GET /health HTTP/1.1\r\n Host: localhost\r\nHost: localhost\r\n\r\n"),
        no(&[400], get("X: y\nZ: a\r\n")),
        no(&[400], get("X: y\rZ: a\r\n")),
        no(&[400], get("X: y\0z\r\n")),
        no(&[400], get("X: \x01\r\n")),
        no(&[400], get("X: \x1b[31m\r\n")),
        no(&[400], get("X: \x7f\r\n")),
        no(&[400], get("X: \u{e4}\r\n")),
        no(&[400], "GET /health HTTP/1.1\nHost: localhost\n\n"),
        no(&[400], "GET /health HTTP/1.1\r\nHost: localhost\r\n\n"),
        no(&[200], get("Connection: close\r\n")),
        no(&[200], get("Connection: keep-alive, CLOSE\r\n")),
        no(&[400], get("Connection: Content-Length\r\n")),
        no(&[400], get("Connection: a b\r\n")),
        no(&[400], get("Connection: upgrade\r\n")),
        no(&[400], get("Connection: upgrade\r\nUpgrade: websocket\r\n")),
        yes(&[200], get("Upgrade: h2c\r\nConnection: Upgrade\r\n")),
        yes(
            &[200],
            get(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
            ),
        ),
        yes(&[404], post("Connection: Upgrade\r\nUpgrade: TLS/1.2\r\nContent-Length: 5\r\n", "hello")),
        no(&[200], "GET /health HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
        no(&[400], "GET /health HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        no(&[400], get("Connection: upgrade\r\nUpgrade: h2c, WebSocket\r\n")),
        no(
            &[400],
            get(
                "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n",
            ),
        ),
        no(&[400], post("Connection: upgrade\r\nContent-Length: 5\r\n", &format!("hello{HIDDEN}"))),
    ]
}

fn lengths() -> Vec<Case> {
    let length = |value: &str, body: &str| post(&format!("Content-Length: {value}\r\n"), body);
    let mut cases = vec![
        yes(&[404], length("2", "{}")),
        yes(&[404], length("0", "")),
        yes(&[404], length("00000000000000000000000000000000002", "{}")),
        yes(&[404, 200], length("2", &format!("{{}}{}", get("")))),
        yes(&[404], post("", "")),
        no(&[413], post_known("Content-Length: 2097153\r\n", "{}")),
        no(&[400], post("Content-Length: 2\r\nContent-Length: 3\r\n", "{} ")),
        no(&[400], post("Content-Length: 2\r\nContent-Length: 2\r\n", "{}")),
        no(&[400], get(&format!("Content-Length: x\r\n\r\n{HIDDEN}"))),
    ];
    for broken in ["abc", "+5", "-5", "5, 5", "5 5", "0x5", "5;", "", "5.0", "1e3"] {
        cases.push(no(&[400], length(broken, HIDDEN)));
    }
    for large in [
        "60000000000",
        "140737488355328",
        "9223372036854775807",
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999999999999999999999",
        "1000000000",
        "1000000000",
        "1000000000",
        "1000000000",
        "1000000000",
        "1000000000",
        "33554433",
    ] {
        cases.push(no(&[413], length(large, "abc")));
        cases.push(no(&[413], get(&format!("Content-Length: {large}\r\n"))));
        cases.push(no(&[413], post(&format!("Expect: 100-continue\r\nContent-Length: {large}\r\n"), "")));
    }
    cases
}

fn codings() -> Vec<Case> {
    let coded = |value: &str, body: &str| post(&format!("Transfer-Encoding: {value}\r\n"), body);
    let chunks = |body: &str| coded("chunked", body);
    let endless = format!("1000\r\n{}\r\n", "x".repeat(4096)).repeat(20);
    vec![
        yes(&[404], chunks("0\r\n\r\n")),
        yes(&[404], coded("Chunked", "2\r\n{}\r\n0\r\n\r\n")),
        yes(&[404], chunks("1;x=y\r\n{\r\n01\r\n}\r\n000\r\nA: b\r\nTransfer-Encoding: x\r\n\r\n")),
        yes(&[404, 200], chunks(&format!("2\r\n{{}}\r\n0\r\n\r\n{}", get("")))),
        // Answered before its end has arrived: the next request cannot be separated from it.
        no(&[404], chunks(&endless)),
        no(
            &[400],
            post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", &format!("0\r\n\r\n{HIDDEN}")),
        ),
        no(
            &[400],
            post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &format!("0\r\n\r\n{HIDDEN}")),
        ),
        no(&[400], post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
        no(&[400], post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n")),
        no(&[400], format!("POST /health HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
        no(&[501], coded("identity", &format!("0\r\n\r\n{HIDDEN}"))),
        no(&[501], coded("gzip", "")),
        no(&[501], coded("gzip, chunked", "0\r\n\r\n")),
        no(&[501], coded("chunked, chunked", "0\r\n\r\n")),
        no(&[501], coded("xchunked", &format!("0\r\n\r\n{HIDDEN}"))),
        no(&[501], coded("\"chunked\"", "0\r\n\r\n")),
        no(&[501], coded("", "0\r\n\r\n")),
        no(&[400], post("Transfer-Encoding : chunked\r\n", &format!("0\r\n\r\n{HIDDEN}"))),
        no(&[400], post("Transfer-Encoding:\x0bchunked\r\n", &format!("0\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("0\r\nX\x01: y\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("-1\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("0x2\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("2 2\r{{}}\r\n0\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("2 2\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("2 ;x\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("0\r\nX\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("0\r\nX: y\r\n z\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("\r\n2\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("2\n{{}}\n0\n\n{HIDDEN}"))),
        no(&[400], chunks(&format!("2\r\n{{}}x\r\n0\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("00000000000000002\r\n{{}}\r\n0\r\n\r\n{HIDDEN}"))),
        no(&[400], chunks(&format!("2;{}\r\n{{}}\r\n0\r\n\r\n{HIDDEN}", "x".repeat(300)))),
        no(&[431], chunks(&format!("0\r\n{}\r\n{HIDDEN}", "A: b\r\n".repeat(2000)))),
        no(&[413], chunks("ffffffffffffffff\r\n{}")),
        no(&[413], post_known("Transfer-Encoding: chunked\r\n", "200001\r\n{}")),
        no(&[413], post_known("Transfer-Encoding: chunked\r\n", "1\r\n{\r\n200000\r\n}")),
    ]
}

fn the_rest() -> Vec<Case> {
    vec![
        no(&[417], post("Expect: 200-ok\r\nContent-Length: 2\r\n", "{}")),
        no(&[417], post("Expect: 100-continue, x\r\nContent-Length: 2\r\n", "{}")),
        no(&[400], post("Expect: 100-continue\r\nExpect: 100-continue\r\nContent-Length: 2\r\n", "{}")),
        // Sent without waiting for the interim response.
        yes(&[404], post("Expect: 100-continue\r\nContent-Length: 2\r\n", "{}")),
        yes(&[404], post("Origin: http://localhost\r\nContent-Length: 2\r\n", "{}")),
        no(&[403], post("Origin: http://evil.test\r\nContent-Length: 2\r\n", "{}")),
        no(&[403], post("Origin: null\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n", "{}")),
        no(&[403], post("Origin: http://localhost:3000\r\nContent-Length: 2\r\n", "{}")),
        no(
            &[400],
            post("Origin: http://localhost\r\nOrigin: http://evil.test\r\nContent-Length: 2\r\n", "{}"),
        ),
        yes(&[200], get("Origin: http://evil.test\r\n")),
        yes(&[200, 404, 200], format!("{}GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n{}", get(""), get(""))),
        no(&[200, 400], format!("{}{}{HIDDEN}", get(""), get("X : y\r\n"))),
        no(&[200], format!("{}{HIDDEN}", get("Connection: close\r\n"))),
    ]
}

#[test]
fn every_request_gets_its_expected_status() {
    let server = Server::start();
    let mut count = 0;
    for (group, cases) in [
        ("request lines", request_lines()),
        ("hosts", hosts()),
        ("fields", fields()),
        ("lengths", lengths()),
        ("codings", codings()),
        ("the rest", the_rest()),
    ] {
        for (number, case) in cases.iter().enumerate() {
            // At once, and in pieces of random size.
            for piece in [case.send.len(), 1 + (number * 7 + count) % 41] {
                let excerpt = String::from_utf8_lossy(&case.send).chars().take(160).collect::<String>();
                let what = format!("{group} {number} in pieces of {piece}: {excerpt:?}");
                converse(&server, case, piece, &what);
                count += 1;
            }
            assert_served(&server);
        }
    }
    assert!(count >= 160, "{count}");
    assert!(!server.log().contains("smuggled"), "{}", server.log());
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[track_caller]
fn converse(server: &Server, case: &Case, piece: usize, what: &str) {
    let mut stream = connect(server);
    for part in case.send.chunks(piece.max(1)) {
        // A refusal may arrive before all bytes were sent.
        if stream.write_all(part).is_err() {
            break;
        }
    }
    for (number, want) in case.want.iter().enumerate() {
        let reply = Raw::read(&mut stream).unwrap_or_else(|error| panic!("{what}: answer {number}: {error}"));
        assert_eq!(reply.status, *want, "{what}: answer {number}: {}", reply.text);
        let last = number + 1 == case.want.len();
        assert_eq!(reply.closes(), last && !case.lives, "{what}: answer {number}: {}", reply.text);
        if reply.status >= 400 {
            assert!(
                reply.body.starts_with("{\"code\":\"") && reply.body.contains("\"message\":\""),
                "{what}: {}",
                reply.text
            );
        }
    }
    if case.lives {
        stream.write_all(get("").as_bytes()).unwrap();
        assert_eq!(Raw::read(&mut stream).unwrap().status, 200, "{what}: the connection must stay open");
    } else {
        let mut rest = Vec::new();
        // A reset is an end as well, if bytes were still being sent.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{what}: more responses came: {}", String::from_utf8_lossy(&rest));
    }
}

#[track_caller]
pub fn assert_served(server: &Server) {
    let mut stream = connect(server);
    stream.write_all(get("Connection: close\r\n").as_bytes()).unwrap();
    assert_eq!(Raw::read(&mut stream).unwrap().status, 200);
}

#[test]
fn head_answers_have_no_body_and_keep_the_connection() {
    let server = Server::start();
    let mut stream = connect(&server);
    for _ in 0..2 {
        stream.write_all(get("").replace("GET", "HEAD").as_bytes()).unwrap();
        let head = Raw::read_head(&mut stream).unwrap();
        assert!(head.contains("200 OK") && head.contains("Content-Length: "), "{head}");
    }
    stream.write_all(get("").as_bytes()).unwrap();
    assert_eq!(Raw::read(&mut stream).unwrap().status, 200);
    for refused in ["X : y\r\n", "X: \x01\r\n"] {
        let mut stream = connect(&server);
        stream.write_all(format!("\r\n{}", get(refused).replace("GET", "HEAD")).as_bytes()).unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        assert!(all.starts_with("HTTP/1.1 400 ") && all.ends_with("\r\n\r\n"), "{all}");
    }
}

#[test]
fn expect_is_answered_before_the_body() {
    let server = Server::start();
    let mut stream = connect(&server);
    stream.write_all(post("Expect: 100-continue\r\nContent-Length: 2\r\n", "").as_bytes()).unwrap();
    let head = Raw::read_head(&mut stream).unwrap();
    assert_eq!(head, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{}").unwrap();
    assert_eq!(Raw::read(&mut stream).unwrap().status, 404);
}

#[test]
fn request_ids_are_taken_only_when_harmless() {
    let server = Server::start();
    for (given, accepted) in
        [("a-B_9.z", true), ("a b", false), ("", false), (&"x".repeat(65), false), ("<s>", false)]
    {
        let mut stream = connect(&server);
        stream.write_all(get(&format!("X-Request-Id: {given}\r\n")).as_bytes()).unwrap();
        let head = Raw::read(&mut stream).unwrap().text;
        let line = head.lines().find_map(|line| line.strip_prefix("X-Request-Id: ")).unwrap();
        assert_eq!(line == given, accepted, "{head}");
        assert!(line.len() >= 3, "{head}");
    }
}

#[track_caller]
pub fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(secs(70))).unwrap();
    stream
}

/// Reads one response with a Content-Length, byte for byte.
pub struct Raw {
    pub status: u16,
    pub text: String,
    pub body: String,
}

impl Raw {
    pub fn read(stream: &mut impl Read) -> io::Result<Raw> {
        let mut head = Raw::read_head(stream)?;
        // Whether an interim response arrives depends on the packet boundaries.
        if head == "HTTP/1.1 100 Continue\r\n\r\n" {
            head = Raw::read_head(stream)?;
        }
        let status = head.get(9..12).and_then(|digits| digits.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {head:?}")))?;
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.map_or(0, |digits| digits.parse().unwrap())];
        stream.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Raw { status, text: format!("{head}{body}"), body })
    }

    /// Byte by byte, so that no byte of the next response is lost.
    fn read_head(stream: &mut impl Read) -> io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).map_err(|error| {
                io::Error::new(error.kind(), format!("{error} after {:?}", String::from_utf8_lossy(&head)))
            })?;
            head.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    pub fn closes(&self) -> bool {
        self.text.contains("\r\nConnection: close\r\n")
    }
}
