//! Terminals, independent of the sockets that show them. Each terminal has a program on a PTY, a model of its
//! screen, and any number of clients that watch it, of which at most one may write. Does not depend on WebSockets,
//! HTTP, workspaces or containers.
//!
//! In reading order: `request` (bodies of requests), `split` and `screen` (the program's output), `watch` (clients),
//! this file (one terminal), `pty_loop` (its thread), `table` (all terminals).
//!
//! Threads: `terminal-N`, one per terminal. It owns the program and the server's end of the PTY, reads all output,
//! and is the only thread that writes to the PTY. Locks: one per terminal, a leaf, held while the model processes
//! a few KiB; one for the table, never held together with a terminal's lock.

pub mod paste;
mod pty_loop;
pub mod request;
mod screen;
mod split;
pub mod table;
pub mod watch;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use crate::base::thread::{JoinOnDrop, lock};
use crate::base::{Code, Error, Result, clock, limits};
use crate::proc::pty::{WindowSize, set_size};
use crate::proc::{Cancel, CommandSpec, Exit, Launcher, Waker};
use crate::runs::ActiveRun;
use pty_loop::PtyLoop;
use screen::ScreenModel;
use split::Splitter;
use watch::{WatchEvent, WatcherQueue};

pub use paste::{PASTE_BYTES, PasteBudget, PastePermit};
pub use request::{InputRequest, ResizeRequest, TerminalRequest};
pub use screen::ScreenView;
pub use table::Terminals;
pub use watch::{TerminalWatcher, WatchMode};

/// Maximum number of clients of a terminal.
const WATCHERS: usize = 32;

/// The purpose of a terminal, which determines how long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TerminalKind {
    /// A terminal that a client created explicitly; its last screen is kept for a while after its program has
    /// ended.
    Terminal,
    /// The terminal of `/shell`; it is removed when its program ends.
    Shell,
}

/// Specification of a new terminal.
#[derive(Clone, Debug)]
pub struct TerminalSpec {
    /// Command of the terminal; its field `tty` is set when the terminal starts.
    pub command: CommandSpec,
    /// Name of the terminal in lists.
    pub label: String,
    /// User that runs the program, as the client requested it.
    pub user: Option<String>,
    /// Initial size of the terminal.
    pub size: WindowSize,
    pub kind: TerminalKind,
    /// Time without clients, input and output after which the terminal is closed.
    pub idle: Duration,
}

/// Reason for the end of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EndReason {
    /// The terminal's program exited.
    Exit,
    /// A client deleted the terminal.
    Deleted,
    /// The terminal was idle for too long.
    Idle,
    /// The terminal's workspace was deleted or rebuilt, or the server is stopping.
    Workspace,
}

/// Result of an ended terminal.
#[derive(Clone, Copy, Debug)]
pub struct TerminalEnd {
    /// Exit status of the program; `None` if it is unknown.
    pub exit: Option<Exit>,
    pub reason: EndReason,
}

/// A terminal as clients see it.
#[derive(Clone, Debug, Serialize)]
pub struct TerminalView {
    id: Uuid,
    workspace_id: Uuid,
    kind: TerminalKind,
    command: String,
    user: Option<String>,
    status: &'static str,
    cols: u16,
    rows: u16,
    title: String,
    created_at: String,
    idle_timeout_secs: u64,
    /// Number of connected clients.
    clients: usize,
    /// Whether one of the clients is the writer.
    writer: bool,
    exit_code: Option<i32>,
    signal: Option<i32>,
    ended_by: Option<EndReason>,
    ended_at: Option<String>,
}

/// A running or ended terminal.
pub struct Terminal {
    pub id: Uuid,
    pub workspace: Uuid,
    pub kind: TerminalKind,
    label: String,
    user: Option<String>,
    created_at: String,
    idle: Duration,
    cancel: Cancel,
    waker: Waker,
    state: Mutex<TerminalState>,
    ended: Condvar,
    /// Notified when the input queue has free space.
    input_space: Condvar,
}

struct TerminalState {
    splitter: Splitter,
    screen: ScreenModel,
    watchers: Vec<WatcherQueue>,
    next_watcher: u64,
    /// Number of the client that may write.
    writer: Option<u64>,
    /// Input that has not been written to the PTY yet.
    input: VecDeque<u8>,
    /// Set while a large input is queued in pieces. Input of other clients then waits, so that it is not
    /// interleaved.
    pasting: bool,
    /// A new size that has not been passed to the kernel yet.
    resized: Option<WindowSize>,
    /// Time of the last input, output, access, or connect or disconnect of a client.
    active: Instant,
    /// Time when the last client disconnected.
    last_left: Instant,
    /// Reason of a requested end; the thread has not ended the terminal yet.
    end_reason: Option<EndReason>,
    end: Option<(TerminalEnd, Instant, String)>,
}

impl Terminal {
    /// Starts a program on a new terminal. `running` is the terminal's entry in the table of runs, through which
    /// its workspace ends it. The terminal does not join its own thread, because the thread may hold the last
    /// reference.
    ///
    /// # Errors
    /// When the program could not be started; no process is left running.
    fn start(
        running: ActiveRun,
        workspace: Uuid,
        launcher: &dyn Launcher,
        plan: TerminalSpec,
    ) -> Result<(Arc<Terminal>, JoinOnDrop)> {
        let pty = launcher.terminal()?;
        // Set the size before the program starts, so that the program reads the right size (TIOCGWINSZ).
        set_size(&pty.master, plan.size)?;
        let (master, stdio) = pty.split()?;
        let command = CommandSpec { tty: true, ..plan.command };
        let process = launcher.launch(&running.id.simple().to_string(), &command, stdio)?;
        let terminal = Arc::new(Terminal {
            id: running.id,
            workspace,
            kind: plan.kind,
            label: plan.label,
            user: plan.user,
            created_at: clock::now_rfc3339(),
            idle: plan.idle,
            cancel: running.cancel.clone(),
            waker: Waker::new()?,
            state: Mutex::new(TerminalState {
                splitter: Splitter::default(),
                screen: ScreenModel::new(plan.size),
                watchers: Vec::new(),
                next_watcher: 0,
                writer: None,
                input: VecDeque::new(),
                pasting: false,
                resized: None,
                active: Instant::now(),
                last_left: Instant::now(),
                end_reason: None,
                end: None,
            }),
            ended: Condvar::new(),
            input_space: Condvar::new(),
        });
        let thread = PtyLoop::new(terminal.clone(), master, process, running).spawn()?;
        Ok((terminal, thread))
    }

    /// Returns the terminal as clients see it.
    pub fn terminal_view(&self) -> TerminalView {
        let state = lock(&self.state);
        let end = state.end.as_ref().map(|(end, _, at)| (*end, at.clone()));
        let exit = end.as_ref().and_then(|(end, _)| end.exit);
        let size = state.screen.size();
        TerminalView {
            id: self.id,
            workspace_id: self.workspace,
            kind: self.kind,
            command: self.label.clone(),
            user: self.user.clone(),
            status: if end.is_some() { "ended" } else { "running" },
            cols: size.cols,
            rows: size.rows,
            title: state.screen.title().to_owned(),
            created_at: self.created_at.clone(),
            idle_timeout_secs: self.idle.as_secs(),
            clients: state.watchers.len(),
            writer: state.writer.is_some(),
            exit_code: end.as_ref().map(|_| exit.map_or(-1, Exit::code)),
            signal: exit.and_then(Exit::signal),
            ended_by: end.as_ref().map(|(end, _)| end.reason),
            ended_at: end.map(|(_, at)| at),
        }
    }

    /// Returns the terminal's screen as text, without trailing blanks.
    pub fn text(&self) -> String {
        self.touch().screen.text()
    }

    /// Returns the terminal's screen as data.
    pub fn screen_view(&self) -> ScreenView {
        self.touch().screen.view()
    }

    /// Returns whether arrow keys must be sent in application mode (DECCKM).
    pub fn application_cursor_keys(&self) -> bool {
        lock(&self.state).screen.application_cursor_keys()
    }

    /// Queues `bytes` as input if all of them fit now; otherwise returns `false`.
    ///
    /// # Errors
    /// `TerminalEnded` when the program has ended.
    pub fn try_type_in(&self, bytes: &[u8]) -> Result<bool> {
        let mut state = lock(&self.state);
        check_running(&state)?;
        let fits = state.has_room_for(bytes.len());
        if fits {
            self.queue(&mut state, bytes);
        }
        Ok(fits)
    }

    /// Queues `bytes` as fast as the program reads. Input that fits into the queue is queued as a whole; larger
    /// input is queued in pieces, between which no input of other clients is queued.
    ///
    /// # Errors
    /// `TerminalEnded`; `Cancelled` when the client disconnected; `Conflict` when the program reads no input for
    /// too long. The detail `bytes_taken` is the number of queued bytes; the client can send the rest again.
    pub fn type_in(&self, bytes: &[u8], gone: &Cancel) -> Result<()> {
        let whole = bytes.len() <= limits::TERMINAL_INPUT_BYTES;
        let patience = if whole { limits::STDIN_PATIENCE } else { paste::PASTE_PATIENCE };
        let mut state = lock(&self.state);
        let mut taken = 0;
        let mut deadline = Instant::now() + patience;
        let mut ours = false;
        let result = loop {
            if let Err(error) = check_running(&state) {
                break Err(error);
            }
            if ours || !state.pasting {
                if !whole {
                    ours = true;
                    state.pasting = true;
                }
                let input_space = limits::TERMINAL_INPUT_BYTES.saturating_sub(state.input.len());
                let left = bytes.len() - taken;
                let count = if whole && left > input_space { 0 } else { left.min(input_space) };
                if count > 0 {
                    self.queue(&mut state, &bytes[taken..taken + count]);
                    taken += count;
                    deadline = Instant::now() + patience;
                }
                if taken == bytes.len() {
                    break Ok(());
                }
            }
            if gone.is_cancelled() {
                break Err(Error::new(
                    Code::Cancelled,
                    "The client disconnected before all its input was taken",
                ));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = "The program does not read its input, and its queue is full; send the rest \
                               later, or end the program";
                break Err(Error::new(Code::Conflict, message).detail("unread_bytes", state.input.len()));
            }
            // Wake up regularly: a disconnect does not notify this condition variable.
            let waited = self.input_space.wait_timeout(state, left.min(GONE_LOOK));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        if ours {
            state.pasting = false;
            self.input_space.notify_all();
            state.wake_writer();
        }
        result.map_err(|error: Error| error.detail("bytes_taken", taken))
    }

    /// Changes the terminal's size; the kernel sends SIGWINCH to the program.
    ///
    /// # Errors
    /// `TerminalEnded` when the program has ended.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        let mut state = lock(&self.state);
        check_running(&state)?;
        if state.screen.size() != size {
            state.screen.resize(size);
            state.resized = Some(size);
            state.watchers.iter_mut().for_each(|seat| seat.resize(size));
            self.waker.wake();
        }
        Ok(())
    }

    /// Adds a client. The client's first event is the size, followed by the whole screen.
    ///
    /// # Errors
    /// `TerminalEnded`; `Busy` when the terminal has too many clients.
    pub fn watch(self: &Arc<Self>, mode: WatchMode) -> Result<TerminalWatcher> {
        let mut state = lock(&self.state);
        check_running(&state)?;
        if state.watchers.len() >= WATCHERS {
            return Err(Error::new(Code::Busy, "Too many clients watch this terminal"));
        }
        let number = state.next_watcher;
        let seat = WatcherQueue::new(number)?;
        let wake = seat.wake();
        state.next_watcher += 1;
        state.active = Instant::now();
        state.watchers.push(seat);
        if mode == WatchMode::TakeOver || mode == WatchMode::Write && state.writer.is_none() {
            state.set_writer(Some(number));
        }
        let (writes, size) = (state.writer == Some(number), state.screen.size());
        if let Some(seat) = state.watcher(number) {
            seat.push(WatchEvent::Size(size));
            if matches!(mode, WatchMode::Write | WatchMode::Read) {
                seat.push(WatchEvent::Role { writes });
            }
        }
        Ok(TerminalWatcher::new(self.clone(), number, mode, wake))
    }

    /// Kills all processes of the terminal and waits until they have ended.
    pub fn end(&self, reason: EndReason) {
        let mut state = lock(&self.state);
        if state.end.is_none() {
            state.end_reason.get_or_insert(reason);
            self.cancel.cancel();
        }
        let longest = limits::KILL_WAIT + limits::TERM_GRACE;
        drop(
            self.ended
                .wait_timeout_while(state, longest, |state| state.end.is_none())
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Locks the state and records the access as activity.
    fn touch(&self) -> MutexGuard<'_, TerminalState> {
        let mut state = lock(&self.state);
        state.active = Instant::now();
        state
    }

    /// Returns when the terminal ended; `None` while it is running.
    fn ended_since(&self) -> Option<Instant> {
        lock(&self.state).end.as_ref().map(|(_, since, _)| *since)
    }

    fn queue(&self, state: &mut TerminalState, bytes: &[u8]) {
        state.input.extend(bytes);
        state.active = Instant::now();
        self.waker.wake();
    }
}

/// Interval at which a wait for queue space checks whether the client is still connected.
const GONE_LOOK: Duration = Duration::from_millis(100);

impl TerminalState {
    fn has_room_for(&self, count: usize) -> bool {
        !self.pasting && self.input.len() + count <= limits::TERMINAL_INPUT_BYTES
    }

    /// Wakes the client that may write, because the input queue has free space.
    fn wake_writer(&mut self) {
        if let Some(seat) = self.writer.and_then(|number| self.watcher(number)) {
            seat.wake().wake();
        }
    }

    fn watcher(&mut self, number: u64) -> Option<&mut WatcherQueue> {
        self.watchers.iter_mut().find(|seat| seat.number() == number)
    }

    /// Makes the client `number` the writer; notifies it and the previous writer.
    fn set_writer(&mut self, number: Option<u64>) {
        let before = std::mem::replace(&mut self.writer, number);
        if before == number {
            return;
        }
        for (changed, writes) in [(before, false), (number, true)] {
            if let Some(seat) = changed.and_then(|number| self.watcher(number)) {
                seat.push(WatchEvent::Role { writes });
            }
        }
    }

    /// Processes the program's output. The writing client's terminal answers queries in it. Without a writer the
    /// model answers, so that a program that is only watched over HTTP does not wait forever. Never both answer,
    /// because a second reply would be typed into the shell.
    fn distribute_output(&mut self, bytes: &[u8]) {
        let cut = self.splitter.take(bytes);
        let answers = self.screen.feed(&cut);
        if self.writer.is_none() && self.input.len() + answers.len() <= limits::TERMINAL_INPUT_BYTES {
            self.input.extend(answers.as_bytes());
        }
        self.active = Instant::now();
        for seat in &mut self.watchers {
            seat.push_text(&cut.text);
        }
    }
}

fn check_running(state: &TerminalState) -> Result<()> {
    if state.end.is_some() {
        return Err(Error::new(
            Code::TerminalEnded,
            "The terminal's program has ended; its last screen is still there",
        ));
    }
    Ok(())
}
