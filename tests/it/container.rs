//! `exec` in a real container: every abuse, and the additional isolation of containers: root is unprivileged outside,
//! paths are private, and commands cannot gain privileges.

use std::thread;

use serde_json::{Value, json};

use crate::abuse::all_abuses;
use crate::fixture::{Place, shared, shared_box};
use crate::procs::{self, assert_dead, unique_secs};

all_abuses!(shared_box());

/// Runs a long sleep in the container, calls `look` with its pid on the host, then kills it.
fn with_sleep(place: &Place<'_>, look: impl FnOnce(u32)) {
    let number = unique_secs();
    thread::scope(|scope| {
        let (server, path) = (place.server, place.path("/exec"));
        let body = json!({"command": format!("sleep {number}"), "timeout_secs": 60});
        scope.spawn(move || server.owner().post(200, &path, body));
        let pid = procs::wait_sleep(&number);
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(pid)));
        procs::kill(pid);
        if let Err(panic) = looked {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn the_container_has_the_requested_debian_release() {
    let place = shared_box();
    assert!(place.sh("cat /etc/os-release").contains("VERSION_CODENAME=bookworm"));
    assert_eq!(place.sh("id -u; id -un; echo $HOME; pwd"), "0\nroot\n/root\n/\n");
}

#[test]
fn root_inside_is_unprivileged_outside() {
    let place = shared_box();
    with_sleep(&place, |pid| {
        let uids = procs::uids(pid);
        assert_eq!(uids.len(), 4);
        assert!(uids.iter().all(|uid| *uid >= 65536), "root of the container is {uids:?} outside");
        assert_eq!(procs::status(pid, "Seccomp").as_deref(), Some("2"), "no system call filter");
        assert_eq!(procs::status(pid, "NoNewPrivs").as_deref(), Some("1"));
        assert!(procs::init_of(pid).is_some(), "the container shares the host's pid namespace");
    });
    let owner = place.sh("stat -c %u /; stat -c %u /usr/bin/env; touch /root/mine; stat -c %u /root/mine");
    assert_eq!(owner, "0\n0\n0\n", "inside, root owns the system and new files");
}

#[test]
fn cwd_is_resolved_inside_the_container() {
    let place = shared_box();
    let pwd = |cwd: Value| place.exec(json!({"command": "pwd -P", "cwd": cwd}))["stdout"].clone();
    assert_eq!(pwd(json!("/tmp")), "/tmp\n");
    assert_eq!(pwd(json!("/")), "/\n");
    assert_eq!(pwd(json!("tmp")), "/tmp\n");
    assert_eq!(pwd(json!("usr/lib")), "/usr/lib\n");
    // The workspace's path on the host is accepted too.
    assert_eq!(pwd(json!(place.root.join("usr/share"))), "/usr/share\n");
    // A path that leaves the root is resolved inside the root.
    assert_eq!(pwd(json!("/../../tmp")), "/tmp\n");
    place.sh("ln -sfn /var/tmp /root/link");
    assert_eq!(pwd(json!("/root/link")), "/var/tmp\n");
}

#[test]
fn the_workspace_env_is_set() {
    let place = shared_box();
    assert_eq!(place.sh("echo $FROM_WORKSPACE"), "ws\n");
    let reply = place.exec(json!({"command": "echo $FROM_WORKSPACE", "env": {"FROM_WORKSPACE": "request"}}));
    assert_eq!(reply["stdout"], "request\n");
}

#[test]
fn the_network_is_shared_with_the_host_by_default() {
    let server = shared();
    let addresses = "cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' ' | sort | tr '\\n' ' '";
    let closed = Place::ready(server, json!({"name": "closed", "network": "none"}));
    assert_eq!(closed.sh(addresses).trim(), "lo");
    let own = Place::ready(server, json!({"name": "own", "shared_network": false}));
    assert_eq!(own.sh(addresses).trim(), "host0 lo", "shared_network:false must isolate");
    // A server on the host's loopback must not be reachable.
    for place in [closed, own] {
        let reply =
            place.exec(json!({"command": format!("exec 3<>/dev/tcp/127.0.0.1/{}", server.address.port())}));
        assert_ne!(reply["exit_code"], 0, "the container reaches the host's loopback: {reply}");
    }
    let open = shared_box();
    assert!(
        open.exec(json!({"command": format!("exec 3<>/dev/tcp/127.0.0.1/{}", server.address.port())}))["exit_code"]
            == 0
    );
    assert!(open.sh("cat /etc/resolv.conf").lines().count() > 0);
}

#[test]
fn collaborators_may_run_in_containers() {
    let server = shared();
    let place = shared_box();
    let reply = server.collaborator().post(200, &place.path("/exec"), json!({"command": "echo hi"}));
    assert_eq!(reply["stdout"], "hi\n");
    server.anyone().refused(
        401,
        "unauthorized",
        "POST",
        &place.path("/exec"),
        Some(json!({"command": "true"})),
    );
}

#[test]
fn files_persist_between_commands() {
    let place = Place::ready(shared(), json!({"name": "memory"}));
    place.sh("echo kept > /srv/file; mkdir -p /opt/x; chmod 750 /opt/x; useradd -m alice");
    assert_eq!(place.sh("cat /srv/file; stat -c %a /opt/x; id -u alice"), "kept\n750\n1000\n");
    let other = shared_box();
    assert_ne!(
        other.exec(json!({"command": "cat /srv/file"}))["exit_code"],
        0,
        "containers share their roots"
    );
    assert_eq!(place.sh("su alice -c 'id -un; touch /home/alice/f'"), "alice\n");
}

/// The real sudo from the distribution's archive: it resolves the host name, uses PAM and starts a session. Commands
/// run as root, so sudo asks no password; another user gains nothing from it, since containers have `no_new_privs`.
#[test]
fn root_has_sudo_inside_and_no_other_user_becomes_root() {
    let place = Place::ready(shared(), json!({"name": "sudo"}));
    place.sh("set -e; export DEBIAN_FRONTEND=noninteractive; exec 3>&1 >/tmp/log 2>&1
         trap '[ $? = 0 ] || cat /tmp/log >&3' EXIT
         apt-get -qq update; apt-get -qq install --no-install-recommends sudo
         for name in alice other; do useradd -m $name; done
         echo 'alice ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/alice; chmod 440 /etc/sudoers.d/alice");
    let run = |user: &str, command: &str| {
        let reply = place.exec(json!({"command": command, "user": user, "timeout_secs": 20}));
        let text = |key: &str| reply[key].as_str().unwrap().to_owned();
        (reply["exit_code"].as_i64().unwrap(), text("stdout"), text("stderr"))
    };
    let root = "uid=0(root) gid=0(root) groups=0(root)\n";
    for (command, stdout) in [
        ("sudo id", root),
        ("sudo -u other true", ""),
        ("sudo -u other id -un; sudo -u other sh -c 'echo $HOME $SUDO_USER'", "other\n/home/other root\n"),
        ("sudo -u other touch /tmp/of-other; stat -c %U /tmp/of-other", "other\n"),
        (
            "sudo -i -u other pwd; sudo -E env | grep ^SUDO_COMMAND",
            "/home/other\nSUDO_COMMAND=/usr/bin/env\n",
        ),
        ("su alice -c 'id -un'; su - other -c pwd", "alice\n/home/other\n"),
    ] {
        assert_eq!(run("root", command), (0, stdout.to_owned(), String::new()), "{command}");
    }
    for command in ["sudo id", "sudo -n -u other true"] {
        let (code, stdout, stderr) = run("alice", command);
        assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
        assert!(stderr.contains("\"no new privileges\" flag is set"), "{stderr}");
    }
    // Processes started by sudo end with their command.
    let number = unique_secs();
    let body = json!({"command": format!("sudo -b -u other sleep {number}; sudo sleep {number}"), "timeout_secs": 2});
    assert_eq!(place.exec(body)["timed_out"], true);
    assert_dead(&number);
}

#[test]
fn packages_can_be_installed() {
    // Operations of dpkg (rename over directories, chown, setuid bits) on this root, without the network.
    let place = Place::ready(shared(), json!({"name": "packages"}));
    let script = "set -e; mkdir -p /tmp/p/DEBIAN /tmp/p/opt/hello; echo hi > /tmp/p/opt/hello/f; chmod 4755 /tmp/p/opt/hello/f
        printf 'Package: hello-berth\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@y.z>\\nDescription: x\\n' > /tmp/p/DEBIAN/control
        dpkg-deb --root-owner-group -b /tmp/p /tmp/p.deb >/dev/null; dpkg -i /tmp/p.deb >/dev/null; dpkg -s hello-berth | grep ^Status
        stat -c '%a %U' /opt/hello/f; dpkg --purge hello-berth >/dev/null; test ! -e /opt/hello && echo gone";
    assert_eq!(place.sh(script), "Status: install ok installed\n4755 root\ngone\n");
}

#[test]
fn a_container_shell_inherits_no_files_or_blocked_signals() {
    let place = shared_box();
    // No file descriptor of the server or of the agent is inherited.
    assert_eq!(place.sh("ls /proc/self/fd | sort -n | tr '\\n' ' '"), "0 1 2 3 ");
    assert_eq!(place.exec(json!({"command": "tty"}))["stdout"], "not a tty\n");
    // None of the standard 31 signals is blocked or ignored.
    let masks = place.sh("sed -n 's/^Sig\\(Blk\\|Ign\\):[[:space:]]*//p' /proc/self/status");
    for mask in masks.lines() {
        assert_eq!(u64::from_str_radix(mask, 16).unwrap() & 0x7fff_ffff, 0, "{masks}");
    }
    assert_eq!(masks.lines().count(), 2);
}
