//! Looks up the value of a row of the table, with its source: flag, else environment, else `server.json`, else
//! default. Only this module reads the environment. The environment is a parameter, so that tests can replace it.
//!
//! A variable with an empty value counts as unset, except for a token: an empty token is an error.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::access::{TokenSetting, TokenSource, tokens};
use crate::base::{Error, Result};
use crate::store::format;

use super::file::{ConfigFile, JsonValue};
use super::line::CommandLine;
use super::setting::{Fallback, Setting, ValueKind};
use super::table::{self, settings};
use super::values;

/// Maximum size of a file with a secret.
const SECRET_BYTES: u64 = 64 << 10;

/// A function that looks up one environment variable.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Looks up a variable of this process, for all callers of `resolve` except tests.
#[expect(clippy::disallowed_methods, reason = "this is the one place that the lint points to")]
pub fn process_env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Returns the names of the variables of this process.
pub fn process_names() -> Vec<String> {
    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect()
}

/// A value with its source, which error messages name.
pub(super) struct Given {
    pub(super) place: String,
    pub(super) text: String,
    pub(super) source: TokenSource,
}

impl Given {
    fn new(place: &str, text: &str, source: TokenSource) -> Given {
        Given { place: place.to_owned(), text: text.to_owned(), source }
    }
}

/// The sources of settings.
pub(super) struct Sources<'a> {
    pub(super) line: &'a CommandLine,
    env: Lookup<'a>,
    pub(super) file: ConfigFile,
    pub(super) current_dir: &'a Path,
}

const NO_ENVIRONMENT: Lookup<'static> = &|_| None;

impl CommandLine {
    /// Returns the value of a number that can only be set on the command line.
    ///
    /// # Errors
    /// `Config` for a text that is not a number, and for a number that is out of bounds.
    pub fn number(&self, setting: &Setting) -> Result<u64> {
        Ok(Sources::without_file(self, NO_ENVIRONMENT).number(setting)?.unwrap_or_default())
    }

    /// Returns the value of a choice that can only be set on the command line.
    ///
    /// # Errors
    /// `Config` for a word that is not among the choices.
    pub fn word(&self, setting: &Setting) -> Result<&'static str> {
        Ok(Sources::without_file(self, NO_ENVIRONMENT).word(setting)?.unwrap_or_default())
    }
}

impl<'a> Sources<'a> {
    pub(super) fn open(line: &'a CommandLine, env: Lookup<'a>, current_dir: &'a Path) -> Result<Sources<'a>> {
        let mut sources = Sources { line, env, file: ConfigFile::default(), current_dir };
        let file = match sources.given(&table::CONFIG)? {
            Some(Given { place, text, .. }) => {
                let path = values::absolute(&place, current_dir, &text)?;
                let file = ConfigFile::read(&path)?;
                Some(file.ok_or_else(|| Error::config(place, format!("{} does not exist", path.display())))?)
            }
            None => ConfigFile::read(&sources.home().join(".config/openwork/server.json"))?,
        };
        sources.file = file.unwrap_or_default();
        Ok(sources)
    }

    /// Creates sources with flags and variables only.
    pub(super) fn without_file(line: &'a CommandLine, env: Lookup<'a>) -> Sources<'a> {
        Sources { line, env, file: ConfigFile::default(), current_dir: Path::new("/") }
    }

    /// Returns a variable that is set and not empty. A secret may be in a file instead.
    pub(super) fn var(&self, name: &str) -> Result<Option<String>> {
        let get = |name: &str| (self.env)(name).filter(|value| !value.is_empty());
        let in_file = if is_secret(name) { self.secret_file(name) } else { None };
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

    /// Returns the file that contains a secret: the one that `NAME_FILE` names, as container engines pass secrets,
    /// or else the systemd credential with this name (systemd.exec(5), `LoadCredential=`).
    fn secret_file(&self, name: &str) -> Option<(String, PathBuf)> {
        let get = |name: &str| (self.env)(name).filter(|value| !value.is_empty());
        let named = format!("{name}_FILE");
        if let Some(path) = get(&named) {
            return Some((named, self.current_dir.join(path)));
        }
        let path = Path::new(&get("CREDENTIALS_DIRECTORY")?).join(name);
        path.exists().then(|| (format!("credential {name}"), path))
    }

    /// Returns the values of a list from its strongest source. A value is one flag, one part of a variable between
    /// commas, or one element of an array.
    pub(super) fn all(&self, setting: &Setting) -> Result<Vec<Given>> {
        let flags = setting.given(self.line);
        if !flags.is_empty() {
            let place = self.line.place(setting);
            return Ok(flags.into_iter().map(|text| Given::new(&place, text, TokenSource::Cli)).collect());
        }
        for name in setting.vars {
            if let Some(text) = self.var(name)? {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                return Ok(items.map(|item| Given::new(name, item, TokenSource::Env)).collect());
            }
        }
        Ok(match self.file.json.values.get(setting.key) {
            Some(JsonValue::List(items)) => {
                let place = self.file.place(setting.key);
                items.iter().map(|item| Given::new(&place, item, TokenSource::File)).collect()
            }
            _ => Vec::new(),
        })
    }

    /// Returns the `NAME=VALUE` pairs of every source, the weakest source first.
    pub(super) fn pairs(&self, setting: &Setting) -> Result<Vec<Vec<Given>>> {
        let from_file = match self.file.json.values.get(setting.key) {
            Some(JsonValue::Pairs(pairs)) => pairs
                .iter()
                .map(|(name, text)| {
                    let place = self.file.place(&format!("{}.{name}", setting.key));
                    Given::new(&place, &format!("{name}={text}"), TokenSource::File)
                })
                .collect(),
            _ => Vec::new(),
        };
        let no_flags = CommandLine::default();
        let from_variables = Sources::without_file(&no_flags, self.env).all(setting)?;
        let flags = if setting.given(self.line).is_empty() { Vec::new() } else { self.all(setting)? };
        Ok(vec![from_file, from_variables, flags])
    }

    /// Returns the texts of a list's values, from its strongest source.
    pub(super) fn list(&self, setting: &Setting) -> Result<Vec<String>> {
        Ok(self.all(setting)?.into_iter().map(|given| given.text).collect())
    }

    /// Returns the value from the strongest of flag, variable and key.
    pub(super) fn given(&self, setting: &Setting) -> Result<Option<Given>> {
        if let Some(text) = setting.given(self.line).last() {
            return Ok(Some(Given::new(&self.line.place(setting), text, TokenSource::Cli)));
        }
        for name in setting.vars {
            if let Some(text) = self.var(name)? {
                return Ok(Some(Given::new(name, &text, TokenSource::Env)));
            }
        }
        Ok(match self.file.json.values.get(setting.key) {
            Some(JsonValue::Text(text)) => {
                Some(Given::new(&self.file.place(setting.key), text, TokenSource::File))
            }
            _ => None,
        })
    }

    /// Returns a whole number, or its default.
    pub(super) fn number(&self, setting: &Setting) -> Result<Option<u64>> {
        match (self.given(setting)?, setting.fallback) {
            (Some(given), _) => setting.kind.number(&given.place, &given.text).map(Some),
            (None, Fallback::Number(number)) => Ok(Some(number)),
            (None, _) => Ok(None),
        }
    }

    /// Returns a whole number, or its default, as a count of values in memory.
    pub(super) fn count(&self, setting: &Setting) -> Result<usize> {
        let number = self.number(setting)?.unwrap_or_default();
        usize::try_from(number)
            .map_err(|_| Error::config(setting.term(), format!("{number} is too large for this machine")))
    }

    /// Returns a duration, or its default.
    pub(super) fn time(&self, setting: &Setting) -> Result<Duration> {
        let number = self.number(setting)?.unwrap_or_default();
        Ok(match setting.kind {
            ValueKind::Millis(..) => Duration::from_millis(number),
            ValueKind::Days(..) => Duration::from_secs(number * 24 * 60 * 60),
            _ => Duration::from_secs(number),
        })
    }

    /// Returns a boolean, or `None` if it is not given.
    pub(super) fn given_yes(&self, setting: &Setting) -> Result<Option<bool>> {
        self.given(setting)?.map(|given| values::boolean(&given.place, &given.text)).transpose()
    }

    /// Returns a boolean, or its default.
    pub(super) fn yes(&self, setting: &Setting) -> Result<bool> {
        Ok(self.given_yes(setting)?.unwrap_or(matches!(setting.fallback, Fallback::Word("yes"))))
    }

    /// Returns the selected word of a choice, or its default.
    pub(super) fn word(&self, setting: &Setting) -> Result<Option<&'static str>> {
        match (self.given(setting)?, setting.fallback) {
            (Some(given), _) => setting.kind.word(&given.place, &given.text).map(Some),
            (None, Fallback::Word(word)) => Ok(Some(word)),
            (None, _) => Ok(None),
        }
    }

    /// Returns a text in the form of the setting, or its default.
    pub(super) fn text(&self, setting: &Setting) -> Result<Option<String>> {
        match (self.given(setting)?, setting.fallback) {
            (Some(given), _) => setting.kind.text(&given.place, &given.text).map(Some),
            (None, Fallback::Word(word)) => Ok(Some(word.to_owned())),
            (None, _) => Ok(None),
        }
    }

    /// Returns a path, or `None` if it is not given.
    pub(super) fn path(&self, setting: &Setting) -> Result<Option<PathBuf>> {
        let given = self.given(setting)?;
        given.map(|given| values::absolute(&given.place, self.base(given.source), &given.text)).transpose()
    }

    /// Returns a token with its source. An empty variable is an error, unlike for other settings.
    pub(super) fn secret(&self, setting: &Setting) -> Result<(TokenSetting, Option<String>)> {
        if setting.given(self.line).is_empty() {
            for name in
                setting.vars.iter().filter(|name| (self.env)(name).is_some_and(|value| value.is_empty()))
            {
                setting.kind.text(name, "")?;
            }
        }
        Ok(match self.given(setting)? {
            Some(given) => {
                let secret = setting.kind.text(&given.place, &given.text)?;
                (TokenSetting { secret: Some(secret), source: given.source }, Some(given.place))
            }
            None => (TokenSetting { secret: None, source: TokenSource::Generated }, None),
        })
    }

    pub(super) fn home(&self) -> PathBuf {
        let home = (self.env)("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        home.unwrap_or_else(|| PathBuf::from("/"))
    }

    /// Returns the data folder. Refuses a folder that a newer version of berth wrote, before any command uses it.
    pub(super) fn data_dir(&self) -> Result<PathBuf> {
        let folder = match self.path(&table::DATA_DIR)? {
            Some(folder) => folder,
            None => self.default_data_dir(rustix::process::geteuid().is_root())?,
        };
        format::check(&folder)?;
        Ok(folder)
    }

    /// Returns the path of the store of scoped tokens. As in the OpenWork server, it is beside `server.json` if that
    /// file exists or if the store is already there; otherwise it is in the data folder.
    pub(super) fn token_store(&self) -> Result<PathBuf> {
        if let Some(path) = self.path(&table::TOKEN_STORE)? {
            return Ok(path);
        }
        let usual = self.home().join(".config/openwork").join(tokens::FILE);
        Ok(match self.file.path.as_deref().and_then(Path::parent) {
            Some(folder) => folder.join(tokens::FILE),
            None if usual.exists() => usual,
            None => self.data_dir()?.join(tokens::FILE),
        })
    }

    pub(super) fn default_data_dir(&self, root: bool) -> Result<PathBuf> {
        // OpenWork's orchestrator stores its own state here. Each orchestrator has another folder, so two of them
        // can start a server each.
        if let Some(folder) = self.path(&table::ORCHESTRATOR_DATA)? {
            return Ok(folder.join("berth"));
        }
        if root {
            return Ok(PathBuf::from("/var/lib/berth"));
        }
        // The XDG specification requires that relative paths are ignored.
        let xdg = (self.env)("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        Ok(xdg.unwrap_or_else(|| self.home().join(".local/share")).join("berth"))
    }

    /// Returns the folder that relative paths start from.
    pub(super) fn base(&self, source: TokenSource) -> &Path {
        match source {
            TokenSource::File => self.file.folder(),
            TokenSource::Cli | TokenSource::Env | TokenSource::Generated => self.current_dir,
        }
    }
}

#[cfg(test)]
pub(super) fn default_data_dir(env: Lookup<'_>, root: bool) -> PathBuf {
    let line = CommandLine::default();
    let sources = Sources { current_dir: Path::new("/w"), ..Sources::without_file(&line, env) };
    sources.default_data_dir(root).unwrap()
}

/// Returns whether a variable contains a secret, so that a file may contain it instead.
fn is_secret(name: &str) -> bool {
    let secret = |kind| matches!(kind, ValueKind::Secret | ValueKind::Json);
    settings().any(|setting| secret(setting.kind) && setting.vars.first() == Some(&name))
}

/// Returns the text of a file without the newline that editors put at the end.
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
