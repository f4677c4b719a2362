//! The agents' own configuration in a workspace: what berth adds to the user's files, and that no content of the user
//! is lost.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::fixture::{Place, seeded};
use crate::opencode_serve::{OpenCode, VERSIONS};
use crate::server::Server;

fn put(server: &Server, path: &str, body: Value) {
    server.owner().call("PUT", &format!("/api/library/{path}"), Some(&body)).expect(200);
}

/// A library with one entry of each kind.
fn fill(server: &Server) {
    put(server, "skill/py", json!({"content": "---\ndescription: Python\n---\n# Py\n"}));
    put(server, "command/ship", json!({"content": "---\ndescription: Ship it\n---\nShip $ARGUMENTS\n"}));
    put(
        server,
        "agent/critic",
        json!({"content": "---\ndescription: Finds faults\nmode: subagent\n---\nBe strict.\n"}),
    );
    put(
        server,
        "mcps",
        json!({
            "My-Files": {"type": "local", "command": ["npx", "files", "--ro"], "env": {"LEVEL": "1"}, "enabled": true},
            "docs": {"type": "remote", "url": "http://127.0.0.1:9/mcp", "headers": {"X-Key": "k"}, "enabled": true},
            "off": {"type": "local", "command": ["off"], "enabled": false}
        }),
    );
    put(server, "plugins", json!({"notify": {"package": "@acme/notify@1.2.0", "ui": {"label": "Notify"}}}));
}

/// A host workspace's folder and its place in the API.
fn workspace(server: &Server, fields: Value) -> (PathBuf, String) {
    let mut body = json!({"name": "w"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let created = server.owner().post(200, "/api/workspaces", body);
    let folder = PathBuf::from(created["path"].as_str().unwrap());
    (folder, format!("/api/workspaces/{}", created["id"].as_str().unwrap()))
}

fn read(folder: &Path, path: &str) -> Option<String> {
    fs::read_to_string(folder.join(path)).ok()
}

fn parsed(folder: &Path, path: &str) -> Value {
    serde_json::from_str(&read(folder, path).unwrap_or_else(|| panic!("no {path}"))).unwrap()
}

#[test]
fn agents_are_configured_only_on_request() {
    let server = Server::start();
    fill(&server);
    let (plain, _) = workspace(&server, json!({}));
    assert_eq!(fs::read_dir(&plain).unwrap().count(), 0, "this workspace requests no configuration");
    let (folder, url) = workspace(&server, json!({"skills": ["py"], "plugins": ["notify", "unknown"]}));
    let config = parsed(&folder, "opencode.json");
    assert_eq!(config, parsed(&folder, ".opencode/opencode.json"));
    assert_eq!(config["plugin"], json!(["@acme/notify@1.2.0"]));
    assert_eq!(
        config["permission"],
        json!({"skill": {"*": "deny", "py": "allow"}}),
        "the host allows no more"
    );
    assert_eq!(config.get("tools"), None);
    let files = &config["mcp"]["my_files"];
    assert_eq!((&files["type"], &files["command"]), (&json!("local"), &json!(["npx", "files", "--ro"])));
    assert_eq!(files["environment"]["LEVEL"], "1");
    assert_eq!(files["environment"]["WORKING_DIR"], folder.to_str().unwrap());
    let docs = json!({"type": "remote", "url": "http://127.0.0.1:9/mcp", "headers": {"X-Key": "k"}, "enabled": true});
    assert_eq!(config["mcp"]["docs"], docs);
    assert_eq!(config["mcp"].get("off"), None);
    let claude = parsed(&folder, ".claude/settings.local.json");
    assert_eq!(claude["mcpServers"]["my_files"]["command"], "npx");
    assert_eq!(claude["mcpServers"]["my_files"]["args"], json!(["files", "--ro"]));
    assert_eq!(claude.get("permissions"), None);
    assert!(read(&folder, "CLAUDE.md").unwrap().contains("# sandboxed.sh Workspace\n"));
    for place in [".opencode/command/ship.md", ".claude/commands/ship.md"] {
        assert!(read(&folder, place).unwrap().ends_with("Ship $ARGUMENTS\n"), "{place}");
    }
    for place in [".opencode/agent/critic.md", ".claude/agents/critic.md"] {
        assert!(read(&folder, place).unwrap().ends_with("Be strict.\n"), "{place}");
    }
    // An entry that only Claude Code supports does not prevent the sync for OpenCode.
    put(
        &server,
        "agent/reader",
        json!({"content": "---\ndescription: Reads\ntools: Read, Grep\n---\nRead.\n"}),
    );
    assert!(read(&folder, ".claude/agents/reader.md").is_some());
    assert_eq!(read(&folder, ".opencode/agent/reader.md"), None);
    // Only the named entries; and with no entry named, no file remains.
    server.owner().put(200, &url, json!({"mcps": ["docs"]}));
    assert_eq!(parsed(&folder, "opencode.json")["mcp"], json!({"docs": docs}));
    server.owner().put(200, &url, json!({"mcps": [], "skills": [], "plugins": []}));
    for path in ["opencode.json", ".opencode/opencode.json", ".claude/settings.local.json", "CLAUDE.md"] {
        assert_eq!(read(&folder, path), None, "{path}");
    }
    assert_eq!(read(&folder, ".opencode/command/ship.md"), None);
}

#[test]
fn files_of_the_user_are_kept() {
    let server = Server::start();
    fill(&server);
    let (folder, url) = workspace(&server, json!({}));
    let mine = "{\n  // the one I pay for\n  \"model\": \"acme/large\",\n  \"mcp\": {\n    \"docs\": {\"type\": \"remote\", \"url\": \"http://127.0.0.1:9/mine\", \"enabled\": false}, // slow\n  },\n  \"plugin\": [\"my-own\"],\n}\n";
    fs::write(folder.join("opencode.json"), mine).unwrap();
    fs::write(folder.join("CLAUDE.md"), "# House rules\n\nNo tabs.\n").unwrap();
    fs::create_dir_all(folder.join(".opencode/skill/py")).unwrap();
    fs::write(folder.join(".opencode/skill/py/SKILL.md"), "my own python\n").unwrap();
    fs::create_dir_all(folder.join(".claude")).unwrap();
    fs::write(folder.join(".claude/settings.local.json"), "{ not json").unwrap();
    server.owner().put(200, &url, json!({"skills": ["py"], "plugins": ["notify"]}));
    let text = read(&folder, "opencode.json").unwrap();
    for stored in ["// the one I pay for", "\"model\": \"acme/large\"", "http://127.0.0.1:9/mine", "// slow"]
    {
        assert!(text.contains(stored), "{stored}: {text}");
    }
    assert!(
        text.contains("my_files") && text.contains("@acme/notify@1.2.0") && text.contains("\"my-own\""),
        "{text}"
    );
    let rules = read(&folder, "CLAUDE.md").unwrap();
    assert!(rules.starts_with("# House rules\n\nNo tabs.\n\n<!-- berth:begin -->\n"), "{rules}");
    assert_eq!(read(&folder, ".opencode/skill/py/SKILL.md").unwrap(), "my own python\n");
    assert_eq!(read(&folder, ".claude/settings.local.json").unwrap(), "{ not json");
    assert!(server.log().contains("settings.local.json was not changed"), "{}", server.log());
    // Changed by hand between two syncs: the change takes effect at the next one.
    fs::write(folder.join("opencode.json"), text.replace("\"LEVEL\": \"1\"", "\"LEVEL\": \"2\"")).unwrap();
    server.owner().post(200, &format!("{url}/sync"), json!({}));
    assert!(read(&folder, "opencode.json").unwrap().contains("\"LEVEL\": \"2\""));
    server.owner().put(200, &url, json!({"skills": [], "plugins": []}));
    let remaining = read(&folder, "opencode.json").unwrap();
    assert!(
        remaining.contains("\"LEVEL\": \"2\"")
            && remaining.contains("\"my-own\"")
            && !remaining.contains("acme/notify"),
        "{remaining}"
    );
    assert_eq!(read(&folder, "CLAUDE.md").unwrap(), "# House rules\n\nNo tabs.\n");
    assert_eq!(read(&folder, ".opencode/skill/py/SKILL.md").unwrap(), "my own python\n");
}

#[test]
fn a_second_sync_writes_nothing() {
    let server = Server::start();
    fill(&server);
    let (folder, url) = workspace(&server, json!({"skills": ["py"], "plugins": ["notify"]}));
    let state = || {
        let mut found = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap().flatten() {
                let metadata = entry.metadata().unwrap();
                found.push((entry.path(), metadata.ino(), metadata.mtime_nsec(), metadata.ctime_nsec()));
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        found.sort();
        found
    };
    let before = state();
    assert!(before.len() > 10, "{before:?}");
    server.owner().post(200, &format!("{url}/sync"), json!({}));
    assert_eq!(state(), before);
}

#[test]
fn a_link_in_the_place_of_configuration_is_not_followed() {
    let server = Server::start();
    fill(&server);
    let (folder, url) = workspace(&server, json!({}));
    let outside = server.scratch().folder("outside");
    fs::write(outside.join("target.json"), "{}").unwrap();
    symlink(outside.join("target.json"), folder.join("opencode.json")).unwrap();
    symlink("/dev/null", folder.join("CLAUDE.md")).unwrap();
    server.owner().put(200, &url, json!({"plugins": ["notify"]}));
    server.owner().post(200, &format!("{url}/sync"), json!({}));
    assert_eq!(fs::read_to_string(outside.join("target.json")).unwrap(), "{}");
    assert!(fs::symlink_metadata(folder.join("opencode.json")).unwrap().is_symlink());
    assert_eq!(parsed(&folder, ".opencode/opencode.json")["plugin"], json!(["@acme/notify@1.2.0"]));
}

#[test]
fn agents_in_a_container_may_work_without_asking() {
    let server = seeded().start();
    fill(&server);
    let place = Place::ready(&server, json!({"skills": ["py"], "env_vars": {"SECRET": "s3cr3t"}}));
    let config = place
        .exec(json!({"command": "cat /opencode.json && stat -c %u:%g /opencode.json /.claude /CLAUDE.md"}));
    let text = config["stdout"].as_str().unwrap();
    let (json, owners) = text.rsplit_once("}\n").unwrap();
    assert_eq!(owners, "0:0\n0:0\n0:0\n");
    let config: Value = serde_json::from_str(&format!("{json}}}")).unwrap();
    for tool in ["bash", "edit", "external_directory", "doom_loop", "question"] {
        assert_eq!(config["permission"][tool], "allow", "{tool}");
    }
    assert_eq!(config["tools"]["workspace_*"], false);
    assert_eq!(config["mcp"]["my_files"]["environment"]["SANDBOXED_SH_WORKSPACE_TYPE"], "container");
    let found = place.exec(json!({"command": "grep -rl s3cr3t /opencode.json /.opencode /.claude /CLAUDE.md; cat /.claude/settings.local.json"}));
    let claude: Value = serde_json::from_str(found["stdout"].as_str().unwrap()).unwrap();
    assert_eq!(
        claude["permissions"]["allow"],
        json!(["Bash", "Edit", "Write", "Read", "mcp__docs", "mcp__my_files"])
    );
}

#[test]
fn the_real_opencode_accepts_what_berth_writes() {
    let server = Server::start();
    fill(&server);
    put(&server, "plugins", json!({}));
    let (folder, url) = workspace(&server, json!({}));
    fs::write(folder.join("opencode.jsonc"), "{\n  // mine\n  \"username\": \"me\",\n}\n").unwrap();
    server.owner().put(200, &url, json!({"skills": ["py"], "mcps": ["docs", "My-Files"]}));
    // The permissions that berth sets in containers, in a folder where OpenCode can be started.
    let boxed =
        server.owner().post(200, "/api/workspaces", json!({"name": "b", "workspace_type": "container"}));
    let boxed_folder = PathBuf::from(boxed["path"].as_str().unwrap());
    for empty in ["usr", "etc", "var"] {
        fs::create_dir_all(boxed_folder.join(empty)).unwrap();
    }
    server.owner().post(200, &format!("/api/workspaces/{}/sync", boxed["id"].as_str().unwrap()), json!({}));
    assert!(parsed(&boxed_folder, "opencode.json")["permission"]["bash"] == "allow");
    for version in VERSIONS {
        let opencode = OpenCode::start(version, &folder);
        for folder in [&folder, &boxed_folder] {
            let ask = |path: &str| {
                opencode.client().get(200, &format!("{path}?directory={}", folder.to_str().unwrap()))
            };
            let config = ask("/config");
            assert_eq!(config["mcp"]["docs"]["url"], "http://127.0.0.1:9/mcp", "{version}: {config}");
            assert_eq!(config["mcp"]["my_files"]["command"], json!(["npx", "files", "--ro"]), "{version}");
            if config["permission"]["bash"] != "allow" {
                assert_eq!(config["username"], "me", "{version}: the user's settings are present as well");
                assert_eq!(config["permission"]["skill"], json!({"*": "deny", "py": "allow"}), "{version}");
            }
            for (list, name, description) in
                [("/command", "ship", "Ship it"), ("/agent", "critic", "Finds faults")]
            {
                let all = ask(list);
                let found = all.as_array().unwrap().iter().find(|one| one["name"] == name);
                assert_eq!(found.unwrap()["description"], description, "{version}: {list}");
            }
        }
    }
}
