//! Skills that come as one file: a `SKILL.md`, or a zip archive with one. Everything is written beside the skills first,
//! and gets its name by one rename, so a skill is there whole or not at all.

use std::collections::BTreeMap;

use super::skill::{FOLDER, MAIN, Skill, folder};
use super::{Library, check_name, check_path, unzip};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;

/// What is being imported lies in folders whose names begin so, beside the skills.
const STAGE: &str = ".importing-";

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
        if self.root()?.exists(&folder(&name))? {
            let message = format!("Skill '{name}' already exists; delete it first, or take another name");
            return Err(Error::new(Code::Conflict, message));
        }
        Ok(name)
    }

    /// Makes a skill of an uploaded file, whose name tells what it is.
    ///
    /// # Errors
    /// As [`Library::new_skill`]; `InvalidSkillContent` with what is wrong with the file; then nothing was written.
    pub fn import_skill(&self, name: &str, file_name: &str, bytes: Vec<u8>) -> Result<Skill> {
        let name = self.new_skill(name)?;
        let kind = file_name.rsplit_once('.').map(|(_, kind)| kind.to_ascii_lowercase());
        let files = match kind.as_deref() {
            Some("md") => BTreeMap::from([(MAIN.to_owned(), bytes)]),
            // What Claude exports is a zip archive of this name.
            Some("zip" | "skill") => arranged(unzip::files(&bytes).map_err(refused)?)?,
            _ => return Err(refused("Unsupported file type. Please upload a .zip or .md file")),
        };
        check(&files)?;
        let root = self.root()?;
        let stage = format!("{FOLDER}/{STAGE}{}", uuid::Uuid::new_v4());
        let done = write(&root, &stage, &files).and_then(|()| {
            let _writes = lock(&self.writes);
            self.new_skill(&name)?;
            root.move_away(&stage, &folder(&name))
        });
        if done.is_err() {
            root.remove_tree(&stage)?;
        }
        done?;
        files.keys().for_each(|path| self.own.note(&root, &format!("{}/{path}", folder(&name))));
        self.skill(&name)
    }

    /// Removes what a server that was killed in the middle of an import left.
    pub(super) fn sweep_imports(&self) -> Result<()> {
        let root = self.root()?;
        for entry in root.entries(FOLDER, limits::LIBRARY_ENTRIES)? {
            if entry.starts_with(STAGE) {
                root.remove_tree(&format!("{FOLDER}/{entry}"))?;
            }
        }
        Ok(())
    }
}

fn write(root: &Root, stage: &str, files: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    for (path, bytes) in files {
        let path = format!("{stage}/{path}");
        if let Some((folder, _)) = path.rsplit_once('/') {
            root.make_dirs(folder)?;
        }
        root.write_new(&path, bytes, 0o644)?;
    }
    Ok(())
}

/// An archive's files as they are to lie in the skill: without the one folder that all of them lie in, and with the main
/// file's name as agents know it (archives made for Claude call it `Skill.md`, too).
fn arranged(files: BTreeMap<String, Vec<u8>>) -> Result<BTreeMap<String, Vec<u8>>> {
    let first = files.keys().next().and_then(|path| path.split_once('/')).map(|(top, _)| format!("{top}/"));
    let top = first.filter(|top| files.keys().all(|path| path.starts_with(top.as_str()))).unwrap_or_default();
    let mut kept = BTreeMap::new();
    for (path, bytes) in files {
        let path = path.strip_prefix(&top).unwrap_or(&path);
        let path = if path.eq_ignore_ascii_case(MAIN) { MAIN } else { path };
        if kept.insert(path.to_owned(), bytes).is_some() {
            return Err(refused(format!("The archive has more than one {MAIN}")));
        }
    }
    if kept.contains_key(MAIN) {
        return Ok(kept);
    }
    Err(refused(
        "No SKILL.md found in the uploaded archive: it lies at the top, or in the one folder that is there",
    ))
}

/// Whether the library can read what it is to keep.
fn check(files: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    for (path, bytes) in files {
        check_path(path).map_err(|error| refused(format!("{path}: {}", error.message())))?;
        if !path.ends_with(".md") {
            continue;
        }
        if std::str::from_utf8(bytes).is_err() {
            return Err(refused(format!("{path} is not UTF-8 text")));
        }
        if bytes.len() as u64 > limits::LIBRARY_FILE_BYTES {
            return Err(refused(format!("{path} is longer than {} bytes", limits::LIBRARY_FILE_BYTES)));
        }
    }
    Ok(())
}
