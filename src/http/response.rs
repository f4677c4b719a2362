//! Responses: their status, headers and body.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;

use serde::Serialize;
use serde_json::Value;

use crate::base::redact::Redactor;
use crate::base::{Code, Error, clock, limits};

/// A response under construction.
pub struct Response {
    status: u16,
    /// The error code, if this is an error response.
    code: Option<Code>,
    headers: Vec<(Cow<'static, str>, String)>,
    body: ResponseBody,
    form: BodyFormat,
}

/// The type of a body that the server produced. Proxied bodies and files are `Other`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyFormat {
    Json,
    Text,
    Other,
}

/// A function that writes a body of a declared length.
type BodyWriter = Box<dyn FnOnce(&mut dyn std::io::Write) -> std::io::Result<()> + Send>;

enum ResponseBody {
    Bytes(Vec<u8>),
    /// A body of this length, which the function writes while it is sent.
    Streamed(u64, BodyWriter),
    /// No body. If a length is present, it is the one of the body that a GET would return (RFC 9110, 8.6).
    Absent(Option<u64>),
    /// A body that the holder of this ticket writes to the client's socket: with this length, or in chunks if it is
    /// `None`.
    HandedOver {
        ticket: String,
        length: Option<u64>,
    },
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

impl Response {
    /// Creates a response with an empty body.
    pub fn empty(status: u16) -> Response {
        Response {
            status,
            code: None,
            headers: Vec::new(),
            body: ResponseBody::Bytes(Vec::new()),
            form: BodyFormat::Other,
        }
    }

    /// Creates a response with status 200 and `value` as JSON.
    pub fn ok(value: &impl Serialize) -> Response {
        Response::json(200, value)
    }

    /// Creates a response with status 200 and a text body, for routes of an existing API that returns text.
    pub fn sentence(text: String) -> Response {
        Response::empty(200).with("Content-Type", TEXT).with_body(text.into_bytes()).of(BodyFormat::Text)
    }

    /// Creates a response with `value` as JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Response {
        let mut body = ExactBuffer(Vec::with_capacity(1024));
        match serde_json::to_writer(&mut body, value) {
            Ok(()) => {
                Response::empty(status).with("Content-Type", JSON).with_body(body.0).of(BodyFormat::Json)
            }
            Err(error) => Response::error(&Error::internal("Cannot encode the answer").with_source(error)),
        }
    }

    /// Creates a response with status 200 and a JSON list of items, each of which is already JSON.
    pub fn list<'a>(items: impl IntoIterator<Item = &'a str>) -> Response {
        let mut body = Vec::with_capacity(4096);
        for item in items {
            body.push(if body.is_empty() { b'[' } else { b',' });
            body.extend_from_slice(item.as_bytes());
        }
        body.extend_from_slice(if body.is_empty() { b"[]" } else { b"]" });
        Response::empty(200).with("Content-Type", JSON).with_body(body).of(BodyFormat::Json)
    }

    fn of(self, form: BodyFormat) -> Response {
        Response { form, ..self }
    }

    /// Redacts secrets in a JSON or text body that the server produced.
    #[must_use]
    pub fn redacted(mut self, redactor: &Redactor) -> Response {
        let ResponseBody::Bytes(body) = &mut self.body else { return self };
        match self.form {
            BodyFormat::Json => {
                if let Ok(mut value) = serde_json::from_slice::<Value>(body) {
                    redactor.value(&mut value);
                    *body = value.to_string().into_bytes();
                }
            }
            BodyFormat::Text => {
                if let Some(hidden) =
                    std::str::from_utf8(body).ok().map(|text| redactor.text(text).into_owned())
                {
                    *body = hidden.into_bytes();
                }
            }
            BodyFormat::Other => {}
        }
        self
    }

    /// Creates the response for an error. It omits the causes of the error, which appear only in the log.
    pub fn error(error: &Error) -> Response {
        let mut response = Response::json(error.code().status(), &error.body());
        response.code = Some(error.code());
        match error.code() {
            Code::Busy
            | Code::OverShare
            | Code::TooManyPending
            | Code::ShuttingDown
            | Code::ContainerStopped
            | Code::ContainerSilent
            | Code::ContainerFull
            | Code::OpencodeStarting
            | Code::OpencodeFailed => response.with("Retry-After", limits::RETRY_AFTER_SECS.to_string()),
            _ => response,
        }
    }

    #[must_use]
    pub fn with(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Response {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds a name to the header `Vary`, unless `Vary` already contains it. A proxied answer may have its own
    /// `Vary`.
    #[must_use]
    pub fn varying_by(mut self, name: &str) -> Response {
        let vary = self.headers.iter_mut().find(|(known, _)| known.eq_ignore_ascii_case("Vary"));
        let Some((_, known)) = vary else { return self.with("Vary", name) };
        let names = |known: &str| {
            known.split(',').any(|word| word.trim() == "*" || word.trim().eq_ignore_ascii_case(name))
        };
        if !names(known) {
            *known = format!("{known}, {name}");
        }
        self
    }

    /// Adds warnings to the response. In a successful response that is a JSON object, they are added to its field
    /// `warnings`; in any other response, they are added as `X-Berth-Warning` headers.
    #[must_use]
    pub fn warned(mut self, warnings: Vec<String>) -> Response {
        if warnings.is_empty() {
            return self;
        }
        let json = self.headers.iter().any(|(name, value)| name == "Content-Type" && value == JSON);
        if let (ResponseBody::Bytes(body), true, None) = (&self.body, json, self.code) {
            if let Some(body) = with_warnings(body, &warnings) {
                self.body = ResponseBody::Bytes(body);
                return self;
            }
        }
        for warning in warnings.iter().take(WARNINGS) {
            // RFC 9110, 5.5: recipients treat non-ASCII bytes in a header as opaque data.
            let plain = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
            let text: String = warning.chars().take(WARNING_CHARS).map(plain).collect();
            self = self.with("X-Berth-Warning", text);
        }
        self
    }

    /// Creates a response with status 200. The holder of the ticket writes its body to the client's own socket
    /// ([`super::client::Tickets`]). If `length` is `None`, the body is sent in chunks.
    pub fn handed_over(ticket: String, length: Option<u64>) -> Response {
        Response {
            status: 200,
            code: None,
            headers: Vec::new(),
            body: ResponseBody::HandedOver { ticket, length },
            form: BodyFormat::Other,
        }
    }

    /// Creates a response with status 101. The client's socket is handed over to the holder of the ticket.
    pub fn upgraded(ticket: String) -> Response {
        Response {
            status: 101,
            code: None,
            headers: Vec::new(),
            body: ResponseBody::HandedOver { ticket, length: Some(0) },
            form: BodyFormat::Other,
        }
    }

    #[must_use]
    pub fn with_status(mut self, status: u16) -> Response {
        self.status = status;
        self
    }

    /// Returns the ticket, if its holder writes the body.
    pub fn ticket(&self) -> Option<&str> {
        match &self.body {
            ResponseBody::HandedOver { ticket, .. } => Some(ticket),
            ResponseBody::Bytes(_) | ResponseBody::Streamed(..) | ResponseBody::Absent(_) => None,
        }
    }

    /// Sets the body. The caller sets its type with a header.
    #[must_use]
    pub fn with_body(mut self, body: Vec<u8>) -> Response {
        self.body = ResponseBody::Bytes(body);
        self
    }

    /// Sets a body of this length, which `write` produces while it is sent. If `write` fails, the rest of the body
    /// is filled with spaces.
    #[must_use]
    pub fn with_writer(
        mut self,
        length: u64,
        write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()> + Send + 'static,
    ) -> Response {
        self.body = ResponseBody::Streamed(length, Box::new(write));
        self
    }

    /// Removes the body, for answers to HEAD and for 304.
    #[must_use]
    pub fn without_body(mut self, length: Option<u64>) -> Response {
        self.body = ResponseBody::Absent(length);
        self
    }

    /// Returns the error code, if this is an error response.
    pub fn code(&self) -> Option<Code> {
        self.code
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// Returns whether sending the response cannot block, however slowly the client reads. The private socket
    /// buffers 200 KB (net.core.wmem_default), and the gate reads ahead while its client is behind.
    pub fn is_small(&self) -> bool {
        self.is_whole() || matches!(self.body, ResponseBody::HandedOver { .. })
    }

    /// Returns whether the response is small and complete, so that no worker is needed after it is sent.
    pub(super) fn is_whole(&self) -> bool {
        match &self.body {
            ResponseBody::Bytes(body) => body.len() <= ONE_WRITE,
            ResponseBody::Absent(_) => true,
            ResponseBody::Streamed(..) | ResponseBody::HandedOver { .. } => false,
        }
    }

    /// Sends the response. A small one is sent in one write: tiny_http would use two writes, each of which wakes the
    /// gate. tiny_http still handles the close of the connection.
    pub(super) fn send(self, without_body: bool, mut writer: impl std::io::Write) {
        let mut head = String::with_capacity(256);
        let _ = write!(head, "HTTP/1.1 {} {}\r\nX-Berth-Whole: 1\r\n", self.status, reason(self.status));
        // A proxied answer has its own date.
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("Date")) {
            head.push_str("Date: ");
            clock::push_http_date(&mut head);
            head.push_str("\r\n");
        }
        for (name, value) in &self.headers {
            // A control character in a header value could start another header.
            let value: String = value.chars().filter(|c| !c.is_control()).collect();
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let (mut made, mut left) = (None, 0);
        let body = match self.body {
            ResponseBody::Streamed(length, write) => {
                let _ = write!(head, "Content-Length: {length}\r\n");
                (made, left) = (Some(write), length);
                Vec::new()
            }
            ResponseBody::Bytes(body) => {
                // RFC 9110, 8.6: a 204 has no length, and a 304 may only declare the length of the corresponding
                // 200.
                if !matches!(self.status, 204 | 304) {
                    let _ = write!(head, "Content-Length: {}\r\n", body.len());
                }
                body
            }
            ResponseBody::Absent(length) => {
                if let Some(length) = length {
                    let _ = write!(head, "Content-Length: {length}\r\n");
                }
                Vec::new()
            }
            ResponseBody::HandedOver { ticket, length } => {
                let _ = match length {
                    Some(length) => write!(head, "Content-Length: {length}\r\n"),
                    None => write!(head, "Transfer-Encoding: chunked\r\n"),
                };
                let _ = write!(head, "X-Berth-Ticket: {ticket}\r\n");
                Vec::new()
            }
        };
        head.push_str("\r\n");
        let mut message = head.into_bytes();
        // An error means that the client has disconnected.
        let _ = if without_body {
            writer.write_all(&message)
        } else if let Some(write) = made {
            let mut buffered = std::io::BufWriter::with_capacity(ONE_WRITE, &mut writer);
            let _ = buffered.write_all(&message);
            let mut body = FixedLengthWriter { out: &mut buffered, left };
            if let Err(error) = write(&mut body) {
                log::debug!("An answer was truncated: {error}");
            }
            // The backend connection is reused, so as many bytes as declared must be sent. Trailing spaces keep JSON
            // valid.
            body.fill().and_then(|()| buffered.flush())
        } else if body.len() <= ONE_WRITE {
            message.extend_from_slice(&body);
            writer.write_all(&message)
        } else {
            writer.write_all(&message).and_then(|()| writer.write_all(&body))
        };
        let _ = writer.flush();
    }
}

/// Maximum number of warnings in headers (`WARNINGS`), and maximum number of characters of each (`WARNING_CHARS`).
/// Clients limit the total size of headers.
const WARNINGS: usize = 10;
const WARNING_CHARS: usize = 200;
/// Maximum size of a body that is parsed to add warnings.
const WARNED_BYTES: usize = 1 << 20;

/// Returns a JSON object with the warnings added. Returns `None` if the body is not an object or is too large.
fn with_warnings(body: &[u8], warnings: &[String]) -> Option<Vec<u8>> {
    if body.len() > WARNED_BYTES || body.first() != Some(&b'{') {
        return None;
    }
    let mut object: serde_json::Map<String, Value> = serde_json::from_slice(body).ok()?;
    let Value::Array(list) = object.entry("warnings").or_insert_with(|| Value::Array(Vec::new())) else {
        return None;
    };
    list.extend(warnings.iter().cloned().map(Value::String));
    serde_json::to_vec(&object).ok()
}

/// Maximum size of a body that is sent in one write with the head.
const ONE_WRITE: usize = 64 << 10;

/// Returns the reason phrase of a status code (RFC 9110, 15).
fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        507 => "Insufficient Storage",
        _ => "Other",
    }
}

/// A writer for a body of declared length. It rejects bytes beyond that length.
struct FixedLengthWriter<W> {
    out: W,
    left: u64,
}

impl<W: std::io::Write> FixedLengthWriter<W> {
    fn fill(&mut self) -> std::io::Result<()> {
        while self.left > 0 {
            let spaces = [b' '; 4096];
            let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(spaces.len());
            self.write_all(&spaces[..most])?;
        }
        Ok(())
    }
}

impl<W: std::io::Write> std::io::Write for FixedLengthWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if most == 0 && !bytes.is_empty() {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        let written = self.out.write(&bytes[..most])?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// A growing buffer. Once it is large, it grows by an eighth, because doubling wastes half the memory of an answer
/// of tens of megabytes.
struct ExactBuffer(Vec<u8>);

impl std::io::Write for ExactBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let missing = (self.0.len() + bytes.len()).saturating_sub(self.0.capacity());
        if missing > 0 {
            let step = if self.0.len() < 1 << 20 { self.0.len() } else { self.0.len() / 8 };
            self.0.reserve_exact(missing + step);
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
