//! The life of OpenCode: started, asked until it answers, waited for, ended with all that it started, and started again
//! after a pause. One thread decides, another one reads what the process prints and waits for its end.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::output::{LOG, LOG_BYTES, Output, is_exposed};
use super::{Change, Current, ENDS, ENDS_WITHIN, LONGEST_PAUSE, Plan, Restart, Surroundings};
use crate::base::redact::{Redactor, is_secret_name};
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Code, Result, limits};
use crate::lifecycle::sandbox::{FOLDER, PROGRAM, Sandbox};
use crate::opencode::managed::{Phase, State};
use crate::opencode::{Managed, Place, Target, health};
use crate::proc::spawn::{PATH, dev_null, pipe};
use crate::proc::{
    Cancel, Child, Command, Ended, Exit, Io, Limits, Process, Reach, Spec, Stdio, Waker, Whom, c_string, pump,
};
use crate::store::rolling::RollingLog;

/// The deadline of one question whether it answers.
const HEALTH_PATIENCE: Duration = Duration::from_secs(1);
/// The pause between two such questions.
const HEALTH_PAUSE: Duration = Duration::from_millis(50);
/// The time between TERM and KILL.
const GRACE: Duration = Duration::from_secs(2);
/// It has no deadline: longer than any machine is up.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The thread's own state.
pub(super) struct Supervisor {
    plan: Plan,
    managed: Arc<Managed>,
    surroundings: Surroundings,
    stop: Cancel,
    redactor: Redactor,
    current: Current,
}

/// A process of OpenCode.
struct Attempt {
    pid: i32,
    output: Arc<Output>,
    /// Readable when the output has an address, and when the process has ended.
    news: Arc<Waker>,
    reach: Reach,
    kill: Cancel,
    ending: Arc<Mutex<Option<Ending>>>,
    _reader: JoinOnDrop,
}

/// How a process ended.
#[derive(Clone, Debug)]
enum Ending {
    Exited(Exit, Option<bool>),
    Killed,
    Lost(String),
}

/// Why the supervisor is done with a process.
enum Why {
    /// The server stops.
    Stop,
    /// The process ended, or was ended since it did not answer.
    Ended(String),
}

/// What ended a wait.
#[derive(PartialEq, Eq)]
enum Woken {
    News,
    Again,
    Stop,
    Late,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Exited(_, Some(true)) => {
                f.write_str("out of memory: the kernel killed it at its memory limit")
            }
            Ending::Exited(exit, _) => exit.fmt(f),
            Ending::Killed => f.write_str("killed"),
            Ending::Lost(why) => f.write_str(why),
        }
    }
}

impl Supervisor {
    pub(super) fn new(
        plan: Plan,
        managed: Arc<Managed>,
        surroundings: Surroundings,
        stop: Cancel,
        current: Current,
    ) -> Supervisor {
        let variables = plan.env.iter().filter(|(name, _)| is_secret_name(name));
        let secrets = variables.map(|(_, value)| value.as_str()).chain([managed.credential().1]);
        let secrets = secrets.chain(surroundings.secrets.iter().map(String::as_str));
        let redactor = Redactor::knowing(secrets);
        Supervisor { plan, managed, surroundings, stop, redactor, current }
    }

    pub(super) fn run(self) {
        let mut ends: VecDeque<Instant> = VecDeque::new();
        while !self.stop.is_cancelled() {
            let reason = match self.once() {
                Why::Stop => break,
                Why::Ended(reason) => reason,
            };
            ends.push_back(Instant::now());
            while ends.front().is_some_and(|end| end.elapsed() > ENDS_WITHIN) {
                ends.pop_front();
            }
            let given_up = match self.plan.restart {
                Restart::OnFailure => ends.len() >= ENDS,
                Restart::Always => false,
                Restart::Never => true,
            };
            if given_up {
                let count = ends.len();
                self.enter(Phase::Failed, &format!("OpenCode failed after {count} ends; the last: {reason}"));
                if self.wait(None, None) == Woken::Stop {
                    break;
                }
                ends.clear();
                continue;
            }
            let pause = pause(ends.len());
            if self.wait(None, Some(Instant::now() + pause)) == Woken::Stop {
                break;
            }
        }
        self.enter(Phase::Stopped, "OpenCode stopped with the server");
    }

    /// One process, from its start to its end.
    fn once(&self) -> Why {
        self.managed.update(|state| {
            state.phase = Phase::Starting;
            state.starts += 1;
            state.pid = None;
        });
        let begun = Instant::now();
        let attempt = match self.start() {
            Ok(attempt) => attempt,
            Err(error) => return self.ended(error.to_string()),
        };
        self.managed.update(|state| state.pid = Some(attempt.pid));
        let number = self.managed.state().starts;
        self.tell("starting", format!("OpenCode starts (start {number}, process {})", attempt.pid));
        // Its container may have been built first.
        match self.until_it_answers(&attempt, Instant::now() + self.plan.start_timeout) {
            Ok(()) => {}
            Err(Why::Stop) => {
                attempt.end();
                return Why::Stop;
            }
            Err(Why::Ended(reason)) => {
                attempt.end();
                return self.ended(reason);
            }
        }
        let State { url, version, .. } = self.managed.state();
        let (url, version) = (url.unwrap_or_default(), version.unwrap_or_else(|| "?".to_owned()));
        let took = begun.elapsed().as_millis();
        self.enter(Phase::Running, &format!("OpenCode {version} answers on {url} after {took} ms"));
        loop {
            let woken = self.wait(Some(&attempt), None);
            if woken == Woken::Stop {
                attempt.end();
                return Why::Stop;
            }
            if let Some(reason) = attempt.reason() {
                attempt.end();
                return self.ended(reason);
            }
        }
    }

    fn ended(&self, reason: String) -> Why {
        self.managed.update(|state| {
            state.phase = Phase::Starting;
            state.pid = None;
            state.reason = Some(reason.clone());
        });
        self.tell("ended", format!("OpenCode ended: {reason}"));
        Why::Ended(reason)
    }

    fn start(&self) -> Result<Attempt> {
        let (out, out_child) = pipe()?;
        let (err, err_child) = pipe()?;
        let stdio = Stdio { stdin: dev_null()?, stdout: out_child, stderr: err_child };
        let mut child: Box<dyn Process> = match &self.surroundings.sandbox {
            Some(sandbox) => self.launch_in(sandbox, stdio)?,
            None => Box::new(self.spawn(stdio)?),
        };
        let log = RollingLog::open(&self.surroundings.folder.join(LOG), LOG_BYTES);
        let log = log.inspect_err(|error| log::warn!("OpenCode has no log: {error}")).ok();
        let news = Arc::new(Waker::new()?);
        let output = Arc::new(Output::new(log, self.redactor.clone(), news.clone()));
        let reach = child.reach();
        let pid = reach.pid;
        let current = self.current.clone();
        *lock(&current) = Some(reach.clone());
        output.note(&format!("OpenCode starts as process {pid}"));
        let kill = Cancel::new()?;
        let ending = Arc::default();
        let reader = spawn("opencode-output".into(), limits::STACK, {
            let (output, news, kill, ending) =
                (output.clone(), news.clone(), kill.clone(), Arc::clone(&ending));
            move || {
                let pumped = {
                    let (mut stdout, mut stderr) = (output.stream(false), output.stream(true));
                    let io = Io { stdin: None, stdout: out, stderr: err, out: &mut stdout, err: &mut stderr };
                    pump(child.as_mut(), io, FOREVER, &kill)
                };
                // Its MCP servers and what else it started: they would go on without it.
                child.kill();
                lock(&current).take();
                let end = match pumped {
                    Ok(Ended::Exited(exit)) => Ending::Exited(exit, child.oom_killed()),
                    Ok(Ended::Cancelled | Ended::TimedOut) => Ending::Killed,
                    Err(error) => Ending::Lost(error.to_string()),
                };
                output.note(&format!("OpenCode ended: {end}"));
                *lock::<Option<Ending>>(&ending) = Some(end);
                news.wake();
            }
        })?;
        Ok(Attempt { pid, output, news, reach, kill, ending, _reader: reader })
    }

    /// The arguments of OpenCode.
    fn arguments(&self, host: &str, port: &str) -> Vec<String> {
        let level = &self.plan.log_level;
        let words = ["serve", "--hostname", host, "--port", port, "--print-logs", "--log-level", level];
        words.map(str::to_owned).to_vec()
    }

    fn credential(&self) -> [(String, String); 2] {
        let (username, password) = self.managed.credential();
        [("OPENCODE_SERVER_USERNAME", username), ("OPENCODE_SERVER_PASSWORD", password)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    }

    /// On the host, in a group of its own.
    fn spawn(&self, stdio: Stdio) -> Result<Child> {
        let path = format!("opencode/{}", self.managed.state().starts);
        let cgroups = &self.surroundings.cgroups;
        let limits =
            Limits { memory_bytes: self.managed.memory_bytes(), ..cgroups.capacity().one_container() };
        let enforced = cgroups.enforcement();
        let limits = Limits {
            swap_bytes: limits.swap_bytes.filter(|_| enforced.swap_bytes.enforced),
            pids: limits.pids.filter(|_| enforced.pids.enforced),
            ..limits
        };
        let group = cgroups.group_within(&path, Some(&limits))?;
        Spec::bare(&self.plan.program, &self.plan.folder)
            .args(self.arguments("127.0.0.1", &self.plan.port.to_string()))
            .envs(&self.plan.env)
            .envs(&self.credential())
            .start(stdio, group)
    }

    /// In its container, where the host's folders and programs do not exist.
    fn launch_in(&self, sandbox: &Sandbox, stdio: Stdio) -> Result<Box<dyn Process>> {
        sandbox.prepare(&self.stop)?;
        let text = |text: &str| c_string(text, Code::Internal, "argument");
        let mut argv = vec![text(PROGRAM)?];
        for word in self.arguments("0.0.0.0", "0") {
            argv.push(text(&word)?);
        }
        let own = [("HOME", "/root"), ("USER", "root"), ("PATH", PATH)];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let passed = self.plan.env.iter().filter(|(name, _)| !is_of_the_host(name));
        let mut env = Vec::new();
        for (name, value) in passed.chain(&own).chain(&self.credential()) {
            env.push(text(&format!("{name}={value}"))?);
        }
        let command = Command {
            attempts: vec![argv],
            env,
            cwd: FOLDER.to_owned(),
            limits: None,
            tty: false,
            user: None,
            account: true,
            patience: None,
        };
        sandbox.launch(&uuid::Uuid::new_v4().to_string(), &command, stdio)
    }

    /// Where an address that OpenCode has printed is reached from here.
    fn reached(&self, said: SocketAddr) -> Result<SocketAddr, String> {
        match &self.surroundings.sandbox {
            Some(sandbox) => match sandbox.address() {
                Ok(ip) => Ok(SocketAddr::new(ip, said.port())),
                Err(error) => Err(error.to_string()),
            },
            None if is_exposed(said) => Err(format!("it listens on {said}, which other machines can reach")),
            None => Ok(said),
        }
    }

    /// Waits for the line with the address, then asks there.
    fn until_it_answers(&self, attempt: &Attempt, deadline: Instant) -> Result<(), Why> {
        let seconds = self.plan.start_timeout.as_secs();
        let mut last = "it has not printed where it listens".to_owned();
        loop {
            if let Some(reason) = attempt.reason() {
                return Err(Why::Ended(reason));
            }
            if Instant::now() >= deadline {
                return Err(Why::Ended(format!("it did not answer within {seconds} s ({last})")));
            }
            let said = attempt.output.heard().address.clone();
            let address = said.map(|said| said.and_then(|said| self.reached(said)));
            let next = match address {
                None => deadline,
                Some(Err(wrong)) => return Err(Why::Ended(wrong)),
                Some(Ok(address)) => {
                    let url = format!("http://{address}");
                    match self.version(&url, deadline) {
                        Ok(version) => {
                            self.managed.update(|state| {
                                state.url = Some(url);
                                state.version = version;
                            });
                            return Ok(());
                        }
                        Err(error) => last = error.to_string(),
                    }
                    deadline.min(Instant::now() + HEALTH_PAUSE)
                }
            };
            if self.wait(Some(attempt), Some(next)) == Woken::Stop {
                return Err(Why::Stop);
            }
        }
    }

    fn version(&self, url: &str, deadline: Instant) -> Result<Option<String>> {
        let (username, password) = self.managed.credential();
        let target = Target::new(&Place {
            workspace: "OpenCode".to_owned(),
            base_url: Some(url.to_owned()),
            username: Some(username.to_owned()),
            password: Some(password.to_owned()),
            managed: None,
        })?;
        let patience = HEALTH_PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
        health::version(&self.surroundings.upstreams, &target, patience, self.stop.clone())
    }

    /// Waits for news of the process, for the end of the server, for somebody who wants a failed OpenCode started again, or
    /// until the deadline.
    fn wait(&self, attempt: Option<&Attempt>, deadline: Option<Instant>) -> Woken {
        let again = self.managed.again();
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN), PollFd::new(again, PollFlags::IN)];
        if let Some(attempt) = attempt {
            fds.push(PollFd::from_borrowed_fd(attempt.news.as_fd(), PollFlags::IN));
        }
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let polled = poll(&mut fds, left.as_ref());
            let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
            match polled {
                Err(_) | Ok(_) if self.stop.is_cancelled() => return Woken::Stop,
                Err(_) => continue,
                Ok(0) => return Woken::Late,
                Ok(_) => {}
            }
            if let Some(attempt) = attempt.filter(|_| ready(2)) {
                attempt.news.clear();
                return Woken::News;
            }
            again.clear();
            if attempt.is_none() {
                return Woken::Again;
            }
        }
    }

    fn enter(&self, phase: Phase, summary: &str) {
        self.managed.update(|state| {
            state.phase = phase;
            if matches!(phase, Phase::Failed | Phase::Stopped) {
                state.pid = None;
            }
        });
        self.tell(phase.as_str(), summary.to_owned());
    }

    fn tell(&self, state: &'static str, summary: String) {
        let now = self.managed.state();
        (self.surroundings.tell)(&Change { state, summary, pid: now.pid, version: now.version });
    }
}

impl Attempt {
    /// Why it ended, if it has.
    fn reason(&self) -> Option<String> {
        let ending = lock(&self.ending).clone()?;
        let heard = self.output.heard();
        Some(match &heard.last_error {
            Some(line) => format!("{ending}; its last error: {line}"),
            None => ending.to_string(),
        })
    }

    /// Ends it with all that it started: TERM, and KILL for what is left after the grace period.
    fn end(&self) {
        let deadline = Instant::now() + GRACE;
        self.reach.signal(Signal::TERM, Whom::All);
        while lock(&self.ending).is_none() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            let left = Timespec { tv_sec: 0, tv_nsec: (left.min(100) * 1_000_000) as i64 };
            let _ = poll(&mut [PollFd::from_borrowed_fd(self.news.as_fd(), PollFlags::IN)], Some(&left));
            self.news.clear();
        }
        self.kill.cancel();
    }
}

/// Variables that name things of the host.
fn is_of_the_host(name: &str) -> bool {
    ["HOME", "PATH", "USER", "LOGNAME", "SHELL", "TMPDIR"].contains(&name) || name.starts_with("XDG_")
}

/// None before the first restart: most ends are single ones, and clients wait. Then it doubles from a second on.
fn pause(ends: usize) -> Duration {
    let doublings = u32::try_from(ends.saturating_sub(2)).unwrap_or(u32::MAX).min(10);
    if ends < 2 { Duration::ZERO } else { Duration::from_secs(1 << doublings).min(LONGEST_PAUSE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let pauses: Vec<u64> = (1..=9).map(|ends| pause(ends).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(pause(usize::MAX), LONGEST_PAUSE);
    }
}
