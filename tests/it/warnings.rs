//! Warnings for parts of a request that have no effect: misspelt fields and parameters, values that were clamped,
//! names that are not in the library. The rest of the response is unchanged.

use serde_json::{Value, json};

use crate::client::Reply;
use crate::server::{NIL, Server, Setup};

fn warnings(reply: &Reply) -> Vec<String> {
    let value = reply.value();
    let list = value["warnings"].as_array().cloned().unwrap_or_default();
    let mut all: Vec<String> = list.iter().map(|text| text.as_str().unwrap().to_owned()).collect();
    let headers = reply.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-berth-warning"));
    all.extend(headers.map(|(_, value)| value.clone()));
    all
}

#[track_caller]
fn warned(server: &Server, method: &str, path: &str, body: Option<Value>, expected: &[&str]) -> Reply {
    let reply = server.owner().call(method, path, body.as_ref());
    assert!(reply.status < 300, "{reply}");
    assert_eq!(warnings(&reply), expected, "{reply}");
    reply
}

#[test]
fn misspelt_fields_and_parameters_give_warnings() {
    let server = Setup::new().arg("--approval=auto").start();
    let exec = format!("/api/workspaces/{NIL}/exec");
    let runs = format!("/api/workspaces/{NIL}/runs");
    let post =
        |path: &str, body: Value, expected: &[&str]| warned(&server, "POST", path, Some(body), expected);
    post(&exec, json!({"command": "true"}), &[]);
    post(&exec, json!({"command": "true", "timeout_secs": 600}), &[]);
    post(
        &exec,
        json!({"command": "true", "timeout_sec": 5, "agent": "x"}),
        &["unknown field `timeout_sec`; did you mean `timeout_secs`?", "unknown field `agent`"],
    );
    post(&exec, json!({"command": "true", "timeout_secs": 9999}), &["timeout_secs clamped to 600"]);
    let response = post(
        &format!("{exec}?follow=true"),
        json!({"command": "echo hi"}),
        &["unknown query parameter `follow`"],
    );
    assert_eq!(response.value()["stdout"], "hi\n");
    post(
        &runs,
        json!({"command": "true", "pty": {"cols": 80, "rows": 24, "col": 1}}),
        &["unknown field `pty.col`; did you mean `pty.cols`?"],
    );
    post(
        "/api/workspaces",
        json!({"name": "a", "initscript": "x", "memory": "1G", "skills": ["nope", " "]}),
        &[
            "unknown field `initscript`; did you mean `init_script`?",
            "unknown field `memory`; did you mean `resources.memory_bytes`?",
            "The library has no skill `nope` yet",
        ],
    );
    // In nested objects as well, where an ignored field would leave a limit unset.
    post(
        &exec,
        json!({"command": "true", "limits": {"memroy_bytes": 1}}),
        &["unknown field `limits.memroy_bytes`; did you mean `limits.memory_bytes`?"],
    );
    post(
        "/api/workspaces",
        json!({"name": "inner", "resources": {"memroy": 1}, "mounts": []}),
        &["unknown field `resources.memroy`; did you mean `resources.memory_bytes`?"],
    );
    let mount = json!({"name": "box", "workspace_type": "container", "mounts": [
        {"source": "~/x", "target": "/x", "readOnly": true, "description": "x"}]});
    let response = server.owner().call("POST", "/api/workspaces", Some(&mount));
    assert_eq!(
        (response.status, &response.value()["code"]),
        (403, &json!("mount_not_allowed")),
        "{response}"
    );
    assert_eq!(
        warnings(&response),
        [
            "unknown field `mounts.readOnly`; did you mean `mounts.read_only`?",
            "unknown field `mounts.description`",
        ]
    );
    warned(
        &server,
        "PUT",
        "/api/library/workspace-template/inner",
        Some(json!({"resources": {"cpu": 1}, "distrro": "debian-bookworm"})),
        &[
            "unknown field `resources.cpu`; did you mean `resources.cpus`?",
            "unknown field `distrro`; did you mean `distro`?",
        ],
    );
    warned(
        &server,
        "PATCH",
        &format!("/workspaces/{}", server.owner().get(200, "/workspaces")["activeId"].as_str().unwrap()),
        Some(json!({"base_url": "http://127.0.0.1:1"})),
        &["unknown field `base_url`; did you mean `baseUrl`?"],
    );
    let put = json!({"nmae": "b"});
    let path = format!("/api/workspaces/{NIL}");
    warned(&server, "PUT", &path, Some(put), &["unknown field `nmae`; did you mean `name`?"]);
    warned(&server, "GET", &format!("{path}?full=1"), None, &["unknown query parameter `full`"]);
    // A response that is not an object has its warnings in a header.
    let list = warned(
        &server,
        "GET",
        "/api/workspaces?pag%65=1&x%0d%0ay=2",
        None,
        &["unknown query parameter `page`", "unknown query parameter `x\\r\\ny`"],
    );
    assert!(list.value().is_array());
    let stream = format!("{exec}?stream=sse&tail=1");
    let reply = post(
        &stream,
        json!({"command": "true", "comand": "x"}),
        &["unknown field `comand`; did you mean `command`?", "unknown query parameter `tail`"],
    );
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")));
    // Errors have their own shape.
    let reply = server.owner().call("POST", &exec, Some(&json!({"comand": "true"})));
    assert_eq!(reply.status, 400);
    assert!(reply.value().get("warnings").is_none(), "{reply}");
    assert_eq!(warnings(&reply), ["unknown field `comand`; did you mean `command`?"]);
    // Project routes as well; no field is added to other responses.
    let id = server.owner().get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
    let skill =
        json!({"name": "fine", "content": "---\nname: fine\ndescription: d\n---\n", "descripton": "d"});
    post(
        &format!("/workspace/{id}/skills"),
        skill,
        &["unknown field `descripton`; did you mean `description`?"],
    );
    warned(&server, "GET", "/health", None, &[]);
    warned(&server, "GET", "/ui?token=x", None, &[]);
}

/// Every list and document, with a parameter that none of them has.
#[test]
fn misspelt_parameters_give_warnings_on_every_route() {
    use berth::api::routes::ROUTES;
    let server = Setup::new().arg("--approval=auto").start();
    let owner = server.owner();
    let id = owner.get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
    let mut requests = 0;
    for route in ROUTES.iter().filter(|route| route.method.as_str() == "GET") {
        // Pages and proxied requests have queries of their own; streams do not end.
        let own = ["/ui", "opencode", "/events", "/doctor"].iter().any(|part| route.pattern.contains(part));
        if own {
            continue;
        }
        let fill = |part: &str| match (part, route.pattern.starts_with("/api/")) {
            (":id", true) => NIL.to_owned(),
            (":id", false) => id.clone(),
            (part, _) => part.to_owned(),
        };
        let path: Vec<String> = route.pattern.split('/').map(fill).collect();
        let reply = owner.call("GET", &format!("{}?qqqqq=1", path.join("/")), None);
        if reply.status < 300 {
            requests += 1;
            assert_eq!(warnings(&reply), ["unknown query parameter `qqqqq`"], "{}", route.pattern);
        }
    }
    assert!(requests >= 25, "{requests}");
    let runs = format!("/api/workspaces/{NIL}/runs");
    for (path, expected) in [
        (format!("{runs}?stats=running"), "unknown query parameter `stats`; did you mean `status`?"),
        (
            format!("/workspace/{id}/skills?includeglobal=true"),
            "unknown query parameter `includeglobal`; did you mean `includeGlobal`?",
        ),
        (format!("/workspace/{id}/audit?limt=5"), "unknown query parameter `limt`; did you mean `limit`?"),
    ] {
        warned(&server, "GET", &path, None, &[expected]);
    }
}

#[test]
fn warnings_are_harmless_and_readable_for_pages() {
    let server = Setup::new().arg("--cors=http://app.test").start();
    let owner = server.owner().with("Origin", "http://app.test");
    let reply = owner.call("GET", "/api/workspaces?g%C3%BCte=%0d%0aX-Evil:1", None).expect(200);
    assert_eq!(reply.header("x-berth-warning"), Some("unknown query parameter `g?te`"));
    assert!(
        reply.header("access-control-expose-headers").is_some_and(|names| names.contains("X-Berth-Warning"))
    );
    let many: String = (0..500).map(|n| format!("{}{n}=1&", "q".repeat(20))).collect();
    let reply = owner.call("GET", &format!("/api/workspaces?{}", &many[..12_000]), None).expect(200);
    assert!((1..=10).contains(&warnings(&reply).len()));
}

#[test]
fn fields_of_a_container_never_create_a_host_workspace() {
    let server = Server::start();
    let owner = server.owner();
    let fields = [
        ("distro", json!("debian-bookworm")),
        ("image", json!("base")),
        ("init_script", json!("rm -rf /tmp/x")),
        ("mounts", json!([{"source": "/srv", "target": "/srv"}])),
        ("resources", json!({"memory_bytes": 1 << 30})),
        ("network", json!("none")),
    ];
    for (field, value) in &fields {
        let mut body = json!({"name": "x"});
        body[*field] = value.clone();
        let reply = owner.call("POST", "/api/workspaces", Some(&body));
        if *field == "mounts" && reply.status == 400 {
            continue;
        }
        let response = reply.expect(422).value();
        assert_eq!(response["code"], "workspace_type_required", "{response}");
        assert!(response["message"].as_str().unwrap().contains("workspace_type"), "{response}");
    }
    assert_eq!(owner.get(200, "/api/workspaces").as_array().unwrap().len(), 1);
    // With an explicit type or a path, it is a host workspace; blank fields are ignored.
    owner.post(
        200,
        "/api/workspaces",
        json!({"name": "a", "distro": "", "mounts": [], "resources": {}, "init_script": " "}),
    );
    owner.post(200, "/api/workspaces", json!({"name": "b", "workspace_type": "host", "init_script": "true"}));
    owner.post(
        200,
        "/api/workspaces",
        json!({"name": "c", "workspace_type": "container", "init_script": "true"}),
    );
    let path = server.work.join("sub");
    std::fs::create_dir(&path).unwrap();
    let created =
        owner.post(200, "/api/workspaces", json!({"name": "d", "path": path, "init_script": "true"}));
    assert_eq!(created["workspace_type"], "host");
    assert!(created["warnings"][0].as_str().unwrap().contains("workspace_type"), "{created}");
    // A template still implies a container; the error for an unknown template lists the existing ones.
    owner.put(200, "/api/library/workspace-template/one", json!({"description": "x"}));
    let response = owner.refused(
        404,
        "not_in_library",
        "POST",
        "/api/workspaces",
        Some(json!({"name": "e", "template": "oen", "distro": "debian-bookworm"})),
    );
    assert_eq!(response["details"]["templates"], json!(["one"]));
}
