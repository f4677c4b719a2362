//! Folders of the host in containers: only those that the mount allowlist permits, only with its access mode, and
//! whatever happens to the path during the start. Cases: `assets/docs/security.md#mounts`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

use crate::fixture::{Place, seeded};
use crate::procs;
use crate::server::Setup;

/// A server with an allowlist: `shared` for reading and writing, `public` for reading. Returns the parent folder of
/// both.
fn allowed() -> (Setup, PathBuf) {
    let setup = seeded();
    let scratch = setup.scratch();
    let base = fs::canonicalize(scratch.folder("places")).unwrap();
    for folder in ["shared/work", "public", "secret"] {
        fs::create_dir_all(base.join(folder)).unwrap();
    }
    fs::write(base.join("shared/work/text"), "right\n").unwrap();
    fs::write(base.join("public/text"), "public\n").unwrap();
    fs::write(base.join("secret/text"), "SECRET\n").unwrap();
    let list = json!({"allowedRoots": [
        {"path": base.join("shared"), "allowReadWrite": true, "description": "x"},
        {"path": base.join("public")}
    ]});
    let file = scratch.file("home/.config/openwork/sandbox-mount-allowlist.json", list.to_string());
    assert!(file.exists());
    (setup, base)
}

fn mount(source: &Path, target: &str, read_only: bool) -> Value {
    json!({"source": source, "target": target, "read_only": read_only})
}

#[test]
fn files_of_a_mount_are_shared_between_host_and_container() {
    let (setup, base) = allowed();
    let work = base.join("shared/work");
    let special = base.join("shared/a:b\\c d");
    fs::create_dir(&special).unwrap();
    fs::write(special.join("text"), "odd\n").unwrap();
    for path in [&work, &work.join("text")] {
        chown(path, Some(4321), Some(4321)).unwrap();
    }
    let server = setup.start();
    let mounts = json!([
        mount(&work, "/mnt/work", false),
        mount(&base.join("public"), "/srv/public", true),
        mount(&special, "/mnt/x:y\\z", true),
        {"source": base.join("public/text"), "target": "/etc/one-file"}
    ]);
    let place = Place::ready(&server, json!({"name": "mounted", "mounts": mounts}));
    assert_eq!(
        place.sh("cat /mnt/work/text /srv/public/text '/mnt/x:y\\z/text' /etc/one-file"),
        "right\npublic\nodd\npublic\n"
    );

    // Root inside maps to the owner of the source outside, and to no other user.
    assert_eq!(place.sh("stat -c %u:%g /mnt/work /mnt/work/text | sort -u"), "0:0\n");
    place.sh("echo made > /mnt/work/made; chmod 4755 /mnt/work/made; echo more >> /mnt/work/text");
    let created = fs::metadata(work.join("made")).unwrap();
    assert_eq!((created.uid(), created.gid()), (4321, 4321));
    assert_eq!(fs::read_to_string(work.join("text")).unwrap(), "right\nmore\n");
    fs::write(work.join("later"), "later\n").unwrap();
    assert_eq!(place.sh("cat /mnt/work/later"), "later\n");

    for path in ["/srv/public/new", "/srv/public/text", "/etc/one-file", "/mnt/x:y\\z/new"] {
        let reply = place.exec(json!({"args": ["bash", "-c", "echo x >> \"$0\"", path]}));
        assert!(reply["stderr"].as_str().unwrap().contains("Read-only file system"), "{path}: {reply}");
        let reply =
            place.exec(json!({"command": format!("mount -o remount,rw '{path}' ; echo x >> '{path}'")}));
        assert_ne!(reply["exit_code"], 0, "{path}: {reply}");
    }
    let flags = place.sh("grep -E ' /(mnt/work|srv/public) ' /proc/self/mountinfo");
    for line in flags.lines() {
        assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    }
    assert_eq!(flags.lines().count(), 2, "{flags}");

    let debug = place.client.get(200, &place.path("/debug"));
    let view = debug["machine"]["mounts"].as_array().unwrap();
    assert_eq!(view.len(), 4);
    assert_eq!(view[0], json!({"source": work, "target": "/mnt/work", "read_only": false, "mapped": true}));
    assert_eq!(place.show()["mounts"].as_array().unwrap().len(), 4);
    assert!(procs::mounts_below(&server.data).is_empty(), "a mount shows on the host");

    // After a crash the next server finds the mounts unchanged, and the host has none.
    let id = place.id.clone();
    std::mem::forget(place);
    server.crash();
    let server = setup.start();
    let place = Place::of(&server, &server.owner().get(200, &format!("/api/workspaces/{id}")));
    let debug = place.client.get(200, &place.path("/debug"));
    assert_eq!(
        (&debug["machine"]["adopted"], &debug["machine"]["mounts"][0]["mapped"]),
        (&json!(true), &json!(true))
    );
    assert_eq!(place.sh("cat /mnt/work/later"), "later\n");
    place.client.put(200, &place.path(""), json!({"mounts": []}));
    place.client.post(200, &place.path("/stop"), json!({}));
    assert_ne!(place.exec(json!({"command": "ls /mnt/work/later"}))["exit_code"], 0);
    place.delete();
    assert!(work.join("later").exists(), "the deletion of a workspace removed files of a mount");
}

#[test]
fn forbidden_mounts_are_refused_with_a_reason() {
    let (setup, base) = allowed();
    fs::create_dir_all(base.join("shared/.ssh")).unwrap();
    fs::create_dir_all(base.join("shared-evil")).unwrap();
    fs::create_dir_all(base.join("shared/person/.gnupg")).unwrap();
    fs::create_dir_all(base.join("shared/.environments")).unwrap();
    symlink(base.join("secret"), base.join("shared/link")).unwrap();
    let server = setup.start();
    let owner = server.owner();
    let body = |mounts: Value| json!({"name": "m", "workspace_type": "container", "mounts": mounts});
    let created = owner.post(200, "/api/workspaces", body(json!([])));
    let url = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
    let refused = |source: PathBuf, read_only: bool, why: &str| {
        let mounts = json!([mount(&source, "/mnt/x", read_only)]);
        for (method, path, body) in [
            ("POST", "/api/workspaces", body(mounts.clone())),
            ("PUT", url.as_str(), json!({"mounts": mounts})),
        ] {
            let reply = owner.refused(403, "mount_not_allowed", method, path, Some(body));
            assert!(reply["message"].as_str().unwrap().contains(why), "{}: {reply}", source.display());
        }
    };
    refused(base.join("secret"), true, "none of the allowed roots");
    refused(base.join("shared-evil"), true, "none of the allowed roots");
    refused(base.join("shared/link"), true, "none of the allowed roots");
    refused(base.join("public"), false, "reading only");
    refused(base.join("shared/.ssh"), true, ".ssh");
    refused(base.join("shared"), true, ".ssh");
    refused(base.join("shared/person"), true, ".gnupg");
    refused(base.join("shared/nothing"), true, "does not exist");
    refused(server.data.clone(), true, "data folder");
    refused("/proc/self/root".into(), true, "/proc");
    refused("/".into(), true, "data folder");
    assert_eq!(owner.get(200, &url)["mounts"], json!([]));
    owner.put(200, &url, json!({"mounts": [mount(&base.join("shared/.environments"), "/mnt/x", true)]}));
    for (source, target) in
        [("relative", "/x"), ("/a/../b", "/x"), ("/a", "x"), ("/a", "/proc/1"), ("/a", "/x/../..")]
    {
        let mounts = json!([{"source": source, "target": target}]);
        owner.refused(400, "invalid_payload", "PUT", &url, Some(json!({"mounts": mounts})));
    }
    owner.refused(400, "invalid_payload", "PUT", &url, Some(json!({"mounts": [{"source": "/a"}]})));
    let host =
        json!({"name": "h", "workspace_type": "host", "mounts": [mount(&base.join("public"), "/x", true)]});
    owner.refused(400, "not_a_container", "POST", "/api/workspaces", Some(host));
    // A template may request a mount that this host permits.
    owner.call(
        "PUT",
        "/api/library/workspace-template/mt",
        Some(&json!({"mounts": [mount(&base.join("secret"), "/x", true)]})),
    );
    let reply = owner.refused(
        403,
        "mount_not_allowed",
        "POST",
        "/api/workspaces",
        Some(json!({"name": "t", "template": "mt"})),
    );
    assert_eq!(reply["details"]["source"], json!(base.join("secret")));
    server.stop();

    // Without an allowlist file: the error shows an example, as OpenWork does.
    let other = setup
        .clone()
        .env("OPENWRK_SANDBOX_MOUNT_ALLOWLIST", base.join("none.json").to_string_lossy())
        .start();
    let owner = other.owner();
    let mounts = json!([mount(&base.join("public"), "/x", true)]);
    let reply = owner.refused(403, "mount_not_allowed", "POST", "/api/workspaces", Some(body(mounts)));
    assert!(reply["details"]["example"]["allowedRoots"].is_array(), "{reply}");
    assert!(reply["message"].as_str().unwrap().contains("none.json does not exist"), "{reply}");
}

/// ramfs is one of the few file systems without support for idmapped mounts.
#[test]
fn file_systems_without_owner_mapping_are_reported() {
    let (setup, base) = allowed();
    let ram = base.join("public/ram");
    fs::create_dir(&ram).unwrap();
    let done =
        Command::new("mount").args(["-t", "ramfs", "-o", "mode=755", "it-ram"]).arg(&ram).status().unwrap();
    assert!(done.success());
    fs::write(ram.join("text"), "from ram\n").unwrap();
    let server = setup.start();
    let mounts = json!([mount(&ram, "/mnt/ram", true), mount(&base.join("public"), "/mnt/public", true)]);
    let place = Place::ready(&server, json!({"name": "ram", "mounts": mounts}));
    assert_eq!(
        place.sh("cat /mnt/ram/text; stat -c %U /mnt/ram/text; ls /mnt/public/ram"),
        "from ram\nnobody\n"
    );
    let debug = place.client.get(200, &place.path("/debug"));
    assert_eq!(debug["machine"]["mounts"][0]["mapped"], false, "{debug}");
    let warnings = debug["warnings"].to_string();
    assert!(warnings.contains("/mnt/ram belong to the user `nobody`"), "{warnings}");
    drop(place);
    server.stop();
    assert!(Command::new("umount").arg(&ram).status().unwrap().success());
}

#[test]
fn every_start_reads_the_allowlist_again() {
    let (setup, base) = allowed();
    let server = setup.start();
    let mounts = json!([mount(&base.join("shared/work"), "/mnt/work", false)]);
    let place = Place::ready(&server, json!({"name": "asked", "mounts": mounts}));
    assert_eq!(place.sh("cat /mnt/work/text"), "right\n");
    let file = setup.scratch().path().join("home/.config/openwork/sandbox-mount-allowlist.json");
    let before = fs::read(&file).unwrap();
    let without = json!({"allowedRoots": [{"path": base.join("shared")}]});
    let refused_to_run = |why: &str| {
        let body = Some(json!({"command": "true"}));
        let reply = place.client.refused(403, "mount_not_allowed", "POST", &place.path("/exec"), body);
        assert!(reply["message"].as_str().unwrap().contains(why), "{reply}");
    };
    fs::write(&file, without.to_string()).unwrap();
    // Running containers keep their mounts.
    assert_eq!(place.sh("cat /mnt/work/text"), "right\n");
    place.client.post(200, &place.path("/stop"), json!({}));
    refused_to_run("reading only");
    fs::write(&file, before).unwrap();
    assert_eq!(place.sh("cat /mnt/work/text"), "right\n");
    place.client.post(200, &place.path("/stop"), json!({}));
    fs::rename(base.join("shared/work"), base.join("shared/away")).unwrap();
    refused_to_run("does not exist");
}

#[test]
fn swapping_the_source_during_a_start_mounts_no_other_folder() {
    const STARTS: u32 = 25;
    let (setup, base) = allowed();
    let source = base.join("shared/work");
    let link = base.join("shared/trap");
    symlink(base.join("secret"), &link).unwrap();
    fs::set_permissions(base.join("secret"), fs::Permissions::from_mode(0o777)).unwrap();
    let server = setup.start();
    let place =
        Place::ready(&server, json!({"name": "raced", "mounts": [mount(&source, "/mnt/work", false)]}));
    let done = AtomicBool::new(false);
    let (mut right, mut refused) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, &source, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                // Some pauses are longer than a start needs to open the source, some are shorter.
                if fs::metadata("/proc/uptime").is_ok_and(|meta| meta.ctime_nsec() % 3 == 0) {
                    thread::yield_now();
                }
            }
        });
        for _ in 0..STARTS {
            place.client.post(200, &place.path("/stop"), json!({}));
            let body = json!({"command": "cat /mnt/work/text; echo trace > /mnt/work/trace"});
            let reply = place.client.call("POST", &place.path("/exec"), Some(&body));
            let text = reply.text();
            assert!(!text.contains("SECRET"), "{text}");
            match reply.status {
                200 => {
                    assert!(text.contains("right"), "{text}");
                    right += 1;
                }
                403 => refused += 1,
                other => panic!("{other}: {text}"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(!base.join("secret/trace").exists());
    assert!(right > 0 && refused > 0, "no race happened: {right} mounted, {refused} refused");
}
