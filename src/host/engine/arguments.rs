//! Builds the command lines with which an engine runs OpenCode's container. Pure.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::command::{EngineCommand, EngineFacts, EngineKind};
use crate::base::{At, Code, Error, Result};
use crate::lifecycle::sandbox::{FOLDER, PROGRAM};
use crate::proc::Cgroups;

/// OpenCode's home directory in the container.
pub const HOME: &str = "/persist";
/// Directory in the container, below [`FOLDER`], that contains the mounts of `--sandbox-mount`.
pub const EXTRA: &str = "/workspace/extra";
/// Name of that directory in the workspace.
pub(super) const EXTRA_NAME: &str = "extra";
/// Directory in the container that contains the socket of berth's process.
const DOOR: &str = "/run/berth";
pub(super) const SOCKET: &str = "opencode.sock";
/// Directory in the container that contains berth's program.
const OWN: &str = "/opt/berth";
/// Options for mounting /tmp. The container's memory limit also limits its size.
const TMP: &str = "/tmp:rw,exec,nosuid,nodev,mode=1777";

/// Time limit for the engine to remove containers.
const CLEAR: Duration = Duration::from_secs(10);

/// The network of OpenCode's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxNetwork {
    /// The container has no network.
    None,
    /// The container uses the engine's default network: private, with outgoing access.
    Private,
    /// The container uses the host's network.
    Host,
}

/// The condition under which the engine pulls the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxPull {
    Never,
    /// The engine pulls the image if it does not have it.
    Missing,
    /// The engine pulls the image at each start.
    Always,
}

/// A validated mount of a host file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineMount {
    /// Path of the source on the host, with symbolic links resolved.
    pub source: PathBuf,
    /// Path of the mount in the container.
    pub target: String,
    pub read_only: bool,
    /// Device and inode of the source when it was validated.
    pub identity: (u64, u64),
}

/// The settings of the container in which an engine runs OpenCode.
#[derive(Clone, Debug)]
pub struct EnginePlan {
    pub command: EngineCommand,
    /// The properties that the engine reported.
    pub facts: EngineFacts,
    /// Reference of the image, as the engine's command line expects it.
    pub image: String,
    /// When the engine pulls the image.
    pub pull: SandboxPull,
    pub name: String,
    /// Value of the container's label `berth.host`: the path of the server's data directory.
    pub label: String,
    pub workspace: EngineMount,
    pub program: EngineMount,
    /// Host directory that persists OpenCode's home.
    pub persist: PathBuf,
    /// Mounts besides the workspace and OpenCode's program.
    pub mounts: Vec<EngineMount>,
    pub network: SandboxNetwork,
    /// Memory limit of the container in bytes.
    pub memory_bytes: u64,
    /// Processor limit of the container.
    pub cpus: Option<f64>,
    /// Limit of processes and threads in the container.
    pub pids: u64,
    /// User and group on the host that own the files written in the container.
    pub user: (u32, u32),
}

impl EnginePlan {
    /// Returns the label, as name and value, that identifies the containers of this data directory.
    pub(super) fn label(&self) -> String {
        format!("berth.host={}", self.label)
    }

    /// Replaces known errors of the engine at the container's start by messages that say what to do.
    pub fn explain(&self, error: Error) -> Error {
        let said = error.message();
        let image = &self.image;
        if said.contains("No such image") || said.contains("image not known") {
            let message = format!(
                "The engine has no image {image}; pull it with `docker pull {image}` or --sandbox-pull missing"
            );
            return Error::new(Code::Unavailable, message);
        }
        if said.contains("is already in use by container") {
            let message = format!(
                "There is another container named {}, which berth did not start; give this host another --run-id",
                self.name
            );
            return Error::new(Code::Unavailable, message);
        }
        error
    }

    /// Removes containers of this data directory that a killed server or a failed start left behind.
    ///
    /// # Errors
    /// When the engine does not respond.
    pub fn clear(&self, cgroups: &Cgroups) -> Result<()> {
        match self.command.kind {
            EngineKind::Docker => {
                let deadline = Instant::now() + CLEAR;
                loop {
                    let left = self.command.labelled(&self.label(), cgroups)?;
                    match self.command.remove(&left, cgroups) {
                        // The engine is still removing a container that has just exited, so try again.
                        Err(error) if error.code() == Code::Unavailable && Instant::now() < deadline => {
                            std::thread::sleep(Duration::from_millis(50));
                        }
                        removed => return removed,
                    }
                }
            }
            EngineKind::Apple => Ok(()),
        }
    }

    /// Returns the host port at which the server in the container is published.
    ///
    /// # Errors
    /// When the engine does not know the container yet.
    pub fn published(&self, cgroups: &Cgroups) -> Result<u16> {
        let told = self.command.port(&self.name, cgroups)?;
        let port = told.lines().next().and_then(|line| line.trim().rsplit_once(':')?.1.parse().ok());
        port.ok_or_else(|| Error::internal(format!("{} publishes no port", self.name)))
    }

    /// Makes the container's user the owner of a host directory.
    pub(super) fn give(&self, folder: &Path) -> Result<()> {
        let (user, group) = self.user;
        let stat = rustix::fs::stat(folder).at("look at", folder)?;
        if (stat.st_uid, stat.st_gid) == (user, group) {
            return Ok(());
        }
        let (user, group) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(group));
        rustix::fs::chown(folder, Some(user), Some(group)).at("give to the sandbox's user", folder)
    }

    /// Returns the user and group as IDs in the container.
    pub(super) fn user_inside(&self) -> (u32, u32) {
        if self.facts.rootless { (0, 0) } else { self.user }
    }

    /// Returns the arguments of the engine's command line. `own` is berth's program on the host, `door` the host
    /// directory of the socket.
    pub(super) fn words(&self, own: &Path, door: &Path) -> Vec<String> {
        match self.command.kind {
            EngineKind::Docker => self.docker(own, door),
            EngineKind::Apple => self.apple(own, door),
        }
    }

    fn docker(&self, own: &Path, door: &Path) -> Vec<String> {
        let mut words = EngineWords::default();
        words.add(&["run", "--detach", "--rm", "--name", &self.name, "--label", &self.label()]);
        words.add(&["--pull", pull_word(self.pull)]);
        match self.network {
            SandboxNetwork::None => words.add(&["--network", "none"]),
            SandboxNetwork::Host => words.add(&["--network", "host"]),
            SandboxNetwork::Private => {}
        }
        words.add(&["--read-only"]);
        self.limits(&mut words);
        // berth's process in the container handles no signals, so a stop through the engine must not wait for
        // SIGTERM. OpenCode's output goes to the server, so the engine need not store it.
        words.add(&["--stop-signal", "KILL", "--log-driver", "none", "--tmpfs", TMP]);
        for mount in self.own_mounts(own, door) {
            words.bind(&mount);
        }
        if !self.mounts.is_empty() {
            // The mount points of extra mounts are created in this tmpfs instead of in the user's workspace.
            words.add(&["--tmpfs", &format!("{EXTRA}:rw,nosuid,nodev,size=64k,mode=755")]);
        }
        self.mounts.iter().for_each(|mount| words.bind(mount));
        words.add(&["--workdir", FOLDER, "--entrypoint", &inside(own), &self.image]);
        words.add(&["relay", &format!("{DOOR}/{SOCKET}")]);
        words.0
    }

    /// Adds the security options and resource limits of a Docker container.
    pub(super) fn limits(&self, words: &mut EngineWords) {
        words.add(&["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]);
        let memory = self.memory_bytes.to_string();
        words.add(&["--memory", &memory, "--memory-swap", &memory, "--pids-limit", &self.pids.to_string()]);
        if let Some(cpus) = self.cpus {
            words.add(&["--cpus", &cpus.to_string()]);
        }
        let (user, group) = self.user_inside();
        words.add(&["--user", &format!("{user}:{group}")]);
        if self.facts.remapped {
            words.add(&["--userns", "host"]);
        }
    }

    /// Returns the arguments for Apple's engine. It runs each container in a separate virtual machine and can
    /// mount only directories. Unix sockets do not work through its mounts, so it publishes the socket instead.
    fn apple(&self, own: &Path, door: &Path) -> Vec<String> {
        let mut words = EngineWords::default();
        words.add(&["run", "--detach", "--rm", "--name", &self.name, "--label", &self.label()]);
        words.add(&["--memory", &self.memory_bytes.to_string()]);
        if let Some(cpus) = self.cpus {
            words.add(&["--cpus", &cpus.ceil().to_string()]);
        }
        let (user, group) = self.user_inside();
        words.add(&["--user", &format!("{user}:{group}"), "--tmpfs", "/tmp"]);
        for mount in self.own_mounts(own, door).into_iter().filter(|mount| mount.target != DOOR) {
            let folder = |path: &Path| path.parent().unwrap_or(path).to_owned();
            let file = [PROGRAM.to_owned(), inside(own)].contains(&mount.target);
            words.bind(&match file {
                true => EngineMount {
                    source: folder(&mount.source),
                    target: folder(Path::new(&mount.target)).to_string_lossy().into_owned(),
                    ..mount
                },
                false => mount,
            });
        }
        if !self.mounts.is_empty() {
            words.add(&["--tmpfs", EXTRA]);
        }
        self.mounts.iter().for_each(|mount| words.bind(mount));
        let socket = format!("{}:{DOOR}/{SOCKET}", door.join(SOCKET).display());
        words.add(&["--publish-socket", &socket, "--workdir", FOLDER, &self.image]);
        words.add(&[&inside(own), "relay", &format!("{DOOR}/{SOCKET}")]);
        words.0
    }

    fn own_mounts(&self, own: &Path, door: &Path) -> Vec<EngineMount> {
        let mount = |source: &Path, target: &str, read_only| EngineMount {
            source: source.to_owned(),
            target: target.to_owned(),
            read_only,
            identity: (0, 0),
        };
        vec![
            self.workspace.clone(),
            mount(&self.persist, HOME, false),
            mount(door, DOOR, false),
            mount(own, &inside(own), true),
            self.program.clone(),
        ]
    }

    /// Returns the path of OpenCode's program in the container.
    pub(super) fn program_inside(&self) -> String {
        match (self.command.kind, self.program.source.file_name()) {
            // Apple's engine mounts the program's directory, so the program keeps its name.
            (EngineKind::Apple, Some(name)) => {
                Path::new(PROGRAM).with_file_name(name).to_string_lossy().into()
            }
            _ => PROGRAM.to_owned(),
        }
    }
}

/// Returns the path of berth's program in the container.
fn inside(own: &Path) -> String {
    let name = own.file_name().map_or_else(|| "berth".into(), |name| name.to_string_lossy());
    format!("{OWN}/{name}")
}

pub(super) fn pull_word(pull: SandboxPull) -> &'static str {
    match pull {
        SandboxPull::Never => "never",
        SandboxPull::Missing => "missing",
        SandboxPull::Always => "always",
    }
}

/// The words of a command line that is being built.
#[derive(Default)]
pub(super) struct EngineWords(pub(super) Vec<String>);

impl EngineWords {
    pub(super) fn add(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(|word| (*word).to_owned()));
    }

    pub(super) fn bind(&mut self, mount: &EngineMount) {
        let end = if mount.read_only { ",readonly" } else { "" };
        let source = mount.source.display();
        self.add(&["--mount", &format!("type=bind,source={source},target={}{end}", mount.target)]);
    }
}

/// Returns whether a mount argument of the engine can contain the path.
pub fn can_be_named(path: &Path) -> bool {
    path.to_str().is_some_and(|path| !path.contains([',', '"', ':']) && !path.chars().any(char::is_control))
}

/// Returns the name of a run's container, derived from the run ID as in OpenWork's desktop app.
pub fn container_name(run_id: &str) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' };
    format!("openwork-orchestrator-{}", run_id.chars().take(24).map(clean).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_desktop_expects() {
        assert_eq!(container_name("a/b c.d_e-f"), "openwork-orchestrator-a-b-c.d_e-f");
        let long = container_name("0123456789012345678901234567890");
        assert_eq!(long, "openwork-orchestrator-012345678901234567890123");
    }

    #[test]
    fn ambiguous_mount_paths_are_refused() {
        for (path, want) in
            [("/a b/ü", true), ("/a,b", false), ("/a:b", false), ("/a\"b", false), ("/a\nb", false)]
        {
            assert_eq!(can_be_named(Path::new(path)), want, "{path}");
        }
    }
}
