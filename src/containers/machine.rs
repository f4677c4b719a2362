//! One container that may be running: started on first use by nspawn, with the agent as PID 1, ended as a whole.
//! Whatever comes from inside is untrusted; what must be certain (its end, a run's end) is done from outside
//! through cgroups and pidfds.
//!
//! Threads: `container-N` owns the nspawn process while the container runs. Locks: `state` may be held while the
//! container starts (about 0.1 s, at most [`limits::CONTAINER_START`]); `spares` and `place` are leaves.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt,
};
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, pidfd_open, pidfd_send_signal};

use super::inside::{has_ended, make_expendable, parent_of, pidfd_pid, uid_base};
use super::protocol::{self, Answer, Answers, Start};
use super::tools;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::spawn::{dev_null, open_dir, pipe};
use crate::proc::{
    Cancel, Capture, Cgroups, Command, Current, Exit, Group, Io, Launcher, Limits, Process, Pty, Reach, Spec,
    Stdio, Usage, pump,
};
use crate::store::beneath::Root;

/// Everything that a container's start needs to know.
#[derive(Clone, Debug)]
pub struct Place {
    /// Short and unique among all containers of the machine: `--machine=`.
    pub machine: String,
    /// What `hostname` says inside.
    pub host_name: String,
    /// The folder with its files.
    pub root: PathBuf,
    /// Where its socket and our copy of resolv.conf lie; outside the root.
    pub runtime: PathBuf,
    /// The agent's binary.
    pub agent: PathBuf,
    /// No network but its own loopback.
    pub private_network: bool,
    /// What everything in it may use together.
    pub limits: Limits,
}

/// A container. Cheap while it is stopped.
#[derive(Debug)]
pub struct Machine {
    /// Never changes, unlike the rest of the place.
    name: String,
    place: Mutex<Place>,
    cgroups: Cgroups,
    state: Mutex<Option<Arc<Running>>>,
    sequence: AtomicU64,
    refill: crossbeam_channel::Sender<std::sync::Weak<Machine>>,
}

#[derive(Debug)]
struct Running {
    stop: Cancel,
    ended: Arc<AtomicBool>,
    runtime: OwnedFd,
    group: Group,
    /// The first uid of the container on the host.
    uid_base: u32,
    /// PID 1 of the container.
    init: OwnedFd,
    spares: Mutex<Vec<Spare>>,
    /// Something in it was killed for want of memory: v1 counts that for the innermost group alone.
    oom_killed: AtomicBool,
    owner: Mutex<Option<JoinOnDrop>>,
}

/// A process in the container that waits for its command, in a group of its own.
#[derive(Debug)]
struct Spare {
    socket: OwnedFd,
    pid: i32,
    pidfd: OwnedFd,
    group: Group,
}

const SOCKET: &str = "agent.sock";

impl Machine {
    pub(super) fn new(
        place: Place,
        cgroups: Cgroups,
        refill: crossbeam_channel::Sender<std::sync::Weak<Machine>>,
    ) -> Arc<Machine> {
        let name = place.machine.clone();
        let place = Mutex::new(place);
        Arc::new(Machine {
            name,
            place,
            cgroups,
            state: Mutex::new(None),
            sequence: AtomicU64::new(0),
            refill,
        })
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        lock(&self.state).as_ref().is_some_and(|running| !running.ended.load(Ordering::Acquire))
    }

    /// What holds from its next start on.
    pub(super) fn set_place(&self, place: Place) {
        *lock(&self.place) = place;
    }

    /// What it uses, now and since its start, if it runs.
    pub(super) fn usage(&self) -> Option<(Current, Usage)> {
        let running = lock(&self.state).clone()?;
        let mut usage = running.group.usage();
        usage.oom_killed =
            usage.oom_killed.map(|killed| killed || running.oom_killed.load(Ordering::Relaxed));
        Some((running.group.current(), usage))
    }

    /// Puts other limits on what runs.
    pub(super) fn rebound(&self, limits: &Limits) -> Result<()> {
        match lock(&self.state).clone() {
            Some(running) if !running.ended.load(Ordering::Acquire) => running.group.rebound(limits),
            _ => Ok(()),
        }
    }

    /// Ends everything inside and returns when it is over. Harmless when it is stopped.
    pub fn stop(&self) {
        let running = lock(&self.state).take();
        if let Some(running) = running {
            running.end();
        }
    }

    /// The running container, started if need be.
    fn running(&self) -> Result<Arc<Running>> {
        let mut state = lock(&self.state);
        if let Some(running) = state.as_ref() {
            if !running.ended.load(Ordering::Acquire) && !has_ended(running.init.as_fd()) {
                return Ok(running.clone());
            }
            running.end();
            *state = None;
        }
        let running = Arc::new(self.start()?);
        *state = Some(running.clone());
        Ok(running)
    }

    fn start(&self) -> Result<Running> {
        let place = &lock(&self.place).clone();
        let nspawn = tools::require("systemd-nspawn")?;
        let unshare = tools::require("unshare")?;
        let mut group = self.cgroups.group(&place.machine)?;
        // What a crashed predecessor may have left under this name.
        group.kill(None)?;
        // For all that is made in it; nspawn's start enters its folders in v1 hierarchies.
        group.hold(&place.limits)?;

        std::fs::create_dir_all("/run/systemd/nspawn").at("make", "/run/systemd/nspawn")?;
        let resolv_conf = place.runtime.join("resolv.conf");
        let servers = std::fs::read("/etc/resolv.conf").unwrap_or_default();
        crate::store::file::write_atomic(&resolv_conf, &servers, 0o644)?;
        let runtime = open_dir(&place.runtime)?;
        let listener = listen_in(&runtime)?;

        let (output, output_child) = pipe()?;
        let output_child2 = output_child.try_clone().at("duplicate", "a pipe")?;
        let child_group = self.cgroups.group(&format!("{}/machine", place.machine))?;
        // For a root without systemd nspawn assumes v1, and on a host of v2 alone it would mount a v1 hierarchy, which
        // then shows in every process of the host.
        let unified = ("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY".to_owned(), "1".to_owned());
        let child = Spec::new(unshare)
            .args(nspawn_args(place, &nspawn, &resolv_conf))
            .envs(self.cgroups.only_v2().then_some(&unified))
            .start(Stdio { stdin: listener, stdout: output_child, stderr: output_child2 }, child_group)?;

        let stop = Cancel::new()?;
        let ended = Arc::new(AtomicBool::new(false));
        let printed = Arc::new(Mutex::new(String::new()));
        let owner = {
            let (stop, ended, printed) = (stop.clone(), ended.clone(), printed.clone());
            let empty = dev_null()?;
            let all = self.cgroups.group(&self.name)?;
            spawn(format!("container-{}", place.machine), limits::STACK, move || {
                own(child, output, empty, &stop, &printed);
                // nspawn may have been killed alone: what it leaves is nobody's, and whoever waits for it must hear.
                if let Err(error) = all.kill(None) {
                    log::error!("container: {error}");
                }
                ended.store(true, Ordering::Release);
            })?
        };

        let deadline = Instant::now() + limits::CONTAINER_START;
        let first = loop {
            match self.spare(&runtime, &group, deadline) {
                Ok(spare) => break spare,
                Err(error) if ended.load(Ordering::Acquire) || Instant::now() >= deadline => {
                    stop.cancel();
                    drop(owner);
                    let _ = group.kill(None);
                    let printed = lock(&printed).trim().to_owned();
                    return Err(Error::new(
                        Code::ContainerStopped,
                        format!(
                            "The container could not be started: {}",
                            if printed.is_empty() { error.message() } else { &printed }
                        ),
                    ));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let init = parent_of(first.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let uid_base = uid_base(first.pid);
        let (Some(init), Some(uid_base)) = (init, uid_base) else {
            stop.cancel();
            drop(owner);
            return Err(Error::new(Code::ContainerStopped, "The container stopped while it started"));
        };
        for process in [init.as_fd(), first.pidfd.as_fd()] {
            make_expendable(process);
        }
        log::debug!("container {} started, uids {uid_base}+65536", place.machine);
        Ok(Running {
            stop,
            ended,
            runtime,
            group,
            uid_base,
            init,
            spares: Mutex::new(vec![first]),
            oom_killed: AtomicBool::new(false),
            owner: Mutex::new(Some(owner)),
        })
    }

    /// Has the agent fork a process and puts it into a group of its own.
    fn spare(&self, runtime: &OwnedFd, machine: &Group, deadline: Instant) -> Result<Spare> {
        let refused =
            |_| Error::new(Code::ContainerStopped, "The container's agent does not take connections");
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .at("open", "a socket")?;
        sockopt::set_socket_passcred(&socket, true).at("prepare", "a socket")?;
        connect(&socket, &address_in(runtime)?).map_err(refused)?;
        let pid = protocol::receive_ready(&socket, deadline)?;
        let gone =
            || Error::new(Code::ContainerStopped, "A process of the container ended before it was used");
        let pidfd =
            pidfd_open(Pid::from_raw(pid).ok_or_else(gone)?, PidfdFlags::empty()).map_err(|_| gone())?;
        // The pid came from inside: only one that the kernel counts to this container is moved.
        if !machine.contains(pid) || has_ended(pidfd.as_fd()) {
            return Err(gone());
        }
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut group = self.cgroups.group(&format!("{}/runs/{number}", self.name))?;
        group.account()?;
        group.add(pid)?;
        Ok(Spare { socket, pid, pidfd, group })
    }

    /// Makes processes until enough wait; the `container-spares` thread calls it.
    pub(super) fn refill(&self) {
        let Some(running) = lock(&self.state).clone() else { return };
        while lock(&running.spares).len() < limits::SPARE_PROCESSES && !running.ended.load(Ordering::Acquire)
        {
            match self.spare(&running.runtime, &running.group, Instant::now() + limits::AGENT_ANSWER) {
                Ok(spare) => lock(&running.spares).push(spare),
                Err(_) => return,
            }
        }
    }

    /// Tries something again that only a container on its way out refuses: with another process, since someone inside
    /// may have killed the first, and in the end with another container.
    fn insist<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        const TRIES: u32 = 4;
        for _ in 1..TRIES {
            match attempt() {
                Err(error) if error.code() == Code::ContainerStopped => {}
                done => return done,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop();
        attempt()
    }

    fn open_terminal(&self) -> Result<Pty> {
        let running = self.running()?;
        let gone =
            || Error::new(Code::ContainerStopped, "The container stopped; the next command starts it again");
        let init = pidfd_pid(running.init.as_fd()).ok_or_else(gone)?;
        let root = Root::open(Path::new(&format!("/proc/{init}/root"))).map_err(|_| gone())?;
        let master = root.open_ptmx();
        // It still lives, so the number was its own when the folder was opened; and a dying one has nothing mounted.
        if has_ended(running.init.as_fd()) {
            return Err(gone());
        }
        let pty = Pty::of(master?)?;
        // It was made by our own root, who is nobody inside: `su`, `mesg` and opening /dev/tty anew need an owner.
        let root_inside = (Uid::from_raw(running.uid_base), Gid::from_raw(running.uid_base));
        rustix::fs::fchown(&pty.slave, Some(root_inside.0), Some(root_inside.1))
            .at("give away", "a terminal")?;
        Ok(pty)
    }

    fn begin(self: &Arc<Self>, command: &Command, stdio: &Stdio) -> Result<ContainerProcess> {
        let running = self.running()?;
        let deadline = Instant::now() + limits::AGENT_ANSWER;
        let mut spare = None;
        while let Some(candidate) = lock(&running.spares).pop() {
            // Someone inside may have stopped or killed it meanwhile.
            let _ = pidfd_send_signal(&candidate.pidfd, Signal::CONT);
            if !has_ended(candidate.pidfd.as_fd()) {
                spare = Some(candidate);
                break;
            }
        }
        let mut spare = match spare {
            Some(spare) => spare,
            None => self.spare(&running.runtime, &running.group, deadline)?,
        };
        if let Some(limits) = command.limits.filter(|limits| !limits.is_empty()) {
            self.cgroups.confine(&mut spare.group, &limits)?;
            spare.group.add_to_limits(spare.pid)?;
        }
        // Full: a refill of some container is on its way anyway.
        let _ = self.refill.try_send(Arc::downgrade(self));

        // Otherwise `echo x >/dev/stderr` fails inside.
        let outside = |id: u32| running.uid_base.saturating_add(id);
        let (uid, gid) = command.user.as_ref().map_or((0, 0), |user| (user.uid, user.gid));
        stdio.give_to(Uid::from_raw(outside(uid)), Gid::from_raw(outside(gid)), command.tty);
        let text = |c: &std::ffi::CString| c.to_string_lossy().into_owned();
        let mut env: Vec<String> = command.env.iter().map(text).collect();
        env.extend(spare.group.mark().as_ref().map(text));
        let start = Start {
            attempts: command.attempts.iter().map(|argv| argv.iter().map(text).collect()).collect(),
            env,
            cwd: command.cwd.clone(),
            tty: command.tty,
            user: command.user.clone(),
        };
        let fds = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
        protocol::send_message(&spare.socket, &start, &fds, deadline)?;
        let mut answers = Answers::default();
        protocol::receive_accepted(&spare.socket, &mut answers, deadline, |answer| {
            refused(&answer, &command.cwd)
        })?;
        let Spare { socket, pid, pidfd, group } = spare;
        let reach = Reach { pid, pidfd: Arc::new(pidfd), group: Arc::new(group) };
        Ok(ContainerProcess { running, socket, reach, answers, exit: None, cwd: command.cwd.clone() })
    }
}

impl Launcher for Arc<Machine> {
    fn launch(&self, _id: &str, command: &Command, stdio: Stdio) -> Result<Box<dyn Process>> {
        // As long as the command has not been accepted, nothing of it has run.
        self.insist(|| Ok(Box::new(self.begin(command, &stdio)?) as Box<dyn Process>))
    }

    fn terminal(&self) -> Result<Pty> {
        self.insist(|| self.open_terminal())
    }

    fn file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let root = lock(&self.place).root.clone();
        Root::open(&root)?.read(path.trim_start_matches('/'), max_bytes)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    fn end(&self) {
        self.stop.cancel();
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
        if let Err(error) = self.group.kill(None) {
            log::error!("container: {error}");
        }
        lock(&self.spares).clear();
        let owner = lock(&self.owner).take();
        drop(owner);
    }
}

/// The owner thread: drains what nspawn prints and waits for its end.
fn own(
    mut child: crate::proc::Child,
    output: OwnedFd,
    empty: OwnedFd,
    stop: &Cancel,
    printed: &Mutex<String>,
) {
    let mut kept = Capture::new(8 << 10);
    let mut nothing = Capture::new(0);
    let io = Io { stdin: None, stdout: output, stderr: empty, out: &mut kept, err: &mut nothing };
    // A container has no deadline of its own: it runs until it is stopped.
    let forever = Duration::from_secs(u64::from(u32::MAX));
    let ended = pump(&mut child, io, forever, stop);
    *lock(printed) = kept.finish().into_text();
    log::debug!("nspawn ended: {ended:?}");
}

/// A command in a container.
struct ContainerProcess {
    running: Arc<Running>,
    socket: OwnedFd,
    reach: Reach,
    answers: Answers,
    exit: Option<Exit>,
    cwd: String,
}

impl Process for ContainerProcess {
    fn done_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn try_exit(&mut self) -> Result<Option<Exit>> {
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        match self.answers.next(&self.socket)? {
            None | Some(Answer::Ready | Answer::Accepted) => {}
            Some(Answer::Exited { code }) => self.exit = Some(Exit::Code(code & 0xff)),
            Some(Answer::Killed { signal }) => self.exit = Some(Exit::Signal(signal)),
            Some(answer) => return Err(refused(&answer, &self.cwd)),
        }
        Ok(self.exit)
    }

    fn terminate(&mut self) {
        self.reach.group.signal(Signal::TERM, Some(self.reach.pid));
    }

    fn kill(&mut self) {
        let _ = pidfd_send_signal(&*self.reach.pidfd, Signal::KILL);
        if let Err(error) = self.reach.group.kill(Some(self.reach.pid)) {
            // Nothing of a run may live on: then nothing of its container does.
            log::error!("a run could not be ended, so its container is: {error}");
            self.running.end();
        }
        self.exit.get_or_insert(Exit::Signal(libc::SIGKILL));
    }

    fn reach(&self) -> Reach {
        self.reach.clone()
    }

    fn usage(&self) -> Usage {
        let usage = self.reach.group.usage();
        if usage.oom_killed == Some(true) {
            self.running.oom_killed.store(true, Ordering::Relaxed);
        }
        usage
    }
}

/// What an answer says that is no status: the command has not run.
fn refused(answer: &Answer, cwd: &str) -> Error {
    let reason = |errno: &i32| std::io::Error::from_raw_os_error(*errno);
    match answer {
        Answer::NoCwd { errno } => Error::new(
            Code::InvalidCwd,
            format!("The working directory {cwd} cannot be entered in the container: {}", reason(errno)),
        ),
        Answer::NoUser { errno } => Error::new(
            Code::InvalidUser,
            format!("The command cannot become that user in the container: {}", reason(errno)),
        ),
        Answer::NoExec { errno } => {
            Error::new(Code::InvalidCommand, format!("The container cannot run it: {}", reason(errno)))
        }
        other => Error::internal(format!("unexpected answer of an agent: {other:?}")),
    }
}

impl Drop for ContainerProcess {
    fn drop(&mut self) {
        if matches!(self.try_exit(), Ok(None)) {
            self.kill();
        }
        // Its group's account goes with it.
        self.usage();
    }
}

fn nspawn_args(place: &Place, nspawn: &Path, resolv_conf: &Path) -> Vec<String> {
    // nspawn(1) separates source and target by a colon.
    let bindable = |path: &Path| path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let inside = "/run/berth/agent";
    let args = [
        // /run/systemd/nspawn must be a tmpfs (nspawn removes files below it); in a mount namespace of its own
        // ours vanishes with the last process, also after kill -9.
        "--mount",
        "--propagation=slave",
        "/bin/sh",
        "-c",
        // nspawn is charged to the container's memory, and its end is the container's: the workload goes first.
        r#"mount -t tmpfs -o mode=0755 berth /run/systemd/nspawn || exit
           echo -900 2>/dev/null >/proc/self/oom_score_adj; exec "$@""#,
        "sh",
    ];
    let mut args: Vec<String> = args.map(str::to_owned).to_vec();
    args.push(text(nspawn));
    let options = [
        // No systemd needed as PID 1, no unit, no machined; no `.nspawn` file from the root (CVE-2026-40226).
        "--quiet",
        "--register=no",
        "--keep-unit",
        "--settings=no",
        // Root inside is nobody outside. `auto` maps ownership by an ID-mapped mount, and changes it on disk only
        // where the kernel or the file system cannot.
        "--private-users=pick",
        "--private-users-ownership=auto",
        "--no-new-privileges=yes",
        "--timezone=off",
        "--resolv-conf=off",
        "--link-journal=no",
        "--console=pipe",
    ];
    args.extend(options.map(str::to_owned));
    args.push(format!("--machine={}", place.machine));
    args.push(format!("--hostname={}", place.host_name));
    if place.private_network {
        args.push("--private-network".to_owned());
    }
    args.push(format!("--directory={}", text(&place.root)));
    args.push(format!("--bind-ro={}:{inside}", bindable(&place.agent)));
    args.push(format!("--bind-ro={}:/etc/resolv.conf", bindable(resolv_conf)));
    args.extend([inside.to_owned(), "agent".to_owned()]);
    args
}

/// A path through our own descriptor: sockets' paths are at most 107 bytes (unix(7)), a data folder's may be longer.
fn address_in(folder: &OwnedFd) -> Result<SocketAddrUnix> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    SocketAddrUnix::new(path.as_str()).at("name", "the agent's socket")
}

fn listen_in(folder: &OwnedFd) -> Result<OwnedFd> {
    let at = "the agent's socket";
    match rustix::fs::unlinkat(folder, SOCKET, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error).at("remove", at),
    }
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).at("open", at)?;
    bind(&socket, &address_in(folder)?).at("bind", at)?;
    listen(&socket, 128).at("listen on", at)?;
    Ok(socket)
}
