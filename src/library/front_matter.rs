//! The YAML front matter of a Markdown file. Pure.

use serde::Deserialize;

use crate::store::front_matter::{self, split};

/// The fields of the front matter that berth reads.
#[derive(Debug, Default, Deserialize)]
pub(super) struct FrontMatter {
    #[serde(default)]
    pub(super) description: Option<String>,
    /// Commands that run at the end of a build, before the init script.
    #[serde(default)]
    pub(super) setup_commands: Vec<String>,
}

/// Reads the front matter of a text. All fields are empty if there is none.
///
/// # Errors
/// Returns a description of the problem.
pub(super) fn read(text: &str) -> Result<FrontMatter, String> {
    front_matter::read(text)
}

/// Adds a `name:` to the front matter, if it has none, because agents look up skills by this name.
pub fn with_name(text: &str, name: &str) -> String {
    let quoted = serde_json::Value::from(name);
    match split(text) {
        Some((yaml, rest)) if yaml.lines().any(|line| line.starts_with("name:")) => {
            format!("---\n{yaml}---\n{rest}")
        }
        Some((yaml, rest)) => format!("---\nname: {quoted}\n{yaml}---\n{rest}"),
        None => format!("---\nname: {quoted}\n---\n\n{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_is_read_and_gets_a_name() {
        let text = "---\ndescription: \"a: b\"\nsetup_commands:\n  - npm install\n---\n# X\n";
        let read_back = read(text).unwrap();
        assert_eq!(read_back.description.as_deref(), Some("a: b"));
        assert_eq!(read_back.setup_commands, ["npm install"]);
        assert_eq!(with_name(text, "x"), format!("---\nname: \"x\"\n{}", &text[4..]));
        assert_eq!(with_name("---\nname: y\n---\nz", "x"), "---\nname: y\n---\nz");
        assert_eq!(with_name("# X\n", "x"), "---\nname: \"x\"\n---\n\n# X\n");
        assert_eq!(read("no front matter\n---\n").unwrap().description, None);
        assert_eq!(read("---\ndescription: x\n").unwrap().description, None, "it does not end");
        assert!(read("---\ndescription: [\n---\n").unwrap_err().contains("YAML"));
    }
}
