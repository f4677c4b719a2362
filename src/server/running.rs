//! A server that has started, for the command that started it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::opencode::Managed;
use crate::proc::Cancel;

/// A server that takes requests, for the command that started it.
pub struct RunningServer {
    /// Its first address: `http://…`, or `unix:` and a path.
    pub address: String,
    /// The client token.
    pub client_token: String,
    /// The host token.
    pub host_token: String,
    /// The OpenCode that it runs.
    pub managed: Option<Arc<Managed>>,
    /// The id of the first workspace.
    pub workspace_id: String,
    /// Cancelled once the server has begun to stop.
    pub stopping: Cancel,
    pub(super) stop: UnixStream,
}

impl RunningServer {
    /// Has the server end, as a signal has.
    pub fn stop(&self) {
        use std::io::Write as _;
        let _ = (&self.stop).write_all(&[0]);
    }
}
