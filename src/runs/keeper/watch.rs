//! Follows all keepers: takes note of what they say, asks them to end their runs, and makes sure of it where a keeper
//! does not answer any more.
//!
//! Thread: `keepers`. Lock: none of its own; a keeper that is started is sent to the thread.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::run::read_record;
use super::link::{Keeper, Kept};
use super::wire::{Received, Told, receive};
use crate::base::thread::{JoinOnDrop, spawn};
use crate::base::{Error, Result, limits};
use crate::proc::{Ended, Usage, Waker};

/// The thread.
pub struct Keepers {
    // Closing it ends the thread, so this is dropped first. Unbounded: the table bounds how many runs are kept.
    new: Option<Sender<Kept>>,
    waker: Arc<Waker>,
    thread: Option<JoinOnDrop>,
}

impl Keepers {
    /// None yet.
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

    /// Follows one more.
    pub fn add(&self, kept: Kept) {
        match &self.new {
            Some(new) => {
                let _ = new.send(kept);
                self.waker.wake();
            }
            // The server ends; the next one finds it.
            None => kept.let_go(),
        }
    }

    /// Lets all go on without us.
    pub fn let_go(&mut self) {
        self.new = None;
        self.waker.wake();
        self.thread = None;
    }
}

impl Drop for Keepers {
    fn drop(&mut self) {
        self.let_go();
    }
}

fn watch(arrivals: &Receiver<Kept>, waker: &Waker) {
    let mut all: Vec<Kept> = Vec::new();
    loop {
        waker.clear();
        loop {
            match arrivals.try_recv() {
                Ok(kept) => all.push(kept),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return all.into_iter().for_each(Kept::let_go),
            }
        }
        let mut fds = vec![PollFd::from_borrowed_fd(waker.as_fd(), PollFlags::IN)];
        for kept in &all {
            fds.push(PollFd::new(&kept.link.socket, PollFlags::IN));
            // Asked already: then it says nothing new.
            let wanted = if kept.give_up.is_none() { PollFlags::IN } else { PollFlags::empty() };
            fds.push(PollFd::from_borrowed_fd(kept.running.cancel.as_fd(), wanted));
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

/// `None`: its run is over.
fn step(mut kept: Kept, told: bool, cancelled: bool) -> Option<Kept> {
    if told {
        match kept.listen() {
            Heard::More => {}
            Heard::End => {
                kept.clean_up();
                return None;
            }
            Heard::Gone => {
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
        log::error!("run {}: its keeper does not end it; it is ended without", kept.running.id);
        kept.end_without(Ok(Ended::Cancelled));
        return None;
    }
    Some(kept)
}

enum Heard {
    More,
    End,
    Gone,
}

impl Kept {
    fn listen(&self) -> Heard {
        let run = &self.running.run;
        loop {
            match receive::<Told>(&self.link.socket) {
                Received::Message(Told::Marks(marks), _) => {
                    if let Some(spool) = &run.spool {
                        spool.set_marks(marks);
                    }
                    run.bells.ring();
                }
                Received::Message(Told::End(end, marks), _) => {
                    if let Some(spool) = &run.spool {
                        spool.set_marks(marks);
                    }
                    self.hold.ended(&end.usage);
                    run.finish_as(*end);
                    // The keeper's disk may have been full.
                    if run.folder.as_deref().and_then(read_record).is_none_or(|record| record.end.is_none()) {
                        let _ = run.save(true);
                    }
                    return Heard::End;
                }
                Received::Message(_, _) => {}
                Received::Nothing => return Heard::More,
                Received::Gone => return Heard::Gone,
            }
        }
    }

    /// The keeper is gone without a word. Perhaps it has written one.
    fn lost(self) {
        let run = &self.running.run;
        if let Some(record) = run.folder.as_deref().and_then(read_record) {
            if let Some(end) = record.end {
                if let Some(spool) = &run.spool {
                    spool.set_marks(record.marks);
                }
                self.hold.ended(&end.usage);
                run.finish_as(end);
                return self.clean_up();
            }
        }
        log::error!("run {}: its keeper is gone, and the run is ended", run.id);
        self.end_without(Err(Error::internal(
            "The process that kept the run was killed; how the command ended is not known, and what was left of it \
             has been ended",
        )));
    }

    /// Ends keeper and run from outside.
    fn end_without(self, how: Result<Ended>) {
        let run = &self.running.run;
        self.end_keeper();
        let mut usage = Usage::default();
        if let Some(reach) = run.reach() {
            if let Err(error) = reach.group.kill(Some(reach.pid)) {
                log::error!("run {}: {error}", run.id);
                self.hold.give_up();
            }
            usage = reach.group.usage();
        }
        if let Some(spool) = &run.spool {
            // It may have written more than it could tell.
            spool.look();
        }
        run.finish(how, usage);
        if let Err(error) = run.save(true) {
            log::warn!("{error}");
        }
    }

    fn end_keeper(&self) {
        let killed = match &self.keeper {
            Keeper::Ours(child) => child.group().kill(Some(child.pid())),
            Keeper::Found(group) => group.kill(None),
        };
        if let Err(error) = killed {
            log::error!("the keeper of run {}: {error}", self.running.id);
        }
    }

    /// It has done all it had to do.
    fn clean_up(self) {
        self.end_keeper();
    }

    /// It goes on without us.
    fn let_go(self) {
        let Kept { running, keeper, .. } = self;
        if let Some(reach) = running.run.reach() {
            reach.group.let_go();
        }
        match keeper {
            // Its destructor would end it; the kernel gives it to another parent when we end.
            Keeper::Ours(child) => std::mem::forget(child),
            Keeper::Found(group) => group.let_go(),
        }
        running.let_go();
    }
}
