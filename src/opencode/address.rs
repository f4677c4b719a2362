//! Rules for the addresses that an upstream may have. berth checks the address of each new connection, because a host
//! name can resolve to another address later. Pure, except that [`ListenAddresses::is_peer_of`] reads the addresses of
//! a connected socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

/// The reason for refusing an address on which this server listens.
pub(super) const OWN_ADDRESS: &str = "the address belongs to this server";

const LINK_LOCAL: &str = "link-local addresses, which include cloud metadata services, are refused";
const METADATA: &str = "the addresses of cloud metadata services are refused";
const NOT_ONE_HOST: &str = "the address does not identify a single host";

/// The addresses on which this server listens.
#[derive(Clone, Debug, Default)]
pub struct ListenAddresses(Vec<SocketAddr>);

impl ListenAddresses {
    pub fn new(listening: Vec<SocketAddr>) -> ListenAddresses {
        ListenAddresses(listening)
    }

    /// Returns the reason why no upstream may have this address, or `None` if the address is allowed.
    pub(super) fn refusal(&self, address: SocketAddr) -> Option<&'static str> {
        let ip = plain(address.ip());
        let ours = self.0.iter().any(|own| {
            let same = plain(own.ip()) == ip || own.ip().is_unspecified() && ip.is_loopback();
            own.port() == address.port() && same
        });
        if ours { Some(OWN_ADDRESS) } else { refused(ip) }
    }

    /// Returns whether a connection leads back to this server by another address of this machine.
    pub(super) fn is_peer_of(&self, stream: &TcpStream) -> io::Result<bool> {
        let (peer, local) = (stream.peer_addr()?, stream.local_addr()?);
        let everywhere = |own: &SocketAddr| own.port() == peer.port() && own.ip().is_unspecified();
        Ok(peer.ip() == local.ip() && self.0.iter().any(everywhere))
    }
}

/// Returns the IPv4 address that an IPv6 address represents (RFC 4291, 2.5.5.2; RFC 6052). Returns any other address
/// unchanged.
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    if let Some(v4) = v6.to_ipv4_mapped() {
        return v4.into();
    }
    match v6.octets() {
        [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
        _ => ip,
    }
}

/// Returns the IPv4 addresses to which a translator or tunnel could forward packets for an IPv6 address. The address
/// can match several formats, so the result contains the IPv4 address of each match.
fn embedded(v6: Ipv6Addr) -> Vec<Ipv4Addr> {
    let o = v6.octets();
    let mut found = Vec::new();
    let mut at = |places: [usize; 4], flip: u8| {
        let [a, b, c, d] = places.map(|place| o[place] ^ flip);
        found.push(Ipv4Addr::new(a, b, c, d));
    };
    const LAST: [usize; 4] = [12, 13, 14, 15];
    match o {
        // IPv4-compatible and IPv4-translated addresses (RFC 4291, 2.5.5.1; RFC 2765, 2.1).
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, ..] => {
            at(LAST, 0)
        }
        // The local prefix of NAT64 (RFC 8215), with any prefix length of RFC 6052, 2.2.
        [0, 0x64, 0xff, 0x9b, 0, 1, ..] => {
            for places in [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], LAST] {
                at(places, 0);
            }
        }
        // 6to4 (RFC 3056).
        [0x20, 0x02, ..] => at([2, 3, 4, 5], 0),
        // Teredo: the address of the server, and the address of the client with each bit inverted (RFC 4380, 4).
        [0x20, 0x01, 0, 0, ..] => {
            at([4, 5, 6, 7], 0);
            at(LAST, 0xff);
        }
        // ISATAP, after any prefix (RFC 5214, 6.1).
        [_, _, _, _, _, _, _, _, 0 | 2, 0, 0x5e, 0xfe, ..] => at(LAST, 0),
        _ => {}
    }
    found
}

fn refused(ip: IpAddr) -> Option<&'static str> {
    match ip {
        // Linux treats all of 0/8 as this machine (RFC 1122, 3.2.1.3).
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.is_multicast() || v4.is_broadcast() => Some(NOT_ONE_HOST),
        IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() => Some(NOT_ONE_HOST),
        IpAddr::V4(v4) => forbidden(v4),
        IpAddr::V6(v6) => forbidden_v6(v6).or_else(|| embedded(v6).into_iter().find_map(forbidden)),
    }
}

fn forbidden(v4: Ipv4Addr) -> Option<&'static str> {
    /// The metadata services of Alibaba, Oracle and Azure. Those of other providers have link-local addresses.
    const SERVICES: [Ipv4Addr; 3] =
        [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
    match v4 {
        v4 if v4.is_link_local() => Some(LINK_LOCAL),
        v4 if SERVICES.contains(&v4) => Some(METADATA),
        _ => None,
    }
}

fn forbidden_v6(v6: Ipv6Addr) -> Option<&'static str> {
    match v6.segments() {
        _ if v6.is_unicast_link_local() => Some(LINK_LOCAL),
        // AWS uses this prefix for instance metadata (::254), pod credentials (::23), time and DNS.
        [0xfd00, 0xec2, ..]
        // Google Cloud's metadata service.
        | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
        // Scaleway's metadata service.
        | [0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42] => Some(METADATA),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_link_local_and_metadata_addresses_are_refused() {
        let own = ListenAddresses::new(vec!["0.0.0.0:8787".parse().unwrap(), "[::1]:99".parse().unwrap()]);
        for (address, want) in [
            ("127.0.0.1:8787", Some(OWN_ADDRESS)),
            ("127.9.9.9:8787", Some(OWN_ADDRESS)),
            ("[::ffff:127.0.0.1]:8787", Some(OWN_ADDRESS)),
            ("[::1]:99", Some(OWN_ADDRESS)),
            ("169.254.169.254:80", Some(LINK_LOCAL)),
            ("[::ffff:169.254.169.254]:80", Some(LINK_LOCAL)),
            ("[64:ff9b::a9fe:a9fe]:80", Some(LINK_LOCAL)),
            ("[fe80::1]:80", Some(LINK_LOCAL)),
            ("100.100.100.200:80", Some(METADATA)),
            ("[fd00:ec2::254]:80", Some(METADATA)),
            ("[fd00:ec2::23]:80", Some(METADATA)),
            ("[fd20:ce::254]:80", Some(METADATA)),
            ("[fd00:42::42]:80", Some(METADATA)),
            ("[::169.254.169.254]:80", Some(LINK_LOCAL)),
            ("[::ffff:0:169.254.169.254]:80", Some(LINK_LOCAL)),
            ("[::100.100.100.200]:80", Some(METADATA)),
            ("[64:ff9b::100.100.100.200]:80", Some(METADATA)),
            ("[64:ff9b:1::169.254.169.254]:80", Some(LINK_LOCAL)),
            ("[64:ff9b:1:a9fe:a9:fe00::]:80", Some(LINK_LOCAL)),
            ("[64:ff9b:1:1234::169.254.1.1]:80", Some(LINK_LOCAL)),
            ("[2002:a9fe:a9fe::1]:80", Some(LINK_LOCAL)),
            ("[2001:0:a9fe:a9fe::1]:80", Some(LINK_LOCAL)),
            ("[2001::5601:5601]:80", Some(LINK_LOCAL)),
            ("[fd12::5efe:169.254.169.254]:80", Some(LINK_LOCAL)),
            ("0.0.0.0:4096", Some(NOT_ONE_HOST)),
            ("0.1.2.3:4096", Some(NOT_ONE_HOST)),
            ("[::]:4096", Some(NOT_ONE_HOST)),
            ("224.0.0.1:80", Some(NOT_ONE_HOST)),
            ("255.255.255.255:80", Some(NOT_ONE_HOST)),
            ("127.0.0.1:4096", None),
            ("[::1]:4096", None),
            ("10.0.0.1:4096", None),
            ("192.168.1.1:443", None),
            ("[fd00::1]:443", None),
            ("[2001:db8::a9fe:a9fe]:443", None),
            ("[2002:c000:204::1]:443", None),
            ("[64:ff9b::192.0.2.1]:443", None),
        ] {
            assert_eq!(own.refusal(address.parse().unwrap()), want, "{address}");
        }
    }
}
