//! `berth host --check`: performs the first steps of a client, both directly at OpenCode and through berth's proxy.
//! Prints one line for each step on standard error.

use std::io::{BufRead as _, BufReader, Read as _};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::unversioned::transport::TcpConnector;

use crate::base::{Error, Result, limits, logging};
use crate::opencode::HostLookup;
use crate::proc::{Cgroups, CgroupsHandle};
use crate::server::RunningServer;

/// The time limit of a step. On a busy machine, creating OpenCode's first session takes half a minute.
const PATIENCE: Duration = Duration::from_secs(60);

/// A step of the check that has ended.
pub(super) struct Step {
    name: String,
    ended: Result<Duration, String>,
}

impl Step {
    fn passed(name: &str, took: Duration) -> Step {
        eprintln!("ok {name} {}", took.as_millis());
        Step { name: name.to_owned(), ended: Ok(took) }
    }

    /// Prints a failure and returns the failed step.
    pub(super) fn failed(name: &str, why: &str) -> Step {
        eprintln!("fail {name}: {}", logging::one_line(why));
        Step { name: name.to_owned(), ended: Err(why.to_owned()) }
    }

    pub(super) fn is_good(&self) -> bool {
        self.ended.is_ok()
    }

    pub(super) fn document(&self) -> Value {
        match &self.ended {
            Ok(took) => json!({ "name": self.name, "ok": true, "ms": took.as_millis() as u64 }),
            Err(why) => json!({ "name": self.name, "ok": false, "error": why }),
        }
    }
}

/// A server that the check calls: its base URL and the headers with the credential.
struct CheckPeer {
    url: String,
    headers: Vec<(&'static str, String)>,
}

/// The checks of a started host.
pub(super) struct Checks {
    agent: Agent,
    server: CheckPeer,
    host: CheckPeer,
    /// OpenCode directly, and OpenCode through the proxy.
    opencodes: Vec<(&'static str, CheckPeer)>,
    workspace_id: String,
}

impl Checks {
    pub(super) fn new(up: &RunningServer) -> Checks {
        let config = Agent::config_builder().http_status_as_error(false).max_redirects(0).proxy(None).build();
        let lookup = HostLookup::new(Cgroups::from_handle(CgroupsHandle::default()));
        let url = up.address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:");
        let bearer = vec![("Authorization", format!("Bearer {}", up.client_token))];
        let mut opencodes = Vec::new();
        if let Some((managed, direct)) = up.managed.as_ref().and_then(|one| Some((one, one.direct_url()?))) {
            let (username, password) = managed.credential();
            let basic = BASE64_STANDARD.encode(format!("{username}:{password}"));
            let headers = vec![("Authorization", format!("Basic {basic}"))];
            opencodes.push(("opencode", CheckPeer { url: direct, headers }));
        }
        let mounted = format!("{url}/w/{}/opencode", up.workspace_id);
        opencodes.push(("proxy", CheckPeer { url: mounted, headers: bearer.clone() }));
        Checks {
            agent: Agent::with_parts(config, TcpConnector::default(), lookup),
            server: CheckPeer { url: url.clone(), headers: bearer },
            host: CheckPeer { url, headers: vec![("X-OpenWork-Host-Token", up.host_token.clone())] },
            opencodes,
            workspace_id: up.workspace_id.clone(),
        }
    }

    /// Runs all checks.
    pub(super) fn run(&self, events: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut step = |name: &str, step: &dyn Fn() -> Result<()>| {
            let begun = Instant::now();
            steps.push(match step() {
                Ok(()) => Step::passed(name, begun.elapsed()),
                Err(error) => Step::failed(name, &error.to_string()),
            });
        };
        step("health", &|| expect(self.get(&self.server, "/health")?["ok"] == true, "ok is not true"));
        step("workspaces", &|| {
            let list = self.get(&self.server, "/workspaces")?;
            expect(list["items"].as_array().is_some_and(|items| !items.is_empty()), "there is none")
        });
        let config = format!("/workspace/{}/config", self.workspace_id);
        step("config", &|| self.get(&self.server, &config).map(drop));
        step("approvals", &|| expect(self.get(&self.host, "/approvals")?["items"].is_array(), "no list"));
        for (name, peer) in &self.opencodes {
            step(&format!("{name}.health"), &|| {
                expect(self.get(peer, "/global/health")?["healthy"] == true, "it is not healthy")
            });
            step(&format!("{name}.session"), &|| {
                let id = self.session(peer)?;
                let listed = self.get(peer, &format!("/session/{id}/message?limit=10"));
                self.call(peer, "DELETE", &format!("/session/{id}"), None)?;
                expect(listed?.is_array(), "its messages are no list")
            });
            if events {
                step(&format!("{name}.events"), &|| self.events(peer));
            }
        }
        steps
    }

    fn session(&self, peer: &CheckPeer) -> Result<String> {
        let made = self.call(peer, "POST", "/session", Some(&json!({ "title": "berth check" })))?;
        let id = made["id"]
            .as_str()
            .filter(|id| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
        id.map(str::to_owned).ok_or_else(|| Error::internal("the new session has no id"))
    }

    /// Subscribes to OpenCode's events, creates a session, and waits for an event other than the greeting.
    fn events(&self, peer: &CheckPeer) -> Result<()> {
        let stream = self.send(peer, "GET", "/event", None)?;
        let mut lines =
            BufReader::new(stream.into_body().into_reader().take(limits::CLI_ANSWER_BYTES)).lines();
        let id = self.session(peer)?;
        let heard = lines.by_ref().map_while(std::io::Result::ok).any(|line| {
            let event: Value = line
                .strip_prefix("data:")
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default();
            event["type"]
                .as_str()
                .is_some_and(|kind| !["server.connected", "server.heartbeat"].contains(&kind))
        });
        self.call(peer, "DELETE", &format!("/session/{id}"), None)?;
        expect(heard, "no event reported the new session")
    }

    fn get(&self, peer: &CheckPeer, path: &str) -> Result<Value> {
        self.call(peer, "GET", path, None)
    }

    fn call(&self, peer: &CheckPeer, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut response = self.send(peer, method, path, body)?;
        let text = response.body_mut().with_config().limit(limits::CLI_ANSWER_BYTES).read_to_string();
        let text = text.map_err(|error| Error::internal(format!("{method} {path}: {error}")))?;
        serde_json::from_str(&text).map_err(|_| Error::internal(format!("{method} {path} answered no JSON")))
    }

    fn send(
        &self,
        peer: &CheckPeer,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<ureq::http::Response<ureq::Body>> {
        let url = format!("{}{path}", peer.url);
        let mut request = ureq::http::Request::builder().method(method).uri(&url);
        for (name, value) in &peer.headers {
            request = request.header(*name, value);
        }
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = request.header("Content-Type", "application/json").body(text);
        let request = request.map_err(|error| Error::internal(format!("{url}: {error}")))?;
        let request = self.agent.configure_request(request).timeout_global(Some(PATIENCE)).build();
        let response = self.agent.run(request);
        let response = response.map_err(|error| Error::internal(format!("{method} {path}: {error}")))?;
        match response.status().as_u16() {
            200..300 => Ok(response),
            status => Err(Error::internal(format!("{method} {path} answered {status}"))),
        }
    }
}

fn expect(good: bool, otherwise: &str) -> Result<()> {
    if good { Ok(()) } else { Err(Error::internal(otherwise)) }
}
