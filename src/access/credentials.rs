//! Who is asking. The two configured tokens: where they came from, how generated ones are kept, how a presented one is
//! compared; and the scoped ones of the store beside them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::leases::TokenLeases;
use super::login::JwtClaims;
use super::tokens::{NewToken, Token, Tokens};
use super::{Actor, Login, Scope};
use crate::base::{At, Error, Result, clock};
use crate::store::file;

/// Where a token came from; the words of `GET /status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// A flag.
    Cli,
    /// The environment.
    Env,
    /// `server.json`.
    File,
    /// We made it.
    Generated,
}

impl TokenSource {
    /// The word of `GET /status`.
    pub fn as_str(self) -> &'static str {
        match self {
            TokenSource::Cli => "cli",
            TokenSource::Env => "env",
            TokenSource::File => "file",
            TokenSource::Generated => "generated",
        }
    }
}

/// What the configuration says about one token; `None`: keep or make one.
#[derive(Clone)]
pub struct TokenSetting {
    /// The token, never empty.
    pub secret: Option<String>,
    /// Where it was given; `Generated` when it was not.
    pub source: TokenSource,
}

impl std::fmt::Debug for TokenSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenSetting({})", self.source.as_str())
    }
}

/// The generated tokens on disk: `<data>/credentials.json`, mode 0600.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StoredCredentials {
    client_token: Option<String>,
    host_token: Option<String>,
    created_at: Option<String>,
}

/// The file's name in the data folder.
pub const FILE: &str = "credentials.json";

/// The tokens in force.
pub struct Credentials {
    client: String,
    host: String,
    // Compared instead of the tokens: of equal size whatever was presented, and made once.
    client_digest: Digest32,
    host_digest: Digest32,
    /// How the two are named in actors: viewers read these in the audit log, and a plain hash of a token that a person chose
    /// could be found by trying. Stored tokens are 128 random bits or more and keep their observed SHA-256.
    client_actor: String,
    host_actor: String,
    /// Where the client token came from.
    pub client_source: TokenSource,
    /// Where the host token came from.
    pub host_source: TokenSource,
    /// A token was made by this start, so it must be printed once.
    pub fresh: bool,
    tokens: Arc<Tokens>,
    /// Password login, if it is set up.
    pub login: Option<Login>,
    /// What scoped tokens have opened.
    pub leases: TokenLeases,
}

/// What a request brought along.
#[derive(Clone, Copy, Debug, Default)]
pub struct Presented<'a> {
    /// The token of `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
    /// The header `X-OpenWork-Host-Token`.
    pub host: Option<&'a str>,
    /// The header `X-OpenWork-Client-Id`.
    pub client_id: Option<&'a str>,
}

/// What was presented and is worth nothing, in words for whoever presented it.
#[derive(Debug)]
pub struct InvalidCredential(String);

impl std::fmt::Display for InvalidCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Credentials {
    /// Takes the configured tokens, the kept ones for those that are not configured, and makes what is missing; and the
    /// store of the scoped ones.
    ///
    /// # Errors
    /// When a file cannot be read, is not what we wrote, or cannot be written.
    pub fn load(
        data_dir: &Path,
        client: &TokenSetting,
        host: &TokenSetting,
        token_store: &Path,
        login: Option<Login>,
    ) -> Result<Credentials> {
        let made = load_or_generate(data_dir, client, host)?;
        let tokens = Arc::new(Tokens::open(token_store)?);
        let key = naming_key(data_dir)?;
        Ok(Credentials {
            client_actor: hex(&keyed_hash(&key, made.client.as_bytes())),
            host_actor: hex(&keyed_hash(&key, made.host.as_bytes())),
            client_digest: digest(&made.client),
            host_digest: digest(&made.host),
            client: made.client,
            host: made.host,
            client_source: client.source,
            host_source: host.source,
            fresh: made.fresh,
            login,
            leases: TokenLeases::new(tokens.clone())?,
            tokens,
        })
    }

    /// The scoped tokens, newest first.
    pub fn scoped(&self) -> Vec<Token> {
        self.tokens.list()
    }

    /// Makes a scoped token; the text is its secret.
    ///
    /// # Errors
    /// See [`Tokens::create`].
    pub fn create(&self, wanted: NewToken) -> Result<(Token, String)> {
        self.tokens.create(wanted)
    }

    /// Revokes a scoped token, and ends what it has opened.
    ///
    /// # Errors
    /// See [`Tokens::revoke`].
    pub fn revoke(&self, id: &str) -> Result<Token> {
        let token = self.tokens.revoke(id)?;
        self.leases.sweep(&token.hash);
        Ok(token)
    }

    /// The client token, for the person at the terminal only.
    pub fn client_token(&self) -> &str {
        &self.client
    }

    /// The host token, for the person at the terminal only.
    pub fn host_token(&self) -> &str {
        &self.host
    }

    /// Who is asking; nobody when nothing valid was presented. The host token is an owner in either header. Every
    /// comparison takes the same time, whatever was presented and however much of it is right; a scoped token is looked
    /// up by its hash, which tells nothing of it.
    ///
    /// # Errors
    /// What was presented instead.
    pub fn actor(&self, presented: Presented<'_>) -> Result<Actor, InvalidCredential> {
        let client_id = || presented.client_id.map(str::to_owned);
        let is = |digest: &Digest32, wanted: &Digest32| bool::from(digest.ct_eq(wanted));
        if presented.host.map(digest).is_some_and(|token| is(&token, &self.host_digest)) {
            return Ok(Actor::host(self.host_actor.clone(), client_id()));
        }
        let wrong_host =
            presented.host.is_some().then_some("an X-OpenWork-Host-Token that is not the host token");
        let Some(bearer) = presented.bearer else {
            return Err(InvalidCredential(wrong_host.unwrap_or("no credential").to_owned()));
        };
        let token = digest(bearer);
        if is(&token, &self.host_digest) {
            return Ok(Actor::host(self.host_actor.clone(), client_id()));
        }
        if is(&token, &self.client_digest) {
            return Ok(Actor::remote(Scope::Collaborator, self.client_actor.clone(), client_id()));
        }
        let found = self.tokens.find(&hex(&token));
        if let (None, Some(claims)) = (&found, self.logged_in(bearer)) {
            return Ok(Actor::logged_in(hex(&token), &claims, client_id()));
        }
        match found {
            Some(found) if !found.is_expired() => Ok(Actor::scoped(&found, client_id())),
            Some(found) => {
                let end = found.expires_at.map(clock::rfc3339_from_ms).unwrap_or_default();
                Err(InvalidCredential(format!("{}, which expired at {end}", describe_token(&found))))
            }
            None => {
                let bearer = "a bearer token that is unknown here, or was revoked";
                Err(InvalidCredential(
                    wrong_host.map_or(bearer.to_owned(), |host| format!("{host}, and {bearer}")),
                ))
            }
        }
    }

    /// The scoped token of an actor, if it has one.
    pub fn find_token(&self, actor: &Actor) -> Option<Token> {
        if actor.is_scoped { self.tokens.find(&actor.token_hash) } else { None }
    }

    /// The SHA-256 of an actor's token, as its holder is shown it. For nobody else: see `client_name`.
    pub fn observed_hash(&self, actor: &Actor) -> String {
        match actor.kind {
            "host" => hex(&self.host_digest),
            _ if actor.is_scoped => actor.token_hash.clone(),
            _ => hex(&self.client_digest),
        }
    }

    fn logged_in(&self, bearer: &str) -> Option<JwtClaims> {
        self.login.as_ref()?.verify(bearer, clock::now_unix_ms() / 1000)
    }

    /// What to call an actor's credential when speaking to its holder.
    pub fn describe(&self, actor: &Actor) -> String {
        if actor.kind == "host" {
            return "the host token".to_owned();
        }
        if let Some(user) = &actor.user {
            return format!("the login of '{}'", user.escape_debug());
        }
        match self.tokens.find(&actor.token_hash) {
            Some(token) => describe_token(&token),
            None if actor.is_scoped => format!("a {} token that was revoked", actor.scope.as_str()),
            None => "the client token (a collaborator's)".to_owned(),
        }
    }
}

/// A scoped token in words.
pub fn describe_token(token: &Token) -> String {
    let scope = token.scope.as_str();
    match &token.label {
        Some(label) => format!("the {scope} token '{}'", label.escape_debug()),
        None => format!("the {scope} token {}", token.id.escape_debug()),
    }
}

/// The two configured tokens.
pub struct ServerTokens {
    client: String,
    host: String,
    fresh: bool,
}

/// Takes the configured tokens, the kept ones for those that are not configured, and makes what is missing.
///
/// # Errors
/// When the kept file cannot be read, is not what we wrote, or cannot be written.
pub fn load_or_generate(data_dir: &Path, client: &TokenSetting, host: &TokenSetting) -> Result<ServerTokens> {
    let path = data_dir.join(FILE);
    let mut kept = read_stored(&path)?;
    let mut fresh = false;
    let mut pick = |setting: &TokenSetting, slot: &mut Option<String>| -> Result<String> {
        if let Some(secret) = &setting.secret {
            return Ok(secret.clone());
        }
        if slot.is_none() {
            *slot = Some(generate::<32>()?);
            fresh = true;
        }
        Ok(slot.clone().unwrap_or_default())
    };
    let client = pick(client, &mut kept.client_token)?;
    let host = pick(host, &mut kept.host_token)?;
    if fresh {
        kept.created_at = Some(clock::now_rfc3339());
        let mut text =
            serde_json::to_vec_pretty(&kept).map_err(|e| Error::internal("tokens").with_source(e))?;
        text.push(b'\n');
        file::write_atomic(&path, &text, 0o600)?;
    }
    Ok(ServerTokens { client, host, fresh })
}

/// Prints-only view of the kept tokens for `berth token show`: (client, host).
///
/// # Errors
/// When the file cannot be read or is not what we wrote.
pub fn stored_tokens(data_dir: &Path) -> Result<(Option<String>, Option<String>)> {
    let kept = read_stored(&data_dir.join(FILE))?;
    Ok((kept.client_token, kept.host_token))
}

fn read_stored(path: &Path) -> Result<StoredCredentials> {
    let Some(text) = file::read_optional(path, 64 << 10)? else { return Ok(StoredCredentials::default()) };
    serde_json::from_slice(&text).map_err(|error| {
        Error::config(
            path.display(),
            format!("not a token file ({error}); move it away to get new tokens, or restore it"),
        )
    })
}

/// Bytes from the kernel, in hex, with the prefix of OpenWork's scoped tokens.
pub(super) fn generate<const BYTES: usize>() -> Result<String> {
    Ok(format!("owt_{}", random::<BYTES>()?))
}

/// Bytes from the kernel, in hex.
///
/// # Errors
/// When it has none.
pub fn random<const BYTES: usize>() -> Result<String> {
    let mut bytes = [0u8; BYTES];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other).at("read", "/dev/urandom")?;
    Ok(hex(&bytes))
}

/// SHA-256 in hex: how stored tokens are found and named.
pub fn hash(token: &str) -> String {
    hex(&digest(token))
}

/// The key's file in the data folder: the same names after each start.
const NAMING_KEY: &str = "naming_key";

fn naming_key(data_dir: &Path) -> Result<Digest32> {
    let path = data_dir.join(NAMING_KEY);
    let kept = file::read_optional(&path, 32)?;
    match kept.map(Digest32::try_from) {
        Some(Ok(key)) => {
            // A copy of the folder may have come without its modes.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).at("make private", &path)?;
            Ok(key)
        }
        Some(Err(_)) => Err(Error::config(
            path.display(),
            "not a key of 32 bytes; remove it to have a new one made, which gives the tokens new names in the audit log",
        )),
        None => {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(std::io::Error::other).at("read", "/dev/urandom")?;
            file::write_atomic(&path, &key, 0o600)?;
            Ok(key)
        }
    }
}

/// HMAC-SHA-256 (RFC 2104) with a key of less than a block.
fn keyed_hash(key: &Digest32, text: &[u8]) -> Digest32 {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(key).for_each(|(block, key)| *block ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

type Digest32 = [u8; 32];

fn digest(token: &str) -> Digest32 {
    Sha256::digest(token.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HMAC_SHA256("key" padded with zeros, …) equals that of the short key (RFC 2104, 2); the values of RFC 4231, 4.2 and 4.3.
    #[test]
    fn the_keyed_hash_is_hmac_sha_256() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        assert_eq!(
            hex(&keyed_hash(&key, b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        assert_eq!(
            hex(&keyed_hash(&key, b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
    }
}
