//! nftables rules of private networks, and the shell script of a container's start. Two tables isolate a
//! container. The inner table is in the container's network namespace. That namespace belongs to the host's users,
//! so processes inside cannot change the table, and a reload of the host's firewall does not affect it; the table
//! disappears with the namespace. The host's table is shared by all containers of a server; it covers facts that
//! change while containers run, such as the host's own addresses. Without nft, [`iptables`] has equivalent rules.
//! Pure.

use super::range::Ipv4Range;
use super::{Firewall, NetworkNames, VethLink, iptables};

/// Destinations blocked for containers: loopback, link-local with the metadata service of most clouds, broadcast
/// and multicast; also the metadata services of Alibaba Cloud and of Oracle's older cloud, which use other
/// addresses.
pub(super) const BLOCKED: &str =
    "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3, 100.100.100.200, 192.0.0.192";
/// Azure's wire server is a name server, which containers may use; on [`WIRE_PORTS`] it serves data about the
/// machine.
pub(super) const WIRE_SERVER: &str = "168.63.129.16";
pub(super) const WIRE_PORTS: &str = "80,443,32526";

fn list(ranges: &[Ipv4Range]) -> String {
    ranges.iter().map(|range| format!(", {range}")).collect()
}

/// Returns the nft script of the host's table. The script replaces an older table atomically.
pub(super) fn host_table(names: &NetworkNames, ranges: &[Ipv4Range]) -> String {
    let (table, links, inside) = (&names.table, &names.links, list(ranges));
    let masked = inside.trim_start_matches(", ");
    // The first chain runs before destination NAT of other software, so it checks the address that a container
    // requested, not a translated one. Replies to connections from the host pass.
    format!(
        "table inet {table}
delete table inet {table}
table inet {table} {{
  chain from_containers {{
    type filter hook prerouting priority mangle; policy accept;
    iifname != \"{links}*\" return
    meta nfproto != ipv4 drop
    fib saddr . iif oif missing drop
    ct state established,related accept
    fib daddr type != unicast drop
    ip daddr {{ {BLOCKED}{inside} }} drop
    ip daddr {WIRE_SERVER} tcp dport {{ {WIRE_PORTS} }} drop
  }}
  chain to_containers {{
    type filter hook forward priority filter; policy accept;
    iifname \"{links}*\" tcp flags syn tcp option maxseg size set rt mtu
    oifname != \"{links}*\" return
    ct state established,related accept
    drop
  }}
  chain translate {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname != \"{links}*\" ip saddr {{ {masked} }} masquerade
  }}
}}
"
    )
}

/// Returns the nft script of the inner table, for the container's own namespace. Its rules reject packets instead
/// of dropping them, so that clients get an error at once.
pub(super) fn inner_table(ranges: &[Ipv4Range]) -> String {
    let inside = list(ranges);
    format!(
        "table inet berth {{
  chain out {{
    type filter hook output priority filter; policy accept;
    oifname \"lo\" accept
    meta nfproto != ipv4 drop
    ct state established,related accept
    ip daddr {{ {BLOCKED}{inside} }} reject with icmp type admin-prohibited
    ip daddr {WIRE_SERVER} tcp dport {{ {WIRE_PORTS} }} reject with icmp type admin-prohibited
  }}
}}
"
    )
}

/// Returns the script that the shell runs in the new network namespace before it executes nspawn. `server` is the
/// PID of a process in the host's network namespace. The script disables IPv6: it would need a second set of
/// rules, and most hosts have no IPv6 range to assign. Ping and low ports require no privilege inside, because the
/// namespace has no other user.
pub(super) fn start_script(firewall: Firewall, link: &VethLink, ranges: &[Ipv4Range], server: u32) -> String {
    let VethLink { interface, gateway, address } = link;
    let rules = match firewall {
        Firewall::Nftables => format!("nft -f - <<'END'\n{}END\n", inner_table(ranges)),
        Firewall::Iptables => iptables::inner_script(ranges),
    };
    let sysctl = "/proc/sys/net";
    format!(
        "set -e
ip -batch - <<'END'
link set lo up
link add host0 type veth peer name {interface} netns {server}
addr add {address}/30 dev host0
END
for kind in all default; do
  [ ! -e {sysctl}/ipv6/conf/$kind/disable_ipv6 ] || echo 1 >{sysctl}/ipv6/conf/$kind/disable_ipv6
done
echo 0 >{sysctl}/ipv4/ip_unprivileged_port_start
echo '0 2147483647' >{sysctl}/ipv4/ping_group_range
{rules}nsenter --net=/proc/{server}/ns/net sh -e -c '
[ ! -e {sysctl}/ipv6/conf/{interface}/disable_ipv6 ] || echo 1 >{sysctl}/ipv6/conf/{interface}/disable_ipv6
exec ip -batch -' <<'END'
addr add {gateway}/30 dev {interface}
link set {interface} up
END
ip -batch - <<'END'
link set host0 up
route add default via {gateway}
END
"
    )
}
