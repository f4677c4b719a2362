//! `exec` in a host workspace: every abuse, and the properties of host commands.

use std::os::unix::fs::symlink;
use std::thread;

use serde_json::json;

use crate::abuse::all_abuses;
use crate::fixture::Place;
use crate::meeting::Meeting;
use crate::procs::{self, unique_secs};
use crate::server::{NIL, Server, Setup};

all_abuses!(Place::host(server()));

/// One server for all abuses, so that damage by one of them makes the others fail.
fn server() -> &'static Server {
    use std::sync::OnceLock;
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::start();
        crate::fixture::guard(&server);
        server
    })
}

fn exec_path() -> String {
    format!("/api/workspaces/{NIL}/exec")
}

fn runs_path() -> String {
    format!("/api/workspaces/{NIL}/runs")
}

#[test]
fn commands_run_in_the_workspace_folder() {
    let server = Server::start();
    let place = Place::host(&server);
    std::fs::create_dir(server.work.join("sub")).unwrap();
    let here = std::fs::canonicalize(&server.work).unwrap();
    assert_eq!(place.sh("pwd -P").trim_end(), here.to_str().unwrap());
    let reply = place.exec(json!({"command": "pwd -P", "cwd": "sub"}));
    assert_eq!(reply["stdout"].as_str().unwrap().trim_end(), here.join("sub").to_str().unwrap());
    let reply = place.exec(json!({"command": "pwd -P", "cwd": here.join("sub")}));
    assert_eq!(reply["stdout"].as_str().unwrap().trim_end(), here.join("sub").to_str().unwrap());
}

#[test]
fn cwd_does_not_leave_the_workspace() {
    let server = Server::start();
    let place = Place::host(&server);
    symlink("/etc", server.work.join("way-out")).unwrap();
    for cwd in ["..", "sub/../..", "way-out"] {
        place.exec_refused("invalid_cwd", json!({"command": "pwd", "cwd": cwd}));
    }
}

#[test]
fn the_environment_does_not_inherit_the_servers() {
    let server =
        Setup::new().env("SOME_SECRET_OF_THE_OPERATOR", "s3cret").env("LD_LIBRARY_PATH", "/x").start();
    let owner = server.owner();
    let created =
        owner.post(200, "/api/workspaces", json!({"name": "w", "env_vars": {"MINE": "ws", "OVER": "ws"}}));
    let path = format!("/api/workspaces/{}/exec", created["id"].as_str().unwrap());
    let reply = owner.post(200, &path, json!({"command": "env", "env": {"OVER": "request"}}));
    let text = reply["stdout"].as_str().unwrap();
    assert!(!text.contains("s3cret") && !text.contains("LD_LIBRARY_PATH"), "{text}");
    assert!(text.contains("MINE=ws\n") && text.contains("OVER=request\n"), "{text}");
}

#[test]
fn only_owners_run_commands_on_the_host() {
    // In manual mode a collaborator's request would need an approval first.
    let server = Setup::new().arg("--approval=auto").start();
    let body = || Some(json!({"command": "true"}));
    let reply = server.collaborator().refused(403, "forbidden", "POST", &exec_path(), body());
    assert_eq!(reply["details"], json!({"required": "owner", "scope": "collaborator"}));
    server.anyone().refused(401, "unauthorized", "POST", &exec_path(), body());
    let header = server.anyone().with("X-OpenWork-Host-Token", crate::server::HOST_TOKEN);
    header.post(200, &exec_path(), json!({"command": "true"}));
}

#[test]
fn commands_in_unknown_workspaces_are_refused() {
    let server = Server::start();
    let owner = server.owner();
    let unknown = "/api/workspaces/11111111-1111-4111-8111-111111111111/exec";
    owner.refused(404, "workspace_not_found", "POST", unknown, Some(json!({"command": "true"})));
    owner.refused(400, "invalid_id", "POST", "/api/workspaces/x/exec", Some(json!({"command": "true"})));
}

#[test]
fn the_output_limit_is_configurable() {
    let server = Setup::new().arg("--output-limit=20971520").start();
    let place = Place::host(&server);
    let reply = place.exec(json!({"command": "seq 1 2000000", "timeout_secs": 60}));
    assert_eq!(reply["truncated"], false);
    assert_eq!(reply["stdout"].as_str().unwrap().len(), 14_888_896);
}

#[test]
fn a_hundred_megabytes_of_output_do_not_grow_the_server() {
    let server = Server::start();
    let place = Place::host(&server);
    place.sh("true");
    let before = procs::memory(server.pid, "VmRSS");
    let reply =
        place.exec(json!({"command": "head -c 100000000 /dev/zero | tr '\\0' x", "timeout_secs": 60}));
    assert_eq!((&reply["exit_code"], &reply["truncated"]), (&json!(0), &json!(true)));
    let after = procs::memory(server.pid, "VmRSS");
    let grown = after.saturating_sub(before) >> 20;
    assert!(grown < 32, "the server has grown by {grown} MB, to {} MB", after >> 20);
}

#[test]
fn runs_above_the_limit_are_refused_with_retry_after() {
    let server = Setup::new().arg("--max-runs=2").start();
    let number = unique_secs();
    thread::scope(|scope| {
        for _ in 0..2 {
            let command = json!({"command": format!("sleep {number}"), "timeout_secs": 60});
            let owner = server.owner();
            scope.spawn(move || owner.post(200, &exec_path(), command));
        }
        procs::wait_for("both processes to start", procs::secs(10), || {
            (procs::sleeps(&number).len() == 2).then_some(())
        });
        let reply = server.owner().call("POST", &exec_path(), Some(&json!({"command": "true"}))).expect(503);
        assert_eq!(reply.value()["code"], "busy", "{reply}");
        assert!(reply.header("retry-after").is_some_and(|secs| secs.parse::<u32>().is_ok()), "{reply}");
        // Other requests work: a running command occupies no thread of the pool.
        server.anyone().get(200, "/health");
        server.owner().get(200, "/api/workspaces");
        procs::sleeps(&number).iter().for_each(|pid| procs::kill(*pid));
    });
    server.owner().post(200, &exec_path(), json!({"command": "true"}));
}

#[test]
fn the_permit_is_free_before_the_response_arrives() {
    let server = Setup::new().arg("--max-runs=1").arg("--max-streams=1").start();
    let owner = server.owner();
    for number in 0..100 {
        // The background process keeps the server busy after the response.
        owner.post(200, &exec_path(), json!({"command": "sleep 0.01 & true"}));
        let created = owner.post(201, &runs_path(), json!({"command": format!("echo {number}")}));
        let wait = format!("{}/{}/wait", runs_path(), created["id"].as_str().unwrap());
        assert_eq!(owner.call("POST", &wait, None).expect(200).value()["status"], "exited");
    }
}

#[test]
fn sixty_running_commands_do_not_stop_the_server() {
    let server = Server::start();
    let number = unique_secs();
    let start = Meeting::of(60);
    thread::scope(|scope| {
        for _ in 0..60 {
            let command = json!({"command": format!("sleep {number}"), "timeout_secs": 60});
            let owner = server.owner();
            let start = &start;
            scope.spawn(move || {
                // All connect at the same time: the gate must answer each of them.
                start.wait();
                owner.post(200, &exec_path(), command)
            });
        }
        procs::wait_for("all commands to start", procs::secs(20), || {
            (procs::sleeps(&number).len() == 60).then_some(())
        });
        for _ in 0..100 {
            server.anyone().get(200, "/health");
        }
        procs::sleeps(&number).iter().for_each(|pid| procs::kill(*pid));
    });
}

#[test]
fn stopping_the_server_kills_running_commands() {
    let server = Server::start();
    let number = unique_secs();
    thread::scope(|scope| {
        let owner = server.owner();
        let command =
            json!({"command": format!("setsid sleep {number} & sleep {number}"), "timeout_secs": 300});
        scope.spawn(move || {
            let body = serde_json::to_vec(&command).unwrap();
            let _ = owner.try_send("POST", &exec_path(), &[], Some(&body));
        });
        procs::wait_for("both processes to start", procs::secs(10), || {
            (procs::sleeps(&number).len() == 2).then_some(())
        });
        server.stop();
    });
    procs::assert_dead(&number);
}
