//! Temporary folders that are removed with their owner, also if a killed server has left mounts in them, and also
//! after a test run that was itself killed. Never removes files through a mount.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::procs;

/// A folder below `target/tmp`: on the disk that holds the image cache, and with a short name, because the path of an
/// agent's socket below it must fit into the 108 bytes of a Unix address.
#[derive(Debug)]
pub struct Scratch(PathBuf);

static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

impl Scratch {
    pub fn new() -> Scratch {
        SWEEP.call_once(sweep);
        let name = format!("it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    /// The same in a tmpfs, if there is enough memory: container tests copy a whole Debian some hundred times, which
    /// takes four times as long on a disk.
    pub fn in_memory() -> Scratch {
        let scratch = Scratch::new();
        if free_memory() > 8 << 30 {
            // A failure costs only time.
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", "size=6g,mode=755", "it-scratch"]).arg(scratch.path());
            let _ = mount.stderr(Stdio::null()).status();
        }
        scratch
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Creates a folder in it.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Writes a file in it.
    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn free_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

/// Detaches the mounts below `path`, then removes it; if a mount stays, so does the folder.
pub fn remove(path: &Path) {
    for point in procs::mounts_below(path).iter().rev() {
        let _ = Command::new("umount").arg("-l").arg(point).status();
    }
    if procs::mounts_below(path).is_empty() {
        let _ = fs::remove_dir_all(path);
    }
}

/// Removes the folders of test runs that were killed before they could clean up.
fn sweep() {
    let Ok(entries) = fs::read_dir(env!("CARGO_TARGET_TMPDIR")) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix("it-")).and_then(|n| n.split('-').next());
        if let Some(owner) = owner {
            if !Path::new("/proc").join(owner).exists() {
                remove(&entry.path());
            }
        }
    }
}
