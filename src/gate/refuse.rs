//! The error answers that the gate itself sends, and the lingering close after them.

use std::fmt::Write as _;
use std::net::Shutdown;
use std::time::Instant;

use super::wire::{self, ReadOutcome};
use crate::base::{Code, Error, limits};
use crate::http::client::Socket;

/// Formats a complete error answer. `id` is empty if no request was read. The answer to a HEAD request has no body.
pub(super) fn answer(error: &Error, id: &str, is_head: bool) -> String {
    let body = error.body().to_string();
    let status = error.code().status();
    let now = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
    let mut text = format!(
        "HTTP/1.1 {status} {}\r\nDate: {now}\r\nServer: berth\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n",
        reason(status),
        body.len()
    );
    // Writing to a string cannot fail.
    if matches!(error.code(), Code::Busy | Code::OverShare | Code::Unavailable | Code::ShuttingDown) {
        let _ = write!(text, "Retry-After: {}\r\n", limits::RETRY_AFTER_SECS);
    }
    if !id.is_empty() {
        let _ = write!(text, "X-Request-Id: {id}\r\n");
    }
    text.push_str("\r\n");
    if !is_head {
        text.push_str(&body);
    }
    text
}

/// Closes a connection while its client may still be sending. The input is read first: a close with unread input
/// sends a reset, which discards answer bytes that the client has not read (RFC 9112, 9.6).
pub(super) fn linger(socket: &Socket) {
    socket.shutdown(Shutdown::Write);
    let deadline = Instant::now() + limits::LINGER;
    let (mut read, mut buffer) = (0, Vec::new());
    while read < limits::DRAINED_BODY_BYTES as usize && matches!(wire::wait_input(socket, deadline), Ok(true))
    {
        buffer.clear();
        match wire::receive(socket, &mut buffer) {
            Ok(ReadOutcome::Bytes(n)) => read += n,
            Ok(ReadOutcome::WouldBlock) => {}
            Ok(ReadOutcome::Eof) | Err(_) => return,
        }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        // RFC 9112, 4: the reason phrase may be empty.
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_complete() {
        let busy = Error::new(Code::Busy, "no \"room\"");
        let text = answer(&busy, "r1", false);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        assert!(head.contains("Retry-After: 1\r\nX-Request-Id: r1"));
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
        assert_eq!(body, r#"{"code":"busy","message":"no \"room\""}"#);
        assert!(answer(&busy, "", true).ends_with("\r\n\r\n"));
    }
}
