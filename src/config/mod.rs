//! From flags, environment and `server.json` to [`crate::server::Settings`], once, before anything else runs.
//! Nothing here starts, opens for writing or creates anything. No threads, no locks.
//!
//! Reading order: `args` (raw flags) · `file` (`server.json`) · `sources` (flag > environment > file; the only reader
//! of the environment) · `values` (the rules for one value) · `proxy` (those of the way to
//! OpenCode) · `opencode` (the one that the server runs) · `resolve` (all settings, with their defaults) · `client` (what
//! the commands that call a server need) · `host` (the flags of `berth host`) · `sandbox` (those about its sandbox) ·
//! `commands` (those of all others).

pub mod args;
pub mod client;
pub mod commands;
mod containers;
pub mod file;
pub mod host;
mod login;
mod opencode;
mod proxy;
pub mod resolve;
pub mod sandbox;
mod sources;
mod values;

#[cfg(test)]
mod tests;

pub use args::{ClientArgs, Parsed, ServeArgs, TokenArgs};
pub use client::{ClientPlan, resolve_client};
pub use commands::{
    BackupArgs, BundleArgs, COMMANDS, CommandWords, ImageArgs, InstallArgs, RestoreArgs, UninstallArgs,
};
pub use host::{HostArgs, Style};
pub use opencode::opencode_env;
pub use resolve::{Resolved, TokenPlan, resolve, resolve_tokens};
pub use sandbox::{MountWish, SandboxChoice, SandboxWish};
pub use sources::{Lookup, process_env, process_names};
