//! Large input of a client: a request's body or a command's stdin. Input of up to 64 KiB stays in memory; larger input
//! is stored in a file without a name. This module also limits the memory of all bodies that are being parsed at one
//! time.
//!
//! The lock of [`MemoryBudget`] is a leaf: no other lock is taken while it is held.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::thread::lock;
use super::{At, Code, Error, Result};

/// Maximum length of an input that is kept in memory.
const MEMORY_BYTES: usize = 64 << 10;

/// The input of a client, in memory or in a file.
#[derive(Debug)]
pub enum InputBytes {
    /// At most [`MEMORY_BYTES`], unless the process holds no other input in memory.
    Memory(Vec<u8>),
    /// A file without a name, and the input's length.
    File(File, u64),
}

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Sets the folder for the files of large inputs; the default is the folder for temporary files.
pub fn set_folder(folder: &Path) {
    let _ = FOLDER.set(folder.to_owned());
}

/// Creates a file without a name, which the kernel removes when its last descriptor is closed.
///
/// # Errors
/// When the file cannot be created.
pub fn unnamed_file(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => Ok(fd.into()),
        // Not every file system supports O_TMPFILE (open(2)).
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let path = folder.join(format!(".{}", Uuid::new_v4()));
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

impl InputBytes {
    /// Wraps bytes; if there are more than [`MEMORY_BYTES`], writes them to a file.
    ///
    /// # Errors
    /// `DiskFull`, or another error of writing the file.
    pub fn from_vec(bytes: Vec<u8>) -> Result<InputBytes> {
        if bytes.len() <= MEMORY_BYTES {
            return Ok(InputBytes::Memory(bytes));
        }
        let (folder, length) = (folder(), bytes.len() as u64);
        let file = unnamed_file(&folder).at("keep a request in", &folder)?;
        file.write_all_at(&bytes, 0).at("keep a request in", &folder)?;
        Ok(InputBytes::File(file, length))
    }

    /// Reads `reader` to its end, at most `cap` bytes.
    ///
    /// # Errors
    /// `BodyTooLarge`; `InvalidRequest` when the client disconnects; `DiskFull`, or another error of writing the file.
    pub fn read_from(reader: &mut dyn Read, cap: usize) -> Result<InputBytes> {
        let broken = |error| {
            Error::new(Code::InvalidRequest, "The connection closed before the end of the body")
                .with_source(error)
        };
        let mut bytes = Vec::new();
        reader.take(MEMORY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(broken)?;
        let too_large = |length: u64| match length > cap as u64 {
            true => Err(Error::new(Code::BodyTooLarge, format!("The body is larger than {cap} bytes"))),
            false => Ok(()),
        };
        too_large(bytes.len() as u64)?;
        let mut input = InputBytes::from_vec(bytes)?;
        if let InputBytes::File(file, length) = &mut input {
            let folder = folder();
            let mut buffer = vec![0; MEMORY_BYTES];
            loop {
                let n = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(broken(error)),
                };
                too_large(*length + n as u64)?;
                file.write_all_at(&buffer[..n], *length).at("keep a request in", &folder)?;
                *length += n as u64;
            }
        }
        Ok(input)
    }

    pub fn len(&self) -> u64 {
        match self {
            InputBytes::Memory(bytes) => bytes.len() as u64,
            InputBytes::File(_, length) => *length,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with the bytes from `offset` on; if the input is in a file, with at most [`MEMORY_BYTES`] of them.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn with_chunk<T>(&self, offset: u64, each: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        match self {
            InputBytes::Memory(bytes) => {
                Ok(each(usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default()))
            }
            InputBytes::File(file, length) => {
                let mut buffer = vec![0; (length.saturating_sub(offset) as usize).min(MEMORY_BYTES)];
                file.read_exact_at(&mut buffer, offset)?;
                Ok(each(&buffer))
            }
        }
    }

    /// Returns all bytes in memory.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn into_vec(self) -> Result<Vec<u8>> {
        match self {
            InputBytes::Memory(bytes) => Ok(bytes),
            InputBytes::File(file, length) => {
                let mut bytes = vec![0; length as usize];
                file.read_exact_at(&mut bytes, 0).at("read a request in", folder())?;
                Ok(bytes)
            }
        }
    }
}

fn folder() -> PathBuf {
    FOLDER.get().cloned().unwrap_or_else(std::env::temp_dir)
}

/// Memory that all large bodies together may use while they are being parsed. A charge is held only briefly, because
/// parsing does not wait for a client.
pub static PARSING: MemoryBudget = MemoryBudget::new(64 << 20);

/// A number of bytes that several threads share; each thread charges the bytes that it uses.
#[derive(Debug)]
pub struct MemoryBudget {
    total: u64,
    used: Mutex<u64>,
    less: Condvar,
}

impl MemoryBudget {
    const fn new(total: u64) -> MemoryBudget {
        MemoryBudget { total, used: Mutex::new(0), less: Condvar::new() }
    }

    /// Waits for `bytes` and holds them until the charge is dropped. A request for more than the total holds the total.
    ///
    /// # Errors
    /// `Busy` if not enough bytes become free within `patience`.
    pub fn charge(&'static self, bytes: u64, patience: Duration) -> Result<Charge> {
        let bytes = bytes.min(self.total);
        let used = lock(&self.used);
        let (mut used, _) = self
            .less
            .wait_timeout_while(used, patience, |used| *used + bytes > self.total)
            .unwrap_or_else(PoisonError::into_inner);
        if *used + bytes > self.total {
            return Err(Error::new(Code::Busy, "Too many large request bodies are being parsed; try again"));
        }
        *used += bytes;
        Ok(Charge { budget: self, bytes })
    }
}

/// Bytes that are charged to a [`MemoryBudget`] until this value is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: &'static MemoryBudget,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        *lock(&self.budget.used) -= self.bytes;
        self.budget.less.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_input_stays_in_memory_and_large_input_goes_through_a_file() {
        for length in [0, 1, MEMORY_BYTES, MEMORY_BYTES + 1, 300_000] {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let input = InputBytes::read_from(&mut &bytes[..], 300_000).unwrap();
            assert_eq!(
                (input.len(), matches!(input, InputBytes::Memory(_))),
                (length as u64, length <= MEMORY_BYTES)
            );
            let mut read = Vec::new();
            while read.len() < length {
                input.with_chunk(read.len() as u64, |piece| read.extend_from_slice(piece)).unwrap();
            }
            assert!(read == bytes && input.into_vec().unwrap() == bytes);
        }
        let refused = InputBytes::read_from(&mut &[0; 300_001][..], 300_000).unwrap_err();
        assert_eq!(refused.code(), Code::BodyTooLarge);
    }

    #[test]
    fn budget_is_never_exceeded_and_one_body_always_fits() {
        static SMALL: MemoryBudget = MemoryBudget::new(10);
        let all = SMALL.charge(1000, Duration::ZERO).unwrap();
        assert_eq!(SMALL.charge(1, Duration::ZERO).unwrap_err().code(), Code::Busy);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| SMALL.charge(10, Duration::from_secs(60)).map(drop));
            drop(all);
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(*lock(&SMALL.used), 0);
    }
}
