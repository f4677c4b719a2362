//! Whether a distribution's image may be made: the one call of berth that asks the network.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{ImageName, Images};
use crate::base::ids::Distro;
use crate::base::{Code, Error, Result};

/// Whether a distribution's image may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// When there is none; the network is asked for nothing once there is one.
    Missing,
    /// Never.
    Never,
    /// Anew, also when there is one, which then stays under its id.
    Always,
}

impl Pull {
    /// The word that a person has for it.
    pub fn parse(word: &str) -> Option<Pull> {
        match word {
            "missing" => Some(Pull::Missing),
            "never" => Some(Pull::Never),
            "always" => Some(Pull::Always),
            _ => None,
        }
    }
}

/// As in a request.
impl<'de> Deserialize<'de> for Pull {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Pull, D::Error> {
        let word = String::deserialize(from)?;
        let unknown = || format!("pull is missing, always or never, not '{}'", word.escape_debug());
        Pull::parse(&word).ok_or_else(|| D::Error::custom(unknown()))
    }
}

impl Images {
    /// Whether a distribution's image is there, or may be made.
    ///
    /// # Errors
    /// `ImageNotFound`.
    pub fn check_base(&self, distro: Distro, pull: Pull) -> Result<()> {
        if distro != Distro::Host && pull == Pull::Never && self.by_name(&ImageName::of(distro))?.is_none() {
            return Err(no_image(distro));
        }
        Ok(())
    }
}

pub(super) fn no_image(distro: Distro) -> Error {
    Error::new(
        Code::ImageNotFound,
        format!(
            "There is no image of {distro} here, and none may be made; import one with `berth image import {distro} FILE`"
        ),
    )
}
