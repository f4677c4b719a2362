//! Decides which parts of a value or a text may be secrets. Replies to viewers, exports, audit lines and summaries all
//! use this module, so a value that is hidden in one of them is hidden in all. Pure; the time is linear in the size of
//! the input.
//!
//! A hidden part is replaced by [`HIDDEN`]. References such as `{env:KEY}` and `$KEY` contain no secret and stay
//! visible.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::{Map, Value};

use super::redact_text;

/// The text that replaces a value that may be a secret.
pub const HIDDEN: &str = "********";

/// Names of objects whose values are all hidden, whatever their keys.
const HOLDERS: [&str; 10] = [
    "env",
    "envvars",
    "environment",
    "headers",
    "secrets",
    "passwords",
    "credentials",
    "apikeys",
    "cookies",
    "querystring",
];

/// Keys of scripts. A script may hold secrets in any form, so the whole text is hidden.
const SCRIPTS: [&str; 1] = ["initscript"];

/// Keys of identifiers that a client sends back to the server. Their values are never changed.
const NAMES: [&str; 4] = ["id", "path", "paths", "directory"];

/// Suffixes of names of secrets, in lower case and without separators.
const SECRETS: [&str; 26] = [
    "apikey",
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "authorization",
    "credential",
    "credentials",
    "privatekey",
    "accesskey",
    "secretkey",
    "encryptionkey",
    "signingkey",
    "sharedkey",
    "masterkey",
    "accountkey",
    "authkey",
    "sshkey",
    "licensekey",
    "cookie",
    "connectionstring",
    "webhook",
    "webhookurl",
    "bearer",
    "signature",
];

/// Last words of names of secret environment variables, in capitals, such as `KEY` in `DEPLOY_KEY`.
const CAPITALS: [&str; 7] = ["KEY", "PAT", "PWD", "PASS", "AUTH", "DSN", "CREDS"];

/// Returns whether the name of a key, variable, header or option suggests that its value is a secret.
pub fn is_secret_name(name: &str) -> bool {
    // Names of secrets are short: only the last 64 bytes of a longer name are checked.
    let start = (0..=name.len().saturating_sub(64)).rev().find(|at| name.is_char_boundary(*at));
    let name = &name[start.unwrap_or(0)..];
    let plain = plain(name);
    let plain = plain.trim_end_matches(|c: char| c.is_ascii_digit());
    let last = name.rsplit(['_', '-']).next().unwrap_or(name);
    SECRETS.iter().any(|word| plain.ends_with(word)) || CAPITALS.contains(&last)
}

fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// Returns whether the text is a reference that OpenCode or a shell expands, or is hidden already.
pub fn is_reference(text: &str) -> bool {
    let text = text.trim();
    let text =
        ["Bearer ", "Basic ", "token "].iter().find_map(|word| text.strip_prefix(word)).unwrap_or(text);
    let whole = |start: &str, end: &str| {
        text.strip_prefix(start).is_some_and(|rest| rest.find(end) == Some(rest.len() - end.len()))
    };
    let variable = text.strip_prefix('$').is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    });
    text.is_empty()
        || text == HIDDEN
        || variable
        || whole("{env:", "}")
        || whole("{file:", "}")
        || whole("${", "}")
}

/// Hides values that look like secrets, and values that are known to be secrets.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    known: Vec<String>,
}

/// Minimum length of a known value: shorter values are likely to be ordinary words.
const KNOWN_BYTES: usize = 8;
/// Maximum number of known values. Each known value costs a pass over the text.
const KNOWN_VALUES: usize = 64;

impl Redactor {
    /// Returns a redactor that also hides these values wherever they appear.
    pub fn with_known_values<'a>(values: impl IntoIterator<Item = &'a str>) -> Redactor {
        let mut known: Vec<String> = values
            .into_iter()
            .filter(|value| value.len() >= KNOWN_BYTES && !value.starts_with('/') && !is_reference(value))
            .map(str::to_owned)
            .collect();
        // The longest value comes first, because a value may contain a shorter one.
        known.sort_unstable_by_key(|value| std::cmp::Reverse(value.len()));
        known.truncate(KNOWN_VALUES);
        Redactor { known }
    }

    /// Hides secrets in a text: assignments, headers, options, URLs and tokens of known formats.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut found = redact_text::secrets(text);
        for known in &self.known {
            found.extend(text.match_indices(known.as_str()).map(|(at, _)| at..at + known.len()));
        }
        hide(text, found)
    }

    /// Hides secrets in a value, in place.
    pub fn value(&self, value: &mut Value) {
        self.walk(value, "", false);
    }

    /// Hides secrets in the fields of an object.
    pub fn fields(&self, fields: &mut Map<String, Value>) {
        fields.iter_mut().for_each(|(key, value)| self.field(key, value, false));
    }

    /// Removes fields that are secrets and hides secrets inside longer texts. `place` is the path of `value`; the paths
    /// of all removed or changed values are appended to `omitted`.
    pub fn omit(&self, value: &mut Value, place: &mut Vec<String>, omitted: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                let held = place.last().is_some_and(|key| HOLDERS.contains(&plain(key).as_str()));
                fields.retain(|key, value| {
                    place.push(key.clone());
                    let hidden = |text: &str| !is_reference(text);
                    let gone = (held || is_secret_name(key)) && value.as_str().is_some_and(hidden);
                    if gone {
                        omitted.push(place.join("."));
                    } else {
                        self.omit(value, place, omitted);
                    }
                    place.pop();
                    !gone
                });
            }
            Value::Array(list) => {
                let before = list.clone();
                self.words(list);
                for (at, value) in list.iter_mut().enumerate() {
                    place.push(at.to_string());
                    if value.is_string() {
                        if *value != before[at] {
                            omitted.push(place.join("."));
                        }
                    } else {
                        self.omit(value, place, omitted);
                    }
                    place.pop();
                }
            }
            Value::String(text) => {
                if let Cow::Owned(hidden) = self.text(text) {
                    *text = hidden;
                    omitted.push(place.join("."));
                }
            }
            _ => {}
        }
    }

    fn field(&self, key: &str, value: &mut Value, held: bool) {
        let name = plain(key);
        let whole = held || is_secret_name(key) || SCRIPTS.contains(&name.as_str());
        match value {
            Value::String(text) if whole => {
                if !is_reference(text) {
                    HIDDEN.clone_into(text);
                }
            }
            // A number in an environment may be a secret, too.
            Value::Number(_) if held => *value = HIDDEN.into(),
            Value::String(_) if NAMES.contains(&name.as_str()) => {}
            _ => self.walk(value, key, held),
        }
    }

    fn walk(&self, value: &mut Value, key: &str, held: bool) {
        match value {
            Value::Object(fields) => {
                let held = held || HOLDERS.contains(&plain(key).as_str());
                fields.iter_mut().for_each(|(key, value)| self.field(key, value, held));
            }
            Value::Array(list) => {
                // Headers may be given as a list of pairs.
                let held = held || HOLDERS.contains(&plain(key).as_str());
                if held {
                    return list.iter_mut().for_each(|value| self.field("", value, true));
                }
                if NAMES.contains(&plain(key).as_str()) {
                    return;
                }
                self.words(list);
                let inner = list.iter_mut().filter(|value| !value.is_string());
                inner.for_each(|value| self.walk(value, "", false));
            }
            Value::String(text) => {
                if let Cow::Owned(hidden) = self.text(text) {
                    *text = hidden;
                }
            }
            _ => {}
        }
    }

    /// Redacts the words of a command line, in which an option and its value may be separate words.
    fn words(&self, list: &mut [Value]) {
        let mut after = redact_text::WordContext::Plain;
        for value in list {
            let Value::String(text) = value else {
                after = redact_text::WordContext::Plain;
                continue;
            };
            let secret = after.is_secret(text);
            after = redact_text::WordContext::after(text);
            if secret && !is_reference(text) {
                HIDDEN.clone_into(text);
            } else if let Cow::Owned(hidden) = self.text(text) {
                *text = hidden;
            }
        }
    }
}

/// Replaces each placeholder in `sent` by the value of `stored` for which the client saw the placeholder.
pub fn restore(sent: &mut Map<String, Value>, stored: &Map<String, Value>) {
    for (key, value) in sent {
        let Some(stored) = stored.get(key).filter(|_| value.to_string().contains(HIDDEN)) else { continue };
        let mut shown = Map::from_iter([(key.clone(), stored.clone())]);
        Redactor::default().fields(&mut shown);
        restore_value(value, &shown[key], stored);
    }
}

fn restore_value(sent: &mut Value, shown: &Value, stored: &Value) {
    match (sent, shown, stored) {
        (sent @ Value::String(_), shown, stored) if sent == shown => sent.clone_from(stored),
        (Value::Object(sent), Value::Object(shown), Value::Object(stored)) => {
            for (key, value) in sent {
                if let (Some(shown), Some(stored)) = (shown.get(key), stored.get(key)) {
                    restore_value(value, shown, stored);
                }
            }
        }
        (Value::Array(sent), Value::Array(shown), Value::Array(stored)) => {
            for ((value, shown), stored) in sent.iter_mut().zip(shown).zip(stored) {
                restore_value(value, shown, stored);
            }
        }
        _ => {}
    }
}

fn hide(text: &str, mut ranges: Vec<Range<usize>>) -> Cow<'_, str> {
    ranges.retain(|range| !range.is_empty() && &text[range.clone()] != HIDDEN);
    if ranges.is_empty() {
        return Cow::Borrowed(text);
    }
    ranges.sort_unstable_by_key(|range| range.start);
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    let mut ranges = ranges.into_iter().peekable();
    while let Some(mut range) = ranges.next() {
        while let Some(next) = ranges.next_if(|next| next.start < range.end) {
            range.end = range.end.max(next.end);
        }
        out.push_str(&text[at..range.start]);
        out.push_str(HIDDEN);
        at = range.end;
    }
    out.push_str(&text[at..]);
    Cow::Owned(out)
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
