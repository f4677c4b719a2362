//! Generated tokens: stored, private, printed once; `berth token show` prints them again.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, Server, Setup, berth, read};

#[test]
fn generated_tokens_are_kept_and_printed_once() {
    let setup = Setup::bare().arg("--workspace=work");
    let first = setup.start();
    let client = token_line(&first, "Client token: ");
    let host = token_line(&first, "Host token: ");
    assert_ne!(client, host);
    assert!(client.len() >= 32 && host.len() >= 32, "guessable: {client} {host}");
    assert_eq!(first.with_token(&client).get(200, "/whoami")["actor"]["scope"], "collaborator");
    assert_eq!(first.with_token(&host).get(200, "/whoami")["actor"]["scope"], "owner");
    first.stop();

    let second = setup.start();
    assert_eq!(second.with_token(&host).get(200, "/whoami")["actor"]["scope"], "owner");
    let sources = &second.with_token(&host).get(200, "/status")["tokenSource"];
    assert_eq!((&sources["client"], &sources["host"]), (&"generated".into(), &"generated".into()));
    assert!(
        !second.log().contains(&client) && !second.log().contains(&host),
        "printed twice:\n{}",
        second.log()
    );
}

#[test]
fn token_show_prints_them_again() {
    let setup = Setup::bare();
    let server = setup.start();
    let client = token_line(&server, "Client token: ");
    let host = token_line(&server, "Host token: ");
    let data = setup.data_dir().to_str().unwrap();
    for (args, env) in [
        (&["token", "show", "--data-dir", data][..], &[][..]),
        (&["token", "show"], &[("BERTH_DATA_DIR", data)]),
    ] {
        let ended = berth(setup.scratch(), args, env);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stdout.contains(&client) && ended.stdout.contains(&host), "{ended:?}");
    }
}

#[test]
fn token_show_without_a_data_folder_fails_with_a_message() {
    let scratch = Scratch::new();
    let nowhere = scratch.path().join("nowhere");
    let ended = berth(&scratch, &["token", "show", "--data-dir", nowhere.to_str().unwrap()], &[]);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("nowhere"), "{ended:?}");
    assert!(!nowhere.exists(), "the command created the folder");
}

#[test]
fn the_file_is_private() {
    let setup = Setup::bare();
    let server = setup.start();
    let host = token_line(&server, "Host token: ");
    for entry in fs::read_dir(setup.data_dir()).unwrap().flatten() {
        let secret =
            fs::read(entry.path()).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&host));
        if secret {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", entry.path().display());
        }
    }
    let stored: Value = serde_json::from_str(&read(setup.data_dir().join("credentials.json"))).unwrap();
    assert_eq!(stored["hostToken"], host.as_str());
    let mode = fs::metadata(setup.data_dir()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & 0o007, 0, "other users can read the data folder: {mode:o}");
}

#[test]
fn a_damaged_file_is_not_overwritten() {
    let setup = Setup::bare();
    setup.start().stop();
    let path = setup.data_dir().join("credentials.json");
    fs::write(&path, "{ torn").unwrap();
    let ended = setup.run();
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    assert!(ended.stderr.contains("credentials.json"), "{ended:?}");
    assert_eq!(read(&path), "{ torn");
}

#[test]
fn an_empty_token_is_an_error() {
    for name in ["OPENWORK_TOKEN", "OPENWORK_HOST_TOKEN"] {
        let ended = Setup::bare().env(name, "").run();
        assert_eq!(ended.code, Some(2), "{name}: {ended:?}");
        assert!(ended.stderr.contains(name), "{ended:?}");
    }
    for flag in ["--token=", "--host-token="] {
        let ended = Setup::bare().arg(flag).run();
        assert_eq!(ended.code, Some(2), "{flag}: {ended:?}");
    }
}

/// Tokens are for the person at the terminal: on stderr, so that no log contains them.
#[track_caller]
fn token_line(server: &Server, start: &str) -> String {
    let line =
        server.stderr.line_with(start, secs(5)).unwrap_or_else(|| panic!("no {start:?} in {}", server.log()));
    let token = line.rsplit("token: ").next().unwrap().trim().to_owned();
    assert!(!server.stdout.text().contains(&token), "a token in the log: {}", server.log());
    token
}

/// Viewers read the audit log; the token that a person chose could be found by hashing guesses.
#[test]
fn the_audit_log_names_configured_tokens_by_a_keyed_hash_that_stays() {
    use sha2::Digest as _;
    let setup = Setup::new().arg("--approval=auto");
    let hashes = || {
        let server = setup.start();
        let workspace = server.owner().get(200, "/workspaces")["items"][0]["id"].as_str().unwrap().to_owned();
        let command = json!({"name": "c", "template": "t"});
        for client in [server.owner(), server.collaborator()] {
            client.post(200, &format!("/workspace/{workspace}/commands"), command.clone());
        }
        let items = server.owner().get(200, &format!("/workspace/{workspace}/audit?limit=2"));
        let key = fs::metadata(server.data.join("naming_key")).unwrap();
        assert_eq!((key.len(), key.permissions().mode() & 0o7777), (32, 0o600));
        let hash = |item: &Value| item["actor"]["tokenHash"].as_str().unwrap().to_owned();
        items["items"].as_array().unwrap().iter().map(hash).collect::<Vec<_>>()
    };
    let first = hashes();
    assert_eq!(first, hashes(), "the names do not change with a restart");
    for (hash, token) in first.iter().zip([CLIENT_TOKEN, HOST_TOKEN]) {
        let plain: String =
            sha2::Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) && *hash != plain);
    }
    assert_ne!(first[0], first[1]);
}
