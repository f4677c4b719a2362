//! Reads `server.json`: the keys of the table of settings, and the position of each key, so that a message can name
//! file, line and column. The file is plain JSON. An unknown key is an error, because otherwise it would silently
//! have no effect.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::login::UserJson;
use super::setting::{Setting, ValueKind};
use super::table::{USERS, WORKSPACE, settings};
use crate::base::json_keys::{self, KeyPosition, describe_type_error};
use crate::base::unknown_fields::unknown_name_message;
use crate::base::{Error, Result};

/// Maximum size of the file. A configuration is much smaller; a wrong path may name a disk image.
const FILE_BYTES: u64 = 1 << 20;

/// A value in the file.
pub(super) enum JsonValue {
    /// A string, a number or a boolean.
    Text(String),
    List(Vec<String>),
    Pairs(BTreeMap<String, String>),
}

/// The keys of the file; a `null` counts as absent. Not `Debug`, because tokens are among the values.
#[derive(Default)]
pub struct ServerJson {
    /// The values by the key of their row in the table, such as `approval.mode`.
    pub(super) values: BTreeMap<&'static str, JsonValue>,
    pub workspaces: Option<Vec<WorkspaceJson>>,
    pub users: Option<Vec<UserJson>>,
}

impl<'de> Deserialize<'de> for ServerJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ServerJson, D::Error> {
        let mut json = ServerJson::default();
        Members { prefix: "", json: &mut json }.deserialize(deserializer)?;
        Ok(json)
    }
}

/// Reads an object: the whole file, or the value of a key that is the prefix of other keys.
struct Members<'a> {
    prefix: &'a str,
    json: &'a mut ServerJson,
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let mut seen: Vec<String> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                return Err(M::Error::custom(format!("duplicate field `{key}`")));
            }
            let path = format!("{}{key}", self.prefix);
            let below = format!("{path}.");
            if path == WORKSPACE.key {
                self.json.workspaces = map.next_value()?;
            } else if path == USERS.key {
                self.json.users = map.next_value()?;
            } else if let Some(setting) = settings().find(|setting| setting.key == path) {
                if let Some(value) = value(setting, &mut map)? {
                    self.json.values.insert(setting.key, value);
                }
            } else if settings().any(|setting| setting.key.starts_with(&below)) {
                map.next_value_seed(Members { prefix: &below, json: &mut *self.json })?;
            } else {
                let known = settings().filter_map(|setting| setting.key.strip_prefix(self.prefix));
                let known = known.map(|key| key.split('.').next().unwrap_or(key).to_owned());
                let known: Vec<String> = known.filter(|key| !key.is_empty()).collect();
                return Err(M::Error::custom(unknown_name_message("field", &key, &known)));
            }
            seen.push(key);
        }
        Ok(())
    }
}

/// Returns the value of a setting's key.
fn value<'de, M: MapAccess<'de>>(setting: &Setting, map: &mut M) -> Result<Option<JsonValue>, M::Error> {
    Ok(match setting.kind {
        ValueKind::Pairs => map.next_value::<Option<_>>()?.map(JsonValue::Pairs),
        kind if setting.many || kind == ValueKind::List => {
            map.next_value::<Option<_>>()?.map(JsonValue::List)
        }
        ValueKind::Switch => text(map.next_value::<Option<bool>>()?),
        kind if kind.range().is_some() => text(map.next_value::<Option<u64>>()?),
        _ => map.next_value::<Option<_>>()?.map(JsonValue::Text),
    })
}

fn text(value: Option<impl ToString>) -> Option<JsonValue> {
    value.map(|value| JsonValue::Text(value.to_string()))
}

/// An entry of `workspaces` in the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkspaceJson {
    pub path: String,
    pub name: Option<String>,
    pub workspace_type: Option<String>,
    pub base_url: Option<String>,
    pub directory: Option<String>,
    pub opencode_username: Option<String>,
    pub opencode_password: Option<String>,
}

/// A configuration file that was read, or the fact that there is none.
#[derive(Default)]
pub struct ConfigFile {
    /// The path of the file; `None` if there is none.
    pub path: Option<PathBuf>,
    /// The content of the file.
    pub json: ServerJson,
    keys: Vec<KeyPosition>,
}

impl ConfigFile {
    /// Reads the file at `path`. Returns `None` if it does not exist.
    ///
    /// # Errors
    /// Fails, with file, line and column, if the file cannot be read, is not JSON, or has an unknown or ill-typed
    /// field.
    pub fn read(path: &Path) -> Result<Option<ConfigFile>> {
        let refuse = |problem: String| Error::config(path.display(), problem);
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(FILE_BYTES + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refuse(format!("cannot be read: {error}"))),
        }
        if bytes.len() as u64 > FILE_BYTES {
            return Err(refuse(format!("is larger than {FILE_BYTES} bytes, so it is no configuration file")));
        }
        let text = String::from_utf8(bytes).map_err(|_| refuse("is not UTF-8 text".into()))?;
        ConfigFile::parse(path, &text).map(Some)
    }

    fn parse(path: &Path, text: &str) -> Result<ConfigFile> {
        // Some editors write a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let refuse = |error: &serde_json::Error, problem: String| {
            Error::config(format!("{}:{}:{}", path.display(), error.line(), error.column()), problem)
        };
        // The text is parsed twice, because the scanner requires well-formed JSON within serde_json's limit on
        // nesting.
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| {
            let empty =
                if text.trim().is_empty() { "; the file is empty: write {} or remove it" } else { "" };
            refuse(&error, format!("not JSON: {error}{empty}"))
        })?;
        if !value.is_object() {
            // serde would also accept an array, with the fields in order.
            return Err(Error::config(format!("{}:1:1", path.display()), "must be an object: { … }"));
        }
        let keys = json_keys::keys(text.as_bytes());
        if let Some(mode) = value["approval"].as_str() {
            let mode = serde_json::Value::from(mode);
            let key =
                keys.iter().find(|key| key.path == "approval").map_or((1, 1), |key| (key.line, key.column));
            let place = format!("{}:{}:{}", path.display(), key.0, key.1);
            let problem = format!("approval: it is an object; write \"approval\": {{\"mode\": {mode}}}");
            return Err(Error::config(place, problem));
        }
        let json =
            serde_json::from_str(text).map_err(|error| refuse(&error, describe_type_error(&error, &keys)))?;
        Ok(ConfigFile { path: Some(path.to_path_buf()), json, keys })
    }

    /// Returns `FILE:LINE:COLUMN: KEY` for a field such as `approval.mode` or `workspaces[0].path`.
    pub fn place(&self, field: &str) -> String {
        let path = self.path.as_deref().unwrap_or(Path::new("server.json")).display();
        match self.keys.iter().find(|key| key.path == field) {
            Some(key) => format!("{path}:{}:{}: {field}", key.line, key.column),
            None => format!("{path}: {field}"),
        }
    }

    /// Returns the folder that relative paths in the file start from.
    pub fn folder(&self) -> &Path {
        self.path.as_deref().and_then(Path::parent).unwrap_or(Path::new("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        ConfigFile::parse(Path::new("/c/server.json"), text).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn complaints_name_file_line_column_and_key() {
        for (text, want) in [
            ("{\n \"hots\": 1}", "/c/server.json:2:7: unknown field `hots`"),
            ("{\"approval\":{\"timeout\":1}}", "/c/server.json:1:22: unknown field `timeout`"),
            ("{\"workspaces\":[{\"path\":\"/\",\"x\":1}]}", "/c/server.json:1:30: unknown field `x`"),
            ("{\n  \"port\": \"80\"\n}", "/c/server.json:2:14: port: invalid type: string"),
            ("{\"approval\":{\"timeoutMs\":-1}}", "/c/server.json:1:27: approval.timeoutMs: invalid value"),
            ("{\"workspaces\":[{}]}", "/c/server.json:1:17: missing field `path`"),
            ("{\"host\":\"a\",\"host\":\"b\"}", "/c/server.json:1:18: duplicate field `host`"),
            ("{\"host\":", "/c/server.json:1:8: not JSON: EOF"),
            ("", "/c/server.json:1:0: not JSON: EOF"),
            (
                " \n",
                "/c/server.json:2:0: not JSON: EOF while parsing a value at line 2 column 0; the file is empty",
            ),
            (
                "{\"approval\":\"auto\"}",
                "/c/server.json:1:2: approval: it is an object; write \"approval\": {\"mode\": \"auto\"}",
            ),
            (
                "{\"maxRuns\": \"1G\"}",
                "/c/server.json:1:16: maxRuns: invalid type: string \"1G\", expected u64; write a number",
            ),
            ("[]", "/c/server.json:1:1: must be an object"),
            ("{} x", "/c/server.json:1:4: not JSON: trailing characters"),
            ("// c\n{}", "/c/server.json:1:1: not JSON: expected value"),
        ] {
            let problem = problem(text);
            assert!(problem.starts_with(want), "{text:?}: {problem}");
        }
    }

    #[test]
    fn places_of_fields() {
        let text = "\u{feff}{\n  \"a\\\"\": [1, {\"x\": \"}{\"}],\n  \"workspaces\": [\n    {\"name\": null, \"path\": \"/\"}]}";
        let keys = json_keys::keys(text.trim_start_matches('\u{feff}').as_bytes());
        let found: Vec<_> = keys.iter().map(|key| (key.path.as_str(), key.line, key.column)).collect();
        let want = [
            ("a\"", 2, 3),
            ("a\"[1].x", 2, 15),
            ("workspaces", 3, 3),
            ("workspaces[0].name", 4, 6),
            ("workspaces[0].path", 4, 20),
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn absent_is_not_an_error_and_null_is_absent() {
        assert!(ConfigFile::read(Path::new("/nonexistent/server.json")).unwrap().is_none());
        assert!(ConfigFile::read(Path::new("/")).is_err());
        let file = ConfigFile::parse(Path::new("/c/s"), "{\"port\":null,\"token\":null}").unwrap();
        assert!(file.json.values.is_empty());
    }
}
