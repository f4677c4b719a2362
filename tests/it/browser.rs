//! The web page at /ui: its files, and a real browser that performs every action on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::opencode_server::Opencode;
use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::{CLIENT_TOKEN, HOST_TOKEN, Server, Setup, run};
use crate::trays::Trays;

/// A name that contains markup, another script and quotes.
const ARTIFACT: &str = "Bücher/<img src=x onerror=alert(1)> 'ж'.txt";

#[test]
fn the_page_has_a_strict_content_security_policy() {
    let server = Server::start();
    let client = server.anyone();
    for (path, kind) in [
        ("/ui", "text/html; charset=utf-8"),
        ("/w/anything/ui", "text/html; charset=utf-8"),
        ("/ui/assets/toy.css", "text/css; charset=utf-8"),
        ("/ui/assets/toy.js", "text/javascript; charset=utf-8"),
    ] {
        let reply = client.call("GET", path, None).expect(200);
        assert_eq!(reply.header("content-type"), Some(kind), "{path}");
        assert_eq!(reply.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy = reply.header("content-security-policy").unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
            "{policy}"
        );
        // Behind a proxy's path prefix the page still finds its files.
        let text = reply.text();
        if path.ends_with("/ui") {
            let assets = if path == "/ui" { "\"ui/assets/toy." } else { "\"../../ui/assets/toy." };
            assert_eq!(text.matches(assets).count(), 2, "{path}: {text}");
            assert!(!text.contains("{{") && !text.contains("<script>") && !text.contains("style="), "{path}");
        }
    }
    client.refused(404, "not_found", "GET", "/ui/", None);
    let server = Setup::new().env("OPENWORK_TOY_UI", "0").start();
    for path in ["/ui", "/w/x/ui", "/ui/assets/toy.css", "/ui/assets/toy.js"] {
        server.anyone().refused(404, "ui_disabled", "GET", path, None);
    }
}

#[test]
fn the_page_is_small_and_renders_no_untrusted_markup() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/ui");
    let size: u64 =
        fs::read_dir(&assets).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(size < 64 << 10, "{size}");
    let script = fs::read_to_string(assets.join("toy.js")).unwrap();
    for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write"] {
        assert!(!script.contains(word), "{word} turns untrusted text into markup or code");
    }
}

/// The node_modules folder that `tests/run` installs.
fn modules() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let found = tmp.ancestors().map(|folder| folder.join("it-npm/node_modules")).find(|path| path.is_dir());
    found.expect("npm's packages are missing; tests/run installs them")
}

/// Runs the browser script against a server; `env` describes its other inputs.
fn browse(trays: &Trays, env: &[(&str, &str)]) {
    assert!(
        Path::new("/usr/bin/chromium").exists(),
        "the page's test needs chromium: apt-get install chromium"
    );
    let scratch = trays.server.scratch();
    let file = scratch.file("upload.txt", "from a browser\n");
    trays.offer(ARTIFACT, b"an artifact\n");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/browser.mjs");
    let mut command = Command::new("node");
    command.arg(script).current_dir(scratch.path()).env_clear();
    command.env("PATH", std::env::var("PATH").unwrap()).env("HOME", scratch.folder("browser"));
    command.env("NODE_MODULES", modules()).env("BASE", format!("http://{}", trays.server.address));
    command.env("CLIENT_TOKEN", CLIENT_TOKEN).env("HOST_TOKEN", HOST_TOKEN);
    command.env("SCRATCH", scratch.path()).env("FOLDER", &trays.work).env("FILE", &file);
    command.env("ARTIFACT", ARTIFACT).env("ARTIFACT_TEXT", "an artifact\n");
    if let Ok(folder) = std::env::var("BERTH_TEST_SHOTS") {
        command.env("SHOTS", folder);
    }
    command.envs(env.iter().copied());
    let ended = run(&mut command, secs(300));
    assert_eq!(ended.code, Some(0), "--- stdout\n{}\n--- stderr\n{}", ended.stdout, ended.stderr);
    let inbox = trays.work.join(".opencode/openwork/inbox");
    assert_eq!(fs::read(inbox.join("from/browser.txt")).unwrap(), b"from a browser\n");
    assert!(!inbox.join("denied.txt").exists());
}

#[test]
fn a_browser_uploads_downloads_and_answers_approvals() {
    browse(&Trays::new(Setup::new().args(&["--approval=manual", "--approval-timeout=60000"])), &[]);
}

#[test]
fn a_browser_uses_the_real_opencode() {
    for version in ["opencode-old", "opencode-new"] {
        let scratch = Scratch::new();
        let opencode = Opencode::start(version, scratch.path());
        let setup = opencode.named_to(Setup::new()).args(&["--approval=manual", "--approval-timeout=60000"]);
        browse(&Trays::new(setup), &[("OPENCODE", version)]);
    }
}
