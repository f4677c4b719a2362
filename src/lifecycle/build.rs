//! Builds: one at a time for each workspace, journaled, cancellable. The root is made beside its place and moved
//! there when it is complete; an existing one is only given up for `rebuild`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Build, ENDING, Lifecycle, build_log_path, site};
use crate::base::ids::{Distro, Network};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result};
use crate::containers::BuildLog;
use crate::containers::images::Pull;
use crate::containers::roots::Site;
use crate::proc::Cancel;
use crate::store::tree;
use crate::workspaces::{Job, Record, Workspace};

impl Lifecycle {
    /// Accepts a build and returns the workspace as `building`; the work goes on in the background.
    ///
    /// # Errors
    /// `NotAContainer`, `BuildRunning`, `RebuildRequired`, `Busy`, `WorkspaceNotFound`.
    pub fn start_build(
        self: &Arc<Self>,
        id: Uuid,
        distro: Option<Distro>,
        rebuild: bool,
    ) -> Result<Arc<Record>> {
        let workspace = self.registry.get(id)?;
        if workspace.record().shown.network() == Network::Private {
            self.engine.networks().check()?;
        }
        let cancel = Cancel::new()?;
        let before = workspace.update(|record| {
            let before = record.clone();
            let has_root = self.has_root(&workspace, record);
            record.start_build(distro, rebuild, has_root, self.built_distro(&workspace))?;
            Ok(before)
        })?;
        lock(&self.builds).insert(id, Build { cancel: cancel.clone(), begun: false });
        if workspace.check_alive().is_err() {
            // Deletion began between: it may have looked for a build before this one was entered.
            cancel.cancel();
        }
        let accepted = workspace.record();
        let job = {
            let (lifecycle, workspace) = (self.clone(), workspace.clone());
            move || lifecycle.build(&workspace, &cancel)
        };
        if self.builder.submit(job).is_err() {
            lock(&self.builds).remove(&id);
            workspace.update(|record| {
                *record = before;
                Ok(())
            })?;
            return Err(Error::new(Code::Busy, "Too many builds are waiting; try again later"));
        }
        Ok(accepted)
    }

    /// The job on the builder's thread.
    fn build(&self, workspace: &Workspace, cancel: &Cancel) {
        match lock(&self.builds).get_mut(&workspace.id()) {
            Some(build) => build.begun = true,
            // Deleted while it waited for its turn.
            None => return,
        }
        let result = self.build_steps(workspace, cancel);
        if let Err(error) = &result {
            log::warn!("build of workspace {}: {error}", workspace.id());
        }
        finish(workspace, result.err().map(|error| format!("Container build failed: {}", error.message())));
        lock(&self.builds).remove(&workspace.id());
    }

    fn build_steps(&self, workspace: &Workspace, cancel: &Cancel) -> Result<()> {
        let record = workspace.record();
        let site = site(workspace, &record);
        let Some(Job::Build { fresh }) = record.job else { return Ok(()) };
        let mut log = BuildLog::create(&build_log_path(&record))?;
        let cancelled = || Error::new(Code::Cancelled, "The build was cancelled");
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        self.log_warnings(&record, &mut log);
        if fresh {
            let distro = record.shown.distro.unwrap_or(Distro::DEFAULT);
            log.say(format!("Building container with {distro}"));
            // Before the old root is given up: where there is no image and none can be made, it stays.
            let image = self.images.base(distro, Pull::Missing, &mut log, cancel)?;
            // New runs are refused since the status changed; those under way hold the old root.
            if !self.runs.end_all(workspace.id(), ENDING) {
                return Err(Error::internal("A command in the workspace could not be ended"));
            }
            self.engine.remove(&workspace.machine_name());
            self.give_up(&site)?;
            let kind = self.roots.make(&site, &image, &mut log, cancel)?;
            if cancel.is_cancelled() {
                self.give_up(&site)?;
                return Err(cancelled());
            }
            log.say(format!("The root is ready ({})", kind.as_str()));
            log.say("Base system installed");
        } else {
            log.say("The container exists; it is kept");
        }
        let synced = self.sync_files(workspace, &record)?;
        if synced.written > 0 {
            log.say(format!("Wrote {} files of skills and tools", synced.written));
        }
        self.run_init_in_build(workspace, &record, &mut log, cancel)?;
        log.say("Ready");
        Ok(())
    }

    /// Gives an old root up: into the trash where that is one rename, else removed on the spot.
    pub(super) fn give_up(&self, site: &Site) -> Result<()> {
        self.roots.discard(site, |root| self.put_away(root))?;
        self.empty_trash();
        Ok(())
    }

    /// Gets a folder out of the way, which need not exist.
    pub(super) fn put_away(&self, folder: &Path) -> Result<()> {
        if folder.symlink_metadata().is_err() {
            return Ok(());
        }
        if let Some(mount) = tree::mounts_below(folder)?.first() {
            return Err(Error::new(
                Code::MountedInside,
                format!("{} is mounted inside the workspace; unmount it first", mount.display()),
            ));
        }
        if self.registry.discard_folder(folder).is_ok() {
            self.empty_trash();
            return Ok(());
        }
        remove_in_place(folder)
    }

    /// What an existing root says of itself; the workload may have changed it, so it decides nothing but a question.
    fn built_distro(&self, workspace: &Workspace) -> Option<Distro> {
        let root = self.files(workspace).ok()?;
        let text = String::from_utf8(root.read("etc/os-release", 64 << 10).ok()??).ok()?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|v| v.trim_matches(['"', '\'']))
        };
        match (field("ID")?, field("VERSION_CODENAME")) {
            ("arch", _) => Some(Distro::ArchLinux),
            (_, Some(codename)) => Distro::parse(codename).ok(),
            _ => None,
        }
    }
}

pub(super) fn remove_in_place(path: &Path) -> Result<()> {
    match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (Some(parent), Some(name)) => tree::remove_tree(parent, name),
        _ => Err(Error::internal("a root without a name")),
    }
}

/// Records the end of a job. A full disk may refuse the record for a while; memory and disk must not disagree, so
/// it is tried again, and after a restart the start-up repair says what is true.
pub(super) fn finish(workspace: &Workspace, error: Option<String>) {
    const TRIES: u32 = 60;
    for _ in 0..TRIES {
        match workspace.update(|record| {
            record.finish(error.clone());
            Ok(())
        }) {
            Ok(()) => return,
            Err(failed) if failed.code() == Code::WorkspaceNotFound => return,
            Err(failed) => log::error!("workspace {}: {failed}", workspace.id()),
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
