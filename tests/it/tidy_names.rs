//! The names and the imports of `src/`: a type name stands for one concept, and files that import each other in a circle
//! are few, so a change can be followed to its end.

use std::collections::{BTreeMap, BTreeSet};

use super::tidy::sources;

/// A name may be shared by two rooms; a third use means that it says nothing.
const SAME_NAME: usize = 2;
/// Files in one import circle: a type, its parts and their thread may need each other, more is a tangle.
const CIRCLE: usize = 3;

/// Everything before the unit tests, without comments.
fn product_code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let without_comment = |line: &str| match line.find("//") {
        Some(at) if !line[..at].contains('"') => line[..at].to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(without_comment).collect::<Vec<_>>().join("\n")
}

fn product_files() -> Vec<(String, String)> {
    let mut files = sources("src");
    files.retain(|(file, _)| !file.ends_with("_tests.rs") && !file.ends_with("/tests.rs"));
    files.into_iter().map(|(file, text)| (file, product_code(&text))).collect()
}

/// The type that a line defines at module level.
fn defined_type(line: &str) -> Option<&str> {
    let line = line
        .strip_prefix("pub ")
        .or_else(|| line.strip_prefix("pub(").and_then(|rest| rest.split_once(") ").map(|x| x.1)))
        .unwrap_or(line);
    let rest =
        ["struct ", "enum ", "trait ", "type ", "union "].iter().find_map(|word| line.strip_prefix(word))?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some(&rest[..end])
}

#[test]
fn a_type_name_stands_for_one_concept() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, text) in product_files() {
        for name in text.lines().filter_map(defined_type) {
            places.entry(name.to_owned()).or_default().push(file.clone());
        }
    }
    assert!(places.len() > 500, "the types were not found");
    let shared: Vec<String> = places
        .iter()
        .filter(|(_, files)| files.len() > SAME_NAME)
        .map(|(name, files)| format!("{name}: {}; say which one each is", files.join(", ")))
        .collect();
    assert!(shared.is_empty(), "{}", shared.join("\n"));
}

/// `a::{b, c::d}` as `a::b` and `a::c::d`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((before, rest)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inner = rest.rsplit_once('}').map_or(rest, |(inner, _)| inner);
    let (mut parts, mut part, mut depth) = (Vec::new(), String::new(), 0);
    for c in inner.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    parts.push(part);
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| paths(part)).map(|part| format!("{before}{part}")).collect()
}

/// The files of the crate by module path.
struct Modules {
    files: BTreeMap<String, String>,
    /// Where `pub use` takes a name from: (module, name) to module.
    re_exports: BTreeMap<(String, String), String>,
}

impl Modules {
    fn read() -> Modules {
        let files: BTreeMap<String, String> = product_files()
            .into_iter()
            .map(|(file, text)| {
                let path = file.trim_start_matches("src/").trim_end_matches(".rs").replace('/', "::");
                (path.trim_end_matches("::mod").to_owned(), text)
            })
            .collect();
        let mut modules = Modules { files, re_exports: BTreeMap::new() };
        let mut found = Vec::new();
        for (module, text) in &modules.files {
            for (is_public, tree) in imports(text) {
                for path in paths(&tree).into_iter().filter(|_| is_public) {
                    let name = path.rsplit([':', ' ']).next().unwrap_or_default().to_owned();
                    let target = modules.resolve(&path, module);
                    let target = target.or_else(|| modules.resolve(&format!("self::{path}"), module));
                    found.extend(target.map(|(target, _)| ((module.clone(), name), target)));
                }
            }
        }
        modules.re_exports.extend(found);
        modules
    }

    /// The module that a path seen in `from` leads to, and the item behind it.
    fn resolve(&self, path: &str, from: &str) -> Option<(String, Option<String>)> {
        let mut base: Vec<&str> = from.split("::").collect();
        let mut rest: Vec<&str> = path.split(' ').next()?.split("::").map(str::trim).collect();
        match *rest.first()? {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                while rest.get(1) == Some(&"super") {
                    base.pop();
                    rest.remove(0);
                }
                base.pop();
            }
            _ => return None,
        }
        base.extend(rest.drain(1..));
        (1..=base.len()).rev().find_map(|length| {
            let module = base[..length].join("::");
            let item = base.get(length).map(|item| (*item).to_owned());
            self.files.contains_key(&module).then_some((module, item))
        })
    }

    fn edges(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (module, text) in &self.files {
            let inline = inline_paths(text).into_iter().map(|path| (false, path));
            for (is_public, tree) in imports(text).into_iter().chain(inline) {
                for path in paths(&tree).into_iter().filter(|_| !is_public) {
                    let Some((mut target, item)) = self.resolve(&path, module) else { continue };
                    if let Some(from) = item.and_then(|item| self.re_exports.get(&(target.clone(), item))) {
                        target = from.clone();
                    }
                    if let Some((target, _)) =
                        self.files.get_key_value(&target).filter(|(path, _)| *path != module)
                    {
                        edges.entry(module).or_default().insert(target);
                    }
                }
            }
        }
        edges
    }
}

/// The `use` declarations, and whether each is public.
fn imports(text: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("use ") {
        let start = rest[..at].rfind('\n').map_or(0, |at| at + 1);
        let before = rest[start..at].trim();
        rest = &rest[at + 4..];
        if before.is_empty() || before.starts_with("pub") {
            if let Some(end) = rest.find(';') {
                let tree = rest[..end].split_whitespace().collect::<Vec<_>>().join(" ");
                found.push((!before.is_empty(), tree));
            }
        }
    }
    found
}

/// Paths in the code that no `use` names.
fn inline_paths(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let is_start = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            let path: String =
                text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
            if is_start {
                found.push(path.trim_end_matches(':').to_owned());
            }
        }
    }
    found
}

/// All that can be reached from `start`.
fn reachable<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>, start: &'a str) -> BTreeSet<&'a str> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(module) = open.pop() {
        for next in edges.get(module).into_iter().flatten() {
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen
}

#[test]
fn import_circles_are_small() {
    let modules = Modules::read();
    let edges = modules.edges();
    assert!(edges.len() > 200, "the imports were not found");
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|module| (*module, reachable(&edges, module))).collect();
    let mut circles: BTreeSet<Vec<&str>> = BTreeSet::new();
    for (module, all) in &reach {
        if all.contains(module) {
            let circle =
                all.iter().filter(|other| reach.get(*other).is_some_and(|back| back.contains(module)));
            circles.insert(circle.copied().collect());
        }
    }
    let large: Vec<String> =
        circles.iter().filter(|circle| circle.len() > CIRCLE).map(|circle| circle.join(", ")).collect();
    assert!(
        large.is_empty(),
        "files import each other in a circle; turn an arrow with a trait, or move what both need:\n{}",
        large.join("\n")
    );
}

#[test]
fn imports_are_read() {
    assert_eq!(
        paths("crate::a::{b, c::{d, e as f}}"),
        ["crate::a::b", "crate::a::c::d", "crate::a::c::e as f"]
    );
    assert_eq!(
        imports("pub use a::B;\nuse c::{\n    d,\n};"),
        [(true, "a::B".to_owned()), (false, "c::{ d, }".to_owned())]
    );
    assert_eq!(inline_paths("let x = crate::a::b(super::c);"), ["crate::a::b", "super::c"]);
}
