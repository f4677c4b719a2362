//! The accept loop. When descriptors, memory or threads run out, the loop sends the new client a 503 if it can,
//! closes the connection, and continues.
//!
//! **Invariant:** the loop ends only when the gate stops.
//!
//! Threads: `gate-accept` runs the loop; each connection is served by a `gate-N` thread, which is reused for later
//! connections while it stays warm.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::listen::BoundListener;
use super::table::ConnectionSlot;
use super::wire::{self, ReadOutcome};
use super::{GateShared, refuse, relay};
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Code, Error, limits};
use crate::http::client::Socket;
use crate::proc::Cancel;

/// Connections reserved for owners beyond `--max-connections`. Each serves one short request.
const RESERVED_CONNECTIONS: usize = 8;
/// When all connections are in use, the accept loop waits this long for connection threads to notice that their
/// clients have disconnected; then it refuses the new client. About 500 threads need this long on one busy
/// processor.
const DISCONNECTED_SLOT_WAIT: Duration = Duration::from_millis(250);
/// Maximum number of refused clients of which the connection is not closed yet.
const REFUSED: usize = 64;
/// How long an idle connection thread waits for another client.
const GATE_THREAD_IDLE: Duration = Duration::from_secs(10);
/// How long the accept loop pauses after a failure for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Minimum interval between two log lines of one [`BurstLog`].
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

/// Maximum number of clients accepted from one listener before the loop serves the other listeners.
const ACCEPT_BATCH: usize = 64;

/// After a wait for a slot has failed, the loop refuses further clients without a wait for this long. It therefore
/// spends at most a fifth of its time waiting.
const SLOT_WAIT_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct AcceptLoop {
    gate: Arc<GateShared>,
    listeners: Vec<BoundListener>,
    stop: Cancel,
    workers: ConnectionThreads,
    /// A descriptor that is released in order to accept and refuse a client when no other is free. Otherwise that
    /// client would stay in the queue and wake the loop forever.
    spare_fd: Option<OwnedFd>,
    refused: Vec<(Socket, Instant)>,
    /// Maximum length of `refused`.
    max_refused: usize,
    complaint: BurstLog,
    /// When a wait for a slot last failed. Clients in the queue behind that client would wait in vain too.
    last_failed_wait: Option<Instant>,
    /// The log of evictions, and the table's eviction count when it was last read.
    crowded: (BurstLog, u64),
}

impl AcceptLoop {
    pub(super) fn new(
        gate: Arc<GateShared>,
        doors: Vec<BoundListener>,
        room: ConnectionLimits,
        stop: Cancel,
    ) -> AcceptLoop {
        AcceptLoop {
            gate,
            listeners: doors,
            stop,
            workers: ConnectionThreads::new(),
            spare_fd: open_spare_fd(),
            refused: Vec::new(),
            max_refused: room.refused,
            complaint: BurstLog::default(),
            last_failed_wait: None,
            crowded: Default::default(),
        }
    }

    /// Accepts clients until `stop` is cancelled, then closes the listeners. Returns the threads that still serve
    /// connections.
    pub(super) fn run(mut self) -> ConnectionThreads {
        while !self.stop.is_cancelled() {
            let ready = self.wait();
            self.close_refused();
            for door in ready {
                for _ in 0..ACCEPT_BATCH {
                    if !self.accept(door) {
                        break;
                    }
                }
            }
            self.gate.backend.trim();
        }
        self.workers
    }

    /// Returns the listeners with pending clients. Returns early at intervals, so that the caller closes refused
    /// clients and idle backend connections.
    fn wait(&self) -> Vec<usize> {
        let mut sockets = vec![PollFd::new(&self.stop, PollFlags::IN)];
        sockets.extend(self.listeners.iter().map(|door| PollFd::new(door, PollFlags::IN)));
        sockets.extend(self.refused.iter().map(|(socket, _)| PollFd::new(socket, PollFlags::IN)));
        let pause = if self.refused.is_empty() { limits::INSIDE_IDLE } else { limits::LINGER };
        let pause = Timespec { tv_sec: i64::try_from(pause.as_secs()).unwrap_or(1), tv_nsec: 0 };
        match poll(&mut sockets, Some(&pause)) {
            Ok(_) => {}
            Err(Errno::INTR) => return Vec::new(),
            // The poll failed (ENOMEM), so the state of the listeners is unknown and all are tried.
            Err(_) => {
                std::thread::sleep(ACCEPT_PAUSE);
                return (0..self.listeners.len()).collect();
            }
        }
        let doors = sockets[1..=self.listeners.len()].iter().enumerate();
        doors.filter(|(_, door)| !door.revents().is_empty()).map(|(number, _)| number).collect()
    }

    /// Accepts one client. Returns `false` if this listener has no further client at the moment.
    fn accept(&mut self, door: usize) -> bool {
        match self.listeners[door].accept() {
            Ok((socket, peer, local)) => {
                if self.spare_fd.is_none() {
                    self.spare_fd = open_spare_fd();
                }
                // The client reset its connection while it was in the queue, so it needs neither a slot nor a
                // thread.
                if wire::is_reset(&socket) {
                    return true;
                }
                let table = &self.gate.table;
                let mut slot = table.admit(socket, peer, local, false);
                // The slot of a disconnected client becomes free once its thread has been scheduled.
                let deadline = Instant::now() + DISCONNECTED_SLOT_WAIT;
                let mut patient =
                    self.last_failed_wait.is_none_or(|since| since.elapsed() > SLOT_WAIT_INTERVAL);
                while let Err(refused) = slot {
                    let use_reserve = !patient || !table.wait_for_slot(&refused) || Instant::now() > deadline;
                    slot = table.admit(refused.socket, peer, local, use_reserve);
                    if use_reserve {
                        break;
                    }
                    if Instant::now() > deadline {
                        (patient, self.last_failed_wait) = (false, Some(Instant::now()));
                    }
                }
                let evictions = self.gate.table.evictions();
                if evictions > std::mem::replace(&mut self.crowded.1, evictions) {
                    self.crowded.0.log(
                        "All connections are in use (--max-connections); closing idle ones to accept new clients",
                    );
                }
                match slot {
                    Ok(slot) => self.start(slot),
                    Err(refused) => {
                        self.complaint.log("All connections are taken (--max-connections)");
                        self.refuse(refused.socket);
                    }
                }
                true
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN) => false,
                Some(Errno::MFILE | Errno::NFILE) => {
                    self.complaint.log(&format!("Out of file descriptors ({error}); refusing connections"));
                    self.turn_away(door);
                    false
                }
                Some(Errno::NOBUFS | Errno::NOMEM) => {
                    self.complaint.log(&format!("Out of memory ({error}); connections are refused"));
                    std::thread::sleep(ACCEPT_PAUSE);
                    false
                }
                // accept(2) also reports errors of the pending connection; the next one may be fine.
                _ => {
                    log::debug!("accept: {error}");
                    true
                }
            },
        }
    }

    /// Refuses a client while no descriptor is free, by means of the spare descriptor.
    fn turn_away(&mut self, door: usize) {
        self.refused.clear();
        self.spare_fd = None;
        if let Ok((socket, ..)) = self.listeners[door].accept() {
            send_busy(&socket);
        }
        self.spare_fd = open_spare_fd();
        if self.spare_fd.is_none() {
            std::thread::sleep(ACCEPT_PAUSE);
        }
    }

    fn start(&mut self, slot: ConnectionSlot) {
        if let Err((slot, error)) = self.workers.serve(&self.gate, slot) {
            self.complaint.log(&error.to_string());
            send_busy(&slot.record.socket);
            drop(slot);
            std::thread::sleep(ACCEPT_PAUSE);
        }
    }

    fn refuse(&mut self, socket: Socket) {
        send_busy(&socket);
        // If the socket were closed at once, the kernel would answer the request in transit with a reset, and the
        // client would discard the 503.
        if self.refused.len() < self.max_refused {
            socket.shutdown(std::net::Shutdown::Write);
            self.refused.push((socket, Instant::now()));
        }
    }

    fn close_refused(&mut self) {
        let mut buffer = Vec::new();
        self.refused.retain(|(socket, since)| {
            buffer.clear();
            since.elapsed() < limits::LINGER
                && matches!(
                    wire::receive(socket, &mut buffer),
                    Ok(ReadOutcome::Bytes(_) | ReadOutcome::WouldBlock)
                )
        });
    }
}

fn send_busy(socket: &Socket) {
    let busy = Error::new(Code::Busy, "The server has no room for another connection; try again");
    let _ = wire::send(socket, refuse::answer(&busy, "", false).as_bytes());
}

fn open_spare_fd() -> Option<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// A log that writes at most one line per interval and counts the suppressed lines.
#[derive(Default)]
struct BurstLog {
    last: Option<Instant>,
    suppressed: u64,
}

impl BurstLog {
    fn log(&mut self, text: &str) {
        if self.last.is_some_and(|last| last.elapsed() < COMPLAINT_PAUSE) {
            self.suppressed += 1;
            return;
        }
        match std::mem::take(&mut self.suppressed) {
            0 => log::warn!("{text}"),
            more => log::warn!("{text} ({more} more since the last such line)"),
        }
        self.last = Some(Instant::now());
    }
}

/// The pool of threads that serve connections.
pub(super) struct ConnectionThreads {
    /// A channel without capacity: a send succeeds only if a thread is waiting; otherwise the caller starts a
    /// thread.
    slots: Sender<ConnectionSlot>,
    waiting: Receiver<ConnectionSlot>,
    threads: Vec<JoinOnDrop>,
    number: u64,
}

impl ConnectionThreads {
    fn new() -> ConnectionThreads {
        let (slots, waiting) = bounded(0);
        ConnectionThreads { slots, waiting, threads: Vec::new(), number: 0 }
    }

    fn serve(&mut self, gate: &Arc<GateShared>, slot: ConnectionSlot) -> Result<(), (ConnectionSlot, Error)> {
        let slot = match self.slots.try_send(slot) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(slot) | TrySendError::Disconnected(slot)) => slot,
        };
        self.threads.retain(|thread| !thread.is_finished());
        self.number += 1;
        // The slot stays in `shared` if the thread cannot be started, so that the caller gets it back.
        let shared = Arc::new(Mutex::new(Some(slot)));
        let (gate, waiting, mine) = (gate.clone(), self.waiting.clone(), shared.clone());
        let started = spawn(format!("gate-{}", self.number), limits::GATE_STACK, move || {
            let mut next = lock(&mine).take();
            drop(mine);
            while let Some(slot) = next {
                relay::serve(&gate, slot);
                next = waiting.recv_timeout(GATE_THREAD_IDLE).ok();
            }
        });
        match started {
            Ok(thread) => {
                self.threads.push(thread);
                Ok(())
            }
            Err(error) => match lock(&shared).take() {
                Some(slot) => Err((slot, error)),
                None => Ok(()),
            },
        }
    }

    /// Joins the threads. The caller must have closed their connections.
    pub(super) fn join(self) {
        let ConnectionThreads { slots, waiting, threads, .. } = self;
        drop((slots, waiting));
        drop(threads);
    }
}

/// Raises the soft limit of open files to the hard limit. Returns the previous soft limit, which child processes
/// that use select(2) need, and the new one.
pub fn raise_file_limit() -> (u64, u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let old = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: old.maximum, maximum: old.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => old.maximum,
        Err(_) => old.current,
    };
    (old.current.unwrap_or(u64::MAX), now.unwrap_or(u64::MAX))
}

/// The limits on connections, derived from the open-file limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionLimits {
    /// Maximum number of connections.
    pub(super) cap: usize,
    /// Number of slots beyond `cap` that are reserved for owners.
    pub(super) reserved: usize,
    /// Maximum number of refused clients of which the connection is still open.
    pub(super) refused: usize,
    /// Maximum number of evicted connections that have not closed yet.
    pub(super) leaving: usize,
}

impl ConnectionLimits {
    /// Returns the requested limits, reduced to fit the open-file limit `files`: tiny_http must never reach that
    /// limit.
    pub(super) fn new(wanted: usize, files: u64) -> ConnectionLimits {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let slots = files.saturating_sub(limits::DESCRIPTORS_RESERVED) / limits::DESCRIPTORS_PER_CONNECTION;
        let (reserved, refused) = (RESERVED_CONNECTIONS, REFUSED);
        if wanted + reserved + 2 * refused <= slots {
            return ConnectionLimits { cap: wanted, reserved, refused, leaving: refused };
        }
        let reserved = reserved.min(slots / 3).max(1);
        // The refused and the evicted connections use descriptors that are reserved for the rest of the server.
        ConnectionLimits {
            cap: wanted.min(slots.saturating_sub(reserved)).max(1),
            reserved,
            refused: 4,
            leaving: 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_the_open_file_limit() {
        for files in [64, 100, 256, 1024, 4096] {
            for wanted in [1, 4, 512, 100_000] {
                let ConnectionLimits { cap, reserved, refused, leaving } =
                    ConnectionLimits::new(wanted, files);
                let slots = (cap + reserved) * limits::DESCRIPTORS_PER_CONNECTION;
                // An idle server has about 25 open descriptors.
                assert!((slots + refused + leaving + 25) as u64 <= files, "{wanted} of {files}");
                assert!(cap >= 1 && cap <= wanted && reserved >= 1);
            }
        }
        assert_eq!(
            ConnectionLimits::new(512, 1 << 20),
            ConnectionLimits { cap: 512, reserved: 8, refused: 64, leaving: 64 }
        );
        assert!(ConnectionLimits::new(512, 10).cap >= 1);
    }
}
