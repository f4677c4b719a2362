//! Export and import: complete, without secrets, all or nothing, also after a kill. And the real OpenCode accepts the
//! files that berth has written.

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::opencode_serve::OpenCode;
use crate::project::ProjectServer;
use crate::server::Setup;

fn import(name: &str, count: usize) -> Value {
    let skills: Vec<Value> =
        (0..count).map(|n| json!({"name": format!("s{n}"), "content": name, "description": name})).collect();
    let commands: Vec<Value> =
        (0..count).map(|n| json!({"name": format!("{name}-{n}"), "template": name})).collect();
    json!({
        "opencode": {"username": name}, "openwork": {"name": name}, "skills": skills, "commands": commands,
        "mode": {"opencode": "replace", "openwork": "replace", "skills": "replace", "commands": "replace"},
    })
}

/// Returns the writer of the import that is present, if it is complete and alone.
fn whole(export: &Value, count: usize) -> String {
    let name = export["opencode"]["username"].as_str().unwrap().to_owned();
    assert_eq!(export["openwork"]["name"], name);
    let all = |key: &str| export[key].as_array().unwrap().clone();
    assert_eq!((all("skills").len(), all("commands").len()), (count, count));
    assert!(all("skills").iter().all(|skill| skill["description"] == name), "{export}");
    assert!(all("commands").iter().all(|command| command["template"] == name), "{export}");
    name
}

#[test]
fn an_export_is_imported_completely() {
    let project = ProjectServer::open();
    project.patch(json!({"opencode": {"model": "a/b"}, "openwork": {"a": 1}}));
    let secret =
        json!({"type": "local", "command": ["x"], "environment": {"KEY": "hidden", "REF": "{env:KEY}"}});
    project.post("/mcp", json!({"name": "m", "config": secret}));
    project.post("/skills", json!({"name": "s", "content": "do", "description": "d"}));
    project.post("/commands", json!({"name": "c", "template": "t", "agent": "build", "model": "a/b", "subtask": true, "description": "d"}));
    project.write(".opencode/commands/bad.md", "---\nmodel: null\n---\nx\n");
    let export = project.get("/export");
    project.golden("export", &export);
    assert!(!export.to_string().contains("hidden"));
    project.refused(403, "forbidden", "GET", "/export?secrets=true", Value::Null);
    let full = project.server.owner().get(200, &project.path("/export?secrets=true"));
    assert_eq!(full["opencode"]["mcp"]["m"]["environment"]["KEY"], "hidden");
    let other = ProjectServer::open();
    let dry = other.post("/import?dryRun=true", full.clone());
    assert_eq!((&dry["dryRun"], dry["paths"].as_array().unwrap().len()), (&json!(true), 4));
    assert_eq!(fs::read_dir(&other.work).unwrap().count(), 0, "nothing is written");
    assert_eq!(other.post("/import", full.clone()), json!({"ok": true}));
    let mut again = other.server.owner().get(200, &other.path("/export?secrets=true"));
    // `bad.md`, which prevents OpenCode from starting, is named and not exported.
    assert_eq!(full["omitted"], json!([".opencode/commands/bad.md"]));
    for key in ["workspaceId", "exportedAt", "omitted"] {
        again[key] = full[key].clone();
    }
    assert_eq!(again, full);
    assert_eq!(other.post("/import", json!({})), json!({"ok": true}));
}

#[test]
fn merge_keeps_and_replace_does_not() {
    let project = ProjectServer::open();
    project.write("opencode.jsonc", "{\n  // mine\n  \"theme\": \"x\"\n}\n");
    project.write(".opencode/skills/old/SKILL.md", "---\nname: old\ndescription: d\n---\n");
    project.write(".opencode/commands/old.md", "x\n");
    let body = json!({
        "opencode": {"model": "a/b"}, "skills": [{"name": "new", "content": "x", "description": "d"}],
        "commands": [{"name": "c", "content": "---\nagent: build\nmodel: a/b\n---\n\ntext\n"}],
    });
    project.post("/import", body.clone());
    assert!(project.read("opencode.jsonc").contains("// mine"));
    let names = |what: &str| fs::read_dir(project.work.join(".opencode").join(what)).unwrap().count();
    assert_eq!((names("skills"), names("commands")), (2, 2));
    assert_eq!(project.get("/commands")["items"][0]["agent"], "build");
    project.patch(json!({"openwork": {"old": 1}}));
    let mut body = body;
    body["openwork"] = json!({"new": 1});
    let replace = "replace";
    body["mode"] = json!({"opencode": replace, "openwork": replace, "skills": replace, "commands": replace});
    project.post("/import", body);
    let config = project.get("/config");
    assert_eq!((&config["opencode"], &config["openwork"]), (&json!({"model": "a/b"}), &json!({"new": 1})));
    assert_eq!((names("skills"), names("commands")), (1, 1));
    assert_eq!(names("openwork"), 0, "no prepared files remain");
}

#[test]
fn an_import_with_one_invalid_part_writes_nothing() {
    let project = ProjectServer::open();
    let good = json!({"name": "s", "content": "x", "description": "d"});
    for (status, code, body) in [
        (
            400,
            "invalid_skill_name",
            json!({"opencode": {"model": "a/b"}, "skills": [good, {"name": "B", "content": "x", "description": "d"}]}),
        ),
        (400, "invalid_command_template", json!({"skills": [good], "commands": [{"name": "c"}]})),
        (422, "invalid_config", json!({"opencode": {"model": null}, "skills": [good]})),
        (400, "invalid_payload", json!({"skills": [good, ["t", "x", "d"]]})),
        (400, "invalid_payload", json!({"skills": [good], "mode": ["replace", null, null, null]})),
    ] {
        project.refused(status, code, "POST", "/import", body);
    }
    assert_eq!(fs::read_dir(&project.work).unwrap().count(), 0);
    // A conflict that is found only during the writes is rolled back: a folder in the place of a file.
    project.post("/import", import("old", 3));
    fs::remove_file(project.work.join(".opencode/openwork.json")).unwrap();
    fs::create_dir_all(project.work.join(".opencode/openwork.json/x")).unwrap();
    let mut body = import("new", 3);
    body["commands"] = json!([]);
    let reply = project.client.call("POST", &project.path("/import"), Some(&body));
    assert!(reply.status >= 400, "{reply}");
    assert!(project.work.join(".opencode/openwork.json/x").is_dir());
    assert!(project.read("opencode.jsonc").contains("\"old\""), "{}", project.read("opencode.jsonc"));
    assert!(project.read(".opencode/skills/s1/SKILL.md").contains("old"));
}

#[test]
fn a_kill_during_an_import_leaves_the_old_or_the_new_state() {
    const COUNT: usize = 12;
    let setup = Setup::new().arg("--approval=auto");
    let mut project = ProjectServer::of(setup.start());
    project.post("/import", import("first", COUNT));
    let mut before = "first".to_owned();
    for round in 0..12_u64 {
        let name = format!("round-{round}");
        let body = import(&name, COUNT);
        let pid = project.server.pid;
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(3 + round * 6));
                crate::procs::signal(pid, rustix::process::Signal::KILL);
            });
            let _ = project.client.try_send(
                "POST",
                &project.path("/import"),
                &[],
                Some(body.to_string().as_bytes()),
            );
        });
        let ProjectServer { server, .. } = project;
        server.crash();
        project = ProjectServer::of(setup.start());
        let now = whole(&project.get("/export"), COUNT);
        assert!(now == before || now == name, "{now}");
        before = now;
        let remaining = fs::read_dir(project.server.data.join("workspaces")).unwrap().flatten();
        assert!(remaining.into_iter().all(|folder| !folder.path().join("import.json").exists()));
    }
}

fn opencode_takes(version: &str) {
    let project = ProjectServer::open();
    project.patch(json!({"opencode": {
        "model": "a/b", "permission": {"bash": {"*": "ask"}}, "agent": {"mine": {"prompt": "p", "mode": "subagent"}},
    }}));
    project
        .post("/mcp", json!({"name": "m", "config": {"type": "local", "command": ["x"], "enabled": false}}));
    project.post("/commands", json!({"name": "plain", "template": "do $ARGUMENTS", "model": null}));
    project.post("/commands", json!({"name": "full", "template": "t", "description": "a: \"b\"", "agent": "build", "model": "a/b", "subtask": true}));
    project.post("/skills", json!({"name": "s", "content": "do it", "description": "what: it does"}));
    project.post(
        "/import",
        json!({
            "commands": [{"name": "imported", "content": "---\ndescription: d\n---\n\ntext"}],
            "skills": [{"name": "brought", "content": "x", "description": "y"}],
        }),
    );
    let opencode = OpenCode::start(version, &project.work);
    let client = opencode.client();
    let config = client.get(200, "/config");
    assert_eq!((&config["model"], &config["mcp"]["m"]["command"]), (&json!("a/b"), &json!(["x"])));
    let commands = client.get(200, "/command");
    let find =
        |name: &str| commands.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    assert_eq!((&find("full")["description"], &find("full")["model"]), (&json!("a: \"b\""), &json!("a/b")));
    assert_eq!(
        (&find("plain")["template"], &find("imported")["template"]),
        (&json!("do $ARGUMENTS"), &json!("text"))
    );
    let agents = client.get(200, "/agent");
    assert!(agents.as_array().unwrap().iter().any(|row| row["name"] == "mine"), "{agents}");
    let skills = client.get(200, "/skill");
    let skill =
        |name: &str| skills.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    assert_eq!(
        (&skill("s")["description"], &skill("brought")["description"]),
        (&json!("what: it does"), &json!("y"))
    );
}

#[test]
fn opencode_1_1_accepts_the_written_files() {
    opencode_takes("opencode-old");
}

#[test]
fn the_newest_opencode_accepts_the_written_files() {
    opencode_takes("opencode-new");
}
