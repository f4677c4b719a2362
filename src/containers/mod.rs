//! Container roots and what runs in them: base images, bootstraps, the nspawn engine, the resident agent.
//! Knows folders and commands, neither workspaces nor runs nor HTTP.

pub mod agent;
mod agent_socket;
pub mod binds;
pub mod container;
pub mod enclose;
pub mod engine;
mod intruders;
mod load;
pub mod network;
mod pending_process;
mod prepare;
mod process;
pub mod protocol;
mod quiesce;
mod running;
mod spares;
mod spec;
mod state;
mod status;

pub use engine::Engine;
pub use process::resume;
pub use spec::AGENT;
pub use state::{ProcessIdentity, running_in};
