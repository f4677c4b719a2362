//! Converts flags, environment and `server.json` to [`crate::server::Settings`], once, before anything else runs.
//! This module starts nothing, and creates or writes no files. No threads, no locks.
//!
//! Reading order: `table` (every setting, one row each; start here to add one) · `setting` (the columns of a row) ·
//! `commands` (every command) · `line` (the command line; argh fills it) · `file` (`server.json`) · `sources` (flag >
//! environment > file > default; the only reader of the environment) · `values` (one parser for each form of value) ·
//! `resolve` (the settings of the server) · `opencode` (the one that the server runs) · `login` (password login) ·
//! `client` (the server that other commands call) · `sandbox` (the sandbox of `berth host`).

pub mod client;
pub mod commands;
pub mod file;
pub mod line;
mod login;
mod opencode;
pub mod resolve;
pub mod sandbox;
pub mod setting;
mod sources;
pub mod table;
mod values;

#[cfg(test)]
mod tests;

pub use client::{ClientPlan, resolve_client};
pub use commands::{COMMANDS, CommandSpec};
pub use line::{CommandLine, FlagValues, Parsed, Style};
pub use opencode::opencode_env;
pub use resolve::{Resolved, TokenPlan, resolve, resolve_data_dir, resolve_tokens};
pub use sandbox::{BOT_PORT, MountWish, SandboxChoice, SandboxWish};
pub use sources::{Lookup, process_env, process_names};
