//! The poll loop that watches one process: its streams, its end, its deadline and its cancellation, on the calling
//! thread. Nothing in it waits for a stream alone: a child that never reads, or a grandchild that keeps a pipe
//! open, cannot hold the answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Cancel, Exit, Process, Sink};
use crate::base::fair_semaphore::{FairSemaphore, SemaphorePermit};
use crate::base::input_bytes::InputBytes;
use crate::base::{At, Result, limits};

/// Our side of a process's streams.
pub struct ProcessIo<'a> {
    /// The pipe to its stdin and what goes there, then end of file.
    pub stdin: Option<(OwnedFd, InputBytes)>,
    /// The pipe from its stdout.
    pub stdout: OwnedFd,
    /// The pipe from its stderr.
    pub stderr: OwnedFd,
    /// Takes its stdout.
    pub out: &'a mut dyn Sink,
    /// Takes its stderr.
    pub err: &'a mut dyn Sink,
}

/// How a process was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessOutcome {
    /// It ended by itself; what it left in the background may go on, unless the kernel has ended it for want of memory.
    Exited(Exit),
    /// Its deadline came; it and everything it started has been killed.
    TimedOut,
    /// It was cancelled; it and everything it started has been killed.
    Cancelled,
}

/// Turns at copying large output. A few threads copy as fast as the disk takes it; many make every other thread of the
/// machine wait, since each lets another process write as well.
static COPYING: LazyLock<FairSemaphore> =
    LazyLock::new(|| FairSemaphore::new((FairSemaphore::processors() / 2).max(1)));
/// Output of a process that is copied without a turn.
const SMALL: u64 = 64 << 10;

/// Two pipes and a reader's state for each.
struct OutputPipe<'a> {
    fd: Option<OwnedFd>,
    sink: &'a mut dyn Sink,
    /// How many bytes it got.
    taken: u64,
}

impl OutputPipe<'_> {
    /// Reads all that waits at this moment: what the process wrote before its end, and not what others write on.
    fn drain(&mut self, buffer: &mut [u8]) {
        let Some(fd) = &self.fd else { return };
        // A terminal counts only what its line discipline has passed on, so at least a pipe's usual size is tried.
        let waiting = rustix::io::ioctl_fionread(fd).unwrap_or(0).max(limits::PIPE_CHUNK as u64);
        let before = self.taken;
        let _turn = self.turn();
        while self.fd.is_some() && self.taken - before < waiting {
            let had = self.taken;
            self.read(buffer, 1);
            if self.taken == had {
                return;
            }
        }
    }

    /// Waits for a turn if this process writes much.
    fn turn(&self) -> Option<SemaphorePermit<'static>> {
        (self.taken >= SMALL).then(|| COPYING.wait())
    }

    /// Reads some of what is there.
    fn read_on(&mut self, buffer: &mut [u8]) {
        let _turn = self.turn();
        self.read(buffer, 4);
    }

    /// Reads what is there, at most `chunks` times; closes at the end of file.
    fn read(&mut self, buffer: &mut [u8], chunks: usize) {
        for _ in 0..chunks {
            let Some(fd) = &self.fd else { return };
            match rustix::io::read(fd, &mut *buffer) {
                Ok(0) => self.fd = None,
                Ok(n) => {
                    self.taken += n as u64;
                    self.sink.take(&buffer[..n]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.fd = None,
            }
        }
    }
}

/// Runs the loop until the process has ended, one way or another.
///
/// # Errors
/// When the process never started (then nothing has run), or its status was lost.
pub fn pump(
    process: &mut dyn Process,
    io: ProcessIo<'_>,
    timeout: Duration,
    cancel: &Cancel,
) -> Result<ProcessOutcome> {
    let mut stdin = io.stdin.map(|(fd, bytes)| (fd, bytes, 0u64));
    let mut out = OutputPipe { fd: Some(io.stdout), sink: io.out, taken: 0 };
    let mut err = OutputPipe { fd: Some(io.stderr), sink: io.err, taken: 0 };
    for fd in [out.fd.as_ref(), err.fd.as_ref(), stdin.as_ref().map(|s| &s.0)].into_iter().flatten() {
        rustix::io::ioctl_fionbio(fd, true).at("prepare", "a pipe")?;
    }
    let mut buffer = vec![0u8; limits::PIPE_CHUNK];
    let mut deadline = Instant::now() + timeout;
    let mut terminated = false;
    loop {
        let ready = wait(process.exit_fd(), cancel.as_fd(), &stdin, &out, &err, deadline)?;
        if ready.stdin {
            feed(&mut stdin);
        }
        // Output first: what the process wrote before it ended is in the pipes by the time its end is seen.
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
                    if terminated || lacked_memory(process, exit) {
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

/// Whether the kernel ended the process itself because memory ran out. What it started is then nobody's, and still has
/// the memory that everything else there lacks.
fn lacked_memory(process: &dyn Process, exit: Exit) -> bool {
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

/// One poll(2) over everything that can happen, until `deadline`.
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
    // Rounded up by the kernel's own resolution; never busy, never late by more than a tick.
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

/// Writes what the pipe takes; closes it when everything is written or nobody reads.
fn feed(stdin: &mut Option<(OwnedFd, InputBytes, u64)>) {
    let Some((fd, bytes, sent)) = stdin else { return };
    match bytes.with_chunk(*sent, |piece| rustix::io::write(&*fd, piece)) {
        Ok(Ok(n)) => *sent += n as u64,
        Ok(Err(Errno::AGAIN | Errno::INTR)) => {}
        // EPIPE: the process does not want its input, which is its right.
        Ok(Err(_)) => *sent = bytes.len(),
        Err(error) => {
            log::error!("The rest of a command's input is lost: {error}");
            *sent = bytes.len();
        }
    }
    if *sent >= bytes.len() {
        *stdin = None;
    }
}
