//! The flags of `berth host`: those of `serve`, under OpenWork's names where it has other ones, and those of the command
//! itself. In the words of an OpenWork orchestrator (`Style::Lenient`) a flag may also be `--no-flag`, a switch may have a
//! value, and what is unknown is skipped, with a warning.

use super::args::{Parsed, ServeArgs};
use super::sandbox::{self, SandboxFlags};
use super::values;
use crate::base::{Code, Error, Result, limits};

/// How mistakes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// An unknown flag is an error.
    Strict,
    /// As OpenWork's orchestrator has it.
    Lenient,
}

/// What a command line of `berth host` asks for. Not `Debug`: tokens are among it.
#[derive(Default)]
pub struct HostArgs {
    /// For the server.
    pub serve: ServeArgs,
    /// The same as words, for a process that is started with them.
    pub words: Vec<String>,
    /// Words that are no flags.
    pub positional: Vec<String>,
    /// One JSON document on standard output.
    pub json: bool,
    /// Check and stop.
    pub check: bool,
    /// Check events as well.
    pub check_events: bool,
    /// Go on in the background.
    pub detach: bool,
    /// This is the process in the background.
    pub detached: bool,
    /// Whether there is a screen, if the command line says so.
    pub tui: Option<bool>,
    /// The host in URLs that are shown.
    pub connect_host: Option<String>,
    /// Stands in every log line.
    pub run_id: Option<String>,
    /// The log, instead of standard error.
    pub log_file: Option<String>,
    /// Scope of the token of `connect`.
    pub scope: Option<String>,
    /// Its life, in seconds.
    pub expires: Option<String>,
    /// Its document as a QR code.
    pub qr: bool,
    /// The port of the daemon.
    pub daemon_port: Option<String>,
    /// The folder in which its OpenCode is started.
    pub opencode_workdir: Option<String>,
    /// The name of the daemon's state file.
    pub state_file: Option<String>,
    /// The name of a workspace.
    pub name: Option<String>,
    /// The folder of a workspace elsewhere.
    pub directory: Option<String>,
    /// What OpenCode is to run in.
    pub sandbox: SandboxFlags,
    /// What was skipped.
    pub skipped: Vec<String>,
    /// The flags of `serve` that were given under another name.
    pub written: WrittenNames,
}

/// Flags of `serve` with the names under which they were given, for messages.
#[derive(Clone, Default)]
pub struct WrittenNames(Vec<(&'static str, String)>);

impl WrittenNames {
    /// Notes that the value of a flag of `serve` was given as `written`.
    pub fn add(&mut self, flag: &'static str, written: &str) {
        self.0.push((flag, written.to_owned()));
    }

    /// The error with the place that its user wrote.
    pub fn restore(&self, error: Error) -> Error {
        let problem = |flag: &str| error.message().strip_prefix(flag)?.strip_prefix(": ");
        let found = self.0.iter().rev().find_map(|(flag, written)| Some((written, problem(flag)?)));
        match found {
            Some((written, problem)) if error.code() == Code::Config => Error::config(written, problem),
            _ => error,
        }
    }
}

/// What a flag is.
#[derive(Clone, Copy)]
enum Is {
    /// A switch or an option of `serve`, under this name.
    Serve(&'static str),
    /// A switch of the command itself.
    Switch,
    /// Takes a value.
    Value,
    /// Means nothing here, with a value or without.
    Nothing,
}

use Is::{Nothing, Serve, Switch, Value};

/// All but those that are called as in `serve`.
const FLAGS: &[(&str, Is)] = &[
    ("--openwork-host", Serve("--host")),
    ("--openwork-port", Serve("--port")),
    ("--openwork-token", Serve("--token")),
    ("--openwork-host-token", Serve("--host-token")),
    ("--remote-access", Switch),
    ("--json", Switch),
    ("--check", Switch),
    ("--check-events", Switch),
    ("--detach", Switch),
    ("--detached", Switch),
    ("--connect-host", Value),
    ("--run-id", Value),
    ("--log-file", Value),
    ("--scope", Value),
    ("--expires", Value),
    ("--qr", Switch),
    ("--daemon-port", Value),
    ("--daemon-host", Value),
    ("--opencode-workdir", Value),
    ("--state-file", Value),
    ("--name", Value),
    ("--directory", Value),
    ("--sandbox-any-workspace", Switch),
    ("--opencode-host", Value),
    ("--opencode-auth", Switch),
    ("--tui", Switch),
    // Of the orchestrator: where it takes its programs from.
    ("--color", Nothing),
    ("--allow-external", Nothing),
    ("--openwork-server-bin", Nothing),
    ("--sidecar-source", Nothing),
    ("--sidecar-dir", Nothing),
    ("--sidecar-base-url", Nothing),
    ("--sidecar-manifest", Nothing),
    ("--opencode-source", Nothing),
    ("--opencode-router", Nothing),
    ("--owpenbot", Nothing),
];

/// The flags that [`FLAGS`] has and that people use, for the help text.
pub const HOST_FLAGS: [&str; 32] = [
    "--openwork-host",
    "--openwork-port",
    "--openwork-token",
    "--openwork-host-token",
    "--remote-access",
    "--json",
    "--check",
    "--check-events",
    "--detach",
    "--tui",
    "--connect-host",
    "--run-id",
    "--log-file",
    "--scope",
    "--expires",
    "--qr",
    "--sandbox",
    "--sandbox-image",
    "--sandbox-persist-dir",
    "--sandbox-mount",
    "--sandbox-network",
    "--sandbox-memory",
    "--sandbox-cpus",
    "--sandbox-pids",
    "--sandbox-user",
    "--sandbox-pull",
    "--sandbox-server",
    "--sandbox-any-workspace",
    "--daemon-port",
    "--opencode-workdir",
    "--name",
    "--directory",
];

/// Whether a flag of [`FLAGS`] has a value.
pub(super) fn takes_value(flag: &str) -> bool {
    let found = FLAGS.iter().find(|(name, _)| *name == flag);
    found.is_some_and(|(_, is)| matches!(is, Value | Serve(_))) || sandbox::VALUES.contains(&flag)
}

const YES: [&str; 4] = ["true", "1", "yes", "on"];
const NO: [&str; 4] = ["false", "0", "no", "off"];

impl HostArgs {
    /// Reads the words behind `berth host start`.
    ///
    /// # Errors
    /// As [`ServeArgs::parse`]; a value that OpenCode must not have.
    pub fn parse(args: &[String], style: Style) -> Result<Parsed<HostArgs>> {
        let mut host = HostArgs::default();
        let mut serve: Vec<String> = Vec::new();
        let mut rest = args.iter().peekable();
        while let Some(arg) = rest.next() {
            match arg.as_str() {
                "-h" | "--help" => return Ok(Parsed::Help),
                "-V" | "--version" => return Ok(Parsed::Version),
                "-v" if style == Style::Lenient => return Ok(Parsed::Version),
                word if !word.starts_with('-') => {
                    host.positional.push(word.to_owned());
                    continue;
                }
                _ => {}
            }
            let (name, attached) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            // `--no-log-requests` is a flag of its own.
            let known_as_it_is = kind(name).is_some();
            let (name, negated) = match name.strip_prefix("--no-").filter(|_| !known_as_it_is) {
                Some(rest) => (format!("--{rest}"), true),
                None => (name.to_owned(), false),
            };
            let next_value = |rest: &mut std::iter::Peekable<std::slice::Iter<'_, String>>| {
                attached.clone().or_else(|| rest.next_if(|next| !next.starts_with("--")).cloned())
            };
            let next_switch = |rest: &mut std::iter::Peekable<std::slice::Iter<'_, String>>| {
                let word = |next: &&String| YES.contains(&next.as_str()) || NO.contains(&next.as_str());
                let said = attached.clone().or_else(|| rest.next_if(word).cloned());
                said.is_none_or(|said| !NO.contains(&said.as_str())) && !negated
            };
            match kind(&name) {
                Some(Nothing) => drop(next_value(&mut rest)),
                Some(Switch) => {
                    let on = next_switch(&mut rest);
                    host.switch(&name, on, &mut serve);
                }
                Some(Value) => {
                    let missing =
                        || Error::config(&name, format!("needs a value: {name} VALUE or {name}=VALUE"));
                    let value = next_value(&mut rest).ok_or_else(missing)?;
                    host.value(&name, value)?;
                }
                Some(Serve(real)) => {
                    if name != real {
                        host.written.add(real, &name);
                    }
                    if ServeArgs::is_switch(real) {
                        if next_switch(&mut rest) {
                            serve.push(real.to_owned());
                        }
                        continue;
                    }
                    serve.push(real.to_owned());
                    if let Some(value) = next_value(&mut rest) {
                        // As one word: it may begin with a dash.
                        serve.pop();
                        serve.push(format!("{real}={value}"));
                    }
                }
                None if style == Style::Lenient => {
                    drop(next_value(&mut rest));
                    host.skipped.push(name);
                }
                None => return Err(Error::config(arg, "unknown flag; berth --help lists all flags")),
            }
        }
        host.words = args.to_vec();
        host.serve = match ServeArgs::parse(&serve).map_err(|error| host.written.restore(error))? {
            Parsed::Run(serve) => serve,
            Parsed::Help => return Ok(Parsed::Help),
            Parsed::Version => return Ok(Parsed::Version),
        };
        Ok(Parsed::Run(host))
    }

    /// The seconds of `--expires`.
    ///
    /// # Errors
    /// `Config` for a time that no token can have.
    pub fn lifetime(&self) -> Result<Option<u64>> {
        let seconds = |text: &String| values::number("--expires", text, 1..=limits::TOKEN_LIFETIME_SECS);
        self.expires.as_ref().map(seconds).transpose()
    }

    /// Refuses flags that contradict each other in a start, and those of other commands.
    ///
    /// # Errors
    /// `Config` with the flag.
    pub fn check_start(&self, style: Style) -> Result<()> {
        if self.check && self.detach {
            return Err(Error::config("--detach", "contradicts --check, which stops the host"));
        }
        let elsewhere = [
            ("--scope", self.scope.is_some(), "host connect"),
            ("--expires", self.expires.is_some(), "host connect"),
            ("--qr", self.qr, "host connect"),
            ("--daemon-port", self.daemon_port.is_some(), "daemon"),
            ("--opencode-workdir", self.opencode_workdir.is_some(), "daemon"),
            ("--name", self.name.is_some(), "workspace add"),
            ("--directory", self.directory.is_some(), "workspace add-remote"),
        ];
        if style == Style::Lenient {
            return Ok(());
        }
        if let Some((flag, _, command)) = elsewhere.into_iter().find(|(_, given, _)| *given) {
            return Err(Error::config(flag, format!("has no effect here; it is for berth {command}")));
        }
        if self.check_events && !self.check {
            return Err(Error::config("--check-events", "has no effect without --check"));
        }
        Ok(())
    }

    fn switch(&mut self, name: &str, on: bool, serve: &mut Vec<String>) {
        match name {
            "--json" => self.json = on,
            "--check" => self.check = on,
            "--check-events" => self.check_events = on,
            "--detach" => self.detach = on,
            "--detached" => self.detached = on,
            "--sandbox-any-workspace" => self.sandbox.any_workspace = on,
            "--qr" => self.qr = on,
            "--tui" => self.tui = Some(on),
            "--remote-access" if on => {
                self.written.add("--host", name);
                serve.push("--host=0.0.0.0".to_owned());
            }
            // Its password stays: whoever reaches its port could run commands.
            "--opencode-auth" if !on => self.skipped.push("--no-opencode-auth".to_owned()),
            _ => {}
        }
    }

    fn value(&mut self, name: &str, value: String) -> Result<()> {
        let slot = match name {
            "--connect-host" => {
                self.connect_host = Some(values::reachable_host(name, value)?);
                return Ok(());
            }
            "--run-id" => &mut self.run_id,
            "--log-file" => &mut self.log_file,
            "--scope" => &mut self.scope,
            "--expires" => &mut self.expires,
            _ if sandbox::VALUES.contains(&name) => {
                self.sandbox.add(name, value);
                return Ok(());
            }
            "--daemon-port" => &mut self.daemon_port,
            "--opencode-workdir" => {
                self.written.add("--workspace", name);
                &mut self.opencode_workdir
            }
            "--state-file" => &mut self.state_file,
            "--name" => &mut self.name,
            "--directory" => &mut self.directory,
            // The desktop says 127.0.0.1; no other value can be.
            _ if ["127.0.0.1", "localhost", "::1"].contains(&value.as_str()) => return Ok(()),
            _ => {
                let problem =
                    format!("{value:?}: it listens on loopback only; clients elsewhere use the server");
                return Err(Error::config(name, problem));
            }
        };
        *slot = Some(value);
        Ok(())
    }
}

fn kind(name: &str) -> Option<Is> {
    let own = FLAGS.iter().find(|(flag, _)| *flag == name).map(|(_, is)| *is);
    let own = own.or_else(|| sandbox::VALUES.contains(&name).then_some(Value));
    own.or_else(|| ServeArgs::flags().find(|flag| *flag == name).map(Serve))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(line: &str, style: Style) -> Result<HostArgs> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match HostArgs::parse(&words, style)? {
            Parsed::Run(host) => Ok(host),
            _ => panic!("{line}"),
        }
    }

    #[test]
    fn the_desktops_command_line_is_understood() {
        let line = "--workspace /w --approval auto --no-opencode-auth --opencode-router true --detach \
                    --openwork-host 0.0.0.0 --openwork-port 1234 --openwork-token t --openwork-host-token=h \
                    --run-id r --new-flag of-later --json";
        let host = host(line, Style::Lenient).unwrap();
        assert!(host.detach && host.json && !host.check);
        assert_eq!(host.serve.workspace, ["/w"]);
        assert_eq!(host.serve.host.as_deref(), Some("0.0.0.0"));
        assert_eq!((host.serve.port.as_deref(), host.serve.token.as_deref()), (Some("1234"), Some("t")));
        assert_eq!((host.serve.host_token.as_deref(), host.run_id.as_deref()), (Some("h"), Some("r")));
        assert_eq!(host.skipped, ["--no-opencode-auth", "--new-flag"]);
    }

    #[test]
    fn mistakes_are_errors_in_our_own_words() {
        for (line, want) in [
            ("--new-flag", "--new-flag: unknown flag"),
            ("--connect-host", "--connect-host: needs a value"),
            ("--openwork-port", "--openwork-port: needs a value"),
            ("--openwork-token", "--openwork-token: needs a value"),
            ("--connect-host http://h", "--connect-host: \"http://h\""),
            ("--connect-host=h:80", "--connect-host: \"h:80\""),
            ("--connect-host=", "--connect-host: \"\""),
            ("--opencode-host 0.0.0.0", "--opencode-host: \"0.0.0.0\""),
        ] {
            let error = host(line, Style::Strict).err().unwrap().to_string();
            assert!(error.starts_with(want), "{line}: {error}");
        }
        assert!(!host("--read-only false --check=no", Style::Strict).unwrap().serve.read_only);
        let all = host("--no-log-requests --no-read-only --token=--x", Style::Strict).unwrap();
        assert!(all.serve.no_log_requests && !all.serve.read_only);
        assert_eq!(all.serve.token.as_deref(), Some("--x"));
    }
}
