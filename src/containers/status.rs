//! What is shown of a container. Only words.

use serde::Serialize;

use super::binds::BindMount;
use super::network;

/// What a person may want to know of a container.
#[derive(Debug, Default, Serialize)]
pub struct ContainerStatus {
    /// `running`, `stopped`, or `changing` while it starts or stops.
    pub state: &'static str,
    /// Since when it runs.
    pub since: Option<String>,
    /// It was started by an earlier server.
    pub adopted: bool,
    /// The first of its 65536 users on the host.
    pub uid_base: Option<u32>,
    /// Its PID 1 on the host.
    pub init_pid: Option<i32>,
    /// As /proc names it.
    pub cgroup: Option<String>,
    /// The version of the agent in it; the next start takes this server's.
    pub agent_version: Option<String>,
    /// Of the running container; what is wanted is the workspace's `network`.
    pub network: Option<network::NetworkStatus>,
    /// Folders of the host in the running container; what is wanted are the workspace's `mounts`.
    pub mounts: Vec<BindMount>,
    /// Commands and terminals in it.
    pub busy: usize,
    /// After so long without any it is stopped; null: never.
    pub idle_timeout_secs: Option<u64>,
}
