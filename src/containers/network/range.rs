//! Parses, compares and divides ranges of IPv4 addresses. Pure.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Default candidates, in order of preference; the first into which the host has no route is used. These are
/// private ranges (RFC 1918) that Docker, Podman, libvirt, Kubernetes and common routers do not use by default.
pub(super) const CANDIDATES: [Ipv4Range; 5] = [
    Ipv4Range { first: 0x0ad5_0000, length: 16 },
    Ipv4Range { first: 0xac1b_d500, length: 24 },
    Ipv4Range { first: 0xc0a8_d500, length: 24 },
    Ipv4Range { first: 0x0a57_0000, length: 16 },
    Ipv4Range { first: 0xac1d_5700, length: 24 },
];

/// Prefix length of one link's network, which has four addresses: network, host, container and broadcast.
pub(super) const LINK_LENGTH: u8 = 30;

/// A range of IPv4 addresses such as `10.213.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Range {
    first: u32,
    length: u8,
}

impl Ipv4Range {
    pub(super) fn containing(address: Ipv4Addr, length: u8) -> Ipv4Range {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        Ipv4Range { first: u32::from(address) & mask, length }
    }

    /// Returns whether the range covers all or half of the IPv4 addresses, as default routes do.
    pub(super) fn is_default(self) -> bool {
        self.length < 4
    }

    pub(super) fn overlaps(self, other: Ipv4Range) -> bool {
        let length = self.length.min(other.length);
        Ipv4Range::containing(self.first.into(), length) == Ipv4Range::containing(other.first.into(), length)
    }

    pub(super) fn contains(self, address: Ipv4Addr) -> bool {
        Ipv4Range::containing(address, self.length) == self
    }

    /// Returns the number of links that fit into the range.
    pub(super) fn links(self) -> u32 {
        1 << (LINK_LENGTH - self.length)
    }

    /// Returns the network address of link `number`; `number` must be below [`Ipv4Range::links`].
    pub(super) fn link(self, number: u32) -> Ipv4Addr {
        (self.first + (number << (32 - LINK_LENGTH))).into()
    }

    /// Returns whether links can be allocated from the range: at least one, at most 2²².
    fn is_divisible(self) -> bool {
        (8..=LINK_LENGTH).contains(&self.length)
    }
}

impl FromStr for Ipv4Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Ipv4Range, String> {
        let wrong = || format!("{text:?} is not a range of IPv4 addresses such as 10.213.0.0/16");
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        let length: u8 = length.parse().ok().filter(|length| *length <= 32).ok_or_else(wrong)?;
        let range = Ipv4Range::containing(address, length);
        if range.first != u32::from(address) {
            return Err(format!("{text} does not begin at a boundary; {range} does"));
        }
        Ok(range)
    }
}

impl Ipv4Range {
    /// Parses a range for private networks.
    ///
    /// # Errors
    /// Returns a message for the user when the range is malformed or unsuitable.
    pub fn parse_for_links(text: &str) -> Result<Ipv4Range, String> {
        let range: Ipv4Range = text.parse()?;
        if !range.is_divisible() {
            return Err(format!("{range} has the wrong size: use a prefix length from 8 to {LINK_LENGTH}"));
        }
        let special = ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"];
        if special.iter().any(|special| special.parse().is_ok_and(|special| range.overlaps(special))) {
            return Err(format!("{range} has a special meaning; use a private range such as 10.213.0.0/16"));
        }
        Ok(range)
    }
}

impl fmt::Display for Ipv4Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.length)
    }
}

impl TryFrom<String> for Ipv4Range {
    type Error = String;
    fn try_from(text: String) -> Result<Ipv4Range, String> {
        Ipv4Range::parse_for_links(&text)
    }
}

impl From<Ipv4Range> for String {
    fn from(range: Ipv4Range) -> String {
        range.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Ipv4Range {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_round_trip() {
        assert_eq!(
            CANDIDATES.map(|range| range.to_string()),
            ["10.213.0.0/16", "172.27.213.0/24", "192.168.213.0/24", "10.87.0.0/16", "172.29.87.0/24"]
        );
        for good in CANDIDATES {
            assert_eq!(Ipv4Range::parse_for_links(&good.to_string()), Ok(good));
        }
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/8", "x/8", "::/0", "10.0.0.0/31", "0.0.0.0/0"] {
            assert!(Ipv4Range::parse_for_links(bad).is_err(), "{bad}");
        }
        for special in ["127.0.0.0/16", "169.254.0.0/16", "224.0.0.0/8"] {
            assert!(Ipv4Range::parse_for_links(special).unwrap_err().contains("special"), "{special}");
        }
        assert_eq!(
            Ipv4Range::parse_for_links("10.213.4.0/16").unwrap_err(),
            "10.213.4.0/16 does not begin at a boundary; 10.213.0.0/16 does"
        );
    }

    #[test]
    fn overlap_is_symmetric() {
        for (a, b, want) in [
            ("10.0.0.0/8", "10.213.0.0/16", true),
            ("10.213.5.1/32", "10.213.0.0/16", true),
            ("10.212.0.0/16", "10.213.0.0/16", false),
            ("0.0.0.0/0", "10.213.0.0/16", true),
        ] {
            assert_eq!((range(a).overlaps(range(b)), range(b).overlaps(range(a))), (want, want), "{a} {b}");
        }
        assert!(range("0.0.0.0/1").is_default() && !range("10.0.0.0/8").is_default());
        assert!(range("10.213.0.0/16").contains(Ipv4Addr::new(10, 213, 255, 255)));
    }

    #[test]
    fn links_are_adjacent() {
        let small = range("192.168.213.0/24");
        assert_eq!(small.links(), 64);
        assert_eq!(small.link(63), Ipv4Addr::new(192, 168, 213, 252));
        assert_eq!(range("10.0.0.0/30").links(), 1);
    }
}
