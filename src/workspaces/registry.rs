//! The registry of all workspaces. Each record is stored in its own file, `<data>/workspaces/<id>/workspace.json`, so
//! that a damaged file affects one workspace. berth creates a workspace's folder completely and then renames it into
//! place; to delete a workspace, berth renames its folder into the trash.
//!
//! Locks, in this order: `workspaces` (level 1, held to look up or insert a workspace), then one record's file (level
//! 3, in `store::json`). **Invariant:** no file is accessed while `workspaces` is held.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Configured;
use super::create::{CreateWorkspace, FolderPolicy, UpdateWorkspace};
use super::kind::WorkspaceKind;
use super::record::{WorkspaceJob, WorkspaceOrigin, WorkspaceRecord, WorkspaceStatus};
use super::status::not_found;
use crate::base::ids::Label;
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, hex, limits};
use crate::library::Template;
use crate::opencode::Managed;
use crate::store::json::JsonFile;
use crate::store::{file, tree};

/// A workspace that the server serves.
pub struct Workspace {
    id: Uuid,
    folder: PathBuf,
    record: JsonFile<WorkspaceRecord>,
    /// Whether a deletion has begun. This flag is kept in memory only, because a full disk must not prevent a
    /// deletion.
    deleting: AtomicBool,
    /// The workspace's id in the OpenWork API.
    pub openwork_id: String,
    /// The workspace's configuration, if it comes from the server's configuration.
    pub configured: Option<Configured>,
    /// The OpenCode that the server itself runs.
    pub(super) managed: Option<Arc<Managed>>,
}

impl Workspace {
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Returns the workspace's own folder in the data folder, with its record, log and runtime files. The workload
    /// cannot write to this folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns a snapshot of the workspace's record.
    pub fn record(&self) -> Arc<WorkspaceRecord> {
        self.record.get()
    }

    /// Changes the workspace's record. If the change is refused or fails, the record stays unchanged.
    ///
    /// # Errors
    /// Fails if `change` fails, if the record cannot be written, or with `WorkspaceNotFound` once a deletion has
    /// begun.
    pub fn update<R>(&self, change: impl FnOnce(&mut WorkspaceRecord) -> Result<R>) -> Result<R> {
        self.record.update(|record| {
            self.check_alive()?;
            change(record)
        })
    }

    /// Refuses operations on a workspace that is being deleted.
    ///
    /// # Errors
    /// Fails with `WorkspaceNotFound` once a deletion has begun.
    pub fn check_alive(&self) -> Result<()> {
        if self.deleting.load(Ordering::SeqCst) { Err(not_found(&self.id.to_string())) } else { Ok(()) }
    }

    /// Begins the deletion of the workspace. From now on, requests for it fail with `WorkspaceNotFound`.
    ///
    /// # Errors
    /// Fails with `DefaultWorkspace` if clients may not delete the workspace, or with `WorkspaceNotFound` if another
    /// deletion has begun.
    pub fn begin_delete(&self) -> Result<()> {
        self.record().check_deletable()?;
        // Taking the record's lock waits for an update in progress, so that no update runs after the folder was
        // removed.
        let already_deleting = self.record.while_locked(|| self.deleting.swap(true, Ordering::SeqCst));
        if already_deleting { Err(not_found(&self.id.to_string())) } else { Ok(()) }
    }

    /// Undoes [`Workspace::begin_delete`].
    pub fn abandon_delete(&self) {
        self.deleting.store(false, Ordering::SeqCst);
    }

    /// Returns the name of the workspace's container and cgroup on this machine. The name is short, since machine
    /// names have at most 64 characters, and it is unique across servers.
    pub fn machine_name(&self) -> String {
        format!("berth-{}", &self.id.simple().to_string()[..20])
    }
}

/// All workspaces of the server.
pub struct Registry {
    folder: PathBuf,
    trash: PathBuf,
    folder_policy: FolderPolicy,
    workspaces: RwLock<HashMap<Uuid, Arc<Workspace>>>,
    /// The ids of the configured workspaces in order, with the active one first, for the OpenWork API.
    active: Mutex<Vec<Uuid>>,
    /// The active workspace of each token that is limited to some workspaces. The key is the token's hash.
    active_of: Mutex<BTreeMap<String, Uuid>>,
    /// The OpenCode that the server itself runs.
    managed: Option<Arc<Managed>>,
}

/// The maximum number of limited tokens with an active workspace. Beyond it, one token loses its active workspace.
const ACTIVE_CHOICES: usize = 4096;

const RECORD: &str = "workspace.json";
const STAGING: &str = ".new-";

impl Registry {
    /// Loads the records, adds or updates the configured workspaces, and removes incomplete folders that a crash left
    /// behind.
    ///
    /// # Errors
    /// Fails if the data folder cannot be read or written. A record that cannot be read is logged and skipped.
    pub fn open(
        data_dir: &Path,
        configured: &[Configured],
        current_dir: &Path,
        authorized_roots: &[PathBuf],
        managed: Option<Arc<Managed>>,
    ) -> Result<Registry> {
        let folder = data_dir.join("workspaces");
        let trash = data_dir.join("trash");
        file::own_dir_private(&folder)?;
        file::own_dir_private(&trash)?;
        let default_path = configured.first().map_or(current_dir, |first| &first.path);
        let registry = Registry {
            folder_policy: FolderPolicy {
                data_dir: data_dir.to_owned(),
                base: default_path.to_owned(),
                authorized_roots: authorized_roots.to_owned(),
            },
            folder,
            trash,
            workspaces: RwLock::default(),
            active: Mutex::default(),
            active_of: Mutex::default(),
            managed,
        };
        registry.load()?;
        let default = Configured {
            path: current_dir.to_owned(),
            name: "host".to_owned(),
            workspace_type: "local".to_owned(),
            base_url: None,
            directory: None,
            opencode_username: None,
            opencode_password: None,
            password_is_shared: false,
        };
        let wanted = if configured.is_empty() { std::slice::from_ref(&default) } else { configured };
        for (position, workspace) in wanted.iter().enumerate() {
            registry.configure(position, workspace)?;
        }
        // A workspace that is no longer configured is not served; its record stays on disk.
        let listed = lock(&registry.active).clone();
        registry
            .write()
            .retain(|id, workspace| workspace.record().origin == WorkspaceOrigin::Api || listed.contains(id));
        Ok(registry)
    }

    fn load(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.folder).at("list", &self.folder)? {
            let entry = entry.at("list", &self.folder)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(STAGING) {
                tree::remove_tree(&self.folder, &name)?;
                continue;
            }
            let Ok(id) = Uuid::try_parse(&name) else { continue };
            let folder = entry.path();
            let _ = file::sweep_temps(&folder);
            match read_record(&folder, id) {
                Ok(record) => {
                    if record.get().view.network.is_none() {
                        // Records of earlier versions have no `network`. The error is ignored, because a full disk
                        // must not prevent serving the workspace.
                        let _ = record.update(|record| {
                            record.view.network = Some(record.view.network());
                            Ok(())
                        });
                    }
                    self.insert(folder, record, None);
                }
                Err(error) => log::error!("workspace {id} is not served: {error}"),
            }
        }
        Ok(())
    }

    /// Adds a configured workspace, with an id derived from its path.
    fn configure(&self, position: usize, workspace: &Configured) -> Result<()> {
        let path = workspace
            .path
            .to_str()
            .ok_or_else(|| Error::config(workspace.path.display(), "a workspace's path must be UTF-8"))?;
        let id = if position == 0 { Uuid::nil() } else { path_uuid(path) };
        let name = Label::parse(&workspace.name).or_else(|_| Label::parse("workspace"))?;
        let record = match self.find(id) {
            Some(known) => {
                let changed = known.record().view.path != path;
                if changed {
                    known.update(|record| {
                        record.view.path = path.to_owned();
                        record.view.name = name;
                        Ok(())
                    })?;
                }
                let folder = known.folder.clone();
                self.write().remove(&id);
                read_record(&folder, id)?
            }
            None => self.store(WorkspaceRecord::new(
                id,
                name,
                WorkspaceKind::Host,
                path.to_owned(),
                WorkspaceOrigin::Configured,
            ))?,
        };
        lock(&self.active).push(id);
        self.insert(self.folder.join(id.to_string()), record, Some(workspace.clone()));
        Ok(())
    }

    /// Creates the folder of a new workspace with its record, completely or not at all.
    fn store(&self, record: WorkspaceRecord) -> Result<JsonFile<WorkspaceRecord>> {
        let id = record.view.id;
        let staging_name = format!("{STAGING}{id}");
        let staging = self.folder.join(&staging_name);
        let folder = self.folder.join(id.to_string());
        file::create_dir_private(&staging)?;
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|error| Error::internal("record").with_source(error))?;
        let stored = file::write_atomic(&staging.join(RECORD), &text, 0o600)
            .and_then(|()| std::fs::rename(&staging, &folder).at("move", &staging));
        if let Err(error) = stored {
            let _ = tree::remove_tree(&self.folder, &staging_name);
            return Err(error);
        }
        let synced = std::fs::File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.at("sync", &self.folder)?;
        read_record(&folder, id)
    }

    fn insert(&self, folder: PathBuf, record: JsonFile<WorkspaceRecord>, configured: Option<Configured>) {
        let view = &record.get().view;
        let openwork_id = openwork_id(&view.path);
        let deleting = AtomicBool::new(false);
        let managed = self.managed.clone();
        let workspace = Workspace { id: view.id, folder, record, deleting, openwork_id, configured, managed };
        self.write().insert(view.id, Arc::new(workspace));
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Uuid, Arc<Workspace>>> {
        self.workspaces.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: Uuid) -> Option<Arc<Workspace>> {
        self.workspaces.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Returns the workspace `id`.
    ///
    /// # Errors
    /// Fails with `WorkspaceNotFound`.
    pub fn get(&self, id: Uuid) -> Result<Arc<Workspace>> {
        self.find(id)
            .filter(|workspace| workspace.check_alive().is_ok())
            .ok_or_else(|| not_found(&id.to_string()))
    }

    /// Returns the records of all workspaces, sorted by name.
    pub fn list(&self) -> Vec<Arc<WorkspaceRecord>> {
        let mut all: Vec<Arc<WorkspaceRecord>> = {
            let workspaces = self.workspaces.read().unwrap_or_else(PoisonError::into_inner); // LOCK: 1
            let alive = workspaces.values().filter(|workspace| workspace.check_alive().is_ok());
            alive.map(|workspace| workspace.record()).collect()
        };
        all.sort_unstable_by(|a, b| {
            (a.view.name.as_str(), a.view.id).cmp(&(b.view.name.as_str(), b.view.id))
        });
        all
    }

    /// Returns all workspaces, in no particular order.
    pub fn all(&self) -> Vec<Arc<Workspace>> {
        self.workspaces.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Returns the workspaces in the order of the OpenWork API: the configured ones in order, with the active one
    /// first, then the others.
    pub fn openwork_list(&self) -> Vec<Arc<Workspace>> {
        let order = lock(&self.active).clone();
        let mut all = self.all();
        all.retain(|workspace| workspace.check_alive().is_ok());
        all.sort_by_cached_key(|workspace| {
            let position = order.iter().position(|id| *id == workspace.id).unwrap_or(usize::MAX);
            let record = workspace.record();
            (position, record.view.created_at.clone(), workspace.id)
        });
        all
    }

    /// Returns the workspace with this OpenWork id.
    ///
    /// # Errors
    /// Fails with `WorkspaceNotFound`.
    pub fn by_openwork_id(&self, id: &str) -> Result<Arc<Workspace>> {
        let found = self.openwork_list().into_iter().find(|workspace| workspace.openwork_id == id);
        found.ok_or_else(|| Error::new(Code::WorkspaceNotFound, "Workspace not found"))
    }

    /// Makes a workspace the active one of the OpenWork API. The choice is kept in memory only, as in OpenWork.
    pub fn activate(&self, id: Uuid) {
        let mut order = lock(&self.active);
        order.retain(|known| *known != id);
        order.insert(0, id);
    }

    /// Makes a workspace the active one of a single token. `token` is the token's hash.
    pub fn activate_for(&self, token: &str, id: Uuid) {
        let mut chosen = lock(&self.active_of);
        if chosen.len() >= ACTIVE_CHOICES && !chosen.contains_key(token) {
            chosen.pop_first();
        }
        chosen.insert(token.to_owned(), id);
    }

    /// Returns the active workspace of a single token, if it has one. `token` is the token's hash.
    pub fn active_of(&self, token: &str) -> Option<Uuid> {
        lock(&self.active_of).get(token).copied()
    }

    /// Creates a workspace from a request. A workspace with a template is a container.
    ///
    /// # Errors
    /// Fails with status 400 and the name of the invalid field. If the request is refused, no files are left behind.
    pub fn create(&self, request: CreateWorkspace, template: Option<&Template>) -> Result<Arc<Workspace>> {
        let name = Label::parse(&request.name)?;
        self.check_capacity()?;
        let kind = match template {
            Some(_) => WorkspaceKind::Container,
            None => request.workspace_type.unwrap_or(WorkspaceKind::Host),
        };
        let id = Uuid::new_v4();
        let given = request.path.as_deref().filter(|path| !path.trim().is_empty());
        let (path, own_folder) = match (given, kind) {
            (Some(given), WorkspaceKind::Host) => (self.folder_policy.host_folder(given)?, false),
            (Some(given), WorkspaceKind::Container) => {
                (self.check_disjoint(self.folder_policy.container_folder(given)?)?, false)
            }
            (None, WorkspaceKind::Host) => (self.folder.join(id.to_string()).join("files"), true),
            (None, WorkspaceKind::Container) => (self.folder.join(id.to_string()).join("root"), true),
        };
        let text =
            path.to_str().ok_or_else(|| Error::new(Code::InvalidPath, "path is not UTF-8"))?.to_owned();
        let mut record = WorkspaceRecord::new(id, name, kind, text, WorkspaceOrigin::Api);
        record.own_folder = own_folder;
        let mut fields = request.fields;
        fields.init_scripts = None;
        if let Some(template) = template {
            fields = fields.over(template)?;
            record.view.template = Some(template.name.clone());
        }
        fields.apply(&mut record.view)?;
        if kind == WorkspaceKind::Host && !own_folder {
            std::fs::create_dir_all(&path).at("make the folder", &path)?;
        }
        let record = self.store(record)?;
        if kind == WorkspaceKind::Host && own_folder {
            std::fs::create_dir(&path).at("make the folder", &path)?;
        }
        self.insert(self.folder.join(id.to_string()), record, None);
        self.get(id)
    }

    /// Creates a container workspace with another workspace's settings but without files, in status `building`.
    ///
    /// # Errors
    /// Fails with `Conflict` if there are too many workspaces, or if the record cannot be stored.
    pub fn copy_of(&self, source: &WorkspaceRecord, name: Label) -> Result<Arc<Workspace>> {
        self.check_capacity()?;
        let id = Uuid::new_v4();
        let path = self.folder.join(id.to_string()).join("root");
        let text =
            path.to_str().ok_or_else(|| Error::new(Code::InvalidPath, "path is not UTF-8"))?.to_owned();
        let mut record = source.clone();
        (record.origin, record.own_folder, record.job) =
            (WorkspaceOrigin::Api, true, Some(WorkspaceJob::Clone));
        (record.view.id, record.view.name, record.view.path) = (id, name, text);
        (record.view.status, record.view.error_message) = (WorkspaceStatus::Building, None);
        record.view.created_at = crate::base::clock::now_rfc3339();
        let record = self.store(record)?;
        self.insert(self.folder.join(id.to_string()), record, None);
        self.get(id)
    }

    fn check_capacity(&self) -> Result<()> {
        if self.workspaces.read().unwrap_or_else(PoisonError::into_inner).len() < limits::WORKSPACES {
            return Ok(());
        }
        Err(Error::new(
            Code::Conflict,
            format!("There are already {} workspaces, the maximum; delete one first", limits::WORKSPACES),
        ))
    }

    /// Refuses a root folder that is inside another workspace's folder or contains one.
    fn check_disjoint(&self, path: PathBuf) -> Result<PathBuf> {
        for record in self.list() {
            let other = Path::new(&record.view.path);
            let container_above =
                record.view.workspace_type == WorkspaceKind::Container && path.starts_with(other);
            if path == other || other.starts_with(&path) || container_above {
                return Err(Error::new(
                    Code::InvalidPath,
                    format!("path overlaps with the folder of workspace {}", record.view.id),
                ));
            }
        }
        Ok(path)
    }

    /// Applies all of a client's changes to a workspace, or none. `effect` makes the changes effective for the running
    /// workspace, and may refuse them.
    ///
    /// # Errors
    /// Fails with status 400 and the name of the invalid field, with `WorkspaceNotFound`, or if `effect` fails.
    pub fn change(
        &self,
        id: Uuid,
        update: UpdateWorkspace,
        effect: impl FnOnce(&WorkspaceRecord) -> Result<()>,
    ) -> Result<Arc<WorkspaceRecord>> {
        let workspace = self.get(id)?;
        workspace.update(|record| {
            update.apply(&mut record.view)?;
            effect(record)
        })?;
        Ok(workspace.record())
    }

    /// Moves the folder of a workspace whose deletion has begun into the trash. [`Registry::empty_trash`] then
    /// removes it.
    ///
    /// # Errors
    /// Fails if the folder cannot be moved.
    pub fn discard(&self, workspace: &Workspace) -> Result<()> {
        let target = self.trash.join(Uuid::new_v4().to_string());
        std::fs::rename(&workspace.folder, &target).at("delete", &workspace.folder)?;
        self.write().remove(&workspace.id);
        Ok(())
    }

    /// Moves a folder into the trash, which must be on the same file system.
    ///
    /// # Errors
    /// Fails if the folder cannot be moved.
    pub fn discard_folder(&self, folder: &Path) -> Result<()> {
        std::fs::rename(folder, self.trash.join(Uuid::new_v4().to_string())).at("delete", folder)
    }

    /// Removes all folders in the trash. This can take long.
    pub fn empty_trash(&self) {
        for entry in std::fs::read_dir(&self.trash).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => tree::remove_tree(&self.trash, &name),
                _ => std::fs::remove_file(entry.path()).at("remove", entry.path()),
            };
            if let Err(error) = removed {
                log::warn!("the trash could not be emptied: {error}");
            }
        }
    }
}

fn read_record(folder: &Path, id: Uuid) -> Result<JsonFile<WorkspaceRecord>> {
    let path = folder.join(RECORD);
    let missing = WorkspaceRecord::new(
        Uuid::max(),
        Label::parse("missing")?,
        WorkspaceKind::Host,
        String::new(),
        WorkspaceOrigin::Api,
    );
    let mut record = JsonFile::open(&path, 0o600, missing)?;
    record.interpret(|record| record.resolve(folder));
    if record.get().view.id != id {
        return Err(Error::config(path.display(), "the file is missing, or its id is not the folder's name"));
    }
    Ok(record)
}

/// Returns the id of a folder in the OpenWork API: `ws_` and the first 12 hex digits of the path's SHA-256.
pub fn openwork_id(path: &str) -> String {
    format!("ws_{}", hex::encode(&Sha256::digest(path.as_bytes())[..6]))
}

/// Returns the UUID for a configured path (RFC 9562, version 8).
fn path_uuid(path: &str) -> Uuid {
    let digest = Sha256::digest(path.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}
