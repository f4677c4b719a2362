//! Rules of `assets/docs/decisions.md#6-layers` about the source, as checks: which module may use which, the length of
//! files, the location of dangerous code. Each failure names the remedy.

use std::fs;
use std::path::{Path, PathBuf};

/// Top to bottom: a module may use those below it.
const LAYERS: [&str; 25] = [
    "main",
    "lib",
    "cli",
    "config",
    "server",
    "gate",
    "api",
    "http",
    "host",
    "lifecycle",
    "doctor",
    "workspaces",
    "project",
    "access",
    "opencode",
    "terminals",
    "runs",
    "containers",
    "roots",
    "images",
    "library",
    "events",
    "store",
    "proc",
    "base",
];

/// Below, but still forbidden: the two are connected by a trait that the upper module defines.
const NEVER: [(&str, &str); 4] = [
    ("workspaces", "runs"),
    ("workspaces", "containers"),
    ("workspaces", "terminals"),
    ("terminals", "containers"),
];

const MAX_LINES: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`: its path below the project, and its text.
pub(super) fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty());
    found
}

/// Removes `//` comments, including documentation, and the contents of strings.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(end) = raw_string(rest) {
            end
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            rest[1..].find('\'').unwrap() + 2
        } else {
            code.push(c);
            c.len_utf8()
        };
        rest = &rest[skip..];
    }
    code
}

/// The length of the raw string at the start of `text`, if there is one.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.strip_prefix('r')?.bytes().take_while(|byte| *byte == b'#').count();
    let start = 1 + hashes;
    text[start..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(text[start + 1..].find(&end)? + start + 1 + end.len())
}

fn layer(file: &str) -> &str {
    let name = file.strip_prefix("src/").unwrap();
    name.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The modules directly after `crate::` (or `berth::`), also in `crate::{a, b::c}`.
fn uses(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "berth::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &code[at + start.len()..];
            let Some(group) = rest.strip_prefix('{') else {
                found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
                continue;
            };
            let (mut depth, mut name, mut fresh) = (0, String::new(), true);
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.push(std::mem::take(&mut name));
                        fresh = true;
                    }
                    c if depth == 0 && fresh && (c.is_alphanumeric() || c == '_') => name.push(c),
                    c if depth == 0 && c == ':' => fresh = false,
                    _ => {}
                }
            }
            found.push(name);
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn uses_are_found() {
    let text = "use crate::base::{A, B};\nuse crate::{store::file, proc, http::{x, y}};\nlet x = crate::runs::Y; // crate::no\n\
                \"crate::no \\\" crate::no\"; r#\"crate::no\"#; '\"'; x('\"', \"crate::no\")";
    assert_eq!(uses(&code(text)), ["base", "store", "proc", "http", "runs"]);
}

#[test]
fn modules_use_only_lower_layers() {
    let rank = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        let from = layer(&file);
        let Some(height) = rank(from) else {
            wrong.push(format!("{file}: {from} has no place in LAYERS (tests/it/tidy.rs)"));
            continue;
        };
        for to in uses(&code(&text)) {
            match rank(&to) {
                None => wrong.push(format!("{file}: uses {to}, which has no place in the order")),
                Some(depth) if depth < height => {
                    wrong.push(format!(
                        "{file}: {from} uses {to}, which stands above it; turn the arrow with a trait"
                    ));
                }
                Some(_) if NEVER.contains(&(from, to.as_str())) => {
                    wrong.push(format!(
                        "{file}: {from} must not use {to}; let the owner of {to} pass a trait object"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn source_files_are_short() {
    for folder in ["src", "tests"] {
        for (file, text) in sources(folder) {
            let lines = text.lines().count();
            assert!(lines <= MAX_LINES, "{file} has {lines} lines; split it by concept, at most {MAX_LINES}");
        }
    }
}

#[test]
fn every_file_begins_with_its_purpose() {
    for folder in ["src", "tests"] {
        for (file, text) in sources(folder) {
            assert!(text.starts_with("//! "), "{file} must begin with a //! comment that states its purpose");
        }
    }
}

#[test]
fn unsafe_code_is_in_one_file() {
    for (file, text) in sources("src") {
        if file == "src/proc/sys.rs" {
            continue;
        }
        let code = code(&text);
        for (at, word) in code.match_indices(concat!("uns", "afe")) {
            let next = code[at + word.len()..].trim_start();
            let starts =
                ["{", "fn", "impl", "extern", "trait", "("].iter().any(|start| next.starts_with(start));
            assert!(!starts, "{file}: system calls without a safe binding live in src/proc/sys.rs");
        }
    }
}

#[test]
fn tiny_http_is_used_by_the_gate_only() {
    for (file, text) in sources("src") {
        let door = ["src/http/accept.rs", "src/http/request.rs"].contains(&file.as_str());
        assert!(
            door || !code(&text).contains("tiny_http"),
            "{file} names tiny_http; use http::Request and http::Reply"
        );
    }
}

#[test]
fn the_source_has_no_todo_comments() {
    for folder in ["src", "tests"] {
        for (file, text) in sources(folder) {
            for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")] {
                assert!(!text.contains(word), "{file}: do it, or open an issue; no {word} in the source");
            }
        }
    }
}

#[test]
fn the_top_level_has_few_modules() {
    let expected = ["Cargo.lock", "Cargo.toml", "LICENSE", "README.md", "assets", "src", "target", "tests"];
    for entry in fs::read_dir(root()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        assert!(
            name.starts_with('.') || expected.contains(&name.as_str()),
            "{name} has no place at the top level"
        );
    }
}

#[test]
fn every_dependency_has_a_reason() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (mut inside, mut reason) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
            reason = false;
        } else if line.is_empty() {
            reason = false;
        } else if line.starts_with('#') {
            reason = true;
        } else if inside
            && line.split_once('=').is_some_and(|(name, _)| !name.contains(' ') || name.ends_with(' '))
        {
            assert!(reason, "{line}: give the reason for it in a comment above it or above its group");
        }
    }
}

#[test]
fn modules_are_named_by_a_concept() {
    for (file, _) in sources("src") {
        for part in PathBuf::from(&file).components() {
            let part = part.as_os_str().to_str().unwrap().trim_end_matches(".rs");
            let vague = ["utils", "util", "helpers", "helper", "common", "manager", "misc"].contains(&part);
            assert!(!vague, "{file}: {part} has no meaning; name the concept");
        }
    }
}
