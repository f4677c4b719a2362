//! The workspace record: create, read, update and delete; no record is lost, and no folder is shared.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value, json};

use crate::fixture::DISTRO;
use crate::meeting::Meeting;
use crate::server::{NIL, Server, Setup, read};

const FIELDS: [&str; 24] = [
    "config_profile",
    "created_at",
    "distro",
    "env_vars",
    "error_message",
    "id",
    "idle_timeout_secs",
    "image",
    "init_script",
    "init_scripts",
    "mcps",
    "mounts",
    "name",
    "network",
    "path",
    "plugins",
    "resources",
    "shared_network",
    "skills",
    "status",
    "tailscale_mode",
    "template",
    "tools",
    "workspace_type",
];

fn path_of(workspace: &Value) -> PathBuf {
    PathBuf::from(workspace["path"].as_str().unwrap())
}

fn url(workspace: &Value) -> String {
    format!("/api/workspaces/{}", workspace["id"].as_str().unwrap())
}

#[test]
fn the_default_workspace() {
    let server = Server::start();
    let reply = server.owner().get(200, &format!("/api/workspaces/{NIL}"));
    let mut names: Vec<&str> = reply.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, FIELDS, "every field, nulls too, and no other");
    assert_eq!(
        (&reply["id"], &reply["workspace_type"], &reply["status"]),
        (&json!(NIL), &json!("host"), &json!("ready"))
    );
    for (field, value) in [
        ("error_message", Value::Null),
        ("skills", json!([])),
        ("tools", json!([])),
        ("plugins", json!([])),
        ("template", Value::Null),
        ("distro", Value::Null),
        ("env_vars", json!({})),
        ("init_script", Value::Null),
        ("init_scripts", json!([])),
        ("shared_network", Value::Null),
        ("tailscale_mode", Value::Null),
        ("mcps", json!([])),
        ("config_profile", Value::Null),
    ] {
        assert_eq!(reply[field], value, "{field}");
    }
    assert_eq!(path_of(&reply), fs::canonicalize(&server.work).unwrap());
    let created = reply["created_at"].as_str().unwrap();
    assert!(created.len() > 20 && created.ends_with('Z') && created.as_bytes()[10] == b'T', "{created}");
}

#[test]
fn create_takes_every_field() {
    let server = Server::start();
    let owner = server.owner();
    let mut created = owner.post(200, "/api/workspaces", json!({
        "name": "my workspace $(x);", "workspace_type": "container", "skills": ["python-dev", " go ", "", "go"],
        "tools": ["t"], "plugins": ["p"], "distro": "jammy", "env_vars": {"KEY": "VALUE", "_x": ""},
        "init_script": "#!/bin/bash\necho hi\n", "shared_network": false, "tailscale_mode": "tailnet_only",
        "mcps": ["m"], "config_profile": "c", "not_known": 1
    }));
    // Returned beside the record: unknown fields.
    let warnings = created.as_object_mut().unwrap().remove("warnings").unwrap();
    let missing = |name: &str| json!(format!("The library has no skill `{name}` yet"));
    assert_eq!(warnings, json!(["unknown field `not_known`", missing("go"), missing("python-dev")]));
    assert_eq!((&created["name"], &created["status"]), (&json!("my workspace $(x);"), &json!("pending")));
    assert_eq!(
        (&created["workspace_type"], &created["distro"]),
        (&json!("container"), &json!("ubuntu-jammy"))
    );
    assert_eq!(created["env_vars"], json!({"KEY": "VALUE", "_x": ""}));
    assert_eq!(
        (&created["tools"], &created["plugins"], &created["mcps"]),
        (&json!(["t"]), &json!(["p"]), &json!(["m"]))
    );
    assert_eq!(
        (&created["shared_network"], &created["tailscale_mode"]),
        (&json!(false), &json!("tailnet_only"))
    );
    assert_eq!(
        (&created["config_profile"], &created["init_script"]),
        (&json!("c"), &json!("#!/bin/bash\necho hi\n"))
    );
    assert_eq!(owner.get(200, &url(&created)), created);
    assert!(
        path_of(&created).starts_with(fs::canonicalize(&server.data).unwrap()),
        "the folder of a container is in the data folder: {created}"
    );
}

#[test]
fn aliases_are_stored_in_their_canonical_form() {
    let server = Server::start();
    for (alias, name) in [
        ("noble", "ubuntu-noble"),
        ("ubuntu-noble", "ubuntu-noble"),
        ("jammy", "ubuntu-jammy"),
        ("bookworm", "debian-bookworm"),
        ("arch", "arch-linux"),
        ("archlinux", "arch-linux"),
    ] {
        let body = json!({"name": "a", "workspace_type": "chroot", "distro": alias});
        let created = server.owner().post(200, "/api/workspaces", body);
        assert_eq!(
            (&created["distro"], &created["workspace_type"]),
            (&json!(name), &json!("container")),
            "{alias}"
        );
    }
}

#[test]
fn a_host_workspace_gets_a_folder() {
    let server = Server::start();
    let owner = server.owner();
    let created = owner.post(200, "/api/workspaces", json!({"name": "h"}));
    assert_eq!((&created["workspace_type"], &created["status"]), (&json!("host"), &json!("ready")));
    assert!(
        path_of(&created).is_dir() && path_of(&created).starts_with(fs::canonicalize(&server.data).unwrap())
    );
    let inside = fs::canonicalize(&server.work).unwrap().join("inside");
    fs::create_dir(&inside).unwrap();
    let created = owner.post(200, "/api/workspaces", json!({"name": "i", "path": inside}));
    assert_eq!(path_of(&created), inside);
}

#[test]
fn lists_are_sorted_by_name() {
    let server = Server::start();
    for name in ["zebra", "apple", "mango", "apple"] {
        server.owner().post(200, "/api/workspaces", json!({"name": name}));
    }
    let list = server.owner().get(200, "/api/workspaces");
    let names: Vec<_> = list.as_array().unwrap().iter().map(|w| w["name"].as_str().unwrap()).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(names, sorted);
    assert_eq!(names.len(), 5);
}

#[test]
fn workspaces_with_the_same_name_never_share_a_folder() {
    let server = Server::start();
    let owner = server.owner();
    for kind in ["host", "container"] {
        let body = json!({"name": "twin", "workspace_type": kind, "distro": DISTRO});
        let one = owner.post(200, "/api/workspaces", body.clone());
        let two = owner.post(200, "/api/workspaces", body);
        assert_ne!(one["id"], two["id"]);
        let (a, b) = (path_of(&one), path_of(&two));
        assert!(!a.starts_with(&b) && !b.starts_with(&a), "{} and {}", a.display(), b.display());
        owner.delete(200, &url(&one));
        owner.get(200, &url(&two));
    }
}

#[test]
fn put_changes_only_the_given_fields() {
    let server = Server::start();
    let owner = server.owner();
    for name in ["a", "b", "c"] {
        let content = format!("---\nname: {name}\ndescription: d\n---\n");
        owner.put(200, &format!("/api/library/skill/{name}"), json!({"content": content}));
    }
    let created = owner.post(
        200,
        "/api/workspaces",
        json!({
            "name": "w", "workspace_type": "container", "distro": "noble", "skills": ["a"], "tools": ["t"],
            "env_vars": {"A": "1"}, "init_script": "x", "config_profile": "c", "shared_network": true
        }),
    );
    let url = url(&created);
    let same = owner.put(200, &url, json!({}));
    assert_eq!(same, created, "an empty update changes nothing");
    let nulls = owner.put(
        200,
        &url,
        json!({"name": null, "skills": null, "init_script": null, "shared_network": null}),
    );
    assert_eq!(nulls, created, "null is the same as not given");
    let put = owner.put(200, &url, json!({
        "name": "renamed", "skills": ["b", "c"], "tools": [], "env_vars": {"B": "2"}, "distro": "bookworm",
        "init_scripts": ["f"], "mcps": ["m"], "shared_network": false, "tailscale_mode": "exit_node", "template": "label"
    }));
    assert_eq!(
        (&put["name"], &put["skills"], &put["tools"]),
        (&json!("renamed"), &json!(["b", "c"]), &json!([]))
    );
    assert_eq!((&put["env_vars"], &put["distro"]), (&json!({"B": "2"}), &json!("debian-bookworm")));
    assert_eq!((&put["init_scripts"], &put["mcps"]), (&json!(["f"]), &json!(["m"])));
    assert_eq!((&put["shared_network"], &put["tailscale_mode"]), (&json!(false), &json!("exit_node")));
    assert_eq!((&put["template"], &put["init_script"]), (&json!("label"), &json!("x")));
    for field in ["id", "path", "workspace_type", "status", "created_at"] {
        assert_eq!(put[field], created[field], "{field}");
    }
    let blank = json!({"template": "", "distro": "", "init_script": " ", "config_profile": ""});
    let put = owner.put(200, &url, blank);
    for field in ["template", "distro", "init_script", "config_profile"] {
        assert_eq!(put[field], Value::Null, "{field}");
    }
    assert_eq!(owner.get(200, &url), put);
    // Type and folder are immutable; a client that sends the whole record back changes neither.
    let mut whole = put.clone();
    whole["path"] = json!("/etc");
    whole["workspace_type"] = json!("host");
    assert_eq!(owner.put(200, &url, whole), put);
    let nil = owner.put(200, &format!("/api/workspaces/{NIL}"), json!({"name": "mine"}));
    assert_eq!(nil["name"], "mine");
}

#[test]
fn parallel_puts_of_different_fields_lose_nothing() {
    const ROUNDS: usize = 200;
    let server = Server::start();
    let created = server.owner().post(200, "/api/workspaces", json!({"name": "w"}));
    let (url, start) = (url(&created), Meeting::of(2));
    thread::scope(|scope| {
        for field in ["skills", "plugins"] {
            let (url, start, server) = (&url, &start, &server);
            scope.spawn(move || {
                let owner = server.owner();
                for round in 0..ROUNDS {
                    start.wait();
                    let put = owner.put(200, url, json!({field: [format!("{field}-{round}")]}));
                    assert_eq!(put[field], json!([format!("{field}-{round}")]), "round {round}");
                    start.wait();
                    let now = owner.get(200, url);
                    for field in ["skills", "plugins"] {
                        assert_eq!(now[field], json!([format!("{field}-{round}")]), "lost in round {round}");
                    }
                }
            });
        }
    });
}

#[test]
fn workspaces_are_kept_across_a_restart() {
    let setup = Setup::new();
    let server = setup.start();
    let owner = server.owner();
    let stored = owner.post(200, "/api/workspaces", json!({"name": "kept", "env_vars": {"A": "1"}}));
    let removed = owner.post(200, "/api/workspaces", json!({"name": "gone"}));
    let content = json!({"content": "---\nname: s\ndescription: d\n---\n"});
    owner.put(200, "/api/library/skill/s", content);
    let stored = owner.put(200, &url(&stored), json!({"skills": ["s"]}));
    owner.delete(200, &url(&removed));
    owner.put(200, &format!("/api/workspaces/{NIL}"), json!({"env_vars": {"N": "1"}}));
    let before = owner.get(200, "/api/workspaces");
    server.stop();
    let server = setup.start();
    assert_eq!(server.owner().get(200, "/api/workspaces"), before);
    assert_eq!(server.owner().get(200, &url(&stored)), stored);
    server.owner().refused(404, "workspace_not_found", "GET", &url(&removed), None);
    server.crash();
    assert_eq!(setup.start().owner().get(200, "/api/workspaces"), before);
}

#[test]
fn a_hundred_parallel_creates_make_a_hundred_workspaces() {
    let setup = Setup::new();
    let server = setup.start();
    thread::scope(|scope| {
        for thread in 0..10 {
            let server = &server;
            scope.spawn(move || {
                let owner = server.owner();
                for n in 0..10 {
                    owner.post(200, "/api/workspaces", json!({"name": format!("{thread}-{n}")}));
                }
            });
        }
    });
    let count = |server: &Server| server.owner().get(200, "/api/workspaces").as_array().unwrap().len();
    assert_eq!(count(&server), 101);
    server.stop();
    assert_eq!(count(&setup.start()), 101);
}

#[test]
fn delete_removes_exactly_the_files_of_the_workspace() {
    let server = Server::start();
    let owner = server.owner();
    let outside = server.scratch().file("outside/precious", "keep me");
    // A folder that berth created is deleted with its workspace and all contents; links are removed, not followed.
    let created = owner.post(200, "/api/workspaces", json!({"name": "ours"}));
    let folder = path_of(&created);
    std::os::unix::fs::symlink(outside.parent().unwrap(), folder.join("link")).unwrap();
    let deep = (0..200).fold(folder.clone(), |path, _| path.join("d"));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "x").unwrap();
    let reply = owner.delete(200, &url(&created));
    assert!(reply.as_str().is_some_and(|text| text.contains(created["id"].as_str().unwrap())), "{reply}");
    assert!(!folder.exists(), "not removed");
    assert_eq!(read(&outside), "keep me");
    owner.refused(404, "workspace_not_found", "GET", &url(&created), None);
    owner.refused(404, "workspace_not_found", "DELETE", &url(&created), None);
    // A folder that the user supplied stays; only the record is deleted.
    let user_folder = fs::canonicalize(&server.work).unwrap().join("theirs");
    fs::create_dir(&user_folder).unwrap();
    fs::write(user_folder.join("file"), "x").unwrap();
    let created = owner.post(200, "/api/workspaces", json!({"name": "theirs", "path": user_folder}));
    owner.delete(200, &url(&created));
    assert_eq!(read(user_folder.join("file")), "x");
    let remaining: Vec<_> = leftovers(&server.data);
    assert!(remaining.is_empty(), "{remaining:?}");
}

/// Entries of the data folder's `workspaces` other than the default record.
fn leftovers(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("workspaces")).into_iter().flatten().flatten();
    let own = |path: &PathBuf| path.file_name().is_some_and(|name| name == NIL);
    entries.map(|entry| entry.path()).filter(|path| !own(path)).collect()
}

#[test]
fn updates_during_a_deletion_get_404() {
    let server = crate::fixture::shared();
    for round in 0..30 {
        let created = server.owner().post(200, "/api/workspaces", json!({"name": format!("brief {round}")}));
        let path = url(&created);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..5 {
                        let body = json!({"name": format!("brief {round} {n}")});
                        let reply = server.owner().call("PUT", &path, Some(&body));
                        assert!([200, 404].contains(&reply.status), "{reply}");
                    }
                });
            }
            scope.spawn(|| server.owner().delete(200, &path));
        });
    }
}

#[test]
fn delete_returns_a_message() {
    let server = Server::start();
    let created = server.owner().post(200, "/api/workspaces", json!({"name": "w"}));
    let reply = server.owner().call("DELETE", &url(&created), None).expect(200);
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{reply}");
    assert_eq!(reply.text(), format!("Workspace {} deleted successfully", created["id"].as_str().unwrap()));
}

#[test]
fn the_default_workspace_cannot_be_deleted() {
    let server = Server::start();
    let url = format!("/api/workspaces/{NIL}");
    server.owner().refused(400, "default_workspace", "DELETE", &url, None);
    server.owner().get(200, &url);
    assert!(server.work.is_dir());
}

#[test]
fn host_workspaces_cannot_be_built() {
    let server = Server::start();
    for call in ["build", "rerun-init"] {
        let url = format!("/api/workspaces/{NIL}/{call}");
        server.owner().refused(400, "not_a_container", "POST", &url, None);
    }
}

#[test]
fn debug_and_init_log_of_a_host_workspace() {
    let server = Server::start();
    let reply = server.owner().get(200, &format!("/api/workspaces/{NIL}/debug"));
    assert_eq!(
        (&reply["path_exists"], &reply["size_bytes"], &reply["has_bash"]),
        (&json!(true), &Value::Null, &json!(false))
    );
    let folders: Vec<_> =
        reply["directories"].as_array().unwrap().iter().map(|d| d["path"].as_str().unwrap()).collect();
    assert_eq!(folders, ["bin", "usr", "etc", "var", "var/log", "root", "tmp"]);
    let reply = server.owner().get(200, &format!("/api/workspaces/{NIL}/init-log"));
    assert_eq!(
        reply,
        json!({
            "exists": false, "content": "", "total_lines": null, "log_path": "/var/log/sandboxed.sh-init.log"
        })
    );
}

#[test]
fn debug_of_a_container_that_is_not_built() {
    let server = Server::start();
    let body = json!({"name": "c", "workspace_type": "container", "distro": DISTRO});
    let created = server.owner().post(200, "/api/workspaces", body);
    let reply = server.owner().get(200, &format!("{}/debug", url(&created)));
    assert_eq!(
        (&reply["id"], &reply["name"], &reply["status"]),
        (&created["id"], &json!("c"), &json!("pending"))
    );
    assert_eq!((&reply["path"], &reply["distro"]), (&created["path"], &json!(DISTRO)));
    assert_eq!((&reply["init_script_exists"], &reply["last_error"]), (&json!(false), &Value::Null));
    for entry in reply["directories"].as_array().unwrap() {
        assert_eq!((&entry["exists"], &entry["file_count"]), (&json!(false), &Value::Null), "{entry}");
    }
    let exec = format!("{}/exec", url(&created));
    let reply =
        server.owner().refused(400, "workspace_not_ready", "POST", &exec, Some(json!({"command": "true"})));
    assert!(reply["message"].as_str().unwrap().contains("Build it first"), "{reply}");
}

#[test]
fn an_unknown_template_creates_no_workspace() {
    let server = Server::start();
    let body = json!({"name": "t", "template": "nodejs-dev"});
    let reply = server.owner().refused(404, "not_in_library", "POST", "/api/workspaces", Some(body));
    assert_eq!(reply["message"], "Workspace template not found: nodejs-dev");
    assert_eq!(server.owner().get(200, "/api/workspaces").as_array().unwrap().len(), 1);
}
