//! Notifies the service manager of this process's state (sd_notify(3)): ready, status, stopping. Without a
//! `NOTIFY_SOCKET`, no messages are sent. A lost message is not an error: the service manager has its own timeouts.
//!
//! Any thread may send; there is no lock.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager's socket, if this process has a service manager.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager(Option<SocketAddr>);

impl ServiceManager {
    /// Parses the value of `NOTIFY_SOCKET`: a path, or `@` followed by an abstract name.
    pub fn from_socket(socket: Option<&str>) -> ServiceManager {
        ServiceManager(socket.and_then(|socket| match socket.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name).ok(),
            None => SocketAddr::from_pathname(socket).ok(),
        }))
    }

    /// Reports that the server accepts requests; `systemctl status` shows the text `status`.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// Reports that the server will have stopped within `most`. The caller may call this again to extend the time.
    pub fn stopping(&self, most: Duration) {
        self.send(&format!("STOPPING=1\nSTATUS=Stopping\nEXTEND_TIMEOUT_USEC={}", most.as_micros()));
    }

    fn send(&self, message: &str) {
        let Some(address) = &self.0 else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            // A full queue at the service manager must not block the server.
            socket.set_nonblocking(true)?;
            socket.send_to_addr(message.as_bytes(), address)
        });
        if let Err(error) = sent {
            log::warn!("Could not notify the service manager: {error}");
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_both_kinds_of_sockets() {
        let name = format!("berth-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let _ = std::fs::remove_file(&path);
        let in_files = UnixDatagram::bind(&path).unwrap();
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let in_kernel = UnixDatagram::bind_addr(&abstract_name).unwrap();
        for (socket, place) in
            [(in_files, path.to_str().unwrap().to_owned()), (in_kernel, format!("@{name}"))]
        {
            let manager = ServiceManager::from_socket(Some(&place));
            manager.ready("two\nlines");
            manager.stopping(Duration::from_secs(3));
            let mut read = [0; 200];
            let count = socket.recv(&mut read).unwrap();
            assert_eq!(&read[..count], b"READY=1\nSTATUS=two lines");
            let count = socket.recv(&mut read).unwrap();
            assert_eq!(&read[..count], b"STOPPING=1\nSTATUS=Stopping\nEXTEND_TIMEOUT_USEC=3000000");
        }
        std::fs::remove_file(path).unwrap();
        ServiceManager::from_socket(None).ready("nothing is sent");
    }
}
