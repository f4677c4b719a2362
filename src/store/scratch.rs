//! Helpers for unit tests: a temporary folder, and mounts that are unmounted before the folder is removed.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, mkdirat, mknodat, openat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use uuid::Uuid;

/// A temporary folder for one test.
pub(crate) struct TestFolder(PathBuf);

/// A mount that is unmounted on drop. Drop it before its [`TestFolder`].
pub(super) struct TestMount(PathBuf);

impl TestFolder {
    pub(crate) fn new() -> TestFolder {
        let path = std::env::temp_dir().join(format!("berth-test-{}", Uuid::new_v4().simple()));
        fs::create_dir(&path).unwrap();
        TestFolder(path)
    }

    pub(super) fn mount_tmpfs(&self, name: &str, options: &str) -> TestMount {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), Some(&*options)).unwrap();
        TestMount(path)
    }

    /// Creates a chain of `levels` folders `d` below the folder `name`, each beside an empty folder that the file
    /// system may list before or after it.
    pub(super) fn deep(&self, name: &str, levels: usize) {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut here = openat(CWD, self.join(name), flags, Mode::empty()).unwrap();
        for level in 0..levels {
            mkdirat(&here, format!("e{level}"), Mode::RWXU).unwrap();
            mkdirat(&here, "d", Mode::RWXU).unwrap();
            here = openat(&here, "d", flags, Mode::empty()).unwrap();
        }
    }

    pub(super) fn fifo(&self, name: &str) {
        mknodat(CWD, self.join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
}

impl TestMount {
    pub(super) fn bind(source: &Path, target: PathBuf) -> TestMount {
        fs::create_dir_all(&target).unwrap();
        TestMount::bind_file(source, target)
    }

    pub(super) fn bind_file(source: &Path, target: PathBuf) -> TestMount {
        mount_bind(source, &target).unwrap();
        TestMount(target)
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

impl Deref for TestFolder {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TestFolder {
    fn drop(&mut self) {
        let name = self.0.file_name().and_then(|name| name.to_str()).unwrap();
        let removed = super::tree::remove_tree(self.0.parent().unwrap(), name);
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}
