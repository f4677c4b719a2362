//! The table of all terminals, with a limit on their number, and the shells to which sockets reconnect.
//!
//! Locks: `state`, held only for lookups, insertions and removals; one per shell key, held while that shell is
//! started and taken before `state`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use super::{
    EndReason, PasteBudget, Terminal, TerminalKind, TerminalSpec, TerminalView, TerminalWatcher, WatchMode,
};
use crate::base::shares::{Ledger, Share, ShareHolder, Shares, WorkspaceCounts};
use crate::base::thread::{JoinOnDrop, lock};
use crate::base::{Code, Error, Result};
use crate::proc::Launcher;
use crate::runs::ActiveRun;

/// Maximum number of running terminals; each takes a thread, a shell and a screen model, about 100 KB at 80 × 24.
const TERMINALS: usize = 64;
/// Time for which an ended terminal can still be viewed.
const TERMINAL_KEPT: Duration = Duration::from_secs(600);
/// Maximum number of ended terminals that are kept.
const TERMINALS_KEPT: usize = 64;

/// Key of a shell: its workspace, and the credential of its client.
pub type ShellKey = (Uuid, String);

/// The table of all terminals of a server.
pub struct Terminals {
    state: Mutex<TerminalTable>,
    /// Permits for large input to terminals.
    pub pastes: PasteBudget,
    shares: Shares,
}

#[derive(Default)]
struct TerminalTable {
    all: Vec<TerminalEntry>,
    shells: HashMap<ShellKey, Arc<Mutex<Option<Arc<Terminal>>>>>,
}

/// A terminal and its thread. Dropping the entry joins the thread, which has ended or is about to end.
struct TerminalEntry {
    terminal: Arc<Terminal>,
    /// Share of the limit on terminals; present while the terminal's program runs.
    share: Option<Share>,
    _thread: JoinOnDrop,
}

impl Default for Terminals {
    fn default() -> Terminals {
        Terminals {
            state: Mutex::default(),
            shares: Shares::new(Ledger::new(TERMINALS)),
            pastes: PasteBudget::default(),
        }
    }
}

impl Terminals {
    /// Starts a terminal in the workspace for which `running` was entered.
    ///
    /// # Errors
    /// `Busy` when there are too many terminals, `OverShare` when too many of them belong to `party`; errors of
    /// the launcher.
    pub fn start(
        &self,
        running: ActiveRun,
        party: ShareHolder,
        launcher: &dyn Launcher,
        plan: TerminalSpec,
    ) -> Result<Arc<Terminal>> {
        let share = Some(self.share(party)?);
        let workspace = running.run.workspace;
        let (terminal, thread) = Terminal::start(running, workspace, launcher, plan)?;
        lock(&self.state).all.push(TerminalEntry { terminal: terminal.clone(), share, _thread: thread });
        Ok(terminal)
    }

    /// Returns a new client of the shell with this key. If that shell is not running, starts it with `start`.
    ///
    /// # Errors
    /// Errors of `start`; `Busy` when the shell has too many clients.
    pub fn shell(
        &self,
        key: ShellKey,
        start: impl FnOnce() -> Result<Arc<Terminal>>,
    ) -> Result<TerminalWatcher> {
        let slot = lock(&self.state).shells.entry(key).or_default().clone();
        let mut shell = lock(&slot);
        if let Some(terminal) = shell.as_ref() {
            match terminal.watch(WatchMode::Shared) {
                Err(error) if error.code() == Code::TerminalEnded => {}
                watcher => return watcher,
            }
        }
        let terminal = start()?;
        let watcher = terminal.watch(WatchMode::Shared)?;
        *shell = Some(terminal);
        Ok(watcher)
    }

    /// Returns the terminal `id` of `workspace`.
    ///
    /// # Errors
    /// `TerminalNotFound`, also when the terminal belongs to another workspace.
    pub fn get(&self, workspace: Uuid, id: Uuid) -> Result<Arc<Terminal>> {
        self.all()
            .into_iter()
            .find(|terminal| terminal.id == id && terminal.workspace == workspace)
            .ok_or_else(|| {
                Error::new(
                    Code::TerminalNotFound,
                    format!("Terminal {id} not found; GET /api/workspaces/{workspace}/terminals lists them"),
                )
            })
    }

    /// Returns the terminals of `workspace`, oldest first.
    pub fn list(&self, workspace: Uuid) -> Vec<TerminalView> {
        let all = self.all();
        all.iter()
            .filter(|terminal| terminal.workspace == workspace)
            .map(|terminal| terminal.terminal_view())
            .collect()
    }

    /// Ends a terminal and removes it; returns its final state.
    ///
    /// # Errors
    /// `TerminalNotFound` when the workspace has no such terminal.
    pub fn remove(&self, workspace: Uuid, id: Uuid) -> Result<TerminalView> {
        let terminal = self.get(workspace, id)?;
        terminal.end(EndReason::Deleted);
        let gone = {
            let mut state = lock(&self.state);
            let at = state.all.iter().position(|known| known.terminal.id == id);
            at.map(|at| state.all.remove(at))
        };
        drop(gone);
        Ok(terminal.terminal_view())
    }

    /// Ends all terminals, because the server is stopping.
    pub fn close(&self) {
        let all = std::mem::take(&mut lock(&self.state).all);
        // Cancel all terminals before waiting for the first one.
        for TerminalEntry { terminal, .. } in &all {
            terminal.cancel.cancel();
        }
        for TerminalEntry { terminal, .. } in &all {
            terminal.end(EndReason::Workspace);
        }
    }

    fn share(&self, party: ShareHolder) -> Result<Share> {
        self.prune();
        let full = || {
            let message =
                format!("{} terminals are already running; delete one that is not needed", TERMINALS);
            Error::new(Code::Busy, message)
        };
        self.shares.take(party).map_err(|refused| refused.error("terminals", full))
    }

    fn all(&self) -> Vec<Arc<Terminal>> {
        self.prune();
        lock(&self.state).all.iter().map(|entry| entry.terminal.clone()).collect()
    }

    /// Removes terminals that ended long ago, and shells as soon as they have ended. If too many ended terminals
    /// remain, removes the oldest of the workspace with the most.
    fn prune(&self) {
        let mut state = lock(&self.state);
        let mut kept = WorkspaceCounts::default();
        let (mut stay, mut gone) = (Vec::new(), Vec::new());
        for mut entry in std::mem::take(&mut state.all) {
            let terminal = &entry.terminal;
            match terminal.ended_since() {
                None => stay.push(entry),
                Some(since) if terminal.kind == TerminalKind::Shell || since.elapsed() >= TERMINAL_KEPT => {
                    gone.push(entry);
                }
                Some(_) => {
                    entry.share = None;
                    kept.add(terminal.workspace);
                    stay.push(entry);
                }
            }
        }
        while kept.len() > TERMINALS_KEPT {
            let largest = kept.largest();
            let ended = |entry: &TerminalEntry| {
                entry.share.is_none()
                    && Some(entry.terminal.workspace) == largest.map(|(workspace, _)| workspace)
            };
            let Some(at) = stay.iter().position(ended) else { break };
            let entry = stay.remove(at);
            kept.remove(entry.terminal.workspace);
            gone.push(entry);
        }
        state.all = stay;
        state.shells.retain(|_, slot| {
            // The slot is locked because its shell is being started; keep it.
            let Ok(mut shell) = slot.try_lock() else { return true };
            let ended = shell.as_ref().is_some_and(|shell| shell.ended_since().is_some());
            if ended {
                *shell = None;
            }
            shell.is_some() || Arc::strong_count(slot) > 1
        });
        drop(state);
        // Dropping the entries joins the threads of their terminals, so it happens without the lock.
        drop(gone);
    }
}
