//! The client with which `berth approvals`, `berth status` and other commands call a running server, with the host
//! token. Calls have a deadline and responses a size limit. Messages of the server are printed on one line, with
//! control characters escaped.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use ureq::Agent;
use ureq::unversioned::transport::TcpConnector;

use super::unix_socket::UnixConnector;
use crate::base::{Error, Result, limits, logging};
use crate::config::{self, ClientPlan, CommandLine, FlagValues};
use crate::opencode::HostLookup;
use crate::proc::{Cgroups, CgroupsHandle};

/// A client of a server.
pub(super) struct ApiClient {
    agent: Agent,
    /// The beginning of all URLs: the server's URL, or a placeholder if the server listens on a Unix socket.
    base: String,
    pub(super) plan: ClientPlan,
}

/// Returns a client of the server at `url`, with the host token from the command line.
pub(super) fn at(url: &str, line: &CommandLine) -> Result<ApiClient> {
    let flags = FlagValues {
        config: line.config.clone(),
        data_dir: line.data_dir.clone(),
        openwork_url: Some(url.to_owned()),
        host_token: line.host_token.clone(),
        ..FlagValues::default()
    };
    of(&flags.into())
}

/// Returns a client of the program at `url`, without a token.
pub(super) fn without_token(url: &str, line: &CommandLine) -> Result<ApiClient> {
    let mut client = at(url, line)?;
    client.plan.host_token = None;
    Ok(client)
}

/// Returns a client of the server that the command line and the settings name.
pub(super) fn of(line: &CommandLine) -> Result<ApiClient> {
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    let plan = config::resolve_client(line, &config::process_env, &current_dir)?;
    // The proxies of the environment are for external hosts, so the client uses none.
    let config = Agent::config_builder().http_status_as_error(false).max_redirects(0).proxy(None).build();
    let lookup = HostLookup::new(Cgroups::from_handle(CgroupsHandle::default()));
    let (agent, base) = match plan.url.strip_prefix("unix:") {
        Some(path) => {
            let connector = UnixConnector(path.into());
            (Agent::with_parts(config, connector, lookup), "http://127.0.0.1".to_owned())
        }
        None => (Agent::with_parts(config, TcpConnector::default(), lookup), plan.url.clone()),
    };
    Ok(ApiClient { agent, base, plan })
}

impl ApiClient {
    /// Calls the server. Returns the JSON of a successful response.
    pub(super) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (status, answer) = self.call_within(method, path, body, limits::CLI_ANSWER)?;
        if status == 204 || (200..300).contains(&status) && !answer.is_null() {
            return Ok(answer);
        }
        Err(self.refused(status, &answer))
    }

    /// Returns the error for a response with a status other than success.
    pub(super) fn refused(&self, status: u16, answer: &Value) -> Error {
        let said = answer["message"]
            .as_str()
            .or(answer["error"].as_str())
            .unwrap_or("the response is not that of an OpenWork server");
        Error::internal(format!("{} answered {status}: {}", self.plan.url, logging::one_line(said)))
    }

    /// Calls the server within a time limit. Returns the status and the JSON of the response.
    pub(super) fn call_within(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<(u16, Value)> {
        let mut response = self.send(method, path, body, patience)?;
        let status = response.status().as_u16();
        let text = response
            .body_mut()
            .with_config()
            .limit(limits::CLI_ANSWER_BYTES)
            .read_to_string()
            .map_err(|error| self.lost(&error))?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Requests `path` and returns the body of the response, which may have any size.
    pub(super) fn open(&self, path: &str) -> Result<impl std::io::Read + use<>> {
        let response = self.send("GET", path, None, limits::CLI_ANSWER)?;
        match response.status().as_u16() {
            200 => Ok(response.into_body().into_reader()),
            404 => Err(Error::internal(format!(
                "{} answered 404 to {path}: there is none, or not any more",
                self.plan.url
            ))),
            status => Err(Error::internal(format!("{} answered {status} to {path}", self.plan.url))),
        }
    }

    /// Requests a stream and returns its lines. The stream ends after [`limits::CLI_STREAM`] at the latest.
    pub(super) fn lines(&self, path: &str) -> Result<impl Iterator<Item = std::io::Result<String>> + use<>> {
        let response = self.send("GET", path, None, limits::CLI_STREAM)?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(Error::internal(format!("{} answered {status} to {path}", self.plan.url)));
        }
        Ok(BufReader::new(response.into_body().into_reader()).lines())
    }

    /// Checks that the HTTP server at `url` responds with success. Returns the JSON of the response.
    pub(super) fn look(&self, url: &str) -> Result<Value> {
        let mut request = self.agent.get(url);
        if let Some((username, password)) = &self.plan.opencode_credential {
            let basic = BASE64_STANDARD.encode(format!("{username}:{password}"));
            request = request.header("Authorization", format!("Basic {basic}"));
        }
        let call = request.config().timeout_global(Some(limits::CLI_ANSWER)).build().call();
        let mut response = call.map_err(|error| Error::internal(format!("{url}: {error}")))?;
        let text = response.body_mut().with_config().limit(limits::CLI_ANSWER_BYTES).read_to_string();
        match (response.status().as_u16(), text) {
            (200..300, Ok(text)) => Ok(serde_json::from_str(&text).unwrap_or(Value::Null)),
            (status, _) => Err(Error::internal(format!("{url} answered {status}"))),
        }
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>> {
        let url = format!("{}{path}", self.base);
        let mut request = ureq::http::Request::builder().method(method).uri(&url);
        if let Some(token) = &self.plan.host_token {
            request = request.header("X-OpenWork-Host-Token", token);
        }
        let text = body.map(Value::to_string).unwrap_or_default();
        let request = request
            .header("Content-Type", "application/json")
            .body(text)
            .map_err(|error| Error::config(&url, error))?;
        let request = self.agent.configure_request(request).timeout_global(Some(patience)).build();
        self.agent.run(request).map_err(|error| self.lost(&error))
    }

    fn lost(&self, error: &ureq::Error) -> Error {
        Error::internal(format!(
            "No answer from {} ({error}); is the server running? --openwork-url names another",
            self.plan.url
        ))
    }
}
