//! `berth approvals`: lists, shows, answers and watches pending approvals.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{self, ApiClient};
use crate::base::{Error, Result, clock, logging};

/// Runs `berth approvals list`, `show`, `reply` or `watch`.
///
/// # Errors
/// Fails for an invalid command line or setting (exit code 2), or if the server cannot be reached or refuses the
/// request.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let usage = || {
        let usage = "say `berth approvals list`, `berth approvals show ID`, `berth approvals reply ID --allow` (or --deny), or \
             `berth approvals watch`";
        Error::config("approvals", usage)
    };
    let line = match super::line("approvals", args)? {
        Ok(line) => line,
        Err(code) => return Ok(code),
    };
    let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
    let client = || client::of(&line);
    match words.as_slice() {
        ["list"] => list(&client()?, line.json),
        ["show", id] => show(&client()?, id),
        ["watch"] => watch(&client()?, line.json),
        ["reply", id] if line.allow != line.deny => reply(&client()?, id, line.allow, line.json),
        _ => Err(usage()),
    }
}

fn list(client: &ApiClient, json: bool) -> Result<ExitCode> {
    let answer = client.call("GET", "/approvals", None)?;
    if json {
        super::print(&format!("{answer:#}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text: String = items.iter().map(question).collect();
    super::print(if items.is_empty() { "Nothing waits for approval.\n" } else { &text });
    Ok(ExitCode::SUCCESS)
}

/// Formats an approval as one line.
fn line(item: &Value) -> String {
    let text = |key: &str| logging::one_line(item[key].as_str().unwrap_or("?"));
    let age = clock::now_unix_ms().saturating_sub(item["createdAt"].as_u64().unwrap_or(0)) / 1000;
    let who = logging::one_line(item["actor"]["scope"].as_str().unwrap_or("?"));
    format!("{}  {}  {} (a {who}, {age} s ago)\n", text("id"), text("action"), text("summary"))
}

/// Prints a complete approval, including the parts that the list truncates.
fn show(client: &ApiClient, id: &str) -> Result<ExitCode> {
    check_id(id)?;
    let mut answer = client.open(&format!("/approvals/{id}"))?;
    std::io::copy(&mut answer, &mut std::io::stdout().lock())
        .map_err(|error| Error::internal(format!("The response ended early: {error}")))?;
    super::print("\n");
    Ok(ExitCode::SUCCESS)
}

/// Formats an approval with all details of its list entry: one line, and indented lines below it.
pub(super) fn question(item: &Value) -> String {
    let mut text = line(item);
    let word = |value: &Value| logging::one_line(value.as_str().unwrap_or("?"));
    let (asker, request) = (&item["asker"], &item["request"]);
    let left = item["expires_in_ms"].as_u64().unwrap_or(0) / 1000;
    text += &format!(
        "    asked by {} from {}; {left} s left\n",
        word(&asker["credential"]),
        word(&asker["address"])
    );
    let query = request["query"].as_str().filter(|query| !query.is_empty());
    let query = query.map_or(String::new(), |query| format!("?{}", logging::one_line(query)));
    text += &format!("    {} {}{query}\n", word(&request["method"]), word(&request["path"]));
    match &request["body"] {
        Value::Null => {}
        Value::Object(fields) => fields.iter().for_each(|(key, value)| write_field(&mut text, key, value)),
        body => write_field(&mut text, &format!("body ({})", word(&request["bodyEncoding"])), body),
    }
    for file in item["preview"]["files"].as_array().into_iter().flatten() {
        text += &format!("    file {}\n", word(&file["path"]));
        for (mark, side) in [('-', &file["before"]), ('+', &file["after"])] {
            match side {
                Value::Null => {}
                Value::String(content) => {
                    for one in content.lines() {
                        text += &format!("      {mark} {}\n", logging::one_line(one));
                    }
                }
                other => text += &format!("      {mark} {}\n", logging::one_line(&other.to_string())),
            }
        }
    }
    for omitted in item["truncated"].as_array().into_iter().flatten() {
        text += &format!("    not shown here: {}\n", word(omitted));
    }
    if item["truncated"].is_array() {
        text += &format!("    `berth approvals show {}` has all of it\n", word(&item["id"]));
    }
    text
}

/// Formats a field of a request body: the fields of objects such as `env` one by one, and texts line by line.
fn write_field(text: &mut String, name: &str, value: &Value) {
    let name = logging::one_line(name);
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| write_field(text, &format!("{name}.{key}"), value))
        }
        Value::String(content) if content.contains('\n') => {
            *text += &format!("    {name}:\n");
            for one in content.lines() {
                *text += &format!("      | {}\n", logging::one_line(one));
            }
        }
        Value::String(content) => *text += &format!("    {name}: {}\n", logging::one_line(content)),
        other => *text += &format!("    {name}: {}\n", logging::one_line(&other.to_string())),
    }
}

fn check_id(id: &str) -> Result<()> {
    if id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Ok(());
    }
    Err(Error::config(id, "is not the id of an approval; list them with `berth approvals list`"))
}

fn reply(client: &ApiClient, id: &str, allow: bool, json: bool) -> Result<ExitCode> {
    check_id(id)?;
    let word = if allow { "allow" } else { "deny" };
    let answer = client.call("POST", &format!("/approvals/{id}"), Some(&json!({ "reply": word })))?;
    if json {
        super::print(&format!("{answer:#}\n"));
    } else {
        super::print(if allow { "Allowed.\n" } else { "Denied.\n" });
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns whether an event was not printed before. An approval that was created while the stream was opened is in the
/// first list, and the server may send it again.
fn is_news(event: &Value, known: &mut BTreeSet<String>) -> bool {
    let id = |approval: &Value, key: &str| approval[key].as_str().unwrap_or_default().to_owned();
    match event["event"].as_str() {
        Some("pending") => {
            known.extend(event["items"].as_array().into_iter().flatten().map(|item| id(item, "id")))
        }
        Some("asked") => return known.insert(id(&event["approval"], "id")),
        Some("ended") => drop(known.remove(&id(event, "approvalId"))),
        _ => {}
    }
    true
}

/// Prints events until the server shuts down.
fn watch(client: &ApiClient, json: bool) -> Result<ExitCode> {
    let mut last = String::new();
    let mut patience = TRIES;
    let mut known = BTreeSet::new();
    loop {
        let since = if last.is_empty() { String::new() } else { format!("&since={last}") };
        let lines = match client.lines(&format!("/approvals/events?stream=ndjson{since}")) {
            Ok(lines) => lines,
            Err(error) if last.is_empty() || patience == 0 => return Err(error),
            Err(_) => {
                patience -= 1;
                std::thread::sleep(Duration::from_secs(1));
                continue;
            }
        };
        // If the stream breaks, it is resumed after the last event that was received.
        for text in lines.map_while(std::io::Result::ok) {
            patience = TRIES;
            let Ok(event) = serde_json::from_str::<Value>(&text) else { continue };
            if let Some(id) = event["id"].as_str().filter(|_| event["event"] != "ping") {
                id.clone_into(&mut last);
            }
            if json && event["event"] != "ping" {
                super::print(&(text + "\n"));
            } else if !json && is_news(&event, &mut known) {
                super::print(&event_text(&event));
            }
            if event["event"] == "end" {
                return Err(Error::internal(format!("{} has ended", client.plan.url)));
            }
        }
    }
}

/// How often a lost connection is opened again, at intervals of one second.
const TRIES: u32 = 30;

fn event_text(event: &Value) -> String {
    let text = |key: &str| logging::one_line(event[key].as_str().unwrap_or("?"));
    match event["event"].as_str() {
        Some("pending") => event["items"].as_array().into_iter().flatten().map(question).collect(),
        // If the approval has already ended, its event contains only the id.
        Some("asked") if event["approval"]["action"].is_string() => question(&event["approval"]),
        Some("ended") => format!("{}  {}\n", text("approvalId"), text("reason")),
        Some("missed") => "some events were dropped because too many came at once\n".to_owned(),
        _ => String::new(),
    }
}
