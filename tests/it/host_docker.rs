//! `berth host --sandbox docker`, with Debian's own engine and the real OpenCode.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::docker::{Docker, IMAGE};
use crate::host_command::{Place, Running, client};
use crate::opencode_serve::program;
use crate::procs::{self, alive, naming, secs, wait_for};
use crate::server::{BINARY, run};

/// The uid that owns the workspace; it has no name on this machine.
const OWNER: u32 = 12345;

fn place(docker: &Docker, version: &str) -> Place {
    let mut place = Place::new(&program(version));
    place.env = vec![
        ("OPENWORK_DOCKER_BIN".into(), docker.program().to_str().unwrap().into()),
        ("DOCKER_HOST".into(), docker.host()),
    ];
    chown(place.scratch.folder("work"), Some(OWNER), Some(OWNER)).unwrap();
    place
}

fn started(place: &Place, arguments: &[&str]) -> (Running, Value) {
    place.start(&[&["--sandbox=docker", "--approval=auto"], arguments].concat())
}

fn state(owner: &crate::client::Client) -> Value {
    owner.get(200, "/status")["opencode"].clone()
}

fn pid(state: &Value) -> u32 {
    u32::try_from(state["pid"].as_u64().unwrap_or_else(|| panic!("{state}"))).unwrap()
}

/// Checks that neither a container nor a process of this host remains.
#[track_caller]
fn nothing_is_left(place: &Place, docker: &Docker, name: &str) {
    let scratch = place.scratch.path().to_str().unwrap();
    wait_for("the end of all processes", secs(10), || naming(scratch).is_empty().then_some(()));
    wait_for("the end of the container", secs(20), || {
        (!docker.containers().iter().any(|one| one == name)).then_some(())
    });
}

#[test]
fn the_real_opencode_works_in_a_restricted_container_without_a_port() {
    let docker = Docker::shared();
    let place = place(&docker, "opencode-new");
    let (mut running, document) =
        started(&place, &["--run-id=it/locked", "--sandbox-cpus=1.5", "--sandbox-memory=1073741824"]);
    let name = "openwork-orchestrator-it-locked";
    assert_eq!(document["sandbox"], json!({"backend": "docker", "name": name}), "{document}");
    let url = &document["openwork"]["baseUrl"];
    let owner = client(url, document["openwork"]["hostToken"].as_str().unwrap());
    let shown = owner.get(200, "/capabilities")["sandbox"].clone();
    assert_eq!(shown, json!({"enabled": true, "backend": "docker", "engine": "docker"}));

    // Each restriction as the engine reports it.
    let inspected = docker.inspect(name);
    let host = &inspected["HostConfig"];
    assert_eq!(inspected["NetworkSettings"]["Ports"], json!({}), "{inspected}");
    assert!(host["PortBindings"] == json!({}) && host["PublishAllPorts"] == false, "{host}");
    assert_eq!((&host["CapDrop"], &host["Privileged"]), (&json!(["ALL"]), &json!(false)));
    assert_eq!(
        (&host["SecurityOpt"], &host["ReadonlyRootfs"]),
        (&json!(["no-new-privileges"]), &json!(true))
    );
    assert_eq!((&host["Memory"], &host["MemorySwap"]), (&json!(1 << 30), &json!(1 << 30)));
    assert!(host["PidsLimit"].as_u64().unwrap() >= 64 && host["NanoCpus"] == 1_500_000_000u64, "{host}");
    assert_eq!(inspected["Config"]["User"], format!("{OWNER}:{OWNER}"));
    assert_eq!(inspected["Config"]["Labels"]["berth.host"], place.data().to_str().unwrap());

    // The restrictions as the kernel reports them.
    let first = state(&owner);
    let opencode = pid(&first);
    assert_eq!(procs::uids(opencode), [OWNER; 4]);
    assert_eq!(procs::status(opencode, "CapBnd").unwrap(), "0000000000000000");
    assert_eq!(procs::status(opencode, "NoNewPrivs").unwrap(), "1");

    // No secret is readable by other users: in arguments, the engine's records, or the environment of berth's own
    // process.
    let environment =
        String::from_utf8_lossy(&fs::read(format!("/proc/{opencode}/environ")).unwrap()).into_owned();
    let (_, password) = environment.split_once("OPENCODE_SERVER_PASSWORD=").unwrap();
    let password = password.split('\0').next().unwrap();
    for token in ["token", "hostToken"] {
        let token = document["openwork"][token].as_str().unwrap();
        assert!(!environment.contains(token) && !inspected.to_string().contains(token));
    }
    assert!(environment.contains("HOME=/persist") && !environment.contains("BERTH_"), "{environment}");
    assert!(!inspected.to_string().contains(password) && !running.err.text().contains(password));
    assert!(procs::all().iter().all(|pid| !procs::arguments(*pid).join(" ").contains(password)));

    // A shell of OpenCode prints its identity and tries forbidden accesses.
    let mount = format!("/w/{}/opencode", document["workspaceId"].as_str().unwrap());
    let session = owner.post(200, &format!("{mount}/session"), json!({}));
    let command = "{ id -u; pwd; (echo > /x) 2>&1 | grep -o 'Read-only' ; kill -TERM 1; kill -KILL 1; \
                   ls /proc/1/fd 2>/dev/null; ls -a /run/berth; (cat /proc/1/environ) 2>/dev/null; } > seen 2>/dev/null; true";
    let body =
        json!({"agent": "build", "command": command, "model": {"providerID": "none", "modelID": "none"}});
    owner.call("POST", &format!("{mount}/session/{}/shell", session["id"].as_str().unwrap()), Some(&body));
    let work = place.scratch.path().join("work");
    let seen = wait_for("the output of the shell", secs(60), || {
        fs::read_to_string(work.join("seen")).ok().filter(|text| text.contains("opencode.sock"))
    });
    assert!(seen.starts_with(&format!("{OWNER}\n/workspace\n")), "{seen}");
    assert_eq!(fs::metadata(work.join("seen")).unwrap().uid(), OWNER);
    let mut remaining: Vec<_> =
        fs::read_dir(&work).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    remaining.sort();
    assert_eq!(remaining, ["seen"], "berth writes nothing into the workspace");

    // OpenCode is killed and restarts in the same container.
    procs::kill(opencode);
    let second = wait_for("a restart", secs(60), || {
        Some(state(&owner)).filter(|state| state["state"] == "running" && state["starts"] == 2)
    });
    assert!(second["lastEnd"].as_str().unwrap().starts_with("signal 9"), "{second}");
    assert_eq!(docker.inspect(name)["Id"], inspected["Id"]);
    owner.get(200, &format!("{mount}/session/{}", session["id"].as_str().unwrap()));

    // The desktop stops the host by stopping the container.
    let last = pid(&second);
    let stopped = docker.ask(&["stop", name]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    let status = wait_for("the end of the host", secs(20), || running.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{}", running.err.text());
    assert!(!alive(last));
    nothing_is_left(&place, &docker, name);
}

/// `auto` uses Docker if berth's own containers are not available.
#[test]
fn checks_pass_with_the_older_version_and_without_a_network() {
    let docker = Docker::shared();
    let place = place(&docker, "opencode-old");
    let mut command = place.command("setpriv");
    // Root without the right to mount.
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", BINARY, "host", "start", "--check"]);
    command.args(["--check-events", "--openwork-port=0", "--workspace=work", "--sandbox=auto"]);
    let ended = run(command.args(["--sandbox-network=none", "--run-id=it-check"]), secs(150));
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "Checks: ok\n"), "{ended:?}");
    for step in
        ["health", "workspaces", "config", "approvals", "proxy.health", "proxy.session", "proxy.events"]
    {
        assert!(ended.stderr.contains(&format!("\nok {step} ")), "{step}: {ended:?}");
    }
    assert_eq!(fs::read_dir(place.scratch.path().join("work")).unwrap().count(), 0);
    nothing_is_left(&place, &docker, "openwork-orchestrator-it-check");
}

#[test]
fn containers_of_a_killed_host_are_removed_and_foreign_ones_kept() {
    let docker = Docker::shared();
    let place = place(&docker, "opencode-new");
    let (running, document) = started(&place, &["--run-id=it-killed"]);
    let name = document["sandbox"]["name"].as_str().unwrap().to_owned();
    let owner = client(&document["openwork"]["baseUrl"], document["openwork"]["hostToken"].as_str().unwrap());
    let opencode = pid(&state(&owner));
    procs::signal(running.child.id(), Signal::KILL);
    wait_for("the end of OpenCode", secs(10), || (!alive(opencode)).then_some(()));
    drop(running);
    nothing_is_left(&place, &docker, &name);

    // One container of berth that survived, and one that is not berth's.
    let label = format!("berth.host={}", place.data().display());
    let old = docker.ask(&["run", "-d", "--label", &label, "--name", "it-old", IMAGE, "sleep", "1000"]);
    assert_eq!(old.code, Some(0), "{old:?}");
    let stranger = docker.ask(&["run", "-d", "--name", &name, IMAGE, "sleep", "1000"]);
    assert_eq!(stranger.code, Some(0), "{stranger:?}");
    let arguments =
        ["--check", "--openwork-port=0", "--workspace=work", "--sandbox=docker", "--run-id=it-killed"];
    let ended = place.run(&arguments);
    assert!(ended.code == Some(1) && ended.stderr.contains("another --run-id"), "{ended:?}");
    let remaining = docker.containers();
    assert!(remaining.contains(&name) && !remaining.iter().any(|one| one == "it-old"), "{remaining:?}");
    docker.ask(&["rm", "-f", &name]);
}

#[test]
fn missing_features_of_the_engine_are_reported_before_the_start() {
    let docker = Docker::shared();
    let place = place(&docker, "opencode-new");
    let refused = |arguments: &[&str], expected: &str| {
        let all = [&["--openwork-port=0", "--workspace=work"], arguments].concat();
        let ended = place.run(&all);
        assert!(
            ended.code == Some(2) && ended.stdout.is_empty() && ended.stderr.contains(expected),
            "{ended:?}"
        );
    };
    refused(
        &["--sandbox=docker", "--sandbox-image=none/such:1"],
        "the engine has no image none/such:1; pull it with `docker pull",
    );
    assert!(docker.ask(&["image", "inspect", "none/such:1"]).code != Some(0), "nothing is pulled");
    let mut place = Place::new(&program("opencode-new"));
    place.env = vec![
        ("OPENWORK_DOCKER_BIN".into(), docker.program().to_str().unwrap().into()),
        ("DOCKER_HOST".into(), "unix:///nowhere/sock".into()),
    ];
    let ended = place.run(&["--openwork-port=0", "--workspace=work", "--sandbox=docker"]);
    assert!(
        ended.code == Some(2) && ended.stderr.contains("--sandbox docker: `docker version` failed"),
        "{ended:?}"
    );
}

#[test]
fn folders_of_the_allowlist_are_mounted_without_changes_to_the_workspace() {
    let docker: Arc<Docker> = Docker::shared();
    let place = place(&docker, "opencode-new");
    let extra = place.scratch.folder("shared/data");
    fs::write(extra.join("file"), "shared").unwrap();
    let list = json!({"allowedRoots": [{"path": place.scratch.path().join("shared")}]});
    place.scratch.file("home/.config/openwork/sandbox-mount-allowlist.json", list.to_string());
    let mount = format!("--sandbox-mount={}:one/two", extra.display());
    let (running, document) = started(&place, &[&mount, "--run-id=it-extra"]);
    let name = document["sandbox"]["name"].as_str().unwrap();
    let output = docker.ask(&["exec", name, "sh", "-c", "cat extra/one/two/file; touch extra/one/two/x"]);
    assert!(
        output.code == Some(1) && output.stdout == "shared" && output.stderr.contains("Read-only"),
        "{output:?}"
    );
    assert!(running.err.text().contains("is mounted for reading only"), "{}", running.err.text());
    drop(running);
    let remaining: Vec<_> = fs::read_dir(place.scratch.path().join("work")).unwrap().flatten().collect();
    assert!(remaining.is_empty(), "{remaining:?}");
    nothing_is_left(&place, &docker, name);
}

#[test]
fn a_server_in_the_container_matches_openworks_layout_and_ends_with_its_host() {
    let docker = Docker::shared();
    let place = place(&docker, "opencode-new");
    // The engine publishes the port in its own network namespace.
    let host = |arguments: &[&str]| {
        let mut command = place.command("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", docker.pid())).args([BINARY, "host", "start", "--json"]);
        command.args([
            "--openwork-port=8797",
            "--workspace=work",
            "--sandbox=docker",
            "--sandbox-server=inside",
        ]);
        command.args(["--approval=auto", "--run-id=it-inside"]).args(arguments);
        command
    };
    let name = "openwork-orchestrator-it-inside";
    let ended = run(&mut host(&["--check", "--check-events"]), secs(150));
    let checked: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{ended:?}"));
    assert_eq!((ended.code, &checked["ok"]), (Some(0), &json!(true)), "{ended:?}");
    nothing_is_left(&place, &docker, name);

    let (mut running, document) = Running::of(host(&[]));
    let inspected = docker.inspect(name);
    let ports = &inspected["HostConfig"]["PortBindings"];
    assert_eq!(*ports, json!({"8787/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8797"}]}), "{ports}");
    assert_eq!(inspected["HostConfig"]["CapDrop"], json!(["ALL"]));
    let script = format!("/persist/openwork-orchestrator-sandbox/{name}/entrypoint.sh");
    assert_eq!(inspected["Config"]["Cmd"], json!(["sh", script]));
    let folder = script.trim_end_matches("/entrypoint.sh");
    let output = docker.ask(&["exec", name, "sh", "-c", &format!("cat {script}; ls {folder}/sidecars; pwd")]);
    let token = document["openwork"]["hostToken"].as_str().unwrap();
    assert!(
        output.stdout.contains("openwork-server") && output.stdout.ends_with("/workspace\n"),
        "{output:?}"
    );
    assert!(!output.stdout.contains(token) && !place.data().join("host/sandbox.env").exists());
    assert!(procs::all().iter().all(|pid| !procs::arguments(*pid).join(" ").contains(token)));
    // OpenCode has no token, and its agent cannot read the tokens of the server, which runs as the same user.
    let script = "for p in /proc/[0-9]*; do case $(cat $p/cmdline 2>/dev/null) in /persist/*opencodeserve*) \
                  cat $p/environ;; esac; done; cat /proc/1/environ";
    let output = docker.ask(&["exec", name, "bash", "-c", script]);
    assert!(
        output.stdout.contains("OPENCODE_SERVER_PASSWORD") && !output.stdout.contains(token),
        "{output:?}"
    );
    assert!(output.stderr.contains("/proc/1/environ: Permission denied"), "{output:?}");

    // The container ends with its killed host.
    procs::kill(running.child.id());
    let _ = running.child.wait();
    nothing_is_left(&place, &docker, name);

    // A server of another version is no failure, and a bot's port is published where one is configured, for this machine
    // alone.
    let other = place.scratch.path().join("other-server");
    let version = env!("CARGO_PKG_VERSION");
    let newer = format!("{}9", &version[..version.len() - 1]);
    let script = format!(
        "LC_ALL=C sed 's/{}/{newer}/g' '{BINARY}' > \"$1\" && chmod 755 \"$1\"",
        version.replace('.', "\\.")
    );
    let made = run(std::process::Command::new("sh").args(["-c", &script, "sh"]).arg(&other), secs(60));
    assert_eq!(made.code, Some(0), "{made:?}");
    let program = format!("--openwork-server-bin={}", other.display());
    let (mut running, document) = Running::of(host(&["--owpenbot-health-port=3055", &program]));
    let warning = format!("WARN The server in the container has another version: {newer}");
    assert!(running.err.text().contains(&warning), "{}", running.err.text());
    assert_eq!(document["owpenbot"], json!({"enabled": true, "healthPort": 3055}), "{document}");
    let ports = docker.inspect(name)["HostConfig"]["PortBindings"].clone();
    let local = |port: &str| json!([{"HostIp": "127.0.0.1", "HostPort": port}]);
    assert_eq!(ports, json!({"8787/tcp": local("8797"), "3005/tcp": local("3055")}));
    let told = docker.ask(&["exec", name, "sh", "-c", "echo $OWPENBOT_HEALTH_HOST:$OWPENBOT_HEALTH_PORT"]);
    assert_eq!(told.stdout, "0.0.0.0:3005\n", "{told:?}");
    assert_eq!(docker.ask(&["stop", name]).code, Some(0));
    let status = wait_for("the end of the host", secs(20), || running.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{}", running.err.text());
    nothing_is_left(&place, &docker, name);
    for file in ["seed", "sandbox.json", "sandbox.env"] {
        assert!(!place.data().join("host").join(file).exists(), "{file}");
    }
}

/// Through the socket with which Podman serves Docker's API.
#[test]
fn podmans_socket_is_an_engine_as_well() {
    let podman = Docker::podman();
    let place = place(&podman, "opencode-new");
    let (running, document) = started(&place, &["--run-id=it-podman"]);
    let name = "openwork-orchestrator-it-podman";
    let of = |document: &Value| {
        client(&document["openwork"]["baseUrl"], document["openwork"]["hostToken"].as_str().unwrap())
    };
    let owner = of(&document);
    let opencode = pid(&state(&owner));
    assert_eq!(procs::uids(opencode), [OWNER; 4]);
    assert_eq!(procs::status(opencode, "CapBnd").unwrap(), "0000000000000000");
    assert_eq!(procs::status(opencode, "NoNewPrivs").unwrap(), "1");
    assert_eq!(podman.inspect(name)["HostConfig"]["PortBindings"], json!({}));
    procs::kill(opencode);
    wait_for("another start", secs(60), || {
        Some(state(&owner)).filter(|state| state["state"] == "running" && state["starts"] == 2)
    });
    // A killed host takes all processes of the container along. Podman removes the container itself only where it is
    // installed; the next start does it here.
    procs::kill(running.child.id());
    drop(running);
    let scratch = place.scratch.path().to_str().unwrap();
    wait_for("the end of all processes", secs(10), || naming(scratch).is_empty().then_some(()));
    let (mut running, _) = started(&place, &["--run-id=it-podman", "--sandbox-network=none"]);
    assert_eq!(podman.ask(&["stop", name]).code, Some(0));
    let status = wait_for("the end of the host", secs(20), || running.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{}", running.err.text());
    nothing_is_left(&place, &podman, name);
}

#[test]
fn a_folder_that_is_swapped_before_the_engine_mounts_it_is_noticed() {
    let docker = Docker::shared();
    let mut place = place(&docker, "opencode-new");
    let extra = place.scratch.folder("shared/data");
    let list = json!({"allowedRoots": [{"path": place.scratch.path().join("shared")}]});
    place.scratch.file("home/.config/openwork/sandbox-mount-allowlist.json", list.to_string());
    let (at, program) = (extra.display(), docker.program());
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = run ]; then mv '{at}' '{at}.old'; ln -s /etc '{at}'; fi\nexec '{}' \"$@\"\n",
        program.display()
    );
    let wrapper = place.scratch.path().join("docker");
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    place.env[0].1 = wrapper.to_str().unwrap().to_owned();
    let mount = format!("--sandbox-mount={at}:one");
    let arguments =
        ["--check", "--openwork-port=0", "--workspace=work", "--sandbox=docker", "--run-id=it-swap", &mount];
    let ended = place.run(&arguments);
    assert!(
        ended.code == Some(1)
            && ended
                .stderr
                .contains("/workspace/extra/one in the container is not the file that was checked"),
        "{ended:?}"
    );
    nothing_is_left(&place, &docker, "openwork-orchestrator-it-swap");
}

/// The short form of tests/bench/sandboxes.py.
#[test]
fn a_killed_container_ends_the_host_and_leaves_nothing() {
    let docker = Docker::shared();
    let place = place(&docker, "opencode-new");
    for round in 0..2 {
        let (mut running, document) = started(&place, &["--run-id=it-container"]);
        let owner =
            client(&document["openwork"]["baseUrl"], document["openwork"]["hostToken"].as_str().unwrap());
        let opencode = pid(&state(&owner));
        let first = procs::parent(opencode).unwrap();
        assert!(procs::arguments(first).contains(&"relay".to_owned()), "{:?}", procs::arguments(first));
        // The second time OpenCode is already dead, and about to be started again.
        if round == 1 {
            procs::kill(opencode);
        }
        procs::kill(first);
        let status = wait_for("the end of the host", secs(30), || running.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", running.err.text());
        nothing_is_left(&place, &docker, "openwork-orchestrator-it-container");
        let files: Vec<_> =
            fs::read_dir(place.data().join("host")).unwrap().flatten().map(|file| file.file_name()).collect();
        assert!(files.iter().all(|name| name.to_string_lossy().starts_with("opencode.")), "{files:?}");
        assert!(procs::mounts_below(&place.data()).is_empty());
    }
}

/// A stand-in answers that the engine runs without root; everything else is the real one.
#[test]
fn an_engine_without_root_takes_workspaces_of_its_own_user() {
    let docker = Docker::shared();
    let mut place = place(&docker, "opencode-new");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = info ] && echo '[\"name=rootless\"]' && exit\nexec '{}' \"$@\"\n",
        docker.program().display()
    );
    let wrapper = place.scratch.path().join("docker");
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    place.env[0].1 = wrapper.to_str().unwrap().to_owned();
    let ended = place.run(&["--check", "--openwork-port=0", "--workspace=work", "--sandbox=docker"]);
    let wanted =
        "--workspace: the engine runs without root as user 0, and the workspace belongs to user 12345";
    assert!(ended.code == Some(2) && ended.stderr.contains(wanted), "{ended:?}");
}
