//! The command line: subcommands, their output and exit codes. Each subcommand has its own file. The module `config`
//! parses the flags. Commands run on the main thread.

pub mod approvals;
pub mod backup;
pub mod bundle;
mod client;
mod daemon;
mod daemon_client;
mod daemon_state;
pub mod doctor;
mod help;
pub mod host;
mod host_check;
mod host_detach;
mod host_sandbox;
mod host_state;
pub mod image;
pub mod install;
mod manual;
pub mod openwork_alias;
pub mod restore;
mod screen;
pub mod serve;
pub mod setup;
pub mod status;
pub mod token;
mod unix_socket;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::base::{Code, Error, Result, logging};
use crate::config::{CommandLine, CommandSpec, Parsed, Style};
use crate::containers::{binds, enclose, resume};
use crate::host::engine::inside;
use crate::runs::keeper;

/// Runs berth with the arguments of the process, of which the first is the program's name.
pub fn run(args: Vec<OsString>) -> ExitCode {
    // The agent is checked first, because a container waits for its agent to start.
    if args.get(1).is_some_and(|arg| arg == "agent") {
        crate::containers::agent::main();
    }
    match dispatch(args) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "berth: {}", logging::one_line(&error.to_string()));
            exit_code(&error)
        }
    }
}

/// Returns the exit code for an error. The help text lists the exit codes.
fn exit_code(error: &Error) -> ExitCode {
    ExitCode::from(match error.code() {
        Code::Config => 2,
        Code::NewerFormat => 3,
        _ => 1,
    })
}

/// The commands with which berth starts its own helper processes, under any program name.
const OWN: [&str; 7] = ["host", "probe", "attach", "keeper", "enclose", "relay", "seed"];

fn dispatch(args: Vec<OsString>) -> Result<ExitCode> {
    let name = args.first().map(std::path::Path::new).and_then(std::path::Path::file_name);
    let program = name.and_then(|name| openwork_alias::NAMES.into_iter().find(|alias| name == *alias));
    let mut words = Vec::with_capacity(args.len());
    for arg in args.into_iter().skip(1) {
        let word = arg.into_string();
        words.push(word.map_err(|arg| Error::config(arg.to_string_lossy(), "argument is not UTF-8 text"))?);
    }
    let own = words.first().is_some_and(|word| OWN.contains(&word.as_str()));
    if let Some(program) = program.filter(|_| !own) {
        return openwork_alias::run(program, &words);
    }
    match words.first().map(String::as_str) {
        Some("host") => host::run(&words[1..], Style::Strict),
        Some(command @ ("daemon" | "workspace" | "workspaces" | "instance")) => {
            let file = daemon_client::state_file("berth");
            daemon_client::run(command, &words[1..], Style::Strict, file)
        }
        Some("serve") => serve::run(&words[1..]),
        Some("token") => token::run(&words[1..]),
        Some("doctor") => doctor::run(&words[1..]),
        Some("approvals") => approvals::run(&words[1..]),
        Some("status") => status::run(&words[1..]),
        Some("image") => image::run(&words[1..]),
        Some("bundle") => bundle::run(&words[1..]),
        Some("backup") => backup::run(&words[1..]),
        Some("restore") => restore::run(&words[1..]),
        Some("install") => install::install(&words[1..]),
        Some("uninstall") => install::uninstall(&words[1..]),
        // A probe runs single-threaded, like the agent, because it forks.
        Some("probe") => Ok(crate::doctor::child::main(&words[1..])),
        Some("attach") => Ok(binds::main(&words[1..])),
        Some("keeper") => Ok(keeper::child::main(resume)),
        Some("enclose") => Ok(enclose::main(&words[1..])),
        Some("relay") => Ok(inside::main(&words[1..])),
        Some("seed") => serve::in_container(&words[1..]),
        Some("help") => {
            let text = match words.get(1).map(String::as_str) {
                Some("man") => manual::man(),
                Some("bash") => manual::bash(),
                Some("zsh") => manual::zsh(),
                Some("fish") => manual::fish(),
                Some("markdown") => manual::markdown(),
                Some(word) if !word.starts_with('-') => return CommandSpec::named(word).map(|_| help(word)),
                _ => return Ok(help("")),
            };
            print(&text);
            Ok(ExitCode::SUCCESS)
        }
        Some(word) if !word.starts_with('-') => CommandSpec::named(word).map(|_| help(word)),
        Some("-h" | "--help") => Ok(help("")),
        _ => serve::run(&words),
    }
}

/// Returns the error for a file or folder that the user named and this process cannot open.
fn unreadable(path: &std::path::Path, error: io::Error) -> Error {
    let user = rustix::process::geteuid();
    if error.kind() == io::ErrorKind::PermissionDenied && !user.is_root() {
        let problem = format!("user {} may not open it ({error}); run this with sudo", user.as_raw());
        return Error::config(path.display(), problem);
    }
    Error::config(path.display(), error)
}

/// Prints the help of a command, or the complete help if there is no such command.
fn help(command: &str) -> ExitCode {
    print(&match CommandSpec::named(command) {
        Ok(command) => help::text(&format!("berth {}: {}", command.name, command.about), &help::of(command)),
        Err(_) => help::text(help::ABOUT, &help::whole()),
    });
    ExitCode::SUCCESS
}

/// Parses a command line. Returns an exit code instead if help or the version was requested and printed.
fn line(command: &str, words: &[String]) -> Result<Result<CommandLine, ExitCode>> {
    line_in(command, words, Style::Strict)
}

fn line_in(command: &str, words: &[String], style: Style) -> Result<Result<CommandLine, ExitCode>> {
    Ok(match CommandLine::parse(command, words, style)? {
        Parsed::Run(line) => Ok(*line),
        Parsed::Help => Err(help(command)),
        Parsed::Version => Err(version()),
    })
}

fn version() -> ExitCode {
    print(concat!(env!("CARGO_PKG_VERSION"), "\n"));
    ExitCode::SUCCESS
}

/// Prints to stdout. A write error is ignored, because a closed pipe is no failure (`berth --help | head -1`).
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_configuration_errors() {
        for args in
            [&["berth", "frobnicate"][..], &["berth", "serve", "x"], &["berth", "token"], &["berth", "--x"]]
        {
            let error = dispatch(args.iter().map(OsString::from).collect()).unwrap_err();
            assert_eq!(error.code(), Code::Config, "{args:?}");
        }
    }
}
