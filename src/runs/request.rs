//! The body of `/exec` and `/runs`, its validation, and its conversion into a [`LaunchPlan`]. Does not depend on
//! whether the command runs in a container or on the host.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::run::{RunOrigin, RunSpec, truncated_for_display};
use super::shell_free;
use super::user::UserAccount;
use crate::base::ids::check_env_vars;
use crate::base::input_bytes::InputBytes;
use crate::base::unknown_fields::KnownFields;
use crate::base::{Code, Error, Result, limits, object};
use crate::proc::pty::WindowSize;
use crate::proc::spawn::PATH;
use crate::proc::{CommandSpec, Limits, c_string};

/// Default `timeout_secs` of `/exec` (assets/docs/compatibility.md#commands).
const EXEC_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum `timeout_secs` of `/exec` (the same section); larger values are clipped.
const EXEC_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Maximum length of a run's tag.
const TAG_BYTES: usize = 255;

/// The body of a request. `/exec` rejects fields that only `/runs` supports.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ExecRequest {
    /// Command line for the shell.
    pub command: Option<String>,
    /// Program and its arguments, run without a shell; PATH is searched for the program. Excludes `command`.
    pub args: Option<Vec<String>>,
    /// Working directory, relative to the workspace or absolute.
    pub cwd: Option<String>,
    /// Time limit: default 300, at most 600; larger values are clamped. For a run, the same as
    /// `hard_timeout_secs`.
    pub timeout_secs: Option<f64>,
    /// Environment variables, added to the workspace's variables.
    pub env: BTreeMap<String, String>,
    /// Input of the command; empty by default.
    pub stdin: Option<String>,
    /// `base64` adds the unmodified bytes of both streams.
    pub encoding: Option<OutputEncoding>,
    /// User to run as: a name or UID, optionally with `:` and a group; default root.
    pub user: Option<String>,
    /// Bytes to keep of each output stream, at most the server's limit.
    pub output_limit_bytes: Option<u64>,
    /// A label that the client chooses.
    pub tag: Option<String>,
    /// Resource limits of the command.
    #[serde(deserialize_with = "object::optional")]
    pub limits: Option<Limits>,
    /// Runs only: whether the run outlives the server.
    pub detach: bool,
    /// Runs only: how long the response waits for the run to end.
    pub soft_timeout_secs: Option<f64>,
    /// Runs only: time limit of the run.
    pub hard_timeout_secs: Option<f64>,
    /// Runs only: use a terminal of this size instead of pipes; its output becomes stdout.
    #[serde(deserialize_with = "object::optional")]
    pub pty: Option<PtySize>,
    /// Runs only: keep stdin open, so that `POST …/stdin` can write to it.
    pub open_stdin: bool,
}

/// Encodings of the output in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputEncoding {
    /// Only text.
    Text,
    /// Text, and the unmodified bytes in `stdout_base64` and `stderr_base64`.
    Base64,
}

/// Size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtySize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

impl From<PtySize> for WindowSize {
    fn from(size: PtySize) -> WindowSize {
        WindowSize { cols: size.cols, rows: size.rows }
    }
}

/// The source of a command's input.
#[derive(Debug)]
pub enum Stdin {
    /// The command has no input; its stdin is /dev/null.
    Empty,
    /// The command reads these bytes, then EOF.
    Bytes(InputBytes),
    /// Clients send input while the command runs.
    Open,
}

/// A command with everything needed to start it.
#[derive(Debug)]
pub struct LaunchPlan {
    pub command: CommandSpec,
    pub stdin: Stdin,
    /// Size of the command's terminal, if it has one.
    pub pty: Option<WindowSize>,
    /// Time limit of the command.
    pub timeout: Duration,
}

/// Shells to try for a command line, in this order.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];
/// Timeout of a run without a time limit: longer than any uptime.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Returns one command line with these arguments for each shell to try.
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

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidPayload, message)
}

fn seconds(name: &str, given: f64, longest: Duration) -> Result<Duration> {
    if given >= 0.0 {
        return Ok(Duration::from_secs_f64(given.min(longest.as_secs_f64())));
    }
    Err(invalid(format!("{name} is a number of seconds from 0 to {}", longest.as_secs())))
}

fn clamped(name: &str, given: Option<f64>, longest: Duration) -> Option<String> {
    given
        .filter(|given| *given > longest.as_secs_f64())
        .map(|_| format!("{name} clamped to {}", longest.as_secs()))
}

impl ExecRequest {
    /// Rejects fields that `/exec` does not support.
    ///
    /// # Errors
    /// `InvalidPayload` with the name of the field.
    pub fn check_exec(&self) -> Result<()> {
        let only_runs = [
            ("detach", self.detach),
            ("soft_timeout_secs", self.soft_timeout_secs.is_some()),
            ("hard_timeout_secs", self.hard_timeout_secs.is_some()),
            ("pty", self.pty.is_some()),
            ("open_stdin", self.open_stdin),
        ];
        match only_runs.iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(invalid(format!("{name} is for POST …/runs"))),
            None => self.check_tag(),
        }
    }

    /// Rejects contradictory fields of a run.
    ///
    /// # Errors
    /// `InvalidPayload` with the name of the field.
    pub fn check_run(&self) -> Result<()> {
        if self.stdin.is_some() && (self.open_stdin || self.pty.is_some()) {
            return Err(invalid(
                "stdin is the whole input; with open_stdin or a pty, send it with POST …/runs/:run/stdin",
            ));
        }
        if self.timeout_secs.is_some() && self.hard_timeout_secs.is_some() {
            return Err(invalid("timeout_secs means the same as hard_timeout_secs here; give one of them"));
        }
        if self.pty.is_some_and(|size| size.cols == 0 || size.rows == 0) {
            return Err(invalid("pty needs at least one column and one row"));
        }
        self.check_tag()
    }

    fn check_tag(&self) -> Result<()> {
        if self.tag.as_ref().is_some_and(|tag| tag.len() > TAG_BYTES) {
            return Err(invalid(format!("tag is at most {} bytes long", TAG_BYTES)));
        }
        self.limits.map_or(Ok(()), |limits| limits.check("limits"))
    }

    /// Returns the fields that the body may have.
    pub fn known() -> KnownFields {
        KnownFields::from_type::<ExecRequest>()
            .with_nested("pty", KnownFields::from_type::<PtySize>())
            .with_nested("limits", KnownFields::from_type::<Limits>())
    }

    /// Returns a warning if the timeout of an exec is clamped.
    pub fn exec_clamped(&self) -> Option<String> {
        clamped("timeout_secs", self.timeout_secs, EXEC_TIMEOUT_MAX)
    }

    /// Returns a warning if the wait for a run's end is clamped.
    pub fn run_clamped(&self) -> Option<String> {
        clamped("soft_timeout_secs", self.soft_timeout_secs, limits::WAIT_MAX)
    }

    /// Returns the time limit of an exec.
    ///
    /// # Errors
    /// `InvalidPayload` for a negative number.
    pub fn exec_timeout(&self) -> Result<Duration> {
        self.timeout_secs.map_or(Ok(EXEC_TIMEOUT), |given| seconds("timeout_secs", given, EXEC_TIMEOUT_MAX))
    }

    /// Returns the time limit of a run.
    ///
    /// # Errors
    /// The errors of [`ExecRequest::exec_timeout`].
    pub fn run_timeout(&self) -> Result<Duration> {
        let given = self.hard_timeout_secs.or(self.timeout_secs);
        given.map_or(Ok(FOREVER), |given| seconds("hard_timeout_secs", given, FOREVER))
    }

    /// Returns how long the response waits for the run to end.
    ///
    /// # Errors
    /// The errors of [`ExecRequest::exec_timeout`].
    pub fn soft_timeout(&self) -> Result<Option<Duration>> {
        self.soft_timeout_secs.map(|given| seconds("soft_timeout_secs", given, limits::WAIT_MAX)).transpose()
    }

    /// Returns how many bytes of each stream are kept: at least `least`, at most `most`.
    ///
    /// # Errors
    /// `InvalidPayload` when the requested number is outside this range.
    pub fn output_limit(&self, least: u64, most: u64) -> Result<u64> {
        match self.output_limit_bytes {
            None => Ok(most),
            Some(given) if (least..=most).contains(&given) => Ok(given),
            Some(_) => Err(invalid(format!("output_limit_bytes is a number from {least} to {most}"))),
        }
    }

    /// Returns the specification that clients see.
    pub fn spec(&self, origin: RunOrigin, timeout: Duration) -> RunSpec {
        let mut left = limits::COMMAND_SHOWN_BYTES;
        let args = self.args.as_ref().map(|args| {
            let fits = |arg: &&String| {
                left = left.saturating_sub(arg.len());
                left > 0
            };
            args.iter().take_while(fits).cloned().collect()
        });
        RunSpec {
            origin,
            command: self.command.as_deref().map(truncated_for_display),
            args,
            cwd: self.cwd.as_deref().map(truncated_for_display),
            user: self.user.as_deref().map(truncated_for_display),
            tag: self.tag.clone(),
            pty: self.pty,
            detach: self.detach,
            limits: self.limits,
            timeout_secs: (timeout < FOREVER).then_some(timeout.as_secs_f64()),
        }
    }

    /// Converts the request into a plan for the start. `defaults` are the workspace's variables, which were
    /// validated when they were stored.
    ///
    /// # Errors
    /// `InvalidCommand`, `InvalidEnv`, `InvalidCwd`; `InvalidPayload` if `command` and `args` are both given or
    /// both missing.
    pub fn plan(
        &mut self,
        home: &str,
        user: Option<UserAccount>,
        defaults: &BTreeMap<String, String>,
        timeout: Duration,
    ) -> Result<LaunchPlan> {
        let cwd = self.cwd.clone().unwrap_or_default();
        if cwd.contains('\0') {
            return Err(Error::new(Code::InvalidCwd, "cwd contains a NUL byte"));
        }
        let mut implied = Vec::new();
        if self.pty.is_some() {
            implied.push(("TERM", "xterm-256color".to_owned()));
        }
        if let Some(account) = &user {
            implied.extend(["USER", "LOGNAME"].map(|variable| (variable, account.name.clone())));
        }
        for (variable, value) in implied.into_iter().filter(|(name, _)| !defaults.contains_key(*name)) {
            self.env.entry(variable.to_owned()).or_insert(value);
        }
        let home = user.as_ref().map_or(home, |account| &account.home);
        let (env, path) = environment(home, defaults, &self.env)?;
        let attempts = match (&self.command, &self.args) {
            (Some(command), None) => self.shell_attempts(command, defaults, &path)?,
            (None, Some(args)) => program_attempts(args, &path)?,
            _ => {
                return Err(invalid(
                    "Give either command, a line for the shell, or args, a program and its arguments",
                ));
            }
        };
        let tty = self.pty.is_some();
        let stdin = match self.stdin.take() {
            Some(text) => Stdin::Bytes(InputBytes::from_vec(text.into_bytes())?),
            None if self.open_stdin || tty => Stdin::Open,
            None => Stdin::Empty,
        };
        let user = user.map(|account| account.user);
        let command = CommandSpec {
            attempts,
            env,
            cwd,
            limits: self.limits,
            tty,
            user,
            account: false,
            patience: None,
        };
        Ok(LaunchPlan { command, stdin, pty: self.pty.map(WindowSize::from), timeout })
    }

    fn shell_attempts(
        &self,
        command: &str,
        defaults: &BTreeMap<String, String>,
        path: &str,
    ) -> Result<Vec<Vec<CString>>> {
        if command.trim().is_empty() {
            return Err(Error::new(Code::InvalidCommand, "command is empty"));
        }
        if command.len() > limits::COMMAND_BYTES {
            return Err(Error::new(
                Code::InvalidCommand,
                format!(
                    "command is longer than {} bytes, which no process can receive; send the script as stdin to \"bash -s\", or as a file",
                    limits::COMMAND_BYTES
                ),
            ));
        }
        let shell_has_a_say = ["BASH_ENV", "ENV", "POSIXLY_CORRECT"];
        let mut variables = defaults.keys().chain(self.env.keys());
        let mut attempts = Vec::new();
        if !variables.any(|name| shell_has_a_say.contains(&name.as_str())) {
            for line in shell_free::command_lines(command, path) {
                attempts.push(c_strings(&line)?);
            }
        }
        attempts.extend(in_shell(&["-c", command])?);
        Ok(attempts)
    }
}

/// Returns the command lines to try for a program and its arguments. A program without a slash is searched in each
/// directory of `path`.
fn program_attempts(args: &[String], path: &str) -> Result<Vec<Vec<CString>>> {
    let empty = || Error::new(Code::InvalidCommand, "args must begin with the program to run");
    let (program, rest) = args.split_first().filter(|(program, _)| !program.is_empty()).ok_or_else(empty)?;
    let total: usize = args.iter().map(String::len).sum();
    if total > limits::COMMAND_TOTAL_BYTES || args.iter().any(|arg| arg.len() > limits::COMMAND_BYTES) {
        return Err(Error::new(
            Code::InvalidCommand,
            format!(
                "args are too long: at most {} bytes each and {} together; send data as stdin, or as a file",
                limits::COMMAND_BYTES,
                limits::COMMAND_TOTAL_BYTES
            ),
        ));
    }
    if !program.contains('/') && !shell_free::is_searchable(total, path) {
        return Err(Error::new(
            Code::InvalidCommand,
            "PATH has too many folders to look for the program in; give its whole path",
        ));
    }
    let line = |program: String| c_strings(&[&[program], rest].concat());
    if program.contains('/') {
        return Ok(vec![line(program.clone())?]);
    }
    // In POSIX, an empty directory in PATH means the working directory.
    let folder = |folder: &str| if folder.is_empty() { "." } else { folder }.to_owned();
    path.split(':').map(|part| line(format!("{}/{program}", folder(part)))).collect()
}

fn c_strings(line: &[String]) -> Result<Vec<CString>> {
    line.iter().map(|arg| c_string(arg, Code::InvalidCommand, "command")).collect()
}

/// Builds an environment from scratch: PATH, HOME, LANG, then the workspace's variables, then the request's; later
/// values replace earlier ones. Also returns its PATH.
///
/// # Errors
/// `InvalidEnv` when a name or value is invalid.
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
