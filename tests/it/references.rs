//! `{env:NAME}` and `{file:PATH}` in OpenCode's configuration: berth shows and stores them unchanged, and viewers
//! cannot read the values through the proxy.

use serde_json::{Value, json};

use crate::opencode_serve::VERSIONS;
use crate::opencode_server::Opencode;
use crate::procs::{secs, wait_for};
use crate::project::ProjectServer;
use crate::scoped_tokens;
use crate::scratch::Scratch;
use crate::server::Setup;

const SECRET: &str = "resolved-4d1c77";

/// A configuration that refers to a variable of the server and to a file outside of the workspace.
fn config(outside: &str) -> Value {
    let file = format!("{{file:{outside}}}");
    json!({
        "share": "{env:BERTH_IT_SHARE}",
        "provider": {"acme": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"apiKey": file, "baseURL": "http://127.0.0.1:9"},
            "models": {"m": {"name": "M"}},
        }},
        "mcp": {"m": {"type": "remote", "url": "http://127.0.0.1:9", "enabled": false, "headers": {"X": file}}},
    })
}

#[test]
fn reads_and_writes_keep_references_unchanged() {
    let scratch = Scratch::new();
    let outside = scratch.file("outside.txt", SECRET);
    let project =
        ProjectServer::of(Setup::new().arg("--approval=auto").env("BERTH_IT_SHARE", SECRET).start());
    let config = config(outside.to_str().unwrap());
    project.patch(json!({ "opencode": config }));
    assert!(project.read("opencode.jsonc").contains("{env:BERTH_IT_SHARE}"));
    let viewer = scoped_tokens::client(&project.server, json!({"scope": "viewer"}));
    for client in [&viewer, &project.client, &project.server.owner()] {
        assert_eq!(client.get(200, &project.path("/config"))["opencode"], config);
        for call in
            ["/mcp", "/plugins?includeGlobal=true", "/export", "/events", "/audit", "/commands", "/skills"]
        {
            let reply = client.get(200, &project.path(call));
            assert!(!reply.to_string().contains(SECRET), "{call}: {reply}");
        }
    }
    let full = project.server.owner().get(200, &project.path("/export?secrets=true"));
    assert_eq!(full["opencode"], config);
    // A reference remains a string, so a field that needs a list still refuses it.
    let wrong_type = json!({"opencode": {"plugin": "{env:PLUGINS}"}});
    project.refused(422, "invalid_config", "PATCH", "/config", wrong_type);
    assert!(!project.server.log().contains(SECRET));
}

#[test]
fn viewers_do_not_see_the_values_of_references() {
    for version in VERSIONS {
        let scratch = Scratch::new();
        let outside = scratch.file("outside.txt", SECRET);
        let opencode = Opencode::start(version, scratch.path());
        let setup = opencode.named_to(Setup::new()).arg("--approval=auto");
        let project = ProjectServer::of(setup.start());
        let mut config = config(outside.to_str().unwrap());
        config["share"] = json!("manual");
        project.patch(json!({ "opencode": config }));
        let viewer = scoped_tokens::client(&project.server, json!({"scope": "viewer"}));
        for path in ["config", "config/providers", "provider"] {
            // Check of the test: OpenCode does return the secret.
            wait_for("OpenCode to return the secret", secs(60), || {
                let reply = project.client.call("GET", &format!("/opencode/{path}"), None);
                (reply.status == 200 && reply.text().contains(SECRET)).then_some(())
            });
            for path in [path.to_owned(), format!("/{path}"), path.replace('o', "%6f"), format!("{path}/")] {
                let response = viewer.refused(403, "forbidden", "GET", &format!("/opencode/{path}"), None);
                assert!(
                    response["message"].as_str().unwrap().contains("/workspace/:id/config"),
                    "{response}"
                );
            }
        }
        for path in ["global/health", "session", "agent", "command", "mcp", "path"] {
            let reply = viewer.call("GET", &format!("/opencode/{path}"), None).expect(200);
            assert!(!reply.text().contains(SECRET), "{version} {path}: {reply}");
        }
    }
}
