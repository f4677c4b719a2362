//! `berth host --sandbox container` with a stand-in for Apple's program that records its calls; they are compared with
//! `tests/golden/apple_container.json`. Namespaces replace its virtual machines.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::golden::golden;
use crate::host_command::{Place, client};
use crate::procs::{naming, secs, wait_for};
use crate::server::run;

fn place() -> Place {
    let mut place = Place::misbehaving("");
    let program = place.scratch.path().join("container");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/apple_container.sh"), &program).unwrap();
    place.env = vec![("BERTH_CONTAINER_BIN".into(), program.to_str().unwrap().into())];
    place
}

#[test]
fn the_container_program_is_called_as_documented_without_secrets() {
    let place = place();
    std::os::unix::fs::chown(place.scratch.folder("work"), Some(12345), Some(12346)).unwrap();
    for folder in ["shared/a", "shared/b"] {
        std::os::unix::fs::chown(place.scratch.folder(folder), Some(12345), Some(12346)).unwrap();
    }
    let list =
        json!({"allowedRoots": [{"path": place.scratch.path().join("shared"), "allowReadWrite": true}]});
    place.scratch.file("home/.config/openwork/sandbox-mount-allowlist.json", list.to_string());
    let shared = place.scratch.path().join("shared").display().to_string();
    let mounts = format!("--sandbox-mount={shared}/a:a,{shared}/b:b/c:ro");
    let (running, document) = place.start(&[
        "--sandbox=container",
        "--sandbox-memory=1073741824",
        "--sandbox-cpus=1.5",
        "--run-id=it-apple",
        "--sandbox-persist-dir=keep",
        &mounts,
    ]);
    assert_eq!(
        document["sandbox"],
        json!({"backend": "container", "name": "openwork-orchestrator-it-apple"})
    );
    let url = &document["openwork"]["baseUrl"];
    let (token, host_token) = (
        document["openwork"]["token"].as_str().unwrap(),
        document["openwork"]["hostToken"].as_str().unwrap(),
    );
    let shown = client(url, host_token).get(200, "/capabilities")["sandbox"].clone();
    assert_eq!(shown, json!({"enabled": true, "backend": "container", "engine": "apple"}));
    let mount = format!("/w/{}/opencode", document["workspaceId"].as_str().unwrap());
    assert_eq!(client(url, token).get(200, &format!("{mount}/global/health"))["healthy"], true);
    drop(running);

    let scratch = fs::canonicalize(place.scratch.path()).unwrap().display().to_string();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").display().to_string();
    let calls = fs::read_to_string(place.scratch.path().join("calls")).unwrap();
    let own = format!("berth-{}", env!("CARGO_PKG_VERSION"));
    let lines: Vec<&str> = calls.lines().collect();
    golden("apple_container", &json!(lines), &[(&scratch, "at"), (&tests, "tests"), (&own, "own")]);
    let environments = fs::read_to_string(place.scratch.path().join("environments")).unwrap();
    for secret in [token, host_token, "OPENCODE_SERVER_PASSWORD"] {
        assert!(!environments.contains(secret) && !calls.contains(secret));
    }
    let remaining: Vec<_> = fs::read_dir(place.scratch.path().join("work")).unwrap().flatten().collect();
    assert!(remaining.is_empty(), "{remaining:?}");
    wait_for("the end of all processes", secs(10), || naming(&scratch).is_empty().then_some(()));
}

#[test]
fn unsupported_options_are_refused() {
    let place = place();
    place.scratch.file("shared/file", "x");
    let list = json!({"allowedRoots": [{"path": place.scratch.path().join("shared")}]});
    place.scratch.file("home/.config/openwork/sandbox-mount-allowlist.json", list.to_string());
    let file = format!("--sandbox-mount={}/shared/file:x", place.scratch.path().display());
    for (flag, expected) in [
        (file.as_str(), "is no folder, and Apple's containers mount folders only"),
        ("--sandbox-network=none", "--sandbox-network: Apple's containers have a private network only"),
    ] {
        let ended = place.run(&["--openwork-port=0", "--workspace=work", "--sandbox=container", flag]);
        assert!(ended.code == Some(2) && ended.stderr.contains(expected), "{ended:?}");
    }
    let mut command = place.host(&["--openwork-port=0", "--workspace=work", "--sandbox=container"]);
    let ended = run(command.env_remove("BERTH_CONTAINER_BIN"), secs(60));
    let expected = "--sandbox container: Apple container backend is only supported on macOS";
    assert!(ended.code == Some(2) && ended.stderr.contains(expected), "{ended:?}");
}
