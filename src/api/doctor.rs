//! `/api/doctor`: the capabilities of the machine.

use super::Ctx;
use crate::base::Result;
use crate::http::{Answer, Request, Response};

/// `GET /api/doctor`. Viewers may use it, because the report contains no secrets and is cached.
pub fn report(ctx: &Ctx, _: &mut Request) -> Result<Answer> {
    let doctor = ctx.doctor.clone();
    Ok(Answer::later(move || Ok(Response::ok(doctor.report().as_ref())), None))
}
