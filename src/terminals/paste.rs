//! Large input for programs, called a paste. Permits bound the memory for pastes per workspace and in total. Each
//! permit covers one message or body from its arrival until the program has read it. Small input needs no permit.
//!
//! Lock: that of [`PasteBudget`], a leaf.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use crate::base::thread::lock;
use crate::base::{Code, Error, Result};

/// Maximum size of one large input.
pub const PASTE_BYTES: usize = 8 << 20;
/// Maximum size of the WebSocket message that contains a large input: JSON escapes each line end, which doubles
/// it.
pub const PASTE_MESSAGE_BYTES: usize = 2 * PASTE_BYTES + (64 << 10);
/// Maximum time without progress of a paste; after that, the program is assumed not to read.
pub const PASTE_PATIENCE: Duration = Duration::from_secs(30);
/// Maximum number of concurrent large inputs of one workspace.
const PER_WORKSPACE: usize = 2;
/// Maximum number of concurrent large inputs in total. Each takes up to [`PASTE_MESSAGE_BYTES`], and briefly also
/// the memory of its decoded text.
const IN_TOTAL: usize = 8;

/// The permits in use, each stored as its workspace.
#[derive(Clone, Debug, Default)]
pub struct PasteBudget(Arc<Mutex<Vec<Uuid>>>);

/// Permit for the memory of one large input.
#[derive(Debug)]
pub struct PastePermit {
    pastes: PasteBudget,
    workspace: Uuid,
}

impl PasteBudget {
    /// Takes a permit; returns `None` if none is free.
    pub fn try_take(&self, workspace: Uuid) -> Option<PastePermit> {
        let mut out = lock(&self.0);
        let own = out.iter().filter(|holder| **holder == workspace).count();
        (own < PER_WORKSPACE && out.len() < IN_TOTAL).then(|| {
            out.push(workspace);
            PastePermit { pastes: self.clone(), workspace }
        })
    }

    /// Takes a permit for a large input.
    ///
    /// # Errors
    /// `Busy` when no permit is free.
    pub fn take(&self, workspace: Uuid) -> Result<PastePermit> {
        self.try_take(workspace).ok_or_else(|| {
            let message = format!(
                "Too much input is on its way to terminals: at most {PER_WORKSPACE} large inputs of a workspace and \
                 {IN_TOTAL} in total wait at once; try again when a program has read its input"
            );
            Error::new(Code::Busy, message)
        })
    }
}

impl Drop for PastePermit {
    fn drop(&mut self) {
        let mut out = lock(&self.pastes.0);
        if let Some(at) = out.iter().position(|holder| *holder == self.workspace) {
            out.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_bounded_per_workspace_and_in_total_and_come_back() {
        let pastes = PasteBudget::default();
        let [one, other] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let held: Vec<_> = (0..PER_WORKSPACE).map(|_| pastes.take(one).unwrap()).collect();
        assert_eq!(pastes.take(one).unwrap_err().code(), Code::Busy);
        assert!(pastes.try_take(other).is_some());
        let more: Vec<_> =
            (0..IN_TOTAL as u128).filter_map(|n| pastes.try_take(Uuid::from_u128(9 + n))).collect();
        assert_eq!(held.len() + more.len(), IN_TOTAL);
        assert!(pastes.try_take(other).is_none());
        drop((held, more));
        assert!(lock(&pastes.0).is_empty());
    }
}
