//! A topic of the bus as a stream of events, written to the client's own socket by a `stream-N` thread. Knows nothing of
//! what the events mean.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::{Ctx, view};
use crate::base::redact::Redactor;
use crate::base::{Code, Error, Result, limits};
use crate::events::{NextEvent, Subscriber, Topic};
use crate::http::client::ClientSocket;
use crate::http::sse::EventStreamFormat;
use crate::http::stream::StreamBody;
use crate::http::{Answer, Method, Request, Response};
use crate::proc::waiter::WakeReason;

/// What comes first on a fresh stream.
type OpeningEvent = (&'static str, Map<String, Value>);

/// Streams the topic: what is kept of it behind `Last-Event-ID` (or `?since=`), or all of that without, then what
/// happens, as SSE or with `?stream=ndjson`. `opening` is an event of number 0 that comes first, on a fresh stream only.
///
/// # Errors
/// `InvalidRequest` for an id that is no number; `Busy`.
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

/// The same for a topic whose past says less than `state`, which tells how things stand: it opens a fresh stream, and what
/// happens from then on follows.
///
/// # Errors
/// As above.
pub fn stream_from_now(
    ctx: &Ctx,
    request: &Request,
    topic: &Arc<Topic>,
    state: impl FnOnce() -> OpeningEvent,
) -> Result<Answer> {
    let cursor = cursor(request)?;
    // Followed before it is looked at, so that nothing happens in between: it may be told twice, never not at all.
    let follower = topic.follow(cursor)?;
    // A client that comes back with this number misses nothing.
    let opening = cursor.is_none().then(|| (follower.position(), state()));
    start(ctx, request, follower, opening)
}

fn cursor(request: &Request) -> Result<Option<u64>> {
    let id = request.header("Last-Event-ID").map(str::to_owned).or_else(|| request.query("since"));
    match id.as_deref().filter(|id| !id.is_empty()).map(|id| id.parse::<u64>().map_err(|_| id)) {
        None => Ok(None),
        Some(Ok(cursor)) => Ok(Some(cursor)),
        Some(Err(id)) => {
            let message =
                format!("Last-Event-ID is the id of an event, a number, not '{}'", id.escape_debug());
            Err(Error::new(Code::InvalidRequest, message))
        }
    }
}

fn start(
    ctx: &Ctx,
    request: &Request,
    follower: Subscriber,
    opening: Option<(u64, OpeningEvent)>,
) -> Result<Answer> {
    let format = EventStreamFormat::from_request(request)?.unwrap_or(EventStreamFormat::Sse);
    if request.method() == Method::Head {
        return Ok(Answer::Now(super::runs::streamed(Response::empty(200), format)));
    }
    let redactor = view::redactor(ctx, request);
    let mut out = format.opening().to_vec();
    if let Some((number, (kind, mut data))) = opening {
        if let Some(redactor) = &redactor {
            redactor.fields(&mut data);
        }
        format.write(&mut out, kind, &number.to_string(), data);
    }
    let place = ctx.stream_permit(request.party())?;
    let ticket = ctx
        .tickets
        .issue(move |socket, _| place.run(move || follow(socket, follower, format, out, redactor)))?;
    Ok(Answer::Now(super::runs::streamed(Response::handed_over(ticket, None), format)))
}

fn follow(
    socket: ClientSocket,
    mut follower: Subscriber,
    format: EventStreamFormat,
    mut out: Vec<u8>,
    redactor: Option<Redactor>,
) {
    let mut body = StreamBody::new(socket);
    loop {
        let next = follower.read_next();
        match &next {
            NextEvent::Event(event) => {
                let mut data = event.data.clone();
                if let Some(redactor) = &redactor {
                    redactor.fields(&mut data);
                }
                format.write(&mut out, event.kind, &event.seq.to_string(), data);
            }
            NextEvent::Missed { from, to } => {
                let data = Map::from_iter([("from".into(), json!(from)), ("to".into(), json!(to))]);
                format.write(&mut out, "missed", &to.to_string(), data);
            }
            NextEvent::Ended => {
                format.write(&mut out, "end", &follower.position().to_string(), Map::new());
                let _ = body.send(&out).and_then(|()| body.end());
                return;
            }
            NextEvent::Nothing => {}
        }
        if next != NextEvent::Nothing && out.len() < limits::EVENT_BYTES {
            continue;
        }
        if body.send(&out).is_err() {
            return;
        }
        out.clear();
        if next != NextEvent::Nothing {
            continue;
        }
        match follower.wait(Some((body.client(), StreamBody::GONE)), Instant::now() + limits::HEARTBEAT) {
            Ok(WakeReason::Notified) => {}
            Ok(WakeReason::TimedOut) => out.extend_from_slice(format.heartbeat()),
            Ok(WakeReason::OtherReady) => return,
            Err(error) => return log::error!("an event stream: {error}"),
        }
    }
}
