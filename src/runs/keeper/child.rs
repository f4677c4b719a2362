//! The keeper process, `berth keeper`. It receives its job on descriptor 0, starts or takes over one command, and
//! runs until the command has ended, even if the server exits. It prints only its own errors; they go to
//! `keeper.log`.
//!
//! Threads: `main` watches the command, `keeper-door` talks to servers. Locks: those of the run.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::super::disk_budget::DiskBudget;
use super::super::host::HostLauncher;
use super::super::live::Live;
use super::super::request::{LaunchPlan, Stdin};
use super::super::run::Run;
use super::super::spool::{OutputWriter, Spool};

use super::wire::{
    KeeperJob, KeeperMessage, KeeperRequest, KeeperWork, Received, VERSION, listen, read_job, receive, send,
};
use crate::base::input_bytes::InputBytes;
use crate::base::thread::spawn;
use crate::base::{At, Error, Result, limits};
use crate::proc::spawn::{dev_null, protect_from_oom};
use crate::proc::waiter::Waiter;
use crate::proc::{Cancel, Cgroups, Process, ProcessHandover, SignalHandle};

/// A function that creates a process object from the parts that a server handed over.
pub type ResumeFn = fn(ProcessHandover, &Cgroups) -> Result<Box<dyn Process>>;

/// Runs the keeper; returns when its command has ended.
pub fn main(resume: ResumeFn) -> ExitCode {
    match run_keeper(resume) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth keeper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_keeper(resume: ResumeFn) -> Result<()> {
    // Ignore a failure: the server that started this keeper has the same limits and logged them.
    let _ = protect_from_oom();
    // Use a descriptor above 2, because descriptors 0 to 2 belong to commands.
    let server = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).at("take over", "the socket")?;
    rustix::stdio::dup2_stdin(&dev_null()?).at("close", "stdin")?;
    let _ = poll(&mut [PollFd::new(&server, PollFlags::IN)], None);
    let Received::Message(KeeperRequest::Job, fds) = receive(&server) else {
        return Err(Error::internal("The first message is not a job"));
    };
    let mut fds = fds.into_iter();
    let job = read_job(fds.next().ok_or_else(|| Error::internal("The job's descriptor is missing"))?)?;
    let begun = start_job(job, fds, resume);
    let (run, live, writer, listener) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            send(&server, &refused_message(&error), &[]);
            return Ok(());
        }
    };
    // Send the greeting before anything else: a short command may end before the socket accepts connections.
    let server = Some(server).filter(|server| send_hello(&run, server));
    let done = Cancel::new()?;
    let door = {
        let (run, done) = (run.clone(), done.clone());
        spawn("keeper-door".into(), limits::STACK, move || serve(&run, &listener, server, &done))?
    };
    live.spool_to_end(&run, writer);
    // The record has been written, so the server may be notified.
    done.cancel();
    drop(door);
    Ok(())
}

type StartedJob = (Arc<Run>, Live, OutputWriter, OwnedFd);

fn start_job(job: KeeperJob, mut fds: impl Iterator<Item = OwnedFd>, resume: ResumeFn) -> Result<StartedJob> {
    let KeeperJob { record, folder, window, timeout, cgroups, stdin, work } = job;
    let cgroups = Cgroups::from_handle(cgroups);
    // A server accounts for all runs together. While no server runs, the keeper's own budget leaves the disk some
    // free space.
    let budget = Arc::new(DiskBudget::new(folder.clone(), u64::MAX));
    let (spool, writer) = Spool::reopen(&folder, window, budget.clone())?;
    budget.set_reclaimer({
        let spool = Arc::downgrade(&spool);
        move |_| {
            if let Some(spool) = spool.upgrade() {
                spool.shrink((spool.largest() / 2).max(limits::SPOOL_LEAST_BYTES));
            }
        }
    });
    let run = Arc::new(Run::resumed(record, folder.clone(), spool)?);
    let listener = listen(&folder)?;
    let bytes = stdin.map(|text| InputBytes::Memory(text.into_bytes()));
    let live = match work {
        KeeperWork::Start { folder, group, command, pty, open_stdin } => {
            let stdin = match bytes {
                Some(bytes) => Stdin::Bytes(bytes),
                None if open_stdin => Stdin::Open,
                None => Stdin::Empty,
            };
            Live::start(
                &HostLauncher { cgroups, group, folder },
                &run,
                LaunchPlan { command, stdin, pty, timeout },
            )?
        }
        KeeperWork::Watch { pid, group, read, stdin, tty } => {
            let mut next = || fds.next().ok_or_else(|| Error::internal("A descriptor is missing"));
            let (pidfd, socket, stdout, stderr) = (next()?, next()?, next()?, next()?);
            let fed = match (stdin.then(next).transpose()?, bytes) {
                (Some(fd), Some(bytes)) => Some((fd, bytes)),
                (Some(fd), None) => {
                    run.input.open(fd, tty);
                    None
                }
                (None, _) => None,
            };
            let process = resume(ProcessHandover { pid, pidfd, socket, read, group }, &cgroups)?;
            Live::resume(&run, process, fed, stdout, stderr, timeout)
        }
    };
    Ok((run, live, writer, listener))
}

fn refused_message(error: &Error) -> KeeperMessage {
    let details = match error.body().get("details") {
        Some(serde_json::Value::Object(details)) => details.clone(),
        _ => serde_json::Map::new(),
    };
    KeeperMessage::Refused {
        code: error.code().as_str().to_owned(),
        message: error.message().to_owned(),
        details,
    }
}

/// Serves one server at a time until the run has ended.
fn serve(run: &Run, listener: &OwnedFd, mut server: Option<OwnedFd>, done: &Cancel) {
    let Ok(waiter) = Waiter::new() else { return };
    run.waiters.add(&waiter);
    // Output state that the server received last.
    let mut sent = None;
    loop {
        waiter.arm();
        let ended = done.is_cancelled().then(|| run.end()).flatten();
        let marks = run.spool.as_ref().map(|spool| spool.state()).unwrap_or_default();
        if let (Some(socket), Some(end)) = (&server, ended.clone()) {
            let last = KeeperMessage::End(Box::new(end), marks);
            // If the server does not read the message, it reads the run's record instead.
            let deadline = Instant::now() + LAST_SEND;
            while !send(socket, &last, &[]) && wait_writable(socket, deadline) {}
            return;
        }
        if ended.is_some() {
            return;
        }
        let mut wanted = PollFlags::IN;
        if let Some(socket) = server.as_ref().filter(|_| sent.as_ref() != Some(&marks)) {
            if send(socket, &KeeperMessage::Marks(marks.clone()), &[]) {
                sent = Some(marks);
            } else {
                // The state is sent once the socket is writable.
                wanted |= PollFlags::OUT;
            }
        }
        let wait_for = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds = vec![wait_for(listener.as_fd()), wait_for(waiter.as_fd()), wait_for(done.as_fd())];
        fds.extend(server.as_ref().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), wanted)));
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let hit = |at: usize| fds.get(at).is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty());
        let (called, rung, asked) = (hit(0), hit(1), hit(3));
        drop(fds);
        if rung {
            waiter.clear();
        }
        if asked && !server.as_ref().is_some_and(|socket| handle_requests(run, socket)) {
            server = None;
        }
        if called {
            if let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC) {
                // Only one server uses a data directory, so the previous server has exited.
                server = Some(socket).filter(|socket| send_hello(run, socket));
                sent = None;
            }
        }
    }
}

/// Maximum time for which the keeper, before it exits, waits for a server that does not read.
const LAST_SEND: Duration = Duration::from_secs(1);

/// Waits until a message can be sent; returns `false` at the deadline or if the server has disconnected.
fn wait_writable(socket: &OwnedFd, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) => fds[0].revents() == PollFlags::OUT,
        Err(error) => error == Errno::INTR && !left.is_zero(),
    }
}

/// Sends the greeting; returns `false` if the server has disconnected.
fn send_hello(run: &Run, socket: &OwnedFd) -> bool {
    let Some(SignalHandle { pid, pidfd, group }) = run.signal_handle() else {
        // The run has ended; the next message reports its result.
        return true;
    };
    let stdin = run.input.share();
    let hello = KeeperMessage::Hello {
        version: VERSION,
        pid,
        group: group.path().to_owned(),
        started_at: run.started_at(),
        stdin: stdin.is_some(),
        tty: run.spec.pty.is_some(),
    };
    let fds: Vec<BorrowedFd<'_>> =
        [Some(pidfd.as_fd()), stdin.as_ref().map(|fd| fd.as_fd())].into_iter().flatten().collect();
    send(socket, &hello, &fds)
}

/// Handles the server's requests; returns `false` if the server has disconnected.
fn handle_requests(run: &Run, socket: &OwnedFd) -> bool {
    loop {
        match receive::<KeeperRequest>(socket) {
            Received::Message(KeeperRequest::Cancel, _) => run.cancel.cancel(),
            Received::Message(KeeperRequest::CloseStdin, _) => run.input.close(),
            Received::Message(KeeperRequest::Shrink(keep), _) => {
                if let Some(spool) = &run.spool {
                    spool.shrink(keep);
                    run.waiters.notify_all();
                }
            }
            Received::Message(KeeperRequest::Job, _) => {}
            Received::Nothing => return true,
            Received::Gone => return false,
        }
    }
}
