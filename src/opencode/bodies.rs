//! Parts of request bodies that could make OpenCode run a program or read a file: commands and their arguments, start
//! commands, permission rules, directories and files. Bodies are parsed as OpenCode parses them; a body that berth and
//! OpenCode could read differently is refused. Pure, except for path checks, which use the file system.

use std::cell::RefCell;
use std::io::{self, Read};
use std::path::{Component, Path};

use serde_json::Value;

use super::fields::{CheckedBody, FieldNames, FieldScanner};
use super::rules;
use crate::base::{Code, Error, Result};

/// The maximum size of a body that is inspected, for a request that is neither a prompt nor a command.
pub const INSPECTED_BYTES: usize = 1 << 20;

/// The maximum size of a command's body, attachments included. Bodies larger than a few KiB are spooled to disk.
pub const COMMAND_BYTES: u64 = 64 << 20;

/// The fields of a `POST /session/:id/command` body that decide which program runs.
#[derive(Debug, Default)]
pub struct CommandInvocation {
    pub command: String,
    /// The text that replaces the placeholders of the command's template.
    pub arguments: String,
}

/// Reads a command body. Skips its attachments.
///
/// # Errors
/// Fails with `InvalidPayload` for a body that OpenCode could read differently: if a value is not a string, or a key
/// is duplicate.
pub fn command(body: &mut dyn Read) -> Result<CommandInvocation> {
    let wrong = |what: &str| {
        let message =
            format!("The request body must be JSON with the strings `command` and `arguments`: {what}");
        Error::new(Code::InvalidPayload, message)
    };
    let found: RefCell<[Option<String>; 2]> = RefCell::default();
    let keep = |name: &'static str, value: Option<Value>| {
        let slot = &mut found.borrow_mut()[usize::from(name == "arguments")];
        match value {
            Some(Value::String(text)) if slot.is_none() => *slot = Some(text),
            Some(Value::String(_)) => return Err(wrong(&format!("duplicate field `{name}`"))),
            _ => return Err(wrong(&format!("`{name}` is not a string of at most 64 KiB"))),
        }
        Ok(())
    };
    let names = FieldNames { top: &["command", "arguments"], nested: &[] };
    let mut checked = CheckedBody::new(body, FieldScanner::new(names), &keep);
    let read = io::copy(&mut checked, &mut io::sink());
    if let Some(refusal) = checked.refusal.take() {
        return Err(refusal);
    }
    read.map_err(|error| {
        Error::new(Code::InvalidRequest, "The request body ended early").with_source(error)
    })?;
    match found.take() {
        [Some(command), Some(arguments)] => Ok(CommandInvocation { command, arguments }),
        [None, _] => Err(wrong("missing field `command`")),
        [_, None] => Err(wrong("missing field `arguments`")),
    }
}

/// Returns whether a body contains a start command. Also returns true for a body that cannot be parsed, because it
/// might contain a start command for OpenCode.
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

/// The fields of session, prompt and move requests that are inspected. A request attaches files with the field `url`
/// (messages and commands) or `uri` (prompts of 1.18).
pub const SESSION_FIELDS: FieldNames = FieldNames {
    top: &["permission", "tools", "location", "destination", "directory"],
    nested: &["url", "uri"],
};

/// Returns whether a field of a session or prompt lets tools run without asking: a `permission` rule that does not
/// deny, or an enabled entry of `tools`, which OpenCode turns into such a rule.
pub fn grants_permission(name: &str, value: Option<&Value>) -> bool {
    let denies = |rule: &Value| rule["action"] == "deny";
    match (name, value) {
        ("permission" | "tools", Some(Value::Null)) => false,
        ("permission", Some(Value::Array(rules))) => !rules.iter().all(denies),
        ("tools", Some(Value::Object(tools))) => tools.values().any(|enabled| *enabled != Value::Bool(false)),
        (name, _) => matches!(name, "permission" | "tools"),
    }
}

/// Returns the directory in a field of a session, prompt or move request. OpenCode 1.18 creates a session in this
/// directory, moves a session to it, or replays a session's events in it.
///
/// # Errors
/// Fails with `InvalidPayload` for a field that cannot be parsed.
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

/// Returns whether expanding `template` with `arguments` can produce a part that a shell runs: `` !`…` ``. In doubt it
/// returns `true`, because the two characters may come from different pieces of the text.
pub fn runs_shell(template: &str, arguments: &str) -> bool {
    const SHELL: &str = "!`";
    let (pieces, adjacent) = pieces(template);
    let has = |c: char| arguments.contains(c);
    let before = pieces.iter().rev().skip(1).any(|piece| piece.ends_with('!'));
    let behind = pieces.iter().skip(1).any(|piece| piece.starts_with('`'));
    // JavaScript's replaceAll() replaces these two patterns with the text before or after the placeholder.
    let spliced = template.contains("$ARGUMENTS") && (arguments.contains("$`") || arguments.contains("$'"));
    template.contains(SHELL)
        || pieces.concat().contains(SHELL)
        || arguments.contains(SHELL)
        || (before && has('`'))
        || (behind && has('!'))
        || (adjacent && has('!') && has('`'))
        || spliced
        // If the arguments contain the placeholder, OpenCode would expand them a second time.
        || arguments.contains("ARGUMENTS")
}

/// Splits a template at its placeholders (`$1`, `$ARGUMENTS`). The returned flag is true if two placeholders are
/// adjacent.
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

/// Returns the strings in which OpenCode looks for file references (`@path`) and that depend on the arguments. These
/// are the arguments themselves and, for each `@…` in the template that ends at a placeholder, that text followed by
/// each word of the arguments.
fn references<'a>(template: &str, arguments: &'a str) -> impl Iterator<Item = String> + use<'a> {
    let (pieces, _) = pieces(template);
    let inner = pieces.len().saturating_sub(1);
    let open = |piece: &&str| {
        let (_, name) = piece.rsplit_once('@')?;
        (!name.contains(char::is_whitespace)).then(|| name.to_owned())
    };
    let starts: Vec<String> = pieces[..inner].iter().filter_map(open).collect();
    let quotes = ['"', '\'', '`'];
    let words: Vec<&str> = arguments.split(|c: char| c.is_whitespace() || quotes.contains(&c)).collect();
    words.into_iter().filter(|word| !word.is_empty()).flat_map(move |word| {
        let named = word.split('@').skip(1).map(str::to_owned);
        let behind = starts.iter().map(|start| format!("{start}{word}"));
        named.chain(behind).collect::<Vec<_>>()
    })
}

/// Returns a file outside of `base` that the arguments of a command would make OpenCode read, if there is one.
/// OpenCode resolves `@path` against the root of the repository, which is `/` outside a repository, and `~/` against
/// the home directory.
pub fn reference_outside(template: &str, arguments: &str, base: &Path, is_here: bool) -> Option<String> {
    let leads_out = |name: &str| {
        let path = Path::new(name.trim_end_matches([',', '.', ':', ';', ')', '!', '?']));
        let climbs = path.components().any(|part| part == Component::ParentDir);
        let inside = |path: &Path| rules::is_file_inside(path, base, is_here);
        name.starts_with('~')
            || climbs
            || (path.is_absolute() && !inside(path))
            || (is_here
                && base.ancestors().skip(1).any(|up| {
                    let named = up.join(path);
                    !path.as_os_str().is_empty() && named.symlink_metadata().is_ok() && !inside(&named)
                }))
    };
    references(template, arguments).find(|name| leads_out(name))
}

/// Returns the path of a `file:` URL in a prompt, or `None` for other URLs. OpenCode reads attached files itself,
/// without asking for permission.
///
/// # Errors
/// Fails with `InvalidPayload` for a URL that berth cannot parse as OpenCode parses it.
pub fn file_path(value: Option<&Value>) -> Result<Option<String>> {
    let unread = |what: &str| {
        let message = format!("A `url` or `uri` of the request body {what}");
        Error::new(Code::InvalidPayload, message)
    };
    let url = match value {
        Some(Value::String(url)) => url,
        Some(_) => return Ok(None),
        None => return Err(unread("cannot be read")),
    };
    // The URL standard removes tabs and line breaks everywhere, and spaces and control characters at both ends.
    let plain: String = url.chars().filter(|c| !matches!(c, '\t' | '\n' | '\r')).collect();
    let plain = plain.trim_matches(|c: char| c <= ' ');
    let Some((scheme, rest)) = plain.split_once(':') else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case("file") {
        return Ok(None);
    }
    let rest = rest.split(['?', '#']).next().unwrap_or_default().replace('\\', "/");
    let path = match rest.strip_prefix("//") {
        Some(rest) if rest.starts_with('/') => rest,
        Some(rest) => rest
            .strip_prefix("localhost")
            .filter(|path| path.starts_with('/'))
            .ok_or_else(|| unread("names a file of another host; write file:///PATH"))?,
        None => &rest,
    };
    let decoded = rules::decode_strictly(path).ok_or_else(|| unread("is not percent-encoded correctly"))?;
    Ok(Some(decoded))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shell_parts_are_found_in_templates_and_arguments() {
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
        let read = |body: &str| command(&mut body.as_bytes()).map(|body| (body.command, body.arguments));
        let parts = format!("[{{\"url\": \"data:,{}\"}}]", "x".repeat(300_000));
        let body = format!("{{\"parts\": {parts}, \"comm\\u0061nd\": \"a\", \"arguments\": \"b\"}}");
        assert_eq!(read(&body).unwrap(), ("a".to_owned(), "b".to_owned()));
        for odd in [
            r#"{"command": "a", "command": "b", "arguments": ""}"#,
            r#"{"command": "a"}"#,
            r#"{"command": "a", "arguments": 1}"#,
            "[]",
            "",
        ] {
            assert!(read(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn files_are_found_in_urls_and_references() {
        for (url, want) in [
            ("file:///etc/shadow", Some("/etc/shadow")),
            (" \tFI\nLE:/etc/sh%61dow?start=1#x", Some("/etc/shadow")),
            ("file://localhost/etc", Some("/etc")),
            ("file:etc", Some("etc")),
            ("file:\\\\\\etc", Some("/etc")),
            ("data:text/plain,file:///etc", None),
            ("http://h/", None),
            ("x", None),
        ] {
            assert_eq!(file_path(Some(&json!(url))).unwrap().as_deref(), want, "{url}");
        }
        for url in ["file://host/etc", "file:///a%zz"] {
            assert!(file_path(Some(&json!(url))).is_err(), "{url}");
        }
        assert!(file_path(None).is_err());
        let scratch = crate::store::scratch::TestFolder::new();
        let base = scratch.join("ws");
        std::fs::create_dir_all(base.join("src")).unwrap();
        std::fs::create_dir(scratch.join("secret")).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("out")).unwrap();
        let outside = |template: &str, arguments: &str| reference_outside(template, arguments, &base, true);
        for (template, arguments) in [
            ("$ARGUMENTS", "look at @/etc/passwd"),
            ("$ARGUMENTS", "@etc/passwd,"),
            ("$ARGUMENTS", "@~/x"),
            ("$ARGUMENTS", "(@src/../../secret)"),
            ("$ARGUMENTS", "@secret"),
            ("Review @$1 now", "/etc/passwd"),
            ("Review @src/$1", "../../x"),
            ("no placeholder", "@/etc/passwd"),
        ] {
            assert!(outside(template, arguments).is_some(), "{template} {arguments}");
        }
        for (template, arguments) in [
            ("$ARGUMENTS", "fix @src and @src/new.rs, please, @general; a@b.c"),
            ("Review @$1", "src"),
            ("$ARGUMENTS", &format!("@{}/src", base.display())),
            ("Ask me@example.org $1", "/etc/passwd"),
        ] {
            assert_eq!(outside(template, arguments), None, "{template} {arguments}");
        }
    }
}
