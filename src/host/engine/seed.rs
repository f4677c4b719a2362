//! `--sandbox-server inside`: a container in which the server runs too. Its layout is that of OpenWork's first
//! host, on which images and scripts rely: the workspace at /workspace, persistent files at /persist, the programs
//! and `entrypoint.sh` below /persist/openwork-orchestrator-sandbox/NAME, the server on port 8787 of the
//! container.
//!
//! The container avoids flaws of the original: programs are mounted instead of copied, secrets are in a file for
//! the engine's program instead of in a script, the port is published on one address only, and the container ends
//! when stdin of the engine's program is closed, that is, when the host process ends.

use std::net::SocketAddr;
use std::path::Path;

use rustix::fs::Mode;

use super::arguments::{EXTRA, EnginePlan, EngineWords, HOME, pull_word};
use crate::base::{At, Result};
use crate::lifecycle::sandbox::FOLDER;
use crate::store::file;

/// Name of the programs' directory below /persist, as in OpenWork's orchestrator.
const STAGING: &str = "openwork-orchestrator-sandbox";
/// Port on which the server listens in the container.
const PORT: u16 = 8787;

/// A container in which the server runs too.
pub struct ServerContainer<'a> {
    /// The settings that this container shares with a container for OpenCode alone.
    pub plan: &'a EnginePlan,
    /// Host directory for the mounted files; it is in berth's data directory, where no container can write.
    pub staging: &'a Path,
    /// Path of berth's program on the host.
    pub server: &'a Path,
    /// Host address at which the server's port is published; port 0 selects any free port.
    pub publish: SocketAddr,
    /// Ports on the host and in the container of a bot; it requires no credential, so it is published on 127.0.0.1
    /// only.
    pub bot: Option<(u16, u16)>,
    /// Additional arguments of the server.
    pub words: &'a [String],
}

impl ServerContainer<'_> {
    /// Returns the directory in the container that contains the programs.
    fn inside(&self) -> String {
        format!("{HOME}/{STAGING}/{}", self.plan.name)
    }

    /// Creates the host directories, `entrypoint.sh`, and the mount points of the programs.
    ///
    /// # Errors
    /// When a file or directory cannot be created.
    pub fn stage(&self) -> Result<()> {
        self.unstage()?;
        file::create_dir_private(&self.plan.persist)?;
        self.plan.give(&self.plan.persist)?;
        let sidecars = self.staging.join("sidecars");
        for folder in [self.staging, sidecars.as_path()] {
            file::create_dir_private(folder)?;
            // The container's user must be able to read the directory. Other users of this machine cannot reach
            // it.
            rustix::fs::chmod(folder, Mode::from_raw_mode(0o755)).at("open to the sandbox's user", folder)?;
        }
        for name in ["opencode", "openwork-server"] {
            file::replace(&sidecars.join(name), b"", 0o755)?;
        }
        file::replace(&self.staging.join("entrypoint.sh"), self.entrypoint().as_bytes(), 0o644)
    }

    /// Removes the files that [`ServerContainer::stage`] created.
    ///
    /// # Errors
    /// When a file cannot be removed.
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

    /// Returns the arguments of the engine's command line. `env_file` is the path of the file with the secrets.
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
