//! What berth has written into a workspace, kept outside of it. Only that is ever changed or removed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// SHA-256 in hex.
pub(super) type HexDigest = String;

/// What berth has written: by path below the workspace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredManifest")]
pub struct SyncManifest {
    /// Whole files, and the digest of their content.
    pub(super) files: BTreeMap<String, HexDigest>,
    /// Files that berth shares with the people of the workspace.
    pub(super) shared: BTreeMap<String, SharedFile>,
}

/// Berth's part of a shared file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SharedFile {
    /// There was no file before.
    pub(super) made: bool,
    /// By name of the part, the digest of what it says.
    pub(super) parts: BTreeMap<String, HexDigest>,
}

/// The first version knew whole files only, and nothing around them.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredManifest {
    Now {
        files: BTreeMap<String, HexDigest>,
        #[serde(default)]
        shared: BTreeMap<String, SharedFile>,
    },
    First(BTreeMap<String, HexDigest>),
}

impl From<StoredManifest> for SyncManifest {
    fn from(stored: StoredManifest) -> SyncManifest {
        match stored {
            StoredManifest::Now { files, shared } => SyncManifest { files, shared },
            StoredManifest::First(files) => SyncManifest { files, shared: BTreeMap::new() },
        }
    }
}

impl SyncManifest {
    /// Both: with this on disk a crash leaves too many names, never a file that nobody knows.
    pub fn with(&self, next: &SyncManifest) -> SyncManifest {
        let mut all = self.clone();
        all.files.extend(next.files.iter().map(|(path, sum)| (path.clone(), sum.clone())));
        for (path, shared) in &next.shared {
            let known = all.shared.entry(path.clone()).or_insert_with(|| shared.clone());
            known.parts.extend(shared.parts.iter().map(|(name, sum)| (name.clone(), sum.clone())));
        }
        all
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.shared.is_empty()
    }
}

pub(super) fn digest(bytes: &[u8]) -> HexDigest {
    crate::base::hex::encode(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_is_still_read() {
        let first: SyncManifest = serde_json::from_str(r#"{"a/b": "00"}"#).unwrap();
        assert_eq!(first.files["a/b"], "00");
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<SyncManifest>(&text).unwrap(), first);
        assert_eq!(serde_json::from_str::<SyncManifest>("{}").unwrap(), SyncManifest::default());
    }
}
