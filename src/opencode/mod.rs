//! Connections to the OpenCode behind a workspace. In reading order: `target` (its address), `rules` and `headers`
//! (which requests and headers are forwarded), `sessions` (requests that reach beyond their directory), `writes`,
//! `bodies` and `fields` (requests that could make OpenCode run a program or read a file), `upstream` (a call and its
//! response), `queries` (berth's own requests before a call), `wire` and `watch` (the connection, and the events that
//! end a wait for it), `lookup` and `address` (name resolution and refused addresses), `relay` (after a protocol
//! upgrade), `reload`, `health`, `managed` (the state of the OpenCode that the server runs itself).
//!
//! This module must not know routes, this server's request type or workspaces. Threads: the caller's. A call belongs
//! to one thread, which waits at the same time for the upstream, the client, the expiry of its credential and the
//! server's shutdown.

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
