//! The state of a container as clients see it. Data only.

use serde::Serialize;

use super::binds::BindMount;
use super::network;

/// State of a container for clients.
#[derive(Debug, Default, Serialize)]
pub struct ContainerStatus {
    /// `running`, `stopped`, or `changing` while it starts or stops.
    pub state: &'static str,
    /// Start time.
    pub since: Option<String>,
    /// Whether an earlier server started it.
    pub adopted: bool,
    /// First of its 65536 UIDs on the host.
    pub uid_base: Option<u32>,
    /// PID of its init on the host.
    pub init_pid: Option<i32>,
    /// Path as in /proc/PID/cgroup.
    pub cgroup: Option<String>,
    /// Version of its agent; the next start uses this server's.
    pub agent_version: Option<String>,
    /// Network of the running container; the configured one is the workspace's `network`.
    pub network: Option<network::NetworkStatus>,
    /// Host directories mounted in the running container; the configured ones are the workspace's `mounts`.
    pub mounts: Vec<BindMount>,
    /// Number of running commands and terminals.
    pub busy: usize,
    /// Idle time after which it is stopped; null: never.
    pub idle_timeout_secs: Option<u64>,
}
