//! Relays raw bytes in both directions after client and upstream have switched protocols, as for the WebSockets of
//! OpenCode's terminals. The bytes are not interpreted. One thread serves both directions. Each direction has its own
//! buffer, so a receiver that does not read stops only the direction to itself.

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

pub trait TunnelClient: AsFd + Read + Write {
    /// Shuts down the direction to the client.
    fn finish(&self, how: Shutdown);
}

/// A connection after a protocol upgrade (a response with status 101).
pub struct Tunnel {
    channel: Channel,
    early: Vec<u8>,
    watch: Rc<CallWatch>,
}

/// The reason why a relay ended, for log lines.
#[derive(Debug)]
pub enum TunnelEnd {
    /// One side closed its direction, and all data that it sent was delivered.
    Closed,
    /// The connection broke, the server is shutting down, or a receiver stalled.
    Failed(io::Error),
}

/// The buffer and state of one direction.
#[derive(Default)]
struct Direction {
    bytes: Vec<u8>,
    sent: usize,
    /// Whether the sender has closed this direction.
    ended: bool,
    /// Whether the end of this direction was passed on to the receiver.
    shutdown_sent: bool,
    /// The time at which the receiver stopped reading.
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

    /// Relays bytes on this thread until the connection ends. `early` contains the bytes that the client sent after
    /// its request.
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

    /// Writes pending data, waits, and reads new data. Returns `false` once one direction has ended and all its data
    /// was delivered.
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
        // WebSockets send no more data once one direction is closed.
        if inward.shutdown_sent || outward.shutdown_sent {
            return Ok(false);
        }
        // A relay without traffic does not time out, because terminals can be idle for days. TCP keepalive detects a
        // peer that no longer exists.
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
