//! `berth host start --detach`: starts the same command again as a background process with its own session and log
//! file. The foreground process prints the output of the background process until that process is ready, then exits.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::base::thread::spawn;
use crate::base::{Error, Result, limits};
use crate::config::setting::ValueKind;
use crate::config::{self, CommandLine, CommandSpec};
use crate::proc::spawn::{dev_null, pipe};
use crate::proc::{Cgroups, CgroupsHandle, Exit, Process as _, Spec, Stdio};
use crate::store::file;

/// The markers with which the background process ends its output. They differ in whether OpenCode is ready.
const READY: &str = "\0ready";
const NOT_READY: &str = "\0not ready";
/// How long the background process may take to exit after it has closed its output.
const END: Duration = Duration::from_secs(30);
/// The names and values of environment variables.
type Variables = Vec<(String, String)>;

/// The outcome of a start in the background.
enum DetachedHost {
    Ready { pid: i32, text: String, ready: bool },
    Ended { code: ExitCode, text: String },
}

/// Starts the host as a background process, and prints its announcement.
pub(super) fn run(args: &CommandLine, data_dir: &Path, current_dir: &Path) -> Result<ExitCode> {
    let log = data_dir.join("host/host.log");
    let (words, secrets) = without_secrets(&args.raw)?;
    match launch(&["host", "serve"], words, secrets, &log, current_dir)? {
        DetachedHost::Ended { code, text } => {
            super::print(&text);
            Ok(code)
        }
        DetachedHost::Ready { pid, text, ready } => {
            super::print(&text);
            if !args.json {
                super::print(&format!(
                    "Detached (process {pid}), log in {}\nStop: berth host stop --data-dir '{}'\n",
                    log.display(),
                    data_dir.display()
                ));
            }
            if !ready {
                eprintln!("The host goes on without OpenCode; `berth host stop` ends it");
            }
            Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// Starts the daemon as a background process.
pub(super) fn daemon(
    args: &CommandLine,
    data_dir: &Path,
    current_dir: &Path,
    state_file: &str,
) -> Result<()> {
    let mut words = vec![format!("--data-dir={}", data_dir.display()), format!("--state-file={state_file}")];
    let flags = [
        ("--config", &args.config),
        ("--opencode-bin", &args.opencode_bin),
        ("--daemon-port", &args.daemon_port),
        ("--opencode-workdir", &args.opencode_workdir),
    ];
    words.extend(flags.iter().filter_map(|(flag, value)| Some(format!("{flag}={}", value.as_ref()?))));
    let log = data_dir.join("host/daemon.log");
    match launch(&["daemon", "run"], words, Vec::new(), &log, current_dir)? {
        DetachedHost::Ready { .. } => Ok(()),
        DetachedHost::Ended { .. } => Err(Error::internal("The daemon did not start")),
    }
}

/// Starts berth again with these arguments in a new session, and waits until the new process is ready or has exited.
fn launch(
    command: &[&str],
    words: Vec<String>,
    secrets: Variables,
    log: &Path,
    current_dir: &Path,
) -> Result<DetachedHost> {
    if let Some(folder) = log.parent() {
        file::create_dir_private(folder)?;
    }
    let program =
        std::env::current_exe().map_err(|error| Error::internal("berth's own path").with_source(error))?;
    let env: Vec<(String, String)> = config::process_names()
        .into_iter()
        .filter(|name| !secrets.iter().any(|(secret, _)| secret == name))
        .filter_map(|name| {
            let value = config::process_env(&name)?.into_string().ok()?;
            Some((name, value))
        })
        .chain(secrets.clone())
        .collect();
    let spec = Spec::bare(program, current_dir)
        .args(command.iter().copied())
        .args(words)
        .args(["--detached".to_owned(), format!("--log-file={}", log.display())])
        .envs(&env);
    let (out, out_child) = pipe()?;
    let (err, err_child) = pipe()?;
    let stdio = Stdio { stdin: dev_null()?, stdout: out_child, stderr: err_child };
    let group = Cgroups::from_handle(CgroupsHandle::default()).group("")?;
    let mut child = spec.start(stdio, group)?;
    let complaints = spawn("stderr".into(), limits::STACK, move || pass_on(err))?;
    let mut text = String::new();
    let read = File::from(out).read_to_string(&mut text);
    drop(complaints);
    let Some((shown, _)) = read.ok().and_then(|_| text.rsplit_once('\0')) else {
        let code = match wait(&mut child)? {
            Some(Exit::Code(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            _ => ExitCode::FAILURE,
        };
        return Ok(DetachedHost::Ended { code, text });
    };
    let launched =
        DetachedHost::Ready { pid: child.pid(), text: shown.to_owned(), ready: text.ends_with(READY) };
    // The background process must outlive this one; dropping its handle would kill it.
    std::mem::forget(child);
    Ok(launched)
}

/// Prints the announcement in the background process, and closes its streams to the waiting foreground process.
pub(super) fn announce(text: &str, ready: bool) {
    let end = if ready { READY } else { NOT_READY };
    let _ = io::stdout().write_all(format!("{text}{end}").as_bytes()).and_then(|()| io::stdout().flush());
    if let Ok(null) = dev_null() {
        let _ = rustix::stdio::dup2_stderr(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}

fn pass_on(from: OwnedFd) {
    let _ = io::copy(&mut File::from(from), &mut io::stderr());
}

fn wait(child: &mut crate::proc::Child) -> Result<Option<Exit>> {
    let deadline = Instant::now() + END;
    loop {
        if let Some(exit) = child.try_exit()? {
            return Ok(Some(exit));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::from_borrowed_fd(child.exit_fd(), PollFlags::IN)], Some(&left));
    }
}

/// Separates the secrets from the other arguments. Returns the other arguments, and the secrets as environment
/// variables.
fn without_secrets(words: &[String]) -> Result<(Vec<String>, Variables)> {
    let command = CommandSpec::named("host")?;
    let (mut kept, mut secrets) = (Vec::new(), Vec::new());
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        // Every user of the machine can read a process's arguments, so the background process gets secrets in
        // environment variables.
        let secret = command.find(name).filter(|(setting, _)| setting.kind == ValueKind::Secret);
        match secret.and_then(|(setting, _)| setting.vars.first()) {
            Some(variable) => {
                let value = value.or_else(|| rest.next().cloned()).unwrap_or_default();
                secrets.push(((*variable).to_owned(), value));
            }
            None if name != "--detach" => kept.push(word.clone()),
            None => {}
        }
    }
    Ok((kept, secrets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_passed_as_arguments() {
        let words =
            "--workspace w --openwork-token t --detach --openwork-host-token=h --json --opencode-password p";
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let (kept, secrets) = without_secrets(&words).unwrap();
        assert_eq!(kept, ["--workspace", "w", "--json"]);
        let secrets: Vec<String> =
            secrets.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(secrets, ["OPENWORK_TOKEN=t", "OPENWORK_HOST_TOKEN=h", "OPENWORK_OPENCODE_PASSWORD=p"]);
    }
}
