//! The lines of the server log about requests. The number of lines about repeated requests of one client is limited
//! per interval; the requests beyond the limit are summarized in one line.

use std::time::Instant;

use crate::base::Error;
use crate::base::repeat_limiter::{INTERVAL, RepeatLimiter};
use crate::http::Request;

/// Maximum number of lines per interval about requests of one token, or of one address without a token, that were
/// refused in the same way.
const REFUSED_LINES: u64 = 20;
/// Maximum number of lines per interval about successful requests of one client. A person or a page makes fewer
/// requests.
const OTHER_LINES: u64 = 1000;

/// Writes the lines about requests.
#[derive(Debug)]
pub struct RequestLog {
    /// Whether to write a line per request. Server errors are always written.
    enabled: bool,
    /// Whether to write all lines, without a limit on repeated ones.
    all: bool,
    repeats: RepeatLimiter<Option<LogExample>>,
}

/// An example of the lines that were suppressed.
#[derive(Debug)]
struct LogExample {
    method: &'static str,
    path: String,
    status: u16,
    auth: &'static str,
    peer: String,
}

impl RequestLog {
    /// Creates a log. `enabled` means that lines are written for all requests, not only for server errors; `all`
    /// means that repeated lines are not limited.
    pub fn new(enabled: bool, all: bool) -> RequestLog {
        RequestLog { enabled, all, repeats: RepeatLimiter::default() }
    }

    /// Logs a server error, or a refusal because of a server limit.
    pub(super) fn failed(&self, request: &Request, error: &Error) {
        let kind = (client_key(request), "error", error.code().as_str());
        if self.note(kind, REFUSED_LINES, || None) {
            log::error!("{} {} ({}): {error}", request.method().as_str(), request.path(), request.id());
        }
    }

    /// Logs a request and the status of its answer. `disconnected` means that the client disconnected before the
    /// answer.
    pub(super) fn answered(&self, request: &Request, status: u16, disconnected: bool) {
        if !self.enabled {
            return;
        }
        let (method, path, peer) = (request.method().as_str(), request.path(), request.peer());
        let auth = request.actor().map_or("none", |actor| actor.scope.as_str());
        let burst = if status < 400 { OTHER_LINES } else { REFUSED_LINES };
        let example =
            || Some(LogExample { method, path: path.to_owned(), status, auth, peer: peer.to_owned() });
        if !self.all && !self.note((client_key(request), "request", status), burst, example) {
            return;
        }
        let millis = u64::try_from(request.started().elapsed().as_millis()).unwrap_or(u64::MAX);
        let level = match status {
            500.. => log::Level::Error,
            // If the client has disconnected, an error answer is not a fault.
            400.. if disconnected => log::Level::Info,
            400.. => log::Level::Warn,
            _ => log::Level::Info,
        };
        log::log!(
            target: "berth::request", level, method = method, path = path, status = status, durationMs = millis, auth = auth,
            peer = peer, requestId = request.id();
            "{method} {path} {status} {millis}ms"
        );
    }

    /// Writes the summaries of the lines that were suppressed so far.
    pub fn close(&self) {
        write_summaries(self.repeats.rest());
    }

    fn note(
        &self,
        kind: impl std::hash::Hash,
        burst: u64,
        example: impl FnOnce() -> Option<LogExample>,
    ) -> bool {
        let noted = self.repeats.note(kind, burst, Instant::now(), example);
        write_summaries(noted.summaries);
        noted.written
    }
}

/// Returns the key under which the lines of a client are counted: its token, or its address if it has no token.
fn client_key(request: &Request) -> &str {
    request.actor().map_or(request.peer(), |actor| actor.token_hash.as_str())
}

fn write_summaries(ended: Vec<(Option<LogExample>, u64)>) {
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
