//! The server's side of one keeper: starting it, finding it again, asking it for something.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value};

use super::super::kept::KeeperControl;
use super::super::live::Live;
use super::super::request::{Plan, Stdin};
use super::super::run::{Record, Run};
use super::super::spool::Marks;
use super::super::table::Running;
use super::wire::{Ask, Job, Received, Told, VERSION, Work, call, pair, receive, send, write_job};
use crate::base::parcel::Parcel;
use crate::base::{At, Code, Error, Result, limits};
use crate::proc::spawn::dev_null;
use crate::proc::{Cgroups, Child, Group, Hold, Launcher, Reach, Spec, Stdio};

/// A way to ask a keeper for something, from any thread.
#[derive(Debug)]
pub struct Link {
    pub(super) socket: OwnedFd,
}

/// Where a kept run is started.
pub enum Place<'a> {
    /// On the host: by the keeper itself, for only a parent learns how its child ends.
    Host {
        /// The workspace's folder.
        folder: PathBuf,
        /// The group that the command's own is made in.
        group: String,
    },
    /// Elsewhere; the keeper takes over.
    Launcher(&'a dyn Launcher),
}

/// A run whose keeper is there.
pub struct Kept {
    pub(super) running: Running,
    pub(super) link: Arc<Link>,
    /// What it needs of the place where it runs.
    pub(super) hold: Box<dyn Hold>,
    pub(super) keeper: Keeper,
    /// It was asked to end; then its end is made sure of without its keeper.
    pub(super) give_up: Option<Instant>,
}

/// The keeper's process.
pub(super) enum Keeper {
    Ours(Child),
    /// Started by an earlier server.
    Found(Group),
}

/// What a keeper says of its run.
struct Hello {
    reach: Reach,
    started_at: String,
    stdin: Option<OwnedFd>,
    tty: bool,
}

impl KeeperControl for Link {
    fn close_stdin(&self) {
        send(&self.socket, &Ask::CloseStdin, &[]);
    }

    fn shrink(&self, keep: u64) {
        send(&self.socket, &Ask::Shrink(keep), &[]);
    }
}

impl Link {
    pub(super) fn cancel(&self) {
        send(&self.socket, &Ask::Cancel, &[]);
    }
}

impl Kept {
    /// The run.
    pub fn run(&self) -> &Arc<Run> {
        &self.running.run
    }

    /// What it needs of the place where it runs, for one that an earlier server started.
    pub fn set_hold(&mut self, hold: Box<dyn Hold>) {
        self.hold = hold;
    }

    /// Starts a run and its keeper.
    ///
    /// # Errors
    /// When one of them could not be started: then nothing runs.
    pub fn start(
        cgroups: &Cgroups,
        running: Running,
        place: Place<'_>,
        window: u64,
        plan: Plan,
    ) -> Result<Kept> {
        let run = running.run.clone();
        let folder = run.folder.clone().ok_or_else(|| Error::internal("a kept run has a folder"))?;
        let (ours, theirs) = pair()?;
        rustix::io::ioctl_fionbio(&ours, true).at("prepare", "a socket")?;
        let timeout = plan.timeout;
        let job = |stdin: Option<Parcel>, work: Work| -> Result<OwnedFd> {
            // It came as text.
            let stdin = stdin.map(Parcel::into_vec).transpose()?;
            let stdin = stdin.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let (record, folder, cgroups) = (run.record(), folder.clone(), cgroups.handle());
            write_job(&Job { record, folder, window, timeout, cgroups, stdin, work })
        };
        let keeper = start_keeper(cgroups, &folder, &run, theirs)?;
        let mut started = None;
        let (file, fds, hold): (OwnedFd, Vec<OwnedFd>, Box<dyn Hold>) = match place {
            Place::Host { folder, group } => {
                let Plan { command, stdin, pty, .. } = plan;
                let (bytes, open_stdin) = match stdin {
                    Stdin::Empty => (None, false),
                    Stdin::Open => (None, true),
                    Stdin::Bytes(bytes) => (Some(bytes), false),
                };
                let work = Work::Start { folder, group, command, pty, open_stdin };
                (job(bytes, work)?, Vec::new(), Box::new(()))
            }
            Place::Launcher(launcher) => {
                let tty = plan.pty.is_some();
                let parts = Live::start(launcher, &run, plan)?.hand_over()?;
                started = run.reach();
                let handed = parts.handed;
                let (fed, bytes) = parts.stdin.unzip();
                let stdin = fed.or_else(|| run.input.share());
                let work = Work::Watch {
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
        let met = if send(&ours, &Ask::Job, &borrowed) { meet(cgroups, &ours) } else { Err(lost()) };
        let (hello, marks) = match met {
            Ok(met) => met,
            Err(error) => {
                if let Some(Reach { pid, group, .. }) = started {
                    group.kill(Some(pid))?;
                }
                return Err(error);
            }
        };
        let link = Arc::new(Link { socket: ours });
        follow(&run, hello, &link);
        if let Some(spool) = &run.spool {
            spool.set_marks(marks);
        }
        run.bells.ring();
        Ok(Kept { running, link, hold, keeper: Keeper::Ours(keeper), give_up: None })
    }
}

/// What was found where an earlier server left a run.
pub(in super::super) enum Found {
    /// It runs.
    Runs(Box<Met>),
    /// Its keeper is gone.
    Gone,
}

/// A keeper that answered.
pub(in super::super) struct Met {
    hello: Hello,
    link: Link,
    keeper: Group,
    pub(in super::super) marks: Marks,
}

impl Met {
    /// Calls the keeper of a run.
    pub(in super::super) fn find(cgroups: &Cgroups, folder: &Path, record: &Record) -> Found {
        let Ok(socket) = call(folder) else { return Found::Gone };
        let keeper = cgroups.group_again(&group_of(&record.id.simple().to_string()));
        match (meet(cgroups, &socket), keeper) {
            (Ok((hello, marks)), Ok(keeper)) => {
                Found::Runs(Box::new(Met { hello, link: Link { socket }, keeper, marks }))
            }
            (met, keeper) => {
                for error in [met.err(), keeper.err()].into_iter().flatten() {
                    log::warn!("the keeper of run {}: {error}", record.id);
                }
                Found::Gone
            }
        }
    }

    /// Goes on with the run.
    pub(in super::super) fn go_on(self, running: Running) -> Kept {
        let Met { hello, link, keeper, .. } = self;
        let link = Arc::new(link);
        follow(&running.run, hello, &link);
        Kept { running, link, hold: Box::new(()), keeper: Keeper::Found(keeper), give_up: None }
    }
}

fn lost() -> Error {
    Error::internal("The keeper of a run does not answer")
}

fn group_of(id: &str) -> String {
    format!("keepers/{id}")
}

/// The names of the groups of a run that are not to be swept: its keeper's and its own.
pub(in super::super) fn groups(run: &Run) -> Option<[String; 2]> {
    let own = run.reach()?.group.path().to_owned();
    Some([group_of(&run.id.simple().to_string()), own])
}

fn start_keeper(cgroups: &Cgroups, folder: &Path, run: &Run, socket: OwnedFd) -> Result<Child> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = folder.join("keeper.log");
    let log = std::fs::File::options().append(true).create(true).mode(0o600).open(&path).at("make", &path)?;
    let stdio = Stdio { stdin: socket, stdout: dev_null()?, stderr: log.into() };
    let group = cgroups.group(&group_of(&run.id.simple().to_string()))?;
    // The file that we run, whatever its path means by now (proc(5)). The folder is for whoever reads ps.
    Spec::new("/proc/self/exe")
        .args(["keeper".to_owned(), folder.to_string_lossy().into_owned()])
        .start(stdio, group)
}

/// Waits for a keeper's greeting, and how much output there is.
fn meet(cgroups: &Cgroups, socket: &OwnedFd) -> Result<(Hello, Marks)> {
    let deadline = Instant::now() + limits::KEEPER_ANSWER;
    let mut hello = None;
    loop {
        match receive::<Told>(socket) {
            Received::Message(Told::Hello { version, .. }, _) if version != VERSION => {
                return Err(Error::internal("it is of another version of berth"));
            }
            Received::Message(Told::Hello { pid, group, started_at, stdin, tty, .. }, fds) => {
                let mut fds = fds.into_iter();
                let pidfd = Arc::new(fds.next().ok_or_else(lost)?);
                let group = Arc::new(cgroups.group_again(&group)?);
                let reach = Reach { pid, pidfd, group };
                hello = Some(Hello { reach, started_at, stdin: fds.next().filter(|_| stdin), tty });
            }
            Received::Message(Told::Refused { code, message, details }, _) => {
                return Err(error_of(&code, message, details));
            }
            Received::Message(Told::Marks(marks), _) => {
                if let Some(hello) = hello.take() {
                    return Ok((hello, marks));
                }
            }
            // Told again by the record.
            Received::Message(Told::End(_, marks), _) => match hello.take() {
                Some(hello) => return Ok((hello, marks)),
                None => return Err(lost()),
            },
            Received::Gone => return Err(lost()),
            Received::Nothing => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(lost());
                }
                let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
                let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout));
            }
        }
    }
}

fn error_of(code: &str, message: String, details: Map<String, Value>) -> Error {
    // What starting a command may refuse.
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

/// From now on the run is reached through its keeper.
fn follow(run: &Run, hello: Hello, link: &Arc<Link>) {
    run.attach_kept(hello.reach, hello.started_at);
    if let Some(spool) = &run.spool {
        spool.mirror(link.clone());
    }
    run.input.keep(link.clone());
    if let Some(fd) = hello.stdin {
        run.input.open(fd, hello.tty);
    }
}
