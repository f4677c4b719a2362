//! Compares results with those of js-yaml 3.14 for the same texts.

use serde_json::json;

use super::*;
use crate::store::yaml::values::TIMESTAMP;

fn value(text: &str) -> Result<Value, String> {
    parse(text).map(Option::unwrap_or_default)
}

#[test]
fn values_follow_the_default_schema() {
    for (text, want) in [
        ("~", json!(null)),
        ("Null", json!(null)),
        ("y", json!("y")),
        ("no", json!("no")),
        ("True", json!(true)),
        ("FALSE", json!(false)),
        ("tRue", json!("tRue")),
        ("12", json!(12)),
        ("+12", json!(12)),
        ("-12", json!(-12)),
        ("--12", json!("--12")),
        ("0x1F", json!(31)),
        ("0b11", json!(3)),
        ("017", json!(15)),
        ("08", json!("08")),
        ("0o17", json!("0o17")),
        ("0x+1", json!("0x+1")),
        ("1_000", json!(1000)),
        ("1_", json!("1_")),
        ("1:30", json!(90)),
        ("1:2.5", json!(62.5)),
        ("1:60", json!("1:60")),
        ("1.5e3", json!(1500)),
        (".5", json!(0.5)),
        ("-.5", json!("-.5")),
        ("1.", json!(1)),
        ("1e400", json!(null)),
        (".", json!(".")),
        ("1.2.3", json!("1.2.3")),
        ("inf", json!("inf")),
        (".nan", json!(null)),
        ("2026-11-25", json!({ TIMESTAMP: "2026-11-25" })),
        ("2026-1-1 1:00:00", json!({ TIMESTAMP: "2026-1-1 1:00:00" })),
        ("2026-1-1", json!("2026-1-1")),
        ("\"12\"", json!("12")),
        ("'true'", json!("true")),
        ("!!str 12", json!("12")),
        ("! 12", json!("12")),
        ("!!int 12", json!(12)),
        ("[a, [1], {b: }]", json!(["a", [1], {"b": null}])),
        ("|\n  two\n  lines\n", json!("two\nlines\n")),
        (">-\n  two\n  lines\n", json!("two lines")),
        ("a: &x {b: 1}\nc: *x\n", json!({"a": {"b": 1}, "c": {"b": 1}})),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\n", json!({"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}})),
        ("1: a\ntrue: b\n\"c d\": e\n", json!({"1": "a", "true": "b", "c d": "e"})),
        ("- a\n-\n- - b\n", json!(["a", null, ["b"]])),
        ("a:\tb\n", json!({"a": "b"})),
        ("a: C# and F# #1\n", json!({"a": "C# and F#"})),
        ("a: one\n  two\nb: 1\n", json!({"a": "one two", "b": 1})),
        ("a: \"\\ud83d\\ude80\"", json!({"a": "\u{1f680}"})),
        ("? [a, b]\n: c\n", json!({"a,b": "c"})),
        ("a: &x [*x]\n", json!({"a": [[]]})),
        ("---\na: 1\n", json!({"a": 1})),
        ("a: 1\n...\n", json!({"a": 1})),
    ] {
        assert_eq!(value(text), Ok(want), "{text:?}");
    }
    assert_eq!(parse(""), Ok(None));
}

#[test]
fn errors_have_their_line() {
    for (text, want) in [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' appears twice (line 3)"),
        ("a: !!int x\n", "'x' is not of type int (line 1)"),
        ("a: !thing x\n", "the tag '!thing' is not supported (line 1)"),
        ("a: 1\n...\nb: 1\n", "there should be one document only"),
        ("a: {<<: 1}\n", "'<<' should name an object (line 1)"),
        ("a: b: c\n", "a value has no key"),
        ("a: *none\n", "there is no anchor 'none'"),
        ("a: @x\n", "(line"),
        ("a: 'x' y\n", "(line"),
        ("a: \"\\q\"\n", "unknown escape"),
        ("a: \u{7}\n", "the text contains the character"),
        ("a: \0\n", "NUL"),
    ] {
        let why = value(text).unwrap_err();
        assert!(why.contains(want), "{text:?}: {why}");
    }
}

#[test]
fn hostile_documents_are_bounded() {
    let begun = std::time::Instant::now();
    for deep in ["[".repeat(20_000), "- ".repeat(20_000), "{a: ".repeat(20_000), "? ".repeat(20_000)] {
        assert!(value(&deep).unwrap_err().contains("nesting is deeper"));
    }
    let many = "- x\n".repeat(limits::FRONT_MATTER_NODES + 1);
    assert!(value(&many).unwrap_err().contains("too large"));
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(limits::FRONT_MATTER_BYTES / 2), "*a,".repeat(4));
    assert!(value(&long).unwrap_err().contains("too large"));
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for n in 1..10 {
        let row = vec![format!("*a{}", n - 1); 10].join(",");
        bomb += &format!("a{n}: &a{n} [{row}]\n");
    }
    assert!(value(&bomb).unwrap_err().contains("too large"));
    let entries: String = (0..30_000).map(|n| format!("k{n}: {n}\n")).collect();
    assert_eq!(value(&entries).unwrap().as_object().unwrap().len(), 30_000);
    let anchors: String = (0..5_000).map(|n| format!("k{n}: &a{n} [{n}]\n")).collect();
    assert!(value(&anchors).is_ok());
    let repeated = "k: 1\n".repeat(30_000);
    assert!(value(&repeated).unwrap_err().contains("twice"));
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}
