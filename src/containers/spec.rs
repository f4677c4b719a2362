//! The settings of a container, and the nspawn command line that they result in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::enclose;
use crate::base::ids::Network;
use crate::proc::Limits;
use crate::proc::idmap::IDS;
use crate::roots::{RootLocation, RootMount, Roots};
use crate::store::allowlist::MountRequest;

/// Path of the agent's binary in every container.
pub const AGENT: &str = "/run/berth/agent";

/// Settings for the start of a container.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Name of the container, short and unique on the host: nspawn's `--machine=`.
    pub machine_name: String,
    /// Host name inside the container.
    pub host_name: String,
    /// Path of the root in the workspace.
    pub root: PathBuf,
    /// Directory outside the root for the container's socket, state file and resolv.conf.
    pub runtime: PathBuf,
    /// Path of the agent's binary on the host.
    pub agent: PathBuf,
    pub network: Network,
    /// Host directories that are mounted into the container.
    pub mounts: Vec<MountRequest>,
    /// Limits for all processes of the container together.
    pub limits: Limits,
    /// Size of /tmp in memory; `None` keeps /tmp on disk.
    pub tmpfs_bytes: Option<u64>,
    /// Idle time after which the container is stopped; `None`: it is never stopped as idle.
    pub idle_timeout: Option<Duration>,
}

/// Escapes a path for nspawn(1)'s `--bind`, which separates source and target with a colon.
pub(super) fn escape_bind_path(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
}

impl ContainerSpec {
    pub(super) fn root_location(&self) -> RootLocation {
        RootLocation { folder: self.runtime.clone(), root: self.root.clone() }
    }
}

/// Returns the arguments with which our own binary executes nspawn, which then executes the agent. `link` is a
/// shell script that sets up the private network. `attach` is the command that prepares the bind mounts; it
/// precedes nspawn's command line.
pub(super) fn nspawn_args(
    spec: &ContainerSpec,
    entry: &RootMount,
    nspawn: &Path,
    resolv_conf: &Path,
    link: Option<&str>,
    attach: &[String],
) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let tree = entry.tree.as_ref().map_or_else(|| enclose::NONE.to_owned(), Roots::child_path);
    // Use the path in the server's own directory: nspawn resolves names, and the directories above the workspace's
    // path of the root can change.
    let root = text(&spec.root_location().attached());
    let mut args = vec!["enclose".to_owned(), tree, root.clone()];
    match link {
        None => args.push(enclose::NONE.to_owned()),
        // `berth enclose` creates the namespace, not nspawn, so that it belongs to the host's users and root
        // inside can change neither addresses nor rules.
        Some(script) => {
            let script = format!("{script}exec \"$@\"");
            args.extend([enclose::NETWORK, "/bin/sh", "-c", &script, "sh"].map(str::to_owned));
        }
    }
    args.extend_from_slice(attach);
    args.push(text(nspawn));
    let options = [
        // systemd is not PID 1; nspawn creates no unit, does not register with machined and reads no `.nspawn`
        // file from the root (CVE-2026-40226).
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--settings=no",
        "--no-new-privileges=yes",
        "--timezone=off",
        "--resolv-conf=off",
        "--link-journal=no",
        "--console=pipe",
    ];
    args.extend(options.map(str::to_owned));
    // Root inside the container is an unprivileged user outside.
    args.extend(match entry.first_id {
        // The root's mount already maps the owners of its files.
        Some(first) => [format!("--private-users={first}:{IDS}"), "--private-users-ownership=off".to_owned()],
        // `auto` uses an ID-mapped mount and changes owners on disk only where the kernel or file system does not
        // support that.
        None => ["--private-users=pick".to_owned(), "--private-users-ownership=auto".to_owned()],
    });
    args.push(format!("--machine={}", spec.machine_name));
    args.push(format!("--hostname={}", spec.host_name));
    if spec.network == Network::None {
        args.push("--private-network".to_owned());
    }
    if let Some(bytes) = spec.tmpfs_bytes {
        args.push(format!("--tmpfs=/tmp:mode=1777,nosuid,nodev,strictatime,size={bytes}"));
    }
    args.push(format!("--directory={root}"));
    args.push(format!("--bind-ro={}:{AGENT}", escape_bind_path(&spec.agent)));
    args.push(format!("--bind-ro={}:/etc/resolv.conf", escape_bind_path(resolv_conf)));
    args.extend([AGENT, "agent"].map(str::to_owned));
    args
}
