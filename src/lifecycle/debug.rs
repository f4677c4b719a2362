//! Information for finding out why a build or an init script failed. The workload can change the root, so every file
//! is opened beneath the root.

use std::path::Path;

use serde::Serialize;
use uuid::Uuid;

use super::resources::Enforcements;
use super::{Lifecycle, build_log_path, init};
use crate::base::ids::Distro;
use crate::base::{Result, clock, limits};
use crate::containers::container;
use crate::roots::RootKind;
use crate::store::file;
use crate::workspaces::{WorkspaceKind, WorkspaceStatus};

/// The number of last lines in the response of `init-log` (assets/docs/compatibility.md#builds-and-init-scripts).
const INIT_LOG_LINES: usize = 500;
/// The maximum number of bytes that `init-log` reads, from the end of the file.
const INIT_LOG_BYTES: u64 = 4 << 20;

/// The response of `debug`.
#[derive(Debug, Serialize)]
pub struct WorkspaceDebug {
    id: Uuid,
    name: String,
    status: WorkspaceStatus,
    path: String,
    path_exists: bool,
    /// The size of a container's files. It is measured again in the background while clients request it.
    size_bytes: Option<u64>,
    /// The part of `size_bytes` that is not shared with other workspaces.
    own_bytes: Option<u64>,
    /// When the size was measured.
    size_measured_at: Option<String>,
    directories: Vec<DebugDirectory>,
    has_bash: bool,
    init_script_exists: bool,
    init_script_modified: Option<String>,
    distro: Option<Distro>,
    /// How the container's root is stored; null if there is no root.
    root_kind: Option<RootKind>,
    last_error: Option<String>,
    running: bool,
    /// The state of the container; null for a host workspace.
    machine: Option<container::ContainerStatus>,
    /// Whether and how this host enforces limits.
    enforcement: Enforcements,
    /// One warning for each requested setting that this host cannot apply.
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct DebugDirectory {
    path: &'static str,
    exists: bool,
    file_count: Option<u64>,
}

/// The response of `init-log`.
#[derive(Debug, Serialize)]
pub struct InitLog {
    exists: bool,
    content: String,
    total_lines: Option<u64>,
    log_path: String,
}

/// The folders that `debug` of sandboxed.sh reports, in its order.
const DIRECTORIES: [&str; 7] = ["bin", "usr", "etc", "var", "var/log", "root", "tmp"];

impl Lifecycle {
    /// Returns the state of a workspace's folder.
    ///
    /// # Errors
    /// Fails with `WorkspaceNotFound`.
    pub fn debug(&self, id: Uuid) -> Result<WorkspaceDebug> {
        let workspace = self.registry.get(id)?;
        let record = workspace.record();
        let root = self.files(&workspace).ok();
        let count = |folder: &str| root.as_ref().and_then(|root| root.entry_count(folder).ok().flatten());
        let exists = |file: &str| root.as_ref().is_some_and(|root| root.exists(file).unwrap_or(false));
        let script = root.as_ref().and_then(|root| root.metadata(init::SCRIPT).ok().flatten());
        let container = record.view.workspace_type == WorkspaceKind::Container;
        let site = super::site(&workspace, &record);
        let on_host = container && self.roots.uses_host_programs(&site);
        let size = (container && root.is_some()).then(|| self.roots.size(&site)).flatten();
        let machine = container.then(|| self.engine.status(&workspace.machine_name()));
        let mut warnings = self.warnings(&workspace, &record);
        for bound in machine.iter().flat_map(|machine| &machine.mounts).filter(|bound| !bound.mapped) {
            warnings.push(format!(
                "Files in {} belong to the user `nobody` in the container, because neither the kernel, the file system nor \
                 systemd-nspawn could map their owner; only the permissions for others apply",
                bound.mount.target
            ));
        }
        Ok(WorkspaceDebug {
            id,
            name: record.view.name.as_str().to_owned(),
            status: record.view.status,
            path: record.view.path.clone(),
            path_exists: root.is_some(),
            size_bytes: size.map(|size| size.bytes),
            own_bytes: size.map(|size| size.own_bytes),
            size_measured_at: size.map(|size| clock::rfc3339(size.at)),
            directories: DIRECTORIES
                .map(|path| {
                    let file_count = match path {
                        // The container's /usr is mounted from the host.
                        "usr" if on_host => std::fs::read_dir("/usr").ok().map(|all| all.count() as u64),
                        _ => count(path),
                    };
                    DebugDirectory { path, exists: file_count.is_some(), file_count }
                })
                .into(),
            has_bash: exists("bin/bash")
                || exists("usr/bin/bash")
                || (on_host && Path::new("/usr/bin/bash").exists()),
            init_script_exists: script.is_some(),
            init_script_modified: script.and_then(|script| script.modified().ok()).map(clock::debug_time),
            distro: record.view.distro,
            root_kind: container.then(|| self.roots.kind(&site)).flatten(),
            last_error: record.view.error_message.clone(),
            running: machine.as_ref().is_some_and(|machine| machine.state == "running"),
            machine,
            enforcement: self.enforcements(&workspace, &record),
            warnings,
        })
    }

    /// Returns the last lines of the init script's log, or of the build log if there is no init log.
    ///
    /// # Errors
    /// Fails with `WorkspaceNotFound`, or with `Internal` if a log exists but cannot be read.
    pub fn init_log(&self, id: Uuid) -> Result<InitLog> {
        let workspace = self.registry.get(id)?;
        let log_path = format!("/{}", init::LOG);
        if let Ok(root) = self.files(&workspace) {
            for file in [init::LOG, init::OLD_LOG] {
                // If the log's path is that of a device, a folder or a loop of symbolic links, it is ignored.
                let Ok(Some(tail)) = root.read_tail(file, INIT_LOG_BYTES) else { continue };
                let total = root.count_lines(file).ok().flatten();
                return Ok(log_view(&tail.bytes, tail.complete, total, log_path));
            }
        }
        let build_log = build_log_path(&workspace);
        match file::read_optional(&build_log, limits::BUILD_LOG_BYTES + 4096)? {
            Some(bytes) => {
                let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
                Ok(log_view(&bytes, true, Some(lines), log_path))
            }
            None => Ok(InitLog { exists: false, content: String::new(), total_lines: None, log_path }),
        }
    }
}

fn log_view(bytes: &[u8], complete: bool, total_lines: Option<u64>, log_path: String) -> InitLog {
    let text = String::from_utf8_lossy(bytes);
    let mut lines: Vec<&str> = text.lines().collect();
    if !complete && !lines.is_empty() {
        // The first line of an incomplete tail may be truncated, so it is left out.
        lines.remove(0);
    }
    let skip = lines.len().saturating_sub(INIT_LOG_LINES);
    InitLog { exists: true, content: lines[skip..].join("\n"), total_lines, log_path }
}
