//! Which headers are passed on. Names as they came; values are never changed, but for the subprotocols of a WebSocket,
//! which may carry a token of ours. Pure.

/// Whether a client's header goes to the upstream. What is for one hop only the gate has taken out already (RFC 9110,
/// 7.6.1); the rest are credentials of ours, what we write ourselves, and what claims to know who sent the request.
pub(super) fn is_request_header_forwarded(name: &str) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    let starts = |known: &str| name.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known));
    match name.as_bytes().first().map_or(0, u8::to_ascii_lowercase) {
        // Observed: a cookie for this server's origin means nothing to the upstream, and may be another service's secret.
        b'c' => !(is("Cookie") || is("Connection") || is("Content-Length")),
        b'a' => !is("Authorization"),
        b'e' => !is("Expect"),
        b'f' => !is("Forwarded"),
        b'h' => !is("Host"),
        b'k' => !is("Keep-Alive"),
        b'o' => !is("Origin"),
        b'p' => !starts("Proxy-"),
        b's' => !is("Sec-WebSocket-Protocol"),
        b't' => !(is("TE") || is("Trailer") || is("Transfer-Encoding")),
        b'u' => !is("Upgrade"),
        b'x' => {
            !(starts("X-OpenWork-")
                || starts("X-Berth-")
                || starts("X-Forwarded-")
                || is("X-Real-IP")
                || is(DIRECTORY))
        }
        _ => true,
    }
}

/// Tells OpenCode its directory.
pub const DIRECTORY: &str = "x-opencode-directory";

/// Whether an upstream's header goes to the client. Cross-origin rules are ours to make, and a cookie of the upstream
/// would be one of this server's origin, sent to all workspaces. What `named` says of the connection is for this hop.
pub(super) fn is_response_header_forwarded(name: &str, named: &[String]) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    let starts = |known: &str| name.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known));
    let kept = match name.as_bytes().first().map_or(0, u8::to_ascii_lowercase) {
        b'a' => !starts("Access-Control-"),
        b'c' => !(is("Connection") || is("Content-Length")),
        b'k' => !is("Keep-Alive"),
        b'p' => !starts("Proxy-"),
        b's' => !is("Set-Cookie"),
        b't' => !(is("TE") || is("Trailer") || is("Transfer-Encoding")),
        b'u' => !is("Upgrade"),
        // A browser would ask its user for the workspace's password, and send it to us.
        b'w' => !is("WWW-Authenticate"),
        b'x' => !starts("X-Berth-"),
        _ => true,
    };
    kept && !named.iter().any(|named| is(named))
}

/// The subprotocols that a client offers, without those that carry its token.
pub(super) fn subprotocols<'a>(offered: impl Iterator<Item = &'a str>) -> Option<String> {
    let kept: Vec<&str> =
        offered.filter(|protocol| !protocol.is_empty() && !protocol.starts_with("jwt.")).collect();
    (!kept.is_empty()).then(|| kept.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes() {
        for name in
            ["Accept", "accept-encoding", "User-Agent", "X-OpenCode-Workspace", "Range", "Content-Type", "é"]
        {
            assert!(is_request_header_forwarded(name), "{name}");
        }
        for name in
            "authorization Cookie host ORIGIN x-openwork-host-token X-OpenWork-Client-Id x-openwork-new x-berth-peer \
             proxy-authorization forwarded x-forwarded-for X-Opencode-Directory te upgrade content-length"
                .split_whitespace()
        {
            assert!(!is_request_header_forwarded(name), "{name}");
        }
        let hop = ["x-hop".to_owned()];
        for name in ["Content-Encoding", "ETag", "Location", "Vary", "Retry-After", "Sec-WebSocket-Accept"] {
            assert!(is_response_header_forwarded(name, &hop), "{name}");
        }
        for name in ["Access-Control-Allow-Origin", "set-cookie", "X-Hop", "x-berth-ticket", "Connection"] {
            assert!(!is_response_header_forwarded(name, &hop), "{name}");
        }
        assert_eq!(subprotocols(["jwt.secret", "a", "b"].into_iter()).unwrap(), "a, b");
        assert_eq!(subprotocols(["jwt.secret"].into_iter()), None);
    }
}
