//! Fair shares of bounded resources: workers, terminals, detached runs, pending approvals, connections. A [`Ledger`]
//! counts the used units of a resource by the token and the workspace that use them.
//!
//! - A token may use at most half of the capacity, and so may a workspace. The half is rounded up, so that a capacity
//!   of 1 serves one user.
//! - A reserve of an eighth of the capacity, at least 1, exists for unlimited owners *in addition to* the capacity.
//!   Owners can use the reserve while other users hold the whole capacity. Without other users, owners are limited to
//!   the capacity.
//!
//! The lock of [`Shares`] is a leaf: no other lock is taken while it is held.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::thread::lock;
use super::{Code, Error};

/// A user of bounded resources: a token, a workspace, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShareHolder {
    token: Option<u128>,
    workspace: Option<Uuid>,
    unlimited: bool,
}

impl ShareHolder {
    /// An unknown user, limited only by the capacity.
    pub const ANONYMOUS: ShareHolder = ShareHolder { token: None, workspace: None, unlimited: false };
    /// An owner without a share limit, or the server itself.
    pub const OWNER: ShareHolder = ShareHolder { token: None, workspace: None, unlimited: true };

    /// Creates the party of a token that acts on a workspace. `unlimited` is set for an owner's token that reaches
    /// every workspace.
    pub fn new(token_hash: &str, workspace: Option<Uuid>, unlimited: bool) -> ShareHolder {
        // The key is the FNV-1a hash. Tokens are random and made by the server, so clients cannot choose their hashes.
        let key = token_hash.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |key: u128, byte| {
            (key ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        });
        ShareHolder { token: Some(key), workspace, unlimited }
    }

    /// Creates the party of a workspace that uses a resource without a known token.
    pub fn of_workspace(workspace: Uuid) -> ShareHolder {
        ShareHolder { workspace: Some(workspace), ..ShareHolder::ANONYMOUS }
    }

    /// Returns whether both parties have the same token.
    pub fn shares_token(self, other: ShareHolder) -> bool {
        self.token == other.token && self.unlimited == other.unlimited
    }

    pub fn is_unlimited(self) -> bool {
        self.unlimited
    }

    /// Returns the party of the token alone.
    #[must_use]
    pub fn without_workspace(self) -> ShareHolder {
        ShareHolder { workspace: None, ..self }
    }
}

/// The reason why a resource was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareError {
    /// The whole capacity is in use.
    Full,
    /// The token already uses its share.
    Token,
    /// All tokens of the workspace together already use the workspace's share.
    Workspace,
}

impl ShareError {
    /// Returns the error for a client: `full` if the whole capacity is in use, else status 429, because the limit is on
    /// the client's own use. `what` names the resource in the plural.
    pub fn error(self, what: &str, full: impl FnOnce() -> Error) -> Error {
        let holder = match self {
            ShareError::Full => return full(),
            ShareError::Token => "token",
            ShareError::Workspace => "workspace",
        };
        let message = format!(
            "This {holder} already uses its share of the {what}; end one of its own, or wait until one ends"
        );
        Error::new(Code::OverShare, message).detail("share", holder)
    }
}

/// Counts the used units of one bounded resource, by token and by workspace.
#[derive(Debug)]
pub struct Ledger {
    capacity: usize,
    token_share: usize,
    workspace_share: usize,
    used: usize,
    by_owners: usize,
    tokens: HashMap<u128, usize>,
    workspaces: HashMap<Uuid, usize>,
}

impl Ledger {
    /// Creates a ledger of `capacity` units, none of which is in use.
    pub fn new(capacity: usize) -> Ledger {
        let half = capacity.div_ceil(2);
        Ledger {
            capacity,
            token_share: half,
            workspace_share: half,
            used: 0,
            by_owners: 0,
            tokens: HashMap::new(),
            workspaces: HashMap::new(),
        }
    }

    /// Limits the share of each token to `token_share`; never raises it.
    #[must_use]
    pub fn with_token_share(self, token_share: usize) -> Ledger {
        Ledger { token_share: token_share.min(self.token_share), ..self }
    }

    /// Returns the size of the owners' reserve, which is in addition to the capacity.
    pub fn reserve(&self) -> usize {
        (self.capacity / 8).max(1)
    }

    /// Returns the capacity without the owners' reserve.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the number of units in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Checks whether `party` could take another unit.
    ///
    /// # Errors
    /// The reason why `party` cannot take another unit.
    pub fn check(&self, party: ShareHolder) -> Result<(), ShareError> {
        let full = self.used >= self.capacity;
        if party.unlimited {
            return if full && self.by_owners >= self.reserve() { Err(ShareError::Full) } else { Ok(()) };
        }
        if full { Err(ShareError::Full) } else { self.check_share(party) }
    }

    /// Checks whether `party` is below its share, regardless of the capacity.
    fn check_share(&self, party: ShareHolder) -> Result<(), ShareError> {
        let holds = |count: Option<&usize>, share| count.is_some_and(|count| *count >= share);
        if party.token.is_some_and(|token| holds(self.tokens.get(&token), self.token_share)) {
            return Err(ShareError::Token);
        }
        match party.workspace {
            Some(workspace) if holds(self.workspaces.get(&workspace), self.workspace_share) => {
                Err(ShareError::Workspace)
            }
            _ => Ok(()),
        }
    }

    /// Takes a unit for `party`.
    ///
    /// # Errors
    /// The same as for [`Ledger::check`].
    pub fn take(&mut self, party: ShareHolder) -> Result<(), ShareError> {
        self.check(party)?;
        self.force_take(party);
        Ok(())
    }

    /// Counts a unit that is already in use, without checking any limit.
    pub fn force_take(&mut self, party: ShareHolder) {
        self.used += 1;
        if party.unlimited {
            self.by_owners += 1;
            return;
        }
        if let Some(token) = party.token {
            *self.tokens.entry(token).or_default() += 1;
        }
        if let Some(workspace) = party.workspace {
            *self.workspaces.entry(workspace).or_default() += 1;
        }
    }

    /// Returns a unit that `party` has taken.
    pub fn give_back(&mut self, party: ShareHolder) {
        fn less<K: std::hash::Hash + Eq>(map: &mut HashMap<K, usize>, key: K) {
            if let Some(count) = map.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    map.remove(&key);
                }
            }
        }
        self.used -= 1;
        if party.unlimited {
            self.by_owners -= 1;
            return;
        }
        party.token.into_iter().for_each(|token| less(&mut self.tokens, token));
        party.workspace.into_iter().for_each(|workspace| less(&mut self.workspaces, workspace));
    }

    /// Transfers a unit from `from` to `to`, once the user of the unit is known.
    ///
    /// # Errors
    /// The same as for [`Ledger::check`]; the unit then remains with `from`.
    pub fn assign(&mut self, from: ShareHolder, to: ShareHolder) -> Result<(), ShareError> {
        self.give_back(from);
        let taken = self.take(to);
        if taken.is_err() {
            self.force_take(from);
        }
        taken
    }
}

/// Counts retained items by workspace, to find the workspace whose items are discarded first.
#[derive(Debug, Default)]
pub struct WorkspaceCounts {
    total: usize,
    counts: HashMap<Uuid, usize>,
}

impl WorkspaceCounts {
    /// Counts another item of `workspace`.
    pub fn add(&mut self, workspace: Uuid) {
        self.total += 1;
        *self.counts.entry(workspace).or_default() += 1;
    }

    /// Removes an item of `workspace` from the count.
    pub fn remove(&mut self, workspace: Uuid) {
        if let Some(count) = self.counts.get_mut(&workspace) {
            self.total -= 1;
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&workspace);
            }
        }
    }

    /// Returns the number of items of all workspaces.
    pub fn len(&self) -> usize {
        self.total
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Returns the workspace with the most items, and the number of its items.
    pub fn largest(&self) -> Option<(Uuid, usize)> {
        self.counts.iter().map(|(workspace, count)| (*workspace, *count)).max_by_key(|(_, count)| *count)
    }
}

/// A ledger whose units are guards that return themselves.
#[derive(Clone, Debug)]
pub struct Shares(Arc<Mutex<Ledger>>);

impl Shares {
    /// Creates shares that are counted in `ledger`.
    pub fn new(ledger: Ledger) -> Shares {
        Shares(Arc::new(Mutex::new(ledger)))
    }

    /// Takes a unit for `party` until the guard is dropped.
    ///
    /// # Errors
    /// The same as for [`Ledger::check`].
    pub fn take(&self, party: ShareHolder) -> Result<Share, ShareError> {
        lock(&self.0).take(party)?;
        Ok(Share { shares: self.clone(), party })
    }

    /// Counts a unit that is already in use, without checking any limit.
    pub fn force_take(&self, party: ShareHolder) -> Share {
        lock(&self.0).force_take(party);
        Share { shares: self.clone(), party }
    }

    /// Takes a unit within the party's share, even if the whole capacity is in use.
    ///
    /// # Errors
    /// When the party already uses its share.
    pub fn take_within_share(&self, party: ShareHolder) -> Result<Share, ShareError> {
        let mut ledger = lock(&self.0);
        if !party.unlimited {
            ledger.check_share(party)?;
        }
        ledger.force_take(party);
        drop(ledger);
        Ok(Share { shares: self.clone(), party })
    }

    /// Returns the number of units in use.
    pub fn used(&self) -> usize {
        lock(&self.0).used()
    }
}

/// One unit of a [`Shares`] ledger; dropping it returns the unit.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    party: ShareHolder,
}

impl Drop for Share {
    fn drop(&mut self) {
        lock(&self.shares.0).give_back(self.party);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(token: &str, workspace: u128) -> ShareHolder {
        ShareHolder::new(token, Some(Uuid::from_u128(workspace)), false)
    }

    #[test]
    fn token_and_workspace_get_half_each_and_owners_a_reserve() {
        let mut ledger = Ledger::new(8);
        for _ in 0..4 {
            ledger.take(party("a", 1)).unwrap();
        }
        assert_eq!(ledger.take(party("a", 2)), Err(ShareError::Token));
        assert_eq!(ledger.take(party("b", 1)), Err(ShareError::Workspace));
        for token in ["b", "b", "b", "c"] {
            ledger.take(party(token, 2)).unwrap();
        }
        assert_eq!(ledger.take(party("c", 3)), Err(ShareError::Full));
        ledger.take(ShareHolder::OWNER).unwrap();
        assert_eq!(ledger.take(ShareHolder::OWNER), Err(ShareError::Full));
        ledger.give_back(party("a", 1));
        // The owner's unit is in addition to the capacity.
        assert_eq!(ledger.take(party("d", 3)), Err(ShareError::Full));
        ledger.give_back(ShareHolder::OWNER);
        ledger.take(party("d", 3)).unwrap();
    }

    #[test]
    fn capacity_of_one_serves_one_user() {
        let mut ledger = Ledger::new(1);
        ledger.take(party("a", 1)).unwrap();
        assert_eq!(ledger.take(party("a", 1)), Err(ShareError::Full));
        ledger.take(ShareHolder::OWNER).unwrap();
        assert_eq!(ledger.take(ShareHolder::OWNER), Err(ShareError::Full));
    }

    #[test]
    fn owners_alone_are_limited_to_the_capacity() {
        let mut ledger = Ledger::new(3);
        for _ in 0..3 {
            ledger.take(ShareHolder::OWNER).unwrap();
        }
        assert_eq!(ledger.take(ShareHolder::OWNER), Err(ShareError::Full));
    }

    #[test]
    fn unit_is_assigned_once_its_party_is_known() {
        let mut ledger = Ledger::new(2);
        ledger.take(ShareHolder::ANONYMOUS).unwrap();
        ledger.assign(ShareHolder::ANONYMOUS, party("a", 1)).unwrap();
        ledger.take(ShareHolder::ANONYMOUS).unwrap();
        assert_eq!(ledger.assign(ShareHolder::ANONYMOUS, party("a", 1)), Err(ShareError::Token));
        ledger.give_back(ShareHolder::ANONYMOUS);
        ledger.give_back(party("a", 1));
        assert_eq!((ledger.used(), ledger.tokens.len(), ledger.workspaces.len()), (0, 0, 0));
    }
}
