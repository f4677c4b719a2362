//! Every sentence of the README's section on security, with the tests that prove it. A sentence that is not listed, a
//! listed sentence that was removed, and a test that does not exist fail here. Tests without a better place are in
//! this file.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::fixture::{Place, seeded, shared, shared_box};
use crate::procs::{self, secs};
use crate::security_sentences::{NOTICE, PROMISES};
use crate::server::{Setup, run};

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// The sentences of the section, separated by a full stop, a space and the start of a sentence, by list items, and by
/// blank lines.
fn sentences(readme: &str) -> Vec<String> {
    let (_, section) = readme.split_once("\n## Security\n").expect("a section on security");
    let section = section.split("\n## ").next().unwrap();
    let mut items = vec![String::new()];
    for line in section.lines() {
        let text = line.trim();
        if line.starts_with("- ") || text.is_empty() {
            items.push(String::new());
        }
        let item = items.last_mut().unwrap();
        if !item.is_empty() {
            item.push(' ');
        }
        item.push_str(text.strip_prefix("- ").unwrap_or(text));
    }
    let begins = |rest: &str| {
        rest.starts_with(|c: char| c.is_ascii_uppercase() || "`*\"".contains(c)) || rest.starts_with("berth ")
    };
    let mut found = Vec::new();
    for item in items.iter().filter(|item| !item.is_empty()) {
        let mut start = 0;
        for (space, _) in item.match_indices(' ') {
            let ends = item[..space].ends_with('.') || item[..space].ends_with(".**");
            if ends && begins(&item[space + 1..]) {
                found.push(item[start..space].to_owned());
                start = space + 1;
            }
        }
        found.push(item[start..].to_owned());
    }
    found
}

#[test]
fn every_sentence_on_security_has_a_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let sentences = sentences(&readme());
    assert!(sentences.len() > 50, "{sentences:#?}");
    for sentence in &sentences {
        let listed = PROMISES.iter().filter(|(known, _)| known == sentence).count();
        assert_eq!(listed, 1, "listed {listed} times: {sentence}");
    }
    let mut notices = 0;
    for (promise, shown_by) in PROMISES {
        assert!(sentences.iter().any(|sentence| sentence == promise), "not in the README: {promise}");
        assert!(!shown_by.is_empty(), "shown by nothing: {promise}");
        for test in *shown_by {
            if *test == NOTICE {
                notices += 1;
                continue;
            }
            let (module, name) = test.split_once("::").expect("module::function");
            if module == "vm" {
                assert!(tests.join(format!("vm/{name}.sh")).is_file(), "{promise}: no {test}");
                continue;
            }
            let source = tests.join(format!("it/{module}.rs"));
            let source = fs::read_to_string(&source).unwrap_or_else(|_| panic!("{promise}: no {test}"));
            let mut lines = source.lines().map(str::trim);
            let is_there = loop {
                let Some(line) = lines.next() else { break false };
                let above = line == "#[test]";
                let below = lines.clone().find(|line| !line.starts_with("#[") && !line.starts_with("//"));
                if above && below.is_some_and(|line| line.starts_with(&format!("fn {name}("))) {
                    break true;
                }
            };
            assert!(is_there, "{promise}: no {test}");
        }
    }
    assert!(notices <= 6, "{notices} sentences promise nothing");
}

#[test]
fn sentences_are_separated() {
    let text = "x\n## Security\n\n- **One.** It is\n  two (a. b). berth has\n- three, v1.2, and 4.5.\n\nFive. `six`.\n## Next\nNo.";
    let want = ["**One.**", "It is two (a. b).", "berth has", "three, v1.2, and 4.5.", "Five.", "`six`."];
    assert_eq!(sentences(text), want);
}

#[test]
fn a_container_has_namespaces_of_its_own_and_few_capabilities() {
    let place = shared_box();
    place.sh("true");
    let init = place.init();
    for name in ["user", "mnt", "pid", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of(&init.to_string()), of("self"), "{name}");
    }
    // Capability numbers: linux/capability.h.
    let bounding = place.sh("sed -n 's/^CapBnd:[^0-9a-f]*//p' /proc/self/status");
    let bounding = u64::from_str_radix(bounding.trim(), 16).unwrap();
    for (number, name) in [(16, "SYS_MODULE"), (17, "SYS_RAWIO"), (35, "WAKE_ALARM"), (39, "BPF")] {
        assert_eq!(bounding & (1 << number), 0, "{name}: {bounding:x}");
    }
}

#[test]
fn a_private_network_switches_forwarding_on() {
    let place = Place::ready(shared(), json!({"name": "forwarding", "network": "private"}));
    place.sh("true");
    let forwards = || fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    assert_eq!(forwards(), "1\n");
    place.delete();
    assert_eq!(forwards(), "1\n");
}

/// A folder for mount sources, and a setup whose allowlist permits it.
fn with_mounts() -> (Setup, std::path::PathBuf) {
    let setup = seeded();
    let base = fs::canonicalize(setup.scratch().folder("places")).unwrap();
    let list = json!({"allowedRoots": [{"path": "/", "allowReadWrite": true}]});
    setup.scratch().file("home/.config/openwork/sandbox-mount-allowlist.json", list.to_string());
    (setup, base)
}

#[test]
fn every_pattern_of_the_readme_blocks_a_mount() {
    let (setup, base) = with_mounts();
    let server = setup.start();
    let ask = |source: &Path| {
        let mounts = json!([{"source": source, "target": "/mnt/x", "read_only": true}]);
        let body = json!({"name": "m", "workspace_type": "container", "mounts": mounts});
        server.owner().call("POST", "/api/workspaces", Some(&body))
    };
    let text = sentences(&readme()).into_iter().find(|text| text.contains("OpenWork's `")).unwrap();
    let (_, patterns) = text.split_once("OpenWork's `").unwrap();
    let patterns: Vec<&str> = patterns.split('`').next().unwrap().split(' ').collect();
    assert!(patterns.len() >= 17, "{patterns:?}");
    for pattern in patterns {
        for name in [pattern.to_owned(), format!("{pattern}.local")] {
            let folder = base.join(name);
            fs::create_dir_all(folder.join("below")).unwrap();
            assert_eq!(
                ask(&folder.join("below")).expect(403).value()["code"],
                "mount_not_allowed",
                "{pattern}"
            );
        }
    }
    for source in ["/proc", "/sys", "/dev", "/run", "/etc", "/var", "/home", "/root", "/"] {
        assert_eq!(ask(Path::new(source)).expect(403).value()["code"], "mount_not_allowed", "{source}");
    }
    fs::create_dir_all(base.join("project")).unwrap();
    fs::write(base.join("project/.env"), "").unwrap();
    ask(&base.join("project")).expect(200);
}

#[test]
fn file_systems_below_the_source_of_a_mount_stay_outside() {
    let (setup, base) = with_mounts();
    let inner = base.join("inner");
    fs::create_dir_all(&inner).unwrap();
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "it-inner"]).arg(&inner).status().unwrap();
    assert!(mounted.success());
    fs::write(inner.join("secret"), "s").unwrap();
    let server = setup.start();
    let mounts = json!([{"source": base, "target": "/mnt/x", "read_only": true}]);
    let place = Place::ready(&server, json!({"name": "mounts", "mounts": mounts}));
    assert_eq!(place.sh("ls -A /mnt/x /mnt/x/inner"), "/mnt/x:\ninner\n\n/mnt/x/inner:\n");
    place.delete();
    assert!(std::process::Command::new("umount").arg(&inner).status().unwrap().success());
}

#[test]
fn a_server_without_cgroups_reports_that_it_searches_for_processes() {
    let script = "grep -o '/sys/fs/cgroup[^ ]*' /proc/self/mounts | sort -u | while read -r at; do mount -o remount,bind,ro $at; done; exec \"$@\"";
    let without = ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh"];
    let server = Setup::new().start_through(&without);
    let reply = server.owner().get(200, "/api/doctor");
    let row =
        reply["checks"].as_array().unwrap().iter().find(|row| row["name"] == "cgroups").unwrap().clone();
    assert_eq!(row["status"], "warn", "{reply:#}");
    let found = row["found"].as_str().unwrap();
    assert!(found.contains("can leave some behind"), "{found}");
    server.stdout.line_with(found, secs(10)).expect("a line at the start");
}

#[test]
fn tokens_are_in_no_argument_and_no_environment_of_a_child() {
    let (client, host) = ("child-of-berth-client-71c2", "child-of-berth-host-93e4");
    let setup =
        seeded().arg("--approval=auto").env("OPENWORK_TOKEN", client).env("OPENWORK_HOST_TOKEN", host);
    let server = setup.start();
    let owner = server.with_token(host);
    let created = owner.post(
        200,
        "/api/workspaces",
        json!({"name": "tokens", "workspace_type": "container", "distro": crate::fixture::DISTRO}),
    );
    let path = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    owner.post(200, &format!("{path}/build"), json!({}));
    procs::wait_for("the build", secs(60), || (owner.get(200, &path)["status"] == "ready").then_some(()));
    let run = |path: &str| {
        owner.post(201, &format!("{path}/runs"), json!({"args": ["sleep", "60"], "detach": true}))
    };
    run(&path);
    run("/api/workspaces/00000000-0000-0000-0000-000000000000");
    let mut children = 0;
    for pid in procs::all().into_iter().filter(|pid| *pid != server.pid && *pid != std::process::id()) {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        for text in [read("cmdline"), read("environ")] {
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains(client) && !text.contains(host), "{pid}: {text}");
        }
        children += usize::from(procs::parent(pid) == Some(server.pid));
    }
    assert!(children >= 3, "{children}");
    // A detached run would keep its container beyond the end of the server.
    owner.call("DELETE", &path, None).expect(200);
    server.stop();
}

#[test]
fn an_exposed_address_needs_tokens() {
    let setup = Setup::bare().only_args(&["--host=0.0.0.0", "--port=0"]);
    let ended = setup.run();
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("berth token make"), "{}", ended.stderr);
    let mut make = std::process::Command::new(env!("CARGO_BIN_EXE_berth"));
    make.args(["token", "make"]).env("BERTH_DATA_DIR", setup.data_dir()).env("HOME", setup.scratch().path());
    assert_eq!(run(&mut make, secs(20)).code, Some(0));
    setup.start().stop();
}
