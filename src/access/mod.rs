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

/// Whether gated writes require approval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalMode {
    /// A person decides.
    Manual,
    /// Allowed without asking.
    Auto,
}

impl ApprovalMode {
    /// The value in flags and replies.
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
    /// How long a gated request waits for a decision.
    pub timeout: Duration,
}
