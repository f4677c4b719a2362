//! berth's own queries to OpenCode about a request that is about to be forwarded: the directory of a session, the
//! template of a command.
//!
//! The data can change between the query and the request. A client cannot exploit this: sessions move only by routes
//! that require an owner token ([`super::sessions::moves`]), and a client that can change a template (`POST
//! /workspace/:id/commands`, a file of the workspace, OpenCode's configuration) can also write `mcp` and `plugin`
//! entries, which OpenCode starts as programs. In manual mode a person approves each of these writes, and the command
//! itself.
//!
//! Threads: the caller's thread, which waits for the upstream. Lock: the session cache, a leaf.

use std::collections::HashMap;
use std::io::Read as _;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::rules;
use super::target::UpstreamTarget;
use super::upstream::{Payload, ResponseContent, UpstreamCall, UpstreamResponse, Upstreams};
use super::watch::CallWatch;
use crate::base::thread::lock;
use crate::base::{Code, Error, Result};
use crate::proc::Cancel;

/// The maximum size of a response to a query.
const ANSWER_BYTES: u64 = 8 << 20;

/// How long OpenCode may take to respond to a query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the directory of a session is cached. A client that follows a session sends several requests a second.
const SESSION_CACHE_TTL: Duration = Duration::from_secs(10);

/// The maximum number of sessions in the cache.
const SESSION_CACHE_ENTRIES: usize = 4096;

/// The cached directories of sessions, by OpenCode's URL and session id.
#[derive(Debug, Default)]
pub(super) struct SessionCache(Mutex<HashMap<(String, String), (String, Instant)>>);

impl SessionCache {
    fn get(&self, key: &(String, String)) -> Option<String> {
        let known = lock(&self.0);
        let (directory, since) = known.get(key)?;
        (since.elapsed() < SESSION_CACHE_TTL).then(|| directory.clone())
    }

    fn put(&self, key: (String, String), directory: String) {
        let mut known = lock(&self.0);
        if known.len() >= SESSION_CACHE_ENTRIES {
            known.retain(|_, (_, since)| since.elapsed() < SESSION_CACHE_TTL);
        }
        if known.len() < SESSION_CACHE_ENTRIES {
            known.insert(key, (directory, Instant::now()));
        }
    }
}

/// Sends `GET path` to OpenCode, for `directory` or, if that is `None`, for the directory of `call`.
fn query(
    upstreams: &Upstreams,
    target: &UpstreamTarget,
    call: &UpstreamCall,
    (path, directory): (&str, Option<&str>),
    gone: &Cancel,
) -> Result<(u16, Vec<u8>)> {
    let kept = |name: &str| name.eq_ignore_ascii_case("x-opencode-workspace");
    let query = match directory {
        Some(directory) => format!("directory={}", rules::query_value(directory)),
        None => rules::location_query(call.path_and_query.split_once('?').map_or("", |(_, query)| query)),
    };
    let question = UpstreamCall {
        method: "GET",
        path_and_query: if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") },
        headers: call.headers.iter().filter(|(name, _)| kept(name)).cloned().collect(),
        directory: directory.map(rules::directory_header).or_else(|| call.directory.clone()),
        upgrade: None,
    };
    let watch: Rc<CallWatch> = upstreams.watch_for(&question, gone.clone(), QUERY_TIMEOUT);
    let UpstreamResponse { status, content: rest, .. } =
        upstreams.call(target, &question, Payload::None, &watch)?;
    let mut text = Vec::new();
    if let ResponseContent::Body(body, _) = rest {
        let read = body.take(ANSWER_BYTES + 1).read_to_end(&mut text);
        read.map_err(|error| unreadable_answer(target, path, &error.to_string()))?;
    }
    if text.len() as u64 > ANSWER_BYTES {
        return Err(unreadable_answer(target, path, "it is too long"));
    }
    Ok((status, text))
}

fn unreadable_answer(target: &UpstreamTarget, path: &str, why: &str) -> Error {
    target.failed(Code::OpencodeUnreachable, &format!("its response to GET {path} cannot be read: {why}"))
}

/// Returns the directory of a session, or `None` if there is no such session. With `afresh` the cache is not used.
///
/// # Errors
/// Fails for the same reasons as [`Upstreams::call`], and with `OpencodeUnreachable` for a response that cannot be
/// parsed.
pub fn session_directory(
    upstreams: &Upstreams,
    target: &UpstreamTarget,
    call: &UpstreamCall,
    (id, afresh): (&str, bool),
    gone: &Cancel,
) -> Result<Option<String>> {
    let key = (target.url(""), id.to_owned());
    if let Some(directory) = upstreams.sessions.get(&key).filter(|_| !afresh) {
        return Ok(Some(directory));
    }
    let path = format!("/session/{}", rules::query_value(id));
    let (status, text) = query(upstreams, target, call, (&path, None), gone)?;
    let found: Option<Value> = serde_json::from_slice(&text).ok();
    match (status, found.as_ref().and_then(|session| session["directory"].as_str())) {
        (200, Some(directory)) => {
            upstreams.sessions.put(key, directory.to_owned());
            Ok(Some(directory.to_owned()))
        }
        (404, _) => Ok(None),
        (status, _) => {
            Err(unreadable_answer(target, &path, &format!("status {status}, {} bytes", text.len())))
        }
    }
}

/// Returns the template of a command as OpenCode has loaded it for `directory` or, if that is `None`, for the
/// directory of `call`. Returns `None` if there is no such command, or if its text is not known in advance, as for
/// prompts of MCP servers.
///
/// # Errors
/// Fails for the same reasons as [`Upstreams::call`], and with `OpencodeUnreachable` for a response that is not a
/// list.
pub fn template(
    upstreams: &Upstreams,
    target: &UpstreamTarget,
    call: &UpstreamCall,
    (name, directory): (&str, Option<&str>),
    gone: &Cancel,
) -> Result<Option<String>> {
    let (status, text) = query(upstreams, target, call, ("/command", directory), gone)?;
    if status != 200 {
        return Err(unreadable_answer(target, "/command", &format!("status {status}, {} bytes", text.len())));
    }
    let list: Vec<Value> = serde_json::from_slice(&text)
        .map_err(|error| unreadable_answer(target, "/command", &error.to_string()))?;
    let mut found = list.iter().filter(|command| command["name"] == name);
    // The prompt of an MCP server can differ at each request, so its text is not returned.
    let entry = found.next().filter(|command| command["source"] != "mcp" && command["mcp"] != true);
    let template = entry.and_then(|command| command["template"].as_str()).map(str::to_owned);
    Ok(if found.next().is_some() { None } else { template })
}
