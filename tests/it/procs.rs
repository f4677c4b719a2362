//! Facts about processes and mounts from the kernel, and waiting for them to change.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Polls until there is a result; the deadline is an argument, because a missing fact must fail the test instead of
/// blocking it.
#[track_caller]
pub fn wait_for<T>(what: &str, longest: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "timed out after {longest:?} waiting for: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// An argument for `sleep` that no other process on this machine has, so that the process can be found by it.
pub fn unique_secs() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let ours = u64::from(std::process::id()) * 100_000;
    (ours + 1_000_000_000 + NEXT.fetch_add(1, Ordering::Relaxed)).to_string()
}

/// All processes of the machine, including those in containers.
pub fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Arguments of a process; empty for a zombie, for a kernel thread and for a process that has exited.
pub fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|part| !part.is_empty())
        .map(|p| String::from_utf8_lossy(p).into_owned())
        .collect()
}

/// The running `sleep` processes with this argument.
pub fn sleeps(number: &str) -> Vec<u32> {
    all()
        .into_iter()
        .filter(|pid| {
            let arguments = arguments(*pid);
            arguments.len() == 2 && arguments[0].ends_with("sleep") && arguments[1] == number
        })
        .collect()
}

/// Processes with `text` somewhere in their arguments or in their environment.
pub fn naming(text: &str) -> Vec<u32> {
    let has = |pid: &u32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(text.len()).any(|part| part == text.as_bytes())
    };
    all().into_iter().filter(|pid| alive(*pid) && (has(pid, "cmdline") || has(pid, "environ"))).collect()
}

/// The host's pid of the one `sleep` with this argument, once it runs.
#[track_caller]
pub fn wait_sleep(number: &str) -> u32 {
    wait_for("a sleep to start", secs(20), || sleeps(number).first().copied())
}

/// Fails unless every such `sleep` exits within a moment: a killed process may still be exiting when the response
/// arrives here.
#[track_caller]
pub fn assert_dead(number: &str) {
    wait_for(&format!("sleep {number} to exit"), secs(2), || sleeps(number).is_empty().then_some(()));
}

/// The value of a line of `/proc/<pid>/status`.
pub fn status(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Real, effective, saved and file-system user id.
pub fn uids(pid: u32) -> Vec<u32> {
    let text = status(pid, "Uid").unwrap_or_default();
    text.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

/// The init process of the pid namespace of `pid`; `None` for the namespace of the machine itself.
pub fn init_of(pid: u32) -> Option<u32> {
    let home = namespace(pid)?;
    if Some(&home) == namespace(std::process::id()).as_ref() {
        return None;
    }
    all().into_iter().find(|other| {
        namespace(*other).as_ref() == Some(&home)
            && status(*other, "NSpid").is_some_and(|ids| ids.split_whitespace().next_back() == Some("1"))
    })
}

fn namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

pub fn parent(pid: u32) -> Option<u32> {
    status(pid, "PPid")?.parse().ok()
}

pub fn name(pid: u32) -> String {
    status(pid, "Name").unwrap_or_default()
}

/// Whether the process is running; a zombie is not.
pub fn alive(pid: u32) -> bool {
    status(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// Whether the process is in the foreground group of its terminal (proc(5): pgrp and tpgid).
pub fn in_foreground(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    fields.len() > 5 && fields[2] == fields[5]
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).expect("never process 0");
    // The process may have exited by itself.
    let _ = kill_process(pid, signal);
}

pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Everything mounted at or below `path`, in the order of mounting.
pub fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(path))
        .collect()
}

/// Processes that refer to `path`: in their arguments, their current folder, their root or their cgroup's name.
pub fn mentioning(path: &Path) -> Vec<(u32, Vec<String>)> {
    let needle = path.as_os_str().as_bytes();
    let of_path = |link: String| fs::read_link(link).is_ok_and(|target| target.starts_with(path));
    all()
        .into_iter()
        .filter(|pid| *pid != std::process::id() && alive(*pid))
        .filter(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.windows(needle.len()).any(|part| part == needle)
                || of_path(format!("/proc/{pid}/cwd"))
                || of_path(format!("/proc/{pid}/root"))
        })
        .map(|pid| (pid, arguments(pid)))
        .collect()
}

/// Resident memory in bytes.
pub fn memory(pid: u32, field: &str) -> u64 {
    let text = status(pid, field).unwrap_or_default();
    text.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}
