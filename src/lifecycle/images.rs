//! Chooses the image of a workspace: the image that the workspace names, or the image of its distribution.

use super::Lifecycle;
use crate::base::ids::Distro;
use crate::base::{Code, Error, Result};
use crate::images::BuildLog;
use crate::images::{Image, Pull};
use crate::proc::Cancel;
use crate::workspaces::create::WorkspaceFields;
use crate::workspaces::{ContainerBase, WorkspaceJob, WorkspaceRecord};

impl Lifecycle {
    /// Checks the image that a client names. If `distro` is the name or id of an image, it selects that image.
    ///
    /// # Errors
    /// Fails with `ImageNotFound`.
    pub(super) fn choose_image(&self, fields: &mut WorkspaceFields) -> Result<()> {
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
                // An unknown name is refused later as an unknown distribution, with the list of distributions.
                Err(error) if error.code() == Code::ImageNotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Chooses the base of a build from a distribution and image that a client names, by the rules of `choose_image`.
    ///
    /// # Errors
    /// Fails with `ImageNotFound` or `InvalidDistro`.
    pub fn choose_base(
        &self,
        distro: Option<String>,
        image: Option<String>,
    ) -> Result<Option<ContainerBase>> {
        let mut fields = WorkspaceFields { distro, image, ..WorkspaceFields::default() };
        self.choose_image(&mut fields)?;
        let word = |word: Option<String>| word.filter(|word| !word.trim().is_empty());
        match (word(fields.image), word(fields.distro)) {
            (Some(image), _) => Ok(Some(ContainerBase::Image(image))),
            (None, Some(distro)) => Ok(Some(ContainerBase::Distro(Distro::parse(distro.trim())?))),
            (None, None) => Ok(None),
        }
    }

    /// Returns whether a base is this machine's own system.
    pub fn is_own_system(&self, base: &ContainerBase) -> bool {
        match base {
            ContainerBase::Distro(distro) => *distro == Distro::Host,
            ContainerBase::Image(name) => {
                self.images.find(name).and_then(|image| self.images.is_host_image(&image.id)).unwrap_or(true)
            }
        }
    }

    /// Checks that a build can get its image, before the build is queued.
    ///
    /// # Errors
    /// Fails with `ImageNotFound`, with `RebuildRequired` if a new image would replace an existing root, or with
    /// `InvalidPayload` if the request wants to pull an imported image.
    pub(super) fn check_image(&self, record: &WorkspaceRecord, pull: Pull) -> Result<()> {
        let fresh = matches!(record.job, Some(WorkspaceJob::Build { fresh: true }));
        let image = record.view.image.as_deref();
        if pull == Pull::Always {
            if let Some(name) = image {
                let message = format!("Image {name} was imported; only a distribution's image can be pulled");
                return Err(Error::new(Code::InvalidPayload, message));
            }
            if !fresh {
                let message = "A new image replaces the container and destroys its files. Pass \"rebuild\": true to rebuild it";
                return Err(Error::new(Code::RebuildRequired, message));
            }
        }
        match image {
            _ if !fresh => Ok(()),
            Some(name) => self.images.find(name).map(drop),
            None => self.images.check_base(record.view.distro.unwrap_or(Distro::DEFAULT), pull),
        }
    }

    /// Returns the image for the workspace's root. Builds a distribution's image if it does not exist.
    ///
    /// # Errors
    /// Fails for the same reasons as [`crate::images::Images::base`] and [`crate::images::Images::find`].
    pub(super) fn image_of(
        &self,
        record: &WorkspaceRecord,
        pull: Pull,
        log: &mut BuildLog,
        cancel: &Cancel,
    ) -> Result<Image> {
        match &record.view.image {
            Some(image) => self.images.find(image),
            None => self.images.base(record.view.distro.unwrap_or(Distro::DEFAULT), pull, log, cancel),
        }
    }
}
