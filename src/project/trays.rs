//! The inbox and outbox of a workspace, through which users and agents exchange files: uploads are stored in the
//! inbox, downloads are taken from the outbox. Threads: any. No locks. **Invariant:** a file appears complete or not
//! at all.

use std::fs::File;
use std::io::{Read as _, Write as _};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use serde_json::{Map, json};

use crate::access::approval_request::FileContent;
use crate::base::{At, Code, Error, Result};
use crate::store::beneath::Root;
use crate::store::file::is_temp_name;
use crate::store::tray::{self, Tray, TrayListing, TrayWriter};

/// The maximum number of components in an upload's path.
const TRAY_DEPTH: usize = 32;

/// One of the two folders for exchanging files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrayKind {
    /// For files from users to agents.
    Inbox,
    /// For files from agents to users.
    Outbox,
}

impl TrayKind {
    /// Returns the folder's path in the workspace.
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

    /// Lists the files in the folder.
    ///
    /// # Errors
    /// Fails with `InvalidPath` if the folder is a symbolic link.
    pub fn list(self, root: &Root) -> Result<TrayListing> {
        root.tray(self.folder())?.map_or_else(|| Ok(TrayListing::default()), |tray| tray.list())
    }

    /// Opens a regular file in the folder by its id. Also returns the file's path.
    ///
    /// # Errors
    /// Fails with `InvalidInboxItem` or `InvalidArtifact` for an invalid id, and with `InboxItemNotFound` or
    /// `ArtifactNotFound` if there is no such file.
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

/// Returns the id of a file in the inbox or outbox: its path, encoded because it may not be UTF-8.
pub fn id_of(path: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(path)
}

/// The relative path of a file below an inbox or outbox, without `.` and `..`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrayPath {
    text: String,
    /// The exact bytes of the path, which may not be UTF-8.
    bytes: Vec<u8>,
}

impl TrayPath {
    /// Parses a client's path, as the OpenWork server does: surrounding white space and leading slashes are ignored,
    /// and a backslash is a slash.
    ///
    /// # Errors
    /// Fails with `InvalidPath`.
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
            return refuse("contains control or invalid characters; set another path with ?path=");
        }
        if slashes.ends_with('/') {
            return refuse("ends with a slash: it names a folder");
        }
        if parts.iter().any(|part| is_temp_name(part)) {
            return refuse("contains a name that is reserved for incomplete uploads");
        }
        if parts.iter().any(|part| part.len() > NAME_BYTES) || parts.len() > TRAY_DEPTH {
            return refuse("is too long: a name has at most 255 bytes, a path at most 32 parts");
        }
        let text = parts.join("/");
        Ok(TrayPath { bytes: text.clone().into_bytes(), text })
    }

    /// Returns a path without normalising it, because agents may choose any file names; `None` if a component is
    /// invalid.
    fn exact(bytes: Vec<u8>) -> Option<TrayPath> {
        let mut parts = bytes.split(|byte| *byte == b'/');
        let fits = parts.all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0));
        fits.then(|| TrayPath { text: String::from_utf8_lossy(&bytes).into_owned(), bytes })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the last component of the path.
    pub fn name(&self) -> &str {
        self.text.rsplit('/').next().unwrap_or_default()
    }
}

/// The maximum length of a file name in Linux file systems.
const NAME_BYTES: usize = 255;

/// Removes incomplete uploads that a killed server left behind. Uploads of a running server are kept.
pub fn sweep(root: &Root) {
    // An inbox that does not exist or is a symbolic link contains no uploads.
    if let Ok(Some(tray)) = root.tray(TrayKind::Inbox.folder()) {
        tray.sweep();
    }
}

/// An open inbox.
pub struct Inbox {
    tray: Tray,
    max_bytes: u64,
}

/// A file that is being uploaded.
pub struct IncomingFile<'a> {
    deposit: TrayWriter<'a>,
    max_bytes: u64,
    bytes: u64,
}

impl Inbox {
    /// Opens the workspace's inbox for files of up to `max_bytes`. Creates it if it does not exist.
    ///
    /// # Errors
    /// Fails with `InvalidPath` if another kind of entry, for example a link, has the inbox's path, and with
    /// `DiskFull`.
    pub fn open(root: &Root, max_bytes: u64) -> Result<Inbox> {
        Ok(Inbox { tray: root.make_tray(TrayKind::Inbox.folder())?, max_bytes })
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// Fails with `DiskFull`.
    pub fn begin(&self) -> Result<IncomingFile<'_>> {
        Ok(IncomingFile { deposit: self.tray.create()?, max_bytes: self.max_bytes, bytes: 0 })
    }
}

/// Returns the file at a path in the inbox, and the file's tag. The content is included only if it has at most `most`
/// bytes.
///
/// # Errors
/// Fails with `InvalidPath` if an entry at the path is not a regular file.
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

/// Checks that a file could be created at this path. Creates nothing.
///
/// # Errors
/// Fails with `InvalidPath` if the path is that of a folder, or if a parent in the path is not a folder.
pub fn check_free(root: &Root, path: &TrayPath) -> Result<()> {
    match root.tray(TrayKind::Inbox.folder())? {
        Some(tray) => tray.check_free(path.as_str()),
        None => Ok(()),
    }
}

impl IncomingFile<'_> {
    /// Appends bytes. Returns `false` once the file is too large; further bytes are counted but not stored.
    ///
    /// # Errors
    /// Fails with `DiskFull`.
    pub fn append(&mut self, bytes: &[u8]) -> Result<bool> {
        self.bytes += bytes.len() as u64;
        if self.bytes > self.max_bytes {
            return Ok(false);
        }
        self.deposit.write_all(bytes).at("write", "the upload")?;
        Ok(true)
    }

    /// Returns the number of bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Completes the upload: the file appears at `path` in the inbox.
    ///
    /// # Errors
    /// Fails with `InvalidPath`; the uploaded file is then removed.
    pub fn commit(self, path: &TrayPath) -> Result<()> {
        self.deposit.commit(path.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_parsed_as_openwork_does() {
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
    fn ids_cannot_leave_the_folder() {
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
