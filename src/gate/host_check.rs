//! Checks the Host header, against DNS rebinding, and the Origin header, against cross-site requests and WebSockets.
//! Both checks run before any credential is checked. Pure.

use std::net::{IpAddr, Ipv6Addr};

use crate::base::{Code, Error, Result};

/// A `host[:port]` as in Host and in absolute URLs (RFC 3986, 3.2): in lower case, without a trailing dot and
/// without user information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Authority {
    pub(super) host: AuthorityHost,
    pub(super) port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AuthorityHost {
    Ip(IpAddr),
    Name(String),
}

impl Authority {
    /// Parses `text` strictly. Returns `None` for anything that RFC 3986 does not allow, and for user information.
    pub(super) fn parse(text: &str) -> Option<Authority> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']')?;
                let address: Ipv6Addr = address.parse().ok()?;
                let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
                (AuthorityHost::Ip(IpAddr::V6(address).to_canonical()), port)
            }
            None => {
                let (name, port) =
                    text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
                if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&b)) {
                    return None;
                }
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                (
                    name.parse()
                        .map_or(AuthorityHost::Name(name), |address| AuthorityHost::Ip(IpAddr::V4(address))),
                    port,
                )
            }
        };
        let port = match port {
            None | Some("") => None,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
            Some(_) => return None,
        };
        Some(Authority { host, port })
    }

    /// Returns whether both authorities name the same host and port. A missing port means `default`.
    pub(super) fn same(&self, other: &Authority, default: u16) -> bool {
        self.host == other.host && self.port.unwrap_or(default) == other.port.unwrap_or(default)
    }
}

/// The configured hosts and origins.
#[derive(Clone, Debug, Default)]
pub(super) struct HostRules {
    pub(super) hosts: Vec<AuthorityHost>,
    pub(super) origins: Vec<String>,
}

impl HostRules {
    /// Parses `--allowed-host` (names or addresses; ports are ignored) and `--cors`.
    ///
    /// # Errors
    /// `Config` for an invalid host.
    pub(super) fn new(hosts: &[String], origins: &[String]) -> Result<HostRules> {
        let parse = |text: &String| {
            Authority::parse(text)
                .or_else(|| text.parse().ok().map(|ip| Authority { host: AuthorityHost::Ip(ip), port: None }))
                .filter(|authority| authority.host != AuthorityHost::Name(String::new()))
                .map(|authority| authority.host)
                .ok_or_else(|| Error::config("--allowed-host", format!("{text:?} is not a host name")))
        };
        Ok(HostRules {
            hosts: hosts.iter().map(parse).collect::<Result<_>>()?,
            origins: origins.iter().map(|origin| origin.to_ascii_lowercase()).collect(),
        })
    }

    /// Checks the host name that the client used. `local` is the address that the client connected to, or `None` on
    /// a Unix socket. Any web page can make a browser connect to 127.0.0.1 under the page's own name (DNS
    /// rebinding), so a request on loopback must use a name of loopback, regardless of the address that the listener
    /// is bound to.
    ///
    /// # Errors
    /// `HostNotAllowed` if the name is neither one of this machine nor an allowed host.
    pub(super) fn check_host(&self, host: Option<&Authority>, local: Option<IpAddr>) -> Result<()> {
        if local.is_some_and(|address| !address.is_loopback()) {
            return Ok(());
        }
        // A request without Host is allowed: HTTP/1.0 does not require the header, and no browser omits it.
        let Some(Authority { host, .. }) = host else { return Ok(()) };
        let known = match host {
            AuthorityHost::Ip(address) => address.is_loopback() || local == Some(*address),
            // RFC 6761, 6.3: these names never leave the machine.
            AuthorityHost::Name(name) => name == "localhost" || name.ends_with(".localhost"),
        };
        if known || self.hosts.contains(host) {
            return Ok(());
        }
        Err(Error::new(
            Code::HostNotAllowed,
            "The Host header names neither this machine nor an allowed host; start berth with --allowed-host NAME to allow it",
        ))
    }

    /// Checks the Origin header of a state-changing request or a WebSocket, if the client sent one.
    ///
    /// # Errors
    /// `OriginNotAllowed` for an origin that is neither the requested host nor configured.
    pub(super) fn check_origin(&self, origin: &str, host: Option<&Authority>) -> Result<()> {
        let origin = origin.to_ascii_lowercase();
        if self.origins.iter().any(|allowed| allowed == "*" || *allowed == origin) {
            return Ok(());
        }
        let same = |scheme: &str, default: u16| {
            let called = origin.strip_prefix(scheme).and_then(Authority::parse);
            called.zip(host).is_some_and(|(called, host)| called.same(host, default))
        };
        // A reverse proxy may use TLS towards the browser and plain HTTP towards berth, so both schemes are
        // accepted.
        if same("http://", 80) || same("https://", 443) {
            return Ok(());
        }
        Err(Error::new(
            Code::OriginNotAllowed,
            "Pages of this origin cannot make this request; start berth with --cors ORIGIN to allow it",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> HostRules {
        HostRules::new(
            &["Box.Example.".into(), "10.0.0.7".into(), "fd00::7".into()],
            &["http://app.test:5173".into()],
        )
        .unwrap()
    }

    #[test]
    fn authorities() {
        for (text, same_as) in [
            ("LOCALHOST:80", "localhost:80"),
            ("localhost.", "localhost"),
            ("localhost:", "localhost"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1"),
            ("[::1]", "[0:0:0:0:0:0:0:1]"),
            ("127.0.0.1.", "127.0.0.1"),
        ] {
            assert_eq!(Authority::parse(text), Authority::parse(same_as), "{text}");
            assert!(Authority::parse(text).is_some(), "{text}");
        }
        for text in [
            "u@h",
            "u:p@h",
            "h:1:2",
            "h:x",
            "h:65536",
            "h:+1",
            "[::1",
            "[::1]x",
            "[1.2.3.4]",
            "a b",
            "a/b",
            "::1",
            "ä",
        ] {
            assert_eq!(Authority::parse(text), None, "{text}");
        }
        assert!(HostRules::new(&["a b".into()], &[]).is_err());
        assert!(HostRules::new(&["".into()], &[]).is_err());
    }

    #[test]
    fn loopback_accepts_its_own_names_and_allowed_hosts() {
        let loopback = Some("127.0.0.1".parse().unwrap());
        for host in [
            "localhost",
            "LocalHost.:8787",
            "app.localhost",
            "127.0.0.1:8787",
            "127.9.9.9",
            "[::1]:8787",
            "[::ffff:127.0.0.1]",
            "box.example",
            "BOX.example.:1",
            "10.0.0.7",
            "[fd00::7]:9",
        ] {
            assert!(rules().check_host(Authority::parse(host).as_ref(), loopback).is_ok(), "{host}");
        }
        for host in [
            "evil.test",
            "evil.test:8787",
            "localhost.evil.test",
            "notlocalhost",
            "",
            "10.0.0.8",
            "0.0.0.0",
            "2130706433",
        ] {
            for local in [loopback, None] {
                let error = rules().check_host(Authority::parse(host).as_ref(), local).unwrap_err();
                assert_eq!(error.code(), Code::HostNotAllowed, "{host}");
            }
            assert!(rules().check_host(Authority::parse(host).as_ref(), Some([10, 0, 0, 1].into())).is_ok());
        }
        assert!(rules().check_host(None, loopback).is_ok());
    }

    #[test]
    fn origins() {
        for (origin, host, good) in [
            ("http://localhost:8787", "localhost:8787", true),
            ("HTTP://LOCALHOST:8787", "localhost:8787", true),
            ("http://box.example", "box.example:80", true),
            ("https://box.example", "box.example", true),
            ("http://app.test:5173", "localhost:8787", true),
            ("http://localhost:3000", "localhost:8787", false),
            ("http://localhost", "localhost:8787", false),
            ("http://127.0.0.1:8787", "localhost:8787", false),
            ("http://evil.test", "localhost:8787", false),
            ("null", "localhost:8787", false),
            ("", "localhost:8787", false),
            ("file://", "localhost:8787", false),
            ("http://localhost:8787@evil.test", "localhost:8787", false),
        ] {
            let host = Authority::parse(host);
            assert_eq!(rules().check_origin(origin, host.as_ref()).is_ok(), good, "{origin} at {host:?}");
        }
        let any = HostRules::new(&[], &["*".into()]).unwrap();
        assert!(any.check_origin("null", None).is_ok());
    }
}
