//! Skills as folders: scripts and data are copied to workspaces with their permissions, and a deleted skill is removed
//! completely.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::library_import::import;
use crate::procs::{secs, wait_for};
use crate::server::{Server, run};

const PLACES: [&str; 2] = [".opencode/skill", ".claude/skills"];

#[track_caller]
fn write(path: &Path, bytes: impl AsRef<[u8]>, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn workspace(server: &Server, fields: Value) -> (PathBuf, String) {
    let mut body = json!({"name": "w"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let created = server.owner().post(200, "/api/workspaces", body);
    let folder = PathBuf::from(created["path"].as_str().unwrap());
    (folder, format!("/api/workspaces/{}", created["id"].as_str().unwrap()))
}

fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.mode() & 0o111 != 0)
}

/// A skill with a script, binary data, a hidden file, and files of a desktop.
fn fill(skill: &Path) {
    write(&skill.join("SKILL.md"), "---\nname: kit\ndescription: d\n---\nrun scripts/x.sh\n", 0o644);
    write(&skill.join("scripts/x.sh"), "#!/bin/sh\necho ran\n", 0o755);
    write(&skill.join("data/font.ttf"), (0..=255u8).cycle().take(3 << 20).collect::<Vec<u8>>(), 0o644);
    write(&skill.join("app/[...slug]/v1..v2.tsx"), "x", 0o644);
    write(&skill.join(".env.example"), "A=b\n", 0o644);
    write(&skill.join(".DS_Store"), "x", 0o644);
    write(&skill.join("scripts/.x.sh.swp"), "x", 0o644);
}

#[test]
fn a_skill_is_copied_to_workspaces_completely() {
    let server = Server::start();
    let library = server.data.join("library/skill/kit");
    fill(&library);
    let (folder, url) = workspace(&server, json!({"skills": ["kit"]}));
    let script = |place: &str| folder.join(place).join("kit/scripts/x.sh");
    for place in PLACES {
        let ran = run(&mut Command::new(script(place)), secs(20));
        assert_eq!(ran.stdout, "ran\n", "{place}: {}", ran.stderr);
        for file in ["data/font.ttf", "app/[...slug]/v1..v2.tsx", ".env.example"] {
            let copied = fs::read(folder.join(place).join("kit").join(file)).unwrap_or_default();
            assert!(copied == fs::read(library.join(file)).unwrap(), "{place}: {file}");
        }
        assert!(!executable(&folder.join(place).join("kit/data/font.ttf")));
        for litter in [".DS_Store", "scripts/.x.sh.swp"] {
            assert!(!folder.join(place).join("kit").join(litter).exists(), "{place}: {litter}");
        }
    }
    // Changes of permissions are copied both ways; unchanged files are not written again.
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let before = inode(&folder.join(".claude/skills/kit/data/font.ttf"));
    fs::set_permissions(library.join("scripts/x.sh"), fs::Permissions::from_mode(0o644)).unwrap();
    wait_for("the permission to be removed", secs(30), || (!executable(&script(PLACES[0]))).then_some(()));
    fs::set_permissions(script(PLACES[1]), fs::Permissions::from_mode(0o755)).unwrap();
    server.owner().post(200, &format!("{url}/sync"), json!({}));
    assert!(!executable(&script(PLACES[1])));
    assert_eq!(inode(&folder.join(".claude/skills/kit/data/font.ttf")), before);
    // A hidden file added by hand is copied like any other.
    write(&library.join(".config/a.json"), "{}", 0o644);
    let hidden = folder.join(".opencode/skill/kit/.config/a.json");
    wait_for("a hidden file", secs(30), || hidden.exists().then_some(()));
}

#[test]
fn only_unmodified_files_of_berth_are_replaced_or_removed() {
    let server = Server::start();
    let library = server.data.join("library/skill/kit");
    fill(&library);
    let folder = server.work.join("mine");
    let place = folder.join(".claude/skills/kit");
    write(&place.join("data/font.ttf"), vec![1; 5 << 20], 0o600);
    write(&place.join("app/[...slug]/v1..v2.tsx"), "mine", 0o755);
    symlink("nowhere", place.join(".env.example")).unwrap();
    fs::create_dir_all(place.join("notes")).unwrap();
    write(&library.join("notes"), "n", 0o644);
    let (_, url) = workspace(&server, json!({"workspace_type": "host", "path": folder, "skills": ["kit"]}));
    assert_eq!(fs::metadata(place.join("data/font.ttf")).unwrap().len(), 5 << 20);
    assert_eq!(fs::read_to_string(place.join("app/[...slug]/v1..v2.tsx")).unwrap(), "mine");
    assert!(place.join("notes").is_dir());
    assert!(executable(&place.join("scripts/x.sh")) && place.join("SKILL.md").exists());
    // A modified script, and one whose path another file has taken.
    let other = folder.join(".opencode/skill/kit");
    write(&other.join("scripts/x.sh"), "mine", 0o755);
    fs::remove_file(other.join("data/font.ttf")).unwrap();
    fs::create_dir(other.join("data/font.ttf")).unwrap();
    server.owner().put(200, &url, json!({"skills": []}));
    server.owner().post(200, &format!("{url}/sync"), json!({}));
    assert_eq!(fs::read_to_string(other.join("scripts/x.sh")).unwrap(), "mine");
    assert!(other.join("data/font.ttf").is_dir() && place.join("data/font.ttf").exists());
    for removed in ["SKILL.md", ".env.example", "notes"] {
        assert!(!other.join(removed).exists(), "{removed}");
    }
    assert!(!place.join("scripts").exists() && !place.join("SKILL.md").exists());
}

#[test]
fn a_skill_beyond_its_limits_is_copied_in_part() {
    let server = Server::start();
    let library = server.data.join("library/skill/kit");
    fill(&library);
    write(&library.join("z-large.bin"), "", 0o644);
    fs::File::options().write(true).open(library.join("z-large.bin")).unwrap().set_len(40 << 20).unwrap();
    run(Command::new("mkfifo").arg(library.join("pipe")), secs(20));
    let (folder, _) = workspace(&server, json!({"skills": ["kit"]}));
    let place = folder.join(".opencode/skill/kit");
    assert!(executable(&place.join("scripts/x.sh")));
    assert!(!place.join("z-large.bin").exists() && !place.join("pipe").exists());
}

#[test]
fn a_deleted_library_entry_is_removed_completely() {
    let server = Server::start();
    let library = server.data.join("library");
    let owner = server.owner();
    let skills = || owner.get(200, "/api/library/skill").as_array().unwrap().len();
    for what in ["hidden", "read-only", "empty", "links", "foreign", "names", "deep"] {
        let skill = library.join("skill/boxy");
        fill(&skill);
        match what {
            "read-only" => {
                fs::set_permissions(skill.join("scripts"), fs::Permissions::from_mode(0o500)).unwrap();
                fs::set_permissions(&skill, fs::Permissions::from_mode(0o555)).unwrap();
            }
            "empty" => {
                fs::remove_dir_all(&skill).unwrap();
                fs::create_dir_all(skill.join(".git/objects")).unwrap();
            }
            "links" => {
                write(&library.join("kept"), "kept", 0o644);
                symlink("../../kept", skill.join("link")).unwrap();
                symlink("/etc", skill.join("etc")).unwrap();
                symlink("nowhere", skill.join("dangling")).unwrap();
            }
            "foreign" => std::os::unix::fs::chown(skill.join("scripts"), Some(12345), Some(12345)).unwrap(),
            "names" => write(&skill.join("a\\b\nc"), "x", 0o000),
            "deep" => write(&skill.join("a/b/c/d/e/f/g/h/i/j/k"), "x", 0o644),
            _ => {}
        }
        owner.call("DELETE", "/api/library/skill/boxy", None).expect(200);
        assert!(fs::symlink_metadata(&skill).is_err(), "{what}");
        assert_eq!(skills(), 0, "{what}");
    }
    assert_eq!(fs::read_to_string(library.join("kept")).unwrap(), "kept");
    // For a skill that is a link, only the link is removed.
    fill(&library.join("elsewhere"));
    symlink("../elsewhere", library.join("skill/boxy")).unwrap();
    owner.call("DELETE", "/api/library/skill/boxy", None).expect(200);
    assert!(fs::symlink_metadata(library.join("skill/boxy")).is_err());
    assert!(library.join("elsewhere/SKILL.md").exists());
    // The same for entries of other kinds, and for missing ones.
    write(&library.join("init-script/base/SCRIPT.sh"), "#!/bin/sh\n", 0o644);
    write(&library.join("init-script/base/.DS_Store"), "x", 0o644);
    write(&library.join("init-script/base/lib/more.sh"), "x", 0o644);
    fs::create_dir_all(library.join("command/odd.md/x")).unwrap();
    fs::create_dir_all(library.join("workspace-template/odd.json/x")).unwrap();
    for entry in ["init-script/base", "command/odd", "workspace-template/odd", "skill/none", "tool/none"] {
        owner.call("DELETE", &format!("/api/library/{entry}"), None).expect(200);
    }
    for removed in ["init-script/base", "command/odd.md", "workspace-template/odd.json"] {
        assert!(!library.join(removed).exists(), "{removed}");
    }
    assert!(fs::read_dir(library.join("skill")).unwrap().next().is_none(), "no temporary files remain");
}

#[test]
fn archives_of_unzip_and_jar_are_read_alike() {
    let server = Server::start();
    let source = server.data.join("source");
    fill(&source.join("kit"));
    let here = |name: &str| server.data.join(name);
    let packers: [(&str, &[&str]); 3] = [
        ("zip", &["-q", "-r", "-X", "../zip.zip", "kit"]),
        ("jar", &["cMf", "../jar.zip", "kit"]),
        ("python3", &["-m", "zipfile", "-c", "../python3.zip", "kit"]),
    ];
    for (packer, args) in packers {
        let archive = here(&format!("{packer}.zip"));
        // Not every test machine has all of these tools.
        let Ok(packed) = Command::new(packer).args(args).current_dir(&source).output() else { continue };
        assert!(packed.status.success(), "{packer}: {packed:?}");
        let (ours, theirs) = (here(&format!("library/skill/{packer}")), here(&format!("{packer}.d")));
        import(&server.owner(), packer, "kit.zip", &fs::read(&archive).unwrap()).expect(200);
        fs::create_dir(&theirs).unwrap();
        let unzip = Command::new("unzip")
            .env("LC_ALL", "C.UTF-8")
            .args(["-q", "-d"])
            .arg(&theirs)
            .arg(&archive)
            .output();
        if unzip.is_err() {
            continue;
        }
        let differs = run(
            Command::new("diff")
                .args(["-r", "-x", ".DS_Store", "-x", ".x.sh.swp"])
                .arg(theirs.join("kit"))
                .arg(&ours),
            secs(60),
        );
        assert_eq!(differs.code, Some(0), "{packer}: {}", differs.stdout);
        let script = |top: &Path| executable(&top.join("scripts/x.sh"));
        assert_eq!(script(&ours), script(&theirs.join("kit")), "{packer}");
    }
}
