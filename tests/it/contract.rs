//! Every row of the route table with every credential: a new endpoint is tested on arrival.

use std::fs;
use std::path::Path;
use std::thread;

use berth::access::Scope;
use berth::api::Ctx;
use berth::api::routes::ROUTES;
use berth::http::{Auth, Effect, Gate, Route};
use serde_json::json;

use crate::client::Client;
use crate::server::{Server, Setup};

/// The path of a row with ids that lead nowhere, so that no call does anything.
fn path(pattern: &str) -> String {
    let id =
        if pattern.starts_with("/api/") { "11111111-1111-4111-8111-111111111111" } else { "ws_000000000000" };
    let fill = |segment: &str| if segment.starts_with(':') { id.to_owned() } else { segment.to_owned() };
    pattern.split('/').map(fill).collect::<Vec<_>>().join("/")
}

/// Status and `code` of a call with a body that no endpoint accepts.
fn ask(client: &Client, method: &str, path: &str) -> (u16, String) {
    let body = (method != "GET").then(|| json!([]));
    let reply = client.call(method, path, body.as_ref());
    // A success may be a sentence.
    if reply.status < 400 {
        return (reply.status, String::new());
    }
    let told = reply.value();
    assert!(told["message"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path}: {reply}");
    (reply.status, told["code"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn every_route_asks_for_its_credential() {
    for (mode, asked) in [("auto", false), ("manual", true)] {
        let server = Setup::new().args(&[&format!("--approval={mode}"), "--approval-timeout=200"]).start();
        // Wrong tokens are slowed down, each connection for itself.
        thread::scope(|scope| {
            for rows in ROUTES.chunks(ROUTES.len().div_ceil(32)) {
                let server = &server;
                scope.spawn(move || rows.iter().for_each(|route| credentials_of(server, route, asked)));
            }
        });
    }
}

fn credentials_of(server: &Server, route: &Route<Ctx>, asked: bool) {
    let (method, path) = (route.method.as_str(), path(route.pattern));
    let told = |client: Client| ask(&client, method, &path);
    let place = format!("{method} {path}");
    for stranger in [server.anyone(), server.with_token("wrong")] {
        let (status, code) = told(stranger);
        match route.auth {
            Auth::Public => assert!(status != 401 && status != 403, "{place}: {status} {code}"),
            _ => assert_eq!((status, code.as_str()), (401, "unauthorized"), "{place}"),
        }
    }
    let (status, code) = told(server.collaborator());
    match (route.auth, route.gate) {
        (Auth::Host, _) => assert_eq!((status, code.as_str()), (401, "unauthorized"), "{place}"),
        (Auth::Scope(Scope::Owner), _) => {
            assert_eq!((status, code.as_str()), (403, "forbidden"), "{place}")
        }
        (_, Gate::Collaborators(_)) if asked => {
            assert_eq!((status, code.as_str()), (403, "write_denied"), "{place}");
        }
        _ => assert!(status != 401 && status != 403, "{place}: {status} {code}"),
    }
    let (status, code) = told(server.owner());
    assert!(status != 401 && status != 403, "{place}: {status} {code}");
    assert!(status < 500, "{place}: {status} {code}");
}

#[test]
fn a_read_only_server_writes_nothing() {
    let server = Setup::new().arg("--read-only").start();
    for route in ROUTES {
        let told = ask(&server.owner(), route.method.as_str(), &path(route.pattern));
        let refused = told == (403, "read_only".to_owned());
        assert_eq!(
            refused,
            route.effect == Effect::Write,
            "{} {}: {told:?}",
            route.method.as_str(),
            route.pattern
        );
    }
}

#[test]
fn other_methods_are_told_apart() {
    let server = Server::start();
    let patched = |pattern| {
        ROUTES.iter().any(|route| route.method == berth::http::Method::Patch && route.pattern == pattern)
    };
    for route in ROUTES.iter().filter(|route| !patched(route.pattern)) {
        let (status, code) = ask(&server.owner(), "PATCH", &path(route.pattern));
        let wanted = match route.pattern.starts_with("/api/") {
            true => (405, "method_not_allowed"),
            false => (404, "not_found"),
        };
        assert_eq!((status, code.as_str()), wanted, "PATCH {}", route.pattern);
    }
}

#[test]
fn no_row_stands_there_twice() {
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
