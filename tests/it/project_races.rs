//! A second process that swaps folders and files for links, as fast as it can, while configuration, skills, commands,
//! MCP servers and plugins are read, written and deleted: no file outside of the workspace is ever read, written or
//! deleted.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Client, Reply};
use crate::procs::{secs, wait_for};
use crate::project::{ProjectServer, put};
use crate::scratch::Scratch;
use crate::trays_races::{SECRET, Swapper, look};

/// The files of a workspace, each containing `word`, which would appear in a response.
fn fill(folder: &Path, word: &str) {
    let skill = |name: &str| format!("---\nname: {name}\ndescription: {word}\n---\n# {word}\n");
    let mcp = format!("{{\"type\": \"remote\", \"url\": \"http://{word}\"}}");
    put(
        folder,
        "opencode.jsonc",
        &format!(
            "{{\n  \"model\": \"a/{word}\",\n  \"plugin\": [\"{word}\"],\n  \"mcp\": {{\"old\": {mcp}}}\n}}\n"
        ),
    );
    put(folder, ".opencode/openwork.json", &format!("{{\"word\": \"{word}\"}}"));
    put(folder, ".opencode/plugins/x.js", word);
    put(folder, ".opencode/openwork/audit.jsonl", &format!("{{\"id\": \"{word}\", \"timestamp\": 1}}\n"));
    for place in [".opencode", ".claude"] {
        put(folder, &format!("{place}/skills/one/SKILL.md"), &skill("one"));
        put(folder, &format!("{place}/skills/one/more/file"), word);
        put(folder, &format!("{place}/skills/two/SKILL.md"), &skill("two"));
    }
    for name in ["c", "d"] {
        put(
            folder,
            &format!(".opencode/commands/{name}.md"),
            &format!("---\ndescription: {word}\n---\n{word}\n"),
        );
    }
}

fn clear(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().unwrap().is_dir();
        if is_folder { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

/// The targets outside: every swapped entry leads to a look-alike.
fn outside() -> (Scratch, String, Vec<String>) {
    let scratch = Scratch::new();
    let folder = scratch.folder("outside");
    fill(&folder, SECRET);
    for (from, name) in [
        (".opencode/skills", "skills"),
        (".opencode/skills/one", "one"),
        (".opencode/skills/one/SKILL.md", "SKILL.md"),
        (".opencode/skills/one/more", "more"),
        (".opencode/commands", "commands"),
        (".opencode/commands/c.md", "c.md"),
        (".opencode/plugins", "plugins"),
        (".opencode/openwork.json", "openwork.json"),
        (".opencode/openwork", "openwork"),
    ] {
        let copied = Command::new("cp").arg("-a").args([folder.join(from), folder.join(name)]).status();
        assert!(copied.unwrap().success(), "{from}");
    }
    let path = folder.to_str().unwrap().to_owned();
    let before = look(&path);
    (scratch, path, before)
}

/// Every read call; returns the number of successful ones.
fn read(client: &Client, base: &str, check: &dyn Fn(&str, &Reply) -> bool) -> usize {
    let calls = [
        "/config",
        "/skills",
        "/skills/one",
        "/commands",
        "/mcp",
        "/plugins?includeGlobal=true",
        "/export?secrets=true",
        "/audit?limit=200",
    ];
    calls.iter().filter(|call| check(call, &client.call("GET", &format!("{base}{call}"), None))).count()
}

/// Every write and delete call; returns the number of successful ones.
fn write(client: &Client, base: &str, check: &dyn Fn(&str, &Reply) -> bool) -> usize {
    let server = json!({"type": "remote", "url": "http://mine"});
    let skill = json!({"name": "one", "content": "# mine", "description": "mine"});
    let import = json!({
        "opencode": {"model": "mine/b"}, "openwork": {"mine": 2}, "skills": [skill],
        "commands": [{"name": "c", "template": "mine"}], "mode": {"skills": "replace", "commands": "replace"},
    });
    let calls = [
        ("PATCH", "/config", json!({"opencode": {"model": "mine/a"}, "openwork": {"mine": 1}})),
        ("POST", "/mcp", json!({"name": "m", "config": server})),
        ("POST", "/plugins", json!({"spec": "mine@1"})),
        ("POST", "/skills", skill.clone()),
        ("POST", "/commands", json!({"name": "c", "template": "mine"})),
        ("DELETE", "/mcp/m", json!({})),
        ("DELETE", "/plugins/mine", json!({})),
        ("DELETE", "/skills/one", json!({})),
        ("DELETE", "/commands/c", json!({})),
        ("POST", "/import", import),
    ];
    calls
        .iter()
        .filter(|(method, call, body)| {
            check(call, &client.call(method, &format!("{base}{call}"), Some(body)))
        })
        .count()
}

#[test]
fn project_files_are_never_accessed_through_a_swapped_link() {
    let project = ProjectServer::open();
    let (_scratch, outside, before) = outside();
    for swapped in [
        vec!["opencode.jsonc", ".opencode/openwork.json"],
        vec![".opencode"],
        vec![".opencode/skills", ".opencode/commands", ".opencode/plugins", ".opencode/openwork", ".claude"],
        vec![".opencode/skills/one", ".opencode/commands/c.md"],
        vec![".opencode/skills/one/SKILL.md", ".opencode/skills/one/more", ".claude/skills"],
    ] {
        // Restores the original state.
        clear(&project.work);
        fill(&project.work, "inside");
        let paths: Vec<String> =
            swapped.iter().map(|rel| project.work.join(rel).to_str().unwrap().to_owned()).collect();
        let check = |call: &str, reply: &Reply| {
            assert!(!reply.text().contains(SECRET), "{swapped:?} {call}: {reply}");
            let in_order = reply.status < 500 || reply.value()["code"] == "busy";
            assert!(in_order, "{swapped:?} {call}: {reply}");
            reply.status == 200
        };
        let mut swapper = Swapper::start(&outside, &paths);
        let end = Instant::now() + Duration::from_millis(1000);
        let (mut reads, mut writes, mut rounds) = (0, 0, 0);
        while Instant::now() < end || rounds < 3 {
            thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    write(&project.server.owner(), &project.base, &|call, reply| check(call, reply))
                });
                reads += read(&project.server.owner(), &project.base, &check);
                writes += writer.join().unwrap();
            });
            rounds += 1;
        }
        swapper.still_swaps();
        drop(swapper);
        assert!(reads > 0 && writes > 0, "{swapped:?}: {reads} reads and {writes} writes succeeded");
        assert_eq!(look(&outside), before, "{swapped:?}: something outside was changed");
    }
    // No lock blocks the next write.
    clear(&project.work);
    wait_for("a write to work again", secs(20), || {
        let body = json!({"opencode": {"model": "a/b"}});
        (project.client.call("PATCH", &project.path("/config"), Some(&body)).status == 200).then_some(())
    });
}
