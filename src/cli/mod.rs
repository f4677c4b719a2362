//! The command line: which subcommand, what it prints, which exit code. One file a subcommand; what flags mean is
//! `config`'s business. Runs on the main thread.

pub mod approvals;
pub mod backup;
pub mod bundle;
mod client;
mod daemon;
mod daemon_client;
mod daemon_state;
pub mod doctor;
pub mod host;
mod host_check;
mod host_detach;
mod host_sandbox;
mod host_state;
pub mod image;
pub mod install;
pub mod link;
mod manual;
pub mod restore;
mod screen;
pub mod serve;
pub mod setup;
pub mod status;
pub mod token;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::base::{Code, Error, Result, logging};
use crate::config::Style;
use crate::containers::{binds, enclose, resume};
use crate::host::engine::inside;
use crate::runs::keeper;

/// What `berth --help` prints. Tests keep it complete.
pub const HELP: &str = "\
berth gives AI agents a place to work on a Linux machine: project files, host and container workspaces,
commands in them, tokens and approvals, behind one HTTP server.

Usage: berth [serve] [FLAGS]      serve the workspaces (what berth does when nothing is said)
       berth host [start] [FLAGS] serve a workspace and run an OpenCode for it (--manage-opencode); takes the
                                  flags of serve and those under Host; `berth host serve` is the same
       berth host stop [FLAGS]    end it and wait for that
       berth host status [FLAGS]  whether it and its OpenCode answer; ends with 1 if one does not
       berth host connect [FLAGS] make a token for a client elsewhere and print it with the address
       berth daemon run|start|status|stop [FLAGS]
                                  one OpenCode for many folders, with OpenWork's router on a loopback port;
                                  start goes on in the background
       berth workspace list|add PATH|add-remote URL|switch ID|info ID|path ID [FLAGS]
       berth instance dispose ID [FLAGS]
                                  the daemon's folders; starts one if none runs
       berth token show [FLAGS]   print the kept tokens; takes --data-dir and --config
       berth token make [FLAGS]   make them first where there are none
       berth doctor [FLAGS]       show what this machine can do and what is missing, as --json too; takes the
                                  flags of serve; ends with 1 when container workspaces cannot work
       berth status [FLAGS]       whether a running server, and an OpenCode, answer; ends with 1 if one does not
       berth approvals list [FLAGS]
       berth approvals show ID [FLAGS]
       berth approvals reply ID --allow [FLAGS]     or --deny
       berth approvals watch [FLAGS]
                                  what waits for a person, the person's answer, and what happens meanwhile
       berth image list           base images; list, import and verify take --json. All of it works on the data
                                  folder itself, beside a running server or without
       berth image import NAME FILE-OR-FOLDER [--reference TAG]
                                  a root file system as .tar (also .gz, .xz, .zst), what `docker save` or
                                  `skopeo copy` wrote, an OCI layout, a folder with a system; - is stdin
       berth image export NAME FILE.tar[.gz|.zst]
                                  or - for a plain archive on standard output
       berth image verify [NAME]  read everything again and compare it with the id
       berth image remove NAME    unless a workspace needs it
       berth image build DISTRO [--pull always]
                                  make a distribution's image; asks the network only where there is none yet, or
                                  with --pull always. NAME is a name, an id or its first digits
       berth bundle FILE [--image NAME]
                                  all for a machine without network in one file: this binary, images (all with a
                                  name, or those named), templates and library; not the key of sealed secrets
       berth bundle --restore FILE [--bin DIR]
                                  there: tar -xf FILE berth, ./berth bundle --restore FILE; the binary goes to
                                  /usr/local/bin or DIR
       berth backup FILE [--without-containers]
                                  the data folder as one archive, also beside a running server: workspaces,
                                  tokens, runs, logs, templates, and with --containers, the default, containers'
                                  files, snapshots and images; - is standard output. Takes --data-dir,
                                  --openwork-url and --host-token
       berth restore FILE [--data-dir DIR] [--replace]
                                  make a data folder of a backup, at any path, once everything in it was
                                  compared with its checksums; only an empty folder without --replace; - is
                                  standard input
       berth install [--bin DIR] [--root DIR] [--no-start] [--yes]
                                  make this binary a service of systemd: copy it, write /etc/berth and the unit,
                                  start it; --root writes below another folder and starts nothing
       berth uninstall [--purge | --only-workloads] [--yes]
                                  end what runs, remove service and binary; settings and data stay without
                                  --purge; with --only-workloads the service stays as well
       berth help [man | bash]    print this, the manual page, or completions for bash
       openwrk, openwork, openwork-orchestrator
                                  links of these names take the command lines of OpenWork's orchestrator
       berth agent, attach, enclose, keeper, probe, relay, seed
                                  what berth starts for itself; not for people

Every setting is taken from its flag, else its variable, else the configuration file, else its default.
A value follows its flag as `--flag value` or `--flag=value`.

Server
  --host ADDRESS             IP address or localhost to listen on [127.0.0.1]
  --port N                   port to listen on; 0 lets the kernel choose [8787]
  --listen PLACE             ADDRESS:PORT, [V6]:PORT, or unix:/PATH?mode=660&group=NAME; repeatable; instead of
                             the default address, besides --host and --port where these are given
  --allowed-host NAME        name by which clients may call on loopback and Unix sockets, besides its own;
                             repeatable
  --max-connections N        connections at once, 1 to 65536 [512]
  --drain-timeout SECONDS    how long requests may go on after a stop signal, 0 to 3600 [10]
  --data-dir DIR             where all state is stored [$OPENWORK_DATA_DIR/berth where that is set, else
                             /var/lib/berth for root, else ~/.local/share/berth]
  --config FILE              configuration file [~/.config/openwork/server.json]
  --http-threads N           threads that answer requests, 1 to 256 [2 for each core, at least 4]
  --cors LIST                origins that browsers may call from, with commas between, or * [none]

Access
  --token TOKEN              client token; others can read flags, so better use OPENWORK_TOKEN [made and kept]
  --host-token TOKEN         host token; better use OPENWORK_HOST_TOKEN [made and kept]
  --approval MODE            manual: a person answers gated writes; auto: they are allowed [manual]
  --approval-timeout MS      milliseconds after which an unanswered write is denied [30000]
  --read-only                refuse every write

Workspaces
  --workspace DIR            a host workspace; repeatable, the first is the default one [the current folder]
  --authorized-root DIR      folder in which the API may make host workspaces; repeatable [the workspaces]
  --opencode-base-url URL    OpenCode server for workspaces that name none
  --opencode-directory DIR   its folder, when there is exactly one workspace
  --opencode-username NAME   its user
  --opencode-password TEXT   its password; better use OPENWORK_OPENCODE_PASSWORD
  --opencode-timeout SECONDS how long it may take for the head of an answer, 1 to 86400 [600]
  --max-proxied N            requests that wait for it at once, 1 to 1024; slow ones count as streams [16]
  --permission-replies SCOPE who may answer what it asks: owner or collaborator [owner]
  --opencode-shell SCOPE     who may use its terminals and shell commands on a host workspace when --approval is
                             auto: owner or collaborator [owner]

OpenCode as a child of the server
  --manage-opencode          run `opencode serve` for the workspaces that have no other OpenCode, restart it
                             when it ends, end it with the server
  --opencode-bin FILE        its program [opencode in PATH]
  --opencode-port N          its port on 127.0.0.1; 0: it chooses, and berth reads which one [0]
  --opencode-env NAME        a variable that it gets besides HOME, PATH, LANG, TZ, XDG_*, *_API_KEY, *_proxy,
                             AWS_*, GOOGLE_*, AZURE_*, OPENCODE_*, ~/.config/openwork/env.json; repeatable
  --opencode-memory BYTES    the most memory that it may use with all it starts [half of the machine's]
  --opencode-restart WHEN    on-failure: until it ended 5 times in 5 minutes; always; never [on-failure]
  --opencode-log-level LEVEL DEBUG, INFO, WARN or ERROR, in host/opencode.log in --data-dir [WARN]
  --start-timeout SECONDS    how long a start of it may take, 1 to 86400 [60]

Commands and containers
  --max-runs N               commands that may run at once, 1 to 1024 [256]
  --max-streams N            followers of output, waits and terminals at once, 1 to 4096 [256]
  --output-limit BYTES       kept of each stream of an exec, in memory, 4096 to 1073741824 [10485760]
  --run-output-limit BYTES   kept of each stream of a run, on disk; from 1048576 [2147483648]
  --runs-disk-limit BYTES    kept of all runs together; from 1048576 [17179869184]
  --image-timeout SECONDS    how long debootstrap or pacstrap may take, 1 to 86400 [3600]
  --init-timeout SECONDS     how long an init script may take, 1 to 86400 [3600]
  --idle-timeout SECONDS     stop a container that has no commands and terminals for so long; 0: never [1800]
  --private-range RANGE      addresses of private networks; every container takes 4 [10.213.0.0/16, or else the
                             first of a few others into which this host has no route]
  --private-dns ADDRESS      name server of private networks; repeatable [the host's, unless they listen on the
                             host itself]
  --root-backend WAY         how containers' roots are made: auto, overlay, reflink or copy [auto]
  --library DIR              templates, skills, tools and scripts; a git clone will do [library in --data-dir]
  --mirror NAME=URL          package mirror (http, https, file) of ubuntu-noble, ubuntu-jammy, debian-bookworm
                             or arch-linux; repeatable
  --keyring NAME=FILE        keyring (for arch-linux: pacman's gnupg folder) of its archive; repeatable
  --setup                    first install what container workspaces need and is missing (apt-get, dnf, pacman)
  --yes                      do not ask before that

Host
  --openwork-port N          its port; one that is taken is an error, 0: any [8787]
  --openwork-token TOKEN     the client token; better use OPENWORK_TOKEN
  --openwork-host-token TOKEN
                             better use OPENWORK_HOST_TOKEN
  --openwork-host ADDRESS    what it listens on [127.0.0.1]
  --remote-access            listen on 0.0.0.0
  --check                    do what a client does first, print a line for each step on standard error, stop
  --check-events             wait for an event as well
  --tui                      a screen with services, log and waiting approvals; --no-tui: none [on a terminal]
  --detach                   return when OpenCode answers; the host goes on, with host/host.log in --data-dir
  --log-file FILE            log there instead of standard error, 8 MiB and as much before it
  --connect-host NAME        the host in URLs that are shown
  --sandbox WORD             what OpenCode runs in: none; berth, a container of berth's own; docker, one of
                             Docker's or of another engine that the `docker` command reaches; container, one
                             of Apple's; auto: the first of these that works here, or no start [none]. The
                             workspace is at /workspace there
  --sandbox-image NAME       berth: of `berth image`, or a distribution [debian-bookworm]; docker, container: a
                             reference [debian:bookworm-slim]
  --sandbox-mount LIST       HOST:SUB[:ro|:rw], with commas between, or a JSON array: folders that the mount
                             allowlist allows, at /workspace/extra/SUB; repeatable
  --sandbox-memory BYTES     the most memory in it [half of the machine's]
  --sandbox-cpus N           the most processors [all]
  --sandbox-pids N           the most processes and threads [an eighth of the machine's, 512 to 4096]
  --sandbox-any-workspace    also for a workspace that berth refuses: /, a home, berth's own data
                             docker and container only:
  --sandbox-persist-dir DIR  OpenCode's home [a folder for the workspace below sandbox in --data-dir]
  --sandbox-network WORD     none, private, or host: the host's own, which container has not [private]
  --sandbox-user UID[:GID]   whose rights OpenCode has [the workspace's owner's]
  --sandbox-server WHERE     outside; inside: the server is in the container as well (docker only) [outside]
  --sandbox-pull WHEN        ask a registry for the image: never, missing or always [never]
  --run-id ID                stands in every log line [OPENWORK_RUN_ID, else a new one]
  --daemon-port N            of the daemon's router; 0: any, kept in openwork-orchestrator-state.json [0]
  --opencode-workdir DIR     where the daemon starts OpenCode [the current folder]
  --name NAME                of a workspace that is added
  --directory DIR            of one elsewhere
  --scope SCOPE              of the token of connect: viewer, collaborator or owner [collaborator]
  --expires SECONDS          its life [86400]
  --qr                       show what connect prints as a QR code as well

Status and approvals
  --openwork-url URL         the server [http://127.0.0.1:8787]; OPENWORK_URL, OPENWORK_SERVER_URL
  --host-token TOKEN         better use OPENWORK_HOST_TOKEN [the one kept in --data-dir]
  --opencode-url URL         an OpenCode whose status is wanted as well, with --opencode-username and
                             --opencode-password; OPENCODE_URL, OPENCODE_SERVER_USERNAME and …_PASSWORD
  --json                     say it as JSON
  --allow                    let the write happen
  --deny                     do not

Log and the rest
  --log-format FORMAT        pretty or json [pretty]
  --log-requests             log a line for every request [yes, but those that repeat are counted]
  --no-log-requests          do not
  --verbose                  log more
  -h, --help                 print this
  -V, --version              print the version

Environment
  OPENWORK_SERVER_CONFIG     --config                  OPENWORK_HOST, OPENWORK_PORT        --host, --port
  OPENWORK_TOKEN             --token                   OPENWORK_HOST_TOKEN                 --host-token
  OPENWORK_APPROVAL_MODE     --approval                OPENWORK_APPROVAL_TIMEOUT_MS        --approval-timeout
  OPENWORK_WORKSPACES        --workspace: JSON array of strings, or paths with , or ; between
  OPENWORK_CORS_ORIGINS      --cors                    OPENWORK_READONLY                   --read-only
  OPENWORK_LOG_FORMAT        --log-format              OPENWORK_LOG_REQUESTS               --log-requests
  OPENWORK_OPENCODE_BASE_URL, OPENWORK_OPENCODE_DIRECTORY, OPENWORK_OPENCODE_USERNAME,
  OPENWORK_OPENCODE_PASSWORD --opencode-…
  BERTH_OPENCODE_TIMEOUT     --opencode-timeout        BERTH_MAX_PROXIED                   --max-proxied
  BERTH_PERMISSION_REPLIES   --permission-replies      BERTH_OPENCODE_SHELL                --opencode-shell
  OPENWORK_MANAGE_OPENCODE   --manage-opencode         OPENWORK_OPENCODE_BIN               --opencode-bin
  OPENWORK_OPENCODE_PORT     --opencode-port           OPENWORK_OPENCODE_LOG_LEVEL         --opencode-log-level
  BERTH_OPENCODE_ENV         --opencode-env            BERTH_OPENCODE_MEMORY               --opencode-memory
  BERTH_OPENCODE_RESTART     --opencode-restart        BERTH_START_TIMEOUT                 --start-timeout
  OPENWORK_WORKSPACE         --workspace of berth host  OPENWORK_SANDBOX, OPENWRK_SANDBOX   --sandbox
  BERTH_DATA_DIR             --data-dir                BERTH_HTTP_THREADS                  --http-threads
  OPENWORK_DATA_DIR          its folder berth is the default of --data-dir
  BERTH_LISTEN               --listen                  BERTH_ALLOWED_HOSTS                 --allowed-host
  BERTH_MAX_CONNECTIONS      --max-connections         BERTH_DRAIN_TIMEOUT                 --drain-timeout
  LISTEN_PID, LISTEN_FDS     sockets that systemd passes; NOTIFY_SOCKET: where it is told of the start and stop
  BERTH_MAX_RUNS             --max-runs                BERTH_OUTPUT_LIMIT                  --output-limit
  BERTH_MAX_STREAMS          --max-streams             BERTH_RUN_OUTPUT_LIMIT              --run-output-limit
  BERTH_RUNS_DISK_LIMIT      --runs-disk-limit
  BERTH_MIRRORS              --mirror                  BERTH_KEYRINGS                      --keyring
  BERTH_INIT_TIMEOUT         --init-timeout            LIBRARY_PATH                        --library
  BERTH_IMAGE_TIMEOUT        --image-timeout
  BERTH_IDLE_TIMEOUT         --idle-timeout            BERTH_ROOT_BACKEND                  --root-backend
  BERTH_PRIVATE_RANGE        --private-range           BERTH_PRIVATE_DNS                   --private-dns
  OPENWORK_SANDBOX_MOUNT_ALLOWLIST, OPENWRK_SANDBOX_MOUNT_ALLOWLIST
                             file that says which folders of this host containers may mount
                             [~/.config/openwork/sandbox-mount-allowlist.json]
  DASHBOARD_PASSWORD, SANDBOXED_USERS, JWT_SECRET, JWT_TTL_DAYS
                             password login as sandboxed.sh has it: one password, or a JSON array of users with
                             username and password; what signs the tokens, 32 bytes or more; the days that a
                             token is good [30]
  OPENWORK_TOKEN_FILE, OPENWORK_HOST_TOKEN_FILE, OPENWORK_OPENCODE_PASSWORD_FILE, DASHBOARD_PASSWORD_FILE,
  SANDBOXED_USERS_FILE, JWT_SECRET_FILE
                             files with these secrets; systemd's credentials (LoadCredential=) of the
                             variables' names, such as OPENWORK_HOST_TOKEN, are read as well
  PRIVATE_KEY, PRIVATE_KEY_FILE
                             what seals secrets in templates: 32 bytes in hex or base64, or a file with
                             them [private_key in --data-dir, made when it is first needed]
  OPENWORK_INBOX_ENABLED     take uploads [yes]        OPENWORK_OUTBOX_ENABLED             list files [yes]
  OPENWORK_INBOX_MAX_BYTES   largest upload [50000000, at most 250000000]
  OPENWORK_TOKEN_STORE       file of scoped tokens [tokens.json beside server.json if there is one or it lies
                             there already, else in --data-dir]
  OPENWORK_TOY_UI            serve the page at /ui [yes]
  OPENWORK_SANDBOX_ENABLED, OPENWORK_SANDBOX_BACKEND (none, docker, container), OPENWORK_BROWSER_PROVIDER
  (sandbox-headless, host-interactive, client-interactive): what /capabilities says
  OPENWORK_SANDBOX, OPENWORK_SANDBOX_IMAGE, OPENWORK_SANDBOX_PERSIST_DIR, OPENWORK_SANDBOX_MOUNT, the same with
  OPENWRK_                   --sandbox, --sandbox-image, --sandbox-persist-dir, --sandbox-mount
  OPENWORK_DOCKER_BIN, OPENWRK_DOCKER_BIN, DOCKER_BIN
                             the program for --sandbox docker [docker in PATH]
  BERTH_CONTAINER_BIN        the program for --sandbox container [container in PATH, on macOS]
  OPENWRK_RUN_ID, OPENWORK_RUN_ID
                             id in every log line [a new one]
  http_proxy, https_proxy, ftp_proxy, no_proxy, all_proxy (or upper case)
                             handed to container builds
  HOME, XDG_DATA_HOME        where the defaults of --config and --data-dir start
  Lists have commas between. Yes is 1, true, yes or on; no is 0, false, no or off. A variable set to
  nothing counts as unset; an empty token is an error.

Files
  ~/.config/openwork/server.json
      host, port, token, hostToken, approval {mode, timeoutMs}, workspaces [{path, name, workspaceType, baseUrl,
      directory, opencodeUsername, opencodePassword}], corsOrigins [], authorizedRoots [], readOnly,
      opencodeUsername, opencodePassword, opencodeTimeout, maxProxied, permissionReplies, opencodeShell,
      manageOpencode, opencodeBin, opencodePort, opencodeEnv [], opencodeMemory, opencodeRestart,
      opencodeLogLevel, startTimeout,
      logFormat, logRequests, dataDir, listen [], allowedHosts [],
      maxConnections, drainTimeout, mirrors {}, keyrings {}, maxRuns, maxStreams,
      runOutputLimit, runsDiskLimit, outputLimit, initTimeout, library, httpThreads, idleTimeout, rootBackend,
      privateRange, privateDns []. Plain JSON; relative paths start from the file's folder.
  DATA-DIR/credentials.json
      the tokens that berth made, for the owner of the folder only.
  tokens.json
      scoped tokens (POST /tokens), as hashes, in the OpenWork server's format; may be edited while berth runs.

Exit codes
  0  ended as asked    1  failed while running    2  wrong flag, variable or configuration file
  3  the data folder or backup was written by a newer berth; nothing was changed
";

/// Runs berth with the arguments of the process, the program's name first.
pub fn run(args: Vec<OsString>) -> ExitCode {
    // First of all: the agent starts inside a container that waits for it.
    if args.get(1).is_some_and(|arg| arg == "agent") {
        crate::containers::agent::main();
    }
    match dispatch(args) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "berth: {}", logging::one_line(&error.to_string()));
            exit_code(&error)
        }
    }
}

/// What an error ends with; the help text lists them.
fn exit_code(error: &Error) -> ExitCode {
    ExitCode::from(match error.code() {
        Code::Config => 2,
        Code::NewerFormat => 3,
        _ => 1,
    })
}

/// What berth starts for itself, under whichever name it was called.
const OWN: [&str; 7] = ["host", "probe", "attach", "keeper", "enclose", "relay", "seed"];

fn dispatch(args: Vec<OsString>) -> Result<ExitCode> {
    let name = args.first().map(std::path::Path::new).and_then(std::path::Path::file_name);
    let program = name.and_then(|name| link::NAMES.into_iter().find(|link| name == *link));
    let mut words = Vec::with_capacity(args.len());
    for arg in args.into_iter().skip(1) {
        let word = arg.into_string();
        words.push(word.map_err(|arg| Error::config(arg.to_string_lossy(), "argument is not UTF-8 text"))?);
    }
    let own = words.first().is_some_and(|word| OWN.contains(&word.as_str()));
    if let Some(program) = program.filter(|_| !own) {
        return link::run(program, &words);
    }
    match words.first().map(String::as_str) {
        Some("host") => host::run(&words[1..], Style::Strict),
        Some(command @ ("daemon" | "workspace" | "workspaces" | "instance")) => {
            let file = daemon_client::state_file("berth");
            daemon_client::run(command, &words[1..], Style::Strict, file)
        }
        Some("serve") => serve::run(&words[1..]),
        Some("token") => token::run(&words[1..]),
        Some("doctor") => doctor::run(&words[1..]),
        Some("approvals") => approvals::run(&words[1..]),
        Some("status") => status::run(&words[1..]),
        Some("image") => image::run(&words[1..]),
        Some("bundle") => bundle::run(&words[1..]),
        Some("backup") => backup::run(&words[1..]),
        Some("restore") => restore::run(&words[1..]),
        Some("install") => install::install(&words[1..]),
        Some("uninstall") => install::uninstall(&words[1..]),
        // A single thread, as the agent: a probe forks.
        Some("probe") => Ok(crate::doctor::child::main(&words[1..])),
        Some("attach") => Ok(binds::main(&words[1..])),
        Some("keeper") => Ok(keeper::child::main(resume)),
        Some("enclose") => Ok(enclose::main(&words[1..])),
        Some("relay") => Ok(inside::main(&words[1..])),
        Some("seed") => serve::in_container(&words[1..]),
        Some("help") => match words.get(1).map(String::as_str) {
            Some("man") => {
                print(&manual::man(HELP));
                Ok(ExitCode::SUCCESS)
            }
            Some("bash") => {
                print(&manual::bash());
                Ok(ExitCode::SUCCESS)
            }
            _ => Ok(help()),
        },
        Some(word) if !word.starts_with('-') => Err(Error::config(
            word,
            "unknown subcommand; there are serve, host, daemon, workspace, instance, doctor, image, bundle, backup, restore, token, approvals, status, install, uninstall and help",
        )),
        _ => serve::run(&words),
    }
}

fn help() -> ExitCode {
    print(HELP);
    ExitCode::SUCCESS
}

fn version() -> ExitCode {
    print(concat!(env!("CARGO_PKG_VERSION"), "\n"));
    ExitCode::SUCCESS
}

/// To stdout; a reader that has gone is no failure (`berth --help | head -1`).
fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::host::HOST_FLAGS;
    use crate::config::{ClientArgs, ServeArgs};

    #[test]
    fn help_has_every_flag_and_every_variable() {
        for flag in ServeArgs::flags().chain(ClientArgs::flags()).chain(HOST_FLAGS) {
            assert!(HELP.contains(&format!("  {flag} ")), "{flag} is not in the help text");
        }
        let readers = concat!(
            include_str!("../config/resolve.rs"),
            include_str!("../config/client.rs"),
            include_str!("../config/opencode.rs"),
            include_str!("../config/sources.rs")
        );
        let names = readers.split('"').filter(|word| {
            ["OPENWORK_", "OPENWRK_", "BERTH_"].iter().any(|start| word.starts_with(start))
                && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        });
        let names: Vec<&str> = names.collect();
        assert!(names.len() > 20);
        for name in names {
            assert!(HELP.contains(name), "{name} is not in the help text");
        }
    }

    #[test]
    fn help_has_every_command() {
        for command in crate::config::COMMANDS {
            let is_first = command.name == "serve";
            let start =
                if is_first { "berth [serve]".to_owned() } else { format!("berth {} ", command.name) };
            assert!(HELP.contains(&start), "{start}");
        }
    }

    #[test]
    fn help_fits_a_terminal() {
        for line in HELP.lines() {
            assert!(line.chars().count() <= 112, "{line}");
        }
    }

    #[test]
    fn mistakes_are_configuration_errors() {
        for args in
            [&["berth", "frobnicate"][..], &["berth", "serve", "x"], &["berth", "token"], &["berth", "--x"]]
        {
            let error = dispatch(args.iter().map(OsString::from).collect()).unwrap_err();
            assert_eq!(error.code(), Code::Config, "{args:?}");
        }
    }
}
