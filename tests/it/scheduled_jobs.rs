//! `/workspace/:id/scheduler/jobs`: jobs of the opencode-scheduler plugin, as observed of openwork-server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};

use crate::fixture::{Place, seeded};
use crate::procs::{secs, wait_for};
use crate::server::{Server, Setup};

fn put(folder: &Path, rel: &str, text: &str) {
    let path = folder.join(rel);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn job(slug: &str, name: &str) -> Value {
    json!({"slug": slug, "name": name, "schedule": "0 9 * * *", "prompt": "Search", "createdAt": "2026-01-01T00:00:00Z"})
}

fn put_job(home: &Path, slug: &str, name: &str) {
    put(home, &format!(".config/opencode/jobs/{slug}.json"), &job(slug, name).to_string());
    for kind in ["service", "timer"] {
        put(home, &format!(".config/systemd/user/opencode-job-{slug}.{kind}"), "[Unit]\n");
    }
}

fn start(approval: &str) -> (Server, PathBuf, String) {
    let server = Setup::new().arg(format!("--approval={approval}")).start();
    let home = server.scratch().path().join("home");
    let id = server.owner().get(200, "/workspaces")["items"][0]["id"].as_str().unwrap().to_owned();
    (server, home, format!("/workspace/{id}/scheduler/jobs"))
}

#[test]
fn jobs_are_listed_and_deleted_with_their_units() {
    let (server, home, jobs) = start("auto");
    let viewer = {
        let created = server.owner().post(201, "/tokens", json!({"scope": "viewer"}));
        server.with_token(created["token"].as_str().unwrap())
    };
    assert_eq!(viewer.get(200, &jobs), json!({"items": []}));
    put_job(&home, "standing-desk", "Standing desk");
    put_job(&home, "desk", "Another");
    // Neither is a job, and a path in a slug is not part of a unit's name.
    put(&home, ".config/opencode/jobs/torn.json", "{");
    put(&home, ".config/opencode/jobs/other.json", "{\"name\": \"x\"}");
    put(&home, ".config/opencode/jobs/notes.md", "x");
    put(&home, ".config/opencode/jobs/out.json", &job("x/../../../../kept", "Out").to_string());
    put(&home, ".config/kept.timer", "");

    let listed = viewer.get(200, &jobs);
    let names: Vec<_> = listed["items"].as_array().unwrap().iter().map(|job| &job["name"]).collect();
    assert_eq!(names, ["Another", "Out", "Standing desk"]);
    assert_eq!(listed["items"][2], job("standing-desk", "Standing desk"));
    let mounted = format!("/w/{}{jobs}", jobs.split('/').nth(2).unwrap());
    assert_eq!(viewer.get(200, &mounted), listed);

    let collaborator = server.collaborator();
    viewer.refused(403, "forbidden", "DELETE", &format!("{jobs}/desk"), None);
    let response = collaborator.refused(404, "job_not_found", "DELETE", &format!("{jobs}/standing"), None);
    assert_eq!(response["message"], "Job \"standing\" not found.");
    for name in ["Standing%20desk", "desk", "out", "torn"] {
        let reply = collaborator.call("DELETE", &format!("{jobs}/{name}"), None);
        assert_eq!(reply.status, if name == "torn" { 404 } else { 200 }, "{name}: {reply}");
        if name == "desk" {
            assert_eq!(reply.value(), json!({"job": job("desk", "Another")}));
        }
    }
    assert_eq!(viewer.get(200, &jobs), json!({"items": []}));
    assert_eq!(fs::read_dir(home.join(".config/systemd/user")).unwrap().count(), 0);
    assert!(
        home.join(".config/kept.timer").exists() && home.join(".config/opencode/jobs/torn.json").exists()
    );
    collaborator.refused(404, "workspace_not_found", "GET", "/workspace/ws_none/scheduler/jobs", None);
}

/// With a stand-in for systemctl that records its calls, and a user manager that seems to run.
#[test]
fn the_timer_of_a_deleted_job_is_stopped() {
    let setup = Setup::new().arg("--approval=auto");
    let scratch = setup.scratch().path().to_owned();
    let (tools, calls) = (setup.scratch().folder("tools"), scratch.join("calls"));
    let script = format!(
        "#!/bin/sh\nprintf '%s ' \"$XDG_RUNTIME_DIR\" \"$@\" >> {calls}; echo >> {calls}\n\
         case $* in *broken*) echo 'no such bus'; exit 1 ;; esac\n",
        calls = calls.display()
    );
    put(&tools, "systemctl", &script);
    fs::set_permissions(tools.join("systemctl"), PermissionsExt::from_mode(0o755)).unwrap();
    // Its folder is the first of the PATH in which tools are looked up.
    let place = format!(
        "mount --bind {} /usr/local/sbin; mount -t tmpfs none /run/user
         mkdir -p /run/user/0/systemd; : > /run/user/0/systemd/private; exec \"$@\"",
        tools.display()
    );
    let words = ["unshare", "--mount", "--propagation=private", "sh", "-ec", &place, "sh"];
    let server = setup.start_through(&words);
    let home = server.scratch().path().join("home");
    let id = server.owner().get(200, "/workspaces")["items"][0]["id"].as_str().unwrap().to_owned();
    let jobs = format!("/workspace/{id}/scheduler/jobs");
    put_job(&home, "desk", "Desk");
    put_job(&home, "broken", "Broken");
    for (file, slug) in [("path", "x/../../../../etc/systemd/user/default"), ("words", "x --now y")] {
        put(&home, &format!(".config/opencode/jobs/{file}.json"), &job(slug, file).to_string());
    }
    for name in ["desk", "broken", "path", "words"] {
        server.collaborator().delete(200, &format!("{jobs}/{name}"));
    }
    let calls = fs::read_to_string(&calls).unwrap();
    let calls: Vec<&str> = calls.lines().map(str::trim).collect();
    let call = |slug: &str| format!("/run/user/0 --user disable --now -- opencode-job-{slug}.timer");
    assert_eq!(calls, [call("desk"), call("broken")], "no other slug is part of a unit's name");
    let line = server.stdout.line_with("opencode-job-broken.timer was not stopped", secs(10));
    assert!(line.as_deref().is_some_and(|line| line.contains("no such bus")), "{}", server.log());
}

#[test]
fn a_deletion_is_approved_for_the_job_that_was_shown() {
    let (server, home, jobs) = start("manual");
    put_job(&home, "desk", "Desk");
    let delete = || {
        let (client, path) = (server.collaborator(), format!("{jobs}/desk"));
        let waiting = thread::spawn(move || client.call("DELETE", &path, None));
        let approval = wait_for("a question", secs(60), || {
            server.owner().get(200, "/approvals")["items"].get(0).cloned()
        });
        (approval, waiting)
    };
    let allow = |approval: &Value| {
        server.owner().post(
            200,
            &format!("/approvals/{}", approval["id"].as_str().unwrap()),
            json!({"reply": "allow"}),
        )
    };
    let (approval, waiting) = delete();
    assert_eq!(
        (&approval["action"], &approval["summary"]),
        (&json!("scheduler.delete"), &json!("Delete scheduled job Desk"))
    );
    let units = home.join(".config/systemd/user/opencode-job-desk");
    let file = home.join(".config/opencode/jobs/desk.json");
    let paths = [file.clone(), units.with_extension("service"), units.with_extension("timer")];
    assert_eq!(approval["paths"], json!(paths));
    put_job(&home, "desk", "Changed");
    allow(&approval);
    let reply = waiting.join().unwrap();
    assert_eq!((reply.status, &reply.value()["code"]), (409, &json!("approval_outdated")));
    assert!(file.exists());
    let (approval, waiting) = delete();
    allow(&approval);
    assert_eq!(waiting.join().unwrap().status, 200);
    assert!(paths.iter().all(|path| !path.exists()));
    let audit = server.owner().get(200, &jobs.replace("scheduler/jobs", "audit"));
    assert!(audit.to_string().contains("scheduler.delete"), "{audit}");
}

/// A container's OpenCode has its home inside; it does not see jobs of the server's user.
#[test]
fn a_container_has_the_jobs_of_its_own_home() {
    let server = seeded().arg("--approval=auto").start();
    put_job(&server.scratch().path().join("home"), "host", "Host");
    let place = Place::ready(&server, json!({}));
    let text = job("inside", "Inside").to_string();
    place.sh(&format!(
        "mkdir -p ~/.config/opencode/jobs && echo '{text}' > ~/.config/opencode/jobs/inside.json"
    ));
    let all = server.owner().get(200, "/workspaces");
    let all = all["items"].as_array().unwrap();
    let id = all.iter().find(|one| one["name"] == "box").unwrap()["id"].as_str().unwrap().to_owned();
    let jobs = format!("/workspace/{id}/scheduler/jobs");
    let owner = server.owner();
    assert_eq!(owner.get(200, &jobs), json!({"items": [job("inside", "Inside")]}));
    owner.refused(404, "job_not_found", "DELETE", &format!("{jobs}/host"), None);
    assert_eq!(owner.delete(200, &format!("{jobs}/inside")), json!({"job": job("inside", "Inside")}));
    assert_eq!(place.sh("ls ~/.config/opencode/jobs"), "");
    place.delete();
}
