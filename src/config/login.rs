//! The settings of password login, in the variables of sandboxed.sh. An incomplete set is an error that stops the
//! start: otherwise the server would run without login, and only users who cannot log in would notice.

use serde::Deserialize;

use super::setting::Setting;
use super::sources::{Given, Sources};
use super::table;
use crate::access::login::{Login, LoginUser};
use crate::base::{Error, Result};

/// A user in `SANDBOXED_USERS` or in the file.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserJson {
    id: Option<String>,
    username: String,
    password: String,
}

/// Minimum length of the secret. RFC 7518, 3.2: a key for HS256 has at least as many bytes as the hash.
const SECRET_BYTES: usize = 32;
const USERS_MAX: usize = 1000;

/// Returns the configuration of password login, or `None` if it is not configured.
pub(super) fn login(sources: &Sources<'_>) -> Result<Option<Login>> {
    let secret_of = |setting: &Setting| -> Result<Option<Given>> {
        let (secret, place) = sources.secret(setting)?;
        Ok(secret.secret.zip(place).map(|(text, place)| Given { place, text, source: secret.source }))
    };
    let password = secret_of(&table::DASHBOARD_PASSWORD)?;
    let secret = secret_of(&table::JWT_SECRET)?;
    let users = users(sources)?;
    let lifetime = sources.time(&table::JWT_TTL_DAYS)?;
    let who = users.as_ref().map(|(place, _)| place).or(password.as_ref().map(|given| &given.place));
    match (who, secret) {
        (None, None) => Ok(None),
        (Some(place), None) => Err(Error::config(
            "JWT_SECRET",
            format!(
                "is missing: {place} needs it to sign the tokens of a login; set it to 32 random bytes or more"
            ),
        )),
        (None, Some(secret)) => Err(Error::config(
            secret.place,
            "signs the tokens of a login, but nobody can log in; set DASHBOARD_PASSWORD or SANDBOXED_USERS as well",
        )),
        (Some(_), Some(secret)) => {
            if secret.text.len() < SECRET_BYTES {
                log::warn!(
                    "{} has {} bytes; with fewer than {SECRET_BYTES} the signature of a token can be guessed",
                    secret.place,
                    secret.text.len()
                );
            }
            Ok(Some(match (users, password) {
                (Some((_, users)), _) => Login::multi(users, &secret.text, lifetime),
                (None, password) => Login::single(
                    &password.map(|given| given.text).unwrap_or_default(),
                    &secret.text,
                    lifetime,
                ),
            }))
        }
    }
}

/// Returns the users, and the place of the setting that lists them.
fn users(sources: &Sources<'_>) -> Result<Option<(String, Vec<LoginUser>)>> {
    let mut given = None;
    for variable in table::USERS.vars {
        if let (None, Some(text)) = (&given, sources.var(variable)?) {
            let users = serde_json::from_str::<Vec<UserJson>>(&text).map_err(|error| {
                // The message omits the text of the parse error, which may quote a password.
                let place = format!("line {} column {}", error.line(), error.column());
                Error::config(
                    *variable,
                    format!(
                        "is not a JSON array of {{\"username\", \"password\", \"id\"?}} objects ({place})"
                    ),
                )
            })?;
            given = Some(((*variable).to_owned(), users));
        }
    }
    let given = given.or_else(|| Some((sources.file.place("users"), sources.file.json.users.clone()?)));
    let Some((place, users)) = given else { return Ok(None) };
    let wrong = |problem: String| Err(Error::config(&place, problem));
    if users.is_empty() || users.len() > USERS_MAX {
        return wrong(format!("names {} users; 1 to {USERS_MAX} are possible", users.len()));
    }
    let mut known: Vec<LoginUser> = Vec::new();
    for (at, user) in users.into_iter().enumerate() {
        let name = user.username.trim().to_owned();
        let id = user.id.map_or_else(|| name.clone(), |id| id.trim().to_owned());
        if name.is_empty() || id.is_empty() || user.password.trim().is_empty() {
            return wrong(format!("user {at} has an empty id, username or password"));
        }
        if known.iter().any(|other| other.username == name || other.id == id) {
            return wrong(format!("user '{}' stands there twice", name.escape_debug()));
        }
        known.push(LoginUser::new(id, name, &user.password));
    }
    Ok(Some((place, known)))
}
