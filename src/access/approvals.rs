//! Writes that wait for approval. A pending approval is data, not a thread: the request description
//! ([`super::approval_request`]), a callback that continues the request, and a deadline. Bodies and previews that
//! are too large for memory are spooled to unlinked files. Pending approvals do not survive a restart. Independent
//! of HTTP.
//!
//! **Invariant:** a decision is used once, and a request is never executed after its client has disconnected.
//!
//! Thread: `approvals` enforces the deadlines. Lock: `state`, a leaf. Callbacks run after it is released.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Actor;
use super::approval_request::ApprovalRequest;
use crate::base::repeat_limiter::{INTERVAL, RepeatLimiter};
use crate::base::shares::{Ledger, Share, ShareHolder, Shares};
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Code, Error, Result, limits};
use crate::events::Topic;
use crate::proc::Cancel;
use crate::store::spool::SpoolArea;

/// Maximum number of writes that wait for approval. Each of them holds a connection and a body.
const APPROVALS: usize = 128;
/// Maximum number of waiting writes of one token, so that one faulty agent leaves room for others.
const APPROVALS_PER_TOKEN: usize = 16;
/// How often pending approvals are checked for disconnected clients.
const APPROVAL_LOOK: Duration = Duration::from_secs(1);

/// Continues the request: executes it, or reports the error to its client.
pub type ApprovalCallback = Box<dyn FnOnce(Result<()>) + Send>;

struct PendingApproval {
    question: ApprovalRequest,
    /// The number of the `asked` event that announced this approval.
    event: u64,
    deadline: Instant,
    /// Raised when the client of the request disconnects.
    disconnected: Cancel,
    callback: ApprovalCallback,
    /// The share of the pending approvals that this one takes.
    _share: Share,
}

impl PendingApproval {
    fn view(&self) -> (ApprovalRequest, Duration) {
        (self.question.clone(), self.deadline.saturating_duration_since(Instant::now()))
    }
}

#[derive(Default)]
struct ApprovalState {
    /// The pending approvals by number, so the oldest is first.
    waiting: BTreeMap<u64, PendingApproval>,
    number: u64,
    closed: bool,
}

impl ApprovalState {
    fn live(&self) -> impl Iterator<Item = &PendingApproval> {
        self.waiting.values().filter(|waiting| !waiting.disconnected.is_cancelled())
    }
}

struct ApprovalsShared {
    state: Mutex<ApprovalState>,
    changed: Condvar,
    feed: Arc<Topic>,
    shares: Shares,
    lines: RepeatLimiter<()>,
}

/// Maximum number of bytes of bodies and previews on disk for the pending approvals of one token. An upload of
/// maximum size fits.
const SPOOL_PER_TOKEN: u64 = 288 << 20;
/// Maximum number of such bytes for all tokens together.
const SPOOL_TOTAL: u64 = 1 << 30;

/// Maximum number of log lines per interval about approvals that one token requested: a few times its share of the
/// pending approvals.
const LOG_LINES: u64 = 64;

/// All pending approvals.
pub struct Approvals {
    shared: Arc<ApprovalsShared>,
    timeout: Duration,
    spool: SpoolArea,
    timer: Mutex<Option<JoinOnDrop>>,
}

impl Approvals {
    /// Creates an empty list like [`Approvals::new`], with a spool in this data folder.
    ///
    /// # Errors
    /// Fails like `new`, or if the spool cannot be created.
    pub fn open(timeout: Duration, feed: Arc<Topic>, data_dir: &Path) -> Result<Approvals> {
        let spool = SpoolArea::open(&data_dir.join("approvals"), SPOOL_PER_TOKEN, SPOOL_TOTAL)?;
        Approvals::new(timeout, feed, spool)
    }

    /// Creates an empty list of approvals, each of which times out after `timeout`. `feed` receives an `asked` event
    /// with the view for approvers, and later an `ended` event with the reason: `allowed`, `denied`, `timeout`,
    /// `gone` (the client disconnected), `withdrawn` (the client's token ended) or `shutdown`.
    ///
    /// # Errors
    /// Fails if the thread cannot be started.
    pub fn new(timeout: Duration, feed: Arc<Topic>, spool: SpoolArea) -> Result<Approvals> {
        let shared = Arc::new(ApprovalsShared {
            state: Mutex::default(),
            changed: Condvar::new(),
            feed,
            shares: shares(),
            lines: RepeatLimiter::default(),
        });
        let timer = spawn("approvals".into(), limits::STACK, {
            let shared = shared.clone();
            move || run_deadlines(&shared)
        })?;
        Ok(Approvals { shared, timeout, spool, timer: Mutex::new(Some(timer)) })
    }

    /// Requests approval. `callback` is called once, on any thread, with the decision or an error. It must return
    /// quickly.
    ///
    /// # Errors
    /// `callback` receives `TooManyPending` if this token, or all tokens together, have too many pending approvals,
    /// and `ShuttingDown` after [`Approvals::close`].
    pub fn request(
        &self,
        asked: ApprovalRequest,
        party: ShareHolder,
        disconnected: Cancel,
        step: ApprovalCallback,
    ) {
        let refused = {
            let mut state = lock(&self.shared.state);
            let left: Vec<u64> = state
                .waiting
                .iter()
                .filter(|(_, waiting)| waiting.disconnected.is_cancelled())
                .map(|(number, _)| *number)
                .collect();
            let left: Vec<_> = left.iter().filter_map(|number| state.waiting.remove(number)).collect();
            left.iter().for_each(|waiting| self.shared.publish_end(waiting, "gone"));
            // Dropping these approvals releases their shares.
            drop(left);
            if state.closed {
                Some(Error::new(Code::ShuttingDown, "The server is shutting down"))
            } else if let Ok(share) = self.shared.shares.take(party) {
                let id = asked.id();
                self.shared.log_requested(party, id, asked.note());
                state.number += 1;
                let (number, deadline) = (state.number, Instant::now() + self.timeout);
                let event =
                    self.shared.publish("asked", json!({ "approval": asked.list_view(self.timeout) }));
                state.waiting.insert(
                    number,
                    PendingApproval {
                        question: asked,
                        event,
                        deadline,
                        disconnected,
                        callback: step,
                        _share: share,
                    },
                );
                self.shared.changed.notify_all();
                return;
            } else {
                let message = "Too many writes are waiting for approval; have some of them answered first";
                Some(Error::new(Code::TooManyPending, message))
            }
        };
        if let Some(error) = refused {
            step(Err(error));
        }
    }

    /// Returns the pending approvals of connected clients, oldest first, each with the remaining time.
    pub fn list(&self) -> Vec<(ApprovalRequest, Duration)> {
        let state = lock(&self.shared.state);
        state.live().map(PendingApproval::view).collect()
    }

    /// Returns the pending approval with this id, and its remaining time.
    pub fn find(&self, id: &str) -> Option<(ApprovalRequest, Duration)> {
        let state = lock(&self.shared.state);
        state.live().find(|waiting| waiting.question.id() == id).map(PendingApproval::view)
    }

    /// Returns the spool for the bodies and previews of pending requests.
    pub fn spool(&self) -> &SpoolArea {
        &self.spool
    }

    /// Allows or denies a pending approval.
    ///
    /// # Errors
    /// `ApprovalNotFound` if the id is unknown, was decided, or timed out, or if the client disconnected.
    pub fn answer(&self, id: &str, allow: bool, by: &Actor) -> Result<()> {
        let word = if allow { "allowed" } else { "denied" };
        let Some(waiting) = self.take(id, word).filter(|waiting| !waiting.disconnected.is_cancelled()) else {
            return Err(not_found());
        };
        log::info!("Approval {id} {word} by {}: {}", by.kind, waiting.question.note());
        let verdict = if allow { Ok(()) } else { Err(denied(id, "denied")) };
        (waiting.callback)(verdict);
        Ok(())
    }

    /// Withdraws a pending approval. Its client receives the error `why`, and the approval can no longer be allowed.
    pub fn withdraw(&self, id: &str, why: Error) {
        if let Some(waiting) = self.take(id, "withdrawn") {
            (waiting.callback)(Err(why));
        }
    }

    pub fn feed(&self) -> &Arc<Topic> {
        &self.shared.feed
    }

    fn take(&self, id: &str, end: &'static str) -> Option<PendingApproval> {
        let mut state = lock(&self.shared.state);
        let number =
            state.waiting.iter().find(|(_, waiting)| waiting.question.id() == id).map(|(number, _)| *number);
        let waiting = number.and_then(|number| state.waiting.remove(&number))?;
        let end = if waiting.disconnected.is_cancelled() { "gone" } else { end };
        self.shared.publish_end(&waiting, end);
        Some(waiting)
    }

    /// Ends all pending approvals with `ShuttingDown` and refuses new ones.
    pub fn close(&self) {
        let left = {
            let mut state = lock(&self.shared.state);
            state.closed = true;
            self.shared.changed.notify_all();
            std::mem::take(&mut state.waiting)
        };
        for waiting in left.into_values() {
            self.shared.publish_end(&waiting, "shutdown");
            (waiting.callback)(Err(Error::new(Code::ShuttingDown, "The server is shutting down")));
        }
        let timer = lock(&self.timer).take();
        drop(timer);
    }
}

impl Drop for Approvals {
    fn drop(&mut self) {
        self.close();
    }
}

impl ApprovalsShared {
    fn log_requested(&self, party: ShareHolder, id: &str, note: &str) {
        let noted = self.lines.note(party.without_workspace(), LOG_LINES, Instant::now(), || ());
        for (_, count) in noted.summaries {
            log::info!(
                "{count} more approvals were requested within {} s; see GET /approvals",
                INTERVAL.as_secs()
            );
        }
        if noted.written {
            log::info!("Approval {id} requested: {note}; answer with POST /approvals/{id}");
        }
    }

    /// Publishes an event. The caller holds the lock, so that events are published in order.
    fn publish(&self, kind: &'static str, data: Value) -> u64 {
        let Value::Object(data) = data else { return 0 };
        self.feed.publish(kind, data)
    }

    /// Publishes the end of an approval, and reduces its `asked` event to the ids. The rest of that event may
    /// contain secrets, and only pending approvals count towards the memory limit of the feed.
    fn publish_end(&self, waiting: &PendingApproval, end: &'static str) {
        let (id, workspace) = (waiting.question.id(), waiting.question.workspace_id());
        if let Value::Object(data) = json!({ "approval": { "id": id, "workspaceId": workspace } }) {
            self.feed.amend(waiting.event, data);
        }
        self.publish("ended", json!({ "approvalId": id, "workspaceId": workspace, "reason": end }));
    }
}

fn shares() -> Shares {
    Shares::new(Ledger::new(APPROVALS).with_token_share(APPROVALS_PER_TOKEN))
}

/// Returns the error for an id that is not pending.
pub fn not_found() -> Error {
    Error::new(Code::ApprovalNotFound, "Approval request not found")
}

fn denied(id: &str, reason: &str) -> Error {
    Error::new(Code::WriteDenied, "Write request denied").detail("requestId", id).detail("reason", reason)
}

/// Returns why a request ended without a decision: `gone` if its client disconnected, otherwise `timeout`.
fn end_reason(waiting: &PendingApproval) -> &'static str {
    if waiting.disconnected.is_cancelled() { "gone" } else { "timeout" }
}

fn run_deadlines(shared: &ApprovalsShared) {
    let mut state = lock(&shared.state);
    while !state.closed {
        let now = Instant::now();
        let late: Vec<u64> = state
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.deadline <= now || waiting.disconnected.is_cancelled())
            .map(|(number, _)| *number)
            .collect();
        let late: Vec<PendingApproval> =
            late.iter().filter_map(|number| state.waiting.remove(number)).collect();
        for waiting in &late {
            shared.publish_end(waiting, end_reason(waiting));
        }
        if late.is_empty() {
            // A disconnect does not wake this thread, so it checks for disconnects at intervals. Followers of the
            // feed are notified then.
            let next = state.waiting.values().map(|waiting| waiting.deadline.min(now + APPROVAL_LOOK)).min();
            let patience = next.map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(now));
            state = shared.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        drop(state);
        for waiting in late {
            let (id, reason) = (waiting.question.id(), end_reason(&waiting));
            let what = if reason == "gone" { "ended, because its client disconnected" } else { "timed out" };
            log::info!("Approval {id} {what}: {}", waiting.question.note());
            let verdict = denied(id, reason);
            (waiting.callback)(Err(verdict));
        }
        state = lock(&shared.state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use serde_json::Map;

    use crate::access::Scope;
    use crate::access::approval_request::NewApprovalRequest;
    use crate::events::{Bus, NextEvent};
    use crate::store::scratch::TestFolder;

    fn ask(approvals: &Approvals, token: &str) -> (Cancel, mpsc::Receiver<Result<()>>) {
        let (sender, verdict) = mpsc::channel();
        let actor = Actor::remote(Scope::Collaborator, token.to_owned(), None);
        let disconnected = Cancel::new().unwrap();
        let step: ApprovalCallback = Box::new(move |verdict| sender.send(verdict).unwrap());
        let party = ShareHolder::new(&actor.token_hash, None, false);
        let question = ApprovalRequest::new(NewApprovalRequest {
            workspace_id: "w",
            action: "a",
            summary: "s".into(),
            note: "s".into(),
            paths: Vec::new(),
            actor,
            extra: Map::new(),
            spooled: None,
        });
        approvals.request(question, party, disconnected.clone(), step);
        (disconnected, verdict)
    }

    fn approvals(timeout: Duration) -> Approvals {
        let folder = TestFolder::new();
        let spool = SpoolArea::open(&folder, 1 << 20, 1 << 20).unwrap();
        Approvals::new(timeout, Bus::default().topic("approvals"), spool).unwrap()
    }

    #[test]
    fn the_feed_reports_each_request_and_each_end() {
        let approvals = approvals(Duration::from_millis(300));
        let mut feed = approvals.feed().follow(None).unwrap();
        let mut next = |reason: Option<&str>| {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                match feed.read_next() {
                    NextEvent::Event(event) => {
                        assert_eq!(event.kind, if reason.is_some() { "ended" } else { "asked" });
                        assert_eq!(event.data.get("reason").and_then(Value::as_str), reason);
                        return;
                    }
                    _ => drop(feed.wait(None, deadline).unwrap()),
                }
                assert!(Instant::now() < deadline);
            }
        };
        let asked: Vec<_> = (0..4).map(|_| ask(&approvals, "t")).collect();
        (0..4).for_each(|_| next(None));
        let ids: Vec<String> = approvals.list().into_iter().map(|(asked, _)| asked.id().to_owned()).collect();
        approvals.answer(&ids[0], true, &owner()).unwrap();
        next(Some("allowed"));
        approvals.withdraw(&ids[1], not_found());
        next(Some("withdrawn"));
        asked[2].0.cancel();
        // The thread finds both approvals overdue at the same time.
        next(Some("gone"));
        next(Some("timeout"));
        let _more = ask(&approvals, "t");
        next(None);
        approvals.close();
        next(Some("shutdown"));
    }

    fn owner() -> Actor {
        Actor::host("h".into(), None)
    }

    #[test]
    fn a_decision_is_used_once() {
        let approvals = approvals(Duration::from_secs(60));
        let (_gone, verdict) = ask(&approvals, "t");
        let id = approvals.list()[0].0.id().to_owned();
        approvals.answer(&id, true, &owner()).unwrap();
        assert!(verdict.recv().unwrap().is_ok());
        let again = approvals.answer(&id, true, &owner()).unwrap_err();
        assert_eq!(again.code(), Code::ApprovalNotFound);
        let (_gone, verdict) = ask(&approvals, "t");
        approvals.answer(approvals.list()[0].0.id(), false, &owner()).unwrap();
        assert_eq!(verdict.recv().unwrap().unwrap_err().code(), Code::WriteDenied);
    }

    #[test]
    fn disconnected_clients_are_not_served_and_a_timeout_denies() {
        let approvals = approvals(Duration::from_millis(50));
        let (disconnected, _verdict) = ask(&approvals, "t");
        let id = approvals.list()[0].0.id().to_owned();
        disconnected.cancel();
        assert!(approvals.list().is_empty());
        assert_eq!(approvals.answer(&id, true, &owner()).unwrap_err().code(), Code::ApprovalNotFound);
        let (_gone, verdict) = ask(&approvals, "t");
        let error = verdict.recv().unwrap().unwrap_err();
        assert_eq!(error.body()["details"]["reason"], "timeout");
    }

    #[test]
    fn tokens_have_a_share_of_the_list_and_shutdown_is_reported() {
        let approvals = approvals(Duration::from_secs(60));
        let asked: Vec<_> = (0..APPROVALS_PER_TOKEN).map(|_| ask(&approvals, "t")).collect();
        let (_gone, verdict) = ask(&approvals, "t");
        assert_eq!(verdict.recv().unwrap().unwrap_err().code(), Code::TooManyPending);
        let (_gone, _other) = ask(&approvals, "u");
        approvals.close();
        assert_eq!(asked[0].1.recv().unwrap().unwrap_err().code(), Code::ShuttingDown);
    }
}
