//! A JSON file whose content is kept in memory. Readers get a snapshot and never wait for a disk; writers take turns.
//! **Invariant:** a change is on disk before a reader can see it.
//! Any thread may read and update. Locks: `writer` (level 3, one for each file) is held during the write; `snapshot` is
//! held only to copy an `Arc`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::file;
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, limits};

/// A JSON file that each update replaces as a whole. The next update overwrites changes that other programs make to the
/// file.
#[derive(Debug)]
pub struct JsonFile<T> {
    path: PathBuf,
    mode: u32,
    writer: Mutex<()>,
    snapshot: RwLock<Arc<T>>,
}

impl<T: Serialize + DeserializeOwned + Clone> JsonFile<T> {
    /// Reads the file. If it does not exist, the content is `default`, and nothing is written before the first update.
    ///
    /// # Errors
    /// `Config` with file, line and column when the file does not contain the expected JSON; `Internal` when the file
    /// cannot be read or is larger than `limits::STATE_FILE_BYTES`. The file is not changed in any of these cases.
    pub fn open(path: &Path, mode: u32, default: T) -> Result<JsonFile<T>> {
        // A link is resolved once, so that an update replaces its target and not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let value = match file::read_optional(&path, limits::STATE_FILE_BYTES)? {
            None => default,
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Error::config(path.display(), format_args!("not the expected JSON: {error}"))
            })?,
        };
        Ok(JsonFile::with_value(path, mode, value))
    }

    /// Creates the file with the content `value`.
    ///
    /// # Errors
    /// `Conflict` when the file exists; `DiskFull` or `Internal` when it cannot be written.
    pub fn create(path: &Path, mode: u32, value: T) -> Result<JsonFile<T>> {
        if fs::symlink_metadata(path).is_ok() {
            return Err(Error::new(Code::Conflict, format!("{} exists already", path.display())));
        }
        let made = JsonFile::with_value(path.to_path_buf(), mode, value);
        made.write(&made.get())?;
        Ok(made)
    }

    fn with_value(path: PathBuf, mode: u32, value: T) -> JsonFile<T> {
        JsonFile { path, mode, writer: Mutex::new(()), snapshot: RwLock::new(Arc::new(value)) }
    }

    /// Changes only the content in memory, for a file that stores the content in another form.
    pub fn interpret(&mut self, change: impl FnOnce(&mut T)) {
        let mut value = T::clone(&self.get());
        change(&mut value);
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }

    /// Returns the content as of the last update.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Applies `change` to a copy of the content, which becomes the content once it is on disk. Updates of one file
    /// wait for each other, so `change` must not update the same file.
    ///
    /// # Errors
    /// An error of `change`; `DiskFull` or `Internal` when the file cannot be written. In these cases, the content and
    /// the file are unchanged.
    pub fn update<R>(&self, change: impl FnOnce(&mut T) -> Result<R>) -> Result<R> {
        let _guard = lock(&self.writer); // LOCK: 3
        let mut value = T::clone(&self.get());
        let result = change(&mut value)?;
        self.write(&value)?;
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
        Ok(result)
    }

    /// Runs `what` while no update is running.
    pub fn while_locked<R>(&self, what: impl FnOnce() -> R) -> R {
        let _guard = lock(&self.writer); // LOCK: 3
        what()
    }

    fn write(&self, value: &T) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| {
            Error::internal(format!("Could not turn the content of {} into JSON", self.path.display()))
                .with_source(error)
        })?;
        bytes.push(b'\n');
        if bytes.len() as u64 > limits::STATE_FILE_BYTES {
            // The next start would refuse to read a larger file.
            let limit = limits::STATE_FILE_BYTES;
            return Err(Error::new(
                Code::DiskFull,
                format!(
                    "{} would become larger than {limit} bytes; remove something first",
                    self.path.display()
                ),
            ));
        }
        file::write_atomic(&self.path, &bytes, self.mode)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread;

    use super::*;
    use crate::store::scratch::TestFolder;

    type Counts = BTreeMap<String, u64>;

    fn add(number: u64) -> impl FnOnce(&mut Vec<u64>) -> Result<()> {
        move |list| {
            list.push(number);
            Ok(())
        }
    }

    #[test]
    fn forty_threads_lose_no_update() {
        let dir = TestFolder::new();
        let file = JsonFile::create(&dir.join("counts.json"), 0o600, Counts::new()).unwrap();
        thread::scope(|scope| {
            for thread in 0..40 {
                let file = &file;
                scope.spawn(move || {
                    for _ in 0..5 {
                        let update = |counts: &mut Counts| {
                            *counts.entry("all".into()).or_default() += 1;
                            *counts.entry(format!("thread-{thread}")).or_default() += 1;
                            Ok(())
                        };
                        file.update(update).unwrap();
                        assert!(
                            file.get()[&format!("thread-{thread}")] >= 1,
                            "an update must be visible to its caller"
                        );
                    }
                });
            }
        });
        let again: JsonFile<Counts> = JsonFile::open(file.path(), 0o600, Counts::new()).unwrap();
        assert_eq!(again.get(), file.get());
        assert_eq!(again.get()["all"], 200);
        assert!(again.get().iter().all(|(name, count)| name == "all" || *count == 5));
    }

    #[test]
    fn default_is_written_by_the_first_update_only() {
        let dir = TestFolder::new();
        let path = dir.join("a.json");
        let file = JsonFile::open(&path, 0o640, vec![1]).unwrap();
        assert_eq!(*file.get(), [1]);
        assert!(!path.exists());
        file.update(add(2)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  1,\n  2\n]\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(JsonFile::create(&path, 0o600, vec![3]).unwrap_err().code(), Code::Conflict);
    }

    #[test]
    fn failed_updates_change_nothing() {
        let dir = TestFolder::new();
        fs::create_dir(dir.join("sub")).unwrap();
        let path = dir.join("sub/a.json");
        let file = JsonFile::create(&path, 0o600, vec![1]).unwrap();
        let refused = file.update(|list| {
            list.push(2);
            Err::<(), _>(Error::new(Code::Conflict, "no"))
        });
        assert_eq!(refused.unwrap_err().code(), Code::Conflict);
        fs::rename(dir.join("sub"), dir.join("away")).unwrap();
        assert!(file.update(add(3)).is_err());
        assert_eq!(*file.get(), [1]);
        assert_eq!(fs::read_to_string(dir.join("away/a.json")).unwrap(), "[\n  1\n]\n");
    }

    #[test]
    fn panic_in_an_update_leaves_the_file_usable() {
        let dir = TestFolder::new();
        let file = JsonFile::open(&dir.join("a.json"), 0o600, vec![1]).unwrap();
        let panicked = thread::scope(|scope| {
            scope.spawn(|| file.update(|_| -> Result<()> { panic!("expected by the test") })).join()
        });
        assert!(panicked.is_err());
        file.update(add(2)).unwrap();
        assert_eq!(*file.get(), [1, 2]);
    }

    #[test]
    fn damaged_file_is_named_and_kept() {
        let dir = TestFolder::new();
        let path = dir.join("a.json");
        file::write_atomic(&path, b"[1,\n x]", 0o600).unwrap();
        let failed = JsonFile::open(&path, 0o600, vec![0]).unwrap_err();
        assert_eq!(failed.code(), Code::Config);
        assert!(failed.message().contains("a.json: not the expected JSON"), "{failed}");
        assert!(failed.message().contains("line 2 column 2"), "{failed}");
        assert_eq!(fs::read(&path).unwrap(), b"[1,\n x]");
    }

    #[test]
    fn linked_file_stays_linked() {
        let dir = TestFolder::new();
        file::write_atomic(&dir.join("real.json"), b"[1]", 0o600).unwrap();
        symlink("real.json", dir.join("link.json")).unwrap();
        let file = JsonFile::open(&dir.join("link.json"), 0o600, vec![0]).unwrap();
        file.update(add(2)).unwrap();
        assert!(fs::symlink_metadata(dir.join("link.json")).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(dir.join("real.json")).unwrap(), "[\n  1,\n  2\n]\n");
    }
}
