//! Private networks. Each container gets its own network namespace, a veth pair to the host, addresses, address
//! translation, and rules that separate it from the host and from other containers ([`rules`]). The start script
//! of the container creates the namespace and the link; both exist as long as the container does. Objects that
//! outlive a container carry this server's name, so that a later server finds and removes them: the links
//! `vbXXXXXX-N` and the table `berth-XXXXXX`, or iptables chains of that name where nft is missing.
//!
//! This module never changes links or tables of other software. It enables `ip_forward` if it is off, and leaves
//! it on.
//!
//! Lock: `state`, a leaf, held while `ip`, `nft` and iptables run (a few ms, at most [`NETWORK_TOOL`] each), so
//! that the table matches the links.

mod iptables;
mod range;
mod resolver;
mod rules;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use range::Ipv4Range;

use crate::base::ids::Network;
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, hex};
use crate::proc::tools;
use crate::proc::{Cancel, Cgroups, Exit, ProcessOutcome, Spec};
use crate::store::file;

/// Timeout of one call of `ip` or `nft`, which makes a single request to the kernel.
const NETWORK_TOOL: Duration = Duration::from_secs(10);
/// Bytes kept of the output of `ip`, `nft` and iptables; more than the routing table of a router.
const NETWORK_OUTPUT_BYTES: usize = 1 << 20;

/// Configuration of private networks.
#[derive(Clone, Debug, Default)]
pub struct NetworkConfig {
    /// Range of addresses; `None` selects a range into which the host has no route.
    pub range: Option<Ipv4Range>,
    /// Name servers for containers; if empty, the host's name servers are used.
    pub dns: Vec<Ipv4Addr>,
}

/// The veth link of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VethLink {
    /// Name of the interface at the host's end of the link.
    pub interface: String,
    /// The host's address on the link, the container's default gateway.
    pub gateway: Ipv4Addr,
    /// The container's address.
    pub address: Ipv4Addr,
}

/// Network of a container, as clients see it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NetworkStatus {
    /// Network mode of the running container; a changed mode applies at the container's next start.
    pub mode: Network,
    /// The veth link of a private network; `None` for other modes.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub link: Option<VethLink>,
}

/// All private networks of this server.
#[derive(Debug)]
pub struct Networks {
    names: NetworkNames,
    config: NetworkConfig,
    cgroups: Cgroups,
    /// Path of `<data>/network.json`, a file that exists while firewall rules are installed.
    saved_path: PathBuf,
    state: Mutex<NetworkState>,
}

/// Names of the objects that this server creates on the host.
#[derive(Debug)]
struct NetworkNames {
    table: String,
    /// Prefix of the links' names; a number follows it.
    links: String,
}

#[derive(Debug, Default)]
struct NetworkState {
    range: Option<Ipv4Range>,
    /// Interface names in use, by the container's address.
    links: BTreeMap<Ipv4Addr, String>,
}

#[derive(Serialize, Deserialize)]
struct SavedNetwork {
    range: Ipv4Range,
    /// Whether iptables chains are installed, in addition to or instead of nft's table.
    #[serde(default)]
    iptables: bool,
}

/// The firewall tool that installs the rules on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Firewall {
    Nftables,
    Iptables,
}

impl Firewall {
    /// Returns nft if it is installed, otherwise iptables.
    fn detect() -> Result<Firewall> {
        let missing = match tools::require("nft") {
            Ok(_) => return Ok(Firewall::Nftables),
            Err(error) => error,
        };
        if ["iptables", "iptables-restore", "sh"].into_iter().all(|program| tools::find(program).is_some()) {
            return Ok(Firewall::Iptables);
        }
        let message = format!("{} (iptables could be used instead but is missing too)", missing.message());
        Err(Error::new(missing.code(), message).detail("program", "nft"))
    }
}

/// A link in use; dropping the lease removes the link.
#[derive(Debug)]
pub(super) struct LinkLease {
    networks: Arc<Networks>,
    link: Option<VethLink>,
}

impl Networks {
    /// Creates the networks of the server with this data directory. The first [`Networks::claim`] changes the
    /// host.
    pub(super) fn new(data_dir: &Path, choice: NetworkConfig, cgroups: Cgroups) -> Networks {
        let by_path = || {
            let real = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
            let hash = Sha256::digest(real.as_os_str().as_encoded_bytes());
            hex::encode(&hash[..3])
        };
        // The cgroup's name stays the same if the directory is moved, so objects created under the old path are
        // found.
        let tree = cgroups.folder().and_then(|tree| tree.file_name()?.to_str()?.strip_prefix("berth-"));
        let is_hash = |name: &&str| name.len() == 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let instance: String = tree.filter(is_hash).map_or_else(by_path, |name| name[..6].to_owned());
        let memory = data_dir.join("network.json");
        let range = choice.range.or(SavedNetwork::read(&memory).map(|before| before.range));
        Networks {
            // Linux limits interface names to 15 characters.
            names: NetworkNames { table: format!("berth-{instance}"), links: format!("vb{instance}-") },
            config: choice,
            cgroups,
            saved_path: memory,
            state: Mutex::new(NetworkState { range, links: BTreeMap::new() }),
        }
    }

    /// Checks whether the host can make private networks, as far as possible without making one.
    ///
    /// # Errors
    /// `Unavailable` that names the missing program or privilege.
    pub fn check(&self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            let message = "A private network needs root; start berth as root, or choose another network";
            return Err(Error::new(Code::Unavailable, message));
        }
        let cannot = |error: Error| {
            let program = error.body()["details"]["program"].clone();
            let message = format!("A private network cannot be made: {}", error.message());
            Error::new(Code::Unavailable, message).detail("program", program)
        };
        for program in ["ip", "nsenter"] {
            tools::require(program).map_err(cannot)?;
        }
        Firewall::detect().map(drop).map_err(cannot)
    }

    /// Prepares the host for private networks and allocates a free link. The container's name selects the
    /// preferred link.
    ///
    /// # Errors
    /// `Unavailable` that names the missing part or the conflict.
    pub(super) fn claim(self: &Arc<Self>, machine: &str) -> Result<LinkLease> {
        self.check()?;
        enable_ip_forward()?;
        let mut state = lock(&self.state);
        let mut foreign = self.routes()?;
        foreign.retain(|route| !route.range.is_default() && !route.device.starts_with(&self.names.links));
        let range = self.range(&mut state, &foreign)?;
        let hash = Sha256::digest(machine.as_bytes());
        let start = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let number = |tried: u32| start.wrapping_add(tried) % range.links();
        let mut free = (0..range.links()).map(number).map(|number| self.names.link(range, number));
        let link = free.find(|link| {
            let network = Ipv4Range::containing(link.address, range::LINK_LENGTH);
            !state.links.contains_key(&link.address)
                && !exists(&link.interface)
                && !foreign.iter().any(|route| route.range.overlaps(network))
        });
        let link = link.ok_or_else(|| {
            let message = format!("All addresses of {range} are in use; choose a larger --private-range");
            Error::new(Code::Unavailable, message)
        })?;
        state.links.insert(link.address, link.interface.clone());
        // Install the rules at each claim: a reload of the host's firewall may have removed our tables.
        if let Err(error) = self.install_rules(&state) {
            state.links.remove(&link.address);
            return Err(error);
        }
        Ok(LinkLease { networks: self.clone(), link: Some(link) })
    }

    /// Takes over the link of a container that an earlier server started; returns `None` if the link no longer
    /// exists.
    pub(super) fn adopt(self: &Arc<Self>, link: VethLink) -> Option<LinkLease> {
        if !link.interface.starts_with(&self.names.links) || !exists(&link.interface) {
            return None;
        }
        lock(&self.state).links.insert(link.address, link.interface.clone());
        Some(LinkLease { networks: self.clone(), link: Some(link) })
    }

    /// Removes unused links and rules of an earlier server; installs the rules again if containers still use
    /// links.
    pub fn sweep(&self) {
        let state = lock(&self.state);
        let used: Vec<&String> = state.links.values().collect();
        for entry in std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&self.names.links) && !used.contains(&&name) {
                self.delete_link(&name);
            }
        }
        if !state.links.is_empty() {
            if let Err(error) = self.install_rules(&state) {
                log::error!("The rules of private networks could not be renewed: {error}");
            }
        } else if self.saved_path.exists() {
            self.remove_rules();
        }
    }

    /// Returns the ranges that containers may use: the current one, and addresses that are still in use from an
    /// earlier configuration.
    fn ranges(state: &NetworkState) -> Vec<Ipv4Range> {
        let mut ranges: Vec<Ipv4Range> = state.range.into_iter().collect();
        for address in state.links.keys() {
            if !ranges.iter().any(|range| range.contains(*address)) {
                ranges.push(Ipv4Range::containing(*address, range::LINK_LENGTH));
            }
        }
        ranges
    }

    /// Returns the shell script that sets up the private network at a container's start, before nspawn.
    ///
    /// # Errors
    /// `Unavailable` when neither nft nor iptables is installed.
    pub(super) fn start_script(&self, link: &VethLink) -> Result<String> {
        let ranges = Networks::ranges(&lock(&self.state));
        Ok(rules::start_script(Firewall::detect()?, link, &ranges, std::process::id()))
    }

    /// Returns the content of a container's resolv.conf.
    pub(super) fn resolv_conf(&self, network: Network) -> Vec<u8> {
        let host = std::fs::read("/etc/resolv.conf").unwrap_or_default();
        if network != Network::Private {
            return host;
        }
        self.resolver(&host).text.into_bytes()
    }

    fn resolver(&self, host: &[u8]) -> resolver::ResolvConf {
        let behind = std::fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or_default();
        let own: Vec<Ipv4Range> =
            self.routes().unwrap_or_default().into_iter().map(|route| route.range).collect();
        // A route to one of the host's own addresses has this prefix length.
        let is_own = |server| own.contains(&Ipv4Range::containing(server, 32));
        resolver::for_private_network(&self.config.dns, &String::from_utf8_lossy(host), &behind, |server| {
            !server.is_loopback() && !server.is_link_local() && !server.is_unspecified() && !is_own(server)
        })
    }

    /// Returns warnings for a user who selects a private network.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let host = std::fs::read("/etc/resolv.conf").unwrap_or_default();
        if self.resolver(&host).servers.is_empty() {
            warnings.push(
                "Names do not resolve in private networks: the host's name servers listen on the host itself, \
                 where containers cannot reach them; set others with --private-dns"
                    .into(),
            );
        }
        warnings
    }

    /// Returns the range in use; chooses a range if there are no links yet. `foreign` contains routes of other
    /// software.
    fn range(&self, state: &mut NetworkState, foreign: &[HostRoute]) -> Result<Ipv4Range> {
        let taken = |range: Ipv4Range| foreign.iter().find(|route| route.range.overlaps(range));
        if let Some(range) = state.range.filter(|_| !state.links.is_empty()) {
            // The rules inside running containers contain this range.
            return Ok(range);
        }
        if let Some(range) = self.config.range {
            state.range = Some(range);
            return match taken(range) {
                None => Ok(range),
                Some(route) => {
                    let message = format!(
                        "The range {range} of private networks overlaps with this host's route to {} by {}; \
                         choose another with --private-range",
                        route.range, route.device
                    );
                    Err(Error::new(Code::Unavailable, message))
                }
            };
        }
        let candidates = state.range.into_iter().chain(range::CANDIDATES);
        let range = candidates.into_iter().find(|range| taken(*range).is_none()).ok_or_else(|| {
            let message = "This host has routes into every range that berth would choose for private networks; \
                           name one that is free with --private-range";
            Error::new(Code::Unavailable, message)
        })?;
        state.range = Some(range);
        Ok(range)
    }

    /// Returns all routes of the host, including those to its own addresses.
    fn routes(&self) -> Result<Vec<HostRoute>> {
        let printed = self.run_tool("ip", &["-4", "-o", "route", "show", "table", "all"])?;
        Ok(printed.lines().filter_map(HostRoute::parse).collect())
    }

    fn install_rules(&self, state: &NetworkState) -> Result<()> {
        let (ranges, firewall) = (Networks::ranges(state), Firewall::detect()?);
        let remembered = SavedNetwork {
            range: *ranges.first().unwrap_or(&range::CANDIDATES[0]),
            // Keep the flag set if nft was installed later: both sets of rules exist then, and both must be
            // removed.
            iptables: firewall == Firewall::Iptables
                || SavedNetwork::read(&self.saved_path).is_some_and(|before| before.iptables),
        };
        let text = serde_json::to_vec(&remembered)
            .map_err(|error| Error::internal("Could not serialize network.json").with_source(error))?;
        // The file is written before the rules, so that a later server knows which rules to remove.
        file::replace(&self.saved_path, &text, 0o600)?;
        let done = match firewall {
            Firewall::Nftables => self.run_tool("nft", &[&rules::host_table(&self.names, &ranges)]),
            Firewall::Iptables => self.run_tool("sh", &["-c", &iptables::host_script(&self.names, &ranges)]),
        };
        done.map(drop)
    }

    fn remove_rules(&self) {
        let table = &self.names.table;
        let iptables = SavedNetwork::read(&self.saved_path).is_some_and(|before| before.iptables);
        // Rules that were already removed are not a failure: nft creates the table first so that the deletion
        // succeeds.
        let by_nft = || self.run_tool("nft", &[&format!("table inet {table}\ndelete table inet {table}")]);
        let by_iptables = || self.run_tool("sh", &["-c", &iptables::removal_script(&self.names)]);
        let steps = [
            tools::find("nft").is_some().then(by_nft),
            (iptables && tools::find("iptables").is_some()).then(by_iptables),
        ];
        match steps.into_iter().flatten().find_map(Result::err) {
            None => _ = std::fs::remove_file(&self.saved_path),
            Some(error) => log::warn!("The rules {table} of private networks could not be removed: {error}"),
        }
    }

    fn delete_link(&self, name: &str) {
        if let Err(error) = self.run_tool("ip", &["link", "delete", "dev", name]) {
            // The kernel removes the link together with its namespace, so it may already be gone.
            if exists(name) {
                log::warn!("The link {name} could not be removed: {error}");
            }
        }
    }

    fn release(&self, link: &VethLink) {
        let mut state = lock(&self.state);
        // Delete the link now; otherwise a connection that waits for replies would keep it for minutes.
        if exists(&link.interface) {
            self.delete_link(&link.interface);
        }
        state.links.remove(&link.address);
        if state.links.is_empty() {
            self.remove_rules();
        }
    }

    /// Runs a host program and returns its output.
    fn run_tool(&self, program: &str, args: &[&str]) -> Result<String> {
        let path = tools::require(program)?;
        let spec = Spec::new(path).args(args.iter().copied());
        let place = (&self.cgroups, "network");
        let (ended, text) =
            spec.run_for_output(place, NETWORK_OUTPUT_BYTES, NETWORK_TOOL, &Cancel::new()?)?;
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("").trim().to_owned();
        match ended {
            ProcessOutcome::Exited(Exit::Code(0)) => Ok(text),
            ended => Err(Error::new(
                Code::Unavailable,
                format!("A private network cannot be made: {program} failed ({ended:?}): {first}"),
            )),
        }
    }
}

/// Returns a program with arguments that installs sample rules, to test whether the host supports the rules of
/// private networks, and the name of the firewall tool. `None` if the host has no firewall tool.
pub fn sample_rules() -> Option<(&'static str, Vec<String>, &'static str)> {
    let names = NetworkNames { table: "berth-doctor".into(), links: "vbdoctor-".into() };
    let ranges = [range::CANDIDATES[0]];
    Some(match Firewall::detect().ok()? {
        Firewall::Nftables => {
            ("nft", vec![rules::host_table(&names, &ranges) + &rules::inner_table(&ranges)], "nft")
        }
        Firewall::Iptables => {
            let script = iptables::host_script(&names, &ranges) + &iptables::inner_script(&ranges);
            ("sh", vec!["-c".into(), script], "iptables, since there is no nft")
        }
    })
}

impl SavedNetwork {
    fn read(path: &Path) -> Option<SavedNetwork> {
        serde_json::from_slice(&file::read_optional(path, 4096).ok()??).ok()
    }
}

impl NetworkNames {
    fn link(&self, range: Ipv4Range, number: u32) -> VethLink {
        let first = u32::from(range.link(number));
        VethLink {
            interface: format!("{}{number}", self.links),
            gateway: Ipv4Addr::from(first + 1),
            address: Ipv4Addr::from(first + 2),
        }
    }
}

impl LinkLease {
    pub(super) fn link(&self) -> Option<&VethLink> {
        self.link.as_ref()
    }

    /// Consumes the lease without removing the link, so that the next server can adopt it.
    pub(super) fn detach(mut self) {
        self.link = None;
    }
}

impl Drop for LinkLease {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            self.networks.release(link);
        }
    }
}

/// One route of the host: a line of `ip route`.
struct HostRoute {
    range: Ipv4Range,
    device: String,
}

impl HostRoute {
    fn parse(line: &str) -> Option<HostRoute> {
        let mut words = line.split_whitespace();
        let mut first = words.next()?;
        const KINDS: [&str; 10] = [
            "unicast",
            "local",
            "broadcast",
            "multicast",
            "throw",
            "unreachable",
            "prohibit",
            "blackhole",
            "nat",
            "anycast",
        ];
        if KINDS.contains(&first) {
            first = words.next()?;
        }
        let range = match first {
            "default" => "0.0.0.0/0".parse(),
            address if address.contains('/') => address.parse(),
            address => format!("{address}/32").parse(),
        };
        let device = words.skip_while(|word| *word != "dev").nth(1).unwrap_or("none");
        Some(HostRoute { range: range.ok()?, device: device.to_owned() })
    }
}

fn exists(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

/// Enables IP forwarding on the host.
fn enable_ip_forward() -> Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    let on = std::fs::read_to_string(SWITCH).at("read", SWITCH)?;
    if on.trim() != "0" {
        return Ok(());
    }
    std::fs::File::options()
        .write(true)
        .open(SWITCH)
        .and_then(|mut switch| std::io::Write::write_all(&mut switch, b"1"))
        .map_err(|error| {
            let message = format!(
                "A private network cannot be made: IP forwarding is off and cannot be \
                 enabled ({error}); run sysctl -w net.ipv4.ip_forward=1"
            );
            Error::new(Code::Unavailable, message)
        })?;
    log::warn!(
        "Enabled net.ipv4.ip_forward for private networks; this host now forwards packets between all its \
         networks, as far as its firewall allows, even after berth exits"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_parsed() {
        for (line, range, device) in [
            ("default via 192.0.2.1 dev eth0 ", "0.0.0.0/0", "eth0"),
            ("192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.2 ", "192.0.2.0/24", "eth0"),
            (
                "local 127.0.0.1 dev lo table local proto kernel scope host src 127.0.0.1 ",
                "127.0.0.1/32",
                "lo",
            ),
            ("unreachable 10.9.0.0/16 metric 5", "10.9.0.0/16", "none"),
            ("10.1.2.3 via 192.0.2.1 dev wg0 table 51820", "10.1.2.3/32", "wg0"),
        ] {
            let route = HostRoute::parse(line).unwrap();
            assert_eq!((route.range.to_string().as_str(), route.device.as_str()), (range, device));
        }
        assert!(HostRoute::parse("").is_none());
    }

    #[test]
    fn link_names_fit_and_rules_keep_earlier_ranges() {
        let names = NetworkNames { table: "berth-abcdef".into(), links: "vbabcdef-".into() };
        let range = range::CANDIDATES[0];
        let link = names.link(range, range.links() - 1);
        assert!(link.interface.len() <= 15, "{}", link.interface);
        assert_eq!((link.gateway, link.address), ([10, 213, 255, 253].into(), [10, 213, 255, 254].into()));
        let old = Ipv4Addr::new(192, 168, 7, 2);
        let links = [(link.address, link.interface), (old, "vb0-1".into())].into();
        let ranges = Networks::ranges(&NetworkState { range: Some(range), links });
        assert_eq!(
            ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.213.0.0/16", "192.168.7.0/30"]
        );
    }
}
