//! Decides which headers are forwarded. Names are forwarded as the sender wrote them. Values are never changed, except
//! that WebSocket subprotocols with a token of this server are removed. Pure.

/// Returns whether a client's header is forwarded to the upstream. The gate has already removed hop-by-hop headers
/// (RFC 9110, 7.6.1). This function also excludes this server's credentials, headers that berth sets itself, and
/// headers that claim to identify the sender.
pub(super) fn is_request_header_forwarded(name: &str) -> bool {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    let starts = |known: &str| name.get(..known.len()).is_some_and(|start| start.eq_ignore_ascii_case(known));
    match name.as_bytes().first().map_or(0, u8::to_ascii_lowercase) {
        // A browser's cookie for this server's origin has no meaning for the upstream and may be the secret of another
        // service.
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

/// The header that names the directory of a request for OpenCode.
pub const DIRECTORY: &str = "x-opencode-directory";

/// Returns whether an upstream's header is forwarded to the client. This server sets the cross-origin headers itself.
/// A cookie of one upstream would belong to this server's origin, so browsers would send it to all workspaces. `named`
/// contains the header names listed in `Connection`, which are hop-by-hop.
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
        // With this header, a browser would ask its user for the workspace's password and send it to this server.
        b'w' => !is("WWW-Authenticate"),
        b'x' => !starts("X-Berth-"),
        _ => true,
    };
    kept && !named.iter().any(|named| is(named))
}

/// Returns the subprotocols offered by a client, without those that contain the client's token.
pub(super) fn subprotocols<'a>(offered: impl Iterator<Item = &'a str>) -> Option<String> {
    let kept: Vec<&str> =
        offered.filter(|protocol| !protocol.is_empty() && !protocol.starts_with("jwt.")).collect();
    (!kept.is_empty()).then(|| kept.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_hop_by_hop_headers_are_not_forwarded() {
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
