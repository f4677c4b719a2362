//! The reports of `assets/docs/field-reports.md` about commands and terminals, each with the tests that cover it. Tests
//! that belong to no other module follow below.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Place, shared_box};
use crate::procs::{self, secs, wait_for};
use crate::server::{HOST_TOKEN, Server};
use crate::tidy_references::tests_exist;

/// Number and title of each report, and its tests as `file::function`.
const ANSWERS: &[(u32, &str, &[&str])] = &[
    (
        1,
        "A timeout fires only when the command ends",
        &[
            "runs::hard_timeout_kills_the_process_tree_of_a_run",
            "abuse::a_command_that_never_reads_its_stdin_times_out",
        ],
    ),
    (
        2,
        "A background process that holds the pipe defeats the timeout",
        &[
            "runs::a_background_child_does_not_delay_the_end_of_a_run",
            "abuse::a_background_child_does_not_delay_the_response",
        ],
    ),
    (
        3,
        "A timeout kills only the shell",
        &["abuse::timeout_kills_the_whole_process_tree", "abuse::concurrent_timeouts_leave_no_processes"],
    ),
    (
        4,
        "A kill reports success, and the process lives",
        &["runs::kill_ends_every_process_of_a_run", "abuse::timeout_kills_daemonized_processes"],
    ),
    (
        5,
        "A stream ends with an invented exit status",
        &[
            "runs_stream::a_stream_ends_with_a_status_or_closes_abnormally",
            "detached::a_killed_keeper_is_reported_as_an_error",
        ],
    ),
    (6, "An open standard input blocks commands that read it", &["runs::stdin_is_empty_without_open_stdin"]),
    (
        7,
        "A client that reconnects fails or loses output",
        &[
            "runs_stream::a_disconnected_stream_resumes_at_its_offset",
            "detached::output_and_status_survive_a_killed_server",
        ],
    ),
    (
        8,
        "Here-documents and long children block a session",
        &["runs::heredocs_and_long_children_do_not_hang"],
    ),
    (9, "One stuck command blocks the rest", &["runs::stuck_runs_do_not_delay_other_commands"]),
    (10, "Processes become zombies", &["command_promises::orphans_do_not_become_zombies"]),
    (
        11,
        "Large output is an error, or fills the memory",
        &[
            "abuse::long_output_is_truncated_in_the_middle_with_a_note",
            "runs_disk::offsets_stay_valid_when_the_window_moves",
            "detached::output_beyond_the_limit_is_dropped_from_the_start",
        ],
    ),
    (
        12,
        "An out-of-memory kill is not reported",
        &["resources::oom_kill_is_reported_for_the_killed_command_only"],
    ),
    (
        13,
        "Short commands wait for a fixed time",
        &[
            "command_promises::a_short_command_returns_without_delay",
            "terminals_limits::a_key_is_echoed_soon",
        ],
    ),
    (
        14,
        "Idle terminals die",
        &[
            "terminals_limits::idle_terminals_end_and_watched_ones_do_not",
            "terminals_limits::peers_that_answer_no_ping_are_disconnected",
        ],
    ),
    (15, "A terminal without clients freezes", &["terminals::a_terminal_without_clients_continues"]),
    (
        16,
        "A client that reconnects sees a garbled screen",
        &[
            "terminals::a_reconnecting_client_gets_the_current_screen",
            "terminals::reconnecting_types_nothing_into_the_shell",
        ],
    ),
    (17, "The first picture has size 0 by 0", &["terminals::the_size_is_set_before_the_program_starts"]),
    (
        18,
        "Two readers of one terminal tear its sequences apart",
        &[
            "terminals::one_client_writes_until_another_takes_over",
            "terminals_limits::many_clients_see_the_same",
        ],
    ),
    (
        19,
        "Event streams are buffered on their way, or go stale",
        &[
            "runs_stream::a_silent_stream_has_heartbeats",
            "runs_stream::a_disconnected_stream_resumes_at_its_offset",
        ],
    ),
    (
        24,
        "nspawn needs a booted container, and terminals hang",
        &[
            "terminals::the_terminal_belongs_to_its_workspace",
            "terminals_limits::a_container_that_dies_ends_its_terminals",
            "container_faults::commands_work_after_nspawn_is_killed",
            "command_promises::a_container_without_an_init_system_runs_commands",
        ],
    ),
    (
        27,
        "Browsers send no header with a WebSocket",
        &["terminals_limits::a_socket_accepts_its_token_as_a_subprotocol"],
    ),
    (
        28,
        "Commands over a bad line race, and -1 counts as success",
        &[
            "command_promises::a_slow_exec_uses_one_connection_and_reports_the_kill",
            "runs_stream::a_run_outlives_the_connection_that_started_it",
        ],
    ),
];

#[test]
fn every_report_names_existing_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("assets/docs/field-reports.md")).unwrap();
    let titles: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let answered: Vec<String> = ANSWERS.iter().map(|(item, title, _)| format!("{item}. {title}")).collect();
    assert_eq!(titles, answered);
    for (_, title, tests) in ANSWERS {
        tests_exist(title, tests);
    }
}

fn zombies_below(pid: u32) -> Vec<u32> {
    let is_zombie = |pid: &u32| procs::status(*pid, "State").is_some_and(|state| state.starts_with('Z'));
    procs::all().into_iter().filter(|other| procs::parent(*other) == Some(pid)).filter(is_zombie).collect()
}

/// (10) Orphans are reaped, in a container by its first process; the server leaves no zombies either.
#[test]
fn orphans_do_not_become_zombies() {
    let place = shared_box();
    for _ in 0..20 {
        place.sh("for i in 1 2 3 4 5; do (setsid sleep 0.0$i >/dev/null 2>&1 </dev/null &) ; done");
    }
    place.client.call(
        "POST",
        &place.path("/exec"),
        Some(&json!({"command": "sleep 60", "timeout_secs": 0.2})),
    );
    let machine = place.client.get(200, &place.path("/debug"))["machine"].clone();
    let init = machine["init_pid"].as_u64().unwrap() as u32;
    wait_for("the container's orphans to be reaped", secs(10), || {
        zombies_below(init).is_empty().then_some(())
    });
    let host = Server::start();
    let on_host = Place::host(&host);
    for _ in 0..20 {
        on_host.sh("(setsid sleep 0.05 >/dev/null 2>&1 </dev/null &); true");
    }
    on_host.exec(json!({"command": "sleep 60", "timeout_secs": 0.2}));
    wait_for("the server's children to be reaped", secs(10), || {
        zombies_below(host.pid).is_empty().then_some(())
    });
}

/// (13) No poll interval and no pause: the fastest of several runs takes less than any such interval, even on a busy
/// machine.
#[test]
fn a_short_command_returns_without_delay() {
    let server = Server::start();
    for place in [Place::host(&server), shared_box()] {
        place.sh("true");
        let took = |body: &Value| {
            let begun = Instant::now();
            assert_eq!(place.exec(body.clone())["exit_code"], 0);
            begun.elapsed()
        };
        let fastest = (0..30).map(|_| took(&json!({"command": "true"}))).min().unwrap();
        assert!(fastest < Duration::from_millis(40), "{fastest:?}");
        // Its output does not wait either.
        let body = json!({"command": "head -c 300000 /dev/zero", "output_limit_bytes": 1000});
        let fastest = (0..10).map(|_| took(&body)).min().unwrap();
        assert!(fastest < Duration::from_millis(80), "{fastest:?}");
    }
}

/// (24) A container needs neither systemd nor a shell of nspawn, and forty commands use no terminal of the host.
#[test]
fn a_container_without_an_init_system_runs_commands() {
    let place = shared_box();
    assert_eq!(place.sh("test -d /run/systemd/system || echo none"), "none\n");
    assert_eq!(place.sh("cat /proc/1/comm"), "agent\n");
    let terminals = || {
        let count = fs::read_to_string("/proc/sys/kernel/pty/nr").unwrap();
        count.trim().parse::<i64>().unwrap()
    };
    let before = terminals();
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let reply = place.server.owner().post(
                    200,
                    &place.path("/exec"),
                    json!({"command": "test -t 0 || echo piped"}),
                );
                assert_eq!(reply["stdout"], "piped\n", "{reply}");
            });
        }
    });
    // Other tests open terminals at the same time.
    assert!(terminals() - before < 40, "{} terminals more", terminals() - before);
}

/// (28) One connection carries the whole exec, even if request and response are slow; a killed command is not reported
/// as a success.
#[test]
fn a_slow_exec_uses_one_connection_and_reports_the_kill() {
    let server = Server::start();
    for place in [Place::host(&server), shared_box()] {
        let body = json!({"command": "echo out; kill -KILL $$"}).to_string();
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {HOST_TOKEN}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            place.path("/exec"),
            place.server.address,
            body.len()
        );
        let mut link = TcpStream::connect(place.server.address).unwrap();
        link.set_nodelay(true).unwrap();
        link.set_read_timeout(Some(secs(20))).unwrap();
        // A few bytes at a time, with pauses; head and body are split anywhere.
        for part in request.as_bytes().chunks(23) {
            link.write_all(part).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
        let mut answer = Vec::new();
        let mut few = [0; 7];
        while let Ok(n @ 1..) = link.read(&mut few) {
            answer.extend_from_slice(&few[..n]);
        }
        let answer = String::from_utf8(answer).unwrap();
        let reply: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(
            (&reply["exit_code"], &reply["signal"], &reply["stdout"]),
            (&json!(-1), &json!(9), &json!("out\n")),
            "{reply}"
        );
        // A command that never ran has no exit code.
        let never = place.exec_refused("invalid_command", json!({"args": ["/no/such/program"]}));
        assert!(never.get("exit_code").is_none(), "{never}");
    }
}
