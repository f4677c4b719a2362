//! A started server, as the command that started it sees it.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crate::opencode::Managed;
use crate::proc::Cancel;

/// A server that accepts requests.
pub struct RunningServer {
    /// The first address of the server: `http://…`, or `unix:` and a path.
    pub address: String,
    pub client_token: String,
    pub host_token: String,
    /// The OpenCode that the server runs, if any.
    pub managed: Option<Arc<Managed>>,
    /// The id of the first workspace.
    pub workspace_id: String,
    /// Cancelled when the server begins to stop.
    pub stopping: Cancel,
    pub(super) stop: UnixStream,
}

impl RunningServer {
    /// Stops the server as a signal would.
    pub fn stop(&self) {
        use std::io::Write as _;
        let _ = (&self.stop).write_all(&[0]);
    }
}
