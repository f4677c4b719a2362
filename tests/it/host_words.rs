//! The command line of `berth host`: the flags that it refuses, their names in messages, and failed starts.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::host_command::Place;
use crate::procs::secs;
use crate::server::{BINARY, run};

#[test]
fn mistakes_in_flags_are_named() {
    for (arguments, expected) in [
        (vec!["frobnicate"], "frobnicate: unknown command"),
        (vec!["start", "--frobnicate"], "--frobnicate: unknown flag"),
        (vec!["start", "stray"], "stray: unexpected argument"),
        (
            vec!["start", "--sandbox=bogus"],
            "Invalid sandbox value: bogus. Use none|auto|docker|container|berth.",
        ),
        (vec!["start", "--sandbox-mount=/a:b"], "has no effect without a sandbox"),
        (vec!["start", "--opencode-host=0.0.0.0"], "--opencode-host: \"0.0.0.0\""),
        (vec!["start", "--remote-access", "--openwork-port=0"], "there are no tokens yet"),
        // A message names the flag as the user wrote it.
        (vec!["start", "--openwork-port=99999"], "berth: --openwork-port: \"99999\""),
        (vec!["start", "--openwork-host=nowhere.example"], "berth: --openwork-host: \"nowhere.example\""),
        (vec!["start", "--openwork-token="], "berth: --openwork-token: is empty"),
        (vec!["start", "--openwork-host-token= x"], "berth: --openwork-host-token: contains"),
        (vec!["start", "--port=99999"], "berth: --port: \"99999\""),
        (vec!["start", "--connect-host=http://box"], "berth: --connect-host: \"http://box\""),
        (vec!["start", "--connect-host=box/x"], "berth: --connect-host: \"box/x\""),
        (vec!["start", "--check", "--detach"], "berth: --detach: contradicts --check"),
        (vec!["start", "--check-events"], "berth: --check-events: has no effect without --check"),
        (vec!["start", "--scope=viewer"], "berth: --scope: has no effect here; it is for berth host connect"),
        // Checked before the host is looked up.
        (vec!["connect", "--expires=99999999999999999"], "berth: --expires: \"99999999999999999\""),
        (vec!["connect", "--expires=99999999999999999999999"], "berth: --expires: "),
        (vec!["connect", "--expires=0"], "berth: --expires: \"0\""),
        (vec!["connect", "--scope=root"], "berth: --scope: \"root\""),
        (vec!["connect", "--connect-host=a b"], "berth: --connect-host: \"a b\""),
    ] {
        let ended = Place::misbehaving("").run(&arguments);
        assert!(ended.code == Some(2) && ended.stderr.contains(expected), "{arguments:?}: {ended:?}");
    }
}

/// The orchestrator's commands, and environment variables instead of flags.
#[test]
fn mistakes_in_the_orchestrators_commands_are_named() {
    let place = Place::misbehaving("");
    let link = place.scratch.path().join("openwrk");
    symlink(BINARY, &link).unwrap();
    for (words, expected) in [
        (vec!["bogus"], "berth: bogus: unknown command; the commands are start, "),
        (vec!["--verbose", "bogus", "--json"], "berth: bogus: unknown command"),
        (vec!["files", "catalog"], "berth: files: unknown command"),
        (vec!["approvals"], "berth: approvals: use approvals list, or"),
        (vec!["approvals", "reply"], "berth: approvals: approval id is required for approvals reply"),
        (vec!["start", "--openwork-port", "99999"], "berth: --openwork-port: \"99999\""),
        (vec!["--check", "--detach"], "berth: --detach: contradicts --check"),
        (vec!["daemon", "run", "--opencode-workdir=nowhere"], "berth: --opencode-workdir: "),
    ] {
        let ended = run(place.command(&link).args(&words), secs(60));
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{words:?}: {ended:?}");
        assert!(ended.stderr.starts_with(expected), "{words:?}: {ended:?}");
    }
    let ended = run(place.command(&link).arg("help"), secs(60));
    assert!(ended.code == Some(0) && ended.stdout.contains("Usage: berth"), "{ended:?}");
    let mut command = place.host(&["start", "--openwork-port=0"]);
    let ended = run(command.env("OPENWORK_WORKSPACE", "/etc/passwd"), secs(60));
    assert!(ended.code == Some(2) && ended.stderr.starts_with("berth: OPENWORK_WORKSPACE: "), "{ended:?}");
}

#[test]
fn checks_in_json_are_one_document() {
    let place = Place::misbehaving("");
    let ended = place.run(&["--check", "--json", "--openwork-port=0", "--run-id=it-checked"]);
    let document: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    let names: Vec<&str> =
        document["checks"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"health") && names.contains(&"proxy.session"), "{document}");
    // The stand-in supports no sessions.
    assert_eq!((ended.code, &document["ok"]), (Some(1), &false.into()), "{document}");
    let failed = document["checks"].as_array().unwrap().iter().find(|step| step["ok"] == false).unwrap();
    assert!(failed["error"].is_string() && document["runId"] == "it-checked", "{document}");

    let place = Place::misbehaving("dies");
    let ended = place.run(&["--check", "--json", "--openwork-port=0"]);
    let document: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    assert_eq!((ended.code, &document["ok"]), (Some(1), &false.into()), "{document}");
    assert!(document["checks"][0]["error"].as_str().unwrap().starts_with("exit code 7"), "{document}");
}

#[test]
fn a_detached_start_reports_failures_like_a_foreground_start() {
    let place = Place::misbehaving("");
    let ended = place.run(&["start", "--detach", "--approval=perhaps"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("--approval"), "{ended:?}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("--openwork-port={}", listener.local_addr().unwrap().port());
    let ended = place.run(&["start", "--detach", &port]);
    assert!(ended.code == Some(2) && ended.stderr.contains("listens on it"), "{ended:?}");
    let place = Place::misbehaving("dies");
    let ended = place.run(&["start", "--detach", "--openwork-port=0", "--opencode-restart=never"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("exit code 7"), "{ended:?}");
    let first = ended.stdout.lines().next().unwrap();
    assert!(
        first.starts_with("OpenWork host running, but OpenCode is not: exit code 7; its last error"),
        "{first}"
    );
    assert!(
        ended.stderr.contains("The host goes on without OpenCode; `berth host stop` ends it"),
        "{ended:?}"
    );
    let log = fs::read_to_string(place.data().join("host/host.log")).unwrap();
    assert!(log.contains("OpenCode failed: exit code 7"), "{log}");
    assert_eq!(place.run(&["stop"]).code, Some(0), "the host runs");
}
