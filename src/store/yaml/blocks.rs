//! Parses collections and scalars in block style.

use serde_json::Value;

use super::values::NodeKind;
use super::{YamlContext, YamlFields, YamlReader, YamlResult, is_blank, is_break, is_space};

/// How the line breaks at the end of a block scalar are treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chomping {
    Clip,
    Strip,
    Keep,
}

impl YamlReader<'_> {
    pub(super) fn block_sequence(&mut self, indent: isize) -> YamlResult<bool> {
        let (tag, anchor) = (self.tag.clone(), self.anchor.clone());
        let mut items = Vec::new();
        let mut found = false;
        self.begin(&anchor, Value::Array(Vec::new()));
        while self.here() == b'-' && is_space(self.byte(self.at + 1)) {
            found = true;
            self.at += 1;
            if self.skip(true)? > 0 && self.line_indent <= indent {
                items.push(Value::Null);
                continue;
            }
            let line = self.line;
            self.compose(indent, YamlContext::BlockIn, false, true)?;
            items.push(std::mem::take(&mut self.value));
            self.skip(true)?;
            if (self.line == line || self.line_indent > indent) && self.here() != 0 {
                return Err("an item of a list is not indented like the others".to_owned());
            }
            if self.line_indent < indent {
                break;
            }
        }
        if found {
            self.finish(tag, anchor, NodeKind::Sequence, Value::Array(items));
        }
        Ok(found)
    }

    pub(super) fn block_mapping(&mut self, indent: isize, flow: isize) -> YamlResult<bool> {
        let (tag, anchor) = (self.tag.clone(), self.anchor.clone());
        let mut fields = YamlFields::default();
        let mut key: (Option<String>, Value) = (None, Value::Null);
        let (mut explicit, mut found) = (false, false);
        self.begin(&anchor, Value::Object(serde_json::Map::new()));
        while self.here() != 0 {
            let (byte, line) = (self.here(), self.line);
            let compact;
            if matches!(byte, b'?' | b':') && is_space(self.byte(self.at + 1)) {
                if byte == b'?' {
                    if explicit {
                        self.store_key(&mut fields, &mut key, Value::Null)?;
                    }
                    (found, explicit, compact) = (true, true, true);
                } else if explicit {
                    (explicit, compact) = (false, true);
                } else {
                    return Err("a value has no key".to_owned());
                }
                self.at += 1;
            } else if self.compose(flow, YamlContext::FlowOut, false, true)? {
                if self.line != line {
                    if found {
                        return Err("a key must be on one line".to_owned());
                    }
                    (self.tag, self.anchor) = (tag, anchor);
                    return Ok(true);
                }
                while is_blank(self.here()) {
                    self.at += 1;
                }
                if self.here() == b':' {
                    if !is_space(self.step()) {
                        return Err("a space must follow the ':' of a key".to_owned());
                    }
                    if explicit {
                        self.store_key(&mut fields, &mut key, Value::Null)?;
                    }
                    (found, explicit, compact) = (true, false, false);
                    key = (self.tag.take(), std::mem::take(&mut self.value));
                } else if found {
                    return Err("a ':' is missing after a key".to_owned());
                } else {
                    (self.tag, self.anchor) = (tag, anchor);
                    return Ok(true);
                }
            } else {
                break;
            }
            if self.line == line || self.line_indent > indent {
                let mut value = Value::Null;
                if self.compose(indent, YamlContext::BlockOut, true, compact)? {
                    let read = std::mem::take(&mut self.value);
                    if explicit {
                        key.1 = read;
                    } else {
                        value = read;
                    }
                }
                if !explicit {
                    self.store_key(&mut fields, &mut key, value)?;
                }
                self.skip(true)?;
            }
            if self.line_indent > indent && self.here() != 0 {
                return Err("a field is not indented like the others".to_owned());
            }
            if self.line_indent < indent {
                break;
            }
        }
        if explicit {
            self.store_key(&mut fields, &mut key, Value::Null)?;
        }
        if found {
            self.finish(tag, anchor, NodeKind::Mapping, Value::Object(fields.map));
        }
        Ok(found)
    }

    fn store_key(
        &mut self,
        fields: &mut YamlFields,
        key: &mut (Option<String>, Value),
        value: Value,
    ) -> YamlResult<()> {
        let (tag, name) = std::mem::take(key);
        self.store(fields, tag.as_deref(), name, value)
    }

    /// Records the incomplete collection under its anchor, because an alias inside the collection may refer to it.
    pub(super) fn begin(&mut self, anchor: &Option<String>, empty: Value) {
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor.clone(), empty);
        }
    }

    pub(super) fn finish(
        &mut self,
        tag: Option<String>,
        anchor: Option<String>,
        kind: NodeKind,
        value: Value,
    ) {
        (self.tag, self.anchor, self.kind, self.value) = (tag, anchor, Some(kind), value);
        self.remember();
    }

    pub(super) fn block_scalar(&mut self, indent: isize) -> YamlResult<bool> {
        let folds = match self.here() {
            b'|' => false,
            b'>' => true,
            _ => return Ok(false),
        };
        let (chomping, width) = self.block_header()?;
        let mut detected = width.is_some();
        let mut wanted = width.map_or(indent, |width| indent + width - 1);
        let mut text = String::new();
        let (mut empty, mut begun, mut indented) = (0, false, false);
        while self.here() != 0 {
            self.line_break()?;
            self.line_indent = 0;
            while (!detected || self.line_indent < wanted) && self.here() == b' ' {
                self.line_indent += 1;
                self.at += 1;
            }
            if !detected && self.line_indent > wanted {
                wanted = self.line_indent;
            }
            if is_break(self.here()) {
                empty += 1;
                continue;
            }
            let lines = empty + usize::from(begun);
            if self.line_indent < wanted {
                match chomping {
                    Chomping::Keep => text.push_str(&"\n".repeat(lines)),
                    Chomping::Clip if begun => text.push('\n'),
                    _ => {}
                }
                break;
            }
            if !folds {
                text.push_str(&"\n".repeat(lines));
            } else if is_blank(self.here()) {
                indented = true;
                text.push_str(&"\n".repeat(lines));
            } else if indented {
                indented = false;
                text.push_str(&"\n".repeat(empty + 1));
            } else if empty > 0 {
                text.push_str(&"\n".repeat(empty));
            } else if begun {
                text.push(' ');
            }
            (begun, detected, empty) = (true, true, 0);
            let start = self.at;
            while !is_break(self.here()) && self.here() != 0 {
                self.at += 1;
            }
            self.capture(&mut text, start, self.at, false)?;
        }
        (self.kind, self.value) = (Some(NodeKind::Scalar), Value::String(text));
        Ok(true)
    }

    /// Parses the rest of the line of `|` or `>`: the treatment of the last line breaks, and the indentation.
    fn block_header(&mut self) -> YamlResult<(Chomping, Option<isize>)> {
        let (mut chomping, mut width) = (Chomping::Clip, None);
        loop {
            match self.step() {
                b'+' | b'-' if chomping != Chomping::Clip => {
                    return Err("a block of text has two chomping indicators".to_owned());
                }
                b'+' => chomping = Chomping::Keep,
                b'-' => chomping = Chomping::Strip,
                b'0' => return Err("the indentation of a block of text should be 1 to 9".to_owned()),
                b'1'..=b'9' if width.is_some() => {
                    return Err("the indentation of a block of text should be 1 to 9".to_owned());
                }
                digit @ b'1'..=b'9' => width = Some(isize::from(digit - b'0')),
                _ => break,
            }
        }
        if is_blank(self.here()) {
            while is_blank(self.here()) {
                self.at += 1;
            }
            if self.here() == b'#' {
                while !is_break(self.here()) && self.here() != 0 {
                    self.at += 1;
                }
            }
        }
        Ok((chomping, width))
    }
}
