//! Bind mounts of host directories into a container. [`prepare`] opens and clones each source once, without devices and
//! set-user-ID programs. `berth attach`, a single-threaded process in the mount namespace of the container's start,
//! moves the clones into a private directory, finds out whether the kernel can map their owners, and executes nspawn
//! ([`main`]). The path of a source is never opened twice, and nspawn never sees it.
//!
//! The same code mounts the host's own programs into a container that uses them, read-only and without the mounts
//! below them. Their owners are never mapped: inside, the files belong to the overflow user, so root in the
//! container cannot read files that are restricted to the host's users, including files created later.
//!
//! No threads, no locks.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use serde::{Deserialize, Serialize};

use super::spec::{ContainerSpec, escape_bind_path};
use crate::base::{At, Code, Error, Result};
use crate::images::host_image;
use crate::proc::{idmap, sys};
use crate::store::allowlist::{Allowlist, MountRequest};
use crate::store::file;

/// The first systemd version whose nspawn can map the owner of a bind mount to root in the container
/// (`rootidmap`).
pub(super) const MAPPING_SYSTEMD: u32 = 252;

/// Cloned mounts, kept open until the container has started.
#[derive(Debug)]
pub(super) struct PreparedBinds {
    _trees: Vec<OwnedFd>,
    /// The command `berth attach` with its arguments; it precedes nspawn's command line.
    pub(super) args: Vec<String>,
}

/// A bind mount of a running container, as `berth attach` made it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BindMount {
    #[serde(flatten)]
    pub mount: MountRequest,
    /// Whether root in the container acts as the source's owner, and the owner's files appear as root's. If
    /// `false`, all files belong to the overflow user inside, and only the permissions for others apply.
    pub mapped: bool,
}

/// The data that `berth attach` needs for one bind mount.
#[derive(Debug, Serialize, Deserialize)]
struct BindTask {
    mount: MountRequest,
    /// Path `/proc/PID/fd/N` of the cloned mount in the server; opening the path yields exactly that mount.
    fd: String,
    device: u64,
    inode: u64,
    /// Whether the source is one of the host's program directories, whose owners are not mapped.
    own: bool,
}

/// First ID of the user namespace that tests whether owners can be mapped; any value works.
const TRIED: u32 = idmap::IDS;
const FOLDER: &str = "mounts";
const RESULT: &str = "mounts.json";

/// Opens and clones the sources of all bind mounts, including the host's program directories if `host` is set.
///
/// # Errors
/// `MountNotAllowed`; `Unavailable` when the kernel cannot clone mounts.
pub(super) fn prepare(
    place: &ContainerSpec,
    allowlist: &Allowlist,
    host: bool,
) -> Result<Option<PreparedBinds>> {
    if place.mounts.is_empty() && !host {
        return Ok(None);
    }
    let folder = place.runtime.join(FOLDER);
    file::create_dir_private(&folder)?;
    let _ = std::fs::remove_file(place.runtime.join(RESULT));
    let (mut trees, mut tasks) = (Vec::new(), Vec::new());
    for (mount, fd) in if host { own_folders()? } else { Vec::new() } {
        trees.push(add_task(&mut tasks, mount, fd, true)?);
    }
    for (mount, opened) in place.mounts.iter().zip(allowlist.open(&place.mounts)?) {
        trees.push(add_task(&mut tasks, mount.clone(), opened.fd, false)?);
    }
    let tasks = serde_json::to_string(&tasks)
        .map_err(|error| Error::internal("Could not serialize the mounts").with_source(error))?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let args = vec![text(&place.agent), "attach".to_owned(), text(&place.runtime), tasks];
    Ok(Some(PreparedBinds { _trees: trees, args }))
}

/// Clones the mount of an opened source and adds it to `tasks`.
fn add_task(tasks: &mut Vec<BindTask>, mount: MountRequest, opened: OwnedFd, own: bool) -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&opened, "", flags).map_err(std::io::Error::from);
    let tree = tree.and_then(|tree| restrict(tree.as_fd(), mount.read_only).map(|()| tree));
    let tree = tree.map_err(|error| {
        let message = format!("{} cannot be mounted by this kernel: {error}", mount.source);
        Error::new(Code::Unavailable, message)
    })?;
    let stat = fstat(&opened).at("look at", &mount.source)?;
    let fd = format!("/proc/{}/fd/{}", std::process::id(), tree.as_raw_fd());
    tasks.push(BindTask { mount, fd, device: stat.st_dev, inode: stat.st_ino, own });
    Ok(tree)
}

/// Opens the program directories of the host that every user may enter.
fn own_folders() -> Result<Vec<(MountRequest, OwnedFd)>> {
    let mut all = Vec::new();
    for path in host_image::PROGRAM_FOLDERS.map(|name| format!("/{name}")) {
        let is_link = Path::new(&path).symlink_metadata().is_ok_and(|meta| meta.is_symlink());
        if is_link || !host_image::is_world_accessible(Path::new(&path)) {
            continue;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&path, flags, Mode::empty()).at("open", &path)?;
        all.push((MountRequest { source: path.clone(), target: path, read_only: true }, opened));
    }
    Ok(all)
}

/// Reads the list of mounts that `berth attach` wrote.
pub(super) fn read_result(runtime: &Path) -> Vec<BindMount> {
    let bytes = file::read_optional(&runtime.join(RESULT), 1 << 20).ok().flatten();
    bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Runs `berth attach RUNTIME TASKS NSPAWN ARGS…`: sets up the bind mounts and executes nspawn.
pub fn main(args: &[String]) -> ExitCode {
    let error = match attach(args) {
        Ok(error) | Err(error) => error,
    };
    // stderr is nspawn's log, from which the engine takes its error message.
    eprintln!("{error}");
    ExitCode::FAILURE
}

/// Attaches the mounts and executes nspawn. Returns only on failure.
fn attach(args: &[String]) -> Result<Error> {
    let [runtime, tasks, nspawn, rest @ ..] = args else {
        return Ok(Error::internal(
            "This command is internal to berth: berth attach RUNTIME TASKS NSPAWN ARGS",
        ));
    };
    let runtime = Path::new(runtime);
    let tasks: Vec<BindTask> = serde_json::from_str(tasks)
        .map_err(|error| Error::internal("Could not parse the mounts").with_source(error))?;
    let folder = runtime.join(FOLDER);
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("berth", &folder, "tmpfs", flags, Some(c"mode=0700,size=1m")).at("mount", &folder)?;
    let can_map = nspawn_maps_owners();
    let userns = if can_map { idmap::ids_from(TRIED).ok() } else { None };
    let mut command = vec![nspawn.clone()];
    let mut all = Vec::new();
    for (number, task) in tasks.into_iter().enumerate() {
        let place = folder.join(number.to_string());
        place_clone(&task, &place)?;
        let mapped = !task.own && userns.as_ref().is_some_and(|userns| can_be_mapped(&place, userns));
        let option = if task.mount.read_only { "--bind-ro" } else { "--bind" };
        let map = if mapped { ":rootidmap" } else { "" };
        let target = escape_bind_path(Path::new(&task.mount.target));
        command.push(format!("{option}={}:{target}{map}", escape_bind_path(&place)));
        if !task.own {
            all.push(BindMount { mount: task.mount, mapped });
        }
    }
    let result = serde_json::to_vec(&all)
        .map_err(|error| Error::internal("Could not serialize the mounts").with_source(error))?;
    file::replace(&runtime.join(RESULT), &result, 0o600)?;
    command.extend(rest.iter().cloned());
    let text = |text: String| crate::proc::c_string(&text, Code::Internal, "argument");
    let argv: Vec<CString> = command.into_iter().map(text).collect::<Result<_>>()?;
    let env =
        std::env::vars().map(|(name, value)| text(format!("{name}={value}"))).collect::<Result<Vec<_>>>()?;
    let stdio = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let error = sys::exec(&[argv], &env, stdio);
    Ok(Error::internal(format!("Could not start {nspawn}: {error}")))
}

/// Moves a cloned mount to `place`, the path that nspawn receives.
fn place_clone(task: &BindTask, place: &PathBuf) -> Result<()> {
    let source = &task.mount.source;
    let tree =
        rustix::fs::open(&task.fd, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).at("open", source)?;
    let stat = fstat(&tree).at("look at", source)?;
    if (stat.st_dev, stat.st_ino) != (task.device, task.inode) {
        return Err(Error::internal(format!(
            "{source} is not the mount that the server opened; the server may have exited"
        )));
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        std::fs::create_dir(place).at("make", place)?;
    } else {
        file::replace(place, b"", 0o600)?;
    }
    move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at("mount", source)
}

/// Returns whether the kernel and the file system can map owners at `place`; tests it on a temporary clone of the
/// mount.
fn can_be_mapped(place: &Path, userns: &OwnedFd) -> bool {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, place, flags).is_ok_and(|tree| idmap::id_map(tree.as_fd(), userns.as_fd(), true).is_ok())
}

/// Returns whether the installed nspawn supports `rootidmap`. The version is part of the name of systemd's shared
/// library.
pub fn nspawn_maps_owners() -> bool {
    let multiarch = format!("/usr/lib/{}-linux-gnu/systemd", std::env::consts::ARCH);
    let folders = ["/usr/lib/systemd", "/lib/systemd", "/usr/lib64/systemd", &multiarch];
    let folders = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok());
    let names = folders.flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let number = |name: String| {
        let rest = name.strip_prefix("libsystemd-shared-")?.trim_end_matches(".so").to_owned();
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
    };
    names.filter_map(number).max().is_some_and(|number| number >= MAPPING_SYSTEMD)
}

/// Removes device access, set-user-ID and, if `read_only` is set, write access from a mount, and makes the mount
/// private, so that later mounts at its source do not propagate to it.
fn restrict(mount: BorrowedFd<'_>, read_only: bool) -> std::io::Result<()> {
    let writing = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attr_set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | writing;
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    sys::set_mount_attributes(mount, &attributes)
}
