//! The tiny_http servers: their threads receive requests from the gate over a private socket and answer them.
//! Normally there is one server; if it stops accepting connections, another is opened on a new path.
//!
//! The worker threads read from tiny_http's own queue. A second queue (a channel and a thread that fills it) would
//! cost 8 of the 68 µs of CPU time of a list request, and two of its six thread switches.
//!
//! Threads: `http-N`, a fixed number per server, and those of tiny_http. Lock: `servers`, a leaf.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::request::Request;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Error, Result, limits};

type RequestHandler = dyn Fn(Request) + Send + Sync;

/// All tiny_http servers and their threads.
pub struct HttpServers {
    servers: Mutex<Vec<Server>>,
    size: usize,
    handle: Arc<RequestHandler>,
    probe_header: &'static str,
}

/// A tiny_http server. Dropping it lets accepted requests finish, then ends its threads.
struct Server {
    inner: Arc<tiny_http::Server>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinOnDrop>,
}

impl HttpServers {
    /// Creates the pool without a server. Each server calls `handle` on `size` threads; `handle` must not block for
    /// longer than a file access. A request with the header `probe_header` is answered without `handle`, which
    /// proves that a thread serves its connection.
    pub fn new(
        size: usize,
        ping: &'static str,
        handle: impl Fn(Request) + Send + Sync + 'static,
    ) -> HttpServers {
        HttpServers { servers: Mutex::default(), size, handle: Arc::new(handle), probe_header: ping }
    }

    /// Starts a server on a Unix socket at `path`, which must not exist, and ends all older servers. The gate calls
    /// this when the older servers accept no connections and after it has dropped its connections to them.
    ///
    /// # Errors
    /// Fails if the socket or a thread cannot be created.
    pub fn open(&self, path: &Path) -> Result<()> {
        let inner = tiny_http::Server::http_unix(path)
            .map_err(|error| Error::internal(format!("Cannot listen on {}: {error}", path.display())))?;
        let mut server =
            Server { inner: Arc::new(inner), ending: Arc::default(), threads: Vec::with_capacity(self.size) };
        for number in 0..self.size {
            let (handle, ping) = (self.handle.clone(), self.probe_header);
            let (inner, ending) = (server.inner.clone(), server.ending.clone());
            server.threads.push(spawn(format!("http-{number}"), limits::STACK, move || {
                loop {
                    match inner.recv() {
                        Ok(request) => take(request, ping, &*handle),
                        // `end` unblocked this thread, after all accepted requests.
                        Err(_) if ending.load(Ordering::SeqCst) => return,
                        // tiny_http's accept call failed permanently. Open connections still carry requests. The
                        // gate notices that no new connection succeeds, and opens another server.
                        Err(error) => log::error!("tiny_http has stopped accepting connections: {error}"),
                    }
                }
            })?);
        }
        let mut servers = lock(&self.servers);
        for old in servers.iter() {
            old.end();
        }
        // Threads of old servers may still be answering requests; they are joined at shutdown.
        servers.retain(|old| !old.threads.iter().all(JoinOnDrop::is_finished));
        servers.push(server);
        Ok(())
    }

    /// Stops all servers once they have answered their accepted requests.
    pub fn stop(&self) {
        let servers = std::mem::take(&mut *lock(&self.servers));
        drop(servers);
    }
}

impl Server {
    fn end(&self) {
        self.ending.store(true, Ordering::SeqCst);
        for _ in &self.threads {
            self.inner.unblock();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn take(request: tiny_http::Request, ping: &'static str, handle: &RequestHandler) {
    if request.headers().iter().any(|header| header.field.equiv(ping)) {
        let mut writer = request.into_writer();
        // An error means that the gate has closed the connection.
        let answered = writer.write_all(b"HTTP/1.1 204 No Content\r\nX-Berth-Whole: 1\r\n\r\n");
        let _ = answered.and_then(|()| writer.flush());
        return;
    }
    // The panic hook has logged the panic, and dispatch has answered the request, so the thread continues.
    drop(catch_unwind(AssertUnwindSafe(|| handle(Request::new(request)))));
}
