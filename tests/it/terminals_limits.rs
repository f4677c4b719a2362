//! Limits of terminals and access to them: credentials, origins, approval, idle terminals, counts, peers that vanish
//! or violate the protocol, and the end of a workspace, a container and the server. Numbers in comments are reports of
//! `assets/docs/field-reports.md`.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Place, seeded, shared, shared_box};
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, NIL, Server, Setup};
use crate::socket::{Socket, raw_socket};
use crate::terminal::Terminal;

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// The response to a refused handshake.
#[track_caller]
fn refused(server: &Server, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    match Socket::try_open(server, path, headers) {
        Ok(_) => panic!("{path} with {headers:?} was accepted"),
        Err(reply) => (reply.status, reply.value()["code"].as_str().unwrap_or_default().to_owned()),
    }
}

/// 27: browsers cannot set headers, so the token may be a subprotocol; never part of the URL, never a cookie.
#[test]
fn a_socket_accepts_its_token_as_a_subprotocol() {
    let server = Server::start();
    let place = Place::host(&server);
    let terminal = Terminal::shell(&place);
    for path in [place.path("/shell"), terminal.path("/ws")] {
        let token = format!("jwt.{HOST_TOKEN}");
        let with = |protocols: &str| vec![("Sec-WebSocket-Protocol".to_owned(), protocols.to_owned())];
        for headers in [
            vec![],
            with("sandboxed"),
            with("sandboxed, jwt."),
            with("sandboxed, jwt.wrong"),
            with(HOST_TOKEN),
            vec![("Cookie".to_owned(), format!("token={HOST_TOKEN}"))],
            vec![("Authorization".to_owned(), bearer("wrong"))],
        ] {
            let headers: Vec<_> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(refused(&server, &path, &headers), (401, "unauthorized".to_owned()), "{headers:?}");
        }
        for query in [format!("?token={HOST_TOKEN}"), format!("?access_token={HOST_TOKEN}&jwt={HOST_TOKEN}")]
        {
            assert_eq!(refused(&server, &format!("{path}{query}"), &[]).0, 401);
        }
        for (protocols, chosen) in [
            (format!("sandboxed, {token}"), Some("sandboxed")),
            (format!("{token},sandboxed.sh"), Some("sandboxed.sh")),
            (format!("x, sandboxed.sh, sandboxed, {token}"), Some("sandboxed.sh")),
            (format!("sandboxed,sandboxed.sh,{token}"), Some("sandboxed")),
        ] {
            let socket = Socket::try_open(&server, &path, &[("Sec-WebSocket-Protocol", &protocols)]);
            assert_eq!(socket.ok().and_then(|socket| socket.protocol).as_deref(), chosen, "{protocols}");
        }
        let owner = bearer(HOST_TOKEN);
        let socket =
            Socket::try_open(&server, &path, &[("Authorization", &owner)]).expect("a bearer token is enough");
        assert_eq!(socket.protocol, None, "no subprotocol was offered");
        let socket = Socket::try_open(&server, &path, &[("X-OpenWork-Host-Token", HOST_TOKEN)]);
        assert!(socket.is_ok());
        // A subprotocol is a credential only in a handshake.
        let reply =
            server.anyone().send("GET", &terminal.path(""), &[("Sec-WebSocket-Protocol", &token)], None);
        assert_eq!(reply.status, 401, "{reply}");
    }
    for removed in [
        "/api/workspaces/11111111-1111-4111-8111-111111111111/shell".to_owned(),
        place.path("/terminals/11111111-1111-4111-8111-111111111111/ws"),
    ] {
        assert_eq!(refused(&server, &removed, &[("Authorization", &bearer(HOST_TOKEN))]).0, 404);
    }
    assert!(!server.log().contains(HOST_TOKEN), "the token is in the log");
}

#[test]
fn a_page_of_a_foreign_origin_cannot_open_a_socket() {
    let server = Setup::new().arg("--cors=http://app.test:5173").start();
    let place = Place::host(&server);
    let protocols = format!("sandboxed, jwt.{HOST_TOKEN}");
    let own = format!("http://{}", server.address);
    for (origin, accepted) in [
        (own.as_str(), true),
        ("http://app.test:5173", true),
        ("http://evil.test", false),
        ("http://app.test", false),
        ("null", false),
        ("http://127.0.0.1:1", false),
        ("https://127.0.0.1.evil.test", false),
    ] {
        let headers = [("Sec-WebSocket-Protocol", protocols.as_str()), ("Origin", origin)];
        match Socket::try_open(&server, &place.path("/shell"), &headers) {
            Ok(_) => assert!(accepted, "{origin} was accepted"),
            Err(reply) => {
                assert!(!accepted, "{origin}: {reply}");
                assert_eq!(
                    (reply.status, reply.value()["code"].as_str()),
                    (403, Some("origin_not_allowed")),
                    "{origin}"
                );
            }
        }
    }
    // DNS rebinding: the name in Host is the page's own.
    let headers = [("Sec-WebSocket-Protocol", protocols.as_str()), ("Host", "evil.test")];
    assert!(
        Socket::try_open(&server, &place.path("/shell"), &headers)
            .is_err_and(|reply| reply.status == 421 || reply.status == 403)
    );
}

#[test]
fn the_host_is_for_owners_and_containers_are_for_collaborators() {
    let server = shared();
    let (host, container) = (Place::host(server), shared_box());
    let collaborator = server.collaborator();
    let on_host = Terminal::shell(&host);
    let calls = |terminal: &Terminal<'_>| {
        vec![
            ("GET", terminal.path("").rsplit_once('/').unwrap().0.to_owned(), None),
            ("POST", terminal.path("").rsplit_once('/').unwrap().0.to_owned(), Some(json!({}))),
            ("GET", terminal.path(""), None),
            ("GET", terminal.path("/screen"), None),
            ("POST", terminal.path("/input"), Some(json!({"text": "x"}))),
            ("POST", terminal.path("/resize"), Some(json!({"cols": 80, "rows": 24}))),
            ("DELETE", terminal.path(""), None),
        ]
    };
    for (method, path, body) in calls(&on_host) {
        let reply = collaborator.refused(403, "forbidden", method, &path, body.clone());
        assert_eq!(reply["details"]["required"], "owner");
        server.anyone().refused(401, "unauthorized", method, &path, body);
    }
    let client = bearer(CLIENT_TOKEN);
    for path in [host.path("/shell"), on_host.path("/ws")] {
        assert_eq!(refused(server, &path, &[("Authorization", &client)]), (403, "forbidden".to_owned()));
    }
    let created = collaborator.post(201, &container.path("/terminals"), json!({"command": "cat"}));
    let foreign_path = container.path(&format!("/terminals/{}", created["id"].as_str().unwrap()));
    collaborator.post(200, &format!("{foreign_path}/input"), json!({"text": "hi"}));
    assert!(Socket::try_open(server, &format!("{foreign_path}/ws"), &[("Authorization", &client)]).is_ok());
    // An id is valid only in its own workspace.
    let id = on_host.id.clone();
    for call in ["", "/screen", "/ws"] {
        collaborator.refused(
            404,
            "terminal_not_found",
            "GET",
            &container.path(&format!("/terminals/{id}{call}")),
            None,
        );
    }
    collaborator.delete(200, &foreign_path);
}

#[test]
fn manual_mode_asks_before_a_host_terminal_opens() {
    let server = seeded().args(&["--approval=manual", "--approval-timeout=20000"]).start();
    let place = Place::ready(&server, json!({}));
    let client = bearer(CLIENT_TOKEN);
    for (reply, expected) in [("deny", 403), ("allow", 101)] {
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| {
                let opened = Socket::try_open(&server, &place.path("/shell"), &[("Authorization", &client)]);
                opened.map_err(|reply| reply.status)
            });
            let approval = wait_for("the question", secs(20), || {
                let items = server.owner().get(200, "/approvals")["items"].clone();
                items.get(0).cloned()
            });
            assert_eq!(approval["action"], "workspace.terminal", "{approval}");
            let path = format!("/approvals/{}", approval["id"].as_str().unwrap());
            server.owner().post(200, &path, json!({ "reply": reply }));
            match opening.join().unwrap() {
                Ok(mut shell) => {
                    assert_eq!(expected, 101);
                    shell.type_in("clear; echo allowed\r");
                    shell.shows("allowed");
                }
                Err(status) => assert_eq!(status, expected),
            }
        });
    }
    let read_only = Setup::new().arg("--read-only").start();
    let owner = [("Authorization", &*bearer(HOST_TOKEN))];
    let path = format!("/api/workspaces/{NIL}/shell");
    assert_eq!(refused(&read_only, &path, &owner), (403, "read_only".to_owned()));
}

#[test]
fn a_container_that_is_not_built_has_no_shell() {
    let server = shared();
    let place = Place::pending(server, json!({"name": "not built"}));
    assert_eq!(
        refused(server, &place.path("/shell"), &[("Authorization", &bearer(HOST_TOKEN))]),
        (400, "workspace_not_ready".to_owned())
    );
    place.client.refused(400, "workspace_not_ready", "POST", &place.path("/terminals"), Some(json!({})));
    assert_eq!(place.client.get(200, &place.path("/terminals")), json!([]));
}

/// 14: only unused terminals end, and their program gets SIGHUP as after a modem disconnect.
#[test]
fn idle_terminals_end_and_watched_ones_do_not() {
    let server = Server::start();
    let place = Place::host(&server);
    let number = unique_secs();
    let script = format!("trap 'echo hangup >> signals; exit 3' HUP; sleep {number} & wait");
    let idle = Terminal::start(&place, json!({"command": script, "idle_timeout_secs": 1}));
    procs::wait_sleep(&number);
    let watched = Terminal::start(&place, json!({"command": "cat", "idle_timeout_secs": 1}));
    let mut client = watched.socket("");
    let looked_at = Terminal::start(&place, json!({"command": "cat", "idle_timeout_secs": 1}));
    let busy = Terminal::start(
        &place,
        json!({"command": "while :; do echo x; sleep 0.2; done", "idle_timeout_secs": 1}),
    );
    let start = Instant::now();
    while start.elapsed() < secs(3) {
        looked_at.text();
        client.step();
    }
    let reply = idle.ended();
    assert_eq!((&reply["ended_by"], &reply["exit_code"]), (&json!("idle"), &json!(3)), "{reply}");
    procs::assert_dead(&number);
    assert_eq!(std::fs::read_to_string(server.work.join("signals")).unwrap(), "hangup\n");
    for terminal in [&watched, &looked_at, &busy] {
        assert_eq!(terminal.show()["status"], "running");
    }
    drop(client);
    for terminal in [watched, looked_at] {
        let reply = terminal.ended();
        // cat dies of SIGHUP.
        assert_eq!((&reply["ended_by"], &reply["signal"]), (&json!("idle"), &json!(1)), "{reply}");
    }
    assert_eq!(busy.show()["status"], "running");
}

#[test]
fn the_number_of_terminals_is_limited() {
    let server = Server::start();
    let place = Place::host(&server);
    let mut all: Vec<_> = (0..64).map(|_| Terminal::start(&place, json!({"command": "cat"}))).collect();
    let reply =
        place.client.call("POST", &place.path("/terminals"), Some(&json!({"command": "cat"}))).expect(503);
    assert_eq!(reply.value()["code"], "busy");
    assert!(reply.header("Retry-After").is_some(), "{reply}");
    assert_eq!(
        refused(&server, &place.path("/shell"), &[("Authorization", &bearer(HOST_TOKEN))]),
        (503, "busy".to_owned())
    );
    assert_eq!(place.client.get(200, &place.path("/terminals")).as_array().unwrap().len(), 64);
    // A terminal that has ended releases its slot, deleted or not.
    all[0].type_in("\x04");
    all[0].ended();
    let one_more = Terminal::start(&place, json!({"command": "cat"}));
    all.pop().unwrap().delete();
    let another = Terminal::start(&place, json!({"command": "cat"}));
    let sockets: Vec<_> = (0..32).map(|_| another.socket("?mode=read")).collect();
    assert_eq!(
        refused(&server, &another.path("/ws"), &[("Authorization", &bearer(HOST_TOKEN))]),
        (503, "busy".to_owned())
    );
    drop((sockets, one_more));
    eprintln!("64 terminals: the server has {} MB", procs::memory(server.pid, "VmRSS") >> 20);
}

#[test]
fn sockets_are_limited_by_max_streams() {
    let server = Setup::new().arg("--max-streams=2").start();
    let place = Place::host(&server);
    let terminal = Terminal::shell(&place);
    let sockets = [terminal.socket(""), terminal.socket("")];
    assert_eq!(
        refused(&server, &terminal.path("/ws"), &[("Authorization", &bearer(HOST_TOKEN))]),
        (503, "busy".to_owned())
    );
    assert_eq!(
        refused(&server, &place.path("/shell"), &[("Authorization", &bearer(HOST_TOKEN))]),
        (503, "busy".to_owned())
    );
    server.anyone().get(200, "/health");
    drop(sockets);
    wait_for("a place", secs(10), || {
        Socket::try_open(&server, &terminal.path("/ws"), &[("Authorization", &bearer(HOST_TOKEN))]).ok()
    });
}

/// 14: a ping every 20 s keeps middleboxes from closing the connection and detects vanished peers.
#[test]
fn peers_that_answer_no_ping_are_disconnected() {
    let server = Server::start();
    let place = Place::host(&server);
    let terminal = Terminal::shell(&place);
    let mut alive = terminal.socket("");
    // Never reads, so never answers; its kernel keeps acknowledging.
    let mut dead = raw_socket(&server, &terminal.path("/ws?mode=read"));
    let shell = place.path("/shell");
    let mut dead_shell = raw_socket(&server, &shell);
    assert_eq!(terminal.show()["clients"], 2);
    let start = Instant::now();
    wait_for("the vanished peers to be detected", secs(60), || {
        alive.step();
        (terminal.show()["clients"] == 1).then_some(())
    });
    let took = start.elapsed();
    assert!((secs(30)..secs(50)).contains(&took), "{took:?}");
    assert!(alive.pings >= 1, "no ping came");
    alive.type_in("echo still here\r");
    alive.shows("still here");
    for stream in [&mut dead, &mut dead_shell] {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        // 0x89 0x00: a ping without a payload.
        assert!(rest.windows(2).any(|two| two == [0x89, 0]), "no ping among {} bytes", rest.len());
    }
    // The shell outlives its socket.
    let list = place.client.get(200, &place.path("/terminals"));
    assert!(
        list.as_array().unwrap().iter().any(|view| view["kind"] == "shell" && view["status"] == "running"),
        "{list}"
    );
}

/// A masked frame, as clients send them.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

#[test]
fn protocol_violations_close_only_the_offending_socket() {
    let server = Server::start();
    let place = Place::host(&server);
    let terminal = Terminal::shell(&place);
    let mut witness = terminal.socket("");
    let unmasked = vec![0x81, 0x01, b'x'];
    let reserved = frame(0x83, b"x");
    let reserved_bits = frame(0xc1, b"x");
    let fragmented_ping = frame(0x09, b"");
    let long_ping = frame(0x89, &[b'x'; 126]);
    let stray_continuation = frame(0x80, b"x");
    let not_utf8 = frame(0x81, b"\xff\xfe");
    let huge = frame(0x82, &vec![b'x'; 65_537]);
    let mut endless = vec![0x82, 0x80 | 127];
    endless.extend(u64::MAX.to_be_bytes());
    endless.extend([0; 4]);
    let many_fragments: Vec<u8> =
        std::iter::once(frame(0x02, b"x")).chain((0..70_000).map(|_| frame(0x00, b"x"))).flatten().collect();
    let garbage = vec![0x0a; 4096];
    for (what, bytes, code) in [
        ("an unmasked frame", unmasked, 1002),
        ("a reserved opcode", reserved, 1002),
        ("reserved bits", reserved_bits, 1002),
        ("a fragmented ping", fragmented_ping, 1002),
        ("a long ping", long_ping, 1002),
        ("a stray continuation", stray_continuation, 1002),
        ("no UTF-8", not_utf8, 1007),
        ("a huge message", huge, 1009),
        ("an endless frame", endless, 1009),
        ("fragments without end", many_fragments, 1009),
        ("garbage", garbage, 1002),
    ] {
        let mut stream = raw_socket(&server, &terminal.path("/ws?mode=read"));
        let _ = stream.write_all(&bytes);
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        let close = all.windows(4).position(|part| part[0] == 0x88 && part[2..4] == u16::to_be_bytes(code));
        assert!(
            close.is_some(),
            "{what}: no close with {code} among {:?}",
            String::from_utf8_lossy(&all[all.len().saturating_sub(200)..])
        );
    }
    // Sending one byte at a time is allowed.
    let mut slow = raw_socket(&server, &terminal.path("/ws?takeover=true"));
    for byte in frame(0x81, br#"{"t":"i","d":"echo byte by byte\r"}"#) {
        slow.write_all(&[byte]).unwrap();
    }
    witness.shows("byte by byte");
    // A disconnect in the middle of any frame.
    for cut in [1, 3, 7] {
        let mut stream = raw_socket(&server, &terminal.path("/ws?mode=read"));
        stream.write_all(&frame(0x81, b"{\"t\":\"i\"}")[..cut]).unwrap();
        drop(stream);
    }
    drop(slow);
    wait_for("all clients to disconnect", secs(20), || {
        witness.step();
        (terminal.show()["clients"] == 1).then_some(())
    });
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn a_deleted_or_rebuilt_workspace_ends_its_terminals() {
    let server = shared();
    let place = Place::ready(server, json!({"name": "to be rebuilt"}));
    let number = unique_secs();
    let ended = |act: &dyn Fn()| {
        let terminal =
            Terminal::start(&place, json!({"command": format!("setsid sleep {number} & sleep {number}")}));
        wait_for("both to start", secs(20), || (procs::sleeps(&number).len() == 2).then_some(()));
        let mut client = terminal.socket("");
        let mut shell = Socket::open(server, &place.path("/shell"));
        act();
        for socket in [&mut client, &mut shell] {
            assert_eq!(socket.until_closed().end_reason()["ended_by"], "workspace");
        }
        procs::assert_dead(&number);
    };
    ended(&|| {
        place.client.call("POST", &place.path("/build?rebuild=true"), None).expect(200);
        assert_eq!(place.settled()["status"], "ready");
    });
    ended(&|| {
        place.client.call("DELETE", &place.path(""), None).expect(200);
    });
}

/// 24: a container that dies ends its terminals, and they report it; the next terminal starts the container again.
#[test]
fn a_container_that_dies_ends_its_terminals() {
    let server = shared();
    let place = Place::ready(server, json!({"name": "to be killed"}));
    let number = unique_secs();
    let terminal = Terminal::start(&place, json!({"command": format!("sleep {number}")}));
    let init = procs::init_of(procs::wait_sleep(&number)).expect("the container's first process");
    let mut client = terminal.socket("");
    client.until("its picture", |socket| (!socket.text.is_empty()).then_some(()));
    procs::kill(init);
    assert_eq!(client.until_closed().end_reason()["exit_code"], -1);
    assert_eq!(terminal.ended()["status"], "ended");
    let next = Terminal::start(&place, json!({"command": "tty"}));
    next.ended();
    assert_eq!(next.text(), "/dev/pts/0\n");
}

#[test]
fn stopping_the_server_closes_terminals_without_waiting() {
    let server = seeded().start();
    let number = unique_secs();
    let (mut client, mut shell) = {
        let place = Place::host(&server);
        let mut terminal = Terminal::start(
            &place,
            json!({"command": format!("trap '' HUP TERM; sleep {number} & setsid sleep {number} & wait")}),
        );
        wait_for("both to start", secs(20), || (procs::sleeps(&number).len() == 2).then_some(()));
        let client = terminal.socket("");
        let shell = Socket::open(&server, &place.path("/shell"));
        terminal.keep();
        (client, shell)
    };
    let start = Instant::now();
    let ending = std::thread::spawn(move || server.stop());
    for socket in [&mut client, &mut shell] {
        let closed = socket.until_closed();
        assert_eq!((closed.code, &closed.end_reason()["ended_by"]), (1000, &json!("workspace")));
    }
    assert!(ending.join().unwrap().success());
    let took = start.elapsed();
    assert!(took < secs(8), "the server waited {took:?} for terminals that never end");
    procs::assert_dead(&number);
}

/// 13, 18: twenty clients of one terminal, none of which loses output within its buffer.
#[test]
fn many_clients_see_the_same() {
    let server = Server::start();
    let place = Place::host(&server);
    let terminal = Terminal::shell(&place);
    let mut clients: Vec<_> = (0..20).map(|_| terminal.socket("?mode=read")).collect();
    for client in &mut clients {
        client.until("its picture", |socket| (!socket.text.is_empty()).then_some(()));
    }
    terminal.type_in("clear; for i in $(seq 1 2000); do echo \"line $i äöü\"; done; echo the end\r");
    let texts: Vec<String> = clients
        .iter_mut()
        .map(|client| {
            client.shows("the end");
            client.text.split_once("line 1 ").expect("the first line").1.to_owned()
        })
        .collect();
    for text in &texts {
        assert_eq!(text.matches("äöü\r\n").count(), 2000);
        assert_eq!(text.split("the end").next(), texts[0].split("the end").next());
    }
}

/// Time until the echo of a key arrives; with the rest of the suite beside it only a hang would be visible.
#[test]
fn a_key_is_echoed_soon() {
    let server = Server::start();
    let place = Place::host(&server);
    let terminal = Terminal::start(&place, json!({"command": "stty raw -echo; exec cat"}));
    let mut client = terminal.socket("");
    let mut delays = Vec::new();
    client.until("cat", |socket| {
        socket.type_in("!");
        std::thread::sleep(Duration::from_millis(20));
        socket.step();
        socket.text.ends_with('!').then_some(())
    });
    for number in 0..50 {
        let mark = format!("<{number}>");
        let start = Instant::now();
        client.type_in(&mark);
        client.until("the echo", |socket| socket.text.contains(&mark).then_some(()));
        delays.push(start.elapsed());
    }
    delays.sort();
    eprintln!("a key's echo: p50 {:?}, p98 {:?}", delays[25], delays[48]);
    assert!(delays[25] < Duration::from_millis(100), "{delays:?}");
}

#[test]
fn the_nil_workspace_lists_its_terminals() {
    let server = Server::start();
    let place = Place::host(&server);
    assert_eq!(place.id, NIL);
    let first = Terminal::start(
        &place,
        json!({"command": "printf '\\033]0;a \\001title\\007'; exec cat", "cols": 90, "rows": 30}),
    );
    let second = Terminal::shell(&place);
    let view = wait_for("the title", secs(10), || Some(first.show()).filter(|view| view["title"] != ""));
    for (field, expected) in [
        ("id", json!(first.id)),
        ("workspace_id", json!(NIL)),
        ("kind", json!("terminal")),
        ("status", json!("running")),
        ("cols", json!(90)),
        ("rows", json!(30)),
        ("title", json!("a title")),
        ("idle_timeout_secs", json!(3600)),
        ("clients", json!(0)),
        ("writer", json!(false)),
        ("exit_code", Value::Null),
        ("signal", Value::Null),
        ("ended_by", Value::Null),
        ("ended_at", Value::Null),
    ] {
        assert_eq!(view[field], expected, "{field}: {view}");
    }
    let list = place.client.get(200, &place.path("/terminals"));
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|view| view["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [first.id.as_str(), second.id.as_str()]);
    for (path, code) in [
        ("/terminals/x", "invalid_id"),
        ("/terminals/11111111-1111-4111-8111-111111111111", "terminal_not_found"),
    ] {
        let status = if code == "invalid_id" { 400 } else { 404 };
        place.client.refused(status, code, "GET", &place.path(path), None);
    }
    place.client.refused(400, "invalid_request", "GET", &first.path("/screen?format=png"), None);
    let json = place.client.send("GET", &first.path("/screen"), &[("Accept", "application/json")], None);
    assert_eq!(json.expect(200).value()["title"], "a title");
}
