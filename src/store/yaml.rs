//! Parses one YAML document as OpenCode does (gray-matter with js-yaml 3.14, `safeLoad`), within bounds. YAML 1.2
//! parsers reject some of js-yaml's input or interpret it differently. Therefore the grammar is that of js-yaml, and
//! the productions have its names, its order and its leniency. Values are in [`values`]. Pure.

mod blocks;
mod flow;
mod values;

use std::collections::HashMap;

use serde_json::{Map, Value};

use self::values::{NodeKind, key_text, resolve};
use crate::base::limits;

pub(super) use self::values::timestamp_text;

/// Maximum nesting of lists and objects in front matter.
const FRONT_MATTER_DEPTH: usize = 32;

/// Parses the document. Returns `None` if the text contains no document.
///
/// # Errors
/// A description of the problem for people, with its line. The first line is line 1.
pub(super) fn parse(text: &str) -> Result<Option<Value>, String> {
    let mut text = text.to_owned();
    if !text.is_empty() && !text.ends_with(['\n', '\r']) {
        text.push('\n');
    }
    if let Some(at) = text.find('\0') {
        let line = text[..at].matches('\n').count() + 1;
        return Err(format!("the text contains a NUL byte (line {line})"));
    }
    let mut reader = YamlReader::new(&text);
    let read = reader.documents();
    read.map_err(|why| format!("{why} (line {})", reader.line + 1))
}

/// The context of a node; the last two allow block collections and scalars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum YamlContext {
    FlowIn,
    FlowOut,
    BlockIn,
    BlockOut,
}

type YamlResult<T> = Result<T, String>;

struct YamlReader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: usize,
    line_start: usize,
    /// Number of spaces at the start of the current line.
    line_indent: isize,
    /// The latest node: its properties, kind and value.
    tag: Option<String>,
    anchor: Option<String>,
    kind: Option<NodeKind>,
    value: Value,
    anchors: HashMap<String, Value>,
    handles: HashMap<String, String>,
    depth: usize,
    /// Number of values, each counted as often as aliases repeat it, because a few lines can expand to megabytes.
    nodes: usize,
    size: usize,
}

/// An object that is being parsed.
#[derive(Default)]
struct YamlFields {
    map: Map<String, Value>,
    /// Keys from a merge; the object's own keys replace them.
    merged: Map<String, Value>,
}

impl<'a> YamlReader<'a> {
    fn new(text: &'a str) -> YamlReader<'a> {
        YamlReader {
            text,
            bytes: text.as_bytes(),
            at: 0,
            line: 0,
            line_start: 0,
            line_indent: 0,
            tag: None,
            anchor: None,
            kind: None,
            value: Value::Null,
            anchors: HashMap::new(),
            handles: HashMap::new(),
            depth: 0,
            nodes: 0,
            size: 0,
        }
    }

    /// Returns the byte at `at`, or NUL after the end of the text.
    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn here(&self) -> u8 {
        self.byte(self.at)
    }

    fn step(&mut self) -> u8 {
        self.at += 1;
        self.here()
    }

    fn documents(&mut self) -> YamlResult<Option<Value>> {
        while self.here() == b' ' {
            self.line_indent += 1;
            self.at += 1;
        }
        let mut document = None;
        while self.at + 1 < self.bytes.len() {
            let value = self.document()?;
            if document.replace(value).is_some() {
                return Err("there should be one document only".to_owned());
            }
        }
        Ok(document)
    }

    fn document(&mut self) -> YamlResult<Value> {
        self.anchors.clear();
        self.handles.clear();
        let directives = self.directives()?;
        self.skip(true)?;
        if self.line_indent == 0 && self.bytes[self.at.min(self.bytes.len())..].starts_with(b"---") {
            self.at += 3;
            self.skip(true)?;
        } else if directives {
            return Err("a line of dashes should end the directives".to_owned());
        }
        self.compose(self.line_indent - 1, YamlContext::BlockOut, false, true)?;
        let value = std::mem::take(&mut self.value);
        self.skip(true)?;
        if self.at == self.line_start && self.is_separator() {
            if self.here() == b'.' {
                self.at += 3;
                self.skip(true)?;
            }
        } else if self.at + 1 < self.bytes.len() {
            return Err("the end is expected here".to_owned());
        }
        Ok(value)
    }

    /// Parses `%YAML` and `%TAG` and skips other directives. Returns whether the text had a directive.
    fn directives(&mut self) -> YamlResult<bool> {
        let mut any = false;
        while self.here() != 0 {
            self.skip(true)?;
            if self.line_indent > 0 || self.here() != b'%' {
                break;
            }
            any = true;
            let start = self.at;
            while !matches!(self.here(), b'\n' | b'\r' | 0) {
                self.at += 1;
            }
            let line = self.text[start..self.at].split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                ["%"] => return Err("a directive has no name".to_owned()),
                ["%YAML", version] if version.starts_with("1.") => {}
                ["%YAML", ..] => return Err("the YAML version is not supported".to_owned()),
                ["%TAG", handle, prefix] => drop(self.handles.insert(handle.to_owned(), prefix.to_owned())),
                ["%TAG", ..] => return Err("%TAG should have a handle and a prefix".to_owned()),
                _ => {}
            }
            if self.here() != 0 {
                self.line_break()?;
            }
        }
        Ok(any)
    }

    fn line_break(&mut self) -> YamlResult<()> {
        match self.here() {
            b'\n' => self.at += 1,
            b'\r' => self.at += 1 + usize::from(self.byte(self.at + 1) == b'\n'),
            _ => return Err("a line break is expected".to_owned()),
        }
        self.line += 1;
        self.line_start = self.at;
        Ok(())
    }

    /// Skips white space, line breaks and comments. Returns the number of line breaks.
    fn skip(&mut self, comments: bool) -> YamlResult<usize> {
        let mut breaks = 0;
        while self.here() != 0 {
            while is_blank(self.here()) {
                self.at += 1;
            }
            if comments && self.here() == b'#' {
                while !is_break(self.here()) && self.here() != 0 {
                    self.at += 1;
                }
            }
            if !is_break(self.here()) {
                break;
            }
            self.line_break()?;
            breaks += 1;
            self.line_indent = 0;
            while self.here() == b' ' {
                self.line_indent += 1;
                self.at += 1;
            }
        }
        Ok(breaks)
    }

    /// Returns whether the current line is `---` or `...`.
    fn is_separator(&self) -> bool {
        let rest = &self.bytes[self.at.min(self.bytes.len())..];
        let after = self.byte(self.at + 3);
        (rest.starts_with(b"---") || rest.starts_with(b"...")) && (after == 0 || is_space(after))
    }

    /// Appends a part of the input to the current scalar.
    fn capture(&mut self, scalar: &mut String, start: usize, end: usize, quoted: bool) -> YamlResult<()> {
        let piece = self.text.get(start..end).unwrap_or_default();
        let odd = |c: char| match c {
            '\t' => false,
            c if quoted => c < ' ',
            '\n' | '\r' | '\u{85}' => false,
            c => c < ' ' || matches!(c, '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}'),
        };
        if let Some(c) = piece.chars().find(|c| odd(*c)) {
            return Err(format!("the text contains the character {}", c.escape_unicode()));
        }
        self.size += piece.len();
        scalar.push_str(piece);
        self.check_size()
    }

    fn check_size(&self) -> YamlResult<()> {
        if self.nodes > limits::FRONT_MATTER_NODES || self.size > limits::FRONT_MATTER_BYTES {
            return Err("the document is too large".to_owned());
        }
        Ok(())
    }

    fn count(&mut self, value: &Value) -> YamlResult<()> {
        self.nodes += 1;
        match value {
            Value::String(text) => self.size += text.len(),
            Value::Array(items) => items.iter().try_for_each(|item| self.count(item))?,
            Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
                self.size += key.len();
                self.count(value)
            })?,
            _ => {}
        }
        self.check_size()
    }

    /// Parses a node into the registers. Returns whether the text had a node at this position.
    fn compose(
        &mut self,
        parent: isize,
        context: YamlContext,
        seek: bool,
        compact: bool,
    ) -> YamlResult<bool> {
        if self.depth == FRONT_MATTER_DEPTH {
            return Err(format!("the nesting is deeper than {}", FRONT_MATTER_DEPTH));
        }
        self.depth += 1;
        self.nodes += 1;
        self.check_size()?;
        let found = self.node(parent, context, seek, compact)?;
        self.depth -= 1;
        Ok(found)
    }

    fn node(&mut self, parent: isize, context: YamlContext, seek: bool, compact: bool) -> YamlResult<bool> {
        (self.tag, self.anchor, self.kind, self.value) = (None, None, None, Value::Null);
        let blocks = matches!(context, YamlContext::BlockIn | YamlContext::BlockOut);
        let mut collections = blocks;
        let mut indent = std::cmp::Ordering::Greater;
        let (mut new_line, mut found) = (false, false);
        if seek && self.skip(true)? > 0 {
            new_line = true;
            indent = self.line_indent.cmp(&parent);
        }
        if indent.is_gt() {
            while self.read_tag()? || self.read_anchor()? {
                collections = false;
                if self.skip(true)? > 0 {
                    new_line = true;
                    collections = blocks;
                    indent = self.line_indent.cmp(&parent);
                }
            }
        }
        collections = collections && (new_line || compact);
        if indent.is_gt() || context == YamlContext::BlockOut {
            let flow = if blocks { parent + 1 } else { parent };
            let block = isize::try_from(self.at - self.line_start).unwrap_or(isize::MAX);
            if indent.is_gt() {
                found = (collections && (self.block_sequence(block)? || self.block_mapping(block, flow)?))
                    || self.flow_collection(flow)?
                    || self.scalar(flow, blocks, context == YamlContext::FlowIn)?;
            } else if indent.is_eq() {
                found = collections && self.block_sequence(block)?;
            }
        }
        self.resolve()?;
        Ok(self.tag.is_some() || self.anchor.is_some() || found)
    }

    fn scalar(&mut self, flow: isize, blocks: bool, in_flow: bool) -> YamlResult<bool> {
        let mut found =
            (blocks && self.block_scalar(flow)?) || self.single_quoted(flow)? || self.double_quoted(flow)?;
        if !found && self.alias()? {
            found = true;
            if self.tag.is_some() || self.anchor.is_some() {
                return Err("an alias should have neither a tag nor an anchor".to_owned());
            }
        }
        if !found && self.plain(flow, in_flow)? {
            found = true;
            self.tag.get_or_insert_with(|| "?".to_owned());
        }
        self.remember();
        Ok(found)
    }

    /// Records the value under the node's anchor.
    fn remember(&mut self) {
        if let Some(anchor) = &self.anchor {
            self.anchors.insert(anchor.clone(), self.value.clone());
        }
    }

    /// Converts the current value to the type that its tag or its text determines.
    fn resolve(&mut self) -> YamlResult<()> {
        let Some(tag) = self.tag.take() else { return Ok(()) };
        let value = std::mem::take(&mut self.value);
        let (tag, value) = resolve(tag, self.kind, value)?;
        (self.tag, self.value) = (Some(tag), value);
        self.remember();
        Ok(())
    }

    fn read_tag(&mut self) -> YamlResult<bool> {
        if self.here() != b'!' {
            return Ok(false);
        }
        if self.tag.is_some() {
            return Err("a value has two tags".to_owned());
        }
        self.at += 1;
        if self.here() == b'<' {
            let start = self.at + 1;
            let end = self.text[start..].find('>').ok_or("a tag does not end")? + start;
            self.at = end + 1;
            self.tag = Some(self.text[start..end].to_owned());
            return Ok(true);
        }
        let start = self.at;
        while self.here() != 0 && !is_space(self.here()) {
            self.at += 1;
        }
        let whole = &self.text[start..self.at];
        if whole.contains([',', '[', ']', '{', '}']) {
            return Err("a tag contains an invalid character".to_owned());
        }
        let (handle, suffix) = match whole.split_once('!') {
            Some((handle, suffix)) => (format!("!{handle}!"), suffix),
            None => ("!".to_owned(), whole),
        };
        self.tag = Some(match (self.handles.get(&handle), handle.as_str()) {
            (Some(prefix), _) => format!("{prefix}{suffix}"),
            (None, "!") => format!("!{suffix}"),
            (None, "!!") => format!("tag:yaml.org,2002:{suffix}"),
            _ => return Err(format!("the tag '{}' is not supported", whole.escape_debug())),
        });
        Ok(true)
    }

    /// Parses the name of an anchor or alias.
    fn name(&mut self) -> YamlResult<String> {
        self.at += 1;
        let start = self.at;
        while self.here() != 0 && !is_space(self.here()) && !is_flow(self.here()) {
            self.at += 1;
        }
        match &self.text[start..self.at] {
            "" => Err("an anchor or alias has no name".to_owned()),
            name => Ok(name.to_owned()),
        }
    }

    fn read_anchor(&mut self) -> YamlResult<bool> {
        if self.here() != b'&' {
            return Ok(false);
        }
        if self.anchor.is_some() {
            return Err("a value has two anchors".to_owned());
        }
        self.anchor = Some(self.name()?);
        Ok(true)
    }

    fn alias(&mut self) -> YamlResult<bool> {
        if self.here() != b'*' {
            return Ok(false);
        }
        let name = self.name()?;
        let known = self.anchors.get(&name).cloned();
        let value = known.ok_or_else(|| format!("there is no anchor '{}'", name.escape_debug()))?;
        self.count(&value)?;
        self.value = value;
        self.skip(true)?;
        Ok(true)
    }

    /// Adds a field. The object's own fields replace those of a merge; a duplicate field is an error.
    fn store(
        &mut self,
        fields: &mut YamlFields,
        tag: Option<&str>,
        key: Value,
        value: Value,
    ) -> YamlResult<()> {
        let key = key_text(&key)?;
        self.size += key.len();
        if tag == Some("tag:yaml.org,2002:merge") {
            let sources = if let Value::Array(list) = value { list } else { vec![value] };
            for source in sources {
                // In js-yaml, the keys of a list would be its indices.
                let Value::Object(source) = source else {
                    return Err("'<<' should name an object".to_owned());
                };
                for (key, value) in source {
                    // As in js-yaml, a date has no fields.
                    if key == values::TIMESTAMP {
                        continue;
                    }
                    if !fields.map.contains_key(&key) {
                        fields.merged.insert(key.clone(), Value::Null);
                        fields.map.insert(key, value);
                    }
                }
            }
            return self.check_size();
        }
        if fields.merged.remove(&key).is_none() && fields.map.contains_key(&key) {
            return Err(format!("the key '{}' appears twice", key.escape_debug()));
        }
        fields.map.insert(key, value);
        self.check_size()
    }
}

fn is_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_space(byte: u8) -> bool {
    is_blank(byte) || is_break(byte)
}

fn is_flow(byte: u8) -> bool {
    matches!(byte, b',' | b'[' | b']' | b'{' | b'}')
}

#[cfg(test)]
#[path = "yaml/tests.rs"]
mod tests;
