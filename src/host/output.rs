//! Processes OpenCode's output: finds the line with its address, and writes all lines to the log, without secrets
//! and within a budget. All output is read, so that OpenCode never blocks on a full pipe, but a flood of output
//! uses limited processor time and disk space.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use memchr::memchr;

use crate::base::logging;
use crate::base::redact::Redactor;
use crate::base::thread::lock;
use crate::proc::{Sink, Waker};
use crate::store::rolling::RollingLog;

/// Name of OpenCode's log file.
pub(super) const LOG: &str = "opencode.log";
/// Maximum size of each of the log's two files.
pub(super) const LOG_BYTES: u64 = 1 << 20;
/// Maximum length of a line; the rest of a longer line is dropped.
const LINE_BYTES: usize = 8 << 10;
/// Number of bytes removed from the end of a truncated line, because the end may be a part of a secret.
const TORN_BYTES: usize = 256;
/// Number of bytes that are processed per [`BUDGET_TIME`]. Further bytes are dropped, and the log states their
/// number.
const BUDGET_BYTES: usize = 256 << 10;
const BUDGET_TIME: Duration = Duration::from_secs(1);
/// Text that OpenCode prints before its address.
const LISTENING: &str = "listening on http://";

/// Facts found in the output of a process.
#[derive(Debug, Default)]
pub(super) struct OutputFacts {
    /// The address on which OpenCode listens, or an error if the printed address is invalid.
    pub(super) address: Option<Result<SocketAddr, String>>,
    /// The last line that OpenCode printed on standard error, without secrets.
    pub(super) last_error: Option<String>,
}

/// State that both output streams of a process share.
pub(super) struct ProcessOutput {
    log: Mutex<Option<RollingLog>>,
    redactor: Redactor,
    facts: Mutex<OutputFacts>,
    budget: Mutex<LogBudget>,
    /// Woken when OpenCode has printed its address.
    news: Arc<Waker>,
}

struct LogBudget {
    since: Instant,
    left: usize,
    dropped: u64,
}

/// One of the two output streams of a process.
pub(super) struct ProcessStream<'a> {
    output: &'a ProcessOutput,
    is_error: bool,
    line: Vec<u8>,
    /// Whether further input is dropped up to the next line break.
    too_long: bool,
}

impl ProcessOutput {
    pub(super) fn new(log: Option<RollingLog>, redactor: Redactor, news: Arc<Waker>) -> ProcessOutput {
        let budget = LogBudget { since: Instant::now(), left: BUDGET_BYTES, dropped: 0 };
        ProcessOutput {
            log: Mutex::new(log),
            redactor,
            facts: Mutex::default(),
            budget: Mutex::new(budget),
            news,
        }
    }

    pub(super) fn stream(&self, is_error: bool) -> ProcessStream<'_> {
        ProcessStream { output: self, is_error, line: Vec::new(), too_long: false }
    }

    pub(super) fn facts(&self) -> std::sync::MutexGuard<'_, OutputFacts> {
        lock(&self.facts)
    }

    /// Writes a line to the log, preceded by the time.
    pub(super) fn note(&self, text: &str) {
        let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let mut log = lock(&self.log);
        let Some(Err(error)) = log.as_mut().map(|log| log.line(&format!("{time} {text}"))) else { return };
        // Log this error once: a full disk must not stop OpenCode or flood the server's log.
        log::warn!("OpenCode's log can no longer be written: {error}");
        *log = None;
    }

    /// Takes up to `wanted` bytes from the budget, and returns the number of bytes that may be processed.
    fn grant(&self, wanted: usize) -> usize {
        let mut budget = lock(&self.budget);
        if budget.since.elapsed() >= BUDGET_TIME {
            let dropped = std::mem::take(&mut budget.dropped);
            *budget = LogBudget { since: Instant::now(), left: BUDGET_BYTES, dropped: 0 };
            if dropped > 0 {
                self.note(&format!("(too much output: {} dropped)", logging::counted(dropped, "byte")));
            }
        }
        let granted = wanted.min(budget.left);
        budget.left -= granted;
        budget.dropped += (wanted - granted) as u64;
        granted
    }
}

impl Sink for ProcessStream<'_> {
    fn take(&mut self, bytes: &[u8]) {
        let granted = self.output.grant(bytes.len());
        let mut rest = &bytes[..granted];
        while let Some(end) = memchr(b'\n', rest) {
            self.add(&rest[..end]);
            self.end_line();
            rest = &rest[end + 1..];
        }
        self.add(rest);
        if granted < bytes.len() && !self.line.is_empty() {
            // The dropped bytes may contain a line break, so end the line here.
            self.too_long = true;
            self.end_line();
        }
    }
}

impl ProcessStream<'_> {
    fn add(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES.saturating_sub(self.line.len());
        self.too_long |= bytes.len() > room;
        self.line.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end_line(&mut self) {
        let bytes = std::mem::take(&mut self.line);
        let torn = std::mem::take(&mut self.too_long);
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        if !self.is_error {
            self.listen(text);
        }
        let mut hidden = logging::one_line(&self.output.redactor.text(text));
        if torn {
            let end = hidden.len().saturating_sub(TORN_BYTES);
            let end = (0..=end).rev().find(|at| hidden.is_char_boundary(*at)).unwrap_or(0);
            hidden.truncate(end);
            hidden.push('…');
        }
        self.output.note(&hidden);
        if self.is_error {
            lock(&self.output.facts).last_error = Some(hidden);
        }
    }

    /// Records the address in the first line that contains one. Later addresses are ignored, because programs that
    /// the agent starts could print them.
    fn listen(&self, text: &str) {
        let Some((_, rest)) = text.split_once(LISTENING) else { return };
        let mut heard = lock(&self.output.facts);
        if heard.address.is_none() {
            heard.address = Some(address(rest));
            self.output.news.wake();
        }
    }
}

impl Drop for ProcessStream<'_> {
    /// Ends the last line, which may lack a line break.
    fn drop(&mut self) {
        self.end_line();
    }
}

/// Returns whether other machines can reach the address.
pub(super) fn is_exposed(address: SocketAddr) -> bool {
    !match address.ip() {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback(),
    }
}

/// Parses the address at the start of `text`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let end = text.find(|c: char| c.is_whitespace() || c == '/').unwrap_or(text.len());
    let text = &text[..end];
    let shown = logging::one_line(&text.chars().take(100).collect::<String>());
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let address: Option<SocketAddr> = numeric.as_deref().unwrap_or(text).parse().ok();
    let address = address.filter(|address| address.port() != 0);
    address.ok_or_else(|| format!("it printed {shown:?} as its address, which is invalid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(secrets: &[&str]) -> ProcessOutput {
        let redactor = Redactor::with_known_values(secrets.iter().copied());
        ProcessOutput::new(None, redactor, Arc::new(Waker::new().unwrap()))
    }

    #[test]
    fn the_first_address_counts() {
        let output = output(&[]);
        let mut stream = output.stream(false);
        stream.take(b"Warning: x\nopencode server listen");
        stream.take(b"ing on http://127.0.0.1:4096\r\nlistening on http://127.0.0.1:1\n");
        assert_eq!(output.facts().address, Some(Ok("127.0.0.1:4096".parse().unwrap())));
        assert_eq!(address("localhost:7/x"), Ok("127.0.0.1:7".parse().unwrap()));
        assert_eq!(address("[::1]:7 and more"), Ok("[::1]:7".parse().unwrap()));
        for wrong in ["127.0.0.1:0", "127.0.0.1", "evil.example:80", ""] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
        for exposed in ["0.0.0.0:4096", "10.0.0.1:4096", "[::]:1"] {
            assert!(is_exposed(address(exposed).unwrap()), "{exposed}");
        }
        assert!(!is_exposed("[::1]:1".parse().unwrap()));
    }

    #[test]
    fn the_last_error_is_redacted_and_limited() {
        let output = output(&["s3cret-s3cret"]);
        let mut stream = output.stream(true);
        stream.take(b"first\nkey is s3cret-s3cret \x1b[31m\n\n");
        assert_eq!(output.facts().last_error.as_deref(), Some("key is ******** \\u{1b}[31m"));
        stream.take(&[b'x'; LINE_BYTES - 5]);
        stream.take(b"s3cret-s3cret\n");
        let line = output.facts().last_error.clone().unwrap();
        assert!(line.len() < LINE_BYTES && !line.contains("s3cr"), "{line}");
        stream.take(b"no break");
        drop(stream);
        assert_eq!(output.facts().last_error.as_deref(), Some("no break"));
    }

    #[test]
    fn a_flood_is_dropped() {
        let output = output(&[]);
        let mut stream = output.stream(true);
        let begun = Instant::now();
        for _ in 0..1000 {
            stream.take(&[b'\n'; 64 << 10]);
            stream.take(&[b'y'; 64 << 10]);
        }
        assert!(stream.line.len() <= LINE_BYTES && begun.elapsed() < Duration::from_secs(5));
    }
}
