//! The route table: every endpoint with its credential, approval policy, effect and class of work. Dispatch, the
//! list of routes in README and the contract tests are based on the table.

use std::sync::LazyLock;

use super::{
    Ctx, approvals, audit, doctor, images, library, login, managed, opencode, runs, snapshots, system,
    terminals, tokens, trays, workspaces,
};
use super::{
    project_commands, project_config, project_events, project_jobs, project_mcp, project_plugins,
    project_skills, project_transfer, ui,
};
use crate::access::Scope::{Collaborator, Owner, Viewer};
use crate::base::limits;
use crate::http::Method::{Delete, Get, Patch, Post, Put};
use crate::http::route::{Handler, RouteTable};
use crate::http::{ApprovalPolicy, Auth, Class, Effect, Method, Route};
use crate::project::portable::BODY_BYTES as FILES_BODY_BYTES;

/// Maximum size of a proxied body. The body is streamed; prompts can contain pictures and documents.
const PROXY_BODY_BYTES: usize = 1 << 30;

const fn read(pattern: &'static str, auth: Auth, handler: Handler<Ctx>) -> Route<Ctx> {
    Route {
        method: Get,
        pattern,
        auth,
        gate: ApprovalPolicy::Open,
        effect: Effect::Read,
        class: Class::Short,
        handler,
        fast_path: None,
    }
}

const fn write(
    method: Method,
    pattern: &'static str,
    auth: Auth,
    gate: ApprovalPolicy,
    handler: Handler<Ctx>,
) -> Route<Ctx> {
    Route {
        method,
        pattern,
        auth,
        gate,
        effect: Effect::Write,
        class: Class::Short,
        handler,
        fast_path: None,
    }
}

const fn run(pattern: &'static str, gate: ApprovalPolicy, handler: Handler<Ctx>) -> Route<Ctx> {
    let auth = Auth::Scope(Collaborator);
    Route {
        method: Post,
        pattern,
        auth,
        gate,
        effect: Effect::Write,
        class: Class::Run,
        handler,
        fast_path: None,
    }
}

/// Returns a route that reads files which the workspace's programs can make large.
const fn files(pattern: &'static str, handler: Handler<Ctx>) -> Route<Ctx> {
    let (gate, effect) = (ApprovalPolicy::Open, Effect::Read);
    Route { method: Get, pattern, auth: VIEWER, gate, effect, class: Class::Files, handler, fast_path: None }
}

/// Returns a route that ends other work.
const fn end(
    method: Method,
    pattern: &'static str,
    auth: Auth,
    gate: ApprovalPolicy,
    handler: Handler<Ctx>,
) -> Route<Ctx> {
    Route { method, pattern, auth, gate, effect: Effect::Write, class: Class::End, handler, fast_path: None }
}

/// Returns a route for a write of the project API, which needs approval for all senders, including owners.
const fn gated(
    method: Method,
    pattern: &'static str,
    action: &'static str,
    handler: Handler<Ctx>,
) -> Route<Ctx> {
    let (auth, gate) = (COLLABORATOR, ApprovalPolicy::Everyone(action));
    Route {
        method,
        pattern,
        auth,
        gate,
        effect: Effect::Write,
        class: Class::Files,
        handler,
        fast_path: None,
    }
}

const SNAPSHOT: ApprovalPolicy = ApprovalPolicy::Collaborators("workspace.snapshot");

const RUN: ApprovalPolicy = ApprovalPolicy::Collaborators("workspace.run");

/// Returns a route that may wait for a long time.
const fn stream(
    method: Method,
    pattern: &'static str,
    effect: Effect,
    gate: ApprovalPolicy,
    handler: Handler<Ctx>,
) -> Route<Ctx> {
    let auth = match effect {
        Effect::Read => VIEWER,
        Effect::Write => COLLABORATOR,
    };
    Route { method, pattern, auth, gate, effect, class: Class::Stream, handler, fast_path: None }
}

/// Returns a route that accepts a body of any size. The handler enforces the limit.
const fn upload(pattern: &'static str, handler: Handler<Ctx>) -> Route<Ctx> {
    let (auth, gate, effect) = (OWNER, ApprovalPolicy::Open, Effect::Write);
    Route { method: Post, pattern, auth, gate, effect, class: Class::Upload, handler, fast_path: None }
}

/// Returns a route that is proxied to OpenCode. OpenCode itself asks for permission to run programs. A request that
/// makes it run a program chosen by the caller needs approval.
const fn proxy(method: Method, pattern: &'static str, handler: Handler<Ctx>) -> Route<Ctx> {
    let (auth, effect) = match method {
        Get => (VIEWER, Effect::Read),
        _ => (COLLABORATOR, Effect::Write),
    };
    Route {
        method,
        pattern,
        auth,
        gate: ApprovalPolicy::Forwarded,
        effect,
        class: Class::Proxy,
        handler,
        fast_path: None,
    }
}

const VIEWER: Auth = Auth::Scope(Viewer);
const OWNER: Auth = Auth::Scope(Owner);
const COLLABORATOR: Auth = Auth::Scope(Collaborator);

/// Returns the body limit for a path, or the largest limit if no route matches.
pub fn body_cap(method: &str, path: &str) -> usize {
    let mut caps = TABLE.rows(path).into_iter().map(|route| match route.method.as_str() == method {
        true => cap_of(route),
        false => limits::JSON_BODY_BYTES,
    });
    let Some(first) = caps.next() else { return limits::EXEC_BODY_BYTES };
    caps.fold(first, usize::max)
}

/// Returns the body limit of a route.
pub(super) fn cap_of(route: &Route<Ctx>) -> usize {
    match route.class {
        Class::Short | Class::End => limits::JSON_BODY_BYTES,
        Class::Files => FILES_BODY_BYTES,
        Class::Run | Class::Stream => limits::EXEC_BODY_BYTES,
        Class::Upload => usize::MAX,
        Class::Proxy => PROXY_BODY_BYTES,
    }
}

/// The index of [`ROUTES`], in which dispatch finds routes.
pub(super) static TABLE: LazyLock<RouteTable<Ctx>> = LazyLock::new(|| RouteTable::new(ROUTES));

/// All endpoints. On host workspaces, only owners may run commands and read their output. `authorization` enforces
/// that, because it depends on the workspace.
pub static ROUTES: &[Route<Ctx>] = &[
    // OpenWork: the server itself.
    read("/health", Auth::Public, system::health),
    read("/w/:id/health", Auth::Public, system::health),
    read("/status", VIEWER, system::status),
    read("/w/:id/status", VIEWER, system::mounted_status),
    read("/capabilities", VIEWER, system::capabilities),
    read("/w/:id/capabilities", VIEWER, system::capabilities),
    read("/whoami", VIEWER, system::whoami),
    read("/workspaces", VIEWER, system::list_workspaces),
    read("/w/:id/workspaces", VIEWER, system::mounted_list),
    // The route changes only memory, so a read-only server allows it, as the OpenWork server does.
    Route {
        method: Post,
        pattern: "/workspaces/:id/activate",
        auth: Auth::Host,
        gate: ApprovalPolicy::Open,
        effect: Effect::Read,
        class: Class::Short,
        handler: system::activate,
        fast_path: None,
    },
    // The handler may resolve a host name, which takes time.
    Route {
        method: Patch,
        pattern: "/workspaces/:id",
        auth: Auth::Host,
        gate: ApprovalPolicy::Open,
        effect: Effect::Write,
        class: Class::Proxy,
        handler: system::connect,
        fast_path: None,
    },
    read("/workspace/:id/audit", VIEWER, audit::of_workspace),
    read("/audit", Auth::Host, audit::of_server),
    read("/tokens", Auth::Host, tokens::list),
    write(Post, "/tokens", Auth::Host, ApprovalPolicy::Open, tokens::create),
    write(Delete, "/tokens/:id", Auth::Host, ApprovalPolicy::Open, tokens::delete),
    read("/approvals", Auth::Host, approvals::list),
    Route {
        method: Get,
        pattern: "/approvals/events",
        auth: Auth::Host,
        gate: ApprovalPolicy::Open,
        effect: Effect::Read,
        class: Class::Stream,
        handler: approvals::events,
        fast_path: None,
    },
    read("/approvals/:id", Auth::Host, approvals::get),
    // A decision changes nothing by itself: the approved request was checked against read-only mode when it arrived.
    Route {
        method: Post,
        pattern: "/approvals/:id",
        auth: Auth::Host,
        gate: ApprovalPolicy::Open,
        effect: Effect::Read,
        class: Class::Short,
        handler: approvals::answer,
        fast_path: None,
    },
    read("/ui", Auth::Public, ui::page),
    read("/w/:id/ui", Auth::Public, ui::mounted_page),
    read("/ui/assets/toy.css", Auth::Public, ui::style),
    read("/ui/assets/toy.js", Auth::Public, ui::script),
    // OpenWork: files that users send to agents, and files that agents produce.
    Route {
        method: Post,
        pattern: "/workspace/:id/inbox",
        auth: COLLABORATOR,
        gate: ApprovalPolicy::Everyone("workspace.inbox.upload"),
        effect: Effect::Write,
        class: Class::Upload,
        handler: trays::upload,
        fast_path: None,
    },
    files("/workspace/:id/inbox", trays::inbox),
    files("/workspace/:id/inbox/:inboxId", trays::inbox_item),
    files("/workspace/:id/artifacts", trays::artifacts),
    files("/workspace/:id/artifacts/:artifactId", trays::artifact),
    // OpenWork: the OpenCode of a workspace. The path with a trailing slash is a route of its own.
    proxy(Get, "/opencode", opencode::proxy),
    proxy(Post, "/opencode", opencode::proxy),
    proxy(Put, "/opencode", opencode::proxy),
    proxy(Patch, "/opencode", opencode::proxy),
    proxy(Delete, "/opencode", opencode::proxy),
    proxy(Get, "/opencode/*", opencode::proxy),
    proxy(Post, "/opencode/*", opencode::proxy),
    proxy(Put, "/opencode/*", opencode::proxy),
    proxy(Patch, "/opencode/*", opencode::proxy),
    proxy(Delete, "/opencode/*", opencode::proxy),
    proxy(Get, "/w/:id/opencode", opencode::proxy),
    proxy(Post, "/w/:id/opencode", opencode::proxy),
    proxy(Put, "/w/:id/opencode", opencode::proxy),
    proxy(Patch, "/w/:id/opencode", opencode::proxy),
    proxy(Delete, "/w/:id/opencode", opencode::proxy),
    proxy(Get, "/w/:id/opencode/*", opencode::proxy),
    proxy(Post, "/w/:id/opencode/*", opencode::proxy),
    proxy(Put, "/w/:id/opencode/*", opencode::proxy),
    proxy(Patch, "/w/:id/opencode/*", opencode::proxy),
    proxy(Delete, "/w/:id/opencode/*", opencode::proxy),
    // An alias that OpenWork clients use.
    proxy(Get, "/workspace/:id/opencode", opencode::proxy),
    proxy(Post, "/workspace/:id/opencode", opencode::proxy),
    proxy(Put, "/workspace/:id/opencode", opencode::proxy),
    proxy(Patch, "/workspace/:id/opencode", opencode::proxy),
    proxy(Delete, "/workspace/:id/opencode", opencode::proxy),
    proxy(Get, "/workspace/:id/opencode/*", opencode::proxy),
    proxy(Post, "/workspace/:id/opencode/*", opencode::proxy),
    proxy(Put, "/workspace/:id/opencode/*", opencode::proxy),
    proxy(Patch, "/workspace/:id/opencode/*", opencode::proxy),
    proxy(Delete, "/workspace/:id/opencode/*", opencode::proxy),
    // The route changes no file of the server, so a read-only server allows it, as the OpenWork server does.
    Route {
        method: Post,
        pattern: "/workspace/:id/engine/reload",
        auth: COLLABORATOR,
        gate: ApprovalPolicy::Everyone("engine.reload"),
        effect: Effect::Read,
        class: Class::Proxy,
        handler: opencode::reload,
        fast_path: None,
    },
    // OpenWork: files that agents read in a workspace.
    Route {
        fast_path: Some(project_config::get_from_memory),
        ..files("/workspace/:id/config", project_config::get)
    },
    gated(Patch, "/workspace/:id/config", "config.patch", project_config::patch),
    read("/workspace/:id/events", VIEWER, project_events::list),
    stream(Get, "/workspace/:id/events/stream", Effect::Read, ApprovalPolicy::Open, project_events::stream),
    files("/workspace/:id/export", project_transfer::export),
    gated(Post, "/workspace/:id/import", "config.import", project_transfer::import),
    files("/workspace/:id/plugins", project_plugins::get),
    gated(Post, "/workspace/:id/plugins", "plugins.add", project_plugins::add),
    gated(Delete, "/workspace/:id/plugins/*name", "plugins.remove", project_plugins::remove),
    files("/workspace/:id/skills", project_skills::list),
    files("/workspace/:id/skills/*name", project_skills::get),
    gated(Post, "/workspace/:id/skills", "skills.upsert", project_skills::put),
    gated(Delete, "/workspace/:id/skills/*name", "skills.delete", project_skills::delete),
    files("/workspace/:id/mcp", project_mcp::get),
    gated(Post, "/workspace/:id/mcp", "mcp.add", project_mcp::add),
    gated(Delete, "/workspace/:id/mcp/:name", "mcp.remove", project_mcp::remove),
    files("/workspace/:id/commands", project_commands::list),
    gated(Post, "/workspace/:id/commands", "commands.upsert", project_commands::put),
    gated(Delete, "/workspace/:id/commands/*name", "commands.delete", project_commands::delete),
    files("/workspace/:id/scheduler/jobs", project_jobs::list),
    gated(Delete, "/workspace/:id/scheduler/jobs/:name", "scheduler.delete", project_jobs::delete),
    // The OpenCode that the server manages.
    stream(Get, "/api/opencode/events", Effect::Read, ApprovalPolicy::Open, managed::events),
    // sandboxed.sh: workspaces.
    read("/api/health", Auth::Public, system::api_health),
    // The route changes nothing persistent.
    Route {
        method: Post,
        pattern: "/api/auth/login",
        auth: Auth::Public,
        gate: ApprovalPolicy::Open,
        effect: Effect::Read,
        class: Class::Short,
        handler: login::log_in,
        fast_path: None,
    },
    Route {
        method: Get,
        pattern: "/api/doctor",
        auth: VIEWER,
        gate: ApprovalPolicy::Open,
        effect: Effect::Read,
        class: Class::Run,
        handler: doctor::report,
        fast_path: None,
    },
    read("/api/workspaces", VIEWER, workspaces::list),
    write(Post, "/api/workspaces", OWNER, ApprovalPolicy::Open, workspaces::create),
    read("/api/workspaces/:id", VIEWER, workspaces::get),
    write(Put, "/api/workspaces/:id", OWNER, ApprovalPolicy::Open, workspaces::update),
    end(Delete, "/api/workspaces/:id", OWNER, ApprovalPolicy::Open, workspaces::delete),
    write(
        Post,
        "/api/workspaces/:id/build",
        COLLABORATOR,
        ApprovalPolicy::Collaborators("workspace.build"),
        workspaces::build,
    ),
    stream(
        Get,
        "/api/workspaces/:id/build/events",
        Effect::Read,
        ApprovalPolicy::Open,
        workspaces::build_events,
    ),
    // A request that ends work needs no approval.
    end(Delete, "/api/workspaces/:id/build", COLLABORATOR, ApprovalPolicy::Open, workspaces::cancel_build),
    run("/api/workspaces/:id/exec", ApprovalPolicy::Collaborators("workspace.exec"), workspaces::exec),
    run("/api/workspaces/:id/runs", RUN, runs::create),
    read("/api/workspaces/:id/runs", VIEWER, runs::list),
    read("/api/workspaces/:id/runs/:run", VIEWER, runs::get),
    // A request that ends work needs no approval.
    end(Delete, "/api/workspaces/:id/runs/:run", COLLABORATOR, ApprovalPolicy::Open, runs::delete),
    write(Post, "/api/workspaces/:id/runs/:run/signal", COLLABORATOR, ApprovalPolicy::Open, runs::signal),
    stream(Post, "/api/workspaces/:id/runs/:run/stdin", Effect::Write, RUN, runs::stdin),
    stream(Post, "/api/workspaces/:id/runs/:run/wait", Effect::Read, ApprovalPolicy::Open, runs::wait),
    stream(Get, "/api/workspaces/:id/runs/:run/output", Effect::Read, ApprovalPolicy::Open, runs::output),
    stream(Get, "/api/workspaces/:id/runs/:run/events", Effect::Read, ApprovalPolicy::Open, runs::events),
    run(
        "/api/workspaces/:id/rerun-init",
        ApprovalPolicy::Collaborators("workspace.rerun-init"),
        workspaces::rerun_init,
    ),
    Route {
        method: Post,
        pattern: "/api/workspaces/:id/sync",
        auth: COLLABORATOR,
        gate: ApprovalPolicy::Collaborators("workspace.sync"),
        effect: Effect::Write,
        class: Class::Files,
        handler: workspaces::sync,
        fast_path: None,
    },
    run("/api/workspaces/:id/start", ApprovalPolicy::Collaborators("workspace.start"), workspaces::start),
    end(
        Post,
        "/api/workspaces/:id/stop",
        COLLABORATOR,
        ApprovalPolicy::Collaborators("workspace.stop"),
        workspaces::stop,
    ),
    read("/api/workspaces/:id/snapshots", VIEWER, snapshots::list),
    run("/api/workspaces/:id/snapshots", SNAPSHOT, snapshots::take),
    write(Delete, "/api/workspaces/:id/snapshots/:snapshot", COLLABORATOR, SNAPSHOT, snapshots::delete),
    run("/api/workspaces/:id/snapshots/:snapshot/restore", SNAPSHOT, snapshots::restore),
    Route {
        method: Post,
        pattern: "/api/workspaces/:id/clone",
        auth: OWNER,
        gate: ApprovalPolicy::Open,
        effect: Effect::Write,
        class: Class::Run,
        handler: snapshots::clone,
        fast_path: None,
    },
    files("/api/workspaces/:id/debug", workspaces::debug),
    read("/api/workspaces/:id/resources", VIEWER, workspaces::resources),
    files("/api/workspaces/:id/init-log", workspaces::init_log),
    // Terminals. On host workspaces, only owners may use them.
    Route {
        method: Get,
        pattern: "/api/workspaces/:id/shell",
        auth: COLLABORATOR,
        gate: TERMINAL,
        effect: Effect::Write,
        class: Class::Run,
        handler: terminals::shell,
        fast_path: None,
    },
    read("/api/workspaces/:id/terminals", VIEWER, terminals::list),
    run("/api/workspaces/:id/terminals", TERMINAL, terminals::create),
    read("/api/workspaces/:id/terminals/:terminal", VIEWER, terminals::get),
    end(Delete, "/api/workspaces/:id/terminals/:terminal", COLLABORATOR, TERMINAL, terminals::delete),
    write(Post, "/api/workspaces/:id/terminals/:terminal/resize", COLLABORATOR, TERMINAL, terminals::resize),
    run("/api/workspaces/:id/terminals/:terminal/input", TERMINAL, terminals::input),
    read("/api/workspaces/:id/terminals/:terminal/screen", VIEWER, terminals::screen),
    write(Get, "/api/workspaces/:id/terminals/:terminal/ws", COLLABORATOR, TERMINAL, terminals::socket),
    // Base images.
    read("/api/images", VIEWER, images::list),
    upload("/api/images", images::create),
    stream(Get, "/api/images/events", Effect::Read, ApprovalPolicy::Open, images::events),
    read("/api/images/:id", VIEWER, images::get),
    Route {
        method: Delete,
        pattern: "/api/images/:id",
        auth: OWNER,
        gate: ApprovalPolicy::Open,
        effect: Effect::Write,
        class: Class::Run,
        handler: images::delete,
        fast_path: None,
    },
    // sandboxed.sh: the library.
    read("/api/library/workspace-template", VIEWER, library::templates),
    read("/api/library/workspace-template/:name", VIEWER, library::template),
    write(Put, "/api/library/workspace-template/:name", OWNER, ApprovalPolicy::Open, library::put_template),
    write(
        Delete,
        "/api/library/workspace-template/:name",
        OWNER,
        ApprovalPolicy::Open,
        library::delete_template,
    ),
    read("/api/library/skill", VIEWER, library::skills),
    read("/api/library/skill/:name", VIEWER, library::skill),
    write(Put, "/api/library/skill/:name", OWNER, ApprovalPolicy::Open, library::put_skill),
    write(Delete, "/api/library/skill/:name", OWNER, ApprovalPolicy::Open, library::delete_skill),
    upload("/api/library/skill/import", library::import_skill),
    read("/api/library/skill/:name/files/*path", VIEWER, library::skill_file),
    write(Put, "/api/library/skill/:name/files/*path", OWNER, ApprovalPolicy::Open, library::put_skill_file),
    write(
        Delete,
        "/api/library/skill/:name/files/*path",
        OWNER,
        ApprovalPolicy::Open,
        library::delete_skill_file,
    ),
    read("/api/library/skills", VIEWER, library::skills),
    read("/api/library/skills/:name", VIEWER, library::skill),
    write(Put, "/api/library/skills/:name", OWNER, ApprovalPolicy::Open, library::put_skill),
    write(Delete, "/api/library/skills/:name", OWNER, ApprovalPolicy::Open, library::delete_skill),
    upload("/api/library/skills/import", library::import_skill),
    read("/api/library/skills/:name/references/*path", VIEWER, library::skill_file),
    write(
        Put,
        "/api/library/skills/:name/references/*path",
        OWNER,
        ApprovalPolicy::Open,
        library::put_skill_file,
    ),
    write(
        Delete,
        "/api/library/skills/:name/references/*path",
        OWNER,
        ApprovalPolicy::Open,
        library::delete_skill_file,
    ),
    read("/api/library/tool", VIEWER, library::texts),
    read("/api/library/tool/:name", VIEWER, library::text),
    write(Put, "/api/library/tool/:name", OWNER, ApprovalPolicy::Open, library::put_text),
    write(Delete, "/api/library/tool/:name", OWNER, ApprovalPolicy::Open, library::delete_text),
    read("/api/library/init-script", VIEWER, library::texts),
    read("/api/library/init-script/:name", VIEWER, library::text),
    write(Put, "/api/library/init-script/:name", OWNER, ApprovalPolicy::Open, library::put_text),
    write(Delete, "/api/library/init-script/:name", OWNER, ApprovalPolicy::Open, library::delete_text),
    read("/api/library/command", VIEWER, library::texts),
    read("/api/library/command/:name", VIEWER, library::text),
    write(Put, "/api/library/command/:name", OWNER, ApprovalPolicy::Open, library::put_text),
    write(Delete, "/api/library/command/:name", OWNER, ApprovalPolicy::Open, library::delete_text),
    read("/api/library/agent", VIEWER, library::texts),
    read("/api/library/agent/:name", VIEWER, library::text),
    write(Put, "/api/library/agent/:name", OWNER, ApprovalPolicy::Open, library::put_text),
    write(Delete, "/api/library/agent/:name", OWNER, ApprovalPolicy::Open, library::delete_text),
    read("/api/library/plugins", VIEWER, library::plugins),
    write(Put, "/api/library/plugins", OWNER, ApprovalPolicy::Open, library::put_plugins),
    read("/api/library/mcps", VIEWER, library::mcps),
    write(Put, "/api/library/mcps", OWNER, ApprovalPolicy::Open, library::put_mcps),
];

/// The approval policy for input to a terminal, because such input runs commands.
const TERMINAL: ApprovalPolicy = ApprovalPolicy::Collaborators("workspace.terminal");
