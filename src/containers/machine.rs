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

use super::binds;
use super::birth::Birth;
use super::door;
use super::load::{Busy, Load};
use super::network::{self, Networks};
use super::nursery::Refills;
pub use super::place::Place;
use super::place::nspawn_args;
use super::prepare::prepare;
use super::process::{ContainerProcess, Held, refused};
use super::protocol::{self, Answers, full, gone};
use super::running::{
    AGENTS, Leader, Owner, Running, Spare, has_ended, parent_of, pid_namespace, pidfd_pid, uid_base,
};
use super::state::{State, Who};
pub use super::status::Status;
use super::still::Still;
use crate::base::ids::Network;
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, clock, limits};
use crate::proc::spawn::{open_dir, protect_other_from_oom};
use crate::proc::tools;
use crate::proc::{
    Cgroups, Command, Current, Group, Hold, Launcher, Limits, Process, Pty, Reach, Spec, Stdio, Usage,
};
use crate::roots::Roots;
use crate::store::allowlist::Allowlist;
use crate::store::beneath::Root;
use crate::store::file;

/// A container. Cheap while it is stopped.
#[derive(Debug)]
pub struct Machine {
    /// Never changes, unlike the rest of the place.
    pub(super) name: String,
    place: Mutex<Place>,
    around: Surroundings,
    pub(super) state: Mutex<Option<Arc<Running>>>,
    /// What there is while `state` is held for long.
    pub(super) still: Mutex<Option<Still>>,
    sequence: AtomicU64,
    pub(super) load: Arc<Load>,
    wishes: Wishes,
}

/// What all machines of an engine share.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    pub(super) cgroups: Cgroups,
    pub(super) networks: Arc<Networks>,
    pub(super) roots: Arc<Roots>,
    pub(super) allowlist: Allowlist,
}

/// Whom a machine tells what.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    /// It needs waiting processes.
    pub(super) refill: Refills,
    /// It runs, and may be idle one day.
    pub(super) watch: crossbeam_channel::Sender<()>,
}

impl Machine {
    pub(super) fn new(place: Place, around: Surroundings, wishes: Wishes) -> Arc<Machine> {
        Arc::new(Machine {
            name: place.machine.clone(),
            place: Mutex::new(place),
            around,
            state: Mutex::new(None),
            still: Mutex::new(None),
            sequence: AtomicU64::new(0),
            load: Arc::new(Load::new()),
            wishes,
        })
    }

    /// What holds from its next start on, and for its idleness at once.
    pub(super) fn set_place(&self, place: Place) {
        *lock(&self.place) = place;
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        let idle_timeout = lock(&self.place).idle_timeout;
        let status = Status {
            state: "stopped",
            busy: self.load.busy.load(Ordering::Relaxed),
            idle_timeout_secs: idle_timeout.map(|timeout| timeout.as_secs()),
            ..Status::default()
        };
        // Whoever only looks has the lock for a moment; a start or an end has it for longer.
        let patience = Instant::now() + limits::LOOK;
        let running = loop {
            match self.state.try_lock() {
                Ok(state) => break state.clone(),
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner().clone(),
                Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TryLockError::WouldBlock) => return Status { state: "changing", ..status },
            }
        };
        let Some(running) = running.filter(|running| running.is_alive()) else { return status };
        Status {
            state: "running",
            since: Some(clock::rfc3339(running.state.started_at)),
            adopted: running.adopted,
            uid_base: Some(running.uid_base),
            init_pid: Some(running.state.init_pid()),
            cgroup: Some(running.state.cgroup.to_string_lossy().into_owned()),
            agent_version: Some(running.state.agent_version.clone()),
            mounts: running.state.mounts.clone(),
            network: Some(network::Status { mode: running.state.network, link: running.state.link.clone() }),
            ..status
        }
    }

    /// What it uses, now and since its start, if it runs.
    pub(super) fn usage(&self) -> Option<(Current, Usage)> {
        let running = self.present()?;
        let mut usage = running.group.usage();
        usage.oom_killed =
            usage.oom_killed.map(|killed| killed || running.oom_killed.load(Ordering::Relaxed));
        Some((running.group.current(), usage))
    }

    /// Puts other limits on what runs.
    pub(super) fn rebound(&self, limits: &Limits) -> Result<()> {
        match self.present() {
            Some(running) if running.is_alive() => running.group.rebound(limits),
            _ => Ok(()),
        }
    }

    /// Keeps it from being idle.
    pub fn busy(&self) -> Busy {
        Busy::new(&self.load)
    }

    /// For what an earlier server started in it and another process of ours watches; `None` when it does not run.
    pub fn hold(&self) -> Option<Box<dyn Hold>> {
        let running = lock(&self.state).clone().filter(|running| running.is_alive())?;
        Some(Box::new(Held { running, _busy: Some(self.busy()) }))
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
        let mut state = lock(&self.state);
        if let Some(running) = state.take() {
            running.end();
        }
    }

    /// Leaves it running for the next server.
    pub(super) fn let_go(&self) {
        let mut state = lock(&self.state);
        if let Some(running) = state.take() {
            running.let_go();
        }
    }

    /// Stops it if it has been idle for long enough; else says when to look again.
    pub(super) fn stop_if_idle(&self) -> Option<Instant> {
        let timeout = lock(&self.place).idle_timeout?;
        let Ok(mut state) = self.state.try_lock() else {
            // It starts or stops at this moment.
            return Some(Instant::now() + Duration::from_secs(1));
        };
        state.as_ref()?;
        // Whoever wants it busy from here on waits for the lock, and starts it again.
        if self.load.busy.load(Ordering::Acquire) > 0 {
            return Some(Instant::now() + timeout);
        }
        let due = *lock(&self.load.idle_since) + timeout;
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
    fn running(&self) -> Result<Arc<Running>> {
        let mut state = lock(&self.state);
        if let Some(running) = state.as_ref() {
            if running.takes_commands() {
                return Ok(running.clone());
            }
            running.end();
            *state = None;
        }
        let running = Arc::new(self.start()?);
        *state = Some(running.clone());
        *lock(&self.load.idle_since) = Instant::now();
        // Full: somebody has asked already.
        let _ = self.wishes.watch.try_send(());
        Ok(running)
    }

    fn start(&self) -> Result<Running> {
        let place = &lock(&self.place).clone();
        let nspawn = tools::require("systemd-nspawn")?;
        let mut group = self.around.cgroups.group(&place.machine)?;
        // What a crashed predecessor may have left under this name.
        group.kill(None)?;
        State::remove(&place.runtime);
        // For all that is made in it; nspawn's start enters its folders in v1 hierarchies.
        group.hold(&place.limits)?;

        let root = self.around.roots.enter(&place.site())?;
        prepare(&self.around.roots.files(&place.site())?, &place.host_name);
        std::fs::create_dir_all("/run/systemd/nspawn").at("make", "/run/systemd/nspawn")?;
        let resolv_conf = place.runtime.join("resolv.conf");
        file::replace(&resolv_conf, &self.around.networks.resolv_conf(place.network), 0o644)?;
        let lease = match place.network {
            Network::Private => Some(self.around.networks.claim(&place.machine)?),
            Network::Host | Network::None => None,
        };
        let link = lease.as_ref().and_then(|lease| lease.link().cloned());
        let script = link.as_ref().map(|link| self.around.networks.start_script(link)).transpose()?;
        let mounts = binds::prepare(place, &self.around.allowlist, root.host)?;
        let attach = mounts.as_ref().map_or(&[][..], |mounts| &mounts.args);
        let runtime = open_dir(&place.runtime)?;
        let listener = door::listen_in(&runtime)?;
        let log = place.runtime.join("machine.log");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::APPEND | OFlags::CLOEXEC;
        let output = rustix::fs::open(&log, flags, Mode::from_raw_mode(0o600)).at("write", &log)?;
        let output2 = output.try_clone().at("duplicate", "a file")?;
        let child_group = self.around.cgroups.group(&format!("{}/{AGENTS}", place.machine))?;
        // For a root without systemd nspawn assumes v1, and on a host of v2 alone it would mount a v1 hierarchy, which
        // then shows in every process of the host.
        let unified = ("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY".to_owned(), "1".to_owned());
        // /tmp belongs to the root: there it lasts, is in snapshots, and takes no memory (systemd's ENVIRONMENT.md).
        let disk_tmp = ("SYSTEMD_NSPAWN_TMPFS_TMP".to_owned(), "0".to_owned());
        // The agent's binary is ours, kept where no upgrade replaces it.
        let child = Spec::new(&place.agent)
            .args(nspawn_args(place, &root, &nspawn, &resolv_conf, script.as_deref(), attach))
            .envs(self.around.cgroups.only_v2().then_some(&unified).into_iter().chain([&disk_tmp]))
            .start(Stdio { stdin: listener, stdout: output, stderr: output2 }, child_group)?;
        let leader = Who::of(child.pid());
        let all = self.around.cgroups.group(&self.name)?;
        let owner = Owner::start(&self.name, Leader::Ours(child), all, place.runtime.clone(), lease)?;

        let deadline = Instant::now() + limits::CONTAINER_START;
        let first = loop {
            let born = Birth::begin(&runtime, deadline)
                .and_then(|birth| birth.finish(&|pid| group.contains(pid), || self.new_group()));
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
        let init = parent_of(first.pid).and_then(Who::of);
        let init_fd = init.and_then(|init| pidfd_open(Pid::from_raw(init.pid)?, PidfdFlags::empty()).ok());
        let (Some(leader), Some(init), Some(init_fd), Some(uid_base)) =
            (leader, init, init_fd, uid_base(first.pid))
        else {
            return Err(Error::new(Code::ContainerStopped, "The container stopped while it started"));
        };
        // It lives, so its parent does, and the numbers were theirs.
        if has_ended(first.pidfd.as_fd()) {
            return Err(gone());
        }
        // Both are charged to the container's memory, and their end is the container's: the workload goes first. What
        // everything inside comes from has been forked by now.
        for one in [leader, init] {
            protect_other_from_oom(one.pid, || Who::of(one.pid) == Some(one));
        }
        let mut state = State::new(leader, init, group.inside().unwrap_or_default());
        let Some(pulses) = state.pulses() else {
            return Err(Error::new(Code::ContainerStopped, "The container stopped while it started"));
        };
        (state.network, state.link) = (place.network, link);
        if mounts.is_some() {
            state.mounts = binds::bound(&place.runtime);
        }
        if let Err(error) = state.write(&place.runtime) {
            // It works all the same; only a later server will not find it.
            log::warn!("container {}: {error}", self.name);
        }
        log::debug!("container {} started, uids {uid_base}+65536", place.machine);
        Ok(Running {
            state,
            adopted: false,
            runtime,
            group,
            agents: self.agents()?,
            uid_base,
            _root: root.held,
            pids: pid_namespace(init.pid),
            init: init_fd,
            pulses,
            spares: Mutex::new(vec![first]),
            groups: Mutex::default(),
            oom_killed: AtomicBool::new(false),
            owner,
        })
    }

    /// Takes over what an earlier server left running, as it is. Groups of commands that were under way then and that
    /// `keep` does not want are ended; what ended commands left in the background goes on. `false`: there is nothing to
    /// take over; whatever is left is the caller's to end.
    ///
    /// # Errors
    /// When the machine refuses something; nothing has been taken over then.
    pub(super) fn adopt(&self, keep: &dyn Fn(&str) -> bool) -> Result<bool> {
        let mut slot = lock(&self.state);
        let place = lock(&self.place).clone();
        let Some(state) = State::read(&place.runtime) else { return Ok(false) };
        let mut group = self.around.cgroups.group(&self.name)?;
        if !self.around.cgroups.certain()
            || state.protocol != protocol::VERSION
            || group.inside().as_ref() != Some(&state.cgroup)
        {
            return Ok(false);
        }
        let Some(((leader, init), pulses)) = state.find(&group).zip(state.pulses()) else { return Ok(false) };
        let Some(uid_base) = uid_base(state.init_pid()) else { return Ok(false) };
        let runtime = open_dir(&place.runtime)?;
        if door::call(&runtime).is_err() {
            return Ok(false);
        }
        let pids = pid_namespace(state.init_pid());
        // A server that was killed while it took a snapshot.
        group.freeze(false)?;
        group.hold(&place.limits)?;
        let root = self.around.roots.adopt(&place.site(), state.leader_pid())?;
        // Both live, so the numbers were theirs all the time.
        if has_ended(init.as_fd()) || has_ended(leader.as_fd()) {
            return Ok(false);
        }
        for name in group.children("runs") {
            let path = format!("runs/{name}");
            self.sequence.fetch_max(name.parse::<u64>().map_or(0, |number| number + 1), Ordering::Relaxed);
            let run = self.around.cgroups.group(&format!("{}/{path}", self.name))?;
            if run.is_left() {
                continue;
            }
            if keep(&path) {
                // Its keeper's: to remove it, or only to try, marks it as one whose command has ended.
                run.let_go();
            } else {
                run.kill(None)?;
            }
        }
        let all = self.around.cgroups.group(&self.name)?;
        let lease = state.link.clone().and_then(|link| self.around.networks.adopt(link));
        if lease.is_none() && state.link.is_some() {
            // Its link is gone, and without a name nobody would guard what may come under it.
            return Ok(false);
        }
        let owner = Owner::start(&self.name, Leader::Adopted(leader), all, place.runtime.clone(), lease)?;
        log::info!("container {} runs on, since {}", self.name, clock::rfc3339(state.started_at));
        *slot = Some(Arc::new(Running {
            state,
            adopted: true,
            runtime,
            group,
            agents: self.agents()?,
            uid_base,
            _root: root,
            pids,
            init,
            pulses,
            spares: Mutex::default(),
            groups: Mutex::default(),
            oom_killed: AtomicBool::new(false),
            owner,
        }));
        *lock(&self.load.idle_since) = Instant::now();
        let _ = self.wishes.watch.try_send(());
        Ok(true)
    }

    /// The group of nspawn and the agent, which somebody else removes.
    fn agents(&self) -> Result<Arc<Group>> {
        let group = self.around.cgroups.group(&format!("{}/{AGENTS}", self.name))?;
        group.let_go();
        Ok(Arc::new(group))
    }

    /// A group for one command.
    fn new_group(&self) -> Result<Group> {
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut group = self.around.cgroups.group(&format!("{}/runs/{number}", self.name))?;
        group.account()?;
        Ok(group)
    }

    /// The same for a process that is to wait.
    pub(super) fn group_for_spare(&self, running: &Running) -> Result<Group> {
        let used = lock(&running.groups).pop();
        used.map_or_else(|| self.new_group(), Ok)
    }

    /// Tries something again that fails where a container ends, or where something inside takes what a start needs: with
    /// another process, since someone may have killed the first, and with the container's successor. One that lives is
    /// never ended for it, since other things run there. At most `patience`.
    fn insist<T>(&self, patience: Option<Duration>, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let patience = patience.map_or(limits::INSIST, |own| own.min(limits::INSIST));
        let (begun, mut pause) = (Instant::now(), Duration::from_millis(5));
        loop {
            let error = match attempt() {
                Err(error) if error.code() == Code::ContainerStopped => error,
                done => return done,
            };
            if begun.elapsed() + pause >= patience {
                let lives = self.present().is_some_and(|running| running.takes_commands());
                return Err(if lives { full().because(error) } else { error });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(limits::INSIST / 20);
        }
    }

    fn open_terminal(&self) -> Result<Pty> {
        let running = self.running()?;
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
        let busy = self.busy();
        let running = self.running()?;
        let deadline = Instant::now()
            + command.patience.map_or(limits::AGENT_ANSWER, |own| own.min(limits::AGENT_ANSWER));
        let mut spare = None;
        let fits = |spare: &Spare| !command.account || !spare.group.is_reused();
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
                    true => self.new_group(),
                    false => self.group_for_spare(&running),
                };
                Birth::begin(&running.runtime, deadline)?.finish(&|pid| running.contains(pid), group)?
            }
        };
        let mut doors = Vec::new();
        if let Some(limits) = command.limits.filter(|limits| !limits.is_empty()) {
            self.around.cgroups.confine(&mut spare.group, &limits)?;
            doors = spare.group.doors_of_limits()?;
        }
        self.wishes.refill.ask(self, &running);

        // Otherwise `echo x >/dev/stderr` fails inside.
        let outside = |id: u32| running.uid_base.saturating_add(id);
        let (uid, gid) = command.user.as_ref().map_or((0, 0), |user| (user.uid, user.gid));
        stdio.give_to(Uid::from_raw(outside(uid)), Gid::from_raw(outside(gid)), command.tty);
        let mark = spare.group.mark();
        let mut answers = Answers::default();
        let begun = protocol::send_command(&spare.socket, command, mark.as_ref(), stdio, &doors, deadline)
            .and_then(|()| {
                let refused = |answer| refused(&answer, &command.cwd);
                protocol::receive_accepted(&spare.socket, &mut answers, deadline, refused)
            });
        if let Err(error) = begun {
            // One that somebody inside has stopped would wait for ever.
            let _ = pidfd_send_signal(&spare.pidfd, Signal::KILL);
            return Err(error);
        }
        let Spare { socket, pid, pidfd, group } = spare;
        let reach = Reach { pid, pidfd: Arc::new(pidfd), group: Arc::new(group) };
        let cwd = command.cwd.clone();
        Ok(ContainerProcess {
            agents: running.agents.clone(),
            running: Some(running),
            socket,
            reach,
            answers,
            exit: None,
            cwd,
            busy: Some(busy),
            handed: false,
            told: Cell::default(),
        })
    }
}

impl Launcher for Arc<Machine> {
    fn launch(&self, _id: &str, command: &Command, stdio: Stdio) -> Result<Box<dyn Process>> {
        // As long as the command has not been accepted, nothing of it has run.
        self.insist(command.patience, || Ok(Box::new(self.begin(command, &stdio)?) as Box<dyn Process>))
    }

    fn terminal(&self) -> Result<Pty> {
        self.insist(None, || self.open_terminal())
    }

    fn file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>> {
        let site = lock(&self.place).site();
        self.around.roots.files(&site)?.read(path.trim_start_matches('/'), max_bytes)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}
