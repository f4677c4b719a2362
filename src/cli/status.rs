//! `berth status`: reports, as text or JSON, whether a server and, if requested, an OpenCode respond. The command
//! exits with 1 if one of them does not respond.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::{self, ApiClient};
use crate::base::{Result, logging};

/// Runs `berth status`.
///
/// # Errors
/// Fails for an invalid command line or setting (exit code 2).
pub fn run(args: &[String]) -> Result<ExitCode> {
    let args = match super::line("status", args)? {
        Ok(args) => args,
        Err(code) => return Ok(code),
    };
    let client = client::of(&args)?;
    let openwork = of_server(&client);
    let named = client.plan.opencode_url.as_deref().map(|url| of_opencode(&client, url));
    let opencode = named.or_else(|| managed(&openwork["status"]["opencode"]));
    let ok = |part: &Value| part["ok"] == true;
    let all = ok(&openwork) && opencode.as_ref().is_none_or(ok);
    let text = if args.json {
        let mut report = json!({ "ok": all, "openwork": openwork });
        if let Some(opencode) = opencode {
            report["opencode"] = opencode;
        }
        format!("{report:#}\n")
    } else {
        lines(&openwork) + &opencode.as_ref().map(opencode_line).unwrap_or_default()
    };
    super::print(&text);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn of_server(client: &ApiClient) -> Value {
    let url = &client.plan.url;
    let health = match client.call("GET", "/health", None) {
        Ok(health) => health,
        Err(error) => return json!({ "ok": false, "url": url, "error": error.message() }),
    };
    let mut report = json!({ "ok": health["ok"] == true, "url": url, "health": health });
    if client.plan.host_token.is_none() {
        return report;
    }
    // A server also responds to a client without a valid token, but then the report contains less information.
    match (client.call("GET", "/status", None), client.call("GET", "/approvals", None)) {
        (Ok(status), Ok(approvals)) => {
            report["status"] = status;
            report["approvals"] = approvals["items"].clone();
        }
        (Err(error), _) | (_, Err(error)) => report["error"] = json!(error.message()),
    }
    report
}

/// Returns the state of the OpenCode that the server runs, as the server reports it.
fn managed(state: &Value) -> Option<Value> {
    let word = state["state"].as_str()?;
    let mut report = state.clone();
    report["ok"] = json!(word == "running");
    if word != "running" {
        let end = state["lastEnd"].as_str().map(|end| format!(" ({end})")).unwrap_or_default();
        report["error"] = json!(format!("{word}{end}"));
    } else {
        report["health"] = json!({ "version": state["version"] });
    }
    Some(report)
}

fn of_opencode(client: &ApiClient, url: &str) -> Value {
    match client.look(&format!("{url}/global/health")) {
        // An OpenCode version without the health route responds with an HTML page.
        Ok(health) if health["healthy"] == true => json!({ "ok": true, "url": url, "health": health }),
        Ok(_) => json!({ "ok": false, "url": url, "error": "the program at this URL is not an OpenCode" }),
        Err(error) => json!({ "ok": false, "url": url, "error": error.message() }),
    }
}

fn lines(report: &Value) -> String {
    let text = |value: &Value| logging::one_line(value.as_str().unwrap_or("?"));
    if report["ok"] != true {
        return format!("OpenWork server {}: {}\n", text(&report["url"]), text(&report["error"]));
    }
    let seconds = report["health"]["uptimeMs"].as_u64().unwrap_or(0) / 1000;
    let (url, version) = (text(&report["url"]), text(&report["health"]["version"]));
    let mut all = format!("OpenWork server {url}: ok, version {version}, up for {seconds} s\n");
    if let Some(error) = report["error"].as_str() {
        all += &format!("{}\n", logging::one_line(error));
    }
    let status = &report["status"];
    if status.is_object() {
        let writes = if status["readOnly"] == true { "refused" } else { "taken" };
        let count = &status["workspaceCount"];
        let waiting = report["approvals"].as_array().map_or(0, Vec::len);
        let (mode, active) = (text(&status["approval"]["mode"]), text(&status["activeWorkspaceId"]));
        all += &format!("Writes are {writes}, approval is {mode}, {waiting} waiting\n");
        all += &format!("Workspaces: {count}, active is {active}\n");
    }
    all
}

fn opencode_line(report: &Value) -> String {
    let text = |value: &Value| logging::one_line(value.as_str().unwrap_or("?"));
    let url = text(&report["url"]);
    if report["ok"] == true {
        format!("OpenCode {url}: ok, version {}\n", text(&report["health"]["version"]))
    } else {
        format!("OpenCode {url}: {}\n", text(&report["error"]))
    }
}
