//! `berth daemon run`: OpenWork's router. It serves many folders with one OpenCode. Its routes on a loopback port
//! require no credential: every program on this machine may call them, but web pages of other origins cannot use them
//! for changes. The server that runs OpenCode listens on a separate port with its tokens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::unversioned::transport::TcpConnector;

use super::daemon_state::{DaemonState, DaemonWorkspace};
use super::serve;
use crate::base::{Error, Result, clock, limits, logging};
use crate::config::{self, CommandLine, Resolved, SandboxChoice, table};
use crate::gate::{self, Gate, Listen, Listeners};
use crate::http::client::{Disconnects, Tickets};
use crate::http::request::decode;
use crate::http::{Method, Request, Response, accept};
use crate::opencode::managed::Phase;
use crate::opencode::rules;
use crate::opencode::{HostLookup, Managed};
use crate::proc::{Cgroups, CgroupsHandle};
use crate::server::{self, RunningServer};
use crate::store::file;

/// The maximum number of connections. OpenWork's desktop uses one to poll the daemon.
const CONNECTIONS: usize = 64;
/// The number of threads for requests that the gate does not answer itself.
const THREADS: usize = 2;
const BODY_BYTES: usize = 64 << 10;
/// The time limit of a call to OpenCode.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state of the routes.
struct Daemon {
    state: DaemonState,
    managed: Option<Arc<Managed>>,
    agent: Agent,
    address: SocketAddr,
    opencode_bin: Option<String>,
    started_at: u64,
    up: RunningServer,
}

/// Runs the daemon until a signal or `POST /shutdown`.
///
/// # Errors
/// Fails for an invalid setting or a port that is in use (exit code 2).
pub(super) fn run(mut args: CommandLine, state_file: &str) -> Result<ExitCode> {
    if args.sandbox_wish(&config::process_env)?.choice != SandboxChoice::None {
        return Err(Error::config(
            "--sandbox",
            "the daemon serves folders of the host, and none is in a sandbox",
        ));
    }
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let port = args.number(&table::DAEMON_PORT)?;
    if let Some(folder) = args.opencode_workdir.take() {
        args.workspace = vec![folder];
        args.note(&table::WORKSPACE, table::OPENCODE_WORKDIR.flag());
    }
    if args.workspace.is_empty() {
        args.workspace.push(".".to_owned());
    }
    args.manage_opencode = true;
    // `--daemon-port` is the port of the daemon's routes. Without `--port`, the server uses any free port.
    args.port.get_or_insert_with(|| "0".to_owned());
    let Resolved { settings, log_format, verbose, run_id, .. } = serve::resolved(&args, &current_dir)?;
    file::create_dir_private(&settings.data_dir)?;
    logging::init(log_format, verbose, run_id, super::host::log_output(&args, &current_dir)?);
    let (_, max_files) = gate::raise_file_limit();
    let doors = Listeners::bind(vec![Listen::parse(&format!("127.0.0.1:{port}"))?])?;
    let address = match doors.addresses().first() {
        Some(gate::ListenAddress::Ip(address)) => *address,
        _ => return Err(Error::internal("the daemon's port is no TCP port")),
    };
    let path = settings.data_dir.join(state_file);
    let state = DaemonState::open(&path)?;
    let opencode_bin = settings.opencode.as_ref().map(|plan| plan.program.display().to_string());
    let private_folder = settings.data_dir.join("host/daemon");
    let allowed_hosts = settings.allowed_hosts.clone();
    let detached = args.detached;
    server::run_with(
        settings,
        &serve::service_manager(),
        Some(Box::new(move |up: RunningServer| {
            let (agent, managed) = (agent(), up.managed.clone());
            let started_at = clock::now_unix_ms();
            let daemon = Daemon { state, managed, agent, address, opencode_bin, started_at, up };
            if let Err(error) =
                serve_routes(Arc::new(daemon), doors, private_folder, allowed_hosts, max_files, detached)
            {
                log::error!("{error}");
            }
        })),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn agent() -> Agent {
    let config = Agent::config_builder().http_status_as_error(false).max_redirects(0).proxy(None).build();
    Agent::with_parts(
        config,
        TcpConnector::default(),
        HostLookup::new(Cgroups::from_handle(CgroupsHandle::default())),
    )
}

/// Serves the daemon's routes until the server stops.
fn serve_routes(
    daemon: Arc<Daemon>,
    doors: Listeners,
    private_folder: PathBuf,
    allowed_hosts: Vec<String>,
    max_files: u64,
    detached: bool,
) -> Result<()> {
    file::create_dir_private(&private_folder)?;
    let http = Arc::new(accept::HttpServers::new(THREADS, gate::PROBE_HEADER, {
        let daemon = daemon.clone();
        move |request| daemon.answer(request)
    }));
    let direct = daemon.clone();
    let gate = Gate::start(
        doors,
        gate::GateSettings {
            max_connections: CONNECTIONS,
            max_files,
            allowed_hosts,
            cors_origins: Vec::new(),
            body_cap: Arc::new(|_, _| BODY_BYTES),
            direct: Arc::new(move |_, _| {
                let daemon = direct.clone();
                Some(Box::new(move |request| daemon.answer(request)) as gate::DirectHandler)
            }),
            claim: Arc::new(|_, _| Ok(())),
            private_folder,
            disconnects: Disconnects::default(),
            tickets: Tickets::default(),
        },
        Box::new({
            let http = http.clone();
            move |path: &Path| http.open(path)
        }),
    )?;
    daemon.tell();
    let address = daemon.address;
    let text = format!("orchestrator daemon running on {}:{}\n", address.ip(), address.port());
    if detached {
        super::host_detach::announce(&text, true)
    } else {
        super::print(&text)
    }
    if let Some(managed) = &daemon.managed {
        let mut seen = managed.state();
        while seen.phase != Phase::Stopped {
            daemon.tell();
            seen = managed.changed_since(&seen);
        }
    }
    if let Err(error) = daemon.state.tell(json!({ "cliVersion": env!("CARGO_PKG_VERSION") })) {
        log::error!("{error}");
    }
    gate.drain(Instant::now() + limits::LAST_ANSWERS);
    gate.stop();
    http.stop();
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AddWorkspaceBody {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    base_url: Option<String>,
    #[serde(default)]
    directory: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

impl Daemon {
    /// Updates the addresses of the daemon and of OpenCode in the state file.
    fn tell(&self) {
        let (daemon, opencode) = self.facts();
        let version = env!("CARGO_PKG_VERSION");
        let facts = json!({
            "daemon": daemon, "opencode": opencode, "cliVersion": version, "sidecar": null,
            "binaries": { "opencode": { "path": self.opencode_bin, "source": "external" } },
        });
        if let Err(error) = self.state.tell(facts) {
            log::error!("{error}");
        }
    }

    fn facts(&self) -> (Value, Value) {
        let daemon = json!({
            "pid": std::process::id(),
            "port": self.address.port(),
            "baseUrl": format!("http://{}", self.address),
            "startedAt": self.started_at,
        });
        let state = self.managed.as_ref().map(|managed| managed.state());
        let opencode = state.and_then(|state| {
            let url = state.url?;
            let port = url.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
            Some(json!({ "pid": state.pid, "port": port, "baseUrl": url, "startedAt": self.started_at }))
        });
        (daemon, opencode.unwrap_or(Value::Null))
    }

    fn answer(&self, mut request: Request) {
        let (status, body) = match self.route(&mut request) {
            Ok(answer) => answer,
            Err((status, message)) => (status, json!({ "error": message })),
        };
        let response = if status == 204 { Response::empty(204) } else { Response::json(status, &body) };
        let ends = request.path() == "/shutdown" && status == 200;
        request.answer(response);
        if ends {
            self.up.stop();
        }
    }

    fn route(&self, request: &mut Request) -> Result<(u16, Value), (u16, String)> {
        let path = request.path().to_owned();
        let decoded = |segment: &str| decode(segment).unwrap_or_default();
        let segments: Vec<String> = path.split('/').skip(1).map(decoded).collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        match (request.method(), segments.as_slice()) {
            (Method::Options, _) => Ok((204, Value::Null)),
            (Method::Get, ["health"]) => Ok((200, self.health())),
            (Method::Get, ["workspaces"]) => Ok((200, self.state.list())),
            (Method::Post, ["workspaces"]) => self.add(request),
            (Method::Post, ["workspaces", "remote"]) => self.add_remote(request),
            (Method::Get, ["workspaces", word]) => Ok((200, json!({ "workspace": self.find(word)? }))),
            (Method::Post, ["workspaces", word, "activate"]) => {
                let entry = self.find(word)?;
                self.state.activate(&entry).map_err(failed)?;
                Ok((200, json!({ "activeId": entry.id, "workspace": entry })))
            }
            (Method::Get, ["workspaces", word, "path"]) => {
                let entry = self.find(word)?;
                let answer = self.ask(&entry, "GET", "/path")?;
                Ok((200, json!({ "workspace": entry, "path": answer })))
            }
            (Method::Post, ["instances", word, "dispose"]) => {
                let disposed = self.ask(&self.find(word)?, "POST", "/instance/dispose")?;
                Ok((200, json!({ "disposed": disposed == true })))
            }
            (Method::Post, ["shutdown"]) => Ok((200, json!({ "ok": true }))),
            _ => Err((404, "not found".to_owned())),
        }
    }

    fn health(&self) -> Value {
        let (daemon, opencode) = self.facts();
        let list = self.state.list();
        json!({
            "ok": true,
            "daemon": daemon,
            "opencode": opencode,
            "activeId": list["activeId"],
            "workspaceCount": list["workspaces"].as_array().map_or(0, Vec::len),
            "cliVersion": env!("CARGO_PKG_VERSION"),
            "sidecar": null,
            "binaries": { "opencode": { "path": self.opencode_bin, "source": "external" } },
            "openwork": { "baseUrl": self.up.address },
        })
    }

    fn find(&self, word: &str) -> Result<DaemonWorkspace, (u16, String)> {
        self.state.find(word).ok_or_else(|| (404, "workspace not found".to_owned()))
    }

    fn add(&self, request: &mut Request) -> Result<(u16, Value), (u16, String)> {
        let body: AddWorkspaceBody = request.json(BODY_BYTES).map_err(failed)?;
        let path =
            body.path.filter(|path| !path.trim().is_empty()).ok_or((400, "path is required".to_owned()))?;
        if !path.starts_with('/') || path.contains('\0') {
            return Err((400, format!("path must be an absolute one, not {path:?}")));
        }
        let path = path.trim_end_matches('/').to_owned();
        std::fs::create_dir_all(&path).map_err(|error| (400, format!("{path} cannot be made: {error}")))?;
        let entry = self.state.add(&path, body.name).map_err(failed)?;
        Ok((200, json!({ "activeId": self.state.list()["activeId"], "workspace": entry })))
    }

    fn add_remote(&self, request: &mut Request) -> Result<(u16, Value), (u16, String)> {
        let body: AddWorkspaceBody = request.json(BODY_BYTES).map_err(failed)?;
        let url = body.base_url.unwrap_or_default();
        if !["http://", "https://"].iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme)) {
            return Err((400, "baseUrl must start with http:// or https://".to_owned()));
        }
        let url = url.trim_end_matches('/');
        let entry = self.state.add_remote(url, body.directory, body.name).map_err(failed)?;
        Ok((200, json!({ "activeId": self.state.list()["activeId"], "workspace": entry })))
    }

    /// Calls the OpenCode of a workspace. Returns the JSON of the response, or a status and message for the daemon's
    /// client.
    fn ask(&self, entry: &DaemonWorkspace, method: &str, path: &str) -> Result<Value, (u16, String)> {
        let mut authorization = None;
        let base = match (entry.base_url(), &self.managed) {
            (Some(url), _) => url.to_owned(),
            (None, Some(managed)) => {
                managed.check().map_err(|error| (503, error.message().to_owned()))?;
                let (username, password) = managed.credential();
                let basic = BASE64_STANDARD.encode(format!("{username}:{password}"));
                authorization = Some(format!("Basic {basic}"));
                managed.state().url.unwrap_or_default()
            }
            (None, None) => return Err((503, "OpenCode is not running".to_owned())),
        };
        let query = entry.directory().map(|at| format!("?directory={}", rules::query_value(at)));
        let url = format!("{base}{path}{}", query.unwrap_or_default());
        let mut asked = ureq::http::Request::builder().method(method).uri(&url);
        if let Some(authorization) = authorization {
            asked = asked.header("Authorization", authorization);
        }
        let unreachable = |error: &dyn std::fmt::Display| (502, format!("OpenCode did not answer: {error}"));
        let asked = asked.body("").map_err(|error| unreachable(&error))?;
        let asked = self.agent.configure_request(asked).timeout_global(Some(PATIENCE)).build();
        let mut answer = self.agent.run(asked).map_err(|error| unreachable(&error))?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(limits::CLI_ANSWER_BYTES).read_to_string();
        match status {
            200..300 => Ok(serde_json::from_str(&text.unwrap_or_default()).unwrap_or(Value::Null)),
            status => Err((502, format!("OpenCode answered {status}"))),
        }
    }
}

/// Converts an error into a status and message for the daemon's clients.
fn failed(error: Error) -> (u16, String) {
    (error.code().status(), error.message().to_owned())
}
