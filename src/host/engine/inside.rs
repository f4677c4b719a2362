//! `berth relay SOCKET`: the first process of a container that an engine such as Docker runs for OpenCode. It
//! listens on a Unix socket in a mounted directory, starts OpenCode on the server's request, reports its exit, and
//! connects the server to OpenCode's port in the container. Therefore the container needs no published port and no
//! network.
//!
//! **Invariant:** the container ends with the server. One connection of the server is the lease. When it closes,
//! this process exits, and the kernel kills all processes of the container with their first process. Programs in
//! the container cannot kill or trace this process: it handles no signals, so the kernel drops signals from inside
//! (pid_namespaces(7)), and it is not dumpable (ptrace(2)).
//!
//! Threads: `reap` waits for exited processes; each connection has one thread, or two while it relays. Lock:
//! `run`, the current program, a leaf.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, set_dumpable_behavior, wait,
};

use super::wire::{
    DONE, FileIdentities, KILL, ProgramExit, ProgramSpec, ProgramStarted, RelayHello, TERMINATE, receive,
    send,
};
use crate::base::thread::{lock, spawn};
use crate::base::{At, Error, Result, limits};
use crate::proc::spawn::{dev_null, expose_other_to_oom};
use crate::proc::{Group, Process as _, Spec, Stdio};

/// Time limit for the server to take the lease. The server connects at once after the engine has reported the start
/// of the container, but a slow engine reports it late.
const LEASE: Duration = Duration::from_secs(20);
/// Maximum number of concurrent connections; the server keeps a few hundred at most.
const CONNECTIONS: usize = 1024;
/// Time limit for connecting to a port in the container.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time limit for killed processes to exit.
const DYING: Duration = Duration::from_secs(2);

/// State that all connections share.
struct RelayState {
    leased: AtomicBool,
    connections: AtomicUsize,
    outputs: Mutex<[Option<UnixStream>; 2]>,
    run: Mutex<Option<RelayProgram>>,
    changed: Condvar,
}

/// The program that was started on the server's request, and its exit status.
struct RelayProgram {
    pid: i32,
    status: Option<WaitStatus>,
}

/// Serves connections until the lease ends.
pub fn main(words: &[String]) -> ExitCode {
    match serve(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth relay: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(words: &[String]) -> Result<()> {
    // Refuse to run outside a container: this process kills every process that it can see.
    let [socket] = words else { return Err(Error::internal("this is for berth itself: berth relay SOCKET")) };
    if getpid() != Pid::INIT {
        return Err(Error::internal("it must be the first process of a container"));
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("set up", "the relay")?;
    let listener = UnixListener::bind(socket).at("listen on", socket)?;
    let inside = Arc::new(RelayState {
        leased: AtomicBool::new(false),
        connections: AtomicUsize::new(0),
        outputs: Mutex::default(),
        run: Mutex::new(None),
        changed: Condvar::new(),
    });
    spawn("lease".into(), limits::STACK, {
        let inside = inside.clone();
        move || {
            std::thread::sleep(LEASE);
            if !inside.leased.load(Ordering::Acquire) {
                std::process::exit(1);
            }
        }
    })?
    .detach();
    spawn("reap".into(), limits::STACK, {
        let inside = inside.clone();
        move || inside.reap()
    })?
    .detach();
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // No descriptor or memory is free until another connection ends.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        if inside.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
            inside.connections.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let shared = inside.clone();
        let serving = spawn("relay".into(), limits::STACK, move || {
            // An error on a connection affects only its peer.
            let _ = shared.answer(stream);
            shared.connections.fetch_sub(1, Ordering::AcqRel);
        });
        match serving {
            Ok(thread) => thread.detach(),
            Err(_) => drop(inside.connections.fetch_sub(1, Ordering::AcqRel)),
        }
    }
    Ok(())
}

impl RelayState {
    /// Reaps all ended processes, and records the exit status of the program.
    fn reap(&self) {
        loop {
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    // The starting thread holds the lock until it has recorded the PID.
                    if let Some(run) = lock(&self.run).as_mut().filter(|run| run.pid == pid.as_raw_pid()) {
                        run.status = Some(status);
                        self.changed.notify_all();
                    }
                }
                // This process has no children at the moment.
                Ok(None) | Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        match receive(&mut stream)? {
            RelayHello::Lease { look } => self.lease(stream, &look),
            RelayHello::Output { error } => {
                stream.write_all(&[DONE])?;
                lock(&self.outputs)[usize::from(error)] = Some(stream);
                Ok(())
            }
            RelayHello::Run(program) => self.run(stream, &program),
            RelayHello::Connect { port } => connect(stream, port),
        }
    }

    /// Holds the lease until the server disconnects, then exits; a second lease is closed at once.
    fn lease(&self, mut stream: UnixStream, look: &[String]) -> io::Result<()> {
        if self.leased.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let found = look.iter().map(|path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino())));
        send(&mut stream, &FileIdentities { found: found.collect() })?;
        while stream.read(&mut [0]).is_ok_and(|count| count > 0) {}
        std::process::exit(0)
    }

    /// Starts a program, and watches it until it exits.
    fn run(&self, mut stream: UnixStream, program: &ProgramSpec) -> io::Result<()> {
        let before = oom_kills();
        let started = self.start(program);
        let child = match started {
            Ok(child) => child,
            Err(error) => return send(&mut stream, &ProgramStarted::Failed { message: error.to_string() }),
        };
        let namespace = fs::metadata("/proc/self/ns/pid")?.ino();
        send(&mut stream, &ProgramStarted::Running { pid: child.pid(), namespace })?;
        let over = self.watch(&mut stream, &child);
        // The program's children, such as MCP servers, must not outlive it.
        kill_all();
        *lock(&self.run) = None;
        send(&mut stream, &ProgramExit { oom: oom_kills() > before, ..over })
    }

    fn start(&self, program: &ProgramSpec) -> Result<crate::proc::Child> {
        let mut outputs = std::mem::take(&mut *lock(&self.outputs)).map(|stream| stream.map(OwnedFd::from));
        let stdio = Stdio {
            stdin: dev_null()?,
            stdout: outputs[0].take().map_or_else(dev_null, Ok)?,
            stderr: outputs[1].take().map_or_else(dev_null, Ok)?,
        };
        let spec = Spec::bare(&program.path, &program.cwd).args(program.args.clone()).envs(&program.env);
        let mut run = lock(&self.run);
        if run.is_some() {
            return Err(Error::internal("another program runs in this container"));
        }
        let child = spec.start(stdio, Group::placeholder())?;
        *run = Some(RelayProgram { pid: child.pid(), status: None });
        // At the container's memory limit, the OOM killer should kill the program before this process.
        expose_other_to_oom(child.pid(), || true);
        Ok(child)
    }

    /// Waits for the program's exit, and executes the server's signal requests until then.
    fn watch(&self, stream: &mut UnixStream, child: &crate::proc::Child) -> ProgramExit {
        let mut heard = true;
        loop {
            let done = PollFd::from_borrowed_fd(child.exit_fd(), PollFlags::IN);
            let from = PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN);
            let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            let mut fds = [done, from];
            if poll(if heard { &mut fds } else { &mut fds[..1] }, None).is_err() {
                continue;
            }
            if ready(&fds[0]) {
                break;
            }
            if heard && ready(&fds[1]) {
                let mut word = [0];
                match stream.read(&mut word) {
                    Ok(1) if word == [TERMINATE] => signal_all(Signal::TERM),
                    Ok(1) if word == [KILL] => kill_all(),
                    Ok(1) => {}
                    Ok(_) | Err(_) => {
                        kill_all();
                        heard = false;
                    }
                }
            }
        }
        let deadline = Instant::now() + PATIENCE;
        let mut run = lock(&self.run);
        loop {
            let status = run.as_ref().and_then(|run| run.status);
            let left = deadline.saturating_duration_since(Instant::now());
            if status.is_some() || left.is_zero() {
                let code = status.and_then(|status| status.exit_status());
                let signal = status.and_then(|status| status.terminating_signal());
                return ProgramExit { code, signal, oom: false };
            }
            run = self.changed.wait_timeout(run, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Returns all processes of the container except this one, which has PID 1.
fn others() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|number| *number > 1).filter_map(Pid::from_raw).collect()
}

fn signal_all(signal: Signal) {
    for pid in others() {
        let _ = kill_process(pid, signal);
    }
}

/// Kills all other processes; repeats this until none is left, because processes may fork meanwhile.
fn kill_all() {
    let deadline = Instant::now() + DYING;
    loop {
        let all = others();
        if all.is_empty() || Instant::now() >= deadline {
            return;
        }
        for pid in all {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Returns the number of OOM kills in the container, as counted by cgroup v2 or v1.
fn oom_kills() -> u64 {
    let files = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];
    let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Relays data between the server and a port in the container.
fn connect(mut stream: UnixStream, port: u16) -> io::Result<()> {
    let v4 = TcpStream::connect_timeout(&(std::net::Ipv4Addr::LOCALHOST, port).into(), PATIENCE);
    let tcp =
        v4.or_else(|_| TcpStream::connect_timeout(&(std::net::Ipv6Addr::LOCALHOST, port).into(), PATIENCE))?;
    tcp.set_nodelay(true)?;
    stream.write_all(&[DONE])?;
    let (from_tcp, to_stream) = (tcp.try_clone()?, stream.try_clone()?);
    let back = spawn("relay-back".into(), limits::STACK, move || {
        pass(&from_tcp, &to_stream);
        // Close both directions, because data from the server can no longer be delivered.
        let _ = to_stream.shutdown(Shutdown::Both);
    });
    let back = back.map_err(|error| io::Error::other(error.to_string()))?;
    pass(&stream, &tcp);
    // The server always closes both directions of a connection at once.
    let _ = tcp.shutdown(Shutdown::Both);
    drop(back);
    Ok(())
}

/// Copies data until EOF or an error.
fn pass(mut from: impl Read, mut to: impl Write) {
    let mut bytes = vec![0; limits::RELAY_BYTES];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) if to.write_all(&bytes[..count]).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
