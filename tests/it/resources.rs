//! Limits of a workspace: checked, kept, enforced in containers and on the host, changed while it runs, and told.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Place, shared};
use crate::procs::{self, secs, unique_secs};
use crate::server::{NIL, Server};

const MIB: u64 = 1 << 20;

#[track_caller]
fn report(place: &Place<'_>) -> Value {
    place.client.get(200, &place.path("/resources"))
}

/// Allocates and touches this much in one process; says `rich` when it got it.
fn hog(mib: u64) -> Value {
    json!({"command": format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null && echo rich"), "timeout_secs": 60})
}

/// Starts this many sleeping processes at once; says how many it got.
fn crowd(count: u32) -> Value {
    let script = format!(
        "n=0; for i in $(seq {count}); do sleep 5 & n=$((n+1)); done 2>/dev/null; echo $n; kill $(jobs -p)"
    );
    json!({"command": script, "timeout_secs": 60})
}

#[test]
fn limits_that_make_no_sense_are_refused_by_name() {
    let server = Server::start();
    let owner = server.owner();
    let long = format!("/api/workspaces/{NIL}");
    for (resources, told) in [
        (json!({"memory_bytes": 1}), "resources.memory_bytes"),
        (json!({"swap_bytes": u64::MAX}), "resources.swap_bytes"),
        (json!({"cpus": 0}), "resources.cpus"),
        (json!({"pids": 0}), "resources.pids"),
        (json!({"disk_bytes": 5}), "resources.disk_bytes"),
        (json!({"memory_bytes": "1G"}), "1G"),
        (json!({"memory_bytes": -1}), "-1"),
    ] {
        for (method, path) in [("PUT", long.as_str()), ("POST", "/api/workspaces")] {
            let body = json!({"name": "x", "workspace_type": "host", "resources": resources});
            let answer = owner.refused(400, "invalid_payload", method, path, Some(body));
            assert!(answer["message"].as_str().unwrap().contains(told), "{resources}: {answer}");
        }
    }
    assert_eq!(owner.get(200, &long)["resources"], Value::Null);
    assert_eq!(owner.get(200, "/api/workspaces").as_array().unwrap().len(), 1);
    // A misspelt limit is no limit, and its client is told so.
    let told = owner.put(200, &long, json!({"resources": {"memory": 1_000_000_000, "pids": 500}}));
    assert_eq!(
        told["warnings"],
        json!(["unknown field `resources.memory`; did you mean `resources.memory_bytes`?"])
    );
    assert_eq!((&told["resources"]["memory_bytes"], &told["resources"]["pids"]), (&Value::Null, &json!(500)));
}

#[test]
fn limits_with_which_no_container_starts_are_refused() {
    let place = Place::ready(shared(), json!({"name": "least"}));
    let made = json!({"name": "x", "workspace_type": "container"});
    for (resources, told) in [
        (json!({"pids": 1}), "resources.pids"),
        (json!({"pids": 2}), "resources.pids"),
        (json!({"pids": 15, "cpus": 1}), "resources.pids"),
        (json!({"cpus": 0.01}), "resources.cpus"),
        (json!({"cpus": 0.049, "pids": 100}), "resources.cpus"),
    ] {
        let mut body = made.clone();
        body["resources"] = resources.clone();
        for (method, path) in [("PUT", place.path("")), ("POST", "/api/workspaces".to_owned())] {
            let body = if method == "PUT" { json!({"resources": resources}) } else { body.clone() };
            let answer = place.client.refused(400, "invalid_payload", method, &path, Some(body));
            assert!(answer["message"].as_str().unwrap().starts_with(told), "{resources}: {answer}");
            assert_eq!(answer["details"]["field"], told);
        }
    }
    // With the least of both it does start, and a shell's pipe works.
    let least = json!({"cpus": 0.05, "pids": 16});
    place.client.put(200, &place.path(""), json!({"resources": least}));
    place.client.call("POST", &place.path("/stop"), None).expect(200);
    assert_eq!(place.sh("echo up | cat"), "up\n");
    // A host workspace has nothing to start, and a command on its own may have less.
    let host = Place::another_host(shared());
    host.client.put(200, &host.path(""), json!({"resources": {"cpus": 0.02, "pids": 3}}));
    place.client.put(200, &place.path(""), json!({"resources": {}}));
    place.client.call("POST", &place.path("/stop"), None).expect(200);
    assert_eq!(place.exec(json!({"command": "echo up", "limits": {"pids": 2}}))["stdout"], "up\n");
}

#[test]
fn limits_are_kept_and_cleared() {
    let server = Server::start();
    let owner = server.owner();
    let asked = json!({"memory_bytes": 512 * MIB, "cpus": 1.5});
    let made = owner.post(
        200,
        "/api/workspaces",
        json!({"name": "x", "workspace_type": "container", "resources": asked}),
    );
    let path = format!("/api/workspaces/{}", made["id"].as_str().unwrap());
    let kept =
        json!({"memory_bytes": 512 * MIB, "swap_bytes": null, "cpus": 1.5, "pids": null, "disk_bytes": null});
    assert_eq!(made["resources"], kept);
    assert_eq!(owner.put(200, &path, json!({"name": "y"}))["resources"], kept);
    let told = owner.get(200, &format!("{path}/resources"));
    assert_eq!((&told["limits"]["memory_bytes"], &told["limits"]["cpus"]), (&json!(512 * MIB), &json!(1.5)));
    assert!(told["limits"]["pids"].as_u64().is_some(), "a container has a default: {told}");
    assert_eq!(owner.put(200, &path, json!({"resources": {}}))["resources"], Value::Null);
    let told = owner.get(200, &format!("{path}/resources"));
    let (all, machine) = (&told["limits"]["memory_bytes"], &told["machine"]["memory_bytes"]);
    assert!(all.as_u64().unwrap() < machine.as_u64().unwrap(), "the machine keeps a reserve: {told}");
}

#[test]
fn what_a_host_cannot_enforce_is_said() {
    let server = Server::start();
    let owner = server.owner();
    owner.put(200, &format!("/api/workspaces/{NIL}"), json!({"resources": {"disk_bytes": 1u64 << 30}}));
    let told = owner.get(200, &format!("/api/workspaces/{NIL}/resources"));
    assert_eq!(told["enforcement"]["disk_bytes"]["enforced"], false);
    let debug = owner.get(200, &format!("/api/workspaces/{NIL}/debug"));
    assert_eq!(debug["enforcement"], told["enforcement"]);
    assert!(
        told["warnings"][0].as_str().unwrap().starts_with("resources.disk_bytes is not enforced"),
        "{told}"
    );
    for limit in ["memory_bytes", "swap_bytes", "cpus", "pids"] {
        let enforcement = &told["enforcement"][limit];
        assert!(enforcement["enforced"].is_boolean() && !enforcement["how"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_container_within_its_limits() {
    let place = Place::ready(
        shared(),
        json!({"name": "small", "resources": {"memory_bytes": 128 * MIB, "swap_bytes": 0, "pids": 40}}),
    );
    assert_eq!(place.sh("echo up"), "up\n");
    // Memory: the hog dies, the container lives on.
    assert_eq!(place.exec(hog(16))["stdout"], "rich\n");
    let told = place.exec(hog(400));
    assert_eq!(told["stdout"], "", "{told}");
    assert_ne!(told["exit_code"], 0, "{told}");
    assert_eq!(place.sh("echo alive"), "alive\n");
    let told = report(&place);
    assert_eq!(told["limits"]["memory_bytes"], 128 * MIB);
    let (now, peak) = (&told["used"]["memory_bytes"], &told["used"]["peak_memory_bytes"]);
    assert!(now.as_u64().is_some_and(|bytes| bytes <= 128 * MIB), "{told}");
    assert!(peak.as_u64().is_some_and(|bytes| bytes > 64 * MIB && bytes <= 128 * MIB), "{told}");
    assert_eq!(told["used"]["oom_killed"], true, "{told}");
    assert!(told["used"]["cpu_micros"].as_u64().is_some_and(|micros| micros > 0), "{told}");
    // Processes: the crowd ends where the limit is; while the container runs, it can be moved.
    let got = |told: &Value| told["stdout"].as_str().unwrap().trim().parse::<u32>().unwrap_or(0);
    let told = place.exec(crowd(60));
    assert!(told["exit_code"] != 0 || got(&told) < 60, "{told}");
    assert!(
        report(&place)["used"]["pids_refused"].as_u64().is_some_and(|count| count > 0),
        "{}",
        report(&place)
    );
    place.client.put(200, &place.path(""), json!({"resources": {"memory_bytes": 128 * MIB, "pids": 200}}));
    let told = place.exec(crowd(60));
    assert_eq!((told["exit_code"].clone(), got(&told)), (json!(0), 60), "{told}");
    assert_eq!(report(&place)["limits"]["pids"], 200);
}

/// (12) A kill for want of memory is told of the command that it hit, and of no other, in the same container and whether
/// or not its group is used again.
#[test]
fn a_kill_for_want_of_memory_is_told_of_the_right_command() {
    let limits = json!({"memory_bytes": 128 * MIB, "swap_bytes": 0});
    let place = Place::ready(shared(), json!({"name": "told", "resources": limits}));
    for round in 0..6 {
        for n in 0..4 {
            let told = place.exec(hog(16));
            assert_eq!(
                (&told["oom_killed"], &told["exit_code"]),
                (&json!(false), &json!(0)),
                "{round}.{n}: {told}"
            );
        }
        thread::scope(|scope| {
            let others = scope.spawn(|| {
                let (owner, path) = (place.server.owner(), place.path("/exec"));
                (0..5).map(|_| owner.post(200, &path, json!({"command": "sleep 0.05"}))).collect::<Vec<_>>()
            });
            let told = place.exec(hog(400));
            assert_eq!(told["oom_killed"], true, "{round}: {told}");
            assert!(others.join().unwrap().iter().all(|told| told["oom_killed"] == false), "{round}");
        });
    }
    // A run's accounts are its own alone.
    let body = json!({"command": "true", "soft_timeout_secs": 30});
    for _ in 0..6 {
        let told = place.client.post(201, &place.path("/runs"), body.clone());
        assert_eq!((&told["status"], &told["oom_killed"]), (&json!("exited"), &json!(false)), "{told}");
        assert!(told["cpu_secs"].as_f64().is_some_and(|cpu| cpu < 0.5), "{told}");
        assert!(told["peak_memory_bytes"].as_u64().is_some_and(|peak| peak < 64 * MIB), "{told}");
    }
}

#[test]
fn a_container_gets_its_part_of_the_processors() {
    let place = Place::ready(shared(), json!({"name": "slow", "resources": {"cpus": 0.25}}));
    place.sh("true");
    let used = || report(&place)["used"]["cpu_micros"].as_u64().unwrap();
    let (begun, before) = (Instant::now(), used());
    place.exec(json!({"command": "for i in 1 2 3; do while :; do :; done & done; sleep 2; kill $(jobs -p)"}));
    let part = (used() - before) as f64 / begun.elapsed().as_micros() as f64;
    assert!(part < 0.40, "three busy loops got {part} processors");
}

#[test]
fn a_host_workspace_within_its_limits() {
    let server = Server::start();
    let owner = server.owner();
    let path = format!("/api/workspaces/{NIL}");
    let exec = |body: Value| owner.post(200, &format!("{path}/exec"), body);
    assert_eq!(exec(hog(200))["stdout"], "rich\n");
    owner.put(200, &path, json!({"resources": {"memory_bytes": 64 * MIB, "swap_bytes": 0}}));
    assert_eq!(exec(hog(200))["stdout"], "");
    assert_eq!(exec(hog(16))["stdout"], "rich\n");
    owner.put(200, &path, json!({"resources": {}}));
    assert_eq!(exec(hog(200))["stdout"], "rich\n", "limits are lifted at once");
}

#[test]
fn when_memory_runs_out_the_server_is_the_last_to_go() {
    let place = crate::fixture::shared_box();
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", place.server.pid)).unwrap();
    // Without CAP_SYS_RESOURCE, which this machine may lack, it can only stay what it is (tests/vm has it).
    let capabilities = procs::status(place.server.pid, "CapEff").unwrap();
    let may = u64::from_str_radix(&capabilities, 16).unwrap() >> 24 & 1 == 1;
    assert_eq!(score.trim(), if may { "-900" } else { "0" });
    assert_eq!(place.sh("cat /proc/self/oom_score_adj"), if may { "0\n" } else { "500\n" });
    let host = Place::host(place.server);
    assert_eq!(host.sh("cat /proc/self/oom_score_adj"), "0\n");
    assert_ne!(place.exec(json!({"command": "echo -500 > /proc/self/oom_score_adj"}))["exit_code"], 0);
}

#[test]
fn what_is_ended_for_want_of_memory_takes_along_what_it_started() {
    let number = unique_secs();
    let limits = json!({"memory_bytes": 64 * MIB, "swap_bytes": 0});
    let ended = |place: &Place<'_>| {
        let hog = "exec dd if=/dev/zero of=/dev/null bs=400M count=1";
        let body =
            json!({"command": format!("sleep {number} & {hog}"), "limits": limits, "soft_timeout_secs": 60});
        let told = place.client.post(201, &place.path("/runs"), body);
        assert_eq!((&told["status"], &told["signal"]), (&json!("killed"), &json!(9)), "{told}");
        assert_eq!(told["oom_killed"], true, "{told}");
        assert_eq!(procs::sleeps(&number), [0u32; 0], "{told}");
    };
    let place = crate::fixture::shared_box();
    ended(&place);
    ended(&Place::host(place.server));
}

#[test]
fn a_container_full_of_processes_says_so_and_goes_on() {
    let place = Place::ready(shared(), json!({"name": "full", "resources": {"pids": 32}}));
    let number = unique_secs();
    place.sh("true");
    let before = place.init();
    place.exec(
        json!({"command": format!("for k in $(seq 60); do sleep {number} & done"), "timeout_secs": 60}),
    );
    // Some get what waits for a command already; the others are told at their time, or after a few seconds.
    for (timeout, patient) in [(2, secs(4)), (60, secs(20))] {
        let replies: Vec<_> = thread::scope(|scope| {
            let calls: Vec<_> = (0..12)
                .map(|_| {
                    scope.spawn(|| {
                        let (begun, body) =
                            (Instant::now(), json!({"args": ["sleep", "12"], "timeout_secs": timeout}));
                        (
                            place.server.owner().call("POST", &place.path("/exec"), Some(&body)),
                            begun.elapsed(),
                        )
                    })
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        let full = replies.iter().filter(|(reply, _)| reply.status == 503);
        assert!(full.clone().count() > 0, "{replies:?}");
        for (reply, took) in full {
            assert_eq!(reply.value()["code"], "container_full", "{reply}");
            assert!(*took < patient, "{took:?}: {reply}");
        }
    }
    assert_eq!(place.init(), before, "it is the same container");
    assert!(procs::sleeps(&number).len() > 10, "with all that ran in it");
    place.server.owner().post(200, &place.path("/stop"), json!({}));
    assert_eq!(place.sh("echo new"), "new\n");
}

/// In 32 MiB without swap: as small as the container's first processes, and more than there is room for.
const CROWD: &str = "for k in $(seq 60); do (x=$(head -c 300000 /dev/zero | tr -c x x); sleep 1) & done";

#[test]
fn a_crowd_for_which_memory_is_short_does_not_end_its_container() {
    let limits = json!({"memory_bytes": 32 * MIB, "swap_bytes": 0});
    let place = Place::ready(shared(), json!({"name": "crowded", "resources": limits}));
    place.sh("true");
    let before = place.init();
    // Whether its shell comes to the end, or the kernel ends that: then the rest goes with it.
    for _ in 0..3 {
        let told = place.exec(json!({"command": format!("{CROWD}; wait"), "timeout_secs": 60}));
        assert_eq!(place.sh("echo alive"), "alive\n", "{told}");
    }
    assert_eq!(place.init(), before);
    // Nobody waits for this one: commands beside it get through, or are told why not.
    for _ in 0..3 {
        place.client.call("POST", &place.path("/exec"), Some(&json!({"command": CROWD, "timeout_secs": 60})));
        let reply = place.client.call(
            "POST",
            &place.path("/exec"),
            Some(&json!({"command": "echo", "timeout_secs": 60})),
        );
        let code = reply.value()["code"].clone();
        let is_said = ["container_full", "container_silent"].iter().any(|known| code == *known);
        assert!(reply.status == 200 || reply.status == 503 && is_said, "{reply}");
    }
    procs::wait_for("room for a command", secs(60), || {
        let reply = place.client.call("POST", &place.path("/exec"), Some(&json!({"command": "echo alive"})));
        (reply.status == 200 && reply.value()["stdout"] == "alive\n").then_some(())
    });
    assert_eq!(place.init(), before, "it is the same container");
}

#[test]
fn a_fork_bomb_an_endless_writer_a_hog_and_a_disk_filler_leave_the_server_alone() {
    // A server of its own: its disk is a small one.
    let setup = crate::fixture::seeded();
    let server = setup.start();
    let limits = json!({"memory_bytes": 200 * MIB, "swap_bytes": 0, "pids": 200, "cpus": 1});
    let place = Place::ready(&server, json!({"name": "hostile", "resources": limits}));
    let hostile = [
        // Each in a shell of its own, so that a failing fork is tried again.
        "bomb() { while :; do sleep 0.01 & done; }; bomb & bomb & wait",
        "yes",
        "while :; do dd if=/dev/zero of=/dev/null bs=500M count=1 2>/dev/null; done",
        "while :; do head -c 100M /dev/zero >/tmp/full 2>/dev/null; done",
    ];
    let path = place.path("/exec");
    thread::scope(|scope| {
        for command in hostile {
            let (owner, path) = (server.owner(), path.clone());
            scope.spawn(move || {
                owner.call("POST", &path, Some(&json!({"command": command, "timeout_secs": 4})))
            });
        }
        let begun = Instant::now();
        let mut times = Vec::new();
        while begun.elapsed() < Duration::from_secs(4) {
            let asked = Instant::now();
            server.anyone().get(200, "/health");
            times.push(asked.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        times.sort();
        // tests/bench/hostile.py measures; here other tests take part.
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        assert!(median < Duration::from_millis(100), "median {median:?}, worst {worst:?}");
        assert!(worst < Duration::from_secs(2), "median {median:?}, worst {worst:?}");
    });
    assert_eq!(place.sh("echo alive"), "alive\n");
}
