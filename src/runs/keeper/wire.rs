//! The protocol between server and keeper: JSON messages with descriptors on a Unix socket that preserves message
//! boundaries (SOCK_SEQPACKET). Both sides are berth, possibly of different versions. No threads, no locks.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::run::{RunEnd, RunRecord};
use super::super::spool::SpoolState;
use crate::base::{At, Error, Result};
use crate::proc::{CgroupsHandle, CommandSpec, pty};

/// Protocol version. A server ends the keepers that have another version.
pub(super) const VERSION: u32 = 1;

/// Name of the socket in a run's directory.
const SOCKET: &str = "keeper.sock";
const AT: &str = "a keeper's socket";

/// Maximum message length: a state of the output contains at most [`crate::base::limits::SPOOL_GAPS`] gaps per
/// stream.
const MESSAGE_BYTES: usize = 32 << 10;
/// Maximum number of descriptors per message.
const DESCRIPTORS: usize = 6;

/// A keeper's job. It is sent in a file with the server's first message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KeeperJob {
    /// The record of the run, which the keeper completes at the end.
    pub(super) record: RunRecord,
    pub(super) folder: PathBuf,
    /// Bytes to keep of each output stream.
    pub(super) window: u64,
    /// Time limit of the run.
    pub(super) timeout: Duration,
    pub(super) cgroups: CgroupsHandle,
    /// Input for the command, followed by EOF.
    pub(super) stdin: Option<String>,
    pub(super) work: KeeperWork,
}

/// The task of a keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeeperWork {
    /// Start a command on the host, with `group` as its cgroup.
    Start {
        folder: PathBuf,
        group: String,
        command: CommandSpec,
        pty: Option<pty::WindowSize>,
        open_stdin: bool,
    },
    /// Take over a command that is running in a container. Descriptors: the process, the socket that reports its
    /// end, stdout, stderr, and the writing end of stdin if stdin is open.
    Watch { pid: i32, group: String, read: Vec<u8>, stdin: bool, tty: bool },
}

/// Requests from the server to the keeper.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeeperRequest {
    /// Carry out a job. Descriptors: a file with the [`KeeperJob`], then the descriptors of its task.
    Job,
    /// End the run.
    Cancel,
    /// Close the stdin of the command.
    CloseStdin,
    /// Free all but this many bytes of each output stream.
    Shrink(u64),
}

/// Messages from the keeper to the server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeeperMessage {
    /// The run has started. Descriptors: the process, and the writing end of stdin if stdin is open.
    Hello { version: u32, pid: i32, group: String, started_at: String, stdin: bool, tty: bool },
    /// The run could not be started; no part of the command has run.
    Refused { code: String, message: String, details: Map<String, Value> },
    /// The current state of the run's output.
    Marks(SpoolState),
    /// The run has ended; its record contains the same result.
    End(Box<RunEnd>, SpoolState),
}

/// Creates a pair of connected sockets.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .at("open", "a socket pair")
}

fn folder_and_address(folder: &std::path::Path) -> Result<(OwnedFd, SocketAddrUnix)> {
    // Use a path through our own descriptor: socket paths are limited to 107 bytes (unix(7)).
    let open = crate::proc::spawn::open_dir(folder)?;
    let address =
        SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd())).at("name", AT)?;
    Ok((open, address))
}

/// Opens the listening socket of a keeper in the run's directory.
pub(super) fn listen(folder: &std::path::Path) -> Result<OwnedFd> {
    let (_open, address) = folder_and_address(folder)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).at("open", AT)?;
    rustix::net::bind(&socket, &address).at("bind", AT)?;
    rustix::net::listen(&socket, 4).at("listen on", AT)?;
    Ok(socket)
}

/// Connects to the keeper of the run in `folder`; fails if no keeper listens.
pub(super) fn connect_to_keeper(folder: &std::path::Path) -> Result<OwnedFd> {
    let (_open, address) = folder_and_address(folder)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).at("open", AT)?;
    rustix::net::connect(&socket, &address).at("call", AT)?;
    Ok(socket)
}

/// Sends one message without blocking. Returns `false` if the other side has disconnected or its queue is full.
pub(super) fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> bool {
    let Ok(bytes) = serde_json::to_vec(message) else { return false };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return false;
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            sent => return sent.is_ok(),
        }
    }
}

/// Result of [`receive`].
#[derive(Debug)]
pub(super) enum Received<T> {
    Message(T, Vec<OwnedFd>),
    /// No message has arrived.
    Nothing,
    /// The other side has disconnected or sent an invalid message.
    Gone,
}

/// Receives the next message. Does not block.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Received<T> {
    let mut bytes = vec![0u8; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let length = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Received::Nothing,
            Err(_) => return Received::Gone,
            Ok(received) => break received.bytes,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    match serde_json::from_slice(&bytes[..length]) {
        Ok(message) if length > 0 => Received::Message(message, fds),
        _ => Received::Gone,
    }
}

/// Writes a job to a file in memory.
pub(super) fn write_job(job: &KeeperJob) -> Result<OwnedFd> {
    let fd = memfd_create("berth-job", MemfdFlags::CLOEXEC).at("make", "a file in memory")?;
    let mut file = File::from(fd);
    let bytes = serde_json::to_vec(job)
        .map_err(|error| Error::internal("Could not serialize a keeper's job").with_source(error))?;
    file.write_all(&bytes).and_then(|()| file.rewind()).at("write", "a file in memory")?;
    Ok(file.into())
}

/// Reads a job from a file.
pub(super) fn read_job(fd: OwnedFd) -> Result<KeeperJob> {
    let mut bytes = Vec::new();
    File::from(fd).read_to_end(&mut bytes).at("read", "a job")?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::internal("Could not parse a keeper's job").with_source(error))
}
