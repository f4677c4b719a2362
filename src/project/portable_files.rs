//! The files of skills and commands that an exported document can carry: regular files of bounded size, reached without
//! a link. What it cannot carry is named, and an import never removes it.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::{Project, ProjectSite, commands, skills};
use crate::base::{Code, Error, Result, limits};
use crate::store::finder::{SearchBudget, json_length};

/// JSON text of the skills and commands of one document; with the configurations it stays below
/// [`super::portable::BODY_BYTES`].
pub(super) const TEXT_BYTES: usize = 4 << 20;
/// Places that are named one by one.
const OMITTED: usize = 2000;
/// Files in one document. An import syncs each to the disk.
const FILES: usize = 2000;
/// What a file has if the document says nothing of it.
pub(super) const MODE: u32 = 0o644;
/// Folders within each other, and bytes of one name.
const PATH_PARTS: usize = 32;
const NAME_BYTES: usize = 255;
/// What a file's place in the document takes.
const OVERHEAD: usize = 80;

/// A file.
#[derive(Debug)]
pub(super) struct PortableFile {
    /// Below the workspace.
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
}

/// A file: its text, or its bytes in base64.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FilePart {
    pub(super) path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// Octal; `644` if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
}

impl FilePart {
    pub(super) fn of(path: &str, file: &PortableFile) -> FilePart {
        let text = String::from_utf8(file.bytes.clone()).ok();
        let base64 = text.is_none().then(|| BASE64_STANDARD.encode(&file.bytes));
        let mode = (file.mode != MODE).then(|| format!("{:o}", file.mode));
        FilePart { path: path.to_owned(), content: text, base64, mode }
    }

    /// The file below `folder`.
    pub(super) fn read(&self, folder: &str) -> Result<PortableFile> {
        let refuse = |why: &str| {
            let message = format!("The file '{}' {why}", self.path.escape_debug());
            Err(Error::new(Code::InvalidPayload, message).detail("path", &*self.path))
        };
        if !is_path(&self.path) {
            return refuse("has no path that a file in a skill can have: relative, without '.' and '..'");
        }
        let bytes = match (&self.content, &self.base64) {
            (Some(text), None) => text.clone().into_bytes(),
            (None, Some(text)) => match BASE64_STANDARD.decode(text) {
                Ok(bytes) => bytes,
                Err(_) => return refuse("is not base64"),
            },
            _ => return refuse("should have either content or base64"),
        };
        if bytes.len() as u64 > limits::PROJECT_FILE_BYTES {
            return refuse(&format!("has more than {} bytes", limits::PROJECT_FILE_BYTES));
        }
        let mode = match self.mode.as_deref().map(|mode| u32::from_str_radix(mode, 8)) {
            None => MODE,
            Some(Ok(mode)) if mode <= 0o777 => mode,
            _ => return refuse("has a mode that is not octal digits up to 777"),
        };
        let path = if folder.is_empty() { self.path.clone() } else { format!("{folder}/{}", self.path) };
        Ok(PortableFile { path, bytes, mode })
    }
}

/// Relative, without detours, within the limits of file systems.
pub(super) fn is_path(path: &str) -> bool {
    let fits = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= NAME_BYTES && !part.contains(char::is_control)
    };
    path.split('/').count() <= PATH_PARTS && path.split('/').all(fits)
}

/// Whether the path is one of the folders, or below it.
pub(super) fn is_below(path: &str, folders: &[&str]) -> bool {
    folders
        .iter()
        .any(|folder| path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// A skill or a command with its files.
#[derive(Debug)]
pub(super) struct PortableItem<R> {
    pub(super) row: R,
    /// A skill's folder, a command's file.
    pub(super) path: String,
    /// `SKILL.md` or the command's file, then the others.
    pub(super) files: Vec<PortableFile>,
    /// A file was left out because the document is full.
    pub(super) partial: bool,
    /// A file was left out because no document can carry it.
    pub(super) mixed: bool,
}

/// The skills or commands of a workspace.
#[derive(Debug)]
pub(super) struct PortableItems<R> {
    pub(super) items: Vec<PortableItem<R>>,
    /// Places of what was left out.
    pub(super) omitted: Vec<String>,
    /// Whole items were left out because the document is full.
    pub(super) partial: bool,
}

/// What a collection may take.
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
    /// No document can carry it.
    Never,
    /// The document is full.
    Full,
}

impl Project {
    /// The skills that are in the workspace's own folders and that OpenCode loads.
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
            let folder = file.strip_suffix(skills::MAIN).unwrap_or(&file).trim_end_matches('/').to_owned();
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
            // What stands beside a SKILL.md in the folder of all skills is not that skill's.
            if !skills::FOLDERS.contains(&folder.as_str()) {
                beside(site, &folder, &mut item, &mut all.omitted, room)?;
            }
            all.items.push(item);
        }
        // What was cut while files were read is no skill's own.
        all.partial |= room.budget.truncated && all.items.iter().all(|item| !item.partial);
        Ok(all)
    }

    /// The commands that are in the workspace's own folders and that OpenCode loads.
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
            let taken = if row.error.is_some() || row.truncated {
                FileReading::Never
            } else {
                take(site, &file, room)?
            };
            match taken {
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

/// Names what else is in the folders of skills and commands, and in no document.
pub(super) fn name_omitted_files(
    site: &ProjectSite,
    carried: &HashSet<String>,
    omitted: &mut Vec<String>,
    room: &mut ExportBudget,
) {
    let known: HashSet<String> = omitted.iter().cloned().collect();
    let tops = skills::FOLDERS.iter().chain(&commands::FOLDERS);
    let mut folders: Vec<String> = tops.map(|folder| (*folder).to_owned()).collect();
    while let Some(folder) = folders.pop() {
        // A link's files are those of another folder.
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

/// The files of a skill's folder, but for folders that are skills themselves.
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
        if !is_top && entries.iter().any(|entry| entry.name == skills::MAIN) {
            continue;
        }
        if entries.is_empty() {
            item.mixed = true;
            omitted.push(format!("{folder}/"));
        }
        for entry in entries.iter() {
            let path = format!("{folder}/{}", entry.name);
            if is_top && entry.name == skills::MAIN {
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

/// Reads a file, if it is one and was reached without a link.
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
