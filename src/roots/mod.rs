//! Container roots: made from a base image by the cheapest way that the file system has, shown to whoever works in them,
//! handed to the container that starts in them, frozen as snapshots. Knows folders and images, neither workspaces nor HTTP.
//!
//! On disk every file of a root belongs to the ids 0 to 65535, whatever its kind; mounts show them as the container's own.
//! So layers can be shared by roots whose containers have different users.
//!
//! A layered root is mounted nowhere on the host. It is put together in a mount namespace of ours on first use
//! ([`namespace`]); the server opens files in it by descriptor ([`Roots::files`]) and a container's start gets a clone of
//! the mount ([`Roots::mount_for_start`]). Nothing is left of it when the server and the container have ended.
//!
//! Thread: `root-sizes` ([`size`]). Locks, in this order: `slots` to look one up; one root's slot, held while it is put together, made or replaced;
//! `ranges`, `naming` and the layers' pins, leaves.

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

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use self::layers::LayerStore;
use self::namespace::{MergedRoot, MountNamespace};
use self::record::{IdRanges, RootRecord, holder};
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, limits};
use crate::images::Images;
use crate::proc::Cgroups;
use crate::store::beneath::Root;
use crate::store::file;

/// Where a root belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootLocation {
    /// The workspace's folder, which nothing of a workload can change.
    pub folder: PathBuf,
    /// What the workspace calls its path. Where the owner named it, it contains the root ([`home`]).
    pub root: PathBuf,
}

impl RootLocation {
    /// Whether the root's place is the workspace's own folder. Somebody who names another one wants the files there.
    fn is_own(&self) -> bool {
        self.root.starts_with(&self.folder)
    }
}

/// All roots.
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
    /// Held while something that needs an image tells the image and then names it in a file, so that nobody looks between.
    reference_lock: Mutex<()>,
    /// How many want a root for themselves: whoever has files of one open only to look lets go.
    exclusive_waiters: AtomicUsize,
    sizes: OnceLock<size::SizeMeasurer>,
}

/// One root.
#[derive(Debug)]
struct RootSlot {
    state: Option<RootRecord>,
    /// Its files put together, as long as somebody may want them.
    view: Option<Arc<MergedRoot>>,
    last_used: Instant,
    /// Nobody may have its files now.
    closed: bool,
}

/// What a container's start needs of its root.
#[derive(Debug)]
pub struct RootMount {
    /// A mount to attach at the root's path; none: the files are there.
    pub tree: Option<OwnedFd>,
    /// The first of its users outside; none: nspawn picks one.
    pub first_id: Option<u32>,
    /// To be kept as long as the container runs.
    pub handle: Option<RootHandle>,
    /// The machine's own programs belong to it.
    pub host: bool,
}

/// Keeps a root put together.
#[derive(Clone, Debug)]
pub struct RootHandle(#[expect(dead_code, reason = "held, not used")] Arc<MergedRoot>);

fn busy_error() -> Error {
    let message = "Files of the workspace are being read or written; try again when that has ended";
    Error::new(Code::Busy, message)
}

/// Counts as impatient while it lives.
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

/// How long whoever replaces a root waits for those who have its files open.
const READER_TIMEOUT: Duration = Duration::from_secs(5);

impl Roots {
    /// Opens what there is in `data_dir`. `wanted`: the only way that roots may be made; none: the cheapest that works.
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

    /// What this host can do; tried out once.
    pub fn capabilities(&self) -> &RootCapabilities {
        self.capabilities.get_or_init(|| capabilities::probe(self.layers.folder(), self.namespace_made()))
    }

    /// The kind of the roots that are made from now on.
    ///
    /// # Errors
    /// `Unavailable` when `--root-backend` wants what this host cannot do.
    pub fn kind_to_make(&self) -> Result<RootKind> {
        let ability = self.capabilities();
        let (Some(wanted), refused) = (self.forced_kind, |kind: RootKind, why: &str| {
            let name = kind.as_str();
            Error::new(
                Code::Unavailable,
                format!(
                    "--root-backend {name} cannot work here: {why}; leave it out, and berth takes what works"
                ),
            )
        }) else {
            return Ok(ability.best);
        };
        match (wanted, &ability.no_overlay, &ability.no_reflink) {
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
            Error::new(Code::Unavailable, format!("Layered roots cannot be put together here: {error}"))
        })
    }

    /// The slot of a root, with what is kept of it.
    fn slot(&self, site: &RootLocation) -> Result<Arc<Mutex<RootSlot>>> {
        if let Some(slot) = lock(&self.slots).get(&site.folder) {
            return Ok(slot.clone());
        }
        let state = RootRecord::read(&site.folder)?;
        let slot =
            Arc::new(Mutex::new(RootSlot { state, view: None, last_used: Instant::now(), closed: false }));
        Ok(lock(&self.slots).entry(site.folder.clone()).or_insert(slot).clone())
    }

    /// Forgets the workspace's root in memory; its folder is gone.
    pub fn forget(&self, site: &RootLocation) {
        if let Some(sizes) = self.sizes.get() {
            sizes.forget(site);
        }
        let slot = lock(&self.slots).remove(&site.folder);
        let Some(slot) = slot else { return };
        let mut slot = lock(&slot);
        if let Some(first) = slot.state.as_ref().and_then(|state| state.first_id) {
            lock(&self.ranges).release(first);
        }
        slot.view = None;
        self.set_disk_limit(site, None);
        self.release_image(site, slot.state.as_ref());
    }

    /// The image need not stay for this root any more.
    fn release_image(&self, site: &RootLocation, state: Option<&RootRecord>) {
        let Some(image) = state.and_then(|state| state.stack.image.as_ref()) else { return };
        if let Err(error) = self.images.release(image, &holder(&site.folder)) {
            log::warn!("the image {}: {error}", image.short());
        }
    }

    /// How the root was made; `None`: there is none.
    pub fn kind(&self, site: &RootLocation) -> Option<RootKind> {
        let slot = self.slot(site).ok()?;
        let kind = lock(&slot).state.as_ref().map_or(RootKind::Copy, |state| state.kind);
        let is_there = || {
            let home = site.home().ok().flatten();
            home.is_some_and(|home| home.root().symlink_metadata().is_ok_and(|meta| meta.is_dir()))
        };
        (kind == RootKind::Overlay || is_there()).then_some(kind)
    }

    /// Whether the machine's own programs belong to the root. They are not among its files.
    pub fn uses_host_programs(&self, site: &RootLocation) -> bool {
        self.slot(site).is_ok_and(|slot| lock(&slot).state.as_ref().is_some_and(|state| state.stack.host))
    }

    /// The root's files. The container's workload can change everything in them at any moment.
    ///
    /// # Errors
    /// When there is no root, or it cannot be put together.
    pub fn files(&self, site: &RootLocation) -> Result<Root> {
        match self.view(site)? {
            Some(view) => {
                let top = view.top.try_clone().at("duplicate", "a folder")?;
                Ok(Root::from_fd_holding(top, view))
            }
            None => Root::open(&site.existing_home()?.root()),
        }
    }

    /// Whether the folder `rel` of a root may hold anything that was not in its image.
    pub fn has_changes(&self, site: &RootLocation, rel: &str) -> bool {
        let Ok(slot) = self.slot(site) else { return false };
        let upper = lock(&slot).state.as_ref().and_then(|state| state.upper.clone());
        let root = match upper {
            Some(upper) => Root::open(&self.layers.path(&upper).join("fs")),
            None => site.existing_home().and_then(|home| Root::open(&home.root())),
        };
        root.is_ok_and(|root| root.is_dir(rel).unwrap_or(false))
    }

    /// A layered root, put together.
    fn view(&self, site: &RootLocation) -> Result<Option<Arc<MergedRoot>>> {
        let slot = self.slot(site)?;
        let mut slot = lock(&slot);
        let Some(state) = slot.state.clone().filter(|state| state.kind == RootKind::Overlay) else {
            return Ok(None);
        };
        if slot.closed {
            return Err(busy_error());
        }
        slot.last_used = Instant::now();
        if let Some(view) = &slot.view {
            return Ok(Some(view.clone()));
        }
        let view = Arc::new(self.namespace()?.merge(&self.overlay_spec(&state))?);
        slot.view = Some(view.clone());
        drop(slot);
        self.drop_idle_views();
        Ok(Some(view))
    }

    fn overlay_spec(&self, state: &RootRecord) -> namespace::OverlaySpec {
        namespace::OverlaySpec {
            lowers: self.lowers(&state.stack),
            upper: state.upper.as_deref().map(|upper| self.layers.path(upper)),
            first_id: state.first_id,
        }
    }

    /// The folders of a stack, the uppermost first.
    fn lowers(&self, stack: &record::LayerStack) -> Vec<PathBuf> {
        let layers = stack.layers.iter().rev().map(|layer| self.layers.path(layer).join("fs"));
        layers.chain(stack.image.as_ref().map(|image| self.images.root_of(image))).collect()
    }

    /// Lets go of views that nobody has used for longest, when there are many: each costs a descriptor and some memory
    /// of the kernel's.
    fn drop_idle_views(&self) {
        let all: Vec<_> = lock(&self.slots).values().cloned().collect();
        let mut idle = Vec::new();
        for slot in &all {
            // One that is busy is not idle.
            let Ok(now) = slot.try_lock() else { continue };
            if now.view.as_ref().is_some_and(|view| Arc::strong_count(view) == 1) {
                idle.push((now.last_used, slot));
            }
        }
        idle.sort_unstable_by_key(|(used, _)| *used);
        let excess = idle.len().saturating_sub(limits::IDLE_ROOTS);
        for (_, slot) in idle.iter().take(excess) {
            let mut slot = lock(slot);
            if slot.view.as_ref().is_some_and(|view| Arc::strong_count(view) == 1) {
                slot.view = None;
            }
        }
    }

    /// What the start of the container needs.
    ///
    /// # Errors
    /// When the root cannot be put together.
    pub fn mount_for_start(&self, site: &RootLocation) -> Result<RootMount> {
        let host = self.uses_host_programs(site);
        let Some(view) = self.view(site)? else {
            let tree = if site.is_own() { None } else { Some(self.clone_of_home(site)?) };
            return Ok(RootMount { tree, first_id: None, handle: None, host });
        };
        let slot = self.slot(site)?;
        let first_id = lock(&slot).state.as_ref().and_then(|state| state.first_id);
        Ok(RootMount { tree: Some(view.clone_mount()?), first_id, handle: Some(RootHandle(view)), host })
    }

    /// A root that is not in the workspace's own folder, as a mount that is attached nowhere yet.
    fn clone_of_home(&self, site: &RootLocation) -> Result<OwnedFd> {
        let home = site.existing_home()?;
        file::create_dir_private(&site.attached())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, home.root(), flags).at("clone the mount of", &site.root)
    }

    /// Takes over the root that `leader`, the nspawn of an earlier server, has mounted.
    ///
    /// # Errors
    /// When it has none, or it cannot be taken over.
    pub fn adopt(&self, site: &RootLocation, leader: i32) -> Result<Option<RootHandle>> {
        let slot = self.slot(site)?;
        let mut slot = lock(&slot);
        if slot.state.as_ref().is_none_or(|state| state.kind != RootKind::Overlay) {
            return Ok(None);
        }
        if slot.view.is_some() {
            return Err(Error::internal("the root is in use already"));
        }
        let view = Arc::new(self.namespace()?.take_over(leader, &site.attached())?);
        slot.view = Some(view.clone());
        Ok(Some(RootHandle(view)))
    }

    /// Waits until nobody but us uses the root's files, and lets go of them. Nobody else gets at them while the slot is
    /// locked. The container must have been stopped.
    fn wait_exclusive(&self, slot: &mut MutexGuard<'_, RootSlot>) -> Result<()> {
        let deadline = Instant::now() + READER_TIMEOUT;
        let _impatient = ExclusiveWaiter::new(&self.exclusive_waiters);
        while slot.view.as_ref().is_some_and(|view| Arc::strong_count(view) > 1) {
            if Instant::now() >= deadline {
                return Err(busy_error());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        slot.view = None;
        Ok(())
    }

    /// Removes layers that nothing names any more, and lets go of images; slow.
    pub fn collect_garbage(&self) {
        let released = {
            let _naming = lock(&self.reference_lock); // LOCK: leaf
            references::image_holders(self.layers.data_dir())
                .and_then(|holders| self.images.retain_holders(|holder| holders.contains(holder)))
        };
        if let Err(error) = released.and_then(|()| self.layers.remove_unreferenced(references::named_layers))
        {
            log::warn!("layers and images that nobody uses are kept: {error}");
        }
    }

    /// Where a descriptor of ours can be opened by a child.
    pub(super) fn child_path(fd: &OwnedFd) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
    }
}
