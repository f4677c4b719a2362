//! `berth help man` and `berth help bash`: the manual page, made from the help text, and completions, made from the table of
//! commands and flags. Neither is written a second time by hand. Pure.

use std::fmt::Write as _;

use crate::config::{COMMANDS, CommandWords};

/// Where the text begins in the help text's list of commands, and in its lists of flags.
const COMMAND_TEXT: usize = 34;
const FLAG_TEXT: usize = 29;
/// Lines that the manual page contains as they are: they are tables.
const VERBATIM: [&str; 3] = ["Environment", "Files", "Exit codes"];

/// The manual page in man(7), of the help text `help`.
pub(super) fn man(help: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut page = format!(
        ".TH BERTH 1 \"\" \"berth {version}\" \"User Commands\"\n.SH NAME\nberth \\- workspaces for AI agents: files, \
         commands and containers over HTTP\n.SH SYNOPSIS\n.B berth\n.RI [ command ]\n.RI [ flags ]\n.SH DESCRIPTION\n"
    );
    let mut section = "";
    let mut lines = help.lines().peekable();
    while let Some(line) = lines.next() {
        let (entry, column) = match line.strip_prefix("Usage: ") {
            Some(rest) => {
                page += ".SH COMMANDS\n";
                section = "Usage";
                (Some(format!("       {rest}")), COMMAND_TEXT)
            }
            None if section == "Usage" => {
                (line.starts_with("       ").then(|| line.to_owned()), COMMAND_TEXT)
            }
            None => (line.starts_with("  ").then(|| line.to_owned()), FLAG_TEXT),
        };
        let verbatim = VERBATIM.contains(&section);
        match entry {
            Some(entry) if verbatim => {
                let _ = writeln!(page, "{}", escaped(&entry));
            }
            Some(entry) => {
                let (term, mut text) = cut(&entry, column);
                while let Some(more) = lines.next_if(|next| next.len() > column && is_blank(next, column)) {
                    text = format!("{text} {}", more.trim());
                }
                let _ = write!(page, ".TP\n.B {}\n{}", escaped(&term), filled(text.trim()));
            }
            None if line.is_empty() => {
                if verbatim {
                    page += ".fi\n";
                }
                section = "";
            }
            // A heading stands alone above indented lines.
            None if lines.peek().is_some_and(|next| next.starts_with("  ")) && !line.ends_with('.') => {
                section = line;
                let _ = writeln!(
                    page,
                    ".SH {}",
                    escaped(&line.to_uppercase()).replace("EXIT CODES", "EXIT STATUS")
                );
                if VERBATIM.contains(&section) {
                    page += ".nf\n";
                }
            }
            None => page += &filled(line),
        }
    }
    if VERBATIM.contains(&section) {
        page += ".fi\n";
    }
    page
}

fn is_blank(line: &str, columns: usize) -> bool {
    line.bytes().take(columns).all(|byte| byte == b' ')
}

/// A line of a list: what stands before the column of its text, and the text. A long term has two spaces behind it.
fn cut(line: &str, column: usize) -> (String, String) {
    let at = match line.get(..column) {
        Some(before) if before.ends_with(' ') => column,
        _ => line.trim_start().find("  ").map_or(line.len(), |at| at + line.len() - line.trim_start().len()),
    };
    (line[..at].trim().to_owned(), line[at..].trim().to_owned())
}

/// Lines of at most 80 bytes.
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

/// What roff takes for a command or another character.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// Completions for bash.
pub(super) fn bash() -> String {
    let mut text = String::from(
        "# Completions for berth, made by `berth help bash`.\n_berth() {\n    local current=${COMP_WORDS[COMP_CWORD]} \
         before=${COMP_WORDS[COMP_CWORD-1]} verbs= flags= values=\n    case ${COMP_WORDS[1]} in\n",
    );
    let mut case = |pattern: &str, command: &CommandWords, verbs: &[&str]| {
        let _ = writeln!(
            text,
            "    {pattern})\n        verbs='{}'\n        flags='{}'\n        values='{}' ;;",
            verbs.join(" "),
            command.flags().join(" "),
            command.value_flags().join(" ")
        );
    };
    for command in COMMANDS {
        case(command.name, command, command.verbs);
    }
    // Without a command it serves.
    let names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
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
