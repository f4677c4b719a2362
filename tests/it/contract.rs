//! Every row of the route table with every credential, so that new endpoints are tested automatically.

use std::fs;
use std::path::Path;
use std::thread;

use berth::access::Scope;
use berth::api::Ctx;
use berth::api::routes::ROUTES;
use berth::api::workspace_access::{self, WorkspaceAccess};
use berth::http::{ApprovalPolicy, Auth, Effect, Route};
use serde_json::json;

use crate::client::Client;
use crate::procs::{secs, wait_for};
use crate::scoped_tokens;
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, Server, Setup};

/// Fills the pattern with ids that do not exist, so that no call has an effect and no stream begins.
fn path(pattern: &str) -> String {
    if ["/api/images/events", "/api/opencode/events"].contains(&pattern) {
        return format!("{pattern}?since=never");
    }
    let id =
        if pattern.starts_with("/api/") { "11111111-1111-4111-8111-111111111111" } else { "ws_000000000000" };
    let fill = |segment: &str| if segment.starts_with(':') { id.to_owned() } else { segment.to_owned() };
    pattern.split('/').map(fill).collect::<Vec<_>>().join("/")
}

/// Returns status and `code` of a call with a body that no endpoint accepts. Of a stream without an id only the head is
/// requested; a HEAD response has no body, so its code is derived from the status.
fn ask(client: &Client, method: &str, path: &str) -> (u16, String) {
    if method == "GET" && path.ends_with("/events") {
        let status = client.call("HEAD", path, None).status;
        let code = match status {
            401 => "unauthorized",
            403 => "forbidden",
            _ => "",
        };
        return (status, code.to_owned());
    }
    let body = (method != "GET").then(|| json!([]));
    let reply = client.call(method, path, body.as_ref());
    // The body of a success may be plain text.
    if reply.status < 400 {
        return (reply.status, String::new());
    }
    let answer = reply.value();
    assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path}: {reply}");
    (reply.status, answer["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn every_route_requires_its_credential() {
    for (mode, manual) in [("auto", false), ("manual", true)] {
        let server = Setup::new().args(&[&format!("--approval={mode}"), "--approval-timeout=200"]).start();
        let scoped = Scoped::make(&server);
        // Failed logins are delayed per connection.
        thread::scope(|scope| {
            for rows in ROUTES.chunks(ROUTES.len().div_ceil(128)) {
                let (server, scoped) = (&server, &scoped);
                scope.spawn(move || rows.iter().for_each(|row| credentials_of(server, scoped, row, manual)));
            }
        });
    }
}

/// One token of each kind.
struct Scoped {
    viewer: String,
    collaborator: String,
    owner: String,
    /// An owner token that is limited to a workspace that no row names.
    elsewhere: String,
    expired: String,
    revoked: String,
}

impl Scoped {
    fn make(server: &Server) -> Scoped {
        let secret = |body| scoped_tokens::make(server, body).0;
        let other = server.owner().get(200, "/workspaces")["items"][0]["id"].clone();
        let (revoked, id) = scoped_tokens::make(server, json!({"scope": "owner"}));
        scoped_tokens::revoke(server, &id);
        let expired = secret(json!({"scope": "owner", "expiresInSecs": 1}));
        wait_for("a token to expire", secs(10), || {
            (server.with_token(&expired).call("GET", "/whoami", None).status == 401).then_some(())
        });
        Scoped {
            viewer: secret(json!({"scope": "viewer"})),
            collaborator: secret(json!({"scope": "collaborator"})),
            owner: secret(json!({"scope": "owner"})),
            elsewhere: secret(json!({"scope": "owner", "workspaceIds": [other]})),
            expired,
            revoked,
        }
    }
}

fn credentials_of(server: &Server, scoped: &Scoped, route: &Route<Ctx>, manual: bool) {
    let (method, path) = (route.method.as_str(), path(route.pattern));
    let respond = |client: Client| ask(&client, method, &path);
    let place = format!("{method} {path}");
    let strangers = [
        server.anyone(),
        server.with_token("wrong"),
        server.anyone().with("X-OpenWork-Host-Token", CLIENT_TOKEN),
        server.with_token(&scoped.expired),
        server.with_token(&scoped.revoked),
    ];
    for stranger in strangers {
        let (status, code) = respond(stranger);
        match route.auth {
            Auth::Public => assert!(status != 401 && status != 403, "{place}: {status} {code}"),
            _ => assert_eq!((status, code.as_str()), (401, "unauthorized"), "{place}"),
        }
    }
    for client in [server.collaborator(), server.with_token(&scoped.collaborator)] {
        let (status, code) = respond(client);
        match (route.auth, route.gate) {
            (Auth::Host, _) => assert_eq!((status, code.as_str()), (401, "unauthorized"), "{place}"),
            (Auth::Scope(Scope::Owner), _) => {
                assert_eq!((status, code.as_str()), (403, "forbidden"), "{place}")
            }
            (_, ApprovalPolicy::Collaborators(_)) if manual => {
                assert_eq!((status, code.as_str()), (403, "write_denied"), "{place}");
            }
            _ => assert!(status != 401 && status != 403, "{place}: {status} {code}"),
        }
    }
    // The proxy's own tests cover the rights of viewers.
    let proxied = route.pattern.contains("/opencode");
    let (status, code) = respond(server.with_token(&scoped.viewer));
    match route.auth {
        Auth::Host => assert_eq!((status, code.as_str()), (401, "unauthorized"), "{place}"),
        Auth::Scope(scope) if scope > Scope::Viewer => {
            assert_eq!((status, code.as_str()), (403, "forbidden"), "{place}");
        }
        _ => assert!(status != 401 && (proxied || status != 403), "{place}: {status} {code}"),
    }
    for owner in [
        server.owner(),
        server.with_token(&scoped.owner),
        server.anyone().with("X-OpenWork-Host-Token", HOST_TOKEN),
    ] {
        let (status, code) = respond(owner);
        assert!(status != 401 && status != 403, "{place}: {status} {code}");
        assert!(status < 500 || proxied, "{place}: {status} {code}");
    }
    let (status, code) = respond(server.with_token(&scoped.elsewhere));
    let open = route.auth == Auth::Public || workspace_access::of(route) == WorkspaceAccess::Filtered;
    // `/opencode` belongs to the active workspace, which this token may use.
    if open || workspace_access::of(route) == WorkspaceAccess::Active {
        assert!(status != 401 && status != 403, "{place}: {status} {code}");
    } else {
        assert_eq!((status, code.as_str()), (403, "forbidden"), "{place}");
    }
}

/// Each route without a workspace is listed by decision: limited tokens are refused by a new one until it is added
/// here.
#[test]
fn routes_for_limited_tokens_without_a_workspace_are_listed() {
    let filtered: Vec<String> = ROUTES
        .iter()
        .filter(|route| {
            route.auth != Auth::Public && workspace_access::of(route) == WorkspaceAccess::Filtered
        })
        .filter(|route| !route.pattern.starts_with("/api/library/"))
        .map(|route| format!("{} {}", route.method.as_str(), route.pattern))
        .collect();
    assert_eq!(
        filtered,
        [
            "GET /status",
            "GET /capabilities",
            "GET /whoami",
            "GET /workspaces",
            "GET /approvals",
            "GET /approvals/:id",
            "POST /approvals/:id",
            "GET /api/doctor",
            "GET /api/workspaces",
        ]
    );
    // A clone is a workspace outside of the token's limit.
    let refused = |route: &&Route<Ctx>| route.pattern == "/api/workspaces/:id/clone";
    for route in ROUTES.iter().filter(refused) {
        assert!(workspace_access::of(route) == WorkspaceAccess::Refused, "{}", route.pattern);
    }
    for route in ROUTES.iter().filter(|route| route.pattern.contains("/:id") && !refused(route)) {
        let elsewhere = ["/tokens/:id", "/approvals/:id"].contains(&route.pattern);
        let named = ["/workspace/", "/workspaces/", "/w/", "/api/workspaces/"];
        let named = named.iter().any(|start| route.pattern.starts_with(start));
        assert!(
            elsewhere || !named || workspace_access::of(route) == WorkspaceAccess::Named,
            "{}",
            route.pattern
        );
    }
}

#[test]
fn a_read_only_server_writes_nothing() {
    let server = Setup::new().arg("--read-only").start();
    for route in ROUTES {
        let reply = ask(&server.owner(), route.method.as_str(), &path(route.pattern));
        let refused = reply == (403, "read_only".to_owned());
        assert_eq!(
            refused,
            route.effect == Effect::Write,
            "{} {}: {reply:?}",
            route.method.as_str(),
            route.pattern
        );
    }
}

#[test]
fn other_methods_are_refused() {
    let server = Server::start();
    let patched = |pattern| {
        ROUTES.iter().any(|route| route.method == berth::http::Method::Patch && route.pattern == pattern)
    };
    for route in ROUTES.iter().filter(|route| !patched(route.pattern)) {
        let (status, code) = ask(&server.owner(), "PATCH", &path(route.pattern));
        let expected = match route.pattern.starts_with("/api/") {
            true => (405, "method_not_allowed"),
            false => (404, "not_found"),
        };
        assert_eq!((status, code.as_str()), expected, "PATCH {}", route.pattern);
    }
}

#[test]
fn no_route_is_defined_twice() {
    for (at, route) in ROUTES.iter().enumerate() {
        let same = |other: &&berth::http::Route<_>| {
            other.method == route.method && path(other.pattern) == path(route.pattern)
        };
        assert!(
            ROUTES[at + 1..].iter().find(same).is_none(),
            "{} {} twice",
            route.method.as_str(),
            route.pattern
        );
    }
}

#[test]
fn the_readme_names_every_route() {
    let Ok(readme) = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")) else {
        return;
    };
    for route in ROUTES {
        assert!(
            readme.contains(route.pattern),
            "the README does not name {} {}",
            route.method.as_str(),
            route.pattern
        );
    }
}
