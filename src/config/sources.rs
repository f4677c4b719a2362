//! Flag > environment > `server.json` for one setting, with the place it came from; the only reader of the
//! environment, which is handed in as a function so that tests need none.
//!
//! A variable that is set to nothing counts as unset, except for tokens: an empty token is a mistake to hear about.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::access::{TokenSetting, TokenSource, tokens};
use crate::base::{Error, Result};
use crate::store::format;

use super::file::ConfigFile;
use super::values;

/// Variables with secrets, which may be in files instead.
pub(super) const SECRETS: &[&str] = &[
    "OPENWORK_TOKEN",
    "OPENWORK_HOST_TOKEN",
    "OPENWORK_OPENCODE_PASSWORD",
    "DASHBOARD_PASSWORD",
    "SANDBOXED_USERS",
    "JWT_SECRET",
];

/// The largest such file.
const SECRET_BYTES: u64 = 64 << 10;

/// Looks up one environment variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The environment of this process, for everybody who calls `resolve` outside tests.
#[expect(clippy::disallowed_methods, reason = "this is the one place that the lint points to")]
pub fn process_env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The names of its variables.
pub fn process_names() -> Vec<String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect()
}

/// A value with the place that a complaint names.
pub(super) struct Given {
    pub(super) place: String,
    pub(super) text: String,
    pub(super) source: TokenSource,
}

/// Where settings come from; the flags are handed in one by one.
pub(super) struct Sources<'a> {
    env: Lookup<'a>,
    pub(super) file: ConfigFile,
    pub(super) current_dir: &'a Path,
}

impl<'a> Sources<'a> {
    pub(super) fn open(flag: Option<&str>, env: Lookup<'a>, current_dir: &'a Path) -> Result<Sources<'a>> {
        let mut sources = Sources { env, file: ConfigFile::default(), current_dir };
        let explicit = match flag {
            Some(path) => Some(("--config", path.to_owned())),
            None => sources.var("OPENWORK_SERVER_CONFIG")?.map(|path| ("OPENWORK_SERVER_CONFIG", path)),
        };
        let file = match explicit {
            Some((place, path)) => {
                let path = values::absolute(place, current_dir, &path)?;
                let file = ConfigFile::read(&path)?;
                Some(file.ok_or_else(|| Error::config(place, format!("{} does not exist", path.display())))?)
            }
            None => ConfigFile::read(&sources.home().join(".config/openwork/server.json"))?,
        };
        sources.file = file.unwrap_or_default();
        Ok(sources)
    }

    /// A variable with something in it. One of [`SECRETS`] may be in a file instead.
    pub(super) fn var(&self, name: &str) -> Result<Option<String>> {
        let get = |name: &str| (self.env)(name).filter(|value| !value.is_empty());
        let in_file = if SECRETS.contains(&name) { self.secret_file(name) } else { None };
        match (get(name), in_file) {
            (Some(_), Some((place, _))) => {
                Err(Error::config(place, format!("{name} is set as well; set one of the two")))
            }
            (Some(value), None) => {
                value.into_string().map(Some).map_err(|_| Error::config(name, "is not UTF-8 text"))
            }
            (None, Some((place, path))) => read_secret(&place, &path).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The file with a secret: the one that `NAME_FILE` names, as container engines pass secrets, else the credential of
    /// this name that systemd passes (systemd.exec(5), `LoadCredential=`).
    fn secret_file(&self, name: &str) -> Option<(String, PathBuf)> {
        let get = |name: &str| (self.env)(name).filter(|value| !value.is_empty());
        let named = format!("{name}_FILE");
        if let Some(path) = get(&named) {
            return Some((named, self.current_dir.join(path)));
        }
        let path = Path::new(&get("CREDENTIALS_DIRECTORY")?).join(name);
        path.exists().then(|| (format!("credential {name}"), path))
    }

    /// The strongest of a repeatable flag, a variable with commas between, and an array of the file.
    pub(super) fn list(
        &self,
        arguments: &[String],
        variable: &str,
        json: Option<&[String]>,
    ) -> Result<Vec<String>> {
        if !arguments.is_empty() {
            return Ok(arguments.to_vec());
        }
        Ok(match self.var(variable)? {
            Some(text) => {
                text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
            }
            None => json.unwrap_or_default().to_vec(),
        })
    }

    /// The strongest of flag, variable and field of the file.
    pub(super) fn pick(
        &self,
        flag: &str,
        argument: Option<&str>,
        variable: &str,
        field: &str,
        json: Option<String>,
    ) -> Result<Option<Given>> {
        if let Some(text) = argument {
            return Ok(Some(Given {
                place: flag.to_owned(),
                text: text.to_owned(),
                source: TokenSource::Cli,
            }));
        }
        if let Some(text) = self.var(variable)? {
            return Ok(Some(Given { place: variable.to_owned(), text, source: TokenSource::Env }));
        }
        Ok(json.map(|text| Given { place: self.file.place(field), text, source: TokenSource::File }))
    }

    /// A token's setting and the place it came from.
    pub(super) fn token(
        &self,
        flag: &str,
        argument: Option<&str>,
        variable: &str,
        field: &str,
        json: &Option<String>,
    ) -> Result<(TokenSetting, Option<String>)> {
        if argument.is_none() && (self.env)(variable).is_some_and(|value| value.is_empty()) {
            values::secret(variable, String::new())?;
        }
        Ok(match self.pick(flag, argument, variable, field, json.clone())? {
            Some(given) => {
                let secret = values::secret(&given.place, given.text)?;
                (TokenSetting { secret: Some(secret), source: given.source }, Some(given.place))
            }
            None => (TokenSetting { secret: None, source: TokenSource::Generated }, None),
        })
    }

    pub(super) fn home(&self) -> PathBuf {
        let home = (self.env)("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        home.unwrap_or_else(|| PathBuf::from("/"))
    }

    /// The data folder. One that a newer version wrote is refused here, before any command uses it.
    pub(super) fn data_dir(&self, argument: Option<&str>) -> Result<PathBuf> {
        let given =
            self.pick("--data-dir", argument, "BERTH_DATA_DIR", "dataDir", self.file.json.data_dir.clone())?;
        let folder = match given {
            Some(given) => values::absolute(&given.place, self.base(given.source), &given.text)?,
            None => self.default_data_dir(rustix::process::geteuid().is_root())?,
        };
        format::check(&folder)?;
        Ok(folder)
    }

    /// Scoped tokens lie beside `server.json`, as with the OpenWork server, if there is one or they lie there already; else
    /// with everything else.
    pub(super) fn token_store(&self, data_dir: Option<&str>) -> Result<PathBuf> {
        const NAME: &str = "OPENWORK_TOKEN_STORE";
        if let Some(path) = self.var(NAME)? {
            return values::absolute(NAME, self.current_dir, &path);
        }
        let usual = self.home().join(".config/openwork").join(tokens::FILE);
        Ok(match self.file.path.as_deref().and_then(Path::parent) {
            Some(folder) => folder.join(tokens::FILE),
            None if usual.exists() => usual,
            None => self.data_dir(data_dir)?.join(tokens::FILE),
        })
    }

    pub(super) fn default_data_dir(&self, root: bool) -> Result<PathBuf> {
        // Where an orchestrator of OpenWork keeps its own state. Each has another one, so two of them can start a server
        // each.
        const ORCHESTRATOR: &str = "OPENWORK_DATA_DIR";
        if let Some(folder) = self.var(ORCHESTRATOR)? {
            return Ok(values::absolute(ORCHESTRATOR, self.current_dir, &folder)?.join("berth"));
        }
        if root {
            return Ok(PathBuf::from("/var/lib/berth"));
        }
        // The XDG specification wants relative paths ignored.
        let xdg = (self.env)("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        Ok(xdg.unwrap_or_else(|| self.home().join(".local/share")).join("berth"))
    }

    /// Where relative paths start.
    pub(super) fn base(&self, source: TokenSource) -> &Path {
        match source {
            TokenSource::File => self.file.folder(),
            TokenSource::Cli | TokenSource::Env | TokenSource::Generated => self.current_dir,
        }
    }
}

#[cfg(test)]
pub(super) fn default_data_dir(env: Lookup<'_>, root: bool) -> PathBuf {
    let sources = Sources { env, file: ConfigFile::default(), current_dir: Path::new("/w") };
    sources.default_data_dir(root).unwrap()
}

/// A file's text without the newline that editors put at the end.
fn read_secret(place: &str, path: &Path) -> Result<String> {
    let wrong = |problem: String| Error::config(place, format!("{}: {problem}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mut text = String::new();
    file.take(SECRET_BYTES + 1).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > SECRET_BYTES {
        return Err(wrong(format!("is larger than {SECRET_BYTES} bytes")));
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() { Err(wrong("is empty".to_owned())) } else { Ok(text.to_owned()) }
}
