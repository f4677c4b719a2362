//! The poll loop that watches one process on the calling thread: its streams, exit, deadline and cancellation.
//! **Invariant:** it never blocks on a single stream, so a child that does not read, or a grandchild that keeps a pipe open,
//! cannot delay the answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Cancel, Exit, Process, Sink};
use crate::base::fair_semaphore::{FairSemaphore, SemaphorePermit};
use crate::base::input_bytes::InputBytes;
use crate::base::{At, Result, limits};

/// The server's ends of a process's streams.
pub struct ProcessIo<'a> {
    /// The pipe to stdin and its input; the pipe is closed after the input.
    pub stdin: Option<(OwnedFd, InputBytes)>,
    /// The pipe from stdout.
    pub stdout: OwnedFd,
    /// The pipe from stderr.
    pub stderr: OwnedFd,
    /// Receives stdout.
    pub out: &'a mut dyn Sink,
    /// Receives stderr.
    pub err: &'a mut dyn Sink,
}

/// How watching a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessOutcome {
    /// The process ended by itself. Background processes may continue, unless the kernel killed it because memory ran out.
    Exited(Exit),
    /// The deadline passed; the process and everything it started have been killed.
    TimedOut,
    /// The run was cancelled; the process and everything it started have been killed.
    Cancelled,
}

/// Permits for copying large output. A few threads copy as fast as the disk allows; many delay every other thread of the
/// machine, since each also lets another process write.
static COPY_PERMITS: LazyLock<FairSemaphore> =
    LazyLock::new(|| FairSemaphore::new((FairSemaphore::processors() / 2).max(1)));
/// A process's output up to this size is copied without a permit.
const COPY_FREELY_BYTES: u64 = 64 << 10;

/// The read end of a stream, and its receiver.
struct OutputPipe<'a> {
    fd: Option<OwnedFd>,
    sink: &'a mut dyn Sink,
    /// Number of bytes read.
    bytes_read: u64,
}

impl OutputPipe<'_> {
    /// Reads everything that is in the pipe now: the output before the process's end, not the later output of others.
    fn drain(&mut self, buffer: &mut [u8]) {
        let Some(fd) = &self.fd else { return };
        // A terminal reports only what its line discipline has passed on, so at least the usual size of a pipe is read.
        let waiting = rustix::io::ioctl_fionread(fd).unwrap_or(0).max(limits::PIPE_CHUNK as u64);
        let before = self.bytes_read;
        let _permit = self.permit();
        while self.fd.is_some() && self.bytes_read - before < waiting {
            let had = self.bytes_read;
            self.read(buffer, 1);
            if self.bytes_read == had {
                return;
            }
        }
    }

    /// Waits for a permit if the process writes a lot.
    fn permit(&self) -> Option<SemaphorePermit<'static>> {
        (self.bytes_read >= COPY_FREELY_BYTES).then(|| COPY_PERMITS.wait())
    }

    /// Reads a few chunks.
    fn read_on(&mut self, buffer: &mut [u8]) {
        let _permit = self.permit();
        self.read(buffer, 4);
    }

    /// Reads at most `chunks` times; closes the descriptor at end of file.
    fn read(&mut self, buffer: &mut [u8], chunks: usize) {
        for _ in 0..chunks {
            let Some(fd) = &self.fd else { return };
            match rustix::io::read(fd, &mut *buffer) {
                Ok(0) => self.fd = None,
                Ok(n) => {
                    self.bytes_read += n as u64;
                    self.sink.take(&buffer[..n]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.fd = None,
            }
        }
    }
}

/// Watches the process until it has ended or was killed.
///
/// # Errors
/// When the process never started (no program has run then), or its status was lost.
pub fn pump(
    process: &mut dyn Process,
    io: ProcessIo<'_>,
    timeout: Duration,
    cancel: &Cancel,
) -> Result<ProcessOutcome> {
    let mut stdin = io.stdin.map(|(fd, bytes)| (fd, bytes, 0u64));
    let mut out = OutputPipe { fd: Some(io.stdout), sink: io.out, bytes_read: 0 };
    let mut err = OutputPipe { fd: Some(io.stderr), sink: io.err, bytes_read: 0 };
    for fd in [out.fd.as_ref(), err.fd.as_ref(), stdin.as_ref().map(|s| &s.0)].into_iter().flatten() {
        rustix::io::ioctl_fionbio(fd, true).at("prepare", "a pipe")?;
    }
    let mut buffer = vec![0u8; limits::PIPE_CHUNK];
    let mut deadline = Instant::now() + timeout;
    let mut terminated = false;
    loop {
        let ready = wait(process.exit_fd(), cancel.as_fd(), &stdin, &out, &err, deadline)?;
        if ready.stdin {
            write_stdin(&mut stdin);
        }
        // Output first: when the exit is seen, everything that the process wrote is in the pipes.
        if ready.out {
            out.read_on(&mut buffer);
        }
        if ready.err {
            err.read_on(&mut buffer);
        }
        if ready.done {
            match process.try_exit() {
                Ok(None) => {}
                Ok(Some(exit)) => {
                    if terminated || was_oom_killed(process, exit) {
                        process.kill();
                    }
                    out.drain(&mut buffer);
                    err.drain(&mut buffer);
                    return Ok(if terminated {
                        ProcessOutcome::TimedOut
                    } else {
                        ProcessOutcome::Exited(exit)
                    });
                }
                Err(error) => {
                    process.kill();
                    return Err(error);
                }
            }
        }
        if ready.cancel {
            process.kill();
            out.drain(&mut buffer);
            err.drain(&mut buffer);
            return Ok(ProcessOutcome::Cancelled);
        }
        if Instant::now() >= deadline {
            if terminated {
                process.kill();
                out.drain(&mut buffer);
                err.drain(&mut buffer);
                return Ok(ProcessOutcome::TimedOut);
            }
            process.terminate();
            terminated = true;
            deadline = Instant::now() + limits::TERM_GRACE;
        }
    }
}

/// Whether the kernel killed the process itself because memory ran out. Its remaining children are then killed as well: they
/// have no parent and hold memory that the rest of the group lacks.
fn was_oom_killed(process: &dyn Process, exit: Exit) -> bool {
    exit == Exit::Signal(libc::SIGKILL) && process.oom_killed() == Some(true)
}

#[derive(Default)]
struct ReadyStreams {
    done: bool,
    cancel: bool,
    stdin: bool,
    out: bool,
    err: bool,
}

/// Waits with one poll(2) for all events, until `deadline`.
fn wait(
    done: BorrowedFd<'_>,
    cancel: BorrowedFd<'_>,
    stdin: &Option<(OwnedFd, InputBytes, u64)>,
    out: &OutputPipe<'_>,
    err: &OutputPipe<'_>,
    deadline: Instant,
) -> Result<ReadyStreams> {
    let streams = [
        (stdin.as_ref().map(|stdin| &stdin.0), PollFlags::OUT),
        (out.fd.as_ref(), PollFlags::IN),
        (err.fd.as_ref(), PollFlags::IN),
    ];
    let mut fds =
        vec![PollFd::from_borrowed_fd(done, PollFlags::IN), PollFd::from_borrowed_fd(cancel, PollFlags::IN)];
    let mut places = [None; 3];
    for ((fd, flags), place) in streams.into_iter().zip(&mut places) {
        if let Some(fd) = fd {
            *place = Some(fds.len());
            fds.push(PollFd::from_borrowed_fd(fd.as_fd(), flags));
        }
    }
    let [stdin_at, out_at, err_at] = places;
    let left = deadline.saturating_duration_since(Instant::now());
    // The kernel rounds the timeout up to its resolution; so this neither spins nor is late by more than a tick.
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(ReadyStreams::default()),
        Err(error) => return Err(error).at("poll", "a process"),
    }
    let hit = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
    let ready = ReadyStreams {
        done: hit(Some(0)),
        cancel: hit(Some(1)),
        stdin: hit(stdin_at),
        out: hit(out_at),
        err: hit(err_at),
    };
    Ok(ready)
}

/// Writes as much input as the pipe takes; closes it when all is written or the process no longer reads.
fn write_stdin(stdin: &mut Option<(OwnedFd, InputBytes, u64)>) {
    let Some((fd, bytes, sent)) = stdin else { return };
    match bytes.with_chunk(*sent, |piece| rustix::io::write(&*fd, piece)) {
        Ok(Ok(n)) => *sent += n as u64,
        Ok(Err(Errno::AGAIN | Errno::INTR)) => {}
        // EPIPE: the process does not want its input, which is not an error.
        Ok(Err(_)) => *sent = bytes.len(),
        Err(error) => {
            log::error!("The rest of a command's input was lost: {error}");
            *sent = bytes.len();
        }
    }
    if *sent >= bytes.len() {
        *stdin = None;
    }
}
