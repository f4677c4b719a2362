//! Builds the resolv.conf of containers. On the host's network and without a network, a container gets the host's
//! file. From a private network, only name servers beyond the host are reachable; servers on the host itself
//! (systemd-resolved, dnsmasq, unbound on loopback) are blocked by design, so the file lists their upstream
//! servers instead. Pure.

use std::net::Ipv4Addr;

/// Largest number of servers in a resolv.conf (resolv.conf(5)).
const MOST: usize = 3;

/// A resolv.conf and the servers in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) text: String,
    pub(super) servers: Vec<Ipv4Addr>,
}

/// Builds a resolv.conf with the servers of the first source that has any: `named`, the configured servers;
/// `host`, the host's file; `behind`, systemd-resolved's list of upstream servers. Servers in `host` and `behind`
/// are used only if `reachable` accepts them.
pub(super) fn for_private_network(
    named: &[Ipv4Addr],
    host: &str,
    behind: &str,
    reachable: impl Fn(Ipv4Addr) -> bool,
) -> ResolvConf {
    let of = |text: &str| -> Vec<Ipv4Addr> {
        let words = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        words.filter_map(|word| word.trim().parse().ok()).filter(|server| reachable(*server)).collect()
    };
    let mut servers = named.to_vec();
    for text in [host, behind] {
        if servers.is_empty() {
            servers = of(text);
        }
    }
    servers.truncate(MOST);
    let mut text = String::from("# Made by berth for a private network.\n");
    if servers.is_empty() {
        text.push_str("# No name server of the host can be asked from here: see --private-dns.\n");
    }
    for server in &servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for line in host.lines().map(str::trim) {
        if ["search ", "domain ", "options "].iter().any(|word| line.starts_with(word)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    ResolvConf { text, servers }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEYOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

    fn reachable(server: Ipv4Addr) -> bool {
        !server.is_loopback() && !server.is_link_local()
    }

    #[test]
    fn external_server_is_kept() {
        let host = "# x\nsearch a.example b.example\nnameserver 192.0.2.53\nnameserver 2001:db8::1\noptions ndots:2\n";
        let made = for_private_network(&[], host, "", reachable);
        assert_eq!(made.servers, [BEYOND]);
        assert!(made.text.ends_with("nameserver 192.0.2.53\nsearch a.example b.example\noptions ndots:2\n"));
    }

    #[test]
    fn upstream_servers_replace_a_loopback_server() {
        let made = for_private_network(&[], "nameserver 127.0.0.53\n", "nameserver 192.0.2.53\n", reachable);
        assert_eq!(made.servers, [BEYOND]);
        let made =
            for_private_network(&[], "nameserver 127.0.0.53\n", "nameserver 169.254.169.254\n", reachable);
        assert!(made.servers.is_empty() && made.text.contains("--private-dns"), "{}", made.text);
    }

    #[test]
    fn configured_servers_take_precedence() {
        let named = [Ipv4Addr::new(198, 51, 100, 1)];
        assert_eq!(for_private_network(&named, "nameserver 192.0.2.53\n", "", reachable).servers, named);
        let many = "nameserver 192.0.2.1\n".repeat(5);
        assert_eq!(for_private_network(&[], &many, "", reachable).servers.len(), 3);
    }
}
