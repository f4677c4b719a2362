//! Parses a command line: its flags, the names under which they were written, and its other arguments. argh fills
//! the fields. Before argh runs, this module brings the line into argh's form by means of the table, and reports
//! mistakes with the flag as the user wrote it.
//!
//! The commands of the host and the daemon also take OpenWork's names of flags, `--no-flag`, and a value after a
//! switch. In the command lines of OpenWork's orchestrator ([`Style::Lenient`]), unknown flags are skipped and a
//! later flag wins.

use std::ops::{Deref, DerefMut};

use argh::FromArgs as _;

use super::commands::CommandSpec;
use super::setting::{CommandSet, Setting, ValueKind};
pub use super::table::FlagValues;
use super::table::{self, settings};
use crate::base::{Error, Result, unknown_fields};

/// The request that a command line makes.
pub enum Parsed {
    Run(Box<CommandLine>),
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// How mistakes in a command line are handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// An unknown flag is an error.
    Strict,
    /// Unknown flags are skipped, as in OpenWork's orchestrator.
    Lenient,
}

/// The flags and other arguments of a command line. Not `Debug`, because tokens are among them.
#[derive(Clone, Default)]
pub struct CommandLine {
    values: FlagValues,
    /// The command line as it was written, for a process that is started with the same one.
    pub raw: Vec<String>,
    /// The given flags that have no effect.
    pub skipped: Vec<String>,
    /// The names under which flags were given, if they differ from those in the table.
    written: Vec<(&'static str, String)>,
}

impl Deref for CommandLine {
    type Target = FlagValues;

    fn deref(&self) -> &FlagValues {
        &self.values
    }
}

impl DerefMut for CommandLine {
    fn deref_mut(&mut self) -> &mut FlagValues {
        &mut self.values
    }
}

impl From<FlagValues> for CommandLine {
    fn from(values: FlagValues) -> CommandLine {
        CommandLine { values, ..CommandLine::default() }
    }
}

const YES: [&str; 4] = ["true", "1", "yes", "on"];
const NO: [&str; 4] = ["false", "0", "no", "off"];

/// Returns whether the argument is not a flag. A single `-` means standard input or output.
fn is_word(arg: &str) -> bool {
    arg == "-" || !arg.starts_with('-')
}

/// A flag that was found, with its values in order.
struct Found {
    setting: &'static Setting,
    values: Vec<String>,
}

impl CommandLine {
    /// Parses the arguments after the name of a command.
    ///
    /// # Errors
    /// Fails for a flag that the command does not take, lacks its value, has too many values, or is given twice.
    pub fn parse(command: &str, args: &[String], style: Style) -> Result<Parsed> {
        let command = CommandSpec::named(command)?;
        let mut line = CommandLine { raw: args.to_vec(), ..CommandLine::default() };
        let mut found: Vec<Found> = Vec::new();
        let mut words = Vec::new();
        let mut rest = args.iter().peekable();
        while let Some(arg) = rest.next() {
            match arg.as_str() {
                "-h" | "--help" => return Ok(Parsed::Help),
                "-V" | "--version" => return Ok(Parsed::Version),
                "-v" if style == Style::Lenient => return Ok(Parsed::Version),
                word if is_word(word) && command.words => {
                    words.push(word.to_owned());
                    continue;
                }
                word if is_word(word) => {
                    let problem = format!("unexpected argument; see `berth {} --help`", command.name);
                    return Err(Error::config(word, problem));
                }
                _ => {}
            }
            let (name, attached) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (arg.as_str(), None),
            };
            let mut next_value =
                || attached.or_else(|| rest.next_if(|next| !next.starts_with("--")).map(String::as_str));
            let Some((setting, negated)) = command.find(name) else {
                if style == Style::Strict {
                    return Err(unknown(name, command));
                }
                next_value();
                line.skipped.push(name.to_owned());
                continue;
            };
            let value = match setting.kind {
                ValueKind::Ignored => {
                    next_value();
                    continue;
                }
                ValueKind::Switch if !command.like_host => match attached {
                    Some(_) => return Err(Error::config(name, "takes no value")),
                    None => "yes",
                },
                ValueKind::Switch => {
                    let word = |next: &&String| YES.contains(&next.as_str()) || NO.contains(&next.as_str());
                    let said = attached.or_else(|| rest.next_if(word).map(String::as_str));
                    if negated || said.is_some_and(|said| NO.contains(&said)) { "no" } else { "yes" }
                }
                // If the value of a flag is missing, the flag after it must not be taken for the value.
                _ => next_value().ok_or_else(|| {
                    Error::config(name, format!("needs a value: {name} VALUE or {name}=VALUE"))
                })?,
            };
            if matches!(setting.kind, ValueKind::Loopback | ValueKind::HostName) {
                setting.kind.text(name, value)?;
            }
            if setting.flag() != name {
                line.written.push((setting.flag(), name.to_owned()));
            }
            match found.iter_mut().find(|found| found.setting.flag() == setting.flag()) {
                Some(found) if setting.many => found.values.push(value.to_owned()),
                Some(_) if style == Style::Strict && !setting.is_switch() => {
                    return Err(Error::config(name, "given twice"));
                }
                Some(found) => found.values = vec![value.to_owned()],
                None => found.push(Found { setting, values: vec![value.to_owned()] }),
            }
        }
        line.fill(found, words)?;
        line.settle(style)?;
        Ok(Parsed::Run(Box::new(line)))
    }

    /// Lets argh fill the fields.
    fn fill(&mut self, found: Vec<Found>, words: Vec<String>) -> Result<()> {
        let mut normal: Vec<String> = Vec::new();
        for Found { setting, values } in found {
            for value in values {
                let field_is_bool = setting.is_switch() && !setting.tristate;
                if !field_is_bool || value == "yes" {
                    normal.push(setting.flag().to_owned());
                }
                if !field_is_bool {
                    normal.push(value);
                }
            }
        }
        // Without this, argh would take an argument such as `-` for a flag.
        normal.push("--".to_owned());
        normal.extend(words);
        let normal: Vec<&str> = normal.iter().map(String::as_str).collect();
        self.values = FlagValues::from_args(&["berth"], &normal)
            .map_err(|exit| Error::config("command line", exit.output.trim()))?;
        Ok(())
    }

    /// Adds the flags that another flag stands for.
    fn settle(&mut self, style: Style) -> Result<()> {
        if self.remote_access {
            let named = self.place(&table::HOST);
            if self.host.is_some() && style == Style::Strict {
                return Err(Error::config("--remote-access", format!("contradicts {named}")));
            }
            self.host = Some("0.0.0.0".to_owned());
            self.note(&table::HOST, "--remote-access");
        }
        // OpenCode keeps its password: otherwise any client that reaches its port could run commands.
        if self.opencode_auth.as_deref() == Some("no") {
            self.skipped.insert(0, "--no-opencode-auth".to_owned());
        }
        Ok(())
    }

    /// Returns the flag of a setting as the user wrote it.
    pub fn place(&self, setting: &Setting) -> String {
        let found = self.written.iter().rev().find(|(flag, _)| *flag == setting.flag());
        found.map_or_else(|| setting.flag().to_owned(), |(_, name)| name.clone())
    }

    /// Records that the value of a setting was given with the flag `written`.
    pub fn note(&mut self, setting: &Setting, written: &str) {
        self.written.push((setting.flag(), written.to_owned()));
    }

    /// Refuses flags that contradict each other when the host is started, and flags for its other commands.
    ///
    /// # Errors
    /// `Config` with the flag.
    pub fn check_start(&self, style: Style) -> Result<()> {
        if self.check && self.detach {
            return Err(Error::config("--detach", "contradicts --check, which stops the host"));
        }
        if style == Style::Lenient {
            return Ok(());
        }
        let takes = CommandSet::SERVE.and(CommandSet::HOST);
        let mut named = table::FLAGS.iter().filter(|setting| !setting.given(self).is_empty());
        let other = named.find(|setting| !setting.takers.meets(takes));
        if let Some(setting) = other {
            let problem = format!("has no effect here; it is for berth {}", takers(setting));
            return Err(Error::config(self.place(setting), problem));
        }
        if self.check_events && !self.check {
            return Err(Error::config("--check-events", "has no effect without --check"));
        }
        Ok(())
    }
}

/// Returns the names of the commands that take a flag.
fn takers(setting: &Setting) -> String {
    setting.takers.names().join(", ")
}

fn unknown(name: &str, command: &CommandSpec) -> Error {
    let help = format!("`berth {} --help` lists the flags", command.name);
    let elsewhere = settings().find(|setting| setting.flag() == name);
    Error::config(
        name,
        match elsewhere {
            Some(setting) => {
                format!("unknown flag for berth {}; it is for berth {}", command.name, takers(setting))
            }
            None => {
                let flags: Vec<String> =
                    command.flags().into_iter().map(|setting| setting.flag().to_owned()).collect();
                match unknown_fields::nearest(name, &flags) {
                    Some(flag) => format!("unknown flag; did you mean {flag}? {help}"),
                    None => format!("unknown flag; {help}"),
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::commands::COMMANDS;
    use super::*;

    fn parsed(command: &str, line: &str, style: Style) -> Result<CommandLine> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match CommandLine::parse(command, &words, style)? {
            Parsed::Run(line) => Ok(*line),
            _ => panic!("{line}"),
        }
    }

    #[test]
    fn both_spellings_of_a_value() {
        let line = "--port=1 --host ::1 --workspace a --workspace=b=c --token=--x --read-only \
                    --mirror noble=http://m/ --config help --cors=";
        let args = parsed("serve", line, Style::Strict).unwrap();
        assert_eq!((args.port.as_deref(), args.host.as_deref()), (Some("1"), Some("::1")));
        assert_eq!(
            (&args.workspace[..], &args.mirror[..]),
            (&["a".into(), "b=c".into()][..], &["noble=http://m/".into()][..])
        );
        assert_eq!((args.token.as_deref(), args.config.as_deref()), (Some("--x"), Some("help")));
        assert_eq!(args.cors.as_deref(), Some(""));
        assert!(args.read_only && !args.verbose);
    }

    #[test]
    fn help_and_version() {
        for (words, is_help) in
            [(&["--verbose", "-h", "--nonsense"][..], true), (&["--help"], true), (&["-V"], false)]
        {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            match CommandLine::parse("serve", &words, Style::Strict).unwrap() {
                Parsed::Help => assert!(is_help),
                Parsed::Version => assert!(!is_help),
                Parsed::Run(_) => panic!("{words:?}"),
            }
        }
    }

    #[test]
    fn mistakes_name_the_flag_as_it_was_written() {
        for (command, line, want) in [
            ("serve", "--nonsense", "--nonsense: unknown flag"),
            ("serve", "--por=1", "--por: unknown flag; did you mean --port?"),
            ("serve", "-x", "-x: unknown flag"),
            ("serve", "--", "--: unknown flag"),
            ("serve", "stray", "stray: unexpected argument"),
            ("serve", "--port", "--port: needs a value"),
            ("serve", "--port --verbose", "--port: needs a value"),
            ("serve", "--port 1 --port=2", "--port: given twice"),
            ("serve", "--verbose=1", "--verbose: takes no value"),
            ("serve", "--openwork-port=1", "--openwork-port: unknown flag"),
            ("serve", "--no-verbose", "--no-verbose: unknown flag"),
            ("bundle", "--bin --restore", "--bin: needs a value"),
            ("bundle", "--bin=a --bin=b", "--bin: given twice"),
            ("bundle", "--port", "--port: needs a value"),
            ("install", "--purge", "--purge: unknown flag for berth install; it is for berth uninstall"),
            ("status", "--allow", "--allow: unknown flag for berth status; it is for berth approvals"),
            ("host", "--new-flag", "--new-flag: unknown flag"),
            ("host", "--connect-host", "--connect-host: needs a value"),
            ("host", "--openwork-port", "--openwork-port: needs a value"),
            ("host", "--openwork-port 1 --port 2", "--port: given twice"),
            ("host", "--connect-host http://h", "--connect-host: \"http://h\""),
            ("host", "--connect-host=h:80", "--connect-host: \"h:80\""),
            ("host", "--connect-host=", "--connect-host: \"\""),
            ("host", "--opencode-host 0.0.0.0", "--opencode-host: \"0.0.0.0\""),
            ("host", "--openwork-host ::1 --remote-access", "--remote-access: contradicts --openwork-host"),
        ] {
            let error = parsed(command, line, Style::Strict).err().map(|error| error.to_string());
            assert!(error.as_deref().unwrap_or_default().starts_with(want), "{command} {line}: {error:?}");
        }
    }

    #[test]
    fn the_desktops_command_line_is_understood() {
        let line = "--workspace /w --approval auto --no-opencode-auth --opencode-router true --detach \
                    --openwork-host 0.0.0.0 --openwork-port 1234 --openwork-token t --openwork-host-token=h \
                    --run-id r --new-flag of-later --json start";
        let host = parsed("host", line, Style::Lenient).unwrap();
        assert!(host.detach && host.json && !host.check);
        assert_eq!((&host.workspace[..], &host.words[..]), (&["/w".into()][..], &["start".into()][..]));
        assert_eq!((host.host.as_deref(), host.port.as_deref()), (Some("0.0.0.0"), Some("1234")));
        assert_eq!((host.token.as_deref(), host.host_token.as_deref()), (Some("t"), Some("h")));
        assert_eq!(host.skipped, ["--no-opencode-auth", "--new-flag"]);
        assert_eq!(host.place(&table::PORT), "--openwork-port");
        assert_eq!(parsed("host", "--port 1 --port=2", Style::Lenient).unwrap().port.as_deref(), Some("2"));
    }

    #[test]
    fn a_switch_of_the_host_may_have_a_value() {
        let host =
            parsed("host", "--read-only false --check=no --no-tui --remote-access", Style::Strict).unwrap();
        assert!(!host.read_only && !host.check);
        assert_eq!((host.tui.as_deref(), host.host.as_deref()), (Some("no"), Some("0.0.0.0")));
        let host = parsed("host", "--no-log-requests --no-read-only --token=--x", Style::Strict).unwrap();
        assert!(host.no_log_requests && !host.read_only);
        assert_eq!(host.token.as_deref(), Some("--x"));
    }

    #[test]
    fn every_row_reaches_its_field_and_every_name_is_unique() {
        for command in COMMANDS {
            let mut names: Vec<&str> = Vec::new();
            for (name, setting) in command.names() {
                assert!(!names.contains(&name), "{} {name}", command.name);
                names.push(name);
                let text = if setting.is_switch() { name.to_owned() } else { format!("{name}=127.0.0.1") };
                let line = parsed(command.name, &text, Style::Strict).unwrap();
                let want = if setting.is_switch() { "yes" } else { "127.0.0.1" };
                assert_eq!(setting.given(&line), [want], "{} {name}", command.name);
            }
        }
    }

    #[test]
    fn variables_and_keys_are_unique() {
        let rows = || settings().filter(|setting| !setting.about.is_empty());
        for (at, setting) in rows().enumerate() {
            for other in
                rows().skip(at + 1).filter(|other| other.flag() != setting.flag() || other.flag().is_empty())
            {
                assert!(setting.key.is_empty() || setting.key != other.key, "{}", setting.key);
                assert!(!setting.vars.iter().any(|name| other.vars.contains(name)), "{:?}", setting.vars);
            }
            assert!(!setting.about.ends_with('.'), "{}", setting.about);
        }
    }
}
