//! The life of one connection: it receives and validates a head, buffers a small body, relays the request and its
//! answer (`exchange`), and repeats. Independent of the routes.
//!
//! Threads: one `gate-N` per connection. The thread blocks in read(2) while the connection is idle, and in poll(2)
//! otherwise. Other threads end it by shutting down the socket.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::GateShared;
use super::body::{self, RequestBody};
use super::exchange::OVER_SHARE_PAUSE;
use super::head::{self, HeadContext, HeadScanner, RequestHead};
use super::record::ConnectionState;
use super::refuse;
use super::table::ConnectionSlot;
use super::wire::{self, ReadOutcome};
use crate::base::{Code, Error, Result, limits};
use crate::http::client::{ClientSocket, HandoverFn, Socket};

/// Timeout for a request head, counted from its first byte. A client on a slow network needs about a second.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request. Reverse proxies keep idle connections for about as long.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Timeout for the head on a reserved connection, counted from the accept.
const RESERVE_HEAD_TIMEOUT: Duration = Duration::from_secs(3);

/// The next step of a connection after a request.
pub(super) enum AfterRequest {
    /// The connection waits for another request.
    Again,
    /// The connection closes after a lingering close, because the client may still be sending.
    Linger,
    /// The connection closes at once.
    Close,
    /// The socket now belongs to another thread. The flag is true if that thread must use chunked encoding.
    HandedOver(HandoverFn, bool),
}

pub(super) struct Connection<'g> {
    pub(super) gate: &'g GateShared,
    pub(super) slot: ConnectionSlot,
    pub(super) socket: Arc<Socket>,
    peer: String,
    /// Bytes received from the client. The bytes before `consumed` have been processed.
    pub(super) input: Vec<u8>,
    pub(super) consumed: usize,
    /// The part of the request body that has been received.
    body_buffer: Vec<u8>,
    pub(super) to_backend: Vec<u8>,
    pub(super) from_backend: Vec<u8>,
    pub(super) to_client: Vec<u8>,
    /// The id of the current request; empty until the request's head is complete.
    pub(super) id: String,
    count: u64,
    opened: Instant,
}

/// How much of a request body is in `body_buffer`.
enum ReceivedBody {
    /// The whole body is in the buffer.
    Complete,
    /// The beginning of the body is in the buffer.
    Partial,
    /// The client disconnected before the end of the body.
    Aborted,
}

/// Serves a client until its connection ends.
pub(super) fn serve(gate: &GateShared, slot: ConnectionSlot) {
    let socket = slot.record.socket.clone();
    // Answers are written in one piece, so delaying small packets gains nothing. If a call here fails, the socket
    // was reset, and the first read reports that.
    if let Socket::Tcp(stream) = &*socket {
        let _ = stream.set_nodelay(true);
    }
    let _ = set_socket_timeout(&*socket, Timeout::Recv, Some(KEEP_ALIVE));
    let mut connection = Connection {
        gate,
        peer: slot.record.peer.to_string(),
        slot,
        socket,
        input: Vec::with_capacity(limits::IDLE_BUFFER_BYTES),
        consumed: 0,
        body_buffer: Vec::new(),
        to_backend: Vec::new(),
        from_backend: Vec::new(),
        to_client: Vec::new(),
        id: String::new(),
        count: 0,
        opened: Instant::now(),
    };
    let end = loop {
        match connection.serve_request() {
            AfterRequest::Again => {}
            end => break end,
        }
    };
    match end {
        AfterRequest::Linger if connection.slot.record.set(ConnectionState::Lingering) => {
            refuse::linger(&connection.socket)
        }
        AfterRequest::HandedOver(take, chunked) => connection.hand_over(take, chunked),
        AfterRequest::Again | AfterRequest::Linger | AfterRequest::Close => {}
    }
}

impl Connection<'_> {
    fn serve_request(&mut self) -> AfterRequest {
        self.id.clear();
        let length = match self.await_head() {
            Ok(Some(length)) => length,
            Ok(None) => return AfterRequest::Close,
            Err(error) => {
                let is_head = is_head_request(&self.input);
                return self.refuse(&error, is_head);
            }
        };
        self.count += 1;
        let record = &self.slot.record;
        // The id is unique across restarts: it has a random part per start, the connection's number and the
        // request's number.
        let _ = std::fmt::Write::write_fmt(
            &mut self.id,
            format_args!("{}-{:x}-{:x}", self.gate.start_id, record.id, self.count),
        );
        let context = HeadContext {
            rules: &self.gate.rules,
            body_cap: &*self.gate.body_cap,
            peer: &self.peer,
            local: record.local,
            connection: record.id,
        };
        let bytes = &self.input[self.consumed..self.consumed + length];
        let is_head = is_head_request(bytes);
        self.to_backend.clear();
        let admitted = head::admit(bytes, &context, &mut self.id, &mut self.to_backend);
        self.consumed += length;
        match admitted.and_then(|head| self.answer(head)) {
            Ok(next) => next,
            Err(error) => self.refuse(&error, is_head),
        }
    }

    /// Waits for a complete head. Returns its length, or `None` if the client disconnected or was idle for too long.
    fn await_head(&mut self) -> Result<Option<usize>> {
        self.input.drain(..self.consumed);
        self.consumed = 0;
        let record = &self.slot.record;
        let reserve_deadline = record.on_reserve.then(|| self.opened + RESERVE_HEAD_TIMEOUT);
        if self.input.is_empty() {
            self.shrink_buffers();
            if !self.slot.record.set(ConnectionState::Idle) {
                return Ok(None);
            }
            // The thread sets the state before it reads the flag; see `ConnectionTable::close_idle`. Input that has
            // arrived before that is still answered.
            let patience =
                if self.gate.table.is_draining() { Some(Instant::now()) } else { reserve_deadline };
            let got = match patience {
                None => wire::receive_waiting(&*self.socket, &mut self.input),
                Some(deadline) => wire::wait_input(&*self.socket, deadline)
                    .and_then(|_| wire::receive(&*self.socket, &mut self.input)),
            };
            if !matches!(got, Ok(ReadOutcome::Bytes(_))) {
                return Ok(None);
            }
        }
        if !self.slot.record.set(ConnectionState::Reading) {
            return Ok(None);
        }
        let (mut scan, mut deadline) = (HeadScanner::default(), reserve_deadline);
        loop {
            if let Some(length) = scan.find(&self.input)? {
                return Ok(Some(length));
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + HEAD_TIMEOUT);
            match wire::wait_input(&*self.socket, deadline) {
                Ok(true) => {}
                Ok(false) => {
                    return Err(Error::new(
                        Code::RequestTimeout,
                        "The request head did not arrive before the deadline",
                    ));
                }
                Err(_) => return Ok(None),
            }
            match wire::receive(&*self.socket, &mut self.input) {
                Ok(ReadOutcome::Bytes(_) | ReadOutcome::WouldBlock) => {}
                _ => return Ok(None),
            }
        }
    }

    /// Frees buffers that grew for a large request, because most connections are idle most of the time.
    fn shrink_buffers(&mut self) {
        if self.input.capacity() > limits::IDLE_BUFFER_BYTES {
            self.input = Vec::with_capacity(limits::IDLE_BUFFER_BYTES);
        }
        for buffer in
            [&mut self.body_buffer, &mut self.to_backend, &mut self.from_backend, &mut self.to_client]
        {
            if buffer.capacity() > 2 * limits::RELAY_BYTES {
                *buffer = Vec::new();
            }
        }
    }

    /// Refuses the request if many connections are open and its token already uses its share of them.
    fn claim(&self) -> Result<()> {
        let head = std::str::from_utf8(&self.to_backend).ok().filter(|_| self.gate.table.is_crowded());
        let claimed = head.map_or(Ok(()), |head| (self.gate.claim)(self.slot.record.id, head));
        if claimed.as_ref().is_err_and(|error| error.code() == Code::OverShare) {
            self.slot.record.pause(OVER_SHARE_PAUSE);
        }
        claimed
    }

    /// Handles a request of which the head has been accepted.
    fn answer(&mut self, mut head: RequestHead) -> Result<AfterRequest> {
        self.claim()?;
        if !self.slot.record.set(ConnectionState::Receiving) {
            return Ok(AfterRequest::Close);
        }
        if head.expects_continue && self.consumed == self.input.len() {
            // The interim answer is so small that sending it cannot block on an empty socket buffer.
            let _ = wire::send(&*self.socket, b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let streamed = match self.receive_small_body(&mut head.body)? {
            ReceivedBody::Complete => false,
            ReceivedBody::Partial => true,
            ReceivedBody::Aborted => return Ok(AfterRequest::Close),
        };
        if !self.slot.record.begin_request(&self.id) {
            return Ok(AfterRequest::Close);
        }
        self.frame(&head, streamed);
        let (method, target) = self.method_and_target();
        let handle = if streamed || head.upgrade { None } else { (self.gate.direct)(method, target) };
        if let Some(handle) = handle {
            return self.answer_here(head, handle);
        }
        let inside = self.gate.backend.take()?;
        self.exchange(head, inside, streamed)
    }

    /// Returns the method, and the path with query, of the rewritten head.
    fn method_and_target(&self) -> (&str, &str) {
        let mut words = self.to_backend.splitn(3, |byte| *byte == b' ');
        let mut next = || words.next().and_then(|word| std::str::from_utf8(word).ok()).unwrap_or_default();
        (next(), next())
    }

    fn receive_small_body(&mut self, body: &mut RequestBody) -> Result<ReceivedBody> {
        self.body_buffer.clear();
        if matches!(body, RequestBody::Length(length) if *length > limits::HELD_BODY_BYTES as u64) {
            return Ok(ReceivedBody::Partial);
        }
        loop {
            while self.consumed < self.input.len() && !body.is_done() {
                let (used, data) = body.take(&self.input[self.consumed..])?;
                self.consumed += used;
                self.body_buffer.extend_from_slice(data);
            }
            if body.is_done() {
                return Ok(ReceivedBody::Complete);
            }
            if self.body_buffer.len() > limits::HELD_BODY_BYTES {
                return Ok(ReceivedBody::Partial);
            }
            if !self.receive_body()? {
                return Ok(ReceivedBody::Aborted);
            }
        }
    }

    /// Waits for more of a body. The caller must have consumed all earlier input. Returns `false` at EOF.
    pub(super) fn receive_body(&mut self) -> Result<bool> {
        self.input.clear();
        self.consumed = 0;
        loop {
            match wire::wait_input(&*self.socket, Instant::now() + limits::BODY_STALL) {
                Ok(true) => {}
                Ok(false) => return Err(stalled()),
                Err(_) => return Ok(false),
            }
            match wire::receive(&*self.socket, &mut self.input) {
                Ok(ReadOutcome::Bytes(_)) => return Ok(true),
                Ok(ReadOutcome::WouldBlock) => {}
                _ => return Ok(false),
            }
        }
    }

    /// Completes the head for the backend. When a request is dropped, tiny_http 0.12 reads a declared body to its
    /// end, however long that takes, and leaves unread chunks on the connection. A complete body is therefore sent
    /// with its length, because reading it takes no time, and the backend connection stays open. Any other body is
    /// sent as chunks, with its length in a separate header if known, and the backend connection closes afterwards.
    fn frame(&mut self, head: &RequestHead, streamed: bool) {
        let out = &mut self.to_backend;
        if let (true, RequestBody::Length(length)) = (streamed, &head.body) {
            let _ = write!(out, "X-Berth-Length: {length}\r\n");
        }
        let end: &[u8] = match (streamed, head.upgrade, head.has_body) {
            (true, ..) => b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
            (false, true, _) => b"Connection: close\r\n\r\n",
            (false, false, false) => b"\r\n",
            (false, false, true) => {
                // Writing to a vector cannot fail.
                let _ = write!(out, "Content-Length: {}\r\n\r\n", self.body_buffer.len());
                out.extend_from_slice(&self.body_buffer);
                return;
            }
        };
        out.extend_from_slice(end);
        body::write_chunk(&self.body_buffer, out);
    }

    /// Sends an error answer. The caller must not have sent any part of an answer.
    pub(super) fn refuse(&mut self, error: &Error, is_head: bool) -> AfterRequest {
        let status = error.code().status();
        if status == 500 {
            log::error!("{} {}: {error}", self.id, self.peer);
        } else {
            log::debug!("{} {}: refused with {status}: {error}", self.id, self.peer);
        }
        // The answer is so small that sending it cannot block on an empty socket buffer. If the buffer is full, the
        // client does not read its answers anyway.
        let _ = wire::send(&*self.socket, refuse::answer(error, &self.id, is_head).as_bytes());
        AfterRequest::Linger
    }

    fn hand_over(self, take: HandoverFn, chunked: bool) {
        self.slot.record.set(ConnectionState::Taken);
        // A receive timeout would end an idle terminal, so it is removed. A send timeout ends any stream that is
        // blocked.
        let _ = set_socket_timeout(&*self.socket, Timeout::Recv, None);
        let _ = set_socket_timeout(&*self.socket, Timeout::Send, Some(limits::WRITE_STALL));
        let early = self.input[self.consumed..].to_vec();
        take(ClientSocket::new(self.socket, Arc::new(self.slot), chunked), early);
    }
}

/// Returns whether the method is HEAD, even if the head is invalid: the answer must have no body then (RFC 9110,
/// 9.3.2).
fn is_head_request(bytes: &[u8]) -> bool {
    bytes.strip_prefix(b"\r\n").unwrap_or(bytes).starts_with(b"HEAD ")
}

/// Returns the error for a body that stopped arriving (status 408).
pub(super) fn stalled() -> Error {
    Error::new(Code::RequestTimeout, "The request body stopped arriving")
}
