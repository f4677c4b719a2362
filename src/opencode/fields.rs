//! Finds fields of a JSON object while its bytes are streamed: a prompt can be many megabytes long, and its
//! permissions, directories and files must be checked before OpenCode has the whole body. The scanner is correct for
//! all JSON that OpenCode accepts; OpenCode rejects any other body. Pure.

use std::io::{self, Read};

use serde_json::Value;

use crate::base::{Error, Result};

/// The maximum length of a value that is parsed. A longer value is reported as unreadable.
const VALUE_BYTES: usize = 64 << 10;

/// The maximum length of a key that is compared. It suffices for a field name of which every letter is escaped.
const KEY_BYTES: usize = 256;

/// The length of the prefix that is reported for a long string: enough for the scheme of a URL.
const PREFIX_BYTES: usize = 64;

enum FieldCapture {
    Nothing,
    /// A string. The string is a key if a colon follows.
    Text,
    /// The value of the field with this name, at this nesting depth.
    Value(&'static str, u32),
}

/// The names of the fields to report.
#[derive(Clone, Copy, Debug, Default)]
pub struct FieldNames {
    /// The fields to report in the outermost object.
    pub top: &'static [&'static str],
    /// The fields to report in nested objects, if their values are strings. For a long string only a prefix is
    /// reported.
    pub nested: &'static [&'static str],
}

/// A streaming scanner that reports fields by name.
pub struct FieldScanner {
    names: FieldNames,
    depth: u32,
    in_string: bool,
    escaped: bool,
    capture: FieldCapture,
    token: Vec<u8>,
}

/// A callback that is called for each field that is found. The value is `None` if it cannot be parsed.
pub type FieldCheck<'a> = dyn Fn(&'static str, Option<Value>) -> Result<()> + 'a;

impl FieldScanner {
    pub fn new(names: FieldNames) -> FieldScanner {
        let (capture, token) = (FieldCapture::Nothing, Vec::new());
        FieldScanner { names, depth: 0, in_string: false, escaped: false, capture, token }
    }

    /// Scans the next bytes of the body.
    ///
    /// # Errors
    /// Fails if `check` fails.
    pub fn scan(&mut self, bytes: &[u8], check: &FieldCheck<'_>) -> Result<()> {
        for byte in bytes {
            self.step(*byte, check)?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8, check: &FieldCheck<'_>) -> Result<()> {
        if self.in_string {
            self.keep(byte);
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(());
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if !matches!(self.capture, FieldCapture::Value(..)) {
                    self.capture = FieldCapture::Text;
                    self.token.clear();
                }
                self.keep(byte);
            }
            b':' => match self.named() {
                Some(name) => {
                    self.capture = FieldCapture::Value(name, self.depth);
                    self.token.clear();
                }
                None => self.keep(byte),
            },
            b',' => self.end(byte, check)?,
            b'{' | b'[' => {
                self.keep(byte);
                self.depth = self.depth.saturating_add(1);
            }
            b'}' | b']' => {
                self.end(byte, check)?;
                self.depth = self.depth.saturating_sub(1);
            }
            byte => self.keep(byte),
        }
        Ok(())
    }

    fn keep(&mut self, byte: u8) {
        let most = match self.capture {
            FieldCapture::Nothing => return,
            FieldCapture::Text => KEY_BYTES,
            FieldCapture::Value(..) => VALUE_BYTES,
        };
        // Keeping one byte more than the limit marks the token as too long.
        if self.token.len() <= most {
            self.token.push(byte);
        }
    }

    /// Returns the name of the field, if the token before the current `:` is one of the names to report.
    fn named(&self) -> Option<&'static str> {
        let names = if self.depth == 1 { self.names.top } else { self.names.nested };
        if !matches!(self.capture, FieldCapture::Text) || names.is_empty() || self.token.len() > KEY_BYTES {
            return None;
        }
        let key: String = serde_json::from_slice(&self.token).ok()?;
        names.iter().find(|name| **name == key).copied()
    }

    /// Reports the value that ends before `byte`, which is a separator of values.
    fn end(&mut self, byte: u8, check: &FieldCheck<'_>) -> Result<()> {
        match self.capture {
            FieldCapture::Value(name, depth) if depth == self.depth => {
                self.capture = FieldCapture::Nothing;
                let whole = self.token.len() <= VALUE_BYTES;
                let value = if whole {
                    serde_json::from_slice(&self.token).ok()
                } else {
                    self.prefix().filter(|_| depth > 1).map(Value::String)
                };
                check(name, value)
            }
            _ => {
                self.keep(byte);
                Ok(())
            }
        }
    }

    /// Returns the first bytes of a long string, up to its first escape.
    fn prefix(&self) -> Option<String> {
        let text = self.token.trim_ascii_start().strip_prefix(b"\"")?;
        let plain =
            text.iter().take(PREFIX_BYTES).take_while(|byte| byte.is_ascii_graphic() && **byte != b'\\');
        Some(plain.copied().map(char::from).collect())
    }
}

/// A body whose fields are checked while it is read. If a field is refused, reading fails, so the receiver never gets
/// a complete body.
pub struct CheckedBody<'a> {
    body: &'a mut dyn Read,
    scanner: FieldScanner,
    check: &'a FieldCheck<'a>,
    /// The error with which `check` refused the body.
    pub refusal: Option<Error>,
}

impl<'a> CheckedBody<'a> {
    pub fn new(body: &'a mut dyn Read, scanner: FieldScanner, check: &'a FieldCheck<'a>) -> CheckedBody<'a> {
        CheckedBody { body, scanner, check, refusal: None }
    }
}

impl Read for CheckedBody<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(buffer)?;
        if self.scanner.names.top.is_empty() && self.scanner.names.nested.is_empty() {
            return Ok(count);
        }
        if let Err(error) = self.scanner.scan(&buffer[..count], self.check) {
            self.refusal = Some(error);
            return Err(io::Error::other("the body was refused"));
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn found(text: &str) -> Vec<(&'static str, Option<Value>)> {
        let found = RefCell::new(Vec::new());
        let check = |name, value| {
            found.borrow_mut().push((name, value));
            Ok(())
        };
        let names = FieldNames { top: &["tools", "permission"], nested: &["url"] };
        FieldScanner::new(names).scan(text.as_bytes(), &check).unwrap();
        found.into_inner()
    }

    #[test]
    fn fields_are_found_at_their_depth() {
        let value = |text: &str| Some(serde_json::from_str::<Value>(text).unwrap());
        for (text, want) in [
            (r#"{"tools":{"a":true}}"#, vec![("tools", value(r#"{"a":true}"#))]),
            (
                r#" { "x" : [1,{"tools":2}] , "tools" : [ "}" , "\"" ] } "#,
                vec![("tools", value(r#"["}","\""]"#))],
            ),
            (
                r#"{"\u0074ools":1,"permission":"a,b"}"#,
                vec![("tools", value("1")), ("permission", value("\"a,b\""))],
            ),
            ("\u{feff}{\"tools\":null}", vec![("tools", value("null"))]),
            (r#"{"tools":1,"tools":2}"#, vec![("tools", value("1")), ("tools", value("2"))]),
            (r#"{"permission":"\ud800"}"#, vec![("permission", None)]),
            (r#"{"text":"\"tools\":1","y":"tools"}"#, vec![]),
            (r#"[{"tools":1}]"#, vec![]),
            (
                r#"{"url":"a","parts":["url",{"url" : "b"},{"x":{"\u0075rl":"c","y":[{"url":1}]}}]}"#,
                vec![("url", value("\"b\"")), ("url", value("\"c\"")), ("url", value("1"))],
            ),
            (r#"{"tools":{"url":["url"]}}"#, vec![("tools", value(r#"{"url":["url"]}"#))]),
            (r#"{"a":[{"text":"\"url\":1","b":"url"}]}"#, vec![]),
            (r#"{"a":{"tools":1},"b":[["tools",1]]}"#, vec![]),
            ("", vec![]),
        ] {
            assert_eq!(found(text), want, "{text}");
        }
        let long = format!("{{\"tools\":\"{}\"}}", "x".repeat(VALUE_BYTES));
        assert_eq!(found(&long), [("tools", None)]);
        let long = format!("{{\"a\":[{{\"url\": \"data:x;base64,\\u0041{}\"}}]}}", "x".repeat(VALUE_BYTES));
        assert_eq!(found(&long), [("url", value("\"data:x;base64,\""))]);
    }
}
