//! Plugins of OpenCode: specifiers in OpenCode's configuration, and script files in a plugins folder.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Project;
use super::config::path;
use super::files::ItemScope;
use super::reload::{ReloadAction, ReloadReason};
use super::site::ProjectSite;
use crate::base::redact::Redactor;
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;
use crate::store::finder::SearchBudget;

/// A plugin in a list.
#[derive(Debug, PartialEq, Serialize)]
pub struct Plugin {
    /// The plugin's specifier, as OpenCode loads it.
    pub spec: String,
    /// The place where the plugin was found: `config`, `dir.project` or `dir.global`.
    pub source: &'static str,
    /// The owner of the plugin.
    pub scope: ItemScope,
    /// The plugin's file, relative to the workspace or absolute; `None` for a plugin in the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// The order in which OpenCode loads plugins, lowest priority first.
pub const LOAD_ORDER: [&str; 4] = ["config.global", "config.project", "dir.global", "dir.project"];

const FOLDER: &str = ".opencode/plugins";
const GLOBAL: &str = ".config/opencode/plugins";

/// Checks a plugin's specifier.
///
/// # Errors
/// Fails with `InvalidPluginSpec` if the specifier is empty or has control characters.
pub fn check_spec(spec: &str) -> Result<()> {
    if spec.trim().is_empty() || spec.chars().any(char::is_control) {
        return Err(Error::new(
            Code::InvalidPluginSpec,
            "A plugin needs a name, such as name@1.2.3, or a path",
        ));
    }
    Ok(())
}

/// Returns the part of a specifier that identifies the plugin: the name of a package without its version, or the
/// complete specifier if it is a URL, repository or path, in which `@` has another meaning (npm's package-spec).
fn package_key(spec: &str) -> &str {
    let spec = spec.trim();
    // The first `@` of a scoped name is part of the name.
    let Some(at) = spec.char_indices().skip(1).find(|(_, c)| *c == '@').map(|(at, _)| at) else {
        return spec;
    };
    let (name, version) = (&spec[..at], &spec[at + 1..]);
    let slashes = usize::from(name.starts_with('@'));
    let is_package = name.matches('/').count() == slashes
        && !name.contains([':', '\\', ' '])
        && !name.starts_with(['.', '~']);
    // `git@host:path` is a repository; `a@npm:b@1` is the package `b` under the name `a`.
    let is_repository = slashes == 0 && version.contains(':') && !version.starts_with("npm:");
    if is_package && !is_repository { name } else { spec }
}

/// Returns the specifier in an entry of `plugin`. Newer versions of OpenCode also accept a pair of specifier and
/// options.
fn spec_of(entry: &Value) -> Option<&str> {
    entry.as_str().or_else(|| entry.get(0)?.as_str())
}

/// Returns the entries of the key `plugin`, which may also be a single string.
fn entries(config: &Map<String, Value>) -> Vec<Value> {
    match config.get("plugin") {
        Some(Value::Array(list)) => list.clone(),
        Some(name @ Value::String(_)) => vec![name.clone()],
        _ => Vec::new(),
    }
}

impl Project {
    /// Lists the plugins of the configuration in its order, then the workspace's plugin files by name. With `global`,
    /// the list also contains the user's plugin files.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Project::opencode`].
    pub fn plugins(&self, site: &ProjectSite, global: bool) -> Result<Vec<Plugin>> {
        let config = self.opencode(site)?;
        let mut plugins: Vec<Plugin> = entries(&config)
            .iter()
            .filter_map(spec_of)
            .map(|spec| Plugin {
                spec: spec.to_owned(),
                source: "config",
                scope: ItemScope::Project,
                path: None,
            })
            .collect();
        plugins.extend(files(&site.root, FOLDER)?.into_iter().map(|name| Plugin {
            spec: format!("file://{}", site.path(&format!("{FOLDER}/{name}"))),
            source: "dir.project",
            scope: ItemScope::Project,
            path: Some(format!("{FOLDER}/{name}")),
        }));
        if let Some(root) = self.global(GLOBAL).filter(|_| global) {
            let folder = self.home.join(GLOBAL);
            plugins.extend(files(&root, "")?.into_iter().map(|name| {
                let path = folder.join(&name).to_string_lossy().into_owned();
                Plugin {
                    spec: format!("file://{path}"),
                    source: "dir.global",
                    scope: ItemScope::Global,
                    path: Some(path),
                }
            }));
        }
        Ok(plugins)
    }

    /// Adds a plugin to the configuration, unless the configuration already contains a version of it. Returns whether
    /// the plugin was added.
    ///
    /// # Errors
    /// Fails with `InvalidPluginSpec`, and for the same reasons as [`Project::patch`].
    pub fn add_plugin(&self, site: &ProjectSite, spec: &str) -> Result<bool> {
        check_spec(spec)?;
        let added = self.edit(site, |document, config| {
            let known = entries(config);
            if known.iter().filter_map(spec_of).any(|known| package_key(known) == package_key(spec)) {
                return Ok(false);
            }
            if config.get("plugin").is_some_and(|value| !value.is_array()) {
                document.set(&["plugin"], &Value::Array(known));
            }
            document.push(&["plugin"], &json!(spec));
            Ok(true)
        })?;
        if added {
            self.report_change(
                site,
                ReloadReason::Plugins,
                &Redactor::default().text(package_key(spec)),
                ReloadAction::Added,
                &path(&site.root),
            );
        }
        Ok(added)
    }

    /// Removes all versions of a plugin from the configuration. Returns whether the configuration contained the
    /// plugin.
    ///
    /// # Errors
    /// Fails for the same reasons as [`Project::patch`].
    pub fn remove_plugin(&self, site: &ProjectSite, name: &str) -> Result<bool> {
        let other = |entry: &Value| spec_of(entry).is_none_or(|spec| package_key(spec) != package_key(name));
        let removed = self.edit(site, |document, config| {
            let known = entries(config);
            if known.iter().all(other) {
                return Ok(false);
            }
            if config.get("plugin").is_some_and(|value| !value.is_array()) {
                document.set(&["plugin"], &Value::Array(known));
            }
            Ok(document.retain("plugin", other) > 0)
        })?;
        if removed {
            self.report_change(
                site,
                ReloadReason::Plugins,
                &Redactor::default().text(package_key(name)),
                ReloadAction::Removed,
                &path(&site.root),
            );
        }
        Ok(removed)
    }
}

/// Returns the names of the plugin files in a folder, sorted, up to a limit.
fn files(root: &Root, folder: &str) -> Result<Vec<String>> {
    let mut budget = SearchBudget::new(0);
    let Some(entries) = root.list(folder, &mut budget)? else { return Ok(Vec::new()) };
    let is_script = |name: &str| name.ends_with(".js") || name.ends_with(".ts");
    let names =
        entries.iter().filter(|entry| entry.exact && is_script(&entry.name)).map(|entry| entry.name.clone());
    let mut names: Vec<String> = names.take(limits::PROJECT_ENTRIES).collect();
    names.retain(|name| {
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        root.metadata(&path).is_ok_and(|found| found.is_some_and(|found| found.is_file()))
    });
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ignored_in_comparisons() {
        for (spec, name) in [
            ("a", "a"),
            ("a@1.2", "a"),
            (" @s/a@1 ", "@s/a"),
            ("@s/a", "@s/a"),
            ("file:///x@1", "file:///x@1"),
            ("/x/y@2", "/x/y@2"),
            ("git:x@y", "git:x@y"),
            ("git+ssh://git@h/t/a.git", "git+ssh://git@h/t/a.git"),
            ("git+https://t@h/a", "git+https://t@h/a"),
            ("git@h:t/a.git", "git@h:t/a.git"),
            ("github:a/b@1", "github:a/b@1"),
            ("./x@2", "./x@2"),
            ("../a/x@2", "../a/x@2"),
            ("~/x@2", "~/x@2"),
            ("a@npm:b@1", "a"),
            ("a@^1.2 || 2", "a"),
            ("a@latest", "a"),
            ("@s/a@1@2", "@s/a"),
            ("a@", "a"),
        ] {
            assert_eq!(package_key(spec), name);
        }
        assert!(check_spec(" ").is_err() && check_spec("a\nb").is_err() && check_spec("@s/a@1").is_ok());
    }
}
