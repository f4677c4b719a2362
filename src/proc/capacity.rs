//! The machine's capacity, and the default limits that follow from it: even a small machine must survive a workload
//! that has no limits of its own.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Limits;

/// Memory reserved for the server and the kernel on a small machine.
const RESERVE_LEAST: u64 = 128 << 20;
/// Memory reserved for the server and the kernel on a large machine.
const RESERVE_MOST: u64 = 1 << 30;
/// Minimum of the default limit for a container's processes: a desktop browser or a build needs hundreds.
const CONTAINER_PIDS_LEAST: u64 = 512;
/// Maximum of the default limit for a container's processes, so that a fork bomb on a large machine stays small.
const CONTAINER_PIDS_MOST: u64 = 4096;

/// Resources available to the server's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Swap, in bytes.
    pub swap_bytes: u64,
    /// Number of processors.
    pub cpus: u64,
    /// Number of processes and threads.
    pub pids: u64,
}

impl Capacity {
    /// Returns the capacity of this machine.
    pub fn from_host() -> Capacity {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let size = |name: &str| {
            let kib = meminfo
                .lines()
                .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
            kib.map(|kib: u64| kib * 1024)
        };
        let number = |file: &str| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
        let memory = size("MemTotal:").unwrap_or(u64::MAX);
        let pids = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
        Capacity {
            memory_bytes: enclosing_memory().map_or(memory, |enclosing| memory.min(enclosing)),
            swap_bytes: size("SwapTotal:").unwrap_or(0),
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
            // 32768 is the kernel's default of pid_max.
            pids: pids.into_iter().flatten().min().unwrap_or(32768),
        }
    }

    /// Returns the limits of all workloads together: the machine's capacity without the reserve for the server and the
    /// kernel.
    pub fn total_limits(&self) -> Limits {
        let reserve = (self.memory_bytes / 10).clamp(RESERVE_LEAST, RESERVE_MOST);
        Limits {
            memory_bytes: Some(self.memory_bytes.saturating_sub(reserve).max(self.memory_bytes / 2)),
            swap_bytes: None,
            cpus: None,
            pids: Some((self.pids - self.pids / 4).max(1)),
        }
    }

    /// Returns the default limits of one container.
    pub fn container_limits(&self) -> Limits {
        Limits {
            memory_bytes: self.total_limits().memory_bytes,
            // A workload that swaps slows down the whole machine, so it gets only half of the swap space.
            swap_bytes: Some(self.swap_bytes / 2),
            cpus: None,
            pids: Some((self.pids / 8).clamp(CONTAINER_PIDS_LEAST, CONTAINER_PIDS_MOST)),
        }
    }
}

/// Returns the lowest memory limit of this process's cgroup and its ancestors.
fn enclosing_memory() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let number = |file: PathBuf| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let mut least = None;
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let (top, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            "memory" => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        for above in Path::new(path).ancestors() {
            let limit = number(Path::new(top).join(above).join(file));
            least = [least, limit].into_iter().flatten().min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_machine_keeps_a_reserve_and_a_large_one_a_bounded_reserve() {
        let of = |memory_bytes| Capacity { memory_bytes, swap_bytes: 0, cpus: 1, pids: 3800 };
        let all = |memory| of(memory).total_limits().memory_bytes.unwrap();
        assert_eq!(all(512 << 20), (512 << 20) - RESERVE_LEAST);
        assert_eq!(all(64 << 30), (64 << 30) - RESERVE_MOST);
        assert_eq!(all(100 << 20), 50 << 20);
        let one = of(512 << 20).container_limits();
        assert_eq!(one.pids, Some(CONTAINER_PIDS_LEAST));
        assert_eq!(one.swap_bytes, Some(0));
    }

    #[test]
    fn capacity_of_this_machine_is_plausible() {
        let here = Capacity::from_host();
        assert!(here.memory_bytes > 64 << 20 && here.memory_bytes < 1 << 50, "{here:?}");
        assert!(here.cpus > 0 && here.pids > 100, "{here:?}");
        here.total_limits().check("x").unwrap();
        here.container_limits().check("x").unwrap();
    }
}
