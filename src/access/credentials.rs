//! Who is asking. The two configured tokens: where they came from, how generated ones are kept, how a presented one is
//! compared; and the scoped ones of the store beside them.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::leases::Leases;
use super::tokens::{NewToken, Token, Tokens};
use super::{Actor, Scope};
use crate::base::{At, Error, Result, clock};
use crate::store::file;

/// Where a token came from; the words of `GET /status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Cli,
    /// The environment.
    Env,
    /// `server.json`.
    File,
    /// We made it.
    Generated,
}

impl Source {
    /// The word of `GET /status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Cli => "cli",
            Source::Env => "env",
            Source::File => "file",
            Source::Generated => "generated",
        }
    }
}

/// What the configuration says about one token; `None`: keep or make one.
#[derive(Clone)]
pub struct TokenSetting {
    /// The token, never empty.
    pub secret: Option<String>,
    /// Where it was given; `Generated` when it was not.
    pub source: Source,
}

impl std::fmt::Debug for TokenSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenSetting({})", self.source.as_str())
    }
}

/// The generated tokens on disk: `<data>/credentials.json`, mode 0600.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
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
    /// Where the client token came from.
    pub client_source: Source,
    /// Where the host token came from.
    pub host_source: Source,
    /// A token was made by this start, so it must be printed once.
    pub fresh: bool,
    tokens: Arc<Tokens>,
    /// What scoped tokens have opened.
    pub leases: Leases,
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
pub struct Worthless(String);

impl std::fmt::Display for Worthless {
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
    ) -> Result<Credentials> {
        let made = make(data_dir, client, host)?;
        let tokens = Arc::new(Tokens::open(token_store)?);
        Ok(Credentials {
            client_digest: digest(&made.client),
            host_digest: digest(&made.host),
            client: made.client,
            host: made.host,
            client_source: client.source,
            host_source: host.source,
            fresh: made.fresh,
            leases: Leases::new(tokens.clone())?,
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
    pub fn actor(&self, presented: Presented<'_>) -> Result<Actor, Worthless> {
        let client_id = || presented.client_id.map(str::to_owned);
        let is = |digest: &Digest32, wanted: &Digest32| bool::from(digest.ct_eq(wanted));
        if let Some(token) = presented.host.map(digest).filter(|token| is(token, &self.host_digest)) {
            return Ok(Actor::host(hex(&token), client_id()));
        }
        let wrong_host =
            presented.host.is_some().then_some("an X-OpenWork-Host-Token that is not the host token");
        let Some(bearer) = presented.bearer else {
            return Err(Worthless(wrong_host.unwrap_or("no credential").to_owned()));
        };
        let token = digest(bearer);
        if is(&token, &self.host_digest) {
            return Ok(Actor::host(hex(&token), client_id()));
        }
        if is(&token, &self.client_digest) {
            return Ok(Actor::remote(Scope::Collaborator, hex(&token), client_id()));
        }
        match self.tokens.find(&hex(&token)) {
            Some(found) if !found.is_expired() => Ok(Actor::scoped(&found, client_id())),
            Some(found) => {
                let end = found.expires_at.map(clock::rfc3339_of_ms).unwrap_or_default();
                Err(Worthless(format!("{}, which expired at {end}", named(&found))))
            }
            None => {
                let bearer = "a bearer token that is unknown here, or was revoked";
                Err(Worthless(wrong_host.map_or(bearer.to_owned(), |host| format!("{host}, and {bearer}"))))
            }
        }
    }

    /// What to call an actor's credential when speaking to its holder.
    pub fn describe(&self, actor: &Actor) -> String {
        if actor.kind == "host" {
            return "the host token".to_owned();
        }
        match self.tokens.find(&actor.token_hash) {
            Some(token) => named(&token),
            None if actor.is_scoped => format!("a {} token that was revoked", actor.scope.as_str()),
            None => "the client token (a collaborator's)".to_owned(),
        }
    }
}

/// A scoped token in words.
pub fn named(token: &Token) -> String {
    let scope = token.scope.as_str();
    match &token.label {
        Some(label) => format!("the {scope} token '{}'", label.escape_debug()),
        None => format!("the {scope} token {}", token.id.escape_debug()),
    }
}

/// The two configured tokens.
pub struct Made {
    client: String,
    host: String,
    fresh: bool,
}

/// Takes the configured tokens, the kept ones for those that are not configured, and makes what is missing.
///
/// # Errors
/// When the kept file cannot be read, is not what we wrote, or cannot be written.
pub fn make(data_dir: &Path, client: &TokenSetting, host: &TokenSetting) -> Result<Made> {
    let path = data_dir.join(FILE);
    let mut kept = read_kept(&path)?;
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
        let mut text = serde_json::to_vec_pretty(&kept).map_err(|e| Error::internal("tokens").because(e))?;
        text.push(b'\n');
        file::write_atomic(&path, &text, 0o600)?;
    }
    Ok(Made { client, host, fresh })
}

/// Prints-only view of the kept tokens for `berth token show`: (client, host).
///
/// # Errors
/// When the file cannot be read or is not what we wrote.
pub fn kept_tokens(data_dir: &Path) -> Result<(Option<String>, Option<String>)> {
    let kept = read_kept(&data_dir.join(FILE))?;
    Ok((kept.client_token, kept.host_token))
}

fn read_kept(path: &Path) -> Result<Kept> {
    let Some(text) = file::read_optional(path, 64 << 10)? else { return Ok(Kept::default()) };
    serde_json::from_slice(&text).map_err(|error| {
        Error::config(
            path.display(),
            format!("not a token file ({error}); move it away to get new tokens, or restore it"),
        )
    })
}

/// Bytes from the kernel, in hex, with the prefix of OpenWork's scoped tokens.
pub(super) fn generate<const BYTES: usize>() -> Result<String> {
    let mut bytes = [0u8; BYTES];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other).at("read", "/dev/urandom")?;
    Ok(format!("owt_{}", hex(&bytes)))
}

/// SHA-256 in hex: how tokens are named in actors and audit lines.
pub fn hash(token: &str) -> String {
    hex(&digest(token))
}

type Digest32 = [u8; 32];

fn digest(token: &str) -> Digest32 {
    Sha256::digest(token.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
