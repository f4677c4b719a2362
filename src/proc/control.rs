//! Reads and writes the limits and the usage of a group through the kernel's files: those of cgroup v2 for the
//! controllers that the group has there, else those in v1 folders.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use super::hierarchy::{Controller, ControllerSource, Tree, write};
use super::{Limits, Usage};
use crate::base::{At, Code, Error, Result};

/// Whether this host enforces one kind of limit, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enforced {
    pub enforced: bool,
    /// The mechanism; or the reason why the limit is not enforced, and how to change that.
    pub how: String,
}

/// Whether this host enforces each kind of limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enforcement {
    /// Enforcement of `memory_bytes`.
    pub memory_bytes: Enforced,
    /// Enforcement of `swap_bytes`.
    pub swap_bytes: Enforced,
    /// Enforcement of `cpus`.
    pub cpus: Enforced,
    /// Enforcement of `pids`.
    pub pids: Enforced,
}

impl Enforcement {
    /// Returns those of `limits` that are not enforced, as `(name, reason)`.
    pub fn missing(&self, limits: &Limits) -> Vec<(&'static str, &str)> {
        let asked = [
            ("memory_bytes", limits.memory_bytes.is_some(), &self.memory_bytes),
            ("swap_bytes", limits.swap_bytes.is_some(), &self.swap_bytes),
            ("cpus", limits.cpus.is_some(), &self.cpus),
            ("pids", limits.pids.is_some(), &self.pids),
        ];
        asked
            .into_iter()
            .filter(|(_, asked, enforced)| *asked && !enforced.enforced)
            .map(|(name, _, enforced)| (name, enforced.how.as_str()))
            .collect()
    }

    /// Checks that this host enforces all of a command's limits.
    ///
    /// # Errors
    /// `Unavailable` with the name of the first limit that is not enforced.
    pub fn check(&self, limits: &Limits) -> Result<()> {
        match self.missing(limits).first() {
            None => Ok(()),
            Some((name, why)) => {
                Err(Error::new(Code::Unavailable, format!("This host cannot enforce limits.{name}: {why}"))
                    .detail("limit", *name))
            }
        }
    }
}

/// Returns whether each kind of limit is enforced in `tree`; none is enforced without a tree.
pub(super) fn enforcement(tree: Option<&Tree>) -> Enforcement {
    let of = |controller: Controller| match tree.map(|tree| tree.source(controller)) {
        Some(ControllerSource::V2) => Enforced { enforced: true, how: "cgroup v2".into() },
        Some(ControllerSource::V1(_)) => Enforced { enforced: true, how: "cgroup v1".into() },
        Some(ControllerSource::Nothing(why)) => Enforced { enforced: false, how: why.clone() },
        None => Enforced {
            enforced: false,
            how: "no cgroup hierarchy is writable for berth; start it as root, or as a systemd service with \
                  Delegate=yes"
                .into(),
        },
    };
    let memory = of(Controller::Memory);
    let swap_file = tree.and_then(|tree| match tree.source(Controller::Memory) {
        ControllerSource::V2 => Some(tree.folder.join("memory.swap.max")),
        ControllerSource::V1(folder) => Some(folder.join("memory.memsw.limit_in_bytes")),
        ControllerSource::Nothing(_) => None,
    });
    let swap_bytes = match swap_file {
        Some(file) if file.exists() => memory.clone(),
        _ if no_swap() => Enforced { enforced: true, how: "this machine has no swap".into() },
        Some(_) => Enforced {
            enforced: false,
            how: "the kernel does not account for swap; add swapaccount=1 to its command line".into(),
        },
        None => memory.clone(),
    };
    Enforcement { memory_bytes: memory, swap_bytes, cpus: of(Controller::Cpu), pids: of(Controller::Pids) }
}

fn no_swap() -> bool {
    fs::read_to_string("/proc/meminfo").is_ok_and(|text| {
        text.lines().any(|line| {
            line.strip_prefix("SwapTotal:").is_some_and(|rest| rest.trim().split(' ').next() == Some("0"))
        })
    })
}

/// The control files of one group.
#[derive(Debug)]
pub(super) struct ControlFiles<'a> {
    pub(super) tree: &'a Tree,
    /// The group's folder in the v2 hierarchy.
    pub(super) folder: PathBuf,
    pub(super) path: &'a str,
}

impl ControlFiles<'_> {
    /// Returns the folder with the group's files of `controller`, and whether the folder is in v2. The folder may not
    /// exist.
    fn folder_of(&self, controller: Controller) -> Option<(PathBuf, bool)> {
        match self.tree.source(controller) {
            ControllerSource::V2 => Some((self.folder.clone(), true)),
            ControllerSource::V1(folder) => Some((folder.join(self.path), false)),
            ControllerSource::Nothing(_) => None,
        }
    }

    /// Sets `limits`; a missing value removes the limit. A limit without a controller is skipped; [`Enforcement`]
    /// reports such limits.
    pub(super) fn set_limits(&self, limits: &Limits) -> Result<()> {
        let or_max = |value: Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
        let put = |folder: &Path, file: &str, text: &str| -> Result<()> {
            let path = folder.join(file);
            write(&path, text).map_err(|error| match error.raw_os_error() {
                // v1 refuses a limit below the memory that cannot be reclaimed; v2 accepts the limit and kills
                // processes.
                Some(libc::EBUSY) => Error::new(
                    Code::Conflict,
                    format!("More memory is in use and cannot be reclaimed now; stop processes first ({file} {text})"),
                ),
                _ => Error::internal(format!("Could not write {text} to {}: {error}", path.display())),
            })
        };
        let here = |folder: &Path, v2: bool| v2 || folder.is_dir();
        match self.folder_of(Controller::Memory) {
            Some((folder, true)) => {
                put(&folder, "memory.max", &or_max(limits.memory_bytes))?;
                if folder.join("memory.swap.max").exists() {
                    put(&folder, "memory.swap.max", &or_max(limits.swap_bytes))?;
                }
            }
            Some((folder, false)) if here(&folder, false) => {
                let or_none = |value: Option<u64>| value.map_or("-1".to_owned(), |value| value.to_string());
                let both = "memory.memsw.limit_in_bytes";
                // The memory limit must never exceed the limit of memory and swap together, not even between two
                // writes.
                if folder.join(both).exists() {
                    put(&folder, both, "-1")?;
                }
                put(&folder, "memory.limit_in_bytes", &or_none(limits.memory_bytes))?;
                if folder.join(both).exists() {
                    let sum = limits.memory_bytes.zip(limits.swap_bytes).map(|(memory, swap)| memory + swap);
                    put(&folder, both, &or_none(sum))?;
                }
            }
            _ => {}
        }
        const PERIOD: u64 = 100_000;
        let quota = limits.cpus.map(|cpus| (cpus * PERIOD as f64).round().max(1000.0) as u64);
        match self.folder_of(Controller::Cpu) {
            Some((folder, true)) => put(&folder, "cpu.max", &format!("{} {PERIOD}", or_max(quota)))?,
            Some((folder, false)) if here(&folder, false) => {
                put(&folder, "cpu.cfs_period_us", &PERIOD.to_string())?;
                put(&folder, "cpu.cfs_quota_us", &quota.map_or("-1".to_owned(), |quota| quota.to_string()))?;
            }
            _ => {}
        }
        if let Some((folder, v2)) = self.folder_of(Controller::Pids) {
            if here(&folder, v2) {
                put(&folder, "pids.max", &or_max(limits.pids))?;
            }
        }
        Ok(())
    }

    /// Sets the group so that an OOM kill kills the whole group, because the rest of a command is of no use.
    pub(super) fn set_oom_group(&self) -> Result<()> {
        match self.folder_of(Controller::Memory) {
            Some((folder, true)) => {
                write(&folder.join("memory.oom.group"), "1").at("write", "memory.oom.group")
            }
            _ => Ok(()),
        }
    }

    /// Sets the group's weight in the competition for processors. The kernel's default is 100.
    pub(super) fn set_cpu_weight(&self, weight: u64) {
        let _ = match self.folder_of(Controller::Cpu) {
            Some((folder, true)) => write(&folder.join("cpu.weight"), &weight.to_string()),
            Some((folder, false)) => write(&folder.join("cpu.shares"), &(weight * 1024 / 100).to_string()),
            None => Ok(()),
        };
    }

    /// Returns the number of processes of the group that the kernel killed because memory ran out.
    pub(super) fn oom_kills(&self) -> Option<u64> {
        match self.folder_of(Controller::Memory)? {
            (folder, true) => field(&folder, "memory.events", "oom_kill"),
            (folder, false) => field(&folder, "memory.oom_control", "oom_kill"),
        }
    }

    /// Returns the usage of the group so far.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = Usage {
            // The kernel accounts for processor time even without a controller (cgroup-v2.rst, cpu.stat).
            cpu_micros: field(&self.folder, "cpu.stat", "usage_usec"),
            ..Usage::default()
        };
        match self.folder_of(Controller::Memory) {
            Some((folder, true)) => {
                usage.peak_memory_bytes = number(&folder, "memory.peak");
            }
            Some((folder, false)) => {
                usage.peak_memory_bytes = number(&folder, "memory.max_usage_in_bytes");
            }
            None => {}
        }
        usage.oom_killed = self.oom_kills().map(|count| count > 0);
        if let Some((folder, v2)) = self.folder_of(Controller::Pids) {
            usage.peak_pids = number(&folder, "pids.peak");
            // Linux 6.11 added `pids.events.local`. Older kernels count a refused fork in the group that forks and not
            // in the group with the limit, so a count of 0 does not mean that no fork was refused.
            let counts_here = !v2 || folder.join("pids.events.local").exists();
            usage.pids_refused =
                field(&folder, "pids.events", "max").filter(|count| *count > 0 || counts_here);
        }
        usage
    }

    /// Returns the usage of the processes that are in the group now.
    pub(super) fn current(&self) -> CurrentUsage {
        let mut current = CurrentUsage::default();
        match self.folder_of(Controller::Memory) {
            Some((folder, true)) => {
                current.memory_bytes = number(&folder, "memory.current");
                current.swap_bytes = number(&folder, "memory.swap.current");
            }
            Some((folder, false)) => {
                current.memory_bytes = number(&folder, "memory.usage_in_bytes");
                let both = number(&folder, "memory.memsw.usage_in_bytes");
                current.swap_bytes =
                    both.zip(current.memory_bytes).map(|(both, memory)| both.saturating_sub(memory));
            }
            None => {}
        }
        if let Some((folder, _)) = self.folder_of(Controller::Pids) {
            current.pids = number(&folder, "pids.current");
        }
        current
    }
}

/// A group's usage at one moment; a value is `None` if this host does not account for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CurrentUsage {
    /// Memory including page cache, in bytes.
    pub memory_bytes: Option<u64>,
    /// Swap, in bytes.
    pub swap_bytes: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

/// Opens the file of a cgroup folder to which a process writes to enter the folder.
pub(super) fn open_procs(folder: &Path) -> Result<OwnedFd> {
    let file = folder.join("cgroup.procs");
    rustix::fs::open(&file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).at("open", &file)
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    read(&folder.join(file), |text| text.trim().parse().ok())
}

fn field(folder: &Path, file: &str, name: &str) -> Option<u64> {
    read(&folder.join(file), |text| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    })
}

/// Reads a small file with a single read(2), which returns it completely. Some of these files are read for every
/// command that ends.
fn read<T>(file: &Path, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let fd = rustix::fs::open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = [0; 4096];
    let length = rustix::io::read(&fd, &mut bytes).ok()?;
    parse(std::str::from_utf8(&bytes[..length]).ok()?)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::spawn::{Spec, dev_null};
    use super::super::{Cgroups, Exit, Process, Stdio};
    use super::*;

    /// Runs a shell script to its end within `limits`, which this machine must be able to enforce.
    fn within(limits: Limits, script: &str) -> (Exit, Usage, Duration) {
        let name = format!("berth-unit-{}", uuid::Uuid::new_v4().simple());
        let cgroups = Cgroups::take(&name);
        let group = cgroups.group_with_limits("runs/x", Some(&limits)).unwrap();
        let stdio =
            || Stdio { stdin: dev_null().unwrap(), stdout: dev_null().unwrap(), stderr: dev_null().unwrap() };
        let begun = Instant::now();
        let mut child = Spec::new("/bin/sh").args(["-c", script]).start(stdio(), group).unwrap();
        let exit = loop {
            if let Some(exit) = child.try_exit().unwrap() {
                break exit;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{script} does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        let (usage, took) = (child.usage(), begun.elapsed());
        child.group().kill(None).unwrap();
        drop(child);
        cgroups.release();
        (exit, usage, took)
    }

    #[test]
    fn exceeding_the_memory_limit_kills_and_is_reported() {
        let limits = Limits { memory_bytes: Some(64 << 20), swap_bytes: Some(0), ..Limits::default() };
        let (exit, usage, _) = within(limits, "dd if=/dev/zero of=/dev/null bs=300M count=1");
        assert!(!exit.success(), "{exit:?}");
        assert_eq!(usage.oom_killed, Some(true));
        assert!(usage.peak_memory_bytes.is_some_and(|peak| peak > 32 << 20 && peak <= 64 << 20), "{usage:?}");
        let (exit, usage, _) = within(limits, "dd if=/dev/zero of=/dev/null bs=16M count=1");
        assert!(exit.success(), "{exit:?}");
        assert_eq!(usage.oom_killed, Some(false));
        assert!(usage.peak_memory_bytes.is_some_and(|peak| peak > 16 << 20), "{usage:?}");
    }

    #[test]
    fn processes_are_counted_and_the_next_one_is_refused() {
        let limits = Limits { pids: Some(8), ..Limits::default() };
        let (_, usage, _) = within(limits, "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.3 & done; wait");
        assert!(usage.pids_refused.is_some_and(|count| count > 0), "{usage:?}");
        assert_eq!(usage.peak_pids, Some(8));
    }

    #[test]
    fn processor_time_is_limited() {
        let limits = Limits { cpus: Some(0.2), ..Limits::default() };
        let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let (exit, usage, took) = within(limits, script);
        assert!(exit.success());
        let used = Duration::from_micros(usage.cpu_micros.unwrap());
        // One period more than the quota, because the quota may be used up at the start of a period.
        assert!(used <= took.mul_f64(0.2) + Duration::from_millis(100), "{used:?} of {took:?}");
    }

    #[test]
    fn limit_without_a_controller_is_refused_with_its_name() {
        let none = enforcement(None);
        let error = none.check(&Limits { memory_bytes: Some(64 << 20), ..Limits::default() }).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("limits.memory_bytes"), "{error}");
        none.check(&Limits::default()).unwrap();
    }
}
