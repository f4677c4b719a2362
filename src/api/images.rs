//! `/api/images`: lists, builds, imports and deletes base images.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Ctx, topic};
use crate::base::ids::Distro;
use crate::base::{Code, Error, Result, limits};
use crate::http::{Answer, Request, Response};
use crate::images::{ImageName, ImportSpec, Pull};
use crate::proc::Cancel;

/// `GET /api/images`
pub fn list(ctx: &Ctx, _request: &mut Request) -> Result<Answer> {
    Ok(Answer::Now(Response::ok(&ctx.lifecycle.images().list()?)))
}

/// `GET /api/images/events`
pub fn events(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    match ctx.lifecycle.images().events() {
        Some(events) => topic::stream(ctx, request, events, None),
        None => Err(Error::internal("The feed of images does not exist")),
    }
}

/// `GET /api/images/:id`, where `:id` is an id, a prefix of an id, or a name.
pub fn get(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let images = ctx.lifecycle.images();
    let image = images.find(request.param("id"))?;
    Ok(Answer::Now(Response::ok(&images.show(&image.id)?)))
}

/// `DELETE /api/images/:id`. A worker deletes the image, because that takes time.
pub fn delete(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let (images, wanted) = (ctx.lifecycle.images().clone(), request.param("id").to_owned());
    let work = move || {
        let id = images.find(&wanted)?.id;
        images.remove(&id)?;
        Ok(Response::empty(204))
    };
    Ok(Answer::later(work, None))
}

#[derive(Deserialize)]
struct CreateImageBody {
    /// The distribution to build.
    build: Option<String>,
    /// `missing`, `always` or `never`.
    pull: Option<Pull>,
    /// The path of a file or directory on the server.
    path: Option<PathBuf>,
    name: Option<String>,
    reference: Option<String>,
}

/// `POST /api/images`: a JSON body names a distribution to build, or a file or directory on the server to import.
/// Any other body is an archive to import under the name in `?name=`.
pub fn create(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let json =
        request.header("Content-Type").is_some_and(|kind| kind.trim_start().starts_with("application/json"));
    if !json {
        return upload(ctx, request);
    }
    let make: CreateImageBody = request.json(limits::JSON_BODY_BYTES)?;
    let images = ctx.lifecycle.images().clone();
    let cancel = Cancel::new()?;
    let flag = cancel.clone();
    match (make.build, make.path) {
        (Some(distro), None) => {
            let distro = Distro::parse(&distro)?;
            let pull = make.pull.unwrap_or(Pull::Missing);
            let work = move || Ok(Response::json(201, &images.build_now(distro, pull, &flag)?));
            Ok(Answer::later(work, Some(cancel)))
        }
        (None, Some(path)) => {
            let name = named(make.name)?;
            if !path.is_absolute() {
                return Err(Error::new(Code::InvalidPath, "path must be an absolute path on the server"));
            }
            let work = move || {
                let origin = path.display().to_string();
                let wanted = ImportSpec { name: &name, origin, reference: make.reference.as_deref() };
                Ok(Response::json(201, &images.import_path(&path, &wanted, &mut |_| {}, &flag)?))
            };
            Ok(Answer::later(work, Some(cancel)))
        }
        _ => Err(Error::new(
            Code::InvalidPayload,
            "Give either `build` with a distribution, or `name` and `path` of an image to import, or send an archive as the body",
        )),
    }
}

fn named(name: Option<String>) -> Result<ImageName> {
    let missing = || Error::new(Code::InvalidName, "name is required: the name of the new image");
    ImageName::parse(&name.ok_or_else(missing)?)
}

fn upload(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let name = named(request.query("name"))?;
    let reference = request.query("reference");
    let images = ctx.lifecycle.images();
    let length = request.announced_length();
    let wanted = ImportSpec { name: &name, origin: "an upload".into(), reference: reference.as_deref() };
    // A small body has been buffered already. If the body is larger, this handler runs on a worker.
    let imported = images.import_upload(request.reader(), length, &wanted, &Cancel::new()?)?;
    Ok(Answer::Now(Response::json(201, &imported)))
}
