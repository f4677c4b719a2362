//! Container roots and what runs in them: base images, bootstraps, the nspawn engine, the resident agent.
//! Knows folders and commands, neither workspaces nor runs nor HTTP.

pub mod agent;
pub mod binds;
mod birth;
mod door;
pub mod enclose;
pub mod engine;
mod intruders;
mod load;
pub mod machine;
pub mod network;
mod nursery;
mod place;
mod prepare;
mod process;
pub mod protocol;
mod running;
mod state;
mod status;
mod still;

pub use engine::Engine;
pub use place::AGENT;
pub use process::resume;
pub use state::{Who, running_in};
