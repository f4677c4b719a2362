//! The two folders of a workspace through which people and agents hand each other files: what was uploaded lies in the
//! inbox, what is to be fetched in the outbox. Any thread; no locks: a file appears whole or not at all.

use std::fs::File;
use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use serde_json::{Map, json};

use crate::access::approval_request::FileContent;
use crate::base::{At, Code, Error, Result, limits};
use crate::store::beneath::Root;
use crate::store::file::is_temp_name;
use crate::store::tray::{self, Tray, TrayListing, TrayWriter};

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrayKind {
    /// From people to agents.
    Inbox,
    /// From agents to people.
    Outbox,
}

impl TrayKind {
    /// Where it lies in the workspace.
    pub fn folder(self) -> &'static str {
        match self {
            TrayKind::Inbox => ".opencode/openwork/inbox",
            TrayKind::Outbox => ".opencode/openwork/outbox",
        }
    }

    fn bad_id(self) -> Error {
        match self {
            TrayKind::Inbox => Error::new(Code::InvalidInboxItem, "Inbox item id is invalid"),
            TrayKind::Outbox => Error::new(Code::InvalidArtifact, "Artifact id is invalid"),
        }
    }

    fn missing(self) -> Error {
        match self {
            TrayKind::Inbox => Error::new(Code::InboxItemNotFound, "Inbox item not found"),
            TrayKind::Outbox => Error::new(Code::ArtifactNotFound, "Artifact not found"),
        }
    }

    /// What lies in it.
    ///
    /// # Errors
    /// `InvalidPath` when it is a link.
    pub fn list(self, root: &Root) -> Result<TrayListing> {
        root.tray(self.folder())?.map_or_else(|| Ok(TrayListing::default()), |tray| tray.list())
    }

    /// A file of it, and its path there. A link, a device, a pipe is none.
    ///
    /// # Errors
    /// `InvalidInboxItem`, `InvalidArtifact` for what is no id; `InboxItemNotFound`, `ArtifactNotFound`.
    pub fn open(self, root: &Root, id: &str) -> Result<(File, TrayPath)> {
        let bytes =
            BASE64_URL_SAFE_NO_PAD.decode(id.trim().trim_end_matches('=')).map_err(|_| self.bad_id())?;
        let path = TrayPath::exact(bytes).ok_or_else(|| self.bad_id())?;
        let missing = |error: Error| if error.code() == Code::InvalidPath { self.missing() } else { error };
        let tray = root.tray(self.folder()).map_err(missing)?.ok_or_else(|| self.missing())?;
        let file = tray.open(&path.bytes).map_err(missing)?.ok_or_else(|| self.missing())?;
        Ok((file, path))
    }
}

/// The id of a file in either folder: its path, which need not be UTF-8.
pub fn id_of(path: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(path)
}

/// The path of a file below an inbox or an outbox: relative, without detours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrayPath {
    text: String,
    /// The same, unless it is not UTF-8.
    bytes: Vec<u8>,
}

impl TrayPath {
    /// Reads what a client says, as the OpenWork server does: white space around it and slashes before it do not count, a
    /// backslash is a slash.
    ///
    /// # Errors
    /// `InvalidPath`.
    pub fn parse(text: &str) -> Result<TrayPath> {
        let refuse = |why: &str| Err(Error::new(Code::InvalidPath, format!("The file's path {why}")));
        let slashes = text.trim().replace('\\', "/");
        let parts: Vec<&str> = slashes.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return refuse("is empty");
        }
        if parts.iter().any(|part| matches!(*part, "." | "..")) {
            return refuse("may not contain '.' or '..' as a part");
        }
        if slashes.contains(|c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
            return refuse("has characters that no file name should have; give another one with ?path=");
        }
        if slashes.ends_with('/') {
            return refuse("ends with a slash: it names a folder");
        }
        if parts.iter().any(|part| is_temp_name(part)) {
            return refuse("has a part that is reserved for files on their way");
        }
        if parts.iter().any(|part| part.len() > NAME_BYTES) || parts.len() > limits::TRAY_DEPTH {
            return refuse("is too long: a name has at most 255 bytes, a path at most 32 parts");
        }
        let text = parts.join("/");
        Ok(TrayPath { bytes: text.clone().into_bytes(), text })
    }

    /// A path that is taken as it is: agents may name their files as they like.
    fn exact(bytes: Vec<u8>) -> Option<TrayPath> {
        let mut parts = bytes.split(|byte| *byte == b'/');
        let fits = parts.all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0));
        fits.then(|| TrayPath { text: String::from_utf8_lossy(&bytes).into_owned(), bytes })
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its last part.
    pub fn name(&self) -> &str {
        self.text.rsplit('/').next().unwrap_or_default()
    }
}

/// The longest file name of Linux file systems.
const NAME_BYTES: usize = 255;

/// Removes what uploads to a workspace have left that a killed server was taking. One that another server takes stays.
pub fn sweep(root: &Root) {
    // A folder that is not there, or a link, has no uploads.
    if let Ok(Some(tray)) = root.tray(TrayKind::Inbox.folder()) {
        tray.sweep();
    }
}

/// An inbox that takes a file.
pub struct Inbox {
    tray: Tray,
    max_bytes: u64,
}

/// A file on its way into it.
pub struct IncomingFile<'a> {
    deposit: TrayWriter<'a>,
    max_bytes: u64,
    bytes: u64,
}

impl Inbox {
    /// The workspace's, made if it has none, for files of up to `max_bytes`.
    ///
    /// # Errors
    /// `InvalidPath` when something else, a link for example, stands in its place; `DiskFull`.
    pub fn open(root: &Root, max_bytes: u64) -> Result<Inbox> {
        Ok(Inbox { tray: root.make_tray(TrayKind::Inbox.folder())?, max_bytes })
    }

    /// Begins to take one.
    ///
    /// # Errors
    /// `DiskFull`.
    pub fn begin(&self) -> Result<IncomingFile<'_>> {
        Ok(IncomingFile { deposit: self.tray.create()?, max_bytes: self.max_bytes, bytes: 0 })
    }
}

/// What is at a file's path in the inbox: its content if that has at most `most` bytes, and what tells it from others.
///
/// # Errors
/// `InvalidPath` when something else has the path.
pub fn inspect(root: &Root, path: &TrayPath, most: u64) -> Result<(FileContent, Option<String>)> {
    let file = match root.tray(TrayKind::Inbox.folder())? {
        Some(tray) => tray.open_if_there(path.as_str())?,
        None => None,
    };
    let Some(mut file) = file else { return Ok((FileContent::Absent, None)) };
    let tag = Some(tray::tag(&file)?.0);
    let meta = file.metadata().at("read", path.as_str())?;
    if meta.len() <= most {
        let mut bytes = Vec::new();
        (&mut file).take(most).read_to_end(&mut bytes).at("read", path.as_str())?;
        return Ok((FileContent::Bytes(bytes), tag));
    }
    Ok((FileContent::Described(Map::from_iter([("bytes".to_owned(), json!(meta.len()))])), tag))
}

/// Whether a file could get this path; nothing is made.
///
/// # Errors
/// `InvalidPath` when a folder has it, or something else stands where a folder should be.
pub fn check_free(root: &Root, path: &TrayPath) -> Result<()> {
    match root.tray(TrayKind::Inbox.folder())? {
        Some(tray) => tray.check_free(path.as_str()),
        None => Ok(()),
    }
}

impl IncomingFile<'_> {
    /// Takes more of it; `false` when that was too much: from there on it is only counted.
    ///
    /// # Errors
    /// `DiskFull`.
    pub fn append(&mut self, bytes: &[u8]) -> Result<bool> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.max_bytes {
            return Ok(false);
        }
        self.deposit.write_all(bytes).at("write", "the upload")?;
        Ok(true)
    }

    /// How much has come.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of it is there: gives it its path.
    ///
    /// # Errors
    /// `InvalidPath`; nothing is left then.
    pub fn commit(self, path: &TrayPath) -> Result<()> {
        self.deposit.commit(path.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_observed() {
        for (text, want) in [
            ("a.txt", "a.txt"),
            (" a b.txt ", "a b.txt"),
            ("/etc/x", "etc/x"),
            ("//a//b", "a/b"),
            ("dir\\file", "dir/file"),
            ("日本/語.txt", "日本/語.txt"),
            ("..x/x..", "..x/x.."),
        ] {
            assert_eq!(TrayPath::parse(text).unwrap().as_str(), want, "{text}");
        }
        let (long, deep) = ("x".repeat(256), "d/".repeat(40) + "x");
        let temp = format!(".tmp-{}", "0".repeat(32));
        for text in [
            "", " ", "/", "\\", ".", "..", "a/../b", "a/./b", "..\\x", "a\0b", "a\nb", "a/", "\u{fffd}",
            &long, &deep, &temp,
        ] {
            assert_eq!(TrayPath::parse(text).unwrap_err().code(), Code::InvalidPath, "{text:?}");
        }
    }

    #[test]
    fn ids_lead_nowhere_else() {
        let dir = crate::store::scratch::TestFolder::new();
        let root = Root::open(&dir).unwrap();
        for id in [
            "*",
            "a",
            "Li4vLi4veA",
            &id_of(b"../x"),
            &id_of(b"/"),
            &id_of(b""),
            &id_of(b"a\0"),
            &id_of(b"\xff/.."),
        ] {
            assert_eq!(TrayKind::Outbox.open(&root, id).unwrap_err().code(), Code::InvalidArtifact, "{id}");
        }
        assert_eq!(TrayKind::Inbox.open(&root, &id_of(b"x")).unwrap_err().code(), Code::InboxItemNotFound);
    }
}
