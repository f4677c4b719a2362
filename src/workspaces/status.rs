//! The status machine: pure functions that a registry update applies, so that a check and its change are one step.

use super::record::{Job, Kind, Origin, Record, Status};
use crate::base::ids::Distro;
use crate::base::{Code, Error, Result};

/// What a container is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Base {
    /// The image of a distribution.
    Distro(Distro),
    /// An image by name or id.
    Image(String),
}

impl Record {
    /// Begins a build, of another base than so far if one is `wanted`. `has_root`: a complete root exists, made from
    /// `built` if that can be told.
    ///
    /// # Errors
    /// `NotAContainer`, `BuildRunning`, or `RebuildRequired` when an existing root would be lost.
    pub fn start_build(
        &mut self,
        wanted: Option<Base>,
        rebuild: bool,
        has_root: bool,
        built: Option<Distro>,
    ) -> Result<()> {
        if self.shown.workspace_type != Kind::Container {
            return Err(Error::new(Code::NotAContainer, "Workspace is not a container type"));
        }
        self.check_idle()?;
        let is = |distro: Distro| built.is_none_or(|built| built == distro);
        let another = match &wanted {
            Some(Base::Distro(distro)) => (!is(*distro)).then(|| format!("distribution than {distro}")),
            Some(Base::Image(image)) => {
                (self.shown.image.as_ref() != Some(image)).then(|| format!("image than {image}"))
            }
            // Of an image of somebody's own it cannot be told what it was made from.
            None if self.shown.image.is_some() => None,
            None => {
                let distro = self.shown.distro.unwrap_or(Distro::DEFAULT);
                (!is(distro)).then(|| format!("distribution than {distro}"))
            }
        };
        if let Some(another) = another.filter(|_| has_root && !rebuild) {
            return Err(Error::new(
                Code::RebuildRequired,
                format!(
                    "The container holds another {another}; building it would destroy its files. Pass \"rebuild\": true if that is wanted"
                ),
            ));
        }
        match wanted {
            Some(Base::Distro(distro)) => {
                self.shown.distro = Some(distro);
                self.shown.image = None;
            }
            Some(Base::Image(image)) => self.shown.image = Some(image),
            None => {}
        }
        self.job = Some(Job::Build { fresh: rebuild || !has_root });
        self.shown.status = Status::Building;
        self.shown.error_message = None;
        Ok(())
    }

    /// Begins another run of the init script.
    ///
    /// # Errors
    /// `NotAContainer`, `NotReady` without a root, `NoInitScript`, `BuildRunning`.
    pub fn start_rerun(&mut self, has_root: bool) -> Result<()> {
        if self.shown.workspace_type != Kind::Container {
            return Err(Error::new(Code::NotAContainer, "Rerun init only works for container workspaces"));
        }
        self.check_idle()?;
        if !has_root {
            return Err(Error::new(Code::NotReady, "Container doesn't exist yet. Build it first."));
        }
        if self.shown.init_script.is_none() && self.shown.init_scripts.is_empty() {
            return Err(Error::new(Code::NoInitScript, "No init script configured for this workspace"));
        }
        self.job = Some(Job::RerunInit);
        self.shown.status = Status::Building;
        self.shown.error_message = None;
        Ok(())
    }

    /// Begins to go back to a snapshot.
    ///
    /// # Errors
    /// `BuildRunning`.
    pub fn start_restore(&mut self) -> Result<()> {
        self.check_idle()?;
        self.job = Some(Job::Restore);
        self.shown.status = Status::Building;
        self.shown.error_message = None;
        Ok(())
    }

    /// Ends what is under way, well or with a message.
    pub fn finish(&mut self, error: Option<String>) {
        self.job = None;
        self.shown.status = if error.is_some() { Status::Error } else { Status::Ready };
        self.shown.error_message = error;
    }

    /// Whether a client may delete it.
    ///
    /// # Errors
    /// `DefaultWorkspace` for the nil id and for configured workspaces.
    pub fn check_deletable(&self) -> Result<()> {
        if self.shown.id.is_nil() {
            return Err(Error::new(Code::DefaultWorkspace, "Cannot delete default host workspace"));
        }
        if self.origin == Origin::Configured {
            return Err(Error::new(
                Code::DefaultWorkspace,
                "This workspace comes from the server's configuration; remove it there and restart",
            ));
        }
        Ok(())
    }

    /// Whether nothing is under way that the root is needed for.
    ///
    /// # Errors
    /// `BuildRunning`.
    pub fn check_idle(&self) -> Result<()> {
        if self.job.is_some() || self.shown.status == Status::Building {
            return Err(Error::new(Code::BuildRunning, "Workspace build already in progress"));
        }
        Ok(())
    }
}

/// The 404 of a workspace id.
pub fn not_found(id: &str) -> Error {
    Error::new(Code::WorkspaceNotFound, format!("Workspace {id} not found"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::Label;

    fn record(kind: Kind, status: Status, job: Option<Job>) -> Record {
        let id = uuid::Uuid::new_v4();
        let mut record = Record::new(id, Label::parse("x").unwrap(), kind, "/x".into(), Origin::Api);
        record.shown.status = status;
        record.job = job;
        record
    }

    #[test]
    fn builds() {
        use Distro::{DebianBookworm as Deb, UbuntuNoble as Noble};
        let build = |status, job, rebuild, has_root, built| {
            let mut record = record(Kind::Container, status, job);
            record
                .start_build(Some(Base::Distro(Deb)), rebuild, has_root, built)
                .map(|()| record.job)
                .map_err(|e| e.code())
        };
        let fresh = Ok(Some(Job::Build { fresh: true }));
        let kept = Ok(Some(Job::Build { fresh: false }));
        assert_eq!(build(Status::Pending, None, false, false, None), fresh);
        assert_eq!(build(Status::Error, None, false, true, Some(Deb)), kept);
        assert_eq!(build(Status::Ready, None, false, true, Some(Deb)), kept);
        assert_eq!(build(Status::Ready, None, true, true, Some(Deb)), fresh);
        assert_eq!(build(Status::Ready, None, false, true, Some(Noble)), Err(Code::RebuildRequired));
        assert_eq!(build(Status::Ready, None, true, true, Some(Noble)), fresh);
        assert_eq!(
            build(Status::Building, Some(Job::RerunInit), true, true, Some(Deb)),
            Err(Code::BuildRunning)
        );
        let mut own = record(Kind::Container, Status::Ready, None);
        own.shown.image = Some("mine".into());
        let mut of = |wanted: Option<&str>, rebuild| {
            own.job = None;
            own.shown.status = Status::Ready;
            let wanted = wanted.map(|name| Base::Image(name.to_owned()));
            own.start_build(wanted, rebuild, true, Some(Noble)).map_err(|error| error.code())
        };
        assert_eq!((of(None, false), of(Some("mine"), false)), (Ok(()), Ok(())));
        assert_eq!((of(Some("other"), false), of(Some("other"), true)), (Err(Code::RebuildRequired), Ok(())));
        let mut host = record(Kind::Host, Status::Ready, None);
        assert_eq!(host.start_build(None, false, false, None).unwrap_err().code(), Code::NotAContainer);
    }
}
