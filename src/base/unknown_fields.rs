//! Reports JSON fields that a route does not read. Clients of other versions may send fields that this version does not
//! have, so an unknown field causes a warning, not an error. The warning suggests the most similar known field. The
//! known fields are taken from the type of the request body. Pure.

use std::fmt;

use serde::de::value::Error as ProbeError;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

/// Maximum number of unknown fields that are reported, and, below, maximum length of a reported name.
const MAX_REPORTED: usize = 10;
const NAME_CHARS: usize = 64;

/// The field names that an object may have.
#[derive(Clone, Debug, Default)]
pub struct KnownFields {
    /// `None` if every name is known.
    names: Option<Vec<&'static str>>,
    below: Vec<(&'static str, KnownFields)>,
}

impl KnownFields {
    /// Returns the fields of a struct that derives `Deserialize`. For another type, or a struct with flattened fields,
    /// every field counts as known.
    pub fn from_type<T: DeserializeOwned>() -> KnownFields {
        let mut names = None;
        let _ = T::deserialize(Probe(&mut names));
        KnownFields { names: names.map(<[_]>::to_vec), below: Vec::new() }
    }

    /// Creates a set of exactly these names.
    pub fn from_names(names: &[&'static str]) -> KnownFields {
        KnownFields { names: Some(names.to_vec()), below: Vec::new() }
    }

    /// Adds the fields of `other`, which are flattened into this object.
    #[must_use]
    pub fn merge(mut self, mut other: KnownFields) -> KnownFields {
        self.names = self.names.zip(other.names).map(|(own, more)| [own, more].concat());
        self.below.append(&mut other.below);
        self
    }

    /// Adds the fields of the object in the field `name`, or of each object if that field is a list.
    #[must_use]
    pub fn with_nested(mut self, name: &'static str, fields: KnownFields) -> KnownFields {
        self.below.push((name, fields));
        self
    }

    /// Returns a sentence for each unknown field of a JSON body.
    pub fn unknown_fields(&self, body: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        if self.names.is_some() {
            let mut body = serde_json::Deserializer::from_slice(body);
            let scan = UnknownFieldScan { fields: self, path: "", found: &mut found };
            // Malformed JSON was rejected earlier.
            let _ = scan.deserialize(&mut body);
        }
        found
    }

    /// Returns all names; the name of a nested object's field includes its path.
    fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.names.iter().flatten().map(|name| (*name).to_owned()).collect();
        for (name, fields) in &self.below {
            paths.extend(fields.paths().into_iter().map(|path| format!("{name}.{path}")));
        }
        paths
    }
}

/// Returns the message "unknown `what` `name`", followed by "; did you mean …?" if a known name is similar.
pub fn unknown_name_message(what: &str, name: &str, known: &[String]) -> String {
    let shown: String = name.chars().take(NAME_CHARS).collect::<String>().escape_debug().to_string();
    match nearest(name, known) {
        Some(near) => format!("unknown {what} `{shown}`; did you mean `{near}`?"),
        None => format!("unknown {what} `{shown}`"),
    }
}

/// Returns the known name that is most similar to `name`, if one is similar enough.
pub fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let plain = |name: &str| -> Vec<char> {
        let letters = name.chars().filter(|c| c.is_alphanumeric()).take(NAME_CHARS);
        letters.flat_map(char::to_lowercase).collect()
    };
    let wanted = plain(name);
    let scored = known.iter().filter_map(|known| {
        let last = plain(known.rsplit('.').next().unwrap_or(known));
        let apart = distance(&wanted, &last);
        let (short, long) = if wanted.len() < last.len() { (&wanted, &last) } else { (&last, &wanted) };
        let close = apart <= (long.len() / 3).max(1) && apart < long.len();
        // A name that is the beginning of a known name, with at most one typing error: `memory` or `memroy` for
        // `memory_bytes`.
        let slips = usize::from(short.len() >= 5);
        let begins = short.len() >= 3 && distance(short, &long[..short.len()]) <= slips;
        (close || begins).then_some((apart, known.matches('.').count(), known.as_str()))
    });
    // Among equally similar names, prefer the outermost, then the first declared.
    scored.min_by_key(|(apart, depth, _)| (*apart, *depth)).map(|(_, _, known)| known)
}

/// Returns the number of letters to add, remove, change or swap to turn `a` into `b` (optimal string alignment
/// distance).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// A deserializer without data that records which field names a struct requests.
struct Probe<'a>(&'a mut Option<&'static [&'static str]>);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = ProbeError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ProbeError> {
        Err(ProbeError::custom("a probe"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ProbeError> {
        *self.0 = Some(fields);
        Err(ProbeError::custom("a probe"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Walks a JSON value and records unknown fields.
struct UnknownFieldScan<'a> {
    fields: &'a KnownFields,
    path: &'a str,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for UnknownFieldScan<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UnknownFieldScan<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let below = self.fields.below.iter().find(|(known, _)| *known == name);
            if let Some((_, fields)) = below {
                let path = format!("{}{name}.", self.path);
                map.next_value_seed(UnknownFieldScan { fields, path: &path, found: self.found })?;
                continue;
            }
            map.next_value::<IgnoredAny>()?;
            let known = self.fields.names.as_ref().is_none_or(|names| names.contains(&name.as_str()));
            if !known && self.found.len() < MAX_REPORTED {
                let mut found = unknown_name_message("field", &name, &self.fields.paths());
                if !self.path.is_empty() {
                    found = found.replacen('`', &format!("`{}", self.path), 1);
                    found = found.replace("mean `", &format!("mean `{}", self.path));
                }
                self.found.push(found);
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list
            .next_element_seed(UnknownFieldScan { fields: self.fields, path: self.path, found: self.found })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    #[expect(dead_code, reason = "only its field names are read")]
    struct InnerBody {
        memory_bytes: Option<u64>,
        #[serde(alias = "processors")]
        cpus: Option<u64>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its field names are read")]
    struct OuterBody {
        init_script: Option<String>,
        timeout_secs: Option<u64>,
        resources: Option<InnerBody>,
        list: Option<Vec<InnerBody>>,
    }

    fn fields() -> KnownFields {
        KnownFields::from_type::<OuterBody>()
            .with_nested("resources", KnownFields::from_type::<InnerBody>())
            .with_nested("list", KnownFields::from_type::<InnerBody>())
            .merge(KnownFields::from_names(&["name"]))
    }

    #[test]
    fn misspelt_fields_are_reported_with_a_suggestion() {
        let found = |body: &str| fields().unknown_fields(body.as_bytes()).join("|");
        assert_eq!(
            found(r#"{"init_script":"","name":1,"resources":{"cpus":1,"processors":2},"list":[{}]}"#),
            ""
        );
        assert_eq!(found(r#"{"initscript":""}"#), "unknown field `initscript`; did you mean `init_script`?");
        assert_eq!(found(r#"{"InitScript":""}"#), "unknown field `InitScript`; did you mean `init_script`?");
        assert_eq!(
            found(r#"{"timeout_sec":5}"#),
            "unknown field `timeout_sec`; did you mean `timeout_secs`?"
        );
        assert_eq!(found(r#"{"timeout":5}"#), "unknown field `timeout`; did you mean `timeout_secs`?");
        assert_eq!(
            found(r#"{"memory":"1G"}"#),
            "unknown field `memory`; did you mean `resources.memoryBytes`?"
        );
        assert_eq!(found(r#"{"xyzzy":{"init_script":1}}"#), "unknown field `xyzzy`");
        assert_eq!(
            found(r#"{"resources":{"memory":1},"list":[{"cpu":1},{"z":2}]}"#),
            "unknown field `resources.memory`; did you mean `resources.memoryBytes`?|unknown field `list.cpu`; \
             did you mean `list.cpus`?|unknown field `list.z`"
        );
        assert_eq!(found(r#"{"resources":null,"list":5,"a\u0000b":1}"#), "unknown field `a\\0b`");
        assert_eq!(
            fields()
                .unknown_fields(
                    format!("{{{}}}", (0..50).map(|n| format!("\"q{n}\":1")).collect::<Vec<_>>().join(","))
                        .as_bytes()
                )
                .len(),
            MAX_REPORTED
        );
        assert!(found(&format!(r#"{{"{}":1}}"#, "é".repeat(9000))).len() < 300);
        assert!(KnownFields::from_type::<serde_json::Value>().unknown_fields(br#"{"a":1}"#).is_empty());
    }
}
