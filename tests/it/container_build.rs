//! Builds: the real bootstrap, the init script, its log, rebuilds, and the guarantee that a workspace has at most one
//! build at a time, which DELETE cancels.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{DISTRO, Place, bootstrap_facts, shared};
use crate::meeting::Meeting;
use crate::procs::{self, secs, unique_secs, wait_for};

#[test]
fn the_real_bootstrap_is_streamed_to_the_build_log() {
    let facts = bootstrap_facts();
    let log = facts["log"].as_str().unwrap();
    for line in ["I: Retrieving", "I: Validating", "I: Unpacking", "I: Base system installed successfully."] {
        assert!(log.contains(line), "{line:?} is missing in the log of debootstrap:\n{log}");
    }
    assert!(facts["debian_version"].as_str().unwrap().starts_with("12."), "{}", facts["debian_version"]);
    // The log is streamed: it was observed to grow during the build.
    let seen = facts["log_lengths_seen"].as_array().unwrap();
    assert!(seen.len() > 5, "the build log came in {} pieces", seen.len());
}

#[test]
fn later_builds_use_the_cached_image() {
    let server = shared();
    let place = Place::ready(server, json!({"name": "quick"}));
    assert!(!place.init_log().contains("I: Retrieving"), "bootstrapped again:\n{}", place.init_log());
    assert_eq!(place.sh("cat /etc/debian_version"), bootstrap_facts()["debian_version"].as_str().unwrap());
}

#[test]
fn the_init_script_runs_inside_with_its_shebang_and_env() {
    let script = "#!/usr/bin/perl -w\nprint \"perl prints $ENV{GREETING}\\n\"; print STDERR \"on stderr\\n\";\n\
                  open my $f, '>', '/root/made'; print $f `id -u`; print `cat /proc/1/comm`;\n";
    let place = Place::ready(
        shared(),
        json!({"name": "perl", "init_script": script, "env_vars": {"GREETING": "hi $x"}}),
    );
    let log = place.init_log();
    assert!(log.contains("perl prints hi $x"), "{log}");
    assert!(log.contains("on stderr"), "{log}");
    assert_eq!(place.sh("cat /root/made"), "0\n");
    assert!(place.sh("cat /var/log/sandboxed.sh-init.log").contains("perl prints hi $x"));
    let reply = place.client.get(200, &place.path("/init-log"));
    assert_eq!(
        (&reply["exists"], &reply["log_path"]),
        (&json!(true), &json!("/var/log/sandboxed.sh-init.log"))
    );
    assert!(reply["total_lines"].as_u64().is_some_and(|lines| lines > 1), "{reply}");
    assert!(!reply["content"].as_str().unwrap().ends_with('\n'), "{reply}");
    let reply = place.client.get(200, &place.path("/debug"));
    assert_eq!(
        (&reply["init_script_exists"], &reply["last_error"]),
        (&json!(false), &Value::Null),
        "{reply}"
    );
}

#[test]
fn a_script_without_shebang_runs_in_the_shell() {
    let place = Place::ready(shared(), json!({"name": "plain", "init_script": "echo plain > /root/made\n"}));
    assert_eq!(place.sh("cat /root/made"), "plain\n");
}

#[test]
fn the_log_has_the_last_500_lines() {
    let place = Place::ready(shared(), json!({"name": "long log", "init_script": "#!/bin/sh\nseq 1 3000\n"}));
    let reply = place.client.get(200, &place.path("/init-log"));
    let lines: Vec<_> = reply["content"].as_str().unwrap().lines().collect();
    assert_eq!(lines.len(), 500);
    assert!(lines.contains(&"3000") && !lines.contains(&"2000"), "{}", lines[0]);
    assert!(reply["total_lines"].as_u64().unwrap() >= 3000);
}

#[test]
fn a_failing_init_script_reports_its_error_and_can_be_repaired() {
    let script = "#!/bin/bash\necho before\necho 'E: nothing works' >&2\nexit 4\n";
    let place = Place::pending(shared(), json!({"name": "failing", "init_script": script}));
    place.client.call("POST", &place.path("/build"), None).expect(200);
    let done = place.settled();
    assert_eq!(done["status"], "error", "{done}");
    let message = done["error_message"].as_str().unwrap();
    assert!(message.contains('4') && message.contains("E: nothing works"), "{message}");
    assert!(place.init_log().contains("E: nothing works"));
    assert_eq!(place.client.get(200, &place.path("/debug"))["last_error"], done["error_message"]);
    place.exec_refused("workspace_not_ready", json!({"command": "true"}));

    let rerun = || place.client.call("POST", &place.path("/rerun-init"), None).expect(200).value();
    let reply = rerun();
    assert_eq!((&reply["success"], &reply["exit_code"]), (&json!(false), &json!(4)), "{reply}");
    assert_eq!((&reply["stdout"], &reply["stderr"]), (&json!("before\n"), &json!("E: nothing works\n")));
    assert!(reply["duration_secs"].is_f64(), "{reply}");
    assert_eq!(place.show()["status"], "error");

    let repaired = "#!/bin/bash\necho repaired | tee /root/made\n";
    place.client.put(200, &place.path(""), json!({"init_script": repaired}));
    let reply = rerun();
    assert_eq!(
        (&reply["success"], &reply["exit_code"], &reply["stdout"]),
        (&json!(true), &json!(0), &json!("repaired\n"))
    );
    let now = place.show();
    assert_eq!((&now["status"], &now["error_message"]), (&json!("ready"), &Value::Null));
    assert_eq!(place.sh("cat /root/made"), "repaired\n");
    assert!(place.init_log().contains("repaired"));
}

#[test]
fn a_rerun_that_cannot_start_changes_nothing() {
    let body = json!({"name": "no room", "init_script": "#!/bin/sh\necho ran", "resources": {"pids": 16}});
    let place = Place::ready(shared(), body);
    let sleep = json!({"args": ["sleep", "100"], "hard_timeout_secs": 90});
    while place.client.call("POST", &place.path("/runs"), Some(&sleep)).status == 201 {}
    // The remaining processes that wait for a command are used by execs, and one exec finds none.
    thread::scope(|scope| {
        let (reply, replies) = std::sync::mpsc::channel();
        for _ in 0..6 {
            let (owner, path, reply) = (place.server.owner(), place.path("/exec"), reply.clone());
            let sleep = json!({"args": ["sleep", "100"], "timeout_secs": 15});
            scope.spawn(move || drop(reply.send(owner.call("POST", &path, Some(&sleep)))));
        }
        assert_eq!(replies.recv().unwrap().status, 503);
        place.client.refused(503, "container_full", "POST", &place.path("/rerun-init"), None);
    });
    let now = place.show();
    assert_eq!((&now["status"], &now["error_message"]), (&json!("ready"), &Value::Null), "{now}");
    place.client.post(200, &place.path("/stop"), json!({}));
    assert_eq!(place.sh("echo again"), "again\n");
    assert_eq!(place.client.post(200, &place.path("/rerun-init"), json!({}))["stdout"], "ran\n");
}

#[test]
fn rerun_init_needs_a_container_and_a_script() {
    let place = Place::pending(shared(), json!({"name": "unbuilt", "init_script": "true"}));
    place.client.refused(400, "workspace_not_ready", "POST", &place.path("/rerun-init"), None);
    let place = Place::ready(shared(), json!({"name": "no script"}));
    place.client.refused(400, "no_init_script", "POST", &place.path("/rerun-init"), None);
    assert_eq!(place.show()["status"], "ready");
}

#[test]
fn background_processes_of_an_init_script_do_not_delay_the_build() {
    let number = unique_secs();
    let script = format!("#!/bin/bash\nsetsid sleep {number} &\necho started\n");
    let place = Place::pending(shared(), json!({"name": "daemon", "init_script": script}));
    let start = Instant::now();
    place.build();
    assert!(start.elapsed() < secs(30), "{:?}", start.elapsed());
    place.delete();
    procs::assert_dead(&number);
}

#[test]
fn an_endless_init_script_times_out_and_its_process_tree_is_killed() {
    let server = crate::fixture::seeded().arg("--init-timeout=3").start();
    let number = unique_secs();
    // The script ignores TERM, and its children are in sessions of their own and hold its pipes.
    let endless = format!(
        "#!/bin/bash\ntrap '' TERM\necho begun\nsetsid sleep {number} &\n(setsid sh -c 'trap \"\" TERM; sleep {number}; :' &)\n\
         while :; do sleep {number}; done\n"
    );
    let place = Place::pending(&server, json!({"name": "endless", "init_script": endless}));
    place.client.call("POST", &place.path("/build"), None).expect(200);
    wait_for("the script", secs(60), || (procs::sleeps(&number).len() == 3).then_some(()));
    let done = place.settled();
    procs::assert_dead(&number);
    assert_eq!(done["status"], "error", "{done}");
    let message = done["error_message"].as_str().unwrap();
    assert!(message.contains("longer than 3 s") && message.contains("--init-timeout"), "{message}");
    assert!(message.contains("begun"), "its last output is missing: {message}");
    assert!(place.init_log().contains("begun"));

    let reply = place.client.call("POST", &place.path("/rerun-init"), None).expect(200).value();
    let outcome = (&reply["success"], &reply["exit_code"], &reply["timed_out"], &reply["stdout"]);
    assert_eq!(outcome, (&json!(false), &json!(-1), &json!(true), &json!("begun\n")), "{reply}");
    procs::assert_dead(&number);
    assert_eq!(place.show()["status"], "error");

    // The builder's thread is free again, and the next build is not delayed.
    place.client.put(200, &place.path(""), json!({"init_script": "#!/bin/sh\ntrue\n"}));
    place.client.call("POST", &place.path("/build"), None).expect(200);
    assert_eq!(place.settled()["status"], "ready");
    assert_eq!(place.sh("echo works"), "works\n");
}

#[test]
fn rebuild_must_be_requested_and_starts_with_an_empty_root() {
    let place = Place::ready(shared(), json!({"name": "again"}));
    place.sh("echo mine > /root/precious");
    // A plain build of a complete workspace deletes nothing.
    let plain = place.client.call("POST", &place.path("/build"), None);
    assert!([200, 409].contains(&plain.status), "{plain}");
    assert_eq!(place.settled()["status"], "ready");
    assert_eq!(place.sh("cat /root/precious"), "mine\n");
    for (query, body) in [("?rebuild=true", None), ("", Some(json!({"rebuild": true})))] {
        place.sh("echo mine > /root/precious");
        let reply =
            place.client.call("POST", &place.path(&format!("/build{query}")), body.as_ref()).expect(200);
        assert_eq!(reply.value()["status"], "building");
        assert_eq!(place.settled()["status"], "ready");
        assert_ne!(
            place.exec(json!({"command": "cat /root/precious"}))["exit_code"],
            0,
            "the file still exists"
        );
    }
}

#[test]
fn a_build_can_name_its_distro() {
    let body = json!({"name": "late", "workspace_type": "container"});
    let server = shared();
    let created = server.owner().post(200, "/api/workspaces", body);
    assert_eq!(created["distro"], Value::Null);
    let path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    let reply = server.owner().post(200, &format!("{path}/build"), json!({"distro": "bookworm"}));
    assert_eq!((&reply["status"], &reply["distro"]), (&json!("building"), &json!(DISTRO)));
    wait_for("the build", secs(60), || (server.owner().get(200, &path)["status"] == "ready").then_some(()));
    server.owner().delete(200, &path);
}

#[test]
fn collaborators_may_build_without_approval_in_auto_mode() {
    let server = shared();
    let place = Place::pending(server, json!({"name": "built by a collaborator"}));
    server.collaborator().call("POST", &place.path("/build"), None).expect(200);
    assert_eq!(place.settled()["status"], "ready");
}

#[test]
fn debug_describes_the_root() {
    let place = Place::ready(shared(), json!({"name": "looked at"}));
    let reply = place.client.get(200, &place.path("/debug"));
    for field in ["id", "name", "path", "init_script_exists", "init_script_modified", "distro", "last_error"]
    {
        assert!(reply.get(field).is_some(), "{field} is missing: {reply}");
    }
    assert_eq!(
        (&reply["status"], &reply["path_exists"], &reply["has_bash"]),
        (&json!("ready"), &json!(true), &json!(true))
    );
    assert!(reply["size_bytes"].as_u64().is_some_and(|size| size > 50_000_000), "{reply}");
    let folders = reply["directories"].as_array().unwrap();
    for (folder, name) in folders.iter().zip(["bin", "usr", "etc", "var", "var/log", "root", "tmp"]) {
        assert_eq!((&folder["path"], &folder["exists"]), (&json!(name), &json!(true)), "{folder}");
        assert!(folder["file_count"].is_u64(), "{folder}");
    }
    assert!(
        folders[0]["file_count"].as_u64().unwrap() > 50 && folders[2]["file_count"].as_u64().unwrap() > 50
    );
}

#[test]
fn eight_concurrent_build_requests_start_one_build() {
    const ROUNDS: usize = 20;
    let place =
        Place::pending(shared(), json!({"name": "single flight", "init_script": "#!/bin/sh\nsleep 0.3\n"}));
    for round in 0..ROUNDS {
        let start = Meeting::of(8);
        let mut statuses: Vec<u16> = thread::scope(|scope| {
            let calls: Vec<_> = (0..8)
                .map(|_| {
                    let (start, path, owner) =
                        (&start, place.path("/build?rebuild=true"), place.server.owner());
                    // Connected before the race, so that the race is between builds and not between connections.
                    owner.get(200, "/health");
                    scope.spawn(move || {
                        start.wait();
                        let reply = owner.call("POST", &path, None);
                        if reply.status == 409 {
                            assert_eq!(reply.value()["code"], "build_running", "{reply}");
                        }
                        reply.status
                    })
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409, 409, 409, 409, 409, 409, 409], "round {round}");
        assert_eq!(place.settled()["status"], "ready", "round {round}");
    }
}

#[test]
fn rerun_init_and_build_exclude_each_other() {
    let place = Place::ready(shared(), json!({"name": "exclusive", "init_script": "#!/bin/sh\ntrue\n"}));
    let number = unique_secs();
    place.client.put(200, &place.path(""), json!({"init_script": format!("#!/bin/sh\nsleep {number}\n")}));
    thread::scope(|scope| {
        let (server, path) = (place.server, place.path("/rerun-init"));
        scope.spawn(move || server.owner().call("POST", &path, None));
        let pid = procs::wait_sleep(&number);
        for call in ["/build", "/build?rebuild=true", "/rerun-init"] {
            let reply = place.client.call("POST", &place.path(call), None);
            assert_eq!(reply.status, 409, "{call}: {reply}");
        }
        procs::kill(pid);
    });
    assert_ne!(place.show()["status"], "building");
}

#[test]
fn delete_ends_a_running_build() {
    let number = unique_secs();
    let script = format!("#!/bin/sh\ntrap '' TERM\nsetsid sleep {number} &\nsleep {number}\n");
    let place = Place::pending(shared(), json!({"name": "short lived", "init_script": script}));
    place.client.call("POST", &place.path("/build"), None).expect(200);
    wait_for("the init script", secs(60), || (procs::sleeps(&number).len() == 2).then_some(()));
    assert_eq!(place.show()["status"], "building");
    let (path, root, client) = (place.path(""), place.root.clone(), place.server.owner());
    let start = Instant::now();
    place.delete();
    assert!(start.elapsed() < secs(20), "{:?}", start.elapsed());
    procs::assert_dead(&number);
    client.refused(404, "workspace_not_found", "GET", &path, None);
    assert!(!root.exists() && !root.parent().unwrap().exists(), "not deleted: {}", root.display());
    assert!(procs::mounts_below(root.parent().unwrap()).is_empty());
}

#[test]
fn delete_at_any_moment_of_a_build_leaves_nothing() {
    for step in 0..12 {
        let place =
            Place::pending(shared(), json!({"name": "any moment", "init_script": "#!/bin/sh\nsleep 0.2\n"}));
        place.client.call("POST", &place.path("/build"), None).expect(200);
        // Time is part of this test: a build has no other handle for a point in the middle.
        thread::sleep(Duration::from_millis(step * 100));
        let folder = place.root.parent().unwrap().to_owned();
        place.delete();
        assert!(!folder.exists(), "after step {step} remains {}", folder.display());
        assert!(procs::mounts_below(&folder).is_empty(), "step {step}");
    }
}

#[test]
fn delete_kills_the_processes_inside() {
    let place = Place::ready(shared(), json!({"name": "running"}));
    let number = unique_secs();
    thread::scope(|scope| {
        let (server, path) = (place.server, place.path("/exec"));
        let body = json!({"command": format!("setsid sleep {number} & sleep {number}"), "timeout_secs": 60});
        scope.spawn(move || server.owner().call("POST", &path, Some(&body)));
        wait_for("both processes to start", secs(20), || (procs::sleeps(&number).len() == 2).then_some(()));
        let folder = place.root.parent().unwrap().to_owned();
        place.delete();
        procs::assert_dead(&number);
        assert!(!folder.exists());
        assert!(procs::mounts_below(&folder).is_empty());
    });
}

#[test]
fn a_failing_build_reports_the_cause() {
    // A mirror without a listener: the message must contain the tool's last output and never be empty.
    let server =
        crate::server::Setup::new().arg("--mirror=debian-bookworm=http://127.0.0.1:1/debian").start();
    let place = Place::pending(&server, json!({"name": "no mirror"}));
    place.client.call("POST", &place.path("/build"), None).expect(200);
    let done = place.settled();
    assert_eq!(done["status"], "error", "{done}");
    let message = done["error_message"].as_str().unwrap();
    assert!(
        message.contains("127.0.0.1:1") || message.contains("InRelease") || message.contains("Release"),
        "{message}"
    );
    assert!(!place.root.join("usr").exists(), "a partial root was not deleted");
    place.client.call("POST", &place.path("/build"), None).expect(200);
    assert_eq!(place.settled()["status"], "error");
}

#[test]
fn a_missing_tool_names_its_package() {
    // In a mount namespace in which both tools are missing.
    let hide = "for tool in systemd-nspawn debootstrap; do \
                    mount --bind /dev/null \"$(command -v $tool)\" || exit; done; exec \"$@\"";
    let server = crate::server::Setup::new().start_through(&["unshare", "-m", "sh", "-c", hide, "sh"]);
    let body = json!({"name": "no tools", "workspace_type": "container", "distro": DISTRO});
    let created = server.owner().post(200, "/api/workspaces", body);
    let path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    let reply = server.owner().call("POST", &format!("{path}/build"), None);
    let message = if reply.status == 200 {
        let done = wait_for("the build to fail", secs(20), || {
            let now = server.owner().get(200, &path);
            (now["status"] != "building").then_some(now)
        });
        assert_eq!(done["status"], "error", "{done}");
        done["error_message"].as_str().unwrap().to_owned()
    } else {
        reply.text()
    };
    assert!(message.contains("systemd-container") || message.contains("debootstrap"), "{message}");
    let log = server.log();
    assert!(
        log.contains("systemd-container") && log.contains("debootstrap"),
        "the start-up log does not mention it:\n{log}"
    );
}

#[test]
fn a_restart_during_a_build_is_reported_as_its_error() {
    let setup = crate::fixture::seeded();
    let server = setup.start();
    let number = unique_secs();
    let script = format!("#!/bin/sh\nsetsid sleep {number} &\nsleep {number}\n");
    let body = json!({"name": "b", "workspace_type": "container", "distro": DISTRO, "init_script": script});
    let created = server.owner().post(200, "/api/workspaces", body);
    let path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    server.owner().call("POST", &format!("{path}/build"), None).expect(200);
    wait_for("the init script", secs(60), || (procs::sleeps(&number).len() == 2).then_some(()));
    server.crash();
    let server = setup.start();
    let now = server.owner().get(200, &path);
    assert_eq!(now["status"], "error", "{now}");
    assert!(
        now["error_message"].as_str().is_some_and(|text| text.to_lowercase().contains("interrupted")),
        "{now}"
    );
    procs::assert_dead(&number);
    server.owner().put(200, &path, json!({"init_script": "#!/bin/sh\necho fine\n"}));
    server.owner().call("POST", &format!("{path}/build"), None).expect(200);
    let done = wait_for("the next build", secs(60), || {
        let now = server.owner().get(200, &path);
        (now["status"] != "building").then_some(now)
    });
    assert_eq!(done["status"], "ready", "{done}");
    // After a regular stop the result is the same.
    server.owner().put(200, &path, json!({"init_script": format!("#!/bin/sh\nsleep {number}\n")}));
    server.owner().call("POST", &format!("{path}/build?rebuild=true"), None).expect(200);
    procs::wait_sleep(&number);
    server.stop();
    procs::assert_dead(&number);
    assert!(procs::mounts_below(setup.data_dir()).is_empty());
    let server = setup.start();
    let now = server.owner().get(200, &path);
    assert_eq!(now["status"], "error", "{now}");
    assert!(!now["error_message"].as_str().unwrap_or_default().is_empty(), "{now}");
}
