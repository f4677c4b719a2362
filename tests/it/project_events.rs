//! Reload events: writes of the server are reported at once, other changes soon, and no change twice; the numbers
//! continue after a restart.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::events::Events;
use crate::fixture::{Place, seeded};
use crate::procs::secs;
use crate::project::{ProjectServer, put};
use crate::server::Setup;

/// The events since a cursor, as `reason type action name`.
fn event_lines(list: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| {
            let trigger = &item["trigger"];
            [&item["reason"], &trigger["type"], &trigger["action"], &trigger["name"]].map(word).join(" ")
        })
        .collect()
}

impl ProjectServer {
    fn cursor(&self) -> u64 {
        self.get("/events")["cursor"].as_u64().unwrap()
    }

    /// Waits until this many events have happened since the cursor.
    fn news(&self, since: u64, count: usize) -> Vec<String> {
        let start = Instant::now();
        loop {
            let list = self.get(&format!("/events?since={since}"));
            if list["items"].as_array().unwrap().len() >= count {
                return event_lines(&list);
            }
            assert!(start.elapsed() < secs(15), "{list}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn writes_of_the_server_are_reported_at_once_and_once() {
    let project = ProjectServer::open();
    assert_eq!(project.get("/events"), json!({"items": [], "cursor": 0}));
    project.patch(json!({"opencode": {"model": "a/b"}, "openwork": {"a": 1}}));
    project.patch(json!({"openwork": {"a": 2}}));
    project.post("/plugins", json!({"spec": "p@1"}));
    project.post("/plugins", json!({"spec": "p@2"}));
    project.client.delete(200, &project.path("/plugins/p"));
    project.client.delete(200, &project.path("/plugins/p"));
    let server = json!({"name": "m", "config": {"type": "remote", "url": "u"}});
    project.post("/mcp", server.clone());
    project.post("/mcp", server);
    project.client.delete(200, &project.path("/mcp/m"));
    project.client.delete(200, &project.path("/mcp/m"));
    project.post("/skills", json!({"name": "s", "content": "x", "description": "d"}));
    project.post("/skills", json!({"name": "s", "content": "y", "description": "d"}));
    project.client.delete(200, &project.path("/skills/s"));
    project.post("/commands", json!({"name": "c", "template": "t"}));
    project.client.delete(200, &project.path("/commands/c"));
    let list = project.get("/events");
    shop_golden(&project, &list);
    // The watcher reports no further change.
    project.write("AGENTS.md", "by hand");
    let cursor = list["cursor"].as_u64().unwrap();
    assert_eq!(project.news(cursor, 1), ["agents agent added -"]);
    thread::sleep(Duration::from_millis(1600));
    assert_eq!(project.cursor(), cursor + 1);
    // Invalid cursors are ignored, as observed.
    for since in ["", "x", "-1", "1.5"] {
        assert_eq!(project.get(&format!("/events?since={since}")), project.get("/events"));
    }
    assert_eq!(event_lines(&project.get(&format!("/events?since={cursor}"))).len(), 1);
}

fn shop_golden(project: &ProjectServer, list: &Value) {
    let mut list = list.clone();
    for item in list["items"].as_array_mut().unwrap() {
        assert!(uuid::Uuid::try_parse(item["id"].as_str().unwrap()).is_ok(), "{item}");
        item["id"] = json!("{uuid}");
    }
    project.golden("events", &list);
}

#[test]
fn changes_by_hand_are_reported() {
    let project = ProjectServer::open();
    project.write("opencode.json", "{}");
    let path = |name: &str| project.work.join(name);
    // The first scan may have been before or after the file above; both results are correct.
    thread::sleep(Duration::from_millis(1600));
    let mut since = project.cursor();
    let mut expect = |expected: &[&str], change: &dyn Fn()| {
        change();
        assert_eq!(project.news(since, expected.len()), expected);
        since = project.cursor();
    };
    expect(&["config config updated opencode.json"], &|| {
        project.write("opencode.json", "{\"model\": \"a/b\"}")
    });
    expect(&["skills skill added new"], &|| project.write(".opencode/skills/new/SKILL.md", "x"));
    expect(&["skills skill updated new"], &|| project.write(".opencode/skills/new/SKILL.md", "y"));
    expect(&["commands command added c"], &|| project.write(".opencode/commands/c.md", "x"));
    expect(&["agents agent added a"], &|| project.write(".opencode/agent/a.md", "x"));
    expect(&["plugins plugin added p.ts"], &|| project.write(".opencode/plugins/p.ts", "x"));
    expect(&["commands command removed c"], &|| fs::remove_file(path(".opencode/commands/c.md")).unwrap());
    expect(&["skills skill added cl"], &|| project.write(".claude/skills/cl/SKILL.md", "x"));
    // The way of an editor, and several at once: one event for each kind.
    expect(&["config config updated opencode.json"], &|| {
        project.write("opencode.json.swp", "{\"model\": \"c/d\"}");
        fs::rename(path("opencode.json.swp"), path("opencode.json")).unwrap();
    });
    expect(&["commands command updated -"], &|| {
        (0..50).for_each(|n| project.write(&format!(".opencode/commands/m{n}.md"), "x"));
    });
    // Everything is removed: one event for each kind that had entries.
    expect(
        &[
            "plugins plugin removed p.ts",
            "skills skill removed new",
            "agents agent removed a",
            "commands command updated -",
        ],
        &|| {
            fs::rename(path(".opencode"), path("elsewhere")).unwrap();
        },
    );
    expect(&["commands command added again"], &|| project.write(".opencode/commands/again.md", "x"));
    // Files that OpenCode does not read cause no event.
    project.write("notes.txt", "x");
    project.write("elsewhere/commands/m1.md", "y");
    project.write(".opencode/commands/notes.txt", "y");
    thread::sleep(Duration::from_millis(1600));
    assert_eq!(project.cursor(), since);
}

#[test]
fn links_out_of_the_workspace_are_not_watched() {
    let project = ProjectServer::open();
    let outside = project.server.scratch().folder("outside");
    fs::create_dir_all(outside.join("commands")).unwrap();
    symlink(&outside, project.work.join(".opencode")).unwrap();
    symlink("../outside", project.work.join(".claude")).unwrap();
    project.write("AGENTS.md", "x");
    project.news(0, 1);
    let since = project.cursor();
    put(&outside, "commands/c.md", "x");
    put(&outside, "skills/s/SKILL.md", "x");
    thread::sleep(Duration::from_millis(1600));
    assert_eq!(project.cursor(), since);
}

#[test]
fn numbers_and_events_survive_a_restart_and_a_crash() {
    let setup = Setup::new().arg("--approval=auto");
    let project = ProjectServer::of(setup.start());
    for n in 0..3 {
        project.post("/commands", json!({"name": format!("c{n}"), "template": "t"}));
    }
    let before = project.get("/events");
    let ProjectServer { server, .. } = project;
    server.crash();
    let project = ProjectServer::of(setup.start());
    assert_eq!(project.get("/events"), before);
    assert_eq!(project.get("/events?since=2"), json!({"items": [before["items"][2]], "cursor": 3}));
    project.post("/commands", json!({"name": "c", "template": "t"}));
    assert_eq!(project.cursor(), 4);
}

#[test]
fn the_stream_replays_and_follows() {
    let project = ProjectServer::open();
    project.post("/commands", json!({"name": "one", "template": "t"}));
    project.post("/commands", json!({"name": "two", "template": "t"}));
    let head = format!("GET {} HTTP/1.1\r\nLast-Event-ID: 1\r\n", project.path("/events/stream"));
    let mut stream = Events::ask(&project.server, &head, None);
    let event = stream.wait("reload").data;
    assert_eq!((&event["seq"], &event["trigger"]["name"]), (&json!(2), &json!("two")));
    project.write("AGENTS.md", "by hand");
    let event = stream.wait("reload").data;
    assert_eq!(
        (&event["reason"], &event["workspaceId"]),
        (&json!("agents"), &json!(project.base.trim_start_matches("/workspace/")))
    );
    assert_eq!(project.cursor(), 3);
}

#[test]
fn a_container_is_watched_from_the_first_call() {
    let server = seeded().arg("--approval=auto").start();
    let place = Place::ready(&server, json!({}));
    let list = server.owner().get(200, "/workspaces");
    let found =
        list["items"].as_array().unwrap().iter().find(|item| item["path"] == json!(place.root)).unwrap();
    let base = format!("/workspace/{}", found["id"].as_str().unwrap());
    let client = server.collaborator();
    client.post(200, &format!("{base}/commands"), json!({"name": "c", "template": "t"}));
    place.sh("sleep 1; echo x > /AGENTS.md");
    let start = Instant::now();
    loop {
        let list = client.get(200, &format!("{base}/events?since=1"));
        if list["cursor"] == json!(2) {
            assert_eq!(event_lines(&list), ["agents agent added -"]);
            assert_eq!(list["items"][0]["trigger"]["path"], "/AGENTS.md", "the path inside of the container");
            return;
        }
        assert!(start.elapsed() < secs(15), "{list}");
        thread::sleep(Duration::from_millis(20));
    }
}
