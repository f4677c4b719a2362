//! Creates all services, owns all threads, and shuts the server down.

mod announce;
mod in_container;
mod opencode;
mod running;
mod signals;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::access::{ApprovalSettings, Approvals, Audit, TokenSetting};
use crate::access::{Credentials, Login, Scope, credentials};
pub use crate::api::AdvertisedCapabilities;
pub use in_container::{ContainerContents, run_inside};
pub use running::RunningServer;
use signals::Signals;

use crate::api::request_log::RequestLog;
use crate::api::{Ctx, dispatch};
use crate::base::ids::Distro;
use crate::base::pool::Pool;
use crate::base::service_manager::ServiceManager;
use crate::base::{At, Error, Result, limits, logging};
use crate::containers::Engine;
use crate::containers::network::NetworkConfig;
use crate::doctor::Doctor;
use crate::doctor::Subject;
use crate::events::Bus;
use crate::gate::{self, Gate, Listen, Listeners};
use crate::host::{OpencodePlan, SupervisorHandle};
use crate::http::accept;
use crate::http::client::{Disconnects, Tickets};
use crate::images::Images;
use crate::images::mirrors::PackageSources;
use crate::library;
use crate::library::{Library, LibraryKey};
use crate::lifecycle::{CommandPolicy, Lifecycle};
use crate::opencode::address::ListenAddresses;
use crate::opencode::{Managed, Upstreams};
use crate::proc::{Cancel, Cgroups};
use crate::project::reload::ReloadEvents;
use crate::project::{self, Project};
use crate::roots::RootKind;
use crate::roots::Roots;
use crate::runs::Runs;
use crate::store::allowlist::Allowlist;
use crate::store::{file, format, lock::DataLock};
use crate::workspaces::{self, Configured, Registry};

/// Maximum number of concurrent requests with a large body or answer. Each of them takes a thread, which a slow client
/// can block for up to [`BODY_STALL`] or [`WRITE_STALL`] between two bytes. Further requests of this kind get a 503 at
/// once.
const TRANSFERS: usize = 64;
/// Maximum number of jobs that wait for a run or stream worker: with 0, a job gets a 503 at once if all workers are
/// busy.
const RUN_QUEUE: usize = 0;
/// Maximum number of requests that wait for a proxy worker: as many as the default number of connections.
const PROXY_QUEUE: usize = limits::CONNECTIONS;

/// The resolved configuration. `config::resolve` creates it; no other code reads flags, environment or `server.json`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Addresses to listen on, in the validated form of `--listen`; port 0 lets the kernel choose.
    pub listen: Vec<String>,
    /// The values of `LISTEN_PID` and `LISTEN_FDS`, which socket activation sets.
    pub inherited: Option<(String, String)>,
    /// Additional host names that clients may use on loopback.
    pub allowed_hosts: Vec<String>,
    /// Maximum number of connections.
    pub max_connections: usize,
    /// How long requests may continue after a stop signal.
    pub drain: Duration,
    /// The absolute path of the data folder.
    pub data_dir: PathBuf,
    /// The configuration file that was read.
    pub config_path: Option<PathBuf>,
    /// The file with scoped tokens.
    pub token_store: PathBuf,
    /// The client token from flags, environment or file.
    pub client_token: TokenSetting,
    /// The host token from flags, environment or file.
    pub host_token: TokenSetting,
    /// How users log in with a password; `None` if this is disabled.
    pub login: Option<Login>,
    /// How writes are approved.
    pub approval: ApprovalSettings,
    /// Whether the server refuses every write.
    pub read_only: bool,
    /// Origins that browsers may send requests from; `*` for all.
    pub cors_origins: Vec<String>,
    /// Workspaces from flags, environment or file, in order; the first is the default host workspace.
    pub workspaces: Vec<Configured>,
    /// Absolute paths of the folders in which the API may create host workspaces.
    pub authorized_roots: Vec<PathBuf>,
    /// The current folder at the start, which is the default host workspace if no workspace is configured.
    pub current_dir: PathBuf,
    /// HOME of the user that runs the server; commands on the host get it, too.
    pub home: PathBuf,
    /// Whether the server logs one line for each request.
    pub log_requests: bool,
    /// Whether the server also logs repeated requests.
    pub log_all_requests: bool,
    /// The capabilities that the server advertises.
    pub advertised: AdvertisedCapabilities,
    /// The URL of the package mirror for each distribution.
    pub mirrors: BTreeMap<Distro, String>,
    /// The keyring for each distribution's archive, used instead of the keyring of the host's package.
    pub keyrings: BTreeMap<Distro, PathBuf>,
    /// `http_proxy` and similar variables of the server's environment, which are passed only to bootstraps.
    pub proxy_env: Vec<(String, String)>,
    /// Settings for requests to OpenCode.
    pub proxying: ProxySettings,
    /// The OpenCode that the server runs, if any.
    pub opencode: Option<OpencodePlan>,
    /// Maximum number of running commands.
    pub max_runs: usize,
    /// Maximum number of followers and waits.
    pub max_streams: usize,
    /// Number of bytes of each of stdout and stderr that an exec keeps.
    pub output_limit: usize,
    /// Number of bytes of each stream that a run keeps on disk.
    pub run_output_limit: u64,
    /// Number of bytes that all runs together keep on disk.
    pub runs_disk_limit: u64,
    /// Maximum duration of an init script.
    pub init_timeout: Duration,
    /// Maximum duration of creating an image.
    pub image_timeout: Duration,
    /// The library's folder; the default is `library` in the data folder.
    pub library: Option<PathBuf>,
    /// The key that seals secrets in templates, if it is given directly.
    pub private_key: TokenSetting,
    /// The file that contains this key; the default is `private_key` in the data folder.
    pub private_key_file: Option<PathBuf>,
    /// Idle time after which a container is stopped; zero means never.
    pub idle_timeout: Duration,
    /// The file with the host folders that containers may mount.
    pub mount_allowlist: PathBuf,
    /// The configuration of the containers' private networks.
    pub private_network: NetworkConfig,
    /// The required backend for containers' roots; `None` for the best backend that is available.
    pub root_backend: Option<RootKind>,
    /// Number of threads that answer requests.
    pub http_threads: usize,
}

/// Settings for requests to OpenCode.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    /// Maximum number of concurrent requests.
    pub workers: usize,
    /// Timeout for the head of a response.
    pub patience: Duration,
    /// Minimum scope that may answer OpenCode's permission requests.
    pub permission_replies: Scope,
    /// Minimum scope that may use OpenCode's terminals and shell commands on a host workspace in automatic mode.
    pub opencode_shell: Scope,
}

/// Maximum time of the shutdown in addition to [`Settings::drain`], for stopping containers and removing mounts.
const STOPPING: Duration = Duration::from_secs(60);

/// Number of workers for requests that end a run or a container; such a request may wait for some seconds.
const END_WORKERS: usize = 16;

/// Returns how many commands of one token may start at nearly the same time while other tokens also start commands.
fn fresh_runs() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().max(2))
}

/// Number of workers that access workspaces' files, and number of requests that may wait for them.
const FILE_WORKERS: usize = 8;
const FILE_QUEUE: usize = 512;

/// Runs the server until it receives SIGTERM, SIGINT or SIGHUP. SIGHUP is ignored if it was ignored at the start.
///
/// # Errors
/// When the server cannot start: a port or the data folder is in use, the data folder cannot be written, or a state
/// file is damaged.
pub fn run(settings: Settings, manager: &ServiceManager) -> Result<()> {
    run_with(settings, manager, None)
}

/// Runs the server as [`run`] does, and calls `up` on a separate thread once the server accepts requests. `up` may stop
/// the server, and must return when the server stops.
///
/// # Errors
/// The same as for [`run`].
pub fn run_with(
    settings: Settings,
    manager: &ServiceManager,
    up: Option<Box<dyn FnOnce(RunningServer) + Send>>,
) -> Result<()> {
    let started = Instant::now();
    if let Some(check) = crate::doctor::no_threads() {
        let fix = check.fix.unwrap_or_default();
        return Err(Error::internal(format!("{}; {fix}", check.found)));
    }
    let above = settings.data_dir.ancestors().find(|above| above.exists());
    if let Some(file) = above.filter(|above| !above.is_dir()) {
        let problem = format!(
            "cannot be the data folder, because {} is a file; remove it, or name a folder with --data-dir or BERTH_DATA_DIR",
            file.display()
        );
        return Err(Error::config(settings.data_dir.display(), problem));
    }
    crate::proc::sys::return_large_blocks_to_kernel();
    file::create_dir_private(&settings.data_dir)?;
    let lock = DataLock::take(&settings.data_dir)?;
    // `config` has checked the format, but another version of berth may have run in between.
    format::record(&settings.data_dir)?;
    let signals = Signals::catch()?;
    let (soft_files, max_files) = gate::raise_file_limit();
    crate::proc::spawn::set_child_file_limit(soft_files);
    // The start-up checks report failures.
    let _ = crate::proc::spawn::protect_from_oom();
    let doors = Listeners::bind(listeners(&settings)?)?;
    check_exposure(&settings, &doors)?;
    let credentials = Arc::new(Credentials::load(
        &settings.data_dir,
        &settings.client_token,
        &settings.host_token,
        &settings.token_store,
        settings.login.clone(),
    )?);
    let cgroups = take_cgroups(&settings.data_dir)?;
    let doctor = Arc::new(Doctor::new(subject(&settings, cgroups.clone(), Cancel::new()?)));
    let bus = Arc::new(Bus::default());
    let own = ListenAddresses::new(tcp_addresses(&doors));
    let managed = settings.opencode.as_ref().map(|plan| plan.managed(&cgroups)).transpose()?.map(Arc::new);
    let patience = settings.proxying.patience;
    let upstreams = Arc::new(Upstreams::new(own, cgroups.clone(), patience, managed.clone())?);
    let lifecycle = build(&settings, cgroups.clone(), &bus, managed.clone())?;
    let project = Arc::new(Project::new(
        &settings.home,
        ReloadEvents::new(&settings.data_dir.join("reload"), bus.clone()),
    ));
    let watch = (watch_projects(&project, &lifecycle), watch_library(&settings.data_dir, &lifecycle));
    let (disconnects, tickets) = (Disconnects::new(settings.max_connections), Tickets::default());
    let door: Arc<OnceLock<Weak<Gate>>> = Arc::default();
    let ctx = Arc::new(Ctx {
        lifecycle: lifecycle.clone(),
        project: project.clone(),
        doctor: doctor.clone(),
        credentials,
        approval: settings.approval,
        approvals: Approvals::open(settings.approval.timeout, bus.topic("approvals"), &settings.data_dir)?,
        audit: Audit::open(&settings.data_dir)?,
        read_only: settings.read_only,
        cors_origins: settings.cors_origins.clone(),
        authorized_roots: settings.authorized_roots.clone(),
        config_path: settings.config_path.clone(),
        address: shown_address(&doors),
        bus: bus.clone(),
        disconnects: disconnects.clone(),
        tickets: tickets.clone(),
        connections: {
            let door = door.clone();
            Box::new(move || {
                door.get().and_then(Weak::upgrade).map_or(Value::Null, |gate| connections(&gate))
            })
        },
        advertised: settings.advertised.clone(),
        request_log: RequestLog::new(settings.log_requests, settings.log_all_requests),
        started,
        run_workers: Pool::new("run", 0, settings.max_runs, RUN_QUEUE)?.paced(fresh_runs()),
        proxy_workers: Pool::new("proxy", 0, settings.proxying.workers, PROXY_QUEUE)?,
        upstreams: upstreams.clone(),
        managed: managed.clone(),
        managed_events: bus.topic("opencode"),
        permission_replies: settings.proxying.permission_replies,
        opencode_shell: settings.proxying.opencode_shell,
        stream_workers: Arc::new(Pool::new("stream", 0, settings.max_streams, RUN_QUEUE)?),
        file_workers: Pool::new("files", 1, FILE_WORKERS, FILE_QUEUE)?,
        transfers: Pool::new("transfer", 0, TRANSFERS, 0)?,
        end_workers: Pool::new("end", 0, END_WORKERS, limits::CONNECTIONS)?,
    });
    announce::announce(&ctx, &settings, &doors, up.is_none());
    lock.record_addresses(doors.addresses());
    let address = doors.addresses().first().map(ToString::to_string).unwrap_or_default();
    let http = Arc::new(accept::HttpServers::new(settings.http_threads, gate::PROBE_HEADER, {
        let ctx = ctx.clone();
        move |request| dispatch::dispatch(&ctx, request)
    }));
    let gate = Arc::new(Gate::start(
        doors,
        gate::GateSettings {
            max_connections: settings.max_connections,
            max_files,
            allowed_hosts: settings.allowed_hosts.clone(),
            cors_origins: settings.cors_origins.clone(),
            body_cap: Arc::new(crate::api::routes::body_cap),
            direct: {
                let ctx = ctx.clone();
                Arc::new(move |method, target| dispatch::direct(&ctx, method, target))
            },
            claim: {
                let ctx = ctx.clone();
                Arc::new(move |connection, head| dispatch::claim(&ctx, connection, head))
            },
            private_folder: settings.data_dir.join("http"),
            disconnects,
            tickets,
        },
        Box::new({
            let http = http.clone();
            move |path| http.open(path)
        }),
    )?);
    let _ = door.set(Arc::downgrade(&gate));
    manager.ready(&format!(
        "{}, data folder {}",
        logging::counted(ctx.lifecycle.registry().openwork_list().len(), "workspace"),
        settings.data_dir.display()
    ));
    let swept = opencode::sweep(settings.opencode.as_ref(), &settings.data_dir, &cgroups)?;
    let opencode = settings.opencode.zip(managed.clone()).map(|(plan, managed)| {
        let folders = (settings.data_dir.as_path(), settings.image_timeout);
        opencode::supervise(plan, managed, &ctx, cgroups, folders, Box::new(signals.stopper()?))
    });
    let opencode = opencode.transpose()?;
    let stopping = Cancel::new()?;
    let told = up.map(|up| {
        let workspaces = lifecycle.registry().openwork_list();
        let workspace_id = workspaces.first().map(|first| first.openwork_id.clone()).unwrap_or_default();
        let now = RunningServer {
            address,
            client_token: ctx.credentials.client_token().to_owned(),
            host_token: ctx.credentials.host_token().to_owned(),
            managed,
            workspace_id,
            stopping: stopping.clone(),
            stop: signals.by_hand.try_clone().at("duplicate", "a socket")?,
        };
        crate::base::thread::spawn("up".into(), limits::STACK, move || up(now))
    });
    let told = told.transpose()?;

    signals.wait()?;
    stopping.cancel();
    manager.stopping(settings.drain + STOPPING);
    log::info!("Stopping; a second signal stops at once");
    signals.exit_on_next(opencode.as_ref().map(SupervisorHandle::killer));
    // Terminals would not end by themselves. Their clients are notified.
    lifecycle.terminals().close();
    bus.close();
    lifecycle.stop_soon();
    ctx.approvals.close();
    upstreams.close();
    if let Some(opencode) = &opencode {
        opencode.stop_soon();
    }
    let drained = gate.drain(Instant::now() + settings.drain);
    // Cancels a running examination by `berth doctor`, whose client gets an answer.
    doctor.close();
    drop((opencode, swept));
    lifecycle.close(Instant::now());
    if !drained {
        gate.drain(Instant::now() + limits::LAST_ANSWERS);
    }
    gate.stop();
    http.stop();
    drop(told);
    ctx.credentials.leases.close();
    ctx.request_log.close();
    drop(watch);
    drop((gate, http, ctx, project, lifecycle));
    log::info!("Stopped");
    Ok(())
}

/// Watches existing workspaces for manual changes from now on, and later workspaces from the first request to them on.
/// If the watcher cannot be created, the server works without it.
fn watch_projects(
    project: &Arc<Project>,
    lifecycle: &Arc<Lifecycle>,
) -> Option<project::watch::ProjectWatch> {
    let known = lifecycle.registry().openwork_list();
    let ids: Vec<String> = known.iter().map(|workspace| workspace.openwork_id.clone()).collect();
    if let Err(error) = project.events.forget_others(&ids) {
        log::warn!("{error}");
    }
    let hosts =
        known.iter().filter(|known| known.record().view.workspace_type == workspaces::WorkspaceKind::Host);
    hosts.for_each(|known| project.watch(&known.openwork_id));
    match project::watch::start(project, lifecycle.clone()) {
        Ok(watch) => Some(watch),
        Err(error) => {
            log::warn!("Manual changes are not detected: {error}");
            None
        }
    }
}

/// Watches the library and syncs manual changes to the workspaces.
fn watch_library(data_dir: &Path, lifecycle: &Arc<Lifecycle>) -> Option<library::watch::LibraryWatch> {
    let told = lifecycle.clone();
    let changed = move |changed: &library::watch::LibraryChange, go_on: &dyn Fn() -> bool| {
        told.library_changed(changed, go_on);
    };
    library::watch::start(lifecycle.library(), &data_dir.join("library.seen"), changed)
        .inspect_err(|error| {
            log::warn!("Manual changes in the library reach workspaces only with their next sync: {error}")
        })
        .ok()
}

/// Returns the configured listeners and those passed by systemd.
fn listeners(settings: &Settings) -> Result<Vec<Listen>> {
    let mut all: Vec<Listen> =
        settings.listen.iter().map(|place| Listen::parse(place)).collect::<Result<_>>()?;
    let (pid, count) = settings.inherited.clone().unzip();
    all.extend(Listen::inherited(pid.as_deref(), count.as_deref())?);
    Ok(all)
}

/// Refuses to expose the server to other machines unless its tokens were configured or created before.
fn check_exposure(settings: &Settings, doors: &Listeners) -> Result<()> {
    let exposed: Vec<String> =
        doors.addresses().iter().filter(|address| address.is_exposed()).map(ToString::to_string).collect();
    if exposed.is_empty() {
        return Ok(());
    }
    let (client, host) = credentials::stored_tokens(&settings.data_dir)?;
    let known = |setting: &TokenSetting, kept: Option<String>| setting.secret.is_some() || kept.is_some();
    if !known(&settings.client_token, client) || !known(&settings.host_token, host) {
        return Err(Error::config(
            exposed.join(", "),
            "other machines can reach this address, and there are no tokens yet; set OPENWORK_TOKEN and \
             OPENWORK_HOST_TOKEN, or make some with `berth token make`",
        ));
    }
    log::warn!("Other machines can reach {}; the host token gives root access here", exposed.join(", "));
    Ok(())
}

/// Returns the TCP addresses at which the server can be reached.
fn tcp_addresses(doors: &Listeners) -> Vec<SocketAddr> {
    let addresses = doors.addresses().iter();
    let tcp = addresses.filter_map(|address| match address {
        gate::ListenAddress::Ip(address) => Some(*address),
        gate::ListenAddress::Unix(_) => None,
    });
    tcp.collect()
}

/// Returns the address that `/status` shows.
fn shown_address(doors: &Listeners) -> (String, u16) {
    match doors.addresses().first() {
        Some(gate::ListenAddress::Ip(address)) => (address.ip().to_string(), address.port()),
        Some(other) => (other.to_string(), 0),
        None => (String::new(), 0),
    }
}

/// Returns the connection counters that `/status` shows.
fn connections(gate: &Gate) -> Value {
    let all = gate.connections();
    let count = |states: &[gate::ConnectionState]| {
        all.iter().filter(|connection| states.contains(&connection.state)).count()
    };
    let busy = [
        gate::ConnectionState::Receiving,
        gate::ConnectionState::Busy,
        gate::ConnectionState::Unread,
        gate::ConnectionState::Paused,
    ];
    json!({ "open": all.len(), "idle": count(&[gate::ConnectionState::Idle]), "busy": count(&busy) })
}

/// Returns the package sources.
fn sources(settings: &Settings) -> PackageSources {
    PackageSources {
        mirrors: settings.mirrors.clone(),
        keyrings: settings.keyrings.clone(),
        proxy_env: settings.proxy_env.clone(),
        deadline: settings.image_timeout,
    }
}

/// Returns the rules for host folders in containers.
pub fn allowlist(settings: &Settings) -> Allowlist {
    Allowlist {
        path: settings.mount_allowlist.clone(),
        home: settings.home.clone(),
        data_dir: settings.data_dir.clone(),
        granted: settings.opencode.iter().flat_map(OpencodePlan::granted).collect(),
    }
}

/// Returns the settings and services that `berth doctor` checks.
pub fn subject(settings: &Settings, cgroups: Cgroups, cancel: Cancel) -> Subject {
    Subject {
        data_dir: settings.data_dir.clone(),
        sources: sources(settings),
        cgroups,
        allowlist: allowlist(settings),
        max_connections: settings.max_connections,
        cancel,
    }
}

/// Builds the services in order of their dependencies.
fn build(
    settings: &Settings,
    cgroups: Cgroups,
    bus: &Arc<Bus>,
    managed: Option<Arc<Managed>>,
) -> Result<Arc<Lifecycle>> {
    let data_dir = &settings.data_dir;
    let (workspaces, roots) = (&settings.workspaces, &settings.authorized_roots);
    let registry = Registry::open(data_dir, workspaces, &settings.current_dir, roots, managed)?;
    let images = Arc::new(images(settings, cgroups.clone())?.with_events(bus.topic("images")));
    let roots = Roots::open(data_dir, images.clone(), cgroups.clone(), settings.root_backend)?;
    let engine =
        Engine::new(cgroups.clone(), data_dir, roots, settings.private_network.clone(), allowlist(settings))?;
    let library = {
        let default = data_dir.join("library");
        let key_file = settings.private_key_file.clone().unwrap_or_else(|| data_dir.join("private_key"));
        let key = LibraryKey::new(settings.private_key.secret.as_deref(), &key_file)?;
        Library::open(settings.library.as_deref().unwrap_or(&default), key)?
    };
    let policy = CommandPolicy {
        home: settings.home.to_string_lossy().into_owned(),
        output_limit: settings.output_limit,
        run_output_limit: settings.run_output_limit,
        init_timeout: settings.init_timeout,
        idle_timeout: settings.idle_timeout,
    };
    let (window, total) = (settings.run_output_limit, settings.runs_disk_limit);
    let runs = Runs::open(&data_dir.join("runs"), window, total, cgroups)?;
    Lifecycle::new(Arc::new(registry), engine, images, runs, library, bus.clone(), policy)
}

/// Opens the image store. `berth image` also calls this, while a server may be running.
///
/// # Errors
/// When the store's folder cannot be used.
pub fn images(settings: &Settings, cgroups: Cgroups) -> Result<Images> {
    Images::open(&settings.data_dir.join("images"), sources(settings), cgroups)
}

/// Opens the tree of cgroups, and kills the processes that an earlier server left in another tree.
fn take_cgroups(data_dir: &Path) -> Result<Cgroups> {
    let memory = data_dir.join("cgroup");
    let before = file::read_optional(&memory, 4096)?.and_then(|bytes| String::from_utf8(bytes).ok());
    let cgroups = Cgroups::take(&cgroup_name(data_dir, before.as_deref().map(Path::new))?);
    if let Some(before) = &before {
        cgroups.end_elsewhere(Path::new(before));
    }
    let now = cgroups.folder().map(|folder| folder.to_string_lossy().into_owned());
    if now != before {
        // A full disk must not prevent the start.
        if let Err(error) = file::replace(&memory, now.unwrap_or_default().as_bytes(), 0o600) {
            log::warn!("{error}");
        }
    }
    Ok(cgroups)
}

/// Returns the name of the cgroup tree. The name stays the same for a data folder even if the folder is moved, so that
/// the next server finds the processes of an earlier server. A copy of the folder gets another name, because the
/// original may have a running server. `before` is the path of the folder at the last start.
fn cgroup_name(data_dir: &Path, before: Option<&Path>) -> Result<String> {
    let name_of = |text: &str| format!("berth-{}", &crate::access::secret::sha256_hex(text)[..12]);
    let real = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    // Earlier versions derived the name from the folder's path.
    let by_path = name_of(&real.to_string_lossy());
    if before.is_some_and(|before| before.file_name() == Some(by_path.as_ref()) && before.is_dir()) {
        return Ok(by_path);
    }
    let found = data_dir.metadata().at("look at", data_dir)?;
    Ok(name_of(&format!("{}:{}", found.dev(), found.ino())))
}
