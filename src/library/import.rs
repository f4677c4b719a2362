//! Skills that come as one file: a `SKILL.md`, or a zip archive with one. Everything is written beside the skills first,
//! and gets its name by one rename, so a skill is there whole or not at all.

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

/// Entries on their way in or out have names that begin so, beside those that are complete.
const STAGING_PREFIX: &str = ".importing-";

/// A new name for one.
pub(super) fn staging_name() -> String {
    format!("{STAGING_PREFIX}{}", uuid::Uuid::new_v4())
}

/// A skill that was made of an archive.
#[derive(Debug, Serialize)]
pub struct ImportedSkill {
    #[serde(flatten)]
    skill: LibrarySkill,
    /// Entries of the archive that were left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<String>,
    /// Why, in the same order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

fn refused(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidSkillContent, message)
}

impl Library {
    /// The name that a new skill is to have, and that is still free; case and blanks around it do not count, as observed.
    ///
    /// # Errors
    /// `InvalidName`; `Conflict` when there is such a skill.
    pub fn new_skill(&self, name: &str) -> Result<String> {
        let name = name.trim().to_lowercase();
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || !name.bytes().all(letters) {
            let message = "Skill name must contain only lowercase letters, numbers, and hyphens";
            return Err(Error::new(Code::InvalidName, message));
        }
        check_name(&name)?;
        if self.root()?.identity(&folder(&name))?.is_some() {
            let message = format!("Skill '{name}' already exists; delete it first, or take another name");
            return Err(Error::new(Code::Conflict, message));
        }
        Ok(name)
    }

    /// Makes a skill of an uploaded file, whose name tells what it is.
    ///
    /// # Errors
    /// As [`Library::new_skill`]; `InvalidSkillContent` with what is wrong with the file; then nothing was written.
    pub fn import_skill(&self, name: &str, file_name: &str, bytes: Vec<u8>) -> Result<ImportedSkill> {
        let name = self.new_skill(name)?;
        let kind = file_name.rsplit_once('.').map(|(_, kind)| kind.to_ascii_lowercase());
        let mut unpacked = UnpackedSkill::default();
        match kind.as_deref() {
            Some("md") => {
                unpacked.files.insert(MAIN.to_owned(), UnpackedFile { bytes, executable: false });
            }
            // What Claude exports is a zip archive of this name.
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

    /// Removes what a server that was killed in the middle of an import or a deletion left.
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

/// An archive's files as they are to lie in the skill: without the one folder that all of them lie in, and with the main
/// file's name as agents know it (archives made for Claude call it `Skill.md`, too).
fn normalize_layout(unpacked: UnpackedSkill) -> Result<UnpackedSkill> {
    let UnpackedSkill { files, mut skipped } = unpacked;
    // Hidden files beside the one folder are not the skill's: `.github` of a repository.
    let visible = || files.keys().filter(|path| !path.starts_with('.'));
    let first = visible().next().and_then(|path| path.split_once('/')).map(|(top, _)| format!("{top}/"));
    let top = first.filter(|top| visible().all(|path| path.starts_with(top.as_str()))).unwrap_or_default();
    let mut kept = BTreeMap::new();
    for (path, file) in files {
        let Some(below) = path.strip_prefix(&top) else {
            skipped.push(SkippedEntry { name: path, reason: "it lies beside the skill's folder".into() });
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
        "No SKILL.md found in the uploaded archive: it lies at the top, or in the one folder that is there"
            .to_owned();
    for SkippedEntry { name, reason } in skipped.iter().take(limits::ERROR_TAIL_LINES) {
        message += &format!("; '{}' cannot be used: {reason}", name.escape_debug());
    }
    Err(refused(message))
}

/// Whether the library can read the file that makes it a skill.
fn check_main(bytes: &[u8]) -> Result<()> {
    if std::str::from_utf8(bytes).is_err() {
        return Err(refused(format!("{MAIN} is not UTF-8 text")));
    }
    if bytes.len() as u64 > limits::LIBRARY_FILE_BYTES {
        return Err(refused(format!("{MAIN} is longer than {} bytes", limits::LIBRARY_FILE_BYTES)));
    }
    Ok(())
}
