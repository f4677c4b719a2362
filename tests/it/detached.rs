//! Runs with `"detach": true`, on the host and in containers: their output, deadline and exit status survive the
//! server, and they end at their deadline or with their workspace.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::doctor::cgroups;
use crate::events::Events;
use crate::fixture::{Place, seeded};
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::server::{NIL, Server, Setup, read};

/// A server that is restarted, and a workspace that persists.
struct World {
    setup: Setup,
    server: Option<Server>,
    /// The workspace's path in the API.
    path: String,
}

/// How the server ends.
#[derive(Clone, Copy)]
enum Way {
    Killed,
    Stopped,
}

macro_rules! in_both {
    ($($name:ident)*) => {
        mod host {
            $(#[test]
            fn $name() {
                super::$name(super::World::host());
            })*
        }
        mod container {
            $(#[test]
            fn $name() {
                super::$name(super::World::container());
            })*
        }
    };
}

in_both! {
    output_and_status_survive_a_killed_server
    output_and_status_survive_a_stopped_server
    runs_continue_after_the_data_folder_is_moved
    a_run_that_ends_without_a_server_has_its_exit_status
    the_deadline_holds_across_a_restart
    stdin_and_signals_reach_a_run_after_a_restart
    deletion_ends_a_run_after_a_restart
    a_run_ends_with_its_workspace
    a_killed_keeper_is_reported_as_an_error
    output_beyond_the_limit_is_dropped_from_the_start
    a_detached_run_keeps_its_terminal
    detached_runs_that_cannot_start_are_refused
    a_run_without_detach_ends_with_the_server
}

impl World {
    fn host() -> World {
        let setup = Setup::new();
        let server = setup.start();
        World { setup, server: Some(server), path: format!("/api/workspaces/{NIL}") }
    }

    fn container() -> World {
        let setup = seeded();
        let server = setup.start();
        let place = Place::ready(&server, json!({"name": "stays"}));
        let path = place.path("");
        // The workspace outlives this server.
        std::mem::forget(place);
        World { setup, server: Some(server), path }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    fn client(&self) -> Client {
        self.server().owner()
    }

    fn is_container(&self) -> bool {
        !self.path.ends_with(NIL)
    }

    fn end(&mut self, way: Way) {
        let server = self.server.take().unwrap();
        match way {
            Way::Killed => server.crash(),
            Way::Stopped => assert!(server.stop().success()),
        }
    }

    fn restart(&mut self, way: Way) {
        self.end(way);
        self.server = Some(self.setup.start());
    }

    #[track_caller]
    fn start(&self, mut body: Value) -> String {
        body["detach"] = json!(true);
        let reply = self.client().post(201, &format!("{}/runs", self.path), body);
        assert_eq!(reply["detach"], true, "{reply}");
        format!("{}/runs/{}", self.path, reply["id"].as_str().unwrap())
    }

    #[track_caller]
    fn ended(&self, run: &str) -> Value {
        let wait = format!("{run}/wait?timeout_secs=60");
        let reply = self.client().call("POST", &wait, None).expect(200).value();
        assert_ne!(reply["status"], "running", "{reply}");
        reply
    }

    #[track_caller]
    fn output(&self, run: &str, query: &str) -> Reply {
        self.client().call("GET", &format!("{run}/output{query}"), None).expect(200)
    }

    /// Waits until the run has printed `text`.
    #[track_caller]
    fn printed(&self, run: &str, text: &str) {
        wait_for(text, secs(30), || self.output(run, "").text().contains(text).then_some(()));
    }

    fn keepers(&self) -> Vec<u32> {
        let all = procs::mentioning(self.setup.data_dir()).into_iter();
        all.filter(|(_, words)| words.iter().any(|word| word == "keeper")).map(|(pid, _)| pid).collect()
    }

    /// Checks that neither a process nor a container remains.
    #[track_caller]
    fn leave(mut self) {
        if self.is_container() {
            self.client().delete(200, &self.path);
        }
        wait_for("the keepers to exit", secs(10), || self.keepers().is_empty().then_some(()));
        let tree = PathBuf::from(read(self.setup.data_dir().join("cgroup")));
        self.end(Way::Stopped);
        let remaining = || procs::mentioning(self.setup.data_dir());
        wait_for("all processes to end", secs(5), || remaining().is_empty().then_some(()));
        let groups = cgroups(tree.file_name().unwrap().to_str().unwrap());
        assert!(groups.is_empty(), "{groups:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keepers().into_iter().for_each(procs::kill);
        }
    }
}

/// Numbers on both streams in turn, so that a lost or duplicated byte is detected; about 1.2 MB in two seconds.
const TALK: &str = "i=0; while [ $i -lt 200 ]; do seq $((i*800)) $((i*800+799)); echo e$i >&2; i=$((i+1)); sleep 0.01; done; \
                    exit 7";

fn talked() -> (String, String) {
    let out = (0..160_000).map(|n| format!("{n}\n")).collect();
    let err = (0..200).map(|n| format!("e{n}\n")).collect();
    (out, err)
}

/// The data folder is renamed while no server runs: its state contains no path.
fn runs_continue_after_the_data_folder_is_moved(mut world: World) {
    let run =
        world.start(json!({"command": "echo first; read x; echo \"got $x\"; exit 5", "open_stdin": true}));
    world.printed(&run, "first");
    world.end(Way::Stopped);
    let moved = world.setup.scratch().path().join("moved");
    std::fs::rename(world.setup.data_dir(), &moved).unwrap();
    world.setup = world.setup.clone().data(&moved);
    world.server = Some(world.setup.start());
    assert_eq!(world.client().get(200, &run)["status"], "running");
    let words = [("Content-Type", "text/plain")];
    world.client().send("POST", &format!("{run}/stdin?eof=true"), &words, Some(b"more\n")).expect(200);
    let reply = world.ended(&run);
    assert_eq!(reply["exit_code"], 5, "{reply}");
    assert_eq!(world.output(&run, "").text(), "first\ngot more\n");
    // A new run at the new path.
    let run = world.start(json!({"command": "echo second"}));
    assert_eq!(world.ended(&run)["exit_code"], 0);
    if world.is_container() {
        assert!(world.server().log().contains("runs on, since"), "{}", world.server().log());
    }
    world.leave();
}

fn survives(mut world: World, way: Way) {
    let run = world.start(json!({"command": TALK, "tag": "talk"}));
    for _ in 0..3 {
        let before = world.output(&run, "").body.len();
        wait_for("more output", secs(20), || (world.output(&run, "").body.len() > before).then_some(()));
        world.restart(way);
        let reply = world.client().get(200, &run);
        assert_eq!((&reply["tag"], &reply["command"]), (&json!("talk"), &json!(TALK)));
    }
    // Followed from the beginning by a late client, in the exact order of the output.
    let mut order = String::new();
    let mut events = Events::follow(world.server(), &run, None);
    while let Some(event) = events.next() {
        if event.name.starts_with("std") {
            order.push_str(event.data["text"].as_str().unwrap());
        }
    }
    let reply = world.ended(&run);
    assert_eq!((&reply["status"], &reply["exit_code"]), (&json!("exited"), &json!(7)), "{reply}");
    assert_eq!((&reply["truncated"], &reply["error"]), (&json!(false), &Value::Null), "{reply}");
    assert!(reply["wall_secs"].as_f64().unwrap() >= 2.0, "{reply}");
    let (out, err) = talked();
    assert!(world.output(&run, "").text() == out, "stdout differs");
    assert!(world.output(&run, "?stream=stderr").text() == err, "stderr differs");
    assert_eq!(order.len(), out.len() + err.len());
    assert!(world.output(&run, "?stream=both").text() == order, "the order differs");
    assert_eq!(order.find("e0\n").map(|at| &order[at - 4..at]), Some("799\n"));
    // The output is complete after another restart too.
    world.restart(way);
    assert_eq!(world.client().get(200, &run)["exit_code"], 7);
    assert!(world.output(&run, "").text() == out);
    world.client().delete(204, &run);
    world.leave();
}

fn output_and_status_survive_a_killed_server(world: World) {
    survives(world, Way::Killed);
}

fn output_and_status_survive_a_stopped_server(world: World) {
    survives(world, Way::Stopped);
}

fn a_run_that_ends_without_a_server_has_its_exit_status(mut world: World) {
    let ways =
        [("exit 3", "exited", json!(3), Value::Null), ("kill -SEGV $$", "killed", json!(-1), json!(11))];
    for (command, status, code, signal) in ways {
        for way in [Way::Killed, Way::Stopped] {
            let number = unique_secs();
            let gate = format!("sleep {number}; echo done; {command}");
            let run = world.start(json!({"command": gate}));
            let pid = procs::wait_sleep(&number);
            world.end(way);
            procs::kill(pid);
            wait_for("its keeper to end", secs(20), || world.keepers().is_empty().then_some(()));
            world.server = Some(world.setup.start());
            let reply = world.client().get(200, &run);
            assert_eq!(
                (&reply["status"], &reply["exit_code"], &reply["signal"]),
                (&json!(status), &code, &signal),
                "{reply}"
            );
            assert_eq!(world.output(&run, "").text(), "done\n");
            assert!(reply["cpu_secs"].as_f64().is_some(), "{reply}");
        }
    }
    world.leave();
}

fn the_deadline_holds_across_a_restart(mut world: World) {
    let (a, b) = (unique_secs(), unique_secs());
    let command = format!("trap '' TERM; setsid sleep {a} & echo up; sleep {b}; sleep {b}");
    let run = world.start(json!({"command": command, "hard_timeout_secs": 3}));
    world.printed(&run, "up\n");
    world.restart(Way::Killed);
    let reply = world.ended(&run);
    assert_eq!((&reply["status"], &reply["exit_code"]), (&json!("timed_out"), &json!(-1)), "{reply}");
    let wall = reply["wall_secs"].as_f64().unwrap();
    assert!((3.0..4.5).contains(&wall), "{wall}");
    procs::assert_dead(&a);
    procs::assert_dead(&b);
    world.leave();
}

fn stdin_and_signals_reach_a_run_after_a_restart(mut world: World) {
    let command = "trap 'echo usr1' USR1; echo up; while read x; do echo got $x; done; echo eof";
    let run = world.start(json!({"command": command, "open_stdin": true}));
    let put = |world: &World, query: &str, text: &str| {
        let path = format!("{run}/stdin{query}");
        let kind = [("Content-Type", "text/plain")];
        world.client().send("POST", &path, &kind, Some(text.as_bytes())).expect(200).value()
    };
    put(&world, "", "one\n");
    world.printed(&run, "got one\n");
    for (way, word) in [(Way::Killed, "two"), (Way::Stopped, "three")] {
        world.restart(way);
        assert_eq!(world.client().get(200, &run)["stdin_open"], true);
        put(&world, "", &format!("{word}\n"));
        world.printed(&run, &format!("got {word}\n"));
    }
    world.client().post(200, &format!("{run}/signal"), json!({"signal": "USR1", "to": "main"}));
    put(&world, "", "four\n");
    world.printed(&run, "usr1\n");
    world.printed(&run, "got four\n");
    assert_eq!(put(&world, "?eof=true", "five\n"), json!({"bytes_taken": 5, "stdin_open": false}));
    assert_eq!(world.ended(&run)["exit_code"], 0);
    assert!(world.output(&run, "").text().ends_with("got five\neof\n"));
    // A run that receives its whole input at the start.
    let long: String = (0..50_000).map(|n| format!("{n}\n")).collect();
    let run = world.start(json!({"command": "sleep 0.5; cat", "stdin": long}));
    world.restart(Way::Killed);
    assert_eq!(world.ended(&run)["exit_code"], 0);
    assert!(world.output(&run, "").text() == long);
    world.leave();
}

fn deletion_ends_a_run_after_a_restart(mut world: World) {
    let (a, b) = (unique_secs(), unique_secs());
    let command = format!("trap '' TERM; setsid sleep {a} & echo up; sleep {b}; sleep {b}");
    let run = world.start(json!({"command": command}));
    procs::wait_sleep(&a);
    procs::wait_sleep(&b);
    world.restart(Way::Killed);
    world.client().delete(204, &run);
    procs::assert_dead(&a);
    procs::assert_dead(&b);
    world.client().refused(404, "run_not_found", "GET", &run, None);
    let id = run.rsplit('/').next().unwrap();
    assert!(!world.setup.data_dir().join("runs").join(id).exists());
    // A run of the same server too.
    let run = world.start(json!({"command": format!("sleep {a}")}));
    procs::wait_sleep(&a);
    world.client().delete(204, &run);
    procs::assert_dead(&a);
    world.leave();
}

fn a_run_ends_with_its_workspace(mut world: World) {
    if !world.is_container() {
        let created = world.client().post(200, "/api/workspaces", json!({"name": "goes"}));
        world.path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    }
    let number = unique_secs();
    let run = world.start(json!({"command": format!("setsid sleep {number} & sleep {number}")}));
    wait_for("both processes to start", secs(20), || (procs::sleeps(&number).len() == 2).then_some(()));
    world.restart(Way::Stopped);
    assert_eq!(procs::sleeps(&number).len(), 2, "a regular stop ended the run");
    world.client().delete(200, &world.path);
    procs::assert_dead(&number);
    let id = run.rsplit('/').next().unwrap();
    assert!(!world.setup.data_dir().join("runs").join(id).exists());
    world.path = format!("/api/workspaces/{NIL}");
    world.leave();
}

fn a_killed_keeper_is_reported_as_an_error(mut world: World) {
    for restarts in 0..3 {
        let number = unique_secs();
        let command = format!("echo part; setsid sleep {number} & sleep {number}");
        let run = world.start(json!({"command": command}));
        wait_for("both processes to start", secs(20), || (procs::sleeps(&number).len() == 2).then_some(()));
        world.printed(&run, "part\n");
        if restarts > 1 {
            world.restart(Way::Killed);
        }
        let keeper = world.keepers()[0];
        if restarts > 0 {
            world.end(Way::Killed);
        }
        procs::signal(keeper, Signal::KILL);
        if restarts > 0 {
            wait_for("the keeper to exit", secs(5), || world.keepers().is_empty().then_some(()));
            world.server = Some(world.setup.start());
        }
        let reply = world.ended(&run);
        assert_eq!((&reply["status"], &reply["exit_code"]), (&json!("failed"), &Value::Null), "{reply}");
        assert!(reply["error"]["message"].as_str().unwrap().contains("keeper process"), "{reply}");
        procs::assert_dead(&number);
        assert_eq!(world.output(&run, "").text(), "part\n");
        world.client().delete(204, &run);
    }
    world.leave();
}

/// Output beyond the limit is dropped from the start, and offsets stay correct.
fn output_beyond_the_limit_is_dropped_from_the_start(mut world: World) {
    let command = "seq 1 600000; sleep 0.5; seq 600001 1200000";
    let run = world.start(json!({"command": command, "output_limit_bytes": 1 << 20}));
    let whole: String = (1..=1_200_000).map(|n| format!("{n}\n")).collect();
    let look = |world: &World| {
        let mut at = 0;
        loop {
            let part = world.output(&run, &format!("?offset={at}&limit=65536"));
            let from: usize = part.header("x-offset").unwrap().parse().unwrap();
            let expected = &whole.as_bytes()[from..from + part.body.len()];
            assert!(part.body == expected, "other bytes at {from}");
            if part.body.is_empty() {
                return;
            }
            at = part.header("x-next-offset").unwrap().parse().unwrap();
        }
    };
    look(&world);
    world.restart(Way::Killed);
    look(&world);
    let reply = world.ended(&run);
    look(&world);
    assert_eq!((&reply["exit_code"], &reply["truncated"]), (&json!(0), &json!(true)), "{reply}");
    assert_eq!(reply["stdout_bytes"], whole.len());
    let start = reply["stdout_start"].as_u64().unwrap();
    assert!(whole.len() as u64 - start <= 1 << 20, "{reply}");
    let folder: PathBuf = world.setup.data_dir().join("runs").join(run.rsplit('/').next().unwrap());
    let used =
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(folder.join("stdout")).unwrap()) * 512;
    assert!(used <= (1 << 20) + 8192, "{used} bytes on the disk");
    world.leave();
}

fn a_detached_run_keeps_its_terminal(mut world: World) {
    let command = "stty -echo; stty size; read x; echo got $x; read y; exit 5";
    let run = world.start(json!({"command": command, "pty": {"cols": 91, "rows": 33}}));
    world.printed(&run, "33 91");
    world.restart(Way::Killed);
    let put = |text: &str| {
        let kind = [("Content-Type", "text/plain")];
        world.client().send("POST", &format!("{run}/stdin"), &kind, Some(text.as_bytes())).expect(200);
    };
    put("me\n");
    world.printed(&run, "got me");
    put("\n");
    assert_eq!(world.ended(&run)["exit_code"], 5);
    world.leave();
}

fn detached_runs_that_cannot_start_are_refused(world: World) {
    let client = world.client();
    for (code, body) in [
        ("invalid_cwd", json!({"command": "true", "cwd": "/no/such/folder", "detach": true})),
        ("invalid_payload", json!({"command": "true", "detach": 1})),
        ("invalid_user", json!({"command": "true", "user": "no-such-user", "detach": true})),
    ] {
        client.refused(400, code, "POST", &format!("{}/runs", world.path), Some(body));
    }
    let exec = Some(json!({"command": "true", "detach": true}));
    client.refused(400, "invalid_payload", "POST", &format!("{}/exec", world.path), exec);
    assert_eq!(client.get(200, &format!("{}/runs", world.path)), json!([]), "a refused run is listed");
    // The output of short runs is complete.
    for n in 0..20 {
        let run = world.start(json!({"command": format!("echo {n}; exit {n}")}));
        assert_eq!(world.ended(&run)["exit_code"], n);
        assert_eq!(world.output(&run, "").text(), format!("{n}\n"));
    }
    world.leave();
}

fn a_run_without_detach_ends_with_the_server(mut world: World) {
    let (stays, goes) = (unique_secs(), unique_secs());
    let kept = world.start(json!({"command": format!("sleep {stays}")}));
    let body = json!({"command": format!("setsid sleep {goes} & sleep {goes}")});
    let reply = world.client().post(201, &format!("{}/runs", world.path), body);
    let other = format!("{}/runs/{}", world.path, reply["id"].as_str().unwrap());
    procs::wait_sleep(&stays);
    wait_for("both processes to start", secs(20), || (procs::sleeps(&goes).len() == 2).then_some(()));
    world.restart(Way::Killed);
    procs::assert_dead(&goes);
    assert_eq!(procs::sleeps(&stays).len(), 1);
    assert_eq!(world.client().get(200, &other)["error"]["code"], "interrupted");
    assert_eq!(world.client().get(200, &kept)["status"], "running");
    world.client().delete(204, &kept);
    world.leave();
}

/// A container with a detached run is not idle, even after a restart of the server; stopping the container ends the
/// run.
#[test]
fn a_container_with_a_detached_run_is_not_idle() {
    let mut world = World::container();
    world.client().put(200, &world.path, json!({"idle_timeout_secs": 1}));
    let number = unique_secs();
    let run = world.start(json!({"command": format!("sleep {number}")}));
    procs::wait_sleep(&number);
    world.restart(Way::Killed);
    std::thread::sleep(secs(3));
    assert_eq!(world.client().get(200, &run)["status"], "running");
    let machine = world.client().get(200, &format!("{}/debug", world.path))["machine"].clone();
    assert_eq!((&machine["state"], &machine["busy"]), (&json!("running"), &json!(1)), "{machine}");
    assert_eq!(world.client().post(200, &format!("{}/stop", world.path), json!({}))["state"], "stopped");
    procs::assert_dead(&number);
    assert_eq!(world.ended(&run)["status"], "killed");
    world.leave();
}

/// The number of detached runs is limited, and further ones are refused.
#[test]
fn detached_runs_are_bounded() {
    let world = World::host();
    let runs: Vec<String> =
        (0..64).map(|_| world.start(json!({"command": "read x", "open_stdin": true}))).collect();
    let body = Some(json!({"command": "true", "detach": true}));
    world.client().refused(503, "busy", "POST", &format!("{}/runs", world.path), body);
    let own: u64 = world.keepers().iter().map(|pid| procs::memory(*pid, "RssAnon")).sum();
    assert!(own / 64 < 1 << 20, "{} bytes of its own for each keeper", own / 64);
    for run in &runs {
        world.client().delete(204, run);
    }
    let run = world.start(json!({"command": "true"}));
    assert_eq!(world.ended(&run)["exit_code"], 0);
    world.leave();
}
