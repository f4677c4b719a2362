//! The life cycle of OpenCode: start, health checks, wait for the exit, end of its children, and restart after a
//! delay. The supervisor's thread makes the decisions; another thread reads the process's output and waits for its
//! exit.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::enclosure::{LaunchedOpencode, ProcessEnder, launch, reached};
use super::output::{LOG, LOG_BYTES, ProcessOutput};
use super::{
    CurrentProcess, FAILURE_WINDOW, MAX_FAILURES, MAX_RESTART_DELAY, OpencodeChange, OpencodePlan, Restart,
    SupervisorContext,
};
use crate::base::redact::{Redactor, is_secret_name};
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Result, limits};
use crate::opencode::managed::{ManagedState, Phase};
use crate::opencode::{Managed, Upstream, UpstreamTarget, health};
use crate::proc::{Cancel, Exit, ProcessIo, ProcessOutcome, Waker, pump};
use crate::store::rolling::RollingLog;

/// Time limit of one health check.
const HEALTH_PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two health checks.
const HEALTH_PAUSE: Duration = Duration::from_millis(50);
/// Grace period between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// Timeout of a process without a deadline: longer than any uptime.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The state of the supervisor thread.
pub(super) struct Supervisor {
    plan: OpencodePlan,
    managed: Arc<Managed>,
    surroundings: SupervisorContext,
    stop: Cancel,
    redactor: Redactor,
    current: CurrentProcess,
}

/// One process of OpenCode, from its start to its end.
struct Attempt {
    pid: Option<i32>,
    output: Arc<ProcessOutput>,
    /// Readable when the output contains an address and when the process has exited.
    news: Arc<Waker>,
    ender: ProcessEnder,
    kill: Cancel,
    ending: Arc<Mutex<Option<ProcessEnd>>>,
    _reader: JoinOnDrop,
}

/// Result of a process.
#[derive(Clone, Debug)]
enum ProcessEnd {
    Exited(Exit, Option<bool>),
    Killed,
    Lost(String),
}

/// The reason why the supervision of one process ended.
enum AttemptEnd {
    /// The server is shutting down.
    Stop,
    /// The process exited, or was killed because it did not respond.
    Ended(String),
}

/// The event that ended [`Supervisor::wait`].
#[derive(PartialEq, Eq)]
enum WaitEvent {
    News,
    /// The container of OpenCode has ended.
    ContainerEnded,
    RestartRequested,
    Stop,
    DeadlineReached,
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProcessEnd::Exited(_, Some(true)) => {
                f.write_str("out of memory: the kernel killed it at its memory limit")
            }
            ProcessEnd::Exited(exit, _) => exit.fmt(f),
            ProcessEnd::Killed => f.write_str("killed"),
            ProcessEnd::Lost(why) => f.write_str(why),
        }
    }
}

impl Supervisor {
    pub(super) fn new(
        plan: OpencodePlan,
        managed: Arc<Managed>,
        surroundings: SupervisorContext,
        stop: Cancel,
        current: CurrentProcess,
    ) -> Supervisor {
        let variables = plan.env.iter().filter(|(name, _)| is_secret_name(name));
        let secrets = variables.map(|(_, value)| value.as_str()).chain([managed.credential().1]);
        let secrets = secrets.chain(surroundings.secrets.iter().map(String::as_str));
        let redactor = Redactor::with_known_values(secrets);
        Supervisor { plan, managed, surroundings, stop, redactor, current }
    }

    pub(super) fn run(self) {
        let mut ends: VecDeque<Instant> = VecDeque::new();
        while !self.stop.is_cancelled() {
            let reason = match self.run_attempt() {
                AttemptEnd::Stop => break,
                AttemptEnd::Ended(reason) => reason,
            };
            if self.was_stopped() {
                break;
            }
            ends.push_back(Instant::now());
            while ends.front().is_some_and(|end| end.elapsed() > FAILURE_WINDOW) {
                ends.pop_front();
            }
            let given_up = match self.plan.restart {
                Restart::OnFailure => ends.len() >= MAX_FAILURES,
                Restart::Always => false,
                Restart::Never => true,
            };
            if given_up {
                let summary = match ends.len() {
                    1 => format!("OpenCode failed: {reason}"),
                    count => format!("OpenCode failed after it ended {count} times; the last time: {reason}"),
                };
                self.enter(Phase::Failed, &summary);
                if self.wait_before_restart(None) {
                    break;
                }
                ends.clear();
                continue;
            }
            if self.wait_before_restart(Some(Instant::now() + pause(ends.len()))) {
                break;
            }
        }
        if let Some(enclosure) = &self.surroundings.enclosure {
            enclosure.end();
        }
        self.enter(Phase::Stopped, "OpenCode stopped with the server");
    }

    /// Waits, while no process is running, for the deadline or a restart request. Returns whether the server is
    /// shutting down.
    fn wait_before_restart(&self, deadline: Option<Instant>) -> bool {
        loop {
            match self.wait(None, deadline) {
                WaitEvent::Stop => return true,
                WaitEvent::ContainerEnded if self.was_stopped() => return true,
                WaitEvent::ContainerEnded => {}
                WaitEvent::News | WaitEvent::RestartRequested | WaitEvent::DeadlineReached => return false,
            }
        }
    }

    /// Returns whether a user stopped the container through its engine, and stops the server in that case:
    /// OpenWork's desktop app stops a host in this way.
    fn was_stopped(&self) -> bool {
        let stopped = self.surroundings.enclosure.as_ref().is_some_and(|enclosure| enclosure.was_stopped());
        if stopped {
            log::info!("The sandbox's container was stopped through its engine; the server stops");
            (self.surroundings.stop_server)();
        }
        stopped
    }

    /// Runs one process of OpenCode from start to end.
    fn run_attempt(&self) -> AttemptEnd {
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
        self.managed.update(|state| state.pid = attempt.pid);
        let number = self.managed.state().starts;
        self.report("starting", format!("OpenCode starts (start {number}{})", shown(attempt.pid)));
        // Count the start timeout from now, because the container may have been built before.
        match self.until_it_answers(&attempt, Instant::now() + self.plan.start_timeout) {
            Ok(()) => {}
            Err(AttemptEnd::Stop) => {
                attempt.end();
                return AttemptEnd::Stop;
            }
            Err(AttemptEnd::Ended(reason)) => {
                attempt.end();
                return self.ended(reason);
            }
        }
        let ManagedState { url, version, .. } = self.managed.state();
        let (url, version) = (url.unwrap_or_default(), version.unwrap_or_else(|| "?".to_owned()));
        let took = begun.elapsed().as_millis();
        self.enter(Phase::Running, &format!("OpenCode {version} answers on {url} after {took} ms"));
        loop {
            let woken = self.wait(Some(&attempt), None);
            if woken == WaitEvent::Stop {
                attempt.end();
                return AttemptEnd::Stop;
            }
            if let Some(reason) = attempt.reason() {
                attempt.end();
                return self.ended(reason);
            }
        }
    }

    fn ended(&self, reason: String) -> AttemptEnd {
        self.managed.update(|state| {
            state.phase = Phase::Starting;
            state.pid = None;
            state.reason = Some(reason.clone());
        });
        self.report("ended", format!("OpenCode ended: {reason}"));
        AttemptEnd::Ended(reason)
    }

    fn start(&self) -> Result<Attempt> {
        let enclosure = self.surroundings.enclosure.as_ref();
        let launched = launch(&self.plan, &self.managed, enclosure, &self.surroundings.cgroups, &self.stop)?;
        let LaunchedOpencode { mut process, stdout: out, stderr: err, ender, pid } = launched;
        let log = RollingLog::open(&self.surroundings.folder.join(LOG), LOG_BYTES);
        let log = log.inspect_err(|error| log::warn!("OpenCode has no log: {error}")).ok();
        let news = Arc::new(Waker::new()?);
        let output = Arc::new(ProcessOutput::new(log, self.redactor.clone(), news.clone()));
        let current = self.current.clone();
        *lock(&current) = Some(ender.clone());
        output.note(&format!("OpenCode starts{}", shown(pid)));
        let kill = Cancel::new()?;
        let ending = Arc::default();
        let reader = spawn("opencode-output".into(), limits::STACK, {
            let (output, news, kill, ending) =
                (output.clone(), news.clone(), kill.clone(), Arc::clone(&ending));
            move || {
                let pumped = {
                    let (mut stdout, mut stderr) = (output.stream(false), output.stream(true));
                    let io = ProcessIo {
                        stdin: None,
                        stdout: out,
                        stderr: err,
                        out: &mut stdout,
                        err: &mut stderr,
                    };
                    pump(process.as_mut(), io, FOREVER, &kill)
                };
                // Kill the remaining children of OpenCode, such as MCP servers.
                process.kill();
                lock(&current).take();
                let end = match pumped {
                    Ok(ProcessOutcome::Exited(exit)) => ProcessEnd::Exited(exit, process.oom_killed()),
                    Ok(ProcessOutcome::Cancelled | ProcessOutcome::TimedOut) => ProcessEnd::Killed,
                    Err(error) => ProcessEnd::Lost(error.to_string()),
                };
                output.note(&format!("OpenCode ended: {end}"));
                *lock::<Option<ProcessEnd>>(&ending) = Some(end);
                news.wake();
            }
        })?;
        Ok(Attempt { pid, output, news, ender, kill, ending, _reader: reader })
    }

    /// Waits until OpenCode has printed its address and passed a health check.
    fn until_it_answers(&self, attempt: &Attempt, deadline: Instant) -> Result<(), AttemptEnd> {
        let seconds = self.plan.start_timeout.as_secs();
        let mut last = "it has not printed its address".to_owned();
        loop {
            if let Some(reason) = attempt.reason() {
                return Err(AttemptEnd::Ended(reason));
            }
            if Instant::now() >= deadline {
                return Err(AttemptEnd::Ended(format!("it did not respond within {seconds} s ({last})")));
            }
            let said = attempt.output.facts().address.clone();
            let address =
                said.map(|said| said.and_then(|said| reached(self.surroundings.enclosure.as_ref(), said)));
            let next = match address {
                None => deadline,
                Some(Err(wrong)) => return Err(AttemptEnd::Ended(wrong)),
                Some(Ok(url)) => {
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
            if self.wait(Some(attempt), Some(next)) == WaitEvent::Stop {
                return Err(AttemptEnd::Stop);
            }
        }
    }

    fn version(&self, url: &str, deadline: Instant) -> Result<Option<String>> {
        let (username, password) = self.managed.credential();
        let target = UpstreamTarget::new(&Upstream {
            workspace: "OpenCode".to_owned(),
            base_url: Some(url.to_owned()),
            username: Some(username.to_owned()),
            password: Some(password.to_owned()),
            managed: None,
        })?;
        let patience = HEALTH_PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
        health::version(&self.surroundings.upstreams, &target, patience, self.stop.clone())
    }

    /// Waits for an event of the process, the server's shutdown, a restart request, or the deadline.
    fn wait(&self, attempt: Option<&Attempt>, deadline: Option<Instant>) -> WaitEvent {
        // While no process is running, poll the container's lease; otherwise the process's end shows that the
        // container ended.
        let enclosure = self.surroundings.enclosure.as_ref().filter(|_| attempt.is_none());
        let lease = enclosure.and_then(|enclosure| enclosure.lease());
        let event = match attempt {
            Some(attempt) => Some(attempt.news.as_fd()),
            None => lease.as_ref().map(|lease| lease.as_fd()),
        };
        let again = self.managed.restart_waker();
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN), PollFd::new(again, PollFlags::IN)];
        fds.extend(event.map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN)));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let polled = poll(&mut fds, left.as_ref());
            let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
            match polled {
                Err(_) | Ok(_) if self.stop.is_cancelled() => return WaitEvent::Stop,
                Err(_) => continue,
                Ok(0) => return WaitEvent::DeadlineReached,
                Ok(_) => {}
            }
            match attempt {
                Some(attempt) if ready(2) => {
                    attempt.news.clear();
                    return WaitEvent::News;
                }
                None if ready(2) => return WaitEvent::ContainerEnded,
                Some(_) | None => {}
            }
            again.clear();
            if attempt.is_none() {
                return WaitEvent::RestartRequested;
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
        self.report(phase.as_str(), summary.to_owned());
    }

    fn report(&self, state: &'static str, summary: String) {
        let now = self.managed.state();
        (self.surroundings.tell)(&OpencodeChange { state, summary, pid: now.pid, version: now.version });
    }
}

impl Attempt {
    /// Returns the reason why the process ended; `None` while it is running.
    fn reason(&self) -> Option<String> {
        let ending = lock(&self.ending).clone()?;
        let heard = self.output.facts();
        Some(match &heard.last_error {
            Some(line) => format!("{ending}; its last error: {line}"),
            None => ending.to_string(),
        })
    }

    /// Ends the process and its children with SIGTERM, and after the grace period with SIGKILL.
    fn end(&self) {
        let deadline = Instant::now() + GRACE;
        self.ender.terminate();
        while lock(&self.ending).is_none() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            let left = Timespec { tv_sec: 0, tv_nsec: (left.min(100) * 1_000_000) as i64 };
            let _ = poll(&mut [PollFd::from_borrowed_fd(self.news.as_fd(), PollFlags::IN)], Some(&left));
            self.news.clear();
        }
        self.kill.cancel();
    }
}

fn shown(pid: Option<i32>) -> String {
    pid.map(|pid| format!(", process {pid}")).unwrap_or_default()
}

/// Returns the delay before a restart. The first restart is immediate, because most exits are single events and
/// clients wait. From the second restart on, the delay starts at one second and doubles.
fn pause(ends: usize) -> Duration {
    let doublings = u32::try_from(ends.saturating_sub(2)).unwrap_or(u32::MAX).min(10);
    if ends < 2 { Duration::ZERO } else { Duration::from_secs(1 << doublings).min(MAX_RESTART_DELAY) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let pauses: Vec<u64> = (1..=9).map(|ends| pause(ends).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(pause(usize::MAX), MAX_RESTART_DELAY);
    }
}
