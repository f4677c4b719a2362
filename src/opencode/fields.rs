//! Top-level fields of a JSON object, found while its bytes pass: a prompt can carry many megabytes, and what it says about
//! permissions and directories must be known before OpenCode has all of it. Right for JSON that OpenCode accepts; of any
//! other it accepts nothing. Pure.

use std::io::{self, Read};

use serde_json::Value;

use crate::base::{Error, Result};

/// The longest value that is read; a longer one is reported as unreadable.
const VALUE_BYTES: usize = 64 << 10;

/// The longest key that is compared, with room for one whose every letter is an escape.
const KEY_BYTES: usize = 256;

enum Capture {
    Nothing,
    Key,
    Value(&'static str),
}

/// Finds fields by name.
pub struct FieldScanner {
    names: &'static [&'static str],
    depth: u32,
    in_string: bool,
    escaped: bool,
    key_next: bool,
    capture: Capture,
    found: Option<&'static str>,
    token: Vec<u8>,
}

/// What is done with each field that is found; `None` stands for a value that cannot be read.
pub type FieldCheck<'a> = dyn Fn(&'static str, Option<Value>) -> Result<()> + 'a;

impl FieldScanner {
    /// Looks for these fields.
    pub fn new(names: &'static [&'static str]) -> FieldScanner {
        FieldScanner {
            names,
            depth: 0,
            in_string: false,
            escaped: false,
            key_next: false,
            capture: Capture::Nothing,
            found: None,
            token: Vec::new(),
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// That of `check`.
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
                b'"' => {
                    self.in_string = false;
                    if matches!(self.capture, Capture::Key) {
                        self.capture = Capture::Nothing;
                        self.found = self.named();
                    }
                }
                _ => {}
            }
            return Ok(());
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 && self.key_next {
                    self.key_next = false;
                    self.capture = Capture::Key;
                    self.token.clear();
                }
                self.keep(byte);
            }
            b':' if self.depth == 1 => {
                if let Some(name) = self.found.take() {
                    self.capture = Capture::Value(name);
                    self.token.clear();
                }
            }
            b',' if self.depth == 1 => {
                self.end(check)?;
                self.key_next = true;
            }
            b'{' | b'[' => {
                self.keep(byte);
                self.depth = self.depth.saturating_add(1);
                self.key_next = self.depth == 1 && byte == b'{';
            }
            b'}' | b']' => {
                if self.depth == 1 {
                    self.end(check)?;
                }
                self.depth = self.depth.saturating_sub(1);
                self.keep(byte);
            }
            byte => self.keep(byte),
        }
        Ok(())
    }

    fn keep(&mut self, byte: u8) {
        let most = match self.capture {
            Capture::Nothing => return,
            Capture::Key => KEY_BYTES,
            Capture::Value(_) => VALUE_BYTES,
        };
        // One more tells that it is too long.
        if self.token.len() <= most {
            self.token.push(byte);
        }
    }

    fn named(&self) -> Option<&'static str> {
        let key: String = serde_json::from_slice(&self.token).ok()?;
        self.names.iter().find(|name| **name == key).copied()
    }

    fn end(&mut self, check: &FieldCheck<'_>) -> Result<()> {
        let Capture::Value(name) = std::mem::replace(&mut self.capture, Capture::Nothing) else {
            return Ok(());
        };
        let whole = self.token.len() <= VALUE_BYTES;
        check(name, serde_json::from_slice(&self.token).ok().filter(|_| whole))
    }
}

/// A body whose fields are checked while it is read. A refusal ends it with an error, so that it is never complete.
pub struct CheckedBody<'a> {
    body: &'a mut dyn Read,
    scanner: FieldScanner,
    check: &'a FieldCheck<'a>,
    /// Why it was refused.
    pub refusal: Option<Error>,
}

impl<'a> CheckedBody<'a> {
    /// Has each field that `scanner` finds in `body` checked.
    pub fn new(body: &'a mut dyn Read, scanner: FieldScanner, check: &'a FieldCheck<'a>) -> CheckedBody<'a> {
        CheckedBody { body, scanner, check, refusal: None }
    }
}

impl Read for CheckedBody<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(buffer)?;
        if self.scanner.names.is_empty() {
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
        FieldScanner::new(&["tools", "permission"]).scan(text.as_bytes(), &check).unwrap();
        found.into_inner()
    }

    #[test]
    fn fields_of_the_outermost_object_are_found() {
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
            (r#"{"a":{"tools":1},"b":[["tools",1]]}"#, vec![]),
            ("", vec![]),
        ] {
            assert_eq!(found(text), want, "{text}");
        }
        let long = format!("{{\"tools\":\"{}\"}}", "x".repeat(VALUE_BYTES));
        assert_eq!(found(&long), [("tools", None)]);
    }
}
