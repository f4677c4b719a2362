//! The CORS headers that the OpenWork server sends. They are added for configured origins only.

use super::{Request, Response};

const ALLOW_HEADERS: &str = "Authorization, Content-Type, X-OpenWork-Host-Token, X-OpenWork-Client-Id, \
     X-OpenCode-Directory, X-Opencode-Directory, x-opencode-directory";
/// Response headers that scripts may read, in addition to those that CORS always allows.
const EXPOSE_HEADERS: &str = "X-Berth-Warning, X-Request-Id";
const ALLOW_METHODS: &str = "GET,POST,PUT,PATCH,DELETE,OPTIONS";

/// Returns the value of `Access-Control-Allow-Origin` for this request, or `None` if its origin is not allowed.
pub fn allowed_origin(origins: &[String], request: &Request) -> Option<String> {
    if origins.iter().any(|origin| origin == "*") {
        return Some("*".to_owned());
    }
    let origin = request.header("Origin")?;
    origins.iter().any(|known| known == origin).then(|| origin.to_owned())
}

/// Adds the CORS headers to a response, if an origin is allowed.
#[must_use]
pub fn apply(response: Response, allowed: Option<String>) -> Response {
    match allowed {
        None => response,
        Some(origin) => response
            .with("Access-Control-Allow-Origin", origin)
            .with("Access-Control-Allow-Headers", ALLOW_HEADERS)
            .with("Access-Control-Allow-Methods", ALLOW_METHODS)
            .with("Access-Control-Expose-Headers", EXPOSE_HEADERS)
            .varying_by("Origin"),
    }
}
