//! Following and cancelling builds: the steps and lines of the feed, its resumption, cancellation within two seconds
//! without leftovers, concurrent builds.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use crate::fixture::{DISTRO, Place, seeded, shared};
use crate::procs::{self, secs, unique_secs, wait_for};

/// Returns the build feed as JSON lines, read to its end.
#[track_caller]
fn feed(place: &Place<'_>, since: &str) -> Vec<Value> {
    let path = place.path(&format!("/build/events?stream=ndjson{since}"));
    let reply = place.client.call("GET", &path, None).expect(200);
    reply.text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn kinds<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == kind || event["type"] == kind).collect()
}

fn step_names(events: &[Value]) -> Vec<String> {
    let steps = kinds(events, "step");
    steps
        .iter()
        .map(|step| format!("{} {}", step["step"].as_str().unwrap(), step["state"].as_str().unwrap()))
        .collect()
}

#[test]
fn the_build_feed_has_steps_and_log_and_can_be_resumed() {
    let server = seeded().start();
    let owner = server.owner();
    owner.put(
        200,
        "/api/library/init-script/first",
        json!({"content": "#!/bin/bash\nexport FROM_FRAGMENT=yes\necho in the fragment\n"}),
    );
    let place = Place::pending(
        &server,
        json!({"name": "watched", "init_script": "#!/bin/sh\necho the own one sees $FROM_FRAGMENT\n"}),
    );
    owner.put(200, &place.path(""), json!({"init_scripts": ["first"]}));
    let before = feed(&place, "");
    assert_eq!(kinds(&before, "status")[0]["status"], "pending", "{before:?}");

    place.client.call("POST", &place.path("/build"), None).expect(200);
    let events = feed(&place, "");
    assert_eq!(
        step_names(&events),
        [
            "image started",
            "image done",
            "root started",
            "root done",
            "skills and tools started",
            "skills and tools done",
            "init fragments started",
            "init fragments done",
            "init script started",
            "init script done"
        ],
        "{events:?}"
    );
    let lines: Vec<&str> = kinds(&events, "log").iter().filter_map(|event| event["line"].as_str()).collect();
    assert!(lines.contains(&"in the fragment") && lines.contains(&"the own one sees yes"), "{lines:?}");
    let result = kinds(&events, "result");
    assert_eq!((&result[0]["status"], result.len()), (&json!("ready"), 1), "{events:?}");

    // Resumed in the middle, without gaps or repetitions; and again long after the build.
    let ids: Vec<String> = events
        .iter()
        .filter_map(|event| event["id"].as_str().map(str::to_owned))
        .filter(|id| id != "0")
        .collect();
    let middle = &ids[ids.len() / 2];
    let rest = feed(&place, &format!("&since={middle}"));
    let again: Vec<&str> = rest.iter().filter_map(|event| event["id"].as_str()).collect();
    assert_eq!(again, ids[ids.len() / 2 + 1..].iter().map(String::as_str).collect::<Vec<_>>());

    // A rerun runs the fragments too; its stdout and stderr are separate and without berth's own log lines.
    let reply = place.client.post(200, &place.path("/rerun-init"), json!({}));
    assert_eq!(reply["stdout"], "in the fragment\nthe own one sees yes\n", "{reply}");
    assert!(place.init_log().contains("the own one sees yes"));
}

#[test]
fn a_cancelled_build_ends_within_two_seconds_and_leaves_nothing() {
    let server = seeded().start();
    let number = unique_secs();
    let script = format!("#!/bin/sh\ntrap '' TERM\nsetsid sleep {number} &\nsleep {number}\n");
    let place = Place::pending(&server, json!({"name": "cancelled", "init_script": script}));
    place.client.refused(409, "conflict", "DELETE", &place.path("/build"), None);
    for _ in 0..3 {
        place.client.call("POST", &place.path("/build"), None).expect(200);
        wait_for("the init script", secs(60), || (procs::sleeps(&number).len() == 2).then_some(()));
        let start = Instant::now();
        let reply = place.client.call("DELETE", &place.path("/build"), None).expect(200).value();
        assert!(start.elapsed() < secs(2), "{:?}", start.elapsed());
        assert_eq!((&reply["status"], &reply["error_message"]), (&json!("pending"), &Value::Null), "{reply}");
        procs::assert_dead(&number);
        let events = feed(&place, "");
        assert!(step_names(&events).contains(&"init script failed".to_owned()), "{events:?}");
        assert_eq!(place.client.get(200, &place.path("/debug"))["path_exists"], false);
        place.exec_refused("workspace_not_ready", json!({"command": "true"}));
    }
    wait_for("its layers to be removed", secs(10), || {
        let remaining = fs::read_dir(server.data.join("layers")).unwrap().flatten();
        let remaining =
            remaining.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count();
        (remaining == 0).then_some(())
    });
    place.client.put(200, &place.path(""), json!({"init_script": "#!/bin/sh\ntrue\n"}));
    place.build();
}

#[test]
fn cancelling_a_build_keeps_an_existing_root() {
    let place = Place::ready(shared(), json!({"name": "kept"}));
    place.sh("echo mine > /root/precious");
    let number = unique_secs();
    // A ready workspace has everything that a build would create; after a failed script a build continues from that
    // script.
    place.client.put(200, &place.path(""), json!({"init_script": "#!/bin/sh\nfalse\n"}));
    place.client.post(200, &place.path("/rerun-init"), json!({}));
    place.client.put(200, &place.path(""), json!({"init_script": format!("#!/bin/sh\nsleep {number}\n")}));
    place.client.call("POST", &place.path("/build"), None).expect(200);
    procs::wait_sleep(&number);
    let reply = place.client.call("DELETE", &place.path("/build"), None).expect(200).value();
    assert_eq!(reply["status"], "error", "{reply}");
    assert!(reply["error_message"].as_str().unwrap().contains("cancelled"), "{reply}");
    procs::assert_dead(&number);
    place.client.put(200, &place.path(""), json!({"init_script": "#!/bin/sh\ntrue\n"}));
    place.build();
    assert_eq!(place.sh("cat /root/precious"), "mine\n");
}

#[test]
fn a_build_of_a_ready_workspace_changes_nothing() {
    let server = shared();
    let script = "#!/bin/sh\necho run >> /root/runs\n";
    let place = Place::ready(server, json!({"name": "undisturbed", "init_script": script}));
    let number = unique_secs();
    let sleeping = std::thread::scope(|scope| {
        // A client has one connection, and this call occupies it.
        let (client, path) = (server.owner(), place.path("/exec"));
        let command = format!("sleep {number}; echo whole");
        let sleeping = scope.spawn(move || client.post(200, &path, json!({"command": command})));
        procs::wait_sleep(&number);
        let reply = place.client.call("POST", &place.path("/build"), None).expect(200).value();
        assert_eq!(
            (&reply["status"], &reply["error_message"]),
            (&json!("building"), &Value::Null),
            "as observed"
        );
        assert_eq!(place.show()["status"], "ready");
        // A follower of the build receives its result.
        let reply = place.client.call("GET", &place.path("/build/events?stream=ndjson"), None).expect(200);
        let last = reply.text().lines().rfind(|line| line.contains("result")).map(str::to_owned);
        assert!(last.is_some_and(|line| line.contains("ready")), "{}", reply.text());
        assert_eq!(place.sh("cat /root/runs"), "run\n", "running commands continue, and no script ran again");
        let refused = place.client.refused(
            409,
            "rebuild_required",
            "POST",
            &place.path("/build"),
            Some(json!({"distro": "ubuntu-noble"})),
        );
        assert_eq!(place.show()["distro"], crate::fixture::DISTRO, "{refused}");
        procs::kill(procs::sleeps(&number)[0]);
        sleeping.join().unwrap()
    });
    assert_eq!(sleeping["stdout"], "whole\n", "{sleeping}");
}

#[test]
fn requests_refused_during_a_build_ask_to_wait() {
    let number = unique_secs();
    let script = format!("#!/bin/sh\nsleep {number}\n");
    let place = Place::pending(shared(), json!({"name": "still building", "init_script": script}));
    let reply = place.exec_refused("workspace_not_ready", json!({"command": "true"}));
    assert!(reply["message"].as_str().unwrap().contains("Build it first"), "{reply}");
    place.client.call("POST", &place.path("/build"), None).expect(200);
    procs::wait_sleep(&number);
    let reply = place.exec_refused("workspace_not_ready", json!({"command": "true"}));
    let message = reply["message"].as_str().unwrap();
    assert!(message.contains("status: Building") && message.contains("Wait for its build"), "{message}");
    assert!(!message.contains("Build it first"), "{message}");
    place.client.call("DELETE", &place.path("/build"), None).expect(200);
}

#[test]
fn an_init_script_that_cannot_run_reports_the_cause() {
    let place = Place::ready(shared(), json!({"name": "hints"}));
    for (script, expected) in [
        ("#!/bin/sh\r\necho x\r\n", "Windows line endings (CRLF)"),
        ("set -e\r\ncd /root\r\n", "Windows line endings (CRLF)"),
        ("#!/opt/no/python3\nprint()\n", "interpreter '/opt/no/python3'"),
        ("#!/usr/bin/env no-such-program\n", "interpreter 'no-such-program'"),
    ] {
        place.client.put(200, &place.path(""), json!({"init_script": script}));
        let reply = place.client.call("POST", &place.path("/rerun-init"), None);
        assert!(reply.text().contains(expected), "{script:?}: {}", reply.text());
        let shown = place.show();
        assert_eq!(shown["status"], "error", "{shown}");
        assert!(shown["error_message"].as_str().unwrap().contains(expected), "{script:?}: {shown}");
    }
    // For other failures the message guesses no cause.
    place.client.put(200, &place.path(""), json!({"init_script": "#!/bin/sh\nexit 3\n"}));
    assert_eq!(place.client.post(200, &place.path("/rerun-init"), json!({})).get("hint"), None);
}

#[test]
fn a_failed_rerun_keeps_the_root() {
    let place = Place::ready(shared(), json!({"name": "failing later"}));
    place.sh("echo mine > /root/precious");
    place.client.put(200, &place.path(""), json!({"init_script": "#!/bin/sh\nexit 3\n"}));
    assert_eq!(place.client.post(200, &place.path("/rerun-init"), json!({}))["exit_code"], 3);
    assert_eq!(place.show()["status"], "error");
    let body = json!({"command": "true"});
    let reply = place.client.refused(400, "workspace_not_ready", "POST", &place.path("/exec"), Some(body));
    assert!(reply["message"].as_str().unwrap().contains("rerun-init"), "{reply}");
    place.client.put(200, &place.path(""), json!({"init_script": "#!/bin/sh\ntrue\n"}));
    place.build();
    assert_eq!(place.sh("cat /root/precious"), "mine\n");
    // Even if the workload has removed parts of its system.
    place.sh("rm -rf /var /usr/share");
    place.build();
    assert_eq!(place.sh("cat /root/precious"), "mine\n");
    place.client.refused(
        409,
        "rebuild_required",
        "POST",
        &place.path("/build"),
        Some(json!({"distro": "ubuntu-noble"})),
    );
}

#[test]
fn a_rebuild_with_a_failing_image_keeps_the_old_root() {
    let server = seeded().arg("--mirror=ubuntu-noble=http://127.0.0.1:1/ubuntu").start();
    let place = Place::ready(&server, json!({"name": "unlucky"}));
    place.sh("echo mine > /root/precious");
    place.client.post(200, &place.path("/build"), json!({"distro": "ubuntu-noble", "rebuild": true}));
    assert_eq!(place.settled()["status"], "error");
    place.client.put(200, &place.path(""), json!({"distro": DISTRO}));
    place.build();
    assert_eq!(place.sh("cat /root/precious"), "mine\n");
}

#[test]
fn builds_of_several_workspaces_run_concurrently() {
    let server = seeded().start();
    let wait = "#!/bin/sh\nuntil [ -e /go ]; do sleep 0.02; done\n";
    let first = Place::pending(&server, json!({"name": "slow", "init_script": wait}));
    first.client.call("POST", &first.path("/build"), None).expect(200);
    wait_for("its script", secs(60), || {
        let machine = first.client.get(200, &first.path("/debug"))["machine"].clone();
        (machine["state"] == "running" && machine["busy"] == 1).then_some(())
    });
    let second = Place::ready(&server, json!({"name": "quick"}));
    assert_eq!(first.show()["status"], "building");
    assert_eq!(second.sh("echo quick"), "quick\n");
    fs::write(first.inside("go"), "").unwrap();
    assert_eq!(first.settled()["status"], "ready");
}

#[test]
fn a_mirror_that_never_answers_times_out() {
    crate::fixture::tools();
    // Accepts connections and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("--mirror=debian-bookworm=http://{}/debian", listener.local_addr().unwrap());
    let server = crate::server::Setup::new().arg(mirror).arg("--image-timeout=2").start();
    let place = Place::pending(&server, json!({"name": "patient"}));
    place.client.call("POST", &place.path("/build"), None).expect(200);
    let (held, _) = listener.accept().unwrap();
    let done = place.settled();
    assert_eq!(done["status"], "error", "{done}");
    let message = done["error_message"].as_str().unwrap();
    assert!(message.contains("longer than 2 s") && message.contains("--image-timeout"), "{message}");
    drop(held);
    let remaining = |folder: &str| {
        let entries = fs::read_dir(server.data.join(folder)).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".new-")).count()
    };
    wait_for("the partial image to be removed", secs(10), || (remaining("images") == 0).then_some(()));
    assert!(procs::mounts_below(&server.data).is_empty());
}

#[test]
fn two_builds_of_one_distro_share_one_image_build() {
    crate::fixture::tools();
    // A mirror that refuses slowly: both builds have started when the first bootstrap fails.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mirror = format!("--mirror=debian-bookworm=http://{}/debian", listener.local_addr().unwrap());
    let server = crate::server::Setup::new().arg(mirror).start();
    let places =
        [Place::pending(&server, json!({"name": "one"})), Place::pending(&server, json!({"name": "two"}))];
    for place in &places {
        place.client.call("POST", &place.path("/build"), None).expect(200);
    }
    let (first, _) = listener.accept().unwrap();
    wait_for("the other build to wait", secs(30), || {
        places.iter().any(|place| place.init_log().contains("being made already")).then_some(())
    });
    for place in &places {
        let start = Instant::now();
        let reply = place.client.call("DELETE", &place.path("/build"), None).expect(200).value();
        assert!(start.elapsed() < secs(2), "{:?}", start.elapsed());
        assert_eq!(reply["status"], "pending", "{reply}");
    }
    drop(first);
    let staged = || {
        fs::read_dir(server.data.join("images"))
            .unwrap()
            .flatten()
            .any(|e| e.file_name().to_string_lossy().starts_with(".new-"))
    };
    wait_for("the partial image to be removed", secs(10), || (!staged()).then_some(()));
}
