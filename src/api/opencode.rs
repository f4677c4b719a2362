//! The OpenCode of a workspace: proxies requests below `/opencode`, and reloads OpenCode's configuration. This
//! module decides which requests are allowed; the connection to OpenCode is made in `crate::opencode`.

use std::cell::RefCell;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::{Value, json};

use super::opencode_policy::Inspection;
use super::{Ctx, managed, reserve_stream, tunnel, workspace_access};
use crate::access::{ApprovalMode, Scope};
use crate::base::pool::{Permit, Pool, step_aside};
use crate::base::shares::ShareHolder;
use crate::base::{Code, Error, Result, clock, limits};
use crate::http::{Answer, Method, PreparedWrite, Reply, Request, Response};
use crate::opencode::fields::{CheckedBody, FieldNames, FieldScanner};
use crate::opencode::managed::Phase;
use crate::opencode::{
    self, Payload, ResponseContent, UpstreamCall, UpstreamTarget, Upstreams, bodies, queries, rules,
    sessions, writes,
};
use crate::proc::Cancel;
use crate::store::spool::SpoolArea;
use crate::workspaces::Workspace;
use crate::workspaces::opencode::OpencodeLocation;

/// Maximum size of an answer of OpenCode that is read as a whole, so that the client's connection stays open.
const PROXY_WHOLE_BYTES: u64 = 64 << 10;

/// Returns the part of a request target that OpenCode receives. Returns `None` if the target is not proxied.
pub fn path_below(target: &str) -> Option<&str> {
    let path = target.split('?').next().unwrap_or_default();
    path.get(mount(path)?.len()..)
}

/// Returns the part of a path before OpenCode's own path: `/opencode`, `/w/ID/opencode` or one of its aliases.
fn mount(path: &str) -> Option<&str> {
    let mut words = path.split('/').skip(1);
    let count = match (words.next()?, words.nth(1)) {
        ("opencode", _) => 1,
        ("w" | "workspace", Some("opencode")) => 3,
        ("w", Some("workspace")) if words.nth(1) == Some("opencode") => 5,
        _ => return None,
    };
    let end = path.match_indices('/').nth(count).map_or(path.len(), |(at, _)| at);
    path.get(..end)
}

/// Returns the workspace of a request, and the prefix of its path. `/opencode` belongs to the active workspace;
/// `/w/:id/opencode` and `/workspace/:id/opencode` belong to the workspace with this id.
///
/// # Errors
/// `WorkspaceNotFound`.
pub fn workspace_of(ctx: &Ctx, request: &Request) -> Result<(Arc<Workspace>, String)> {
    let workspace = match request.param("id") {
        "" => workspace_access::visible(ctx, request).into_iter().next(),
        id => Some(ctx.lifecycle.registry().by_openwork_id(id)?),
    };
    let workspace = workspace.ok_or_else(|| Error::new(Code::WorkspaceNotFound, "Workspace not found"))?;
    Ok((workspace, mount(request.path()).unwrap_or_default().to_owned()))
}

/// Returns the path and the query for OpenCode, unchanged.
pub fn below<'a>(request: &'a Request, mount: &str) -> (&'a str, &'a str) {
    let below = request.target().strip_prefix(mount).unwrap_or_default();
    below.split_once('?').unwrap_or((below, ""))
}

/// `POST /workspace/:id/engine/reload`
pub fn reload(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    let OpencodeLocation { upstream: place, directory, .. } = workspace.opencode();
    let failed = place.managed.clone().filter(|managed| managed.state().phase == Phase::Failed);
    if failed.is_none() {
        UpstreamTarget::new(&place)?;
    }
    let upstreams = ctx.upstreams.clone();
    Ok(Answer::Prepared(PreparedWrite {
        summary: format!("Reload the OpenCode of {}", place.workspace.clone()),
        note: None,
        changes: None,
        paths: directory.iter().map(|directory| directory.to_string_lossy().into_owned()).collect(),
        work: Box::new(move |_| {
            let done = || Ok(Response::ok(&json!({ "ok": true, "reloadedAt": clock::now_unix_ms() })));
            // An OpenCode that starts reads its configuration, so it needs no reload.
            if failed.map_or(Ok(false), |managed| managed::restart_failed(&managed))? {
                return done();
            }
            let target = UpstreamTarget::new(&place)?;
            let directory = directory.as_deref().map(Path::to_string_lossy);
            opencode::reload::reload(&upstreams, &target, directory.as_deref(), Cancel::new()?)?;
            done()
        }),
    }))
}

/// A validated request to OpenCode.
struct ProxyJob {
    inspection: Inspection,
    /// The ids of the sessions in the path.
    sessions: Vec<String>,
    /// The files that the query names.
    files: Vec<String>,
    call: UpstreamCall,
    target: UpstreamTarget,
    settings: OpencodeLocation,
    directories: Vec<String>,
    disconnected: Cancel,
    services: ProxyServices,
}

/// The services that a worker needs to run the job.
struct ProxyServices {
    upstreams: Arc<Upstreams>,
    stream_workers: Arc<Pool>,
    party: ShareHolder,
    tickets: crate::http::client::Tickets,
    spool: SpoolArea,
}

/// `/opencode`, `/opencode/*`, `/w/:id/opencode`, `/w/:id/opencode/*`
pub fn proxy(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let request = &*request;
    let (workspace, mount) = workspace_of(ctx, request)?;
    let settings = workspace.opencode();
    let target = UpstreamTarget::new(&settings.upstream)?;
    let (path, query) = below(request, &mount);
    rules::check_path(path)?;
    check_scope(ctx, request, path, query)?;
    let named = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case(opencode::DIRECTORY));
    let named: Vec<&str> = named.map(|(_, value)| value).collect();
    if named.len() > 1 {
        return Err(Error::new(
            Code::InvalidRequest,
            "The request has more than one X-OpenCode-Directory header",
        ));
    }
    let configured = settings.directory.as_ref().map(|directory| directory.to_string_lossy().into_owned());
    let directory = match named.first().filter(|named| !named.is_empty()) {
        Some(named) => Some(rules::header_inside(named, settings.root.as_deref())),
        None => configured.as_deref().map(rules::directory_header),
    };
    let passed = request.target().strip_prefix(&mount).unwrap_or_default();
    let write = writes::classify(request.method().as_str(), path, request.is_upgrade());
    let job = ProxyJob {
        inspection: Inspection::new(ctx, request, &workspace, write),
        sessions: sessions::ids(path),
        files: rules::files(path, query),
        directories: rules::directories(query, named.into_iter())?,
        call: UpstreamCall {
            method: request.method().as_str(),
            path_and_query: rules::query_inside(passed, settings.root.as_deref()).into_owned(),
            headers: request.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            directory,
            upgrade: request.is_upgrade().then(|| request.subprotocols().map(str::to_owned).collect()),
        },
        target,
        settings,
        disconnected: Cancel::new()?,
        services: ProxyServices {
            upstreams: ctx.upstreams.clone(),
            stream_workers: ctx.stream_workers.clone(),
            party: request.party(),
            tickets: ctx.tickets.clone(),
            spool: ctx.approvals.spool().clone(),
        },
    };
    let cancel = Some(job.disconnected.clone());
    Ok(Answer::Later { work: Box::new(move |reply: Reply| job.run(reply)), cancel })
}

/// Checks permissions that the scope of the route does not cover.
pub(super) fn check_scope(ctx: &Ctx, request: &Request, path: &str, query: &str) -> Result<()> {
    let scope = request.actor().map_or(Scope::Viewer, |actor| actor.scope);
    if scope == Scope::Viewer && request.is_upgrade() {
        return Err(Error::new(Code::Forbidden, "Viewer tokens are read-only; a WebSocket can write"));
    }
    if scope == Scope::Viewer && rules::names_workspace(query, request.headers()) {
        let message = "Viewer tokens can read only this workspace of OpenCode";
        return Err(Error::new(Code::Forbidden, message));
    }
    let limited = request.actor().is_some_and(|actor| actor.workspace_ids.is_some());
    if limited
        && (rules::names_workspace(query, request.headers()) || sessions::spans_directories(path, query))
    {
        let message = "This path of OpenCode concerns other directories too, and the token is limited to workspaces; list \
                       sessions with ?directory=PATH";
        return Err(Error::new(Code::Forbidden, message).detail("scope", scope.as_str()));
    }
    if scope == Scope::Viewer && rules::exposes_secrets(path) {
        let message = "OpenCode's configuration and providers contain secrets, so viewers cannot read them; \
                       GET /workspace/:id/config shows the configuration as it was written";
        return Err(Error::new(Code::Forbidden, message)
            .detail("required", Scope::Collaborator.as_str())
            .detail("scope", scope.as_str()));
    }
    let writes = !matches!(request.method(), Method::Get | Method::Head);
    // In manual mode the write needs approval instead of an owner token.
    let alone = ctx.approval.mode == ApprovalMode::Auto;
    if writes && alone && (scope < Scope::Owner || limited) && sessions::moves(path) {
        let message = "Only owner tokens can move sessions of OpenCode between directories";
        return Err(Error::new(Code::Forbidden, message)
            .detail("required", Scope::Owner.as_str())
            .detail("scope", scope.as_str()));
    }
    if writes && scope < ctx.permission_replies && rules::is_about_permissions(path) {
        let message = "Only owner tokens can reply to permission requests; use one, or start berth with \
                       --permission-replies=collaborator";
        return Err(Error::new(Code::Forbidden, message)
            .detail("required", ctx.permission_replies.as_str())
            .detail("scope", scope.as_str()));
    }
    Ok(())
}

/// The permit that turns a proxy worker into a stream worker, once its request takes long.
#[derive(Default)]
struct StreamPermit(RefCell<Option<Permit>>);

impl StreamPermit {
    fn step(&self, streams: &Pool, party: ShareHolder) -> Result<()> {
        if self.0.borrow().is_none() {
            self.0.replace(Some(reserve_stream(streams, party)?));
            step_aside();
        }
        Ok(())
    }
}

impl ProxyJob {
    fn run(self, mut reply: Reply) {
        let aside = Rc::new(StreamPermit::default());
        match self.ask(&mut reply, &aside) {
            Ok(answer) => self.send_answer(reply, answer, &aside),
            Err(error) => reply.send(Err(error)),
        }
    }

    fn ask(&self, reply: &mut Reply, aside: &Rc<StreamPermit>) -> Result<opencode::UpstreamResponse> {
        self.check_directories(reply)?;
        let watch = self.services.upstreams.watch(&self.call, self.disconnected.clone());
        watch.on_slow(limits::PROXY_SLOW, {
            let (aside, streams, party) =
                (aside.clone(), self.services.stream_workers.clone(), self.services.party);
            // If there is no permit, the thread stays a proxy worker, and fewer proxy workers remain for others.
            move || drop(aside.step(&streams, party))
        });
        let request = reply.request().ok_or_else(|| Error::internal("The request was already answered"))?;
        if let Some(client) = request.direct() {
            watch.set_client(Rc::new(client.clone()));
        }
        let length = request.body_length();
        if length.is_none() {
            // The client may read a streamed answer slowly.
            aside.step(&self.services.stream_workers, self.services.party)?;
        }
        let places = self.check_sessions()?;
        if self.inspection.needs_body() {
            self.inspection.hold_body(request, &self.services.spool)?;
            self.check_body(request, &places)?;
        }
        self.send(request, &watch)
    }

    /// Refuses sessions that work outside of the workspace. Returns the directories of the other sessions.
    fn check_sessions(&self) -> Result<Vec<String>> {
        let Some(base) = self.settings.directory.as_ref().filter(|_| self.inspection.is_confined()) else {
            return Ok(Vec::new());
        };
        let mut places = Vec::new();
        for id in &self.sessions {
            // The template of a command depends on the directory, so it must be known for a command.
            let asked = (id.as_str(), self.inspection.needs_body());
            let ProxyServices { upstreams, .. } = &self.services;
            let found =
                queries::session_directory(upstreams, &self.target, &self.call, asked, &self.disconnected)?;
            let Some(directory) = found else { continue };
            // The directory of a session may have been deleted.
            if !rules::is_file_inside(Path::new(&directory), base, self.settings.shares_files) {
                let message = "The session works in a directory outside the workspace";
                return Err(Error::new(Code::Forbidden, message).detail("session", id.as_str()));
            }
            places.push(directory);
        }
        Ok(places)
    }

    /// Checks a buffered body. OpenCode loads commands from the directory of the request (version 1.1.53) or of the
    /// session (version 1.18.34), so the command must be harmless in both.
    fn check_body(&self, request: &Request, sessions: &[String]) -> Result<()> {
        let mut body =
            request.buffered_body().ok_or_else(|| Error::internal("The request body was not buffered"))?;
        let wanted = self.inspection.program(&mut *body)?;
        let Some(wanted) = wanted else { return Ok(()) };
        let other =
            sessions.iter().filter(|directory| !self.is_named(directory)).map(|other| Some(other.as_str()));
        let ProxyServices { upstreams, .. } = &self.services;
        for directory in std::iter::once(None).chain(other) {
            let asked = (wanted.command.as_str(), directory);
            let template = queries::template(upstreams, &self.target, &self.call, asked, &self.disconnected)?;
            self.inspection.check_command(&wanted, template.as_deref())?;
            let Some((template, base)) = template.zip(self.settings.directory.as_ref()) else { continue };
            let is_here = self.settings.shares_files;
            if let Some(name) = bodies::reference_outside(&template, &wanted.arguments, base, is_here) {
                return Err(Error::new(
                    Code::Forbidden,
                    "The arguments refer to a file outside the workspace",
                )
                .detail("reference", name));
            }
        }
        Ok(())
    }

    /// Returns whether `directory` is the only directory that the request names.
    fn is_named(&self, directory: &str) -> bool {
        match &*self.directories {
            [] => self.settings.directory.as_deref() == Some(Path::new(directory)),
            named => named.iter().all(|named| named == directory),
        }
    }

    /// Sends the request to OpenCode and returns its answer.
    fn send(
        &self,
        request: &mut Request,
        watch: &Rc<opencode::CallWatch>,
    ) -> Result<opencode::UpstreamResponse> {
        let owner = request.actor().is_some_and(|actor| actor.scope == Scope::Owner);
        let inside = |directory: &str| self.check_directory(directory, owner);
        let file = |path: &str| self.check_file(path);
        let check = |name: &'static str, value: Option<Value>| {
            self.inspection.check_field(name, value.as_ref(), (&inside, &file))
        };
        let names =
            if self.inspection.checks_fields() { bodies::SESSION_FIELDS } else { FieldNames::default() };
        let method = request.method();
        // A larger buffered body may be on disk, so it is streamed.
        let length = request.body_length().filter(|length| *length <= limits::HELD_BODY_BYTES as u64);
        request.rewind_body();
        let reader: &mut dyn Read = request.reader();
        let mut body = CheckedBody::new(reader, FieldScanner::new(names), &check);
        let payload = match length {
            Some(0) if matches!(method, Method::Get | Method::Head | Method::Delete) => Payload::None,
            Some(length) => {
                let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
                if let Err(error) = body.read_to_end(&mut bytes) {
                    let broken =
                        Error::new(Code::InvalidRequest, "The request body was truncated").with_source(error);
                    return Err(body.refusal.take().unwrap_or(broken));
                }
                Payload::Whole(bytes)
            }
            None => Payload::Streamed(&mut body),
        };
        let answer = self.services.upstreams.call(&self.target, &self.call, payload, watch);
        match body.refusal.take() {
            Some(refusal) => Err(refusal),
            None => answer,
        }
    }

    /// Checks that all directories and files that the client names are in the workspace.
    fn check_directories(&self, reply: &mut Reply) -> Result<()> {
        let scope = reply.request().and_then(|request| request.actor().map(|actor| actor.scope));
        self.directories
            .iter()
            .try_for_each(|directory| self.check_directory(directory, scope == Some(Scope::Owner)))?;
        let Some(base) = self.settings.directory.as_ref().filter(|_| self.inspection.is_confined()) else {
            return Ok(());
        };
        let directories = || self.directories.iter().map(Path::new).chain([base.as_path()]);
        let leads_out = |file: &&String| {
            let mut named = directories().map(|directory| directory.join(file));
            named.any(|path| path.symlink_metadata().is_ok() && !rules::is_file_inside(&path, base, true))
        };
        match self.files.iter().find(leads_out).filter(|_| self.settings.shares_files) {
            Some(file) => {
                let message = "The path is outside the workspace";
                Err(Error::new(Code::Forbidden, message).detail("path", file.as_str()))
            }
            None => Ok(()),
        }
    }

    /// Refuses a file outside of the workspace that OpenCode would read for a prompt.
    fn check_file(&self, path: &str) -> Result<()> {
        let base = self.settings.directory.as_ref();
        if base.is_some_and(|base| rules::is_file_inside(Path::new(path), base, self.settings.shares_files)) {
            return Ok(());
        }
        let message = "The attached file is not inside the workspace; attach its content as a data: URL";
        Err(Error::new(Code::Forbidden, message).detail("path", path))
    }

    fn check_directory(&self, directory: &str, owner: bool) -> Result<()> {
        match &self.settings.directory {
            Some(base) => rules::check_directory(directory, base, self.settings.shares_files),
            None if owner => Ok(()),
            None => {
                let message =
                    "Only owners can name a directory of a remote workspace that has none configured";
                Err(Error::new(Code::Forbidden, message).detail("setting", "directory"))
            }
        }
    }

    fn send_answer(self, mut reply: Reply, answer: opencode::UpstreamResponse, aside: &StreamPermit) {
        let opencode::UpstreamResponse { status, headers, content: rest } = answer;
        let ProxyServices { tickets, stream_workers, party, .. } = self.services;
        let with_headers = move |response: Response| {
            headers
                .into_iter()
                .fold(response.with_status(status), |response, (name, value)| response.with(name, value))
        };
        match rest {
            ResponseContent::Empty(length) => {
                reply.send(Ok(with_headers(Response::empty(status).without_body(length))))
            }
            ResponseContent::Body(mut body, Some(length)) if length <= PROXY_WHOLE_BYTES => {
                let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
                let read = body.read_to_end(&mut bytes);
                reply.send(match read {
                    Ok(_) => Ok(with_headers(Response::empty(status).with_body(bytes))),
                    Err(error) => {
                        Err(Error::new(Code::OpencodeUnreachable, "OpenCode's answer was truncated")
                            .with_source(error))
                    }
                });
            }
            ResponseContent::Body(body, length)
                if reply.request().is_some_and(|request| request.direct().is_some()) =>
            {
                // This thread will hand the socket over, so another thread must relay the body.
                let permit = match aside.0.take().map_or_else(|| reserve_stream(&stream_workers, party), Ok) {
                    Ok(permit) => permit,
                    Err(busy) => return reply.send(Err(busy)),
                };
                let body = body.detach();
                let ticket = tickets
                    .issue(move |socket, _| permit.run(move || tunnel::relay_until(body.attach(), socket)));
                reply.send(ticket.map(|ticket| with_headers(Response::handed_over(ticket, length))));
            }
            ResponseContent::Body(body, length) => {
                if let Err(busy) = aside.step(&stream_workers, party) {
                    return reply.send(Err(busy));
                }
                let handed = tunnel::PendingSocket::new(&tickets, &self.disconnected, reply.take_watch());
                match handed {
                    Ok((ticket, socket)) => {
                        reply.send(Ok(with_headers(Response::handed_over(ticket, length))));
                        tunnel::relay(body, socket);
                    }
                    Err(error) => reply.send(Err(error)),
                }
            }
            ResponseContent::Tunnel(between) => {
                if let Err(busy) = aside.step(&stream_workers, party) {
                    return reply.send(Err(busy));
                }
                match tunnel::PendingSocket::new(&tickets, &self.disconnected, reply.take_watch()) {
                    Ok((ticket, socket)) => {
                        reply.send(Ok(with_headers(Response::upgraded(ticket))));
                        tunnel::connect(between, socket);
                    }
                    Err(error) => reply.send(Err(error)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::path_below;

    #[test]
    fn only_opencode_paths_are_proxied() {
        for (target, below) in [
            ("/opencode", ""),
            ("/opencode/", "/"),
            ("/opencode?a", ""),
            ("/opencode/x?y=/", "/x"),
            ("/w/ws_1/opencode", ""),
            ("/w/a/opencode/b", "/b"),
            ("/workspace/a/opencode", ""),
            ("/workspace/a/opencode/b/c", "/b/c"),
            ("/w/a/workspace/a/opencode/b", "/b"),
        ] {
            assert_eq!(path_below(target), Some(below), "{target}");
        }
        for target in
            ["/", "/opencodes", "/x?/opencode", "/w/opencode", "/w/a/opencode2", "/workspace/a/config", "*"]
        {
            assert_eq!(path_below(target), None, "{target}");
        }
    }
}
