//! Fairness: a token or workspace that uses its whole share leaves enough capacity for the others.
//! `tests/bench/fairness.py` is the long form.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::Client;
use crate::fixture::Place;
use crate::procs::{self, secs, wait_for};
use crate::server::{HOST_TOKEN, Server, Setup};

/// Creates an owner token that is limited to a host workspace; commands on the host need an owner.
pub fn token(server: &Server, place: &Place<'_>) -> String {
    let body = json!({"scope": "owner", "label": "limited", "workspaceIds": [place.id]});
    let created = server.owner().post(201, "/tokens", body);
    created["token"].as_str().unwrap().to_owned()
}

/// A client with such a token.
fn limited(server: &Server, place: &Place<'_>) -> Client {
    server.with_token(&token(server, place))
}

fn run(client: &Client, place: &Place<'_>, body: Value) -> Result<String, (u16, String)> {
    let reply = client.call("POST", &place.path("/runs"), Some(&body));
    let answer = reply.value();
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    if reply.status == 201 {
        return Ok(text("id"));
    }
    assert!(reply.header("retry-after").is_some(), "{reply}");
    Err((reply.status, text("code")))
}

fn over_share() -> Result<String, (u16, String)> {
    Err((429, "over_share".to_owned()))
}

fn busy() -> Result<String, (u16, String)> {
    Err((503, "busy".to_owned()))
}

#[test]
fn tokens_and_workspaces_have_half_the_permits_and_owners_a_reserved_one() {
    let server = Setup::new().arg("--max-runs=4").arg("--max-streams=1").start();
    let [one, two, three] = [0; 3].map(|_| Place::another_host(&server));
    let (token, second) = (token(&server, &one), limited(&server, &one));
    let first = server.with_token(&token);
    let sleep = || json!({"args": ["sleep", "1000"]});
    let runs: Vec<String> = (0..2).map(|_| run(&first, &one, sleep()).unwrap()).collect();
    assert_eq!(run(&first, &one, sleep()), over_share(), "the token has its half");
    assert_eq!(run(&second, &one, sleep()), over_share(), "the workspace has its half");
    let other = limited(&server, &two);
    for _ in 0..2 {
        run(&other, &two, sleep()).unwrap();
    }
    assert_eq!(run(&limited(&server, &three), &three, sleep()), busy(), "the server is at its limit");
    // The only stream worker is occupied by a wait.
    let wait = one.path(&format!("/runs/{}/wait?timeout_secs=60", runs[0]));
    thread::scope(|scope| {
        // Repeated until the run is deleted, because the poll below may occupy the worker at this moment.
        scope.spawn(|| while server.with_token(&token).call("POST", &wait, None).status == 503 {});
        wait_for("the wait to begin", secs(20), || {
            let path = one.path(&format!("/runs/{}/wait?timeout_secs=0.01", runs[1]));
            (second.call("POST", &path, None).status == 503).then_some(())
        });
        // One permit is reserved for the owner, and requests that end something need none.
        assert_eq!(
            server.owner().post(200, &three.path("/exec"), json!({"command": "true"}))["exit_code"],
            0
        );
        server.owner().post(200, &one.path(&format!("/runs/{}/signal", runs[1])), json!({"signal": "TERM"}));
        first.call("DELETE", &one.path(&format!("/runs/{}", runs[0])), None).expect(204);
        server.owner().call("DELETE", &two.path(""), None).expect(200);
    });
    // Runs that have ended have returned their permits.
    wait_for("a permit for the third", secs(10), || run(&limited(&server, &three), &three, sleep()).ok());
}

#[test]
fn a_single_user_can_use_the_configured_limit() {
    let server = Setup::new().arg("--max-runs=1").start();
    let place = Place::another_host(&server);
    let limited = limited(&server, &place);
    run(&limited, &place, json!({"args": ["sleep", "1000"]})).unwrap();
    assert_eq!(run(&limited, &place, json!({"args": ["sleep", "1000"]})), busy());
    run(&server.owner(), &place, json!({"args": ["sleep", "1000"]})).unwrap();
    assert_eq!(run(&server.owner(), &place, json!({"args": ["sleep", "1000"]})), busy());
}

#[test]
fn terminals_streams_and_detached_runs_have_shares_too() {
    let server = Setup::new().arg("--max-streams=4").start();
    let (one, two) = (Place::another_host(&server), Place::another_host(&server));
    let (token, second) = (token(&server, &one), limited(&server, &two));
    let first = server.with_token(&token);
    let terminal = |client: &Client, place: &Place<'_>| {
        client.call("POST", &place.path("/terminals"), Some(&json!({"command": "cat"})))
    };
    let mut created = 0;
    let refused = loop {
        let reply = terminal(&first, &one);
        if reply.status != 201 {
            break reply;
        }
        created += 1;
    };
    assert_eq!((created, refused.status, &refused.value()["code"]), (32, 429, &json!("over_share")));
    let other = terminal(&second, &two).expect(201).value();
    let path = two.path(&format!("/terminals/{}", other["id"].as_str().unwrap()));
    second.call("DELETE", &path, None).expect(200);
    let detached = || json!({"args": ["sleep", "1000"], "detach": true});
    let runs: Vec<_> = std::iter::from_fn(|| run(&first, &one, detached()).ok()).collect();
    assert_eq!((runs.len(), run(&first, &one, detached())), (32, over_share()));
    run(&second, &two, detached()).unwrap();
    let wait = one.path(&format!("/runs/{}/wait?timeout_secs=60", runs[0]));
    thread::scope(|scope| {
        for _ in 0..2 {
            // The poll below may occupy the permit for a moment.
            scope.spawn(|| while server.with_token(&token).call("POST", &wait, None).status == 429 {});
        }
        wait_for("both waits to begin", secs(10), || {
            let path = one.path(&format!("/runs/{}/wait?timeout_secs=0.01", runs[1]));
            (first.call("POST", &path, None).status == 429).then_some(())
        });
        let path = two.path("/runs");
        let id = second.get(200, &path)[0]["id"].as_str().unwrap().to_owned();
        let wait = format!("{path}/{id}/wait?timeout_secs=0.01");
        second.call("POST", &wait, None).expect(200);
        for (client, place) in [(&first, &one), (&second, &two)] {
            for run in client.get(200, &place.path("/runs")).as_array().unwrap() {
                let path = place.path(&format!("/runs/{}", run["id"].as_str().unwrap()));
                client.call("DELETE", &path, None).expect(204);
            }
        }
    });
}

/// Latencies of `exec true` in milliseconds, sorted.
fn latencies(client: &Client, place: &Place<'_>, count: usize) -> Vec<f64> {
    let mut all: Vec<f64> = (0..count)
        .map(|_| {
            let begun = Instant::now();
            let reply = client.post(200, &place.path("/exec"), json!({"command": "true"}));
            assert_eq!(reply["exit_code"], 0, "{reply}");
            begun.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all
}

/// Ends the flood on drop, also if the test fails.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_flood_from_one_token_does_not_affect_others() {
    let server = Setup::new().arg("--max-runs=16").start();
    let places = [0; 3].map(|_| Place::another_host(&server));
    let tokens = [0, 1, 2].map(|at| token(&server, &places[at]));
    let clients = [0, 1, 2].map(|at| server.with_token(&tokens[at]));
    let quiet = latencies(&clients[1], &places[1], 60);
    let (over, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..24 {
            scope.spawn(|| {
                let flooder = server.with_token(&tokens[0]);
                while !over.load(Ordering::SeqCst) {
                    let body = json!({"command": "sleep 0.2"});
                    let reply = flooder.call("POST", &places[0].path("/exec"), Some(&body));
                    // 403 or 404 once the owner has deleted the workspace.
                    assert!([200, 403, 404, 409, 429].contains(&reply.status), "{reply}");
                    refused.fetch_add(usize::from(reply.status == 429), Ordering::SeqCst);
                }
            });
        }
        wait_for("the flood", secs(20), || (refused.load(Ordering::SeqCst) > 20).then_some(()));
        let flooded: Vec<Vec<f64>> = thread::scope(|scope| {
            let ask = |at: usize| (&clients[at], &places[at]);
            let asking = [1, 2].map(|at| {
                let (client, place) = ask(at);
                scope.spawn(move || latencies(client, place, 60))
            });
            asking.into_iter().map(|asking| asking.join().unwrap()).collect()
        });
        let begun = Instant::now();
        assert_eq!(latencies(&server.owner(), &places[0], 5).len(), 5);
        server.owner().call("DELETE", &places[0].path(""), None).expect(200);
        let ended = begun.elapsed();
        over.store(true, Ordering::SeqCst);
        // The limit is looser than in the long form, because other tests use the same machine.
        let p95 = |all: &[f64]| all[all.len() * 95 / 100];
        for one in &flooded {
            let bound = (10.0 * p95(&quiet)).max(500.0);
            assert!(p95(one) < bound, "{:.1} ms, {:.1} ms without the flood", p95(one), p95(&quiet));
        }
        assert!(ended < Duration::from_secs(10), "the owner's delete lasted {ended:?}");
    });
}

#[test]
fn runs_of_one_workspace_do_not_evict_those_of_another() {
    let server = Setup::new().arg("--runs-disk-limit=16777216").start();
    let (one, two) = (Place::another_host(&server), Place::another_host(&server));
    let small = crate::runs::start(&two, json!({"command": "head -c 2000000 /dev/zero"}));
    crate::runs::ended(&two, &small);
    for _ in 0..8 {
        let run = crate::runs::start(&one, json!({"command": "head -c 4000000 /dev/zero"}));
        crate::runs::ended(&one, &run);
    }
    let kept = server.owner().get(200, &small);
    assert_eq!((&kept["truncated"], &kept["stdout_bytes"]), (&json!(false), &json!(2_000_000)));
    let remaining = server.owner().get(200, &one.path("/runs"));
    assert!(remaining.as_array().unwrap().len() < 6, "{remaining}");
}

#[test]
fn clients_that_do_not_read_use_little_memory() {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    let server = Server::start();
    let place = Place::host(&server);
    place.sh("true");
    let before = procs::memory(server.pid, "VmRSS");
    // 10 MiB of each stream are kept, and each byte becomes six bytes of JSON in the response.
    let body = json!({"command": "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2"}).to_string();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        place.path("/exec"),
        HOST_TOKEN,
        body.len()
    );
    let mut clients: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut client = TcpStream::connect(server.address).unwrap();
            client.write_all(head.as_bytes()).unwrap();
            client
        })
        .collect();
    for client in &mut clients {
        // Once the head of the response is there, the output is complete; the rest stays unread.
        let mut first = [0; 12];
        client.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
    }
    let grown = procs::memory(server.pid, "VmRSS").saturating_sub(before) >> 20;
    assert!(grown < 48, "the server has grown by {grown} MB");
    server.anyone().get(200, "/health");
}

#[test]
fn large_unread_inputs_use_little_memory() {
    let server = Server::start();
    let place = Place::host(&server);
    place.sh("true");
    let before = procs::memory(server.pid, "VmRSS");
    let number = procs::unique_secs();
    let body = json!({"command": format!("sleep {number}"), "stdin": "A".repeat(6 << 20)});
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| server.owner().call("POST", &place.path("/exec"), Some(&body)));
        }
        wait_for("all commands to run", secs(60), || (procs::sleeps(&number).len() == 8).then_some(()));
        let grown = procs::memory(server.pid, "VmRSS").saturating_sub(before) >> 20;
        procs::sleeps(&number).iter().for_each(|pid| procs::kill(*pid));
        assert!(grown < 36, "the server has grown by {grown} MB");
    });
}
