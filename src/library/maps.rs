//! The files `plugins.json` and `mcp/servers.json`. Each contains a JSON object whose keys are the names of entries.

use serde_json::{Map as Object, Value};

use super::Library;
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, redact};
use crate::store::jsonc;

/// One of the library's two files with JSON objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryMap {
    /// The file `plugins.json`.
    Plugins,
    /// The file `mcp/servers.json`.
    Mcps,
}

impl LibraryMap {
    fn path(self) -> &'static str {
        match self {
            LibraryMap::Plugins => "plugins.json",
            LibraryMap::Mcps => "mcp/servers.json",
        }
    }

    /// Returns the problem of an entry, or `None` if the entry is valid.
    pub(crate) fn fault(self, entry: &Value) -> Option<&'static str> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        let flag = entry.get("enabled").is_none_or(Value::is_boolean);
        match self {
            _ if !entry.is_object() => Some("is not an object"),
            _ if !flag => Some("has an `enabled` that is neither true nor false"),
            LibraryMap::Plugins if !text("package") => Some("has no `package`"),
            LibraryMap::Plugins => None,
            LibraryMap::Mcps => match entry.get("type").and_then(Value::as_str) {
                Some("local") => {
                    let command = entry.get("command").and_then(Value::as_array);
                    let good = command.is_some_and(|c| !c.is_empty() && c.iter().all(Value::is_string));
                    (!good).then_some("is local and has no `command`, a list of words")
                }
                Some("remote") => (!text("url")).then_some("is remote and has no `url`"),
                _ => Some("has a `type` that is neither local nor remote"),
            },
        }
    }
}

impl Library {
    /// Reads the object in one of the two files. The result is empty if the file does not exist.
    ///
    /// # Errors
    /// Fails with `Conflict` if the file is damaged; the message contains the position.
    pub fn map(&self, map: LibraryMap) -> Result<Object<String, Value>> {
        let Some(text) = self.read(map.path())? else { return Ok(Object::new()) };
        let refuse = |why: String| {
            let path = map.path();
            Error::new(
                Code::Conflict,
                format!("{path} in the library is not a JSON object: {why}; repair or remove it"),
            )
        };
        match jsonc::parse(&text).map_err(|fault| refuse(fault.message))? {
            Value::Object(entries) => Ok(entries),
            _ => Err(refuse("it is another kind of value".into())),
        }
    }

    /// Reads `configs/PROFILE/.opencode/oh-my-opencode.json`. Returns `None` if the file is missing or has no usable
    /// content.
    ///
    /// # Errors
    /// Fails if the library cannot be read.
    pub fn oh_my_opencode(&self, profile: &str) -> Result<Option<Object<String, Value>>> {
        if super::check_name(profile).is_err() {
            return Ok(None);
        }
        let path = format!("configs/{profile}/.opencode/oh-my-opencode.json");
        let Some(text) = self.read(&path)? else { return Ok(None) };
        match jsonc::parse(&text) {
            Ok(Value::Object(fields)) if !fields.is_empty() => Ok(Some(fields)),
            Ok(Value::Object(_)) => Ok(None),
            Ok(_) => {
                log::warn!("{path} in the library is not an object and is ignored");
                Ok(None)
            }
            Err(fault) => {
                log::warn!("{path} in the library is ignored: {}", fault.message);
                Ok(None)
            }
        }
    }

    /// Replaces the object in one of the two files.
    ///
    /// # Errors
    /// Fails with `InvalidPayload` and the name of the invalid entry.
    pub fn put_map(&self, map: LibraryMap, entries: &Object<String, Value>) -> Result<()> {
        for (name, entry) in entries {
            let fault = if name.trim().is_empty() { Some("has no name") } else { map.fault(entry) };
            if let Some(fault) = fault {
                let message = format!("The entry '{}' {fault}", name.escape_debug());
                return Err(Error::new(Code::InvalidPayload, message).detail("path", name.as_str()));
            }
        }
        let mut entries = entries.clone();
        redact::restore(&mut entries, &self.map(map).unwrap_or_default());
        let mut text = serde_json::to_string_pretty(&entries)
            .map_err(|error| Error::internal("library").with_source(error))?;
        text.push('\n');
        let _writes = lock(&self.writes);
        self.write(map.path(), &text)
    }
}
