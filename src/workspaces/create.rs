//! What a client may ask for when it makes or changes a workspace, checked into a record.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::record::{WorkspaceKind, WorkspaceView};
use super::resources::Resources;
use crate::base::fields::KnownFields as Known;
use crate::base::ids::{Distro, Label, Network, check_env_vars};
use crate::base::{Code, Error, Result, limits, object};
use crate::library::Template;
use crate::store::allowlist::{self, MountRequest};

/// The body of `POST /api/workspaces`; unknown fields are ignored, as observed.
#[derive(Debug, Deserialize)]
pub struct CreateWorkspace {
    /// Required.
    pub name: String,
    /// Default `host`.
    pub workspace_type: Option<WorkspaceKind>,
    /// The folder.
    pub path: Option<String>,
    /// Forces `container`.
    pub template: Option<String>,
    /// All that can be changed later as well.
    #[serde(flatten)]
    pub fields: WorkspaceFields,
}

/// What both `POST` and `PUT` take.
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
    /// Fragments; at creation they come from a template only, as observed.
    pub init_scripts: Option<Vec<String>>,
    /// Script; blank clears.
    pub init_script: Option<String>,
    /// What a container sees of the network.
    pub network: Option<Network>,
    /// The same in sandboxed.sh's words: false is private.
    pub shared_network: Option<bool>,
    /// Folders of the host in its container; `[]` clears.
    #[serde(default, deserialize_with = "object::optional_list")]
    pub mounts: Option<Vec<MountRequest>>,
    /// `exit_node` or `tailnet_only`.
    pub tailscale_mode: Option<String>,
    /// MCP servers.
    pub mcps: Option<Vec<String>>,
    /// Profile; blank clears.
    pub config_profile: Option<String>,
    /// Limits; `{}` clears.
    #[serde(default, deserialize_with = "object::optional")]
    pub resources: Option<Resources>,
    /// After so long without commands and terminals its container is stopped; 0: never.
    pub idle_timeout_secs: Option<u64>,
}

/// The body of `PUT /api/workspaces/:id`.
#[derive(Debug, Default, Deserialize)]
pub struct UpdateWorkspace {
    /// A new label.
    pub name: Option<String>,
    /// A label only; blank clears.
    pub template: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub fields: WorkspaceFields,
}

impl CreateWorkspace {
    /// What a body may hold.
    pub fn known() -> Known {
        Known::from_names(&["name", "workspace_type", "path", "template"]).merge(WorkspaceFields::known())
    }

    /// What makes sense for a container only was given without a type, so that the workspace would be on the host; the
    /// warning, where a path says that this is meant.
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
    /// What a body may hold.
    pub fn known() -> Known {
        // Clients send the whole object back; what cannot change is left as it is, as observed.
        Known::from_names(&["name", "template", "warnings"])
            .merge(Known::from_type::<WorkspaceView>())
            .merge(WorkspaceFields::known())
    }

    /// Applies everything that was given, or nothing.
    ///
    /// # Errors
    /// 400s that name the field.
    pub fn apply(self, shown: &mut WorkspaceView) -> Result<()> {
        if let Some(name) = self.name {
            shown.name = Label::parse(&name)?;
        }
        if let Some(template) = self.template {
            shown.template = not_blank(template);
        }
        self.fields.apply(shown)
    }
}

impl WorkspaceFields {
    fn known() -> Known {
        Known::from_type::<WorkspaceFields>()
            .with_nested("resources", Known::from_type::<Resources>())
            .with_nested("mounts", Known::from_type::<MountRequest>())
    }

    /// These on top of a template's: variables and lists of both, of everything else what was asked for, or else what
    /// the template says, as observed.
    ///
    /// # Errors
    /// `Conflict` when a secret of the template cannot be opened.
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
        // Who asks for another distribution or image does not want the template's.
        let image = self.image.or_else(|| base.image.clone().filter(|_| self.distro.is_none()));
        // Two words for one thing: whoever says either has said it.
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

    /// Applies everything that was given.
    ///
    /// # Errors
    /// 400s that name the field.
    pub fn apply(self, shown: &mut WorkspaceView) -> Result<()> {
        if let Some(distro) = self.distro {
            shown.distro = not_blank(distro).map(|distro| Distro::parse(distro.trim())).transpose()?;
            shown.image = None;
        }
        if let Some(image) = self.image {
            shown.image = not_blank(image);
        }
        if let Some(vars) = self.env_vars {
            check_env_vars(vars.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
            shown.env_vars = vars;
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
            shown.init_script = not_blank(script);
        }
        if let Some(mode) = self.tailscale_mode {
            if !["exit_node", "tailnet_only"].contains(&mode.as_str()) {
                return Err(Error::new(Code::InvalidPayload, "tailscale_mode is exit_node or tailnet_only"));
            }
            shown.tailscale_mode = Some(mode);
        }
        if let Some(profile) = self.config_profile {
            shown.config_profile = not_blank(profile);
        }
        let lists = [
            ("skills", self.skills, &mut shown.skills),
            ("tools", self.tools, &mut shown.tools),
            ("plugins", self.plugins, &mut shown.plugins),
            ("init_scripts", self.init_scripts, &mut shown.init_scripts),
            ("mcps", self.mcps, &mut shown.mcps),
        ];
        for (field, given, kept) in lists {
            if let Some(given) = given {
                *kept = names(field, given)?;
            }
        }
        if let Some(resources) = self.resources {
            resources.check(shown.workspace_type)?;
            shown.resources = Some(resources).filter(|resources| *resources != Resources::default());
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
            shown.idle_timeout_secs = Some(secs);
        }
        if let Some(mounts) = self.mounts {
            if shown.workspace_type == WorkspaceKind::Host && !mounts.is_empty() {
                return Err(Error::new(
                    Code::NotAContainer,
                    "Only a container can have mounts; a host workspace sees the host's folders as they are",
                ));
            }
            allowlist::check(&mounts)?;
            shown.mounts = mounts;
        }
        apply_network(self.network, self.shared_network, shown)
    }
}

/// Whichever word was used, the record says both. On the host itself there is only the host's network; sandboxed.sh's
/// field is kept there, as observed.
fn apply_network(network: Option<Network>, shared: Option<bool>, shown: &mut WorkspaceView) -> Result<()> {
    let before = shown.network();
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
    let host = shown.workspace_type == WorkspaceKind::Host;
    if host && network.is_some_and(|network| network != Network::Host) {
        return Err(Error::new(
            Code::NotAContainer,
            "Only a container can have another network than the host's; make the workspace with \
             \"workspace_type\":\"container\"",
        ));
    }
    if network.is_some() || shared.is_some() {
        shown.shared_network = shared.or(Some(after == Network::Host));
    }
    shown.network = Some(if host { Network::Host } else { after });
    Ok(())
}

/// Trims, drops blanks and repetitions, keeps the order.
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

/// Which folders the API may use for workspaces.
#[derive(Clone, Debug)]
pub struct FolderPolicy {
    /// berth's own.
    pub data_dir: PathBuf,
    /// What a relative path is relative to: the default host workspace.
    pub base: PathBuf,
    /// Where host workspaces and custom roots may lie.
    pub authorized_roots: Vec<PathBuf>,
}

impl FolderPolicy {
    /// A host workspace's folder. Made if it does not exist, once everything else has been checked.
    ///
    /// # Errors
    /// `InvalidPath` with the places that are allowed.
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

    /// A container's root where a client insists on a place: it must not exist yet, so that no build and no
    /// deletion can ever touch what was there before.
    ///
    /// # Errors
    /// `InvalidPath` with what is allowed.
    pub fn container_folder(&self, given: &str) -> Result<PathBuf> {
        let path = self.resolve(given)?;
        if path.symlink_metadata().is_ok() {
            return Err(Error::new(
                Code::InvalidPath,
                format!(
                    "{} exists; a container's folder is made by berth. Leave out path, or name a folder that does not exist yet",
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

    /// The folder with every link of its existing part resolved, inside an authorized root, outside our own data.
    fn resolve(&self, given: &str) -> Result<PathBuf> {
        let refuse = |message: String| Error::new(Code::InvalidPath, message).detail("path", given);
        if given.trim().is_empty() || given.contains('\0') || given.contains(char::is_control) {
            return Err(refuse("path is empty or contains control characters".into()));
        }
        let path = self.base.join(given);
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(refuse("path may not contain '..'".into()));
        }
        // The name's existing part is resolved, the rest is what will be made below it.
        let mut existing = path.as_path();
        let mut rest = Vec::new();
        let real = loop {
            match existing.canonicalize() {
                Ok(real) => break real,
                Err(_) => {
                    if existing.symlink_metadata().is_ok() {
                        return Err(refuse(format!("{} is a link that leads nowhere", existing.display())));
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
                "path may not be, contain or lie in berth's data folder {}",
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
                "path must lie in an authorized root ({}); more are allowed with --authorized-root",
                allowed.join(", ")
            )));
        }
        Ok(real)
    }
}
