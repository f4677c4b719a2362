//! The YAML between `---` lines at the top of a Markdown file: read within bounds, and written so that OpenCode and
//! Claude read what was meant. Pure.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::yaml;
use crate::base::limits;

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

/// Reads the front matter of a text; none is the default.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn read<T: DeserializeOwned + Default>(text: &str) -> Result<T, String> {
    let Some((yaml, _)) = split(text) else { return Ok(T::default()) };
    // A document of comments only has no value.
    if yaml.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(T::default());
    }
    if yaml.len() > limits::FRONT_MATTER_BYTES {
        return Err(format!("the front matter is longer than {} bytes", limits::FRONT_MATTER_BYTES));
    }
    // With its first line, so that errors name the lines of the file.
    yaml::parse(&format!("---\n{yaml}"))
        .and_then(|value| T::deserialize(value).map_err(|error| error.to_string()))
        .map_err(|why| format!("the front matter is not valid YAML: {why}"))
}

/// Its keys, and what follows it.
///
/// # Errors
/// As [`read`].
pub fn parts(text: &str) -> Result<(Map<String, Value>, &str), String> {
    let fields = read(text)?;
    Ok((fields, split(text).map_or(text, |(_, rest)| rest)))
}

/// Front matter of these keys, with its lines of dashes. Lists and objects stand on one line, as JSON, which is YAML.
pub fn write(fields: &Map<String, Value>) -> String {
    let mut text = String::from("---\n");
    for (key, value) in fields {
        let shown = match value {
            Value::String(value) => scalar(value),
            value => escaped(&value.to_string()),
        };
        text += &format!("{}: {shown}\n", scalar(key));
    }
    text + "---\n"
}

/// A string as it stands in YAML: as it is where nobody can take it for anything else, else in quotes.
fn scalar(text: &str) -> String {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '/');
    let safe = |c: char| c.is_alphanumeric() || " -_./,()+".contains(c);
    // Words that some version of YAML takes for a boolean, nothing or a number.
    const WORDS: [&str; 11] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf"];
    let word = WORDS.contains(&text.to_ascii_lowercase().as_str());
    let plain = first && !word && text.chars().all(safe) && !text.ends_with(' ') && !text.contains(" -");
    if plain { text.to_owned() } else { escaped(&Value::from(text).to_string()) }
}

/// JSON may carry characters that YAML wants escaped (YAML 1.2, 5.1); in strings both have the same escapes.
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
    fn what_is_written_is_read_again() {
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
    fn odd_texts_have_none() {
        for text in ["", "x", "---", "---\n", "--- \na: 1\n---\n", "a\n---\nb: 1\n---\n"] {
            assert_eq!(parts(text).unwrap(), (Map::new(), text), "{text:?}");
        }
        assert_eq!(parts("---\n---\nx").unwrap(), (Map::new(), "x"));
        assert_eq!(parts("---\n# only words\n---\nx").unwrap(), (Map::new(), "x"));
        assert_eq!(parts("---\r\na: 1\r\n---\r\nx").unwrap().1, "x");
        for broken in
            ["a: [", "a: \"", "a: {", "a: 'x", "a: b: c", "a: *x", "a\nb", "a: 1\n  b: 2", "a: &x [*x]"]
        {
            assert!(parts(&format!("---\n{broken}\n---\nx")).is_err(), "{broken}");
        }
        assert_eq!(parts("---\na: y\nb: no\nc: true\n---\n").unwrap().0["a"], "y");
        assert!(parts("---\n- a\n---\nx").is_err() && parts("---\na: \"b\n---\nx").is_err());
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
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
