//! The tests: one binary, the real server, real containers. Reading order: the harness (`client`, `server`, `scratch`,
//! `procs`, `fixture`), then one module for each promise. Tests wait for facts (an answer, a line, a process that is
//! gone), and every wait has an end.

// The rules that `.clippy.toml` makes for the server (children by `proc::Spec`, files by `store`) are about code that
// serves strangers. A test is its own only user, and it must not depend on the code that it checks.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, unreachable_pub)]

mod client;
mod events;
mod fixture;
mod golden;
mod meeting;
mod opencode_serve;
mod opencode_server;
mod outside;
mod power;
mod procs;
mod scratch;
mod server;
mod slow_clients;
mod socket;
mod tape;
mod terminal;
mod upstream;

mod abuse;
mod approvals;
mod approvals_feed;
mod audit;
mod browser;
mod builds;
mod bundle;
mod config;
mod container;
mod container_build;
mod container_faults;
mod contract;
mod crash;
mod detached;
mod diskfull;
mod doctor;
mod exec_host;
mod field_survey;
mod gate_door;
mod host_system;
mod hostile_root;
mod images;
mod images_hostile;
mod images_layers;
mod images_pull;
mod library;
mod library_import;
mod library_watch;
mod logging;
mod mounts;
mod network;
mod opencode;
mod opencode_address;
mod opencode_real;
mod opencode_streams;
mod openwork_promises;
mod orchestrator;
mod other_distros;
mod project;
mod project_events;
mod project_races;
mod project_transfer;
mod pty;
mod readme;
mod references;
mod resources;
mod roots;
mod runs;
mod runs_disk;
mod runs_stream;
mod scoped_tokens;
mod setup;
mod shapes;
mod slow_attacks;
mod smuggling;
mod smuggling_cases;
mod snapshots;
mod sync;
mod system;
mod terminals;
mod terminals_limits;
mod terminals_real;
mod terminals_shell;
mod tidy;
mod token_expiry;
mod tokens;
mod trays;
mod trays_races;
mod wire;
mod wire_limits;
mod workspaces;
mod workspaces_refused;
