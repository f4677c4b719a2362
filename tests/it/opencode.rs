//! What the proxy forwards in both directions, and what it does not. Each defect of the OpenWork server's proxy is a
//! test.

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{HOST_TOKEN, Server, Setup};
use crate::upstream::Upstream;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok";

/// The proxy path of the only workspace.
pub fn mount(server: &Server) -> String {
    let list = server.owner().get(200, "/workspaces");
    format!("/w/{}/opencode", list["activeId"].as_str().unwrap())
}

#[test]
fn credentials_of_berth_never_reach_the_upstream() {
    let upstream = Upstream::saying(OK);
    let server =
        upstream.setup().args(&["--opencode-username=opencode", "--opencode-password=s3cret"]).start();
    let work = server.work.to_str().unwrap().to_owned();
    let sent = [
        ("Cookie", "session=1"),
        ("X-OpenWork-Host-Token", HOST_TOKEN),
        ("X-OpenWork-Client-Id", "me"),
        ("X-OpenWork-Later", "x"),
        ("X-Forwarded-For", "1.2.3.4"),
        ("Forwarded", "for=1.2.3.4"),
        ("Proxy-Authorization", "Basic eA=="),
        ("Connection", "X-Hop"),
        ("X-Hop", "1"),
        ("TE", "trailers"),
        ("X-Berth-Ticket", "1"),
        ("Accept", "text/plain"),
        ("User-Agent", "it"),
        ("X-Kept", "a"),
        ("X-Kept", "b"),
    ];
    for mount in ["/opencode".to_owned(), mount(&server)] {
        server.collaborator().send("GET", &format!("{mount}/a"), &sent, None).expect(200);
        let mut seen = upstream.seen();
        seen.headers.sort();
        let names: Vec<(&str, &str)> =
            seen.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let host = upstream.address.to_string();
        assert_eq!(
            names,
            [
                ("accept", "text/plain"),
                ("authorization", "Basic b3BlbmNvZGU6czNjcmV0"),
                ("host", &host),
                ("user-agent", "it"),
                ("x-kept", "a"),
                ("x-kept", "b"),
                ("x-opencode-directory", &work),
            ]
        );
        assert_eq!(seen.line, "GET /a HTTP/1.1");
    }
}

#[test]
fn paths_and_queries_are_forwarded_unchanged() {
    let upstream = Upstream::saying(OK);
    let server = Setup::new().arg(format!("--opencode-base-url={}/base%20path/", upstream.url())).start();
    let mount = mount(&server);
    for rest in [
        "",
        "/",
        "?a=b",
        "/a%2Fb/%C3%BC/%ff/%zz",
        "//x//",
        "/a;b=c/~'()*!$&,@:=+[]|^{}\\",
        "/?q=%2f+%20&q=&=&&%",
        "/a?b?c/d=http://x/",
        "/./a",
    ] {
        for mount in ["/opencode", &mount] {
            server.owner().send("GET", &format!("{mount}{rest}"), &[], None).expect(200);
            let slash = if rest.starts_with('/') { "" } else { "/" };
            assert_eq!(upstream.seen().target(), format!("/base%20path{slash}{rest}"));
        }
    }
    for climbs in ["/..", "/a/../b", "/%2e%2E/x", "/a%2f..%2fb", "/a\\..\\b"] {
        server.owner().refused(400, "invalid_path", "GET", &format!("/opencode{climbs}"), None);
    }
    server.owner().send("GET", "/opencodex", &[], None).expect(404);
    upstream.saw_nothing();
}

#[test]
fn every_method_and_body_is_forwarded() {
    let upstream = Upstream::start(|seen, stream| {
        let length = if seen.line.starts_with("HEAD") { 77 } else { seen.body.len() };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).is_ok() && stream.write_all(&seen.body).is_ok()
    });
    let server = upstream.setup().start();
    let large = vec![b'x'; 3_000_000];
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        for body in [None, Some(&b""[..]), Some(b"{\"a\":1}"), Some(&large)] {
            let reply = server.owner().send(method, "/opencode/x", &[], body).expect(200);
            let seen = upstream.seen();
            assert_eq!(seen.line, format!("{method} /x HTTP/1.1"));
            assert!(seen.body == body.unwrap_or_default() && reply.body == seen.body, "{method}");
            match body {
                Some(body) if body.len() > 64 << 10 => {
                    assert_eq!(seen.header("transfer-encoding"), Some("chunked"));
                }
                Some(body) if !body.is_empty() => {
                    assert_eq!(seen.header("content-length"), Some(body.len().to_string().as_str()));
                    assert_eq!(seen.header("content-type"), Some("application/json"));
                }
                _ if method == "GET" => assert_eq!(seen.header("content-length"), None),
                _ => {}
            }
        }
    }
    let head = server.owner().send("HEAD", "/opencode/x", &[], None).expect(200);
    assert_eq!((head.header("content-length"), head.body.len()), (Some("77"), 0));
    // Preflight requests are answered by berth, without a credential.
    server.anyone().send("OPTIONS", "/opencode/x", &[], None).expect(204);
}

#[test]
fn responses_are_returned_unchanged() {
    let upstream = Upstream::start(|seen, stream| {
        let answer: &[u8] = match seen.target() {
            "/gzip" => {
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\nETag: \"1\"\r\n\r\n\x1f\x8b\0\xff\n"
            }
            "/gzip-chunked" => {
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\x1f\x8b\0\xff\n\r\n0\r\n\r\n"
            }
            "/moved" => {
                b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/elsewhere\r\nContent-Length: 4\r\n\r\ngone"
            }
            "/unchanged" => b"HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n",
            "/nothing" => b"HTTP/1.1 204 No Content\r\n\r\n",
            "/teapot" => {
                b"HTTP/1.1 418 I'm a teapot\r\nX-Two: 1\r\nX-Two: 2\r\nX-Utf8: \xc3\xbc\r\nX-Latin: \xfc\r\nContent-Length: 0\r\n\r\n"
            }
            "/early" => {
                b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
            }
            "/closed" => b"HTTP/1.0 200 OK\r\n\r\nto the end",
            "/private" => {
                b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nSet-Cookie: a=b\r\nAccess-Control-Allow-Origin: http://evil.test\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Berth-Ticket: 7\r\nContent-Length: 0\r\n\r\n"
            }
            _ => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        };
        stream.write_all(answer).is_ok() && seen.target() != "/closed"
    });
    let server = upstream.setup().start();
    let get = |path: &str, status: u16| {
        server.owner().send("GET", &format!("/opencode{path}"), &[], None).expect(status)
    };
    for path in ["/gzip", "/gzip-chunked"] {
        let reply = get(path, 200);
        assert_eq!(reply.body, b"\x1f\x8b\0\xff\n");
        assert_eq!(reply.header("content-encoding"), Some("gzip"));
    }
    let moved = get("/moved", 307);
    assert_eq!(
        (moved.header("location"), moved.text().as_str()),
        (Some("http://127.0.0.1:1/elsewhere"), "gone")
    );
    assert_eq!(get("/unchanged", 304).header("etag"), Some("\"1\""));
    assert!(get("/nothing", 204).body.is_empty());
    let teapot = get("/teapot", 418);
    let values = |name: &str| -> Vec<String> {
        let found = teapot.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).collect()
    };
    assert_eq!(
        (values("x-two"), values("x-utf8"), values("x-latin")),
        (vec!["1".into(), "2".into()], vec!["ü".into()], vec!["ü".into()])
    );
    assert_eq!(get("/early", 200).text(), "ok");
    assert_eq!(get("/closed", 200).text(), "to the end");
    let private = get("/private", 401);
    for name in [
        "www-authenticate",
        "set-cookie",
        "access-control-allow-origin",
        "x-hop",
        "x-berth-ticket",
        "connection",
    ] {
        assert_eq!(private.header(name), None, "{name}");
    }
}

#[test]
fn upstream_connections_are_reused() {
    // Every second response announces the close of its connection: a kept connection may be closed when it is reused.
    let upstream =
        Upstream::start(|seen, stream| stream.write_all(OK.as_bytes()).is_ok() && seen.target() != "/last");
    let server = upstream.setup().start();
    let client = server.owner();
    for _ in 0..20 {
        client.get(200, "/opencode/x");
        assert_eq!(upstream.seen().connection, 1);
    }
    client.get(200, "/opencode/last");
    assert_eq!(upstream.seen().connection, 1);
    for _ in 0..20 {
        client.get(200, "/opencode/x");
        assert_eq!(upstream.seen().connection, 2);
    }
}

/// The first requests are forwarded by their clients' own threads, the others are queued.
#[test]
fn requests_beyond_the_queue_limit_are_all_answered() {
    let at_once = Arc::new(Mutex::new((0, 0)));
    let counted = at_once.clone();
    let upstream = Upstream::start(move |_, stream| {
        let count = |by: i32| {
            let mut now = counted.lock().unwrap();
            now.0 += by;
            now.1 = now.1.max(now.0);
        };
        count(1);
        thread::sleep(Duration::from_millis(50));
        count(-1);
        stream.write_all(OK.as_bytes()).is_ok()
    });
    let server = upstream.setup().arg("--max-proxied=2").start();
    let slowest = Mutex::new(Duration::ZERO);
    thread::scope(|scope| {
        for client in (0..12).map(|_| server.collaborator()) {
            let slowest = &slowest;
            scope.spawn(move || {
                for path in ["/opencode/a", "/opencode/b"] {
                    let started = Instant::now();
                    client.call("POST", path, Some(&json!({"some": "body"}))).expect(200);
                    let mut slowest = slowest.lock().unwrap();
                    *slowest = started.elapsed().max(*slowest);
                }
            });
        }
    });
    // A token may use half of the permits. A request that takes longer than a second releases its permit.
    let (most, slowest) = (at_once.lock().unwrap().1, *slowest.lock().unwrap());
    assert!(most == 1 || slowest >= Duration::from_secs(1), "{most} at once, {slowest:?} the slowest");
}

#[test]
fn upstream_failures_are_reported() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = Upstream::start(|_, stream| {
        crate::upstream::expect_end(stream);
        false
    });
    let invalid = Upstream::saying("SSH-2.0-x\r\n\r\n");
    let closing = Upstream::start(|_, _| false);
    for (address, status, code) in [
        (unused, 502, "opencode_unreachable"),
        (silent.address, 504, "opencode_timeout"),
        (invalid.address, 502, "opencode_unreachable"),
        (closing.address, 502, "opencode_unreachable"),
    ] {
        let server = Setup::new()
            .arg(format!("--opencode-base-url=http://{address}"))
            .args(&["--opencode-timeout=1", "--opencode-username=u", "--opencode-password=s3cret"])
            .start();
        let reply = server.owner().refused(status, code, "POST", "/opencode/x", Some(json!({})));
        let message = reply["message"].as_str().unwrap();
        assert!(message.contains("baseUrl") && message.contains(&address.to_string()), "{message}");
        assert_eq!(reply["details"]["setting"], "baseUrl");
        assert!(!reply.to_string().contains("s3cret"), "{reply}");
    }
    let server = Server::start();
    let reply = server.owner().refused(400, "opencode_unconfigured", "GET", "/opencode/x", None);
    assert!(reply["message"].as_str().unwrap().contains("--opencode-base-url"), "{reply}");
}

#[test]
fn forbidden_upstream_addresses_are_refused() {
    // The server's own port is known only after the start.
    let server = Setup::new().start();
    let port = server.address.port();
    let setup = |url: &str| {
        Setup::new().only_args(&[
            &format!("--port={port}"),
            "--workspace=work",
            &format!("--opencode-base-url={url}"),
        ])
    };
    server.stop();
    for (url, why) in [
        (format!("http://127.0.0.1:{port}"), "belongs to this server"),
        (format!("http://localhost:{port}/w"), "belongs to this server"),
        (format!("http://[::ffff:127.0.0.1]:{port}"), "belongs to this server"),
        ("http://169.254.169.254/latest".into(), "link-local"),
        ("http://[fe80::1]:80".into(), "link-local"),
        ("http://100.100.100.200".into(), "metadata"),
        ("http://0.0.0.0:4096".into(), "not identify a single host"),
    ] {
        let server = setup(&url).start();
        let reply = server.owner().refused(502, "opencode_unreachable", "GET", "/opencode/x", None);
        assert!(reply["message"].as_str().unwrap().contains(why), "{url}: {reply}");
    }
}

#[test]
fn only_owners_answer_permission_requests() {
    let upstream = Upstream::saying(OK);
    let server = upstream.setup().start();
    let replies = [
        "/permission/p/reply",
        "/session/s/permissions/p",
        "/%70ermission/p/reply",
        "/api/session/s/permission/p/reply",
    ];
    for path in replies {
        let path = format!("/opencode{path}");
        let reply =
            server.collaborator().refused(403, "forbidden", "POST", &path, Some(json!({"reply": "once"})));
        assert_eq!(reply["details"], json!({"required": "owner", "scope": "collaborator"}));
        upstream.saw_nothing();
        server.owner().post(200, &path, json!({"reply": "once"}));
        upstream.seen();
        server.collaborator().get(200, &path);
        upstream.seen();
    }
    server.collaborator().post(200, "/opencode/session", json!({}));
    let open = upstream.setup().arg("--permission-replies=collaborator").start();
    open.collaborator().post(200, "/opencode/permission/p/reply", json!({"reply": "once"}));
}

#[test]
fn viewers_only_read() {
    let upstream = Upstream::saying(OK);
    let server = upstream.setup().start();
    let created = server.owner().post(201, "/tokens", json!({"scope": "viewer"}));
    let viewer = || server.with_token(created["token"].as_str().unwrap());
    viewer().get(200, "/opencode/session?x=1");
    assert_eq!(upstream.seen().target(), "/session?x=1");
    viewer().send("HEAD", "/opencode/session", &[], None).expect(200);
    upstream.seen();
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        viewer().refused(403, "forbidden", method, "/opencode/session", Some(json!({})));
    }
    // A terminal is opened with a GET, and files of OpenCode's own workspaces are in other directories.
    let bearer = format!("Bearer {}", created["token"].as_str().unwrap());
    let refused =
        crate::socket::Socket::try_open(&server, "/opencode/pty/x/connect", &[("Authorization", &bearer)]);
    refused.err().unwrap().expect(403);
    viewer().refused(403, "forbidden", "GET", "/opencode/file?workspace=wrk_1", None);
    viewer().refused(403, "forbidden", "GET", "/opencode/api/fs/list?location%5Bworkspace%5D=wrk_1", None);
    upstream.saw_nothing();
    server.collaborator().get(200, "/opencode/file?workspace=wrk_1");
}

#[test]
fn directories_stay_inside_the_workspace() {
    let upstream = Upstream::saying(OK);
    let server = upstream.setup().start();
    let work = server.work.to_str().unwrap().to_owned();
    std::fs::create_dir(server.work.join("süb")).unwrap();
    std::os::unix::fs::symlink("/etc", server.work.join("out")).unwrap();
    std::os::unix::fs::symlink("süb", server.work.join("in")).unwrap();
    let ask = |query: &str, header: Option<&str>| {
        let headers: Vec<(&str, &str)> =
            header.iter().map(|value| ("X-Opencode-Directory", *value)).collect();
        server.collaborator().send("GET", &format!("/opencode/file?{query}"), &headers, None)
    };
    for (query, header) in [
        (format!("directory={work}/s%C3%BCb&x=1"), None),
        (format!("%64irectory={work}/in"), Some(format!("{work}/s%C3%BCb"))),
        (String::new(), Some(work.clone())),
        ("directory=".into(), None),
    ] {
        ask(&query, header.as_deref()).expect(200);
        let seen = upstream.seen();
        assert_eq!(seen.target(), format!("/file?{query}"));
        assert_eq!(seen.header("x-opencode-directory"), Some(header.unwrap_or(work.clone()).as_str()));
    }
    for (query, header) in [
        ("directory=/etc", None),
        ("directory=%2Fetc", None),
        ("a=b&d%69rectory=/etc", None),
        ("location[directory]=/etc", None),
        ("location%5Bdirectory%5D=%252Fetc", None),
        ("directory=.", None),
        ("directory=~", None),
        (&format!("directory={work}/out"), None),
        (&format!("directory={work}/../data"), None),
        (&format!("directory={work}&directory=/etc"), None),
        (&format!("directory={work}2"), None),
        ("", Some("/etc")),
        ("", Some("%2Fetc")),
        ("", Some("/")),
    ] {
        let reply = ask(query, header).expect(403);
        assert_eq!(reply.value()["code"], "forbidden", "{query} {header:?}");
    }
    // OpenCode accepts undecodable escapes literally: the path would differ from the one that was checked.
    std::os::unix::fs::symlink("/etc", server.work.join("a%41%zz")).unwrap();
    std::fs::create_dir(server.work.join("aA%zz")).unwrap();
    for odd in ["a%41%zz", "a%", "a%4", "a%ff", "s%FCb"] {
        for (query, header) in
            [(format!("directory={work}/{odd}"), None), (String::new(), Some(format!("{work}/{odd}")))]
        {
            let reply = ask(&query, header.as_deref()).expect(400);
            assert_eq!(reply.value()["code"], "invalid_path", "{query} {header:?}");
        }
    }
    upstream.saw_nothing();
}

#[test]
fn requests_of_a_remote_workspace_are_forwarded() {
    let upstream = Upstream::saying(OK);
    let setup = Setup::new();
    let config = json!({"workspaces": [
        {"path": "near", "workspaceType": "remote", "baseUrl": format!("{}/w/ws_1/opencode", upstream.url()),
         "directory": "/srv/far", "opencodeUsername": "u", "opencodePassword": "p"},
        {"path": "free", "workspaceType": "remote", "baseUrl": upstream.url()},
    ]});
    for folder in ["near", "free"] {
        setup.scratch().folder(folder);
    }
    let file = setup.scratch().path().join("server.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let server = setup.only_args(&["--port=0", "--config=server.json"]).start();
    let list = server.owner().get(200, "/workspaces");
    let mounts: Vec<String> =
        (0..2).map(|at| format!("/w/{}/opencode", list["items"][at]["id"].as_str().unwrap())).collect();
    let near = |client: crate::client::Client, rest: &str, status: u16| {
        client.send("GET", &format!("{}{rest}", mounts[0]), &[], None).expect(status)
    };
    near(server.collaborator(), "/session?limit=1", 200);
    let seen = upstream.seen();
    assert_eq!(seen.target(), "/w/ws_1/opencode/session?limit=1");
    assert_eq!(seen.header("x-opencode-directory"), Some("/srv/far"));
    assert_eq!(seen.header("authorization"), Some("Basic dTpw"));
    near(server.collaborator(), "/session?directory=/srv/far/below", 200);
    upstream.seen();
    near(server.collaborator(), "/session?directory=/srv/farther", 403);
    // Without a directory the remote server chooses; only an owner may select another.
    let free = format!("{}/session", mounts[1]);
    server.collaborator().get(200, &free);
    assert_eq!(upstream.seen().header("x-opencode-directory"), None);
    server.collaborator().refused(403, "forbidden", "GET", &format!("{free}?directory=/x"), None);
    server.owner().get(200, &format!("{free}?directory=/x"));
}

#[test]
fn a_reload_is_forwarded_and_its_result_returned() {
    let upstream = Upstream::start(|seen, stream| {
        let answer = match seen.target().contains("ws2") {
            false => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue".to_owned(),
            true => {
                let body = r#"{"name":"ConfigInvalidError"}"#;
                format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            }
        };
        stream.write_all(answer.as_bytes()).is_ok()
    });
    let setup = upstream.setup().args(&["--workspace=ws2", "--opencode-username=u", "--opencode-password=p"]);
    setup.scratch().folder("ws2");
    let server = setup.start();
    let list = server.owner().get(200, "/workspaces");
    let path = |at: usize| format!("/workspace/{}/engine/reload", list["items"][at]["id"].as_str().unwrap());
    let reply = server.collaborator().post(200, &path(0), json!({}));
    assert_eq!(reply["ok"], true);
    assert!(reply["reloadedAt"].as_u64().is_some_and(|at| at > 1_600_000_000_000), "{reply}");
    let seen = upstream.seen();
    assert_eq!(seen.line, format!("POST /instance/dispose?directory={} HTTP/1.1", server.work.display()));
    assert_eq!(seen.header("authorization"), Some("Basic dTpw"));
    let reply = server.collaborator().refused(502, "opencode_reload_failed", "POST", &path(1), None);
    assert_eq!(reply["details"], json!({"status": 400, "body": {"name": "ConfigInvalidError"}}));
    // As observed: also on a read-only server, and in manual mode for owners as well.
    let manual = Setup::new()
        .arg(format!("--opencode-base-url={}", upstream.url()))
        .args(&["--read-only", "--approval-timeout=100"])
        .start();
    upstream.seen();
    let id = manual.owner().get(200, "/workspaces")["activeId"].as_str().unwrap().to_owned();
    let path = format!("/workspace/{id}/engine/reload");
    manual.owner().refused(403, "write_denied", "POST", &path, None);
    upstream.saw_nothing();
    manual.owner().refused(403, "read_only", "POST", "/opencode/session", Some(json!({})));
    manual.owner().get(200, "/opencode/session");
}

#[test]
fn vary_is_sent_once_and_a_client_disconnect_logs_no_warning() {
    const VARIES: &str = "HTTP/1.1 200 OK\r\nVary: Accept, origin\r\nContent-Length: 2\r\n\r\n{}";
    let upstream = Upstream::saying(VARIES);
    let server = upstream.setup().arg("--cors=*").start();
    let reply = server.owner().send("GET", "/opencode/x", &[], None);
    let vary: Vec<_> = reply.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("vary")).collect();
    assert_eq!(vary.len(), 1, "{vary:?}");
    assert_eq!(vary[0].1, "Accept, origin");
    assert_eq!(server.owner().send("GET", "/status", &[], None).header("vary"), Some("Origin"));
    let silent = Upstream::start(|_, stream| {
        crate::upstream::expect_end(stream);
        false
    });
    let server = silent.setup().start();
    let mut client = crate::wire::connect(&server);
    let head = format!(
        "GET /opencode/slow HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\r\n"
    );
    std::io::Write::write_all(&mut client, head.as_bytes()).unwrap();
    silent.seen();
    drop(client);
    let line = server.stdout.line_with("GET /opencode/slow ", crate::procs::secs(20)).unwrap();
    assert!(!line.contains("WARN") && !line.contains("ERROR"), "{line}");
}
