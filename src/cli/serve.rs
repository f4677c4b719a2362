//! `berth serve`: decides the settings, starts the log, installs what is missing when asked to, runs the server.

use std::path::Path;
use std::process::ExitCode;

use crate::base::service_manager::ServiceManager;
use crate::base::{Error, Result, logging};
use crate::config::{self, Parsed, Resolved, ServeArgs};

use super::setup;

/// Serves until stopped.
///
/// # Errors
/// Wrong settings (exit code 2), or a server that could not start or had to stop.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let args = match ServeArgs::parse(args)? {
        Parsed::Run(args) => args,
        Parsed::Help => return Ok(super::help()),
        Parsed::Version => return Ok(super::version()),
    };
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let resolved = resolved(&args, &current_dir)?;
    logging::init(resolved.log_format, resolved.verbose, resolved.run_id, logging::Output::Stdout);
    log::info!("berth {}, data folder {}", env!("CARGO_PKG_VERSION"), resolved.settings.data_dir.display());
    if resolved.setup {
        setup::run(&resolved.settings, resolved.assume_yes)?;
    }
    crate::server::run(resolved.settings, &service_manager())?;
    Ok(ExitCode::SUCCESS)
}

/// The one that started this process, if any.
pub(super) fn service_manager() -> ServiceManager {
    let socket = config::process_env("NOTIFY_SOCKET").and_then(|socket| socket.into_string().ok());
    ServiceManager::at(socket.as_deref())
}

/// All settings, with the environment that an OpenCode of the server's own gets.
pub(super) fn resolved(args: &ServeArgs, current_dir: &Path) -> Result<Resolved> {
    let mut resolved = config::resolve(args, &config::process_env, current_dir)?;
    if let Some(plan) = &mut resolved.settings.opencode {
        let (home, names) = (&resolved.settings.home, config::process_names());
        plan.env = config::opencode_env(home, &config::process_env, &names, &resolved.opencode_env)?;
    }
    Ok(resolved)
}
