//! One server for each data folder, and one `berth doctor` for each binary, by flock(2): the kernel lets go of it however
//! the holder ends.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::base::{At, Error, Result};

/// Held while the server lives.
#[derive(Debug)]
pub struct DataLock(#[expect(dead_code, reason = "held, not used")] File);

impl DataLock {
    /// Takes the folder.
    ///
    /// # Errors
    /// `Config`, with the pid of the server that has it.
    pub fn take(folder: &Path) -> Result<DataLock> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = folder.join("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).at("open", &path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(Error::config(
                folder.display(),
                format!(
                    "another berth (pid {}) uses this data folder; stop it, or choose another with --data-dir",
                    pid.trim()
                ),
            ));
        }
        file.set_len(0).and_then(|()| file.rewind()).at("write", &path)?;
        writeln!(file, "{}", std::process::id()).at("write", &path)?;
        Ok(DataLock(file))
    }
}

/// Held while this binary does what it may do once at a time.
#[derive(Debug)]
pub struct BinaryLock(File);

impl BinaryLock {
    /// Waits for it, `within` this time at most.
    ///
    /// # Errors
    /// When another process still has it then.
    pub fn take(within: Duration) -> Result<BinaryLock> {
        let path = Path::new("/proc/self/exe");
        let file = File::open(path).at("open", path)?;
        let deadline = Instant::now() + within;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= deadline {
                return Err(Error::internal("Another berth doctor is at work; try again when it has ended"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(BinaryLock(file))
    }

    /// A name that only its holder may use.
    ///
    /// # Errors
    /// When the binary cannot be looked at.
    pub fn name(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = self.0.metadata().at("look at", "our own binary")?;
        Ok(format!("{:x}-{:x}", meta.dev(), meta.ino()))
    }
}
