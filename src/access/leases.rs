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

type End = Box<dyn FnOnce() + Send>;

struct Held {
    token_hash: String,
    /// The token is not one of the store: only time ends it.
    is_login: bool,
    expires_at: Option<u64>,
    /// Between the end of the token and the call of `end`.
    grace: Duration,
    ended: Arc<AtomicBool>,
    end: End,
}

#[derive(Default)]
struct State {
    held: BTreeMap<u64, Held>,
    /// In their time of grace.
    dying: BTreeMap<u64, (Instant, End)>,
    number: u64,
    closed: bool,
}

struct Shared {
    tokens: Arc<Tokens>,
    state: Mutex<State>,
    changed: Condvar,
}

/// All that is held.
pub struct Leases {
    shared: Arc<Shared>,
    keeper: Mutex<Option<JoinOnDrop>>,
}

/// Held until it is dropped.
#[derive(Default)]
pub struct Lease {
    shared: Weak<Shared>,
    number: u64,
    ended: Arc<AtomicBool>,
}

impl Lease {
    /// Whether the token has ended meanwhile.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({})", self.number)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let gone = {
            let mut state = lock(&shared.state);
            (state.held.remove(&self.number), state.dying.remove(&self.number))
        };
        // What an end holds may take locks of its own when it goes.
        drop(gone);
    }
}

impl Leases {
    /// Nothing is held yet.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn new(tokens: Arc<Tokens>) -> Result<Leases> {
        let shared = Arc::new(Shared { tokens, state: Mutex::default(), changed: Condvar::new() });
        let keeper = spawn("leases".into(), limits::STACK, {
            let shared = shared.clone();
            move || keep(&shared)
        })?;
        Ok(Leases { shared, keeper: Mutex::new(Some(keeper)) })
    }

    /// Calls `end` once, `grace` after the end of this actor's token, unless the lease is dropped before; on whatever
    /// thread, so it should only pass it on.
    pub fn hold(&self, actor: &Actor, grace: Duration, end: impl FnOnce() + Send + 'static) -> Lease {
        if !actor.is_scoped {
            return Lease::default();
        }
        let ended = Arc::new(AtomicBool::new(false));
        let number = {
            let mut state = lock(&self.shared.state);
            state.number += 1;
            let number = state.number;
            let held = Held {
                token_hash: actor.token_hash.clone(),
                is_login: actor.user.is_some(),
                expires_at: actor.expires_at,
                grace,
                ended: ended.clone(),
                end: Box::new(end),
            };
            // The keeper sleeps for long while nothing is held, and until the next time that it knows.
            if state.held.is_empty() || held.expires_at.is_some() {
                self.shared.changed.notify_all();
            }
            state.held.insert(number, held);
            number
        };
        // It may have ended since the request was let in.
        self.shared.sweep(Some(&actor.token_hash));
        Lease { shared: Arc::downgrade(&self.shared), number, ended }
    }

    /// Ends what this token has opened, when it is not good any more.
    pub fn sweep(&self, token_hash: &str) {
        self.shared.sweep(Some(token_hash));
    }

    /// Nothing is ended any more.
    pub fn close(&self) {
        lock(&self.shared.state).closed = true;
        self.shared.changed.notify_all();
        let keeper = lock(&self.keeper).take();
        drop(keeper);
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Ends what is held for tokens that are not good any more; of all tokens if none is named.
    fn sweep(&self, only: Option<&str>) {
        let mut hashes: Vec<String> = {
            let state = lock(&self.state);
            let wanted = |held: &&Held| !held.is_login && only.is_none_or(|hash| hash == held.token_hash);
            state.held.values().filter(wanted).map(|held| held.token_hash.clone()).collect()
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
            for (number, held) in &mut state.held {
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
                let Some(held) = state.held.remove(&number) else { continue };
                held.ended.store(true, Ordering::Release);
                if held.grace.is_zero() {
                    due.push(held.end);
                } else {
                    state.dying.insert(number, (Instant::now() + held.grace, held.end));
                    self.changed.notify_all();
                }
            }
        }
        for end in due {
            end();
        }
    }
}

fn keep(shared: &Shared) {
    loop {
        let mut due = Vec::new();
        {
            let mut state = lock(&shared.state);
            if state.closed {
                return;
            }
            let now = Instant::now();
            let over: Vec<u64> =
                state.dying.iter().filter(|(_, (at, _))| *at <= now).map(|(number, _)| *number).collect();
            due.extend(over.iter().filter_map(|number| state.dying.remove(number)));
            if due.is_empty() {
                let wall = clock::now_unix_ms();
                let until = |end: u64| Duration::from_millis(end.saturating_sub(wall));
                let expiry = state.held.values().filter_map(|held| held.expires_at).map(until).min();
                let grace = state.dying.values().map(|(at, _)| at.saturating_duration_since(now)).min();
                let look = (!state.held.is_empty()).then_some(limits::CREDENTIAL_CHECK);
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
    use crate::store::scratch::Scratch;

    struct Bench {
        _dir: Scratch,
        tokens: Arc<Tokens>,
        leases: Leases,
    }

    fn bench() -> Bench {
        let dir = Scratch::new();
        let tokens = Arc::new(Tokens::open(&dir.join("tokens.json")).unwrap());
        Bench { leases: Leases::new(tokens.clone()).unwrap(), tokens, _dir: dir }
    }

    impl Bench {
        fn token(&self, lifetime: Option<Duration>) -> Token {
            let wanted = NewToken { scope: Scope::Viewer, label: None, lifetime, workspace_ids: None };
            self.tokens.create(wanted).unwrap().0
        }

        fn hold(&self, token: &Token, grace: Duration) -> (Lease, mpsc::Receiver<()>) {
            let (told, ended) = mpsc::channel();
            let lease = self
                .leases
                .hold(&Actor::scoped(token, None), grace, move || told.send(()).unwrap_or_default());
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
