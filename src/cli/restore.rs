//! `berth restore`: makes a data folder from a backup. The archive is unpacked into a folder beside the data folder
//! and compared with its checksums there; then one rename makes this folder the data folder, or exchanges the two
//! folders. A killed restore leaves at most the unpacked folder behind, and the next restore removes it.
//!
//! The data does not depend on the path of the data folder: paths in records are relative. Only the ids of workspaces
//! in the OpenWork API are derived from paths; a restore updates them in tokens and in the names of logs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with, syncfs};
use rustix::io::Errno;
use serde_json::Value;
use uuid::Uuid;

use super::backup::CountLine;
use crate::access::tokens;
use crate::base::{At, Code, Error, Result, logging};
use crate::config;
use crate::containers;
use crate::images::backup::{self, BackupInfo, DATA};
use crate::proc::Cancel;
use crate::roots::saved;
use crate::store::lock::DataLock;
use crate::store::{file, format, tree};
use crate::workspaces::openwork_id;

/// Runs `berth restore FILE`.
///
/// # Errors
/// Fails for an invalid command line (exit code 2), for a backup of a newer version (exit code 3), or if a step fails.
/// After an error the data folder is unchanged.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let asked = match super::line("restore", args)? {
        Ok(asked) => asked,
        Err(code) => return Ok(code),
    };
    let [name] = &asked.words[..] else {
        return Err(Error::config("restore", "say `berth restore FILE`; - is standard input"));
    };
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let data_dir = config::resolve_data_dir(&asked, &config::process_env, &current_dir)?;
    let input: Box<dyn Read + Send> = match name.as_str() {
        "-" => Box::new(io::stdin()),
        name => {
            let path = current_dir.join(name);
            let file = File::open(&path).map_err(|error| super::unreadable(&path, error))?;
            if file.metadata().is_ok_and(|found| found.is_dir()) {
                return Err(Error::config(path.display(), "is a folder, not a backup"));
            }
            Box::new(file)
        }
    };
    let data_dir = followed(data_dir)?;
    let replaced = check_target(&data_dir, asked.replace)?;
    let cancel = Cancel::new()?;
    super::doctor::on_interrupt(&cancel)?;
    let unpacked = RestoreStaging::new(&data_dir)?;
    let mut line = CountLine::default();
    let info = backup::unpack(input, &unpacked.folder, &cancel, &mut |count| line.show(count));
    line.end();
    let info = info.map_err(|error| {
        let file = if name == "-" { "standard input" } else { name.as_str() };
        match error.code() {
            Code::InvalidImage | Code::NewerFormat | Code::DiskFull => {
                Error::new(error.code(), format!("{file}: {}", error.message()))
            }
            _ => error,
        }
    })?;
    let data = unpacked.folder.join(DATA);
    format::prepare(&data)?;
    saved::complete_restored_roots(&data)?;
    move_ids(&data, &data_dir, &info)?;
    let folder = File::open(&data).at("open", &data)?;
    syncfs(&folder).at("write", &data)?;
    unpacked.put(&data_dir, replaced.is_some())?;
    eprintln!(
        "{} has the data that berth {} backed up at {}{}. Start the server with --data-dir {}",
        data_dir.display(),
        logging::one_line(&info.version),
        logging::one_line(&info.created_at),
        if info.containers {
            ""
        } else {
            ", without containers' files and images: build its containers again"
        },
        data_dir.display(),
    );
    Ok(ExitCode::SUCCESS)
}

/// Returns the target of a data folder that is a symbolic link: the restore replaces the target and keeps the link.
fn followed(data_dir: PathBuf) -> Result<PathBuf> {
    match fs::symlink_metadata(&data_dir) {
        Ok(found) if found.is_symlink() => fs::canonicalize(&data_dir).map_err(|error| {
            Error::config(data_dir.display(), format!("is a link that leads nowhere: {error}"))
        }),
        Ok(found) if !found.is_dir() => {
            Err(Error::config(data_dir.display(), "is not a folder; name another one with --data-dir"))
        }
        _ => Ok(data_dir),
    }
}

/// Refuses a folder that is not empty, unless the user wants to replace it and no process uses it.
fn check_target(data_dir: &Path, replace: bool) -> Result<Option<DataLock>> {
    let entries = match fs::read_dir(data_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(|error| super::unreadable(data_dir, error))?,
    };
    if entries.flatten().next().is_none() {
        return Ok(None);
    }
    if !replace {
        return Err(Error::config(
            data_dir.display(),
            "is not empty; name another folder with --data-dir, or add --replace to give up what is in it",
        ));
    }
    // Only a data folder of berth is replaced, so that a mistyped path does not destroy other files.
    let is_ours = ["lock", "format"].iter().any(|name| data_dir.join(name).is_file());
    if !data_dir.join("workspaces").is_dir() || !is_ours {
        let problem = "is not empty and no data folder of berth, so it is not replaced; name another folder with --data-dir";
        return Err(Error::config(data_dir.display(), problem));
    }
    let lock = DataLock::take(data_dir)?;
    if let Some(folder) = containers::running_in(data_dir)?.first() {
        let message = format!(
            "The container of {} still runs; start the server of this folder and stop it, or reboot",
            folder.display()
        );
        return Err(Error::new(Code::Conflict, message));
    }
    if let Some(mount) = tree::mounts_below(data_dir)?.first() {
        let message = format!("{} is mounted in the folder; unmount it first", mount.display());
        return Err(Error::new(Code::MountedInside, message));
    }
    Ok(Some(lock))
}

/// The folder into which a backup is unpacked. It is removed when this value is dropped.
struct RestoreStaging {
    folder: PathBuf,
    parent: PathBuf,
    /// The lock of the folder, held as long as the folder is in use.
    _locked: File,
}

impl RestoreStaging {
    fn new(data_dir: &Path) -> Result<RestoreStaging> {
        let (Some(parent), Some(name)) = (data_dir.parent(), data_dir.file_name()) else {
            return Err(Error::config(data_dir.display(), "cannot be a data folder"));
        };
        file::create_dir_private(parent)?;
        let prefix = format!(".{}.restore-", name.to_string_lossy());
        for entry in fs::read_dir(parent).at("list", parent)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let abandoned = || File::open(entry.path()).is_ok_and(|folder| lock(&folder));
            if name.starts_with(&prefix) && abandoned() {
                tree::remove_tree(parent, &name)?;
            }
        }
        let folder = parent.join(format!("{prefix}{}", Uuid::new_v4()));
        fs::DirBuilder::new().mode(0o700).create(&folder).at("make", &folder)?;
        let locked = File::open(&folder).at("open", &folder)?;
        lock(&locked);
        Ok(RestoreStaging { folder, parent: parent.to_owned(), _locked: locked })
    }

    /// Makes the unpacked folder the data folder, with one rename.
    fn put(self, data_dir: &Path, replace: bool) -> Result<()> {
        let data = self.folder.join(DATA);
        // The rename replaces an empty folder, but fails if files have appeared in it (rename(2)).
        let moved = match renameat_with(CWD, &data, CWD, data_dir, RenameFlags::empty()) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if replace => {
                renameat_with(CWD, &data, CWD, data_dir, RenameFlags::EXCHANGE)
            }
            moved => moved,
        };
        match moved {
            Err(Errno::BUSY | Errno::XDEV) => {
                let problem =
                    "is a mount point, which cannot be replaced at once; restore into a folder in it";
                return Err(Error::config(data_dir.display(), problem));
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let message = format!("Something has appeared in {} meanwhile", data_dir.display());
                return Err(Error::new(Code::Conflict, message));
            }
            moved => moved.at("move the data to", data_dir)?,
        }
        file::sync_folder_at(&self.parent)
    }
}

impl Drop for RestoreStaging {
    fn drop(&mut self) {
        let name =
            self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Err(error) = tree::remove_tree(&self.parent, &name) {
            eprintln!("{} was not removed: {error}", self.folder.display());
        }
    }
}

fn lock(folder: &File) -> bool {
    flock(folder, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Updates the OpenWork ids of workspaces whose files are in the data folder: these ids are derived from the paths,
/// which a restore may change.
fn move_ids(data: &Path, data_dir: &Path, info: &BackupInfo) -> Result<()> {
    let mut moved: BTreeMap<String, String> = BTreeMap::new();
    for (id, old) in &info.paths {
        let record = data.join("workspaces").join(id.to_string()).join("workspace.json");
        let Some(bytes) = file::read_optional(&record, crate::base::limits::STATE_FILE_BYTES)? else {
            continue;
        };
        let Ok(record) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let name = Path::new(record["path"].as_str().unwrap_or_default()).file_name();
        let Some(name) = name.filter(|_| record["own_folder"] == true) else { continue };
        let now = data_dir.join("workspaces").join(id.to_string()).join(name);
        moved.insert(openwork_id(old), openwork_id(&now.to_string_lossy()));
    }
    for folder in ["audit", "reload"] {
        for (old, new) in moved.iter().filter(|(old, new)| old != new) {
            for end in [".jsonl", ".1.jsonl"] {
                let folder = data.join(folder);
                match fs::rename(folder.join(format!("{old}{end}")), folder.join(format!("{new}{end}"))) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    renamed => renamed.at("move", &folder)?,
                }
            }
        }
    }
    let path = data.join(tokens::FILE);
    let Some(bytes) = file::read_optional(&path, u64::MAX - 1)? else { return Ok(()) };
    // If the token store cannot be read, it stays unchanged; the server will move it aside.
    let Ok(mut store) = serde_json::from_slice::<Value>(&bytes) else { return Ok(()) };
    rename_strings(&mut store, &moved);
    let text = serde_json::to_vec_pretty(&store)
        .map_err(|error| Error::internal(tokens::FILE).with_source(error))?;
    file::write_atomic(&path, &text, 0o600)
}

/// Replaces each string that is exactly an old id by the new id.
fn rename_strings(value: &mut Value, moved: &BTreeMap<String, String>) {
    match value {
        Value::String(text) => {
            if let Some(new) = moved.get(text.as_str()) {
                text.clone_from(new);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|value| rename_strings(value, moved)),
        Value::Object(all) => all.values_mut().for_each(|value| rename_strings(value, moved)),
        _ => {}
    }
}
