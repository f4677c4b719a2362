//! Which image a workspace is made from: the one that it names, else its distribution's.

use super::Lifecycle;
use crate::base::ids::Distro;
use crate::base::{Code, Result};
use crate::containers::BuildLog;
use crate::containers::images::{Image, Pull};
use crate::proc::Cancel;
use crate::workspaces::Record;
use crate::workspaces::create::Fields;

impl Lifecycle {
    /// Checks the image that a client names. A `distro` that is none, but an image's name or id, means that image.
    ///
    /// # Errors
    /// `ImageNotFound`.
    pub(super) fn choose_image(&self, fields: &mut Fields) -> Result<()> {
        if let Some(name) = fields.image.as_deref().map(str::trim).filter(|name| !name.is_empty()) {
            self.images.find(name)?;
            fields.image = Some(name.to_owned());
            return Ok(());
        }
        let Some(distro) = fields.distro.as_deref().map(str::trim).filter(|distro| !distro.is_empty()) else {
            return Ok(());
        };
        if Distro::parse(distro).is_err() {
            match self.images.find(distro) {
                Ok(_) => fields.image = fields.distro.take().map(|name| name.trim().to_owned()),
                // What is no image either is refused as a distribution, with the list of those.
                Err(error) if error.code() == Code::ImageNotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The image that the workspace's root is to be made from; a distribution's is made if there is none.
    ///
    /// # Errors
    /// As [`crate::containers::Images::base`] and [`crate::containers::Images::find`].
    pub(super) fn image_of(&self, record: &Record, log: &mut BuildLog, cancel: &Cancel) -> Result<Image> {
        match &record.shown.image {
            Some(image) => self.images.find(image),
            None => {
                self.images.base(record.shown.distro.unwrap_or(Distro::DEFAULT), Pull::Missing, log, cancel)
            }
        }
    }
}
