//! The YAML between `---` lines at the top of a Markdown file. Pure.

use serde::Deserialize;

use crate::base::limits;

/// What is read of it; anything else stays as it is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct FrontMatter {
    #[serde(default)]
    pub(super) description: Option<String>,
    /// Run at the end of a build, before the init script.
    #[serde(default)]
    pub(super) setup_commands: Vec<String>,
}

/// Splits a text into its front matter, without the lines of dashes, and the rest.
fn split(text: &str) -> Option<(&str, &str)> {
    let after = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n"))?;
    let mut at = 0;
    for line in after.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some((&after[..at], &after[at + line.len()..]));
        }
        at += line.len();
    }
    None
}

/// Reads the front matter of a text; none is empty.
///
/// # Errors
/// What is wrong with it, for a person.
pub(super) fn read(text: &str) -> Result<FrontMatter, String> {
    let Some((yaml, _)) = split(text) else { return Ok(FrontMatter::default()) };
    if yaml.trim().is_empty() {
        return Ok(FrontMatter::default());
    }
    // Aliases that multiply and nesting without end are refused by the budget.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(limits::FRONT_MATTER_BYTES),
            max_depth: 16,
            max_nodes: 4096,
            max_total_scalar_bytes: limits::FRONT_MATTER_BYTES,
        },
    };
    if yaml.len() > limits::FRONT_MATTER_BYTES {
        return Err(format!("the front matter is longer than {} bytes", limits::FRONT_MATTER_BYTES));
    }
    serde_saphyr::from_str_with_options(yaml, options).map_err(|error| {
        let error = error.to_string();
        format!("the front matter is not valid YAML: {}", error.lines().next().unwrap_or_default())
    })
}

/// The text with a `name:` in its front matter: agents find a skill by it.
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
    fn front_matter_is_read_and_named() {
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

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut yaml = String::from("---\na0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for n in 1..10 {
            let row = vec![format!("*a{}", n - 1); 10].join(",");
            yaml += &format!("a{n}: &a{n} [{row}]\n");
        }
        yaml += "description: x\n---\n";
        assert!(read(&yaml).is_err());
    }
}
