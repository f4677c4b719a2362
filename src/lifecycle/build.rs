//! Builds of containers. Each workspace has at most one build at a time; a build is journaled, can be cancelled, and
//! is reported step by step ([`super::feed`]). **Invariant:** a root folder appears complete, and an existing root is
//! discarded only for `rebuild`, after the image for the new root is available.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use uuid::Uuid;

use super::feed::{BuildFeed, BuildStep};
use super::jobs::JobGuard;
use super::{END_RUNS_TIMEOUT, Lifecycle, build_log_path, site};
use crate::base::ids::{Distro, Network};
use crate::base::logging::counted;
use crate::base::shares::ShareHolder;
use crate::base::{Code, Error, Result};
use crate::images::BuildLog;
use crate::images::Pull;
use crate::proc::Cancel;
use crate::roots::RootLocation;
use crate::store::tree;
use crate::workspaces::{
    ContainerBase, Workspace, WorkspaceJob, WorkspaceKind, WorkspaceRecord, WorkspaceStatus,
};

/// The options of a build.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// The base to build from, if it differs from the current one.
    pub base: Option<ContainerBase>,
    /// Whether to discard an existing root folder.
    pub rebuild: bool,
    /// Whether a distribution's image may be built.
    pub pull: Pull,
}

impl Lifecycle {
    /// Accepts a build and returns the workspace with status `building`; a worker thread runs the build. The response
    /// for a ready workspace is the same, as in sandboxed.sh, but its build only syncs skills and tools, so that
    /// commands keep running and no init script runs twice.
    ///
    /// # Errors
    /// Fails with `NotAContainer`, `BuildRunning`, `RebuildRequired`, `ImageNotFound`, `Busy` or `WorkspaceNotFound`,
    /// or with `InvalidPayload` if the request wants to pull an imported image.
    pub fn start_build(
        self: &Arc<Self>,
        id: Uuid,
        asked: BuildRequest,
        party: ShareHolder,
    ) -> Result<Arc<WorkspaceRecord>> {
        let workspace = self.registry.get(id)?;
        check_container(&workspace.record())?;
        if workspace.record().view.network() == Network::Private {
            self.engine.networks().check()?;
        }
        let guard = self.enter_job(&workspace, true)?;
        let before = workspace.record();
        let BuildRequest { base, rebuild, pull } = asked;
        let has_root = self.has_root(&workspace, &before);
        let begin = |record: &mut WorkspaceRecord| {
            record.start_build(base.clone(), rebuild, has_root, self.built_distro(&workspace))?;
            self.check_image(record, pull)
        };
        if has_root && !rebuild && before.view.status == WorkspaceStatus::Ready {
            let mut accepted = WorkspaceRecord::clone(&before);
            begin(&mut accepted)?;
            drop(guard);
            self.new_feed(id);
            self.sync_or_warn(&workspace);
            self.build_ended(&workspace.record());
            return Ok(Arc::new(accepted));
        }
        workspace.update(begin)?;
        guard.remember(before.clone());
        let accepted = workspace.record();
        let feed = self.new_feed(id);
        let job = {
            let (lifecycle, workspace, before) = (self.clone(), workspace.clone(), before.clone());
            move || lifecycle.build(&workspace, &before, pull, guard, &feed)
        };
        if let Err(refused) = self.builder.submit(party, job) {
            workspace.update(|record| {
                *record = WorkspaceRecord::clone(&before);
                Ok(())
            })?;
            self.build_ended(&before);
            let full = || Error::new(Code::Busy, "Too many builds are waiting; try again later");
            return Err(refused.error("builds", full));
        }
        Ok(accepted)
    }

    /// Runs a build on the current thread, a worker.
    fn build(
        &self,
        workspace: &Workspace,
        before: &WorkspaceRecord,
        pull: Pull,
        guard: JobGuard,
        feed: &Arc<BuildFeed>,
    ) {
        // If `begin` returns false, the build was cancelled while queued, or its workspace was deleted.
        if guard.begin() {
            let mut done = BuildProgress::Unchanged;
            let result = self.build_steps(workspace, pull, &guard.cancel, feed, &mut done);
            feed.end(result.as_ref().err());
            if let Err(error) = &result {
                log::warn!("build of workspace {}: {error}", workspace.id());
            }
            self.finish_build(workspace, before, guard, result, done);
            self.build_ended(&workspace.record());
        }
    }

    /// Records the outcome of a build, and undoes a build that a client has cancelled.
    fn finish_build(
        &self,
        workspace: &Workspace,
        before: &WorkspaceRecord,
        guard: JobGuard,
        result: Result<()>,
        done: BuildProgress,
    ) {
        if self.closing.load(Ordering::SeqCst) && result.as_ref().is_err_and(|e| e.code() == Code::Cancelled)
        {
            // The server's shutdown cancelled the build, so it is not undone. The build stays journaled, and the next
            // start reports it as interrupted, as after a crash.
            return;
        }
        let (status, message) = match result {
            Ok(()) => (WorkspaceStatus::Ready, None),
            Err(error) if error.code() != Code::Cancelled => {
                (WorkspaceStatus::Error, Some(format!("Container build failed: {}", error.message())))
            }
            Err(_) => match done {
                BuildProgress::Unchanged => (before.view.status, before.view.error_message.clone()),
                BuildProgress::RootRemoved => (WorkspaceStatus::Pending, None),
                BuildProgress::RootKept => {
                    let message = "The build was cancelled; build again, or run the init script again";
                    (WorkspaceStatus::Error, Some(message.to_owned()))
                }
                BuildProgress::RootCreated => {
                    self.engine.remove(&workspace.machine_name());
                    match self.discard_root(&site(workspace, &workspace.record())) {
                        Ok(()) => (WorkspaceStatus::Pending, None),
                        Err(error) => {
                            (WorkspaceStatus::Error, Some(format!("The build was cancelled; {error}")))
                        }
                    }
                }
            },
        };
        // The guard is released first, because a client that sees the new status may begin a build at once. Until the
        // record is updated, it refuses a new build.
        drop(guard);
        update_until_saved(workspace, |record| {
            record.job = None;
            record.view.status = status;
            record.view.error_message.clone_from(&message);
        });
        self.jobs.outcome_recorded();
    }

    fn build_steps(
        &self,
        workspace: &Workspace,
        pull: Pull,
        cancel: &Cancel,
        feed: &Arc<BuildFeed>,
        done: &mut BuildProgress,
    ) -> Result<()> {
        let record = workspace.record();
        let site = site(workspace, &record);
        let Some(WorkspaceJob::Build { fresh }) = record.job else { return Ok(()) };
        let mut log = BuildLog::create(&build_log_path(workspace))?;
        log.listen({
            let feed = feed.clone();
            move |line| {
                if line == OWN_SCRIPT {
                    feed.begin(BuildStep::Script);
                }
                feed.line(line);
            }
        });
        let go_on = || match cancel.is_cancelled() {
            true => Err(Error::new(Code::Cancelled, "The build was cancelled")),
            false => Ok(()),
        };
        go_on()?;
        self.log_warnings(workspace, &record, &mut log);
        if fresh {
            let distro = record.view.distro.unwrap_or(Distro::DEFAULT);
            let from = record.view.image.as_deref().unwrap_or(distro.as_str());
            log.note(format!("Building container with {from}"));
            feed.begin(BuildStep::Image);
            // The image is chosen before the old root is discarded, so that the old root is kept if no image is
            // available.
            let image = self.image_of(&record, pull, &mut log, cancel)?;
            go_on()?;
            feed.begin(BuildStep::Root);
            // The status `building` refuses new runs; runs that are already running still use the old root.
            if !self.runs.end_all(workspace.id(), END_RUNS_TIMEOUT) {
                return Err(Error::internal("A command in the workspace could not be stopped"));
            }
            self.engine.remove(&workspace.machine_name());
            self.discard_root(&site)?;
            *done = BuildProgress::RootRemoved;
            let kind = self.roots.make(&site, &image, &mut log, cancel)?;
            *done = BuildProgress::RootCreated;
            self.bound_disk(workspace, &record);
            log.note(format!("Base system installed ({})", kind.as_str()));
            go_on()?;
        } else {
            *done = BuildProgress::RootKept;
            log.note("The container exists; it is kept");
        }
        feed.begin(BuildStep::Sync);
        let synced = self.sync_files(workspace, &record)?;
        if synced.written > 0 {
            log.note(format!("Wrote {} of skills and tools", counted(synced.written, "file")));
        }
        go_on()?;
        self.run_init_in_build(workspace, &record, &mut log, feed, cancel)?;
        feed.end(None);
        log.note("Ready");
        Ok(())
    }

    /// Discards a root folder: moves it into the trash if a rename is possible, otherwise removes it at once.
    pub(super) fn discard_root(&self, site: &RootLocation) -> Result<()> {
        self.roots.discard(site, |root| self.discard_folder(root))?;
        self.empty_trash();
        Ok(())
    }

    /// Moves a folder into the trash, or removes it at once if a rename is not possible. Does nothing if it does not
    /// exist.
    pub(super) fn discard_folder(&self, folder: &Path) -> Result<()> {
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

    /// Returns the distribution that the root's os-release names. The workload can change that file, so the result
    /// only decides whether `rebuild` is required.
    fn built_distro(&self, workspace: &Workspace) -> Option<Distro> {
        if self.roots.uses_host_programs(&site(workspace, &workspace.record())) {
            return Some(Distro::Host);
        }
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

fn remove_in_place(path: &Path) -> Result<()> {
    match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
        (Some(parent), Some(name)) => tree::remove_tree(parent, name),
        _ => Err(Error::internal("the root's path has no file name")),
    }
}

/// How far a build has come, for undoing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BuildProgress {
    /// The build has not changed the workspace.
    Unchanged,
    /// The old root was discarded.
    RootRemoved,
    /// The build has created a new root.
    RootCreated,
    /// The existing root was kept, and the build may have changed it.
    RootKept,
}

/// The line in the build log between the output of the library's fragments and that of the workspace's own script.
pub(super) const OWN_SCRIPT: &str = "[berth] Running the workspace's own init script";

/// Records the end of a job in the workspace's record.
pub(super) fn finish_job(workspace: &Workspace, error: Option<String>) {
    update_until_saved(workspace, |record| record.finish(error.clone()));
}

/// Applies a change of the record that must not be lost. The write fails on a full disk, and the record in memory must
/// not differ from the one on disk, so the change is retried. If all attempts fail, the repair at the next start
/// corrects the record.
pub(super) fn update_until_saved(workspace: &Workspace, change: impl Fn(&mut WorkspaceRecord)) {
    const TRIES: u32 = 60;
    for _ in 0..TRIES {
        match workspace.update(|record| {
            change(record);
            Ok(())
        }) {
            Ok(()) => return,
            Err(failed) if failed.code() == Code::WorkspaceNotFound => return,
            Err(failed) => log::error!("workspace {}: {failed}", workspace.id()),
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn check_container(record: &WorkspaceRecord) -> Result<()> {
    if record.view.workspace_type == WorkspaceKind::Container {
        return Ok(());
    }
    Err(Error::new(Code::NotAContainer, "Workspace is not a container type"))
}
