//! The table of all runs. Running ones are listed so that a build, a deletion or the server's shutdown can end
//! them. Ended ones are kept with their output until there are too many or they are too old.
//!
//! Lock: `runs`, held only for lookups, insertions and removals; `ended` is its condition variable. Files are
//! removed after the lock is released.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::disk_budget::DiskBudget;
use super::keeper::{self, FoundKeeper, KeeperLookup, Keepers, KeptRun};
use super::request::LaunchPlan;
use super::run::{Run, RunEnd, RunError, RunOrigin, RunSpec, RunStatus, age, read_record};
use super::spool::{OutputWriter, Spool};
use crate::base::shares::{Ledger, Share, ShareHolder, Shares, WorkspaceCounts};
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, clock, input_bytes, limits};
use crate::proc::{Cancel, Cgroups, HandoverGuard, Usage};
use crate::store::file;

/// Maximum number of ended runs that are kept; the oldest are removed first.
const RUNS_KEPT: usize = 1000;
/// Time for which an ended run is kept.
const RUN_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Maximum number of detached runs; each has a keeper process, which takes about 200 KB of memory.
const DETACHED_RUNS: usize = 64;

/// The table of all runs of a server.
pub struct Runs {
    runs: Mutex<RunTable>,
    ended: Condvar,
    folder: PathBuf,
    /// Maximum number of bytes to keep of each stream.
    window: u64,
    budget: Arc<DiskBudget>,
    stopping: AtomicBool,
    /// Limits the number of runs that outlive the server.
    detached: Shares,
    cgroups: Cgroups,
    keepers: Mutex<Keepers>,
    /// Runs of an earlier server, kept here until their workspaces are known.
    resumable: Mutex<Vec<KeptRun>>,
}

#[derive(Default)]
struct RunTable {
    by_id: HashMap<Uuid, Arc<Run>>,
    /// Number of runs that have not ended.
    running: usize,
    /// Ended runs, oldest first.
    kept: VecDeque<EndedRun>,
    closed: bool,
}

/// The entry of an ended run.
struct EndedRun {
    id: Uuid,
    workspace: Uuid,
    since: Instant,
}

/// The entry of a run that has not ended; dropping it marks the run as ended.
pub struct ActiveRun {
    table: Arc<Runs>,
    pub id: Uuid,
    pub cancel: Cancel,
    pub run: Arc<Run>,
    /// Share of the limit of detached runs; `None` if the run is not detached.
    _share: Option<Share>,
    detached: bool,
}

impl Runs {
    /// Opens the table in `folder`. Loads the ended runs of an earlier server and keeps the runs that outlived it
    /// for [`Runs::resume_kept`]. Other runs that had not ended are marked as failed; the caller must kill their
    /// processes, that is, all processes outside [`Runs::kept_groups`].
    ///
    /// # Errors
    /// When the directory cannot be created or read.
    pub fn open(folder: &Path, window: u64, total: u64, cgroups: Cgroups) -> Result<Arc<Runs>> {
        file::create_dir_private(folder)?;
        input_bytes::set_folder(folder);
        let budget = Arc::new(DiskBudget::new(folder.to_owned(), total));
        let runs = Arc::new(Runs {
            runs: Mutex::default(),
            ended: Condvar::new(),
            folder: folder.to_owned(),
            window,
            budget,
            stopping: AtomicBool::new(false),
            detached: Shares::new(Ledger::new(DETACHED_RUNS)),
            cgroups,
            keepers: Mutex::new(Keepers::new()?),
            resumable: Mutex::default(),
        });
        let weak: Weak<Runs> = Arc::downgrade(&runs);
        runs.budget.set_reclaimer(move |enough| {
            if let Some(runs) = weak.upgrade() {
                runs.make_room(enough);
            }
        });
        runs.load()?;
        Ok(runs)
    }

    fn load(self: &Arc<Self>) -> Result<()> {
        let mut ended = Vec::new();
        for entry in std::fs::read_dir(&self.folder).at("list", &self.folder)? {
            let path = entry.at("list", &self.folder)?.path();
            match self.load_one(&path) {
                Some(LoadedRun::Ended(run)) => ended.push(Arc::new(run)),
                Some(LoadedRun::Resumed(run, met)) => {
                    let share = self.detached.force_take(ShareHolder::of_workspace(run.workspace));
                    let kept = met.resume(self.insert(run, Some(share))?);
                    lock(&self.resumable).push(kept);
                }
                None => remove_folder(&path),
            }
        }
        ended.sort_by_cached_key(|run| run.started_at());
        let mut state = lock(&self.runs);
        for run in ended {
            state.kept.push_back(EndedRun { id: run.id, workspace: run.workspace, since: Instant::now() });
            state.by_id.insert(run.id, run);
        }
        let surplus = state.take_surplus();
        drop(state);
        surplus.iter().for_each(|run| forget(run));
        Ok(())
    }

    /// Loads one run; returns `None` if its directory has no valid record.
    fn load_one(&self, path: &Path) -> Option<LoadedRun> {
        let mut record = read_record(path)?;
        if record.end.is_none() && record.spec.detach {
            if let KeeperLookup::Alive(met) = FoundKeeper::find(&self.cgroups, path, &record) {
                let spool = Spool::existing(path, self.window, self.budget.clone(), met.marks.clone());
                return Some(LoadedRun::Resumed(
                    Run::resumed(record, path.to_owned(), Arc::new(spool)).ok()?,
                    met,
                ));
            }
            // The keeper may have exited after the record was read, so read it again.
            record = read_record(path)?;
        }
        let interrupted = record.end.is_none();
        if interrupted {
            let how = match record.spec.detach {
                true => {
                    "The run's keeper process had exited when the server started again; the command was killed then"
                }
                false => "The server was killed; the command was killed at its next start",
            };
            record.marks = Spool::scan(path);
            record.end = Some(RunEnd {
                status: RunStatus::Failed,
                exit_code: None,
                signal: None,
                error: Some(RunError { code: "interrupted".to_owned(), message: how.to_owned() }),
                finished_at: clock::now_rfc3339(),
                wall_secs: age(&record.started_at).as_secs_f64(),
                usage: Usage::default(),
            });
        }
        let spool = Spool::existing(path, self.window, self.budget.clone(), record.marks.clone());
        let run = Run::from_record(record, path.to_owned(), spool).ok()?;
        if interrupted {
            // Save the result; otherwise the next start of the server would report the interruption again.
            let _ = run.save(false);
        }
        Some(LoadedRun::Ended(run))
    }

    /// Enters a terminal of `workspace`, so that it ends with the workspace. Must be called before the workspace's
    /// state is checked, so that a caller that changes the state and then ends all runs misses no terminal.
    ///
    /// # Errors
    /// `ShuttingDown` when the server is stopping.
    pub fn enter_terminal(self: &Arc<Self>, workspace: Uuid) -> Result<ActiveRun> {
        self.enter_exec(workspace, RunSpec::terminal())
    }

    /// Enters an exec into the table.
    ///
    /// # Errors
    /// The errors of [`Runs::enter_terminal`].
    pub fn enter_exec(self: &Arc<Self>, workspace: Uuid, spec: RunSpec) -> Result<ActiveRun> {
        self.insert(Run::new(Uuid::new_v4(), workspace, spec, None)?, None)
    }

    /// Returns the disk budget of all runs.
    pub fn budget(&self) -> &Arc<DiskBudget> {
        &self.budget
    }

    /// Enters a run whose output is spooled, with at most `window` bytes of each stream.
    ///
    /// # Errors
    /// The errors of [`Runs::enter_terminal`]; `DiskFull`; `Busy` when too many detached runs are running,
    /// `OverShare` when too many of them belong to `party`.
    pub fn enter_run(
        self: &Arc<Self>,
        workspace: Uuid,
        spec: RunSpec,
        window: u64,
        party: ShareHolder,
    ) -> Result<(ActiveRun, OutputWriter)> {
        let share = spec.detach.then(|| self.detached.take(party)).transpose().map_err(|refused| {
            let message = format!("{} detached runs are running, which is the limit", self.detached.used());
            refused.error("detached runs", || Error::new(Code::Busy, message))
        })?;
        let surplus = lock(&self.runs).take_surplus();
        surplus.iter().for_each(|run| forget(run));
        let id = Uuid::new_v4();
        let folder = self.folder.join(id.to_string());
        file::create_dir_private(&folder)?;
        let made = Spool::create(&folder, window, self.budget.clone()).and_then(|(spool, writer)| {
            let run = Run::new(id, workspace, spec, Some((folder.clone(), spool)))?;
            run.save(false)?;
            Ok((self.insert(run, share)?, writer))
        });
        if made.is_err() {
            remove_folder(&folder);
        }
        made
    }

    fn insert(self: &Arc<Self>, run: Run, share: Option<Share>) -> Result<ActiveRun> {
        let run = Arc::new(run);
        let mut state = lock(&self.runs);
        if state.closed {
            return Err(Error::new(Code::ShuttingDown, "The server is shutting down"));
        }
        state.running += 1;
        state.by_id.insert(run.id, run.clone());
        drop(state);
        let (table, id, cancel) = (self.clone(), run.id, run.cancel.clone());
        Ok(ActiveRun { table, id, cancel, run, _share: share, detached: false })
    }

    /// Returns the run with this ID in a workspace.
    ///
    /// # Errors
    /// `RunNotFound` when the workspace has no such run.
    pub fn get(&self, workspace: Uuid, id: Uuid) -> Result<Arc<Run>> {
        let found = lock(&self.runs).by_id.get(&id).cloned();
        let is_it = |run: &Arc<Run>| run.workspace == workspace && run.spec.origin != RunOrigin::Terminal;
        found.filter(is_it).ok_or_else(|| {
            Error::new(
                Code::RunNotFound,
                format!("Run {id} not found; ended runs are forgotten after a while"),
            )
        })
    }

    /// Returns all runs of a workspace, newest first.
    pub fn list(&self, workspace: Uuid) -> Vec<Arc<Run>> {
        let surplus = lock(&self.runs).take_surplus();
        surplus.iter().for_each(|run| forget(run));
        let all = |run: &&Arc<Run>| run.workspace == workspace && run.spec.origin != RunOrigin::Terminal;
        let mut runs: Vec<_> = lock(&self.runs).by_id.values().filter(all).cloned().collect();
        runs.sort_by_cached_key(|run| std::cmp::Reverse((run.started_at(), run.id)));
        runs
    }

    /// Ends a run and removes it with its output; returns `false` if it did not end within `patience`.
    pub fn remove(&self, run: &Run, patience: Duration) -> bool {
        if !self.end_matching(|other| other.id == run.id, patience) {
            return false;
        }
        self.forget_matching(|other| other.id == run.id);
        true
    }

    /// Removes the ended runs of a workspace that is being deleted.
    pub fn forget_all(&self, workspace: Uuid) {
        self.forget_matching(|run| run.workspace == workspace);
    }

    fn forget_matching(&self, matches: impl Fn(&Run) -> bool) {
        let mut state = lock(&self.runs);
        let gone: Vec<_> =
            state.by_id.values().filter(|run| !run.is_running() && matches(run)).cloned().collect();
        for run in &gone {
            state.by_id.remove(&run.id);
        }
        let RunTable { kept, by_id, .. } = &mut *state;
        kept.retain(|remembered| by_id.contains_key(&remembered.id));
        drop(state);
        gone.iter().for_each(|run| forget(run));
    }

    /// Ends all runs of `workspace` and waits for them; returns `false` if a run did not end within `patience`.
    pub fn end_all(&self, workspace: Uuid, patience: Duration) -> bool {
        self.end_matching(|run| run.workspace == workspace, patience)
    }

    /// Announces that the server will stop, so that clients that follow detached runs are disconnected.
    pub fn announce_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let runs: Vec<_> = lock(&self.runs).by_id.values().cloned().collect();
        for run in runs {
            run.waiters.notify_all();
        }
    }

    /// Returns whether the server's stop has been announced.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Stops accepting new runs, waits until `deadline` for running ones, and then ends those that are not
    /// detached.
    pub fn close(&self, deadline: Instant) {
        let mut state = lock(&self.runs);
        state.closed = true;
        while state.running > self.detached.used() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.end_matching(|run| !run.spec.detach || run.signal_handle().is_none(), Duration::from_secs(5));
        lock(&self.keepers).detach();
    }

    /// Starts a run that outlives the server.
    ///
    /// # Errors
    /// When the run could not be started; no part of the command has run, and the run is removed.
    pub fn start_kept(
        &self,
        running: ActiveRun,
        place: keeper::LaunchTarget<'_>,
        window: u64,
        plan: LaunchPlan,
    ) -> Result<()> {
        let kept = KeptRun::start(&self.cgroups, running, place, window, plan)?;
        lock(&self.keepers).add(kept);
        Ok(())
    }

    /// Resumes the detached runs of an earlier server. `hold` returns a guard that keeps a workspace's container
    /// running.
    pub fn resume_kept(&self, hold: impl Fn(Uuid) -> Option<Box<dyn HandoverGuard>>) {
        let found = std::mem::take(&mut *lock(&self.resumable));
        for mut kept in found {
            log::info!("Resumed run {}", kept.run().id);
            if let Some(hold) = hold(kept.run().workspace) {
                kept.set_hold(hold);
            }
            lock(&self.keepers).add(kept);
        }
    }

    /// Returns the workspaces and cgroups of detached runs, whose processes outlive the server.
    pub fn kept_groups(&self) -> Vec<(Uuid, String)> {
        let runs: Vec<_> = lock(&self.runs).by_id.values().filter(|run| run.spec.detach).cloned().collect();
        let groups =
            |run: &Arc<Run>| keeper::groups(run).map(|groups| groups.map(|group| (run.workspace, group)));
        runs.iter().filter_map(groups).flatten().collect()
    }

    /// Returns the number of runs that have not ended.
    pub fn count(&self) -> usize {
        lock(&self.runs).running
    }

    fn end_matching(&self, matches: impl Fn(&Run) -> bool, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = lock(&self.runs);
        loop {
            let mut any = false;
            if state.running > 0 {
                let kept = |run: &Run| state.kept.iter().any(|remembered| remembered.id == run.id);
                for run in state.by_id.values().filter(|run| matches(run) && !kept(run)) {
                    run.cancel.cancel();
                    any = true;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !any || left.is_zero() {
                return !any;
            }
            state = self.ended.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Frees space of the workspace with the most kept output until `enough` returns `true`: removes its ended
    /// runs, oldest first, then truncates its largest running ones. A workspace loses no output while another
    /// keeps more.
    fn make_room(&self, enough: &dyn Fn() -> bool) {
        // Runs whose output cannot shrink, because their file system does not support hole punching.
        let mut rigid: Vec<Uuid> = Vec::new();
        while !enough() {
            let (workspace, oldest) = {
                let mut state = lock(&self.runs);
                let mut sizes: HashMap<Uuid, u64> = HashMap::new();
                for run in state.by_id.values().filter(|run| !rigid.contains(&run.id)) {
                    *sizes.entry(run.workspace).or_default() +=
                        run.spool.as_ref().map_or(0, |spool| spool.size());
                }
                let Some((workspace, _)) = sizes.into_iter().max_by_key(|(_, size)| *size) else { return };
                let at = state.kept.iter().position(|remembered| remembered.workspace == workspace);
                let oldest = at.and_then(|at| state.kept.remove(at));
                (workspace, oldest.and_then(|remembered| state.by_id.remove(&remembered.id)))
            };
            if let Some(run) = oldest {
                log::info!("Removed run {} to free disk space for other runs", run.id);
                forget(&run);
                continue;
            }
            let runs: Vec<_> = {
                let state = lock(&self.runs);
                let here = |run: &&Arc<Run>| run.workspace == workspace && !rigid.contains(&run.id);
                state.by_id.values().filter(here).cloned().collect()
            };
            let spools = runs.iter().filter_map(|run| Some((run.id, run.spool.as_ref()?)));
            let Some((id, spool)) = spools.max_by_key(|(_, spool)| spool.largest()) else { return };
            let size = spool.largest();
            if size > limits::SPOOL_LEAST_BYTES {
                spool.shrink((size / 2).max(limits::SPOOL_LEAST_BYTES));
            }
            if spool.largest() >= size {
                rigid.push(id);
            }
        }
    }
}

impl RunTable {
    /// Removes and returns runs that are too old and, if there are too many, the oldest of the workspaces with
    /// most runs.
    fn take_surplus(&mut self) -> Vec<Arc<Run>> {
        let mut gone = Vec::new();
        while self.kept.front().is_some_and(|oldest| oldest.since.elapsed() >= RUN_KEPT) {
            gone.extend(self.kept.pop_front().and_then(|oldest| self.by_id.remove(&oldest.id)));
        }
        if self.kept.len() <= RUNS_KEPT {
            return gone;
        }
        let mut crowd = WorkspaceCounts::default();
        self.kept.iter().for_each(|remembered| crowd.add(remembered.workspace));
        while self.kept.len() > RUNS_KEPT {
            let Some((largest, _)) = crowd.largest() else { break };
            let at = self.kept.iter().position(|remembered| remembered.workspace == largest);
            gone.extend(at.and_then(|at| self.kept.remove(at)).and_then(|run| self.by_id.remove(&run.id)));
            crowd.remove(largest);
        }
        gone
    }
}

/// A run whose directory the server found at its start.
enum LoadedRun {
    Ended(Run),
    Resumed(Run, Box<FoundKeeper>),
}

impl ActiveRun {
    /// Drops the entry without ending the run, which the next server finds.
    pub(super) fn detach(mut self) {
        self.detached = true;
    }
}

impl Drop for ActiveRun {
    fn drop(&mut self) {
        let keeps = self.run.spec.origin == RunOrigin::Run && !self.run.is_running();
        let mut state = lock(&self.table.runs);
        state.running -= 1;
        if self.detached {
            return;
        }
        if keeps {
            let (id, workspace) = (self.run.id, self.run.workspace);
            state.kept.push_back(EndedRun { id, workspace, since: Instant::now() });
        } else {
            state.by_id.remove(&self.run.id);
        }
        drop(state);
        self.table.ended.notify_all();
        if !keeps {
            forget(&self.run);
        }
    }
}

/// Removes the run's files; does nothing for a run without a directory.
fn forget(run: &Run) {
    if let (Some(spool), Some(folder)) = (&run.spool, &run.folder) {
        spool.remove();
        remove_folder(folder);
    }
}

/// Removes a run's directory, which contains no directories.
fn remove_folder(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
    if let Err(error) = std::fs::remove_dir(folder) {
        log::warn!("{}: {error}", folder.display());
    }
}
