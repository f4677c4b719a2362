//! Truncates a JSON value of any size to a bounded size, and names the parts that were omitted. The value may come from
//! any deserializer, so a large document on disk is never in memory as a whole.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Maximum number of values: each value costs memory, however short its text is.
const MAX_NODES: usize = 2048;
/// Maximum number of omitted places that are named; further places are only counted.
const MAX_NAMED: usize = 16;

/// Truncates values within a budget of bytes, and records the omitted places.
#[derive(Debug)]
pub struct JsonTruncator {
    bytes: usize,
    nodes: usize,
    place: Vec<String>,
    omitted: Vec<String>,
    more: usize,
}

impl JsonTruncator {
    /// Creates a truncator with a budget of `bytes` of JSON text.
    pub fn new(bytes: usize) -> JsonTruncator {
        JsonTruncator { bytes, nodes: MAX_NODES, place: Vec::new(), omitted: Vec::new(), more: 0 }
    }

    /// Copies as much of a value as the budget allows. `name` is the value's name in [`JsonTruncator::omitted`].
    ///
    /// # Errors
    /// When the deserializer fails.
    pub fn take<'de, D: Deserializer<'de>>(&mut self, name: &str, from: D) -> Result<Value, D::Error> {
        self.place.push(name.to_owned());
        let value = TruncatingSeed(self).deserialize(from);
        self.place.pop();
        value
    }

    /// Copies as much of a text as the budget allows, and marks where the text is cut. `more` is the number of further
    /// bytes that are stored elsewhere.
    pub fn text(&mut self, name: &str, text: &str, more: u64) -> String {
        self.place.push(name.to_owned());
        let text = self.string(text, more);
        self.place.pop();
        text
    }

    /// Returns a description of each truncated place: its path and how much is missing there.
    pub fn omitted(mut self) -> Vec<String> {
        if self.more > 0 {
            self.omitted.push(format!("{} more places", self.more));
        }
        self.omitted
    }

    fn omit(&mut self, what: &str) {
        if self.omitted.len() < MAX_NAMED {
            let mut place = self.place.join(".");
            if let Some((at, _)) = place.char_indices().nth(200) {
                place.truncate(at);
            }
            self.omitted.push(format!("{place}: {what}"));
        } else {
            self.more += 1;
        }
    }

    fn string(&mut self, text: &str, more: u64) -> String {
        let mut end = text.len();
        let mut left = self.bytes.saturating_sub(2);
        // A text that does not fit uses half of the budget, so that later values fit.
        if text.chars().map(escaped).sum::<usize>() > left {
            left /= 2;
        }
        let rest = self.bytes.saturating_sub(2) - left;
        for (at, c) in text.char_indices() {
            match left.checked_sub(escaped(c)) {
                Some(rest) => left = rest,
                None => {
                    end = at;
                    break;
                }
            }
        }
        self.bytes = left + rest;
        let missing = (text.len() - end) as u64 + more;
        if missing == 0 {
            return text.to_owned();
        }
        self.omit(&format!("{missing} more bytes"));
        format!("{}… ({missing} more bytes)", &text[..end])
    }

    /// Returns whether the budget allows another value, and reserves the value's part of the budget.
    fn node(&mut self) -> bool {
        let fits = self.nodes > 0 && self.bytes > 32;
        if fits {
            self.nodes -= 1;
            self.bytes -= 4;
        }
        fits
    }
}

/// Returns a character's length in a JSON string.
fn escaped(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' => 2,
        c if u32::from(c) < 0x20 => 6,
        c => c.len_utf8(),
    }
}

struct TruncatingSeed<'a>(&'a mut JsonTruncator);

impl<'de> DeserializeSeed<'de> for TruncatingSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TruncatingSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        self.0.bytes = self.0.bytes.saturating_sub(20);
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        self.0.bytes = self.0.bytes.saturating_sub(20);
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        self.0.bytes = self.0.bytes.saturating_sub(24);
        Ok(value.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(self.0.string(text, 0).into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let (truncator, mut list, mut missing) = (self.0, Vec::new(), 0u64);
        loop {
            if missing > 0 || !truncator.node() {
                if items.next_element::<IgnoredAny>()?.is_none() {
                    break;
                }
                missing += 1;
                continue;
            }
            truncator.place.push(list.len().to_string());
            let item = items.next_element_seed(TruncatingSeed(truncator));
            truncator.place.pop();
            match item? {
                Some(item) => list.push(item),
                None => break,
            }
        }
        if missing > 0 {
            truncator.omit(&format!("{missing} more entries"));
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let (truncator, mut map, mut missing) = (self.0, Map::new(), 0u64);
        while let Some(key) = fields.next_key::<String>()? {
            let cost = 4 + key.chars().map(escaped).sum::<usize>();
            if missing > 0 || cost > truncator.bytes || !truncator.node() {
                fields.next_value::<IgnoredAny>()?;
                missing += 1;
                continue;
            }
            truncator.bytes = truncator.bytes.saturating_sub(cost);
            truncator.place.push(key.clone());
            let value = fields.next_value_seed(TruncatingSeed(truncator));
            truncator.place.pop();
            map.insert(key, value?);
        }
        if missing > 0 {
            truncator.omit(&format!("{missing} more fields"));
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn small_values_are_complete_and_omitted_parts_are_named() {
        let value = json!({"a": [1, -2, 0.5, true, null, "ß"], "b": {"c": "x"}});
        let mut truncator = JsonTruncator::new(1000);
        assert_eq!(truncator.take("v", &value).unwrap(), value);
        assert!(truncator.omitted().is_empty());

        let long = json!({"first": "x".repeat(500), "then": "y"});
        let mut truncator = JsonTruncator::new(200);
        let cut = truncator.take("body", &long).unwrap();
        let first = cut["first"].as_str().unwrap();
        let kept = first.bytes().take_while(|byte| *byte == b'x').count();
        assert!(kept > 50 && first.ends_with(&format!("… ({} more bytes)", 500 - kept)), "{first}");
        assert_eq!(cut["then"], "y");
        assert_eq!(truncator.omitted(), [format!("body.first: {} more bytes", 500 - kept)]);
    }

    #[test]
    fn memory_and_text_are_bounded_for_any_input() {
        let many = format!("[{}0]", "0,".repeat(1 << 20));
        let mut deep = serde_json::Deserializer::from_str(&many);
        let mut truncator = JsonTruncator::new(60 << 10);
        let cut = truncator.take("list", &mut deep).unwrap();
        assert!(cut.as_array().unwrap().len() <= MAX_NODES && cut.to_string().len() <= 60 << 10);
        assert!(truncator.omitted()[0].ends_with("more entries"));
        for hostile in ["\u{1}".repeat(1 << 18), "\"".repeat(1 << 18), "ß".repeat(1 << 18)] {
            for value in
                [json!(hostile), json!({ "k": hostile }), json!({ hostile.clone(): 1 }), json!([hostile])]
            {
                let mut truncator = JsonTruncator::new(60 << 10);
                let cut = truncator.take("v", &value).unwrap().to_string();
                let omitted = truncator.omitted();
                assert!(cut.len() <= 61 << 10 && !omitted.is_empty() && omitted.len() <= MAX_NAMED + 1);
            }
        }
    }
}
