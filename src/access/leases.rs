//! What is open because of a scoped token or a login: streams, sockets, waits. Each is held here with what ends it, and ends at once
//! when its token is revoked or expires. The configured tokens never end, so what they open is not held. Knows nothing
//! of sockets and requests.
//!
//! Thread: `leases`, which keeps the times of expiry, and looks at the token store while anything is held. Lock: `state`,
//! a leaf: ends are called after unlocking.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::Actor;
use super::tokens::Tokens;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{Result, clock, limits};

type LeaseCallback = Box<dyn FnOnce() + Send>;

struct LeaseEntry {
    token_hash: String,
    /// The token is not one of the store: only time ends it.
    is_login: bool,
    expires_at: Option<u64>,
    /// Between the end of the token and the call of `end`.
    grace: Duration,
    ended: Arc<AtomicBool>,
    on_end: LeaseCallback,
}

#[derive(Default)]
struct LeaseState {
    entries: BTreeMap<u64, LeaseEntry>,
    /// In their time of grace.
    expiring: BTreeMap<u64, (Instant, LeaseCallback)>,
    number: u64,
    closed: bool,
}

struct LeasesShared {
    tokens: Arc<Tokens>,
    state: Mutex<LeaseState>,
    changed: Condvar,
}

/// All that is held.
pub struct TokenLeases {
    shared: Arc<LeasesShared>,
    thread: Mutex<Option<JoinOnDrop>>,
}

/// Held until it is dropped.
#[derive(Default)]
pub struct TokenLease {
    shared: Weak<LeasesShared>,
    number: u64,
    ended: Arc<AtomicBool>,
}

impl TokenLease {
    /// Whether the token has ended meanwhile.
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
        // What an end holds may take locks of its own when it goes.
        drop(gone);
    }
}

impl TokenLeases {
    /// Nothing is held yet.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(tokens: Arc<Tokens>) -> Result<TokenLeases> {
        let shared = Arc::new(LeasesShared { tokens, state: Mutex::default(), changed: Condvar::new() });
        let keeper = spawn("leases".into(), limits::STACK, {
            let shared = shared.clone();
            move || run_expiry(&shared)
        })?;
        Ok(TokenLeases { shared, thread: Mutex::new(Some(keeper)) })
    }

    /// Calls `end` once, `grace` after the end of this actor's token, unless the lease is dropped before; on whatever
    /// thread, so it should only pass it on.
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
            // The keeper sleeps for long while nothing is held, and until the next time that it knows.
            if state.entries.is_empty() || held.expires_at.is_some() {
                self.shared.changed.notify_all();
            }
            state.entries.insert(number, held);
            number
        };
        // It may have ended since the request was let in.
        self.shared.sweep(Some(&actor.token_hash));
        TokenLease { shared: Arc::downgrade(&self.shared), number, ended }
    }

    /// Ends what this token has opened, when it is not good any more.
    pub fn sweep(&self, token_hash: &str) {
        self.shared.sweep(Some(token_hash));
    }

    /// Nothing is ended any more.
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
    /// Ends what is held for tokens that are not good any more; of all tokens if none is named.
    fn sweep(&self, only: Option<&str>) {
        let mut hashes: Vec<String> = {
            let state = lock(&self.state);
            let wanted =
                |held: &&LeaseEntry| !held.is_login && only.is_none_or(|hash| hash == held.token_hash);
            state.entries.values().filter(wanted).map(|held| held.token_hash.clone()).collect()
        };
        hashes.sort_unstable();
        hashes.dedup();
        // Reads the file, so not under the lock.
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
                    // Its end may have been moved by hand.
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
                let look = (!state.entries.is_empty()).then_some(limits::CREDENTIAL_CHECK);
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
            let (told, ended) = mpsc::channel();
            let lease = self
                .leases
                .acquire(&Actor::scoped(token, None), grace, move || told.send(()).unwrap_or_default());
            (lease, ended)
        }
    }

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn revoking_and_expiry_end_what_is_held_and_nothing_else() {
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
    fn there_is_time_to_say_goodbye_and_a_late_comer_has_ended() {
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
    fn a_change_by_hand_is_noticed_while_something_is_open() {
        let bench = bench();
        let token = bench.token(None);
        let (_lease, ended) = bench.hold(&token, Duration::ZERO);
        std::fs::remove_file(bench.tokens.path()).unwrap();
        ended.recv_timeout(SOON).unwrap();
    }
}
