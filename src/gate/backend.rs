//! Connections to tiny_http, each known to be served before a request depends on it.
//!
//! tiny_http 0.12 counts its idle threads before a woken one has lowered the count (`util/task_pool.rs`), so of several
//! connections that arrive together some can wait for a thread that never comes. Here they arrive one at a time: a
//! new one is made under a lock, which is kept until a question sent over it has been answered. By then its thread has
//! taken the task and lowered the count under tiny_http's own lock, so the next count is true: either a thread is
//! counted that will look into the queue before it sleeps, or a new one is started.
//!
//! Connections are kept and used again, by whichever client comes next, but only after an answer that the inside
//! vouched for (`Answer::whole`) to a request that had gone in whole: nothing can be left on them.
//!
//! Threads: the connections' own and `gate-accept`, which trims. Locks: `line` (held while connecting), then `stock`
//! (a leaf).

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};

use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, limits};

/// Starts tiny_http and its loop on a socket at this path. Called at the start, and again on another path when the
/// loop was found dead.
pub type StartBackend = Box<dyn Fn(&Path) -> Result<()> + Send + Sync>;

/// The question that is answered before anything else is looked at.
pub const PROBE_HEADER: &str = "X-Berth-Ping";

pub(super) struct Backend {
    folder: PathBuf,
    /// Keeps the short path of a long folder's name alive.
    handle: OwnedFd,
    open: StartBackend,
    state: Mutex<BackendState>,
    idle: Mutex<VecDeque<(UnixStream, Instant)>>,
}

struct BackendState {
    number: u32,
    path: PathBuf,
    opened: Instant,
    /// When the last attempt failed, if it did.
    failed: Option<Instant>,
    /// Greetings in a row that were not answered.
    unanswered_probes: u32,
}

impl Backend {
    /// Makes the private folder and starts the inside in it.
    ///
    /// # Errors
    /// When the folder cannot be made, or `open` failed.
    pub(super) fn new(folder: &Path, open: StartBackend) -> Result<Backend> {
        // Only what a crashed server left can be there: the data folder is locked.
        clear(folder);
        fs::DirBuilder::new().mode(0o700).create(folder).at("create the folder", folder)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::open(folder, flags, Mode::empty()).at("open", folder)?;
        let inside = Backend {
            folder: folder.to_owned(),
            handle,
            open,
            state: Mutex::new(BackendState {
                number: 0,
                path: PathBuf::new(),
                opened: Instant::now(),
                failed: None,
                unanswered_probes: 0,
            }),
            idle: Mutex::default(),
        };
        inside.reopen(&mut lock(&inside.state))?;
        Ok(inside)
    }

    /// A connection that is being served.
    ///
    /// # Errors
    /// `Busy` when there are no descriptors for it, `Unavailable` when the inside does not answer.
    pub(super) fn take(&self) -> Result<UnixStream> {
        if let Some(stream) = self.take_idle() {
            return Ok(stream);
        }
        let mut line = lock(&self.state);
        // One may have come back while we waited for our turn.
        if let Some(stream) = self.take_idle() {
            return Ok(stream);
        }
        // Whoever waited behind a failure would only repeat it, one after the other.
        if line.failed.is_some_and(|failed| failed.elapsed() < limits::INSIDE_PAUSE) {
            return Err(Error::new(Code::Unavailable, UNAVAILABLE));
        }
        self.check_free_descriptors()?;
        let taken = self.connect_or_restart(&mut line);
        line.failed = taken.is_err().then(Instant::now);
        if let Err(cause) = &taken {
            log::warn!("A request cannot be passed inside: {cause}");
        }
        taken.map_err(|cause| Error::new(Code::Unavailable, UNAVAILABLE).with_source(cause))
    }

    fn connect_or_restart(&self, line: &mut BackendState) -> Result<UnixStream> {
        let failed = match connect_and_probe(&line.path) {
            Ok(stream) => {
                line.unanswered_probes = 0;
                return Ok(stream);
            }
            Err(error) => error,
        };
        // Silence may only mean that it has too much to do; a loop that has ended refuses or hangs up.
        if failed.code() == Code::Busy && line.unanswered_probes < limits::INSIDE_SILENCES {
            line.unanswered_probes += 1;
            return Err(failed);
        }
        if line.opened.elapsed() < limits::INSIDE_PAUSE {
            return Err(failed);
        }
        log::error!("The HTTP loop takes no connections ({failed}); starting another");
        // The old ones may belong to a loop that has ended: their requests would never be picked up.
        lock(&self.idle).clear();
        self.reopen(line)?;
        connect_and_probe(&line.path)
    }

    fn take_idle(&self) -> Option<UnixStream> {
        lock(&self.idle).pop_back().map(|(stream, _)| stream)
    }

    /// Keeps a connection for the next request.
    pub(super) fn give_back(&self, stream: UnixStream) {
        lock(&self.idle).push_back((stream, Instant::now()));
    }

    /// Lets go of what a busier time has left.
    pub(super) fn trim(&self) {
        let mut stock = lock(&self.idle);
        while stock.front().is_some_and(|(_, since)| since.elapsed() > limits::INSIDE_IDLE) {
            stock.pop_front();
        }
    }

    fn reopen(&self, line: &mut BackendState) -> Result<()> {
        line.number += 1;
        line.opened = Instant::now();
        line.unanswered_probes = 0;
        let name = format!("http-{}", line.number);
        let path = self.folder.join(&name);
        // unix(7): 108 bytes, a NUL among them.
        line.path = if path.as_os_str().len() < 108 {
            path
        } else {
            format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd()).into()
        };
        (self.open)(&line.path)
    }

    /// tiny_http panics or ends its loop when it runs out of descriptors: it needs two for a connection, we one.
    /// Somebody else may take them between this look and the use; then the loop is replaced.
    fn check_free_descriptors(&self) -> Result<()> {
        let look = || {
            (0..4).map(|_| rustix::io::fcntl_dupfd_cloexec(&self.handle, 0)).collect::<Result<Vec<_>, _>>()
        };
        match look() {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::new(Code::Busy, "The server is out of file descriptors")
                .with_source(std::io::Error::from(error))),
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        clear(&self.folder);
    }
}

fn clear(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let _ = fs::remove_file(entry.path());
    }
    let _ = fs::remove_dir(folder);
}

/// Connects and waits until a thread of tiny_http has taken the connection.
fn connect_and_probe(path: &Path) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path).at("connect to", path)?;
    stream.set_read_timeout(Some(limits::INSIDE_ANSWER)).at("set up", path)?;
    stream
        .write_all(format!("GET / HTTP/1.1\r\n{PROBE_HEADER}: 1\r\n\r\n").as_bytes())
        .at("write to", path)?;
    let mut answer = Vec::with_capacity(512);
    while super::answer::head_length(&answer) != Some(answer.len()) {
        let mut piece = [0; 512];
        let read = match stream.read(&mut piece) {
            // signal(7): with a timeout the call is not restarted, also when the kernel stops a thread for a moment.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(Error::new(Code::Busy, "no answer in time").with_source(error));
            }
            other => other.at("read from", path)?,
        };
        answer.extend_from_slice(&piece[..read]);
        if read == 0 || answer.len() > 4096 {
            return Err(Error::internal("The HTTP loop did not answer its first question"));
        }
    }
    if !answer.starts_with(b"HTTP/1.1 204") {
        return Err(Error::internal("The HTTP loop did not understand its first question"));
    }
    stream.set_read_timeout(Some(limits::QUICK_ANSWER)).at("set up", path)?;
    Ok(stream)
}

const UNAVAILABLE: &str = "The server cannot take requests at the moment";
