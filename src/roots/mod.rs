//! Container roots: made from a base image by the cheapest way that the file system has, shown to whoever works in them,
//! handed to the container that starts in them, frozen as snapshots. Knows folders and images, neither workspaces nor HTTP.
//!
//! On disk every file of a root belongs to the ids 0 to 65535, whatever its kind; mounts show them as the container's own.
//! So layers can be shared by roots whose containers have different users.
//!
//! A layered root is mounted nowhere on the host. It is put together in a mount namespace of ours on first use
//! ([`namespace`]); the server opens files in it by descriptor ([`Roots::files`]) and a container's start gets a clone of
//! the mount ([`Roots::enter`]). Nothing is left of it when the server and the container have ended.
//!
//! Thread: `root-sizes` ([`size`]). Locks, in this order: `slots` to look one up; one root's slot, held while it is put together, made or replaced;
//! `ranges`, `naming` and the layers' pins, leaves.

mod ability;
mod bound;
mod home;
mod layers;
mod make;
mod namespace;
mod references;
mod restore;
pub mod saved;
mod size;
mod snapshot;
mod state;

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

pub use ability::Ability;
pub use size::Size;
pub use snapshot::Snapshot;
pub use state::{Kind, workspace_folders};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use self::layers::Layers;
use self::namespace::{Mounted, Namespace};
use self::state::{Ranges, State, holder};
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, limits};
use crate::images::Images;
use crate::proc::Cgroups;
use crate::store::beneath::Root;
use crate::store::file;

/// Where a root belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The workspace's folder, which nothing of a workload can change.
    pub folder: PathBuf,
    /// What the workspace calls its path. Where the owner named it, it contains the root ([`home`]).
    pub root: PathBuf,
}

impl Site {
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
    layers: Layers,
    wanted: Option<Kind>,
    namespace: OnceLock<Result<Arc<Namespace>>>,
    ability: OnceLock<Ability>,
    ranges: Mutex<Ranges>,
    slots: Mutex<HashMap<PathBuf, Arc<Mutex<Slot>>>>,
    /// Held while something that needs an image tells the image and then names it in a file, so that nobody looks between.
    naming: Mutex<()>,
    /// How many want a root for themselves: whoever has files of one open only to look lets go.
    impatient: AtomicUsize,
    sizes: OnceLock<size::Sizes>,
}

/// One root.
#[derive(Debug)]
struct Slot {
    state: Option<State>,
    /// Its files put together, as long as somebody may want them.
    view: Option<Arc<Mounted>>,
    used: Instant,
    /// Nobody may have its files now.
    closed: bool,
}

/// What a container's start needs of its root.
#[derive(Debug)]
pub struct Entry {
    /// A mount to attach at the root's path; none: the files are there.
    pub tree: Option<OwnedFd>,
    /// The first of its users outside; none: nspawn picks one.
    pub first_id: Option<u32>,
    /// To be kept as long as the container runs.
    pub held: Option<Held>,
    /// The machine's own programs belong to it.
    pub host: bool,
}

/// Keeps a root put together.
#[derive(Clone, Debug)]
pub struct Held(#[expect(dead_code, reason = "held, not used")] Arc<Mounted>);

fn in_use() -> Error {
    let message = "Files of the workspace are being read or written; try again when that has ended";
    Error::new(Code::Busy, message)
}

/// Counts as impatient while it lives.
struct Impatient<'a>(&'a AtomicUsize);

impl Impatient<'_> {
    fn new(count: &AtomicUsize) -> Impatient<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Impatient(count)
    }
}

impl Drop for Impatient<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long whoever replaces a root waits for those who have its files open.
const READERS: Duration = Duration::from_secs(5);

impl Roots {
    /// Opens what there is in `data_dir`. `wanted`: the only way that roots may be made; none: the cheapest that works.
    ///
    /// # Errors
    /// When the data folder cannot be read or written.
    pub fn open(
        data_dir: &Path,
        images: Arc<Images>,
        cgroups: Cgroups,
        wanted: Option<Kind>,
    ) -> Result<Arc<Roots>> {
        let roots = Arc::new(Roots {
            images,
            cgroups,
            layers: Layers::open(data_dir)?,
            wanted,
            namespace: OnceLock::new(),
            ability: OnceLock::new(),
            ranges: Mutex::new(Ranges::new(data_dir)?),
            slots: Mutex::default(),
            naming: Mutex::default(),
            impatient: AtomicUsize::new(0),
            sizes: OnceLock::new(),
        });
        let _ = roots.sizes.set(size::Sizes::start(Arc::downgrade(&roots))?);
        Ok(roots)
    }

    /// What this host can do; tried out once.
    pub fn ability(&self) -> &Ability {
        self.ability.get_or_init(|| ability::look(self.layers.folder(), self.namespace_made()))
    }

    /// The kind of the roots that are made from now on.
    ///
    /// # Errors
    /// `Unavailable` when `--root-backend` wants what this host cannot do.
    pub fn kind_to_make(&self) -> Result<Kind> {
        let ability = self.ability();
        let (Some(wanted), refused) = (self.wanted, |kind: Kind, why: &str| {
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
            (Kind::Overlay, Some(why), _) | (Kind::Reflink, _, Some(why)) => Err(refused(wanted, why)),
            _ => Ok(wanted),
        }
    }

    fn namespace_made(&self) -> &Result<Arc<Namespace>> {
        self.namespace.get_or_init(|| Namespace::new(&self.layers.folder().join(".mounts")))
    }

    fn namespace(&self) -> Result<&Arc<Namespace>> {
        self.namespace_made().as_ref().map_err(|error| {
            Error::new(Code::Unavailable, format!("Layered roots cannot be put together here: {error}"))
        })
    }

    /// The slot of a root, with what is kept of it.
    fn slot(&self, site: &Site) -> Result<Arc<Mutex<Slot>>> {
        if let Some(slot) = lock(&self.slots).get(&site.folder) {
            return Ok(slot.clone());
        }
        let state = State::read(&site.folder)?;
        let slot = Arc::new(Mutex::new(Slot { state, view: None, used: Instant::now(), closed: false }));
        Ok(lock(&self.slots).entry(site.folder.clone()).or_insert(slot).clone())
    }

    /// Forgets the workspace's root in memory; its folder is gone.
    pub fn forget(&self, site: &Site) {
        if let Some(sizes) = self.sizes.get() {
            sizes.forget(site);
        }
        let slot = lock(&self.slots).remove(&site.folder);
        let Some(slot) = slot else { return };
        let mut slot = lock(&slot);
        if let Some(first) = slot.state.as_ref().and_then(|state| state.first_id) {
            lock(&self.ranges).give_back(first);
        }
        slot.view = None;
        self.bound(site, None);
        self.let_go(site, slot.state.as_ref());
    }

    /// The image need not stay for this root any more.
    fn let_go(&self, site: &Site, state: Option<&State>) {
        let Some(image) = state.and_then(|state| state.stack.image.as_ref()) else { return };
        if let Err(error) = self.images.release(image, &holder(&site.folder)) {
            log::warn!("the image {}: {error}", image.short());
        }
    }

    /// How the root was made; `None`: there is none.
    pub fn kind(&self, site: &Site) -> Option<Kind> {
        let slot = self.slot(site).ok()?;
        let kind = lock(&slot).state.as_ref().map_or(Kind::Copy, |state| state.kind);
        let is_there = || {
            let home = site.home().ok().flatten();
            home.is_some_and(|home| home.root().symlink_metadata().is_ok_and(|meta| meta.is_dir()))
        };
        (kind == Kind::Overlay || is_there()).then_some(kind)
    }

    /// Whether the machine's own programs belong to the root. They are not among its files.
    pub fn on_host(&self, site: &Site) -> bool {
        self.slot(site).is_ok_and(|slot| lock(&slot).state.as_ref().is_some_and(|state| state.stack.host))
    }

    /// The root's files. The container's workload can change everything in them at any moment.
    ///
    /// # Errors
    /// When there is no root, or it cannot be put together.
    pub fn files(&self, site: &Site) -> Result<Root> {
        match self.view(site)? {
            Some(view) => {
                let top = view.top.try_clone().at("duplicate", "a folder")?;
                Ok(Root::of(top, view))
            }
            None => Root::open(&site.known_home()?.root()),
        }
    }

    /// Whether the folder `rel` of a root may hold anything that was not in its image.
    pub fn changed(&self, site: &Site, rel: &str) -> bool {
        let Ok(slot) = self.slot(site) else { return false };
        let upper = lock(&slot).state.as_ref().and_then(|state| state.upper.clone());
        let root = match upper {
            Some(upper) => Root::open(&self.layers.path(&upper).join("fs")),
            None => site.known_home().and_then(|home| Root::open(&home.root())),
        };
        root.is_ok_and(|root| root.is_dir(rel).unwrap_or(false))
    }

    /// A layered root, put together.
    fn view(&self, site: &Site) -> Result<Option<Arc<Mounted>>> {
        let slot = self.slot(site)?;
        let mut slot = lock(&slot);
        let Some(state) = slot.state.clone().filter(|state| state.kind == Kind::Overlay) else {
            return Ok(None);
        };
        if slot.closed {
            return Err(in_use());
        }
        slot.used = Instant::now();
        if let Some(view) = &slot.view {
            return Ok(Some(view.clone()));
        }
        let view = Arc::new(self.namespace()?.merge(&self.merged(&state))?);
        slot.view = Some(view.clone());
        drop(slot);
        self.rest();
        Ok(Some(view))
    }

    fn merged(&self, state: &State) -> namespace::Layers {
        namespace::Layers {
            lowers: self.lowers(&state.stack),
            upper: state.upper.as_deref().map(|upper| self.layers.path(upper)),
            first_id: state.first_id,
        }
    }

    /// The folders of a stack, the uppermost first.
    fn lowers(&self, stack: &state::Stack) -> Vec<PathBuf> {
        let layers = stack.layers.iter().rev().map(|layer| self.layers.path(layer).join("fs"));
        layers.chain(stack.image.as_ref().map(|image| self.images.root_of(image))).collect()
    }

    /// Lets go of views that nobody has used for longest, when there are many: each costs a descriptor and some memory
    /// of the kernel's.
    fn rest(&self) {
        let all: Vec<_> = lock(&self.slots).values().cloned().collect();
        let mut idle = Vec::new();
        for slot in &all {
            // One that is busy is not idle.
            let Ok(now) = slot.try_lock() else { continue };
            if now.view.as_ref().is_some_and(|view| Arc::strong_count(view) == 1) {
                idle.push((now.used, slot));
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
    pub fn enter(&self, site: &Site) -> Result<Entry> {
        let host = self.on_host(site);
        let Some(view) = self.view(site)? else {
            let tree = if site.is_own() { None } else { Some(self.clone_of_home(site)?) };
            return Ok(Entry { tree, first_id: None, held: None, host });
        };
        let slot = self.slot(site)?;
        let first_id = lock(&slot).state.as_ref().and_then(|state| state.first_id);
        Ok(Entry { tree: Some(view.tree()?), first_id, held: Some(Held(view)), host })
    }

    /// A root that is not in the workspace's own folder, as a mount that is attached nowhere yet.
    fn clone_of_home(&self, site: &Site) -> Result<OwnedFd> {
        let home = site.known_home()?;
        file::create_dir_private(&site.attached())?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(CWD, home.root(), flags).at("clone the mount of", &site.root)
    }

    /// Takes over the root that `leader`, the nspawn of an earlier server, has mounted.
    ///
    /// # Errors
    /// When it has none, or it cannot be taken over.
    pub fn adopt(&self, site: &Site, leader: i32) -> Result<Option<Held>> {
        let slot = self.slot(site)?;
        let mut slot = lock(&slot);
        if slot.state.as_ref().is_none_or(|state| state.kind != Kind::Overlay) {
            return Ok(None);
        }
        if slot.view.is_some() {
            return Err(Error::internal("the root is in use already"));
        }
        let view = Arc::new(self.namespace()?.take_over(leader, &site.attached())?);
        slot.view = Some(view.clone());
        Ok(Some(Held(view)))
    }

    /// Waits until nobody but us uses the root's files, and lets go of them. Nobody else gets at them while the slot is
    /// locked. The container must have been stopped.
    fn alone(&self, slot: &mut MutexGuard<'_, Slot>) -> Result<()> {
        let deadline = Instant::now() + READERS;
        let _impatient = Impatient::new(&self.impatient);
        while slot.view.as_ref().is_some_and(|view| Arc::strong_count(view) > 1) {
            if Instant::now() >= deadline {
                return Err(in_use());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        slot.view = None;
        Ok(())
    }

    /// Removes layers that nothing names any more, and lets go of images; slow.
    pub fn collect(&self) {
        let released = {
            let _naming = lock(&self.naming); // LOCK: leaf
            references::image_holders(self.layers.data_dir())
                .and_then(|holders| self.images.keep_holders(|holder| holders.contains(holder)))
        };
        if let Err(error) = released.and_then(|()| self.layers.collect(references::named_layers)) {
            log::warn!("layers and images that nobody uses are kept: {error}");
        }
    }

    /// Where a descriptor of ours can be opened by a child.
    pub(super) fn for_child(fd: &OwnedFd) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
    }
}
