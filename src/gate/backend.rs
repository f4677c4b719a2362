//! Connections to tiny_http. A connection is used for requests only after a probe has confirmed that a thread serves
//! it.
//!
//! tiny_http 0.12 counts its idle threads before a woken thread has lowered the count (`util/task_pool.rs`), so when
//! several connections arrive together, some may wait for a thread that never comes. The gate therefore connects one
//! at a time: a new connection is made under a lock, which is held until a probe request on it has been answered. By
//! then its thread has taken the task and lowered the count under tiny_http's own lock, so the next count is correct.
//!
//! Connections are reused for any client, but only after a complete request and an answer that the backend marked as
//! reusable (`ResponseHead::reusable`), so no bytes remain on them.
//!
//! Threads: those of the client connections, and `gate-accept`, which closes idle backend connections. Locks:
//! `state` (held while connecting), then `idle` (a leaf).

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};

use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, limits};

/// Timeout for tiny_http's answer to a probe request. The probe needs no work, but a thrashing machine needs this
/// long.
const INSIDE_ANSWER: Duration = Duration::from_secs(5);
/// How long a connection thread waits for an answer before it starts to watch its client too. Most answers arrive
/// sooner; a disconnect is noticed this much later. The kernel's ticks are up to 10 ms.
const QUICK_ANSWER: Duration = Duration::from_millis(10);
/// Number of unanswered probes after which tiny_http is restarted.
const INSIDE_SILENCES: u32 = 2;
/// Minimum interval between two restarts of tiny_http.
const INSIDE_PAUSE: Duration = Duration::from_secs(1);

/// Starts tiny_http and its request loop on a socket at this path. The gate calls it at start-up, and again with
/// another path if the loop has died.
pub type StartBackend = Box<dyn Fn(&Path) -> Result<()> + Send + Sync>;

/// The header of a probe request. The backend answers a probe before it checks anything else.
pub const PROBE_HEADER: &str = "X-Berth-Ping";

pub(super) struct Backend {
    folder: PathBuf,
    /// Keeps `/proc/self/fd/N` valid, the short form of a folder path that is too long for a socket address.
    handle: OwnedFd,
    open: StartBackend,
    state: Mutex<BackendState>,
    idle: Mutex<VecDeque<(UnixStream, Instant)>>,
}

struct BackendState {
    number: u32,
    path: PathBuf,
    opened: Instant,
    /// When the last attempt to connect failed; `None` if it succeeded.
    failed: Option<Instant>,
    /// Number of consecutive probes that were not answered.
    unanswered_probes: u32,
}

impl Backend {
    /// Creates the private folder and starts the backend in it.
    ///
    /// # Errors
    /// If the folder cannot be created, or `open` fails.
    pub(super) fn new(folder: &Path, open: StartBackend) -> Result<Backend> {
        // The data folder is locked, so the folder can only contain files that a crashed server left.
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

    /// Returns a connection that has a serving thread.
    ///
    /// # Errors
    /// `Busy` if no descriptors are free, `Unavailable` if the backend does not answer.
    pub(super) fn take(&self) -> Result<UnixStream> {
        if let Some(stream) = self.take_idle() {
            return Ok(stream);
        }
        let mut line = lock(&self.state);
        // While this thread waited for the lock, another thread may have returned a connection.
        if let Some(stream) = self.take_idle() {
            return Ok(stream);
        }
        // If the thread before this one failed, the threads queued behind it would only repeat its attempt one by
        // one.
        if line.failed.is_some_and(|failed| failed.elapsed() < INSIDE_PAUSE) {
            return Err(Error::new(Code::Unavailable, UNAVAILABLE));
        }
        self.check_free_descriptors()?;
        let taken = self.connect_or_restart(&mut line);
        line.failed = taken.is_err().then(Instant::now);
        if let Err(cause) = &taken {
            log::warn!("Cannot connect to the HTTP backend: {cause}");
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
        // A timeout may only mean overload. A request loop that has died refuses or closes the connection.
        if failed.code() == Code::Busy && line.unanswered_probes < INSIDE_SILENCES {
            line.unanswered_probes += 1;
            return Err(failed);
        }
        if line.opened.elapsed() < INSIDE_PAUSE {
            return Err(failed);
        }
        log::error!("The HTTP backend accepts no connections ({failed}); restarting it");
        // Idle connections may belong to the dead loop, which would never read from them.
        lock(&self.idle).clear();
        self.reopen(line)?;
        connect_and_probe(&line.path)
    }

    fn take_idle(&self) -> Option<UnixStream> {
        lock(&self.idle).pop_back().map(|(stream, _)| stream)
    }

    /// Keeps a connection for a later request.
    pub(super) fn give_back(&self, stream: UnixStream) {
        lock(&self.idle).push_back((stream, Instant::now()));
    }

    /// Closes connections that have been idle for longer than `INSIDE_IDLE`.
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
        // unix(7): a path has at most 108 bytes including the NUL.
        line.path = if path.as_os_str().len() < 108 {
            path
        } else {
            format!("/proc/self/fd/{}/{name}", self.handle.as_raw_fd()).into()
        };
        (self.open)(&line.path)
    }

    /// Checks that a few descriptors are free, because tiny_http panics or ends its loop without them. A connection
    /// needs two descriptors in tiny_http and one in the gate. If another thread takes them first, the loop is
    /// restarted.
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

/// Connects, and waits until the probe request has been answered by the thread that serves the connection.
fn connect_and_probe(path: &Path) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path).at("connect to", path)?;
    stream.set_read_timeout(Some(INSIDE_ANSWER)).at("set up", path)?;
    stream
        .write_all(format!("GET / HTTP/1.1\r\n{PROBE_HEADER}: 1\r\n\r\n").as_bytes())
        .at("write to", path)?;
    let mut answer = Vec::with_capacity(512);
    while super::answer::head_length(&answer) != Some(answer.len()) {
        let mut piece = [0; 512];
        let read = match stream.read(&mut piece) {
            // signal(7): a call with a timeout is not restarted, not even after the thread was stopped only briefly.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(Error::new(Code::Busy, "no answer before the deadline").with_source(error));
            }
            other => other.at("read from", path)?,
        };
        answer.extend_from_slice(&piece[..read]);
        if read == 0 || answer.len() > 4096 {
            return Err(Error::internal("The HTTP backend did not answer the probe request"));
        }
    }
    if !answer.starts_with(b"HTTP/1.1 204") {
        return Err(Error::internal("The HTTP backend did not recognize the probe request"));
    }
    stream.set_read_timeout(Some(QUICK_ANSWER)).at("set up", path)?;
    Ok(stream)
}

const UNAVAILABLE: &str = "The server cannot accept requests at the moment; try again";
