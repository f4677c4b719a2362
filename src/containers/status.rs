//! The state of a container as clients see it. Data only.

use serde::Serialize;

use super::binds::BindMount;
use super::network;

/// State of a container as clients see it.
#[derive(Debug, Default, Serialize)]
pub struct ContainerStatus {
    /// `running`, `stopped`, or `changing` while the container starts or stops.
    pub state: &'static str,
    /// Start time of the container.
    pub since: Option<String>,
    /// Whether an earlier server started the container.
    pub adopted: bool,
    /// First of the container's 65536 UIDs on the host.
    pub uid_base: Option<u32>,
    /// PID on the host of the container's init, the agent.
    pub init_pid: Option<i32>,
    /// Path of the container's cgroup, as in /proc/PID/cgroup.
    pub cgroup: Option<String>,
    /// Version of the running agent; the container's next start uses the version of this server.
    pub agent_version: Option<String>,
    /// Network of the running container; the workspace's `network` applies at its next start.
    pub network: Option<network::NetworkStatus>,
    /// Host directories mounted in the running container; the workspace's `mounts` apply at its next start.
    pub mounts: Vec<BindMount>,
    /// Number of running commands and terminals.
    pub busy: usize,
    /// Idle time after which the container is stopped; null: it is never stopped as idle.
    pub idle_timeout_secs: Option<u64>,
}
