//! Authentication, authorization and auditing: credentials, scopes, approvals and the audit log. Independent of HTTP.

pub mod approval_request;
pub mod approvals;
pub mod audit;
pub mod credentials;
pub mod leases;
pub mod login;
pub mod scope;
pub mod secret;
pub mod tokens;

pub use approvals::Approvals;
pub use audit::Audit;
pub use credentials::{Credentials, TokenSetting, TokenSource};
pub use leases::TokenLease;
pub use login::Login;
pub use scope::{Actor, Scope};

use std::time::Duration;

/// Whether writes that require approval wait for a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalMode {
    /// The write waits until a person decides.
    Manual,
    /// The write is allowed without a decision.
    Auto,
}

impl ApprovalMode {
    /// Returns the value in flags and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            ApprovalMode::Manual => "manual",
            ApprovalMode::Auto => "auto",
        }
    }
}

/// The approval configuration.
#[derive(Clone, Copy, Debug)]
pub struct ApprovalSettings {
    pub mode: ApprovalMode,
    /// How long a write waits for a decision before it is denied.
    pub timeout: Duration,
}
