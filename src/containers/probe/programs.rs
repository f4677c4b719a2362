//! The host's programs and keyrings: what containers need, what builds need, what a network of their own needs.

use std::path::Path;

use super::{Check, Status, Subject, install, is_root, run};
use crate::base::ids::Distro;
use crate::containers::{bootstrap, tools};

/// What every container workspace needs.
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

/// What can be built. One distribution is enough to work with.
pub(super) fn distributions(subject: &Subject) -> Vec<Check> {
    let mut checks: Vec<Check> = Distro::ALL
        .into_iter()
        .map(|distro| {
            let name = format!("build {distro}");
            match bootstrap::needs(distro, &subject.sources) {
                Ok(needs) => {
                    let base =
                        |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let script = needs
                        .stand_in
                        .as_deref()
                        .map_or(String::new(), |script| format!(" with its script {}", base(script)));
                    Check::ok(
                        name,
                        format!(
                            "{}{script}, verified with {}",
                            base(&needs.program),
                            needs.keyring.display()
                        ),
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
    if checks.iter().all(|check| check.status != Status::Ok) {
        checks.iter_mut().for_each(|check| check.status = Status::Fail);
    }
    checks
}

/// What `network: "private"` needs. Tried in a network namespace of its own, so nothing of the host's changes.
pub(super) fn network(subject: &Subject) -> Vec<Check> {
    let consequence = "containers can share the host's network or have none, but no private one";
    let unshare = tools::find("unshare").filter(|_| is_root());
    let tried = |program: &str, args: &[&str]| -> Option<std::result::Result<(), String>> {
        let path = tools::find(program)?.to_string_lossy().into_owned();
        let unshare = unshare.as_ref()?;
        Some(run(subject, unshare, &[&["--net", "--", path.as_str()], args].concat()).map(drop))
    };
    if !is_root() {
        return vec![Check::warn("private network", "not tried without root", "run berth doctor as root")];
    }
    let pair = tried("ip", &["link", "add", "berth0", "type", "veth", "peer", "name", "berth1"]);
    let nft = tried("nft", &["add", "table", "inet", "berth"]);
    let iptables = tried("iptables", &["-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"]);
    let mut checks = vec![match pair {
        Some(Ok(())) => Check::ok("virtual links", "ip can make them"),
        Some(Err(why)) => {
            Check::warn("virtual links", format!("{why}; {consequence}"), "a kernel with CONFIG_VETH")
        }
        None => Check::warn("virtual links", format!("ip is missing; {consequence}"), install(&["iproute2"])),
    }];
    checks.push(match (nft, iptables) {
        (Some(Ok(())), _) => Check::ok("address translation", "nftables"),
        (_, Some(Ok(()))) => Check::ok("address translation", "iptables"),
        (Some(Err(why)), _) | (None, Some(Err(why))) => Check::warn(
            "address translation",
            format!("{why}; {consequence}"),
            "a kernel with CONFIG_NF_TABLES and CONFIG_NF_NAT",
        ),
        (None, None) => Check::warn(
            "address translation",
            format!("There is neither nft nor iptables; {consequence}"),
            install(&["nftables"]),
        ),
    });
    checks
}
