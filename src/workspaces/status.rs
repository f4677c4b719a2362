//! The state machine of a workspace's status: pure functions that run inside a registry update, so that no other
//! change comes between a check and the change that it allows.

use super::kind::WorkspaceKind;
use super::record::{WorkspaceJob, WorkspaceOrigin, WorkspaceRecord, WorkspaceStatus};
use crate::base::ids::Distro;
use crate::base::{Code, Error, Result};

/// The base from which a container is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerBase {
    /// A distribution's image.
    Distro(Distro),
    /// An image with this name or id.
    Image(String),
}

impl WorkspaceRecord {
    /// Begins a build. `wanted` is the requested base, if it differs from the current one. `has_root` is true if a
    /// complete root folder exists; it was built from `built`, if that can be determined.
    ///
    /// # Errors
    /// Fails with `NotAContainer`, with `BuildRunning`, or with `RebuildRequired` if an existing root folder would be
    /// lost.
    pub fn start_build(
        &mut self,
        wanted: Option<ContainerBase>,
        rebuild: bool,
        has_root: bool,
        built: Option<Distro>,
    ) -> Result<()> {
        if self.view.workspace_type != WorkspaceKind::Container {
            return Err(Error::new(Code::NotAContainer, "Workspace is not a container type"));
        }
        self.check_idle()?;
        let is = |distro: Distro| built.is_none_or(|built| built == distro);
        let another = match &wanted {
            Some(ContainerBase::Distro(distro)) => {
                (!is(*distro)).then(|| format!("distribution than {distro}"))
            }
            Some(ContainerBase::Image(image)) => {
                (self.view.image.as_ref() != Some(image)).then(|| format!("image than {image}"))
            }
            // The distribution of a custom image is unknown, so it is not compared.
            None if self.view.image.is_some() => None,
            None => {
                let distro = self.view.distro.unwrap_or(Distro::DEFAULT);
                (!is(distro)).then(|| format!("distribution than {distro}"))
            }
        };
        if let Some(another) = another.filter(|_| has_root && !rebuild) {
            return Err(Error::new(
                Code::RebuildRequired,
                format!(
                    "The container was built from another {another}; a build would destroy its files. Pass \"rebuild\": true to rebuild it"
                ),
            ));
        }
        match wanted {
            Some(ContainerBase::Distro(distro)) => {
                self.view.distro = Some(distro);
                self.view.image = None;
            }
            Some(ContainerBase::Image(image)) => self.view.image = Some(image),
            None => {}
        }
        self.job = Some(WorkspaceJob::Build { fresh: rebuild || !has_root });
        self.view.status = WorkspaceStatus::Building;
        self.view.error_message = None;
        Ok(())
    }

    /// Begins another run of the init script.
    ///
    /// # Errors
    /// Fails with `NotAContainer`, with `NotReady` if no root folder exists, with `NoInitScript`, or with
    /// `BuildRunning`.
    pub fn start_rerun(&mut self, has_root: bool) -> Result<()> {
        if self.view.workspace_type != WorkspaceKind::Container {
            return Err(Error::new(Code::NotAContainer, "Rerun init only works for container workspaces"));
        }
        self.check_idle()?;
        if !has_root {
            return Err(Error::new(Code::NotReady, "Container doesn't exist yet. Build it first."));
        }
        if self.view.init_script.is_none() && self.view.init_scripts.is_empty() {
            return Err(Error::new(Code::NoInitScript, "No init script configured for this workspace"));
        }
        self.job = Some(WorkspaceJob::RerunInit);
        self.view.status = WorkspaceStatus::Building;
        self.view.error_message = None;
        Ok(())
    }

    /// Begins to restore a snapshot.
    ///
    /// # Errors
    /// Fails with `BuildRunning`.
    pub fn start_restore(&mut self) -> Result<()> {
        self.check_idle()?;
        self.job = Some(WorkspaceJob::Restore);
        self.view.status = WorkspaceStatus::Building;
        self.view.error_message = None;
        Ok(())
    }

    /// Ends the operation in progress. `error` is the error message if the operation failed.
    pub fn finish(&mut self, error: Option<String>) {
        self.job = None;
        self.view.status = if error.is_some() { WorkspaceStatus::Error } else { WorkspaceStatus::Ready };
        self.view.error_message = error;
    }

    /// Checks that clients may delete the workspace.
    ///
    /// # Errors
    /// Fails with `DefaultWorkspace` for the workspace with the nil id and for configured workspaces.
    pub fn check_deletable(&self) -> Result<()> {
        if self.view.id.is_nil() {
            return Err(Error::new(Code::DefaultWorkspace, "Cannot delete default host workspace"));
        }
        if self.origin == WorkspaceOrigin::Configured {
            return Err(Error::new(
                Code::DefaultWorkspace,
                "This workspace comes from the server's configuration; remove it there and restart",
            ));
        }
        Ok(())
    }

    /// Checks that no operation is in progress.
    ///
    /// # Errors
    /// Fails with `BuildRunning`.
    pub fn check_idle(&self) -> Result<()> {
        if self.job.is_some() || self.view.status == WorkspaceStatus::Building {
            return Err(Error::new(Code::BuildRunning, "Workspace build already in progress"));
        }
        Ok(())
    }
}

/// Returns the error (404) for an unknown workspace id.
pub fn not_found(id: &str) -> Error {
    Error::new(Code::WorkspaceNotFound, format!("Workspace {id} not found"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::Label;

    fn record(kind: WorkspaceKind, status: WorkspaceStatus, job: Option<WorkspaceJob>) -> WorkspaceRecord {
        let id = uuid::Uuid::new_v4();
        let mut record =
            WorkspaceRecord::new(id, Label::parse("x").unwrap(), kind, "/x".into(), WorkspaceOrigin::Api);
        record.view.status = status;
        record.job = job;
        record
    }

    #[test]
    fn builds_keep_or_replace_the_root() {
        use Distro::{DebianBookworm as Deb, UbuntuNoble as Noble};
        let build = |status, job, rebuild, has_root, built| {
            let mut record = record(WorkspaceKind::Container, status, job);
            record
                .start_build(Some(ContainerBase::Distro(Deb)), rebuild, has_root, built)
                .map(|()| record.job)
                .map_err(|e| e.code())
        };
        let fresh = Ok(Some(WorkspaceJob::Build { fresh: true }));
        let kept = Ok(Some(WorkspaceJob::Build { fresh: false }));
        assert_eq!(build(WorkspaceStatus::Pending, None, false, false, None), fresh);
        assert_eq!(build(WorkspaceStatus::Error, None, false, true, Some(Deb)), kept);
        assert_eq!(build(WorkspaceStatus::Ready, None, false, true, Some(Deb)), kept);
        assert_eq!(build(WorkspaceStatus::Ready, None, true, true, Some(Deb)), fresh);
        assert_eq!(build(WorkspaceStatus::Ready, None, false, true, Some(Noble)), Err(Code::RebuildRequired));
        assert_eq!(build(WorkspaceStatus::Ready, None, true, true, Some(Noble)), fresh);
        assert_eq!(
            build(WorkspaceStatus::Building, Some(WorkspaceJob::RerunInit), true, true, Some(Deb)),
            Err(Code::BuildRunning)
        );
        let mut own = record(WorkspaceKind::Container, WorkspaceStatus::Ready, None);
        own.view.image = Some("mine".into());
        let mut of = |wanted: Option<&str>, rebuild| {
            own.job = None;
            own.view.status = WorkspaceStatus::Ready;
            let wanted = wanted.map(|name| ContainerBase::Image(name.to_owned()));
            own.start_build(wanted, rebuild, true, Some(Noble)).map_err(|error| error.code())
        };
        assert_eq!((of(None, false), of(Some("mine"), false)), (Ok(()), Ok(())));
        assert_eq!((of(Some("other"), false), of(Some("other"), true)), (Err(Code::RebuildRequired), Ok(())));
        let mut host = record(WorkspaceKind::Host, WorkspaceStatus::Ready, None);
        assert_eq!(host.start_build(None, false, false, None).unwrap_err().code(), Code::NotAContainer);
    }
}
