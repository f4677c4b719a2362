//! The agents' configuration in a workspace: the files of OpenCode, oh-my-opencode and Claude Code, with the content
//! that sandboxed.sh writes, as far as OpenCode accepts that content. Pure, except for reading the library.
//!
//! Differences from sandboxed.sh: a remote MCP server is `remote` with a `url`, because OpenCode refuses
//! sandboxed.sh's `http` with an `endpoint`; the workspace's variables, which may be secrets, are not copied into
//! files, because every command has them in its environment; the user's own OpenCode configuration on the host is not
//! included, because it contains the user's keys; and on the host the agents get no permissions that the user has not
//! granted.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map as Object, Value, json};

use super::merge::{SharedContent, SharedPart};
use crate::base::Result;
use crate::library::{Library, LibraryMap, TextKind, is_broken};
use crate::project::rules;
use crate::store::front_matter;
use crate::workspaces::kind::WorkspaceKind;
use crate::workspaces::record::WorkspaceView;

/// The tools that agents may use in a container without asking, as in sandboxed.sh.
const ALLOWED: [&str; 15] = [
    "read",
    "edit",
    "glob",
    "grep",
    "list",
    "bash",
    "task",
    "external_directory",
    "todowrite",
    "todoread",
    "question",
    "webfetch",
    "websearch",
    "codesearch",
    "lsp",
];

/// Returns whether berth configures agents in this workspace. It does so in every container, and on the host if the
/// workspace names skills, tools, plugins or MCP servers.
pub fn configures_agents(view: &WorkspaceView) -> bool {
    let named = [&view.skills, &view.tools, &view.plugins, &view.mcps];
    view.workspace_type == WorkspaceKind::Container || named.iter().any(|list| !list.is_empty())
}

/// Returns the files that berth shares with users, with berth's part of each file.
///
/// # Errors
/// Fails if the library cannot be read. Damaged entries are left out.
pub(super) fn shared_files(
    library: &Library,
    view: &WorkspaceView,
    skills: &BTreeSet<String>,
) -> Result<BTreeMap<String, SharedContent>> {
    let servers = servers(library, view)?;
    let mut files = BTreeMap::new();
    let opencode = opencode(library, view, skills, &servers)?;
    for path in ["opencode.json", ".opencode/opencode.json"] {
        files.insert(path.to_owned(), SharedContent::Keys(opencode.clone()));
    }
    let profile = view.config_profile.as_deref().unwrap_or("default");
    if let Some(profile) = library.oh_my_opencode(profile)? {
        let parts = profile.into_iter().map(|(key, value)| SharedPart::key(&[&key], value)).collect();
        files.insert(".opencode/oh-my-opencode.json".to_owned(), SharedContent::Keys(parts));
    }
    files.insert(".claude/settings.local.json".to_owned(), SharedContent::Keys(claude(view, &servers)));
    files.insert("CLAUDE.md".to_owned(), SharedContent::Block(instructions(view)));
    Ok(files)
}

/// Returns whether OpenCode accepts this command or agent. A file that OpenCode refuses would keep it from starting in
/// the whole workspace. OpenCode refuses, for example, agents of Claude Code whose `tools` are a list of words.
pub(super) fn opencode_takes(view: &WorkspaceView, kind: TextKind, name: &str, text: &str) -> bool {
    let key = if kind == TextKind::Command { "command" } else { "agent" };
    let checked = front_matter::parts(text).and_then(|(fields, _)| {
        rules::check_front_matter(key, name, &fields).map_err(|error| error.message().to_owned())
    });
    if let Err(why) = &checked {
        log::warn!("workspace {}: OpenCode refuses {key} {}, left out: {why}", view.id, name.escape_debug());
    }
    checked.is_ok()
}

/// Returns the workspace's MCP servers, by the name used in tool names. These are the servers that the workspace
/// names, or all enabled servers if it names none.
fn servers(library: &Library, view: &WorkspaceView) -> Result<BTreeMap<String, Object<String, Value>>> {
    let all = entries(library, view, LibraryMap::Mcps)?;
    let mut servers = BTreeMap::new();
    for (name, entry) in all {
        let enabled = entry["enabled"].as_bool().unwrap_or(true);
        let chosen = if view.mcps.is_empty() { enabled } else { view.mcps.contains(&name) };
        let Value::Object(entry) = entry else { continue };
        if !chosen || LibraryMap::Mcps.fault(&Value::Object(entry.clone())).is_some() {
            continue;
        }
        let plain = name.to_lowercase().replace('-', "_");
        let mut unique = plain.clone();
        for number in 2.. {
            if !servers.contains_key(&unique) {
                break;
            }
            unique = format!("{plain}_{number}");
        }
        servers.insert(unique, entry);
    }
    for name in view.mcps.iter().filter(|name| !name.trim().is_empty()) {
        if !servers.contains_key(&name.to_lowercase().replace('-', "_")) {
            log::warn!("workspace {}: MCP not found: {}", view.id, name.escape_debug());
        }
    }
    Ok(servers)
}

/// Reads one of the library's objects. A damaged object is logged and treated as empty.
fn entries(library: &Library, view: &WorkspaceView, map: LibraryMap) -> Result<Object<String, Value>> {
    match library.map(map) {
        Err(error) if is_broken(&error) => {
            log::warn!("workspace {}: {}", view.id, error.message());
            Ok(Object::new())
        }
        read => read,
    }
}

fn opencode(
    library: &Library,
    view: &WorkspaceView,
    skills: &BTreeSet<String>,
    servers: &BTreeMap<String, Object<String, Value>>,
) -> Result<Vec<SharedPart>> {
    let mut parts = vec![SharedPart::key(&["$schema"], "https://opencode.ai/config.json")];
    for (name, entry) in servers {
        let server = match entry["type"].as_str() {
            Some("local") => {
                let mut environment =
                    entry.get("env").and_then(Value::as_object).cloned().unwrap_or_default();
                environment.retain(|_, value| value.is_string());
                environment.extend(workspace_env(view));
                json!({"type": "local", "command": entry["command"], "environment": environment, "enabled": true})
            }
            _ => {
                let mut server = json!({"type": "remote", "url": entry["url"], "enabled": true});
                if let Some(Value::Object(headers)) = entry.get("headers") {
                    server["headers"] = Value::Object(headers.clone());
                }
                server
            }
        };
        match rules::check_mcp(name, &server) {
            Ok(()) => parts.push(SharedPart::key(&["mcp", name], server)),
            Err(error) => log::warn!("workspace {}: MCP {name}: {}", view.id, error.message()),
        }
    }
    let container = view.workspace_type == WorkspaceKind::Container;
    if container {
        parts.extend(
            ALLOWED.iter().chain(&["doom_loop"]).map(|tool| SharedPart::key(&["permission", tool], "allow")),
        );
    }
    if !view.skills.is_empty() {
        parts.push(SharedPart::key(&["permission", "skill", "*"], "deny"));
        parts.extend(skills.iter().map(|name| SharedPart::key(&["permission", "skill", name], "allow")));
    }
    if container {
        for (tool, on) in [
            ("Bash", true),
            ("bash", true),
            ("playwright_*", true),
            ("browser_*", true),
            ("workspace_*", false),
            ("desktop_*", false),
        ] {
            parts.push(SharedPart::key(&["tools", tool], on));
        }
    }
    if !view.plugins.is_empty() {
        let known = entries(library, view, LibraryMap::Plugins)?;
        for id in &view.plugins {
            let entry = known.get(id).filter(|entry| entry["enabled"].as_bool().unwrap_or(true));
            match entry.and_then(|entry| entry["package"].as_str()) {
                Some(package) => parts.push(SharedPart::item(&["plugin"], package)),
                None => log::warn!("workspace {}: plugin not found: {}", view.id, id.escape_debug()),
            }
        }
    }
    Ok(parts)
}

fn claude(view: &WorkspaceView, servers: &BTreeMap<String, Object<String, Value>>) -> Vec<SharedPart> {
    let mut parts = Vec::new();
    for (name, entry) in servers {
        let server = match entry["type"].as_str() {
            Some("local") => {
                let command = entry["command"].as_array().cloned().unwrap_or_default();
                let mut env = entry.get("env").and_then(Value::as_object).cloned().unwrap_or_default();
                env.extend(workspace_env(view));
                json!({"command": command.first(), "args": command.get(1..), "env": env})
            }
            _ => {
                let mut server = json!({"url": entry["url"]});
                if let Some(headers) = entry.get("headers") {
                    server["headers"] = headers.clone();
                }
                server
            }
        };
        parts.push(SharedPart::key(&["mcpServers", name], server));
    }
    if view.workspace_type == WorkspaceKind::Container {
        // Claude Code accepts no pattern in place of a server name (the rule `mcp__*` allows no tool), so each server
        // gets its own rule.
        let servers = servers.keys().map(|name| format!("mcp__{}", in_rules(name)));
        let tools = ["Bash", "Edit", "Write", "Read"].map(str::to_owned).into_iter();
        parts.extend(tools.chain(servers).map(|tool| SharedPart::item(&["permissions", "allow"], &tool)));
    }
    parts
}

/// Returns a server name in the form that Claude Code uses in tool names and rules.
fn in_rules(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
    name.chars().map(plain).collect()
}

/// Returns environment variables that describe the workspace to an MCP server.
fn workspace_env(view: &WorkspaceView) -> Object<String, Value> {
    let (kind, path) = match view.workspace_type {
        WorkspaceKind::Container => ("container", "/"),
        WorkspaceKind::Host => ("host", view.path.as_str()),
    };
    [
        ("SANDBOXED_SH_WORKSPACE", path),
        ("SANDBOXED_SH_WORKSPACE_NAME", view.name.as_str()),
        ("SANDBOXED_SH_WORKSPACE_ROOT", path),
        ("SANDBOXED_SH_WORKSPACE_TYPE", kind),
        ("WORKING_DIR", path),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), Value::from(value)))
    .collect()
}

fn instructions(view: &WorkspaceView) -> String {
    let (what, bash) = match view.workspace_type {
        WorkspaceKind::Container => {
            ("This is an isolated container.", "Bash runs inside the container, as root.")
        }
        WorkspaceKind::Host => ("This is a folder of the host itself.", "Bash runs on the host."),
    };
    format!("# sandboxed.sh Workspace\n\n{what}\n\n- {bash}\n- Skills are in `.claude/skills/`.\n")
}
