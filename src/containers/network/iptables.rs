//! The rules of [`super::rules`] for a host that has iptables and no nft: the same in effect, as iptables-restore(8) reads
//! them. What nft keeps in one table lies in chains of this server's name here, one for each of the kernel's tables, and
//! in a jump to each from a chain of everybody's, first in it. IPv6 is off on both ends of a link, so there are no
//! rules for it. Pure.

use super::NetworkNames;
use super::range::Ipv4Range;
use super::rules::{NEVER, WIRE_PORTS, WIRE_SERVER};

/// Seconds that one call waits for another's lock.
const WAIT: &str = "-w 5";

fn never(chain: &str, ranges: &[Ipv4Range], verdict: &str) -> String {
    let never = NEVER.split(", ").map(str::to_owned).chain(ranges.iter().map(Ipv4Range::to_string));
    let mut rules: String = never.map(|range| format!("-A {chain} -d {range} {verdict}\n")).collect();
    rules += &format!("-A {chain} -d {WIRE_SERVER} -p tcp -m multiport --dports {WIRE_PORTS} {verdict}\n");
    rules
}

/// Where everybody's chains lead to ours: the table, the chain and what it matches, ours.
fn jumps(names: &NetworkNames) -> [(&'static str, String, String); 4] {
    let (chain, links) = (&names.table, &names.links);
    [
        ("mangle", format!("PREROUTING -i {links}+"), chain.clone()),
        ("mangle", format!("FORWARD -i {links}+"), format!("{chain}-mss")),
        ("filter", format!("FORWARD -o {links}+"), chain.clone()),
        ("nat", format!("POSTROUTING ! -o {links}+"), chain.clone()),
    ]
}

/// What the shell does for the host's rules. Chains that are there already are replaced, each table in one step.
pub(super) fn host_script(names: &NetworkNames, ranges: &[Ipv4Range]) -> String {
    let chain = &names.table;
    let never = never(chain, ranges, "-j DROP");
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
{never}-A {chain}-mss -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
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

/// What the shell does to remove them, as far as they are there.
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

/// What the shell does in the container's own namespace. It refuses instead of dropping: who asks gets an error at once.
pub(super) fn inner_script(ranges: &[Ipv4Range]) -> String {
    let never = never("OUTPUT", ranges, "-j REJECT --reject-with icmp-admin-prohibited");
    format!(
        "iptables-restore {WAIT} <<'END'
*filter
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
{never}COMMIT
END
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_every_range_and_go_as_they_came() {
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
            // A chain's name has at most 28 characters, an interface's with its plus at most 15.
            assert!(to.len() <= 28 && names.links.len() < 15);
            assert!(removal.contains(&format!("-t {table} -D {from} -j {to}")), "{removal}");
        }
        assert!(inner_script(&ranges).contains("-d 127.0.0.0/8 -j REJECT"));
    }
}
