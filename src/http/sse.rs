//! The encodings of events: server-sent events (HTML standard, 9.2) for browsers and `curl -N`, and JSON lines for
//! programs. Pure.

use std::io::Write as _;

use serde_json::{Map, Value};

use super::{Request, Response};
use crate::base::{Code, Error, Result};

/// The encoding of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventStreamFormat {
    /// `text/event-stream`.
    Sse,
    /// One JSON object per line.
    Ndjson,
}

impl EventStreamFormat {
    /// Parses the query parameter `stream`. Returns `None` if it is absent.
    ///
    /// # Errors
    /// `InvalidRequest` for a value other than `sse` and `ndjson`.
    pub fn from_request(request: &Request) -> Result<Option<EventStreamFormat>> {
        match request.query("stream").as_deref() {
            None => Ok(None),
            Some("sse") => Ok(Some(EventStreamFormat::Sse)),
            Some("ndjson") => Ok(Some(EventStreamFormat::Ndjson)),
            Some(other) => Err(Error::new(
                Code::InvalidRequest,
                format!("Query parameter 'stream' must be sse or ndjson, not '{}'", other.escape_debug()),
            )),
        }
    }

    fn content_type(self) -> &'static str {
        match self {
            EventStreamFormat::Sse => "text/event-stream",
            EventStreamFormat::Ndjson => "application/x-ndjson",
        }
    }

    /// Adds the headers of an event stream to a response.
    pub fn head(self, response: Response) -> Response {
        // Proxies must neither cache nor buffer an event stream. nginx obeys X-Accel-Buffering.
        let response = response.with("Content-Type", self.content_type());
        response.with("Cache-Control", "no-store").with("X-Accel-Buffering", "no")
    }

    /// Returns the first bytes of a stream. For server-sent events they set the delay after which a browser
    /// reconnects.
    pub fn opening(self) -> &'static [u8] {
        match self {
            EventStreamFormat::Sse => b"retry: 1000\n\n",
            EventStreamFormat::Ndjson => b"",
        }
    }

    /// Returns a message without content that keeps the stream alive.
    pub fn heartbeat(self) -> &'static [u8] {
        match self {
            EventStreamFormat::Sse => b": ping\n\n",
            EventStreamFormat::Ndjson => b"{\"event\":\"ping\"}\n",
        }
    }

    /// Appends an event. JSON escapes line breaks, so the data fits into one `data` line.
    pub fn write(self, out: &mut Vec<u8>, event: &str, id: &str, data: Map<String, Value>) {
        // Writing to a vector cannot fail, and serializing a map with string keys cannot fail.
        let _ = match self {
            EventStreamFormat::Sse => {
                let _ = write!(out, "event: {event}\nid: {id}\ndata: ");
                let _ = serde_json::to_writer(&mut *out, &data);
                out.write_all(b"\n\n")
            }
            EventStreamFormat::Ndjson => {
                let mut line = Map::from_iter([("event".into(), event.into()), ("id".into(), id.into())]);
                line.extend(data);
                let _ = serde_json::to_writer(&mut *out, &line);
                out.write_all(b"\n")
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_carry_the_same_data() {
        let data = || Map::from_iter([("text".to_owned(), Value::from("a\nb\u{2028}"))]);
        let written = |format: EventStreamFormat| {
            let mut out = Vec::new();
            format.write(&mut out, "stdout", "3:0", data());
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(EventStreamFormat::Sse),
            "event: stdout\nid: 3:0\ndata: {\"text\":\"a\\nb\u{2028}\"}\n\n"
        );
        let line = written(EventStreamFormat::Ndjson);
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["event"], &line["id"], &line["text"]),
            (&"stdout".into(), &"3:0".into(), &"a\nb\u{2028}".into())
        );
    }
}
