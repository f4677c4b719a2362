//! Decides every setting from what `Sources` finds. Checks that named folders and keyrings exist; changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::access::{ApprovalMode, ApprovalSettings, TokenSetting, TokenSource};
use crate::base::ids::{Distro, check_env};
use crate::base::logging::LogFormat;
use crate::base::{Error, Result, limits};
use crate::gate::Listen;
use crate::server::{AdvertisedCapabilities, Settings};
use crate::workspaces::Configured;

use super::args::{ServeArgs, TokenArgs};
use super::sources::{Given, Lookup, Sources};
use super::values;

/// Everything that was decided before the start.
#[derive(Debug)]
pub struct Resolved {
    /// What the server is built from.
    pub settings: Settings,
    /// How log lines look.
    pub log_format: LogFormat,
    /// `--verbose`.
    pub verbose: bool,
    /// Stands in every log line of this start.
    pub run_id: String,
    /// `--setup`.
    pub setup: bool,
    /// `--yes`.
    pub assume_yes: bool,
    /// Variables that OpenCode gets besides the usual ones.
    pub opencode_env: Vec<String>,
}

/// What `berth token show` needs.
#[derive(Debug)]
pub struct TokenPlan {
    /// Where generated tokens are kept.
    pub data_dir: PathBuf,
    /// Where scoped tokens are kept.
    pub token_store: PathBuf,
    /// What environment and file say about the client token, and where they say it.
    pub client: (TokenSetting, Option<String>),
    /// The same for the host token.
    pub host: (TokenSetting, Option<String>),
}

const APPROVAL_TIMEOUT_MS: u64 = 30_000;
/// JavaScript clients keep this as a timer's delay, and larger ones fire at once.
const APPROVAL_TIMEOUT_MS_MAX: u64 = (1 << 31) - 1;
/// A day: a script that compiles a world takes hours; what takes longer is a service and no init script.
const INIT_TIMEOUT_MAX: u64 = 24 * 60 * 60;
/// Below the least a run has too little to be read by anybody; nobody has a larger disk than the most.
const RUN_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 50;
const INBOX_BYTES: u64 = 50_000_000;
const INBOX_BYTES_MAX: u64 = 250_000_000;
pub(super) const HTTP: &[&str] = &["http://", "https://"];
const MIRROR: &[&str] = &["http://", "https://", "file://"];
const PROXY_VARS: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];

/// Decides every setting of `berth serve`.
///
/// # Errors
/// `Config` with the flag, the variable or the place in the file that is wrong.
pub fn resolve(args: &ServeArgs, env: Lookup<'_>, current_dir: &Path) -> Result<Resolved> {
    let sources = Sources::open(args.config.as_deref(), env, current_dir)?;
    let json = &sources.file.json;
    let approval = json.approval.as_ref();

    let host = sources.pick("--host", args.host.as_deref(), "OPENWORK_HOST", "host", json.host.clone())?;
    let port = sources.pick("--port", args.port.as_deref(), "OPENWORK_PORT", "port", text(json.port))?;
    let mode = sources.pick(
        "--approval",
        args.approval.as_deref(),
        "OPENWORK_APPROVAL_MODE",
        "approval.mode",
        approval.and_then(|approval| approval.mode.clone()),
    )?;
    let timeout = sources.pick(
        "--approval-timeout",
        args.approval_timeout.as_deref(),
        "OPENWORK_APPROVAL_TIMEOUT_MS",
        "approval.timeoutMs",
        text(approval.and_then(|approval| approval.timeout_ms)),
    )?;
    let max_runs = sources.pick(
        "--max-runs",
        args.max_runs.as_deref(),
        "BERTH_MAX_RUNS",
        "maxRuns",
        text(json.max_runs),
    )?;
    let max_streams = sources.pick(
        "--max-streams",
        args.max_streams.as_deref(),
        "BERTH_MAX_STREAMS",
        "maxStreams",
        text(json.max_streams),
    )?;
    let run_output_limit = sources.pick(
        "--run-output-limit",
        args.run_output_limit.as_deref(),
        "BERTH_RUN_OUTPUT_LIMIT",
        "runOutputLimit",
        text(json.run_output_limit),
    )?;
    let runs_disk_limit = sources.pick(
        "--runs-disk-limit",
        args.runs_disk_limit.as_deref(),
        "BERTH_RUNS_DISK_LIMIT",
        "runsDiskLimit",
        text(json.runs_disk_limit),
    )?;
    let output_limit = sources.pick(
        "--output-limit",
        args.output_limit.as_deref(),
        "BERTH_OUTPUT_LIMIT",
        "outputLimit",
        text(json.output_limit),
    )?;
    let init_timeout = sources.pick(
        "--init-timeout",
        args.init_timeout.as_deref(),
        "BERTH_INIT_TIMEOUT",
        "initTimeout",
        text(json.init_timeout),
    )?;
    let library = sources.pick(
        "--library",
        args.library.as_deref(),
        "LIBRARY_PATH",
        "library",
        json.library.clone(),
    )?;
    let root_backend = sources.pick(
        "--root-backend",
        args.root_backend.as_deref(),
        "BERTH_ROOT_BACKEND",
        "rootBackend",
        json.root_backend.clone(),
    )?;
    let idle_timeout = sources.pick(
        "--idle-timeout",
        args.idle_timeout.as_deref(),
        "BERTH_IDLE_TIMEOUT",
        "idleTimeout",
        text(json.idle_timeout),
    )?;
    let http_threads = sources.pick(
        "--http-threads",
        args.http_threads.as_deref(),
        "BERTH_HTTP_THREADS",
        "httpThreads",
        text(json.http_threads),
    )?;
    let max_connections = sources.pick(
        "--max-connections",
        args.max_connections.as_deref(),
        "BERTH_MAX_CONNECTIONS",
        "maxConnections",
        text(json.max_connections),
    )?;
    let drain = sources.pick(
        "--drain-timeout",
        args.drain_timeout.as_deref(),
        "BERTH_DRAIN_TIMEOUT",
        "drainTimeout",
        text(json.drain_timeout),
    )?;
    let allowed_hosts =
        sources.list(&args.allowed_host, "BERTH_ALLOWED_HOSTS", json.allowed_hosts.as_deref())?;
    let mut listen = sources.list(&args.listen, "BERTH_LISTEN", json.listen.as_deref())?;
    for place in &listen {
        Listen::parse(place)?;
    }
    let inherited = match (sources.var("LISTEN_PID")?, sources.var("LISTEN_FDS")?) {
        (Some(pid), Some(count)) => Some((pid, count)),
        _ => None,
    };
    // The default address only where nothing else was asked for; a host or port that was set is always wanted.
    let address_wanted = host.is_some() || port.is_some() || (listen.is_empty() && inherited.is_none());
    let log_format = sources.pick(
        "--log-format",
        args.log_format.as_deref(),
        "OPENWORK_LOG_FORMAT",
        "logFormat",
        json.log_format.clone(),
    )?;
    let read_only = sources.pick(
        "--read-only",
        args.read_only.then_some("true"),
        "OPENWORK_READONLY",
        "readOnly",
        text(json.read_only),
    )?;
    if args.log_requests && args.no_log_requests {
        return Err(Error::config("--no-log-requests", "contradicts --log-requests"));
    }
    let log_requests = sources.pick(
        "--log-requests",
        if args.no_log_requests { Some("false") } else { args.log_requests.then_some("true") },
        "OPENWORK_LOG_REQUESTS",
        "logRequests",
        text(json.log_requests),
    )?;

    let client = sources.token("--token", args.token.as_deref(), "OPENWORK_TOKEN", "token", &json.token)?;
    let owner = sources.token(
        "--host-token",
        args.host_token.as_deref(),
        "OPENWORK_HOST_TOKEN",
        "hostToken",
        &json.host_token,
    )?;
    if client.0.secret.is_some() && client.0.secret == owner.0.secret {
        let place = owner.1.unwrap_or_default();
        return Err(Error::config(
            place,
            "is the same as the client token, so every client would be an owner",
        ));
    }

    let workspaces = sources.workspaces(args)?;
    let authorized_roots = sources.authorized_roots(args, &workspaces)?;
    let opencode = super::opencode::plan(&sources, args, &workspaces)?;
    let cors_origins = sources.cors(args)?;
    let mode = mode.map_or(Ok(ApprovalMode::Manual), |given| {
        values::word(
            &given.place,
            &given.text,
            &[("auto", ApprovalMode::Auto), ("manual", ApprovalMode::Manual)],
        )
    })?;
    let timeout_ms = timeout.map_or(Ok(APPROVAL_TIMEOUT_MS), |given| {
        values::number(&given.place, &given.text, 1..=APPROVAL_TIMEOUT_MS_MAX)
    })?;
    let count = |given: Option<Given>, default: usize, range| {
        given.map_or(Ok(default), |given| values::count(&given.place, &given.text, range))
    };
    let settings = Settings {
        listen: {
            if address_wanted {
                let host =
                    host.map_or(Ok("127.0.0.1".to_owned()), |given| values::host(&given.place, given.text))?;
                let host = if host == "localhost" { "127.0.0.1".to_owned() } else { host };
                let port = port.map_or(Ok(8787), |given| {
                    values::number(&given.place, &given.text, 0..=u64::from(u16::MAX))
                })?;
                let host = if host.contains(':') { format!("[{host}]") } else { host };
                listen.insert(0, format!("{host}:{port}"));
            }
            listen
        },
        inherited,
        allowed_hosts,
        max_connections: count(max_connections, limits::CONNECTIONS, 1..=65_536)?,
        drain: drain.map_or(Ok(limits::DRAIN), |given| {
            values::number(&given.place, &given.text, 0..=3600).map(Duration::from_secs)
        })?,
        data_dir: sources.data_dir(args.data_dir.as_deref())?,
        token_store: sources.token_store(args.data_dir.as_deref())?,
        client_token: client.0,
        host_token: owner.0,
        login: super::login::login(&sources)?,
        approval: ApprovalSettings { mode, timeout: Duration::from_millis(timeout_ms) },
        read_only: read_only.map_or(Ok(false), |given| values::boolean(&given.place, &given.text))?,
        cors_origins,
        workspaces,
        authorized_roots,
        current_dir: current_dir.to_path_buf(),
        home: sources.home(),
        log_all_requests: log_requests.is_some(),
        log_requests: log_requests.map_or(Ok(true), |given| values::boolean(&given.place, &given.text))?,
        advertised: sources.advertised()?,
        mirrors: sources.mirrors(args)?,
        keyrings: sources.keyrings(args)?,
        proxy_env: sources.proxies()?,
        proxying: super::proxy::proxying(&sources, args)?,
        opencode,
        max_runs: count(max_runs, limits::RUN_WORKERS, 1..=1024)?,
        max_streams: count(max_streams, limits::STREAM_WORKERS, 1..=4096)?,
        run_output_limit: run_output_limit.map_or(Ok(limits::RUN_OUTPUT_BYTES), |given| {
            values::number(&given.place, &given.text, RUN_BYTES)
        })?,
        runs_disk_limit: runs_disk_limit.map_or(Ok(limits::RUNS_DISK_BYTES), |given| {
            values::number(&given.place, &given.text, RUN_BYTES)
        })?,
        output_limit: count(output_limit, limits::OUTPUT_BYTES, 4096..=1 << 30)?,
        init_timeout: init_timeout.map_or(Ok(limits::INIT_SCRIPT_TIMEOUT), |given| {
            values::number(&given.place, &given.text, 1..=INIT_TIMEOUT_MAX).map(Duration::from_secs)
        })?,
        image_timeout: sources.image_timeout(args)?,
        library: library
            .map(|given| values::absolute(&given.place, sources.base(given.source), &given.text))
            .transpose()?,
        private_key: {
            let secret = sources.var("PRIVATE_KEY")?;
            let source = if secret.is_some() { TokenSource::Env } else { TokenSource::Generated };
            TokenSetting { secret, source }
        },
        private_key_file: sources
            .var("PRIVATE_KEY_FILE")?
            .map(|path| values::absolute("PRIVATE_KEY_FILE", current_dir, &path))
            .transpose()?,
        idle_timeout: idle_timeout.map_or(Ok(limits::IDLE_TIMEOUT), |given| {
            values::number(&given.place, &given.text, 0..=limits::IDLE_TIMEOUT_MOST).map(Duration::from_secs)
        })?,
        mount_allowlist: sources.mount_allowlist()?,
        private_network: sources.private_network(args)?,
        root_backend: match root_backend {
            Some(given) => values::root_backend(&given.place, &given.text)?,
            None => None,
        },
        http_threads: count(http_threads, default_http_threads(), 1..=256)?,
        config_path: sources.file.path.clone(),
    };
    let log_format = log_format.map_or(Ok(LogFormat::Pretty), |given| {
        values::word(&given.place, &given.text, &[("pretty", LogFormat::Pretty), ("json", LogFormat::Json)])
    })?;
    let run_id = match sources.var("OPENWRK_RUN_ID")? {
        Some(id) => id,
        None => sources.var("OPENWORK_RUN_ID")?.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
    };
    Ok(Resolved {
        settings,
        log_format,
        verbose: args.verbose,
        run_id,
        setup: args.setup,
        assume_yes: args.yes,
        opencode_env: sources.list(&args.opencode_env, "BERTH_OPENCODE_ENV", json.opencode_env.as_deref())?,
    })
}

/// Decides what `berth token show` looks at; a wrong setting elsewhere does not keep anyone from their tokens.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_tokens(args: &TokenArgs, env: Lookup<'_>, current_dir: &Path) -> Result<TokenPlan> {
    let sources = Sources::open(args.config.as_deref(), env, current_dir)?;
    let json = &sources.file.json;
    Ok(TokenPlan {
        data_dir: sources.data_dir(args.data_dir.as_deref())?,
        token_store: sources.token_store(args.data_dir.as_deref())?,
        client: sources.token("--token", None, "OPENWORK_TOKEN", "token", &json.token)?,
        host: sources.token("--host-token", None, "OPENWORK_HOST_TOKEN", "hostToken", &json.host_token)?,
    })
}

fn default_http_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    (2 * cores).clamp(4, 256)
}

fn text(value: Option<impl ToString>) -> Option<String> {
    value.map(|value| value.to_string())
}

impl Sources<'_> {
    fn workspaces(&self, args: &ServeArgs) -> Result<Vec<Configured>> {
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
        if !args.workspace.is_empty() {
            for path in &args.workspace {
                add("--workspace", local(values::absolute("--workspace", self.current_dir, path)?))?;
            }
        } else if let Some(list) = self.var("OPENWORK_WORKSPACES")? {
            let place = "OPENWORK_WORKSPACES";
            for path in path_list(place, &list)? {
                add(place, local(values::absolute(place, self.current_dir, &path)?))?;
            }
        } else {
            for (index, json) in self.file.json.workspaces.iter().flatten().enumerate() {
                let place = |field: &str| self.file.place(&format!("workspaces[{index}].{field}"));
                let path = values::absolute(&place("path"), self.file.folder(), &json.path)?;
                let kind = json.workspace_type.as_deref().unwrap_or("local");
                let words = [("local", "local"), ("remote", "remote")];
                let kind = values::word(&place("workspaceType"), kind, &words)?;
                let base_url = json.base_url.as_deref();
                let base_url = base_url.map(|url| values::url(&place("baseUrl"), url, HTTP)).transpose()?;
                let plain = local(path);
                let workspace = Configured {
                    name: json.name.clone().filter(|name| !name.is_empty()).unwrap_or(plain.name),
                    path: plain.path,
                    workspace_type: kind.to_owned(),
                    base_url,
                    directory: json.directory.clone(),
                    opencode_username: json.opencode_username.clone(),
                    opencode_password: json.opencode_password.clone(),
                    password_is_shared: false,
                };
                add(&place("path"), workspace)?;
            }
        }
        self.fill_opencode(args, &mut workspaces)?;
        Ok(workspaces)
    }

    fn authorized_roots(&self, args: &ServeArgs, workspaces: &[Configured]) -> Result<Vec<PathBuf>> {
        if !args.authorized_root.is_empty() {
            let place = "--authorized-root";
            return args
                .authorized_root
                .iter()
                .map(|root| values::absolute(place, self.current_dir, root))
                .collect();
        }
        if let Some(roots) = &self.file.json.authorized_roots {
            let place = self.file.place("authorizedRoots");
            return roots.iter().map(|root| values::absolute(&place, self.file.folder(), root)).collect();
        }
        if workspaces.is_empty() {
            return Ok(vec![self.current_dir.to_path_buf()]);
        }
        Ok(workspaces.iter().map(|workspace| workspace.path.clone()).collect())
    }

    fn cors(&self, args: &ServeArgs) -> Result<Vec<String>> {
        if let Some(given) = self.pick("--cors", args.cors.as_deref(), "OPENWORK_CORS_ORIGINS", "", None)? {
            return values::origins(&given.place, given.text.split(','));
        }
        let list = self.file.json.cors_origins.iter().flatten().map(String::as_str);
        values::origins(&self.file.place("corsOrigins"), list)
    }

    fn mirrors(&self, args: &ServeArgs) -> Result<BTreeMap<Distro, String>> {
        self.by_distro(
            "--mirror",
            &args.mirror,
            "BERTH_MIRRORS",
            "mirrors",
            &self.file.json.mirrors,
            |place, _, text| values::url(place, text, MIRROR),
        )
    }

    fn keyrings(&self, args: &ServeArgs) -> Result<BTreeMap<Distro, PathBuf>> {
        let json = &self.file.json.keyrings;
        self.by_distro(
            "--keyring",
            &args.keyring,
            "BERTH_KEYRINGS",
            "keyrings",
            json,
            |place, source, text| {
                let path = values::absolute(place, self.base(source), text)?;
                // A file for debootstrap, a folder for pacman: which one is right is the build's business.
                if !path.exists() {
                    return Err(Error::config(place, format!("{} does not exist", path.display())));
                }
                Ok(path)
            },
        )
    }

    /// Settings by distribution: each distribution's own is decided by flag > environment > file.
    fn by_distro<T>(
        &self,
        flag: &str,
        arguments: &[String],
        variable: &str,
        field: &str,
        json: &Option<BTreeMap<String, String>>,
        read: impl Fn(&str, TokenSource, &str) -> Result<T>,
    ) -> Result<BTreeMap<Distro, T>> {
        // One map a level, weakest first; a distribution may stand once in each.
        let mut decided = BTreeMap::new();
        let mut level = BTreeMap::new();
        let add = |level: &mut BTreeMap<Distro, T>, place: &str, source, (distro, text): (Distro, &str)| {
            match level.insert(distro, read(place, source, text)?) {
                Some(_) => Err(Error::config(place, format!("{distro} is given twice"))),
                None => Ok(()),
            }
        };
        for (name, text) in json.iter().flatten() {
            let place = self.file.place(&format!("{field}.{name}"));
            add(&mut level, &place, TokenSource::File, (values::distro(&place, name)?, text))?;
        }
        decided.append(&mut level);
        let list = self.var(variable)?.unwrap_or_default();
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            add(&mut level, variable, TokenSource::Env, values::distro_pair(variable, entry)?)?;
        }
        decided.append(&mut level);
        for entry in arguments {
            add(&mut level, flag, TokenSource::Cli, values::distro_pair(flag, entry)?)?;
        }
        decided.append(&mut level);
        Ok(decided)
    }

    fn proxies(&self) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        for name in PROXY_VARS.iter().flat_map(|name| [(*name).to_owned(), name.to_ascii_uppercase()]) {
            if let Some(value) = self.var(&name)? {
                check_env(&name, &value).map_err(|error| Error::config(&name, error.message()))?;
                found.push((name, value));
            }
        }
        Ok(found)
    }

    fn advertised(&self) -> Result<AdvertisedCapabilities> {
        let flag = |name: &str| self.var(name)?.map(|text| values::boolean(name, &text)).transpose();
        let choice = |name: &str, words: &[&'static str]| {
            let words: Vec<_> = words.iter().map(|word| (*word, *word)).collect();
            self.var(name)?.map(|text| values::word(name, &text, &words)).transpose()
        };
        let backend = choice("OPENWORK_SANDBOX_BACKEND", &["none", "docker", "container"])?.unwrap_or("none");
        let provider = choice(
            "OPENWORK_BROWSER_PROVIDER",
            &["sandbox-headless", "host-interactive", "client-interactive"],
        )?;
        let bytes = "OPENWORK_INBOX_MAX_BYTES";
        let bytes = self.var(bytes)?.map(|text| values::number(bytes, &text, 1..=u64::MAX)).transpose()?;
        Ok(AdvertisedCapabilities {
            inbox_enabled: flag("OPENWORK_INBOX_ENABLED")?.unwrap_or(true),
            inbox_max_bytes: bytes.map_or(INBOX_BYTES, |bytes| bytes.min(INBOX_BYTES_MAX)),
            outbox_enabled: flag("OPENWORK_OUTBOX_ENABLED")?.unwrap_or(true),
            toy_ui: flag("OPENWORK_TOY_UI")?.unwrap_or(true),
            sandbox_enabled: flag("OPENWORK_SANDBOX_ENABLED")?.unwrap_or(backend != "none"),
            sandbox_backend: backend.to_owned(),
            sandbox_engine: None,
            browser_provider: provider.map(str::to_owned),
        })
    }
}

/// A workspace of which only the folder is known.
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

/// A JSON array of strings, or a list with `,` or `;` between the paths.
fn path_list(place: &str, list: &str) -> Result<Vec<String>> {
    if list.trim_start().starts_with('[') {
        return serde_json::from_str(list)
            .map_err(|error| Error::config(place, format!("is not a JSON array of strings: {error}")));
    }
    Ok(list.split([',', ';']).map(str::trim).filter(|path| !path.is_empty()).map(str::to_owned).collect())
}
