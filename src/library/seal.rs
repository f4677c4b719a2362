//! Encryption of secrets in templates: AES-256-GCM with a random nonce, in the format of sandboxed.sh, so that berth
//! can use a library of sandboxed.sh with its key.
//!
//! Lock: the mutex of the key, held while the key is read or created.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use aes_gcm::aead::{Aead, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::base::thread::lock;
use crate::base::{At, Error, Result, hex};
use crate::store::file;

const OPEN: &str = "<encrypted v=\"1\">";
const CLOSE: &str = "</encrypted>";
const NONCE_BYTES: usize = 12;

/// The encryption key. The server gets it at its start, or stores it in a file that is created with the first secret.
pub struct LibraryKey {
    file: PathBuf,
    bytes: Mutex<Option<[u8; 32]>>,
}

impl fmt::Debug for LibraryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.file.display())
    }
}

impl LibraryKey {
    /// Uses the key in `given`, or if that is `None`, the key in `file`.
    ///
    /// # Errors
    /// Fails with `Config` if `given` is not a valid key.
    pub fn new(given: Option<&str>, file: &Path) -> Result<LibraryKey> {
        let bytes = given
            .map(|text| {
                parse(text).ok_or_else(|| {
                    Error::config("PRIVATE_KEY", "a key is 32 bytes, as 64 hex digits or in base64")
                })
            })
            .transpose()?;
        Ok(LibraryKey { file: file.to_owned(), bytes: Mutex::new(bytes) })
    }

    /// Reads the key. If there is none and `make` is true, creates a key.
    fn bytes(&self, make: bool) -> Result<Option<[u8; 32]>> {
        let mut cell = lock(&self.bytes);
        if cell.is_none() {
            *cell = match file::read_optional(&self.file, 4 << 10)? {
                Some(text) => {
                    Some(String::from_utf8(text).ok().as_deref().and_then(parse).ok_or_else(|| {
                        Error::config(
                            self.file.display(),
                            "not a key: 32 bytes as 64 hex digits or in base64",
                        )
                    })?)
                }
                None if make => {
                    let mut bytes = [0; 32];
                    getrandom::fill(&mut bytes).map_err(std::io::Error::other).at("read", "/dev/urandom")?;
                    let hex = hex::encode(&bytes);
                    file::write_atomic(&self.file, format!("{hex}\n").as_bytes(), 0o600)?;
                    Some(bytes)
                }
                None => None,
            };
        }
        Ok(*cell)
    }

    /// Encrypts a text. Returns a text that is already encrypted unchanged.
    ///
    /// # Errors
    /// Fails if the key cannot be read or stored.
    pub(super) fn seal(&self, text: &str) -> Result<String> {
        if is_sealed(text) {
            return Ok(text.to_owned());
        }
        let failed = || Error::internal("A secret could not be encrypted");
        let key = self.bytes(true)?.ok_or_else(failed)?;
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(std::io::Error::other).at("read", "/dev/urandom")?;
        let cipher = Aes256Gcm::new_from_slice(&key).map_err(|_| failed())?;
        let sealed = cipher.encrypt(Nonce::from_slice(&nonce), text.as_bytes()).map_err(|_| failed())?;
        let mut bytes = nonce.to_vec();
        bytes.extend(sealed);
        Ok(format!("{OPEN}{}{CLOSE}", BASE64_STANDARD.encode(bytes)))
    }

    /// Decrypts a text. Returns `None` if it was encrypted with another key or was modified.
    pub(super) fn open(&self, text: &str) -> Option<String> {
        let inner = text.strip_prefix(OPEN)?.strip_suffix(CLOSE)?;
        let bytes = BASE64_STANDARD.decode(inner.trim()).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_BYTES)?;
        let key = self.bytes(false).ok()??;
        let cipher = Aes256Gcm::new_from_slice(&key).ok()?;
        String::from_utf8(cipher.decrypt(Nonce::from_slice(nonce), sealed).ok()?).ok()
    }
}

/// Returns whether a text has the format of an encrypted text.
pub(super) fn is_sealed(text: &str) -> bool {
    text.starts_with(OPEN) && text.ends_with(CLOSE)
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let text = text.trim();
    let bytes = if text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        (0..32).map(|n| byte(2 * n)).collect::<Option<Vec<u8>>>()?
    } else {
        BASE64_STANDARD.decode(text).ok()?
    };
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::scratch::TestFolder;

    #[test]
    fn secrets_decrypt_only_with_their_key() {
        let folder = TestFolder::new();
        let key = LibraryKey::new(None, &folder.join("key")).unwrap();
        let sealed = key.seal("s3cret é").unwrap();
        assert!(is_sealed(&sealed) && !sealed.contains("s3cret"));
        assert_ne!(sealed, key.seal("s3cret é").unwrap(), "the nonce is new each time");
        assert_eq!(key.seal(&sealed).unwrap(), sealed);
        assert_eq!(key.open(&sealed).as_deref(), Some("s3cret é"));
        let again = LibraryKey::new(None, &folder.join("key")).unwrap();
        assert_eq!(again.open(&sealed).as_deref(), Some("s3cret é"));
        let other = LibraryKey::new(Some(&"ab".repeat(32)), &folder.join("none")).unwrap();
        assert_eq!(other.open(&sealed), None);
        let mut broken = sealed.into_bytes();
        broken[30] ^= 1;
        assert_eq!(key.open(&String::from_utf8(broken).unwrap()), None);
        assert!(LibraryKey::new(Some("short"), Path::new("/")).is_err());
    }
}
