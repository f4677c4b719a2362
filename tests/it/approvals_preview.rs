//! The files that an approver is shown, before and after the write, and that nothing else is written.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread;

use serde_json::{Value, json};

use crate::client::Reply;
use crate::procs::{secs, wait_for};
use crate::server::{Server, Setup};

struct Desk {
    server: Server,
    path: String,
}

type Write = (&'static str, &'static str, Value, &'static str);

impl Desk {
    fn new() -> Desk {
        let server = Setup::new().args(&["--approval=manual", "--approval-timeout=120000"]).start();
        let id = server.owner().get(200, "/workspaces")["items"][0]["id"].as_str().unwrap().to_owned();
        let path = format!("/workspace/{id}");
        Desk { server, path }
    }

    fn file(&self, rel: &str) -> PathBuf {
        self.server.work.join(rel)
    }

    fn put(&self, rel: &str, text: &str) {
        fs::create_dir_all(self.file(rel).parent().unwrap()).unwrap();
        fs::write(self.file(rel), text).unwrap();
    }

    fn text(&self, rel: &str) -> Option<String> {
        fs::read_to_string(self.file(rel)).ok()
    }

    /// Sends a write, calls `meanwhile` with its approval, then allows it.
    fn allow(&self, method: &str, path: &str, body: Body, meanwhile: impl FnOnce(&Value)) -> (Value, Reply) {
        let (client, method) = (self.server.collaborator(), method.to_owned());
        let path = format!("{}{path}", self.path);
        let waiting = thread::spawn(move || match body {
            Body::Json(body) => client.call(&method, &path, Some(&body)),
            Body::Form(form) => {
                let kind = [("Content-Type", "multipart/form-data; boundary=b")];
                client.send(&method, &path, &kind, Some(&form))
            }
        });
        let approval = wait_for("a question", secs(60), || {
            self.server.owner().get(200, "/approvals")["items"].get(0).cloned()
        });
        meanwhile(&approval);
        let answer = format!("/approvals/{}", approval["id"].as_str().unwrap());
        self.server.owner().post(200, &answer, json!({"reply": "allow"}));
        (approval, waiting.join().unwrap())
    }
}

enum Body {
    Json(Value),
    Form(Vec<u8>),
}

fn form(name: &str, content: &[u8], more: &str) -> Body {
    let head = format!("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n");
    Body::Form([head.as_bytes(), content, format!("\r\n{more}--b--\r\n").as_bytes()].concat())
}

fn skill(name: &str) -> String {
    format!("---\nname: {name}\ndescription: d\n---\nold\n")
}

/// Method, path, body, and the file that it writes.
fn writes() -> Vec<Write> {
    let mcp = json!({"name": "m", "config": {"type": "local", "command": ["run", "it"], "environment": {"K": "sk-SECRET"}}});
    let import = json!({"opencode": {"model": "a/c"}, "skills": [{"name": "new", "content": skill("new")}]});
    let replace = json!({"commands": [{"name": "c", "template": "t"}], "mode": {"commands": "replace"}});
    vec![
        ("PATCH", "/config", json!({"opencode": {"model": "a/b"}}), "opencode.jsonc"),
        ("PATCH", "/config", json!({"openwork": {"x": 1}}), ".opencode/openwork.json"),
        ("POST", "/mcp", mcp, "opencode.jsonc"),
        ("DELETE", "/mcp/known", Value::Null, "opencode.jsonc"),
        ("POST", "/plugins", json!({"spec": "p@1"}), "opencode.jsonc"),
        ("DELETE", "/plugins/known", Value::Null, "opencode.jsonc"),
        (
            "POST",
            "/skills",
            json!({"name": "s", "content": "new text", "description": "d"}),
            ".opencode/skills/s/SKILL.md",
        ),
        ("DELETE", "/skills/gone", Value::Null, ".opencode/skills/gone/script.sh"),
        ("POST", "/commands", json!({"name": "c", "template": "!`id`"}), ".opencode/commands/c.md"),
        ("DELETE", "/commands/gone", Value::Null, ".opencode/commands/gone.md"),
        ("POST", "/import", import, "opencode.jsonc"),
        ("POST", "/import", replace, ".opencode/commands/gone.md"),
    ]
}

fn seed(desk: &Desk) {
    let config = "{\n  // mine\n  \"plugin\": [\"known@2\"],\n  \"mcp\": {\"known\": {\"type\": \"remote\", \"url\": \"u\"}}\n}\n";
    desk.put("opencode.jsonc", config);
    desk.put(".opencode/openwork.json", "{\"y\": 2}");
    desk.put(".opencode/skills/s/SKILL.md", &skill("s"));
    desk.put(".opencode/skills/gone/SKILL.md", &skill("gone"));
    desk.put(".opencode/skills/gone/script.sh", "#!/bin/sh\n");
    desk.put(".opencode/commands/c.md", "---\nname: c\n---\n\nold\n");
    desk.put(".opencode/commands/gone.md", "old\n");
}

fn body(value: &Value) -> Body {
    Body::Json(if value.is_null() { json!({}) } else { value.clone() })
}

#[test]
fn every_write_previews_its_files_and_writes_exactly_that() {
    let desk = Desk::new();
    for (method, path, sent, file) in writes() {
        seed(&desk);
        let before = desk.text(file);
        let (approval, reply) = desk.allow(method, path, body(&sent), |_| {
            assert_eq!(desk.text(file), before, "{path}: written before it was allowed");
        });
        reply.expect(200);
        let files = approval["preview"]["files"].as_array().unwrap_or_else(|| panic!("{path}: {approval}"));
        let shown = desk.file(file).to_str().unwrap().to_owned();
        let found = files.iter().find(|shown_file| shown_file["path"] == shown);
        let found = found.unwrap_or_else(|| panic!("{method} {path}: {files:?}"));
        assert_eq!(found["before"].as_str(), before.as_deref(), "{method} {path}");
        assert_eq!(found["after"].as_str(), desk.text(file).as_deref(), "{method} {path}");
        assert_ne!(found["before"], found["after"], "{method} {path}");
        if path == "/mcp" {
            let summary = approval["summary"].as_str().unwrap();
            assert!(summary.contains(r#""command":["run","it"]"#) && !summary.contains('\\'), "{summary}");
        }
    }
    let logs = desk.server.log()
        + &fs::read_dir(desk.server.data.join("audit"))
            .unwrap()
            .flatten()
            .map(|entry| fs::read_to_string(entry.path()).unwrap())
            .collect::<String>();
    assert!(logs.contains("Add MCP m") && !logs.contains("sk-SECRET"), "{logs}");
}

#[test]
fn a_file_that_changed_after_its_preview_is_not_overwritten() {
    let desk = Desk::new();
    for (method, path, sent, file) in writes() {
        seed(&desk);
        let mine = match file.rsplit_once('.').unwrap().1 {
            "jsonc" | "json" => "{\"mine\": 1, \"plugin\": [\"known@3\"], \"mcp\": {\"known\": {}}}",
            _ => "mine",
        };
        let (_, reply) = desk.allow(method, path, body(&sent), |_| desk.put(file, mine));
        let answer = reply.expect(409).value();
        assert_eq!(
            (&answer["code"], &answer["details"]["path"]),
            (&json!("approval_outdated"), &json!(file)),
            "{method} {path}"
        );
        assert_eq!(desk.text(file).as_deref(), Some(mine), "{method} {path}");
    }
    assert!(!desk.file(".opencode/skills/new").exists(), "part of an import was written");
    // A file that did not exist when the approval was requested.
    fs::remove_dir_all(desk.file(".opencode/commands")).unwrap();
    let (approval, reply) =
        desk.allow("POST", "/commands", Body::Json(json!({"name": "n", "template": "t"})), |_| {
            desk.put(".opencode/commands/n.md", "mine");
        });
    assert_eq!(approval["preview"]["files"][0]["before"], Value::Null);
    reply.expect(409);
    assert_eq!(desk.text(".opencode/commands/n.md").unwrap(), "mine");
}

#[test]
fn the_preview_marks_files_that_become_executable() {
    let desk = Desk::new();
    let files = json!([{"path": "run.sh", "content": "#!/bin/sh\n", "mode": "755"}, {"path": "plain.txt", "content": "x"}]);
    let import = json!({"skills": [{"name": "new", "content": skill("new"), "files": files}]});
    let (approval, reply) = desk.allow("POST", "/import", Body::Json(import), |_| {});
    let modes: Vec<_> =
        approval["preview"]["files"].as_array().unwrap().iter().map(|file| &file["mode"]).collect();
    assert_eq!(modes.iter().filter(|mode| **mode == "755").count(), 1, "{approval}");
    assert_eq!(modes.iter().filter(|mode| mode.is_null()).count(), 2, "{approval}");
    reply.expect(200);
    let mode = fs::metadata(desk.file(".opencode/skills/new/run.sh")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn the_preview_of_an_upload_has_path_size_and_replaced_file() {
    let desk = Desk::new();
    let inbox = |name: &str| format!(".opencode/openwork/inbox/{name}");
    let later = "--b\r\nContent-Disposition: form-data; name=\"path\"\r\n\r\nsub/real.txt\r\n";
    let (approval, reply) = desk.allow("POST", "/inbox", form("a.txt", b"hello\n", later), |_| {});
    assert_eq!(approval["paths"], json!([desk.file(&inbox("sub/real.txt"))]));
    let file = &approval["preview"]["files"][0];
    assert_eq!((&file["before"], &file["after"]), (&Value::Null, &json!("hello\n")));
    assert!(
        approval["summary"].as_str().unwrap().starts_with("Upload sub/real.txt to the inbox, 6 bytes"),
        "{approval}"
    );
    assert_eq!(reply.expect(200).value()["path"], "sub/real.txt");
    let large = vec![0xfe; 3 << 20];
    let (approval, reply) = desk.allow("POST", "/inbox?path=sub/real.txt", form("x", &large, ""), |_| {});
    let file = &approval["preview"]["files"][0];
    assert_eq!((&file["before"], &file["after"]["bytes"]), (&json!("hello\n"), &json!(3 << 20)));
    assert_eq!(file["after"]["sha256"].as_str().unwrap().len(), 64);
    assert!(approval["summary"].as_str().unwrap().ends_with("in place of a file of 6 bytes"), "{approval}");
    reply.expect(200);
    assert_eq!(fs::read(desk.file(&inbox("sub/real.txt"))).unwrap(), large);
    let (_, reply) = desk.allow("POST", "/inbox?path=sub/real.txt", form("x", b"new", ""), |_| {
        desk.put(&inbox("sub/real.txt"), "mine");
    });
    assert_eq!(reply.expect(409).value()["code"], "approval_outdated");
    assert_eq!(desk.text(&inbox("sub/real.txt")).unwrap(), "mine");
    assert_eq!(fs::read_dir(desk.file(&inbox(""))).unwrap().count(), 1, "a temporary file remains");
}
