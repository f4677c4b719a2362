//! The tiny_http loop: takes requests and hands each to the pool.
//!
//! Threads: `http-accept` here; `http-N` in the pool; tiny_http's own behind its listener.

use std::net::{SocketAddr, ToSocketAddrs};
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
        let server = tiny_http::Server::http(addresses.as_slice())
            .map_err(|error| Error::config(&place, format!("cannot listen: {error}")))?;
        let address =
            server.server_addr().to_ip().ok_or_else(|| Error::config(&place, "not an IP address"))?;
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
