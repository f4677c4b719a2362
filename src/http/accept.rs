//! The tiny_http servers: the threads that take requests from the gate's private socket and answer them. There is one,
//! and another on a new path should the first ever accept no more.
//!
//! tiny_http's own queue is the one between it and the pool: a second one behind it (a channel with a thread that fills
//! it) cost 8 of the 68 µs of processor time that a list took, and two of six changes of thread.
//!
//! Threads: `http-N`, a fixed number for each server; tiny_http's own. Lock: `servers`, a leaf.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::request::Request;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Error, Result, limits};

type RequestHandler = dyn Fn(Request) + Send + Sync;

/// All servers and their threads.
pub struct HttpServers {
    servers: Mutex<Vec<Server>>,
    size: usize,
    handle: Arc<RequestHandler>,
    probe_header: &'static str,
}

/// One of tiny_http's. Dropping it lets what was taken be answered, and ends its threads.
struct Server {
    inner: Arc<tiny_http::Server>,
    ending: Arc<AtomicBool>,
    threads: Vec<JoinOnDrop>,
}

impl HttpServers {
    /// No server yet. `handle` runs on `size` threads, and must not wait for anything longer than a file. A request
    /// with the header `ping` is answered without it: the answer proves that the connection is being served.
    pub fn new(
        size: usize,
        ping: &'static str,
        handle: impl Fn(Request) + Send + Sync + 'static,
    ) -> HttpServers {
        HttpServers { servers: Mutex::default(), size, handle: Arc::new(handle), probe_header: ping }
    }

    /// Starts a server on a Unix socket at `path`, which must be free. Older ones are let go: the gate calls this when
    /// they take no connections any more, and has forgotten those that they had.
    ///
    /// # Errors
    /// When the socket or a thread cannot be made.
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
                        // Unblocked, behind all requests that were taken.
                        Err(_) if ending.load(Ordering::SeqCst) => return,
                        // Its own accept has failed, once and for all. The connections that it has still bring
                        // requests; the gate notices that there are no new ones, and has another opened.
                        Err(error) => log::error!("tiny_http accepts no more connections: {error}"),
                    }
                }
            })?);
        }
        let mut servers = lock(&self.servers);
        for old in servers.iter() {
            old.end();
        }
        // A thread that is still answering is joined at the end of all.
        servers.retain(|old| !old.threads.iter().all(JoinOnDrop::is_finished));
        servers.push(server);
        Ok(())
    }

    /// Ends all servers once what they have taken is answered.
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
        // Whoever asked is gone if this fails.
        let answered = writer.write_all(b"HTTP/1.1 204 No Content\r\nX-Berth-Whole: 1\r\n\r\n");
        let _ = answered.and_then(|()| writer.flush());
        return;
    }
    // The panic hook has logged it, and dispatch's own guard has answered. The thread lives on.
    drop(catch_unwind(AssertUnwindSafe(|| handle(Request::new(request)))));
}
