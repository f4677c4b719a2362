//! The complete folder of a skill: scripts, data and text, with execute permissions. Workspaces and bundles get the
//! complete folder. The size of each skill is limited by [`limits::SKILL_FILES`] and [`limits::SKILL_BYTES`].

use std::os::unix::fs::MetadataExt as _;

use super::skill::{MAIN, folder};
use super::{Library, check_name};
use crate::base::{Code, Error, Result, limits};
use crate::store::file::is_temp_name;

/// The reason why files are in [`SkillFolder::left_out`].
pub const SKILL_LIMITS: &str = "a skill has at most 1,000 regular files and 32 MiB";

/// A file of a skill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkillPart {
    /// The file's path below the skill's folder.
    pub path: String,
    /// The file's size when it was listed.
    pub bytes: u64,
    /// Whether the owner's execute permission is set.
    pub executable: bool,
}

/// The files of a skill.
#[derive(Debug, Default)]
pub struct SkillFolder {
    /// All files except `SKILL.md`, by path.
    pub parts: Vec<SkillPart>,
    /// The paths of files that exceed the limits of a skill or are not regular files.
    pub left_out: Vec<String>,
}

/// Checks one component of a path below a skill.
///
/// # Errors
/// Fails with `InvalidName` and the violated rule.
pub(super) fn check_part(part: &str) -> Result<()> {
    let refuse = |why: String| Err(Error::new(Code::InvalidName, format!("Name {why}")));
    match part {
        "" => refuse("cannot be empty".into()),
        "." | ".." => refuse(format!("cannot be '{part}'")),
        _ if part.contains(['/', '\\']) => {
            refuse("contains invalid characters: '/' and '\\' are not allowed".into())
        }
        _ if part.chars().any(char::is_control) => {
            refuse("contains invalid characters: control characters are not allowed".into())
        }
        _ if part.len() > limits::LIBRARY_NAME_BYTES => {
            refuse(format!("is longer than {} bytes", limits::LIBRARY_NAME_BYTES))
        }
        _ => Ok(()),
    }
}

/// Returns whether files and folders of this name are never part of a skill, because desktops, editors and version
/// control create them.
pub fn is_ignored_name(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        ".DS_Store",
        "__MACOSX",
        "Thumbs.db",
        "desktop.ini",
        ".git",
        ".hg",
        ".svn",
        ".skill-source.json",
        ".directory",
        ".localized",
    ];
    let editors = |name: &str| {
        // Swap files of vim (`.NAME.swp`, `.swo` and so on), lock files of emacs (`.#NAME`), and files of macOS
        // (`._NAME`).
        let swap = name.rsplit_once(".sw").is_some_and(|(_, last)| last.len() == 1);
        name.starts_with('.') && (swap || name.starts_with(".#") || name.starts_with("._"))
    };
    NAMES.contains(&name) || editors(name) || is_temp_name(name)
}

impl Library {
    /// Returns the files of a skill.
    ///
    /// # Errors
    /// Fails with `InvalidName`, or with `InvalidPath` if the skill has more entries than a folder of the library may
    /// have.
    pub fn skill_folder(&self, name: &str) -> Result<SkillFolder> {
        check_name(name)?;
        let (root, top) = (self.root()?, folder(name));
        let (mut found, mut left) = (SkillFolder::default(), limits::SKILL_BYTES as u64);
        for path in self.all_below(&top)? {
            if path == MAIN {
                continue;
            }
            let metadata = root.metadata(&format!("{top}/{path}"));
            match metadata.ok().flatten().filter(|metadata| metadata.is_file()) {
                Some(file) if file.len() <= left && found.parts.len() + 1 < limits::SKILL_FILES => {
                    left -= file.len();
                    let executable = file.mode() & 0o100 != 0;
                    found.parts.push(SkillPart { path, bytes: file.len(), executable });
                }
                _ => found.left_out.push(path),
            }
        }
        Ok(found)
    }

    /// Reads a file of a skill. Returns `None` if the file no longer exists.
    ///
    /// # Errors
    /// Fails with `InvalidPath` if the file is not a regular file or is larger than a skill may be.
    pub fn read_part(&self, name: &str, path: &str) -> Result<Option<Vec<u8>>> {
        self.root()?.read(&format!("{}/{path}", folder(name)), limits::SKILL_BYTES as u64)
    }

    /// Returns the sorted paths of all entries, including hidden ones, below a folder of the library, except for
    /// folders.
    pub(super) fn all_below(&self, top: &str) -> Result<Vec<String>> {
        let root = self.root()?;
        let (mut files, mut folders) = (Vec::new(), vec![String::new()]);
        while let Some(below) = folders.pop() {
            let folder = if below.is_empty() { top.to_owned() } else { format!("{top}/{below}") };
            for entry in root.entries(&folder, limits::LIBRARY_ENTRIES)? {
                if is_ignored_name(&entry) || check_part(&entry).is_err() {
                    continue;
                }
                if files.len() + folders.len() >= limits::LIBRARY_ENTRIES {
                    return Err(Error::new(Code::InvalidPath, format!("{top} has too many files")));
                }
                let path = if below.is_empty() { entry } else { format!("{below}/{entry}") };
                // The depth is limited because a symbolic link may point to one of its parent folders.
                let deep = path.split('/').count() > limits::LIBRARY_PATH_PARTS;
                match root.is_dir(&format!("{top}/{path}")) {
                    _ if deep => {}
                    Ok(true) => folders.push(path),
                    _ => files.push(path),
                }
            }
        }
        files.sort_unstable();
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_desktops_and_editors_are_ignored() {
        for name in [".DS_Store", "._x", "__MACOSX", ".x.swp", ".SKILL.md.swo", ".#x", ".git"] {
            assert!(is_ignored_name(name), "{name}");
        }
        for name in ["x", ".env.example", ".gitignore", "a.swp", ".config", "x~"] {
            assert!(!is_ignored_name(name), "{name}");
        }
    }

    #[test]
    fn path_components_are_checked() {
        for good in ["v1..v2.md", "[...slug].tsx", ".hidden", "...", "a b", "日本"] {
            assert!(check_part(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a\\b", "a\nb", "\u{9f}", &"x".repeat(201)] {
            assert!(check_part(bad).is_err(), "{bad:?}");
        }
    }
}
