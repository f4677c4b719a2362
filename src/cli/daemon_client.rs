//! `berth daemon start|status|stop`, `berth workspace …` and `berth instance …`: clients of the daemon. They start the
//! daemon if it is not running, and print its responses as JSON.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::{self, ApiClient};
use super::{daemon, daemon_state, host_detach};
use crate::base::{Code, Error, Result};
use crate::config::{CommandLine, Style};
use crate::opencode::rules;
use crate::store::file;

const NOT_RUNNING: &str = "orchestrator daemon is not running";
const FILE_BYTES: u64 = 8 << 20;

/// Runs `daemon`, `workspace` or `instance` with its arguments. `state_file` is the default name of the state file.
///
/// # Errors
/// Fails for an invalid command line or setting (exit code 2), or if the daemon reports an error. With `--json` the
/// error is printed as JSON instead.
pub(super) fn run(command: &str, words: &[String], style: Style, state_file: &str) -> Result<ExitCode> {
    let args = match super::line_in(command, words, style)? {
        Ok(args) => args,
        Err(code) => return Ok(code),
    };
    let json = args.json;
    match perform(command, args, words, state_file) {
        Err(error) if json && error.code() != Code::Config => {
            super::print(&format!("{:#}\n", json!({ "ok": false, "error": error.message() })));
            Ok(super::exit_code(&error))
        }
        ended => ended,
    }
}

fn perform(command: &str, args: CommandLine, words: &[String], state_file: &str) -> Result<ExitCode> {
    let positional = args.words.clone();
    let positional: Vec<&str> = positional.iter().map(String::as_str).collect();
    let state_file = args.state_file.as_deref().unwrap_or(state_file).to_owned();
    let state_file = state_file.as_str();
    let data_dir = super::host_state::data_dir(words)?;
    let state = data_dir.join(state_file);
    let answer = match (command, positional.as_slice()) {
        ("daemon", [] | ["run"]) => return daemon::run(args, state_file),
        ("daemon", ["status"]) => status(&state, &args)?,
        ("daemon", ["start"]) => {
            if client_of(&state, &args).is_err() {
                start(&args, &data_dir, state_file)?;
            }
            status(&state, &args)?
        }
        ("daemon", ["stop"]) => {
            client_of(&state, &args)?.call("POST", "/shutdown", Some(&json!({})))?;
            json!({ "ok": true })
        }
        ("workspace" | "workspaces", words) => {
            let client = client_or_start(&state, &args, &data_dir, state_file)?;
            workspace(&client, words, &args)?
        }
        ("instance", ["dispose", id]) => {
            let client = client_or_start(&state, &args, &data_dir, state_file)?;
            client.call("POST", &format!("/instances/{}/dispose", segment(id)), Some(&json!({})))?
        }
        ("instance", _) => return Err(Error::config("instance", "say `berth instance dispose ID`")),
        _ => return Err(Error::config(command, "say berth daemon run, start, stop or status")),
    };
    super::print(&format!("{answer:#}\n"));
    Ok(ExitCode::SUCCESS)
}

/// Encodes an id, name or path as one segment of a URL path.
fn segment(word: &str) -> String {
    rules::query_value(word).replace('/', "%2F")
}

fn workspace(client: &ApiClient, words: &[&str], args: &CommandLine) -> Result<Value> {
    let of = |id: &str, rest: &str| format!("/workspaces/{}{rest}", segment(id));
    match words {
        ["list"] => client.call("GET", "/workspaces", None),
        ["add", path] => {
            let current_dir =
                std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
            let path = current_dir.join(path).components().collect::<PathBuf>();
            let body = json!({ "path": path, "name": args.name });
            client.call("POST", "/workspaces", Some(&body))
        }
        ["add-remote", url] => {
            let body = json!({ "baseUrl": url, "directory": args.directory, "name": args.name });
            client.call("POST", "/workspaces/remote", Some(&body))
        }
        ["switch", id] => client.call("POST", &of(id, "/activate"), Some(&json!({}))),
        ["info", id] => client.call("GET", &of(id, ""), None),
        ["path", id] => client.call("GET", &of(id, "/path"), None),
        _ => Err(Error::config(
            "workspace",
            "say berth workspace add PATH, add-remote URL, list, switch ID, info ID or path ID",
        )),
    }
}

fn status(state: &Path, args: &CommandLine) -> Result<Value> {
    let client = client_of(state, args)?;
    let health = client.call("GET", "/health", None)?;
    let mut answer = json!({ "ok": true, "baseUrl": client.plan.url });
    if let (Value::Object(answer), Value::Object(health)) = (&mut answer, health) {
        answer.extend(health);
    }
    Ok(answer)
}

/// Returns a client of the daemon that the state file names, if that daemon responds.
fn client_of(state: &Path, args: &CommandLine) -> Result<ApiClient> {
    let not_running = || Error::internal(NOT_RUNNING);
    let bytes = file::read_optional(state, FILE_BYTES)?.ok_or_else(not_running)?;
    let kept: Value = serde_json::from_slice(&bytes).map_err(|_| not_running())?;
    let url = kept["daemon"]["baseUrl"].as_str().ok_or_else(not_running)?;
    // The port may belong to another program by now, so the client sends no token.
    let client = client::without_token(url, args)?;
    let pid = &kept["daemon"]["pid"];
    match client.call("GET", "/health", None) {
        Ok(health) if health["ok"] == true && health["daemon"]["pid"] == *pid => Ok(client),
        _ => Err(not_running()),
    }
}

fn client_or_start(state: &Path, args: &CommandLine, data_dir: &Path, state_file: &str) -> Result<ApiClient> {
    client_of(state, args).or_else(|_| {
        start(args, data_dir, state_file)?;
        client_of(state, args)
    })
}

/// Starts the daemon in the background.
fn start(args: &CommandLine, data_dir: &Path, state_file: &str) -> Result<()> {
    let current_dir: PathBuf =
        std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    host_detach::daemon(args, data_dir, &current_dir, state_file)
}

/// Returns the default name of the state file for a program of this name.
pub(super) fn state_file(program: &str) -> &'static str {
    if program == "openwrk" { daemon_state::OLD_FILE } else { daemon_state::FILE }
}
