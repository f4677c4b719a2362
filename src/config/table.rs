//! The table of settings: each flag, variable and key of `server.json` is one row here, and no other file lists them.
//!
//! A row is `FIELD KIND NAME = flag(section, commands, "--flag VALUE", "meaning")` and builders (`setting`).
//! From the rows come:
//! - [`FlagValues`], which argh fills: one field per flag. `line` brings a command line into argh's form (aliases,
//!   `--flag=value`, `--no-flag`) and reports mistakes with the flag as the user wrote it;
//! - the keys that `server.json` may have, with their types (`file`);
//! - flag > variable > key > default, with the value's bounds (`sources`, `values`);
//! - `--help` of every command, the manual page, shell completions and `assets/docs/configuration.md` (`cli::help`,
//!   `cli::manual`).
//!
//! To add a setting of the server: write its row here, a field in `server::Settings`, and read it in `resolve`, as
//! `sources.count(&MAX_RUNS)` does. A setting of one command is its row, read as `args.json` in the command. Then
//! `UPDATE_GOLDEN=1 tests/run config::` rewrites `assets/docs/configuration.md`.

use argh::FromArgs;

use super::setting::ValueKind::{
    Address, Bytes, Choice, Count, Days, HostName, Ignored, Json, List, Loopback, Millis, Pairs, Path,
    Processors, Seconds, Secret, Switch, Url,
};
use super::setting::{CommandSet, Fallback, Section, Setting, flag, variable};
use crate::base::limits;

/// The type of a field of [`FlagValues`], which holds the texts of a flag.
trait FlagField {
    fn texts(&self) -> Vec<&str>;
    const MANY: bool = false;
    const TRISTATE: bool = true;
}

impl FlagField for bool {
    fn texts(&self) -> Vec<&str> {
        if *self { vec!["yes"] } else { Vec::new() }
    }
    const TRISTATE: bool = false;
}

impl FlagField for Option<String> {
    fn texts(&self) -> Vec<&str> {
        self.as_deref().into_iter().collect()
    }
}

impl FlagField for Vec<String> {
    fn texts(&self) -> Vec<&str> {
        self.iter().map(String::as_str).collect()
    }
    const MANY: bool = true;
}

macro_rules! flags {
    ($($name:ident = $how:ident $field:ident: $type:ident $(<$inner:ident>)?, $row:expr;)*) => {
        /// The flags of a command line as text; `line` has checked which of them the command takes. Not `Debug`: tokens
        /// are among them.
        #[derive(Clone, Default, FromArgs)]
        #[argh(description = "berth")]
        pub struct FlagValues {
            $(
                /// a row of the table
                #[argh($how)]
                pub $field: $type $(<$inner>)?,
            )*
            /// arguments that are not flags
            #[argh(positional)]
            pub words: Vec<String>,
        }

        $(pub const $name: Setting = Setting {
            values: |line| line.$field.texts(),
            many: <$type $(<$inner>)? as FlagField>::MANY,
            tristate: <$type $(<$inner>)? as FlagField>::TRISTATE,
            ..$row
        };)*

        /// All rows with a flag.
        pub const FLAGS: &[Setting] = &[$($name),*];
    };
}

pub(super) const HTTP: &[&str] = &["http://", "https://"];
const SCOPES: &[&str] = &["owner", "collaborator"];
/// Maximum of this duration: a JavaScript timer with a larger delay fires at once.
const MILLIS_MAX: u64 = (1 << 31) - 1;
const DAY: u64 = 24 * 60 * 60;
/// The bounds of the output kept per run. A run with less cannot be diagnosed; no disk is larger than the upper bound.
const RUN_BYTES: super::setting::ValueKind = Bytes(1 << 20, 1 << 50);
/// Minimum memory: OpenCode does not start with less.
const OPENCODE_BYTES: super::setting::ValueKind = Bytes(128 << 20, 1 << 50);

const fn server(shown: &'static str, about: &'static str) -> Setting {
    flag(Section::Server, CommandSet::SERVE, shown, about)
}

const fn access(shown: &'static str, about: &'static str) -> Setting {
    flag(Section::Access, CommandSet::SERVE, shown, about)
}

const fn workspaces(shown: &'static str, about: &'static str) -> Setting {
    flag(Section::Workspaces, CommandSet::SERVE, shown, about)
}

const fn opencode(shown: &'static str, about: &'static str) -> Setting {
    flag(Section::Opencode, CommandSet::SERVE, shown, about)
}

const fn containers(shown: &'static str, about: &'static str) -> Setting {
    flag(Section::Containers, CommandSet::SERVE, shown, about)
}

const fn log(shown: &'static str, about: &'static str) -> Setting {
    flag(Section::Log, CommandSet::SERVE, shown, about)
}

const fn host(shown: &'static str, about: &'static str) -> Setting {
    flag(Section::Host, CommandSet::HOST, shown, about)
}

const fn sandbox(shown: &'static str, about: &'static str) -> Setting {
    flag(Section::Sandbox, CommandSet::HOST, shown, about)
}

const fn client(shown: &'static str, about: &'static str) -> Setting {
    flag(Section::Client, CommandSet::CLIENT, shown, about)
}

const fn hidden(shown: &'static str) -> Setting {
    flag(Section::Hidden, CommandSet::HOSTS, shown, "")
}

const IN_DATA_FOLDER: CommandSet =
    CommandSet::TOKEN.and(CommandSet::BACKUP).and(CommandSet::RESTORE).and(CommandSet::CLIENT);
const OWN_PROCESS: CommandSet = CommandSet::DOCTOR.and(CommandSet::IMAGE).and(CommandSet::BUNDLE);
const REPORTS: CommandSet = CommandSet::HOSTS
    .and(CommandSet::CONNECT)
    .and(CommandSet::WORKSPACE)
    .and(CommandSet::CLIENT)
    .and(CommandSet::DOCTOR)
    .and(CommandSet::IMAGE);

#[rustfmt::skip]
flags! {
    HOST = option host: Option<String>, server("--host ADDRESS", "IP address or localhost to listen on")
        .of(Address).or_word("127.0.0.1").vars(&["OPENWORK_HOST"]).key("host").alias(&["--openwork-host"]);
    PORT = option port: Option<String>, server("--port N", "port to listen on; 0 lets the kernel choose")
        .of(Count(0, 65_535)).or(8787).vars(&["OPENWORK_PORT"]).key("port").alias(&["--openwork-port"]);
    LISTEN = option listen: Vec<String>, server("--listen PLACE",
        "ADDRESS:PORT, [V6]:PORT, or unix:/PATH?mode=660&group=NAME; repeatable. Replaces the default address; --host and \
         --port are added where they are given")
        .vars(&["BERTH_LISTEN"]).key("listen");
    ALLOWED_HOST = option allowed_host: Vec<String>, server("--allowed-host NAME",
        "host name that clients may use on loopback and Unix sockets; repeatable")
        .vars(&["BERTH_ALLOWED_HOSTS"]).key("allowedHosts");
    MAX_CONNECTIONS = option max_connections: Option<String>, server("--max-connections N", "open connections at once")
        .of(Count(1, 65_536)).or(limits::CONNECTIONS as u64).vars(&["BERTH_MAX_CONNECTIONS"]).key("maxConnections");
    DRAIN_TIMEOUT = option drain_timeout: Option<String>, server("--drain-timeout SECONDS",
        "how long open requests may continue after a stop signal")
        .of(Seconds(0, 3600)).or_time(limits::DRAIN).vars(&["BERTH_DRAIN_TIMEOUT"]).key("drainTimeout");
    DATA_DIR = option data_dir: Option<String>, server("--data-dir DIR", "folder of all state")
        .of(Path).else_as("$OPENWORK_DATA_DIR/berth where that is set, else /var/lib/berth for root, else ~/.local/share/berth")
        .vars(&["BERTH_DATA_DIR"]).key("dataDir").also(IN_DATA_FOLDER).also(OWN_PROCESS);
    CONFIG = option config: Option<String>, server("--config FILE", "configuration file")
        .of(Path).else_as("~/.config/openwork/server.json").vars(&["OPENWORK_SERVER_CONFIG"])
        .also(IN_DATA_FOLDER).also(OWN_PROCESS);
    HTTP_THREADS = option http_threads: Option<String>, server("--http-threads N", "threads that answer requests")
        .of(Count(1, 256)).else_as("2 for each core, at least 4").vars(&["BERTH_HTTP_THREADS"]).key("httpThreads");
    CORS = option cors: Option<String>, server("--cors LIST", "origins that browsers may call from, with commas between, or *")
        .of(List).else_as("none").vars(&["OPENWORK_CORS_ORIGINS"]).key("corsOrigins");

    TOKEN = option token: Option<String>, access("--token TOKEN",
        "client token. Other users can read flags: prefer the variable")
        .of(Secret).else_as("made and kept; `berth token show` prints it").vars(&["OPENWORK_TOKEN"]).key("token")
        .alias(&["--openwork-token"]);
    HOST_TOKEN = option host_token: Option<String>, access("--host-token TOKEN", "host token: prefer the variable")
        .of(Secret).else_as("made and kept").vars(&["OPENWORK_HOST_TOKEN"]).key("hostToken").alias(&["--openwork-host-token"]);
    APPROVAL = option approval: Option<String>, access("--approval MODE",
        "manual: a person answers gated writes; auto: the server allows them")
        .of(Choice(&["manual", "auto"])).or_word("manual").vars(&["OPENWORK_APPROVAL_MODE"]).key("approval.mode");
    APPROVAL_TIMEOUT = option approval_timeout: Option<String>, access("--approval-timeout MS",
        "milliseconds after which an unanswered write is denied")
        .of(Millis(1, MILLIS_MAX)).or(30_000).vars(&["OPENWORK_APPROVAL_TIMEOUT_MS"]).key("approval.timeoutMs");
    READ_ONLY = switch read_only: bool, access("--read-only", "refuse every write")
        .of(Switch).vars(&["OPENWORK_READONLY"]).key("readOnly");

    WORKSPACE = option workspace: Vec<String>, workspaces("--workspace DIR",
        "a host workspace; repeatable, the first is the default. The variable is a JSON array of strings, or paths with , or ; \
         between; the key is an array of {path, name, workspaceType, baseUrl, directory, opencodeUsername, opencodePassword}")
        .of(Path).else_as("the current folder").vars(&["OPENWORK_WORKSPACES"]).key("workspaces");
    AUTHORIZED_ROOT = option authorized_root: Vec<String>, workspaces("--authorized-root DIR",
        "folder in which the API may make host workspaces; repeatable")
        .of(Path).else_as("the workspaces").key("authorizedRoots");
    OPENCODE_BASE_URL = option opencode_base_url: Option<String>, workspaces("--opencode-base-url URL",
        "OpenCode server for workspaces that name none")
        .of(Url(HTTP)).vars(&["OPENWORK_OPENCODE_BASE_URL"]);
    OPENCODE_DIRECTORY = option opencode_directory: Option<String>, workspaces("--opencode-directory DIR",
        "its folder, when there is exactly one workspace")
        .vars(&["OPENWORK_OPENCODE_DIRECTORY"]);
    OPENCODE_USERNAME = option opencode_username: Option<String>, workspaces("--opencode-username NAME", "its user")
        .vars(&["OPENWORK_OPENCODE_USERNAME"]).key("opencodeUsername");
    OPENCODE_PASSWORD = option opencode_password: Option<String>, workspaces("--opencode-password TEXT",
        "its password: prefer the variable")
        .of(Secret).vars(&["OPENWORK_OPENCODE_PASSWORD"]).key("opencodePassword");
    OPENCODE_TIMEOUT = option opencode_timeout: Option<String>, workspaces("--opencode-timeout SECONDS",
        "how long OpenCode may take for the head of a response")
        .of(Seconds(1, DAY)).or_time(limits::UPSTREAM_ANSWER).vars(&["BERTH_OPENCODE_TIMEOUT"]).key("opencodeTimeout");
    MAX_PROXIED = option max_proxied: Option<String>, workspaces("--max-proxied N",
        "requests that wait for OpenCode at once; slow ones count as streams")
        .of(Count(1, 1024)).or(limits::PROXY_WORKERS as u64).vars(&["BERTH_MAX_PROXIED"]).key("maxProxied");
    PERMISSION_REPLIES = option permission_replies: Option<String>, workspaces("--permission-replies SCOPE",
        "scope that a client needs to answer OpenCode's permission requests")
        .of(Choice(SCOPES)).or_word("owner").vars(&["BERTH_PERMISSION_REPLIES"]).key("permissionReplies");
    OPENCODE_SHELL = option opencode_shell: Option<String>, workspaces("--opencode-shell SCOPE",
        "scope that a client needs for OpenCode's terminals and shell commands on a host workspace when --approval is auto")
        .of(Choice(SCOPES)).or_word("owner").vars(&["BERTH_OPENCODE_SHELL"]).key("opencodeShell");

    MANAGE_OPENCODE = switch manage_opencode: bool, opencode("--manage-opencode",
        "run `opencode serve` for the workspaces that have no other OpenCode, restart it when it ends, stop it with the server")
        .of(Switch).vars(&["OPENWORK_MANAGE_OPENCODE"]).key("manageOpencode");
    OPENCODE_BIN = option opencode_bin: Option<String>, opencode("--opencode-bin FILE", "its program")
        .of(Path).else_as("opencode in PATH").vars(&["OPENWORK_OPENCODE_BIN"]).key("opencodeBin");
    OPENCODE_PORT = option opencode_port: Option<String>, opencode("--opencode-port N",
        "its port on 127.0.0.1; 0: OpenCode chooses, and berth reads which one")
        .of(Count(0, 65_535)).or(0).vars(&["OPENWORK_OPENCODE_PORT"]).key("opencodePort");
    OPENCODE_ENV = option opencode_env: Vec<String>, opencode("--opencode-env NAME",
        "variable that it gets besides HOME, PATH, LANG, TZ, XDG_*, *_API_KEY, *_proxy, AWS_*, GOOGLE_*, AZURE_*, OPENCODE_* \
         and those of ~/.config/openwork/env.json; repeatable")
        .vars(&["BERTH_OPENCODE_ENV"]).key("opencodeEnv");
    OPENCODE_MEMORY = option opencode_memory: Option<String>, opencode("--opencode-memory BYTES",
        "memory that it and all its processes may use")
        .of(OPENCODE_BYTES).else_as("half of the machine's").vars(&["BERTH_OPENCODE_MEMORY"]).key("opencodeMemory");
    OPENCODE_RESTART = option opencode_restart: Option<String>, opencode("--opencode-restart WHEN",
        "when it is started again: on-failure, until it has ended 5 times in 5 minutes; always; never")
        .of(Choice(&["on-failure", "always", "never"])).or_word("on-failure")
        .vars(&["BERTH_OPENCODE_RESTART"]).key("opencodeRestart");
    OPENCODE_LOG_LEVEL = option opencode_log_level: Option<String>, opencode("--opencode-log-level LEVEL",
        "its log level; the log is host/opencode.log in --data-dir")
        .of(Choice(&["DEBUG", "INFO", "WARN", "ERROR"])).or_word("WARN")
        .vars(&["OPENWORK_OPENCODE_LOG_LEVEL"]).key("opencodeLogLevel");
    START_TIMEOUT = option start_timeout: Option<String>, opencode("--start-timeout SECONDS", "how long its start may take")
        .of(Seconds(1, DAY)).or(60).vars(&["BERTH_START_TIMEOUT"]).key("startTimeout");

    MAX_RUNS = option max_runs: Option<String>, containers("--max-runs N", "commands that may run at once")
        .of(Count(1, 1024)).or(limits::RUN_WORKERS as u64).vars(&["BERTH_MAX_RUNS"]).key("maxRuns");
    MAX_STREAMS = option max_streams: Option<String>, containers("--max-streams N",
        "followers of output, waiting requests and terminals at once")
        .of(Count(1, 4096)).or(limits::STREAM_WORKERS as u64).vars(&["BERTH_MAX_STREAMS"]).key("maxStreams");
    OUTPUT_LIMIT = option output_limit: Option<String>, containers("--output-limit BYTES",
        "kept of each stream of an exec, in memory")
        .of(Bytes(4096, 1 << 30)).or(limits::OUTPUT_BYTES as u64).vars(&["BERTH_OUTPUT_LIMIT"]).key("outputLimit");
    RUN_OUTPUT_LIMIT = option run_output_limit: Option<String>, containers("--run-output-limit BYTES",
        "kept of each stream of a run, on disk")
        .of(RUN_BYTES).or(limits::RUN_OUTPUT_BYTES).vars(&["BERTH_RUN_OUTPUT_LIMIT"]).key("runOutputLimit");
    RUNS_DISK_LIMIT = option runs_disk_limit: Option<String>, containers("--runs-disk-limit BYTES", "kept of all runs together")
        .of(RUN_BYTES).or(limits::RUNS_DISK_BYTES).vars(&["BERTH_RUNS_DISK_LIMIT"]).key("runsDiskLimit");
    IMAGE_TIMEOUT = option image_timeout: Option<String>, containers("--image-timeout SECONDS",
        "how long debootstrap or pacstrap may take")
        .of(Seconds(1, DAY)).or_time(limits::BOOTSTRAP_TIMEOUT).vars(&["BERTH_IMAGE_TIMEOUT"]).key("imageTimeout");
    INIT_TIMEOUT = option init_timeout: Option<String>, containers("--init-timeout SECONDS", "how long an init script may take")
        .of(Seconds(1, DAY)).or_time(limits::INIT_SCRIPT_TIMEOUT).vars(&["BERTH_INIT_TIMEOUT"]).key("initTimeout");
    IDLE_TIMEOUT = option idle_timeout: Option<String>, containers("--idle-timeout SECONDS",
        "stop a container after so long without commands and terminals; 0: never")
        .of(Seconds(0, limits::IDLE_TIMEOUT_MOST)).or_time(limits::IDLE_TIMEOUT).vars(&["BERTH_IDLE_TIMEOUT"]).key("idleTimeout");
    PRIVATE_RANGE = option private_range: Option<String>, containers("--private-range RANGE",
        "addresses of private networks; every container takes 4")
        .else_as("10.213.0.0/16, or the first of a few others into which this host has no route")
        .vars(&["BERTH_PRIVATE_RANGE"]).key("privateRange");
    PRIVATE_DNS = option private_dns: Vec<String>, containers("--private-dns ADDRESS",
        "name server of private networks; repeatable")
        .else_as("the host's, unless they listen on the host itself").vars(&["BERTH_PRIVATE_DNS"]).key("privateDns");
    ROOT_BACKEND = option root_backend: Option<String>, containers("--root-backend WAY", "how containers' roots are made")
        .of(Choice(&["auto", "overlay", "reflink", "copy"])).or_word("auto").vars(&["BERTH_ROOT_BACKEND"]).key("rootBackend");
    LIBRARY = option library: Option<String>, containers("--library DIR",
        "folder of templates, skills, tools and scripts, such as a git clone")
        .of(Path).else_as("library in --data-dir").vars(&["LIBRARY_PATH"]).key("library");
    MIRROR = option mirror: Vec<String>, containers("--mirror NAME=URL",
        "package mirror (http, https, file) of ubuntu-noble, ubuntu-jammy, debian-bookworm or arch-linux; repeatable")
        .of(Pairs).vars(&["BERTH_MIRRORS"]).key("mirrors");
    KEYRING = option keyring: Vec<String>, containers("--keyring NAME=FILE",
        "keyring of its archive (for arch-linux: pacman's gnupg folder); repeatable")
        .of(Pairs).vars(&["BERTH_KEYRINGS"]).key("keyrings");
    SETUP = switch setup: bool, containers("--setup",
        "first install the packages that container workspaces need and this machine lacks (apt-get, dnf, pacman)").of(Switch);
    YES = switch yes: bool, containers("--yes", "do not ask before changes to this machine").of(Switch)
        .also(CommandSet::INSTALL).also(CommandSet::UNINSTALL);

    LOG_FORMAT = option log_format: Option<String>, log("--log-format FORMAT", "form of log lines")
        .of(Choice(&["pretty", "json"])).or_word("pretty").vars(&["OPENWORK_LOG_FORMAT"]).key("logFormat");
    LOG_REQUESTS = switch log_requests: bool, log("--log-requests", "log a line for every request")
        .of(Switch).else_as("yes, but repeated ones are counted").vars(&["OPENWORK_LOG_REQUESTS"]).key("logRequests");
    NO_LOG_REQUESTS = switch no_log_requests: bool, log("--no-log-requests", "log no requests").of(Switch);
    VERBOSE = switch verbose: bool, log("--verbose", "log more").of(Switch);
    RUN_ID = option run_id: Option<String>, flag(Section::Log, CommandSet::HOSTS, "--run-id ID", "name of this start in every log line")
        .else_as("a new one").vars(&["OPENWRK_RUN_ID", "OPENWORK_RUN_ID"]);
    JSON = switch json: bool, flag(Section::Log, REPORTS, "--json", "print JSON").of(Switch);

    REMOTE_ACCESS = switch remote_access: bool, host("--remote-access", "listen on 0.0.0.0").of(Switch);
    CHECK = switch check: bool, host("--check",
        "make the first requests of a client, print a line for each on standard error, stop").of(Switch);
    CHECK_EVENTS = switch check_events: bool, host("--check-events", "with --check: wait for an event as well").of(Switch);
    TUI = option tui: Option<String>, host("--tui", "a screen with services, log and waiting approvals; --no-tui: none")
        .of(Switch).else_as("on a terminal");
    DETACH = switch detach: bool, host("--detach",
        "return when OpenCode answers; the host continues, and logs to host/host.log in --data-dir").of(Switch);
    LOG_FILE = option log_file: Option<String>, host("--log-file FILE",
        "log to this file instead of standard error; 8 MiB and one older file").of(Path).also(CommandSet::DAEMON);
    CONNECT_HOST = option connect_host: Option<String>, host("--connect-host NAME", "the host in URLs that are printed")
        .of(HostName).also(CommandSet::CONNECT);
    SCOPE = option scope: Option<String>, flag(Section::Host, CommandSet::CONNECT, "--scope SCOPE", "scope of the token of connect")
        .of(Choice(&["viewer", "collaborator", "owner"])).or_word("collaborator");
    EXPIRES = option expires: Option<String>, flag(Section::Host, CommandSet::CONNECT, "--expires SECONDS", "lifetime of that token")
        .of(Seconds(1, limits::TOKEN_LIFETIME_SECS)).or(DAY);
    QR = switch qr: bool, flag(Section::Host, CommandSet::CONNECT, "--qr", "print the document of connect as a QR code").of(Switch);
    OPENWORK_SERVER_BIN = option openwork_server_bin: Option<String>, host("--openwork-server-bin FILE",
        "--sandbox-server inside: the server's program in the container").of(Path).else_as("this program");
    BOT_HEALTH_PORT = option owpenbot_health_port: Option<String>, host("--owpenbot-health-port N",
        "--sandbox-server inside: publish port 3005 of OpenWork's messaging bot as this port of 127.0.0.1")
        .of(Count(1, 65_535)).else_as("3005 with a bot, else none").alias(&["--opencode-router-health-port"])
        .vars(&["OWPENBOT_HEALTH_PORT", "OPENCODE_ROUTER_HEALTH_PORT"]);

    SANDBOX = option sandbox: Option<String>, sandbox("--sandbox WORD",
        "where OpenCode runs: none; berth, a container of berth; docker, a container of Docker or of another engine that \
         `docker` reaches; container, one of Apple's; auto, the first of these that works here. The workspace is at \
         /workspace there")
        .of(Choice(&["none", "auto", "docker", "container", "berth"])).or_word("none")
        .vars(&["OPENWORK_SANDBOX", "OPENWRK_SANDBOX"]);
    SANDBOX_IMAGE = option sandbox_image: Option<String>, sandbox("--sandbox-image NAME",
        "berth: one of `berth image`, or a distribution [debian-bookworm]; docker, container: a reference [debian:bookworm-slim]")
        .vars(&["OPENWORK_SANDBOX_IMAGE", "OPENWRK_SANDBOX_IMAGE"]);
    SANDBOX_MOUNT = option sandbox_mount: Vec<String>, sandbox("--sandbox-mount LIST",
        "HOST:SUB[:ro|:rw], with commas between, or a JSON array: folders that the mount allowlist allows, at \
         /workspace/extra/SUB; repeatable")
        .vars(&["OPENWORK_SANDBOX_MOUNT", "OPENWRK_SANDBOX_MOUNT"]);
    SANDBOX_MEMORY = option sandbox_memory: Option<String>, sandbox("--sandbox-memory BYTES", "its memory")
        .of(OPENCODE_BYTES).else_as("half of the machine's");
    SANDBOX_CPUS = option sandbox_cpus: Option<String>, sandbox("--sandbox-cpus N", "its processors, such as 0.5 or 2")
        .of(Processors(0.01, 4096.0)).else_as("all");
    // The lower bound is this high because OpenCode alone has dozens of threads.
    SANDBOX_PIDS = option sandbox_pids: Option<String>, sandbox("--sandbox-pids N", "its processes and threads")
        .of(Count(64, 1 << 22)).else_as("an eighth of the machine's, 512 to 4096");
    SANDBOX_ANY_WORKSPACE = switch sandbox_any_workspace: bool, sandbox("--sandbox-any-workspace",
        "mount a workspace that berth refuses otherwise: /, a home, berth's own data").of(Switch);
    SANDBOX_PERSIST_DIR = option sandbox_persist_dir: Option<String>, sandbox("--sandbox-persist-dir DIR",
        "docker, container: OpenCode's home")
        .else_as("a folder for the workspace below sandbox in --data-dir")
        .vars(&["OPENWORK_SANDBOX_PERSIST_DIR", "OPENWRK_SANDBOX_PERSIST_DIR"]);
    SANDBOX_NETWORK = option sandbox_network: Option<String>, sandbox("--sandbox-network WORD",
        "docker, container: none; private; host, the host's own network, which container does not have")
        .of(Choice(&["none", "private", "host"])).else_as("private");
    SANDBOX_USER = option sandbox_user: Option<String>, sandbox("--sandbox-user UID[:GID]",
        "docker, container: the user that OpenCode runs as").else_as("the workspace's owner");
    SANDBOX_SERVER = option sandbox_server: Option<String>, sandbox("--sandbox-server WHERE",
        "docker: outside; inside, with the server in the container as well")
        .of(Choice(&["outside", "inside"])).or_word("outside");
    SANDBOX_PULL = option sandbox_pull: Option<String>, sandbox("--sandbox-pull WHEN",
        "docker, container: when a registry is asked for the image")
        .of(Choice(&["never", "missing", "always"])).else_as("never");

    DAEMON_PORT = option daemon_port: Option<String>, flag(Section::Daemon, CommandSet::DAEMON, "--daemon-port N",
        "port of the daemon's router on loopback; 0: any, kept in openwork-orchestrator-state.json").of(Count(0, 65_535)).or(0);
    OPENCODE_WORKDIR = option opencode_workdir: Option<String>, flag(Section::Daemon, CommandSet::DAEMON, "--opencode-workdir DIR",
        "folder in which the daemon starts OpenCode").of(Path).else_as("the current folder");
    NAME = option name: Option<String>, flag(Section::Daemon, CommandSet::WORKSPACE, "--name NAME", "name of an added workspace");
    DIRECTORY = option directory: Option<String>, flag(Section::Daemon, CommandSet::WORKSPACE, "--directory DIR",
        "folder of an added remote workspace");

    OPENWORK_URL = option openwork_url: Option<String>, client("--openwork-url URL", "the server")
        .of(Url(&["http://", "unix:/"])).else_as("that of the data folder's server, else http://127.0.0.1:8787").vars(&["OPENWORK_URL", "OPENWORK_SERVER_URL"])
        .also(CommandSet::BACKUP).also(CommandSet::UNINSTALL);
    OPENCODE_URL = option opencode_url: Option<String>, client("--opencode-url URL", "an OpenCode whose status is shown as well")
        .of(Url(&["http://"])).vars(&["OPENCODE_URL"]);
    ALLOW = switch allow: bool, flag(Section::Client, CommandSet::REPLY, "--allow", "allow the write").of(Switch);
    DENY = switch deny: bool, flag(Section::Client, CommandSet::REPLY, "--deny", "deny the write").of(Switch);

    REFERENCE = option reference: Option<String>, flag(Section::Image, CommandSet::IMAGE, "--reference TAG",
        "image to import from an archive or layout that has more than one");
    PULL = option pull: Option<String>, flag(Section::Image, CommandSet::IMAGE, "--pull WHEN",
        "when build asks the network for the distribution")
        .of(Choice(&["missing", "always", "never"])).or_word("missing");
    IMAGE = option image: Vec<String>, flag(Section::Bundle, CommandSet::BUNDLE, "--image NAME", "image to pack; repeatable")
        .else_as("all with a name");
    RESTORE = switch restore: bool, flag(Section::Bundle, CommandSet::BUNDLE, "--restore", "unpack instead").of(Switch);
    BIN = option bin: Option<String>, flag(Section::Service, CommandSet::INSTALL, "--bin DIR", "folder of the installed binary")
        .of(Path).else_as("/usr/local/bin").also(CommandSet::BUNDLE);
    CONTAINERS = switch containers: bool, flag(Section::Backup, CommandSet::BACKUP, "--containers",
        "with the files, snapshots and images of containers").of(Switch).else_as("yes");
    WITHOUT_CONTAINERS = switch without_containers: bool, flag(Section::Backup, CommandSet::BACKUP, "--without-containers",
        "without them").of(Switch);
    REPLACE = switch replace: bool, flag(Section::Restore, CommandSet::RESTORE, "--replace",
        "replace a folder that is not empty").of(Switch);
    ROOT = option root: Option<String>, flag(Section::Service, CommandSet::INSTALL, "--root DIR",
        "write everything below this folder, and start nothing; uninstall removes it from there").of(Path).also(CommandSet::UNINSTALL);
    NO_START = switch no_start: bool, flag(Section::Service, CommandSet::INSTALL, "--no-start", "do not start the service").of(Switch);
    PURGE = switch purge: bool, flag(Section::Service, CommandSet::UNINSTALL, "--purge", "remove settings and data as well").of(Switch);
    ONLY_WORKLOADS = switch only_workloads: bool, flag(Section::Service, CommandSet::UNINSTALL, "--only-workloads",
        "only end detached runs and containers; the service stays").of(Switch);

    DETACHED = switch detached: bool, hidden("--detached").of(Switch);
    STATE_FILE = option state_file: Option<String>, hidden("--state-file NAME");
    OPENCODE_HOST = option opencode_host: Option<String>, hidden("--opencode-host ADDRESS").of(Loopback);
    DAEMON_HOST = option daemon_host: Option<String>, hidden("--daemon-host ADDRESS").of(Loopback);
    OPENCODE_AUTH = option opencode_auth: Option<String>, hidden("--opencode-auth").of(Switch);
    BOT = option owpenbot: Option<String>, hidden("--owpenbot").of(Switch).alias(&["--opencode-router"]);
    BOT_BIN = option owpenbot_bin: Option<String>, hidden("--owpenbot-bin FILE").of(Path).alias(&["--opencode-router-bin"]);
    // OpenWork's orchestrator starts its programs from these paths.
    ORCHESTRATOR = option color: Option<String>, hidden("--color").of(Ignored).alias(&[
        "--allow-external", "--sidecar-source", "--sidecar-dir", "--sidecar-base-url",
        "--sidecar-manifest", "--opencode-source", "--owpenbot-required",
        "--opencode-router-required",
    ]);
}

/// Rows for commands with which a flag has another meaning or another variable than in its usual row.
pub const CLIENT_TOKEN: Setting = Setting {
    section: Section::Client,
    takers: CommandSet::CLIENT.and(CommandSet::BACKUP).and(CommandSet::UNINSTALL),
    fallback: Fallback::Described("the one kept in --data-dir"),
    about: "host token of the server",
    ..HOST_TOKEN
};
pub const STATUS_USERNAME: Setting = Setting {
    vars: &["OPENCODE_SERVER_USERNAME"],
    key: "",
    about: "user of --opencode-url",
    section: Section::Client,
    takers: CommandSet::CLIENT,
    fallback: Fallback::Word("opencode"),
    ..OPENCODE_USERNAME
};
pub const STATUS_PASSWORD: Setting = Setting {
    kind: super::setting::ValueKind::Text,
    vars: &["OPENCODE_SERVER_PASSWORD"],
    key: "",
    about: "password of --opencode-url: prefer the variable",
    section: Section::Client,
    takers: CommandSet::CLIENT,
    ..OPENCODE_PASSWORD
};

#[rustfmt::skip]
macro_rules! variables {
    ($($name:ident = $row:expr;)*) => {
        $(pub const $name: Setting = $row;)*

        /// All rows that are not in [`FLAGS`].
        pub const OTHERS: &[Setting] = &[CLIENT_TOKEN, STATUS_USERNAME, STATUS_PASSWORD, $($name),*];
    };
}

#[rustfmt::skip]
variables! {
    HOST_WORKSPACE = variable(&["OPENWORK_WORKSPACE"], "--workspace of berth host").of(Path);
    ORCHESTRATOR_DATA = variable(&["OPENWORK_DATA_DIR"], "its folder berth is the default of --data-dir").of(Path);
    TOKEN_STORE = variable(&["OPENWORK_TOKEN_STORE"], "file of scoped tokens").of(Path)
        .else_as("tokens.json beside server.json if there is one or if it exists there, else in --data-dir");
    MOUNT_ALLOWLIST = variable(&["OPENWORK_SANDBOX_MOUNT_ALLOWLIST", "OPENWRK_SANDBOX_MOUNT_ALLOWLIST"],
        "file of the folders of this host that containers may mount").of(Path)
        .else_as("~/.config/openwork/sandbox-mount-allowlist.json");
    DASHBOARD_PASSWORD = variable(&["DASHBOARD_PASSWORD"], "password of the login, as in sandboxed.sh")
        .of(Secret).key("dashboardPassword");
    USERS = variable(&["SANDBOXED_USERS", "SANDBOXED_SH_USERS"],
        "instead: a JSON array of users with username, password and id").of(Json).key("users");
    JWT_SECRET = variable(&["JWT_SECRET"], "key that signs the tokens of the login, 32 bytes or more").of(Secret).key("jwtSecret");
    JWT_TTL_DAYS = variable(&["JWT_TTL_DAYS"], "days that a token of the login is valid").of(Days(1, 3650)).or(30).key("jwtTtlDays");
    PRIVATE_KEY = variable(&["PRIVATE_KEY"], "key that seals secrets in templates: 32 bytes in hex or base64")
        .else_as("private_key in --data-dir, made when it is first needed");
    PRIVATE_KEY_FILE = variable(&["PRIVATE_KEY_FILE"], "a file with that key").of(Path);
    INBOX_ENABLED = variable(&["OPENWORK_INBOX_ENABLED"], "accept uploads").of(Switch).or_word("yes");
    INBOX_MAX_BYTES = variable(&["OPENWORK_INBOX_MAX_BYTES"], "largest upload; more than 250000000 has no effect")
        .of(Bytes(1, u64::MAX)).or(50_000_000);
    OUTBOX_ENABLED = variable(&["OPENWORK_OUTBOX_ENABLED"], "list files").of(Switch).or_word("yes");
    TOY_UI = variable(&["OPENWORK_TOY_UI"], "serve the page at /ui").of(Switch).or_word("yes");
    SANDBOX_ENABLED = variable(&["OPENWORK_SANDBOX_ENABLED"], "reported by /capabilities").of(Switch);
    SANDBOX_BACKEND = variable(&["OPENWORK_SANDBOX_BACKEND"], "reported by /capabilities")
        .of(Choice(&["none", "docker", "container"])).or_word("none");
    BROWSER_PROVIDER = variable(&["OPENWORK_BROWSER_PROVIDER"], "reported by /capabilities")
        .of(Choice(&["sandbox-headless", "host-interactive", "client-interactive"]));
    DOCKER_BIN = variable(&["OPENWORK_DOCKER_BIN", "OPENWRK_DOCKER_BIN", "DOCKER_BIN"], "the program for --sandbox docker")
        .of(Path).else_as("docker in PATH");
    CONTAINER_BIN = variable(&["BERTH_CONTAINER_BIN"], "the program for --sandbox container")
        .of(Path).else_as("container in PATH, on macOS");
    SOCKETS = variable(&["LISTEN_PID", "LISTEN_FDS"], "sockets that systemd passes");
    NOTIFY = variable(&["NOTIFY_SOCKET"], "socket on which systemd is notified of the start and the stop");
    PROXIES = variable(&["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"],
        "passed to container builds; upper case as well");
    HOMES = variable(&["HOME", "XDG_DATA_HOME"], "where the defaults of --config and --data-dir start").of(Path);
}

/// All rows.
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    FLAGS.iter().chain(OTHERS)
}
