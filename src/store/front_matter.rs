//! The front matter of a Markdown file: the YAML between `---` lines at its top. It is parsed within bounds, and
//! written so that OpenCode and Claude read the same values. Pure.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::yaml;
use crate::base::limits;

/// Maximum length of the reason that is reported for a fault.
const REASON_CHARS: usize = 300;

/// Splits a text into its front matter, without the lines of dashes, and the rest.
pub fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let after = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n"))?;
    let mut at = 0;
    for line in after.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some((&after[..at], &after[at + line.len()..]));
        }
        at += line.len();
    }
    None
}

/// Parses the front matter of a text. Returns the default if the text has no front matter.
///
/// # Errors
/// A description of the problem for people.
pub fn read<T: DeserializeOwned + Default>(text: &str) -> Result<T, String> {
    let Some((yaml, _)) = split(text) else { return Ok(T::default()) };
    // A document with only comments has no value.
    if yaml.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(T::default());
    }
    if yaml.len() > limits::FRONT_MATTER_BYTES {
        return Err(format!("the front matter is longer than {} bytes", limits::FRONT_MATTER_BYTES));
    }
    // The first line stays as an empty line, so that errors have the line numbers of the file.
    yaml::parse(&format!("\n{yaml}"))
        .and_then(|value| T::deserialize(value.unwrap_or_default()).map_err(|error| error.to_string()))
        .map_err(|why| format!("the front matter is not valid YAML: {why}"))
}

/// A Markdown file as OpenCode splits it: with gray-matter, and if that fails, again with unquoted colons repaired. The
/// behaviour was read from the programs of 1.1.53 and 1.18.34.
#[derive(Debug, Default)]
pub struct ParsedMatter<'a> {
    /// The fields of the front matter; there are none if the front matter is not an object.
    pub fields: Map<String, Value>,
    /// The text after the front matter.
    pub content: &'a str,
    /// The reason why the front matter cannot be parsed, if it cannot.
    pub fault: Option<String>,
    /// Whether OpenCode does not load the file because of the fault. Otherwise, it uses the whole text as the content.
    pub refused: bool,
    /// Whether older versions of OpenCode do not repair the file, because its lines end with CR LF.
    pub repaired_crlf: bool,
    /// Whether a byte order mark is the only obstacle to a repair of the fault. Older versions remove the mark first.
    pub marked: bool,
}

/// Splits a text as OpenCode does.
pub fn open(text: &str) -> ParsedMatter<'_> {
    let bare = text.strip_prefix('\u{feff}').unwrap_or(text);
    let Some(after) = bare.strip_prefix("---").filter(|after| !after.starts_with('-')) else {
        return ParsedMatter { content: bare, ..ParsedMatter::default() };
    };
    let line = match after.find('\n') {
        Some(at) => after[..at].trim_end_matches('\r'),
        // If a line end is missing, gray-matter uses its position -1, as in JavaScript's `slice(0, -1)`.
        None => after.char_indices().next_back().map_or("", |(at, _)| &after[..at]),
    };
    let language = js_trim(line);
    let raw = if language.is_empty() { after } else { &after[line.len()..] };
    let (matter, content) = match raw.find("\n---") {
        Some(at) => {
            let rest = &raw[at + 4..];
            let rest = rest.strip_prefix('\r').unwrap_or(rest);
            (&raw[..at], rest.strip_prefix('\n').unwrap_or(rest))
        }
        None => (raw, ""),
    };
    let why = match fields_of(language, matter) {
        Ok(fields) => return ParsedMatter { fields, content, ..ParsedMatter::default() },
        Err(_) if !after.contains('\n') => {
            let fault = Some("the front matter does not end".to_owned());
            return ParsedMatter { content: bare, fault, ..ParsedMatter::default() };
        }
        Err(why) => why,
    };
    // The reason may contain a key of any length.
    let why: String = why.chars().take(REASON_CHARS).collect();
    let (fault, whole) = (Some(format!("the front matter is not valid YAML: {why}")), bare);
    // A text with a byte order mark does not start with dashes, so OpenCode does not repair it.
    let marked = bare.len() < text.len();
    let Some((repaired, crlf)) = repair(bare) else {
        return ParsedMatter { content: whole, fault, ..ParsedMatter::default() };
    };
    match fields_of("", &repaired) {
        read if marked => {
            ParsedMatter { content: whole, fault, marked: read.is_ok() && !crlf, ..ParsedMatter::default() }
        }
        Ok(fields) => ParsedMatter { fields, content, repaired_crlf: crlf, ..ParsedMatter::default() },
        Err(_) => ParsedMatter { content: whole, fault, refused: true, ..ParsedMatter::default() },
    }
}

fn fields_of(language: &str, matter: &str) -> Result<Map<String, Value>, String> {
    if matter.len() > limits::FRONT_MATTER_BYTES {
        return Err(format!("it is longer than {} bytes", limits::FRONT_MATTER_BYTES));
    }
    let is_comment = |line: &str| line.len() > 1 && line.starts_with('#');
    if matter.lines().map(js_trim).all(|line| line.is_empty() || is_comment(line)) {
        return Ok(Map::new());
    }
    let value = match language.to_ascii_lowercase().as_str() {
        "" | "yaml" | "yml" => yaml::parse(matter)?,
        "json" => Some(serde_json::from_str(matter).map_err(|error| error.to_string())?),
        other => return Err(format!("its language is '{}'", other.escape_debug())),
    };
    match value {
        Some(Value::Object(fields)) if yaml::timestamp_text(&Value::Object(fields.clone())).is_none() => {
            Ok(fields)
        }
        _ => Ok(Map::new()),
    }
}

/// Turns values that have a colon and no quotes into block scalars. Also returns whether a repaired line ended with CR
/// LF. Returns `None` if no line needs a repair.
fn repair(text: &str) -> Option<(String, bool)> {
    let start = if text.starts_with("---\r\n") { 5 } else { 4 };
    let body = text.strip_prefix("---\r\n").or_else(|| text.strip_prefix("---\n"))?;
    let end = body.find("\n---")?;
    let matter = body[..end].strip_suffix('\r').unwrap_or(&body[..end]);
    debug_assert!(text[start..].starts_with(matter));
    let (mut repaired, mut crlf) = (String::from("\n"), false);
    let mut changed = false;
    for line in matter.split('\n') {
        let bare = line.strip_suffix('\r').unwrap_or(line);
        match field_with_colon(bare) {
            Some((key, value)) => {
                repaired += &format!("{key}: |-\n  {value}\n");
                (changed, crlf) = (true, crlf || bare.len() < line.len());
            }
            None => {
                repaired += bare;
                repaired.push('\n');
            }
        }
    }
    repaired.pop();
    (changed || matter.contains("\r\n")).then_some((repaired, crlf))
}

/// Splits `key: value` if the value has a colon, and neither quotes nor a block indicator.
fn field_with_colon(line: &str) -> Option<(&str, &str)> {
    let end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    let (key, rest) = line.split_at(end);
    if key.is_empty() || key.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value = js_trim(rest.trim_start_matches(is_js_space).strip_prefix(':')?);
    let plain = !value.is_empty() && value != ">" && value != "|" && !value.starts_with(['"', '\'']);
    (plain && value.contains(':')).then_some((key, value))
}

fn is_js_space(c: char) -> bool {
    (c.is_whitespace() && c != '\u{85}') || c == '\u{feff}'
}

/// Removes white space at both ends, as JavaScript's `trim` does.
pub fn js_trim(text: &str) -> &str {
    text.trim_matches(is_js_space)
}

/// Returns the fields of the front matter, and the text after it.
///
/// # Errors
/// A description of the problem for people.
pub fn parts(text: &str) -> Result<(Map<String, Value>, &str), String> {
    let opened = open(text);
    opened.fault.map_or(Ok((opened.fields, opened.content)), Err)
}

/// Writes front matter with these fields between lines of dashes. Lists and objects are written as JSON, which is valid
/// YAML.
pub fn write(fields: &Map<String, Value>) -> String {
    let mut text = String::from("---\n");
    for (key, value) in fields {
        let shown = match value {
            Value::String(value) => scalar(value),
            value if yaml::timestamp_text(value).is_some() => {
                yaml::timestamp_text(value).unwrap_or_default().to_owned()
            }
            value => escaped(&value.to_string()),
        };
        text += &format!("{}: {shown}\n", scalar(key));
    }
    text + "---\n"
}

/// Writes a string as a YAML scalar: plain if no reader can mistake it for another type, and quoted otherwise.
fn scalar(text: &str) -> String {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '/');
    let safe = |c: char| c.is_alphanumeric() || " -_./,()+".contains(c);
    // Words that some version of YAML reads as a boolean, null or a number.
    const WORDS: [&str; 11] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf"];
    let word = WORDS.contains(&text.to_ascii_lowercase().as_str());
    let plain = first && !word && text.chars().all(safe) && !text.ends_with(' ') && !text.contains(" -");
    if plain { text.to_owned() } else { escaped(&Value::from(text).to_string()) }
}

/// Escapes characters that JSON allows but YAML does not (YAML 1.2, 5.1). The escapes are the same in JSON and YAML.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                out += &format!("\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn written_front_matter_is_parsed_unchanged() {
        let nasty = [
            "plain words",
            "a: b",
            "# x",
            "true",
            "No",
            "1.5",
            "",
            " lead",
            "trail ",
            "\"q\" \\ 'q'",
            "line\nbreak\ttab",
            "- list",
            "a - b",
            "a #b",
            "{x}",
            "@x",
            "*x",
            "!x",
            "%x",
            "`x`",
            "\u{85}\u{2028}\u{feff}\u{7f}",
            "ünï cödé",
            "日本語",
            "null",
            "~",
            "2026-01-01",
            "a/b-c_d.e",
            "$ARGUMENTS",
            "x:",
            ">",
            "|",
            "---",
            "...",
            "0x1f",
            "😀",
        ];
        for text in nasty {
            let fields = Map::from_iter([("name".into(), json!(text)), ("flag".into(), json!(true))]);
            let written = write(&fields) + "rest";
            let (read_back, rest) = parts(&written).unwrap();
            assert_eq!(read_back, fields, "{written}");
            assert_eq!(rest, "rest");
        }
        let deep = Map::from_iter([("a".into(), json!({"b": [1, null, "x: y"], "c": {}}))]);
        assert_eq!(parts(&write(&deep)).unwrap().0, deep);
        assert!(write(&Map::from_iter([("a".into(), json!("two words"))])).contains("a: two words\n"));
    }

    #[test]
    fn texts_are_split_as_opencode_does() {
        for text in ["", "x", "a\n---\nb: 1\n---\n", "----\nname: x\n----\n", "\n---\na: 1\n---\n"] {
            assert_eq!(parts(text).unwrap(), (Map::new(), text), "{text:?}");
        }
        for (text, fields, content) in [
            ("---\n---\nx", json!({}), "x"),
            ("---\n# only words\n---\nx", json!({}), "x"),
            ("---\r\na: 1\r\n---\r\nx", json!({"a": 1}), "x"),
            ("---", json!({}), ""),
            ("--- \na: 1\n---  \nx", json!({"a": 1}), "  \nx"),
            ("\u{feff}---\na: 1\n---\nx", json!({"a": 1}), "x"),
            ("---yaml\na: 1\n---\nx", json!({"a": 1}), "x"),
            ("---json\n{\"a\": 1}\n---\nx", json!({"a": 1}), "x"),
            ("---\na: 1\n", json!({"a": 1}), ""),
            ("---\na: 1\n----\nx", json!({"a": 1}), "-\nx"),
            ("---\n- a\n---\nx", json!({}), "x"),
            ("---\nwords\n---\nx", json!({}), "x"),
            ("---\n2026-01-01\n---\nx", json!({}), "x"),
            ("---\ra: 1\r---\rx\r", json!({}), ""),
            ("---x", json!({}), ""),
            ("---\na: b: c\nd: 1\n---\nx", json!({"a": "b: c", "d": 1}), "x"),
            ("---\r\na: b: c\r\n---\r\nx", json!({"a": "b: c"}), "x"),
            ("---\nx : y\na_1:  b: c  \n---\n", json!({"x": "y", "a_1": "b: c"}), ""),
        ] {
            let (got, rest) = parts(text).unwrap_or_else(|why| panic!("{text:?}: {why}"));
            assert_eq!((Value::Object(got), rest), (fields, content), "{text:?}");
        }
        // OpenCode uses the whole text of such a file as the content, …
        for broken in ["a: [", "a: \"", "a: {", "a: 'x", "a: *x", "a: 1\n  b: 2", "a-b: c: d", "a: \"b: c"] {
            let text = format!("---\n{broken}\n---\nx");
            let opened = open(&text);
            assert!(opened.fault.is_some() && !opened.refused && opened.content == text, "{broken}");
        }
        // … unless the repair fails.
        let opened = open("---\na: b: c\nd: [\n---\nx");
        assert!(opened.fault.unwrap().contains("line 2") && opened.refused);
        assert!(
            open("---\r\na: b: c\r\nd: e\r\n---\r\n").repaired_crlf
                && !open("---\na: b: c\n---\n").repaired_crlf
        );
        assert!(
            open("\u{feff}---\na: b: c\n---\n").marked
                && !open("\u{feff}---\r\na: b: c\r\nd: e\r\n---\r\n").marked
        );
        assert!(!open("\u{feff}---\na: [\n---\n").marked && !open("---\na: b: c\n---\n").marked);
        let text = "---\ra: 1\r---\rx";
        assert!(open(text).fault.is_some() && open(text).content == text);
        assert!(open("---js\n{a: 1}\n---\nx").fault.is_some());
        assert_eq!(parts("---\na: y\nb: no\nc: true\n---\n").unwrap().0["a"], "y");
        let dated = parts("---\nday: 2026-01-01\n---\n").unwrap().0;
        assert_eq!(write(&dated), "---\nday: 2026-01-01\n---\n");
    }

    #[test]
    fn alias_bomb_is_refused() {
        let mut yaml = String::from("---\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..10 {
            let row = vec![format!("*a{}", n - 1); 10].join(",");
            yaml += &format!("a{n}: &a{n} [{row}]\n");
        }
        yaml += "description: x\n---\n";
        assert!(read::<Map<String, Value>>(&yaml).is_err());
        let deep = format!("---\na: {}{}\n---\n", "[".repeat(5000), "]".repeat(5000));
        assert!(read::<Map<String, Value>>(&deep).is_err());
    }
}
