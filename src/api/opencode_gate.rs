//! Which requests to OpenCode need more than their route's scope: an owner, or a person's approval. OpenCode on the host
//! runs programs on the host, so these calls follow the rules of exec there; in a container workspace they follow the
//! rules of exec in a container.

use serde_json::Value;

use super::{Ctx, opencode};
use crate::access::{ApprovalMode, Scope};
use crate::base::{Code, Error, Result};
use crate::http::Request;
use crate::opencode::writes::{ForwardedWrite, ProgramRisk, classify};
use crate::opencode::{Call, Target, bodies, rules};
use crate::proc::Cancel;
use crate::workspaces::Workspace;
use crate::workspaces::record::Kind;

/// The action that a person must allow before a request is passed on.
///
/// # Errors
/// `Forbidden` for what this token may not have done at all, `OpencodeUnconfigured`, `WorkspaceNotFound`.
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
    Target::new(&workspace.opencode().place)?;
    opencode::check_scope(ctx, request, path, query)?;
    if ctx.approval.mode == ApprovalMode::Manual {
        return Ok(Some(match write.risk {
            ProgramRisk::Shell => "opencode.shell",
            ProgramRisk::Command | ProgramRisk::Init => "opencode.command",
            ProgramRisk::Start | ProgramRisk::None => "opencode.write",
        }));
    }
    if write.risk == ProgramRisk::Shell {
        Inspection::new(ctx, request, &workspace, write).refuse_program("Terminals and shell commands")?;
    }
    Ok(None)
}

/// Whether a request can be passed on without a person's answer, whoever sends it; if not, it may have to be laid aside.
pub fn never_waits(ctx: &Ctx, method: &str, target: &str) -> bool {
    ctx.approval.mode == ApprovalMode::Auto
        || opencode::path_below(target).is_some_and(|path| classify(method, path, false).known)
}

fn scope(request: &Request) -> Scope {
    request.actor().map_or(Scope::Viewer, |actor| actor.scope)
}

/// What is still to be looked at when the body of a request is there.
#[derive(Clone, Copy)]
pub struct Inspection {
    write: ForwardedWrite,
    scope: Scope,
    /// The scope that programs need, where no person is asked.
    programs: Scope,
    permissions: Scope,
}

impl Inspection {
    /// Of a request to this workspace's OpenCode.
    pub fn new(ctx: &Ctx, request: &Request, workspace: &Workspace, write: ForwardedWrite) -> Inspection {
        let is_container = workspace.record().shown.workspace_type == Kind::Container;
        let asked = ctx.approval.mode == ApprovalMode::Manual;
        let programs = if is_container || asked { Scope::Collaborator } else { ctx.opencode_shell };
        Inspection { write, scope: scope(request), programs, permissions: ctx.permission_replies }
    }

    /// Whether the whole body is needed before anything is passed on.
    pub fn needs_body(&self) -> bool {
        self.scope < self.programs && !matches!(self.write.risk, ProgramRisk::None | ProgramRisk::Shell)
    }

    /// Whether fields of the body are checked while it is passed on.
    pub fn checks_fields(&self) -> bool {
        self.write.about_session
    }

    /// Refuses a body that would run a program of the caller's.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound` for a command that OpenCode does not have, and those of [`bodies::template`].
    pub fn check_body(
        &self,
        body: &[u8],
        upstreams: &crate::opencode::Upstreams,
        target: &Target,
        call: &Call,
        gone: &Cancel,
    ) -> Result<()> {
        let (name, arguments) = match self.write.risk {
            ProgramRisk::Start if bodies::starts_program(body) => {
                return self.refuse_program("Start commands");
            }
            ProgramRisk::Start | ProgramRisk::None | ProgramRisk::Shell => return Ok(()),
            ProgramRisk::Init => ("init".to_owned(), String::new()),
            ProgramRisk::Command => {
                let body = bodies::command(body)?;
                (body.command, body.arguments)
            }
        };
        match bodies::template(upstreams, target, call, &name, gone)? {
            Some(template) if bodies::runs_shell(&template, &arguments) => {
                self.refuse_program("Commands whose template or arguments contain shell parts (!`…`)")
            }
            Some(_) => Ok(()),
            None => {
                let message = format!(
                    "OpenCode has no command {} whose template it shows; only owner tokens can run it",
                    name.escape_debug()
                );
                Err(Error::new(Code::NotFound, message).detail("command", name))
            }
        }
    }

    fn refuse_program(&self, what: &str) -> Result<()> {
        if self.scope >= self.programs {
            return Ok(());
        }
        let message = format!(
            "{what} of OpenCode on a host workspace need an owner token; use one, start berth with \
             --opencode-shell=collaborator, or run OpenCode in a container workspace"
        );
        Err(Error::new(Code::Forbidden, message)
            .detail("required", self.programs.as_str())
            .detail("scope", self.scope.as_str()))
    }

    /// Checks a field of a session or a prompt; `inside` refuses directories outside of the workspace.
    ///
    /// # Errors
    /// `Forbidden`, `InvalidPayload`.
    pub fn check_field(
        &self,
        name: &str,
        value: Option<&Value>,
        inside: &dyn Fn(&str) -> Result<()>,
    ) -> Result<()> {
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
