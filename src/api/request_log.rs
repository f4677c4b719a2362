//! The line that a request leaves in the log. A client that repeats a request at full speed gets some of these lines and one with
//! the number of the others.

use std::time::Instant;

use crate::base::Error;
use crate::base::repeat_limiter::{INTERVAL, RepeatLimiter};
use crate::http::Request;

/// Lines for requests of one token, or address without one, with the same refusal in an interval.
const REFUSED_LINES: u64 = 20;
/// The same, for requests that were not refused: more than a person or a page makes.
const OTHER_LINES: u64 = 1000;

/// Writes those lines.
#[derive(Debug)]
pub struct RequestLog {
    /// Whether each request has one; errors of the server have theirs in any case.
    enabled: bool,
    /// Also where they repeat.
    all: bool,
    repeats: RepeatLimiter<Option<LogExample>>,
}

/// One of many requests.
#[derive(Debug)]
struct LogExample {
    method: &'static str,
    path: String,
    status: u16,
    auth: &'static str,
    peer: String,
}

impl RequestLog {
    /// `enabled`: lines for requests, and not only for errors of the server; `all`: for each one, also where they repeat.
    pub fn new(enabled: bool, all: bool) -> RequestLog {
        RequestLog { enabled, all, repeats: RepeatLimiter::default() }
    }

    /// Writes what went wrong in the server, or was beyond its limits.
    pub(super) fn failed(&self, request: &Request, error: &Error) {
        let kind = (who(request), "error", error.code().as_str());
        if self.note(kind, REFUSED_LINES, || None) {
            log::error!("{} {} ({}): {error}", request.method().as_str(), request.path(), request.id());
        }
    }

    /// Writes that a request was answered. `gone`: its client had disconnected.
    pub(super) fn answered(&self, request: &Request, status: u16, gone: bool) {
        if !self.enabled {
            return;
        }
        let (method, path, peer) = (request.method().as_str(), request.path(), request.peer());
        let auth = request.actor().map_or("none", |actor| actor.scope.as_str());
        let burst = if status < 400 { OTHER_LINES } else { REFUSED_LINES };
        let example =
            || Some(LogExample { method, path: path.to_owned(), status, auth, peer: peer.to_owned() });
        if !self.all && !self.note((who(request), "request", status), burst, example) {
            return;
        }
        let millis = u64::try_from(request.started().elapsed().as_millis()).unwrap_or(u64::MAX);
        let level = match status {
            500.. => log::Level::Error,
            // The answer to a client that disconnected is read by no one, and no sign of a fault.
            400.. if gone => log::Level::Info,
            400.. => log::Level::Warn,
            _ => log::Level::Info,
        };
        log::log!(
            target: "berth::request", level, method = method, path = path, status = status, durationMs = millis, auth = auth,
            peer = peer, requestId = request.id();
            "{method} {path} {status} {millis}ms"
        );
    }

    /// Writes the numbers that were not written yet.
    pub fn close(&self) {
        tell(self.repeats.rest());
    }

    fn note(
        &self,
        kind: impl std::hash::Hash,
        burst: u64,
        example: impl FnOnce() -> Option<LogExample>,
    ) -> bool {
        let noted = self.repeats.note(kind, burst, Instant::now(), example);
        tell(noted.summaries);
        noted.written
    }
}

/// Whose lines are counted together: those of a token, or of an address without one.
fn who(request: &Request) -> &str {
    request.actor().map_or(request.peer(), |actor| actor.token_hash.as_str())
}

fn tell(ended: Vec<(Option<LogExample>, u64)>) {
    for (example, count) in ended {
        let Some(LogExample { method, path, status, auth, peer }) = example else { continue };
        let level = if status < 400 { log::Level::Info } else { log::Level::Warn };
        log::log!(
            target: "berth::request", level, method = method, path = path.as_str(), status = status, suppressed = count,
            auth = auth, peer = peer.as_str();
            "{count} more requests such as {method} {path} were answered {status} within {} s; their lines were suppressed",
            INTERVAL.as_secs()
        );
    }
}
