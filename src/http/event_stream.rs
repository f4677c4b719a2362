//! The loop that sends an event stream to a client. It batches events, sends heartbeats while there are no events,
//! and ends when the client disconnects. Independent of the origin of the events.
//!
//! Threads: one `stream-N` per stream.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::event::PollFlags;

use super::client::ClientSocket;
use super::sse::EventStreamFormat;
use super::stream::StreamBody;
use crate::base::{Error, Result, limits};
use crate::proc::waiter::WakeReason;

/// The result of [`EventSource::next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamProgress {
    /// An event was appended.
    Appended,
    /// The source has no further event at the moment.
    Idle,
    /// The last event was appended.
    Finished,
}

/// A source of events for a stream.
pub trait EventSource {
    /// Appends the next event to `out`.
    ///
    /// # Errors
    /// Any error aborts the stream, so that the client detects the truncation.
    fn next(&mut self, out: &mut Vec<u8>) -> Result<StreamProgress>;

    /// Waits until the source may have another event, until `client` is ready, or until the deadline.
    ///
    /// # Errors
    /// Any error aborts the stream.
    fn wait(&mut self, client: (BorrowedFd<'_>, PollFlags), deadline: Instant) -> Result<WakeReason>;
}

/// How a stream ended.
#[derive(Debug)]
pub enum StreamEnd {
    /// The client received every event.
    Complete,
    Disconnected,
    /// The source of the events failed.
    Failed(Error),
}

/// Sends `out`, then the events of `source`. Returns when the stream has ended, with the reason.
pub fn send_events(
    socket: ClientSocket,
    format: EventStreamFormat,
    mut out: Vec<u8>,
    source: &mut impl EventSource,
) -> StreamEnd {
    let mut body = StreamBody::new(socket);
    loop {
        let progress = match source.next(&mut out) {
            Ok(progress) => progress,
            Err(error) => return StreamEnd::Failed(error),
        };
        if progress == StreamProgress::Appended && out.len() < limits::EVENT_BYTES {
            continue;
        }
        if body.send(&out).is_err() {
            return StreamEnd::Disconnected;
        }
        out.clear();
        match progress {
            StreamProgress::Appended => continue,
            StreamProgress::Finished => {
                return if body.end().is_ok() { StreamEnd::Complete } else { StreamEnd::Disconnected };
            }
            StreamProgress::Idle => {}
        }
        match source.wait((body.client(), StreamBody::GONE), Instant::now() + limits::HEARTBEAT) {
            Ok(WakeReason::Notified) => {}
            Ok(WakeReason::TimedOut) => out.extend_from_slice(format.heartbeat()),
            Ok(WakeReason::OtherReady) => return StreamEnd::Disconnected,
            Err(error) => return StreamEnd::Failed(error),
        }
    }
}
