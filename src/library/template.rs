//! Templates: how a container workspace is made, as one JSON file each. Secrets in it are sealed on disk (`seal`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Library, check_name, missing, seal};
use crate::base::fields::KnownFields as Known;
use crate::base::ids::{Distro, Label, Network, check_env_vars};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, limits, object};
use crate::store::allowlist::{self, MountRequest};
use crate::store::jsonc;

/// A template's file, and the body that writes it. What is missing is empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TemplateFields {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// As given: aliases stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// Image instead of a distribution's, by name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Library skills.
    pub skills: Vec<String>,
    /// Library tools.
    pub tools: Vec<String>,
    /// Plugins.
    pub plugins: Vec<String>,
    /// Variables of every command.
    pub env_vars: BTreeMap<String, String>,
    /// Which of them are sealed on disk.
    pub encrypted_keys: Vec<String>,
    /// Fragments that run before the init script.
    pub init_scripts: Vec<String>,
    /// Runs at the end of the build.
    pub init_script: String,
    /// What the container sees of the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// The same in sandboxed.sh's words.
    pub shared_network: Option<bool>,
    /// Folders of the host in the container.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "object::list")]
    pub mounts: Vec<MountRequest>,
    /// Kept for sandboxed.sh's clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tailscale_mode: Option<String>,
    /// MCP servers.
    pub mcps: Vec<String>,
    /// Kept for sandboxed.sh's clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_profile: Option<String>,
}

impl TemplateFields {
    /// Returns the fields that a body may have; `resources` are those of a workspace's resources.
    pub fn known(resources: Known) -> Known {
        Known::from_type::<TemplateFields>()
            .with_nested("resources", resources)
            .with_nested("mounts", Known::from_type::<MountRequest>())
    }
}

/// A template, whole, with its secrets opened.
#[derive(Clone, Debug, Serialize)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// Its file below the library.
    pub path: String,
    /// What the file says.
    #[serde(flatten)]
    pub fields: TemplateFields,
}

/// A row of the list.
#[derive(Debug, Default, Serialize)]
pub struct TemplateSummary {
    /// Its name.
    pub name: String,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its file below the library.
    pub path: String,
    /// Distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// Image instead of a distribution's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Library skills.
    pub skills: Vec<String>,
    /// Fragments.
    pub init_scripts: Vec<String>,
    /// Why the file cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

pub(super) const FOLDER: &str = "workspace-template";
/// What stands before a value that could not be opened, as observed.
const UNOPENED: &str = "[DECRYPTION_FAILED]";

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}.json")
}

impl Template {
    /// The variables, for a workspace.
    ///
    /// # Errors
    /// `Conflict` when one of them cannot be opened: a workspace with a broken secret helps nobody.
    pub fn variables(&self) -> Result<&BTreeMap<String, String>> {
        match self.fields.env_vars.iter().find(|(_, value)| value.starts_with(UNOPENED)) {
            None => Ok(&self.fields.env_vars),
            Some((name, _)) => Err(Error::new(
                Code::Conflict,
                format!(
                    "The variable {name} of template {} cannot be decrypted with this server's key; \
                     set it again, or start berth with the key that sealed it (PRIVATE_KEY)",
                    self.name
                ),
            )),
        }
    }
}

impl Library {
    /// All templates, sorted by name; a broken one with its error.
    ///
    /// # Errors
    /// When the library cannot be read.
    pub fn templates(&self) -> Result<Vec<TemplateSummary>> {
        let row = |name: String| match self.stored(&name) {
            Ok(fields) => TemplateSummary {
                path: path(&name),
                name,
                description: fields.description,
                distro: fields.distro,
                image: fields.image,
                skills: fields.skills,
                init_scripts: fields.init_scripts,
                error: None,
            },
            Err(error) => TemplateSummary {
                path: path(&name),
                name,
                error: Some(error.message().to_owned()),
                ..TemplateSummary::default()
            },
        };
        Ok(self.names(FOLDER, ".json")?.into_iter().map(row).collect())
    }

    /// One template.
    ///
    /// # Errors
    /// `InvalidName`, `NotInLibrary`, `Conflict` for a file that is broken.
    pub fn template(&self, name: &str) -> Result<Template> {
        check_name(name)?;
        let mut fields = self.stored(name)?;
        if fields.encrypted_keys.is_empty() {
            let sealed = fields.env_vars.iter().filter(|(_, value)| seal::is_sealed(value));
            fields.encrypted_keys = sealed.map(|(name, _)| name.clone()).collect();
        }
        for value in fields.env_vars.values_mut().filter(|value| seal::is_sealed(value)) {
            *value = self.key.open(value).unwrap_or_else(|| format!("{UNOPENED}{value}"));
        }
        Ok(Template { name: name.to_owned(), path: path(name), fields })
    }

    /// Writes a template.
    ///
    /// # Errors
    /// `InvalidName`, `InvalidDistro`, `InvalidEnv`, `InvalidPayload`.
    pub fn put_template(&self, name: &str, mut fields: TemplateFields) -> Result<()> {
        check_name(name)?;
        fields.distro = fields.distro.filter(|distro| !distro.trim().is_empty());
        if let Some(distro) = &fields.distro {
            Distro::parse(distro.trim())?;
        }
        fields.image = fields.image.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        fields.image.as_deref().map(Label::parse).transpose()?;
        // A value that could not be opened comes back as it was shown; what was stored is what counts.
        for value in fields.env_vars.values_mut() {
            if let Some(sealed) = value.strip_prefix(UNOPENED).filter(|rest| seal::is_sealed(rest)) {
                *value = sealed.to_owned();
            }
        }
        check_env_vars(fields.env_vars.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        if fields.init_script.len() > limits::INIT_SCRIPT_BYTES {
            let most = limits::INIT_SCRIPT_BYTES;
            return Err(Error::new(Code::InvalidPayload, format!("init_script is longer than {most} bytes")));
        }
        allowlist::check(&fields.mounts)?;
        for name in &fields.encrypted_keys {
            if let Some(value) = fields.env_vars.get_mut(name) {
                *value = self.key.seal(value)?;
            }
        }
        let mut text = serde_json::to_string_pretty(&StoredTemplate { name: name.to_owned(), fields })
            .map_err(|error| Error::internal("template").with_source(error))?;
        text.push('\n');
        let _writes = lock(&self.writes);
        self.write(&path(name), &text)
    }

    /// Removes a template; fine if there is none, as observed.
    ///
    /// # Errors
    /// `InvalidName`.
    pub fn delete_template(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let _writes = lock(&self.writes);
        self.discard(&path(name))
    }

    fn stored(&self, name: &str) -> Result<TemplateFields> {
        let text = self.read(&path(name))?.ok_or_else(|| missing("Workspace template", name))?;
        let refuse =
            |why: String| Error::new(Code::Conflict, format!("{} is not a template: {why}", path(name)));
        // People write these files by hand: comments and a byte order mark are no fault.
        let value = jsonc::parse(&text).map_err(|fault| refuse(fault.message))?;
        serde_json::from_value(value).map_err(|error| refuse(error.to_string()))
    }
}

/// The file: the name stands in it too, as sandboxed.sh writes it.
#[derive(Serialize)]
struct StoredTemplate {
    name: String,
    #[serde(flatten)]
    fields: TemplateFields,
}
