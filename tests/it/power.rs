//! The life cycle of a container independent of its commands: started and stopped on demand, stopped when idle, and
//! adopted by the next server unchanged.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Place, seeded, shared};
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::server::{NIL, Server};

#[track_caller]
fn machine(place: &Place<'_>) -> Value {
    place.client.get(200, &place.path("/debug"))["machine"].clone()
}

#[track_caller]
fn start(place: &Place<'_>) -> Value {
    place.client.post(200, &place.path("/start"), json!({}))
}

#[track_caller]
fn stop(place: &Place<'_>) -> Value {
    place.client.post(200, &place.path("/stop"), json!({}))
}

#[track_caller]
fn wait_stopped(place: &Place<'_>) {
    wait_for("the container to stop", secs(20), || (machine(place)["state"] == "stopped").then_some(()));
}

/// Leaves a background process behind for which its command does not wait.
fn leave(place: &Place<'_>) -> String {
    let number = unique_secs();
    place.exec(json!({"command": format!("setsid sleep {number} >/dev/null 2>&1 </dev/null & true")}));
    procs::wait_sleep(&number);
    number
}

#[test]
fn a_container_is_started_and_stopped_on_demand() {
    let place = Place::ready(shared(), json!({"name": "switched"}));
    assert_eq!(stop(&place)["state"], "stopped", "stopping a stopped container is not an error");
    let reply = start(&place);
    assert_eq!((&reply["state"], &reply["adopted"]), (&json!("running"), &json!(false)), "{reply}");
    assert!(reply["uid_base"].as_u64().is_some_and(|uid| uid >= 65536), "{reply}");
    assert!(reply["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{reply}");
    let init = reply["init_pid"].as_u64().unwrap() as u32;
    assert!(
        fs::read_to_string(format!("/proc/{init}/cgroup"))
            .unwrap()
            .contains(reply["cgroup"].as_str().unwrap())
    );
    assert_eq!(start(&place)["init_pid"], reply["init_pid"], "it was started twice");
    assert_eq!(place.sh("echo works"), "works\n");
    assert_eq!(machine(&place)["init_pid"], reply["init_pid"]);

    let number = unique_secs();
    thread::scope(|scope| {
        let body = json!({"command": format!("sleep {number}"), "timeout_secs": 60});
        let (owner, path) = (place.server.owner(), place.path("/exec"));
        let cut = scope.spawn(move || owner.call("POST", &path, Some(&body)));
        procs::wait_sleep(&number);
        assert_eq!(stop(&place)["state"], "stopped");
        procs::assert_dead(&number);
        assert_eq!(cut.join().unwrap().expect(409).value()["code"], "cancelled");
    });
    assert!(!fs::exists(format!("/proc/{init}")).unwrap() || procs::arguments(init).is_empty());
    assert_eq!(place.sh("echo again"), "again\n");
    assert_ne!(machine(&place)["init_pid"], reply["init_pid"]);
}

#[test]
fn failed_starts_and_stops_report_the_reason() {
    let server = Server::start();
    let owner = server.owner();
    for call in ["start", "stop"] {
        owner.refused(
            400,
            "not_a_container",
            "POST",
            &format!("/api/workspaces/{NIL}/{call}"),
            Some(json!({})),
        );
    }
    let body = json!({"name": "x", "workspace_type": "container"});
    let created = owner.post(200, "/api/workspaces", body);
    let path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    owner.refused(400, "workspace_not_ready", "POST", &format!("{path}/start"), Some(json!({})));
    assert_eq!(owner.get(200, &format!("{path}/debug"))["machine"]["state"], "stopped");
    assert_eq!(owner.get(200, &format!("/api/workspaces/{NIL}/debug"))["machine"], Value::Null);
    let years = json!({"idle_timeout_secs": 1u64 << 60});
    owner.refused(400, "invalid_payload", "PUT", &path, Some(years));
}

#[test]
fn a_container_is_not_stopped_during_its_init_script() {
    let place = Place::ready(shared(), json!({"name": "initial"}));
    place.client.put(
        200,
        &place.path(""),
        json!({"init_script": "#!/bin/sh\nuntil [ -e /go ]; do sleep 0.02; done"}),
    );
    thread::scope(|scope| {
        let (owner, path) = (place.server.owner(), place.path("/rerun-init"));
        let rerun = scope.spawn(move || owner.post(200, &path, json!({})));
        wait_for("the script", secs(20), || {
            (machine(&place)["busy"] == 1 && machine(&place)["state"] == "running").then_some(())
        });
        place.client.refused(409, "build_running", "POST", &place.path("/stop"), Some(json!({})));
        place.client.refused(400, "workspace_not_ready", "POST", &place.path("/start"), Some(json!({})));
        fs::write(place.inside("go"), "").unwrap();
        assert_eq!(rerun.join().unwrap()["success"], true);
    });
}

#[test]
fn an_idle_container_is_stopped_and_a_busy_one_is_not() {
    let place = Place::ready(shared(), json!({"name": "idle", "idle_timeout_secs": 1}));
    let started = Instant::now();
    place.sh("sleep 3");
    let reply = machine(&place);
    assert!(started.elapsed() >= secs(3));
    assert_eq!((&reply["state"], &reply["idle_timeout_secs"]), (&json!("running"), &json!(1)), "{reply}");
    let number = leave(&place);
    wait_stopped(&place);
    procs::assert_dead(&number);
    assert_eq!(place.sh("echo again"), "again\n");

    // A container with a terminal is not idle, whether or not a client is connected to it.
    let created = place.client.post(201, &place.path("/terminals"), json!({}));
    let terminal = place.path(&format!("/terminals/{}", created["id"].as_str().unwrap()));
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(machine(&place)["state"], "running");
    place.client.delete(200, &terminal);
    wait_stopped(&place);
}

#[test]
fn a_changed_idle_timeout_takes_effect_at_once() {
    let place = Place::ready(shared(), json!({"name": "changed", "idle_timeout_secs": 0}));
    place.sh("true");
    assert_eq!(machine(&place)["idle_timeout_secs"], Value::Null, "0 is never");
    place.client.put(200, &place.path(""), json!({"idle_timeout_secs": 1}));
    wait_stopped(&place);
}

#[test]
fn processes_in_a_container_survive_a_crash_of_the_server() {
    let setup = seeded();
    let mut server = setup.start();
    let place = Place::ready(&server, json!({"name": "survivor", "resources": {"pids": 100}}));
    let (id, path) = (place.id.clone(), place.path(""));
    place.sh("echo kept > /root/kept; echo also > /tmp/kept");
    let remaining = leave(&place);
    let before = machine(&place);
    let cut = unique_secs();
    let body = json!({"command": format!("setsid sleep {cut} & sleep {cut}"), "timeout_secs": 60});
    thread::scope(|scope| {
        let (owner, path) = (server.owner(), format!("{path}/exec"));
        scope.spawn(move || {
            owner.try_send("POST", &path, &[], Some(&serde_json::to_vec(&body).unwrap())).is_ok()
        });
        procs::wait_sleep(&cut);
        procs::kill(server.pid);
    });
    // The workspace outlives this server.
    std::mem::forget(place);
    for round in 0..3 {
        server.crash();
        server = setup.start();
        let owner = server.owner();
        let reply = owner.get(200, &format!("{path}/debug"))["machine"].clone();
        assert_eq!((&reply["state"], &reply["adopted"]), (&json!("running"), &json!(true)), "{reply}");
        for same in ["init_pid", "since", "uid_base", "cgroup"] {
            assert_eq!(reply[same], before[same], "{same}");
        }
        // A command that was in progress has lost its client; background processes of a finished command belong to the
        // container.
        procs::assert_dead(&cut);
        assert_eq!(procs::sleeps(&remaining).len(), 1, "round {round}");
        let reply = owner.post(200, &format!("{path}/exec"), json!({"command": "cat /root/kept /tmp/kept"}));
        assert_eq!(reply["stdout"], "kept\nalso\n", "{reply}");
        let used = owner.get(200, &format!("{path}/resources"));
        assert_eq!(used["limits"]["pids"], 100);
        assert!(used["used"]["pids"].as_u64().is_some_and(|pids| pids > 0), "{used}");
    }
    let owner = server.owner();
    assert_eq!(owner.post(200, &format!("{path}/stop"), json!({}))["state"], "stopped");
    procs::assert_dead(&remaining);
    let reply = owner.post(200, &format!("{path}/exec"), json!({"command": "cat /root/kept /tmp/kept"}));
    assert_eq!(reply["stdout"], "kept\nalso\n", "{reply}");
    owner.delete(200, &format!("/api/workspaces/{id}"));
    server.stop();
    wait_for("all processes of the server to exit", secs(5), || {
        procs::mentioning(setup.data_dir()).is_empty().then_some(())
    });
}

#[test]
fn a_container_that_does_not_match_its_state_file_is_killed() {
    let setup = seeded();
    let mut server = setup.start();
    let place = Place::ready(&server, json!({"name": "doubtful"}));
    let (id, path) = (place.id.clone(), place.path(""));
    std::mem::forget(place);
    let state = setup.data_dir().join("workspaces").join(&id).join("machine.json");
    let change = |reply: &Value, at: &str, value: Value| {
        let mut reply = reply.clone();
        *reply.pointer_mut(at).unwrap() = value;
        serde_json::to_vec(&reply).unwrap()
    };
    type Spoil<'a> = Box<dyn Fn(&Value) -> Vec<u8> + 'a>;
    let spoils: Vec<Spoil<'_>> = vec![
        Box::new(|_| b"{".to_vec()),
        Box::new(|_| Vec::new()),
        // The process of this test: running, but not part of the container.
        Box::new(|reply| change(reply, "/init/pid", json!(std::process::id()))),
        Box::new(|reply| change(reply, "/leader/start", json!(5))),
        Box::new(|reply| change(reply, "/boot_id", json!("another"))),
        Box::new(|reply| change(reply, "/protocol", json!(0))),
        Box::new(|reply| change(reply, "/cgroup", json!("/"))),
    ];
    for spoil in spoils {
        let owner = server.owner();
        let reply = owner.post(200, &format!("{path}/start"), json!({}));
        let init = reply["init_pid"].as_u64().unwrap() as u32;
        server.crash();
        let stored: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
        fs::write(&state, spoil(&stored)).unwrap();
        server = setup.start();
        assert_eq!(server.owner().get(200, &format!("{path}/debug"))["machine"]["state"], "stopped");
        wait_for("its end", secs(5), || procs::arguments(init).is_empty().then_some(()));
        let reply = server.owner().post(200, &format!("{path}/exec"), json!({"command": "echo anew"}));
        assert_eq!(reply["stdout"], "anew\n");
    }
    server.stop();
    wait_for("all processes of the server to exit", secs(5), || {
        procs::mentioning(setup.data_dir()).is_empty().then_some(())
    });
}
