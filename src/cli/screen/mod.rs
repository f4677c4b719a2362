//! The screen of `berth host` on a terminal: services, URLs, the log, and approvals that can be answered with a key.
//! The screen is a client of the host's own server, so that its answers take the same path as those of other clients.
//!
//! Threads: `screen` draws and reads keys; `screen-calls` calls the server, so that a slow response does not block
//! keys; `screen-feed` reads the stream of approvals, so that the list is requested only after a change. Locks: `view`
//! and `log`, both leaves. Before the screen starts and after it ends, log lines go to standard error.

mod page;
mod terminal;

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};

use self::page::{Details, PageView, id, page};
use self::terminal::{KeyPress, RawTerminal, TerminalInput};
use super::approvals;
use super::client::ApiClient;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Error, Result, limits, logging};
use crate::config::{self, CommandLine};
use crate::opencode::Managed;
use crate::proc::Cancel;

/// The number of log lines that are kept for the screen.
const LOG_LINES: usize = 1000;
/// How often the screen is refreshed.
const TICK: Duration = Duration::from_millis(400);
/// The pause before the screen opens a closed stream again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long an approval must be visible before a key can answer it, so that a key that the user pressed for another
/// purpose does not allow it.
const VISIBLE: Duration = Duration::from_millis(500);

/// Returns whether to show the screen: on a terminal, unless the flags request another kind of output.
///
/// # Errors
/// Fails if the flags request the screen but it is not possible.
pub(super) fn is_wanted(args: &CommandLine) -> Result<bool> {
    let terminals = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let dumb = config::process_env("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    let quiet = args.json || args.check || args.detach || args.detached;
    let tui = args.tui.as_deref().map(|word| word == "yes");
    if tui == Some(true) && (!terminals || quiet) {
        let problem =
            "needs a terminal as standard input and output, and none of --json, --check and --detach";
        return Err(Error::config("--tui", problem));
    }
    Ok(tui.unwrap_or(!dumb) && terminals && !quiet)
}

/// The information about a started host that the screen shows.
pub(super) struct ScreenInfo {
    pub(super) workspace: String,
    pub(super) address: String,
    pub(super) sandbox: &'static str,
    pub(super) opencode_url: Option<String>,
    pub(super) managed: Option<Arc<Managed>>,
    pub(super) tokens: Vec<(&'static str, String)>,
    pub(super) client: ApiClient,
    /// The cancellation of the screen when the server stops. The terminal is then restored at once, since a second
    /// signal ends the process.
    pub(super) stopping: Cancel,
}

/// The screen, which exists from before the server's start until after its end.
#[derive(Default)]
pub(super) struct HostScreen {
    shared: Arc<ScreenState>,
    threads: Mutex<Option<(Cancel, [JoinOnDrop; 3])>>,
}

#[derive(Default)]
struct ScreenState {
    /// The most recent log lines, and whether the screen is shown.
    log: Mutex<(VecDeque<String>, bool)>,
    view: Mutex<PageView>,
}

/// A request that the thread `screen-calls` sends to the server.
enum ScreenRequest {
    /// Requests the list of approvals, after a change.
    List,
    /// Answers the approval with this id, after a key.
    Reply(String, bool),
    Show(String),
}

impl HostScreen {
    /// Returns a log output that writes to the screen and to `also`.
    pub(super) fn log(&self, also: logging::LogOutput) -> logging::LogOutput {
        let shared = self.shared.clone();
        logging::LogOutput::Other(Box::new(move |line: &[u8]| {
            if let logging::LogOutput::Other(also) = &also {
                also(line);
            }
            let mut log = lock(&shared.log);
            if !log.1 && matches!(also, logging::LogOutput::Stderr) {
                let _ = std::io::stderr().write_all(line);
            }
            if log.0.len() == LOG_LINES {
                log.0.pop_front();
            }
            log.0.push_back(String::from_utf8_lossy(line).into_owned());
        }))
    }

    /// Shows the screen. Does nothing if standard input is not a terminal.
    ///
    /// # Errors
    /// Fails if a thread cannot be started.
    pub(super) fn begin(&self, shown: ScreenInfo) -> Result<()> {
        let Ok(terminal) = RawTerminal::enter() else { return Ok(()) };
        lock(&self.shared.log).1 = true;
        let (calls, asked) = unbounded();
        let stopping = shown.stopping.clone();
        let shown = Arc::new(shown);
        let (shared, host) = (self.shared.clone(), shown.clone());
        let feeding = {
            let (host, calls) = (shown.clone(), calls.clone());
            spawn("screen-feed".into(), limits::STACK, move || follow(&host, &calls))?
        };
        let calling =
            spawn("screen-calls".into(), limits::STACK, move || answer_calls(&shared, &host, &asked))?;
        let shared = self.shared.clone();
        let drawing =
            spawn("screen".into(), limits::STACK, move || draw(&shared, &shown, &terminal, &calls))?;
        *lock(&self.threads) = Some((stopping, [drawing, calling, feeding]));
        Ok(())
    }

    /// Returns whether the screen was started.
    pub(super) fn has_begun(&self) -> bool {
        lock(&self.threads).is_some()
    }

    /// Ends the screen and restores the terminal.
    pub(super) fn end(&self) {
        if let Some((stopping, threads)) = lock(&self.threads).take() {
            stopping.cancel();
            drop(threads);
        }
    }
}

/// Reports each change of the approvals to the thread `screen-calls`, until the server ends.
fn follow(shown: &ScreenInfo, calls: &Sender<ScreenRequest>) {
    while !shown.stopping.is_cancelled() {
        // The first line of the stream contains the pending approvals.
        if let Ok(lines) = shown.client.lines("/approvals/events?stream=ndjson") {
            for line in lines.map_while(std::io::Result::ok) {
                let event = serde_json::from_str::<Value>(&line).unwrap_or_default();
                if event["event"] != "ping" && calls.send(ScreenRequest::List).is_err() {
                    return;
                }
            }
        }
        let pause = Timespec { tv_sec: AGAIN.as_secs() as i64, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(&shown.stopping, PollFlags::IN)], Some(&pause));
    }
}

/// Updates the view and sends the requests that keys cause, until the screen ends.
fn answer_calls(shared: &ScreenState, shown: &ScreenInfo, asked: &Receiver<ScreenRequest>) {
    loop {
        refresh(shared, shown);
        match asked.recv_timeout(TICK) {
            Ok(ScreenRequest::List) => list(shared, shown),
            Ok(ScreenRequest::Reply(id, allow)) => {
                let reply = json!({ "reply": if allow { "allow" } else { "deny" } });
                let answer = shown.client.call("POST", &format!("/approvals/{id}"), Some(&reply));
                lock(&shared.view).message = match answer {
                    Ok(_) if allow => "Allowed.".to_owned(),
                    Ok(_) => "Denied.".to_owned(),
                    Err(error) => error.message().to_owned(),
                };
            }
            Ok(ScreenRequest::Show(id)) => {
                let answer = shown.client.call("GET", &format!("/approvals/{id}"), None);
                let mut view = lock(&shared.view);
                match answer {
                    Ok(approval) => {
                        let text = approvals::question(&approval);
                        let lines = text.lines().map(str::to_owned).collect();
                        view.details = Some(Details { id, lines, top: 0 });
                    }
                    Err(error) => view.message = error.message().to_owned(),
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if shown.stopping.is_cancelled() {
            return;
        }
    }
}

/// Updates the part of the view that needs no request to the server.
fn refresh(shared: &ScreenState, shown: &ScreenInfo) {
    let mut services = vec![("Server", shown.address.clone()), ("Sandbox", shown.sandbox.to_owned())];
    if let Some(managed) = &shown.managed {
        let state = managed.state();
        let version = state.version.map(|version| format!(" {version}")).unwrap_or_default();
        let reason = state.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        services.push(("OpenCode", format!("{}{version}{reason}", state.phase.as_str())));
    }
    services.extend(shown.opencode_url.clone().map(|url| ("", url)));
    lock(&shared.view).services = services;
}

/// Requests the pending approvals and updates the view.
fn list(shared: &ScreenState, shown: &ScreenInfo) {
    let answer = shown.client.call("GET", "/approvals", None);
    let mut view = lock(&shared.view);
    match answer {
        Ok(mut answer) => {
            let items = answer["items"].take();
            view.approvals = if let Value::Array(items) = items { items } else { Vec::new() };
            view.listed = Some(Instant::now());
        }
        Err(error) if shown.stopping.is_cancelled() => drop(error),
        Err(error) => view.message = error.message().to_owned(),
    }
    let is_there = |id: &str, view: &PageView| view.approvals.iter().any(|one| page::id(one) == id);
    if !view.chosen.as_deref().is_some_and(|id| is_there(id, &view)) {
        view.chosen = view.approvals.first().map(|one| id(one).to_owned());
    }
    if view.details.as_ref().is_some_and(|details| !is_there(&details.id, &view)) {
        view.details = None;
    }
}

/// Draws the view and reads keys, until the screen ends.
fn draw(shared: &ScreenState, shown: &ScreenInfo, terminal: &RawTerminal, calls: &Sender<ScreenRequest>) {
    lock(&shared.view).workspace.clone_from(&shown.workspace);
    let mut drawn = (Vec::new(), 0, 0);
    // The approval to which keys apply, and the time since when it has been visible.
    let mut visible: (Option<String>, Instant) = (None, Instant::now());
    loop {
        let (columns, rows) = RawTerminal::size();
        let lines = {
            let mut view = lock(&shared.view);
            view.log = lock(&shared.log).0.iter().rev().take(rows).rev().cloned().collect();
            let target =
                view.details.as_ref().map(|details| details.id.clone()).or_else(|| view.chosen.clone());
            if visible.0 != target {
                visible = (target, Instant::now());
            }
            page(&view, rows)
        };
        let next = (lines, columns, rows);
        if next != drawn && terminal.show(&next.0).is_err() {
            break;
        }
        drawn = next;
        match terminal.read(TICK, &shown.stopping) {
            TerminalInput::Nothing => {}
            TerminalInput::End => break,
            TerminalInput::Keys(keys) => {
                keys.iter().for_each(|key| take(shared, shown, *key, &visible, calls))
            }
        }
    }
    lock(&shared.log).1 = false;
}

/// Handles a key.
fn take(
    shared: &ScreenState,
    shown: &ScreenInfo,
    key: KeyPress,
    visible: &(Option<String>, Instant),
    calls: &Sender<ScreenRequest>,
) {
    let mut view = lock(&shared.view);
    view.message.clear();
    if view.stopping {
        view.stopping = false;
        if key == KeyPress::Char('y') {
            "Stopping".clone_into(&mut view.message);
            // SIGINT stops the host, as Ctrl-C does.
            let _ = kill_process(getpid(), Signal::INT);
        }
        return;
    }
    let target = view.details.as_ref().map(|details| details.id.clone()).or_else(|| view.chosen.clone());
    let rows = RawTerminal::size().1;
    let step = match key {
        KeyPress::Up => -1,
        KeyPress::Down => 1,
        KeyPress::PageUp => -(rows as isize / 2),
        KeyPress::PageDown => rows as isize / 2,
        _ => 0,
    };
    match (key, target) {
        (KeyPress::Char('a' | 'A' | 'd' | 'D'), Some(id)) => {
            if visible.0.as_ref() == Some(&id) && visible.1.elapsed() >= VISIBLE {
                let _ = calls.send(ScreenRequest::Reply(id, matches!(key, KeyPress::Char('a' | 'A'))));
            } else {
                "This approval is new; read it first.".clone_into(&mut view.message);
            }
        }
        (KeyPress::Enter, Some(id)) if view.details.is_none() => drop(calls.send(ScreenRequest::Show(id))),
        (KeyPress::Escape | KeyPress::Char('q'), _) if view.details.is_some() => view.details = None,
        (KeyPress::Char('q' | 'Q'), _) => view.stopping = true,
        (KeyPress::Char('t' | 'T'), _) => {
            view.tokens = if view.tokens.is_none() { Some(shown.tokens.clone()) } else { None };
        }
        (KeyPress::Up | KeyPress::Down | KeyPress::PageUp | KeyPress::PageDown, _) => {
            if let Some(details) = &mut view.details {
                let last = details.lines.len().saturating_sub(1);
                details.top = details.top.saturating_add_signed(step).min(last);
            } else {
                let at = view.approvals.iter().position(|one| Some(id(one)) == view.chosen.as_deref());
                let last = view.approvals.len().saturating_sub(1);
                let next = at.unwrap_or(0).saturating_add_signed(step).min(last);
                view.chosen = view.approvals.get(next).map(|one| id(one).to_owned());
            }
        }
        _ => {}
    }
}
