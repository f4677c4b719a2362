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

/// The body of `POST /api/workspaces`. Unknown fields are ignored, as in sandboxed.sh.
#[derive(Debug, Deserialize)]
pub struct CreateWorkspace {
    pub name: String,
    /// The kind of the workspace; `host` if absent.
    pub workspace_type: Option<WorkspaceKind>,
    /// The folder of a host workspace, or the root folder of a container.
    pub path: Option<String>,
    /// The name of a template. With a template the workspace is a container.
    pub template: Option<String>,
    /// The fields that can also be changed later.
    #[serde(flatten)]
    pub fields: WorkspaceFields,
}

/// The fields that both `POST` and `PUT` accept.
#[derive(Debug, Default, Deserialize)]
pub struct WorkspaceFields {
    /// The names of library skills.
    pub skills: Option<Vec<String>>,
    /// The names of library tools.
    pub tools: Option<Vec<String>>,
    /// Plugin identifiers.
    pub plugins: Option<Vec<String>>,
    /// The distribution; a blank text removes it.
    pub distro: Option<String>,
    /// The name or id of an image to use instead of the distribution's image; a blank text removes it.
    pub image: Option<String>,
    /// The environment variables of every command.
    pub env_vars: Option<BTreeMap<String, String>>,
    /// The names of library fragments that run before the init script. A new workspace gets them only from a template,
    /// as in sandboxed.sh.
    pub init_scripts: Option<Vec<String>>,
    /// The init script; a blank text removes it.
    pub init_script: Option<String>,
    /// The container's network.
    pub network: Option<Network>,
    /// sandboxed.sh's field for the network; false means a private network.
    pub shared_network: Option<bool>,
    /// Host folders that are mounted in the container; `[]` removes all.
    #[serde(default, deserialize_with = "object::optional_list")]
    pub mounts: Option<Vec<MountRequest>>,
    /// The Tailscale mode, which berth only stores: `exit_node` or `tailnet_only`.
    pub tailscale_mode: Option<String>,
    /// The names of MCP servers.
    pub mcps: Option<Vec<String>>,
    /// The configuration profile; a blank text removes it.
    pub config_profile: Option<String>,
    /// Resource limits; `{}` removes all.
    #[serde(default, deserialize_with = "object::optional")]
    pub resources: Option<Resources>,
    /// The time in seconds after which a container without running commands and open terminals is stopped; 0 means
    /// never.
    pub idle_timeout_secs: Option<u64>,
}

/// The body of `PUT /api/workspaces/:id`.
#[derive(Debug, Default, Deserialize)]
pub struct UpdateWorkspace {
    /// The new name of the workspace.
    pub name: Option<String>,
    /// The template's name, which is only shown to clients. A blank text removes it.
    pub template: Option<String>,
    #[serde(flatten)]
    pub fields: WorkspaceFields,
}

impl CreateWorkspace {
    /// Returns the fields that a body may contain.
    pub fn known() -> Known {
        Known::from_names(&["name", "workspace_type", "path", "template"]).merge(WorkspaceFields::known())
    }

    /// Checks whether a body without `workspace_type` has fields that only a container supports. Returns a warning if
    /// the body also has a path, because the client may intend a host workspace.
    ///
    /// # Errors
    /// Fails with `WorkspaceTypeRequired` if the body has such fields but no path.
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
    /// Returns the fields that a body may contain.
    pub fn known() -> Known {
        // Clients may send the whole workspace object back. Fields that cannot be changed are ignored, as in
        // sandboxed.sh.
        Known::from_names(&["name", "template", "warnings"])
            .merge(Known::from_type::<WorkspaceView>())
            .merge(WorkspaceFields::known())
    }

    /// Applies all fields to the workspace, or none.
    ///
    /// # Errors
    /// Fails with status 400 and the name of the invalid field.
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
    /// Fails with `Conflict` if a secret of the template cannot be decrypted.
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
        // If the request names a distribution, the template's image is not used.
        let image = self.image.or_else(|| base.image.clone().filter(|_| self.distro.is_none()));
        // Both fields set the network, so if the request has either of them, the template's values of both are not
        // used.
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

    /// Applies all fields to the workspace.
    ///
    /// # Errors
    /// Fails with status 400 and the name of the invalid field.
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

/// Sets the network from either field, and stores both fields. A host workspace always has the host's network; its
/// `shared_network` is stored unchanged, as in sandboxed.sh.
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

/// Trims names and removes blank and duplicate names. Keeps the order.
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
    /// Each host workspace and each container root that a client names must be inside one of these folders.
    pub authorized_roots: Vec<PathBuf>,
}

impl FolderPolicy {
    /// Returns the folder for a host workspace at a path that the client chose. The caller creates the folder after
    /// all other checks.
    ///
    /// # Errors
    /// Fails with `InvalidPath` and the allowed folders.
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

    /// Returns the root folder for a container at a path that the client chose. The folder must not exist, so that a
    /// build or deletion cannot change existing files.
    ///
    /// # Errors
    /// Fails with `InvalidPath` and the reason.
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

    /// Resolves the symbolic links in the existing part of a path. Refuses a path that is not inside an authorized
    /// root, or is inside berth's data folder.
    fn resolve(&self, given: &str) -> Result<PathBuf> {
        let refuse = |message: String| Error::new(Code::InvalidPath, message).detail("path", given);
        if given.trim().is_empty() || given.contains('\0') || given.contains(char::is_control) {
            return Err(refuse("path is empty or contains control characters".into()));
        }
        let path = self.base.join(given);
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(refuse("path may not contain '..'".into()));
        }
        // Resolves the part of the path that exists. The caller creates the rest below it.
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
