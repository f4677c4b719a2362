//! Runs: commands with an id, on the host and in a container. Numbers in brackets are reports of
//! `assets/docs/field-reports.md` that a test covers.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Reply;
use crate::events::Events;
use crate::fixture::{Place, shared_box};
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::server::{NIL, Server, Setup};

/// The unprivileged user of Debian, uid 65534.
pub const UNPRIVILEGED: &str = "nobody";

/// Both kinds of workspace.
macro_rules! in_both {
    ($($name:ident)*) => {
        mod host {
            $(#[test]
            fn $name() {
                super::$name(&crate::fixture::Place::host(super::server()));
            })*
        }
        mod container {
            $(#[test]
            fn $name() {
                super::$name(&crate::fixture::shared_box());
            })*
        }
    };
}

in_both! {
    start_returns_at_once_and_the_run_stays_until_deleted
    the_exit_status_of_a_run_is_reported
    the_resource_usage_of_a_run_is_reported
    output_is_read_by_offset_while_it_is_written
    stdout_and_stderr_keep_their_order_of_writing
    signals_reach_only_the_processes_of_the_run
    kill_ends_every_process_of_a_run
    stdin_accepts_bytes_and_json_until_closed
    stdin_timeout_reports_the_number_of_bytes_written
    stdin_is_empty_without_open_stdin
    soft_timeout_returns_and_the_run_continues
    hard_timeout_kills_the_process_tree_of_a_run
    a_background_child_does_not_delay_the_end_of_a_run
    wait_returns_at_the_end_of_the_run_or_its_timeout
    a_run_with_tty_has_a_terminal
    args_are_executed_without_a_shell
    a_run_can_execute_as_another_user
    exec_is_listed_as_a_run_while_it_executes
    deleting_a_run_kills_it
    invalid_run_requests_are_refused
    heredocs_and_long_children_do_not_hang
}

/// One server for all host tests.
fn server() -> &'static Server {
    use std::sync::OnceLock;
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::start();
        crate::fixture::guard(&server);
        server
    })
}

/// Starts a run and returns its path.
#[track_caller]
pub fn start(place: &Place<'_>, body: Value) -> String {
    let reply = place.client.post(201, &place.path("/runs"), body);
    place.path(&format!("/runs/{}", reply["id"].as_str().unwrap()))
}

#[track_caller]
pub fn ended(place: &Place<'_>, run: &str) -> Value {
    let reply = place.client.call("POST", &format!("{run}/wait?timeout_secs=60"), None).expect(200).value();
    assert_ne!(reply["status"], "running", "{reply}");
    reply
}

#[track_caller]
pub fn output(place: &Place<'_>, run: &str, query: &str) -> Reply {
    place.client.call("GET", &format!("{run}/output{query}"), None).expect(200)
}

/// Waits until stdout has the length of `text`, and compares it with `text`.
#[track_caller]
fn printed(place: &Place<'_>, run: &str, text: &str) {
    wait_for(text, secs(20), || (output(place, run, "").text().len() >= text.len()).then_some(()));
    assert_eq!(output(place, run, "").text(), text);
}

fn start_returns_at_once_and_the_run_stays_until_deleted(place: &Place<'_>) {
    let number = unique_secs();
    let reply = place
        .client
        .call(
            "POST",
            &place.path("/runs"),
            Some(&json!({"command": format!("sleep {number}"), "tag": number})),
        )
        .expect(201);
    let response = reply.value();
    assert_eq!((&response["status"], &response["exit_code"]), (&json!("running"), &Value::Null));
    let run = reply.header("location").unwrap().to_owned();
    assert_eq!(run, place.path(&format!("/runs/{}", response["id"].as_str().unwrap())));
    assert_eq!(place.client.get(200, &run)["tag"], json!(number));
    let of_tag = |query: &str| place.client.get(200, &format!("{}?tag={number}{query}", place.path("/runs")));
    assert_eq!(of_tag("&status=running").as_array().unwrap().len(), 1);
    assert_eq!(of_tag("&status=exited"), json!([]));
    procs::wait_sleep(&number);
    place.client.delete(204, &run);
    procs::assert_dead(&number);
    place.client.refused(404, "run_not_found", "GET", &run, None);
    assert_eq!(of_tag(""), json!([]));
}

fn the_exit_status_of_a_run_is_reported(place: &Place<'_>) {
    for (command, status, code, signal) in [
        ("exit 7", "exited", json!(7), Value::Null),
        ("kill -SEGV $$", "killed", json!(-1), json!(11)),
        ("true", "exited", json!(0), Value::Null),
    ] {
        let reply = ended(place, &start(place, json!({"command": command})));
        assert_eq!(
            (&reply["status"], &reply["exit_code"], &reply["signal"]),
            (&json!(status), &code, &signal),
            "{command}: {reply}"
        );
        assert!(reply["finished_at"].as_str() >= reply["started_at"].as_str(), "{reply}");
        assert_eq!((&reply["timed_out"], &reply["error"]), (&json!(false), &Value::Null));
    }
}

fn the_resource_usage_of_a_run_is_reported(place: &Place<'_>) {
    // The command does a fixed amount of work, because on a busy machine one second may bring no CPU time.
    let command = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; sleep 0.3";
    let reply = ended(place, &start(place, json!({"command": command})));
    assert!(reply["wall_secs"].as_f64().unwrap() >= 0.3, "{reply}");
    assert!(reply["cpu_secs"].as_f64().is_some_and(|cpu| cpu > 0.02), "{reply}");
}

fn output_is_read_by_offset_while_it_is_written(place: &Place<'_>) {
    let run =
        start(place, json!({"command": "echo one; read x; echo two; read x; exit 4", "open_stdin": true}));
    let first = output(place, &run, "?wait_secs=20");
    assert_eq!((first.text().as_str(), first.header("x-next-offset")), ("one\n", Some("4")));
    assert_eq!(first.header("x-run-status"), Some("running"));
    assert_eq!(output(place, &run, "?offset=4").text(), "");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let client = place.server.owner();
            client.call("GET", &format!("{run}/output?offset=4&wait_secs=30"), None).expect(200)
        });
        place.client.send("POST", &format!("{run}/stdin"), &[("Content-Type", "text/plain")], Some(b"\n"));
        let reply = waiting.join().unwrap();
        assert_eq!((reply.text().as_str(), reply.header("x-next-offset")), ("two\n", Some("8")));
    });
    place.client.send(
        "POST",
        &format!("{run}/stdin?eof=true"),
        &[("Content-Type", "text/plain")],
        Some(b"\n"),
    );
    assert_eq!(ended(place, &run)["exit_code"], 4);
    // And after the run has ended, from any offset (7).
    assert_eq!(output(place, &run, "?offset=2").text(), "e\ntwo\n");
    assert_eq!(output(place, &run, "?offset=-4").text(), "two\n");
    assert_eq!(output(place, &run, "?offset=1&limit=2").text(), "ne");
    let past = output(place, &run, "?offset=99&wait_secs=30");
    assert_eq!((past.text().as_str(), past.header("x-run-status")), ("", Some("exited")));
}

fn stdout_and_stderr_keep_their_order_of_writing(place: &Place<'_>) {
    let command = "for i in 1 2 3 4 5 6 7 8 9; do echo o$i; sleep 0.02; echo e$i >&2; sleep 0.02; done";
    let run = start(place, json!({"command": command}));
    ended(place, &run);
    let expected: String = (1..=9).map(|i| format!("o{i}\ne{i}\n")).collect();
    let reply = output(place, &run, "?stream=both");
    assert_eq!((reply.text(), reply.header("x-next-offset")), (expected.clone(), Some("27:27")));
    assert_eq!(output(place, &run, "?stream=both&offset=3:3").text(), expected[6..]);
    assert_eq!(output(place, &run, "?stream=both&offset=6:3").text(), expected[9..]);
    assert_eq!(output(place, &run, "?stream=stderr&offset=24").text(), "e9\n");
    let mut followed = String::new();
    let mut events = Events::follow(place.server, &run, None);
    while let Some(event) = events.next() {
        if event.name.starts_with("std") {
            followed.push_str(event.data["text"].as_str().unwrap());
        }
    }
    assert_eq!(followed, expected);
}

fn signals_reach_only_the_processes_of_the_run(place: &Place<'_>) {
    let trap = "trap 'echo usr1' USR1; trap 'echo hup' HUP; echo up; while :; do read -t 1 x || :; done";
    let run = start(place, json!({"command": trap, "open_stdin": true}));
    printed(place, &run, "up\n");
    let send = |signal: Value| {
        place.client.post(200, &format!("{run}/signal"), json!({"signal": signal, "to": "main"}))
    };
    assert_eq!(send(json!("SIGUSR1"))["status"], "running");
    printed(place, &run, "up\nusr1\n");
    send(json!(1));
    printed(place, &run, "up\nusr1\nhup\n");
    place.client.post(200, &format!("{run}/signal"), json!({"signal": "TERM"}));
    let reply = ended(place, &run);
    assert_eq!((&reply["status"], &reply["signal"]), (&json!("killed"), &json!(15)));
    // Another process may have this pid by now.
    let refused = place.client.refused(
        409,
        "conflict",
        "POST",
        &format!("{run}/signal"),
        Some(json!({"signal": "KILL"})),
    );
    assert_eq!(refused["details"]["status"], "killed");
    let wrong = Some(json!({"signal": "NONSENSE"}));
    place.client.refused(400, "invalid_payload", "POST", &format!("{run}/signal"), wrong);
}

/// (3, 4) Kill ends every process of the run and returns only when all have exited.
fn kill_ends_every_process_of_a_run(place: &Place<'_>) {
    let (a, b, c) = (unique_secs(), unique_secs(), unique_secs());
    let command = format!("trap '' TERM; sleep {a} & setsid sleep {b} & sleep {c}; sleep {c}");
    let run = start(place, json!({"command": command}));
    for number in [&a, &b, &c] {
        procs::wait_sleep(number);
    }
    place.client.post(200, &format!("{run}/signal"), json!({"signal": "KILL"}));
    let reply = ended(place, &run);
    assert_eq!((&reply["status"], &reply["signal"]), (&json!("killed"), &json!(9)));
    for number in [a, b, c] {
        procs::assert_dead(&number);
    }
}

fn stdin_accepts_bytes_and_json_until_closed(place: &Place<'_>) {
    let run = start(place, json!({"command": "cat", "open_stdin": true}));
    let put = |query: &str, kind: &str, body: &[u8]| {
        let path = format!("{run}/stdin{query}");
        place.client.send("POST", &path, &[("Content-Type", kind)], Some(body)).expect(200).value()
    };
    assert_eq!(put("", "application/octet-stream", b"a\xff\0")["bytes_taken"], 3);
    assert_eq!(place.client.get(200, &run)["stdin_open"], true);
    assert_eq!(put("", "application/json; charset=utf-8", br#"{"data": "text"}"#)["bytes_taken"], 4);
    assert_eq!(put("", "application/json", br#"{"data_base64": "/g=="}"#)["bytes_taken"], 1);
    // More than the capacity of a pipe.
    let long: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(put("", "text/plain", &long)["bytes_taken"], long.len());
    let reply = put("?eof=true", "text/plain", b"end");
    assert_eq!(reply, json!({"bytes_taken": 3, "stdin_open": false}));
    assert_eq!(ended(place, &run)["exit_code"], 0);
    let expected = [b"a\xff\0text\xfe".as_slice(), &long, b"end"].concat();
    assert!(output(place, &run, "").body == expected);
    let late = |query: &str| {
        let path = format!("{run}/stdin{query}");
        let reply = place.client.refused(409, "conflict", "POST", &path, Some(json!({"data": "late"})));
        reply["message"].as_str().unwrap().to_owned()
    };
    // The run was started with `open_stdin`, so the message must not advise it.
    assert!(late("").starts_with("Stdin is closed already") && !late("?eof=true").contains("open_stdin"));
}

fn stdin_timeout_reports_the_number_of_bytes_written(place: &Place<'_>) {
    let number = unique_secs();
    let run = start(place, json!({"command": format!("sleep {number}"), "open_stdin": true}));
    let started = Instant::now();
    let reply = place.client.send(
        "POST",
        &format!("{run}/stdin"),
        &[("Content-Type", "text/plain")],
        Some(&[b'x'; 300_000]),
    );
    assert_eq!((reply.status, &reply.value()["code"]), (503, &json!("busy")), "{reply}");
    assert!(started.elapsed() < secs(15), "{:?}", started.elapsed());
    let taken = reply.value()["details"]["bytes_taken"].as_u64().unwrap();
    assert!((1..300_000).contains(&taken), "{taken}");
    place.client.delete(204, &run);
}

/// (6)
fn stdin_is_empty_without_open_stdin(place: &Place<'_>) {
    let reply = ended(place, &start(place, json!({"command": "cat; echo end"})));
    assert_eq!((&reply["exit_code"], &reply["stdout_bytes"]), (&json!(0), &json!(4)));
    let run = start(place, json!({"command": "cat", "stdin": "given"}));
    ended(place, &run);
    assert_eq!(output(place, &run, "").text(), "given");
}

fn soft_timeout_returns_and_the_run_continues(place: &Place<'_>) {
    let number = unique_secs();
    let started = Instant::now();
    let body = json!({"command": format!("sleep {number}"), "soft_timeout_secs": 0.5});
    let reply = place.client.post(201, &place.path("/runs"), body);
    assert!(
        started.elapsed() >= Duration::from_millis(500) && started.elapsed() < secs(10),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(reply["status"], "running");
    procs::wait_sleep(&number);
    place.client.delete(204, &place.path(&format!("/runs/{}", reply["id"].as_str().unwrap())));
    // A run that ends before the soft timeout is returned as ended.
    let body = json!({"command": "exit 3", "soft_timeout_secs": 30});
    let reply = place.client.post(201, &place.path("/runs"), body);
    assert_eq!((&reply["status"], &reply["exit_code"]), (&json!("exited"), &json!(3)));
}

/// (1, 3)
fn hard_timeout_kills_the_process_tree_of_a_run(place: &Place<'_>) {
    let (a, b) = (unique_secs(), unique_secs());
    let command = format!("echo part; trap '' TERM; setsid sleep {a} & sleep {b}; sleep {b}");
    for _ in 0..6 {
        let run = start(place, json!({"command": "sleep 20", "hard_timeout_secs": 0}));
        assert_eq!(ended(place, &run)["status"], "timed_out");
    }
    let run = start(place, json!({"command": command, "hard_timeout_secs": 0.7}));
    let reply = ended(place, &run);
    assert_eq!(
        (&reply["status"], &reply["timed_out"], &reply["exit_code"]),
        (&json!("timed_out"), &json!(true), &json!(-1))
    );
    let wall = reply["wall_secs"].as_f64().unwrap();
    assert!((0.7..2.0).contains(&wall), "{wall}");
    assert_eq!(output(place, &run, "").text(), "part\n");
    procs::assert_dead(&a);
    procs::assert_dead(&b);
}

/// (2) A background child that keeps the pipe open does not delay the end of the run.
fn a_background_child_does_not_delay_the_end_of_a_run(place: &Place<'_>) {
    let number = unique_secs();
    let run = start(place, json!({"command": format!("sleep {number} & echo hi")}));
    let reply = ended(place, &run);
    assert_eq!((&reply["status"], &reply["exit_code"]), (&json!("exited"), &json!(0)));
    assert!(reply["wall_secs"].as_f64().unwrap() < 5.0);
    assert_eq!(output(place, &run, "").text(), "hi\n");
    procs::sleeps(&number).iter().for_each(|pid| procs::kill(*pid));
}

fn wait_returns_at_the_end_of_the_run_or_its_timeout(place: &Place<'_>) {
    let run = start(place, json!({"command": "read x", "open_stdin": true}));
    let started = Instant::now();
    let reply = place.client.call("POST", &format!("{run}/wait?timeout_secs=0.3"), None).expect(200).value();
    assert_eq!(reply["status"], "running");
    assert!(started.elapsed() >= Duration::from_millis(300));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let client = place.server.owner();
            client.call("POST", &format!("{run}/wait?timeout_secs=60"), None).expect(200).value()
        });
        place.client.send(
            "POST",
            &format!("{run}/stdin?eof=1"),
            &[("Content-Type", "text/plain")],
            Some(b"x\n"),
        );
        assert_eq!(waiting.join().unwrap()["exit_code"], 0);
    });
    place.client.refused(400, "invalid_request", "POST", &format!("{run}/wait?timeout_secs=-1"), None);
}

fn a_run_with_tty_has_a_terminal(place: &Place<'_>) {
    let run = start(
        place,
        json!({"command": "stty size; test -t 0 -a -t 1 -a -t 2 && echo $TERM; read x; echo got $x",
        "pty": {"cols": 91, "rows": 33}}),
    );
    wait_for("the size", secs(20), || output(place, &run, "").text().contains("xterm").then_some(()));
    place.client.send("POST", &format!("{run}/stdin"), &[("Content-Type", "text/plain")], Some(b"me\n"));
    assert_eq!(ended(place, &run)["exit_code"], 0);
    // The terminal echoes typed characters.
    assert_eq!(output(place, &run, "").text(), "33 91\r\nxterm-256color\r\nme\r\ngot me\r\n");
    assert_eq!(output(place, &run, "?stream=stderr").text(), "");
}

fn args_are_executed_without_a_shell(place: &Place<'_>) {
    let args = json!(["printf", "%s|", "a b", "$HOME", "*", "'", "\n", "é"]);
    assert_eq!(place.exec(json!({"args": args}))["stdout"], "a b|$HOME|*|'|\n|é|");
    let run = start(place, json!({"args": args}));
    ended(place, &run);
    assert_eq!(output(place, &run, "").text(), "a b|$HOME|*|'|\n|é|");
    assert_eq!(place.exec(json!({"args": ["/bin/echo"]}))["stdout"], "\n");
    // The maximum argument length of the kernel also works if the program is looked up in PATH.
    let long = "x".repeat((128 << 10) - 1);
    assert_eq!(place.exec(json!({"args": ["printf", "%s", long]}))["stdout"], long);
    let reply = place.exec_refused("invalid_command", json!({"args": ["no-such-program-here"]}));
    assert!(reply["message"].as_str().unwrap().contains("No such file"), "{reply}");
    place.exec_refused("invalid_command", json!({"args": []}));
    place.exec_refused("invalid_command", json!({"args": [""]}));
    place.exec_refused("invalid_command", json!({"args": ["echo", "a\0b"]}));
    place.exec_refused("invalid_payload", json!({"args": ["true"], "command": "true"}));
    place.exec_refused("invalid_payload", json!({}));
    let path = json!({"PATH": "/a:".repeat(30_000)});
    place.exec_refused("invalid_command", json!({"args": ["true", "x".repeat(9000)], "env": path}));
}

fn a_run_can_execute_as_another_user(place: &Place<'_>) {
    let script = "id -un; id -u; id -g; id -G; echo $USER $LOGNAME $HOME; grep -E '^Cap(Prm|Eff)' /proc/self/status; \
               echo seen >/dev/stdout";
    let body = |user: &str| json!({"command": script, "user": user, "cwd": "/"});
    let none = "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nseen\n";
    let names = format!("{UNPRIVILEGED} {UNPRIVILEGED} /nonexistent");
    let expected = format!("{UNPRIVILEGED}\n65534\n65534\n65534\n{names}\n{none}");
    assert_eq!(place.exec(body(UNPRIVILEGED))["stdout"], expected);
    assert_eq!(place.exec(body("65534"))["stdout"], expected);
    let run = start(place, body(UNPRIVILEGED));
    ended(place, &run);
    assert_eq!(output(place, &run, "").text(), expected);
    assert_eq!(place.client.get(200, &run)["user"], UNPRIVILEGED);
    let reply =
        place.exec(json!({"command": "id -u; id -g; id -G; echo $HOME", "user": "4711:daemon", "cwd": "/"}));
    assert_eq!(reply["stdout"], "4711\n1\n1\n/\n", "{reply}");
    let run = start(
        place,
        json!({"command": "tty >/dev/tty; stat -c %u $(tty)", "user": UNPRIVILEGED, "cwd": "/",
        "pty": {"cols": 80, "rows": 24}}),
    );
    ended(place, &run);
    assert!(output(place, &run, "").text().ends_with("\r\n65534\r\n"), "{}", output(place, &run, "").text());
    // The command has only the permissions of the user, also for its working directory.
    assert_eq!(
        place.exec(json!({"command": "cat /etc/shadow", "user": UNPRIVILEGED, "cwd": "/"}))["exit_code"],
        1
    );
    place.sh("mkdir -p -m 700 /tmp/it-only-root");
    place.exec_refused(
        "invalid_cwd",
        json!({"command": "true", "user": UNPRIVILEGED, "cwd": "/tmp/it-only-root"}),
    );
    for user in ["no-such-user", "", "root:no-such-group", "-1", "root\n"] {
        place.exec_refused("invalid_user", json!({"command": "true", "user": user}));
    }
}

fn exec_is_listed_as_a_run_while_it_executes(place: &Place<'_>) {
    let number = unique_secs();
    thread::scope(|scope| {
        let answer = scope.spawn(|| {
            let body =
                json!({"command": format!("echo out; sleep {number}"), "tag": number, "timeout_secs": 60});
            place.server.owner().post(200, &place.path("/exec"), body)
        });
        procs::wait_sleep(&number);
        let list = place.client.get(200, &format!("{}?tag={number}", place.path("/runs")));
        assert_eq!((&list[0]["origin"], &list[0]["status"]), (&json!("exec"), &json!("running")), "{list}");
        assert_eq!(list[0]["stdout_bytes"], 4);
        let run = place.path(&format!("/runs/{}", list[0]["id"].as_str().unwrap()));
        place.client.refused(409, "conflict", "GET", &format!("{run}/output"), None);
        place.client.post(200, &format!("{run}/signal"), json!({"signal": "INT"}));
        let reply = answer.join().unwrap();
        assert_eq!((&reply["signal"], &reply["stdout"]), (&json!(2), &json!("out\n")), "{reply}");
        place.client.refused(404, "run_not_found", "GET", &run, None);
    });
}

fn deleting_a_run_kills_it(place: &Place<'_>) {
    let number = unique_secs();
    let run =
        start(place, json!({"command": format!("trap '' TERM; echo up; sleep {number}; sleep {number}")}));
    procs::wait_sleep(&number);
    let mut events = Events::follow(place.server, &run, None);
    events.wait("stdout");
    place.client.delete(204, &run);
    procs::assert_dead(&number);
    // A follower receives the exit event although the run was deleted.
    let exit = events.wait("exit");
    assert_eq!((&exit.data["run"]["status"], &exit.data["run"]["signal"]), (&json!("killed"), &json!(9)));
    place.client.refused(404, "run_not_found", "DELETE", &run, None);
}

fn invalid_run_requests_are_refused(place: &Place<'_>) {
    let refused = |code: &str, body: Value| {
        place.client.refused(400, code, "POST", &place.path("/runs"), Some(body));
    };
    refused("invalid_payload", json!({"command": "true", "stdin": "x", "open_stdin": true}));
    refused("invalid_payload", json!({"command": "cat", "stdin": "x", "pty": {"cols": 80, "rows": 24}}));
    refused("invalid_payload", json!({"command": "true", "pty": {"cols": 0, "rows": 24}}));
    refused("invalid_payload", json!({"command": "true", "pty": {"cols": 80, "rows": 70000}}));
    refused("invalid_payload", json!({"command": "true", "timeout_secs": 1, "hard_timeout_secs": 1}));
    refused("invalid_payload", json!({"command": "true", "hard_timeout_secs": -1}));
    refused("invalid_payload", json!({"command": "true", "soft_timeout_secs": -0.5}));
    refused("invalid_payload", json!({"command": "true", "output_limit_bytes": 1}));
    refused("invalid_payload", json!({"command": "true", "tag": "x".repeat(300)}));
    refused("invalid_payload", json!({"command": "true", "limits": {"memory_bytes": 1}}));
    refused("invalid_command", json!({"command": " "}));
    refused("invalid_cwd", json!({"command": "true", "cwd": "/no/such/folder"}));
    refused("invalid_env", json!({"command": "true", "env": {"A=B": "x"}}));
    for (field, value) in
        [("detach", json!(true)), ("pty", json!({"cols": 1, "rows": 1})), ("open_stdin", json!(true))]
    {
        let reply = place.exec_refused("invalid_payload", json!({"command": "true", field: value}));
        assert!(reply["message"].as_str().unwrap().contains(field), "{reply}");
    }
    let refusal = |code: &str, method: &str, call: &str| {
        let reply = place.client.refused(400, code, method, &place.path(&format!("/runs{call}")), None);
        reply["message"].as_str().unwrap().to_owned()
    };
    assert!(refusal("invalid_id", "GET", "/xx").starts_with("The run id in the path"));
    assert!(refusal("invalid_request", "GET", "?status=foo").contains("timed_out"));
    let run = start(place, json!({"command": "read x", "open_stdin": true}));
    let id = run.rsplit('/').next().unwrap().to_owned();
    for patience in ["inf", "infinity", "NaN", "1e999", "-1", "x"] {
        refusal("invalid_request", "POST", &format!("/{id}/wait?timeout_secs={patience}"));
        refusal("invalid_request", "GET", &format!("/{id}/output?wait_secs={patience}"));
    }
    let all = place.client.get(200, &place.path("/runs?status=running"));
    assert!(all.as_array().unwrap().iter().any(|run| run["id"] == id.as_str()), "{all}");
    place.client.delete(204, &run);
    place.exec_refused("invalid_payload", json!({"command": "true", "output_limit_bytes": 1_u64 << 40}));
    let truncated = place.exec(json!({"command": "seq 1 1000", "output_limit_bytes": 20}));
    assert_eq!((&truncated["truncated"], &truncated["stdout_bytes"]), (&json!(true), &json!(3893)));
    let before = place.client.get(200, &place.path("/runs"));
    assert!(before.as_array().unwrap().iter().all(|run| run["command"] != " "), "a refused run is listed");
}

/// (8)
fn heredocs_and_long_children_do_not_hang(place: &Place<'_>) {
    let run =
        start(place, json!({"command": "cat <<EOF\nline $((1+1))\nEOF\nsleep 0.3; cat <<'EOF'\n$raw\nEOF"}));
    assert_eq!(ended(place, &run)["exit_code"], 0);
    assert_eq!(output(place, &run, "").text(), "line 2\n$raw\n");
}

#[test]
fn runs_of_other_workspaces_are_not_accessible() {
    let place = shared_box();
    let run = start(&place, json!({"command": "true"}));
    let elsewhere = run.replace(&place.id, NIL);
    for (method, path) in [
        ("GET", elsewhere.clone()),
        ("DELETE", elsewhere.clone()),
        ("GET", format!("{elsewhere}/output")),
        ("GET", format!("{elsewhere}/events")),
        ("POST", format!("{elsewhere}/wait")),
    ] {
        place.client.refused(404, "run_not_found", method, &path, None);
    }
    // In containers, collaborators have access; on the host, owners only, also to the output.
    let collaborator = place.server.collaborator();
    collaborator.get(200, &run);
    for (method, path) in
        [("GET", "/runs"), ("POST", "/runs"), ("GET", "/runs/11111111-1111-4111-8111-111111111111/output")]
    {
        let body = (method == "POST").then(|| json!({"command": "true"}));
        let path = format!("/api/workspaces/{NIL}{path}");
        collaborator.refused(403, "forbidden", method, &path, body);
    }
}

#[test]
fn runs_are_deleted_with_their_workspace() {
    let place = Place::ready(crate::fixture::shared(), json!({"name": "goes"}));
    let number = unique_secs();
    let run = start(&place, json!({"command": format!("echo x; setsid sleep {number} & sleep {number}")}));
    let id = run.rsplit('/').next().unwrap().to_owned();
    wait_for("both", secs(20), || (procs::sleeps(&number).len() == 2).then_some(()));
    let folder = place.server.data.join("runs").join(id);
    assert!(folder.join("stdout").exists());
    place.delete();
    procs::assert_dead(&number);
    assert!(!folder.exists());
}

/// (9) A stuck command does not delay other commands.
#[test]
fn stuck_runs_do_not_delay_other_commands() {
    let server = Setup::new().arg("--http-threads=2").arg("--max-streams=4").start();
    let place = Place::host(&server);
    let number = unique_secs();
    let runs: Vec<String> =
        (0..30).map(|_| start(&place, json!({"command": format!("sleep {number}")}))).collect();
    let mut followers: Vec<Events> = runs[..4].iter().map(|run| Events::follow(&server, run, None)).collect();
    followers.iter_mut().for_each(|events| drop(events.wait("status")));
    // If every stream worker is in use, the server refuses at once instead of waiting.
    for path in ["/events", "/wait"] {
        let method = if path == "/wait" { "POST" } else { "GET" };
        let reply = place.client.call(method, &format!("{}{path}", runs[5]), None).expect(503);
        assert!(reply.value()["code"] == "busy" && reply.header("retry-after").is_some(), "{reply}");
    }
    for _ in 0..20 {
        let started = Instant::now();
        place.sh("true");
        server.anyone().get(200, "/health");
        assert!(started.elapsed() < secs(2));
    }
    drop(followers);
    wait_for("a stream worker to be free", secs(20), || {
        (place.client.call("POST", &format!("{}/wait?timeout_secs=0", runs[5]), None).status == 200)
            .then_some(())
    });
    procs::sleeps(&number).iter().for_each(|pid| procs::kill(*pid));
}
