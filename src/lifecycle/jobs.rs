//! Exclusive jobs of a workspace: builds, init scripts, snapshots, restores. A job is registered before it begins. A
//! second job of the same workspace is refused, and deletion, `DELETE …/build` and the server's shutdown can find and
//! stop it.
//!
//! Lock: the table of [`Jobs`], a leaf. The condition variable of the table is notified when a job leaves the table
//! and when the outcome of a job was recorded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Lifecycle;
use super::build::update_until_saved;
use crate::base::thread::lock;
use crate::base::{Code, Error, Result};
use crate::proc::Cancel;
use crate::workspaces::{Workspace, WorkspaceRecord};

/// How long a cancelled build may take to release its workspace before the client gets an error.
const CANCEL_BUILD: Duration = Duration::from_secs(10);

/// The registered jobs of all workspaces.
#[derive(Default)]
pub(super) struct Jobs {
    table: Mutex<JobTable>,
    changed: Condvar,
}

#[derive(Default)]
struct JobTable {
    active: HashMap<Uuid, ActiveJob>,
    /// The number of outcomes recorded so far. A waiting thread compares this number to notice that a record may have
    /// changed.
    recorded: u64,
}

/// A registered job.
struct ActiveJob {
    number: u64,
    cancel: Cancel,
    /// Whether a worker runs the job. A job that has not started is cancelled by removing it from the table.
    started: bool,
    /// The workspace's record before the job, if the job is a build that is still queued.
    before: Option<Arc<WorkspaceRecord>>,
}

/// Keeps a job registered until the guard is dropped.
pub(super) struct JobGuard {
    lifecycle: Arc<Lifecycle>,
    workspace: Uuid,
    number: u64,
    pub(super) cancel: Cancel,
}

static NUMBERS: AtomicU64 = AtomicU64::new(0);

impl Jobs {
    /// Returns whether a job of the workspace is registered.
    pub(super) fn has(&self, workspace: Uuid) -> bool {
        lock(&self.table).active.contains_key(&workspace)
    }

    /// Cancels all jobs, for the server's shutdown.
    pub(super) fn cancel_all(&self) {
        lock(&self.table).active.values().for_each(|job| job.cancel.cancel());
    }

    /// Wakes the threads that wait for a job's outcome. The caller has written the outcome to the record.
    pub(super) fn outcome_recorded(&self) {
        lock(&self.table).recorded += 1;
        self.changed.notify_all();
    }

    /// Waits until `is_recorded` returns true or the deadline has passed. `is_recorded` is called after each recorded
    /// outcome, without the lock.
    pub(super) fn wait_for_outcome(&self, deadline: Instant, is_recorded: impl Fn() -> bool) {
        loop {
            let seen = lock(&self.table).recorded;
            let remaining = deadline.saturating_duration_since(Instant::now());
            if is_recorded() || remaining.is_zero() {
                return;
            }
            let is_same = |table: &mut JobTable| table.recorded == seen;
            drop(self.changed.wait_timeout_while(lock(&self.table), remaining, is_same));
        }
    }
}

impl Lifecycle {
    /// Registers a job. `waits` is true if the job is queued for a worker, which then calls [`JobGuard::begin`].
    ///
    /// # Errors
    /// Fails with `BuildRunning` while another job of the workspace is registered.
    pub(super) fn enter_job(self: &Arc<Self>, workspace: &Workspace, waits: bool) -> Result<JobGuard> {
        self.enter_job_with(workspace, waits, Cancel::new()?)
    }

    /// Registers a job that uses the given cancellation, so that it can share the cancellation of another job.
    pub(super) fn enter_job_with(
        self: &Arc<Self>,
        workspace: &Workspace,
        waits: bool,
        cancel: Cancel,
    ) -> Result<JobGuard> {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let mut table = lock(&self.jobs.table); // LOCK: leaf
        if table.active.contains_key(&workspace.id()) {
            return Err(Error::new(Code::BuildRunning, "Workspace build already in progress"));
        }
        let job = ActiveJob { number, cancel: cancel.clone(), started: !waits, before: None };
        table.active.insert(workspace.id(), job);
        drop(table);
        if workspace.check_alive().is_err() {
            // A deletion has begun. It may have looked for jobs before this job was registered, so the job is
            // cancelled here.
            cancel.cancel();
        }
        Ok(JobGuard { lifecycle: self.clone(), workspace: workspace.id(), number, cancel })
    }

    /// Cancels a build or init script, and returns once the job has stopped using the workspace.
    ///
    /// # Errors
    /// Fails with `Conflict` if no job is running, with `Busy` if the job does not stop in time, or with
    /// `WorkspaceNotFound`.
    pub fn cancel_build(&self, id: Uuid) -> Result<Arc<WorkspaceRecord>> {
        let workspace = self.registry.get(id)?;
        if !self.jobs.has(id) {
            return Err(Error::new(Code::Conflict, "No build of this workspace is running"));
        }
        if let Some(before) = self.end_job(id, CANCEL_BUILD)? {
            workspace.update(|record| {
                *record = WorkspaceRecord::clone(&before);
                Ok(())
            })?;
            self.build_ended(&workspace.record());
        }
        // Recording the outcome is the last step of a build, so berth waits for it.
        let deadline = Instant::now() + CANCEL_BUILD;
        self.jobs.wait_for_outcome(deadline, || workspace.record().job.is_none());
        Ok(workspace.record())
    }

    /// Stops a workspace's job, and returns once the job has ended. Returns the record as it was before the job, if
    /// the job is a build that no worker had started.
    ///
    /// # Errors
    /// Fails with `BuildRunning` if the job does not stop in time.
    pub(super) fn end_job(&self, id: Uuid, within: Duration) -> Result<Option<Arc<WorkspaceRecord>>> {
        let deadline = Instant::now() + within;
        let mut table = lock(&self.jobs.table); // LOCK: leaf
        loop {
            match table.active.get(&id) {
                None => return Ok(None),
                Some(job) if job.started => job.cancel.cancel(),
                Some(_) => return Ok(table.active.remove(&id).and_then(|job| job.before)),
            }
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err(Error::new(Code::BuildRunning, "The build did not stop in time; try again"));
            }
            let woken = self.jobs.changed.wait_timeout(table, remaining);
            table = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl JobGuard {
    /// Stores the record that is restored if the job is cancelled while queued.
    pub(super) fn remember(&self, before: Arc<WorkspaceRecord>) {
        if let Some(job) = lock(&self.lifecycle.jobs.table).active.get_mut(&self.workspace) {
            job.before = Some(before);
        }
    }

    /// Marks the job as started. Returns `false` if the job was cancelled while queued.
    pub(super) fn begin(&self) -> bool {
        let mut table = lock(&self.lifecycle.jobs.table); // LOCK: leaf
        let own = table.active.get_mut(&self.workspace).filter(|job| job.number == self.number);
        own.map(|job| job.started = true).is_some()
    }

    /// Removes the job from the table before the guard is dropped.
    pub(super) fn leave(&self) {
        let mut table = lock(&self.lifecycle.jobs.table); // LOCK: leaf
        if table.active.get(&self.workspace).is_some_and(|job| job.number == self.number) {
            table.active.remove(&self.workspace);
            self.lifecycle.jobs.changed.notify_all();
        }
    }
}

impl Drop for JobGuard {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A job that is journaled in the workspace's record. If the job is dropped without a call of [`JournaledJob::end`],
/// the record is restored, because no worker ran the job or the job failed without any change.
pub(super) struct JournaledJob {
    pub(super) workspace: Arc<Workspace>,
    pub(super) guard: JobGuard,
    before: Option<WorkspaceRecord>,
}

impl Lifecycle {
    /// Registers a job and journals it. `begin` checks the record and writes the job into it.
    ///
    /// # Errors
    /// Fails with `BuildRunning`, or if `begin` fails.
    pub(super) fn journal(
        self: &Arc<Self>,
        workspace: Arc<Workspace>,
        begin: impl FnOnce(&Workspace, &mut WorkspaceRecord) -> Result<()>,
    ) -> Result<JournaledJob> {
        let guard = self.enter_job(&workspace, false)?;
        JournaledJob::begin(workspace, guard, begin)
    }
}

impl JournaledJob {
    /// Journals a job that is already registered.
    pub(super) fn begin(
        workspace: Arc<Workspace>,
        guard: JobGuard,
        begin: impl FnOnce(&Workspace, &mut WorkspaceRecord) -> Result<()>,
    ) -> Result<JournaledJob> {
        let before = workspace.update(|record| {
            let before = record.clone();
            begin(&workspace, record)?;
            Ok(before)
        })?;
        Ok(JournaledJob { workspace, guard, before: Some(before) })
    }

    /// Records the job's outcome by applying `change` to the record.
    pub(super) fn end(mut self, change: impl Fn(&mut WorkspaceRecord)) {
        self.before = None;
        // The job leaves the table first, because a client that sees the new status may begin a job at once. Until the
        // record is updated, it refuses a new job.
        self.guard.leave();
        update_until_saved(&self.workspace, change);
        self.guard.lifecycle.jobs.outcome_recorded();
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
        self.guard.lifecycle.jobs.outcome_recorded();
    }
}
