//! What a group of processes may use, what it used, and what of that this host can enforce. Only words: where the
//! kernel keeps them is `proc::control`'s business.

use serde::{Deserialize, Serialize};

use crate::base::{Code, Error, Result};

/// Upper bounds; what is not named is not bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory with page cache, in bytes. Beyond it the kernel first reclaims, then kills.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Swap, in bytes; 0: none.
    #[serde(default)]
    pub swap_bytes: Option<u64>,
    /// Processors, e.g. 0.5 or 2.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// Processes and threads at once.
    #[serde(default)]
    pub pids: Option<u64>,
}

/// Below it not even a shell starts.
const LEAST_MEMORY: u64 = 8 << 20;
/// The kernel's shortest share: 1 ms of every 100 ms (sched-bwc.rst).
const LEAST_CPUS: f64 = 0.01;
/// More than any machine has; keeps the arithmetic far from its edges.
const MOST_CPUS: f64 = 8192.0;
/// The kernel's own cap of process ids (PID_MAX_LIMIT).
const MOST_PIDS: u64 = 4 << 20;
/// So that no sum of two overflows what the kernel's files take.
const MOST_BYTES: u64 = 1 << 60;

impl Limits {
    /// Whether nothing is bounded.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }

    /// Whether a kernel could hold them; `field` is what the client called the object.
    ///
    /// # Errors
    /// `InvalidPayload` with the field and what it may be.
    pub fn check(&self, field: &str) -> Result<()> {
        let refuse = |name: &str, what: String| {
            Err(Error::new(Code::InvalidPayload, format!("{field}.{name} is {what}"))
                .detail("field", format!("{field}.{name}")))
        };
        if self.memory_bytes.is_some_and(|bytes| !(LEAST_MEMORY..=MOST_BYTES).contains(&bytes)) {
            return refuse("memory_bytes", format!("a number of bytes from {LEAST_MEMORY} to {MOST_BYTES}"));
        }
        if self.swap_bytes.is_some_and(|bytes| bytes > MOST_BYTES) {
            return refuse("swap_bytes", format!("a number of bytes from 0 to {MOST_BYTES}"));
        }
        if self.cpus.is_some_and(|cpus| !(LEAST_CPUS..=MOST_CPUS).contains(&cpus)) {
            return refuse("cpus", format!("a number of processors from {LEAST_CPUS} to {MOST_CPUS}"));
        }
        if self.pids.is_some_and(|pids| !(1..=MOST_PIDS).contains(&pids)) {
            return refuse("pids", format!("a number of processes from 1 to {MOST_PIDS}"));
        }
        Ok(())
    }

    /// These, and `others` where these say nothing.
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

/// What a group used until its end; `None` where this host cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of everything in the group, in microseconds.
    pub cpu_micros: Option<u64>,
    /// The most memory at once: with page cache where the group has an account of its own, else the largest single
    /// process's.
    pub peak_memory_bytes: Option<u64>,
    /// The kernel killed something of the group for want of memory.
    pub oom_killed: Option<bool>,
    /// The most processes and threads at once.
    pub peak_pids: Option<u64>,
    /// How often a fork failed because of the limit of processes.
    pub pids_refused: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_no_kernel_holds_are_named() {
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
