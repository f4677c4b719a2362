//! One container that may be running: started on first use by nspawn, with the agent as PID 1, taken over from an earlier
//! server, ended as a whole. Whatever comes from inside is untrusted; what must be certain (its end, a run's end) is done
//! from outside through cgroups and pidfds.
//!
//! Locks: `state` is held while the container starts (about 0.1 s, at most [`limits::CONTAINER_START`]) or stops, so
//! that no start meets an end, and while its root is copied; `place`, `idle_since` and `still` are leaves.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, pidfd_open, pidfd_send_signal};

use super::agent_socket;
use super::binds;
use super::load::{Busy, Load};
use super::network::{self, Networks};
use super::pending_process::PendingProcess;
use super::prepare::prepare_root;
use super::process::{ContainerHold, ContainerProcess, launch_error};
use super::protocol::{self, MessageReader, container_full, container_stopped};
use super::quiesce::QuiescedState;
use super::running::{
    AGENTS, NspawnMonitor, NspawnProcess, RunningContainer, SpareProcess, has_ended, parent_of,
    pid_namespace, pidfd_pid, uid_base,
};
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

/// A container. Cheap while it is stopped.
#[derive(Debug)]
pub struct Container {
    /// Never changes, unlike the rest of the place.
    pub(super) name: String,
    spec: Mutex<ContainerSpec>,
    context: EngineContext,
    pub(super) running: Mutex<Option<Arc<RunningContainer>>>,
    /// What there is while `state` is held for long.
    pub(super) quiesced: Mutex<Option<QuiescedState>>,
    sequence: AtomicU64,
    pub(super) activity: Arc<Load>,
    notifiers: Notifiers,
}

/// What all machines of an engine share.
#[derive(Clone, Debug)]
pub(super) struct EngineContext {
    pub(super) cgroups: Cgroups,
    pub(super) networks: Arc<Networks>,
    pub(super) roots: Arc<Roots>,
    pub(super) allowlist: Allowlist,
}

/// Whom a machine tells what.
#[derive(Clone, Debug)]
pub(super) struct Notifiers {
    /// It needs waiting processes.
    pub(super) spares: SpareQueue,
    /// It runs, and may be idle one day.
    pub(super) idle_check: crossbeam_channel::Sender<()>,
}

impl Container {
    pub(super) fn new(place: ContainerSpec, around: EngineContext, wishes: Notifiers) -> Arc<Container> {
        Arc::new(Container {
            name: place.machine_name.clone(),
            spec: Mutex::new(place),
            context: around,
            running: Mutex::new(None),
            quiesced: Mutex::new(None),
            sequence: AtomicU64::new(0),
            activity: Arc::new(Load::new()),
            notifiers: wishes,
        })
    }

    /// What holds from its next start on, and for its idleness at once.
    pub(super) fn set_spec(&self, place: ContainerSpec) {
        *lock(&self.spec) = place;
    }

    /// What it is doing.
    pub fn status(&self) -> ContainerStatus {
        let idle_timeout = lock(&self.spec).idle_timeout;
        let status = ContainerStatus {
            state: "stopped",
            busy: self.activity.busy.load(Ordering::Relaxed),
            idle_timeout_secs: idle_timeout.map(|timeout| timeout.as_secs()),
            ..ContainerStatus::default()
        };
        // Whoever only looks has the lock for a moment; a start or an end has it for longer.
        let patience = Instant::now() + limits::LOOK;
        let running = loop {
            match self.running.try_lock() {
                Ok(state) => break state.clone(),
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner().clone(),
                Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return ContainerStatus { state: "changing", ..status },
            }
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

    /// What it uses, now and since its start, if it runs.
    pub(super) fn usage(&self) -> Option<(CurrentUsage, Usage)> {
        let running = self.current()?;
        let mut usage = running.group.usage();
        usage.oom_killed =
            usage.oom_killed.map(|killed| killed || running.oom_killed.load(Ordering::Relaxed));
        Some((running.group.current(), usage))
    }

    /// Puts other limits on what runs.
    pub(super) fn set_limits(&self, limits: &Limits) -> Result<()> {
        match self.current() {
            Some(running) if running.is_alive() => running.group.update_limits(limits),
            _ => Ok(()),
        }
    }

    /// Keeps it from being idle.
    pub fn busy(&self) -> Busy {
        Busy::new(&self.activity)
    }

    /// For what an earlier server started in it and another process of ours watches; `None` when it does not run.
    pub fn hold(&self) -> Option<Box<dyn HandoverGuard>> {
        let running = lock(&self.running).clone().filter(|running| running.is_alive())?;
        Some(Box::new(ContainerHold { running, _busy: Some(self.busy()) }))
    }

    /// Starts it if it does not run.
    ///
    /// # Errors
    /// `ContainerStopped` with nspawn's last words; `Unavailable` when a tool is missing.
    pub fn ensure_running(&self) -> Result<()> {
        self.running().map(drop)
    }

    /// Ends everything inside and returns when it is over. Harmless when it is stopped.
    pub fn stop(&self) {
        let mut state = lock(&self.running);
        if let Some(running) = state.take() {
            running.end();
        }
    }

    /// Leaves it running for the next server.
    pub(super) fn detach(&self) {
        let mut state = lock(&self.running);
        if let Some(running) = state.take() {
            running.detach();
        }
    }

    /// Stops it if it has been idle for long enough; else says when to look again.
    pub(super) fn stop_if_idle(&self) -> Option<Instant> {
        let timeout = lock(&self.spec).idle_timeout?;
        let Ok(mut state) = self.running.try_lock() else {
            // It starts or stops at this moment.
            return Some(Instant::now() + Duration::from_secs(1));
        };
        state.as_ref()?;
        // Whoever wants it busy from here on waits for the lock, and starts it again.
        if self.activity.busy.load(Ordering::Acquire) > 0 {
            return Some(Instant::now() + timeout);
        }
        let due = *lock(&self.activity.idle_since) + timeout;
        if due > Instant::now() {
            return Some(due);
        }
        log::info!("container {} did nothing for {} s and is stopped", self.name, timeout.as_secs());
        if let Some(running) = state.take() {
            running.end();
        }
        None
    }

    /// The running container, started if need be.
    fn running(&self) -> Result<Arc<RunningContainer>> {
        let mut state = lock(&self.running);
        if let Some(running) = state.as_ref() {
            if running.accepts_commands() {
                return Ok(running.clone());
            }
            running.end();
            *state = None;
        }
        let running = Arc::new(self.start()?);
        *state = Some(running.clone());
        *lock(&self.activity.idle_since) = Instant::now();
        // Full: somebody has asked already.
        let _ = self.notifiers.idle_check.try_send(());
        Ok(running)
    }

    fn start(&self) -> Result<RunningContainer> {
        let place = &lock(&self.spec).clone();
        let nspawn = tools::require("systemd-nspawn")?;
        let mut group = self.context.cgroups.group(&place.machine_name)?;
        // What a crashed predecessor may have left under this name.
        group.kill(None)?;
        ContainerRecord::remove(&place.runtime);
        // For all that is made in it; nspawn's start enters its folders in v1 hierarchies.
        group.enable_limits(&place.limits)?;

        let root = self.context.roots.mount_for_start(&place.root_location())?;
        prepare_root(&self.context.roots.files(&place.root_location())?, &place.host_name);
        std::fs::create_dir_all("/run/systemd/nspawn").at("make", "/run/systemd/nspawn")?;
        let resolv_conf = place.runtime.join("resolv.conf");
        file::replace(&resolv_conf, &self.context.networks.resolv_conf(place.network), 0o644)?;
        let lease = match place.network {
            Network::Private => Some(self.context.networks.claim(&place.machine_name)?),
            Network::Host | Network::None => None,
        };
        let link = lease.as_ref().and_then(|lease| lease.link().cloned());
        let script = link.as_ref().map(|link| self.context.networks.start_script(link)).transpose()?;
        let mounts = binds::prepare(place, &self.context.allowlist, root.host)?;
        let attach = mounts.as_ref().map_or(&[][..], |mounts| &mounts.args);
        let runtime = open_dir(&place.runtime)?;
        let listener = agent_socket::listen_in(&runtime)?;
        let log = place.runtime.join("machine.log");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::CLOEXEC;
        let output = rustix::fs::open(&log, flags, Mode::from_raw_mode(0o600)).at("write", &log)?;
        let output2 = output.try_clone().at("duplicate", "a file")?;
        let child_group = self.context.cgroups.group(&format!("{}/{AGENTS}", place.machine_name))?;
        // For a root without systemd nspawn assumes v1, and on a host of v2 alone it would mount a v1 hierarchy, which
        // then shows in every process of the host.
        let unified = ("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY".to_owned(), "1".to_owned());
        // /tmp belongs to the root: there it lasts, is in snapshots, and takes no memory (systemd's ENVIRONMENT.md).
        let disk_tmp = ("SYSTEMD_NSPAWN_TMPFS_TMP".to_owned(), "0".to_owned());
        // The agent's binary is ours, kept where no upgrade replaces it.
        let child = Spec::new(&place.agent)
            .args(nspawn_args(place, &root, &nspawn, &resolv_conf, script.as_deref(), attach))
            .envs(self.context.cgroups.only_v2().then_some(&unified).into_iter().chain([&disk_tmp]))
            .start(Stdio { stdin: listener, stdout: output, stderr: output2 }, child_group)?;
        let leader = ProcessIdentity::from_pid(child.pid());
        let all = self.context.cgroups.group(&self.name)?;
        let owner =
            NspawnMonitor::start(&self.name, NspawnProcess::Ours(child), all, place.runtime.clone(), lease)?;

        let deadline = Instant::now() + limits::CONTAINER_START;
        let first = loop {
            let born = PendingProcess::request(&runtime, deadline).and_then(|birth| {
                birth.wait_until_ready(&|pid| group.contains(pid), || self.new_command_group())
            });
            match born {
                Ok(spare) => break spare,
                Err(error) if owner.has_ended() || Instant::now() >= deadline => {
                    owner.end();
                    let _ = group.kill(None);
                    let printed = file::read_optional(&log, 64 << 10).ok().flatten().unwrap_or_default();
                    let printed = String::from_utf8_lossy(&printed);
                    let said = if printed.trim().is_empty() { error.message() } else { printed.trim() };
                    return Err(Error::new(
                        Code::ContainerStopped,
                        format!("The container could not be started: {said}"),
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
            return Err(Error::new(Code::ContainerStopped, "The container stopped while it started"));
        };
        // It lives, so its parent does, and the numbers were theirs.
        if has_ended(first.pidfd.as_fd()) {
            return Err(container_stopped());
        }
        // Both are charged to the container's memory, and their end is the container's: the workload goes first. What
        // everything inside comes from has been forked by now.
        for one in [leader, init] {
            protect_other_from_oom(one.pid, || ProcessIdentity::from_pid(one.pid) == Some(one));
        }
        let mut state = ContainerRecord::new(leader, init, group.proc_path().unwrap_or_default());
        let Some(pulses) = state.open_stats() else {
            return Err(Error::new(Code::ContainerStopped, "The container stopped while it started"));
        };
        (state.network, state.link) = (place.network, link);
        if mounts.is_some() {
            state.mounts = binds::read_result(&place.runtime);
        }
        if let Err(error) = state.write(&place.runtime) {
            // It works all the same; only a later server will not find it.
            log::warn!("container {}: {error}", self.name);
        }
        log::debug!("container {} started, uids {uid_base}+65536", place.machine_name);
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
            stats: pulses,
            spares: Mutex::new(vec![first]),
            spare_groups: Mutex::default(),
            oom_killed: AtomicBool::new(false),
            monitor: owner,
        })
    }

    /// Takes over what an earlier server left running, as it is. Groups of commands that were under way then and that
    /// `keep` does not want are ended; what ended commands left in the background goes on. `false`: there is nothing to
    /// take over; whatever is left is the caller's to end.
    ///
    /// # Errors
    /// When the machine refuses something; nothing has been taken over then.
    pub(super) fn adopt(&self, keep: &dyn Fn(&str) -> bool) -> Result<bool> {
        let mut slot = lock(&self.running);
        let place = lock(&self.spec).clone();
        let Some(state) = ContainerRecord::read(&place.runtime) else { return Ok(false) };
        let mut group = self.context.cgroups.group(&self.name)?;
        if !self.context.cgroups.kills_reliably()
            || state.protocol != protocol::VERSION
            || group.proc_path().as_ref() != Some(&state.cgroup)
        {
            return Ok(false);
        }
        let Some(((leader, init), pulses)) = state.find(&group).zip(state.open_stats()) else {
            return Ok(false);
        };
        let Some(uid_base) = uid_base(state.init_pid()) else { return Ok(false) };
        let runtime = open_dir(&place.runtime)?;
        if agent_socket::connect_to_agent(&runtime).is_err() {
            return Ok(false);
        }
        let pids = pid_namespace(state.init_pid());
        // A server that was killed while it took a snapshot.
        group.freeze(false)?;
        group.enable_limits(&place.limits)?;
        let root = self.context.roots.adopt(&place.root_location(), state.leader_pid())?;
        // Both live, so the numbers were theirs all the time.
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
                // Its keeper's: to remove it, or only to try, marks it as one whose command has ended.
                run.disown();
            } else {
                run.kill(None)?;
            }
        }
        let all = self.context.cgroups.group(&self.name)?;
        let lease = state.link.clone().and_then(|link| self.context.networks.adopt(link));
        if lease.is_none() && state.link.is_some() {
            // Its link is gone, and without a name nobody would guard what may come under it.
            return Ok(false);
        }
        let owner = NspawnMonitor::start(
            &self.name,
            NspawnProcess::Adopted(leader),
            all,
            place.runtime.clone(),
            lease,
        )?;
        log::info!("container {} runs on, since {}", self.name, clock::rfc3339(state.started_at));
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
            stats: pulses,
            spares: Mutex::default(),
            spare_groups: Mutex::default(),
            oom_killed: AtomicBool::new(false),
            monitor: owner,
        }));
        *lock(&self.activity.idle_since) = Instant::now();
        let _ = self.notifiers.idle_check.try_send(());
        Ok(true)
    }

    /// The group of nspawn and the agent, which somebody else removes.
    fn agents(&self) -> Result<Arc<Group>> {
        let group = self.context.cgroups.group(&format!("{}/{AGENTS}", self.name))?;
        group.disown();
        Ok(Arc::new(group))
    }

    /// A group for one command.
    fn new_command_group(&self) -> Result<Group> {
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut group = self.context.cgroups.group(&format!("{}/runs/{number}", self.name))?;
        group.track_memory()?;
        Ok(group)
    }

    /// The same for a process that is to wait.
    pub(super) fn group_for_spare(&self, running: &RunningContainer) -> Result<Group> {
        let used = lock(&running.spare_groups).pop();
        used.map_or_else(|| self.new_command_group(), Ok)
    }

    /// Tries something again that fails where a container ends, or where something inside takes what a start needs: with
    /// another process, since someone may have killed the first, and with the container's successor. One that lives is
    /// never ended for it, since other things run there. At most `patience`.
    fn retry<T>(&self, patience: Option<Duration>, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let patience = patience.map_or(limits::INSIST, |own| own.min(limits::INSIST));
        let (begun, mut pause) = (Instant::now(), Duration::from_millis(5));
        loop {
            let error = match attempt() {
                Err(error) if error.code() == Code::ContainerStopped => error,
                done => return done,
            };
            if begun.elapsed() + pause >= patience {
                let lives = self.current().is_some_and(|running| running.accepts_commands());
                return Err(if lives { container_full().with_source(error) } else { error });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(limits::INSIST / 20);
        }
    }

    fn open_terminal(&self) -> Result<Pty> {
        let running = self.running()?;
        let init = pidfd_pid(running.init.as_fd()).ok_or_else(container_stopped)?;
        let root = Root::open(Path::new(&format!("/proc/{init}/root"))).map_err(|_| container_stopped())?;
        let master = root.open_ptmx();
        // It still lives, so the number was its own when the folder was opened; and a dying one has nothing mounted.
        if has_ended(running.init.as_fd()) {
            return Err(container_stopped());
        }
        let pty = Pty::from_master(master?)?;
        // It was made by our own root, who is nobody inside: `su`, `mesg` and opening /dev/tty anew need an owner.
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
            // Someone inside may have stopped or killed it meanwhile.
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

        // Otherwise `echo x >/dev/stderr` fails inside.
        let outside = |id: u32| running.uid_base.saturating_add(id);
        let (uid, gid) = command.user.as_ref().map_or((0, 0), |user| (user.uid, user.gid));
        stdio.give_to(Uid::from_raw(outside(uid)), Gid::from_raw(outside(gid)), command.tty);
        let mark = spare.group.env_marker();
        let mut answers = MessageReader::default();
        let begun = protocol::send_command(&spare.socket, command, mark.as_ref(), stdio, &doors, deadline)
            .and_then(|()| {
                let refused = |answer| launch_error(&answer, &command.cwd);
                protocol::receive_accepted(&spare.socket, &mut answers, deadline, refused)
            });
        if let Err(error) = begun {
            // One that somebody inside has stopped would wait for ever.
            let _ = pidfd_send_signal(&spare.pidfd, Signal::KILL);
            return Err(error);
        }
        let SpareProcess { socket, pid, pidfd, group } = spare;
        let reach = SignalHandle { pid, pidfd: Arc::new(pidfd), group: Arc::new(group) };
        let cwd = command.cwd.clone();
        Ok(ContainerProcess {
            agents: running.agents.clone(),
            running: Some(running),
            socket,
            reach,
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
        // As long as the command has not been accepted, nothing of it has run.
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
