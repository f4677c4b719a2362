//! Leases for streams, sockets and waiting requests that were opened with a scoped token or a login. A lease ends
//! when its token is revoked or expires. The server tokens never end, so they need no leases. Independent of sockets
//! and requests.
//!
//! Thread: `leases` enforces expiry, and polls the token store while there are leases. Lock: `state`, a leaf.
//! Callbacks run after it is released.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Actor;
use super::tokens::Tokens;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Result, clock, limits};

/// How often the token store is checked for manual changes while there are leases.
const CREDENTIAL_CHECK: Duration = Duration::from_secs(2);

type LeaseCallback = Box<dyn FnOnce() + Send>;

struct LeaseEntry {
    token_hash: String,
    /// Whether the token is that of a login. Such a token is not in the store, and ends only by expiry.
    is_login: bool,
    expires_at: Option<u64>,
    /// The delay between the end of the token and the callback.
    grace: Duration,
    ended: Arc<AtomicBool>,
    on_end: LeaseCallback,
}

#[derive(Default)]
struct LeaseState {
    entries: BTreeMap<u64, LeaseEntry>,
    /// Leases of which the token has ended, and of which the callback waits for the end of the grace period.
    expiring: BTreeMap<u64, (Instant, LeaseCallback)>,
    number: u64,
    closed: bool,
}

struct LeasesShared {
    tokens: Arc<Tokens>,
    state: Mutex<LeaseState>,
    changed: Condvar,
}

/// All leases, and the thread that ends them.
pub struct TokenLeases {
    shared: Arc<LeasesShared>,
    thread: Mutex<Option<JoinOnDrop>>,
}

/// A lease on a token. Dropping it cancels the callback.
#[derive(Default)]
pub struct TokenLease {
    shared: Weak<LeasesShared>,
    number: u64,
    ended: Arc<AtomicBool>,
}

impl TokenLease {
    /// Returns whether the token has ended.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for TokenLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({})", self.number)
    }
}

impl Drop for TokenLease {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let gone = {
            let mut state = lock(&shared.state);
            (state.entries.remove(&self.number), state.expiring.remove(&self.number))
        };
        // The lease is dropped after unlocking, because the callback may own values that take locks when dropped.
        drop(gone);
    }
}

impl TokenLeases {
    /// Starts the thread, without leases.
    ///
    /// # Errors
    /// Fails if the thread cannot be started.
    pub fn new(tokens: Arc<Tokens>) -> Result<TokenLeases> {
        let shared = Arc::new(LeasesShared { tokens, state: Mutex::default(), changed: Condvar::new() });
        let keeper = spawn("leases".into(), limits::STACK, {
            let shared = shared.clone();
            move || run_expiry(&shared)
        })?;
        Ok(TokenLeases { shared, thread: Mutex::new(Some(keeper)) })
    }

    /// Acquires a lease: `end` is called once, `grace` after the end of this actor's token, unless the lease is
    /// dropped before. `end` runs on any thread and must return quickly.
    pub fn acquire(&self, actor: &Actor, grace: Duration, end: impl FnOnce() + Send + 'static) -> TokenLease {
        if !actor.is_scoped {
            return TokenLease::default();
        }
        let ended = Arc::new(AtomicBool::new(false));
        let number = {
            let mut state = lock(&self.shared.state);
            state.number += 1;
            let number = state.number;
            let held = LeaseEntry {
                token_hash: actor.token_hash.clone(),
                is_login: actor.user.is_some(),
                expires_at: actor.expires_at,
                grace,
                ended: ended.clone(),
                on_end: Box::new(end),
            };
            // Without leases the thread sleeps for long; otherwise it sleeps until the next known expiry.
            if state.entries.is_empty() || held.expires_at.is_some() {
                self.shared.changed.notify_all();
            }
            state.entries.insert(number, held);
            number
        };
        // The token may have ended after the request was admitted.
        self.shared.sweep(Some(&actor.token_hash));
        TokenLease { shared: Arc::downgrade(&self.shared), number, ended }
    }

    /// Ends the leases of this token if the token is no longer valid.
    pub fn sweep(&self, token_hash: &str) {
        self.shared.sweep(Some(token_hash));
    }

    /// Stops the thread. No lease ends after this.
    pub fn close(&self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
        let keeper = lock(&self.thread).take();
        drop(keeper);
    }
}

impl Drop for TokenLeases {
    fn drop(&mut self) {
        self.close();
    }
}

impl LeasesShared {
    /// Ends the leases of tokens that are no longer valid: those of the token `only`, or of all tokens if it is
    /// `None`.
    fn sweep(&self, only: Option<&str>) {
        let mut hashes: Vec<String> = {
            let state = lock(&self.state);
            let wanted =
                |held: &&LeaseEntry| !held.is_login && only.is_none_or(|hash| hash == held.token_hash);
            state.entries.values().filter(wanted).map(|held| held.token_hash.clone()).collect()
        };
        hashes.sort_unstable();
        hashes.dedup();
        // This reads the token file, so it does not hold the lock.
        let good: BTreeMap<String, Option<u64>> = hashes
            .iter()
            .filter_map(|hash| self.tokens.find(hash).filter(|token| !token.is_expired()))
            .map(|token| (token.hash, token.expires_at))
            .collect();
        let mut due = Vec::new();
        let wall = clock::now_unix_ms();
        {
            let mut state = lock(&self.state);
            let mut over = Vec::new();
            for (number, held) in &mut state.entries {
                if held.is_login {
                    if held.expires_at.is_some_and(|end| end <= wall) {
                        over.push(*number);
                    }
                    continue;
                }
                match good.get(&held.token_hash) {
                    // The expiry in the token file may have been edited.
                    Some(expires_at) => held.expires_at = *expires_at,
                    None if hashes.binary_search(&held.token_hash).is_ok() => over.push(*number),
                    None => {}
                }
            }
            for number in over {
                let Some(held) = state.entries.remove(&number) else { continue };
                held.ended.store(true, Ordering::Release);
                if held.grace.is_zero() {
                    due.push(held.on_end);
                } else {
                    state.expiring.insert(number, (Instant::now() + held.grace, held.on_end));
                    self.changed.notify_all();
                }
            }
        }
        for end in due {
            end();
        }
    }
}

fn run_expiry(shared: &LeasesShared) {
    loop {
        let mut due = Vec::new();
        {
            let mut state = lock(&shared.state);
            if state.closed {
                return;
            }
            let now = Instant::now();
            let over: Vec<u64> =
                state.expiring.iter().filter(|(_, (at, _))| *at <= now).map(|(number, _)| *number).collect();
            due.extend(over.iter().filter_map(|number| state.expiring.remove(number)));
            if due.is_empty() {
                let wall = clock::now_unix_ms();
                let until = |end: u64| Duration::from_millis(end.saturating_sub(wall));
                let expiry = state.entries.values().filter_map(|held| held.expires_at).map(until).min();
                let grace = state.expiring.values().map(|(at, _)| at.saturating_duration_since(now)).min();
                let look = (!state.entries.is_empty()).then_some(CREDENTIAL_CHECK);
                let patience = [expiry, grace, look].into_iter().flatten().min();
                let patience = patience.unwrap_or(Duration::from_secs(3600)).max(Duration::from_millis(1));
                drop(shared.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner));
            }
        }
        for (_, end) in due {
            end();
        }
        shared.sweep(None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::access::Scope;
    use crate::access::tokens::{NewToken, Token};
    use crate::store::scratch::TestFolder;

    struct Bench {
        _dir: TestFolder,
        tokens: Arc<Tokens>,
        leases: TokenLeases,
    }

    fn bench() -> Bench {
        let dir = TestFolder::new();
        let tokens = Arc::new(Tokens::open(&dir.join("tokens.json")).unwrap());
        Bench { leases: TokenLeases::new(tokens.clone()).unwrap(), tokens, _dir: dir }
    }

    impl Bench {
        fn token(&self, lifetime: Option<Duration>) -> Token {
            let wanted = NewToken { scope: Scope::Viewer, label: None, lifetime, workspace_ids: None };
            self.tokens.create(wanted).unwrap().0
        }

        fn hold(&self, token: &Token, grace: Duration) -> (TokenLease, mpsc::Receiver<()>) {
            let (sender, ended) = mpsc::channel();
            let lease = self
                .leases
                .acquire(&Actor::scoped(token, None), grace, move || sender.send(()).unwrap_or_default());
            (lease, ended)
        }
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn revocation_and_expiry_end_the_leases_of_their_token_only() {
        let bench = bench();
        let (one, other) = (bench.token(None), bench.token(None));
        let (lease, ended) = bench.hold(&one, Duration::ZERO);
        let (kept, not_ended) = bench.hold(&other, Duration::ZERO);
        let (dropped, never) = bench.hold(&one, Duration::ZERO);
        drop(dropped);
        bench.tokens.revoke(&one.id).unwrap();
        bench.leases.sweep(&one.hash);
        ended.try_recv().unwrap();
        assert!(lease.has_ended() && !kept.has_ended());
        assert!(never.try_recv().is_err() && not_ended.try_recv().is_err());
        let short = bench.token(Some(Duration::from_millis(300)));
        let (_lease, ended) = bench.hold(&short, Duration::ZERO);
        assert!(ended.try_recv().is_err());
        ended.recv_timeout(SOON).unwrap();
    }

    #[test]
    fn callbacks_run_after_the_grace_period_and_late_leases_end_at_once() {
        let bench = bench();
        let token = bench.token(None);
        let (lease, ended) = bench.hold(&token, Duration::from_millis(200));
        bench.tokens.revoke(&token.id).unwrap();
        bench.leases.sweep(&token.hash);
        assert!(lease.has_ended() && ended.try_recv().is_err());
        ended.recv_timeout(SOON).unwrap();
        let (late, ended) = bench.hold(&token, Duration::ZERO);
        ended.recv_timeout(SOON).unwrap();
        assert!(late.has_ended());
    }

    #[test]
    fn edits_of_the_token_file_are_noticed_while_leases_exist() {
        let bench = bench();
        let token = bench.token(None);
        let (_lease, ended) = bench.hold(&token, Duration::ZERO);
        std::fs::remove_file(bench.tokens.path()).unwrap();
        ended.recv_timeout(SOON).unwrap();
    }
}
