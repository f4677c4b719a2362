//! Equivalents of the rules in [`super::rules`] for hosts that have iptables but not nft, in the format of
//! iptables-restore(8). nft holds the rules in a single table; here, each kernel table has a chain with this
//! server's name, and a jump to that chain is inserted first in a shared chain. IPv6 is disabled on both ends of a
//! link, so no IPv6 rules are needed. Pure.

use super::NetworkNames;
use super::range::Ipv4Range;
use super::rules::{BLOCKED, WIRE_PORTS, WIRE_SERVER};

/// Seconds for which an iptables call waits for the lock of another call.
const WAIT: &str = "-w 5";

fn blocked(chain: &str, ranges: &[Ipv4Range], verdict: &str) -> String {
    let blocked = BLOCKED.split(", ").map(str::to_owned).chain(ranges.iter().map(Ipv4Range::to_string));
    let mut rules: String = blocked.map(|range| format!("-A {chain} -d {range} {verdict}\n")).collect();
    rules += &format!("-A {chain} -d {WIRE_SERVER} -p tcp -m multiport --dports {WIRE_PORTS} {verdict}\n");
    rules
}

/// Returns the jumps from shared chains to this server's chains: table, shared chain with match, own chain.
fn jumps(names: &NetworkNames) -> [(&'static str, String, String); 4] {
    let (chain, links) = (&names.table, &names.links);
    [
        ("mangle", format!("PREROUTING -i {links}+"), chain.clone()),
        ("mangle", format!("FORWARD -i {links}+"), format!("{chain}-mss")),
        ("filter", format!("FORWARD -o {links}+"), chain.clone()),
        ("nat", format!("POSTROUTING ! -o {links}+"), chain.clone()),
    ]
}

/// Returns the shell script that installs the host's rules. The script replaces existing chains, each table
/// atomically.
pub(super) fn host_script(names: &NetworkNames, ranges: &[Ipv4Range]) -> String {
    let chain = &names.table;
    let blocked = blocked(chain, ranges, "-j DROP");
    let masked: String =
        ranges.iter().map(|range| format!("-A {chain} -s {range} -j MASQUERADE\n")).collect();
    let mut script = format!(
        "set -e
iptables-restore {WAIT} --noflush <<'END'
*mangle
:{chain} - [0:0]
:{chain}-mss - [0:0]
-A {chain} -m rpfilter --invert -j DROP
-A {chain} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
-A {chain} -m addrtype ! --dst-type UNICAST -j DROP
{blocked}-A {chain}-mss -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*filter
:{chain} - [0:0]
-A {chain} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
-A {chain} -j DROP
COMMIT
*nat
:{chain} - [0:0]
{masked}COMMIT
END
"
    );
    for (table, from, to) in jumps(names) {
        let (hook, rest) = from.split_once(' ').unwrap_or((&from, ""));
        script += &format!(
            "iptables {WAIT} -t {table} -C {from} -j {to} 2>/dev/null || iptables {WAIT} -t {table} -I {hook} 1 {rest} -j {to}\n"
        );
    }
    script
}

/// Returns the shell script that removes the rules; missing rules are skipped.
pub(super) fn removal_script(names: &NetworkNames) -> String {
    let mut script = String::new();
    for (table, from, to) in jumps(names) {
        script += &format!(
            "iptables {WAIT} -t {table} -D {from} -j {to} 2>/dev/null
if iptables {WAIT} -t {table} -F {to} 2>/dev/null; then iptables {WAIT} -t {table} -X {to} || exit 1; fi
"
        );
    }
    script
}

/// Returns the shell script for the container's own namespace. Its rules reject packets instead of dropping them,
/// so that clients get an error at once.
pub(super) fn inner_script(ranges: &[Ipv4Range]) -> String {
    let blocked = blocked("OUTPUT", ranges, "-j REJECT --reject-with icmp-admin-prohibited");
    format!(
        "iptables-restore {WAIT} <<'END'
*filter
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
{blocked}COMMIT
END
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_cover_every_range_and_are_removed_completely() {
        let names = NetworkNames { table: "berth-abcdef".into(), links: "vbabcdef-".into() };
        let ranges = ["10.213.0.0/16".parse().unwrap(), "192.168.7.0/30".parse().unwrap()];
        let script = host_script(&names, &ranges);
        for rule in [
            "-A berth-abcdef -d 169.254.0.0/16 -j DROP\n",
            "-A berth-abcdef -d 192.168.7.0/30 -j DROP\n",
            "-A berth-abcdef -s 10.213.0.0/16 -j MASQUERADE\n",
            "-t nat -I POSTROUTING 1 ! -o vbabcdef-+ -j berth-abcdef\n",
        ] {
            assert!(script.contains(rule), "{rule}{script}");
        }
        let removal = removal_script(&names);
        for (table, from, to) in jumps(&names) {
            // A chain's name is limited to 28 characters, an interface's name with its plus sign to 15.
            assert!(to.len() <= 28 && names.links.len() < 15);
            assert!(removal.contains(&format!("-t {table} -D {from} -j {to}")), "{removal}");
        }
        assert!(inner_script(&ranges).contains("-d 127.0.0.0/8 -j REJECT"));
    }
}
