//! Finds, validates and rewrites request heads. httparse splits a head into its fields; this module enforces the
//! rules that are stricter. The gate passes metadata to the backend in `X-Berth-*` headers, and removes such headers
//! from client requests. Pure: no sockets, no clocks. RFC numbers: 9110 (semantics), 9112 (messages), 6455
//! (WebSocket).

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::net::IpAddr;

use httparse::Header;

use super::body::{self, ChunkedDecoder, RequestBody, is_token};
use super::host_check::{Authority, HostRules};
use crate::base::{Code, Error, Result, limits};

/// Maximum length of a request id that the client chose.
const REQUEST_ID_BYTES: usize = 64;

/// The configuration and connection that a head is validated against.
pub(super) struct HeadContext<'a> {
    pub(super) rules: &'a HostRules,
    /// Returns the body limit for a method and path.
    pub(super) body_cap: &'a (dyn Fn(&str, &str) -> usize + Send + Sync),
    pub(super) peer: &'a str,
    pub(super) local: Option<IpAddr>,
    pub(super) connection: u64,
}

/// A validated request head.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) is_head: bool,
    /// Whether the request is HTTP/1.1; otherwise it is HTTP/1.0.
    pub(super) is_11: bool,
    /// Whether the client allows another request on this connection.
    pub(super) keep_alive: bool,
    pub(super) body: RequestBody,
    /// Whether the client declared a body, possibly an empty one. The backend then receives a declaration too.
    pub(super) has_body: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
    /// Whether the request is a complete WebSocket handshake.
    pub(super) upgrade: bool,
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidRequest, message)
}

/// Finds the end of a head that arrives in pieces.
#[derive(Debug, Default)]
pub(super) struct HeadScanner {
    at: usize,
    line: usize,
}

impl HeadScanner {
    /// Scans the new part of `bytes`, which must begin with the first byte of the head. Returns the length of the
    /// head, or `None` if the head is incomplete.
    ///
    /// # Errors
    /// `InvalidRequest` at the first byte that is not allowed in a head, `HeadTooLarge` above the limit.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Result<Option<usize>> {
        let visible = &bytes[..bytes.len().min(limits::HEAD_BYTES)];
        while let Some(&byte) = visible.get(self.at) {
            let after_cr = self.at > 0 && visible[self.at - 1] == b'\r';
            self.at += 1;
            match byte {
                b'\n' if !after_cr => {
                    return Err(bad("A line of the request head ends with LF instead of CR LF"));
                }
                b'\n' => {
                    match (self.line + 2 == self.at, self.line) {
                        // RFC 9112, 2.2: some clients send one extra CR LF after a body, so one is skipped before
                        // the request line.
                        (true, 0) | (false, _) => self.line = self.at,
                        (true, 2) => return Err(bad("The request line is empty")),
                        (true, _) => return Ok(Some(self.at)),
                    }
                }
                _ if after_cr => return Err(bad("The request head contains a CR without LF")),
                b'\r' | b'\t' | b' '..=b'~' => {}
                0x80.. => return Err(bad("The request head contains a non-ASCII byte; percent-encode it")),
                _ => return Err(bad("The request head contains a control character")),
            }
        }
        if bytes.len() >= limits::HEAD_BYTES {
            return Err(too_large());
        }
        Ok(None)
    }
}

fn too_large() -> Error {
    Error::new(
        Code::HeadTooLarge,
        format!(
            "The request line and headers exceed {} KiB or {} lines",
            limits::HEAD_BYTES >> 10,
            limits::HEAD_LINES
        ),
    )
}

/// The headers of a request that affect parsing, framing and access.
#[derive(Default)]
struct HeaderFields<'h> {
    host: Option<&'h str>,
    length: Option<&'h str>,
    encoding: Option<&'h str>,
    expect: Option<&'h str>,
    has_upgrade: bool,
    /// The token `websocket` as the client spelled it; `None` if `Upgrade` does not offer it.
    websocket: Option<&'h str>,
    origin: Option<&'h str>,
    key: Option<&'h str>,
    version: Option<&'h str>,
    request_id: Option<&'h str>,
    close: bool,
    connection_upgrade: bool,
    /// The headers that `Connection` names. They apply to this hop only and are not forwarded.
    hop_by_hop: Vec<&'h str>,
}

/// Validates a complete head and appends the head for the backend to `out`, without body framing and without the
/// final empty line. Replaces `id` by the client's request id if the client sent a well-formed one.
///
/// # Errors
/// Returns the first violation, with its code; `out` is unchanged then.
pub(super) fn admit(
    bytes: &[u8],
    context: &HeadContext<'_>,
    id: &mut String,
    out: &mut Vec<u8>,
) -> Result<RequestHead> {
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let line_end = bytes.windows(2).position(|pair| pair == b"\r\n").unwrap_or(bytes.len());
    let (method, target, is_11) = request_line(&bytes[..line_end])?;
    let mut storage = [const { MaybeUninit::<Header<'_>>::uninit() }; limits::HEAD_LINES];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(bytes, &mut storage) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(bad("The request head is incomplete")),
        Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
        Err(error) => return Err(bad(format!("The request head is malformed: {error}"))),
    }
    let headers = &*parsed.headers;
    let facts = read_fields(headers)?;
    if let Some(wanted) = facts.request_id.filter(|wanted| is_safe_id(wanted)) {
        id.clear();
        id.push_str(wanted);
    }
    let host = match facts.host {
        Some(text) => Some(Authority::parse(text).ok_or_else(|| bad("The Host header is not a valid host"))?),
        None if is_11 => return Err(bad("An HTTP/1.1 request needs a Host header")),
        None => None,
    };
    let target = origin_form(method, target, host.as_ref())?;
    context.rules.check_host(host.as_ref(), context.local)?;
    let upgrade = handshake(&facts, method, is_11)?;
    let changes = !matches!(method, "GET" | "HEAD" | "OPTIONS");
    if let Some(origin) = facts.origin.filter(|_| changes || upgrade) {
        context.rules.check_origin(origin, host.as_ref())?;
    }
    let path = target.split('?').next().unwrap_or_default();
    let body = framing(&facts, is_11, (context.body_cap)(method, path) as u64)?;
    let has_body = facts.length.is_some() || facts.encoding.is_some();
    if upgrade && has_body {
        return Err(bad("A WebSocket handshake cannot have a body"));
    }
    let expects_continue = match facts.expect {
        // RFC 9110, 10.1.1: a server ignores Expect in HTTP/1.0.
        Some(_) if !is_11 => false,
        Some(value) if value.eq_ignore_ascii_case("100-continue") => !body.is_done(),
        Some(_) => {
            return Err(Error::new(
                Code::ExpectationFailed,
                "The only supported value of Expect is 100-continue",
            ));
        }
        None => false,
    };
    write_head(out, method, target, headers, &facts, upgrade);
    let connection = context.connection;
    // Writing to a vector cannot fail.
    let _ = write!(
        out,
        "X-Berth-Peer: {}\r\nX-Berth-Connection: {connection}\r\nX-Berth-Request: {id}\r\n",
        context.peer
    );
    Ok(RequestHead {
        is_head: method == "HEAD",
        is_11,
        keep_alive: is_11 && !facts.close,
        body,
        has_body,
        expects_continue,
        upgrade,
    })
}

/// Splits the request line (RFC 9112, 3), which has exactly two spaces. The version is case-sensitive (2.3).
fn request_line(line: &[u8]) -> Result<(&'static str, &str, bool)> {
    let line = std::str::from_utf8(line).map_err(|_| bad("The request line contains a non-ASCII byte"))?;
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad("The request line is not of the form METHOD TARGET VERSION"));
    };
    let digit = |at: usize| version.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let is_11 = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ if version.len() == 8
            && version.starts_with("HTTP/")
            && digit(5)
            && &version[6..7] == "."
            && digit(7) =>
        {
            return Err(Error::new(Code::HttpVersion, "The server supports only HTTP/1.1 and HTTP/1.0"));
        }
        _ => return Err(bad("The request line does not end with an HTTP version")),
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(bad("The request method is not a valid token"));
    }
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let method = known.into_iter().find(|known| *known == method).ok_or_else(|| {
        Error::new(
            Code::NotImplemented,
            format!("Unsupported request method; the server supports {}", known.join(", ")),
        )
    })?;
    if target.is_empty() || target.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
        return Err(bad("The request target is not a valid path"));
    }
    Ok((method, target, is_11))
}

/// Returns the path for the backend, which accepts only paths. RFC 9112, 3.2: the target is a path, a URL with the
/// same authority as Host, or `*` for OPTIONS.
fn origin_form<'t>(method: &str, target: &'t str, host: Option<&Authority>) -> Result<&'t str> {
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(target);
    }
    let scheme = |scheme: &str, default: u16| {
        let found = target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        found.then(|| (&target[scheme.len()..], default))
    };
    let (rest, default) = scheme("http://", 80)
        .or_else(|| scheme("https://", 443))
        .ok_or_else(|| bad("The request target is neither a path nor an http URL"))?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let authority =
        Authority::parse(&rest[..end]).ok_or_else(|| bad("The request target has an invalid host"))?;
    if !host.is_some_and(|host| host.same(&authority, default)) {
        return Err(bad("The request target and the Host header name different hosts"));
    }
    match &rest[end..] {
        "" => Ok("/"),
        path if path.starts_with('/') => Ok(path),
        // tiny_http accepts no form of a target that has a query but no path.
        _ => Err(bad("The request target has no path")),
    }
}

fn read_fields<'h>(headers: &[Header<'h>]) -> Result<HeaderFields<'h>> {
    let mut facts = HeaderFields::default();
    for header in headers {
        let value =
            std::str::from_utf8(header.value).map_err(|_| bad("A header value contains a non-ASCII byte"))?;
        let value = value.trim_matches([' ', '\t']);
        let name = header.name;
        if name.is_empty() {
            return Err(bad("A header has no name"));
        }
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        let once = |place: &mut Option<&'h str>| match place.replace(value) {
            None => Ok(()),
            Some(_) => Err(bad(format!("The request has more than one {name} header"))),
        };
        match name.len() {
            4 if is("Host") => once(&mut facts.host)?,
            6 if is("Expect") => once(&mut facts.expect)?,
            6 if is("Origin") => once(&mut facts.origin)?,
            7 if is("Upgrade") => {
                facts.has_upgrade = true;
                facts.websocket = facts.websocket.or_else(|| websocket_among(value));
            }
            10 if is("Connection") => connection_options(&mut facts, value)?,
            12 if is("X-Request-Id") => facts.request_id = Some(value),
            14 if is("Content-Length") => once(&mut facts.length)?,
            17 if is("Transfer-Encoding") => once(&mut facts.encoding)?,
            17 if is("Sec-WebSocket-Key") => once(&mut facts.key)?,
            21 if is("Sec-WebSocket-Version") => once(&mut facts.version)?,
            _ => {}
        }
    }
    Ok(facts)
}

fn connection_options<'h>(facts: &mut HeaderFields<'h>, value: &'h str) -> Result<()> {
    for option in value.split(',').map(|option| option.trim_matches([' ', '\t'])) {
        let is = |known: &str| option.eq_ignore_ascii_case(known);
        match option.len() {
            0 => {}
            5 if is("close") => facts.close = true,
            7 if is("upgrade") => facts.connection_upgrade = true,
            10 if is("keep-alive") => {}
            _ if !option.bytes().all(is_token) => {
                return Err(bad("The Connection header contains an invalid token"));
            }
            // RFC 9110, 7.6.1: `Connection` must not list headers that all recipients need.
            _ if is("host") || is("content-length") || is("transfer-encoding") || is("authorization") => {
                return Err(bad("The Connection header names an end-to-end header"));
            }
            _ => facts.hop_by_hop.push(option),
        }
    }
    Ok(())
}

/// Returns the protocol `websocket` from a list of protocols (RFC 9110, 7.8), in the client's spelling.
fn websocket_among(value: &str) -> Option<&str> {
    let mut offered = value.split(',').map(|protocol| protocol.trim_matches([' ', '\t']));
    offered.find(|protocol| protocol.eq_ignore_ascii_case("websocket"))
}

/// Returns whether the request is a WebSocket handshake (RFC 6455, 4.2.1). A server may ignore any other protocol
/// that `Upgrade` offers (RFC 9110, 7.8): `curl --http2` and Java's HttpClient offer `h2c` with their first request,
/// and Apache's HttpClient offers TLS.
fn handshake(facts: &HeaderFields<'_>, method: &str, is_11: bool) -> Result<bool> {
    if !facts.has_upgrade && facts.connection_upgrade {
        return Err(bad("The request has Connection: upgrade but no Upgrade header"));
    }
    if facts.websocket.is_none() {
        return Ok(false);
    }
    let complete = method == "GET"
        && is_11
        && facts.connection_upgrade
        && facts.version == Some("13")
        && facts.key.is_some_and(is_key);
    if complete {
        Ok(true)
    } else {
        Err(bad(
            "Upgrade: websocket needs a complete WebSocket handshake: GET, HTTP/1.1, Connection: Upgrade, \
                 Sec-WebSocket-Version: 13 and a Sec-WebSocket-Key of 16 bytes",
        ))
    }
}

/// Returns whether `key` is 16 bytes in base64: 22 characters, the last of which carries two bits, and two padding
/// characters.
fn is_key(key: &str) -> bool {
    let bytes = key.as_bytes();
    bytes.len() == 24
        && bytes[22..] == *b"=="
        && bytes[..22].iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte))
        && b"AQgw".contains(&bytes[21])
}

/// Returns the framing of the body (RFC 9112, 6). Refuses a request if two implementations could interpret the
/// length of its body differently.
fn framing(facts: &HeaderFields<'_>, is_11: bool, cap: u64) -> Result<RequestBody> {
    match (facts.length, facts.encoding) {
        (Some(_), Some(_)) => Err(bad("The request has both Content-Length and Transfer-Encoding")),
        (None, Some(_)) if !is_11 => Err(bad("HTTP/1.0 does not allow Transfer-Encoding")),
        (None, Some(value)) if value.eq_ignore_ascii_case("chunked") => {
            Ok(RequestBody::Chunked(ChunkedDecoder::new(cap)))
        }
        (None, Some(_)) => Err(Error::new(
            Code::NotImplemented,
            "The only supported Transfer-Encoding is chunked, applied once",
        )),
        (Some(digits), None) => {
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(bad("Content-Length is not a number"));
            }
            // The value has only digits, so a value that does not fit into a u64 is above the limit.
            let length = digits.parse().unwrap_or(u64::MAX);
            if length > cap { Err(body::too_large()) } else { Ok(RequestBody::Length(length)) }
        }
        (None, None) => Ok(RequestBody::none()),
    }
}

fn write_head(
    out: &mut Vec<u8>,
    method: &str,
    target: &str,
    headers: &[Header<'_>],
    facts: &HeaderFields<'_>,
    upgrade: bool,
) {
    for part in [method, " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    // If the client offers several protocols, only the chosen one is forwarded.
    let mut chosen = facts.websocket.filter(|_| upgrade);
    for header in headers {
        let hop = facts.hop_by_hop.iter().any(|name| header.name.eq_ignore_ascii_case(name));
        let value = match chosen {
            Some(protocol) if header.name.eq_ignore_ascii_case("Upgrade") => {
                chosen = None;
                protocol.as_bytes()
            }
            _ if hop || is_ours(header.name) => continue,
            _ => header.value.trim_ascii(),
        };
        out.extend_from_slice(header.name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
}

/// Returns whether a header is never forwarded, because it is a hop-by-hop header or the gate writes it.
fn is_ours(name: &str) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    let starts = |known: &str| name.len() >= known.len() && name[..known.len()].eq_ignore_ascii_case(known);
    match name.as_bytes()[0].to_ascii_lowercase() {
        b'c' => is("Connection") || is("Content-Length"),
        b'e' => is("Expect"),
        b'h' => is("HTTP2-Settings"),
        b'k' => is("Keep-Alive"),
        b'p' => starts("Proxy-"),
        b't' => is("TE") || is("Trailer") || is("Transfer-Encoding"),
        b'u' => is("Upgrade"),
        b'x' => starts("X-Berth-") || is("X-Request-Id"),
        _ => false,
    }
}

fn is_safe_id(id: &str) -> bool {
    (1..=REQUEST_ID_BYTES).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str) -> Result<(RequestHead, String, String)> {
        let rules = HostRules::new(&[], &["http://app.test".into()])?;
        let context = HeadContext {
            rules: &rules,
            body_cap: &|_, path| if path == "/big" { 1000 } else { 10 },
            peer: "192.0.2.9",
            local: Some([127, 0, 0, 1].into()),
            connection: 7,
        };
        let end =
            HeadScanner::default().find(head.as_bytes())?.ok_or_else(|| Error::internal("unfinished"))?;
        assert_eq!(end, head.len(), "{head:?}");
        let (mut id, mut out) = ("made-1".to_owned(), Vec::new());
        let admitted = admit(head.as_bytes(), &context, &mut id, &mut out);
        assert!(admitted.is_ok() || out.is_empty(), "a refused head wrote output");
        Ok((admitted?, String::from_utf8(out).unwrap(), id))
    }

    #[test]
    fn forwarded_heads_are_normalized() {
        let (head, out, id) = check(concat!(
            "POST http://LOCALHOST./big?x=1 HTTP/1.1\r\nhost:\tlocalhost:80 \r\nX-Berth-Peer: 127.0.0.1\r\n",
            "x-berth-anything: y\r\nX-Request-ID: a.B-_9\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n",
            "Keep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: z\r\nTrailer: q\r\nExpect: 100-Continue\r\n",
            "Content-Length: 0012\r\nAccept:\r\nOrigin: http://localhost\r\n\r\n"
        ))
        .unwrap();
        assert_eq!(
            out,
            concat!(
                "POST /big?x=1 HTTP/1.1\r\nhost: localhost:80\r\nAccept: \r\nOrigin: http://localhost\r\n",
                "X-Berth-Peer: 192.0.2.9\r\nX-Berth-Connection: 7\r\nX-Berth-Request: a.B-_9\r\n"
            )
        );
        assert_eq!(id, "a.B-_9");
        assert!(head.keep_alive && head.expects_continue && head.has_body && !head.upgrade);
        assert!(matches!(head.body, RequestBody::Length(12)));
        let (head, out, id) = check("\r\nGET / HTTP/1.0\r\nX-Request-Id: a b\r\n\r\n").unwrap();
        assert!(!head.keep_alive && !head.is_11 && out.starts_with("GET / HTTP/1.1\r\nX-Berth-Peer"));
        assert_eq!(id, "made-1");
    }

    #[test]
    fn only_a_complete_handshake_upgrades() {
        let handshake = concat!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n",
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let (head, out, _) = check(handshake).unwrap();
        assert!(
            head.upgrade && out.contains("\r\nUpgrade: WebSocket\r\n") && !out.contains("\r\nConnection:")
        );
        for (from, to, status) in [
            ("GET", "POST", 400),
            ("HTTP/1.1", "HTTP/1.0", 400),
            (", Upgrade", "", 400),
            ("Upgrade: WebSocket\r\n", "", 400),
            ("Key:", "Kez:", 400),
            (": 13", ": 8", 400),
            ("bmNlZQ", "bmNl", 0),
            ("==\r\n", "=\r\n", 400),
            ("Q==", "R==", 400),
            ("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n", 400),
            ("\r\n\r\n", "\r\nOrigin: http://evil.test\r\n\r\n", 403),
            ("\r\n\r\n", "\r\nOrigin: http://app.test\r\n\r\n", 0),
            ("\r\n\r\n", "\r\nOrigin: http://localhost\r\n\r\n", 0),
        ] {
            let got = check(&handshake.replace(from, to)).map_or_else(|error| error.code().status(), |_| 0);
            assert_eq!(got, status, "{from:?} -> {to:?}");
        }
    }

    #[test]
    fn offers_of_other_protocols_are_ignored() {
        let settings = "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n";
        for offered in ["h2c", "TLS/1.2", "h2c, TLS/1.2", "", ",", "websocket/13", "h2c\r\nUpgrade: foo/2"] {
            for (version, body) in [("1.1", ""), ("1.0", ""), ("1.1", "Content-Length: 5\r\n")] {
                let (head, out, _) = check(&format!(
                    "POST /x HTTP/{version}\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings, X-Hop\r\nX-Hop: 1\r\n\
                     Upgrade: {offered}\r\n{settings}{body}Accept: x\r\n\r\n"
                ))
                .unwrap();
                assert!(!head.upgrade && head.keep_alive == (version == "1.1"), "{offered}");
                assert!(
                    out.starts_with("POST /x HTTP/1.1\r\nHost: localhost\r\nAccept: x\r\nX-Berth-"),
                    "{out}"
                );
            }
        }
        let (head, out, _) = check(concat!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\nupgrade: TLS/1.2, WebSocket ,x\r\n",
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
        .unwrap();
        assert!(head.upgrade);
        assert_eq!(out.to_ascii_lowercase().matches("\r\nupgrade: websocket\r\n").count(), 1, "{out}");
        assert_eq!(out.to_ascii_lowercase().matches("upgrade:").count(), 1, "{out}");
    }

    #[test]
    fn heads_are_found_at_any_split() {
        let head = b"\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut scan = HeadScanner::default();
        for end in 0..head.len() {
            assert_eq!(scan.find(&head[..end]).unwrap(), None, "{end}");
        }
        assert_eq!(scan.find(head).unwrap(), Some(head.len()));
        let large = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'x'; limits::HEAD_BYTES]].concat();
        assert_eq!(HeadScanner::default().find(&large).unwrap_err().code(), Code::HeadTooLarge);
    }
}
