//! Raw flags: which exist, which take a value. What a value means is `resolve`'s business.
//! argh fills the structs; `expand` in front of it knows `--flag=value`, `-h` and `-V`, and says what is wrong
//! in our own words with the flag's name first.

use argh::FromArgs;

use crate::base::{Error, Result};

/// What a command line asks for.
pub enum Parsed<T> {
    /// Do it.
    Run(T),
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// The flags of `berth serve`. Not `Debug`: tokens and passwords are among them.
#[derive(Default, FromArgs)]
#[argh(description = "Serves the workspaces.")]
pub struct ServeArgs {
    /// print more at the start and while running
    #[argh(switch)]
    pub verbose: bool,
    /// configuration file
    #[argh(option)]
    pub config: Option<String>,
    /// address to listen on
    #[argh(option)]
    pub host: Option<String>,
    /// port to listen on
    #[argh(option)]
    pub port: Option<String>,
    /// further places to listen on
    #[argh(option)]
    pub listen: Vec<String>,
    /// names by which clients may call on loopback
    #[argh(option)]
    pub allowed_host: Vec<String>,
    /// connections at once
    #[argh(option)]
    pub max_connections: Option<String>,
    /// seconds that requests may go on after a stop signal
    #[argh(option)]
    pub drain_timeout: Option<String>,
    /// client token
    #[argh(option)]
    pub token: Option<String>,
    /// host token
    #[argh(option)]
    pub host_token: Option<String>,
    /// manual or auto
    #[argh(option)]
    pub approval: Option<String>,
    /// milliseconds that a gated write waits
    #[argh(option)]
    pub approval_timeout: Option<String>,
    /// the OpenCode to proxy to
    #[argh(option)]
    pub opencode_base_url: Option<String>,
    /// folder of that OpenCode
    #[argh(option)]
    pub opencode_directory: Option<String>,
    /// user of that OpenCode
    #[argh(option)]
    pub opencode_username: Option<String>,
    /// password of that OpenCode
    #[argh(option)]
    pub opencode_password: Option<String>,
    /// requests that wait for OpenCode at once
    #[argh(option)]
    pub max_proxied: Option<String>,
    /// seconds that OpenCode may take for the head of an answer
    #[argh(option)]
    pub opencode_timeout: Option<String>,
    /// who may answer OpenCode's permission requests
    #[argh(option)]
    pub permission_replies: Option<String>,
    /// who may use OpenCode's terminals and shell commands on a host workspace in automatic mode
    #[argh(option)]
    pub opencode_shell: Option<String>,
    /// run OpenCode as a child
    #[argh(switch)]
    pub manage_opencode: bool,
    /// its program
    #[argh(option)]
    pub opencode_bin: Option<String>,
    /// where it listens
    #[argh(option)]
    pub opencode_port: Option<String>,
    /// variables that it gets
    #[argh(option)]
    pub opencode_env: Vec<String>,
    /// bytes of memory that it may use
    #[argh(option)]
    pub opencode_memory: Option<String>,
    /// when it is started again
    #[argh(option)]
    pub opencode_restart: Option<String>,
    /// what it logs
    #[argh(option)]
    pub opencode_log_level: Option<String>,
    /// seconds that its start may take
    #[argh(option)]
    pub start_timeout: Option<String>,
    /// workspace folders
    #[argh(option)]
    pub workspace: Vec<String>,
    /// origins that browsers may call from
    #[argh(option)]
    pub cors: Option<String>,
    /// refuse every write
    #[argh(switch)]
    pub read_only: bool,
    /// pretty or json
    #[argh(option)]
    pub log_format: Option<String>,
    /// log one line for each request
    #[argh(switch)]
    pub log_requests: bool,
    /// do not
    #[argh(switch)]
    pub no_log_requests: bool,
    /// where all state lies
    #[argh(option)]
    pub data_dir: Option<String>,
    /// folders in which the API may make host workspaces
    #[argh(option)]
    pub authorized_root: Vec<String>,
    /// package mirrors, NAME=URL
    #[argh(option)]
    pub mirror: Vec<String>,
    /// keyrings, NAME=FILE
    #[argh(option)]
    pub keyring: Vec<String>,
    /// commands that may run at once
    #[argh(option)]
    pub max_runs: Option<String>,
    /// followers and waits at once
    #[argh(option)]
    pub max_streams: Option<String>,
    /// bytes kept of each stream of a run
    #[argh(option)]
    pub run_output_limit: Option<String>,
    /// bytes that all runs keep together
    #[argh(option)]
    pub runs_disk_limit: Option<String>,
    /// bytes kept of each of stdout and stderr
    #[argh(option)]
    pub output_limit: Option<String>,
    /// seconds that an init script may take
    #[argh(option)]
    pub init_timeout: Option<String>,
    /// seconds that the making of an image may take
    #[argh(option)]
    pub image_timeout: Option<String>,
    /// folder of templates, skills, tools and scripts
    #[argh(option)]
    pub library: Option<String>,
    /// seconds after which an idle container is stopped
    #[argh(option)]
    pub idle_timeout: Option<String>,
    /// addresses of private networks
    #[argh(option)]
    pub private_range: Option<String>,
    /// name servers of private networks
    #[argh(option)]
    pub private_dns: Vec<String>,
    /// auto, overlay, reflink or copy
    #[argh(option)]
    pub root_backend: Option<String>,
    /// threads that answer requests
    #[argh(option)]
    pub http_threads: Option<String>,
    /// install what container workspaces need
    #[argh(switch)]
    pub setup: bool,
    /// do not ask
    #[argh(switch)]
    pub yes: bool,
}

/// The flags of `berth token show`.
#[derive(Default, FromArgs)]
#[argh(description = "Shows the tokens.")]
pub struct TokenArgs {
    /// configuration file
    #[argh(option)]
    pub config: Option<String>,
    /// where all state lies
    #[argh(option)]
    pub data_dir: Option<String>,
}

/// The flags of `berth approvals` and `berth status`, which speak to a running server.
#[derive(Default, FromArgs)]
#[argh(description = "Speaks to a server.")]
pub struct ClientArgs {
    /// configuration file
    #[argh(option)]
    pub config: Option<String>,
    /// where all state lies
    #[argh(option)]
    pub data_dir: Option<String>,
    /// the server
    #[argh(option)]
    pub openwork_url: Option<String>,
    /// its host token
    #[argh(option)]
    pub host_token: Option<String>,
    /// an OpenCode to look at as well
    #[argh(option)]
    pub opencode_url: Option<String>,
    /// user of that OpenCode
    #[argh(option)]
    pub opencode_username: Option<String>,
    /// password of that OpenCode
    #[argh(option)]
    pub opencode_password: Option<String>,
    /// say it as JSON
    #[argh(switch)]
    pub json: bool,
    /// let it happen
    #[argh(switch)]
    pub allow: bool,
    /// do not
    #[argh(switch)]
    pub deny: bool,
}

/// How often a flag may stand on a command line, and whether a value follows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Switch,
    Once,
    Many,
}

pub(super) use Kind::{Many, Once, Switch};

/// The flags of `serve`; a test compares this list with the help text.
pub(super) const SERVE: &[(&str, Kind)] = &[
    ("--verbose", Switch),
    ("--config", Once),
    ("--host", Once),
    ("--port", Once),
    ("--listen", Many),
    ("--allowed-host", Many),
    ("--max-connections", Once),
    ("--drain-timeout", Once),
    ("--token", Once),
    ("--host-token", Once),
    ("--approval", Once),
    ("--approval-timeout", Once),
    ("--opencode-base-url", Once),
    ("--opencode-directory", Once),
    ("--opencode-username", Once),
    ("--opencode-password", Once),
    ("--max-proxied", Once),
    ("--opencode-timeout", Once),
    ("--permission-replies", Once),
    ("--opencode-shell", Once),
    ("--manage-opencode", Switch),
    ("--opencode-bin", Once),
    ("--opencode-port", Once),
    ("--opencode-env", Many),
    ("--opencode-memory", Once),
    ("--opencode-restart", Once),
    ("--opencode-log-level", Once),
    ("--start-timeout", Once),
    ("--workspace", Many),
    ("--cors", Once),
    ("--read-only", Switch),
    ("--log-format", Once),
    ("--log-requests", Switch),
    ("--no-log-requests", Switch),
    ("--data-dir", Once),
    ("--authorized-root", Many),
    ("--mirror", Many),
    ("--keyring", Many),
    ("--max-runs", Once),
    ("--max-streams", Once),
    ("--run-output-limit", Once),
    ("--runs-disk-limit", Once),
    ("--output-limit", Once),
    ("--init-timeout", Once),
    ("--image-timeout", Once),
    ("--library", Once),
    ("--idle-timeout", Once),
    ("--private-range", Once),
    ("--private-dns", Many),
    ("--root-backend", Once),
    ("--http-threads", Once),
    ("--setup", Switch),
    ("--yes", Switch),
];

pub(super) const CLIENT: &[(&str, Kind)] = &[
    ("--config", Once),
    ("--data-dir", Once),
    ("--openwork-url", Once),
    ("--host-token", Once),
    ("--opencode-url", Once),
    ("--opencode-username", Once),
    ("--opencode-password", Once),
    ("--json", Switch),
    ("--allow", Switch),
    ("--deny", Switch),
];

pub(super) const TOKEN: &[(&str, Kind)] = &[("--config", Once), ("--data-dir", Once)];

impl ServeArgs {
    /// Reads the arguments after `serve`.
    ///
    /// # Errors
    /// A flag that does not exist, lacks its value, has one too many, or stands there twice.
    pub fn parse(args: &[String]) -> Result<Parsed<ServeArgs>> {
        parse(args, SERVE)
    }

    /// Whether no value follows it.
    pub(super) fn is_switch(flag: &str) -> bool {
        SERVE.iter().any(|(name, kind)| *name == flag && *kind == Switch)
    }

    /// The names of all flags.
    pub fn flags() -> impl Iterator<Item = &'static str> {
        SERVE.iter().map(|(name, _)| *name)
    }
}

impl ClientArgs {
    /// Reads the arguments after `status` or `approvals list`.
    ///
    /// # Errors
    /// As [`ServeArgs::parse`].
    pub fn parse(args: &[String]) -> Result<Parsed<ClientArgs>> {
        parse(args, CLIENT)
    }

    /// Whether no value follows it.
    pub fn is_switch(flag: &str) -> bool {
        CLIENT.iter().any(|(name, kind)| *name == flag && *kind == Switch)
    }

    /// The names of all flags.
    pub fn flags() -> impl Iterator<Item = &'static str> {
        CLIENT.iter().map(|(name, _)| *name)
    }
}

impl TokenArgs {
    /// Reads the arguments after `token show`.
    ///
    /// # Errors
    /// As [`ServeArgs::parse`].
    pub fn parse(args: &[String]) -> Result<Parsed<TokenArgs>> {
        parse(args, TOKEN)
    }
}

/// Reads flags alone.
pub(super) fn parse<T: FromArgs>(args: &[String], flags: &[(&str, Kind)]) -> Result<Parsed<T>> {
    parse_expanded(args, flags, false)
}

/// Reads flags and words that are no flags.
pub(super) fn parse_words<T: FromArgs>(args: &[String], flags: &[(&str, Kind)]) -> Result<Parsed<T>> {
    parse_expanded(args, flags, true)
}

fn parse_expanded<T: FromArgs>(args: &[String], flags: &[(&str, Kind)], words: bool) -> Result<Parsed<T>> {
    let expanded = match expand(args, flags, words)? {
        Parsed::Run(expanded) => expanded,
        Parsed::Help => return Ok(Parsed::Help),
        Parsed::Version => return Ok(Parsed::Version),
    };
    let expanded: Vec<&str> = expanded.iter().map(String::as_str).collect();
    T::from_args(&["berth"], &expanded)
        .map(Parsed::Run)
        .map_err(|exit| Error::config("command line", exit.output.trim()))
}

/// Separates what concerns `own`, and all words that are no flags, from flags of `other`. Whether a flag exists is found
/// out when it is parsed.
pub(super) fn split(
    args: &[String],
    own: &[(&str, Kind)],
    other: &[(&str, Kind)],
) -> (Vec<String>, Vec<String>) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut rest = args.iter().peekable();
    while let Some(word) = rest.next() {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        let kind =
            |flags: &[(&str, Kind)]| flags.iter().find(|(flag, _)| *flag == name).map(|(_, kind)| *kind);
        let (target, kind) = match (kind(own), kind(other)) {
            (Some(kind), _) => (&mut ours, kind),
            (None, Some(kind)) => (&mut theirs, kind),
            (None, None) if is_word(word) => (&mut ours, Switch),
            (None, None) => (&mut theirs, Switch),
        };
        target.push(word.clone());
        if kind != Switch && !word.contains('=') {
            target.extend(rest.next_if(|next| !next.starts_with("--")).cloned());
        }
    }
    (ours, theirs)
}

/// Whether it is no flag; `-` alone is standard input or output.
fn is_word(arg: &str) -> bool {
    arg == "-" || !arg.starts_with('-')
}

/// Checks the flags and splits `--flag=value`. `words`: others than flags may be among them, and come last.
fn expand(args: &[String], flags: &[(&str, Kind)], words: bool) -> Result<Parsed<Vec<String>>> {
    let mut expanded: Vec<String> = Vec::new();
    let mut plain: Vec<String> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    let mut rest = args.iter().peekable();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "-h" | "--help" => return Ok(Parsed::Help),
            "-V" | "--version" => return Ok(Parsed::Version),
            other if is_word(other) && words => {
                plain.push(other.to_owned());
                continue;
            }
            other if is_word(other) => {
                return Err(Error::config(other, "unexpected argument; berth --help shows what there is"));
            }
            _ => {}
        }
        let (name, attached) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (arg.as_str(), None),
        };
        let Some((_, kind)) = flags.iter().find(|(flag, _)| *flag == name) else {
            return Err(Error::config(name, "unknown flag; berth --help lists all flags"));
        };
        if *kind == Once && seen.contains(&name) {
            return Err(Error::config(name, "given twice"));
        }
        seen.push(name);
        expanded.push(name.to_owned());
        let value = match (kind, attached) {
            (Switch, Some(_)) => return Err(Error::config(name, "takes no value")),
            (Switch, None) => continue,
            (Once | Many, Some(value)) => value.to_owned(),
            // A forgotten value must not swallow the flag behind it.
            (Once | Many, None) => match rest.next_if(|next| !next.starts_with("--")) {
                Some(value) => value.clone(),
                None => {
                    return Err(Error::config(name, format!("needs a value: {name} VALUE or {name}=VALUE")));
                }
            },
        };
        expanded.push(value);
    }
    if !plain.is_empty() {
        // For argh a word like `-` is a flag otherwise.
        expanded.push("--".to_owned());
        expanded.append(&mut plain);
    }
    Ok(Parsed::Run(expanded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(line: &[&str]) -> Result<Parsed<ServeArgs>> {
        ServeArgs::parse(&line.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn both_spellings_of_a_value() {
        let Ok(Parsed::Run(args)) = serve(&[
            "--port=1",
            "--host",
            "::1",
            "--workspace",
            "a",
            "--workspace=b=c",
            "--token=--x",
            "--read-only",
            "--mirror",
            "noble=http://m/",
            "--config",
            "help",
            "--cors=",
        ]) else {
            panic!("not parsed")
        };
        assert_eq!(args.port.as_deref(), Some("1"));
        assert_eq!(args.host.as_deref(), Some("::1"));
        assert_eq!(args.workspace, ["a", "b=c"]);
        assert_eq!(args.token.as_deref(), Some("--x"));
        assert_eq!(args.mirror, ["noble=http://m/"]);
        assert_eq!(args.config.as_deref(), Some("help"));
        assert_eq!(args.cors.as_deref(), Some(""));
        assert!(args.read_only && !args.verbose);
    }

    #[test]
    fn help_and_version() {
        for help in ["-h", "--help"] {
            assert!(matches!(serve(&["--verbose", help, "--nonsense"]), Ok(Parsed::Help)));
        }
        for version in ["-V", "--version"] {
            assert!(matches!(serve(&[version]), Ok(Parsed::Version)));
        }
    }

    #[test]
    fn mistakes_name_the_flag() {
        for (line, want) in [
            (&["--nonsense"][..], "--nonsense: unknown flag"),
            (&["--por=1"], "--por: unknown flag"),
            (&["-x"], "-x: unknown flag"),
            (&["--"], "--: unknown flag"),
            (&["stray"], "stray: unexpected argument"),
            (&["--port"], "--port: needs a value"),
            (&["--port", "--verbose"], "--port: needs a value"),
            (&["--port", "1", "--port=2"], "--port: given twice"),
            (&["--verbose=1"], "--verbose: takes no value"),
        ] {
            let error = serve(line).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.starts_with(want), "{line:?}: {error}");
        }
    }

    #[test]
    fn every_listed_flag_reaches_argh() {
        for (flag, kind) in SERVE {
            let line = if *kind == Switch { vec![*flag] } else { vec![*flag, "x"] };
            assert!(matches!(serve(&line), Ok(Parsed::Run(_))), "{flag}");
        }
    }
}
