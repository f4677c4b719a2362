//! Locks between processes, by flock(2): one server for each data folder, one `berth doctor` for each binary, and one
//! writer in a folder that several servers share. The kernel releases a lock when its holder ends for any reason.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::base::{At, Code, Error, Result, limits};

/// The lock of a data folder, held while the server runs. The file has the server's pid, and a line for each of its
/// addresses.
#[derive(Debug)]
pub struct DataLock(File);

impl DataLock {
    /// Locks the data folder.
    ///
    /// # Errors
    /// `Config` with the pid of the server that holds the lock.
    pub fn take(folder: &Path) -> Result<DataLock> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = folder.join("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).at("open", &path)?;
        let deadline = Instant::now() + limits::LOCK_PASSES;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut text = String::new();
            let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
            let pid = text.lines().next().unwrap_or_default();
            // The holder may be a child of a killed server, which shares its descriptors until its execve(2).
            if !Path::new("/proc").join(pid.trim()).join("exe").exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            return Err(Error::config(
                folder.display(),
                format!(
                    "another berth (pid {}) uses this data folder; stop it, or give this server a folder of its own with \
                     --data-dir or BERTH_DATA_DIR",
                    pid.trim()
                ),
            ));
        }
        file.set_len(0).and_then(|()| file.rewind()).at("write", &path)?;
        writeln!(file, "{}", std::process::id()).at("write", &path)?;
        Ok(DataLock(file))
    }

    /// Records the addresses of the server, so that commands on this machine find it. A full disk must not prevent the
    /// start: without the record, the commands only need `--openwork-url`.
    pub fn record_addresses(&self, addresses: &[impl std::fmt::Display]) {
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        if let Err(error) = (&self.0).write_all(text.as_bytes()) {
            log::warn!("The data folder's lock does not have the server's address: {error}");
        }
    }
}

/// Returns the address of the server that uses this data folder; `None` if no server runs or the address cannot be
/// read.
pub fn server_url(folder: &Path) -> Option<String> {
    let bytes = super::file::read_optional(&folder.join("lock"), 64 << 10).ok().flatten()?;
    let text = String::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let pid: u32 = lines.next()?.parse().ok()?;
    if !Path::new("/proc").join(pid.to_string()).join("exe").exists() {
        return None;
    }
    let addresses: Vec<&str> = lines.collect();
    let tcp = addresses.iter().find(|address| address.starts_with("http://"));
    let found = tcp.or_else(|| addresses.iter().find(|address| address.starts_with("unix:/")))?;
    // A server that listens on all addresses of the machine is called on loopback.
    Some(found.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:"))
}

/// The lock of this binary, for work that only one process may do at a time.
#[derive(Debug)]
pub struct BinaryLock(File);

impl BinaryLock {
    /// Waits at most `within` for the lock.
    ///
    /// # Errors
    /// When another process still holds it.
    pub fn take(within: Duration) -> Result<BinaryLock> {
        let path = Path::new("/proc/self/exe");
        let file = File::open(path).at("open", path)?;
        let deadline = Instant::now() + within;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= deadline {
                return Err(Error::internal("Another berth doctor is running; try again when it has ended"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(BinaryLock(file))
    }

    /// Returns a name that only the holder may use.
    ///
    /// # Errors
    /// When the binary's metadata cannot be read.
    pub fn name(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = self.0.metadata().at("read the metadata of", "berth's own binary")?;
        Ok(format!("{:x}-{:x}", meta.dev(), meta.ino()))
    }
}

/// The lock of a folder, held while a file in it is read, changed and replaced.
#[derive(Debug)]
pub struct FolderLock(#[expect(dead_code, reason = "held, not used")] File);

impl FolderLock {
    /// Waits at most `within` for the lock.
    ///
    /// # Errors
    /// `Busy` when another process still holds it.
    pub fn take(folder: &Path, within: Duration) -> Result<FolderLock> {
        let file = File::open(folder).at("open", folder)?;
        let deadline = Instant::now() + within;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= deadline {
                let message = format!("Another process keeps {} locked; try again", folder.display());
                return Err(Error::new(Code::Busy, message));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(FolderLock(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::TestFolder;

    #[test]
    fn lock_waits_for_a_dead_servers_children_and_names_a_running_server() {
        let folder = TestFolder::new();
        let held = DataLock::take(&folder).unwrap();
        let begun = Instant::now();
        let refused = DataLock::take(&folder).unwrap_err();
        assert!(refused.to_string().contains(&format!("pid {}", std::process::id())), "{refused}");
        assert!(begun.elapsed() < limits::LOCK_PASSES);
        // No process has this number: the kernel's maximum is 4194304 (proc(5), pid_max).
        let path = folder.join("lock");
        File::options().write(true).truncate(true).open(&path).unwrap().write_all(b"4194305\n").unwrap();
        let owner = crate::base::thread::spawn("owner".into(), limits::STACK, move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        DataLock::take(&folder).unwrap();
        drop(owner);
    }
}
