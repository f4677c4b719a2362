//! The container for the server's own OpenCode. It is an ordinary container workspace, in which OpenCode's working
//! folder and OpenCode's program are mounted. berth creates it once for each folder, and later starts reuse it, so
//! that files in OpenCode's home persist.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Lifecycle;
use super::build::BuildRequest;
use crate::base::ids::Network;
use crate::base::shares::ShareHolder;
use crate::base::{Code, Error, Result};
use crate::images::Pull;
use crate::proc::{Cancel, CommandSpec, Process, Stdio};
use crate::store::allowlist::MountRequest;
use crate::workspaces::create::{CreateWorkspace, UpdateWorkspace, WorkspaceFields};
use crate::workspaces::resources::Resources;
use crate::workspaces::{Workspace, WorkspaceKind, WorkspaceStatus};

/// The mount point of OpenCode's working folder.
pub const FOLDER: &str = "/workspace";
/// The mount point of OpenCode's program.
pub const PROGRAM: &str = "/opt/opencode/opencode";
/// The interval at which a waiting thread checks for the server's shutdown and for the container's address.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the container may take to get an address.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of the container.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    /// The name or id of an image, or a distribution.
    pub image: String,
    /// The host folder in which OpenCode works.
    pub folder: PathBuf,
    /// OpenCode's program on the host.
    pub program: PathBuf,
    /// The mounts that the user has configured, besides the folder and the program.
    pub mounts: Vec<MountRequest>,
    /// The memory limit of all processes in the container together.
    pub memory_bytes: Option<u64>,
    pub cpus: Option<f64>,
    /// The maximum number of processes and threads in the container.
    pub pids: Option<u64>,
}

/// The container of the server's own OpenCode.
pub struct Sandbox {
    lifecycle: Arc<Lifecycle>,
    spec: SandboxSpec,
}

impl SandboxSpec {
    /// Returns all mounts, including those of the folder and the program.
    fn mounts(&self) -> Vec<MountRequest> {
        let mount = |source: &Path, target: &str, read_only| MountRequest {
            source: source.to_string_lossy().into_owned(),
            target: target.to_owned(),
            read_only,
        };
        let mut all = vec![mount(&self.folder, FOLDER, false), mount(&self.program, PROGRAM, true)];
        all.extend(self.mounts.iter().cloned());
        all
    }

    /// Returns the name of the container's workspace. The name for a folder is the same at every start.
    fn name(&self) -> String {
        let digest = crate::access::secret::sha256_hex(&self.folder.to_string_lossy());
        format!("opencode-{}", &digest[..12])
    }
}

impl Sandbox {
    /// Creates the handle. [`Sandbox::prepare`] then creates the container.
    pub fn new(lifecycle: Arc<Lifecycle>, spec: SandboxSpec) -> Sandbox {
        Sandbox { lifecycle, spec }
    }

    /// Creates and builds the container, if it does not exist, and waits until the build has ended.
    ///
    /// # Errors
    /// Fails if the container cannot be built, or with `Cancelled`.
    pub fn prepare(&self, stop: &Cancel) -> Result<()> {
        let workspace = match self.find() {
            Some(workspace) => workspace,
            None => self.make()?,
        };
        let id = workspace.id();
        let now = workspace.record();
        let resources = self.resources();
        if now.view.mounts != self.spec.mounts() || now.view.resources != Some(resources) {
            let (mounts, resources) = (Some(self.spec.mounts()), Some(resources));
            let fields = WorkspaceFields { mounts, resources, ..WorkspaceFields::default() };
            self.lifecycle.change(id, UpdateWorkspace { fields, ..UpdateWorkspace::default() })?;
        }
        if now.view.status != WorkspaceStatus::Ready && now.view.status != WorkspaceStatus::Building {
            let asked = BuildRequest { base: None, rebuild: true, pull: Pull::Missing };
            self.lifecycle.start_build(id, asked, ShareHolder::OWNER)?;
        }
        loop {
            let record = workspace.record();
            match record.view.status {
                WorkspaceStatus::Ready => return Ok(()),
                WorkspaceStatus::Error => {
                    let why = record.view.error_message.clone().unwrap_or_default();
                    return Err(Error::internal(format!("The sandbox could not be built: {why}")));
                }
                WorkspaceStatus::Pending | WorkspaceStatus::Building if stop.is_cancelled() => {
                    return Err(Error::new(Code::Cancelled, "The server is shutting down"));
                }
                WorkspaceStatus::Pending | WorkspaceStatus::Building => {
                    let is_over = || {
                        matches!(
                            workspace.record().view.status,
                            WorkspaceStatus::Ready | WorkspaceStatus::Error
                        )
                    };
                    self.lifecycle.jobs.wait_for_outcome(Instant::now() + POLL_INTERVAL, is_over);
                }
            }
        }
    }

    fn resources(&self) -> Resources {
        let SandboxSpec { memory_bytes, cpus, pids, .. } = self.spec;
        Resources { memory_bytes, cpus, pids, ..Resources::default() }
    }

    fn find(&self) -> Option<Arc<Workspace>> {
        let name = self.spec.name();
        self.lifecycle.registry().all().into_iter().find(|workspace| {
            let record = workspace.record();
            record.view.workspace_type == WorkspaceKind::Container
                && record.view.name.as_str() == name
                && workspace.check_alive().is_ok()
        })
    }

    fn make(&self) -> Result<Arc<Workspace>> {
        let distro = crate::base::ids::Distro::parse(&self.spec.image).is_ok();
        let image = self.spec.image.clone();
        log::info!(
            "Creating the sandbox from {image}; the first time its image is built too, which takes a minute or more"
        );
        let (image, distro) = if distro { (None, Some(image)) } else { (Some(image), None) };
        let resources = self.resources();
        let fields = WorkspaceFields {
            image,
            distro,
            mounts: Some(self.spec.mounts()),
            network: Some(Network::Private),
            // The container runs as long as OpenCode does. OpenCode is not a client's command, so an idle timeout
            // would stop it.
            idle_timeout_secs: Some(0),
            resources: Some(resources),
            ..WorkspaceFields::default()
        };
        let create = CreateWorkspace {
            name: self.spec.name(),
            workspace_type: Some(WorkspaceKind::Container),
            path: None,
            template: None,
            fields,
        };
        let record = self.lifecycle.create(create, Pull::Missing)?;
        self.lifecycle.registry().get(record.view.id)
    }

    /// Starts a command in the container.
    ///
    /// # Errors
    /// Fails if the container or the command cannot be started.
    pub fn launch(&self, id: &str, command: &CommandSpec, stdio: Stdio) -> Result<Box<dyn Process>> {
        let workspace = self.workspace()?;
        self.lifecycle.launcher(&workspace, &workspace.record())?.launch(id, command, stdio)
    }

    /// Returns the container's address on the host's network.
    pub fn address(&self) -> Result<IpAddr> {
        let workspace = self.workspace()?;
        let machine = self.lifecycle.machine(&workspace, &workspace.record())?;
        let deadline = Instant::now() + ADDRESS_TIMEOUT;
        loop {
            let link = machine.status().network.and_then(|network| network.link);
            match link {
                Some(link) => return Ok(link.address.into()),
                None if Instant::now() >= deadline => {
                    return Err(Error::internal("The sandbox has no address; its container is not running"));
                }
                None => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Stops the container with all of its processes.
    pub fn stop(&self) {
        let machine =
            self.workspace().and_then(|workspace| self.lifecycle.machine(&workspace, &workspace.record()));
        if let Ok(machine) = machine {
            machine.stop();
        }
    }

    fn workspace(&self) -> Result<Arc<Workspace>> {
        self.find().ok_or_else(|| Error::internal("The sandbox was deleted"))
    }
}
