//! Fields of JSON bodies that no route reads. Clients of other versions send fields that berth does not know, so they are no
//! error; a misspelt one is told of, with the field that it resembles. What a body may hold comes from its type. Pure.

use std::fmt;

use serde::de::value::Error as ProbeError;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

/// Most unknown fields that are told of, and most characters of a name.
const MOST: usize = 10;
const NAME_CHARS: usize = 64;

/// The fields that an object may have.
#[derive(Clone, Debug, Default)]
pub struct KnownFields {
    /// `None`: any.
    names: Option<Vec<&'static str>>,
    below: Vec<(&'static str, KnownFields)>,
}

impl KnownFields {
    /// Those of a struct that serde derives; any, where the type is no struct, or has flattened parts.
    pub fn from_type<T: DeserializeOwned>() -> KnownFields {
        let mut names = None;
        let _ = T::deserialize(Probe(&mut names));
        KnownFields { names: names.map(<[_]>::to_vec), below: Vec::new() }
    }

    /// Exactly these.
    pub fn from_names(names: &[&'static str]) -> KnownFields {
        KnownFields { names: Some(names.to_vec()), below: Vec::new() }
    }

    /// These and those: what serde flattens.
    #[must_use]
    pub fn merge(mut self, mut other: KnownFields) -> KnownFields {
        self.names = self.names.zip(other.names).map(|(own, more)| [own, more].concat());
        self.below.append(&mut other.below);
        self
    }

    /// With the fields of the object, or of each object of the list, in the field `name`.
    #[must_use]
    pub fn with_nested(mut self, name: &'static str, fields: KnownFields) -> KnownFields {
        self.below.push((name, fields));
        self
    }

    /// A sentence for each field of a JSON body that is none of these.
    pub fn unknown_fields(&self, body: &[u8]) -> Vec<String> {
        let mut told = Vec::new();
        if self.names.is_some() {
            let mut body = serde_json::Deserializer::from_slice(body);
            let scan = UnknownFieldScan { fields: self, path: "", told: &mut told };
            // A body that is not JSON was refused before.
            let _ = scan.deserialize(&mut body);
        }
        told
    }

    /// All names, those of inner objects with the way to them.
    fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.names.iter().flatten().map(|name| (*name).to_owned()).collect();
        for (name, fields) in &self.below {
            paths.extend(fields.paths().into_iter().map(|path| format!("{name}.{path}")));
        }
        paths
    }
}

/// "unknown `what` `name`; did you mean …?"
pub fn unknown_name_message(what: &str, name: &str, known: &[String]) -> String {
    let shown: String = name.chars().take(NAME_CHARS).collect::<String>().escape_debug().to_string();
    match nearest(name, known) {
        Some(near) => format!("unknown {what} `{shown}`; did you mean `{near}`?"),
        None => format!("unknown {what} `{shown}`"),
    }
}

/// The name that was probably meant.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
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
        // `memory`, or `memroy`, for `memory_bytes`.
        let slips = usize::from(short.len() >= 5);
        let begins = short.len() >= 3 && distance(short, &long[..short.len()]) <= slips;
        (close || begins).then_some((apart, known.matches('.').count(), known.as_str()))
    });
    // Of equally near names, the outermost, and of these the first declared.
    scored.min_by_key(|(apart, depth, _)| (*apart, *depth)).map(|(_, _, known)| known)
}

/// How many letters must be added, removed, changed or swapped (optimal string alignment).
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

/// Gives nothing; notes the fields that a struct asks for.
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

/// Walks through a value and notes what is not known.
struct UnknownFieldScan<'a> {
    fields: &'a KnownFields,
    path: &'a str,
    told: &'a mut Vec<String>,
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
                map.next_value_seed(UnknownFieldScan { fields, path: &path, told: self.told })?;
                continue;
            }
            map.next_value::<IgnoredAny>()?;
            let known = self.fields.names.as_ref().is_none_or(|names| names.contains(&name.as_str()));
            if !known && self.told.len() < MOST {
                let mut told = unknown_name_message("field", &name, &self.fields.paths());
                if !self.path.is_empty() {
                    told = told.replacen('`', &format!("`{}", self.path), 1);
                    told = told.replace("mean `", &format!("mean `{}", self.path));
                }
                self.told.push(told);
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list
            .next_element_seed(UnknownFieldScan { fields: self.fields, path: self.path, told: self.told })?
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
    #[expect(dead_code, reason = "only its fields are looked at")]
    struct InnerBody {
        memory_bytes: Option<u64>,
        #[serde(alias = "processors")]
        cpus: Option<u64>,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "only its fields are looked at")]
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
    fn misspelt_fields_are_told_of_with_what_was_meant() {
        let told = |body: &str| fields().unknown_fields(body.as_bytes()).join("|");
        assert_eq!(
            told(r#"{"init_script":"","name":1,"resources":{"cpus":1,"processors":2},"list":[{}]}"#),
            ""
        );
        assert_eq!(told(r#"{"initscript":""}"#), "unknown field `initscript`; did you mean `init_script`?");
        assert_eq!(told(r#"{"InitScript":""}"#), "unknown field `InitScript`; did you mean `init_script`?");
        assert_eq!(told(r#"{"timeout_sec":5}"#), "unknown field `timeout_sec`; did you mean `timeout_secs`?");
        assert_eq!(told(r#"{"timeout":5}"#), "unknown field `timeout`; did you mean `timeout_secs`?");
        assert_eq!(
            told(r#"{"memory":"1G"}"#),
            "unknown field `memory`; did you mean `resources.memoryBytes`?"
        );
        assert_eq!(told(r#"{"xyzzy":{"init_script":1}}"#), "unknown field `xyzzy`");
        assert_eq!(
            told(r#"{"resources":{"memory":1},"list":[{"cpu":1},{"z":2}]}"#),
            "unknown field `resources.memory`; did you mean `resources.memoryBytes`?|unknown field `list.cpu`; \
             did you mean `list.cpus`?|unknown field `list.z`"
        );
        assert_eq!(told(r#"{"resources":null,"list":5,"a\u0000b":1}"#), "unknown field `a\\0b`");
        assert_eq!(
            fields()
                .unknown_fields(
                    format!("{{{}}}", (0..50).map(|n| format!("\"q{n}\":1")).collect::<Vec<_>>().join(","))
                        .as_bytes()
                )
                .len(),
            MOST
        );
        assert!(told(&format!(r#"{{"{}":1}}"#, "é".repeat(9000))).len() < 300);
        assert!(KnownFields::from_type::<serde_json::Value>().unknown_fields(br#"{"a":1}"#).is_empty());
    }
}
