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
use crate::project::{Shop, put};
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

impl Shop {
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
    let shop = Shop::open();
    assert_eq!(shop.get("/events"), json!({"items": [], "cursor": 0}));
    shop.patch(json!({"opencode": {"model": "a/b"}, "openwork": {"a": 1}}));
    shop.patch(json!({"openwork": {"a": 2}}));
    shop.post("/plugins", json!({"spec": "p@1"}));
    shop.post("/plugins", json!({"spec": "p@2"}));
    shop.client.delete(200, &shop.path("/plugins/p"));
    shop.client.delete(200, &shop.path("/plugins/p"));
    let server = json!({"name": "m", "config": {"type": "remote", "url": "u"}});
    shop.post("/mcp", server.clone());
    shop.post("/mcp", server);
    shop.client.delete(200, &shop.path("/mcp/m"));
    shop.client.delete(200, &shop.path("/mcp/m"));
    shop.post("/skills", json!({"name": "s", "content": "x", "description": "d"}));
    shop.post("/skills", json!({"name": "s", "content": "y", "description": "d"}));
    shop.client.delete(200, &shop.path("/skills/s"));
    shop.post("/commands", json!({"name": "c", "template": "t"}));
    shop.client.delete(200, &shop.path("/commands/c"));
    let list = shop.get("/events");
    shop_golden(&shop, &list);
    // The watcher reports no further change.
    shop.write("AGENTS.md", "by hand");
    let cursor = list["cursor"].as_u64().unwrap();
    assert_eq!(shop.news(cursor, 1), ["agents agent added -"]);
    thread::sleep(Duration::from_millis(1600));
    assert_eq!(shop.cursor(), cursor + 1);
    // Invalid cursors are ignored, as observed.
    for since in ["", "x", "-1", "1.5"] {
        assert_eq!(shop.get(&format!("/events?since={since}")), shop.get("/events"));
    }
    assert_eq!(event_lines(&shop.get(&format!("/events?since={cursor}"))).len(), 1);
}

fn shop_golden(shop: &Shop, list: &Value) {
    let mut list = list.clone();
    for item in list["items"].as_array_mut().unwrap() {
        assert!(uuid::Uuid::try_parse(item["id"].as_str().unwrap()).is_ok(), "{item}");
        item["id"] = json!("{uuid}");
    }
    shop.golden("events", &list);
}

#[test]
fn changes_by_hand_are_reported() {
    let shop = Shop::open();
    shop.write("opencode.json", "{}");
    let path = |name: &str| shop.work.join(name);
    // The first scan may have been before or after the file above; both results are correct.
    thread::sleep(Duration::from_millis(1600));
    let mut since = shop.cursor();
    let mut expect = |expected: &[&str], change: &dyn Fn()| {
        change();
        assert_eq!(shop.news(since, expected.len()), expected);
        since = shop.cursor();
    };
    expect(&["config config updated opencode.json"], &|| shop.write("opencode.json", "{\"model\": \"a/b\"}"));
    expect(&["skills skill added new"], &|| shop.write(".opencode/skills/new/SKILL.md", "x"));
    expect(&["skills skill updated new"], &|| shop.write(".opencode/skills/new/SKILL.md", "y"));
    expect(&["commands command added c"], &|| shop.write(".opencode/commands/c.md", "x"));
    expect(&["agents agent added a"], &|| shop.write(".opencode/agent/a.md", "x"));
    expect(&["plugins plugin added p.ts"], &|| shop.write(".opencode/plugins/p.ts", "x"));
    expect(&["commands command removed c"], &|| fs::remove_file(path(".opencode/commands/c.md")).unwrap());
    expect(&["skills skill added cl"], &|| shop.write(".claude/skills/cl/SKILL.md", "x"));
    // The way of an editor, and several at once: one event for each kind.
    expect(&["config config updated opencode.json"], &|| {
        shop.write("opencode.json.swp", "{\"model\": \"c/d\"}");
        fs::rename(path("opencode.json.swp"), path("opencode.json")).unwrap();
    });
    expect(&["commands command updated -"], &|| {
        (0..50).for_each(|n| shop.write(&format!(".opencode/commands/m{n}.md"), "x"));
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
    expect(&["commands command added again"], &|| shop.write(".opencode/commands/again.md", "x"));
    // Files that OpenCode does not read cause no event.
    shop.write("notes.txt", "x");
    shop.write("elsewhere/commands/m1.md", "y");
    shop.write(".opencode/commands/notes.txt", "y");
    thread::sleep(Duration::from_millis(1600));
    assert_eq!(shop.cursor(), since);
}

#[test]
fn links_out_of_the_workspace_are_not_watched() {
    let shop = Shop::open();
    let outside = shop.server.scratch().folder("outside");
    fs::create_dir_all(outside.join("commands")).unwrap();
    symlink(&outside, shop.work.join(".opencode")).unwrap();
    symlink("../outside", shop.work.join(".claude")).unwrap();
    shop.write("AGENTS.md", "x");
    shop.news(0, 1);
    let since = shop.cursor();
    put(&outside, "commands/c.md", "x");
    put(&outside, "skills/s/SKILL.md", "x");
    thread::sleep(Duration::from_millis(1600));
    assert_eq!(shop.cursor(), since);
}

#[test]
fn numbers_and_events_survive_a_restart_and_a_crash() {
    let setup = Setup::new().arg("--approval=auto");
    let shop = Shop::of(setup.start());
    for n in 0..3 {
        shop.post("/commands", json!({"name": format!("c{n}"), "template": "t"}));
    }
    let before = shop.get("/events");
    let Shop { server, .. } = shop;
    server.crash();
    let shop = Shop::of(setup.start());
    assert_eq!(shop.get("/events"), before);
    assert_eq!(shop.get("/events?since=2"), json!({"items": [before["items"][2]], "cursor": 3}));
    shop.post("/commands", json!({"name": "c", "template": "t"}));
    assert_eq!(shop.cursor(), 4);
}

#[test]
fn the_stream_replays_and_follows() {
    let shop = Shop::open();
    shop.post("/commands", json!({"name": "one", "template": "t"}));
    shop.post("/commands", json!({"name": "two", "template": "t"}));
    let head = format!("GET {} HTTP/1.1\r\nLast-Event-ID: 1\r\n", shop.path("/events/stream"));
    let mut stream = Events::ask(&shop.server, &head, None);
    let event = stream.wait("reload").data;
    assert_eq!((&event["seq"], &event["trigger"]["name"]), (&json!(2), &json!("two")));
    shop.write("AGENTS.md", "by hand");
    let event = stream.wait("reload").data;
    assert_eq!(
        (&event["reason"], &event["workspaceId"]),
        (&json!("agents"), &json!(shop.base.trim_start_matches("/workspace/")))
    );
    assert_eq!(shop.cursor(), 3);
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
            assert_eq!(list["items"][0]["trigger"]["path"], "/AGENTS.md", "as it is called inside");
            return;
        }
        assert!(start.elapsed() < secs(15), "{list}");
        thread::sleep(Duration::from_millis(20));
    }
}
