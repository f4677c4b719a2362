//! Roots from a base image: an empty layer over it, or a copy. Also their end.

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
    /// Makes the root of a place that has none; says how. It is complete or not there.
    ///
    /// # Errors
    /// `BuildFailed`, `Cancelled`, `DiskFull`, `Unavailable` for a kind that this host cannot make.
    pub fn make(
        &self,
        site: &RootLocation,
        image: &Image,
        log: &mut BuildLog,
        cancel: &Cancel,
    ) -> Result<RootKind> {
        let kind = match self.kind_to_make()? {
            // Whoever names a place of their own wants the files there.
            RootKind::Overlay if !site.is_own() && self.capabilities().no_reflink.is_none() => {
                RootKind::Reflink
            }
            RootKind::Overlay if !site.is_own() => RootKind::Copy,
            kind => kind,
        };
        let slot = self.slot(site)?;
        self.forget_size(site);
        let host = self.images.is_host_image(&image.id)?;
        if kind == RootKind::Overlay {
            let stack = LayerStack { image: Some(image.id.clone()), host, ..LayerStack::default() };
            let mut slot = lock(&slot);
            slot.state = Some(self.create_layered(site, stack, None)?);
            return Ok(kind);
        }
        // Whoever asks about the root meanwhile does not wait for the copy.
        let StagingArea { home, path: staging, project } = make_staging(site, kind)?;
        let made = self.copy_logged(&image.root, &staging, kind, log, cancel).and_then(|()| {
            let base_bytes = base_usage(site, &staging)?;
            std::fs::rename(&staging, home.root()).at("move", &staging)?;
            Ok(base_bytes)
        });
        let base_bytes = made.inspect_err(|_| drop(remove_folder(&staging)))?;
        let state =
            RootRecord::for_folder(kind, LayerStack { host, base_bytes, ..LayerStack::default() }, project);
        state.write(&site.folder)?;
        lock(&slot).state = Some(state);
        Ok(kind)
    }

    /// A new empty layer over `stack`, as the root of `site`.
    pub(super) fn create_layered(
        &self,
        site: &RootLocation,
        stack: LayerStack,
        first_id: Option<u32>,
    ) -> Result<RootRecord> {
        let (upper, _pins) = self.layers.create(Some(super::disk_limit::layers_project(site)))?;
        file::create_dir_private(&site.attached())?;
        let first_id = match first_id {
            Some(known) => known,
            None => lock(&self.ranges).pick(id_seed(site))?,
        };
        let state = RootRecord {
            kind: RootKind::Overlay,
            stack,
            upper: Some(upper),
            first_id: Some(first_id),
            project: None,
        };
        let _naming = lock(&self.reference_lock);
        if let Some(image) = &state.stack.image {
            self.images.hold(&self.images.get(image)?, &holder(&site.folder))?;
        }
        state.write(&site.folder)?;
        Ok(state)
    }

    /// Copies a tree with everything that it has.
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
        // Where blocks cannot be shared anyway, `auto` has the kernel copy (copy_file_range(2)), in two thirds of the time.
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

    /// Gives the root of `site` up. `put_away` gets a plain folder out of the way. The container must have been stopped.
    ///
    /// # Errors
    /// `Busy` when somebody has files of it open; what `put_away` said.
    pub fn discard(&self, site: &RootLocation, put_away: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let slot = self.slot(site)?;
        self.forget_size(site);
        let mut slot = lock(&slot);
        if slot.state.as_ref().is_some_and(|state| state.kind == RootKind::Overlay) {
            self.wait_exclusive(&mut slot)?;
            RootRecord::remove(&site.folder)?;
            // Only the place where it was attached in its container's namespace; whatever somebody put there stays.
            let _ = std::fs::remove_dir(site.attached());
        } else {
            if let Some(home) = site.home()? {
                put_away(&home.root())?;
            }
            RootRecord::remove(&site.folder)?;
        }
        self.release_image(site, slot.state.as_ref());
        self.clear_disk_limit(site, slot.state.as_ref());
        if let Some(first) = slot.state.take().and_then(|state| state.first_id) {
            lock(&self.ranges).release(first);
        }
        Ok(())
    }
}

pub(super) fn remove_folder(path: &Path) -> Result<()> {
    match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (Some(parent), Some(name)) => tree::remove_tree(parent, name),
        _ => Err(crate::base::Error::internal("a root without a name")),
    }
}

/// The last part of the folder's name is a random id.
pub(super) fn id_seed(site: &RootLocation) -> u32 {
    let name = site.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let digits: String = name.chars().filter(char::is_ascii_hexdigit).collect();
    u32::from_str_radix(digits.get(..8).unwrap_or("0"), 16).unwrap_or(0)
}
