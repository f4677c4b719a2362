//! The architecture of berth: a synchronous, threaded HTTP server in one static binary that gives AI agents a place to
//! work.
//!
//! # Bird's-eye view
//!
//! berth serves *workspaces*. A workspace is a folder of the host, or a container with files of its own. Clients create
//! workspaces, run commands and terminals in them, read and write their files, and reach the OpenCode that works there.
//! Two existing APIs are served, with one registry behind both: OpenWork's (`/workspace/…`) and sandboxed.sh's
//! (`/api/…`). [Compatibility](../assets/docs/compatibility.md) describes what their clients rely on; a comment that
//! says "as observed" refers to that page. [Decisions](../assets/docs/decisions.md) gives the reasons for this
//! structure, [Security cases](../assets/docs/security.md) the attacks that it withstands.
//!
//! A request passes four stages: the *gate* owns the client's connection, *tiny_http* queues the request, a *handler*
//! calls one *service*, and the service uses files, child processes or an upstream. There is no async runtime and no
//! database: threads with fixed limits, child processes, and files.
//!
//! # Code map
//!
//! In reading order; each module uses only modules below it, and four pairs are forbidden as well. `tests/it/tidy.rs`
//! checks both (`LAYERS`, `NEVER`).
//!
//! | module | contents |
//! |--|--|
//! | [`cli`] | the subcommands, and the client of the command line |
//! | [`config`] | flags, environment and `server.json`, resolved into [`server::Settings`] |
//! | [`server`] | constructs all services, owns all threads, runs the shutdown |
//! | [`gate`] | listeners, HTTP heads and bodies, deadlines, the relay to tiny_http |
//! | [`api`] | the route table, dispatch, one file per resource |
//! | [`http`] | requests, replies, routes, streams, WebSockets; the only module that uses tiny_http |
//! | [`host`] | the OpenCode that the server runs: its process, restarts, log, and sandbox engines |
//! | [`lifecycle`] | operations that combine records, containers and runs: build, init script, command, deletion |
//! | [`doctor`] | checks what this host supports |
//! | [`workspaces`] | workspace records, their status machine, their registry, files that berth writes for agents |
//! | [`project`] | an agent's configuration, skills and commands in a workspace; inbox (uploads) and outbox, stored by [`store::tray`] |
//! | [`access`] | credentials, scoped tokens, scopes, approvals, the audit log; [`api::dispatch`] compares scopes with routes |
//! | [`opencode`] | requests passed on to an OpenCode: policy, connections, deadlines, WebSockets |
//! | [`terminals`] | programs on a PTY, their screens and their clients |
//! | [`runs`] | commands: policy, output, detached runs |
//! | [`containers`] | nspawn, the agent in the container, private networks, mounts |
//! | [`roots`] | the files of containers: layers, copies, snapshots |
//! | [`images`] | base images: bootstrap, import, export, verification |
//! | [`library`] | templates, skills, tools and scripts |
//! | [`events`] | numbered events that any number of subscribers read at their own speed |
//! | [`store`] | files: atomic, locked, contained, removed |
//! | [`proc`] | child processes: spawn, cgroups, poll loop, captured output |
//! | [`base`] | errors, identifiers, limits, thread pools, logging |
//!
//! A new feature is a service file, a file in [`api`], rows in the route table ([`api::routes`]) and a test file in
//! `tests/it`. Each row states the authentication, the approval action and the thread pool of its handler.
//!
//! # Invariants
//!
//! - **Invariant:** a client's bytes reach tiny_http only after the gate has checked them. Its name occurs in
//!   `http/accept.rs` and `http/request.rs` alone.
//! - **Invariant:** a thread of the fixed pool (`http-N`) never waits for a person, a child process or an upstream, and reads
//!   nothing that a workload can make large.
//! - **Invariant:** files that a workload can change are opened beneath a descriptor with `openat2` ([`store::beneath`]).
//!   No path is checked first and opened later.
//! - **Invariant:** messages of the agent in a container are untrusted. The end of a command, its limits and its identity are
//!   established from outside, with cgroups and pidfds.
//! - **Invariant:** every limit exists for one workspace or token and in total. Capacity is reserved for owners and for calls
//!   that end something.
//! - **Invariant:** an approval is bound to the whole request that it showed.
//! - **Invariant:** one process uses a data folder, and no file in it contains the folder's absolute path. State is replaced
//!   whole: temporary file, fsync, rename, fsync of the folder.
//! - **Invariant:** secrets are in no argument, log line, audit line or child's environment.
//! - **Invariant:** no other user of the host can reach a container's files.
//! - **Invariant:** every child process has an owner that ends its whole tree, and every wait has a deadline.
//! - **Invariant:** locks are taken in one direction: the registry, one workspace's file, leaves. No file is read or written
//!   under the registry's lock.
//! - `unsafe` is confined to `proc/sys.rs`.
//!
//! # Life of a request
//!
//! 1. A `gate-N` thread reads the head within its deadline, validates it strictly (RFC 9112), checks `Host` and `Origin`, and
//!    relays the request over a private Unix socket to tiny_http ([`gate`]).
//! 2. An `http-N` thread takes it from tiny_http's queue and dispatches it: route, credential, read-only mode, scope,
//!    approval, handler ([`api::dispatch`]).
//! 3. The handler parses the body, calls one service and shapes the reply. A handler that has to wait moves, with its
//!    request, to a bounded pool: commands to `run-N`, workspace files to `files-N`, large transfers to `transfer-N`. A build
//!    is accepted at once and continues on `build-N`.
//! 4. Streams and WebSockets get a `stream-N` thread and the client's socket, which the gate lends out
//!    ([`http::client::Tickets`]).
//!
//! When all connections are taken, the gate closes one that waits for its client: an incomplete head or body, a reply
//! that is not read, an idle connection. Connections with a request in progress stay; those have tokens, and tokens
//! have shares ([`base::shares`]). Additional connections are reserved for owners.
//!
//! # Commands
//!
//! One loop watches each command and its deadline ([`mod@proc::pump`]): at the deadline it sends SIGTERM, and after a grace period
//! it kills the cgroup.
//!
//! Each command runs in a cgroup of its own (v2, no controller needed), so `cgroup.kill` ends all of its processes. On
//! the host it starts in the cgroup (`CLONE_INTO_CGROUP`); where a seccomp profile refuses clone3, it enters the cgroup
//! before its program starts.
//!
//! In a container, PID 1 is the agent: berth's own binary. Its child, the zygote, starts processes that wait for a
//! command in the zygote's memory (`CLONE_VM`), so that nothing is copied. Their parent is PID 1, which reports their
//! exit status and survives whatever happens to them. Each enters its cgroup through a descriptor of the server
//! *before* it receives a command; the server never moves a process by its number. The server keeps a few waiting
//! processes per container, because a move between cgroups waits for an RCU grace period. One thread refills all
//! containers.
//!
//! # Runs
//!
//! An exec keeps its output in memory and returns it. Other runs write their output to files, which any number of
//! readers follow by offset at their own speed ([`runs::spool`], [`runs::follow`]); the thread that reads the command's
//! pipes never waits for a reader. A run is reported as ended once its exit status was collected.
//!
//! A detached run has a keeper ([`runs::keeper`]): a process outside of every container that owns the pipes, the files,
//! the deadline and the wait for the exit. Servers follow it over a socket and may be restarted. Only the keeper writes
//! the files, so a reading server learns their marks late and looks for holes itself.
//!
//! # Terminals
//!
//! A terminal ([`terminals`]) is a program on a PTY, a model of its screen, and its clients. Its thread always reads
//! and never waits for a client; clients have bounded queues, and one that falls behind receives the screen instead of
//! the output that it missed. Output is passed on in pieces that split no character and no control sequence, so a
//! client can join between any two. In a container the PTY comes from the container's devpts, opened from outside.
//!
//! # Roots and images
//!
//! Where the host supports it, a container's files are layers over its base image ([`roots`]): an overlay of id-mapped
//! mounts. On disk all files belong to the ids 0 to 65535, so snapshots and clones share layers. The overlay is mounted
//! in a private mount namespace; the server opens files beneath descriptors in it, a starting container receives a
//! clone of the mount, and a restarted server takes the mount from the running container. Elsewhere a root is a copy,
//! with shared blocks if the file system supports that.
//!
//! A root of the machine's own system ([`images::host_image`]) contains no programs. Its container gets the machine's
//! as read-only binds that are not id-mapped, so root inside can read only world-readable files.
//!
//! # Networks
//!
//! A private network is a network namespace that the start creates around nspawn. It belongs to the host and lives as
//! long as the container. Rules are in the namespace, and in one table of the host ([`containers::network`]).
//!
//! # Limits
//!
//! The tree's cgroup bounds all workloads together, a container's cgroup bounds the container, a command's its
//! processes ([`proc::limits`], [`proc::control`]). With v2 controllers every group has limits. With v1 controllers a
//! container enters v1 groups once, at its start, and a command is moved only if it has limits of its own, since a move
//! waits for the kernel. A limit that the host cannot enforce is refused for a command and listed as a warning for a
//! workspace. The server itself is the last process that the kernel kills when memory runs out, and has a share of the
//! processors of its own.
//!
//! # OpenCode
//!
//! A request below `/opencode` stays on its client's `gate-N` thread ([`http::direct`]), which checks it and passes it
//! on with ureq over connections of berth's own ([`opencode`]): changes of thread are most of the cost of such a
//! request. Requests with chunked bodies or an upgrade, and those that find all of `--max-proxied` taken, take the
//! usual way, to a `proxy-N` thread. A short reply returns as any other. A long reply or a stream goes to the client's
//! socket on a `stream-N` thread; after an upgrade the same thread continues, counts as a stream and gives its place
//! among the workers to another ([`base::pool::step_aside`]). The waiting thread watches the upstream, the client, the
//! credential and the server's shutdown; whichever ends first ends the others.
//!
//! With `--manage-opencode` the server runs an OpenCode itself ([`host`]) for all workspaces on the host without one of
//! their own. It has a cgroup with a memory limit, an environment without berth's tokens, and a random password that
//! only the orchestrator which passed it in can see. Until it answers, and after it has failed, requests get a 503
//! ([`opencode::Managed`]). With `--sandbox berth` it runs in a container workspace of its own ([`lifecycle::sandbox`])
//! and is reached at the container's private address. With `--sandbox docker` or `container` it runs in a container of
//! an engine ([`host::engine`]). The first process of that container is berth's binary: it starts OpenCode and relays
//! between a Unix socket in a mounted folder and OpenCode's port, so no port is published. It ends when its connection
//! to the server closes, and the container ends with it.
//!
//! # Threads
//!
//! | thread | number | waits for |
//! |--|--|--|
//! | main | 1 | the signal pipe |
//! | `gate-accept` | 1 | the listeners |
//! | `gate-N` | `--max-connections` | its client, with deadlines; an OpenCode on that client's behalf |
//! | tiny_http's own | connections that the gate relays | the private socket |
//! | `http-N` | `--http-threads` | nothing longer than a file |
//! | `files-N` | 8 | workspace files: lists, exports, imports, edits |
//! | `end-N` | 16 | the end of a run, a terminal or a container that a request ends |
//! | `transfer-N` | 64 | a client that sends a large body or reads a large reply |
//! | `up` | 1, of `berth host` and `berth daemon` | OpenCode's reply, the checks, the daemon's end |
//! | `opencode`, `opencode-output` | 1 of each | the OpenCode that the server runs, and its output |
//! | `sandbox-sweep` | 1, if a killed server left a container in an engine | the engine |
//! | `run-N` | `--max-runs` | one command's poll loop |
//! | `stream-N` | `--max-streams` | a run's next output or end, a slow reader, one WebSocket in both directions |
//! | `keepers` | 1 | messages of the keepers of detached runs; a keeper itself has `main` and `keeper-door` |
//! | `proxy-N` | `--max-proxied`, shared with the requests on `gate-N`; long replies count as streams | an OpenCode, and the client that reads its reply |
//! | `terminal-N` | 64 | a terminal's program, in both directions |
//! | `build-N` | 4 | a build step's child process |
//! | `root-mounts` | one for each root being mounted | mount(2), for milliseconds |
//! | `root-sizes` | 1 | requests to measure a root |
//! | `image-import`, `image-read`, `image-hash`, `image-pack` | one of each for an import | a client or a file, each other, the disk |
//! | `container-NAME` | running containers | nspawn's exit |
//! | `container-spares` | 1 | refill requests, and the agents of all containers at once |
//! | `approvals` | 1 | the next deadline of a pending approval |
//! | `leases` | 1 | the next expiry of a scoped token that has something open |
//! | `container-idle` | 1 | the next moment at which a container may have been idle for its timeout |
//! | `project-watch` | 1 | changes of files that agents read |
//! | `library-watch` | 1 | changes in the library by hand; it then syncs the workspaces concerned |
//! | `trash` | 1 | requests to empty the trash; first it removes partial uploads of a killed server |
//!
//! # Files on disk
//!
//! ```text
//! DATA is the data folder, WORKSPACE is DATA/workspaces/ID.
//!
//! DATA/lock                      flock: one server; its pid and its addresses
//! DATA/format                    the version of all files here (store/format.rs)
//! DATA/credentials.json          generated tokens, 0600
//! DATA/naming_key                key of the names that the client and host tokens have in the audit log, 0600
//! DATA/private_key               key of the sealed secrets in templates, 0600
//! DATA/tokens.json               scoped tokens, 0600, unless they are stored beside server.json or at a configured path
//! DATA/approvals                 unnamed files of large requests that wait for approval
//! DATA/audit/LOG.jsonl, LOG.1.jsonl  audit log of each workspace (ws_…) and of the server, 2 MiB each
//! DATA/reload/ID.jsonl           the last reload events of a workspace
//!
//! WORKSPACE/workspace.json       the record; the folder appears and disappears by rename
//! WORKSPACE/files                files of a host workspace without a path of its own
//! WORKSPACE/root                 files of a container where roots are copies, else empty; root.build.log is beside it
//! PATH/root                      the same, where the owner named PATH; mode 0700, .berth-workspace in it names the workspace
//! WORKSPACE/root.json            kind and layers of the root
//! WORKSPACE/snapshots/ID         snapshot.json, kept.json (files that a sync wrote), root where it is a copy
//! WORKSPACE/machine.json         state of the running container, for a server that takes it over
//! WORKSPACE/agent.sock           socket of its agent; machine.log has nspawn's output
//! WORKSPACE/mounts               mount points for clones of host folders, used in a private mount namespace
//! WORKSPACE/mounts.json          whether the owners of mounted files could be mapped
//! WORKSPACE/synced.json          files that berth wrote into the workspace
//! WORKSPACE/import.json          present while an import replaces files
//! DATA/layers/ID                 a layer: fs, the kernel's work folder; .mounts is empty
//! DATA/images/ID, names/NAME     base images, complete if present, and the names that refer to them (images/mod.rs)
//! DATA/agent/berth-VERSION       berth's binary, mounted into containers
//! DATA/network.json              the range of private networks, while a table of rules exists
//!
//! DATA/runs/ID/run.json          a run's view and the marks of its output
//! DATA/runs/ID/stdout, stderr    each byte at its own offset; discarded output is a hole
//! DATA/runs/ID/turns             the order of pieces of the two streams
//! DATA/runs/ID/keeper.sock       socket of a detached run's keeper; keeper.log has its errors
//!
//! DATA/library                   templates, skills, tools, scripts; `--library` names another folder
//! DATA/library.seen              state of the library at the last sync
//! LIBRARY/skill/.importing-ID    an import in progress; a start removes those of a killed server
//!
//! DATA/host/opencode.log         output of the OpenCode that the server runs, without secrets; before it opencode.1.log
//! DATA/host/sandbox.json         the engine's container to remove, while there may be one
//! DATA/host/door                 folder of the socket to that container, new for each
//! DATA/host/extra                mount points for additional folders of a berth container with OpenCode
//! DATA/host/seed, sandbox.env    programs and secrets of a container with the server inside, during its start
//! DATA/sandbox/HASH              OpenCode's home folder in a sandbox, one per workspace
//! DATA/host/state.json           process and address of the running `berth host`
//! DATA/host/host.log, daemon.log logs after --detach, 8 MiB each, with one predecessor
//! DATA/openwork-orchestrator-state.json, openwrk-state.json  the folders of `berth daemon`, as OpenWork's desktop reads them
//!
//! DATA/cgroup                    path of the cgroup tree
//! DATA/http                      private socket to tiny_http, mode 0700, removed at the end
//! DATA/trash                     folders that are being removed
//! DATA/.berth-doctor-PID-*       scratch folders of `berth doctor`
//! .NAME.restore-UUID             beside the data folder NAME while `berth restore` unpacks
//! FOLDER/.FILE.part-UUID         an unfinished backup
//! ```
//!
//! After `kill -9` of the server, containers keep running. The next start takes over each whose state file agrees with
//! the kernel: the boot, the pids and start times of nspawn and the agent, their cgroup, and an agent that accepts
//! connections. It ends commands that lost their reader, and everything else in the tree, except processes that ended
//! commands left in the background (their groups have the attribute `user.berth.left`), detached runs and keepers. An
//! interrupted build is reported in the workspace's `error_message`. Roots are complete or absent, also after an
//! interrupted restore; an interrupted clone is removed. Mounts need no repair, because every tool that mounts runs in
//! a mount namespace of its own. A regular shutdown ends all containers except those with a detached run.

pub mod access;
pub mod api;
pub mod base;
pub mod cli;
pub mod config;
pub mod containers;
pub mod doctor;
pub mod events;
pub mod gate;
pub mod host;
pub mod http;
pub mod images;
pub mod library;
pub mod lifecycle;
pub mod opencode;
pub mod proc;
pub mod project;
pub mod roots;
pub mod runs;
pub mod server;
pub mod store;
pub mod terminals;
pub mod workspaces;
