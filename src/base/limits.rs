//! Limits that several rooms share, each with its reason. The defaults of flags come first: operators can change them.
//! A limit that only one file uses is defined in that file.

use std::time::Duration;

// Defaults of flags.

/// Default of `--output-limit`: how many bytes of each of stdout and stderr are kept.
pub const OUTPUT_BYTES: usize = 10 << 20;
/// Default of `--init-timeout`. The same as for a bootstrap, because both spend most of their time on downloads.
pub const INIT_SCRIPT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Default of `--image-timeout`: enough for a slow mirror. A mirror that does not answer must not block the builder
/// forever.
pub const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(3600);
/// Default of `--run-output-limit`: how many bytes of each stream of a run are kept on disk; enough for a day's build
/// log.
pub const RUN_OUTPUT_BYTES: u64 = 2 << 30;
/// Default of `--runs-disk-limit`: how many bytes of all runs together are kept on disk.
pub const RUNS_DISK_BYTES: u64 = 16 << 30;
/// Default of `--max-runs`. Threads start on demand, and a thread takes 30 KB while its command produces no output.
pub const RUN_WORKERS: usize = 256;
/// Default of `--max-streams`: how many followers, long waits and terminals may be open at a time.
pub const STREAM_WORKERS: usize = 256;
/// Default of `--drain-timeout`: how long running requests may continue after a stop signal.
pub const DRAIN: Duration = Duration::from_secs(10);
/// Default of `--max-connections`: how many client connections may be open at a time.
pub const CONNECTIONS: usize = 512;
/// Default of `--idle-timeout`: how long an unused container keeps running.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Maximum of `--idle-timeout`, in seconds: ten years, which in practice is never and cannot overflow.
pub const IDLE_TIMEOUT_MOST: u64 = 10 * 365 * 24 * 3600;
/// Default of `--max-proxied`: how many requests to OpenCode run at a time; further requests wait in a queue.
pub const PROXY_WORKERS: usize = 16;
/// Default of `--opencode-timeout`: the time between a request's last byte and the head of its response. Bun's fetch,
/// which the OpenWork server uses, waits five minutes; a prompt with many tools may take longer.
pub const UPSTREAM_ANSWER: Duration = Duration::from_secs(600);

// Limits of requests, commands and containers.

/// Maximum JSON body of ordinary routes: the default of axum, which clients of sandboxed.sh expect.
pub const JSON_BODY_BYTES: usize = 2 << 20;
/// Maximum body of `/exec`, which includes `stdin`.
pub const EXEC_BODY_BYTES: usize = 32 << 20;
/// Maximum length of `command`: the kernel refuses a single argument of 128 KiB or more (execve(2), MAX_ARG_STRLEN).
pub const COMMAND_BYTES: usize = (128 << 10) - 1;
/// Maximum length of all `args` together. With the environment, they stay far below execve's limit of a quarter of the
/// stack limit (2 MiB).
pub const COMMAND_TOTAL_BYTES: usize = 256 << 10;
/// Maximum length of a workspace's name, which is shown in lists and log lines.
pub const NAME_BYTES: usize = 255;
/// Maximum length of an init script, which is stored in the workspace's record.
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
/// Number of lines of a failed tool's output that an error message includes.
pub const ERROR_TAIL_LINES: usize = 6;
/// Maximum size of a build log. Further lines are dropped, and the log notes this.
pub const BUILD_LOG_BYTES: u64 = 64 << 20;

/// After this many bytes of output, a run checks the free space again.
pub const SPOOL_CHECK_BYTES: u64 = 1 << 20;
/// Number of bytes of each stream that a run keeps even if other runs need the space.
pub const SPOOL_LEAST_BYTES: u64 = 256 << 10;
/// Maximum number of gaps in a stream that are recorded separately; further gaps are counted together.
pub const SPOOL_GAPS: usize = 64;
/// Timeout for a keeper's answer. The keeper may have to end its run first: SIGTERM, the grace period, SIGKILL.
pub const KEEPER_ANSWER: Duration = Duration::from_secs(8);
/// Number of bytes of a command that listings show; the client that sent the command has the rest.
pub const COMMAND_SHOWN_BYTES: usize = 4 << 10;
/// How long bytes for a command's stdin wait until its pipe has space.
pub const STDIN_PATIENCE: Duration = Duration::from_secs(5);
/// Maximum size of an event: enough for a page of text, and small enough to be sent to hundreds of followers.
pub const EVENT_BYTES: usize = 16 << 10;
/// Default number of events that a topic keeps for clients that connect late; a build has a few hundred events.
pub const TOPIC_EVENTS: usize = 1000;
/// How often a stream without events sends a heartbeat: proxies close silent connections after 60 s, some after 30 s.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Maximum of `wait_secs`, of `soft_timeout_secs`, and of `timeout_secs` of a wait.
pub const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Default duration of a wait: shorter than the timeout of any proxy.
pub const WAIT: Duration = Duration::from_secs(30);

/// Stack size of ordinary threads. Measured use is below 64 KiB; serde_json nests at most 128 levels deep.
pub const STACK: usize = 512 << 10;
/// Value of the `Retry-After` header of a 503 response.
pub const RETRY_AFTER_SECS: u32 = 1;

/// Timeout for a container's first answer. systemd-nspawn needs about 100 ms, and more on a loaded machine.
pub const CONTAINER_START: Duration = Duration::from_secs(20);
/// How long a request waits for the lock of a container's state before it reports the container as changing. Other
/// threads hold the lock for less time than this even on a busy machine, and a client hardly notices the wait.
pub const LOOK: Duration = Duration::from_millis(100);
/// Timeout for an agent's answer to a request that needs no work. The agent's container may be hostile or thrashing.
pub const AGENT_ANSWER: Duration = Duration::from_secs(10);
/// Maximum size of an encoded command for a process in a container, with a pointer and a NUL for each string. This is
/// more than execve(2) accepts: a quarter of the stack limit of 8 MiB.
pub const AGENT_MESSAGE_BYTES: usize = 4 << 20;
/// How long a killed cgroup may take to become empty before an error is reported.
pub const KILL_WAIT: Duration = Duration::from_secs(5);

/// Number of bytes of input that are buffered for a program that does not read, in addition to the kernel's buffer.
pub const TERMINAL_INPUT_BYTES: usize = 64 << 10;
/// Maximum length of a control sequence that is kept in one piece. Inline images (sixel) are longer, and may be split.
pub const SEQUENCE_BYTES: usize = 4 << 10;
/// How long a WebSocket's peer may take to answer a close frame.
pub const GOODBYE: Duration = Duration::from_secs(2);
/// Maximum message from a WebSocket client, which contains typed or pasted input.
pub const SOCKET_MESSAGE_BYTES: usize = 64 << 10;

/// Maximum size of a workspace's configuration, skill or command; handwritten files have a few kilobytes.
pub const PROJECT_FILE_BYTES: u64 = 1 << 20;
/// Maximum number of entries in a list of a workspace's skills, commands and the like; a longer list helps no user.
pub const PROJECT_ENTRIES: usize = 2000;

/// Time between the end of all commands and the end of the server, in which the server sends the last answers.
pub const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Maximum depth at which a folder is deleted in place. A deeper folder is moved up first, so that its depth cannot
/// exhaust the stack or the descriptors.
pub const TREE_DEPTH: usize = 64;
/// Timeout of one step of `berth doctor`: a step takes milliseconds, and seconds on a thrashing machine.
pub const PROBE: Duration = Duration::from_secs(10);
/// Number of bytes of a probe's output that are kept; the longest output, a package's change log, is below 1 MiB.
pub const PROBE_OUTPUT_BYTES: usize = 4 << 20;
/// How long the data folder's lock may outlive its server: a child process holds the lock until it executes its
/// program.
pub const LOCK_PASSES: Duration = Duration::from_secs(2);
/// How long `--setup` waits for a person's answer.
pub const SETUP_ANSWER: Duration = Duration::from_secs(300);
/// Timeout of a package manager called by `--setup`.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(1800);
/// Maximum size of a state file that is read or written as a whole; berth writes no larger state file.
pub const STATE_FILE_BYTES: u64 = 64 << 20;
/// How often an open inside a workspace is retried if a concurrent rename on the machine interferes (openat2(2),
/// EAGAIN).
pub const OPEN_RETRIES: usize = 128;
/// Maximum size of a file whose lines are counted: reading a file of this size takes about a second.
pub const LINE_COUNT_BYTES: u64 = 1 << 30;

/// Maximum size of a request head with its request line; twice the limit of nginx and Apache.
pub const HEAD_BYTES: usize = 16 << 10;
/// Maximum number of request headers; browsers send some 20.
pub const HEAD_LINES: usize = 100;
/// Timeout for the next bytes of a request body.
pub const BODY_STALL: Duration = Duration::from_secs(30);
/// Timeout for a client that does not read its response.
pub const WRITE_STALL: Duration = Duration::from_secs(30);
/// How often to try to write to a full socket that poll(2) does not report as writable. TCP reports a socket as
/// writable only when a third of its buffer, often more than 1 MB, is free, and a slow client needs longer than
/// [`WRITE_STALL`] for that.
pub const WRITE_LOOK: Duration = Duration::from_secs(1);
/// Maximum size of a body that is passed on only when it is complete, so that a slow client blocks no worker thread and
/// a broken body never reaches a worker thread.
pub const HELD_BODY_BYTES: usize = 64 << 10;
/// Number of unread bytes of a body that are discarded to keep the connection; with more, the connection is closed.
pub const DRAINED_BODY_BYTES: u64 = 256 << 10;
/// Maximum size of a form without its file: field names, paths and the preamble.
pub const FORM_FIELDS_BYTES: usize = 64 << 10;
/// Maximum number of entries that a listing of an inbox or outbox visits, which takes some 20 ms.
pub const TRAY_ENTRIES: usize = 10_000;
/// How long a rejected client may continue sending. If the connection closed while data arrives, the client could lose
/// the answer before it has read it.
pub const LINGER: Duration = Duration::from_secs(1);
/// Maximum size of extensions in a chunked body, which are ignored.
pub const CHUNK_EXTENSION_BYTES: usize = 256;
/// Maximum size of trailers of a chunked body, which are ignored.
pub const TRAILER_BYTES: usize = 8 << 10;
/// Bytes read from a socket at a time.
pub const RELAY_BYTES: usize = 16 << 10;
/// Size of the buffer that an idle connection keeps for its next request: most request heads fit into it.
pub const IDLE_BUFFER_BYTES: usize = 2 << 10;
/// Number of descriptors that a request takes: the client's, the relay's, and two of tiny_http.
pub const DESCRIPTORS_PER_CONNECTION: usize = 4;
/// Number of descriptors reserved for other uses when the limit of open files bounds the number of connections.
pub const DESCRIPTORS_RESERVED: usize = 40;
/// Stack size of a connection's thread, the same as for other threads; only touched pages take memory.
pub const GATE_STACK: usize = STACK;
/// How long an unused connection to tiny_http stays open; tiny_http keeps a thread for each connection.
pub const INSIDE_IDLE: Duration = Duration::from_secs(10);
/// How long a ticket for a client's socket stays valid; the client of an older ticket has disconnected.
pub const TICKET: Duration = Duration::from_secs(60);

/// Maximum size of a library file, which is a text for people and agents.
pub const LIBRARY_FILE_BYTES: u64 = 1 << 20;
/// Maximum number of entries of a library folder, and maximum number of files of a skill.
pub const LIBRARY_ENTRIES: usize = 10_000;
/// Maximum length of a library name: with `.json` appended, it is still a valid file name (255 bytes).
pub const LIBRARY_NAME_BYTES: usize = 200;
/// Maximum number of parts in the path of a skill's file.
pub const LIBRARY_PATH_PARTS: usize = 8;
/// Maximum unpacked size of an imported skill: texts, and possibly fonts and tables.
pub const SKILL_BYTES: usize = 32 << 20;
/// Maximum number of entries of an archive that contains a skill.
pub const SKILL_FILES: usize = 1000;
/// Maximum length of a Markdown file's front matter; a real front matter has a few lines.
pub const FRONT_MATTER_BYTES: usize = 512 << 10;
/// Maximum number of values in front matter. A value that aliases repeat counts each time.
pub const FRONT_MATTER_NODES: usize = 80_000;

/// Maximum size of each of the two files of an audit log: some 5,000 lines.
pub const AUDIT_FILE_BYTES: u64 = 2 << 20;
/// Maximum length of an audit line that is read; the lines that berth writes are shorter than 2 KB.
pub const AUDIT_LINE_BYTES: usize = 64 << 10;

/// Timeout for a server's answer to `berth status` or `berth approvals`.
pub const CLI_ANSWER: Duration = Duration::from_secs(15);
/// `berth approvals watch` reopens its stream after this time, in case the server's machine disappeared silently.
pub const CLI_STREAM: Duration = Duration::from_secs(120);
/// Maximum size of an answer that `berth status` and `berth approvals` read.
pub const CLI_ANSWER_BYTES: u64 = 16 << 20;

/// Maximum lifetime of a token that expires: ten years.
pub const TOKEN_LIFETIME_SECS: u64 = 10 * 365 * 24 * 3600;

/// Maximum length of the summary of a request body that approvers see.
pub const APPROVAL_SUMMARY_CHARS: usize = 400;

/// Maximum number of entries of an image, each of which takes an inode; a desktop with toolchains has some 500,000.
pub const IMAGE_ENTRIES: u64 = 1_000_000;
/// Maximum depth of an image. Real images reach 30; walking a tree takes a descriptor for each level.
pub const IMAGE_DEPTH: usize = 128;
/// Maximum length of an extended attribute: the kernel's limit (xattr(7)).
pub const IMAGE_XATTR_BYTES: usize = 64 << 10;
/// Unpacked size up to which an archive may have any compression ratio.
pub const IMAGE_RATIO_FREE: u64 = 256 << 20;
/// How often an import reports its progress.
pub const IMAGE_TELL: Duration = Duration::from_millis(200);
/// Maximum length of a path in an archive, and of a link's target: the kernel's limit.
pub const IMAGE_PATH_BYTES: usize = 4095;
/// Maximum size of an extended header of an archive member; it holds all extended attributes and is kept in memory.
pub const IMAGE_HEADER_BYTES: usize = 1 << 20;
/// Maximum number of extended attributes of an archive member.
pub const IMAGE_XATTRS: usize = 64;
/// Maximum number of data segments of a sparse file.
pub const IMAGE_PIECES: usize = 100_000;
/// Maximum size of an image's manifest or configuration; registries have the same limit.
pub const IMAGE_MANIFEST_BYTES: u64 = 4 << 20;
/// Maximum size of the binary in a bundle; a debug build has some 100 MB.
pub const BUNDLE_BINARY_BYTES: u64 = 512 << 20;
/// How long a proxied request keeps its worker before it counts as a stream: OpenCode answers most requests within
/// milliseconds, but it answers a prompt only when the model has finished.
pub const PROXY_SLOW: Duration = Duration::from_secs(1);
/// Timeout for connecting to an upstream, and for looking up its host name.
pub const UPSTREAM_CONNECT: Duration = Duration::from_secs(5);
/// Timeout for the next bytes of an upstream's response.
pub const UPSTREAM_SILENCE: Duration = Duration::from_secs(3600);
/// How long a connection to an upstream may be silent before the kernel probes it. It is closed if three probes in the
/// same time again fail.
pub const UPSTREAM_PROBE: Duration = Duration::from_secs(30);
/// Number of bytes read from an upstream at a time, and the maximum size of a response head.
pub const UPSTREAM_BUFFER_BYTES: usize = 32 << 10;
