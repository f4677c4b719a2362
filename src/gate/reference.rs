//! A second, simple implementation of head and chunk parsing, which needs its input as a whole. `properties`
//! compares both implementations on random input; `tests/fuzz` compares them on input that reaches new code.

#![allow(clippy::unwrap_used, reason = "a panic reports the violation")]

use std::net::Ipv6Addr;

use super::body::{ChunkedDecoder, RequestBody};
use super::head::{HeadContext, HeadScanner, RequestHead, admit};
use super::host_check::HostRules;
use crate::base::{Code, Result, limits};

fn admitted(bytes: &[u8], out: &mut Vec<u8>) -> Result<RequestHead> {
    let rules = HostRules::new(&[], &["http://app.test".into()]).unwrap();
    let context = HeadContext {
        rules: &rules,
        body_cap: &|_, _| 10,
        peer: "192.0.2.9",
        local: Some([127, 0, 0, 1].into()),
        connection: 7,
    };
    admit(bytes, &context, &mut "made-1".to_owned(), out)
}

/// A head, parsed as RFC 9112 literally says. Only unambiguous input is parsed.
struct PlainHead<'a> {
    method: &'a str,
    target: &'a str,
    version: &'a str,
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> PlainHead<'a> {
    /// Parses a head. Returns `None` if any part of it is ambiguous.
    fn read(bytes: &'a [u8]) -> Option<PlainHead<'a>> {
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
        whole.then_some(PlainHead { method, target, version, fields })
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

    /// Returns the head that the backend should receive, without the lines that the gate adds.
    fn inner(&self, mut upgrade: bool) -> String {
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
                || options.contains(&lower) && lower != "upgrade";
            let protocol = value.split(',').map(|one| one.trim_matches([' ', '\t']));
            let websocket = protocol.clone().find(|one| one.eq_ignore_ascii_case("websocket"));
            match (lower.as_str(), websocket) {
                ("upgrade", Some(protocol)) if upgrade => {
                    text += &format!("{name}: {protocol}\r\n");
                    upgrade = false;
                }
                ("upgrade", _) => {}
                _ if dropped => {}
                _ => text += &format!("{name}: {value}\r\n"),
            }
        }
        text
    }
}

/// Splits `host:port` in the forms that the strategies generate.
fn host_and_port(authority: &str) -> (String, u16) {
    let bracket = authority.rfind(']').unwrap_or(0);
    let colon = authority[bracket..].find(':').map_or(authority.len(), |at| bracket + at);
    let (host, port) = authority.split_at(colon);
    let port = port.get(1..).and_then(|digits| digits.parse().ok()).unwrap_or(80);
    (host.to_ascii_lowercase().trim_end_matches('.').to_owned(), port)
}

fn names_loopback(host: &str) -> bool {
    let (host, _) = host_and_port(host);
    host == "localhost" || host.ends_with(".localhost") || host.starts_with("127.") || is_v6_loopback(&host)
}

fn is_v6_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    address
        .and_then(|text| text.parse::<Ipv6Addr>().ok())
        .is_some_and(|address| address.to_canonical().is_loopback())
}

/// Panics if the gate interprets the head differently from this reference, either as a whole or split at `ends`.
pub fn check_head(bytes: &[u8], ends: &[usize]) {
    let whole = HeadScanner::default().find(bytes);
    let mut scan = HeadScanner::default();
    let mut pieced = Ok(None);
    for &end in ends {
        pieced = scan.find(&bytes[..end]);
        if !matches!(pieced, Ok(None)) {
            break;
        }
    }
    assert_eq!(format!("{whole:?}"), format!("{pieced:?}"));
    let Ok(Some(length)) = whole else { return };
    assert!(length <= limits::HEAD_BYTES && bytes[..length].ends_with(b"\r\n\r\n"));
    let bytes = &bytes[..length];
    let mut out = b"kept".to_vec();
    let head = match admitted(bytes, &mut out) {
        Ok(head) => head,
        Err(error) => {
            assert_eq!(&out, b"kept", "a refused head wrote output");
            assert!([400, 403, 413, 417, 431, 501, 505].contains(&error.code().status()), "{error}");
            return;
        }
    };
    let Some(plain) = PlainHead::read(bytes) else {
        panic!("an ambiguous head was accepted");
    };
    // RFC 9112, 3.2 and 6.3: every HTTP implementation must agree on these properties.
    let (lengths, codings, hosts) =
        (plain.all("Content-Length"), plain.all("Transfer-Encoding"), plain.all("Host"));
    assert!(lengths.len() + codings.len() <= 1 && plain.fields.len() <= limits::HEAD_LINES);
    assert!(hosts.len() == 1 || (hosts.is_empty() && plain.version == "HTTP/1.0"));
    assert!(hosts.iter().all(|host| names_loopback(host)), "{hosts:?}");
    if let Some((_, rest)) = plain.target.split_once("://").filter(|_| !plain.target.starts_with('/')) {
        let called = rest.split('/').next().unwrap_or_default();
        assert_eq!(Some(host_and_port(called)), hosts.first().map(|host| host_and_port(host)));
    }
    assert_eq!(head.is_11, plain.version == "HTTP/1.1");
    assert_eq!(head.is_head, plain.method == "HEAD");
    assert_eq!(head.keep_alive, head.is_11 && !plain.options().contains(&"close".to_owned()));
    assert_eq!(head.has_body, lengths.len() + codings.len() == 1);
    match (&head.body, lengths.first(), codings.first()) {
        (RequestBody::Length(0), None, None) => {}
        (RequestBody::Length(length), Some(digits), None) => {
            assert!(digits.chars().all(|c| c.is_ascii_digit()));
            assert!(
                *length <= 10 && digits.trim_start_matches('0') == length.to_string().trim_start_matches('0')
            );
        }
        (RequestBody::Chunked(_), None, Some(coding)) => {
            assert!(head.is_11 && coding.eq_ignore_ascii_case("chunked"));
        }
        other => panic!("unexpected body: {other:?}"),
    }
    if head.upgrade {
        assert!(plain.method == "GET" && head.is_11 && !head.has_body);
        assert!(plain.options().contains(&"upgrade".to_owned()));
        assert!(plain.all("Upgrade").join(",").to_ascii_lowercase().contains("websocket"));
        assert_eq!(plain.all("Sec-WebSocket-Key").len(), 1);
    }
    let out = String::from_utf8(out.split_off(4)).unwrap();
    let Some((inner, metadata)) =
        out.split_once("X-Berth-Peer: 192.0.2.9\r\nX-Berth-Connection: 7\r\nX-Berth-Request: ")
    else {
        panic!("the gate's own lines are missing: {out:?}");
    };
    assert_eq!(inner, plain.inner(head.upgrade));
    let ids = plain.all("X-Request-Id");
    let id = metadata.strip_suffix("\r\n").unwrap();
    assert!(id == "made-1" || ids.contains(&id), "{id:?}");
    assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)));
    // A second pass must leave the head unchanged: then no part of it means something else to the next
    // implementation.
    let again = format!("{inner}\r\n");
    let mut second = Vec::new();
    if !head.upgrade && !hosts.is_empty() {
        let second_pass = admitted(again.as_bytes(), &mut second);
        assert!(second_pass.is_ok_and(|head| head.body.is_done() && !head.has_body && head.keep_alive));
        assert!(second.starts_with(inner.as_bytes()));
    }
}

/// How decoding a chunked body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DecodeEnd {
    /// The body is complete after this many bytes.
    Done(usize),
    /// The body is incomplete.
    Open,
    Bad(Code),
}

/// Decodes a chunked body (RFC 9112, 7.1) that is given as a whole, with the limits of the gate.
fn decode(bytes: &[u8], cap: u64) -> (Vec<u8>, DecodeEnd) {
    let (mut data, mut rest) = (Vec::new(), bytes);
    let bad = DecodeEnd::Bad(Code::InvalidRequest);
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
            [] | [b'\r'] => return (data, DecodeEnd::Open),
            [b'\r', b'\n', ..] => rest = &after[ignored + 2..],
            _ => return (data, bad),
        }
        let digits = std::str::from_utf8(&bytes[bytes.len() - rest.len() - ignored - 2 - digits..][..digits]);
        let size = u64::from_str_radix(digits.unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        if size > cap - data.len() as u64 {
            return (data, DecodeEnd::Bad(Code::BodyTooLarge));
        }
        let (chunk, after) = rest.split_at((size as usize).min(rest.len()));
        data.extend_from_slice(chunk);
        match after {
            [] | [b'\r'] => return (data, DecodeEnd::Open),
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
            return (data, DecodeEnd::Bad(Code::HeadTooLarge));
        }
        if broken.is_some() {
            return (data, bad);
        }
        match &rest[line..] {
            [] | [b'\r'] => return (data, DecodeEnd::Open),
            [b'\r', b'\n', ..] if line == 0 => {
                return (data, DecodeEnd::Done(bytes.len() - rest.len() + 2));
            }
            [b'\r', b'\n', ..] => rest = &rest[line + 2..],
            _ => return (data, bad),
        }
    }
}

/// Panics if the gate decodes a chunked body with the limit `cap` differently from [`decode`].
pub fn check_chunks(bytes: &[u8], ends: &[usize], cap: u64) {
    let (mut body, mut data, mut used) = (RequestBody::Chunked(ChunkedDecoder::new(cap)), Vec::new(), 0);
    let mut end = DecodeEnd::Open;
    'pieces: for &piece in ends {
        while used < piece && !body.is_done() {
            match body.take(&bytes[used..piece]) {
                Ok((0, _)) => panic!("no progress"),
                Ok((n, part)) => {
                    used += n;
                    data.extend_from_slice(part);
                }
                Err(error) => {
                    end = DecodeEnd::Bad(error.code());
                    break 'pieces;
                }
            }
        }
    }
    if body.is_done() {
        end = DecodeEnd::Done(used);
    }
    let (wanted, wanted_end) = decode(bytes, cap);
    assert_eq!(end, wanted_end);
    assert_eq!(data, wanted);
}

/// Returns the end positions of pieces of `size` bytes; a size of 0 means one piece.
pub fn pieces(length: usize, size: u8) -> Vec<usize> {
    let mut ends: Vec<usize> = match size {
        0 => Vec::new(),
        size => (usize::from(size)..length).step_by(size.into()).collect(),
    };
    ends.push(length);
    ends
}
