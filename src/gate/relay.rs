//! The life of one connection: a head is read and checked, a small body is held until it is complete, the request goes
//! in and its answer out (`exchange`), and again. Knows nothing of routes.
//!
//! Threads: one `gate-N` for each connection. It is idle in a blocking read, and in poll(2) otherwise; whoever wants
//! it to end shuts the socket down.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::Shared;
use super::body::{self, Body};
use super::exchange::OVER_SHARE_PAUSE;
use super::head::{self, Context, Head, Scan};
use super::record::State;
use super::refuse;
use super::table::Seat;
use super::wire::{self, Got};
use crate::base::{Code, Error, Result, limits};
use crate::http::client::{ClientSocket, Socket, Take};

/// What becomes of the connection.
pub(super) enum Next {
    /// Another request may come.
    Again,
    /// It ends, and the client may still be sending.
    Linger,
    /// It ends.
    Close,
    /// It belongs to somebody else now, who was told to write chunks or was not.
    Taken(Take, bool),
}

pub(super) struct Connection<'g> {
    pub(super) gate: &'g Shared,
    pub(super) seat: Seat,
    pub(super) socket: Arc<Socket>,
    peer: String,
    /// What has come from the client; up to `at` it has been used.
    pub(super) input: Vec<u8>,
    pub(super) at: usize,
    /// A body on its way, until it is complete.
    held: Vec<u8>,
    pub(super) to_inside: Vec<u8>,
    pub(super) from_inside: Vec<u8>,
    pub(super) to_client: Vec<u8>,
    /// The id of the request that is being answered; empty before its head is complete.
    pub(super) id: String,
    count: u64,
    opened: Instant,
}

/// How a body goes in.
enum Held {
    /// All of it is in `held`.
    Whole,
    /// Its beginning is.
    Begun,
    /// The client hung up in the middle of it.
    Broken,
}

/// Serves a client until its end.
pub(super) fn serve(gate: &Shared, seat: Seat) {
    let socket = seat.record.socket.clone();
    // Answers are written in one piece: waiting for more would only delay them. A socket on which this fails has
    // been reset, and the first read will say so.
    if let Socket::Tcp(stream) = &*socket {
        let _ = stream.set_nodelay(true);
    }
    let _ = set_socket_timeout(&*socket, Timeout::Recv, Some(limits::KEEP_ALIVE));
    let mut connection = Connection {
        gate,
        peer: seat.record.peer.to_string(),
        seat,
        socket,
        input: Vec::with_capacity(limits::IDLE_BUFFER_BYTES),
        at: 0,
        held: Vec::new(),
        to_inside: Vec::new(),
        from_inside: Vec::new(),
        to_client: Vec::new(),
        id: String::new(),
        count: 0,
        opened: Instant::now(),
    };
    let end = loop {
        match connection.turn() {
            Next::Again => {}
            end => break end,
        }
    };
    match end {
        Next::Linger if connection.seat.record.set(State::Lingering) => refuse::linger(&connection.socket),
        Next::Taken(take, chunked) => connection.hand_over(take, chunked),
        Next::Again | Next::Linger | Next::Close => {}
    }
}

impl Connection<'_> {
    fn turn(&mut self) -> Next {
        self.id.clear();
        let length = match self.await_head() {
            Ok(Some(length)) => length,
            Ok(None) => return Next::Close,
            Err(error) => {
                let is_head = asks_head(&self.input);
                return self.refuse(&error, is_head);
            }
        };
        self.count += 1;
        let record = &self.seat.record;
        // Unique for as long as logs are read together: the start's own random part, the connection, the request.
        let _ = std::fmt::Write::write_fmt(
            &mut self.id,
            format_args!("{}-{:x}-{:x}", self.gate.start_id, record.id, self.count),
        );
        let context = Context {
            rules: &self.gate.rules,
            body_cap: &*self.gate.body_cap,
            peer: &self.peer,
            local: record.local,
            connection: record.id,
        };
        let bytes = &self.input[self.at..self.at + length];
        let is_head = asks_head(bytes);
        self.to_inside.clear();
        let admitted = head::admit(bytes, &context, &mut self.id, &mut self.to_inside);
        self.at += length;
        match admitted.and_then(|head| self.answer(head)) {
            Ok(next) => next,
            Err(error) => self.refuse(&error, is_head),
        }
    }

    /// Waits for a complete head; its length, or `None` when the client has gone or kept silent.
    fn await_head(&mut self) -> Result<Option<usize>> {
        self.input.drain(..self.at);
        self.at = 0;
        let record = &self.seat.record;
        let hurried = record.hurried.then(|| self.opened + limits::HURRIED_HEAD);
        if self.input.is_empty() {
            self.rest();
            if !self.seat.record.set(State::Idle) {
                return Ok(None);
            }
            // Set first, looked at second: see `Table::close_idle`. What has arrived by then is still answered.
            let patience = if self.gate.table.is_draining() { Some(Instant::now()) } else { hurried };
            let got = match patience {
                None => wire::receive_waiting(&*self.socket, &mut self.input),
                Some(deadline) => wire::wait_input(&*self.socket, deadline)
                    .and_then(|_| wire::receive(&*self.socket, &mut self.input)),
            };
            if !matches!(got, Ok(Got::Some(_))) {
                return Ok(None);
            }
        }
        if !self.seat.record.set(State::Reading) {
            return Ok(None);
        }
        let (mut scan, mut deadline) = (Scan::default(), hurried);
        loop {
            if let Some(length) = scan.find(&self.input)? {
                return Ok(Some(length));
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + limits::HEAD_TIMEOUT);
            match wire::wait_input(&*self.socket, deadline) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(Error::new(
                        Code::RequestTimeout,
                        "The request's head did not arrive in time",
                    ));
                }
                Err(_) => return Ok(None),
            }
            match wire::receive(&*self.socket, &mut self.input) {
                Ok(Got::Some(_) | Got::Nothing) => {}
                _ => return Ok(None),
            }
        }
    }

    /// Gives back what a large request has made grow: most connections are idle most of the time.
    fn rest(&mut self) {
        if self.input.capacity() > limits::IDLE_BUFFER_BYTES {
            self.input = Vec::with_capacity(limits::IDLE_BUFFER_BYTES);
        }
        for buffer in [&mut self.held, &mut self.to_inside, &mut self.from_inside, &mut self.to_client] {
            if buffer.capacity() > 2 * limits::RELAY_BYTES {
                *buffer = Vec::new();
            }
        }
    }

    /// Refuses a request of a token that has its share of the connections: while others wait, nothing is done for it.
    fn claim(&self) -> Result<()> {
        let head = std::str::from_utf8(&self.to_inside).ok().filter(|_| self.gate.table.is_crowded());
        let claimed = head.map_or(Ok(()), |head| (self.gate.claim)(self.seat.record.id, head));
        if claimed.as_ref().is_err_and(|error| error.code() == Code::OverShare) {
            self.seat.record.pause(OVER_SHARE_PAUSE);
        }
        claimed
    }

    /// Everything behind the head.
    fn answer(&mut self, mut head: Head) -> Result<Next> {
        self.claim()?;
        if !self.seat.record.set(State::Receiving) {
            return Ok(Next::Close);
        }
        if head.expects_continue && self.at == self.input.len() {
            // Too little to fill a socket's buffer that is empty.
            let _ = wire::send(&*self.socket, b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let streamed = match self.hold(&mut head.body)? {
            Held::Whole => false,
            Held::Begun => true,
            Held::Broken => return Ok(Next::Close),
        };
        if !self.seat.record.begin(&self.id) {
            return Ok(Next::Close);
        }
        self.frame(&head, streamed);
        let (method, target) = self.method_and_target();
        let handle = if streamed || head.upgrade { None } else { (self.gate.direct)(method, target) };
        if let Some(handle) = handle {
            return self.answer_here(head, handle);
        }
        let inside = self.gate.inside.take()?;
        self.exchange(head, inside, streamed)
    }

    /// The method, and path and query, of the head that goes in.
    fn method_and_target(&self) -> (&str, &str) {
        let mut words = self.to_inside.splitn(3, |byte| *byte == b' ');
        let mut next = || words.next().and_then(|word| std::str::from_utf8(word).ok()).unwrap_or_default();
        (next(), next())
    }

    fn hold(&mut self, body: &mut Body) -> Result<Held> {
        self.held.clear();
        if matches!(body, Body::Length(length) if *length > limits::HELD_BODY_BYTES as u64) {
            return Ok(Held::Begun);
        }
        loop {
            while self.at < self.input.len() && !body.is_done() {
                let (used, data) = body.take(&self.input[self.at..])?;
                self.at += used;
                self.held.extend_from_slice(data);
            }
            if body.is_done() {
                return Ok(Held::Whole);
            }
            if self.held.len() > limits::HELD_BODY_BYTES {
                return Ok(Held::Begun);
            }
            if !self.receive_body()? {
                return Ok(Held::Broken);
            }
        }
    }

    /// Waits for more of a body; all that came before has been used. `false` when there is no more.
    pub(super) fn receive_body(&mut self) -> Result<bool> {
        self.input.clear();
        self.at = 0;
        loop {
            match wire::wait_input(&*self.socket, Instant::now() + limits::BODY_STALL) {
                Ok(true) => {}
                Ok(false) => return Err(stalled()),
                Err(_) => return Ok(false),
            }
            match wire::receive(&*self.socket, &mut self.input) {
                Ok(Got::Some(_)) => return Ok(true),
                Ok(Got::Nothing) => {}
                _ => return Ok(false),
            }
        }
    }

    /// Completes the head for the inside. tiny_http 0.12 reads a declared length to its end when a request is dropped,
    /// however long that takes, and leaves unread chunks lying on the connection. So a whole body, which takes no time,
    /// gets its length and lets the connection live; any other goes in as chunks, with its length beside it where that
    /// is known, and no further request is read behind it (`Connection: close`).
    fn frame(&mut self, head: &Head, streamed: bool) {
        let out = &mut self.to_inside;
        if let (true, Body::Length(length)) = (streamed, &head.body) {
            let _ = write!(out, "X-Berth-Length: {length}\r\n");
        }
        let end: &[u8] = match (streamed, head.upgrade, head.has_body) {
            (true, ..) => b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
            (false, true, _) => b"Connection: close\r\n\r\n",
            (false, false, false) => b"\r\n",
            (false, false, true) => {
                // Writing to a vector cannot fail.
                let _ = write!(out, "Content-Length: {}\r\n\r\n", self.held.len());
                out.extend_from_slice(&self.held);
                return;
            }
        };
        out.extend_from_slice(end);
        body::wrap(&self.held, out);
    }

    /// Tells the client what is wrong; nothing of an answer has been sent yet.
    pub(super) fn refuse(&mut self, error: &Error, is_head: bool) -> Next {
        let status = error.code().status();
        if status == 500 {
            log::error!("{} {}: {error}", self.id, self.peer);
        } else {
            log::debug!("{} {}: refused with {status}: {error}", self.id, self.peer);
        }
        // Too little to fill a socket's buffer; a client that has let it fill reads no answers anyway.
        let _ = wire::send(&*self.socket, refuse::answer(error, &self.id, is_head).as_bytes());
        Next::Linger
    }

    fn hand_over(self, take: Take, chunked: bool) {
        self.seat.record.set(State::Taken);
        // SO_RCVTIMEO would end an idle terminal; a write that stands still ends whatever it is.
        let _ = set_socket_timeout(&*self.socket, Timeout::Recv, None);
        let _ = set_socket_timeout(&*self.socket, Timeout::Send, Some(limits::WRITE_STALL));
        let early = self.input[self.at..].to_vec();
        take(ClientSocket::new(self.socket, Arc::new(self.seat), chunked), early);
    }
}

/// Whether no answer may have a body (RFC 9110, 9.3.2), be the rest of the head what it may.
fn asks_head(bytes: &[u8]) -> bool {
    bytes.strip_prefix(b"\r\n").unwrap_or(bytes).starts_with(b"HEAD ")
}

/// The 408 of a body.
pub(super) fn stalled() -> Error {
    Error::new(Code::RequestTimeout, "The request's body stopped arriving")
}
