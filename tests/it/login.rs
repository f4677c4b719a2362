//! Password login as clients of sandboxed.sh use it: a token for a password, accepted like any other token, until it
//! expires; and settings that would lock every client out.

use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::client::Client;
use crate::procs::secs;
use crate::server::{NIL, Server, Setup};
use crate::socket::Socket;

const PASSWORD: &str = "correct horse battery staple";
const SECRET: &str = "0123456789abcdef0123456789abcdef-it";

fn setup() -> Setup {
    Setup::new().env("DASHBOARD_PASSWORD", PASSWORD).env("JWT_SECRET", SECRET)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn log_in(server: &Server, body: Value) -> Value {
    server.anyone().post(200, "/api/auth/login", body)
}

fn signed(secret: &str, header: &Value, claims: &Value) -> String {
    let text = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    format!("{text}.{}", BASE64.encode(mac.finalize().into_bytes()))
}

fn token(sub: &str, iat: u64, exp: u64) -> String {
    let claims = json!({"sub": sub, "usr": sub, "iat": iat, "exp": exp});
    signed(SECRET, &json!({"typ": "JWT", "alg": "HS256"}), &claims)
}

/// The calls of the dashboard after a login.
#[test]
fn the_calls_of_the_dashboard_work_after_a_login() {
    let server = setup().start();
    let health = server.anyone().get(200, "/api/health");
    assert_eq!((&health["auth_mode"], &health["auth_required"]), (&json!("single_tenant"), &json!(true)));
    let before = now();
    let reply = log_in(&server, json!({"password": PASSWORD}));
    let jwt = reply["token"].as_str().unwrap();
    let parts: Vec<Vec<u8>> = jwt.split('.').take(2).map(|part| BASE64.decode(part).unwrap()).collect();
    assert_eq!(parts[0], br#"{"typ":"JWT","alg":"HS256"}"#);
    let claims: Value = serde_json::from_slice(&parts[1]).unwrap();
    assert_eq!(
        (&claims["sub"], &claims["usr"], &claims["exp"]),
        (&json!("default"), &json!("default"), &reply["exp"])
    );
    let (iat, exp) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64().unwrap());
    assert!((before..=now()).contains(&iat) && exp == iat + 30 * 24 * 3600, "{claims}");

    let owner = server.with_token(jwt);
    let identity = owner.get(200, "/whoami");
    assert_eq!(
        (&identity["actor"]["scope"], &identity["actor"]["expiresAt"]),
        (&json!("owner"), &json!(exp * 1000))
    );
    assert_eq!(owner.get(200, "/api/workspaces")[0]["id"], NIL);
    let created = owner.post(200, "/api/workspaces", json!({"name": "mine"}));
    let path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    let exec = json!({"command": "echo hi; env | grep -c -e JWT -e DASHBOARD -e SANDBOXED"});
    assert_eq!(owner.post(200, &format!("{path}/exec"), exec)["stdout"], "hi\n0\n");
    owner.put(200, &path, json!({"name": "renamed"}));
    let protocol = format!("sandboxed, jwt.{jwt}");
    let headers = [("Sec-WebSocket-Protocol", protocol.as_str())];
    let mut shell = Socket::try_open(&server, &format!("{path}/shell"), &headers).unwrap();
    assert_eq!(shell.protocol.as_deref(), Some("sandboxed"));
    shell.type_in("echo typed-$((40+2))\r");
    shell.until("an answer", |socket| socket.text.contains("typed-42").then_some(()));
    owner.delete(200, &path);
    owner.get(200, "/tokens");
    // The configured tokens keep working, and no secret is returned.
    server.owner().get(200, "/api/workspaces");
    let log = server.log();
    assert!(!log.contains(PASSWORD) && !log.contains(SECRET) && !log.contains(jwt), "{log}");
}

#[test]
fn wrong_passwords_and_tokens_are_refused_and_delayed() {
    let server = setup().start();
    let refused = |message: &str, body: Value| {
        let reply = server.anyone().refused(401, "unauthorized", "POST", "/api/auth/login", Some(body));
        assert_eq!(reply["message"], message);
    };
    refused("Invalid password", json!({"password": "wrong"}));
    refused("Invalid password", json!({"password": ""}));
    server.anyone().refused(400, "invalid_payload", "POST", "/api/auth/login", Some(json!({})));
    server.anyone().refused(400, "invalid_payload", "POST", "/api/auth/login", Some(json!({"password": 5})));
    let n = now();
    let good = json!({"sub": "default", "usr": "default", "iat": n, "exp": n + 60});
    let fine = token("default", n, n + 60);
    server.with_token(&fine).get(200, "/whoami");
    let mut bad = vec![
        token("default", n - 100, n - 1),
        token("unknown", n, n + 60),
        token("default", n + 1000, n + 2000),
        signed("another secret", &json!({"typ": "JWT", "alg": "HS256"}), &good),
        signed(SECRET, &json!({"typ": "JWT", "alg": "none"}), &good),
        signed("", &json!({"typ": "JWT", "alg": "HS256"}), &good),
        format!("{}.", fine.rsplit_once('.').unwrap().0),
        signed(
            SECRET,
            &json!({"alg": "HS256"}),
            &json!({"sub": "default", "usr": "default", "iat": n, "exp": -1}),
        ),
        signed(
            SECRET,
            &json!({"alg": "HS256"}),
            &json!({"sub": "default", "usr": "default", "iat": n, "exp": 1e300}),
        ),
    ];
    bad.push(fine.replace('.', ".."));
    let started = Instant::now();
    for token in &bad {
        server.with_token(token).refused(401, "unauthorized", "GET", "/whoami", None);
    }
    // A burst is not delayed; then each failure waits, on every route.
    for _ in 0..12 {
        refused("Invalid password", json!({"password": "wrong"}));
    }
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    log_in(&server, json!({"password": PASSWORD}));
}

#[test]
fn login_tokens_and_their_streams_end_at_expiry() {
    let server = setup().start();
    let end = now() + 4;
    let jwt = token("default", now() - 1, end);
    let client = server.with_token(&jwt);
    let path = format!("/api/workspaces/{NIL}");
    let mut shell = {
        let protocol = format!("sandboxed, jwt.{jwt}");
        Socket::try_open(&server, &format!("{path}/shell"), &[("Sec-WebSocket-Protocol", &protocol)]).unwrap()
    };
    let started = Instant::now();
    thread::scope(|scope| {
        let exec = scope.spawn(|| {
            let body = serde_json::to_vec(&json!({"command": "sleep 60"})).unwrap();
            server.with_token(&jwt).send("POST", &format!("{path}/exec"), &[], Some(&body))
        });
        let stream = scope.spawn(|| {
            server.with_token(&jwt).try_send(
                "GET",
                "/approvals/events",
                &[("Accept", "text/event-stream")],
                None,
            )
        });
        assert_eq!(shell.until_closed().code, 1008);
        exec.join().unwrap().expect(401);
        // A stream that is cut has no final chunk.
        assert!(stream.join().unwrap().is_err());
    });
    assert!(started.elapsed() < secs(15), "{:?}", started.elapsed());
    client.refused(401, "unauthorized", "GET", "/whoami", None);
}

#[test]
fn removed_users_and_changed_secrets_invalidate_tokens() {
    let users = |list: Value| {
        Setup::new()
            .env("SANDBOXED_USERS", list.to_string())
            .env("JWT_SECRET", SECRET)
            .env("JWT_TTL_DAYS", "2")
    };
    let (ann, bob) = (
        json!({"id": "u1", "username": "ann", "password": "pa"}),
        json!({"username": "bob", "password": "pb"}),
    );
    let setup = users(json!([ann, bob]));
    let server = setup.start();
    assert_eq!(server.anyone().get(200, "/api/health")["auth_mode"], "multi_user");
    let first = log_in(&server, json!({"username": "ann", "password": "pa"}));
    let second = log_in(&server, json!({"username": "bob", "password": "pb"}));
    let claims = |reply: &Value| -> Value {
        let part = reply["token"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
        serde_json::from_slice(&BASE64.decode(part).unwrap()).unwrap()
    };
    let reply = claims(&first);
    assert_eq!((&reply["sub"], &reply["usr"]), (&json!("u1"), &json!("ann")));
    assert_eq!(reply["exp"].as_u64().unwrap() - reply["iat"].as_u64().unwrap(), 2 * 24 * 3600);
    assert_eq!(claims(&second)["sub"], "bob");
    let message = |server: &Server, body: Value| {
        let reply = server.anyone().refused(401, "unauthorized", "POST", "/api/auth/login", Some(body));
        reply["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(message(&server, json!({"password": "pa"})), "Username required");
    assert_eq!(
        message(&server, json!({"username": "bob", "password": "pa"})),
        "Invalid username or password"
    );
    let holder =
        |server: &Server, reply: &Value| -> Client { server.with_token(reply["token"].as_str().unwrap()) };
    holder(&server, &first).get(200, "/whoami");
    server.stop();
    let server = setup.clone().env("SANDBOXED_USERS", json!([bob]).to_string()).start();
    holder(&server, &first).refused(401, "unauthorized", "GET", "/whoami", None);
    holder(&server, &second).get(200, "/whoami");
    server.stop();
    let server = setup.env("JWT_SECRET", "another secret of some length, longer").start();
    holder(&server, &second).refused(401, "unauthorized", "GET", "/whoami", None);
}

#[test]
fn an_incomplete_login_configuration_stops_the_start() {
    let refuses_to_start = |setup: Setup, words: &[&str]| {
        let ended = setup.run();
        assert_ne!(ended.code, Some(0));
        let text = format!("{}{}", ended.stdout, ended.stderr);
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
        assert!(!text.contains(PASSWORD) && !text.contains(SECRET), "{text}");
    };
    let new = Setup::new;
    refuses_to_start(new().env("DASHBOARD_PASSWORD", PASSWORD), &["JWT_SECRET", "DASHBOARD_PASSWORD"]);
    refuses_to_start(new().env("JWT_SECRET", SECRET), &["JWT_SECRET", "DASHBOARD_PASSWORD"]);
    refuses_to_start(setup().env("JWT_SECRET", ""), &["JWT_SECRET"]);
    refuses_to_start(setup().env("DASHBOARD_PASSWORD", ""), &["DASHBOARD_PASSWORD"]);
    refuses_to_start(setup().env("JWT_TTL_DAYS", "0"), &["JWT_TTL_DAYS"]);
    refuses_to_start(setup().env("JWT_TTL_DAYS", "99999999999999999999"), &["JWT_TTL_DAYS"]);
    for users in [
        "nonsense",
        "[]",
        "{}",
        r#"[{"username":"a"}]"#,
        r#"[{"username":"a","password":""}]"#,
        r#"[{"username":"","password":"x"}]"#,
        r#"[{"username":"a","password":"x"},{"username":"a","password":"y"}]"#,
        r#"[{"username":"a","password":"correct horse battery staple","x":1}]"#,
    ] {
        refuses_to_start(new().env("SANDBOXED_USERS", users).env("JWT_SECRET", SECRET), &["SANDBOXED_USERS"]);
    }
    // Without these settings there is no login, and health reports the same as before.
    let server = Server::start();
    server.anyone().refused(404, "login_disabled", "POST", "/api/auth/login", Some(json!({"password": "x"})));
    assert_eq!(server.anyone().get(200, "/api/health")["auth_mode"], "single_tenant");
    drop(server);
    // Like other secrets, they may be in the configuration file; a short secret gives a warning.
    let plain = Setup::new();
    let file = plain.scratch().path().join("server.json");
    fs::write(&file, json!({"dashboardPassword": PASSWORD, "jwtSecret": "short"}).to_string()).unwrap();
    let server = plain.arg(format!("--config={}", file.display())).start();
    log_in(&server, json!({"password": PASSWORD}));
}
