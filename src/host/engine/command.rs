//! The program of a container engine: which one, what it is asked, and with which words. `arguments` has the words of a
//! container; these are the questions around it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::{Code, Error, Result, logging};
use crate::proc::{Cancel, Cgroups, ProcessOutcome, Spec};

/// How long the engine may take for an answer.
const ANSWER: Duration = Duration::from_secs(20);
/// How long Apple's engine may take to start its services.
const SERVICES: Duration = Duration::from_secs(90);
/// How much of what the program prints is kept.
const OUTPUT_BYTES: usize = 64 << 10;

/// Whose command line it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// Docker's, as Podman and others offer it too.
    Docker,
    /// Apple's `container`.
    Apple,
}

/// The program and its environment.
#[derive(Clone)]
pub struct EngineCommand {
    /// Whose command line it takes.
    pub kind: EngineKind,
    /// An absolute path.
    pub program: PathBuf,
    /// `DOCKER_HOST` and what else it looks at; without secrets of ours.
    pub env: Vec<(String, String)>,
}

/// What an engine says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineFacts {
    /// It runs as a common user, whose id is 0 in its containers.
    pub rootless: bool,
    /// Ids in its containers are others outside (`userns-remap`).
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
    /// Runs the program with these words; what it prints, if it succeeds within the deadline.
    ///
    /// # Errors
    /// `Unavailable` with what it printed; `Cancelled`.
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
            ProcessOutcome::Cancelled => Err(Error::new(Code::Cancelled, "The server is going down")),
        }
    }

    /// Asks the engine what it is; an answer means that it can be reached.
    ///
    /// # Errors
    /// As [`EngineCommand::call`].
    pub fn facts(&self, cgroups: &Cgroups) -> Result<EngineFacts> {
        let ask = |words: &[&str], deadline| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            self.call(&words, cgroups, deadline, &Cancel::new()?)
        };
        match self.kind {
            EngineKind::Docker => {
                ask(&["version", "--format", "{{.Server.Version}}"], ANSWER)?;
                // Podman's own command line has other fields, and fails.
                let told = ask(&["info", "--format", "{{json .SecurityOptions}}"], ANSWER);
                let told = told.unwrap_or_default();
                Ok(EngineFacts {
                    rootless: told.contains("name=rootless"),
                    remapped: told.contains("name=userns"),
                })
            }
            EngineKind::Apple => {
                ask(&["--version"], ANSWER)?;
                // Where they run already it may fail; the start of the container shows it.
                let _ = ask(&["system", "start"], SERVICES);
                Ok(EngineFacts::default())
            }
        }
    }

    /// Whether the engine has the image.
    ///
    /// # Errors
    /// As [`EngineCommand::call`], if it has not.
    pub fn image(&self, image: &str, cgroups: &Cgroups) -> Result<()> {
        let words = ["image", "inspect", image].map(str::to_owned);
        self.call(&words, cgroups, ANSWER, &Cancel::new()?).map(drop)
    }

    /// The containers with this label, whether they run or not.
    ///
    /// # Errors
    /// As [`EngineCommand::call`].
    pub(super) fn labelled(&self, label: &str, cgroups: &Cgroups) -> Result<Vec<String>> {
        let words = ["ps", "--all", "--quiet", "--no-trunc", "--filter", &format!("label={label}")];
        let told = self.call(&words.map(str::to_owned), cgroups, ANSWER, &Cancel::new()?)?;
        let id = |line: &&str| line.len() >= 12 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
        Ok(told.lines().map(str::trim).filter(id).map(str::to_owned).collect())
    }

    /// Where the engine publishes the port of a container's server.
    ///
    /// # Errors
    /// As [`EngineCommand::call`].
    pub(super) fn port(&self, name: &str, cgroups: &Cgroups) -> Result<String> {
        let words = ["port", name, "8787/tcp"].map(str::to_owned);
        self.call(&words, cgroups, ANSWER, &Cancel::new()?)
    }

    /// Removes containers, which ends them.
    ///
    /// # Errors
    /// As [`EngineCommand::call`].
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

    /// Stops the container of this name, if there is one. Apple's engine removes it then, as it was started with `--rm`.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub(super) fn stop(&self, name: &str, cgroups: &Cgroups) -> Result<()> {
        let words = ["stop".to_owned(), name.to_owned()];
        match self.call(&words, cgroups, ANSWER, &Cancel::new()?) {
            Err(error) if error.code() != Code::Unavailable => Err(error),
            // It has ended already.
            _ => Ok(()),
        }
    }
}
