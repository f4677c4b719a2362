//! Who may do what, and who did: credentials, scopes, approvals, read-only mode, the audit log. Knows nothing of HTTP.

pub mod approval_request;
pub mod approvals;
pub mod audit;
pub mod credentials;
pub mod leases;
pub mod login;
pub mod scope;
pub mod tokens;

pub use approvals::Approvals;
pub use audit::Audit;
pub use credentials::{Credentials, TokenSetting, TokenSource};
pub use leases::TokenLease;
pub use login::Login;
pub use scope::{Actor, Scope};

use std::time::Duration;

/// Whether gated writes wait for a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApprovalMode {
    /// A person answers.
    Manual,
    /// Allowed at once.
    Auto,
}

impl ApprovalMode {
    /// The word of flags and replies.
    pub fn as_str(self) -> &'static str {
        match self {
            ApprovalMode::Manual => "manual",
            ApprovalMode::Auto => "auto",
        }
    }
}

/// How gated writes are approved.
#[derive(Clone, Copy, Debug)]
pub struct ApprovalSettings {
    /// Manual or automatic.
    pub mode: ApprovalMode,
    /// How long a gated request waits for an answer.
    pub timeout: Duration,
}
