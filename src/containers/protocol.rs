//! What engine and agent say to each other on a Unix stream socket, one connection per process: a packed command one
//! way, answers of eight bytes the other. The agent's side is untrusted input for the engine: every wait has a deadline.

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, UCred, recv, recvmsg, send, sendmsg,
};
use rustix::process::{Pid, getgid, getuid};

use crate::base::{At, Code, Error, Result, limits};
use crate::proc::exec::{REPORT_BYTES, StartReport, decode_pair, encode_pair};
use crate::proc::packed::{MAX_PROCS_FILES, STREAMS, pack};
use crate::proc::{CommandSpec, Stdio};

/// What both sides understand. A server that finds a running agent of another one ends it.
pub const VERSION: u32 = 3;

/// Agent → engine, eight bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentMessage {
    /// A process waits for its command; its pid is attached.
    Ready,
    /// What that process says itself.
    FromProcess(StartReport),
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

impl AgentMessage {
    fn to_bytes(self) -> [u8; REPORT_BYTES] {
        match self {
            AgentMessage::FromProcess(told) => told.to_bytes(),
            AgentMessage::Ready => encode_pair(16, 0),
            AgentMessage::Exited { code } => encode_pair(17, code),
            AgentMessage::Killed { signal } => encode_pair(18, signal),
        }
    }

    fn from_bytes(bytes: [u8; REPORT_BYTES]) -> Option<AgentMessage> {
        Some(match decode_pair(bytes) {
            (16, _) => AgentMessage::Ready,
            (17, code) => AgentMessage::Exited { code },
            (18, signal) => AgentMessage::Killed { signal },
            _ => AgentMessage::FromProcess(StartReport::from_bytes(bytes)?),
        })
    }
}

/// The container, or the process in it that was to become a command, has ended.
pub(super) fn container_stopped() -> Error {
    Error::new(Code::ContainerStopped, "The container stopped; the next command starts it again")
}

/// Nothing came until the deadline.
pub(super) fn agent_timeout() -> Error {
    Error::new(Code::ContainerSilent, "The container's agent does not answer")
}

/// The container lives, but nothing can be started in it.
pub(super) fn container_full() -> Error {
    Error::new(
        Code::ContainerFull,
        "Nothing can be started in the container: what runs there takes all its memory or processes, or kills what starts. \
         GET …/resources shows what it uses; DELETE …/runs/:run ends a run, POST …/stop everything",
    )
}

/// Engine → waiting process: become this command, with these three streams; `mark`: a further variable; `doors`: further
/// groups to enter.
///
/// # Errors
/// `InvalidCommand` when it is longer than the kernel takes; `ContainerStopped` when the other side is gone,
/// `ContainerSilent` when it does not read until `deadline`.
pub fn send_command(
    socket: impl AsFd,
    command: &CommandSpec,
    mark: Option<&CString>,
    stdio: &Stdio,
    doors: &[OwnedFd],
    deadline: Instant,
) -> Result<()> {
    let bytes = pack(command, mark);
    if bytes.len() > limits::AGENT_MESSAGE_BYTES {
        let reason = std::io::Error::from(Errno::TOOBIG);
        return Err(Error::new(Code::InvalidCommand, format!("The container cannot run it: {reason}")));
    }
    let mut fds = vec![stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
    fds.extend(doors.iter().map(AsFd::as_fd));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS + MAX_PROCS_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Error::internal("a command has more groups than there are hierarchies"));
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
            Err(Errno::AGAIN) => wait_ready(socket.as_fd(), PollFlags::OUT, deadline)?,
            Err(_) => return Err(container_stopped()),
        }
    }
    Ok(())
}

/// The agent's side: says that `pid` waits. Does not wait for an engine that does not read.
///
/// # Errors
/// What sendmsg(2) said.
pub fn send_ready(socket: impl AsFd, pid: Pid) -> rustix::io::Result<()> {
    let credentials = UCred { pid, uid: getuid(), gid: getgid() };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmCredentials(credentials));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(&socket, &[IoSlice::new(&AgentMessage::Ready.to_bytes())], &mut ancillary, flags).map(drop)
}

/// Between the agent's two: `pid` waits on `socket`.
///
/// # Errors
/// What sendmsg(2) said.
pub fn send_process(tells: impl AsFd, pid: Pid, socket: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let fds = [socket];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let number = pid.as_raw_pid().to_ne_bytes();
    sendmsg(&tells, &[IoSlice::new(&number)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// The next of these; `None` when there is none at the moment.
pub fn receive_process(told: impl AsFd) -> Option<(Pid, OwnedFd)> {
    let mut number = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(&told, &mut [IoSliceMut::new(&mut number)], &mut ancillary, flags).ok()?;
    let mut sockets = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Some((Pid::from_raw(i32::from_ne_bytes(number))?, sockets.next()?.next()?))
}

/// The agent's side: says anything else. Does not wait for an engine that does not read.
///
/// # Errors
/// What send(2) said.
pub fn send_message(socket: impl AsFd, answer: AgentMessage) -> rustix::io::Result<()> {
    send(&socket, &answer.to_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop)
}

/// Waits until `socket` is ready for `flags`.
fn wait_ready(socket: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    match poll(&mut [PollFd::from_borrowed_fd(socket, flags)], Some(&timeout)) {
        Ok(0) => Err(agent_timeout()),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).at("poll", "the agent's socket"),
    }
}

/// Answers as they come in, whatever pieces the other side sends.
#[derive(Debug, Default)]
pub struct MessageReader {
    bytes: Vec<u8>,
}

impl MessageReader {
    /// Goes on after these bytes.
    pub fn with_bytes(bytes: Vec<u8>) -> MessageReader {
        MessageReader { bytes }
    }

    /// What came and is not read yet.
    pub fn unread(&self) -> &[u8] {
        &self.bytes
    }

    /// The next answer if it is complete. Does not wait.
    ///
    /// # Errors
    /// `ContainerStopped` at the end of the connection or when what came is not an answer.
    pub fn try_next(&mut self, socket: impl AsFd) -> Result<Option<AgentMessage>> {
        loop {
            if let Some(answer) = self.parse()? {
                return Ok(Some(answer));
            }
            let mut chunk = [0u8; 4 * REPORT_BYTES];
            match recv(&socket, &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(container_stopped()),
                Ok((n, _)) => self.bytes.extend_from_slice(&chunk[..n]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(container_stopped()),
            }
        }
    }

    fn parse(&mut self) -> Result<Option<AgentMessage>> {
        let Some(bytes) = self.bytes.first_chunk::<REPORT_BYTES>().copied() else { return Ok(None) };
        self.bytes.drain(..REPORT_BYTES);
        AgentMessage::from_bytes(bytes)
            .map(Some)
            .ok_or_else(|| container_stopped().with_source("what came is no answer"))
    }
}

/// [`AgentMessage::Ready`], with the pid that the kernel attached to it, as seen from here; `None`: it has not come yet. The socket
/// must have SO_PASSCRED set since before it was connected. The sender can lie only about pids of its own namespace
/// (unix(7): another pid needs CAP_SYS_ADMIN in the user namespace that owns the pid namespace).
///
/// # Errors
/// `ContainerStopped` when anything else comes.
pub fn receive_ready(socket: impl AsFd) -> Result<Option<i32>> {
    let mut chunk = [0u8; REPORT_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = match recvmsg(&socket, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, flags) {
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        received => received.map_err(|_| container_stopped())?,
    };
    let mut pid = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmCredentials(credentials) = message {
            pid = Some(credentials.pid.as_raw_nonzero().get());
        }
    }
    let mut answers = MessageReader { bytes: chunk[..received.bytes].to_vec() };
    match (answers.parse()?, pid) {
        (Some(AgentMessage::Ready), Some(pid)) => Ok(Some(pid)),
        _ => Err(container_stopped().with_source("the first message was not a greeting")),
    }
}

/// Engine → waiting process: enter the groups behind these `cgroup.procs`. The kernel checks the rights of the process that
/// opened them (cgroup_procs_write in kernel/cgroup/cgroup.c, Linux 5.16 and the stable releases of that time).
///
/// # Errors
/// `ContainerStopped` when the other side is gone or does not read.
pub(super) fn send_cgroups(socket: impl AsFd, doors: &[OwnedFd]) -> Result<()> {
    let fds: Vec<BorrowedFd<'_>> = doors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PROCS_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Error::internal("a process has more groups than there are hierarchies"));
    }
    let (word, flags) = (encode_pair(0, 0), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    sendmsg(&socket, &[IoSlice::new(&word)], &mut ancillary, flags).map_err(|_| container_stopped())?;
    Ok(())
}

/// Whether the process has entered its groups; `false`: it has not said so yet.
///
/// # Errors
/// `ContainerStopped` when it has ended; `Internal` with what the kernel said.
pub(super) fn receive_entered(socket: impl AsFd, answers: &mut MessageReader) -> Result<bool> {
    match answers.try_next(&socket)? {
        None => Ok(false),
        Some(AgentMessage::FromProcess(StartReport::GroupEntered)) => Ok(true),
        Some(AgentMessage::FromProcess(StartReport::GroupFailed(errno))) => {
            let reason = std::io::Error::from_raw_os_error(errno);
            Err(Error::internal(format!("A process of the container could not enter its cgroup: {reason}")))
        }
        Some(_) => Err(container_stopped()),
    }
}

/// Waits until a process has accepted its command.
///
/// # Errors
/// Nothing has run then: `ContainerStopped` when the process ended, `ContainerSilent` when nothing came until `deadline`;
/// the answer that came instead is given to `refused`.
pub fn receive_accepted(
    socket: impl AsFd,
    answers: &mut MessageReader,
    deadline: Instant,
    refused: impl FnOnce(AgentMessage) -> Error,
) -> Result<()> {
    loop {
        match answers.try_next(&socket)? {
            None => wait_ready(socket.as_fd(), PollFlags::IN, deadline)?,
            Some(AgentMessage::FromProcess(StartReport::Accepted)) => return Ok(()),
            Some(AgentMessage::Exited { .. } | AgentMessage::Killed { .. } | AgentMessage::Ready) => {
                return Err(container_stopped());
            }
            Some(other) => return Err(refused(other)),
        }
    }
}
