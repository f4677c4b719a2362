//! Expected shapes of responses, stored in `tests/golden`: a difference fails the test, `UPDATE_GOLDEN=1` rewrites the
//! files. Values that differ from run to run (folders, ids, times) are replaced first.

use std::path::Path;

use serde_json::Value;

/// Compares a value with `tests/golden/NAME.json`. Before, each `what` in its strings is replaced by `{name}`, and each
/// number that is a time of this decade in milliseconds by 0.
#[track_caller]
pub fn golden(name: &str, value: &Value, replace: &[(&str, &str)]) {
    let mut value = value.clone();
    steady(&mut value, replace);
    let text = serde_json::to_string_pretty(&value).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        expected == text,
        "{} differs from the response; expected:\n{expected}\nreceived:\n{text}",
        path.display()
    );
}

fn steady(value: &mut Value, replace: &[(&str, &str)]) {
    match value {
        Value::String(text) => {
            for (what, name) in replace {
                *text = text.replace(what, &format!("{{{name}}}"));
            }
        }
        Value::Number(number)
            if number.as_u64().is_some_and(|n| (1_700_000_000_000..2_100_000_000_000).contains(&n)) =>
        {
            *value = Value::from(0);
        }
        Value::Array(list) => list.iter_mut().for_each(|value| steady(value, replace)),
        Value::Object(fields) => fields.values_mut().for_each(|value| steady(value, replace)),
        _ => {}
    }
}
