//! One request and its answer between a client and the inside, both directions at once: poll(2) over the two sockets,
//! nothing is held back. What is still to be sent one way stops only the reading of that way.
//!
//! Meanwhile the client is watched. Its end of input counts as gone, as in Go's net/http: subscribers are told, but an
//! answer that still comes is still sent, for those that only half-closed. A reset ends the exchange.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::Handle;
use super::answer::{self, Answer, Asked, Framing};
use super::body::{self, Body};
use super::head::Head;
use super::record::State;
use super::relay::{Connection, Next, stalled};
use super::wire::{self, Got};
use crate::base::{Error, Result, limits};
use crate::http::Request;

const LOST: PollFlags = PollFlags::ERR.union(PollFlags::HUP).union(PollFlags::NVAL);

/// How long a client waits for the answer that it is over its share: so long its connection sends no further request, so a
/// client that asks again at once costs little.
pub(super) const OVER_SHARE_PAUSE: Duration = Duration::from_millis(200);

/// Where an exchange stands.
struct Exchange {
    head: Head,
    /// None when the request was answered on this very thread.
    inside: Option<UnixStream>,
    /// The body did not go in whole: it follows, through `head.body`.
    streamed: bool,
    /// The inside takes no more of it.
    deaf: bool,
    sent_in: usize,
    sent_out: usize,
    answer: Option<Answer>,
    /// The answer has come to its end.
    complete: bool,
    /// More came than belongs to the answer.
    stray: bool,
    /// The client will send no more.
    half_closed: bool,
    /// Since when the client has not taken, and not sent, what we wait for.
    blocked: Option<Instant>,
    starved: Option<Instant>,
}

/// How a step went.
enum Step {
    On,
    /// Both sides are done.
    Done,
    /// The client cannot get the rest.
    Cut,
}

impl Exchange {
    fn new(head: Head, inside: Option<UnixStream>, streamed: bool) -> Exchange {
        Exchange {
            head,
            inside,
            streamed,
            deaf: false,
            sent_in: 0,
            sent_out: 0,
            answer: None,
            complete: false,
            stray: false,
            half_closed: false,
            blocked: None,
            starved: None,
        }
    }

    fn wants_body(&self) -> bool {
        self.streamed && !self.deaf && !self.head.body.is_done()
    }

    fn finished_with(&self, buffer: &[u8]) -> bool {
        self.complete && self.sent_out == buffer.len()
    }
}

impl Connection<'_> {
    /// Sends what `to_inside` holds and what of the body follows, and the answer to the client.
    ///
    /// # Errors
    /// What the client is to be told, when no answer has been begun.
    pub(super) fn exchange(&mut self, head: Head, inside: UnixStream, streamed: bool) -> Result<Next> {
        self.to_client.clear();
        self.from_inside.clear();
        self.relay(Exchange::new(head, Some(inside), streamed))
    }

    /// Has the request in `to_inside` answered on this thread, and sends the answer.
    ///
    /// # Errors
    /// What the client is to be told, when no answer has been begun.
    pub(super) fn answer_here(&mut self, head: Head, handle: Handle) -> Result<Next> {
        let (request, answered) = Request::direct_from(&self.to_inside, self.socket.clone())?;
        self.to_inside.clear();
        self.to_client.clear();
        // The panic hook has logged it; the request that it dropped was answered, or is below.
        drop(catch_unwind(AssertUnwindSafe(|| handle(request))));
        self.from_inside = answered.take();
        let mut x = Exchange::new(head, None, false);
        self.take_answer(&mut x, Ok(if self.from_inside.is_empty() { Got::End } else { Got::Nothing }))?;
        self.take_in(&mut x)?;
        if !x.complete {
            return Err(Error::internal("The request was answered in part"));
        }
        self.relay(x)
    }

    fn relay(&mut self, mut x: Exchange) -> Result<Next> {
        // Most answers come within a fraction of a millisecond; to wait for them needs no look at the client.
        let mut quick = !x.streamed && x.inside.is_some();
        loop {
            let step = self.push_in(&mut x).and_then(|()| self.push_out(&mut x));
            let step = match step {
                Ok(Step::On) if quick && self.to_inside.is_empty() => {
                    quick = false;
                    let got =
                        x.inside.as_ref().map(|inside| wire::receive_waiting(inside, &mut self.from_inside));
                    self.take_answer(&mut x, got.unwrap_or(Ok(Got::End)))
                }
                Ok(Step::On) => self.await_and_read(&mut x),
                other => other,
            };
            match step {
                Ok(Step::On) => {}
                Ok(Step::Done) => return self.finish(x),
                Ok(Step::Cut) => return Ok(Next::Close),
                // Too late to tell it: an answer that breaks off is noticed by its length.
                Err(_) if x.answer.is_some() => return Ok(Next::Close),
                Err(error) => return Err(error),
            }
        }
    }

    fn push_in(&mut self, x: &mut Exchange) -> Result<()> {
        loop {
            if let Some(inside) = x.inside.as_ref().filter(|_| x.sent_in < self.to_inside.len() && !x.deaf) {
                match wire::send(inside, &self.to_inside[x.sent_in..]) {
                    Ok(sent) => x.sent_in += sent,
                    // It has answered without reading on; the answer is what counts.
                    Err(_) => x.deaf = true,
                }
                if x.sent_in < self.to_inside.len() {
                    return Ok(());
                }
            }
            self.to_inside.clear();
            x.sent_in = 0;
            if !x.wants_body() || self.at == self.input.len() {
                return Ok(());
            }
            x.starved = None;
            self.wrap_body(&mut x.head.body)?;
        }
    }

    /// Moves what has come of a streamed body into `to_inside`, as chunks.
    fn wrap_body(&mut self, body: &mut Body) -> Result<()> {
        while self.at < self.input.len() && !body.is_done() {
            let (used, data) = body.take(&self.input[self.at..])?;
            self.at += used;
            body::wrap(data, &mut self.to_inside);
        }
        if body.is_done() {
            self.to_inside.extend_from_slice(b"0\r\n\r\n");
        }
        Ok(())
    }

    fn push_out(&mut self, x: &mut Exchange) -> Result<Step> {
        if x.sent_out < self.to_client.len() {
            match wire::send(&*self.socket, &self.to_client[x.sent_out..]) {
                Ok(0) => self.wait_for_reader(x),
                Ok(sent) => {
                    x.sent_out += sent;
                    if x.blocked.take().is_some() {
                        self.seat.record.set(State::Busy);
                    }
                }
                Err(_) => return Ok(self.lost()),
            }
        }
        if x.finished_with(&self.to_client) {
            return Ok(Step::Done);
        }
        if x.sent_out == self.to_client.len() {
            self.to_client.clear();
            x.sent_out = 0;
        } else {
            self.wait_for_reader(x);
        }
        Ok(Step::On)
    }

    /// Notes that the client takes no more at the moment.
    fn wait_for_reader(&self, x: &mut Exchange) {
        if x.blocked.is_none() {
            x.blocked = Some(Instant::now());
            self.seat.record.set(State::Unread);
        }
    }

    fn await_and_read(&mut self, x: &mut Exchange) -> Result<Step> {
        let reads_body = x.wants_body() && self.to_inside.is_empty();
        x.starved = reads_body.then(|| x.starved.unwrap_or_else(Instant::now));
        let mut client = if x.half_closed { PollFlags::empty() } else { PollFlags::RDHUP };
        client.set(PollFlags::IN, reads_body);
        client.set(PollFlags::OUT, !self.to_client.is_empty());
        let mut inside = PollFlags::empty();
        inside.set(PollFlags::IN, self.to_client.is_empty() && !x.complete);
        inside.set(PollFlags::OUT, !self.to_inside.is_empty() && !x.deaf);
        let wakes = [
            x.blocked.map(|since| (since + limits::WRITE_STALL).min(Instant::now() + limits::WRITE_LOOK)),
            x.starved.map(|since| since + limits::BODY_STALL),
        ];
        // With nothing to wait for there, its hang-up would wake us again and again.
        let watched = if inside.is_empty() || x.inside.is_none() { 1 } else { 2 };
        let other = x.inside.as_ref().map_or(self.socket.as_fd(), AsFd::as_fd);
        let mut sockets = [PollFd::new(&*self.socket, client), PollFd::from_borrowed_fd(other, inside)];
        let woken = wire::wait(&mut sockets[..watched], wakes.into_iter().flatten().min())
            .map_err(|error| Error::internal("poll failed").because(error))?;
        let (client, inside) = (sockets[0].revents(), sockets[1].revents());
        if !woken {
            if x.blocked.is_some_and(|since| since.elapsed() >= limits::WRITE_STALL) {
                wire::forget_unsent(&*self.socket);
                return Ok(self.lost());
            }
            let starved = x.starved.is_some_and(|since| since.elapsed() >= limits::BODY_STALL);
            return if starved { Err(stalled()) } else { Ok(Step::On) };
        }
        if client.intersects(LOST) {
            return Ok(self.lost());
        }
        if client.contains(PollFlags::RDHUP) {
            x.half_closed = true;
            self.gate.gone.raise(self.seat.record.id);
        }
        if client.contains(PollFlags::IN) && reads_body {
            self.input.clear();
            self.at = 0;
            match wire::receive(&*self.socket, &mut self.input) {
                Ok(Got::Some(_) | Got::Nothing) => {}
                // The rest of the body will not come; the inside notices when its connection ends.
                _ => return Ok(self.lost()),
            }
        }
        if let Some(from) =
            x.inside.as_ref().filter(|_| watched == 2 && inside.intersects(LOST.union(PollFlags::IN)))
        {
            let got = wire::receive(from, &mut self.from_inside);
            return self.take_answer(x, got);
        }
        Ok(Step::On)
    }

    fn take_answer(&mut self, x: &mut Exchange, got: io::Result<Got>) -> Result<Step> {
        match got {
            Ok(Got::Some(_)) => {}
            Ok(Got::Nothing) => return Ok(Step::On),
            Ok(Got::End) | Err(_) => {
                return match &x.answer {
                    None => Err(Error::internal("The request was dropped without an answer")),
                    Some(Answer { framing: Framing::Close, .. }) => {
                        x.complete = true;
                        Ok(Step::On)
                    }
                    // Too short: the client must see that it is, so it gets no proper end.
                    Some(_) => Ok(Step::Cut),
                };
            }
        }
        self.take_in(x)
    }

    /// Looks at what has come of an answer.
    fn take_in(&mut self, x: &mut Exchange) -> Result<Step> {
        let mut used = 0;
        if x.answer.is_none() {
            used = self.read_answer_head(x)?;
        }
        let Some(answer) = &mut x.answer else { return Ok(Step::On) };
        let rest = &self.from_inside[used..];
        match &mut answer.framing {
            Framing::Close => self.to_client.extend_from_slice(rest),
            Framing::Sized(body) => {
                let plain = !x.head.is_11 && matches!(body, Body::Chunked(_));
                let mut at = 0;
                while at < rest.len() && !body.is_done() {
                    let (step, data) = body.take(&rest[at..])?;
                    self.to_client.extend_from_slice(if plain { data } else { &rest[at..at + step] });
                    at += step;
                }
                x.complete = body.is_done();
                x.stray |= at < rest.len();
            }
        }
        self.from_inside.clear();
        Ok(Step::On)
    }

    /// Looks for the end of the answer's head and rewrites it; how many bytes it and interim answers took.
    fn read_answer_head(&mut self, x: &mut Exchange) -> Result<usize> {
        let mut at = 0;
        while let Some(length) = answer::end(&self.from_inside[at..]) {
            let left_of_body = match &x.head.body {
                _ if !x.wants_body() && self.to_inside.is_empty() => 0,
                Body::Length(left) => *left,
                Body::Chunked(_) => u64::MAX,
            };
            let head = &self.from_inside[at..at + length];
            // Only this thread, which serves only this client, is held up; and not when the seat is needed.
            match answer::status(head) {
                Some(401) => {
                    let throttle = &self.gate.throttle;
                    self.seat.record.pause(throttle.failed(self.seat.record.peer, Instant::now()));
                }
                Some(429) => self.seat.record.pause(OVER_SHARE_PAUSE),
                _ => {}
            }
            let asked = Asked {
                is_head: x.head.is_head,
                is_11: x.head.is_11,
                upgrade: x.head.upgrade,
                keep: x.head.keep_alive
                    && !self.seat.record.hurried
                    && !self.gate.table.is_draining()
                    && !self.seat.record.is_evicted()
                    && left_of_body <= limits::DRAINED_BODY_BYTES,
                id: &self.id,
            };
            at += length;
            x.answer = answer::rewrite(head, &asked, &mut self.to_client)?;
            if x.answer.is_some() {
                return Ok(at);
            }
        }
        self.from_inside.drain(..at);
        if self.from_inside.len() > limits::ANSWER_HEAD_BYTES {
            return Err(Error::internal("An answer's head is too large"));
        }
        Ok(0)
    }

    fn lost(&self) -> Step {
        self.gate.gone.raise(self.seat.record.id);
        Step::Cut
    }

    /// The answer has been sent.
    fn finish(&mut self, mut x: Exchange) -> Result<Next> {
        let Some(answer) = x.answer else { return Ok(Next::Close) };
        let unread = x.streamed && !x.head.body.is_done();
        let inside = x.inside.take();
        if answer.whole && !x.stray && !x.streamed && !x.head.upgrade && self.to_inside.is_empty() {
            inside.into_iter().for_each(|inside| self.gate.inside.give_back(inside));
        }
        if let Some(number) = &answer.ticket {
            let Some(take) = self.gate.tickets.redeem(number).filter(|_| !unread) else {
                log::error!("{}: an answer with a ticket that is not good", self.id);
                return Ok(Next::Close);
            };
            return Ok(Next::Taken(take, answer.chunked));
        }
        if answer.close {
            return Ok(if unread || self.at < self.input.len() { Next::Linger } else { Next::Close });
        }
        // The answer promised that the connection goes on; at most `DRAINED_BODY_BYTES` stand in the way.
        while !x.head.body.is_done() {
            if self.at == self.input.len() && !matches!(self.receive_body(), Ok(true)) {
                return Ok(Next::Close);
            }
            match x.head.body.take(&self.input[self.at..]) {
                Ok((used, _)) => self.at += used,
                Err(_) => return Ok(Next::Close),
            }
        }
        Ok(Next::Again)
    }
}
