//! Templates for container workspaces, one JSON file each. Secrets are encrypted on disk (`seal`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Library, check_name, missing, seal};
use crate::base::ids::{Distro, Label, Network, check_env_vars};
use crate::base::thread::lock;
use crate::base::unknown_fields::KnownFields as Known;
use crate::base::{Code, Error, Result, limits, object};
use crate::store::allowlist::{self, MountRequest};
use crate::store::jsonc;

/// The fields of a template, in its file and in request bodies. Missing fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TemplateFields {
    /// A description for users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The distribution as the client wrote it; aliases are not replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// The name or id of an image that replaces the distribution's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The names of library skills.
    pub skills: Vec<String>,
    /// The names of library tools.
    pub tools: Vec<String>,
    pub plugins: Vec<String>,
    /// The environment variables of every command.
    pub env_vars: BTreeMap<String, String>,
    /// The names of the variables that are encrypted on disk.
    pub encrypted_keys: Vec<String>,
    /// The names of library fragments that run before the init script.
    pub init_scripts: Vec<String>,
    /// A script that runs at the end of a build.
    pub init_script: String,
    /// The container's network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// sandboxed.sh's field for the network; false means a private network.
    pub shared_network: Option<bool>,
    /// Host folders that are mounted in the container.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "object::list")]
    pub mounts: Vec<MountRequest>,
    /// berth only stores this field, for sandboxed.sh's clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tailscale_mode: Option<String>,
    pub mcps: Vec<String>,
    /// The configuration profile for the agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_profile: Option<String>,
}

impl TemplateFields {
    /// Returns the fields that a body may contain. `resources` are the fields of a workspace's resources.
    pub fn known(resources: Known) -> Known {
        Known::from_type::<TemplateFields>()
            .with_nested("resources", resources)
            .with_nested("mounts", Known::from_type::<MountRequest>())
    }
}

/// A template with its secrets decrypted.
#[derive(Clone, Debug, Serialize)]
pub struct Template {
    pub name: String,
    /// The path of the template's file in the library.
    pub path: String,
    /// The content of the template's file, with its secrets decrypted.
    #[serde(flatten)]
    pub fields: TemplateFields,
}

/// A template in a list.
#[derive(Debug, Default, Serialize)]
pub struct TemplateSummary {
    pub name: String,
    /// A description for users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The path of the template's file in the library.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distro: Option<String>,
    /// The name or id of an image that replaces the distribution's image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The names of library skills.
    pub skills: Vec<String>,
    pub init_scripts: Vec<String>,
    /// Why the template's file cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

pub(super) const FOLDER: &str = "workspace-template";
/// The prefix of a value that could not be decrypted, as in sandboxed.sh.
const UNOPENED: &str = "[DECRYPTION_FAILED]";

fn path(name: &str) -> String {
    format!("{FOLDER}/{name}.json")
}

impl Template {
    /// Returns the environment variables for a workspace.
    ///
    /// # Errors
    /// Fails with `Conflict` if a variable cannot be decrypted, since commands would get a wrong secret.
    pub fn variables(&self) -> Result<&BTreeMap<String, String>> {
        match self.fields.env_vars.iter().find(|(_, value)| value.starts_with(UNOPENED)) {
            None => Ok(&self.fields.env_vars),
            Some((name, _)) => Err(Error::new(
                Code::Conflict,
                format!(
                    "The variable {name} of template {} cannot be decrypted with this server's key; \
                     set it again, or start berth with the key that encrypted it (PRIVATE_KEY)",
                    self.name
                ),
            )),
        }
    }
}

impl Library {
    /// Lists all templates, sorted by name. The entry of a damaged template contains the error.
    ///
    /// # Errors
    /// Fails if the library cannot be read.
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

    /// Returns a template with its secrets decrypted.
    ///
    /// # Errors
    /// Fails with `InvalidName` or `NotInLibrary`, or with `Conflict` for a damaged file.
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

    /// Writes a template, and encrypts its secrets.
    ///
    /// # Errors
    /// Fails with `InvalidName`, `InvalidDistro`, `InvalidEnv` or `InvalidPayload`.
    pub fn put_template(&self, name: &str, mut fields: TemplateFields) -> Result<()> {
        check_name(name)?;
        fields.distro = fields.distro.filter(|distro| !distro.trim().is_empty());
        if let Some(distro) = &fields.distro {
            Distro::parse(distro.trim())?;
        }
        fields.image = fields.image.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        fields.image.as_deref().map(Label::parse).transpose()?;
        // If a client sends back a value that could not be decrypted, the stored value is kept.
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

    /// Removes a template. Removing a template that does not exist is no error, as in sandboxed.sh.
    ///
    /// # Errors
    /// Fails with `InvalidName`.
    pub fn delete_template(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let _writes = lock(&self.writes);
        self.discard(&path(name))
    }

    fn stored(&self, name: &str) -> Result<TemplateFields> {
        let text = self.read(&path(name))?.ok_or_else(|| missing("Workspace template", name))?;
        let refuse =
            |why: String| Error::new(Code::Conflict, format!("{} is not a template: {why}", path(name)));
        // Users write these files by hand, so comments and a byte order mark are accepted.
        let value = jsonc::parse(&text).map_err(|fault| refuse(fault.message))?;
        serde_json::from_value(value).map_err(|error| refuse(error.to_string()))
    }
}

/// The content of a template's file. It includes the name, as in sandboxed.sh.
#[derive(Serialize)]
struct StoredTemplate {
    name: String,
    #[serde(flatten)]
    fields: TemplateFields,
}
