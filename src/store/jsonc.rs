//! JSON with comments: read as a value, or edited so that comments, order and layout of everything else stay.
//! Knows nothing of what the keys mean. Pure. Texts come from a workload: their nesting is bounded before anything
//! recursive sees them.

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstNode, CstObject, CstObjectProp, CstRootNode};
use jsonc_parser::errors::{ParseError, ParseErrorKind};
use serde_json::{Map, Value};

use crate::base::limits;

/// Why a text is not JSON with comments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
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
pub struct Document {
    root: CstRootNode,
    /// OpenCode accepts a byte order mark, and editors on Windows want it back.
    mark: bool,
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
pub fn parse(text: &str) -> Result<Value, Fault> {
    let text = text.strip_prefix(MARK).unwrap_or(text);
    check_depth(text)?;
    match jsonc_parser::parse_to_serde_value(text, &OPTIONS).map_err(|error| fault(&error))? {
        // Either the word, or nothing at all.
        Value::Null => Document::parse(text).map(|document| document.value()),
        value => Ok(value),
    }
}

impl Document {
    /// Reads a text.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse(text: &str) -> Result<Document, Fault> {
        let (mark, text) = match text.strip_prefix(MARK) {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        check_depth(text)?;
        let root = CstRootNode::parse(text, &OPTIONS).map_err(|error| fault(&error))?;
        if root.value().is_none() {
            root.set_value(CstInputValue::Object(Vec::new()));
        }
        Ok(Document { root, mark })
    }

    /// The value as it stands now. Of a key that stands there twice the last counts.
    pub fn value(&self) -> Value {
        self.root.to_serde_value().unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// Sets what lies behind these keys, one inside the other; what is no object on the way becomes one.
    pub fn set(&self, path: &[&str], value: &Value) {
        let Some((last, above)) = path.split_last() else { return };
        let mut object = self.root.object_value_or_set();
        for key in above {
            object = match only(&object, key) {
                Some(property) => property.object_value_or_set(),
                None => object.object_value_or_set(key),
            };
        }
        match only(&object, last) {
            Some(property) => property.set_value(input(value)),
            None => drop(object.append(last, input(value))),
        }
    }

    /// Removes a key; says whether it was there.
    pub fn remove(&self, path: &[&str]) -> bool {
        let Some((last, above)) = path.split_last() else { return false };
        let mut object = self.root.object_value();
        for key in above {
            object = object.and_then(|object| only(&object, key)?.object_value());
        }
        let Some(property) = object.and_then(|object| only(&object, last)) else { return false };
        property.remove();
        true
    }

    /// Appends to the list behind a key; what is no list becomes one.
    pub fn push(&self, key: &str, value: &Value) {
        let object = self.root.object_value_or_set();
        let list = match only(&object, key) {
            Some(property) => property.array_value_or_set(),
            None => object.array_value_or_set(key),
        };
        list.append(input(value));
    }

    /// Removes from the list behind a key what is unwanted; says how much that was.
    pub fn retain(&self, key: &str, wanted: impl Fn(&Value) -> bool) -> usize {
        let list = self.root.object_value().and_then(|object| only(&object, key)?.array_value());
        let elements = list.map(|list| list.elements()).unwrap_or_default();
        let unwanted: Vec<CstNode> = elements
            .into_iter()
            .filter(|element| element.to_serde_value().is_some_and(|value| !wanted(&value)))
            .collect();
        let count = unwanted.len();
        unwanted.into_iter().for_each(CstNode::remove);
        count
    }

    /// The text, ending with a newline.
    pub fn text(&self) -> String {
        let mut text = if self.mark { MARK.to_string() } else { String::new() };
        text += &self.root.to_string();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text
    }
}

/// The property of this name. Of several the last counts for every reader; the others go, so that an edit is seen.
fn only(object: &CstObject, key: &str) -> Option<CstObjectProp> {
    let named = |property: &CstObjectProp| property.decoded_name().as_deref() == Some(key);
    let mut all: Vec<CstObjectProp> = object.properties().into_iter().filter(named).collect();
    let last = all.pop();
    all.into_iter().for_each(CstObjectProp::remove);
    last
}

fn input(value: &Value) -> CstInputValue {
    match value {
        Value::Null => CstInputValue::Null,
        Value::Bool(value) => CstInputValue::Bool(*value),
        Value::Number(number) => CstInputValue::Number(number.to_string()),
        Value::String(text) => CstInputValue::String(text.clone()),
        Value::Array(list) => CstInputValue::Array(list.iter().map(input).collect()),
        Value::Object(fields) => {
            CstInputValue::Object(fields.iter().map(|(key, value)| (key.clone(), input(value))).collect())
        }
    }
}

/// Refuses what is nested so deeply that reading it would end our stack.
fn check_depth(text: &str) -> Result<(), Fault> {
    let (mut depth, mut rest) = (0_usize, text);
    while let Some(at) = rest.find(['"', '/', '[', '{', ']', '}']) {
        let offset = text.len() - rest.len() + at;
        let found = &rest[at..];
        let skip = match found.as_bytes() {
            [b'"', ..] => string_length(found),
            [b'/', b'/', ..] => found.find('\n').unwrap_or(found.len()),
            [b'/', b'*', ..] => found[2..].find("*/").map_or(found.len(), |end| end + 4),
            [b'[' | b'{', ..] => {
                depth += 1;
                1
            }
            [b']' | b'}', ..] => {
                depth = depth.saturating_sub(1);
                1
            }
            _ => 1,
        };
        if depth > limits::JSONC_DEPTH {
            let message = format!("It is nested more than {} levels deep", limits::JSONC_DEPTH);
            return Err(Fault { code: "NestingTooDeep", offset, length: 1, message });
        }
        rest = &found[skip..];
    }
    Ok(())
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

fn fault(error: &ParseError) -> Fault {
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
    Fault {
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

    fn edited(text: &str, change: impl Fn(&Document)) -> String {
        let document = Document::parse(text).unwrap();
        change(&document);
        document.text()
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
        let grown = edited(text, |document| document.push("plugin", &json!("c")));
        assert!(grown.contains("// first"), "{grown}");
        assert_eq!(parse(&grown).unwrap()["plugin"], json!(["a", "b", "c"]));
        let less = edited(&grown, |document| assert_eq!(document.retain("plugin", |item| item != "b"), 1));
        assert_eq!(parse(&less).unwrap()["plugin"], json!(["a", "c"]));
        assert_eq!(
            parse(&edited("{\"plugin\":\"a\"}", |d| d.push("plugin", &json!("b")))).unwrap()["plugin"],
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
}
