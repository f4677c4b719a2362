//! The agent's socket as seen from outside: made before the container, handed to it as a descriptor, found again by its
//! path in the workspace's folder, which nothing inside can reach.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};

use crate::base::{At, Code, Error, Result};

const SOCKET: &str = "agent.sock";
const AT: &str = "the agent's socket";

/// A path through our own descriptor: sockets' paths are at most 107 bytes (unix(7)), a data folder's may be longer.
fn address_in(folder: &OwnedFd) -> Result<SocketAddrUnix> {
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    SocketAddrUnix::new(path.as_str()).at("name", AT)
}

/// Makes the socket anew; whoever has the descriptor answers.
pub(super) fn listen_in(folder: &OwnedFd) -> Result<OwnedFd> {
    match rustix::fs::unlinkat(folder, SOCKET, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).at("remove", AT),
    }
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).at("open", AT)?;
    bind(&socket, &address_in(folder)?).at("bind", AT)?;
    listen(&socket, 128).at("listen on", AT)?;
    Ok(socket)
}

/// Calls the agent. Does not wait: one that somebody inside stops (ptrace(2)) must not stop us, and what its queue does
/// not take is refused.
pub(super) fn connect_to_agent(folder: &OwnedFd) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).at("open", "a socket")?;
    sockopt::set_socket_passcred(&socket, true).at("prepare", "a socket")?;
    connect(&socket, &address_in(folder)?).map_err(|error| {
        Error::new(Code::ContainerStopped, "The container's agent does not take connections")
            .with_source(error)
    })?;
    Ok(socket)
}
