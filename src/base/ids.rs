//! Names and ids, parsed once at the edge and trusted from then on.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Code, Error, Result, limits};

/// A workspace's label: shown, sorted by, never used as a file name. Not unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Label(String);

impl Label {
    /// Checks a workspace name.
    ///
    /// # Errors
    /// `InvalidName` with the rule that was broken; the first three sentences are sandboxed.sh's own.
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
            return refuse(format!("Name is longer than {} bytes", limits::NAME_BYTES));
        }
        Ok(Label(text.to_owned()))
    }

    /// The name as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a host name inside the container: ASCII letters, digits and hyphens, at most 63 (hostname(7)).
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

/// Checks one environment variable.
///
/// # Errors
/// `InvalidEnv` for a name outside `[A-Za-z_][A-Za-z0-9_]*`, a NUL in the value, or a variable the kernel refuses.
pub fn check_env(name: &str, value: &str) -> Result<()> {
    let refuse = |problem: String| Err(Error::new(Code::InvalidEnv, problem).detail("name", name));
    let mut chars = name.chars();
    let first_ok = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !first_ok || !chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return refuse(format!(
            "{name:?} is not a name for an environment variable; allowed are letters, digits and '_', not starting with a digit"
        ));
    }
    if value.contains('\0') {
        return refuse(format!("The value of {name} contains a NUL byte, which no process can receive"));
    }
    if name.len() + value.len() + 1 > limits::ENV_ENTRY_BYTES {
        return refuse(format!(
            "{name} is longer than {} bytes; put the data into a file",
            limits::ENV_ENTRY_BYTES
        ));
    }
    Ok(())
}

/// Checks variables, each and in total.
///
/// # Errors
/// `InvalidEnv`.
pub fn check_env_vars<'a>(vars: impl Iterator<Item = (&'a str, &'a str)>) -> Result<()> {
    let mut total = 0;
    for (name, value) in vars {
        check_env(name, value)?;
        total += name.len() + value.len() + 2;
    }
    if total > limits::ENV_TOTAL_BYTES {
        return Err(Error::new(
            Code::InvalidEnv,
            format!(
                "The variables are larger than {} bytes in total; put the data into a file",
                limits::ENV_TOTAL_BYTES
            ),
        ));
    }
    Ok(())
}

/// The distributions that a container can be built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distro {
    /// Ubuntu 24.04; what sandboxed.sh builds when nothing is said.
    UbuntuNoble,
    /// Ubuntu 22.04.
    UbuntuJammy,
    /// Debian 12.
    DebianBookworm,
    /// Arch Linux.
    ArchLinux,
    /// This machine's own system, seen in place; nothing is downloaded or copied.
    Host,
}

impl Distro {
    /// Those that are made with their own tools, from a mirror.
    pub const ALL: [Distro; 4] =
        [Distro::UbuntuNoble, Distro::UbuntuJammy, Distro::DebianBookworm, Distro::ArchLinux];

    /// What is built when neither the workspace nor the call names one.
    pub const DEFAULT: Distro = Distro::UbuntuNoble;

    /// Reads a name or one of sandboxed.sh's aliases.
    ///
    /// # Errors
    /// `InvalidDistro` with the list of supported ones.
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

    /// The canonical name.
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

/// What a container sees of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's own.
    #[default]
    Host,
    /// Nothing but its own loopback.
    None,
    /// One of its own, with a way out that leads past the host.
    Private,
}

/// Reads a workspace id of `/api`.
///
/// # Errors
/// `InvalidId` when it is not a UUID in its hyphenated form.
pub fn parse_uuid(text: &str) -> Result<Uuid> {
    parse_uuid_of(text, "workspace", "GET /api/workspaces")
}

/// The same for the id of another `thing`, which `list` shows.
///
/// # Errors
/// `InvalidId`.
pub fn parse_uuid_of(text: &str, thing: &str, list: &str) -> Result<Uuid> {
    // Uuid::try_parse also takes braces, URNs and bare hex; one spelling keeps logs and lookups simple.
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
    fn host_names_are_host_names() {
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
