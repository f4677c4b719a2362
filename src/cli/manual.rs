//! `berth help man`, `bash`, `zsh`, `fish` and `markdown`: the manual page, shell completions and the reference of
//! settings, made from the same tables as the help texts. Pure.

use std::fmt::Write as _;

use super::help::{self, ABOUT};
use crate::config::setting::{Fallback, Section, Setting, ValueKind};
use crate::config::{COMMANDS, CommandSpec};

/// Returns the manual page in the format of man(7).
pub(super) fn man() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".TH BERTH 1 \"\" \"berth {version}\" \"User Commands\"\n.SH NAME\nberth \\- workspaces for AI agents: files, \
         commands and containers over HTTP\n.SH SYNOPSIS\n.B berth\n.RI [ command ]\n.RI [ flags ]\n.SH DESCRIPTION\n{}",
        filled(ABOUT)
    );
    let section = |page: &mut String, title: &str, lead: &str, entries: &[(String, String)]| {
        let _ = write!(page, ".SH {}\n{}", escaped(&title.to_uppercase()), filled(lead));
        for (term, text) in entries {
            let _ = write!(page, ".TP\n.B {}\n{}", escaped(term), filled(text));
        }
    };
    for part in help::whole() {
        section(&mut page, &part.title, &part.lead, &part.entries);
    }
    let examples = COMMANDS.iter().flat_map(|command| command.examples);
    let examples: Vec<_> =
        examples.map(|(line, about)| (format!("berth {line}"), about.to_owned())).collect();
    section(&mut page, "Examples", "", &examples);
    page
}

/// Fills a text into lines of at most 80 bytes.
fn filled(text: &str) -> String {
    let (mut all, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        let word = escaped(word);
        if !line.is_empty() && line.len() + word.len() >= 78 {
            all += &line;
            all.push('\n');
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += &word;
    }
    if !line.is_empty() {
        all += &line;
        all.push('\n');
    }
    all
}

/// Escapes characters that roff would interpret.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// Returns the completions for bash.
pub(super) fn bash() -> String {
    let mut text = String::from(
        "# Completions for berth, made by `berth help bash`.\n_berth() {\n    local current=${COMP_WORDS[COMP_CWORD]} \
         before=${COMP_WORDS[COMP_CWORD-1]} verbs= flags= values=\n    case ${COMP_WORDS[1]} in\n",
    );
    let mut case = |pattern: &str, command: &CommandSpec, verbs: &[&str]| {
        let names = command.names();
        let with_value = names.iter().filter(|(_, setting)| !setting.is_switch()).map(|(name, _)| *name);
        let mut flags: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        flags.extend(["--help", "--version"]);
        let _ = writeln!(
            text,
            "    {pattern})\n        verbs='{}'\n        flags='{}'\n        values='{}' ;;",
            verbs.join(" "),
            flags.join(" "),
            with_value.collect::<Vec<_>>().join(" ")
        );
    };
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
    for command in COMMANDS {
        let verbs =
            if command.name == "help" { [command.verbs, &names].concat() } else { command.verbs.to_vec() };
        case(command.name, command, &verbs);
    }
    // berth without a command runs `serve`, so its flags are offered too.
    if let Some(serve) = COMMANDS.first() {
        case("*", serve, &names);
    }
    text += "    esac
    if [ $COMP_CWORD -gt 1 ] && [[ \" $values \" == *\" $before \"* ]]; then
        COMPREPLY=($(compgen -f -- \"$current\"))
    elif [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W \"$flags\" -- \"$current\"))
    elif [ $COMP_CWORD -le 2 ] && [ -n \"$verbs\" ]; then
        COMPREPLY=($(compgen -W \"$verbs\" -- \"$current\"))
    else
        COMPREPLY=($(compgen -f -- \"$current\"))
    fi
}
complete -o filenames -F _berth berth
";
    text
}

/// Replaces the characters of a text that have a meaning between single quotes of a shell or in completions.
fn plain(text: &str) -> String {
    text.chars().map(|c| if "'[]:\\".contains(c) { ' ' } else { c }).collect()
}

/// Returns the completions for zsh.
pub(super) fn zsh() -> String {
    let mut text = String::from(
        "#compdef berth\n# Completions for berth, made by `berth help zsh`.\n_berth() {\n    local -a commands\n    commands=(\n",
    );
    for command in COMMANDS {
        let _ = writeln!(text, "        '{}:{}'", command.name, plain(command.about));
    }
    text += "    )\n    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then\n        _describe command commands\n        return\n    \
             fi\n    case $words[2] in\n";
    for command in COMMANDS {
        let _ = writeln!(text, "    {})\n        _arguments \\", pattern(command));
        for (name, setting) in command.names() {
            let repeated = if setting.many { "*" } else { "" };
            let about = plain(setting.about);
            let value = setting.shown_value().trim();
            let _ = match setting.kind {
                ValueKind::Switch => writeln!(text, "            '{repeated}{name}[{about}]' \\"),
                ValueKind::Choice(words) => {
                    writeln!(
                        text,
                        "            '{repeated}{name}=[{about}]:{value}:({})' \\",
                        words.join(" ")
                    )
                }
                _ => writeln!(text, "            '{repeated}{name}=[{about}]:{}:_files' \\", plain(value)),
            };
        }
        let verbs = if command.verbs.is_empty() {
            "_files".to_owned()
        } else {
            format!("({})", command.verbs.join(" "))
        };
        let _ = writeln!(text, "            '2: :{verbs}' '*: :_files' ;;");
    }
    text + "    esac\n}\n_berth \"$@\"\n"
}

/// Returns the pattern for a command in a shell's `case`. berth without a command runs `serve`.
fn pattern(command: &CommandSpec) -> String {
    if command.name == "serve" { "serve|-*".to_owned() } else { command.name.to_owned() }
}

/// Returns the completions for fish.
pub(super) fn fish() -> String {
    let mut text = String::from("# Completions for berth, made by `berth help fish`.\n");
    for command in COMMANDS {
        let seen = format!("'__fish_seen_subcommand_from {}'", command.name);
        let _ = writeln!(
            text,
            "complete -c berth -n __fish_use_subcommand -f -a {} -d '{}'",
            command.name,
            plain(command.about)
        );
        if !command.verbs.is_empty() {
            let _ = writeln!(text, "complete -c berth -n {seen} -a '{}'", command.verbs.join(" "));
        }
        for (name, setting) in command.names() {
            let value = match setting.kind {
                ValueKind::Switch => String::new(),
                ValueKind::Choice(words) => format!(" -x -a '{}'", words.join(" ")),
                _ => " -r".to_owned(),
            };
            let about = plain(setting.about);
            let name = name.trim_start_matches('-');
            let _ = writeln!(text, "complete -c berth -n {seen} -l {name}{value} -d '{about}'");
        }
    }
    text
}

/// Returns the reference of settings.
pub(super) fn markdown() -> String {
    let mut text = String::from(
        "# Settings\n\n<!-- Made by `berth help markdown` from src/config/table.rs; UPDATE_GOLDEN=1 writes it anew. -->\n\n\
         A flag wins over its variable, that over its key in `server.json`, that over the default. A key with a dot is in an \
         object: `{\"approval\": {\"mode\": \"auto\"}}`. A variable that is set to nothing counts as unset.\n",
    );
    for section in Section::ALL {
        let _ = write!(
            text,
            "\n## {}\n\n| Flag | Variable | Key | Value | Default | Meaning |\n|--|--|--|--|--|--|\n",
            section.title()
        );
        for setting in help::in_section(section) {
            text += &row(setting);
        }
    }
    text
}

fn row(setting: &Setting) -> String {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let codes = |texts: &[&str]| texts.iter().map(|text| code(text)).collect::<Vec<_>>().join(" ");
    let flags = if setting.flag().is_empty() { String::new() } else { setting.term() };
    let default = match setting.fallback {
        Fallback::Described(text) => text.to_owned(),
        _ => code(&setting.default_text()),
    };
    let value = format!("{} {}", setting.kind.noun(), setting.bounds());
    let cells = [
        codes(&[&[flags.as_str()], setting.aliases].concat()).trim().to_owned(),
        codes(setting.vars),
        code(setting.key),
        value.trim().to_owned(),
        default,
        setting.about.to_owned(),
    ];
    let cells = cells.map(|cell| cell.replace('|', "\\|"));
    format!("| {} |\n", cells.join(" | "))
}
