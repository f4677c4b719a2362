//! A token limited to one workspace reaches no session, file or event of another directory in an OpenCode that serves
//! all of them, and writes that could run a program are in the audit log.

use std::fs;

use serde_json::{Value, json};

use crate::client::Client;
use crate::opencode::mount;
use crate::opencode_serve::VERSIONS;
use crate::opencode_server::Opencode;
use crate::scoped_tokens;
use crate::server::{Server, Setup};
use crate::upstream::Upstream;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok";

fn pair(version: &str) -> (Opencode, Server, Client) {
    let setup = Setup::new();
    let scratch = setup.scratch().path().to_owned();
    for (folder, template) in [("work/a", "Look: $ARGUMENTS"), ("work/b", "!`touch pwned`"), ("other", "x")] {
        let commands = scratch.join(folder).join(".opencode/command");
        fs::create_dir_all(&commands).unwrap();
        fs::write(commands.join("look.md"), format!("---\ndescription: x\n---\n{template}\n")).unwrap();
    }
    fs::write(scratch.join("other/secret.txt"), "other-secret").unwrap();
    fs::write(scratch.join("work/own.txt"), "own-text").unwrap();
    let opencode = Opencode::start(version, &scratch);
    let server = opencode.named_to(setup).arg("--approval=auto").start();
    let direct = Client::new(opencode.address).with("Authorization", &opencode.authorization());
    (opencode, server, direct)
}

fn session(client: &Client, path: &str) -> String {
    let created = client.call("POST", path, Some(&json!({}))).expect(200);
    serde_json::from_slice::<Value>(&created.body).unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn no_session_or_file_of_another_directory_is_reached() {
    for version in VERSIONS {
        let (_opencode, server, direct) = pair(version);
        let (mount, folder) = (mount(&server), server.scratch().path().to_owned());
        let at = |name: &str| format!("directory={}", folder.join(name).display());
        let id = server.owner().get(200, "/workspaces")["items"][0]["id"].clone();
        let limited = |scope: &str| {
            scoped_tokens::client(&server, json!({"scope": scope, "workspaceIds": [id.clone()]}))
        };
        // Sessions of another directory, which both versions find by their id.
        let other = session(&direct, &format!("/session?{}", at("other")));
        let clients = [server.collaborator(), limited("viewer"), limited("collaborator"), limited("owner")];
        for client in &clients {
            for path in [format!("/session/{other}"), format!("/session/%73{}/message", &other[1..])] {
                client.refused(403, "forbidden", "GET", &format!("{mount}{path}"), None);
            }
        }
        for path in ["message", "prompt_async", "command", "abort", "fork", "share"] {
            let body = json!({"parts": [], "command": "look", "arguments": ""});
            let path = format!("{mount}/session/{other}/{path}");
            clients[0].refused(403, "forbidden", "POST", &path, Some(body));
        }
        clients[0].refused(403, "forbidden", "DELETE", &format!("{mount}/session/{other}"), None);
        server.owner().call("GET", &format!("{mount}/session/{other}"), None).expect(200);
        // Sessions of this directory.
        let own = session(&clients[0], &format!("{mount}/session"));
        for client in &clients {
            client.call("GET", &format!("{mount}/session/{own}"), None).expect(200);
            client.call("GET", &format!("{mount}/session/{own}/message"), None).expect(200);
        }
        clients[0].call("GET", &format!("{mount}/session/ses_none"), None).expect(404);
        // 1.18 uses the commands of the session's directory, not those of the directory that the request names.
        let shell = session(&clients[0], &format!("{mount}/session?{}", at("work/b")));
        let look = |arguments: &str| json!({"command": "look", "arguments": arguments, "model": "x/y"});
        let path = |session: &str| format!("{mount}/session/{session}/command?{}", at("work/a"));
        clients[0].refused(403, "forbidden", "POST", &path(&shell), Some(look("")));
        assert_ne!(clients[0].call("POST", &path(&own), Some(&look("this"))).status, 403);
        for arguments in
            ["@/etc/passwd", "@../other/secret.txt", "@~/x", &format!("@{}", folder.join("other").display())]
        {
            clients[0].refused(403, "forbidden", "POST", &path(&own), Some(look(arguments)));
        }
        assert!(!folder.join("pwned").exists() && !folder.join("work/b/pwned").exists());
        // Files attached to a prompt.
        let attach = |url: String| {
            json!({"noReply": true, "model": {"providerID": "x", "modelID": "y"},
                "parts": [{"type": "file", "mime": "application/x-directory", "filename": "x", "url": url}]})
        };
        let path = format!("{mount}/session/{own}/message");
        for url in [
            "file:///etc".to_owned(),
            " \tFILE:/e%74c".to_owned(),
            format!("file://{}/../other", server.work.display()),
            format!("file://localhost{}", folder.join("other").display()),
        ] {
            clients[0].refused(403, "forbidden", "POST", &path, Some(attach(url)));
        }
        let body =
            json!({"prompt": {"text": "x", "files": [{"uri": "file:///etc/passwd"}]}, "resume": false});
        let prompt = format!("{mount}/api/session/{own}/prompt");
        clients[0].refused(403, "forbidden", "POST", &prompt, Some(body));
        let reply =
            clients[0].call("POST", &path, Some(&attach(format!("file://{}", server.work.display()))));
        assert!(reply.expect(200).text().contains("own.txt"), "{version}");
        // Links in the workspace, which 1.1.53 follows.
        std::os::unix::fs::symlink("/etc", server.work.join("out")).unwrap();
        for path in
            ["/file?path=out", "/file/content?path=out/hostname", "/FILE/content?p%61th=%6Fut%252Fhostname"]
        {
            clients[0].refused(403, "forbidden", "GET", &format!("{mount}{path}"), None);
        }
        let reply = clients[0].call("GET", &format!("{mount}/file/content?path=own.txt"), None).expect(200);
        assert!(reply.text().contains("own-text"), "{reply}");
        // Routes that list or follow every directory are refused for limited tokens.
        for client in &clients[1..] {
            for path in [
                "/global/event",
                "/GLOBAL/event",
                "/api/event",
                "/experimental/session",
                "/project",
                "/session",
            ] {
                client.refused(403, "forbidden", "GET", &format!("{mount}{path}"), None);
            }
            let listed = client.call("GET", &format!("{mount}/session?{}", at("work")), None).expect(200);
            let listed: Value = serde_json::from_slice(&listed.body).unwrap();
            let directories: Vec<&Value> =
                listed.as_array().unwrap().iter().map(|session| &session["directory"]).collect();
            assert!(directories.iter().all(|directory| **directory == json!(server.work)), "{directories:?}");
            client.call("GET", &format!("{mount}/global/health"), None).expect(200);
        }
        clients[0].call("GET", &format!("{mount}/session"), None).expect(200);
        for path in
            ["/sync/steal", "/experimental/control-plane/move-session", "/experimental/workspace/warp"]
        {
            clients[0].refused(
                403,
                "forbidden",
                "POST",
                &format!("{mount}{path}"),
                Some(json!({"sessionID": other})),
            );
        }
    }
}

#[test]
fn commands_with_large_attachments_are_forwarded_completely() {
    let upstream = Upstream::start(crate::opencode_programs::commands);
    let server = upstream.setup().start();
    let path = format!("{}/session/s/command", mount(&server));
    let part = |size: usize| json!([{"type": "file", "mime": "image/png", "url": format!("data:image/png;base64,{}", "A".repeat(size))}]);
    for (size, arguments, status) in [(10, "x", 200), (3 << 20, "x", 200), (3 << 20, "!`id`", 403)] {
        let body = json!({"arguments": arguments, "parts": part(size), "command": "safe"});
        server.collaborator().call("POST", &path, Some(&body)).expect(status);
        assert!(upstream.seen().target().starts_with("/command"));
        if status == 200 {
            assert_eq!(serde_json::from_slice::<Value>(&upstream.seen().body).unwrap(), body);
        }
        upstream.saw_nothing();
    }
    let body = json!({"arguments": "x", "parts": part(65 << 20), "command": "safe"});
    server.collaborator().call("POST", &path, Some(&body)).expect(413);
    upstream.saw_nothing();
}

#[test]
fn forwarded_writes_that_could_run_a_program_are_in_the_audit_log() {
    let upstream = Upstream::saying(OK);
    let server = upstream.setup().start();
    let mount = mount(&server);
    let id = server.owner().get(200, "/workspaces")["items"][0]["id"].as_str().unwrap().to_owned();
    let client = server.collaborator();
    client.call("POST", &format!("{mount}/mcp"), Some(&json!({"name": "secret-in-body"}))).expect(200);
    client.refused(403, "forbidden", "POST", "/opencode/session/s/shell", Some(json!({"command": "id"})));
    server
        .owner()
        .call("POST", &format!("{mount}/session/s/command?k=secret-in-query"), Some(&json!({})))
        .expect(200);
    for (method, path) in [("POST", "/session"), ("POST", "/session/s/message"), ("GET", "/config")] {
        client
            .call(method, &format!("{mount}{path}"), (method == "POST").then(|| json!({})).as_ref())
            .expect(200);
    }
    let lines = server.owner().get(200, &format!("/workspace/{id}/audit"));
    let reply: Vec<_> = lines["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (line["action"].as_str().unwrap(), line["result"].as_str()))
        .collect();
    assert_eq!(
        reply,
        [("opencode.command", None), ("opencode.shell", Some("denied")), ("opencode.write", None)]
    );
    assert!(!lines.to_string().contains("secret-in"), "{lines}");
}
