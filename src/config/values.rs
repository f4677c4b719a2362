//! The rules for one configured value. Each takes the place it came from (flag, variable or file position), so
//! that the complaint names it. A token is never repeated in a complaint.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use crate::base::ids::Distro;
use crate::base::{Error, Result};
use crate::roots::RootKind;

/// A whole number within `range`.
pub(super) fn number(place: &str, text: &str, range: RangeInclusive<u64>) -> Result<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { text.parse().ok() } else { None };
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        let (low, high) = (range.start(), range.end());
        Error::config(place, format!("{text:?} is not a whole number from {low} to {high}"))
    })
}

/// A number that counts things in memory.
pub(super) fn count(place: &str, text: &str, range: RangeInclusive<u64>) -> Result<usize> {
    let number = number(place, text, range)?;
    usize::try_from(number)
        .map_err(|_| Error::config(place, format!("{number} is too large for this machine")))
}

/// Yes or no.
pub(super) fn boolean(place: &str, text: &str) -> Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Error::config(place, format!("{text:?} is neither 1/true/yes/on nor 0/false/no/off"))),
    }
}

/// One of a few words.
pub(super) fn word<T: Copy>(place: &str, text: &str, words: &[(&str, T)]) -> Result<T> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        Error::config(place, format!("{text:?} is not one of: {}", words.join(", ")))
    })
}

/// How roots are made; `auto` leaves it to what works.
pub(super) fn root_backend(place: &str, text: &str) -> Result<Option<RootKind>> {
    let kinds =
        [RootKind::Overlay, RootKind::Reflink, RootKind::Copy].map(|kind| (kind.as_str(), Some(kind)));
    word(place, text, &[&[("auto", None)], &kinds[..]].concat())
}

/// A token or password that a client can send.
pub(super) fn secret(place: &str, text: String) -> Result<String> {
    if text.is_empty() {
        return Err(Error::config(
            place,
            "is empty; leave it out to get a generated one, or give it a value",
        ));
    }
    // HTTP strips white space around a header's value and has no control characters: nobody could present it.
    if text.trim() != text || text.chars().any(char::is_control) {
        return Err(Error::config(place, "contains a control character or begins or ends with white space"));
    }
    Ok(text)
}

/// An address to listen on.
pub(super) fn host(place: &str, text: String) -> Result<String> {
    if text == "localhost" || text.parse::<IpAddr>().is_ok() {
        return Ok(text);
    }
    Err(Error::config(
        place,
        format!("{text:?} is neither an IP address (such as 127.0.0.1 or ::1) nor localhost"),
    ))
}

/// A host in URLs that are shown to clients: a name or an IP address, without scheme, port and path.
pub(super) fn reachable_host(place: &str, text: String) -> Result<String> {
    let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&text);
    // RFC 1123; underscores occur in the names of machines and containers.
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = text.len() <= 253 && text.strip_suffix('.').unwrap_or(&text).split('.').all(is_label);
    if is_name || address.parse::<IpAddr>().is_ok() {
        return Ok(text);
    }
    Err(Error::config(
        place,
        format!("{text:?} is neither a host name nor an IP address; give it without scheme, port and path"),
    ))
}

/// A URL of one of the given schemes (`http://` …).
pub(super) fn url(place: &str, text: &str, schemes: &[&str]) -> Result<String> {
    let rest = schemes.iter().find_map(|scheme| text.strip_prefix(scheme));
    if rest.is_none_or(str::is_empty) {
        return Err(Error::config(
            place,
            format!("{text:?} is not a URL that begins with {}", schemes.join(" or ")),
        ));
    }
    // It goes into files and command lines of other programs.
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Error::config(place, format!("{text:?} contains white space or a control character")));
    }
    Ok(text.to_owned())
}

/// Origins as browsers send them, or `*`.
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

/// A path made absolute without asking the file system: `.` and `..` are resolved by name only.
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
    // Paths travel in JSON, and a workspace's id is a hash of its path's text.
    if path.to_str().is_none() {
        return Err(Error::config(place, format!("{} is not UTF-8 text", path.display())));
    }
    Ok(path)
}

/// `NAME=VALUE` with the name of a distribution.
pub(super) fn distro_pair<'a>(place: &str, text: &'a str) -> Result<(Distro, &'a str)> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(Error::config(place, format!("{text:?} is not of the form NAME=VALUE")));
    };
    Ok((distro(place, name)?, value))
}

/// The name of a distribution.
pub(super) fn distro(place: &str, name: &str) -> Result<Distro> {
    Distro::parse(name.trim()).map_err(|error| Error::config(place, error.message()))
}
