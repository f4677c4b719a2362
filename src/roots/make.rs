//! Creates roots from a base image, as an empty layer over the image or as a copy of it, and removes roots.

use std::path::Path;

use uuid::Uuid;

use super::disk_limit::{StagingArea, base_usage, make_staging};
use super::record::{LayerStack, RootKind, RootRecord, holder};
use super::{RootLocation, Roots};
use crate::base::thread::lock;
use crate::base::{At, Result, limits};
use crate::images::BuildLog;
use crate::images::Image;
use crate::images::bootstrap::check_outcome;
use crate::proc::tools;
use crate::proc::{Cancel, Sink, Spec};
use crate::store::{file, tree};

impl Roots {
    /// Creates a root at `location`, where none exists, and returns its kind. After a failure, no root is left.
    ///
    /// # Errors
    /// `BuildFailed`, `Cancelled`, `DiskFull`; `Unavailable` when this host cannot make the required kind.
    pub fn make(
        &self,
        location: &RootLocation,
        image: &Image,
        log: &mut BuildLog,
        cancel: &Cancel,
    ) -> Result<RootKind> {
        let kind = match self.kind_to_make()? {
            // A user who names a path expects complete files at that path, so make a copy.
            RootKind::Overlay if !location.is_own() && self.capabilities().no_reflink.is_none() => {
                RootKind::Reflink
            }
            RootKind::Overlay if !location.is_own() => RootKind::Copy,
            kind => kind,
        };
        let slot = self.slot(location)?;
        self.forget_size(location);
        let host = self.images.is_host_image(&image.id)?;
        if kind == RootKind::Overlay {
            let stack = LayerStack { image: Some(image.id.clone()), host, ..LayerStack::default() };
            let mut slot = lock(&slot);
            slot.record = Some(self.create_layered(location, stack, None)?);
            return Ok(kind);
        }
        // The slot is not locked during the copy, so readers of the root's state do not wait.
        let StagingArea { home, path: staging, project } = make_staging(location, kind)?;
        let made = self.copy_logged(&image.root, &staging, kind, log, cancel).and_then(|()| {
            let base_bytes = base_usage(location, &staging)?;
            std::fs::rename(&staging, home.root()).at("move", &staging)?;
            Ok(base_bytes)
        });
        let base_bytes = made.inspect_err(|_| drop(remove_folder(&staging)))?;
        let record =
            RootRecord::for_folder(kind, LayerStack { host, base_bytes, ..LayerStack::default() }, project);
        record.write(&location.folder)?;
        lock(&slot).record = Some(record);
        Ok(kind)
    }

    /// Creates a root at `location` that consists of an empty layer over `stack`.
    pub(super) fn create_layered(
        &self,
        location: &RootLocation,
        stack: LayerStack,
        first_id: Option<u32>,
    ) -> Result<RootRecord> {
        let (upper, _pins) = self.layers.create(Some(super::disk_limit::layers_project(location)))?;
        file::create_dir_private(&location.attached())?;
        let first_id = match first_id {
            Some(known) => known,
            None => lock(&self.ranges).pick(id_seed(location))?,
        };
        let record = RootRecord {
            kind: RootKind::Overlay,
            stack,
            upper: Some(upper),
            first_id: Some(first_id),
            project: None,
        };
        let _naming = lock(&self.reference_lock);
        if let Some(image) = &record.stack.image {
            self.images.hold(&self.images.get(image)?, &holder(&location.folder))?;
        }
        record.write(&location.folder)?;
        Ok(record)
    }

    /// Copies a tree with all metadata, and writes the output of cp(1) to the build log.
    pub(super) fn copy_logged(
        &self,
        from: &Path,
        to: &Path,
        kind: RootKind,
        log: &mut BuildLog,
        cancel: &Cancel,
    ) -> Result<()> {
        log.new_step();
        let ended = self.run_cp(from, to, kind, log, cancel)?;
        check_outcome(ended, "copying the root", to, log)
    }

    pub(super) fn run_cp(
        &self,
        from: &Path,
        to: &Path,
        kind: RootKind,
        sink: &mut dyn Sink,
        cancel: &Cancel,
    ) -> Result<crate::proc::ProcessOutcome> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        // If blocks cannot be shared, `auto` lets the kernel copy (copy_file_range(2)), which takes two thirds of
        // the time of cp's own copy.
        let apart = kind == RootKind::Copy && self.capabilities().no_reflink.is_none();
        let reflink = if apart { "--reflink=never" } else { "--reflink=auto" };
        Spec::new(tools::require("cp")?)
            .args(["--archive", reflink, "--one-file-system", "--no-target-directory", "--"])
            .args([text(from), text(to)])
            .run(
                self.cgroups.group(&format!("builds/{}", Uuid::new_v4()))?,
                sink,
                limits::COPY_TIMEOUT,
                cancel,
            )
    }

    /// Removes the root at `location`; `put_away` disposes of a root's plain directory. The container must be
    /// stopped.
    ///
    /// # Errors
    /// `Busy` when files of the root are open; errors of `put_away`.
    pub fn discard(&self, location: &RootLocation, put_away: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let slot = self.slot(location)?;
        self.forget_size(location);
        let mut slot = lock(&slot);
        if slot.record.as_ref().is_some_and(|record| record.kind == RootKind::Overlay) {
            self.wait_exclusive(&mut slot)?;
            RootRecord::remove(&location.folder)?;
            // The directory is only a mount point for the container's namespace; it stays if it contains files.
            let _ = std::fs::remove_dir(location.attached());
        } else {
            if let Some(home) = location.home()? {
                put_away(&home.root())?;
            }
            RootRecord::remove(&location.folder)?;
        }
        self.release_image(location, slot.record.as_ref());
        self.clear_disk_limit(location, slot.record.as_ref());
        if let Some(first) = slot.record.take().and_then(|record| record.first_id) {
            lock(&self.ranges).release(first);
        }
        Ok(())
    }
}

pub(super) fn remove_folder(path: &Path) -> Result<()> {
    match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (Some(parent), Some(name)) => tree::remove_tree(parent, name),
        _ => Err(crate::base::Error::internal("The path of a root has no file name")),
    }
}

/// Derives a number from the name of the workspace's directory, which ends with a random ID.
pub(super) fn id_seed(location: &RootLocation) -> u32 {
    let name =
        location.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let digits: String = name.chars().filter(char::is_ascii_hexdigit).collect();
    u32::from_str_radix(digits.get(..8).unwrap_or("0"), 16).unwrap_or(0)
}
