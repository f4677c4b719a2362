//! The OpenCode process that the server itself manages (`--manage-opencode`): the real versions, and a misbehaving
//! stand-in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::events::Events;
use crate::opencode_serve::{VERSIONS, program};
use crate::procs::{self, alive, naming, secs, sleeps, unique_secs, wait_for, wait_sleep};
use crate::scoped_tokens;
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, Server, Setup};

/// A key of a model provider, which is passed to OpenCode.
const KEY: &str = "it-provider-key-61b2e0c4";
/// OpenCode's own password, if one is configured.
const PASSWORD: &str = "it-managed-password-77a0";

fn managed(program: &Path) -> Setup {
    Setup::new()
        .args(&["--manage-opencode", "--approval=auto"])
        .arg(format!("--opencode-bin={}", program.display()))
        .env("OPENCODE_DISABLE_AUTOUPDATE", "1")
        .env("OPENCODE_DISABLE_MODELS_FETCH", "1")
        .env("OPENCODE_DISABLE_LSP_DOWNLOAD", "1")
        .env("ANTHROPIC_API_KEY", KEY)
}

/// The stand-in; `how` is read by tests/it/opencode_standin.py.
pub fn standin() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/opencode_standin.py")
}

fn misbehaving(how: &str) -> Setup {
    managed(&standin()).env("OPENCODE_STANDIN", how)
}

fn state(server: &Server) -> Value {
    server.owner().get(200, "/status")["opencode"].clone()
}

#[track_caller]
fn wait_state(server: &Server, expected: &str) -> Value {
    wait_for(&format!("OpenCode to be {expected}"), secs(120), || {
        Some(state(server)).filter(|state| state["state"] == expected)
    })
}

fn pid(state: &Value) -> u32 {
    u32::try_from(state["pid"].as_u64().unwrap_or_else(|| panic!("{state}"))).unwrap()
}

/// The entries of OpenCode in the server's audit log, oldest first.
fn audited(server: &Server) -> Vec<String> {
    let items = server.owner().get(200, "/audit?limit=200")["items"].clone();
    let actions =
        items.as_array().unwrap().iter().rev().map(|item| item["action"].as_str().unwrap().to_owned());
    actions.filter(|action| action.starts_with("opencode.")).collect()
}

fn log(server: &Server) -> String {
    fs::read_to_string(server.data.join("host/opencode.log")).unwrap()
}

/// Makes OpenCode start its MCP server, which never answers, and ignores the result.
fn start_mcp(server: &Server, mount: &str, sleep: &str) -> u32 {
    let (client, path) = (server.collaborator(), format!("{mount}/mcp"));
    std::thread::spawn(move || client.try_send("GET", &path, &[], None));
    wait_sleep(sleep)
}

#[test]
fn real_versions_are_served_restarted_and_killed_with_their_children() {
    for version in VERSIONS {
        let sleep = unique_secs();
        let setup = managed(&program(version));
        let work = setup.scratch().path().join("work");
        let mcp = json!({"type": "local", "command": ["sh", "-c", format!("sleep {sleep} & exec sleep {sleep}")], "enabled": true});
        fs::write(work.join("opencode.json"), json!({"mcp": {"nap": mcp}}).to_string()).unwrap();
        let server = setup.start();
        let first = wait_state(&server, "running");
        assert_eq!((&first["starts"], &first["managed"]), (&json!(1), &json!(true)), "{first}");

        // All requests reach it through the proxy.
        let listed = server.owner().get(200, "/workspaces")["items"][0].clone();
        let mount = format!("/w/{}/opencode", listed["id"].as_str().unwrap());
        assert_eq!(listed["opencode"]["baseUrl"], first["url"], "{listed}");
        assert_eq!(listed["opencode"]["directory"], json!(server.work), "{listed}");
        let client = server.collaborator();
        assert_eq!(client.get(200, &format!("{mount}/global/health"))["healthy"], true);
        let session = client.post(200, &format!("{mount}/session"), json!({"title": "it"}));
        let id = session["id"].as_str().unwrap();
        let text = json!({"noReply": true, "parts": [{"type": "text", "text": "kept"}]});
        client.post(200, &format!("{mount}/session/{id}/message"), text);
        let messages = client.get(200, &format!("{mount}/session/{id}/message?limit=10"));
        assert!(messages.to_string().contains("kept"), "{messages}");

        // It has no token of berth, and no client sees its password.
        let environment = fs::read(format!("/proc/{}/environ", pid(&first))).unwrap();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        assert!(environment.contains(KEY) && environment.contains("OPENCODE_SERVER_PASSWORD="));
        for ours in [CLIENT_TOKEN, HOST_TOKEN, "OPENWORK_TOKEN", "OPENWORK_HOST_TOKEN", "BERTH_"] {
            assert!(!environment.contains(ours), "{ours}");
        }
        let (_, password) = environment.split_once("OPENCODE_SERVER_PASSWORD=").unwrap();
        let password = password.split('\0').next().unwrap();
        assert!(password.len() >= 64, "{password}");
        for client in [server.owner(), server.collaborator()] {
            for path in ["/workspaces", "/status", "/capabilities"] {
                let answer = client.get(200, path).to_string();
                assert!(!answer.contains(password), "{path}: {answer}");
            }
        }
        let visible = format!("{}{}{}", server.log(), log(&server), procs::arguments(server.pid).join(" "));
        assert!(!visible.contains(password) && !visible.contains(HOST_TOKEN), "{visible}");

        // After a kill it is restarted at once; its children were killed.
        let nap = start_mcp(&server, &mount, &sleep);
        procs::kill(pid(&first));
        let second = wait_for("another start", secs(120), || {
            Some(state(&server)).filter(|state| state["state"] == "running" && state["starts"] == 2)
        });
        assert!(!alive(nap) && pid(&second) != pid(&first), "{second}");
        assert!(second["lastEnd"].as_str().unwrap().starts_with("signal 9"), "{second}");
        client.get(200, &format!("{mount}/session/{id}"));
        assert_eq!(
            audited(&server),
            ["starting", "running", "ended", "starting", "running"].map(|word| format!("opencode.{word}"))
        );

        // It ends with the server.
        start_mcp(&server, &mount, &sleep);
        let last = pid(&second);
        assert_eq!(server.stop().code(), Some(0));
        assert!(!alive(last) && sleeps(&sleep).is_empty());
    }
}

#[test]
fn no_process_survives_a_signal_during_the_start() {
    for (round, signal) in [Signal::TERM, Signal::INT, Signal::HUP].into_iter().cycle().take(12).enumerate() {
        let sleep = unique_secs();
        let server =
            misbehaving(&format!("sleep={sleep}{}", if round % 2 == 0 { ",silent" } else { "" })).start();
        std::thread::sleep(Duration::from_millis(40 * round as u64));
        if round == 11 {
            wait_state(&server, "running");
        }
        let started = Instant::now();
        assert_eq!(server.stop_by(signal).code(), Some(0), "{signal:?} after {} ms", 40 * round);
        assert!(started.elapsed() < secs(10));
        assert!(sleeps(&sleep).is_empty(), "{signal:?} after {} ms", 40 * round);
    }
}

/// timeout(1) sends its signal to its child, and then to the process group of the child.
#[test]
fn two_signals_at_once_end_the_server_once() {
    let sleep = unique_secs();
    let server = misbehaving(&format!("sleep={sleep},deaf-to-term")).start();
    let child = pid(&wait_state(&server, "running"));
    procs::signal(server.pid, Signal::TERM);
    // Two signals at once count as one.
    server.stdout.line_with("a second signal", secs(20)).unwrap();
    assert_eq!(server.stop().code(), Some(1));
    wait_for("its end", secs(2), || (!alive(child) && sleeps(&sleep).is_empty()).then_some(()));
}

#[test]
fn the_next_start_kills_processes_of_a_killed_server() {
    let sleep = unique_secs();
    let setup = misbehaving(&format!("sleep={sleep},deaf-to-term"));
    let server = setup.start();
    let orphan = pid(&wait_state(&server, "running"));
    wait_for("its daemons", secs(20), || (sleeps(&sleep).len() == 2).then_some(()));
    server.crash();
    let server = setup.env("OPENCODE_STANDIN", "").start();
    assert!(!alive(orphan));
    procs::assert_dead(&sleep);
    wait_state(&server, "running");
}

/// Without cgroups, processes of a killed server are found by a marker in their environment.
#[test]
fn the_next_start_kills_processes_without_cgroups() {
    let without =
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"", "sh"];
    let sleep = unique_secs();
    let setup = misbehaving(&format!("sleep={sleep},deaf-to-term"));
    let server = setup.start_through(&without);
    let orphan = pid(&wait_state(&server, "running"));
    wait_for("its daemons", secs(20), || (sleeps(&sleep).len() == 2).then_some(()));
    server.stdout.line_with("No writable cgroup v2 here", secs(20)).expect("a warning");
    // Processes of another server keep running.
    let neighbour = misbehaving("").start_through(&without);
    let other = pid(&wait_state(&neighbour, "running"));
    server.crash();
    assert!(alive(orphan));
    let server = setup.env("OPENCODE_STANDIN", "").start_through(&without);
    assert!(!alive(orphan) && alive(other));
    procs::assert_dead(&sleep);
    wait_state(&server, "running");
}

#[test]
fn an_opencode_that_exits_at_once_fails_after_five_attempts() {
    let program = Setup::new().scratch().path().join("opencode");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    let script = |text: &str| {
        fs::write(program.with_extension("new"), text).unwrap();
        fs::set_permissions(program.with_extension("new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(program.with_extension("new"), &program).unwrap();
    };
    script("#!/bin/sh\necho no configuration >&2\necho the reason >&2\nexit 7\n");
    let server = managed(&program).start();
    let id = server.owner().get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
    let health = format!("/w/{id}/opencode/global/health");
    let reply = server.collaborator().call("GET", &health, None);
    assert_eq!((reply.status, reply.header("Retry-After")), (503, Some("1")), "{reply}");
    assert!(["opencode_starting", "opencode_failed"].contains(&reply.value()["code"].as_str().unwrap()));

    let failed = wait_state(&server, "failed");
    assert_eq!(failed["lastEnd"], "exit code 7; its last error: the reason", "{failed}");
    assert_eq!(failed["starts"], 5, "{failed}");
    let reply = server.collaborator().call("GET", &health, None);
    assert_eq!((reply.status, reply.header("Retry-After")), (503, Some("1")), "{reply}");
    assert_eq!(reply.value()["code"], "opencode_failed");
    server.owner().get(200, "/health");
    let viewer = scoped_tokens::make(&server, json!({"scope": "viewer"})).0;
    let seen = server.with_token(&viewer).get(200, "/status")["opencode"].clone();
    assert_eq!((&seen["state"], seen.get("lastEnd")), (&json!("failed"), None), "{seen}");
    assert_eq!(audited(&server).last().unwrap(), "opencode.failed");
    let items = server.owner().get(200, "/audit?limit=200")["items"].clone();
    let line = items.as_array().unwrap().iter().find(|item| item["action"] == "opencode.failed").unwrap();
    assert_eq!((&line["result"], &line["code"]), (&json!("failed"), &json!("opencode_failed")), "{line}");

    script(&format!("#!/bin/sh\nexec '{}'\n", standin().display()));
    let reloaded = server.owner().post(200, &format!("/workspace/{id}/engine/reload"), json!({}));
    assert_eq!(reloaded["ok"], true);
    assert_eq!(server.collaborator().get(200, &health)["healthy"], true);
    let _ = fs::remove_dir_all(program.parent().unwrap());
}

#[test]
fn an_opencode_that_does_not_answer_is_killed_at_its_deadline() {
    let unanswered = "did not respond within 6 s (The OpenCode of workspace OpenCode at http://127.0.0.1:";
    let cases = [
        ("silent", unanswered),
        ("trickles", "did not respond within 6 s (The response to /global/health ended early"),
        ("other-port", unanswered),
        ("everywhere", "it listens on 0.0.0.0:"),
        ("late", "did not respond within 6 s (it has not printed its address)"),
    ];
    std::thread::scope(|scope| {
        for (how, why) in cases {
            scope.spawn(move || {
                let sleep = unique_secs();
                let limits = ["--start-timeout=6", "--opencode-restart=never"];
                let server = misbehaving(&format!("{how},deaf-to-term,sleep={sleep}")).args(&limits).start();
                let failed = wait_state(&server, "failed");
                assert!(failed["lastEnd"].as_str().unwrap().contains(why), "{how}: {failed}");
                assert_eq!(failed["starts"], 1, "{failed}");
                wait_for("its end", secs(5), || sleeps(&sleep).is_empty().then_some(()));
            });
        }
    });
}

#[test]
fn an_opencode_that_answers_slowly_starts() {
    // Longer than the ten seconds that the orchestrator allows; a busy machine needs forty.
    let server = misbehaving("slow,late=11").start();
    let running = wait_state(&server, "running");
    assert_eq!((&running["version"], &running["starts"]), (&json!("9.9.9"), &json!(1)), "{running}");
}

#[test]
fn endless_output_of_opencode_uses_no_disk_and_delays_no_response() {
    let server = misbehaving("flood").start();
    wait_state(&server, "running");
    let id = server.owner().get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
    let health = format!("/w/{id}/opencode/global/health");
    wait_for("a log line with the number of lost bytes", secs(30), || {
        server.collaborator().get(200, &health);
        log(&server).contains("bytes dropped").then_some(())
    });
    let sizes = ["opencode.log", "opencode.1.log"]
        .map(|name| fs::metadata(server.data.join("host").join(name)).map_or(0, |metadata| metadata.len()));
    assert!(sizes.iter().all(|size| *size <= 1 << 20), "{sizes:?}");
    assert!(!server.log().contains("flood"));
}

#[test]
fn secrets_that_opencode_prints_are_redacted_in_the_log() {
    let server = misbehaving("secrets").env("OPENWORK_OPENCODE_PASSWORD", PASSWORD).start();
    wait_state(&server, "running");
    let text = log(&server);
    assert_eq!(text.matches("the value is ********").count(), 4, "{text}");
    for secret in [KEY, PASSWORD] {
        assert!(!text.contains(secret) && !server.log().contains(secret), "{text}");
    }
    let path = server.data.join("host/opencode.log");
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    let view = |token: &str| {
        let list = server.with_token(token).get(200, "/workspaces");
        list["items"][0]["opencode"]["password"].as_str().map(str::to_owned)
    };
    assert_eq!(view(CLIENT_TOKEN).as_deref(), Some(PASSWORD));
    assert_eq!(view(HOST_TOKEN).as_deref(), Some(PASSWORD));
    for scope in ["viewer", "collaborator", "owner"] {
        assert_eq!(view(&scoped_tokens::make(&server, json!({"scope": scope})).0), None, "{scope}");
    }
}

#[test]
fn a_memory_leak_kills_opencode_and_not_the_machine() {
    let limits = ["--opencode-memory=134217728", "--opencode-restart=never"];
    let server = misbehaving("grows").args(&limits).start();
    let failed = wait_state(&server, "failed");
    assert!(failed["lastEnd"].as_str().unwrap().starts_with("out of memory"), "{failed}");
    assert_eq!(failed["memoryLimitBytes"], 134_217_728);
}

#[test]
fn the_default_limit_is_half_of_the_memory() {
    let server = misbehaving("").start();
    let running = wait_state(&server, "running");
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    let limit = running["memoryLimitBytes"].as_u64().unwrap();
    assert!(limit > 0 && limit <= total * 1024 / 2, "{running}");
}

#[test]
fn status_changes_of_opencode_are_events() {
    let server = misbehaving("").start();
    wait_state(&server, "running");
    procs::kill(pid(&state(&server)));
    wait_for("another start", secs(60), || {
        Some(state(&server)).filter(|state| state["state"] == "running" && state["starts"] == 2)
    });
    let mut events = Events::ask(&server, "GET /api/opencode/events HTTP/1.1\r\nLast-Event-ID: 1\r\n", None);
    assert_eq!(events.next().unwrap().name, "missed");
    for word in ["starting", "running", "ended", "starting", "running"] {
        let event = events.next().unwrap();
        assert_eq!((event.name.as_str(), &event.data["state"]), ("opencode", &json!(word)), "{event:?}");
    }
}

#[test]
fn invalid_settings_of_the_managed_opencode_are_named() {
    for (arguments, expected) in [
        (vec!["--opencode-bin=/nowhere/opencode"], "--opencode-bin: /nowhere/opencode does not exist"),
        (
            vec!["--opencode-bin=no-such-program"],
            "--opencode-bin: there is no program no-such-program in PATH",
        ),
        (vec!["--opencode-bin=/etc/passwd"], "--opencode-bin: /etc/passwd is not an executable file"),
        (
            vec!["--opencode-bin=/bin/true", "--opencode-restart=sometimes"],
            "--opencode-restart: \"sometimes\"",
        ),
        (vec!["--opencode-bin=/bin/true", "--opencode-env=OPENWORK_TOKEN"], "--opencode-env: OPENWORK_TOKEN"),
        (
            vec!["--opencode-bin=/bin/true", "--opencode-base-url=http://h:1"],
            "contradicts --opencode-base-url",
        ),
    ] {
        let ended = Setup::new().arg("--manage-opencode").args(&arguments).run();
        assert!(ended.code == Some(2) && ended.stderr.contains(expected), "{arguments:?}: {ended:?}");
    }
    assert!(naming("no-such-program").is_empty());
}
