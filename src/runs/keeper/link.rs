//! The server's side of one keeper: starts the keeper or reconnects to it, and sends it requests.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value};

use super::super::keeper_control::KeeperControl;
use super::super::live::Live;
use super::super::request::{LaunchPlan, Stdin};
use super::super::run::{Run, RunRecord};
use super::super::spool::SpoolState;
use super::super::table::ActiveRun;
use super::wire::{
    KeeperJob, KeeperMessage, KeeperRequest, KeeperWork, Received, VERSION, connect_to_keeper, pair, receive,
    send, write_job,
};
use crate::base::input_bytes::InputBytes;
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::spawn::dev_null;
use crate::proc::{Cgroups, Child, Group, HandoverGuard, Launcher, SignalHandle, Spec, Stdio};

/// A connection to a keeper, usable from any thread.
#[derive(Debug)]
pub struct KeeperLink {
    pub(super) socket: OwnedFd,
}

/// The place where a detached run is started.
pub enum LaunchTarget<'a> {
    /// The keeper starts the command on the host: the kernel reports the end of a process only to its parent.
    Host {
        folder: PathBuf,
        /// Parent cgroup of the command's cgroup.
        group: String,
    },
    /// This launcher starts the command, and the keeper takes it over.
    Launcher(&'a dyn Launcher),
}

/// A run with a live keeper, as its server sees it.
pub struct KeptRun {
    pub(super) active: ActiveRun,
    pub(super) link: Arc<KeeperLink>,
    /// Keeps the container of the run from being stopped as idle.
    pub(super) hold: Box<dyn HandoverGuard>,
    pub(super) keeper: KeeperProcess,
    /// Time at which a cancelled run is killed without its keeper.
    pub(super) give_up: Option<Instant>,
}

/// The keeper's process.
pub(super) enum KeeperProcess {
    Ours(Child),
    /// The keeper was started by an earlier server.
    Adopted(Group),
}

/// The greeting of a keeper.
struct KeeperHello {
    signal_handle: SignalHandle,
    started_at: String,
    stdin: Option<OwnedFd>,
    tty: bool,
}

impl KeeperControl for KeeperLink {
    fn close_stdin(&self) {
        send(&self.socket, &KeeperRequest::CloseStdin, &[]);
    }

    fn shrink(&self, keep: u64) {
        send(&self.socket, &KeeperRequest::Shrink(keep), &[]);
    }
}

impl KeeperLink {
    pub(super) fn cancel(&self) {
        send(&self.socket, &KeeperRequest::Cancel, &[]);
    }
}

impl KeptRun {
    pub fn run(&self) -> &Arc<Run> {
        &self.active.run
    }

    /// Sets the hold on the container, for a run that an earlier server started.
    pub fn set_hold(&mut self, hold: Box<dyn HandoverGuard>) {
        self.hold = hold;
    }

    /// Starts a run and its keeper.
    ///
    /// # Errors
    /// When the run or its keeper could not be started; no process is left running.
    pub fn start(
        cgroups: &Cgroups,
        running: ActiveRun,
        place: LaunchTarget<'_>,
        window: u64,
        plan: LaunchPlan,
    ) -> Result<KeptRun> {
        let run = running.run.clone();
        let folder = run.folder.clone().ok_or_else(|| Error::internal("A detached run has no directory"))?;
        let (ours, theirs) = pair()?;
        rustix::io::ioctl_fionbio(&ours, true).at("prepare", "a socket")?;
        let timeout = plan.timeout;
        let job = |stdin: Option<InputBytes>, work: KeeperWork| -> Result<OwnedFd> {
            // stdin arrived as text in JSON, so the conversion loses nothing.
            let stdin = stdin.map(InputBytes::into_vec).transpose()?;
            let stdin = stdin.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let (record, folder, cgroups) = (run.record(), folder.clone(), cgroups.handle());
            write_job(&KeeperJob { record, folder, window, timeout, cgroups, stdin, work })
        };
        let keeper = start_keeper(cgroups, &folder, &run, theirs)?;
        let mut started = None;
        let (file, fds, hold): (OwnedFd, Vec<OwnedFd>, Box<dyn HandoverGuard>) = match place {
            LaunchTarget::Host { folder, group } => {
                let LaunchPlan { command, stdin, pty, .. } = plan;
                let (bytes, open_stdin) = match stdin {
                    Stdin::Empty => (None, false),
                    Stdin::Open => (None, true),
                    Stdin::Bytes(bytes) => (Some(bytes), false),
                };
                let work = KeeperWork::Start { folder, group, command, pty, open_stdin };
                (job(bytes, work)?, Vec::new(), Box::new(()))
            }
            LaunchTarget::Launcher(launcher) => {
                let tty = plan.pty.is_some();
                let parts = Live::start(launcher, &run, plan)?.hand_over()?;
                started = run.signal_handle();
                let handed = parts.handed;
                let (fed, bytes) = parts.stdin.unzip();
                let stdin = fed.or_else(|| run.input.share());
                let work = KeeperWork::Watch {
                    pid: handed.pid,
                    group: handed.group,
                    read: handed.read,
                    stdin: stdin.is_some(),
                    tty,
                };
                let mut fds = vec![handed.pidfd, handed.socket, parts.stdout, parts.stderr];
                fds.extend(stdin);
                (job(bytes, work)?, fds, parts.hold)
            }
        };
        let borrowed: Vec<_> = [&file].into_iter().chain(&fds).map(|fd| fd.as_fd()).collect();
        let met = if send(&ours, &KeeperRequest::Job, &borrowed) {
            receive_hello(cgroups, &ours)
        } else {
            Err(no_answer())
        };
        let (hello, marks) = match met {
            Ok(met) => met,
            Err(error) => {
                if let Some(SignalHandle { pid, group, .. }) = started {
                    group.kill(Some(pid))?;
                }
                return Err(error);
            }
        };
        let link = Arc::new(KeeperLink { socket: ours });
        attach(&run, hello, &link);
        if let Some(spool) = &run.spool {
            spool.set_state(marks);
        }
        run.waiters.notify_all();
        Ok(KeptRun { active: running, link, hold, keeper: KeeperProcess::Ours(keeper), give_up: None })
    }
}

/// Result of the search for the keeper of a run.
pub(in super::super) enum KeeperLookup {
    /// The keeper answered.
    Alive(Box<FoundKeeper>),
    /// The keeper has exited.
    Gone,
}

/// A keeper of an earlier server that answered.
pub(in super::super) struct FoundKeeper {
    hello: KeeperHello,
    link: KeeperLink,
    keeper: Group,
    pub(in super::super) marks: SpoolState,
}

impl FoundKeeper {
    /// Connects to the keeper of a run and waits for its greeting.
    pub(in super::super) fn find(cgroups: &Cgroups, folder: &Path, record: &RunRecord) -> KeeperLookup {
        let Ok(socket) = connect_to_keeper(folder) else { return KeeperLookup::Gone };
        let keeper = cgroups.group_again(&group_of(&record.id.simple().to_string()));
        match (receive_hello(cgroups, &socket), keeper) {
            (Ok((hello, marks)), Ok(keeper)) => KeeperLookup::Alive(Box::new(FoundKeeper {
                hello,
                link: KeeperLink { socket },
                keeper,
                marks,
            })),
            (met, keeper) => {
                for error in [met.err(), keeper.err()].into_iter().flatten() {
                    log::warn!("Keeper of run {}: {error}", record.id);
                }
                KeeperLookup::Gone
            }
        }
    }

    /// Attaches the found keeper to its run.
    pub(in super::super) fn resume(self, running: ActiveRun) -> KeptRun {
        let FoundKeeper { hello, link, keeper, .. } = self;
        let link = Arc::new(link);
        attach(&running.run, hello, &link);
        KeptRun {
            active: running,
            link,
            hold: Box::new(()),
            keeper: KeeperProcess::Adopted(keeper),
            give_up: None,
        }
    }
}

fn no_answer() -> Error {
    Error::internal("The keeper of a run does not answer")
}

fn group_of(id: &str) -> String {
    format!("keepers/{id}")
}

/// Returns the cgroups of a run that must not be removed as leftovers: its keeper's cgroup and the command's.
pub(in super::super) fn groups(run: &Run) -> Option<[String; 2]> {
    let own = run.signal_handle()?.group.path().to_owned();
    Some([group_of(&run.id.simple().to_string()), own])
}

fn start_keeper(cgroups: &Cgroups, folder: &Path, run: &Run, socket: OwnedFd) -> Result<Child> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = folder.join("keeper.log");
    let log = std::fs::File::options().append(true).create(true).mode(0o600).open(&path).at("make", &path)?;
    let stdio = Stdio { stdin: socket, stdout: dev_null()?, stderr: log.into() };
    let group = cgroups.group(&group_of(&run.id.simple().to_string()))?;
    // Execute the running binary, even if its path has been replaced (proc(5)). The directory argument is for
    // ps(1).
    Spec::new("/proc/self/exe")
        .args(["keeper".to_owned(), folder.to_string_lossy().into_owned()])
        .start(stdio, group)
}

/// Waits for a keeper's greeting and for its first message about the output.
fn receive_hello(cgroups: &Cgroups, socket: &OwnedFd) -> Result<(KeeperHello, SpoolState)> {
    let deadline = Instant::now() + limits::KEEPER_ANSWER;
    let mut hello = None;
    loop {
        match receive::<KeeperMessage>(socket) {
            Received::Message(KeeperMessage::Hello { version, .. }, _) if version != VERSION => {
                return Err(Error::internal("The keeper belongs to another version of berth"));
            }
            Received::Message(KeeperMessage::Hello { pid, group, started_at, stdin, tty, .. }, fds) => {
                let mut fds = fds.into_iter();
                let pidfd = Arc::new(fds.next().ok_or_else(no_answer)?);
                let group = Arc::new(cgroups.group_again(&group)?);
                let signal_handle = SignalHandle { pid, pidfd, group };
                hello =
                    Some(KeeperHello { signal_handle, started_at, stdin: fds.next().filter(|_| stdin), tty });
            }
            Received::Message(KeeperMessage::Refused { code, message, details }, _) => {
                return Err(error_of(&code, message, details));
            }
            Received::Message(KeeperMessage::Marks(marks), _) => {
                if let Some(hello) = hello.take() {
                    return Ok((hello, marks));
                }
            }
            // The record repeats the result of the run, so it is not needed here.
            Received::Message(KeeperMessage::End(_, marks), _) => match hello.take() {
                Some(hello) => return Ok((hello, marks)),
                None => return Err(no_answer()),
            },
            Received::Gone => return Err(no_answer()),
            Received::Nothing => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(no_answer());
                }
                let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
                let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout));
            }
        }
    }
}

fn error_of(code: &str, message: String, details: Map<String, Value>) -> Error {
    // Error codes that the start of a command may return.
    let known = [
        Code::InvalidCommand,
        Code::InvalidCwd,
        Code::InvalidUser,
        Code::Unavailable,
        Code::SpawnFailed,
        Code::DiskFull,
    ];
    let code = known.into_iter().find(|known| known.as_str() == code).unwrap_or(Code::Internal);
    details.into_iter().fold(Error::new(code, message), |error, (name, value)| error.detail(&name, value))
}

/// Connects a run with the process, stdin and spool of its keeper.
fn attach(run: &Run, hello: KeeperHello, link: &Arc<KeeperLink>) {
    run.attach_kept(hello.signal_handle, hello.started_at);
    if let Some(spool) = &run.spool {
        spool.set_keeper(link.clone());
    }
    run.input.set_keeper(link.clone());
    if let Some(fd) = hello.stdin {
        run.input.open(fd, hello.tty);
    }
}
