//! Checks the host's programs and keyrings, which are needed for containers, builds and private networks.

use std::path::Path;

use super::{Check, CheckStatus, Subject, install, is_root, run};
use crate::base::ids::Distro;
use crate::images::bootstrap;
use crate::proc::tools;

/// Checks the programs that all container workspaces need.
pub(super) fn required() -> Vec<Check> {
    let missing = tools::missing_tools();
    if missing.is_empty() {
        return vec![Check::ok("programs", "everything that containers need is installed")];
    }
    let row = |tool: &tools::MissingTool| {
        Check::fail(
            tool.program,
            format!("{} is missing, so container workspaces cannot be built", tool.program),
            format!("{}, or start berth with --setup", install(&[tool.package])),
        )
    };
    missing.iter().map(row).collect()
}

/// Checks which distributions can be built; fails only if none can.
pub(super) fn distributions(subject: &Subject) -> Vec<Check> {
    let mut checks: Vec<Check> = Distro::ALL
        .into_iter()
        .map(|distro| {
            let name = format!("build {distro}");
            match bootstrap::find_tools(distro, &subject.sources) {
                Ok(needs) => {
                    let base =
                        |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let script = needs
                        .stand_in
                        .as_deref()
                        .map_or(String::new(), |script| format!(" with its script {}", base(script)));
                    Check::ok(
                        name,
                        format!("{}{script}, verified with {}", base(&needs.program), needs.keyring),
                    )
                }
                Err(error) => {
                    let (found, fix) =
                        error.message().split_once("; ").unwrap_or((error.message(), "see above"));
                    Check::warn(name, found, fix)
                }
            }
        })
        .collect();
    if checks.iter().all(|check| check.status != CheckStatus::Ok) {
        checks.iter_mut().for_each(|check| check.status = CheckStatus::Fail);
    }
    checks
}

/// Checks the requirements of `network: "private"`. The tests run in a new network namespace, so they do not
/// change the host.
pub(super) fn network(subject: &Subject) -> Vec<Check> {
    let consequence = "containers can share the host's network or have none, but no private one";
    if !is_root() {
        return vec![Check::warn("private network", "not tried without root", "run berth doctor as root")];
    }
    let unshare = tools::find("unshare");
    let tried = |program: &str, args: &[&str]| -> Option<std::result::Result<(), String>> {
        let path = tools::find(program)?.to_string_lossy().into_owned();
        let unshare = unshare.as_ref()?;
        Some(run(subject, unshare, &[&["--net", "--", path.as_str()], args].concat()).map(drop))
    };
    let row =
        |name: &str, tried: Option<std::result::Result<(), String>>, good: &str, package, kernel: &str| {
            match tried {
                Some(Ok(())) => Check::ok(name, good),
                Some(Err(why)) => Check::warn(name, format!("{why}; {consequence}"), kernel),
                None => Check::warn(name, format!("{good} is missing; {consequence}"), install(&[package])),
            }
        };
    let pair = tried("ip", &["link", "add", "berth0", "type", "veth", "peer", "name", "berth1"]);
    // The sample uses all features of the rules of private networks.
    let sample = crate::containers::network::sample_rules();
    let rules = sample
        .as_ref()
        .and_then(|(program, args, _)| tried(program, &args.iter().map(String::as_str).collect::<Vec<_>>()));
    let kept = sample.map_or("nft", |(_, _, kept)| kept);
    let mut checks = vec![
        row("virtual links", pair, "ip", "iproute2", "a kernel with CONFIG_VETH"),
        row(
            "address translation",
            rules,
            kept,
            "nftables",
            "a kernel with CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_MASQ and CONFIG_NFT_FIB_INET",
        ),
    ];
    checks.extend(forwarding(subject));
    checks
}

/// Checks the requirements of `mounts` other than ID mapping, which has its own check.
pub(super) fn mounts(subject: &Subject) -> Check {
    let name = "mounts";
    let file = subject.allowlist.path.display();
    match subject.allowlist.roots() {
        Ok(Some(count)) if crate::containers::binds::nspawn_maps_owners() => {
            Check::ok(name, format!("{count} allowed roots in {file}"))
        }
        Ok(None) => Check::ok(name, format!("containers get no folders of the host: there is no {file}")),
        Ok(Some(_)) => Check::warn(
            name,
            "Files in mounts lose their owners in containers: this systemd-nspawn cannot map them",
            "systemd 252 or newer",
        ),
        Err(error) => Check::warn(name, error.message(), format!("correct {file}")),
    }
}

/// Checks whether the host forwards the packets of private networks.
fn forwarding(subject: &Subject) -> Option<Check> {
    let name = "forwarding";
    let on = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").ok()?;
    let (found, chain) = if let Some(nft) = tools::find("nft") {
        let chains = run(subject, nft, &["list", "chains"]).unwrap_or_default();
        let accept = "iifname \"vb*\" and oifname \"vb*\" in its chain of the hook forward";
        (dropping(&chains).map(|table| format!("The table {table} of nftables")), accept)
    } else {
        let rules = run(subject, tools::find("iptables")?, &["-w", "5", "-S", "FORWARD"]).unwrap_or_default();
        let drops = rules.lines().any(|rule| rule == "-P FORWARD DROP");
        (drops.then(|| "The chain FORWARD of iptables".to_owned()), "-i vb+ and -o vb+")
    };
    if let Some(found) = found {
        return Some(Check::warn(
            name,
            format!("{found} drops unknown packets, including those of private networks"),
            format!("make it accept {chain}"),
        ));
    }
    Some(if on.trim() == "0" {
        Check::ok(name, "off (net.ipv4.ip_forward); the first private network switches it on")
    } else {
        Check::ok(name, "on")
    })
}

/// Returns the first table that drops forwarded packets by default, from the output of `nft list chains`.
fn dropping(chains: &str) -> Option<&str> {
    let mut table = "";
    for line in chains.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches('{').trim();
        }
        if line.contains("hook forward") && line.contains("policy drop") {
            return Some(table);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropping_firewall_is_detected() {
        let chains = "table ip nat {\n\tchain PREROUTING {\n\t\ttype nat hook prerouting priority dstnat; policy accept;\n\t}\n}\n\
            table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";
        assert_eq!(dropping(chains), Some("ip filter"));
        assert_eq!(dropping(&chains.replace("policy drop", "policy accept")), None);
    }
}
