//! Decides whether a distribution's image may be built. Building is the only operation of berth that uses the network.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{ImageName, Images};
use crate::base::ids::Distro;
use crate::base::{Code, Error, Result};

/// Policy for building a distribution's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// Build the image if it is missing.
    Missing,
    /// Never build the image.
    Never,
    /// Build the image again even if it exists. The old image keeps its ID.
    Always,
}

impl Pull {
    /// Parses the policy's name.
    pub fn parse(word: &str) -> Option<Pull> {
        match word {
            "missing" => Some(Pull::Missing),
            "never" => Some(Pull::Never),
            "always" => Some(Pull::Always),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Pull {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Pull, D::Error> {
        let word = String::deserialize(from)?;
        let unknown = || format!("pull is missing, always or never, not '{}'", word.escape_debug());
        Pull::parse(&word).ok_or_else(|| D::Error::custom(unknown()))
    }
}

impl Images {
    /// Checks that a distribution's image exists or may be built.
    ///
    /// # Errors
    /// `ImageNotFound` when the image does not exist and `pull` forbids building.
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
