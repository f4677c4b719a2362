//! Relays the body of an upstream's answer, or the bytes after an upgrade, to the client's own socket. The thread
//! that sent the request to the upstream does that.

use std::io::Read as _;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use crate::base::{Result, limits};
use crate::http::client::{ClientSocket, Subscription, Tickets};
use crate::http::stream::StreamBody;
use crate::opencode::relay::{Tunnel, TunnelClient};
use crate::opencode::upstream::UpstreamBody;
use crate::proc::Cancel;

/// How often a thread that waits for its client's socket checks whether the client is still connected. The gate
/// hands the socket over within a millisecond after it has written the head.
const DISCONNECT_CHECK: Duration = Duration::from_millis(50);

/// A socket that the gate will hand over.
pub(super) struct PendingSocket {
    socket: Receiver<(ClientSocket, Vec<u8>)>,
    disconnected: Cancel,
    _watch: Option<Subscription>,
}

impl PendingSocket {
    /// Issues a ticket. Returns the number of the ticket, and the receiver of the socket.
    pub(super) fn new(
        tickets: &Tickets,
        disconnected: &Cancel,
        watch: Option<Subscription>,
    ) -> Result<(String, PendingSocket)> {
        // The channel has room for the socket, so that the gate does not block.
        let (hand, socket) = bounded(1);
        let ticket = tickets.issue(move |client, early| drop(hand.try_send((client, early))))?;
        Ok((ticket, PendingSocket { socket, disconnected: disconnected.clone(), _watch: watch }))
    }

    /// Waits for the socket. Returns `None` if the client disconnects first.
    fn wait(self) -> Option<(ClientSocket, Vec<u8>)> {
        let deadline = Instant::now() + limits::TICKET;
        loop {
            match self.socket.recv_timeout(DISCONNECT_CHECK) {
                Ok((client, early)) => {
                    probe(&client);
                    return Some((client, early));
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout)
                    if self.disconnected.is_cancelled() || Instant::now() > deadline =>
                {
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Enables TCP keepalive. Without it, a silent stream would never notice that the client's machine was disconnected.
fn probe(client: &ClientSocket) {
    use rustix::net::sockopt;
    // If this fails, the socket is a Unix socket, which needs no keepalive.
    let _ = sockopt::set_socket_keepalive(client, true)
        .and_then(|()| sockopt::set_tcp_keepidle(client, limits::UPSTREAM_PROBE))
        .and_then(|()| sockopt::set_tcp_keepintvl(client, limits::UPSTREAM_PROBE / 3))
        .and_then(|()| sockopt::set_tcp_keepcnt(client, 3));
}

/// Relays a body to its client. If the upstream connection breaks, the client's connection is closed too.
pub(super) fn relay(body: UpstreamBody, handed: PendingSocket) {
    if let Some((socket, _)) = handed.wait() {
        relay_until(body, socket);
    }
}

/// Relays a body like [`relay`], to a socket that was already handed over.
pub(super) fn relay_until(mut body: UpstreamBody, socket: ClientSocket) {
    probe(&socket);
    body.watch().set_client(Rc::new(socket.clone()));
    let mut out = StreamBody::new(socket);
    let mut buffer = vec![0; limits::UPSTREAM_BUFFER_BYTES];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return drop(out.end()),
            Ok(count) if out.send(&buffer[..count]).is_ok() => {}
            Ok(_) => return,
            Err(error) => {
                log::debug!("an answer of OpenCode was truncated: {error}");
                return out.abort();
            }
        }
    }
}

/// Relays bytes in both directions until both sides are done.
pub(super) fn connect(tunnel: Tunnel, handed: PendingSocket) {
    if let Some((socket, early)) = handed.wait() {
        let left = tunnel.relay(socket, early);
        log::debug!("a WebSocket to OpenCode ended: {left:?}");
    }
}

impl TunnelClient for ClientSocket {
    fn finish(&self, how: Shutdown) {
        self.shutdown(how);
    }
}
