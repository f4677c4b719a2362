//! Exclusive jobs of a workspace: builds, init scripts, snapshots, restores. A job is registered before it begins. A second
//! one is refused, and deletion, `DELETE …/build` and the server's shutdown can find and stop it.
//!
//! Lock: the table of [`Jobs`], a leaf. Its condition variable is notified when a job leaves the table and when the outcome
//! of a job was recorded.

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
    /// The number of outcomes recorded so far. A waiter compares it to notice that a record may have changed.
    recorded: u64,
}

/// A registered job.
struct ActiveJob {
    number: u64,
    cancel: Cancel,
    /// A worker runs it. A job that has not started is cancelled by removing it from the table.
    started: bool,
    /// The record before a build that is still queued.
    before: Option<Arc<WorkspaceRecord>>,
}

/// Keeps a job registered until dropped.
pub(super) struct JobGuard {
    lifecycle: Arc<Lifecycle>,
    workspace: Uuid,
    number: u64,
    pub(super) cancel: Cancel,
}

static NUMBERS: AtomicU64 = AtomicU64::new(0);

impl Jobs {
    /// Whether a job of the workspace is registered.
    pub(super) fn has(&self, workspace: Uuid) -> bool {
        lock(&self.table).active.contains_key(&workspace)
    }

    /// Cancels all jobs, for the server's shutdown.
    pub(super) fn cancel_all(&self) {
        lock(&self.table).active.values().for_each(|job| job.cancel.cancel());
    }

    /// Wakes the waiters for a job's outcome, which is in its record now.
    pub(super) fn outcome_recorded(&self) {
        lock(&self.table).recorded += 1;
        self.changed.notify_all();
    }

    /// Waits until `is_recorded` returns true, which is called without the lock after each recorded outcome.
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
    /// Registers a job. `waits`: it is queued for a worker, which calls [`JobGuard::begin`].
    ///
    /// # Errors
    /// `BuildRunning` while another job is registered.
    pub(super) fn enter_job(self: &Arc<Self>, workspace: &Workspace, waits: bool) -> Result<JobGuard> {
        self.enter_job_with(workspace, waits, Cancel::new()?)
    }

    /// Registers a job that shares the cancellation of another one.
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
            // Deletion has begun, perhaps after it looked for jobs.
            cancel.cancel();
        }
        Ok(JobGuard { lifecycle: self.clone(), workspace: workspace.id(), number, cancel })
    }

    /// Cancels a build or init script, and returns once it has stopped using the workspace.
    ///
    /// # Errors
    /// `Conflict` if there is none; `Busy` if it does not stop in time; `WorkspaceNotFound`.
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
        // Recording the outcome is the last step of a build.
        let deadline = Instant::now() + CANCEL_BUILD;
        self.jobs.wait_for_outcome(deadline, || workspace.record().job.is_none());
        Ok(workspace.record())
    }

    /// Stops a workspace's job, and returns once it has ended. The result is the record before the job, if no worker had
    /// started it.
    ///
    /// # Errors
    /// `BuildRunning` if it does not stop in time.
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
    /// Stores the record to restore if the job is cancelled while queued.
    pub(super) fn remember(&self, before: Arc<WorkspaceRecord>) {
        if let Some(job) = lock(&self.lifecycle.jobs.table).active.get_mut(&self.workspace) {
            job.before = Some(before);
        }
    }

    /// Marks the job as started. Returns `false` if it was cancelled while queued.
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

/// A job that is journaled in the record. If it is dropped without [`JournaledJob::end`], the record is restored: no worker
/// ran the job, or it failed without changing anything.
pub(super) struct JournaledJob {
    pub(super) workspace: Arc<Workspace>,
    pub(super) guard: JobGuard,
    before: Option<WorkspaceRecord>,
}

impl Lifecycle {
    /// Registers a job and journals it: `begin` checks and updates the record.
    ///
    /// # Errors
    /// `BuildRunning`; those of `begin`.
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

    /// Records the outcome.
    pub(super) fn end(mut self, change: impl Fn(&mut WorkspaceRecord)) {
        self.before = None;
        // Leave the table first: a client that sees the new status may begin a job at once. Until then the record refuses one.
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
