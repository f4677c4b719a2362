//! Validates values for OpenCode's configuration with OpenCode's own schemas, of an old version and of the newest
//! tested one, from `assets/opencode`. An invalid value would make OpenCode unusable for the whole project until it is
//! restarted, so berth does not write values that no version accepts. Pure.
//!
//! The version of OpenCode that will read the file is unknown. A key is valid if any version that defines it accepts
//! its value: the old version rejects more values (1.1.53 fails on unknown keys, which 1.18.34 ignores), and the
//! newest version defines more keys.

use std::fmt::Write as _;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use crate::base::{Code, Error, Result};

/// The versions of OpenCode whose schemas are used, newest first.
pub const VERSIONS: [&str; 2] = ["1.18.34", "1.1.53"];

static SCHEMAS: LazyLock<[Map<String, Value>; 2]> = LazyLock::new(|| {
    [
        include_str!("../../assets/opencode/config-1.18.34.json"),
        include_str!("../../assets/opencode/config-1.1.53.json"),
    ]
    // A unit test checks that the schemas can be parsed. A schema that cannot be parsed would be empty, so it would
    // define no keys and every key would be refused.
    .map(|text| serde_json::from_str(text).unwrap_or_default())
});

/// A value that no version of OpenCode accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// The path to the value: keys and list positions from the top of the configuration.
    pub path: Vec<String>,
    /// The expected value, in words.
    pub message: String,
}

impl Issue {
    fn at(path: &[String], message: impl Into<String>) -> Issue {
        Issue { path: path.to_vec(), message: message.into() }
    }

    /// Returns the path in the form `mcp.x.command.0`.
    pub fn dotted_path(&self) -> String {
        self.path.join(".")
    }
}

/// Checks top-level keys of `opencode.json`.
///
/// # Errors
/// Fails with `InvalidConfig`, the path of the first issue in `details.path`, and all issues.
pub fn check_config(config: &Map<String, Value>) -> Result<()> {
    refuse(Code::InvalidConfig, config.iter().flat_map(|(key, value)| issues(key, value)).collect())
}

/// Checks the configuration of one MCP server.
///
/// # Errors
/// Fails like [`check_config`], but with `InvalidMcpConfig`.
pub fn check_mcp(name: &str, config: &Value) -> Result<()> {
    let all = Map::from_iter([(name.to_owned(), config.clone())]);
    refuse(Code::InvalidMcpConfig, issues("mcp", &Value::Object(all)))
}

/// Checks the front matter of an agent's or command's file. A command's `template` is the file's text, so it is not
/// in the front matter.
///
/// # Errors
/// Fails like [`check_config`], but with `InvalidPayload`.
pub fn check_front_matter(key: &str, name: &str, matter: &Map<String, Value>) -> Result<()> {
    let mut matter = matter.clone();
    if key == "command" {
        matter.insert("template".into(), json!(""));
    }
    let all = Map::from_iter([(name.to_owned(), Value::Object(matter))]);
    refuse(Code::InvalidPayload, issues(key, &Value::Object(all)))
}

/// Returns the issues of a top-level key's value, or none if a version of OpenCode accepts the value.
pub fn issues(key: &str, value: &Value) -> Vec<Issue> {
    let path = [key.to_owned()];
    let mut first = None;
    for schemas in SCHEMAS.iter() {
        let Some(schema) = schemas.get("Config").and_then(|config| config["properties"].get(key)) else {
            continue;
        };
        let mut found = Vec::new();
        SchemaCheck { schemas }.value(schema, value, &mut path.to_vec(), &mut found);
        if found.is_empty() {
            return found;
        }
        first.get_or_insert(found);
    }
    first.unwrap_or_else(|| {
        vec![Issue::at(
            &path,
            format!("OpenCode does not support the key {:?}", key.chars().take(80).collect::<String>()),
        )]
    })
}

fn refuse(code: Code, issues: Vec<Issue>) -> Result<()> {
    let Some(first) = issues.first() else { return Ok(()) };
    let message = format!("OpenCode would not start with this: {}: {}", first.dotted_path(), first.message);
    let all: Vec<Value> =
        issues.iter().map(|issue| json!({ "path": issue.path, "message": issue.message })).collect();
    Err(Error::new(code, message).detail("path", first.dotted_path()).detail("issues", all))
}

struct SchemaCheck<'a> {
    schemas: &'a Map<String, Value>,
}

impl SchemaCheck<'_> {
    fn value(&self, schema: &Value, value: &Value, path: &mut Vec<String>, found: &mut Vec<Issue>) {
        if let Some(name) = schema["$ref"].as_str() {
            return self.value(self.schemas.get(name).unwrap_or(&Value::Null), value, path, found);
        }
        if let Some(choices) = schema["anyOf"].as_array() {
            return self.any_of(choices, value, path, found);
        }
        if is_reference(value) && takes_text(schema) {
            return;
        }
        if let Some(kind) = schema["type"].as_str() {
            if !is_a(kind, value) {
                return found.push(Issue::at(
                    path,
                    format!("expected {}, found {}", with_article(kind), kind_of(value)),
                ));
            }
        }
        if let Some(allowed) = words(schema) {
            if !allowed.contains(&value) {
                let list = allowed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return found.push(Issue::at(path, format!("expected one of {list}")));
            }
        }
        match value {
            Value::Number(number) => {
                if let Some(wrong) = bounds(schema, number.as_f64().unwrap_or(f64::NAN)) {
                    found.push(Issue::at(path, wrong));
                }
            }
            Value::String(text) if schema.get("pattern").is_some() && !is_color(text) => {
                found.push(Issue::at(path, "expected a color like #a0b1c2"));
            }
            Value::Array(list) => self.list(schema, list, path, found),
            Value::Object(fields) => self.object(schema, fields, path, found),
            _ => {}
        }
    }

    fn list(&self, schema: &Value, list: &[Value], path: &mut Vec<String>, found: &mut Vec<Issue>) {
        let count = list.len() as u64;
        let least = schema["minItems"].as_u64().unwrap_or(0);
        let most = schema["maxItems"].as_u64().unwrap_or(u64::MAX);
        if count < least || count > most {
            found.push(Issue::at(path, format!("expected a list of {least}")));
        }
        for (at, item) in list.iter().enumerate() {
            let schema = schema["prefixItems"].get(at).or_else(|| schema.get("items"));
            if let Some(schema) = schema {
                path.push(at.to_string());
                self.value(schema, item, path, found);
                path.pop();
            }
        }
    }

    fn object(
        &self,
        schema: &Value,
        fields: &Map<String, Value>,
        path: &mut Vec<String>,
        found: &mut Vec<Issue>,
    ) {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                path.push(name.to_owned());
                found.push(Issue::at(path, "it is missing"));
                path.pop();
            }
        }
        for (name, value) in fields {
            path.push(name.clone());
            match schema["properties"].get(name).or_else(|| schema.get("additionalProperties")) {
                Some(Value::Bool(false)) => found.push(Issue::at(path, "OpenCode does not support this key")),
                Some(schema) => self.value(schema, value, path, found),
                None => {}
            }
            path.pop();
        }
    }

    /// Reports the issues of the choice that matches best: the one that fails at the deepest path.
    fn any_of(&self, choices: &[Value], value: &Value, path: &mut Vec<String>, found: &mut Vec<Issue>) {
        let mut best: Option<(usize, usize, Vec<Issue>)> = None;
        for choice in choices {
            let mut here = Vec::new();
            self.value(choice, value, path, &mut here);
            if here.is_empty() {
                return;
            }
            // The field `type` selects the choice: if `type` differs, the client did not intend this choice.
            let other = here.iter().any(|issue| issue.path.last().is_some_and(|key| key == "type"));
            let deep = here.iter().map(|issue| issue.path.len()).max().unwrap_or(0);
            let rank = (if other { 0 } else { deep }, usize::MAX - here.len());
            if best.as_ref().is_none_or(|best| rank > (best.0, best.1)) {
                best = Some((rank.0, rank.1, here));
            }
        }
        let Some((_, _, issues)) = best else { return };
        if issues.iter().all(|issue| issue.path.len() == path.len()) {
            let wanted = choices.iter().map(|choice| self.name(choice)).collect::<Vec<_>>().join(" or ");
            return found.push(Issue::at(path, format!("expected {wanted}, found {}", kind_of(value))));
        }
        found.extend(issues);
    }

    fn name(&self, schema: &Value) -> String {
        if let Some(name) = schema["$ref"].as_str() {
            return self.name(self.schemas.get(name).unwrap_or(&Value::Null));
        }
        if let Some(choices) = schema["anyOf"].as_array() {
            return choices.iter().map(|choice| self.name(choice)).collect::<Vec<_>>().join(" or ");
        }
        match (words(schema), schema["type"].as_str()) {
            (Some(words), _) => words.iter().fold(String::new(), |mut list, word| {
                let _ = write!(list, "{}{word}", if list.is_empty() { "" } else { ", " });
                list
            }),
            (None, Some(kind)) => with_article(kind).to_owned(),
            (None, None) => "something else".to_owned(),
        }
    }
}

/// Returns whether a value contains a reference. OpenCode replaces references by variables or files before it parses
/// the configuration, so berth cannot check the values of references.
fn is_reference(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.contains("{env:") || text.contains("{file:"))
}

/// Returns whether the schema accepts a string. A reference is inside quotes, so its value never becomes a number.
fn takes_text(schema: &Value) -> bool {
    schema["type"] == "string" || words(schema).is_some_and(|words| words.iter().any(|word| word.is_string()))
}

fn words(schema: &Value) -> Option<Vec<&Value>> {
    let list = schema["enum"].as_array().map(|list| list.iter().collect());
    list.or_else(|| schema.get("const").map(|word| vec![word]))
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "number" => value.is_number(),
        // JavaScript has a single number type: 5.0 is an integer.
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "null" => value.is_null(),
        _ => true,
    }
}

fn with_article(kind: &str) -> &'static str {
    match kind {
        "string" => "a string",
        "boolean" => "true or false",
        "object" => "an object",
        "array" => "a list",
        "number" => "a number",
        "integer" => "a whole number",
        _ => "something else",
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn bounds(schema: &Value, number: f64) -> Option<String> {
    let bound = |name: &str| schema[name].as_f64();
    if let Some(least) = bound("minimum").filter(|least| number < *least) {
        return Some(format!("must be at least {least}"));
    }
    if let Some(most) = bound("maximum").filter(|most| number > *most) {
        return Some(format!("must be at most {most}"));
    }
    bound("exclusiveMinimum")
        .filter(|least| number <= *least)
        .map(|least| format!("must be more than {least}"))
}

/// Returns whether a text is a colour such as `#00ff00`. This is the only pattern in the schemas.
fn is_color(text: &str) -> bool {
    text.strip_prefix('#')
        .is_some_and(|hex| hex.len() == 6 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(key: &str, value: Value) -> String {
        issues(key, &value).first().map(Issue::dotted_path).unwrap_or_default()
    }

    #[test]
    fn values_that_both_versions_refuse_are_refused_with_their_path() {
        // Tested with both versions of OpenCode: with each of these values, `GET /config` fails.
        for (key, value, at) in [
            ("model", json!(null), "model"),
            ("plugin", json!("a"), "plugin"),
            ("plugin", json!("{env:PLUGINS}"), "plugin"),
            ("plugin", json!(["a", 1]), "plugin.1"),
            ("logLevel", json!("debug"), "logLevel"),
            ("command", json!({"a": {}}), "command.a.template"),
            ("command", json!({"a": {"template": "x", "model": null}}), "command.a.model"),
            ("agent", json!({"a": {"mode": "x"}}), "agent.a.mode"),
            ("agent", json!({"a": {"color": "red"}}), "agent.a.color"),
            ("permission", json!("x"), "permission"),
            ("permission", json!({"bash": {"*": "maybe"}}), "permission.bash.*"),
            ("tools", json!({"bash": "no"}), "tools.bash"),
            ("tools", json!({"deny": ["x"]}), "tools.deny"),
            ("autoupdate", json!("x"), "autoupdate"),
            ("layout", json!("x"), "layout"),
            ("instructions", json!("x"), "instructions"),
            ("mcp", json!({"a": {}}), "mcp.a.enabled"),
            ("mcp", json!({"a": {"type": "local", "command": "x"}}), "mcp.a.command"),
            ("mcp", json!({"a": {"type": "local", "command": ["x", 1]}}), "mcp.a.command.1"),
            ("mcp", json!({"a": {"type": "remote", "url": null}}), "mcp.a.url"),
            ("mcp", json!({"a": {"type": "remote", "url": "u", "timeout": 1.5}}), "mcp.a.timeout"),
            ("mcp", json!({"a": {"type": "remote", "url": "u", "timeout": 0}}), "mcp.a.timeout"),
            ("mcp", json!({"a": {"type": "local", "command": ["x"], "zzz": 1}}), "mcp.a.zzz"),
            ("provider", json!({"a": {"zz": 1}}), "provider.a.zz"),
            ("nonsense", json!(1), "nonsense"),
            ("model ", json!("a"), "model "),
        ] {
            assert_eq!(place(key, value.clone()), at, "{key}: {value}: {:?}", issues(key, &value));
        }
    }

    #[test]
    fn values_that_one_version_accepts_are_accepted() {
        for (key, value) in [
            ("$schema", json!("https://opencode.ai/config.json")),
            ("model", json!("a/b")),
            ("theme", json!("x")),
            ("keybinds", json!({"leader": "x"})),
            ("shell", json!("bash")),
            // Tested with both versions of OpenCode: they check the value of the variable, not the reference.
            ("share", json!("{env:SHARE}")),
            ("provider", json!({"a": {"options": {"apiKey": "{file:~/key}"}}})),
            ("plugin", json!(["a", ["b", {}]])),
            ("formatter", json!(true)),
            ("watcher", json!({"ignore": [], "new": 1})),
            ("command", json!({"a": {"template": "x", "variant": "v", "zzz": 1}})),
            ("agent", json!({"a": {"zzz": [null], "color": "#00Ff00", "temperature": 0.5}})),
            ("permission", json!({"bash": {"*": "ask", "git *": "allow"}, "mine": "deny"})),
            ("mcp", json!({"a": {"enabled": false}, "b": {"type": "local", "command": ["x"], "cwd": "/"}})),
            ("mcp", json!({"a": {"type": "remote", "url": "u", "oauth": false, "timeout": 5.0}})),
            ("lsp", json!({"a": {"command": ["x"], "extensions": [".x"]}, "b": {"disabled": true}})),
            ("experimental", json!({"x": 1})),
        ] {
            assert!(issues(key, &value).is_empty(), "{key}: {value}: {:?}", issues(key, &value));
        }
    }

    #[test]
    fn messages_name_the_expected_value() {
        let message = |key: &str, value: Value| issues(key, &value)[0].message.clone();
        assert_eq!(message("model", json!(null)), "expected a string, found null");
        assert_eq!(message("autoupdate", json!(1)), "expected true or false or \"notify\", found a number");
        assert!(message("foo", json!(1)).contains("does not support the key \"foo\""));
        let error = check_mcp("a", &json!({"type": "local", "command": "x"})).unwrap_err();
        assert_eq!(error.body()["details"]["path"], "mcp.a.command");
        assert_eq!(error.body()["details"]["issues"][0]["path"], json!(["mcp", "a", "command"]));
    }

    #[test]
    fn front_matter_is_checked_by_the_rules_of_its_file() {
        let matter = |value: Value| value.as_object().unwrap().clone();
        assert!(check_front_matter("command", "x", &matter(json!({"name": "x", "agent": "a"}))).is_ok());
        assert!(check_front_matter("command", "x", &matter(json!({"model": null}))).is_err());
        assert!(check_front_matter("agent", "x", &matter(json!({"tools": "Read, Grep"}))).is_err());
    }

    #[test]
    fn the_schemas_use_only_supported_keywords() {
        const KNOWN: [&str; 16] = [
            "$ref",
            "additionalProperties",
            "anyOf",
            "const",
            "enum",
            "exclusiveMinimum",
            "items",
            "maxItems",
            "maximum",
            "minItems",
            "minimum",
            "pattern",
            "prefixItems",
            "properties",
            "required",
            "type",
        ];
        fn walk(schema: &Value, schemas: &Map<String, Value>) {
            let Some(fields) = schema.as_object() else { return };
            for (word, value) in fields {
                match word.as_str() {
                    // The schema of a key is always a string, because all keys of objects are strings.
                    "propertyNames" => assert_eq!(value, &json!({"type": "string"})),
                    "pattern" => assert_eq!(value, "^#[0-9a-fA-F]{6}$"),
                    "$ref" => assert!(schemas.contains_key(value.as_str().unwrap()), "{value}"),
                    "properties" => {
                        value.as_object().unwrap().values().for_each(|value| walk(value, schemas))
                    }
                    "anyOf" | "prefixItems" => {
                        value.as_array().unwrap().iter().for_each(|value| walk(value, schemas));
                    }
                    _ => walk(value, schemas),
                }
                assert!(word == "propertyNames" || KNOWN.contains(&word.as_str()), "{word}");
            }
        }
        for schemas in SCHEMAS.iter() {
            assert!(schemas["Config"]["properties"]["mcp"].is_object());
            schemas.values().for_each(|schema| walk(schema, schemas));
        }
    }
}
