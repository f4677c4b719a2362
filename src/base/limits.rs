//! Every constant that bounds something, with its reason.

use std::time::Duration;

/// Maximum JSON body of ordinary routes; axum's default, which clients of sandboxed.sh expect.
pub const JSON_BODY_BYTES: usize = 2 << 20;
/// Maximum body of `/exec`, which includes `stdin`.
pub const EXEC_BODY_BYTES: usize = 32 << 20;
/// Maximum length of `command`: the kernel refuses a single argument of 128 KiB or more (execve(2), MAX_ARG_STRLEN).
pub const COMMAND_BYTES: usize = (128 << 10) - 1;
/// Maximum of all `args` together; with the environment far below execve's limit of a quarter of the stack limit (2
/// MiB).
pub const COMMAND_TOTAL_BYTES: usize = 256 << 10;
/// Maximum product of a command's length and the number of folders in its PATH, because each folder gets a command
/// line. Allows the longest command in the usual PATH of six folders, and two more.
pub const SEARCH_BYTES: usize = 8 * COMMAND_TOTAL_BYTES;
/// Maximum length of a workspace's name, which is shown in lists and log lines.
pub const NAME_BYTES: usize = 255;
/// Maximum init script; it is stored in the workspace's record.
pub const INIT_SCRIPT_BYTES: usize = 1 << 20;
/// Maximum number of workspaces in a data folder; each takes memory and a row in every list.
pub const WORKSPACES: usize = 10_000;

/// Default `timeout_secs` of `/exec` (assets/docs/compatibility.md#commands).
pub const EXEC_TIMEOUT: Duration = Duration::from_secs(300);
/// Maximum `timeout_secs` of `/exec` (the same section); larger values are clipped.
pub const EXEC_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Grace period between SIGTERM and SIGKILL at a timeout: enough to remove a lock file, too short to delay the answer
/// noticeably.
pub const TERM_GRACE: Duration = Duration::from_millis(100);
/// Default of `--output-limit`: bytes kept of each of stdout and stderr.
pub const OUTPUT_BYTES: usize = 10 << 20;
/// Bytes read from a pipe at a time; a pipe holds 64 KiB by default (pipe(7)).
pub const PIPE_CHUNK: usize = 64 << 10;
/// Default of `--init-timeout`, as for a bootstrap: most of the time of either is downloads.
pub const INIT_SCRIPT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Default of `--image-timeout`: enough for a slow mirror; a dead one must not block the builder forever.
pub const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(3600);
/// Timeout for copying a base image into a root.
pub const COPY_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long a cancelled build may take to release its workspace before the client gets an error.
pub const CANCEL_BUILD: Duration = Duration::from_secs(10);
/// Number of builds whose events are kept for clients that connect late; the longest take some 1 MB.
pub const BUILD_FEEDS: usize = 32;
/// Maximum length of a log line in a build's event.
pub const BUILD_LINE_BYTES: usize = 1000;
/// Number of concurrent builds: most wait for the network or their init script, not for each other.
pub const BUILD_WORKERS: usize = 4;
/// Maximum size of the files that a `distro: "host"` image copies from the machine's `/etc`.
pub const OWN_BYTES: u64 = 64 << 20;
/// Maximum number of these files.
pub const OWN_ENTRIES: u64 = 50_000;
/// Maximum depth of these files.
pub const OWN_DEPTH: usize = 20;
/// How long a snapshot waits for a command that has just ended to be counted as ended: a snapshot without running
/// commands is free.
pub const QUIET: Duration = Duration::from_millis(50);
/// Number of unused roots that stay mounted for later requests.
pub const IDLE_ROOTS: usize = 64;
/// Maximum number of layers of a root, because a missing file is looked up in all of them. More are merged into one.
pub const ROOT_LAYERS: usize = 50;
/// Maximum number of snapshots of a workspace.
pub const SNAPSHOTS: usize = 200;
/// Bytes kept of an init script's output for the answer of `rerun-init` and for error messages.
pub const INIT_OUTPUT_BYTES: usize = 1 << 20;
/// Lines of a failed tool's output that an error message includes.
pub const ERROR_TAIL_LINES: usize = 6;
/// Number of last lines in the answer of `init-log` (assets/docs/compatibility.md#builds-and-init-scripts).
pub const INIT_LOG_LINES: usize = 500;
/// Maximum number of bytes that `init-log` reads, from the end of the file.
pub const INIT_LOG_BYTES: u64 = 4 << 20;
/// Maximum size of a build log; further lines are dropped, which the log notes.
pub const BUILD_LOG_BYTES: u64 = 64 << 20;

/// Default of `--run-output-limit`: bytes kept on disk of each stream of a run; enough for a build log of a day.
pub const RUN_OUTPUT_BYTES: u64 = 2 << 30;
/// Default of `--runs-disk-limit`: bytes kept of all runs together.
pub const RUNS_DISK_BYTES: u64 = 16 << 30;
/// Runs leave this share (1 / n) of their file system free …
pub const RUNS_FREE_SHARE: u64 = 20;
/// … but at most this much, which is enough for all other files of berth.
pub const RUNS_FREE_BYTES: u64 = 512 << 20;
/// A run checks the free space after this many bytes.
pub const SPOOL_CHECK_BYTES: u64 = 1 << 20;
/// Bytes of each stream that a run keeps even when other runs need the space.
pub const SPOOL_LEAST_BYTES: u64 = 256 << 10;
/// A full window advances by this share (1 / n) of its size, so that not every chunk causes disk operations.
pub const SPOOL_STEP_SHARE: u64 = 16;
/// Maximum number of gaps in a stream that are recorded separately; further ones are counted together.
pub const SPOOL_GAPS: usize = 64;
/// Maximum number of recorded switches between the two streams: 64 MiB. Later output has no recorded order.
pub const SPOOL_TURNS: u64 = 4 << 20;
/// Maximum number of ended runs that are kept; the oldest are removed first.
pub const RUNS_KEPT: usize = 1000;
/// How long an ended run is kept.
pub const RUN_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Maximum number of detached runs; each has a keeper process, which takes some 200 KB.
pub const DETACHED_RUNS: usize = 64;
/// Timeout for a keeper's answer, which includes the end of its run: SIGTERM, the grace period, SIGKILL.
pub const KEEPER_ANSWER: Duration = Duration::from_secs(8);
/// Bytes of a command that are shown; its client has the rest.
pub const COMMAND_SHOWN_BYTES: usize = 4 << 10;
/// Maximum size of /etc/passwd and /etc/group.
pub const ACCOUNTS_BYTES: u64 = 1 << 20;
/// Maximum number of groups of a user; the kernel allows 65,536 (NGROUPS_MAX).
pub const GROUPS: usize = 1024;
/// Maximum length of a run's tag.
pub const TAG_BYTES: usize = 255;
/// Maximum size of a run's record, which has a truncated command and some numbers.
pub const RUN_RECORD_BYTES: u64 = 1 << 20;
/// How long a client's bytes for a command's stdin wait for space in its pipe.
pub const STDIN_PATIENCE: Duration = Duration::from_secs(5);
/// Maximum size of an event: a page of text, and small enough for hundreds of followers.
pub const EVENT_BYTES: usize = 16 << 10;
/// Default number of events that a topic keeps for clients that connect late; a build has a few hundred.
pub const TOPIC_EVENTS: usize = 1000;
/// A silent stream sends a heartbeat this often: proxies close silent connections after 60 s, some after 30.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Maximum `wait_secs` and `timeout_secs` of a wait, and maximum `soft_timeout_secs`.
pub const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Default duration of a wait: shorter than the timeout of any proxy.
pub const WAIT: Duration = Duration::from_secs(30);
/// How long a deletion waits for the end of the processes that it kills.
pub const RUN_ENDING: Duration = Duration::from_secs(15);

/// Number of builds that wait for a worker.
pub const BUILD_QUEUE: usize = 256;
/// Default of `--max-runs`: threads start on demand, and one takes 30 KB while its command is quiet.
pub const RUN_WORKERS: usize = 256;
/// Default of `--max-streams`: followers, long waits, terminals.
pub const STREAM_WORKERS: usize = 256;
/// Stack size of ordinary threads. Measured use is below 64 KiB; serde_json nests to 128 levels.
pub const STACK: usize = 512 << 10;
/// `Retry-After` of a 503.
pub const RETRY_AFTER_SECS: u32 = 1;

/// Timeout for a container's first answer: nspawn needs about 100 ms, more on a loaded machine.
pub const CONTAINER_START: Duration = Duration::from_secs(20);
/// Minimum `pids` of a container workspace: nspawn, the agent's two processes and the waiting processes take seven, a
/// shell with a pipe three or more.
pub const CONTAINER_PIDS: u64 = 16;
/// Minimum `cpus` of a container workspace: with it the start takes 1.3 s on an idle machine; with 0.01 it exceeds
/// `CONTAINER_START`.
pub const CONTAINER_CPUS: f64 = 0.05;
/// How long the start of a command is retried with a stopping container and its successor, or with one that has no
/// memory or processes left, before the client gets an error.
pub const INSIST: Duration = Duration::from_secs(5);
/// How long to wait for the lock of a container's state before it is reported as changing: longer than other threads
/// hold it on a busy machine, and not long for a client.
pub const LOOK: Duration = Duration::from_millis(100);
/// Minimum time for handing a command to a container, even if its deadline is earlier: it takes a millisecond, and a
/// command with a timeout of 0 must start and be killed as on the host.
pub const LEAST_PATIENCE: Duration = Duration::from_millis(200);
/// Timeout for an agent's answer to a request that needs no work. Its container may be hostile or thrashing.
pub const AGENT_ANSWER: Duration = Duration::from_secs(10);
/// Number of spare processes in a running container, each already in its own cgroup: entering one takes up to 15 ms on
/// an idle machine (the kernel waits for an RCU grace period), too long while a client waits.
pub const SPARE_PROCESSES: usize = 4;
/// Number of empty cgroups kept for further commands of a running container: as many as become empty between two
/// refills.
pub const SPARE_GROUPS: usize = 16;
/// Maximum encoded command for a container's process, with a pointer and a NUL for each of its strings: more than
/// execve(2) accepts, a quarter of the stack limit of 8 MiB.
pub const AGENT_MESSAGE_BYTES: usize = 4 << 20;
/// How long a killed cgroup may take to become empty before an error is reported.
pub const KILL_WAIT: Duration = Duration::from_secs(5);

/// Maximum number of running terminals; each takes a thread, a shell and a screen model, some 100 KB at 80 × 24.
pub const TERMINALS: usize = 64;
/// Maximum width of a terminal.
pub const TERMINAL_COLS: u16 = 1000;
/// Maximum height of a terminal.
pub const TERMINAL_ROWS: u16 = 500;
/// Maximum number of cells of a terminal: a model has two screens of 20 bytes a cell, and four bytes of output can
/// change all.
pub const TERMINAL_CELLS: u32 = 100_000;
/// Input buffered for a program that does not read, in addition to the kernel's buffer.
pub const TERMINAL_INPUT_BYTES: usize = 64 << 10;
/// A terminal without clients, input and output is closed after this time, unless its client asked otherwise.
pub const TERMINAL_IDLE: Duration = Duration::from_secs(3600);
/// Maximum idle time that a client can ask for.
pub const TERMINAL_IDLE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long the shell of `/shell` continues after its last socket closed: a laptop's nap. sandboxed.sh's 30 s lose
/// users' work.
pub const SHELL_LINGER: Duration = Duration::from_secs(300);
/// How long an ended terminal can still be viewed.
pub const TERMINAL_KEPT: Duration = Duration::from_secs(600);
/// Maximum number of ended terminals that are kept.
pub const TERMINALS_KEPT: usize = 64;
/// Maximum number of clients of a terminal.
pub const WATCHERS: usize = 32;
/// Output buffered for a terminal's client; a client further behind gets a repainted screen instead.
pub const WATCH_BYTES: usize = 256 << 10;
/// Maximum length of a control sequence that is kept in one piece. Inline images (sixel) are longer, and harmless.
pub const SEQUENCE_BYTES: usize = 4 << 10;
/// Maximum length of a terminal's window title.
pub const TITLE_CHARS: usize = 256;
/// How often a WebSocket's peer is pinged. Proxies close connections that are silent for a minute.
pub const PING: Duration = Duration::from_secs(20);
/// How long the peer may take to answer a ping.
pub const PONG: Duration = Duration::from_secs(20);
/// How long a WebSocket's peer may take to answer a close frame.
pub const GOODBYE: Duration = Duration::from_secs(2);
/// How often the token store is checked for manual changes while a token has open connections.
pub const CREDENTIAL_CHECK: Duration = Duration::from_secs(2);
/// How long a WebSocket may take to close after its credential has ended.
pub const CREDENTIAL_GRACE: Duration = Duration::from_secs(1);
/// Send buffer of a WebSocket (doubled by the kernel, socket(7)): more than a fast connection needs for a screen, less
/// than a slow one takes in ten seconds.
pub const SOCKET_BUFFER_BYTES: usize = 128 << 10;
/// Maximum message of a WebSocket's client: typed or pasted input.
pub const SOCKET_MESSAGE_BYTES: usize = 64 << 10;
/// Reads from a terminal before its thread handles other events; the kernel returns at most 4 KiB each time.
pub const TERMINAL_READS: usize = 16;

/// Maximum size of a workspace's configuration, skill or command; handwritten ones have kilobytes.
pub const PROJECT_FILE_BYTES: u64 = 1 << 20;
/// Maximum number of entries in a list of a workspace's skills, commands and the like; a longer one helps no user.
pub const PROJECT_ENTRIES: usize = 2000;
/// Number of reload events kept of a workspace, as in the OpenWork server.
pub const RELOAD_EVENTS: usize = 200;
/// Delay between a manual change and its reload event, as in the OpenWork server; one event for each kind of file.
pub const RELOAD_DEBOUNCE: Duration = Duration::from_millis(750);
/// Maximum number of watched files in a workspace.
pub const WATCHED_FILES: usize = 4000;
/// Maximum number of watched folders in a workspace.
pub const WATCHES_EACH: usize = 1000;
/// Maximum number of watched folders. The kernel's own limit may be lower: 8192 on an old small machine.
pub const WATCHES_ALL: usize = 50_000;
/// How often an edit is retried after a concurrent change of the file.
pub const EDIT_RETRIES: usize = 8;
/// Number of parent folders of a workspace in which skills are searched.
pub const FOLDERS_ABOVE: usize = 32;

/// Time between the end of all commands and the end of the server, for the last answers.
pub const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Default of `--drain-timeout`: how long running requests may continue after a stop signal.
pub const DRAIN: Duration = Duration::from_secs(10);
/// Maximum depth at which a folder is deleted in place; deeper ones are first moved up, so that depth exhausts nothing.
pub const TREE_DEPTH: usize = 64;
/// Timeout of one step of `berth doctor`: each takes milliseconds, on a thrashing machine seconds.
pub const PROBE: Duration = Duration::from_secs(10);
/// Bytes kept of a probe's output; the longest, a package's change log, is below 1 MiB.
pub const PROBE_OUTPUT_BYTES: usize = 4 << 20;
/// How long a doctor report is reused.
pub const PROBE_FRESH: Duration = Duration::from_secs(10);
/// Minimum disk space for a container: a minimal Debian takes some 200 MB, and its packages as much again during the
/// build.
pub const ROOT_BYTES: u64 = 1 << 30;
/// Disk space below which the doctor warns.
pub const COMFORT_BYTES: u64 = 5 << 30;
/// Minimum number of free inodes for a container: a minimal Debian has some 10,000 files.
pub const ROOT_FILES: u64 = 30_000;
/// Available memory below which the doctor warns: apt and dpkg take some 200 MB.
pub const COMFORT_MEMORY: u64 = 512 << 20;
/// Limit of processes and threads below which the doctor warns: `--max-connections`, `--max-runs` and workloads
/// together.
pub const COMFORT_PROCESSES: u64 = 4096;
/// How long the data folder's lock may outlive its server: a child holds it until it executes its program.
pub const LOCK_PASSES: Duration = Duration::from_secs(2);
/// How long `--setup` waits for a person's answer.
pub const SETUP_ANSWER: Duration = Duration::from_secs(300);
/// Timeout of a package manager called by `--setup`.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(1800);
/// Maximum size of a state file that is read or written as a whole; berth writes none larger.
pub const STATE_FILE_BYTES: u64 = 64 << 20;
/// How often an open inside a workspace is retried when a concurrent rename on the machine interferes (openat2(2),
/// EAGAIN).
pub const OPEN_RETRIES: usize = 128;
/// Maximum size of a file whose lines are counted: reading it takes about a second.
pub const LINE_COUNT_BYTES: u64 = 1 << 30;

/// Maximum size of a request head with its request line; twice the limit of nginx and Apache.
pub const HEAD_BYTES: usize = 16 << 10;
/// Maximum number of request headers; browsers send some 20.
pub const HEAD_LINES: usize = 100;
/// Timeout for a request head, from its first byte; a slow connection needs a second.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request; reverse proxies keep theirs about as long.
pub const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Timeout for the next bytes of a body.
pub const BODY_STALL: Duration = Duration::from_secs(30);
/// Timeout for a client that does not read.
pub const WRITE_STALL: Duration = Duration::from_secs(30);
/// How often to try writing to a full socket that poll(2) does not report as writable: TCP does so only when a third of
/// its buffer, often more than 1 MB, is free, and a slow client needs longer than [`WRITE_STALL`] for that.
pub const WRITE_LOOK: Duration = Duration::from_secs(1);
/// Bodies up to this size are passed on only when they are complete: a slow client blocks none of the worker threads,
/// and a broken body never reaches them.
pub const HELD_BODY_BYTES: usize = 64 << 10;
/// Up to this many bytes of a body that a handler did not read are discarded, to keep the connection.
pub const DRAINED_BODY_BYTES: u64 = 256 << 10;
/// Maximum size of a form without its file: names, paths, the preamble.
pub const FORM_FIELDS_BYTES: usize = 64 << 10;
/// Maximum head of one part of a form; browsers send some 200 bytes and the file's name.
pub const FORM_HEAD_BYTES: usize = 16 << 10;
/// Maximum number of entries that a listing of an inbox or outbox visits: some 20 ms.
pub const TRAY_ENTRIES: usize = 10_000;
/// Downloads up to this size are sent by the worker, and the connection is kept; larger ones take over the client's
/// socket.
pub const DOWNLOAD_HELD_BYTES: u64 = 64 << 10;
/// Bytes that one sendfile(2) sends, so that a shutdown is noticed in between.
pub const SENDFILE_BYTES: usize = 1 << 20;
/// Maximum depth of an upload's path.
pub const TRAY_DEPTH: usize = 32;
/// How long a rejected client may continue sending, so that closing the connection does not discard the answer before
/// it is read.
pub const LINGER: Duration = Duration::from_secs(1);
/// Maximum size of extensions in a chunked body, which are ignored.
pub const CHUNK_EXTENSION_BYTES: usize = 256;
/// Maximum size of trailers of a chunked body, which are ignored.
pub const TRAILER_BYTES: usize = 8 << 10;
/// Maximum length of a client's request id.
pub const REQUEST_ID_BYTES: usize = 64;
/// Maximum head of a response.
pub const ANSWER_HEAD_BYTES: usize = 64 << 10;
/// Bytes read from a socket at a time.
pub const RELAY_BYTES: usize = 16 << 10;
/// Buffer that an idle connection keeps for its next request: most heads fit.
pub const IDLE_BUFFER_BYTES: usize = 2 << 10;
/// Default of `--max-connections`.
pub const CONNECTIONS: usize = 512;
/// Connections reserved for owners in addition, for one short request each.
pub const RESERVED_CONNECTIONS: usize = 8;
/// Timeout on a reserved connection, from the connection to the complete head.
pub const HURRIED_HEAD: Duration = Duration::from_secs(3);
/// How long to wait, with all connections in use, for those of disconnected clients to be noticed before the next
/// client is rejected: some 500 threads need it on one busy processor.
pub const GONE_SEAT_WAIT: Duration = Duration::from_millis(250);
/// Length of the accept queue; the kernel clips it to net.core.somaxconn.
pub const BACKLOG: i32 = 1024;
/// Maximum number of rejected clients that are still being answered.
pub const REFUSED: usize = 64;
/// Descriptors that a request takes: the client's, the relay's, and two of tiny_http.
pub const DESCRIPTORS_PER_CONNECTION: usize = 4;
/// Descriptors reserved for everything else when the limit of open files bounds the connections.
pub const DESCRIPTORS_RESERVED: usize = 40;
/// Stack of a connection's thread, as large as an ordinary one's; only touched pages take memory.
pub const GATE_STACK: usize = STACK;
/// How long an idle connection thread waits for another client.
pub const GATE_THREAD_IDLE: Duration = Duration::from_secs(10);
/// Pause of the accept loop after a failure for lack of resources.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Minimum interval between two identical warnings.
pub const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);
/// An unused connection to tiny_http is closed after this time; it takes a thread there.
pub const INSIDE_IDLE: Duration = Duration::from_secs(10);
/// Timeout for tiny_http's answer to a health check, which needs no work; a thrashing machine needs this long.
pub const INSIDE_ANSWER: Duration = Duration::from_secs(5);
/// How long a connection's thread waits for an answer before it also watches its client: most answers arrive sooner,
/// and a disconnect is noticed this much later. The kernel's ticks are up to 10 ms.
pub const QUICK_ANSWER: Duration = Duration::from_millis(10);
/// Number of failed health checks after which tiny_http is restarted.
pub const INSIDE_SILENCES: u32 = 2;
/// Minimum interval between two restarts of tiny_http.
pub const INSIDE_PAUSE: Duration = Duration::from_secs(1);
/// How long a ticket for a client's socket stays valid; an older one belongs to a disconnected client.
pub const TICKET: Duration = Duration::from_secs(60);
/// Number of failed authentications that an address may make at once: a person with a wrong script.
pub const FAILURE_BURST: f64 = 20.0;
/// Number of further failures allowed per second.
pub const FAILURES_PER_SEC: f64 = 1.0;
/// Delay of the answer to any further failure.
pub const FAILURE_DELAY: Duration = Duration::from_secs(1);
/// Maximum number of addresses whose failures are recorded.
pub const THROTTLED_PEERS: usize = 4096;

/// Maximum size of a library file: texts for people and agents.
pub const LIBRARY_FILE_BYTES: u64 = 1 << 20;
/// Maximum number of entries of a library folder, and of files of a skill.
pub const LIBRARY_ENTRIES: usize = 10_000;
/// Maximum length of a library name: with `.json` still a valid file name (255 bytes).
pub const LIBRARY_NAME_BYTES: usize = 200;
/// Maximum depth of a skill's file.
pub const LIBRARY_PATH_PARTS: usize = 8;
/// Delay after the last manual change before the library is read: an editor or git has finished by then.
pub const LIBRARY_QUIET: Duration = Duration::from_millis(300);
/// Maximum delay after the first manual change.
pub const LIBRARY_PATIENCE: Duration = Duration::from_secs(3);
/// Maximum number of watched folders of the library, and of files in them.
pub const LIBRARY_WATCHED: usize = 20_000;
/// Maximum size of an archive with a skill; it is held in memory.
pub const SKILL_ARCHIVE_BYTES: usize = 8 << 20;
/// Maximum unpacked size of an imported skill: texts, and perhaps fonts and tables.
pub const SKILL_BYTES: usize = 32 << 20;
/// Maximum number of entries of an archive with a skill.
pub const SKILL_FILES: usize = 1000;
/// Maximum length of a Markdown file's front matter; real ones have a few lines.
pub const FRONT_MATTER_BYTES: usize = 512 << 10;
/// Maximum number of values in front matter, each counted as often as an alias repeats it.
pub const FRONT_MATTER_NODES: usize = 80_000;

/// Maximum size of each of the two files of an audit log: some 5,000 lines.
pub const AUDIT_FILE_BYTES: u64 = 2 << 20;
/// Maximum length of an audit line that is read; berth's own are shorter than 2 KB.
pub const AUDIT_LINE_BYTES: usize = 64 << 10;
/// Bytes that are read of each file, from its end: more than berth writes, and a bound for foreign files.
pub const AUDIT_SCAN_BYTES: u64 = 16 << 20;
/// Maximum number of audit log files, some 4 GiB if all were full; the least recently written are removed.
pub const AUDIT_FILES: usize = 2000;
/// Default number of audit lines in an answer, as in the OpenWork server.
pub const AUDIT_SHOWN: usize = 50;
/// Maximum number of audit lines in an answer, as in the OpenWork server.
pub const AUDIT_SHOWN_MOST: usize = 200;

/// Timeout of `berth status` and `berth approvals` for an answer.
pub const CLI_ANSWER: Duration = Duration::from_secs(15);
/// `berth approvals watch` reopens its stream after this time, in case the server's machine disappeared silently.
pub const CLI_STREAM: Duration = Duration::from_secs(120);
/// Maximum size of an answer that these commands read.
pub const CLI_ANSWER_BYTES: u64 = 16 << 20;

/// Maximum number of scoped tokens; more suggest a script that does not revoke.
pub const TOKENS: usize = 1000;
/// Maximum size of the token store: the maximum of tokens with long labels and lists takes half of it.
pub const TOKEN_STORE_BYTES: u64 = 4 << 20;
/// Maximum length of a token's label.
pub const TOKEN_LABEL_CHARS: usize = 200;
/// Maximum number of workspaces that a token can be restricted to.
pub const TOKEN_WORKSPACES: usize = 100;
/// Maximum lifetime of a token that expires: ten years.
pub const TOKEN_LIFETIME_SECS: u64 = 10 * 365 * 24 * 3600;
/// How long an expired token stays listed, so that its user can see why requests fail.
pub const EXPIRED_TOKEN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Two changes of a file within this time may have the same timestamp (a kernel tick is at most 10 ms).
pub const CLOCK_TICK: Duration = Duration::from_millis(20);

/// Maximum number of writes that wait for approval; each holds a connection and its body.
pub const APPROVALS: usize = 128;
/// Maximum number of waiting writes of one token, so that one confused agent leaves room for others.
pub const APPROVALS_PER_TOKEN: usize = 16;
/// How often pending approvals are checked for disconnected clients.
pub const APPROVAL_LOOK: Duration = Duration::from_secs(1);
/// Length of a body's summary that approvers see.
pub const APPROVAL_SUMMARY_CHARS: usize = 400;
/// Timeout of `ip` and `nft`, which make a single request to the kernel.
pub const NETWORK_TOOL: Duration = Duration::from_secs(10);
/// Bytes kept of their output: more than a router's routing table.
pub const NETWORK_OUTPUT_BYTES: usize = 1 << 20;
/// Default of `--idle-timeout`.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Maximum of `--idle-timeout`, in seconds: ten years is as good as never, and far from overflow.
pub const IDLE_TIMEOUT_MOST: u64 = 10 * 365 * 24 * 3600;

/// Maximum length of an image's name: with its prefix and suffix still a valid file name.
pub const IMAGE_NAME_BYTES: usize = 128;
/// Maximum number of entries of an image; a desktop with toolchains has some 500,000. Each takes an inode.
pub const IMAGE_ENTRIES: u64 = 1_000_000;
/// Maximum depth of an image. Real ones reach 30; walking a tree takes a descriptor for each level.
pub const IMAGE_DEPTH: usize = 128;
/// Maximum length of an extended attribute: the kernel's limit (xattr(7)).
pub const IMAGE_XATTR_BYTES: usize = 64 << 10;
/// Maximum unpacked size of an image: a desktop with toolchains takes 20 GiB.
pub const IMAGE_BYTES: u64 = 64 << 30;
/// Unpacked size that is allowed for an archive of any size …
pub const IMAGE_RATIO_FREE: u64 = 256 << 20;
/// … and beyond that, the maximum ratio to the archive's size. Root file systems shrink to a quarter; deflate reaches
/// at most a thousandth, zstd and xz a ten-thousandth.
pub const IMAGE_RATIO: u64 = 100;
/// Maximum memory of an xz decoder, in KiB: `xz -9` takes 65 MiB.
pub const IMAGE_DECODER_KIB: u32 = 256 << 10;
/// How often an import reports its progress.
pub const IMAGE_TELL: Duration = Duration::from_millis(200);
/// Maximum length of a path in an archive, and of a link's target: the kernel's limit.
pub const IMAGE_PATH_BYTES: usize = 4095;
/// Maximum extended header of a member, which holds all its extended attributes and is kept in memory.
pub const IMAGE_HEADER_BYTES: usize = 1 << 20;
/// Maximum number of extended attributes of a member.
pub const IMAGE_XATTRS: usize = 64;
/// Maximum number of parts of a sparse file.
pub const IMAGE_PIECES: usize = 100_000;
/// Disk space that an import leaves free: enough for all other files of berth.
pub const IMAGE_FREE_BYTES: u64 = 256 << 20;
/// Inodes that an import leaves free.
pub const IMAGE_FREE_FILES: u64 = 10_000;
/// Maximum user and group id in a container, where 65536 are mapped; the kernel's `nobody`, 65534, replaces any other.
pub const IMAGE_ID_MOST: u64 = 65535;
/// Maximum number of layers of an image; Docker's limit is 127.
pub const IMAGE_LAYERS: usize = 256;
/// Maximum size of an image's manifest or configuration, as registries accept.
pub const IMAGE_MANIFEST_BYTES: u64 = 4 << 20;
/// Maximum size of the binary in a bundle; a debug build has some 100 MB.
pub const BUNDLE_BINARY_BYTES: u64 = 512 << 20;
/// Number of differences on each side that a verification reports.
pub const IMAGE_DIFFERENCES: usize = 20;
/// How long a removal waits for a reader that is about to end: a child holds the server's descriptors until its
/// execve(2).
pub const IMAGE_LET_GO: Duration = Duration::from_secs(2);
/// How often to check whether another process has finished an image; file locks cannot be waited for together with a
/// cancellation.
pub const IMAGE_LOOK: Duration = Duration::from_millis(50);
/// Default of `--max-proxied`: concurrent requests to OpenCode; further ones wait in a queue.
pub const PROXY_WORKERS: usize = 16;
/// A proxied request that has waited this long releases its worker and counts as a stream: OpenCode answers most
/// requests within milliseconds, but a prompt only when the model has finished.
pub const PROXY_SLOW: Duration = Duration::from_secs(1);
/// Maximum proxied body, which is streamed: prompts can contain pictures and documents.
pub const PROXY_BODY_BYTES: usize = 1 << 30;
/// A response of OpenCode up to this size is read as a whole, and the client's connection is kept.
pub const PROXY_WHOLE_BYTES: u64 = 64 << 10;
/// Default of `--opencode-timeout`: from a request's last byte to the head of its response. Bun's fetch, and so the
/// OpenWork server, waits five minutes; a prompt with many tools may take longer.
pub const UPSTREAM_ANSWER: Duration = Duration::from_secs(600);
/// Maximum output of getent for a name: a line of some 50 bytes for each address and socket type.
pub const LOOKUP_OUTPUT_BYTES: usize = 16 << 10;
/// Number of addresses of a name that are tried; ureq accepts no more.
pub const LOOKUP_ADDRESSES: usize = 16;
/// Timeout for a connection to an upstream, and for looking up its name.
pub const UPSTREAM_CONNECT: Duration = Duration::from_secs(5);
/// Timeout for the next bytes of a response of an upstream.
pub const UPSTREAM_SILENCE: Duration = Duration::from_secs(3600);
/// A silent connection to an upstream is probed after this time, then three times in as long again.
pub const UPSTREAM_PROBE: Duration = Duration::from_secs(30);
/// An unused connection to an upstream is closed after this time, before OpenCode closes it.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(15);
/// Maximum number of unused connections, to all upstreams together.
pub const UPSTREAM_IDLE_CONNECTIONS: usize = 2 * PROXY_WORKERS;
/// Bytes read from an upstream at a time, and the maximum head of a response.
pub const UPSTREAM_BUFFER_BYTES: usize = 32 << 10;
/// Bytes of an OpenCode error that are included in berth's error.
pub const UPSTREAM_COMPLAINT_BYTES: u64 = 16 << 10;
