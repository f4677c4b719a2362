//! An exec: a command whose output is kept in memory, head and tail, and goes into one answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

use super::live::Live;
use super::request::{Encoding, Plan};
use super::run::Run;
use crate::base::{Code, Error, Result};
use crate::proc::{Capture, Captured, Ended, Exit, Launcher, Process, Sink};

/// The answer of `/exec`.
#[derive(Debug, Default, Serialize)]
pub struct ExecResult {
    /// -1 when a signal ended it or time ran out.
    pub exit_code: i32,
    /// As text; what is not UTF-8 is replaced.
    pub stdout: String,
    /// As text; what is not UTF-8 is replaced.
    pub stderr: String,
    /// The deadline ended it.
    pub timed_out: bool,
    /// Output is missing from the middle of a stream.
    pub truncated: bool,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel ended something of it for want of memory; `None` where this host cannot tell.
    pub oom_killed: Option<bool>,
    /// How many bytes it wrote to stdout.
    pub stdout_bytes: u64,
    /// How many bytes it wrote to stderr.
    pub stderr_bytes: u64,
    /// The kept bytes of stdout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout_base64: Option<String>,
    /// The kept bytes of stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr_base64: Option<String>,
}

/// An exec that has ended, and what it was.
pub type Done = (ExecResult, Option<Box<dyn Process>>);

/// Runs a command to its end on this thread. What it was is to be dropped when the answer has gone: cleaning up after a
/// command may wait for the kernel.
///
/// # Errors
/// When it could not be started: then nothing has run. `Cancelled` when somebody else ended it.
pub fn run(
    launcher: &dyn Launcher,
    run: &Run,
    plan: Plan,
    output_limit: usize,
    encoding: Option<Encoding>,
) -> Result<Done> {
    let (begun, timeout) = (Instant::now(), plan.timeout);
    let live = match Live::start(launcher, run, plan) {
        // It was over before it began.
        Err(error) if error.code() == Code::ContainerSilent && begun.elapsed() >= timeout => {
            return Ok((ExecResult { exit_code: -1, timed_out: true, ..ExecResult::default() }, None));
        }
        live => live?,
    };
    let sink = |at: usize| Counted { capture: Capture::new(output_limit), count: &run.counts[at] };
    let (mut out, mut err) = (sink(0), sink(1));
    let (ended, process) = live.watch(run, &mut out, &mut err);
    let ended = ended?;
    if ended == Ended::Cancelled {
        return Err(Error::new(
            Code::Cancelled,
            "The command was ended: by a request, because its workspace is being rebuilt or deleted, or because the server stops",
        ));
    }
    let (stdout, stderr) = (out.capture.finish(), err.capture.finish());
    let exit = match ended {
        Ended::Exited(exit) => Some(exit),
        Ended::TimedOut | Ended::Cancelled => None,
    };
    let base64 = |captured: &Captured| {
        (encoding == Some(Encoding::Base64)).then(|| BASE64_STANDARD.encode(&captured.bytes))
    };
    let result = ExecResult {
        exit_code: exit.map_or(-1, Exit::code),
        timed_out: ended == Ended::TimedOut,
        truncated: stdout.gap.is_some() || stderr.gap.is_some(),
        signal: exit.and_then(Exit::signal),
        oom_killed: process.oom_killed(),
        stdout_bytes: stdout.total,
        stderr_bytes: stderr.total,
        stdout_base64: base64(&stdout),
        stderr_base64: base64(&stderr),
        stdout: stdout.into_text(),
        stderr: stderr.into_text(),
    };
    Ok((result, Some(process)))
}

/// Tells others how much there is so far.
struct Counted<'a> {
    capture: Capture,
    count: &'a AtomicU64,
}

impl Sink for Counted<'_> {
    fn take(&mut self, bytes: &[u8]) {
        self.count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.capture.take(bytes);
    }
}
