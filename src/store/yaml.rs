//! One YAML document as the JSON value that OpenCode's reader (js-yaml, schema of YAML 1.2) makes of it, within bounds.
//! The grammar is granit_parser's; what its events mean is decided here. Pure.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

use crate::base::limits;

/// Reads the document.
///
/// # Errors
/// What is wrong with it and in which line, for a person.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: limits::FRONT_MATTER_DEPTH,
        block_nesting_limit: limits::FRONT_MATTER_DEPTH,
    };
    let mut reader = Reader::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) =
            event.map_err(|error| format!("{} (line {})", error.info(), error.marker().line()))?;
        reader.take(event).map_err(|why| format!("{why} (line {})", span.start.line()))?;
    }
    Ok(reader.document.unwrap_or(Value::Null))
}

#[derive(Default)]
struct Reader {
    document: Option<Value>,
    open: Vec<Open>,
    anchors: HashMap<usize, Value>,
    nodes: usize,
    bytes: usize,
}

/// A collection that is not complete.
enum Open {
    List { anchor: usize, items: Vec<Value> },
    Object { anchor: usize, fields: Map<String, Value>, key: Option<String>, merged: Map<String, Value> },
}

impl Reader {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref())?;
                // JSON's keys are strings: what is a number or a word elsewhere is its own text here.
                let text = (style == ScalarStyle::Plain).then(|| text.into_owned());
                self.count(&value)?;
                self.place(value, anchor, text)
            }
            Event::Alias(anchor) => {
                let value =
                    self.anchors.get(&anchor).ok_or("an alias stands inside of what it names")?.clone();
                self.count(&value)?;
                self.place(value, 0, None)
            }
            Event::SequenceStart(_, anchor, tag) => {
                known(tag.as_deref(), &["seq"])?;
                self.open(Open::List { anchor, items: Vec::new() })
            }
            Event::MappingStart(_, anchor, tag) => {
                known(tag.as_deref(), &["map"])?;
                let (fields, merged) = (Map::new(), Map::new());
                self.open(Open::Object { anchor, fields, key: None, merged })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { anchor, items }) => self.place(Value::Array(items), anchor, None),
                Some(Open::Object { anchor, mut fields, merged, .. }) => {
                    for (key, value) in merged {
                        fields.entry(key).or_insert(value);
                    }
                    self.place(Value::Object(fields), anchor, None)
                }
                None => Ok(()),
            },
            Event::DocumentStart(..) if self.document.is_some() => {
                Err("there should be one document only".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, collection: Open) -> Result<(), String> {
        if self.open.len() == limits::FRONT_MATTER_DEPTH {
            return Err(format!("it is nested deeper than {}", limits::FRONT_MATTER_DEPTH));
        }
        self.count(&Value::Null)?;
        self.open.push(collection);
        Ok(())
    }

    /// Aliases can make megabytes of a few lines: everything is counted as often as it appears.
    fn count(&mut self, value: &Value) -> Result<(), String> {
        self.nodes += 1;
        match value {
            Value::String(text) => self.bytes += text.len(),
            Value::Array(items) => items.iter().try_for_each(|item| self.count(item))?,
            Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
                self.bytes += key.len();
                self.count(value)
            })?,
            _ => {}
        }
        if self.nodes > limits::FRONT_MATTER_NODES || self.bytes > limits::FRONT_MATTER_BYTES {
            return Err("it is too much".to_owned());
        }
        Ok(())
    }

    /// Puts a complete value where it belongs. `plain` is the text of a scalar without quotes.
    fn place(&mut self, value: Value, anchor: usize, plain: Option<String>) -> Result<(), String> {
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        match self.open.last_mut() {
            None => self.document = Some(value),
            Some(Open::List { items, .. }) => items.push(value),
            Some(Open::Object { fields, key, merged, .. }) => match key.take() {
                None => {
                    *key = Some(match (plain, value) {
                        (Some(text), _) | (None, Value::String(text)) => text,
                        _ => return Err("a key should be a word or a text in quotes".to_owned()),
                    });
                }
                Some(name) if name == "<<" => merge(merged, value)?,
                Some(name) if fields.contains_key(&name) => {
                    return Err(format!("'{}' is there twice", name.escape_debug()));
                }
                Some(name) => drop(fields.insert(name, value)),
            },
        }
        Ok(())
    }
}

/// `<<: *defaults` (https://yaml.org/type/merge.html): fields that the object does not have itself; the first wins.
fn merge(into: &mut Map<String, Value>, value: Value) -> Result<(), String> {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                into.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::Array(items) if items.iter().all(Value::is_object) => {
            items.into_iter().try_for_each(|item| merge(into, item))
        }
        _ => Err("'<<' should name an object".to_owned()),
    }
}

/// The tag's name if it is one of YAML's own and fits.
fn known<'a>(tag: Option<&'a Tag>, fitting: &[&str]) -> Result<Option<&'a str>, String> {
    match tag {
        None => Ok(None),
        Some(tag) if tag.is_yaml_core_schema() && fitting.contains(&tag.suffix()) => Ok(Some(tag.suffix())),
        Some(tag) => Err(format!("the tag '{}' is not known here", tag.to_string().escape_debug())),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let told = match tag {
        // A lone `!` says: as it is written.
        Some(tag) if tag.handle().is_empty() && tag.suffix() == "!" => Some("str"),
        tag => known(tag, &["str", "null", "bool", "int", "float"])?,
    };
    if told == Some("str") || (told.is_none() && style != ScalarStyle::Plain) {
        return Ok(text.into());
    }
    let value = plain(text);
    match told {
        None => Ok(value),
        Some("null") if value.is_null() => Ok(value),
        Some("bool") if value.is_boolean() => Ok(value),
        Some("int" | "float") if value.is_number() => Ok(value),
        Some(told) => Err(format!("'{}' is no {told}", text.escape_debug())),
    }
}

/// YAML 1.2, 10.3.2: the core schema. `y` and `no` are words.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| text.into(), Value::Number),
    }
}

fn number(text: &str) -> Option<Number> {
    let digits = text.trim_start_matches(['+', '-']);
    if text.len() - digits.len() > 1 {
        return None;
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            return digits
                .bytes()
                .all(|b| b.is_ascii_alphanumeric())
                .then(|| u64::from_str_radix(digits, radix).ok())?
                .map(Number::from);
        }
    }
    // The floats that Rust reads and YAML does not: words, and exponents without a digit before them.
    let starts = digits.starts_with(|c: char| c.is_ascii_digit())
        || (digits.starts_with('.') && digits[1..].starts_with(|c: char| c.is_ascii_digit()));
    if !starts || !digits.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) {
        return None;
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let whole = text.parse::<i64>().map(Number::from).or_else(|_| text.parse::<u64>().map(Number::from));
    whole.ok().or_else(|| text.parse().ok().and_then(Number::from_f64))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_those_of_the_core_schema() {
        for (text, want) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("Null", json!(null)),
            ("y", json!("y")),
            ("no", json!("no")),
            ("True", json!(true)),
            ("FALSE", json!(false)),
            ("tRue", json!("tRue")),
            ("12", json!(12)),
            ("+12", json!(12)),
            ("-12", json!(-12)),
            ("--12", json!("--12")),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("0x+1", json!("0x+1")),
            ("18446744073709551615", json!(u64::MAX)),
            ("1.5e3", json!(1500.0)),
            (".5", json!(0.5)),
            ("-.5", json!(-0.5)),
            ("1.", json!(1.0)),
            ("1e400", json!("1e400")),
            (".", json!(".")),
            ("1.2.3", json!("1.2.3")),
            ("inf", json!("inf")),
            (".nan", json!(".nan")),
            ("2026-11-25", json!("2026-11-25")),
            ("1_000", json!("1_000")),
            ("\"12\"", json!("12")),
            ("'true'", json!("true")),
            ("!!str 12", json!("12")),
            ("! 12", json!("12")),
            ("!!int 12", json!(12)),
            ("[a, [1], {b: }]", json!(["a", [1], {"b": null}])),
            ("|\n  two\n  lines\n", json!("two\nlines\n")),
            (">-\n  two\n  lines\n", json!("two lines")),
            ("a: &x {b: 1}\nc: *x\n", json!({"a": {"b": 1}, "c": {"b": 1}})),
            (
                "a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\n",
                json!({"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
            ),
            ("1: a\ntrue: b\n\"c d\": e\n", json!({"1": "a", "true": "b", "c d": "e"})),
            ("- a\n-\n- - b\n", json!(["a", null, ["b"]])),
        ] {
            assert_eq!(parse(text), Ok(want), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, want) in [
            ("a: 1\nb: 2\na: 3\n", "'a' is there twice (line 3)"),
            ("a: !!int x\n", "'x' is no int (line 1)"),
            ("a: !thing x\n", "the tag '!thing' is not known here (line 1)"),
            ("? [a]\n: b\n", "a key should be a word or a text in quotes (line 1)"),
            ("a: 1\n...\n---\nb: 1\n", "there should be one document only (line 3)"),
            ("a: {<<: 1}\n", "'<<' should name an object (line 1)"),
            ("a: &x [*x]\n", "an alias stands inside of what it names (line 1)"),
        ] {
            assert_eq!(parse(text), Err(want.to_owned()), "{text:?}");
        }
        assert!(parse("a: [\n").unwrap_err().contains("(line "));
    }

    #[test]
    fn what_grows_is_bounded() {
        let deep = "[".repeat(limits::FRONT_MATTER_DEPTH + 1);
        assert!(parse(&deep).is_err());
        let many = "- x\n".repeat(limits::FRONT_MATTER_NODES + 1);
        assert!(parse(&many).unwrap_err().contains("too much"));
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(30_000), "*a,".repeat(4));
        assert!(parse(&long).unwrap_err().contains("too much"));
    }
}
