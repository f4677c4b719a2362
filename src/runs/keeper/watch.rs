//! Follows all keepers: applies their messages, asks them to end their runs, and ends runs from outside when a keeper
//! does not answer.
//!
//! Thread: `keepers`. No lock of its own; a channel passes new keepers to the thread.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::run::read_record;
use super::link::{KeeperProcess, KeptRun};
use super::wire::{KeeperMessage, Received, receive};
use crate::base::thread::{JoinOnDrop, spawn};
use crate::base::{Error, Result, limits};
use crate::proc::{ProcessOutcome, Usage, Waker};

/// Handle of the thread that follows all keepers.
pub struct Keepers {
    // Dropped before `thread`: closing the channel ends the thread. Unbounded: the table limits the number of
    // runs.
    new: Option<Sender<KeptRun>>,
    waker: Arc<Waker>,
    thread: Option<JoinOnDrop>,
}

impl Keepers {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new() -> Result<Keepers> {
        let (new, arrivals) = unbounded();
        let waker = Arc::new(Waker::new()?);
        let thread = {
            let waker = waker.clone();
            spawn("keepers".into(), limits::STACK, move || watch(&arrivals, &waker))?
        };
        Ok(Keepers { new: Some(new), waker, thread: Some(thread) })
    }

    /// Starts to follow another keeper.
    pub fn add(&self, kept: KeptRun) {
        match &self.new {
            Some(new) => {
                let _ = new.send(kept);
                self.waker.wake();
            }
            // This server is stopping; the next server finds the run.
            None => kept.detach(),
        }
    }

    /// Ends the thread and leaves all runs to the next server.
    pub fn detach(&mut self) {
        self.new = None;
        self.waker.wake();
        self.thread = None;
    }
}

impl Drop for Keepers {
    fn drop(&mut self) {
        self.detach();
    }
}

fn watch(arrivals: &Receiver<KeptRun>, waker: &Waker) {
    let mut all: Vec<KeptRun> = Vec::new();
    loop {
        waker.clear();
        loop {
            match arrivals.try_recv() {
                Ok(kept) => all.push(kept),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return all.into_iter().for_each(KeptRun::detach),
            }
        }
        let mut fds = vec![PollFd::from_borrowed_fd(waker.as_fd(), PollFlags::IN)];
        for kept in &all {
            fds.push(PollFd::new(&kept.link.socket, PollFlags::IN));
            // The run is already cancelled, so its cancel descriptor is not polled again.
            let wanted = if kept.give_up.is_none() { PollFlags::IN } else { PollFlags::empty() };
            fds.push(PollFd::from_borrowed_fd(kept.active.cancel.as_fd(), wanted));
        }
        let next = all.iter().filter_map(|kept| kept.give_up).min();
        let left = next.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout =
            left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let _ = poll(&mut fds, timeout.as_ref());
        let hit: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        all = all
            .into_iter()
            .zip(hit.chunks(2))
            .filter_map(|(kept, hit)| step(kept, hit.first() == Some(&true), hit.get(1) == Some(&true)))
            .collect();
    }
}

/// Handles the events of one keeper; returns `None` if its run has ended.
fn step(mut kept: KeptRun, readable: bool, cancelled: bool) -> Option<KeptRun> {
    if readable {
        match kept.receive_messages() {
            KeeperEvent::Waiting => {}
            KeeperEvent::Ended => {
                kept.clean_up();
                return None;
            }
            KeeperEvent::Gone => {
                kept.lost();
                return None;
            }
        }
    }
    if cancelled && kept.give_up.is_none() {
        kept.link.cancel();
        kept.give_up = Some(Instant::now() + limits::KEEPER_ANSWER);
    }
    if kept.give_up.is_some_and(|at| at <= Instant::now()) {
        log::error!("Run {}: the keeper does not end it; ending it from outside", kept.active.id);
        kept.end_from_outside(Ok(ProcessOutcome::Cancelled));
        return None;
    }
    Some(kept)
}

enum KeeperEvent {
    Waiting,
    Ended,
    Gone,
}

impl KeptRun {
    fn receive_messages(&self) -> KeeperEvent {
        let run = &self.active.run;
        loop {
            match receive::<KeeperMessage>(&self.link.socket) {
                Received::Message(KeeperMessage::Marks(marks), _) => {
                    if let Some(spool) = &run.spool {
                        spool.set_state(marks);
                    }
                    run.waiters.notify_all();
                }
                Received::Message(KeeperMessage::End(end, marks), _) => {
                    if let Some(spool) = &run.spool {
                        spool.set_state(marks);
                    }
                    self.hold.ended(&end.usage);
                    run.set_end(*end);
                    // The disk may have been full when the keeper wrote the record.
                    if run.folder.as_deref().and_then(read_record).is_none_or(|record| record.end.is_none()) {
                        let _ = run.save(true);
                    }
                    return KeeperEvent::Ended;
                }
                Received::Message(_, _) => {}
                Received::Nothing => return KeeperEvent::Waiting,
                Received::Gone => return KeeperEvent::Gone,
            }
        }
    }

    /// Handles a keeper that disconnected without an end message. It may still have written the record.
    fn lost(self) {
        let run = &self.active.run;
        if let Some(record) = run.folder.as_deref().and_then(read_record) {
            if let Some(end) = record.end {
                if let Some(spool) = &run.spool {
                    spool.set_state(record.marks);
                }
                self.hold.ended(&end.usage);
                run.set_end(end);
                return self.clean_up();
            }
        }
        log::error!("Run {}: the keeper has exited; ending the run", run.id);
        self.end_from_outside(Err(Error::internal(
            "The run's keeper process was killed; the command's exit status is unknown, and its remaining processes \
             were killed",
        )));
    }

    /// Kills the keeper and the command, and records the result.
    fn end_from_outside(self, how: Result<ProcessOutcome>) {
        let run = &self.active.run;
        self.end_keeper();
        let mut usage = Usage::default();
        if let Some(signal_handle) = run.signal_handle() {
            if let Err(error) = signal_handle.group.kill(Some(signal_handle.pid)) {
                log::error!("Run {}: {error}", run.id);
                self.hold.give_up();
            }
            usage = signal_handle.group.usage();
        }
        if let Some(spool) = &run.spool {
            // The keeper may have written more output than it reported.
            spool.rescan();
        }
        run.finish(how, usage);
        if let Err(error) = run.save(true) {
            log::warn!("{error}");
        }
    }

    fn end_keeper(&self) {
        let killed = match &self.keeper {
            KeeperProcess::Ours(child) => child.group().kill(Some(child.pid())),
            KeeperProcess::Adopted(group) => group.kill(None),
        };
        if let Err(error) = killed {
            log::error!("Keeper of run {}: {error}", self.active.id);
        }
    }

    /// Kills the remaining processes of a keeper whose run has ended.
    fn clean_up(self) {
        self.end_keeper();
    }

    /// Releases the run without ending it, so that the next server finds it.
    fn detach(self) {
        let KeptRun { active: running, keeper, .. } = self;
        if let Some(signal_handle) = running.run.signal_handle() {
            signal_handle.group.disown();
        }
        match keeper {
            // Skips the destructor, which would kill the keeper; the kernel reparents the keeper when this server
            // exits.
            KeeperProcess::Ours(child) => std::mem::forget(child),
            KeeperProcess::Adopted(group) => group.disown(),
        }
        running.detach();
    }
}
