//! Determines every setting from the values in `Sources`. Checks that configured folders and keyrings exist; changes
//! nothing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::access::{ApprovalMode, ApprovalSettings, Scope, TokenSetting, TokenSource};
use crate::base::ids::{Distro, check_env};
use crate::base::logging::LogFormat;
use crate::base::{Error, Result};
use crate::containers::network::{Ipv4Range, NetworkConfig};
use crate::gate::Listen;
use crate::roots::RootKind;
use crate::server::{AdvertisedCapabilities, ProxySettings, Settings};
use crate::workspaces::Configured;

use super::line::CommandLine;
use super::setting::{Setting, ValueKind};
use super::sources::{Given, Lookup, Sources};
use super::table::{self, HTTP};
use super::values;

/// All settings of a server start.
#[derive(Debug)]
pub struct Resolved {
    /// The settings from which the server is built.
    pub settings: Settings,
    /// The format of log lines.
    pub log_format: LogFormat,
    /// Whether `--verbose` was given.
    pub verbose: bool,
    /// The id of this start, which each of its log lines contains.
    pub run_id: String,
    /// Whether `--setup` was given.
    pub setup: bool,
    /// Whether `--yes` was given.
    pub assume_yes: bool,
    /// Names of variables that OpenCode receives in addition to the usual ones.
    pub opencode_env: Vec<String>,
}

/// The settings that `berth token show` needs.
#[derive(Debug)]
pub struct TokenPlan {
    /// The data folder, which contains generated tokens.
    pub data_dir: PathBuf,
    /// The path of the store of scoped tokens.
    pub token_store: PathBuf,
    /// The client token in environment or file, and its source.
    pub client: (TokenSetting, Option<String>),
    /// The host token in environment or file, and its source.
    pub host: (TokenSetting, Option<String>),
}

const INBOX_BYTES_MAX: u64 = 250_000_000;
const MIRROR: &[&str] = &["http://", "https://", "file://"];

/// Determines every setting of `berth serve`.
///
/// # Errors
/// `Config` with the flag, variable or position in the file that is wrong.
pub fn resolve(line: &CommandLine, env: Lookup<'_>, current_dir: &Path) -> Result<Resolved> {
    let sources = Sources::open(line, env, current_dir)?;
    let inherited = match (sources.var("LISTEN_PID")?, sources.var("LISTEN_FDS")?) {
        (Some(pid), Some(count)) => Some((pid, count)),
        _ => None,
    };
    if line.log_requests && line.no_log_requests {
        return Err(Error::config("--no-log-requests", "contradicts --log-requests"));
    }
    let log_requests = match line.no_log_requests {
        true => Some(false),
        false => sources.given_yes(&table::LOG_REQUESTS)?,
    };
    let client = sources.secret(&table::TOKEN)?;
    let owner = sources.secret(&table::HOST_TOKEN)?;
    if client.0.secret.is_some() && client.0.secret == owner.0.secret {
        let place = owner.1.unwrap_or_default();
        return Err(Error::config(
            place,
            "is the same as the client token, so every client would be an owner",
        ));
    }
    let workspaces = sources.workspaces()?;
    let mode = match sources.word(&table::APPROVAL)? {
        Some("auto") => ApprovalMode::Auto,
        _ => ApprovalMode::Manual,
    };
    let threads = sources.number(&table::HTTP_THREADS)?.and_then(|threads| usize::try_from(threads).ok());
    let private_key = sources.given(&table::PRIVATE_KEY)?;
    let settings = Settings {
        listen: sources.listen(inherited.is_some())?,
        inherited,
        allowed_hosts: sources.list(&table::ALLOWED_HOST)?,
        max_connections: sources.count(&table::MAX_CONNECTIONS)?,
        drain: sources.time(&table::DRAIN_TIMEOUT)?,
        data_dir: sources.data_dir()?,
        token_store: sources.token_store()?,
        client_token: client.0,
        host_token: owner.0,
        login: super::login::login(&sources)?,
        approval: ApprovalSettings { mode, timeout: sources.time(&table::APPROVAL_TIMEOUT)? },
        read_only: sources.yes(&table::READ_ONLY)?,
        cors_origins: sources.cors()?,
        authorized_roots: sources.authorized_roots(&workspaces)?,
        current_dir: current_dir.to_path_buf(),
        home: sources.home(),
        log_all_requests: log_requests.is_some(),
        log_requests: log_requests.unwrap_or(true),
        advertised: sources.advertised()?,
        mirrors: sources.by_distro(&table::MIRROR, |given, text| {
            values::url(&given.place, text, MIRROR).map(|()| text.to_owned())
        })?,
        keyrings: sources.by_distro(&table::KEYRING, |given, text| {
            let path = values::absolute(&given.place, sources.base(given.source), text)?;
            // debootstrap needs a file and pacman a folder; the build checks that the keyring is of the right kind.
            if !path.exists() {
                return Err(Error::config(&given.place, format!("{} does not exist", path.display())));
            }
            Ok(path)
        })?,
        proxy_env: sources.proxies()?,
        proxying: ProxySettings {
            workers: sources.count(&table::MAX_PROXIED)?,
            patience: sources.time(&table::OPENCODE_TIMEOUT)?,
            permission_replies: sources.scope(&table::PERMISSION_REPLIES)?,
            opencode_shell: sources.scope(&table::OPENCODE_SHELL)?,
        },
        opencode: super::opencode::plan(&sources, &workspaces)?,
        workspaces,
        max_runs: sources.count(&table::MAX_RUNS)?,
        max_streams: sources.count(&table::MAX_STREAMS)?,
        run_output_limit: sources.number(&table::RUN_OUTPUT_LIMIT)?.unwrap_or_default(),
        runs_disk_limit: sources.number(&table::RUNS_DISK_LIMIT)?.unwrap_or_default(),
        output_limit: sources.count(&table::OUTPUT_LIMIT)?,
        init_timeout: sources.time(&table::INIT_TIMEOUT)?,
        image_timeout: sources.time(&table::IMAGE_TIMEOUT)?,
        library: sources.path(&table::LIBRARY)?,
        private_key: TokenSetting {
            source: private_key.as_ref().map_or(TokenSource::Generated, |given| given.source),
            secret: private_key.map(|given| given.text),
        },
        private_key_file: sources.path(&table::PRIVATE_KEY_FILE)?,
        idle_timeout: sources.time(&table::IDLE_TIMEOUT)?,
        mount_allowlist: sources.mount_allowlist()?,
        private_network: sources.private_network()?,
        root_backend: sources.word(&table::ROOT_BACKEND)?.and_then(|word| {
            [RootKind::Overlay, RootKind::Reflink, RootKind::Copy]
                .into_iter()
                .find(|kind| kind.as_str() == word)
        }),
        http_threads: threads.unwrap_or_else(default_http_threads),
        config_path: sources.file.path.clone(),
    };
    let log_format = match sources.word(&table::LOG_FORMAT)? {
        Some("json") => LogFormat::Json,
        _ => LogFormat::Pretty,
    };
    let run_id = sources.text(&table::RUN_ID)?;
    Ok(Resolved {
        settings,
        log_format,
        verbose: line.verbose,
        run_id: run_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        setup: line.setup,
        assume_yes: line.yes,
        opencode_env: sources.list(&table::OPENCODE_ENV)?,
    })
}

/// Determines the settings of `berth token show`. Errors in other settings are ignored, so that users can still read
/// their tokens.
///
/// # Errors
/// Fails like [`resolve`].
pub fn resolve_tokens(line: &CommandLine, env: Lookup<'_>, current_dir: &Path) -> Result<TokenPlan> {
    let sources = Sources::open(line, env, current_dir)?;
    Ok(TokenPlan {
        data_dir: sources.data_dir()?,
        token_store: sources.token_store()?,
        client: sources.secret(&table::TOKEN)?,
        host: sources.secret(&table::HOST_TOKEN)?,
    })
}

/// Determines only the data folder.
///
/// # Errors
/// Fails like [`resolve`].
pub fn resolve_data_dir(line: &CommandLine, env: Lookup<'_>, current_dir: &Path) -> Result<PathBuf> {
    Sources::open(line, env, current_dir)?.data_dir()
}

fn default_http_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    (2 * cores).clamp(4, 256)
}

impl Sources<'_> {
    /// Returns the addresses to listen on. The default address is used only if no other address is given; an
    /// explicit host or port is always used.
    fn listen(&self, inherited: bool) -> Result<Vec<String>> {
        let mut listen = self.list(&table::LISTEN)?;
        for place in &listen {
            Listen::parse(place)?;
        }
        let given = self.given(&table::HOST)?.is_some() || self.given(&table::PORT)?.is_some();
        if given || listen.is_empty() && !inherited {
            let host = self.text(&table::HOST)?.unwrap_or_default();
            let host = if host == "localhost" { "127.0.0.1".to_owned() } else { host };
            let host = if host.contains(':') { format!("[{host}]") } else { host };
            let port = self.number(&table::PORT)?.unwrap_or_default();
            listen.insert(0, format!("{host}:{port}"));
        }
        Ok(listen)
    }

    fn scope(&self, setting: &Setting) -> Result<Scope> {
        Ok(match self.word(setting)? {
            Some("collaborator") => Scope::Collaborator,
            _ => Scope::Owner,
        })
    }

    fn mount_allowlist(&self) -> Result<PathBuf> {
        let given = self.text(&table::MOUNT_ALLOWLIST)?;
        match given.as_deref().map(|path| path.strip_prefix("~/")) {
            Some(Some(rest)) => Ok(self.home().join(rest)),
            Some(None) => Ok(self.path(&table::MOUNT_ALLOWLIST)?.unwrap_or_default()),
            None => Ok(self.home().join(".config/openwork/sandbox-mount-allowlist.json")),
        }
    }

    fn private_network(&self) -> Result<NetworkConfig> {
        let range = self.given(&table::PRIVATE_RANGE)?.map(|given| {
            Ipv4Range::parse_for_links(&given.text).map_err(|problem| Error::config(&given.place, problem))
        });
        let server = |given: Given| {
            let address: Option<Ipv4Addr> = given.text.parse().ok();
            address.filter(|address| !address.is_loopback() && !address.is_unspecified()).ok_or_else(|| {
                let problem = format!(
                    "{:?} is not an IPv4 address of a name server that a container can reach",
                    given.text
                );
                Error::config(&given.place, problem)
            })
        };
        let dns = self.all(&table::PRIVATE_DNS)?.into_iter().map(server).collect::<Result<_>>()?;
        Ok(NetworkConfig { range: range.transpose()?, dns })
    }

    fn workspaces(&self) -> Result<Vec<Configured>> {
        let mut workspaces: Vec<Configured> = Vec::new();
        let mut add = |place: &str, workspace: Configured| {
            if !workspace.path.is_dir() {
                let problem = if workspace.path.exists() { "is not a folder" } else { "does not exist" };
                return Err(Error::config(place, format!("{} {problem}", workspace.path.display())));
            }
            if workspaces.iter().any(|other| other.path == workspace.path) {
                return Err(Error::config(place, format!("{} is given twice", workspace.path.display())));
            }
            workspaces.push(workspace);
            Ok(())
        };
        let flags = table::WORKSPACE.given(self.line);
        if !flags.is_empty() {
            let place = self.line.place(&table::WORKSPACE);
            for path in flags {
                add(&place, local(values::absolute(&place, self.current_dir, path)?))?;
            }
        } else if let Some(given) = self.given(&table::WORKSPACE)? {
            for path in path_list(&given.place, &given.text)? {
                add(&given.place, local(values::absolute(&given.place, self.current_dir, &path)?))?;
            }
        } else {
            for (index, json) in self.file.json.workspaces.iter().flatten().enumerate() {
                let place = |field: &str| self.file.place(&format!("workspaces[{index}].{field}"));
                let path = values::absolute(&place("path"), self.file.folder(), &json.path)?;
                let kind = json.workspace_type.as_deref().unwrap_or("local");
                let kind = ValueKind::Choice(&["local", "remote"]).word(&place("workspaceType"), kind)?;
                if let Some(url) = &json.base_url {
                    values::url(&place("baseUrl"), url, HTTP)?;
                }
                let plain = local(path);
                let workspace = Configured {
                    name: json.name.clone().filter(|name| !name.is_empty()).unwrap_or(plain.name),
                    path: plain.path,
                    workspace_type: kind.to_owned(),
                    base_url: json.base_url.clone(),
                    directory: json.directory.clone(),
                    opencode_username: json.opencode_username.clone(),
                    opencode_password: json.opencode_password.clone(),
                    password_is_shared: false,
                };
                add(&place("path"), workspace)?;
            }
        }
        self.fill_opencode(&mut workspaces)?;
        Ok(workspaces)
    }

    fn authorized_roots(&self, workspaces: &[Configured]) -> Result<Vec<PathBuf>> {
        let roots = self.all(&table::AUTHORIZED_ROOT)?;
        // An empty list in the file means that there are none.
        if !roots.is_empty() || self.file.json.values.contains_key(table::AUTHORIZED_ROOT.key) {
            let path = |given: &Given| values::absolute(&given.place, self.base(given.source), &given.text);
            return roots.iter().map(path).collect();
        }
        if workspaces.is_empty() {
            return Ok(vec![self.current_dir.to_path_buf()]);
        }
        Ok(workspaces.iter().map(|workspace| workspace.path.clone()).collect())
    }

    fn cors(&self) -> Result<Vec<String>> {
        let list = self.all(&table::CORS)?;
        let place = list.first().map_or("", |given| given.place.as_str());
        values::origins(place, list.iter().flat_map(|given| given.text.split(',')))
    }

    /// Returns the settings by distribution. For each distribution, the strongest source wins.
    fn by_distro<T>(
        &self,
        setting: &Setting,
        read: impl Fn(&Given, &str) -> Result<T>,
    ) -> Result<BTreeMap<Distro, T>> {
        let mut decided = BTreeMap::new();
        for level in self.pairs(setting)? {
            let mut level_decided = BTreeMap::new();
            for given in level {
                let (distro, text) = values::distro_pair(&given.place, &given.text)?;
                if level_decided.insert(distro, read(&given, text)?).is_some() {
                    return Err(Error::config(&given.place, format!("{distro} is given twice")));
                }
            }
            decided.append(&mut level_decided);
        }
        Ok(decided)
    }

    fn proxies(&self) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        let upper = table::PROXIES.vars.iter().map(|name| name.to_ascii_uppercase());
        for name in table::PROXIES.vars.iter().map(|name| (*name).to_owned()).chain(upper) {
            if let Some(value) = self.var(&name)? {
                check_env(&name, &value).map_err(|error| Error::config(&name, error.message()))?;
                found.push((name, value));
            }
        }
        Ok(found)
    }

    fn advertised(&self) -> Result<AdvertisedCapabilities> {
        let backend = self.word(&table::SANDBOX_BACKEND)?.unwrap_or("none");
        Ok(AdvertisedCapabilities {
            inbox_enabled: self.yes(&table::INBOX_ENABLED)?,
            inbox_max_bytes: self.number(&table::INBOX_MAX_BYTES)?.unwrap_or_default().min(INBOX_BYTES_MAX),
            outbox_enabled: self.yes(&table::OUTBOX_ENABLED)?,
            toy_ui: self.yes(&table::TOY_UI)?,
            sandbox_enabled: self.given_yes(&table::SANDBOX_ENABLED)?.unwrap_or(backend != "none"),
            sandbox_backend: backend.to_owned(),
            sandbox_engine: None,
            browser_provider: self.word(&table::BROWSER_PROVIDER)?.map(str::to_owned),
        })
    }
}

/// Returns a workspace of which only the folder is known.
fn local(path: PathBuf) -> Configured {
    let name = path.file_name().map_or_else(|| "root".to_owned(), |name| name.to_string_lossy().into_owned());
    Configured {
        path,
        name,
        workspace_type: "local".to_owned(),
        base_url: None,
        directory: None,
        opencode_username: None,
        opencode_password: None,
        password_is_shared: false,
    }
}

/// Parses a JSON array of strings, or a list of paths separated by `,` or `;`.
fn path_list(place: &str, list: &str) -> Result<Vec<String>> {
    if list.trim_start().starts_with('[') {
        return serde_json::from_str(list)
            .map_err(|error| Error::config(place, format!("is not a JSON array of strings: {error}")));
    }
    Ok(list.split([',', ';']).map(str::trim).filter(|path| !path.is_empty()).map(str::to_owned).collect())
}
