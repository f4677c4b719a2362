//! The signals that stop the server.

use std::os::unix::net::UnixStream;

use crate::base::{At, Error, Result, limits};

/// Receives SIGTERM, SIGINT and SIGHUP as bytes in a pipe. It uses handlers and never blocks signals, because children
/// would inherit blocked signals.
pub(super) struct Signals {
    received: UnixStream,
    /// The write end of the pipe: a byte written to it has the effect of a signal.
    pub(super) by_hand: UnixStream,
}

impl Signals {
    pub(super) fn catch() -> Result<Signals> {
        let (received, handler_end) = UnixStream::pair().at("open", "a socket pair")?;
        // SIGHUP means that the terminal or the ssh session was closed. nohup(1) makes the process ignore it.
        let hup = (!is_ignored(libc::SIGHUP)).then_some(libc::SIGHUP);
        for signal in [libc::SIGTERM, libc::SIGINT].into_iter().chain(hup) {
            let end = handler_end.try_clone().at("duplicate", "a socket")?;
            signal_hook::low_level::pipe::register(signal, end)
                .map_err(|error| Error::internal("Could not install signal handlers").with_source(error))?;
        }
        Ok(Signals { received, by_hand: handler_end })
    }

    /// Returns a function that stops the server as a signal would.
    pub(super) fn stopper(&self) -> Result<impl Fn() + Send + use<>> {
        let by_hand = self.by_hand.try_clone().at("duplicate", "a socket")?;
        Ok(move || {
            use std::io::Write as _;
            let _ = (&by_hand).write_all(&[0]);
        })
    }

    pub(super) fn wait(&self) -> Result<()> {
        use std::io::Read as _;
        (&self.received).read_exact(&mut [0]).at("read", "the signal pipe")
    }

    /// Makes a second signal end the process at once, after it has called `last`. The next server kills the remaining
    /// processes.
    pub(super) fn exit_on_next(&self, last: Option<impl FnOnce() + Send + 'static>) {
        let Ok(received) = self.received.try_clone() else { return };
        let waiting = crate::base::thread::spawn("second-signal".into(), limits::STACK, move || {
            use std::io::Read as _;
            let mut received = received;
            if received.read_exact(&mut [0]).is_ok() {
                if let Some(last) = last {
                    last();
                }
                std::process::exit(1);
            }
        });
        if let Ok(waiting) = waiting {
            waiting.detach();
        }
    }
}

/// Returns whether this process was started with the signal ignored (proc_pid_status(5)).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (signal - 1) != 0
}
