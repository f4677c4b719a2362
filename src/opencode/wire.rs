//! Connections to upstreams for ureq: non-blocking sockets with poll(2), so that a thread that waits for an upstream
//! also notices its client's disconnect ([`super::watch`]). The address of each connection is checked against the
//! rules in [`super::address`].
//!
//! Unlike ureq's own transport, this transport can cancel a wait, read a response that arrives before the request was
//! sent completely, distinguish a reset from an end of file, and hand the connection over after an upgrade.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use ureq::Error as UreqError;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use super::address::ListenAddresses;
use super::lookup::HostLookup;
use super::managed::{Managed, ROUTED};
use super::watch::{self, CallWatch, WaitError};
use crate::base::limits;

/// How long a connection to an upstream may be idle. It is then closed, before OpenCode closes it.
const UPSTREAM_IDLE: Duration = Duration::from_secs(15);

/// A non-blocking connection to an upstream.
pub(super) enum Channel {
    Plain(TcpStream),
    /// A connection through the route of the OpenCode that this server runs.
    Routed(UnixStream),
}

impl Channel {
    /// Returns the poll flags to wait for after a read or write that would block.
    pub(super) fn wants(&self, reading: bool) -> PollFlags {
        match self {
            Channel::Plain(_) | Channel::Routed(_) if reading => PollFlags::IN,
            Channel::Plain(_) | Channel::Routed(_) => PollFlags::OUT,
        }
    }

    /// Shuts down the direction to the upstream.
    pub(super) fn finish(&mut self) {
        match self {
            Channel::Plain(stream) => drop(stream.shutdown(std::net::Shutdown::Write)),
            Channel::Routed(stream) => drop(stream.shutdown(std::net::Shutdown::Write)),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Channel::Plain(stream) => stream.as_fd(),
            Channel::Routed(stream) => stream.as_fd(),
        }
    }
}

impl Read for Channel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Channel::Plain(stream) => stream.read(buffer),
            Channel::Routed(stream) => stream.read(buffer),
        }
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Channel::Plain(stream) => stream.write(bytes),
            Channel::Routed(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection owned by ureq.
pub(super) struct UpstreamConnection {
    channel: Option<Channel>,
    buffers: LazyBuffers,
    /// Whether the upstream has stopped reading. It may still send its response.
    send_closed: bool,
    name: String,
}

impl fmt::Debug for UpstreamConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wire({})", self.name)
    }
}

fn no_channel() -> UreqError {
    UreqError::Io(WaitError::UpstreamClosed.into())
}

/// Returns the watch of the current thread, which is always set while ureq runs.
fn watched() -> Result<std::rc::Rc<CallWatch>, UreqError> {
    watch::current().ok_or_else(|| UreqError::Io(io::Error::other("no current request")))
}

impl UpstreamConnection {
    fn send(&mut self, amount: usize, watch: &CallWatch) -> Result<(), UreqError> {
        let Some(channel) = &mut self.channel else { return Err(no_channel()) };
        let (mut sent, output) = (0, &self.buffers.output()[..amount]);
        let mut deadline = Instant::now() + limits::WRITE_STALL;
        while sent < amount && !self.send_closed {
            match channel.write(&output[sent..]) {
                Ok(count) => {
                    sent += count;
                    deadline = Instant::now() + limits::WRITE_STALL;
                    watch.request_sent();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let seen = watch.wait(channel.as_fd(), channel.wants(false) | PollFlags::IN, deadline)?;
                    // If the connection is not writable, the upstream sends its response or closes, instead of reading
                    // on.
                    self.send_closed = !seen.contains(PollFlags::OUT);
                }
                Err(_) => self.send_closed = true,
            }
        }
        Ok(())
    }

    fn receive(&mut self, watch: &CallWatch) -> Result<bool, UreqError> {
        let Some(channel) = &mut self.channel else { return Err(no_channel()) };
        let deadline = Instant::now() + limits::UPSTREAM_SILENCE;
        loop {
            match channel.read(self.buffers.input_append_buf()) {
                Ok(count) => {
                    self.buffers.input_appended(count);
                    watch.received.set(watch.received.get() || count > 0);
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watch.wait(channel.as_fd(), channel.wants(true), deadline)?;
                }
                // The error must not reach ureq as a reset: for a body that ends with the connection, ureq would treat
                // a reset as the end of the body.
                Err(_) => return Err(UreqError::Io(WaitError::UpstreamClosed.into())),
            }
        }
    }
}

impl Transport for UpstreamConnection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), UreqError> {
        let watch = watched()?;
        self.send(amount, &watch)
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, UreqError> {
        let watch = watched()?;
        self.receive(&watch)
    }

    fn is_open(&mut self) -> bool {
        // If an idle connection is readable, the upstream has closed it or has sent an unrequested response.
        let quiet = match &mut self.channel {
            Some(channel) => {
                matches!(channel.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
            }
            None => false,
        };
        quiet && !self.send_closed
    }
}

impl Drop for UpstreamConnection {
    /// Saves the connection for the request's watch, because ureq closes a connection after a protocol upgrade.
    fn drop(&mut self) {
        let Some(watch) = watch::current().filter(|watch| watch.wants_upgrade) else { return };
        if let Some(channel) = self.channel.take() {
            watch.upgraded.replace(Some((channel, self.buffers.input().to_vec())));
        }
    }
}

/// Opens connections for ureq.
#[derive(Debug)]
pub(super) struct Dialler {
    pub(super) own: ListenAddresses,
    pub(super) lookup: Arc<HostLookup>,
    pub(super) managed: Option<Arc<Managed>>,
}

impl Connector for Dialler {
    type Out = UpstreamConnection;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<UpstreamConnection>, UreqError> {
        let watch = watched()?;
        watch.connected.set(true);
        let authority = details.uri.authority().ok_or(UreqError::HostNotFound)?;
        let port = authority.port_u16().unwrap_or(80);
        let wire = |channel: Channel, name: String| UpstreamConnection {
            channel: Some(channel),
            buffers: LazyBuffers::new(
                details.config.input_buffer_size(),
                details.config.output_buffer_size(),
            ),
            send_closed: false,
            name,
        };
        if authority.host() == ROUTED {
            let stream = self.follow_route(port, &watch).map_err(UreqError::Io)?;
            return Ok(Some(wire(Channel::Routed(stream), ROUTED.to_owned())));
        }
        let mut failed = UreqError::HostNotFound;
        let found = self.lookup.addresses(authority.host(), port, watch.stopping());
        for address in found.map_err(|error| UreqError::Io(io::Error::other(error.message().to_owned())))? {
            match self.dial(address, &watch) {
                Ok(stream) => return Ok(Some(wire(Channel::Plain(stream), address.to_string()))),
                // If one address of a host is refused, the host's other addresses are not tried.
                Err(error)
                    if matches!(
                        WaitError::of(&error),
                        Some(
                            WaitError::Address(_) | WaitError::ClientDisconnected | WaitError::ServerStopping
                        )
                    ) =>
                {
                    return Err(UreqError::Io(error));
                }
                Err(error) => failed = UreqError::Io(error),
            }
        }
        Err(failed)
    }
}

impl Dialler {
    /// Connects to the OpenCode that this server runs in a container without a network address.
    fn follow_route(&self, port: u16, watch: &CallWatch) -> io::Result<UnixStream> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let route = self.managed.as_ref().and_then(|managed| managed.route()).ok_or_else(refused)?;
        let mut stream = route.connect(port).map_err(|_| refused())?;
        let deadline = Instant::now() + limits::UPSTREAM_CONNECT;
        let mut answer = [0];
        loop {
            match stream.read(&mut answer) {
                Ok(1) if route.is_connected(answer[0]) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watch.wait(stream.as_fd(), PollFlags::IN, deadline).map_err(|error| {
                        if WaitError::of(&error) == Some(WaitError::TimedOut) {
                            WaitError::ConnectTimeout.into()
                        } else {
                            error
                        }
                    })?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The container has exited, or no process in it listens on that port.
                Ok(_) | Err(_) => return Err(refused()),
            }
        }
    }

    fn dial(&self, address: SocketAddr, watch: &CallWatch) -> io::Result<TcpStream> {
        if let Some(why) = self.own.refusal(address) {
            return Err(WaitError::Address(why).into());
        }
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {}
            Err(Errno::INPROGRESS) => {
                let deadline = Instant::now() + limits::UPSTREAM_CONNECT;
                watch.wait(socket.as_fd(), PollFlags::OUT, deadline).map_err(|error| {
                    if WaitError::of(&error) == Some(WaitError::TimedOut) {
                        WaitError::ConnectTimeout.into()
                    } else {
                        error
                    }
                })?;
                sockopt::socket_error(&socket)??;
            }
            Err(error) => return Err(error.into()),
        }
        sockopt::set_tcp_nodelay(&socket, true)?;
        // Without keepalive probes, berth could not distinguish a stream from an unreachable machine from a stream
        // without data.
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, limits::UPSTREAM_PROBE)?;
        sockopt::set_tcp_keepintvl(&socket, limits::UPSTREAM_PROBE / 3)?;
        sockopt::set_tcp_keepcnt(&socket, 3)?;
        let stream = TcpStream::from(socket);
        if self.own.is_peer_of(&stream)? {
            return Err(WaitError::Address(super::address::OWN_ADDRESS).into());
        }
        Ok(stream)
    }
}

/// ureq resolves addresses before each request, even for a pooled connection. This resolver returns no addresses;
/// [`Dialler`] resolves the host name when it opens a connection.
#[derive(Debug)]
pub(super) struct DeferredResolver;

impl Resolver for DeferredResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, UreqError> {
        Ok(self.empty())
    }
}

/// How long a connection in ureq's pool may stay idle.
pub(super) const IDLE: Duration = UPSTREAM_IDLE;
