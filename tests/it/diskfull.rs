//! A full disk: an error with its own code, no torn state file, and normal operation once there is space.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::fixture::DISTRO;
use crate::procs::{secs, wait_for};
use crate::server::{NIL, Server, Setup};

/// A small mounted file system, unmounted on drop.
pub struct SmallDisk(pub PathBuf);

impl SmallDisk {
    pub fn new(setup: &Setup, size: &str) -> SmallDisk {
        let path = setup.scratch().folder("small-disk");
        let options = format!("size={size},mode=700");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "it-small-disk"]).arg(&path).status();
        assert!(done.unwrap().success(), "cannot mount a tmpfs: these tests need root");
        SmallDisk(path)
    }

    /// Fills the disk to the last byte.
    pub fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).unwrap();
        for size in [64 << 10, 4 << 10, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    pub fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The scratch folder may have unmounted it already.
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

fn state_is_whole(data: &Path) {
    let mut seen = 0;
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        // Deleted workspaces are removed in the background.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "json") {
                let Ok(text) = fs::read(&path) else {
                    assert!(!path.exists(), "{} cannot be read", path.display());
                    continue;
                };
                let parsed: Result<Value, _> = serde_json::from_slice(&text);
                assert!(parsed.is_ok(), "torn: {} {:?}", path.display(), String::from_utf8_lossy(&text));
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "no state file in {}", data.display());
}

#[test]
fn state_files_survive_a_full_disk() {
    let setup = Setup::new();
    let disk = SmallDisk::new(&setup, "2m");
    let setup = setup.data(disk.0.join("data"));
    let server = setup.start();
    let owner = server.owner();
    let created = owner.post(200, "/api/workspaces", json!({"name": "before"}));
    let path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    let before = owner.get(200, "/api/workspaces");

    disk.fill();
    let large = "x".repeat(100_000);
    for (method, path, body) in [
        ("POST", "/api/workspaces", json!({"name": "full", "env_vars": {"A": large}})),
        (
            "POST",
            "/api/workspaces",
            json!({"name": "full", "workspace_type": "container", "env_vars": {"A": large}}),
        ),
        ("PUT", &path, json!({"name": "renamed", "env_vars": {"A": large}})),
    ] {
        let answer = owner.refused(507, "disk_full", method, path, Some(body));
        assert!(answer["message"].as_str().unwrap().to_lowercase().contains("space"), "{answer}");
        assert_eq!(
            owner.get(200, "/api/workspaces"),
            before,
            "a workspace that could not be stored is listed"
        );
    }
    let exec = format!("/api/workspaces/{NIL}/exec");
    let reply = owner.call("POST", &exec, Some(&json!({"command": "echo hi"})));
    assert!(reply.status == 507 || reply.value()["stdout"] == "hi\n", "{reply}");
    state_is_whole(&server.data);
    server.crash();
    let server = setup.start();
    assert_eq!(
        server.owner().get(200, "/api/workspaces"),
        before,
        "different after a restart on the full disk"
    );

    disk.free();
    let owner = server.owner();
    owner.put(200, &path, json!({"name": "after"}));
    owner.post(200, "/api/workspaces", json!({"name": "new"}));
    let after = owner.get(200, "/api/workspaces");
    assert_eq!(after.as_array().unwrap().len(), 3);
    state_is_whole(&server.data);
    let remaining = leftovers(&server);
    assert!(remaining.is_empty(), "partial files remain: {remaining:?}");
    server.stop();
    assert_eq!(setup.start().owner().get(200, "/api/workspaces"), after);
}

/// Temporary files beside the state files.
fn leftovers(server: &Server) -> Vec<PathBuf> {
    let entries = fs::read_dir(&server.data).unwrap().flatten().map(|entry| entry.path());
    let named_so =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains("tmp"));
    entries.filter(|path| named_so(path) && path.is_file()).collect()
}

#[test]
fn a_build_that_failed_on_a_full_disk_succeeds_with_more_space() {
    crate::fixture::tools();
    let setup = Setup::new();
    let disk = SmallDisk::new(&setup, "2m");
    let setup = setup.data(disk.0.join("data"));
    let server = setup.start();
    let owner = server.owner();
    let body = json!({"name": "big", "workspace_type": "container", "distro": DISTRO});
    let created = owner.post(200, "/api/workspaces", body);
    let path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    disk.fill();
    let reply = owner.call("POST", &format!("{path}/build"), None);
    if reply.status == 200 {
        disk.free();
        // A bootstrap needs a hundred times this disk, so the build always fails.
        disk.fill();
        let done = wait_for("the build to fail", secs(300), || {
            let now = owner.get(200, &path);
            (now["status"] != "building").then_some(now)
        });
        assert_eq!(done["status"], "error", "{done}");
        let message = done["error_message"].as_str().unwrap_or_default();
        assert!(message.contains("is full") && message.contains("--data-dir"), "{message}");
    } else {
        assert_eq!((reply.status, &reply.value()["code"]), (507, &json!("disk_full")), "{reply}");
        assert_eq!(owner.get(200, &path)["status"], "pending");
    }
    disk.free();
    owner.get(200, "/api/workspaces");
    // With more space the same workspace is built; an image that is already there avoids the bootstrap.
    let larger = Command::new("mount").args(["-o", "remount,size=1g"]).arg(&disk.0).status();
    assert!(larger.unwrap().success());
    crate::fixture::copy_image(&server.data);
    assert_eq!(owner.call("POST", &format!("{path}/build"), None).status, 200);
    let done = wait_for("the build to end", secs(120), || {
        let now = owner.get(200, &path);
        (now["status"] != "building").then_some(now)
    });
    assert_eq!(done["status"], "ready", "{done}");
    owner.delete(200, &path);
    state_is_whole(&server.data);
}
