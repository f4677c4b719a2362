//! The container image: built by a Docker engine of the tests, run without root and privileges, with all persistent
//! data on its two volumes.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::docker::{Docker, IMAGE};
use crate::procs::{secs, wait_for};
use crate::scratch::Scratch;
use crate::server::{BINARY, CLIENT_TOKEN, Ended, HOST_TOKEN, NIL, run};

/// Sends a request from inside the container, since its network is private.
fn call(docker: &Docker, name: &str, method: &str, path: &str, body: &str) -> Value {
    let script = r#"exec 3<>/dev/tcp/127.0.0.1/8787
        printf '%s %s HTTP/1.1\r\nHost: localhost\r\nX-OpenWork-Host-Token: %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s' \
            "$1" "$2" "$3" "${#4}" "$4" >&3
        cat <&3"#;
    let ended = docker.ask(&["exec", name, "bash", "-c", script, "bash", method, path, HOST_TOKEN, body]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (_, answer) = ended.stdout.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{ended:?}"));
    serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
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
        wait_for("the image to be healthy", secs(60), || {
            let state = docker.inspect(name)["State"].clone();
            assert_eq!(state["Running"], true, "{state} {:?}", docker.ask(&["logs", name]));
            (state["Health"]["Status"] == "healthy").then_some(())
        });
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
