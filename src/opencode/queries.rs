//! Questions of berth's own to an OpenCode about a request, before it is passed on: where a session works, what the
//! template of a command is.
//!
//! Between such a question and the request the answer can change. That gives a client nothing: a session moves only with
//! routes that take an owner ([`super::sessions::moves`]), and who can change a template (`POST /workspace/:id/commands`,
//! a file of the workspace, OpenCode's configuration) can write the same folder's `mcp` and `plugin`, which OpenCode starts
//! as programs; in manual mode a person is asked for each of them, and for the command itself.
//!
//! Threads: the caller's, which waits for the upstream. Lock: the known sessions, a leaf.

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

/// The largest answer that is read.
const ANSWER_BYTES: u64 = 8 << 20;

/// How long OpenCode may take to answer.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the directory of a session is remembered: a client that follows a session asks several times a second.
const SESSION_CACHE_TTL: Duration = Duration::from_secs(10);

/// How many sessions are remembered.
const SESSION_CACHE_ENTRIES: usize = 4096;

/// The directories of sessions, by OpenCode and id.
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

/// Asks `path` of the OpenCode that `call` goes to, for the same directory, or for `directory`.
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
    target.failed(Code::OpencodeUnreachable, &format!("its answer to GET {path} cannot be read: {why}"))
}

/// The directory that a session works in; `None` if there is no such session. A remembered answer will do unless `afresh`.
///
/// # Errors
/// Those of [`Upstreams::call`]; `OpencodeUnreachable` for an answer that cannot be read.
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

/// The template of a command, as OpenCode has it loaded for the same directory as the call's, or for `directory`; `None`
/// where it has no such command or does not show its text, as for the prompts of MCP servers.
///
/// # Errors
/// Those of [`Upstreams::call`]; `OpencodeUnreachable` for an answer that is no list.
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
    // One whose text comes from an MCP server can be another the next time.
    let entry = found.next().filter(|command| command["source"] != "mcp" && command["mcp"] != true);
    let template = entry.and_then(|command| command["template"].as_str()).map(str::to_owned);
    Ok(if found.next().is_some() { None } else { template })
}
