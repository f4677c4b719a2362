//! What must hold for every head and every chunked body, looked for in random ones: half of them right, the others with
//! something wrong in the places where readers are known to disagree. Each rule is stated a second time here, in the
//! simplest way that works on whole bytes, and compared with what the gate makes of the same bytes in pieces.
//!
//! A run ends by time, not by count: after `BERTH_PROOF_SECS`, else 30 s in CI and 2 s elsewhere. The seed is printed
//! with the count (`--nocapture`) and in every failure; `BERTH_PROOF_SEED` repeats it. A failure is shrunk first.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::body::{Body, Chunks};
use super::head::{Context, Head, Scan, admit};
use super::who::Rules;
use crate::base::{Code, Result, limits};

type Checked = std::result::Result<(), TestCaseError>;

/// Cases with one seed.
const BATCH: u32 = 500;

/// Runs `check` on inputs of `strategy` until the time is up.
fn look_for<S: Strategy>(name: &str, strategy: &S, check: impl Fn(S::Value) -> Checked) {
    #[allow(clippy::disallowed_methods, reason = "a test has no configuration")]
    let told = |name| std::env::var(name).ok();
    let secs = told("BERTH_PROOF_SECS").map(|text| text.parse().unwrap());
    let secs: u64 = secs.unwrap_or(if told("CI").is_some() { 30 } else { 2 });
    let seed: Option<u64> = told("BERTH_PROOF_SEED").map(|text| text.parse().unwrap());
    let first: u64 = seed.unwrap_or_else(|| getrandom::u64().unwrap());
    let (end, mut batches) = (Instant::now() + Duration::from_secs(secs), 0);
    while Instant::now() < end {
        // A runner is done for good once it has had its cases; each of the next ones has a seed of its own.
        let seed = first.wrapping_add(batches);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config = Config { cases: BATCH, failure_persistence: None, ..Config::default() };
        if let Err(error) = TestRunner::new_with_rng(config, rng).run(strategy, &check) {
            panic!("{name}, in batch {batches}; repeat it with BERTH_PROOF_SEED={seed}: {error}");
        }
        batches += 1;
    }
    let count = batches * u64::from(BATCH);
    eprintln!("{name}: {count} cases in {secs} s, from BERTH_PROOF_SEED={first}");
}

/// Mostly `right`, now and then one of `odd`.
fn mostly(right: &'static [&'static str], odd: &'static [&'static str]) -> BoxedStrategy<String> {
    let pick = |list: &'static [&'static str]| select(list).prop_map(str::to_owned);
    prop_oneof![60 => pick(right), 1 => pick(odd)].boxed()
}

/// A change of one byte, an insertion, a deletion, a doubling or a cut.
fn mutated(bytes: BoxedStrategy<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![select(&b"\r\n\0 \t:;,=/#?\x7f\x80\xff0aZ-+"[..]), any::<u8>()];
    let change = (0..6_u8, any::<Index>(), byte, 1..40_usize);
    let changes = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(change, 1..4)];
    (bytes, changes).prop_map(|(mut bytes, changes)| {
        for (kind, at, byte, length) in changes {
            let at = at.index(bytes.len() + 1);
            let end = bytes.len().min(at + length);
            match kind {
                0 if at < bytes.len() => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let again = bytes[at..end].to_vec();
                    bytes.splice(at..at, again);
                }
                4 => bytes.truncate(at),
                _ => drop(bytes.drain(at..bytes.len().min(at + 1))),
            }
        }
        bytes
    })
}

/// The ends of pieces that `bytes` may arrive in, each beyond the last.
fn ends(bytes: &[u8], cuts: &[Index]) -> Vec<usize> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    ends.dedup();
    ends
}

fn cuts() -> impl Strategy<Value = Vec<Index>> {
    prop_oneof![3 => prop::collection::vec(any::<Index>(), 0..8), 1 => prop::collection::vec(any::<Index>(), 200)]
}

fn heads() -> impl Strategy<Value = Vec<u8>> {
    let method = mostly(
        &["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"],
        &["get", "BREW", "", "G@T", " GET", "GET ", "\r\nGET", "\r\n\r\nGET", "CONNECT"],
    );
    let target = mostly(
        &["/", "/health", "/big?x=1&y=%20", "//x", "/a/../b", "http://localhost/x", "HTTP://LOCALHOST.:80/"],
        &[
            "",
            "*",
            "x",
            "/a b",
            "/#f",
            "/\u{e4}",
            "http://evil.test/",
            "http://localhost",
            "ftp://localhost/",
            "/\t",
            "http://localhost?q",
            "http://u@localhost/",
            "http://localhost:99999/",
            "https://localhost/",
        ],
    );
    let version = mostly(
        &["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"],
        &["HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.1 ", "HTTP/11", "", "HTTP/1.10"],
    );
    let line_end = || mostly(&["\r\n"], &["\n", "\r", "\r\r\n", "\r\n ", "\r\n\t", "\n\r", "\r\n\r\n", ""]);
    let name = mostly(
        &[
            "Content-Length",
            "Transfer-Encoding",
            "Connection",
            "Expect",
            "Upgrade",
            "Origin",
            "X-Request-Id",
            "X-Hop",
            "X-Berth-Peer",
            "x-berth-ping",
            "TE",
            "Trailer",
            "Keep-Alive",
            "Proxy-Authorization",
            "Accept",
            "Cookie",
            "Sec-WebSocket-Key",
            "Sec-WebSocket-Version",
            "Authorization",
            "content-length",
            "HTTP2-Settings",
            "!#$%&'*+",
        ],
        &["Host", "host", "", "X Y", "X\u{e4}", "(x)", "Content-Length ", " X", "X\0"],
    );
    let colon = mostly(&[":", ": ", ":\t", ":  "], &["", " :", " : ", "::", "\t:"]);
    let value = prop_oneof![
        8 => mostly(
            &[
                "0", "5", "10", "007", "chunked", "Chunked", "close", "keep-alive", "upgrade", "Upgrade, X-Hop", "x-hop",
                "websocket", "100-continue", "http://localhost", "http://app.test", "http://evil.test", "13", "1",
                "dGhlIHNhbXBsZSBub25jZQ==", "a.B-_9", "text/html, */*;q=0.8", "", "x", "a b\tc ",
            ],
            &[
                "11", "18446744073709551616", "-1", "+5", "5, 5", "0x5", "5 ", "5\t", "gzip, chunked", "chunked, chunked",
                "identity", "content-length", "host", "a b", "200-ok", "\0", "\u{e4}", "\x1b[31m", "null", "localhost",
            ],
        ),
        1 => "[ -~\t]{0,60}".boxed(),
    ];
    let host = mostly(
        &["Host: localhost\r\n", "host: LOCALHOST.:80\r\n", "Host:127.0.0.1\r\n", "Host: [::1]:8787 \r\n"],
        &[
            "",
            "Host: evil.test\r\n",
            "Host: u@localhost\r\n",
            "Host: localhost\r\nHost: localhost\r\n",
            "Host:\r\n",
        ],
    );
    let known = mostly(
        &[
            "Content-Length: 5\r\n",
            "content-length:\t007 \r\n",
            "Transfer-Encoding: chunked\r\n",
            "transfer-encoding:Chunked\r\n",
            "Connection: close\r\n",
            "Connection: keep-alive, X-Hop\r\n",
            "Expect: 100-continue\r\n",
            "X-Request-Id: a.B-_9\r\n",
            "X-Hop: 1\r\n",
            "X-Berth-Peer: 127.0.0.1\r\n",
            "Origin: http://localhost\r\n",
        ],
        &["Connection: host\r\n", "Content-Length: 5, 5\r\n", "Transfer-Encoding: chunked, chunked\r\n"],
    );
    let field = (name, colon, value, line_end()).prop_map(|(n, c, v, e)| format!("{n}{c}{v}{e}")).boxed();
    let fields = prop_oneof![
        40 => prop::collection::vec(known, 0..4),
        20 => prop::collection::vec(field.clone(), 0..4),
        5 => prop::collection::vec(field, 4..12),
        1 => (90..105_usize).prop_map(|n| vec!["X: y\r\n".to_owned(); n]),
        1 => (limits::HEAD_BYTES - 80..limits::HEAD_BYTES).prop_map(|n| vec![format!("X: {}\r\n", "y".repeat(n))]),
        1 => Just(vec![
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n".to_owned(),
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n".to_owned(),
        ]),
    ];
    let space = || mostly(&[" "], &["  ", "\t", ""]);
    let line = (method, space(), target, space(), version, line_end());
    let tail = mostly(&["", "GET /behind HTTP/1.1\r\n\r\n"], &["\r\n", "\0"]);
    let head = (line, host, fields, line_end(), tail).prop_map(|(line, host, fields, end, tail)| {
        let (method, a, target, b, version, line_end) = line;
        format!("{method}{a}{target}{b}{version}{line_end}{host}{}{end}{tail}", fields.concat()).into_bytes()
    });
    mutated(head.boxed())
}

fn admitted(bytes: &[u8], out: &mut Vec<u8>) -> Result<Head> {
    let rules = Rules::new(&[], &["http://app.test".into()]).unwrap();
    let context = Context {
        rules: &rules,
        body_cap: &|_, _| 10,
        peer: "192.0.2.9",
        local: Some([127, 0, 0, 1].into()),
        connection: 7,
    };
    admit(bytes, &context, &mut "made-1".to_owned(), out)
}

/// A head in the plainest reading of RFC 9112, for heads that are beyond doubt.
struct Plain<'a> {
    method: &'a str,
    target: &'a str,
    version: &'a str,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Plain<'a> {
    /// `None` where anything could be read in two ways.
    fn read(bytes: &'a [u8]) -> Option<Plain<'a>> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii())?;
        let text = text.strip_prefix("\r\n").unwrap_or(text).strip_suffix("\r\n\r\n")?;
        let mut lines = text.split("\r\n");
        let (method, rest) = lines.next()?.split_once(' ')?;
        let (target, version) = rest.split_once(' ')?;
        let mut fields = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':')?;
            fields.push((name, value.trim_matches([' ', '\t'])));
        }
        let word = |word: &str| {
            !word.is_empty()
                && word.chars().all(|c| c.is_ascii_graphic() && !"\"(),/:;<=>?@[\\]{}".contains(c))
        };
        let whole = word(method)
            && target.chars().all(|c| c.is_ascii_graphic() && c != '#')
            && ["HTTP/1.0", "HTTP/1.1"].contains(&version)
            && fields.iter().all(|(name, _)| word(name))
            && fields.iter().all(|(_, value)| value.chars().all(|c| c == '\t' || (' '..='~').contains(&c)));
        whole.then_some(Plain { method, target, version, fields })
    }

    fn all(&self, name: &str) -> Vec<&'a str> {
        let fields = self.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        fields.map(|(_, value)| *value).collect()
    }

    fn options(&self) -> Vec<String> {
        let all = self.all("Connection").join(",");
        all.split(',').map(|option| option.trim_matches([' ', '\t']).to_ascii_lowercase()).collect()
    }

    fn path(&self) -> &'a str {
        let Some((_, rest)) = self.target.split_once("://").filter(|_| !self.target.starts_with('/')) else {
            return self.target;
        };
        rest.find('/').map_or("/", |at| &rest[at..])
    }

    /// What goes in, but for the lines that the gate adds.
    fn inner(&self, upgrade: bool) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.path());
        let options = self.options();
        for (name, value) in &self.fields {
            let lower = name.to_ascii_lowercase();
            let hop = [
                "connection",
                "content-length",
                "transfer-encoding",
                "te",
                "trailer",
                "keep-alive",
                "expect",
                "http2-settings",
                "x-request-id",
            ];
            let dropped = hop.contains(&&*lower)
                || lower.starts_with("proxy-")
                || lower.starts_with("x-berth-")
                || (lower == "upgrade" && !upgrade)
                || (options.contains(&lower) && lower != "upgrade");
            if !dropped {
                text += &format!("{name}: {value}\r\n");
            }
        }
        text
    }
}

/// A host and its port, as far as the strategies make them.
fn place(authority: &str) -> (String, u16) {
    let bracket = authority.rfind(']').unwrap_or(0);
    let colon = authority[bracket..].find(':').map_or(authority.len(), |at| bracket + at);
    let (host, port) = authority.split_at(colon);
    let port = port.get(1..).and_then(|digits| digits.parse().ok()).unwrap_or(80);
    (host.to_ascii_lowercase().trim_end_matches('.').to_owned(), port)
}

fn names_loopback(host: &str) -> bool {
    let (host, _) = place(host);
    host == "localhost" || host.ends_with(".localhost") || host.starts_with("127.") || is_v6_loopback(&host)
}

fn is_v6_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    address
        .and_then(|text| text.parse::<Ipv6Addr>().ok())
        .is_some_and(|address| address.to_canonical().is_loopback())
}

fn check_head(bytes: &[u8], cuts: &[Index]) -> Checked {
    let whole = Scan::default().find(bytes);
    let mut scan = Scan::default();
    let mut pieced = Ok(None);
    for end in ends(bytes, cuts) {
        pieced = scan.find(&bytes[..end]);
        if !matches!(pieced, Ok(None)) {
            break;
        }
    }
    prop_assert_eq!(format!("{whole:?}"), format!("{pieced:?}"));
    let Ok(Some(length)) = whole else { return Ok(()) };
    prop_assert!(length <= limits::HEAD_BYTES && bytes[..length].ends_with(b"\r\n\r\n"));
    let bytes = &bytes[..length];
    let mut out = b"kept".to_vec();
    let head = match admitted(bytes, &mut out) {
        Ok(head) => head,
        Err(error) => {
            prop_assert_eq!(&out, b"kept", "a refused head left something");
            prop_assert!([400, 403, 413, 417, 431, 501, 505].contains(&error.code().status()), "{error}");
            return Ok(());
        }
    };
    let Some(plain) = Plain::read(bytes) else {
        return Err(TestCaseError::fail("let in, though it can be read in two ways"));
    };
    // RFC 9112, 3.2 and 6.3: what every reader must agree on.
    let (lengths, codings, hosts) =
        (plain.all("Content-Length"), plain.all("Transfer-Encoding"), plain.all("Host"));
    prop_assert!(lengths.len() + codings.len() <= 1 && plain.fields.len() <= limits::HEAD_LINES);
    prop_assert!(hosts.len() == 1 || (hosts.is_empty() && plain.version == "HTTP/1.0"));
    prop_assert!(hosts.iter().all(|host| names_loopback(host)), "{hosts:?}");
    if let Some((_, rest)) = plain.target.split_once("://").filter(|_| !plain.target.starts_with('/')) {
        let called = rest.split('/').next().unwrap_or_default();
        prop_assert_eq!(Some(place(called)), hosts.first().map(|host| place(host)));
    }
    prop_assert_eq!(head.is_11, plain.version == "HTTP/1.1");
    prop_assert_eq!(head.is_head, plain.method == "HEAD");
    prop_assert_eq!(head.keep_alive, head.is_11 && !plain.options().contains(&"close".to_owned()));
    prop_assert_eq!(head.has_body, lengths.len() + codings.len() == 1);
    match (&head.body, lengths.first(), codings.first()) {
        (Body::Length(0), None, None) => {}
        (Body::Length(length), Some(digits), None) => {
            prop_assert!(digits.chars().all(|c| c.is_ascii_digit()));
            prop_assert!(
                *length <= 10 && digits.trim_start_matches('0') == length.to_string().trim_start_matches('0')
            );
        }
        (Body::Chunked(_), None, Some(coding)) => {
            prop_assert!(head.is_11 && coding.eq_ignore_ascii_case("chunked"));
        }
        other => return Err(TestCaseError::fail(format!("another body: {other:?}"))),
    }
    if head.upgrade {
        prop_assert!(plain.method == "GET" && head.is_11 && !head.has_body);
        prop_assert!(plain.options().contains(&"upgrade".to_owned()));
        prop_assert_eq!((plain.all("Upgrade").len(), plain.all("Sec-WebSocket-Key").len()), (1, 1));
    }
    let out = String::from_utf8(out.split_off(4)).unwrap();
    let Some((inner, told)) =
        out.split_once("X-Berth-Peer: 192.0.2.9\r\nX-Berth-Connection: 7\r\nX-Berth-Request: ")
    else {
        return Err(TestCaseError::fail(format!("the gate's own lines are missing: {out:?}")));
    };
    prop_assert_eq!(inner, plain.inner(head.upgrade));
    let ids = plain.all("X-Request-Id");
    let id = told.strip_suffix("\r\n").unwrap();
    prop_assert!(id == "made-1" || ids.contains(&id), "{id:?}");
    prop_assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)));
    // It goes through a second time unchanged: nothing in it means anything else to the next reader.
    let again = format!("{inner}\r\n");
    let mut second = Vec::new();
    if !head.upgrade && !hosts.is_empty() {
        let told = admitted(again.as_bytes(), &mut second);
        prop_assert!(told.is_ok_and(|head| head.body.is_done() && !head.has_body && head.keep_alive));
        prop_assert!(second.starts_with(inner.as_bytes()));
    }
    Ok(())
}

#[test]
fn heads_mean_the_same_to_every_reader() {
    look_for("heads", &(heads(), cuts()), |(bytes, cuts)| check_head(&bytes, &cuts));
}

#[test]
fn any_bytes_are_read_without_a_panic() {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        prop::collection::vec(select(&b"\r\n\r\nGET / HTTP/1.1:0;"[..]), 0..300),
    ];
    look_for("any bytes", &(bytes, cuts()), |(bytes, cuts)| {
        check_head(&bytes, &cuts)?;
        check_chunks(&bytes, &cuts, 1000)
    });
}

fn chunked_bodies() -> impl Strategy<Value = Vec<u8>> {
    let size_end = mostly(
        &["\r\n"],
        &["\n", "\r", "\r\r\n", " \r\n", "\t \r\n", " ;x\r\n", " 2\r\n", ",\r\n", "\0\r\n", "x\r\n"],
    );
    let extension = mostly(
        &["", "", ";a=b", ";a=\"b;c\"", ";"],
        &[";\u{e4}", ";\0", ";\n", "; \t x", ";aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
    );
    let zeros = mostly(&["", "", "0", "000"], &["00000000000000", "000000000000000000", "+", "-", "0x", " "]);
    let data_end = mostly(&["\r\n"], &["", "\n", "\r", "x\r\n", "\r\n\r\n"]);
    let data = prop::collection::vec(any::<u8>(), 1..40);
    // Now and then its size is a lie.
    let lie = prop_oneof![30 => Just(0_i64), 1 => -3..4_i64, 1 => 0..i64::MAX / 2];
    let chunk = (zeros.clone(), lie, any::<bool>(), extension.clone(), size_end.clone(), data, data_end)
        .prop_map(|(zeros, lie, upper, extension, size_end, data, data_end)| {
            let size = (data.len() as i64 + lie).max(1);
            let size = if upper { format!("{size:X}") } else { format!("{size:x}") };
            [format!("{zeros}{size}{extension}{size_end}").as_bytes(), &data, data_end.as_bytes()].concat()
        });
    let trailer = mostly(
        &["A: b\r\n", "X-Y:\r\n", "Content-Length: 5\r\n", "Z: a:b \r\n"],
        &[
            "x\r\n",
            ": y\r\n",
            " z\r\n",
            "A : b\r\n",
            "A: \0\r\n",
            "A: \u{e4}\r\n",
            "A: b\n",
            "\tA: b\r\n",
            "A\r: b\r\n",
        ],
    );
    let trailers = prop_oneof![
        30 => prop::collection::vec(trailer, 0..3),
        1 => (1300..1500_usize).prop_map(|n| vec!["AB: c\r\n".to_owned(); n]),
    ];
    let last = (zeros, extension, size_end, trailers, mostly(&["\r\n"], &["\n", "\r", "\rX", ""]));
    let tail = prop::collection::vec(any::<u8>(), 0..20);
    let body = (prop::collection::vec(chunk, 0..6), last, tail).prop_map(|(chunks, last, tail)| {
        let (zeros, extension, size_end, trailers, end) = last;
        let last = format!("{zeros}0{extension}{size_end}{}{end}", trailers.concat());
        [chunks.concat(), last.into_bytes(), tail].concat()
    });
    mutated(body.boxed())
}

/// What a chunked body turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Complete after so many bytes.
    Done(usize),
    /// More is needed.
    Open,
    Bad(Code),
}

/// RFC 9112, 7.1, on whole bytes, with the gate's own limits.
fn decode(bytes: &[u8], cap: u64) -> (Vec<u8>, End) {
    let (mut data, mut rest) = (Vec::new(), bytes);
    let bad = End::Bad(Code::InvalidRequest);
    loop {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        if digits > 16 || (digits == 0 && !rest.is_empty()) {
            return (data, bad);
        }
        let after = &rest[digits..];
        let ignored = after.iter().take_while(|byte| matches!(byte, b'\t' | b' '..=b'~')).count();
        let extension = &after[..ignored];
        let padding = extension.iter().all(|byte| b" \t".contains(byte)).then_some(ignored);
        let named = extension.starts_with(b";").then(|| ignored - 1);
        match padding.or(named) {
            Some(length) if length <= limits::CHUNK_EXTENSION_BYTES => {}
            _ => return (data, bad),
        }
        match &after[ignored..] {
            [] | [b'\r'] => return (data, End::Open),
            [b'\r', b'\n', ..] => rest = &after[ignored + 2..],
            _ => return (data, bad),
        }
        let digits = std::str::from_utf8(&bytes[bytes.len() - rest.len() - ignored - 2 - digits..][..digits]);
        let size = u64::from_str_radix(digits.unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        if size > cap - data.len() as u64 {
            return (data, End::Bad(Code::BodyTooLarge));
        }
        let (chunk, after) = rest.split_at((size as usize).min(rest.len()));
        data.extend_from_slice(chunk);
        match after {
            [] | [b'\r'] => return (data, End::Open),
            [b'\r', b'\n', ..] => rest = &after[2..],
            _ => return (data, bad),
        }
    }
    let trailers = rest;
    loop {
        let line = rest.iter().take_while(|byte| matches!(byte, b'\t' | b' '..=b'~')).count();
        let name = rest[..line].iter().position(|byte| *byte == b':').unwrap_or(line);
        let word = |byte: &u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(byte);
        let broken = rest[..name].iter().position(|byte| !word(byte)).or_else(|| {
            let ends = line > 0 && (name == 0 || (name == line && line < rest.len()));
            ends.then_some(if name == 0 { 0 } else { line })
        });
        let before = trailers.len() - rest.len();
        if before + broken.unwrap_or(line) > limits::TRAILER_BYTES {
            return (data, End::Bad(Code::HeadTooLarge));
        }
        if broken.is_some() {
            return (data, bad);
        }
        match &rest[line..] {
            [] | [b'\r'] => return (data, End::Open),
            [b'\r', b'\n', ..] if line == 0 => {
                return (data, End::Done(bytes.len() - rest.len() + 2));
            }
            [b'\r', b'\n', ..] => rest = &rest[line + 2..],
            _ => return (data, bad),
        }
    }
}

fn check_chunks(bytes: &[u8], cuts: &[Index], cap: u64) -> Checked {
    let (mut body, mut data, mut used) = (Body::Chunked(Chunks::new(cap)), Vec::new(), 0);
    let mut end = End::Open;
    'pieces: for piece in ends(bytes, cuts) {
        while used < piece && !body.is_done() {
            match body.take(&bytes[used..piece]) {
                Ok((0, _)) => return Err(TestCaseError::fail("no progress")),
                Ok((n, part)) => {
                    used += n;
                    data.extend_from_slice(part);
                }
                Err(error) => {
                    end = End::Bad(error.code());
                    break 'pieces;
                }
            }
        }
    }
    if body.is_done() {
        end = End::Done(used);
    }
    let (wanted, wanted_end) = decode(bytes, cap);
    prop_assert_eq!(end, wanted_end);
    prop_assert_eq!(data, wanted);
    Ok(())
}

#[test]
fn chunked_bodies_are_read_as_a_simple_reader_does() {
    let input =
        (chunked_bodies(), cuts(), prop_oneof![3 => Just(1_000_u64), 1 => 0..100_u64, 1 => Just(u64::MAX)]);
    look_for("chunked bodies", &input, |(bytes, cuts, cap)| check_chunks(&bytes, &cuts, cap));
}
