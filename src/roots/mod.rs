//! Container roots: created from a base image by the cheapest method that the file system supports, opened for readers,
//! passed to the container's start, and frozen as snapshots. Depends on neither workspaces nor HTTP.
//!
//! On disk every file of a root belongs to the IDs 0 to 65535, whatever its kind; mounts map them to the container's
//! own IDs. Therefore roots of containers with different users can share layers.
//!
//! A layered root is mounted nowhere on the host. It is assembled on first use in a private mount namespace
//! ([`namespace`]). The server opens its files by descriptor ([`Roots::files`]), and a container's start gets a clone
//! of the mount ([`Roots::mount_for_start`]). No mount remains after the server and the container have ended.
//!
//! Thread: `root-sizes` ([`size`]). Locks, in this order: `slots` for lookups; one root's slot, held while the root is
//! assembled, created or replaced; `ranges`, `reference_lock` and the layers' pins, leaves.

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

/// Number of unused roots that stay mounted for later requests.
const IDLE_ROOTS: usize = 64;

/// Location of a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootLocation {
    /// The workspace's directory, which no workload can change.
    pub folder: PathBuf,
    /// The workspace's path. If the owner named it, it contains the root ([`home`]).
    pub root: PathBuf,
}

impl RootLocation {
    /// Whether the root is stored in the workspace's own directory. An owner who names another path expects the files
    /// there.
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
    /// Held from adding a hold on an image until the file that needs the image is written, so that garbage collection
    /// sees both or neither.
    reference_lock: Mutex<()>,
    /// Callers that wait for exclusive access to a root. Background readers then close its files.
    exclusive_waiters: AtomicUsize,
    sizes: OnceLock<size::SizeMeasurer>,
}

/// One root.
#[derive(Debug)]
struct RootSlot {
    record: Option<RootRecord>,
    /// The mounted root, while it may be in use.
    view: Option<RootView>,
    last_used: Instant,
    /// Its files must not be opened at the moment.
    closed: bool,
}

/// The root of a container that is being started.
#[derive(Debug)]
pub struct RootMount {
    /// A mount to attach at the root's path; `None`: the files are there.
    pub tree: Option<OwnedFd>,
    /// First UID of the container on the host; `None`: nspawn picks one.
    pub first_id: Option<u32>,
    /// Must be kept while the container is running.
    pub handle: Option<RootHandle>,
    /// Whether the host's own programs belong to it.
    pub host: bool,
}

fn busy_error() -> Error {
    let message = "Files of the workspace are being read or written; try again later";
    Error::new(Code::Busy, message)
}

/// Counts as waiting for exclusive access while it exists.
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

/// Longest wait for readers before a root is replaced.
const READER_TIMEOUT: Duration = Duration::from_secs(5);

impl Roots {
    /// Opens the roots in `data_dir`. `wanted`: the only kind to create; `None`: the cheapest that works.
    ///
    /// # Errors
    /// When the data folder cannot be read or written.
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

    /// Returns the kinds that this host supports, probed once.
    pub fn capabilities(&self) -> &RootCapabilities {
        self.capabilities.get_or_init(|| capabilities::probe(self.layers.folder(), self.namespace_made()))
    }

    /// Returns the kind of new roots.
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

    /// Returns the slot of a root, reading its record if needed.
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

    /// Releases the root's hold on its image.
    fn release_image(&self, location: &RootLocation, record: Option<&RootRecord>) {
        let Some(image) = record.and_then(|record| record.stack.image.as_ref()) else { return };
        if let Err(error) = self.images.release(image, &holder(&location.folder)) {
            log::warn!("The image {} could not be released: {error}", image.short());
        }
    }

    /// Returns the kind of a root; `None` if there is no root.
    pub fn kind(&self, location: &RootLocation) -> Option<RootKind> {
        let slot = self.slot(location).ok()?;
        let kind = lock(&slot).record.as_ref().map_or(RootKind::Copy, |record| record.kind);
        let is_there = || {
            let home = location.home().ok().flatten();
            home.is_some_and(|home| home.root().symlink_metadata().is_ok_and(|meta| meta.is_dir()))
        };
        (kind == RootKind::Overlay || is_there()).then_some(kind)
    }

    /// Whether the host's own programs belong to the root. They are not among its files.
    pub fn uses_host_programs(&self, location: &RootLocation) -> bool {
        self.slot(location)
            .is_ok_and(|slot| lock(&slot).record.as_ref().is_some_and(|record| record.stack.host))
    }

    /// Opens the root's files. The container's workload can change them at any time.
    ///
    /// # Errors
    /// When there is no root, or it cannot be mounted.
    pub fn files(&self, location: &RootLocation) -> Result<Root> {
        match self.view(location)? {
            Some(view) => {
                let top = view.root().top.try_clone().at("duplicate", "a folder")?;
                Ok(Root::from_fd_holding(top, Arc::new(view)))
            }
            None => Root::open(&location.existing_home()?.root()),
        }
    }

    /// Whether the directory `rel` of a root may contain files that are not from its image.
    pub fn has_changes(&self, location: &RootLocation, rel: &str) -> bool {
        let Ok(slot) = self.slot(location) else { return false };
        let upper = lock(&slot).record.as_ref().and_then(|record| record.upper.clone());
        let root = match upper {
            Some(upper) => Root::open(&self.layers.path(&upper).join("fs")),
            None => location.existing_home().and_then(|home| Root::open(&home.root())),
        };
        root.is_ok_and(|root| root.is_dir(rel).unwrap_or(false))
    }

    /// Returns a layered root, mounted; `None` for other kinds.
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

    /// Returns the directories of a stack, topmost first.
    fn lowers(&self, stack: &record::LayerStack) -> Vec<PathBuf> {
        let layers = stack.layers.iter().rev().map(|layer| self.layers.path(layer).join("fs"));
        layers.chain(stack.image.as_ref().map(|image| self.images.root_of(image))).collect()
    }

    /// Unmounts the longest unused roots if there are many: each uses a descriptor and kernel memory.
    fn drop_idle_views(&self) {
        let all: Vec<_> = lock(&self.slots).values().cloned().collect();
        let mut idle = Vec::new();
        for slot in &all {
            // A locked slot is not idle.
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

    /// Returns the root for a container's start.
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

    /// Clones a root outside the workspace's own directory as a detached mount.
    fn clone_of_home(&self, location: &RootLocation) -> Result<OwnedFd> {
        let home = location.existing_home()?;
        file::create_dir_private(&location.attached())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, home.root(), flags).at("clone the mount of", &location.root)
    }

    /// Adopts the root that `leader`, the nspawn of an earlier server, has mounted.
    ///
    /// # Errors
    /// When it has none, or it cannot be adopted.
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

    /// Waits until no other caller uses the root's files and closes them. New callers cannot open them while the slot
    /// is locked. The container must be stopped.
    fn wait_exclusive(&self, slot: &mut MutexGuard<'_, RootSlot>) -> Result<()> {
        let _waiter = ExclusiveWaiter::new(&self.exclusive_waiters);
        if slot.view.as_ref().is_some_and(|view| !view.wait_unused(READER_TIMEOUT)) {
            return Err(busy_error());
        }
        slot.view = None;
        Ok(())
    }

    /// Removes unreferenced layers and releases images; slow.
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

    /// Returns a path through which a child can open one of our descriptors.
    pub(super) fn child_path(fd: &OwnedFd) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
    }
}
