//! What small files said when they were read last: a list of fifty skills costs fifty looks, and no reading. A file that
//! was written since is another one, by its times and size. Knows nothing of what the files mean.
//!
//! Lock: the table, a leaf; no file is touched under it.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::base::thread::lock;
use crate::base::{Result, limits};
use crate::store::beneath::Root;

/// Which file.
type Inode = (u64, u64);

/// The change time cannot be set by anybody, so a file with these is the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

/// The table.
#[derive(Debug)]
pub(super) struct Remembered<T>(Mutex<HashMap<Inode, (Stamp, T)>>);

impl<T> Default for Remembered<T> {
    fn default() -> Remembered<T> {
        Remembered(Mutex::default())
    }
}

impl<T: Clone> Remembered<T> {
    /// What the file says: as it was read before, or by `read` now. `None` if there is no file.
    pub(super) fn look(
        &self,
        root: &Root,
        rel: &str,
        read: impl FnOnce() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let Some(metadata) = root.metadata(rel)? else { return Ok(None) };
        let (inode, stamp) = ((metadata.dev(), metadata.ino()), Stamp::of(&metadata));
        if let Some((known, said)) = lock(&self.0).get(&inode) {
            if *known == stamp {
                return Ok(Some(said.clone()));
            }
        }
        // Written between the two, it has another stamp next time.
        let said = read()?;
        if let Some(said) =
            said.as_ref().filter(|_| stamp.is_settled() && stamp.size <= limits::SEEN_FILE_BYTES)
        {
            let mut table = lock(&self.0);
            if table.len() >= limits::SEEN_FILES {
                table.clear();
            }
            table.insert(inode, (stamp, said.clone()));
        }
        Ok(said)
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    /// File times come from a clock that ticks every few milliseconds (`current_time` in the kernel's fs/inode.c): of two
    /// writes within one tick the second would not show.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or_default());
        now.saturating_sub(changed) > Duration::from_secs(2)
    }
}
