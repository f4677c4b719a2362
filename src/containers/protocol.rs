//! What engine and agent say to each other: JSON behind a four-byte length on a Unix stream socket, one connection
//! per process. The agent's side is untrusted input for the engine: sizes are capped, every wait has a deadline.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, send, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::base::{At, Code, Error, Result};
use crate::proc::User;

/// What both sides understand. A server that finds a running agent of another one ends it.
pub const VERSION: u32 = 1;

/// Engine → waiting process: become this command. Three descriptors travel along: stdin, stdout, stderr.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// Command lines to try in order.
    pub attempts: Vec<Vec<String>>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute, inside the container.
    pub cwd: String,
    /// The first descriptor is a terminal, which is to control the command's session.
    pub tty: bool,
    /// Whom to become first.
    pub user: Option<User>,
}

/// Agent → engine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A process waits for its [`Start`]; the kernel attaches its pid.
    Ready,
    /// The command is about to be executed: from here on it may have run.
    Accepted,
    /// The working directory could not be entered; nothing has run.
    NoCwd {
        /// What chdir(2) said.
        errno: i32,
    },
    /// The process could not become the user; nothing has run.
    NoUser {
        /// What the kernel said.
        errno: i32,
    },
    /// No program could be executed; nothing has run.
    NoExec {
        /// What execve(2) said.
        errno: i32,
    },
    /// It ended with this exit code.
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// A signal ended it.
    Killed {
        /// The signal's number.
        signal: i32,
    },
}

/// An answer is never longer.
const ANSWER_BYTES: usize = 256;

fn gone() -> Error {
    Error::new(Code::ContainerStopped, "The container stopped; the next command starts it again")
}

/// Sends one message with up to three descriptors.
///
/// # Errors
/// `ContainerStopped` when the other side is gone or does not read until `deadline`.
pub fn send_message(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> Result<()> {
    let body =
        serde_json::to_vec(message).map_err(|error| Error::internal("agent message").because(error))?;
    let length = u32::try_from(body.len()).map_err(|_| Error::internal("agent message too long"))?;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(body);

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::internal("too many descriptors for one agent message"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let mut sent = 0;
    while sent < bytes.len() {
        let result = if sent == 0 {
            sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)
        } else {
            send(&socket, &bytes[sent..], flags)
        };
        match result {
            Ok(n) => sent += n,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => ready(socket.as_fd(), PollFlags::OUT, deadline)?,
            Err(_) => return Err(gone()),
        }
    }
    Ok(())
}

/// Waits until `socket` is ready for `flags`.
fn ready(socket: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    match poll(&mut [PollFd::from_borrowed_fd(socket, flags)], Some(&timeout)) {
        Ok(0) => Err(Error::new(Code::ContainerStopped, "The container's agent does not answer")),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).at("poll", "the agent's socket"),
    }
}

/// Answers as they come in, whatever pieces the other side sends.
#[derive(Debug, Default)]
pub struct Answers {
    bytes: Vec<u8>,
}

impl Answers {
    /// Goes on after these bytes.
    pub fn after(bytes: Vec<u8>) -> Answers {
        Answers { bytes }
    }

    /// What came and is not read yet.
    pub fn rest(&self) -> &[u8] {
        &self.bytes
    }

    /// The next answer if it is complete. Does not wait.
    ///
    /// # Errors
    /// `ContainerStopped` at the end of the connection or when what came is not an answer.
    pub fn next(&mut self, socket: impl AsFd) -> Result<Option<Answer>> {
        loop {
            if let Some(answer) = self.parse()? {
                return Ok(Some(answer));
            }
            let mut chunk = [0u8; ANSWER_BYTES];
            match recv(&socket, &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(gone()),
                Ok((n, _)) => self.bytes.extend_from_slice(&chunk[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(gone()),
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Answer>> {
        let Some(length) = frame_length(&self.bytes, ANSWER_BYTES)? else { return Ok(None) };
        if self.bytes.len() < 4 + length {
            return Ok(None);
        }
        let frame: Vec<u8> = self.bytes.drain(..4 + length).skip(4).collect();
        serde_json::from_slice(&frame).map(Some).map_err(|error| gone().because(error))
    }
}

fn frame_length(bytes: &[u8], cap: usize) -> Result<Option<usize>> {
    let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > cap {
        return Err(gone().because("a message longer than allowed"));
    }
    Ok(Some(length))
}

/// Waits for [`Answer::Ready`] and returns the pid that the kernel attached to it, as seen from here. The socket must
/// have SO_PASSCRED set since before it was connected. The sender can lie only about pids of its own namespace
/// (unix(7): another pid needs CAP_SYS_ADMIN in the user namespace that owns the pid namespace).
///
/// # Errors
/// `ContainerStopped` when anything else comes, or nothing until `deadline`.
pub fn receive_ready(socket: impl AsFd, deadline: Instant) -> Result<i32> {
    ready(socket.as_fd(), PollFlags::IN, deadline)?;
    let mut chunk = [0u8; ANSWER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received =
        recvmsg(&socket, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, flags).map_err(|_| gone())?;
    let mut pid = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmCredentials(credentials) = message {
            pid = Some(credentials.pid.as_raw_nonzero().get());
        }
    }
    let mut answers = Answers { bytes: chunk[..received.bytes].to_vec() };
    match (answers.parse()?, pid) {
        (Some(Answer::Ready), Some(pid)) => Ok(pid),
        _ => Err(gone().because("the first message was not a greeting")),
    }
}

/// Waits until a process has accepted its [`Start`].
///
/// # Errors
/// Nothing has run then: `ContainerStopped` when the process ended, or nothing came until `deadline`; the answer that
/// came instead is given to `refused`.
pub fn receive_accepted(
    socket: impl AsFd,
    answers: &mut Answers,
    deadline: Instant,
    refused: impl FnOnce(Answer) -> Error,
) -> Result<()> {
    loop {
        match answers.next(&socket)? {
            None => ready(socket.as_fd(), PollFlags::IN, deadline)?,
            Some(Answer::Accepted) => return Ok(()),
            Some(Answer::Exited { .. } | Answer::Killed { .. } | Answer::Ready) => return Err(gone()),
            Some(other) => return Err(refused(other)),
        }
    }
}

/// The agent's side: waits, for as long as it takes, for one message and its descriptors. `None`: the engine
/// does not need this process after all.
pub fn receive_request<T: DeserializeOwned>(socket: impl AsFd, cap: usize) -> Option<(T, Vec<OwnedFd>)> {
    let mut bytes = Vec::new();
    let mut fds = Vec::new();
    loop {
        if let Some(length) = frame_length(&bytes, cap).ok()? {
            if bytes.len() >= 4 + length {
                return serde_json::from_slice(&bytes[4..4 + length]).ok().map(|message| (message, fds));
            }
        }
        let mut chunk = [0u8; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) if received.bytes > 0 => {
                bytes.extend_from_slice(&chunk[..received.bytes]);
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        fds.extend(rights);
                    }
                }
            }
            Err(Errno::INTR) => {}
            _ => return None,
        }
    }
}
