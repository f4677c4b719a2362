//! What a person decides about the images, networks and mounts of containers.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::{Error, Result, limits};
use crate::containers::network::{Ipv4Range, NetworkConfig};

use super::args::ServeArgs;
use super::sources::Sources;
use super::values;

impl Sources<'_> {
    /// By OpenWork's names; no flag, as there.
    pub(super) fn mount_allowlist(&self) -> Result<PathBuf> {
        for name in ["OPENWORK_SANDBOX_MOUNT_ALLOWLIST", "OPENWRK_SANDBOX_MOUNT_ALLOWLIST"] {
            if let Some(path) = self.var(name)? {
                let home = path.strip_prefix("~/").map(|rest| self.home().join(rest));
                return home.map_or_else(|| values::absolute(name, self.current_dir, &path), Ok);
            }
        }
        Ok(self.home().join(".config/openwork/sandbox-mount-allowlist.json"))
    }

    pub(super) fn image_timeout(&self, args: &ServeArgs) -> Result<Duration> {
        let given = self.pick(
            "--image-timeout",
            args.image_timeout.as_deref(),
            "BERTH_IMAGE_TIMEOUT",
            "imageTimeout",
            self.file.json.image_timeout.map(|secs| secs.to_string()),
        )?;
        given.map_or(Ok(limits::BOOTSTRAP_TIMEOUT), |given| {
            values::number(&given.place, &given.text, 1..=86_400).map(Duration::from_secs)
        })
    }

    pub(super) fn private_network(&self, args: &ServeArgs) -> Result<NetworkConfig> {
        let json = &self.file.json;
        let range = self.pick(
            "--private-range",
            args.private_range.as_deref(),
            "BERTH_PRIVATE_RANGE",
            "privateRange",
            json.private_range.clone(),
        )?;
        let range = range
            .map(|given| {
                Ipv4Range::parse_for_links(&given.text)
                    .map_err(|problem| Error::config(&given.place, problem))
            })
            .transpose()?;
        let servers = self.list(&args.private_dns, "BERTH_PRIVATE_DNS", json.private_dns.as_deref())?;
        let place = if args.private_dns.is_empty() { "BERTH_PRIVATE_DNS" } else { "--private-dns" };
        let server = |text: &String| {
            let address: Option<Ipv4Addr> = text.parse().ok();
            address.filter(|address| !address.is_loopback() && !address.is_unspecified()).ok_or_else(|| {
                Error::config(
                    place,
                    format!("{text:?} is no IPv4 address of a name server that a container can reach"),
                )
            })
        };
        Ok(NetworkConfig { range, dns: servers.iter().map(server).collect::<Result<_>>()? })
    }
}
