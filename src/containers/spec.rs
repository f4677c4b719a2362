//! What a container is started with: its place on the host, and nspawn's command line for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::enclose;
use crate::base::ids::Network;
use crate::proc::Limits;
use crate::proc::idmap::IDS;
use crate::roots::{RootLocation, RootMount, Roots};
use crate::store::allowlist::MountRequest;

/// The agent's program in every container.
pub const AGENT: &str = "/run/berth/agent";

/// Everything that a container's start needs to know.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Short and unique among all containers of the machine: `--machine=`.
    pub machine_name: String,
    /// What `hostname` says inside.
    pub host_name: String,
    /// The folder with its files.
    pub root: PathBuf,
    /// Where its socket, its state and our copy of resolv.conf lie; outside the root.
    pub runtime: PathBuf,
    /// The agent's binary.
    pub agent: PathBuf,
    /// What it sees of the network.
    pub network: Network,
    /// Folders of the host in it.
    pub mounts: Vec<MountRequest>,
    /// What everything in it may use together.
    pub limits: Limits,
    /// How large /tmp may become if it is to be in memory; `None`: it is on the disk.
    pub tmpfs_bytes: Option<u64>,
    /// It is stopped when it has done nothing for so long; `None`: never.
    pub idle_timeout: Option<Duration>,
}

/// nspawn(1) separates source and target by a colon.
pub(super) fn escape_bind_path(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
}

impl ContainerSpec {
    /// Where its root belongs.
    pub(super) fn root_location(&self) -> RootLocation {
        RootLocation { folder: self.runtime.clone(), root: self.root.clone() }
    }
}

/// What our own binary is called with, so that it becomes nspawn, so that it becomes our agent. `link`: the shell's part
/// in making its private network. `attach`: what brings the mounts, in front of nspawn.
pub(super) fn nspawn_args(
    place: &ContainerSpec,
    entry: &RootMount,
    nspawn: &Path,
    resolv_conf: &Path,
    link: Option<&str>,
    attach: &[String],
) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let tree = entry.tree.as_ref().map_or_else(|| enclose::NONE.to_owned(), Roots::child_path);
    // Its place in the server's own folder: nspawn resolves names, and those above an owner's folder can change.
    let root = text(&place.root_location().attached());
    let mut args = vec!["enclose".to_owned(), tree, root.clone()];
    match link {
        None => args.push(enclose::NONE.to_owned()),
        // The network namespace is nspawn's own and not one that nspawn makes: so it belongs to the host's users, and
        // root inside can change neither its addresses nor its rules.
        Some(script) => {
            let script = format!("{script}exec \"$@\"");
            args.extend([enclose::NETWORK, "/bin/sh", "-c", &script, "sh"].map(str::to_owned));
        }
    }
    args.extend_from_slice(attach);
    args.push(text(nspawn));
    let options = [
        // No systemd needed as PID 1, no unit, no machined; no `.nspawn` file from the root (CVE-2026-40226).
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
    // Root inside is nobody outside.
    args.extend(match entry.first_id {
        // The mount that it gets shows its files as its own already.
        Some(first) => [format!("--private-users={first}:{IDS}"), "--private-users-ownership=off".to_owned()],
        // `auto` maps ownership by an ID-mapped mount, and changes it on disk only where the kernel or the file
        // system cannot.
        None => ["--private-users=pick".to_owned(), "--private-users-ownership=auto".to_owned()],
    });
    args.push(format!("--machine={}", place.machine_name));
    args.push(format!("--hostname={}", place.host_name));
    if place.network == Network::None {
        args.push("--private-network".to_owned());
    }
    if let Some(bytes) = place.tmpfs_bytes {
        args.push(format!("--tmpfs=/tmp:mode=1777,nosuid,nodev,strictatime,size={bytes}"));
    }
    args.push(format!("--directory={root}"));
    args.push(format!("--bind-ro={}:{AGENT}", escape_bind_path(&place.agent)));
    args.push(format!("--bind-ro={}:/etc/resolv.conf", escape_bind_path(resolv_conf)));
    args.extend([AGENT, "agent"].map(str::to_owned));
    args
}
