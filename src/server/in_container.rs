//! Runs the server in a container together with its OpenCode (`--sandbox-server inside`). This process starts the
//! container with an engine's program, waits until the server in the container answers, and stops it. This process
//! serves no requests itself.

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::Agent;

use super::signals::Signals;
use super::{RunningServer, Settings, take_cgroups};
use crate::access::Credentials;
use crate::base::thread::{JoinOnDrop, lock, spawn};
use crate::base::{At, Error, Result, limits, logging};
use crate::host::OpencodePlan;
use crate::host::engine::{self, EngineCommand, EnginePlan, ServerContainer};
use crate::proc::spawn::pipe;
use crate::proc::{
    Cancel, Cgroups, Exit, OutputCapture, Process as _, ProcessIo, ProcessOutcome, Spec, Stdio, pump,
};
use crate::store::file;
use crate::store::lock::DataLock;

/// How long the server in the container may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
/// Timeout of one request to the server in the container.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The timeout of a process that has no deadline.
const NO_DEADLINE: Duration = Duration::from_secs(u32::MAX as u64);
/// Number of bytes of the engine program's output that are kept.
const OUTPUT_BYTES: usize = 64 << 10;
/// Maximum size of an answer of the server in the container.
const ANSWER_BYTES: u64 = 1 << 20;

/// The exit of the engine's program, and its last output; `None` while the program runs.
type EngineOutcome = Arc<Mutex<Option<(Option<Exit>, String)>>>;

/// The engine's program, which runs as long as the container.
struct EngineChild {
    /// The input of the engine's program. Closing it stops the container.
    input: Option<OwnedFd>,
    kill: Cancel,
    outcome: EngineOutcome,
    _watch: JoinOnDrop,
}

/// The programs that the container has besides OpenCode.
#[derive(Clone, Debug, Default)]
pub struct ContainerContents {
    /// The path of the server's program; `None` for the program of this process.
    pub server: Option<PathBuf>,
    /// The port of a bot on this host and in the container.
    pub bot: Option<(u16, u16)>,
}

/// Runs the container until a signal arrives or the container ends. Calls `up` on a separate thread once the server in
/// the container answers.
///
/// # Errors
/// When the container cannot be started, or its server ends by itself.
pub fn run_inside(
    settings: &Settings,
    opencode: &OpencodePlan,
    plan: &EnginePlan,
    contents: &ContainerContents,
    up: Box<dyn FnOnce(RunningServer) + Send>,
) -> Result<()> {
    file::create_dir_private(&settings.data_dir)?;
    let _lock = DataLock::take(&settings.data_dir)?;
    let signals = Signals::catch()?;
    let (client, host) = (&settings.client_token, &settings.host_token);
    let credentials = Credentials::load(&settings.data_dir, client, host, &settings.token_store, None)?;
    let tokens = (credentials.client_token().to_owned(), credentials.host_token().to_owned());
    let cgroups = take_cgroups(&settings.data_dir)?;
    cgroups.sweep(&[]);
    let folder = settings.data_dir.join("host");
    file::create_dir_private(&folder)?;
    let (staging, secrets) = (folder.join(engine::SEED), folder.join(engine::SECRETS));
    let server = match &contents.server {
        Some(server) => server.clone(),
        None => std::env::current_exe()
            .map_err(|error| Error::internal("Could not read berth's own path").with_source(error))?,
    };
    let words = words(settings);
    let publish = address(settings)?;
    let seed = ServerContainer {
        plan,
        staging: &staging,
        server: &server,
        publish,
        bot: contents.bot,
        words: &words,
    };
    plan.clear(&cgroups)?;
    engine::forget(&folder);
    engine::keep(&folder, plan)?;
    seed.stage()?;
    let password = match &opencode.password {
        Some(password) => password.clone(),
        None => crate::access::secret::random_hex::<32>()?,
    };
    let own = [
        ("OPENWORK_TOKEN", &tokens.0),
        ("OPENWORK_HOST_TOKEN", &tokens.1),
        ("OPENWORK_OPENCODE_USERNAME", &opencode.username),
        ("OPENWORK_OPENCODE_PASSWORD", &password),
    ];
    let own = own.map(|(name, value)| (name.to_owned(), value.clone()));
    let passed = opencode.env.iter().filter(|(name, _)| !crate::host::is_of_the_host(name)).cloned();
    // A bot must listen on the port that the engine publishes.
    let bot = contents.bot.map(|(_, inside)| {
        let port = ["OWPENBOT_HEALTH_PORT", "OPENCODE_ROUTER_HEALTH_PORT"];
        let host = ("OWPENBOT_HEALTH_HOST".to_owned(), "0.0.0.0".to_owned());
        port.map(|name| (name.to_owned(), inside.to_string())).into_iter().chain([host])
    });
    let variables = passed.chain(own).chain(bot.into_iter().flatten());
    file::replace(&secrets, env_file(variables).as_bytes(), 0o600)?;
    let running = start(&plan.command, &seed.command_line(&secrets), &cgroups, signals.stopper()?);
    let running = running.inspect_err(|_| drop(std::fs::remove_file(&secrets)))?;
    let stopping = Cancel::new()?;
    let waiting = ReadinessWait {
        plan: plan.clone(),
        cgroups: cgroups.clone(),
        publish,
        tokens,
        outcome: running.outcome.clone(),
        deadline: Instant::now() + opencode.start_timeout + settings.image_timeout,
        secrets: secrets.clone(),
        stopping: stopping.clone(),
    };
    let stop = signals.by_hand.try_clone().at("duplicate", "a socket")?;
    let give_up = signals.stopper()?;
    let why: Arc<Mutex<Option<Error>>> = Arc::default();
    let up_thread = spawn("up".into(), limits::STACK, {
        let (why, stopping) = (why.clone(), stopping.clone());
        move || match waiting.wait(stop) {
            Ok(now) => up(now),
            Err(_) if stopping.is_cancelled() => {}
            Err(error) => {
                *lock(&why) = Some(error);
                give_up();
            }
        }
    })?;
    signals.wait()?;
    stopping.cancel();
    log::info!("Stopping");
    // Until the server in the container has answered, there are no requests to complete.
    let patience = if secrets.exists() { Duration::ZERO } else { STOP_TIMEOUT };
    let stopped = end(running, plan, &folder, &cgroups, patience);
    let _ = std::fs::remove_file(&secrets);
    drop(up_thread);
    seed.unstage()?;
    stopped?;
    lock(&why).take().map_or(Ok(()), Err)
}

/// Returns the address at which the port is published.
fn address(settings: &Settings) -> Result<SocketAddr> {
    let first = settings.listen.first().map_or("127.0.0.1:8787", String::as_str);
    let problem = "with --sandbox-server inside the server has one TCP address";
    match first.replace("localhost:", "127.0.0.1:").parse() {
        Ok(address) if settings.listen.len() <= 1 => Ok(address),
        _ => Err(Error::config("--listen", problem)),
    }
}

/// Returns the flags that are passed on to the server in the container.
fn words(settings: &Settings) -> Vec<String> {
    let mut words = vec![
        format!("--approval={}", settings.approval.mode.as_str()),
        format!("--approval-timeout={}", settings.approval.timeout.as_millis()),
    ];
    if settings.read_only {
        words.push("--read-only".to_owned());
    }
    if !settings.cors_origins.is_empty() {
        words.push(format!("--cors={}", settings.cors_origins.join(",")));
    }
    words
}

/// Returns the variables in the format of Docker's --env-file: one variable on a line, so a value with a line break
/// cannot be passed.
fn env_file(variables: impl Iterator<Item = (String, String)>) -> String {
    let mut text = String::new();
    for (name, value) in variables {
        if value.contains(['\n', '\r']) {
            log::warn!(
                "{name} has several lines, which an engine's --env-file cannot pass; it is not set in the sandbox"
            );
        } else {
            text += &format!("{name}={value}\n");
        }
    }
    text
}

/// Starts the engine's program; `ended` is called when the program ends.
fn start(
    command: &EngineCommand,
    words: &[String],
    cgroups: &Cgroups,
    ended: impl Fn() + Send + 'static,
) -> Result<EngineChild> {
    let (input_child, input) = pipe()?;
    let (out, out_child) = pipe()?;
    let (err, err_child) = pipe()?;
    let stdio = Stdio { stdin: input_child, stdout: out_child, stderr: err_child };
    let spec = Spec::bare(&command.program, "/").args(words.iter().cloned()).envs(&command.env);
    let mut child = spec.start(stdio, cgroups.group("engine/run")?)?;
    let (kill, outcome) = (Cancel::new()?, EngineOutcome::default());
    let watch = spawn("sandbox".into(), limits::STACK, {
        let (kill, outcome) = (kill.clone(), outcome.clone());
        move || {
            let (mut stdout, mut stderr) =
                (OutputCapture::new(OUTPUT_BYTES), OutputCapture::new(OUTPUT_BYTES));
            let io = ProcessIo { stdin: None, stdout: out, stderr: err, out: &mut stdout, err: &mut stderr };
            let exit = match pump(&mut child, io, NO_DEADLINE, &kill) {
                Ok(ProcessOutcome::Exited(exit)) => Some(exit),
                _ => None,
            };
            child.kill();
            let said = stderr.finish().into_text();
            let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            *lock(&outcome) = Some((exit, logging::one_line(last)));
            ended();
        }
    })?;
    Ok(EngineChild { input: Some(input), kill, outcome, _watch: watch })
}

/// Stops the container: the server in it stops when its input closes.
fn end(
    mut running: EngineChild,
    plan: &EnginePlan,
    folder: &Path,
    cgroups: &Cgroups,
    patience: Duration,
) -> Result<()> {
    let by_itself = lock(&running.outcome).clone();
    running.input.take();
    let deadline = Instant::now() + patience;
    while lock(&running.outcome).is_none() && Instant::now() < deadline {
        std::thread::sleep(POLL_INTERVAL / 2);
    }
    running.kill.cancel();
    match plan.clear(cgroups) {
        Ok(()) => engine::forget(folder),
        Err(error) => log::warn!("The container {} may still exist: {error}", plan.name),
    }
    match by_itself {
        // The container was stopped through its engine, with `docker stop` or `docker kill`.
        None | Some((Some(Exit::Code(0 | 137 | 143)), _)) => Ok(()),
        Some((exit, said)) => {
            let exit = exit.map_or_else(|| "killed".to_owned(), |exit| exit.to_string());
            Err(plan.explain(Error::internal(format!("The server in the container ended: {exit}; {said}"))))
        }
    }
}

/// Waits until the server in the container is ready.
struct ReadinessWait {
    plan: EnginePlan,
    cgroups: Cgroups,
    publish: SocketAddr,
    tokens: (String, String),
    outcome: EngineOutcome,
    deadline: Instant,
    secrets: std::path::PathBuf,
    stopping: Cancel,
}

impl ReadinessWait {
    /// Waits until the server in the container and its OpenCode answer.
    fn wait(mut self, stop: UnixStream) -> Result<RunningServer> {
        let config = Agent::config_builder().http_status_as_error(false).max_redirects(0).proxy(None).build();
        let agent = Agent::new_with_config(config);
        let health = self.until("its server does not answer", |waiting| {
            if waiting.publish.port() == 0 {
                let port = waiting.plan.published(&waiting.cgroups)?;
                waiting.publish.set_port(port);
            }
            waiting.get(&agent, "/health")
        })?;
        // The engine has read the secrets. Until now, only root could read the file.
        let _ = std::fs::remove_file(&self.secrets);
        let version = health["version"].as_str().unwrap_or("?").to_owned();
        if version != env!("CARGO_PKG_VERSION") {
            log::warn!("The server in the container has another version: {}", logging::one_line(&version));
        }
        self.until("its OpenCode does not answer", |waiting| waiting.get(&agent, "/opencode/global/health"))?;
        let workspaces = self.get(&agent, "/workspaces")?;
        let id = workspaces["activeId"].as_str().unwrap_or_default();
        let workspace_id = id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let (client_token, host_token) = self.tokens;
        let (address, stopping) = (format!("http://{}", self.publish), self.stopping);
        Ok(RunningServer { address, client_token, host_token, managed: None, workspace_id, stopping, stop })
    }

    fn until<T>(&mut self, what: &str, mut ask: impl FnMut(&mut ReadinessWait) -> Result<T>) -> Result<T> {
        loop {
            let error = match ask(self) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if lock(&self.outcome).is_some() || self.stopping.is_cancelled() {
                return Err(Error::internal("The container ended before its server answered"));
            }
            if Instant::now() >= self.deadline {
                return Err(Error::internal(format!("The container failed to start: {what} ({error})")));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn get(&self, agent: &Agent, path: &str) -> Result<Value> {
        let url = format!("http://{}{path}", self.publish.to_string().replace("0.0.0.0:", "127.0.0.1:"));
        let request = agent.get(&url).header("Authorization", format!("Bearer {}", self.tokens.0));
        let failed = |why: String| Error::internal(format!("GET {path}: {why}"));
        let answered = request.config().timeout_global(Some(ANSWER_TIMEOUT)).build().call();
        let answered = answered.map_err(|error| failed(error.to_string()))?;
        let status = answered.status().as_u16();
        let mut bytes = Vec::new();
        let read = answered.into_body().into_reader().take(ANSWER_BYTES).read_to_end(&mut bytes);
        read.map_err(|error| failed(error.to_string()))?;
        match status {
            200 => serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string())),
            status => Err(failed(format!("answered {status}"))),
        }
    }
}
