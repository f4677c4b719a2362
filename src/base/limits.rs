//! Limits that several rooms share, each with its reason; first the defaults of flags, which operators can change. A limit
//! that only one file uses is defined in that file.

use std::time::Duration;

// Defaults of flags.

/// Default of `--output-limit`: bytes kept of each of stdout and stderr.
pub const OUTPUT_BYTES: usize = 10 << 20;
/// Default of `--init-timeout`, as for a bootstrap: most of the time of either is downloads.
pub const INIT_SCRIPT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Default of `--image-timeout`: enough for a slow mirror; a dead one must not block the builder forever.
pub const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(3600);
/// Default of `--run-output-limit`: bytes kept on disk of each stream of a run; enough for a build log of a day.
pub const RUN_OUTPUT_BYTES: u64 = 2 << 30;
/// Default of `--runs-disk-limit`: bytes kept of all runs together.
pub const RUNS_DISK_BYTES: u64 = 16 << 30;
/// Default of `--max-runs`: threads start on demand, and one takes 30 KB while its command is quiet.
pub const RUN_WORKERS: usize = 256;
/// Default of `--max-streams`: followers, long waits, terminals.
pub const STREAM_WORKERS: usize = 256;
/// Default of `--drain-timeout`: how long running requests may continue after a stop signal.
pub const DRAIN: Duration = Duration::from_secs(10);
/// Default of `--max-connections`.
pub const CONNECTIONS: usize = 512;
/// Default of `--idle-timeout`.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Maximum of `--idle-timeout`, in seconds: ten years is as good as never, and far from overflow.
pub const IDLE_TIMEOUT_MOST: u64 = 10 * 365 * 24 * 3600;
/// Default of `--max-proxied`: concurrent requests to OpenCode; further ones wait in a queue.
pub const PROXY_WORKERS: usize = 16;
/// Default of `--opencode-timeout`: from a request's last byte to the head of its response. Bun's fetch, and so the
/// OpenWork server, waits five minutes; a prompt with many tools may take longer.
pub const UPSTREAM_ANSWER: Duration = Duration::from_secs(600);

// Limits of requests, commands and containers.

/// Maximum JSON body of ordinary routes; axum's default, which clients of sandboxed.sh expect.
pub const JSON_BODY_BYTES: usize = 2 << 20;
/// Maximum body of `/exec`, which includes `stdin`.
pub const EXEC_BODY_BYTES: usize = 32 << 20;
/// Maximum length of `command`: the kernel refuses a single argument of 128 KiB or more (execve(2), MAX_ARG_STRLEN).
pub const COMMAND_BYTES: usize = (128 << 10) - 1;
/// Maximum of all `args` together; with the environment far below execve's limit of a quarter of the stack limit (2
/// MiB).
pub const COMMAND_TOTAL_BYTES: usize = 256 << 10;
/// Maximum length of a workspace's name, which is shown in lists and log lines.
pub const NAME_BYTES: usize = 255;
/// Maximum init script; it is stored in the workspace's record.
pub const INIT_SCRIPT_BYTES: usize = 1 << 20;
/// Maximum number of workspaces in a data folder; each takes memory and a row in every list.
pub const WORKSPACES: usize = 10_000;

/// Grace period between SIGTERM and SIGKILL at a timeout: enough to remove a lock file, too short to delay the answer
/// noticeably.
pub const TERM_GRACE: Duration = Duration::from_millis(100);
/// Bytes read from a pipe at a time; a pipe holds 64 KiB by default (pipe(7)).
pub const PIPE_CHUNK: usize = 64 << 10;
/// Timeout for copying a base image into a root.
pub const COPY_TIMEOUT: Duration = Duration::from_secs(1800);
/// Lines of a failed tool's output that an error message includes.
pub const ERROR_TAIL_LINES: usize = 6;
/// Maximum size of a build log; further lines are dropped, which the log notes.
pub const BUILD_LOG_BYTES: u64 = 64 << 20;

/// A run checks the free space after this many bytes.
pub const SPOOL_CHECK_BYTES: u64 = 1 << 20;
/// Bytes of each stream that a run keeps even when other runs need the space.
pub const SPOOL_LEAST_BYTES: u64 = 256 << 10;
/// Maximum number of gaps in a stream that are recorded separately; further ones are counted together.
pub const SPOOL_GAPS: usize = 64;
/// Timeout for a keeper's answer, which includes the end of its run: SIGTERM, the grace period, SIGKILL.
pub const KEEPER_ANSWER: Duration = Duration::from_secs(8);
/// Bytes of a command that are shown; its client has the rest.
pub const COMMAND_SHOWN_BYTES: usize = 4 << 10;
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

/// Stack size of ordinary threads. Measured use is below 64 KiB; serde_json nests to 128 levels.
pub const STACK: usize = 512 << 10;
/// `Retry-After` of a 503.
pub const RETRY_AFTER_SECS: u32 = 1;

/// Timeout for a container's first answer: nspawn needs about 100 ms, more on a loaded machine.
pub const CONTAINER_START: Duration = Duration::from_secs(20);
/// How long to wait for the lock of a container's state before it is reported as changing: longer than other threads
/// hold it on a busy machine, and not long for a client.
pub const LOOK: Duration = Duration::from_millis(100);
/// Timeout for an agent's answer to a request that needs no work. Its container may be hostile or thrashing.
pub const AGENT_ANSWER: Duration = Duration::from_secs(10);
/// Maximum encoded command for a container's process, with a pointer and a NUL for each of its strings: more than
/// execve(2) accepts, a quarter of the stack limit of 8 MiB.
pub const AGENT_MESSAGE_BYTES: usize = 4 << 20;
/// How long a killed cgroup may take to become empty before an error is reported.
pub const KILL_WAIT: Duration = Duration::from_secs(5);

/// Input buffered for a program that does not read, in addition to the kernel's buffer.
pub const TERMINAL_INPUT_BYTES: usize = 64 << 10;
/// Maximum length of a control sequence that is kept in one piece. Inline images (sixel) are longer, and harmless.
pub const SEQUENCE_BYTES: usize = 4 << 10;
/// How long a WebSocket's peer may take to answer a close frame.
pub const GOODBYE: Duration = Duration::from_secs(2);
/// Maximum message of a WebSocket's client: typed or pasted input.
pub const SOCKET_MESSAGE_BYTES: usize = 64 << 10;

/// Maximum size of a workspace's configuration, skill or command; handwritten ones have kilobytes.
pub const PROJECT_FILE_BYTES: u64 = 1 << 20;
/// Maximum number of entries in a list of a workspace's skills, commands and the like; a longer one helps no user.
pub const PROJECT_ENTRIES: usize = 2000;

/// Time between the end of all commands and the end of the server, for the last answers.
pub const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Maximum depth at which a folder is deleted in place; deeper ones are first moved up, so that depth exhausts nothing.
pub const TREE_DEPTH: usize = 64;
/// Timeout of one step of `berth doctor`: each takes milliseconds, on a thrashing machine seconds.
pub const PROBE: Duration = Duration::from_secs(10);
/// Bytes kept of a probe's output; the longest, a package's change log, is below 1 MiB.
pub const PROBE_OUTPUT_BYTES: usize = 4 << 20;
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
/// Maximum size of a file for counting its lines: reading it takes about a second.
pub const LINE_COUNT_BYTES: u64 = 1 << 30;

/// Maximum size of a request head with its request line; twice the limit of nginx and Apache.
pub const HEAD_BYTES: usize = 16 << 10;
/// Maximum number of request headers; browsers send some 20.
pub const HEAD_LINES: usize = 100;
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
/// Maximum number of entries that a listing of an inbox or outbox visits: some 20 ms.
pub const TRAY_ENTRIES: usize = 10_000;
/// How long a rejected client may continue sending, so that closing the connection does not discard the answer before
/// it is read.
pub const LINGER: Duration = Duration::from_secs(1);
/// Maximum size of extensions in a chunked body, which are ignored.
pub const CHUNK_EXTENSION_BYTES: usize = 256;
/// Maximum size of trailers of a chunked body, which are ignored.
pub const TRAILER_BYTES: usize = 8 << 10;
/// Bytes read from a socket at a time.
pub const RELAY_BYTES: usize = 16 << 10;
/// Buffer that an idle connection keeps for its next request: most heads fit.
pub const IDLE_BUFFER_BYTES: usize = 2 << 10;
/// Descriptors that a request takes: the client's, the relay's, and two of tiny_http.
pub const DESCRIPTORS_PER_CONNECTION: usize = 4;
/// Descriptors reserved for everything else when the limit of open files bounds the connections.
pub const DESCRIPTORS_RESERVED: usize = 40;
/// Stack of a connection's thread, as large as an ordinary one's; only touched pages take memory.
pub const GATE_STACK: usize = STACK;
/// An unused connection to tiny_http is closed after this time; it takes a thread there.
pub const INSIDE_IDLE: Duration = Duration::from_secs(10);
/// How long a ticket for a client's socket stays valid; an older one belongs to a disconnected client.
pub const TICKET: Duration = Duration::from_secs(60);

/// Maximum size of a library file: texts for people and agents.
pub const LIBRARY_FILE_BYTES: u64 = 1 << 20;
/// Maximum number of entries of a library folder, and of files of a skill.
pub const LIBRARY_ENTRIES: usize = 10_000;
/// Maximum length of a library name: with `.json` still a valid file name (255 bytes).
pub const LIBRARY_NAME_BYTES: usize = 200;
/// Maximum depth of a skill's file.
pub const LIBRARY_PATH_PARTS: usize = 8;
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

/// Timeout of `berth status` and `berth approvals` for an answer.
pub const CLI_ANSWER: Duration = Duration::from_secs(15);
/// `berth approvals watch` reopens its stream after this time, in case the server's machine disappeared silently.
pub const CLI_STREAM: Duration = Duration::from_secs(120);
/// Maximum size of an answer that these commands read.
pub const CLI_ANSWER_BYTES: u64 = 16 << 20;

/// Maximum lifetime of a token that expires: ten years.
pub const TOKEN_LIFETIME_SECS: u64 = 10 * 365 * 24 * 3600;

/// Length of a body's summary that approvers see.
pub const APPROVAL_SUMMARY_CHARS: usize = 400;

/// Maximum number of entries of an image; a desktop with toolchains has some 500,000. Each takes an inode.
pub const IMAGE_ENTRIES: u64 = 1_000_000;
/// Maximum depth of an image. Real ones reach 30; walking a tree takes a descriptor for each level.
pub const IMAGE_DEPTH: usize = 128;
/// Maximum length of an extended attribute: the kernel's limit (xattr(7)).
pub const IMAGE_XATTR_BYTES: usize = 64 << 10;
/// Unpacked size that is allowed for an archive of any size …
pub const IMAGE_RATIO_FREE: u64 = 256 << 20;
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
/// Maximum size of an image's manifest or configuration, as registries accept.
pub const IMAGE_MANIFEST_BYTES: u64 = 4 << 20;
/// Maximum size of the binary in a bundle; a debug build has some 100 MB.
pub const BUNDLE_BINARY_BYTES: u64 = 512 << 20;
/// A proxied request that has waited this long releases its worker and counts as a stream: OpenCode answers most
/// requests within milliseconds, but a prompt only when the model has finished.
pub const PROXY_SLOW: Duration = Duration::from_secs(1);
/// Timeout for a connection to an upstream, and for looking up its name.
pub const UPSTREAM_CONNECT: Duration = Duration::from_secs(5);
/// Timeout for the next bytes of a response of an upstream.
pub const UPSTREAM_SILENCE: Duration = Duration::from_secs(3600);
/// A silent connection to an upstream is probed after this time, then three times in as long again.
pub const UPSTREAM_PROBE: Duration = Duration::from_secs(30);
/// Bytes read from an upstream at a time, and the maximum head of a response.
pub const UPSTREAM_BUFFER_BYTES: usize = 32 << 10;
