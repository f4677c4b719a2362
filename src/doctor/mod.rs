//! Examines the host's capabilities by trying them. Every probe runs in a child process or in a scratch directory,
//! has a deadline, and leaves no files or processes behind. `berth doctor` and `GET /api/doctor` show the report.
//! At its start, the server logs the results of the checks that take no time. This module depends on neither the
//! command line nor HTTP.
//!
//! No threads of its own, but the trial of a container uses the threads of its engine. No locks.

mod cached;
pub mod child;
mod kernel;
mod nspawn;
mod programs;
mod resources;
mod trial;

pub use cached::Doctor;
pub use kernel::no_threads;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::{At, Result, clock, limits};
use crate::images::mirrors::PackageSources;
use crate::proc::confinement::Confinement;
use crate::proc::tools::{self, Family};
use crate::proc::{Cancel, Cgroups, Exit, ProcessOutcome, Spec};
use crate::store::allowlist::Allowlist;
use crate::store::{file, tree};

/// Result of a check, by severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// The check found no problem.
    Ok,
    /// A feature is missing, slow or less secure, but commands in containers work.
    Warn,
    /// Commands in containers cannot run.
    Fail,
}

/// Result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name of the check.
    pub name: String,
    pub status: CheckStatus,
    /// What the check found, and its consequences.
    pub found: String,
    /// Recommended fix, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Check {
        Check { name: name.into(), status: CheckStatus::Ok, found: found.into(), fix: None }
    }

    fn warn(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { name: name.into(), status: CheckStatus::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    fn fail(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Check {
        Check { name: name.into(), status: CheckStatus::Fail, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Results of all checks.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorReport {
    /// Whether no check failed.
    pub ok: bool,
    /// Version of the berth binary.
    pub version: &'static str,
    /// Time of the examination in RFC 3339.
    pub checked_at: String,
    /// Results, in order of dependency: a check comes after those that it depends on.
    pub checks: Vec<Check>,
}

/// The host and the configuration that the doctor examines.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The data directory, which may not exist yet.
    pub data_dir: PathBuf,
    /// Package mirrors and keyrings for builds.
    pub sources: PackageSources,
    /// Cgroups for the probes' processes.
    pub cgroups: Cgroups,
    /// Allowlist of host directories that containers may mount.
    pub allowlist: Allowlist,
    /// Maximum number of simultaneous connections.
    pub max_connections: usize,
    /// Cancelling ends a running examination.
    pub cancel: Cancel,
}

/// Runs all checks. The examination takes about a second, and at most [`limits::PROBE`] for each step.
pub fn examine(subject: &Subject) -> DoctorReport {
    let mut checks = vec![kernel::version()];
    checks.extend(at_start(subject));
    checks.extend(nspawn::checks(subject));
    checks.push(kernel::user_namespaces(subject));
    checks.extend(resources::enforcement(subject));
    match ScratchFolder::new(&subject.data_dir) {
        Ok(scratch) => {
            checks.push(resources::data_folder(subject, &scratch));
            checks.extend(kernel::mounts(subject, &scratch));
            checks.push(kernel::roots(&scratch));
            checks.push(trial::container(subject, &scratch));
        }
        Err(error) => checks.push(Check::fail(
            "data folder",
            format!("berth cannot work in {}: {error}", subject.data_dir.display()),
            "let berth's user own it, or choose another with --data-dir",
        )),
    }
    checks.extend(programs::distributions(subject));
    checks.extend(resources::space(subject));
    checks.extend(resources::machine(subject));
    checks.push(kernel::terminals());
    checks.extend(programs::network(subject));
    checks.push(programs::mounts(subject));
    let ok = checks.iter().all(|check| check.status != CheckStatus::Fail);
    DoctorReport { ok, version: env!("CARGO_PKG_VERSION"), checked_at: clock::now_rfc3339(), checks }
}

/// Runs the checks that take no time, for the start of the server.
pub fn at_start(subject: &Subject) -> Vec<Check> {
    let mut checks = vec![if is_root() && !Confinement::from_proc_self().sys_admin {
        Check::fail(
            "root",
            "berth runs as root without CAP_SYS_ADMIN, as in a container without --privileged; container \
             workspaces need it, everything else works",
            kernel::OUTER,
        )
    } else if is_root() {
        Check::ok("root", "berth runs as root")
    } else {
        Check::fail("root", "Container workspaces need root; everything else works", "start berth as root")
    }];
    checks.push(kernel::process_start());
    checks.extend(programs::required());
    checks.push(resources::groups(subject));
    checks.push(resources::oom());
    checks
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the command that installs packages on this host.
fn install(packages: &[&str]) -> String {
    let packages = packages.join(" ");
    match tools::family().unwrap_or(Family::Debian) {
        Family::Debian => format!("apt-get install {packages}"),
        Family::Fedora => format!("dnf install {packages}"),
        Family::Arch => format!("pacman -S {packages}"),
    }
}

/// Runs a host program. Returns its output; if it fails, returns its last line as the error.
fn run(subject: &Subject, program: impl Into<PathBuf>, args: &[&str]) -> std::result::Result<String, String> {
    let spec = Spec::new(program).args(args.iter().copied());
    let place = (&subject.cgroups, "doctor");
    let (ended, text) = spec
        .run_for_output(place, limits::PROBE_OUTPUT_BYTES, limits::PROBE, &subject.cancel)
        .map_err(|error| error.to_string())?;
    let last = || text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim().to_owned();
    match ended {
        ProcessOutcome::Exited(Exit::Code(0)) => Ok(text),
        ProcessOutcome::Exited(exit) if last().is_empty() => Err(exit.to_string()),
        ProcessOutcome::Exited(_) => Err(last()),
        ProcessOutcome::TimedOut => Err(format!("did not end within {} s", limits::PROBE.as_secs())),
        ProcessOutcome::Cancelled => Err("was interrupted".into()),
    }
}

/// Runs one of the probes in [`child`] as a separate process.
fn run_probe(subject: &Subject, probe: &str, folder: &Path) -> std::result::Result<(), String> {
    // The child resolves this link to the running binary, even if that file has been replaced (proc(5)).
    run(subject, "/proc/self/exe", &["probe", probe, &folder.to_string_lossy()]).map(drop)
}

const SCRATCH: &str = ".berth-doctor-";

/// Removes scratch directories whose process has ended.
fn sweep(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(SCRATCH).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = tree::remove_tree(parent, &name);
        }
    }
}

/// A scratch directory on the data directory's file system; dropping it removes the directory.
struct ScratchFolder {
    parent: PathBuf,
    name: String,
}

impl ScratchFolder {
    /// Creates the directory in the data directory; if that does not exist, in its nearest existing parent.
    fn new(data_dir: &Path) -> Result<ScratchFolder> {
        let parent = data_dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned();
        sweep(&parent);
        let name = format!("{SCRATCH}{}-{}", std::process::id(), uuid::Uuid::new_v4().simple());
        let path = parent.join(&name);
        file::create_dir_private(&path)?;
        Ok(ScratchFolder { parent, name })
    }

    fn path(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// Creates a directory in the scratch directory.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).at("make", &path)?;
        Ok(path)
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        if let Err(error) = tree::remove_tree(&self.parent, &self.name) {
            log::warn!("{} could not be removed: {error}", self.path().display());
        }
    }
}
