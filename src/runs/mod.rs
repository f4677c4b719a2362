//! Commands: what may run, how long, what is kept of their output, and which run at the moment. Asks a
//! [`crate::proc::Launcher`] for the process; knows neither containers nor workspaces nor HTTP.
//!
//! In reading order: `request` (what is asked for), `run` (what is known of a run), `table` (all of them), `live` (from
//! start to end), `exec` (output into one answer), `spool`, `track`, `room` (output on disk), `follow`, `keeper`
//! (runs that outlive the server), `input`, `host`, `plain`, `user`.

pub mod disk_budget;
pub mod exec;
pub mod follow;
pub mod host;
pub mod input;
pub mod keeper;
mod kept;
pub mod live;
pub mod output_buffer;
pub mod plain;
pub mod request;
pub mod run;
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
