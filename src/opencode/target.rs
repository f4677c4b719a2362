//! The location of a workspace's OpenCode: address, base path and credential, and the error messages that explain
//! which setting to change when OpenCode does not respond. Pure, except for reading the state of the server's own
//! OpenCode.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::managed::Managed;
use crate::base::{Code, Error, Result};

/// The settings of a workspace for its OpenCode.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// The workspace's id, for error messages.
    pub workspace: String,
    pub base_url: Option<String>,
    /// The user name for basic authentication.
    pub username: Option<String>,
    /// The password for basic authentication.
    pub password: Option<String>,
    /// The state of OpenCode if this server runs it; otherwise `None`.
    pub managed: Option<Arc<Managed>>,
}

/// An upstream that can be called, with its parsed settings.
#[derive(Clone)]
pub struct UpstreamTarget {
    workspace: String,
    /// The scheme and authority, in the form `http://host:port`.
    origin: String,
    /// The path of the base URL, without a trailing slash.
    base_path: String,
    pub(super) authorization: Option<String>,
    pub(super) is_managed: bool,
}

impl UpstreamTarget {
    /// Parses the settings.
    ///
    /// # Errors
    /// Fails with `OpencodeUnconfigured` if the address is absent or invalid, and for the same reasons as
    /// [`Managed::check`].
    pub fn new(place: &Upstream) -> Result<UpstreamTarget> {
        if let Some(managed) = &place.managed {
            managed.check()?;
        }
        let Some(url) = &place.base_url else {
            let message = "OpenCode base URL is missing for this workspace; set its baseUrl in server.json or with PATCH \
                           /workspaces/ID, or start berth with --opencode-base-url";
            return Err(Error::new(Code::OpencodeUnconfigured, message));
        };
        let wrong = |what: &str| {
            let message = format!("The baseUrl of workspace {} {what}", place.workspace);
            Error::new(Code::OpencodeUnconfigured, message).detail("baseUrl", url.clone())
        };
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("is not a URL"))?;
        let scheme = scheme.to_ascii_lowercase();
        match scheme.as_str() {
            "http" => {}
            "https" => {
                let what = "begins with https://, which berth does not support; use a tunnel or proxy on this \
                            machine and set its http:// address";
                return Err(wrong(what));
            }
            _ => return Err(wrong("does not begin with http://")),
        }
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.contains('@') {
            return Err(wrong("contains a user name; use opencodeUsername and opencodePassword instead"));
        }
        if format!("{scheme}://{authority}/").parse::<ureq::http::Uri>().is_err() || authority.is_empty() {
            return Err(wrong("has no valid host"));
        }
        let authorization =
            place.username.as_ref().zip(place.password.as_ref()).map(|(username, password)| {
                format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
            });
        Ok(UpstreamTarget {
            workspace: place.workspace.clone(),
            origin: format!("{scheme}://{authority}"),
            base_path: path.trim_end_matches('/').to_owned(),
            authorization,
            is_managed: place.managed.is_some(),
        })
    }

    /// Returns the host and port to connect to.
    pub(super) fn host(&self) -> (&str, u16) {
        let authority = self.origin.split_once("://").map_or("", |(_, authority)| authority);
        match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().unwrap_or(80)),
            _ => (authority, 80),
        }
    }

    /// Returns the URL for a path and query. They stay as the client wrote them, except that characters that no URL
    /// may contain (RFC 3986, 2) are percent-encoded.
    pub fn url(&self, path_and_query: &str) -> String {
        let mut url = format!("{}{}", self.origin, self.base_path);
        if !path_and_query.starts_with('/') {
            url.push('/');
        }
        for c in path_and_query.chars() {
            match c {
                '"' => url.push_str("%22"),
                '<' => url.push_str("%3C"),
                '>' => url.push_str("%3E"),
                '`' => url.push_str("%60"),
                c => url.push(c),
            }
        }
        url
    }

    /// Returns the error for a failed call, with a hint how to correct the cause.
    pub(super) fn failed(&self, code: Code, what: &str) -> Error {
        if self.is_managed {
            let message = format!(
                "The OpenCode that this server runs failed to respond: {what}; GET /status shows its state"
            );
            return Error::new(code, message).detail("workspace", self.workspace.clone());
        }
        let message = format!(
            "The OpenCode of workspace {} at {} failed: {what}. Check the workspace's baseUrl (server.json, \
             --opencode-base-url, or PATCH /workspaces/ID)",
            self.workspace, self.origin
        );
        Error::new(code, message)
            .detail("workspace", self.workspace.clone())
            .detail("setting", "baseUrl")
            .detail("baseUrl", format!("{}{}", self.origin, self.base_path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<UpstreamTarget> {
        UpstreamTarget::new(&Upstream {
            workspace: "w".into(),
            base_url: Some(url.into()),
            ..Upstream::default()
        })
    }

    #[test]
    fn urls_keep_path_and_query_as_written() {
        for (base, path, want) in [
            ("http://h:1", "/a?b=c", "http://h:1/a?b=c"),
            ("http://h:1/", "/", "http://h:1/"),
            ("http://h/x/y/", "/a%2Fb//c?d=%2f&e=+", "http://h/x/y/a%2Fb//c?d=%2f&e=+"),
            ("HTTP://h/x?y#z", "?q", "http://h/x/?q"),
            ("http://[::1]:5", "/<\"`>|^", "http://[::1]:5/%3C%22%60%3E|^"),
        ] {
            assert_eq!(target(base).unwrap().url(path), want);
        }
        for base in ["", "h:1", "ftp://h", "https://h", "http://", "http:///x", "http://u:p@h", "http://h h"]
        {
            assert_eq!(target(base).err().unwrap().code(), Code::OpencodeUnconfigured, "{base}");
        }
    }
}
