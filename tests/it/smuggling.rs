//! The server sees exactly the requests that a strict reader sees: random connections are sent in random pieces, and
//! the requests received are compared with those that h11, from PyPI, reads in the same bytes. Every rule for which
//! the gate is stricter on purpose is listed in `h11_reference.py`.
//!
//! Each test runs for `BERTH_PROOF_SECS`, else 12 s, and prints its seed and its count; `BERTH_PROOF_SEED` repeats it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use berth::gate::{Gate, GateSettings, Listen, ListenAddress, Listeners, PROBE_HEADER};
use berth::http::client::{Disconnects, Tickets};
use serde::Deserialize;
use serde_json::Value;

use crate::procs::{secs, wait_for};
use crate::scratch::Scratch;
use crate::server::Setup;
use crate::smuggling_cases::{Dice, connection, cuts};

/// h11 in its own Python process; one line for each connection.
struct Reference {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// The reading of a connection's bytes by h11.
#[derive(Debug, Deserialize)]
struct Verdict {
    requests: Vec<Wanted>,
    end: String,
    statuses: Vec<u16>,
    /// The offset of the end, if a head was read there.
    last: Option<Wanted>,
}

#[derive(Debug, Deserialize)]
struct Wanted {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    /// In hexadecimal.
    body: String,
    chunked: bool,
}

impl Reference {
    fn start() -> Reference {
        // `tests/run` installs it; the path of cargo's folder depends on the target.
        let mut folders = Path::new(env!("CARGO_TARGET_TMPDIR")).ancestors().map(|up| up.join("it-python"));
        let packages = folders.find(|folder| folder.join("h11").is_dir()).unwrap_or_else(|| {
            panic!("h11 is missing: tests/run installs it (pip install --target target/it-python h11)")
        });
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/h11_reference.py");
        let mut python = Command::new("python3");
        python.arg("-B").arg(script).env("PYTHONPATH", packages);
        let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Reference { child, to, from: BufReader::new(from) }
    }

    fn read(&mut self, bytes: &[u8]) -> Verdict {
        let mut line: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        line.push('\n');
        self.to.write_all(line.as_bytes()).unwrap();
        line.clear();
        self.from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Wanted {
    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn body(&self) -> Vec<u8> {
        let digits = self.body.as_bytes().chunks(2);
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// The body is too large to be buffered: a handler sees it before its end.
    fn streams(&self) -> bool {
        let announced = self.header("content-length").and_then(|digits| digits.parse::<u64>().ok());
        announced.is_some_and(|length| length > 64 << 10) || self.body.len() / 2 > 64 << 10
    }

    /// The request id sent by the client, if it is harmless.
    fn id(&self) -> Option<&str> {
        let harmless = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let id = self.header("x-request-id")?;
        ((1..=64).contains(&id.len()) && id.chars().all(harmless)).then_some(id)
    }

    /// The headers that are forwarded to handlers.
    fn end_to_end(&self) -> Vec<(String, String)> {
        let connection = self.headers.iter().filter(|(name, _)| name == "connection");
        let options: Vec<String> = connection
            .flat_map(|(_, value)| value.split(','))
            .map(|option| option.trim_matches([' ', '\t']).to_ascii_lowercase())
            .collect();
        let hop = [
            "connection",
            "content-length",
            "transfer-encoding",
            "keep-alive",
            "te",
            "trailer",
            "expect",
            "http2-settings",
            "x-request-id",
        ];
        let passes = |name: &str| {
            !(hop.contains(&name)
                || name.starts_with("proxy-")
                || name.starts_with("x-berth-")
                || options.iter().any(|option| option == name))
        };
        // Of an Upgrade header only WebSocket is forwarded, once, with its handshake; other protocols are not
        // supported.
        let websocket = |value: &str| {
            let mut offered = value.split(',').map(|protocol| protocol.trim_matches([' ', '\t']));
            offered.find(|protocol| protocol.eq_ignore_ascii_case("websocket")).map(str::to_owned)
        };
        let mut upgraded = false;
        let goes_in = |(name, value): &(String, String)| match name.as_str() {
            "upgrade" if upgraded => None,
            "upgrade" => {
                let chosen = websocket(value)?;
                upgraded = true;
                Some((name.clone(), chosen))
            }
            name => passes(name).then(|| (name.to_owned(), value.clone())),
        };
        self.headers.iter().filter_map(goes_in).collect()
    }
}

/// A response as received.
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn closes(&self) -> bool {
        self.head.contains("\r\nConnection: close\r\n")
    }

    fn id(&self) -> &str {
        self.head.lines().find_map(|line| line.strip_prefix("X-Request-Id: ")).unwrap_or_default()
    }

    fn read(stream: &mut impl BufRead, without_body: bool) -> Option<Reply> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read_until(b'\n', &mut head).ok()? == 0 {
                    return None;
                }
            }
            let head = String::from_utf8(head).unwrap();
            let status = head.get(9..12)?.parse().ok()?;
            if status == 100 {
                continue;
            }
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length = length.filter(|_| !without_body).map_or(0, |digits| digits.parse().unwrap());
            let mut body = vec![0; length];
            stream.read_exact(&mut body).ok()?;
            return Some(Reply { status, head, body });
        }
    }
}

/// Sends the bytes in these pieces, and returns the responses. The connection is half-closed only after the expected
/// number of responses, because a disconnect of the client ends its commands.
fn talk(
    address: SocketAddr,
    bytes: &[u8],
    ends: &[usize],
    expected: &Verdict,
    dice: &mut Dice,
) -> Result<Vec<Reply>, String> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(secs(15))).unwrap();
    let mut start = 0;
    for end in ends {
        // A refusal may arrive before all bytes were sent.
        if (&stream).write_all(&bytes[start..*end]).is_err() {
            break;
        }
        start = *end;
        match dice.roll(3) {
            0 => thread::sleep(Duration::from_micros(dice.roll(300))),
            1 => thread::yield_now(),
            _ => {}
        }
    }
    let mut reader = BufReader::new(&stream);
    let mut replies = Vec::new();
    for request in &expected.requests {
        let Some(reply) = Reply::read(&mut reader, request.method == "HEAD") else { return Ok(replies) };
        let closes = reply.closes();
        replies.push(reply);
        if closes {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    // The refusal of a readable HEAD request has no body; the refusal of an unreadable request has one.
    let last_is_head = expected.last.as_ref().is_some_and(|last| last.method == "HEAD");
    if let Some(reply) = Reply::read(&mut reader, last_is_head) {
        replies.push(reply);
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        if !rest.is_empty() {
            let heads: Vec<_> = replies.iter().map(|reply| &reply.head).collect();
            return Err(format!("after {heads:#?} came more: {:?}", String::from_utf8_lossy(&rest)));
        }
    }
    Ok(replies)
}

/// The answered part of the verdict: the number of complete requests, and whether one more was begun.
struct Served {
    whole: usize,
    started: bool,
}

/// Compares the responses with the verdict. `early`: handlers answer without reading, so requests after a streamed
/// body may not be reached.
fn judge(expected: &Verdict, replies: &[Reply], early: bool) -> Result<Served, String> {
    let count = expected.requests.len();
    for (request, reply) in expected.requests.iter().zip(replies) {
        if request.id().is_some_and(|id| id != reply.id()) {
            return Err(format!("the answer to {} has the id {}", request.target, reply.id()));
        }
    }
    if replies.len() < count {
        let last = replies.len().checked_sub(1).map(|at| (&expected.requests[at], &replies[at]));
        return match last {
            Some((request, reply)) if early && request.streams() && request.chunked && reply.closes() => {
                Ok(Served { whole: replies.len(), started: false })
            }
            _ => Err(format!("{} answers to {count} requests", replies.len())),
        };
    }
    let refusal = replies.get(count);
    let started = expected.last.as_ref().is_some_and(|last| last.streams() && expected.end != "refused");
    match (expected.end.as_str(), refusal) {
        ("open", None) | ("incomplete" | "error", None) => {}
        ("closed", None) if replies.last().is_some_and(Reply::closes) => {}
        (_, Some(reply)) if !reply.closes() => return Err("the connection stays open after its end".into()),
        ("refused", Some(reply)) if expected.statuses.contains(&reply.status) => {}
        ("incomplete" | "error", Some(_)) if started => return Ok(Served { whole: count, started }),
        ("incomplete" | "error", Some(reply))
            if [400, 403, 413, 417, 431, 501, 505].contains(&reply.status) => {}
        (end, reply) => {
            return Err(format!(
                "{end} {:?} was answered with {:?}",
                expected.statuses,
                reply.map(|r| &r.head)
            ));
        }
    }
    Ok(Served { whole: count, started })
}

/// Generates connections until the time is up, `at_once` of them concurrently, and lets `check` send each.
fn for_a_while(
    name: &str,
    at_once: u64,
    check: impl Fn(&[u8], &[usize], &Verdict, &mut Dice) -> Result<(), String> + Sync,
) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("BERTH_PROOF_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    });
    eprintln!("{name}: BERTH_PROOF_SEED={seed}");
    let end = Instant::now() + secs(number("BERTH_PROOF_SECS").unwrap_or(12));
    let counts = Mutex::new((0, 0, BTreeMap::new()));
    let next = AtomicU64::new(0);
    let work = || {
        let mut reference = Reference::start();
        while Instant::now() < end {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let mut dice = Dice(seed.wrapping_add(number));
            let bytes = connection(number, &mut dice);
            let cuts = cuts(&bytes, &mut dice);
            let expected = reference.read(&bytes);
            if let Err(error) = check(&bytes, &cuts, &expected, &mut dice) {
                panic!(
                    "{name}: connection {number} of BERTH_PROOF_SEED={seed}: {error}\n{:?}\nin pieces up to {cuts:?}\nh11: {expected:#?}",
                    String::from_utf8_lossy(&bytes)
                );
            }
            let mut counts = counts.lock().unwrap();
            counts.0 += 1;
            counts.1 += expected.requests.len();
            *counts.2.entry(expected.end).or_insert(0) += 1;
        }
    };
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
    let (connections, requests, ends) = counts.into_inner().unwrap();
    eprintln!("{name}: {connections} connections with {requests} good requests, which ended {ends:?}");
    assert!(connections > 100, "only {connections} connections in the given time");
}

#[test]
fn the_server_answers_exactly_what_h11_reads() {
    let server = Setup::new().arg("--log-format=json").arg("--log-requests").start();
    let (expected, perhaps) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    // Several at once, so that a response to the wrong client would be noticed.
    for_a_while("the server", 4, |bytes, ends, expected_value, dice| {
        let replies = talk(server.address, bytes, ends, expected_value, dice)?;
        let served = judge(expected_value, &replies, true)?;
        for (request, reply) in expected_value.requests[..served.whole].iter().zip(&replies) {
            let line = format!("{} {} {}", request.method, request.path(), reply.status);
            expected.lock().unwrap().push(line);
            if request.path().ends_with("/exec") {
                let (asked, response): (Value, Value) = (
                    serde_json::from_slice(&request.body()).unwrap(),
                    serde_json::from_slice(&reply.body).unwrap(),
                );
                if asked["stdin"] != response["stdout"] {
                    return Err(format!("the handler received a different body: {response}"));
                }
            }
        }
        if let (true, Some(last)) = (served.started, &expected_value.last) {
            perhaps.lock().unwrap().push(format!("{} {}", last.method, last.path()));
        }
        Ok(())
    });
    server.anyone().call("GET", "/the-end", None).expect(404);
    server.stdout.line_with("/the-end", secs(10)).expect("the last line");
    let (mut expected, perhaps) = (expected.into_inner().unwrap(), perhaps.into_inner().unwrap());
    let mut seen = Vec::new();
    for line in server.stdout.text().lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        let response = &entry["attributes"];
        if let (Some(method), Some(path)) = (response["method"].as_str(), response["path"].as_str()) {
            if path != "/the-end" {
                seen.push(format!("{method} {path} {}", response["status"]));
            }
        }
    }
    expected.sort_unstable();
    seen.sort_unstable();
    let started = |line: &&String| perhaps.iter().any(|start| line.starts_with(start.as_str()));
    let extra: Vec<_> = surplus(&seen, &expected).into_iter().filter(|line| !started(line)).collect();
    let missing = surplus(&expected, &seen);
    assert!(
        extra.is_empty() && missing.is_empty(),
        "seen, but not by h11: {extra:#?}\nnot seen: {missing:#?}"
    );
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// The elements of `all` that `others` does not have; both are sorted.
fn surplus<'a>(all: &'a [String], others: &[String]) -> Vec<&'a String> {
    let (mut found, mut at) = (Vec::new(), 0);
    for one in all {
        while others.get(at).is_some_and(|other| other < one) {
            at += 1;
        }
        if others.get(at) == Some(one) {
            at += 1;
        } else {
            found.push(one);
        }
    }
    found
}

/// A request as tiny_http passed it to a handler.
#[derive(Debug)]
struct Seen {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The body was read to its end.
    whole: bool,
}

fn observe(mut request: tiny_http::Request) -> (Seen, tiny_http::Request) {
    let mut headers = Vec::new();
    for header in request.headers() {
        let name = header.field.as_str().as_str().to_ascii_lowercase();
        let framing = ["connection", "content-length", "transfer-encoding"].contains(&&*name);
        if !framing && !name.starts_with("x-berth-") {
            headers.push((name, header.value.as_str().to_owned()));
        }
    }
    let mut body = Vec::new();
    let whole = request.as_reader().read_to_end(&mut body).is_ok();
    let (method, target) = (request.method().to_string(), request.url().to_owned());
    (Seen { method, target, headers, body, whole }, request)
}

#[test]
fn handlers_get_what_h11_reads() {
    let scratch = Scratch::new();
    let doors = Listeners::bind(vec![Listen::parse("127.0.0.1:0").unwrap()]).unwrap();
    let ListenAddress::Ip(address) = doors.addresses()[0].clone() else { panic!() };
    let settings = GateSettings {
        max_connections: 64,
        max_files: 4096,
        allowed_hosts: Vec::new(),
        cors_origins: Vec::new(),
        body_cap: Arc::new(|_, _| 32 << 20),
        direct: Arc::new(|_, _| None),
        claim: Arc::new(|_, _| Ok(())),
        private_folder: scratch.path().join("private"),
        disconnects: Disconnects::default(),
        tickets: Tickets::default(),
    };
    let seen = Arc::new(Mutex::new(Vec::new()));
    let open = {
        let seen = seen.clone();
        move |path: &Path| {
            let (server, seen) = (tiny_http::Server::http_unix(path).unwrap(), seen.clone());
            thread::spawn(move || {
                for request in server.incoming_requests() {
                    if request.headers().iter().any(|header| header.field.equiv(PROBE_HEADER)) {
                        let _ = request.respond(tiny_http::Response::empty(204));
                        continue;
                    }
                    // Bodies arrive while the loop must continue.
                    let seen = seen.clone();
                    thread::spawn(move || {
                        let (reply, request) = observe(request);
                        seen.lock().unwrap().push(reply);
                        let whole = tiny_http::Header::from_bytes("X-Berth-Whole", "1").unwrap();
                        let _ = request.respond(tiny_http::Response::from_string("seen").with_header(whole));
                    });
                }
            });
            Ok(())
        }
    };
    let gate = Gate::start(doors, settings, Box::new(open)).unwrap();
    for_a_while("the gate", 1, |bytes, ends, expected, dice| {
        let replies = talk(address, bytes, ends, expected, dice)?;
        let served = judge(expected, &replies, false)?;
        // A truncated request ends without a response; its handler notices when its connection is closed.
        wait_for("the connection to end", secs(5), || gate.connections().is_empty().then_some(()));
        if served.started {
            wait_for("a handler to notice", secs(5), || {
                (seen.lock().unwrap().len() > served.whole).then_some(())
            });
        }
        let mut seen = std::mem::take(&mut *seen.lock().unwrap());
        if let (true, Some(last)) = (served.started, &expected.last) {
            let started = seen.pop().ok_or("a body was not begun")?;
            let same = started.method == last.method && started.target == last.target;
            if started.whole || !same || !last.body().starts_with(&started.body) {
                return Err(format!("not the truncated request: {} {}", started.method, started.target));
            }
        }
        if seen.len() != expected.requests.len() {
            return Err(format!("{} requests were seen: {seen:#?}", seen.len()));
        }
        for (seen, expected) in seen.iter().zip(&expected.requests) {
            let reply = (&seen.method, &seen.target, &seen.headers, seen.whole);
            if reply != (&expected.method, &expected.target, &expected.end_to_end(), true)
                || seen.body != expected.body()
            {
                return Err(format!("{} was seen differently: {seen:#?}", expected.target));
            }
        }
        Ok(())
    });
}
