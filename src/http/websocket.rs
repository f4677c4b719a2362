//! WebSockets (RFC 6455): the server's half of the handshake, and one thread for each socket that the gate hands over.
//! It sends and receives at the same time, so that neither can hold up the other; what is to be said comes from a
//! [`Conversation`], about which nothing is known here.
//!
//! Every wait has an end: a peer that does not answer pings is gone, and so is one that does not take what it is sent.

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
use super::reply::Response;
use super::request::Request;
use crate::base::{Code, Error, Result, limits};
use crate::proc::Cancel;

/// A handshake that was asked for.
#[derive(Debug)]
pub struct Handshake {
    accept: String,
    protocol: Option<&'static str>,
}

impl Handshake {
    /// Reads what a client offers; of its subprotocols the first one that is `known` is chosen. The gate lets only
    /// complete handshakes through.
    ///
    /// # Errors
    /// `InvalidRequest` when the request is no handshake.
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

    /// The answer; the socket goes to whoever left the ticket ([`super::client::Tickets`]).
    pub fn accept(self, ticket: String) -> Response {
        let response = Response::upgraded(ticket).with("Sec-WebSocket-Accept", self.accept);
        match self.protocol {
            Some(protocol) => response.with("Sec-WebSocket-Protocol", protocol),
            None => response,
        }
    }
}

/// What a client said.
#[derive(Debug)]
pub enum IncomingMessage<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary one.
    Binary(&'a [u8]),
}

/// What it is told.
#[derive(Debug)]
pub enum OutgoingMessage {
    /// A text message.
    Text(String),
    /// A binary one.
    Binary(Vec<u8>),
    /// The end, with a code (RFC 6455, 7.4) and a reason of at most 123 bytes.
    Close(u16, String),
}

/// What is said on a socket. No call may wait.
pub trait Conversation {
    /// Readable when [`Conversation::outgoing`] has something, or there is room for more that comes in.
    fn wake(&self) -> BorrowedFd<'_>;

    /// Everything there is to say now. Called only when the last of it has been taken by the network.
    fn outgoing(&mut self) -> Vec<OutgoingMessage>;

    /// Takes a message.
    fn incoming(&mut self, message: IncomingMessage<'_>);

    /// Whether it cannot take another yet; the peer is not read from until it can.
    fn is_full(&mut self) -> bool;

    /// The largest message that it may take.
    fn message_bytes(&self) -> usize {
        limits::SOCKET_MESSAGE_BYTES
    }

    /// Whether there is memory for a message of more than [`limits::SOCKET_MESSAGE_BYTES`] now. Asked before more than
    /// that is read of one; the rest waits in the network until there is.
    fn admit_large(&mut self) -> bool {
        true
    }

    /// Raised when the peer's credential is not good any more.
    fn revoked(&self) -> &Cancel;
}

/// How patient a socket is.
#[derive(Clone, Copy, Debug)]
pub struct SocketTimeouts {
    /// A ping goes out this often.
    pub ping: Duration,
    /// Nothing, not even the answer to a ping, has come for this long after one: the peer is gone.
    pub patience: Duration,
    /// The peer has taken nothing for this long: it does not read any more.
    pub stall: Duration,
}

impl Default for SocketTimeouts {
    fn default() -> SocketTimeouts {
        SocketTimeouts { ping: limits::PING, patience: limits::PONG, stall: limits::WRITE_STALL }
    }
}

/// How a socket came to its end; for log lines and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// Both sides have said goodbye, or the peer hung up.
    Closed,
    /// The peer answered no ping.
    PingTimeout,
    /// The peer took nothing any more.
    WriteTimeout,
    /// The peer broke the protocol.
    Broken,
}

/// Reads before anything else is looked at: a peer that sends without end must not keep us from answering.
const READS_PER_TURN: usize = 32;

/// How often a conversation that is full is looked at while the network is full as well.
const CLOSE_CHECK: Duration = Duration::from_millis(100);

/// How long a large message waits for memory.
const LARGE_PATIENCE: Duration = Duration::from_secs(60);

/// How long it may take to arrive once it has it: 8 MiB over a line of 250 kbit/s.
const LARGE_ARRIVAL: Duration = Duration::from_secs(300);

/// A frame's head with its mask, where the payload has at most 125 bytes (RFC 6455, 5.2).
const CONTROL_HEAD_BYTES: usize = 6;

/// The peer's socket, and how much it has taken.
struct MeteredSocket {
    socket: ClientSocket,
    written: u64,
    /// Bytes that were read since the last message.
    pending: usize,
    /// As many may be read before the next message is complete.
    allowance: usize,
    /// Since when that many have been read.
    starved: Option<Instant>,
    /// Since when there has been memory for the large message that is arriving.
    admitted: Option<Instant>,
}

impl MeteredSocket {
    /// A message has come: the next one starts from nothing.
    fn completed(&mut self) {
        self.pending = 0;
        self.admitted = None;
        self.allowance = self.allowance.min(SMALL_ALLOWANCE);
    }
}

/// What may be read of a message without asking for memory: a message that needs no permit, in frames of some bytes,
/// and what is read ahead.
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
    /// The last time anything came.
    last_received: Instant,
    last_ping: Instant,
    /// Since when the network has taken nothing of what waits, and how much it had taken until then.
    blocked: Option<(Instant, u64)>,
    /// We have said goodbye; the peer has until then to say it too.
    closing: Option<Instant>,
    /// Messages may be large enough to need memory that must be asked for.
    large: bool,
}

/// Holds the conversation on this thread until it is over. `early`: what came behind the handshake.
pub fn serve(
    socket: ClientSocket,
    early: Vec<u8>,
    conversation: impl Conversation,
    pace: SocketTimeouts,
) -> CloseReason {
    if rustix::io::ioctl_fionbio(&socket, true).is_err() {
        return CloseReason::Broken;
    }
    // What the kernel holds is neither counted nor replaced by something newer. Without it megabytes would wait there.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, limits::SOCKET_BUFFER_BYTES);
    let config = WebSocketConfig::default()
        .read_buffer_size(limits::RELAY_BYTES)
        .write_buffer_size(limits::RELAY_BYTES)
        .max_frame_size(Some(conversation.message_bytes()))
        .max_message_size(Some(conversation.message_bytes()));
    // Where no message can be large, its size alone is the limit.
    let large = conversation.message_bytes() > limits::SOCKET_MESSAGE_BYTES;
    let allowance = if large { SMALL_ALLOWANCE } else { usize::MAX };
    let wire = MeteredSocket { socket, written: 0, pending: 0, allowance, starved: None, admitted: None };
    let now = Instant::now();
    let mut talk = WebSocketSession {
        ws: WebSocket::from_partially_read(wire, early, Role::Server, Some(config)),
        conversation,
        pace,
        last_received: now,
        last_ping: now,
        blocked: None,
        closing: None,
        large,
    };
    match talk.run() {
        Ok(left) => left,
        Err(
            WsError::ConnectionClosed
            | WsError::AlreadyClosed
            | WsError::Io(_)
            | WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake),
        ) => CloseReason::Closed,
        Err(error) => {
            talk.part(&error);
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
            self.feed();
            let more = (self.closing.is_some() || !self.conversation.is_full()) && self.read_messages()?;
            let full = self.conversation.is_full() || self.ws.get_ref().starved.is_some();
            if let Some(left) = self.wait(full, more)? {
                return Ok(left);
            }
        }
    }

    /// Lets the rest of a large message in, once there is memory for it.
    fn feed(&mut self) {
        let closing = self.closing.is_some();
        if self.ws.get_ref().starved.is_some() && (closing || self.conversation.admit_large()) {
            let wire = self.ws.get_mut();
            wire.starved = None;
            wire.admitted = Some(Instant::now());
            // The size of the message is the limit from here on.
            wire.allowance = usize::MAX;
        }
    }

    /// What is due.
    fn check_timeouts(&mut self) -> tungstenite::Result<Option<CloseReason>> {
        let now = Instant::now();
        if self.closing.is_some_and(|until| now >= until) {
            return Ok(Some(CloseReason::Closed));
        }
        if self.blocked.is_some_and(|(since, _)| now >= since + self.pace.stall) {
            return Ok(Some(CloseReason::WriteTimeout));
        }
        if self.closing.is_none() && self.conversation.revoked().is_cancelled() {
            let reason = "The credential is not good any more".into();
            self.queue_outgoing(OutgoingMessage::Close(CloseCode::Policy.into(), reason))?;
        }
        let wire = self.ws.get_ref();
        let late = wire.admitted.is_some_and(|since| now >= since + LARGE_ARRIVAL);
        if self.closing.is_none() && (late || wire.starved.is_some_and(|since| now >= since + LARGE_PATIENCE))
        {
            let reason = match late {
                true => "A large message took too long to arrive",
                false => "Too many large messages are on their way; try again later",
            };
            let reason = reason.into();
            self.queue_outgoing(OutgoingMessage::Close(CloseCode::Again.into(), reason))?;
        }
        if now >= self.last_received + self.pace.ping + self.pace.patience {
            return Ok(Some(CloseReason::PingTimeout));
        }
        if self.closing.is_none() && now >= self.last_ping + self.pace.ping {
            self.last_ping = now;
            taken(self.ws.write(Message::Ping(Bytes::new())))?;
        }
        Ok(None)
    }

    fn queue_outgoing(&mut self, out: OutgoingMessage) -> tungstenite::Result<()> {
        if self.closing.is_some() {
            return Ok(());
        }
        taken(match out {
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

    /// Takes what has come; `true` when there may be more, which poll(2) need not know of.
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
                    // It may stand between the frames of a message.
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

    /// One poll(2) over everything that can happen.
    fn wait(&mut self, full: bool, more: bool) -> tungstenite::Result<Option<CloseReason>> {
        let now = Instant::now();
        let reads = !full || self.closing.is_some();
        if !reads {
            // Its pongs lie unread because of us, not because of it. That it hangs up shows all the same.
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
        // What waits in the conversation cannot be fetched while the network is full, and would wake us all the time;
        // then only time tells whether it can take more.
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
        // Who reads learns of a hang-up by reading to the end of what came before it.
        Ok((lost || !reads && seen.contains(PollFlags::RDHUP)).then_some(CloseReason::Closed))
    }

    /// Tells a peer that broke the protocol, so that its author can see why, and hears it out: a close with something
    /// unread would destroy what we said.
    fn part(&mut self, error: &WsError) {
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

/// Longest reason of a close: a control frame holds 125 bytes, two of them the code (RFC 6455, 5.5).
pub const REASON_BYTES: usize = 123;

/// A message that the network did not take yet waits in the socket's buffer.
fn taken(written: tungstenite::Result<()>) -> tungstenite::Result<()> {
    match written {
        Err(WsError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "websocket_tests.rs"]
mod tests;
