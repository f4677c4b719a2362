//! One command with an ID: its specification, state and result, and the handles to reach it while it runs.
//!
//! Threads: the thread that watches the process sets the result; any other thread may read, signal and wait.
//! Locks: `started`, `end` and `signal_handle`, all leaves; also the locks of the input, the spool and the
//! waiters.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::input::RunInput;
use super::request::PtySize;
use super::spool::{Spool, SpoolState};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, clock, limits};
use crate::proc::waiter::WaiterList;
use crate::proc::{Cancel, Exit, Limits, ProcessOutcome, SignalHandle, SignalTarget, Usage};
use crate::store::file;

/// Maximum size of a run's record, which contains the truncated command and some numbers.
const RUN_RECORD_BYTES: u64 = 1 << 20;

/// Origin of a run, which determines how long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunOrigin {
    /// `POST …/exec`: the output goes into one response, and then the run is forgotten.
    Exec,
    /// `POST …/runs`: the output is spooled and kept.
    Run,
    /// A terminal. It is not listed as a run; it is in the table so that it ends with its workspace.
    Terminal,
}

/// A run's specification as clients see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunSpec {
    pub origin: RunOrigin,
    /// Command line for the shell; truncated if long.
    pub command: Option<String>,
    /// Program and arguments for a run without a shell; truncated if long.
    pub args: Option<Vec<String>>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    /// The label that the client chose.
    pub tag: Option<String>,
    /// Size of the run's terminal; `None` if it uses pipes.
    pub pty: Option<PtySize>,
    /// Whether the run outlives the server.
    pub detach: bool,
    pub limits: Option<Limits>,
    /// Time limit of the run in seconds; `None` if it has none.
    pub timeout_secs: Option<f64>,
}

/// Status of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// The run has not ended.
    Running,
    /// The command exited with an exit code.
    Exited,
    /// The command was killed by a signal that it or a client sent, or because its workspace or the server ended.
    Killed,
    /// The command was killed at its deadline.
    TimedOut,
    /// The result of the command was lost.
    Failed,
}

impl RunStatus {
    /// All statuses, for documentation and validation.
    pub const ALL: [RunStatus; 5] =
        [RunStatus::Running, RunStatus::Exited, RunStatus::Killed, RunStatus::TimedOut, RunStatus::Failed];

    /// Returns the status's name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Running => "running",
            RunStatus::Exited => "exited",
            RunStatus::Killed => "killed",
            RunStatus::TimedOut => "timed_out",
            RunStatus::Failed => "failed",
        }
    }
}

/// The reason why a run ended, if its status does not show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunError {
    /// Stable code of the error, for programs.
    pub code: String,
    /// Message of the error, for people.
    pub message: String,
}

impl From<&Error> for RunError {
    fn from(error: &Error) -> RunError {
        RunError { code: error.code().as_str().to_owned(), message: error.message().to_owned() }
    }
}

/// Result of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunEnd {
    /// Status of the ended run; never [`RunStatus::Running`].
    pub status: RunStatus,
    /// Exit code; -1 after a signal or timeout, as for an exec; `None` if it is unknown.
    pub exit_code: Option<i32>,
    /// The signal that killed the command.
    pub signal: Option<i32>,
    /// The reason of the end, if the status does not show it.
    pub error: Option<RunError>,
    /// Time of the end, in RFC 3339.
    pub finished_at: String,
    /// Duration of the run in seconds.
    pub wall_secs: f64,
    pub usage: Usage,
}

/// A run: a command or terminal with its state, its result and its output.
#[derive(Debug)]
pub struct Run {
    pub id: Uuid,
    pub workspace: Uuid,
    pub spec: RunSpec,
    /// Cancelling kills the command with all its processes.
    pub cancel: Cancel,
    /// The command's stdin, if clients may write to it.
    pub input: RunInput,
    /// Notifies clients that wait for output or for the end.
    pub waiters: WaiterList,
    /// The kept output; `None` for an exec or a terminal.
    pub spool: Option<Arc<Spool>>,
    /// Numbers of bytes that an exec has written so far to stdout and stderr.
    pub counts: [AtomicU64; 2],
    pub(super) folder: Option<PathBuf>,
    started: Mutex<StartTime>,
    end: Mutex<Option<RunEnd>>,
    signal_handle: Mutex<Option<SignalHandle>>,
}

/// Time of the run's acceptance; replaced at its process's start, because a container may have to start first.
#[derive(Debug)]
struct StartTime {
    at: String,
    since: Instant,
}

impl StartTime {
    fn now() -> StartTime {
        StartTime { at: clock::now_rfc3339(), since: Instant::now() }
    }

    /// Creates the start time from a time that another process recorded.
    fn at(at: String) -> StartTime {
        let since = Instant::now().checked_sub(age(&at)).unwrap_or_else(Instant::now);
        StartTime { at, since }
    }
}

/// Returns the time since `at` by the wall clock; 0 if `at` is in the future.
pub(super) fn age(at: &str) -> Duration {
    let at = chrono::DateTime::parse_from_rfc3339(at).ok();
    at.and_then(|at| chrono::Utc::now().signed_duration_since(at).to_std().ok()).unwrap_or_default()
}

/// The record of a run on disk.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RunRecord {
    pub(super) id: Uuid,
    pub(super) workspace: Uuid,
    #[serde(rename = "asked")]
    pub(super) spec: RunSpec,
    pub(super) started_at: String,
    pub(super) end: Option<RunEnd>,
    pub(super) marks: SpoolState,
}

/// Name of the record in a run's directory.
const RECORD: &str = "run.json";

/// Reads the record in a run's directory; `None` if its ID does not match the directory's name.
pub(super) fn read_record(folder: &Path) -> Option<RunRecord> {
    let bytes = file::read_optional(&folder.join(RECORD), RUN_RECORD_BYTES).ok()??;
    let record: RunRecord = serde_json::from_slice(&bytes).ok()?;
    (folder.file_name()?.to_str()? == record.id.to_string()).then_some(record)
}

/// A run as clients see it.
#[derive(Debug, Serialize)]
pub struct RunView {
    id: Uuid,
    workspace_id: Uuid,
    status: RunStatus,
    #[serde(flatten)]
    spec: RunSpec,
    exit_code: Option<i32>,
    signal: Option<i32>,
    timed_out: bool,
    oom_killed: Option<bool>,
    error: Option<RunError>,
    started_at: String,
    finished_at: Option<String>,
    wall_secs: f64,
    cpu_secs: Option<f64>,
    peak_memory_bytes: Option<u64>,
    stdout_bytes: u64,
    stderr_bytes: u64,
    /// Whether some output is missing.
    truncated: bool,
    /// Offset from which all later stdout is kept; `stderr_start` is the same for stderr.
    stdout_start: u64,
    stderr_start: u64,
    /// Whether output was lost because a write failed, usually on a full disk.
    disk_full: bool,
    stdin_open: bool,
}

impl Run {
    pub(super) fn new(
        id: Uuid,
        workspace: Uuid,
        spec: RunSpec,
        spool: Option<(PathBuf, Arc<Spool>)>,
    ) -> Result<Run> {
        let (folder, spool) = spool.unzip();
        Ok(Run {
            id,
            workspace,
            spec,
            cancel: Cancel::new()?,
            input: RunInput::default(),
            waiters: WaiterList::default(),
            spool,
            counts: [AtomicU64::new(0), AtomicU64::new(0)],
            folder,
            started: Mutex::new(StartTime::now()),
            end: Mutex::default(),
            signal_handle: Mutex::default(),
        })
    }

    /// Creates an ended run from its record.
    pub(super) fn from_record(record: RunRecord, folder: PathBuf, spool: Spool) -> Result<Run> {
        let RunRecord { id, workspace, spec, started_at, end, .. } = record;
        let mut run = Run::new(id, workspace, spec, Some((folder, Arc::new(spool))))?;
        run.started = Mutex::new(StartTime { at: started_at, since: Instant::now() });
        run.end = Mutex::new(end);
        Ok(run)
    }

    /// Creates a running run from its record. The caller then attaches it to its process.
    pub(super) fn resumed(record: RunRecord, folder: PathBuf, spool: Arc<Spool>) -> Result<Run> {
        let RunRecord { id, workspace, spec, started_at, .. } = record;
        let run = Run::new(id, workspace, spec, Some((folder, spool)))?;
        *lock(&run.started) = StartTime::at(started_at);
        Ok(run)
    }

    pub(super) fn record(&self) -> RunRecord {
        RunRecord {
            id: self.id,
            workspace: self.workspace,
            spec: self.spec.clone(),
            started_at: self.started_at(),
            end: self.end(),
            marks: self.spool.as_ref().map(|spool| spool.state()).unwrap_or_default(),
        }
    }

    /// Writes the record; does nothing for an exec or a terminal, which have none. `durable` syncs it to disk.
    pub(super) fn save(&self, durable: bool) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let path = folder.join(RECORD);
        let bytes = serde_json::to_vec(&self.record())
            .map_err(|error| Error::internal("Could not serialize the record of a run").with_source(error))?;
        if durable { file::write_atomic(&path, &bytes, 0o600) } else { file::replace(&path, &bytes, 0o600) }
    }

    /// Returns the start time in RFC 3339.
    pub fn started_at(&self) -> String {
        lock(&self.started).at.clone()
    }

    /// Returns the result; `None` while the run has not ended.
    pub fn end(&self) -> Option<RunEnd> {
        lock(&self.end).clone()
    }

    /// Returns whether the run has not ended.
    pub fn is_running(&self) -> bool {
        lock(&self.end).is_none()
    }

    /// Returns the run's status.
    pub fn status(&self) -> RunStatus {
        lock(&self.end).as_ref().map_or(RunStatus::Running, |end| end.status)
    }

    /// Attaches the started process, so that clients can send signals to it.
    pub(super) fn attach(&self, signal_handle: Option<SignalHandle>) {
        *lock(&self.started) = StartTime::now();
        *lock(&self.signal_handle) = signal_handle;
    }

    /// Attaches a process that belongs to a keeper.
    pub(super) fn attach_kept(&self, signal_handle: SignalHandle, started_at: String) {
        *lock(&self.started) = StartTime::at(started_at);
        *lock(&self.signal_handle) = Some(signal_handle);
    }

    /// Returns the handle that sends signals to the process; `None` before its start and after its end.
    pub(super) fn signal_handle(&self) -> Option<SignalHandle> {
        lock(&self.signal_handle).clone()
    }

    /// Sets the result from the outcome of the process.
    pub(super) fn finish(&self, ended: Result<ProcessOutcome>, usage: Usage) {
        let cancelled = || {
            RunError::from(&Error::new(
                Code::Cancelled,
                "Ended by a request, with its workspace's container, or with the server",
            ))
        };
        let (status, exit_code, signal, error) = match ended {
            Ok(ProcessOutcome::Exited(Exit::Code(code))) => (RunStatus::Exited, Some(code), None, None),
            Ok(ProcessOutcome::Exited(Exit::Signal(signal))) => {
                (RunStatus::Killed, Some(-1), Some(signal), None)
            }
            Ok(ProcessOutcome::TimedOut) => (RunStatus::TimedOut, Some(-1), None, None),
            Ok(ProcessOutcome::Cancelled) => {
                (RunStatus::Killed, Some(-1), Some(Signal::KILL.as_raw()), Some(cancelled()))
            }
            Err(error) => (RunStatus::Failed, None, None, Some(RunError::from(&error))),
        };
        let end = RunEnd {
            status,
            exit_code,
            signal,
            error,
            finished_at: clock::now_rfc3339(),
            wall_secs: lock(&self.started).since.elapsed().as_secs_f64(),
            usage,
        };
        self.set_end(end);
    }

    /// Sets the result, unless one is already set, and notifies waiting clients.
    pub(super) fn set_end(&self, end: RunEnd) {
        self.input.close();
        *lock(&self.signal_handle) = None;
        lock(&self.end).get_or_insert(end);
        self.waiters.notify_all();
    }

    /// Sends a signal to the run's processes.
    ///
    /// # Errors
    /// `Conflict` when the run has ended, because its PIDs may be reused, or is still starting.
    pub fn signal(&self, signal: Signal, whom: SignalTarget) -> Result<()> {
        let signal_handle = lock(&self.signal_handle).clone();
        match signal_handle {
            Some(signal_handle) if self.is_running() => {
                signal_handle.signal(signal, whom);
                Ok(())
            }
            _ if self.is_running() => Err(Error::new(Code::Conflict, "The run is still starting; try again")),
            _ => {
                Err(Error::new(Code::Conflict, "The run has ended").detail("status", self.status().as_str()))
            }
        }
    }

    /// Returns the run as clients see it.
    pub fn view(&self) -> RunView {
        let end = self.end();
        let marks = self.spool.as_ref().map(|spool| spool.state());
        let count = |at: usize| self.counts[at].load(Ordering::Relaxed);
        let (mut out, mut err) = (count(0), count(1));
        if let Some(marks) = &marks {
            (out, err) = (marks.out.end, marks.err.end);
        }
        let usage = end.as_ref().map(|end| end.usage).unwrap_or_default();
        RunView {
            id: self.id,
            workspace_id: self.workspace,
            status: end.as_ref().map_or(RunStatus::Running, |end| end.status),
            spec: self.spec.clone(),
            exit_code: end.as_ref().and_then(|end| end.exit_code),
            signal: end.as_ref().and_then(|end| end.signal),
            timed_out: end.as_ref().is_some_and(|end| end.status == RunStatus::TimedOut),
            oom_killed: usage.oom_killed,
            started_at: self.started_at(),
            wall_secs: end
                .as_ref()
                .map_or_else(|| lock(&self.started).since.elapsed().as_secs_f64(), |end| end.wall_secs),
            cpu_secs: usage.cpu_micros.map(|micros| Duration::from_micros(micros).as_secs_f64()),
            peak_memory_bytes: usage.peak_memory_bytes,
            stdout_bytes: out,
            stderr_bytes: err,
            truncated: marks.as_ref().is_some_and(|marks| marks.out.is_cut() || marks.err.is_cut()),
            stdout_start: marks.as_ref().map_or(0, |marks| marks.out.start()),
            stderr_start: marks.as_ref().map_or(0, |marks| marks.err.start()),
            disk_full: marks.as_ref().is_some_and(|marks| marks.disk_full),
            stdin_open: self.input.is_open(),
            error: end.as_ref().and_then(|end| end.error.clone()),
            finished_at: end.map(|end| end.finished_at),
        }
    }
}

impl RunSpec {
    /// Returns a specification that enters a terminal into the table of runs.
    pub(super) fn terminal() -> RunSpec {
        RunSpec {
            origin: RunOrigin::Terminal,
            command: None,
            args: None,
            cwd: None,
            user: None,
            tag: None,
            pty: None,
            detach: false,
            limits: None,
            timeout_secs: None,
        }
    }
}

/// Truncates a text that is too long to show.
pub fn truncated_for_display(text: &str) -> String {
    if text.len() <= limits::COMMAND_SHOWN_BYTES {
        return text.to_owned();
    }
    let end = (0..=limits::COMMAND_SHOWN_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}
