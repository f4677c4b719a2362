//! The real OpenWork orchestrator from npm, unchanged, with berth in the place of its own server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};

use crate::docker::Docker;
use crate::opencode_serve::{package, program};
use crate::opencode_server::{Opencode, environment};
use crate::procs::{secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{BINARY, Ended, HOST_TOKEN, Setup, run};
use crate::upstream::Upstream;

fn orchestrator(scratch: &Scratch) -> Command {
    let mut command = Command::new(package("openwork-orchestrator").join("bin/openwork"));
    environment(&mut command, &scratch.path().join("home"));
    command.current_dir(scratch.path());
    command
}

/// The orchestrator gives `opencode --version` four seconds, which is too short on a machine that runs all tests at
/// once. This wrapper determines the version once, with a longer deadline, and otherwise executes OpenCode itself.
fn opencode(scratch: &Scratch) -> PathBuf {
    let real = program("opencode-old");
    let mut asked = Command::new(&real);
    environment(&mut asked, &scratch.path().join("home"));
    let reply = run(asked.arg("--version"), secs(90));
    assert_eq!(reply.code, Some(0), "{}{}", reply.stdout, reply.stderr);
    let path = scratch.path().join("opencode");
    let version = reply.stdout.trim();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo {version} && exit\nexec '{}' \"$@\"\n",
        real.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn combined_output(ended: &Ended) -> String {
    format!("exit {:?}\n{}{}", ended.code, ended.stdout, ended.stderr)
}

#[test]
fn the_checks_of_the_orchestrator_pass() {
    let scratch = Scratch::new();
    scratch.folder("work");
    let opencode = opencode(&scratch);
    let mut command = orchestrator(&scratch);
    command
        .args(["serve", "--allow-external", "--sidecar-source", "external", "--opencode-source", "external"])
        .args(["--openwork-server-bin", BINARY, "--opencode-bin"])
        .arg(opencode)
        .args(["--approval", "auto", "--check", "--check-events", "--no-color", "--workspace"])
        .arg(scratch.path().join("work"));
    let ended = run(&mut command, secs(180));
    assert!(ended.code == Some(0) && ended.stdout.contains("Checks: ok"), "{}", combined_output(&ended));
}

#[test]
fn status_and_approvals_of_the_orchestrator_work() {
    let scratch = Scratch::new();
    let opencode = Opencode::start("opencode-old", scratch.path());
    let upstream = Upstream::saying("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue");
    let server = Setup::new()
        .arg(format!("--opencode-base-url={}", upstream.url()))
        .args(&["--approval=manual", "--approval-timeout=120000"])
        .start();
    let url = format!("http://{}", server.address);
    let ask = |args: &[&str]| -> Value {
        let ended = run(orchestrator(&scratch).args(args), secs(60));
        assert_eq!(ended.code, Some(0), "{}", combined_output(&ended));
        serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", combined_output(&ended)))
    };
    let status = ask(&[
        "status",
        "--json",
        "--openwork-url",
        &url,
        "--opencode-url",
        &opencode.url(),
        "--opencode-username",
        crate::opencode_server::USERNAME,
        "--opencode-password",
        crate::opencode_server::PASSWORD,
    ]);
    assert_eq!(
        (&status["openwork"]["ok"], &status["opencode"]["ok"]),
        (&json!(true), &json!(true)),
        "{status}"
    );
    let id = server.owner().get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
    let reload = format!("/workspace/{id}/engine/reload");
    for (answer, expected) in [("--allow", 200), ("--deny", 403)] {
        thread::scope(|scope| {
            let asking = scope.spawn(|| server.collaborator().call("POST", &reload, None));
            let host = ["--openwork-url", &url, "--host-token", HOST_TOKEN];
            let waiting = wait_for("the write to wait for approval", secs(60), || {
                let list = ask(&[&["approvals", "list"][..], &host].concat());
                let first = list["items"].as_array()?.first()?.clone();
                Some(first)
            });
            assert_eq!(waiting["action"], "engine.reload");
            let number = waiting["id"].as_str().unwrap();
            let reply = ask(&[&["approvals", "reply", number, answer][..], &host].concat());
            assert_eq!(reply, json!({"ok": true, "allowed": answer == "--allow"}));
            asking.join().unwrap().expect(expected);
        });
    }
}

/// The server is berth, in the container that the orchestrator starts with Docker.
#[test]
fn the_checks_of_the_orchestrator_pass_with_berth_in_docker() {
    let docker = Docker::shared();
    let scratch = Scratch::new();
    scratch.folder("work");
    let opencode = program("opencode-new");
    // The orchestrator gives this four seconds, and the first call reads the program from the disk.
    let mut version = Command::new(&opencode);
    environment(&mut version, &scratch.path().join("home"));
    assert_eq!(run(version.arg("--version"), secs(90)).code, Some(0));
    // The port that the engine publishes is in the engine's network namespace.
    let mut command = Command::new("nsenter");
    environment(&mut command, &scratch.path().join("home"));
    command
        .current_dir(scratch.path())
        .env("OPENWORK_DOCKER_BIN", docker.program())
        .env("DOCKER_HOST", docker.host())
        .arg(format!("--net=/proc/{}/ns/net", docker.pid()))
        .arg(package("openwork-orchestrator").join("bin/openwork"))
        .args(["serve", "--allow-external", "--sidecar-source", "external", "--opencode-source", "external"])
        .args(["--openwork-server-bin", BINARY, "--opencode-bin"])
        .arg(opencode)
        .args(["--approval", "auto", "--check", "--no-color", "--sandbox", "docker", "--run-id", "it-seed"])
        .arg("--workspace")
        .arg(scratch.path().join("work"));
    let ended = run(&mut command, secs(180));
    assert!(ended.code == Some(0) && ended.stdout.contains("Checks: ok"), "{}", combined_output(&ended));
    assert!(!docker.containers().iter().any(|name| name.contains("it-seed")));
}
