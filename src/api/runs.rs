//! `/api/workspaces/:id/runs`: commands that can outlive the request that started them.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::event::PollFlags;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::{Ctx, follow, reserve_stream, viewer_redaction};
use crate::base::ids::{parse_uuid, parse_uuid_of};
use crate::base::input_bytes::InputBytes;
use crate::base::pool::Permit;
use crate::base::shares::ShareHolder;
use crate::base::{Code, Error, Result, limits};
use crate::http::client::Tickets;
use crate::http::sse::EventStreamFormat;
use crate::http::{Answer, Method, Reply, Request, Response};
use crate::proc::waiter::WakeReason;
use crate::proc::{Cancel, SignalTarget};
use crate::runs::follow::{OutputFollower, wait_end};
use crate::runs::spool::{OutputStream, Position};
use crate::runs::{ExecRequest, Run, RunStatus, RunView, signal};

/// How long a deletion waits until the processes that it kills have ended.
const RUN_ENDING: Duration = Duration::from_secs(15);

fn find(ctx: &Ctx, request: &Request) -> Result<Arc<Run>> {
    let workspace = parse_uuid(request.param("id"))?;
    let list = format!("GET /api/workspaces/{workspace}/runs");
    ctx.lifecycle.runs().get(workspace, parse_uuid_of(request.param("run"), "run", &list)?)
}

/// `POST /api/workspaces/:id/runs`
pub fn create(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let id = parse_uuid(request.param("id"))?;
    let body: ExecRequest = request.json_of(limits::EXEC_BODY_BYTES, &ExecRequest::known())?;
    if let Some(warning) = body.run_clamped() {
        request.warn(warning);
    }
    let (soft, timeout) = (body.soft_timeout()?, body.run_timeout()?);
    let party = request.party();
    let waiter = soft.map(|soft| Ok((ctx.stream_permit(party)?, Cancel::new()?, soft))).transpose()?;
    let accepted = ctx.lifecycle.accept_run(id, body, timeout, party)?;
    let cancel = waiter.as_ref().map(|(_, disconnected, _)| disconnected.clone());
    let work = Box::new(move |reply: Reply| {
        let run = accepted.run().clone();
        let started = match accepted.start() {
            Ok(started) => started,
            Err(error) => return reply.send(Err(error)),
        };
        let created = move |run: &Run| {
            let place = format!("/api/workspaces/{id}/runs/{}", run.id);
            Response::json(201, &run.view()).with("Location", place)
        };
        match waiter {
            None => reply.send_early(Ok(created(&run))),
            Some((permit, disconnected, soft)) => permit.run(move || {
                let waited = wait_end(&run, Some(disconnected.as_fd()), Instant::now() + soft);
                reply.send(waited.map(|()| created(&run)));
            }),
        }
        started.watch();
    });
    Ok(Answer::Later { work, cancel })
}

/// `POST /api/workspaces/:id/exec?stream=…`: starts a run and streams its output to the client. The run is killed
/// when the client disconnects.
pub(super) fn exec_stream(
    ctx: &Ctx,
    id: Uuid,
    body: ExecRequest,
    format: EventStreamFormat,
    party: ShareHolder,
) -> Result<Answer> {
    body.check_exec()?;
    let timeout = body.exec_timeout()?;
    let permit = ctx.stream_permit(party)?;
    let accepted = ctx.lifecycle.accept_run(id, body, timeout, party)?;
    let (tickets, runs) = (ctx.tickets.clone(), ctx.lifecycle.runs().clone());
    let cancel = accepted.run().cancel.clone();
    let work = Box::new(move |mut reply: Reply| {
        let run = accepted.run().clone();
        let started = match accepted.start() {
            Ok(started) => started,
            Err(error) => return reply.send(Err(error)),
        };
        // Until the socket is handed over, the gate detects a disconnect of the client.
        let watch = reply.take_watch();
        let ticket = OutputFollower::new(run.clone(), Position::default()).and_then(|follower| {
            tickets.issue(move |socket, _| {
                permit.run(move || {
                    drop(watch);
                    let run = run.clone();
                    if !follow::events(socket, follower, format, &runs, None) {
                        run.cancel.cancel();
                    }
                });
            })
        });
        reply.send(ticket.map(|ticket| format.head(Response::handed_over(ticket, None))));
        started.watch();
    });
    Ok(Answer::Later { work, cancel: Some(cancel) })
}

/// `GET /api/workspaces/:id/runs`, with the filters `?status=` and `?tag=`.
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = parse_uuid(request.param("id"))?;
    let (status, tag) = (request.query("status"), request.query("tag"));
    if let Some(other) =
        status.as_deref().filter(|status| !RunStatus::ALL.iter().any(|known| known.as_str() == *status))
    {
        let known = RunStatus::ALL.map(RunStatus::as_str).join(", ");
        let message = format!("status is one of {known}, not '{}'", other.escape_debug());
        return Err(Error::new(Code::InvalidRequest, message));
    }
    let wanted = |run: &&Arc<Run>| {
        status.as_ref().is_none_or(|status| run.status().as_str() == status)
            && tag.as_ref().is_none_or(|tag| run.spec.tag.as_ref() == Some(tag))
    };
    let runs = ctx.lifecycle.runs().list(workspace);
    Ok(Answer::Now(Response::ok(&runs.iter().filter(wanted).map(|run| run.view()).collect::<Vec<RunView>>())))
}

/// `GET /api/workspaces/:id/runs/:run`
pub fn get(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(&find(ctx, request)?.view())))
}

/// `DELETE /api/workspaces/:id/runs/:run`
pub fn delete(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let run = find(ctx, request)?;
    let runs = ctx.lifecycle.runs().clone();
    let work = move || match runs.remove(&run, RUN_ENDING) {
        true => Ok(Response::empty(204)),
        false => Err(Error::internal("The run did not end after SIGKILL")),
    };
    Ok(Answer::later(work, None))
}

#[derive(Deserialize)]
struct SignalBody {
    signal: SignalName,
    #[serde(default)]
    to: SignalScope,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SignalName {
    Name(String),
    Number(i32),
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SignalScope {
    #[default]
    All,
    Main,
}

/// `POST /api/workspaces/:id/runs/:run/signal`
pub fn signal(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let run = find(ctx, request)?;
    let body: SignalBody = request.json(limits::JSON_BODY_BYTES)?;
    let signal = match body.signal {
        SignalName::Name(name) => signal::parse(&name)?,
        SignalName::Number(number) => signal::parse(&number.to_string())?,
    };
    let whom = match body.to {
        SignalScope::All => SignalTarget::Group,
        SignalScope::Main => SignalTarget::Leader,
    };
    run.signal(signal, whom)?;
    Ok(Answer::Now(Response::ok(&run.view())))
}

#[derive(Deserialize)]
struct StdinBody {
    data: Option<String>,
    data_base64: Option<String>,
    #[serde(default)]
    eof: bool,
}

/// `POST /api/workspaces/:id/runs/:run/stdin`
pub fn stdin(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let run = find(ctx, request)?;
    let mut eof = request.query_flag("eof")?;
    let is_json = request.header("Content-Type").is_some_and(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    });
    let bytes = if is_json {
        let body: StdinBody = request.json(limits::EXEC_BODY_BYTES)?;
        eof |= body.eof;
        match (body.data, body.data_base64) {
            (Some(text), None) => InputBytes::from_vec(text.into_bytes())?,
            (None, Some(text)) => InputBytes::from_vec(BASE64_STANDARD.decode(text).map_err(|error| {
                Error::new(Code::InvalidPayload, format!("data_base64 is not base64: {error}"))
            })?)?,
            (None, None) if eof => InputBytes::Memory(Vec::new()),
            _ => return Err(Error::new(Code::InvalidPayload, "Give either data or data_base64")),
        }
    } else {
        request.parcel(limits::EXEC_BODY_BYTES)?
    };
    let disconnected = Cancel::new()?;
    let cancel = disconnected.clone();
    let work = move || {
        let taken = run.input.write_input(&bytes, eof, Some(&disconnected))?;
        Ok(Response::ok(&json!({ "bytes_taken": taken, "stdin_open": run.input.is_open() })))
    };
    Ok(Answer::later(work, Some(cancel)))
}

/// `POST /api/workspaces/:id/runs/:run/wait`
pub fn wait(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let run = find(ctx, request)?;
    let patience = seconds(request, "timeout_secs")?.unwrap_or(limits::WAIT);
    if !run.is_running() {
        return Ok(Answer::Now(Response::ok(&run.view())));
    }
    let disconnected = Cancel::new()?;
    let cancel = Some(disconnected.clone());
    let work = move || {
        wait_end(&run, Some(disconnected.as_fd()), Instant::now() + patience)?;
        Ok(Response::ok(&run.view()))
    };
    Ok(Answer::later(work, cancel))
}

fn seconds(request: &Request, name: &'static str) -> Result<Option<Duration>> {
    let Some(text) = request.query(name) else { return Ok(None) };
    let most = limits::WAIT_MAX.as_secs_f64();
    match text.parse::<f64>() {
        // Rust parses "inf" as a number, so the value must be checked for that.
        Ok(given) if given >= 0.0 && given.is_finite() => Ok(Some(Duration::from_secs_f64(given.min(most)))),
        _ => Err(Error::new(
            Code::InvalidRequest,
            format!("{name} must be a number of seconds from 0 to {most}"),
        )),
    }
}

/// `GET /api/workspaces/:id/runs/:run/events`
pub fn events(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let run = find(ctx, request)?;
    let format = EventStreamFormat::from_request(request)?.unwrap_or(EventStreamFormat::Sse);
    let id = request.header("Last-Event-ID").map(str::to_owned).or_else(|| request.query("last_event_id"));
    let at = match id.as_deref().map(|id| follow::resume(id).ok_or(id)) {
        None => Position::default(),
        Some(Ok(Some(at))) => at,
        // The client has received all events. The status 204 stops a browser from reconnecting.
        Some(Ok(None)) => return Ok(Answer::Now(Response::empty(204))),
        Some(Err(id)) => {
            return Err(Error::new(
                Code::InvalidRequest,
                format!(
                    "Last-Event-ID must be the id of an event, such as 120:0, not '{}'",
                    id.escape_debug()
                ),
            ));
        }
    };
    let follower = OutputFollower::new(run, at)?;
    if request.method() == Method::Head {
        return Ok(Answer::Now(format.head(Response::empty(200))));
    }
    let (permit, runs) = (ctx.stream_permit(request.party())?, ctx.lifecycle.runs().clone());
    let redactor = viewer_redaction::redactor(ctx, request);
    let ticket = ctx.tickets.issue(move |socket, _| {
        permit.run(move || {
            follow::events(socket, follower, format, &runs, redactor.as_ref());
        });
    })?;
    Ok(Answer::Now(format.head(Response::handed_over(ticket, None))))
}

/// The query parameters of `output`.
struct OutputQuery {
    /// The stream to return; `None` for both, in the order in which their bytes were written.
    stream: Option<OutputStream>,
    at: Position,
    limit: Option<usize>,
    head: bool,
}

/// `GET /api/workspaces/:id/runs/:run/output`
pub fn output(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let run = find(ctx, request)?;
    let stream = match request.query("stream").as_deref() {
        None | Some("stdout") => Some(OutputStream::Stdout),
        Some("stderr") => Some(OutputStream::Stderr),
        Some("both") => None,
        Some(other) => {
            let message = format!("stream is stdout, stderr or both, not '{}'", other.escape_debug());
            return Err(Error::new(Code::InvalidRequest, message));
        }
    };
    let limit = match request.query("limit").map(|text| text.parse::<usize>()) {
        None => None,
        Some(Ok(limit @ 1..=WHOLE)) => Some(limit),
        Some(_) => {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("limit must be a number of bytes from 1 to {WHOLE}"),
            ));
        }
    };
    let end = run.spool.as_ref().map(|spool| spool.end()).unwrap_or_default();
    let at = offset(request.query("offset").as_deref(), stream, end)?;
    let wanted = OutputQuery { stream, at, limit, head: request.method() == Method::Head };
    let patience = seconds(request, "wait_secs")?.filter(|patience| !patience.is_zero());
    let nothing_yet = match stream {
        Some(stream) => at.of(stream) >= end.of(stream),
        None => at.out >= end.out && at.err >= end.err,
    };
    let (tickets, party) = (ctx.tickets.clone(), request.party());
    if let Some(patience) = patience.filter(|_| nothing_yet && run.is_running()) {
        let disconnected = Cancel::new()?;
        let (cancel, workers) = (Some(disconnected.clone()), ctx.stream_workers.clone());
        let work = move || {
            let follower = OutputFollower::new(run.clone(), wanted.at)?;
            let deadline = Instant::now() + patience;
            while !follower.has_more(wanted.stream) {
                if follower.wait(Some((disconnected.as_fd(), PollFlags::IN)), deadline)?
                    != WakeReason::Notified
                {
                    break;
                }
            }
            part(&tickets, || reserve_stream(&workers, party), run, &wanted)
        };
        return Ok(Answer::later(work, cancel));
    }
    part(&tickets, || ctx.stream_permit(party), run, &wanted).map(Answer::Now)
}

/// Maximum number of bytes that are returned at once. A longer part is streamed.
const WHOLE: usize = 64 << 10;

fn offset(text: Option<&str>, stream: Option<OutputStream>, end: Position) -> Result<Position> {
    let mut at = Position::default();
    let parsed = match (text, stream) {
        (None | Some("0"), _) => Some(at),
        (Some(text), None) => Position::parse(text),
        (Some(text), Some(stream)) => {
            let offset = match text.strip_prefix('-') {
                // The parameter counts from the end of the output, as in `tail -c`.
                Some(back) => back.parse().ok().map(|back: u64| end.of(stream).saturating_sub(back)),
                None => text.parse().ok(),
            };
            offset.map(|offset| {
                at.set(stream, offset);
                at
            })
        }
    };
    parsed.ok_or_else(|| {
        let message = match stream {
            Some(_) => "offset must be a number of bytes, counted from the end if it is negative",
            None => "offset of both streams must be a value of X-Next-Offset, such as 120:0",
        };
        Error::new(Code::InvalidRequest, message)
    })
}

/// Answers with the output that is available now. If output is dropped before it was read, the answer ends there;
/// the next request continues after the last byte of this answer.
fn part(
    tickets: &Tickets,
    permit: impl FnOnce() -> Result<Permit>,
    run: Arc<Run>,
    wanted: &OutputQuery,
) -> Result<Response> {
    let status = run.status();
    let stream = wanted.stream;
    let headers = |response: Response, from: Position, next: Position, missed: u64| {
        let show = |at: Position| stream.map_or_else(|| at.to_string(), |stream| at.of(stream).to_string());
        let response = response
            .with("Content-Type", "application/octet-stream")
            .with("Cache-Control", "no-store")
            .with("X-Content-Type-Options", "nosniff")
            .with("X-Offset", show(from))
            .with("X-Next-Offset", show(next))
            .with("X-Run-Status", status.as_str());
        if missed > 0 { response.with("X-Missed-Bytes", missed.to_string()) } else { response }
    };
    let mut follower = OutputFollower::new(run, wanted.at)?.until_now();
    let begin = follower.at();
    let (stretch, length) = loop {
        let stretch = follower.read_extent(stream);
        let length = stretch.length.min(wanted.limit.map_or(u64::MAX, |limit| limit as u64));
        follower.seek(stretch.from);
        if length > WHOLE as u64 {
            break (stretch, length);
        }
        let (mut body, mut filled, mut next) = (vec![0; length as usize], 0, stretch.from);
        while filled < body.len() {
            let Some(n) = follow::read(&mut follower, stream, &mut body[filled..]) else { break };
            filled += n;
            next = follower.at();
        }
        // All of the requested output was dropped before it could be read, so the output after it is read. The loop
        // ends, because output written after the request is not included.
        if filled == 0 && length > 0 && follower.at() != stretch.from {
            continue;
        }
        body.truncate(filled);
        let missed = (next.out - begin.out) + (next.err - begin.err) - filled as u64;
        return Ok(headers(Response::empty(200).with_body(body), stretch.from, next, missed));
    };
    if wanted.head {
        return Ok(headers(Response::empty(200), stretch.from, stretch.to, stretch.missed));
    }
    let permit = permit()?;
    let ticket = tickets.issue(move |socket, _| {
        permit.run(move || follow::stretch(socket, follower, stream, length));
    })?;
    Ok(headers(Response::handed_over(ticket, Some(length)), stretch.from, stretch.to, stretch.missed))
}
