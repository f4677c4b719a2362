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

use super::{RootLocation, Roots};
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Result, limits};
use crate::store::tree::{disk_usage, disk_usage_below};

/// A measurement.
#[derive(Clone, Copy, Debug)]
pub struct RootSize {
    /// Of all that is seen in the root, as du(1) counts.
    pub bytes: u64,
    /// Of that, what no other root shares.
    pub own_bytes: u64,
    /// When it was done.
    pub at: DateTime<Utc>,
    until: Instant,
}

#[derive(Debug, Default)]
struct SizeCache {
    sizes: Mutex<HashMap<PathBuf, RootSize>>,
    news: Condvar,
}

/// The thread and what it knows.
#[derive(Debug)]
pub(super) struct SizeMeasurer {
    cache: Arc<SizeCache>,
    // Closing it ends the thread, so this is dropped first.
    requests: Sender<RootLocation>,
    _thread: JoinOnDrop,
}

/// How long the first one who asks waits: most roots are measured by then.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// A measurement is good for this long at least, …
const MIN_FRESH: Duration = Duration::from_secs(1);
/// … and for so many times as long as it took.
const FRESH_FACTOR: u32 = 20;

impl SizeMeasurer {
    pub(super) fn start(roots: Weak<Roots>) -> Result<SizeMeasurer> {
        // Full: somebody else asks later.
        let (wanted, asked) = bounded(256);
        let known = Arc::<SizeCache>::default();
        let thread = spawn("root-sizes".into(), limits::STACK, {
            let known = known.clone();
            move || measure_all(&roots, &asked, &known)
        })?;
        Ok(SizeMeasurer { cache: known, requests: wanted, _thread: thread })
    }

    fn get(&self, site: &RootLocation) -> Option<RootSize> {
        let size = lock(&self.cache.sizes).get(&site.folder).copied();
        if size.is_none_or(|size| size.until <= Instant::now()) {
            let _ = self.requests.try_send(site.clone());
        }
        if size.is_some() {
            return size;
        }
        let sizes = lock(&self.cache.sizes);
        let waited =
            self.cache.news.wait_timeout_while(sizes, FIRST_WAIT, |sizes| !sizes.contains_key(&site.folder));
        waited.ok().and_then(|(sizes, _)| sizes.get(&site.folder).copied())
    }

    pub(super) fn forget(&self, site: &RootLocation) {
        lock(&self.cache.sizes).remove(&site.folder);
    }
}

fn measure_all(roots: &Weak<Roots>, asked: &Receiver<RootLocation>, known: &SizeCache) {
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
    pub fn size(&self, site: &RootLocation) -> Option<RootSize> {
        self.kind(site)?;
        self.sizes.get()?.get(site)
    }

    fn measure(&self, site: &RootLocation) -> Result<Option<RootSize>> {
        let begun = Instant::now();
        let bytes = {
            let files = self.files(site)?;
            disk_usage_below(&files, &|| self.exclusive_waiters.load(Ordering::Relaxed) == 0)?
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let slot = self.slot(site)?;
        let upper = lock(&slot).state.as_ref().and_then(|state| state.upper.clone());
        let own_bytes = match upper {
            Some(upper) => disk_usage(&self.layers.path(&upper))?,
            None => bytes,
        };
        let until = Instant::now() + (begun.elapsed() * FRESH_FACTOR).max(MIN_FRESH);
        Ok(Some(RootSize { bytes, own_bytes, at: Utc::now(), until }))
    }
}
