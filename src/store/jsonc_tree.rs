//! An editable syntax tree of JSON with comments. **Invariant:** every byte of the text is in exactly one node, so
//! unchanged parts are written back unchanged. A change costs one lookup, and the text is built once for all changes,
//! so many changes of a large text take linear time.

use std::collections::HashMap;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged as _;
use serde_json::{Map, Value};

/// A value with all text that belongs to the value.
#[derive(Debug)]
pub(super) enum JsoncNode {
    /// A value that is neither an object nor a list, as it is written in the text.
    Leaf(String),
    Object(ItemList),
    Array(ItemList),
}

/// The items between two brackets.
#[derive(Debug, Default)]
pub(super) struct ItemList {
    items: Vec<ListItem>,
    /// White space and comments before the closing bracket.
    end: String,
    /// Whether a comma follows the last item.
    trailing: bool,
    /// Positions of the remaining items, by their key or, in a list, by their text. The index is built at the first
    /// lookup.
    index: Option<HashMap<String, Vec<usize>>>,
    live: usize,
}

#[derive(Debug)]
struct ListItem {
    /// White space and comments before the item, starting at the line after the previous item.
    before: String,
    key: Option<MemberKey>,
    value: JsoncNode,
    /// White space and comments between the item and its comma.
    after: String,
    comma: bool,
    /// White space and comments after the comma, up to the end of the line.
    tail: String,
    removed: bool,
}

#[derive(Debug)]
struct MemberKey {
    name: String,
    /// The name as it is written in the text, with all characters up to the value.
    written: String,
}

/// The layout in which new text is written.
#[derive(Clone, Debug)]
pub(super) struct TextStyle {
    unit: String,
    newline: &'static str,
}

impl TextStyle {
    pub(super) fn newline(&self) -> &str {
        self.newline
    }

    /// Detects the style of a text: the indentation of its first indented line, and its line endings.
    pub(super) fn from_text(text: &str) -> TextStyle {
        let indent = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
        let indented =
            text.lines().skip(1).find(|line| indent(line) > 0 && !line.trim_start().starts_with('*'));
        let unit = indented.map_or("  ", |line| &line[..indent(line)]);
        let unit = if unit.len() > 8 { "  " } else { unit };
        TextStyle { unit: unit.to_owned(), newline: if text.contains("\r\n") { "\r\n" } else { "\n" } }
    }
}

impl JsoncNode {
    /// Builds the tree of a value that was parsed from `text`.
    pub(super) fn read(text: &str, value: &ast::Value<'_>) -> JsoncNode {
        let range = value.range();
        match value {
            ast::Value::Object(object) => {
                let parts = object.properties.iter().map(|property| {
                    let (start, end) = (property.value.start(), property.value.end());
                    let written = text[property.range.start..start].to_owned();
                    let key = MemberKey { name: property.name.as_str().to_owned(), written };
                    (property.range.start, end, Some(key), &property.value)
                });
                JsoncNode::Object(ItemList::read(text, range.start, range.end, parts))
            }
            ast::Value::Array(array) => {
                let parts = array.elements.iter().map(|value| (value.start(), value.end(), None, value));
                JsoncNode::Array(ItemList::read(text, range.start, range.end, parts))
            }
            _ => JsoncNode::Leaf(text[range.start..range.end].to_owned()),
        }
    }

    /// Builds the tree of a new value with this indentation. Objects, and lists of objects, are written on several
    /// lines.
    pub(super) fn from_value(value: &Value, indent: &str, style: &TextStyle) -> JsoncNode {
        let inner = format!("{indent}{}", style.unit);
        let new_line = format!("{}{inner}", style.newline);
        let item = |before: String, key: Option<MemberKey>, value: &Value| {
            ListItem::new(before, key, JsoncNode::from_value(value, &inner, style))
        };
        let end = |broken: bool| if broken { format!("{}{indent}", style.newline) } else { String::new() };
        match value {
            Value::Object(fields) => {
                let items = fields
                    .iter()
                    .map(|(key, value)| item(new_line.clone(), Some(MemberKey::new(key)), value));
                JsoncNode::Object(ItemList::from_items(items.collect(), end(!fields.is_empty())))
            }
            Value::Array(values) => {
                let broken = values.iter().any(|value| value.is_object() || value.is_array());
                let before = |at: usize| match (broken, at) {
                    (true, _) => new_line.clone(),
                    (false, 0) => String::new(),
                    (false, _) => " ".to_owned(),
                };
                let items = values.iter().enumerate().map(|(at, value)| item(before(at), None, value));
                JsoncNode::Array(ItemList::from_items(items.collect(), end(broken)))
            }
            scalar => JsoncNode::Leaf(scalar.to_string()),
        }
    }

    /// Returns the value. If a key occurs several times, its last value counts.
    pub(super) fn value(&self) -> Value {
        match self {
            JsoncNode::Leaf(text) => {
                jsonc_parser::parse_to_serde_value(text, &super::PARSE_OPTIONS).unwrap_or_default()
            }
            JsoncNode::Object(list) => {
                let field = |item: &ListItem| Some((item.key.as_ref()?.name.clone(), item.value.value()));
                Value::Object(list.live().filter_map(field).collect::<Map<_, _>>())
            }
            JsoncNode::Array(list) => list.live().map(|item| item.value.value()).collect(),
        }
    }

    pub(super) fn write(&self, out: &mut String) {
        match self {
            JsoncNode::Leaf(text) => out.push_str(text),
            JsoncNode::Object(list) => list.write(out, '{', '}'),
            JsoncNode::Array(list) => list.write(out, '[', ']'),
        }
    }

    pub(super) fn object(&mut self) -> Option<&mut ItemList> {
        if let JsoncNode::Object(list) = self { Some(list) } else { None }
    }

    pub(super) fn array(&mut self) -> Option<&mut ItemList> {
        if let JsoncNode::Array(list) = self { Some(list) } else { None }
    }

    /// Returns the object. A value that is not an object becomes an empty object first.
    pub(super) fn object_or_set(&mut self) -> &mut ItemList {
        if !matches!(self, JsoncNode::Object(_)) {
            *self = JsoncNode::Object(ItemList::default());
        }
        match self {
            JsoncNode::Object(list) | JsoncNode::Array(list) => list,
            JsoncNode::Leaf(_) => unreachable!("it was set above"),
        }
    }
}

impl MemberKey {
    fn new(name: &str) -> MemberKey {
        MemberKey { name: name.to_owned(), written: format!("{}: ", Value::from(name)) }
    }
}

impl ListItem {
    fn new(before: String, key: Option<MemberKey>, value: JsoncNode) -> ListItem {
        ListItem {
            before,
            key,
            value,
            after: String::new(),
            comma: false,
            tail: String::new(),
            removed: false,
        }
    }

    /// Returns the item's indentation if it starts a line.
    fn indent(&self) -> Option<&str> {
        let (_, indent) = self.before.rsplit_once('\n')?;
        indent.trim().is_empty().then_some(indent)
    }

    fn name(&self) -> Option<String> {
        match (&self.key, &self.value) {
            (Some(key), _) => Some(key.name.clone()),
            (None, JsoncNode::Leaf(text)) if text.starts_with('"') => {
                self.value.value().as_str().map(str::to_owned)
            }
            _ => None,
        }
    }
}

impl ItemList {
    fn from_items(items: Vec<ListItem>, end: String) -> ItemList {
        ItemList { live: items.len(), items, end, trailing: false, index: None }
    }

    fn read<'a, 'b: 'a>(
        text: &str,
        start: usize,
        end: usize,
        parts: impl Iterator<Item = (usize, usize, Option<MemberKey>, &'a ast::Value<'b>)>,
    ) -> ItemList {
        let mut parts = parts.peekable();
        let mut list = ItemList::default();
        let mut at = start + 1;
        while let Some((from, to, key, value)) = parts.next() {
            let mut item = ListItem::new(text[at..from].to_owned(), key, JsoncNode::read(text, value));
            let next = parts.peek().map_or(end - 1, |(from, ..)| *from);
            let gap = &text[to..next];
            let comma = comma(gap);
            let behind = comma.map_or(0, |at| at + 1);
            let line = behind + line_end(&gap[behind..]);
            match comma {
                Some(comma) => {
                    gap[..comma].clone_into(&mut item.after);
                    gap[behind..line].clone_into(&mut item.tail);
                }
                None => gap[..line].clone_into(&mut item.after),
            }
            item.comma = comma.is_some();
            list.trailing = item.comma;
            list.items.push(item);
            at = to + line;
        }
        text[at..end - 1].clone_into(&mut list.end);
        list.live = list.items.len();
        list
    }

    fn live(&self) -> impl Iterator<Item = &ListItem> {
        self.items.iter().filter(|item| !item.removed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    fn positions(&mut self, name: &str) -> Vec<usize> {
        let items = &self.items;
        let index = self.index.get_or_insert_with(|| {
            let mut index: HashMap<String, Vec<usize>> = HashMap::with_capacity(items.len());
            for (at, item) in items.iter().enumerate().filter(|(_, item)| !item.removed) {
                if let Some(name) = item.name() {
                    index.entry(name).or_default().push(at);
                }
            }
            index
        });
        index.get(name).cloned().unwrap_or_default()
    }

    /// Returns whether a list contains this text.
    pub(super) fn has(&mut self, text: &str) -> bool {
        !self.positions(text).is_empty()
    }

    /// Returns the position of the member with this name. If the name occurs several times, readers use the last
    /// member; the other members are removed, so that a change takes effect.
    fn single_position(&mut self, name: &str) -> Option<usize> {
        let mut all = self.positions(name);
        let last = all.pop()?;
        all.into_iter().for_each(|at| self.remove_at(at));
        if let Some(index) = &mut self.index {
            index.insert(name.to_owned(), vec![last]);
        }
        Some(last)
    }

    /// Returns the value of a key.
    pub(super) fn get(&mut self, name: &str) -> Option<&mut JsoncNode> {
        let at = self.positions(name).pop()?;
        Some(&mut self.items[at].value)
    }

    /// Returns the value of a key, so that it can be changed, and its indentation. Creates the key if necessary.
    pub(super) fn entry(&mut self, name: &str, indent: &str, style: &TextStyle) -> (&mut JsoncNode, String) {
        let at = match self.single_position(name) {
            Some(at) => at,
            None => {
                self.append(Some(MemberKey::new(name)), indent, style, |_| JsoncNode::Leaf("null".to_owned()))
            }
        };
        let item = &mut self.items[at];
        let indent = item.indent().unwrap_or(indent).to_owned();
        (&mut item.value, indent)
    }

    /// Appends to a list.
    pub(super) fn push(&mut self, value: &Value, indent: &str, style: &TextStyle) {
        self.append(None, indent, style, |indent| JsoncNode::from_value(value, indent, style));
    }

    fn append(
        &mut self,
        key: Option<MemberKey>,
        above: &str,
        style: &TextStyle,
        value: impl FnOnce(&str) -> JsoncNode,
    ) -> usize {
        let last = self.items.last();
        let broken = match last {
            Some(last) => last.before.contains('\n') || self.end.contains('\n'),
            None => key.is_some() || self.end.contains('\n'),
        };
        let indent =
            last.and_then(ListItem::indent).map_or_else(|| format!("{above}{}", style.unit), str::to_owned);
        let before = match (broken, last) {
            (true, last) => {
                // Comments before the bracket stay above the new item.
                let comments =
                    if has_comment(&self.end) { self.end.trim_end().to_owned() } else { String::new() };
                if !comments.is_empty() || last.is_none() || !self.end.contains('\n') {
                    self.end = format!("{}{above}", style.newline);
                }
                format!("{comments}{}{indent}", style.newline)
            }
            (false, None) => String::new(),
            (false, Some(_)) => " ".to_owned(),
        };
        let mut item = ListItem::new(before, key, value(&indent));
        item.comma = self.trailing;
        let at = self.items.len();
        if let (Some(index), Some(name)) = (&mut self.index, item.name()) {
            index.entry(name).or_default().push(at);
        }
        self.items.push(item);
        self.live += 1;
        at
    }

    /// Removes a key, or a text from a list, with all its duplicates. Returns whether it existed.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let all = self.positions(name);
        all.iter().for_each(|at| self.remove_at(*at));
        if let Some(index) = &mut self.index {
            index.remove(name);
        }
        !all.is_empty()
    }

    /// Removes the items of a list that `wanted` rejects. Returns the number of removed items.
    pub(super) fn retain(&mut self, wanted: impl Fn(&Value) -> bool) -> usize {
        let unwanted: Vec<usize> = (0..self.items.len())
            .filter(|at| !self.items[*at].removed && !wanted(&self.items[*at].value.value()))
            .collect();
        unwanted.iter().for_each(|at| self.remove_at(*at));
        self.index = None;
        unwanted.len()
    }

    fn remove_at(&mut self, at: usize) {
        if !std::mem::replace(&mut self.items[at].removed, true) {
            self.live -= 1;
        }
    }

    fn write(&self, out: &mut String, open: char, close: char) {
        out.push(open);
        let last = self.items.iter().rposition(|item| !item.removed);
        // Comments above a removed item stay; the first remaining item starts where the first item was.
        let (mut comments, mut lead) = (String::new(), None);
        let mut first = true;
        for (at, item) in self.items.iter().enumerate() {
            if item.removed {
                if has_comment(&item.before) {
                    comments.push_str(item.before.trim_end());
                }
                lead.get_or_insert(item.before.as_str());
                continue;
            }
            let lead = lead.filter(|lead| first && !has_comment(lead) && !has_comment(&item.before));
            push_behind(out, &comments, lead.unwrap_or(&item.before));
            comments.clear();
            if let Some(key) = &item.key {
                out.push_str(&key.written);
            }
            item.value.write(out);
            let comma = last != Some(at) || self.trailing;
            if comma && item.comma {
                out.push_str(&item.after);
            }
            if comma {
                out.push(',');
            }
            // A new comma goes before a comment, which may extend to the end of its line.
            if !(comma && item.comma) {
                out.push_str(&item.after);
            }
            out.push_str(&item.tail);
            first = false;
        }
        if first && comments.is_empty() && !has_comment(&self.end) && !self.items.is_empty() {
            out.push(close);
            return;
        }
        push_behind(out, &comments, &self.end);
        out.push(close);
    }
}

/// Writes white space after comments, the last of which may extend to the end of its line.
fn push_behind(out: &mut String, comments: &str, blanks: &str) {
    out.push_str(comments);
    if !comments.is_empty() && !blanks.trim_start_matches([' ', '\t']).starts_with(['\n', '\r']) {
        out.push('\n');
    }
    out.push_str(blanks);
}

fn has_comment(blanks: &str) -> bool {
    blanks.contains('/')
}

/// Returns the length of a comment at the start of `text`, without its line ending.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find(['\n', '\r']).unwrap_or(text.len()));
    }
    let inner = text.strip_prefix("/*")?;
    Some(inner.find("*/").map_or(text.len(), |end| end + 4))
}

/// Returns the position of the comma between two items.
fn comma(gap: &str) -> Option<usize> {
    find(gap, |byte| byte == b',')
}

/// Returns the length of the part that belongs to the previous item's line; 0 if no line ends in it.
fn line_end(gap: &str) -> usize {
    find(gap, |byte| byte == b'\n' || byte == b'\r').unwrap_or(0)
}

fn find(gap: &str, wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let mut at = 0;
    while let Some(byte) = gap.as_bytes().get(at) {
        if wanted(*byte) {
            return Some(at);
        }
        at += if *byte == b'/' { comment(&gap[at..]).unwrap_or(1) } else { 1 };
    }
    None
}
