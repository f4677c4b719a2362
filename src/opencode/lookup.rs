//! The addresses of a host name, as this machine's own `getent` finds them: by every way that its nsswitch.conf names. A
//! static binary's getaddrinfo(3) knows two of them, for the others are libraries that only the machine's own programs
//! can load, and is 0.2 MB. Knows nothing of what an address may be.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ureq::Error as UreqError;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::base::{self, Code, Error, limits};
use crate::proc::tools;
use crate::proc::{Cancel, Cgroups, Exit, ProcessOutcome, Spec};

/// Looks names up.
#[derive(Debug)]
pub struct HostLookup {
    cgroups: Cgroups,
}

impl HostLookup {
    /// getent runs in one of `cgroups`.
    pub fn new(cgroups: Cgroups) -> HostLookup {
        HostLookup { cgroups }
    }

    /// Where `host` is, the best first; none when there is no such host. Numbers and `localhost` need nobody's help.
    ///
    /// # Errors
    /// `MissingTool` without getent, `Unavailable` when it failed or took too long.
    pub(super) fn addresses(&self, host: &str, port: u16, cancel: &Cancel) -> base::Result<Vec<SocketAddr>> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let found = if let Ok(address) = bare.parse::<IpAddr>() {
            vec![address]
        } else if bare.eq_ignore_ascii_case("localhost") {
            vec![[127, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into()]
        } else {
            self.ask(bare, cancel)?
        };
        Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    fn ask(&self, host: &str, cancel: &Cancel) -> base::Result<Vec<IpAddr>> {
        let spec = Spec::new(tools::require("getent")?).args(["ahosts", "--", host]);
        let place = (&self.cgroups, "lookup");
        let (ended, text) =
            spec.run_for_output(place, limits::LOOKUP_OUTPUT_BYTES, limits::UPSTREAM_CONNECT, cancel)?;
        match ended {
            ProcessOutcome::Exited(Exit::Code(0)) => Ok(addresses(&text)),
            // getent(1): the key could not be found.
            ProcessOutcome::Exited(Exit::Code(2)) => Ok(Vec::new()),
            ended => {
                Err(Error::new(Code::Unavailable, format!("The host could not be looked up: {ended:?}")))
            }
        }
    }
}

/// For a client of ureq's own kind, which has no server behind it.
impl Resolver for HostLookup {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, UreqError> {
        let authority = uri.authority().ok_or(UreqError::HostNotFound)?;
        let port = authority.port_u16().unwrap_or(80);
        let found = Cancel::new().and_then(|cancel| self.addresses(authority.host(), port, &cancel));
        let found = found.map_err(|error| UreqError::Io(io::Error::other(error.message().to_owned())))?;
        let mut addresses = self.empty();
        for address in found.into_iter().take(limits::LOOKUP_ADDRESSES) {
            addresses.push(address);
        }
        if addresses.is_empty() { Err(UreqError::HostNotFound) } else { Ok(addresses) }
    }
}

/// Each address has a line for every kind of socket: `192.0.2.1  STREAM name`.
fn addresses(printed: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for address in printed.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::CgroupsHandle;

    #[test]
    fn each_address_is_there_once_and_in_order() {
        let printed = "2001:db8::1     STREAM a.example\n2001:db8::1     DGRAM  \n192.0.2.7 STREAM \nfe80::1%eth0 RAW\n\n";
        let found = addresses(printed);
        assert_eq!(found, ["2001:db8::1".parse::<IpAddr>().unwrap(), "192.0.2.7".parse().unwrap()]);
    }

    #[test]
    fn names_are_looked_up_as_the_machine_does_it() {
        let lookup = HostLookup::new(Cgroups::from_handle(CgroupsHandle::default()));
        let ask = |host: &str| lookup.addresses(host, 80, &Cancel::new().unwrap()).unwrap();
        // Short for 127.0.0.1 (inet_aton(3)), whatever the machine's files and servers say.
        assert_eq!(ask("127.1"), ["127.0.0.1:80".parse().unwrap()]);
        assert_eq!(ask("no-such-host.invalid"), []);
        assert_eq!(ask("-x"), []);
    }
}
