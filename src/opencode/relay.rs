//! Raw bytes both ways between a client and an upstream, after both have changed to another protocol: WebSockets of
//! OpenCode's terminals. Nothing is read into them. One thread; each direction has one buffer, and what cannot be
//! passed on stops only the reading of its own direction.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::watch::{CallWatch, WaitError, timeout_until};
use super::wire::Channel;
use crate::base::limits;

/// A client's connection.
pub trait TunnelClient: AsFd + Read + Write {
    /// Ends our direction.
    fn finish(&self, how: Shutdown);
}

/// What comes after an answer of 101.
pub struct Tunnel {
    channel: Channel,
    early: Vec<u8>,
    watch: Rc<CallWatch>,
}

/// How a relay came to its end; for log lines.
#[derive(Debug)]
pub enum TunnelEnd {
    /// Both sides have ended their direction.
    Closed,
    /// One side went without a word, or something else made an end of it.
    Failed(io::Error),
}

/// What is on its way in one direction.
#[derive(Default)]
struct Direction {
    bytes: Vec<u8>,
    sent: usize,
    /// Its sender has ended it.
    ended: bool,
    /// The receiver knows.
    shutdown_sent: bool,
    /// Since when the receiver takes nothing.
    blocked: Option<Instant>,
}

impl Direction {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    fn wants_input(&self) -> bool {
        self.is_empty() && !self.ended
    }

    fn read(&mut self, from: &mut impl Read) -> io::Result<()> {
        self.bytes.resize(limits::RELAY_BYTES, 0);
        self.sent = 0;
        let got = from.read(&mut self.bytes);
        self.bytes.truncate(*got.as_ref().unwrap_or(&0));
        match got {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error) if is_would_block(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self, to: &mut impl Write) -> io::Result<()> {
        while !self.is_empty() {
            match to.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += count;
                    self.blocked = None;
                }
                Err(error) if is_would_block(&error) => {
                    let since = *self.blocked.get_or_insert_with(Instant::now);
                    return if since.elapsed() < limits::WRITE_STALL {
                        Ok(())
                    } else {
                        Err(WaitError::TimedOut.into())
                    };
                }
                Err(error) => return Err(error),
            }
        }
        to.flush()
    }
}

fn is_would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Tunnel {
    pub(super) fn new(channel: Channel, early: Vec<u8>, watch: Rc<CallWatch>) -> Tunnel {
        Tunnel { channel, early, watch }
    }

    /// Relays on this thread until the end. `early` is what the client has sent behind its request.
    pub fn relay<C: TunnelClient>(mut self, mut client: C, early: Vec<u8>) -> TunnelEnd {
        if let Err(error) = rustix::io::ioctl_fionbio(&client, true) {
            return TunnelEnd::Failed(error.into());
        }
        let mut inward = Direction { bytes: early, ..Direction::default() };
        let mut outward = Direction { bytes: std::mem::take(&mut self.early), ..Direction::default() };
        loop {
            match self.step(&mut client, &mut inward, &mut outward) {
                Ok(true) => {}
                Ok(false) => return TunnelEnd::Closed,
                Err(error) => return TunnelEnd::Failed(error),
            }
        }
    }

    /// Writes what there is, waits, reads what has come; `false` when all has been said.
    fn step<C: TunnelClient>(
        &mut self,
        client: &mut C,
        inward: &mut Direction,
        outward: &mut Direction,
    ) -> io::Result<bool> {
        inward.write(&mut self.channel)?;
        outward.write(client)?;
        if inward.ended && inward.is_empty() && !inward.shutdown_sent {
            inward.shutdown_sent = true;
            self.channel.finish();
        }
        if outward.ended && outward.is_empty() && !outward.shutdown_sent {
            outward.shutdown_sent = true;
            client.finish(Shutdown::Write);
        }
        // A WebSocket that one side has ended can say nothing more.
        if inward.shutdown_sent || outward.shutdown_sent {
            return Ok(false);
        }
        // Silence is no end: terminals are idle for days. Peers that have vanished are found by TCP's own probes.
        let mut next = Instant::now() + limits::UPSTREAM_SILENCE;
        for blocked in [inward.blocked, outward.blocked].into_iter().flatten() {
            next = next.min(blocked + limits::WRITE_STALL);
        }
        let mut upstream = if outward.wants_input() { self.channel.wants(true) } else { PollFlags::empty() };
        upstream.set(PollFlags::OUT, !inward.is_empty() || upstream.contains(PollFlags::OUT));
        let mut from = PollFlags::empty();
        from.set(PollFlags::IN, inward.wants_input());
        from.set(PollFlags::OUT, !outward.is_empty());
        let mut fds = [
            PollFd::new(&self.channel, upstream),
            PollFd::new(client, from),
            PollFd::from_borrowed_fd(self.watch.stop(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timeout_until(next))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let lost =
            |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        let (upstream_lost, client_lost) = (lost(&fds[0]), lost(&fds[1]));
        if !fds[2].revents().is_empty() {
            return Err(WaitError::ServerStopping.into());
        }
        if outward.wants_input() {
            outward.read(&mut self.channel)?;
        } else if upstream_lost {
            return Err(WaitError::UpstreamClosed.into());
        }
        if inward.wants_input() {
            inward.read(client)?;
        } else if client_lost {
            return Err(WaitError::ClientDisconnected.into());
        }
        Ok(true)
    }
}
