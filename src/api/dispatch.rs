//! Processes a request: preflight, route, credential, read-only mode, scope, approval, handler, answer, log line.
//! This module contains nothing that is specific to one endpoint.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::approval_request::{self, WriteDescription};
use super::routes::TABLE;
use super::workspace_access::WorkspaceAccess;
use super::{Ctx, PROXIED, audit, opencode, opencode_policy, routes, viewer_redaction, workspace_access};
use crate::access::approval_request::ApprovalRequest;
use crate::access::credentials::Presented;
use crate::access::{Actor, ApprovalMode, Scope, TokenLease};
use crate::base::pool::{self, Permit};
use crate::base::redact::Redactor;
use crate::base::shares::ShareHolder;
use crate::base::{Code, Error, Result};
use crate::http::request::bearer_of;
use crate::http::route::RouteMatch;
use crate::http::{
    Answer, ApprovalPolicy, Auth, Class, DeferredWork, Effect, Method, PreparedWrite, Reply, Request,
    Response, Route, cors,
};
use crate::proc::Cancel;

/// How long a WebSocket may take to close after its credential has ended.
const CREDENTIAL_GRACE: Duration = Duration::from_secs(1);

/// Handles one request on this thread or on a worker.
pub fn dispatch(ctx: &Arc<Ctx>, request: Request) {
    handle(ctx, request);
}

/// Returns the handler that answers a request on the thread of its connection: the OpenCode proxy, if the request
/// never waits for approval and a proxy permit is free. Returns `None` for any other request.
pub fn direct(ctx: &Arc<Ctx>, method: &str, target: &str) -> Option<Box<dyn FnOnce(Request)>> {
    opencode::path_below(target).filter(|_| opencode_policy::never_waits(ctx, method, target))?;
    let permit = ctx.proxy_workers.occupy().ok()?;
    let ctx = ctx.clone();
    Some(Box::new(move |request| permit.run_here(|| handle(&ctx, request))))
}

fn handle(ctx: &Arc<Ctx>, mut request: Request) {
    if request.method() == Method::Options {
        return reply(ctx, request, Response::empty(204));
    }
    match catch_panic(|| admit(ctx, &mut request)) {
        // Reading a streamed body takes as long as the client sends, so a worker reads it.
        Ok(admitted) if request.is_streamed() => {
            let permit = ctx.transfer_permit(request.party());
            run_on_worker(ctx, permit, request, move |ctx, request| proceed(ctx, request, admitted));
        }
        Ok(admitted) => proceed(ctx, request, admitted),
        Err(error) => fail(ctx, request, &error),
    }
}

/// A matched route, and the action that must be approved before the handler runs, if any.
type AdmittedRoute = (&'static Route<Ctx>, Option<&'static str>);

fn proceed(ctx: &Arc<Ctx>, request: Request, (route, action): AdmittedRoute) {
    match action {
        None => perform(ctx, request, route),
        Some(action) => request_approval(ctx, request, route, action),
    }
}

/// Counts a connection against the token in the head of its request.
///
/// # Errors
/// `OverShare` if the token uses its share of the connections; `Busy` for a connection that is reserved for owners.
pub fn claim(ctx: &Ctx, connection: u64, head: &str) -> Result<()> {
    let fields = || head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    let field = |name: &str| {
        let mut named = fields().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim())
    };
    let bearer = field("Authorization").and_then(bearer_of);
    let presented = Presented { bearer, host: field("X-OpenWork-Host-Token"), client_id: None };
    // Without a valid token nothing is counted; the route answers the request.
    let Ok(actor) = ctx.credentials.actor(presented) else { return Ok(()) };
    claim_for(ctx, connection, party_of(&actor, None))
}

fn claim_for(ctx: &Ctx, connection: u64, party: ShareHolder) -> Result<()> {
    let full = || Error::new(Code::Busy, "The server has no room for another connection; try again");
    let claimed = ctx.disconnects.claim(connection, party);
    claimed.map_err(|refused| refused.error("connections (--max-connections)", full))
}

fn party_of(actor: &Actor, workspace: Option<Uuid>) -> ShareHolder {
    match (actor.scope, &actor.workspace_ids) {
        (Scope::Owner, None) => ShareHolder::OWNER,
        _ => ShareHolder::new(&actor.token_hash, workspace, false),
    }
}

/// Returns the owner of the shares that a request uses: its token, and the workspace that it concerns. An owner
/// without restrictions has no share.
fn party(ctx: &Ctx, route: &Route<Ctx>, request: &Request) -> ShareHolder {
    let Some(actor) = request.actor() else { return ShareHolder::ANONYMOUS };
    let workspace = match workspace_access::of(route) {
        WorkspaceAccess::Named => {
            workspace_access::find(ctx, request.param("id")).map(|workspace| workspace.id())
        }
        WorkspaceAccess::Active => {
            ctx.lifecycle.registry().openwork_list().first().map(|workspace| workspace.id())
        }
        WorkspaceAccess::Filtered | WorkspaceAccess::Refused => None,
    };
    party_of(actor, workspace)
}

/// How long a request to an OpenCode waits while its token or workspace uses its share of the proxy workers. A slow
/// request leaves its worker ([`limits::PROXY_SLOW`]), so the whole time passes only if stream workers are short
/// too.
const SHARE_WAIT: Duration = Duration::from_secs(30);

/// Counts the request against its party: its connection and, for a direct request, the permit for its thread.
fn count_connection(ctx: &Ctx, request: &Request) -> Result<()> {
    let party = request.party();
    if let Some(connection) = request.connection() {
        claim_for(ctx, connection, party)?;
    }
    if request.direct().is_some() {
        let busy = || Error::new(Code::Busy, "Too many requests are waiting for OpenCode; try again");
        pool::claim(party, SHARE_WAIT).map_err(|refused| refused.error(PROXIED, busy))?;
    }
    Ok(())
}

/// Makes all checks before the handler runs. Returns the route, and the action that must be approved first, if any.
fn admit(ctx: &Ctx, request: &mut Request) -> Result<AdmittedRoute> {
    let route = match TABLE.find(request)? {
        RouteMatch::Route(route) => route,
        // For a wrong method, sandboxed.sh answers 405 and the OpenWork server 404.
        RouteMatch::OtherMethods(methods) if request.path().starts_with("/api/") => {
            return Err(Error::new(Code::MethodNotAllowed, format!("This path supports only {methods}"))
                .detail("allow", methods));
        }
        RouteMatch::OtherMethods(_) | RouteMatch::Nothing => {
            return Err(Error::new(Code::NotFound, "Not found"));
        }
    };
    let actor = authenticate(ctx, route, request)?;
    // From here on, the audit log records refusals with their actor.
    request.set_actor(actor.clone());
    request.set_draft(audit::draft(ctx, route, request));
    if ctx.read_only && route.effect == Effect::Write {
        return Err(Error::new(Code::ReadOnly, "Server is read-only"));
    }
    if let Some(actor) = &actor {
        match route.auth {
            Auth::Scope(required) if actor.scope < required => {
                return Err(workspace_access::too_low(ctx, required, actor));
            }
            _ => workspace_access::check(ctx, route, request, actor)?,
        }
        // The scope for the workspace is checked before approval is requested.
        match workspace_access::required(ctx, route, request) {
            Some(required) if actor.scope < required => {
                return Err(workspace_access::too_low(ctx, required, actor));
            }
            _ => {}
        }
    }
    check_coding(request)?;
    request.set_party(party(ctx, route, request));
    count_connection(ctx, request)?;
    let owner = actor.as_ref().is_some_and(|actor| actor.scope == Scope::Owner);
    Ok(match route.gate {
        ApprovalPolicy::Collaborators(action) if !owner && ctx.approval.mode == ApprovalMode::Manual => {
            (route, Some(action))
        }
        ApprovalPolicy::Forwarded => (route, opencode_policy::action(ctx, request)?),
        ApprovalPolicy::Open | ApprovalPolicy::Collaborators(_) | ApprovalPolicy::Everyone(_) => {
            (route, None)
        }
    })
}

/// Refuses a compressed body, because the server decodes no content coding. Requests to OpenCode are proxied
/// unchanged.
fn check_coding(request: &Request) -> Result<()> {
    let coded = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case("Content-Encoding"));
    let mut codings = coded.flat_map(|(_, value)| value.split(',')).map(str::trim);
    let plain = |coding: &str| coding.is_empty() || coding.eq_ignore_ascii_case("identity");
    match codings.find(|coding| !plain(coding)) {
        Some(coding)
            if request.body_length() != Some(0) && opencode::path_below(request.target()).is_none() =>
        {
            let coding = approval_request::visible(coding);
            let message = format!(
                "Content-Encoding '{coding}' is not supported; send the body uncompressed, without the header"
            );
            Err(Error::new(Code::UnsupportedEncoding, message).detail("encoding", coding))
        }
        _ => Ok(()),
    }
}

fn perform(ctx: &Arc<Ctx>, mut request: Request, route: &'static Route<Ctx>) {
    if let Some(at_hand) = route.fast_path {
        match catch_panic(|| Ok(at_hand(ctx, &mut request))) {
            Ok(None) => {}
            Ok(Some(response)) => return reply(ctx, request, response),
            Err(error) => return fail(ctx, request, &error),
        }
    }
    // The handler of an upload validates the request before it buffers the body, so the body is not buffered here.
    let waits =
        matches!(route.gate, ApprovalPolicy::Everyone(_)) && ctx.approval.mode == ApprovalMode::Manual;
    // A worker that a slow client may block reads the body, because file workers do not read from clients.
    let streams = route.class == Class::Files && request.is_streamed();
    if (waits && route.class != Class::Upload) || streams {
        let held = request.buffer_body(routes::cap_of(route) as u64, ctx.approvals.spool());
        if let Err(error) = held {
            return fail(ctx, request, &error);
        }
    }
    if route.class == Class::Files {
        return run_on_file_worker(ctx, request, move |ctx, request| call_handler(ctx, request, route));
    }
    call_handler(ctx, request, route);
}

/// Calls the route's handler on this thread.
fn call_handler(ctx: &Arc<Ctx>, mut request: Request, route: &Route<Ctx>) {
    let answer = catch_panic(|| (route.handler)(ctx, &mut request));
    request.end_charge();
    match (answer, route.gate) {
        (Ok(Answer::Prepared(prepared)), ApprovalPolicy::Everyone(action)) => {
            allow_prepared(ctx, request, route.class, action, prepared);
        }
        (Ok(Answer::Prepared(_)), _) | (Ok(_), ApprovalPolicy::Everyone(_)) => {
            let message = "Routes with the policy `Everyone` must answer with a prepared write, and no other routes may";
            fail(ctx, request, &Error::internal(message));
        }
        (Ok(Answer::Now(response)), _) => reply(ctx, request, response),
        (Ok(Answer::Later { work, cancel }), _) => start_work(ctx, request, route.class, work, cancel),
        (Err(error), _) => fail(ctx, request, &error),
    }
}

/// Executes a prepared write, after approval if that is required.
fn allow_prepared(
    ctx: &Arc<Ctx>,
    mut request: Request,
    class: Class,
    action: &'static str,
    prepared: PreparedWrite,
) {
    let PreparedWrite { summary, note, paths, changes, work } = prepared;
    let note = Redactor::default().text(note.as_deref().unwrap_or(&summary)).into_owned();
    audit::describe(ctx, &mut request, &note, &paths);
    let work = move |ctx: &Arc<Ctx>, mut request: Request| match catch_panic(|| work(&mut request)) {
        Ok(response) => reply(ctx, request, response),
        Err(error) => fail(ctx, request, &error),
    };
    if ctx.approval.mode == ApprovalMode::Auto {
        // This thread is already a file worker, or a worker that reads a large body.
        if class == Class::Files || request.on_worker() {
            return work(ctx, request);
        }
        return run_on_worker(ctx, write_permit(ctx, class, request.party()), request, work);
    }
    let is_upload = class == Class::Upload;
    let asking =
        WriteDescription { action, summary: Some(summary), note: Some(note), paths, changes, is_upload };
    match catch_panic(|| approval_request::build(ctx, &request, asking)) {
        Ok(asked) => wait_for_approval(ctx, request, asked, move |ctx, request| {
            if class == Class::Files {
                return run_on_file_worker(ctx, request, work);
            }
            run_on_worker(ctx, write_permit(ctx, class, request.party()), request, work);
        }),
        Err(error) => fail(ctx, request, &error),
    }
}

/// Suspends the request until its approval is decided, then continues the same request, unless its client has
/// disconnected.
fn request_approval(ctx: &Arc<Ctx>, mut request: Request, route: &'static Route<Ctx>, action: &'static str) {
    match catch_panic(|| buffer_and_describe(ctx, &mut request, route, action)) {
        Ok(asked) => {
            audit::describe(ctx, &mut request, asked.note(), &[]);
            wait_for_approval(ctx, request, asked, move |ctx, request| {
                let party = request.party();
                let permit = if route.class == Class::End {
                    ctx.end_permit(party)
                } else {
                    ctx.transfer_permit(party)
                };
                run_on_worker(ctx, permit, request, move |ctx, request| perform(ctx, request, route));
            });
        }
        Err(error) => fail(ctx, request, &error),
    }
}

/// Suspends the request until `asked` is decided. `allowed` continues the request on the thread of the approver's
/// request, so it must return quickly.
fn wait_for_approval(
    ctx: &Arc<Ctx>,
    mut request: Request,
    asked: ApprovalRequest,
    allowed: impl FnOnce(&Arc<Ctx>, Request) + Send + 'static,
) {
    let disconnected = match Cancel::new() {
        Ok(disconnected) => disconnected,
        Err(error) => return fail(ctx, request, &error),
    };
    let watch = request.connection().map(|client| ctx.disconnects.subscribe(client, &disconnected));
    // A pending approval ends when the credential of its requester ends. The requester receives an error at once.
    let credentials = ctx.credentials.clone();
    let lease = request.actor().map(|actor| {
        let (ctx, id) = (Arc::downgrade(ctx), asked.id().to_owned());
        let withdraw = move || {
            if let Some(ctx) = ctx.upgrade() {
                ctx.approvals.withdraw(&id, credential_ended());
            }
        };
        credentials.leases.acquire(actor, Duration::ZERO, withdraw)
    });
    let party = request.party();
    let step = {
        let (ctx, disconnected) = (Arc::downgrade(ctx), disconnected.clone());
        move |verdict: Result<()>| {
            drop(watch);
            let Some(ctx) = ctx.upgrade() else { return };
            match verdict {
                Ok(()) if disconnected.is_cancelled() => {}
                Ok(()) if lease.as_ref().is_some_and(TokenLease::has_ended) => {
                    fail(&ctx, request, &credential_ended())
                }
                Ok(()) => {
                    request.release_body();
                    allowed(&ctx, request);
                }
                Err(error) => fail(&ctx, request, &error),
            }
        }
    };
    ctx.approvals.request(asked, party, disconnected, Box::new(step));
}

/// Buffers the body of the request and builds its approval request.
fn buffer_and_describe(
    ctx: &Ctx,
    request: &mut Request,
    route: &Route<Ctx>,
    action: &'static str,
) -> Result<ApprovalRequest> {
    request.buffer_body(routes::cap_of(route) as u64, ctx.approvals.spool())?;
    let workspace = workspace_access::concerned(ctx, request);
    let paths = workspace.iter().map(|workspace| workspace.record().view.path.clone()).collect();
    approval_request::build(ctx, request, WriteDescription { action, paths, ..WriteDescription::default() })
}

/// Returns the 401 error, which names the presented and the required credential.
fn unauthorized(seen: &str, host: bool, required: Scope) -> Error {
    let what = if host { "Invalid host token" } else { "Invalid bearer token" };
    Error::new(
        Code::Unauthorized,
        format!("{what}: {seen} was sent; this needs {}", workspace_access::needed(required)),
    )
    .detail("required", required.as_str())
}

/// Returns the error for a request of which the token has ended since it was admitted.
fn credential_ended() -> Error {
    Error::new(Code::Unauthorized, "Invalid bearer token: it was revoked, or it expired, during this request")
}

fn authenticate(ctx: &Ctx, route: &Route<Ctx>, request: &Request) -> Result<Option<Actor>> {
    let (host, required) = match route.auth {
        Auth::Public => return Ok(None),
        Auth::Host => (true, Scope::Owner),
        Auth::Scope(required) => (false, required),
    };
    let presented = Presented {
        bearer: request.bearer().or_else(|| request.subprotocol_token()),
        host: request.header("X-OpenWork-Host-Token"),
        client_id: request.header("X-OpenWork-Client-Id"),
    };
    match ctx.credentials.actor(presented) {
        Ok(actor) if host && actor.scope < Scope::Owner => {
            audit::login_failed(ctx, request, Some(&actor), &ctx.credentials.describe(&actor));
            Err(unauthorized(&ctx.credentials.describe(&actor), host, required)
                .detail("scope", actor.scope.as_str()))
        }
        Ok(actor) => Ok(Some(actor)),
        Err(invalid) => {
            let seen = invalid.to_string();
            if presented.bearer.is_some() || presented.host.is_some() {
                audit::login_failed(ctx, request, None, &seen);
            }
            Err(unauthorized(&seen, host, required))
        }
    }
}

fn permit_for(ctx: &Ctx, class: Class, party: ShareHolder) -> Result<Permit> {
    match class {
        Class::Stream => ctx.stream_permit(party),
        Class::Upload => ctx.transfer_permit(party),
        Class::Proxy => ctx.proxy_permit(party),
        Class::End => ctx.end_permit(party),
        Class::Files => ctx.files_permit(party),
        Class::Short | Class::Run => ctx.run_permit(party),
    }
}

/// Returns a permit for a prepared write. A write may wait for other writes of the same workspace, so it must not
/// run on the HTTP threads.
fn write_permit(ctx: &Ctx, class: Class, party: ShareHolder) -> Result<Permit> {
    if class == Class::Short { ctx.transfer_permit(party) } else { permit_for(ctx, class, party) }
}

/// Moves the request to the workers of its class.
fn start_work(ctx: &Arc<Ctx>, request: Request, class: Class, work: DeferredWork, cancel: Option<Cancel>) {
    // When the credential ends, the request is cancelled as if its client had disconnected, but the client gets an
    // error.
    let lease = request
        .actor()
        .zip(cancel.clone())
        .map(|(actor, flag)| ctx.credentials.leases.acquire(actor, Duration::ZERO, move || flag.cancel()));
    let watch =
        request.connection().zip(cancel).map(|(client, flag)| ctx.disconnects.subscribe(client, &flag));
    let job = move |ctx: &Arc<Ctx>, request: Request| {
        let ctx = ctx.clone();
        work(Reply::new(request, watch, move |request, result| match result {
            _ if lease.as_ref().is_some_and(TokenLease::has_ended) => {
                fail(&ctx, request, &credential_ended())
            }
            Ok(response) => reply(&ctx, request, response),
            Err(error) => fail(&ctx, request, &error),
        }));
    };
    if class == Class::Files || request.direct().is_some() {
        return job(ctx, request);
    }
    run_on_worker(ctx, permit_for(ctx, class, request.party()), request, job);
}

/// Continues the request on a file worker. If the answer is large, another worker sends it.
fn run_on_file_worker(
    ctx: &Arc<Ctx>,
    mut request: Request,
    job: impl FnOnce(&Arc<Ctx>, Request) + Send + 'static,
) {
    match ctx.files_permit(request.party()) {
        Ok(permit) => {
            request.set_on_worker(false);
            let ctx = ctx.clone();
            permit.run(move || job(&ctx, request));
        }
        Err(busy) => fail(ctx, request, &busy),
    }
}

/// Continues the request on a worker, or answers with the error if there is no permit.
fn run_on_worker(
    ctx: &Arc<Ctx>,
    permit: Result<Permit>,
    mut request: Request,
    job: impl FnOnce(&Arc<Ctx>, Request) + Send + 'static,
) {
    match permit {
        Ok(permit) => {
            request.set_on_worker(true);
            let ctx = ctx.clone();
            permit.run(move || job(&ctx, request));
        }
        Err(busy) => fail(ctx, request, &busy),
    }
}

/// Turns a panic in `work` into an error with status 500, so that the thread continues.
fn catch_panic<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::internal("Unexpected server error")))
}

fn fail(ctx: &Arc<Ctx>, request: Request, error: &Error) {
    if error.code().status() >= 500 {
        ctx.request_log.failed(&request, error);
    }
    let response = Response::error(error);
    let response = match error.code() {
        Code::MethodNotAllowed => response.with("Allow", allowed_methods(error)),
        // RFC 9110, 12.5.3: in an answer, this header lists the codings that the server accepts.
        Code::UnsupportedEncoding => response.with("Accept-Encoding", "identity"),
        // RFC 9110, 15.5.2: a 401 must have this header.
        Code::Unauthorized => response.with("WWW-Authenticate", "Bearer"),
        _ => response,
    };
    reply(ctx, request, response);
}

fn allowed_methods(error: &Error) -> String {
    error.body()["details"]["allow"].as_str().unwrap_or_default().to_owned()
}

/// Closes the stream or socket of an answer when its credential ends. A WebSocket gets a grace period, in which the
/// server reports the reason.
fn bind_to_lease(ctx: &Ctx, request: &Request, response: &Response) {
    let Some((actor, ticket)) = request.actor().filter(|actor| actor.is_scoped).zip(response.ticket()) else {
        return;
    };
    let grace = if response.status() == 101 { CREDENTIAL_GRACE } else { Duration::ZERO };
    let (credentials, actor) = (ctx.credentials.clone(), actor.clone());
    ctx.tickets.amend(ticket, move |socket| {
        let lease = credentials.leases.acquire(&actor, grace, socket.cutter());
        socket.with_guard(lease)
    });
}

/// Warns the client about query parameters that no handler has read. There is no such warning for a page, which
/// reads its query in a script, for a proxied request, or for a failed one, the handler of which may have read only
/// some.
fn add_warnings(request: &mut Request, response: Response) -> Response {
    let page = request.path().trim_end_matches('/').ends_with("/ui") || request.path().contains("/ui/");
    let passed_on = opencode::path_below(request.target()).is_some();
    let reads_query = response.status() < 400 && !page && !passed_on && request.method() != Method::Options;
    let warnings = request.take_warnings(reads_query);
    response.warned(warnings)
}

fn reply(ctx: &Arc<Ctx>, mut request: Request, response: Response) {
    let response = add_warnings(&mut request, response);
    bind_to_lease(ctx, &request, &response);
    if response.is_small() || request.on_worker() {
        return send(ctx, request, response);
    }
    run_on_worker(ctx, ctx.transfer_permit(request.party()), request, move |ctx, request| {
        send(ctx, request, response)
    });
}

fn is_disconnected(ctx: &Ctx, request: &Request) -> bool {
    match request.direct() {
        // This is the thread of the connection, so no other thread polls the socket.
        Some(client) => client.is_disconnected(),
        None => request.connection().is_some_and(|client| ctx.disconnects.is_disconnected(client)),
    }
}

fn send(ctx: &Ctx, mut request: Request, response: Response) {
    audit::record(ctx, &mut request, &response);
    let response = match viewer_redaction::redactor(ctx, &request) {
        Some(redactor) => response.redacted(&redactor),
        None => response,
    };
    let response = cors::apply(response, cors::allowed_origin(&ctx.cors_origins, &request));
    let disconnected = response.status() >= 400 && is_disconnected(ctx, &request);
    ctx.request_log.answered(&request, response.status(), disconnected);
    request.answer(response);
}
