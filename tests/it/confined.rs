//! A server behind an outer container's seccomp profile. Docker's default profile makes clone3(2) fail with ENOSYS for
//! a process without CAP_SYS_ADMIN (moby's `default.json`), profiles before 20.10.10 with EPERM. Commands start
//! nevertheless, in their cgroups if there are any; `berth doctor` reports the cause.

use serde_json::{Value, json};

use crate::doctor::{of, report, row};
use crate::fixture::{Place, seeded};
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{NIL, Server, Setup, run};
use crate::terminal::Terminal;

/// Makes clone3 fail with an errno (seccomp(2)), for `bare` also removes CAP_SYS_ADMIN and denies unshare, then
/// executes its other arguments. 435 is clone3 on every architecture.
const PROFILE: &str = r#"
import ctypes, os, struct, sys
errno, kind, words = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
libc = ctypes.CDLL(None, use_errno=True)
op = lambda code, yes, no, value: struct.pack("HBBI", code, yes, no, value)
refused = [(435, errno)] + ([(272 if os.uname().machine == "x86_64" else 97, 1)] if kind == "bare" else [])
program = op(0x20, 0, 0, 0)
for number, answer in refused:
    program += op(0x15, 0, 1, number) + op(0x06, 0, 0, 0x00050000 | answer)
program += op(0x06, 0, 0, 0x7fff0000)
held = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(held)))
if libc.prctl(22, 2, ctypes.byref(filter), 0, 0) or (kind == "bare" and libc.prctl(24, 21, 0, 0, 0)):
    sys.exit("no filter: " + os.strerror(ctypes.get_errno()))
os.execvp(words[0], words)
"#;

fn profile(errno: i32) -> [String; 5] {
    ["python3", "-c", PROFILE, &errno.to_string(), "full"].map(str::to_owned)
}

fn start(setup: &Setup, words: &[String]) -> Server {
    setup.start_through(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The restrictions of a default Docker container: no CAP_SYS_ADMIN, and read-only cgroups.
fn docker() -> Vec<String> {
    let read_only = "for at in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do \
                     mount -o remount,bind,ro $at || exit 1; done; exec \"$@\"";
    let outer = ["unshare", "--mount", "sh", "-c", read_only, "sh", "python3", "-c", PROFILE, "38", "bare"];
    outer.map(str::to_owned).to_vec()
}

/// Returns the cgroup (v2) of a process.
fn cgroup(pid: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

/// Runs host commands of every kind. `certain`: cgroups are available, so no process escapes.
#[track_caller]
fn commands_work(server: &Server, certain: bool) {
    let place = Place::host(server);
    let reply = place.exec(json!({"command": "cat; cat /proc/self/cgroup; exit 7", "stdin": "in\n"}));
    assert_eq!(reply["exit_code"], 7, "{reply}");
    let printed = reply["stdout"].as_str().unwrap();
    assert!(printed.starts_with("in\n"), "{reply}");
    if certain {
        let own = printed.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        assert_ne!(own, cgroup(&server.pid.to_string()), "the command is in the server's own cgroup");
        assert!(own.contains("berth"), "{own}");
    }

    // Errors of a command are reported as usual.
    place.exec_refused("invalid_cwd", json!({"command": "true", "cwd": "no/such/folder"}));

    // A timeout ends the whole tree, including a process that left its session and cleared its environment.
    let length = unique_secs();
    let hide = if certain { "env -i setsid" } else { "" };
    let reply = place.exec(json!({
        "command": format!("{hide} sleep {length} & sleep {length}"), "timeout_secs": 1}));
    assert_eq!(reply["timed_out"], true, "{reply}");
    procs::assert_dead(&length);

    // Many commands at once.
    std::thread::scope(|scope| {
        for number in 0..8 {
            let place = &place;
            scope.spawn(move || assert_eq!(place.sh(&format!("echo {number}")), format!("{number}\n")));
        }
    });

    // A signal that the server handles has its default action in a command, and so has one that the server ignores.
    assert_eq!(place.exec(json!({"command": "kill -TERM $$; echo no"}))["exit_code"], -1);
    assert_eq!(place.exec(json!({"command": "kill -PIPE $$; echo no"}))["exit_code"], -1);

    let terminal = Terminal::shell(&place);
    terminal.type_in("tty; echo d\"one\"\n");
    terminal.until("its answer", |text| text.contains("/dev/pts/") && text.contains("\ndone"));
    drop(terminal);
}

/// Checks that a detached run survives a restart of the server.
fn detached_survives(setup: &Setup, words: &[String]) {
    let runs = format!("/api/workspaces/{NIL}/runs");
    let server = start(setup, words);
    let body = json!({"command": "echo a; cat; echo b; exit 3", "detach": true, "open_stdin": true});
    let id = server.owner().post(201, &runs, body)["id"].as_str().unwrap().to_owned();
    server.crash();
    let server = start(setup, words);
    let (owner, run) = (server.owner(), format!("{runs}/{id}"));
    assert_eq!(owner.get(200, &run)["status"], "running");
    owner
        .send("POST", &format!("{run}/stdin?eof=true"), &[("Content-Type", "text/plain")], Some(b"x\n"))
        .expect(200);
    let reply = wait_for("the end of the run", secs(20), || {
        let now = owner.get(200, &run);
        (now["status"] != "running").then_some(now)
    });
    assert_eq!(reply["exit_code"], 3, "{reply}");
    server.stop();
}

#[test]
fn commands_start_where_clone3_is_refused() {
    let setup = Setup::new();
    let words = profile(libc::ENOSYS);
    let server = start(&setup, &words);
    commands_work(&server, true);
    drop(server);
    detached_survives(&setup, &words);
}

/// glibc cannot start a thread under this profile.
/// Threads of glibc start by clone3, with clone(2) only after ENOSYS (pthread_create.c); those of musl always by clone(2).
/// `tests/run --musl` names the C library of the binary.
fn threads_need_clone3() -> bool {
    std::env::var("BERTH_LIBC").as_deref() != Ok("musl")
}

#[test]
fn a_profile_that_returns_eperm_is_reported() {
    let setup = Setup::new();
    if !threads_need_clone3() {
        let server = start(&setup, &profile(libc::EPERM));
        commands_work(&server, false);
        assert!(server.log().contains("clone3 is refused by a seccomp profile (EPERM)"), "{}", server.log());
        return;
    }
    let words = [&profile(libc::EPERM)[..], &[crate::server::BINARY.to_owned()]].concat();
    let mut command = std::process::Command::new(&words[0]);
    command.args(&words[1..]).arg("--data-dir").arg(setup.data_dir());
    let ended = run(&mut command, secs(20));
    let cause = "clone3 is refused by a seccomp profile (EPERM)";
    assert!(ended.code == Some(1) && ended.stderr.contains(cause), "{ended:?}");
    assert!(ended.stderr.contains("Docker 20.10.10"), "{ended:?}");
}

#[test]
fn containers_start_where_clone3_is_refused() {
    let setup = seeded();
    let server = start(&setup, &profile(libc::ENOSYS));
    let place = Place::ready(&server, json!({}));
    assert_eq!(place.sh("cat /etc/debian_version >/dev/null && id -u"), "0\n");
    let length = unique_secs();
    let reply =
        place.exec(json!({"command": format!("setsid sleep {length} & sleep {length}"), "timeout_secs": 1}));
    assert_eq!(reply["timed_out"], true, "{reply}");
    procs::assert_dead(&length);
    let terminal = Terminal::shell(&place);
    terminal.type_in("echo d\"one\"\n");
    terminal.until("its answer", |text| text.contains("\ndone"));
    drop(terminal);
    place.delete();
}

#[test]
fn commands_start_with_the_restrictions_of_docker() {
    let setup = Setup::new();
    let server = start(&setup, &docker());
    commands_work(&server, false);
    let warned = server.log();
    assert!(warned.contains("clone3 is refused by a seccomp profile (ENOSYS)"), "{warned}");
    drop(server);
    detached_survives(&setup, &docker());
}

#[test]
fn doctor_reports_the_restrictions_of_an_outer_container() {
    let look = |wrapper: Vec<String>| -> Value {
        report(&Scratch::new(), &wrapper.iter().map(String::as_str).collect::<Vec<_>>()).0
    };
    for (errno, name, status) in [
        (libc::ENOSYS, "ENOSYS", "warn"),
        (libc::EPERM, "EPERM", if threads_need_clone3() { "fail" } else { "warn" }),
    ] {
        let report = look(profile(errno).to_vec());
        let found = row(&report, "clone3")["found"].as_str().unwrap();
        assert!(found.starts_with(&format!("clone3 is refused by a seccomp profile ({name})")), "{found}");
        assert_eq!(of(&report, "clone3").0, status);
        assert_eq!(of(&report, "user namespaces").0, "ok", "{report:#}");
        assert_eq!(of(&report, "container").0 == "ok", status == "warn", "{report:#}");
    }
    let report = look(docker());
    for name in ["root", "user namespaces"] {
        let (status, fix) = of(&report, name);
        assert!(status == "fail" && fix.contains("--privileged"), "{name}: {report:#}");
    }
    let found = row(&report, "user namespaces")["found"].as_str().unwrap();
    assert!(found.contains("CAP_SYS_ADMIN is missing"), "{found}");
    let free = look(Vec::new());
    assert_eq!(of(&free, "clone3"), ("ok", ""));
}
