//! Connections full of requests for `smuggling`: valid, unusual and broken ones, generated from a number so that each
//! can be reproduced, and the pieces in which they are sent.

use std::fmt::Write as _;

use crate::server::{HOST_TOKEN, NIL};

/// splitmix64: the same numbers for the same seed on every machine.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.roll(end as u64) as usize
    }

    pub fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

/// One connection: every path and every request id in it contains its number, so that each request can be identified.
pub fn connection(number: u64, dice: &mut Dice) -> Vec<u8> {
    let (mut bytes, mut commands) = (Vec::new(), false);
    for at in 0..1 + dice.below(6) {
        let name = format!("{number}-{at}");
        match dice.roll(20) {
            0 => {
                commands = true;
                bytes.extend(command(&name, dice));
            }
            1..=11 => bytes.extend(right(&name, dice)),
            12..=15 => bytes.extend(odd(&name, dice)),
            _ => bytes.extend(broken(&name, dice)),
        }
    }
    // A randomly changed command could do anything.
    if !commands && dice.one_in(3) {
        for _ in 0..1 + dice.below(3) {
            change(&mut bytes, dice);
        }
    }
    bytes
}

/// A request that must never be seen, because it is the body of another.
fn hidden(name: &str) -> String {
    format!("GET /hidden/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn id(name: &str) -> String {
    format!("X-Request-Id: r{name}\r\n")
}

fn body(name: &str, dice: &mut Dice) -> String {
    match dice.roll(4) {
        0 => hidden(name),
        1 => format!("0\r\n\r\n{}", hidden(name)),
        2 => "x".repeat(dice.below(3000)),
        _ => "{\"a\":1}".to_owned(),
    }
}

/// Encodes `body` in chunks, either plainly or with everything that RFC 9112 permits.
fn chunks(body: &str, dice: &mut Dice) -> String {
    let (mut text, mut rest) = (String::new(), body);
    let tidy = dice.one_in(2);
    while !rest.is_empty() {
        let (part, next) = rest.split_at(1 + dice.below(rest.len().min(700)));
        rest = next;
        let extra = if tidy { "" } else { dice.pick(&["", ";a=b", ";a=\"0\"", " ", ";", "\t"]) };
        let size = match dice.roll(3) {
            0 if !tidy => format!("{:X}", part.len()),
            1 if !tidy => format!("{:04x}", part.len()),
            _ => format!("{:x}", part.len()),
        };
        let _ = write!(text, "{size}{extra}\r\n{part}\r\n");
    }
    let trailers =
        if tidy { "" } else { dice.pick(&["", "A: b\r\n", "Content-Length: 9\r\nHost: evil.test\r\n"]) };
    let last = if tidy { "0" } else { dice.pick(&["0", "000", "0;x"]) };
    let _ = write!(text, "{last}\r\n{trailers}\r\n");
    text
}

/// `cat`, which returns the body as the handler received it.
fn command(name: &str, dice: &mut Dice) -> Vec<u8> {
    let stdin = format!("{name} {}", hidden(name).repeat(dice.below(20)));
    let body = serde_json::json!({"command": "cat", "stdin": stdin}).to_string();
    let head = format!(
        "POST /api/workspaces/{NIL}/exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n{}",
        id(name)
    );
    if dice.one_in(2) {
        format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    } else {
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{}", chunks(&body, dice)).into_bytes()
    }
}

fn right(name: &str, dice: &mut Dice) -> Vec<u8> {
    let host = dice.pick(&["localhost", "127.0.0.1:8787", "[::1]", "a.localhost."]);
    let extra = dice.pick(&["", "", "Accept: */*\r\nCookie: a=b; c=d\r\n", "X-Empty:\r\n"]);
    let path = format!("/right/{name}");
    let head = |method: &str| format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}{}", id(name));
    match dice.roll(8) {
        0 | 1 => format!("{}\r\n", head("GET")),
        2 => format!("{}\r\n", head("HEAD")),
        3 => format!("{}\r\n", head(dice.pick(&["OPTIONS", "DELETE", "PATCH", "POST"]))),
        4 | 5 => {
            let body = body(name, dice);
            format!(
                "{}Content-Length: {}\r\n\r\n{body}",
                head(dice.pick(&["POST", "PUT", "GET"])),
                body.len()
            )
        }
        _ => {
            let chunks = chunks(&body(name, dice), dice);
            format!("{}Transfer-Encoding: chunked\r\n\r\n{chunks}", head(dice.pick(&["POST", "PATCH"])))
        }
    }
    .into_bytes()
}

/// Valid as well, but rare.
fn odd(name: &str, dice: &mut Dice) -> Vec<u8> {
    let get = |target: &str, lines: &str| {
        format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{}{lines}\r\n", id(name))
    };
    let path = format!("/odd/{name}");
    let hidden = hidden(name);
    match dice.roll(19) {
        0 => format!("\r\n{}", get(&path, "")),
        1 => get(&format!("http://localhost{path}"), ""),
        2 => get(&format!("HTTP://LOCALHOST.:80{path}?q#").replace('#', ""), ""),
        3 => format!("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n{}\r\n", id(name)),
        4 => format!("GET {path} HTTP/1.0\r\n{}\r\n", id(name)),
        5 => format!("POST {path} HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{{}}{hidden}"),
        6 => get(&path, "Connection: close\r\n"),
        7 => get(&path, "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n"),
        8 => get(&path, "X-Berth-Peer: 1.2.3.4\r\nx-berth-ping: 1\r\nX-Berth-Connection: 1\r\nX-Berth-Ticket: 1\r\n"),
        9 => get(&path, "X:  y \t\r\n!#$%&'*+-.^_`|~: \"\\\r\nX-Colon: a:b\r\n"),
        10 => get(&format!("{path}?a=%0d%0a&b=/../"), &"X: y\r\n".repeat(dice.below(110))),
        11 => format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        12 => format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {:0>30}\r\n\r\n{hidden}",
            hidden.len()
        ),
        13 => get(
            &path,
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        14 => get(&path, &format!("X-Long: {}\r\n", "y".repeat(15_000 + dice.below(2_000)))),
        15 if dice.one_in(4) => {
            let body = hidden.repeat(1200);
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        16 if dice.one_in(4) => {
            let chunks = chunks(&hidden.repeat(1200), dice);
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")
        }
        17 => {
            let lines = dice.pick(&[
                "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
                "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
                "Connection: upgrade, X-Hop\r\nUpgrade:\r\nX-Hop: 1\r\n",
                "upgrade: h2c\r\nUPGRADE: foo/1, bar\r\n",
            ]);
            let version = dice.pick(&["1.0", "1.1"]);
            let length = hidden.len();
            format!(
                "POST {path} HTTP/{version}\r\nHost: localhost\r\n{lines}Content-Length: {length}\r\n\r\n{hidden}"
            )
        }
        18 => get(
            &path,
            "Connection: Upgrade\r\nUpgrade: h2c, WebSocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
        _ => get(&path, "Origin: http://evil.test\r\n"),
    }
    .into_bytes()
}

/// Constructs on which readers are known to disagree.
fn broken(name: &str, dice: &mut Dice) -> Vec<u8> {
    let hidden = hidden(name);
    let path = format!("/broken/{name}");
    let post =
        |lines: &str, body: &str| format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{body}");
    let tricky = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length:\r\n",
        "Content-Length : 5\r\n",
        " Content-Length: 5\r\n",
        "X: y\r\n Content-Length: 5\r\n",
        "X: y\nContent-Length: 5\r\n",
        "X: y\rContent-Length: 5\r\n",
        "X: y\0\r\nContent-Length: 5\r\n",
        "Content-Length: 5\x0b\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length: 33554433\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "X: y\r\n\tTransfer-Encoding: chunked\r\n",
        "Transfer_Encoding: chunked\r\n",
        "Transfer-Encoding\u{a0}: chunked\r\n",
        "Connection: Content-Length\r\nContent-Length: 5\r\n",
        "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n",
        "Expect: 100-continue, x\r\nContent-Length: 5\r\n",
        "Expect: 200-ok\r\n",
        "Host: localhost\r\n",
        "Origin: http://evil.test\r\n",
        "Origin: null\r\n",
    ];
    let bad_chunks = [
        "2 2\r\nab\r\n0\r\n\r\n",
        "2 ;x\r\nab\r\n0\r\n\r\n",
        "2;x\ny\r\nab\r\n0\r\n\r\n",
        "2\nab\n0\n\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "2\r\na\r\n0\r\n\r\n",
        "0x2\r\nab\r\n0\r\n\r\n",
        "+2\r\nab\r\n0\r\n\r\n",
        "-2\r\nab\r\n0\r\n\r\n",
        "00000000000000000002\r\nab\r\n0\r\n\r\n",
        "10000000000000002\r\nab\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nab\r\n0\r\n\r\n",
        "2\r\nab\r\n0\r\nX\r\n\r\n",
        "2\r\nab\r\n0\r\nX: y\n\n",
        "2\r\nab\r\n0\r\nX: y\r\n z\r\n\r\n",
        "2\r\nab\r\n0\n\r\n",
        "\r\n2\r\nab\r\n0\r\n\r\n",
        "2\r\rab\r\n0\r\n\r\n",
        "0\r\n",
    ];
    match dice.roll(12) {
        0..=5 => {
            let lines = dice.pick(&tricky);
            let prefix = dice.pick(&["", "0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "hello"]);
            post(&format!("{}{lines}", id(name)), &format!("{prefix}{hidden}"))
        }
        6..=8 => post("Transfer-Encoding: chunked\r\n", &format!("{}{hidden}", dice.pick(&bad_chunks))),
        9 => {
            let line = dice.pick(&[
                "GET PATH HTTP/1.2",
                "GET PATH HTTP/2.0",
                "GET PATH",
                "GET  PATH HTTP/1.1",
                "GET PATH HTTP/1.1 ",
                "get PATH HTTP/1.1",
                "TRACE PATH HTTP/1.1",
                "GET PATH#f HTTP/1.1",
                "GET http://evil.test/PATH HTTP/1.1",
                "GET http://localhost HTTP/1.1",
                "GET http://localhost?PATH HTTP/1.1",
                "GET PATH\tHTTP/1.1",
                "GET PATH HTTP/1.1\r",
                "GET PATH\u{e4} HTTP/1.1",
                "CONNECT localhost:80 HTTP/1.1",
            ]);
            let line = line.replace("PATH", &path);
            format!("{line}\r\nHost: localhost\r\n\r\n{hidden}")
        }
        10 => {
            let host = dice.pick(&[
                "",
                "Host: evil.test\r\n",
                "Host: localhost:x\r\n",
                "Host: u@localhost\r\n",
                "Host: localhost\r\nHost: evil.test\r\n",
                "Host:\r\n",
                "Host: 10.0.0.1\r\n",
            ]);
            format!("GET {path} HTTP/1.1\r\n{host}\r\n{hidden}")
        }
        _ => {
            let end = dice.pick(&["\n\n", "\r\n\n", "\n\r\n", "\r\r\n\r\n", "\r\n\r"]);
            format!("GET {path} HTTP/1.1\r\nHost: localhost{end}{hidden}")
        }
    }
    .into_bytes()
}

fn change(bytes: &mut Vec<u8>, dice: &mut Dice) {
    if bytes.is_empty() {
        return;
    }
    let at = dice.below(bytes.len());
    let end = bytes.len().min(at + 1 + dice.below(40));
    let telling = b"\r\n\0 \t:;,=/#?\x7f\x80\xff0aZ-+";
    let byte = telling[dice.below(telling.len())];
    match dice.roll(6) {
        0 | 1 => bytes[at] = byte,
        2 => bytes.insert(at, byte),
        3 => drop(bytes.remove(at)),
        4 => drop(bytes.drain(at..end)),
        _ => {
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
    }
}

/// The offsets at which the bytes are cut for sending.
pub fn cuts(bytes: &[u8], dice: &mut Dice) -> Vec<usize> {
    let mut ends = match dice.roll(5) {
        0 => Vec::new(),
        1 if bytes.len() < 500 => (1..bytes.len()).collect(),
        // Offsets at which a reader changes its state.
        2 => (1..bytes.len()).filter(|at| bytes[at - 1] == b'\n' && dice.one_in(2)).collect(),
        3 => (1..bytes.len()).filter(|at| bytes[at - 1] == b'\r' && dice.one_in(2)).collect(),
        _ => (0..dice.below(12)).map(|_| dice.below(bytes.len().max(1))).collect(),
    };
    ends.push(bytes.len());
    ends.sort_unstable();
    ends.dedup();
    ends
}
