//! Resource limits and usage of a group of processes, as plain data. `proc::control` reads and writes the kernel's
//! values.

use serde::{Deserialize, Serialize};

use crate::base::{Code, Error, Result};

/// Upper limits of a group; a missing value means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory including page cache, in bytes. If the group needs more, the kernel first reclaims memory, then kills
    /// processes.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Swap, in bytes; 0 disables it.
    #[serde(default)]
    pub swap_bytes: Option<u64>,
    /// Number of processors, for example 0.5 or 2.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// Number of processes and threads.
    #[serde(default)]
    pub pids: Option<u64>,
}

/// Minimum of `memory_bytes`: with less memory, not even a shell starts.
const MIN_MEMORY: u64 = 8 << 20;
/// The kernel's minimum of a processor quota: 1 ms of every 100 ms (sched-bwc.rst).
const MIN_CPUS: f64 = 0.01;
/// Maximum of `cpus`: more than any machine has, and too small to cause an overflow.
const MAX_CPUS: f64 = 8192.0;
/// The kernel's maximum number of processes (PID_MAX_LIMIT).
const MAX_PIDS: u64 = 4 << 20;
/// Maximum of `memory_bytes` and `swap_bytes`: the kernel's files can hold the sum of both.
const MAX_BYTES: u64 = 1 << 60;

impl Limits {
    /// Returns whether there is no limit.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// Checks that the kernel could set the limits; `field` is the name of the JSON object with the limits, for the
    /// error message.
    ///
    /// # Errors
    /// `InvalidPayload` with the name and the valid range of the first invalid limit.
    pub fn check(&self, field: &str) -> Result<()> {
        let refuse = |name: &str, what: String| {
            Err(Error::new(Code::InvalidPayload, format!("{field}.{name} is {what}"))
                .detail("field", format!("{field}.{name}")))
        };
        if self.memory_bytes.is_some_and(|bytes| !(MIN_MEMORY..=MAX_BYTES).contains(&bytes)) {
            return refuse("memory_bytes", format!("a number of bytes from {MIN_MEMORY} to {MAX_BYTES}"));
        }
        if self.swap_bytes.is_some_and(|bytes| bytes > MAX_BYTES) {
            return refuse("swap_bytes", format!("a number of bytes from 0 to {MAX_BYTES}"));
        }
        if self.cpus.is_some_and(|cpus| !(MIN_CPUS..=MAX_CPUS).contains(&cpus)) {
            return refuse("cpus", format!("a number of processors from {MIN_CPUS} to {MAX_CPUS}"));
        }
        if self.pids.is_some_and(|pids| !(1..=MAX_PIDS).contains(&pids)) {
            return refuse("pids", format!("a number of processes from 1 to {MAX_PIDS}"));
        }
        Ok(())
    }

    /// Returns these limits, in which missing values are taken from `others`.
    #[must_use]
    pub fn or(self, others: Limits) -> Limits {
        Limits {
            memory_bytes: self.memory_bytes.or(others.memory_bytes),
            swap_bytes: self.swap_bytes.or(others.swap_bytes),
            cpus: self.cpus.or(others.cpus),
            pids: self.pids.or(others.pids),
        }
    }
}

/// Resources that a group used until its end; a value is `None` if this host does not account for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of all processes of the group, in microseconds.
    pub cpu_micros: Option<u64>,
    /// Peak memory: including page cache if the group has its own memory accounting, else the peak of the largest
    /// single process.
    pub peak_memory_bytes: Option<u64>,
    /// Whether the kernel killed a process of the group because memory ran out.
    pub oom_killed: Option<bool>,
    /// Peak number of processes and threads.
    pub peak_pids: Option<u64>,
    /// Number of forks that failed because the limit of processes was reached.
    pub pids_refused: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_limits_are_refused_with_their_name() {
        let refused = |limits: Limits| limits.check("limits").unwrap_err().message().to_owned();
        assert!(
            refused(Limits { memory_bytes: Some(1), ..Limits::default() }).contains("limits.memory_bytes")
        );
        assert!(refused(Limits { cpus: Some(0.0), ..Limits::default() }).contains("limits.cpus"));
        assert!(refused(Limits { cpus: Some(f64::NAN), ..Limits::default() }).contains("limits.cpus"));
        assert!(refused(Limits { pids: Some(0), ..Limits::default() }).contains("limits.pids"));
        assert!(refused(Limits { swap_bytes: Some(u64::MAX), ..Limits::default() }).contains("swap_bytes"));
        Limits { memory_bytes: Some(64 << 20), swap_bytes: Some(0), cpus: Some(0.5), pids: Some(1) }
            .check("limits")
            .unwrap();
        Limits::default().check("limits").unwrap();
    }
}
