//! Calls to upstreams. ureq implements HTTP and pools connections; the module `wire` opens connections. A call runs on
//! its caller's thread, and so do reads of the response body.
//!
//! Locks: ureq's connection pool, a leaf.

use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ureq::config::AutoHeaderValue;
use ureq::http::{HeaderName, HeaderValue, Method, Request};
use ureq::{Agent, AsSendBody, Error as UreqError, SendBody};

use super::address::ListenAddresses;
use super::headers::{self, DIRECTORY};
use super::lookup::HostLookup;
use super::managed::{self, Managed};
use super::queries::SessionCache;
use super::relay::Tunnel;
use super::target::{Upstream, UpstreamTarget};
use super::watch::{CallWatch, WaitError};
use super::wire::{DeferredResolver, Dialler, IDLE};
use crate::base::{Code, Error, Result, limits};
use crate::proc::{Cancel, Cgroups};

/// The maximum number of idle connections to all upstreams together.
const UPSTREAM_IDLE_CONNECTIONS: usize = 2 * limits::PROXY_WORKERS;

/// A request to forward.
pub struct UpstreamCall {
    pub method: &'static str,
    /// The path and query as the client wrote them, relative to the workspace's base path.
    pub path_and_query: String,
    /// The headers that the client sent.
    pub headers: Vec<(String, String)>,
    /// The directory for the [`DIRECTORY`] header.
    pub directory: Option<String>,
    /// The subprotocols that the client offered, if the request is a WebSocket handshake.
    pub upgrade: Option<Vec<String>>,
}

/// The body of a request to an upstream.
pub enum Payload<'a> {
    None,
    /// The complete body, in memory.
    Whole(Vec<u8>),
    /// A body of unknown length, sent in chunks.
    Streamed(&'a mut dyn Read),
}

/// The response of an upstream.
pub struct UpstreamResponse {
    pub status: u16,
    /// The headers that are forwarded to the client.
    pub headers: Vec<(String, String)>,
    pub content: ResponseContent,
}

/// The part of a response after its head.
pub enum ResponseContent {
    /// No body. Contains the value of `Content-Length` if the upstream sent that header.
    Empty(Option<u64>),
    /// A body, and its length if the upstream sent it.
    Body(UpstreamBody, Option<u64>),
    /// A connection after a protocol upgrade.
    Tunnel(Tunnel),
}

/// The body of a response. It is read as it arrives and is not decoded.
pub struct UpstreamBody {
    reader: ureq::BodyReader<'static>,
    watch: Rc<CallWatch>,
}

/// A response body on its way to another thread.
pub struct DetachedBody {
    reader: ureq::BodyReader<'static>,
    stop: Cancel,
    gone: Cancel,
}

impl DetachedBody {
    /// Makes the body readable on the current thread.
    pub fn attach(self) -> UpstreamBody {
        let watch = Rc::new(CallWatch::new(self.stop, self.gone, limits::UPSTREAM_SILENCE, false));
        watch.response_received();
        UpstreamBody { reader: self.reader, watch }
    }
}

impl UpstreamBody {
    /// Prepares the body for reading on another thread.
    pub fn detach(self) -> DetachedBody {
        let (stop, gone) = self.watch.ends();
        DetachedBody { reader: self.reader, stop, gone }
    }

    pub fn watch(&self) -> &CallWatch {
        &self.watch
    }
}

impl Read for UpstreamBody {
    /// Reads bytes of the body. Fails if the body ends before its stated length.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let _entered = self.watch.enter();
        self.reader.read(buffer)
    }
}

/// Calls upstreams, through one connection pool for all of them.
pub struct Upstreams {
    agent: Agent,
    own: ListenAddresses,
    lookup: Arc<HostLookup>,
    stop: Cancel,
    patience: Duration,
    pub(super) sessions: SessionCache,
}

impl Upstreams {
    /// Creates the connection pool. `own` contains the addresses on which this server listens. Name lookups run in one
    /// of `cgroups`. An upstream must send the head of its response within `patience`. `managed` is the OpenCode that
    /// this server runs.
    ///
    /// # Errors
    /// Fails if this process has no file descriptors left.
    pub fn new(
        own: ListenAddresses,
        cgroups: Cgroups,
        patience: Duration,
        managed: Option<Arc<Managed>>,
    ) -> Result<Upstreams> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(AutoHeaderValue::None)
            .accept(AutoHeaderValue::None)
            .accept_encoding(AutoHeaderValue::None)
            .max_response_header_size(limits::UPSTREAM_BUFFER_BYTES)
            .input_buffer_size(limits::UPSTREAM_BUFFER_BYTES)
            .output_buffer_size(limits::RELAY_BYTES)
            .max_idle_connections(UPSTREAM_IDLE_CONNECTIONS)
            .max_idle_connections_per_host(UPSTREAM_IDLE_CONNECTIONS)
            .max_idle_age(IDLE)
            .build();
        let lookup = Arc::new(HostLookup::new(cgroups));
        let agent = Agent::with_parts(
            config,
            Dialler { own: own.clone(), lookup: lookup.clone(), managed },
            DeferredResolver,
        );
        Ok(Upstreams {
            agent,
            own,
            lookup,
            stop: Cancel::new()?,
            patience,
            sessions: SessionCache::default(),
        })
    }

    /// Refuses settings whose address no call could use. The check resolves the host name, so it can take as long as a
    /// lookup.
    ///
    /// # Errors
    /// Fails with `InvalidBaseUrl`.
    pub fn check(&self, place: &Upstream) -> Result<()> {
        let url = place.base_url.clone().unwrap_or_default();
        let refuse = |why: &str| Error::new(Code::InvalidBaseUrl, why).detail("baseUrl", url.clone());
        let target = UpstreamTarget::new(place).map_err(|error| refuse(error.message()))?;
        let (host, port) = target.host();
        let found = self.lookup.addresses(host, port, &self.stop).ok().filter(|found| !found.is_empty());
        let found =
            found.ok_or_else(|| refuse(&format!("The host name in baseUrl does not resolve: {host}")))?;
        match found.into_iter().find_map(|address| self.own.refusal(address)) {
            Some(why) => Err(refuse(&format!("The baseUrl cannot be used: {why}"))),
            None => Ok(()),
        }
    }

    /// Cancels all current and future calls.
    pub fn close(&self) {
        self.stop.cancel();
    }

    /// Returns the watch of a call. `gone` is cancelled when the client disconnects.
    pub fn watch(&self, call: &UpstreamCall, gone: Cancel) -> Rc<CallWatch> {
        Rc::new(CallWatch::new(self.stop.clone(), gone, self.patience, call.upgrade.is_some()))
    }

    /// Like [`Upstreams::watch`], with another deadline for the head of the response.
    pub(super) fn watch_for(&self, call: &UpstreamCall, gone: Cancel, patience: Duration) -> Rc<CallWatch> {
        Rc::new(CallWatch::new(self.stop.clone(), gone, patience.min(self.patience), call.upgrade.is_some()))
    }

    /// Calls `target`, and waits for the head of the response.
    ///
    /// # Errors
    /// Fails with `OpencodeUnreachable` or `OpencodeTimeout`, which name the setting to change; with `InvalidRequest`
    /// for a request that cannot be sent; with `Cancelled` if the client disconnected; and with `ShuttingDown`.
    pub fn call(
        &self,
        target: &UpstreamTarget,
        call: &UpstreamCall,
        payload: Payload<'_>,
        watch: &Rc<CallWatch>,
    ) -> Result<UpstreamResponse> {
        let _entered = watch.enter();
        let response = match payload {
            Payload::None => self.send_again(target, call, None, watch)?,
            Payload::Whole(bytes) => self.send_again(target, call, Some(&bytes), watch)?,
            Payload::Streamed(reader) => {
                let head = head(target, call, Some("chunked"))?;
                self.agent.run(with_body(head, SendBody::from_reader(reader)))
            }
        };
        let response = response.map_err(|error| self.explain(target, &error))?;
        watch.response_received();
        self.answer(call, response, watch)
    }

    /// Sends a request. If the request is idempotent and the upstream closed the pooled connection at the same moment,
    /// sends the request once more over a new connection (RFC 9110, 9.2.2).
    fn send_again(
        &self,
        target: &UpstreamTarget,
        call: &UpstreamCall,
        body: Option<&[u8]>,
        watch: &Rc<CallWatch>,
    ) -> Result<UreqResult> {
        let mut again = matches!(call.method, "GET" | "HEAD") && body.is_none();
        loop {
            watch.connected.set(false);
            let head = head(target, call, None)?;
            let sent = match body {
                None => self.agent.run(head),
                Some(body) => self.agent.run(with_body(head, body)),
            };
            let stale = |error: &UreqError| {
                let lost = !matches!(error, UreqError::Io(error) if WaitError::of(error).is_some_and(|cut| cut != WaitError::UpstreamClosed));
                lost && !watch.connected.get() && !watch.received.get()
            };
            match sent {
                Err(error) if again && stale(&error) => again = false,
                sent => return Ok(sent),
            }
        }
    }
}

type UreqResult = std::result::Result<ureq::http::Response<ureq::Body>, UreqError>;

fn with_body<B: AsSendBody>(head: Request<()>, body: B) -> Request<B> {
    let (parts, ()) = head.into_parts();
    Request::from_parts(parts, body)
}

/// Returns the head of a request, without the length of its body, which ureq adds.
fn head(target: &UpstreamTarget, call: &UpstreamCall, encoding: Option<&'static str>) -> Result<Request<()>> {
    let odd = |what: &str| Error::new(Code::InvalidRequest, format!("{what} cannot be passed on"));
    let method = Method::from_bytes(call.method.as_bytes()).map_err(|_| odd("The method"))?;
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = target.url(&call.path_and_query).parse().map_err(|_| odd("The path"))?;
    let headers = request.headers_mut();
    let mut add = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| odd("A header's name"))?;
        headers.append(name, HeaderValue::from_str(value).map_err(|_| odd("A header's value"))?);
        Ok::<(), Error>(())
    };
    for (name, value) in call.headers.iter().filter(|(name, _)| headers::is_request_header_forwarded(name)) {
        add(name, value)?;
    }
    if let Some(directory) = &call.directory {
        add(DIRECTORY, directory)?;
    }
    if let Some(authorization) = &target.authorization {
        add("authorization", authorization)?;
    }
    if let Some(encoding) = encoding {
        add("transfer-encoding", encoding)?;
    }
    if let Some(offered) = &call.upgrade {
        add("connection", "Upgrade")?;
        add("upgrade", "websocket")?;
        if let Some(kept) = headers::subprotocols(offered.iter().map(String::as_str)) {
            add("sec-websocket-protocol", &kept)?;
        }
    }
    Ok(request)
}

impl Upstreams {
    fn answer(
        &self,
        call: &UpstreamCall,
        response: ureq::http::Response<ureq::Body>,
        watch: &Rc<CallWatch>,
    ) -> Result<UpstreamResponse> {
        let (parts, body) = response.into_parts();
        let status = parts.status.as_u16();
        // A header that is not UTF-8 is decoded as Latin-1 (RFC 9110, 5.5).
        let text = |value: &HeaderValue| match std::str::from_utf8(value.as_bytes()) {
            Ok(text) => text.to_owned(),
            Err(_) => value.as_bytes().iter().copied().map(char::from).collect(),
        };
        let listed = parts.headers.get_all("connection").iter().map(text).collect::<Vec<_>>().join(",");
        let named: Vec<String> = listed.split(',').map(|name| name.trim().to_owned()).collect();
        let kept = parts
            .headers
            .iter()
            .filter(|(name, _)| headers::is_response_header_forwarded(name.as_str(), &named));
        let headers = kept.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        let declared_length = parts.headers.get("content-length").and_then(|value| text(value).parse().ok());
        let upgraded = watch.upgraded.take().filter(|_| status == 101);
        let rest = match upgraded {
            Some((channel, early)) => ResponseContent::Tunnel(Tunnel::new(channel, early, watch.clone())),
            None if status < 200 => {
                let message = "The OpenCode of this workspace switched protocols without a request to do so";
                return Err(Error::new(Code::OpencodeUnreachable, message));
            }
            None if call.method == "HEAD" || matches!(status, 204 | 304) || declared_length == Some(0) => {
                ResponseContent::Empty(declared_length)
            }
            None => {
                let length = body.content_length();
                let body = UpstreamBody { reader: body.into_reader(), watch: watch.clone() };
                ResponseContent::Body(body, length)
            }
        };
        Ok(UpstreamResponse { status, headers, content: rest })
    }

    fn explain(&self, target: &UpstreamTarget, error: &UreqError) -> Error {
        let cut = match error {
            UreqError::Io(error) => WaitError::of(error),
            _ => None,
        };
        let unreachable = |what: String| target.failed(Code::OpencodeUnreachable, &what);
        match (cut, error) {
            (Some(WaitError::ClientDisconnected), _) => {
                Error::new(Code::Cancelled, "The client disconnected")
            }
            (Some(WaitError::ServerStopping), _) => {
                Error::new(Code::ShuttingDown, "The server is shutting down")
            }
            (Some(cut @ (WaitError::ConnectTimeout | WaitError::TimedOut)), _) => {
                target.failed(Code::OpencodeTimeout, &cut.to_string())
            }
            (Some(cut @ (WaitError::UpstreamClosed | WaitError::Address(_))), _) => {
                unreachable(cut.to_string())
            }
            // OpenCode has exited, and its supervisor is about to record that.
            (None, UreqError::Io(error))
                if target.is_managed && error.kind() == io::ErrorKind::ConnectionRefused =>
            {
                managed::starting()
            }
            (None, UreqError::HostNotFound) => unreachable("the host name does not resolve".into()),
            (None, UreqError::Io(error)) => unreachable(error.to_string()),
            (None, error) => unreachable(format!("its response is invalid ({error})")),
        }
    }
}
