//! The OpenCode behind a workspace: everything below `/opencode` is passed on to it, and it can be told to read its
//! configuration again. Who may do what with it is decided here; how it is reached is not.

use std::cell::RefCell;
use std::io::Read as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::json;

use super::{Ctx, stream_place, tunnel};
use crate::access::Scope;
use crate::base::pool::{Place, Pool, step_aside};
use crate::base::{Code, Error, Result, clock, limits};
use crate::http::{Answer, Method, Prepared, Reply, Request, Response};
use crate::opencode::{self, Call, Payload, Rest, Target, Upstreams, rules};
use crate::proc::Cancel;
use crate::workspaces::Workspace;
use crate::workspaces::opencode::Opencode;

/// Whether a path and query are passed on.
pub fn is_below(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let mut parts = path.split('/').skip(1);
    match parts.next() {
        Some("opencode") => true,
        Some("w") => parts.nth(1) == Some("opencode"),
        _ => false,
    }
}

/// `/opencode`, `/opencode/*`: of the active workspace.
pub fn active(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let active = ctx.lifecycle.registry().openwork_list().into_iter().next();
    let workspace = active.ok_or_else(|| Error::new(Code::WorkspaceNotFound, "Workspace not found"))?;
    pass_on(ctx, request, &workspace, "/opencode")
}

/// `/w/:id/opencode`, `/w/:id/opencode/*`
pub fn mounted(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    // As it stands in the path, whatever its spelling.
    let id = request.path().split('/').nth(2).unwrap_or_default();
    let mount = format!("/w/{id}/opencode");
    pass_on(ctx, request, &workspace, &mount)
}

/// `POST /workspace/:id/engine/reload`
pub fn reload(ctx: &Ctx, request: &mut Request) -> Result<Answer> {
    let workspace = ctx.lifecycle.registry().by_openwork_id(request.param("id"))?;
    let Opencode { place, directory, .. } = workspace.opencode();
    let target = Target::new(&place)?;
    let upstreams = ctx.upstreams.clone();
    Ok(Answer::Prepared(Prepared {
        summary: format!("Reload the OpenCode of {}", place.workspace),
        note: None,
        changes: None,
        paths: directory.iter().map(|directory| directory.to_string_lossy().into_owned()).collect(),
        work: Box::new(move |_| {
            let directory = directory.as_deref().map(Path::to_string_lossy);
            opencode::reload::reload(&upstreams, &target, directory.as_deref(), Cancel::new()?)?;
            Ok(Response::ok(&json!({ "ok": true, "reloadedAt": clock::now_unix_ms() })))
        }),
    }))
}

/// A request whose sender may do what it asks for.
struct Job {
    call: Call,
    target: Target,
    settings: Opencode,
    directories: Vec<String>,
    gone: Cancel,
    services: Services,
}

/// What the worker needs of the server.
struct Services {
    upstreams: Arc<Upstreams>,
    stream_workers: Arc<Pool>,
    tickets: crate::http::client::Tickets,
}

fn pass_on(ctx: &Ctx, request: &Request, workspace: &Workspace, mount: &str) -> Result<Answer> {
    let settings = workspace.opencode();
    let target = Target::new(&settings.place)?;
    let below = request.target().strip_prefix(mount).unwrap_or_default();
    let (path, query) = below.split_once('?').unwrap_or((below, ""));
    rules::check_path(path)?;
    check_scope(ctx, request, path, query)?;
    let named = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case(opencode::DIRECTORY));
    let named: Vec<&str> = named.map(|(_, value)| value).collect();
    if named.len() > 1 {
        return Err(Error::new(Code::InvalidRequest, "There can be one x-opencode-directory"));
    }
    let configured = settings.directory.as_ref().map(|directory| directory.to_string_lossy().into_owned());
    let directory = match named.first().filter(|named| !named.is_empty()) {
        Some(named) => Some((*named).to_owned()),
        None => configured.as_deref().map(rules::directory_header),
    };
    let job = Job {
        directories: rules::directories(query, named.into_iter()),
        call: Call {
            method: request.method().as_str(),
            path_and_query: below.to_owned(),
            headers: request.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            directory,
            upgrade: request.is_upgrade().then(|| request.subprotocols().map(str::to_owned).collect()),
        },
        target,
        settings,
        gone: Cancel::new()?,
        services: Services {
            upstreams: ctx.upstreams.clone(),
            stream_workers: ctx.stream_workers.clone(),
            tickets: ctx.tickets.clone(),
        },
    };
    let cancel = Some(job.gone.clone());
    Ok(Answer::Later { work: Box::new(move |reply: Reply| job.run(reply)), cancel })
}

/// What the route's scope does not say.
fn check_scope(ctx: &Ctx, request: &Request, path: &str, query: &str) -> Result<()> {
    let scope = request.actor().map_or(Scope::Viewer, |actor| actor.scope);
    if scope == Scope::Viewer && request.is_upgrade() {
        return Err(Error::new(Code::Forbidden, "Viewer tokens are read-only; a WebSocket can write"));
    }
    if scope == Scope::Viewer && rules::names_workspace(query, request.headers()) {
        let message = "Viewer tokens read this workspace only, and none of OpenCode's others";
        return Err(Error::new(Code::Forbidden, message));
    }
    if scope == Scope::Viewer && rules::tells_secrets(path) {
        let message = "OpenCode shows its configuration and providers with every secret filled in, so not to viewers; \
                       GET /workspace/:id/config shows the configuration as it was written";
        return Err(Error::new(Code::Forbidden, message)
            .detail("required", Scope::Collaborator.as_str())
            .detail("scope", scope.as_str()));
    }
    let writes = !matches!(request.method(), Method::Get | Method::Head);
    if writes && scope < ctx.permission_replies && rules::is_about_permissions(path) {
        let message = "Only owner tokens can reply to permission requests; use one, or start berth with \
                       --permission-replies=collaborator";
        return Err(Error::new(Code::Forbidden, message)
            .detail("required", ctx.permission_replies.as_str())
            .detail("scope", scope.as_str()));
    }
    Ok(())
}

/// A worker that takes long is one of the streams, and keeps a place of theirs.
#[derive(Default)]
struct Aside(RefCell<Option<Place>>);

impl Aside {
    fn step(&self, streams: &Pool) -> Result<()> {
        if self.0.borrow().is_none() {
            self.0.replace(Some(stream_place(streams)?));
            step_aside();
        }
        Ok(())
    }
}

impl Job {
    fn run(self, mut reply: Reply) {
        let aside = Rc::new(Aside::default());
        match self.ask(&mut reply, &aside) {
            Ok(answer) => self.pass_back(reply, answer, &aside),
            Err(error) => reply.send(Err(error)),
        }
    }

    fn ask(&self, reply: &mut Reply, aside: &Rc<Aside>) -> Result<opencode::Answer> {
        self.check_directories(reply)?;
        let watch = self.services.upstreams.watch(&self.call, self.gone.clone());
        watch.when_slow(limits::PROXY_SLOW, {
            let (aside, streams) = (aside.clone(), self.services.stream_workers.clone());
            // Without a place it stays among the workers, who are fewer then.
            move || drop(aside.step(&streams))
        });
        let request = reply.request().ok_or_else(|| Error::internal("a request that was answered"))?;
        if let Some(client) = request.direct() {
            watch.set_client(Rc::new(client.clone()));
        }
        let length = request.body_length();
        if length.is_none() {
            // Its client may take its time.
            aside.step(&self.services.stream_workers)?;
        }
        let method = request.method();
        let reader = request.reader();
        let payload = match length {
            Some(0) if matches!(method, Method::Get | Method::Head | Method::Delete) => Payload::None,
            Some(length) => {
                let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
                reader
                    .read_to_end(&mut bytes)
                    .map_err(|error| Error::new(Code::InvalidRequest, "The body broke off").because(error))?;
                Payload::Whole(bytes)
            }
            None => Payload::Streamed(reader),
        };
        self.services.upstreams.call(&self.target, &self.call, payload, &watch)
    }

    /// Everything that the client names must lie in the workspace's directory.
    fn check_directories(&self, reply: &mut Reply) -> Result<()> {
        let owner = reply.request().and_then(|request| request.actor().map(|actor| actor.scope));
        for directory in &self.directories {
            match &self.settings.directory {
                Some(base) => rules::check_directory(directory, base, self.settings.is_here)?,
                None if owner == Some(Scope::Owner) => {}
                None => {
                    let message =
                        "Only owners can name a directory of a remote workspace that has none configured";
                    return Err(Error::new(Code::Forbidden, message).detail("setting", "directory"));
                }
            }
        }
        Ok(())
    }

    fn pass_back(self, mut reply: Reply, answer: opencode::Answer, aside: &Aside) {
        let opencode::Answer { status, headers, rest } = answer;
        let Services { tickets, stream_workers, .. } = self.services;
        let with_headers = move |response: Response| {
            headers
                .into_iter()
                .fold(response.with_status(status), |response, (name, value)| response.with(name, value))
        };
        match rest {
            Rest::Nothing(length) => {
                reply.send(Ok(with_headers(Response::empty(status).without_body(length))))
            }
            Rest::Body(mut body, Some(length)) if length <= limits::PROXY_WHOLE_BYTES => {
                let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
                let read = body.read_to_end(&mut bytes);
                reply.send(match read {
                    Ok(_) => Ok(with_headers(Response::empty(status).with_body(bytes))),
                    Err(error) => {
                        Err(Error::new(Code::OpencodeUnreachable, "OpenCode's answer broke off")
                            .because(error))
                    }
                });
            }
            Rest::Body(body, length) if reply.request().is_some_and(|request| request.direct().is_some()) => {
                // This thread hands the socket over itself, so another pours.
                let place = match aside.0.take().map_or_else(|| stream_place(&stream_workers), Ok) {
                    Ok(place) => place,
                    Err(busy) => return reply.send(Err(busy)),
                };
                let body = body.detach();
                let ticket = tickets
                    .deposit(move |socket, _| place.run(move || tunnel::pour_into(body.attach(), socket)));
                reply.send(ticket.map(|ticket| with_headers(Response::taken(ticket, length))));
            }
            Rest::Body(body, length) => {
                if let Err(busy) = aside.step(&stream_workers) {
                    return reply.send(Err(busy));
                }
                let handed = tunnel::Handed::new(&tickets, &self.gone, reply.take_watch());
                match handed {
                    Ok((ticket, socket)) => {
                        reply.send(Ok(with_headers(Response::taken(ticket, length))));
                        tunnel::pour(body, socket);
                    }
                    Err(error) => reply.send(Err(error)),
                }
            }
            Rest::Tunnel(between) => {
                if let Err(busy) = aside.step(&stream_workers) {
                    return reply.send(Err(busy));
                }
                match tunnel::Handed::new(&tickets, &self.gone, reply.take_watch()) {
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
    use super::is_below;

    #[test]
    fn only_what_is_passed_on() {
        for target in [
            "/opencode",
            "/opencode/",
            "/opencode?a",
            "/opencode/x?y=/",
            "/w/ws_1/opencode",
            "/w/a/opencode/b",
        ] {
            assert!(is_below(target), "{target}");
        }
        for target in
            ["/", "/opencodes", "/x?/opencode", "/w/opencode", "/w/a/opencode2", "/workspace/a/opencode", "*"]
        {
            assert!(!is_below(target), "{target}");
        }
    }
}
