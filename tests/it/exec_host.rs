//! `exec` in a host workspace: every abuse, and what is special about the host.

use std::os::unix::fs::symlink;
use std::thread;

use serde_json::json;

use crate::abuse::all_abuses;
use crate::fixture::Place;
use crate::meeting::Meeting;
use crate::procs::{self, unique_secs};
use crate::server::{NIL, Server, Setup};

all_abuses!(Place::host(server()));

/// One server for all abuses: what one of them breaks, the others shall see.
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
fn runs_in_the_workspace() {
    let server = Server::start();
    let place = Place::host(&server);
    std::fs::create_dir(server.work.join("sub")).unwrap();
    let here = std::fs::canonicalize(&server.work).unwrap();
    assert_eq!(place.sh("pwd -P").trim_end(), here.to_str().unwrap());
    let told = place.exec(json!({"command": "pwd -P", "cwd": "sub"}));
    assert_eq!(told["stdout"].as_str().unwrap().trim_end(), here.join("sub").to_str().unwrap());
    let told = place.exec(json!({"command": "pwd -P", "cwd": here.join("sub")}));
    assert_eq!(told["stdout"].as_str().unwrap().trim_end(), here.join("sub").to_str().unwrap());
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
fn the_environment_is_made_from_nothing() {
    let server =
        Setup::new().env("SOME_SECRET_OF_THE_OPERATOR", "s3cret").env("LD_LIBRARY_PATH", "/x").start();
    let owner = server.owner();
    let made =
        owner.post(200, "/api/workspaces", json!({"name": "w", "env_vars": {"MINE": "ws", "OVER": "ws"}}));
    let path = format!("/api/workspaces/{}/exec", made["id"].as_str().unwrap());
    let told = owner.post(200, &path, json!({"command": "env", "env": {"OVER": "request"}}));
    let text = told["stdout"].as_str().unwrap();
    assert!(!text.contains("s3cret") && !text.contains("LD_LIBRARY_PATH"), "{text}");
    assert!(text.contains("MINE=ws\n") && text.contains("OVER=request\n"), "{text}");
}

#[test]
fn the_host_is_for_owners() {
    // In manual mode a collaborator is stopped earlier still, by the approval.
    let server = Setup::new().arg("--approval=auto").start();
    let body = || Some(json!({"command": "true"}));
    let told = server.collaborator().refused(403, "forbidden", "POST", &exec_path(), body());
    assert_eq!(told["details"], json!({"required": "owner", "scope": "collaborator"}));
    server.anyone().refused(401, "unauthorized", "POST", &exec_path(), body());
    let header = server.anyone().with("X-OpenWork-Host-Token", crate::server::HOST_TOKEN);
    header.post(200, &exec_path(), json!({"command": "true"}));
}

#[test]
fn unknown_workspaces_run_nothing() {
    let server = Server::start();
    let owner = server.owner();
    let nobody = "/api/workspaces/11111111-1111-4111-8111-111111111111/exec";
    owner.refused(404, "workspace_not_found", "POST", nobody, Some(json!({"command": "true"})));
    owner.refused(400, "invalid_id", "POST", "/api/workspaces/x/exec", Some(json!({"command": "true"})));
}

#[test]
fn the_output_limit_is_the_configured_one() {
    let server = Setup::new().arg("--output-limit=20971520").start();
    let place = Place::host(&server);
    let told = place.exec(json!({"command": "seq 1 2000000", "timeout_secs": 60}));
    assert_eq!(told["truncated"], false);
    assert_eq!(told["stdout"].as_str().unwrap().len(), 14_888_896);
}

#[test]
fn a_hundred_megabytes_do_not_grow_the_server() {
    let server = Server::start();
    let place = Place::host(&server);
    place.sh("true");
    let before = procs::memory(server.pid, "VmRSS");
    let told = place.exec(json!({"command": "head -c 100000000 /dev/zero | tr '\\0' x", "timeout_secs": 60}));
    assert_eq!((&told["exit_code"], &told["truncated"]), (&json!(0), &json!(true)));
    let after = procs::memory(server.pid, "VmRSS");
    let grown = after.saturating_sub(before) >> 20;
    assert!(grown < 32, "the server has grown by {grown} MB, to {} MB", after >> 20);
}

#[test]
fn more_runs_than_allowed_are_told_to_come_back() {
    let server = Setup::new().arg("--max-runs=2").start();
    let number = unique_secs();
    thread::scope(|scope| {
        for _ in 0..2 {
            let command = json!({"command": format!("sleep {number}"), "timeout_secs": 60});
            let owner = server.owner();
            scope.spawn(move || owner.post(200, &exec_path(), command));
        }
        procs::wait_for("both to run", procs::secs(10), || (procs::sleeps(&number).len() == 2).then_some(()));
        let reply = server.owner().call("POST", &exec_path(), Some(&json!({"command": "true"}))).expect(503);
        assert_eq!(reply.value()["code"], "busy", "{reply}");
        assert!(reply.header("retry-after").is_some_and(|secs| secs.parse::<u32>().is_ok()), "{reply}");
        // Everything else goes on: a running command holds no thread of the pool.
        server.anyone().get(200, "/health");
        server.owner().get(200, "/api/workspaces");
        procs::sleeps(&number).iter().for_each(|pid| procs::kill(*pid));
    });
    server.owner().post(200, &exec_path(), json!({"command": "true"}));
}

#[test]
fn who_has_an_answer_is_not_refused_for_want_of_its_place() {
    let server = Setup::new().arg("--max-runs=1").arg("--max-streams=1").start();
    let owner = server.owner();
    for number in 0..100 {
        // What goes on in the background keeps the server busy after the answer.
        owner.post(200, &exec_path(), json!({"command": "sleep 0.01 & true"}));
        let made = owner.post(201, &runs_path(), json!({"command": format!("echo {number}")}));
        let wait = format!("{}/{}/wait", runs_path(), made["id"].as_str().unwrap());
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
                // All connect at once: the door must leave none of them without an answer.
                start.wait();
                owner.post(200, &exec_path(), command)
            });
        }
        procs::wait_for("all to run", procs::secs(20), || (procs::sleeps(&number).len() == 60).then_some(()));
        for _ in 0..100 {
            server.anyone().get(200, "/health");
        }
        procs::sleeps(&number).iter().for_each(|pid| procs::kill(*pid));
    });
}

#[test]
fn a_stop_ends_what_runs() {
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
        procs::wait_for("both to run", procs::secs(10), || (procs::sleeps(&number).len() == 2).then_some(()));
        server.stop();
    });
    procs::assert_dead(&number);
}
