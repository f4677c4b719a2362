//! The mount namespace in which layered roots are mounted. It is private, and the kernel removes it with its last
//! user, so no mount remains on the host, however the server ends.
//!
//! A mounted root is used only through descriptors: its files are opened beneath its top directory, and a
//! container's start attaches a clone of the mount in the container's own namespace. All clones must share one
//! superblock in the kernel: two overlays on the same upper layer would not see each other's changes.
//!
//! Threads: `root-mounts`, one per call and only for its duration, because a thread that enters another mount
//! namespace must not share its file system state with others. No locks.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::bounded;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    move_mount, open_tree, unmount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::base::thread::spawn;
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::{c_string, idmap, sys};
use crate::store::file;
use crate::store::tree::mounts_below;

/// A private mount namespace.
#[derive(Debug)]
pub(super) struct MountNamespace {
    fd: OwnedFd,
    /// Mount point of a tmpfs in the namespace, which contains the mount points of roots.
    mounts: PathBuf,
    next: AtomicU64,
}

/// The directories and the ID mapping of an overlay.
#[derive(Debug)]
pub(super) struct OverlaySpec {
    /// Directories of the read-only layers, topmost first.
    pub(super) lowers: Vec<PathBuf>,
    /// A directory with `fs`, which receives changes, and `work`; `None` for a read-only overlay.
    pub(super) upper: Option<PathBuf>,
    /// ID on the host of root in the container; `None` if IDs are not mapped.
    pub(super) first_id: Option<u32>,
}

/// A mounted root; dropping it unmounts the root. Open files and clones keep the file system alive.
#[derive(Debug)]
pub(super) struct MergedRoot {
    /// The root's top directory.
    pub(super) top: OwnedFd,
    at: PathBuf,
    namespace: Arc<MountNamespace>,
}

impl MountNamespace {
    /// Creates a mount namespace. Its mount points are in `folder`, which is created if needed.
    pub(super) fn new(folder: &Path) -> Result<Arc<MountNamespace>> {
        file::create_dir_private(folder)?;
        let mounts = folder.canonicalize().at("find", folder)?;
        let fd = run_on_thread({
            let mounts = mounts.clone();
            move || {
                sys::new_namespaces(UnshareFlags::NEWNS).at("make", "a mount namespace")?;
                let slaves = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
                mount_change("/", slaves).at("unshare", "mounts")?;
                // Remove mounts that are not needed here; they would prevent unmounting on the host.
                for point in mounts_below(Path::new("/"))?.iter().rev() {
                    if !mounts.starts_with(point) && point != Path::new("/proc") {
                        let _ = unmount(point, UnmountFlags::DETACH);
                    }
                }
                mount("berth", &mounts, "tmpfs", MountFlags::NODEV, Some(c"mode=0700"))
                    .at("mount a tmpfs on", &mounts)?;
                open_file("/proc/thread-self/ns/mnt")
            }
        })?;
        Ok(Arc::new(MountNamespace { fd, mounts, next: AtomicU64::new(0) }))
    }

    fn run_inside<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&MountNamespace) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let namespace = self.clone();
        run_on_thread(move || {
            sys::new_namespaces(UnshareFlags::FS).at("leave", "the file system's view")?;
            namespace.enter()?;
            work(&namespace)
        })
    }

    fn enter(&self) -> Result<()> {
        enter(&self.fd)
    }

    /// Creates a mount point for a root or layer.
    fn new_mount_point(&self) -> Result<PathBuf> {
        let point = self.mounts.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&point).at("make", &point)?;
        Ok(point)
    }

    /// Mounts an overlay. Only one overlay at a time may use an upper layer.
    pub(super) fn merge(self: &Arc<Self>, layers: &OverlaySpec) -> Result<MergedRoot> {
        let ids = layers.first_id.map(idmap::ids_from).transpose()?;
        // Clone the mounts before the thread changes its namespace: the layers are in the host's namespace.
        let shown = |path: &Path, read_only: bool| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let tree = open_tree(CWD, path, flags).at("clone the mount of", path)?;
            if let Some(ids) = &ids {
                idmap::id_map(tree.as_fd(), ids.as_fd(), read_only).at("map the ids of", path)?;
            }
            Ok::<_, Error>(tree)
        };
        let lowers = layers.lowers.iter().map(|path| shown(path, true)).collect::<Result<Vec<OwnedFd>>>()?;
        let upper = layers.upper.as_deref().map(|path| shown(path, false)).transpose()?;
        let (top, at) = self.run_inside(move |namespace| {
            let at = namespace.new_mount_point()?;
            let mut points = Vec::new();
            let merged = attach_all(namespace, lowers.iter().chain(&upper), &mut points)
                .and_then(|()| mount_overlay(&at, &lowers, upper.as_ref()))
                .and_then(|()| open_folder(&at));
            // The overlay has its own clones of the layers' mounts.
            points.iter().for_each(|point| remove_mount_point(point));
            if merged.is_err() {
                remove_mount_point(&at);
            }
            Ok((merged?, at))
        })?;
        Ok(MergedRoot { top, at, namespace: self.clone() })
    }

    /// Takes over the root that process `pid` of an earlier server has mounted at `path`.
    pub(super) fn take_over(self: &Arc<Self>, pid: i32, path: &Path) -> Result<MergedRoot> {
        let theirs = open_file(&format!("/proc/{pid}/ns/mnt"))?;
        let path = path.to_owned();
        let (top, at) = run_on_thread({
            let namespace = self.clone();
            move || {
                sys::new_namespaces(UnshareFlags::FS).at("leave", "the file system's view")?;
                enter(&theirs)?;
                let tree = clone_of(&path)?;
                namespace.enter()?;
                let at = namespace.new_mount_point()?;
                attach(&tree, &at)?;
                Ok((open_folder(&at)?, at))
            }
        })?;
        Ok(MergedRoot { top, at, namespace: self.clone() })
    }
}

impl MergedRoot {
    /// Returns a detached clone of the root's mount.
    pub(super) fn clone_mount(&self) -> Result<OwnedFd> {
        let at = self.at.clone();
        self.namespace.run_inside(move |_| clone_of(&at))
    }
}

impl Drop for MergedRoot {
    fn drop(&mut self) {
        let at = self.at.clone();
        let done = self.namespace.run_inside(move |_| {
            remove_mount_point(&at);
            Ok(())
        });
        if let Err(error) = done {
            log::error!("A root stays mounted until the server exits: {error}");
        }
    }
}

fn run_on_thread<R: Send + 'static>(work: impl FnOnce() -> Result<R> + Send + 'static) -> Result<R> {
    // The channel carries one result, which is received at once.
    let (sender, receiver) = bounded(1);
    let thread = spawn("root-mounts".into(), limits::STACK, move || {
        let _ = sender.send(work());
    })?;
    let done = receiver.recv().map_err(|_| Error::internal("A root could not be mounted"));
    drop(thread);
    done?
}

fn enter(namespace: &OwnedFd) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .at("enter", "a mount namespace")
}

fn attach_all<'a>(
    namespace: &MountNamespace,
    trees: impl Iterator<Item = &'a OwnedFd>,
    points: &mut Vec<PathBuf>,
) -> Result<()> {
    for tree in trees {
        let point = namespace.new_mount_point()?;
        points.push(point.clone());
        // Before Linux 6.15 an overlay accepts only attached layers.
        attach(tree, &point)?;
    }
    Ok(())
}

fn attach(tree: &OwnedFd, point: &Path) -> Result<()> {
    move_mount(tree, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at("attach", point)
}

fn mount_overlay(at: &Path, lowers: &[OwnedFd], upper: Option<&OwnedFd>) -> Result<()> {
    // Name the layers by descriptor: mount options are limited to one page, too short for arbitrary paths.
    let named = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut options = format!("lowerdir={}", lowers.iter().map(named).collect::<Vec<_>>().join(":"));
    if let Some(upper) = upper {
        let upper = named(upper);
        options += &format!(",upperdir={upper}/fs,workdir={upper}/work");
    }
    // `index=off`: an index ties the upper layer to the exact inodes of the lower ones, but the data directory may
    // be copied to another disk. `redirect_dir` allows renaming directories of lower layers, as on any other file
    // system.
    options += ",index=off,metacopy=off,redirect_dir=on";
    let options = c_string(&options, Code::Internal, "options")?;
    mount("overlay", at, "overlay", MountFlags::NODEV, Some(options.as_c_str())).at("mount an overlay on", at)
}

fn clone_of(path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, path, flags).at("clone the mount of", path)
}

fn remove_mount_point(point: &Path) {
    let _ = unmount(point, UnmountFlags::DETACH);
    let _ = std::fs::remove_dir(point);
}

fn open_folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at("open", path)
}

fn open_file(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at("open", path)
}
