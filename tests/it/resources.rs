//! Resource limits of a workspace: validated, stored, enforced in containers and on the host, changed while the
//! workspace is running, and reported.

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

/// Allocates and touches `mib` MiB in one process; prints `rich` on success.
fn hog(mib: u64) -> Value {
    json!({"command": format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null && echo rich"), "timeout_secs": 60})
}

/// Starts `count` sleeping processes at once; prints the number of processes that started.
fn crowd(count: u32) -> Value {
    let script = format!(
        "n=0; for i in $(seq {count}); do sleep 5 & n=$((n+1)); done 2>/dev/null; echo $n; kill $(jobs -p)"
    );
    json!({"command": script, "timeout_secs": 60})
}

#[test]
fn invalid_limits_are_refused_and_named() {
    let server = Server::start();
    let owner = server.owner();
    let long = format!("/api/workspaces/{NIL}");
    for (resources, reply) in [
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
            assert!(answer["message"].as_str().unwrap().contains(reply), "{resources}: {answer}");
        }
    }
    assert_eq!(owner.get(200, &long)["resources"], Value::Null);
    assert_eq!(owner.get(200, "/api/workspaces").as_array().unwrap().len(), 1);
    // A misspelt limit is ignored, and the response has a warning.
    let reply = owner.put(200, &long, json!({"resources": {"memory": 1_000_000_000, "pids": 500}}));
    assert_eq!(
        reply["warnings"],
        json!(["unknown field `resources.memory`; did you mean `resources.memory_bytes`?"])
    );
    assert_eq!(
        (&reply["resources"]["memory_bytes"], &reply["resources"]["pids"]),
        (&Value::Null, &json!(500))
    );
}

#[test]
fn limits_too_low_for_a_container_to_start_are_refused() {
    let place = Place::ready(shared(), json!({"name": "least"}));
    let created = json!({"name": "x", "workspace_type": "container"});
    for (resources, reply) in [
        (json!({"pids": 1}), "resources.pids"),
        (json!({"pids": 2}), "resources.pids"),
        (json!({"pids": 15, "cpus": 1}), "resources.pids"),
        (json!({"cpus": 0.01}), "resources.cpus"),
        (json!({"cpus": 0.049, "pids": 100}), "resources.cpus"),
    ] {
        let mut body = created.clone();
        body["resources"] = resources.clone();
        for (method, path) in [("PUT", place.path("")), ("POST", "/api/workspaces".to_owned())] {
            let body = if method == "PUT" { json!({"resources": resources}) } else { body.clone() };
            let answer = place.client.refused(400, "invalid_payload", method, &path, Some(body));
            assert!(answer["message"].as_str().unwrap().starts_with(reply), "{resources}: {answer}");
            assert_eq!(answer["details"]["field"], reply);
        }
    }
    // With the minimum of both, the container starts and a pipeline works.
    let least = json!({"cpus": 0.05, "pids": 16});
    place.client.put(200, &place.path(""), json!({"resources": least}));
    place.client.call("POST", &place.path("/stop"), None).expect(200);
    assert_eq!(place.sh("echo up | cat"), "up\n");
    // A host workspace has no container to start, and the limits of a single command may be lower.
    let host = Place::another_host(shared());
    host.client.put(200, &host.path(""), json!({"resources": {"cpus": 0.02, "pids": 3}}));
    place.client.put(200, &place.path(""), json!({"resources": {}}));
    place.client.call("POST", &place.path("/stop"), None).expect(200);
    assert_eq!(place.exec(json!({"command": "echo up", "limits": {"pids": 2}}))["stdout"], "up\n");
}

#[test]
fn limits_are_stored_and_cleared() {
    let server = Server::start();
    let owner = server.owner();
    let asked = json!({"memory_bytes": 512 * MIB, "cpus": 1.5});
    let created = owner.post(
        200,
        "/api/workspaces",
        json!({"name": "x", "workspace_type": "container", "resources": asked}),
    );
    let path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    let stored =
        json!({"memory_bytes": 512 * MIB, "swap_bytes": null, "cpus": 1.5, "pids": null, "disk_bytes": null});
    assert_eq!(created["resources"], stored);
    assert_eq!(owner.put(200, &path, json!({"name": "y"}))["resources"], stored);
    let reply = owner.get(200, &format!("{path}/resources"));
    assert_eq!(
        (&reply["limits"]["memory_bytes"], &reply["limits"]["cpus"]),
        (&json!(512 * MIB), &json!(1.5))
    );
    assert!(reply["limits"]["pids"].as_u64().is_some(), "a container has a default: {reply}");
    assert_eq!(owner.put(200, &path, json!({"resources": {}}))["resources"], Value::Null);
    let reply = owner.get(200, &format!("{path}/resources"));
    let (all, machine) = (&reply["limits"]["memory_bytes"], &reply["machine"]["memory_bytes"]);
    assert!(all.as_u64().unwrap() < machine.as_u64().unwrap(), "the machine keeps a reserve: {reply}");
}

#[test]
fn limits_that_a_host_cannot_enforce_are_reported() {
    let server = Server::start();
    let owner = server.owner();
    owner.put(200, &format!("/api/workspaces/{NIL}"), json!({"resources": {"disk_bytes": 1u64 << 30}}));
    let reply = owner.get(200, &format!("/api/workspaces/{NIL}/resources"));
    assert_eq!(reply["enforcement"]["disk_bytes"]["enforced"], false);
    let debug = owner.get(200, &format!("/api/workspaces/{NIL}/debug"));
    assert_eq!(debug["enforcement"], reply["enforcement"]);
    assert!(
        reply["warnings"][0].as_str().unwrap().starts_with("resources.disk_bytes is not enforced"),
        "{reply}"
    );
    for limit in ["memory_bytes", "swap_bytes", "cpus", "pids"] {
        let enforcement = &reply["enforcement"][limit];
        assert!(enforcement["enforced"].is_boolean() && !enforcement["how"].as_str().unwrap().is_empty());
    }
}

#[test]
fn container_limits_are_enforced_and_reported() {
    let place = Place::ready(
        shared(),
        json!({"name": "small", "resources": {"memory_bytes": 128 * MIB, "swap_bytes": 0, "pids": 40}}),
    );
    assert_eq!(place.sh("echo up"), "up\n");
    // Memory: the process that exceeds the limit is killed, and the container keeps running.
    assert_eq!(place.exec(hog(16))["stdout"], "rich\n");
    let reply = place.exec(hog(400));
    assert_eq!(reply["stdout"], "", "{reply}");
    assert_ne!(reply["exit_code"], 0, "{reply}");
    assert_eq!(place.sh("echo alive"), "alive\n");
    let reply = report(&place);
    assert_eq!(reply["limits"]["memory_bytes"], 128 * MIB);
    let (now, peak) = (&reply["used"]["memory_bytes"], &reply["used"]["peak_memory_bytes"]);
    assert!(now.as_u64().is_some_and(|bytes| bytes <= 128 * MIB), "{reply}");
    assert!(peak.as_u64().is_some_and(|bytes| bytes > 64 * MIB && bytes <= 128 * MIB), "{reply}");
    assert_eq!(reply["used"]["oom_killed"], true, "{reply}");
    assert!(reply["used"]["cpu_micros"].as_u64().is_some_and(|micros| micros > 0), "{reply}");
    // Processes: forks fail at the limit, and the limit can be raised while the container is running.
    let got = |reply: &Value| reply["stdout"].as_str().unwrap().trim().parse::<u32>().unwrap_or(0);
    let reply = place.exec(crowd(60));
    assert!(reply["exit_code"] != 0 || got(&reply) < 60, "{reply}");
    assert!(
        report(&place)["used"]["pids_refused"].as_u64().is_some_and(|count| count > 0),
        "{}",
        report(&place)
    );
    place.client.put(200, &place.path(""), json!({"resources": {"memory_bytes": 128 * MIB, "pids": 200}}));
    let reply = place.exec(crowd(60));
    assert_eq!((reply["exit_code"].clone(), got(&reply)), (json!(0), 60), "{reply}");
    assert_eq!(report(&place)["limits"]["pids"], 200);
}

/// (12) An out-of-memory kill is reported for the killed command and for no other command of the container, whether or
/// not its cgroup is reused.
#[test]
fn oom_kill_is_reported_for_the_killed_command_only() {
    let limits = json!({"memory_bytes": 128 * MIB, "swap_bytes": 0});
    let place = Place::ready(shared(), json!({"name": "oom", "resources": limits}));
    for round in 0..6 {
        for n in 0..4 {
            let reply = place.exec(hog(16));
            assert_eq!(
                (&reply["oom_killed"], &reply["exit_code"]),
                (&json!(false), &json!(0)),
                "{round}.{n}: {reply}"
            );
        }
        thread::scope(|scope| {
            let others = scope.spawn(|| {
                let (owner, path) = (place.server.owner(), place.path("/exec"));
                (0..5).map(|_| owner.post(200, &path, json!({"command": "sleep 0.05"}))).collect::<Vec<_>>()
            });
            let reply = place.exec(hog(400));
            assert_eq!(reply["oom_killed"], true, "{round}: {reply}");
            assert!(others.join().unwrap().iter().all(|reply| reply["oom_killed"] == false), "{round}");
        });
    }
    // The accounting of a run covers that run only.
    let body = json!({"command": "true", "soft_timeout_secs": 30});
    for _ in 0..6 {
        let reply = place.client.post(201, &place.path("/runs"), body.clone());
        assert_eq!((&reply["status"], &reply["oom_killed"]), (&json!("exited"), &json!(false)), "{reply}");
        assert!(reply["cpu_secs"].as_f64().is_some_and(|cpu| cpu < 0.5), "{reply}");
        assert!(reply["peak_memory_bytes"].as_u64().is_some_and(|peak| peak < 64 * MIB), "{reply}");
    }
}

#[test]
fn a_container_gets_its_share_of_the_processors() {
    let place = Place::ready(shared(), json!({"name": "slow", "resources": {"cpus": 0.25}}));
    place.sh("true");
    let used = || report(&place)["used"]["cpu_micros"].as_u64().unwrap();
    let (started, before) = (Instant::now(), used());
    place.exec(json!({"command": "for i in 1 2 3; do while :; do :; done & done; sleep 2; kill $(jobs -p)"}));
    let part = (used() - before) as f64 / started.elapsed().as_micros() as f64;
    assert!(part < 0.40, "three busy loops used {part} processors");
}

#[test]
fn host_limits_are_enforced_and_lifted() {
    let server = Server::start();
    let owner = server.owner();
    let path = format!("/api/workspaces/{NIL}");
    let exec = |body: Value| owner.post(200, &format!("{path}/exec"), body);
    assert_eq!(exec(hog(200))["stdout"], "rich\n");
    owner.put(200, &path, json!({"resources": {"memory_bytes": 64 * MIB, "swap_bytes": 0}}));
    assert_eq!(exec(hog(200))["stdout"], "");
    assert_eq!(exec(hog(16))["stdout"], "rich\n");
    owner.put(200, &path, json!({"resources": {}}));
    assert_eq!(exec(hog(200))["stdout"], "rich\n", "removing limits takes effect at once");
}

#[test]
fn the_server_is_the_last_victim_of_the_oom_killer() {
    let place = crate::fixture::shared_box();
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", place.server.pid)).unwrap();
    // Without CAP_SYS_RESOURCE, which this machine may lack, the score cannot be lowered (tests/vm has the
    // capability).
    let capabilities = procs::status(place.server.pid, "CapEff").unwrap();
    let may = u64::from_str_radix(&capabilities, 16).unwrap() >> 24 & 1 == 1;
    assert_eq!(score.trim(), if may { "-900" } else { "0" });
    assert_eq!(place.sh("cat /proc/self/oom_score_adj"), if may { "0\n" } else { "500\n" });
    let host = Place::host(place.server);
    assert_eq!(host.sh("cat /proc/self/oom_score_adj"), "0\n");
    assert_ne!(place.exec(json!({"command": "echo -500 > /proc/self/oom_score_adj"}))["exit_code"], 0);
}

#[test]
fn oom_kill_ends_the_whole_process_tree() {
    let number = unique_secs();
    let limits = json!({"memory_bytes": 64 * MIB, "swap_bytes": 0});
    let ended = |place: &Place<'_>| {
        let hog = "exec dd if=/dev/zero of=/dev/null bs=400M count=1";
        let body =
            json!({"command": format!("sleep {number} & {hog}"), "limits": limits, "soft_timeout_secs": 60});
        let reply = place.client.post(201, &place.path("/runs"), body);
        assert_eq!((&reply["status"], &reply["signal"]), (&json!("killed"), &json!(9)), "{reply}");
        assert_eq!(reply["oom_killed"], true, "{reply}");
        assert_eq!(procs::sleeps(&number), [0u32; 0], "{reply}");
    };
    let place = crate::fixture::shared_box();
    ended(&place);
    ended(&Place::host(place.server));
}

#[test]
fn a_container_at_its_process_limit_reports_it_and_recovers() {
    let place = Place::ready(shared(), json!({"name": "full", "resources": {"pids": 32}}));
    let number = unique_secs();
    place.sh("true");
    let before = place.init();
    place.exec(
        json!({"command": format!("for k in $(seq 60); do sleep {number} & done"), "timeout_secs": 60}),
    );
    // Some commands get a waiting process of the agent; the others fail at their deadline or after a few seconds.
    for (timeout, patient) in [(2, secs(4)), (60, secs(20))] {
        let replies: Vec<_> = thread::scope(|scope| {
            let calls: Vec<_> = (0..12)
                .map(|_| {
                    scope.spawn(|| {
                        let (started, body) =
                            (Instant::now(), json!({"args": ["sleep", "12"], "timeout_secs": timeout}));
                        (
                            place.server.owner().call("POST", &place.path("/exec"), Some(&body)),
                            started.elapsed(),
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
    assert_eq!(place.init(), before, "the container was restarted");
    assert!(procs::sleeps(&number).len() > 10, "a process of the container was killed");
    place.server.owner().post(200, &place.path("/stop"), json!({}));
    assert_eq!(place.sh("echo new"), "new\n");
}

/// 32 MiB without swap: enough for the first processes of the container, too little for all commands at once.
const CROWD: &str = "for k in $(seq 60); do (x=$(head -c 300000 /dev/zero | tr -c x x); sleep 1) & done";

#[test]
fn commands_that_exceed_memory_do_not_end_their_container() {
    let limits = json!({"memory_bytes": 32 * MIB, "swap_bytes": 0});
    let place = Place::ready(shared(), json!({"name": "crowded", "resources": limits}));
    place.sh("true");
    let before = place.init();
    // Either the shell finishes or the kernel kills it, together with its children.
    for _ in 0..3 {
        let response = place.exec(json!({"command": format!("{CROWD}; wait"), "timeout_secs": 60}));
        assert_eq!(place.sh("echo alive"), "alive\n", "{response}");
    }
    assert_eq!(place.init(), before);
    // No client waits for this run: concurrent commands succeed or get an error with the reason.
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
    assert_eq!(place.init(), before, "the container was restarted");
}

#[test]
fn the_server_survives_a_fork_bomb_endless_output_a_memory_hog_and_a_full_disk() {
    // A separate server with a small disk.
    let setup = crate::fixture::seeded();
    let server = setup.start();
    let limits = json!({"memory_bytes": 200 * MIB, "swap_bytes": 0, "pids": 200, "cpus": 1});
    let place = Place::ready(&server, json!({"name": "hostile", "resources": limits}));
    let hostile = [
        // Each abuse has its own shell, so that a failed fork is retried.
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
        let started = Instant::now();
        let mut times = Vec::new();
        while started.elapsed() < Duration::from_secs(4) {
            let asked = Instant::now();
            server.anyone().get(200, "/health");
            times.push(asked.elapsed());
            thread::sleep(Duration::from_millis(20));
        }
        times.sort();
        // tests/bench/hostile.py measures latency; here other tests run on the same machine.
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        assert!(median < Duration::from_millis(100), "median {median:?}, worst {worst:?}");
        assert!(worst < Duration::from_secs(2), "median {median:?}, worst {worst:?}");
    });
    assert_eq!(place.sh("echo alive"), "alive\n");
}
