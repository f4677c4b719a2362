//! Chooses the image of a workspace: the image that it names, or its distribution's.

use super::Lifecycle;
use crate::base::ids::Distro;
use crate::base::{Code, Error, Result};
use crate::images::BuildLog;
use crate::images::{Image, Pull};
use crate::proc::Cancel;
use crate::workspaces::create::WorkspaceFields;
use crate::workspaces::{ContainerBase, WorkspaceJob, WorkspaceRecord};

impl Lifecycle {
    /// Checks the image that a client names. A `distro` that is the name or id of an image selects that image.
    ///
    /// # Errors
    /// `ImageNotFound`.
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
                // Refused later as an unknown distribution, with the list of distributions.
                Err(error) if error.code() == Code::ImageNotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Chooses the base of a build by the same rules.
    ///
    /// # Errors
    /// `ImageNotFound`, `InvalidDistro`.
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

    /// Whether the base is this machine's own system.
    pub fn is_own_system(&self, base: &ContainerBase) -> bool {
        match base {
            ContainerBase::Distro(distro) => *distro == Distro::Host,
            ContainerBase::Image(name) => {
                self.images.find(name).and_then(|image| self.images.is_host_image(&image.id)).unwrap_or(true)
            }
        }
    }

    /// Checks that an accepted build can get its image.
    ///
    /// # Errors
    /// `ImageNotFound`; `RebuildRequired` if a new image would replace an existing root; `InvalidPayload` if an
    /// imported image is to be pulled.
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
    /// Those of [`crate::images::Images::base`] and [`crate::images::Images::find`].
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
