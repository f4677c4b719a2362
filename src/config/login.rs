//! The settings of password login, in sandboxed.sh's own variables. Half of them is a mistake that stops the start: a
//! server that quietly has no login would be found out only by the people who cannot get in.

use std::time::Duration;

use serde::Deserialize;

use super::sources::{Given, Sources};
use super::values;
use crate::access::login::{Login, LoginUser};
use crate::base::{Error, Result};

/// A user in `SANDBOXED_USERS` and in the file.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserJson {
    id: Option<String>,
    username: String,
    password: String,
}

/// RFC 7518, 3.2: a key for HS256 has at least as many bytes as its hash.
const SECRET_BYTES: usize = 32;
const TTL_DAYS: u64 = 30;
const TTL_DAYS_MAX: u64 = 3650;
const USERS_MAX: usize = 1000;

/// How to log in; `None` where nothing was set.
pub(super) fn login(sources: &Sources<'_>) -> Result<Option<Login>> {
    let json = &sources.file.json;
    let secret_of = |variable: &str, field: &str, json: &Option<String>| -> Result<Option<Given>> {
        // "token" checks that a variable that is set to nothing is heard about.
        let (setting, place) = sources.token("", None, variable, field, json)?;
        Ok(setting.secret.zip(place).map(|(text, place)| Given { place, text, source: setting.source }))
    };
    let password = secret_of("DASHBOARD_PASSWORD", "dashboardPassword", &json.dashboard_password)?;
    let secret = secret_of("JWT_SECRET", "jwtSecret", &json.jwt_secret)?;
    let users = users(sources)?;
    let days = sources.pick(
        "",
        None,
        "JWT_TTL_DAYS",
        "jwtTtlDays",
        json.jwt_ttl_days.map(|days| days.to_string()),
    )?;
    let days =
        days.map_or(Ok(TTL_DAYS), |given| values::number(&given.place, &given.text, 1..=TTL_DAYS_MAX))?;
    let lifetime = Duration::from_secs(days * 24 * 60 * 60);
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

/// The users, and the place that names them.
fn users(sources: &Sources<'_>) -> Result<Option<(String, Vec<LoginUser>)>> {
    let variables = ["SANDBOXED_USERS", "SANDBOXED_SH_USERS"];
    let mut given = None;
    for variable in variables {
        if let (None, Some(text)) = (&given, sources.var(variable)?) {
            let users = serde_json::from_str::<Vec<UserJson>>(&text).map_err(|error| {
                // Not the error's own words: they may quote a password.
                let place = format!("line {} column {}", error.line(), error.column());
                Error::config(
                    variable,
                    format!(
                        "is not a JSON array of {{\"username\", \"password\", \"id\"?}} objects ({place})"
                    ),
                )
            })?;
            given = Some((variable.to_owned(), users));
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
