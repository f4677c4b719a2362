//! The store of scoped tokens: creates, lists and revokes tokens, and finds them by hash. The store is one file in
//! the format of the OpenWork server, so users can keep and edit an existing file: every lookup checks whether the
//! file has changed. Unknown fields are preserved. An invalid entry is ignored but kept. A file that is not a token
//! store is moved aside, never overwritten. Independent of HTTP and of token leases.
//!
//! Threads: any. Locks: `writer` (level 3, one file) during a change, with the folder locked against other
//! processes; `loaded`, held only to copy or replace an `Arc`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Scope, secret};
use crate::base::thread::lock;
use crate::base::{At, Code, Error, Result, clock, limits};
use crate::store::file;
use crate::store::lock::FolderLock;

/// Maximum number of scoped tokens. If there are more, a script probably does not revoke its tokens.
const TOKENS: usize = 1000;
/// Maximum size of the token store. The maximum number of tokens, with long labels and lists, takes half of it.
const TOKEN_STORE_BYTES: u64 = 4 << 20;
/// How long an expired token stays in the list, so that its user can see why requests fail.
const EXPIRED_TOKEN_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Two changes of a file within this time may have the same timestamp (a kernel tick is at most 10 ms).
const CLOCK_TICK: Duration = Duration::from_millis(20);

/// The default name of the token store.
pub const FILE: &str = "tokens.json";

/// A scoped token without its secret, as stored. Clients see all fields except the hash.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    pub id: String,
    /// The SHA-256 of the secret, in hex.
    #[serde(skip_serializing)]
    pub hash: String,
    pub scope: Scope,
    /// The time of creation, in Unix milliseconds.
    #[serde(default)]
    pub created_at: u64,
    /// The name that the creator gave to the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The expiry, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// The workspaces that the token may access; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_ids: Option<Vec<String>>,
}

impl Token {
    pub fn is_expired(&self) -> bool {
        self.expires_at.is_some_and(|end| end <= clock::now_unix_ms())
    }
}

/// The properties of a new token.
#[derive(Debug)]
pub struct NewToken {
    pub scope: Scope,
    pub label: Option<String>,
    pub lifetime: Option<Duration>,
    /// The workspaces that the token may access; `None` for all.
    pub workspace_ids: Option<Vec<String>>,
}

/// The store of scoped tokens, with the last content of its file.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    writer: Mutex<()>,
    loaded: RwLock<Arc<TokenFile>>,
}

/// The content of the file.
#[derive(Debug, Default)]
struct TokenFile {
    /// The version that was read; `None` to read the file again at the next lookup.
    version: Option<TokenFileVersion>,
    /// The whole JSON document, including unknown fields.
    document: Map<String, Value>,
    /// The valid tokens, newest first, in the order of the file.
    tokens: Vec<Token>,
    by_hash: HashMap<String, usize>,
    /// Whether the file is not a token store at the moment. The tokens are then those of the last valid version.
    damaged: bool,
}

/// A version of the file, as its metadata identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenFileVersion {
    Absent,
    Present { device: u64, inode: u64, size: u64, modified: (i64, i64), changed: (i64, i64) },
}

impl Tokens {
    /// Opens the store. If the file is not a token store, it is moved aside, and the store starts empty.
    ///
    /// # Errors
    /// `Config` if the file cannot be read, for example because it is a directory.
    pub fn open(path: &Path) -> Result<Tokens> {
        // A symbolic link is resolved once, so that changes replace its target and not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let tokens = Tokens { path, writer: Mutex::default(), loaded: RwLock::default() };
        let read = tokens.read()?;
        if read.damaged {
            tokens.move_aside()?;
        }
        make_private(&tokens.path);
        tokens.replace(read);
        Ok(tokens)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the token with this hash, even if it has expired.
    pub fn find(&self, hash: &str) -> Option<Token> {
        let loaded = self.current();
        loaded.by_hash.get(hash).map(|at| loaded.tokens[*at].clone())
    }

    /// Returns all tokens, newest first.
    pub fn list(&self) -> Vec<Token> {
        self.current().tokens.clone()
    }

    /// Creates a token. Returns the token and its secret, which cannot be shown again.
    ///
    /// # Errors
    /// `Conflict` if there are too many tokens; errors of the disk.
    pub fn create(&self, wanted: NewToken) -> Result<(Token, String)> {
        let secret = secret::generate_token::<16>()?;
        let now = clock::now_unix_ms();
        let lifetime = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let token = Token {
            id: Uuid::new_v4().to_string(),
            hash: secret::sha256_hex(&secret),
            scope: wanted.scope,
            created_at: now,
            label: wanted.label,
            expires_at: wanted.lifetime.map(|time| now.saturating_add(lifetime(time))),
            workspace_ids: wanted.workspace_ids,
        };
        let mut entry = serde_json::to_value(&token)
            .map_err(|error| Error::internal("Cannot encode a token").with_source(error))?;
        entry["hash"] = json!(token.hash);
        self.change(|entries| {
            let kept = u64::try_from(EXPIRED_TOKEN_KEPT.as_millis()).unwrap_or(u64::MAX);
            entries.retain(|entry| {
                let end = entry.get("expiresAt").and_then(Value::as_u64);
                end.is_none_or(|end| end.saturating_add(kept) > now)
            });
            if entries.len() >= TOKENS {
                let message = format!("The limit of {} tokens is reached; revoke some first", TOKENS);
                return Err(Error::new(Code::Conflict, message));
            }
            entries.insert(0, entry);
            Ok(())
        })?;
        Ok((token, secret))
    }

    /// Revokes a token and returns it.
    ///
    /// # Errors
    /// `TokenNotFound`; errors of the disk, after which the token is still valid.
    pub fn revoke(&self, id: &str) -> Result<Token> {
        self.change(|entries| {
            let found = entries.iter().position(|entry| entry.get("id").and_then(Value::as_str) == Some(id));
            let found = found.ok_or_else(|| Error::new(Code::TokenNotFound, "Token not found"))?;
            serde_json::from_value(entries.remove(found))
                .map_err(|error| Error::internal("Invalid entry in the token store").with_source(error))
        })
    }

    /// Returns the current content of the file.
    fn current(&self) -> Arc<TokenFile> {
        let loaded = Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner));
        if loaded.version.is_some() && loaded.version == TokenFileVersion::of(&self.path) {
            return loaded;
        }
        let _turn = lock(&self.writer); // LOCK: 3
        self.refresh()
    }

    /// Reads the file again if it has changed. If it cannot be read, or is not a valid store (an editor may be
    /// writing it), the tokens of the last valid version stay valid.
    fn refresh(&self) -> Arc<TokenFile> {
        let before = Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner));
        let state = TokenFileVersion::of(&self.path);
        if before.version.is_some() && before.version == state {
            return before;
        }
        let (document, tokens) = (before.document.clone(), before.tokens.clone());
        let next = match self.read() {
            Ok(read) if !read.damaged => read,
            Ok(_) => {
                log::error!(
                    "{} is no longer a valid token store; its previous tokens stay valid until the file is repaired",
                    self.path.display()
                );
                TokenFile { damaged: true, ..TokenFile::new(state, document, tokens) }
            }
            Err(error) => {
                log::error!("{error}; the tokens of the previous version stay valid");
                TokenFile::new(state, document, tokens)
            }
        };
        make_private(&self.path);
        self.replace(next)
    }

    fn replace(&self, next: TokenFile) -> Arc<TokenFile> {
        let next = Arc::new(next);
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        next
    }

    fn read(&self) -> Result<TokenFile> {
        // The version is taken before the file is read, so that the next lookup notices a write in between.
        let state = TokenFileVersion::of(&self.path);
        let bytes = file::read_optional(&self.path, TOKEN_STORE_BYTES)
            .map_err(|error| Error::config("token store", error))?;
        let Some(bytes) = bytes.filter(|bytes| !bytes.iter().all(u8::is_ascii_whitespace)) else {
            return Ok(TokenFile::new(state, Map::new(), Vec::new()));
        };
        let document = match serde_json::from_slice::<Value>(&bytes) {
            Ok(Value::Object(document))
                if document.get("tokens").is_none_or(|tokens| tokens.is_array() || tokens.is_null()) =>
            {
                document
            }
            _ => {
                return Ok(TokenFile { damaged: true, ..TokenFile::new(state, Map::new(), Vec::new()) });
            }
        };
        let entries = document.get("tokens").and_then(Value::as_array).map(Vec::as_slice);
        let mut tokens = Vec::new();
        for (at, entry) in entries.unwrap_or_default().iter().enumerate() {
            match serde_json::from_value::<Token>(entry.clone()) {
                Ok(mut token) if is_hash(&token.hash) && !token.id.is_empty() => {
                    token.hash.make_ascii_lowercase();
                    tokens.push(token);
                }
                Ok(_) => log::error!("{}: token {at} has no id or no hash", self.path.display()),
                Err(error) => log::error!("{}: token {at} is invalid: {error}", self.path.display()),
            }
        }
        Ok(TokenFile::new(state, document, tokens))
    }

    /// Changes the entries of the current file with `change`, and writes the file.
    fn change<R>(&self, change: impl FnOnce(&mut Vec<Value>) -> Result<R>) -> Result<R> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        file::create_dir_private(folder)?;
        let _turn = lock(&self.writer); // LOCK: 3
        let _folder = FolderLock::take(folder, limits::LOCK_PASSES)?;
        // The file is read even if its version is unchanged, so that no write by another process is lost.
        let mut now = self.read()?;
        if now.damaged {
            self.move_aside()?;
            let before = Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner));
            now = TokenFile::new(None, before.document.clone(), before.tokens.clone());
        }
        let mut document = now.document;
        let mut entries = match document.remove("tokens") {
            Some(Value::Array(entries)) => entries,
            _ => Vec::new(),
        };
        let result = change(&mut entries)?;
        document.insert("schemaVersion".into(), json!(1));
        document.insert("updatedAt".into(), json!(clock::now_unix_ms()));
        document.insert("tokens".into(), Value::Array(entries));
        let mut text = serde_json::to_vec_pretty(&document)
            .map_err(|error| Error::internal("Cannot encode the token store").with_source(error))?;
        text.push(b'\n');
        file::write_atomic(&self.path, &text, 0o600)?;
        self.replace(self.read()?);
        Ok(result)
    }

    fn move_aside(&self) -> Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".damaged-{}", clock::now_unix_ms()));
        let aside = self.path.with_file_name(name);
        fs::rename(&self.path, &aside).at("move aside", &self.path)?;
        log::error!(
            "{} was not a valid token store; moved it to {}, so its tokens are no longer accepted",
            self.path.display(),
            aside.display()
        );
        Ok(())
    }
}

impl TokenFile {
    fn new(state: Option<TokenFileVersion>, document: Map<String, Value>, tokens: Vec<Token>) -> TokenFile {
        let by_hash = tokens.iter().enumerate().rev().map(|(at, token)| (token.hash.clone(), at)).collect();
        TokenFile { version: state, document, tokens, by_hash, damaged: false }
    }
}

impl TokenFileVersion {
    /// Returns the version of the file. Returns `None` if the file was changed so recently that another change may
    /// have the same timestamps.
    fn of(path: &Path) -> Option<TokenFileVersion> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(TokenFileVersion::Absent),
            Err(_) => return None,
        };
        let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_none_or(|age| age < CLOCK_TICK) {
            return None;
        }
        Some(TokenFileVersion::Present {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Removes the permissions of other users from the file, because the OpenWork server creates it readable for all
/// users.
fn make_private(path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return };
    if metadata.permissions().mode() & 0o077 == 0 {
        return;
    }
    match fs::set_permissions(path, fs::Permissions::from_mode(0o600)) {
        Ok(()) => log::warn!("{} was readable by other users; made it private", path.display()),
        Err(error) => {
            log::error!("{} is readable by other users and cannot be made private: {error}", path.display())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::store::scratch::TestFolder;

    fn any(label: &str) -> NewToken {
        NewToken { scope: Scope::Viewer, label: Some(label.to_owned()), lifetime: None, workspace_ids: None }
    }

    /// Writes the file in place, as an editor does.
    fn by_hand(path: &Path, text: &str) {
        use std::io::Write as _;
        fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn text(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn no_concurrently_created_token_is_lost() {
        let dir = TestFolder::new();
        let path = dir.join("tokens.json");
        // Two stores on one file behave like two processes.
        let stores = [Tokens::open(&path).unwrap(), Tokens::open(&path).unwrap()];
        thread::scope(|scope| {
            for n in 0..40 {
                let store = &stores[n % 2];
                scope.spawn(move || store.create(any(&n.to_string())).unwrap());
            }
        });
        assert_eq!(stores[0].list().len(), 40);
        assert_eq!(stores[1].list().len(), 40);
        assert_eq!(text(&path)["tokens"].as_array().unwrap().len(), 40);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_existing_store_keeps_its_unknown_fields() {
        let dir = TestFolder::new();
        let path = dir.join("tokens.json");
        let hash = secret::sha256_hex("owt_old");
        let old = json!({"schemaVersion": 1, "updatedAt": 5, "note": "mine", "tokens": [
            {"id": "a", "hash": hash, "scope": "viewer", "createdAt": 3, "label": "old", "extra": [1]},
            {"id": "b", "hash": "short", "scope": "viewer", "createdAt": 3},
            {"id": "c", "hash": secret::sha256_hex("x"), "scope": "emperor", "createdAt": 3},
        ]});
        by_hand(&path, &old.to_string());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let store = Tokens::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(store.find(&hash).unwrap().label.as_deref(), Some("old"));
        assert_eq!(store.list().len(), 1);
        let (made, secret) = store.create(any("new")).unwrap();
        assert!(secret.starts_with("owt_") && secret.len() == 36);
        let now = text(&path);
        assert_eq!(now["note"], "mine");
        assert_eq!(now["tokens"][0]["id"], made.id);
        assert_eq!(now["tokens"][1], old["tokens"][0]);
        assert_eq!(now["tokens"].as_array().unwrap().len(), 4);
        store.revoke("a").unwrap();
        assert!(store.find(&hash).is_none());
        assert_eq!(store.revoke("a").unwrap_err().code(), Code::TokenNotFound);
    }

    #[test]
    fn edits_are_noticed_and_a_broken_edit_revokes_no_token() {
        let dir = TestFolder::new();
        let path = dir.join("tokens.json");
        let store = Tokens::open(&path).unwrap();
        let (kept, _) = store.create(any("kept")).unwrap();
        let (gone, _) = store.create(any("gone")).unwrap();
        let mut document = text(&path);
        document["tokens"].as_array_mut().unwrap().remove(0);
        by_hand(&path, &document.to_string());
        assert!(store.find(&gone.hash).is_none() && store.find(&kept.hash).is_some());
        by_hand(&path, "{ half");
        assert!(store.find(&kept.hash).is_some());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{ half");
        let (next, _) = store.create(any("next")).unwrap();
        assert!(store.find(&kept.hash).is_some() && store.find(&next.hash).is_some());
        let aside: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().flatten().collect();
        let aside = aside.iter().find(|entry| entry.file_name().to_string_lossy().contains(".damaged-"));
        assert_eq!(fs::read_to_string(aside.unwrap().path()).unwrap(), "{ half");
    }

    #[test]
    fn expired_tokens_are_recognized_and_later_removed() {
        let dir = TestFolder::new();
        let store = Tokens::open(&dir.join("tokens.json")).unwrap();
        let (short, _) =
            store.create(NewToken { lifetime: Some(Duration::from_millis(1)), ..any("short") }).unwrap();
        thread::sleep(Duration::from_millis(5));
        assert!(store.find(&short.hash).unwrap().is_expired());
    }
}
