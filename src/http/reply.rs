//! Replies: status, headers, body; shaped once, sent once.

use std::io::Cursor;

use serde::Serialize;

use crate::base::{Code, Error, limits};

/// An answer in the making.
#[derive(Debug)]
pub struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

impl Response {
    /// No body.
    pub fn empty(status: u16) -> Response {
        Response { status, headers: Vec::new(), body: Vec::new() }
    }

    /// 200 with `value` as JSON.
    pub fn ok(value: &impl Serialize) -> Response {
        Response::json(200, value)
    }

    /// 200 with a sentence, where the observed API answers one.
    pub fn sentence(text: String) -> Response {
        Response::empty(200).with("Content-Type", TEXT).with_body(text.into_bytes())
    }

    /// `value` as JSON. Written in two passes, so that a large answer takes exactly its size of memory.
    pub fn json(status: u16, value: &impl Serialize) -> Response {
        let mut count = Count(0);
        let mut body = Vec::new();
        let written = serde_json::to_writer(&mut count, value).and_then(|()| {
            body.reserve_exact(count.0);
            serde_json::to_writer(&mut body, value)
        });
        match written {
            Ok(()) => Response::empty(status).with("Content-Type", JSON).with_body(body),
            Err(error) => Response::error(&Error::internal("The answer could not be written").because(error)),
        }
    }

    /// The reply of an error. Sources stay in the log.
    pub fn error(error: &Error) -> Response {
        let response = Response::json(error.code().status(), &error.body());
        match error.code() {
            Code::Busy | Code::ShuttingDown | Code::ContainerStopped => {
                response.with("Retry-After", limits::RETRY_AFTER_SECS.to_string())
            }
            _ => response,
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    fn with_body(mut self, body: Vec<u8>) -> Response {
        self.body = body;
        self
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    pub(super) fn send(self, request: tiny_http::Request) {
        let length = self.body.len();
        let headers = self
            .headers
            .iter()
            .filter_map(|(name, value)| tiny_http::Header::from_bytes(name.as_bytes(), value.as_bytes()).ok())
            .collect();
        // Always with a Content-Length: tiny_http would switch to chunks at 32 KiB, which plain clients like less.
        let response = tiny_http::Response::new(
            tiny_http::StatusCode(self.status),
            headers,
            Cursor::new(self.body),
            Some(length),
            None,
        )
        .with_chunked_threshold(usize::MAX);
        // The client is gone: nobody is left to be told.
        let _ = request.respond(response);
    }
}

struct Count(usize);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
