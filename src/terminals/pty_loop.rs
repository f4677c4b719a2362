//! The thread of a terminal. It reads the program's output as soon as it is written, writes input to the program,
//! detects the program's end, and kills all its processes, including those that survive the hangup. It never waits
//! for a client.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::watch::WatchEvent;
use super::{EndReason, Terminal, TerminalEnd, TerminalKind};
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{At, Result, clock, limits};
use crate::proc::{Exit, Process, pty};
use crate::runs::ActiveRun;

/// Number of reads before the thread handles other events; the kernel returns at most 4 KiB per read.
const TERMINAL_READS: usize = 16;

/// State of a terminal's thread.
pub(super) struct PtyLoop {
    terminal: Arc<Terminal>,
    /// Our end of the PTY. When it is closed, the kernel sends SIGHUP to the session.
    master: Option<OwnedFd>,
    process: Box<dyn Process>,
    /// The entry in the table of runs; dropping it marks the terminal as ended.
    _running: ActiveRun,
    /// Time at which the terminal is polled again, because the program has closed it.
    closed_until: Option<Instant>,
}

/// Pause after the program has closed its terminal. The program may reopen /dev/tty; until then, poll(2) would
/// report the hangup continuously.
const CLOSED_RECHECK: Duration = Duration::from_millis(100);

/// Number of final calls of `read`; together they read more than the kernel buffers.
const LAST_READS: usize = (1 << 20) / (TERMINAL_READS * (4 << 10));

#[derive(Default)]
struct ReadyEvents {
    output: bool,
    input: bool,
    done: bool,
    cancelled: bool,
}

impl PtyLoop {
    pub(super) fn new(
        terminal: Arc<Terminal>,
        master: OwnedFd,
        process: Box<dyn Process>,
        running: ActiveRun,
    ) -> PtyLoop {
        PtyLoop { terminal, master: Some(master), process, _running: running, closed_until: None }
    }

    pub(super) fn spawn(self) -> Result<JoinOnDrop> {
        let name = format!("terminal-{}", &self.terminal.id.simple().to_string()[..6]);
        spawn(name, limits::STACK, move || self.run())
    }

    fn run(mut self) {
        // Notify waiting callers of the end, even if the code below fails or panics.
        let notifier = EndNotifier { terminal: self.terminal.clone() };
        let (reason, exit) = loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    log::error!("Terminal: {error}");
                    break (EndReason::Workspace, None);
                }
            };
            if ready.output {
                self.read();
            }
            if ready.input {
                self.write();
            }
            self.resize();
            if ready.done {
                match self.process.try_exit() {
                    Ok(None) => {}
                    Ok(exit) => break (EndReason::Exit, exit),
                    Err(error) => {
                        log::debug!("Terminal: {error}");
                        break (EndReason::Exit, None);
                    }
                }
            }
            if ready.cancelled {
                let reason = lock(&self.terminal.state).end_reason.unwrap_or(EndReason::Workspace);
                break (reason, self.hang_up());
            }
            if self.idle_deadline().is_some_and(|deadline| Instant::now() >= deadline) {
                break (EndReason::Idle, self.hang_up());
            }
        };
        self.process.kill();
        // The last output is still in the kernel's buffers (n_tty keeps 4 KiB, and the tty layer before it 640
        // KiB).
        self.closed_until = None;
        for _ in 0..LAST_READS {
            if self.closed_until.is_none() && !self.read() {
                break;
            }
        }
        notifier.notify(TerminalEnd { exit, reason });
    }

    /// Returns when the terminal has been idle for too long; `None` while a client is connected.
    fn idle_deadline(&self) -> Option<Instant> {
        let state = lock(&self.terminal.state);
        let since = match self.terminal.kind {
            TerminalKind::Terminal => state.active,
            // Only disconnects count: output alone does not keep a shell without clients alive.
            TerminalKind::Shell => state.last_left,
        };
        state.watchers.is_empty().then(|| since + self.terminal.idle)
    }

    /// Waits with one poll(2) for output, space for input, the program's exit, or a request.
    fn wait(&mut self) -> Result<ReadyEvents> {
        let input = !lock(&self.terminal.state).input.is_empty();
        let deadline = [self.idle_deadline(), self.closed_until].into_iter().flatten().min();
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.process.exit_fd(), PollFlags::IN),
            PollFd::new(&self.terminal.cancel, PollFlags::IN),
            PollFd::new(&self.terminal.waker, PollFlags::IN),
        ];
        if let (Some(master), None) = (&self.master, self.closed_until) {
            let flags = if input { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(master, flags));
        }
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(ReadyEvents::default()),
            Err(error) => return Err(error).at("poll", "a terminal"),
        }
        let hit = |at: usize, flags: PollFlags| fds.get(at).is_some_and(|fd| fd.revents().intersects(flags));
        let any = PollFlags::all();
        let ready = ReadyEvents {
            output: hit(3, PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            input: hit(3, PollFlags::OUT),
            done: hit(0, any),
            cancelled: hit(1, any),
        };
        if hit(2, any) {
            self.terminal.waker.clear();
        }
        if self.closed_until.is_some_and(|until| Instant::now() >= until) {
            self.closed_until = None;
        }
        Ok(ready)
    }

    /// Reads available output; returns `false` if no more is available.
    fn read(&mut self) -> bool {
        let Some(master) = &self.master else { return false };
        let mut chunk = [0u8; 8 << 10];
        for _ in 0..TERMINAL_READS {
            match rustix::io::read(master, &mut chunk) {
                Ok(0) | Err(Errno::IO) => {
                    self.closed_until = Some(Instant::now() + CLOSED_RECHECK);
                    return false;
                }
                Ok(count) => lock(&self.terminal.state).distribute_output(&chunk[..count]),
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn write(&mut self) {
        let Some(master) = &self.master else { return };
        let mut state = lock(&self.terminal.state);
        let (front, back) = state.input.as_slices();
        let next = if front.is_empty() { back } else { front };
        // EAGAIN means that the program has not read its input. Other errors mean that it has ended, which is
        // detected elsewhere.
        let Ok(written) = rustix::io::write(master, next) else { return };
        let full = state.input.len() >= limits::TERMINAL_INPUT_BYTES;
        state.input.drain(..written);
        if full {
            state.wake_writer();
        }
        self.terminal.input_space.notify_all();
    }

    fn resize(&mut self) {
        let size = lock(&self.terminal.state).resized.take();
        if let (Some(size), Some(master)) = (size, &self.master) {
            if let Err(error) = pty::set_size(master, size) {
                log::debug!("Terminal: {error}");
            }
        }
    }

    /// Hangs up the terminal (SIGHUP), so that an editor can save its data, and kills the program after a grace
    /// period.
    fn hang_up(&mut self) -> Option<Exit> {
        self.read();
        self.master = None;
        let left = limits::TERM_GRACE;
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let _ = poll(&mut [PollFd::from_borrowed_fd(self.process.exit_fd(), PollFlags::IN)], Some(&timeout));
        if let Ok(Some(exit)) = self.process.try_exit() {
            return Some(exit);
        }
        self.process.kill();
        self.process.try_exit().ok().flatten()
    }
}

/// Notifies waiting callers of the end of a terminal, even if its thread panics.
struct EndNotifier {
    terminal: Arc<Terminal>,
}

impl EndNotifier {
    fn notify(self, end: TerminalEnd) {
        self.set(end);
    }

    fn set(&self, end: TerminalEnd) {
        let mut state = lock(&self.terminal.state);
        if state.end.is_some() {
            return;
        }
        let last = state.splitter.rest();
        state.screen.feed(&last);
        state.end = Some((end, Instant::now(), clock::now_rfc3339()));
        state.input.clear();
        for seat in &mut state.watchers {
            seat.push_text(&last.text);
            seat.push(WatchEvent::End(end));
        }
        drop(state);
        self.terminal.ended.notify_all();
        self.terminal.input_space.notify_all();
        log::debug!("Terminal {} ended: {end:?}", self.terminal.id);
    }
}

impl Drop for EndNotifier {
    fn drop(&mut self) {
        self.set(TerminalEnd { exit: None, reason: EndReason::Exit });
    }
}
