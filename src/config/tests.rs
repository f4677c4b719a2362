//! Tests of precedence and of every rule of the resolver, with their own environment and files.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::access::{ApprovalMode, TokenSetting, TokenSource};
use crate::base::ids::Distro;
use crate::base::logging::LogFormat;
use crate::base::{Code, Result, limits};
use crate::roots::RootKind;

use super::line::{CommandLine, Parsed, Style};
use super::resolve::{Resolved, TokenPlan, resolve, resolve_tokens};
use super::sources::default_data_dir;

/// A test folder with `cwd/ws1`, `cwd/ws2`, `conf/ws1` and `key.gpg`. It is removed when dropped.
struct Place {
    root: PathBuf,
    env: HashMap<String, OsString>,
}

impl Place {
    fn new() -> Place {
        let root = std::env::temp_dir().join(format!("berth-config-{}", uuid::Uuid::new_v4()));
        for folder in ["cwd/ws1", "cwd/ws2", "conf/ws1", "home/.config/openwork"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let made = Place { root, env: HashMap::new() };
        made.file("cwd/key.gpg", "k").env("HOME", "{root}/home")
    }

    fn env(mut self, name: &str, value: &str) -> Place {
        let value = value.replace("{root}", self.root.to_str().unwrap());
        self.env.insert(name.to_owned(), value.into());
        self
    }

    #[expect(clippy::disallowed_methods, reason = "a test's own files")]
    fn file(self, name: &str, text: &str) -> Place {
        std::fs::write(self.root.join(name), text).unwrap();
        self
    }

    fn json(self, text: &str) -> Place {
        self.file("conf/server.json", text).env("OPENWORK_SERVER_CONFIG", "{root}/conf/server.json")
    }

    fn run(&self, flags: &[&str]) -> Result<Resolved> {
        let flags: Vec<String> =
            flags.iter().map(|flag| flag.replace("{root}", self.root.to_str().unwrap())).collect();
        let Parsed::Run(args) = CommandLine::parse("serve", &flags, Style::Strict)? else {
            panic!("help or version")
        };
        resolve(&args, &|name| self.env.get(name).cloned(), &self.root.join("cwd"))
    }

    fn ok(&self, flags: &[&str]) -> Resolved {
        self.run(flags).unwrap_or_else(|error| panic!("{flags:?}: {error}"))
    }

    /// Returns the error message, and asserts that it contains `want`.
    #[track_caller]
    fn refuses(&self, flags: &[&str], want: &str) {
        match self.run(flags) {
            Ok(_) => panic!("{flags:?} accepted; wanted: {want}"),
            Err(error) => {
                assert_eq!(error.code(), Code::Config);
                assert!(error.message().contains(want), "{flags:?}: {error}; wanted: {want}");
            }
        }
    }
}

impl Drop for Place {
    #[expect(clippy::disallowed_methods, reason = "a test's own files")]
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

#[test]
fn defaults() {
    let made = Place::new();
    let resolved = made.ok(&[]);
    let settings = &resolved.settings;
    assert_eq!(settings.listen, ["127.0.0.1:8787"]);
    assert_eq!(settings.approval.mode, ApprovalMode::Manual);
    assert_eq!(settings.approval.timeout, Duration::from_secs(30));
    assert!(!settings.read_only && settings.log_requests && !resolved.verbose && !resolved.setup);
    assert!(
        settings.cors_origins.is_empty() && settings.workspaces.is_empty() && settings.proxy_env.is_empty()
    );
    assert_eq!(settings.current_dir, made.root.join("cwd"));
    assert_eq!(settings.authorized_roots, [made.root.join("cwd")]);
    assert_eq!(settings.home, made.root.join("home"));
    assert!(settings.config_path.is_none());
    assert!(settings.client_token.secret.is_none());
    assert_eq!(settings.client_token.source, TokenSource::Generated);
    assert_eq!((settings.max_runs, settings.output_limit), (limits::RUN_WORKERS, limits::OUTPUT_BYTES));
    assert!((4..=256).contains(&settings.http_threads));
    assert_eq!(resolved.log_format, LogFormat::Pretty);
    assert_eq!(resolved.run_id.len(), 36);
    let advertised = &settings.advertised;
    assert!(advertised.inbox_enabled && advertised.outbox_enabled && advertised.toy_ui);
    assert!(!advertised.sandbox_enabled && advertised.browser_provider.is_none());
    assert_eq!((advertised.inbox_max_bytes, advertised.sandbox_backend.as_str()), (50_000_000, "none"));
}

#[test]
fn flag_over_environment_over_file_over_default() {
    type Show = fn(&Resolved) -> String;
    // Columns: the flag and its argument; the variable and its value; the JSON member; the value that each of the
    // four yields.
    type Row = (&'static [&'static str], &'static str, &'static str, &'static str, Show, [&'static str; 4]);
    fn secret(token: &TokenSetting) -> String {
        format!("{}:{}", token.source.as_str(), token.secret.clone().unwrap_or_default())
    }
    #[rustfmt::skip]
    let rows: &[Row] = &[
        (&["--host", "::1"], "OPENWORK_HOST", "localhost", r#""host":"10.0.0.1""#,
            |r| r.settings.listen[0].rsplit_once(':').unwrap().0.to_owned(),
            ["[::1]", "127.0.0.1", "10.0.0.1", "127.0.0.1"]),
        (&["--port", "0"], "OPENWORK_PORT", "2", r#""port":3"#,
            |r| r.settings.listen[0].rsplit_once(':').unwrap().1.to_owned(), ["0", "2", "3", "8787"]),
        (&["--token", "a"], "OPENWORK_TOKEN", "b", r#""token":"c""#,
            |r| secret(&r.settings.client_token),
            ["cli:a", "env:b", "file:c", "generated:"]),
        (&["--host-token", "a"], "OPENWORK_HOST_TOKEN", "b", r#""hostToken":"c""#,
            |r| secret(&r.settings.host_token),
            ["cli:a", "env:b", "file:c", "generated:"]),
        (&["--approval", "auto"], "OPENWORK_APPROVAL_MODE", "manual", r#""approval":{"mode":"auto"}"#,
            |r| r.settings.approval.mode.as_str().to_owned(), ["auto", "manual", "auto", "manual"]),
        (&["--approval-timeout", "1"], "OPENWORK_APPROVAL_TIMEOUT_MS", "2", r#""approval":{"timeoutMs":3}"#,
            |r| r.settings.approval.timeout.as_millis().to_string(), ["1", "2", "3", "30000"]),
        (&["--read-only"], "OPENWORK_READONLY", "no", r#""readOnly":true"#,
            |r| r.settings.read_only.to_string(), ["true", "false", "true", "false"]),
        (&["--no-log-requests"], "OPENWORK_LOG_REQUESTS", "on", r#""logRequests":false"#,
            |r| r.settings.log_requests.to_string(), ["false", "true", "false", "true"]),
        (&["--log-format", "json"], "OPENWORK_LOG_FORMAT", "pretty", r#""logFormat":"json""#,
            |r| format!("{:?}", r.log_format), ["Json", "Pretty", "Json", "Pretty"]),
        (&["--cors", "http://a, *"], "OPENWORK_CORS_ORIGINS", "tauri://B/", r#""corsOrigins":["https://c:1"]"#,
            |r| r.settings.cors_origins.join(" "), ["http://a *", "tauri://b", "https://c:1", ""]),
        (&["--max-runs", "1"], "BERTH_MAX_RUNS", "2", r#""maxRuns":1024"#,
            |r| r.settings.max_runs.to_string(), ["1", "2", "1024", "256"]),
        (&["--max-streams", "1"], "BERTH_MAX_STREAMS", "2", r#""maxStreams":4096"#,
            |r| r.settings.max_streams.to_string(), ["1", "2", "4096", "256"]),
        (&["--run-output-limit", "1048576"], "BERTH_RUN_OUTPUT_LIMIT", "1048577", r#""runOutputLimit":1125899906842624"#,
            |r| r.settings.run_output_limit.to_string(),
            ["1048576", "1048577", "1125899906842624", "2147483648"]),
        (&["--runs-disk-limit", "1048576"], "BERTH_RUNS_DISK_LIMIT", "1048577", r#""runsDiskLimit":1125899906842624"#,
            |r| r.settings.runs_disk_limit.to_string(),
            ["1048576", "1048577", "1125899906842624", "17179869184"]),
        (&["--output-limit", "4096"], "BERTH_OUTPUT_LIMIT", "4097", r#""outputLimit":1073741824"#,
            |r| r.settings.output_limit.to_string(), ["4096", "4097", "1073741824", "10485760"]),
        (&["--init-timeout", "1"], "BERTH_INIT_TIMEOUT", "2", r#""initTimeout":86400"#,
            |r| r.settings.init_timeout.as_secs().to_string(), ["1", "2", "86400", "3600"]),
        (&["--image-timeout", "1"], "BERTH_IMAGE_TIMEOUT", "2", r#""imageTimeout":86400"#,
            |r| r.settings.image_timeout.as_secs().to_string(), ["1", "2", "86400", "3600"]),
        (&["--library", "/l"], "LIBRARY_PATH", "m", r#""library":"n""#,
            |r| r.settings.library.as_ref().map_or("-".into(), |path| path.file_name().unwrap().to_str().unwrap().into()),
            ["l", "m", "n", "-"]),
        (&["--idle-timeout", "0"], "BERTH_IDLE_TIMEOUT", "2", r#""idleTimeout":86400"#,
            |r| r.settings.idle_timeout.as_secs().to_string(), ["0", "2", "86400", "1800"]),
        (&["--root-backend", "copy"], "BERTH_ROOT_BACKEND", "reflink", r#""rootBackend":"overlay""#,
            |r| r.settings.root_backend.map_or("auto", RootKind::as_str).to_owned(),
            ["copy", "reflink", "overlay", "auto"]),
        (&["--mirror", "noble=http://a"], "BERTH_MIRRORS", "ubuntu-noble=https://b", r#""mirrors":{"noble":"file:///c"}"#,
            |r| r.settings.mirrors.get(&Distro::UbuntuNoble).cloned().unwrap_or_default(),
            ["http://a", "https://b", "file:///c", ""]),
    ];
    for (flags, variable, value, json, show, [flag, env, file, default]) in rows {
        let mut made = Place::new();
        assert_eq!(show(&made.ok(&[])), *default, "{flags:?}");
        made = made.json(&format!("{{{json}}}"));
        assert_eq!(show(&made.ok(&[])), *file, "{flags:?}");
        made = made.env(variable, value);
        assert_eq!(show(&made.ok(&[])), *env, "{flags:?}");
        assert_eq!(show(&made.ok(flags)), *flag, "{flags:?}");
        // An empty variable counts as unset, except for tokens.
        made = made.env(variable, "");
        if variable.ends_with("TOKEN") {
            made.refuses(&[], variable);
        } else {
            assert_eq!(show(&made.ok(&[])), *file, "{flags:?}");
        }
    }
}

#[test]
fn paths_start_where_they_were_written() {
    let (cwd, conf) = (|made: &Place| made.root.join("cwd"), |made: &Place| made.root.join("conf"));
    let folders = |resolved: &Resolved| -> Vec<PathBuf> {
        resolved.settings.workspaces.iter().map(|workspace| workspace.path.clone()).collect()
    };
    let mut made = Place::new().json(
        r#"{"workspaces":[{"path":"./x/../ws1","name":"N"}],"authorizedRoots":["."],"dataDir":"d","keyrings":{"arch":"../cwd/key.gpg"}}"#,
    );
    let resolved = made.ok(&[]);
    assert_eq!(folders(&resolved), [conf(&made).join("ws1")]);
    assert_eq!(resolved.settings.workspaces[0].name, "N");
    assert_eq!(resolved.settings.authorized_roots, [conf(&made)]);
    assert_eq!(resolved.settings.data_dir, conf(&made).join("d"));
    assert_eq!(resolved.settings.keyrings[&Distro::ArchLinux], cwd(&made).join("key.gpg"));
    assert_eq!(resolved.settings.config_path, Some(conf(&made).join("server.json")));

    made = made.env("BERTH_DATA_DIR", "e").env("OPENWORK_WORKSPACES", "ws1; ws2,");
    let resolved = made.ok(&[]);
    assert_eq!(folders(&resolved), [cwd(&made).join("ws1"), cwd(&made).join("ws2")]);
    assert_eq!(resolved.settings.workspaces[1].name, "ws2");
    assert_eq!(resolved.settings.data_dir, cwd(&made).join("e"));
    made = made.env("OPENWORK_WORKSPACES", r#"["ws2"]"#);
    assert_eq!(folders(&made.ok(&[])), [cwd(&made).join("ws2")]);

    let resolved = made.ok(&[
        "--workspace",
        "ws1/",
        "--workspace=..",
        "--data-dir",
        "f",
        "--authorized-root",
        "ws1",
        "--keyring",
        "archlinux=key.gpg",
        "--config",
        "../conf/server.json",
    ]);
    assert_eq!(folders(&resolved), [cwd(&made).join("ws1"), made.root.clone()]);
    assert_eq!(resolved.settings.data_dir, cwd(&made).join("f"));
    assert_eq!(resolved.settings.authorized_roots, [cwd(&made).join("ws1")]);
    assert_eq!(resolved.settings.keyrings[&Distro::ArchLinux], cwd(&made).join("key.gpg"));

    let made = Place::new();
    let resolved = made.ok(&["--workspace=ws2", "--workspace=ws1"]);
    assert_eq!(resolved.settings.authorized_roots, folders(&resolved));
    assert_eq!(made.ok(&["--workspace=/"]).settings.workspaces[0].name, "root");
}

#[test]
fn mistakes_name_their_place() {
    let made = Place::new();
    for (flags, want) in [
        (&["--port", "65536"][..], "--port: \"65536\""),
        (&["--port", "+80"], "--port:"),
        (&["--port", "-1"], "--port:"),
        (&["--port="], "--port:"),
        (&["--host", "example.org"], "--host:"),
        (&["--host="], "--host:"),
        (&["--token="], "--token: is empty"),
        (&["--host-token", ""], "--host-token: is empty"),
        (&["--token", "a\n"], "--token: contains"),
        (&["--token=x", "--host-token=x"], "--host-token: is the same"),
        (&["--approval", "Auto"], "--approval: \"Auto\""),
        (&["--approval-timeout", "0"], "--approval-timeout:"),
        (&["--approval-timeout", "30s"], "--approval-timeout:"),
        (&["--opencode-base-url", "localhost:1"], "--opencode-base-url:"),
        (&["--workspace", "nowhere"], "/cwd/nowhere does not exist"),
        (&["--workspace", "key.gpg"], "key.gpg is not a folder"),
        (&["--workspace="], "--workspace:"),
        (&["--workspace=ws1", "--workspace=./ws1/."], "ws1 is given twice"),
        (&["--cors", "localhost"], "--cors:"),
        (&["--cors", "http://a/b"], "--cors:"),
        (&["--log-format", "xml"], "--log-format:"),
        (&["--log-requests", "--no-log-requests"], "--no-log-requests: contradicts"),
        (&["--mirror", "noble"], "--mirror: \"noble\" is not of the form"),
        (&["--mirror", "sid=http://x"], "--mirror: Unknown distro"),
        (&["--mirror", "noble=ftp://x"], "--mirror:"),
        (&["--mirror", "noble=http://"], "--mirror:"),
        (&["--mirror", "noble=http://x\ny"], "--mirror:"),
        (
            &["--mirror=noble=http://x", "--mirror=ubuntu-noble=http://y"],
            "--mirror: ubuntu-noble is given twice",
        ),
        (&["--keyring", "noble=none.gpg"], "none.gpg does not exist"),
        (&["--max-runs", "0"], "--max-runs:"),
        (&["--max-runs", "1025"], "--max-runs:"),
        (&["--output-limit", "4095"], "--output-limit:"),
        (&["--output-limit", "1073741825"], "--output-limit:"),
        (&["--init-timeout", "0"], "--init-timeout:"),
        (&["--init-timeout", "86401"], "--init-timeout:"),
        (&["--image-timeout", "0"], "--image-timeout:"),
        (&["--http-threads", "257"], "--http-threads:"),
        (&["--http-threads", "99999999999999999999"], "--http-threads:"),
        (&["--config", "none.json"], "--config: "),
        (&["--data-dir="], "--data-dir:"),
    ] {
        made.refuses(flags, want);
    }
    for (name, value) in [
        ("OPENWORK_PORT", "x"),
        ("OPENWORK_HOST", "x"),
        ("OPENWORK_TOKEN", ""),
        ("OPENWORK_HOST_TOKEN", ""),
        ("OPENWORK_APPROVAL_MODE", "maybe"),
        ("OPENWORK_APPROVAL_TIMEOUT_MS", "-1"),
        ("OPENWORK_WORKSPACES", "nowhere"),
        ("OPENWORK_WORKSPACES", "[1]"),
        ("OPENWORK_CORS_ORIGINS", "x"),
        ("OPENWORK_READONLY", "maybe"),
        ("OPENWORK_OPENCODE_BASE_URL", "x"),
        ("OPENWORK_LOG_FORMAT", "x"),
        ("OPENWORK_LOG_REQUESTS", "x"),
        ("OPENWORK_INBOX_ENABLED", "maybe"),
        ("OPENWORK_INBOX_MAX_BYTES", "50MB"),
        ("OPENWORK_OUTBOX_ENABLED", "2"),
        ("OPENWORK_TOY_UI", "x"),
        ("OPENWORK_SANDBOX_ENABLED", "x"),
        ("OPENWORK_SANDBOX_BACKEND", "podman"),
        ("OPENWORK_BROWSER_PROVIDER", "x"),
        ("OPENWORK_SERVER_CONFIG", "none.json"),
        ("BERTH_MIRRORS", "noble=x"),
        ("BERTH_KEYRINGS", "noble=x"),
        ("BERTH_MAX_RUNS", "x"),
        ("BERTH_MAX_STREAMS", "0"),
        ("BERTH_RUN_OUTPUT_LIMIT", "1"),
        ("BERTH_RUNS_DISK_LIMIT", "1"),
        ("BERTH_OUTPUT_LIMIT", "1"),
        ("BERTH_INIT_TIMEOUT", "1h"),
        ("BERTH_HTTP_THREADS", "0"),
    ] {
        Place::new().env(name, value).refuses(&[], &format!("{name}: "));
    }
    for (json, want) in [
        ("{\"port\":70000}", "conf/server.json:1:2: port: "),
        ("{\n\"approval\":{\"mode\":\"x\"}}", "conf/server.json:2:13: approval.mode: "),
        ("{\"token\":\"\"}", "conf/server.json:1:2: token: is empty"),
        ("{\"workspaces\":[{\"path\":\"nowhere\"}]}", "conf/server.json:1:17: workspaces[0].path: "),
        ("{\"workspaces\":[{\"path\":\"ws1\"},{\"path\":\"ws1\"}]}", "workspaces[1].path: "),
        ("{\"workspaces\":[{\"path\":\"ws1\",\"workspaceType\":\"x\"}]}", "workspaces[0].workspaceType: "),
        ("{\"workspaces\":[{\"path\":\"ws1\",\"baseUrl\":\"x\"}]}", "workspaces[0].baseUrl: "),
        ("{\"corsOrigins\":[\"x\"]}", "corsOrigins: "),
        ("{\"mirrors\":{\"sid\":\"http://x\"}}", "conf/server.json:1:13: mirrors.sid: "),
        ("{\"mirrors\":{\"noble\":\"http://x\",\"ubuntu-noble\":\"http://y\"}}", "is given twice"),
        ("{\"keyrings\":{\"noble\":\"none\"}}", "keyrings.noble: "),
        ("{\"maxRuns\":0}", "maxRuns: "),
        ("{\"maxStreams\":0}", "maxStreams: "),
        ("{\"runOutputLimit\":0}", "runOutputLimit: "),
        ("{\"runsDiskLimit\":0}", "runsDiskLimit: "),
        ("{\"outputLimit\":1}", "outputLimit: "),
        ("{\"initTimeout\":0}", "initTimeout: "),
        ("{\"httpThreads\":1000}", "httpThreads: "),
        ("{\"logFormat\":\"x\"}", "logFormat: "),
        ("{\"nonsense\":1}", "unknown field `nonsense`"),
        ("{", "conf/server.json:1:1: not JSON: EOF"),
    ] {
        Place::new().json(json).refuses(&[], want);
    }
}

#[test]
fn the_default_file_may_be_absent_but_not_broken() {
    let made = Place::new().file("home/.config/openwork/server.json", "{\"port\":1}");
    assert_eq!(made.ok(&[]).settings.listen, ["127.0.0.1:1"]);
    assert_eq!(made.ok(&[]).settings.config_path, Some(made.root.join("home/.config/openwork/server.json")));
    made.file("home/.config/openwork/server.json", "{").refuses(&[], "server.json:1:1");
}

#[test]
fn opencode_fills_only_what_is_empty() {
    let made = Place::new()
        .json(
            r#"{"workspaces":[{"path":"ws1","baseUrl":"http://own","opencodePassword":"own"},{"path":"."}],"opencodeUsername":"u"}"#,
        )
        .env("OPENWORK_OPENCODE_BASE_URL", "http://all")
        .env("OPENWORK_OPENCODE_DIRECTORY", "/dir")
        .env("OPENWORK_OPENCODE_PASSWORD", "all");
    let both = made.ok(&[]).settings.workspaces;
    assert_eq!(both[0].base_url.as_deref(), Some("http://own"));
    assert_eq!(both[1].base_url.as_deref(), Some("http://all"));
    assert_eq!(both[0].opencode_password.as_deref(), Some("own"));
    assert_eq!(both[1].opencode_password.as_deref(), Some("all"));
    assert_eq!(both[0].opencode_username.as_deref(), Some("u"));
    assert!(both.iter().all(|workspace| workspace.directory.is_none()));
    let alone = made.ok(&["--workspace=ws1", "--opencode-base-url=https://flag"]).settings.workspaces;
    assert_eq!(alone[0].directory.as_deref(), Some("/dir"));
    assert_eq!(alone[0].base_url.as_deref(), Some("https://flag"));
}

#[test]
fn environment_only_settings() {
    let made = Place::new()
        .env("OPENWORK_INBOX_ENABLED", "off")
        .env("OPENWORK_INBOX_MAX_BYTES", "999999999999")
        .env("OPENWORK_OUTBOX_ENABLED", "0")
        .env("OPENWORK_TOY_UI", "FALSE")
        .env("OPENWORK_SANDBOX_BACKEND", "docker")
        .env("OPENWORK_BROWSER_PROVIDER", "host-interactive")
        .env("OPENWORK_RUN_ID", "second")
        .env("HTTPS_PROXY", "http://p:1")
        .env("no_proxy", "x");
    let resolved = made.ok(&[]);
    let advertised = &resolved.settings.advertised;
    assert!(!advertised.inbox_enabled && !advertised.outbox_enabled && !advertised.toy_ui);
    assert!(advertised.sandbox_enabled);
    assert_eq!(advertised.inbox_max_bytes, 250_000_000);
    assert_eq!(advertised.browser_provider.as_deref(), Some("host-interactive"));
    assert_eq!(resolved.run_id, "second");
    assert_eq!(made.env("OPENWRK_RUN_ID", "first").ok(&[]).run_id, "first");
    let mut proxies = resolved.settings.proxy_env;
    proxies.sort();
    assert_eq!(proxies, [("HTTPS_PROXY".into(), "http://p:1".into()), ("no_proxy".into(), "x".into())]);
    let explicit =
        Place::new().env("OPENWORK_SANDBOX_BACKEND", "docker").env("OPENWORK_SANDBOX_ENABLED", "no");
    assert!(!explicit.ok(&[]).settings.advertised.sandbox_enabled);
}

#[test]
fn mirrors_are_decided_one_by_one() {
    let made = Place::new()
        .json(r#"{"mirrors":{"noble":"http://f","jammy":"http://f","arch":"http://f"}}"#)
        .env("BERTH_MIRRORS", "jammy=http://e, arch=http://e");
    let mirrors = made.ok(&["--mirror", "arch=http://c"]).settings.mirrors;
    assert_eq!(mirrors[&Distro::UbuntuNoble], "http://f");
    assert_eq!(mirrors[&Distro::UbuntuJammy], "http://e");
    assert_eq!(mirrors[&Distro::ArchLinux], "http://c");
}

#[test]
fn where_the_data_lies() {
    let env = |name: &str| match name {
        "HOME" => Some(OsString::from("/home/u")),
        _ => None,
    };
    let xdg = |name: &str| match name {
        "XDG_DATA_HOME" => Some(OsString::from("/x")),
        _ => env(name),
    };
    let relative = |name: &str| match name {
        "XDG_DATA_HOME" => Some(OsString::from("x")),
        _ => env(name),
    };
    assert_eq!(default_data_dir(&xdg, true), Path::new("/var/lib/berth"));
    assert_eq!(default_data_dir(&xdg, false), Path::new("/x/berth"));
    for env in [&env as super::Lookup<'_>, &relative] {
        assert_eq!(default_data_dir(env, false), Path::new("/home/u/.local/share/berth"));
    }
    // OpenWork's orchestrator passes its own folder on to the server.
    for (folder, want) in [("/o", "/o/berth"), ("o", "/w/o/berth"), ("", "/var/lib/berth")] {
        let orchestrated = |name: &str| match name {
            "OPENWORK_DATA_DIR" => Some(OsString::from(folder)),
            _ => xdg(name),
        };
        assert_eq!(default_data_dir(&orchestrated, true), Path::new(want));
    }
}

#[test]
fn token_show_ignores_mistakes_elsewhere() {
    let made =
        Place::new().json(r#"{"port":99999,"hostToken":"h","dataDir":"d"}"#).env("OPENWORK_TOKEN", "t");
    let env = |name: &str| made.env.get(name).cloned();
    let plan: TokenPlan = resolve_tokens(&CommandLine::default(), &env, &made.root.join("cwd")).unwrap();
    assert_eq!(plan.data_dir, made.root.join("conf/d"));
    assert_eq!(plan.client.1.as_deref(), Some("OPENWORK_TOKEN"));
    assert!(plan.host.1.is_some_and(|place| place.ends_with("server.json:1:15: hostToken")));
}

#[test]
fn debug_output_has_no_token() {
    let made = Place::new();
    let shown = format!("{:?}", made.ok(&["--token=s3cret", "--host-token=s3cret2"]));
    assert!(!shown.contains("s3cret"), "{shown}");
}
