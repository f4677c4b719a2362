//! A command from start to end, on one thread: its streams, and the loop that watches it and copies its output to
//! sinks. Execs and spooled runs both use this module, with different sinks.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::request::{LaunchPlan, Stdin};
use super::run::Run;
use super::spool::{OutputStream, OutputWriter};
use crate::base::input_bytes::InputBytes;
use crate::base::{At, Error, Result, pool};
use crate::proc::spawn::{dev_null, pipe};
use crate::proc::{
    HandoverGuard, Launcher, Process, ProcessHandover, ProcessIo, ProcessOutcome, Sink, Stdio, pty, pump,
};

/// Minimum time for handing a command to a container, even if the command's deadline is earlier. The handover
/// takes a millisecond, and a command with a timeout of 0 must start and be killed, as on the host.
const LEAST_PATIENCE: Duration = Duration::from_millis(200);

/// A running command with its streams.
pub struct Live {
    process: Box<dyn Process>,
    stdin: Option<(OwnedFd, InputBytes)>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    timeout: Duration,
}

impl Live {
    /// Starts the command. After the start, `run` accepts signals and input.
    ///
    /// # Errors
    /// When the command could not be started; no part of it has run.
    pub fn start(launcher: &dyn Launcher, run: &Run, plan: LaunchPlan) -> Result<Live> {
        let LaunchPlan { mut command, stdin, pty, timeout } = plan;
        command.patience = Some(timeout.max(LEAST_PATIENCE));
        let (ours, stdio) = match pty {
            Some(size) => {
                let terminal = launcher.terminal()?;
                pty::set_size(&terminal.master, size)?;
                let (master, stdio) = terminal.split()?;
                run.input.open(master.try_clone().at("duplicate", "a terminal")?, true);
                ((None, master, dev_null()?), stdio)
            }
            None => {
                let (stdout, stdout_child) = pipe()?;
                let (stderr, stderr_child) = pipe()?;
                let (fed, stdin) = match stdin {
                    Stdin::Empty => (None, dev_null()?),
                    Stdin::Bytes(bytes) => {
                        let (child, ours) = pipe()?;
                        (Some((ours, bytes)), child)
                    }
                    Stdin::Open => {
                        let (child, ours) = pipe()?;
                        rustix::io::ioctl_fionbio(&ours, true).at("prepare", "a pipe")?;
                        run.input.open(ours, false);
                        (None, child)
                    }
                };
                ((fed, stdout, stderr), Stdio { stdin, stdout: stdout_child, stderr: stderr_child })
            }
        };
        let process = launcher.launch(&run.id.simple().to_string(), &command, stdio)?;
        run.attach(process.signal_handle());
        let (stdin, stdout, stderr) = ours;
        Ok(Live { process, stdin, stdout, stderr, timeout })
    }

    /// Creates the object for a command that is already running.
    pub fn resume(
        run: &Run,
        process: Box<dyn Process>,
        stdin: Option<(OwnedFd, InputBytes)>,
        stdout: OwnedFd,
        stderr: OwnedFd,
        timeout: Duration,
    ) -> Live {
        run.attach(process.signal_handle());
        Live { process, stdin, stdout, stderr, timeout }
    }

    /// Splits the command's state into parts for another berth process.
    ///
    /// # Errors
    /// When the process cannot be handed over; the command has then been killed.
    pub fn hand_over(self) -> Result<LiveParts> {
        let Live { mut process, stdin, stdout, stderr, .. } = self;
        let (handed, hold) =
            process.hand_over()?.ok_or_else(|| Error::internal("This process cannot be handed over"))?;
        Ok(LiveParts { handed, hold, stdin, stdout, stderr })
    }

    /// Watches the command until it has ended. The first value is an error if the exit status was lost. Dropping
    /// the second value cleans up; notify waiting clients before that.
    pub fn watch(
        self,
        run: &Run,
        out: &mut dyn Sink,
        err: &mut dyn Sink,
    ) -> (Result<ProcessOutcome>, Box<dyn Process>) {
        let Live { mut process, stdin, stdout, stderr, timeout } = self;
        let io = ProcessIo { stdin, stdout, stderr, out, err };
        let ended = pump(process.as_mut(), io, timeout, &run.cancel);
        if let (Ok(ProcessOutcome::Exited(_)), Some(signal_handle)) = (&ended, process.signal_handle()) {
            signal_handle.group.mark_leftover();
        }
        (ended, process)
    }

    /// Watches a command, writes its output to the spool, and then writes the run's record.
    pub fn spool_to_end(self, run: &Run, writer: OutputWriter) {
        let writer = RefCell::new(writer);
        let sink = |stream| SpoolSink { run, writer: &writer, stream };
        let (ended, process) =
            self.watch(run, &mut sink(OutputStream::Stdout), &mut sink(OutputStream::Stderr));
        if let Err(error) = &ended {
            log::warn!("Run {}: {error}", run.id);
        }
        let usage = process.usage();
        pool::release_early();
        run.finish(ended, usage);
        // Ignore a failed write: the record is needed only after the next start of the server.
        if let Err(error) = run.save(true) {
            log::warn!("{error}");
        }
    }
}

/// The parts of a running command that another berth process takes over.
pub struct LiveParts {
    pub handed: ProcessHandover,
    /// Keeps the command's container from being stopped as idle.
    pub hold: Box<dyn HandoverGuard>,
    /// Writing end of stdin, and the bytes still to be written.
    pub stdin: Option<(OwnedFd, InputBytes)>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

struct SpoolSink<'a> {
    run: &'a Run,
    writer: &'a RefCell<OutputWriter>,
    stream: OutputStream,
}

impl Sink for SpoolSink<'_> {
    fn take(&mut self, bytes: &[u8]) {
        self.writer.borrow_mut().append(self.stream, bytes);
        self.run.waiters.notify_all();
    }
}
