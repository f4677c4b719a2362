//! Types of scalars: js-yaml's default safe schema, which is YAML 1.1's except for booleans. Pure.

use serde_json::{Map, Number, Value};

/// The key of an object that represents a date. JSON has no dates, and OpenCode does not treat a date as text either.
pub(super) const TIMESTAMP: &str = "tag:yaml.org,2002:timestamp";

/// The kind of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeKind {
    Scalar,
    Sequence,
    Mapping,
}

/// Returns the text of a date; `None` if the value is not a date.
pub(crate) fn timestamp_text(value: &Value) -> Option<&str> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    fields.get(TIMESTAMP)?.as_str()
}

/// Converts the value of a node according to its tag; `?` is the tag of a plain scalar. Returns the final tag and the
/// value.
///
/// # Errors
/// When the tag is unknown or does not fit the value.
pub(super) fn resolve(tag: String, kind: Option<NodeKind>, value: Value) -> Result<(String, Value), String> {
    if tag == "!" {
        return Ok((tag, value));
    }
    if tag == "?" {
        let Value::String(text) = &value else { return Ok((tag, value)) };
        return Ok(implicit(text).unwrap_or((tag, value)));
    }
    let unknown = || format!("the tag '{}' is not supported", tag.escape_debug());
    let name = tag.strip_prefix("tag:yaml.org,2002:").ok_or_else(unknown)?;
    let wanted = match name {
        "str" | "null" | "bool" | "int" | "float" | "timestamp" | "merge" | "binary" => NodeKind::Scalar,
        "seq" | "omap" | "pairs" => NodeKind::Sequence,
        "map" | "set" => NodeKind::Mapping,
        _ => return Err(unknown()),
    };
    if kind.is_some_and(|kind| kind != wanted) {
        return Err(unknown());
    }
    let value = match (name, value) {
        ("str", Value::Null) => Value::String(String::new()),
        ("seq" | "omap" | "pairs", Value::Null) => Value::Array(Vec::new()),
        ("map" | "set", Value::Null) => Value::Object(Map::new()),
        ("null" | "merge", Value::Null) => Value::Null,
        ("str" | "binary", value @ Value::String(_)) => value,
        ("merge", value @ Value::String(_)) if value == "<<" => value,
        ("null" | "bool" | "int" | "float" | "timestamp", Value::String(text)) => {
            let found = match name {
                "null" => null(&text),
                "bool" => boolean(&text),
                "int" => integer(&text),
                "float" => float(&text),
                _ => timestamp(&text),
            };
            found.ok_or_else(|| format!("'{}' is not of type {name}", text.escape_debug()))?
        }
        (_, value @ (Value::Array(_) | Value::Object(_))) => value,
        _ => return Err(format!("a value with the tag {name} is missing")),
    };
    Ok((tag, value))
}

fn implicit(text: &str) -> Option<(String, Value)> {
    let typed = |name: &str, value: Value| (format!("tag:yaml.org,2002:{name}"), value);
    null(text)
        .map(|value| typed("null", value))
        .or_else(|| boolean(text).map(|value| typed("bool", value)))
        .or_else(|| integer(text).map(|value| typed("int", value)))
        .or_else(|| float(text).map(|value| typed("float", value)))
        .or_else(|| timestamp(text).map(|value| typed("timestamp", value)))
        .or_else(|| (text == "<<").then(|| typed("merge", text.into())))
}

fn null(text: &str) -> Option<Value> {
    matches!(text, "~" | "null" | "Null" | "NULL").then_some(Value::Null)
}

fn boolean(text: &str) -> Option<Value> {
    match text {
        "true" | "True" | "TRUE" => Some(true.into()),
        "false" | "False" | "FALSE" => Some(false.into()),
        _ => None,
    }
}

/// Returns a number as JavaScript represents it. Infinity and NaN become null, because JSON has neither.
fn number(value: f64) -> Value {
    const SAFE: f64 = 9_007_199_254_740_992.0;
    #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53")]
    if value.fract() == 0.0 && value.abs() <= SAFE {
        return Value::Number(Number::from(value as i64));
    }
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn signed(text: &str) -> (f64, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (-1.0, &text[1..]),
        Some(b'+') => (1.0, &text[1..]),
        _ => (1.0, text),
    }
}

/// Parses an integer: decimal, `0b`, `0x`, octal with a leading 0, or base 60 (`1:30`), each with optional `_`.
fn integer(text: &str) -> Option<Value> {
    let (sign, rest) = signed(text);
    if rest == "0" {
        return Some(number(0.0));
    }
    let (radix, digits) = match rest.as_bytes() {
        [b'0', b'b', ..] => (2, &rest[2..]),
        [b'0', b'x', ..] => (16, &rest[2..]),
        [b'0', ..] => (8, &rest[1..]),
        [b'_', ..] | [] => return None,
        _ => (10, rest),
    };
    let (digits, minutes) = match digits.find(':').filter(|_| radix == 10) {
        Some(at) => digits.split_at(at),
        None => (digits, ""),
    };
    let known = |digit: char| digit == '_' || digit.is_digit(radix);
    if digits.ends_with('_') || !digits.chars().all(known) || !digits.contains(|c: char| c.is_digit(radix)) {
        return None;
    }
    let value = |text: &str| {
        let add = |sum: f64, digit: u32| sum * f64::from(radix) + f64::from(digit);
        text.chars().filter_map(|digit| digit.to_digit(radix)).fold(0.0, add)
    };
    let decimal = digits.replace('_', "");
    let mut sum = if radix == 10 { decimal.parse().ok()? } else { value(digits) };
    for part in minutes.split(':').skip(1) {
        let fits = matches!(part.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']);
        sum = sum * 60.0 + fits.then(|| value(part))?;
    }
    Some(number(sign * sum))
}

fn float(text: &str) -> Option<Value> {
    let (sign, rest) = signed(text);
    match rest {
        ".inf" | ".Inf" | ".INF" => return Some(Value::Null),
        ".nan" | ".NaN" | ".NAN" if rest.len() == text.len() => return Some(Value::Null),
        _ => {}
    }
    if text.ends_with('_') {
        return None;
    }
    let bytes = rest.as_bytes();
    let run = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit() || **b == b'_').count();
    let exponent = |from: usize| match &bytes[from..] {
        [] => true,
        [b'e' | b'E', rest @ ..] => {
            let digits = rest.strip_prefix(b"-").or_else(|| rest.strip_prefix(b"+")).unwrap_or(rest);
            !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    let plain = match bytes {
        [b'.', b'0'..=b'9' | b'_', ..] if rest.len() == text.len() => exponent(1 + run(1)),
        [b'0'..=b'9', ..] => {
            let whole = if bytes[0] == b'0' { 1 } else { run(0) };
            let end = if bytes.get(whole) == Some(&b'.') { whole + 1 + run(whole + 1) } else { whole };
            exponent(end)
        }
        _ => false,
    };
    if plain {
        let digits: String = rest.chars().filter(|c| *c != '_').collect();
        // As in js-yaml, a `.`, or digits that are only `_`, give NaN.
        return Some(digits.parse::<f64>().map_or(Value::Null, |value| number(sign * value)));
    }
    minutes(rest).map(|value| number(sign * value))
}

/// Parses a number in base 60, such as `1:30.5`.
fn minutes(text: &str) -> Option<f64> {
    let (whole, fraction) = text.split_once('.')?;
    let mut parts = whole.split(':');
    let first = parts.next().filter(|first| {
        first.starts_with(|c: char| c.is_ascii_digit())
            && first.bytes().all(|b| b.is_ascii_digit() || b == b'_')
    })?;
    if !fraction.bytes().all(|b| b.is_ascii_digit() || b == b'_') || !whole.contains(':') {
        return None;
    }
    let mut sum: f64 = first.replace('_', "").parse().ok()?;
    for part in parts {
        let fits = matches!(part.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']);
        sum = sum * 60.0 + fits.then(|| part.parse::<f64>().ok())??;
    }
    Some(sum + format!("0.{}", fraction.replace('_', "")).parse::<f64>().unwrap_or_default())
}

/// Parses a date, or a date with a time.
fn timestamp(text: &str) -> Option<Value> {
    let digits = |text: &str, least: usize, most: usize| {
        (least..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
    };
    let (date, time) = match text.find(['T', 't', ' ', '\t']) {
        Some(at) => (&text[..at], Some(&text[at..])),
        None => (text, None),
    };
    let parts: Vec<&str> = date.split('-').collect();
    let [year, month, day] = parts[..] else { return None };
    let least = if time.is_some() { 1 } else { 2 };
    if !digits(year, 4, 4) || !digits(month, least, 2) || !digits(day, least, 2) {
        return None;
    }
    if let Some(time) = time {
        let blank = [' ', '\t'];
        let time = if time.starts_with(['T', 't']) { &time[1..] } else { time.trim_start_matches(blank) };
        let at = time.find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.').unwrap_or(time.len());
        let (clock, zone) = time.split_at(at);
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
        let parts: Vec<&str> = clock.split(':').collect();
        let [hour, minute, second] = parts[..] else { return None };
        let fits =
            digits(hour, 1, 2) && digits(minute, 2, 2) && digits(second, 2, 2) && digits(fraction, 0, 99);
        let zone_text = zone.trim_start_matches(blank);
        let zone_fits = match zone_text.strip_prefix(['-', '+']) {
            Some(offset) => {
                let (hours, minutes) = offset.split_once(':').map_or((offset, None), |(h, m)| (h, Some(m)));
                digits(hours, 1, 2) && minutes.is_none_or(|minutes| digits(minutes, 2, 2))
            }
            None => zone_text == "Z" || zone.is_empty(),
        };
        if !fits || !zone_fits {
            return None;
        }
    }
    Some(Value::Object(Map::from_iter([(TIMESTAMP.to_owned(), text.into())])))
}

/// Converts a key to the name of a property, as JavaScript does.
///
/// # Errors
/// When the key is a list that contains a list.
pub(super) fn key_text(key: &Value) -> Result<String, String> {
    Ok(match key {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let mut parts = Vec::new();
            for item in items {
                match item {
                    Value::Array(_) => return Err("a key is a list that contains a list".to_owned()),
                    Value::Null => parts.push(String::new()),
                    item => parts.push(key_text(item)?),
                }
            }
            parts.join(",")
        }
        Value::Object(_) => timestamp_text(key).unwrap_or("[object Object]").to_owned(),
        other => other.to_string(),
    })
}
