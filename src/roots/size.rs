//! How much disk roots take. Nobody who asks waits for a walk through a tree: one thread walks, and each answer is the last
//! measurement, with its time. It is renewed when somebody asks and it has become old, so that walking takes at most a
//! twentieth of the thread's time for each root.
//!
//! Thread: `root-sizes`. Lock: `known`, a leaf.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Roots, Site};
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Result, limits};
use crate::store::tree::{disk_usage, disk_usage_below};

/// A measurement.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Of all that is seen in the root, as du(1) counts.
    pub bytes: u64,
    /// Of that, what no other root shares.
    pub own_bytes: u64,
    /// When it was done.
    pub at: DateTime<Utc>,
    until: Instant,
}

#[derive(Debug, Default)]
struct Known {
    sizes: Mutex<HashMap<PathBuf, Size>>,
    news: Condvar,
}

/// The thread and what it knows.
#[derive(Debug)]
pub(super) struct Sizes {
    known: Arc<Known>,
    // Closing it ends the thread, so this is dropped first.
    wanted: Sender<Site>,
    _thread: JoinOnDrop,
}

/// How long the first one who asks waits: most roots are measured by then.
const FIRST: Duration = Duration::from_secs(2);
/// A measurement is good for this long at least, …
const FRESH: Duration = Duration::from_secs(1);
/// … and for so many times as long as it took.
const DUTY: u32 = 20;

impl Sizes {
    pub(super) fn start(roots: Weak<Roots>) -> Result<Sizes> {
        // Full: somebody else asks later.
        let (wanted, asked) = bounded(256);
        let known = Arc::<Known>::default();
        let thread = spawn("root-sizes".into(), limits::STACK, {
            let known = known.clone();
            move || measure_all(&roots, &asked, &known)
        })?;
        Ok(Sizes { known, wanted, _thread: thread })
    }

    fn get(&self, site: &Site) -> Option<Size> {
        let size = lock(&self.known.sizes).get(&site.folder).copied();
        if size.is_none_or(|size| size.until <= Instant::now()) {
            let _ = self.wanted.try_send(site.clone());
        }
        if size.is_some() {
            return size;
        }
        let sizes = lock(&self.known.sizes);
        let waited =
            self.known.news.wait_timeout_while(sizes, FIRST, |sizes| !sizes.contains_key(&site.folder));
        waited.ok().and_then(|(sizes, _)| sizes.get(&site.folder).copied())
    }

    pub(super) fn forget(&self, site: &Site) {
        lock(&self.known.sizes).remove(&site.folder);
    }
}

fn measure_all(roots: &Weak<Roots>, asked: &Receiver<Site>, known: &Known) {
    for site in asked {
        // Several may have asked meanwhile.
        if lock(&known.sizes).get(&site.folder).is_some_and(|size| size.until > Instant::now()) {
            continue;
        }
        let Some(roots) = roots.upgrade() else { return };
        match roots.measure(&site) {
            Ok(Some(size)) => drop(lock(&known.sizes).insert(site.folder, size)),
            // Somebody wanted the root for himself, or it is gone.
            Ok(None) => {}
            Err(error) => log::debug!("the size of {}: {error}", site.root.display()),
        }
        known.news.notify_all();
    }
}

impl Roots {
    /// How much disk the root takes: the last measurement. `None` while there is none yet.
    pub fn size(&self, site: &Site) -> Option<Size> {
        self.kind(site)?;
        self.sizes.get()?.get(site)
    }

    fn measure(&self, site: &Site) -> Result<Option<Size>> {
        let begun = Instant::now();
        let bytes = {
            let files = self.files(site)?;
            disk_usage_below(&files, &|| self.impatient.load(Ordering::Relaxed) == 0)?
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let slot = self.slot(site)?;
        let upper = lock(&slot).state.as_ref().and_then(|state| state.upper.clone());
        let own_bytes = match upper {
            Some(upper) => disk_usage(&self.layers.path(&upper))?,
            None => bytes,
        };
        let until = Instant::now() + (begun.elapsed() * DUTY).max(FRESH);
        Ok(Some(Size { bytes, own_bytes, at: Utc::now(), until }))
    }
}
