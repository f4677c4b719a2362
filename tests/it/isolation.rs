//! Isolation of containers from the host and of the container's agent from commands: no other user of the host reaches
//! a file of a container, no process in a container can trace the agent, and no command leaves its cgroup.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::fixture::{Place, seeded, shared};
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::server::{Server, Setup, run};

/// Searches for files of containers as an ordinary user of this machine, repeatedly.
pub struct Stranger {
    child: Child,
    folders: Vec<PathBuf>,
}

/// Exists in every image.
const FILE: &str = "debian_version";
const SUID: &str = "suid-of-container";

impl Stranger {
    pub fn watch(folders: &[&Path]) -> Stranger {
        let script =
            "while :; do find \"$@\" -name debian_version -o -name suid-of-container; done 2>/dev/null";
        let child = as_stranger()
            .args(["sh", "-c", script, "watch"])
            .args(folders)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Stranger { child, folders: folders.iter().map(|folder| (*folder).to_owned()).collect() }
    }

    /// All files found so far.
    #[track_caller]
    pub fn saw_nothing(mut self) {
        // The watcher must have the permissions to see an empty result.
        for folder in &self.folders {
            let probe = folder.join(FILE);
            fs::write(&probe, "").unwrap();
            let found = as_stranger().arg("find").arg(folder).args(["-name", FILE]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&found.stdout).trim(), probe.to_str().unwrap());
            fs::remove_file(&probe).unwrap();
        }
        self.child.kill().unwrap();
        let output = std::io::read_to_string(self.child.stdout.take().unwrap()).unwrap();
        let _ = self.child.wait();
        let probes: Vec<_> = self.folders.iter().map(|folder| folder.join(FILE)).collect();
        let found: Vec<&str> =
            output.lines().filter(|line| !probes.iter().any(|probe| probe == Path::new(line))).collect();
        assert!(found.is_empty(), "another user reached {found:#?}");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn as_stranger() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1234", "--regid=1234", "--clear-groups"]);
    command
}

/// A server with the weakest umask, on folders that every user may enter and write to.
fn careless() -> (Setup, PathBuf, Server) {
    let setup = seeded();
    let elsewhere = setup.scratch().folder("elsewhere");
    open_to_all(&[setup.scratch().path(), setup.data_dir(), &elsewhere]);
    // The state after a backup was restored by hand.
    for name in ["images", "workspaces", "layers", "trash"] {
        let folder = setup.data_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let server = start(&setup, &elsewhere, "overlay");
    (setup, elsewhere, server)
}

/// Creates folders that every user may enter and write to.
pub fn open_to_all(folders: &[&Path]) {
    for folder in folders {
        fs::create_dir_all(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
}

/// Starts a program with the weakest umask.
pub const CARELESS: [&str; 4] = ["sh", "-c", "umask 000; exec \"$@\"", "sh"];

fn start(setup: &Setup, elsewhere: &Path, backend: &str) -> Server {
    let setup = setup
        .clone()
        .arg(format!("--authorized-root={}", elsewhere.display()))
        .arg(format!("--root-backend={backend}"));
    setup.start_through(&CARELESS)
}

fn plant(place: &Place<'_>) {
    place.sh(&format!("cp /bin/dash /usr/local/bin/{SUID}; chmod 4755 /usr/local/bin/{SUID}"));
}

/// Builds, snapshots, restores, clones and rebuilds.
pub fn live(place: &Place<'_>) {
    plant(place);
    let taken = place.client.post(200, &place.path("/snapshots"), json!({"name": "one"}));
    let id = taken["id"].as_str().unwrap();
    place.client.post(200, &place.path(&format!("/snapshots/{id}/restore")), json!({}));
    assert_eq!(place.sh(&format!("stat -c %a /usr/local/bin/{SUID} /")), "4755\n755\n");
    let copy =
        Place::of(place.server, &place.client.post(200, &place.path("/clone"), json!({"name": "copy"})));
    assert_eq!(copy.sh(&format!("stat -c %a /usr/local/bin/{SUID} /; id -u")), "4755\n755\n0\n");
    place.client.call("POST", &place.path("/build?rebuild=true"), None).expect(200);
    assert_eq!(place.settled()["status"], "ready");
    plant(place);
}

#[test]
fn no_other_user_reaches_a_file_of_a_container() {
    let (setup, elsewhere, mut server) = careless();
    let other_user = Stranger::watch(&[setup.data_dir(), &elsewhere]);
    for backend in ["overlay", "copy"] {
        if backend == "copy" {
            server.stop();
            server = start(&setup, &elsewhere, backend);
        }
        let own = Place::ready(&server, json!({"name": "own"}));
        live(&own);
        let path = elsewhere.join(format!("made/{backend}"));
        let named = Place::ready(&server, json!({"name": "named", "path": path}));
        assert_eq!(named.show()["path"], json!(path));
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o700);
        live(&named);
        assert_eq!(named.sh("stat -c %a /; setpriv --reuid=33 --clear-groups ls -d /usr"), "755\n/usr\n");
        // Permissions that were opened by mistake are closed with the next use.
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(named.client.get(200, &named.path("/debug"))["path_exists"].as_bool().unwrap());
        let image = crate::fixture::image_root(&server.data);
        let tar = setup.scratch().path().join("image.tar");
        let packed = Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(image).arg(".").status().unwrap();
        assert!(packed.success());
        let body = json!({"name": format!("again-{backend}"), "path": tar});
        server.owner().post(201, "/api/images", body);
        own.delete();
        named.delete();
        assert!(!path.exists(), "{}", path.display());
    }
    other_user.saw_nothing();
    for name in ["images", "workspaces", "layers", "trash"] {
        assert_eq!(setup.data_dir().join(name).metadata().unwrap().mode() & 0o7777, 0o700, "{name}");
    }
}

/// Also while an init script runs, an image is exported, a bundle is written and restored, and through the processes
/// of a container.
#[test]
fn no_other_user_reaches_a_file_during_builds_exports_and_bundles() {
    let (setup, elsewhere, server) = careless();
    let there = elsewhere.join("there");
    fs::create_dir_all(there.join("images")).unwrap();
    for folder in [&there, &there.join("images")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let other_user = Stranger::watch(&[setup.data_dir(), &elsewhere]);
    let script =
        format!("#!/bin/sh\ncp /bin/dash /opt/{SUID}; chmod 4755 /opt/{SUID}; chmod 777 / /opt; sleep 0.3\n");
    let path = elsewhere.join("named");
    let place = Place::ready(&server, json!({"name": "built", "path": path, "init_script": script}));
    place.client.post(201, &place.path("/runs"), json!({"args": ["sleep", "60"]}));
    let processes = || procs::all().into_iter().filter(|pid| procs::init_of(*pid) == Some(place.init()));
    wait_for("the processes of the container", secs(10), || (processes().count() >= 2).then_some(()));
    for pid in processes() {
        for link in ["root", "cwd", "exe", "fd", "map_files"] {
            let read = as_stranger().arg("ls").arg(format!("/proc/{pid}/{link}/")).output().unwrap();
            assert!(!read.status.success() || read.stdout.is_empty(), "{pid} {link}");
        }
        // setpriv itself looks up the program before it gives up its capabilities.
        let program = format!("/proc/{pid}/root/opt/{SUID}");
        let ran = as_stranger().arg("env").arg(program).args(["-c", "id"]).output().unwrap();
        assert!(!ran.status.success(), "{pid} {:?}: {ran:?}", procs::arguments(pid));
    }
    let berth = |data: &Path, args: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 000; exec \"$@\"", "sh", crate::server::BINARY]).args(args);
        let ended = run(command.env("BERTH_DATA_DIR", data), secs(120));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    };
    let (image, bundle) = (elsewhere.join("image.tar"), elsewhere.join("bundle.tar"));
    let image = image.to_str().unwrap();
    berth(setup.data_dir(), &["image", "export", crate::fixture::DISTRO, image]);
    let bundle = bundle.to_str().unwrap();
    berth(setup.data_dir(), &["bundle", bundle]);
    berth(&there, &["bundle", "--restore", bundle]);
    assert!(crate::fixture::image_root(&there).join("usr").is_dir());
    drop(place);
    other_user.saw_nothing();
}

/// Moves a root to the path that earlier versions used: directly at the owner's path.
fn unwrap_home(path: &Path) {
    let aside = path.with_file_name("aside");
    fs::rename(path.join("root"), &aside).unwrap();
    fs::remove_dir_all(path).unwrap();
    fs::rename(&aside, path).unwrap();
}

#[test]
fn roots_of_earlier_versions_are_moved_into_private_folders() {
    let (setup, elsewhere, server) = careless();
    let path = elsewhere.join("old");
    let place = Place::ready(&server, json!({"name": "old", "path": path}));
    plant(&place);
    let id = place.id.clone();
    std::mem::forget(place);
    server.stop();

    // The old layout, and the states after a kill at each step of the move.
    let half = elsewhere.join(".berth-home-old");
    for step in 0..4 {
        match step {
            0 => unwrap_home(&path),
            1 => {
                unwrap_home(&path);
                fs::create_dir(&half).unwrap();
                fs::set_permissions(&half, fs::Permissions::from_mode(0o700)).unwrap();
            }
            2 => fs::rename(&path, &half).unwrap(),
            _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap(),
        }
        let server = start(&setup, &elsewhere, "overlay");
        let other_user = Stranger::watch(&[&elsewhere]);
        let reply = server.owner().get(200, &format!("/api/workspaces/{id}"));
        assert_eq!((&reply["status"], &reply["path"]), (&json!("ready"), &json!(path)), "{step}");
        let place = Place::of(&server, &reply);
        assert_eq!(place.sh(&format!("stat -c %a /usr/local/bin/{SUID} /")), "4755\n755\n", "{step}");
        std::mem::forget(place);
        assert!(!half.exists() && path.join("root/usr").is_dir(), "{step}");
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o700, "{step}");
        other_user.saw_nothing();
        server.stop();
    }
    let server = start(&setup, &elsewhere, "overlay");
    server.owner().delete(200, &format!("/api/workspaces/{id}"));
    assert!(!path.exists());
}

#[test]
fn the_owner_of_the_parent_folder_gets_no_root_and_loses_no_file() {
    let (_setup, elsewhere, server) = careless();
    std::os::unix::fs::chown(&elsewhere, Some(1234), Some(1234)).unwrap();
    let path = elsewhere.join("swapped");
    let refused = |place: &Place<'_>| {
        let reply = place.client.call("POST", &place.path("/build"), None);
        let reply = if reply.status == 200 { place.settled() } else { reply.value() };
        assert_ne!(reply["status"], "ready", "{reply}");
    };
    let place = Place::pending(&server, json!({"name": "swapped", "path": path}));
    let user_folder = elsewhere.join("theirs");
    fs::create_dir(&user_folder).unwrap();
    fs::write(user_folder.join("kept"), "kept").unwrap();
    std::os::unix::fs::chown(&user_folder, Some(1234), Some(1234)).unwrap();
    // A link, a folder of the user, and a folder of the user with a marker file.
    std::os::unix::fs::symlink(&user_folder, &path).unwrap();
    refused(&place);
    fs::remove_file(&path).unwrap();
    fs::rename(&user_folder, &path).unwrap();
    refused(&place);
    fs::write(path.join(".berth-workspace"), &place.id).unwrap();
    std::os::unix::fs::chown(path.join(".berth-workspace"), Some(1234), None).unwrap();
    refused(&place);
    place.delete();
    assert_eq!(fs::read_to_string(path.join("kept")).unwrap(), "kept");
    assert!(!path.join("root").exists());
}

/// The tool that inspects other processes, for use in a container.
fn tracer(place: &Place<'_>) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/agent_tracer.c");
    let scratch = crate::scratch::Scratch::new();
    let tool = scratch.path().join("tracer");
    let mut compiler = Command::new("cc");
    run(compiler.args(["-static", "-o"]).arg(&tool).arg(&source), secs(60));
    place.sh("true");
    fs::copy(&tool, place.inside("root/tracer")).unwrap();
}

/// Pids inside of the agent's processes: the agent, the process that starts others, and the waiting ones.
const AGENTS: &str = "until [ $(grep -l agent /proc/[0-9]*/comm | wc -l) -ge 4 ]; do :; done; \
                      grep -l agent /proc/[0-9]*/comm | cut -d/ -f3";

#[test]
fn root_in_a_container_cannot_trace_the_agent() {
    let place = Place::ready(shared(), json!({"name": "tracer"}));
    tracer(&place);
    // In one command: the next command would be one of the waiting processes.
    let reply =
        place.sh(&format!("for agent in $({AGENTS}); do echo agent $agent; /root/tracer $agent; done"));
    let agents: Vec<&str> = reply.split("agent ").skip(1).collect();
    assert!(agents.len() >= 4 && agents[0].starts_with("1\n"), "{reply}");
    for agent in agents {
        let (agent, reply) = agent.split_once('\n').unwrap();
        assert!(reply.contains("refused PTRACE_SEIZE") && reply.ends_with("end\n"), "{reply}");
        let done: Vec<&str> = reply.lines().filter(|line| !line.starts_with("refused")).collect();
        assert_eq!(done, ["end"], "{agent}: {reply}");
    }
    // Check of the tool: it works on an ordinary process.
    let reply = place.sh("sleep 100 & /root/tracer $!; kill $!");
    for way in ["did PTRACE_SEIZE", "did process_vm_writev", "mem\n", "fd/0\n"] {
        assert!(reply.contains(way), "{way}: {reply}");
    }
    // The program itself cannot be read, only executed.
    assert_ne!(place.exec(json!({"command": "cat /run/berth/agent"}))["exit_code"], 0);
    assert_eq!(place.sh("stat -c %a /run/berth/agent"), "711\n");
}

#[test]
fn the_oom_killer_prefers_workloads_to_the_agent() {
    let place = Place::ready(shared(), json!({"name": "scores"}));
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    let expected = place.sh("cat /proc/self/oom_score_adj");
    let init = score(place.init());
    for _ in 0..3 {
        place.exec(
            json!({"command": "kill -9 $(grep -l agent /proc/[0-9]*/comm | cut -d/ -f3 | grep -vx 1); true"}),
        );
        for _ in 0..6 {
            assert_eq!(place.sh("cat /proc/self/oom_score_adj"), expected);
        }
    }
    assert_eq!(score(place.init()), init);
    assert!(init.trim().parse::<i32>().unwrap() < expected.trim().parse::<i32>().unwrap());
}

/// Moves a process of a container into the agent's cgroup, as a process that traced the agent could.
fn move_to_agent(pid: u32, init: u32) {
    let text = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    let group = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap().to_owned();
    let top = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().map(Path::new);
    let folder = top.map(|top| top.join(&group)).find(|folder| folder.is_dir()).unwrap();
    fs::write(folder.join("cgroup.procs"), pid.to_string()).unwrap();
}

#[test]
fn a_process_in_the_agents_cgroup_is_killed_at_the_next_deadline_or_deletion() {
    let place = Place::ready(shared(), json!({"name": "intruder"}));
    let other = unique_secs();
    place.exec(json!({"command": format!("setsid sleep {other} >/dev/null 2>&1 </dev/null & true")}));
    let init = place.init();
    for way in ["deadline", "delete"] {
        let number = unique_secs();
        let body = json!({"command": format!("setsid sleep {number} & sleep 300"), "hard_timeout_secs":
            if way == "deadline" { 4 } else { 60 }, "soft_timeout_secs": 0.1});
        let run = place.client.post(201, &place.path("/runs"), body);
        let path = place.path(&format!("/runs/{}", run["id"].as_str().unwrap()));
        let pid = procs::wait_sleep(&number);
        move_to_agent(pid, init);
        if way == "delete" {
            place.client.call("DELETE", &path, None).expect(204);
        }
        wait_for("the foreign process to be killed", secs(20), || {
            procs::sleeps(&number).is_empty().then_some(())
        });
        assert_eq!(place.sh("echo works"), "works\n");
        assert_eq!(procs::sleeps(&other).len(), 1, "background processes of a finished command keep running");
    }
}

#[test]
fn a_stopped_agent_does_not_delay_other_containers() {
    let held = Place::ready(shared(), json!({"name": "held"}));
    let other = Place::ready(shared(), json!({"name": "other"}));
    other.sh("true");
    held.sh("true");
    let init = held.init();
    let agents: Vec<u32> = procs::naming("/run/berth/agent");
    let agents = agents.into_iter().filter(|pid| procs::init_of(*pid) == Some(init));
    let agents: Vec<u32> = agents.chain([init]).collect();
    agents.iter().for_each(|pid| procs::signal(*pid, rustix::process::Signal::STOP));
    // It has no waiting process, and requests more.
    for _ in 0..6 {
        let body = json!({"command": "true", "timeout_secs": 1});
        held.client.call("POST", &held.path("/exec"), Some(&body));
    }
    // All waiting processes of this container are used at once; further ones come from the same thread.
    let waiting = || {
        let ours = procs::naming("/run/berth/agent").into_iter();
        ours.filter(|pid| procs::init_of(*pid) == Some(other.init())).count()
    };
    for _ in 0..12 {
        assert_eq!(other.sh("echo works"), "works\n");
    }
    wait_for("processes that wait in the other container", secs(5), || (waiting() >= 4).then_some(()));
    agents.iter().for_each(|pid| procs::signal(*pid, rustix::process::Signal::CONT));
    assert_eq!(held.sh("echo thawed"), "thawed\n");
}

struct StopOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The pid of a killed waiting process is reused by a host process while the engine hands out waiting processes: that
/// host process is never moved and never killed. The server has its own pid namespace, in which the next pid can be
/// chosen.
#[test]
fn pid_reuse_moves_no_host_process_into_a_container() {
    let setup = seeded().arg("--approval=auto");
    let server =
        setup.start_through(&["unshare", "--pid", "--fork", "--kill-child=TERM", "--mount-proc", "--"]);
    let host = procs::all().into_iter().find(|pid| procs::parent(*pid) == Some(server.pid)).unwrap();
    let place = Place::ready(&server, json!({"name": "recycled"}));
    place.sh("true");
    // The pid as the server sees it.
    let number = |pid: u32| {
        let all = procs::status(pid, "NSpid")?;
        all.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let init = procs::all().into_iter().find(|pid| number(*pid) == Some(place.init())).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut recycled, mut tries) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                place.client.call(
                    "POST",
                    &place.path("/exec"),
                    Some(&json!({"command": "true", "timeout_secs": 5})),
                );
            }
        });
        // Also if the test fails, because the process would never exit.
        let _stop = StopOnDrop(&stop);
        while recycled.len() < 12 && tries < 200 {
            tries += 1;
            let mut waiting = procs::naming("/run/berth/agent").into_iter().rev();
            let waiting = waiting.find(|pid| procs::init_of(*pid) == Some(init) && *pid != init);
            let Some((pid, number)) = waiting.and_then(|pid| Some((pid, number(pid)?))) else { continue };
            procs::kill(pid);
            let seconds = unique_secs();
            let script = format!(
                "n=0; while [ -d /proc/{number} ]; do n=$((n + 1)); [ $n -lt 20000 ] || exit; done; \
                 echo {} > /proc/sys/kernel/ns_last_pid; sleep {seconds} & echo $!; wait",
                number - 1
            );
            let mut child = Command::new("nsenter")
                .args(["--pid", "--mount", &format!("--target={host}"), "sh", "-c", &script])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            let mut reply = std::io::BufReader::new(child.stdout.take().unwrap());
            std::io::BufRead::read_line(&mut reply, &mut line).unwrap();
            // Another process may have taken the pid first, for a moment or for long.
            if line.trim() == number.to_string() {
                recycled.push((child, seconds));
                continue;
            }
            if !line.is_empty() {
                procs::kill(procs::wait_sleep(&seconds));
            }
            let _ = child.wait();
        }
    });
    assert!(recycled.len() >= 6, "only {} pids were reused in {tries} tries", recycled.len());
    assert_eq!(place.sh("echo works"), "works\n");
    let groups = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    place.client.post(200, &place.path("/stop"), json!({}));
    for (mut child, seconds) in recycled {
        let sleeper = procs::sleeps(&seconds).pop().expect("a process of the host was killed");
        assert_eq!(groups(sleeper), groups(std::process::id()), "it was moved into the container");
        procs::kill(sleeper);
        child.wait().unwrap();
    }
    place.delete();
    procs::signal(host, rustix::process::Signal::TERM);
    wait_for("the end of the server", secs(20), || (!procs::alive(host)).then_some(()));
}
