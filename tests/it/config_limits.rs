//! Configuration files with which a workload tries to block the server, and configurations with which OpenCode does not
//! start.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::procs::secs;
use crate::project::ProjectServer;

/// Files that once made one edit take a minute, and similar ones.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let list = |piece: &str, count: usize| vec![piece; count].join(",");
    let keys = |count: usize| (0..count).map(|n| format!("\"k{n}\":{{}}")).collect::<Vec<_>>().join(",");
    vec![
        ("equal keys", format!("{{{}}}", list("\"mcp\":{}", 30_000)).into()),
        ("distinct keys", format!("{{{}}}", keys(30_000)).into()),
        ("just enough keys", format!("{{\"mcp\":{{{}}}}}", keys(9_000)).into()),
        ("just enough equal keys", format!("{{{}}}", list("\"mcp\":{}", 9_900)).into()),
        ("plugins", format!("{{\"plugin\":[{}]}}", list("\"a\"", 19_000)).into()),
        ("more plugins", format!("{{\"plugin\":[{}]}}", list("\"a\"", 200_000)).into()),
        ("deep", "{\"a\":".repeat(100_000).into()),
        ("comment", format!("/{}/\n{{}}", "* x *".repeat(100_000)).into()),
        ("comments", format!("{{}}{}", "\n// c".repeat(100_000)).into()),
        ("open comments", "/* ".repeat(300_000).into()),
        ("number", format!("{{\"a\":{}}}", "9".repeat(900_000)).into()),
        ("exponent", b"{\"a\":1e999999999}".to_vec()),
        ("string", format!("{{\"a\":\"{}\"}}", "\\u0041".repeat(150_000)).into()),
        ("references", format!("{{\"a\":\"{}\"}}", "{file:x}".repeat(100_000)).into()),
        ("commas", ",".repeat(1_000_000).into()),
        ("zeros", vec![0; 1_000_000]),
        ("not UTF-8", vec![0xff; 1_000_000]),
    ]
}

#[test]
fn no_configuration_makes_an_edit_slow() {
    let project = ProjectServer::open();
    let longest = secs(5);
    for (name, bytes) in hostile() {
        fs::write(project.work.join("opencode.json"), bytes).unwrap();
        let calls: [(&str, &str, Option<Value>); 8] = [
            ("GET", "/config", None),
            ("PATCH", "/config", Some(json!({"opencode": {"model": "x/y"}}))),
            ("GET", "/mcp", None),
            ("POST", "/mcp", Some(json!({"name": "m", "config": {"type": "remote", "url": "http://h"}}))),
            ("DELETE", "/mcp/k5", None),
            ("POST", "/plugins", Some(json!({"spec": "b@1"}))),
            ("DELETE", "/plugins/a", None),
            ("POST", "/import", Some(json!({"opencode": {"model": "z/y"}}))),
        ];
        for (method, call, body) in calls {
            let begun = Instant::now();
            let reply = project.client.call(method, &project.path(call), body.as_ref());
            assert!(begun.elapsed() < longest, "{name}: {method} {call} took {:?}", begun.elapsed());
            assert!(reply.status < 500, "{name}: {method} {call}: {reply}");
        }
    }
    fs::write(project.work.join("opencode.json"), format!("[{}]", vec!["1"; 30_000].join(","))).unwrap();
    let reply =
        project.refused(422, "invalid_jsonc", "PATCH", "/config", json!({"opencode": {"model": "x/y"}}));
    assert!(reply["message"].as_str().unwrap().contains("more than 20000 entries"), "{reply}");
    fs::write(project.work.join("opencode.json"), "{}").unwrap();
    let many: serde_json::Map<String, Value> = (0..30_000).map(|n| (format!("k{n}"), json!("x"))).collect();
    let body = json!({"opencode": {"provider": {"p": {"options": many}}}});
    let reply = project.refused(422, "invalid_config", "PATCH", "/config", body);
    assert_eq!(reply["details"]["limit"], "TooManyEntries");
    assert_eq!(
        project.read("opencode.json"),
        "{}",
        "a configuration that could not be read back was written"
    );
}

#[test]
fn a_hostile_configuration_does_not_delay_other_requests() {
    let project = ProjectServer::open();
    let items = vec!["\"a\""; 19_000].join(",");
    fs::write(project.work.join("opencode.json"), format!("{{\"plugin\":[{items}]}}")).unwrap();
    let other = project.server.owner().post(200, "/api/workspaces", json!({"name": "o", "mcps": ["a"]}));
    let sync = format!("/api/workspaces/{}/sync", other["id"].as_str().unwrap());
    let nil = "/api/workspaces/00000000-0000-0000-0000-000000000000";
    project.server.owner().put(200, nil, json!({"mcps": ["a"]}));
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| project.client.call("DELETE", &project.path("/plugins/b"), None).expect(200));
        }
        let begun = Instant::now();
        let server = json!({"a": {"type": "remote", "url": "http://h/1"}});
        project.server.owner().call("PUT", "/api/library/mcps", Some(&server)).expect(200);
        project.server.owner().post(200, &sync, json!({}));
        project.server.owner().get(200, "/health");
        assert!(begun.elapsed() < secs(10), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_reference_to_a_missing_file_is_refused() {
    let project = ProjectServer::open();
    project.write("here.txt", "x");
    project.write("sub/there.txt", "x");
    let outside = project.server.scratch().path().join("outside.txt");
    fs::write(&outside, "x").unwrap();
    symlink(&outside, project.work.join("out")).unwrap();
    symlink(outside.with_extension("none"), project.work.join("out-none")).unwrap();
    let prompt = |text: &str| json!({"opencode": {"agent": {"helper": {"prompt": text}}}});
    for text in [
        "{file:./none.md}",
        "a {file:here.txt} {file:none}",
        "{file:sub}",
        "{file: here.txt}",
        "{file:here.txt/x}",
        "{file:sub/../../work/../none}{file:none}",
    ] {
        let reply = project.refused(422, "invalid_config", "PATCH", "/config", prompt(text));
        assert_eq!(reply["details"]["path"], "agent.helper.prompt", "{text}");
        project.refused(422, "invalid_config", "POST", "/import", prompt(text));
    }
    assert!(!project.work.join("opencode.jsonc").exists());
    let mcp = |path: &str| json!({"name": "m", "config": {"type": "local", "command": ["x", format!("{{file:{path}}}")]}});
    let reply = project.refused(422, "invalid_config", "POST", "/mcp", mcp("none"));
    assert_eq!(reply["details"]["path"], "mcp.m.command.1");
    // A path outside the workspace is not looked up: the response is the same whether it exists or not.
    let (there, none) = (outside.to_str().unwrap(), "/none");
    for text in [
        "here.txt",
        "sub/there.txt",
        "sub/../here.txt",
        "./sub//there.txt",
        there,
        none,
        "~/none",
        "../none",
        "../outside.txt",
        "out",
        "out-none",
        "",
    ] {
        project.patch(prompt(&format!("{{file:{text}}}")));
        project.post("/mcp", mcp(text));
    }
    project.patch(prompt("{env:NONE}{env:}{file:"));
}

#[test]
fn library_files_may_have_a_byte_order_mark_and_comments() {
    let project = ProjectServer::open();
    let library = project.server.data.join("library");
    let put = |name: &str, text: &str| {
        let path = library.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put(
        "workspace-template/win.json",
        "\u{feff}{\r\n  // the usual\r\n  \"distro\": \"debian-bookworm\",\r\n}\r\n",
    );
    put("plugins.json", "\u{feff}{/* none */ \"p\": {\"package\": \"a\"}}");
    put("mcp/servers.json", "// ours\n{\"m\": {\"type\": \"remote\", \"url\": \"http://h\"},}");
    let owner = project.server.owner();
    assert_eq!(owner.get(200, "/api/library/workspace-template")[0]["distro"], "debian-bookworm");
    assert_eq!(owner.get(200, "/api/library/plugins")["p"]["package"], "a");
    assert_eq!(owner.get(200, "/api/library/mcps")["m"]["type"], "remote");
}

#[test]
fn plugins_from_repositories_are_distinguished() {
    let project = ProjectServer::open();
    for name in ["a", "b"] {
        project.post("/plugins", json!({"spec": format!("git+ssh://git@h.example/t/{name}.git")}));
    }
    let list = project.post("/plugins", json!({"spec": "git+ssh://git@h.example/t/a.git"}));
    let specs = |list: &Value| list["items"].as_array().unwrap().len();
    assert_eq!(specs(&list), 2, "{list}");
    let one = "/plugins/git%2Bssh%3A%2F%2Fgit%40h.example%2Ft%2Fa.git";
    let remaining = project.client.call("DELETE", &project.path(one), None).expect(200).value();
    assert_eq!(remaining["items"][0]["spec"], "git+ssh://git@h.example/t/b.git");
    assert_eq!(specs(&remaining), 1);
}
