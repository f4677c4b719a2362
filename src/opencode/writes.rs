//! Classifies requests that could make OpenCode run a program. The open list contains the writes that start no program
//! of the caller's choice in either tested version (1.1.53 and 1.18.34); any other write counts as one that could
//! start such a program. Pure.
//!
//! **Invariant:** every spelling that OpenCode routes to a restricted handler is recognised. 1.1.53 decodes a path
//! once and resolves dot segments; 1.18.34 also ignores case, repeated slashes and a trailing slash, and ends the
//! path at a `;`. So open routes are compared exactly, and restricted words are compared loosely.

use super::rules;

/// The kind of program that a request could make OpenCode run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramRisk {
    /// The request itself starts no program. If [`ForwardedWrite::known`] is false, the route is unknown to this
    /// version of berth.
    None,
    /// A command line or terminal input that the caller chooses.
    Shell,
    /// The shell parts of a command's template, which may contain the caller's arguments.
    Command,
    /// Like `Command`, for the command `init`.
    Init,
    /// A start command, if the request's body contains one.
    Start,
}

/// The classification of a request for approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardedWrite {
    pub risk: ProgramRisk,
    /// Whether the request is a read, or a write on the open list.
    pub known: bool,
    /// Whether the body can set a session's permissions and directory, or attach files.
    pub about_session: bool,
}

/// Writes that start no program by themselves. In a path, `:` matches any one segment. Prompts are included, because
/// OpenCode itself asks before a model runs a program. Replies to permission requests are included, because a separate
/// setting controls them.
const OPEN: &[(&str, &str)] = &[
    ("POST", "log"),
    ("POST", "session"),
    ("PATCH", "session/:"),
    ("DELETE", "session/:"),
    ("POST", "session/:/abort"),
    ("POST", "session/:/fork"),
    ("POST", "session/:/message"),
    ("DELETE", "session/:/message/:"),
    ("PATCH", "session/:/message/:/part/:"),
    ("DELETE", "session/:/message/:/part/:"),
    ("POST", "session/:/permissions/:"),
    ("POST", "session/:/prompt_async"),
    ("POST", "session/:/revert"),
    ("POST", "session/:/unrevert"),
    ("POST", "session/:/share"),
    ("DELETE", "session/:/share"),
    ("POST", "session/:/summarize"),
    ("POST", "permission/:/reply"),
    ("POST", "question/:/reply"),
    ("POST", "question/:/reject"),
    ("POST", "experimental/session/:/background"),
    ("POST", "api/session"),
    ("POST", "api/session/:/agent"),
    ("POST", "api/session/:/compact"),
    ("POST", "api/session/:/interrupt"),
    ("POST", "api/session/:/model"),
    ("POST", "api/session/:/permission/:/reply"),
    ("POST", "api/session/:/prompt"),
    ("POST", "api/session/:/question/:/reply"),
    ("POST", "api/session/:/question/:/reject"),
    ("POST", "api/session/:/revert/clear"),
    ("POST", "api/session/:/revert/commit"),
    ("POST", "api/session/:/revert/stage"),
    ("POST", "api/session/:/wait"),
];

/// Classifies a request by its method and its path without the query.
pub fn classify(method: &str, path: &str, is_upgrade: bool) -> ForwardedWrite {
    let quiet = ForwardedWrite { risk: ProgramRisk::None, known: true, about_session: false };
    // The only WebSockets of OpenCode are terminals.
    if is_upgrade {
        return ForwardedWrite { risk: ProgramRisk::Shell, known: false, about_session: false };
    }
    if matches!(method, "GET" | "HEAD") {
        return quiet;
    }
    let words = rules::words(path);
    let any = |known: &[&str]| words.iter().any(|word| known.contains(&word.as_str()));
    let exact = |pattern: &str| is_exactly(path, pattern);
    let risk = if exact("session/:/command") {
        ProgramRisk::Command
    } else if exact("session/:/init") {
        ProgramRisk::Init
    } else if any(&["shell", "pty", "tui", "command"]) || (any(&["init"]) && any(&["session"])) {
        // A request to OpenCode's terminal interface can also run commands, in the terminal of the person who has it
        // open.
        ProgramRisk::Shell
    } else if any(&["worktree", "workspace", "project"]) {
        ProgramRisk::Start
    } else {
        ProgramRisk::None
    };
    let known = OPEN.iter().any(|(open, pattern)| *open == method && exact(pattern));
    ForwardedWrite { risk, known, about_session: any(&["session", "project", "sync", "control-plane"]) }
}

/// Returns whether a path matches this pattern, without any encoding or other variation in spelling.
fn is_exactly(path: &str, pattern: &str) -> bool {
    let plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.~".contains(&byte))
    };
    let Some(path) = path.strip_prefix('/') else { return false };
    let (mut is, mut wanted) = (path.split('/'), pattern.split('/'));
    loop {
        match (is.next(), wanted.next()) {
            (None, None) => return true,
            (Some(segment), Some(":")) if plain(segment) => {}
            (Some(segment), Some(word)) if segment == word => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn risk(method: &str, path: &str) -> ProgramRisk {
        classify(method, path, false).risk
    }

    #[test]
    fn shells_are_recognised_in_every_spelling() {
        for path in [
            "/session/s/shell",
            "/session/s/SHELL",
            "//session//s//shell/",
            "/session/s/%73hell",
            "/session/s/shell;x",
            "/session/s%2Fshell",
            "/./pty",
            "/%2e/pty",
            "/api/pty",
            "/API/Pty/",
            "/pty/p/connect-token",
            "/pty#x",
            "/a\\pty",
            "/tui/submit-prompt",
            "/session/s/Command",
            "/session/s/init/",
        ] {
            assert_eq!(risk("POST", path), ProgramRisk::Shell, "{path}");
            assert!(!classify("POST", path, false).known, "{path}");
        }
        assert_eq!(classify("GET", "/pty/p/connect", true).risk, ProgramRisk::Shell);
        assert!(!classify("GET", "/anything", true).known);
    }

    #[test]
    fn only_listed_writes_are_open() {
        for (method, path) in [
            ("GET", "/config"),
            ("HEAD", "/x"),
            ("POST", "/session"),
            ("POST", "/session/ses_1/message"),
            ("POST", "/session/ses_1/prompt_async"),
            ("PATCH", "/session/ses_1"),
            ("POST", "/api/session/ses_1/prompt"),
            ("POST", "/question/que_1/reply"),
        ] {
            let write = classify(method, path, false);
            assert!(write.known && write.risk == ProgramRisk::None, "{method} {path}");
        }
        for (method, path) in [
            ("POST", "/mcp"),
            ("PATCH", "/config"),
            ("PATCH", "/global/config"),
            ("PUT", "/auth/x"),
            ("POST", "/vcs/apply"),
            ("POST", "/global/upgrade"),
            ("POST", "/instance/dispose"),
            ("POST", "/session/"),
            ("POST", "/Session"),
            ("POST", "/session/../mcp"),
            ("POST", "/session/%2e%2e/message"),
            ("POST", "/"),
            ("POST", ""),
            ("PUT", "/session"),
            ("DELETE", "/session"),
            ("POST", "/unheard/of"),
        ] {
            assert!(!classify(method, path, false).known, "{method} {path}");
        }
        assert_eq!(risk("POST", "/session/s/command"), ProgramRisk::Command);
        assert_eq!(risk("POST", "/session/s/init"), ProgramRisk::Init);
        assert_eq!(risk("POST", "/experimental/WOR%E2%84%AATREE"), ProgramRisk::Start);
        assert_eq!(risk("PATCH", "/project/p"), ProgramRisk::Start);
    }
}
