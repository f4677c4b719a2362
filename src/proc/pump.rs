//! The poll loop that watches one process on the calling thread: its streams, exit, deadline and cancellation.
//! **Invariant:** the loop never blocks on a single stream, so a child that does not read, or a grandchild that keeps a
//! pipe open, cannot delay the answer.

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
    /// The pipe to stdin, and the input. The pipe is closed after the last byte of the input.
    pub stdin: Option<(OwnedFd, InputBytes)>,
    /// The pipe from stdout.
    pub stdout: OwnedFd,
    /// The pipe from stderr.
    pub stderr: OwnedFd,
    /// Receives the bytes of stdout.
    pub out: &'a mut dyn Sink,
    /// Receives the bytes of stderr.
    pub err: &'a mut dyn Sink,
}

/// How the watched process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessOutcome {
    /// The process ended by itself. Its background processes may continue, unless the kernel killed the process because
    /// memory ran out.
    Exited(Exit),
    /// The deadline passed; the process and all processes that it started have been killed.
    TimedOut,
    /// The run was cancelled; the process and all processes that it started have been killed.
    Cancelled,
}

/// Permits for copying large output. A few threads copy as fast as the disk allows. More threads would delay every
/// other thread of the machine, because each copying thread also lets another process write.
static COPY_PERMITS: LazyLock<FairSemaphore> =
    LazyLock::new(|| FairSemaphore::new((FairSemaphore::processors() / 2).max(1)));
/// Maximum size up to which a process's output is copied without a permit.
const COPY_FREELY_BYTES: u64 = 64 << 10;

/// The read end of a stream, and the sink that receives its bytes.
struct OutputPipe<'a> {
    fd: Option<OwnedFd>,
    sink: &'a mut dyn Sink,
    /// Number of bytes that were read from the stream.
    bytes_read: u64,
}

impl OutputPipe<'_> {
    /// Reads all bytes that are in the pipe now: the output before the end of the process, but not the later output of
    /// other processes.
    fn drain(&mut self, buffer: &mut [u8]) {
        let Some(fd) = &self.fd else { return };
        // A terminal reports only the bytes that its line discipline has passed on, so at least the usual size of a
        // pipe is read.
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

    /// Waits for a permit if the process has already written much output.
    fn permit(&self) -> Option<SemaphorePermit<'static>> {
        (self.bytes_read >= COPY_FREELY_BYTES).then(|| COPY_PERMITS.wait())
    }

    /// Reads a few chunks from the stream.
    fn read_on(&mut self, buffer: &mut [u8]) {
        let _permit = self.permit();
        self.read(buffer, 4);
    }

    /// Reads at most `chunks` times, and closes the descriptor at the end of the stream.
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
/// When the process never started (then no program has run), or when its exit status was lost.
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
        // Read the output before the exit: when the process has ended, all its output is in the pipes.
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

/// Returns whether the kernel killed the process itself because memory ran out. In this case, its remaining children
/// are killed as well: they have no parent any more and hold memory that the rest of the group needs.
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

/// Waits with one poll(2) for an event on any of the descriptors, at most until `deadline`.
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
    // The kernel rounds the timeout up to its resolution, so the loop neither spins nor is late by more than a tick.
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

/// Writes as much input as the pipe accepts. Closes the pipe when all input is written or the process no longer reads.
fn write_stdin(stdin: &mut Option<(OwnedFd, InputBytes, u64)>) {
    let Some((fd, bytes, sent)) = stdin else { return };
    match bytes.with_chunk(*sent, |piece| rustix::io::write(&*fd, piece)) {
        Ok(Ok(n)) => *sent += n as u64,
        Ok(Err(Errno::AGAIN | Errno::INTR)) => {}
        // EPIPE means that the process has closed its stdin, which is not an error.
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
