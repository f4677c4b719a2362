//! Checks whether an OpenCode server is healthy, with a deadline for the whole response to `/global/health`. OpenCode
//! accepts connections before it can respond to requests, and 1.18.34 never answers some requests that arrive during
//! its first start.

use std::io::Read as _;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::target::UpstreamTarget;
use super::upstream::{Payload, ResponseContent, UpstreamCall, UpstreamResponse, Upstreams};
use crate::base::{Code, Error, Result};
use crate::proc::Cancel;

/// The maximum size of a response that is read. The responses of all versions are smaller.
const ANSWER_BYTES: u64 = 64 << 10;

/// Waits up to `patience` for OpenCode's response, and returns OpenCode's version.
///
/// # Errors
/// Fails with `OpencodeUnreachable` and the status if the response is not that of a healthy OpenCode, and for the same
/// reasons as [`Upstreams::call`].
pub fn version(
    upstreams: &Upstreams,
    target: &UpstreamTarget,
    patience: Duration,
    gone: Cancel,
) -> Result<Option<String>> {
    let call = UpstreamCall {
        method: "GET",
        path_and_query: "/global/health".to_owned(),
        headers: Vec::new(),
        directory: None,
        upgrade: None,
    };
    let watch = upstreams.watch_for(&call, gone, patience);
    watch.end_by(Instant::now() + patience);
    let UpstreamResponse { status, content: rest, .. } =
        upstreams.call(target, &call, Payload::None, &watch)?;
    let mut bytes = Vec::new();
    if let ResponseContent::Body(body, _) = rest {
        body.take(ANSWER_BYTES).read_to_end(&mut bytes).map_err(|error| {
            Error::new(Code::OpencodeUnreachable, "The response to /global/health ended early")
                .with_source(error)
        })?;
    }
    let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if status != 200 || answer["healthy"] != true {
        let message = format!("/global/health returned status {status} without `healthy: true`");
        return Err(Error::new(Code::OpencodeUnreachable, message));
    }
    Ok(answer["version"].as_str().map(|version| version.chars().take(64).collect()))
}
