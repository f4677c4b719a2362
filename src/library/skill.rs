//! Skills: one folder each, with a `SKILL.md` and other files.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Library, check_name, check_path, front_matter, is_broken, missing};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result};

/// A skill in a list.
#[derive(Debug, Serialize)]
pub struct SkillSummary {
    pub name: String,
    /// The description in the front matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The path of the skill's folder below the library.
    pub path: String,
    /// A fixed value that sandboxed.sh's clients expect.
    pub source: Value,
    /// The commands that run at the end of a build.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub setup_commands: Vec<String>,
    /// Why the front matter cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A Markdown file beside `SKILL.md`.
#[derive(Debug, Serialize)]
pub struct SkillFile {
    /// The file's name.
    pub name: String,
    /// The file's path below the skill's folder.
    pub path: String,
    pub content: String,
    /// Why the file cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A skill with its files.
#[derive(Debug, Serialize)]
pub struct LibrarySkill {
    /// The fields that the skill also has in a list.
    #[serde(flatten)]
    pub listed: SkillSummary,
    /// The text of `SKILL.md`.
    pub content: String,
    /// The Markdown files beside `SKILL.md`.
    pub files: Vec<SkillFile>,
    /// The paths of all other files.
    pub references: Vec<String>,
}

pub(super) const FOLDER: &str = "skill";
/// The file that makes a folder a skill.
pub const MAIN: &str = "SKILL.md";

pub(super) fn folder(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

impl Library {
    /// Lists all skills, sorted by name.
    ///
    /// # Errors
    /// Fails if the library cannot be read.
    pub fn skills(&self) -> Result<Vec<SkillSummary>> {
        let mut rows = Vec::new();
        for name in self.names(FOLDER, "")? {
            match self.read(&format!("{}/{MAIN}", folder(&name))) {
                Ok(Some(content)) => rows.push(listed(name, &content)),
                Ok(None) => {}
                Err(error) => {
                    let broken = SkillSummary { error: Some(error.message().to_owned()), ..listed(name, "") };
                    rows.push(broken);
                }
            }
        }
        Ok(rows)
    }

    /// Returns whether there is a skill of this name, even if it is damaged.
    pub fn has_skill(&self, name: &str) -> bool {
        check_name(name).is_ok() && !matches!(self.read(&format!("{}/{MAIN}", folder(name))), Ok(None))
    }

    /// Returns a skill with its Markdown files.
    ///
    /// # Errors
    /// Fails with `InvalidName` or `NotInLibrary`, or with `InvalidPath` for a file that cannot be read as text.
    pub fn skill(&self, name: &str) -> Result<LibrarySkill> {
        check_name(name)?;
        let content =
            self.read(&format!("{}/{MAIN}", folder(name)))?.ok_or_else(|| missing("Skill", name))?;
        let (mut files, mut references) = (Vec::new(), Vec::new());
        for path in self.all_below(&folder(name))? {
            if path == MAIN || check_path(&path).is_err() {
                continue;
            }
            if path.ends_with(".md") {
                let (content, error) = match self.read(&format!("{}/{path}", folder(name))) {
                    Ok(Some(content)) => (content, None),
                    Ok(None) => continue,
                    Err(error) if is_broken(&error) => (String::new(), Some(error.message().to_owned())),
                    Err(error) => return Err(error),
                };
                let name = path.rsplit('/').next().unwrap_or(&path).to_owned();
                files.push(SkillFile { name, path, content, error });
            } else {
                references.push(path);
            }
        }
        Ok(LibrarySkill { listed: listed(name.to_owned(), &content), content, files, references })
    }

    /// Writes a skill's `SKILL.md`.
    ///
    /// # Errors
    /// Fails with `InvalidName` or `InvalidPayload`.
    pub fn put_skill(&self, name: &str, content: &str) -> Result<()> {
        self.put_skill_file(name, MAIN, content)
    }

    /// Removes a skill with all of its files, if it exists.
    ///
    /// # Errors
    /// Fails with `InvalidName` or `MountedInside`.
    pub fn delete_skill(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let _writes = lock(&self.writes);
        self.discard(&folder(name))
    }

    /// Returns the setup commands of a skill. The list is empty for an unknown skill.
    ///
    /// # Errors
    /// Fails with `InvalidPath` or `Conflict`, and the reason, if the skill cannot be read.
    pub fn setup_commands(&self, name: &str) -> Result<Vec<String>> {
        if check_name(name).is_err() {
            return Ok(Vec::new());
        }
        let Some(content) = self.read(&format!("{}/{MAIN}", folder(name)))? else { return Ok(Vec::new()) };
        let skill = listed(name.to_owned(), &content);
        match skill.error {
            None => Ok(skill.setup_commands),
            Some(error) => Err(Error::new(Code::Conflict, error)),
        }
    }

    /// Reads a text file of a skill.
    ///
    /// # Errors
    /// Fails with `InvalidName` or `NotInLibrary`, or with `InvalidPath` if the file is not text.
    pub fn skill_file(&self, name: &str, path: &str) -> Result<String> {
        check_name(name)?;
        check_path(path)?;
        let content = self.read(&format!("{}/{path}", folder(name)))?;
        content.ok_or_else(|| missing("Skill file", &format!("{name}/{path}")))
    }

    /// Writes a file of a skill.
    ///
    /// # Errors
    /// Fails with `InvalidName` or `InvalidPayload`.
    pub fn put_skill_file(&self, name: &str, path: &str, content: &str) -> Result<()> {
        check_name(name)?;
        check_path(path)?;
        let _writes = lock(&self.writes);
        self.write(&format!("{}/{path}", folder(name)), content)
    }

    /// Removes a file of a skill, if it exists.
    ///
    /// # Errors
    /// Fails with `InvalidName`, or with `InvalidPath` for `SKILL.md`, which every skill must have.
    pub fn delete_skill_file(&self, name: &str, path: &str) -> Result<()> {
        check_name(name)?;
        check_path(path)?;
        if path == MAIN {
            return Err(Error::new(Code::InvalidPath, "SKILL.md cannot be deleted; delete the skill"));
        }
        let _writes = lock(&self.writes);
        self.remove(&format!("{}/{path}", folder(name)))
    }
}

fn listed(name: String, content: &str) -> SkillSummary {
    let (matter, error) = match front_matter::read(content) {
        Ok(matter) => (matter, None),
        Err(error) => (front_matter::FrontMatter::default(), Some(error)),
    };
    SkillSummary {
        path: folder(&name),
        name,
        description: matter.description,
        source: json!({ "type": "Local" }),
        setup_commands: matter.setup_commands,
        error,
    }
}
