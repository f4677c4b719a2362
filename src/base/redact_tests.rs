//! Tests that secrets are removed from values, exports and texts, and that other text is not removed.

use std::time::Instant;

use serde_json::json;

use super::*;

fn text(text: &str) -> String {
    Redactor::default().text(text).into_owned()
}

#[test]
fn secrets_of_a_configuration_are_replaced_and_references_stay() {
    let mut value = json!({
        "mcp": {
            "a": {"type": "local", "command": ["x", "--token", "sk-1", "--api-key=k", "-v", "plain"],
                "environment": {"A": "x", "B": "{env:B}", "N": 5}},
            "b": {"type": "remote", "url": "http://u:p@h/x?api_key=1&q=2", "headers": {"A": "y", "T": "Bearer {env:T}"},
                "oauth": {"clientSecret": "s", "clientId": "i"}},
        },
        "provider": {"p": {"options": {"apiKey": "k", "baseURL": "http://h/v1"}}},
        "plugin": ["git+https://t0k3n@h/x.git", "git+ssh://git@h/x.git", ["https://u:p@h/y", {"token": "t"}]],
        "model": "a/b", "tokens": 5, "init_script": "echo x", "path": "/a/token=b",
    });
    let before = value.clone();
    Redactor::default().value(&mut value);
    let h = HIDDEN;
    assert_eq!(
        value,
        json!({
            "mcp": {
                "a": {"type": "local", "command": ["x", "--token", h, format!("--api-key={h}"), "-v", "plain"],
                    "environment": {"A": h, "B": "{env:B}", "N": h}},
                "b": {"type": "remote", "url": format!("http://{h}@h/x?api_key={h}&q=2"),
                    "headers": {"A": h, "T": "Bearer {env:T}"}, "oauth": {"clientSecret": h, "clientId": "i"}},
            },
            "provider": {"p": {"options": {"apiKey": h, "baseURL": "http://h/v1"}}},
            "plugin": [format!("git+https://{h}@h/x.git"), "git+ssh://git@h/x.git",
                [format!("https://{h}@h/y"), {"token": h}]],
            "model": "a/b", "tokens": 5, "init_script": h, "path": "/a/token=b",
        })
    );
    let mut again = value.clone();
    Redactor::default().value(&mut again);
    assert_eq!(again, value, "a second pass must change nothing");
    restore(value.as_object_mut().unwrap(), before.as_object().unwrap());
    assert_eq!(value, before);
}

#[test]
fn restore_replaces_only_placeholders_that_were_shown() {
    let stored = json!({"a": {"apiKey": "k1", "url": "http://u:p@h/"}});
    let mut sent =
        json!({"a": {"apiKey": "k2", "url": format!("http://{HIDDEN}@other/")}, "b": {"apiKey": HIDDEN}});
    let before = sent.clone();
    restore(sent.as_object_mut().unwrap(), stored.as_object().unwrap());
    assert_eq!(sent, before);
}

#[test]
fn export_omits_secrets_and_names_them() {
    let mut value = json!({
        "mcp": {"a": {"environment": {"A": "x", "B": "{env:B}"}, "headers": {"Authorization": "Bearer {env:T}", "X": "y"},
                "oauth": {"clientSecret": "s", "clientId": "i"}, "url": "http://u:p@h/", "command": ["x", "--token", "t"]}},
        "provider": {"p": {"options": {"apiKey": "k", "baseURL": "u"}}},
        "list": [{"my_token": "t"}], "model": "a/b", "tokens": 5,
    });
    let mut omitted = Vec::new();
    Redactor::default().omit(&mut value, &mut vec!["o".into()], &mut omitted);
    assert_eq!(
        value,
        json!({
            "mcp": {"a": {"environment": {"B": "{env:B}"}, "headers": {"Authorization": "Bearer {env:T}"}, "oauth": {"clientId": "i"},
                "url": format!("http://{HIDDEN}@h/"), "command": ["x", "--token", HIDDEN]}},
            "provider": {"p": {"options": {"baseURL": "u"}}}, "list": [{}], "model": "a/b", "tokens": 5,
        })
    );
    omitted.sort_unstable();
    assert_eq!(
        omitted,
        [
            "o.list.0.my_token",
            "o.mcp.a.command.2",
            "o.mcp.a.environment.A",
            "o.mcp.a.headers.X",
            "o.mcp.a.oauth.clientSecret",
            "o.mcp.a.url",
            "o.provider.p.options.apiKey",
        ]
    );
}

#[test]
fn texts_lose_their_secrets() {
    for (before, after) in [
        ("TOKEN=abc run", "TOKEN=*** run"),
        ("export API_KEY='a b' X=1", "export API_KEY='***' X=1"),
        ("+ DEPLOY_KEY=\"x y\"", "+ DEPLOY_KEY=\"***\""),
        ("tool --token abc -v", "tool --token *** -v"),
        ("tool --password=abc; ls", "tool --password=***; ls"),
        ("curl -u me:pw1 http://h", "curl -u *** http://h"),
        ("curl -H 'Authorization: Bearer abcdef123' h", "curl -H 'Authorization: ***' h"),
        ("sent Bearer abcdef123.", "sent Bearer ***"),
        ("{\"apiKey\": \"x\", \"a\": 1}", "{\"apiKey\": \"***\", \"a\": 1}"),
        ("api_key: abc", "api_key: ***"),
        ("git clone https://me:pw@h/x", "git clone https://***@h/x"),
        ("postgres://u:p@db/x", "postgres://***@db/x"),
        ("https://h/x?sig=abc&b=1#c", "https://h/x?sig=***&b=1#c"),
        ("with ghp_0123456789abcdefghij!", "with ***!"),
        ("key sk-proj-0123456789abcdef", "key ***"),
        (
            "x\n-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\ny",
            "x\n-----BEGIN RSA PRIVATE KEY----****-----END RSA PRIVATE KEY-----\ny",
        ),
        ("é TOKEN=é€x", "é TOKEN=***"),
    ] {
        let after = after.replace("----****", "-----***").replace("***", HIDDEN);
        assert_eq!(text(before), after, "{before}");
    }
}

#[test]
fn texts_without_secrets_stay_unchanged() {
    for same in [
        "echo $TOKEN ${TOKEN} a=b",
        "TOKEN=$OTHER",
        "TOKEN=${OTHER} API_KEY={env:KEY}",
        "--token {env:T}",
        "Invalid bearer token: it was revoked",
        "Authorization: Bearer with the client token",
        "the password: see below",
        "git+ssh://git@h/x.git and http://h:80/a@b",
        "sk-short task-force-0123456789abcdef",
        "max_tokens=5 monkey=1",
        "a:b=c://d",
        "--tokenizer gpt",
    ] {
        assert_eq!(text(same), same);
    }
}

#[test]
fn known_values_are_hidden_anywhere() {
    let redactor =
        Redactor::with_known_values(["correct-horse", "true", "/usr/bin/x", "correct-horse-battery"]);
    assert_eq!(
        redactor.text("+ echo correct-horse-battery; true /usr/bin/x correct-horse"),
        format!("+ echo {HIDDEN}; true /usr/bin/x {HIDDEN}")
    );
}

#[test]
fn time_is_linear_in_the_text() {
    let time = |piece: &str, times: usize| {
        let long = piece.repeat(times);
        let begun = Instant::now();
        std::hint::black_box(text(&long));
        begun.elapsed().as_secs_f64()
    };
    for piece in [
        "token=",
        "a://b@",
        "://",
        "--token ",
        "token:",
        "\"token\":",
        "Bearer ",
        "-----BEGIN PRIVATE KEY",
        "ghp_",
        "-",
        "é=",
        "Authorization:x",
        "Authorization: a ",
        "-----BEGIN x",
    ] {
        time(piece, 1000);
        let (one, four) = (time(piece, 10_000), time(piece, 40_000));
        assert!(four < 12.0 * one + 1.0, "{piece:?}: {one} s, then {four} s");
    }
}
