//! The output of a run as an event stream, or a part of it as a body, written to the client's own socket by a
//! `stream-N` thread. The names and fields of events are defined here.

use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::base::limits;
use crate::base::redact::Redactor;
use crate::http::client::ClientSocket;
use crate::http::sse::EventStreamFormat;
use crate::http::stream::StreamBody;
use crate::proc::waiter::WakeReason;
use crate::runs::follow::{OutputFollower, OutputPiece, PIECE};
use crate::runs::run::RunError;
use crate::runs::spool::{OutputStream, Position};
use crate::runs::{RunStatus, Runs};

/// The suffix of the last event's id, `exit` or `failed`: a browser that reconnects with it needs nothing more. The
/// event is not called `error`, because EventSource uses that name itself.
const EXIT_MARK: &str = ":exit";

/// Where a client continues that has received everything up to an event; `None` inside if it has received everything.
pub(super) fn resume(id: &str) -> Option<Option<Position>> {
    match id.strip_suffix(EXIT_MARK) {
        Some(position) => Position::parse(position).map(|_| None),
        None => Position::parse(id).map(Some),
    }
}

/// Sends events until the run ends, the server stops, or the client disconnects; returns `false` for a disconnect.
pub(super) fn events(
    socket: ClientSocket,
    mut follower: OutputFollower,
    format: EventStreamFormat,
    runs: &Runs,
    redactor: Option<&Redactor>,
) -> bool {
    let mut body = StreamBody::new(socket);
    let mut buffer = vec![0; PIECE];
    let mut out = format.opening().to_vec();
    let status = |out: &mut Vec<u8>, follower: &OutputFollower, name: &str, id: String| {
        let mut data = object(json!({ "run": follower.run().view() }));
        if let Some(redactor) = redactor {
            redactor.fields(&mut data);
        }
        format.write(out, name, &id, data);
    };
    status(&mut out, &follower, "status", follower.at().to_string());
    loop {
        let piece = match follower.next_text(&mut buffer) {
            Ok(piece) => piece,
            Err(error) => {
                // The client detects the truncated stream.
                log::error!("run {}: {error}", follower.run().id);
                return true;
            }
        };
        let id = follower.at().to_string();
        match piece {
            OutputPiece::Bytes(stream, offset, n) => {
                format.write(&mut out, stream.as_str(), &id, chunk(offset, &buffer[..n]));
            }
            OutputPiece::Missed(stream, from, to) => {
                let data = json!({ "stream": stream, "from": from, "to": to });
                format.write(&mut out, "missed", &id, object(data));
            }
            OutputPiece::End => {
                let id = id + EXIT_MARK;
                match follower.run().end().filter(|end| end.status == RunStatus::Failed) {
                    // The run has no exit status: it never started, or its end is unknown.
                    Some(end) => format.write(&mut out, "failed", &id, failure(end.error, &follower)),
                    None => status(&mut out, &follower, "exit", id),
                }
                return body.send(&out).and_then(|()| body.end()).is_ok();
            }
            OutputPiece::Nothing => {}
        }
        if piece != OutputPiece::Nothing && out.len() < limits::EVENT_BYTES {
            continue;
        }
        if body.send(&out).is_err() {
            return false;
        }
        out.clear();
        if piece != OutputPiece::Nothing {
            continue;
        }
        // Other runs are killed, and their followers see the end.
        if runs.is_stopping() && follower.run().spec.detach {
            status(&mut out, &follower, "status", id);
            return body.send(&out).and_then(|()| body.end()).is_ok();
        }
        let deadline = Instant::now() + limits::HEARTBEAT;
        match follower.wait(Some((body.client(), StreamBody::GONE)), deadline) {
            Ok(WakeReason::Notified) => {}
            Ok(WakeReason::TimedOut) => out.extend_from_slice(format.heartbeat()),
            Ok(WakeReason::OtherReady) => return false,
            Err(error) => {
                log::error!("run {}: {error}", follower.run().id);
                return true;
            }
        }
    }
}

/// Writes the available output, which the head declared as `length` bytes; aborts if some of it is dropped before it
/// is read.
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

/// Reads the next bytes of one stream or of both.
pub(super) fn read(
    follower: &mut OutputFollower,
    stream: Option<OutputStream>,
    buffer: &mut [u8],
) -> Option<usize> {
    loop {
        match follower.next_bytes_of(stream, buffer) {
            Ok(OutputPiece::Bytes(_, _, n)) => return Some(n),
            // For one stream, the declared length ends at a gap; for both, it skips gaps.
            Ok(OutputPiece::Missed(..)) if stream.is_none() => {}
            Ok(_) => return None,
            Err(error) => {
                log::error!("run {}: {error}", follower.run().id);
                return None;
            }
        }
    }
}

/// Why a run has no exit status.
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

/// Bytes of a stream: as text if they are UTF-8, otherwise in base64, so that no byte is changed.
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
