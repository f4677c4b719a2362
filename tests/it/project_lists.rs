//! The lists of skills and commands: the same entries that both tested versions of OpenCode load from the same files,
//! and bounded time and memory whatever files a workspace contains.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};

use crate::opencode_serve::{VERSIONS, program};
use crate::procs::secs;
use crate::project::ProjectServer;
use crate::project_corpus::{corpus, marked, put};
use crate::scratch::Scratch;
use crate::server::run;

fn ask(version: &str, work: &Path, words: [&str; 2]) -> Value {
    let home = Scratch::new();
    let file = home.path().join("answer");
    // Into a file: OpenCode's output to a pipe is truncated at the pipe's capacity when it exits.
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "exec \"$0\" \"$@\" >\"$ANSWER\""])
        .arg(program(version))
        .args(words)
        .current_dir(work);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home.path()).env("ANSWER", &file);
    command.env("OPENCODE_DISABLE_AUTOUPDATE", "1").env("OPENCODE_DISABLE_MODELS_FETCH", "1");
    let reply = run(&mut command, secs(120));
    let text = fs::read_to_string(&file).unwrap();
    serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{version} {words:?}: {error}: {text} {}", reply.stderr))
}

fn rows(list: &Value, old: bool) -> Vec<&Value> {
    let loaded = |row: &&Value| row["error"].is_null() && (!old || row["warning"].is_null());
    list["items"].as_array().unwrap().iter().filter(loaded).collect()
}

fn same(what: &str, ours: BTreeMap<String, Value>, loaded: BTreeMap<String, Value>) {
    let keys: BTreeSet<&String> = ours.keys().chain(loaded.keys()).collect();
    let differing: Vec<String> = keys
        .into_iter()
        .filter(|key| ours.get(*key) != loaded.get(*key))
        .map(|key| format!("{key:?}: berth {:?}, OpenCode {:?}", ours.get(key), loaded.get(key)))
        .collect();
    assert!(differing.is_empty(), "{what}:\n{}", differing.join("\n"));
}

#[test]
fn lists_contain_what_opencode_loads() {
    let project = ProjectServer::open();
    corpus(&project.work);
    fs::create_dir(project.work.join(".git")).unwrap();
    let outside = project.server.scratch().folder("outside");
    put(&outside, "far/SKILL.md", b"---\nname: far\ndescription: x\n---\n");
    put(&outside, "file.md", b"---\nname: far-file\ndescription: x\n---\n");
    symlink(outside.join("far"), project.work.join(".opencode/skills/far")).unwrap();
    fs::create_dir(project.work.join(".opencode/skills/far-file")).unwrap();
    symlink(outside.join("file.md"), project.work.join(".opencode/skills/far-file/SKILL.md")).unwrap();
    symlink(outside.join("file.md"), project.work.join(".opencode/commands/far-command.md")).unwrap();
    let (skills, commands) = (project.get("/skills"), project.get("/commands"));
    let loaded = thread::scope(|scope| {
        VERSIONS
            .map(|version| {
                let work = &project.work;
                scope.spawn(move || {
                    (ask(version, work, ["debug", "skill"]), ask(version, work, ["debug", "config"]))
                })
            })
            .map(|call| call.join().unwrap())
    });
    for (version, (their_skills, config)) in VERSIONS.iter().zip(&loaded) {
        let old = *version == "opencode-old";
        let described = |row: &Value| json!([row["description"].as_str().unwrap_or_default()]);
        let ours = rows(&skills, old)
            .into_iter()
            .map(|row| (row["name"].as_str().unwrap().to_owned(), described(row)));
        // Only 1.1.53 reads UTF-16, and repairs a text with a byte order mark; the list follows the newest version.
        let own = ["utf16".to_owned(), format!("odd-{}", marked()), "far".to_owned(), "far-file".to_owned()];
        for name in &own {
            let loads = their_skills.as_array().unwrap().iter().any(|row| row["name"] == **name);
            assert_eq!(loads, old || name.starts_with("far"), "{version} {name}");
        }
        assert!(
            config["command"]["far-command"].is_object() || config["command"]["far-file"].is_object(),
            "{config}"
        );
        let is_file = |row: &&Value| {
            let name = row["name"].as_str().unwrap_or_default();
            row["location"].as_str().unwrap().starts_with('/') && !own.iter().any(|own| own == name)
        };
        let found = their_skills.as_array().unwrap().iter().filter(is_file);
        let found = found.map(|row| (row["name"].as_str().unwrap().to_owned(), described(row)));
        same(&format!("skills of {version}"), ours.collect(), found.collect());

        let parts = |row: &Value| {
            json!([row["template"], row["description"], row["agent"], row["model"], row["subtask"]])
        };
        let ours = rows(&commands, false)
            .into_iter()
            .filter(|row| !old || row["warning"].as_str().is_none_or(|why| !why.contains("1.1.53")));
        let ours = ours.map(|row| (row["name"].as_str().unwrap().to_owned(), parts(row)));
        let found = config["command"].as_object().unwrap().iter();
        let mut found: BTreeMap<String, Value> =
            found.map(|(name, row)| (name.clone(), parts(row))).collect();
        found.retain(|name, _| !name.starts_with("far-"));
        if old {
            let crlf = |row: &&Value| row["warning"].as_str().is_some_and(|why| why.contains("1.1.53"));
            for row in commands["items"].as_array().unwrap().iter().filter(crlf) {
                found.remove(row["name"].as_str().unwrap()).expect("loaded as a whole");
            }
        }
        same(&format!("commands of {version}"), ours.collect(), found);
    }
    let name = format!("odd-{}", marked());
    let row = skills["items"].as_array().unwrap().iter().find(|row| row["name"] == *name).unwrap();
    let why = row["error"].as_str().unwrap();
    assert!(why.contains("OpenCode 1.1.53 removes the byte order mark"), "{row}");
    for row in skills["items"].as_array().unwrap() {
        let (name, why) = (row["name"].as_str().unwrap(), row["error"].as_str().unwrap_or_default());
        match name {
            "far" | "far-file" => assert!(why.ends_with("OpenCode follows it"), "{row}"),
            "utf16" => assert!(why.contains("UTF-16; OpenCode 1.1.53 reads that"), "{row}"),
            _ => assert!(why.is_empty() || why.starts_with("OpenCode skips it: "), "{row}"),
        }
    }
}

#[test]
fn delete_removes_the_entries_that_the_list_shows() {
    let project = ProjectServer::open();
    corpus(&project.work);
    for (name, removed, stays) in [
        ("nested-one", ".opencode/skills/group/nested-one", ".opencode/skills/group"),
        ("agents-only", ".agents/skills/agents-only", ".agents/skills"),
        ("Box%20Tools", ".opencode/skills/box-tools", ".opencode/skills"),
        ("a%2Fb", ".opencode/skills/slash", ".opencode/skills"),
        ("on-top", ".opencode/skills/SKILL.md", ".opencode/skills/odd-0/SKILL.md"),
    ] {
        let answer = project.client.delete(200, &project.path(&format!("/skills/{name}")));
        assert!(answer["path"].as_str().unwrap().ends_with(removed), "{answer}");
        assert!(!project.work.join(removed).exists() && project.work.join(stays).exists(), "{name}");
        project
            .client
            .call("DELETE", &project.path(&format!("/skills/{name}")), None)
            .expect(if name.contains(['%', 'B']) { 400 } else { 404 });
    }
    // A folder that contains other skills keeps them.
    put(&project.work, ".opencode/skills/outer/SKILL.md", b"---\nname: outer\ndescription: d\n---\n");
    put(&project.work, ".opencode/skills/outer/inner/SKILL.md", b"---\nname: inner\ndescription: d\n---\n");
    project.client.delete(200, &project.path("/skills/outer"));
    assert!(!project.work.join(".opencode/skills/outer/SKILL.md").exists());
    assert!(project.work.join(".opencode/skills/outer/inner/SKILL.md").exists());
    for (name, file) in [
        ("git%2Fcommit", ".opencode/commands/git/commit.md"),
        ("git/deep/er", ".opencode/commands/git/deep/er.md"),
        ("speckit.plan", ".opencode/commands/speckit.plan.md"),
        ("single", ".opencode/command/single.md"),
        ("gr%C3%B6%C3%9Fe", ".opencode/commands/größe.md"),
        ("other%2Fname.x", ".opencode/commands/renamed.md"),
        ("%2Fplain", ".opencode/commands/plain.md"),
        ("odd-6", ".opencode/commands/odd-6.md"),
    ] {
        assert!(project.work.join(file).exists());
        project.client.delete(200, &project.path(&format!("/commands/{name}")));
        assert!(!project.work.join(file).exists(), "{name}");
    }
    assert_eq!(
        project.client.delete(200, &project.path("/commands/plain")),
        json!({"ok": true}),
        "as observed"
    );
}

/// Peak resident memory of the server since [`reset_peak`], in MB.
fn peak(project: &ProjectServer) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", project.server.pid)).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

fn reset_peak(project: &ProjectServer) {
    fs::write(format!("/proc/{}/clear_refs", project.server.pid), "5").unwrap();
}

const LISTS: [&str; 7] = ["/skills", "/commands", "/export", "/plugins", "/mcp", "/inbox", "/artifacts"];

/// Requests all lists, four at a time, and the health beside them; returns the responses.
fn all_lists(project: &ProjectServer, what: &str, most_mb: u64) -> Vec<Value> {
    reset_peak(project);
    let before = peak(project);
    let started = Instant::now();
    let answers = thread::scope(|scope| {
        let calls: Vec<_> = LISTS
            .iter()
            .flat_map(|list| [list, list])
            .map(|list| scope.spawn(move || project.server.collaborator().get(200, &project.path(list))))
            .collect();
        let requested_at = Instant::now();
        project.server.owner().get(200, "/health");
        assert!(
            requested_at.elapsed() < secs(2),
            "{what}: /health took {:?} beside lists",
            requested_at.elapsed()
        );
        calls.into_iter().map(|call| call.join().unwrap()).collect::<Vec<_>>()
    });
    let (took, growth) = (started.elapsed(), peak(project).saturating_sub(before));
    println!("{what}: {took:?}, {growth} MB more at most");
    assert!(took < secs(60), "{what}: {took:?}");
    assert!(growth < most_mb, "{what}: {growth} MB");
    answers
}

#[test]
fn hostile_trees_cost_bounded_time_and_memory() {
    let project = ProjectServer::open();
    let work = &project.work;
    let fresh = || {
        for folder in [".opencode", ".claude", ".agents"] {
            let _ = fs::remove_dir_all(work.join(folder));
        }
        for folder in ["skills", "commands", "plugins", "openwork/inbox", "openwork/outbox"] {
            fs::create_dir_all(work.join(".opencode").join(folder)).unwrap();
        }
    };
    fresh();
    let big = format!("---\nname: s\ndescription: d\n---\n{}", "\u{1}".repeat((1 << 20) - 60));
    fs::write(work.join("nameless"), big.replace("name: s\n", "")).unwrap();
    fs::write(work.join("big"), big).unwrap();
    for n in 0..1990 {
        let folder = work.join(format!(".opencode/skills/s{n}"));
        fs::create_dir(&folder).unwrap();
        fs::hard_link(work.join("big"), folder.join("SKILL.md")).unwrap();
        fs::hard_link(work.join("nameless"), work.join(format!(".opencode/commands/c{n}.md"))).unwrap();
    }
    let answers = all_lists(&project, "1,990 hard links", 128);
    assert_eq!(answers[2]["truncated"], true, "templates were truncated");
    let cut = answers[2]["items"].as_array().unwrap().iter().filter(|row| row["truncated"] == true);
    assert!(cut.count() > 1000);
    assert_eq!(answers[4]["truncated"], true);

    fresh();
    for n in 0..25_000 {
        fs::write(work.join(format!(".opencode/commands/f{n}")), "").unwrap();
    }
    for folder in ["skills", "plugins", "openwork/inbox"] {
        for n in 0..6000 {
            fs::create_dir(work.join(format!(".opencode/{folder}/f{n}.js"))).unwrap();
        }
    }
    assert_eq!(all_lists(&project, "many entries", 64)[2]["truncated"], true);

    fresh();
    for path in [
        "skills/s/SKILL.md",
        "commands/c.md",
        "plugins/p.js",
        "openwork/outbox/f",
        "openwork.json",
        "../opencode.jsonc",
    ] {
        let path = work.join(".opencode").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(path).unwrap().set_len(60 << 30).unwrap();
    }
    reset_peak(&project);
    for list in ["/skills", "/commands", "/plugins", "/artifacts", "/inbox"] {
        project.client.call("GET", &project.path(list), None);
    }
    for list in ["/config", "/mcp", "/export"] {
        let refused = project.client.call("GET", &project.path(list), None);
        assert!((400..500).contains(&refused.status), "{refused}");
    }
    fs::remove_file(work.join("opencode.jsonc")).unwrap();
    fs::remove_file(work.join(".opencode/openwork.json")).unwrap();
    let answers = all_lists(&project, "60 GB", 64);
    assert_eq!(answers[2]["items"][0]["truncated"], true);

    fresh();
    for byte in (1..=255_u8).filter(|byte| *byte != b'/') {
        let name = [b"x".as_slice(), &[byte], b".md"].concat();
        fs::write(work.join(".opencode/commands").join(OsStr::from_bytes(&name)), "x").unwrap();
        let folder = work.join(".opencode/skills").join(OsStr::from_bytes(&name[..2]));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("SKILL.md"), format!("---\nname: n{byte}\ndescription: d\n---\n")).unwrap();
    }
    let answers = all_lists(&project, "all bytes", 64);
    assert_eq!(answers[2]["items"].as_array().unwrap().len(), 126, "names that are text");
    assert_eq!(answers[0]["items"].as_array().unwrap().len(), 126);

    fresh();
    let mut folder = work.join(".opencode/skills");
    let mut deep = work.join(".opencode/commands");
    for _ in 0..300 {
        folder.push("d");
        deep.push("d");
    }
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(&deep).unwrap();
    for (n, path) in
        ["skills/l", "commands/l", "skills/d/l", "commands/d/d/l", "plugins/l.js"].iter().enumerate()
    {
        symlink([".", "..", "../..", "../../.."][n % 4], work.join(".opencode").join(path)).unwrap();
    }
    for name in ["fifo", "zero"] {
        let (kind, device) =
            if name == "fifo" { (FileType::Fifo, 0) } else { (FileType::CharacterDevice, makedev(1, 5)) };
        for path in
            [format!("skills/{name}/SKILL.md"), format!("commands/{name}.md"), format!("plugins/{name}.js")]
        {
            let path = work.join(".opencode").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            mknodat(CWD, &path, kind, Mode::from_raw_mode(0o666), device).unwrap();
        }
    }
    symlink("/dev/zero", work.join(".opencode/commands/out.md")).unwrap();
    all_lists(&project, "deep, loops and devices", 64);

    fresh();
    let matter = |body: String| format!("---\nname: x\n{body}\n---\nbody\n");
    for (name, body) in [
        ("repeated", "k: 1\n".repeat(30_000)),
        ("entries", (0..30_000).map(|n| format!("k{n}: {n}\n")).collect()),
        ("deep", format!("a: {}", "[".repeat(200_000))),
        ("dashes", "- ".repeat(200_000)),
        ("anchors", (0..20_000).map(|n| format!("k{n}: &a{n} [{n}]\n")).collect()),
        ("aliases", format!("a: &a {}\nb: [{}]", "x".repeat(100_000), "*a,".repeat(50_000))),
        ("colons", "a: b: c\n".repeat(60_000)),
        ("quotes", format!("a: \"{}", "\\u0041".repeat(80_000))),
    ] {
        put(work, &format!(".opencode/skills/{name}/SKILL.md"), matter(body.clone()).as_bytes());
        put(work, &format!(".opencode/commands/{name}.md"), matter(body).as_bytes());
    }
    reset_peak(&project);
    let (before, started) = (peak(&project), Instant::now());
    thread::scope(|scope| {
        for list in ["/skills", "/commands", "/export"] {
            let project = &project;
            scope.spawn(move || project.get(list));
        }
    });
    assert!(
        started.elapsed() < secs(60) && peak(&project) - before < 160,
        "{:?}, {} MB",
        started.elapsed(),
        peak(&project)
    );
}

/// Every file below a folder: its mode and bytes, or its type.
fn tree(work: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![work.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(work).unwrap().to_string_lossy().into_owned();
            let metadata = fs::symlink_metadata(&path).unwrap();
            if name == ".opencode/openwork" {
                continue;
            }
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() {
                all.insert(name, (metadata.permissions().mode() & 0o777, fs::read(&path).unwrap()));
            } else {
                all.insert(name, (0, b"special".to_vec()));
            }
        }
    }
    all
}

fn write_project(work: &Path) {
    corpus(work);
    put(work, ".opencode/skills/odd-0/scripts/x.sh", b"#!/bin/sh\necho hi\n");
    fs::set_permissions(work.join(".opencode/skills/odd-0/scripts/x.sh"), fs::Permissions::from_mode(0o755))
        .unwrap();
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(3000).collect();
    put(work, ".opencode/skills/odd-0/data/all.bin", &bytes);
    put(work, ".opencode/skills/odd-0/.DS_Store", b"\0\0");
    put(work, ".opencode/skills/outer/SKILL.md", b"---\nname: outer\ndescription: d\n---\n");
    put(work, ".opencode/skills/outer/note.txt", b"x");
    put(work, ".opencode/skills/outer/inner/SKILL.md", b"---\nname: inner\ndescription: d\n---\n");
    put(work, ".opencode/skills/outer/inner/more.txt", b"y");
    fs::set_permissions(work.join(".opencode/commands/plain.md"), fs::Permissions::from_mode(0o600)).unwrap();
    // Files that an export cannot contain.
    put(work, ".opencode/skills/odd-0/large.bin", &vec![7; (1 << 20) + 1]);
    symlink("data", work.join(".opencode/skills/odd-0/link")).unwrap();
    put(work, ".opencode/commands/README.txt", b"not a command");
}

#[test]
fn export_and_import_leave_the_tree_equal() {
    let project = ProjectServer::open();
    write_project(&project.work);
    let before = tree(&project.work);
    let export = project.get("/export");
    let omitted: Vec<&str> =
        export["omitted"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    for path in [
        ".opencode/skills/odd-0/large.bin",
        ".opencode/skills/odd-0/link",
        ".opencode/skills/linked/SKILL.md",
    ] {
        assert!(omitted.contains(&path), "{path}: {omitted:?}");
    }
    let document = |mode: &str| json!({"skills": export["skills"], "commands": export["commands"], "mode": {"skills": mode, "commands": mode}});
    for mode in ["replace", "merge", "replace"] {
        project.post("/import", document(mode));
        assert_eq!(tree(&project.work), before, "{mode} into itself");
    }
    // Another workspace gets everything except the named entries.
    let other = ProjectServer::open();
    put(&other.work, ".opencode/skills/extra/SKILL.md", b"---\nname: extra\ndescription: d\n---\n");
    put(&other.work, ".opencode/skills/extra/data.txt", b"x");
    put(&other.work, ".opencode/skills/odd-0/stale.txt", b"x");
    put(&other.work, ".opencode/skills/kept/SKILL.md", b"no skill");
    put(&other.work, ".opencode/commands/sub/extra.md", b"x");
    put(&other.work, ".opencode/commands/kept.txt", b"x");
    other.post("/import", document("merge"));
    let merged = tree(&other.work);
    assert!(
        merged.contains_key(".opencode/skills/extra/data.txt")
            && merged.contains_key(".opencode/skills/odd-0/stale.txt")
    );
    other.post("/import", document("replace"));
    let mut want = before.clone();
    want.retain(|path, _| {
        let named = omitted.iter().any(|omitted| path == omitted || path.starts_with(&format!("{omitted}/")));
        !named && !path.starts_with("shared/")
    });
    want.insert(".opencode/skills/kept/SKILL.md".into(), (0o644, b"no skill".to_vec()));
    want.insert(".opencode/commands/kept.txt".into(), (0o644, b"x".to_vec()));
    let got = tree(&other.work);
    let paths = |tree: &BTreeMap<String, (u32, Vec<u8>)>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&got), paths(&want));
    assert_eq!(got, want);
    assert!(!other.work.join(".opencode/skills/extra").exists());
    assert!(!other.work.join(".opencode/commands/sub/extra.md").exists());
}

#[test]
fn a_document_without_paths_removes_only_exportable_files() {
    let project = ProjectServer::open();
    write_project(&project.work);
    put(&project.work, ".opencode/skills/simple/SKILL.md", b"---\nname: simple\ndescription: d\n---\n");
    let before = tree(&project.work);
    project.post(
        "/import",
        json!({
            "skills": [{"name": "odd-0", "content": "new", "description": "d"}], "commands": [{"name": "plain", "template": "t"}],
            "mode": {"skills": "replace", "commands": "replace"},
        }),
    );
    let after = tree(&project.work);
    for path in before.keys() {
        let parts = path.split('/').count();
        let flat = path.starts_with(".opencode/skills/odd-") && parts == 4
            || path.starts_with(".opencode/commands/") && parts == 3;
        assert!(after.contains_key(path) || flat || path.contains("/simple/"), "{path} was removed");
    }
    assert!(
        !after.contains_key(".opencode/skills/simple/SKILL.md")
            && !after.contains_key(".opencode/commands/full.md")
    );
    assert!(after.contains_key(".opencode/skills/odd-0/scripts/x.sh"));
    assert!(project.read(".opencode/skills/odd-0/SKILL.md").ends_with("new\n"));
}

#[test]
fn bad_files_in_a_document_are_refused() {
    let project = ProjectServer::open();
    let skill = |path: &str, files: Value| json!({"skills": [{"name": "s", "content": "x", "description": "d", "path": path, "files": files}]});
    for body in [
        skill("../out", json!([])),
        skill("/etc", json!([])),
        skill(".opencode/skillsx/a", json!([])),
        skill(".opencode/skills/../../x", json!([])),
        skill(".opencode/skills/a", json!([{"path": "../b", "content": "x"}])),
        skill(".opencode/skills/a", json!([{"path": "/b", "content": "x"}])),
        skill(".opencode/skills/a", json!([{"path": "b\u{0}", "content": "x"}])),
        skill(".opencode/skills/a", json!([{"path": "b"}])),
        skill(".opencode/skills/a", json!([{"path": "b", "base64": "*"}])),
        skill(".opencode/skills/a", json!([{"path": "b", "content": "x", "base64": "eA=="}])),
        skill(".opencode/skills/a", json!([{"path": "b", "content": "x", "mode": "4755"}])),
        skill(".opencode/skills/a", json!([{"path": "b", "content": "x", "mode": "rwx"}])),
        json!({"commands": [{"name": "c", "template": "t", "file": {"path": ".opencode/commands/c.sh", "content": "x"}}]}),
        json!({"commands": [{"name": "c", "template": "t", "file": {"path": "c.md", "content": "x"}}]}),
    ] {
        project.refused(400, "invalid_payload", "POST", "/import", body);
    }
    assert_eq!(fs::read_dir(&project.work).unwrap().count(), 0, "nothing is written");
    // A link is neither followed nor replaced.
    fs::create_dir_all(project.work.join(".opencode/skills/a")).unwrap();
    symlink("/etc/hostname", project.work.join(".opencode/skills/a/SKILL.md")).unwrap();
    project.refused(
        400,
        "invalid_path",
        "POST",
        "/import",
        skill(".opencode/skills/a", json!([{"path": "b", "content": "x"}])),
    );
    assert!(!project.work.join(".opencode/skills/a/b").exists());
}
