//! The record of a running host in its data folder, `host/state.json`. `berth host stop` and `status` use it to find
//! the host. The record may be outdated, so the start time is compared too: a process with the same PID but another
//! start time is not the host.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::base::{At, Error, Result, clock};
use crate::config::{self, CommandLine, Parsed, Style};
use crate::containers::ProcessIdentity;
use crate::store::{file, format};

const FILE: &str = "state.json";
const FILE_BYTES: u64 = 64 << 10;
/// How long a stop may take. Requests in progress have ten seconds to finish, and the remaining steps take a few
/// seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// A running host.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HostState {
    version: u32,
    process: ProcessIdentity,
    /// The host's URL for requests.
    pub(super) url: String,
    run_id: String,
    workspace: String,
    started_at: u64,
}

impl HostState {
    /// Returns the record of this process.
    pub(super) fn new(address: &str, run_id: &str, workspace: &str) -> Result<HostState> {
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let process = ProcessIdentity::from_pid(pid)
            .ok_or_else(|| Error::internal("/proc does not show this process"))?;
        // A server can listen on 0.0.0.0, but a client cannot connect to that address, so the URL names the loopback
        // address.
        let url = address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");
        Ok(HostState {
            version: 1,
            process,
            url,
            run_id: run_id.to_owned(),
            workspace: workspace.to_owned(),
            started_at: clock::now_unix_ms(),
        })
    }

    pub(super) fn keep(&self, data_dir: &Path) -> Result<()> {
        let folder = data_dir.join("host");
        file::create_dir_private(&folder)?;
        let text =
            serde_json::to_vec_pretty(self).map_err(|error| Error::internal(FILE).with_source(error))?;
        file::replace(&folder.join(FILE), &text, 0o600)
    }

    /// Removes the record, if it is the record of this process.
    pub(super) fn forget(data_dir: &Path) {
        let ours = read(data_dir).ok().flatten().is_some_and(|state| state.pid() == std::process::id());
        if ours {
            let _ = std::fs::remove_file(data_dir.join("host").join(FILE));
        }
    }

    /// Returns the record of the host that runs with this data folder.
    ///
    /// # Errors
    /// Fails if no host is running.
    pub(super) fn running(data_dir: &Path) -> Result<HostState> {
        let folder = data_dir.display();
        match read(data_dir)? {
            Some(state) if ProcessIdentity::from_pid(state.process.pid) == Some(state.process) => Ok(state),
            Some(state) => Err(killed(state.pid(), data_dir)),
            None => Err(Error::internal(format!(
                "No host runs with the data folder {folder}; --data-dir names another one"
            ))),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.pid.unsigned_abs()
    }

    /// Stops the host and waits until it has exited.
    ///
    /// # Errors
    /// Fails if the host does not exit in time, or was killed before it could stop its processes.
    pub(super) fn stop(&self, data_dir: &Path) -> Result<()> {
        self.end()?;
        // A host that exits normally removes its record, so a remaining record means that the host was killed.
        match read(data_dir)? {
            Some(state) if state.process == self.process => Err(killed(self.pid(), data_dir)),
            _ => Ok(()),
        }
    }

    fn end(&self) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.process.pid) else { return Ok(()) };
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        // The process is checked after its descriptor was opened: from then on, the descriptor cannot refer to another
        // process.
        if ProcessIdentity::from_pid(self.process.pid) != Some(self.process) {
            return Ok(());
        }
        pidfd_send_signal(&process, Signal::TERM).at("stop", format!("process {}", self.pid()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let message = format!("Process {} did not end within {} s", self.pid(), PATIENCE.as_secs());
                return Err(Error::internal(message));
            }
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
            if poll(&mut fds, Some(&left)).is_ok_and(|ready| ready > 0) {
                return Ok(());
            }
        }
    }
}

fn killed(pid: u32, data_dir: &Path) -> Error {
    let folder = data_dir.display();
    Error::internal(format!(
        "No host runs with the data folder {folder}: process {pid} was killed, and what it had started may still run; \
         `berth host start --data-dir '{folder}'` ends that first"
    ))
}

fn read(data_dir: &Path) -> Result<Option<HostState>> {
    let path = data_dir.join("host").join(FILE);
    let Some(bytes) = file::read_optional(&path, FILE_BYTES)? else { return Ok(None) };
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return Ok(None) };
    let version = value["version"].as_u64().and_then(|version| u32::try_from(version).ok());
    format::check_known(version.unwrap_or(1), &path.display().to_string())?;
    Ok(serde_json::from_value(value).ok())
}

/// Returns the data folder that a command line selects.
pub(super) fn data_dir(words: &[String]) -> Result<PathBuf> {
    let line = match CommandLine::parse("host", words, Style::Lenient)? {
        Parsed::Run(line) => *line,
        Parsed::Help | Parsed::Version => CommandLine::default(),
    };
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    config::resolve_data_dir(&line, &config::process_env, &current_dir)
}
