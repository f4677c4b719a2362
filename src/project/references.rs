//! References to files in OpenCode's configuration. OpenCode replaces each `{file:PATH}` before it parses the text,
//! and fails to start for every client if a file cannot be read (tested with 1.1.53 and 1.18.34): if the file is
//! missing, if it is a folder, or if a parent in its path is a file. Blanks are part of the path, and `{file:}` is not
//! a reference.
//!
//! berth checks only references to files of the workspace. It accepts a path that leads or may lead out of the
//! workspace without a check, so that the result reveals nothing about other files.

use serde_json::{Map, Value};

use crate::base::{Code, Error, Result};
use crate::store::beneath::Root;

/// The maximum number of references that are checked in a value. Further references are accepted unchecked.
const REFERENCES: usize = 1000;

/// Refuses references to files that the workspace does not have. The configuration file is in the workspace's top
/// folder.
///
/// # Errors
/// Fails with `InvalidConfig` and the path of the key in `details.path`.
pub fn check(root: &Root, config: &Map<String, Value>) -> Result<()> {
    match (ReferenceSearch { root, folder: "", left: REFERENCES }).fields(config, &mut Vec::new()) {
        None => Ok(()),
        Some((place, file)) => {
            let message = format!(
                "OpenCode would not start with this: {place}: there is no file {file:?} in the workspace; create it first"
            );
            Err(Error::new(Code::InvalidConfig, message).detail("path", place))
        }
    }
}

/// Returns whether a value of a configuration file in `folder` references a file that the workspace does not have.
pub fn is_broken(root: &Root, folder: &str, value: &Value) -> bool {
    ReferenceSearch { root, folder, left: REFERENCES }.value(value, &mut Vec::new()).is_some()
}

struct ReferenceSearch<'a> {
    root: &'a Root,
    folder: &'a str,
    left: usize,
}

/// The path of the value in the configuration, and the path of the missing file.
type BrokenReference = (String, String);

impl ReferenceSearch<'_> {
    fn fields(&mut self, fields: &Map<String, Value>, place: &mut Vec<String>) -> Option<BrokenReference> {
        fields.iter().find_map(|(key, value)| {
            place.push(key.clone());
            let found = self.text(key, place).or_else(|| self.value(value, place));
            place.pop();
            found
        })
    }

    fn value(&mut self, value: &Value, place: &mut Vec<String>) -> Option<BrokenReference> {
        match value {
            Value::String(text) => self.text(text, place),
            Value::Object(fields) => self.fields(fields, place),
            Value::Array(list) => list.iter().enumerate().find_map(|(at, value)| {
                place.push(at.to_string());
                let found = self.value(value, place);
                place.pop();
                found
            }),
            _ => None,
        }
    }

    fn text(&mut self, text: &str, place: &[String]) -> Option<BrokenReference> {
        if !text.contains("{file:") {
            return None;
        }
        // OpenCode searches for references in the text of the file, in which quotes and backslashes are escaped.
        let written = Value::from(text).to_string();
        let mut rest = written.as_str();
        while let Some((_, behind)) = rest.split_once("{file:") {
            let (path, behind) = behind.split_once('}')?;
            if !path.is_empty() && self.is_missing(path) {
                return Some((place.join("."), path.to_owned()));
            }
            rest = behind;
        }
        None
    }

    fn is_missing(&mut self, path: &str) -> bool {
        let Some(path) = self.beneath(path) else { return false };
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        match self.root.metadata(&path) {
            Ok(Some(found)) if found.is_file() => false,
            // The path may lead out of the workspace through a symbolic link, and files outside are not checked.
            Ok(_) => !self.has_link(&path),
            Err(_) => false,
        }
    }

    fn has_link(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        ends.into_iter().any(|end| self.root.is_link(&path[..end]).unwrap_or(true))
    }

    /// Returns the path relative to the workspace's top folder, or `None` if it leads out of the workspace.
    fn beneath(&self, path: &str) -> Option<String> {
        if path.starts_with(['/', '~']) {
            return None;
        }
        let mut parts: Vec<&str> = self.folder.split('/').filter(|part| !part.is_empty()).collect();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()?),
                part => parts.push(part),
            }
        }
        (!parts.is_empty()).then(|| parts.join("/"))
    }
}
