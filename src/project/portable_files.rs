//! The files of skills and commands that an exported document can contain: regular files of limited size, reached
//! without a symbolic link. Other files are listed as omitted, and an import never removes them.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::folders::{COMMAND_FOLDERS, SKILL_FILE, SKILL_FOLDERS};
use super::site::{FILE_MODE, ProjectSite};
use super::{Project, commands, skills};
use crate::base::{Code, Error, Result, limits};
use crate::store::finder::{SearchBudget, json_length};

/// The size of the JSON text of all skills and commands in a document. Together with the configurations, this size
/// stays below [`super::portable::BODY_BYTES`].
pub(super) const TEXT_BYTES: usize = 4 << 20;
/// The maximum number of omitted paths in a document.
const OMITTED: usize = 2000;
/// The maximum number of files in a document. An import syncs each of them to disk.
const FILES: usize = 2000;
/// The limits of a path: the number of its components, and the bytes of each component.
const PATH_PARTS: usize = 32;
const NAME_BYTES: usize = 255;
/// The estimated JSON overhead of a file in a document, in bytes.
const OVERHEAD: usize = 80;

/// A file that a document can contain.
#[derive(Debug)]
pub(super) struct PortableFile {
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
}

/// A file in a document: its text, or its bytes in base64.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FilePart {
    pub(super) path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// The permissions in octal; `644` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
}

impl FilePart {
    pub(super) fn of(path: &str, file: &PortableFile) -> FilePart {
        let text = String::from_utf8(file.bytes.clone()).ok();
        let base64 = text.is_none().then(|| BASE64_STANDARD.encode(&file.bytes));
        let mode = (file.mode != FILE_MODE).then(|| format!("{:o}", file.mode));
        FilePart { path: path.to_owned(), content: text, base64, mode }
    }

    /// Decodes the file. Its path is relative to `folder`.
    pub(super) fn read(&self, folder: &str) -> Result<PortableFile> {
        let refuse = |why: &str| {
            let message = format!("The file '{}' {why}", self.path.escape_debug());
            Err(Error::new(Code::InvalidPayload, message).detail("path", &*self.path))
        };
        if !is_path(&self.path) {
            return refuse("has an invalid path; it must be relative, without '.' and '..'");
        }
        let bytes = match (&self.content, &self.base64) {
            (Some(text), None) => text.clone().into_bytes(),
            (None, Some(text)) => match BASE64_STANDARD.decode(text) {
                Ok(bytes) => bytes,
                Err(_) => return refuse("is not base64"),
            },
            _ => return refuse("must have either content or base64"),
        };
        if bytes.len() as u64 > limits::PROJECT_FILE_BYTES {
            return refuse(&format!("has more than {} bytes", limits::PROJECT_FILE_BYTES));
        }
        let mode = match self.mode.as_deref().map(|mode| u32::from_str_radix(mode, 8)) {
            None => FILE_MODE,
            Some(Ok(mode)) if mode <= 0o777 => mode,
            _ => return refuse("has a mode that is not octal digits up to 777"),
        };
        let path = if folder.is_empty() { self.path.clone() } else { format!("{folder}/{}", self.path) };
        Ok(PortableFile { path, bytes, mode })
    }
}

/// Returns whether a path is relative, has no `.` and `..`, and is within the limits of file systems.
pub(super) fn is_path(path: &str) -> bool {
    let fits = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= NAME_BYTES && !part.contains(char::is_control)
    };
    path.split('/').count() <= PATH_PARTS && path.split('/').all(fits)
}

/// Returns whether the path is one of the folders, or inside one of them.
pub(super) fn is_below(path: &str, folders: &[&str]) -> bool {
    folders
        .iter()
        .any(|folder| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// A skill or command with its files.
#[derive(Debug)]
pub(super) struct PortableItem<R> {
    pub(super) row: R,
    /// The path of a skill's folder or of a command's file.
    pub(super) path: String,
    /// The skill's `SKILL.md` or the command's file, followed by the other files.
    pub(super) files: Vec<PortableFile>,
    /// Whether a file was left out because the document is full.
    pub(super) partial: bool,
    /// Whether a file was left out because a document cannot contain it.
    pub(super) mixed: bool,
}

/// The skills or commands of a workspace.
#[derive(Debug)]
pub(super) struct PortableItems<R> {
    pub(super) items: Vec<PortableItem<R>>,
    /// The paths of the omitted files.
    pub(super) omitted: Vec<String>,
    /// Whether skills or commands were left out because the document is full.
    pub(super) partial: bool,
}

/// The remaining space in a document.
#[derive(Debug)]
pub(super) struct ExportBudget {
    pub(super) budget: SearchBudget,
    files: usize,
}

impl ExportBudget {
    pub(super) fn new() -> ExportBudget {
        ExportBudget { budget: SearchBudget::new(TEXT_BYTES), files: FILES }
    }
}

enum FileReading {
    File(PortableFile),
    /// A document cannot contain this file.
    Never,
    /// The document has no space left for this file.
    Full,
}

impl Project {
    /// Reads the skills that OpenCode loads from the workspace's own folders.
    pub(super) fn portable_skills(
        &self,
        site: &ProjectSite,
        rows: Vec<skills::SkillEntry>,
        room: &mut ExportBudget,
    ) -> Result<PortableItems<skills::SkillEntry>> {
        let mut all =
            PortableItems { items: Vec::new(), omitted: Vec::new(), partial: room.budget.truncated };
        for row in rows {
            let Some(file) = row.file.clone() else { continue };
            if row.error.is_some() {
                all.omitted.push(file);
                continue;
            }
            let folder = file.strip_suffix(SKILL_FILE).unwrap_or(&file).trim_end_matches('/').to_owned();
            let main = match take(site, &file, room)? {
                FileReading::File(main) => main,
                FileReading::Never => {
                    all.omitted.push(file);
                    continue;
                }
                FileReading::Full => {
                    all.omitted.push(file);
                    all.partial = true;
                    continue;
                }
            };
            let mut item =
                PortableItem { row, path: folder.clone(), files: vec![main], partial: false, mixed: false };
            // Files beside a `SKILL.md` at the top of a skills folder do not belong to that skill.
            if !SKILL_FOLDERS.contains(&folder.as_str()) {
                beside(site, &folder, &mut item, &mut all.omitted, room)?;
            }
            all.items.push(item);
        }
        // If no skill lost files, the limit was reached between skills, so whole skills are missing.
        all.partial |= room.budget.truncated && all.items.iter().all(|item| !item.partial);
        Ok(all)
    }

    /// Reads the commands that OpenCode loads from the workspace's own folders.
    pub(super) fn portable_commands(
        &self,
        site: &ProjectSite,
        rows: Vec<commands::CommandEntry>,
        room: &mut ExportBudget,
    ) -> Result<PortableItems<commands::CommandEntry>> {
        let mut all =
            PortableItems { items: Vec::new(), omitted: Vec::new(), partial: room.budget.truncated };
        for row in rows {
            let file = row.file.clone();
            let reading = if row.error.is_some() || row.truncated {
                FileReading::Never
            } else {
                take(site, &file, room)?
            };
            match reading {
                FileReading::File(carried) => {
                    all.items.push(PortableItem {
                        row,
                        path: file,
                        files: vec![carried],
                        partial: false,
                        mixed: false,
                    });
                }
                FileReading::Never => all.omitted.push(file),
                FileReading::Full => {
                    all.omitted.push(file);
                    all.partial = true;
                }
            }
        }
        Ok(all)
    }
}

/// Adds to `omitted` the other files in the folders of skills and commands, which no document contains.
pub(super) fn name_omitted_files(
    site: &ProjectSite,
    carried: &HashSet<String>,
    omitted: &mut Vec<String>,
    room: &mut ExportBudget,
) {
    let known: HashSet<String> = omitted.iter().cloned().collect();
    let tops = SKILL_FOLDERS.iter().chain(&COMMAND_FOLDERS);
    let mut folders: Vec<String> = tops.map(|folder| (*folder).to_owned()).collect();
    while let Some(folder) = folders.pop() {
        // The files of a folder behind a symbolic link belong to the target folder.
        if site.root.is_link(&folder).unwrap_or(true) {
            continue;
        }
        let Some(entries) = site.root.list(&folder, &mut room.budget).ok().flatten() else { continue };
        for entry in entries.iter() {
            let path = format!("{folder}/{}", entry.name);
            if entry.exact && entry.kind == FileType::Directory {
                folders.push(path);
            } else if !carried.contains(&path) && !known.contains(&path) {
                if omitted.len() >= OMITTED || !room.budget.take_text(json_length(&path)) {
                    room.budget.truncated = true;
                    return;
                }
                omitted.push(path);
            }
        }
    }
}

/// Reads the files beside a skill's `SKILL.md`, except those of nested skills.
fn beside(
    site: &ProjectSite,
    folder: &str,
    item: &mut PortableItem<skills::SkillEntry>,
    omitted: &mut Vec<String>,
    room: &mut ExportBudget,
) -> Result<()> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let cut = room.budget.truncated;
        let Some(entries) = site.root.list(&folder, &mut room.budget).ok().flatten() else { continue };
        if room.budget.truncated && !cut {
            item.partial = true;
            omitted.push(format!("{folder}/"));
        }
        let is_top = folder == item.path;
        if !is_top && entries.iter().any(|entry| entry.name == SKILL_FILE) {
            continue;
        }
        if entries.is_empty() {
            item.mixed = true;
            omitted.push(format!("{folder}/"));
        }
        for entry in entries.iter() {
            let path = format!("{folder}/{}", entry.name);
            if is_top && entry.name == SKILL_FILE {
                continue;
            }
            if entry.exact && entry.kind == FileType::Directory {
                folders.push(path);
                continue;
            }
            let is_file = entry.exact && matches!(entry.kind, FileType::RegularFile | FileType::Unknown);
            match if is_file { take(site, &path, room)? } else { FileReading::Never } {
                FileReading::File(carried) => item.files.push(carried),
                FileReading::Never => {
                    item.mixed = true;
                    omitted.push(path);
                }
                FileReading::Full => {
                    item.partial = true;
                    omitted.push(path);
                }
            }
        }
    }
    Ok(())
}

/// Reads a regular file if its path contains no symbolic link.
fn take(site: &ProjectSite, path: &str, room: &mut ExportBudget) -> Result<FileReading> {
    let (folder, name) = path.rsplit_once('/').unwrap_or((".", path));
    let Some(file) =
        site.root.tray(folder).ok().flatten().and_then(|tray| tray.open(name.as_bytes()).ok().flatten())
    else {
        return Ok(FileReading::Never);
    };
    let Ok(metadata) = file.metadata() else { return Ok(FileReading::Never) };
    if metadata.len() > limits::PROJECT_FILE_BYTES {
        return Ok(FileReading::Never);
    }
    if room.files == 0 || !room.budget.take_read(metadata.len()) {
        return Ok(FileReading::Full);
    }
    let mut bytes = Vec::new();
    let read = std::io::Read::take(file, limits::PROJECT_FILE_BYTES + 1);
    if std::io::Read::read_to_end(&mut { read }, &mut bytes).is_err()
        || bytes.len() as u64 > limits::PROJECT_FILE_BYTES
    {
        return Ok(FileReading::Never);
    }
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => json_length(text),
        Err(_) => bytes.len() / 3 * 4 + 8,
    };
    if !room.budget.take_text(text + json_length(path) + OVERHEAD) {
        return Ok(FileReading::Full);
    }
    room.files -= 1;
    let mode = metadata.permissions().mode() & 0o777;
    Ok(FileReading::File(PortableFile { path: path.to_owned(), bytes, mode }))
}
