//! Dangling references, as checks: each file, section and document that a comment, a script or a page names is in this
//! repository. [`sections`] serves the tables of promises, which name sections of `assets/docs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Names that look like files of this repository, but are not.
const ALLOWED: [(&str, &str); 14] = [
    ("sandboxed.sh", "the name of a server"),
    ("SKILL.md", "a skill, in a workspace or in the library"),
    ("Skill.md", "a spelling of it that is no skill"),
    ("CLAUDE.md", "a file for Claude Code, in a workspace"),
    ("NAME.md", "placeholder"),
    ("NAME.json", "placeholder"),
    ("SCRIPT.sh", "placeholder"),
    ("greet.md", "an example of the README makes it"),
    ("bad.md", "a test makes it"),
    ("Cargo.lock", "cargo makes it"),
    ("entrypoint.sh", "staged for a sandbox"),
    ("task_pool.rs", "a file of tiny_http"),
    ("ENVIRONMENT.md", "a page of systemd"),
    ("UIDS-GIDS.md", "a page of systemd"),
];

/// Documents that the project was built from and that are not part of it. Each is written in two parts, so that this
/// file does not name them.
const OUTSIDE: [(&str, &str); 5] =
    [("DES", "IGN"), ("field", "-survey"), ("field ", "survey"), ("vm-", "run"), ("VM_", "RUN")];

/// Folders whose files are data, not prose.
const DATA: [&str; 5] = [".git", "target", "assets/keyrings", "assets/opencode", "tests/golden"];

const ENDINGS: [&str; 7] = ["rs", "md", "sh", "py", "mjs", "toml", "service"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the repository below its root, and its text if it has one.
fn files() -> BTreeMap<String, Option<String>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            let data = DATA.contains(&name.as_str());
            if path.is_dir()
                && !["target", ".git"].iter().any(|created| name.split('/').any(|part| part == *created))
            {
                folders.push(path);
            } else if path.is_file() {
                let data = data || DATA.iter().any(|folder| name.starts_with(&format!("{folder}/")));
                let text =
                    (!data && !name.ends_with(".lock")).then(|| fs::read_to_string(&path).ok()).flatten();
                found.insert(name, text);
            }
        }
    }
    assert!(found.len() > 300, "{}", found.len());
    found
}

/// The prose about the code: for Rust and similar languages the comments; for scripts the comments, with `true`, and
/// the rest, with `false`; for a page everything except its blocks of code.
fn prose<'a>(file: &str, text: &'a str) -> Vec<(usize, &'a str, bool)> {
    let mut fenced = false;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending);
        let (part, comment) = match ending {
            "rs" | "c" | "java" | "mjs" | "js" => match line.find("//") {
                Some(at) => (&line[at..], true),
                None => continue,
            },
            "md" => {
                if line.trim_start().starts_with("```") {
                    fenced = !fenced;
                }
                (line, !fenced)
            }
            _ => (line, line.trim_start().starts_with('#')),
        };
        found.push((number + 1, part, comment));
    }
    found
}

/// The words of a line that may be paths, with the section behind `#` if there is one.
fn words(line: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let part = |c: char| !(c.is_ascii_alphanumeric() || "_./-#".contains(c));
    line.split(part).map(|word| word.trim_end_matches(['.', '/', '#'])).map(|word| {
        match word.split_once('#') {
            Some((path, section)) => (path, Some(section)),
            None => (word, None),
        }
    })
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        if fenced || level == 0 || !line[level..].starts_with(' ') {
            continue;
        }
        let is_kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
        let slug: String = line[level..].trim().to_lowercase().chars().filter(is_kept).collect();
        let slug = slug.replace(' ', "-");
        let same = found.iter().filter(|(_, other)| *other == slug).count();
        found.push((level, if same == 0 { slug } else { format!("{slug}-{same}") }));
    }
    found
}

/// The sections of a page of `assets/docs`: those of the lowest level, as anchors.
pub fn sections(page: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("assets/docs").join(page)).unwrap();
    let anchors = anchors(&text);
    let lowest = anchors.iter().map(|(level, _)| *level).max().unwrap();
    anchors.into_iter().filter(|(level, _)| *level == lowest).map(|(_, anchor)| anchor).collect()
}

/// Returns the `named` sections that the page does not have, and its sections that are not in `named`.
#[track_caller]
pub fn covered<'a>(page: &str, named: impl Iterator<Item = &'a str>) {
    let named: BTreeSet<String> = named.map(str::to_owned).collect();
    let exists = sections(page);
    let missing: Vec<_> = named.difference(&exists).collect();
    assert!(missing.is_empty(), "assets/docs/{page} has no section {missing:?}");
    let unproven: Vec<_> = exists.difference(&named).collect();
    assert!(unproven.is_empty(), "no test proves these sections of assets/docs/{page}: {unproven:?}");
}

/// Returns the tests of a promise, `file::function`, that do not exist; `vm::name` is a script in `tests/vm`.
#[track_caller]
pub fn tests_exist(promise: &str, tests: &[&str]) {
    assert!(!tests.is_empty(), "{promise}: shown by no test");
    for test in tests {
        let (file, name) = test.split_once("::").unwrap();
        let exists = match file {
            "vm" => root().join(format!("tests/vm/{name}.sh")).is_file(),
            _ => fs::read_to_string(root().join(format!("tests/it/{file}.rs")))
                .is_ok_and(|text| text.contains(&format!("fn {name}("))),
        };
        assert!(exists, "{promise}: there is no {test}");
    }
}

fn is_allowed(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap();
    ALLOWED.iter().any(|(allowed, _)| *allowed == name)
}

#[test]
fn every_file_that_is_named_exists() {
    let files = files();
    let exists = |path: &str| files.contains_key(path) || root().join(path).is_dir();
    let ends_so = |path: &str| exists(path) || files.keys().any(|file| file.ends_with(&format!("/{path}")));
    let mut wrong = Vec::new();
    for (file, text) in &files {
        let Some(text) = text else { continue };
        for (number, line, comment) in prose(file, text) {
            for (word, section) in words(line) {
                let path = word.trim_start_matches("./");
                if is_allowed(path) || path.starts_with(['/', '.']) && !path.starts_with(".c") {
                    continue;
                }
                let from_root =
                    ["src/", "tests/", "assets/", ".ci/"].iter().any(|start| path.starts_with(start));
                let known = path
                    .rsplit_once('.')
                    .is_some_and(|(stem, end)| !stem.is_empty() && ENDINGS.contains(&end));
                let there = match (from_root, known && comment) {
                    (true, _) => exists(path),
                    (false, true) => ends_so(path),
                    (false, false) => true,
                };
                if !there {
                    wrong.push(format!("{file}:{number}: there is no {path}"));
                } else if let Some(section) = section.filter(|_| path.ends_with(".md") && exists(path)) {
                    let page = files[path].as_deref().unwrap();
                    if !anchors(page).iter().any(|(_, anchor)| anchor == section) {
                        wrong.push(format!("{file}:{number}: {path} has no section {section}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_document_outside_of_the_repository_is_named() {
    let mut wrong = Vec::new();
    for (file, text) in &files() {
        let Some(text) = text.as_ref() else { continue };
        for (number, line) in text.lines().enumerate() {
            for (start, end) in OUTSIDE {
                if line.contains(&format!("{start}{end}")) {
                    wrong.push(format!("{file}:{}: {start}{end} is not in the repository", number + 1));
                }
            }
            // Numbered sections are those of standards; the project's own sections have names.
            if line.contains('§') && !line.contains("RFC") && !line.contains("'§'") {
                wrong.push(format!("{file}:{}: a section of which document?", number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_link_of_a_page_leads_somewhere() {
    let files = files();
    let mut wrong = Vec::new();
    let mut links = 0;
    for (file, text) in files.iter().filter(|(file, _)| file.ends_with(".md")) {
        let text = text.as_deref().unwrap_or_default();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', ' ', '\n']).next().unwrap();
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (path, section) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => file.clone(),
                path => plain(&Path::new(file).parent().unwrap().join(path)),
            };
            let exists = match files.get(&path) {
                Some(Some(page)) => {
                    section.is_empty() || anchors(page).iter().any(|(_, anchor)| anchor == section)
                }
                Some(None) => section.is_empty(),
                None => root().join(&path).is_dir() && section.is_empty(),
            };
            if !exists {
                wrong.push(format!("{file}: the link {target} leads nowhere"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(links > 10, "{links}");
}

/// `a/../b` is `b`.
fn plain(path: &Path) -> String {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = plain.pop(),
            Component::Normal(part) => plain.push(part),
            _ => {}
        }
    }
    plain.to_str().unwrap().to_owned()
}

#[test]
fn anchors_are_those_of_github() {
    let page = "# A page\n## Requests, errors and `login`\n```\n# no\n```\n## 1. Threads, and few crates\n## A page\n";
    let anchors: Vec<String> = anchors(page).into_iter().map(|(_, anchor)| anchor).collect();
    assert_eq!(anchors, ["a-page", "requests-errors-and-login", "1-threads-and-few-crates", "a-page-1"]);
    assert_eq!(
        words("see `assets/docs/x.md#a-b`, (src/lib.rs).").collect::<Vec<_>>()[1..],
        [
            ("", None),
            ("assets/docs/x.md", Some("a-b")),
            ("", None),
            ("", None),
            ("", None),
            ("src/lib.rs", None),
            ("", None)
        ]
    );
}
