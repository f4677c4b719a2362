//! The output of a run, as an event stream or (a part of it) as a body. A `stream-N` thread writes it to the
//! client's own socket. This module defines the names and fields of the events.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::event::PollFlags;
use serde_json::{Map, Value, json};

use crate::base::Result;
use crate::base::redact::Redactor;
use crate::http::client::ClientSocket;
use crate::http::event_stream::{self, EventSource, StreamEnd, StreamProgress};
use crate::http::sse::EventStreamFormat;
use crate::http::stream::StreamBody;
use crate::proc::waiter::WakeReason;
use crate::runs::follow::{OutputFollower, OutputPiece, PIECE};
use crate::runs::run::RunError;
use crate::runs::spool::{OutputStream, Position};
use crate::runs::{RunStatus, Runs};

/// The suffix of the id of the last event, `exit` or `failed`. A browser that reconnects with such an id has
/// received everything. The event is not called `error`, because EventSource uses that name for its own events.
const EXIT_MARK: &str = ":exit";

/// Returns the position from which a client resumes after the event `id`: `Some(None)` if no event remains, `None`
/// for an invalid id.
pub(super) fn resume(id: &str) -> Option<Option<Position>> {
    match id.strip_suffix(EXIT_MARK) {
        Some(position) => Position::parse(position).map(|_| None),
        None => Position::parse(id).map(Some),
    }
}

/// Sends events until the run ends, the server stops, or the client disconnects. Returns `false` if the client
/// disconnected.
pub(super) fn events(
    socket: ClientSocket,
    follower: OutputFollower,
    format: EventStreamFormat,
    runs: &Runs,
    redactor: Option<&Redactor>,
) -> bool {
    let mut source = RunSource { follower, format, runs, redactor, buffer: vec![0; PIECE] };
    let mut out = format.opening().to_vec();
    source.write_status(&mut out, "status", source.follower.at().to_string());
    match event_stream::send_events(socket, format, out, &mut source) {
        StreamEnd::Complete => true,
        StreamEnd::Disconnected => false,
        StreamEnd::Failed(error) => {
            log::error!("run {}: {error}", source.follower.run().id);
            true
        }
    }
}

/// The source of events for the output and the status changes of a run.
struct RunSource<'a> {
    follower: OutputFollower,
    format: EventStreamFormat,
    runs: &'a Runs,
    redactor: Option<&'a Redactor>,
    buffer: Vec<u8>,
}

impl RunSource<'_> {
    fn write_status(&self, out: &mut Vec<u8>, event: &str, id: String) {
        let mut data = object(json!({ "run": self.follower.run().view() }));
        if let Some(redactor) = self.redactor {
            redactor.fields(&mut data);
        }
        self.format.write(out, event, &id, data);
    }
}

impl EventSource for RunSource<'_> {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<StreamProgress> {
        let piece = self.follower.next_text(&mut self.buffer)?;
        let id = self.follower.at().to_string();
        Ok(match piece {
            OutputPiece::Bytes(stream, offset, n) => {
                self.format.write(out, stream.as_str(), &id, chunk(offset, &self.buffer[..n]));
                StreamProgress::Appended
            }
            OutputPiece::Missed(stream, from, to) => {
                let data = json!({ "stream": stream, "from": from, "to": to });
                self.format.write(out, "missed", &id, object(data));
                StreamProgress::Appended
            }
            OutputPiece::End => {
                let id = id + EXIT_MARK;
                match self.follower.run().end().filter(|end| end.status == RunStatus::Failed) {
                    // The run has no exit status, because it never started or its end is unknown.
                    Some(end) => self.format.write(out, "failed", &id, failure(end.error, &self.follower)),
                    None => self.write_status(out, "exit", id),
                }
                StreamProgress::Finished
            }
            // The server kills all other runs when it stops, so their followers receive the end of the run.
            OutputPiece::Nothing if self.runs.is_stopping() && self.follower.run().spec.detach => {
                self.write_status(out, "status", id);
                StreamProgress::Finished
            }
            OutputPiece::Nothing => StreamProgress::Idle,
        })
    }

    fn wait(&mut self, client: (BorrowedFd<'_>, PollFlags), deadline: Instant) -> Result<WakeReason> {
        self.follower.wait(Some(client), deadline)
    }
}

/// Writes the available output, which the head declared as `length` bytes. Aborts the body if some of the output is
/// dropped before this thread has read it.
pub(super) fn stretch(
    socket: ClientSocket,
    mut follower: OutputFollower,
    stream: Option<OutputStream>,
    length: u64,
) {
    let mut body = StreamBody::new(socket);
    let mut buffer = vec![0; 4 * PIECE];
    let mut left = length;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        match read(&mut follower, stream, &mut buffer[..most]) {
            Some(n) if body.send(&buffer[..n]).is_ok() => left -= n as u64,
            _ => return,
        }
    }
    let _ = body.end();
}

/// Reads the next bytes of one stream, or of both if `stream` is `None`.
pub(super) fn read(
    follower: &mut OutputFollower,
    stream: Option<OutputStream>,
    buffer: &mut [u8],
) -> Option<usize> {
    loop {
        match follower.next_bytes_of(stream, buffer) {
            Ok(OutputPiece::Bytes(_, _, n)) => return Some(n),
            // For one stream, a gap ends the output, because the declared length includes the gap. For both streams,
            // gaps are skipped.
            Ok(OutputPiece::Missed(..)) if stream.is_none() => {}
            Ok(_) => return None,
            Err(error) => {
                log::error!("run {}: {error}", follower.run().id);
                return None;
            }
        }
    }
}

/// Describes why a run has no exit status.
fn failure(why: Option<RunError>, follower: &OutputFollower) -> Map<String, Value> {
    let unknown =
        || RunError { code: "interrupted".to_owned(), message: "How the run ended is not known".to_owned() };
    let why = why.unwrap_or_else(unknown);
    object(json!({ "code": why.code, "message": why.message, "run": follower.run().view() }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Describes bytes of a stream: as text if they are UTF-8, otherwise in base64, so that no byte is changed.
fn chunk(offset: u64, bytes: &[u8]) -> Map<String, Value> {
    let mut data = Map::new();
    data.insert("offset".into(), offset.into());
    data.insert("bytes".into(), bytes.len().into());
    match std::str::from_utf8(bytes) {
        Ok(text) => data.insert("text".into(), text.into()),
        Err(_) => data.insert("base64".into(), BASE64_STANDARD.encode(bytes).into()),
    };
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_give_the_position_to_resume() {
        assert_eq!(resume("7:0"), Some(Some(Position { out: 7, err: 0 })));
        assert_eq!(resume("7:0:exit"), Some(None));
        for id in ["", "7", ":", "7:", "7:0:", "-1:0", "+1:0", "7:0:x", "99999999999999999999:0", "x:exit"] {
            assert_eq!(resume(id), None, "{id}");
        }
    }

    #[test]
    fn every_byte_is_preserved() {
        assert_eq!(chunk(3, "é\0".as_bytes())["text"], "é\0");
        assert_eq!(chunk(3, b"\xff")["base64"], "/w==");
    }
}
