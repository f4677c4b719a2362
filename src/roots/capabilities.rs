//! Determines which kinds of roots this host supports by making each kind in the directory in which roots are
//! stored.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use super::namespace::{MountNamespace, OverlaySpec};
use super::record::RootKind;
use crate::base::{At, Error, Result};
use crate::store::{file, tree};

/// First host ID for the test; no file has such an owner already.
const FIRST_ID: u32 = 0x8_0000;

/// The kinds of roots that this host supports.
#[derive(Debug)]
pub struct RootCapabilities {
    /// The cheapest supported kind.
    pub best: RootKind,
    /// Reason why overlays do not work; `None` if they work.
    pub no_overlay: Option<String>,
    /// Reason why reflink copies do not work; `None` if they work.
    pub no_reflink: Option<String>,
}

impl RootCapabilities {
    /// Tests all kinds of roots below `folder`, which must exist.
    ///
    /// # Errors
    /// When the server cannot create files in `folder`.
    pub fn probe_folder(folder: &Path) -> Result<RootCapabilities> {
        let mounts = folder.join(".mounts");
        file::create_dir_private(&mounts)?;
        Ok(probe(folder, &MountNamespace::new(&mounts)))
    }
}

/// Tests all kinds of roots below `folder`, which must exist.
pub(super) fn probe(folder: &Path, namespace: &Result<Arc<MountNamespace>>) -> RootCapabilities {
    let tried = |way: &dyn Fn(&Path) -> Result<()>| {
        let name = format!(".try-{}", uuid::Uuid::new_v4());
        let path = folder.join(&name);
        let done = file::create_dir_private(&path).and_then(|()| way(&path));
        let removed = tree::remove_tree(folder, &name);
        done.and(removed).err().map(|error| error.to_string())
    };
    let no_overlay = tried(&|path| match namespace {
        Ok(namespace) => try_overlay(path, namespace),
        Err(error) => Err(Error::internal(error.to_string())),
    });
    let no_reflink = tried(&try_reflink);
    let best = match (&no_overlay, &no_reflink) {
        (None, _) => RootKind::Overlay,
        (_, None) => RootKind::Reflink,
        _ => RootKind::Copy,
    };
    RootCapabilities { best, no_overlay, no_reflink }
}

/// Mounts an overlay and checks three facts: a lower file appears with its mapped owner, a changed file is stored
/// in the upper layer with its owner on disk, and a file can be removed.
fn try_overlay(path: &Path, namespace: &Arc<MountNamespace>) -> Result<()> {
    for folder in ["below", "fs", "work"] {
        std::fs::create_dir(path.join(folder)).at("make", folder)?;
    }
    for name in ["changed", "removed"] {
        file::write_atomic(&path.join("below").join(name), b"x", 0o600)?;
    }
    let layers = OverlaySpec {
        lowers: vec![path.join("below")],
        upper: Some(path.to_owned()),
        first_id: Some(FIRST_ID),
    };
    let merged = namespace.merge(&layers)?;
    let inside = |name: &str| format!("/proc/self/fd/{}/{name}", merged.top.as_raw_fd());
    let owner = |path: &str| std::fs::metadata(path).map(|meta| meta.uid()).at("look at", path);
    let same = |what: &str, found: u32, wanted: u32| {
        if found == wanted { Ok(()) } else { Err(Error::internal(format!("{what} belongs to {found}"))) }
    };
    same("a file from below", owner(&inside("changed"))?, FIRST_ID)?;
    std::fs::set_permissions(inside("changed"), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .at("change", "a file from below")?;
    std::fs::remove_file(inside("removed")).at("remove", "a file from below")?;
    let above = path.join("fs/changed");
    same("a changed file", owner(&above.to_string_lossy())?, owner(&path.to_string_lossy())?)?;
    if !path.join("below/removed").exists() || Path::new(&inside("removed")).exists() {
        return Err(Error::internal("A removed file still exists, or was removed from the lower layer"));
    }
    Ok(())
}

/// Tries to create two files that share blocks.
fn try_reflink(path: &Path) -> Result<()> {
    file::write_atomic(&path.join("a"), &[7; 8192], 0o600)?;
    let from = File::open(path.join("a")).at("open", "a file")?;
    let to = File::create_new(path.join("b")).at("make", "a file")?;
    rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()).at("share the blocks of", "a file")
}
