//! A workspace's record: the object of the API, and what berth needs besides.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use super::opencode::ConnectionOverride;
use super::resources::Resources;
use crate::base::ids::{Distro, Label, Network};
use crate::store::allowlist::MountRequest;

/// Where a workspace's commands run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceKind {
    /// On the host itself.
    Host,
    /// In a container; `chroot` is sandboxed.sh's old word.
    #[serde(alias = "chroot")]
    Container,
}

/// What can be done with a workspace now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceStatus {
    /// A container that has not been built.
    Pending,
    /// A build or an init script is under way.
    Building,
    /// Commands can run.
    Ready,
    /// The last build or init script failed; `error_message` says why.
    Error,
}

/// The workspace object of `/api`: the fields of sandboxed.sh's documents and of its server. Nulls
/// are always written, as observed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkspaceView {
    /// Nil for the default host workspace.
    pub id: Uuid,
    /// A label.
    pub name: Label,
    /// Host or container.
    pub workspace_type: WorkspaceKind,
    /// The folder: a host workspace's files, or a container's root.
    pub path: String,
    /// The state.
    pub status: WorkspaceStatus,
    /// Why the last build failed.
    pub error_message: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// Library skills to sync.
    #[serde(default)]
    pub skills: Vec<String>,
    /// Library tools to sync.
    #[serde(default)]
    pub tools: Vec<String>,
    /// Plugin identifiers.
    #[serde(default)]
    pub plugins: Vec<String>,
    /// Template it was made from.
    pub template: Option<String>,
    /// Distribution; null until chosen, then the default is built.
    pub distro: Option<Distro>,
    /// Image that the container is made from instead of its distribution's, by name or id.
    #[serde(default)]
    pub image: Option<String>,
    /// Variables of every command.
    #[serde(default)]
    pub env_vars: BTreeMap<String, String>,
    /// Library fragments that run before the init script.
    #[serde(default)]
    pub init_scripts: Vec<String>,
    /// Script that runs at the end of a build.
    pub init_script: Option<String>,
    /// What a container sees of the network; never null.
    #[serde(default)]
    pub network: Option<Network>,
    /// The same in sandboxed.sh's words, if somebody has chosen: whether it is the host's.
    pub shared_network: Option<bool>,
    /// Folders of the host in its container.
    #[serde(default)]
    pub mounts: Vec<MountRequest>,
    /// Kept for sandboxed.sh's clients.
    pub tailscale_mode: Option<String>,
    /// Kept for sandboxed.sh's clients.
    #[serde(default)]
    pub mcps: Vec<String>,
    /// Kept for sandboxed.sh's clients.
    pub config_profile: Option<String>,
    /// What its commands may use together; null and what is not named: the machine's defaults.
    #[serde(default)]
    pub resources: Option<Resources>,
    /// After so long without commands and terminals its container is stopped; 0: never; null: the server's default.
    #[serde(default)]
    pub idle_timeout_secs: Option<u64>,
}

impl WorkspaceView {
    /// What its container sees of the network. Records of earlier versions have only sandboxed.sh's word for it.
    pub fn network(&self) -> Network {
        self.network.unwrap_or(match self.shared_network {
            Some(false) => Network::Private,
            Some(true) | None => Network::Host,
        })
    }
}

/// What is under way, journaled so that a start after a crash knows what to repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceJob {
    /// A build; `fresh`: it makes the root, so an unfinished root holds nothing of anybody's.
    Build {
        /// The root did not exist before, or was given up with `rebuild`.
        fresh: bool,
    },
    /// The init script runs again in a root that stays.
    RerunInit,
    /// The root becomes that of a snapshot; it is the old one or the new one at every moment.
    Restore,
    /// The root is made from that of another workspace. Nobody knows of the workspace yet.
    Clone,
}

/// How a workspace came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceOrigin {
    /// By flag, environment or file; listed while it is configured.
    Configured,
    /// By the API.
    Api,
}

/// A workspace as the server has it in memory. Stored it holds no path of the data folder, so that that can be moved
/// ([`WorkspaceRecord::resolve`]).
#[derive(Clone, Debug, Deserialize)]
pub struct WorkspaceRecord {
    /// What clients see.
    #[serde(flatten)]
    pub view: WorkspaceView,
    /// How it came to be.
    pub origin: WorkspaceOrigin,
    /// What is under way.
    pub job: Option<WorkspaceJob>,
    /// The folder was made by berth inside the workspace's own data, and goes with it.
    pub own_folder: bool,
    /// Where owners have said that its OpenCode is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opencode: Option<ConnectionOverride>,
    #[serde(skip)]
    cached_json: CachedJson,
}

/// A record as clients see it, written once: lists are asked for far more often than anything in them changes. A change
/// is made to a copy, which has nothing written yet.
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
            shown: Cow<'a, WorkspaceView>,
            origin: WorkspaceOrigin,
            job: Option<WorkspaceJob>,
            own_folder: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            opencode: &'a Option<ConnectionOverride>,
        }
        let mut shown = Cow::Borrowed(&self.view);
        if let Some(name) = Path::new(&self.view.path).file_name().filter(|_| self.own_folder) {
            shown.to_mut().path = name.to_string_lossy().into_owned();
        }
        let WorkspaceRecord { origin, job, own_folder, opencode, .. } = self;
        StoredRecord { shown, origin: *origin, job: *job, own_folder: *own_folder, opencode }
            .serialize(serializer)
    }
}

impl WorkspaceRecord {
    /// Gives a workspace whose files are in its own folder their path: `folder` is where that is now. Earlier versions stored
    /// the whole path, which may be that of another place.
    pub(super) fn resolve(&mut self, folder: &Path) {
        let name = Path::new(&self.view.path).file_name();
        if let Some(path) = name.filter(|_| self.own_folder).map(|name| folder.join(name)) {
            self.view.path = path.to_string_lossy().into_owned();
        }
    }

    /// What clients see, as JSON.
    pub fn json(&self) -> &str {
        self.cached_json.0.get_or_init(|| {
            // Its keys are strings, for which alone it could fail.
            serde_json::to_string(&self.view).unwrap_or_else(|_| "null".into())
        })
    }

    /// A workspace with nothing but a name and a place.
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
