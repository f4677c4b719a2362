//! The manifest of the files that berth has written into a workspace, stored outside the workspace. **Invariant:**
//! berth changes or removes only listed files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest in hex.
pub(super) type HexDigest = String;

/// The files that berth has written, by path below the workspace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "StoredManifest")]
pub struct SyncManifest {
    /// The files that only berth writes, with the digest of their content.
    pub(super) files: BTreeMap<String, HexDigest>,
    /// The files that berth shares with the users of the workspace.
    pub(super) shared: BTreeMap<String, SharedFile>,
}

/// berth's part of a file that it shares with users.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SharedFile {
    /// Whether berth created the file.
    pub(super) made: bool,
    /// The digest of the value of each of berth's parts, by the part's name.
    pub(super) parts: BTreeMap<String, HexDigest>,
}

/// The formats of a stored manifest. The first version listed only the files that berth alone writes.
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
    /// Merges two manifests. The merged manifest is stored while files change: after a crash it may list files that do
    /// not exist, but every file that berth wrote is listed.
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
    fn the_first_format_is_still_read() {
        let first: SyncManifest = serde_json::from_str(r#"{"a/b": "00"}"#).unwrap();
        assert_eq!(first.files["a/b"], "00");
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<SyncManifest>(&text).unwrap(), first);
        assert_eq!(serde_json::from_str::<SyncManifest>("{}").unwrap(), SyncManifest::default());
    }
}
