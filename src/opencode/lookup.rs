//! Resolves host names with the machine's `getent`, which uses every source in nsswitch.conf. In a static binary,
//! getaddrinfo(3) supports only two of these sources, since the others are shared libraries, and it adds 0.2 MB to the
//! binary. This module does not decide which addresses are allowed.

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

/// The maximum output of getent for a name. getent prints a line of about 50 bytes for each address and socket type.
const LOOKUP_OUTPUT_BYTES: usize = 16 << 10;
/// The maximum number of addresses of a name that are tried; ureq accepts no more.
const LOOKUP_ADDRESSES: usize = 16;

/// A resolver of host names that runs getent.
#[derive(Debug)]
pub struct HostLookup {
    cgroups: Cgroups,
}

impl HostLookup {
    /// Creates a resolver that runs getent in one of `cgroups`.
    pub fn new(cgroups: Cgroups) -> HostLookup {
        HostLookup { cgroups }
    }

    /// Returns the addresses of `host`, best first. The result is empty if there is no such host. Numeric addresses
    /// and `localhost` are resolved without getent.
    ///
    /// # Errors
    /// Fails with `MissingTool` if getent is not installed, and with `Unavailable` if getent failed or timed out.
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
            spec.run_for_output(place, LOOKUP_OUTPUT_BYTES, limits::UPSTREAM_CONNECT, cancel)?;
        match ended {
            ProcessOutcome::Exited(Exit::Code(0)) => Ok(addresses(&text)),
            // getent(1) exits with 2 if it finds no entry for the name.
            ProcessOutcome::Exited(Exit::Code(2)) => Ok(Vec::new()),
            ended => Err(Error::new(
                Code::Unavailable,
                format!("The host name could not be resolved; getent ended with {ended:?}"),
            )),
        }
    }
}

/// Used by clients that call ureq directly, outside of a server.
impl Resolver for HostLookup {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, UreqError> {
        let authority = uri.authority().ok_or(UreqError::HostNotFound)?;
        let port = authority.port_u16().unwrap_or(80);
        let found = Cancel::new().and_then(|cancel| self.addresses(authority.host(), port, &cancel));
        let found = found.map_err(|error| UreqError::Io(io::Error::other(error.message().to_owned())))?;
        let mut addresses = self.empty();
        for address in found.into_iter().take(LOOKUP_ADDRESSES) {
            addresses.push(address);
        }
        if addresses.is_empty() { Err(UreqError::HostNotFound) } else { Ok(addresses) }
    }
}

/// Parses the output of getent, which prints a line for each address and socket type: `192.0.2.1  STREAM name`.
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
    fn addresses_are_deduplicated_in_order() {
        let printed = "2001:db8::1     STREAM a.example\n2001:db8::1     DGRAM  \n192.0.2.7 STREAM \nfe80::1%eth0 RAW\n\n";
        let found = addresses(printed);
        assert_eq!(found, ["2001:db8::1".parse::<IpAddr>().unwrap(), "192.0.2.7".parse().unwrap()]);
    }

    #[test]
    fn getent_resolves_short_unknown_and_odd_names() {
        let lookup = HostLookup::new(Cgroups::from_handle(CgroupsHandle::default()));
        let ask = |host: &str| lookup.addresses(host, 80, &Cancel::new().unwrap()).unwrap();
        // A short form of 127.0.0.1 (inet_aton(3)), so the test does not depend on the machine's files and name
        // servers.
        assert_eq!(ask("127.1"), ["127.0.0.1:80".parse().unwrap()]);
        assert_eq!(ask("no-such-host.invalid"), []);
        assert_eq!(ask("-x"), []);
    }
}
