//! `berth backup`: the data folder as one archive, beside a running server or without one ([`backup`] has the format).
//!
//! berth replaces each of its own files as a whole, so a backup reads each file in one consistent version. The files
//! of a container are read from a snapshot that the running server takes for the backup and that is deleted
//! afterwards; if no server runs, the backup holds the lock of the data folder, so no files change. The files of a
//! host workspace, and the output of runs, may change while the backup reads them.
//!
//! The backup does not contain files that only a running server needs: sockets, locks, cgroups, the state of running
//! containers, and the trash. Locks: the lock of the folder `workspaces`, against a second backup; if no server runs,
//! also the lock of the data folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, linkat};
use rustix::io::Errno;
use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{self, ApiClient};
use crate::access::tokens;
use crate::base::{At, Code, Error, Result, clock, limits};
use crate::config::{self, FlagValues};
use crate::containers;
use crate::images::backup::{self, BACKUP_FORMAT, BackupArchive, BackupInfo};
use crate::proc::Cancel;
use crate::roots::saved::{self, SavedRoot};
use crate::store::file::{self, is_temp_name};
use crate::store::format::DATA_FORMAT;
use crate::store::lock::{DataLock, FolderLock};

/// Entries at the top of the data folder that a backup does not copy from there: files that only a running server
/// needs, and files that the backup adds in another way.
const SKIPPED: &[&str] = &[
    "lock",
    "cgroup",
    "http",
    "trash",
    "agent",
    "approvals",
    "network.json",
    "host",
    "workspaces",
    "layers",
    "images",
    tokens::FILE,
];
/// Entries of a workspace's folder that a backup does not copy from there, for the same reasons.
const SKIPPED_OF_WORKSPACE: &[&str] = &[
    "workspace.json",
    "root.json",
    "root",
    ".berth-new-root",
    "machine.json",
    "machine.log",
    "agent.sock",
    "mounts",
    "mounts.json",
];
/// How long a backup waits for a workspace that is busy with another operation.
const PATIENCE: Duration = Duration::from_secs(60);
/// The name of the snapshots that a backup takes.
const SNAPSHOT: &str = "berth backup, deleted when it is written";

/// Runs `berth backup FILE`.
///
/// # Errors
/// Fails for an invalid command line (exit code 2), or if a step fails. After an error the backup's file does not
/// exist.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let asked = match super::line("backup", args)? {
        Ok(asked) => asked,
        Err(code) => return Ok(code),
    };
    let [name] = &asked.words[..] else {
        return Err(Error::config("backup", "say `berth backup FILE`; - is standard output"));
    };
    if asked.containers && asked.without_containers {
        return Err(Error::config("--without-containers", "contradicts --containers"));
    }
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let plan = config::resolve_tokens(&asked, &config::process_env, &current_dir)?;
    let data_dir = &plan.data_dir;
    match fs::metadata(data_dir.join("workspaces")) {
        Ok(found) if found.is_dir() => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(super::unreadable(data_dir, error));
        }
        _ => {
            let problem = "has no data of berth; --data-dir names another folder";
            return Err(Error::config(data_dir.display(), problem));
        }
    }
    let cancel = Cancel::new()?;
    super::doctor::on_interrupt(&cancel)?;
    let busy = |_| Error::new(Code::Busy, "Another berth backup of this data folder is at work");
    let _turn = FolderLock::take(&data_dir.join("workspaces"), Duration::ZERO).map_err(busy)?;
    let offline = DataLock::take(data_dir).ok();
    let mut work = BackupWork {
        data_dir: data_dir.clone(),
        containers: !asked.without_containers,
        client: None,
        layers: BTreeSet::new(),
        cancel: &cancel,
    };
    if work.containers {
        if offline.is_none() {
            work.client = Some(client::of(
                &FlagValues {
                    config: asked.config.clone(),
                    data_dir: Some(data_dir.display().to_string()),
                    openwork_url: asked.openwork_url.clone(),
                    host_token: asked.host_token.clone(),
                    ..FlagValues::default()
                }
                .into(),
            )?);
        } else if let Some(folder) = containers::running_in(data_dir)?.first() {
            let message = format!(
                "The container of {} runs, but its server does not, so it would change meanwhile; start the server, or add \
                 --without-containers",
                folder.display()
            );
            return Err(Error::new(Code::Conflict, message));
        }
    }
    let path = current_dir.join(name);
    let mut target = if name == "-" { Destination::stdout()? } else { Destination::file(&path, data_dir)? };
    let beside = target.folder.clone();
    let workspaces = workspaces(data_dir)?;
    let info = BackupInfo {
        format: BACKUP_FORMAT,
        data_format: DATA_FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        created_at: clock::now_rfc3339(),
        containers: work.containers,
        paths: paths(&workspaces, data_dir),
    };
    let mut line = CountLine::default();
    let omitted =
        backup::write(&mut target.out, &beside, &info, &cancel, &mut |count| line.show(count), |archive| {
            work.fill(archive, &workspaces, &plan.token_store)
        });
    line.end();
    let omitted = omitted.map_err(|error| match error.code() {
        // The error names an entry of the archive, so it is replaced by one that names the backup's file.
        Code::DiskFull => {
            let message =
                format!("No space left to write {name}; free some disk space, or name a file elsewhere");
            Error::new(Code::DiskFull, message)
        }
        _ => error,
    })?;
    target.keep()?;
    for entry in &omitted.named {
        eprintln!("Not in the backup: {entry}");
    }
    if omitted.count > omitted.named.len() as u64 {
        eprintln!("Not in the backup: {} entries in all", omitted.count);
    }
    let rest = match work.containers {
        true => "",
        false => " without containers' files, images and snapshots",
    };
    eprintln!(
        "{} has the data of {}{rest}. Tokens and keys are in it: keep it as safe as they are. Files of host workspaces \
         elsewhere, server.json and environment variables are not in it.",
        if name == "-" { "The backup" } else { name.as_str() },
        data_dir.display(),
    );
    Ok(ExitCode::SUCCESS)
}

/// A workspace's record as it is stored.
struct StoredWorkspace {
    id: Uuid,
    folder: PathBuf,
    record: Value,
}

impl StoredWorkspace {
    fn is_container(&self) -> bool {
        self.record["workspace_type"] != "host"
    }

    fn is_own(&self) -> bool {
        self.record["own_folder"] == true
    }

    /// Returns the path of the workspace's files. If they are in the workspace's own folder, the record contains only
    /// their name.
    fn path(&self) -> PathBuf {
        let path = Path::new(self.record["path"].as_str().unwrap_or_default());
        match path.file_name().filter(|_| self.is_own()) {
            Some(name) => self.folder.join(name),
            None => path.to_owned(),
        }
    }

    /// Returns the record that the backup stores. In a backup a container's files are always in the workspace's own
    /// folder, wherever they were before.
    fn kept(&self, with_root: bool) -> Value {
        let mut record = self.record.clone();
        if self.is_container() {
            record["own_folder"] = json!(true);
            record["path"] = json!("root");
            record["job"] = Value::Null;
            if !with_root {
                record["status"] = json!("pending");
                record["error_message"] = Value::Null;
            }
        }
        record
    }
}

fn workspaces(data_dir: &Path) -> Result<Vec<StoredWorkspace>> {
    let all = data_dir.join("workspaces");
    let mut found = Vec::new();
    for entry in fs::read_dir(&all).at("list", &all)?.flatten() {
        let folder = entry.path();
        let Ok(id) = Uuid::try_parse(&entry.file_name().to_string_lossy()) else { continue };
        let path = folder.join("workspace.json");
        let Some(bytes) = file::read_optional(&path, limits::STATE_FILE_BYTES)? else { continue };
        // The server does not serve an unreadable record either; the backup copies its folder unchanged.
        let record = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        found.push(StoredWorkspace { id, folder, record });
    }
    found.sort_unstable_by_key(|found| found.id);
    Ok(found)
}

fn paths(workspaces: &[StoredWorkspace], data_dir: &Path) -> BTreeMap<Uuid, String> {
    let inside = workspaces.iter().filter(|found| found.is_container() || found.path().starts_with(data_dir));
    inside.map(|found| (found.id, found.path().to_string_lossy().into_owned())).collect()
}

/// A backup in progress.
struct BackupWork<'a> {
    data_dir: PathBuf,
    containers: bool,
    /// A client of the running server, for taking snapshots; `None` if no server runs.
    client: Option<ApiClient>,
    /// The layers that the archive already contains.
    layers: BTreeSet<String>,
    cancel: &'a Cancel,
}

impl BackupWork<'_> {
    fn fill(
        &mut self,
        archive: &mut BackupArchive<'_>,
        workspaces: &[StoredWorkspace],
        token_store: &Path,
    ) -> Result<()> {
        archive.add("workspaces/", None, 0o700)?;
        archive.add("layers/", None, 0o700)?;
        for workspace in workspaces {
            self.workspace(archive, workspace)?;
        }
        // The images are added after the roots, so that the archive contains every image that one of these roots
        // needs.
        let images = self.data_dir.join("images");
        if self.containers && images.is_dir() {
            archive.tree(&images, "images", &|path| {
                let name = path.strip_prefix(b"images/").unwrap_or_default();
                name.starts_with(b".") || name.starts_with(b"names/") && is_temporary(path)
            })?;
        }
        // If the data folder has no token store, the one beside server.json is added.
        let own = self.data_dir.join(tokens::FILE);
        let store = if own.exists() { &own } else { token_store };
        if store.exists() {
            archive.file(&fs::canonicalize(store).at("open", store)?, tokens::FILE)?;
        }
        self.top(archive)?;
        Ok(())
    }

    /// Adds all other entries of the data folder, including those of later versions of berth.
    fn top(&self, archive: &mut BackupArchive<'_>) -> Result<()> {
        let mut names: Vec<_> = fs::read_dir(&self.data_dir)
            .at("list", &self.data_dir)?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        for name in names.iter().filter(|name| !SKIPPED.contains(&name.as_str())) {
            let path = self.data_dir.join(name);
            if name.starts_with(".berth-") || is_temp_name(name) {
                continue;
            }
            // The operator chose the target of a symbolic link at the top of the data folder.
            let Ok(found) = fs::metadata(&path) else { continue };
            if found.is_dir() {
                let real = fs::canonicalize(&path).at("open", &path)?;
                archive.tree(&real, name, &is_temporary)?;
            } else if found.is_file() {
                archive.file(&fs::canonicalize(&path).at("open", &path)?, name)?;
            }
        }
        Ok(())
    }

    fn workspace(&mut self, archive: &mut BackupArchive<'_>, workspace: &StoredWorkspace) -> Result<()> {
        let mut taken = None;
        let kept = self.workspace_with(archive, workspace, &mut taken);
        if let (Some(client), Some(snapshot)) = (&self.client, taken) {
            let path = format!("/api/workspaces/{}/snapshots/{snapshot}", workspace.id);
            let deleted =
                client.call_within("DELETE", &path, None, limits::CLI_ANSWER).and_then(|(status, answer)| {
                    match status {
                        200 | 204 | 404 => Ok(()),
                        _ => Err(client.refused(status, &answer)),
                    }
                });
            if let Err(error) = deleted {
                eprintln!("The snapshot {snapshot} was not deleted ({error}); the next backup deletes it");
            }
        }
        kept
    }

    fn workspace_with(
        &mut self,
        archive: &mut BackupArchive<'_>,
        workspace: &StoredWorkspace,
        taken: &mut Option<Uuid>,
    ) -> Result<()> {
        let mut root = None;
        if self.containers && workspace.is_container() {
            *taken = self.snapshot(workspace)?;
            root = saved::save(&workspace.folder, &workspace.path(), *taken).map_err(|error| {
                let hint = "repair it, or leave containers out with --without-containers";
                Error::new(
                    error.code(),
                    format!("The workspace {}: {}; {hint}", workspace.id, error.message()),
                )
            })?;
        }
        let name = format!("workspaces/{}", workspace.id);
        let (with_root, prefix) = (root.is_some(), format!("{name}/"));
        let (containers, is_container) = (self.containers, workspace.is_container());
        let own_snapshot = taken.map(|id| format!("snapshots/{id}"));
        let damaged = workspace.record.is_null();
        let tree = archive.tree(&workspace.folder, &name, &|path| {
            let path = path.strip_prefix(prefix.as_bytes()).unwrap_or_default();
            let skipped = |names: &[&str]| names.iter().any(|name| name.as_bytes() == path);
            // The agents' files in a host workspace may have any of these names, so only names at the top are skipped.
            is_temporary(path) && !path.contains(&b'/')
                || skipped(SKIPPED_OF_WORKSPACE) && !(damaged && path == b"workspace.json")
                || path.starts_with(b"snapshots/.new-")
                || own_snapshot.as_ref().is_some_and(|own| own.as_bytes() == path)
                || is_container && !containers && path == b"snapshots"
        });
        match tree {
            // The workspace was deleted after it had been listed.
            Err(_) if !workspace.folder.exists() => return Ok(()),
            tree => tree?,
        }
        if !damaged {
            let text = serde_json::to_vec_pretty(&workspace.kept(with_root))
                .map_err(|error| Error::internal("record").with_source(error))?;
            archive.add(&format!("{name}/workspace.json"), Some(&text), 0o600)?;
        }
        let Some(SavedRoot { state, files, layers }) = root else { return Ok(()) };
        let gone = || {
            let message = format!("A snapshot of {} was deleted while it was read; try again", workspace.id);
            Error::new(Code::Conflict, message)
        };
        for layer in &layers {
            // Workspaces share layers, so each layer is added only once.
            if !self.layers.insert(layer.clone()) {
                continue;
            }
            let folder = saved::layer_folder(&self.data_dir, layer).map_err(|_| gone())?;
            archive.add(&format!("layers/{layer}/"), None, 0o700)?;
            archive.tree(&folder, &format!("layers/{layer}/fs"), &|_| false)?;
        }
        if let Some(files) = files {
            archive
                .tree(&fs::canonicalize(&files).at("open", &files)?, &format!("{name}/root"), &|_| false)?;
        }
        match state {
            Some(state) => archive.add(&format!("{name}/root.json"), Some(&state), 0o600),
            None => Ok(()),
        }
    }

    /// Makes the running server take a snapshot of a container. Returns the snapshot's id, or `None` if no server runs
    /// or the container has no files yet.
    fn snapshot(&self, workspace: &StoredWorkspace) -> Result<Option<Uuid>> {
        let Some(client) = &self.client else { return Ok(None) };
        let path = format!("/api/workspaces/{}/snapshots", workspace.id);
        self.forget_old(client, &path);
        let body = json!({"name": SNAPSHOT, "copy": true});
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, answer) = client.call_within("POST", &path, Some(&body), limits::COPY_TIMEOUT)?;
            let code = answer["code"].as_str().unwrap_or_default();
            match status {
                200 => {
                    let id = answer["id"].as_str().and_then(|id| Uuid::try_parse(id).ok());
                    let id = id.ok_or_else(|| client.refused(status, &answer))?;
                    // The server may serve another data folder, which was restored from a backup and so has a
                    // workspace with the same id.
                    if workspace.folder.join("snapshots").join(id.to_string()).is_dir() {
                        return Ok(Some(id));
                    }
                    let _ = client.call("DELETE", &format!("{path}/{id}"), None);
                    let message = format!(
                        "{} does not serve {}; name the server that does with --openwork-url",
                        client.plan.url,
                        self.data_dir.display()
                    );
                    return Err(Error::internal(message));
                }
                // The workspace was not built, or was deleted after it had been listed.
                400 if code == "workspace_not_ready" => return Ok(None),
                404 if !workspace.folder.exists() => return Ok(None),
                404 => {
                    let message = format!(
                        "{} does not know the workspace {}; name the server of {} with --openwork-url",
                        client.plan.url,
                        workspace.id,
                        self.data_dir.display()
                    );
                    return Err(Error::internal(message));
                }
                409 | 503 if Instant::now() < deadline && !self.cancel.is_cancelled() => {
                    std::thread::sleep(Duration::from_millis(500));
                }
                401 | 403 => {
                    let error = client.refused(status, &answer);
                    let message = format!(
                        "{}; OPENWORK_HOST_TOKEN or --host-token names the host token",
                        error.message()
                    );
                    return Err(Error::internal(message));
                }
                _ => {
                    let error = client.refused(status, &answer);
                    let message = format!("The workspace {}: {}", workspace.id, error.message());
                    return Err(Error::internal(message));
                }
            }
        }
    }

    /// Deletes the snapshots that a killed backup left behind. No other backup is running.
    fn forget_old(&self, client: &ApiClient, path: &str) {
        let Ok((200, all)) = client.call_within("GET", path, None, limits::CLI_ANSWER) else { return };
        let old = |snapshot: &&Value| snapshot["name"] == SNAPSHOT;
        for snapshot in all.as_array().into_iter().flatten().filter(old) {
            if let Some(id) = snapshot["id"].as_str() {
                let _ = client.call("DELETE", &format!("{path}/{id}"), None);
            }
        }
    }
}

/// Returns whether a name is that of a temporary file, which is not yet complete.
fn is_temporary(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    std::str::from_utf8(name).is_ok_and(is_temp_name)
}

/// The destination of the archive. The file appears when it is complete: until then it has no name (O_TMPFILE), so
/// that a killed backup leaves no file behind. On file systems without this feature the file has a temporary name, and
/// the next backup into the same folder removes it.
struct Destination {
    out: File,
    /// The folder for the temporary file with the checksums.
    folder: PathBuf,
    /// The path of the complete file; `None` for standard output.
    path: Option<PathBuf>,
    /// The path of the file while it is incomplete, if it has a name.
    part: Option<PathBuf>,
}

const PART: &str = ".part-";

impl Destination {
    fn stdout() -> Result<Destination> {
        use std::os::fd::AsFd as _;
        if io::stdout().is_terminal() {
            return Err(Error::config("-", "a backup is not for a terminal; name a file"));
        }
        let out = io::stdout().as_fd().try_clone_to_owned().at("open", "standard output")?;
        Ok(Destination { out: File::from(out), folder: std::env::temp_dir(), path: None, part: None })
    }

    fn file(path: &Path, data_dir: &Path) -> Result<Destination> {
        if path.symlink_metadata().is_ok() {
            let problem = "exists already; name another file, or remove it first";
            return Err(Error::config(path.display(), problem));
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::config(path.display(), "is not the name of a file"));
        };
        let real = |path: &Path| fs::canonicalize(path).map_err(|error| super::unreadable(path, error));
        if real(folder)?.starts_with(real(data_dir)?) {
            let problem = "is in the data folder itself; name a file elsewhere";
            return Err(Error::config(path.display(), problem));
        }
        sweep(folder)?;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let (out, part) = match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(out) => (File::from(out), None),
            // Not every file system supports O_TMPFILE (open(2)).
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                let part = folder.join(format!(".{}{PART}{}", name.to_string_lossy(), Uuid::new_v4()));
                let out = File::options().write(true).create_new(true).mode(0o600).open(&part);
                (out.at("write", &part)?, Some(part))
            }
            Err(error) => return Err(error).at("write", path),
        };
        lock(&out);
        Ok(Destination { out, folder: folder.to_owned(), path: Some(path.to_owned()), part })
    }

    fn keep(self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        self.out.sync_all().at("write", path)?;
        // `linkat` and `hard_link` fail if a file was created at this path in the meantime, instead of replacing it.
        match &self.part {
            None => {
                // Only in this way can a process without capabilities name the file (open(2), O_TMPFILE).
                let unnamed = format!("/proc/self/fd/{}", self.out.as_raw_fd());
                linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW).at("write", path)?;
            }
            Some(part) => match fs::hard_link(part, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error).at("write", path)?,
                // The file system does not support hard links.
                Err(_) => fs::rename(part, path).at("write", path)?,
                // The temporary name is removed when `self` is dropped.
                Ok(()) => {}
            },
        }
        file::sync_folder_at(&self.folder)
    }
}

/// Removes the temporary files that killed backups left behind in the folder. A file that another backup is writing is
/// locked, so it is kept.
fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|error| super::unreadable(folder, error))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let id = name.strip_prefix('.').and_then(|name| name.rsplit_once(PART)).map(|(_, id)| id);
        let old = id.is_some_and(|id| Uuid::try_parse(id).is_ok())
            // Opening a FIFO of this name would block.
            && entry.file_type().is_ok_and(|kind| kind.is_file());
        if old && File::open(entry.path()).is_ok_and(|file| lock(&file)) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            let _ = fs::remove_file(part);
        }
    }
}

/// Locks a file without waiting. Returns whether the lock was taken; on a file system without locks, old files are not
/// removed.
fn lock(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// The progress line on the terminal.
#[derive(Default)]
pub(super) struct CountLine(Option<Instant>);

impl CountLine {
    pub(super) fn show(&mut self, count: u64) {
        if self.0.is_some_and(|shown| shown.elapsed() < limits::IMAGE_TELL) || !io::stderr().is_terminal() {
            return;
        }
        self.0 = Some(Instant::now());
        let _ = write!(io::stderr(), "\r\x1b[K{count} entries");
    }

    pub(super) fn end(&self) {
        if self.0.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
