//! Request bodies that create or change a workspace, and their validation into a record.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::kind::WorkspaceKind;
use super::record::WorkspaceView;
use super::resources::Resources;
use crate::base::ids::{Distro, Label, Network, check_env_vars};
use crate::base::unknown_fields::KnownFields as Known;
use crate::base::{Code, Error, Result, limits, object};
use crate::library::Template;
use crate::store::allowlist::{self, MountRequest};

/// The body of `POST /api/workspaces`. Unknown fields are ignored, as sandboxed.sh does.
#[derive(Debug, Deserialize)]
pub struct CreateWorkspace {
    pub name: String,
    /// Default: `host`.
    pub workspace_type: Option<WorkspaceKind>,
    /// The folder of a host workspace, or a container's root.
    pub path: Option<String>,
    /// A template's name. The workspace is then a container.
    pub template: Option<String>,
    /// Fields that can also be changed later.
    #[serde(flatten)]
    pub fields: WorkspaceFields,
}

/// The fields that both `POST` and `PUT` accept.
#[derive(Debug, Default, Deserialize)]
pub struct WorkspaceFields {
    /// Library skills.
    pub skills: Option<Vec<String>>,
    /// Library tools.
    pub tools: Option<Vec<String>>,
    /// Plugins.
    pub plugins: Option<Vec<String>>,
    /// Distribution; blank clears.
    pub distro: Option<String>,
    /// Image instead of a distribution's, by name or id; blank clears.
    pub image: Option<String>,
    /// Variables.
    pub env_vars: Option<BTreeMap<String, String>>,
    /// Library fragments. At creation they come only from a template, as in sandboxed.sh.
    pub init_scripts: Option<Vec<String>>,
    /// Script; blank clears.
    pub init_script: Option<String>,
    /// The container's network.
    pub network: Option<Network>,
    /// sandboxed.sh's field for the same setting; false means private.
    pub shared_network: Option<bool>,
    /// Host folders mounted in the container; `[]` clears.
    #[serde(default, deserialize_with = "object::optional_list")]
    pub mounts: Option<Vec<MountRequest>>,
    /// `exit_node` or `tailnet_only`.
    pub tailscale_mode: Option<String>,
    /// MCP servers.
    pub mcps: Option<Vec<String>>,
    /// Profile; blank clears.
    pub config_profile: Option<String>,
    /// Resource limits; `{}` clears.
    #[serde(default, deserialize_with = "object::optional")]
    pub resources: Option<Resources>,
    /// A container without commands and terminals is stopped after this time; 0: never.
    pub idle_timeout_secs: Option<u64>,
}

/// The body of `PUT /api/workspaces/:id`.
#[derive(Debug, Default, Deserialize)]
pub struct UpdateWorkspace {
    /// The new label.
    pub name: Option<String>,
    /// A label without effect. A blank text removes it.
    pub template: Option<String>,
    #[serde(flatten)]
    pub fields: WorkspaceFields,
}

impl CreateWorkspace {
    /// The fields that a body may contain.
    pub fn known() -> Known {
        Known::from_names(&["name", "workspace_type", "path", "template"]).merge(WorkspaceFields::known())
    }

    /// Checks a body without `workspace_type` for fields that only a container supports. Returns a warning if the
    /// body has a path, so that a host workspace may be intended.
    ///
    /// # Errors
    /// `WorkspaceTypeRequired` without a path.
    pub fn check_type(&self) -> Result<Option<String>> {
        let blank = |text: &Option<String>| text.as_deref().is_none_or(|text| text.trim().is_empty());
        let fields = &self.fields;
        let given = [
            ("distro", !blank(&fields.distro)),
            ("image", !blank(&fields.image)),
            ("init_script", !blank(&fields.init_script)),
            ("mounts", fields.mounts.as_ref().is_some_and(|mounts| !mounts.is_empty())),
            ("resources", fields.resources.is_some_and(|resources| resources != Resources::default())),
            ("network", fields.network.is_some_and(|network| network != Network::Host)),
            ("idle_timeout_secs", fields.idle_timeout_secs.is_some()),
        ];
        let given: Vec<&str> = given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        if given.is_empty() || self.workspace_type.is_some() || !blank(&self.template) {
            return Ok(None);
        }
        let names = given.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        if !blank(&self.path) {
            return Ok(Some(format!(
                "{names} without `workspace_type`: this is a host workspace, and its commands run on the host itself; for a \
                 container add \"workspace_type\": \"container\""
            )));
        }
        let message = format!(
            "workspace_type is missing: {names} suggests a container, and without workspace_type the commands would run on \
             the host itself; add \"workspace_type\": \"container\", or \"host\""
        );
        Err(Error::new(Code::WorkspaceTypeRequired, message)
            .detail("field", "workspace_type")
            .detail("given", given))
    }
}

impl UpdateWorkspace {
    /// The fields that a body may contain.
    pub fn known() -> Known {
        // Clients send the whole object back. Fields that cannot change are ignored, as in sandboxed.sh.
        Known::from_names(&["name", "template", "warnings"])
            .merge(Known::from_type::<WorkspaceView>())
            .merge(WorkspaceFields::known())
    }

    /// Applies all fields, or none.
    ///
    /// # Errors
    /// 400s that name the field.
    pub fn apply(self, view: &mut WorkspaceView) -> Result<()> {
        if let Some(name) = self.name {
            view.name = Label::parse(&name)?;
        }
        if let Some(template) = self.template {
            view.template = not_blank(template);
        }
        self.fields.apply(view)
    }
}

impl WorkspaceFields {
    fn known() -> Known {
        Known::from_type::<WorkspaceFields>()
            .with_nested("resources", Known::from_type::<Resources>())
            .with_nested("mounts", Known::from_type::<MountRequest>())
    }

    /// Merges these fields with a template's, as sandboxed.sh does: variables, skills and tools are combined; other
    /// fields override the template's.
    ///
    /// # Errors
    /// `Conflict` if a secret of the template cannot be decrypted.
    pub fn over(self, template: &Template) -> Result<WorkspaceFields> {
        let base = &template.fields;
        let both =
            |base: &[String], own: Option<Vec<String>>| Some([base, &own.unwrap_or_default()].concat());
        let or = |base: &[String], own: Option<Vec<String>>| {
            Some(own.filter(|own| !own.is_empty()).unwrap_or_else(|| base.to_vec()))
        };
        let mut env_vars = template.variables()?.clone();
        env_vars.extend(self.env_vars.unwrap_or_default());
        let text = |own: Option<String>, base: &Option<String>| own.or_else(|| base.clone());
        // A requested distribution replaces the template's image.
        let image = self.image.or_else(|| base.image.clone().filter(|_| self.distro.is_none()));
        // Both fields set the network, so either one overrides the template's pair.
        let (network, shared_network) = match (self.network, self.shared_network) {
            (None, None) => (base.network, base.shared_network),
            own => own,
        };
        Ok(WorkspaceFields {
            skills: both(&base.skills, self.skills),
            tools: both(&base.tools, self.tools),
            plugins: or(&base.plugins, self.plugins),
            mcps: or(&base.mcps, self.mcps),
            distro: text(self.distro, &base.distro),
            image,
            env_vars: Some(env_vars),
            resources: self.resources,
            idle_timeout_secs: self.idle_timeout_secs,
            init_scripts: Some(base.init_scripts.clone()),
            init_script: text(self.init_script, &Some(base.init_script.clone())),
            network,
            shared_network,
            mounts: self.mounts.or_else(|| Some(base.mounts.clone())),
            tailscale_mode: text(self.tailscale_mode, &base.tailscale_mode),
            config_profile: text(self.config_profile, &base.config_profile),
        })
    }

    /// Applies all fields.
    ///
    /// # Errors
    /// 400s that name the field.
    pub fn apply(self, view: &mut WorkspaceView) -> Result<()> {
        if let Some(distro) = self.distro {
            view.distro = not_blank(distro).map(|distro| Distro::parse(distro.trim())).transpose()?;
            view.image = None;
        }
        if let Some(image) = self.image {
            view.image = not_blank(image);
        }
        if let Some(vars) = self.env_vars {
            check_env_vars(vars.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
            view.env_vars = vars;
        }
        if let Some(script) = self.init_script {
            if script.len() > limits::INIT_SCRIPT_BYTES || script.contains('\0') {
                return Err(Error::new(
                    Code::InvalidPayload,
                    format!(
                        "init_script is text of at most {} bytes, without NUL bytes",
                        limits::INIT_SCRIPT_BYTES
                    ),
                ));
            }
            view.init_script = not_blank(script);
        }
        if let Some(mode) = self.tailscale_mode {
            if !["exit_node", "tailnet_only"].contains(&mode.as_str()) {
                return Err(Error::new(Code::InvalidPayload, "tailscale_mode is exit_node or tailnet_only"));
            }
            view.tailscale_mode = Some(mode);
        }
        if let Some(profile) = self.config_profile {
            view.config_profile = not_blank(profile);
        }
        let lists = [
            ("skills", self.skills, &mut view.skills),
            ("tools", self.tools, &mut view.tools),
            ("plugins", self.plugins, &mut view.plugins),
            ("init_scripts", self.init_scripts, &mut view.init_scripts),
            ("mcps", self.mcps, &mut view.mcps),
        ];
        for (field, given, kept) in lists {
            if let Some(given) = given {
                *kept = names(field, given)?;
            }
        }
        if let Some(resources) = self.resources {
            resources.check(view.workspace_type)?;
            view.resources = Some(resources).filter(|resources| *resources != Resources::default());
        }
        if let Some(secs) = self.idle_timeout_secs {
            if secs > limits::IDLE_TIMEOUT_MOST {
                return Err(Error::new(
                    Code::InvalidPayload,
                    format!(
                        "idle_timeout_secs is a number of seconds from 0 (never) to {}",
                        limits::IDLE_TIMEOUT_MOST
                    ),
                ));
            }
            view.idle_timeout_secs = Some(secs);
        }
        if let Some(mounts) = self.mounts {
            if view.workspace_type == WorkspaceKind::Host && !mounts.is_empty() {
                return Err(Error::new(
                    Code::NotAContainer,
                    "Only a container can have mounts; a host workspace sees the host's folders as they are",
                ));
            }
            allowlist::check(&mounts)?;
            view.mounts = mounts;
        }
        apply_network(self.network, self.shared_network, view)
    }
}

/// Applies either network field and stores both. A host workspace always has the host's network; its `shared_network`
/// is stored unchanged, as in sandboxed.sh.
fn apply_network(network: Option<Network>, shared: Option<bool>, view: &mut WorkspaceView) -> Result<()> {
    let before = view.network();
    let after = match (network, shared) {
        (None, None) => before,
        (Some(network), Some(shared)) if shared != (network == Network::Host) => {
            return Err(Error::new(
                Code::InvalidPayload,
                "network and shared_network contradict each other: shared_network is true for \"host\" alone; \
                 leave it out",
            ));
        }
        (Some(network), _) => network,
        (None, Some(true)) => Network::Host,
        (None, Some(false)) if before == Network::Host => Network::Private,
        (None, Some(false)) => before,
    };
    let host = view.workspace_type == WorkspaceKind::Host;
    if host && network.is_some_and(|network| network != Network::Host) {
        return Err(Error::new(
            Code::NotAContainer,
            "Only a container can have another network than the host's; create the workspace with \
             \"workspace_type\":\"container\"",
        ));
    }
    if network.is_some() || shared.is_some() {
        view.shared_network = shared.or(Some(after == Network::Host));
    }
    view.network = Some(if host { Network::Host } else { after });
    Ok(())
}

/// Trims names and drops blanks and duplicates. Keeps the order.
fn names(field: &str, given: Vec<String>) -> Result<Vec<String>> {
    const MOST: usize = 1000;
    let mut kept: Vec<String> = Vec::new();
    for name in given {
        let name = name.trim();
        if name.len() > limits::NAME_BYTES || name.contains(char::is_control) {
            return Err(Error::new(
                Code::InvalidName,
                format!(
                    "{field} holds names of at most {} bytes without control characters",
                    limits::NAME_BYTES
                ),
            ));
        }
        if !name.is_empty() && !kept.iter().any(|known| known == name) {
            kept.push(name.to_owned());
        }
    }
    if kept.len() > MOST {
        return Err(Error::new(Code::InvalidPayload, format!("{field} holds at most {MOST} names")));
    }
    Ok(kept)
}

fn not_blank(text: String) -> Option<String> {
    (!text.trim().is_empty()).then_some(text)
}

/// The folders that the API may use for workspaces.
#[derive(Clone, Debug)]
pub struct FolderPolicy {
    /// berth's data folder.
    pub data_dir: PathBuf,
    /// The base of relative paths: the folder of the default host workspace.
    pub base: PathBuf,
    /// Host workspaces and custom container roots must be inside one of these.
    pub authorized_roots: Vec<PathBuf>,
}

impl FolderPolicy {
    /// Returns the folder of a host workspace. The caller creates it after all other checks.
    ///
    /// # Errors
    /// `InvalidPath` with the allowed folders.
    pub fn host_folder(&self, given: &str) -> Result<PathBuf> {
        let path = self.resolve(given)?;
        if path.exists() && !path.is_dir() {
            return Err(Error::new(
                Code::InvalidPath,
                format!("{} exists and is not a folder", path.display()),
            ));
        }
        Ok(path)
    }

    /// Returns a container's root at a path chosen by the client. It must not exist, so that no build or deletion can
    /// touch existing files.
    ///
    /// # Errors
    /// `InvalidPath` with the requirement.
    pub fn container_folder(&self, given: &str) -> Result<PathBuf> {
        let path = self.resolve(given)?;
        if path.symlink_metadata().is_ok() {
            return Err(Error::new(
                Code::InvalidPath,
                format!(
                    "{} already exists; berth creates a container's folder, so omit path or name a folder that does not exist",
                    path.display()
                ),
            ));
        }
        if self.authorized_roots.contains(&path) {
            return Err(Error::new(
                Code::InvalidPath,
                "An authorized root itself cannot be a container's folder",
            ));
        }
        Ok(path)
    }

    /// Resolves symbolic links in the existing part of a path, which must be inside an authorized root and outside
    /// berth's data folder.
    fn resolve(&self, given: &str) -> Result<PathBuf> {
        let refuse = |message: String| Error::new(Code::InvalidPath, message).detail("path", given);
        if given.trim().is_empty() || given.contains('\0') || given.contains(char::is_control) {
            return Err(refuse("path is empty or contains control characters".into()));
        }
        let path = self.base.join(given);
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(refuse("path may not contain '..'".into()));
        }
        // The existing part is resolved; the rest will be created below it.
        let mut existing = path.as_path();
        let mut rest = Vec::new();
        let real = loop {
            match existing.canonicalize() {
                Ok(real) => break real,
                Err(_) => {
                    if existing.symlink_metadata().is_ok() {
                        return Err(refuse(format!("{} is a dangling symbolic link", existing.display())));
                    }
                    rest.push(existing.file_name().ok_or_else(|| refuse("path cannot be resolved".into()))?);
                    existing = existing.parent().unwrap_or(Path::new("/"));
                }
            }
        };
        let mut real = real;
        real.extend(rest.iter().rev());
        if real.to_str().is_none() {
            return Err(refuse("path is not UTF-8".into()));
        }
        let data = self.data_dir.canonicalize().unwrap_or_else(|_| self.data_dir.clone());
        if real.starts_with(&data) || data.starts_with(&real) {
            return Err(refuse(format!(
                "path may not be, contain or be inside berth's data folder {}",
                data.display()
            )));
        }
        let roots: Vec<PathBuf> = self
            .authorized_roots
            .iter()
            .map(|root| root.canonicalize().unwrap_or_else(|_| root.clone()))
            .collect();
        if real == Path::new("/") || !roots.iter().any(|root| real.starts_with(root)) {
            let allowed: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
            return Err(refuse(format!(
                "path must be inside an authorized root ({}); add one with --authorized-root",
                allowed.join(", ")
            )));
        }
        Ok(real)
    }
}
