//! Library entries that are one text each: tools, init scripts, commands and agents.

use serde::Serialize;

use super::{Library, check_name, front_matter, missing};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// A tool, in the file `tool/NAME.ts`.
    Tool,
    /// An init script, in the file `init-script/NAME/SCRIPT.sh`.
    InitScript,
    /// A command, in the file `command/NAME.md`.
    Command,
    /// An agent, in the file `agent/NAME.md`.
    Agent,
}

/// A text in a list.
#[derive(Debug, Serialize)]
pub struct TextSummary {
    pub name: String,
    /// The description in the front matter or first comment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The path of the text's file in the library.
    pub path: String,
    /// Why the text cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A text with its content.
#[derive(Debug, Serialize)]
pub struct LibraryText {
    /// The fields that the text also has in a list.
    #[serde(flatten)]
    pub listed: TextSummary,
    pub content: String,
}

impl TextKind {
    pub(super) const ALL: [TextKind; 4] =
        [TextKind::Tool, TextKind::InitScript, TextKind::Command, TextKind::Agent];

    pub(super) fn folder(self) -> &'static str {
        match self {
            TextKind::Tool => "tool",
            TextKind::InitScript => "init-script",
            TextKind::Command => "command",
            TextKind::Agent => "agent",
        }
    }

    /// Returns the part of the file's path after the name.
    fn suffix(self) -> &'static str {
        match self {
            TextKind::Tool => ".ts",
            TextKind::InitScript => "/SCRIPT.sh",
            TextKind::Command | TextKind::Agent => ".md",
        }
    }

    fn path(self, name: &str) -> String {
        format!("{}/{name}{}", self.folder(), self.suffix())
    }

    fn missing(self, name: &str) -> Error {
        let what = match self {
            TextKind::Tool => "Library tool",
            TextKind::InitScript => "Init script",
            TextKind::Command => "Command",
            TextKind::Agent => "Agent",
        };
        missing(what, name)
    }

    /// Returns the kind's name in messages.
    pub fn title(self) -> &'static str {
        match self {
            TextKind::Tool => "Tool",
            TextKind::InitScript => "Init script",
            TextKind::Command => "Command",
            TextKind::Agent => "Agent",
        }
    }

    fn describe(self, text: &str) -> Result<Option<String>, String> {
        Ok(match self {
            TextKind::Tool => block_comment(text),
            TextKind::InitScript => first_comment(text),
            TextKind::Command | TextKind::Agent => front_matter::read(text)?.description,
        })
    }
}

/// Returns the first `/** … */` comment, joined to one line.
fn block_comment(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("/**")?;
    let (comment, _) = rest.split_once("*/")?;
    let words: Vec<&str> = comment
        .lines()
        .map(|line| line.trim().trim_start_matches('*').trim())
        .filter(|line| !line.is_empty())
        .collect();
    (!words.is_empty()).then(|| words.join(" "))
}

/// Returns the first line after the shebang, if it is a comment.
fn first_comment(text: &str) -> Option<String> {
    let line = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"))?;
    let comment = line.trim().strip_prefix('#')?.trim();
    let comment = comment.strip_prefix("Description:").unwrap_or(comment).trim();
    (!comment.is_empty()).then(|| comment.to_owned())
}

impl Library {
    /// Lists all texts of a kind, sorted by name.
    ///
    /// # Errors
    /// Fails if the library cannot be read.
    pub fn texts(&self, kind: TextKind) -> Result<Vec<TextSummary>> {
        // Each init script has a folder of its own; each other text is a file.
        let suffix = if kind == TextKind::InitScript { "" } else { kind.suffix() };
        let mut rows = Vec::new();
        for name in self.names(kind.folder(), suffix)? {
            match self.text(kind, &name) {
                Ok(text) => rows.push(text.listed),
                // A folder without a script is not listed.
                Err(error) if error.code() == Code::NotInLibrary => {}
                Err(error) => rows.push(TextSummary {
                    path: kind.path(&name),
                    name,
                    description: None,
                    error: Some(error.message().to_owned()),
                }),
            }
        }
        Ok(rows)
    }

    /// Returns a text.
    ///
    /// # Errors
    /// Fails with `InvalidName` or `NotInLibrary`.
    pub fn text(&self, kind: TextKind, name: &str) -> Result<LibraryText> {
        check_name(name)?;
        let path = kind.path(name);
        let content = self.read(&path)?.ok_or_else(|| kind.missing(name))?;
        let (description, error) = match kind.describe(&content) {
            Ok(description) => (description, None),
            Err(error) => (None, Some(error)),
        };
        Ok(LibraryText { listed: TextSummary { name: name.to_owned(), description, path, error }, content })
    }

    /// Writes a text.
    ///
    /// # Errors
    /// Fails with `InvalidName` or `InvalidPayload`.
    pub fn put_text(&self, kind: TextKind, name: &str, content: &str) -> Result<()> {
        check_name(name)?;
        let _writes = lock(&self.writes);
        self.write(&kind.path(name), content)
    }

    /// Removes a text. Removing a text that does not exist is no error, as in sandboxed.sh.
    ///
    /// # Errors
    /// Fails with `InvalidName`.
    pub fn delete_text(&self, kind: TextKind, name: &str) -> Result<()> {
        check_name(name)?;
        let _writes = lock(&self.writes);
        // An init script has a folder of its own, which is removed with all of its files.
        self.discard(&match kind {
            TextKind::InitScript => format!("{}/{name}", kind.folder()),
            _ => kind.path(name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_read_from_the_head() {
        let tool = "// x\n/**\n * Opens a\n * door\n */\nexport {}";
        assert_eq!(TextKind::Tool.describe(tool), Ok(Some("Opens a door".into())));
        let script = "#!/bin/bash\n\n# Description: installs node\nset -e\n";
        assert_eq!(TextKind::InitScript.describe(script), Ok(Some("installs node".into())));
        assert_eq!(TextKind::InitScript.describe("#!/bin/sh\necho x # y\n"), Ok(None));
        assert_eq!(TextKind::Agent.describe("---\ndescription: d\n---\n"), Ok(Some("d".into())));
    }
}
