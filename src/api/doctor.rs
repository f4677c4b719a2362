//! `/api/doctor`: what this machine can do.

use super::Ctx;
use crate::base::Result;
use crate::http::{Answer, Request, Response};

/// `GET /api/doctor`; for viewers, since it holds no secret and is made anew only once in a while.
pub fn report(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    let doctor = ctx.doctor.clone();
    Ok(Answer::later(move || Ok(Response::ok(doctor.report().as_ref())), None))
}
