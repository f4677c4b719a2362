//! Flags, environment and `server.json`: the effect of each, their precedence, and errors that name the source of a
//! mistake.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, NIL, Server, Setup, berth, run};

/// A set-up with tokens and without workspaces.
fn plain() -> Setup {
    Setup::bare().env("OPENWORK_TOKEN", CLIENT_TOKEN).env("OPENWORK_HOST_TOKEN", HOST_TOKEN)
}

/// Starts a server with this set-up and returns its `GET /status`.
#[track_caller]
fn status(setup: &Setup) -> Value {
    setup.start().owner().get(200, "/status")
}

/// The names of the workspaces' folders, as the OpenWork API lists them.
#[track_caller]
fn folders(setup: &Setup) -> Vec<String> {
    let list = setup.start().owner().get(200, "/workspaces");
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned()).collect()
}

/// Expects that the server exits at once with code 2 and that stderr contains all of `parts`.
#[track_caller]
fn refused(setup: &Setup, parts: &[&str]) {
    let ended = setup.run();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is not in: {}", ended.stderr);
    }
    assert!(!ended.stdout.contains("listening"), "{ended:?}");
}

#[test]
fn flags_work_in_both_spellings() {
    let reply = status(&plain().only_args(&["--port", "0", "--approval", "auto", "--approval-timeout=1234"]));
    assert_eq!(reply["approval"], json!({"mode": "auto", "timeoutMs": 1234}));
}

#[test]
fn serve_is_the_default_command() {
    let reply = status(&plain().only_args(&["serve", "--port=0", "--approval=auto"]));
    assert_eq!(reply["approval"]["mode"], "auto");
}

#[test]
fn port_zero_prints_the_real_port() {
    let server = plain().start();
    assert_ne!(server.address.port(), 0);
    let reply = server.owner().get(200, "/status");
    assert_eq!(reply["server"]["port"], server.address.port());
    assert_eq!(reply["server"]["host"], "127.0.0.1");
    let line = format!("OpenWork server listening on http://127.0.0.1:{}", server.address.port());
    assert!(server.stdout.text().contains(&line), "{}", server.stdout.text());
}

#[test]
fn help_mentions_every_command_and_flag() {
    let scratch = Scratch::new();
    for args in [&["--help"][..], &["-h"], &["serve", "--help"], &["help"]] {
        let ended = berth(&scratch, args, &[]);
        assert_eq!(ended.code, Some(0), "{args:?} {ended:?}");
        for flag in [
            "--host",
            "--port",
            "--config",
            "--token",
            "--host-token",
            "--approval",
            "--approval-timeout",
            "--opencode-base-url",
            "--opencode-directory",
            "--opencode-username",
            "--opencode-password",
            "--workspace",
            "--cors",
            "--read-only",
            "--log-format",
            "--log-requests",
            "--no-log-requests",
            "--verbose",
            "--version",
            "--help",
            "--data-dir",
            "--mirror",
            "--max-runs",
            "--output-limit",
            "--setup",
            "token show",
            "BERTH_DATA_DIR",
            "OPENWORK_TOKEN",
            "OPENWORK_HOST_TOKEN",
            "OPENWORK_PORT",
        ] {
            assert!(ended.stdout.contains(flag), "{args:?} does not mention {flag}:\n{}", ended.stdout);
        }
    }
}

#[test]
fn every_command_has_its_own_help_with_two_examples() {
    let scratch = Scratch::new();
    for (command, own, other) in [
        ("image", "--reference", "--max-runs"),
        ("host", "--sandbox-image", "--max-runs"),
        ("daemon", "--opencode-workdir", "--sandbox-image"),
        ("workspace", "--directory", "--detach"),
        ("instance", "dispose", "--detach"),
        ("token", "--data-dir", "--max-runs"),
        ("doctor", "--json", "--max-runs"),
        ("status", "--openwork-url", "--allow"),
        ("approvals", "--allow", "--max-runs"),
        ("bundle", "--restore", "--max-runs"),
        ("backup", "--without-containers", "--max-runs"),
        ("restore", "--replace", "--json"),
        ("install", "--no-start", "--purge"),
        ("uninstall", "--purge", "--no-start"),
        ("serve", "--max-runs", "--sandbox-image"),
    ] {
        for args in [&[command, "--help"][..], &["help", command]] {
            let ended = berth(&scratch, args, &[]);
            assert_eq!(ended.code, Some(0), "{args:?} {ended:?}");
            let (_, examples) = ended.stdout.split_once("\nExamples\n").unwrap();
            let examples = examples.split("\n\n").next().unwrap();
            assert_eq!(examples.matches(&format!("berth {command}")).count(), 2, "{args:?}: {examples}");
            assert!(
                ended.stdout.contains(own) && !ended.stdout.contains(other),
                "{args:?}: {}",
                ended.stdout
            );
        }
    }
}

#[test]
fn the_reference_of_settings_is_that_of_the_table() {
    let made = berth(&Scratch::new(), &["help", "markdown"], &[]).stdout;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/docs/configuration.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/docs")).unwrap();
        fs::write(path, &made).unwrap();
    }
    let kept = fs::read_to_string(path).unwrap_or_default();
    assert!(kept == made, "{path} differs from `berth help markdown`; UPDATE_GOLDEN=1 writes it anew");
}

#[test]
fn version_is_printed() {
    let ended = berth(&Scratch::new(), &["--version"], &[]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stdout.trim_end().ends_with(env!("CARGO_PKG_VERSION")), "{ended:?}");
}

#[test]
fn flag_beats_environment_beats_file() {
    let timeout = |setup: &Setup| status(setup)["approval"]["timeoutMs"].as_u64().unwrap();
    let with_file = || {
        let setup = plain();
        let file = setup.scratch().file("server.json", r#"{"approval": {"timeoutMs": 1000}}"#);
        setup.arg(format!("--config={}", file.display()))
    };
    assert_eq!(timeout(&plain()), 30_000);
    assert_eq!(timeout(&with_file()), 1000);
    assert_eq!(timeout(&with_file().env("OPENWORK_APPROVAL_TIMEOUT_MS", "2000")), 2000);
    let all = with_file().env("OPENWORK_APPROVAL_TIMEOUT_MS", "2000").arg("--approval-timeout=3000");
    assert_eq!(timeout(&all), 3000);
}

#[test]
fn every_field_of_the_file_has_its_effect() {
    let setup = Setup::bare();
    setup.scratch().folder("conf/finance");
    let file = setup.scratch().file(
        "conf/server.json",
        json!({
            "host": "127.0.0.1", "port": 0, "token": CLIENT_TOKEN, "hostToken": HOST_TOKEN,
            "approval": {"mode": "auto", "timeoutMs": 5000}, "readOnly": true,
            "workspaces": [{"path": "finance", "name": "Finance", "workspaceType": "local",
                "baseUrl": "http://127.0.0.1:4096", "directory": "/some/where",
                "opencodeUsername": "u", "opencodePassword": "p"}],
            "corsOrigins": ["http://localhost:5173"], "authorizedRoots": ["."],
            "opencodeUsername": "u", "opencodePassword": "p", "logFormat": "json", "logRequests": false,
        })
        .to_string(),
    );
    let server = setup.only_args(&["--config", file.to_str().unwrap()]).start();
    let reply = server.owner().get(200, "/status");
    assert_eq!(reply["readOnly"], true);
    assert_eq!(reply["approval"], json!({"mode": "auto", "timeoutMs": 5000}));
    assert_eq!(reply["corsOrigins"], json!(["http://localhost:5173"]));
    assert_eq!(reply["tokenSource"], json!({"client": "file", "host": "file"}));
    assert_eq!(reply["server"]["configPath"], file.to_str().unwrap());
    let conf = fs::canonicalize(file.parent().unwrap()).unwrap();
    assert_eq!(reply["authorizedRoots"], json!([conf]));
    let workspace = &reply["workspace"];
    assert_eq!(workspace["name"], "Finance");
    assert_eq!(workspace["path"], conf.join("finance").to_str().unwrap());
    assert_eq!(
        (&workspace["workspaceType"], &workspace["baseUrl"]),
        (&json!("local"), &json!("http://127.0.0.1:4096"))
    );
    server.anyone().get(200, "/health");
    server.owner().get(200, "/whoami");
    assert!(!server.log().contains("GET /health"), "logRequests:false has no effect:\n{}", server.log());
}

#[test]
fn the_file_is_found_at_its_default_paths() {
    let auto = r#"{"approval": {"mode": "auto"}}"#;
    let setup = plain();
    setup.scratch().file("home/.config/openwork/server.json", auto);
    assert_eq!(status(&setup)["approval"]["mode"], "auto");
    let named = plain();
    let file = named.scratch().file("other.json", auto);
    assert_eq!(
        status(&named.env("OPENWORK_SERVER_CONFIG", file.to_str().unwrap()))["approval"]["mode"],
        "auto"
    );
}

#[test]
fn every_variable_has_its_effect() {
    let setup = plain()
        .only_args(&[])
        .env("OPENWORK_HOST", "127.0.0.1")
        .env("OPENWORK_PORT", "0")
        .env("OPENWORK_APPROVAL_MODE", "auto")
        .env("OPENWORK_READONLY", "yes")
        .env("OPENWORK_CORS_ORIGINS", "http://a.example, http://b.example")
        .env("OPENWORK_WORKSPACES", "work")
        .env("OPENWORK_OPENCODE_BASE_URL", "http://127.0.0.1:4096")
        .env("OPENWORK_SANDBOX_ENABLED", "1")
        .env("OPENWORK_SANDBOX_BACKEND", "docker")
        .env("OPENWORK_INBOX_ENABLED", "0")
        .env("OPENWORK_INBOX_MAX_BYTES", "1000")
        .env("OPENWORK_LOG_REQUESTS", "false");
    let server = setup.start();
    let reply = server.owner().get(200, "/status");
    assert_eq!((&reply["readOnly"], &reply["approval"]["mode"]), (&json!(true), &json!("auto")));
    assert_eq!(reply["corsOrigins"], json!(["http://a.example", "http://b.example"]));
    assert_eq!(reply["tokenSource"], json!({"client": "env", "host": "env"}));
    assert_eq!(reply["workspace"]["baseUrl"], "http://127.0.0.1:4096");
    let can = server.owner().get(200, "/capabilities");
    assert_eq!(can["sandbox"], json!({"enabled": true, "backend": "docker"}));
    let files = &can["toolProviders"]["files"];
    assert_eq!((&files["injection"], &files["maxBytes"]), (&json!(false), &json!(1000)));
    assert!(!server.log().contains("GET /status"), "OPENWORK_LOG_REQUESTS has no effect:\n{}", server.log());
}

#[test]
fn tokens_are_accepted_as_flags() {
    let server = Setup::bare().args(&["--token", CLIENT_TOKEN, "--host-token", HOST_TOKEN]).start();
    assert_eq!(server.owner().get(200, "/status")["tokenSource"], json!({"client": "cli", "host": "cli"}));
}

#[test]
fn workspaces_of_a_source_with_precedence_replace_the_others() {
    let base = || {
        let setup = plain();
        for name in ["f1", "e1", "e2", "c1", "c2"] {
            setup.scratch().folder(name);
        }
        let file = setup.scratch().file("server.json", r#"{"workspaces": [{"path": "f1"}]}"#);
        setup.arg(format!("--config={}", file.display()))
    };
    assert_eq!(folders(&base()), ["f1"]);
    assert_eq!(folders(&base().env("OPENWORK_WORKSPACES", "e1,e2")), ["e1", "e2"]);
    assert_eq!(folders(&base().env("OPENWORK_WORKSPACES", "e1;e2")), ["e1", "e2"]);
    assert_eq!(folders(&base().env("OPENWORK_WORKSPACES", r#"["e2", "e1"]"#)), ["e2", "e1"]);
    let all = base().env("OPENWORK_WORKSPACES", "e1").args(&["--workspace", "c2", "--workspace=c1"]);
    assert_eq!(folders(&all), ["c2", "c1"]);
}

#[test]
fn a_relative_workspace_path_is_resolved_at_its_source() {
    // A path in a flag is relative to the current folder, a path in the file to the file's folder.
    let setup = plain();
    setup.scratch().folder("conf/here");
    setup.scratch().folder("elsewhere/here");
    let file = setup.scratch().file("conf/server.json", r#"{"workspaces": [{"path": "here"}]}"#);
    let cwd = setup.scratch().path().join("elsewhere");
    let root = fs::canonicalize(setup.scratch().path()).unwrap();
    let from_file = setup.clone().cwd(&cwd).args(&["--config", file.to_str().unwrap()]);
    assert_eq!(status(&from_file)["workspace"]["path"], root.join("conf/here").to_str().unwrap());
    let from_flag = from_file.args(&["--workspace", "here"]);
    assert_eq!(status(&from_flag)["workspace"]["path"], root.join("elsewhere/here").to_str().unwrap());
}

#[test]
fn without_workspaces_the_current_folder_is_the_default_one() {
    let setup = plain();
    let cwd = fs::canonicalize(setup.scratch().folder("elsewhere")).unwrap();
    let server = setup.cwd(&cwd).start();
    let reply = server.owner().get(200, &format!("/api/workspaces/{}", crate::server::NIL));
    assert_eq!(reply["path"], cwd.to_str().unwrap());
}

#[test]
fn mistakes_name_their_source() {
    refused(&plain().arg("--nonsense"), &["--nonsense", "--help"]);
    refused(&plain().arg("stray"), &["stray"]);
    refused(&plain().arg("--approval=perhaps"), &["--approval", "perhaps"]);
    refused(&plain().arg("--approval"), &["--approval"]);
    refused(&plain().arg("--approval-timeout=soon"), &["--approval-timeout", "soon"]);
    refused(&plain().arg("--log-format=xml"), &["--log-format", "xml"]);
    refused(&plain().arg("--max-runs=none"), &["--max-runs"]);
    refused(&plain().arg("--mirror=nothing"), &["--mirror"]);
    refused(&plain().arg("--mirror=no-such-distro=http://m.example/"), &["--mirror", "no-such-distro"]);
    for port in ["x", "-1", "65536", ""] {
        refused(&plain().only_args(&[&format!("--port={port}")]), &["--port"]);
    }
    refused(&plain().only_args(&[]).env("OPENWORK_PORT", "x"), &["OPENWORK_PORT"]);
    refused(&plain().env("OPENWORK_APPROVAL_MODE", "perhaps"), &["OPENWORK_APPROVAL_MODE", "perhaps"]);
}

#[test]
fn errors_name_an_invalid_file() {
    for (text, part) in [
        ("{", "line"),
        ("[]", ""),
        (r#"{"prot": 1}"#, "prot"),
        (r#"{"approval": {"moed": "auto"}}"#, "moed"),
        (r#"{"port": "8787"}"#, "port"),
        (r#"{"approval": {"mode": "perhaps"}}"#, "perhaps"),
        (r#"{"workspaces": [{"name": "no path"}]}"#, "path"),
    ] {
        let setup = plain();
        let file = setup.scratch().file("bad.json", text);
        let setup = setup.only_args(&["--config", file.to_str().unwrap()]);
        refused(&setup, &[file.to_str().unwrap(), part]);
    }
    let setup = plain();
    refused(&setup.args(&["--config", "not-there.json"]), &["not-there.json"]);
}

#[test]
fn an_unusable_data_folder_is_reported() {
    let scratch = Scratch::new();
    let file = scratch.file("taken", "x");
    let is_file = format!("{} is a file", file.display());
    for data in [file.clone(), file.join("below/it")] {
        refused(&plain().data(&data), &[data.to_str().unwrap(), &is_file, "--data-dir"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "x");
}

#[test]
fn a_missing_workspace_folder_is_reported() {
    refused(&plain().arg("--workspace=not-there"), &["--workspace", "not-there"]);
    let setup = plain();
    setup.scratch().file("a-file", "");
    refused(&setup.arg("--workspace=a-file"), &["--workspace", "a-file"]);
    let setup = plain();
    let file = setup.scratch().file("server.json", r#"{"workspaces": [{"path": "gone"}]}"#);
    refused(&setup.args(&["--config", file.to_str().unwrap()]), &[file.to_str().unwrap(), "gone"]);
}

#[test]
fn a_port_in_use_is_reported() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = plain().only_args(&[&format!("--port={port}")]).run();
    assert!(ended.code.is_some_and(|code| code != 0), "{ended:?}");
    assert!(ended.stderr.contains(&port), "{ended:?}");
}

#[test]
fn a_data_folder_is_locked_by_one_server() {
    let setup = plain();
    let first = setup.start();
    let second = setup.run();
    assert!(second.code.is_some_and(|code| code != 0), "{second:?}");
    assert!(
        second.stderr.contains(&first.pid.to_string()),
        "the first's pid {} is not in {second:?}",
        first.pid
    );
    first.owner().get(200, "/status");
    // The lock is released when its holder exits, however it exits.
    first.crash();
    setup.start();
}

#[test]
fn the_data_folder_by_flag_beats_the_variable() {
    let setup = plain();
    let flag = setup.scratch().path().join("by-flag");
    let server = setup.arg(format!("--data-dir={}", flag.display())).start();
    assert!(flag.is_dir());
    assert!(!server.data.exists(), "the variable's folder was created too");
}

#[test]
fn users_other_than_root_use_the_xdg_folder() {
    let setup = plain().data("").env("XDG_DATA_HOME", "");
    let home = setup.scratch().path().join("home");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
    let unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let server = setup.start_through(&unprivileged);
    server.anyone().get(200, "/health");
    server.owner().post(200, "/api/workspaces", json!({"name": "mine"}));
    assert!(home.join(".local/share/berth").is_dir(), "{}", server.log());
    server.stop();
    let xdg = setup.scratch().folder("xdg");
    fs::set_permissions(&xdg, fs::Permissions::from_mode(0o777)).unwrap();
    let setup = setup.env("XDG_DATA_HOME", xdg.to_str().unwrap());
    setup.start_through(&unprivileged);
    assert!(xdg.join("berth").is_dir());
}

#[test]
fn the_printed_curl_line_works_in_a_shell() {
    let given = Setup::new().start();
    let line = given.stdout.line_with("curl ", secs(5)).expect("no curl line in the log");
    assert!(line.contains("$OPENWORK_HOST_TOKEN"), "{line}");
    assert!(!given.log().contains(HOST_TOKEN) && !given.log().contains(CLIENT_TOKEN), "{}", given.log());
    // With tokens that berth created, the line works unchanged in any shell of this machine.
    let created = Setup::bare().start();
    let line = created.stdout.line_with("curl ", secs(5)).expect("no curl line in the log");
    assert!(line.contains(&format!("127.0.0.1:{}", created.address.port())), "{line}");
    let pasted = &line[line.find("curl ").unwrap()..];
    let ended = run(Command::new("bash").args(["-c", pasted]), secs(20));
    assert_eq!(ended.code, Some(0), "{pasted}: {ended:?}");
    assert!(ended.stdout.contains(NIL), "{pasted}: {ended:?}");
}

#[test]
fn sigterm_and_sigint_exit_with_code_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let server = Server::start();
        server.anyone().get(200, "/health");
        let ended = server.stop_by(signal);
        assert_eq!(ended.code(), Some(0), "{signal:?}: {ended}");
    }
}

#[test]
fn setup_installs_nothing_if_all_tools_are_present() {
    // A package manager that only records its calls; it must not be called if all tools are installed.
    let setup = Setup::new();
    let mark = setup.scratch().path().join("called");
    let script = format!("#!/bin/sh\necho \"$0 $*\" >> {}\n", mark.display());
    for name in ["apt-get", "dnf", "pacman"] {
        let fake = setup.scratch().file(&format!("bin/{name}"), &script);
        fs::set_permissions(fake, fs::Permissions::from_mode(0o755)).unwrap();
    }
    crate::fixture::tools();
    let path = format!("{}/bin:{}", setup.scratch().path().display(), std::env::var("PATH").unwrap());
    // Signing keys of Arch Linux are provided too; otherwise they would be installed on this machine.
    let keys = format!("--keyring=arch-linux={}", setup.scratch().folder("keys").display());
    let server = setup.env("PATH", path).args(&["--setup", "--yes", &keys]).start();
    server.anyone().get(200, "/health");
    let called = fs::read_to_string(&mark).unwrap_or_default();
    for there in ["systemd-container", "debootstrap ", "debian-archive-keyring"] {
        assert!(!called.contains(there), "installs a tool that is already installed: {called}");
    }
}

#[test]
fn servers_of_two_orchestrators_have_a_data_folder_each() {
    let scratch = Scratch::new();
    let setup = |folder: &str| {
        let folder = scratch.path().join(folder);
        Setup::new().data("").env("OPENWORK_DATA_DIR", folder.to_str().unwrap())
    };
    let first = setup("one").start();
    let second = setup("two").start();
    for (server, folder) in [(&first, "one"), (&second, "two")] {
        server.owner().get(200, "/status");
        assert!(scratch.path().join(folder).join("berth/lock").exists());
    }
    let refused = setup("one").run();
    assert_eq!(refused.code, Some(2), "{refused:?}");
    let cure = format!("another berth (pid {})", first.pid);
    assert!(refused.stderr.contains(&cure) && refused.stderr.contains("BERTH_DATA_DIR"), "{refused:?}");
}
