//! Renders the screen of `berth host` as lines, which depend only on the view and the terminal's size. This module
//! must not draw or send requests. Text from other sources passes through [`one_line`], so that it cannot control the
//! terminal.

use std::time::Instant;

use serde_json::Value;

use crate::base::logging::one_line;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const REVERSE: &str = "\x1b[7m";
const PLAIN: &str = "\x1b[0m";
/// The minimum number of log lines that stay visible below a long list of approvals.
const LEAST_LOG: usize = 3;

/// The data that the screen shows. The type does not implement `Debug`, because it contains tokens.
#[derive(Default)]
pub(super) struct PageView {
    pub(super) workspace: String,
    /// The rows of the first block: name and value.
    pub(super) services: Vec<(&'static str, String)>,
    /// The tokens, if they are shown.
    pub(super) tokens: Option<Vec<(&'static str, String)>>,
    /// The pending approvals, in the order of `GET /approvals`.
    pub(super) approvals: Vec<Value>,
    /// The time at which the approvals were listed, for computing their remaining time.
    pub(super) listed: Option<Instant>,
    /// The id of the selected approval.
    pub(super) chosen: Option<String>,
    /// The approval that is shown in full.
    pub(super) details: Option<Details>,
    pub(super) log: Vec<String>,
    /// The message about the result of the last key.
    pub(super) message: String,
    /// Whether the screen waits for a confirmation to stop the host.
    pub(super) stopping: bool,
}

/// An approval that is shown in full, and its first visible line.
pub(super) struct Details {
    pub(super) id: String,
    pub(super) lines: Vec<String>,
    pub(super) top: usize,
}

pub(super) fn id(approval: &Value) -> &str {
    approval["id"].as_str().unwrap_or_default()
}

/// Renders the lines for a terminal with this many rows.
pub(super) fn page(view: &PageView, rows: usize) -> Vec<String> {
    let mut lines = vec![format!("{BOLD}berth host{PLAIN} {DIM}{}{PLAIN}", one_line(&view.workspace))];
    let below = footer(view);
    let room = rows.saturating_sub(lines.len() + below.len());
    match &view.details {
        Some(details) => {
            lines.extend(details.lines.iter().skip(details.top).take(room).cloned());
        }
        None => {
            lines.extend(view.services.iter().map(row));
            match &view.tokens {
                Some(tokens) => lines.extend(tokens.iter().map(row)),
                None => lines.push(row(&("Tokens", "hidden".to_owned()))),
            }
            approvals(view, room.saturating_sub(lines.len() + LEAST_LOG), &mut lines);
            lines.push(format!("{BOLD}Log{PLAIN}"));
            let left = rows.saturating_sub(lines.len() + below.len());
            let first = view.log.len().saturating_sub(left);
            lines.extend(view.log[first..].iter().map(|line| one_line(line.trim_end())));
        }
    }
    lines.truncate(rows.saturating_sub(below.len()));
    lines.resize(rows.saturating_sub(below.len()), String::new());
    lines.extend(below);
    lines.truncate(rows);
    lines
}

fn row((name, value): &(&'static str, String)) -> String {
    format!("  {name:<11}{}", one_line(value))
}

fn approvals(view: &PageView, room: usize, lines: &mut Vec<String>) {
    let count = view.approvals.len();
    if count == 0 {
        lines.push(format!("{BOLD}Approvals{PLAIN} {DIM}nothing waits{PLAIN}"));
        return;
    }
    let wait = if count == 1 { "waits" } else { "wait" };
    lines.push(format!("{BOLD}Approvals{PLAIN} {count} {wait} for an answer"));
    let at = view.approvals.iter().position(|one| Some(id(one)) == view.chosen.as_deref()).unwrap_or(0);
    let room = room.max(1);
    // The list is scrolled so that the selected approval is visible.
    let first = at.saturating_sub(room - 1);
    for one in view.approvals.iter().skip(first).take(room) {
        let text = |value: &Value| one_line(value.as_str().unwrap_or("?"));
        let since = view.listed.map_or(0, |listed| listed.elapsed().as_millis() as u64);
        let left = one["expires_in_ms"].as_u64().unwrap_or(0).saturating_sub(since) / 1000;
        let line = format!(
            "{left:>4} s  {}  {}  (a {} from {})",
            text(&one["action"]),
            text(&one["summary"]),
            text(&one["actor"]["scope"]),
            text(&one["asker"]["address"]),
        );
        let chosen = Some(id(one)) == view.chosen.as_deref();
        lines.push(if chosen { format!("{REVERSE}> {line}") } else { format!("  {line}") });
    }
}

fn footer(view: &PageView) -> Vec<String> {
    let keys = if view.stopping {
        "Stop the host and everything it runs?  y yes  any other key no"
    } else if view.details.is_some() {
        "up/down scroll  a allow  d deny  Esc back"
    } else if view.approvals.is_empty() {
        "t tokens  q stop"
    } else {
        "up/down choose  Enter show all of it  a allow  d deny  t tokens  q stop"
    };
    vec![one_line(&view.message), format!("{DIM}{keys}{PLAIN}")]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(approvals: usize) -> PageView {
        let approval = |n: usize| json!({ "id": format!("id-{n}"), "action": "exec", "summary": format!("run {n}\x1b[2J"), "expires_in_ms": 9_000 });
        PageView {
            services: vec![("Server", "http://127.0.0.1:1".into())],
            approvals: (0..approvals).map(approval).collect(),
            chosen: (approvals > 0).then(|| format!("id-{}", approvals - 1)),
            log: (0..100).map(|n| format!("line {n}\n")).collect(),
            ..PageView::default()
        }
    }

    #[test]
    fn pages_have_as_many_rows_as_the_terminal() {
        for rows in [0, 1, 2, 3, 5, 10, 24, 200] {
            for approvals in [0, 1, 50] {
                assert_eq!(page(&view(approvals), rows).len(), rows, "{approvals} approvals");
            }
        }
    }

    #[test]
    fn the_chosen_approval_and_the_end_of_the_log_are_visible() {
        let all = page(&view(50), 24).join("\n");
        assert!(all.contains("> ") && all.contains("run 49") && all.contains("line 99"), "{all}");
        assert!(!all.contains("\x1b[2J"), "{all}");
    }

    #[test]
    fn tokens_are_hidden() {
        let mut view = view(0);
        assert!(page(&view, 24).iter().any(|line| line.ends_with("hidden")));
        view.tokens = Some(vec![("Owner", "secret".into())]);
        assert!(page(&view, 24).iter().any(|line| line.ends_with("secret")));
    }
}
