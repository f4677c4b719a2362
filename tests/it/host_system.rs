//! `distro: "host"`: a container made from this machine's own system without a download; and an attacker with root in
//! it who tries to read private files of the host or to change anything.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::fixture::Place;
use crate::procs::{self, unique_secs};
use crate::server::{Server, Setup};

/// A server without an image and without a mirror.
fn setup() -> Setup {
    Setup::new().args(&["--mirror", "debian-bookworm=http://127.0.0.1:1/", "--approval=auto"])
}

fn own<'a>(server: &'a Server, extra: Value) -> Place<'a> {
    let mut body = json!({"name": "own", "distro": "host"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    Place::ready(server, body)
}

#[track_caller]
fn on_host(program: &str, args: &[&str]) -> String {
    let ended = Command::new(program).args(args).output().unwrap();
    assert!(ended.status.success() || program == "setpriv", "{program} {args:?}: {ended:?}");
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

#[test]
fn a_host_container_is_made_without_a_download_and_works_like_others() {
    for way in ["overlay", "copy"] {
        let server = setup().arg(format!("--root-backend={way}")).start();
        let place = own(&server, json!({"init_script": "#!/usr/bin/env bash\necho made > /root/made\n"}));
        let debug = place.client.get(200, &place.path("/debug"));
        assert_eq!(
            (&debug["root_kind"], &debug["has_bash"], &debug["distro"]),
            (&json!(way), &json!(true), &json!("host"))
        );
        assert!(debug["size_bytes"].as_u64().is_some_and(|size| size < 70 << 20), "{debug}");
        assert_eq!(debug["machine"]["mounts"], json!([]), "{debug}");
        assert_eq!(debug["warnings"], json!([]), "{debug}");
        let id = |text: &str| text.lines().find(|line| line.starts_with("ID=")).unwrap().to_owned();
        assert_eq!(id(&place.sh("cat /etc/os-release")), id(&fs::read_to_string("/etc/os-release").unwrap()));
        assert_eq!(
            place.sh("cat /root/made; awk 'BEGIN {print 6 * 7}'; python3 -c 'print(1 + 1)'; id -un"),
            "made\n42\n2\nroot\n"
        );
        place.sh("getent passwd root nobody && getent hosts localhost");

        // The container has its own layer above the host's files, except for the programs.
        let mark = format!("berth-it-{}", unique_secs());
        place.sh(&format!("for d in / /etc /var/lib /opt /srv /tmp /root /home; do echo x > $d/{mark} || exit 1; done; rm /etc/profile; useradd -m alice; id -u alice"));
        for folder in ["/", "/etc", "/var/lib", "/opt", "/srv", "/tmp", "/root", "/home"] {
            assert!(!Path::new(folder).join(&mark).exists(), "{folder}/{mark} is on the host");
        }
        assert!(Path::new("/etc/profile").exists());
        let taken = place.client.post(200, &place.path("/snapshots"), json!({}));
        place.sh("rm -rf /opt/* /etc/passwd");
        place.client.post(
            200,
            &place.path(&format!("/snapshots/{}/restore", taken["id"].as_str().unwrap())),
            json!({}),
        );
        let copy = Place::of(&server, &place.client.post(200, &place.path("/clone"), json!({})));
        for place in [&place, &copy] {
            assert_eq!(
                place.sh(&format!("cat /opt/{mark}; ls /usr/bin/env; id -un alice")),
                "x\n/usr/bin/env\nalice\n"
            );
        }
        assert_eq!(copy.show()["distro"], "host");

        // The image contains no files of another distribution, whatever os-release reports.
        place.build();
        place.client.refused(
            409,
            "rebuild_required",
            "POST",
            &place.path("/build"),
            Some(json!({"distro": "debian-bookworm"})),
        );
        let body = json!({"distro": "host", "rebuild": true});
        server.collaborator().refused(403, "forbidden", "POST", &place.path("/build"), Some(body.clone()));
        place.client.post(200, &place.path("/build"), body);
        assert_eq!(place.settled()["status"], "ready");
        let images = place.client.get(200, "/api/images");
        assert_eq!(images.as_array().unwrap().len(), 1, "{images}");
        assert_eq!((&images[0]["name"], &images[0]["source"]), (&json!("host"), &json!("host")));
    }
}

/// Files on this machine that the attacker tries to read, removed on drop.
struct Bait {
    folder: PathBuf,
}

const SECRET: &str = "the-secret-of-the-host-7c2e";

impl Bait {
    fn lay() -> Bait {
        let folder = PathBuf::from(format!("/usr/local/share/berth-it-{}", unique_secs()));
        fs::create_dir_all(&folder).unwrap();
        let bait = Bait { folder };
        bait.put("public", 0o644);
        bait.put("private", 0o600);
        bait.put("of-a-group", 0o640);
        for (folder, mode) in [("closed", 0o700), ("search", 0o710)] {
            fs::create_dir(bait.folder.join(folder)).unwrap();
            bait.put(&format!("{folder}/open"), 0o644);
            fs::set_permissions(bait.folder.join(folder), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::copy("/usr/bin/id", bait.folder.join("set-uid")).unwrap();
        fs::set_permissions(bait.folder.join("set-uid"), fs::Permissions::from_mode(0o4755)).unwrap();
        on_host("mknod", &["-m", "666", bait.path("device").as_str(), "c", "1", "5"]);
        fs::create_dir(bait.folder.join("mounted")).unwrap();
        on_host("mount", &["-t", "tmpfs", "-o", "mode=755", "berth-it", bait.path("mounted").as_str()]);
        bait.put("mounted/open", 0o644);
        bait
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    fn put(&self, name: &str, mode: u32) {
        fs::write(self.folder.join(name), format!("{SECRET}\n")).unwrap();
        fs::set_permissions(self.folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path("mounted")).status();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn root_inside_reads_only_public_files_and_changes_nothing() {
    let bait = Bait::lay();
    let server = setup().start();
    let place = own(&server, json!({"network": "none"}));
    assert_eq!(place.sh(&format!("cat {}", bait.path("public"))), format!("{SECRET}\n"));
    // The shared folder is live: later files appear in it.
    bait.put("later", 0o600);
    // Root inside can read exactly the files that an unprivileged user of the host can read.
    let unreadable = "find /usr -xdev ! -type l ! -readable 2>/dev/null | sort; true";
    let as_unprivileged = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", unreadable];
    let (inside, outside) = (place.sh(unreadable), on_host("setpriv", &as_unprivileged));
    assert!(outside.contains(&bait.path("private")), "{outside}");
    let mount_point = |line: &&str| !line.ends_with("/mounted/open");
    assert_eq!(
        inside.lines().filter(mount_point).collect::<Vec<_>>(),
        outside.lines().filter(mount_point).collect::<Vec<_>>()
    );
    for name in ["private", "of-a-group", "closed/open", "search/open", "mounted/open", "later"] {
        let path = bait.path(name);
        for attempt in [
            format!("cat {path}"),
            format!("chmod 666 {path}; cat {path}"),
            format!("chown 0:0 {path}; cat {path}"),
            format!("chmod 755 $(dirname {path}); cat {path}"),
            format!("ln {path} /root/linked; cat /root/linked"),
            format!("mount -o remount,rw /usr; mount -o remount,rw,bind /usr; chmod 666 {path}; cat {path}"),
            format!("mkdir -p /mnt/x; mount --bind $(dirname {path}) /mnt/x; cat /mnt/x/$(basename {path})"),
            format!(
                "mkdir -p /root/u /root/w /mnt/y; mount -t overlay o -o lowerdir=/usr,upperdir=/root/u,workdir=/root/w /mnt/y; cat /mnt/y/${{X:-}}{}",
                path.trim_start_matches("/usr/")
            ),
            format!("unshare -Urm cat {path}"),
            format!("umount -l /usr; cat {path}"),
            format!("setpriv --reuid=65534 --regid=65534 --clear-groups cat {path}"),
            format!("tar cf - {path} | cat"),
        ] {
            let reply = place.exec(json!({"command": attempt, "timeout_secs": 20}));
            assert!(!reply.to_string().contains(SECRET), "{attempt}: {reply}");
        }
    }
    let hashes = |text: &str| -> BTreeSet<String> {
        text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    let closed = on_host(
        "setpriv",
        &[
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "find",
            "/etc",
            "-xdev",
            "-type",
            "f",
            "!",
            "-readable",
        ],
    );
    let closed: Vec<&str> =
        closed.lines().filter(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 0)).collect();
    assert!(closed.contains(&"/etc/shadow"), "{closed:?}");
    let secret = hashes(&on_host("sha256sum", &closed));
    let seen = hashes(&place.sh("find /etc /root /home /var /srv /opt -xdev -type f -exec sha256sum {} +"));
    assert!(seen.len() > 20 && seen.is_disjoint(&secret), "{:?}", seen.intersection(&secret));
    // No data of users or of the machine is visible, not even a name.
    assert_eq!(place.sh("ls -A /home /srv /opt /media /mnt | grep -v -e : -e '^$' -e '^[xy]$' | wc -l; cat /etc/machine-id"), "0\n");
    assert_ne!(place.exec(json!({"command": format!("ls {}", server.data.display())}))["exit_code"], 0);
    for line in fs::read_to_string("/etc/passwd").unwrap().lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if fields[2].parse::<u32>().is_ok_and(|uid| (1000..65534).contains(&uid)) {
            assert_ne!(
                place.exec(json!({"command": format!("getent passwd {}", fields[0])}))["exit_code"],
                0
            );
        }
    }

    // Nothing can be changed, no program gains privileges, no device can be opened.
    let before = on_host("sh", &["-c", "ls -la --time-style=full-iso /usr /usr/bin /usr/local | sha256sum"]);
    for attempt in [
        "echo x > /usr/bin/env",
        "rm -rf /usr/local/share",
        "touch /usr/new /bin/new /lib/new",
        "mv /usr/bin/env /usr/bin/env2",
        "chmod 4755 /usr/bin/env",
        "mount -o remount,rw /usr && touch /usr/new",
    ] {
        let reply = place.exec(json!({"command": attempt, "timeout_secs": 20}));
        assert_ne!(reply["exit_code"], 0, "{attempt}: {reply}");
    }
    let after = on_host("sh", &["-c", "ls -la --time-style=full-iso /usr /usr/bin /usr/local | sha256sum"]);
    assert_eq!(before, after);
    // After a stop, the mounts that it placed on top are removed.
    place.client.post(200, &place.path("/stop"), json!({}));
    let suid = format!("setpriv --reuid=1 --regid=1 --clear-groups {} -u", bait.path("set-uid"));
    assert_eq!(place.sh(&suid), "1\n");
    assert_ne!(place.exec(json!({"command": format!("head -c1 {}", bait.path("device"))}))["exit_code"], 0);
    let options = place.sh("grep ' /usr ' /proc/self/mountinfo");
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split([' ', ',']).any(|word| word == option), "{option}: {options}");
    }
    assert_eq!(procs::mounts_below(&bait.folder), [bait.folder.join("mounted")], "its mounts are its own");
}
