//! Access to the client of a request: a handler can detect that the client disconnected, or take over its socket.
//! The gate, which owns the sockets, fills both registries.
//!
//! Threads: any. Locks: one in [`Disconnects`] and one in [`Tickets`], both leaves. Subscribers are notified, and
//! sockets are handed over, after the lock is released.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::base::shares::{Ledger, Share, ShareError, ShareHolder, Shares};
use crate::base::thread::lock;
use crate::base::{Error, Result, limits};
use crate::proc::Cancel;

/// A client socket: TCP or Unix.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Shuts down one or both directions. Ignores errors, which a closed socket returns.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = match self {
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Unix(stream) => stream.shutdown(how),
        };
    }
}

impl Socket {
    /// Returns whether the client has closed its sending side or the whole connection.
    pub fn is_disconnected(&self) -> bool {
        let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut [PollFd::new(self, closed)], Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).read(buffer),
            Socket::Unix(stream) => (&mut &*stream).read(buffer),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).write(bytes),
            Socket::Unix(stream) => (&mut &*stream).write(bytes),
        }
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).write_vectored(parts),
            Socket::Unix(stream) => (&mut &*stream).write_vectored(parts),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client socket that was taken over. It is blocking, and a write fails after [`limits::WRITE_STALL`]. Clones
/// share the socket, so one thread may read while another writes. Dropping the last clone closes the socket and
/// frees its slot at the gate. At shutdown the gate closes the socket.
#[derive(Clone)]
pub struct ClientSocket {
    socket: Arc<Socket>,
    _slot: Arc<dyn Any + Send + Sync>,
    chunked: bool,
}

impl ClientSocket {
    /// Wraps a socket that the gate hands over. Dropping `slot` with the last clone frees the slot at the gate.
    pub(crate) fn new(socket: Arc<Socket>, slot: Arc<dyn Any + Send + Sync>, chunked: bool) -> ClientSocket {
        ClientSocket { socket, _slot: slot, chunked }
    }

    /// Returns whether the head of the answer declared chunked encoding. Otherwise the body ends after the declared
    /// length or with the connection.
    pub fn is_chunked(&self) -> bool {
        self.chunked
    }

    pub fn shutdown(&self, how: Shutdown) {
        self.socket.shutdown(how);
    }

    /// Returns a function that shuts the socket down if it is still open. The function does not keep the socket
    /// open.
    pub fn cutter(&self) -> impl FnOnce() + Send + use<> {
        let socket = Arc::downgrade(&self.socket);
        move || {
            if let Some(socket) = socket.upgrade() {
                socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Attaches `guard` to the socket. It is dropped with the last clone.
    #[must_use]
    pub fn with_guard(self, guard: impl Any + Send + Sync) -> ClientSocket {
        ClientSocket { _slot: Arc::new((self._slot, guard)), ..self }
    }
}

impl fmt::Debug for ClientSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

impl AsFd for ClientSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for ClientSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.socket).read(buffer)
    }
}

impl Write for ClientSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.socket).write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&*self.socket).write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A registry that notifies subscribers when a client disconnects. The gate publishes disconnects; handlers
/// subscribe.
#[derive(Clone, Debug)]
pub struct Disconnects(Arc<Mutex<HashMap<u64, WatchedConnection>>>, Shares);

#[derive(Debug, Default)]
struct WatchedConnection {
    is_closed: bool,
    /// Whether the connection is reserved for owners and for routes that need no token.
    reserved: bool,
    /// The token of the last request on the connection, and that token's share of the connections.
    holder: Option<(ShareHolder, Share)>,
    next: u64,
    subscribers: Vec<(u64, Cancel)>,
}

impl Default for Disconnects {
    fn default() -> Disconnects {
        Disconnects::new(limits::CONNECTIONS)
    }
}

impl Disconnects {
    /// Creates a registry for at most `connections` connections.
    pub fn new(connections: usize) -> Disconnects {
        Disconnects(Arc::default(), Shares::new(Ledger::new(connections)))
    }

    /// Counts a connection against the token of its request.
    ///
    /// # Errors
    /// Fails if the token has used its share of the connections, or if the connection is reserved for owners.
    pub fn claim(&self, connection: u64, party: ShareHolder) -> std::result::Result<(), ShareError> {
        let party = party.without_workspace();
        let mut watched = lock(&self.0);
        let Some(watched) = watched.get_mut(&connection) else { return Ok(()) };
        if watched.reserved && !party.is_unlimited() && party != ShareHolder::ANONYMOUS {
            return Err(ShareError::Full);
        }
        if watched.holder.as_ref().is_none_or(|(holder, _)| *holder != party) {
            watched.holder = None;
            // The connection is in the registry, because the gate registered it when it accepted the client.
            watched.holder = Some((party, self.1.take_within_share(party)?));
        }
        Ok(())
    }

    /// Raises `flag` when the client of this connection disconnects, or at once if it already has. Dropping the
    /// returned subscription cancels this.
    pub fn subscribe(&self, connection: u64, flag: &Cancel) -> Subscription {
        let number = match lock(&self.0).get_mut(&connection) {
            Some(watched) if !watched.is_closed => {
                watched.next += 1;
                watched.subscribers.push((watched.next, flag.clone()));
                Some(watched.next)
            }
            _ => None,
        };
        if number.is_none() {
            flag.cancel();
        }
        Subscription { disconnects: self.clone(), connection, number: number.unwrap_or_default() }
    }

    /// Returns whether the client of this connection has disconnected.
    pub fn is_disconnected(&self, connection: u64) -> bool {
        lock(&self.0).get(&connection).is_none_or(|watched| watched.is_closed)
    }

    /// Returns whether the last request on this connection came from an owner.
    pub(crate) fn is_owners(&self, connection: u64) -> bool {
        let watched = lock(&self.0);
        let holder = watched.get(&connection).and_then(|watched| watched.holder.as_ref());
        holder.is_some_and(|(party, _)| party.is_unlimited())
    }

    /// Registers a connection. `reserved` means that it is reserved for owners.
    pub(crate) fn open(&self, connection: u64, reserved: bool) {
        lock(&self.0).insert(connection, WatchedConnection { reserved, ..WatchedConnection::default() });
    }

    pub(crate) fn raise(&self, connection: u64) {
        let flags = match lock(&self.0).get_mut(&connection) {
            Some(watched) => {
                watched.is_closed = true;
                std::mem::take(&mut watched.subscribers)
            }
            None => return,
        };
        for (_, flag) in flags {
            flag.cancel();
        }
    }

    pub(crate) fn close(&self, connection: u64) {
        self.raise(connection);
        lock(&self.0).remove(&connection);
    }
}

/// A subscription to the disconnect of one client. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    disconnects: Disconnects,
    connection: u64,
    number: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(watched) = lock(&self.disconnects.0).get_mut(&self.connection) {
            watched.subscribers.retain(|(number, _)| *number != self.number);
        }
    }
}

/// Receives the client's socket, and the bytes that the client sent after its request. It runs on the thread of the
/// connection and must return quickly.
pub type HandoverFn = Box<dyn FnOnce(ClientSocket, Vec<u8>) + Send>;

/// Pending hand-overs of sockets. A handler issues a ticket and answers with the ticket's number in
/// `X-Berth-Ticket`; the gate writes the head of the answer to the client, redeems the number, and hands the socket
/// over.
#[derive(Clone, Default)]
pub struct Tickets(Arc<Mutex<HashMap<String, (Instant, HandoverFn)>>>);

impl Tickets {
    /// Issues a ticket and returns its number. A client that knows the number cannot use it, because the gate reads
    /// numbers from answers only. An unused ticket is dropped some time after [`limits::TICKET`].
    ///
    /// # Errors
    /// Fails if the kernel returns no random bytes.
    pub fn issue(&self, take: impl FnOnce(ClientSocket, Vec<u8>) + Send + 'static) -> Result<String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| Error::internal("Cannot read random bytes").with_source(error))?;
        let number = format!("{:032x}", u128::from_ne_bytes(random));
        let mut waiting = lock(&self.0);
        let expired: Vec<String> = waiting
            .iter()
            .filter(|(_, (since, _))| since.elapsed() > limits::TICKET)
            .map(|(number, _)| number.clone())
            .collect();
        let expired: Vec<_> = expired.iter().filter_map(|number| waiting.remove(number)).collect();
        waiting.insert(number.clone(), (Instant::now(), Box::new(take)));
        drop(waiting);
        // Expired tickets are dropped after unlocking, because a ticket may own values that take locks when dropped.
        drop(expired);
        Ok(number)
    }

    /// Adds a change that is applied to the socket of an unredeemed ticket before the socket is handed over.
    pub fn amend(&self, number: &str, change: impl FnOnce(ClientSocket) -> ClientSocket + Send + 'static) {
        if let Some((_, take)) = lock(&self.0).get_mut(number) {
            let inner = std::mem::replace(take, Box::new(|_, _| {}));
            *take = Box::new(move |socket, early| inner(change(socket), early));
        }
    }

    /// Removes the ticket with this number and returns its function.
    pub fn redeem(&self, number: &str) -> Option<HandoverFn> {
        lock(&self.0).remove(number).map(|(_, take)| take)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({})", lock(&self.0).len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disconnects_are_reported_once_and_to_late_subscribers() {
        let disconnects = Disconnects::default();
        disconnects.open(7, false);
        let flags: Vec<Cancel> = (0..4).map(|_| Cancel::new().unwrap()).collect();
        let first = disconnects.subscribe(7, &flags[0]);
        drop(disconnects.subscribe(7, &flags[1]));
        assert!(!flags[0].is_cancelled());
        disconnects.raise(7);
        assert!(flags[0].is_cancelled());
        assert!(!flags[1].is_cancelled(), "its subscription was dropped");
        let _late = disconnects.subscribe(7, &flags[2]);
        assert!(flags[2].is_cancelled());
        drop(first);
        disconnects.close(7);
        let _unknown = disconnects.subscribe(7, &flags[3]);
        assert!(flags[3].is_cancelled());
    }

    #[test]
    fn a_ticket_can_be_redeemed_once() {
        let tickets = Tickets::default();
        let number = tickets.issue(|_, _| {}).unwrap();
        assert_eq!(number.len(), 32);
        assert!(tickets.redeem("x").is_none());
        assert!(tickets.redeem(&number).is_some());
        assert!(tickets.redeem(&number).is_none());
    }
}
