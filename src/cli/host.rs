//! `berth host`: starts a server together with the OpenCode that the server runs, and checks, stops and shows such a
//! host. Results are printed on standard output, the log on standard error.

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use qrcodegen::{QrCode, QrCodeEcc};
use serde_json::{Value, json};

use super::host_check::{Checks, Step};
use super::host_state::{HostState, data_dir};
use super::screen::{self, HostScreen, ScreenInfo};
use super::{client, host_detach, host_sandbox, serve, status};
use crate::base::thread::lock;
use crate::base::{Code, Error, Result, clock, logging};
use crate::config::{self, CommandLine, Resolved, Style, table};
use crate::host::{Restart, SandboxPlan};
use crate::opencode::managed::Phase;
use crate::server::{self, RunningServer};
use crate::store::rolling::RollingLog;

/// The maximum size of each of the two files of `--log-file`.
const LOG_BYTES: u64 = 8 << 20;
/// How much longer the host waits for the announcement than for the start of OpenCode.
const MARGIN: Duration = Duration::from_secs(1);

/// Runs `berth host start`, `serve`, `stop`, `status` or `connect`.
///
/// # Errors
/// Fails for an invalid command line or setting (exit code 2), or if the command fails.
pub fn run(words: &[String], style: Style) -> Result<ExitCode> {
    let (word, rest) = match words.first() {
        Some(word) if !word.starts_with('-') => (word.as_str(), &words[1..]),
        _ => ("start", words),
    };
    match word {
        "start" | "serve" => start(rest, style),
        "status" => host_status(rest),
        "stop" => in_json(rest, stop(rest)),
        "connect" => in_json(rest, connect(rest)),
        other => Err(Error::config(
            other,
            "unknown command; there are host start, serve, stop, status and connect",
        )),
    }
}

/// Prints a failure also as JSON if the command line contains `--json`.
fn in_json(words: &[String], ended: Result<ExitCode>) -> Result<ExitCode> {
    match ended {
        Err(error) if words.iter().any(|word| word == "--json") => failure_in_json(error),
        ended => ended,
    }
}

fn failure_in_json(error: Error) -> Result<ExitCode> {
    if error.code() == Code::Config {
        return Err(error);
    }
    super::print(&format!("{:#}\n", json!({ "ok": false, "error": error.message() })));
    Ok(super::exit_code(&error))
}

/// Parses the flags. Returns an exit code instead if help or the version was requested and printed.
fn parsed(words: &[String], style: Style) -> Result<Result<CommandLine, ExitCode>> {
    let args = super::line_in("host", words, style)?;
    match args.as_ref().ok().and_then(|args| args.words.first()).filter(|_| style == Style::Strict) {
        Some(word) => Err(Error::config(word, "unexpected argument; see `berth host --help`")),
        None => Ok(args),
    }
}

/// The state of the thread that announces the started server.
struct Announcement {
    args: CommandLine,
    resolved: HostFacts,
    screen: Option<Arc<HostScreen>>,
    outcome: Arc<Mutex<HostOutcome>>,
}

/// The outcome of `berth host start`.
struct HostOutcome {
    code: ExitCode,
    /// Whether the announcement was printed.
    printed: bool,
}

/// The settings that the announcement contains.
struct HostFacts {
    run_id: String,
    workspace: String,
    approval: Value,
    data_dir: std::path::PathBuf,
    start_timeout: Duration,
    opencode_bin: Option<String>,
    /// The port at which the sandbox publishes a bot, if there is one.
    bot: Option<u16>,
    sandbox: host_sandbox::ChosenSandbox,
}

fn start(words: &[String], style: Style) -> Result<ExitCode> {
    let mut args = match parsed(words, style)? {
        Ok(args) => args,
        Err(code) => return Ok(code),
    };
    args.check_start(style)?;
    if args.workspace.is_empty() {
        let variable = table::HOST_WORKSPACE.vars[0];
        let named = config::process_env(variable).and_then(|named| named.into_string().ok());
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            args.note(&table::WORKSPACE, variable);
            args.workspace.push(named);
        } else {
            args.workspace.push(".".to_owned());
        }
    }
    let json = args.json;
    let outcome = Arc::new(Mutex::new(HostOutcome { code: ExitCode::SUCCESS, printed: false }));
    match start_with(args, style, &outcome) {
        Err(error) if json && !lock(&outcome).printed => failure_in_json(error),
        ended => ended,
    }
}

fn start_with(mut args: CommandLine, style: Style, outcome: &Arc<Mutex<HostOutcome>>) -> Result<ExitCode> {
    let wish = args.sandbox_wish(&config::process_env)?;
    let current_dir = std::env::current_dir().map_err(|error| Error::config("current folder", error))?;
    for folder in &args.workspace {
        let path = current_dir.join(folder);
        if !path.exists() {
            let place = args.place(&table::WORKSPACE);
            std::fs::create_dir_all(&path).map_err(|error| Error::config(place, error))?;
            eprintln!("Created the workspace {}", path.display());
        }
    }
    args.manage_opencode |= args.opencode_base_url.is_none();
    let mut resolved = serve::resolved(&args, &current_dir)?;
    let bot = args.bot_port(style, wish.server_inside, &config::process_env)?;
    let contents = server::ContainerContents {
        server: host_sandbox::server_program(&args, &wish, &current_dir)?,
        bot: bot.map(|port| (port, config::BOT_PORT)),
    };
    let sandbox = host_sandbox::choose(&wish, &mut resolved.settings, &resolved.run_id, &current_dir)?;
    if args.detach && !args.detached {
        return host_detach::run(&args, &resolved.settings.data_dir, &current_dir);
    }
    let screen = screen::is_wanted(&args)?.then(|| Arc::new(HostScreen::default()));
    let mut output = log_output(&args, &current_dir)?;
    if let Some(screen) = &screen {
        output = screen.log(output);
    }
    let Resolved { mut settings, log_format, verbose, run_id, .. } = resolved;
    logging::init(log_format, verbose, run_id.clone(), output);
    for name in &args.skipped {
        log::warn!("{name} has no effect here");
    }
    if let Some(plan) = settings.opencode.as_mut().filter(|_| args.check) {
        plan.restart = Restart::Never;
    }
    let facts = HostFacts {
        run_id,
        workspace: settings
            .workspaces
            .first()
            .map_or_else(String::new, |first| first.path.display().to_string()),
        approval: json!({
            "mode": settings.approval.mode.as_str(),
            "timeoutMs": settings.approval.timeout.as_millis() as u64,
            "readOnly": settings.read_only,
        }),
        data_dir: settings.data_dir.clone(),
        start_timeout: settings.opencode.as_ref().map_or(Duration::ZERO, |plan| {
            // The container of the sandbox and its image may have to be built first.
            plan.start_timeout + plan.sandbox.as_ref().map_or(Duration::ZERO, |_| settings.image_timeout)
        }),
        sandbox,
        bot,
        opencode_bin: settings.opencode.as_ref().map(|plan| plan.program.display().to_string()),
    };
    let data_dir = settings.data_dir.clone();
    let announcement =
        Announcement { args, resolved: facts, screen: screen.clone(), outcome: outcome.clone() };
    let up = Box::new(move |up: RunningServer| announcement.run(&up));
    let inside = settings.opencode.as_ref().and_then(|plan| match &plan.sandbox {
        Some(SandboxPlan::Engine(engine)) if wish.server_inside => Some((plan.clone(), engine.clone())),
        _ => None,
    });
    let ran = match inside {
        Some((opencode, engine)) => server::run_inside(&settings, &opencode, &engine, &contents, up),
        None => server::run_with(settings, &serve::service_manager(), Some(up)),
    };
    if let Some(screen) = screen {
        screen.end();
    }
    HostState::forget(&data_dir);
    ran?;
    Ok(lock(outcome).code)
}

/// Returns the destination of the log: `--log-file`, or standard error.
pub(super) fn log_output(args: &CommandLine, current_dir: &Path) -> Result<logging::LogOutput> {
    let Some(path) = &args.log_file else { return Ok(logging::LogOutput::Stderr) };
    let log = Mutex::new(RollingLog::open(&current_dir.join(path), LOG_BYTES)?);
    // A failed write to the log, for example on a full disk, is ignored, because it must not stop the server.
    Ok(logging::LogOutput::Other(Box::new(move |line: &[u8]| {
        let _ = lock(&log).line(String::from_utf8_lossy(line).trim_end());
    })))
}

impl Announcement {
    fn run(&self, up: &RunningServer) {
        let state = HostState::new(&up.address, &self.resolved.run_id, &self.resolved.workspace);
        if let Err(error) = state.and_then(|state| state.keep(&self.resolved.data_dir)) {
            log::error!("`berth host stop` and `status` will not find this host: {error}");
        }
        if let Some(screen) = &self.screen {
            if let Err(error) = self.shown(up).and_then(|shown| screen.begin(shown)) {
                log::error!("The screen could not be started: {error}");
            }
        }
        let deadline = Instant::now() + self.resolved.start_timeout + MARGIN;
        let ready = up.managed.as_ref().map_or(Ok(()), |managed| managed.wait(deadline));
        if ready.as_ref().is_err_and(|error| error.code() == Code::ShuttingDown) {
            return;
        }
        let reason =
            up.managed.as_ref().and_then(|managed| managed.state().reason).filter(|_| ready.is_err());
        if self.args.check {
            let steps = match &ready {
                Ok(()) => Checks::new(up).run(self.args.check_events),
                Err(error) => vec![Step::failed("opencode", reason.as_deref().unwrap_or(error.message()))],
            };
            let good = steps.iter().all(Step::is_good);
            let text = if self.args.json {
                let mut document = self.document(up);
                document["ok"] = json!(good);
                document["checks"] = steps.iter().map(Step::document).collect();
                format!("{document:#}\n")
            } else {
                (if good { "Checks: ok\n" } else { "Checks: failed\n" }).to_owned()
            };
            super::print(&text);
            let code = if good { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            *lock(&self.outcome) = HostOutcome { code, printed: true };
            return up.stop();
        }
        if self.screen.as_ref().is_some_and(|screen| screen.has_begun()) {
            return;
        }
        if let Some(reason) = &reason {
            eprintln!("OpenCode does not respond: {}", logging::one_line(reason));
        }
        let document = self.document(up);
        let text = if self.args.json {
            format!("{document:#}\n")
        } else {
            lines(&document, &self.resolved.data_dir)
        };
        lock(&self.outcome).printed = true;
        if self.args.detached {
            host_detach::announce(&text, ready.is_ok());
        } else {
            super::print(&text);
        }
    }

    /// Returns the content of the screen.
    fn shown(&self, up: &RunningServer) -> Result<ScreenInfo> {
        let mut client = client::at(&up.address, &self.args)?;
        client.plan.host_token = Some(up.host_token.clone());
        Ok(ScreenInfo {
            workspace: self.resolved.workspace.clone(),
            address: self.public(&up.address),
            sandbox: self.resolved.sandbox.backend,
            opencode_url: up.managed.as_ref().map(|_| self.opencode_url(up)),
            managed: up.managed.clone(),
            tokens: vec![("Owner", up.host_token.clone()), ("Client", up.client_token.clone())],
            client,
            stopping: up.stopping.clone(),
        })
    }

    /// Replaces the host of a server URL by the host of `--connect-host`, which clients use.
    fn public(&self, url: &str) -> String {
        self.args.connect_host.as_ref().map_or_else(|| url.to_owned(), |host| with_host(url, host))
    }

    fn opencode_url(&self, up: &RunningServer) -> String {
        format!("{}/w/{}/opencode", self.public(&up.address), up.workspace_id)
    }

    /// Returns the document that `--json` prints, in the format of OpenWork's orchestrator.
    fn document(&self, up: &RunningServer) -> Value {
        let HostFacts { run_id, workspace, approval, opencode_bin, .. } = &self.resolved;
        let (host, port) = host_and_port(&up.address);
        let mut opencode = json!({ "connectUrl": self.opencode_url(up) });
        if let Some(managed) = &up.managed {
            let state = managed.state();
            opencode["state"] = json!(state.phase.as_str());
            if let Some(url) = &state.url {
                opencode["baseUrl"] = json!(url);
                opencode["bindHost"] = json!("127.0.0.1");
                opencode["port"] = json!(host_and_port(url).1);
            }
            let (username, password) = managed.credential();
            opencode["username"] = json!(username);
            if managed.password_is_shared() {
                opencode["password"] = json!(password);
            }
            if let Some(version) = &state.version {
                opencode["version"] = json!(version);
            }
            if let Some(reason) = state.reason.as_ref().filter(|_| state.phase != Phase::Running) {
                opencode["error"] = json!(reason);
            }
        }
        let version = env!("CARGO_PKG_VERSION");
        let program = std::env::current_exe().unwrap_or_default().display().to_string();
        let mut binaries =
            json!({ "openworkServer": { "path": program, "source": "external", "actualVersion": version } });
        if let Some(path) = opencode_bin {
            binaries["opencode"] =
                json!({ "path": path, "source": "external", "actualVersion": opencode["version"] });
        }
        let mut document = json!({
            "runId": run_id,
            "pid": std::process::id(),
            "workspace": workspace,
            "workspaceId": up.workspace_id,
            "approval": approval,
            "opencode": opencode,
            "openwork": {
                "baseUrl": up.address,
                "connectUrl": self.public(&up.address),
                "host": host,
                "port": port,
                "token": up.client_token,
                "hostToken": up.host_token,
                "collaboratorToken": up.client_token,
                "ownerToken": up.host_token,
                "version": version,
            },
            "sandbox": { "backend": self.resolved.sandbox.backend, "name": self.resolved.sandbox.name },
            "diagnostics": { "cliVersion": version, "binaries": binaries },
        });
        if let Some(port) = self.resolved.bot {
            document["owpenbot"] = json!({ "enabled": true, "healthPort": port });
        }
        document
    }
}

/// Formats the document as text, without secrets.
fn lines(document: &Value, data_dir: &Path) -> String {
    let text = |value: &Value| logging::one_line(value.as_str().unwrap_or("?"));
    let (opencode, openwork) = (&document["opencode"], &document["openwork"]);
    let trouble = match opencode["state"].as_str() {
        Some("running") | None => String::new(),
        Some(_) => match opencode["error"].as_str() {
            Some(error) => format!(", but OpenCode is not: {}", logging::one_line(error)),
            None => ", but OpenCode does not answer yet".to_owned(),
        },
    };
    let mut all = format!(
        "OpenWork host running{trouble}\nRun ID: {}\nWorkspace: {}\nOpenWork server: {}\nOpenWork connect URL: {}\n",
        text(&document["runId"]),
        text(&document["workspace"]),
        text(&openwork["baseUrl"]),
        text(&openwork["connectUrl"]),
    );
    if opencode["state"].is_string() {
        let version = opencode["version"].as_str().map(|version| format!(" ({version})")).unwrap_or_default();
        all += &format!("OpenCode: {}{}\n", text(&opencode["state"]), logging::one_line(&version));
        all += &format!("OpenCode URL: {}\n", text(&opencode["connectUrl"]));
    }
    let folder = logging::one_line(&data_dir.display().to_string());
    all + &format!(
        "Tokens: `berth token show --data-dir '{folder}'` prints those that berth keeps, --json all\n"
    )
}

/// Returns the host and port of a URL `http://HOST:PORT`.
fn host_and_port(url: &str) -> (String, u16) {
    let authority = url.strip_prefix("http://").unwrap_or(url);
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
    (host.trim_matches(['[', ']']).to_owned(), port.parse().unwrap_or(0))
}

/// Replaces the host of a URL by `host`, for clients on other machines.
fn with_host(url: &str, host: &str) -> String {
    let host =
        if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    format!("http://{host}:{}", host_and_port(url).1)
}

fn host_status(words: &[String]) -> Result<ExitCode> {
    let mut words = words.to_vec();
    if !words.iter().any(|word| word.starts_with("--openwork-url") || word == "-h" || word == "--help") {
        match data_dir(&words).and_then(|folder| HostState::running(&folder)) {
            Ok(state) => words.push(format!("--openwork-url={}", state.url)),
            Err(error) => return in_json(&words, Err(error)),
        }
    }
    status::run(&words)
}

fn stop(words: &[String]) -> Result<ExitCode> {
    let args = match parsed(words, Style::Strict)? {
        Ok(args) => args,
        Err(code) => return Ok(code),
    };
    let state = HostState::running(&data_dir(words)?)?;
    state.stop(&data_dir(words)?)?;
    let text = if args.json {
        format!("{:#}\n", json!({ "ok": true, "pid": state.pid() }))
    } else {
        format!("Stopped the host (process {})\n", state.pid())
    };
    super::print(&text);
    Ok(ExitCode::SUCCESS)
}

fn connect(words: &[String]) -> Result<ExitCode> {
    let args = match parsed(words, Style::Strict)? {
        Ok(args) => args,
        Err(code) => return Ok(code),
    };
    let scope = args.word(&table::SCOPE)?;
    if args.qr && args.json {
        return Err(Error::config("--qr", "is for people; --json prints the same document"));
    }
    let seconds = args.number(&table::EXPIRES)?;
    let state = HostState::running(&data_dir(words)?)?;
    let client = super::client::at(&state.url, &args)?;
    let active = client.call("GET", "/workspaces", None)?["activeId"].clone();
    let body =
        json!({ "scope": scope, "label": "connect", "expiresInSecs": seconds, "workspaceIds": [active] });
    let made = client.call("POST", "/tokens", Some(&body))?;
    let url =
        args.connect_host.as_ref().map_or_else(|| state.url.clone(), |host| with_host(&state.url, host));
    let artefact = json!({
        "kind": "openwork.connect.v1",
        "hostUrl": url,
        "workspaceId": active,
        "workspaceUrl": format!("{url}/w/{}", active.as_str().unwrap_or_default()),
        "token": made["token"],
        "tokenScope": scope,
        "createdAt": made["createdAt"].as_u64().unwrap_or_else(clock::now_unix_ms),
        "expiresAt": made["expiresAt"],
    });
    let text = |value: &Value| logging::one_line(value.as_str().unwrap_or("?"));
    super::print(&if args.qr {
        qr_code(&artefact.to_string())?
    } else if args.json {
        format!("{artefact:#}\n")
    } else {
        format!(
            "Host: {}\nWorkspace: {}\nToken ({scope}, for {seconds} s): {}\n",
            text(&artefact["hostUrl"]),
            text(&artefact["workspaceUrl"]),
            text(&artefact["token"]),
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// Renders a text as a QR code for a terminal, with the light border that readers require (ISO/IEC 18004: four
/// modules). Each character shows two modules, one above the other, in black and white regardless of the terminal's
/// colors.
fn qr_code(text: &str) -> Result<String> {
    let code = QrCode::encode_text(text, QrCodeEcc::Low)
        .map_err(|_| Error::internal("The document is too long for a QR code; use --json"))?;
    let border = 4;
    let range = -border..code.size() + border;
    let mut rows = String::new();
    for y in range.clone().step_by(2) {
        rows += "\x1b[30;107m";
        rows.extend(range.clone().map(|x| match (code.get_module(x, y), code.get_module(x, y + 1)) {
            (true, true) => '█',
            (true, false) => '▀',
            (false, true) => '▄',
            (false, false) => ' ',
        }));
        rows += "\x1b[0m\n";
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed_and_get_other_hosts() {
        assert_eq!(host_and_port("http://127.0.0.1:8787"), ("127.0.0.1".into(), 8787));
        assert_eq!(host_and_port("http://[::1]:1"), ("::1".into(), 1));
        assert_eq!(with_host("http://0.0.0.0:8787", "box.local"), "http://box.local:8787");
        assert_eq!(with_host("http://0.0.0.0:8787", "fd00::1"), "http://[fd00::1]:8787");
    }
}
