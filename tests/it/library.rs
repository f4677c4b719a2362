//! The library over HTTP, hand edits in it, and its effect on workspaces.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use serde_json::{Value, json};

use crate::fixture::{Place, seeded};
use crate::server::{Server, Setup};

const LIBRARY: &str = "/api/library";

fn put(server: &Server, path: &str, body: Value) -> String {
    server.owner().call("PUT", &format!("{LIBRARY}/{path}"), Some(&body)).expect(200).text()
}

fn get(server: &Server, path: &str) -> Value {
    server.owner().get(200, &format!("{LIBRARY}/{path}"))
}

#[test]
fn templates_are_written_listed_and_removed() {
    let server = Server::start();
    assert_eq!(get(&server, "workspace-template"), json!([]));
    let body = json!({
        "description": "Debian", "distro": "bookworm", "skills": ["python-dev"], "env_vars": {"FOO": "bar"},
        "init_scripts": ["base"], "init_script": "#!/bin/bash\necho custom\n"
    });
    assert_eq!(put(&server, "workspace-template/deb", body), "Workspace template saved successfully");
    assert_eq!(
        get(&server, "workspace-template"),
        json!([{"name": "deb", "description": "Debian", "path": "workspace-template/deb.json", "distro": "bookworm",
            "skills": ["python-dev"], "init_scripts": ["base"]}])
    );
    let one = get(&server, "workspace-template/deb");
    for (field, value) in [
        ("name", json!("deb")),
        ("env_vars", json!({"FOO": "bar"})),
        ("encrypted_keys", json!([])),
        ("shared_network", Value::Null),
        ("mcps", json!([])),
        ("init_script", json!("#!/bin/bash\necho custom\n")),
    ] {
        assert_eq!(one[field], value, "{field}");
    }
    let owner = server.owner();
    let url = format!("{LIBRARY}/workspace-template/deb");
    owner.refused(400, "invalid_distro", "PUT", &url, Some(json!({"distro": "windows"})));
    owner.refused(400, "invalid_env", "PUT", &url, Some(json!({"env_vars": {"A B": "x"}})));
    assert_eq!(get(&server, "workspace-template/deb"), one, "a refused change changes nothing");
    for _ in 0..2 {
        assert_eq!(
            owner.call("DELETE", &url, None).expect(200).text(),
            "Workspace template deleted successfully"
        );
    }
    let reply = owner.refused(404, "not_in_library", "GET", &url, None);
    assert_eq!(reply["message"], "Workspace template not found: deb");
}

#[test]
fn names_cannot_lead_out_of_the_library() {
    let server = Server::start();
    for kind in ["workspace-template", "skill", "tool", "init-script", "command", "agent"] {
        for name in ["..", "%2e%2e", "a%2Fb", "..%2F..%2Fx", ".git", "%00", "%0a", "a%5Cb", &"x".repeat(201)]
        {
            let path = format!("{LIBRARY}/{kind}/{name}");
            for (method, body) in [("GET", None), ("PUT", Some(json!({"content": "x"}))), ("DELETE", None)] {
                let reply = server.owner().call(method, &path, body.as_ref()).expect(400);
                assert_eq!(reply.value()["code"], "invalid_name", "{method} {path}: {reply}");
            }
        }
    }
    let path = format!("{LIBRARY}/skill/x/files/..%2f..%2fy");
    server.owner().refused(400, "invalid_name", "PUT", &path, Some(json!({"content": "x"})));
}

#[test]
fn links_out_of_the_library_are_not_followed() {
    let setup = Setup::new();
    let server = setup.start();
    let library = setup.data_dir().join("library");
    fs::create_dir_all(library.join("tool")).unwrap();
    fs::create_dir_all(library.join("skill")).unwrap();
    symlink("/etc/passwd", library.join("tool/passwd.ts")).unwrap();
    symlink("/etc", library.join("skill/etc")).unwrap();
    server.owner().refused(404, "not_in_library", "GET", "/api/library/tool/passwd", None);
    server.owner().call("GET", "/api/library/skill/etc/files/passwd", None).expect(404);
    assert_eq!(get(&server, "tool"), json!([]));
}

#[test]
fn hand_edits_take_effect_and_a_broken_file_affects_no_other() {
    let setup = Setup::new();
    let server = setup.start();
    let library = setup.data_dir().join("library");
    put(&server, "workspace-template/good", json!({}));
    fs::write(library.join("workspace-template/bad.json"), "{ not json").unwrap();
    fs::create_dir_all(library.join("skill/broken")).unwrap();
    fs::write(library.join("skill/broken/SKILL.md"), "---\ndescription: [\n---\n# x\n").unwrap();
    fs::write(library.join("plugins.json"), "[]").unwrap();
    let rows = get(&server, "workspace-template");
    assert_eq!(rows[0]["name"], "bad");
    assert!(rows[0]["error"].as_str().unwrap().contains("not a template"), "{rows}");
    assert_eq!((&rows[1]["name"], &rows[1]["error"]), (&json!("good"), &Value::Null));
    server.owner().refused(409, "conflict", "GET", "/api/library/workspace-template/bad", None);
    let skills = get(&server, "skills");
    assert!(skills[0]["error"].as_str().unwrap().contains("YAML"), "{skills}");
    server.owner().refused(409, "conflict", "GET", "/api/library/plugins", None);
    fs::write(library.join("workspace-template/bad.json"), "{\"description\": \"mended\"}").unwrap();
    assert_eq!(get(&server, "workspace-template/bad")["description"], "mended");
}

#[test]
fn secrets_are_sealed_on_disk_and_hidden_from_viewers() {
    let setup = Setup::new();
    let server = setup.start();
    let secret = "s3cret-value-of-a-template";
    put(
        &server,
        "workspace-template/t",
        json!({"env_vars": {"KEY": secret, "OPEN": "x"}, "encrypted_keys": ["KEY"]}),
    );
    let file = setup.data_dir().join("library/workspace-template/t.json");
    let stored = fs::read_to_string(&file).unwrap();
    assert!(!stored.contains(secret) && stored.contains("<encrypted v=\\\"1\\\">"), "{stored}");
    let view = get(&server, "workspace-template/t");
    assert_eq!(view["env_vars"], json!({"KEY": secret, "OPEN": "x"}));
    // The redacted values are written back; then the key is lost, and they are written back again.
    put(&server, "workspace-template/t", view);
    let key = setup.data_dir().join("private_key");
    assert_eq!(fs::read_to_string(&key).unwrap().trim().len(), 64);
    server.stop();
    let stored_value = setup.data_dir().join("kept");
    fs::rename(&key, &stored_value).unwrap();
    let server = setup.start();
    let view = get(&server, "workspace-template/t");
    assert!(view["env_vars"]["KEY"].as_str().unwrap().starts_with("[DECRYPTION_FAILED]"), "{view}");
    put(&server, "workspace-template/t", view);
    let body = json!({"name": "x", "template": "t"});
    server.owner().refused(409, "conflict", "POST", "/api/workspaces", Some(body));
    server.stop();
    fs::rename(&stored_value, &key).unwrap();
    let server = setup.start();
    assert_eq!(get(&server, "workspace-template/t")["env_vars"]["KEY"], secret);
}

#[test]
fn viewers_see_no_secret_and_the_key_may_come_from_outside() {
    let secret = "s3cret-value-of-a-template";
    let key = "11".repeat(32);
    let setup = Setup::new().env("PRIVATE_KEY", key);
    let server = setup.start();
    let body = json!({"env_vars": {"KEY": secret}, "encrypted_keys": ["KEY"]});
    put(&server, "workspace-template/t", body.clone());
    put(
        &server,
        "mcps",
        json!({"x": {"type": "remote", "url": "http://127.0.0.1:9", "headers": {"Key": secret}}}),
    );
    assert!(!setup.data_dir().join("private_key").exists(), "the key was given");
    let viewer = server.owner().post(201, "/tokens", json!({"scope": "viewer"}));
    let viewer = server.with_token(viewer["token"].as_str().unwrap());
    for path in ["workspace-template", "workspace-template/t", "mcps"] {
        let view = viewer.call("GET", &format!("{LIBRARY}/{path}"), None).expect(200).text();
        assert!(!view.contains(secret) && !view.contains("<encrypted"), "{path}: {view}");
    }
    viewer.refused(403, "forbidden", "PUT", &format!("{LIBRARY}/workspace-template/t"), Some(json!({})));
    assert_eq!(get(&server, "workspace-template/t")["env_vars"]["KEY"], secret);
    server.stop();
    // A key file of berth is readable by its owner only.
    let setup = Setup::new();
    let server = setup.start();
    put(&server, "workspace-template/t", body);
    let mode = fs::metadata(setup.data_dir().join("private_key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn the_library_can_be_any_folder() {
    let setup = Setup::new();
    let folder = setup.scratch().folder("elsewhere");
    fs::create_dir(folder.join("tool")).unwrap();
    fs::write(folder.join("tool/there.ts"), "export {}").unwrap();
    let setup = setup.arg(format!("--library={}", folder.display()));
    let server = setup.start();
    assert_eq!(get(&server, "tool")[0]["name"], "there");
    put(&server, "skill/py", json!({"content": "# Py\n"}));
    assert_eq!(fs::read_to_string(folder.join("skill/py/SKILL.md")).unwrap(), "# Py\n");
    assert!(!setup.data_dir().join("library").exists());
}

#[test]
fn a_template_supplies_its_fields_and_the_request_overrides_them() {
    let server = seeded().start();
    let fields = json!({
        "description": "All of it", "distro": "bookworm", "skills": ["a", "b"], "tools": ["t"], "plugins": ["p"],
        "env_vars": {"A": "template", "B": "template"}, "init_scripts": ["none"], "init_script": "#!/bin/sh\ntrue\n",
        "network": "none", "mcps": ["m"], "config_profile": "work"
    });
    put(&server, "workspace-template/all", fields.clone());
    let view = get(&server, "workspace-template/all");
    for (field, value) in fields.as_object().unwrap() {
        assert_eq!(&view[field], value, "{field}");
    }
    let make = |more: Value| {
        let mut body = json!({"name": "x", "template": "all"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let created = server.owner().post(200, "/api/workspaces", body);
        assert_eq!(
            (&created["status"], &created["workspace_type"]),
            (&json!("building"), &json!("container"))
        );
        Place::of(&server, &created)
    };
    let plain = make(json!({}));
    let own = make(json!({
        "skills": ["b", " c ", ""], "tools": ["u"], "plugins": ["q"], "mcps": ["n"], "env_vars": {"B": "request", "C": "request"},
        "init_script": "#!/bin/sh\necho own > /own\n", "network": "host", "config_profile": "home", "init_scripts": ["ignored"]
    }));
    let plain_now = plain.settled();
    for (field, value) in [
        ("status", json!("ready")),
        ("distro", json!("debian-bookworm")),
        ("skills", json!(["a", "b"])),
        ("tools", json!(["t"])),
        ("plugins", json!(["p"])),
        ("mcps", json!(["m"])),
        ("env_vars", json!({"A": "template", "B": "template"})),
        ("init_scripts", json!(["none"])),
        ("network", json!("none")),
        ("config_profile", json!("work")),
    ] {
        assert_eq!(plain_now[field], value, "{field}");
    }
    let own_now = own.settled();
    for (field, value) in [
        ("status", json!("ready")),
        ("skills", json!(["a", "b", "c"])),
        ("tools", json!(["t", "u"])),
        ("plugins", json!(["q"])),
        ("mcps", json!(["n"])),
        ("env_vars", json!({"A": "template", "B": "request", "C": "request"})),
        ("init_scripts", json!(["none"])),
        ("network", json!("host")),
        ("config_profile", json!("home")),
    ] {
        assert_eq!(own_now[field], value, "{field}");
    }
    assert_eq!(own.sh("cat /own"), "own\n");
}

#[test]
fn skills_tools_and_scripts_have_their_observed_shapes() {
    let server = Server::start();
    assert_eq!(
        put(&server, "skill/py", json!({"content": "---\ndescription: Python\n---\n# Py\n"})),
        "Skill saved successfully"
    );
    put(&server, "skill/py/files/docs/more.md", json!({"content": "more"}));
    put(&server, "skills/py/references/run.sh", json!({"content": "echo"}));
    assert_eq!(
        get(&server, "skill"),
        json!([{"name": "py", "description": "Python", "path": "skill/py", "source": {"type": "Local"}}])
    );
    let one = get(&server, "skills/py");
    assert_eq!(one["files"], json!([{"name": "more.md", "path": "docs/more.md", "content": "more"}]));
    assert_eq!(one["references"], json!(["run.sh"]));
    assert_eq!(
        server.owner().call("GET", "/api/library/skill/py/files/docs/more.md", None).expect(200).text(),
        "more"
    );
    let main = "/api/library/skill/py/files/SKILL.md";
    server.owner().refused(400, "invalid_path", "DELETE", main, None);
    put(&server, "tool/door", json!({"content": "/** Opens a\n * door */\nexport {}"}));
    assert_eq!(
        get(&server, "tool/door"),
        json!({"name": "door", "description": "Opens a door", "path": "tool/door.ts",
            "content": "/** Opens a\n * door */\nexport {}"})
    );
    put(&server, "init-script/base", json!({"content": "#!/bin/sh\n# Description: base tools\n"}));
    assert_eq!(
        get(&server, "init-script"),
        json!([{"name": "base", "description": "base tools", "path": "init-script/base/SCRIPT.sh"}])
    );
    server.owner().delete(200, "/api/library/skill/py");
    assert_eq!(get(&server, "skill"), json!([]));
    let owner = server.owner();
    let mcps = "/api/library/mcps";
    owner.refused(400, "invalid_payload", "PUT", mcps, Some(json!({"x": {"type": "local"}})));
    put(
        &server,
        "mcps",
        json!({"x": {"type": "local", "command": ["a"], "env": {"K": "v"}, "enabled": true}}),
    );
    assert_eq!(get(&server, "mcps")["x"]["env"]["K"], "v");
    owner.refused(400, "invalid_payload", "PUT", "/api/library/plugins", Some(json!({"x": {}})));
}

#[test]
fn skills_and_tools_are_synced_and_only_managed_files_removed() {
    let server = Server::start();
    put(&server, "skill/py", json!({"content": "# Py\n"}));
    put(&server, "skill/py/files/more.md", json!({"content": "more"}));
    put(&server, "tool/door", json!({"content": "export {}"}));
    let created = server.owner().post(
        200,
        "/api/workspaces",
        json!({"name": "w", "skills": ["py", "unknown"], "tools": ["door"]}),
    );
    let folder = std::path::PathBuf::from(created["path"].as_str().unwrap());
    let url = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    let read = |path: &str| fs::read_to_string(folder.join(path)).ok();
    for place in [".opencode/skill", ".claude/skills"] {
        let main = read(&format!("{place}/py/SKILL.md"));
        assert_eq!(main.as_deref(), Some("---\nname: \"py\"\n---\n\n# Py\n"), "{place}");
        assert_eq!(read(&format!("{place}/py/more.md")).as_deref(), Some("more"));
    }
    assert_eq!(read(".opencode/tool/door.ts").as_deref(), Some("export {}"));
    // Files that the user created stay.
    fs::create_dir_all(folder.join(".opencode/skill/mine")).unwrap();
    fs::write(folder.join(".opencode/skill/mine/SKILL.md"), "mine").unwrap();
    fs::write(folder.join(".opencode/skill/py/more.md"), "changed by hand").unwrap();
    let times = || fs::metadata(folder.join(".opencode/skill/py/SKILL.md")).unwrap().modified().unwrap();
    let before = times();
    server.owner().post(200, &format!("{url}/sync"), json!({}));
    assert_eq!(times(), before, "a second sync does not write unchanged files");
    assert_eq!(read(".opencode/skill/py/more.md").as_deref(), Some("more"));
    // A changed skill is synced automatically; a skill that is no longer selected is removed.
    put(&server, "skill/py", json!({"content": "# New\n"}));
    assert!(read(".opencode/skill/py/SKILL.md").unwrap().ends_with("# New\n"));
    fs::write(folder.join(".claude/skills/py/SKILL.md"), "kept by hand").unwrap();
    server.owner().put(200, &url, json!({"skills": [], "tools": []}));
    assert_eq!(read(".opencode/skill/py/SKILL.md"), None);
    assert!(!folder.join(".opencode/skill/py").exists());
    assert_eq!(read(".opencode/tool/door.ts"), None);
    assert_eq!(read(".claude/skills/py/SKILL.md").as_deref(), Some("kept by hand"));
    assert_eq!(read(".opencode/skill/mine/SKILL.md").as_deref(), Some("mine"));
}

#[test]
fn a_sync_does_not_follow_links_out_of_a_workspace() {
    let server = Server::start();
    put(&server, "skill/py", json!({"content": "# Py\n"}));
    let created = server.owner().post(200, "/api/workspaces", json!({"name": "w"}));
    let folder = std::path::PathBuf::from(created["path"].as_str().unwrap());
    let outside = server.scratch().folder("outside");
    symlink(&outside, folder.join(".opencode")).unwrap();
    let url = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    server.owner().put(200, &url, json!({"skills": ["py"]}));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_template_creates_a_container_and_builds_it_at_once() {
    let server = seeded().start();
    put(&server, "skill/py", json!({"content": "---\nsetup_commands:\n  - echo setup >> /log\n---\n# Py\n"}));
    put(
        &server,
        "init-script/base",
        json!({"content": "#!/bin/bash\nexport FROM=base\necho base $V >> /log\n"}),
    );
    put(
        &server,
        "workspace-template/t",
        json!({"distro": "bookworm", "skills": ["py"], "env_vars": {"V": "template", "W": "w"},
            "encrypted_keys": ["W"], "init_scripts": ["base", "gone"],
            "init_script": "#!/usr/bin/perl\nopen(F, '>>', '/log'); print F \"own $ENV{FROM} $ENV{V} $ENV{W}\\n\";"}),
    );
    let created = server.owner().post(
        200,
        "/api/workspaces",
        json!({"name": "x", "template": "t", "workspace_type": "host", "env_vars": {"V": "request"}}),
    );
    assert_eq!(created["status"], "building");
    assert_eq!((&created["workspace_type"], &created["template"]), (&json!("container"), &json!("t")));
    assert_eq!(created["distro"], "debian-bookworm");
    assert_eq!(created["env_vars"], json!({"V": "request", "W": "w"}));
    let place = Place::of(&server, &created);
    let settled = place.settled();
    assert_eq!(settled["status"], "ready", "{settled}");
    assert_eq!(place.sh("cat /log"), "base request\nsetup\nown base request w\n");
    assert!(place.sh("cat /.opencode/skill/py/SKILL.md").contains("# Py"));
    assert_eq!(place.sh("ls / | grep sandboxed-init || true"), "", "the scripts were removed");
    // Again, including the fragments.
    let again = server.owner().post(200, &place.path("/rerun-init"), json!({}));
    assert_eq!(again["success"], true, "{again}");
    assert!(again["stderr"].as_str().unwrap().contains("Init script not found: gone"), "{again}");
    assert_eq!(place.sh("wc -l < /log"), "6\n");
}
