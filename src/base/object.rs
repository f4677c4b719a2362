//! Deserializers that accept only JSON objects. serde's derived structs also accept a list, which gives the fields in
//! source order. No client sends an object that way, and an API must not depend on the order of its fields in the
//! source. Use these functions with `deserialize_with` on each field that holds such a struct; the code that reads the
//! request checks the body itself. Pure.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

/// A value that deserializes only from an object.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(field: D) -> Result<Object<T>, D::Error> {
        field.deserialize_map(OnlyMaps(PhantomData)).map(Object)
    }
}

struct OnlyMaps<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMaps<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

/// Deserializes an object.
///
/// # Errors
/// When the value is not an object.
pub fn one<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<T, D::Error> {
    Object::deserialize(field).map(|object| object.0)
}

/// Deserializes an object or null.
///
/// # Errors
/// When the value is neither an object nor null.
pub fn optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(field)?.map(|object| object.0))
}

/// Deserializes a list of objects.
///
/// # Errors
/// When the value is not a list of objects.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Vec<T>, D::Error> {
    Ok(Vec::<Object<T>>::deserialize(field)?.into_iter().map(|object| object.0).collect())
}

/// Deserializes a list of objects, or null.
///
/// # Errors
/// When the value is neither a list of objects nor null.
pub fn optional_list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    field: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let all = Option::<Vec<Object<T>>>::deserialize(field)?;
    Ok(all.map(|all| all.into_iter().map(|object| object.0).collect()))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Point {
        x: Option<u64>,
        y: Option<u64>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct ObjectFields {
        #[serde(deserialize_with = "super::one")]
        one: Point,
        #[serde(deserialize_with = "super::optional")]
        optional: Option<Point>,
        #[serde(deserialize_with = "super::list")]
        list: Vec<Point>,
        #[serde(deserialize_with = "super::optional_list")]
        optional_list: Option<Vec<Point>>,
    }

    #[derive(Debug, Deserialize)]
    struct FlattenedBody {
        #[serde(flatten)]
        fields: ObjectFields,
    }

    #[test]
    fn lists_are_not_accepted_as_objects() {
        // Each text is read directly, and through the buffer that serde uses for `flatten`.
        let read = |text: &str| {
            let plain = serde_json::from_str::<ObjectFields>(text);
            let flat = serde_json::from_str::<FlattenedBody>(text).map(|body| body.fields);
            assert_eq!(plain.is_ok(), flat.is_ok(), "{text}");
            plain.and(flat)
        };
        assert_eq!(read("{}").unwrap(), ObjectFields::default());
        let point = || Point { x: Some(1), y: None };
        let good = r#"{"one":{"x":1},"optional":{"x":1},"list":[{"x":1}],"optional_list":[{"x":1}]}"#;
        let all = ObjectFields {
            one: point(),
            optional: Some(point()),
            list: vec![point()],
            optional_list: Some(vec![point()]),
        };
        assert_eq!(read(good).unwrap(), all);
        assert_eq!(read(r#"{"optional":null,"optional_list":null}"#).unwrap(), ObjectFields::default());
        for bad in [
            r#"{"one":[1,2]}"#,
            r#"{"one":[]}"#,
            r#"{"one":null}"#,
            r#"{"optional":[1,2]}"#,
            r#"{"optional":[]}"#,
            r#"{"optional":5}"#,
            r#"{"list":[[1,2]]}"#,
            r#"{"list":{}}"#,
            r#"{"optional_list":[[]]}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
