//! The OpenCode of the workspaces: an existing one that the settings name, or one that the server runs itself. In
//! the second case, also its program and its environment.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::sources::{Given, Lookup, Sources};
use super::{table, values};
use crate::access::TokenSource;
use crate::base::ids::check_env_vars;
use crate::base::{Error, Result, object};
use crate::host::{OpencodePlan, Restart};
use crate::store::file;
use crate::workspaces::Configured;

/// The user name for an OpenCode if no other one is configured.
const USERNAME: &str = "opencode";
/// Maximum size of a file with variables.
const VARIABLES_BYTES: u64 = 1 << 20;

/// The names of variables that OpenCode receives.
const PASSED: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TERM", "TZ", "TMPDIR"];
/// Prefixes of the names of variables that OpenCode receives.
const PASSED_STARTS: [&str; 6] = ["LC_", "XDG_", "OPENCODE_", "AWS_", "GOOGLE_", "AZURE_"];
/// Suffixes of the names of variables that OpenCode receives.
const PASSED_ENDS: [&str; 3] = ["_API_KEY", "_proxy", "_PROXY"];
/// Variables that OpenCode does not receive: they contain berth's own tokens and keys, or concern only this process.
const KEPT: [&str; 8] = [
    "NOTIFY_SOCKET",
    "DASHBOARD_PASSWORD",
    "SANDBOXED_USERS",
    "JWT_SECRET",
    "PRIVATE_KEY",
    "PRIVATE_KEY_FILE",
    "LIBRARY_PATH",
    "CREDENTIALS_DIRECTORY",
];
const KEPT_STARTS: [&str; 7] =
    ["OPENWORK_", "OPENWRK_", "BERTH_", "LISTEN_", "WATCHDOG_", "DEN_", "OPENCODE_SERVER_"];

impl Sources<'_> {
    /// Assigns the OpenCode of flags and environment to each workspace that has no OpenCode of its own.
    pub(super) fn fill_opencode(&self, workspaces: &mut [Configured]) -> Result<()> {
        let base_url = self.text(&table::OPENCODE_BASE_URL)?;
        let directory = self.given(&table::OPENCODE_DIRECTORY)?;
        let username = self.given(&table::OPENCODE_USERNAME)?;
        let password = self.given(&table::OPENCODE_PASSWORD)?;
        let fill = |slot: &mut Option<String>, value: Option<&String>| {
            if slot.is_none() {
                *slot = value.cloned();
            }
        };
        let alone = workspaces.len() == 1;
        for workspace in workspaces {
            fill(&mut workspace.base_url, base_url.as_ref());
            fill(&mut workspace.opencode_username, username.as_ref().map(|given| &given.text));
            if workspace.opencode_password.is_none() {
                let file = |given: &Given| given.source == TokenSource::File;
                workspace.password_is_shared = !password.as_ref().is_none_or(file);
            }
            fill(&mut workspace.opencode_password, password.as_ref().map(|given| &given.text));
            if alone {
                fill(&mut workspace.directory, directory.as_ref().map(|given| &given.text));
            }
        }
        Ok(())
    }
}

/// Returns how the server runs an OpenCode, or `None` if it does not run one.
pub(super) fn plan(sources: &Sources<'_>, workspaces: &[Configured]) -> Result<Option<OpencodePlan>> {
    if !sources.yes(&table::MANAGE_OPENCODE)? {
        return Ok(None);
    }
    if let Some(named) = sources.given(&table::OPENCODE_BASE_URL)? {
        let wanted = sources.given(&table::MANAGE_OPENCODE)?.map(|given| given.place).unwrap_or_default();
        return Err(Error::config(wanted, format!("contradicts {}, which names another one", named.place)));
    }
    let username = sources.given(&table::OPENCODE_USERNAME)?;
    let secret = |given: Given| table::OPENCODE_PASSWORD.kind.text(&given.place, &given.text);
    let password = sources.given(&table::OPENCODE_PASSWORD)?;
    Ok(Some(OpencodePlan {
        program: program(sources)?,
        folder: workspaces.first().map_or(sources.current_dir, |first| &first.path).to_owned(),
        port: u16::try_from(sources.number(&table::OPENCODE_PORT)?.unwrap_or_default()).unwrap_or_default(),
        env: Vec::new(),
        username: username.map_or_else(|| Ok(USERNAME.to_owned()), secret)?,
        password_is_shared: password.as_ref().is_some_and(|given| given.source != TokenSource::File),
        password: password.map(secret).transpose()?,
        memory_bytes: sources.number(&table::OPENCODE_MEMORY)?,
        restart: match sources.word(&table::OPENCODE_RESTART)? {
            Some("always") => Restart::Always,
            Some("never") => Restart::Never,
            _ => Restart::OnFailure,
        },
        start_timeout: sources.time(&table::START_TIMEOUT)?,
        log_level: sources.word(&table::OPENCODE_LOG_LEVEL)?.unwrap_or_default().to_owned(),
        sandbox: None,
    }))
}

/// Returns the configured program, or the first program with its name in PATH.
fn program(sources: &Sources<'_>) -> Result<PathBuf> {
    let given = sources.given(&table::OPENCODE_BIN)?;
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let (place, name, base) = match &given {
        Some(given) => (given.place.as_str(), given.text.as_str(), sources.base(given.source)),
        None => ("--opencode-bin", "opencode", sources.current_dir),
    };
    let path = if name.contains('/') {
        values::absolute(place, base, name)?
    } else {
        let folders = sources.var("PATH")?.unwrap_or_default();
        let mut found = folders.split(':').filter(|folder| folder.starts_with('/'));
        let found =
            found.find_map(|folder| Some(Path::new(folder).join(name)).filter(|path| is_program(path)));
        let problem = format!("there is no program {name} in PATH; install OpenCode or name its program");
        found.ok_or_else(|| Error::config(place, problem))?
    };
    if is_program(&path) {
        return Ok(path);
    }
    let problem = if path.exists() { "is not an executable file" } else { "does not exist" };
    Err(Error::config(place, format!("{} {problem}", path.display())))
}

/// The file `env.json` with variables that OpenWork's orchestrator passes to its OpenCode.
#[derive(Deserialize)]
struct EnvFile {
    #[serde(default)]
    variables: Vec<Variable>,
}

#[derive(Deserialize)]
struct Variable {
    key: String,
    value: String,
}

/// Returns the environment of OpenCode: the variables that any program needs, the keys of model providers, the
/// variables that `wanted` names, and those of `~/.config/openwork/env.json`. `names` are the names in this
/// environment.
///
/// # Errors
/// `Config` for a name in `wanted` that OpenCode must not receive, and for an `env.json` that cannot be read.
pub fn opencode_env(
    home: &Path,
    env: Lookup<'_>,
    names: &[String],
    wanted: &[String],
) -> Result<Vec<(String, String)>> {
    if let Some(name) = wanted.iter().find(|name| is_kept(name)) {
        let problem = format!("{name} is for the server alone; OpenCode must not get it");
        return Err(Error::config("--opencode-env", problem));
    }
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| {
        all.retain(|(known, _)| known != name);
        all.push((name.to_owned(), value));
    };
    let text = |name: &str| env(name).and_then(|value: OsString| value.into_string().ok());
    for name in names.iter().filter(|name| is_passed(name) || wanted.contains(name)) {
        if let Some(value) = text(name) {
            set(name, value);
        }
    }
    if text("HOME").is_none() {
        set("HOME", home.to_string_lossy().into_owned());
    }
    // OpenWork's orchestrator sets these variables too, because plugins read them.
    set("OPENCODE_CLIENT", "openwork-orchestrator".to_owned());
    set("OPENWORK", "1".to_owned());
    let path = home.join(".config/openwork/env.json");
    if let Some(bytes) = file::read_optional(&path, VARIABLES_BYTES)? {
        let wrong =
            |error: serde_json::Error| Error::config(path.display(), format!("cannot be read: {error}"));
        let file: EnvFile = object::one(&mut serde_json::Deserializer::from_slice(&bytes)).map_err(wrong)?;
        for Variable { key, value } in file.variables.into_iter().filter(|one| !is_kept(&one.key)) {
            set(&key, value);
        }
    }
    check_env_vars(all.iter().map(|(name, value)| (name.as_str(), value.as_str())))
        .map_err(|error| Error::config("the environment of OpenCode", error.message()))?;
    Ok(all)
}

fn is_kept(name: &str) -> bool {
    KEPT.contains(&name) || KEPT_STARTS.iter().any(|start| name.starts_with(start))
}

fn is_passed(name: &str) -> bool {
    let passed = PASSED.contains(&name)
        || PASSED_STARTS.iter().any(|start| name.starts_with(start))
        || PASSED_ENDS.iter().any(|end| name.ends_with(end));
    passed && !is_kept(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::TestFolder;

    fn chosen(env: &[(&str, &str)], wanted: &[&str], file: Option<&str>) -> Result<Vec<String>> {
        let home = TestFolder::new();
        if let Some(text) = file {
            file::create_dir_private(&home.join(".config/openwork")).unwrap();
            file::replace(&home.join(".config/openwork/env.json"), text.as_bytes(), 0o600).unwrap();
        }
        let names: Vec<String> = env.iter().map(|(name, _)| (*name).to_owned()).collect();
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let lookup =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        let all = opencode_env(&home, &lookup, &names, &wanted)?;
        Ok(all.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn opencode_gets_keys_of_providers_and_no_token_of_ours() {
        let env = [
            ("HOME", "/h"),
            ("ANTHROPIC_API_KEY", "k"),
            ("https_proxy", "p"),
            ("OPENWORK_HOST_TOKEN", "t"),
            ("OPENWRK_RUN_ID", "t"),
            ("BERTH_DATA_DIR", "d"),
            ("LISTEN_FDS", "1"),
            ("OPENCODE_SERVER_PASSWORD", "s"),
            ("OPENCODE_CONFIG", "c"),
            ("GITHUB_TOKEN", "g"),
            ("JWT_SECRET", "j"),
        ];
        let always = ["OPENCODE_CLIENT=openwork-orchestrator", "OPENWORK=1"];
        let passed = ["HOME=/h", "ANTHROPIC_API_KEY=k", "https_proxy=p", "OPENCODE_CONFIG=c"];
        assert_eq!(chosen(&env, &[], None).unwrap(), [&passed[..], &always].concat());
        assert!(chosen(&env, &["GITHUB_TOKEN"], None).unwrap().contains(&"GITHUB_TOKEN=g".to_owned()));
        for kept in ["OPENWORK_TOKEN", "BERTH_DATA_DIR", "JWT_SECRET"] {
            assert!(chosen(&env, &[kept], None).unwrap_err().message().contains(kept));
        }
    }

    #[test]
    fn variables_of_the_orchestrators_file_are_passed() {
        let text = r#"{"version": 1, "variables": [{"key": "A", "value": "1"}, {"key": "OPENWORK_TOKEN", "value": "x"}]}"#;
        let all = chosen(&[("HOME", "/h")], &[], Some(text)).unwrap();
        assert!(all.contains(&"A=1".to_owned()) && !all.iter().any(|one| one.contains("TOKEN")), "{all:?}");
        for wrong in ["[]", "{", r#"{"variables": [{"key": "A=B", "value": "1"}]}"#] {
            chosen(&[], &[], Some(wrong)).unwrap_err();
        }
    }
}
