//! Which addresses an upstream may have. Checked when a connection is made, on the address that it is made to: a name
//! can lead elsewhere the next time. Pure, but for the look at a connected socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

/// Why our own address is refused.
pub(super) const OURSELVES: &str = "that is this server itself";

const LINK_LOCAL: &str = "link-local addresses, among them those of cloud metadata services, are refused";
const METADATA: &str = "the addresses of cloud metadata services are refused";
const NOBODY: &str = "that is not the address of one machine";

/// Where this server listens.
#[derive(Clone, Debug, Default)]
pub struct Own(Vec<SocketAddr>);

impl Own {
    /// These.
    pub fn new(listening: Vec<SocketAddr>) -> Own {
        Own(listening)
    }

    /// Why no upstream can be there; `None` when one can.
    pub(super) fn refuses(&self, address: SocketAddr) -> Option<&'static str> {
        let ip = plain(address.ip());
        let ours = self.0.iter().any(|own| {
            let same = plain(own.ip()) == ip || own.ip().is_unspecified() && ip.is_loopback();
            own.port() == address.port() && same
        });
        if ours { Some(OURSELVES) } else { refused(ip) }
    }

    /// Whether a connection leads back to us by one of this machine's other addresses.
    pub(super) fn reached_by(&self, stream: &TcpStream) -> io::Result<bool> {
        let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
        let everywhere = |own: &SocketAddr| own.port() == peer.port() && own.ip().is_unspecified();
        Ok(peer.ip() == local.ip() && self.0.iter().any(everywhere))
    }
}

/// An IPv4 address, where that is what an IPv6 one stands for (RFC 4291, 2.5.5.2; RFC 6052).
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return v4.into();
    }
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => ip,
    }
}

fn refused(ip: IpAddr) -> Option<&'static str> {
    /// Of Alibaba, Oracle and Azure; the others are link-local.
    const V4: [Ipv4Addr; 3] =
        [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
    /// Of AWS.
    const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match ip {
        IpAddr::V4(v4) if v4.is_link_local() => Some(LINK_LOCAL),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(LINK_LOCAL),
        IpAddr::V4(v4) if V4.contains(&v4) => Some(METADATA),
        IpAddr::V6(v6) if v6 == V6 => Some(METADATA),
        // RFC 1122, 3.2.1.3: all of 0/8, which Linux takes for this machine.
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.is_multicast() || v4.is_broadcast() => Some(NOBODY),
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() => Some(NOBODY),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_upstream_can_be() {
        let own = Own::new(vec!["0.0.0.0:8787".parse().unwrap(), "[::1]:99".parse().unwrap()]);
        for (address, want) in [
            ("127.0.0.1:8787", Some(OURSELVES)),
            ("127.9.9.9:8787", Some(OURSELVES)),
            ("[::ffff:127.0.0.1]:8787", Some(OURSELVES)),
            ("[::1]:99", Some(OURSELVES)),
            ("169.254.169.254:80", Some(LINK_LOCAL)),
            ("[::ffff:169.254.169.254]:80", Some(LINK_LOCAL)),
            ("[64:ff9b::a9fe:a9fe]:80", Some(LINK_LOCAL)),
            ("[fe80::1]:80", Some(LINK_LOCAL)),
            ("100.100.100.200:80", Some(METADATA)),
            ("[fd00:ec2::254]:80", Some(METADATA)),
            ("0.0.0.0:4096", Some(NOBODY)),
            ("0.1.2.3:4096", Some(NOBODY)),
            ("[::]:4096", Some(NOBODY)),
            ("224.0.0.1:80", Some(NOBODY)),
            ("255.255.255.255:80", Some(NOBODY)),
            ("127.0.0.1:4096", None),
            ("[::1]:4096", None),
            ("10.0.0.1:4096", None),
            ("192.168.1.1:443", None),
            ("[fd00::1]:443", None),
        ] {
            assert_eq!(own.refuses(address.parse().unwrap()), want, "{address}");
        }
    }
}
