//! A request: its method, target, headers, body and sender, and the means to answer it. It may move between threads.

mod body;

use std::cell::RefCell;
use std::io::Read;
use std::sync::Arc;
use std::time::Instant;

use self::body::BufferedBody;
use super::client::Socket;
use super::direct::DirectRequest;
use super::response::Response;
use crate::access::Actor;
use crate::access::audit::AuditDraft;
use crate::base::input_bytes::Charge;
use crate::base::shares::ShareHolder;
use crate::base::unknown_fields;
use crate::base::{Code, Error, Result, pool};

/// The methods that routes can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Other,
}

impl Method {
    /// Parses the name of a method that the gate accepts. Returns `None` for any other name.
    pub(super) fn parse(word: &str) -> Option<Method> {
        let all = [
            Method::Get,
            Method::Head,
            Method::Post,
            Method::Put,
            Method::Patch,
            Method::Delete,
            Method::Options,
        ];
        all.into_iter().find(|method| method.as_str() == word)
    }

    /// Returns the name of the method as in a request line.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Other => "OTHER",
        }
    }
}

/// Where a request comes from and its answer goes to.
enum RequestSource {
    /// The gate, through tiny_http.
    Backend(tiny_http::Request),
    /// The gate directly, on the thread of the connection.
    Direct(DirectRequest),
}

/// Maximum number of query parameters that are checked for unknown names.
const MAX_PARAMETERS: usize = 20;

/// A request. A handler must answer it with [`Request::answer`].
pub struct Request {
    source: RequestSource,
    method: Method,
    /// The parameters in the path. Dispatch sets them when a route matches.
    pub(super) params: Vec<(&'static str, String)>,
    actor: Option<Actor>,
    /// The owner of the shares (of workers, for example) that the request uses.
    party: ShareHolder,
    started: Instant,
    /// Whether the request runs on a worker thread, which a slow client may block.
    on_worker: bool,
    /// Whether the worker continues with the request's work after the answer.
    continues: bool,
    /// The body, if it was read before the handler ran.
    buffered: Option<BufferedBody>,
    /// Whether the next read of the body is the last one.
    released: bool,
    /// The count of a large body that is in memory.
    charge: Option<Charge>,
    /// The audit line that the answer to this request completes.
    draft: Option<AuditDraft>,
    /// The names of the query parameters that the handler has read.
    asked: RefCell<Vec<&'static str>>,
    /// Warnings that are returned with the answer.
    warnings: Vec<String>,
}

impl Request {
    pub(super) fn new(inner: tiny_http::Request) -> Request {
        let method = match inner.method() {
            tiny_http::Method::Get => Method::Get,
            tiny_http::Method::Head => Method::Head,
            tiny_http::Method::Post => Method::Post,
            tiny_http::Method::Put => Method::Put,
            tiny_http::Method::Patch => Method::Patch,
            tiny_http::Method::Delete => Method::Delete,
            tiny_http::Method::Options => Method::Options,
            _ => Method::Other,
        };
        Request::from(RequestSource::Backend(inner), method)
    }

    pub(super) fn from_gate(direct: DirectRequest, method: Method) -> Request {
        Request::from(RequestSource::Direct(direct), method)
    }

    fn from(source: RequestSource, method: Method) -> Request {
        let (params, started) = (Vec::new(), Instant::now());
        Request {
            source,
            method,
            params,
            actor: None,
            party: ShareHolder::ANONYMOUS,
            started,
            on_worker: false,
            continues: false,
            buffered: None,
            released: false,
            charge: None,
            draft: None,
            asked: RefCell::default(),
            warnings: Vec::new(),
        }
    }

    /// Returns the client's socket if the request must be answered on this thread before its handler returns.
    pub fn direct(&self) -> Option<&Arc<Socket>> {
        match &self.source {
            RequestSource::Backend(_) => None,
            RequestSource::Direct(direct) => Some(&direct.client),
        }
    }

    pub fn method(&self) -> Method {
        self.method
    }

    /// Returns the path as the client sent it, without the query.
    pub fn path(&self) -> &str {
        let target = self.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// Returns the path and query as the client sent them.
    pub fn target(&self) -> &str {
        match &self.source {
            RequestSource::Backend(inner) => inner.url(),
            RequestSource::Direct(direct) => &direct.target,
        }
    }

    /// Returns all headers in order, except the hop-by-hop headers, which the gate has removed.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let (inside, direct) = match &self.source {
            RequestSource::Backend(inner) => (inner.headers(), [].as_slice()),
            RequestSource::Direct(direct) => ([].as_slice(), direct.headers.as_slice()),
        };
        let inside = inside.iter().map(|header| (header.field.as_str().as_str(), header.value.as_str()));
        inside.chain(direct.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    /// Returns the authenticated sender: `None` on public routes and before authentication.
    pub fn actor(&self) -> Option<&Actor> {
        self.actor.as_ref()
    }

    /// Sets the sender. Only dispatch calls this.
    pub fn set_actor(&mut self, actor: Option<Actor>) {
        self.actor = actor;
    }

    /// Returns the owner of the shares that the request uses: anonymous before authentication.
    pub fn party(&self) -> ShareHolder {
        self.party
    }

    /// Sets the owner of the shares that the request uses. Only dispatch calls this.
    pub fn set_party(&mut self, party: ShareHolder) {
        self.party = party;
    }

    /// Returns the audit line, if this request has one, so that a handler can refine it.
    pub fn draft(&mut self) -> Option<&mut AuditDraft> {
        self.draft.as_mut()
    }

    /// Sets the audit line, before its outcome is known.
    pub fn set_draft(&mut self, draft: Option<AuditDraft>) {
        self.draft = draft;
    }

    /// Takes the audit line, so that the caller can write it.
    pub fn take_draft(&mut self) -> Option<AuditDraft> {
        self.draft.take()
    }

    /// Returns when the request was received.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Returns whether part of the body may not have arrived yet. The gate buffers a small body until it is
    /// complete, and forwards any other body in chunks.
    pub fn is_streamed(&self) -> bool {
        self.header("Transfer-Encoding").is_some()
    }

    /// Sets whether the request runs on a worker.
    pub fn set_on_worker(&mut self, on_worker: bool) {
        self.on_worker = on_worker;
    }

    /// Returns whether the request runs on a worker, where waiting for its client blocks no other request.
    pub fn on_worker(&self) -> bool {
        self.on_worker
    }

    /// Records that the worker continues with the request's work after the answer.
    pub(super) fn set_continues(&mut self) {
        self.continues = true;
    }

    /// Returns the client's address, or `unix`. The gate sets this header, and removes it from client requests.
    pub fn peer(&self) -> &str {
        self.header("X-Berth-Peer").unwrap_or("unknown")
    }

    /// Returns the number that the gate has given to the client connection.
    pub fn connection(&self) -> Option<u64> {
        self.header("X-Berth-Connection")?.parse().ok()
    }

    /// Returns the id of the request, for log lines. The client receives it as `X-Request-Id`.
    pub fn id(&self) -> &str {
        self.header("X-Berth-Request").unwrap_or("-")
    }

    /// Returns the value of the first header with this name.
    pub fn header(&self, name: &'static str) -> Option<&str> {
        self.headers().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns the token of `Authorization: Bearer`. The scheme is case-insensitive (RFC 9110, 11.1).
    pub fn bearer(&self) -> Option<&str> {
        bearer_of(self.header("Authorization")?)
    }

    /// Returns whether the request is a WebSocket handshake. The gate rejects all other upgrades.
    pub fn is_upgrade(&self) -> bool {
        self.header("Upgrade").is_some()
    }

    /// Returns the subprotocols offered in a WebSocket handshake. The header may occur more than once (RFC 6455,
    /// 11.3.4).
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> {
        self.headers()
            .filter(|(name, _)| name.eq_ignore_ascii_case("Sec-WebSocket-Protocol"))
            .flat_map(|(_, value)| value.split(','))
            .map(str::trim)
    }

    /// Returns the token that a WebSocket client offers as the subprotocol `jwt.TOKEN`, because it cannot set
    /// headers (a browser, for example). The token is accepted in handshakes only. It is never selected as the
    /// subprotocol, so it is not sent back.
    pub fn subprotocol_token(&self) -> Option<&str> {
        self.is_upgrade().then(|| self.subprotocols().find_map(|offered| offered.strip_prefix("jwt.")))?
    }

    /// Returns a parameter of the matched route, decoded; empty if there is none with this name.
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// Returns the first value of a query parameter, decoded.
    pub fn query(&self, name: &'static str) -> Option<String> {
        self.asked.borrow_mut().push(name);
        let (_, query) = self.target().split_once('?')?;
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&key.replace('+', " "))? == name).then(|| decode(&value.replace('+', " ")))?
        })
    }

    /// Adds a warning to the answer.
    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// Takes the warnings for the answer. If `with_query` is true, adds one for each query parameter that no handler
    /// has read.
    pub fn take_warnings(&mut self, with_query: bool) -> Vec<String> {
        let mut warnings = std::mem::take(&mut self.warnings);
        let Some((_, query)) = self.target().split_once('?').filter(|_| with_query) else { return warnings };
        let mut asked: Vec<String> = self.asked.borrow().iter().map(|name| (*name).to_owned()).collect();
        asked.dedup();
        for pair in query.split('&').filter(|pair| !pair.is_empty()).take(MAX_PARAMETERS) {
            let key = pair.split('=').next().unwrap_or_default().replace('+', " ");
            let key = decode(&key).unwrap_or(key);
            if !asked.contains(&key) {
                warnings.push(unknown_fields::unknown_name_message("query parameter", &key, &asked));
            }
        }
        warnings
    }

    /// Returns a boolean query parameter: `false` if it is absent.
    ///
    /// # Errors
    /// `InvalidRequest` for a value that is not a boolean.
    pub fn query_flag(&self, name: &'static str) -> Result<bool> {
        match self.query(name).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(other) => Err(Error::new(
                Code::InvalidRequest,
                format!("Query parameter '{name}' must be true or false, not '{}'", other.escape_debug()),
            )),
        }
    }

    /// Sends the answer. Ignores write errors, which mean that the client has disconnected.
    pub fn answer(self, response: Response) {
        if !self.continues && response.is_whole() {
            pool::release_early();
        }
        let is_head = self.method == Method::Head;
        match self.source {
            RequestSource::Backend(inner) => response.send(is_head, inner.into_writer()),
            RequestSource::Direct(direct) => response.send(is_head, direct.answered),
        }
    }
}

impl RequestSource {
    fn reader(&mut self) -> &mut dyn Read {
        match self {
            RequestSource::Backend(inner) => inner.as_reader(),
            RequestSource::Direct(direct) => &mut direct.body,
        }
    }

    fn body_length(&self) -> Option<usize> {
        match self {
            RequestSource::Backend(inner) => inner.body_length(),
            RequestSource::Direct(direct) => Some(direct.body.get_ref().len()),
        }
    }
}

/// Percent-decodes `text`. Returns `None` if the encoding is malformed or the result is not UTF-8.
pub fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let hex = tail.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}
/// Returns the bearer token in the value of an `Authorization` header.
pub fn bearer_of(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
