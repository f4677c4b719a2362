//! The way to the OpenCode behind a workspace. In reading order: `target` (where it is), `rules` and `headers` (what is
//! passed on), `sessions` (what reaches beyond a request's directory), `writes`, `bodies` and `fields` (what could make
//! OpenCode run a program or read a file), `upstream` (a call and its answer), `inquiry` (what OpenCode is asked first),
//! `wire` and `watch` (the connection, and what ends a wait for it), `lookup` and `address` (where a name is, and where no
//! upstream can be), `relay` (after an upgrade), `reload`, `health`, `managed` (the state of one that the server runs
//! itself).
//!
//! Knows no routes, no requests of ours and no workspaces. Threads: the caller's. A call belongs to one thread: it waits
//! there for the upstream, its client, its credential and the server's end at once.

pub mod address;
pub mod bodies;
pub mod fields;
mod headers;
pub mod health;
mod lookup;
pub mod managed;
pub mod queries;
pub mod relay;
pub mod reload;
pub mod rules;
pub mod sessions;
pub mod target;
pub mod upstream;
pub mod watch;
mod wire;
pub mod writes;

pub use headers::DIRECTORY;
pub use lookup::HostLookup;
pub use managed::Managed;
pub use target::{Upstream, UpstreamTarget};
pub use upstream::{Payload, ResponseContent, UpstreamCall, UpstreamResponse, Upstreams};
pub use watch::CallWatch;
