//! Passes the arguments to [`berth::cli`] and its exit code to the system.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth::cli::run(std::env::args_os().collect())
}
