//! The library edited by hand: with an editor, with git, in any order. Changes reach the workspaces automatically, and
//! a broken file affects no other file.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::fixture::{Place, seeded};
use crate::procs::{secs, wait_for};
use crate::server::{Server, Setup};

fn put(server: &Server, path: &str, body: Value) {
    server.owner().call("PUT", &format!("/api/library/{path}"), Some(&body)).expect(200);
}

/// Writes as editors do, including the folders.
#[track_caller]
fn write(library: &Path, path: &str, text: impl AsRef<[u8]>) {
    let path = library.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Returns the folder of a new host workspace.
fn workspace(server: &Server, fields: Value) -> PathBuf {
    let mut body = json!({"name": "w"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    PathBuf::from(server.owner().post(200, "/api/workspaces", body)["path"].as_str().unwrap())
}

#[track_caller]
fn wait_for_text(folder: &Path, path: &str, text: &str) {
    wait_for(&format!("{text:?} in {path}"), secs(30), || {
        fs::read_to_string(folder.join(path)).is_ok_and(|found| found.contains(text)).then_some(())
    });
}

#[track_caller]
fn wait_until_removed(folder: &Path, path: &str) {
    wait_for(&format!("{path} to go"), secs(30), || (!folder.join(path).exists()).then_some(()));
}

#[test]
fn hand_edits_reach_the_workspaces_that_use_the_entry() {
    let setup = Setup::new();
    let server = setup.start();
    let library = setup.data_dir().join("library");
    let using = workspace(&server, json!({"skills": ["py"], "tools": ["door"], "plugins": ["notify"]}));
    let other = workspace(&server, json!({}));
    // None of it existed when the server began to watch.
    write(&library, "skill/py/SKILL.md", "# First\n");
    wait_for_text(&using, ".claude/skills/py/SKILL.md", "# First");
    write(&library, "skill/py/docs/deep/more.md", "more");
    wait_for_text(&using, ".opencode/skill/py/docs/deep/more.md", "more");
    write(&library, "tool/door.ts", "export {}");
    wait_for_text(&using, ".opencode/tool/door.ts", "export {}");
    write(&library, "command/ship.md", "---\ndescription: Ship\n---\nShip it\n");
    wait_for_text(&using, ".claude/commands/ship.md", "Ship it");
    write(&library, "plugins.json", "{\"notify\": {\"package\": \"@acme/notify\"}}");
    wait_for_text(&using, "opencode.json", "@acme/notify");
    write(
        &library,
        "mcp/servers.json",
        "{\"docs\": {\"type\": \"remote\", \"url\": \"http://127.0.0.1:9/x\"}}",
    );
    wait_for_text(&using, "opencode.json", "127.0.0.1:9");
    // As editors save: a new file replaces the old one.
    write(&library, "skill/py/.SKILL.md.swp", "# Second\n");
    fs::rename(library.join("skill/py/.SKILL.md.swp"), library.join("skill/py/SKILL.md")).unwrap();
    wait_for_text(&using, ".claude/skills/py/SKILL.md", "# Second");
    fs::remove_dir_all(library.join("skill/py/docs")).unwrap();
    wait_until_removed(&using, ".opencode/skill/py/docs/deep/more.md");
    fs::remove_file(library.join("tool/door.ts")).unwrap();
    wait_until_removed(&using, ".opencode/tool/door.ts");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 0, "this workspace does not use the entry");

    // The whole folder is recreated, as by `git clone`.
    let next = library.with_extension("next");
    write(&next, "skill/py/SKILL.md", "# Third\n");
    fs::rename(&library, library.with_extension("old")).unwrap();
    server.owner().refused(503, "unavailable", "GET", "/api/library/skill", None);
    fs::rename(&next, &library).unwrap();
    wait_for_text(&using, ".claude/skills/py/SKILL.md", "# Third");
    wait_until_removed(&using, ".claude/commands/ship.md");
    write(&library, "skill/py/SKILL.md", "# Fourth\n");
    wait_for_text(&using, ".claude/skills/py/SKILL.md", "# Fourth");

    // Changes made while no server is running take effect at the next start.
    server.stop();
    write(&library, "skill/py/SKILL.md", "# Fifth\n");
    let server = setup.start();
    wait_for_text(&using, ".claude/skills/py/SKILL.md", "# Fifth");
    let written = || fs::metadata(using.join(".claude/skills/py/SKILL.md")).unwrap().modified().unwrap();
    let before = written();
    server.stop();
    let server = setup.start();
    put(&server, "skill/other", json!({"content": "# Other\n"}));
    assert_eq!(written(), before);
}

#[test]
fn a_git_checkout_updates_containers() {
    let setup = seeded();
    let library = setup.data_dir().join("library");
    let git = |words: &[&str]| {
        let done = Command::new("git")
            .args(["-c", "user.name=x", "-c", "user.email=x@y.z", "-c", "init.defaultBranch=main"])
            .args(words)
            .current_dir(&library)
            .output()
            .unwrap();
        assert!(done.status.success(), "{words:?}: {done:?}");
    };
    write(&library, "skill/py/SKILL.md", "# Old\n");
    git(&["init", "--quiet"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "old"]);
    git(&["checkout", "--quiet", "-b", "next"]);
    write(&library, "skill/py/SKILL.md", "# New\n");
    git(&["commit", "--quiet", "-a", "-m", "new"]);
    let server = setup.start();
    let place = Place::ready(&server, json!({"name": "box", "skills": ["py"]}));
    let text = "/.claude/skills/py/SKILL.md";
    assert!(place.sh(&format!("cat {text}")).ends_with("# New\n"));
    git(&["checkout", "--quiet", "main"]);
    wait_for("the checkout in the container", secs(30), || {
        place.sh(&format!("cat {text}")).ends_with("# Old\n").then_some(())
    });
    assert_eq!(
        server.owner().get(200, "/api/library/skill").as_array().unwrap().len(),
        1,
        "git's own folder is no entry"
    );
}

#[test]
fn a_broken_file_of_any_kind_affects_no_other() {
    let setup = Setup::new();
    let library = setup.data_dir().join("library");
    for (path, broken) in [
        ("workspace-template/bad.json", &b"{ not json"[..]),
        ("workspace-template/wrong.json", b"{\"skills\": 7}"),
        ("skill/bad/SKILL.md", b"---\ndescription: [\nsetup_commands:\n  - echo x\n---\n# X\n"),
        ("skill/binary/SKILL.md", b"\xff\xfe"),
        ("skill/half/SKILL.md", b"# Half\n"),
        ("skill/half/bad.md", b"\xff\xfe"),
        ("skill/half/good.md", b"good"),
        ("tool/bad.ts", b"\xff\xfe"),
        ("command/bad.md", b"---\ndescription: [\n---\n"),
        ("command/binary.md", b"\xff\xfe"),
        ("agent/bad.md", b"---\n: [\n---\n"),
        ("agent/binary.md", b"\xff\xfe"),
        ("init-script/bad/SCRIPT.sh", b"\xff\xfe"),
        ("plugins.json", b"[]"),
        ("mcp/servers.json", b"{\"x\": "),
        ("configs/default/.opencode/oh-my-opencode.json", b"{ nothing"),
    ] {
        write(&library, path, broken);
    }
    // Special files must not block the server either.
    for folder in
        ["tool/folder.ts", "command/folder.md", "workspace-template/folder.json", "skill/odd/SKILL.md"]
    {
        fs::create_dir_all(library.join(folder)).unwrap();
    }
    let _socket = UnixListener::bind(library.join("tool/socket.ts")).unwrap();
    assert!(Command::new("mkfifo").arg(library.join("agent/fifo.md")).status().unwrap().success());
    write(&library, "tool/large.ts", vec![b'x'; (1 << 20) + 1]);

    let server = setup.start();
    let owner = server.owner();
    for (path, body) in [
        ("workspace-template/good", json!({"description": "good"})),
        ("skill/good", json!({"content": "---\ndescription: good\n---\n# Good\n"})),
        ("tool/good", json!({"content": "/** good */\nexport {}"})),
        ("command/good", json!({"content": "---\ndescription: good\n---\nGood\n"})),
        ("agent/good", json!({"content": "---\ndescription: good\nmode: subagent\n---\nGood\n"})),
        ("init-script/good", json!({"content": "#!/bin/sh\n# good\n"})),
    ] {
        put(&server, path, body);
        let (kind, _) = path.split_once('/').unwrap();
        let rows = owner.get(200, &format!("/api/library/{kind}"));
        for row in rows.as_array().unwrap() {
            let name = row["name"].as_str().unwrap();
            // `half` is listed with a broken file beside it, and its view reports that.
            let good = ["good", "half"].contains(&name);
            assert_eq!(row["error"].is_null(), good, "{kind}: {row}");
            assert!(name != "good" || row["description"] == "good", "{row}");
        }
        assert!(rows.as_array().unwrap().len() > 1, "{kind}: {rows}");
    }
    let half = owner.get(200, "/api/library/skill/half");
    assert_eq!(half["content"], "# Half\n");
    let files = half["files"].as_array().unwrap();
    assert!(files[0]["error"].as_str().unwrap().contains("UTF-8"), "{half}");
    assert_eq!((&files[1]["content"], &files[1]["error"]), (&json!("good"), &Value::Null));
    for path in ["skill/binary", "tool/bad", "tool/folder", "tool/socket", "agent/fifo", "tool/large"] {
        owner.refused(400, "invalid_path", "GET", &format!("/api/library/{path}"), None);
    }
    for path in ["plugins", "mcps", "workspace-template/bad", "workspace-template/wrong"] {
        owner.refused(409, "conflict", "GET", &format!("/api/library/{path}"), None);
    }

    // A workspace that uses broken entries gets the others.
    let folder = workspace(
        &server,
        json!({"skills": ["bad", "binary", "half", "odd", "good"], "tools": ["bad", "folder", "large", "good"],
            "plugins": ["x"], "mcps": ["x"]}),
    );
    for path in [
        ".claude/skills/good/SKILL.md",
        ".claude/skills/half/SKILL.md",
        ".claude/skills/half/good.md",
        // Files that berth cannot show as text are data.
        ".claude/skills/half/bad.md",
        ".opencode/tool/good.ts",
        ".opencode/command/good.md",
        ".claude/agents/good.md",
        "opencode.json",
        "CLAUDE.md",
    ] {
        assert!(folder.join(path).is_file(), "{path} was not copied: {}", server.log());
    }
    for path in [".claude/skills/binary", ".opencode/tool/bad.ts"] {
        assert!(!folder.join(path).exists(), "{path}");
    }
    let log = server.log();
    for expected in ["skill/binary/SKILL.md is not UTF-8", "tool/bad.ts is not UTF-8", "plugins.json"] {
        assert!(log.contains(expected), "no line contains {expected:?}:\n{log}");
    }
    // The default workspace, which has all skills and tools, gets all valid ones.
    let all = "/api/workspaces/00000000-0000-0000-0000-000000000000";
    owner.post(200, &format!("{all}/sync"), json!({}));
    // It arrives after it was repaired by hand.
    write(&library, "skill/binary/SKILL.md", "# Mended\n");
    wait_for_text(&folder, ".claude/skills/binary/SKILL.md", "# Mended");
}

#[test]
fn a_build_reports_unreadable_library_files() {
    let server = seeded().start();
    let library = server.data.join("library");
    write(&library, "skill/bad/SKILL.md", "---\nsetup_commands: [\n---\n# X\n");
    write(&library, "skill/good/SKILL.md", "---\nsetup_commands:\n  - echo set up\n---\n# X\n");
    write(&library, "init-script/binary/SCRIPT.sh", b"\xff\xfe");
    put(
        &server,
        "workspace-template/t",
        json!({"distro": "bookworm", "skills": ["bad", "good"], "init_scripts": ["binary"]}),
    );
    let created = server.owner().post(200, "/api/workspaces", json!({"name": "x", "template": "t"}));
    let place = Place::of(&server, &created);
    let settled = place.settled();
    assert_eq!(settled["status"], "ready", "{settled}");
    let log = place.init_log();
    for expected in ["set up", "init-script/binary/SCRIPT.sh is not UTF-8", "setup commands of skill bad"] {
        assert!(log.contains(expected), "no line contains {expected:?}:\n{log}");
    }
}
