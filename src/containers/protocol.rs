//! The protocol between engine and agent on a Unix stream socket, with one connection per process. The engine
//! sends a packed command, and the agent sends messages of eight bytes. The agent is untrusted: every wait of the
//! engine has a deadline.

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
use crate::proc::command_block::{MAX_PROCS_FILES, STREAMS, pack};
use crate::proc::exec::{REPORT_BYTES, StartReport, decode_pair, encode_pair};
use crate::proc::{CommandSpec, Stdio};

/// Protocol version. A server that finds a running agent with another version stops its container.
pub const VERSION: u32 = 3;

/// Messages from the agent to the engine, eight bytes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentMessage {
    /// A process waits for its command; the kernel attaches the process's PID.
    Ready,
    /// A message from the waiting process itself.
    FromProcess(StartReport),
    /// The process ended with this exit code.
    Exited {
        /// Exit code, 0 to 255.
        code: i32,
    },
    /// A signal killed the process.
    Killed { signal: i32 },
}

impl AgentMessage {
    fn to_bytes(self) -> [u8; REPORT_BYTES] {
        match self {
            AgentMessage::FromProcess(socket) => socket.to_bytes(),
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

/// Returns the error for a container, or a process waiting for a command, that has ended.
pub(super) fn container_stopped() -> Error {
    Error::new(Code::ContainerStopped, "The container stopped; the next command starts it again")
}

/// Returns the error for an agent that sent no message before the deadline.
pub(super) fn agent_timeout() -> Error {
    Error::new(Code::ContainerSilent, "The container's agent does not answer")
}

/// Returns the error for a running container in which no process can be started.
pub(super) fn container_full() -> Error {
    Error::new(
        Code::ContainerFull,
        "No process can be started in the container: processes in it use all its memory or process slots, or kill new ones. \
         GET …/resources shows its usage; DELETE …/runs/:run ends one run, POST …/stop all of them",
    )
}

/// Engine → waiting process: sends the command and its three streams. `mark` is an additional environment
/// variable; `doors` are `cgroup.procs` descriptors of additional cgroups that the process joins.
///
/// # Errors
/// `InvalidCommand` when the command is longer than the kernel allows; `ContainerStopped` when the process has
/// disconnected; `ContainerSilent` when the process does not read before `deadline`.
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
        return Err(Error::new(
            Code::InvalidCommand,
            format!("The container cannot run the command: {reason}"),
        ));
    }
    let mut fds = vec![stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
    fds.extend(doors.iter().map(AsFd::as_fd));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS + MAX_PROCS_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Error::internal("A command has more cgroups than there are hierarchies"));
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

/// Agent → engine: reports that process `pid` is waiting. Does not block if the engine does not read.
///
/// # Errors
/// Errors of sendmsg(2).
pub fn send_ready(socket: impl AsFd, pid: Pid) -> rustix::io::Result<()> {
    let credentials = UCred { pid, uid: getuid(), gid: getgid() };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmCredentials(credentials));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(&socket, &[IoSlice::new(&AgentMessage::Ready.to_bytes())], &mut ancillary, flags).map(drop)
}

/// Zygote → PID 1: reports that process `pid` is waiting for a command on `socket`.
///
/// # Errors
/// Errors of sendmsg(2).
pub fn send_process(reporter: impl AsFd, pid: Pid, socket: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let fds = [socket];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let number = pid.as_raw_pid().to_ne_bytes();
    sendmsg(&reporter, &[IoSlice::new(&number)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// Returns the next process that the zygote reported; `None` if no report has arrived.
pub fn receive_process(socket: impl AsFd) -> Option<(Pid, OwnedFd)> {
    let mut number = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(&socket, &mut [IoSliceMut::new(&mut number)], &mut ancillary, flags).ok()?;
    let mut sockets = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    Some((Pid::from_raw(i32::from_ne_bytes(number))?, sockets.next()?.next()?))
}

/// Agent → engine: sends any message other than `Ready`. Does not block if the engine does not read.
///
/// # Errors
/// Errors of send(2).
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

/// Parses messages from a stream that may split them at any byte.
#[derive(Debug, Default)]
pub struct MessageReader {
    bytes: Vec<u8>,
}

impl MessageReader {
    /// Creates a reader that starts with bytes that were already received.
    pub fn with_bytes(bytes: Vec<u8>) -> MessageReader {
        MessageReader { bytes }
    }

    /// Returns the received bytes that have not been parsed.
    pub fn unread(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the next message; `None` if it is not complete. Does not block.
    ///
    /// # Errors
    /// `ContainerStopped` at EOF or for an invalid message.
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
            .ok_or_else(|| container_stopped().with_source("invalid message"))
    }
}

/// Receives [`AgentMessage::Ready`] and returns the PID that the kernel attached to it, in this process's PID
/// namespace; `None` if the message has not arrived. SO_PASSCRED must have been set before the socket was
/// connected. The sender can forge only PIDs of its own namespace (unix(7): another PID needs CAP_SYS_ADMIN in the
/// user namespace that owns the PID namespace).
///
/// # Errors
/// `ContainerStopped` for any other message.
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
        _ => Err(container_stopped().with_source("the first message was not `ready`")),
    }
}

/// Engine → waiting process: tells the process to join the cgroups of these `cgroup.procs` descriptors. The kernel
/// checks the privileges of the process that opened the descriptors (cgroup_procs_write in kernel/cgroup/cgroup.c,
/// since Linux 5.16 and the stable releases of that time).
///
/// # Errors
/// `ContainerStopped` when the process has disconnected or does not read.
pub(super) fn send_cgroups(socket: impl AsFd, doors: &[OwnedFd]) -> Result<()> {
    let fds: Vec<BorrowedFd<'_>> = doors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PROCS_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Error::internal("A process has more cgroups than there are hierarchies"));
    }
    let (word, flags) = (encode_pair(0, 0), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    sendmsg(&socket, &[IoSlice::new(&word)], &mut ancillary, flags).map_err(|_| container_stopped())?;
    Ok(())
}

/// Returns whether the process has joined its cgroups; `false` if its report has not arrived.
///
/// # Errors
/// `ContainerStopped` when the process has ended; `Internal` when the kernel refused the move.
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
/// `ContainerStopped` when the process ended; `ContainerSilent` when no message arrived before `deadline`; the
/// error that `refused` returns for any other message. In none of these cases has the command run.
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
