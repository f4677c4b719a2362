//! Secrets in configuration, scripts, commands and logs: viewers see that a secret exists, collaborators see its
//! value.

use serde_json::{Value, json};

use crate::client::Client;
use crate::fixture::{Place, shared};
use crate::project::ProjectServer;
use crate::server::Server;

/// The prefix of each secret of these tests.
const SECRET: &str = "S3CR3T";

fn viewer(server: &Server) -> Client {
    let token = server.owner().post(201, "/tokens", json!({"scope": "viewer"}));
    server.with_token(token["token"].as_str().unwrap())
}

#[track_caller]
fn shows_none(client: &Client, path: &str) -> String {
    let text = client.call("GET", path, None).expect(200).text();
    assert!(!text.contains(SECRET), "{path}: {text}");
    text
}

#[test]
fn viewers_see_that_a_configuration_holds_secrets_but_not_their_values() {
    let project = ProjectServer::open();
    let viewer = viewer(&project.server);
    let config = json!({
        "model": "a/b",
        "provider": {"x": {"options": {"apiKey": "S3CR3T-a", "baseURL": "http://me:S3CR3T-b@h/v1?api_key=S3CR3T-c"}}},
        "plugin": ["git+https://S3CR3T-d@h.example/x.git"],
    });
    project.patch(json!({"opencode": config, "openwork": {"notify": {"webhook": "S3CR3T-e"}}}));
    let server = json!({"type": "local", "command": ["x", "--token", "S3CR3T-f", "--key=S3CR3T-g"],
        "environment": {"K": "S3CR3T-h", "REF": "{env:KEY}"}});
    project.post("/mcp", json!({"name": "m", "config": server}));
    let remote =
        json!({"type": "remote", "url": "http://h", "headers": {"Authorization": "Bearer S3CR3T-i"}});
    project.post("/mcp", json!({"name": "r", "config": remote}));
    project.post("/plugins", json!({"spec": "git+https://S3CR3T-j@h.example/y.git"}));
    project.post("/skills", json!({"name": "s", "content": "export API_TOKEN=S3CR3T-k", "description": "d"}));
    project.post("/commands", json!({"name": "c", "template": "curl -u me:S3CR3T-l http://h"}));
    for call in
        ["/config", "/mcp", "/plugins", "/skills", "/skills/s", "/commands", "/export", "/events", "/audit"]
    {
        let text = viewer.call("GET", &project.path(call), None).expect(200).text();
        // Audit lines redact them for every token.
        assert!(call == "/audit" || !text.contains(SECRET), "{call}: {text}");
    }
    let view = viewer.get(200, &project.path("/config"));
    assert_eq!(view["opencode"]["model"], "a/b");
    assert_eq!(view["opencode"]["mcp"]["m"]["environment"], json!({"K": "********", "REF": "{env:KEY}"}));
    assert_eq!(
        view["opencode"]["mcp"]["m"]["command"],
        json!(["x", "--token", "********", "--key=********"])
    );
    // The client token gets what the OpenWork app needs; writing back the redacted view of a viewer destroys no
    // secret.
    let whole = project.get("/config");
    assert_eq!(whole["opencode"]["provider"]["x"]["options"]["apiKey"], "S3CR3T-a");
    let mut sent = view["opencode"].clone();
    sent["provider"]["x"]["options"]["timeout"] = json!(5000);
    project.patch(json!({"opencode": sent, "openwork": view["openwork"]}));
    let mut expected = whole.clone();
    expected["opencode"]["provider"]["x"]["options"]["timeout"] = json!(5000);
    assert_eq!(
        (&project.get("/config")["opencode"], &project.get("/config")["openwork"]),
        (&expected["opencode"], &expected["openwork"])
    );
    project.post("/mcp", json!({"name": "m", "config": view["opencode"]["mcp"]["m"]}));
    project.post("/import", json!({"opencode": {"mcp": view["opencode"]["mcp"]}}));
    assert_eq!(project.get("/mcp")["items"][0]["config"], server);
}

#[test]
fn viewers_see_no_secret_of_the_library() {
    let server = Server::start();
    let viewer = viewer(&server);
    let put = |path: &str, body: Value| {
        server.owner().call("PUT", &format!("/api/library/{path}"), Some(&body)).expect(200);
    };
    let script = "docker login -p $(echo S3CR3T-a)";
    put("workspace-template/t", json!({"env_vars": {"K": "S3CR3T-b"}, "init_script": script}));
    put("init-script/i", json!({"content": script}));
    put("tool/x", json!({"content": "const apiKey = 1; // API_KEY=S3CR3T-c"}));
    put("plugins", json!({"p": {"package": "git+https://S3CR3T-d@h/x.git"}}));
    put(
        "mcps",
        json!({
            "a": {"type": "local", "command": ["x", "--token", "S3CR3T-e"], "environment": {"K": "S3CR3T-f"}, "env": {"K": "S3CR3T-g"}},
            "b": {"type": "remote", "url": "http://u:S3CR3T-h@h/", "headers": {"A": "S3CR3T-i"}},
        }),
    );
    for path in ["workspace-template", "workspace-template/t", "init-script/i", "tool/x", "plugins", "mcps"] {
        shows_none(&viewer, &format!("/api/library/{path}"));
    }
    assert_eq!(viewer.get(200, "/api/library/workspace-template/t")["init_script"], "********");
    let collaborator = server.collaborator().get(200, "/api/library/workspace-template/t");
    assert_eq!(collaborator["init_script"], script);
    let mcps = viewer.get(200, "/api/library/mcps");
    put("mcps", mcps);
    let stored = server.owner().get(200, "/api/library/mcps");
    assert_eq!(stored["b"]["url"], "http://u:S3CR3T-h@h/", "redacted values are kept: {stored}");
    assert_eq!(stored["a"]["command"][2], "S3CR3T-e");
}

#[test]
fn viewers_see_no_secret_in_scripts_commands_and_build_logs() {
    let server = shared();
    let viewer = viewer(server);
    let script = "#!/bin/sh\nset -x\nDEPLOY_TOKEN=S3CR3T-inline\necho \"$VALUE\"\n";
    let place = Place::ready(server, json!({"env_vars": {"VALUE": "S3CR3T-value"}, "init_script": script}));
    assert!(place.init_log().contains("S3CR3T-value") && place.init_log().contains("S3CR3T-inline"));
    let command = "true --token S3CR3T-flag https://u:S3CR3T-url@h/";
    let run = place.client.post(201, &place.path("/runs"), json!({"command": command}));
    let args = json!({"args": ["true", "--password", "S3CR3T-word", "API_KEY=S3CR3T-pair"]});
    place.client.post(201, &place.path("/runs"), args);
    let run = run["id"].as_str().unwrap();
    for call in ["", "/init-log", "/debug", "/build/events", "/runs", "/resources", "/snapshots"] {
        shows_none(&viewer, &place.path(call));
    }
    for call in [format!("/runs/{run}"), format!("/runs/{run}/events"), format!("/runs/{run}/output")] {
        shows_none(&viewer, &place.path(&call));
    }
    shows_none(&viewer, "/api/workspaces");
    let view = viewer.get(200, &place.path(""));
    assert_eq!((&view["init_script"], &view["env_vars"]["VALUE"]), (&json!("********"), &json!("********")));
    let seen = server.collaborator().get(200, &place.path(""));
    assert_eq!(seen["init_script"], script);
}
