//! Listening sockets: TCP addresses, Unix sockets, and sockets inherited from systemd. This module binds them, and
//! removes the socket files that it created. It is independent of the protocol spoken on the sockets.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::listener_process;
use super::record::Peer;
use crate::base::{Error, Result};
use crate::http::client::Socket;

/// Length of the accept queue. The kernel reduces it to net.core.somaxconn.
const BACKLOG: i32 = 1024;

/// An address to listen on.
#[derive(Debug)]
pub enum Listen {
    /// A TCP address. If the port is 0, the kernel chooses one.
    Tcp(SocketAddr),
    Unix {
        path: PathBuf,
        /// The mode of the socket file, as in chmod(1).
        mode: u32,
        /// The group of the socket file, by name or number.
        group: Option<String>,
    },
    /// A listening socket bound by another process.
    Inherited(OwnedFd),
}

impl Listen {
    /// Parses a value of `--listen`: `127.0.0.1:8787`, `[::1]:0`, `unix:/run/berth.sock`,
    /// `unix:/run/berth.sock?mode=660&group=NAME`. By default only the owner can connect to a Unix socket.
    ///
    /// # Errors
    /// `Config`, with the problem.
    pub fn parse(text: &str) -> Result<Listen> {
        let wrong = |problem: &str| Error::config("--listen", format!("{text:?}: {problem}"));
        let Some(rest) = text.strip_prefix("unix:") else {
            let address = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
            return address.as_deref().unwrap_or(text).parse().map(Listen::Tcp).map_err(|_| {
                wrong("is neither ADDRESS:PORT (such as 127.0.0.1:8787 or [::1]:8787) nor unix:/PATH")
            });
        };
        let (path, options) = rest.split_once('?').unwrap_or((rest, ""));
        if !path.starts_with('/') || path.contains('\0') {
            return Err(wrong("the path of a Unix socket must be absolute"));
        }
        let (mut mode, mut group) = (0o600, None);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("mode", octal)) => {
                    let bits = u32::from_str_radix(octal, 8).ok();
                    mode = bits
                        .filter(|bits| *bits <= 0o777)
                        .ok_or_else(|| wrong("mode must be an octal number from 0 to 777, such as 660"))?;
                }
                Some(("group", name)) if !name.is_empty() => group = Some(name.to_owned()),
                _ => return Err(wrong("the only options are mode=OCTAL and group=NAME")),
            }
        }
        Ok(Listen::Unix { path: path.into(), mode, group })
    }

    /// Returns the sockets passed by systemd (sd_listen_fds(3)), from the values of `LISTEN_PID` and `LISTEN_FDS`.
    /// Returns none if the sockets are for another process.
    ///
    /// # Errors
    /// `Config` if a passed descriptor is missing or not a listening socket.
    pub fn inherited(listen_pid: Option<&str>, listen_fds: Option<&str>) -> Result<Vec<Listen>> {
        let (Some(pid), Some(count)) = (listen_pid, listen_fds) else { return Ok(Vec::new()) };
        let ours = getpid();
        if pid.parse() != Ok(ours.as_raw_nonzero().get()) {
            return Ok(Vec::new());
        }
        let place = "LISTEN_FDS";
        let count: i32 = count
            .parse()
            .ok()
            .filter(|count| (0..=64).contains(count))
            .ok_or_else(|| Error::config(place, format!("{count:?} is not a number from 0 to 64")))?;
        // Safe Rust cannot own a descriptor known only by its number, so pidfd_getfd(2) makes an owned duplicate.
        let itself = pidfd_open(ours, PidfdFlags::empty()).map_err(|error| Error::config(place, error))?;
        (3..3 + count)
            .map(|number| {
                let fd = pidfd_getfd(&itself, number, PidfdGetfdFlags::empty())
                    .map_err(|error| Error::config(place, format!("descriptor {number}: {error}")))?;
                let listens = sockopt::socket_type(&fd) == Ok(SocketType::STREAM)
                    && sockopt::socket_acceptconn(&fd) == Ok(true);
                if listens {
                    Ok(Listen::Inherited(fd))
                } else {
                    Err(Error::config(place, format!("descriptor {number} is not a listening stream socket")))
                }
            })
            .collect()
    }
}

/// Bound listeners. Clients wait in the accept queues until the gate accepts them.
#[derive(Debug)]
pub struct Listeners {
    pub(super) listeners: Vec<BoundListener>,
    addresses: Vec<ListenAddress>,
}

impl Listeners {
    /// Binds all listeners.
    ///
    /// # Errors
    /// `Config` for an empty list, or for an address that cannot be bound.
    pub fn bind(listeners: Vec<Listen>) -> Result<Listeners> {
        if listeners.is_empty() {
            return Err(Error::config("--listen", "no address to listen on"));
        }
        let all_of_v4: Vec<u16> = listeners
            .iter()
            .filter_map(|listen| match listen {
                Listen::Tcp(SocketAddr::V4(address)) if address.ip().is_unspecified() => Some(address.port()),
                _ => None,
            })
            .collect();
        let mut doors = Vec::new();
        for listen in listeners {
            let also_v4 = matches!(&listen, Listen::Tcp(address) if all_of_v4.contains(&address.port()));
            doors.push(BoundListener::open(listen, also_v4)?);
        }
        let addresses = doors.iter().map(BoundListener::address).collect::<Result<_>>()?;
        Ok(Listeners { listeners: doors, addresses })
    }

    /// Returns the bound addresses, in the order in which the listeners were given.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }
}

/// A bound, non-blocking listener.
#[derive(Debug)]
pub(super) struct BoundListener {
    listener: ListenerSocket,
    /// The socket file that this listener created: its path, device and inode.
    created_file: Option<(PathBuf, u64, u64)>,
}

#[derive(Debug)]
enum ListenerSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A bound address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    Ip(SocketAddr),
    /// The path of a Unix socket; empty for one without a path.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Returns whether clients on other machines can reach the address.
    pub fn is_exposed(&self) -> bool {
        matches!(self, ListenAddress::Ip(address) if !address.ip().to_canonical().is_loopback())
    }
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenAddress::Ip(address) => write!(f, "http://{address}"),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl BoundListener {
    /// Binds a listener. `also_v4` means that another listener has this port on all IPv4 addresses, so IPv6 must not
    /// claim it.
    ///
    /// # Errors
    /// `Config` if the address is not local, is in use, or is a file that is not a socket.
    fn open(listen: Listen, also_v4: bool) -> Result<BoundListener> {
        match listen {
            Listen::Tcp(address) => tcp(address, also_v4)
                .map(|listener| BoundListener { listener: ListenerSocket::Tcp(listener), created_file: None })
                .map_err(|error| {
                    let taken = error.kind() == io::ErrorKind::AddrInUse;
                    let holder =
                        if taken { listener_process::describe_listener(address) } else { String::new() };
                    Error::config(address, format!("cannot listen: {error}{holder}"))
                }),
            Listen::Unix { path, mode, group } => unix(&path, mode, group.as_deref()),
            Listen::Inherited(fd) => {
                let family =
                    sockopt::socket_domain(&fd).map_err(|error| Error::config("LISTEN_FDS", error))?;
                let listener = match family {
                    AddressFamily::UNIX => ListenerSocket::Unix(UnixListener::from(fd)),
                    AddressFamily::INET | AddressFamily::INET6 => ListenerSocket::Tcp(TcpListener::from(fd)),
                    _ => return Err(Error::config("LISTEN_FDS", "a passed socket is neither TCP nor Unix")),
                };
                let set = match &listener {
                    ListenerSocket::Tcp(listener) => listener.set_nonblocking(true),
                    ListenerSocket::Unix(listener) => listener.set_nonblocking(true),
                };
                set.map_err(|error| Error::config("LISTEN_FDS", error))?;
                Ok(BoundListener { listener, created_file: None })
            }
        }
    }

    fn address(&self) -> Result<ListenAddress> {
        let address = match &self.listener {
            ListenerSocket::Tcp(listener) => listener.local_addr().map(ListenAddress::Ip),
            ListenerSocket::Unix(listener) => listener.local_addr().map(|address| {
                ListenAddress::Unix(address.as_pathname().map(Path::to_owned).unwrap_or_default())
            }),
        };
        address.map_err(|error| Error::config("--listen", error))
    }

    /// Accepts the next client. Returns its socket, its peer, and the local address that the client connected to.
    pub(super) fn accept(&self) -> io::Result<(Socket, Peer, Option<IpAddr>)> {
        match &self.listener {
            ListenerSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                // This call fails only if the client has already disconnected.
                let local = stream.local_addr()?.ip().to_canonical();
                Ok((Socket::Tcp(stream), Peer::Ip(peer.ip().to_canonical()), Some(local)))
            }
            ListenerSocket::Unix(listener) => {
                listener.accept().map(|(stream, _)| (Socket::Unix(stream), Peer::Unix, None))
            }
        }
    }
}

impl AsFd for BoundListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.listener {
            ListenerSocket::Tcp(listener) => listener.as_fd(),
            ListenerSocket::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Drop for BoundListener {
    fn drop(&mut self) {
        if let Some((path, device, inode)) = &self.created_file {
            // Another server may have created its own socket file at this path since.
            if fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (*device, *inode)) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn tcp(address: SocketAddr, also_v4: bool) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() && also_v4 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn unix(path: &Path, mode: u32, group: Option<&str>) -> Result<BoundListener> {
    let wrong = |problem: String| Error::config(path.display(), problem);
    let cannot = |error: &dyn std::fmt::Display| wrong(format!("cannot listen: {error}"));
    let group = group.map(group_id).transpose().map_err(wrong)?;
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(wrong("the file exists and is not a socket".into()));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(_) => return Err(wrong("another process already listens on it".into())),
            // The socket file was left by a server that crashed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|error| cannot(&error))?;
            }
            Err(error) => return Err(cannot(&error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot(&error)),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let bound = || -> Result<OwnedFd, Errno> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(socket)
    };
    let socket = bound().map_err(|error| cannot(&error))?;
    // The mode is set before listen(2), so no client can connect while the file still has the mode given by the
    // umask.
    let set = || -> io::Result<fs::Metadata> {
        if group.is_some() {
            chown(path, None, group)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        rustix::net::listen(&socket, BACKLOG)?;
        fs::symlink_metadata(path)
    };
    let meta = set().map_err(|error| {
        let _ = fs::remove_file(path);
        cannot(&error)
    })?;
    let made = Some((path.to_owned(), meta.dev(), meta.ino()));
    Ok(BoundListener { listener: ListenerSocket::Unix(socket.into()), created_file: made })
}

/// Returns the id of a group in `/etc/group`. A static binary cannot use other name services.
fn group_id(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let groups = fs::read_to_string("/etc/group").map_err(|error| format!("/etc/group: {error}"))?;
    let mut lines = groups.lines().map(|line| line.split(':'));
    let found = lines.find_map(|mut fields| {
        let known = fields.next()?;
        (known == name).then(|| fields.nth(1)?.parse().ok())?
    });
    found.ok_or_else(|| format!("there is no group {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_flag() {
        for (text, want) in [
            ("127.0.0.1:8787", "Tcp(127.0.0.1:8787)"),
            ("[::1]:0", "Tcp([::1]:0)"),
            ("localhost:1", "Tcp(127.0.0.1:1)"),
            ("unix:/run/b.sock", r#"Unix { path: "/run/b.sock", mode: 384, group: None }"#),
            ("unix:/b?mode=660&group=adm", r#"Unix { path: "/b", mode: 432, group: Some("adm") }"#),
        ] {
            assert_eq!(format!("{:?}", Listen::parse(text).unwrap()), want);
        }
        for text in [
            "",
            "8787",
            "127.0.0.1",
            "::1:80",
            "example.org:80",
            "unix:",
            "unix:b",
            "unix:/b?mode=8",
            "unix:/b?mode=7777",
            "unix:/b?x=y",
            "unix:/b?group=",
        ] {
            assert!(Listen::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_a_stale_socket_is_replaced() {
        let folder = std::env::temp_dir().join(format!("berth-listen-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("s");
        let open = |mode| {
            BoundListener::open(Listen::Unix { path: path.clone(), mode, group: Some("0".into()) }, false)
        };
        let first = open(0o660).unwrap();
        assert_eq!(first.address().unwrap(), ListenAddress::Unix(path.clone()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(open(0o600).unwrap_err().message().contains("already listens"));
        drop(first);
        assert!(!path.exists(), "the file remained after its listener was dropped");
        drop(UnixListener::bind(&path).unwrap());
        drop(open(0o600).unwrap());
        fs::File::create(&path).unwrap();
        assert!(open(0o600).unwrap_err().message().contains("not a socket"));
        fs::remove_file(&path).unwrap();
        fs::remove_dir(&folder).unwrap();
    }

    #[test]
    fn both_families_share_a_port() {
        let v4 = BoundListener::open(Listen::Tcp("0.0.0.0:0".parse().unwrap()), false).unwrap();
        let ListenAddress::Ip(address) = v4.address().unwrap() else { panic!() };
        assert!(v4.address().unwrap().is_exposed());
        let v6 = SocketAddr::new("::".parse().unwrap(), address.port());
        assert!(BoundListener::open(Listen::Tcp(v6), true).is_ok());
    }

    #[test]
    fn inherited_sockets_of_another_process_are_ignored() {
        assert!(Listen::inherited(None, None).unwrap().is_empty());
        assert!(Listen::inherited(Some("1"), Some("1")).unwrap().is_empty());
        let ours = std::process::id().to_string();
        assert!(Listen::inherited(Some(&ours), Some("0")).unwrap().is_empty());
        assert!(Listen::inherited(Some(&ours), Some("x")).is_err());
    }
}
