//! JSON with comments. It is parsed as a value, or edited so that the comments, the order and the layout of the other
//! parts stay. This module does not depend on the meaning of the keys. Pure. The texts come from workloads, so their
//! nesting is checked before any recursive code reads them.

#[path = "jsonc_tree.rs"]
mod tree;

use jsonc_parser::errors::{ParseError, ParseErrorKind};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::Value;

use self::tree::{ItemList, JsoncNode, TextStyle};

/// Maximum nesting of a configuration with comments. The parser recurses on a stack of 512 KiB; OpenCode's schema has
/// some ten levels.
const JSONC_DEPTH: usize = 64;

/// Maximum number of values in a text, including objects and lists. A configuration has a few hundred.
const MAX_ENTRIES: usize = 20_000;
/// Maximum length of a number or word.
const SCALAR_BYTES: usize = 1024;

/// A syntax error in JSON with comments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsoncError {
    /// The error's name in VS Code's parser, which the OpenWork server and OpenCode use.
    pub code: &'static str,
    /// The position of the error in bytes.
    pub offset: usize,
    /// The length of the erroneous part in bytes.
    pub length: usize,
    /// A message for people.
    pub message: String,
}

/// A text that can be edited key by key.
#[derive(Debug)]
pub struct JsoncDocument {
    root: JsoncNode,
    before: String,
    after: String,
    style: TextStyle,
    /// Whether the text started with a byte order mark. The mark is kept: OpenCode accepts it, and editors on Windows
    /// expect it.
    byte_order_mark: bool,
}

/// The result of looking up a path of keys.
#[derive(Debug, PartialEq)]
pub enum JsoncLookup {
    /// The path has no value, but a value can be set there.
    Missing,
    /// A value on the path is not an object, or is not a list where a list is needed.
    Blocked,
    Value(Value),
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// OpenCode's syntax (tested with 1.1.53 and 1.18.34): JSON with comments and trailing commas, and no other extensions.
const PARSE_OPTIONS: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_loose_object_property_names: false,
    allow_trailing_commas: true,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// Parses a text. An empty text is an empty object, as for OpenCode.
///
/// # Errors
/// The first syntax error.
pub fn parse(text: &str) -> Result<Value, JsoncError> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    check(text)?;
    match jsonc_parser::parse_to_serde_value(text, &PARSE_OPTIONS).map_err(|error| parse_error(&error))? {
        // The text is either the word `null`, or has no value at all.
        Value::Null => JsoncDocument::parse(text).map(|document| document.value()),
        value => Ok(value),
    }
}

impl JsoncDocument {
    /// Parses a text for editing.
    ///
    /// # Errors
    /// The first syntax error.
    pub fn parse(text: &str) -> Result<JsoncDocument, JsoncError> {
        let (byte_order_mark, text) = match text.strip_prefix(BYTE_ORDER_MARK) {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        check(text)?;
        let parsed = parse_to_ast(text, &CollectOptions::default(), &PARSE_OPTIONS)
            .map_err(|error| parse_error(&error))?;
        let style = TextStyle::from_text(text);
        Ok(match &parsed.value {
            Some(value) => {
                let range = jsonc_parser::common::Ranged::range(value);
                let (before, after) = (text[..range.start].to_owned(), text[range.end..].to_owned());
                JsoncDocument { root: JsoncNode::read(text, value), before, after, style, byte_order_mark }
            }
            None => {
                let comments = text.trim();
                let before = if comments.is_empty() {
                    String::new()
                } else {
                    format!("{comments}{}", style.newline())
                };
                JsoncDocument {
                    root: JsoncNode::Object(ItemList::default()),
                    before,
                    after: String::new(),
                    style,
                    byte_order_mark,
                }
            }
        })
    }

    /// Returns the current value. If a key occurs several times, its last value counts.
    pub fn value(&self) -> Value {
        self.root.value()
    }

    pub fn is_object(&self) -> bool {
        matches!(self.root, JsoncNode::Object(_))
    }

    /// Sets the value at a path of keys; a value on the path that is not an object becomes one.
    pub fn set(&mut self, path: &[&str], value: &Value) {
        let (mut node, mut indent) = (&mut self.root, String::new());
        for key in path {
            (node, indent) = node.object_or_set().entry(key, &indent, &self.style);
        }
        *node = JsoncNode::from_value(value, &indent, &self.style);
    }

    /// Removes the key at a path. Returns whether the key existed.
    pub fn remove(&mut self, path: &[&str]) -> bool {
        let Some((last, above)) = path.split_last() else { return false };
        self.node(above).and_then(JsoncNode::object).is_some_and(|object| object.remove(last))
    }

    /// Appends a value to the list at a path of keys. If the current value is not a list, it becomes one.
    pub fn push(&mut self, path: &[&str], value: &Value) {
        let (mut node, mut indent) = (&mut self.root, String::new());
        for key in path {
            (node, indent) = node.object_or_set().entry(key, &indent, &self.style);
        }
        if node.array().is_none() {
            *node = JsoncNode::Array(ItemList::default());
        }
        if let Some(list) = node.array() {
            list.push(value, &indent, &self.style);
        }
    }

    /// Removes the items of a list that `wanted` rejects. Returns the number of removed items.
    pub fn retain(&mut self, key: &str, wanted: impl Fn(&Value) -> bool) -> usize {
        self.node(&[key]).and_then(JsoncNode::array).map_or(0, |list| list.retain(wanted))
    }

    /// Removes a text from the list at a path of keys. Returns whether the list contained the text.
    pub fn remove_item(&mut self, path: &[&str], text: &str) -> bool {
        self.node(path).and_then(JsoncNode::array).is_some_and(|list| list.remove(text))
    }

    /// Looks up the value at a path of keys.
    pub fn lookup(&mut self, path: &[&str]) -> JsoncLookup {
        match self.reach(path) {
            Ok(Some(node)) => JsoncLookup::Value(node.value()),
            Ok(None) => JsoncLookup::Missing,
            Err(()) => JsoncLookup::Blocked,
        }
    }

    /// Looks up a text in the list at a path of keys.
    pub fn lookup_item(&mut self, path: &[&str], text: &str) -> JsoncLookup {
        match self.reach(path).map(|found| found.map(JsoncNode::array)) {
            Ok(Some(Some(list))) => match list.has(text) {
                true => JsoncLookup::Value(text.into()),
                false => JsoncLookup::Missing,
            },
            Ok(None) => JsoncLookup::Missing,
            Ok(Some(None)) | Err(()) => JsoncLookup::Blocked,
        }
    }

    /// Returns whether the value at a path of keys is an empty object or an empty list.
    pub fn is_empty(&mut self, path: &[&str]) -> bool {
        match self.node(path) {
            Some(JsoncNode::Object(list) | JsoncNode::Array(list)) => list.is_empty(),
            _ => false,
        }
    }

    /// Returns the text, ending with a newline.
    ///
    /// # Errors
    /// When the text could not be parsed again because it has too many or too deeply nested entries.
    pub fn text(&self) -> Result<String, JsoncError> {
        let mut text = if self.byte_order_mark { BYTE_ORDER_MARK.to_string() } else { String::new() };
        text += &self.before;
        self.root.write(&mut text);
        text += &self.after;
        if !text.ends_with('\n') {
            text.push_str(self.style.newline());
        }
        check(&text)?;
        Ok(text)
    }

    fn node(&mut self, path: &[&str]) -> Option<&mut JsoncNode> {
        self.reach(path).ok().flatten()
    }

    /// Returns the node at a path of keys; `Err` if a value on the path is not an object.
    fn reach(&mut self, path: &[&str]) -> Result<Option<&mut JsoncNode>, ()> {
        let mut node = &mut self.root;
        for key in path {
            match node.object().ok_or(())?.get(key) {
                Some(next) => node = next,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }
}

/// Rejects nesting that could overflow the stack, and more entries than any configuration has.
fn check(text: &str) -> Result<(), JsoncError> {
    let (mut depth, mut entries, mut rest) = (0_usize, 0_usize, text);
    while let Some(at) = rest.find(['"', '/', '[', '{', ']', '}', ',']) {
        let offset = text.len() - rest.len() + at;
        check_scalar(&rest[..at], offset - at)?;
        let found = &rest[at..];
        let skip = match found.as_bytes() {
            [b'"', ..] => string_length(found),
            [b'/', b'/', ..] => found.find('\n').unwrap_or(found.len()),
            [b'/', b'*', ..] => found[2..].find("*/").map_or(found.len(), |end| end + 4),
            [b'[' | b'{', ..] => {
                (depth, entries) = (depth + 1, entries + 1);
                1
            }
            [b']' | b'}', ..] => {
                depth = depth.saturating_sub(1);
                1
            }
            [b',', ..] => {
                entries += 1;
                1
            }
            _ => 1,
        };
        if depth > JSONC_DEPTH {
            let message = format!("The nesting is deeper than {} levels", JSONC_DEPTH);
            return Err(JsoncError { code: "NestingTooDeep", offset, length: 1, message });
        }
        if entries > MAX_ENTRIES {
            let message = format!("There are more than {MAX_ENTRIES} entries");
            return Err(JsoncError { code: "TooManyEntries", offset, length: 1, message });
        }
        rest = &found[skip..];
    }
    check_scalar(rest, text.len() - rest.len())
}

/// Rejects long numbers and words: parsing a number or word of a megabyte takes seconds.
fn check_scalar(text: &str, offset: usize) -> Result<(), JsoncError> {
    if text.len() <= SCALAR_BYTES || text.trim().len() <= SCALAR_BYTES {
        return Ok(());
    }
    let message = format!("A number or word is longer than {SCALAR_BYTES} bytes");
    Err(JsoncError { code: "InvalidNumberFormat", offset, length: text.len(), message })
}

/// Returns the length of the string at the start of `text`, including its quotes.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn parse_error(error: &ParseError) -> JsoncError {
    use ParseErrorKind as Kind;
    let code = match error.kind() {
        Kind::ExpectedColonAfterObjectKey => "ColonExpected",
        Kind::ExpectedObjectValue => "ValueExpected",
        Kind::ExpectedComma => "CommaExpected",
        Kind::UnterminatedArray => "CloseBracketExpected",
        Kind::UnterminatedObject => "CloseBraceExpected",
        Kind::MultipleRootJsonValues => "EndOfFileExpected",
        Kind::UnterminatedCommentBlock => "UnexpectedEndOfComment",
        Kind::String(_) => "UnexpectedEndOfString",
        Kind::ExpectedStringObjectProperty | Kind::UnexpectedTokenInObject => "PropertyNameExpected",
        Kind::ExpectedDigit
        | Kind::ExpectedDigitFollowingNegativeSign
        | Kind::ExpectedPlusMinusOrDigitInNumberLiteral
        | Kind::BareDecimalPointNumbersNotAllowed
        | Kind::HexadecimalNumbersNotAllowed
        | Kind::NonFiniteNumbersNotAllowed
        | Kind::UnaryPlusNumbersNotAllowed => "InvalidNumberFormat",
        Kind::UnexpectedComma | Kind::UnexpectedCloseBrace | Kind::UnexpectedCloseBracket => "ValueExpected",
        _ => "InvalidSymbol",
    };
    let range = error.range();
    JsoncError {
        code,
        offset: range.start,
        length: range.end.saturating_sub(range.start),
        message: format!(
            "line {}, column {}: {}",
            error.line_display(),
            error.column_display(),
            error.kind()
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn edited(text: &str, change: impl Fn(&mut JsoncDocument)) -> String {
        let mut document = JsoncDocument::parse(text).unwrap();
        change(&mut document);
        document.text().unwrap()
    }

    #[test]
    fn edit_keeps_everything_else() {
        let text = "{\n  // who answers\n  \"model\": \"a/b\", // for now\n  \"odd\": [1,2 , 3],\n  \"mcp\": {\n    // mine\n    \"x\": {\"type\": \"local\"},\n  },\n}\n";
        let after = edited(text, |document| {
            document.set(&["mcp", "y"], &json!({"type": "remote", "url": "u"}));
            document.set(&["model"], &json!("c/d"));
        });
        for kept in
            ["// who answers", "// for now", "\"odd\": [1,2 , 3]", "// mine", "\"x\": {\"type\": \"local\"}"]
        {
            assert!(after.contains(kept), "{kept}: {after}");
        }
        assert_eq!(parse(&after).unwrap()["mcp"]["y"]["url"], "u");
        let back = edited(&after, |document| {
            assert!(document.remove(&["mcp", "y"]));
            assert!(!document.remove(&["mcp", "nothing"]) && !document.remove(&["odd", "x"]));
            document.set(&["model"], &json!("a/b"));
        });
        assert_eq!(parse(&back).unwrap(), parse(text).unwrap());
    }

    #[test]
    fn new_documents_have_two_spaces_and_a_newline() {
        for empty in ["", " ", "{}", "{\n}\n"] {
            let text = edited(empty, |document| document.set(&["mcp", "a"], &json!({"b": ["c"]})));
            assert_eq!(
                text.trim_start(),
                "{\n  \"mcp\": {\n    \"a\": {\n      \"b\": [\"c\"]\n    }\n  }\n}\n",
                "{empty:?}"
            );
        }
        assert!(edited("// only this", |document| document.set(&["a"], &json!(1))).contains("// only this"));
    }

    #[test]
    fn lists_grow_and_shrink() {
        let text = "{\"plugin\": [\"a\", // first\n\"b\"]}";
        let grown = edited(text, |document| document.push(&["plugin"], &json!("c")));
        assert!(grown.contains("// first"), "{grown}");
        assert_eq!(parse(&grown).unwrap()["plugin"], json!(["a", "b", "c"]));
        let less = edited(&grown, |document| assert_eq!(document.retain("plugin", |item| item != "b"), 1));
        assert_eq!(parse(&less).unwrap()["plugin"], json!(["a", "c"]));
        assert_eq!(
            parse(&edited("{\"plugin\":\"a\"}", |d| d.push(&["plugin"], &json!("b")))).unwrap()["plugin"],
            json!(["b"])
        );
    }

    #[test]
    fn last_of_duplicate_keys_counts_and_stays() {
        let text = "{\"a\":1,\"b\":2,\"a\":3}";
        assert_eq!(parse(text).unwrap(), json!({"a":3,"b":2}));
        assert_eq!(parse(&edited(text, |d| d.set(&["a"], &json!(4)))).unwrap(), json!({"b":2,"a":4}));
        assert_eq!(parse(&edited(text, |d| assert!(d.remove(&["a"])))).unwrap(), json!({"b":2}));
    }

    #[test]
    fn errors_have_the_names_that_opencode_uses() {
        let code = |text: &str| parse(text).unwrap_err().code;
        assert_eq!(code("{\"a\":}"), "ValueExpected");
        assert_eq!(code("{\"a\" 1}"), "ColonExpected");
        assert_eq!(code("{\"a\":1"), "CloseBraceExpected");
        assert_eq!(code("{\"a\":1 \"b\":2}"), "CommaExpected");
        assert_eq!(code("{} {}"), "EndOfFileExpected");
        assert_eq!(code("[1"), "CloseBracketExpected");
        for text in ["{'a':1}", "{a:1}", "{# x\n}", "{\"a\":1,,}", "{\"a\": NaN}"] {
            assert!(parse(text).is_err(), "{text}");
        }
        let fault = parse("{\n \"a\": x}").unwrap_err();
        assert_eq!((fault.offset, fault.length), (8, 1));
        assert!(fault.message.contains("line 2"), "{}", fault.message);
        assert_eq!((parse("null").unwrap(), parse("// x").unwrap()), (Value::Null, json!({})));
        assert_eq!(parse("\u{feff}{\"a\":1,}").unwrap(), json!({"a":1}));
        assert!(edited("\u{feff}{}", |d| d.set(&["a"], &json!(1))).starts_with('\u{feff}'));
    }

    #[test]
    fn depth_is_bounded() {
        assert_eq!(parse(&"[".repeat(1 << 20)).unwrap_err().code, "NestingTooDeep");
        assert_eq!(parse(&"{\"a\":".repeat(100_000)).unwrap_err().code, "NestingTooDeep");
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(&deep(JSONC_DEPTH)).is_ok());
        assert!(parse(&deep(JSONC_DEPTH + 1)).is_err());
        let flat = format!("[{}]", vec!["\"[[[[\\\"[[[\" /* [[[[ */ // [[[\n"; 100].join(","));
        assert!(parse(&flat).is_ok(), "brackets in strings and comments are not nesting");
    }

    #[test]
    fn unchanged_texts_are_written_unchanged() {
        for text in [
            "{}\n",
            "{ /* a */ }\n",
            "// x, y\n{\n  \"a\" /* b */ : /* c */ 1 /* d, e */ , // f\n  // g\n  \"h\":[1 ,2,\n3 // i\n,],\n  /* j */\n}\n// k\n",
            "[1,[],{\"a\":{}} , ]\n",
            "{\r\n\t\"a\": \"b\\u0041\",\r\n\t\"a\": 2\r\n}\r\n",
            "{\"a\":1, /* x\n y */ \"b\":2}\n",
        ] {
            assert_eq!(edited(text, |_| {}), text);
        }
    }

    #[test]
    fn comments_and_layout_survive_additions_and_removals() {
        let text = "{\n\t// top\n\t\"a\": 1, // one\n\t// of b\n\t\"b\": 2 // two\n\t// end\n}\n";
        let more = edited(text, |d| d.set(&["c", "d"], &json!([1, {"e": {}}])));
        assert_eq!(
            more,
            "{\n\t// top\n\t\"a\": 1, // one\n\t// of b\n\t\"b\": 2, // two\n\t// end\n\t\"c\": {\n\t\t\"d\": [\n\t\t\t1,\n\t\t\t{\n\t\t\t\t\"e\": {}\n\t\t\t}\n\t\t]\n\t}\n}\n"
        );
        let less = edited(text, |d| assert!(d.remove(&["a"])));
        assert_eq!(less, "{\n\t// top\n\t// of b\n\t\"b\": 2 // two\n\t// end\n}\n");
        let first = edited(text, |d| assert!(d.remove(&["b"])));
        assert_eq!(first, "{\n\t// top\n\t\"a\": 1 // one\n\t// of b\n\t// end\n}\n");
        for (text, after) in [
            ("{\"a\":1,\"b\":2}", "{\"b\":2}\n"),
            ("{ \"a\":1, \"b\":2 }", "{ \"b\":2 }\n"),
            ("{\"a\":1}", "{}\n"),
            ("{\n  \"a\": 1,\n}\n", "{}\n"),
            ("{\n  \"x\": 0,\n  \"a\": 1,\n}\n", "{\n  \"x\": 0,\n}\n"),
            ("{/* x */ \"a\": 1}", "{/* x */\n}\n"),
        ] {
            assert_eq!(edited(text, |d| assert!(d.remove(&["a"]))), after);
        }
        assert_eq!(edited("{\"a\":1}", |d| d.set(&["b"], &json!("x"))), "{\"a\":1, \"b\": \"x\"}\n");
        assert_eq!(edited("{ // only\n}", |d| d.set(&["b"], &json!(1))), "{ // only\n  \"b\": 1\n}\n");
        let again = edited("{\n  \"a\": {\"b\": 1}\n}", |d| {
            d.remove(&["a", "b"]);
            assert!(d.is_empty(&["a"]));
            d.set(&["a", "c"], &json!(2));
            assert_eq!(d.lookup(&["a", "c"]), JsoncLookup::Value(json!(2)));
            assert_eq!(
                (d.lookup(&["a", "b"]), d.lookup(&["a", "c", "d"])),
                (JsoncLookup::Missing, JsoncLookup::Blocked)
            );
        });
        assert_eq!(parse(&again).unwrap(), json!({"a": {"c": 2}}));
    }

    #[test]
    fn number_of_entries_is_bounded_and_edits_take_linear_time() {
        let many = |count: usize| {
            format!("{{{}}}", (0..count).map(|n| format!("\"k{n}\":1")).collect::<Vec<_>>().join(","))
        };
        let fault = parse(&many(MAX_ENTRIES + 1)).unwrap_err();
        assert_eq!(fault.code, "TooManyEntries");
        assert!(fault.message.contains("20000"), "{}", fault.message);
        assert!(parse(&format!("{{{}}}", vec!["\"mcp\":{}"; 30_000].join(","))).is_err());
        let mut full = JsoncDocument::parse(&many(MAX_ENTRIES - 10)).unwrap();
        (0..20).for_each(|n| full.set(&[&format!("n{n}")], &json!(1)));
        assert_eq!(full.text().unwrap_err().code, "TooManyEntries", "the text could not be parsed again");
        let time = |count: usize| {
            let begun = std::time::Instant::now();
            let mut document = JsoncDocument::parse(&many(count)).unwrap();
            (0..count).for_each(|n| document.set(&[&format!("k{n}")], &json!({"x": n})));
            (0..count / 2).for_each(|n| assert!(document.remove(&[&format!("k{n}")])));
            (0..count / 2).for_each(|n| document.push(&["list"], &json!(format!("i{n}"))));
            (0..count / 2).for_each(|n| assert!(document.remove_item(&["list"], &format!("i{n}"))));
            drop(document.text().unwrap());
            begun.elapsed().as_secs_f64()
        };
        time(500);
        let (one, eight) = (time(1000), time(8000));
        assert!(eight < 24.0 * one + 0.2, "{one} s, then {eight} s");
        let same = format!("{{{}}}", vec!["\"a\":1"; 19_000].join(","));
        assert_eq!(edited(&same, |d| d.set(&["a"], &json!(2))), "{\"a\":2}\n");
    }
}
