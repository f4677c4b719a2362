//! Relays one request and its answer between a client and the backend, in both directions at once, with poll(2) over
//! the two sockets. Backpressure is per direction: while bytes of one direction are unsent, only that direction
//! stops reading.
//!
//! An EOF from the client counts as a disconnect, as in Go's net/http: subscribers are notified. The answer is still
//! sent, because the client may have closed only its sending side. A reset ends the exchange.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::DirectHandler;
use super::answer::{self, BodyFraming, RequestTraits, ResponseHead};
use super::body::{self, RequestBody};
use super::head::RequestHead;
use super::record::ConnectionState;
use super::relay::{AfterRequest, Connection, stalled};
use super::wire::{self, ReadOutcome};
use crate::base::{Error, Result, limits};
use crate::http::Request;

/// Maximum size of the head of a backend answer.
const ANSWER_HEAD_BYTES: usize = 64 << 10;

const LOST: PollFlags = PollFlags::ERR.union(PollFlags::HUP).union(PollFlags::NVAL);

/// How long a connection pauses before its client receives `OverShare`, so that a client that retries at once costs
/// little.
pub(super) const OVER_SHARE_PAUSE: Duration = Duration::from_millis(200);

/// The state of one exchange.
struct Exchange {
    head: RequestHead,
    /// The backend connection; `None` if the request is answered on this thread.
    backend: Option<UnixStream>,
    /// Whether the body was incomplete when the request was forwarded. The rest is then relayed through `head.body`.
    streamed: bool,
    /// Whether the backend has stopped accepting the body.
    backend_closed: bool,
    sent_in: usize,
    sent_out: usize,
    answer: Option<ResponseHead>,
    /// Whether all of the answer has been received.
    complete: bool,
    /// Whether the backend sent bytes after the end of the answer.
    has_excess: bool,
    /// Whether the client closed its sending side.
    half_closed: bool,
    /// Since when a write to the client has been blocked (`write_blocked_since`), and since when the exchange has
    /// waited for more of the client's body (`body_awaited_since`).
    write_blocked_since: Option<Instant>,
    body_awaited_since: Option<Instant>,
}

/// What follows after one relay step.
enum ExchangeStep {
    Continue,
    /// The exchange is complete in both directions.
    Done,
    /// The client cannot receive the rest of the answer.
    Abort,
}

impl Exchange {
    fn new(head: RequestHead, inside: Option<UnixStream>, streamed: bool) -> Exchange {
        Exchange {
            head,
            backend: inside,
            streamed,
            backend_closed: false,
            sent_in: 0,
            sent_out: 0,
            answer: None,
            complete: false,
            has_excess: false,
            half_closed: false,
            write_blocked_since: None,
            body_awaited_since: None,
        }
    }

    fn wants_body(&self) -> bool {
        self.streamed && !self.backend_closed && !self.head.body.is_done()
    }

    fn finished_with(&self, buffer: &[u8]) -> bool {
        self.complete && self.sent_out == buffer.len()
    }
}

impl Connection<'_> {
    /// Sends the buffered request and the rest of its body to the backend, and sends the answer to the client.
    ///
    /// # Errors
    /// Returns the error to report to the client, if no part of an answer has been sent.
    pub(super) fn exchange(
        &mut self,
        head: RequestHead,
        inside: UnixStream,
        streamed: bool,
    ) -> Result<AfterRequest> {
        self.to_client.clear();
        self.from_backend.clear();
        self.relay(Exchange::new(head, Some(inside), streamed))
    }

    /// Handles the buffered request on this thread and sends the answer to the client.
    ///
    /// # Errors
    /// Returns the error to report to the client, if no part of an answer has been sent.
    pub(super) fn answer_here(&mut self, head: RequestHead, handle: DirectHandler) -> Result<AfterRequest> {
        let (request, answered) = Request::direct_from(&self.to_backend, self.socket.clone())?;
        self.to_backend.clear();
        self.to_client.clear();
        // The panic hook logs a panic. If the handler drops the request without an answer, the code below reports an
        // error.
        drop(catch_unwind(AssertUnwindSafe(|| handle(request))));
        self.from_backend = answered.take();
        let mut x = Exchange::new(head, None, false);
        self.on_backend_read(
            &mut x,
            Ok(if self.from_backend.is_empty() { ReadOutcome::Eof } else { ReadOutcome::WouldBlock }),
        )?;
        self.forward_answer(&mut x)?;
        if !x.complete {
            return Err(Error::internal("The handler sent an incomplete answer"));
        }
        self.relay(x)
    }

    fn relay(&mut self, mut x: Exchange) -> Result<AfterRequest> {
        // Most answers arrive within a fraction of a millisecond, so the first wait does not poll the client socket.
        let mut quick = !x.streamed && x.backend.is_some();
        loop {
            let step = self.send_to_backend(&mut x).and_then(|()| self.send_to_client(&mut x));
            let step = match step {
                Ok(ExchangeStep::Continue) if quick && self.to_backend.is_empty() => {
                    quick = false;
                    let got = x
                        .backend
                        .as_ref()
                        .map(|inside| wire::receive_waiting(inside, &mut self.from_backend));
                    self.on_backend_read(&mut x, got.unwrap_or(Ok(ReadOutcome::Eof)))
                }
                Ok(ExchangeStep::Continue) => self.await_and_read(&mut x),
                other => other,
            };
            match step {
                Ok(ExchangeStep::Continue) => {}
                Ok(ExchangeStep::Done) => return self.finish(x),
                Ok(ExchangeStep::Abort) => return Ok(AfterRequest::Close),
                // Part of the answer has been sent, so the error cannot be reported. The client detects the
                // truncation by the length.
                Err(_) if x.answer.is_some() => return Ok(AfterRequest::Close),
                Err(error) => return Err(error),
            }
        }
    }

    fn send_to_backend(&mut self, x: &mut Exchange) -> Result<()> {
        loop {
            if let Some(inside) =
                x.backend.as_ref().filter(|_| x.sent_in < self.to_backend.len() && !x.backend_closed)
            {
                match wire::send(inside, &self.to_backend[x.sent_in..]) {
                    Ok(sent) => x.sent_in += sent,
                    // The backend answered before it had read the whole body, so its answer is relayed.
                    Err(_) => x.backend_closed = true,
                }
                if x.sent_in < self.to_backend.len() {
                    return Ok(());
                }
            }
            self.to_backend.clear();
            x.sent_in = 0;
            if !x.wants_body() || self.consumed == self.input.len() {
                return Ok(());
            }
            x.body_awaited_since = None;
            self.wrap_body(&mut x.head.body)?;
        }
    }

    /// Encodes the received part of a streamed body as chunks and appends them to the buffer for the backend.
    fn wrap_body(&mut self, body: &mut RequestBody) -> Result<()> {
        while self.consumed < self.input.len() && !body.is_done() {
            let (used, data) = body.take(&self.input[self.consumed..])?;
            self.consumed += used;
            body::write_chunk(data, &mut self.to_backend);
        }
        if body.is_done() {
            self.to_backend.extend_from_slice(b"0\r\n\r\n");
        }
        Ok(())
    }

    fn send_to_client(&mut self, x: &mut Exchange) -> Result<ExchangeStep> {
        if x.sent_out < self.to_client.len() {
            match wire::send(&*self.socket, &self.to_client[x.sent_out..]) {
                Ok(0) => self.wait_for_reader(x),
                Ok(sent) => {
                    x.sent_out += sent;
                    if x.write_blocked_since.take().is_some() {
                        self.slot.record.set(ConnectionState::Busy);
                    }
                }
                Err(_) => return Ok(self.client_lost()),
            }
        }
        if x.finished_with(&self.to_client) {
            return Ok(ExchangeStep::Done);
        }
        if x.sent_out == self.to_client.len() {
            self.to_client.clear();
            x.sent_out = 0;
        } else {
            self.wait_for_reader(x);
        }
        Ok(ExchangeStep::Continue)
    }

    /// Records since when the client has not read its answer.
    fn wait_for_reader(&self, x: &mut Exchange) {
        if x.write_blocked_since.is_none() {
            x.write_blocked_since = Some(Instant::now());
            self.slot.record.set(ConnectionState::Unread);
        }
    }

    fn await_and_read(&mut self, x: &mut Exchange) -> Result<ExchangeStep> {
        let reads_body = x.wants_body() && self.to_backend.is_empty();
        x.body_awaited_since = reads_body.then(|| x.body_awaited_since.unwrap_or_else(Instant::now));
        let mut client = if x.half_closed { PollFlags::empty() } else { PollFlags::RDHUP };
        client.set(PollFlags::IN, reads_body);
        client.set(PollFlags::OUT, !self.to_client.is_empty());
        let mut inside = PollFlags::empty();
        inside.set(PollFlags::IN, self.to_client.is_empty() && !x.complete);
        inside.set(PollFlags::OUT, !self.to_backend.is_empty() && !x.backend_closed);
        let wakes = [
            x.write_blocked_since
                .map(|since| (since + limits::WRITE_STALL).min(Instant::now() + limits::WRITE_LOOK)),
            x.body_awaited_since.map(|since| since + limits::BODY_STALL),
        ];
        // The backend socket is watched only for an expected event: otherwise its HUP would wake the thread
        // repeatedly.
        let watched = if inside.is_empty() || x.backend.is_none() { 1 } else { 2 };
        let other = x.backend.as_ref().map_or(self.socket.as_fd(), AsFd::as_fd);
        let mut sockets = [PollFd::new(&*self.socket, client), PollFd::from_borrowed_fd(other, inside)];
        let woken = wire::wait(&mut sockets[..watched], wakes.into_iter().flatten().min())
            .map_err(|error| Error::internal("poll failed").with_source(error))?;
        let (client, inside) = (sockets[0].revents(), sockets[1].revents());
        if !woken {
            if x.write_blocked_since.is_some_and(|since| since.elapsed() >= limits::WRITE_STALL) {
                wire::reset_on_close(&*self.socket);
                return Ok(self.client_lost());
            }
            let starved = x.body_awaited_since.is_some_and(|since| since.elapsed() >= limits::BODY_STALL);
            return if starved { Err(stalled()) } else { Ok(ExchangeStep::Continue) };
        }
        if client.intersects(LOST) {
            return Ok(self.client_lost());
        }
        if client.contains(PollFlags::RDHUP) {
            x.half_closed = true;
            self.gate.disconnects.raise(self.slot.record.id);
        }
        if client.contains(PollFlags::IN) && reads_body {
            self.input.clear();
            self.consumed = 0;
            match wire::receive(&*self.socket, &mut self.input) {
                Ok(ReadOutcome::Bytes(_) | ReadOutcome::WouldBlock) => {}
                // The client's body is truncated. The backend detects that when its connection closes.
                _ => return Ok(self.client_lost()),
            }
        }
        if let Some(from) =
            x.backend.as_ref().filter(|_| watched == 2 && inside.intersects(LOST.union(PollFlags::IN)))
        {
            let got = wire::receive(from, &mut self.from_backend);
            return self.on_backend_read(x, got);
        }
        Ok(ExchangeStep::Continue)
    }

    fn on_backend_read(&mut self, x: &mut Exchange, got: io::Result<ReadOutcome>) -> Result<ExchangeStep> {
        match got {
            Ok(ReadOutcome::Bytes(_)) => {}
            Ok(ReadOutcome::WouldBlock) => return Ok(ExchangeStep::Continue),
            Ok(ReadOutcome::Eof) | Err(_) => {
                return match &x.answer {
                    None => Err(Error::internal("The handler dropped the request without an answer")),
                    Some(ResponseHead { framing: BodyFraming::Close, .. }) => {
                        x.complete = true;
                        Ok(ExchangeStep::Continue)
                    }
                    // The answer is truncated. The client detects that when its connection closes early.
                    Some(_) => Ok(ExchangeStep::Abort),
                };
            }
        }
        self.forward_answer(x)
    }

    /// Parses newly received bytes of the answer and appends them to the buffer for the client.
    fn forward_answer(&mut self, x: &mut Exchange) -> Result<ExchangeStep> {
        let mut used = 0;
        if x.answer.is_none() {
            used = self.read_answer_head(x)?;
        }
        let Some(answer) = &mut x.answer else { return Ok(ExchangeStep::Continue) };
        let rest = &self.from_backend[used..];
        match &mut answer.framing {
            BodyFraming::Close => self.to_client.extend_from_slice(rest),
            BodyFraming::Sized(body) => {
                let plain = !x.head.is_11 && matches!(body, RequestBody::Chunked(_));
                let mut at = 0;
                while at < rest.len() && !body.is_done() {
                    let (step, data) = body.take(&rest[at..])?;
                    self.to_client.extend_from_slice(if plain { data } else { &rest[at..at + step] });
                    at += step;
                }
                x.complete = body.is_done();
                x.has_excess |= at < rest.len();
            }
        }
        self.from_backend.clear();
        Ok(ExchangeStep::Continue)
    }

    /// Parses the head of the answer, if it is complete, and appends the rewritten head to the buffer for the
    /// client. Returns the number of bytes that the head and any interim answers before it took.
    fn read_answer_head(&mut self, x: &mut Exchange) -> Result<usize> {
        let mut at = 0;
        while let Some(length) = answer::head_length(&self.from_backend[at..]) {
            let left_of_body = match &x.head.body {
                _ if !x.wants_body() && self.to_backend.is_empty() => 0,
                RequestBody::Length(left) => *left,
                RequestBody::Chunked(_) => u64::MAX,
            };
            let head = &self.from_backend[at..at + length];
            // This pause blocks only this thread, which serves no other client. An eviction ends it.
            match answer::status(head) {
                Some(401) => {
                    let throttle = &self.gate.throttle;
                    self.slot.record.pause(throttle.failed(self.slot.record.peer, Instant::now()));
                }
                Some(429) => self.slot.record.pause(OVER_SHARE_PAUSE),
                _ => {}
            }
            let asked = RequestTraits {
                is_head: x.head.is_head,
                is_11: x.head.is_11,
                upgrade: x.head.upgrade,
                keep_alive: x.head.keep_alive
                    && !self.slot.record.on_reserve
                    && !self.gate.table.is_draining()
                    && !self.slot.record.is_evicted()
                    && left_of_body <= limits::DRAINED_BODY_BYTES,
                id: &self.id,
            };
            at += length;
            x.answer = answer::rewrite(head, &asked, &mut self.to_client)?;
            if x.answer.is_some() {
                return Ok(at);
            }
        }
        self.from_backend.drain(..at);
        if self.from_backend.len() > ANSWER_HEAD_BYTES {
            return Err(Error::internal("The HTTP backend sent a head that is too large"));
        }
        Ok(0)
    }

    fn client_lost(&self) -> ExchangeStep {
        self.gate.disconnects.raise(self.slot.record.id);
        ExchangeStep::Abort
    }

    /// Returns the next step of the connection after the answer was sent.
    fn finish(&mut self, mut x: Exchange) -> Result<AfterRequest> {
        let Some(answer) = x.answer else { return Ok(AfterRequest::Close) };
        let unread = x.streamed && !x.head.body.is_done();
        let inside = x.backend.take();
        if answer.reusable && !x.has_excess && !x.streamed && !x.head.upgrade && self.to_backend.is_empty() {
            inside.into_iter().for_each(|inside| self.gate.backend.give_back(inside));
        }
        if let Some(number) = &answer.ticket {
            let Some(take) = self.gate.tickets.redeem(number).filter(|_| !unread) else {
                log::error!("{}: the answer names an unknown socket ticket", self.id);
                return Ok(AfterRequest::Close);
            };
            return Ok(AfterRequest::HandedOver(take, answer.chunked));
        }
        if answer.close {
            return Ok(if unread || self.consumed < self.input.len() {
                AfterRequest::Linger
            } else {
                AfterRequest::Close
            });
        }
        // The answer declared that the connection stays open, so the rest of the body is discarded: at most
        // `DRAINED_BODY_BYTES`.
        while !x.head.body.is_done() {
            if self.consumed == self.input.len() && !matches!(self.receive_body(), Ok(true)) {
                return Ok(AfterRequest::Close);
            }
            match x.head.body.take(&self.input[self.consumed..]) {
                Ok((used, _)) => self.consumed += used,
                Err(_) => return Ok(AfterRequest::Close),
            }
        }
        Ok(AfterRequest::Again)
    }
}
