//! Finds the process that holds a port, for the error message of a failed bind.

use std::fs;
use std::net::SocketAddr;

/// The state of a listening socket in /proc/net/tcp (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// Describes the process that listens on this port, as a clause for an error message; empty if unknown.
pub(super) fn describe_listener(address: SocketAddr) -> String {
    let port = format!(":{:04X}", address.port());
    let sockets: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|table| {
            let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
            let listens = |row: &Vec<&str>| {
                row.len() > 9 && row[1].ends_with(&port) && row[3] == LISTEN && row[9] != "0"
            };
            rows.filter(listens).map(|row| format!("socket:[{}]", row[9])).collect::<Vec<_>>()
        })
        .collect();
    let Ok(processes) = fs::read_dir("/proc") else { return String::new() };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let mut links = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
        if links.any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str())) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!(
                "; process {pid} ({}) listens on it",
                crate::base::logging::one_line(name.trim())
            );
        }
    }
    String::new()
}
