//! The programs and keyrings that container workspaces need on the host: their paths, and the packages that provide
//! them. This module only searches for them; `cli::setup` installs them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::base::{Code, Error, Result};

/// The folders that are searched for programs. The PATH of this process is not used, because its caller may set any
/// value.
pub use crate::proc::spawn::PATH;

/// Distributions that share their package names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Debian, Ubuntu and their derivatives.
    Debian,
    /// Fedora, RHEL and their derivatives.
    Fedora,
    /// Arch Linux.
    Arch,
}

/// A program that is missing on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTool {
    /// The program's name.
    pub program: &'static str,
    /// The package that provides it on this host.
    pub package: &'static str,
}

/// Distributions whose package archives are signed with the keys of one keyring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    /// The package archive of Debian.
    Debian,
    /// The package archive of Ubuntu.
    Ubuntu,
}

struct Tool {
    program: &'static str,
    debian: &'static str,
    fedora: &'static str,
    arch: &'static str,
}

/// Programs that every container workspace requires.
const TOOLS: [Tool; 4] = [
    Tool {
        program: "systemd-nspawn",
        debian: "systemd-container",
        fedora: "systemd-container",
        arch: "systemd",
    },
    Tool { program: "debootstrap", debian: "debootstrap", fedora: "debootstrap", arch: "debootstrap" },
    Tool { program: "cp", debian: "coreutils", fedora: "coreutils", arch: "coreutils" },
    Tool { program: "unshare", debian: "util-linux", fedora: "util-linux", arch: "util-linux" },
];

/// Programs that only private networks require.
const NETWORK_TOOLS: [Tool; 3] = [
    Tool { program: "ip", debian: "iproute2", fedora: "iproute", arch: "iproute2" },
    Tool { program: "nft", debian: "nftables", fedora: "nftables", arch: "nftables" },
    Tool { program: "nsenter", debian: "util-linux", fedora: "util-linux-core", arch: "util-linux" },
];

/// Programs that only OpenCode addresses with a host name require. Every Debian installation has them.
const LOOKUP_TOOLS: [Tool; 1] =
    [Tool { program: "getent", debian: "libc-bin", fedora: "glibc-common", arch: "glibc" }];

/// Programs that unpack Ubuntu's packages on hosts whose dpkg-deb cannot.
const UBUNTU_TOOLS: [Tool; 2] = [
    Tool { program: "ar", debian: "binutils", fedora: "binutils", arch: "binutils" },
    Tool { program: "zstdcat", debian: "zstd", fedora: "zstd", arch: "zstd" },
];

/// Programs that only Arch Linux roots require. pacman-key(8) is a shell script that uses makepkg's library and calls
/// gpg, and gpg calls its agent.
const ARCH_TOOLS: [Tool; 5] = [
    Tool {
        program: "pacstrap",
        debian: "arch-install-scripts",
        fedora: "arch-install-scripts",
        arch: "arch-install-scripts",
    },
    Tool { program: "pacman", debian: "pacman-package-manager", fedora: "pacman", arch: "pacman" },
    Tool { program: "gpg", debian: "gpg", fedora: "gnupg2", arch: "gnupg" },
    Tool { program: "gpg-agent", debian: "gpg-agent", fedora: "gnupg2", arch: "gnupg" },
    Tool { program: "makepkg", debian: "makepkg", fedora: "pacman", arch: "pacman" },
];

/// The package with the keys of Arch Linux's packagers. It has this name in every distribution.
pub const ARCH_KEYRING_PACKAGE: &str = "archlinux-keyring";

/// The folder in which pacman(8) stores the keys that it trusts.
pub const PACMAN_KEYS: &str = "/etc/pacman.d/gnupg";

/// Returns the path of a program in one of the folders of [`PATH`].
pub fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| {
        fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// Returns the missing programs with the package names of this host, or with Debian's names if the host is unknown.
pub fn missing_tools() -> Vec<MissingTool> {
    missing_tools_of(family().unwrap_or(Family::Debian))
}

/// Returns the missing programs with the package names of `family`.
pub fn missing_tools_of(family: Family) -> Vec<MissingTool> {
    let missing = TOOLS.iter().filter(|tool| find(tool.program).is_none());
    missing.map(|tool| MissingTool { program: tool.program, package: tool.package(family) }).collect()
}

/// Returns the programs that Arch Linux roots need and this host lacks, with the package names of `family`.
pub fn missing_arch_tools(family: Family) -> Vec<MissingTool> {
    let missing = ARCH_TOOLS.iter().filter(|tool| find(tool.program).is_none());
    missing.map(|tool| MissingTool { program: tool.program, package: tool.package(family) }).collect()
}

/// Returns whether the host has the keys of Arch Linux's packagers, from which pacman-key(8) creates [`PACMAN_KEYS`].
pub fn has_arch_keyring() -> bool {
    // The first path is that of Debian's package, the second that of other distributions.
    ["/usr/share/keyrings/archlinux.gpg", "/usr/share/pacman/keyrings/archlinux.gpg"]
        .iter()
        .any(|file| Path::new(file).is_file())
}

/// Returns the path of a required program.
///
/// # Errors
/// `Unavailable` when the program is missing: "systemd-nspawn is missing; install the package systemd-container …".
pub fn require(program: &str) -> Result<PathBuf> {
    find(program)
        .ok_or_else(|| Error::new(Code::Unavailable, missing_message(program)).detail("program", program))
}

/// Returns the message for a program that [`find`] did not find.
pub fn missing_message(program: &str) -> String {
    let family = family().unwrap_or(Family::Debian);
    let known = |tool: &&Tool| tool.program == program;
    if let Some(tool) = TOOLS.iter().find(known) {
        let package = tool.package(family);
        return format!("{program} is missing; install the package {package}, or start berth with --setup");
    }
    let optional = [&ARCH_TOOLS[..], &UBUNTU_TOOLS, &NETWORK_TOOLS, &LOOKUP_TOOLS];
    match optional.into_iter().flatten().find(known) {
        Some(tool) => format!("{program} is missing; install the package {}", tool.package(family)),
        None => format!("{program} is missing; install it"),
    }
}

/// Returns the usual path of a package archive's keyring.
pub fn keyring_file(archive: Archive) -> PathBuf {
    PathBuf::from(match archive {
        Archive::Debian => "/usr/share/keyrings/debian-archive-keyring.gpg",
        Archive::Ubuntu => "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
    })
}

/// Returns the path of a package archive's keyring, if the host has the keyring.
pub fn keyring(archive: Archive) -> Option<PathBuf> {
    let path = keyring_file(archive);
    // Since Debian 13, the extension is `.pgp`.
    [path.clone(), path.with_extension("pgp")].into_iter().find(|path| path.is_file())
}

/// Returns the packages that may provide a package archive's keyring, the most likely first. A host may have none of
/// them.
pub fn keyring_packages(family: Family, archive: Archive) -> &'static [&'static str] {
    match (family, archive) {
        (Family::Debian | Family::Arch, Archive::Debian) => &["debian-archive-keyring"],
        (Family::Debian, Archive::Ubuntu) => &["ubuntu-keyring", "ubuntu-archive-keyring"],
        (Family::Fedora, Archive::Debian) => &["debian-keyring"],
        (Family::Fedora, Archive::Ubuntu) => &["ubu-keyring"],
        (Family::Arch, Archive::Ubuntu) => &["ubuntu-keyring"],
    }
}

/// Returns this host's family of distributions, according to its os-release(5).
pub fn family() -> Option<Family> {
    let files = ["/etc/os-release", "/usr/lib/os-release"];
    family_of(&files.iter().find_map(|file| fs::read_to_string(file).ok())?)
}

fn family_of(os_release: &str) -> Option<Family> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
    };
    let ids = format!("{} {}", value("ID"), value("ID_LIKE"));
    ids.split_whitespace().find_map(|id| match id {
        "debian" | "ubuntu" => Some(Family::Debian),
        "fedora" | "rhel" | "centos" => Some(Family::Fedora),
        "arch" | "archlinux" => Some(Family::Arch),
        _ => None,
    })
}

impl Tool {
    fn package(&self, family: Family) -> &'static str {
        match family {
            Family::Debian => self.debian,
            Family::Fedora => self.fedora,
            Family::Arch => self.arch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_selects_the_family() {
        for (text, want) in [
            ("PRETTY_NAME=\"Debian\"\nID=debian\n", Some(Family::Debian)),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Some(Family::Debian)),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"", Some(Family::Fedora)),
            ("ID=fedora", Some(Family::Fedora)),
            ("ID='manjaro'\nID_LIKE=arch", Some(Family::Arch)),
            ("VERSION_ID=1\nID=alpine", None),
            ("", None),
        ] {
            assert_eq!(family_of(text), want, "{text}");
        }
    }

    #[test]
    fn only_executable_files_are_programs() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        for none in ["no-such-program-of-berth", "", ".", "sbin"] {
            assert_eq!(find(none), None, "{none}");
        }
    }

    #[test]
    fn messages_name_the_package() {
        assert!(missing_message("debootstrap").contains("install the package debootstrap"));
        assert!(missing_message("pacstrap").contains("install the package arch-install-scripts"));
        assert_eq!(missing_message("x"), "x is missing; install it");
        assert_eq!(require("no-such-program-of-berth").unwrap_err().code(), Code::Unavailable);
    }
}
