//! Processes OpenCode's output: finds the line with its address, and writes all lines to the log, without secrets and
//! within a budget. The output is always read, so that OpenCode never blocks on a full pipe. A flood uses limited
//! processor time and disk space.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use memchr::memchr;

use crate::base::logging;
use crate::base::redact::Redactor;
use crate::base::thread::lock;
use crate::proc::{Sink, Waker};
use crate::store::rolling::RollingLog;

/// The name of the log file.
pub(super) const LOG: &str = "opencode.log";
/// The size of each of the log's two files.
pub(super) const LOG_BYTES: u64 = 1 << 20;
/// The longest line that is processed; the rest of a longer line is dropped.
const LINE_BYTES: usize = 8 << 10;
/// The bytes cut off the end of a truncated line, where a secret may be incomplete.
const TORN_BYTES: usize = 256;
/// The bytes processed per [`BUDGET_TIME`]. Further bytes are dropped, and the log states their number.
const BUDGET_BYTES: usize = 256 << 10;
const BUDGET_TIME: Duration = Duration::from_secs(1);
/// The text that OpenCode prints before its address.
const LISTENING: &str = "listening on http://";

/// The information found in the output.
#[derive(Debug, Default)]
pub(super) struct OutputFacts {
    /// The address on which it listens, or an error if it is invalid.
    pub(super) address: Option<Result<SocketAddr, String>>,
    /// The last line that OpenCode printed on standard error.
    pub(super) last_error: Option<String>,
}

/// The state shared by both streams of a process.
pub(super) struct ProcessOutput {
    log: Mutex<Option<RollingLog>>,
    redactor: Redactor,
    facts: Mutex<OutputFacts>,
    budget: Mutex<LogBudget>,
    /// Woken when the address is known.
    news: Arc<Waker>,
}

struct LogBudget {
    since: Instant,
    left: usize,
    dropped: u64,
}

/// One of the two streams.
pub(super) struct ProcessStream<'a> {
    output: &'a ProcessOutput,
    is_error: bool,
    line: Vec<u8>,
    /// Input is dropped up to the next line break.
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

    /// Writes a line of the supervisor to the log.
    pub(super) fn note(&self, text: &str) {
        let time = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let mut log = lock(&self.log);
        let Some(Err(error)) = log.as_mut().map(|log| log.line(&format!("{time} {text}"))) else { return };
        // A full disk must not stop OpenCode or flood the server's log.
        log::warn!("OpenCode's log can no longer be written: {error}");
        *log = None;
    }

    /// Takes bytes from the budget. Returns the number of bytes that may be processed.
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
            // The dropped bytes may include a line break.
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

    /// Records the address of the first line that contains one, so that programs started by the agent cannot change
    /// it.
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
    /// The last line may lack a line break.
    fn drop(&mut self) {
        self.end_line();
    }
}

/// Whether other machines can reach the address.
pub(super) fn is_exposed(address: SocketAddr) -> bool {
    !match address.ip() {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback(),
    }
}

/// Parses the address at the beginning of a text.
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
