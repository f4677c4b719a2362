//! The record of an image, and its form for clients.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::id::{ImageId, ImageName};
use crate::base::{Error, Result};
use crate::store::beneath::Root;
use crate::store::file;

/// The origin of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageSource {
    /// The image was built by the distribution's bootstrap.
    Built,
    /// The image was imported from an archive or a directory.
    Imported,
    /// The image was created from the host's own system; the host's programs are not copied.
    Host,
}

/// The content of `image.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The SHA-256 of the image's listing.
    pub id: ImageId,
    /// The name under which the image was created. The name may now point to another image.
    pub name: ImageName,
    pub source: ImageSource,
    /// A description of the source.
    pub origin: String,
    /// `PRETTY_NAME` of os-release(5).
    pub os: Option<String>,
    /// The time of creation in RFC 3339.
    pub created_at: String,
    /// Number of entries, including the root directory.
    pub entries: u64,
    /// Number of bytes in the image's files; a file with several names counts once.
    pub size_bytes: u64,
}

/// An image as clients see it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageView {
    #[serde(flatten)]
    pub record: ImageRecord,
    /// The names that point to the image.
    pub names: Vec<ImageName>,
    /// The IDs of workspaces and snapshots that need the image.
    pub held_by: Vec<String>,
}

impl ImageRecord {
    /// Reads the record in an image's directory; returns `None` if the directory has no record.
    ///
    /// # Errors
    /// `Internal` when the record cannot be read.
    pub(super) fn read(folder: &Path) -> Result<Option<ImageRecord>> {
        let path = folder.join("image.json");
        let Some(bytes) = file::read_optional(&path, 64 << 10)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::internal(format!("{} is damaged", path.display())).with_source(error))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::internal("An image's record cannot be written").with_source(error))?;
        bytes.push(b'\n');
        file::replace(&folder.join("image.json"), &bytes, 0o600)
    }
}

/// Returns the value of a field of os-release(5) in a tree.
pub(super) fn os_release(root: &Root, field: &str) -> Option<String> {
    let read = |path| root.read(path, 64 << 10).ok().flatten();
    let bytes = read("etc/os-release").or_else(|| read("usr/lib/os-release"))?;
    let text = String::from_utf8_lossy(&bytes);
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix('='))?;
    let value: String =
        value.trim_matches(['"', '\'']).chars().filter(|c| !c.is_control()).take(200).collect();
    (!value.is_empty()).then_some(value)
}
