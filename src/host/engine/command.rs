//! Runs the command-line program of a container engine. `arguments` builds the command line that starts a
//! container; this file makes all other calls.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::{Code, Error, Result, logging};
use crate::proc::{Cancel, Cgroups, ProcessOutcome, Spec};

/// Time limit for one call of the engine.
const ANSWER: Duration = Duration::from_secs(20);
/// Time limit for Apple's engine to start its services.
const SERVICES: Duration = Duration::from_secs(90);
/// Maximum size of the captured output of one call.
const OUTPUT_BYTES: usize = 64 << 10;

/// The syntax of an engine's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Docker's command line, which Podman and others support too.
    Docker,
    /// The command line of Apple's `container`.
    Apple,
}

/// The engine's program, with the environment for its calls.
#[derive(Clone)]
pub struct EngineCommand {
    pub kind: EngineKind,
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Environment variables such as `DOCKER_HOST`, without berth's secrets.
    pub env: Vec<(String, String)>,
}

/// Properties of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineFacts {
    /// The engine runs as an ordinary user, who has the ID 0 in its containers.
    pub rootless: bool,
    /// IDs in the containers are mapped to other IDs on the host (`userns-remap`).
    pub remapped: bool,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineKind::Docker => "docker",
            EngineKind::Apple => "container",
        })
    }
}

impl fmt::Debug for EngineCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EngineCommand({})", self.program.display())
    }
}

impl EngineCommand {
    /// Runs the engine's program and returns its output if it succeeds within the deadline.
    ///
    /// # Errors
    /// `Unavailable` with the program's output; `Cancelled` when the server is shutting down.
    pub fn call(
        &self,
        words: &[String],
        cgroups: &Cgroups,
        deadline: Duration,
        cancel: &Cancel,
    ) -> Result<String> {
        let what = format!("{} {}", self.kind, words.first().map_or("", String::as_str));
        let spec = Spec::bare(&self.program, "/").args(words.iter().cloned()).envs(&self.env);
        let (ended, printed) = spec.run_for_output((cgroups, "engine"), OUTPUT_BYTES, deadline, cancel)?;
        let failed = |how: String| Err(Error::new(Code::Unavailable, format!("`{what}` {how}")));
        match ended {
            ProcessOutcome::Exited(exit) if exit.success() => Ok(printed),
            ProcessOutcome::Exited(exit) => {
                let said = logging::one_line(printed.trim());
                failed(if said.is_empty() {
                    format!("failed with {exit}")
                } else {
                    format!("failed with {exit}: {said}")
                })
            }
            ProcessOutcome::TimedOut => failed(format!("did not end within {} s", deadline.as_secs())),
            ProcessOutcome::Cancelled => Err(Error::new(Code::Cancelled, "The server is shutting down")),
        }
    }

    /// Queries the engine's properties; success shows that the engine can be reached.
    ///
    /// # Errors
    /// The errors of [`EngineCommand::call`].
    pub fn facts(&self, cgroups: &Cgroups) -> Result<EngineFacts> {
        let ask = |words: &[&str], deadline| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            self.call(&words, cgroups, deadline, &Cancel::new()?)
        };
        match self.kind {
            EngineKind::Docker => {
                ask(&["version", "--format", "{{.Server.Version}}"], ANSWER)?;
                // This fails with Podman, whose output has other fields; its properties then count as not set.
                let told = ask(&["info", "--format", "{{json .SecurityOptions}}"], ANSWER);
                let told = told.unwrap_or_default();
                Ok(EngineFacts {
                    rootless: told.contains("name=rootless"),
                    remapped: told.contains("name=userns"),
                })
            }
            EngineKind::Apple => {
                ask(&["--version"], ANSWER)?;
                // A failure is ignored, because the services may already run. The start of the container shows
                // whether they do.
                let _ = ask(&["system", "start"], SERVICES);
                Ok(EngineFacts::default())
            }
        }
    }

    /// Checks that the engine has the image.
    ///
    /// # Errors
    /// The errors of [`EngineCommand::call`], also when the engine does not have the image.
    pub fn image(&self, image: &str, cgroups: &Cgroups) -> Result<()> {
        let words = ["image", "inspect", image].map(str::to_owned);
        self.call(&words, cgroups, ANSWER, &Cancel::new()?).map(drop)
    }

    /// Returns the IDs of all containers with this label, running or not.
    ///
    /// # Errors
    /// The errors of [`EngineCommand::call`].
    pub(super) fn labelled(&self, label: &str, cgroups: &Cgroups) -> Result<Vec<String>> {
        let words = ["ps", "--all", "--quiet", "--no-trunc", "--filter", &format!("label={label}")];
        let told = self.call(&words.map(str::to_owned), cgroups, ANSWER, &Cancel::new()?)?;
        let id = |line: &&str| line.len() >= 12 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(told.lines().map(str::trim).filter(id).map(str::to_owned).collect())
    }

    /// Returns the address at which the engine publishes the server's port of the container `name`.
    ///
    /// # Errors
    /// The errors of [`EngineCommand::call`].
    pub(super) fn port(&self, name: &str, cgroups: &Cgroups) -> Result<String> {
        let words = ["port", name, "8787/tcp"].map(str::to_owned);
        self.call(&words, cgroups, ANSWER, &Cancel::new()?)
    }

    /// Kills and removes containers.
    ///
    /// # Errors
    /// The errors of [`EngineCommand::call`].
    pub(super) fn remove(&self, containers: &[String], cgroups: &Cgroups) -> Result<()> {
        if containers.is_empty() {
            return Ok(());
        }
        let start = match self.kind {
            EngineKind::Docker => ["rm", "--force"],
            EngineKind::Apple => ["delete", "--force"],
        };
        let words: Vec<String> =
            start.iter().map(|word| (*word).to_owned()).chain(containers.iter().cloned()).collect();
        self.call(&words, cgroups, ANSWER, &Cancel::new()?).map(drop)
    }

    /// Stops the container of this name if it exists. Apple's engine then removes it, because it was started with
    /// `--rm`.
    ///
    /// # Errors
    /// When the engine's program cannot be run.
    pub(super) fn stop(&self, name: &str, cgroups: &Cgroups) -> Result<()> {
        let words = ["stop".to_owned(), name.to_owned()];
        match self.call(&words, cgroups, ANSWER, &Cancel::new()?) {
            Err(error) if error.code() != Code::Unavailable => Err(error),
            // The container has already ended.
            _ => Ok(()),
        }
    }
}
