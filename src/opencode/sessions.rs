//! Recognises requests that reach beyond the directory that they name. OpenCode finds a session by its id alone:
//! 1.1.53 searches the sessions of all directories outside repositories, 1.18.34 those of every directory. 1.18.34
//! also serves a request in the directory of its session instead of the directory that the request names. Some routes
//! list or follow all directories. Pure.

use super::rules;

/// Returns the session ids in a path. They are case-sensitive and begin with `ses` (according to the validators of
/// both versions).
pub fn ids(path: &str) -> Vec<String> {
    let segments = rules::segments(path);
    let is_session = |segment: &str| segment.eq_ignore_ascii_case("session");
    let named = segments.iter().enumerate().filter(|(at, segment)| {
        let follows = *at > 0 && is_session(&segments[at - 1]);
        segment.starts_with("ses") && (follows || !is_session(segment))
    });
    named.map(|(_, segment)| segment.clone()).collect()
}

/// Returns whether a write moves sessions between directories or imports sessions.
pub fn moves(path: &str) -> bool {
    rules::words(path).iter().any(|word| matches!(word.as_str(), "sync" | "control-plane" | "warp"))
}

/// The parameters of a session list that cannot make it contain sessions of other directories.
const FILTERS: &[&str] = &["directory", "roots", "start", "search", "limit", "order", "archived"];

/// Returns whether a request concerns directories that it does not name.
pub fn spans_directories(path: &str, query: &str) -> bool {
    // Both readings of the path are checked: 1.18 ends a path at a `;`, 1.1.53 does not.
    let words = rules::words(path);
    let until = path.to_ascii_lowercase().replace("%3b", ";");
    let short = rules::words(until.split(';').next().unwrap_or_default());
    spans(&words, query) || spans(&short, query)
}

fn spans(words: &[String], query: &str) -> bool {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["global", "health"] => false,
        ["global", ..]
        | ["project"]
        | ["project", _, "directories"]
        | ["experimental", "session" | "project", ..]
        | ["api", "event"]
        | ["api", "session", "active"]
        | ["api", "permission", "saved", ..] => {
            !matches!(words.as_slice(), ["experimental", "session", _, ..])
        }
        ["project", id] => id != "current",
        ["session"] | ["api", "session"] => {
            let names = || rules::query_names(query);
            !names().any(|name| name == "directory")
                || names().any(|name| !name.is_empty() && !FILTERS.contains(&name.as_str()))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ids_are_found_in_every_spelling() {
        for path in [
            "/session/sesA/message",
            "/api/session/sesA",
            "/SESSION/sesA/shell",
            "//session//sesA",
            "/session/%73esA/x",
            "/session;x/sesA",
            "/session/sesA;b",
            "/session\\sesA",
            "/experimental/session/sesA/background",
            "/unheard/sesA",
        ] {
            assert_eq!(ids(path), ["sesA"], "{path}");
        }
        assert_eq!(ids("/session/session"), ["session"]);
        for path in ["/session", "/session/status", "/session/s/message", "/file", "/session/SES"] {
            assert_eq!(ids(path), [""; 0], "{path}");
        }
    }

    #[test]
    fn requests_beyond_their_directory_are_recognised() {
        for (path, query) in [
            ("/global/event", ""),
            ("/Global/config", ""),
            ("/%67lobal/dispose", ""),
            ("/session", ""),
            ("/session;a", ""),
            ("/session%3ba", ""),
            ("/session/", "directory=/a&scope=project"),
            ("/session", "directory=/a&p%61th=x"),
            ("/api/session", "cursor=x"),
            ("/experimental/session", "directory=/a"),
            ("/experimental/project/p/copy", ""),
            ("/api/event", ""),
            ("/project", ""),
            ("/project/p", ""),
            ("/project/p/directories", ""),
        ] {
            assert!(spans_directories(path, query), "{path}?{query}");
        }
        for (path, query) in [
            ("/global/health", ""),
            ("/session", "directory=/a&limit=5"),
            ("/session/s", ""),
            ("/session/status", ""),
            ("/event", ""),
            ("/project/current", ""),
            ("/experimental/session/s/background", ""),
            ("/file", "path=global"),
        ] {
            assert!(!spans_directories(path, query), "{path}?{query}");
        }
    }
}
