//! Reads `opencode.json(c)` and `.opencode/openwork.json` of a workspace, and changes them key by key.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::files::{concurrent_change, read_text};
use super::reload::{ReloadAction, ReloadReason};
use super::site::ProjectSite;
use super::{Project, references, rules};
use crate::base::{Code, Error, Result, limits, redact};
use crate::store::beneath::Root;
use crate::store::jsonc::{self, JsoncDocument, JsoncError};

/// The maximum number of times that an edit is retried because another process changed the file.
const EDIT_RETRIES: usize = 8;

/// OpenWork's own settings of a workspace.
pub const OPENWORK: &str = ".opencode/openwork.json";
/// OpenCode's configuration files. berth uses the first one that exists; if none exists, it creates the first.
const OPENCODE: [&str; 2] = ["opencode.jsonc", "opencode.json"];

/// The largest file that the fixed pool of threads (`http-N`) may read for a response.
const CACHED_CONFIG_BYTES: u64 = 64 << 10;

/// Changes of top-level keys.
#[derive(Clone, Debug, Default)]
pub struct ConfigPatch {
    /// The keys to replace in OpenCode's configuration.
    pub opencode: Option<Map<String, Value>>,
    /// The keys to replace in OpenWork's settings.
    pub openwork: Option<Map<String, Value>>,
}

impl ConfigPatch {
    /// Refuses values that would keep OpenCode from starting.
    ///
    /// # Errors
    /// Fails with `InvalidConfig`, or with `InvalidPayload` if the patch contains no changes.
    pub fn check(&self) -> Result<()> {
        if self.opencode.is_none() && self.openwork.is_none() {
            let message = "The body needs opencode or openwork, an object with the keys to set";
            return Err(Error::new(Code::InvalidPayload, message));
        }
        self.opencode.as_ref().map_or(Ok(()), rules::check_config)
    }

    /// Returns the paths of the files that the patch changes.
    pub fn paths(&self, site: &ProjectSite) -> Vec<String> {
        let opencode = self.opencode.as_ref().map(|_| site.path(&path(&site.root)));
        let openwork = self.openwork.as_ref().map(|_| site.path(OPENWORK));
        opencode.into_iter().chain(openwork).collect()
    }
}

impl Project {
    /// Returns OpenCode's configuration from the workspace's file.
    ///
    /// # Errors
    /// Fails with `InvalidJsonc` and the position of the syntax error, or if `store::beneath` cannot read the file.
    pub fn opencode(&self, site: &ProjectSite) -> Result<Map<String, Value>> {
        let path = path(&site.root);
        let fields = self.configs_read.look(&site.root, &path, || {
            let Some(text) = read_text(&site.root, &path)? else { return Ok(None) };
            let value = jsonc::parse(&text).map_err(|fault| not_jsonc(&path, &fault))?;
            object(value, &path).map(|fields| Some(Arc::new(fields)))
        })?;
        Ok(fields.map(|fields| Map::clone(&fields)).unwrap_or_default())
    }

    /// Returns OpenCode's configuration and OpenWork's settings, but only if both are cached and small, and if the
    /// cache can be validated without waiting for a file system (`store::at_hand`).
    pub fn cached_configs(&self, root: &Root) -> Option<[Map<String, Value>; 2]> {
        let known = |path: &str| match root.stat_cached(path)? {
            None => Some(None),
            Some(stat) if stat.size() <= CACHED_CONFIG_BYTES => self.configs_read.get(&stat).map(Some),
            Some(_) => None,
        };
        let mut opencode = None;
        for path in OPENCODE {
            opencode = known(path)?;
            if opencode.is_some() {
                break;
            }
        }
        let fields =
            |read: Option<Arc<Map<_, _>>>| read.map(|fields| Map::clone(&fields)).unwrap_or_default();
        Some([fields(opencode), fields(known(OPENWORK)?)])
    }

    /// Returns OpenWork's settings of the workspace.
    ///
    /// # Errors
    /// Fails with `InvalidJsonFile`, or if `store::beneath` cannot read the file.
    pub fn openwork(&self, site: &ProjectSite) -> Result<Map<String, Value>> {
        let fields = self.configs_read.look(&site.root, OPENWORK, || {
            read_openwork(&site.root).map(|(text, fields)| text.map(|_| Arc::new(fields)))
        })?;
        Ok(fields.map(|fields| Map::clone(&fields)).unwrap_or_default())
    }

    /// Returns the path of the file that a change of OpenCode's configuration affects.
    pub fn config_paths(&self, site: &ProjectSite) -> Vec<String> {
        vec![site.path(&path(&site.root))]
    }

    /// Replaces top-level keys of both files. Other keys and comments are kept.
    ///
    /// # Errors
    /// Fails if [`ConfigPatch::check`] fails, if a file cannot be read, or with `Conflict` if another process keeps
    /// changing a file.
    pub fn patch(&self, site: &ProjectSite, patch: &ConfigPatch) -> Result<()> {
        patch.check()?;
        // Both files are parsed before either is written, so that a syntax error in one leaves both unchanged.
        self.opencode(site)?;
        self.openwork(site)?;
        self.with_write_turn(site, || {
            if let Some(keys) = &patch.opencode {
                self.edit_in_turn(site, &|document: &mut JsoncDocument, config: &Map<String, Value>| {
                    let keys = restored(keys, config);
                    references::check(&site.root, &keys)?;
                    for (key, value) in keys {
                        document.set(&[&key], &value);
                    }
                    Ok(())
                })?;
            }
            patch.openwork.as_ref().map_or(Ok(()), |keys| merge_openwork(site, keys))
        })?;
        if patch.opencode.is_some() {
            let path = path(&site.root);
            self.report_change(site, ReloadReason::Config, &path, ReloadAction::Updated, &path);
        }
        Ok(())
    }

    /// Changes OpenCode's configuration. `change` receives the document and its parsed value; it is called again if
    /// another process has changed the file. If `change` does not change the document, the file is not written.
    ///
    /// # Errors
    /// Fails if `change` fails, and for the same reasons as [`Project::patch`].
    pub(super) fn edit<R>(
        &self,
        site: &ProjectSite,
        change: impl Fn(&mut JsoncDocument, &Map<String, Value>) -> Result<R>,
    ) -> Result<R> {
        self.with_write_turn(site, || self.edit_in_turn(site, &change))
    }

    fn edit_in_turn<R>(
        &self,
        site: &ProjectSite,
        change: &impl Fn(&mut JsoncDocument, &Map<String, Value>) -> Result<R>,
    ) -> Result<R> {
        for _ in 0..EDIT_RETRIES {
            let path = path(&site.root);
            let old = read_text(&site.root, &path)?;
            let text = old.as_deref().unwrap_or_default();
            let mut document = JsoncDocument::parse(text).map_err(|fault| not_jsonc(&path, &fault))?;
            let before = object(document.value(), &path)?;
            let result = change(&mut document, &before)?;
            let new = edited(&document)?;
            let same = old.as_deref() == Some(new.as_str()) || (old.is_none() && new == "{}\n");
            if same || !site.may_write(&path, old.as_deref().map(str::as_bytes), Some(new.as_bytes()))? {
                return Ok(result);
            }
            if site.root.replace_if(&path, old.as_deref().map(str::as_bytes), new.as_bytes())? {
                self.note_own_write(site, &path);
                return Ok(result);
            }
        }
        Err(concurrent_change(&site.root, &path(&site.root)))
    }
}

/// Returns the text of a changed configuration. Refuses a text that berth or OpenCode could not parse.
pub(super) fn edited(document: &JsoncDocument) -> Result<String> {
    let refuse = |message: String| {
        Error::new(Code::InvalidConfig, format!("The configuration would be refused: {message}"))
    };
    let text = document.text().map_err(|fault| refuse(fault.message).detail("limit", fault.code))?;
    let most = limits::PROJECT_FILE_BYTES;
    if text.len() as u64 > most {
        return Err(refuse(format!("it would have {} bytes, and at most {most} are read", text.len())));
    }
    Ok(text)
}

/// Replaces each redacted value that a client sent back with the stored secret.
pub(super) fn restored(keys: &Map<String, Value>, stored: &Map<String, Value>) -> Map<String, Value> {
    let mut keys = keys.clone();
    redact::restore(&mut keys, stored);
    keys
}

/// Returns the path of OpenCode's configuration file, which may not exist yet.
pub(super) fn path(root: &Root) -> String {
    let there = |name: &&str| root.identity(name).is_ok_and(|found| found.is_some());
    OPENCODE.iter().find(|name| there(name)).unwrap_or(&OPENCODE[0]).to_string()
}

fn object(value: Value, path: &str) -> Result<Map<String, Value>> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(Error::new(Code::InvalidJsonc, format!("{path} is not an object; correct it by hand"))),
    }
}

pub(super) fn not_jsonc(path: &str, fault: &JsoncError) -> Error {
    let message = format!("{path} cannot be read; correct it by hand: {}", fault.message);
    let place = json!({ "code": fault.code, "offset": fault.offset, "length": fault.length });
    Error::new(Code::InvalidJsonc, message).detail_list(vec![place])
}

pub(super) fn read_openwork(root: &Root) -> Result<(Option<String>, Map<String, Value>)> {
    let Some(text) = read_text(root, OPENWORK)? else { return Ok((None, Map::new())) };
    let refuse = |why: String| {
        Err(Error::new(
            Code::InvalidJsonFile,
            format!("{OPENWORK} cannot be read; correct it by hand: {why}"),
        ))
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(fields)) => Ok((Some(text), fields)),
        Ok(_) => refuse("it is not an object".into()),
        Err(error) => refuse(error.to_string()),
    }
}

fn merge_openwork(site: &ProjectSite, keys: &Map<String, Value>) -> Result<()> {
    let root = &site.root;
    for _ in 0..EDIT_RETRIES {
        let (old, mut fields) = read_openwork(root)?;
        let keys = restored(keys, &fields);
        fields.extend(keys);
        let mut new = serde_json::to_string_pretty(&fields).map_err(|error| {
            Error::internal("OpenWork's settings could not be written").with_source(error)
        })?;
        new.push('\n');
        let same = old.as_deref() == Some(&new);
        if same || !site.may_write(OPENWORK, old.as_deref().map(str::as_bytes), Some(new.as_bytes()))? {
            return Ok(());
        }
        root.make_dirs(".opencode")?;
        if root.replace_if(OPENWORK, old.as_deref().map(str::as_bytes), new.as_bytes())? {
            return Ok(());
        }
    }
    Err(concurrent_change(root, OPENWORK))
}
