//! What excludes each other in one workspace: builds, init scripts, snapshots, restores. Whoever begins such work enters it
//! here first, so that a second one is refused, and deletion, `DELETE …/build` and the server's end find and end it.
//!
//! Lock: `builds`, a leaf.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Lifecycle;
use super::build::update_until_saved;
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, limits};
use crate::proc::Cancel;
use crate::workspaces::{Workspace, WorkspaceRecord};

/// Work that was accepted.
pub(super) struct ActiveJob {
    number: u64,
    pub(super) cancel: Cancel,
    /// A worker has it; before that, taking it out of the table is enough to cancel it.
    started: bool,
    /// What the record was before a build that waits for a worker.
    before: Option<Arc<WorkspaceRecord>>,
}

/// The work's place in the table, for as long as it lasts.
pub(super) struct JobGuard {
    lifecycle: Arc<Lifecycle>,
    workspace: Uuid,
    number: u64,
    pub(super) cancel: Cancel,
}

static NUMBERS: AtomicU64 = AtomicU64::new(0);

impl Lifecycle {
    /// Enters work on a workspace. `waits`: it waits for a worker, which says [`Entered::begin`].
    ///
    /// # Errors
    /// `BuildRunning` while there is other such work.
    pub(super) fn enter_job(self: &Arc<Self>, workspace: &Workspace, waits: bool) -> Result<JobGuard> {
        self.enter_job_with(workspace, waits, Cancel::new()?)
    }

    /// The same for work that is to end with other work.
    pub(super) fn enter_job_with(
        self: &Arc<Self>,
        workspace: &Workspace,
        waits: bool,
        cancel: Cancel,
    ) -> Result<JobGuard> {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let mut builds = lock(&self.builds); // LOCK: leaf
        if builds.contains_key(&workspace.id()) {
            return Err(Error::new(Code::BuildRunning, "Workspace build already in progress"));
        }
        let build = ActiveJob { number, cancel: cancel.clone(), started: !waits, before: None };
        builds.insert(workspace.id(), build);
        drop(builds);
        if workspace.check_alive().is_err() {
            // Deletion began between: it may have looked for work before this was entered.
            cancel.cancel();
        }
        Ok(JobGuard { lifecycle: self.clone(), workspace: workspace.id(), number, cancel })
    }

    /// Ends a build or init script before its time, and returns when it has let go of the workspace.
    ///
    /// # Errors
    /// `Conflict` when there is none; `Busy` when it does not end in time; `WorkspaceNotFound`.
    pub fn cancel_build(&self, id: Uuid) -> Result<Arc<WorkspaceRecord>> {
        let workspace = self.registry.get(id)?;
        if !lock(&self.builds).contains_key(&id) {
            return Err(Error::new(Code::Conflict, "No build of this workspace is under way"));
        }
        if let Some(before) = self.end_job(id, limits::CANCEL_BUILD)? {
            workspace.update(|record| {
                *record = WorkspaceRecord::clone(&before);
                Ok(())
            })?;
            self.build_ended(&workspace.record());
        }
        // The last thing that a build does is to say how it ended.
        let deadline = Instant::now() + limits::CANCEL_BUILD;
        while workspace.record().job.is_some() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(workspace.record())
    }

    /// Ends a workspace's work, and returns when it has ended; what its record was, if no worker had begun.
    ///
    /// # Errors
    /// `BuildRunning` when it does not end in time.
    pub(super) fn end_job(&self, id: Uuid, within: Duration) -> Result<Option<Arc<WorkspaceRecord>>> {
        let deadline = Instant::now() + within;
        loop {
            {
                let mut builds = lock(&self.builds); // LOCK: leaf
                match builds.get(&id) {
                    None => return Ok(None),
                    Some(build) if build.started => build.cancel.cancel(),
                    Some(_) => return Ok(builds.remove(&id).and_then(|build| build.before)),
                }
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    Code::BuildRunning,
                    "The build could not be ended in time; try again",
                ));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl JobGuard {
    /// What the record is to be again if the work is cancelled before a worker has it.
    pub(super) fn remember(&self, before: Arc<WorkspaceRecord>) {
        if let Some(build) = lock(&self.lifecycle.builds).get_mut(&self.workspace) {
            build.before = Some(before);
        }
    }

    /// A worker has it; `false`: it was cancelled while it waited.
    pub(super) fn begin(&self) -> bool {
        let mut builds = lock(&self.lifecycle.builds); // LOCK: leaf
        let ours = builds.get_mut(&self.workspace).filter(|build| build.number == self.number);
        ours.map(|build| build.started = true).is_some()
    }
}

impl JobGuard {
    /// Gives the place back before the value goes.
    pub(super) fn leave(&self) {
        let mut builds = lock(&self.lifecycle.builds); // LOCK: leaf
        if builds.get(&self.workspace).is_some_and(|build| build.number == self.number) {
            builds.remove(&self.workspace);
        }
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Work that is journaled in the record. What is not ended leaves the workspace as it was: work that no worker took, or that
/// failed and has changed nothing.
pub(super) struct JournaledJob {
    pub(super) workspace: Arc<Workspace>,
    pub(super) guard: JobGuard,
    before: Option<WorkspaceRecord>,
}

impl Lifecycle {
    /// Enters work, and has `begin` check and note it in the record.
    ///
    /// # Errors
    /// `BuildRunning`; what `begin` said.
    pub(super) fn journal(
        self: &Arc<Self>,
        workspace: Arc<Workspace>,
        begin: impl FnOnce(&Workspace, &mut WorkspaceRecord) -> Result<()>,
    ) -> Result<JournaledJob> {
        let entered = self.enter_job(&workspace, false)?;
        JournaledJob::begin(workspace, entered, begin)
    }
}

impl JournaledJob {
    /// The same for work that was entered.
    pub(super) fn begin(
        workspace: Arc<Workspace>,
        entered: JobGuard,
        begin: impl FnOnce(&Workspace, &mut WorkspaceRecord) -> Result<()>,
    ) -> Result<JournaledJob> {
        let before = workspace.update(|record| {
            let before = record.clone();
            begin(&workspace, record)?;
            Ok(before)
        })?;
        Ok(JournaledJob { workspace, guard: entered, before: Some(before) })
    }

    /// Notes how it ended.
    pub(super) fn end(mut self, change: impl Fn(&mut WorkspaceRecord)) {
        self.before = None;
        // Whoever sees the new status may begin the next work; until then the record refuses it.
        self.guard.leave();
        update_until_saved(&self.workspace, change);
    }
}

impl Drop for JournaledJob {
    fn drop(&mut self) {
        let Some(before) = self.before.take() else { return };
        self.guard.leave();
        update_until_saved(&self.workspace, |record| {
            record.job = before.job;
            record.view.status = before.view.status;
            record.view.error_message.clone_from(&before.view.error_message);
        });
    }
}
