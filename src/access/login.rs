//! Password login as in sandboxed.sh: the server exchanges a password for a JSON Web Token (RFC 7519), signed with
//! HMAC-SHA256, which names its user and expires. The holder of the token is an owner. The secret and the users do
//! not change while the server runs.
//!
//! **Invariant:** no field of a token is used before its signature has been verified, except the algorithm, which
//! must be HS256 (RFC 8725, 3.1).

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::base::{Code, Error, Result};

/// Maximum length of a token that is verified.
const TOKEN_BYTES: usize = 4 << 10;
/// Maximum length of a password or user name.
const PASSWORD_BYTES: usize = 1 << 10;
/// How far the clock of another server with the same secret may be ahead of this server's clock.
const CLOCK_SKEW_SECS: u64 = 60;
/// The subject and user name in tokens if there is one shared password.
const SINGLE_USER: &str = "default";

/// A login account.
#[derive(Clone)]
pub struct LoginUser {
    /// The claim `sub` in the tokens of the user.
    pub id: String,
    pub username: String,
    /// The SHA-256 of the password, for a constant-time comparison with an input of any length.
    password: [u8; 32],
}

impl LoginUser {
    pub fn new(id: String, username: String, password: &str) -> LoginUser {
        LoginUser { id, username, password: Sha256::digest(password).into() }
    }
}

/// The configuration of the password login.
#[derive(Clone)]
pub struct Login {
    secret: Vec<u8>,
    lifetime: Duration,
    /// Whether there is one shared password, without user names.
    single: bool,
    users: Vec<LoginUser>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({}, {} users)", self.mode(), self.users.len())
    }
}

/// A newly issued token.
#[derive(Debug, Serialize)]
pub struct IssuedToken {
    token: String,
    /// The expiry, in Unix seconds.
    exp: u64,
}

#[derive(Serialize, Deserialize)]
struct JwtHeader {
    #[serde(skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
    alg: String,
    /// Extensions that a recipient must understand (RFC 7515, 4.1.11). This server supports none.
    #[serde(default, skip_serializing)]
    crit: Option<serde::de::IgnoredAny>,
}

/// The claims of a token. Times are Unix seconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct JwtClaims {
    sub: String,
    usr: String,
    iat: u64,
    exp: u64,
}

impl JwtClaims {
    /// Returns the expiry, in Unix milliseconds.
    pub fn expires_at_ms(&self) -> u64 {
        self.exp.saturating_mul(1000)
    }

    pub fn user(&self) -> &str {
        &self.usr
    }
}

impl Login {
    /// Creates a login with one shared password.
    pub fn single(password: &str, secret: &str, lifetime: Duration) -> Login {
        let user = LoginUser::new(SINGLE_USER.to_owned(), SINGLE_USER.to_owned(), password);
        Login { secret: secret.into(), lifetime, single: true, users: vec![user] }
    }

    /// Creates a login with one password per user.
    pub fn multi(users: Vec<LoginUser>, secret: &str, lifetime: Duration) -> Login {
        Login { secret: secret.into(), lifetime, single: false, users }
    }

    /// Returns the value for `GET /api/health`.
    pub fn mode(&self) -> &'static str {
        if self.single { "single_tenant" } else { "multi_user" }
    }

    /// Issues a token if the password is correct. `now` is the time in Unix seconds.
    ///
    /// # Errors
    /// `Unauthorized`, with the message of sandboxed.sh.
    pub fn log_in(&self, username: Option<&str>, password: &str, now: u64) -> Result<IssuedToken> {
        let refuse = |message: &str| Err(Error::new(Code::Unauthorized, message));
        let typed = <[u8; 32]>::from(Sha256::digest(password));
        let too_long = password.len() > PASSWORD_BYTES;
        let user = if self.single {
            let user = self.users.first().filter(|user| bool::from(user.password.ct_eq(&typed)) && !too_long);
            match user {
                Some(user) => user,
                None => return refuse("Invalid password"),
            }
        } else {
            let Some(username) = username.map(str::trim).filter(|name| !name.is_empty()) else {
                return refuse("Username required");
            };
            // The password is compared with those of all users, so that the time does not reveal whether a user name
            // exists.
            let mut found = None;
            for user in &self.users {
                let right = bool::from(user.password.ct_eq(&typed));
                if right & (user.username == username) & !too_long {
                    found = Some(user);
                }
            }
            match found {
                Some(user) => user,
                None => return refuse("Invalid username or password"),
            }
        };
        let exp = now.saturating_add(self.lifetime.as_secs());
        let claims = JwtClaims { sub: user.id.clone(), usr: user.username.clone(), iat: now, exp };
        let header = JwtHeader { typ: Some("JWT".to_owned()), alg: "HS256".to_owned(), crit: None };
        let part = |json: serde_json::Result<Vec<u8>>| {
            json.map(|json| BASE64.encode(json))
                .map_err(|error| Error::internal("Cannot encode a token").with_source(error))
        };
        let text = format!("{}.{}", part(serde_json::to_vec(&header))?, part(serde_json::to_vec(&claims))?);
        let signature = BASE64.encode(self.mac(&text)?.finalize().into_bytes());
        Ok(IssuedToken { token: format!("{text}.{signature}"), exp })
    }

    /// Returns the claims of a token that this server issued and that has not expired. `now` is the time in Unix
    /// seconds.
    pub fn verify(&self, token: &str, now: u64) -> Option<JwtClaims> {
        if token.len() > TOKEN_BYTES {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.').filter(|(_, claims)| !claims.contains('.'))?;
        let header: JwtHeader = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
        let typ = header.typ.as_deref().is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"));
        if header.alg != "HS256" || !typ || header.crit.is_some() {
            return None;
        }
        // The comparison takes constant time, and accepts only a signature of all 32 bytes.
        self.mac(signed).ok()?.verify_slice(&BASE64.decode(signature).ok()?).ok()?;
        let claims: JwtClaims = serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()?;
        let known = self.users.iter().any(|user| user.id == claims.sub);
        let begun = claims.iat <= now.saturating_add(CLOCK_SKEW_SECS) && claims.iat <= claims.exp;
        (known && begun && now < claims.exp).then_some(claims)
    }

    fn mac(&self, text: &str) -> Result<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret)
            .map_err(|error| Error::internal("Invalid HMAC key").with_source(error))?;
        mac.update(text.as_bytes());
        Ok(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn login() -> Login {
        Login::single("open sesame", "a secret of some length", DAY)
    }

    /// Signs any header and claims with the correct key.
    fn signed(login: &Login, header: &str, claims: &str) -> String {
        let text = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let mac = login.mac(&text).unwrap().finalize().into_bytes();
        format!("{text}.{}", BASE64.encode(mac))
    }

    const HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;

    #[test]
    fn a_password_yields_the_token_of_sandboxed_sh() {
        let issued = login().log_in(None, "open sesame", NOW).unwrap();
        assert_eq!(issued.exp, NOW + DAY.as_secs());
        let parts: Vec<&str> = issued.token.split('.').collect();
        assert_eq!(BASE64.decode(parts[0]).unwrap(), HEADER.as_bytes());
        let claims = format!(r#"{{"sub":"default","usr":"default","iat":{NOW},"exp":{}}}"#, NOW + 86_400);
        assert_eq!(BASE64.decode(parts[1]).unwrap(), claims.as_bytes());
        assert_eq!(issued.token, signed(&login(), HEADER, &claims));
        assert_eq!(login().verify(&issued.token, NOW).unwrap().user(), "default");
        assert!(login().verify(&issued.token, issued.exp - 1).is_some());
        assert!(login().verify(&issued.token, issued.exp).is_none());
        for wrong in ["", "open sesam", "open sesame ", "OPEN SESAME", &"x".repeat(2000)] {
            let error = login().log_in(Some("default"), wrong, NOW).unwrap_err();
            assert_eq!((error.code(), error.message()), (Code::Unauthorized, "Invalid password"));
        }
    }

    #[test]
    fn signatures_match_rfc_7515() {
        // The example is that of RFC 7515, appendix A.1, with its key of 64 bytes.
        let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        let login = Login { secret: BASE64.decode(key).unwrap(), ..login() };
        let text = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
                    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let mac = login.mac(text).unwrap().finalize().into_bytes();
        assert_eq!(BASE64.encode(mac), "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
    }

    #[test]
    fn users_have_their_own_passwords() {
        let user = |id: &str, name: &str, password: &str| LoginUser::new(id.into(), name.into(), password);
        let users = vec![user("u1", "ann", "a"), user("u2", "bob", "b")];
        let login = Login::multi(users, "a secret of some length", DAY);
        let token = login.log_in(Some("bob"), "b", NOW).unwrap().token;
        let claims = login.verify(&token, NOW).unwrap();
        assert_eq!((claims.sub.as_str(), claims.usr.as_str(), login.mode()), ("u2", "bob", "multi_user"));
        let message = |name: Option<&str>, password: &str| {
            login.log_in(name, password, NOW).unwrap_err().message().to_owned()
        };
        assert_eq!(message(None, "b"), "Username required");
        assert_eq!(message(Some(" "), "b"), "Username required");
        for (name, password) in [("ann", "b"), ("bob", "a"), ("eve", "a"), ("u2", "b"), ("bob", "")] {
            assert_eq!(message(Some(name), password), "Invalid username or password");
        }
        // A token ends when its user is removed or the secret changes.
        let fewer = Login::multi(vec![user("u1", "ann", "a")], "a secret of some length", DAY);
        assert!(fewer.verify(&token, NOW).is_none());
        let other = Login { secret: b"another".to_vec(), ..login.clone() };
        assert!(other.verify(&token, NOW).is_none() && super::tests::login().verify(&token, NOW).is_none());
    }

    #[test]
    fn only_exact_tokens_are_valid() {
        let login = login();
        let claims = |sub: &str, iat: &str, exp: &str| {
            format!(r#"{{"sub":"{sub}","usr":"default","iat":{iat},"exp":{exp}}}"#)
        };
        let (now, later) = (NOW.to_string(), (NOW + 10).to_string());
        let fine = claims("default", &now, &later);
        let good = signed(&login, HEADER, &fine);
        assert!(login.verify(&good, NOW).is_some());
        assert!(login.verify(&signed(&login, r#"{"alg":"HS256"}"#, &fine), NOW).is_some());
        for header in [
            r#"{"typ":"JWT","alg":"none"}"#,
            r#"{"typ":"JWT","alg":"None"}"#,
            r#"{"typ":"JWT","alg":"hs256"}"#,
            r#"{"typ":"JWT","alg":"HS512"}"#,
            r#"{"typ":"JWT","alg":"RS256"}"#,
            r#"{"typ":"JWT","alg":["HS256"]}"#,
            r#"{"typ":"JOSE","alg":"HS256"}"#,
            r#"{"typ":"JWT"}"#,
            r#"{"typ":"JWT","alg":"HS256","crit":["exp"]}"#,
            r#"["JWT","HS256"]x"#,
            "",
        ] {
            assert!(login.verify(&signed(&login, header, &fine), NOW).is_none(), "{header}");
        }
        let max = u64::MAX.to_string();
        assert!(login.verify(&signed(&login, HEADER, &claims("default", &now, &max)), NOW).is_some());
        assert_eq!(
            login
                .verify(&signed(&login, HEADER, &claims("default", &now, &max)), NOW)
                .unwrap()
                .expires_at_ms(),
            u64::MAX
        );
        for claims in [
            claims("default", &now, &now),
            claims("default", &later, &now),
            claims("default", &max, &max),
            claims("default", &(NOW + 3600).to_string(), &(NOW + 7200).to_string()),
            claims("someone", &now, &later),
            claims("", &now, &later),
            claims("default", &now, "-1"),
            claims("default", &now, "1e300"),
            claims("default", &now, "18446744073709551616"),
            claims("default", &now, "null"),
            claims("default", &now, &format!("\"{later}\"")),
            claims("default", &now, &format!("{later}.5")),
            claims("default", "-1", &later),
            r#"{"sub":"default","usr":"default","iat":1}"#.to_owned(),
            r#"{"sub":"default","usr":"default","exp":99999999999}"#.to_owned(),
            "[]".to_owned(),
            "{}".to_owned(),
        ] {
            assert!(login.verify(&signed(&login, HEADER, &claims), NOW).is_none(), "{claims}");
        }
        let (text, signature) = good.rsplit_once('.').unwrap();
        let short = BASE64.encode(&BASE64.decode(signature).unwrap()[..16]);
        for token in [
            text.to_owned(),
            format!("{text}."),
            format!("{text}.{short}"),
            format!("{good}="),
            format!("{good}.x"),
            format!(".{good}"),
            format!("{text}.{}", &signature[1..]),
            format!("{good}{}", "A".repeat(TOKEN_BYTES)),
            good.replace('.', ".."),
            String::new(),
            "..".into(),
            "a.b.c".into(),
        ] {
            assert!(login.verify(&token, NOW).is_none(), "{token}");
        }
        // A change of any byte makes the token invalid.
        for at in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1;
            let token = String::from_utf8(bytes).unwrap();
            assert!(login.verify(&token, NOW).is_none(), "byte {at}");
        }
    }
}
