//! Whatever dies, the next command works: the agent, nspawn, the shell inside, everything inside.

use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::fixture::{Place, shared};
use crate::procs::{self, secs, unique_secs};

/// Runs a sleep inside, calls `harm` with its pid on this machine, and returns what its caller was told.
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
    // With its container goes what ran in it; with its shell alone it does not.
    let left = procs::sleeps(&number);
    left.iter().for_each(|pid| procs::kill(*pid));
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

/// The command was cut short, and its caller must hear so.
#[track_caller]
fn told_of_a_cut((status, told): &(u16, Value)) {
    if *status == 200 {
        assert_ne!(told["exit_code"], 0, "a command that was killed is no success: {told}");
    } else {
        assert!(*status >= 500 && told["code"].is_string(), "{status} {told}");
    }
}

#[test]
fn kill_the_containers_first_process() {
    let place = fresh("init dies");
    for _ in 0..3 {
        let number = unique_secs();
        place.exec(json!({"command": format!("setsid sleep {number} >/dev/null 2>&1 </dev/null &")}));
        told_of_a_cut(&harmed(&place, |pid| procs::kill(procs::init_of(pid).expect("no container"))));
        procs::assert_dead(&number);
        still_works(&place);
    }
}

#[test]
fn kill_nspawn() {
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
        told_of_a_cut(&answer);
        still_works(&place);
    }
}

#[test]
fn kill_the_agent() {
    let place = fresh("agent dies");
    // It is a copy of our binary, under a name of its own.
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
            assert!(!agents.is_empty(), "no process of our binary in the container");
            agents.iter().for_each(|agent| procs::kill(*agent));
        });
        told_of_a_cut(&answer);
        still_works(&place);
    }
}

#[test]
fn kill_the_shell_inside() {
    let place = fresh("shell dies");
    let (status, told) = harmed(&place, |pid| procs::kill(procs::parent(pid).unwrap()));
    assert_eq!(status, 200);
    assert_eq!(
        (&told["exit_code"], &told["signal"], &told["stdout"]),
        (&json!(-1), &json!(9), &json!("started\n")),
        "{told}"
    );
    still_works(&place);
}

#[test]
fn a_container_that_kills_all_it_can_see() {
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
fn a_container_that_stops_all_it_can_see() {
    let place = fresh("stopper");
    // Once the agent has processes in reserve, they are stopped as well; a command given to one of them must not wait.
    let reserve =
        "until [ $(grep -l agent /proc/[0-9]*/comm | wc -l) -ge 3 ]; do :; done; kill -STOP -1; true";
    place.exec(json!({"command": reserve, "timeout_secs": 10}));
    for _ in 0..6 {
        let told = place.exec(json!({"command": "cat /root/kept", "timeout_secs": 5}));
        assert_eq!((&told["exit_code"], &told["stdout"]), (&json!(0), &json!("kept\n")), "{told}");
    }
    still_works(&place);
}

#[test]
fn what_waits_for_a_command_may_be_killed_without_harm_to_the_rest() {
    let place = fresh("killer of those who wait");
    let server = place.server;
    let number = unique_secs();
    let rest = format!("setsid sleep {number} >/dev/null 2>&1 </dev/null & true");
    place.exec(json!({"command": rest}));
    // They share the agent's memory until they become a command: neither their end nor a core dump may be its end.
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
fn long_commands_leave_no_memory_behind() {
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
fn a_frozen_agent_holds_nobody_up() {
    // SIGSTOP from outside: the agent answers no more, and nothing in it ends by itself. (From inside PID 1 cannot be
    // stopped.) Deadlines hold, the other containers live, and when it thaws all is well.
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
        assert!(start.elapsed() < secs(30), "the timeout of a frozen container took {:?}", start.elapsed());
        assert!(reply.status == 200 || reply.status >= 500, "{reply}");
        procs::assert_dead(&number);
        still_works(&other);
        // Also what is only to be started: at first by processes that wait, then with nobody who does anything.
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
fn files_that_the_agent_lives_on_may_be_ruined() {
    let place = fresh("ruined");
    // What a workload with root can do to its own system, short of its shell.
    place.sh("rm -rf /run/* /dev/shm/* /tmp/* 2>/dev/null; chmod 000 /tmp /run; true");
    still_works(&place);
    told_of_a_cut(&harmed(&place, |pid| procs::kill(procs::init_of(pid).unwrap())));
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
    procs::wait_for("no process of ours", secs(5), || {
        procs::mentioning(setup.data_dir()).is_empty().then_some(())
    });
    assert!(procs::mounts_below(setup.data_dir()).is_empty(), "{:?}", procs::mounts_below(setup.data_dir()));
    let server = setup.start();
    assert_eq!(server.owner().get(200, &format!("/api/workspaces/{id}"))["status"], "ready");
    assert_eq!(server.owner().post(200, &path, json!({"command": "echo back"}))["stdout"], "back\n");
}

#[test]
fn a_crashed_server_takes_its_containers_back() {
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
    let told = server.owner().post(200, &path, json!({"command": "cat /root/kept"}));
    assert_eq!(told["stdout"], "kept\n", "{told}");
    // It may have been between fork and exec when its command ended.
    procs::wait_for("what an ended command left: it is the container's, which runs on", secs(20), || {
        (procs::sleeps(&number).len() == 1).then_some(())
    });
    server.owner().delete(200, &format!("/api/workspaces/{id}"));
    procs::assert_dead(&number);
    server.stop();
    procs::wait_for("no process of ours", secs(5), || {
        procs::mentioning(setup.data_dir()).is_empty().then_some(())
    });
    assert!(procs::mounts_below(setup.data_dir()).is_empty());
}

#[test]
fn what_a_command_left_outlives_a_server_that_is_killed_with_its_answer() {
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
            procs::wait_for("what was left to run", secs(20), || {
                (procs::sleeps(number).len() == 1).then_some(())
            });
        }
    }
    // What has no answer yet is under way, and ends.
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

/// The workspace shall outlive this server.
fn drop_without_delete(place: Place<'_>) {
    std::mem::forget(place);
}
