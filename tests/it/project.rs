//! The project API: OpenCode's configuration, plugins, skills, MCP servers and commands of a workspace, as clients of
//! the OpenWork server use them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::fixture::{Place, seeded};
use crate::golden::golden;
use crate::procs::secs;
use crate::server::{Server, Setup};

/// A server with one workspace, and calls of its project API.
pub struct ProjectServer {
    pub server: Server,
    pub client: Client,
    pub base: String,
    pub work: PathBuf,
}

impl ProjectServer {
    pub fn open() -> ProjectServer {
        ProjectServer::of(Setup::new().arg("--approval=auto").start())
    }

    pub fn of(server: Server) -> ProjectServer {
        let client = server.collaborator();
        let id = client.get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
        ProjectServer { client, base: format!("/workspace/{id}"), work: server.work.clone(), server }
    }

    pub fn path(&self, call: &str) -> String {
        format!("{}{call}", self.base)
    }

    #[track_caller]
    pub fn get(&self, call: &str) -> Value {
        self.client.get(200, &self.path(call))
    }

    #[track_caller]
    pub fn post(&self, call: &str, body: Value) -> Value {
        self.client.post(200, &self.path(call), body)
    }

    #[track_caller]
    pub fn patch(&self, body: Value) -> Value {
        self.client.call("PATCH", &self.path("/config"), Some(&body)).expect(200).value()
    }

    #[track_caller]
    pub fn refused(&self, status: u16, code: &str, method: &str, call: &str, body: Value) -> Value {
        let body = (!body.is_null()).then_some(body);
        self.client.refused(status, code, method, &self.path(call), body)
    }

    pub fn write(&self, name: &str, text: &str) {
        put(&self.work, name, text);
    }

    pub fn read(&self, name: &str) -> String {
        crate::server::read(self.work.join(name))
    }

    #[track_caller]
    pub fn golden(&self, name: &str, value: &Value) {
        let home = self.server.scratch().path().join("home");
        let (work, home) = (self.work.to_str().unwrap(), home.to_str().unwrap());
        let top = self.server.scratch().path().to_str().unwrap();
        let id = self.base.trim_start_matches("/workspace/");
        golden(name, value, &[(work, "workspace"), (home, "home"), (top, "above"), (id, "id")]);
    }
}

pub fn put(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn skill(name: &str, rest: &str) -> String {
    format!("---\nname: {name}\ndescription: about {name}\n{rest}---\n# {name}\n")
}

#[test]
fn config_is_read_and_changed_key_by_key() {
    let project = ProjectServer::open();
    project.golden("config_empty", &project.get("/config"));
    let text = "{\n  // who answers\n  \"model\": \"a/b\", // for now\n  \"mine\": [1,2 , 3],\n  \"theme\": \"dark\",\n}\n";
    project.write("opencode.json", text);
    let changed = project.patch(json!({
        "opencode": {"model": "c/d", "permission": {"bash": {"*": "ask", "git *": "allow", "a*": "deny"}}},
        "openwork": {"b": null, "a": [1]},
    }));
    assert!(changed["updatedAt"].as_u64().is_some_and(|time| time > 1_700_000_000_000), "{changed}");
    let now = project.read("opencode.json");
    for stored in
        ["// who answers", "// for now", "\"mine\": [1,2 , 3]", "\"theme\": \"dark\",", "\"model\": \"c/d\""]
    {
        assert!(now.contains(stored), "{stored}: {now}");
    }
    // OpenCode applies the last matching rule, so the order of rules matters.
    let at = |word: &str| now.find(word).unwrap();
    assert!(at("\"*\"") < at("git *") && at("git *") < at("a*"), "{now}");
    assert!(!project.work.join("opencode.jsonc").exists());
    project.golden("config", &project.get("/config"));
    project.patch(json!({"openwork": {"a": 2}}));
    assert_eq!(project.get("/config")["openwork"], json!({"b": null, "a": 2}));
    // The newer name wins once it exists.
    project.write("opencode.jsonc", "{}");
    project.patch(json!({"opencode": {"model": "e/f"}}));
    assert_eq!(project.read("opencode.jsonc"), "{\n  \"model\": \"e/f\"\n}\n");
}

#[test]
fn configuration_that_opencode_rejects_is_refused_and_not_written() {
    let project = ProjectServer::open();
    project.patch(json!({"opencode": {"model": "a/b"}}));
    let before = project.read("opencode.jsonc");
    for (keys, place) in [
        (json!({"model": null}), "model"),
        (json!({"nonsense": 1}), "nonsense"),
        (json!({"mcp": {"a": {"type": "local", "command": "x"}}}), "mcp.a.command"),
        (json!({"small_model": "x/y", "plugin": [1]}), "plugin.0"),
        (json!({"agent": {"a": {"mode": "boss"}}}), "agent.a.mode"),
    ] {
        let reply = project.refused(
            422,
            "invalid_config",
            "PATCH",
            "/config",
            json!({"opencode": keys, "openwork": {"x": 1}}),
        );
        assert_eq!(reply["details"]["path"], place, "{reply}");
    }
    project.golden(
        "config_refused",
        &project.refused(422, "invalid_config", "PATCH", "/config", json!({"opencode": {"model": null}})),
    );
    for body in [json!({}), json!([]), json!({"opencode": []}), json!({"opencode": "x"})] {
        project.refused(400, "invalid_payload", "PATCH", "/config", body);
    }
    assert_eq!(project.read("opencode.jsonc"), before);
    assert!(!project.work.join(".opencode").exists());
}

#[test]
fn a_damaged_file_is_reported_with_its_line_and_never_overwritten() {
    let project = ProjectServer::open();
    project.write("opencode.jsonc", "{\n  \"model\": }\n");
    project.golden("config_damaged", &project.refused(422, "invalid_jsonc", "GET", "/config", Value::Null));
    for (method, call, body) in [
        ("PATCH", "/config", json!({"opencode": {"model": "a/b"}})),
        ("PATCH", "/config", json!({"openwork": {"a": 1}})),
        ("POST", "/plugins", json!({"spec": "a"})),
        ("POST", "/mcp", json!({"name": "a", "config": {"type": "remote", "url": "u"}})),
        ("DELETE", "/mcp/a", Value::Null),
        ("GET", "/plugins", Value::Null),
        ("GET", "/mcp", Value::Null),
    ] {
        project.refused(422, "invalid_jsonc", method, call, body);
    }
    assert_eq!(project.read("opencode.jsonc"), "{\n  \"model\": }\n");
    assert!(!project.work.join(".opencode").exists());
    project.write("opencode.jsonc", "{}");
    project.write(".opencode/openwork.json", "{");
    project.refused(422, "invalid_json", "GET", "/config", Value::Null);
    // If one file cannot be written, neither is.
    project.refused(
        422,
        "invalid_json",
        "PATCH",
        "/config",
        json!({"opencode": {"model": "a/b"}, "openwork": {"a": 1}}),
    );
    assert_eq!(project.read("opencode.jsonc"), "{}");
    for text in ["[]", "null", "\"x\"", &"[".repeat(100_000)] {
        project.write("opencode.jsonc", text);
        project.refused(422, "invalid_jsonc", "GET", "/mcp", Value::Null);
    }
    fs::write(project.work.join("opencode.jsonc"), b"{\"model\": \"\xff\"}").unwrap();
    project.refused(400, "invalid_path", "GET", "/mcp", Value::Null);
}

#[test]
fn forty_concurrent_writers_lose_no_change() {
    let project = ProjectServer::open();
    project.write("opencode.jsonc", "{\n  // mine\n  \"theme\": \"x\",\n}\n");
    thread::scope(|scope| {
        for n in 0..40 {
            let (project, client) = (&project, project.server.collaborator());
            scope.spawn(move || {
                let server = json!({"type": "remote", "url": format!("http://h/{n}")});
                client.post(200, &project.path("/mcp"), json!({"name": format!("m{n}"), "config": server}));
                client.post(200, &project.path("/plugins"), json!({"spec": format!("p{n}@1")}));
                let body = json!({"openwork": {format!("k{n}"): n}});
                client.call("PATCH", &project.path("/config"), Some(&body)).expect(200);
            });
        }
    });
    let config = project.get("/config");
    for (what, count) in [("mcp", 40), ("plugin", 40)] {
        let section = &config["opencode"][what];
        assert_eq!(
            section.as_object().map_or_else(|| section.as_array().unwrap().len(), |all| all.len()),
            count
        );
    }
    assert_eq!(config["openwork"].as_object().unwrap().len(), 40);
    assert!(project.read("opencode.jsonc").contains("// mine"));
    assert_eq!(project.get("/mcp")["items"].as_array().unwrap().len(), 40);
}

/// An editor that saves by replacing the file while berth writes: the changes of both are present at the end.
#[test]
fn a_concurrent_editor_and_berth_lose_no_change() {
    let project = ProjectServer::open();
    let path = project.work.join("opencode.jsonc");
    fs::write(&path, "{}\n").unwrap();
    let (done, started) = (AtomicBool::new(false), Instant::now());
    let saved = thread::scope(|scope| {
        let hand = scope.spawn(|| {
            let mut saved = 0;
            // Bounded, because a failing test must end too.
            while !done.load(Ordering::SeqCst) && saved < 1000 && started.elapsed() < secs(60) {
                let text = fs::read_to_string(&path).unwrap();
                let next = text.replacen('{', &format!("{{\n  // hand {saved}\n"), 1);
                let temp = project.work.join("opencode.jsonc.swp");
                fs::write(&temp, next).unwrap();
                // An editor checks whether the file is still the one that it read.
                if fs::read_to_string(&path).unwrap() == text {
                    fs::rename(&temp, &path).unwrap();
                    saved += 1;
                }
                // A fast editor that still leaves time for other writers.
                thread::sleep(Duration::from_millis(2));
            }
            saved
        });
        let mut stored = 0;
        for n in 0..150 {
            let server = json!({"name": format!("m{n}"), "config": {"type": "remote", "url": "u"}});
            let reply = project.client.call("POST", &project.path("/mcp"), Some(&server));
            assert!([200, 409].contains(&reply.status), "{reply}");
            if reply.status == 409 {
                assert_eq!(reply.value()["code"], "conflict");
            }
            stored += u32::from(reply.status == 200);
        }
        done.store(true, Ordering::SeqCst);
        assert!(stored > 0);
        hand.join().unwrap()
    });
    // The editor's check and its rename are two steps, so it may have overwritten a change of berth; berth must not
    // have overwritten one of the editor.
    let text = project.read("opencode.jsonc");
    let lost: Vec<u32> = (0..saved).filter(|n| !text.contains(&format!("// hand {n}\n"))).collect();
    assert!(lost.is_empty(), "{} of {saved} lost: {lost:?}", lost.len());
}

#[test]
fn plugins_can_be_packages_or_files() {
    let project = ProjectServer::open();
    project.write("opencode.json", "{\n  \"plugin\": \"first@1\" // one\n}\n");
    project.write(".opencode/plugins/b.ts", "");
    project.write(".opencode/plugins/a.js", "");
    project.write(".opencode/plugins/no.txt", "");
    put(&project.server.scratch().path().join("home"), ".config/opencode/plugins/g.ts", "");
    project.golden("plugins", &project.get("/plugins?includeGlobal=true"));
    assert_eq!(project.get("/plugins")["items"].as_array().unwrap().len(), 3);
    // The same plugin in another version replaces it.
    assert_eq!(project.post("/plugins", json!({"spec": "first@2"})), project.get("/plugins"));
    let specs = |reply: &Value| -> Vec<String> {
        let items = reply["items"].as_array().unwrap().iter().filter(|item| item["source"] == "config");
        items.map(|item| item["spec"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        specs(&project.post("/plugins", json!({"spec": "@scope/two@1.0"}))),
        ["first@1", "@scope/two@1.0"]
    );
    // OpenCode accepts only a list.
    assert!(
        project.read("opencode.json").contains("[\"first@1\", \"@scope/two@1.0\"]"),
        "{}",
        project.read("opencode.json")
    );
    for spec in [json!({"spec": " "}), json!({})] {
        project.refused(400, "invalid_plugin_spec", "POST", "/plugins", spec);
    }
    let removed = project.client.delete(200, &project.path("/plugins/%40scope%2Ftwo"));
    assert_eq!(specs(&removed), ["first@1"]);
    assert_eq!(specs(&project.client.delete(200, &project.path("/plugins/unknown"))), ["first@1"]);
    assert!(specs(&project.client.delete(200, &project.path("/plugins/first@9"))).is_empty());
}

#[test]
fn mcp_servers_are_added_checked_and_removed() {
    let project = ProjectServer::open();
    assert_eq!(project.get("/mcp"), json!({"items": []}));
    project.write(
        "opencode.jsonc",
        "{\n  \"mcp\": {\n    // by hand\n    \"z\": {\"type\": \"local\", \"command\": [\"x\"]}\n  }\n}\n",
    );
    project.post(
        "/mcp",
        json!({"name": "a", "config": {"type": "remote", "url": "http://h", "enabled": false}}),
    );
    assert!(project.read("opencode.jsonc").contains("// by hand"));
    project.post(
        "/mcp",
        json!({"name": "a", "config": {"type": "local", "command": ["y", "z"], "environment": {"A": "b"}}}),
    );
    // By hand only: OpenCode would not start with it.
    project.write(
        "opencode.jsonc",
        &project.read("opencode.jsonc").replacen('{', "{\n  \"tools\": {\"deny\": [\"mcp.a*\"]},", 1),
    );
    project.golden("mcp", &project.get("/mcp"));
    let ok = json!({"type": "remote", "url": "u"});
    project.refused(400, "invalid_mcp_name", "POST", "/mcp", json!({"name": "-x", "config": ok}));
    project.refused(400, "invalid_mcp_name", "POST", "/mcp", json!({"name": "a/b", "config": ok}));
    project.refused(400, "invalid_payload", "POST", "/mcp", json!({"name": "x"}));
    project.golden(
        "mcp_refused",
        &project.refused(
            400,
            "invalid_mcp_config",
            "POST",
            "/mcp",
            json!({"name": "x", "config": {"type": "local", "command": ["x", 5]}}),
        ),
    );
    for config in [
        json!({}),
        json!({"type": "local", "command": []}),
        json!({"type": "remote"}),
        json!({"type": "remote", "url": "u", "extra": 1}),
    ] {
        project.refused(400, "invalid_mcp_config", "POST", "/mcp", json!({"name": "x", "config": config}));
    }
    let remaining = project.client.delete(200, &project.path("/mcp/a"));
    assert_eq!(remaining["items"].as_array().unwrap().len(), 1);
    assert_eq!(project.client.delete(200, &project.path("/mcp/a")), remaining);
    project.write("opencode.jsonc", "{\"mcp\": []}");
    project.refused(422, "invalid_config", "POST", "/mcp", json!({"name": "x", "config": ok}));
}

#[test]
fn skills_are_listed_from_all_their_folders() {
    let project = ProjectServer::open();
    project.write(".opencode/skills/one/SKILL.md", &skill("one", "trigger: a word\n"));
    project.write(".opencode/skills/three/SKILL.md", &(skill("three", "") + "## When to use\n- for three\n"));
    project.write(".opencode/skills/other/SKILL.md", &skill("not-other", ""));
    project.write(".opencode/skills/bad/SKILL.md", "---\nname: bad\ndescription: [\n---\n");
    project.write(".opencode/skills/nameless/SKILL.md", "---\ndescription: has its folder's name\n---\n");
    project.write(".opencode/skills/plain/SKILL.md", "no description\n");
    project.write(".opencode/skills/Upper/SKILL.md", &skill("Upper", ""));
    project.write(".opencode/skill/two/SKILL.md", &skill("two", "when: at two\n"));
    project.write(".claude/skills/one/SKILL.md", &skill("one", "trigger: not the first\n"));
    project.write(".claude/skills/four/SKILL.md", &skill("four", ""));
    fs::create_dir_all(project.work.join(".opencode/skills/folder/SKILL.md")).unwrap();
    let above = project.server.scratch().path().to_owned();
    put(&above, ".opencode/skills/above/SKILL.md", &skill("above", ""));
    put(&above, ".opencode/skills/bad/SKILL.md", &skill("bad", ""));
    fs::create_dir(above.join(".git")).unwrap();
    put(&above.join("home"), ".config/opencode/skills/mine/SKILL.md", &skill("mine", ""));
    put(&above.join("home"), ".claude/skills/one/SKILL.md", &skill("one", ""));
    project.golden("skills", &project.get("/skills?includeGlobal=true"));
    let names = |reply: &Value| {
        reply["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(!names(&project.get("/skills")).contains(&"mine".to_owned()));
    project.golden("skill", &project.get("/skills/one"));
    assert_eq!(
        project.client.get(200, &project.path("/skills/mine?includeGlobal=true"))["item"]["scope"],
        "global"
    );
    for name in ["nothing", "mine", "folder", "..", "%2e%2e%2fx"] {
        let found = project.refused(404, "skill_not_found", "GET", &format!("/skills/{name}"), Value::Null);
        assert_eq!(found["message"], "Skill not found");
    }
    // Folders above the project's root are ignored.
    fs::create_dir(project.work.join(".git")).unwrap();
    assert!(!names(&project.get("/skills")).contains(&"above".to_owned()));
}

#[test]
fn skills_are_written_and_removed() {
    let project = ProjectServer::open();
    let created = project
        .post("/skills", json!({"name": "new-one", "content": "Do it.", "description": "what: it does"}));
    project.golden("skill_put", &created);
    assert_eq!(
        project.read(".opencode/skills/new-one/SKILL.md"),
        "---\nname: new-one\ndescription: \"what: it does\"\n---\nDo it.\n"
    );
    let own = "---\nname: new-one\n# kept\ndescription: own\n---\n\nBody";
    assert_eq!(project.post("/skills", json!({"name": "new-one", "content": own}))["description"], "");
    assert_eq!(project.read(".opencode/skills/new-one/SKILL.md"), format!("{own}\n"));
    for (status, code, body) in [
        (400, "invalid_skill_name", json!({"name": "New", "content": "x", "description": "d"})),
        (400, "invalid_skill_name", json!({"name": "../x", "content": "x", "description": "d"})),
        (
            400,
            "invalid_skill_name",
            json!({"name": "x", "content": "---\nname: y\n---\n", "description": "d"}),
        ),
        (400, "invalid_skill_content", json!({"name": "x", "description": "d"})),
        (
            400,
            "invalid_skill_content",
            json!({"name": "x", "content": "---\na: [\n---\n", "description": "d"}),
        ),
        (422, "invalid_description", json!({"name": "x", "content": "y"})),
        (422, "invalid_description", json!({"name": "x", "content": "y", "description": "d".repeat(1025)})),
    ] {
        project.refused(status, code, "POST", "/skills", body);
    }
    project.write(".opencode/skills/new-one/more/file.txt", "x");
    project.golden("skill_delete", &project.client.delete(200, &project.path("/skills/new-one")));
    assert!(!project.work.join(".opencode/skills/new-one").exists());
    project.refused(404, "skill_not_found", "DELETE", "/skills/new-one", Value::Null);
    project.refused(400, "invalid_skill_name", "DELETE", "/skills/..", Value::Null);
}

#[test]
fn commands_are_listed_written_and_removed() {
    let project = ProjectServer::open();
    assert_eq!(project.get("/commands"), json!({"items": []}));
    project.post("/commands", json!({"name": "/plain", "template": "do $ARGUMENTS"}));
    assert_eq!(project.read(".opencode/commands/plain.md"), "---\nname: plain\n---\n\ndo $ARGUMENTS\n");
    // This defect prevented a whole project from loading: a command without a model must have no model field.
    project.post("/commands", json!({"name": "null", "template": "x", "model": null}));
    assert!(!project.read(".opencode/commands/null.md").contains("model"));
    project.post("/commands", json!({"name": "full", "template": "t", "description": "d", "agent": "build", "model": "a/b", "subtask": true}));
    project.write(".opencode/commands/bad.md", "---\ndescription: [\n---\n\nx\n");
    project.write(".opencode/commands/stops.md", "---\nmodel: null\n---\n\nx\n");
    project.write(".opencode/commands/bare.md", "only text\n");
    project.write(".opencode/commands/no name.md", "x\n");
    fs::create_dir(project.work.join(".opencode/commands/folder.md")).unwrap();
    project.golden("commands", &project.get("/commands"));
    for (code, body) in [
        ("invalid_command_template", json!({"name": "x"})),
        ("invalid_command_template", json!({"name": "x", "template": " \n"})),
        ("invalid_command_name", json!({"name": "a/b", "template": "t"})),
        ("invalid_command_name", json!({"template": "t"})),
    ] {
        project.refused(400, code, "POST", "/commands", body);
    }
    for name in ["full", "full", "%2Fplain"] {
        assert_eq!(
            project.client.delete(200, &project.path(&format!("/commands/{name}"))),
            json!({"ok": true})
        );
    }
    assert!(!project.work.join(".opencode/commands/plain.md").exists());
    // The user's own commands are visible to owners only.
    let home = project.server.scratch().path().join("home");
    put(&home, ".config/opencode/commands/mine.md", "---\ndescription: d\n---\n\nx\n");
    project.refused(401, "unauthorized", "GET", "/commands?scope=global", Value::Null);
    let mine = project.server.owner().get(200, &project.path("/commands?scope=global"));
    assert_eq!((&mine["items"][0]["name"], &mine["items"][0]["scope"]), (&json!("mine"), &json!("global")));
}

#[test]
fn links_out_of_the_workspace_are_neither_read_nor_written() {
    let project = ProjectServer::open();
    let outside = project.server.scratch().folder("outside");
    put(&outside, "opencode.jsonc", "{\"model\": \"secret/secret\"}");
    put(&outside, "SKILL.md", &skill("leak", ""));
    put(&outside, "c.md", "secret\n");
    let up = Path::new("../outside");
    symlink(outside.join("opencode.jsonc"), project.work.join("opencode.jsonc")).unwrap();
    fs::create_dir_all(project.work.join(".opencode/skills/leak")).unwrap();
    symlink("../../../../outside/SKILL.md", project.work.join(".opencode/skills/leak/SKILL.md")).unwrap();
    fs::create_dir_all(project.work.join(".opencode/commands")).unwrap();
    symlink(outside.join("c.md"), project.work.join(".opencode/commands/c.md")).unwrap();
    symlink(up, project.work.join(".claude")).unwrap();
    fs::create_dir_all(outside.join("skills/out")).unwrap();
    put(&outside, "skills/out/SKILL.md", &skill("out", ""));
    for call in ["/config", "/skills", "/commands", "/mcp", "/plugins"] {
        let reply = project.client.call("GET", &project.path(call), None);
        assert!(!reply.text().contains("secret") && !reply.text().contains("\"out\""), "{call}: {reply}");
    }
    project.refused(404, "skill_not_found", "GET", "/skills/leak", Value::Null);
    // Their names are listed with the reason only; for a folder behind a link, the name of the folder.
    symlink("/etc", project.work.join(".opencode/skills/far")).unwrap();
    put(&project.work, ".opencode/skills/near/SKILL.md", &skill("near", ""));
    for (name, target) in [("data", "/etc"), ("notes.txt", "/etc/passwd")] {
        symlink(target, project.work.join(".opencode/skills/near").join(name)).unwrap();
    }
    symlink("nothing", project.work.join(".opencode/skills/dangling")).unwrap();
    let rows = |list: &str| -> Vec<(String, bool)> {
        let row = |row: &Value| {
            let why = row["error"].as_str().unwrap_or_default();
            assert!(why.is_empty() || why.contains("OpenCode follows it"), "{row}");
            (row["name"].as_str().unwrap().to_owned(), why.is_empty())
        };
        project.get(list)["items"].as_array().unwrap().iter().map(row).collect()
    };
    let want = [("near", true), ("far", false), ("leak", false), (".claude/skills", false)];
    assert_eq!(rows("/skills"), want.map(|(name, loads)| (name.to_owned(), loads)));
    assert_eq!(rows("/commands"), [("c".to_owned(), false)]);
    let export = project.get("/export");
    assert!(export["omitted"].to_string().contains(".opencode/skills/far"), "{export}");
    project.client.delete(200, &project.path("/skills/far"));
    assert!(!project.work.join(".opencode/skills/far").is_symlink() && Path::new("/etc/passwd").exists());
    let response =
        project.refused(400, "invalid_path", "PATCH", "/config", json!({"opencode": {"model": "a/b"}}));
    assert!(response["message"].as_str().unwrap().contains("symbolic link"), "{response}");
    project.post("/commands", json!({"name": "c", "template": "mine"}));
    project.post("/skills", json!({"name": "leak", "content": "mine", "description": "d"}));
    assert_eq!(fs::read_to_string(outside.join("c.md")).unwrap(), "secret\n");
    assert_eq!(fs::read_to_string(outside.join("SKILL.md")).unwrap(), skill("leak", ""));
    assert_eq!(fs::read_to_string(outside.join("opencode.jsonc")).unwrap(), "{\"model\": \"secret/secret\"}");
    assert!(!project.work.join(".opencode/commands/c.md").is_symlink());
}

#[test]
fn writes_wait_for_the_host_in_manual_mode() {
    let project = ProjectServer::of(Setup::new().arg("--approval=manual").start());
    let owner = project.server.owner();
    thread::scope(|scope| {
        let write = scope
            .spawn(|| project.post("/mcp", json!({"name": "a", "config": {"type": "remote", "url": "u"}})));
        let approval = loop {
            let list = owner.get(200, "/approvals");
            if let Some(item) = list["items"].get(0) {
                break item.clone();
            }
            thread::yield_now();
        };
        assert_eq!(approval["action"], "mcp.add");
        assert_eq!(approval["paths"], json!([project.work.join("opencode.jsonc")]));
        assert!(!project.work.join("opencode.jsonc").exists(), "nothing is written before the approval");
        owner.post(
            200,
            &format!("/approvals/{}", approval["id"].as_str().unwrap()),
            json!({"reply": "allow"}),
        );
        assert_eq!(write.join().unwrap()["items"][0]["name"], "a");
    });
    // Invalid requests are refused before a person is asked.
    project.refused(400, "invalid_mcp_config", "POST", "/mcp", json!({"name": "a", "config": {"type": "x"}}));
    assert_eq!(owner.get(200, "/approvals")["items"], json!([]));
}

#[test]
fn the_project_api_works_in_a_container() {
    let server = seeded().arg("--approval=auto").start();
    let place = Place::ready(&server, json!({}));
    let id = server.owner().get(200, "/workspaces")["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|item| item["path"] == json!(place.root))
        .unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let (client, base) = (server.collaborator(), format!("/workspace/{id}"));
    client.post(200, &format!("{base}/mcp"), json!({"name": "a", "config": {"type": "remote", "url": "u"}}));
    client.post(200, &format!("{base}/commands"), json!({"name": "c", "template": "t"}));
    let created =
        client.post(200, &format!("{base}/skills"), json!({"name": "s", "content": "x", "description": "d"}));
    assert_eq!(created["path"], "/.opencode/skills/s/SKILL.md", "the path inside of the container");
    let output = place.sh("stat -c '%u %g %a %n' /opencode.json /.opencode/commands/c.md /.opencode/skills/s/SKILL.md /.opencode");
    assert_eq!(
        output,
        "0 0 644 /opencode.json\n0 0 644 /.opencode/commands/c.md\n0 0 644 /.opencode/skills/s/SKILL.md\n0 0 755 /.opencode\n"
    );
    place.sh(
        "ln -s /etc/shadow /.opencode/commands/leak.md; echo '{\"model\": \"in/side\"}' > /opencode.json",
    );
    assert_eq!(client.get(200, &format!("{base}/config"))["opencode"], json!({"model": "in/side"}));
}
