//! The protocol between the server and berth's process in an engine's container, over its Unix socket. Each
//! connection begins with one [`RelayHello`]. A message is JSON, preceded by its length in four bytes,
//! little-endian. No descriptors are passed, because engines with virtual machines forward only bytes.
//!
//! The server does not trust the data that it reads, because the container's programs have the same user ID.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Maximum message length; most of the longest message is an environment.
const MESSAGE_BYTES: usize = 1 << 20;

/// The byte that answers [`RelayHello::Output`] and [`RelayHello::Connect`].
pub(super) const DONE: u8 = b'.';
/// A byte that the server sends on a program's connection: send SIGTERM to all processes.
pub(super) const TERMINATE: u8 = b't';
/// A byte that the server sends on a program's connection: kill all processes.
pub(super) const KILL: u8 = b'k';

/// The first message of a connection, which selects its purpose.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum RelayHello {
    /// This connection is the lease: the container ends when it closes. The response is [`FileIdentities`].
    Lease {
        /// Paths in the container whose identity the server wants to check.
        look: Vec<String>,
    },
    /// This connection becomes standard output or standard error of the next program.
    Output {
        /// Whether the connection becomes standard error.
        error: bool,
    },
    /// Starts a program. The responses are [`ProgramStarted`] and, once the program has exited, [`ProgramExit`].
    Run(ProgramSpec),
    /// Relays between this connection and a port on the container's loopback interface.
    Connect { port: u16 },
}

/// A program with its arguments, environment and working directory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProgramSpec {
    pub(super) path: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) cwd: String,
}

/// Device and inode of each path in the request; `None` if the path does not exist.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FileIdentities {
    pub(super) found: Vec<Option<(u64, u64)>>,
}

/// Result of the start of a program.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ProgramStarted {
    /// The program runs with this PID in this PID namespace (the inode of /proc/PID/ns/pid).
    Running { pid: i32, namespace: u64 },
    /// The program could not be started, for this reason.
    Failed { message: String },
}

/// The exit status of a program.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct ProgramExit {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
    /// Whether the OOM killer has killed a process of the container since the program's start.
    pub(super) oom: bool,
}

pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_le_bytes(), &text[..]].concat())
}

pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MESSAGE_BYTES {
        return Err(io::Error::other("the message is too long"));
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Removes a complete message from the start of `bytes` and returns it; `None` if the message is not complete.
pub(super) fn take<T: DeserializeOwned>(bytes: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(length) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MESSAGE_BYTES {
        return Err(io::Error::other("the message is too long"));
    }
    let Some(text) = bytes.get(4..4 + length) else { return Ok(None) };
    let message = serde_json::from_slice(text)?;
    bytes.drain(..4 + length);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_sent() {
        let mut bytes = Vec::new();
        send(&mut bytes, &RelayHello::Connect { port: 4096 }).unwrap();
        send(&mut bytes, &RelayHello::Lease { look: vec!["/workspace".into()] }).unwrap();
        let mut from = bytes.as_slice();
        assert!(matches!(receive(&mut from).unwrap(), RelayHello::Connect { port: 4096 }));
        assert!(matches!(receive(&mut from).unwrap(), RelayHello::Lease { look } if look == ["/workspace"]));
        assert!(receive::<RelayHello>(&mut from).is_err());

        let mut some = bytes[..7].to_vec();
        assert!(take::<RelayHello>(&mut some).unwrap().is_none());
        some.extend(&bytes[7..]);
        assert!(matches!(take(&mut some).unwrap(), Some(RelayHello::Connect { .. })));
        assert!(matches!(take(&mut some).unwrap(), Some(RelayHello::Lease { .. })));
        assert!(some.is_empty());
        assert!(take::<RelayHello>(&mut vec![0xff; 8]).is_err());
        assert!(take::<RelayHello>(&mut b"\x01\0\0\0x".to_vec()).is_err());
    }
}
