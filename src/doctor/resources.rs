//! Checks the host's resources and which limits can be enforced on them: cgroups, disk, memory, descriptors.

use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::process::{Resource, getrlimit};

use super::{Check, ScratchFolder, Subject, is_root, run};
use crate::base::limits;
use crate::base::size::bytes;
use crate::proc::confinement::Confinement;
use crate::proc::spawn::protect_from_oom;
use crate::store::quota;

/// Minimum disk space for a container: a minimal Debian takes about 200 MB, and its packages take as much again
/// during the build.
const ROOT_BYTES: u64 = 1 << 30;
/// Disk space below which the doctor warns.
const COMFORT_BYTES: u64 = 5 << 30;
/// Minimum number of free inodes for a container: a minimal Debian has about 10,000 files.
const ROOT_FILES: u64 = 30_000;
/// Available memory below which the doctor warns: apt and dpkg take about 200 MB.
const COMFORT_MEMORY: u64 = 512 << 20;
/// Limit of processes and threads below which the doctor warns; `--max-connections`, `--max-runs` and workloads
/// share this limit.
const COMFORT_PROCESSES: u64 = 4096;

/// Checks whether the server can reliably kill all processes of a command.
pub(super) fn groups(subject: &Subject) -> Check {
    if subject.cgroups.kills_reliably() {
        let kind = if subject.cgroups.only_v2() { "cgroup v2" } else { "cgroup v2 beside v1" };
        return Check::ok("cgroups", format!("{kind}; no process survives the end of its command"));
    }
    Check::warn(
        "cgroups",
        "No writable cgroup v2 here: a command that hides its children well can leave some behind",
        if is_root() && !Confinement::from_proc_self().sys_admin {
            super::kernel::OUTER
        } else {
            "start berth as root (`berth install` makes it a service), or, for another user, in a systemd unit with Delegate=yes"
        },
    )
}

/// Checks whether the server can protect itself from the OOM killer, as it does at its start.
pub(super) fn oom() -> Check {
    match protect_from_oom() {
        Ok(()) => Check::ok("oom", "when memory runs out, berth itself is killed last"),
        Err(error) => Check::warn(
            "oom",
            format!(
                "When memory runs out, the kernel may kill berth itself instead of a command on the host: its \
                 oom_score_adj cannot be lowered ({error})"
            ),
            "start berth with CAP_SYS_RESOURCE, or as a systemd service (`berth install`), whose unit sets OOMScoreAdjust=-900",
        ),
    }
}

/// Checks which resource limits the host enforces.
pub(super) fn enforcement(subject: &Subject) -> Vec<Check> {
    let all = subject.cgroups.enforcement();
    let rows = [
        ("limit of memory", &all.memory_bytes),
        ("limit of swap", &all.swap_bytes),
        ("limit of processors", &all.cpus),
        ("limit of processes", &all.pids),
    ];
    let row = |(name, enforced): (&str, &crate::proc::Enforced)| {
        if enforced.enforced {
            return Check::ok(name, enforced.how.clone());
        }
        let (found, fix) =
            enforced.how.split_once("; ").unwrap_or((&enforced.how, "switch the controller on"));
        Check::warn(name, found, fix)
    };
    let folder = subject.data_dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let disk = match quota::check(folder) {
        Ok(()) => Check::ok("limit of disk", "project quotas"),
        Err(why) => {
            Check::warn("limit of disk", format!("{why}; resources.disk_bytes is not enforced"), quota::HELP)
        }
    };
    rows.into_iter().map(row).chain([disk]).collect()
}

/// Checks whether programs can be executed and device nodes work in the data directory, as debootstrap requires.
pub(super) fn data_folder(subject: &Subject, scratch: &ScratchFolder) -> Check {
    let name = "data folder";
    let shown = subject.data_dir.display();
    let remount = "mount its file system without nodev and noexec, or choose another place with --data-dir";
    let program = scratch.path().join("program");
    let made = crate::store::file::write_atomic(&program, b"#!/bin/sh\n", 0o755);
    if let Err(error) = made {
        return Check::fail(
            name,
            format!("{shown} cannot be written: {error}"),
            "free some space, or choose another place with --data-dir",
        );
    }
    if let Err(why) = run(subject, &program, &[]) {
        return Check::fail(name, format!("No program can be started in {shown}: {why}"), remount);
    }
    if is_root() {
        let device = scratch.path().join("null");
        // /dev/null has the device number 1:3 (null(4)).
        let made = mknodat(CWD, &device, FileType::CharacterDevice, Mode::RUSR, makedev(1, 3));
        if let Err(error) = made {
            return Check::fail(
                name,
                format!("No device can be made in {shown}, as every build must: {error}"),
                "start berth as root of the machine itself, or with CAP_MKNOD in the outer container",
            );
        }
        if let Err(error) = fs::File::open(&device) {
            return Check::fail(name, format!("No device works in {shown}: {error}"), remount);
        }
    }
    let note = if subject.data_dir.is_dir() { "" } else { " (made at the first start)" };
    Check::ok(name, format!("{shown}{note}"))
}

/// Checks whether the disk has space for roots.
pub(super) fn space(subject: &Subject) -> Vec<Check> {
    let folder = subject.data_dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let name = "disk";
    let Ok(space) = rustix::fs::statvfs(folder) else {
        return vec![Check::warn(name, "its size cannot be read", "look at it with df")];
    };
    let (free, all) = (space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize);
    let found = format!("{} free of {}", bytes(free), bytes(all));
    let fix = "free some space, or choose a larger disk with --data-dir";
    let mut checks = vec![if free < ROOT_BYTES {
        Check::fail(name, format!("{found}: not enough for one container"), fix)
    } else if free < COMFORT_BYTES {
        Check::warn(name, format!("{found}: enough for few containers"), fix)
    } else {
        Check::ok(name, found)
    }];
    // Some file systems allocate inodes on demand and report 0.
    if space.f_files > 0 && space.f_favail < ROOT_FILES {
        let found = format!("{} files can still be made: not enough for one container", space.f_favail);
        checks.push(Check::fail("inodes", found, fix));
    }
    checks
}

/// Checks memory, and the limits of open files and processes.
pub(super) fn machine(subject: &Subject) -> Vec<Check> {
    let mut checks = Vec::new();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
    };
    if let Some((free, all)) = memory("MemAvailable").zip(memory("MemTotal")) {
        let swap = memory("SwapTotal").unwrap_or(0);
        let found = format!("{} available of {}, swap {}", bytes(free), bytes(all), bytes(swap));
        checks.push(if free < COMFORT_MEMORY {
            Check::warn(
                "memory",
                format!("{found}: little for builds"),
                "stop unneeded programs, or add memory or swap",
            )
        } else {
            Check::ok("memory", found)
        });
    }
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let wanted =
        (subject.max_connections * limits::DESCRIPTORS_PER_CONNECTION + limits::DESCRIPTORS_RESERVED) as u64;
    let shown = if files == u64::MAX { "no limit".to_owned() } else { format!("{files}") };
    checks.push(if files < wanted {
        Check::warn(
            "open files",
            format!("{shown}: too few for {} connections (--max-connections)", subject.max_connections),
            format!("ulimit -Hn {wanted} before the start, or LimitNOFILE={wanted} in the service"),
        )
    } else {
        Check::ok("open files", shown)
    });
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let own = getrlimit(Resource::Nproc).current.filter(|_| !is_root());
    let most = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max"), own];
    if let Some(most) = most.into_iter().flatten().min() {
        checks.push(if most < COMFORT_PROCESSES {
            Check::warn(
                "processes",
                format!("{most} at once"),
                "raise kernel.pid_max, kernel.threads-max or ulimit -u, whichever is the lowest",
            )
        } else {
            Check::ok("processes", format!("{most} at once"))
        });
    }
    checks
}
