//! Commands: what may run, how long, what is kept of their output, and which run at the moment. Asks a
//! [`crate::proc::Launcher`] for the process; knows neither containers nor workspaces nor HTTP.

pub mod exec;
pub mod host;
pub mod plain;
pub mod table;
pub mod terminal;

pub use exec::{ExecRequest, ExecResult, run};
pub use host::HostLauncher;
pub use table::{Running, Runs};
