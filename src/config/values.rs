//! The parsers for the forms of values, one for each form. A parser receives the source of the text (flag, variable
//! or position in the file), so that its messages can name it. No message repeats a token.

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use super::setting::ValueKind;
use crate::base::ids::Distro;
use crate::base::{Error, Result};

impl ValueKind {
    /// Parses a whole number within the bounds.
    pub(super) fn number(self, place: &str, text: &str) -> Result<u64> {
        let (least, most) = self.range().unwrap_or((0, u64::MAX));
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { text.parse().ok() } else { None };
        number.filter(|number| (least..=most).contains(number)).ok_or_else(|| {
            Error::config(place, format!("{text:?} is not a whole number from {least} to {most}"))
        })
    }

    /// Parses one of the words of a choice.
    pub(super) fn word(self, place: &str, text: &str) -> Result<&'static str> {
        let ValueKind::Choice(words) = self else { return Ok("") };
        words
            .iter()
            .find(|word| **word == text)
            .copied()
            .ok_or_else(|| Error::config(place, format!("{text:?} is not one of: {}", words.join(", "))))
    }

    /// Parses a number of processors.
    pub(super) fn processors(self, place: &str, text: &str) -> Result<f64> {
        let ValueKind::Processors(least, most) = self else { return Ok(0.0) };
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| {
            let problem =
                format!("{text:?} is not a number of processors from {least} to {most}, such as 0.5 or 2");
            Error::config(place, problem)
        })
    }

    /// Parses a text that is used as it is.
    pub(super) fn text(self, place: &str, text: &str) -> Result<String> {
        match self {
            ValueKind::Secret => secret(place, text)?,
            ValueKind::Address if text != "localhost" && text.parse::<IpAddr>().is_err() => {
                let problem =
                    format!("{text:?} is neither an IP address (such as 127.0.0.1 or ::1) nor localhost");
                return Err(Error::config(place, problem));
            }
            ValueKind::Loopback if !["127.0.0.1", "localhost", "::1"].contains(&text) => {
                let problem =
                    format!("{text:?}: it listens on loopback only; clients elsewhere use the server");
                return Err(Error::config(place, problem));
            }
            ValueKind::HostName if !is_host(text) => {
                let problem = format!(
                    "{text:?} is neither a host name nor an IP address; give it without scheme, port and path"
                );
                return Err(Error::config(place, problem));
            }
            ValueKind::Url(schemes) => url(place, text, schemes)?,
            ValueKind::Choice(_) => return self.word(place, text).map(str::to_owned),
            _ => {}
        }
        Ok(text.to_owned())
    }
}

/// Parses a boolean.
pub(super) fn boolean(place: &str, text: &str) -> Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Error::config(place, format!("{text:?} is neither 1/true/yes/on nor 0/false/no/off"))),
    }
}

/// Parses a name or an IP address, without scheme, port and path.
fn is_host(text: &str) -> bool {
    let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    // RFC 1123 defines the characters; underscores also occur in the names of machines and containers.
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label);
    is_name || address.parse::<IpAddr>().is_ok()
}

/// Parses a token or password that a client can send in a header.
fn secret(place: &str, text: &str) -> Result<()> {
    if text.is_empty() {
        return Err(Error::config(
            place,
            "is empty; leave it out to get a generated one, or give it a value",
        ));
    }
    // HTTP removes white space around a header's value and does not allow control characters.
    if text.trim() != text || text.chars().any(char::is_control) {
        return Err(Error::config(place, "contains a control character or begins or ends with white space"));
    }
    Ok(())
}

/// Parses a URL with one of the schemes (`http://` …).
pub(super) fn url(place: &str, text: &str, schemes: &[&str]) -> Result<()> {
    if text.starts_with("https://") && !schemes.contains(&"https://") {
        return Err(Error::config(place, "berth has no TLS; name the server by http on its own machine"));
    }
    let rest = schemes.iter().find_map(|scheme| text.strip_prefix(scheme));
    if rest.is_none_or(str::is_empty) {
        let problem = format!("{text:?} is not a URL that begins with {}", schemes.join(" or "));
        return Err(Error::config(place, problem));
    }
    // The value is written into files and command lines of other programs.
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::config(place, format!("{text:?} contains white space or a control character")));
    }
    Ok(())
}

/// Parses origins as browsers send them, or `*`.
pub(super) fn origins<'a>(place: &str, list: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    let mut origins = Vec::new();
    for entry in list.map(str::trim).filter(|entry| !entry.is_empty()) {
        let origin = entry.trim_end_matches('/').to_ascii_lowercase();
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        let good = authority.is_some_and(|authority| {
            !authority.is_empty()
                && !authority.contains(['/', '?', '#', '@'])
                && !origin.contains(char::is_whitespace)
        });
        if origin != "*" && !good {
            let problem = format!("{entry:?} is neither an origin (such as http://localhost:5173) nor *");
            return Err(Error::config(place, problem));
        }
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    Ok(origins)
}

/// Makes a path absolute without access to the file system: `.` and `..` are resolved by name only.
pub(super) fn absolute(place: &str, base: &Path, text: &str) -> Result<PathBuf> {
    if text.is_empty() || text.contains('\0') {
        return Err(Error::config(place, format!("{text:?} is not a path")));
    }
    let mut path = PathBuf::new();
    for part in base.join(text).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    // Paths are sent as JSON, and a workspace's id is a hash of the text of its path.
    if path.to_str().is_none() {
        return Err(Error::config(place, format!("{} is not UTF-8 text", path.display())));
    }
    Ok(path)
}

/// Parses `NAME=VALUE`, where the name is that of a distribution.
pub(super) fn distro_pair<'a>(place: &str, text: &'a str) -> Result<(Distro, &'a str)> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(Error::config(place, format!("{text:?} is not of the form NAME=VALUE")));
    };
    Ok((distro(place, name)?, value))
}

/// Parses the name of a distribution.
pub(super) fn distro(place: &str, name: &str) -> Result<Distro> {
    Distro::parse(name.trim()).map_err(|error| Error::config(place, error.message()))
}
