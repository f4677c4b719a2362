//! The two APIs: the route table, the dispatch, one file per resource. A handler parses, calls one service and shapes
//! the answer: no I/O, no locks, no status numbers.

mod approval_request;
pub mod approvals;
pub mod audit;
pub mod authorization;
pub mod dispatch;
pub mod doctor;
pub mod follow;
pub mod images;
pub mod library;
pub mod login;
pub mod managed;
pub mod opencode;
pub mod opencode_policy;
mod project;
pub mod project_commands;
pub mod project_config;
pub mod project_events;
pub mod project_jobs;
pub mod project_mcp;
pub mod project_plugins;
pub mod project_skills;
pub mod project_transfer;
pub mod request_log;
pub mod routes;
pub mod runs;
pub mod snapshots;
pub mod system;
pub mod terminal_socket;
pub mod terminals;
pub mod tokens;
pub mod topic;
pub mod trays;
pub mod tunnel;
pub mod ui;
mod view;
pub mod workspaces;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::access::{ApprovalSettings, Approvals, Audit, Credentials, Scope};
use serde_json::Value;

use crate::base::pool::{Permit, Pool};
use crate::base::shares::Party;
use crate::base::{Code, Error, Result};
use crate::doctor::Doctor;
use crate::events::{Bus, Topic};
use crate::http::client::{Disconnects, Tickets};
use crate::lifecycle::Lifecycle;
use crate::opencode::{Managed, Upstreams};
use crate::project::Project;
use request_log::RequestLog;

/// What handlers and dispatch work with; made once by the server.
pub struct Ctx {
    /// What can happen to workspaces.
    pub lifecycle: Arc<Lifecycle>,
    /// What agents read in workspaces.
    pub project: Arc<Project>,
    /// What this machine can do.
    pub doctor: Arc<Doctor>,
    /// The tokens.
    pub credentials: Arc<Credentials>,
    /// How gated writes are approved.
    pub approval: ApprovalSettings,
    /// Writes that wait for a person.
    pub approvals: Approvals,
    /// Who did what.
    pub audit: Audit,
    /// Refuse writes.
    pub read_only: bool,
    /// Origins that browsers may call from.
    pub cors_origins: Vec<String>,
    /// For `/status`.
    pub authorized_roots: Vec<PathBuf>,
    /// For `/status`.
    pub config_path: Option<PathBuf>,
    /// The first real address: host and port, or a Unix socket's path and 0.
    pub address: (String, u16),
    /// What happens, for followers.
    pub bus: Arc<Bus>,
    /// Tells when a client has gone.
    pub gone: Disconnects,
    /// Sockets to hand over to handlers.
    pub tickets: Tickets,
    /// Who is connected, for `/status`.
    pub connections: Box<dyn Fn() -> Value + Send + Sync>,
    /// For `/capabilities`.
    pub advertised: AdvertisedCapabilities,
    /// The lines of requests in the log.
    pub request_log: RequestLog,
    /// When the server started.
    pub started: Instant,
    /// The workers of [`crate::http::Class::Run`].
    pub run_workers: Pool,
    /// The workers of [`crate::http::Class::Stream`].
    pub stream_workers: Arc<Pool>,
    /// The workers of [`crate::http::Class::Proxy`].
    pub proxy_workers: Pool,
    /// The way to OpenCode.
    pub upstreams: Arc<Upstreams>,
    /// The OpenCode that the server runs.
    pub managed: Option<Arc<Managed>>,
    /// What happens to it.
    pub managed_events: Arc<Topic>,
    /// Who may answer OpenCode's permission requests.
    pub permission_replies: Scope,
    /// Who may make OpenCode on a host workspace run programs, where no person is asked.
    pub opencode_shell: Scope,
    /// The workers of [`crate::http::Class::Files`].
    pub file_workers: Pool,
    /// The workers for bodies and answers that a slow client could hold up.
    pub transfers: Pool,
    /// The workers of [`crate::http::Class::End`].
    pub end_workers: Pool,
}

impl Ctx {
    /// A worker for a command.
    ///
    /// # Errors
    /// `Busy`, `OverShare`.
    pub fn run_permit(&self, party: Party) -> Result<Permit> {
        let busy = "All run workers are taken; try again, or start berth with a larger --max-runs";
        reserve(&self.run_workers, party, "run workers (--max-runs)", busy)
    }

    /// A worker for a wait or a stream.
    ///
    /// # Errors
    /// `Busy`, `OverShare`.
    pub fn stream_permit(&self, party: Party) -> Result<Permit> {
        reserve_stream(&self.stream_workers, party)
    }

    /// A worker for a request to an OpenCode.
    ///
    /// # Errors
    /// `Busy`, `OverShare`.
    pub fn proxy_permit(&self, party: Party) -> Result<Permit> {
        let busy =
            "Too many requests wait for OpenCode; try again, or start berth with a larger --max-proxied";
        reserve(&self.proxy_workers, party, PROXIED, busy)
    }

    /// A worker that reads or writes a workspace's files.
    ///
    /// # Errors
    /// `Busy`, `OverShare`.
    pub fn files_permit(&self, party: Party) -> Result<Permit> {
        let busy = "Too many requests read and write workspaces' files; try again";
        reserve(&self.file_workers, party, "requests for workspaces' files", busy)
    }

    /// A worker for a large body or answer.
    ///
    /// # Errors
    /// `Busy`, `OverShare`.
    pub fn transfer_permit(&self, party: Party) -> Result<Permit> {
        let busy = "Too many large bodies and answers are on their way; try again";
        reserve(&self.transfers, party, "large bodies and answers", busy)
    }

    /// A worker for a request that ends something.
    ///
    /// # Errors
    /// `Busy`, `OverShare`.
    pub fn end_permit(&self, party: Party) -> Result<Permit> {
        let busy = "Too many requests to end something wait already; try again";
        reserve(&self.end_workers, party, "requests that end something", busy)
    }
}

/// What proxied requests are called where one is refused.
const PROXIED: &str = "requests to OpenCode (--max-proxied)";

/// The same, from a thread that has no context.
fn reserve_stream(workers: &Pool, party: Party) -> Result<Permit> {
    let busy = "All stream workers are taken; try again, or start berth with a larger --max-streams";
    reserve(workers, party, "stream workers (--max-streams)", busy)
}

fn reserve(workers: &Pool, party: Party, what: &str, busy: &str) -> Result<Permit> {
    workers.reserve(party).map_err(|refused| refused.error(what, || Error::new(Code::Busy, busy)))
}

/// Facts for `GET /capabilities` that only the start knows.
#[derive(Clone, Debug)]
pub struct AdvertisedCapabilities {
    /// Inbox uploads are taken.
    pub inbox_enabled: bool,
    /// Largest upload, in bytes.
    pub inbox_max_bytes: u64,
    /// Outbox files are listed.
    pub outbox_enabled: bool,
    /// The page at `/ui` is served.
    pub toy_ui: bool,
    /// We run inside a sandbox.
    pub sandbox_enabled: bool,
    /// `none`, `docker` or `container`.
    pub sandbox_backend: String,
    /// `berth`, where the sandbox is one of ours.
    pub sandbox_engine: Option<&'static str>,
    /// `sandbox-headless`, `host-interactive` or `client-interactive`.
    pub browser_provider: Option<String>,
}

/// The version in replies.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
