//! Requests to OpenCode that need more than the scope of their route: an owner, or approval. OpenCode on the host
//! runs programs on the host, so these calls follow the rules of exec there; in a container workspace they follow the
//! rules of exec in a container.

use std::io::Read;

use serde_json::Value;

use super::{Ctx, opencode};
use crate::access::{ApprovalMode, Scope};
use crate::base::{Code, Error, Result};
use crate::http::Request;
use crate::opencode::bodies::{self, CommandInvocation};
use crate::opencode::writes::{ForwardedWrite, ProgramRisk, classify};
use crate::opencode::{UpstreamTarget, rules};
use crate::store::spool::SpoolArea;
use crate::workspaces::Workspace;
use crate::workspaces::WorkspaceKind;

/// Returns the action that must be approved before a request is proxied, if any.
///
/// # Errors
/// `Forbidden` if this token may not make the request at all; `OpencodeUnconfigured`; `WorkspaceNotFound`.
pub fn action(ctx: &Ctx, request: &Request) -> Result<Option<&'static str>> {
    if scope(request) >= Scope::Owner {
        return Ok(None);
    }
    let (workspace, mount) = opencode::workspace_of(ctx, request)?;
    let (path, query) = opencode::below(request, &mount);
    rules::check_path(path)?;
    let write = classify(request.method().as_str(), path, request.is_upgrade());
    if write.known && write.risk == ProgramRisk::None {
        return Ok(None);
    }
    UpstreamTarget::new(&workspace.opencode().upstream)?;
    opencode::check_scope(ctx, request, path, query)?;
    if ctx.approval.mode == ApprovalMode::Manual {
        return Ok(Some(word(write.risk)));
    }
    if write.risk == ProgramRisk::Shell {
        let inspection = Inspection::new(ctx, request, &workspace, write);
        if inspection.scope < inspection.programs {
            return Err(inspection.refused("Terminals and shell commands"));
        }
    }
    Ok(None)
}

fn word(risk: ProgramRisk) -> &'static str {
    match risk {
        ProgramRisk::Shell => "opencode.shell",
        ProgramRisk::Command | ProgramRisk::Init => "opencode.command",
        ProgramRisk::Start | ProgramRisk::None => "opencode.write",
    }
}

/// Returns the audit action of a request that could make OpenCode run a program. Returns `None` for any other
/// request.
pub fn risk(request: &Request) -> Option<&'static str> {
    let path = opencode::path_below(request.target())?;
    let write = classify(request.method().as_str(), path, request.is_upgrade());
    (!write.known || write.risk != ProgramRisk::None).then(|| word(write.risk))
}

/// Returns whether a request never needs approval, regardless of its sender. Any other request may have to be
/// suspended.
pub fn never_waits(ctx: &Ctx, method: &str, target: &str) -> bool {
    ctx.approval.mode == ApprovalMode::Auto
        || opencode::path_below(target).is_some_and(|path| classify(method, path, false).known)
}

fn scope(request: &Request) -> Scope {
    request.actor().map_or(Scope::Viewer, |actor| actor.scope)
}

/// A function that refuses a path which OpenCode must not receive.
pub type PathCheck<'a> = &'a dyn Fn(&str) -> Result<()>;

/// The checks of a request that need its body.
#[derive(Clone, Copy)]
pub struct Inspection {
    write: ForwardedWrite,
    scope: Scope,
    /// The scope that is required to run programs without approval.
    programs: Scope,
    permissions: Scope,
    /// Whether the token is limited to some workspaces.
    limited: bool,
}

impl Inspection {
    /// Returns the checks for a request to the OpenCode of this workspace.
    pub fn new(ctx: &Ctx, request: &Request, workspace: &Workspace, write: ForwardedWrite) -> Inspection {
        let is_container = workspace.record().view.workspace_type == WorkspaceKind::Container;
        let asked = ctx.approval.mode == ApprovalMode::Manual;
        let programs = if is_container || asked { Scope::Collaborator } else { ctx.opencode_shell };
        let limited = request.actor().is_some_and(|actor| actor.workspace_ids.is_some());
        Inspection { write, scope: scope(request), programs, permissions: ctx.permission_replies, limited }
    }

    /// Returns whether the sender is confined to this workspace. Only owners of all workspaces are not, because they
    /// can run commands on the host anyway.
    pub fn is_confined(&self) -> bool {
        self.scope < Scope::Owner || self.limited
    }

    /// Returns whether the whole body must be read before the request is proxied.
    pub fn needs_body(&self) -> bool {
        self.scope < self.programs && !matches!(self.write.risk, ProgramRisk::None | ProgramRisk::Shell)
    }

    /// Returns whether fields of the body are checked while the body is proxied.
    pub fn checks_fields(&self) -> bool {
        self.write.about_session
    }

    /// Buffers the whole body, so that it can be checked before it is proxied.
    ///
    /// # Errors
    /// Fails like [`Request::buffer_body`].
    pub fn hold_body(&self, request: &mut Request, spool: &SpoolArea) -> Result<()> {
        let cap = match self.write.risk {
            ProgramRisk::Command => bodies::COMMAND_BYTES,
            _ => bodies::INSPECTED_BYTES as u64,
        };
        request.buffer_body(cap, spool)
    }

    /// Refuses a body that would run a program chosen by the caller. Returns the command of OpenCode that the body
    /// invokes, if any.
    ///
    /// # Errors
    /// `Forbidden` for such a program; `InvalidPayload`.
    pub fn program(&self, body: &mut dyn Read) -> Result<Option<CommandInvocation>> {
        match self.write.risk {
            ProgramRisk::Start => {
                let mut whole = Vec::new();
                let read = body.read_to_end(&mut whole);
                read.map_err(|error| {
                    Error::new(Code::InvalidRequest, "The request body was truncated").with_source(error)
                })?;
                if bodies::starts_program(&whole) {
                    return Err(self.refused("Start commands"));
                }
                Ok(None)
            }
            ProgramRisk::None | ProgramRisk::Shell => Ok(None),
            ProgramRisk::Init => {
                Ok(Some(CommandInvocation { command: "init".to_owned(), arguments: String::new() }))
            }
            ProgramRisk::Command => bodies::command(body).map(Some),
        }
    }

    /// Refuses a command with parts that a shell would execute.
    ///
    /// # Errors
    /// `Forbidden` for such a command; `NotFound` for a command without a readable template.
    pub fn check_command(&self, wanted: &CommandInvocation, template: Option<&str>) -> Result<()> {
        match template {
            Some(template) if bodies::runs_shell(template, &wanted.arguments) => {
                Err(self.refused("Commands whose template or arguments contain shell parts (!`…`)"))
            }
            Some(_) => Ok(()),
            None => {
                let message = format!(
                    "OpenCode shows no template of the command {}; only owner tokens can run it",
                    wanted.command.escape_debug()
                );
                Err(Error::new(Code::NotFound, message).detail("command", wanted.command.as_str()))
            }
        }
    }

    fn refused(&self, what: &str) -> Error {
        let message = format!(
            "{what} of OpenCode on a host workspace need an owner token; use one, start berth with \
             --opencode-shell=collaborator, or run OpenCode in a container workspace"
        );
        Error::new(Code::Forbidden, message)
            .detail("required", self.programs.as_str())
            .detail("scope", self.scope.as_str())
    }

    /// Checks a field of a session or a prompt. `inside` refuses directories outside of the workspace, and `file`
    /// files outside of it.
    ///
    /// # Errors
    /// `Forbidden`, `InvalidPayload`.
    pub fn check_field(
        &self,
        name: &str,
        value: Option<&Value>,
        (inside, file): (PathCheck<'_>, PathCheck<'_>),
    ) -> Result<()> {
        if matches!(name, "url" | "uri") {
            return match bodies::file_path(value) {
                _ if !self.is_confined() => Ok(()),
                Ok(Some(path)) => file(&path),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
        }
        if self.scope < self.permissions && bodies::grants_permission(name, value) {
            let message = format!(
                "Only owner tokens can allow tools without asking (`{name}`); use one, or start berth with \
                 --permission-replies=collaborator"
            );
            return Err(Error::new(Code::Forbidden, message)
                .detail("required", self.permissions.as_str())
                .detail("scope", self.scope.as_str()));
        }
        match bodies::directory(name, value)? {
            Some(directory) if !directory.is_empty() => inside(directory),
            _ => Ok(()),
        }
    }
}
