//! WebSockets (RFC 6455): the server side of the handshake, and one thread per socket that the gate hands over. The
//! thread sends and receives concurrently, so that neither direction blocks the other, and exchanges messages with a
//! [`Conversation`]. Independent of terminals.
//!
//! Every wait has a deadline: the thread disconnects a peer that does not answer pings or does not read.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tungstenite::error::ProtocolError;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Bytes, Error as WsError, Message, WebSocket};

use super::client::ClientSocket;
use super::request::Request;
use super::response::Response;
use crate::base::{Code, Error, Result, limits};
use crate::proc::Cancel;

/// How often the peer of a WebSocket is pinged. Proxies close connections that are silent for a minute.
const PING: Duration = Duration::from_secs(20);
/// How long the peer may take to answer a ping before it counts as disconnected.
const PONG: Duration = Duration::from_secs(20);
/// Size of the send buffer of a WebSocket (the kernel doubles it, socket(7)). A screen on a fast connection needs
/// less; a slow connection needs more than ten seconds for that much.
const SOCKET_BUFFER_BYTES: usize = 128 << 10;

/// An accepted handshake.
#[derive(Debug)]
pub struct Handshake {
    accept: String,
    protocol: Option<&'static str>,
}

impl Handshake {
    /// Parses a handshake and selects the first offered subprotocol that is in `known`. The gate passes on only
    /// complete handshakes.
    ///
    /// # Errors
    /// `InvalidRequest` if the request is not a handshake.
    pub fn of(request: &Request, known: &[&'static str]) -> Result<Handshake> {
        let key = request.header("Sec-WebSocket-Key").filter(|_| request.is_upgrade()).ok_or_else(|| {
            Error::new(
                Code::InvalidRequest,
                "Connection header did not include 'upgrade': this is a WebSocket",
            )
        })?;
        let protocol = request
            .subprotocols()
            .find_map(|offered| known.iter().copied().find(|protocol| *protocol == offered));
        Ok(Handshake { accept: tungstenite::handshake::derive_accept_key(key.as_bytes()), protocol })
    }

    /// Returns the 101 answer. The socket is handed over to the holder of the ticket ([`super::client::Tickets`]).
    pub fn accept(self, ticket: String) -> Response {
        let response = Response::upgraded(ticket).with("Sec-WebSocket-Accept", self.accept);
        match self.protocol {
            Some(protocol) => response.with("Sec-WebSocket-Protocol", protocol),
            None => response,
        }
    }
}

/// A message from the client.
#[derive(Debug)]
pub enum IncomingMessage<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

/// A message to the client.
#[derive(Debug)]
pub enum OutgoingMessage {
    Text(String),
    Binary(Vec<u8>),
    /// Closes the WebSocket with this code (RFC 6455, 7.4) and this reason of at most 123 bytes.
    Close(u16, String),
}

/// The application side of a WebSocket. No method may block.
pub trait Conversation {
    /// Returns a descriptor that is readable when [`Conversation::outgoing`] has messages, or when there is room for
    /// more input.
    fn wake(&self) -> BorrowedFd<'_>;

    /// Returns all pending messages. The session calls it only when the network has accepted all earlier messages.
    fn outgoing(&mut self) -> Vec<OutgoingMessage>;

    fn incoming(&mut self, message: IncomingMessage<'_>);

    /// Returns whether the conversation cannot accept another message yet. Until it can, nothing is read from the
    /// peer.
    fn is_full(&mut self) -> bool;

    /// Returns the maximum size of a message that the conversation accepts.
    fn message_bytes(&self) -> usize {
        limits::SOCKET_MESSAGE_BYTES
    }

    /// Returns whether there is memory for a message of more than [`limits::SOCKET_MESSAGE_BYTES`] at the moment.
    /// The session asks before it reads more than that of one message; until the answer is `true`, the rest waits in
    /// the network.
    fn admit_large(&mut self) -> bool {
        true
    }

    /// Returns the flag that is raised when the peer's credential is revoked or expires.
    fn revoked(&self) -> &Cancel;
}

/// The timeouts of a socket.
#[derive(Clone, Copy, Debug)]
pub struct SocketTimeouts {
    /// The interval between pings.
    pub ping: Duration,
    /// How long the session waits for any input after a ping before the peer counts as disconnected.
    pub patience: Duration,
    /// How long the peer may read nothing before it is disconnected.
    pub stall: Duration,
}

impl Default for SocketTimeouts {
    fn default() -> SocketTimeouts {
        SocketTimeouts { ping: PING, patience: PONG, stall: limits::WRITE_STALL }
    }
}

/// Why a session ended, for log lines and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Both sides closed the WebSocket, or the peer disconnected.
    Closed,
    /// The peer answered no ping.
    PingTimeout,
    /// The peer did not read.
    WriteTimeout,
    /// The peer violated the protocol.
    Broken,
}

/// Maximum number of reads per turn, so that a peer that sends continuously does not prevent writes.
const READS_PER_TURN: usize = 32;

/// How often a full conversation is polled while the network accepts no output either.
const CLOSE_CHECK: Duration = Duration::from_millis(100);

/// How long a large message waits for memory.
const LARGE_PATIENCE: Duration = Duration::from_secs(60);

/// How long a large message may take to arrive once there is memory for it: 8 MiB at 250 kbit/s.
const LARGE_ARRIVAL: Duration = Duration::from_secs(300);

/// The size of a frame header with mask, for a payload of at most 125 bytes (RFC 6455, 5.2).
const CONTROL_HEAD_BYTES: usize = 6;

/// The peer's socket, with counters of its traffic.
struct MeteredSocket {
    socket: ClientSocket,
    written: u64,
    /// Number of bytes read since the last complete message.
    pending: usize,
    /// Maximum number of bytes that may be read before the next message is complete.
    allowance: usize,
    /// Since when `pending` has reached `allowance`.
    starved: Option<Instant>,
    /// When the session got memory for the large message that is arriving.
    admitted: Option<Instant>,
}

impl MeteredSocket {
    /// Resets the counters after a complete message.
    fn completed(&mut self) {
        self.pending = 0;
        self.admitted = None;
        self.allowance = self.allowance.min(SMALL_ALLOWANCE);
    }
}

/// Maximum number of bytes that are read of a message before it needs a memory permit. It covers a message that
/// needs no permit, even if it is split into small frames, and read-ahead.
const SMALL_ALLOWANCE: usize = 2 * limits::SOCKET_MESSAGE_BYTES;

impl Read for MeteredSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.allowance.saturating_sub(self.pending).min(buffer.len());
        if room == 0 && !buffer.is_empty() {
            self.starved.get_or_insert_with(Instant::now);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.socket.read(&mut buffer[..room])?;
        self.pending += count;
        Ok(count)
    }
}

impl Write for MeteredSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.socket.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct WebSocketSession<C> {
    ws: WebSocket<MeteredSocket>,
    conversation: C,
    pace: SocketTimeouts,
    /// When input last arrived from the peer.
    last_received: Instant,
    last_ping: Instant,
    /// Since when the network has accepted no output, and the number of bytes accepted until then.
    blocked: Option<(Instant, u64)>,
    /// The deadline for the peer's close frame, once this side has sent its own.
    closing: Option<Instant>,
    /// Whether a message may be so large that it needs a memory permit.
    large: bool,
}

/// Runs a session on this thread until it ends. `early` holds bytes received after the handshake.
pub fn serve(
    socket: ClientSocket,
    early: Vec<u8>,
    conversation: impl Conversation,
    pace: SocketTimeouts,
) -> CloseReason {
    if rustix::io::ioctl_fionbio(&socket, true).is_err() {
        return CloseReason::Broken;
    }
    // Limits the output that waits in the kernel, where newer output cannot replace it. By default it could be
    // megabytes.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    let config = WebSocketConfig::default()
        .read_buffer_size(limits::RELAY_BYTES)
        .write_buffer_size(limits::RELAY_BYTES)
        .max_frame_size(Some(conversation.message_bytes()))
        .max_message_size(Some(conversation.message_bytes()));
    // If no message can need a memory permit, the message size is the only limit on reads.
    let large = conversation.message_bytes() > limits::SOCKET_MESSAGE_BYTES;
    let allowance = if large { SMALL_ALLOWANCE } else { usize::MAX };
    let wire = MeteredSocket { socket, written: 0, pending: 0, allowance, starved: None, admitted: None };
    let now = Instant::now();
    let mut session = WebSocketSession {
        ws: WebSocket::from_partially_read(wire, early, Role::Server, Some(config)),
        conversation,
        pace,
        last_received: now,
        last_ping: now,
        blocked: None,
        closing: None,
        large,
    };
    match session.run() {
        Ok(left) => left,
        Err(
            WsError::ConnectionClosed
            | WsError::AlreadyClosed
            | WsError::Io(_)
            | WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake),
        ) => CloseReason::Closed,
        Err(error) => {
            session.report_violation(&error);
            CloseReason::Broken
        }
    }
}

impl<C: Conversation> WebSocketSession<C> {
    fn run(&mut self) -> tungstenite::Result<CloseReason> {
        loop {
            if let Some(left) = self.check_timeouts()? {
                return Ok(left);
            }
            if self.blocked.is_none() && self.closing.is_none() {
                for out in self.conversation.outgoing() {
                    self.queue_outgoing(out)?;
                }
            }
            self.flush()?;
            self.admit_large_message();
            let more = (self.closing.is_some() || !self.conversation.is_full()) && self.read_messages()?;
            let full = self.conversation.is_full() || self.ws.get_ref().starved.is_some();
            if let Some(left) = self.wait(full, more)? {
                return Ok(left);
            }
        }
    }

    /// Lets the rest of a large message be read once there is memory for it.
    fn admit_large_message(&mut self) {
        let closing = self.closing.is_some();
        if self.ws.get_ref().starved.is_some() && (closing || self.conversation.admit_large()) {
            let wire = self.ws.get_mut();
            wire.starved = None;
            wire.admitted = Some(Instant::now());
            // From now on, the maximum message size is the only limit.
            wire.allowance = usize::MAX;
        }
    }

    /// Checks all timeouts. Returns why the session must end, if it must.
    fn check_timeouts(&mut self) -> tungstenite::Result<Option<CloseReason>> {
        let now = Instant::now();
        if self.closing.is_some_and(|until| now >= until) {
            return Ok(Some(CloseReason::Closed));
        }
        if self.blocked.is_some_and(|(since, _)| now >= since + self.pace.stall) {
            return Ok(Some(CloseReason::WriteTimeout));
        }
        if self.closing.is_none() && self.conversation.revoked().is_cancelled() {
            let reason = "The credential was revoked or has expired".into();
            self.queue_outgoing(OutgoingMessage::Close(CloseCode::Policy.into(), reason))?;
        }
        let wire = self.ws.get_ref();
        let late = wire.admitted.is_some_and(|since| now >= since + LARGE_ARRIVAL);
        if self.closing.is_none() && (late || wire.starved.is_some_and(|since| now >= since + LARGE_PATIENCE))
        {
            let reason = match late {
                true => "A large message took too long to arrive",
                false => "Too many large messages are being received; try again later",
            };
            let reason = reason.into();
            self.queue_outgoing(OutgoingMessage::Close(CloseCode::Again.into(), reason))?;
        }
        if now >= self.last_received + self.pace.ping + self.pace.patience {
            return Ok(Some(CloseReason::PingTimeout));
        }
        if self.closing.is_none() && now >= self.last_ping + self.pace.ping {
            self.last_ping = now;
            ignore_would_block(self.ws.write(Message::Ping(Bytes::new())))?;
        }
        Ok(None)
    }

    fn queue_outgoing(&mut self, out: OutgoingMessage) -> tungstenite::Result<()> {
        if self.closing.is_some() {
            return Ok(());
        }
        ignore_would_block(match out {
            OutgoingMessage::Text(text) => self.ws.write(Message::text(text)),
            OutgoingMessage::Binary(bytes) => self.ws.write(Message::binary(bytes)),
            OutgoingMessage::Close(code, reason) => {
                self.closing = Some(Instant::now() + limits::GOODBYE);
                self.ws.close(Some(CloseFrame { code: code.into(), reason: reason.into() }))
            }
        })
    }

    fn flush(&mut self) -> tungstenite::Result<()> {
        match self.ws.flush() {
            Ok(()) => self.blocked = None,
            Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                let written = self.ws.get_ref().written;
                if self.blocked.is_none_or(|(_, before)| before != written) {
                    self.blocked = Some((Instant::now(), written));
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads the available messages. Returns `true` if more may be buffered in this process, where poll(2) does not
    /// see them.
    fn read_messages(&mut self) -> tungstenite::Result<bool> {
        for _ in 0..READS_PER_TURN {
            let message = match self.ws.read() {
                Ok(message) => message,
                Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            self.last_received = Instant::now();
            if self.large {
                let wire = self.ws.get_mut();
                match &message {
                    Message::Text(_) | Message::Binary(_) => wire.completed(),
                    // Control frames may occur between the fragments of a message, so their bytes do not count.
                    control => wire.pending = wire.pending.saturating_sub(control.len() + CONTROL_HEAD_BYTES),
                }
            }
            if self.closing.is_some() {
                continue;
            }
            match &message {
                Message::Text(text) => self.conversation.incoming(IncomingMessage::Text(text)),
                Message::Binary(bytes) => self.conversation.incoming(IncomingMessage::Binary(bytes)),
                _ => {}
            }
            if self.conversation.is_full() {
                break;
            }
        }
        Ok(true)
    }

    /// Waits for the next event of the session, with one poll(2).
    fn wait(&mut self, full: bool, more: bool) -> tungstenite::Result<Option<CloseReason>> {
        let now = Instant::now();
        let reads = !full || self.closing.is_some();
        if !reads {
            // The session does not read, so the peer's pongs cannot arrive. A disconnect is still detected.
            self.last_received = now;
        }
        let deadline = [
            self.closing,
            self.blocked.map(|(since, _)| since + self.pace.stall),
            Some(self.last_received + self.pace.ping + self.pace.patience),
            self.closing.is_none().then_some(self.last_ping + self.pace.ping),
        ];
        let left = deadline
            .into_iter()
            .flatten()
            .min()
            .map_or(self.pace.ping, |at| at.saturating_duration_since(now));
        // While the network is full, pending messages of the conversation cannot be sent, and the conversation's
        // descriptor would wake the thread continuously. The thread therefore ignores it and checks at intervals.
        let deaf = self.blocked.is_some() || self.closing.is_some() || self.ws.get_ref().starved.is_some();
        let left = match (reads, deaf) {
            (true, _) if more => Duration::ZERO,
            (false, true) => left.min(CLOSE_CHECK),
            _ => left,
        };
        let mut flags = PollFlags::RDHUP;
        flags.set(PollFlags::IN, reads);
        flags.set(PollFlags::OUT, self.blocked.is_some());
        let wire = self.ws.get_ref();
        let mut fds = vec![PollFd::new(&wire.socket, flags)];
        if !deaf {
            fds.push(PollFd::from_borrowed_fd(self.conversation.wake(), PollFlags::IN));
        }
        if self.closing.is_none() {
            fds.push(PollFd::new(self.conversation.revoked(), PollFlags::IN));
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(WsError::Io(errno.into())),
        }
        let seen = fds[0].revents();
        let lost = seen.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        // While the session reads, it detects a disconnect by the EOF after the remaining input.
        Ok((lost || !reads && seen.contains(PollFlags::RDHUP)).then_some(CloseReason::Closed))
    }

    /// Reports a protocol violation to the peer, then reads the peer's remaining input: a close with unread input
    /// would discard the report.
    fn report_violation(&mut self, error: &WsError) {
        let code = match error {
            WsError::Capacity(_) => CloseCode::Size,
            WsError::Utf8(_) => CloseCode::Invalid,
            _ => CloseCode::Protocol,
        };
        let mut reason = error.to_string();
        while reason.len() > REASON_BYTES {
            reason.pop();
        }
        let _ = self.ws.close(Some(CloseFrame { code, reason: reason.into() }));
        let wire = self.ws.get_mut();
        wire.socket.shutdown(Shutdown::Write);
        let until = Instant::now() + limits::LINGER;
        let mut rest = [0u8; 4 << 10];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let ready = poll(&mut [PollFd::new(&wire.socket, PollFlags::IN)], Some(&timeout));
            if left.is_zero() || ready.is_err() || !matches!(wire.socket.read(&mut rest), Ok(1..)) {
                return;
            }
        }
    }
}

/// Maximum length of a close reason. A control frame holds 125 bytes, of which the code takes two (RFC 6455, 5.5).
pub const REASON_BYTES: usize = 123;

/// Treats a write that would block as successful, because the message stays in tungstenite's buffer.
fn ignore_would_block(written: tungstenite::Result<()>) -> tungstenite::Result<()> {
    match written {
        Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "websocket_tests.rs"]
mod tests;
