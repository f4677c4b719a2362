//! Backups of container workspaces: their roots, snapshots and images, for each kind of root, while commands run in
//! them.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::backup::{backup, on, restore};
use crate::fixture::{Place, seeded};
use crate::procs::{secs, wait_for};
use crate::server::{BINARY, HOST_TOKEN, Server, read, run};

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&read(path)).unwrap()
}

#[track_caller]
fn again<'a>(server: &'a Server, id: &str) -> Place<'a> {
    Place::of(server, &server.owner().get(200, &format!("/api/workspaces/{id}")))
}

/// Changes a root: new files, owners, a removed file, a replaced folder, a link, a capability.
const CHANGE: &str = "set -e
    echo mine > /root/mine; chown 33:33 /root/mine; chmod 4750 /root/mine
    ln /root/mine /root/again; ln -s /root/mine /root/link
    rm /etc/debian_version; rm -r /usr/share/doc; mkdir /usr/share/doc; echo new > /usr/share/doc/new
    truncate -s 1G /root/sparse";

/// Prints the changed state.
const LOOK: &str = "cat /root/mine; stat -c '%u %g %a %h' /root/mine; readlink /root/link; ls /usr/share/doc
    test ! -e /etc/debian_version; stat -c '%s %b' /root/sparse; test /root/mine -ef /root/again; dpkg --version | head -1";

#[test]
fn containers_of_each_kind_are_restored_at_another_path() {
    for way in ["overlay", "copy"] {
        let setup = seeded().arg(format!("--root-backend={way}"));
        let server = setup.start();
        let place = Place::ready(&server, json!({"name": "box", "env_vars": {"A": "b"}}));
        place.sh("echo then > /root/then");
        let taken = place.client.post(200, &place.path("/snapshots"), json!({"name": "then"}));
        place.sh("rm /root/then");
        place.sh(CHANGE);
        let seen = place.sh(LOOK);
        let pending = Place::pending(&server, json!({"name": "not built"}));
        // A command keeps writing during the backup.
        let body = json!({"command": "while true; do date >> /root/log; sleep 0.01; done", "detach": true});
        let run = place.client.post(201, &place.path("/runs"), body);
        let run = place.path(&format!("/runs/{}", run["id"].as_str().unwrap()));
        let file = setup.scratch().path().join("backup");
        let before = read(place.root.with_file_name("root.json"));
        backup(&server, &file, &[]);
        assert_eq!(read(place.root.with_file_name("root.json")), before, "the record of the root changed");
        let snapshots = || place.client.get(200, &place.path("/snapshots")).as_array().unwrap().len();
        assert_eq!(snapshots(), 1, "the snapshot of the backup was not deleted");
        assert_eq!(place.client.get(200, &run)["status"], "running");

        let other = setup.scratch().path().join("other");
        restore(&file, &other);
        let restored = setup.clone().data(&other).start();
        let there = again(&restored, &place.id);
        assert_eq!(there.show()["status"], "ready", "{way}");
        assert_eq!(there.sh(LOOK), seen, "{way}");
        assert_eq!(there.sh("echo $A; tail -c 1 /root/log | od -An -c"), "b\n  \\n\n", "{way}");
        let lost = there.client.get(200, &there.path(run.split_once(&place.id).unwrap().1));
        assert!(lost["status"] != "running" && lost["status"] != "exited", "{lost}");
        let ids = |data: &Path| {
            json_of(&data.join("workspaces").join(&place.id).join("root.json"))["first_id"].clone()
        };
        if way == "overlay" {
            assert_ne!(ids(&server.data), ids(&other), "both servers are on one machine");
        }
        // Both servers work, and neither sees the other's containers.
        there.sh("echo theirs > /root/mine");
        assert_eq!(place.sh("cat /root/mine"), "mine\n");
        let id = taken["id"].as_str().unwrap();
        there.client.post(200, &there.path(&format!("/snapshots/{id}/restore")), json!({}));
        assert_eq!(there.sh("cat /root/then; cat /root/mine || echo none"), "then\nnone\n");
        assert_eq!(there.client.get(200, &there.path("/snapshots")).as_array().unwrap().len(), 1);
        let built = again(&restored, &pending.id);
        assert_eq!(built.show()["status"], "pending");
        built.build();
        let images = restored.owner().get(200, "/api/images");
        assert_eq!(images.as_array().unwrap().len(), 1, "{images}");
        let verified = on(&other, &["image", "verify"]);
        assert_eq!(verified.code, Some(0), "{verified:?}");
        // Prevents their deletion when the owner is dropped.
        std::mem::forget((there, built));

        // Without a server no container has to be frozen, and a restored folder can be backed up like any other.
        place.client.call("DELETE", &run, None).expect(204);
        assert_eq!(restored.stop().code(), Some(0));
        let second = setup.scratch().path().join("second");
        let ended = on(&other, &["backup", second.to_str().unwrap()]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let third = setup.scratch().path().join("third");
        restore(&second, &third);
        let restored = setup.clone().data(&third).start();
        assert_eq!(again(&restored, &place.id).sh("cat /root/then"), "then\n", "{way}");
    }
}

#[test]
fn a_backup_without_containers_keeps_their_records() {
    let setup = seeded();
    let server = setup.start();
    let place =
        Place::ready(&server, json!({"name": "box", "init_script": "#!/bin/sh\necho init > /root/proof\n"}));
    place.sh("echo mine > /root/mine");
    let file = setup.scratch().path().join("backup");
    backup(&server, &file, &["--without-containers"]);
    assert!(fs::metadata(&file).unwrap().len() < 1 << 20);
    let other = setup.scratch().path().join("other");
    restore(&file, &other);
    assert!(!other.join("images").exists());
    crate::fixture::copy_image(&other);
    let restored = setup.clone().data(&other).start();
    let there = again(&restored, &place.id);
    assert_eq!(there.show()["status"], "pending");
    there.build();
    assert_eq!(there.sh("cat /root/proof; cat /root/mine || echo none"), "init\nnone\n");
}

#[test]
fn a_backup_of_running_containers_needs_the_folders_own_server() {
    let setup = seeded();
    let setup = setup.clone().arg(format!("--authorized-root={}", setup.scratch().path().display()));
    let server = setup.start();
    let place = Place::ready(&server, json!({"name": "box", "path": setup.scratch().path().join("named")}));
    place.sh("echo mine > /root/mine");
    let file = setup.scratch().path().join("backup");
    let words = ["backup", file.to_str().unwrap(), "--openwork-url=http://127.0.0.1:1"];
    let ended = on(&server.data, &words);
    assert!(ended.code == Some(1) && ended.stderr.contains("--openwork-url names another"), "{ended:?}");
    let url = format!("--openwork-url=http://{}", server.address);
    let ended = on(&server.data, &["backup", file.to_str().unwrap(), &url, "--host-token=wrong"]);
    assert!(ended.code == Some(1) && ended.stderr.contains("--host-token names the host token"), "{ended:?}");
    // A server with another data folder.
    let stranger = Server::start();
    let url = format!("--openwork-url=http://{}", stranger.address);
    let ended = on(&server.data, &["backup", file.to_str().unwrap(), &url]);
    assert!(ended.code == Some(1) && ended.stderr.contains("does not know the workspace"), "{ended:?}");
    assert!(!file.exists());
    // The next backup deletes the snapshot that a killed backup left behind.
    let name = json!({"name": "berth backup, deleted when it is written"});
    place.client.post(200, &place.path("/snapshots"), name);
    backup(&server, &file, &[]);
    assert_eq!(place.client.get(200, &place.path("/snapshots")), json!([]));
    // A root outside the data folder is restored into it, because its path still belongs to the original.
    let other = setup.scratch().path().join("other");
    restore(&file, &other);
    let restored = setup.clone().data(&other).start();
    let there = again(&restored, &place.id);
    assert_eq!(there.root, other.join("workspaces").join(&place.id).join("root"));
    assert_eq!(there.sh("cat /root/mine"), "mine\n");
    there.sh("echo theirs > /root/mine");
    assert_eq!(place.sh("cat /root/mine"), "mine\n");
    drop(there);

    // Containers of a server that was killed keep running and would change during a backup.
    let (id, data) = (place.id.clone(), server.data.clone());
    std::mem::forget(place);
    server.crash();
    let offline = on(&data, &["backup", setup.scratch().path().join("offline").to_str().unwrap()]);
    assert!(offline.code == Some(1) && offline.stderr.contains("its server does not"), "{offline:?}");
    let server = setup.start();
    let place = wait_for("the workspace", secs(60), || Some(again(&server, &id)));
    assert_eq!(place.sh("cat /root/mine"), "mine\n");

    // The data folder has the server's address: that of a port that the kernel chose, and that of a socket.
    let found = on(&data, &["backup", setup.scratch().path().join("found").to_str().unwrap()]);
    assert_eq!(found.code, Some(0), "{found:?}");
    std::mem::forget(place);
    server.stop();
    let socket = setup.scratch().path().join("sock");
    let listen = format!("--listen=unix:{}", socket.display());
    let mut silent = Command::new(BINARY);
    silent.arg(&listen).arg(format!("--data-dir={}", data.display())).current_dir(setup.scratch().path());
    silent.env_clear().env("HOME", "/nowhere").env("PATH", std::env::var("PATH").unwrap());
    silent.env("OPENWORK_HOST_TOKEN", HOST_TOKEN);
    std::thread::scope(|scope| {
        let server = scope.spawn(|| run(&mut silent, secs(300)));
        let answers = || (on(&data, &["status"]).code == Some(0)).then_some(());
        wait_for("the server on a Unix socket", secs(60), answers);
        for (name, flag) in
            [("by itself", None), ("by flag", Some(format!("--openwork-url=unix:{}", socket.display())))]
        {
            let file = setup.scratch().path().join(name);
            let words: Vec<&str> =
                ["backup", file.to_str().unwrap()].into_iter().chain(flag.as_deref()).collect();
            let done = on(&data, &words);
            assert_eq!(done.code, Some(0), "{done:?}");
        }
        let lock = read(data.join("lock"));
        assert_eq!(lock.lines().nth(1), Some(&*format!("unix:{}", socket.display())));
        let pid = lock.lines().next().unwrap().parse().unwrap();
        crate::procs::signal(pid, rustix::process::Signal::TERM);
        assert_eq!(server.join().unwrap().code, Some(0));
    });
}
