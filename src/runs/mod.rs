//! Commands: validation, timeouts (which [`mod@crate::proc::pump`] enforces), kept output, and the table of all runs. Starts processes through
//! [`crate::proc::Launcher`]; does not depend on containers, workspaces or HTTP.
//!
//! In reading order: `request` (bodies of requests), `run` (state of a run), `table` (all runs), `live` (from start to
//! end), `exec` (output in one response), `output_buffer`, `spool`, `track`, `disk_budget` (output on disk), `follow`,
//! `keeper` (runs that outlive the server), `input`, `host`, `shell_free`, `user`.

pub mod disk_budget;
pub mod exec;
pub mod follow;
pub mod host;
pub mod input;
pub mod keeper;
mod keeper_control;
pub mod live;
pub mod output_buffer;
pub mod request;
pub mod run;
pub mod shell_free;
pub mod signal;
pub mod spool;
pub mod table;
pub mod track;
pub mod user;

pub use exec::ExecResult;
pub use host::HostLauncher;
pub use live::Live;
pub use request::ExecRequest;
pub use run::{Run, RunStatus, RunView};
pub use table::{ActiveRun, Runs};
