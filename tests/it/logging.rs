//! The log: the observed shapes, one line per request, no secrets, no raw control characters.

use std::time::Duration;

use serde_json::{Value, json};

use crate::procs::secs;
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, NIL, Server, Setup};

#[track_caller]
fn line(server: &Server, part: &str) -> String {
    server.stdout.line_with(part, secs(5)).unwrap_or_else(|| panic!("no {part:?} in:\n{}", server.log()))
}

#[test]
fn pretty_request_lines() {
    let server = Server::start();
    server.anyone().get(200, "/health");
    let reply = line(&server, "GET /health 200 ");
    let tail = reply.split_once("GET /health 200 ").unwrap().1;
    let number = tail.strip_suffix("ms").unwrap_or_else(|| panic!("no duration: {reply:?}"));
    assert!(number.parse::<f64>().is_ok(), "{reply:?}");
    server.anyone().call("POST", "/nothing?token=abc", None).expect(404);
    line(&server, "POST /nothing 404 ");
    assert!(!server.log().contains("token=abc"), "a query may carry a secret:\n{}", server.log());
}

#[test]
fn first_line_names_the_program_and_boot_lines_are_bare() {
    let server = Server::start();
    server.anyone().get(200, "/health");
    line(&server, "GET /health 200 ");
    let log = server.stdout.text();
    let lines: Vec<&str> = log.lines().collect();
    let (time, text) = lines[0].split_once(' ').unwrap();
    assert!(is_time(time), "{log}");
    assert!(text.starts_with(&format!("berth {}, data folder /", env!("CARGO_PKG_VERSION"))), "{log}");
    assert!(lines.iter().any(|line| line.starts_with("OpenWork server listening on http://")), "{log}");
    assert!(lines.contains(&"Workspaces: 1"), "{log}");
    let request = lines.iter().find(|line| line.contains("GET /health 200 ")).unwrap();
    assert!(is_time(request.split(' ').next().unwrap()), "{log}");
}

/// `2026-11-30T12:00:00.000Z`
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000Z"
}

#[test]
fn json_lines() {
    let server = Setup::new().arg("--log-format=json").env("OPENWORK_RUN_ID", "run-42").start();
    server.collaborator().get(200, "/status");
    server.anyone().call("GET", "/status", None).expect(401);
    let expected = ["\"status\":401", "\"status\":200"].map(|part| line(&server, part));
    for text in server.stdout.text().lines() {
        let parsed: Result<Value, _> = serde_json::from_str(text);
        let entry = parsed.unwrap_or_else(|error| panic!("{error}: {text:?}"));
        assert!(entry["timeUnixNano"].is_string() || entry["timeUnixNano"].is_u64(), "{entry}");
        assert!(entry["severityText"].is_string() && entry["body"].is_string(), "{entry}");
        assert_eq!(entry["attributes"]["run.id"], "run-42", "{entry}");
        assert_eq!(entry["attributes"]["process.pid"], server.pid, "{entry}");
        for field in ["service.name", "service.version", "service.instance.id", "host.name"] {
            assert!(entry["resource"][field].is_string(), "{field}: {entry}");
        }
    }
    let [refused, fine] = expected.map(|text| serde_json::from_str::<Value>(&text).unwrap());
    assert_eq!((&refused["severityNumber"], &fine["severityNumber"]), (&json!(13), &json!(9)));
    let attributes = &fine["attributes"];
    assert_eq!((&attributes["method"], &attributes["path"]), (&json!("GET"), &json!("/status")));
    assert!(attributes["durationMs"].is_number(), "{fine}");
}

#[test]
fn repeated_refusals_and_requests_are_counted() {
    let server = Server::start();
    for n in 0..300 {
        server.owner().call("GET", &format!("/nothing/{n}"), None).expect(404);
    }
    for _ in 0..30 {
        server.collaborator().call("POST", "/api/workspaces", Some(&json!({}))).expect(403);
    }
    for _ in 0..1100 {
        server.anyone().get(200, "/health");
    }
    // Refusals of another token, and of another kind, have their own lines.
    server.collaborator().call("GET", "/workspace/ws_none/config", None).expect(404);
    line(&server, "GET /workspace/ws_none/config 404 ");
    let stdout = server.stdout.clone();
    server.stop();
    let log = stdout.text();
    let count = |part: &str| log.lines().filter(|line| line.contains(part)).count();
    let suppressed = |part: &str| -> usize {
        let of_it = log.lines().filter(|line| line.contains(part) && line.contains("lines were suppressed"));
        let number = |line: &str| {
            let before = line.split_once(" more requests such as ").unwrap().0;
            before.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
        };
        of_it.map(number).sum()
    };
    // More lines if a slow machine needs several intervals.
    for (part, all) in [("GET /nothing/", 300), ("POST /api/workspaces", 30), ("GET /health", 1100)] {
        let reply = suppressed(part);
        assert!(reply > 0 && count(part) < all * 97 / 100, "{part}: {reply}");
        let summaries = log.lines().filter(|line| line.contains(part) && line.contains("suppressed")).count();
        assert_eq!(count(part) - summaries + reply, all, "{part}:\n{log}");
    }
}

#[test]
fn a_client_disconnect_logs_no_warning() {
    let server = Server::start();
    let number = crate::procs::unique_secs();
    let body = json!({"command": format!("sleep {number}")}).to_string();
    let mut stream = crate::wire::connect(&server);
    let head = format!(
        "POST /api/workspaces/{NIL}/exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    crate::procs::wait_sleep(&number);
    drop(stream);
    let reply = line(&server, "/exec 4");
    assert!(is_time(reply.split(' ').next().unwrap()) && reply.split(' ').nth(1) == Some("POST"), "{reply}");
    crate::procs::assert_dead(&number);
    // With the client connected, it is a warning.
    server.owner().call("POST", "/nothing", None).expect(404);
    assert!(line(&server, "POST /nothing 404 ").contains(" WARN "));
}

#[test]
fn requests_can_be_left_out() {
    let server = Setup::new().arg("--no-log-requests").start();
    server.anyone().get(200, "/health");
    server.owner().get(200, "/api/workspaces");
    server.owner().post(200, &format!("/api/workspaces/{NIL}/exec"), json!({"command": "true"}));
    let stdout = server.stdout.clone();
    server.stop();
    assert!(
        !stdout.text().contains("/health 200") && !stdout.text().contains("/api/workspaces 200"),
        "{}",
        stdout.text()
    );
}

#[test]
fn the_log_contains_no_secret() {
    for format in ["pretty", "json"] {
        let server = Setup::new().args(&["--verbose", &format!("--log-format={format}")]).start();
        server.owner().get(200, "/status");
        server.collaborator().get(200, "/whoami");
        server.anyone().with("X-OpenWork-Host-Token", HOST_TOKEN).get(200, "/whoami");
        server.anyone().call("GET", &format!("/whoami?token={HOST_TOKEN}"), None).expect(401);
        server.with_token("a-wrong-secret").call("GET", "/whoami", None).expect(401);
        let exec = format!("/api/workspaces/{NIL}/exec");
        let body =
            json!({"command": "echo command-secret", "stdin": "stdin-secret", "env": {"K": "env-secret"}});
        server.owner().post(200, &exec, body);
        server.owner().post(400, &exec, json!({"command": "true", "env": {"A B": "env-secret"}}));
        server.owner().post(200, "/api/workspaces", json!({"name": "w", "env_vars": {"K": "env-secret"}}));
        let (stdout, stderr) = (server.stdout.clone(), server.stderr.clone());
        server.stop();
        let log = format!("{}{}", stdout.text(), stderr.text());
        for secret in [HOST_TOKEN, CLIENT_TOKEN, "a-wrong-secret", "stdin-secret", "env-secret"] {
            assert!(!log.contains(secret), "{secret} in the log:\n{log}");
        }
    }
}

#[test]
fn a_request_cannot_forge_a_log_line() {
    for format in ["pretty", "json"] {
        let server = Setup::new().arg(format!("--log-format={format}")).start();
        for path in [
            "/a%0aFAKE%20LINE",
            "/a%0d%1b[31mFAKE",
            "/w/%1b]0;FAKE%07/status",
            "/%c2%9bFAKE",
            "/%e2%80%aeFAKE",
        ] {
            server.owner().send(
                "GET",
                path,
                &[("X-OpenWork-Client-Id", "x\u{1b}[31m"), ("User-Agent", "a\tb")],
                None,
            );
        }
        server.anyone().get(200, "/health");
        server.stdout.line_with("/health", Duration::from_secs(5)).expect("no line for /health");
        let log = server.log();
        for text in log.split('\n') {
            assert!(!text.starts_with("FAKE"), "{format}: a forged line:\n{log}");
            let raw = text.chars().find(|c| c.is_control() || ('\u{202a}'..='\u{202e}').contains(c));
            assert_eq!(raw, None, "{format}: a raw control character in {text:?}");
        }
    }
}
