//! Container roots. This module creates them from a base image by the cheapest method that the file system
//! supports, opens their files for readers, mounts them for the start of a container, and freezes them as
//! snapshots. It does not depend on workspaces or HTTP.
//!
//! On disk, every file of a root belongs to the IDs 0 to 65535, whatever the root's kind; mounts map these IDs to
//! the container's own range. Therefore roots of containers with different ranges can share layers.
//!
//! A layered root is mounted nowhere on the host. The server mounts it on first use in a private mount namespace
//! ([`namespace`]), opens its files by descriptor ([`Roots::files`]), and passes a clone of the mount to a
//! container's start ([`Roots::mount_for_start`]). No mount remains after the server and the container have ended.
//!
//! Thread: `root-sizes` ([`size`]). Locks, in this order: `slots`, for lookups; one root's slot, held while the
//! root is mounted, created or replaced; `ranges`, `reference_lock` and that of the pinned layers, leaves.

mod capabilities;
mod disk_limit;
mod home;
mod layers;
mod make;
mod namespace;
mod record;
mod references;
mod restore;
pub mod saved;
mod size;
mod snapshot;
mod view;

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

pub use capabilities::RootCapabilities;
pub use record::{RootKind, workspace_folders};
pub use size::RootSize;
pub use snapshot::RootSnapshot;
pub use view::RootHandle;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use self::layers::LayerStore;
use self::namespace::MountNamespace;
use self::record::{IdRanges, RootRecord, holder};
use self::view::RootView;
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result};
use crate::images::Images;
use crate::proc::Cgroups;
use crate::store::beneath::Root;
use crate::store::file;

/// Maximum number of unused roots that stay mounted for later requests.
const IDLE_ROOTS: usize = 64;

/// The paths that determine where a root is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootLocation {
    /// The workspace's directory, which no workload can change.
    pub folder: PathBuf,
    /// The path of the root. If the workspace's owner named it, it is a directory that contains the root
    /// ([`home`]).
    pub root: PathBuf,
}

impl RootLocation {
    /// Returns whether the root is in the workspace's own directory, and not at a path that the owner named.
    fn is_own(&self) -> bool {
        self.root.starts_with(&self.folder)
    }
}

/// All roots of a server.
#[derive(Debug)]
pub struct Roots {
    images: Arc<Images>,
    cgroups: Cgroups,
    layers: LayerStore,
    forced_kind: Option<RootKind>,
    namespace: OnceLock<Result<Arc<MountNamespace>>>,
    capabilities: OnceLock<RootCapabilities>,
    ranges: Mutex<IdRanges>,
    slots: Mutex<HashMap<PathBuf, Arc<Mutex<RootSlot>>>>,
    /// Held from adding a hold on an image until the record that needs the image is written, so that garbage
    /// collection sees both or neither.
    reference_lock: Mutex<()>,
    /// Number of callers that wait for exclusive access to a root; while it is not 0, background readers close
    /// their files.
    exclusive_waiters: AtomicUsize,
    sizes: OnceLock<size::SizeMeasurer>,
}

/// The state of one root.
#[derive(Debug)]
struct RootSlot {
    record: Option<RootRecord>,
    /// The mounted root, if it is mounted.
    view: Option<RootView>,
    last_used: Instant,
    /// Whether callers may not open the root's files at the moment.
    closed: bool,
}

/// The root of a container that is being started, as nspawn needs it.
#[derive(Debug)]
pub struct RootMount {
    /// A detached mount to attach at the root's path; `None` if the files are already there.
    pub tree: Option<OwnedFd>,
    /// First UID of the container on the host; `None` if nspawn chooses it.
    pub first_id: Option<u32>,
    /// Keeps the root mounted; must be kept while the container is running.
    pub handle: Option<RootHandle>,
    /// Whether the host's own programs are to be mounted into the root.
    pub host: bool,
}

fn busy_error() -> Error {
    let message = "Files of the workspace are being read or written; try again later";
    Error::new(Code::Busy, message)
}

/// Counts a caller as waiting for exclusive access while this guard exists.
struct ExclusiveWaiter<'a>(&'a AtomicUsize);

impl ExclusiveWaiter<'_> {
    fn new(count: &AtomicUsize) -> ExclusiveWaiter<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        ExclusiveWaiter(count)
    }
}

impl Drop for ExclusiveWaiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Maximum wait for readers to close the files of a root before the root is replaced.
const READER_TIMEOUT: Duration = Duration::from_secs(5);

impl Roots {
    /// Opens the roots in `data_dir`. `wanted` is the only kind to create; `None` selects the cheapest supported
    /// kind.
    ///
    /// # Errors
    /// When the data directory cannot be read or written.
    pub fn open(
        data_dir: &Path,
        images: Arc<Images>,
        cgroups: Cgroups,
        wanted: Option<RootKind>,
    ) -> Result<Arc<Roots>> {
        let roots = Arc::new(Roots {
            images,
            cgroups,
            layers: LayerStore::open(data_dir)?,
            forced_kind: wanted,
            namespace: OnceLock::new(),
            capabilities: OnceLock::new(),
            ranges: Mutex::new(IdRanges::new(data_dir)?),
            slots: Mutex::default(),
            reference_lock: Mutex::default(),
            exclusive_waiters: AtomicUsize::new(0),
            sizes: OnceLock::new(),
        });
        let _ = roots.sizes.set(size::SizeMeasurer::start(Arc::downgrade(&roots))?);
        Ok(roots)
    }

    /// Returns the kinds of roots that this host supports; the first call tests them.
    pub fn capabilities(&self) -> &RootCapabilities {
        self.capabilities.get_or_init(|| capabilities::probe(self.layers.folder(), self.namespace_made()))
    }

    /// Returns the kind that new roots will have.
    ///
    /// # Errors
    /// `Unavailable` when this host does not support the kind of `--root-backend`.
    pub fn kind_to_make(&self) -> Result<RootKind> {
        let capabilities = self.capabilities();
        let (Some(wanted), refused) = (self.forced_kind, |kind: RootKind, why: &str| {
            let name = kind.as_str();
            Error::new(
                Code::Unavailable,
                format!(
                    "--root-backend {name} is not supported here: {why}; omit it to use a supported kind"
                ),
            )
        }) else {
            return Ok(capabilities.best);
        };
        match (wanted, &capabilities.no_overlay, &capabilities.no_reflink) {
            (RootKind::Overlay, Some(why), _) | (RootKind::Reflink, _, Some(why)) => {
                Err(refused(wanted, why))
            }
            _ => Ok(wanted),
        }
    }

    fn namespace_made(&self) -> &Result<Arc<MountNamespace>> {
        self.namespace.get_or_init(|| MountNamespace::new(&self.layers.folder().join(".mounts")))
    }

    fn namespace(&self) -> Result<&Arc<MountNamespace>> {
        self.namespace_made().as_ref().map_err(|error| {
            Error::new(Code::Unavailable, format!("Layered roots cannot be mounted here: {error}"))
        })
    }

    /// Returns the slot of a root; reads the root's record if the slot is new.
    fn slot(&self, location: &RootLocation) -> Result<Arc<Mutex<RootSlot>>> {
        if let Some(slot) = lock(&self.slots).get(&location.folder) {
            return Ok(slot.clone());
        }
        let record = RootRecord::read(&location.folder)?;
        let slot =
            Arc::new(Mutex::new(RootSlot { record, view: None, last_used: Instant::now(), closed: false }));
        Ok(lock(&self.slots).entry(location.folder.clone()).or_insert(slot).clone())
    }

    /// Drops the in-memory state of a root after its directory was removed.
    pub fn forget(&self, location: &RootLocation) {
        if let Some(sizes) = self.sizes.get() {
            sizes.forget(location);
        }
        let slot = lock(&self.slots).remove(&location.folder);
        let Some(slot) = slot else { return };
        let mut slot = lock(&slot);
        if let Some(first) = slot.record.as_ref().and_then(|record| record.first_id) {
            lock(&self.ranges).release(first);
        }
        slot.view = None;
        self.set_disk_limit(location, None);
        self.release_image(location, slot.record.as_ref());
    }

    /// Releases the root's hold on its image, so that the image can be removed.
    fn release_image(&self, location: &RootLocation, record: Option<&RootRecord>) {
        let Some(image) = record.and_then(|record| record.stack.image.as_ref()) else { return };
        if let Err(error) = self.images.release(image, &holder(&location.folder)) {
            log::warn!("The image {} could not be released: {error}", image.short());
        }
    }

    /// Returns the kind of a root; `None` if the root does not exist.
    pub fn kind(&self, location: &RootLocation) -> Option<RootKind> {
        let slot = self.slot(location).ok()?;
        let kind = lock(&slot).record.as_ref().map_or(RootKind::Copy, |record| record.kind);
        let is_there = || {
            let home = location.home().ok().flatten();
            home.is_some_and(|home| home.root().symlink_metadata().is_ok_and(|meta| meta.is_dir()))
        };
        (kind == RootKind::Overlay || is_there()).then_some(kind)
    }

    /// Returns whether the host's own programs are mounted into the root. They are not among its files.
    pub fn uses_host_programs(&self, location: &RootLocation) -> bool {
        self.slot(location)
            .is_ok_and(|slot| lock(&slot).record.as_ref().is_some_and(|record| record.stack.host))
    }

    /// Opens the root's files. Processes in the container can change the files at any time.
    ///
    /// # Errors
    /// When the root does not exist or cannot be mounted.
    pub fn files(&self, location: &RootLocation) -> Result<Root> {
        match self.view(location)? {
            Some(view) => {
                let top = view.root().top.try_clone().at("duplicate", "a folder")?;
                Ok(Root::from_fd_holding(top, Arc::new(view)))
            }
            None => Root::open(&location.existing_home()?.root()),
        }
    }

    /// Returns whether the directory `rel` of a root may contain files that are not from the image.
    pub fn has_changes(&self, location: &RootLocation, rel: &str) -> bool {
        let Ok(slot) = self.slot(location) else { return false };
        let upper = lock(&slot).record.as_ref().and_then(|record| record.upper.clone());
        let root = match upper {
            Some(upper) => Root::open(&self.layers.path(&upper).join("fs")),
            None => location.existing_home().and_then(|home| Root::open(&home.root())),
        };
        root.is_ok_and(|root| root.is_dir(rel).unwrap_or(false))
    }

    /// Mounts a layered root if needed and returns a handle; `None` for other kinds.
    fn view(&self, location: &RootLocation) -> Result<Option<RootHandle>> {
        let slot = self.slot(location)?;
        let mut slot = lock(&slot);
        let Some(record) = slot.record.clone().filter(|record| record.kind == RootKind::Overlay) else {
            return Ok(None);
        };
        if slot.closed {
            return Err(busy_error());
        }
        slot.last_used = Instant::now();
        if let Some(view) = &slot.view {
            return Ok(Some(view.handle()));
        }
        let view = RootView::new(self.namespace()?.merge(&self.overlay_spec(&record))?);
        let handle = view.handle();
        slot.view = Some(view);
        drop(slot);
        self.drop_idle_views();
        Ok(Some(handle))
    }

    fn overlay_spec(&self, record: &RootRecord) -> namespace::OverlaySpec {
        namespace::OverlaySpec {
            lowers: self.lowers(&record.stack),
            upper: record.upper.as_deref().map(|upper| self.layers.path(upper)),
            first_id: record.first_id,
        }
    }

    /// Returns the directories of a layer stack and its image, topmost first.
    fn lowers(&self, stack: &record::LayerStack) -> Vec<PathBuf> {
        let layers = stack.layers.iter().rev().map(|layer| self.layers.path(layer).join("fs"));
        layers.chain(stack.image.as_ref().map(|image| self.images.root_of(image))).collect()
    }

    /// Unmounts the longest unused roots if many are mounted: each uses a descriptor and kernel memory.
    fn drop_idle_views(&self) {
        let all: Vec<_> = lock(&self.slots).values().cloned().collect();
        let mut idle = Vec::new();
        for slot in &all {
            // Another thread holds this slot, so its root is in use.
            let Ok(now) = slot.try_lock() else { continue };
            if now.view.as_ref().is_some_and(RootView::is_unused) {
                idle.push((now.last_used, slot));
            }
        }
        idle.sort_unstable_by_key(|(used, _)| *used);
        let excess = idle.len().saturating_sub(IDLE_ROOTS);
        for (_, slot) in idle.iter().take(excess) {
            let mut slot = lock(slot);
            if slot.view.as_ref().is_some_and(RootView::is_unused) {
                slot.view = None;
            }
        }
    }

    /// Returns the mount of a root for a container's start.
    ///
    /// # Errors
    /// When the root cannot be mounted.
    pub fn mount_for_start(&self, location: &RootLocation) -> Result<RootMount> {
        let host = self.uses_host_programs(location);
        let Some(view) = self.view(location)? else {
            let tree = if location.is_own() { None } else { Some(self.clone_of_home(location)?) };
            return Ok(RootMount { tree, first_id: None, handle: None, host });
        };
        let slot = self.slot(location)?;
        let first_id = lock(&slot).record.as_ref().and_then(|record| record.first_id);
        Ok(RootMount { tree: Some(view.root().clone_mount()?), first_id, handle: Some(view), host })
    }

    /// Returns a detached clone of the mount of a root that is outside the workspace's own directory.
    fn clone_of_home(&self, location: &RootLocation) -> Result<OwnedFd> {
        let home = location.existing_home()?;
        file::create_dir_private(&location.attached())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, home.root(), flags).at("clone the mount of", &location.root)
    }

    /// Takes over the mount of the root in the mount namespace of `leader`, the nspawn of an earlier server.
    ///
    /// # Errors
    /// When `leader` has no such mount, or it cannot be taken over.
    pub fn adopt(&self, location: &RootLocation, leader: i32) -> Result<Option<RootHandle>> {
        let slot = self.slot(location)?;
        let mut slot = lock(&slot);
        if slot.record.as_ref().is_none_or(|record| record.kind != RootKind::Overlay) {
            return Ok(None);
        }
        if slot.view.is_some() {
            return Err(Error::internal("The root is already in use"));
        }
        let view = RootView::new(self.namespace()?.take_over(leader, &location.attached())?);
        let handle = view.handle();
        slot.view = Some(view);
        Ok(Some(handle))
    }

    /// Waits until no other caller uses the root's files, and unmounts the root. New callers cannot open the files
    /// while the slot is locked. The container must be stopped.
    fn wait_exclusive(&self, slot: &mut MutexGuard<'_, RootSlot>) -> Result<()> {
        let _waiter = ExclusiveWaiter::new(&self.exclusive_waiters);
        if slot.view.as_ref().is_some_and(|view| !view.wait_unused(READER_TIMEOUT)) {
            return Err(busy_error());
        }
        slot.view = None;
        Ok(())
    }

    /// Removes layers to which no record refers and releases images that no root or snapshot needs; slow.
    pub fn collect_garbage(&self) {
        let released = {
            let _naming = lock(&self.reference_lock); // LOCK: leaf
            references::image_holders(self.layers.data_dir())
                .and_then(|holders| self.images.retain_holders(|holder| holders.contains(holder)))
        };
        if let Err(error) = released.and_then(|()| self.layers.remove_unreferenced(references::named_layers))
        {
            log::warn!("Unused layers and images are kept: {error}");
        }
    }

    /// Returns a path through which a child process can open a descriptor of this process.
    pub(super) fn child_path(fd: &OwnedFd) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
    }
}
