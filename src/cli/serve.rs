//! `berth serve`: reads the settings, starts the log, installs missing packages if requested, and runs the server.

use std::io::{self, Read as _};
use std::path::Path;
use std::process::ExitCode;

use crate::base::service_manager::ServiceManager;
use rustix::process::{DumpableBehavior, Signal, getpid, kill_process, set_dumpable_behavior};

use crate::base::{At as _, Error, Result, limits, logging, thread};
use crate::config::{self, CommandLine, Resolved};

use super::setup;

/// Runs the server until it is stopped.
///
/// # Errors
/// Fails for invalid settings (exit code 2), or if the server cannot start or has to stop.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let args = match super::line("serve", args)? {
        Ok(args) => args,
        Err(code) => return Ok(code),
    };
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let resolved = resolved(&args, &current_dir)?;
    logging::init(resolved.log_format, resolved.verbose, resolved.run_id, logging::LogOutput::Stdout);
    log::info!("berth {}, data folder {}", env!("CARGO_PKG_VERSION"), resolved.settings.data_dir.display());
    if resolved.setup {
        setup::run(&resolved.settings, resolved.assume_yes)?;
    }
    crate::server::run(resolved.settings, &service_manager())?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the server as the first process of a container that a host started (`--sandbox-server inside`). In this
/// container OpenCode is another process of the same user, and it must not be able to read this process's environment,
/// which contains the tokens (ptrace(2)). The server ends when the host closes its standard input.
///
/// # Errors
/// Fails for the same reasons as [`run`].
pub(super) fn in_container(args: &[String]) -> Result<ExitCode> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("set up", "the server")?;
    let watch = thread::spawn("input".into(), limits::STACK, || {
        while io::stdin().read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        let _ = kill_process(getpid(), Signal::TERM);
    });
    watch?.detach();
    run(args)
}

/// Returns the service manager that started this process, if there is one.
pub(super) fn service_manager() -> ServiceManager {
    let socket = config::process_env("NOTIFY_SOCKET").and_then(|socket| socket.into_string().ok());
    ServiceManager::from_socket(socket.as_deref())
}

/// Returns all settings, with the environment for the server's own OpenCode.
pub(super) fn resolved(args: &CommandLine, current_dir: &Path) -> Result<Resolved> {
    let mut resolved = config::resolve(args, &config::process_env, current_dir)?;
    if let Some(plan) = &mut resolved.settings.opencode {
        let (home, names) = (&resolved.settings.home, config::process_names());
        plan.env = config::opencode_env(home, &config::process_env, &names, &resolved.opencode_env)?;
    }
    Ok(resolved)
}
