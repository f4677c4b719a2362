//! Calls the program of a container engine. `arguments` builds the command line of a container; this file has all
//! other calls.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::{Code, Error, Result, logging};
use crate::proc::{Cancel, Cgroups, ProcessOutcome, Spec};

/// How long the engine may take to respond.
const ANSWER: Duration = Duration::from_secs(20);
/// How long Apple's engine may take to start its services.
const SERVICES: Duration = Duration::from_secs(90);
/// The size of the program's captured output.
const OUTPUT_BYTES: usize = 64 << 10;

/// The kind of command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Docker's, which Podman and others support too.
    Docker,
    /// Apple's `container`.
    Apple,
}

/// The engine's program and its environment.
#[derive(Clone)]
pub struct EngineCommand {
    pub kind: EngineKind,
    /// An absolute path.
    pub program: PathBuf,
    /// Variables such as `DOCKER_HOST`, without berth's secrets.
    pub env: Vec<(String, String)>,
}

/// Properties of an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineFacts {
    /// It runs as an ordinary user, who has id 0 in its containers.
    pub rootless: bool,
    /// Ids in its containers are mapped to other host ids (`userns-remap`).
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
    /// Runs the program. Returns its output if it succeeds within the deadline.
    ///
    /// # Errors
    /// `Unavailable` with its output; `Cancelled`.
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

    /// Queries the engine's properties. Success means that the engine can be reached.
    ///
    /// # Errors
    /// Those of [`EngineCommand::call`].
    pub fn facts(&self, cgroups: &Cgroups) -> Result<EngineFacts> {
        let ask = |words: &[&str], deadline| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            self.call(&words, cgroups, deadline, &Cancel::new()?)
        };
        match self.kind {
            EngineKind::Docker => {
                ask(&["version", "--format", "{{.Server.Version}}"], ANSWER)?;
                // Podman's command line has other fields, and fails.
                let told = ask(&["info", "--format", "{{json .SecurityOptions}}"], ANSWER);
                let told = told.unwrap_or_default();
                Ok(EngineFacts {
                    rootless: told.contains("name=rootless"),
                    remapped: told.contains("name=userns"),
                })
            }
            EngineKind::Apple => {
                ask(&["--version"], ANSWER)?;
                // This may fail if the services already run. The start of the container shows whether they do.
                let _ = ask(&["system", "start"], SERVICES);
                Ok(EngineFacts::default())
            }
        }
    }

    /// Checks that the engine has the image.
    ///
    /// # Errors
    /// Those of [`EngineCommand::call`], if it does not.
    pub fn image(&self, image: &str, cgroups: &Cgroups) -> Result<()> {
        let words = ["image", "inspect", image].map(str::to_owned);
        self.call(&words, cgroups, ANSWER, &Cancel::new()?).map(drop)
    }

    /// All containers with this label, running or not.
    ///
    /// # Errors
    /// Those of [`EngineCommand::call`].
    pub(super) fn labelled(&self, label: &str, cgroups: &Cgroups) -> Result<Vec<String>> {
        let words = ["ps", "--all", "--quiet", "--no-trunc", "--filter", &format!("label={label}")];
        let told = self.call(&words.map(str::to_owned), cgroups, ANSWER, &Cancel::new()?)?;
        let id = |line: &&str| line.len() >= 12 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(told.lines().map(str::trim).filter(id).map(str::to_owned).collect())
    }

    /// The address at which the engine publishes the port of a container's server.
    ///
    /// # Errors
    /// Those of [`EngineCommand::call`].
    pub(super) fn port(&self, name: &str, cgroups: &Cgroups) -> Result<String> {
        let words = ["port", name, "8787/tcp"].map(str::to_owned);
        self.call(&words, cgroups, ANSWER, &Cancel::new()?)
    }

    /// Kills and removes containers.
    ///
    /// # Errors
    /// Those of [`EngineCommand::call`].
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

    /// Stops the container of this name, if it exists. Apple's engine then removes it, as it was started with `--rm`.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub(super) fn stop(&self, name: &str, cgroups: &Cgroups) -> Result<()> {
        let words = ["stop".to_owned(), name.to_owned()];
        match self.call(&words, cgroups, ANSWER, &Cancel::new()?) {
            Err(error) if error.code() != Code::Unavailable => Err(error),
            // It has already ended.
            _ => Ok(()),
        }
    }
}
