//! The tiny_http loops: each takes requests from the gate's private socket and hands them to the pool. There is one,
//! and another on a new path should the first ever end.
//!
//! Threads: `http-accept`, one for each loop; `http-N` in the pool; tiny_http's own. Lock: `running`, a leaf.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::request::Request;
use crate::base::pool::Pool;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Error, Result, limits};

type Handle = dyn Fn(Request) + Send + Sync;

/// All loops and their pool.
pub struct Loops {
    // Joined before the pool that they feed.
    running: Mutex<Vec<(Arc<tiny_http::Server>, JoinOnDrop)>>,
    pool: Arc<Pool>,
    handle: Arc<Handle>,
    ping: &'static str,
    stopping: Arc<AtomicBool>,
}

impl Loops {
    /// No loop yet. `handle` runs on the pool's threads; a request with the header `ping` is answered by the loop
    /// itself, so that its answer proves that the connection is being served.
    pub fn new(pool: Pool, ping: &'static str, handle: impl Fn(Request) + Send + Sync + 'static) -> Loops {
        Loops {
            running: Mutex::default(),
            pool: Arc::new(pool),
            handle: Arc::new(handle),
            ping,
            stopping: Arc::default(),
        }
    }

    /// Starts a loop on a Unix socket at `path`, which must be free.
    ///
    /// # Errors
    /// When the socket or the thread cannot be made.
    pub fn open(&self, path: &Path) -> Result<()> {
        let server = tiny_http::Server::http_unix(path)
            .map_err(|error| Error::internal(format!("Cannot listen on {}: {error}", path.display())))?;
        let server = Arc::new(server);
        let (pool, handle, ping) = (self.pool.clone(), self.handle.clone(), self.ping);
        let stopping = self.stopping.clone();
        let taking = server.clone();
        let thread = spawn("http-accept".into(), limits::STACK, move || {
            loop {
                let request = match taking.recv() {
                    Ok(request) => request,
                    Err(_) if stopping.load(Ordering::SeqCst) => return,
                    // Its own accept has failed, once and for all. The connections that it has still bring requests;
                    // the gate notices that there are no new ones, and has another loop opened.
                    Err(error) => {
                        log::error!("tiny_http accepts no more connections: {error}");
                        continue;
                    }
                };
                if request.headers().iter().any(|header| header.field.equiv(ping)) {
                    let mut writer = request.into_writer();
                    // Whoever asked is gone if this fails.
                    let answered = writer.write_all(b"HTTP/1.1 204 No Content\r\nX-Berth-Whole: 1\r\n\r\n");
                    let _ = answered.and_then(|()| writer.flush());
                    continue;
                }
                let handle = handle.clone();
                pool.submit_waiting(move || handle(Request::new(request)));
            }
        })?;
        lock(&self.running).push((server, thread));
        Ok(())
    }

    /// Ends the loops; what was taken is answered before the pool ends.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let running = std::mem::take(&mut *lock(&self.running));
        for (server, _) in &running {
            server.unblock();
        }
    }
}
