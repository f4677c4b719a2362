//! The life of a request, in this order: preflight, route, credential, read-only, scope, approval, handler, reply,
//! log line. Nothing about a single endpoint stands here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::Ctx;
use super::routes::TABLE;
use crate::access::credentials::Presented;
use crate::access::{Actor, ApprovalMode, Scope};
use crate::base::pool::Place;
use crate::base::{Code, Error, Result};
use crate::http::route::Match;
use crate::http::{Answer, Auth, Class, Effect, Gate, Method, Reply, Request, Response, Route, Work, cors};
use crate::proc::Cancel;

/// Answers one request, on this thread or on a worker's.
pub fn dispatch(ctx: &Arc<Ctx>, request: Request) {
    if request.is_streamed() {
        return on_worker(ctx, ctx.transfer_place(), request, handle);
    }
    handle(ctx, request);
}

fn handle(ctx: &Arc<Ctx>, mut request: Request) {
    if request.method() == Method::Options {
        return reply(ctx, request, Response::empty(204));
    }
    match guarded(|| prepare(ctx, &mut request)) {
        Ok((_, Answer::Now(response))) => reply(ctx, request, response),
        Ok((class, Answer::Later { work, cancel })) => hand_over(ctx, request, class, work, cancel),
        Err(error) => fail(ctx, request, &error),
    }
}

/// Everything up to the handler's own answer.
fn prepare(ctx: &Arc<Ctx>, request: &mut Request) -> Result<(Class, Answer)> {
    let route = match TABLE.find(request)? {
        Match::Route(route) => route,
        // The OpenWork server says 404 for a wrong method, sandboxed.sh 405.
        Match::OtherMethods(methods) if request.path().starts_with("/api/") => {
            return Err(Error::new(Code::MethodNotAllowed, format!("Only {methods} can be used here"))
                .detail("allow", methods));
        }
        Match::OtherMethods(_) | Match::Nothing => return Err(Error::new(Code::NotFound, "Not found")),
    };
    let actor = authenticate(ctx, route, request)?;
    if ctx.read_only && route.effect == Effect::Write {
        return Err(Error::new(Code::ReadOnly, "Server is read-only"));
    }
    if let (Auth::Scope(required), Some(actor)) = (route.auth, &actor) {
        if actor.scope < required {
            return Err(too_low(required, actor.scope));
        }
    }
    approve(ctx, route, actor.as_ref())?;
    request.set_actor(actor);
    (route.handler)(ctx, request).map(|answer| (route.class, answer))
}

/// The 403 of a credential that does not reach.
pub(super) fn too_low(required: Scope, scope: Scope) -> Error {
    Error::new(Code::Forbidden, "Insufficient token scope")
        .detail("required", required.as_str())
        .detail("scope", scope.as_str())
}

fn authenticate(ctx: &Ctx, route: &Route<Ctx>, request: &Request) -> Result<Option<Actor>> {
    if route.auth == Auth::Public {
        return Ok(None);
    }
    let presented = Presented {
        bearer: request.bearer().or_else(|| request.subprotocol_token()),
        host: request.header("X-OpenWork-Host-Token"),
        client_id: request.header("X-OpenWork-Client-Id"),
    };
    let actor = ctx.credentials.actor(presented);
    match (route.auth, actor) {
        (Auth::Host, Some(actor)) if actor.scope == Scope::Owner => Ok(Some(actor)),
        (Auth::Host, _) => Err(Error::new(Code::Unauthorized, "Invalid host token")),
        (_, Some(actor)) => Ok(Some(actor)),
        (_, None) => Err(Error::new(Code::Unauthorized, "Invalid bearer token")),
    }
}

/// The approval's place in the order. There is nobody to ask yet, so in manual mode a collaborator is refused.
fn approve(ctx: &Ctx, route: &Route<Ctx>, actor: Option<&Actor>) -> Result<()> {
    let Gate::Collaborators(action) = route.gate else { return Ok(()) };
    let owner = actor.is_some_and(|actor| actor.scope == Scope::Owner);
    if owner || ctx.approval.mode == ApprovalMode::Auto {
        return Ok(());
    }
    Err(Error::new(
        Code::WriteDenied,
        "This needs the host's approval, which cannot be asked for yet; use the host token, or start berth with --approval auto",
    )
    .detail("action", action))
}

/// Moves the request to the workers of its class.
fn hand_over(ctx: &Arc<Ctx>, request: Request, class: Class, work: Work, cancel: Option<Cancel>) {
    let place = match class {
        Class::Stream => ctx.stream_place(),
        Class::Short | Class::Run => ctx.run_place(),
    };
    let watch = request.connection().zip(cancel).map(|(client, flag)| ctx.gone.subscribe(client, &flag));
    on_worker(ctx, place, request, move |ctx, request| {
        let ctx = ctx.clone();
        work(Reply::new(request, watch, move |request, result| match result {
            Ok(response) => reply(&ctx, request, response),
            Err(error) => fail(&ctx, request, &error),
        }));
    });
}

/// Has a worker go on with the request; without one, its answer is 503.
fn on_worker(
    ctx: &Arc<Ctx>,
    place: Result<Place>,
    mut request: Request,
    job: impl FnOnce(&Arc<Ctx>, Request) + Send + 'static,
) {
    match place {
        Ok(place) => {
            request.set_on_worker(true);
            let ctx = ctx.clone();
            place.run(move || job(&ctx, request));
        }
        Err(busy) => fail(ctx, request, &busy),
    }
}

/// A panic in a handler is our bug and one 500; the thread lives on.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::internal("Unexpected server error")))
}

fn fail(ctx: &Arc<Ctx>, request: Request, error: &Error) {
    if error.code().status() >= 500 {
        log::error!("{} {} ({}): {error}", request.method().as_str(), request.path(), request.id());
    }
    let response = Response::error(error);
    let response = match error.code() {
        Code::MethodNotAllowed => response.with("Allow", allow(error)),
        _ => response,
    };
    reply(ctx, request, response);
}

fn allow(error: &Error) -> String {
    error.body()["details"]["allow"].as_str().unwrap_or_default().to_owned()
}

fn reply(ctx: &Arc<Ctx>, request: Request, response: Response) {
    if response.is_small() || request.on_worker() {
        return send(ctx, request, response);
    }
    on_worker(ctx, ctx.transfer_place(), request, move |ctx, request| send(ctx, request, response));
}

fn send(ctx: &Ctx, request: Request, response: Response) {
    let response = cors::apply(response, cors::allowed_origin(&ctx.cors_origins, &request));
    if ctx.log_requests {
        let (method, path, status) = (request.method().as_str(), request.path(), response.status());
        let millis = u64::try_from(request.started().elapsed().as_millis()).unwrap_or(u64::MAX);
        let level = match status {
            500.. => log::Level::Error,
            400.. => log::Level::Warn,
            _ => log::Level::Info,
        };
        let auth = request.actor().map_or("none", |actor| actor.scope.as_str());
        log::log!(
            target: "berth::request", level, method = method, path = path, status = status, durationMs = millis, auth = auth,
            peer = request.peer(), requestId = request.id();
            "{method} {path} {status} {millis}ms"
        );
    }
    request.answer(response);
}
