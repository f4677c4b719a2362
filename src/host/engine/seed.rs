//! `--sandbox-server inside`: a container with the server in it as well, in the shape that OpenWork's first host gave it, since
//! images and scripts rely on that: the workspace at /workspace, what stays at /persist, the programs and `entrypoint.sh` below
//! /persist/openwork-orchestrator-sandbox/NAME, the server on port 8787 of the container.
//!
//! What was wrong with that shape is not: the programs are mounted and not copied, secrets come by a file for the engine's
//! program alone and stand in no script, the port is published on one address, and the container ends when the input of the
//! engine's program does, which is when the host has ended.

use std::net::SocketAddr;
use std::path::Path;

use rustix::fs::Mode;

use super::arguments::{EXTRA, EnginePlan, EngineWords, HOME, pull_word};
use crate::base::{At, Result};
use crate::lifecycle::sandbox::FOLDER;
use crate::store::file;

/// The folder in the persistent one, as OpenWork's orchestrator names it.
const STAGING: &str = "openwork-orchestrator-sandbox";
/// The server's port in the container.
const PORT: u16 = 8787;

/// A container with the server in it.
pub struct ServerContainer<'a> {
    /// What it has in common with one that has OpenCode alone.
    pub plan: &'a EnginePlan,
    /// The folder of the host for what is mounted: in berth's data folder, where no container can write.
    pub staging: &'a Path,
    /// berth's program on the host.
    pub server: &'a Path,
    /// Where the port is published; 0: anywhere on that address.
    pub publish: SocketAddr,
    /// The port of 127.0.0.1 at which a bot in the container is published: it takes no credential.
    pub bot: Option<(u16, u16)>,
    /// Further words for the server.
    pub words: &'a [String],
}

impl ServerContainer<'_> {
    /// The folder of the programs in the container.
    fn inside(&self) -> String {
        format!("{HOME}/{STAGING}/{}", self.plan.name)
    }

    /// Makes the folders, `entrypoint.sh` and the places of the programs.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn stage(&self) -> Result<()> {
        self.unstage()?;
        file::create_dir_private(&self.plan.persist)?;
        self.plan.give(&self.plan.persist)?;
        let sidecars = self.staging.join("sidecars");
        for folder in [self.staging, sidecars.as_path()] {
            file::create_dir_private(folder)?;
            // For the container's user; others of this machine cannot get as far as this.
            rustix::fs::chmod(folder, Mode::from_raw_mode(0o755)).at("open to the sandbox's user", folder)?;
        }
        for name in ["opencode", "openwork-server"] {
            file::replace(&sidecars.join(name), b"", 0o755)?;
        }
        file::replace(&self.staging.join("entrypoint.sh"), self.entrypoint().as_bytes(), 0o644)
    }

    /// Removes them.
    ///
    /// # Errors
    /// When something of them cannot be removed.
    pub fn unstage(&self) -> Result<()> {
        match (self.staging.parent(), self.staging.file_name().and_then(|name| name.to_str())) {
            (Some(above), Some(name)) => crate::store::tree::remove_tree(above, name),
            _ => Ok(()),
        }
    }

    fn entrypoint(&self) -> String {
        let inside = self.inside();
        let quoted = |word: &String| format!(" '{}'", word.replace('\'', "'\\''"));
        let words: String = self.words.iter().map(quoted).collect();
        format!(
            "set -eu\n\
             export HOME={HOME} XDG_CONFIG_HOME={HOME}/.config XDG_CACHE_HOME={HOME}/.cache\n\
             export XDG_DATA_HOME={HOME}/.local/share XDG_STATE_HOME={HOME}/.local/state\n\
             export OPENWORK_SANDBOX_ENABLED=1 OPENWORK_SANDBOX_BACKEND={}\n\
             : \"${{OPENWORK_TOKEN:?}}\" \"${{OPENWORK_HOST_TOKEN:?}}\"\n\
             cd {FOLDER}\n\
             exec '{inside}/sidecars/openwork-server' seed --host 0.0.0.0 --port {PORT} --workspace {FOLDER} \
             --data-dir {HOME}/berth --manage-opencode --opencode-bin '{inside}/sidecars/opencode'{words}\n",
            self.plan.command.kind,
        )
    }

    /// The words of the engine's command line; `env_file` has the secrets.
    pub fn command_line(&self, env_file: &Path) -> Vec<String> {
        let plan = self.plan;
        let mut words = EngineWords::default();
        words.add(&["run", "--interactive", "--rm", "--name", &plan.name, "--label", &plan.label()]);
        words.add(&["--pull", pull_word(plan.pull)]);
        let port = match self.publish.port() {
            0 => format!("{}::{PORT}", self.publish.ip()),
            port => format!("{}:{port}:{PORT}", self.publish.ip()),
        };
        if let Some((outside, inside)) = self.bot {
            words.add(&["--publish", &format!("127.0.0.1:{outside}:{inside}")]);
        }
        words.add(&["--publish", &port, "--env-file", &env_file.display().to_string()]);
        plan.limits(&mut words);
        words.bind(&plan.workspace);
        let mount = |source: &Path, target: String, read_only| super::EngineMount {
            source: source.to_owned(),
            target,
            read_only,
            identity: (0, 0),
        };
        let sidecars = format!("{}/sidecars", self.inside());
        words.bind(&mount(&plan.persist, HOME.to_owned(), false));
        words.bind(&mount(self.staging, self.inside(), true));
        words.bind(&mount(&plan.program.source, format!("{sidecars}/opencode"), true));
        words.bind(&mount(self.server, format!("{sidecars}/openwork-server"), true));
        if !plan.mounts.is_empty() {
            words.add(&["--tmpfs", &format!("{EXTRA}:rw,nosuid,nodev,size=64k,mode=755")]);
        }
        plan.mounts.iter().for_each(|mount| words.bind(mount));
        words.add(&["--workdir", FOLDER, &plan.image, "sh", &format!("{}/entrypoint.sh", self.inside())]);
        words.0
    }
}
