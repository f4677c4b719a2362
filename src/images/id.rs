//! Identifiers of images: the digest of their content, and names. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::ids::Distro;
use crate::base::{Code, Error, Result};

/// Maximum length of an image's name: with a prefix and a suffix of the store, it is still a valid file name.
const IMAGE_NAME_BYTES: usize = 128;

/// The SHA-256 of an image's listing (`listing`), in hex.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ImageId(String);

impl ImageId {
    /// Parses a complete ID.
    ///
    /// # Errors
    /// `ImageNotFound` if `text` is not a complete ID, because then no image has it.
    pub fn parse(text: &str) -> Result<ImageId> {
        let hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() != 64 || !hex {
            return Err(not_found(text));
        }
        Ok(ImageId(text.to_owned()))
    }

    /// Returns all 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first 12 digits, for display.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl TryFrom<String> for ImageId {
    type Error = Error;
    fn try_from(text: String) -> Result<ImageId> {
        ImageId::parse(&text)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that points to an image. Workspaces without an image of their own use their distribution's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ImageName(String);

impl ImageName {
    /// Checks a name.
    ///
    /// # Errors
    /// `InvalidName` with the rules for names.
    pub fn parse(text: &str) -> Result<ImageName> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let first = text.bytes().next().is_some_and(fits);
        let all = text.bytes().all(|byte| fits(byte) || matches!(byte, b'.' | b'_' | b'-'));
        if !first || !all || text.len() > IMAGE_NAME_BYTES || ImageId::parse(text).is_ok() {
            return Err(Error::new(
                Code::InvalidName,
                format!(
                    "'{}' is not a valid image name: use up to {} lowercase letters, digits, '.', '_' and '-', \
                     starting with a letter or digit, and not an image ID",
                    text.escape_debug(),
                    IMAGE_NAME_BYTES
                ),
            ));
        }
        Ok(ImageName(text.to_owned()))
    }

    /// Returns the name of a distribution's image.
    pub fn of(distro: Distro) -> ImageName {
        ImageName(distro.as_str().to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ImageName {
    type Error = Error;
    fn try_from(text: String) -> Result<ImageName> {
        ImageName::parse(&text)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) fn not_found(wanted: &str) -> Error {
    let wanted: String = wanted.chars().take(100).collect();
    Error::new(
        Code::ImageNotFound,
        format!(
            "There is no image '{}'; `berth image list` and GET /api/images show them",
            wanted.escape_debug()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_are_distinct() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(ImageId::parse(&id).unwrap().short(), "0123456789ab");
        for bad in ["", "0123", &id.to_uppercase(), &format!("{id}0"), &id.replace('0', "g")] {
            assert_eq!(ImageId::parse(bad).unwrap_err().code(), Code::ImageNotFound, "{bad}");
        }
        for good in ["a", "debian-bookworm", "0123456789ab", "python3.12", "a_b"] {
            assert!(ImageName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "A", "a/b", "a b", "a:b", "ä", "a\0", &id, &"x".repeat(129)] {
            assert_eq!(ImageName::parse(bad).unwrap_err().code(), Code::InvalidName, "{bad}");
        }
        for distro in Distro::ALL {
            assert!(ImageName::parse(ImageName::of(distro).as_str()).is_ok());
        }
    }
}
