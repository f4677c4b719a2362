//! Requests that could make OpenCode run a program: they wait for approval in manual mode, and need an owner
//! otherwise, unless OpenCode is in a container. With both versions of the real OpenCode, in each spelling that its
//! routers accept.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::thread;

use serde_json::{Value, json};

use crate::client::Client;
use crate::fixture::{DISTRO, tools};
use crate::opencode::mount;
use crate::opencode_serve::VERSIONS;
use crate::opencode_server::Opencode;
use crate::procs::{secs, wait_for};
use crate::server::{CLIENT_TOKEN, Server, Setup};
use crate::upstream::{Seen, Upstream};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok";

/// Requests that run a program chosen by the caller, in either version, and write routes that are unknown to berth.
const PROGRAMS: &[(&str, &str)] = &[
    ("POST", "/session/s/shell"),
    ("POST", "/session/s/command"),
    ("POST", "/session/s/init"),
    ("POST", "/pty"),
    ("POST", "/api/pty"),
    ("PUT", "/pty/p"),
    ("POST", "/pty/p/connect-token"),
    ("POST", "/mcp"),
    ("POST", "/mcp/x/connect"),
    ("POST", "/mcp/x/auth"),
    ("PATCH", "/config"),
    ("PATCH", "/global/config"),
    ("PUT", "/auth/x"),
    ("POST", "/provider/x/oauth/authorize"),
    ("POST", "/api/integration/x/connect/key"),
    ("POST", "/experimental/worktree"),
    ("POST", "/experimental/worktree/reset"),
    ("POST", "/experimental/workspace"),
    ("POST", "/experimental/project/p/copy"),
    ("PATCH", "/project/p"),
    ("POST", "/project/git/init"),
    ("POST", "/vcs/apply"),
    ("POST", "/sync/replay"),
    ("POST", "/tui/submit-prompt"),
    ("POST", "/tui/execute-command"),
    ("POST", "/tui/control/response"),
    ("POST", "/global/upgrade"),
    ("POST", "/instance/dispose"),
    ("POST", "/unheard/of"),
    ("DELETE", "/unheard/of"),
    ("POST", "/Session"),
];

fn asked(server: &Server) -> Value {
    wait_for("the question", secs(20), || {
        server.owner().get(200, "/approvals")["items"].as_array().unwrap().first().cloned()
    })
}

fn answer(server: &Server, item: &Value, reply: &str) {
    let path = format!("/approvals/{}", item["id"].as_str().unwrap());
    server.owner().post(200, &path, json!({ "reply": reply }));
}

#[test]
fn manual_mode_asks_before_opencode_can_run_a_program() {
    let upstream = Upstream::saying(OK);
    let server = Setup::new()
        .args(&["--approval=manual", "--approval-timeout=400"])
        .arg(format!("--opencode-base-url={}", upstream.url()))
        .start();
    let mount = mount(&server);
    for some in PROGRAMS.chunks(12) {
        thread::scope(|scope| {
            for (method, path) in some {
                let (client, mount) =
                    (server.collaborator(), if path.len() % 2 == 0 { "/opencode" } else { &mount });
                scope.spawn(move || {
                    client.refused(403, "write_denied", method, &format!("{mount}{path}"), Some(json!({})))
                });
            }
        });
    }
    let (pty, bearer) = (format!("{mount}/pty/p/connect"), format!("Bearer {CLIENT_TOKEN}"));
    let refused = crate::socket::Socket::try_open(&server, &pty, &[("Authorization", &bearer)]);
    assert_eq!(refused.err().unwrap().expect(403).value()["code"], "write_denied");
    server.collaborator().refused(400, "invalid_path", "POST", "/opencode/session/s/message/../shell", None);
    upstream.saw_nothing();
    // Reads, sessions and prompts need no approval, and owners are not asked.
    for (method, path) in [
        ("GET", "/config"),
        ("POST", "/session"),
        ("POST", "/session/s/message"),
        ("POST", "/session/s/prompt_async"),
        ("POST", "/api/session/s/prompt"),
        ("POST", "/session/s/abort"),
        ("POST", "/question/q/reply"),
    ] {
        let body = (method == "POST").then(|| json!({"parts": []}));
        server.collaborator().call(method, &format!("{mount}{path}"), body.as_ref()).expect(200);
        upstream.seen();
    }
    for (method, path) in [("POST", "/session/s/shell"), ("PATCH", "/config"), ("POST", "/unheard/of")] {
        server.owner().call(method, &format!("{mount}{path}"), Some(&json!({"a": 1}))).expect(200);
        assert_eq!(upstream.seen().body, br#"{"a":1}"#);
    }
}

#[test]
fn an_approved_request_is_forwarded_once_and_unchanged() {
    let upstream = Upstream::saying(OK);
    let server =
        Setup::new().arg("--approval=manual").arg(format!("--opencode-base-url={}", upstream.url())).start();
    for (path, reply) in [("/opencode", "allow"), (&mount(&server), "allow"), ("/opencode", "deny")] {
        let (client, path) = (server.collaborator(), format!("{path}/session/s/shell?a=%20b"));
        let body = json!({"agent": "build", "command": "id > pwned"});
        let waiting = thread::spawn(move || client.call("POST", &path, Some(&body)));
        let item = asked(&server);
        assert_eq!(
            (&item["action"], &item["actor"]["scope"]),
            (&json!("opencode.shell"), &json!("collaborator"))
        );
        let active = server.owner().get(200, "/workspaces")["activeId"].clone();
        assert_eq!(item["workspaceId"], active);
        assert!(item["summary"].as_str().unwrap().contains("id > pwned"), "{item}");
        assert_eq!(item["request"]["body"], json!({"agent": "build", "command": "id > pwned"}));
        upstream.saw_nothing();
        answer(&server, &item, reply);
        let response = waiting.join().unwrap();
        if reply == "allow" {
            response.expect(200);
            let seen = upstream.seen();
            assert_eq!(seen.target(), "/session/s/shell?a=%20b");
            assert_eq!(
                serde_json::from_slice::<Value>(&seen.body).unwrap(),
                json!({"agent": "build", "command": "id > pwned"})
            );
        } else {
            response.expect(403);
        }
        upstream.saw_nothing();
    }
}

pub fn commands(seen: &Seen, stream: &mut TcpStream) -> bool {
    let list = json!([
        {"name": "safe", "template": "Look at $ARGUMENTS", "source": "command"},
        {"name": "shell", "template": "Look at !`id`", "source": "command"},
        {"name": "init", "template": "!`id`"},
        {"name": "adjacent", "template": "Look at $1$2"},
        {"name": "mcp", "template": "x", "source": "mcp"},
        {"name": "promise", "template": {}},
    ]);
    let body = if seen.target().starts_with("/command") { list.to_string() } else { "ok".to_owned() };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).is_ok()
}

#[test]
fn automatic_mode_limits_commands_with_a_shell_to_owners() {
    let upstream = Upstream::start(commands);
    let server = upstream.setup().start();
    let mount = mount(&server);
    let client = server.collaborator();
    for path in ["/session/s/shell", "/pty", "/PTY/", "//pty", "/%70ty", "/pty;a", "/tui/submit-prompt"] {
        let reply = client.refused(403, "forbidden", "POST", &format!("{mount}{path}"), Some(json!({})));
        assert_eq!(reply["details"], json!({"required": "owner", "scope": "collaborator"}));
        assert!(reply["message"].as_str().unwrap().contains("--opencode-shell"), "{reply}");
    }
    let start = json!({"name": "x", "startCommand": "id"});
    client.refused(403, "forbidden", "POST", &format!("{mount}/experimental/worktree"), Some(start));
    upstream.saw_nothing();
    client.post(200, &format!("{mount}/experimental/worktree"), json!({"name": "x"}));
    upstream.seen();
    let run = |client: &Client, body: Value, status: u16| {
        let path = format!("{mount}/session/s/command?directory={}", server.work.display());
        client.call("POST", &path, Some(&body)).expect(status);
        if status != 400
            && client.call("GET", "/whoami", None).expect(200).value()["actor"]["scope"] != "owner"
        {
            assert_eq!(upstream.seen().target(), format!("/command?directory={}", server.work.display()));
        }
        if status == 200 {
            assert_eq!(serde_json::from_slice::<Value>(&upstream.seen().body).unwrap(), body);
        }
        upstream.saw_nothing();
    };
    run(&client, json!({"command": "safe", "arguments": "fix `foo` now!"}), 200);
    run(&client, json!({"command": "safe", "arguments": "!`id`"}), 403);
    run(&client, json!({"command": "shell", "arguments": ""}), 403);
    run(&client, json!({"command": "adjacent", "arguments": "! `id`"}), 403);
    run(&client, json!({"command": "mcp", "arguments": ""}), 404);
    run(&client, json!({"command": "promise", "arguments": ""}), 404);
    run(&client, json!({"command": "none", "arguments": ""}), 404);
    run(&client, json!({"command": "safe"}), 400);
    run(&server.owner(), json!({"command": "shell", "arguments": "!`id`"}), 200);
    client.refused(403, "forbidden", "POST", &format!("{mount}/session/s/init"), Some(json!({})));
    upstream.seen();
    client.refused(403, "forbidden", "POST", &format!("{mount}/session/s/COMMAND"), Some(json!({})));
    let open = upstream.setup().arg("--opencode-shell=collaborator").start();
    let path = format!("{}/session/s/shell", crate::opencode::mount(&open));
    open.collaborator().call("POST", &path, Some(&json!({}))).expect(200);
    upstream.seen();
}

#[test]
fn sessions_and_prompts_cannot_allow_tools_or_leave_the_workspace() {
    let upstream = Upstream::saying(OK);
    let server = upstream.setup().start();
    let client = server.collaborator();
    let rules = json!([{"permission": "bash", "pattern": "*", "action": "allow"}]);
    let large = "x".repeat(3_000_000);
    for (method, path, body) in [
        ("POST", "/session", json!({"permission": rules})),
        ("PATCH", "/session/s", json!({"permission": rules})),
        ("POST", "/session/s/message", json!({"parts": [], "tools": {"bash": true}})),
        (
            "POST",
            "/session/s/prompt_async",
            json!({"parts": [{"type": "text", "text": large}], "tools": {"bash": true}}),
        ),
        ("POST", "/api/session", json!({"location": {"directory": "/etc"}})),
        ("POST", "/experimental/control-plane/move-session", json!({"destination": {"directory": "/etc"}})),
    ] {
        client.refused(403, "forbidden", method, &format!("/opencode{path}"), Some(body));
    }
    let inside =
        json!({"location": {"directory": server.work}, "parts": [{"text": large}], "tools": {"bash": false}});
    client.call("POST", "/opencode/api/session", Some(&inside)).expect(200);
    // The request that was cut off above did not arrive completely.
    loop {
        let seen = upstream.seen();
        if serde_json::from_slice::<Value>(&seen.body).is_ok_and(|body| body == inside) {
            break;
        }
        assert_eq!((seen.target(), seen.body.ends_with(b"}")), ("/session/s/prompt_async", false));
    }
    let open = upstream.setup().arg("--permission-replies=collaborator").start();
    open.collaborator().call("POST", "/opencode/session", Some(&json!({"permission": rules}))).expect(200);
}

#[test]
fn opencode_in_a_container_follows_the_rules_of_exec() {
    tools();
    let upstream = Upstream::saying(OK);
    for (mode, waits) in [("auto", false), ("manual", true)] {
        let server = Setup::new().arg(format!("--approval={mode}")).start();
        let body = json!({"name": "box", "workspace_type": "container", "distro": DISTRO});
        let created = server.owner().post(200, "/api/workspaces", body);
        let root = created["path"].as_str().unwrap().to_owned();
        let list = server.owner().get(200, "/workspaces");
        let found = list["items"].as_array().unwrap().iter().find(|item| item["path"] == created["path"]);
        let id = found.unwrap()["id"].as_str().unwrap().to_owned();
        let reply = server.owner().call(
            "PATCH",
            &format!("/workspaces/{id}"),
            Some(&json!({"baseUrl": upstream.url()})),
        );
        // Its paths are those inside of the container.
        assert_eq!(reply.expect(200).value()["workspace"]["opencode"]["directory"], "/");
        let (client, path) = (server.collaborator(), format!("/w/{id}/opencode/session/s/shell"));
        let query = format!("{path}?directory={root}/srv");
        let waiting = thread::spawn(move || client.call("POST", &query, Some(&json!({"command": "id"}))));
        if waits {
            answer(&server, &asked(&server), "allow");
        }
        waiting.join().unwrap().expect(200);
        let seen = upstream.seen();
        assert_eq!(seen.target(), "/session/s/shell?directory=/srv");
        assert_eq!(seen.header("x-opencode-directory"), Some("/"));
        server.collaborator().send(
            "GET",
            &format!("/w/{id}/opencode/file"),
            &[("x-opencode-directory", &root)],
            None,
        );
        assert_eq!(upstream.seen().header("x-opencode-directory"), Some("/"));
    }
}

/// Each spelling that either version accepts for a route which starts a program is refused, and starts none.
#[test]
fn no_spelling_starts_a_program_in_a_real_opencode() {
    for version in VERSIONS {
        let setup = Setup::new();
        let scratch = setup.scratch().path().to_owned();
        fs::create_dir_all(scratch.join("work/.opencode/command")).unwrap();
        let write = |name: &str, text: &str| {
            fs::write(
                scratch.join(format!("work/.opencode/command/{name}.md")),
                format!("---\ndescription: x\n---\n{text}\n"),
            )
            .unwrap();
        };
        write("shell", "Look: !`touch pwned`");
        write("plain", "Look: $ARGUMENTS");
        write("init", "!`touch pwned`");
        let opencode = Opencode::start(version, &scratch);
        let server = opencode.named_to(setup).arg("--approval=auto").start();
        let (client, mount) = (server.collaborator(), mount(&server));
        let session =
            client.post(200, &format!("{mount}/session"), json!({}))["id"].as_str().unwrap().to_owned();
        let mut paths: Vec<String> = [
            "/pty",
            "/pty/",
            "//pty",
            "/PTY",
            "/%70ty",
            "/%50TY",
            "/./pty",
            "/%2e/pty",
            "/pty;a",
            "/pty?x",
            "/api/pty",
            "/api//pty",
            "/API/pty",
            "/api/%70ty",
            "/api/pty/",
            "/api/pty;a=b",
            "/pty/.",
            "/pty%2f",
        ]
        .map(str::to_owned)
        .to_vec();
        for end in [
            "shell", "shell/", "/shell", "SHELL", "%73hell", "./shell", "shell;x", "Command", "command/",
            "init/",
        ] {
            paths.push(format!("/session/{session}/{end}"));
        }
        let body = json!({"command": "touch", "args": ["pwned"], "agent": "build", "arguments": "",
            "model": {"providerID": "x", "modelID": "y"}});
        for path in &paths {
            let reply = client.call("POST", &format!("{mount}{path}"), Some(&body));
            assert_eq!(reply.expect(403).value()["code"], "forbidden", "{version} {path}");
        }
        for (command, arguments) in [("shell", ""), ("plain", "!`touch pwned`")] {
            let body = json!({"command": command, "arguments": arguments});
            client.refused(
                403,
                "forbidden",
                "POST",
                &format!("{mount}/session/{session}/command"),
                Some(body),
            );
        }
        client.refused(403, "forbidden", "POST", &format!("{mount}/session/{session}/init"), Some(json!({})));
        assert_eq!(server.owner().get(200, &format!("{mount}/pty")), json!([]));
        assert!(!server.work.join("pwned").exists());
        // The same request by an owner does run a program.
        let body = json!({"command": "/bin/sh", "args": ["-c", "touch pwned"]});
        server.owner().post(200, &format!("{mount}/pty"), body);
        wait_for("the program", secs(20), || server.work.join("pwned").exists().then_some(()));
    }
}
