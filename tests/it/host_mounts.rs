//! Which folders of the host a sandbox may mount: the cases of OpenWork's orchestrator with its sentences, and the
//! cases in which berth decides differently (`assets/docs/compatibility.md#sandbox-mounts`).

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::host_command::Place;

/// The error once every folder is accepted, because the engine does not exist.
const GOOD: &str = "--sandbox docker: `docker version` failed";

#[test]
fn mounts_are_refused_in_openworks_words() {
    let mut place = Place::misbehaving("");
    place.env = vec![("OPENWORK_DOCKER_BIN".into(), "/bin/false".into())];
    let base = fs::canonicalize(place.scratch.path()).unwrap();
    for folder in ["home/open/a", "home/open/.ssh", "home/open/.environments", "outside", "work", "home/rw/b"]
    {
        fs::create_dir_all(base.join(folder)).unwrap();
    }
    symlink(base.join("home/open/.ssh"), base.join("home/open/keys")).unwrap();
    symlink("/etc", base.join("home/open/system")).unwrap();
    let file = base.join("home/.config/openwork/sandbox-mount-allowlist.json");
    let text = |path: &str| base.join(path).display().to_string();
    let error_of = |mount: &str| {
        let mount = format!("--sandbox-mount={mount}");
        let ended = place.run(&["--openwork-port=0", "--workspace=work", "--sandbox=docker", &mount]);
        assert_eq!(ended.code, Some(2), "{mount}: {ended:?}");
        assert!(ended.stdout.is_empty(), "{mount}: {ended:?}");
        ended.stderr
    };
    let blocked = format!("Additional sandbox mounts are blocked. Create {} to enable.", file.display());
    let error = error_of(&format!("{}:x", text("home/open/a")));
    assert!(
        error.contains(&blocked) && error.contains("does not exist") && error.contains("allowedRoots"),
        "{error}"
    );
    place.scratch.file("home/.config/openwork/sandbox-mount-allowlist.json", "{");
    let error = error_of(&format!("{}:x", text("home/open/a")));
    assert!(error.contains(&blocked) && error.contains("is not JSON"), "{error}");

    let list = json!({"allowedRoots": [{"path": "~/open"}, {"path": "~/rw", "allowReadWrite": true}]});
    place.scratch.file("home/.config/openwork/sandbox-mount-allowlist.json", list.to_string());
    let roots = format!("is not under any allowed root. Allowed: {}, {}", text("home/open"), text("home/rw"));
    let rejected = format!("Sandbox mount rejected (blocked pattern \".ssh\"): {}", text("home/open/.ssh"));
    let absent =
        format!("Sandbox mount host path does not exist: ~/open/none (expanded: {}", text("home/open/none"));
    let usage = "Use hostPath:subpath[:ro|rw].";
    for (mount, expected) in [
        ("~/open/a:x", GOOD),
        ("~/open/a:x:ro", GOOD),
        ("~/rw/b:x:rw", GOOD),
        ("~/open/.environments:x", GOOD),
        ("~/open/a:a..b", GOOD),
        ("~/open/.ssh:x", &rejected),
        // Links are resolved first.
        ("~/open/keys:x", &rejected),
        ("~/open/system:x", "Sandbox mount rejected (it contains the system's configuration"),
        (&format!("{}:x", text("outside")), &format!("Sandbox mount {} {roots}", text("outside"))),
        ("~/open/none:x", &absent),
        ("~/open/a:../x", "Invalid sandbox container subpath: \"../x\""),
        ("~/open/a:/x", "Invalid sandbox container subpath: \"/x\""),
        ("~/open/a:x\\y", "Invalid sandbox container subpath: \"x\\\\y\""),
        ("~/open/a:", "Invalid sandbox container subpath: \"\""),
        ("~/open/a", &format!("Invalid --sandbox-mount value: ~/open/a. {usage}")),
        // With the orchestrator these reach the engine's command line.
        ("~/open/a:x:rox", &format!("Invalid --sandbox-mount value: ~/open/a:x:rox. {usage}")),
        ("[\"~/open/a:x,readonly=false\"]", "Invalid sandbox container subpath: \"x,readonly=false\""),
        ("[\"~/open/a\\n:x\"]", usage),
    ] {
        let error = error_of(mount);
        assert!(error.contains(expected), "{mount}: {error}");
    }
    let without = place.run(&["--openwork-port=0", "--workspace=work", "--sandbox-mount=~/open/a:x"]);
    assert!(without.code == Some(2) && without.stderr.contains("no effect without a sandbox"), "{without:?}");
}

#[test]
fn workspaces_larger_than_a_project_are_refused_without_a_flag() {
    let mut place = Place::misbehaving("");
    place.env = vec![("OPENWORK_DOCKER_BIN".into(), "/bin/false".into())];
    fs::create_dir_all(place.data().join("inside")).unwrap();
    fs::create_dir_all(place.scratch.path().join("home/keys/.ssh")).unwrap();
    for folder in ["/", "home", "home/keys", "data", "data/inside", "/etc", "."] {
        let workspace = format!("--workspace={folder}");
        let arguments = ["--openwork-port=0", "--sandbox=docker", &workspace];
        let ended = place.run(&arguments);
        assert!(
            ended.code == Some(2)
                && ended.stderr.contains("--workspace: ")
                && ended.stderr.contains("cannot be mounted")
                && ended.stderr.contains("--sandbox-any-workspace"),
            "{folder}: {ended:?}"
        );
        let ended = place.run(&[&arguments[..], &["--sandbox-any-workspace"]].concat());
        assert!(ended.code == Some(2) && ended.stderr.contains(GOOD), "{folder}: {ended:?}");
    }
}
