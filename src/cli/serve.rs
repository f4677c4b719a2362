//! `berth serve`: decides the settings, starts the log, installs what is missing when asked to, runs the server.

use std::process::ExitCode;

use crate::base::service_manager::ServiceManager;
use crate::base::{Error, Result, logging};
use crate::config::{self, Parsed, ServeArgs};

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
    let resolved = config::resolve(&args, &config::process_env, &current_dir)?;
    logging::init(resolved.log_format, resolved.verbose, resolved.run_id);
    log::info!("berth {}, data folder {}", env!("CARGO_PKG_VERSION"), resolved.settings.data_dir.display());
    if resolved.setup {
        setup::run(&resolved.settings, resolved.assume_yes)?;
    }
    let socket = config::process_env("NOTIFY_SOCKET").and_then(|socket| socket.into_string().ok());
    crate::server::run(resolved.settings, &ServiceManager::at(socket.as_deref()))?;
    Ok(ExitCode::SUCCESS)
}
