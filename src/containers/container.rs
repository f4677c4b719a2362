//! One container. nspawn starts it on first use with the agent as PID 1, and a later server can adopt it. It is
//! stopped as a whole. All data from inside is untrusted. Operations that must succeed, such as stopping the
//! container or killing a command, are done from outside through cgroups and pidfds.
//!
//! Locks: `running` is held while the container starts (about 0.1 s, at most [`limits::CONTAINER_START`]) or stops, so
//! that starts and stops exclude each other, and while its root is copied. `spec` is a leaf.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, pidfd_open, pidfd_send_signal};

use super::activity::{Activity, BusyGuard};
use super::agent_socket;
use super::binds;
use super::network::{self, Networks};
use super::pending_process::PendingProcess;
use super::prepare::prepare_root;
use super::process::{ContainerHold, ContainerProcess, launch_error};
use super::protocol::{self, MessageReader, container_full, container_stopped};
use super::running::{
    AGENTS, NspawnMonitor, NspawnProcess, RunningContainer, SpareProcess, has_ended, parent_of,
    pid_namespace, pidfd_pid, uid_base,
};
use super::running_slot::RunningSlot;
use super::spares::SpareQueue;
pub use super::spec::ContainerSpec;
use super::spec::nspawn_args;
use super::state::{ContainerRecord, ProcessIdentity};
pub use super::status::ContainerStatus;
use crate::base::ids::Network;
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, clock, limits};
use crate::proc::spawn::{open_dir, protect_other_from_oom};
use crate::proc::tools;
use crate::proc::{
    Cgroups, CommandSpec, CurrentUsage, Group, HandoverGuard, Launcher, Limits, Process, Pty, SignalHandle,
    Spec, Stdio, Usage,
};
use crate::roots::Roots;
use crate::store::allowlist::Allowlist;
use crate::store::beneath::Root;
use crate::store::file;

/// Time limit for retries of a command's start while the container is stopping or has no free memory or process
/// slot.
const INSIST: Duration = Duration::from_secs(5);

/// A container, running or stopped. A stopped one uses few resources.
#[derive(Debug)]
pub struct Container {
    /// Name of the container; unlike the rest of the spec, it never changes.
    pub(super) name: String,
    spec: Mutex<ContainerSpec>,
    context: EngineContext,
    pub(super) running: RunningSlot,
    sequence: AtomicU64,
    pub(super) activity: Arc<Activity>,
    notifiers: Notifiers,
}

/// Resources that all containers of an engine share.
#[derive(Clone, Debug)]
pub(super) struct EngineContext {
    pub(super) cgroups: Cgroups,
    pub(super) networks: Arc<Networks>,
    pub(super) roots: Arc<Roots>,
    pub(super) allowlist: Allowlist,
}

/// Channels through which a container notifies the threads of its engine.
#[derive(Clone, Debug)]
pub(super) struct Notifiers {
    /// Requests more waiting processes for the container.
    pub(super) spares: SpareQueue,
    /// Requests a check for idle containers after the container has started.
    pub(super) idle_check: crossbeam_channel::Sender<()>,
}

impl Container {
    pub(super) fn new(spec: ContainerSpec, context: EngineContext, notifiers: Notifiers) -> Arc<Container> {
        Arc::new(Container {
            name: spec.machine_name.clone(),
            spec: Mutex::new(spec),
            context,
            running: RunningSlot::default(),
            sequence: AtomicU64::new(0),
            activity: Arc::new(Activity::new()),
            notifiers,
        })
    }

    /// Sets the spec for the container's next start; the idle timeout applies at once.
    pub(super) fn set_spec(&self, spec: ContainerSpec) {
        *lock(&self.spec) = spec;
    }

    /// Returns the container's state.
    pub fn status(&self) -> ContainerStatus {
        let idle_timeout = lock(&self.spec).idle_timeout;
        let status = ContainerStatus {
            state: "stopped",
            busy: self.activity.busy(),
            idle_timeout_secs: idle_timeout.map(|timeout| timeout.as_secs()),
            ..ContainerStatus::default()
        };
        let Some(running) = self.running.current_within(limits::LOOK) else {
            return ContainerStatus { state: "changing", ..status };
        };
        let Some(running) = running.filter(|running| running.is_alive()) else { return status };
        ContainerStatus {
            state: "running",
            since: Some(clock::rfc3339(running.record.started_at)),
            adopted: running.adopted,
            uid_base: Some(running.uid_base),
            init_pid: Some(running.record.init_pid()),
            cgroup: Some(running.record.cgroup.to_string_lossy().into_owned()),
            agent_version: Some(running.record.agent_version.clone()),
            mounts: running.record.mounts.clone(),
            network: Some(network::NetworkStatus {
                mode: running.record.network,
                link: running.record.link.clone(),
            }),
            ..status
        }
    }

    /// Returns the current and total resource usage; `None` if the container is not running.
    pub(super) fn usage(&self) -> Option<(CurrentUsage, Usage)> {
        let running = self.current()?;
        let mut usage = running.group.usage();
        usage.oom_killed =
            usage.oom_killed.map(|killed| killed || running.oom_killed.load(Ordering::Relaxed));
        Some((running.group.current(), usage))
    }

    /// Changes the limits of a running container.
    pub(super) fn set_limits(&self, limits: &Limits) -> Result<()> {
        match self.current() {
            Some(running) if running.is_alive() => running.group.update_limits(limits),
            _ => Ok(()),
        }
    }

    /// Returns a guard; the container is not stopped as idle while it exists.
    pub fn busy(&self) -> BusyGuard {
        BusyGuard::new(&self.activity)
    }

    /// Returns a guard that keeps the container running for a command that another berth process watches; `None`
    /// if the container is not running.
    pub fn hold(&self) -> Option<Box<dyn HandoverGuard>> {
        let running = self.running.lock().clone().filter(|running| running.is_alive())?;
        Some(Box::new(ContainerHold { running, _busy: Some(self.busy()) }))
    }

    /// Starts the container; does nothing if it is already running.
    ///
    /// # Errors
    /// `ContainerStopped` with nspawn's last output; `Unavailable` when a tool is missing.
    pub fn ensure_running(&self) -> Result<()> {
        self.running().map(drop)
    }

    /// Stops the container and waits until all its processes have ended; does nothing if it is already stopped.
    pub fn stop(&self) {
        let mut state = self.running.lock();
        if let Some(running) = state.take() {
            running.end();
        }
    }

    /// Detaches this server from the container, which keeps running for the next server.
    pub(super) fn detach(&self) {
        let mut state = self.running.lock();
        if let Some(running) = state.take() {
            running.detach();
        }
    }

    /// Stops the container if it has been idle for its timeout; otherwise returns the time of the next check.
    pub(super) fn stop_if_idle(&self) -> Option<Instant> {
        let timeout = lock(&self.spec).idle_timeout?;
        let Some(mut state) = self.running.try_lock() else {
            // Another thread is starting or stopping the container.
            return Some(Instant::now() + Duration::from_secs(1));
        };
        state.as_ref()?;
        // This thread holds the lock. A caller that needs the container now waits for the lock and starts it
        // again.
        if self.activity.busy() > 0 {
            return Some(Instant::now() + timeout);
        }
        let due = self.activity.idle_since() + timeout;
        if due > Instant::now() {
            return Some(due);
        }
        log::info!("Container {} was idle for {} s and is stopped", self.name, timeout.as_secs());
        if let Some(running) = state.take() {
            running.end();
        }
        None
    }

    /// Returns the running container, starting it if needed.
    fn running(&self) -> Result<Arc<RunningContainer>> {
        let mut state = self.running.lock();
        if let Some(running) = state.as_ref() {
            if running.accepts_commands() {
                return Ok(running.clone());
            }
            running.end();
            *state = None;
        }
        let running = Arc::new(self.start()?);
        *state = Some(running.clone());
        self.activity.touch();
        // A full channel means that a check is already requested.
        let _ = self.notifiers.idle_check.try_send(());
        Ok(running)
    }

    fn start(&self) -> Result<RunningContainer> {
        let spec = &lock(&self.spec).clone();
        let nspawn = tools::require("systemd-nspawn")?;
        let mut group = self.context.cgroups.group(&spec.machine_name)?;
        // Remove processes and files that a crashed server left for a container of this name.
        group.kill(None)?;
        ContainerRecord::remove(&spec.runtime);
        // Limits of this cgroup apply to all cgroups below it; nspawn enters its directories in v1 hierarchies at
        // the start.
        group.enable_limits(&spec.limits)?;

        let root = self.context.roots.mount_for_start(&spec.root_location())?;
        prepare_root(&self.context.roots.files(&spec.root_location())?, &spec.host_name);
        std::fs::create_dir_all("/run/systemd/nspawn").at("make", "/run/systemd/nspawn")?;
        let resolv_conf = spec.runtime.join("resolv.conf");
        file::replace(&resolv_conf, &self.context.networks.resolv_conf(spec.network), 0o644)?;
        let lease = match spec.network {
            Network::Private => Some(self.context.networks.claim(&spec.machine_name)?),
            Network::Host | Network::None => None,
        };
        let link = lease.as_ref().and_then(|lease| lease.link().cloned());
        let script = link.as_ref().map(|link| self.context.networks.start_script(link)).transpose()?;
        let mounts = binds::prepare(spec, &self.context.allowlist, root.host)?;
        let attach = mounts.as_ref().map_or(&[][..], |mounts| &mounts.args);
        let runtime = open_dir(&spec.runtime)?;
        let listener = agent_socket::listen_in(&runtime)?;
        let log = spec.runtime.join("machine.log");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::CLOEXEC;
        let output = rustix::fs::open(&log, flags, Mode::from_raw_mode(0o600)).at("write", &log)?;
        let output2 = output.try_clone().at("duplicate", "a file")?;
        let child_group = self.context.cgroups.group(&format!("{}/{AGENTS}", spec.machine_name))?;
        // For a root without systemd, nspawn assumes cgroup v1. On a host with only v2, nspawn would mount a v1
        // hierarchy, which then appears in every process of the host.
        let unified = ("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY".to_owned(), "1".to_owned());
        // Keep /tmp in the root: there it persists, is part of snapshots and uses no memory (systemd's ENVIRONMENT.md).
        let disk_tmp = ("SYSTEMD_NSPAWN_TMPFS_TMP".to_owned(), "0".to_owned());
        // `spec.agent` is a copy of this binary, which no upgrade replaces.
        let child = Spec::new(&spec.agent)
            .args(nspawn_args(spec, &root, &nspawn, &resolv_conf, script.as_deref(), attach))
            .envs(self.context.cgroups.only_v2().then_some(&unified).into_iter().chain([&disk_tmp]))
            .start(Stdio { stdin: listener, stdout: output, stderr: output2 }, child_group)?;
        let leader = ProcessIdentity::from_pid(child.pid());
        let all = self.context.cgroups.group(&self.name)?;
        let owner =
            NspawnMonitor::start(&self.name, NspawnProcess::Ours(child), all, spec.runtime.clone(), lease)?;

        let deadline = Instant::now() + limits::CONTAINER_START;
        let first = loop {
            let result = PendingProcess::request(&runtime, deadline).and_then(|birth| {
                birth.wait_until_ready(&|pid| group.contains(pid), || self.new_command_group())
            });
            match result {
                Ok(spare) => break spare,
                Err(error) if owner.has_ended() || Instant::now() >= deadline => {
                    owner.end();
                    let _ = group.kill(None);
                    let printed = file::read_optional(&log, 64 << 10).ok().flatten().unwrap_or_default();
                    let printed = String::from_utf8_lossy(&printed);
                    let reason = if printed.trim().is_empty() { error.message() } else { printed.trim() };
                    return Err(Error::new(
                        Code::ContainerStopped,
                        format!("The container could not be started: {reason}"),
                    ));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let init = parent_of(first.pid).and_then(ProcessIdentity::from_pid);
        let init_fd = init.and_then(|init| pidfd_open(Pid::from_raw(init.pid)?, PidfdFlags::empty()).ok());
        let (Some(leader), Some(init), Some(init_fd), Some(uid_base)) =
            (leader, init, init_fd, uid_base(first.pid))
        else {
            return Err(Error::new(Code::ContainerStopped, "The container stopped during its start"));
        };
        // The first spare process is alive, so its parent is too, and both PIDs are still valid.
        if has_ended(first.pidfd.as_fd()) {
            return Err(container_stopped());
        }
        // Both are charged to the container's memory, and the container ends if either of them is killed, so the
        // OOM killer must choose the workload first. The zygote has been forked by now and does not inherit the
        // protection.
        for one in [leader, init] {
            protect_other_from_oom(one.pid, || ProcessIdentity::from_pid(one.pid) == Some(one));
        }
        let mut state = ContainerRecord::new(leader, init, group.proc_path().unwrap_or_default());
        let Some(stats) = state.open_stats() else {
            return Err(Error::new(Code::ContainerStopped, "The container stopped during its start"));
        };
        (state.network, state.link) = (spec.network, link);
        if mounts.is_some() {
            state.mounts = binds::read_result(&spec.runtime);
        }
        if let Err(error) = state.write(&spec.runtime) {
            // The container works without this file, but a later server cannot adopt it.
            log::warn!("Container {}: {error}", self.name);
        }
        log::debug!("Container {} started, uids {uid_base}+65536", spec.machine_name);
        Ok(RunningContainer {
            record: state,
            adopted: false,
            runtime,
            group,
            agents: self.agents()?,
            uid_base,
            _root: root.handle,
            pids: pid_namespace(init.pid),
            init: init_fd,
            stats,
            spares: Mutex::new(vec![first]),
            spare_groups: Mutex::default(),
            oom_killed: AtomicBool::new(false),
            monitor: owner,
        })
    }

    /// Adopts a container that an earlier server left running. Kills the cgroups of commands that were running then,
    /// except those that `keep` accepts; background processes of ended commands keep running. Returns `false` if there
    /// is nothing to adopt; the caller then cleans up.
    ///
    /// # Errors
    /// When the kernel refuses an operation; the container is then not adopted.
    pub(super) fn adopt(&self, keep: &dyn Fn(&str) -> bool) -> Result<bool> {
        let mut slot = self.running.lock();
        let spec = lock(&self.spec).clone();
        let Some(state) = ContainerRecord::read(&spec.runtime) else { return Ok(false) };
        let mut group = self.context.cgroups.group(&self.name)?;
        if !self.context.cgroups.kills_reliably()
            || state.protocol != protocol::VERSION
            || group.proc_path().as_ref() != Some(&state.cgroup)
        {
            return Ok(false);
        }
        let Some(((leader, init), stats)) = state.find(&group).zip(state.open_stats()) else {
            return Ok(false);
        };
        let Some(uid_base) = uid_base(state.init_pid()) else { return Ok(false) };
        let runtime = open_dir(&spec.runtime)?;
        if agent_socket::connect_to_agent(&runtime).is_err() {
            return Ok(false);
        }
        let pids = pid_namespace(state.init_pid());
        // The earlier server may have been killed while the container was frozen for a snapshot.
        group.freeze(false)?;
        group.enable_limits(&spec.limits)?;
        let root = self.context.roots.adopt(&spec.root_location(), state.leader_pid())?;
        // nspawn and the agent are alive, so their PIDs have been valid all the time.
        if has_ended(init.as_fd()) || has_ended(leader.as_fd()) {
            return Ok(false);
        }
        for name in group.children("runs") {
            let path = format!("runs/{name}");
            self.sequence.fetch_max(name.parse::<u64>().map_or(0, |number| number + 1), Ordering::Relaxed);
            let run = self.context.cgroups.group(&format!("{}/{path}", self.name))?;
            if run.is_leftover() {
                continue;
            }
            if keep(&path) {
                // The cgroup belongs to the run's keeper. Even an attempt to remove it would mark the keeper's
                // command as ended.
                run.disown();
            } else {
                run.kill(None)?;
            }
        }
        let all = self.context.cgroups.group(&self.name)?;
        let lease = state.link.clone().and_then(|link| self.context.networks.adopt(link));
        if lease.is_none() && state.link.is_some() {
            // The network link was removed. Without a lease, the firewall rules for its name would not be
            // maintained.
            return Ok(false);
        }
        let owner = NspawnMonitor::start(
            &self.name,
            NspawnProcess::Adopted(leader),
            all,
            spec.runtime.clone(),
            lease,
        )?;
        log::info!("Container {} runs on, since {}", self.name, clock::rfc3339(state.started_at));
        *slot = Some(Arc::new(RunningContainer {
            record: state,
            adopted: true,
            runtime,
            group,
            agents: self.agents()?,
            uid_base,
            _root: root,
            pids,
            init,
            stats,
            spares: Mutex::default(),
            spare_groups: Mutex::default(),
            oom_killed: AtomicBool::new(false),
            monitor: owner,
        }));
        self.activity.touch();
        let _ = self.notifiers.idle_check.try_send(());
        Ok(true)
    }

    /// Returns the cgroup of nspawn and the agent. Dropping this value does not remove the cgroup.
    fn agents(&self) -> Result<Arc<Group>> {
        let group = self.context.cgroups.group(&format!("{}/{AGENTS}", self.name))?;
        group.disown();
        Ok(Arc::new(group))
    }

    /// Creates a cgroup for one command.
    fn new_command_group(&self) -> Result<Group> {
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut group = self.context.cgroups.group(&format!("{}/runs/{number}", self.name))?;
        group.track_memory()?;
        Ok(group)
    }

    /// Returns a cgroup for a waiting process; reuses the cgroup of an ended command if there is one.
    pub(super) fn group_for_spare(&self, running: &RunningContainer) -> Result<Group> {
        let used = lock(&running.spare_groups).pop();
        used.map_or_else(|| self.new_command_group(), Ok)
    }

    /// Repeats `attempt` while it fails because the container is ending or has no free memory or process slot.
    /// Each attempt uses another process, since the first may have been killed from inside, or the container's
    /// successor. A live container is never stopped for a retry, because other commands run in it. Waits at most
    /// `patience`.
    fn retry<T>(&self, patience: Option<Duration>, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let patience = patience.map_or(INSIST, |own| own.min(INSIST));
        let (accepted, mut pause) = (Instant::now(), Duration::from_millis(5));
        loop {
            let error = match attempt() {
                Err(error) if error.code() == Code::ContainerStopped => error,
                done => return done,
            };
            if accepted.elapsed() + pause >= patience {
                let lives = self.current().is_some_and(|running| running.accepts_commands());
                return Err(if lives { container_full().with_source(error) } else { error });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(INSIST / 20);
        }
    }

    fn open_terminal(&self) -> Result<Pty> {
        let running = self.running()?;
        let init = pidfd_pid(running.init.as_fd()).ok_or_else(container_stopped)?;
        let root = Root::open(Path::new(&format!("/proc/{init}/root"))).map_err(|_| container_stopped())?;
        let master = root.open_ptmx();
        // init is still alive, so the PID was its own when the directory was opened; a dying process has nothing
        // mounted.
        if has_ended(running.init.as_fd()) {
            return Err(container_stopped());
        }
        let pty = Pty::from_master(master?)?;
        // The server created the terminal as the host's root, which has no ID inside: `su`, `mesg` and reopening
        // /dev/tty need an owner with an ID there.
        let root_inside = (Uid::from_raw(running.uid_base), Gid::from_raw(running.uid_base));
        rustix::fs::fchown(&pty.slave, Some(root_inside.0), Some(root_inside.1))
            .at("give away", "a terminal")?;
        Ok(pty)
    }

    fn start_process(self: &Arc<Self>, command: &CommandSpec, stdio: &Stdio) -> Result<ContainerProcess> {
        let busy = self.busy();
        let running = self.running()?;
        let deadline = Instant::now()
            + command.patience.map_or(limits::AGENT_ANSWER, |own| own.min(limits::AGENT_ANSWER));
        let mut spare = None;
        let fits = |spare: &SpareProcess| !command.account || !spare.group.is_reused();
        let next = || {
            let mut spares = lock(&running.spares);
            let at = spares.iter().rposition(fits)?;
            Some(spares.remove(at))
        };
        while let Some(candidate) = next() {
            // A process inside may have stopped or killed the candidate.
            let _ = pidfd_send_signal(&candidate.pidfd, Signal::CONT);
            if !has_ended(candidate.pidfd.as_fd()) {
                spare = Some(candidate);
                break;
            }
        }
        let mut spare = match spare {
            Some(spare) => spare,
            None => {
                let group = || match command.account {
                    true => self.new_command_group(),
                    false => self.group_for_spare(&running),
                };
                PendingProcess::request(&running.runtime, deadline)?
                    .wait_until_ready(&|pid| running.contains(pid), group)?
            }
        };
        let mut doors = Vec::new();
        if let Some(limits) = command.limits.filter(|limits| !limits.is_empty()) {
            self.context.cgroups.confine(&mut spare.group, &limits)?;
            doors = spare.group.v1_limit_procs_files()?;
        }
        self.notifiers.spares.request(self, &running);

        // Give the streams to the command's user: otherwise `echo x >/dev/stderr` fails inside.
        let outside = |id: u32| running.uid_base.saturating_add(id);
        let (uid, gid) = command.user.as_ref().map_or((0, 0), |user| (user.uid, user.gid));
        stdio.give_to(Uid::from_raw(outside(uid)), Gid::from_raw(outside(gid)), command.tty);
        let mark = spare.group.env_marker();
        let mut answers = MessageReader::default();
        let accepted = protocol::send_command(&spare.socket, command, mark.as_ref(), stdio, &doors, deadline)
            .and_then(|()| {
                let refused = |answer| launch_error(&answer, &command.cwd);
                protocol::receive_accepted(&spare.socket, &mut answers, deadline, refused)
            });
        if let Err(error) = accepted {
            // Without the kill, a process that was stopped from inside would wait forever.
            let _ = pidfd_send_signal(&spare.pidfd, Signal::KILL);
            return Err(error);
        }
        let SpareProcess { socket, pid, pidfd, group } = spare;
        let signal_handle = SignalHandle { pid, pidfd: Arc::new(pidfd), group: Arc::new(group) };
        let cwd = command.cwd.clone();
        Ok(ContainerProcess {
            agents: running.agents.clone(),
            running: Some(running),
            socket,
            signal_handle,
            messages: answers,
            exit: None,
            cwd,
            busy: Some(busy),
            handed_over: false,
            oom_reported: Cell::default(),
        })
    }
}

impl Launcher for Arc<Container> {
    fn launch(&self, _id: &str, command: &CommandSpec, stdio: Stdio) -> Result<Box<dyn Process>> {
        // A failed attempt may be repeated: until the agent accepts the command, no part of it has run.
        self.retry(
            command.patience,
            || Ok(Box::new(self.start_process(command, &stdio)?) as Box<dyn Process>),
        )
    }

    fn terminal(&self) -> Result<Pty> {
        self.retry(None, || self.open_terminal())
    }

    fn file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let site = lock(&self.spec).root_location();
        self.context.roots.files(&site)?.read(path.trim_start_matches('/'), max_bytes)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.stop();
    }
}
