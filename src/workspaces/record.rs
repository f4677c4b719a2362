//! A workspace's record: the API object and berth's own fields.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::connection::ConnectionOverride;
use super::kind::WorkspaceKind;
use super::resources::Resources;
use crate::base::ids::{Distro, Label, Network};
use crate::store::allowlist::MountRequest;

/// The status of a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceStatus {
    /// A container that has not been built.
    Pending,
    /// A build or an init script is running.
    Building,
    /// The workspace is ready to run commands.
    Ready,
    /// The last build or init script failed; `error_message` has the reason.
    Error,
}

/// The workspace object of `/api`: berth's fields and those of sandboxed.sh's clients. Fields without a value are
/// written as null, as in sandboxed.sh.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkspaceView {
    /// The workspace's id; the nil UUID for the default host workspace.
    pub id: Uuid,
    pub name: Label,
    pub workspace_type: WorkspaceKind,
    /// The folder of a host workspace, or the root folder of a container.
    pub path: String,
    pub status: WorkspaceStatus,
    /// Why the last build or init script failed.
    pub error_message: Option<String>,
    /// The time of creation, in the format of RFC 3339.
    pub created_at: String,
    /// The names of library skills to sync.
    #[serde(default)]
    pub skills: Vec<String>,
    /// The names of library tools to sync.
    #[serde(default)]
    pub tools: Vec<String>,
    /// Plugin identifiers.
    #[serde(default)]
    pub plugins: Vec<String>,
    /// The template from which the workspace was created.
    pub template: Option<String>,
    /// The distribution. If it is null, a build uses the default distribution.
    pub distro: Option<Distro>,
    /// The name or id of an image that replaces the distribution's image.
    #[serde(default)]
    pub image: Option<String>,
    /// The environment variables of every command.
    #[serde(default)]
    pub env_vars: BTreeMap<String, String>,
    /// The names of library fragments that run before the init script.
    #[serde(default)]
    pub init_scripts: Vec<String>,
    /// The script that runs at the end of a build.
    pub init_script: Option<String>,
    /// The container's network; null only in records that earlier versions wrote.
    #[serde(default)]
    pub network: Option<Network>,
    /// sandboxed.sh's field for the network: whether it is the host's. Null if no client has set the network.
    pub shared_network: Option<bool>,
    /// Host folders that are mounted in the container.
    #[serde(default)]
    pub mounts: Vec<MountRequest>,
    /// berth only stores this field, for sandboxed.sh's clients.
    pub tailscale_mode: Option<String>,
    /// Names of MCP servers for the agents.
    #[serde(default)]
    pub mcps: Vec<String>,
    /// The configuration profile for the agents.
    pub config_profile: Option<String>,
    /// The limits for all processes of the workspace together. Null, or a missing limit, means the machine's default.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// The time in seconds after which a container without running commands and open terminals is stopped; 0 means
    /// never, null the server's default.
    #[serde(default)]
    pub idle_timeout_secs: Option<u64>,
}

impl WorkspaceView {
    /// Returns the container's network. Records of earlier versions have only `shared_network`.
    pub fn network(&self) -> Network {
        self.network.unwrap_or(match self.shared_network {
            Some(false) => Network::Private,
            Some(true) | None => Network::Host,
        })
    }
}

/// The operation in progress. It is journaled in the record, so that a start after a crash can repair the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceJob {
    /// The workspace is being built.
    Build {
        /// Whether the root folder did not exist before the build or was discarded by `rebuild`. If so, an unfinished
        /// root can be removed.
        fresh: bool,
    },
    /// The init script runs again, in the existing root folder.
    RerunInit,
    /// The root folder is being replaced by a snapshot. At each moment it is either the old or the new root.
    Restore,
    /// The root folder is being copied from another workspace. No client has seen this workspace yet.
    Clone,
}

/// How a workspace was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceOrigin {
    /// The workspace comes from a flag, the environment or the configuration file. It is served as long as it is
    /// configured.
    Configured,
    /// A client created the workspace through the API.
    Api,
}

/// A workspace's record in memory. The file of the record contains no absolute path of the data folder, so that the
/// data folder can be moved ([`WorkspaceRecord::resolve`]).
#[derive(Clone, Debug, Deserialize)]
pub struct WorkspaceRecord {
    /// The fields that clients see.
    #[serde(flatten)]
    pub view: WorkspaceView,
    pub origin: WorkspaceOrigin,
    /// The operation in progress on the workspace.
    pub job: Option<WorkspaceJob>,
    /// Whether berth created the workspace's folder inside the workspace's own data. If so, berth deletes it with the
    /// workspace.
    pub own_folder: bool,
    /// The connection to OpenCode, if an owner has set one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opencode: Option<ConnectionOverride>,
    #[serde(skip)]
    cached_json: CachedJson,
}

/// The record's JSON, which is serialized once, because lists are read far more often than records change. A record is
/// changed by cloning it, and the clone's cache is empty.
#[derive(Debug, Default)]
struct CachedJson(OnceLock<String>);

impl Clone for CachedJson {
    fn clone(&self) -> CachedJson {
        CachedJson::default()
    }
}

impl Serialize for WorkspaceRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct StoredRecord<'a> {
            #[serde(flatten)]
            view: Cow<'a, WorkspaceView>,
            origin: WorkspaceOrigin,
            job: Option<WorkspaceJob>,
            own_folder: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            opencode: &'a Option<ConnectionOverride>,
        }
        let mut view = Cow::Borrowed(&self.view);
        if let Some(name) = Path::new(&self.view.path).file_name().filter(|_| self.own_folder) {
            view.to_mut().path = name.to_string_lossy().into_owned();
        }
        let WorkspaceRecord { origin, job, own_folder, opencode, .. } = self;
        StoredRecord { view, origin: *origin, job: *job, own_folder: *own_folder, opencode }
            .serialize(serializer)
    }
}

impl WorkspaceRecord {
    /// Sets the path of a workspace whose files are inside `folder`, the workspace's own data folder. Earlier versions
    /// stored an absolute path, which may be outdated.
    pub(super) fn resolve(&mut self, folder: &Path) {
        let name = Path::new(&self.view.path).file_name();
        if let Some(path) = name.filter(|_| self.own_folder).map(|name| folder.join(name)) {
            self.view.path = path.to_string_lossy().into_owned();
        }
    }

    /// Returns the fields that clients see, as JSON.
    pub fn json(&self) -> &str {
        self.cached_json.0.get_or_init(|| {
            // Serialization fails only for maps with keys that are not strings; the record has none.
            serde_json::to_string(&self.view).unwrap_or_else(|_| "null".into())
        })
    }

    /// Creates a record with default settings.
    pub fn new(
        id: Uuid,
        name: Label,
        kind: WorkspaceKind,
        path: String,
        origin: WorkspaceOrigin,
    ) -> WorkspaceRecord {
        let status = match kind {
            WorkspaceKind::Host => WorkspaceStatus::Ready,
            WorkspaceKind::Container => WorkspaceStatus::Pending,
        };
        WorkspaceRecord {
            view: WorkspaceView {
                id,
                name,
                workspace_type: kind,
                path,
                status,
                error_message: None,
                created_at: crate::base::clock::now_rfc3339(),
                skills: Vec::new(),
                tools: Vec::new(),
                plugins: Vec::new(),
                template: None,
                distro: None,
                image: None,
                env_vars: BTreeMap::new(),
                init_scripts: Vec::new(),
                init_script: None,
                network: Some(Network::Host),
                shared_network: None,
                mounts: Vec::new(),
                tailscale_mode: None,
                mcps: Vec::new(),
                config_profile: None,
                resources: None,
                idle_timeout_secs: None,
            },
            origin,
            job: None,
            own_folder: false,
            opencode: None,
            cached_json: CachedJson::default(),
        }
    }
}
