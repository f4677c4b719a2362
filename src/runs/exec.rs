//! One command from request to result: checks, environment, streams, deadline, captured output.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use super::plain;
use crate::base::ids::check_env_vars;
use crate::base::{Code, Error, Result, limits};
use crate::proc::spawn::{PATH, dev_null, pipe};
use crate::proc::{Cancel, Capture, Captured, Command, Ended, Exit, Io, Launcher, Stdio, c_string, pump};

/// The body of `/exec`.
#[derive(Debug, Deserialize)]
pub struct ExecRequest {
    /// For the shell.
    pub command: String,
    /// Relative to the workspace, or absolute.
    pub cwd: Option<String>,
    /// Default 300, at most 600; larger values are clipped, as observed.
    pub timeout_secs: Option<f64>,
    /// On top of the workspace's variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What the command reads; without it the input is empty.
    pub stdin: Option<String>,
    /// `base64` adds the untouched bytes of both streams.
    pub encoding: Option<Encoding>,
}

/// How output is answered besides text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Text only.
    Text,
    /// `stdout_base64` and `stderr_base64` as well.
    Base64,
}

/// The answer of `/exec`.
#[derive(Debug, Serialize)]
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

/// The shells that a command is given to, in order.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// A shell with these arguments, whichever the system has.
///
/// # Errors
/// `InvalidCommand` for a NUL byte.
pub fn in_shell(args: &[&str]) -> Result<Vec<Vec<CString>>> {
    let line = |shell: &str| {
        [shell]
            .iter()
            .chain(args)
            .map(|arg| c_string(arg, Code::InvalidCommand, "command"))
            .collect::<Result<_>>()
    };
    SHELLS.into_iter().map(line).collect()
}

impl ExecRequest {
    /// How long it may run.
    ///
    /// # Errors
    /// `InvalidPayload` for a negative number.
    pub fn timeout(&self) -> Result<Duration> {
        match self.timeout_secs {
            None => Ok(limits::EXEC_TIMEOUT),
            Some(seconds) if seconds >= 0.0 => {
                Ok(Duration::from_secs_f64(seconds.min(limits::EXEC_TIMEOUT_MAX.as_secs_f64())))
            }
            Some(_) => Err(Error::new(
                Code::InvalidPayload,
                format!(
                    "timeout_secs is a number of seconds from 0 to {}",
                    limits::EXEC_TIMEOUT_MAX.as_secs()
                ),
            )),
        }
    }

    /// The command in kernel terms. `defaults`: the workspace's variables, checked when they were stored.
    ///
    /// # Errors
    /// `InvalidCommand`, `InvalidEnv`, `InvalidCwd`.
    pub fn command(&self, home: &str, defaults: &BTreeMap<String, String>) -> Result<Command> {
        if self.command.trim().is_empty() {
            return Err(Error::new(Code::InvalidCommand, "command is empty"));
        }
        if self.command.len() > limits::COMMAND_BYTES {
            return Err(Error::new(
                Code::InvalidCommand,
                format!(
                    "command is longer than {} bytes, which no process can receive; send the script as stdin to \"bash -s\", or as a file",
                    limits::COMMAND_BYTES
                ),
            ));
        }
        let cwd = self.cwd.clone().unwrap_or_default();
        if cwd.contains('\0') {
            return Err(Error::new(Code::InvalidCwd, "cwd contains a NUL byte"));
        }
        let (env, path) = environment(home, defaults, &self.env)?;
        let shell_has_a_say = ["BASH_ENV", "ENV", "POSIXLY_CORRECT"];
        let variables = || defaults.keys().chain(self.env.keys());
        let mut attempts = Vec::new();
        if !variables().any(|name| shell_has_a_say.contains(&name.as_str())) {
            for line in plain::command_lines(&self.command, &path) {
                let line = line.iter().map(|arg| c_string(arg, Code::InvalidCommand, "command"));
                attempts.push(line.collect::<Result<_>>()?);
            }
        }
        attempts.extend(in_shell(&["-c", &self.command])?);
        Ok(Command { attempts, env, cwd, limits: None, tty: false })
    }
}

/// An environment made from nothing: PATH, HOME, LANG, then the workspace's variables, then the request's. The second
/// value is its PATH.
///
/// # Errors
/// `InvalidEnv`.
pub fn environment(
    home: &str,
    defaults: &BTreeMap<String, String>,
    given: &BTreeMap<String, String>,
) -> Result<(Vec<CString>, String)> {
    let mut all: BTreeMap<&str, &str> = BTreeMap::from([("PATH", PATH), ("HOME", home), ("LANG", "C.UTF-8")]);
    all.extend(defaults.iter().chain(given).map(|(name, value)| (name.as_str(), value.as_str())));
    check_env_vars(all.iter().map(|(name, value)| (*name, *value)))?;
    let path = all.get("PATH").copied().unwrap_or_default().to_owned();
    let entry = |(name, value)| c_string(&format!("{name}={value}"), Code::InvalidEnv, "variable");
    Ok((all.into_iter().map(entry).collect::<Result<_>>()?, path))
}

/// How a command was left, and what is kept of its output.
#[derive(Debug)]
pub struct Outcome {
    /// How it was left.
    pub ended: Ended,
    /// What it wrote to stdout.
    pub stdout: Captured,
    /// What it wrote to stderr.
    pub stderr: Captured,
}

/// Runs `command` to its end on this thread.
///
/// # Errors
/// When it could not be started: then nothing has run. `Cancelled` when somebody else ended it.
pub fn run(
    launcher: &dyn Launcher,
    id: &str,
    command: &Command,
    stdin: Option<Vec<u8>>,
    output_limit: usize,
    timeout: Duration,
    cancel: &Cancel,
) -> Result<Outcome> {
    let (stdout, stdout_child) = pipe()?;
    let (stderr, stderr_child) = pipe()?;
    let (stdin, stdin_child) = match stdin {
        Some(bytes) => {
            let (child, ours) = pipe()?;
            (Some((ours, bytes)), child)
        }
        None => (None, dev_null()?),
    };
    let stdio = Stdio { stdin: stdin_child, stdout: stdout_child, stderr: stderr_child };
    let mut process = launcher.launch(id, command, stdio)?;
    let (mut out, mut err) = (Capture::new(output_limit), Capture::new(output_limit));
    let io = Io { stdin, stdout, stderr, out: &mut out, err: &mut err };
    let ended = pump(process.as_mut(), io, timeout, cancel)?;
    if ended == Ended::Cancelled {
        return Err(Error::new(
            Code::Cancelled,
            "The command was ended: its workspace is being rebuilt or deleted, or the server stops",
        ));
    }
    Ok(Outcome { ended, stdout: out.finish(), stderr: err.finish() })
}

impl ExecResult {
    /// The answer for a command that ended or ran out of time.
    pub fn new(outcome: Outcome, encoding: Option<Encoding>) -> ExecResult {
        let exit = match outcome.ended {
            Ended::Exited(exit) => Some(exit),
            Ended::TimedOut | Ended::Cancelled => None,
        };
        let base64 = |captured: &Captured| {
            (encoding == Some(Encoding::Base64)).then(|| BASE64_STANDARD.encode(&captured.bytes))
        };
        ExecResult {
            exit_code: exit.map_or(-1, Exit::code),
            timed_out: outcome.ended == Ended::TimedOut,
            truncated: outcome.stdout.gap.is_some() || outcome.stderr.gap.is_some(),
            signal: exit.and_then(Exit::signal),
            stdout_bytes: outcome.stdout.total,
            stderr_bytes: outcome.stderr.total,
            stdout_base64: base64(&outcome.stdout),
            stderr_base64: base64(&outcome.stderr),
            stdout: outcome.stdout.into_text(),
            stderr: outcome.stderr.into_text(),
        }
    }
}
