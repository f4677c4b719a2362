//! Runs with `"detach": true`: they outlive the server, however it ends, with their output, their deadline and their exit
//! status; and they end when they are to. On the host and in a container alike.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Client, Reply};
use crate::doctor::cgroups;
use crate::events::Events;
use crate::fixture::{Place, seeded};
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::server::{NIL, Server, Setup, read};

/// A server that comes and goes, and a workspace that stays.
struct World {
    setup: Setup,
    server: Option<Server>,
    /// The workspace's path in the API.
    path: String,
}

/// How a server ends.
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
    nothing_of_its_output_or_status_is_lost_when_the_server_is_killed
    nothing_of_its_output_or_status_is_lost_when_the_server_is_stopped
    it_goes_on_where_the_data_folder_was_moved
    one_that_ends_without_a_server_says_how
    its_deadline_holds_across_a_restart
    stdin_and_signals_reach_it_after_a_restart
    deletion_ends_it_after_a_restart
    it_goes_with_its_workspace
    a_killed_keeper_is_no_exit_status
    a_window_of_its_output_is_kept
    a_terminal_goes_with_it
    what_cannot_be_started_is_refused_as_ever
    one_that_does_not_outlive_the_server_is_ended_as_ever
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
        // It outlives this server.
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
        let told = self.client().post(201, &format!("{}/runs", self.path), body);
        assert_eq!(told["detach"], true, "{told}");
        format!("{}/runs/{}", self.path, told["id"].as_str().unwrap())
    }

    #[track_caller]
    fn ended(&self, run: &str) -> Value {
        let wait = format!("{run}/wait?timeout_secs=60");
        let told = self.client().call("POST", &wait, None).expect(200).value();
        assert_ne!(told["status"], "running", "{told}");
        told
    }

    #[track_caller]
    fn output(&self, run: &str, query: &str) -> Reply {
        self.client().call("GET", &format!("{run}/output{query}"), None).expect(200)
    }

    /// Waits until so much of it is there.
    #[track_caller]
    fn printed(&self, run: &str, text: &str) {
        wait_for(text, secs(30), || self.output(run, "").text().contains(text).then_some(()));
    }

    fn keepers(&self) -> Vec<u32> {
        let all = procs::mentioning(self.setup.data_dir()).into_iter();
        all.filter(|(_, words)| words.iter().any(|word| word == "keeper")).map(|(pid, _)| pid).collect()
    }

    /// Nothing of it is left: no process, no container.
    #[track_caller]
    fn leave(mut self) {
        if self.is_container() {
            self.client().delete(200, &self.path);
        }
        wait_for("the keepers to go", secs(10), || self.keepers().is_empty().then_some(()));
        let tree = PathBuf::from(read(self.setup.data_dir().join("cgroup")));
        self.end(Way::Stopped);
        let left = || procs::mentioning(self.setup.data_dir());
        wait_for("no process of ours", secs(5), || left().is_empty().then_some(()));
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

/// Numbers, in turns on both streams, so that a lost or doubled byte shows; some 1.2 MB in about two seconds.
const TALK: &str = "i=0; while [ $i -lt 200 ]; do seq $((i*800)) $((i*800+799)); echo e$i >&2; i=$((i+1)); sleep 0.01; done; \
                    exit 7";

fn talked() -> (String, String) {
    let out = (0..160_000).map(|n| format!("{n}\n")).collect();
    let err = (0..200).map(|n| format!("e{n}\n")).collect();
    (out, err)
}

/// The data folder is given another name while no server runs: what state says of itself holds no path.
fn it_goes_on_where_the_data_folder_was_moved(mut world: World) {
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
    let told = world.ended(&run);
    assert_eq!(told["exit_code"], 5, "{told}");
    assert_eq!(world.output(&run, "").text(), "first\ngot more\n");
    // And one that is new there.
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
        wait_for("more of it", secs(20), || (world.output(&run, "").body.len() > before).then_some(()));
        world.restart(way);
        let told = world.client().get(200, &run);
        assert_eq!((&told["tag"], &told["command"]), (&json!("talk"), &json!(TALK)));
    }
    // Followed from the beginning by somebody who comes late, and whose order is exact.
    let mut order = String::new();
    let mut events = Events::follow(world.server(), &run, None);
    while let Some(event) = events.next() {
        if event.name.starts_with("std") {
            order.push_str(event.data["text"].as_str().unwrap());
        }
    }
    let told = world.ended(&run);
    assert_eq!((&told["status"], &told["exit_code"]), (&json!("exited"), &json!(7)), "{told}");
    assert_eq!((&told["truncated"], &told["error"]), (&json!(false), &Value::Null), "{told}");
    assert!(told["wall_secs"].as_f64().unwrap() >= 2.0, "{told}");
    let (out, err) = talked();
    assert!(world.output(&run, "").text() == out, "stdout differs");
    assert!(world.output(&run, "?stream=stderr").text() == err, "stderr differs");
    assert_eq!(order.len(), out.len() + err.len());
    assert!(world.output(&run, "?stream=both").text() == order, "the order differs");
    assert_eq!(order.find("e0\n").map(|at| &order[at - 4..at]), Some("799\n"));
    // And it is there after one more.
    world.restart(way);
    assert_eq!(world.client().get(200, &run)["exit_code"], 7);
    assert!(world.output(&run, "").text() == out);
    world.client().delete(204, &run);
    world.leave();
}

fn nothing_of_its_output_or_status_is_lost_when_the_server_is_killed(world: World) {
    survives(world, Way::Killed);
}

fn nothing_of_its_output_or_status_is_lost_when_the_server_is_stopped(world: World) {
    survives(world, Way::Stopped);
}

fn one_that_ends_without_a_server_says_how(mut world: World) {
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
            let told = world.client().get(200, &run);
            assert_eq!(
                (&told["status"], &told["exit_code"], &told["signal"]),
                (&json!(status), &code, &signal),
                "{told}"
            );
            assert_eq!(world.output(&run, "").text(), "done\n");
            assert!(told["cpu_secs"].as_f64().is_some(), "{told}");
        }
    }
    world.leave();
}

fn its_deadline_holds_across_a_restart(mut world: World) {
    let (a, b) = (unique_secs(), unique_secs());
    let command = format!("trap '' TERM; setsid sleep {a} & echo up; sleep {b}; sleep {b}");
    let run = world.start(json!({"command": command, "hard_timeout_secs": 3}));
    world.printed(&run, "up\n");
    world.restart(Way::Killed);
    let told = world.ended(&run);
    assert_eq!((&told["status"], &told["exit_code"]), (&json!("timed_out"), &json!(-1)), "{told}");
    let wall = told["wall_secs"].as_f64().unwrap();
    assert!((3.0..4.5).contains(&wall), "{wall}");
    procs::assert_dead(&a);
    procs::assert_dead(&b);
    world.leave();
}

fn stdin_and_signals_reach_it_after_a_restart(mut world: World) {
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
    // One that was given its whole input at the start.
    let long: String = (0..50_000).map(|n| format!("{n}\n")).collect();
    let run = world.start(json!({"command": "sleep 0.5; cat", "stdin": long}));
    world.restart(Way::Killed);
    assert_eq!(world.ended(&run)["exit_code"], 0);
    assert!(world.output(&run, "").text() == long);
    world.leave();
}

fn deletion_ends_it_after_a_restart(mut world: World) {
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
    // One of the same server as well.
    let run = world.start(json!({"command": format!("sleep {a}")}));
    procs::wait_sleep(&a);
    world.client().delete(204, &run);
    procs::assert_dead(&a);
    world.leave();
}

fn it_goes_with_its_workspace(mut world: World) {
    if !world.is_container() {
        let made = world.client().post(200, "/api/workspaces", json!({"name": "goes"}));
        world.path = format!("/api/workspaces/{}", made["id"].as_str().unwrap());
    }
    let number = unique_secs();
    let run = world.start(json!({"command": format!("setsid sleep {number} & sleep {number}")}));
    wait_for("both", secs(20), || (procs::sleeps(&number).len() == 2).then_some(()));
    world.restart(Way::Stopped);
    assert_eq!(procs::sleeps(&number).len(), 2, "an orderly stop has ended it");
    world.client().delete(200, &world.path);
    procs::assert_dead(&number);
    let id = run.rsplit('/').next().unwrap();
    assert!(!world.setup.data_dir().join("runs").join(id).exists());
    world.path = format!("/api/workspaces/{NIL}");
    world.leave();
}

fn a_killed_keeper_is_no_exit_status(mut world: World) {
    for restarts in 0..3 {
        let number = unique_secs();
        let command = format!("echo part; setsid sleep {number} & sleep {number}");
        let run = world.start(json!({"command": command}));
        wait_for("both", secs(20), || (procs::sleeps(&number).len() == 2).then_some(()));
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
            wait_for("its end", secs(5), || world.keepers().is_empty().then_some(()));
            world.server = Some(world.setup.start());
        }
        let told = world.ended(&run);
        assert_eq!((&told["status"], &told["exit_code"]), (&json!("failed"), &Value::Null), "{told}");
        assert!(told["error"]["message"].as_str().unwrap().contains("keeper process"), "{told}");
        procs::assert_dead(&number);
        assert_eq!(world.output(&run, "").text(), "part\n");
        world.client().delete(204, &run);
    }
    world.leave();
}

/// What its keeper gives up is never read as something else.
fn a_window_of_its_output_is_kept(mut world: World) {
    let command = "seq 1 600000; sleep 0.5; seq 600001 1200000";
    let run = world.start(json!({"command": command, "output_limit_bytes": 1 << 20}));
    let whole: String = (1..=1_200_000).map(|n| format!("{n}\n")).collect();
    let look = |world: &World| {
        let mut at = 0;
        loop {
            let part = world.output(&run, &format!("?offset={at}&limit=65536"));
            let from: usize = part.header("x-offset").unwrap().parse().unwrap();
            let wanted = &whole.as_bytes()[from..from + part.body.len()];
            assert!(part.body == wanted, "other bytes at {from}");
            if part.body.is_empty() {
                return;
            }
            at = part.header("x-next-offset").unwrap().parse().unwrap();
        }
    };
    look(&world);
    world.restart(Way::Killed);
    look(&world);
    let told = world.ended(&run);
    look(&world);
    assert_eq!((&told["exit_code"], &told["truncated"]), (&json!(0), &json!(true)), "{told}");
    assert_eq!(told["stdout_bytes"], whole.len());
    let start = told["stdout_start"].as_u64().unwrap();
    assert!(whole.len() as u64 - start <= 1 << 20, "{told}");
    let folder: PathBuf = world.setup.data_dir().join("runs").join(run.rsplit('/').next().unwrap());
    let used =
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(folder.join("stdout")).unwrap()) * 512;
    assert!(used <= (1 << 20) + 8192, "{used} bytes on the disk");
    world.leave();
}

fn a_terminal_goes_with_it(mut world: World) {
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

fn what_cannot_be_started_is_refused_as_ever(world: World) {
    let client = world.client();
    for (code, body) in [
        ("invalid_cwd", json!({"command": "true", "cwd": "/no/such/folder", "detach": true})),
        ("invalid_payload", json!({"command": "true", "detach": 1})),
        ("invalid_user", json!({"command": "true", "user": "nobody-here", "detach": true})),
    ] {
        client.refused(400, code, "POST", &format!("{}/runs", world.path), Some(body));
    }
    let exec = Some(json!({"command": "true", "detach": true}));
    client.refused(400, "invalid_payload", "POST", &format!("{}/exec", world.path), exec);
    assert_eq!(client.get(200, &format!("{}/runs", world.path)), json!([]), "a refused run is listed");
    // Short ones are no race: nothing of them is lost.
    for n in 0..20 {
        let run = world.start(json!({"command": format!("echo {n}; exit {n}")}));
        assert_eq!(world.ended(&run)["exit_code"], n);
        assert_eq!(world.output(&run, "").text(), format!("{n}\n"));
    }
    world.leave();
}

fn one_that_does_not_outlive_the_server_is_ended_as_ever(mut world: World) {
    let (stays, goes) = (unique_secs(), unique_secs());
    let kept = world.start(json!({"command": format!("sleep {stays}")}));
    let body = json!({"command": format!("setsid sleep {goes} & sleep {goes}")});
    let told = world.client().post(201, &format!("{}/runs", world.path), body);
    let other = format!("{}/runs/{}", world.path, told["id"].as_str().unwrap());
    procs::wait_sleep(&stays);
    wait_for("both", secs(20), || (procs::sleeps(&goes).len() == 2).then_some(()));
    world.restart(Way::Killed);
    procs::assert_dead(&goes);
    assert_eq!(procs::sleeps(&stays).len(), 1);
    assert_eq!(world.client().get(200, &other)["error"]["code"], "interrupted");
    assert_eq!(world.client().get(200, &kept)["status"], "running");
    world.client().delete(204, &kept);
    world.leave();
}

/// A container with a detached run in it is not idle, also for a server that has found it; stopping it ends the run.
#[test]
fn a_container_is_not_idle_while_one_runs_in_it() {
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

/// So many, and no more; whoever comes late is told.
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
