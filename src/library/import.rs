//! Imports skills from one file: a `SKILL.md` or a zip archive that contains one. The files are first written to a
//! staging folder, which a single rename then turns into the skill's folder. **Invariant:** a skill is complete or
//! does not exist.

use std::collections::BTreeMap;

use serde::Serialize;

use super::skill::{FOLDER, LibrarySkill, MAIN, folder};
use super::template;
use super::text::TextKind;
use super::unzip::{SkippedEntry, UnpackedFile, UnpackedSkill};
use super::{Library, check_name, unzip};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;

/// The prefix of the names of staging folders. These are in the same folder as the complete entries.
const STAGING_PREFIX: &str = ".importing-";

/// Returns a new name for a staging folder.
pub(super) fn staging_name() -> String {
    format!("{STAGING_PREFIX}{}", uuid::Uuid::new_v4())
}

/// A skill imported from an archive.
#[derive(Debug, Serialize)]
pub struct ImportedSkill {
    #[serde(flatten)]
    skill: LibrarySkill,
    /// The entries of the archive that were left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<String>,
    /// The reason for each skipped entry, in the same order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidSkillContent, message)
}

impl Library {
    /// Checks and normalises the name of a new skill. Case and surrounding blanks are ignored, as in sandboxed.sh.
    ///
    /// # Errors
    /// Fails with `InvalidName`, or with `Conflict` if the skill exists.
    pub fn new_skill(&self, name: &str) -> Result<String> {
        let name = name.trim().to_lowercase();
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || !name.bytes().all(letters) {
            let message = "Skill name must contain only lowercase letters, numbers, and hyphens";
            return Err(Error::new(Code::InvalidName, message));
        }
        check_name(&name)?;
        if self.root()?.identity(&folder(&name))?.is_some() {
            let message = format!("Skill '{name}' already exists; delete it first, or choose another name");
            return Err(Error::new(Code::Conflict, message));
        }
        Ok(name)
    }

    /// Imports a skill from an uploaded file; the file name's extension selects the format.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Library::new_skill`], or with `InvalidSkillContent` and the problem of the
    /// file. A failed import writes nothing.
    pub fn import_skill(&self, name: &str, file_name: &str, bytes: Vec<u8>) -> Result<ImportedSkill> {
        let name = self.new_skill(name)?;
        let kind = file_name.rsplit_once('.').map(|(_, kind)| kind.to_ascii_lowercase());
        let mut unpacked = UnpackedSkill::default();
        match kind.as_deref() {
            Some("md") => {
                unpacked.files.insert(MAIN.to_owned(), UnpackedFile { bytes, executable: false });
            }
            // Claude exports zip archives with the extension `.skill`.
            Some("zip" | "skill") => unpacked = normalize_layout(unzip::unpack(bytes).map_err(refused)?)?,
            _ => return Err(refused("Unsupported file type. Please upload a .zip or .md file")),
        }
        let UnpackedSkill { files, skipped } = unpacked;
        check_main(&files[MAIN].bytes)?;
        let root = self.root()?;
        let stage = format!("{FOLDER}/{}", staging_name());
        let done = write(&root, &stage, &files).and_then(|()| {
            let _writes = lock(&self.writes);
            self.new_skill(&name)?;
            root.move_to_free_name(&stage, &folder(&name))
        });
        if done.is_err() {
            root.remove_tree(&stage)?;
        }
        done?;
        files.keys().for_each(|path| self.own.note(&root, &format!("{}/{path}", folder(&name))));
        let (skipped, warnings) = skipped
            .into_iter()
            .map(|SkippedEntry { name, reason }| {
                let warning = format!("'{}' was left out: {reason}", name.escape_debug());
                (name, warning)
            })
            .unzip();
        Ok(ImportedSkill { skill: self.skill(&name)?, skipped, warnings })
    }

    /// Removes staging folders that a killed server left behind.
    pub(super) fn sweep_stages(&self) -> Result<()> {
        let root = self.root()?;
        let texts = TextKind::ALL.map(TextKind::folder);
        for folder in texts.into_iter().chain([FOLDER, template::FOLDER]) {
            for entry in root.entries(folder, limits::LIBRARY_ENTRIES)? {
                if entry.starts_with(STAGING_PREFIX) {
                    root.remove_tree(&format!("{folder}/{entry}"))?;
                }
            }
        }
        Ok(())
    }
}

fn write(root: &Root, stage: &str, files: &BTreeMap<String, UnpackedFile>) -> Result<()> {
    for (path, file) in files {
        let path = format!("{stage}/{path}");
        if let Some((folder, _)) = path.rsplit_once('/') {
            root.make_dirs(folder)?;
        }
        root.write_new(&path, &file.bytes, if file.executable { 0o755 } else { 0o644 })?;
    }
    Ok(())
}

/// Returns the archive's files with the paths that they get in the skill: without the top folder, if the archive has a
/// single one, and with the main file's name as agents expect it (archives made for Claude also use `Skill.md`).
fn normalize_layout(unpacked: UnpackedSkill) -> Result<UnpackedSkill> {
    let UnpackedSkill { files, mut skipped } = unpacked;
    // Hidden entries beside the top folder, for example `.github` of a repository, are not part of the skill.
    let visible = || files.keys().filter(|path| !path.starts_with('.'));
    let first = visible().next().and_then(|path| path.split_once('/')).map(|(top, _)| format!("{top}/"));
    let top = first.filter(|top| visible().all(|path| path.starts_with(top.as_str()))).unwrap_or_default();
    let mut kept = BTreeMap::new();
    for (path, file) in files {
        let Some(below) = path.strip_prefix(&top) else {
            skipped.push(SkippedEntry { name: path, reason: "it is outside the skill's folder".into() });
            continue;
        };
        if below.split('/').count() > limits::LIBRARY_PATH_PARTS {
            skipped.push(SkippedEntry { name: path, reason: "its path has too many folders".into() });
            continue;
        }
        let below = if below.eq_ignore_ascii_case(MAIN) { MAIN } else { below };
        if kept.insert(below.to_owned(), file).is_some() {
            return Err(refused(format!("The archive has more than one {MAIN}")));
        }
    }
    if kept.contains_key(MAIN) {
        return Ok(UnpackedSkill { files: kept, skipped });
    }
    let mut message =
        "No SKILL.md found in the uploaded archive; put it at the top, or in the archive's only folder"
            .to_owned();
    for SkippedEntry { name, reason } in skipped.iter().take(limits::ERROR_TAIL_LINES) {
        message += &format!("; '{}' cannot be used: {reason}", name.escape_debug());
    }
    Err(refused(message))
}

/// Checks that the library will be able to read the skill's main file.
fn check_main(bytes: &[u8]) -> Result<()> {
    if std::str::from_utf8(bytes).is_err() {
        return Err(refused(format!("{MAIN} is not UTF-8 text")));
    }
    if bytes.len() as u64 > limits::LIBRARY_FILE_BYTES {
        return Err(refused(format!("{MAIN} is longer than {} bytes", limits::LIBRARY_FILE_BYTES)));
    }
    Ok(())
}
