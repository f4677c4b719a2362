//! Every constant that bounds something, with its reason.

use std::time::Duration;

/// Largest JSON body of ordinary routes; axum's default, which sandboxed.sh's clients know.
pub const JSON_BODY_BYTES: usize = 2 << 20;
/// Largest body of `/exec`: its `stdin` travels inside.
pub const EXEC_BODY_BYTES: usize = 32 << 20;
/// Longest `command`: the kernel refuses a single argument of 128 KiB or more (execve(2), MAX_ARG_STRLEN).
pub const COMMAND_BYTES: usize = (128 << 10) - 1;
/// All of `args` together; with the environment far below execve's limit of a quarter of the stack limit (2 MiB).
pub const COMMAND_TOTAL_BYTES: usize = 256 << 10;
/// The product of a command's length and the folders of its PATH: there is a command line for each of them. The longest
/// command in the six folders of the usual PATH, and two more.
pub const SEARCH_BYTES: usize = 8 * COMMAND_TOTAL_BYTES;
/// Longest single variable, for the same reason as a command.
pub const ENV_ENTRY_BYTES: usize = (128 << 10) - 1;
/// All variables of one command; far below execve's limit of a quarter of the stack limit (2 MiB).
pub const ENV_TOTAL_BYTES: usize = 1 << 20;
/// Longest workspace name: it is a label, but it is shown in lists and log lines.
pub const NAME_BYTES: usize = 255;
/// Largest init script; it is stored in the workspace's record.
pub const INIT_SCRIPT_BYTES: usize = 1 << 20;
/// Workspaces in one data folder; each costs memory and a row in every list.
pub const WORKSPACES: usize = 10_000;

/// Default and largest `timeout_secs` of `/exec` (assets/docs/compatibility.md#commands).
pub const EXEC_TIMEOUT: Duration = Duration::from_secs(300);
/// Largest `timeout_secs` of `/exec` (the same section); larger values are clipped.
pub const EXEC_TIMEOUT_MAX: Duration = Duration::from_secs(600);
/// Between TERM and KILL at a timeout: enough to remove a lock file, too short to be noticed in the answer.
pub const TERM_GRACE: Duration = Duration::from_millis(100);
/// Default for `--output-limit`: what is kept of each of stdout and stderr.
pub const OUTPUT_BYTES: usize = 10 << 20;
/// How much is read from a pipe at once; a pipe holds 64 KiB by default (pipe(7)).
pub const PIPE_CHUNK: usize = 64 << 10;
/// Default for `--init-timeout`, as a bootstrap's: most of either is downloading packages.
pub const INIT_SCRIPT_TIMEOUT: Duration = Duration::from_secs(3600);
/// A bootstrap's deadline: a slow mirror is slow, a dead one must not hold the builder for ever.
pub const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(3600);
/// Copying a base image into a root.
pub const COPY_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long a cancelled build may take to let go of its workspace before the client is told.
pub const CANCEL_BUILD: Duration = Duration::from_secs(10);
/// Builds whose events are kept for those who come late; the longest have some 1 MB.
pub const BUILD_FEEDS: usize = 32;
/// What a build's event shows of a line of its log.
pub const BUILD_LINE_BYTES: usize = 1000;
/// Builds at once: most wait for the network or for their init script, and none for another's.
pub const BUILD_WORKERS: usize = 4;
/// Of the machine's own `/etc`, what its programs need in a container: bytes, …
pub const OWN_BYTES: u64 = 64 << 20;
/// … entries …
pub const OWN_ENTRIES: u64 = 50_000;
/// … and depth.
pub const OWN_DEPTH: usize = 20;
/// How long the processes of a container may take to stand still for a snapshot.
pub const FREEZE: Duration = Duration::from_secs(2);
/// How long a snapshot waits for a command that has just ended to be counted as such: one without commands costs nothing.
pub const QUIET: Duration = Duration::from_millis(50);
/// Roots that stay put together although nobody uses them, for whoever comes next.
pub const IDLE_ROOTS: usize = 64;
/// Layers of one root: a file that is not there is looked for in all of them. Then they are copied into one.
pub const ROOT_LAYERS: usize = 50;
/// Snapshots of one workspace.
pub const SNAPSHOTS: usize = 200;
/// What is kept of an init script's output for the answer of `rerun-init` and error messages.
pub const INIT_OUTPUT_BYTES: usize = 1 << 20;
/// Lines of a failing tool that an error message repeats.
pub const ERROR_TAIL_LINES: usize = 6;
/// `init-log` answers with the last lines only (assets/docs/compatibility.md#builds-and-init-scripts).
pub const INIT_LOG_LINES: usize = 500;
/// What `init-log` reads at most, from the end of the file.
pub const INIT_LOG_BYTES: u64 = 4 << 20;
/// A build log's cap; beyond it lines are dropped and the log says so.
pub const BUILD_LOG_BYTES: u64 = 64 << 20;

/// Default for `--run-output-limit`: what is kept of each stream of a run, on disk; a build log of a day fits.
pub const RUN_OUTPUT_BYTES: u64 = 2 << 30;
/// Default for `--runs-disk-limit`: what all runs may keep together.
pub const RUNS_DISK_BYTES: u64 = 16 << 30;
/// Runs leave free this share (1 / n) of the file system that they lie on …
pub const RUNS_FREE_SHARE: u64 = 20;
/// … but need not leave more than this: enough for everything else that berth writes.
pub const RUNS_FREE_BYTES: u64 = 512 << 20;
/// After so many further bytes a run looks whether there is still room.
pub const SPOOL_CHECK_BYTES: u64 = 1 << 20;
/// What a run keeps of each stream at least when room is made for others.
pub const SPOOL_LEAST_BYTES: u64 = 256 << 10;
/// A full window moves on by this share (1 / n) of itself, so that the disk is not asked for each chunk.
pub const SPOOL_STEP_SHARE: u64 = 16;
/// Stretches that a stream may have lost before they are counted together.
pub const SPOOL_GAPS: usize = 64;
/// How often the two streams may take turns before their order is no longer noted: 64 MiB of notes.
pub const SPOOL_TURNS: u64 = 4 << 20;
/// Ended runs that are remembered; the oldest are forgotten first.
pub const RUNS_KEPT: usize = 1000;
/// For how long.
pub const RUN_KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// Runs that outlive the server at once; each has a process of ours beside it, with some 200 KB of its own.
pub const DETACHED_RUNS: usize = 64;
/// A keeper's answer, and how long it may take to end its run: TERM, the grace, KILL.
pub const KEEPER_ANSWER: Duration = Duration::from_secs(8);
/// What is shown of a command; whoever sent it knows the rest.
pub const COMMAND_SHOWN_BYTES: usize = 4 << 10;
/// Largest /etc/passwd or /etc/group that is looked into.
pub const ACCOUNTS_BYTES: u64 = 1 << 20;
/// Most groups of one user; the kernel takes 65,536 (NGROUPS_MAX).
pub const GROUPS: usize = 1024;
/// Longest tag of a run.
pub const TAG_BYTES: usize = 255;
/// A run's record: a shown command and some numbers.
pub const RUN_RECORD_BYTES: u64 = 1 << 20;
/// How long a client's bytes for a command's stdin wait for room in its pipe.
pub const STDIN_PATIENCE: Duration = Duration::from_secs(5);
/// Most of one event's bytes: a page of text, and small enough that hundreds of followers cost little.
pub const EVENT_BYTES: usize = 16 << 10;
/// Events that a topic keeps for those who come late, where nothing else is said; a build has a few hundred.
pub const TOPIC_EVENTS: usize = 1000;
/// A silent stream says that it is there: proxies give up after 60 s, some after 30.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Longest `wait_secs` and `timeout_secs` of a wait, and longest `soft_timeout_secs`.
pub const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long a wait without `timeout_secs` lasts: less than any proxy's patience.
pub const WAIT: Duration = Duration::from_secs(30);
/// How long a deletion waits for what it ended to be gone.
pub const RUN_ENDING: Duration = Duration::from_secs(15);

/// Requests at once whose body or answer is too large to be held for them, each on a thread that a slow client may hold
/// up to [`BODY_STALL`] or [`WRITE_STALL`] from byte to byte; further ones are answered 503 at once.
pub const TRANSFERS: usize = 64;
/// Jobs waiting for a run or stream worker while all are busy; 0: answered 503 at once.
pub const RUN_QUEUE: usize = 0;
/// Builds waiting for the builder.
pub const BUILD_QUEUE: usize = 256;
/// Default for `--max-runs`: threads start when they are needed, and one costs 30 KB while its command is quiet.
pub const RUN_WORKERS: usize = 256;
/// Default for `--max-streams`: followers, long waits, terminals.
pub const STREAM_WORKERS: usize = 256;
/// An idle worker beyond the minimum ends after this long.
pub const WORKER_IDLE: Duration = Duration::from_secs(30);
/// Stack of ordinary threads. Measured use stays under 64 KiB; serde_json nests to 128 levels.
pub const STACK: usize = 512 << 10;
/// `Retry-After` of a 503.
pub const RETRY_AFTER_SECS: u32 = 1;

/// A container's first answer: nspawn needs about 100 ms, a loaded machine more.
pub const CONTAINER_START: Duration = Duration::from_secs(20);
/// Least `pids` of a container workspace: nspawn, the agent's two and the waiting processes take seven of them, and a shell
/// with a pipe three or more.
pub const CONTAINER_PIDS: u64 = 16;
/// Least `cpus` of one: with so much the start takes 1.3 s on an idle machine, with 0.01 it takes longer than
/// [`CONTAINER_START`].
pub const CONTAINER_CPUS: f64 = 0.05;
/// How long a command is offered to a container that ends and to its successor, or to one that has no memory or process
/// left for it, before its client is told.
pub const INSIST: Duration = Duration::from_secs(5);
/// How long a container's state may be held before it is said to be changing: longer than others look at it, even where
/// threads wait for a processor, and not so long that whoever asks minds.
pub const LOOK: Duration = Duration::from_millis(100);
/// Least time in which a container is to take a command, however soon that is to be over: it takes a millisecond, and one
/// whose time is 0 is to begin and be ended as on the host.
pub const LEAST_PATIENCE: Duration = Duration::from_millis(200);
/// An agent's answer to something that needs no work. Its container may be hostile or thrashing.
pub const AGENT_ANSWER: Duration = Duration::from_secs(10);
/// Spare processes that wait in a running container, each already in a cgroup of its own: joining one costs
/// up to 15 ms on an idle machine (the kernel waits for an RCU grace period), too slow to do while a client waits.
pub const SPARE_PROCESSES: usize = 4;
/// Empty groups that are kept for further commands of a running container: as many as end between two refills.
pub const SPARE_GROUPS: usize = 16;
/// Largest command that is sent to a container's process, with a pointer and a NUL for each of its strings: above what
/// execve(2) takes, a quarter of the stack limit of 8 MiB.
pub const AGENT_MESSAGE_BYTES: usize = 4 << 20;
/// The memory of a command that took more bytes than this is given back.
pub const ROOM_KEPT: u64 = 64 << 10;
/// Stack of a child that has our memory until it executes its program. Measured: 1.2 KB, 3.5 in a debug build; nothing
/// in it recurses.
pub const CHILD_STACK: usize = 32 << 10;
/// How long a killed cgroup may take to become empty before we say that we failed.
pub const KILL_WAIT: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile, for the case that the kernel does not wake whoever waits: nobody notices so much,
/// and nearly all are empty sooner.
pub const KILL_LOOK: Duration = Duration::from_millis(20);
/// How often a cgroup is made again that another process of ours removed before it was opened: each removes it once.
pub const CGROUP_TRIES: usize = 16;

/// Terminals that run at once; each costs a thread, a shell and its model, some 100 KB at 80 × 24.
pub const TERMINALS: usize = 64;
/// Widest terminal.
pub const TERMINAL_COLS: u16 = 1000;
/// Highest terminal.
pub const TERMINAL_ROWS: u16 = 500;
/// Most cells of a terminal: a model keeps two screens of 20 bytes a cell, and four bytes of output can touch all.
pub const TERMINAL_CELLS: u32 = 100_000;
/// Input that waits for a program that does not read, behind what the kernel holds.
pub const TERMINAL_INPUT_BYTES: usize = 64 << 10;
/// A terminal without clients, input and output ends after this long, unless its maker said otherwise.
pub const TERMINAL_IDLE: Duration = Duration::from_secs(3600);
/// The longest that its maker may say.
pub const TERMINAL_IDLE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The shell of `/shell` outlives its last socket by this long: a laptop's nap. Observed: 30 s, which users lose work to.
pub const SHELL_LINGER: Duration = Duration::from_secs(300);
/// A terminal whose program has ended can still be looked at for so long.
pub const TERMINAL_KEPT: Duration = Duration::from_secs(600);
/// And at most so many of them.
pub const TERMINALS_KEPT: usize = 64;
/// Clients of one terminal.
pub const WATCHERS: usize = 32;
/// Output that waits for a client; one that is further behind gets the screen painted anew instead.
pub const WATCH_BYTES: usize = 256 << 10;
/// Longest control sequence that is kept in one piece. Pictures in the text (sixel) are longer, and harmless.
pub const SEQUENCE_BYTES: usize = 4 << 10;
/// Longest title of a terminal's window.
pub const TITLE_CHARS: usize = 256;
/// How often a WebSocket's peer is asked whether it is still there. Proxies cut what is silent for a minute.
pub const PING: Duration = Duration::from_secs(20);
/// How long it may take to answer.
pub const PONG: Duration = Duration::from_secs(20);
/// How long the peer of a WebSocket may take to say goodbye after us.
pub const GOODBYE: Duration = Duration::from_secs(2);
/// How often the token store is looked at for changes by hand while something is open that a token opened.
pub const CREDENTIAL_CHECK: Duration = Duration::from_secs(2);
/// How long a WebSocket whose credential has ended has to say so before it is cut.
pub const CREDENTIAL_GRACE: Duration = Duration::from_secs(1);
/// What the kernel may hold for a WebSocket's client (doubled by it, socket(7)): more than a fast line needs for a
/// screen, less than a slow one takes in ten seconds.
pub const SOCKET_BUFFER_BYTES: usize = 128 << 10;
/// Largest message of a WebSocket's client: what it types, or pastes.
pub const SOCKET_MESSAGE_BYTES: usize = 64 << 10;
/// Reads from a terminal before its thread looks at anything else; the kernel gives at most 4 KiB each time.
pub const TERMINAL_READS: usize = 16;

/// Files of workspaces that are kept in memory as they were read: the skills of some hundred workspaces …
pub const SEEN_FILES: usize = 4096;
/// … and, of each kind, what files of so many bytes can take.
pub const SEEN_BYTES: u64 = 16 << 20;
/// Nesting of a configuration with comments. OpenCode's own schema has some ten levels; the parser recurses, on a stack
/// of 512 KiB.
pub const JSONC_DEPTH: usize = 64;

/// A configuration, skill or command of a workspace: what people write by hand has kilobytes.
pub const PROJECT_FILE_BYTES: u64 = 1 << 20;
/// Entries of a folder of skills, commands or plugins; a list of more helps nobody.
pub const PROJECT_ENTRIES: usize = 2000;
/// Reload events kept of a workspace, as observed.
pub const RELOAD_EVENTS: usize = 200;
/// From the first change by somebody else to the look at it, as observed; one event for each kind of thing.
pub const RELOAD_DEBOUNCE: Duration = Duration::from_millis(750);
/// Files that are watched in one workspace.
pub const WATCHED_FILES: usize = 4000;
/// Folders that are watched in one workspace.
pub const WATCHES_EACH: usize = 1000;
/// Folders that are watched in all. The kernel's own limit may be lower: 8192 on an old small machine.
pub const WATCHES_ALL: usize = 50_000;
/// How often an edit is made again because somebody else has changed the file meanwhile.
pub const EDIT_RETRIES: usize = 8;
/// Folders above a workspace in which skills are looked for.
pub const FOLDERS_ABOVE: usize = 32;

/// Between the end of all commands and the end of the server, for the answers that say so.
pub const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Default for `--drain-timeout`: how long requests in flight may go on after a stop signal.
pub const DRAIN: Duration = Duration::from_secs(10);
/// Deepest folder that is deleted in place; what lies deeper is first moved up, so that no depth exhausts us.
pub const TREE_DEPTH: usize = 64;
/// One step of `berth doctor`: each takes milliseconds, on a thrashing machine seconds.
pub const PROBE: Duration = Duration::from_secs(10);
/// What is kept of what a probe prints; a package's list of changes, the longest, is below 1 MiB.
pub const PROBE_OUTPUT_BYTES: usize = 4 << 20;
/// A report is shown again for so long, however often it is asked for.
pub const PROBE_FRESH: Duration = Duration::from_secs(10);
/// Disk that one container needs: a minimal Debian takes some 200 MB, its packages while it is built as much again.
pub const ROOT_BYTES: u64 = 1 << 30;
/// Disk that is worth a word when there is less.
pub const COMFORT_BYTES: u64 = 5 << 30;
/// Files that one container needs: a minimal Debian has some 10,000.
pub const ROOT_FILES: u64 = 30_000;
/// Memory that is worth a word when less is available: apt and dpkg take some 200 MB.
pub const COMFORT_MEMORY: u64 = 512 << 20;
/// Processes and threads that are worth a word when fewer are possible: `--max-connections`, `--max-runs` and
/// workloads together.
pub const COMFORT_PROCESSES: u64 = 4096;
/// How long the data folder's lock may outlive its server: a child that has not yet executed its program holds it.
pub const LOCK_PASSES: Duration = Duration::from_secs(2);
/// How long a person may think about `--setup`'s question.
pub const SETUP_ANSWER: Duration = Duration::from_secs(300);
/// A package manager called by `--setup`.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(1800);
/// Largest file of state that is read or written whole; one that is larger was not written by us.
pub const STATE_FILE_BYTES: u64 = 64 << 20;
/// How often an open inside a workspace is tried again when a rename elsewhere on the machine made the kernel
/// unsure (openat2(2), EAGAIN).
pub const OPEN_RETRIES: usize = 128;
/// How often a path that leads out of a workspace is looked at again: it may have been moved out at that moment.
pub const ESCAPE_RETRIES: usize = 3;
/// Entries of a folder that are counted; more is shown as this many.
pub const ENTRY_COUNT: u64 = 1_000_000;
/// Largest file whose lines are counted: reading it takes about a second.
pub const LINE_COUNT_BYTES: u64 = 1 << 30;
/// How often the removal of a tree starts again because something was written into it meanwhile.
pub const TREE_PASSES: usize = 32;
/// Files with several names that disk usage remembers (some 24 bytes each); further ones count once per name.
pub const USAGE_LINKS: usize = 1_000_000;
/// Deepest folder that disk usage looks into; each level costs some 50 bytes.
pub const USAGE_DEPTH: usize = 100_000;

/// Largest request head, the request line included; what nginx and Apache take is half of it.
pub const HEAD_BYTES: usize = 16 << 10;
/// Most headers of a request; browsers send some 20.
pub const HEAD_LINES: usize = 100;
/// From a head's first byte to its last; a slow line needs one.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may wait for its next request; proxies in front keep theirs about as long.
pub const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// A body that stands still for so long will not come.
pub const BODY_STALL: Duration = Duration::from_secs(30);
/// A client that takes nothing for so long does not read any more.
pub const WRITE_STALL: Duration = Duration::from_secs(30);
/// So often a socket that is full is tried although poll(2) does not call it writable: TCP does that only when a third of
/// its buffer, often more than 1 MB, is free again, and a slow client needs longer than [`WRITE_STALL`] for that.
pub const WRITE_LOOK: Duration = Duration::from_secs(1);
/// Bodies up to here go in only when they are complete: a slow client holds none of the threads inside, and a body
/// that turns out broken was never seen there.
pub const HELD_BODY_BYTES: usize = 64 << 10;
/// What a handler has left of a body is read and forgotten up to here, to keep the connection.
pub const DRAINED_BODY_BYTES: u64 = 256 << 10;
/// All of a form that is not its file: names, paths, what stands before the first boundary.
pub const FORM_FIELDS_BYTES: usize = 64 << 10;
/// The head of one part of a form; browsers send some 200 bytes and the file's name.
pub const FORM_HEAD_BYTES: usize = 16 << 10;
/// Entries of an inbox or an outbox that are looked at for one listing: some 20 ms.
pub const TRAY_ENTRIES: usize = 10_000;
/// And their paths together: a deep tree has long ones.
pub const TRAY_PATHS_BYTES: usize = 4 << 20;
/// Downloads up to here are answered at once, and their connection goes on; larger ones get the client's socket.
pub const DOWNLOAD_HELD_BYTES: u64 = 64 << 10;
/// What the kernel is asked to send of a file at once, so that a stop of the server is noticed in between.
pub const SENDFILE_BYTES: usize = 1 << 20;
/// Deepest path of an upload.
pub const TRAY_DEPTH: usize = 32;
/// How long a refused client may go on sending, so that our close does not destroy the answer before it is read.
pub const LINGER: Duration = Duration::from_secs(1);
/// Extensions of a chunked body, which are ignored.
pub const CHUNK_EXTENSION_BYTES: usize = 256;
/// Trailers of a chunked body, which are ignored.
pub const TRAILER_BYTES: usize = 8 << 10;
/// Longest request id that is taken from a client.
pub const REQUEST_ID_BYTES: usize = 64;
/// Largest head of an answer of ours.
pub const ANSWER_HEAD_BYTES: usize = 64 << 10;
/// What is read from a socket at once.
pub const RELAY_BYTES: usize = 16 << 10;
/// What an idle connection keeps for its next request: most heads fit.
pub const IDLE_BUFFER_BYTES: usize = 2 << 10;
/// Default for `--max-connections`.
pub const CONNECTIONS: usize = 512;
/// Seats beyond it for owners, one prompt request each.
pub const RESERVED_CONNECTIONS: usize = 8;
/// In such a seat, from the connection to the complete head.
pub const HURRIED_HEAD: Duration = Duration::from_secs(3);
/// A full house with clients in it that have left gets so long to notice before the next one is turned away: some 500
/// threads need it on one busy processor.
pub const GONE_SEAT_WAIT: Duration = Duration::from_millis(250);
/// Connections that wait to be accepted; the kernel clips it to net.core.somaxconn.
pub const BACKLOG: i32 = 1024;
/// Clients that were refused at the door and are still being told.
pub const REFUSED: usize = 64;
/// Descriptors that one request takes: the client's, ours to the inside, two of tiny_http's.
pub const DESCRIPTORS_PER_CONNECTION: usize = 4;
/// Descriptors kept for everything else when the limit of open files is what bounds connections.
pub const DESCRIPTORS_RESERVED: usize = 40;
/// Stack of a connection's thread, which may do what an ordinary one does; only what is touched is ever backed by memory.
pub const GATE_STACK: usize = STACK;
/// An idle connection thread waits so long for another client.
pub const GATE_THREAD_IDLE: Duration = Duration::from_secs(10);
/// Pause of the accept loop when the machine refuses it something.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// The same complaint is logged once in so long.
pub const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);
/// An unused connection to the inside is closed after so long; it costs a thread there.
pub const INSIDE_IDLE: Duration = Duration::from_secs(10);
/// The inside answers a greeting without any work; a thrashing machine needs this long.
pub const INSIDE_ANSWER: Duration = Duration::from_secs(5);
/// How long a connection's thread waits for an answer alone before it also watches its client: most answers are there by
/// then, and a client's end is noticed this much later. The kernel counts in ticks of up to 10 ms.
pub const QUICK_ANSWER: Duration = Duration::from_millis(10);
/// So often it may fail to, before it is taken for dead.
pub const INSIDE_SILENCES: u32 = 2;
/// The inside is not started anew more often than this.
pub const INSIDE_PAUSE: Duration = Duration::from_secs(1);
/// A ticket that was not redeemed by then belongs to a client that has gone.
pub const TICKET: Duration = Duration::from_secs(60);
/// Failed authentications that one address may make at once: a person with a wrong script.
pub const FAILURE_BURST: f64 = 20.0;
/// How many more it may make each second.
pub const FAILURES_PER_SEC: f64 = 1.0;
/// How long the answer to any further one is held back.
pub const FAILURE_DELAY: Duration = Duration::from_secs(1);
/// Addresses whose failures are remembered.
pub const THROTTLED_PEERS: usize = 4096;

/// The server's share of the processors where it has a cgroup of its own; everybody else's is 100 (cgroup-v2.rst).
pub const SERVER_CPU_WEIGHT: u64 = 1000;
/// Everybody else's, where the kernel compares our tree with other services'.
pub const WORK_CPU_WEIGHT: u64 = 50;
/// Memory that workloads may not have, on a small machine: the server's, and the kernel's to go on with.
pub const RESERVE_LEAST: u64 = 128 << 20;
/// The same on a large one.
pub const RESERVE_MOST: u64 = 1 << 30;
/// Processes of a container, whatever the machine: a desktop browser or a build needs hundreds.
pub const CONTAINER_PIDS_LEAST: u64 = 512;
/// A fork bomb's size on a large machine.
pub const CONTAINER_PIDS_MOST: u64 = 4096;

/// Largest file of the library: texts for people and agents.
pub const LIBRARY_FILE_BYTES: u64 = 1 << 20;
/// Entries of one folder of the library, and files of one skill.
pub const LIBRARY_ENTRIES: usize = 10_000;
/// Longest name in the library: with `.json` behind it still a file's name (255 bytes).
pub const LIBRARY_NAME_BYTES: usize = 200;
/// Deepest file of a skill.
pub const LIBRARY_PATH_PARTS: usize = 8;
/// So long after the last change by hand the library is looked at: an editor or git is done then.
pub const LIBRARY_QUIET: Duration = Duration::from_millis(300);
/// So long after the first one it is looked at in any case.
pub const LIBRARY_PATIENCE: Duration = Duration::from_secs(3);
/// Folders of the library that are watched, and files in them.
pub const LIBRARY_WATCHED: usize = 20_000;
/// Largest file from which a skill is imported; it is held in memory.
pub const SKILL_ARCHIVE_BYTES: usize = 8 << 20;
/// Largest skill that is imported, unpacked: texts, and perhaps fonts and sheets that they speak of.
pub const SKILL_BYTES: usize = 32 << 20;
/// Most entries of an archive with a skill.
pub const SKILL_FILES: usize = 1000;
/// Longest front matter of a Markdown file; real ones have a few lines.
pub const FRONT_MATTER_BYTES: usize = 512 << 10;
/// Values in it, each as often as an alias repeats it.
pub const FRONT_MATTER_NODES: usize = 80_000;
/// Lists and objects within each other.
pub const FRONT_MATTER_DEPTH: usize = 32;

/// One of the two files of an audit log: some 5,000 lines.
pub const AUDIT_FILE_BYTES: u64 = 2 << 20;
/// Longest line that is read of an audit log; ours are shorter than 2 KB.
pub const AUDIT_LINE_BYTES: usize = 64 << 10;
/// How much is read of each file, from its end: more than ours have, and an end for what others wrote.
pub const AUDIT_SCAN_BYTES: u64 = 16 << 20;
/// Files of audit logs, some 4 GiB if all were full; those that were not written to for the longest time are given up.
pub const AUDIT_FILES: usize = 2000;
/// Lines of an audit log that are shown when nothing else is asked for, as observed.
pub const AUDIT_SHOWN: usize = 50;
/// The most that are shown, as observed.
pub const AUDIT_SHOWN_MOST: usize = 200;

/// How long `berth status` and `berth approvals` wait for an answer.
pub const CLI_ANSWER: Duration = Duration::from_secs(15);
/// `berth approvals watch` opens its stream anew after so long, in case the server's machine has gone without a word.
pub const CLI_STREAM: Duration = Duration::from_secs(120);
/// Largest answer that they read.
pub const CLI_ANSWER_BYTES: u64 = 16 << 20;

/// Scoped tokens; a person with more of them has a script that forgets to revoke.
pub const TOKENS: usize = 1000;
/// Largest token store: that many tokens with long labels and lists take half of it.
pub const TOKEN_STORE_BYTES: u64 = 4 << 20;
/// Longest label of a token.
pub const TOKEN_LABEL_CHARS: usize = 200;
/// Workspaces that one token may name; more is no limit any more.
pub const TOKEN_WORKSPACES: usize = 100;
/// Longest life of a token that has an end: ten years; the other way is to leave it out.
pub const TOKEN_LIFETIME_SECS: u64 = 10 * 365 * 24 * 3600;
/// An expired token stays listed for so long, so that a person sees why something stopped working.
pub const EXPIRED_TOKEN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Two changes of a file may bear the same time within this (a kernel tick is at most 10 ms).
pub const CLOCK_TICK: Duration = Duration::from_millis(20);

/// Writes that may wait for approval at once; each holds a connection and its body.
pub const APPROVALS: usize = 128;
/// Those of one token, so that one confused agent leaves room for the others.
pub const APPROVALS_PER_TOKEN: usize = 16;
/// So often it is looked whether the clients of those that wait are still there, for who follows the feed.
pub const APPROVAL_LOOK: Duration = Duration::from_secs(1);
/// What of a body the person who approves is shown.
pub const APPROVAL_SUMMARY_CHARS: usize = 400;
/// Mounts of one container; each is an argument of its start.
pub const MOUNTS: usize = 32;
/// Longest source or target: the kernel's own limit (PATH_MAX) is as long, with the end of the text.
pub const MOUNT_PATH_BYTES: usize = 4095;
/// Largest mount allowlist; a person writes it.
pub const ALLOWLIST_BYTES: u64 = 1 << 20;
/// How long `ip` or `nft` may take; they ask the kernel one question.
pub const NETWORK_TOOL: Duration = Duration::from_secs(10);
/// What is kept of their output: a router's table of routes, and then some.
pub const NETWORK_OUTPUT_BYTES: usize = 1 << 20;
/// Default for `--idle-timeout`, in seconds.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Ten years, in seconds: never, for all purposes, and far from the clock's end.
pub const IDLE_TIMEOUT_MOST: u64 = 10 * 365 * 24 * 3600;

/// Longest name of an image: with what stands around it still a file's name.
pub const IMAGE_NAME_BYTES: usize = 128;
/// Entries of an image; a desktop with toolchains has some 500,000. Each costs an inode on disk.
pub const IMAGE_ENTRIES: u64 = 1_000_000;
/// Deepest folder of an image. Real ones reach 30; what reads a tree keeps a descriptor for each level.
pub const IMAGE_DEPTH: usize = 128;
/// Longest extended attribute: the kernel's own limit (xattr(7)).
pub const IMAGE_XATTR_BYTES: usize = 64 << 10;
/// What an image may unpack to: a desktop with toolchains takes 20 GiB.
pub const IMAGE_BYTES: u64 = 64 << 30;
/// What an archive may unpack to whatever its own size …
pub const IMAGE_RATIO_FREE: u64 = 256 << 20;
/// … and beyond that, how many times its own size. Root file systems shrink to a quarter; deflate cannot do better than
/// a thousandth, zstd and xz than a ten-thousandth.
pub const IMAGE_RATIO: u64 = 100;
/// Memory of a decoder for xz, in KiB: `xz -9` takes 65 MiB.
pub const IMAGE_DECODER_KIB: u32 = 256 << 10;
/// How often an import tells how far it is.
pub const IMAGE_TELL: Duration = Duration::from_millis(200);
/// Longest path in an archive, and longest target of a link: the kernel's own limit.
pub const IMAGE_PATH_BYTES: usize = 4095;
/// Longest extended header of a member, kept in memory: all its extended attributes stand there.
pub const IMAGE_HEADER_BYTES: usize = 1 << 20;
/// Extended attributes of a member.
pub const IMAGE_XATTRS: usize = 64;
/// Parts of a file with holes.
pub const IMAGE_PIECES: usize = 100_000;
/// Disk that an import leaves free: enough for everything else that berth writes.
pub const IMAGE_FREE_BYTES: u64 = 256 << 20;
/// Files that it leaves room for.
pub const IMAGE_FREE_FILES: u64 = 10_000;
/// Highest user and group id in a container, where 65536 are mapped; the kernel's `nobody`, 65534, is the stand-in for
/// any other.
pub const IMAGE_ID_MOST: u64 = 65535;
/// Layers of an image; Docker's own limit is 127.
pub const IMAGE_LAYERS: usize = 256;
/// Largest manifest or configuration of an image, as registries take them.
pub const IMAGE_MANIFEST_BYTES: u64 = 4 << 20;
/// Largest binary in a bundle; a debug build has some 100 MB.
pub const BUNDLE_BINARY_BYTES: u64 = 512 << 20;
/// Differences on either side that a verification tells.
pub const IMAGE_DIFFERENCES: usize = 20;
/// How long a removal waits for a reader that is about to let go: a child holds our descriptors until its execve(2).
pub const IMAGE_LET_GO: Duration = Duration::from_secs(2);
/// How often it is looked whether another process has made the image that one waits for; the kernel's locks of files
/// cannot be waited for together with a cancellation.
pub const IMAGE_LOOK: Duration = Duration::from_millis(50);
/// Default for `--max-proxied`: requests that wait for an OpenCode at once; further ones wait in a queue.
pub const PROXY_WORKERS: usize = 16;
/// That queue; as many as there can be connections by default.
pub const PROXY_QUEUE: usize = CONNECTIONS;
/// A proxied request that has waited for so long leaves its worker to others, and counts as a stream: OpenCode answers
/// most within milliseconds, and a prompt only when the model has said all.
pub const PROXY_SLOW: Duration = Duration::from_secs(1);
/// Largest proxied body, which is never held: pictures and documents travel inside of prompts.
pub const PROXY_BODY_BYTES: usize = 1 << 30;
/// An answer of an OpenCode up to this size is read whole, and its client's connection lives on.
pub const PROXY_WHOLE_BYTES: u64 = 64 << 10;
/// Default for `--opencode-timeout`: from a request's last byte to the head of its answer. Bun's fetch, and so the
/// OpenWork server, waits five minutes; a prompt with many tools may take longer.
pub const UPSTREAM_ANSWER: Duration = Duration::from_secs(600);
/// What getent says of one name: a line of some 50 bytes for every address and kind of socket.
pub const LOOKUP_OUTPUT_BYTES: usize = 16 << 10;
/// Of them, the best so many are tried; ureq has no room for more.
pub const LOOKUP_ADDRESSES: usize = 16;
/// From the first packet to a connection, and for a name's addresses.
pub const UPSTREAM_CONNECT: Duration = Duration::from_secs(5);
/// An upstream that keeps silent for so long within an answer is not there any more, or never will be.
pub const UPSTREAM_SILENCE: Duration = Duration::from_secs(3600);
/// A silent connection is asked whether its machine is still there after this, then three times in as long again.
pub const UPSTREAM_PROBE: Duration = Duration::from_secs(30);
/// A connection that lies unused is closed after this. OpenCode's own end comes later or is noticed.
pub const UPSTREAM_IDLE: Duration = Duration::from_secs(15);
/// Connections that lie unused, to all upstreams together.
pub const UPSTREAM_IDLE_CONNECTIONS: usize = 2 * PROXY_WORKERS;
/// What is read of an upstream at once, and the largest head of an answer.
pub const UPSTREAM_BUFFER_BYTES: usize = 32 << 10;
/// What of an OpenCode's complaint is repeated.
pub const UPSTREAM_COMPLAINT_BYTES: u64 = 16 << 10;
