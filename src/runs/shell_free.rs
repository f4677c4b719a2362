//! Commands that need no shell. Starting bash takes longer than most commands, and for a single program call bash
//! only looks up the program and executes it (execve without fork). This module finds the program of commands that
//! provably are such calls. The shell is used in case of doubt, and if the program is not found or cannot be
//! executed, so that message and status are the shell's own.

use crate::base::limits;

/// Maximum product of a command's length and the number of directories in its PATH, because each directory gets
/// its own command line. The limit allows the longest command with eight directories, two more than in the usual
/// PATH.
const SEARCH_BYTES: usize = 8 * limits::COMMAND_TOTAL_BYTES;

/// Builtins and keywords of bash 5 that have no program of the same name, or whose program behaves differently.
/// `true` and `false` are omitted: POSIX gives their programs the same behaviour.
const SHELL_WORDS: [&str; 78] = [
    ".",
    ":",
    "[",
    "[[",
    "alias",
    "bg",
    "bind",
    "break",
    "builtin",
    "caller",
    "case",
    "cd",
    "command",
    "compgen",
    "complete",
    "compopt",
    "continue",
    "coproc",
    "declare",
    "dirs",
    "disown",
    "do",
    "done",
    "echo",
    "elif",
    "else",
    "enable",
    "esac",
    "eval",
    "exec",
    "exit",
    "export",
    "fc",
    "fg",
    "fi",
    "for",
    "function",
    "getopts",
    "hash",
    "help",
    "history",
    "if",
    "in",
    "jobs",
    "kill",
    "let",
    "local",
    "logout",
    "mapfile",
    "popd",
    "printf",
    "pushd",
    "pwd",
    "read",
    "readarray",
    "readonly",
    "return",
    "select",
    "set",
    "shift",
    "shopt",
    "source",
    "suspend",
    "test",
    "then",
    "time",
    "times",
    "trap",
    "type",
    "typeset",
    "ulimit",
    "umask",
    "unalias",
    "unset",
    "until",
    "wait",
    "while",
    "{",
];

/// Returns whether a character has no special meaning to a shell at any position of a word. `=`, `~` and all
/// non-ASCII characters, which depend on the locale, are deliberately excluded.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-./,:+@%".contains(c)
}

/// Returns whether a command line of this length may be built for each directory of `path`.
pub fn is_searchable(length: usize, path: &str) -> bool {
    let folders = path.bytes().filter(|byte| *byte == b':').count() + 1;
    folders.saturating_mul(length) + path.len() <= SEARCH_BYTES
}

/// Returns the command lines to try for `command` before a shell, one per directory of `path`; none if the command
/// needs a shell.
pub fn command_lines(command: &str, path: &str) -> Vec<Vec<String>> {
    let words: Vec<&str> = command.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
    let Some((program, args)) = words.split_first() else { return Vec::new() };
    if SHELL_WORDS.contains(program) || !words.iter().all(|word| word.chars().all(is_plain)) {
        return Vec::new();
    }
    let line =
        |program: String| [program].into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect();
    if program.contains('/') {
        // A relative program path is relative to the working directory, for the kernel as for the shell.
        return vec![line((*program).to_owned())];
    }
    // An empty or relative directory in PATH depends on the working directory; this is rare, so use the shell.
    if !path.split(':').all(|folder| folder.starts_with('/')) || !is_searchable(command.len(), path) {
        return Vec::new();
    }
    path.split(':').map(|folder| line(format!("{folder}/{program}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_provably_plain_commands_skip_the_shell() {
        let lines = command_lines("  ls -la  src/main.rs ", "/a:/b");
        assert_eq!(lines, [["/a/ls", "-la", "src/main.rs"], ["/b/ls", "-la", "src/main.rs"]]);
        assert_eq!(command_lines("./run x", "/a"), [["./run", "x"]]);
        assert_eq!(command_lines("true", "/a"), [["/a/true"]]);
        for shell in [
            "", "echo hi", "ls *", "ls $HOME", "ls; ls", "A=1 ls", "ls ~", "ls \"x\"", "ls 'x'", "ls | x",
            "ls > f", "cd x", "ls\nls", "ls #x", "ls {a,b}", "!ls", "ls \\x", "ls &", "(ls)", "`ls`", "ls é",
            "time ls", "ls a=b", "ls ?", "ls [a]", "ls ^x", "ls\0",
        ] {
            assert!(command_lines(shell, "/a").is_empty(), "{shell:?}");
        }
        assert!(command_lines("ls", "").is_empty());
        assert!(command_lines("ls", "/a::/b").is_empty());
        assert!(command_lines("ls", "bin:/b").is_empty());
        let long = format!("ls {}", "x".repeat(100_000));
        assert_eq!(command_lines(&long, "/a:/b").len(), 2);
        assert!(command_lines(&long, &"/a:".repeat(10_000)).is_empty(), "a gigabyte of command lines");
    }
}
