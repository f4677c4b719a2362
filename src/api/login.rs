//! `POST /api/auth/login`: exchanges a password for a token, for clients of sandboxed.sh. The gate delays the
//! answers to failed logins, like every 401.

use serde::Deserialize;

use super::{Ctx, audit};
use crate::base::{Code, Error, Result, clock};
use crate::http::{Answer, Request, Response};

#[derive(Deserialize)]
struct LoginBody {
    username: Option<String>,
    password: String,
}

/// Maximum size of the request body: a user name and a password, with room for JSON escapes.
const BODY_BYTES: usize = 16 << 10;

/// `POST /api/auth/login`
pub fn log_in(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let Some(login) = &ctx.credentials.login else {
        let message = "Password login is disabled; set DASHBOARD_PASSWORD and JWT_SECRET, or use a token of this server";
        return Err(Error::new(Code::LoginDisabled, message));
    };
    let body: LoginBody = request.json(BODY_BYTES)?;
    match login.log_in(body.username.as_deref(), &body.password, clock::now_unix_ms() / 1000) {
        Ok(issued) => Ok(Answer::Now(Response::ok(&issued).with("Cache-Control", "no-store"))),
        Err(error) => {
            audit::login_failed(ctx, request, None, "a wrong password");
            Err(error)
        }
    }
}
