//! The tiny_http loop: takes requests and hands each to the pool.
//!
//! Threads: `http-accept` here; `http-N` in the pool; tiny_http's own behind its listener.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;

use super::request::Request;
use crate::base::pool::Pool;
use crate::base::thread::{JoinOnDrop, spawn};
use crate::base::{Error, Result, limits};

/// A bound listener whose loop can be ended from another thread.
pub struct Listener {
    server: Arc<tiny_http::Server>,
    address: SocketAddr,
}

impl Listener {
    /// Binds `host:port`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// `Config`, when the address is not ours or the port is taken.
    pub fn bind(host: &str, port: u16) -> Result<Listener> {
        let place = format!("{host}:{port}");
        let addresses: Vec<SocketAddr> =
            (host, port).to_socket_addrs().map_err(|error| Error::config(&place, error))?.collect();
        let failed = |error: &dyn std::fmt::Display| Error::config(&place, format!("cannot listen: {error}"));
        let listener = TcpListener::bind(addresses.as_slice()).map_err(|error| failed(&error))?;
        // Accepted sockets inherit it (tcp(7)). tiny_http writes head and body apart; with Nagle's algorithm the body
        // would wait 40 ms for the client's delayed acknowledgement.
        rustix::net::sockopt::set_tcp_nodelay(&listener, true).map_err(|error| failed(&error))?;
        let address = listener.local_addr().map_err(|error| failed(&error))?;
        let server = tiny_http::Server::from_listener(listener, None).map_err(|error| failed(&error))?;
        Ok(Listener { server: Arc::new(server), address })
    }

    /// The real address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until [`Listener::stop`]; `handle` runs on the pool's threads.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn serve(&self, pool: Pool, handle: impl Fn(Request) + Send + Sync + 'static) -> Result<JoinOnDrop> {
        let server = self.server.clone();
        let handle = Arc::new(handle);
        spawn("http-accept".into(), limits::STACK, move || {
            // recv fails when the loop is unblocked, and that is the only way to end it.
            while let Ok(request) = server.recv() {
                let handle = handle.clone();
                pool.submit_waiting(move || handle(Request::new(request)));
            }
            // The pool is dropped here: what was taken is answered before the thread ends.
        })
    }

    /// Ends the loop.
    pub fn stop(&self) {
        self.server.unblock();
    }
}
