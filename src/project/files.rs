//! Reading single files of a workspace, and lists of limited size.

use std::io::Read as _;

use serde::Serialize;

use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;

/// The owner of a plugin or skill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemScope {
    /// The workspace.
    Project,
    /// The user that runs the server.
    Global,
}

/// The error shown for a file behind a symbolic link that leads out of a host workspace.
pub(super) const LINK_LEADS_OUT: &str =
    "berth does not read it, because its link is absolute or leads out of the workspace; OpenCode follows it";

/// The maximum size of the JSON text of a list of skills or commands.
pub(super) const LIST_BYTES: usize = 4 << 20;

/// A list of limited size.
#[derive(Debug, Serialize)]
pub struct BoundedList<T> {
    pub items: Vec<T>,
    /// Whether entries, or parts of entries, were left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// Reads the first `most` bytes of a file as text, as OpenCode does: invalid UTF-8 is replaced. The returned flag is
/// true if the text is the whole file. Returns `None` if the file does not exist.
pub(super) fn read_head(root: &Root, rel: &str, most: u64) -> Result<Option<(String, bool)>> {
    let Some(file) = root.open_file(rel)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = file.take(most.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|error| Error::internal(format!("Could not read {rel}")).with_source(error))?;
    let whole = bytes.len() as u64 <= most;
    bytes.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    let text = String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    Ok(Some((text, whole)))
}

/// Reads a small text file. Returns `None` if it does not exist.
pub(super) fn read_text(root: &Root, rel: &str) -> Result<Option<String>> {
    let Some(bytes) = root.read(rel, limits::PROJECT_FILE_BYTES)? else { return Ok(None) };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| Error::new(Code::InvalidPath, format!("Could not read {rel}: it is not UTF-8 text")))
}

/// Returns the error of an edit that failed because another process kept changing the file.
pub(super) fn concurrent_change(root: &Root, rel: &str) -> Error {
    if root.is_link(rel).unwrap_or(false) {
        let message =
            format!("{rel} is a symbolic link; berth does not write through links. Replace it by a file");
        return Error::new(Code::InvalidPath, message);
    }
    let message =
        format!("{rel} was changed by another process at the same time; nothing was lost, try again");
    Error::new(Code::Conflict, message).detail("path", rel)
}
