//! Abusive and unusual commands, run against both kinds of workspace: `exec_host` and `container` instantiate every
//! function of this module with [`abuses`].

use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::fixture::Place;
use crate::procs::{self, secs, unique_secs};
use crate::server::{CLIENT_TOKEN, HOST_TOKEN};

/// Defines a test for each named abuse, in the workspace that the expression returns.
macro_rules! abuses {
    ($place:expr; $($name:ident)*) => {
        $(#[test]
        fn $name() {
            let server = $place;
            $crate::abuse::$name(&server);
        })*
    };
}
pub(crate) use abuses;

/// Size of the output of `seq 1 2000000`.
const SEQ_BYTES: usize = 14_888_896;
/// The default output limit per stream.
const CAP: usize = 10 << 20;

fn stdout(reply: &Value) -> &str {
    reply["stdout"].as_str().unwrap_or_else(|| panic!("no stdout in {reply}"))
}

fn bytes(reply: &Value, field: &str) -> Vec<u8> {
    let text = reply[field].as_str().unwrap_or_else(|| panic!("no {field}"));
    BASE64.decode(text).unwrap()
}

pub fn long_output_is_truncated_in_the_middle_with_a_note(place: &Place<'_>) {
    let result = place.exec(json!({"command": "seq 1 2000000", "timeout_secs": 60}));
    assert_eq!((&result["exit_code"], &result["timed_out"]), (&json!(0), &json!(false)));
    assert_eq!(result["truncated"], true);
    let text = stdout(&result);
    assert!(text.starts_with("1\n2\n3\n"), "the head is missing: {:?}", &text[..40]);
    assert!(text.ends_with("\n1999999\n2000000\n"), "the tail is missing: {:?}", &text[text.len() - 40..]);
    let (head, rest) = text.split_once("[... ").expect("no note that output is missing");
    let (omitted, tail) = rest.split_once(" bytes omitted ...]").expect("the note has no byte count");
    let omitted: usize = omitted.parse().unwrap();
    // The note has its own line; the line breaks around it belong to the note.
    let kept = SEQ_BYTES - omitted;
    assert!(kept.abs_diff(CAP) <= 64 << 10, "kept {kept} of a cap of {CAP}");
    assert!((head.len() + tail.len()).abs_diff(kept) <= 2, "{} + {} is not {kept}", head.len(), tail.len());
}

pub fn output_below_the_cap_is_complete(place: &Place<'_>) {
    let result = place.exec(json!({"command": "seq 1 1000000", "timeout_secs": 60}));
    assert_eq!((&result["exit_code"], &result["truncated"]), (&json!(0), &json!(false)));
    let expected_output: String = (1..=1_000_000).map(|n| format!("{n}\n")).collect();
    assert!(
        stdout(&result) == expected_output,
        "different from the output of seq ({} bytes)",
        stdout(&result).len()
    );
}

pub fn a_background_child_does_not_delay_the_response(place: &Place<'_>) {
    let number = unique_secs();
    let result = place.exec(json!({"command": format!("(sleep {number} &) ; echo hi"), "timeout_secs": 5}));
    assert_eq!((&result["timed_out"], &result["exit_code"]), (&json!(false), &json!(0)), "{result}");
    assert_eq!(stdout(&result), "hi\n");
    let remaining = procs::sleeps(&number);
    remaining.iter().for_each(|pid| procs::kill(*pid));
}

pub fn timeout_kills_the_whole_process_tree(place: &Place<'_>) {
    let (a, b, c) = (unique_secs(), unique_secs(), unique_secs());
    let start = Instant::now();
    let command = format!("sleep {a} & setsid sleep {b} & sleep {c}");
    let reply = place.exec(json!({"command": command, "timeout_secs": 1}));
    let took = start.elapsed();
    assert_eq!((&reply["timed_out"], &reply["exit_code"]), (&json!(true), &json!(-1)), "{reply}");
    assert!(took >= secs(1) && took < Duration::from_millis(2500), "answered after {took:?}");
    for number in [a, b, c] {
        procs::assert_dead(&number);
    }
}

pub fn timeout_kills_daemonized_processes(place: &Place<'_>) {
    // The descendants of a daemon: own session, own group, no inherited pipe, TERM ignored, parent exited.
    let number = unique_secs();
    let hide = format!("setsid sh -c 'trap \"\" TERM HUP INT; (setsid sleep {number} &) ; sleep {number}'");
    let command = format!("{hide} </dev/null >/dev/null 2>&1 & sleep {number}");
    let reply = place.exec(json!({"command": command, "timeout_secs": 1}));
    assert_eq!(reply["timed_out"], true, "{reply}");
    procs::assert_dead(&number);
}

pub fn timeout_kills_continuously_forking_processes(place: &Place<'_>) {
    // Few processes at any time, but new ones continuously: killing one pid after the other is too slow.
    let number = unique_secs();
    let command = format!("f() {{ : {number}; /bin/true; f & }}; f; sleep {number}");
    let reply = place.exec(json!({"command": command, "timeout_secs": 1}));
    assert_eq!(reply["timed_out"], true, "{reply}");
    procs::wait_for("the forking to end", secs(3), || procs::naming(&number).is_empty().then_some(()));
}

/// Repeated and concurrent timeouts of process trees that fork, leave their session, ignore signals and keep the pipes
/// open. Each call returns soon after its deadline and no process survives. `tests/bench/runs.py` runs 1,000.
pub fn concurrent_timeouts_leave_no_processes(place: &Place<'_>) {
    const AT_ONCE: usize = 6;
    const EACH: usize = 5;
    place.sh("true");
    let number = unique_secs();
    let command = format!(
        "trap '' TERM HUP INT; echo up; (setsid sh -c 'sleep {number} & sleep {number}' & sleep {number}) & \
         setsid sleep {number} & while :; do sleep {number} & wait; done"
    );
    let late = std::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                let (owner, path) = (place.server.owner(), place.path("/exec"));
                for _ in 0..EACH {
                    let start = Instant::now();
                    let result = owner.post(200, &path, json!({"command": command, "timeout_secs": 0.4}));
                    late.lock().unwrap().push(start.elapsed().saturating_sub(Duration::from_millis(400)));
                    assert_eq!(
                        (&result["timed_out"], &result["exit_code"]),
                        (&json!(true), &json!(-1)),
                        "{result}"
                    );
                    assert_eq!(stdout(&result), "up\n");
                }
            });
        }
    });
    procs::assert_dead(&number);
    let mut late = late.into_inner().unwrap();
    late.sort();
    let (median, worst) = (late[late.len() / 2], late[late.len() - 1]);
    // Other tests run on the same machine, so the limit of the median is the worst value of an idle machine.
    assert!(median < Duration::from_millis(300) && worst < secs(5), "median {median:?}, worst {worst:?}");
}

pub fn timeout_returns_the_partial_output(place: &Place<'_>) {
    let result = place.exec(json!({"command": "echo part; echo oops >&2; sleep 30", "timeout_secs": 1}));
    assert_eq!((stdout(&result), &result["stderr"]), ("part\n", &json!("oops\n")), "{result}");
    assert_eq!((&result["timed_out"], &result["exit_code"]), (&json!(true), &json!(-1)));
}

pub fn stdin_arrives_complete_and_then_eof(place: &Place<'_>) {
    let stdin: String = (0..200_000 / 8).map(|n| format!("{n:07}\n")).collect();
    let result = place.exec(json!({"command": "cat", "stdin": stdin, "timeout_secs": 20}));
    assert_eq!((&result["exit_code"], &result["timed_out"]), (&json!(0), &json!(false)));
    assert!(stdout(&result) == stdin, "{} of {} bytes came back", stdout(&result).len(), stdin.len());
    let none = place.exec(json!({"command": "cat; echo end", "timeout_secs": 5}));
    assert_eq!((stdout(&none), &none["timed_out"]), ("end\n", &json!(false)));
}

pub fn a_command_that_never_reads_its_stdin_times_out(place: &Place<'_>) {
    let start = Instant::now();
    let reply = place.exec(json!({"command": "sleep 30", "stdin": "x".repeat(200_000), "timeout_secs": 1}));
    assert_eq!((&reply["timed_out"], &reply["exit_code"]), (&json!(true), &json!(-1)));
    assert!(start.elapsed() < secs(5), "answered after {:?}", start.elapsed());
    // A command that exits without reading stdin is not an error either.
    let reply = place.exec(json!({"command": "exit 3", "stdin": "x".repeat(200_000), "timeout_secs": 5}));
    assert_eq!((&reply["exit_code"], &reply["timed_out"]), (&json!(3), &json!(false)));
}

pub fn stdout_and_stderr_are_separate(place: &Place<'_>) {
    let result = place.exec(json!({"command": "echo out; echo err >&2"}));
    assert_eq!((stdout(&result), &result["stderr"]), ("out\n", &json!("err\n")), "{result}");
    assert_eq!(
        (&result["exit_code"], &result["truncated"], &result["signal"]),
        (&json!(0), &json!(false), &Value::Null)
    );
}

pub fn output_bytes_are_unchanged(place: &Place<'_>) {
    let command = r"printf 'a\r\nb\n\tc\033[1m\377\376\000z'; printf '\200' >&2";
    let result = place.exec(json!({"command": command, "encoding": "base64"}));
    assert_eq!(bytes(&result, "stdout_base64"), b"a\r\nb\n\tc\x1b[1m\xff\xfe\0z");
    assert_eq!(bytes(&result, "stderr_base64"), b"\x80");
    assert_eq!(stdout(&result), "a\r\nb\n\tc\u{1b}[1m\u{fffd}\u{fffd}\0z");
    assert_eq!(result["stderr"], "\u{fffd}");
    let plain = place.exec(json!({"command": command}));
    assert!(plain.get("stdout_base64").is_none_or(Value::is_null), "not asked for: {plain}");
    place.exec_refused("invalid_payload", json!({"command": "true", "encoding": "rot13"}));
}

pub fn bash_does_not_run_in_posix_mode(place: &Place<'_>) {
    // Observed: `/bin/bash -c`. If it is called `sh`, bash runs in POSIX mode, in which some scripts behave
    // differently.
    let result = place
        .exec(json!({"command": "shopt -qo posix && echo posix || echo bash; [[ a == a ]] && echo bash"}));
    assert_eq!(stdout(&result), "bash\nbash\n", "{result}");
}

pub fn exit_codes_and_signals(place: &Place<'_>) {
    assert_eq!(place.exec(json!({"command": "exit 7"}))["exit_code"], 7);
    assert_eq!(place.exec(json!({"command": "no-such-command-anywhere"}))["exit_code"], 127);
    let killed = place.exec(json!({"command": "kill -9 $$"}));
    assert_eq!((&killed["exit_code"], &killed["signal"]), (&json!(-1), &json!(9)), "{killed}");
    assert_eq!(killed["timed_out"], false);
}

pub fn the_environment_has_no_server_secrets(place: &Place<'_>) {
    let result = place.exec(json!({"command": "env; cat /proc/self/environ", "env": {"ASKED": "for"}}));
    let text = stdout(&result);
    for secret in [HOST_TOKEN, CLIENT_TOKEN, "OPENWORK_", "BERTH_", "CREDENTIALS_DIRECTORY"] {
        assert!(!text.contains(secret), "a command sees {secret}:\n{text}");
    }
    let names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    for expected in ["PATH", "HOME", "LANG", "ASKED"] {
        assert!(names.contains(&expected), "{expected} is missing:\n{text}");
    }
}

pub fn the_request_env_overrides_other_sources(place: &Place<'_>) {
    let env = json!({"MY_VAR": "hello world; $(id)", "PATH": "/nowhere:/usr/bin:/bin", "EMPTY": ""});
    let result = place.exec(json!({"command": "echo \"$MY_VAR|$PATH|${EMPTY-unset}\"", "env": env}));
    assert_eq!(stdout(&result), "hello world; $(id)|/nowhere:/usr/bin:/bin|\n", "{result}");
}

pub fn bad_env_names_are_refused(place: &Place<'_>) {
    for name in ["A B", "LD_PRELOAD\0", "1A", "A=B", "A\n", "Ä"] {
        place.exec_refused("invalid_env", json!({"command": "true", "env": {name: "x"}}));
    }
    place.exec_refused("invalid_env", json!({"command": "true", "env": {"A": "x\0y"}}));
    place.exec_refused("invalid_env", json!({"command": "true", "env": {"A": "x".repeat(140_000)}}));
    place.exec_refused("invalid_payload", json!({"command": "true", "env": {"A": 1}}));
}

pub fn a_missing_cwd_is_refused_and_the_command_does_not_run(place: &Place<'_>) {
    let mark = format!("ran-{}", unique_secs());
    let command = format!("touch /tmp/{mark}");
    for cwd in ["no/such/folder", "/no/such/folder", "no\0pe"] {
        place.exec_refused("invalid_cwd", json!({"command": command, "cwd": cwd}));
    }
    let found = place.exec(json!({"command": format!("ls /tmp/{mark}")}));
    assert_ne!(found["exit_code"], 0, "the command ran: {found}");
}

pub fn a_file_as_cwd_is_refused(place: &Place<'_>) {
    place.sh("touch plain-file");
    place.exec_refused("invalid_cwd", json!({"command": "pwd", "cwd": "plain-file"}));
}

pub fn bad_commands_are_refused(place: &Place<'_>) {
    place.exec_refused("invalid_command", json!({"command": "echo a\0b"}));
    place.exec_refused("invalid_command", json!({"command": " "}));
    place.exec_refused("invalid_command", json!({"command": format!("true {}", "x".repeat(140_000))}));
    for body in
        [json!({}), json!({"command": 1}), json!({"command": null}), json!([]), json!("true"), json!(null)]
    {
        place.exec_refused("invalid_payload", body);
    }
    for timeout in [json!(-1), json!("1"), json!([1])] {
        place.exec_refused("invalid_payload", json!({"command": "true", "timeout_secs": timeout}));
    }
    let broken = place.client.send("POST", &place.path("/exec"), &[], Some(b"{\"command\":"));
    assert_eq!((broken.status, &broken.value()["code"]), (400, &json!("invalid_json")), "{broken}");
    // sandboxed.sh documents that a larger timeout is clipped to the maximum and that unknown fields are ignored.
    place.exec(json!({"command": "true", "timeout_secs": 100_000, "unknown": true}));
}

pub fn endless_output_ends_at_the_timeout(place: &Place<'_>) {
    let result = place.exec(json!({"command": "yes", "timeout_secs": 1}));
    assert_eq!((&result["timed_out"], &result["truncated"]), (&json!(true), &json!(true)));
    assert!(stdout(&result).starts_with("y\ny\n"));
    assert!(stdout(&result).len() < CAP + (64 << 10));
}

pub fn forty_concurrent_commands_succeed(place: &Place<'_>) {
    thread::scope(|scope| {
        let runs: Vec<_> = (0..40)
            .map(|n| {
                let (server, path) = (place.server, place.path("/exec"));
                scope.spawn(move || {
                    let command = format!("sleep 0.3; echo {n}; echo e{n} >&2");
                    server.owner().post(200, &path, json!({"command": command, "timeout_secs": 60}))
                })
            })
            .collect();
        for (n, run) in runs.into_iter().enumerate() {
            let result = run.join().unwrap();
            assert_eq!(
                (stdout(&result), &result["stderr"]),
                (&*format!("{n}\n"), &json!(format!("e{n}\n"))),
                "{result}"
            );
            assert_eq!(result["exit_code"], 0);
        }
    });
}

/// Every abuse, for the modules that instantiate them.
macro_rules! all_abuses {
    ($place:expr) => {
        $crate::abuse::abuses! { $place;
            long_output_is_truncated_in_the_middle_with_a_note
            output_below_the_cap_is_complete
            a_background_child_does_not_delay_the_response
            timeout_kills_the_whole_process_tree
            timeout_kills_daemonized_processes
            timeout_kills_continuously_forking_processes
            concurrent_timeouts_leave_no_processes
            timeout_returns_the_partial_output
            stdin_arrives_complete_and_then_eof
            a_command_that_never_reads_its_stdin_times_out
            stdout_and_stderr_are_separate
            output_bytes_are_unchanged
            bash_does_not_run_in_posix_mode
            exit_codes_and_signals
            the_environment_has_no_server_secrets
            the_request_env_overrides_other_sources
            bad_env_names_are_refused
            a_missing_cwd_is_refused_and_the_command_does_not_run
            a_file_as_cwd_is_refused
            bad_commands_are_refused
            endless_output_ends_at_the_timeout
            forty_concurrent_commands_succeed
        }
    };
}
pub(crate) use all_abuses;
