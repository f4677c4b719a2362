//! Authenticates requests. Holds the two server tokens (client and host): their source, their storage if the server
//! generated them, and their comparison with presented tokens. Also owns the store of scoped tokens.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::leases::TokenLeases;
use super::login::JwtClaims;
use super::secret::{Digest32, digest, generate_token, keyed_hash};
use super::tokens::{NewToken, Token, Tokens};
use super::{Actor, Login, Scope};
use crate::base::{At, Error, Result, clock, hex};
use crate::store::file;

/// The source of a server token, as `GET /status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// The token is the value of a flag.
    Cli,
    /// The token is the value of an environment variable.
    Env,
    /// The token is set in `server.json`.
    File,
    /// The server generated the token.
    Generated,
}

impl TokenSource {
    /// Returns the value for `GET /status`.
    pub fn as_str(self) -> &'static str {
        match self {
            TokenSource::Cli => "cli",
            TokenSource::Env => "env",
            TokenSource::File => "file",
            TokenSource::Generated => "generated",
        }
    }
}

/// The configuration of one server token.
#[derive(Clone)]
pub struct TokenSetting {
    /// The configured token, never empty; `None` to use the stored token or generate one.
    pub secret: Option<String>,
    /// Where the token is configured; `Generated` if it is not configured.
    pub source: TokenSource,
}

impl std::fmt::Debug for TokenSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenSetting({})", self.source.as_str())
    }
}

/// The generated tokens as stored on disk: `<data>/credentials.json`, mode 0600.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StoredCredentials {
    client_token: Option<String>,
    host_token: Option<String>,
    created_at: Option<String>,
}

/// The name of the file with generated tokens, in the data folder.
pub const FILE: &str = "credentials.json";

/// The credentials that the server accepts.
pub struct Credentials {
    client: String,
    host: String,
    // The digests are compared instead of the tokens: they have equal length for any token, and are computed once.
    client_digest: Digest32,
    host_digest: Digest32,
    /// The ids of the two tokens in actors. They are keyed hashes, because viewers can read them in the audit log,
    /// and a plain hash of a token that a person chose could be guessed. Scoped tokens have at least 128 random
    /// bits; their ids are their SHA-256, as in the OpenWork server.
    client_actor: String,
    host_actor: String,
    pub client_source: TokenSource,
    pub host_source: TokenSource,
    /// Whether this start generated a token, so that the tokens must be printed once.
    pub fresh: bool,
    tokens: Arc<Tokens>,
    /// The password login, if it is configured.
    pub login: Option<Login>,
    /// The leases of streams and sockets that were opened with scoped tokens.
    pub leases: TokenLeases,
}

/// The credentials that a request presents.
#[derive(Clone, Copy, Debug, Default)]
pub struct Presented<'a> {
    /// The token of `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
    /// The value of `X-OpenWork-Host-Token`.
    pub host: Option<&'a str>,
    /// The value of `X-OpenWork-Client-Id`.
    pub client_id: Option<&'a str>,
}

/// A description of an invalid or missing credential, for the sender of the request.
#[derive(Debug)]
pub struct InvalidCredential(String);

impl std::fmt::Display for InvalidCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Credentials {
    /// Loads the server tokens and opens the store of scoped tokens. A token that is not configured is read from the
    /// data folder, or generated if it is not stored there either.
    ///
    /// # Errors
    /// Fails if a file cannot be read or written, or has unexpected content.
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
            client_actor: hex::encode(&keyed_hash(&key, made.client.as_bytes())),
            host_actor: hex::encode(&keyed_hash(&key, made.host.as_bytes())),
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

    /// Returns the scoped tokens, newest first.
    pub fn scoped(&self) -> Vec<Token> {
        self.tokens.list()
    }

    /// Creates a scoped token. Returns the token and its secret.
    ///
    /// # Errors
    /// See [`Tokens::create`].
    pub fn create(&self, wanted: NewToken) -> Result<(Token, String)> {
        self.tokens.create(wanted)
    }

    /// Revokes a scoped token, and ends the streams and sockets that were opened with it.
    ///
    /// # Errors
    /// See [`Tokens::revoke`].
    pub fn revoke(&self, id: &str) -> Result<Token> {
        let token = self.tokens.revoke(id)?;
        self.leases.sweep(&token.hash);
        Ok(token)
    }

    /// Returns the client token, to be printed on the terminal only.
    pub fn client_token(&self) -> &str {
        &self.client
    }

    /// Returns the host token, to be printed on the terminal only.
    pub fn host_token(&self) -> &str {
        &self.host
    }

    /// Authenticates a request. The host token makes its holder an owner in either header. Comparisons take constant
    /// time. A scoped token is looked up by its hash, so the time of the lookup reveals nothing about the token.
    ///
    /// # Errors
    /// Returns a description of the invalid or missing credential.
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
        let found = self.tokens.find(&hex::encode(&token));
        if let (None, Some(claims)) = (&found, self.logged_in(bearer)) {
            return Ok(Actor::logged_in(hex::encode(&token), &claims, client_id()));
        }
        match found {
            Some(found) if !found.is_expired() => Ok(Actor::scoped(&found, client_id())),
            Some(found) => {
                let end = found.expires_at.map(clock::rfc3339_from_ms).unwrap_or_default();
                Err(InvalidCredential(format!("{}, which expired at {end}", describe_token(&found))))
            }
            None => {
                let bearer = "an unknown or revoked bearer token";
                Err(InvalidCredential(
                    wrong_host.map_or(bearer.to_owned(), |host| format!("{host}, and {bearer}")),
                ))
            }
        }
    }

    /// Returns the scoped token of an actor, if the actor has one.
    pub fn find_token(&self, actor: &Actor) -> Option<Token> {
        if actor.is_scoped { self.tokens.find(&actor.token_hash) } else { None }
    }

    /// Returns the SHA-256 of an actor's token. Only the holder of the token sees it; others see `client_actor` and
    /// `host_actor`.
    pub fn observed_hash(&self, actor: &Actor) -> String {
        match actor.kind {
            "host" => hex::encode(&self.host_digest),
            _ if actor.is_scoped => actor.token_hash.clone(),
            _ => hex::encode(&self.client_digest),
        }
    }

    fn logged_in(&self, bearer: &str) -> Option<JwtClaims> {
        self.login.as_ref()?.verify(bearer, clock::now_unix_ms() / 1000)
    }

    /// Describes the credential of an actor, for messages to its holder.
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

/// Describes a scoped token, for messages to its holder.
pub fn describe_token(token: &Token) -> String {
    let scope = token.scope.as_str();
    match &token.label {
        Some(label) => format!("the {scope} token '{}'", label.escape_debug()),
        None => format!("the {scope} token {}", token.id.escape_debug()),
    }
}

/// The client token and the host token.
pub struct ServerTokens {
    client: String,
    host: String,
    fresh: bool,
}

/// Returns the server tokens. A token that is not configured is read from the data folder, or generated if it is not
/// stored there either.
///
/// # Errors
/// Fails if the file with stored tokens cannot be read or written, or has unexpected content.
pub fn load_or_generate(data_dir: &Path, client: &TokenSetting, host: &TokenSetting) -> Result<ServerTokens> {
    let path = data_dir.join(FILE);
    let mut kept = read_stored(&path)?;
    let mut fresh = false;
    let mut pick = |setting: &TokenSetting, slot: &mut Option<String>| -> Result<String> {
        if let Some(secret) = &setting.secret {
            return Ok(secret.clone());
        }
        if slot.is_none() {
            *slot = Some(generate_token::<32>()?);
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

/// Returns the stored client and host tokens for `berth token show`, without generating any.
///
/// # Errors
/// Fails if the file cannot be read or has unexpected content.
pub fn stored_tokens(data_dir: &Path) -> Result<(Option<String>, Option<String>)> {
    let kept = read_stored(&data_dir.join(FILE))?;
    Ok((kept.client_token, kept.host_token))
}

fn read_stored(path: &Path) -> Result<StoredCredentials> {
    let Some(text) = file::read_optional(path, 64 << 10)? else { return Ok(StoredCredentials::default()) };
    serde_json::from_slice(&text).map_err(|error| {
        Error::config(
            path.display(),
            format!("not a token file ({error}); restore it, or move it away to generate new tokens"),
        )
    })
}

/// The name of the file with the key for token ids. The key keeps the ids the same across restarts.
const NAMING_KEY: &str = "naming_key";

fn naming_key(data_dir: &Path) -> Result<Digest32> {
    let path = data_dir.join(NAMING_KEY);
    let kept = file::read_optional(&path, 32)?;
    match kept.map(Digest32::try_from) {
        Some(Ok(key)) => {
            // A data folder that was copied may have lost its file modes.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).at("make private", &path)?;
            Ok(key)
        }
        Some(Err(_)) => Err(Error::config(
            path.display(),
            "not a key of 32 bytes; remove it to generate a new one, which changes the token ids in the audit log",
        )),
        None => {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(std::io::Error::other).at("read", "/dev/urandom")?;
            file::write_atomic(&path, &key, 0o600)?;
            Ok(key)
        }
    }
}
