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

use super::watch::{Cut, Watch, until};
use super::wire::Channel;
use crate::base::limits;

/// A client's connection.
pub trait Client: AsFd + Read + Write {
    /// Ends our direction.
    fn finish(&self, how: Shutdown);
}

/// What comes after an answer of 101.
pub struct Tunnel {
    channel: Channel,
    early: Vec<u8>,
    watch: Rc<Watch>,
}

/// How a relay came to its end; for log lines.
#[derive(Debug)]
pub enum Left {
    /// Both sides have ended their direction.
    Ended,
    /// One side went without a word, or something else made an end of it.
    Cut(io::Error),
}

/// What is on its way in one direction.
#[derive(Default)]
struct Way {
    bytes: Vec<u8>,
    sent: usize,
    /// Its sender has ended it.
    ended: bool,
    /// The receiver knows.
    told: bool,
    /// Since when the receiver takes nothing.
    blocked: Option<Instant>,
}

impl Way {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    fn takes(&self) -> bool {
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
            Err(error) if is_later(&error) => {}
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
                Err(error) if is_later(&error) => {
                    let since = *self.blocked.get_or_insert_with(Instant::now);
                    return if since.elapsed() < limits::WRITE_STALL {
                        Ok(())
                    } else {
                        Err(Cut::Late.into())
                    };
                }
                Err(error) => return Err(error),
            }
        }
        to.flush()
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Tunnel {
    pub(super) fn new(channel: Channel, early: Vec<u8>, watch: Rc<Watch>) -> Tunnel {
        Tunnel { channel, early, watch }
    }

    /// Relays on this thread until the end. `early` is what the client has sent behind its request.
    pub fn relay<C: Client>(mut self, mut client: C, early: Vec<u8>) -> Left {
        if let Err(error) = rustix::io::ioctl_fionbio(&client, true) {
            return Left::Cut(error.into());
        }
        let mut inward = Way { bytes: early, ..Way::default() };
        let mut outward = Way { bytes: std::mem::take(&mut self.early), ..Way::default() };
        loop {
            match self.step(&mut client, &mut inward, &mut outward) {
                Ok(true) => {}
                Ok(false) => return Left::Ended,
                Err(error) => return Left::Cut(error),
            }
        }
    }

    /// Writes what there is, waits, reads what has come; `false` when all has been said.
    fn step<C: Client>(&mut self, client: &mut C, inward: &mut Way, outward: &mut Way) -> io::Result<bool> {
        inward.write(&mut self.channel)?;
        outward.write(client)?;
        if inward.ended && inward.is_empty() && !inward.told {
            inward.told = true;
            self.channel.finish();
        }
        if outward.ended && outward.is_empty() && !outward.told {
            outward.told = true;
            client.finish(Shutdown::Write);
        }
        // A WebSocket that one side has ended can say nothing more.
        if inward.told || outward.told {
            return Ok(false);
        }
        // Silence is no end: terminals are idle for days. Peers that have vanished are found by TCP's own probes.
        let mut next = Instant::now() + limits::UPSTREAM_SILENCE;
        for blocked in [inward.blocked, outward.blocked].into_iter().flatten() {
            next = next.min(blocked + limits::WRITE_STALL);
        }
        let mut upstream = if outward.takes() { self.channel.wants(true) } else { PollFlags::empty() };
        upstream.set(PollFlags::OUT, !inward.is_empty() || upstream.contains(PollFlags::OUT));
        let mut from = PollFlags::empty();
        from.set(PollFlags::IN, inward.takes());
        from.set(PollFlags::OUT, !outward.is_empty());
        let mut fds = [
            PollFd::new(&self.channel, upstream),
            PollFd::new(client, from),
            PollFd::from_borrowed_fd(self.watch.stop(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&until(next))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let lost =
            |fd: &PollFd<'_>| fd.revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        let (upstream_lost, client_lost) = (lost(&fds[0]), lost(&fds[1]));
        if !fds[2].revents().is_empty() {
            return Err(Cut::Stopping.into());
        }
        if outward.takes() {
            outward.read(&mut self.channel)?;
        } else if upstream_lost {
            return Err(Cut::Broken.into());
        }
        if inward.takes() {
            inward.read(client)?;
        } else if client_lost {
            return Err(Cut::Gone.into());
        }
        Ok(true)
    }
}
