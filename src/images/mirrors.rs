//! Selects the package source of a distribution: the configured mirror, otherwise the host's own if it runs that
//! distribution, otherwise none, so that debootstrap uses its script's default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::ids::Distro;

/// Configured mirrors and keyrings.
#[derive(Clone, Debug, Default)]
pub struct PackageSources {
    /// The URL of the package archive, by distribution.
    pub mirrors: BTreeMap<Distro, String>,
    /// The path of the keyring file, by distribution.
    pub keyrings: BTreeMap<Distro, PathBuf>,
    /// The proxy variables for tools that download.
    pub proxy_env: Vec<(String, String)>,
    /// The time limit of a bootstrap.
    pub deadline: Duration,
}

impl PackageSources {
    /// Returns the URL of the distribution's package archive, if one is known.
    pub fn mirror(&self, distro: Distro) -> Option<String> {
        self.mirrors.get(&distro).cloned().or_else(|| host_mirror(Path::new("/"), distro))
    }
}

/// Returns the distribution's `ID` in os-release(5), and the name of its suite.
fn family(distro: Distro) -> (&'static str, &'static str) {
    match distro {
        Distro::UbuntuNoble => ("ubuntu", "noble"),
        Distro::UbuntuJammy => ("ubuntu", "jammy"),
        Distro::DebianBookworm => ("debian", "bookworm"),
        Distro::ArchLinux => ("arch", ""),
        Distro::Host => ("", ""),
    }
}

/// Returns the mirror that the host at `root` uses, if the host runs that distribution.
fn host_mirror(root: &Path, distro: Distro) -> Option<String> {
    let (id, _) = family(distro);
    let release = std::fs::read_to_string(root.join("etc/os-release")).ok()?;
    let host =
        release.lines().find_map(|line| line.strip_prefix("ID="))?.trim_matches(['"', '\'']).to_owned();
    if host != id {
        return None;
    }
    if distro == Distro::ArchLinux {
        let list = std::fs::read_to_string(root.join("etc/pacman.d/mirrorlist")).ok()?;
        return list.lines().find_map(|line| {
            Some(line.trim().strip_prefix("Server")?.trim().strip_prefix('=')?.trim().to_owned())
        });
    }
    apt_mirror(&root.join("etc/apt"))
}

/// Returns the first archive (not the security archive) in apt's sources, in both formats (sources.list(5)).
fn apt_mirror(apt: &Path) -> Option<String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(apt.join("sources.list.d"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.sort_unstable();
    files.insert(0, apt.join("sources.list"));
    let mut found: Vec<(String, Vec<String>, Vec<String>)> = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => found.extend(text.split("\n\n").filter_map(deb822)),
            Some("list") => found.extend(text.lines().filter_map(one_line)),
            _ => {}
        }
    }
    // The distribution's own archive has a `main` component and suites that are bare code names; third parties use
    // names such as `stable` or `nodistro`, and security archives a suffix.
    let archive = |suites: &[String]| {
        suites
            .iter()
            .any(|suite| suites.iter().any(|other| *other == format!("{suite}-updates")) || suites.len() == 1)
            && !suites.iter().any(|suite| suite.contains("security") && suites.len() == 1)
    };
    let main: Vec<_> =
        found.iter().filter(|(_, _, components)| components.iter().any(|c| c == "main")).collect();
    main.iter()
        .find(|(_, suites, _)| suites.len() > 1 && archive(suites))
        .or_else(|| main.iter().find(|(_, suites, _)| archive(suites)))
        .map(|(uri, _, _)| uri.clone())
}

fn usable(uri: &str) -> bool {
    ["http://", "https://", "file:/"].iter().any(|scheme| uri.starts_with(scheme))
}

fn deb822(paragraph: &str) -> Option<(String, Vec<String>, Vec<String>)> {
    let field = |name: &str| -> Option<Vec<String>> {
        let line = paragraph.lines().find(|line| {
            line.split_once(':').is_some_and(|(key, _)| key.trim().eq_ignore_ascii_case(name))
        })?;
        Some(line.split_once(':')?.1.split_whitespace().map(str::to_owned).collect())
    };
    if field("Enabled").is_some_and(|value| value == ["no"])
        || !field("Types")?.iter().any(|kind| kind == "deb")
    {
        return None;
    }
    let uri = field("URIs")?.into_iter().find(|uri| usable(uri))?;
    Some((uri, field("Suites")?, field("Components").unwrap_or_default()))
}

fn one_line(line: &str) -> Option<(String, Vec<String>, Vec<String>)> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let uri = words.next().filter(|uri| usable(uri))?;
    Some((uri, vec![words.next()?], words.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[(&str, &str)]) -> Option<String> {
        let dir =
            std::env::temp_dir().join(format!("berth-apt-{}-{}", std::process::id(), uuid::Uuid::new_v4()));
        std::fs::create_dir_all(dir.join("sources.list.d")).unwrap();
        for (name, text) in files {
            #[expect(clippy::disallowed_methods, reason = "a test's own files")]
            std::fs::write(dir.join(name), text).unwrap();
        }
        let found = apt_mirror(&dir);
        #[expect(clippy::disallowed_methods, reason = "a test's own files")]
        std::fs::remove_dir_all(dir).unwrap();
        found
    }

    #[test]
    fn deb822_sources() {
        let text = "Types: deb\n# c\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n\
            Types: deb\nURIs: http://mirror.test/debian-security\nSuites: bookworm-security\nComponents: main\n";
        let other = "Types: deb\nURIs: https://other.test/x\nSuites: nodistro\nComponents: main\n";
        let files = [("sources.list.d/debian.sources", text), ("sources.list.d/a.sources", other)];
        assert_eq!(with(&files).as_deref(), Some("http://mirror.test/debian"));
    }

    #[test]
    fn one_line_sources() {
        let text = "# deb http://no.test/ x main\ndeb cdrom:[x]/ bookworm main\n\
            deb http://security.test/debian-security bookworm-security main\n\
            deb [signed-by=/a arch=amd64] http://mirror.test/debian/ bookworm main contrib\n";
        assert_eq!(with(&[("sources.list", text)]).as_deref(), Some("http://mirror.test/debian/"));
        assert_eq!(with(&[("sources.list", "")]), None);
    }
}
