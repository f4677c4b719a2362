//! Both APIs: the route table, dispatch, and one file per resource. A handler parses the request, calls a service
//! and builds the answer. The logic and its locks are in the services.

mod approval_request;
pub mod approvals;
pub mod audit;
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
mod viewer_redaction;
pub mod workspace_access;
pub mod workspaces;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::access::{ApprovalSettings, Approvals, Audit, Credentials, Scope};
use serde_json::Value;

use crate::base::pool::{Permit, Pool};
use crate::base::shares::ShareHolder;
use crate::base::{Code, Error, Result};
use crate::doctor::Doctor;
use crate::events::{Bus, Topic};
use crate::http::client::{Disconnects, Tickets};
use crate::lifecycle::Lifecycle;
use crate::opencode::{Managed, Upstreams};
use crate::project::Project;
use request_log::RequestLog;

/// The services and the configuration that dispatch and handlers use. The server creates it once.
pub struct Ctx {
    pub lifecycle: Arc<Lifecycle>,
    pub project: Arc<Project>,
    pub doctor: Arc<Doctor>,
    pub credentials: Arc<Credentials>,
    pub approval: ApprovalSettings,
    pub approvals: Approvals,
    pub audit: Audit,
    /// Whether the server refuses writes.
    pub read_only: bool,
    /// The origins from which browsers may call the API.
    pub cors_origins: Vec<String>,
    pub authorized_roots: Vec<PathBuf>,
    pub config_path: Option<PathBuf>,
    /// The first bound address: host and port, or the path of a Unix socket and 0.
    pub address: (String, u16),
    pub bus: Arc<Bus>,
    pub disconnects: Disconnects,
    pub tickets: Tickets,
    /// Returns the open connections, for `/status`.
    pub connections: Box<dyn Fn() -> Value + Send + Sync>,
    pub advertised: AdvertisedCapabilities,
    pub request_log: RequestLog,
    pub started: Instant,
    /// The workers of [`crate::http::Class::Run`].
    pub run_workers: Pool,
    /// The workers of [`crate::http::Class::Stream`].
    pub stream_workers: Arc<Pool>,
    /// The workers of [`crate::http::Class::Proxy`].
    pub proxy_workers: Pool,
    /// The connections to OpenCode.
    pub upstreams: Arc<Upstreams>,
    /// The OpenCode that the server manages, if there is one.
    pub managed: Option<Arc<Managed>>,
    /// The events of the managed OpenCode.
    pub managed_events: Arc<Topic>,
    /// The scope that is required to answer OpenCode's permission requests.
    pub permission_replies: Scope,
    /// The scope that is required to make OpenCode on a host workspace run programs without approval.
    pub opencode_shell: Scope,
    /// The workers of [`crate::http::Class::Files`].
    pub file_workers: Pool,
    /// The workers for request bodies and answers that a slow client could block.
    pub transfers: Pool,
    /// The workers of [`crate::http::Class::End`].
    pub end_workers: Pool,
}

impl Ctx {
    /// Returns a permit for a run worker.
    ///
    /// # Errors
    /// `Busy` if no worker is free, `OverShare` if the party uses its share.
    pub fn run_permit(&self, party: ShareHolder) -> Result<Permit> {
        let busy = "All run workers are busy; try again, or start berth with a larger --max-runs";
        reserve(&self.run_workers, party, "run workers (--max-runs)", busy)
    }

    /// Returns a permit for a stream worker.
    ///
    /// # Errors
    /// `Busy` if no worker is free, `OverShare` if the party uses its share.
    pub fn stream_permit(&self, party: ShareHolder) -> Result<Permit> {
        reserve_stream(&self.stream_workers, party)
    }

    /// Returns a permit for a proxy worker.
    ///
    /// # Errors
    /// `Busy` if no worker is free, `OverShare` if the party uses its share.
    pub fn proxy_permit(&self, party: ShareHolder) -> Result<Permit> {
        let busy = "Too many requests are waiting for OpenCode; try again, or start berth with a larger --max-proxied";
        reserve(&self.proxy_workers, party, PROXIED, busy)
    }

    /// Returns a permit for a file worker.
    ///
    /// # Errors
    /// `Busy` if no worker is free, `OverShare` if the party uses its share.
    pub fn files_permit(&self, party: ShareHolder) -> Result<Permit> {
        let busy = "Too many requests are accessing workspace files; try again";
        reserve(&self.file_workers, party, "requests for workspace files", busy)
    }

    /// Returns a permit for a transfer worker.
    ///
    /// # Errors
    /// `Busy` if no worker is free, `OverShare` if the party uses its share.
    pub fn transfer_permit(&self, party: ShareHolder) -> Result<Permit> {
        let busy = "Too many large bodies and answers are being transferred; try again";
        reserve(&self.transfers, party, "large bodies and answers", busy)
    }

    /// Returns a permit for a worker that ends other work.
    ///
    /// # Errors
    /// `Busy` if no worker is free, `OverShare` if the party uses its share.
    pub fn end_permit(&self, party: ShareHolder) -> Result<Permit> {
        let busy = "Too many requests to end runs or terminals are waiting; try again";
        reserve(&self.end_workers, party, "requests to end runs or terminals", busy)
    }
}

/// The name of the share of proxy workers in error messages.
const PROXIED: &str = "requests to OpenCode (--max-proxied)";

/// Returns a permit for a stream worker, like [`Ctx::stream_permit`], on a thread that has no [`Ctx`].
fn reserve_stream(workers: &Pool, party: ShareHolder) -> Result<Permit> {
    let busy = "All stream workers are taken; try again, or start berth with a larger --max-streams";
    reserve(workers, party, "stream workers (--max-streams)", busy)
}

fn reserve(workers: &Pool, party: ShareHolder, what: &str, busy: &str) -> Result<Permit> {
    workers.reserve(party).map_err(|refused| refused.error(what, || Error::new(Code::Busy, busy)))
}

/// Facts for `GET /capabilities` that do not change after start-up.
#[derive(Clone, Debug)]
pub struct AdvertisedCapabilities {
    /// Whether the server accepts uploads to the inbox.
    pub inbox_enabled: bool,
    /// Maximum size of an upload, in bytes.
    pub inbox_max_bytes: u64,
    /// Whether the server lists files in the outbox.
    pub outbox_enabled: bool,
    /// Whether the server serves the page at `/ui`.
    pub toy_ui: bool,
    /// Whether the server runs inside a sandbox.
    pub sandbox_enabled: bool,
    /// The kind of that sandbox: `none`, `docker` or `container`.
    pub sandbox_backend: String,
    /// `berth` if that sandbox is a berth container.
    pub sandbox_engine: Option<&'static str>,
    /// The provider of a browser: `sandbox-headless`, `host-interactive` or `client-interactive`.
    pub browser_provider: Option<String>,
}

/// The version of the server in answers.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
