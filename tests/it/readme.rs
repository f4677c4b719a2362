//! Every example in the README is executed, in order, in one shell session, against a real server: a `sh` block whose
//! first line is `# example`. `B` is the server's address, `T` the owner's token, `D` the data folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::fixture::seeded;
use crate::opencode_serve::program;
use crate::procs::secs;
use crate::server::{BINARY, HOST_TOKEN, run};

/// The `sh` blocks that start with `# example`.
fn examples(readme: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block: Option<Vec<&str>> = None;
    for line in readme.lines() {
        match (&mut block, line.trim_end()) {
            (None, "```sh") => block = Some(Vec::new()),
            (Some(_), "```") => {
                let lines = block.take().unwrap();
                if lines.first().is_some_and(|first| first.trim() == "# example") {
                    found.push(lines.join("\n"));
                }
            }
            (Some(lines), line) => lines.push(line),
            (None, _) => {}
        }
    }
    found
}

#[test]
fn every_example_works() {
    let Ok(readme) = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")) else {
        return;
    };
    let examples = examples(&readme);
    assert!(!examples.is_empty(), "the README has no block that starts with \"# example\"");
    // As the README starts it.
    let server = seeded().arg("--approval=auto").start();
    let (home, programs) = (server.scratch().folder("example-home"), server.scratch().folder("bin"));
    symlink(BINARY, programs.join("berth")).unwrap();
    symlink(program("opencode-new"), programs.join("opencode")).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let script = format!("set -euxo pipefail\n{}\n", examples.join("\n"));
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(server.scratch().path());
    command.env("HOME", home).env("PATH", path).env("OPENCODE_DISABLE_MODELS_FETCH", "1");
    command.env("OPENCODE_DISABLE_AUTOUPDATE", "1").env("OPENCODE_DISABLE_LSP_DOWNLOAD", "1");
    command.env("B", format!("http://{}", server.address)).env("T", HOST_TOKEN).env("D", &server.data);
    let ended = run(&mut command, secs(600));
    assert_eq!(ended.code, Some(0), "--- stdout\n{}\n--- stderr\n{}", ended.stdout, ended.stderr);
}

#[test]
fn every_curl_line_of_the_readme_is_an_example() {
    let Ok(readme) = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")) else {
        return;
    };
    let run: String = examples(&readme).concat();
    for line in readme.lines().map(str::trim) {
        if line.starts_with("curl ") && !line.contains("rustup") {
            assert!(
                run.contains(line),
                "this command is never executed; put it into a `# example` block: {line}"
            );
        }
    }
}
