//! Rewrites the head of a backend answer for the client and determines how its body ends. The backend is trusted
//! code, so the checks here find bugs rather than attacks; no function reads past its input. Pure.

use std::io::Write as _;

use super::body::{ChunkedDecoder, RequestBody};
use crate::base::{Error, Result};

/// Where the body of an answer ends.
#[derive(Debug)]
pub(super) enum BodyFraming {
    /// The body ends as the head of the answer declares.
    Sized(RequestBody),
    /// The body ends when the backend closes the connection.
    Close,
}

/// The parsed head of an answer, after it was rewritten.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) framing: BodyFraming,
    /// Whether the client connection closes after this answer.
    pub(super) close: bool,
    /// Whether the backend guarantees the declared length, so that its connection can be reused.
    pub(super) reusable: bool,
    /// The ticket of the thread that receives the client socket, if the socket is handed over.
    pub(super) ticket: Option<String>,
    /// Whether the head sent to the client declares chunked encoding.
    pub(super) chunked: bool,
}

/// Properties of the request that affect the head of its answer.
pub(super) struct RequestTraits<'a> {
    pub(super) is_head: bool,
    pub(super) is_11: bool,
    pub(super) upgrade: bool,
    /// Whether another request may follow on this connection.
    pub(super) keep_alive: bool,
    pub(super) id: &'a str,
}

/// Returns the length of the head at the start of `bytes`, or `None` if the head is incomplete.
pub(super) fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Returns the status code of a head.
pub(super) fn status(head: &[u8]) -> Option<u16> {
    std::str::from_utf8(head.get(9..12)?).ok()?.parse().ok()
}

/// Parses a complete head and appends the rewritten head to `out`. Returns `None` for an interim answer, which is
/// not sent to the client.
///
/// # Errors
/// `Internal` if the backend sent something other than HTTP.
pub(super) fn rewrite(
    head: &[u8],
    asked: &RequestTraits<'_>,
    out: &mut Vec<u8>,
) -> Result<Option<ResponseHead>> {
    let broken = || Error::internal("The HTTP backend sent a malformed answer");
    let head = std::str::from_utf8(head).map_err(|_| broken())?;
    let (first, rest) = head.split_once("\r\n").ok_or_else(broken)?;
    let status: u16 = first.get(9..12).and_then(|digits| digits.parse().ok()).ok_or_else(broken)?;
    if !first.starts_with("HTTP/1.1 ") || !(100..600).contains(&status) {
        return Err(broken());
    }
    if status < 200 && status != 101 {
        return Ok(None);
    }
    let (mut length, mut chunked, mut whole, mut ticket) = (None, false, false, None);
    out.extend_from_slice(first.as_bytes());
    out.extend_from_slice(b"\r\n");
    for line in rest.split_terminator("\r\n").take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(broken)?;
        let (is, value) = (|known: &str| name.eq_ignore_ascii_case(known), value.trim_ascii());
        let pass = match name.len() {
            2 if is("TE") => false,
            6 if is("Server") => false,
            7 if is("Upgrade") || is("Trailer") => false,
            10 if is("Connection") || is("Keep-Alive") => false,
            12 if is("X-Request-Id") => false,
            13 if is("X-Berth-Whole") => {
                whole = true;
                false
            }
            14 if is("X-Berth-Ticket") => {
                ticket = Some(value.to_owned());
                false
            }
            14 if is("Content-Length") => {
                length = Some(value.parse::<u64>().map_err(|_| broken())?);
                false
            }
            17 if is("Transfer-Encoding") => {
                chunked = true;
                false
            }
            _ => true,
        };
        if pass {
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    if status == 101 && !(asked.upgrade && ticket.is_some()) {
        return Err(broken());
    }
    let taken = ticket.is_some();
    // RFC 9110, 6.4.1 and 8.6: some answers have no body, and some no declared length.
    let bodyless = asked.is_head || status == 204 || status == 304 || taken;
    let framing = match (bodyless, length) {
        (true, _) => BodyFraming::Sized(RequestBody::none()),
        (_, _) if chunked => BodyFraming::Sized(RequestBody::Chunked(ChunkedDecoder::new(u64::MAX))),
        (_, Some(length)) => BodyFraming::Sized(RequestBody::Length(length)),
        (_, None) => BodyFraming::Close,
    };
    // HTTP/1.0 has no chunked encoding, so the body ends with the connection.
    let close = !asked.keep_alive || taken || matches!(framing, BodyFraming::Close);
    let framed = !matches!(status, 101 | 204);
    let sends_chunked = chunked && asked.is_11 && framed;
    match length {
        _ if sends_chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Some(length) if framed && !chunked => {
            let _ = write!(out, "Content-Length: {length}\r\n");
        }
        _ => {}
    }
    out.extend_from_slice(match status {
        101 => b"Connection: Upgrade\r\nUpgrade: websocket\r\n".as_slice(),
        _ if close => b"Connection: close\r\n",
        _ => b"",
    });
    for part in ["Server: berth\r\nX-Request-Id: ", asked.id, "\r\n\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    Ok(Some(ResponseHead { framing, close, reusable: whole, ticket, chunked: sends_chunked }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(head: &str, is_head: bool, is_11: bool, upgrade: bool) -> Result<Option<(ResponseHead, String)>> {
        let asked = RequestTraits { is_head, is_11, upgrade, keep_alive: is_11, id: "r1" };
        assert_eq!(head_length(head.as_bytes()), Some(head.len()));
        let mut out = Vec::new();
        let answer = rewrite(head.as_bytes(), &asked, &mut out)?;
        Ok(answer.map(|answer| (answer, String::from_utf8(out).unwrap())))
    }

    #[test]
    fn heads_carry_the_servers_own_headers() {
        let head = "HTTP/1.1 200 OK\r\nServer: tiny-http (Rust)\r\nDate: x\r\nContent-Length: 5\r\nX-Berth-Whole: 1\r\n\r\n";
        let (answer, text) = out(head, false, true, false).unwrap().unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 5\r\nServer: berth\r\nX-Request-Id: r1\r\n\r\n"
        );
        assert!(
            answer.reusable
                && !answer.close
                && matches!(answer.framing, BodyFraming::Sized(RequestBody::Length(5)))
        );
        let (answer, text) = out(head, true, false, false).unwrap().unwrap();
        assert!(answer.close && text.contains("Content-Length: 5\r\nConnection: close\r\n"));
        assert!(matches!(answer.framing, BodyFraming::Sized(RequestBody::Length(0))));
    }

    #[test]
    fn chunked_encoding_is_only_sent_to_http_1_1_clients() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (answer, text) = out(head, false, true, false).unwrap().unwrap();
        assert!(!answer.close && text.contains("Transfer-Encoding: chunked"));
        let (answer, text) = out(head, false, false, false).unwrap().unwrap();
        assert!(answer.close && !text.contains("Transfer-Encoding"));
    }

    #[test]
    fn handed_over_sockets_report_the_framing() {
        let stream = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Berth-Ticket: 7\r\n\r\n";
        let (answer, text) = out(stream, false, true, false).unwrap().unwrap();
        assert!(
            answer.chunked
                && answer.close
                && matches!(answer.framing, BodyFraming::Sized(RequestBody::Length(0)))
        );
        assert!(text.contains("Transfer-Encoding: chunked\r\nConnection: close\r\n"), "{text}");
        let (answer, text) = out(stream, false, false, false).unwrap().unwrap();
        assert!(!answer.chunked && !text.contains("Transfer-Encoding"), "{text}");
        let sized = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-Berth-Ticket: 7\r\n\r\n";
        let (answer, text) = out(sized, false, true, false).unwrap().unwrap();
        assert!(!answer.chunked && text.contains("Content-Length: 9\r\nConnection: close\r\n"), "{text}");
    }

    #[test]
    fn upgrades_and_malformed_answers() {
        let head =
            "HTTP/1.1 101 x\r\nContent-Length: 0\r\nX-Berth-Ticket: 7\r\nSec-WebSocket-Accept: k\r\n\r\n";
        let (answer, text) = out(head, false, true, true).unwrap().unwrap();
        assert_eq!(answer.ticket.as_deref(), Some("7"));
        assert!(text.contains("Connection: Upgrade\r\nUpgrade: websocket\r\n"));
        assert!(!text.contains("Content-Length") && !text.contains("Ticket"));
        assert!(out(head, false, true, false).is_err(), "the request was no upgrade");
        assert!(out("HTTP/1.1 100 Continue\r\n\r\n", false, true, false).unwrap().is_none());
        assert!(out("HTTP/1.1 2x0 OK\r\n\r\n", false, true, false).is_err());
        assert!(out("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", false, true, false).is_err());
        let (answer, text) =
            out("HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n", false, true, false).unwrap().unwrap();
        assert!(!answer.close && !text.contains("Content-Length"));
        let (answer, _) = out("HTTP/1.1 200 x\r\n\r\n", false, true, false).unwrap().unwrap();
        assert!(answer.close && matches!(answer.framing, BodyFraming::Close));
    }
}
