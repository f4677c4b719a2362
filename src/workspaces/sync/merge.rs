//! Merges berth's part into a file that users also edit: keys of a JSON file with comments, or a marked block of a
//! Markdown file. The users' content takes precedence, and remains when berth's part is removed. Pure.

use std::collections::HashSet;

use serde_json::Value;

use super::manifest::{HexDigest, SharedFile, digest};
use crate::store::jsonc::{JsoncDocument, JsoncLookup};

/// berth's content for a file that it shares with users.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum SharedContent {
    /// Keys and list items in a JSON file.
    Keys(Vec<SharedPart>),
    /// A block of a Markdown file.
    Block(String),
}

/// A key of a JSON document with its value, or an item of a list in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SharedPart {
    /// The keys that lead from the top of the document to the value or list.
    pub(super) path: Vec<String>,
    pub(super) value: Value,
    /// Whether the value is an item of the list at `path`.
    pub(super) item: bool,
}

impl SharedPart {
    pub(super) fn key(path: &[&str], value: impl Into<Value>) -> SharedPart {
        SharedPart {
            path: path.iter().map(|key| (*key).to_owned()).collect(),
            value: value.into(),
            item: false,
        }
    }

    pub(super) fn item(path: &[&str], value: &str) -> SharedPart {
        SharedPart { item: true, ..SharedPart::key(path, value) }
    }

    /// Returns the part's name in the manifest: a JSON pointer (RFC 6901). The name of a list item begins with `+` and
    /// ends with the item's value.
    fn name(&self) -> String {
        let escaped = |key: &String| key.replace('~', "~0").replace('/', "~1");
        let path: String = self.path.iter().map(|key| format!("/{}", escaped(key))).collect();
        if self.item { format!("+{path}/{}", self.text()) } else { path }
    }

    fn text(&self) -> &str {
        self.value.as_str().unwrap_or_default()
    }

    fn keys(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    fn look(&self, document: &mut JsoncDocument) -> JsoncLookup {
        if self.item {
            document.lookup_item(&self.keys(), self.text())
        } else {
            document.lookup(&self.keys())
        }
    }

    fn put(&self, document: &mut JsoncDocument) {
        if self.item {
            document.push(&self.keys(), &self.value)
        } else {
            document.set(&self.keys(), &self.value)
        }
    }
}

/// Returns the merged text and berth's part of it.
///
/// # Errors
/// Returns the reason why the file cannot be shared.
pub(super) fn merge(
    text: &str,
    wanted: &SharedContent,
    known: &SharedFile,
) -> Result<(String, SharedFile), String> {
    match wanted {
        SharedContent::Keys(parts) => merge_keys(text, parts, known),
        SharedContent::Block(block) => Ok(merge_block(text, block, known)),
    }
}

/// Returns the text without berth's part.
pub(super) fn withdraw(path: &str, text: &str, known: &SharedFile) -> Result<String, String> {
    let nothing =
        if is_markdown(path) { SharedContent::Block(String::new()) } else { SharedContent::Keys(Vec::new()) };
    merge(text, &nothing, known).map(|(text, _)| text)
}

/// Returns whether the file has no content of users.
pub(super) fn is_bare(path: &str, text: &str) -> bool {
    if is_markdown(path) {
        return text.trim().is_empty();
    }
    text.chars().filter(|c| !c.is_whitespace()).collect::<String>() == "{}"
}

fn is_markdown(path: &str) -> bool {
    path.ends_with(".md")
}

fn merge_keys(text: &str, parts: &[SharedPart], known: &SharedFile) -> Result<(String, SharedFile), String> {
    let mut document = JsoncDocument::parse(text).map_err(|fault| fault.message)?;
    if !document.is_object() {
        return Err("it is not an object".to_owned());
    }
    let mut next = SharedFile { made: known.made, ..SharedFile::default() };
    let mut changed = false;
    let names: HashSet<String> = parts.iter().map(SharedPart::name).collect();
    for (name, sum) in known.parts.iter().filter(|(name, _)| !names.contains(*name)) {
        changed |= remove(&mut document, name, sum);
    }
    for part in parts {
        let (name, sum) = (part.name(), value_digest(&part.value));
        let ours = known.parts.get(&name);
        match part.look(&mut document) {
            JsoncLookup::Blocked => {}
            JsoncLookup::Missing => {
                part.put(&mut document);
                changed = true;
                next.parts.insert(name, sum);
            }
            // A value that berth did not write, or that a user has changed, is kept.
            JsoncLookup::Value(found) => {
                let found = value_digest(&found);
                match ours {
                    Some(before) if *before == found && found != sum => {
                        part.put(&mut document);
                        changed = true;
                        next.parts.insert(name, sum);
                    }
                    Some(before) if *before == found => drop(next.parts.insert(name, sum)),
                    _ => {}
                }
            }
        }
    }
    // An unchanged text is returned as it was, even if it has no final newline.
    let text = if changed { document.text().map_err(|fault| fault.message)? } else { text.to_owned() };
    Ok((text, next))
}

/// Removes the value that berth wrote under this name, if a user has not changed it.
fn remove(document: &mut JsoncDocument, name: &str, sum: &str) -> bool {
    let item = name.strip_prefix('+');
    let unescaped = |key: &str| key.replace("~1", "/").replace("~0", "~");
    let path: Vec<String> = item.unwrap_or(name).split('/').skip(1).map(unescaped).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    if item.is_none() {
        let ours = matches!(document.lookup(&path), JsoncLookup::Value(found) if value_digest(&found) == sum);
        if !ours || !document.remove(&path) {
            return false;
        }
        // Objects that contained only this value are removed too.
        for end in (1..path.len()).rev() {
            if !document.is_empty(&path[..end]) || !document.remove(&path[..end]) {
                break;
            }
        }
        return true;
    }
    // The value of a list item may contain slashes, so each split of the name into the list's keys and the item is
    // tried.
    for keys in 1..path.len() {
        if document.remove_item(&path[..keys], &path[keys..].join("/")) {
            if document.is_empty(&path[..keys]) {
                document.remove(&path[..keys]);
            }
            return true;
        }
    }
    false
}

fn value_digest(value: &Value) -> HexDigest {
    digest(value.to_string().as_bytes())
}

const BEGIN: &str = "<!-- berth:begin -->";
const END: &str = "<!-- berth:end -->";
const BLOCK: &str = "block";

fn merge_block(text: &str, block: &str, known: &SharedFile) -> (String, SharedFile) {
    let mut next = SharedFile { made: known.made, ..SharedFile::default() };
    let begin = text.find(BEGIN);
    let place = begin.and_then(|begin| {
        let end = begin + text[begin..].find(END)? + END.len();
        Some((begin, end + usize::from(text[end..].starts_with('\n'))))
    });
    if block.is_empty() {
        let without = place.map(|(begin, end)| format!("{}{}", text[..begin].trim_end(), &text[end..]));
        let without =
            without.map(|text| if text.is_empty() || text.ends_with('\n') { text } else { text + "\n" });
        return (without.unwrap_or_else(|| text.to_owned()), next);
    }
    next.parts.insert(BLOCK.to_owned(), digest(block.as_bytes()));
    let whole = format!("{BEGIN}\n{block}{END}\n");
    let text = match place {
        Some((begin, end)) => format!("{}{whole}{}", &text[..begin], &text[end..]),
        // berth wrote the block before and a user removed it, so it is not added again.
        None if known.parts.contains_key(BLOCK) && !text.is_empty() => {
            return (text.to_owned(), known.clone());
        }
        None if text.is_empty() => whole,
        None => format!("{}\n\n{whole}", text.trim_end()),
    };
    (text, next)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parts() -> Vec<SharedPart> {
        vec![
            SharedPart::key(&["$schema"], "s"),
            SharedPart::key(&["mcp", "a"], json!({"type": "local"})),
            SharedPart::item(&["plugin"], "@x/y@1"),
        ]
    }

    #[test]
    fn user_values_win_and_are_kept() {
        let text =
            "{\n  // mine\n  \"mcp\": {\"a\": {\"type\": \"remote\"}, \"b\": 1},\n  \"plugin\": [\"p\"]\n}\n";
        let (merged, known) = merge(text, &SharedContent::Keys(parts()), &SharedFile::default()).unwrap();
        let value = crate::store::jsonc::parse(&merged).unwrap();
        assert_eq!(
            value,
            json!({"$schema": "s", "mcp": {"a": {"type": "remote"}, "b": 1}, "plugin": ["p", "@x/y@1"]})
        );
        assert!(merged.contains("// mine"));
        assert_eq!(known.parts.keys().collect::<Vec<_>>(), ["+/plugin/@x/y@1", "/$schema"]);
        let (again, same) = merge(&merged, &SharedContent::Keys(parts()), &known).unwrap();
        assert_eq!((again, &same), (merged.clone(), &known), "a second one changes nothing");
        let back = withdraw("opencode.json", &merged, &known).unwrap();
        assert_eq!(crate::store::jsonc::parse(&back), crate::store::jsonc::parse(text));
    }

    #[test]
    fn berths_values_are_updated_and_removed() {
        let made = SharedFile { made: true, ..SharedFile::default() };
        let (first, known) = merge("", &SharedContent::Keys(parts()), &made).unwrap();
        let mut other = parts();
        other[1].value = json!({"type": "remote"});
        other.pop();
        let (second, known) = merge(&first, &SharedContent::Keys(other), &known).unwrap();
        assert_eq!(
            crate::store::jsonc::parse(&second).unwrap(),
            json!({"$schema": "s", "mcp": {"a": {"type": "remote"}}})
        );
        let by_hand = second.replace("remote", "changed");
        let left = withdraw("opencode.json", &by_hand, &known).unwrap();
        assert_eq!(crate::store::jsonc::parse(&left).unwrap(), json!({"mcp": {"a": {"type": "changed"}}}));
        let left = withdraw("opencode.json", &second, &known).unwrap();
        assert!(known.made && is_bare("opencode.json", &left), "{left}");
    }

    /// Claude Code does not accept the rule `mcp__*`, which earlier versions of berth wrote. The next sync removes
    /// this rule and keeps the users' rules.
    #[test]
    fn rules_of_an_earlier_version_are_replaced() {
        let allow = |rules: &[&str]| {
            let parts = rules.iter().map(|rule| SharedPart::item(&["permissions", "allow"], rule)).collect();
            SharedContent::Keys(parts)
        };
        let (first, known) = merge("", &allow(&["Bash", "mcp__*"]), &SharedFile::default()).unwrap();
        let by_hand = first.replace("\"Bash\"", "\"Bash\", \"WebFetch\"");
        let (second, known) = merge(&by_hand, &allow(&["Bash", "mcp__docs"]), &known).unwrap();
        let value = crate::store::jsonc::parse(&second).unwrap();
        let mut rules: Vec<&str> =
            value["permissions"]["allow"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        rules.sort_unstable();
        assert_eq!(rules, ["Bash", "WebFetch", "mcp__docs"], "{second}");
        assert!(!known.parts.keys().any(|name| name.contains("mcp__*")), "{known:?}");
    }

    #[test]
    fn parts_below_a_scalar_are_skipped() {
        let text = "{\"mcp\": \"x\", \"plugin\": \"p\"}";
        let (merged, known) = merge(text, &SharedContent::Keys(parts()), &SharedFile::default()).unwrap();
        let value = crate::store::jsonc::parse(&merged).unwrap();
        assert_eq!(value, json!({"mcp": "x", "plugin": "p", "$schema": "s"}));
        assert_eq!(known.parts.len(), 1);
        for broken in ["{", "[1]", "7"] {
            assert!(
                merge(broken, &SharedContent::Keys(parts()), &SharedFile::default()).is_err(),
                "{broken}"
            );
        }
    }

    #[test]
    fn a_block_is_merged_into_other_text() {
        let block = SharedContent::Block("# W\n\ntext\n".to_owned());
        let (text, known) = merge("# Mine\n", &block, &SharedFile::default()).unwrap();
        assert_eq!(text, format!("# Mine\n\n{BEGIN}\n# W\n\ntext\n{END}\n"));
        assert_eq!(merge(&text, &block, &known).unwrap(), (text.clone(), known.clone()));
        let below = format!("{text}more\n");
        let (changed, _) = merge(&below, &SharedContent::Block("new\n".to_owned()), &known).unwrap();
        assert_eq!(changed, format!("# Mine\n\n{BEGIN}\nnew\n{END}\nmore\n"));
        assert_eq!(withdraw("CLAUDE.md", &text, &known).unwrap(), "# Mine\n");
        assert_eq!(merge("# Mine\n", &block, &known).unwrap().0, "# Mine\n", "it was taken out by hand");
        let (alone, known) = merge("", &block, &SharedFile::default()).unwrap();
        assert!(is_bare("CLAUDE.md", &withdraw("CLAUDE.md", &alone, &known).unwrap()));
    }
}
