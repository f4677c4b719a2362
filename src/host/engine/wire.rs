//! What the server and berth's own process in an engine's container say to each other over its Unix socket. Every
//! connection begins with one [`Hello`]. A message is JSON behind its length, four bytes in little-endian order. Plain
//! streams and no descriptors: an engine that runs virtual machines passes on bytes only.
//!
//! The server trusts nothing that it reads here: the container's programs run with the same user id.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest message; an environment is most of it.
const MESSAGE_BYTES: usize = 1 << 20;

/// [`Hello::Output`] and [`Hello::Connect`] are answered with this byte.
pub(super) const DONE: u8 = b'.';
/// On the connection of a run: send SIGTERM to everything.
pub(super) const TERMINATE: u8 = b't';
/// On the connection of a run: kill everything.
pub(super) const KILL: u8 = b'k';

/// The first message of a connection.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum RelayHello {
    /// The container lives for as long as this connection. Answered with [`Files`].
    Lease {
        /// Paths in the container whose identity the server wants to compare.
        look: Vec<String>,
    },
    /// The next run's standard output, or its standard error.
    Output {
        /// Which of the two.
        error: bool,
    },
    /// Starts the program. Answered with [`Started`], and with [`Over`] once it has ended.
    Run(ProgramSpec),
    /// Bytes both ways between this connection and a port of the container's loopback.
    Connect {
        /// The port.
        port: u16,
    },
}

/// A program with its arguments, environment and working directory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ProgramSpec {
    pub(super) path: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) cwd: String,
}

/// Device and inode of each file that was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FileIdentities {
    pub(super) found: Vec<Option<(u64, u64)>>,
}

/// Whether the program runs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ProgramStarted {
    /// It runs as this process of this PID namespace (the inode that /proc/PID/ns/pid shows).
    Running { pid: i32, namespace: u64 },
    /// Why it does not.
    Failed { message: String },
}

/// How the program ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct ProgramExit {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
    /// The kernel has killed a process of the container at its memory limit meanwhile.
    pub(super) oom: bool,
}

/// Sends a message.
pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_le_bytes(), &text[..]].concat())
}

/// Receives a message.
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

/// Takes a message off `bytes` once all of it is there.
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
