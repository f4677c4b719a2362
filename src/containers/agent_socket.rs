//! The host's end of the agent's socket. The server creates the socket before the container and passes it to the
//! agent as a descriptor. It connects by the socket's path in the workspace's directory, which the container
//! cannot access.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};

use crate::base::{At, Code, Error, Result};

const SOCKET: &str = "agent.sock";
const AT: &str = "the agent's socket";

/// Returns the socket's address by way of a descriptor of this process: socket paths are limited to 107 bytes
/// (unix(7)), and the data directory's path may be longer.
fn address_in(folder: &OwnedFd) -> Result<SocketAddrUnix> {
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    SocketAddrUnix::new(path.as_str()).at("name", AT)
}

/// Creates the socket, replacing an old one. The agent inherits the descriptor and accepts connections on it.
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

/// Connects to the agent without blocking. A process inside can stop the agent (ptrace(2)), but a stopped agent
/// must not block the server: if the agent's backlog is full, the connection is refused.
pub(super) fn connect_to_agent(folder: &OwnedFd) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).at("open", "a socket")?;
    sockopt::set_socket_passcred(&socket, true).at("prepare", "a socket")?;
    connect(&socket, &address_in(folder)?).map_err(|error| {
        Error::new(Code::ContainerStopped, "The container's agent does not accept connections")
            .with_source(error)
    })?;
    Ok(socket)
}
