//! MCP servers: the key `mcp` of OpenCode's configuration.

use serde::Serialize;
use serde_json::{Map, Value};

use super::config::path;
use super::reload::{ReloadAction, ReloadReason};
use super::site::ProjectSite;
use super::{Project, references, rules};
use crate::base::{Code, Error, Result, redact};

/// An MCP server in the configuration.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct McpServer {
    pub name: String,
    pub config: Value,
    /// The name of the configuration that defines the server.
    pub source: &'static str,
    /// Whether a pattern of `tools.deny` in the configuration matches the server's name.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disabled_by_tools: bool,
}

/// Checks a server's name.
///
/// # Errors
/// Fails with `InvalidMcpName` if the name is invalid.
pub fn check_name(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.starts_with('-') || !name.bytes().all(fits) {
        let message =
            "The name of an MCP server has letters, digits, '_' and '-', and does not begin with '-'";
        return Err(Error::new(Code::InvalidMcpName, message));
    }
    Ok(())
}

/// Checks a server's configuration.
///
/// # Errors
/// Fails with `InvalidMcpConfig` and the path of the invalid key in `details.path`.
pub fn check(name: &str, config: &Value) -> Result<()> {
    check_name(name)?;
    let refuse = |key: &str, message: &str| {
        Err(Error::new(Code::InvalidMcpConfig, message).detail("path", format!("mcp.{name}.{key}")))
    };
    match config["type"].as_str() {
        Some("local") => {
            let words = config["command"].as_array();
            if words
                .is_none_or(|words| words.first().is_none_or(|word| word.as_str().is_none_or(str::is_empty)))
            {
                return refuse(
                    "command",
                    "A local MCP server needs command, a list of the program and its arguments",
                );
            }
        }
        Some("remote") => {
            if config["url"].as_str().is_none_or(str::is_empty) {
                return refuse("url", "A remote MCP server needs url, a string");
            }
        }
        _ => return refuse("type", "The type of an MCP server is local or remote"),
    }
    rules::check_mcp(name, config)
}

impl Project {
    /// Lists the MCP servers, in the order of the configuration.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Project::opencode`].
    pub fn mcp(&self, site: &ProjectSite) -> Result<Vec<McpServer>> {
        let config = self.opencode(site)?;
        let denied: Vec<&str> = config
            .get("tools")
            .and_then(|tools| tools["deny"].as_array())
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let Some(Value::Object(servers)) = config.get("mcp") else { return Ok(Vec::new()) };
        let row = |(name, config): (&String, &Value)| McpServer {
            name: name.clone(),
            config: config.clone(),
            source: "config.project",
            disabled_by_tools: is_denied(name, &denied),
        };
        Ok(servers.iter().map(row).collect())
    }

    /// Adds or replaces an MCP server. Returns whether a server with this name already existed.
    ///
    /// # Errors
    /// Fails for the same reasons as [`check`] and [`Project::patch`].
    pub fn add_mcp(&self, site: &ProjectSite, name: &str, server: &Value) -> Result<bool> {
        check(name, server)?;
        let known = self.edit(site, |document, config| {
            check_section(config)?;
            let mut sent = Map::from_iter([(name.to_owned(), server.clone())]);
            if let Some(Value::Object(servers)) = config.get("mcp") {
                redact::restore(&mut sent, servers);
            }
            let all = Map::from_iter([("mcp".to_owned(), Value::Object(sent.clone()))]);
            references::check(&site.root, &all)?;
            document.set(&["mcp", name], &sent[name]);
            Ok(config.get("mcp").is_some_and(|servers| servers.get(name).is_some()))
        })?;
        let action = if known { ReloadAction::Updated } else { ReloadAction::Added };
        self.report_change(site, ReloadReason::Mcp, name, action, &path(&site.root));
        Ok(known)
    }

    /// Removes an MCP server. Returns whether it existed.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Project::patch`].
    pub fn remove_mcp(&self, site: &ProjectSite, name: &str) -> Result<bool> {
        let removed = self.edit(site, |document, _| Ok(document.remove(&["mcp", name])))?;
        if removed {
            self.report_change(site, ReloadReason::Mcp, name, ReloadAction::Removed, &path(&site.root));
        }
        Ok(removed)
    }
}

/// Refuses a configuration whose key `mcp` is not an object, so that an unexpected value is not overwritten.
fn check_section(config: &Map<String, Value>) -> Result<()> {
    match config.get("mcp") {
        None | Some(Value::Object(_)) => Ok(()),
        Some(_) => Err(Error::new(
            Code::InvalidConfig,
            "mcp in the configuration is not an object; correct it first",
        )
        .detail("path", "mcp")),
    }
}

fn is_denied(name: &str, patterns: &[&str]) -> bool {
    let forms = [
        format!("mcp.{name}"),
        format!("mcp.{name}.*"),
        format!("mcp:{name}"),
        format!("mcp:{name}:*"),
        "mcp.*".to_owned(),
        "mcp:*".to_owned(),
    ];
    patterns.iter().any(|pattern| forms.iter().any(|form| fits(pattern.as_bytes(), form.as_bytes())))
}

/// Matches a pattern with `*` and `?` against a text without slashes. Backtracks only to the last `*`, so that no
/// pattern takes exponential time.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == text[t] || pattern[p] == b'?') {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn deny_patterns_match_servers() {
        for (pattern, denied) in [
            ("mcp.a", true),
            ("mcp.a.*", true),
            ("mcp:a:*", true),
            ("mcp.*", true),
            ("mcp*", true),
            ("*", true),
            ("mcp.b", false),
            ("mcp.?", true),
            ("mcp.ab", false),
            ("MCP.a", false),
            ("", false),
        ] {
            assert_eq!(is_denied("a", &[pattern]), denied, "{pattern}");
        }
        let worst = "a*".repeat(200) + "b";
        assert!(!fits(worst.as_bytes(), "a".repeat(5000).as_bytes()));
    }

    #[test]
    fn invalid_servers_are_refused() {
        let code = |name: &str, config: Value| check(name, &config).map_err(|error| error.code());
        assert_eq!(code("a_B-1", json!({"type": "local", "command": ["x"]})), Ok(()));
        assert_eq!(code("-a", json!({})), Err(Code::InvalidMcpName));
        assert_eq!(code("a.b", json!({})), Err(Code::InvalidMcpName));
        for config in [
            json!({}),
            json!([]),
            json!(null),
            json!({"type": "sse", "url": "u"}),
            json!({"type": "local"}),
            json!({"type": "local", "command": []}),
            json!({"type": "local", "command": "x"}),
            json!({"type": "local", "command": ["x", null]}),
            json!({"type": "remote", "url": ""}),
            json!({"type": "remote", "url": "u", "headers": {"a": 1}}),
        ] {
            assert_eq!(code("a", config.clone()), Err(Code::InvalidMcpConfig), "{config}");
        }
    }
}
