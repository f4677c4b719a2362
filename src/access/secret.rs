//! Random secrets, and the digests that identify and compare secrets. Pure, except that the kernel supplies random
//! bytes.

use sha2::{Digest, Sha256};

use crate::base::{At, Result, hex};

/// A SHA-256 digest.
pub(super) type Digest32 = [u8; 32];

/// Generates a token: random bytes in hex, with the prefix of OpenWork's scoped tokens.
pub(super) fn generate_token<const BYTES: usize>() -> Result<String> {
    Ok(format!("owt_{}", random_hex::<BYTES>()?))
}

/// Returns random bytes from the kernel, in hex.
///
/// # Errors
/// Fails if the kernel returns no random bytes.
pub fn random_hex<const BYTES: usize>() -> Result<String> {
    let mut bytes = [0u8; BYTES];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other).at("read", "/dev/urandom")?;
    Ok(hex::encode(&bytes))
}

/// Returns the SHA-256 of `text` in hex. Scoped tokens are identified by it.
pub fn sha256_hex(text: &str) -> String {
    hex::encode(&digest(text))
}

pub(super) fn digest(text: &str) -> Digest32 {
    Sha256::digest(text.as_bytes()).into()
}

/// Returns the HMAC-SHA-256 (RFC 2104) of `text`. The key is shorter than a block of SHA-256.
pub(super) fn keyed_hash(key: &Digest32, text: &[u8]) -> Digest32 {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(key).for_each(|(block, key)| *block ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses the examples of RFC 4231, 4.2 and 4.3. Their keys are padded with zeros here, which does not change the
    /// HMAC (RFC 2104, 2).
    #[test]
    fn the_keyed_hash_is_hmac_sha_256() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        assert_eq!(
            hex::encode(&keyed_hash(&key, b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        assert_eq!(
            hex::encode(&keyed_hash(&key, b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
    }
}
