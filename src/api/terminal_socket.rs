//! The messages on terminal WebSockets. `/shell` uses the protocol of sandboxed.sh: the client sends the text
//! messages `{"t":"i","d":INPUT}` and `{"t":"r","c":COLS,"r":ROWS}`, and receives output as text messages; all other
//! messages are ignored. `…/terminals/:t/ws` accepts the same messages, and raw input as binary messages. It sends
//! output as binary messages and state as text messages: `{"t":"role","writes":…}`, `{"t":"size","c":…,"r":…}`,
//! `{"t":"exit",…}`. A client that sends `{"t":"take"}` becomes the writer.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use std::time::Instant;

use super::Ctx;
use crate::access::TokenLease;
use crate::base::{Result, limits};
use crate::http::websocket::{
    Conversation, Handshake, IncomingMessage, OutgoingMessage, SocketTimeouts, serve,
};
use crate::http::{Request, Response};
use crate::proc::{Cancel, Exit};
use crate::terminals::paste::{PASTE_BYTES, PASTE_MESSAGE_BYTES, PASTE_PATIENCE, PasteBudget, PastePermit};
use crate::terminals::request::nearest_size;
use crate::terminals::watch::WatchEvent;
use crate::terminals::{TerminalEnd, TerminalWatcher};

/// The subprotocols of both kinds of socket. The first one that the client offers is selected.
pub const PROTOCOLS: [&str; 2] = ["sandboxed.sh", "sandboxed"];

/// The protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketProtocol {
    /// The protocol of `/shell`.
    Shell,
    /// The protocol of `…/terminals/:t/ws`.
    Terminal,
}

/// The resources that a socket needs when it opens.
pub struct SocketOpener {
    tickets: crate::http::client::Tickets,
    permit: crate::base::pool::Permit,
    handshake: Handshake,
    pastes: PasteBudget,
    revoked: Cancel,
    lease: Option<TokenLease>,
}

impl SocketOpener {
    /// Reserves a worker for the socket that the request asks for.
    ///
    /// # Errors
    /// `InvalidRequest` if the request is not a handshake, `Busy` if all workers are busy.
    pub fn new(ctx: &Ctx, request: &Request) -> Result<SocketOpener> {
        let revoked = Cancel::new()?;
        let lease = request.actor().map(|actor| {
            let raised = revoked.clone();
            ctx.credentials.leases.acquire(actor, Duration::ZERO, move || raised.cancel())
        });
        Ok(SocketOpener {
            tickets: ctx.tickets.clone(),
            handshake: Handshake::of(request, &PROTOCOLS)?,
            permit: ctx.stream_permit(request.party())?,
            pastes: ctx.lifecycle.terminals().pastes.clone(),
            revoked,
            lease,
        })
    }

    /// Answers the handshake. The session begins when the gate hands the socket over.
    ///
    /// # Errors
    /// Fails if the kernel returns no random bytes.
    pub fn open(self, watcher: TerminalWatcher, language: SocketProtocol) -> Result<Response> {
        let socket = TerminalSocket {
            watcher,
            language,
            pending: PendingInput::default(),
            pastes: self.pastes,
            arriving: None,
            permit: None,
            problem: None,
            revoked: self.revoked,
            _lease: self.lease,
        };
        let permit = self.permit;
        let ticket = self.tickets.issue(move |client, early| {
            permit.run(move || {
                let terminal = socket.watcher.terminal().id;
                let left = serve(client, early, socket, SocketTimeouts::default());
                log::debug!("terminal {terminal}: a client disconnected: {left:?}");
            });
        })?;
        Ok(self.handshake.accept(ticket))
    }
}

struct TerminalSocket {
    watcher: TerminalWatcher,
    language: SocketProtocol,
    pending: PendingInput,
    pastes: PasteBudget,
    /// The permit for a large message that is being received.
    arriving: Option<PastePermit>,
    /// The permit for the message of which `pending` is the rest.
    permit: Option<PastePermit>,
    /// The code and reason with which the socket must be closed.
    problem: Option<(u16, &'static str)>,
    revoked: Cancel,
    _lease: Option<TokenLease>,
}

/// Input for which the terminal has no room yet.
#[derive(Default)]
struct PendingInput {
    bytes: Vec<u8>,
    taken: usize,
    /// When the program in the terminal last read some of the input.
    progress: Option<Instant>,
}

#[derive(Deserialize)]
#[serde(tag = "t")]
enum ClientMessage {
    #[serde(rename = "i")]
    Input { d: String },
    #[serde(rename = "r")]
    Resize { c: u16, r: u16 },
    #[serde(rename = "take")]
    Take,
}

impl TerminalSocket {
    /// Accepts input. The caller must wait until the previous input has been written.
    fn write_input(&mut self, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        if bytes.len() > PASTE_BYTES {
            self.problem = Some((1009, "Input is limited to 8 MiB per message"));
            return;
        }
        self.pending = PendingInput { bytes, taken: 0, progress: Some(Instant::now()) };
        self.push();
    }

    fn push(&mut self) {
        let pending = &mut self.pending;
        if pending.taken < pending.bytes.len() {
            let taken = self.watcher.type_in(&pending.bytes[pending.taken..]);
            pending.taken += taken;
            if taken > 0 {
                pending.progress = Some(Instant::now());
            } else if self.permit.is_some()
                && pending.progress.is_some_and(|at| at.elapsed() >= PASTE_PATIENCE)
            {
                self.problem = Some((1013, "The program did not read its input, so the rest was dropped"));
            }
        }
        if self.pending.taken == self.pending.bytes.len() {
            self.pending = PendingInput::default();
            self.permit = None;
        }
    }

    fn encode(&self, out: WatchEvent) -> Vec<OutgoingMessage> {
        let news = |value: Value| OutgoingMessage::Text(value.to_string());
        match (out, self.language) {
            (WatchEvent::Text(text), SocketProtocol::Shell) => vec![OutgoingMessage::Text(text)],
            (WatchEvent::Text(text), SocketProtocol::Terminal) => {
                vec![OutgoingMessage::Binary(text.into_bytes())]
            }
            (WatchEvent::Role { writes }, SocketProtocol::Terminal) => {
                vec![news(json!({"t": "role", "writes": writes}))]
            }
            (WatchEvent::Size(size), SocketProtocol::Terminal) => {
                vec![news(json!({"t": "size", "c": size.cols, "r": size.rows}))]
            }
            (WatchEvent::Role { .. } | WatchEvent::Size(_), SocketProtocol::Shell) => Vec::new(),
            (WatchEvent::End(end), language) => {
                let mut status = exit_message(end);
                let close = OutgoingMessage::Close(1000, status.to_string());
                status["t"] = json!("exit");
                if language == SocketProtocol::Terminal { vec![news(status), close] } else { vec![close] }
            }
        }
    }
}

/// Returns the message about the end of the terminal. It is short enough for a close reason.
fn exit_message(end: TerminalEnd) -> Value {
    json!({
        "exit_code": end.exit.map_or(-1, Exit::code),
        "signal": end.exit.and_then(Exit::signal),
        "ended_by": end.reason,
    })
}

impl Conversation for TerminalSocket {
    fn wake(&self) -> BorrowedFd<'_> {
        self.watcher.as_fd()
    }

    fn outgoing(&mut self) -> Vec<OutgoingMessage> {
        if let Some((code, reason)) = self.problem.take() {
            self.pending = PendingInput::default();
            return vec![OutgoingMessage::Close(code, reason.to_owned())];
        }
        self.watcher.take().into_iter().flat_map(|out| self.encode(out)).collect()
    }

    fn incoming(&mut self, message: IncomingMessage<'_>) {
        self.permit = self.arriving.take();
        match (message, self.language) {
            // A message that is not understood is ignored, as in sandboxed.sh.
            (IncomingMessage::Text(text), _) => match serde_json::from_str(text) {
                Ok(ClientMessage::Input { d }) => self.write_input(d),
                Ok(ClientMessage::Resize { c, r }) if c > 0 && r > 0 => {
                    self.watcher.resize(nearest_size(c, r))
                }
                Ok(ClientMessage::Take) if self.language == SocketProtocol::Terminal => {
                    self.watcher.take_over()
                }
                _ => {}
            },
            (IncomingMessage::Binary(bytes), SocketProtocol::Terminal) => self.write_input(bytes),
            (IncomingMessage::Binary(_), SocketProtocol::Shell) => {}
        }
    }

    fn is_full(&mut self) -> bool {
        self.push();
        !self.pending.bytes.is_empty()
    }

    fn message_bytes(&self) -> usize {
        if self.watcher.may_write() { PASTE_MESSAGE_BYTES } else { limits::SOCKET_MESSAGE_BYTES }
    }

    fn admit_large(&mut self) -> bool {
        if self.arriving.is_none() {
            self.arriving = self.pastes.try_take(self.watcher.terminal().workspace);
        }
        self.arriving.is_some()
    }

    fn revoked(&self) -> &Cancel {
        &self.revoked
    }
}
