//! Bundles for machines without network: creation, restore, repeated restore, and refusal of modified bundles.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use crate::fixture::{DISTRO, Place, seeded};
use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::{BINARY, Ended, Setup, run};
use crate::tape::Tape;

fn bundle(data: &Path, args: &[&str]) -> Ended {
    let mut command = std::process::Command::new(BINARY);
    command.arg("bundle").args(args).env("BERTH_DATA_DIR", data);
    run(&mut command, secs(120))
}

#[test]
fn a_bundle_makes_a_working_server() {
    let here = seeded();
    let data = here.data_dir();
    let template = json!({
        "name": "kit", "distro": DISTRO, "skills": ["packed"], "env_vars": {"A": "b"},
        "init_script": "#!/bin/sh\necho ran > /root/proof\n",
    });
    here.scratch().file("data/library/workspace-template/kit.json", template.to_string());
    here.scratch()
        .file("data/library/skill/packed/SKILL.md", "---\nname: packed\ndescription: d\n---\nHello\n");
    here.scratch().file("data/library/.git/config", "not for the stick");
    here.scratch().file("data/private_key", "0".repeat(64));
    let stick = here.scratch().path().join("stick");
    let stick = stick.to_str().unwrap();
    let output = bundle(data, &[stick]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(output.stderr.contains("--restore"), "{}", output.stderr);
    let listed = run(std::process::Command::new("tar").args(["-tf", stick]), secs(20));
    assert_eq!(
        listed.stdout.lines().collect::<Vec<_>>(),
        [
            "bundle.json",
            "berth",
            "library/skill/packed/SKILL.md",
            "library/workspace-template/kit.json",
            "images/debian-bookworm.tar.zst"
        ]
    );

    // On the other machine no mirror answers.
    let there = Setup::in_folder(Scratch::in_memory())
        .arg("--approval=auto")
        .arg("--mirror=debian-bookworm=http://127.0.0.1:1/debian")
        .env("OPENWORK_TOKEN", crate::server::CLIENT_TOKEN)
        .env("OPENWORK_HOST_TOKEN", crate::server::HOST_TOKEN);
    let bin = there.scratch().path().join("bin");
    let restore = ["--restore", stick, "--bin", bin.to_str().unwrap()];
    let output = bundle(there.data_dir(), &restore);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert_eq!(fs::read(bin.join("berth")).unwrap(), fs::read(BINARY).unwrap());
    assert_eq!(fs::metadata(bin.join("berth")).unwrap().permissions().mode() & 0o777, 0o755);
    let server = there.start();
    let created =
        server.owner().post(200, "/api/workspaces", json!({"name": "from a stick", "template": "kit"}));
    let place = Place::of(&server, &created);
    assert_eq!(place.settled()["status"], "ready", "{}", place.init_log());
    assert_eq!(place.sh("cat /root/proof; echo $A"), "ran\nb\n");

    // Again, beside the running server: nothing changes, and edited files stay.
    fs::write(there.data_dir().join("library/skill/packed/SKILL.md"), "mine").unwrap();
    let output = bundle(there.data_dir(), &restore);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(output.stderr.contains("not replaced: 1 that existed already"), "{}", output.stderr);
    assert_eq!(fs::read(there.data_dir().join("library/skill/packed/SKILL.md")).unwrap(), b"mine");
    assert_eq!(server.owner().get(200, "/api/images").as_array().unwrap().len(), 1);
}

#[test]
fn a_modified_bundle_is_refused() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let id = "0".repeat(64);
    let list = json!({"format": 1, "version": "0", "images": [{"name": "tiny", "id": id}]}).to_string();
    let image = zstd::encode_all(&Tape::system().end()[..], 1).unwrap();
    let start = || Tape::default().file("bundle.json", 0o644, list.as_bytes());
    for (what, tape, words) in [
        ("another image", start().file("images/tiny.tar.zst", 0o644, &image), "another image"),
        (
            "a damaged image",
            start().file("images/tiny.tar.zst", 0o644, &image[..image.len() / 2]),
            "incomplete",
        ),
        ("an image more", start().file("images/other.tar.zst", 0o644, &image), "does not list"),
        ("an image less", start(), "fewer images"),
        ("a way out", start().file("library/../../evil", 0o644, b"x"), "no place"),
        ("an absolute name", start().file("/evil", 0o644, b"x"), "no place"),
        ("a link", start().symlink("library/evil", "/etc"), "no place"),
        ("something else", start().file("evil", 0o644, b"x"), "no place"),
        ("no list", Tape::default().file("berth", 0o755, b"x"), "something else"),
    ] {
        let path = scratch.path().join("stick");
        tape.save(&path);
        let bin = scratch.path().join("bin");
        let output = bundle(&data, &["--restore", path.to_str().unwrap(), "--bin", bin.to_str().unwrap()]);
        assert_eq!(output.code, Some(1), "{what}: {}", output.stderr);
        assert!(output.stderr.contains(words), "{what}: {}", output.stderr);
        let names: Vec<_> =
            fs::read_dir(data.join("images")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(names.len(), 2, "{what}: {names:?}");
        assert!(!scratch.path().join("evil").exists() && !data.join("evil").exists(), "{what}");
    }
    let output = bundle(&data, &[scratch.path().join("new").to_str().unwrap(), "--image", "missing"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("no image with the name"), "{}", output.stderr);
    assert!(!scratch.path().join("new").exists());
}
