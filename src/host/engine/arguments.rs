//! The words with which an engine is asked to run OpenCode's container. Pure, so that they can be compared as they are.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::command::{EngineCommand, EngineFacts, EngineKind};
use crate::base::{At, Code, Error, Result};
use crate::lifecycle::sandbox::{FOLDER, PROGRAM};
use crate::proc::Cgroups;

/// OpenCode's home in the container.
pub const HOME: &str = "/persist";
/// Where mounts of `--sandbox-mount` are, below [`FOLDER`].
pub const EXTRA: &str = "/workspace/extra";
/// Its name in the workspace.
pub(super) const EXTRA_NAME: &str = "extra";
/// The folder of the socket in the container, and the socket in it.
const DOOR: &str = "/run/berth";
/// The socket's name.
pub(super) const SOCKET: &str = "opencode.sock";
/// The folder of berth's own program in the container.
const OWN: &str = "/opt/berth";
/// The largest /tmp; the container's memory limit bounds it as well.
const TMP: &str = "/tmp:rw,exec,nosuid,nodev,mode=1777";

/// How long the engine may take to remove containers.
const CLEAR: Duration = Duration::from_secs(10);

/// What the container reaches over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxNetwork {
    /// Nothing.
    None,
    /// The engine's default: a network of its own with a way out.
    Private,
    /// What the host reaches.
    Host,
}

/// When the engine asks a registry for the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxPull {
    /// Not at all.
    Never,
    /// If it has none.
    Missing,
    /// At each start.
    Always,
}

/// A folder or file of the host in the container, as it was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineMount {
    /// Without links.
    pub source: PathBuf,
    /// Its path in the container.
    pub target: String,
    /// Programs in the container cannot write to it.
    pub read_only: bool,
    /// Device and inode of what was checked.
    pub identity: (u64, u64),
}

/// The container in which an engine runs OpenCode.
#[derive(Clone, Debug)]
pub struct EnginePlan {
    /// The engine.
    pub command: EngineCommand,
    /// What it said of itself.
    pub facts: EngineFacts,
    /// A reference of the engine's.
    pub image: String,
    /// When a registry is asked for it.
    pub pull: SandboxPull,
    /// The container's name.
    pub name: String,
    /// The value of its label `berth.host`: the server's data folder.
    pub label: String,
    /// The workspace.
    pub workspace: EngineMount,
    /// OpenCode's program.
    pub program: EngineMount,
    /// The folder that stays, for OpenCode's home.
    pub persist: PathBuf,
    /// Further folders.
    pub mounts: Vec<EngineMount>,
    /// What it reaches.
    pub network: SandboxNetwork,
    /// The most memory.
    pub memory_bytes: u64,
    /// The most processors.
    pub cpus: Option<f64>,
    /// The most processes and threads.
    pub pids: u64,
    /// The user and group of the host that own what it writes.
    pub user: (u32, u32),
}

impl EnginePlan {
    /// The label by which berth finds its own containers.
    pub(super) fn label(&self) -> String {
        format!("berth.host={}", self.label)
    }

    /// What the engine said about the start of the container, in words that help.
    pub fn explain(&self, error: Error) -> Error {
        let said = error.message();
        let image = &self.image;
        if said.contains("No such image") || said.contains("image not known") {
            let message = format!(
                "The engine has no image {image}; `docker pull {image}` or --sandbox-pull missing gets it"
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

    /// Removes containers of this data folder: a server that was killed has left them, or the start of one failed.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn clear(&self, cgroups: &Cgroups) -> Result<()> {
        match self.command.kind {
            EngineKind::Docker => {
                let deadline = Instant::now() + CLEAR;
                loop {
                    let left = self.command.labelled(&self.label(), cgroups)?;
                    match self.command.remove(&left, cgroups) {
                        // One that has ended by itself is being removed by the engine at this moment.
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

    /// The port of this host at which the container's server is.
    ///
    /// # Errors
    /// When the engine does not know the container yet.
    pub fn published(&self, cgroups: &Cgroups) -> Result<u16> {
        let told = self.command.port(&self.name, cgroups)?;
        let port = told.lines().next().and_then(|line| line.trim().rsplit_once(':')?.1.parse().ok());
        port.ok_or_else(|| Error::internal(format!("{} publishes no port", self.name)))
    }

    /// Makes the container's user the owner of a folder of the host.
    pub(super) fn give(&self, folder: &Path) -> Result<()> {
        let (user, group) = self.user;
        let stat = rustix::fs::stat(folder).at("look at", folder)?;
        if (stat.st_uid, stat.st_gid) == (user, group) {
            return Ok(());
        }
        let (user, group) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(group));
        rustix::fs::chown(folder, Some(user), Some(group)).at("give to the sandbox's user", folder)
    }

    /// The user and group as numbers of the container.
    pub(super) fn user_inside(&self) -> (u32, u32) {
        if self.facts.rootless { (0, 0) } else { self.user }
    }

    /// The words of the engine's command line. `own` is berth's program, `door` the folder of its socket.
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
        // berth's process handles no signal; a stop through the engine must not wait for one to act on SIGTERM. What
        // OpenCode prints goes to the server, and is not kept by the engine.
        words.add(&["--stop-signal", "KILL", "--log-driver", "none", "--tmpfs", TMP]);
        for mount in self.own_mounts(own, door) {
            words.bind(&mount);
        }
        if !self.mounts.is_empty() {
            // The mount points of the extra folders are made in here, not in the user's workspace.
            words.add(&["--tmpfs", &format!("{EXTRA}:rw,nosuid,nodev,size=64k,mode=755")]);
        }
        self.mounts.iter().for_each(|mount| words.bind(mount));
        words.add(&["--workdir", FOLDER, "--entrypoint", &inside(own), &self.image]);
        words.add(&["relay", &format!("{DOOR}/{SOCKET}")]);
        words.0
    }

    /// What Docker's containers may do and use.
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

    /// Apple's engine runs each container in a virtual machine of its own, and mounts folders only. Unix sockets do not
    /// pass through a mount there; it publishes them.
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

    /// OpenCode's program in the container.
    pub(super) fn program_inside(&self) -> String {
        match (self.command.kind, self.program.source.file_name()) {
            // Its folder is mounted.
            (EngineKind::Apple, Some(name)) => {
                Path::new(PROGRAM).with_file_name(name).to_string_lossy().into()
            }
            _ => PROGRAM.to_owned(),
        }
    }
}

/// berth's own program in the container.
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

/// A command line.
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

/// Whether an engine's command line can name the path in a mount.
pub fn can_be_named(path: &Path) -> bool {
    path.to_str().is_some_and(|path| !path.contains([',', '"', ':']) && !path.chars().any(char::is_control))
}

/// The name of the container of a run, as OpenWork's desktop makes it from the run id.
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
    fn paths_that_would_read_as_something_else_are_not_named() {
        for (path, want) in
            [("/a b/ü", true), ("/a,b", false), ("/a:b", false), ("/a\"b", false), ("/a\nb", false)]
        {
            assert_eq!(can_be_named(Path::new(path)), want, "{path}");
        }
    }
}
