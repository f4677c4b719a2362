//! What stands in the bodies of requests that could make OpenCode run a program: a command and its arguments, start
//! commands, rules of a session, directories. Read as OpenCode reads them; what only one of the two could read is refused.
//!
//! Threads: the caller's; [`template`] waits for the upstream.

use std::io::Read as _;
use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::target::Target;
use super::upstream::{Answer, Call, Payload, Rest, Upstreams};
use super::watch::Watch;
use crate::base::{Code, Error, Result};
use crate::proc::Cancel;

/// The largest body that is looked into, of a request that is not a prompt.
pub const INSPECTED_BYTES: usize = 1 << 20;

/// The largest list of commands that is read.
const LIST_BYTES: u64 = 8 << 20;

/// How long OpenCode may take to list its commands.
const LIST_PATIENCE: Duration = Duration::from_secs(20);

/// The body of `POST /session/:id/command`, as far as it decides what runs.
#[derive(Debug, Deserialize)]
pub struct CommandBody {
    /// Its name.
    pub command: String,
    /// What its template gets.
    pub arguments: String,
}

/// Reads a body.
///
/// # Errors
/// `InvalidPayload` for what OpenCode could read in another way: no JSON, or a key twice.
pub fn command(body: &[u8]) -> Result<CommandBody> {
    serde_json::from_slice(body).map_err(|error| {
        let message =
            format!("The request body must be JSON with the strings `command` and `arguments`: {error}");
        Error::new(Code::InvalidPayload, message)
    })
}

/// Whether a body has a start command, or could have one that only OpenCode reads.
pub fn starts_program(body: &[u8]) -> bool {
    fn within(value: &Value) -> bool {
        match value {
            Value::Object(fields) => fields.iter().any(|(name, value)| {
                let named = matches!(name.as_str(), "startCommand" | "commands") && !is_empty(value);
                named || within(value)
            }),
            Value::Array(items) => items.iter().any(within),
            _ => false,
        }
    }
    fn is_empty(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::String(text) => text.trim().is_empty(),
            Value::Object(fields) => fields.values().all(is_empty),
            _ => false,
        }
    }
    body.iter().any(|byte| !byte.is_ascii_whitespace())
        && serde_json::from_slice(body).map_or(true, |value| within(&value))
}

/// The fields of a session, a prompt or a move that are looked at.
pub const SESSION_FIELDS: &[&str] = &["permission", "tools", "location", "destination", "directory"];

/// Whether a field of a session or a prompt allows tools without asking: a rule of `permission` that does not deny, or one
/// of `tools` that is on, which OpenCode turns into such a rule.
pub fn grants_permission(name: &str, value: Option<&Value>) -> bool {
    let denies = |rule: &Value| rule["action"] == "deny";
    match (name, value) {
        ("permission" | "tools", Some(Value::Null)) => false,
        ("permission", Some(Value::Array(rules))) => !rules.iter().all(denies),
        ("tools", Some(Value::Object(tools))) => tools.values().any(|enabled| *enabled != Value::Bool(false)),
        (name, _) => matches!(name, "permission" | "tools"),
    }
}

/// The directory in such a field: where a session of 1.18 is made or moved to, or its events are replayed.
///
/// # Errors
/// `InvalidPayload` for a field that cannot be read.
pub fn directory<'a>(name: &str, value: Option<&'a Value>) -> Result<Option<&'a str>> {
    match (name, value) {
        ("location" | "destination", Some(value)) => Ok(value["directory"].as_str()),
        ("directory", Some(value)) => Ok(value.as_str()),
        ("location" | "destination" | "directory", None) => {
            let message = format!("The field `{name}` of the request body cannot be read");
            Err(Error::new(Code::InvalidPayload, message))
        }
        _ => Ok(None),
    }
}

/// Whether the text that OpenCode makes of a template and arguments can have a part that a shell runs: `` !`…` ``. In
/// doubt it can: the parts may also meet where a placeholder was.
pub fn runs_shell(template: &str, arguments: &str) -> bool {
    const SHELL: &str = "!`";
    let (pieces, adjacent) = pieces(template);
    let has = |c: char| arguments.contains(c);
    let before = pieces.iter().rev().skip(1).any(|piece| piece.ends_with('!'));
    let behind = pieces.iter().skip(1).any(|piece| piece.starts_with('`'));
    // JavaScript's replaceAll() puts what stands before or behind the placeholder for these.
    let spliced = template.contains("$ARGUMENTS") && (arguments.contains("$`") || arguments.contains("$'"));
    template.contains(SHELL)
        || pieces.concat().contains(SHELL)
        || arguments.contains(SHELL)
        || (before && has('`'))
        || (behind && has('!'))
        || (adjacent && has('!') && has('`'))
        || spliced
        // The arguments would be put into the arguments.
        || arguments.contains("ARGUMENTS")
}

/// The text between placeholders (`$1`, `$ARGUMENTS`), and whether two of them touch.
fn pieces(template: &str) -> (Vec<&str>, bool) {
    let (mut pieces, mut rest, mut from) = (Vec::new(), template, 0);
    while let Some(at) = rest[from..].find('$').map(|at| from + at) {
        let behind = &rest[at + 1..];
        let digits = behind.bytes().take_while(u8::is_ascii_digit).count();
        let length = if behind.starts_with("ARGUMENTS") { "ARGUMENTS".len() } else { digits };
        if length == 0 {
            from = at + 1;
            continue;
        }
        pieces.push(&rest[..at]);
        (rest, from) = (&behind[length..], 0);
    }
    pieces.push(rest);
    let inner = pieces.len().saturating_sub(1);
    let adjacent = pieces.iter().take(inner).skip(1).any(|piece| piece.is_empty());
    (pieces, adjacent)
}

/// The template of a command, as OpenCode has it loaded for the same directory as the call's; `None` where it has no such
/// command or does not tell its text, as for the prompts of MCP servers.
///
/// # Errors
/// Those of [`Upstreams::call`]; `OpencodeUnreachable` for an answer that is no list.
pub fn template(
    upstreams: &Upstreams,
    target: &Target,
    call: &Call,
    name: &str,
    gone: &Cancel,
) -> Result<Option<String>> {
    let query = call.path_and_query.split_once('?').map_or("", |(_, query)| query);
    let kept = |name: &str| name.eq_ignore_ascii_case("x-opencode-workspace");
    let list = Call {
        method: "GET",
        path_and_query: format!("/command?{query}"),
        headers: call.headers.iter().filter(|(name, _)| kept(name)).cloned().collect(),
        directory: call.directory.clone(),
        upgrade: None,
    };
    let watch: Rc<Watch> = upstreams.watch_for(&list, gone.clone(), LIST_PATIENCE);
    let Answer { status, rest, .. } = upstreams.call(target, &list, Payload::None, &watch)?;
    let unread = |what: String| {
        target.failed(Code::OpencodeUnreachable, &format!("its list of commands cannot be read: {what}"))
    };
    let mut text = Vec::new();
    if let Rest::Body(body, _) = rest {
        body.take(LIST_BYTES + 1).read_to_end(&mut text).map_err(|error| unread(error.to_string()))?;
    }
    if status != 200 || text.len() as u64 > LIST_BYTES {
        return Err(unread(format!("status {status}, {} bytes", text.len())));
    }
    let list: Vec<Value> = serde_json::from_slice(&text).map_err(|error| unread(error.to_string()))?;
    let mut found = list.iter().filter(|command| command["name"] == name);
    // One whose text comes from an MCP server can be another the next time.
    let entry = found.next().filter(|command| command["source"] != "mcp" && command["mcp"] != true);
    let template = entry.and_then(|command| command["template"].as_str()).map(str::to_owned);
    Ok(if found.next().is_some() { None } else { template })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shell_parts_are_found_wherever_they_come_from() {
        for (template, arguments) in [
            ("Look: !`id`", ""),
            ("Look at $ARGUMENTS", "!`id`"),
            ("no placeholder", "x !`id`"),
            ("!$1`id`", ""),
            ("!$ARGUMENTS", "`id`"),
            ("$1`id`", "!"),
            ("$1$2", "\"!\" \"`id`\""),
            ("$ARGUMENTS`id`", "x!"),
            ("a `id` $ARGUMENTS", "!$'"),
            ("$1", "` x !$ARGUMENTS"),
            ("!$$2", "`id` ARGUMENTS"),
        ] {
            assert!(runs_shell(template, arguments), "{template} {arguments}");
        }
        for (template, arguments) in [
            ("Review $ARGUMENTS", "please fix `foo()` now!"),
            ("Review `git diff` of $1 and $2!", "a b"),
            ("no placeholder!", "`x`"),
            ("Costs $5 or $", "10 $ `x` !"),
            ("", ""),
        ] {
            assert!(!runs_shell(template, arguments), "{template} {arguments}");
        }
    }

    #[test]
    fn start_commands_and_grants_are_found() {
        for body in [
            r#"{"startCommand": "id"}"#,
            r#"{"start\u0043ommand": "id"}"#,
            r#"{"commands": {"start": "id"}}"#,
            r#"{"extra": [{"startCommand": "id"}]}"#,
            "{\"a\": \"\\ud800\"}",
            "\u{feff}{}",
        ] {
            assert!(starts_program(body.as_bytes()), "{body}");
        }
        for body in
            ["", " \n", "{}", r#"{"name": "x", "startCommand": " "}"#, r#"{"commands": {"start": ""}}"#]
        {
            assert!(!starts_program(body.as_bytes()), "{body}");
        }
        for (name, value) in [
            ("permission", json!([{"permission": "bash", "pattern": "*", "action": "allow"}])),
            ("permission", json!([{"action": "deny"}, {}])),
            ("permission", json!({"bash": "allow"})),
            ("tools", json!({"bash": true})),
        ] {
            assert!(grants_permission(name, Some(&value)), "{value}");
        }
        for (name, value) in [
            ("permission", json!([{"permission": "question", "action": "deny"}])),
            ("permission", json!([])),
            ("tools", json!({"bash": false})),
            ("tools", json!(null)),
            ("directory", json!("/x")),
        ] {
            assert!(!grants_permission(name, Some(&value)), "{value}");
        }
        assert!(grants_permission("tools", None));
        assert_eq!(directory("location", Some(&json!({"directory": "/etc"}))).unwrap(), Some("/etc"));
        assert!(directory("location", None).is_err());
        assert!(command(br#"{"command": "a", "command": "b", "arguments": ""}"#).is_err());
    }
}
