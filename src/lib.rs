//! berth gives AI agents a place to work: one static binary, driven with `curl`.
//!
//! This page is the architecture. The modules, in reading order, each using only those below it:
//!
//! | module | what it is |
//! |--|--|
//! | [`cli`] | the subcommands |
//! | [`config`] | flags, environment and `server.json`, resolved into [`server::Settings`] |
//! | [`server`] | builds everything, owns every thread, runs the shutdown |
//! | [`api`] | the route table, dispatch, one file per resource |
//! | [`gate`] | the door: listeners, strict HTTP heads and bodies, deadlines, relay to tiny_http |
//! | [`http`] | requests, replies, routes; the only place that knows tiny_http |
//! | [`host`] | the OpenCode that the server runs itself: its process, its restarts, its log |
//! | [`lifecycle`] | what happens to a workspace: build, init script, command, deletion |
//! | [`doctor`] | checks what this host supports |
//! | [`workspaces`] | the records, their status machine, their registry |
//! | [`project`] | what an agent reads in a workspace and leaves there: inbox, outbox |
//! | [`access`] | credentials, scoped tokens and what they have open, scopes, approvals, the audit log |
//! | [`opencode`] | the way to a workspace's OpenCode: what passes, connections, deadlines, WebSockets |
//! | [`terminals`] | programs on a PTY, their screens and watchers |
//! | [`runs`] | commands: policy, output, which are under way |
//! | [`containers`] | base images, bootstraps, nspawn, the agent; what this host can do ([`doctor`]) |
//! | [`events`] | the bus: numbered events that any number of followers read at their own speed |
//! | [`store`] | files: atomic, locked, contained, removed |
//! | [`proc`] | children: spawn, groups, poll loop, captured output |
//! | [`base`] | errors, names, limits, threads, log lines |
//!
//! # The life of a request
//!
//! A client talks to the gate ([`gate`]): a `gate-N` thread reads the head within its deadline, checks it strictly, and
//! relays the request over a private Unix socket to tiny_http → its queue → an `http-N` thread: route,
//! credential, read-only, scope, approval, handler ([`api::dispatch`]). A handler parses, calls one service and shapes the answer. Work that waits for a child moves,
//! with its request, to a `run-N` thread; a build is accepted at once and goes on on `build-0`. What follows a run over
//! a long time gets a `stream-N` thread and the client's own socket, past tiny_http ([`http::client::Tickets`]).
//!
//! When all connections are taken, one that waits for its client is closed for the next: a half head, a half body, an answer
//! that is not read, an idle connection. So only requests that are being answered can fill the table, and those have tokens
//! with shares; beyond it there are seats for owners.
//!
//! # Commands
//!
//! Every command runs in a cgroup of its own (v2; no controller needed), so its end is certain: `cgroup.kill` reaches
//! whatever it started. On the host it is born there (`CLONE_INTO_CGROUP`); where a
//! seccomp profile refuses clone3, it enters it before its program starts. In a container the agent, PID 1, has a child,
//! the zygote, that starts processes which wait for a command in its own memory, so that nothing is copied for them; their
//! parent is PID 1, which tells how they end and lives on whatever becomes of them. Each enters its cgroup
//! itself, through a descriptor of the engine's, *before* it gets a command; the engine never moves a process by its number, and
//! keeps a few in store, since the move waits for an RCU grace period. One thread asks all containers for them. Whatever
//! the agent says is untrusted: its socket's path lies outside the container, pids come from the kernel, waits are bounded.
//!
//! # Networks
//!
//! A container with a private network starts in a network namespace that the start itself makes, around nspawn and not
//! by it: so it belongs to the host, and lives and ends with the container, whoever watches it. Its rules lie in the
//! namespace and, for what changes meanwhile, in one table of the host ([`containers::network`]).
//!
//! # Terminals
//!
//! A terminal ([`terminals`]) is a program on a PTY, a model of its screen and the clients that watch. Its thread
//! reads always and waits for nobody; clients have bounded queues, and one that falls behind gets a picture of the
//! screen instead. Output is passed on in pieces that tear neither a character nor a control sequence, so a client can
//! join between any two. In a container the PTY comes from the container's own devpts, opened from outside. Sockets
//! ([`http::websocket`]) come and go: the gate hands a client's over with its ticket, and one thread serves it.
//!
//! # Roots
//!
//! A container's files are layers over its base image where the host can ([`roots`]): an overlay whose layers
//! are id-mapped mounts, so that on disk everything belongs to the ids 0 to 65535 and layers can be shared by snapshots and
//! clones. It is mounted in a private namespace of ours only; the server opens files beneath descriptors in it, a
//! container's start gets a clone of the mount, and a server that starts later takes it from the running container. Where
//! that is not possible a root is a copy, sharing its blocks if the file system can.
//!
//! A root of the machine's own system ([`images::host_image`]) has no programs: its container gets the machine's as
//! read-only binds whose owners are not mapped, so the kernel lets root inside read what anybody may read, and no more.
//!
//! # Limits
//!
//! All workloads together are bounded by the tree's own group, a container by its group in it, a command by the group of
//! its own ([`proc::limits`], [`proc::control`]). Where controllers are v2's, every group has them; on a machine with v1
//! controllers a container's start enters v1 groups once and everything in it inherits them, and a command is moved only
//! when it has limits, since a move waits for the kernel. What a host cannot enforce is refused for a command and listed
//! as a warning for a workspace. The server itself is what the kernel kills last, and has its own share of the processors.
//!
//! # Runs
//!
//! An exec keeps its output in memory and puts it into its answer. Any other run writes it to files, where any number
//! of readers find it by offset, each at its own speed ([`runs::spool`], [`runs::follow`]); the thread that reads the
//! command's pipes never waits for one of them. A run is told to have ended once its status was waited for.
//!
//! A detached run has a keeper ([`runs::keeper`]), a process of ours outside of every container, which has the pipes, the
//! files, the deadline and the wait for the end. Servers follow it over a socket and may come and go; the files are
//! written by the keeper alone, so a server that reads knows their marks a little late and looks for holes itself.
//!
//! # OpenCode
//!
//! A request below `/opencode` is checked and passed on by its client's own `gate-N` thread, past tiny_http
//! ([`http::direct`]), with ureq on connections of our own ([`opencode`]): that thread waits for this client anyway, and
//! changes of thread are most of what such a request costs. What comes in pieces or asks for an upgrade, and what finds all
//! of `--max-proxied` taken, goes inside as any other and on to a `proxy-N` thread. A short answer goes back as any
//! other; a long one and a stream go to the client's own socket on a `stream-N` thread, what follows an upgrade on the
//! same thread, which then counts as a stream and has left its place among the workers to another
//! ([`base::pool::step_aside`]). Whoever waits listens to the upstream, the client, the
//! credential and the server's end at once, so whichever ends first ends the rest. What breaks off is broken off.
//!
//! With `--manage-opencode` the server runs an OpenCode itself ([`host`]), for every workspace on the host that names no other
//! one. It has a cgroup with a memory limit, an environment of its own without our tokens, and a random password that only
//! the orchestrator which passed it in can see. Its address is known once it answers; until then, and after it has failed,
//! requests get a 503 that says so ([`opencode::Managed`]). With `berth host --sandbox berth` it is a command in a container
//! workspace of its own ([`lifecycle::sandbox`]), reached at the container's private address; the server stays outside.
//! With `--sandbox docker` or `container` it is in a container of an engine ([`host::engine`]). The container's first process
//! is this same binary: it starts OpenCode and relays between a Unix socket in a mounted folder and OpenCode's port, so the
//! engine publishes none; it ends when its connection with the server closes, and the container with it.
//!
//! # Threads
//!
//! | thread | bounded by | blocks on |
//! |--|--|--|
//! | main | 1 | the signal pipe |
//! | `gate-accept` | 1 | the listeners |
//! | `gate-N` | `--max-connections` | one client and its answer, with deadlines; an OpenCode for that client |
//! | tiny_http's own | connections that the gate lets through | the private socket |
//! | `http-N` | `--http-threads` | nothing longer than a file |
//! | `files-N` | 8 | workspaces' files: lists, exports, imports, edits |
//! | `end-N` | 16 | the end of what a request ends: a run, a terminal, a container |
//! | `transfer-N` | 64 | a client that sends a large body or reads a large answer |
//! | `up` | 1, of `berth host` and `berth daemon` | OpenCode's answer, the checks, the daemon's end |
//! | `opencode`, `opencode-output` | 1 of each | the OpenCode that the server runs, and what it prints |
//! | `sandbox-sweep` | 1, if a killed server left a container in an engine | the engine's answer |
//! | `run-N` | `--max-runs` | one command's poll loop |
//! | `stream-N` | `--max-streams` | a run's next output or end, a slow reader, one WebSocket both ways |
//! | `keepers` | 1 | what keepers of detached runs say; a keeper itself has `main` and `keeper-door` |
//! | `proxy-N` | `--max-proxied`, with what `gate-N` pass on; slow answers and streams by `--max-streams` | an OpenCode, and whoever reads its answer |
//! | `terminal-N` | 64 terminals | what its program writes, and what it is to read |
//! | `build-N` | 4 | a build step's child |
//! | `root-mounts` | calls that put a root together | mount(2), for milliseconds |
//! | `root-sizes` | 1 | requests to measure a root |
//! | `image-import`, `image-read`, `image-hash`, `image-pack` | one of each for an import under way | a client or a file, whoever unpacks, the disk |
//! | `container-NAME` | running containers | nspawn's end |
//! | `container-spares` | 1 | refill requests, and the agents of all containers at once |
//! | `approvals` | 1 | the next deadline of a write that waits for a person |
//! | `leases` | 1 | the next end of a scoped token that has something open |
//! | `container-idle` | 1 | the moment at which the first container may have been idle for long enough |
//! | `project-watch` | 1 | changes of files that agents read |
//! | `library-watch` | 1 | changes by hand in the library; then it syncs whom they concern |
//! | `trash` | 1 | requests to empty it; first it removes half uploads that a killed server left |
//!
//! Locks go one way: registry → one workspace's file → leaves. No file is touched under the first.
//!
//! # Files
//!
//! ```text
//! <data>/lock                        flock: one server
//! <data>/format                      the version of all files here ([`store::format`])
//! <data>/credentials.json            generated tokens, 0600
//! <data>/naming_key                  names the client and the host token in the audit log, 0600
//! <data>/approvals                   files without names while a large request waits for approval
//! <data>/audit/LOG.jsonl, LOG.1.jsonl who did what: of each workspace (ws_…) and of the server, 2 MiB each
//! <data>/tokens.json                 scoped tokens, 0600, unless they lie beside server.json or where they are told to
//! <data>/workspaces/ID/workspace.json the record; the folder appears and disappears by rename
//! <data>/workspaces/ID/root          a container's files, where they are copied; else empty (root.build.log beside it)
//! PATH/root                          the same, where the owner named PATH; mode 0700, .berth-workspace in it says whose it is
//! <data>/workspaces/ID/root.json     how they were made, and of which layers
//! <data>/workspaces/ID/snapshots/ID  a snapshot: snapshot.json, kept.json (what a sync wrote), root where it is a copy
//! <data>/layers/ID                   what a layered root has of its own: fs, and work of the kernel's; .mounts is empty
//! <data>/workspaces/ID/files         a host workspace's, where none was named
//! <data>/runs/ID/run.json            a run as it is shown, and how much there is of its output
//! <data>/runs/ID/stdout, stderr      each byte at its own offset; what is not kept any more is a hole
//! <data>/runs/ID/turns               where the two streams took turns
//! <data>/runs/ID/keeper.sock         a detached run's keeper; keeper.log beside it has its mistakes
//! <data>/images/ID, names/NAME       base images, complete by existing, and what points to them ([`images`])
//! <data>/workspaces/ID/machine.json  a running container: what a later server must know to take it over
//! <data>/workspaces/ID/agent.sock    its agent's door; machine.log beside it has nspawn's words
//! <data>/workspaces/ID/mounts        where a start puts clones of the host's folders, in a mount namespace of its own
//! <data>/workspaces/ID/mounts.json   whether their owners could be mapped
//! <data>/network.json                the range of private networks, while there is a table of rules for them
//! <data>/agent/berth-VERSION         our own binary, bound into containers
//! <data>/library                     templates, skills, tools, scripts; `--library` names another
//! <data>/library.seen                what the library was like when workspaces last got what had changed in it
//! <library>/skill/.importing-ID       a skill on its way; a start removes what a killed server left
//! <data>/private_key                 seals secrets in templates, 0600
//! <data>/workspaces/ID/synced.json   what berth wrote into the workspace
//! <data>/workspaces/ID/import.json   while an import puts its files in place
//! <data>/reload/ID.jsonl             the last reload events of a workspace
//! <data>/host/opencode.log            what the OpenCode that the server runs prints, without secrets; opencode.1.log before it
//! <data>/host/sandbox.json            the container of an engine that is to be removed, while there may be one
//! <data>/host/door                    the folder with the socket of that container, new for each
//! <data>/host/extra                   mount points for further folders of a container of berth's own with OpenCode
//! <data>/host/seed, sandbox.env        programs and secrets of a container that has the server in it, for its start
//! <data>/sandbox/HASH                 OpenCode's home in it, by workspace
//! <data>/host/state.json              the running `berth host`: its process, its address
//! <data>/host/host.log, daemon.log     their logs after --detach, 8 MiB and as much before it
//! <data>/openwork-orchestrator-state.json, openwrk-state.json  the folders of `berth daemon`, as OpenWork's desktop reads them
//! <data>/cgroup                      where the tree of groups lies
//! <data>/http                        the private socket to tiny_http, mode 0700, removed at the end
//! <data>/trash                       what is being removed
//! <data>/.berth-doctor-PID-*         while `berth doctor` tries something out
//! .NAME.restore-UUID                 beside the data folder NAME while `berth restore` unpacks; FOLDER/.FILE.part-UUID a backup's file
//! ```
//!
//! After `kill -9` containers run on. The next start takes over each whose state file agrees with the kernel (the boot,
//! nspawn's and the agent's pids and start times, their cgroup, an agent that takes connections), ends the commands that
//! were under way and lost their reader, leaves alone what ended commands left in the background (their groups carry the
//! attribute `user.berth.left`), as it does detached runs and their keepers, and ends everything else in the tree. A build that was cut off is
//! said to be by the workspace's `error_message`; roots are whole or not there, also in the middle of a restore; a clone that was cut off is removed. Mounts need no repair: every tool that mounts runs in a mount namespace of its own. A server
//! that ends properly ends its containers, but for those in which a detached run goes on.
//!
//! # Differences from DESIGN.md
//!
//! - `lifecycle` was added between `http` and `workspaces`: something must bring records, containers and runs
//!   together, and a handler may not.
//! - `http-N` threads take requests from tiny_http's own queue; there is no second one (crossbeam) behind it. It cost
//!   8 of the 68 µs of processor time that a list took. What a slow client could hold up moves to `transfer-N`.
//! - The worker pool is [`base::pool`], since builds and runs need it as well as HTTP. It shares its threads fairly
//!   ([`base::shares`]): a token and a workspace hold at most half of any pool.
//! - The agent's socket is handed to it as descriptor 0 instead of lying in a bound folder: nothing inside can
//!   replace it, and no path of the host is visible.
//! - What waits in a container has the memory of whoever started it (`CLONE_VM`, as posix_spawn(3)), and a command comes as
//!   a block that is used where it lies ([`proc::packed`]): copies of the agent, and JSON, were a fifth of a command's cost.
//!   That memory is a child's and not PID 1's: the kernel ends all that share one when memory runs out.
//! - Detached runs are kept by a process outside, not by the agent, which the workload can kill or impersonate.
//! - A container's root is an overlay whose lower and upper layers are both id-mapped: what lies on the disk belongs to
//!   0 to 65535, so layers can be shared. The mounts exist in a private namespace of the server, which ends with it.
//! - The crate `multipart` is not used: it takes a line break at the edge of its buffer for data, and a body that breaks
//!   off for a whole one ([`http::upload`]). Nor is `tar`, which reads names of any length into memory.
//! - `berth image` and `berth bundle` work on the store itself beside a running server, by flock, and need no token;
//!   `berth backup` reads the data folder itself, and needs the server only for snapshots of containers.
//! - Agents' configuration is shared with the people of a workspace key by key ([`workspaces::sync`]); the host's own
//!   OpenCode configuration, which holds its owner's keys, is not copied into containers as sandboxed.sh does.
//! - A command without any shell syntax is executed without a shell ([`runs::plain`]): bash costs more than most
//!   commands that it starts, and would do nothing but execve.
//! - The agent is PID 1 of the container: signals from inside cannot end or stop it.
//! - Deletion is journaled by the rename into the trash, not in the record, so that it works on a full disk.
//! - A request to OpenCode stays on its `gate-N` thread, past tiny_http and the pools ([`http::direct`]): two hand-overs
//!   instead of six. `--max-proxied` bounds them together with those that take the usual way.
//! - Names are looked up by the machine's `getent` ([`opencode::HostLookup`]), not by ureq's resolver: what a static binary
//!   has of getaddrinfo knows less than the machine, and is 0.2 MB.
//! - `distro: "host"` is no overlay over `/`, but a small image with the machine's `/usr` bound into it, never id-mapped:
//!   the kernel itself keeps from root inside what only root outside may read.

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
