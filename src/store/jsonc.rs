//! JSON with comments: read as a value, or edited so that comments, order and layout of everything else stay.
//! Knows nothing of what the keys mean. Pure. Texts come from a workload: their nesting is bounded before anything
//! recursive sees them.

#[path = "jsonc_tree.rs"]
mod tree;

use jsonc_parser::errors::{ParseError, ParseErrorKind};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::Value;

use self::tree::{ItemList, JsoncNode, TextStyle};
use crate::base::limits;

/// Most values in a text, objects and lists among them. A configuration has some hundred.
const ENTRIES: usize = 20_000;
/// Longest number or word.
const SCALAR_BYTES: usize = 1024;

/// Why a text is not JSON with comments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsoncError {
    /// The word that VS Code's parser has for it, which the OpenWork server and OpenCode use.
    pub code: &'static str,
    /// Where, in bytes.
    pub offset: usize,
    /// How much.
    pub length: usize,
    /// For a person.
    pub message: String,
}

/// A text that can be changed key by key.
#[derive(Debug)]
pub struct JsoncDocument {
    root: JsoncNode,
    before: String,
    after: String,
    style: TextStyle,
    /// OpenCode accepts a byte order mark, and editors on Windows want it back.
    mark: bool,
}

/// What is behind some keys.
#[derive(Debug, PartialEq)]
pub enum JsoncLookup {
    /// Nothing; it can be set.
    Missing,
    /// On the way there is something that is no object, or no list where one is needed.
    Blocked,
    /// This value.
    Value(Value),
}

const MARK: char = '\u{feff}';

/// What OpenCode accepts (tried with 1.1.53 and 1.18.34): comments and trailing commas, nothing else.
const OPTIONS: ParseOptions = ParseOptions {
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

/// The value of a text; an empty one is an empty object, as for OpenCode.
///
/// # Errors
/// The first fault.
pub fn parse(text: &str) -> Result<Value, JsoncError> {
    let text = text.strip_prefix(MARK).unwrap_or(text);
    check(text)?;
    match jsonc_parser::parse_to_serde_value(text, &OPTIONS).map_err(|error| fault(&error))? {
        // Either the word, or nothing at all.
        Value::Null => JsoncDocument::parse(text).map(|document| document.value()),
        value => Ok(value),
    }
}

impl JsoncDocument {
    /// Reads a text.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse(text: &str) -> Result<JsoncDocument, JsoncError> {
        let (mark, text) = match text.strip_prefix(MARK) {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        check(text)?;
        let parsed =
            parse_to_ast(text, &CollectOptions::default(), &OPTIONS).map_err(|error| fault(&error))?;
        let style = TextStyle::from_text(text);
        Ok(match &parsed.value {
            Some(value) => {
                let range = jsonc_parser::common::Ranged::range(value);
                let (before, after) = (text[..range.start].to_owned(), text[range.end..].to_owned());
                JsoncDocument { root: JsoncNode::read(text, value), before, after, style, mark }
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
                    mark,
                }
            }
        })
    }

    /// The value as it stands now. Of a key that stands there twice the last counts.
    pub fn value(&self) -> Value {
        self.root.value()
    }

    /// Whether it is an object.
    pub fn is_object(&self) -> bool {
        matches!(self.root, JsoncNode::Object(_))
    }

    /// Sets what lies behind these keys, one inside the other; what is no object on the way becomes one.
    pub fn set(&mut self, path: &[&str], value: &Value) {
        let (mut node, mut indent) = (&mut self.root, String::new());
        for key in path {
            (node, indent) = node.object_or_set().entry(key, &indent, &self.style);
        }
        *node = JsoncNode::from_value(value, &indent, &self.style);
    }

    /// Removes a key; says whether it was there.
    pub fn remove(&mut self, path: &[&str]) -> bool {
        let Some((last, above)) = path.split_last() else { return false };
        self.node(above).and_then(JsoncNode::object).is_some_and(|object| object.remove(last))
    }

    /// Appends to the list behind some keys; what is no list becomes one.
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

    /// Removes from the list behind a key what is unwanted; says how much that was.
    pub fn retain(&mut self, key: &str, wanted: impl Fn(&Value) -> bool) -> usize {
        self.node(&[key]).and_then(JsoncNode::array).map_or(0, |list| list.retain(wanted))
    }

    /// Removes a text from the list behind some keys; says whether it was there.
    pub fn remove_item(&mut self, path: &[&str], text: &str) -> bool {
        self.node(path).and_then(JsoncNode::array).is_some_and(|list| list.remove(text))
    }

    /// Looks at what is behind some keys.
    pub fn lookup(&mut self, path: &[&str]) -> JsoncLookup {
        match self.reach(path) {
            Ok(Some(node)) => JsoncLookup::Value(node.value()),
            Ok(None) => JsoncLookup::Missing,
            Err(()) => JsoncLookup::Blocked,
        }
    }

    /// Looks for a text in the list behind some keys.
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

    /// Whether an object or list without anything in it is behind these keys.
    pub fn is_empty(&mut self, path: &[&str]) -> bool {
        match self.node(path) {
            Some(JsoncNode::Object(list) | JsoncNode::Array(list)) => list.is_empty(),
            _ => false,
        }
    }

    /// The text, ending with a newline.
    ///
    /// # Errors
    /// When it could not be read again: it has too many entries, or too deep ones.
    pub fn text(&self) -> Result<String, JsoncError> {
        let mut text = if self.mark { MARK.to_string() } else { String::new() };
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

    /// `Err` when something on the way is no object.
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

/// Refuses what is nested so deeply that reading it would end our stack, or has more entries than any configuration.
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
        if depth > limits::JSONC_DEPTH {
            let message = format!("It is nested more than {} levels deep", limits::JSONC_DEPTH);
            return Err(JsoncError { code: "NestingTooDeep", offset, length: 1, message });
        }
        if entries > ENTRIES {
            let message = format!("It has more than {ENTRIES} entries; the limit is {ENTRIES}");
            return Err(JsoncError { code: "TooManyEntries", offset, length: 1, message });
        }
        rest = &found[skip..];
    }
    check_scalar(rest, text.len() - rest.len())
}

/// Refuses a number or word that is longer than any: reading one of a megabyte takes seconds.
fn check_scalar(text: &str, offset: usize) -> Result<(), JsoncError> {
    if text.len() <= SCALAR_BYTES || text.trim().len() <= SCALAR_BYTES {
        return Ok(());
    }
    let message = format!("It has a number or word of more than {SCALAR_BYTES} bytes");
    Err(JsoncError { code: "InvalidNumberFormat", offset, length: text.len(), message })
}

/// The length of the string at the start of `text`, with its quotes.
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

fn fault(error: &ParseError) -> JsoncError {
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
    fn an_edit_keeps_everything_else() {
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
    fn of_two_keys_the_last_counts_and_stays() {
        let text = "{\"a\":1,\"b\":2,\"a\":3}";
        assert_eq!(parse(text).unwrap(), json!({"a":3,"b":2}));
        assert_eq!(parse(&edited(text, |d| d.set(&["a"], &json!(4)))).unwrap(), json!({"b":2,"a":4}));
        assert_eq!(parse(&edited(text, |d| assert!(d.remove(&["a"])))).unwrap(), json!({"b":2}));
    }

    #[test]
    fn faults_are_named_as_opencode_names_them() {
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
        assert!(parse(&deep(limits::JSONC_DEPTH)).is_ok());
        assert!(parse(&deep(limits::JSONC_DEPTH + 1)).is_err());
        let flat = format!("[{}]", vec!["\"[[[[\\\"[[[\" /* [[[[ */ // [[[\n"; 100].join(","));
        assert!(parse(&flat).is_ok(), "in strings and comments it is none");
    }

    #[test]
    fn every_text_that_is_not_changed_is_written_as_it_was() {
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
    fn the_number_of_entries_is_bounded_and_edits_are_linear() {
        let many = |count: usize| {
            format!("{{{}}}", (0..count).map(|n| format!("\"k{n}\":1")).collect::<Vec<_>>().join(","))
        };
        let fault = parse(&many(ENTRIES + 1)).unwrap_err();
        assert_eq!(fault.code, "TooManyEntries");
        assert!(fault.message.contains("20000"), "{}", fault.message);
        assert!(parse(&format!("{{{}}}", vec!["\"mcp\":{}"; 30_000].join(","))).is_err());
        let mut full = JsoncDocument::parse(&many(ENTRIES - 10)).unwrap();
        (0..20).for_each(|n| full.set(&[&format!("n{n}")], &json!(1)));
        assert_eq!(full.text().unwrap_err().code, "TooManyEntries", "it could not be read again");
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
