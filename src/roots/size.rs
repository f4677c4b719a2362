//! Measures the disk usage of roots. One thread walks the trees, and callers receive the last measurement with its
//! time, so that they do not wait. A request for an old measurement renews it. A measurement is valid for 20 times
//! as long as it took, so the walks of one root take at most a twentieth of the thread's time.
//!
//! Thread: `root-sizes`. Lock: `sizes`, a leaf.

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

/// A measurement of a root's disk usage.
#[derive(Clone, Copy, Debug)]
pub struct RootSize {
    /// Size of all files in the root, as du(1) counts it.
    pub bytes: u64,
    /// Size of the files that no other root shares.
    pub own_bytes: u64,
    /// Time of the measurement.
    pub at: DateTime<Utc>,
    until: Instant,
}

#[derive(Debug, Default)]
struct SizeCache {
    sizes: Mutex<HashMap<PathBuf, RootSize>>,
    news: Condvar,
}

/// The thread that measures roots, and its results.
#[derive(Debug)]
pub(super) struct SizeMeasurer {
    cache: Arc<SizeCache>,
    // Dropped before `_thread`: closing the channel ends the thread.
    requests: Sender<RootLocation>,
    _thread: JoinOnDrop,
}

/// Maximum wait for the first measurement of a root; most measurements take less.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// A measurement is valid for at least this time, …
const MIN_FRESH: Duration = Duration::from_secs(1);
/// … and for this many times as long as it took.
const FRESH_FACTOR: u32 = 20;

impl SizeMeasurer {
    pub(super) fn start(roots: Weak<Roots>) -> Result<SizeMeasurer> {
        // If the channel is full, the request is dropped; a later caller requests the measurement again.
        let (wanted, asked) = bounded(256);
        let known = Arc::<SizeCache>::default();
        let thread = spawn("root-sizes".into(), limits::STACK, {
            let known = known.clone();
            move || measure_all(&roots, &asked, &known)
        })?;
        Ok(SizeMeasurer { cache: known, requests: wanted, _thread: thread })
    }

    fn get(&self, location: &RootLocation) -> Option<RootSize> {
        let size = lock(&self.cache.sizes).get(&location.folder).copied();
        if size.is_none_or(|size| size.until <= Instant::now()) {
            let _ = self.requests.try_send(location.clone());
        }
        if size.is_some() {
            return size;
        }
        let sizes = lock(&self.cache.sizes);
        let waited = self
            .cache
            .news
            .wait_timeout_while(sizes, FIRST_WAIT, |sizes| !sizes.contains_key(&location.folder));
        waited.ok().and_then(|(sizes, _)| sizes.get(&location.folder).copied())
    }

    pub(super) fn forget(&self, location: &RootLocation) {
        lock(&self.cache.sizes).remove(&location.folder);
    }
}

fn measure_all(roots: &Weak<Roots>, asked: &Receiver<RootLocation>, known: &SizeCache) {
    for location in asked {
        // Several callers may have requested the same root.
        if lock(&known.sizes).get(&location.folder).is_some_and(|size| size.until > Instant::now()) {
            continue;
        }
        let Some(roots) = roots.upgrade() else { return };
        match roots.measure(&location) {
            Ok(Some(size)) => drop(lock(&known.sizes).insert(location.folder, size)),
            // The measurement stopped, because another caller needed exclusive access to the root.
            Ok(None) => {}
            Err(error) => log::debug!("Could not measure {}: {error}", location.root.display()),
        }
        known.news.notify_all();
    }
}

impl Roots {
    /// Returns the last measurement of the root's disk usage; `None` if there is none yet.
    pub fn size(&self, location: &RootLocation) -> Option<RootSize> {
        self.kind(location)?;
        self.sizes.get()?.get(location)
    }

    fn measure(&self, location: &RootLocation) -> Result<Option<RootSize>> {
        let begun = Instant::now();
        let bytes = {
            let files = self.files(location)?;
            disk_usage_below(&files, &|| self.exclusive_waiters.load(Ordering::Relaxed) == 0)?
        };
        let Some(bytes) = bytes else { return Ok(None) };
        let slot = self.slot(location)?;
        let upper = lock(&slot).record.as_ref().and_then(|record| record.upper.clone());
        let own_bytes = match upper {
            Some(upper) => disk_usage(&self.layers.path(&upper))?,
            None => bytes,
        };
        let until = Instant::now() + (begun.elapsed() * FRESH_FACTOR).max(MIN_FRESH);
        Ok(Some(RootSize { bytes, own_bytes, at: Utc::now(), until }))
    }
}
