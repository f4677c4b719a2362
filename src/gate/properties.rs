//! Property tests for heads and chunked bodies. Half of the random input is valid; the rest has faults in places
//! where HTTP implementations are known to disagree. The module `reference` computes the expected result.
//!
//! A run ends after `BERTH_PROOF_SECS` (default 2 s), not after a number of cases. The test prints the seed with the
//! number of cases (`--nocapture`) and in every failure; `BERTH_PROOF_SEED` repeats a run. Failures are shrunk.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::reference::{check_chunks, check_head};
use crate::base::limits;

/// Number of cases per seed.
const BATCH: u32 = 500;

/// Runs `check` on random input from `strategy` until the time of the run has elapsed.
fn run_property<S: Strategy>(name: &str, strategy: &S, check: impl Fn(S::Value)) {
    #[allow(clippy::disallowed_methods, reason = "a test has no configuration")]
    let variable = |name| std::env::var(name).ok();
    let secs = variable("BERTH_PROOF_SECS").map(|text| text.parse().unwrap());
    let secs: u64 = secs.unwrap_or(2);
    let seed: Option<u64> = variable("BERTH_PROOF_SEED").map(|text| text.parse().unwrap());
    let first: u64 = seed.unwrap_or_else(|| getrandom::u64().unwrap());
    let (end, mut batches) = (Instant::now() + Duration::from_secs(secs), 0);
    while Instant::now() < end {
        // A runner cannot be reused once its cases have run, so each batch has a new runner with the next seed.
        let seed = first.wrapping_add(batches);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config = Config { cases: BATCH, failure_persistence: None, ..Config::default() };
        if let Err(error) = TestRunner::new_with_rng(config, rng).run(strategy, |value| {
            check(value);
            Ok(())
        }) {
            panic!("{name}, in batch {batches}; repeat it with BERTH_PROOF_SEED={seed}: {error}");
        }
        batches += 1;
    }
    let count = batches * u64::from(BATCH);
    eprintln!("{name}: {count} cases in {secs} s, from BERTH_PROOF_SEED={first}");
}

/// Returns mostly an element of `right`, and sometimes one of `odd`.
fn mostly(right: &'static [&'static str], odd: &'static [&'static str]) -> BoxedStrategy<String> {
    let pick = |list: &'static [&'static str]| select(list).prop_map(str::to_owned);
    prop_oneof![60 => pick(right), 1 => pick(odd)].boxed()
}

/// Changes, inserts, deletes or duplicates some bytes of valid input, or truncates it.
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

/// Returns the end positions, in ascending order, of the pieces in which `bytes` arrives.
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
                "websocket", "h2c", "h2c, WebSocket", "TLS/1.2", "100-continue", "http://localhost", "http://app.test", "http://evil.test", "13", "1",
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
        2 => Just(vec![
            "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nUpgrade: h2c\r\n".to_owned(),
        ]),
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

#[test]
fn heads_mean_the_same_to_every_reader() {
    run_property("heads", &(heads(), cuts()), |(bytes, cuts)| check_head(&bytes, &ends(&bytes, &cuts)));
}

#[test]
fn arbitrary_bytes_cause_no_panic() {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        prop::collection::vec(select(&b"\r\n\r\nGET / HTTP/1.1:0;"[..]), 0..300),
    ];
    run_property("any bytes", &(bytes, cuts()), |(bytes, cuts)| {
        check_head(&bytes, &ends(&bytes, &cuts));
        check_chunks(&bytes, &ends(&bytes, &cuts), 1000);
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
    // The difference between the declared size and the size of the data; 0 in most cases.
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

#[test]
fn chunked_bodies_decode_as_in_the_reference() {
    let input =
        (chunked_bodies(), cuts(), prop_oneof![3 => Just(1_000_u64), 1 => 0..100_u64, 1 => Just(u64::MAX)]);
    run_property("chunked bodies", &input, |(bytes, cuts, cap)| {
        check_chunks(&bytes, &ends(&bytes, &cuts), cap)
    });
}
