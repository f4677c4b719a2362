//! The container image: built by a Docker engine of the tests, run without root and privileges, with all persistent
//! data on its two volumes.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::docker::{Docker, IMAGE};
use crate::fixture;
use crate::procs::{secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{BINARY, CLIENT_TOKEN, Ended, HOST_TOKEN, NIL, run};

/// Sends a request from inside the container, since its network is private.
fn call(docker: &Docker, name: &str, method: &str, path: &str, body: &str) -> Value {
    let answer = send(docker, name, method, path, body);
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// Like [`call`], with the body of the answer as it is.
fn send(docker: &Docker, name: &str, method: &str, path: &str, body: &str) -> String {
    let script = r#"exec 3<>/dev/tcp/127.0.0.1/8787
        printf '%s %s HTTP/1.1\r\nHost: localhost\r\nX-OpenWork-Host-Token: %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s' \
            "$1" "$2" "$3" "${#4}" "$4" >&3
        cat <&3"#;
    let ended = docker.ask(&["exec", name, "bash", "-c", script, "bash", method, path, HOST_TOKEN, body]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (_, answer) = ended.stdout.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{ended:?}"));
    answer.to_owned()
}

/// Waits for the health check of the image.
fn wait_healthy(docker: &Docker, name: &str) {
    wait_for("the image to be healthy", secs(60), || {
        let state = docker.inspect(name)["State"].clone();
        assert_eq!(state["Running"], true, "{state} {:?}", docker.ask(&["logs", name]));
        (state["Health"]["Status"] == "healthy").then_some(())
    });
}

/// Builds the image on this base.
fn build(docker: &Docker, tag: &str, base: &str) {
    let scratch = Scratch::new();
    let mut build = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/packaging/container/build"));
    build.args([BINARY, tag, "--build-arg"]).arg(format!("BASE={base}"));
    let tools = docker.program().parent().unwrap().display().to_string();
    build.env("PATH", format!("{tools}:{}", std::env::var("PATH").unwrap()));
    build.env("DOCKER_HOST", docker.host()).env("DOCKER_BUILDKIT", "0").env("HOME", scratch.path());
    let built = run(&mut build, secs(120));
    assert_eq!(built.code, Some(0), "{built:?}");
}

#[test]
fn the_image_serves_without_root_and_keeps_everything_on_its_volumes() {
    let docker = Docker::shared();
    let scratch = Scratch::new();
    build(&docker, "it-berth", IMAGE);
    let image: Value = serde_json::from_str(&docker.ask(&["image", "inspect", "it-berth"]).stdout).unwrap();
    let config = &image[0]["Config"];
    assert_eq!(config["User"], "1000:1000");
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert!(
        config["Volumes"]["/data"].is_object() && config["Volumes"]["/workspace"].is_object(),
        "{config}"
    );

    // Other machines could reach this server: without tokens it does not start.
    let open = docker.ask(&["run", "--rm", "--network", "none", "it-berth"]);
    assert!(open.code == Some(2) && open.stderr.contains("there are no tokens yet"), "{open:?}");

    let secrets = scratch.folder("secrets");
    for (name, token) in [("host-token", HOST_TOKEN), ("token", CLIENT_TOKEN)] {
        fs::write(secrets.join(name), token).unwrap();
    }
    let secrets = format!("{}:/run/secrets:ro", secrets.display());
    let start = |name: &str| -> Ended {
        // The options of the service `berth` in docker-compose.yml.
        let words = [
            "run",
            "--detach",
            "--name",
            name,
            "--network",
            "none",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges:true",
            "--volume",
            "it-workspace:/workspace",
            "--volume",
            "it-data:/data",
            "--volume",
            &secrets,
            "--env",
            "OPENWORK_HOST_TOKEN_FILE=/run/secrets/host-token",
            "--env",
            "OPENWORK_TOKEN_FILE=/run/secrets/token",
            "--health-interval",
            "1s",
            "it-berth",
        ];
        let started = docker.ask(&words);
        assert_eq!(started.code, Some(0), "{started:?}");
        wait_healthy(&docker, name);
        started
    };
    start("it-berth-1");
    let exec = format!("/api/workspaces/{NIL}/exec");
    let seen = call(&docker, "it-berth-1", "POST", &exec, r#"{"command": "id -u; pwd; echo kept > kept"}"#);
    assert_eq!(seen["stdout"], "1000\n/workspace\n", "{seen}");
    call(&docker, "it-berth-1", "POST", "/api/workspaces", r#"{"name": "inside"}"#);
    let token = call(&docker, "it-berth-1", "POST", "/tokens", r#"{"scope": "viewer", "label": "stays"}"#);
    assert!(token["token"].is_string(), "{token}");
    let stopped = docker.ask(&["stop", "it-berth-1"]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert_eq!(docker.inspect("it-berth-1")["State"]["ExitCode"], 0);
    docker.ask(&["rm", "it-berth-1"]);

    // Another container with the same volumes has the same data.
    start("it-berth-2");
    let seen = call(&docker, "it-berth-2", "POST", &exec, r#"{"command": "cat kept"}"#);
    assert_eq!(seen["stdout"], "kept\n", "{seen}");
    assert_eq!(call(&docker, "it-berth-2", "GET", "/tokens", "")["items"][0]["label"], "stays");
    let all = call(&docker, "it-berth-2", "GET", "/api/workspaces", "");
    assert!(all.as_array().unwrap().iter().any(|one| one["name"] == "inside"), "{all}");
    docker.ask(&["rm", "--force", "it-berth-2"]);
    docker.ask(&["volume", "rm", "it-workspace", "it-data"]);
    docker.ask(&["image", "rm", "it-berth"]);
}

/// Programs of Debian's slim image and of PACKAGES, which the test does not download.
const PACKAGES: [&str; 10] =
    ["systemd-nspawn", "mount", "umount", "setpriv", "unshare", "nsenter", "getent", "tar", "ip", "nft"];

/// Returns whether a capability is in the bounding set of the tests, without which no engine of theirs can give it.
fn is_grantable(capability: &str) -> bool {
    // Numbers of linux/capability.h.
    let number = match capability {
        "NET_ADMIN" => 12,
        "SYS_ADMIN" => 21,
        "SYS_RESOURCE" => 24,
        other => panic!("add the number of CAP_{other}"),
    };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << number) != 0
}

#[test]
fn the_privileged_profile_runs_container_workspaces() {
    const NAME: &str = "it-berth-privileged";
    // The service `berth-privileged` in docker-compose.yml, whose options become those of `docker run`.
    let compose = include_str!("../../assets/packaging/container/docker-compose.yml");
    let (_, profile) = compose.split_once("  berth-privileged:\n").unwrap();
    let (profile, _) = profile.split_once("\n\n").unwrap();
    let mut options = Vec::new();
    for line in profile.lines() {
        let (key, value) = line.trim().split_once(": ").unwrap();
        let values = value.trim_matches(['[', ']']).split(", ").map(|one| one.trim_matches('"').to_owned());
        let option = match key {
            "<<" | "image" | "profiles" => continue,
            "user" => "--user",
            "cap_add" => "--cap-add",
            "security_opt" => "--security-opt",
            "cgroup" => "--cgroupns",
            "volumes" => "--volume",
            other => panic!("{other} is not among the options that this test knows"),
        };
        for value in values {
            match value.as_str() {
                capability if option == "--cap-add" && !is_grantable(capability) => continue,
                // The test's own folder is used below.
                "workspace:/workspace" | "data:/data" => continue,
                _ => options.extend([option.to_owned(), value]),
            }
        }
    }

    let docker = Docker::shared();
    let scratch = Scratch::new();
    docker.import("it-nspawn", &PACKAGES);
    build(&docker, NAME, "it-nspawn");
    fixture::copy_image(&scratch.folder("data/berth"));
    let volume = format!("{}:/data", scratch.path().join("data").display());
    let tokens = [format!("OPENWORK_HOST_TOKEN={HOST_TOKEN}"), format!("OPENWORK_TOKEN={CLIENT_TOKEN}")];
    let mut words = vec!["run", "--detach", "--name", NAME, "--network", "none", "--health-interval", "1s"];
    words.extend(["--volume", &volume, "--env", &tokens[0], "--env", &tokens[1]]);
    words.extend(options.iter().map(String::as_str));
    words.push(NAME);
    let started = docker.ask(&words);
    assert_eq!(started.code, Some(0), "{started:?}");
    wait_healthy(&docker, NAME);

    let body = r#"{"name": "box", "workspace_type": "container", "network": "private"}"#;
    let made = call(&docker, NAME, "POST", "/api/workspaces", body);
    let path = format!("/api/workspaces/{}", made["id"].as_str().unwrap());
    let body = format!(r#"{{"distro": "{}"}}"#, fixture::DISTRO);
    call(&docker, NAME, "POST", &format!("{path}/build"), &body);
    wait_for("the workspace to be built", secs(60), || {
        let seen = call(&docker, NAME, "GET", &path, "");
        assert_ne!(seen["status"], "error", "{seen} {:?}", docker.ask(&["logs", NAME]));
        (seen["status"] == "ready").then_some(())
    });
    let exec = format!("{path}/exec");
    let command = r#"{"command": "id -u; grep -c host0: /proc/net/dev; echo kept > /root/kept"}"#;
    let seen = call(&docker, NAME, "POST", &exec, command);
    assert_eq!(seen["stdout"], "0\n1\n", "{seen} {:?}", docker.ask(&["logs", NAME]));

    // The next start of the Docker container has the workspace as well.
    let again = docker.ask(&["restart", NAME]);
    assert_eq!(again.code, Some(0), "{again:?}");
    wait_healthy(&docker, NAME);
    let seen = call(&docker, NAME, "POST", &exec, r#"{"command": "cat /root/kept"}"#);
    assert_eq!(seen["stdout"], "kept\n", "{seen} {:?}", docker.ask(&["logs", NAME]));
    let deleted = send(&docker, NAME, "DELETE", &path, "");
    assert!(deleted.contains("deleted"), "{deleted}");
    let stopped = docker.ask(&["stop", NAME]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert_eq!(docker.inspect(NAME)["State"]["ExitCode"], 0, "{:?}", docker.ask(&["logs", NAME]));
    docker.ask(&["rm", "--volumes", NAME]);
    docker.ask(&["image", "rm", NAME, "it-nspawn"]);
}
