//! Container roots and what runs in them: base images, bootstraps, the nspawn engine, the resident agent.
//! Knows folders and commands, neither workspaces nor runs nor HTTP.

pub mod agent;
pub mod binds;
mod birth;
pub mod bootstrap;
pub mod build_log;
mod door;
pub mod enclose;
pub mod engine;
pub mod images;
mod intruders;
pub mod machine;
pub mod mirrors;
pub mod network;
mod nursery;
mod place;
mod prepare;
pub mod probe;
mod process;
pub mod protocol;
pub mod roots;
mod running;
mod state;
mod status;
mod still;
pub mod tools;

pub use build_log::BuildLog;
pub use engine::Engine;
pub use images::Images;
pub use process::resume;
pub use roots::Roots;
pub use state::Who;
