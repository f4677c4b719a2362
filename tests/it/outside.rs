//! The outside world for tests of networks: a network namespace behind its own link, with an HTTP server that returns
//! the address of its caller, on an address of a range reserved for tests (RFC 2544) and on the metadata address of
//! clouds. The server ends with the test process, and the link and the host's routes are removed with it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use crate::procs::{secs, wait_for};
use crate::server;

/// The address of the metadata service of clouds.
pub const METADATA: &str = "169.254.169.254";
pub const PORT: u16 = 8080;

/// Answers each connection with the caller's address and closes it.
const SERVER: &str = "
import socketserver, sys
class Say(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(1000)
        self.request.sendall(('HTTP/1.0 200 OK\\r\\n\\r\\ncaller %s\\n' % self.client_address[0]).encode())
socketserver.ThreadingTCPServer.allow_reuse_address = True
with socketserver.ThreadingTCPServer(('0.0.0.0', int(sys.argv[1])), Say) as server:
    print('ready', flush=True)
    server.serve_forever()
";

pub struct Outside {
    process: Child,
    /// The address of its server.
    pub address: String,
    /// The host's address on the link.
    pub host: String,
}

impl Outside {
    #[track_caller]
    pub fn open() -> Outside {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = std::process::id() * 8 + NEXT.fetch_add(1, Ordering::Relaxed) % 8;
        // 198.18.0.0/15, in blocks of four.
        let first = 0xc612_0000 + (unique % (1 << 15)) * 4;
        let address = |number: u32| std::net::Ipv4Addr::from(first + number).to_string();
        let (host, there) = (address(1), address(2));
        let link = format!("ito{unique:x}");
        let mut process = Command::new("unshare")
            .args(["--net", "--", "python3", "-c", SERVER, &PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let outside_pid = process.id();
        let lines = std::io::BufReader::new(process.stdout.take().unwrap());
        let first = std::io::BufRead::lines(lines).next();
        assert_eq!(first.unwrap().unwrap(), "ready");
        // A separate metric, because other tests may have a metadata address too.
        let script = format!(
            "set -e
             ip link add {link} type veth peer name out0 netns {outside_pid}
             ip addr add {host}/30 dev {link}
             ip link set {link} up
             nsenter --net=/proc/{outside_pid}/ns/net sh -e -c '
                 ip addr add {there}/30 dev out0; ip addr add {METADATA}/32 dev lo
                 ip link set lo up; ip link set out0 up'
             ip route add {METADATA}/32 via {there} dev {link} metric {unique}"
        );
        let created = server::run(Command::new("sh").args(["-c", &script]), secs(20));
        assert_eq!(created.code, Some(0), "{created:?}");
        let outside = Outside { process, address: there, host };
        wait_for("the outside world", secs(10), || outside.get(&outside.address));
        outside
    }

    /// The reply that the host gets: the address of the caller.
    pub fn get(&self, address: &str) -> Option<String> {
        use std::io::{Read, Write};
        let to = format!("{address}:{PORT}").parse().unwrap();
        let mut stream = std::net::TcpStream::connect_timeout(&to, secs(2)).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.trim().rsplit_once("caller ").map(|(_, caller)| caller.to_owned())
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a server of the host on all its addresses, and returns its port. It also answers `caller …`, until this
/// process ends.
pub fn on_the_host() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            use std::io::{Read, Write};
            let _ = (&stream).read(&mut [0; 1000]);
            let caller = stream.peer_addr().map_or(String::new(), |peer| peer.ip().to_string());
            let _ = (&stream).write_all(format!("HTTP/1.0 200 OK\r\n\r\ncaller {caller}\n").as_bytes());
        }
    });
    port
}

/// The IPv4 addresses of this host.
pub fn own_addresses() -> Vec<String> {
    let output = server::run(Command::new("ip").args(["-4", "-o", "addr", "show"]), secs(10));
    let words = output.stdout.lines().filter_map(|line| line.split_whitespace().nth(3));
    words.map(|address| address.split('/').next().unwrap().to_owned()).collect()
}
