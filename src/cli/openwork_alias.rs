//! Compatibility with OpenWork's orchestrator, for a berth that is started through a symbolic link named `openwrk`,
//! `openwork` or `openwork-orchestrator`. On such a command line, words may stand between flags, and unknown flags are
//! ignored.

use std::process::ExitCode;

use super::{approvals, daemon_client, host, status};
use crate::base::{Error, Result};
use crate::config::{CommandSpec, Style};

/// The names of the orchestrator's program.
pub const NAMES: [&str; 3] = ["openwrk", "openwork", "openwork-orchestrator"];

/// Runs the command that the arguments contain, or `start` if they contain none.
///
/// # Errors
/// Fails for the same reasons as the command.
pub fn run(program: &str, words: &[String]) -> Result<ExitCode> {
    let args = match super::line_in("host", words, Style::Lenient)? {
        Ok(args) => args,
        Err(code) => return Ok(code),
    };
    let positional: Vec<&str> = args.words.iter().map(String::as_str).collect();
    match positional.as_slice() {
        [] | ["start" | "serve", ..] => {
            let mut flags = words.to_vec();
            // The word of the command itself is removed. Further words are ignored, as in the orchestrator.
            if let Some(at) = positional.first().and_then(|first| flags.iter().position(|word| word == first))
            {
                flags.remove(at);
            }
            host::run(&[vec!["start".to_owned()], flags].concat(), Style::Lenient)
        }
        ["status", ..] => status::run(&client_flags("status", words)?),
        ["approvals", "list", ..] => approvals::run(&[vec!["list".to_owned()], answers(words)?].concat()),
        ["approvals", "reply", id, ..] => {
            approvals::run(&[vec!["reply".to_owned(), (*id).to_owned()], answers(words)?].concat())
        }
        ["approvals", "reply"] => {
            Err(Error::config("approvals", "approval id is required for approvals reply"))
        }
        [command @ ("daemon" | "workspace" | "workspaces" | "instance"), ..] => {
            let mut rest = words.to_vec();
            if let Some(at) = rest.iter().position(|word| word == command) {
                rest.remove(at);
            }
            daemon_client::run(command, &rest, Style::Lenient, daemon_client::state_file(program))
        }
        ["version", ..] => Ok(super::version()),
        ["help", ..] => Ok(super::help("")),
        ["approvals", ..] => Err(Error::config(
            "approvals",
            "use approvals list, or approvals reply ID with --allow or --deny",
        )),
        [other, ..] => Err(Error::config(
            other,
            "unknown command; the commands are start, serve, daemon, workspace, instance, approvals, status, version \
             and help",
        )),
    }
}

/// Returns the flags for a command whose output is the server's JSON, as in the orchestrator.
fn answers(words: &[String]) -> Result<Vec<String>> {
    let mut flags = client_flags("approvals", words)?;
    if !flags.iter().any(|flag| flag == "--json") {
        flags.push("--json".to_owned());
    }
    Ok(flags)
}

/// Returns the flags that `berth status` and `berth approvals` support, each as one word.
fn client_flags(command: &str, words: &[String]) -> Result<Vec<String>> {
    let command = CommandSpec::named(command)?;
    let mut flags = Vec::new();
    let mut rest = words.iter().peekable();
    while let Some(word) = rest.next() {
        let name = word.split('=').next().unwrap_or_default();
        let Some((setting, _)) = command.find(name) else { continue };
        let takes_value = !word.contains('=') && !setting.is_switch();
        match rest.next_if(|next| takes_value && !next.starts_with("--")) {
            Some(value) => flags.push(format!("{word}={value}")),
            None => flags.push(word.clone()),
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_clients_are_kept() {
        let words = "approvals reply id --allow --openwork-url http://h:1 --new x --host-token=t --verbose";
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        assert_eq!(
            client_flags("approvals", &words).unwrap(),
            ["--allow", "--openwork-url=http://h:1", "--host-token=t"]
        );
    }
}
