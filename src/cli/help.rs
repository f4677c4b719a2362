//! Help texts, made from the tables of commands and settings: one text for berth as a whole, and one with examples for
//! each command. The terminal, the manual page and the reference use the same [`HelpSection`]s. Pure.

use std::fmt::Write as _;

use crate::config::setting::{Section, Setting, ValueKind};
use crate::config::table::settings;
use crate::config::{COMMANDS, CommandSpec};

/// The column at which the text of an entry begins, and the maximum line length.
const TEXT_COLUMN: usize = 29;
const WIDTH: usize = 112;

/// A section of a help text: a heading and the list below it.
pub(super) struct HelpSection {
    pub(super) title: String,
    /// The text between the heading and the list.
    pub(super) lead: String,
    /// The entries of the list: a term, such as a flag, and its text.
    pub(super) entries: Vec<(String, String)>,
}

impl HelpSection {
    fn new(title: &str, entries: impl IntoIterator<Item = (String, String)>) -> HelpSection {
        HelpSection { title: title.to_owned(), lead: String::new(), entries: entries.into_iter().collect() }
    }
}

pub(super) const ABOUT: &str = "berth gives AI agents a place to work on a Linux machine: project files, host and container workspaces, \
     commands in them, tokens and approvals, behind one HTTP server.";

const LEGEND: &str = "Every setting is taken from its flag, else its variable, else its key in server.json, else its default. In a \
     description, brackets have the default, and parentheses the variables and the key. A value follows its flag as \
     `--flag value` or `--flag=value`. `berth COMMAND --help` has the flags of a command with examples.";

const VARIABLES: &str = "Lists have commas between. Yes is 1, true, yes or on; no is 0, false, no or off. A variable set to nothing counts \
     as unset; an empty token is an error. A secret may be in a file instead: OPENWORK_TOKEN_FILE, OPENWORK_HOST_TOKEN_FILE, \
     OPENWORK_OPENCODE_PASSWORD_FILE, DASHBOARD_PASSWORD_FILE, SANDBOXED_USERS_FILE, JWT_SECRET_FILE name one, and systemd's \
     credentials (LoadCredential=) of the variables' names are read as well.";

const FILES: [(&str, &str); 3] = [
    (
        "~/.config/openwork/server.json",
        "the keys of the settings, as plain JSON; a key with a dot, such as approval.mode, is an object: {\"approval\": \
         {\"mode\": \"auto\"}}. Relative paths start from the file's folder. An unknown key is an error",
    ),
    ("DATA-DIR/credentials.json", "the tokens that berth made, readable by the owner of the folder only"),
    (
        "tokens.json",
        "scoped tokens (POST /tokens), as hashes, in the OpenWork server's format; may be edited while berth runs",
    ),
];

const EXITS: [(&str, &str); 4] = [
    ("0", "success"),
    ("1", "failure while running"),
    ("2", "wrong flag, variable or configuration file"),
    ("3", "the data folder or backup was written by a newer berth; nothing was changed"),
];

/// The commands that are not in the table of commands.
const FURTHER: [(&str, &str); 2] = [
    (
        "openwrk, openwork, openwork-orchestrator",
        "links of these names take the command lines of OpenWork's orchestrator",
    ),
    ("berth agent, attach, enclose, keeper, probe, relay, seed", "processes that berth starts for itself"),
];

/// Returns the description of a setting: its meaning, bounds, default, variables and key.
pub(super) fn described(setting: &Setting) -> String {
    let mut text = setting.about.to_owned();
    let bounds = setting.bounds();
    match setting.kind {
        // The meaning already explains each of the words.
        ValueKind::Choice(words) if words.iter().all(|word| text.contains(word)) => {}
        ValueKind::Choice(_) if !text.contains(": ") => text += &format!(": {bounds}"),
        _ if !bounds.is_empty() => text += &format!(", {bounds}"),
        _ => {}
    }
    let default = setting.default_text();
    if !default.is_empty() {
        let _ = write!(text, " [{default}]");
    }
    let flagless = setting.flag().is_empty();
    let names = setting.vars.iter().filter(|_| !flagless).copied().chain([setting.key]);
    let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
    if !names.is_empty() {
        let _ = write!(text, " ({})", names.join(", "));
    }
    text
}

fn entry(setting: &Setting) -> (String, String) {
    (setting.term(), described(setting))
}

/// Returns the settings that appear in a section of the complete help.
pub(super) fn in_section(section: Section) -> impl Iterator<Item = &'static Setting> {
    settings().filter(move |setting| setting.section == section)
}

fn usage(command: &CommandSpec) -> impl Iterator<Item = (String, String)> {
    command.usage.iter().map(|(form, about)| (format!("berth {form}"), (*about).to_owned()))
}

/// Returns the complete help of berth.
pub(super) fn whole() -> Vec<HelpSection> {
    let further = FURTHER.map(|(term, text)| (term.to_owned(), text.to_owned()));
    let mut page = vec![HelpSection::new("Commands", COMMANDS.iter().flat_map(usage).chain(further))];
    page[0].lead = "Usage: berth [COMMAND] [FLAGS]".to_owned();
    for section in Section::ALL {
        page.push(HelpSection::new(section.title(), in_section(section).map(entry)));
        if section == Section::Server {
            page.last_mut().into_iter().for_each(|part| part.lead = LEGEND.to_owned());
        }
        if section == Section::Host {
            page.last_mut().into_iter().for_each(|part| part.entries.splice(0..0, aliases()).for_each(drop));
        }
        if section == Section::Environment {
            page.last_mut().into_iter().for_each(|part| part.lead = VARIABLES.to_owned());
        }
    }
    let texts = |list: &[(&str, &str)]| -> Vec<(String, String)> {
        list.iter().map(|(term, text)| ((*term).to_owned(), (*text).to_owned())).collect()
    };
    let mut general = texts(&[("-h, --help", "print help"), ("-V, --version", "print the version")]);
    if let Some(log) = page.iter_mut().find(|part| part.title == Section::Log.title()) {
        log.entries.append(&mut general);
    }
    page.push(HelpSection::new("Files", texts(&FILES)));
    page.push(HelpSection::new("Exit status", texts(&EXITS)));
    page
}

/// Returns the alternative names of flags that OpenWork uses.
fn aliases() -> Vec<(String, String)> {
    let named = settings().filter(|setting| setting.section != Section::Hidden);
    named
        .flat_map(|setting| setting.aliases.iter().map(move |alias| (*alias, setting)))
        .map(|(alias, setting)| {
            let value = setting.shown_value();
            (format!("{alias}{value}"), format!("the same as {}", setting.flag()))
        })
        .collect()
}

/// Returns the help of a command.
pub(super) fn of(command: &CommandSpec) -> Vec<HelpSection> {
    let mut page = vec![HelpSection::new("Usage", usage(command))];
    let examples = command.examples.iter();
    let examples = examples.map(|(line, about)| (format!("berth {line}"), (*about).to_owned()));
    page.push(HelpSection::new("Examples", examples));
    let mut own: Vec<&Setting> = command.own_flags().collect();
    own.sort_by_key(|setting| Section::ALL.iter().position(|section| *section == setting.section));
    let mut sections = own.chunk_by(|one, other| one.section == other.section).peekable();
    // A command with few flags has a single list of flags.
    if command.own_flags().count() <= 12 {
        page.push(HelpSection::new("Flags", own.iter().map(|setting| entry(setting))));
    } else {
        page.extend(sections.by_ref().map(|part| {
            HelpSection::new(part[0].section.title(), part.iter().map(|setting| entry(setting)))
        }));
    }
    if command.like_host {
        page.push(HelpSection::new("OpenWork's names", aliases()));
    }
    if let Some(last) = page.last_mut() {
        last.entries.push(("-h, --help".to_owned(), "print this".to_owned()));
        last.entries.push(("-V, --version".to_owned(), "print the version".to_owned()));
    }
    if command.takes != command.own {
        let lead = "The flags of `berth serve` are taken as well: `berth serve --help`.".to_owned();
        page.push(HelpSection { title: String::new(), lead, entries: Vec::new() });
    }
    page
}

/// Formats a help text for a terminal.
pub(super) fn text(about: &str, page: &[HelpSection]) -> String {
    let mut text = wrapped(about, 0);
    for part in page.iter().filter(|part| !part.entries.is_empty() || !part.lead.is_empty()) {
        text.push('\n');
        if !part.title.is_empty() {
            let _ = writeln!(text, "{}", part.title);
        }
        if !part.lead.is_empty() {
            text += &wrapped(&part.lead, if part.title.is_empty() { 0 } else { 2 });
        }
        for (term, about) in &part.entries {
            let term = format!("  {term}");
            let lines = wrapped(about, TEXT_COLUMN);
            if term.chars().count() < TEXT_COLUMN {
                let _ = write!(text, "{term:TEXT_COLUMN$}{}", lines.trim_start());
            } else {
                let _ = write!(text, "{term}\n{lines}");
            }
        }
    }
    text
}

/// Wraps a text into lines that begin with `indent` spaces.
fn wrapped(text: &str, indent: usize) -> String {
    let (mut all, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(all, "{:indent$}{line}", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    let _ = writeln!(all, "{:indent$}{line}", "");
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_own_help_with_two_examples() {
        for command in COMMANDS {
            let help = text(command.about, &of(command));
            assert!(help.contains("Usage\n") && help.contains("Examples\n"), "{help}");
            for (example, about) in command.examples {
                assert!(help.contains(&format!("berth {example}")) && !about.is_empty(), "{help}");
            }
            for setting in command.own_flags() {
                assert!(help.contains(&format!("  {}", setting.term())), "{}: {help}", setting.term());
            }
            assert!(help.lines().all(|line| line.chars().count() <= WIDTH), "{help}");
        }
    }

    #[test]
    fn the_whole_help_has_every_setting_and_fits_a_terminal() {
        let help = text(ABOUT, &whole());
        for setting in settings().filter(|setting| setting.section != Section::Hidden) {
            assert!(help.contains(&format!("  {}", setting.term())), "{}", setting.term());
            for name in setting.vars.iter().chain([&setting.key]) {
                assert!(help.contains(name), "{name}");
            }
        }
        assert!(help.lines().all(|line| line.chars().count() <= WIDTH), "{help}");
    }
}
