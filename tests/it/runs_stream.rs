//! Streams of runs over connections that break, slow readers, and the state after the server stops. Numbers in
//! brackets are reports of `assets/docs/field-reports.md` that a test covers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::events::Events;
use crate::fixture::{Place, shared_box};
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::runs::{ended, output, start};
use crate::server::{HOST_TOKEN, Server, Setup};

/// A stream of text with characters of every length, from a byte generator that the test can repeat.
const UNICODE: &str = "for i in $(seq 1 3000); do printf 'a%dé€𝄞' $i; done";

fn unicode() -> String {
    (1..=3000).map(|i| format!("a{i}é€𝄞")).collect()
}

/// (7, 19) A stream that is disconnected at any offset and resumed has no gap and no repetition.
#[test]
fn a_disconnected_stream_resumes_at_its_offset() {
    let server = Server::start();
    let place = Place::host(&server);
    let command = format!("{UNICODE}; for i in $(seq 1 300); do echo e$i >&2; echo o$i; done; {UNICODE}");
    let run = start(&place, json!({"command": command}));
    let (mut out, mut err, mut last) = (Vec::new(), Vec::new(), None::<String>);
    let mut breaks = 0;
    let exit = 'all: loop {
        let mut events = Events::follow(&server, &run, last.as_deref());
        for _ in 0..=breaks % 17 {
            let event = events.next().expect("a stream ends with an exit event");
            match event.name.as_str() {
                "stdout" | "stderr" => {
                    let (stream, other) =
                        if event.name == "stdout" { (&mut out, &err) } else { (&mut err, &out) };
                    assert_eq!(event.data["offset"], stream.len(), "a gap or a repetition");
                    stream.extend(event.bytes());
                    let (o, e) = if event.name == "stdout" {
                        (stream.len(), other.len())
                    } else {
                        (other.len(), stream.len())
                    };
                    assert_eq!(event.id, format!("{o}:{e}"));
                    last = Some(event.id);
                }
                "exit" => break 'all event,
                _ => {}
            }
        }
        breaks += 1;
    };
    assert!(breaks > 3, "only {breaks} breaks");
    let lines: String = (1..=300).map(|i| format!("o{i}\n")).collect();
    assert!(String::from_utf8(out).unwrap() == format!("{}{lines}{}", unicode(), unicode()));
    assert_eq!(String::from_utf8(err).unwrap(), (1..=300).map(|i| format!("e{i}\n")).collect::<String>());
    assert_eq!(exit.data["run"]["exit_code"], 0);
    // A browser that reconnects after the end gets 204.
    place.client.send("GET", &format!("{run}/events"), &[("Last-Event-ID", &exit.id)], None).expect(204);
    place.client.refused(400, "invalid_request", "GET", &format!("{run}/events?last_event_id=x"), None);
}

#[test]
fn no_event_splits_a_character_or_loses_a_byte() {
    let place = shared_box();
    // One byte at a time, interleaved with the other stream; then invalid UTF-8.
    let command = r"for b in 303 251 342 202 254 360 235 204 236; do printf \\$b; printf . >&2; sleep 0.03; done;
        printf '\377\376ab\200'; sleep 0.1; printf '\342\202'";
    let mut events = Events::ask(
        place.server,
        &format!("POST {} HTTP/1.1\r\n", place.path("/exec?stream=sse")),
        Some(&json!({"command": command})),
    );
    assert!(events.head.contains("Content-Type: text/event-stream"), "{}", events.head);
    assert!(events.head.contains("X-Accel-Buffering: no"), "{}", events.head);
    let mut all = Vec::new();
    let exit = loop {
        let event = events.next().unwrap();
        match event.name.as_str() {
            "stdout" => {
                if let Some(text) = event.data["text"].as_str() {
                    assert!(["é", "€", "𝄞"].contains(&text), "{event:?}");
                }
                all.extend(event.bytes());
            }
            "exit" => break event,
            _ => {}
        }
    };
    assert_eq!(all, "é€𝄞".as_bytes().iter().chain(b"\xff\xfeab\x80\xe2\x82").copied().collect::<Vec<u8>>());
    assert_eq!(exit.data["run"]["stderr_bytes"], 9);
    assert!(events.next().is_none());
}

#[test]
fn json_lines_carry_the_same_events() {
    let server = Server::start();
    let place = Place::host(&server);
    let body = json!({"command": "echo out; echo err >&2; exit 3"});
    let request = format!("POST {} HTTP/1.1\r\n", place.path("/exec?stream=ndjson"));
    let events = Events::ask(&server, &request, Some(&body));
    assert!(events.head.contains("Content-Type: application/x-ndjson"), "{}", events.head);
    let (out, err, exit) = events.collect();
    assert_eq!((out.as_slice(), err.as_slice()), (b"out\n".as_slice(), b"err\n".as_slice()));
    assert_eq!((&exit.data["run"]["exit_code"], exit.id.as_str()), (&json!(3), "4:4:exit"));
    place.exec_refused("invalid_payload", json!({"command": "true", "pty": {"cols": 1, "rows": 1}}));
    let path = place.path("/exec?stream=carrier-pigeon");
    place.client.refused(400, "invalid_request", "POST", &path, Some(body));
    // A command that cannot be started gets an ordinary error response.
    let path = place.path("/exec?stream=sse");
    place.client.refused(
        400,
        "invalid_cwd",
        "POST",
        &path,
        Some(json!({"command": "true", "cwd": "no/such"})),
    );
}

/// (5) A command that never started has no exit event: in a container the failure is known only after the stream has
/// begun.
#[test]
fn a_command_that_never_started_has_an_error_and_no_exit() {
    let place = shared_box();
    let body = json!({"args": ["no-such-program", "x"]});
    let check = |mut events: Events| {
        assert_eq!(events.next().unwrap().name, "status");
        let last = events.next().unwrap();
        assert_eq!((last.name.as_str(), last.id.as_str()), ("failed", "0:0:exit"), "{last:?}");
        assert_eq!(last.data["code"], "invalid_command", "{last:?}");
        assert!(last.data["message"].as_str().unwrap().contains("No such file"), "{last:?}");
        assert_eq!(
            (&last.data["run"]["status"], &last.data["run"]["exit_code"]),
            (&json!("failed"), &Value::Null)
        );
        assert!(events.next().is_none());
        last.id
    };
    for format in ["sse", "ndjson"] {
        let request = format!("POST {} HTTP/1.1\r\n", place.path(&format!("/exec?stream={format}")));
        check(Events::ask(place.server, &request, Some(&body)));
    }
    for detach in [false, true] {
        let run = start(&place, json!({"args": ["no-such-program"], "detach": detach}));
        let id = check(Events::follow(place.server, &run, None));
        place.client.send("GET", &format!("{run}/events"), &[("Last-Event-ID", &id)], None).expect(204);
        let request = format!("GET {run}/events?stream=ndjson HTTP/1.1\r\n");
        check(Events::ask(place.server, &request, None));
    }
}

/// (5) Only a collected exit status ends a stream.
#[test]
fn a_stream_ends_with_a_status_or_closes_abnormally() {
    let server = Server::start();
    let place = Place::host(&server);
    let run = start(&place, json!({"command": "echo up; sleep 0.7; exit 9"}));
    let started = Instant::now();
    let (out, _, exit) = Events::follow(&server, &run, None).collect();
    assert!(
        started.elapsed() >= Duration::from_millis(500),
        "the stream ended before the command: {:?}",
        started.elapsed()
    );
    assert_eq!((out.as_slice(), &exit.data["run"]["exit_code"]), (b"up\n".as_slice(), &json!(9)));
    // A server that is killed ends no stream with its final chunk.
    let run = start(&place, json!({"command": "echo up; sleep 1000"}));
    let mut events = Events::follow(&server, &run, None);
    events.wait("stdout");
    drop(place);
    server.crash();
    let rest = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| events.next()));
    assert!(rest.is_err(), "a made-up end: {rest:?}");
}

/// (19) The first byte arrives at once, and a silent stream has heartbeats.
#[test]
fn a_silent_stream_has_heartbeats() {
    let server = Server::start();
    let place = Place::host(&server);
    let run = start(&place, json!({"command": "sleep 1000"}));
    let started = Instant::now();
    let mut events = Events::follow(&server, &run, None);
    assert_eq!(events.next().unwrap().name, "status");
    assert!(started.elapsed() < secs(2));
    let beat = events.next_or_comment().unwrap();
    assert_eq!((beat.name.as_str(), beat.id.as_str()), ("", ""), "a comment: {beat:?}");
    assert!(started.elapsed() > secs(5) && started.elapsed() < secs(15), "{:?}", started.elapsed());
}

/// A client of HTTP/1.0 gets the same without chunks, until the end of the connection.
#[test]
fn http_1_0_clients_can_follow_a_run() {
    let server = Server::start();
    let place = Place::host(&server);
    let run = start(&place, json!({"command": "echo a; sleep 0.2; echo b"}));
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(secs(20))).unwrap();
    let head = format!("GET {run}/events HTTP/1.0\r\nAuthorization: Bearer {HOST_TOKEN}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(!text.contains("Transfer-Encoding") && text.contains("Connection: close"), "{text}");
    assert!(
        text.contains("\n\nevent: stdout\nid: 2:0\n") && text.contains("\nevent: exit\nid: 4:0:exit\n"),
        "{text}"
    );
    assert!(text.ends_with("}\n\n"), "{text}");
    // HEAD returns the head and uses no stream worker.
    let reply = place.client.call("HEAD", &format!("{run}/events"), None).expect(200);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
}

/// A reader that stops delays only itself, not the run or other readers, and uses no memory.
#[test]
fn a_slow_reader_delays_only_itself() {
    let server = Server::start();
    let place = Place::host(&server);
    place.sh("true");
    let before = procs::memory(server.pid, "VmRSS");
    let run = start(&place, json!({"command": "read x; seq 1 3000000; seq 1 10 >&2", "open_stdin": true}));
    let mut slow = Events::follow(&server, &run, None);
    slow.wait("status");
    place.client.send(
        "POST",
        &format!("{run}/stdin?eof=1"),
        &[("Content-Type", "text/plain")],
        Some(b"go\n"),
    );
    let (out, _, _) = Events::follow(&server, &run, None).collect();
    let bytes = 22_888_896;
    assert_eq!(out.len(), bytes);
    let reply = ended(&place, &run);
    assert_eq!((&reply["stdout_bytes"], &reply["truncated"]), (&json!(bytes), &json!(false)));
    let growth = procs::memory(server.pid, "VmRSS").saturating_sub(before) >> 20;
    assert!(growth < 16, "the server has grown by {growth} MB");
    // The slow reader still receives everything.
    let (late, err, _) = slow.collect();
    assert!(late == out);
    assert_eq!(err, b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n");
    // So does a client that requests all output at once.
    let whole = output(&place, &run, "");
    assert!(whole.body == out);
    assert_eq!(whole.header("x-next-offset"), Some(bytes.to_string().as_str()));
    assert!(output(&place, &run, "?stream=both").body.len() == bytes + err.len());
}

/// A client that starts and follows a command in one request ends it by disconnecting.
#[test]
fn a_followed_exec_ends_when_its_client_disconnects() {
    for place in [Place::host(server()), shared_box()] {
        let number = unique_secs();
        let request = format!("POST {} HTTP/1.1\r\n", place.path("/exec?stream=sse"));
        let body = json!({"command": format!("echo up; setsid sleep {number} & sleep {number}")});
        let mut events = Events::ask(place.server, &request, Some(&body));
        events.wait("stdout");
        procs::wait_sleep(&number);
        drop(events);
        wait_for("the command to end", secs(10), || procs::sleeps(&number).is_empty().then_some(()));
    }
}

fn server() -> &'static Server {
    use std::sync::OnceLock;
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let server = Server::start();
        crate::fixture::guard(&server);
        server
    })
}

/// (7) A run is independent of the client that started it: the connection and even the client may end.
#[test]
fn a_run_outlives_the_connection_that_started_it() {
    let place = Place::host(server());
    let number = unique_secs();
    let body =
        json!({"command": format!("sleep 0.3; echo done; exec sleep {number}"), "tag": number}).to_string();
    let mut stream = TcpStream::connect(place.server.address).unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {HOST_TOKEN}\r\nContent-Length: {}\r\n\r\n{body}",
        place.path("/runs"),
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.contains("201"), "{line}");
    drop(stream);
    procs::wait_sleep(&number);
    let list = place.client.get(200, &format!("{}?tag={number}", place.path("/runs")));
    let run = place.path(&format!("/runs/{}", list[0]["id"].as_str().unwrap()));
    assert_eq!(output(&place, &run, "").text(), "done\n");
    place.client.delete(204, &run);
}

/// Stopping the server ends its runs and sends followers the exit event; the next server has all records.
#[test]
fn runs_are_kept_across_a_restart() {
    let setup = Setup::new().arg("--drain-timeout=1");
    let server = setup.start();
    let place = Place::host(&server);
    let number = unique_secs();
    let whole = start(
        &place,
        json!({"command": "echo out; sleep 0.2; echo err >&2; sleep 0.2; echo out; exit 5", "tag": "first"}),
    );
    ended(&place, &whole);
    let cut = start(&place, json!({"command": format!("echo part; sleep {number}")}));
    procs::wait_sleep(&number);
    let mut events = Events::follow(&server, &cut, None);
    events.wait("stdout");
    let followed = thread::spawn(move || events.wait("exit"));
    drop(place);
    server.stop();
    procs::assert_dead(&number);
    let exit = followed.join().unwrap();
    assert_eq!((&exit.data["run"]["status"], &exit.data["run"]["signal"]), (&json!("killed"), &json!(9)));

    let server = setup.start();
    let place = Place::host(&server);
    let reply = place.client.get(200, &whole);
    assert_eq!(
        (&reply["status"], &reply["exit_code"], &reply["tag"]),
        (&json!("exited"), &json!(5), &json!("first"))
    );
    assert_eq!(output(&place, &whole, "?stream=both").text(), "out\nerr\nout\n");
    let (out, err, _) = Events::follow(&server, &whole, None).collect();
    assert_eq!((out.as_slice(), err.as_slice()), (b"out\nout\n".as_slice(), b"err\n".as_slice()));
    assert_eq!(place.client.get(200, &cut)["status"], "killed");
    assert_eq!(output(&place, &cut, "").text(), "part\n");
    let tags: Vec<Value> = place
        .client
        .get(200, &place.path("/runs"))
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["tag"].clone())
        .collect();
    assert_eq!(tags, [Value::Null, json!("first")], "the newest first");
    // After a kill: the output is kept, and the exit status is reported as unknown.
    let number = unique_secs();
    let lost = start(&place, json!({"command": format!("echo part; sleep {number}")}));
    procs::wait_sleep(&number);
    wait_for("its output", secs(10), || (output(&place, &lost, "").text() == "part\n").then_some(()));
    drop(place);
    server.crash();
    let server = setup.start();
    let place = Place::host(&server);
    procs::assert_dead(&number);
    let reply = place.client.get(200, &lost);
    assert_eq!((&reply["status"], &reply["exit_code"]), (&json!("failed"), &Value::Null), "{reply}");
    assert_eq!(reply["error"]["code"], "interrupted");
    assert!(
        reply["wall_secs"].as_f64().is_some_and(|secs| secs > 0.0),
        "the time until it was killed: {reply}"
    );
    let last = Events::follow(&server, &lost, None).wait("failed");
    assert_eq!(last.data["code"], "interrupted", "{last:?}");
    assert_eq!(output(&place, &lost, "").text(), "part\n");
    place.client.delete(204, &lost);
    assert_eq!(place.client.get(200, &place.path("/runs")).as_array().unwrap().len(), 2);
}
