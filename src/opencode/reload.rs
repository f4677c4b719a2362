//! Makes OpenCode read its configuration again, by disposing of its state for a directory.

use std::io::Read as _;

use super::rules;
use super::target::UpstreamTarget;
use super::upstream::{Payload, ResponseContent, UpstreamCall, UpstreamResponse, Upstreams};
use crate::base::{Code, Error, Result};
use crate::proc::Cancel;

/// The maximum length of OpenCode's error that is included in berth's error, in bytes.
const UPSTREAM_COMPLAINT_BYTES: u64 = 16 << 10;

/// Reloads OpenCode's configuration for `directory`, and waits for the result.
///
/// # Errors
/// Fails with `OpencodeReloadFailed` and OpenCode's response if OpenCode reports a failure, and for the same reasons
/// as [`Upstreams::call`].
pub fn reload(
    upstreams: &Upstreams,
    target: &UpstreamTarget,
    directory: Option<&str>,
    gone: Cancel,
) -> Result<()> {
    let query = directory.map(|directory| format!("?directory={}", rules::query_value(directory)));
    let call = UpstreamCall {
        method: "POST",
        path_and_query: format!("/instance/dispose{}", query.unwrap_or_default()),
        headers: Vec::new(),
        directory: directory.map(rules::directory_header),
        upgrade: None,
    };
    let watch = upstreams.watch(&call, gone);
    let UpstreamResponse { status, content: rest, .. } =
        upstreams.call(target, &call, Payload::Whole(Vec::new()), &watch)?;
    if (200..300).contains(&status) {
        return Ok(());
    }
    let mut response = Vec::new();
    if let ResponseContent::Body(body, _) = rest {
        let _ = body.take(UPSTREAM_COMPLAINT_BYTES).read_to_end(&mut response);
    }
    let body = match serde_json::from_slice(&response) {
        Ok(json) => json,
        Err(_) => serde_json::Value::String(String::from_utf8_lossy(&response).into_owned()),
    };
    Err(Error::new(Code::OpencodeReloadFailed, "OpenCode reload failed")
        .detail("status", status)
        .detail("body", body))
}
