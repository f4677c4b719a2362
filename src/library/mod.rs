//! The library: templates, skills, tools, scripts, commands and agents as plain files in one folder, which may be a
//! git clone that users edit by hand. Every call reads the current files, so that manual changes take effect at once;
//! the module `watch` detects manual changes. A damaged file is listed with its error and does not affect other files.
//! Symbolic links cannot lead out of the library (`store::beneath`). The library must not know workspaces.
//!
//! Locks: `writes`, so that concurrent writes of one entry leave one complete version; then the list of berth's own
//! writes, a leaf.

mod folder;
mod front_matter;
mod import;
mod maps;
mod seal;
mod skill;
mod template;
mod text;
mod unzip;
pub mod watch;
mod zip_names;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::base::ids::Label;
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;
use crate::store::file;
use crate::store::tree::mounts_below;

pub use folder::{SKILL_LIMITS, SkillFolder, SkillPart, is_ignored_name};
pub use front_matter::with_name;
pub use import::ImportedSkill;
pub use maps::LibraryMap;
pub use seal::LibraryKey;
pub use skill::{LibrarySkill, MAIN, SkillFile, SkillSummary};
pub use template::{Template, TemplateFields, TemplateSummary};
pub use text::{LibraryText, TextKind, TextSummary};
use watch::OwnWrites;

/// An open library.
pub struct Library {
    folder: PathBuf,
    key: LibraryKey,
    writes: Mutex<()>,
    own: OwnWrites,
}

impl Library {
    /// Opens the library in `folder`, and creates the folder if necessary.
    ///
    /// # Errors
    /// Fails if the folder cannot be created.
    pub fn open(folder: &Path, key: LibraryKey) -> Result<Library> {
        if !folder.is_dir() {
            file::create_dir_private(folder)?;
        }
        let library =
            Library { folder: folder.to_owned(), key, writes: Mutex::default(), own: OwnWrites::default() };
        library.sweep_stages()?;
        Ok(library)
    }

    fn root(&self) -> Result<Root> {
        if !self.folder.is_dir() {
            let message =
                format!("The library's folder {} does not exist; create it again", self.folder.display());
            return Err(Error::new(Code::Unavailable, message));
        }
        Root::open(&self.folder)
    }

    /// Reads a text file of the library. Returns `None` if the file does not exist.
    fn read(&self, rel: &str) -> Result<Option<String>> {
        let Some(bytes) = self.root()?.read(rel, limits::LIBRARY_FILE_BYTES)? else { return Ok(None) };
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|_| Error::new(Code::InvalidPath, format!("{rel} is not UTF-8 text")))
    }

    fn write(&self, rel: &str, text: &str) -> Result<()> {
        if text.len() as u64 > limits::LIBRARY_FILE_BYTES {
            let most = limits::LIBRARY_FILE_BYTES;
            return Err(Error::new(Code::InvalidPayload, format!("content is longer than {most} bytes")));
        }
        let root = self.root()?;
        if let Some((folder, _)) = rel.rsplit_once('/') {
            root.make_dirs(folder)?;
        }
        root.write_new(rel, text.as_bytes(), 0o644)?;
        self.own.note(&root, rel);
        Ok(())
    }

    fn remove(&self, rel: &str) -> Result<()> {
        let root = self.root()?;
        root.remove(rel)?;
        self.own.note(&root, rel);
        Ok(())
    }

    /// Removes an entry, if it exists, with all of its files, including hidden ones. The entry is first renamed to a
    /// staging name, so it disappears at once; after a crash, the next start removes the remaining files.
    fn discard(&self, rel: &str) -> Result<()> {
        let root = self.root()?;
        if root.identity(rel)?.is_none() {
            return Ok(());
        }
        let mounts = if root.is_link(rel)? { Vec::new() } else { mounts_below(&self.folder.join(rel))? };
        if let Some(mount) = mounts.first() {
            let message = format!("{} is mounted inside {rel}; unmount it first", mount.display());
            return Err(Error::new(Code::MountedInside, message));
        }
        // The list makes the watcher ignore this removal. If there are too many files to list, the workspaces are
        // synced once more than necessary.
        let below = self.all_below(rel).unwrap_or_default();
        let (folder, _) = rel.rsplit_once('/').unwrap_or(("", rel));
        let aside = format!("{folder}/{}", import::staging_name());
        if root.move_to_free_name(rel, &aside)? {
            self.own.note(&root, rel);
            below.iter().for_each(|path| self.own.note(&root, &format!("{rel}/{path}")));
            root.remove_tree(&aside)?;
        }
        Ok(())
    }

    /// Returns the sorted names, without `suffix`, of the entries of `folder` that end with `suffix`. Invalid names
    /// are left out.
    fn names(&self, folder: &str, suffix: &str) -> Result<Vec<String>> {
        let mut names: Vec<String> = self
            .root()?
            .entries(folder, limits::LIBRARY_ENTRIES)?
            .into_iter()
            .filter_map(|entry| Some(entry.strip_suffix(suffix)?.to_owned()))
            .filter(|name| check_name(name).is_ok())
            .collect();
        names.sort_unstable();
        Ok(names)
    }
}

/// Checks the name of an entry, which becomes part of a file name.
///
/// # Errors
/// Fails with `InvalidName` and the violated rule. (sandboxed.sh responds with status 500 in this case.)
pub fn check_name(name: &str) -> Result<()> {
    Label::parse(name)?;
    if name.len() > limits::LIBRARY_NAME_BYTES {
        let most = limits::LIBRARY_NAME_BYTES;
        return Err(Error::new(Code::InvalidName, format!("Name is longer than {most} bytes")));
    }
    Ok(())
}

/// Checks a file's path below a skill.
///
/// # Errors
/// Fails with `InvalidName`.
pub fn check_path(path: &str) -> Result<()> {
    if path.split('/').count() > limits::LIBRARY_PATH_PARTS {
        return Err(Error::new(Code::InvalidName, "The path has too many folders"));
    }
    path.split('/').try_for_each(|part| match part.starts_with('.') && !matches!(part, "." | "..") {
        true => Err(Error::new(Code::InvalidName, "Name cannot start with a dot")),
        false => folder::check_part(part),
    })
}

/// Returns whether an error means that an entry exists but cannot be used. Callers then still use the other entries.
pub fn is_broken(error: &Error) -> bool {
    matches!(error.code(), Code::InvalidPath | Code::Conflict)
}

fn missing(what: &str, name: &str) -> Error {
    Error::new(Code::NotInLibrary, format!("{what} not found: {name}"))
}
