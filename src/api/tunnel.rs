//! An upstream's body, or what follows an upgrade, on its way to the client's own socket, on the thread that asked the
//! upstream for it.

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

/// How often a thread that waits for its client's socket looks whether the client is still there. The gate hands the
/// socket over within the millisecond in which it writes the head.
const DISCONNECT_CHECK: Duration = Duration::from_millis(50);

/// A socket that the gate will hand over.
pub(super) struct PendingSocket {
    socket: Receiver<(ClientSocket, Vec<u8>)>,
    gone: Cancel,
    _watch: Option<Subscription>,
}

impl PendingSocket {
    /// Leaves a ticket; its number, and where the socket will come out.
    pub(super) fn new(
        tickets: &Tickets,
        gone: &Cancel,
        watch: Option<Subscription>,
    ) -> Result<(String, PendingSocket)> {
        // Room for the one that comes: the gate waits for nobody.
        let (hand, socket) = bounded(1);
        let ticket = tickets.issue(move |client, early| drop(hand.try_send((client, early))))?;
        Ok((ticket, PendingSocket { socket, gone: gone.clone(), _watch: watch }))
    }

    /// Waits for it; `None` when the client has gone before.
    fn wait(self) -> Option<(ClientSocket, Vec<u8>)> {
        let deadline = Instant::now() + limits::TICKET;
        loop {
            match self.socket.recv_timeout(DISCONNECT_CHECK) {
                Ok((client, early)) => {
                    probe(&client);
                    return Some((client, early));
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.gone.is_cancelled() || Instant::now() > deadline => {
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Has the kernel find out when the client's machine has vanished: a silent stream would wait for it for ever.
fn probe(client: &ClientSocket) {
    use rustix::net::sockopt;
    // On a Unix socket there is nothing to probe.
    let _ = sockopt::set_socket_keepalive(client, true)
        .and_then(|()| sockopt::set_tcp_keepidle(client, limits::UPSTREAM_PROBE))
        .and_then(|()| sockopt::set_tcp_keepintvl(client, limits::UPSTREAM_PROBE / 3))
        .and_then(|()| sockopt::set_tcp_keepcnt(client, 3));
}

/// Writes a body to its client as it comes. One that breaks off is broken off.
pub(super) fn relay(body: UpstreamBody, handed: PendingSocket) {
    if let Some((socket, _)) = handed.wait() {
        relay_until(body, socket);
    }
}

/// The same, where the socket is there already.
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
                log::debug!("an answer of OpenCode broke off: {error}");
                return out.abort();
            }
        }
    }
}

/// Relays until both sides are done.
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
