//! Faults in a container: after the death of the agent, of nspawn, of the shell or of every process inside, the next
//! command works.

use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::fixture::{Place, shared};
use crate::procs::{self, secs, unique_secs};

/// Runs a sleep inside, calls `harm` with its pid on the host, and returns the reply to the command.
fn harmed(place: &Place<'_>, harm: impl FnOnce(u32)) -> (u16, Value) {
    let number = unique_secs();
    let answer = thread::scope(|scope| {
        let (server, path) = (place.server, place.path("/exec"));
        let body = json!({"command": format!("echo started; sleep {number}; true"), "timeout_secs": 5});
        let run = scope.spawn(move || {
            let reply = server.owner().call("POST", &path, Some(&body));
            (reply.status, reply.value())
        });
        harm(procs::wait_sleep(&number));
        run.join().unwrap()
    });
    // If the container ends, its processes end; if only the shell ends, they keep running.
    let remaining = procs::sleeps(&number);
    remaining.iter().for_each(|pid| procs::kill(*pid));
    answer
}

#[track_caller]
fn still_works(place: &Place<'_>) {
    let start = Instant::now();
    assert_eq!(place.sh("echo alive; cat /root/kept"), "alive\nkept\n");
    assert!(start.elapsed() < secs(15), "came back after {:?}", start.elapsed());
}

fn fresh(name: &str) -> Place<'static> {
    let place = Place::ready(shared(), json!({"name": name}));
    place.sh("echo kept > /root/kept");
    place
}

/// Checks that no success was reported when its command was killed.
#[track_caller]
fn assert_not_a_success((status, reply): &(u16, Value)) {
    if *status == 200 {
        assert_ne!(reply["exit_code"], 0, "a killed command was reported as a success: {reply}");
    } else {
        assert!(*status >= 500 && reply["code"].is_string(), "{status} {reply}");
    }
}

#[test]
fn commands_work_after_the_first_process_is_killed() {
    let place = fresh("init dies");
    for _ in 0..3 {
        let number = unique_secs();
        place.exec(json!({"command": format!("setsid sleep {number} >/dev/null 2>&1 </dev/null &")}));
        assert_not_a_success(&harmed(&place, |pid| procs::kill(procs::init_of(pid).expect("no container"))));
        procs::assert_dead(&number);
        still_works(&place);
    }
}

#[test]
fn commands_work_after_nspawn_is_killed() {
    let place = fresh("nspawn dies");
    for _ in 0..3 {
        let answer = harmed(&place, |pid| {
            let init = procs::init_of(pid).expect("no container");
            let nspawn = procs::parent(init).unwrap();
            assert!(
                procs::name(nspawn).contains("nspawn"),
                "the parent of the container is {}",
                procs::name(nspawn)
            );
            procs::kill(nspawn);
        });
        assert_not_a_success(&answer);
        still_works(&place);
    }
}

#[test]
fn commands_work_after_the_agent_is_killed() {
    let place = fresh("agent dies");
    // The agent is a copy of berth's binary under another name.
    let ours = std::fs::metadata(crate::server::BINARY).unwrap().len();
    for _ in 0..3 {
        let answer = harmed(&place, |pid| {
            let home = std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
            let agents: Vec<u32> = procs::all()
                .into_iter()
                .filter(|other| {
                    std::fs::read_link(format!("/proc/{other}/ns/pid")).is_ok_and(|ns| ns == home)
                })
                .filter(|other| {
                    std::fs::metadata(format!("/proc/{other}/exe")).is_ok_and(|exe| exe.len() == ours)
                })
                .collect();
            assert!(!agents.is_empty(), "no agent in the container");
            agents.iter().for_each(|agent| procs::kill(*agent));
        });
        assert_not_a_success(&answer);
        still_works(&place);
    }
}

#[test]
fn commands_work_after_the_shell_is_killed() {
    let place = fresh("shell dies");
    let (status, reply) = harmed(&place, |pid| procs::kill(procs::parent(pid).unwrap()));
    assert_eq!(status, 200);
    assert_eq!(
        (&reply["exit_code"], &reply["signal"], &reply["stdout"]),
        (&json!(-1), &json!(9), &json!("started\n")),
        "{reply}"
    );
    still_works(&place);
}

#[test]
fn commands_work_after_the_container_kills_all_its_processes() {
    let place = fresh("suicidal");
    for command in ["kill -9 -1", "kill -9 1; kill -TERM 1; kill -INT 1; true"] {
        let reply = place.client.call(
            "POST",
            &place.path("/exec"),
            Some(&json!({"command": command, "timeout_secs": 3})),
        );
        assert!(reply.status == 200 || reply.status >= 500, "{command}: {reply}");
        still_works(&place);
    }
}

#[test]
fn commands_work_after_the_container_stops_all_its_processes() {
    let place = fresh("stopper");
    // Once the agent has spare processes, these are stopped as well; a command that is assigned to one of them must not
    // hang.
    let reserve =
        "until [ $(grep -l agent /proc/[0-9]*/comm | wc -l) -ge 3 ]; do :; done; kill -STOP -1; true";
    place.exec(json!({"command": reserve, "timeout_secs": 10}));
    for _ in 0..6 {
        let reply = place.exec(json!({"command": "cat /root/kept", "timeout_secs": 5}));
        assert_eq!((&reply["exit_code"], &reply["stdout"]), (&json!(0), &json!("kept\n")), "{reply}");
    }
    still_works(&place);
}

#[test]
fn spare_processes_can_be_killed_without_harm() {
    let place = fresh("killer of those who wait");
    let server = place.server;
    let number = unique_secs();
    let rest = format!("setsid sleep {number} >/dev/null 2>&1 </dev/null & true");
    place.exec(json!({"command": rest}));
    // Spare processes share the agent's memory until they execute a command: neither their death nor a core dump may
    // end the agent.
    for signal in ["ABRT", "TERM", "KILL", "SEGV", "QUIT", "HUP"] {
        let all = "waiting() { grep -l agent /proc/[0-9]*/comm | cut -d/ -f3 | grep -vx 1; }";
        let kill =
            format!("{all}; until [ $(waiting | wc -l) -ge 4 ]; do :; done; kill -{signal} $(waiting); true");
        place.exec(json!({"command": kill, "timeout_secs": 10}));
        let body = json!({"command": "cat /root/kept", "timeout_secs": 5});
        assert_eq!(place.exec(body.clone())["stdout"], "kept\n", "after SIG{signal}");
        let answers: Vec<_> = thread::scope(|scope| {
            let calls: Vec<_> = (0..6)
                .map(|_| scope.spawn(|| server.owner().post(200, &place.path("/exec"), body.clone())))
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()["stdout"].clone()).collect()
        });
        assert!(answers.iter().all(|answer| answer == "kept\n"), "after SIG{signal}: {answers:?}");
        assert!(!procs::sleeps(&number).is_empty(), "the container ended with SIG{signal}");
    }
    place.sh(&format!("pkill -f 'sleep {number}' || true"));
}

#[test]
fn long_commands_do_not_leak_memory() {
    let place = fresh("long commands");
    let env: serde_json::Map<_, _> = (0..10).map(|n| (format!("V{n}"), json!("z".repeat(100_000)))).collect();
    let agents = || procs::naming("/run/berth/agent");
    let init = place.init();
    let body = json!({"command": "true", "env": env});
    for _ in 0..10 {
        place.exec(body.clone());
    }
    thread::scope(|scope| {
        (0..20).for_each(|_| {
            drop(scope.spawn(|| place.server.owner().post(200, &place.path("/exec"), body.clone())))
        });
    });
    for _ in 0..3 {
        place.exec(json!({"command": "true"}));
    }
    let ours = agents().into_iter().filter(|pid| procs::init_of(*pid) == Some(init));
    let memory: Vec<_> = ours.map(|pid| (pid, procs::memory(pid, "RssAnon") >> 10)).collect();
    assert!(memory.len() >= 2 && memory.iter().all(|(_, kilobytes)| *kilobytes < 3000), "{memory:?} KiB");
}

#[test]
fn a_frozen_agent_does_not_block_other_requests() {
    // SIGSTOP from outside: the agent does not respond, and no process in it ends. (A process inside cannot stop PID
    // 1.) Timeouts hold, other containers keep working, and after SIGCONT the container works again.
    let place = fresh("frozen");
    let other = fresh("warm");
    let number = unique_secs();
    let (server, path) = (place.server, place.path("/exec"));
    thread::scope(|scope| {
        let body = json!({"command": format!("sleep {number}"), "timeout_secs": 2});
        let first = scope.spawn({
            let path = path.clone();
            move || server.owner().call("POST", &path, Some(&body))
        });
        let pid = procs::wait_sleep(&number);
        let init = procs::init_of(pid).unwrap();
        let start = Instant::now();
        procs::signal(init, rustix::process::Signal::STOP);
        let reply = first.join().unwrap();
        assert!(start.elapsed() < secs(30), "the timeout of a frozen container lasted {:?}", start.elapsed());
        assert!(reply.status == 200 || reply.status >= 500, "{reply}");
        procs::assert_dead(&number);
        still_works(&other);
        // Runs that are only started as well: first by spare processes, then without any.
        for _ in 0..8 {
            let body = json!({"command": "true", "timeout_secs": 1});
            let start = Instant::now();
            let reply = place.client.call("POST", &place.path("/exec"), Some(&body));
            assert!(start.elapsed() < secs(3), "{:?}: {reply}", start.elapsed());
            assert_eq!(reply.value()["timed_out"], true, "{reply}");
        }
        procs::signal(init, rustix::process::Signal::CONT);
    });
    still_works(&place);
}

#[test]
fn commands_work_after_the_agents_files_are_damaged() {
    let place = fresh("ruined");
    // Damage that a workload with root can do to its own system, without removing the shell.
    place.sh("rm -rf /run/* /dev/shm/* /tmp/* 2>/dev/null; chmod 000 /tmp /run; true");
    still_works(&place);
    assert_not_a_success(&harmed(&place, |pid| procs::kill(procs::init_of(pid).unwrap())));
    still_works(&place);
}

#[test]
fn a_stopped_server_leaves_no_container() {
    let setup = crate::fixture::seeded();
    let server = setup.start();
    let place = Place::ready(&server, json!({"name": "left alone"}));
    let number = unique_secs();
    place.exec(json!({"command": format!("setsid sleep {number} >/dev/null 2>&1 </dev/null & true")}));
    let (path, id) = (place.path("/exec"), place.id.clone());
    drop_without_delete(place);
    server.stop();
    procs::assert_dead(&number);
    procs::wait_for("all processes to end", secs(5), || {
        procs::mentioning(setup.data_dir()).is_empty().then_some(())
    });
    assert!(procs::mounts_below(setup.data_dir()).is_empty(), "{:?}", procs::mounts_below(setup.data_dir()));
    let server = setup.start();
    assert_eq!(server.owner().get(200, &format!("/api/workspaces/{id}"))["status"], "ready");
    assert_eq!(server.owner().post(200, &path, json!({"command": "echo back"}))["stdout"], "back\n");
}

#[test]
fn a_restarted_server_adopts_the_containers_of_a_crashed_one() {
    let setup = crate::fixture::seeded();
    let server = setup.start();
    let place = Place::ready(&server, json!({"name": "survivor"}));
    place.sh("echo kept > /root/kept");
    let number = unique_secs();
    place.exec(json!({"command": format!("setsid sleep {number} >/dev/null 2>&1 </dev/null & true")}));
    let (path, id) = (place.path("/exec"), place.id.clone());
    drop_without_delete(place);
    server.crash();
    let server = setup.start();
    assert_eq!(server.owner().get(200, &format!("/api/workspaces/{id}"))["status"], "ready");
    let reply = server.owner().post(200, &path, json!({"command": "cat /root/kept"}));
    assert_eq!(reply["stdout"], "kept\n", "{reply}");
    // The process may have been between fork and exec when its command ended.
    procs::wait_for("the background process of the command", secs(20), || {
        (procs::sleeps(&number).len() == 1).then_some(())
    });
    server.owner().delete(200, &format!("/api/workspaces/{id}"));
    procs::assert_dead(&number);
    server.stop();
    procs::wait_for("all processes to end", secs(5), || {
        procs::mentioning(setup.data_dir()).is_empty().then_some(())
    });
    assert!(procs::mounts_below(setup.data_dir()).is_empty());
}

#[test]
fn background_processes_survive_a_server_that_is_killed_after_the_response() {
    let setup = crate::fixture::seeded();
    let mut server = setup.start();
    let place = Place::ready(&server, json!({"name": "left behind"}));
    let (path, id) = (place.path("/exec"), place.id.clone());
    drop_without_delete(place);
    let mut numbers = Vec::new();
    for _ in 0..10 {
        let number = unique_secs();
        let command = format!("setsid sleep {number} >/dev/null 2>&1 </dev/null & true");
        server.owner().post(200, &path, json!({"command": command}));
        server.crash();
        numbers.push(number);
        server = setup.start();
        for number in &numbers {
            procs::wait_for("the background process to run", secs(20), || {
                (procs::sleeps(number).len() == 1).then_some(())
            });
        }
    }
    // A command without a response yet is in progress, and is killed.
    let number = unique_secs();
    let owner = server.owner();
    let body = json!({"command": format!("sleep {number}; true")}).to_string();
    thread::scope(|scope| {
        scope.spawn(|| owner.try_send("POST", &path, &[], Some(body.as_bytes())));
        procs::wait_sleep(&number);
        server.crash();
    });
    let server = setup.start();
    procs::assert_dead(&number);
    server.owner().delete(200, &format!("/api/workspaces/{id}"));
    numbers.iter().for_each(|number| procs::assert_dead(number));
}

/// Drops the handle without deleting the workspace, which must outlive this server.
fn drop_without_delete(place: Place<'_>) {
    std::mem::forget(place);
}
