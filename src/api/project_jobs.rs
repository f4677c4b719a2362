//! `/workspace/:id/scheduler/jobs`

use serde_json::json;

use super::{Ctx, project};
use crate::base::{Code, Error, Result};
use crate::http::{Answer, Request, Response};

/// `GET /workspace/:id/scheduler/jobs`
pub fn list(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (site, base) = ctx.project.home_of_jobs(project::site(ctx, request)?)?;
    Ok(Answer::Now(Response::ok(&ctx.project.jobs(&site, &base)?)))
}

/// `DELETE /workspace/:id/scheduler/jobs/:name`
pub fn delete(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = project::workspace(ctx, request)?;
    let name = request.param("name").to_owned();
    if name.trim().is_empty() {
        return Err(Error::new(Code::InvalidName, "name is required"));
    }
    let (site, base) = ctx.project.home_of_jobs(project::open(&ctx.lifecycle, &workspace)?)?;
    let job = ctx.project.job(&site, &base, &name)?;
    let paths = job.files().into_iter().map(|file| site.path(file)).collect();
    let (lifecycle, service) = (ctx.lifecycle.clone(), ctx.project.clone());
    let open = || Ok(ctx.project.home_of_jobs(project::open(&ctx.lifecycle, &workspace)?)?.0);
    let project::Preview { changes, plan } =
        project::preview_on(ctx, open, |site| ctx.project.delete_job(site, &job))?;
    let answer = Answer::prepared(format!("Delete scheduled job {}", job.name()), paths, move |_| {
        let (site, _) = service.home_of_jobs(project::open_for(&lifecycle, &workspace, plan)?)?;
        if site.host_folder.is_some() && site.root.exists(job.files().last().unwrap_or(&""))? {
            job.timer().into_iter().for_each(|timer| lifecycle.stop_timer(timer));
        }
        service.delete_job(&site, &job)?;
        Ok(Response::ok(&json!({ "job": job.fields })))
    });
    Ok(answer.changing(changes))
}
