//! Sends a topic of the event bus as an event stream. A `stream-N` thread writes it to the client's own socket.
//! Independent of the meaning of the events.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::PollFlags;
use serde_json::{Map, Value, json};

use super::{Ctx, viewer_redaction};
use crate::base::redact::Redactor;
use crate::base::{Code, Error, Result};
use crate::events::{NextEvent, Subscriber, Topic};
use crate::http::event_stream::{self, EventSource, StreamEnd, StreamProgress};
use crate::http::sse::EventStreamFormat;
use crate::http::{Answer, Method, Request, Response};
use crate::proc::waiter::WakeReason;

/// The name and data of the first event of a new stream.
type OpeningEvent = (&'static str, Map<String, Value>);

/// Streams a topic as SSE or, with `?stream=ndjson`, as JSON lines. The stream has the kept events after
/// `Last-Event-ID` (or `?since=`), or all kept events if there is no such id, and then new events. A new stream
/// starts with `opening`, as event 0.
///
/// # Errors
/// `InvalidRequest` if the id is not a number; `Busy` if no stream worker is free.
pub fn stream(
    ctx: &Ctx,
    request: &Request,
    topic: &Arc<Topic>,
    opening: Option<OpeningEvent>,
) -> Result<Answer> {
    let cursor = cursor(request)?;
    let opening = opening.filter(|_| cursor.is_none());
    start(ctx, request, topic.follow_kept(cursor)?, opening.map(|opening| (0, opening)))
}

/// Streams a topic like [`stream`], if its state is more useful than its past events: a new stream starts with
/// `state`, followed by new events.
///
/// # Errors
/// Fails like [`stream`].
pub fn stream_from_now(
    ctx: &Ctx,
    request: &Request,
    topic: &Arc<Topic>,
    state: impl FnOnce() -> OpeningEvent,
) -> Result<Answer> {
    let cursor = cursor(request)?;
    // The subscription precedes reading the state, so that no event is lost. An event may be reported twice.
    let subscriber = topic.follow(cursor)?;
    // A client that reconnects with this number as the last id misses nothing.
    let opening = cursor.is_none().then(|| (subscriber.position(), state()));
    start(ctx, request, subscriber, opening)
}

fn cursor(request: &Request) -> Result<Option<u64>> {
    let id = request.header("Last-Event-ID").map(str::to_owned).or_else(|| request.query("since"));
    match id.as_deref().filter(|id| !id.is_empty()).map(|id| id.parse::<u64>().map_err(|_| id)) {
        None => Ok(None),
        Some(Ok(cursor)) => Ok(Some(cursor)),
        Some(Err(id)) => {
            let message =
                format!("Last-Event-ID must be the number of an event, not '{}'", id.escape_debug());
            Err(Error::new(Code::InvalidRequest, message))
        }
    }
}

fn start(
    ctx: &Ctx,
    request: &Request,
    subscriber: Subscriber,
    opening: Option<(u64, OpeningEvent)>,
) -> Result<Answer> {
    let format = EventStreamFormat::from_request(request)?.unwrap_or(EventStreamFormat::Sse);
    if request.method() == Method::Head {
        return Ok(Answer::Now(format.head(Response::empty(200))));
    }
    let redactor = viewer_redaction::redactor(ctx, request);
    let mut out = format.opening().to_vec();
    if let Some((number, (kind, mut data))) = opening {
        if let Some(redactor) = &redactor {
            redactor.fields(&mut data);
        }
        format.write(&mut out, kind, &number.to_string(), data);
    }
    let permit = ctx.stream_permit(request.party())?;
    let mut source = TopicSource { subscriber, format, redactor };
    let ticket = ctx.tickets.issue(move |socket, _| {
        permit.run(move || {
            if let StreamEnd::Failed(error) = event_stream::send_events(socket, format, out, &mut source) {
                log::error!("An event stream failed: {error}");
            }
        });
    })?;
    Ok(Answer::Now(format.head(Response::handed_over(ticket, None))))
}

/// The source of the events of a topic, with secrets redacted.
struct TopicSource {
    subscriber: Subscriber,
    format: EventStreamFormat,
    redactor: Option<Redactor>,
}

impl EventSource for TopicSource {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<StreamProgress> {
        Ok(match self.subscriber.read_next() {
            NextEvent::Event(event) => {
                let mut data = event.data.clone();
                if let Some(redactor) = &self.redactor {
                    redactor.fields(&mut data);
                }
                self.format.write(out, event.kind, &event.seq.to_string(), data);
                StreamProgress::Appended
            }
            NextEvent::Missed { from, to } => {
                let data = Map::from_iter([("from".into(), json!(from)), ("to".into(), json!(to))]);
                self.format.write(out, "missed", &to.to_string(), data);
                StreamProgress::Appended
            }
            NextEvent::Ended => {
                self.format.write(out, "end", &self.subscriber.position().to_string(), Map::new());
                StreamProgress::Finished
            }
            NextEvent::Nothing => StreamProgress::Idle,
        })
    }

    fn wait(&mut self, client: (BorrowedFd<'_>, PollFlags), deadline: Instant) -> Result<WakeReason> {
        self.subscriber.wait(Some(client), deadline)
    }
}
