//! Runs OpenCode in a container of an engine: Docker's command line, which other engines support too, or Apple's.
//! The server stays outside the container. The container runs one process of berth (`inside`), which starts
//! OpenCode and connects it to the server over a Unix socket in a mounted directory, so the engine publishes no
//! port. In reading order: `arguments` (the container's command line), `command` (other calls of the engine),
//! `wire` (the protocol of the socket), `inside`; `seed` is a container in which the server runs too.
//!
//! **Invariant:** a container ends with the server that started it. The server opens the socket's file before any
//! other program runs in the container, and from then on connects through that descriptor, so no program in the
//! container can replace the socket.
//!
//! Threads: the supervisor's, and any thread for [`UpstreamRoute::connect`]. Lock: `running`, a leaf.

mod arguments;
mod command;
pub mod inside;
mod record;
mod seed;
mod wire;

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub use arguments::{
    EXTRA, EngineMount, EnginePlan, HOME, SandboxNetwork, SandboxPull, can_be_named, container_name,
};
pub use command::{EngineCommand, EngineFacts, EngineKind};
pub use record::{SECRETS, SEED, forget, is_kept as is_left, keep, sweep};
pub use seed::ServerContainer;

use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result};
use crate::lifecycle::sandbox::FOLDER;
use crate::opencode::managed::UpstreamRoute;
use crate::proc::spawn::open_dir;
use crate::proc::{Cancel, Cgroups, Exit, Process, SignalHandle, Usage};
use crate::store::file;
use arguments::SOCKET;
use wire::{DONE, FileIdentities, KILL, ProgramExit, ProgramSpec, ProgramStarted, RelayHello, TERMINATE};

/// Time limit between the engine's start of a container and the first response of berth's process in it.
const READY: Duration = Duration::from_secs(60);
/// Interval at which the server looks for the socket, and (`ASK`) at which it asks the engine whether the
/// container is still running.
const LOOK: Duration = Duration::from_millis(10);
const ASK: Duration = Duration::from_secs(2);
/// Time limit for a response of berth's process in the container.
const ANSWER: Duration = Duration::from_secs(20);

/// The container in which this server's OpenCode runs.
pub struct EngineSandbox {
    plan: EnginePlan,
    cgroups: Cgroups,
    /// Directory below the data directory for the socket and the record of the container.
    folder: PathBuf,
    /// Path of berth's program, in a form that the engine can mount.
    own: PathBuf,
    /// Time limit for the start of the container, including the image pull.
    start_timeout: Duration,
    running: Mutex<Option<LeasedContainer>>,
}

/// A running container with its lease.
struct LeasedContainer {
    /// The lease: the container ends when this connection closes, and the connection closes when the container
    /// ends.
    lease: Arc<UnixStream>,
    door: Arc<ControlSocket>,
}

/// The opened file of the container's socket.
struct ControlSocket(OwnedFd);

/// A program that was started in the container.
pub(super) struct StartedProgram {
    pub(super) process: EngineProcess,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// PID of the program on the host; `None` if the host cannot see the process.
    pub(super) pid: Option<i32>,
}

/// A program in the container, which the server controls through a connection.
pub(super) struct EngineProcess {
    wire: RemoteControl,
    read: Vec<u8>,
    over: Option<ProgramExit>,
}

/// A handle to end a program in the container from any thread.
#[derive(Clone)]
pub(in crate::host) struct RemoteControl(Arc<UnixStream>);

impl EngineSandbox {
    /// Creates the object; [`EngineSandbox::prepare`] starts the container.
    pub fn new(
        plan: EnginePlan,
        cgroups: Cgroups,
        folder: PathBuf,
        own: PathBuf,
        start_timeout: Duration,
    ) -> EngineSandbox {
        EngineSandbox { plan, cgroups, folder, own, start_timeout, running: Mutex::new(None) }
    }

    /// Starts the container if it is not running, and returns the route to its ports.
    ///
    /// # Errors
    /// Errors of the engine; `Cancelled` when the server is shutting down.
    pub(super) fn prepare(&self, stop: &Cancel) -> Result<Arc<dyn UpstreamRoute>> {
        if let Some(held) = lock(&self.running).as_ref() {
            return Ok(held.door.clone());
        }
        self.plan.clear(&self.cgroups)?;
        record::forget(&self.folder);
        let door = self.folders()?;
        record::keep(&self.folder, &self.plan)?;
        let words = self.plan.words(&self.own, &door);
        // Docker's client may wait forever for a container that Podman could not start, so a start without a
        // download has a shorter time limit.
        let patience = match self.plan.pull {
            SandboxPull::Never => READY.min(self.start_timeout),
            SandboxPull::Missing | SandboxPull::Always => self.start_timeout,
        };
        if let Err(error) = self.plan.command.call(&words, &self.cgroups, patience, stop) {
            record::forget(&self.folder);
            return Err(self.plan.explain(error));
        }
        let held = self.take_lease(&door, stop).inspect_err(|_| self.remove())?;
        let route = held.door.clone();
        *lock(&self.running) = Some(held);
        Ok(route)
    }

    /// Creates the directories to mount, and returns that of the socket, which is new for each container.
    fn folders(&self) -> Result<PathBuf> {
        let door = self.folder.join(record::DOOR);
        if let Some(folder) = self.own.parent().filter(|_| self.plan.command.kind == EngineKind::Apple) {
            // Apple's engine mounts the directory, and the container's user must find the program in it. Other
            // users of this machine cannot reach the directory.
            rustix::fs::chmod(folder, Mode::from_raw_mode(0o711)).at("open to the sandbox's user", folder)?;
        }
        for folder in [&door, &self.plan.persist] {
            file::create_dir_private(folder)?;
            self.plan.give(folder)?;
        }
        Ok(door)
    }

    /// Waits for berth's process in the container, takes the lease, and checks that the mounts are the validated
    /// files.
    fn take_lease(&self, folder: &std::path::Path, stop: &Cancel) -> Result<LeasedContainer> {
        let (begun, mut asked) = (Instant::now(), Instant::now());
        let at = open_dir(folder)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = loop {
            match openat(&at, SOCKET, flags, Mode::empty()) {
                Ok(socket) => break socket,
                Err(_) if stop.is_cancelled() => {
                    return Err(Error::new(Code::Cancelled, "The server is shutting down"));
                }
                Err(_) => {}
            }
            let ended = asked.elapsed() >= ASK && {
                asked = Instant::now();
                self.plan.command.kind == EngineKind::Docker
                    && self
                        .plan
                        .command
                        .labelled(&self.plan.label(), &self.cgroups)
                        .is_ok_and(|all| all.is_empty())
            };
            if ended || begun.elapsed() >= READY {
                let name = &self.plan.name;
                return Err(Error::new(
                    Code::Unavailable,
                    format!(
                        "The container {name} does not run berth's program; --sandbox-image may be for another architecture"
                    ),
                ));
            }
            std::thread::sleep(LOOK);
        };
        let stat = fstat(&socket).at("look at", SOCKET)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return Err(Error::internal("the container created no socket"));
        }
        let door = Arc::new(ControlSocket(socket));
        let mut lease = door.open().at("connect to", "the container")?;
        let checked: BTreeMap<&str, (u64, u64)> = self.checked().collect();
        let look = checked.keys().map(|path| (*path).to_owned()).collect();
        let files: FileIdentities =
            ask(&mut lease, &RelayHello::Lease { look }).at("ask", "the container")?;
        for ((target, identity), found) in checked.iter().zip(files.found) {
            if found != Some(*identity) {
                let message = format!(
                    "{target} in the container is not the file that was checked: its source was replaced, or the engine has other files"
                );
                return Err(Error::new(Code::MountNotAllowed, message));
            }
        }
        lease.set_read_timeout(None).at("prepare", "the container's socket")?;
        Ok(LeasedContainer { lease: Arc::new(lease), door })
    }

    /// Returns the mounts whose files must be identical inside. A virtual machine has its own inode numbers, so
    /// none are checked with Apple's engine.
    fn checked(&self) -> impl Iterator<Item = (&str, (u64, u64))> {
        let all = [&self.plan.workspace, &self.plan.program].into_iter().chain(&self.plan.mounts);
        let all = all.filter(|_| self.plan.command.kind == EngineKind::Docker);
        all.map(|mount| (mount.target.as_str(), mount.identity))
    }

    /// Starts OpenCode in the container.
    ///
    /// # Errors
    /// When the container has ended or cannot start the program.
    pub(super) fn launch(&self, args: Vec<String>, env: Vec<(String, String)>) -> Result<StartedProgram> {
        let door = lock(&self.running).as_ref().map(|held| held.door.clone());
        let door = door.ok_or_else(|| Error::internal("The sandbox's container is not running"))?;
        let path = self.plan.program_inside();
        let program = ProgramSpec { path, args, env, cwd: FOLDER.to_owned() };
        let start = || {
            let (stdout, stderr) = (door.output(false)?, door.output(true)?);
            let mut control = door.open()?;
            let started: ProgramStarted = ask(&mut control, &RelayHello::Run(program))?;
            control.set_nonblocking(true)?;
            Ok((stdout, stderr, control, started))
        };
        let started: io::Result<_> = start();
        let (stdout, stderr, control, started) = started.at("start OpenCode in", "the container")?;
        match started {
            ProgramStarted::Failed { message } => Err(Error::new(Code::SpawnFailed, message)),
            ProgramStarted::Running { pid, namespace } => {
                let process =
                    EngineProcess { wire: RemoteControl(Arc::new(control)), read: Vec::new(), over: None };
                let (stdout, stderr) = (stdout.into(), stderr.into());
                Ok(StartedProgram { process, stdout, stderr, pid: pid_outside(pid, namespace) })
            }
        }
    }

    /// Returns a socket that becomes readable when the container has ended; `None` if the container is not
    /// running.
    pub(super) fn lease(&self) -> Option<Arc<UnixStream>> {
        lock(&self.running).as_ref().map(|held| held.lease.clone())
    }

    /// Returns whether a user stopped the container through its engine. If the engine does not respond either, the
    /// container ended with the engine and can be started again.
    pub(super) fn was_stopped(&self) -> bool {
        let ended = |held: &LeasedContainer| {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut fds = [PollFd::new(&*held.lease, PollFlags::IN)];
            poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
        };
        {
            let mut held = lock(&self.running);
            if !held.as_ref().is_some_and(ended) {
                return false;
            }
            *held = None;
        }
        self.plan.command.facts(&self.cgroups).is_ok()
    }

    /// Kills and removes the container.
    pub(super) fn end(&self) {
        *lock(&self.running) = None;
        self.remove();
    }

    fn remove(&self) {
        let command = &self.plan.command;
        let removed = match command.kind {
            EngineKind::Docker => self.plan.clear(&self.cgroups),
            // Without a record, the container of this name was not started by this server.
            EngineKind::Apple if record::is_kept(&self.folder) => {
                command.stop(&self.plan.name, &self.cgroups)
            }
            EngineKind::Apple => Ok(()),
        };
        match removed {
            Ok(()) => record::forget(&self.folder),
            Err(error) => log::warn!("The container {} may still exist: {error}", self.plan.name),
        }
    }
}

impl ControlSocket {
    /// Opens a connection through the descriptor: the path of the socket may be too long for an address, and the
    /// path of the descriptor is short and always refers to the opened socket.
    fn open(&self) -> io::Result<UnixStream> {
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(stream)
    }

    fn output(&self, error: bool) -> io::Result<UnixStream> {
        let mut stream = self.open()?;
        wire::send(&mut stream, &RelayHello::Output { error })?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer == [DONE] { Ok(stream) } else { Err(io::Error::other("unexpected response")) }
    }
}

impl UpstreamRoute for ControlSocket {
    fn connect(&self, port: u16) -> io::Result<UnixStream> {
        // Connect without blocking: the backlog of a paused container may be full.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()))?;
        rustix::net::connect(&socket, &address)?;
        let mut stream = UnixStream::from(socket);
        wire::send(&mut stream, &RelayHello::Connect { port })?;
        Ok(stream)
    }

    fn is_connected(&self, answer: u8) -> bool {
        answer == DONE
    }
}

fn ask<T: serde::de::DeserializeOwned>(stream: &mut UnixStream, hello: &RelayHello) -> io::Result<T> {
    wire::send(stream, hello)?;
    wire::receive(stream)
}

/// Returns the PID on this host of the process that has PID `pid` in the PID namespace with this inode.
fn pid_outside(pid: i32, namespace: u64) -> Option<i32> {
    let name = format!("pid:[{namespace}]");
    let numbers = std::fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.find(|number| {
        let same = std::fs::read_link(format!("/proc/{number}/ns/pid"))
            .is_ok_and(|link| link.as_os_str() == name.as_str());
        same && {
            let status = std::fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
            let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            ids.and_then(|ids| ids.split_whitespace().next_back()?.parse().ok()) == Some(pid)
        }
    })
}

impl EngineProcess {
    pub(super) fn control(&self) -> RemoteControl {
        self.wire.clone()
    }
}

impl RemoteControl {
    pub(super) fn terminate(&self) {
        let _ = (&*self.0).write_all(&[TERMINATE]);
    }

    pub(super) fn kill(&self) {
        let _ = (&*self.0).write_all(&[KILL]);
    }
}

impl Process for EngineProcess {
    fn exit_fd(&self) -> BorrowedFd<'_> {
        self.wire.0.as_fd()
    }

    fn try_exit(&mut self) -> Result<Option<Exit>> {
        let mut bytes = [0; 4096];
        loop {
            match wire::take(&mut self.read) {
                Ok(Some(over)) => self.over = Some(over),
                Ok(None) => {}
                Err(error) => return Err(Error::internal("the container's answer").with_source(error)),
            }
            match self.over {
                Some(ProgramExit { code: Some(code), .. }) => return Ok(Some(Exit::Code(code))),
                Some(ProgramExit { signal, .. }) => {
                    return Ok(Some(Exit::Signal(signal.unwrap_or(libc::SIGKILL))));
                }
                None => {}
            }
            match (&*self.wire.0).read(&mut bytes) {
                Ok(0) => return Err(Error::internal("its container ended")),
                Ok(count) => self.read.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Error::internal("its container ended")),
            }
        }
    }

    fn terminate(&mut self) {
        self.wire.terminate();
    }

    fn kill(&mut self) {
        self.wire.kill();
    }

    /// Returns `None`: the server cannot identify the process on this host with certainty.
    fn signal_handle(&self) -> Option<SignalHandle> {
        None
    }

    fn usage(&self) -> Usage {
        Usage { oom_killed: self.over.map(|over| over.oom), ..Usage::default() }
    }
}
