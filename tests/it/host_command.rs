//! `berth host`: the server and its OpenCode as one command, for users and for orchestrators.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::client::Client;
use crate::managed::standin;
use crate::opencode_serve::{VERSIONS, program};
use crate::procs::{self, alive, naming, secs, wait_for};
use crate::qr_code::scan;
use crate::scratch::Scratch;
use crate::server::{BINARY, Ended, Printed, run};

const TOKEN: &str = "it-host-client-20c4";
const HOST_TOKEN: &str = "it-host-owner-91fa";

/// A folder with a data folder, a home and a workspace, and the commands run in it.
pub struct Place {
    pub scratch: Scratch,
    program: PathBuf,
    how: String,
    /// Additional environment variables.
    pub env: Vec<(String, String)>,
}

impl Place {
    pub fn new(program: &Path) -> Place {
        let scratch = Scratch::new();
        scratch.folder("home");
        Place { scratch, program: program.to_owned(), how: String::new(), env: Vec::new() }
    }

    pub fn misbehaving(how: &str) -> Place {
        Place { how: how.to_owned(), ..Place::new(&standin()) }
    }

    pub fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    pub fn command(&self, binary: impl AsRef<Path>) -> Command {
        let mut command = Command::new(binary.as_ref());
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.scratch.path().join("home"))
            .env("BERTH_DATA_DIR", self.data())
            .env("OPENCODE_DISABLE_AUTOUPDATE", "1")
            .env("OPENCODE_DISABLE_MODELS_FETCH", "1")
            .env("OPENCODE_DISABLE_LSP_DOWNLOAD", "1")
            .env("OPENCODE_STANDIN", &self.how)
            .env("OPENWORK_OPENCODE_BIN", &self.program)
            .envs(self.env.iter().cloned())
            .current_dir(self.scratch.path());
        command
    }

    pub fn host(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(BINARY);
        command.arg("host").args(arguments);
        command
    }

    /// Runs `berth host` with these arguments and waits for its exit.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ended {
        run(&mut self.host(arguments), secs(150))
    }

    /// Starts a host and waits for its JSON document.
    #[track_caller]
    pub fn start(&self, arguments: &[&str]) -> (Running, Value) {
        let all = [&["start", "--json", "--openwork-port=0", "--workspace=work"], arguments].concat();
        Running::of(self.host(&all))
    }
}

impl Running {
    /// Starts a host and waits for its JSON document.
    #[track_caller]
    pub fn of(mut command: Command) -> (Running, Value) {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (out, err) =
            (Printed::follow(child.stdout.take().unwrap()), Printed::follow(child.stderr.take().unwrap()));
        let running = Running { child, out, err };
        let document = wait_for("the document", secs(120), || serde_json::from_str(&running.out.text()).ok());
        (running, document)
    }
}

pub struct Running {
    pub child: Child,
    out: Arc<Printed>,
    pub err: Arc<Printed>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // The pid of a process that was reaped may belong to another process.
        if let Ok(None) = self.child.try_wait() {
            procs::signal(self.child.id(), Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

pub fn client(url: &Value, token: &str) -> Client {
    let address = url.as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
    Client::new(address).with("Authorization", &format!("Bearer {token}"))
}

#[test]
fn checks_pass_with_real_versions_and_leave_the_workspace_unchanged() {
    for version in VERSIONS {
        let place = Place::new(&program(version));
        let arguments = ["--check", "--check-events", "--openwork-port=0", "--workspace=new/work"];
        let ended = place.run(&arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "Checks: ok\n"), "{ended:?}");
        for step in [
            "health",
            "workspaces",
            "config",
            "approvals",
            "opencode.health",
            "opencode.session",
            "opencode.events",
            "proxy.health",
            "proxy.session",
            "proxy.events",
        ] {
            assert!(ended.stderr.contains(&format!("\nok {step} ")), "{step}: {ended:?}");
        }
        assert_eq!(fs::read_dir(place.scratch.path().join("new/work")).unwrap().count(), 0);
        let places = place.scratch.path().to_str().unwrap();
        wait_for("all processes to exit", secs(5), || naming(places).is_empty().then_some(()));
    }
}

#[test]
fn failed_checks_report_the_cause() {
    let place = Place::misbehaving("dies");
    let ended = place.run(&["--check", "--openwork-port=0"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), "Checks: failed\n"), "{ended:?}");
    assert!(ended.stderr.contains("fail opencode: exit code 7; its last error: the reason"), "{ended:?}");
    let place = Place::misbehaving("silent");
    let begun = Instant::now();
    let ended = place.run(&["--check", "--openwork-port=0", "--start-timeout=3"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("did not respond within 3 s"), "{ended:?}");
    assert!(begun.elapsed() < secs(15), "{:?}", begun.elapsed());
}

#[test]
fn stdout_is_one_document_with_every_address_and_token() {
    let place = Place::misbehaving("");
    let (running, document) = place.start(&["--connect-host=box.example", "--run-id=it-run"]);
    let openwork = &document["openwork"];
    let owner = client(&openwork["baseUrl"], openwork["hostToken"].as_str().unwrap());
    let state = owner.get(200, "/status")["opencode"].clone();
    assert_eq!(state["url"], document["opencode"]["baseUrl"], "{document}");
    assert_eq!((&document["runId"], &document["opencode"]["version"]), (&"it-run".into(), &"9.9.9".into()));
    assert_eq!(document["opencode"].get("password"), None, "{document}");
    let connect = openwork["connectUrl"].as_str().unwrap();
    assert!(connect.starts_with("http://box.example:"), "{document}");
    let path = document["opencode"]["connectUrl"].as_str().unwrap().strip_prefix(connect).unwrap();
    let health = format!("{path}/global/health");
    assert_eq!(
        client(&openwork["baseUrl"], openwork["token"].as_str().unwrap()).get(200, &health)["healthy"],
        true
    );
    // Only the document contains secrets.
    for secret in [&openwork["token"], &openwork["hostToken"]] {
        let secret = secret.as_str().unwrap();
        assert!(!running.err.text().contains(secret), "{}", running.err.text());
        assert!(!procs::arguments(running.child.id()).join(" ").contains(secret));
    }

    // The host is found by its data folder.
    let output = place.run(&["status", "--json"]);
    let status: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(
        (output.code, &status["ok"], &status["opencode"]["ok"]),
        (Some(0), &true.into(), &true.into()),
        "{status}"
    );
    let created = place.run(&["connect", "--scope=viewer", "--expires=600", "--json"]);
    let artefact: Value = serde_json::from_str(&created.stdout).unwrap();
    assert_eq!(artefact["kind"], "openwork.connect.v1", "{artefact}");
    let viewer = client(&artefact["hostUrl"], artefact["token"].as_str().unwrap());
    let actor = viewer.get(200, "/whoami")["actor"].clone();
    assert!(
        actor["scope"] == "viewer" && actor["expiresAt"].is_u64() && actor["workspaceIds"].is_array(),
        "{actor}"
    );

    // The same document as a QR code.
    let code = place.run(&["connect", "--scope=viewer", "--expires=600", "--qr"]);
    let scanned: Value = serde_json::from_str(&scan(&code.stdout)).unwrap();
    assert_eq!((&scanned["kind"], &scanned["tokenScope"]), (&artefact["kind"], &artefact["tokenScope"]));
    assert!(scanned["expiresAt"].is_u64(), "{scanned}");
    let viewer = client(&scanned["hostUrl"], scanned["token"].as_str().unwrap());
    assert_eq!(viewer.get(200, "/whoami")["actor"]["scope"], "viewer");

    // The host notices that OpenCode died, and restarts it.
    let opencode = u32::try_from(state["pid"].as_u64().unwrap()).unwrap();
    procs::kill(opencode);
    wait_for("a restart", secs(60), || {
        let state = owner.get(200, "/status")["opencode"].clone();
        (state["state"] == "running" && state["starts"] == 2).then_some(())
    });
    let second = place.run(&["start", "--openwork-port=0", "--workspace=work"]);
    assert!(
        second.code == Some(2) && second.stdout.is_empty() && second.stderr.contains("another berth"),
        "{second:?}"
    );

    let stopped = place.run(&["stop", "--json"]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert!(!alive(running.child.id()));
    for command in ["status", "stop", "connect"] {
        let none = place.run(&[command]);
        assert!(
            none.code == Some(1) && none.stderr.contains("No host runs with the data folder"),
            "{none:?}"
        );
    }
    for command in ["status", "stop", "connect"] {
        let none = place.run(&[command, "--json"]);
        assert_eq!(none.code, Some(1));
        assert_eq!(serde_json::from_str::<Value>(&none.stdout).unwrap()["ok"], false);
    }
}

#[test]
fn the_host_keeps_running_if_opencode_fails() {
    let place = Place::misbehaving("dies");
    let (_running, document) = place.start(&["--opencode-restart=never"]);
    let status = place.run(&["status"]);
    assert!(status.code == Some(1) && status.stdout.contains("exit code 7"), "{status:?}");
    let opencode = &document["opencode"];
    assert_eq!((&opencode["state"], opencode["error"].is_string()), (&"failed".into(), true), "{document}");
}

#[test]
fn a_port_in_use_is_an_error_that_names_the_process() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ended = Place::misbehaving("").run(&["start", &format!("--openwork-port={port}")]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let holder = format!("process {} (", std::process::id());
    assert!(ended.stderr.contains(&holder) && ended.stderr.contains(&port.to_string()), "{ended:?}");
}

/// The command line that OpenWork's desktop uses, without its container options.
#[test]
fn the_desktops_command_line_detaches_when_called_through_a_link() {
    let place = Place::misbehaving("");
    let link = place.scratch.path().join("openwork-orchestrator");
    symlink(BINARY, &link).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut command = place.command(&link);
    command.args(["start", "--workspace", "work", "--approval", "auto", "--no-opencode-auth"]);
    command.args(["--opencode-router", "true", "--detach", "--openwork-host", "0.0.0.0", "--openwork-port"]);
    command.args([
        &port,
        "--openwork-token",
        TOKEN,
        "--openwork-host-token",
        HOST_TOKEN,
        "--run-id",
        "it-run",
    ]);
    let ended = run(&mut command, secs(120));
    assert!(ended.code == Some(0) && ended.stdout.contains("Detached (process "), "{ended:?}");
    let url = Value::from(format!("http://127.0.0.1:{port}"));
    assert_eq!(client(&url, TOKEN).get(200, "/health")["ok"], true);
    let created = client(&url, HOST_TOKEN).post(201, "/tokens", serde_json::json!({"scope": "owner"}));
    assert!(created["token"].is_string());
    for _ in 0..1000 {
        client(&url, TOKEN).get(200, "/opencode/global/health");
    }
    // No process has a token in its arguments.
    for pid in procs::all() {
        let words = procs::arguments(pid).join(" ");
        assert!(!words.contains(TOKEN) && !words.contains(HOST_TOKEN), "{words}");
    }
    let log = fs::read_to_string(place.data().join("host/host.log")).unwrap();
    assert!(log.contains("listening on") && !log.contains(TOKEN), "{log}");

    // The commands of the orchestrator's client.
    let call = |words: &[&str]| {
        let mut command = place.command(&link);
        command.args(words).args(["--openwork-url", url.as_str().unwrap(), "--host-token", HOST_TOKEN]);
        run(&mut command, secs(60))
    };
    let status = call(&["status", "--json", "--verbose"]);
    let report: Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!((status.code, &report["openwork"]["ok"]), (Some(0), &true.into()), "{status:?}");
    let list = call(&["approvals", "list"]);
    let report: Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!((list.code, report["items"].is_array()), (Some(0), true), "{list:?}");
    let unknown = call(&["approvals", "reply", "nothing", "--allow"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    let version = run(place.command(&link).arg("--version"), secs(20));
    assert_eq!((version.code, version.stdout.trim()), (Some(0), env!("CARGO_PKG_VERSION")));

    let stopped = place.run(&["stop"]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    let places = place.scratch.path().to_str().unwrap();
    wait_for("all processes to exit", secs(5), || naming(places).is_empty().then_some(()));
    let files: Vec<_> =
        fs::read_dir(place.data().join("host")).unwrap().flatten().map(|file| file.file_name()).collect();
    assert!(!files.iter().any(|name| name == "state.json"), "{files:?}");
}

/// Contents of the daemon's state file.
fn saved_state(place: &Place) -> Value {
    let text = fs::read(place.data().join("openwork-orchestrator-state.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The other command line of the desktop: its router, found by its state file.
#[test]
fn the_desktops_daemon_serves_the_router_and_stops_on_request() {
    let place = Place::misbehaving("");
    let link = place.scratch.path().join("openwork-orchestrator");
    symlink(BINARY, &link).unwrap();
    let work = place.scratch.folder("work");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let data = place.data();
    let mut command = place.command(&link);
    command.args(["daemon", "run", "--data-dir", data.to_str().unwrap(), "--daemon-host", "127.0.0.1"]);
    command.args(["--daemon-port", &port, "--opencode-bin"]).arg(&place.program);
    command.args(["--opencode-host", "127.0.0.1", "--opencode-workdir"]).arg(&work).arg("--allow-external");
    command.args(["--cors", "*"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (out, err) =
        (Printed::follow(child.stdout.take().unwrap()), Printed::follow(child.stderr.take().unwrap()));
    let mut running = Running { child, out, err };
    let line = running.out.line_with("daemon running on", secs(30));
    assert_eq!(
        line,
        Some(format!("orchestrator daemon running on 127.0.0.1:{port}")),
        "{}",
        running.err.text()
    );
    let router = Client::new(format!("127.0.0.1:{port}").parse().unwrap());
    let health = wait_for("an OpenCode", secs(60), || {
        Some(router.get(200, "/health")).filter(|health| health["opencode"].is_object())
    });
    assert_eq!((&health["ok"], &health["workspaceCount"]), (&true.into(), &0.into()), "{health}");
    assert_eq!(health["daemon"]["port"], port.parse::<u16>().unwrap());

    let folder = place.scratch.path().join("made here");
    let created = router.post(200, "/workspaces", serde_json::json!({"path": folder, "name": "first"}));
    let id = created["workspace"]["id"].as_str().unwrap();
    assert!(folder.is_dir() && id.starts_with("ws-") && created["activeId"] == id, "{created}");
    let remote = serde_json::json!({"baseUrl": "http://127.0.0.1:1/", "directory": "/d"});
    let far = router.post(200, "/workspaces/remote", remote)["workspace"].clone();
    assert_eq!((&far["workspaceType"], &far["baseUrl"]), (&"remote".into(), &"http://127.0.0.1:1".into()));
    let answer =
        router.post(200, &format!("/workspaces/{}/activate", far["id"].as_str().unwrap()), Value::Null);
    assert_eq!(answer["activeId"], far["id"]);
    assert_eq!(router.get(200, "/workspaces/first")["workspace"]["path"], folder.to_str().unwrap());
    router.get(200, "/workspaces/first/path");
    for (method, path, body, status, error) in [
        ("GET", "/workspaces/none", None, 404, "workspace not found"),
        ("GET", "/nothing", None, 404, "not found"),
        ("POST", "/workspaces", Some(serde_json::json!({})), 400, "path is required"),
        (
            "POST",
            "/workspaces",
            Some(serde_json::json!({"path": "relative"})),
            400,
            "path must be an absolute one",
        ),
        (
            "POST",
            "/workspaces/remote",
            Some(serde_json::json!({"baseUrl": "ftp://h"})),
            400,
            "baseUrl must start",
        ),
    ] {
        let reply = router.call(method, path, body.as_ref());
        let response = reply.value();
        assert!(
            reply.status == status && response["error"].as_str().unwrap().starts_with(error),
            "{path}: {reply}"
        );
    }
    // A page of another origin cannot create folders.
    let foreign = [("Origin", "http://evil.example"), ("Content-Type", "text/plain")];
    let body = serde_json::json!({"path": place.scratch.path().join("evil")}).to_string();
    assert_eq!(router.send("POST", "/workspaces", &foreign, Some(body.as_bytes())).status, 403);
    let mut stream = std::net::TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 403"), "{reply}");
    assert!(!place.scratch.path().join("evil").exists());

    let state = saved_state(&place);
    assert_eq!((&state["version"], &state["activeId"]), (&1.into(), &far["id"]), "{state}");
    assert_eq!(state["daemon"]["baseUrl"], format!("http://127.0.0.1:{port}"), "{state}");
    assert_eq!(state["opencode"]["baseUrl"], health["opencode"]["baseUrl"], "{state}");
    let opencode = u32::try_from(state["opencode"]["pid"].as_u64().unwrap()).unwrap();
    assert_eq!(router.post(200, "/shutdown", Value::Null)["ok"], true);
    wait_for("the daemon to exit", secs(20), || {
        running.child.try_wait().unwrap().filter(|status| status.success())
    });
    assert!(!alive(opencode));
    assert!(saved_state(&place).get("daemon").is_none(), "{}", saved_state(&place));
}

#[test]
fn workspace_commands_start_a_daemon_if_none_runs() {
    let place = Place::misbehaving("");
    let call = |words: &[&str]| {
        let ended = run(place.command(BINARY).args(words), secs(60));
        let answer = serde_json::from_str::<Value>(&ended.stdout).unwrap_or_default();
        (ended.code, answer, ended.stderr)
    };
    let (code, _, reply) = call(&["daemon", "status"]);
    assert!(code == Some(1) && reply.contains("orchestrator daemon is not running"), "{reply}");
    let (code, answer, _) = call(&["daemon", "stop", "--json"]);
    assert_eq!((code, &answer["ok"]), (Some(1), &false.into()), "{answer}");
    let (code, answer, reply) = call(&["workspace", "add", "one", "--name", "first"]);
    assert_eq!((code, &answer["workspace"]["name"]), (Some(0), &"first".into()), "{answer}{reply}");
    let first = saved_state(&place)["daemon"]["pid"].clone();
    let (code, answer, _) = call(&["workspace", "list"]);
    assert_eq!((code, answer["workspaces"].as_array().map(Vec::len)), (Some(0), Some(1)), "{answer}");
    assert_eq!(call(&["workspace", "switch", "first"]).0, Some(0));
    let path = place.scratch.path().join("one");
    let (code, answer, _) = call(&["workspace", "info", path.to_str().unwrap()]);
    assert_eq!((code, &answer["workspace"]["name"]), (Some(0), &"first".into()), "{answer}");
    let (code, _, reply) = call(&["workspace", "info", "none"]);
    assert!(code == Some(1) && reply.contains("workspace not found"), "{reply}");
    wait_for("its OpenCode", secs(60), || (call(&["workspace", "path", "first"]).0 == Some(0)).then_some(()));
    assert_eq!(call(&["instance", "dispose", "first"]).0, Some(1), "the stand-in does not support this call");
    let (code, answer, _) = call(&["daemon", "start"]);
    assert_eq!((code, &answer["daemon"]["pid"]), (Some(0), &first), "{answer}");
    let (code, answer, _) = call(&["daemon", "stop"]);
    assert_eq!((code, &answer["ok"]), (Some(0), &true.into()), "{answer}");
    let places = place.scratch.path().to_str().unwrap();
    wait_for("all processes to exit", secs(20), || naming(places).is_empty().then_some(()));
}

#[test]
fn the_real_opencode_works_in_a_sandbox_without_root_outside() {
    let place = Place::new(&program("opencode-new"));
    fs::create_dir_all(place.data()).unwrap();
    crate::fixture::tools();
    crate::fixture::copy_image(&place.data());
    let work = place.scratch.folder("work");
    // The owner of the files is an unprivileged user without a name on the host.
    std::os::unix::fs::chown(&work, Some(12345), Some(12345)).unwrap();
    let ended =
        place.run(&["--check", "--check-events", "--openwork-port=0", "--workspace=work", "--sandbox=berth"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "Checks: ok\n"), "{ended:?}");

    place.scratch.file("shared/file", "shared\n");
    let list = serde_json::json!({"allowedRoots": [{"path": place.scratch.path().join("shared")}]});
    place.scratch.file("home/.config/openwork/sandbox-mount-allowlist.json", list.to_string());
    let mount = format!("--sandbox-mount={}/shared:one", place.scratch.path().display());
    let limits = ["--sandbox=berth", "--approval=auto", "--sandbox-cpus=1.5", "--sandbox-pids=1000", &mount];
    let (running, document) = place.start(&limits);
    assert_eq!(document["sandbox"]["backend"], "berth", "{document}");
    let url = &document["openwork"]["baseUrl"];
    let owner = client(url, document["openwork"]["hostToken"].as_str().unwrap());
    let shown = owner.get(200, "/capabilities")["sandbox"].clone();
    assert_eq!(shown, serde_json::json!({"enabled": true, "backend": "container", "engine": "berth"}));
    let state = owner.get(200, "/status")["opencode"].clone();
    let pid = u32::try_from(state["pid"].as_u64().unwrap_or_else(|| panic!("{state}"))).unwrap();
    assert!(procs::uids(pid)[0] != 0, "root inside is root outside: {:?}", procs::uids(pid));
    let environment =
        String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/environ")).unwrap()).into_owned();
    let host_token = document["openwork"]["hostToken"].as_str().unwrap();
    assert!(!environment.contains(host_token) && environment.contains("HOME=/root"), "{environment}");

    // A shell of OpenCode prints its user, its view of the host, and writes a file.
    let mount = format!("/w/{}/opencode", document["workspaceId"].as_str().unwrap());
    let session = owner.post(200, &format!("{mount}/session"), serde_json::json!({}));
    let listening = url.as_str().unwrap().rsplit(':').next().unwrap().to_owned();
    let command = format!(
        "id -u > seen; pwd >> seen; cat extra/one/file >> seen; (echo > /dev/tcp/127.0.0.1/{listening}) 2>/dev/null && echo reached >> seen; \
         ls {} 2>/dev/null >> seen; true",
        place.data().display()
    );
    let body = serde_json::json!({"agent": "build", "command": command, "model": {"providerID": "none", "modelID": "none"}});
    owner.call("POST", &format!("{mount}/session/{}/shell", session["id"].as_str().unwrap()), Some(&body));
    let seen = wait_for("the output of the shell", secs(60), || {
        fs::read_to_string(work.join("seen")).ok().filter(|text| text.lines().count() >= 3)
    });
    assert_eq!(seen, "0\n/workspace\nshared\n");
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(work.join("seen")).unwrap().uid(), 12345);

    // OpenCode is killed and restarts in the same container, also under the next host after the host itself was killed.
    procs::kill(pid);
    wait_for("a restart", secs(120), || {
        let state = owner.get(200, "/status")["opencode"].clone();
        (state["state"] == "running" && state["starts"] == 2).then_some(())
    });
    assert_eq!(owner.get(200, &format!("{mount}/global/health"))["healthy"], true);
    procs::kill(running.child.id());
    drop(running);
    let (_running, _) = place.start(&["--sandbox=auto"]);
    let stopped = place.run(&["stop"]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    let places = place.scratch.path().to_str().unwrap();
    wait_for("all processes to exit", secs(10), || naming(places).is_empty().then_some(()));
    assert!(procs::mounts_below(&place.data()).is_empty());
}

#[test]
fn auto_without_containers_is_an_error_that_lists_the_attempts() {
    let place = Place::misbehaving("");
    // Root without the right to mount.
    let mut command = place.command("setpriv");
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", BINARY, "host", "start"]);
    let ended = run(command.args(["--sandbox=auto", "--openwork-port=0"]), secs(60));
    assert!(ended.code == Some(2) && ended.stdout.is_empty(), "{ended:?}");
    assert!(ended.stderr.contains("--sandbox auto: no sandbox is available. Tried: berth ("), "{ended:?}");
    for other in ["), docker (", "), container (Apple container backend is only supported on macOS)"] {
        assert!(ended.stderr.contains(other), "{ended:?}");
    }
}

#[test]
fn a_sandbox_cannot_mount_the_root_or_a_home() {
    let place = Place::misbehaving("");
    for folder in ["/", "home"] {
        let workspace = format!("--workspace={folder}");
        let ended = place.run(&["--check", "--openwork-port=0", "--sandbox=berth", &workspace]);
        assert!(ended.code == Some(2) && ended.stderr.contains("cannot be mounted"), "{folder}: {ended:?}");
    }
}
