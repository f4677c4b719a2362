//! Slows down clients that repeatedly fail to authenticate, per address. Successful requests are never delayed. This
//! module sees only that a request was answered with 401.
//!
//! Threads: those of the connections, which wait for the delay. Lock: one, a leaf.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::record::Peer;
use crate::base::thread::lock;

/// Number of failed authentications that an address may make at once. A person with a faulty script makes about as
/// many.
const FAILURE_BURST: f64 = 20.0;
/// Number of further failed authentications allowed per second.
const FAILURES_PER_SEC: f64 = 1.0;
/// Delay of the answer to any failure beyond these limits.
const FAILURE_DELAY: Duration = Duration::from_secs(1);
/// Maximum number of addresses with recorded failures.
const THROTTLED_PEERS: usize = 4096;

/// Token buckets that count failed authentications, by address.
#[derive(Debug, Default)]
pub(super) struct AuthThrottle(Mutex<HashMap<Peer, TokenBucket>>);

#[derive(Debug)]
struct TokenBucket {
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    fn refill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * FAILURES_PER_SEC;
        self.tokens = (self.tokens + earned).min(FAILURE_BURST);
        self.at = now;
    }
}

impl AuthThrottle {
    /// Counts a failed authentication. Returns how long to delay its answer.
    pub(super) fn failed(&self, peer: Peer, now: Instant) -> Duration {
        let peer = peer.network();
        let mut buckets = lock(&self.0);
        if buckets.len() >= THROTTLED_PEERS && !buckets.contains_key(&peer) {
            make_room(&mut buckets, now);
        }
        let bucket = buckets.entry(peer).or_insert(TokenBucket { tokens: FAILURE_BURST, at: now });
        bucket.refill(now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Duration::ZERO;
        }
        FAILURE_DELAY
    }
}

fn make_room(buckets: &mut HashMap<Peer, TokenBucket>, now: Instant) {
    buckets.retain(|_, bucket| {
        bucket.refill(now);
        bucket.tokens < FAILURE_BURST
    });
    // If all addresses have failed recently, the address with the fewest failures is forgotten, which costs least.
    if buckets.len() >= THROTTLED_PEERS {
        let least = buckets.iter().max_by(|(_, a), (_, b)| a.tokens.total_cmp(&b.tokens));
        if let Some(peer) = least.map(|(peer, _)| *peer) {
            buckets.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn failures_beyond_a_burst_are_delayed_until_the_bucket_refills() {
        let (throttle, now) = (AuthThrottle::default(), Instant::now());
        let peer = Peer::Ip("2001:db8::1".parse().unwrap());
        let neighbour = Peer::Ip("2001:db8::2".parse().unwrap());
        let other = Peer::Ip("192.0.2.1".parse().unwrap());
        for _ in 0..20 {
            assert_eq!(throttle.failed(peer, now), Duration::ZERO);
        }
        assert_eq!(throttle.failed(peer, now), FAILURE_DELAY);
        assert_eq!(throttle.failed(neighbour, now), FAILURE_DELAY);
        assert_eq!(throttle.failed(other, now), Duration::ZERO);
        let later = now + Duration::from_secs(2);
        assert_eq!(throttle.failed(peer, later), Duration::ZERO);
        assert_eq!(throttle.failed(peer, later), Duration::ZERO);
        assert_eq!(throttle.failed(peer, later), FAILURE_DELAY);
    }

    #[test]
    fn the_number_of_buckets_is_limited() {
        let (throttle, now) = (AuthThrottle::default(), Instant::now());
        for n in 0..THROTTLED_PEERS as u32 + 100 {
            throttle.failed(Peer::Ip(IpAddr::V4(n.into())), now);
        }
        assert_eq!(lock(&throttle.0).len(), THROTTLED_PEERS);
    }
}
