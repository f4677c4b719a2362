//! Chooses the sandbox for OpenCode of `berth host`: the container engine and the mounted host folders. All errors are
//! found before the server starts, because an agent for which the user wants a sandbox must not run without one.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::doctor;
use crate::base::{At as _, Code, Error, Result};
use crate::config::{self, CommandLine, MountWish, SandboxChoice, SandboxWish, table};
use crate::doctor::CheckStatus;
use crate::host::engine::{
    self, EngineCommand, EngineFacts, EngineKind, EngineMount, EnginePlan, SandboxNetwork, SandboxPull,
    can_be_named, container_name,
};
use crate::host::{BerthSandbox, OpencodePlan, SandboxPlan};
use crate::lifecycle::sandbox::{FOLDER, PROGRAM};
use crate::proc::{Cgroups, CgroupsHandle};
use crate::server::{self, Settings};
use crate::store::allowlist::{AllowedSource, Allowlist, MountGrant, MountRefusal, MountRequest};
use crate::store::file;

/// The default image for a container of berth.
const BERTH_IMAGE: &str = "debian-bookworm";
/// The default image for a container of another engine, which uses other names for images.
const ENGINE_IMAGE: &str = "debian:bookworm-slim";
/// The variables that may contain the path of another `docker` program, as in OpenWork's orchestrator.
const DOCKER_BIN: [&str; 3] = ["OPENWORK_DOCKER_BIN", "OPENWRK_DOCKER_BIN", "DOCKER_BIN"];
/// The variable that may contain the path of Apple's `container` program.
const CONTAINER_BIN: &str = "BERTH_CONTAINER_BIN";

/// The sandbox that was chosen.
pub(super) struct ChosenSandbox {
    /// The backend: `none`, `berth`, `docker` or `container`.
    pub(super) backend: &'static str,
    /// The container's name in its engine.
    pub(super) name: Option<String>,
}

/// Chooses the sandbox and writes it into the settings.
///
/// # Errors
/// Fails with `Config`, and the backends that were tried or the problem of a folder.
pub(super) fn choose(
    wish: &SandboxWish,
    settings: &mut Settings,
    run_id: &str,
    current_dir: &Path,
) -> Result<ChosenSandbox> {
    if wish.choice == SandboxChoice::None {
        return Ok(ChosenSandbox { backend: "none", name: None });
    }
    let Some(plan) = settings.opencode.clone() else {
        let problem = "has no effect: this host runs no OpenCode itself";
        return Err(Error::config("--sandbox", problem));
    };
    let choice = SandboxChooser { wish, settings, plan: &plan, run_id, current_dir };
    let (sandbox, backend) = match wish.choice {
        SandboxChoice::Berth => (choice.berth()?, "berth"),
        SandboxChoice::Docker => (choice.engine_only(EngineKind::Docker)?, "docker"),
        SandboxChoice::Container => (choice.engine_only(EngineKind::Apple)?, "container"),
        SandboxChoice::Auto | SandboxChoice::None => choice.auto()?,
    };
    let name = match &sandbox {
        SandboxPlan::Engine(engine) => Some(engine.name.clone()),
        SandboxPlan::Berth(_) => None,
    };
    let advertised = &mut settings.advertised;
    advertised.sandbox_enabled = true;
    // OpenWork's clients support only the values none, docker and container.
    advertised.sandbox_backend = if backend == "docker" { "docker" } else { "container" }.to_owned();
    advertised.sandbox_engine = Some(if backend == "container" { "apple" } else { backend });
    if let Some(plan) = &mut settings.opencode {
        plan.memory_bytes = wish.memory_bytes.or(plan.memory_bytes);
        plan.sandbox = Some(sandbox);
    }
    Ok(ChosenSandbox { backend, name })
}

/// The input for choosing a backend.
struct SandboxChooser<'a> {
    wish: &'a SandboxWish,
    settings: &'a Settings,
    plan: &'a OpencodePlan,
    run_id: &'a str,
    current_dir: &'a Path,
}

impl SandboxChooser<'_> {
    /// Chooses the first backend that works on this machine. An invalid flag ends the search.
    fn auto(&self) -> Result<(SandboxPlan, &'static str)> {
        let mut tried = Vec::new();
        let (report, _) = doctor::look(self.settings)?;
        if report.ok && self.berth_takes().is_ok() {
            return Ok((self.berth()?, "berth"));
        }
        let failed = report.checks.iter().filter(|check| check.status == CheckStatus::Fail);
        let mut found: Vec<String> = failed.map(|check| check.found.clone()).collect();
        found.extend(self.berth_takes().err().map(|error| error.message().to_owned()));
        tried.push(format!("berth ({})", found.join("; ")));
        for (kind, word) in [(EngineKind::Docker, "docker"), (EngineKind::Apple, "container")] {
            match reach(kind).and_then(|found| self.engine(kind, Some(found))) {
                Ok(plan) => return Ok((plan, word)),
                Err(error) if error.code() == Code::Unavailable => {
                    tried.push(format!("{word} ({})", error.message()));
                }
                Err(error) => return Err(error),
            }
        }
        let problem = format!("no sandbox is available. Tried: {}", tried.join(", "));
        Err(Error::config("--sandbox auto", problem))
    }

    /// Checks that a container of berth supports all flags that the user has given.
    fn berth_takes(&self) -> Result<()> {
        let private = |network: &SandboxNetwork| *network == SandboxNetwork::Private;
        let flags = self.wish.given.iter().filter(|flag| {
            let is_private = *flag == "--sandbox-network" && self.wish.network.as_ref().is_some_and(private);
            !is_private && *flag != "--sandbox-any-workspace"
        });
        match flags.into_iter().next() {
            Some(flag) => Err(Error::config(
                flag,
                "has no effect on --sandbox berth, whose containers have a private network, their own files and no registry",
            )),
            None => Ok(()),
        }
    }

    fn berth(&self) -> Result<SandboxPlan> {
        self.berth_takes()?;
        let allowlist = self.allowlist();
        self.workspace(&allowlist)?;
        let (mut mounts, mut points) = (Vec::new(), Vec::new());
        for wish in &self.wish.mounts {
            let (opened, read_only) = self.mount(&allowlist, wish)?;
            points.push((wish.sub.as_str(), opened.real.is_dir()));
            let source = opened.real.to_string_lossy().into_owned();
            mounts.push(MountRequest { source, target: target(wish), read_only });
        }
        let extra = if points.is_empty() { None } else { Some(self.mount_points(&points)?) };
        if let Some(extra) = &extra {
            let source = extra.to_string_lossy().into_owned();
            mounts.insert(0, MountRequest { source, target: engine::EXTRA.to_owned(), read_only: true });
        }
        Ok(SandboxPlan::Berth(BerthSandbox {
            image: self.wish.image.clone().unwrap_or_else(|| BERTH_IMAGE.to_owned()),
            mounts,
            extra,
            cpus: self.wish.cpus,
            pids: self.wish.pids,
            insist: self.wish.any_workspace,
        }))
    }

    /// Creates the mount points of further folders in berth's data folder. In the workspace only the mount point of
    /// their parent folder is created, because a container of berth cannot create it.
    fn mount_points(&self, points: &[(&str, bool)]) -> Result<PathBuf> {
        // Existing mount points are kept, because another host with the same data folder may use them.
        let folder = self.settings.data_dir.join("host/extra");
        for (sub, is_folder) in points {
            let point = folder.join(sub);
            let above = if *is_folder { Some(point.as_path()) } else { point.parent() };
            file::create_dir_private(above.unwrap_or(&folder))?;
            if !is_folder && point.symlink_metadata().is_err() {
                file::replace(&point, b"", 0o600)?;
            }
        }
        let in_workspace = self.plan.folder.join("extra");
        if in_workspace.symlink_metadata().is_err() {
            let owner = self.plan.folder.metadata().at("look at", &self.plan.folder)?;
            std::fs::create_dir(&in_workspace).at("make", &in_workspace)?;
            std::os::unix::fs::lchown(&in_workspace, Some(owner.uid()), Some(owner.gid()))
                .at("give to the workspace's owner", &in_workspace)?;
        }
        folder.canonicalize().at("find", &folder)
    }

    /// Returns the plan for the engine that the user named.
    fn engine_only(&self, kind: EngineKind) -> Result<SandboxPlan> {
        self.engine(kind, None).map_err(|error| match error.code() {
            Code::Unavailable => Error::config(format!("--sandbox {kind}"), error.message()),
            _ => error,
        })
    }

    /// Returns the plan for a container of an engine. `found` is the engine, if it was already queried.
    ///
    /// # Errors
    /// Fails with `Unavailable` if the engine cannot be reached or does not have the image, and with `Config` for all
    /// other problems.
    fn engine(&self, kind: EngineKind, found: Option<FoundEngine>) -> Result<SandboxPlan> {
        let private = matches!(self.wish.network, None | Some(SandboxNetwork::Private));
        if self.wish.server_inside && (kind == EngineKind::Apple || !private) {
            let problem =
                "inside needs --sandbox docker and its private network, where a port can be published";
            return Err(Error::config("--sandbox-server", problem));
        }
        if kind == EngineKind::Apple
            && matches!(self.wish.network, Some(SandboxNetwork::None | SandboxNetwork::Host))
        {
            let problem = "Apple's containers have a private network only";
            return Err(Error::config("--sandbox-network", problem));
        }
        let allowlist = self.allowlist();
        let workspace = self.workspace(&allowlist)?;
        let mut mounts = Vec::new();
        for wish in &self.wish.mounts {
            let (opened, read_only) = self.mount(&allowlist, wish)?;
            if kind == EngineKind::Apple && !opened.real.is_dir() {
                let problem =
                    format!("{} is no folder, and Apple's containers mount folders only", wish.source);
                return Err(Error::config(&wish.place, problem));
            }
            mounts.push(mounted(&opened, target(wish), read_only));
        }
        let program = self.granted(&allowlist, &self.plan.program, true)?;
        let (command, facts) = found.map_or_else(|| reach(kind), Ok)?;
        let cgroups = Cgroups::from_handle(CgroupsHandle::default());
        let image = self.wish.image.clone().unwrap_or_else(|| ENGINE_IMAGE.to_owned());
        let pull = self.wish.pull.unwrap_or(SandboxPull::Never);
        if kind == EngineKind::Docker && pull == SandboxPull::Never {
            command.image(&image, &cgroups).map_err(|error| {
                let message = format!(
                    "the engine has no image {image}; pull it with `docker pull {image}` or --sandbox-pull missing ({})",
                    error.message()
                );
                Error::new(Code::Unavailable, message)
            })?;
        }
        if let Some(engine_user) =
            rootless_user(&command, facts).filter(|user| *user != workspace.stat.st_uid)
        {
            let problem = format!(
                "the engine runs without root as user {engine_user}, and the workspace belongs to user {}, whose files it \
                 cannot write; use that user's engine, or give the workspace to user {engine_user}",
                workspace.stat.st_uid
            );
            return Err(Error::config("--workspace", problem));
        }
        let (uid, gid) = self.wish.user.map_or((workspace.stat.st_uid, None), |user| user);
        let plan = EnginePlan {
            command,
            facts,
            image,
            pull,
            name: container_name(self.run_id),
            label: self.settings.data_dir.display().to_string(),
            persist: self.persist(&workspace.real)?,
            workspace: mounted(&workspace, FOLDER.to_owned(), false),
            program: mounted(&program, PROGRAM.to_owned(), true),
            mounts,
            network: self.wish.network.unwrap_or(SandboxNetwork::Private),
            memory_bytes: self.wish.memory_bytes.unwrap_or_else(|| self.plan.memory_limit(&cgroups)),
            cpus: self.wish.cpus,
            pids: self.wish.pids.or(cgroups.capacity().container_limits().pids).unwrap_or_default(),
            user: (uid, gid.unwrap_or(workspace.stat.st_gid)),
        };
        let sources = [&plan.workspace, &plan.program].into_iter().chain(&plan.mounts);
        let paths = sources.map(|mount| &mount.source).chain([&plan.persist, &self.settings.data_dir]);
        if let Some(path) = paths.into_iter().find(|path| !can_be_named(path)) {
            let problem = "an engine cannot mount a path with a comma, a colon, a quotation mark or a control \
                           character";
            return Err(Error::config(path.display(), problem));
        }
        Ok(SandboxPlan::Engine(Box::new(plan)))
    }

    /// Returns the allowlist, extended by the workspace and the program that the host's user named.
    fn allowlist(&self) -> Allowlist {
        let grant = |path: &Path, writable, insist| MountGrant {
            path: path.canonicalize().unwrap_or_else(|_| path.to_owned()),
            writable,
            force: insist,
        };
        let granted = vec![
            grant(&self.plan.folder, true, self.wish.any_workspace),
            grant(&self.plan.program, false, true),
        ];
        Allowlist { granted, ..server::allowlist(self.settings) }
    }

    fn granted(&self, allowlist: &Allowlist, path: &Path, read_only: bool) -> Result<AllowedSource> {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let source = real.to_string_lossy().into_owned();
        let mount = MountRequest { source, target: FOLDER.to_owned(), read_only };
        let mut opened = allowlist.open(std::slice::from_ref(&mount))?;
        opened.pop().ok_or_else(|| Error::internal("a mount was lost"))
    }

    fn workspace(&self, allowlist: &Allowlist) -> Result<AllowedSource> {
        self.granted(allowlist, &self.plan.folder, false).map_err(|error| {
            let problem = format!("{}; --sandbox-any-workspace mounts it anyway", error.message());
            Error::config("--workspace", problem)
        })
    }

    /// Opens a folder for an additional mount, if the allowlist permits it. Also returns whether the mount is
    /// read-only. The error messages are those of OpenWork's orchestrator.
    fn mount(&self, allowlist: &Allowlist, wish: &MountWish) -> Result<(AllowedSource, bool)> {
        let look = |read_only| {
            allowlist.look(&MountRequest { source: wish.source.clone(), target: target(wish), read_only })
        };
        let read_only = wish.read_only.unwrap_or(false);
        let opened = match look(read_only) {
            Err(MountRefusal::ReadOnly(root)) => {
                let root = root.display();
                eprintln!(
                    "{}: {} is mounted for reading only, as is allowed for {root}",
                    wish.place, wish.source
                );
                return look(true)
                    .map(|opened| (opened, true))
                    .map_err(|refusal| self.refused(allowlist, wish, refusal));
            }
            looked => looked.map_err(|refusal| self.refused(allowlist, wish, refusal))?,
        };
        Ok((opened, read_only))
    }

    fn refused(&self, allowlist: &Allowlist, wish: &MountWish, refusal: MountRefusal) -> Error {
        let file = allowlist.path.display();
        let problem = match refusal {
            MountRefusal::NoFile(error) => {
                format!(
                    "Additional sandbox mounts are blocked. Create {file} to enable. ({})",
                    error.message()
                )
            }
            MountRefusal::Missing(why) => {
                let expanded = match wish.source.strip_prefix('~') {
                    Some(rest) => self.settings.home.join(rest.trim_start_matches('/')),
                    None => PathBuf::from(&wish.source),
                };
                let expanded = expanded.display();
                format!(
                    "Sandbox mount host path does not exist: {} (expanded: {expanded}; {why})",
                    wish.source
                )
            }
            MountRefusal::Pattern(pattern, real) => {
                format!("Sandbox mount rejected (blocked pattern {pattern:?}): {}", real.display())
            }
            MountRefusal::Outside(real, roots) => {
                let roots: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
                let roots = roots.join(", ");
                format!("Sandbox mount {} is not under any allowed root. Allowed: {roots}", real.display())
            }
            MountRefusal::ReadOnly(root) => {
                format!("Sandbox mount rejected (for reading only): {}", root.display())
            }
            MountRefusal::Other(why, real) => format!("Sandbox mount rejected ({why}): {}", real.display()),
        };
        Error::config(&wish.place, problem)
    }

    /// Returns the persistent folder for OpenCode's home: the folder that the user named, or a folder for this
    /// workspace in the data folder.
    fn persist(&self, workspace: &Path) -> Result<PathBuf> {
        let folder = match &self.wish.persist_dir {
            Some(folder) => self.current_dir.join(folder),
            None => {
                let name = crate::access::secret::sha256_hex(&workspace.to_string_lossy());
                self.settings.data_dir.join("sandbox").join(&name[..12])
            }
        };
        let inside = |real: PathBuf| workspace.starts_with(&real) || real == self.settings.data_dir;
        if folder.canonicalize().is_ok_and(inside) {
            let problem = format!("{} contains the workspace or is the data folder", folder.display());
            return Err(Error::config("--sandbox-persist-dir", problem));
        }
        Ok(folder)
    }
}

/// Returns the program of the server for a sandbox that contains the server, if the user named another program than
/// this one.
///
/// # Errors
/// Fails with `Config` for a path that is not a program, or that an engine cannot mount.
pub(super) fn server_program(
    args: &CommandLine,
    wish: &SandboxWish,
    current_dir: &Path,
) -> Result<Option<PathBuf>> {
    let Some(named) = args.openwork_server_bin.as_ref().filter(|_| wish.server_inside) else {
        return Ok(None);
    };
    let wrong =
        |problem: &str| Error::config(args.place(&table::OPENWORK_SERVER_BIN), format!("{named} {problem}"));
    let path =
        current_dir.join(named).canonicalize().map_err(|error| wrong(&format!("cannot be used: {error}")))?;
    let is_program =
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if !is_program || !can_be_named(&path) {
        return Err(wrong("is not an executable file that an engine can mount"));
    }
    Ok(Some(path))
}

fn target(wish: &MountWish) -> String {
    format!("{}/{}", engine::EXTRA, wish.sub)
}

fn mounted(opened: &AllowedSource, target: String, read_only: bool) -> EngineMount {
    let identity = (opened.stat.st_dev, opened.stat.st_ino);
    EngineMount { source: opened.real.clone(), target, read_only, identity }
}

/// An engine that has responded, with the information about it.
type FoundEngine = (EngineCommand, EngineFacts);

/// Queries the engine for its properties.
fn reach(kind: EngineKind) -> Result<FoundEngine> {
    let command = EngineCommand { kind, program: program(kind)?, env: environment() };
    let facts = command.facts(&Cgroups::from_handle(CgroupsHandle::default()))?;
    Ok((command, facts))
}

/// Returns the user of a rootless engine, to which root in its containers is mapped: the owner of the socket that
/// `DOCKER_HOST` names.
fn rootless_user(command: &EngineCommand, facts: EngineFacts) -> Option<u32> {
    let (_, socket) =
        command.env.iter().find(|(name, _)| name == "DOCKER_HOST").filter(|_| facts.rootless)?;
    Some(Path::new(socket.strip_prefix("unix://")?).metadata().ok()?.uid())
}

/// Returns the path of the engine's program: the one that a variable names, or the one in `PATH`.
fn program(kind: EngineKind) -> Result<PathBuf> {
    let none = |message: &str| Error::new(Code::Unavailable, message);
    let text = |name: &str| config::process_env(name)?.into_string().ok().filter(|text| !text.is_empty());
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let path = text("PATH").unwrap_or_default();
    let in_path = |name: &str| {
        path.split(':')
            .filter(|folder| folder.starts_with('/'))
            .map(|folder| Path::new(folder).join(name))
            .find(is_program)
    };
    match kind {
        EngineKind::Docker => {
            let named = DOCKER_BIN.iter().filter_map(|name| text(name)).map(PathBuf::from);
            let named = named.filter(|path| path.is_absolute()).find(is_program);
            named.or_else(|| in_path("docker")).ok_or_else(|| none("there is no program docker in PATH"))
        }
        EngineKind::Apple => match text(CONTAINER_BIN).map(PathBuf::from) {
            Some(path) if path.is_absolute() && is_program(&path) => Ok(path),
            Some(path) => Err(Error::config(
                CONTAINER_BIN,
                format!("{} is not the absolute path of a program", path.display()),
            )),
            None if cfg!(target_os = "macos") => {
                in_path("container").ok_or_else(|| none("there is no program container in PATH"))
            }
            None => Err(none("Apple container backend is only supported on macOS")),
        },
    }
}

/// Returns the environment variables of this process that the programs of engines use.
fn environment() -> Vec<(String, String)> {
    let wanted = |name: &str| {
        ["PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "SSH_AUTH_SOCK"].contains(&name)
            || ["LC_", "XDG_", "DOCKER_", "CONTAINER_"].iter().any(|start| name.starts_with(start))
            || ["_proxy", "_PROXY"].iter().any(|end| name.ends_with(end))
    };
    let names = config::process_names().into_iter().filter(|name| wanted(name));
    names.filter_map(|name| Some((name.clone(), config::process_env(&name)?.into_string().ok()?))).collect()
}
