//! Runs a workspace's init script in its container, with the workspace's variables, the script's own shebang, a
//! deadline, and a log inside the container. The workload may have replaced any file by a symbolic link, so every file
//! is opened beneath the root.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use super::build::OWN_SCRIPT;
use super::feed::{BuildFeed, BuildStep};
use super::{Lifecycle, init_help, variables};
use crate::base::{Code, Error, Result, limits};
use crate::images::BuildLog;
use crate::library::{TextKind, is_broken};
use crate::proc::spawn::{dev_null, pipe};
use crate::proc::{
    Cancel, CommandSpec, Exit, Launcher, OutputCapture, ProcessIo, ProcessOutcome, Sink, Stdio, c_string,
    pump,
};
use crate::runs::request::{environment, in_shell};
use crate::store::beneath::Root;
use crate::workspaces::{Workspace, WorkspaceRecord};

/// The number of bytes that are kept of an init script's output, for the response of `rerun-init` and for error
/// messages.
const INIT_OUTPUT_BYTES: usize = 1 << 20;

/// The path, in the root, of the workspace's own script while it runs.
pub const SCRIPT: &str = "sandboxed-init.sh";
/// The path, in the root, of the script with the library's fragments while it runs.
pub const FRAGMENTS: &str = "sandboxed-init-fragments.sh";
/// The path of the log in the root (assets/docs/compatibility.md#builds-and-init-scripts).
pub const LOG: &str = "var/log/sandboxed.sh-init.log";
/// The path of the log in earlier versions of sandboxed.sh.
pub const OLD_LOG: &str = "var/log/sandboxed-init.log";

/// The response of `rerun-init`.
#[derive(Debug, Serialize)]
pub struct InitResult {
    /// Whether the script exited with code 0.
    pub success: bool,
    /// The script's exit code; -1 if it was killed by a signal or at the deadline.
    pub exit_code: i32,
    /// The beginning and the end of the script's standard output.
    pub stdout: String,
    /// The beginning and the end of the script's standard error.
    pub stderr: String,
    /// Whether the script was killed at the deadline, with all of its processes.
    pub timed_out: bool,
    pub duration_secs: f64,
    /// Why the script could not run, if that can be determined, and how to correct it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Lifecycle {
    /// Checks and journals another run of the init script. Returns a closure that runs the script on a worker.
    ///
    /// # Errors
    /// Fails with `NotAContainer`, `NotReady`, `NoInitScript`, `BuildRunning` or `WorkspaceNotFound`.
    pub fn start_rerun(
        self: &Arc<Self>,
        id: Uuid,
    ) -> Result<impl FnOnce() -> Result<InitResult> + Send + use<>> {
        let workspace = self.registry.get(id)?;
        let journaled = self
            .journal(workspace, |workspace, record| record.start_rerun(self.has_root(workspace, record)))?;
        let lifecycle = self.clone();
        Ok(move || {
            let workspace = journaled.workspace.clone();
            let record = workspace.record();
            let script = lifecycle.init_script(&record);
            let result = script.and_then(|script| {
                lifecycle.run_init(&workspace, &record, &script, None, &journaled.guard.cancel)
            });
            let message = match &result {
                Ok(result) if result.success => None,
                Ok(result) => Some(failure(result, lifecycle.policy.init_timeout)),
                // No part of the script has run, so the workspace keeps its status.
                Err(error) if matches!(error.code(), Code::ContainerFull | Code::ContainerSilent) => {
                    return result;
                }
                Err(error) => Some(format!("Init script failed: {}", error.message())),
            };
            journaled.end(|record| record.finish(message.clone()));
            result
        })
    }

    /// Runs the init script as the last step of a build.
    pub(super) fn run_init_in_build(
        &self,
        workspace: &Workspace,
        record: &WorkspaceRecord,
        log: &mut BuildLog,
        feed: &BuildFeed,
        cancel: &Cancel,
    ) -> Result<()> {
        let script = self.init_script(record)?;
        if script.is_empty() {
            return Ok(());
        }
        feed.begin(if script.before.is_empty() { BuildStep::Script } else { BuildStep::Fragments });
        log.note("Running init script");
        let result = self.run_init(workspace, record, &script, Some(log), cancel)?;
        if result.success {
            return Ok(());
        }
        Err(Error::new(Code::BuildFailed, failure(&result, self.policy.init_timeout)))
    }

    /// Assembles the init script: the library's fragments and the skills' setup commands become one shell script,
    /// whose last command executes the workspace's own script.
    fn init_script(&self, record: &WorkspaceRecord) -> Result<InitScript> {
        let shown = &record.view;
        let mut before = String::new();
        for name in &shown.init_scripts {
            match self.library.text(TextKind::InitScript, name) {
                Ok(fragment) => before += &section(name, &fragment.content),
                Err(error) => before += &section(name, &skip_missing(shown.id, error, "")?),
            }
        }
        let mut setup = Vec::new();
        for name in &shown.skills {
            match self.library.setup_commands(name) {
                Ok(commands) => setup.extend(commands),
                Err(error) => {
                    let what = format!("The setup commands of skill {name}: ");
                    setup.push(skip_missing(shown.id, error, &what)?);
                }
            }
        }
        if !setup.is_empty() {
            before += &section("Skill Setup Commands", &setup.join("\n"));
        }
        Ok(InitScript { before, own: shown.init_script.clone() })
    }

    fn run_init(
        &self,
        workspace: &Workspace,
        record: &WorkspaceRecord,
        script: &InitScript,
        build_log: Option<&mut BuildLog>,
        cancel: &Cancel,
    ) -> Result<InitResult> {
        let root = self.files(workspace)?;
        let mut files = Vec::new();
        if let Some(own) = &script.own {
            files.push((SCRIPT, own.clone()));
        }
        if !script.before.is_empty() {
            // The workspace's own script keeps its shebang and inherits the variables that the fragments exported.
            let announced = build_log.is_some();
            let then = script.own.as_deref().map(|own| runner(own, announced)).unwrap_or_default();
            files.push((FRAGMENTS, format!("#!/usr/bin/env bash\n{}{then}", script.before)));
        }
        let result = files
            .iter()
            .try_for_each(|(name, text)| root.write_new(name, text.as_bytes(), 0o755))
            .and_then(|()| match files.last() {
                Some((name, text)) => {
                    self.run_script(workspace, record, (name, text), &root, build_log, cancel)
                }
                None => Err(Error::new(Code::NoInitScript, "No init script configured for this workspace")),
            });
        for (name, _) in &files {
            if let Err(error) = root.remove(name) {
                log::warn!("workspace {}: {error}", workspace.id());
            }
        }
        let help = || init_help::help(&root, script.own.as_deref(), &script.before);
        match result {
            Ok(result) if !result.success && !result.timed_out => Ok(InitResult { hint: help(), ..result }),
            Err(error) if error.code() == Code::InvalidCommand => Err(match help() {
                Some(hint) => Error::new(error.code(), format!("{}: {hint}", error.message())),
                None => error,
            }),
            result => result,
        }
    }

    fn run_script(
        &self,
        workspace: &Workspace,
        record: &WorkspaceRecord,
        (name, script): (&str, &str),
        root: &Root,
        build_log: Option<&mut BuildLog>,
        cancel: &Cancel,
    ) -> Result<InitResult> {
        let inside = format!("/{name}");
        // The kernel reads the script's shebang (execve(2)). A script without a shebang is run by a shell.
        let attempts = if script.starts_with("#!") {
            vec![vec![c_string(&inside, Code::Internal, "init script's path")?]]
        } else {
            in_shell(&[inside.as_str()])?
        };
        let command = CommandSpec {
            attempts,
            env: environment("/root", variables(record), &BTreeMap::new())?.0,
            cwd: "/".to_owned(),
            limits: None,
            tty: false,
            user: None,
            account: false,
            patience: None,
        };
        // If the log cannot be opened, for example because the workload put a folder in its place, the script runs
        // without a log.
        let init_log = root.write_new(LOG, b"", 0o644).and_then(|()| root.append_open(LOG));
        if let Err(error) = &init_log {
            log::warn!("workspace {}: the init log cannot be written: {error}", workspace.id());
        }
        let logs = std::cell::RefCell::new((init_log.ok().map(BuildLog::to_file), build_log));
        let (mut out, mut err) = (
            ScriptOutput { logs: &logs, kept: OutputCapture::new(INIT_OUTPUT_BYTES) },
            ScriptOutput { logs: &logs, kept: OutputCapture::new(INIT_OUTPUT_BYTES) },
        );
        let (stdout, stdout_child) = pipe()?;
        let (stderr, stderr_child) = pipe()?;
        let stdio = Stdio { stdin: dev_null()?, stdout: stdout_child, stderr: stderr_child };
        let started = Instant::now();
        let mut process = self.machine(workspace, record)?.launch("init", &command, stdio)?;
        let io = ProcessIo { stdin: None, stdout, stderr, out: &mut out, err: &mut err };
        let ended = pump(process.as_mut(), io, self.policy.init_timeout, cancel)?;
        drop(process);
        let exit_code = match ended {
            ProcessOutcome::Exited(exit) => exit.code(),
            ProcessOutcome::TimedOut => -1,
            ProcessOutcome::Cancelled => {
                return Err(Error::new(Code::Cancelled, "The init script was cancelled"));
            }
        };
        Ok(InitResult {
            success: ended == ProcessOutcome::Exited(Exit::Code(0)),
            exit_code,
            stdout: out.kept.finish().into_text(),
            stderr: err.kept.finish().into_text(),
            timed_out: ended == ProcessOutcome::TimedOut,
            duration_secs: started.elapsed().as_secs_f64(),
            hint: None,
        })
    }
}

/// The scripts that run at the end of a build.
struct InitScript {
    /// The library's fragments and the skills' setup commands, for bash.
    before: String,
    /// The workspace's own script, in any language.
    own: Option<String>,
}

impl InitScript {
    fn is_empty(&self) -> bool {
        self.before.is_empty() && self.own.is_none()
    }
}

/// Returns a shell command that reports that an entry of the library is missing or unreadable. The script continues
/// after this command.
fn skip_missing(workspace: Uuid, error: Error, what: &str) -> Result<String> {
    if !is_broken(&error) && !matches!(error.code(), Code::NotInLibrary | Code::InvalidName) {
        return Err(error);
    }
    log::warn!("workspace {workspace}: {what}{}", error.message());
    let quoted = format!("{what}{}", error.message()).replace('\'', "'\\''");
    Ok(format!("echo '{quoted}; skipped' >&2"))
}

/// Returns a section of the assembled script, without the shebang of its text.
fn section(name: &str, text: &str) -> String {
    let text = match text.split_once('\n') {
        Some((first, rest)) if first.starts_with("#!") => rest,
        _ => text,
    };
    // A name contains no line breaks (`Label`), so it cannot end the comment in the script.
    format!("\n# === {name} ===\n{text}\n")
}

/// Returns the last lines of the script with the fragments. They execute the workspace's own script. With `announced`,
/// they first print [`OWN_SCRIPT`].
fn runner(own: &str, announced: bool) -> String {
    let shell = if own.starts_with("#!") { "" } else { "bash " };
    let say = if announced { format!("echo \"{OWN_SCRIPT}\"\n") } else { String::new() };
    format!("\n# === Custom Script ===\n{say}exec {shell}/{SCRIPT}\n")
}

/// Returns the error message for a failed script, with the last lines that the script printed.
fn failure(result: &InitResult, deadline: Duration) -> String {
    let last = |text: &str| {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(limits::ERROR_TAIL_LINES)..].join(" | ")
    };
    let words = match (last(&result.stderr), last(&result.stdout)) {
        (err, _) if !err.is_empty() => err,
        (_, out) if !out.is_empty() => out,
        _ => "it printed nothing".to_owned(),
    };
    let how = match result.exit_code {
        _ if result.timed_out => format!(
            "took longer than {} s (--init-timeout) and was killed with all of its processes",
            deadline.as_secs()
        ),
        -1 => "was killed by a signal".to_owned(),
        code => format!("exited with code {code}"),
    };
    let hint = result.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("Init script {how}: {words}{hint}")
}

/// Captures one output stream of the script and copies it to both logs.
struct ScriptOutput<'a, 'b> {
    logs: &'a std::cell::RefCell<(Option<BuildLog>, Option<&'b mut BuildLog>)>,
    kept: OutputCapture,
}

impl Sink for ScriptOutput<'_, '_> {
    fn take(&mut self, bytes: &[u8]) {
        self.kept.take(bytes);
        let mut logs = self.logs.borrow_mut();
        if let Some(log) = &mut logs.0 {
            log.take(bytes);
        }
        if let Some(log) = &mut logs.1 {
            log.take(bytes);
        }
    }
}
