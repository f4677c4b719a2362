//! Parses collections in brackets, and plain and quoted scalars.

use serde_json::{Map, Value};

use super::values::NodeKind;
use super::{YamlContext, YamlFields, YamlReader, YamlResult, is_blank, is_break, is_flow, is_space};

impl YamlReader<'_> {
    pub(super) fn flow_collection(&mut self, indent: isize) -> YamlResult<bool> {
        let (close, object) = match self.here() {
            b'[' => (b']', false),
            b'{' => (b'}', true),
            _ => return Ok(false),
        };
        let (tag, anchor) = (self.tag.clone(), self.anchor.clone());
        let (mut items, mut fields) = (Vec::new(), YamlFields::default());
        let mut separated = true;
        self.begin(&anchor, if object { Value::Object(Map::new()) } else { Value::Array(Vec::new()) });
        self.at += 1;
        while self.here() != 0 {
            self.skip(true)?;
            if self.here() == close {
                self.at += 1;
                let (kind, value) = if object {
                    (NodeKind::Mapping, Value::Object(fields.map))
                } else {
                    (NodeKind::Sequence, Value::Array(items))
                };
                self.finish(tag, anchor, kind, value);
                return Ok(true);
            }
            if !separated {
                return Err("a ',' is missing in a list or object in brackets".to_owned());
            }
            let explicit = self.here() == b'?' && is_space(self.byte(self.at + 1));
            if explicit {
                self.at += 1;
                self.skip(true)?;
            }
            let line = self.line;
            self.compose(indent, YamlContext::FlowIn, false, true)?;
            let (key_tag, key) = (self.tag.take(), std::mem::take(&mut self.value));
            self.skip(true)?;
            let mut pair = explicit;
            let mut value = Value::Null;
            if (explicit || self.line == line) && self.here() == b':' {
                pair = true;
                self.at += 1;
                self.skip(true)?;
                self.compose(indent, YamlContext::FlowIn, false, true)?;
                value = std::mem::take(&mut self.value);
            }
            if object {
                self.store(&mut fields, key_tag.as_deref(), key, value)?;
            } else if pair {
                let mut one = YamlFields::default();
                self.store(&mut one, key_tag.as_deref(), key, value)?;
                items.push(Value::Object(one.map));
            } else {
                items.push(key);
            }
            self.skip(true)?;
            separated = self.here() == b',';
            if separated {
                self.at += 1;
            }
        }
        Err("a list or object in brackets does not end".to_owned())
    }

    pub(super) fn plain(&mut self, indent: isize, in_flow: bool) -> YamlResult<bool> {
        let first = self.here();
        if is_space(first) || is_flow(first) || b"#&*!|>'\"%@`".contains(&first) {
            return Ok(false);
        }
        let ends = |byte: u8| is_space(byte) || (in_flow && is_flow(byte));
        if matches!(first, b'?' | b'-') && ends(self.byte(self.at + 1)) {
            return Ok(false);
        }
        let mut text = String::new();
        let (mut start, mut end) = (self.at, self.at);
        let mut line_before = None;
        while self.here() != 0 {
            let byte = self.here();
            match byte {
                b':' if ends(self.byte(self.at + 1)) => break,
                b'#' if self.at > 0 && is_space(self.byte(self.at - 1)) => break,
                b':' | b'#' => {}
                _ if (self.at == self.line_start && self.is_separator()) || (in_flow && is_flow(byte)) => {
                    break;
                }
                _ if is_break(byte) => {
                    let before = (self.line, self.line_start, self.line_indent);
                    self.skip(false)?;
                    if self.line_indent >= indent {
                        line_before = Some(before.0);
                        continue;
                    }
                    self.at = end;
                    (self.line, self.line_start, self.line_indent) = before;
                    break;
                }
                _ => {}
            }
            if let Some(before) = line_before.take() {
                self.capture(&mut text, start, end, false)?;
                fold(&mut text, self.line - before);
                (start, end) = (self.at, self.at);
            }
            if !is_blank(byte) {
                end = self.at + 1;
            }
            self.at += 1;
        }
        self.capture(&mut text, start, end, false)?;
        if text.is_empty() {
            return Ok(false);
        }
        (self.kind, self.value) = (Some(NodeKind::Scalar), Value::String(text));
        Ok(true)
    }

    pub(super) fn single_quoted(&mut self, indent: isize) -> YamlResult<bool> {
        if self.here() != b'\'' {
            return Ok(false);
        }
        let mut text = String::new();
        self.at += 1;
        let (mut start, mut end) = (self.at, self.at);
        while self.here() != 0 {
            match self.here() {
                b'\'' => {
                    self.capture(&mut text, start, self.at, true)?;
                    if self.step() != b'\'' {
                        (self.kind, self.value) = (Some(NodeKind::Scalar), Value::String(text));
                        return Ok(true);
                    }
                    start = self.at;
                    self.at += 1;
                    end = self.at;
                }
                _ => (start, end) = self.quoted_byte(&mut text, start, end, indent)?,
            }
        }
        Err("a text in quotes does not end".to_owned())
    }

    pub(super) fn double_quoted(&mut self, indent: isize) -> YamlResult<bool> {
        if self.here() != b'"' {
            return Ok(false);
        }
        let mut text = String::new();
        // As in JavaScript, two escaped surrogates form one character.
        let mut high = None;
        self.at += 1;
        let (mut start, mut end) = (self.at, self.at);
        while self.here() != 0 {
            match self.here() {
                b'"' => {
                    self.capture(&mut text, start, self.at, true)?;
                    self.at += 1;
                    (self.kind, self.value) = (Some(NodeKind::Scalar), Value::String(text));
                    return Ok(true);
                }
                b'\\' => {
                    if start < self.at {
                        high = None;
                    }
                    self.capture(&mut text, start, self.at, true)?;
                    self.at += 1;
                    if is_break(self.here()) {
                        self.skip(false)?;
                        high = None;
                    } else {
                        self.escape(&mut text, &mut high)?;
                    }
                    (start, end) = (self.at, self.at);
                }
                _ => (start, end) = self.quoted_byte(&mut text, start, end, indent)?,
            }
        }
        Err("a text in quotes does not end".to_owned())
    }

    /// Appends a byte of a quoted text that has no special meaning, or handles line breaks in the text.
    fn quoted_byte(
        &mut self,
        text: &mut String,
        start: usize,
        end: usize,
        _indent: isize,
    ) -> YamlResult<(usize, usize)> {
        if is_break(self.here()) {
            self.capture(text, start, end, true)?;
            let breaks = self.skip(false)?;
            fold(text, breaks);
            return Ok((self.at, self.at));
        }
        if self.at == self.line_start && self.is_separator() {
            return Err("a text in quotes does not end".to_owned());
        }
        self.at += 1;
        Ok((start, self.at))
    }

    fn escape(&mut self, text: &mut String, high: &mut Option<u32>) -> YamlResult<()> {
        let byte = self.here();
        let digits = match byte {
            b'x' => 2,
            b'u' => 4,
            b'U' => 8,
            _ => 0,
        };
        if digits == 0 {
            *high = None;
            text.push(match byte {
                b'0' => '\0',
                b'a' => '\u{7}',
                b'b' => '\u{8}',
                b't' | b'\t' => '\t',
                b'n' => '\n',
                b'v' => '\u{b}',
                b'f' => '\u{c}',
                b'r' => '\r',
                b'e' => '\u{1b}',
                b' ' | b'"' | b'/' | b'\\' => char::from(byte),
                b'N' => '\u{85}',
                b'_' => '\u{a0}',
                b'L' => '\u{2028}',
                b'P' => '\u{2029}',
                _ => return Err("a text in quotes has an unknown escape".to_owned()),
            });
            self.at += 1;
            return Ok(());
        }
        let mut code: u32 = 0;
        for _ in 0..digits {
            let digit = char::from(self.step()).to_digit(16);
            code = (code << 4) | digit.ok_or("an escape must have hexadecimal digits")?;
        }
        self.at += 1;
        let joined = match high.take() {
            Some(high) if (0xdc00..0xe000).contains(&code) => {
                // The new character replaces the replacement character that was written for the first surrogate.
                text.pop();
                0x10000 + ((high - 0xd800) << 10) + (code - 0xdc00)
            }
            _ => code,
        };
        if (0xd800..0xdc00).contains(&joined) {
            *high = Some(joined);
        }
        text.push(char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER));
        Ok(())
    }
}

/// Folds line breaks: a single line break becomes a space; of several line breaks, the first is dropped.
fn fold(text: &mut String, breaks: usize) {
    match breaks {
        0 => {}
        1 => text.push(' '),
        more => text.push_str(&"\n".repeat(more - 1)),
    }
}
