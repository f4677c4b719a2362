//! Names and ids, validated once at the API boundary and trusted from then on.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Code, Error, Result, limits};

/// Maximum length of a single variable: the kernel refuses one of 128 KiB or more (execve(2), MAX_ARG_STRLEN).
const ENV_ENTRY_BYTES: usize = (128 << 10) - 1;
/// Maximum length of all variables of a command together; far below execve's limit of a quarter of the stack limit (2
/// MiB).
const ENV_TOTAL_BYTES: usize = 1 << 20;

/// A workspace's name: used for display and sorting, never as a file name. Not unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Label(String);

impl Label {
    /// Validates a workspace name.
    ///
    /// # Errors
    /// `InvalidName` with the rule that `text` violates; the first three messages are word for word those of
    /// sandboxed.sh.
    pub fn parse(text: &str) -> Result<Label> {
        let refuse = |message: String| Err(Error::new(Code::InvalidName, message));
        if text.trim().is_empty() {
            return refuse("Name cannot be empty".into());
        }
        if text.contains("..") || text.contains(['/', '\\']) {
            return refuse("Name contains invalid characters: '..', '/' and '\\' are not allowed".into());
        }
        if text.starts_with('.') {
            return refuse("Name cannot start with a dot".into());
        }
        if text.chars().any(char::is_control) {
            return refuse("Name contains invalid characters: control characters are not allowed".into());
        }
        if text.len() > limits::NAME_BYTES {
            return refuse(format!(
                "Name is {} bytes long; the limit is {} bytes",
                text.len(),
                limits::NAME_BYTES
            ));
        }
        Ok(Label(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name as a host name for the container: ASCII letters, digits and hyphens, at most 63 (hostname(7)).
    pub fn host_name(&self) -> String {
        let cleaned: String = self
            .0
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        let short: String = cleaned.trim_matches('-').chars().take(63).collect();
        let short = short.trim_matches('-');
        if short.is_empty() { "workspace".to_owned() } else { short.to_owned() }
    }
}

impl TryFrom<String> for Label {
    type Error = Error;
    fn try_from(text: String) -> Result<Label> {
        Label::parse(&text)
    }
}

/// Validates one environment variable.
///
/// # Errors
/// `InvalidEnv` for a name outside `[A-Za-z_][A-Za-z0-9_]*`, a NUL in the value, or a variable too long for the kernel.
pub fn check_env(name: &str, value: &str) -> Result<()> {
    let refuse = |problem: String| Err(Error::new(Code::InvalidEnv, problem).detail("name", name));
    let mut chars = name.chars();
    let first_ok = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first_ok || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return refuse(format!(
            "{name:?} is not a valid environment variable name; use letters, digits and '_', not starting with a digit"
        ));
    }
    if value.contains('\0') {
        return refuse(format!("The value of {name} contains a NUL byte, which no process can receive"));
    }
    if name.len() + value.len() + 1 > ENV_ENTRY_BYTES {
        return refuse(format!("{name} is longer than {} bytes; put the data into a file", ENV_ENTRY_BYTES));
    }
    Ok(())
}

/// Validates environment variables, each alone and all together.
///
/// # Errors
/// `InvalidEnv` if a variable is invalid or all variables together are too long.
pub fn check_env_vars<'a>(vars: impl Iterator<Item = (&'a str, &'a str)>) -> Result<()> {
    let mut total = 0;
    for (name, value) in vars {
        check_env(name, value)?;
        total += name.len() + value.len() + 2;
    }
    if total > ENV_TOTAL_BYTES {
        return Err(Error::new(
            Code::InvalidEnv,
            format!(
                "The variables are larger than {} bytes in total; put the data into a file",
                ENV_TOTAL_BYTES
            ),
        ));
    }
    Ok(())
}

/// The distributions that a container can be built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distro {
    /// Ubuntu 24.04, sandboxed.sh's default.
    UbuntuNoble,
    /// Ubuntu 22.04.
    UbuntuJammy,
    /// Debian 12.
    DebianBookworm,
    /// Arch Linux.
    ArchLinux,
    /// The host's own system, mounted in place; nothing is downloaded or copied.
    Host,
}

impl Distro {
    /// All distributions that are bootstrapped from a mirror.
    pub const ALL: [Distro; 4] =
        [Distro::UbuntuNoble, Distro::UbuntuJammy, Distro::DebianBookworm, Distro::ArchLinux];

    /// The distribution that is built if neither the workspace nor the request names one.
    pub const DEFAULT: Distro = Distro::UbuntuNoble;

    /// Parses a name or one of sandboxed.sh's aliases.
    ///
    /// # Errors
    /// `InvalidDistro` with the names of the supported distributions.
    pub fn parse(text: &str) -> Result<Distro> {
        Ok(match text {
            "ubuntu-noble" | "noble" => Distro::UbuntuNoble,
            "ubuntu-jammy" | "jammy" => Distro::UbuntuJammy,
            "debian-bookworm" | "bookworm" => Distro::DebianBookworm,
            "arch-linux" | "archlinux" | "arch" => Distro::ArchLinux,
            "host" => Distro::Host,
            _ => {
                let all = Distro::ALL.map(Distro::as_str).join(", ");
                return Err(Error::new(
                    Code::InvalidDistro,
                    format!("Unknown distro '{}'. Supported: {all}", text.escape_debug()),
                ));
            }
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Distro::UbuntuNoble => "ubuntu-noble",
            Distro::UbuntuJammy => "ubuntu-jammy",
            Distro::DebianBookworm => "debian-bookworm",
            Distro::ArchLinux => "arch-linux",
            Distro::Host => "host",
        }
    }
}

impl fmt::Display for Distro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A container's network mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The container uses the host's network.
    #[default]
    Host,
    /// The container has only its own loopback interface.
    None,
    /// The container has its own network, with NAT through the host.
    Private,
}

/// Parses a workspace id of `/api`.
///
/// # Errors
/// `InvalidId` if it is not a UUID in its hyphenated form.
pub fn parse_uuid(text: &str) -> Result<Uuid> {
    parse_uuid_of(text, "workspace", "GET /api/workspaces")
}

/// Parses the id of a `thing`, such as a workspace; `list` is the route that lists the things of this kind.
///
/// # Errors
/// `InvalidId` if `text` is not a UUID in its hyphenated form.
pub fn parse_uuid_of(text: &str, thing: &str, list: &str) -> Result<Uuid> {
    // `Uuid::try_parse` also accepts braces, URNs and bare hexadecimal digits. With a single spelling, logs can be
    // searched.
    if text.len() == 36 {
        if let Ok(id) = Uuid::try_parse(text) {
            return Ok(id);
        }
    }
    let message = format!(
        "The {thing} id in the path is not a UUID (8-4-4-4-12 hexadecimal digits); {list} lists them"
    );
    Err(Error::new(Code::InvalidId, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "my-workspace", "with space", "Größe", "$(rm -rf)", "x.y"] {
            assert!(Label::parse(good).is_ok(), "{good}");
        }
        for bad in ["", " ", ".hidden", "a/b", "a\\b", "..", "a..b", "a\nb", "a\0b", &"x".repeat(256)] {
            assert_eq!(Label::parse(bad).unwrap_err().code(), Code::InvalidName, "{bad:?}");
        }
    }

    #[test]
    fn labels_become_valid_host_names() {
        for (label, want) in [("My Box!", "my-box"), ("$()", "workspace"), ("a", "a"), ("Größe", "gr--e")] {
            assert_eq!(Label::parse(label).unwrap().host_name(), want);
        }
    }

    #[test]
    fn env_names() {
        for good in ["A", "_x", "MY_VAR1", "LD_PRELOAD"] {
            assert!(check_env(good, "v").is_ok());
        }
        for bad in ["", "1A", "A B", "A=B", "A\0", "LD_PRELOAD\0", "ä", "A\n"] {
            assert_eq!(check_env(bad, "v").unwrap_err().code(), Code::InvalidEnv, "{bad:?}");
        }
        assert!(check_env("A", "x\0y").is_err());
    }

    #[test]
    fn ids_have_one_spelling() {
        assert!(parse_uuid("00000000-0000-0000-0000-000000000000").is_ok());
        for bad in ["", "x", "00000000000000000000000000000000", "{00000000-0000-0000-0000-00000000000}"] {
            assert_eq!(parse_uuid(bad).unwrap_err().code(), Code::InvalidId);
        }
    }
}
