//! The only way to spawn a child on the host. **Invariant:** the child leads its own session and process group, is
//! created in its own cgroup, and inherits only its three streams and the given environment.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};

use super::exec::{ExecSpec, Reaped, SpawnError, StartStep};
use super::sys;
use super::{
    Cancel, Cgroups, Exit, Group, OutputCapture, Process, ProcessIo, ProcessOutcome, ProcessUser,
    SignalHandle, Sink, Stdio, Usage, pump,
};
use crate::base::{At, Code, Error, Result};

/// The PATH of each child whose environment does not contain one.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The soft limit of open files for children. The server raises its own limit, but programs that use select(2) fail
/// with descriptors above 1023.
static CHILD_FILES: OnceLock<u64> = OnceLock::new();

/// Sets the children's soft limit of open files. The server calls this once at its start.
pub fn set_child_file_limit(soft: u64) {
    let _ = CHILD_FILES.set(soft);
}

/// How long to retry the start while another process has the program's file open for writing (ETXTBSY).
const TEXT_BUSY: Duration = Duration::from_millis(500);

/// `oom_score_adj` of children. It is set once the server's own score is lower than the score that a workload may have.
static CHILD_OOM_SCORE: OnceLock<&'static str> = OnceLock::new();

/// The file with the kernel's preference for killing this process when memory runs out (proc_pid_oom_score_adj(5)).
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Returns the `oom_score_adj` for workloads: the default 0 if the server's score is lower, else a higher score than
/// the server's, because raising a score needs no privilege. The score 500 counts like half of the memory, and so
/// decides any comparison.
fn workload_oom_score() -> &'static str {
    CHILD_OOM_SCORE.get().copied().unwrap_or("500")
}

/// Gives the workloads' score to a process that will become a workload, and to all processes that share its memory,
/// unless they have it already. `still` has the same meaning as for [`protect_other_from_oom`].
pub fn expose_other_to_oom(pid: i32, still: impl FnOnce() -> bool) {
    let path = format!("/proc/{pid}/oom_score_adj");
    let (score, mut bytes) = (workload_oom_score(), [0; 16]);
    let Ok(file) = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else { return };
    let length = rustix::io::read(&file, &mut bytes).unwrap_or(0);
    // A write makes the kernel search all processes of the machine for processes that share the memory, so avoid it.
    if bytes[..length].trim_ascii() != score.as_bytes() && still() {
        let _ = rustix::io::write(&file, score.as_bytes());
    }
}

/// Makes the kernel kill other processes before this one when memory runs out. Children do not inherit this.
///
/// # Errors
/// The kernel's error if this process lacks the privilege; the score has not changed in this case.
pub fn protect_from_oom() -> std::io::Result<()> {
    // The score is not -1000: a server that leaks all memory must still be killed.
    super::hierarchy::write(OOM_SCORE.as_ref(), "-900")?;
    let _ = CHILD_OOM_SCORE.set("0");
    Ok(())
}

/// Makes the kernel kill other processes before the process `pid` when memory runs out. Children that the process has
/// already started are not affected. `still` is called after the process's file was opened, and checks that the number
/// still refers to that process.
pub fn protect_other_from_oom(pid: i32, still: impl FnOnce() -> bool) {
    if CHILD_OOM_SCORE.get().is_none() {
        return;
    }
    let path = format!("/proc/{pid}/oom_score_adj");
    if let Ok(file) = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        if still() {
            let _ = rustix::io::write(&file, b"-900");
        }
    }
}

/// A running child process. Dropping it kills the child, and also the child's group unless the child has ended by
/// itself.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    group: Arc<Group>,
    exit: Option<Exit>,
    reaped: Option<Reaped>,
}

impl Child {
    /// Starts the first of `attempts` that can be executed, in the folder `cwd`. With `tty`, stdin becomes the
    /// controlling terminal. `user` is the user that runs the program.
    ///
    /// # Errors
    /// `InvalidCommand`, `InvalidCwd`, `InvalidUser` or `SpawnFailed`, with the program's name and the kernel's error.
    /// No program has run in this case.
    pub fn start(
        attempts: &[Vec<CString>],
        env: &[CString],
        cwd: BorrowedFd<'_>,
        stdio: &Stdio,
        tty: bool,
        user: Option<&ProcessUser>,
        group: Group,
    ) -> Result<Child> {
        let mut env = env.to_vec();
        env.extend(group.env_marker());
        let entrances = group.v1_procs_files()?;
        let exec = ExecSpec {
            attempts,
            env: &env,
            cwd,
            stdio: [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()],
            cgroup: group.folder(),
            v1_procs: &entrances,
            oom_score: CHILD_OOM_SCORE.get().copied(),
            max_files: CHILD_FILES.get().copied(),
            tty,
            user,
        };
        let mut spawned = sys::spawn(&exec);
        let deadline = Instant::now() + TEXT_BUSY;
        // While a program's file was being written, another thread may have forked a child, which then has the file
        // open for writing. Once the child's execve(2) closes the file, the program can be executed.
        while spawned.as_ref().is_err_and(|failed| failed.error.raw_os_error() == Some(libc::ETXTBSY))
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(2));
            spawned = sys::spawn(&exec);
        }
        match spawned {
            Ok(spawned) => Ok(Child {
                pid: spawned.pid,
                pidfd: Arc::new(spawned.pidfd),
                group: Arc::new(group),
                exit: None,
                reaped: None,
            }),
            Err(SpawnError { error, step: StartStep::Cwd }) => {
                Err(Error::new(Code::InvalidCwd, format!("Could not enter the working directory: {error}")))
            }
            Err(SpawnError { error, step: StartStep::User }) => {
                Err(Error::new(Code::InvalidUser, format!("Could not switch to the command's user: {error}")))
            }
            Err(SpawnError { error, step: StartStep::Group }) => {
                let program = program(attempts);
                let message =
                    format!("Could not start {program}: its process could not enter its cgroup: {error}");
                Err(Error::new(Code::SpawnFailed, message))
            }
            Err(SpawnError { error, step: StartStep::Exec }) => {
                use libc::{E2BIG, EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR};
                // Errors that the command itself causes, and not berth or the machine.
                let wrong = [E2BIG, EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR];
                let code = match error.raw_os_error() {
                    Some(errno) if wrong.contains(&errno) => Code::InvalidCommand,
                    _ => Code::SpawnFailed,
                };
                Err(Error::new(code, format!("Could not start {}: {error}", program(attempts))))
            }
        }
    }

    /// Returns the process id, which is valid until the child is reaped.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Reaps the child if it has ended; with `wait`, first waits for its end.
    fn reap(&mut self, wait: bool) -> Result<()> {
        if self.exit.is_none() {
            self.reaped = sys::reap(self.pidfd.as_fd(), wait).at("wait for", "a child")?;
            self.exit = self.reaped.map(|reaped| match reaped.status {
                Ok(code) => Exit::Code(code),
                Err(signal) => Exit::Signal(signal),
            });
        }
        Ok(())
    }

    pub fn group(&self) -> &Group {
        &self.group
    }
}

impl Process for Child {
    fn exit_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn try_exit(&mut self) -> Result<Option<Exit>> {
        self.reap(false)?;
        Ok(self.exit)
    }

    fn terminate(&mut self) {
        self.group.signal(Signal::TERM, Some(self.pid));
    }

    fn kill(&mut self) {
        if self.exit.is_none() {
            let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
        }
        if let Err(error) = self.group.kill(Some(self.pid)) {
            log::error!("{error}");
        }
        let _ = self.reap(true);
        self.exit.get_or_insert(Exit::Signal(libc::SIGKILL));
    }

    fn signal_handle(&self) -> Option<SignalHandle> {
        Some(SignalHandle { pid: self.pid, pidfd: self.pidfd.clone(), group: self.group.clone() })
    }

    fn oom_killed(&self) -> Option<bool> {
        self.group.oom_killed()
    }

    fn usage(&self) -> Usage {
        let mut usage = self.group.usage();
        if let Some(reaped) = self.reaped {
            usage.cpu_micros = usage.cpu_micros.or(Some(reaped.cpu_micros));
            // The child started in the server's memory, which the kernel counts for the child (exec_mmap). A value that
            // is not above the server's own peak is therefore not a property of the child.
            let its_own = || own_peak_bytes().is_some_and(|ours| reaped.max_rss_bytes > ours);
            let peak = || its_own().then_some(reaped.max_rss_bytes);
            usage.peak_memory_bytes = usage.peak_memory_bytes.or_else(peak);
        }
        usage
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.try_exit(), Ok(None)) {
            self.kill();
        }
    }
}

/// Returns the largest resident set that this process has had so far (proc_pid_status(5)).
fn own_peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"))?;
    Some(kilobytes.trim().parse::<u64>().ok()? * 1024)
}

/// A program that berth runs for itself (debootstrap, cp, OpenCode, …), not for a client.
#[derive(Debug)]
pub struct Spec {
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    folder: PathBuf,
}

impl Spec {
    /// Creates the specification of `program`, an absolute path, with only PATH, HOME=/root and LANG=C.UTF-8 in its
    /// environment.
    pub fn new(program: impl Into<PathBuf>) -> Spec {
        let env = [("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Spec { program: program.into(), args: Vec::new(), env, folder: "/".into() }
    }

    /// Creates the specification of `program`, which runs in `folder` with an empty environment.
    pub fn bare(program: impl Into<PathBuf>, folder: impl Into<PathBuf>) -> Spec {
        Spec { program: program.into(), args: Vec::new(), env: Vec::new(), folder: folder.into() }
    }

    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Spec {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds environment variables.
    #[must_use]
    pub fn envs<'a>(mut self, vars: impl IntoIterator<Item = &'a (String, String)>) -> Spec {
        self.env.extend(vars.into_iter().cloned());
        self
    }

    /// Runs the program to its end with empty input, and passes all output to `sink`.
    ///
    /// # Errors
    /// `SpawnFailed` when the program could not be started. A non-zero exit status is not an error.
    pub fn run(
        &self,
        group: Group,
        sink: &mut dyn Sink,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<ProcessOutcome> {
        let (out, out_child) = pipe()?;
        let (err, err_child) = pipe()?;
        let stdio = Stdio { stdin: dev_null()?, stdout: out_child, stderr: err_child };
        let mut child = self.start(stdio, group)?;
        // The two pipes share one sink, which receives the lines of both streams in the order in which they are read.
        let sink = std::cell::RefCell::new(sink);
        let io = ProcessIo {
            stdin: None,
            stdout: out,
            stderr: err,
            out: &mut SharedSink(&sink),
            err: &mut SharedSink(&sink),
        };
        pump(&mut child, io, timeout, cancel)
    }

    /// Runs the program to its end in a group of its own below `place`. Returns how it ended, and at most `cap` bytes
    /// of its output.
    ///
    /// # Errors
    /// The same as for [`Spec::run`].
    pub fn run_for_output(
        &self,
        (cgroups, place): (&Cgroups, &str),
        cap: usize,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<(ProcessOutcome, String)> {
        let mut printed = OutputCapture::new(cap);
        let group = cgroups.group(&format!("{place}/{}", uuid::Uuid::new_v4().simple()))?;
        let ended = self.run(group, &mut printed, timeout, cancel)?;
        Ok((ended, printed.finish().into_text()))
    }

    /// Starts the program with the given streams.
    ///
    /// # Errors
    /// `SpawnFailed` when the program could not be started.
    pub fn start(&self, stdio: Stdio, group: Group) -> Result<Child> {
        let text = |text: &str| super::c_string(text, Code::Internal, "argument");
        let program = text(&self.program.to_string_lossy())?;
        let mut argv = vec![program];
        for arg in &self.args {
            argv.push(text(arg)?);
        }
        let mut env = Vec::new();
        for (name, value) in &self.env {
            env.push(text(&format!("{name}={value}"))?);
        }
        let cwd = open_dir(&self.folder)?;
        // A missing tool is not the client's mistake, so the error is not `InvalidCommand`.
        Child::start(&[argv], &env, cwd.as_fd(), &stdio, false, None, group)
            .map_err(|error| Error::new(Code::SpawnFailed, error.message()))
    }
}

/// Returns the program's name for an error message: its path, or only its name if several folders were searched for it.
fn program(attempts: &[Vec<CString>]) -> String {
    let names: Vec<_> =
        attempts.iter().filter_map(|argv| argv.first()).map(|path| path.to_string_lossy()).collect();
    let Some(last) = names.last() else { return String::new() };
    let name = last.rsplit('/').next().unwrap_or_default();
    let same = names.len() > 1 && names.iter().all(|path| path.rsplit('/').next() == Some(name));
    if same { name.to_owned() } else { last.clone().into_owned() }
}

struct SharedSink<'a, 'b>(&'a std::cell::RefCell<&'b mut dyn Sink>);

impl Sink for SharedSink<'_, '_> {
    fn take(&mut self, bytes: &[u8]) {
        self.0.borrow_mut().take(bytes);
    }
}

/// Opens a pipe and returns its read end and its write end, both with close-on-exec.
///
/// # Errors
/// When the process is out of file descriptors.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).at("open", "a pipe")
}

/// Opens /dev/null for reading and writing.
///
/// # Errors
/// When the process is out of file descriptors.
pub fn dev_null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).at("open", "/dev/null")
}

/// Opens a folder as a working directory.
///
/// # Errors
/// When the folder cannot be opened.
pub fn open_dir(path: impl AsRef<std::path::Path>) -> Result<OwnedFd> {
    let path = path.as_ref();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).at("open the folder", path)
}
