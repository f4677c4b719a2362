//! The container engine: nspawn, the agent (PID 1 of each container), networks and bind mounts. It does not depend
//! on workspaces, runs or HTTP.

mod activity;
pub mod agent;
mod agent_socket;
pub mod binds;
pub mod container;
pub mod enclose;
pub mod engine;
mod intruders;
pub mod network;
mod pending_process;
mod prepare;
mod process;
pub mod protocol;
mod quiesce;
mod running;
mod running_slot;
mod spares;
mod spec;
mod state;
mod status;

pub use engine::Engine;
pub use process::resume;
pub use spec::AGENT;
pub use state::{ProcessIdentity, running_in};
