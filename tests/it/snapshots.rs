//! Snapshots, restores and clones: for every kind of root, concurrent with every other operation on a workspace, and
//! when the server is killed during one.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::Reply;
use crate::fixture::{Place, on_each_backend, seeded, shared};
use crate::procs::{self, secs, wait_for};
use crate::server::{NIL, Server};

#[track_caller]
fn take(place: &Place<'_>, name: &str) -> Value {
    place.client.post(200, &place.path("/snapshots"), json!({"name": name}))
}

fn path_of(place: &Place<'_>, snapshot: &Value) -> String {
    place.path(&format!("/snapshots/{}", snapshot["id"].as_str().unwrap()))
}

#[track_caller]
fn restore(place: &Place<'_>, snapshot: &Value) -> Value {
    place.client.post(200, &format!("{}/restore", path_of(place, snapshot)), json!({}))
}

#[track_caller]
fn clone<'a>(place: &Place<'a>, body: Value) -> Place<'a> {
    Place::of(place.server, &place.client.post(200, &place.path("/clone"), body))
}

fn names(place: &Place<'_>) -> Vec<String> {
    let all = place.client.get(200, &place.path("/snapshots"));
    all.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

/// Partial copies in the data folder; a start removes them.
fn half_made(data: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for workspace in fs::read_dir(data.join("workspaces")).unwrap().flatten() {
        for folder in [workspace.path(), workspace.path().join("snapshots")] {
            let inside = fs::read_dir(folder).into_iter().flatten().flatten();
            let names = inside.map(|entry| entry.path().to_string_lossy().into_owned());
            found.extend(names.filter(|name| name.contains("/.new-") || name.contains("/.berth-new-")));
        }
    }
    found
}

fn layers(data: &Path) -> usize {
    let all = fs::read_dir(data.join("layers")).unwrap().flatten();
    all.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count()
}

#[test]
fn snapshots_work_for_every_kind_of_root() {
    on_each_backend(|server, way| {
        let place = Place::ready(server, json!({"name": "original", "env_vars": {"A": "b"}}));
        place.sh(
            "echo one > /root/state; rm -rf /usr/share/doc; chown 33:33 /root/state; ln /root/state /root/hard; \
             mv /usr/share/zoneinfo /usr/share/zones 2>/dev/null || mv /usr/share/perl5 /usr/share/zones; \
             rm -rf /var/cache/debconf; mkdir /var/cache/debconf; touch /var/cache/debconf/alone",
        );
        let first = take(&place, "first");
        assert_eq!((&first["name"], &first["root_kind"]), (&json!("first"), &json!(way)), "{first}");
        assert_eq!(first["instant"], way == "overlay", "nothing ran: {first}");
        place.sh("echo two > /root/state; echo new > /root/new");

        // Running processes are frozen during the snapshot, and then continue.
        place.exec(json!({"command": "(i=0; while :; do i=$((i+1)); echo $i > /root/a; echo $i > /root/b; done) >/dev/null 2>&1 </dev/null & true"}));
        wait_for("the counter to start", secs(10), || {
            (!place.sh("cat /root/b 2>/dev/null; true").is_empty()).then_some(())
        });
        let second = take(&place, "second");
        assert_eq!(second["instant"], false, "{second}");
        let counted = place.sh("cat /root/a");
        wait_for("the counter to continue", secs(10), || (place.sh("cat /root/a") != counted).then_some(()));

        let copy = clone(&place, json!({"name": "copy", "snapshot": second["id"]}));
        assert_eq!(copy.show()["name"], "copy");
        assert_eq!(copy.sh("cat /root/state; stat -c %u:%g /root/state; echo $A"), "two\n33:33\nb\n");
        // A file may be empty while it is written; but at no moment has the second counter advanced before the first.
        let both = copy.sh("cat /root/a /root/b");
        let numbers: Vec<i64> = both.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert!(numbers.len() < 2 || (0..=1).contains(&(numbers[0] - numbers[1])), "torn: {numbers:?}");
        let seen =
            "ls /var/cache/debconf; ls /usr/share/doc 2>&1 | grep -c cannot; ls /usr/share/zones | wc -l";
        assert_eq!(copy.sh(seen), place.sh(seen));
        copy.sh("echo mine > /root/state");

        let reply = restore(&place, &first);
        assert_eq!((&reply["status"], &reply["error_message"]), (&json!("ready"), &Value::Null), "{reply}");
        assert_eq!(
            place.sh("cat /root/state /root/hard; ls /root/new /usr/share/doc 2>&1 | grep -c cannot; ls /var/cache/debconf"),
            "one\none\n2\nalone\n"
        );
        let again = clone(&place, json!({}));
        assert_eq!(again.sh("cat /root/state; ls /root/new 2>&1 | grep -c cannot"), "one\n1\n");
        assert_eq!(copy.sh("cat /root/state"), "mine\n");
        place.sh("echo three > /root/state");
        let ended = place.client.post(200, &place.path("/snapshots"), json!({"stop": true}));
        assert_eq!(ended["instant"], way == "overlay", "{ended}");
        assert!(ended["name"].as_str().is_some_and(|name| name.starts_with("20")), "{ended}");

        assert_eq!(names(&place)[..2], ["first", "second"]);
        let path = path_of(&place, &second);
        place.client.call("DELETE", &path, None).expect(200);
        place.client.refused(404, "not_found", "DELETE", &path, None);
        place.client.refused(404, "not_found", "POST", &format!("{path}/restore"), None);
        assert_eq!(names(&place).len(), 2);
        // The clones do not depend on their original.
        place.delete();
        assert_eq!(again.sh("cat /root/state"), "one\n");
        again.delete();
        copy.delete();
        wait_for("the layers to be removed", secs(20), || (layers(&server.data) == 0).then_some(()));
        let held = || server.owner().get(200, "/api/images")[0]["held_by"].clone();
        wait_for("the image to be unlocked", secs(20), || (held() == json!([])).then_some(()));
    });
}

#[test]
fn snapshots_survive_a_rebuild_and_the_deletion_of_the_root() {
    on_each_backend(|server, _| {
        let place = Place::ready(server, json!({"name": "rebuilt"}));
        place.sh("echo precious > /root/state");
        let taken = take(&place, "before");
        place.client.post(200, &place.path("/build?rebuild=true"), json!({}));
        assert_eq!(place.settled()["status"], "ready");
        assert_eq!(place.sh("ls /root/state 2>&1 | grep -c cannot"), "1\n");
        restore(&place, &taken);
        assert_eq!(place.sh("cat /root/state"), "precious\n");

        // A rebuild that is cancelled after the old root was removed leaves no root.
        place.client.put(200, &place.path(""), json!({"init_script": "#!/bin/sh\necho begun\nsleep 600\n"}));
        place.client.post(200, &place.path("/build?rebuild=true"), json!({}));
        wait_for("the script to start", secs(60), || place.init_log().contains("begun").then_some(()));
        place.client.call("DELETE", &place.path("/build"), None).expect(200);
        assert_eq!(place.settled()["status"], "pending");
        place.client.refused(400, "workspace_not_ready", "POST", &place.path("/snapshots"), None);
        place.client.refused(400, "workspace_not_ready", "POST", &place.path("/clone"), None);
        let copy = clone(&place, json!({"snapshot": taken["id"]}));
        assert_eq!(copy.sh("cat /root/state"), "precious\n");
        assert_eq!(restore(&place, &taken)["status"], "ready");
        assert_eq!(place.sh("cat /root/state"), "precious\n");
    });
}

#[test]
fn invalid_snapshot_requests_are_refused() {
    let server = shared();
    let owner = server.owner();
    let host = |call: &str| format!("/api/workspaces/{NIL}{call}");
    let missing = "11111111-1111-4111-8111-111111111111";
    for (method, call) in
        [("GET", "/snapshots".to_owned()), ("POST", "/snapshots".to_owned()), ("POST", "/clone".to_owned())]
    {
        let reply = owner.refused(400, "not_a_container", method, &host(&call), None);
        assert!(reply["message"].as_str().unwrap().contains("container"), "{reply}");
    }
    let pending = Place::pending(server, json!({"name": "pending"}));
    owner.refused(400, "workspace_not_ready", "POST", &pending.path("/snapshots"), None);
    owner.refused(400, "workspace_not_ready", "POST", &pending.path("/clone"), None);
    assert_eq!(owner.get(200, &pending.path("/snapshots")), json!([]));

    let place = Place::ready(server, json!({"name": "refused"}));
    for name in ["", "  ", "a/b", "..", ".hidden", "a\nb", &"x".repeat(300)] {
        let body = json!({"name": name});
        owner.refused(400, "invalid_name", "POST", &place.path("/snapshots"), Some(body.clone()));
        owner.refused(400, "invalid_name", "POST", &place.path("/clone"), Some(body));
    }
    owner.refused(400, "invalid_payload", "POST", &place.path("/snapshots"), Some(json!({"name": 1})));
    for id in [missing, "x", "..%2f..%2fetc"] {
        owner.refused(404, "not_found", "DELETE", &place.path(&format!("/snapshots/{id}")), None);
        owner.refused(404, "not_found", "POST", &place.path(&format!("/snapshots/{id}/restore")), None);
    }
    owner.refused(404, "not_found", "POST", &place.path("/clone"), Some(json!({"snapshot": missing})));
    assert_eq!(names(&place), Vec::<String>::new());

    // A clone is a new workspace: collaborators, and owners limited to this workspace, may not create it.
    let taken = server.collaborator().post(200, &place.path("/snapshots"), json!({"name": "theirs"}));
    server.collaborator().refused(403, "forbidden", "POST", &place.path("/clone"), None);
    let body = json!({"scope": "owner", "workspaceIds": [place.id]});
    let limited = owner.call("POST", "/tokens", Some(&body)).value();
    let limited = server.with_token(limited["token"].as_str().unwrap());
    assert_eq!(limited.get(200, &place.path("/snapshots"))[0]["id"], taken["id"]);
    limited.refused(403, "forbidden", "POST", &place.path("/clone"), None);
}

#[test]
fn the_number_of_snapshots_is_limited() {
    let place = Place::ready(shared(), json!({"name": "many"}));
    let mut first = Value::Null;
    for number in 0..200 {
        let taken = take(&place, &format!("s{number}"));
        if number == 0 {
            first = taken;
        }
    }
    let reply = place.client.refused(409, "conflict", "POST", &place.path("/snapshots"), None);
    assert!(reply["message"].as_str().unwrap().contains("delete one first"), "{reply}");
    place.client.call("DELETE", &path_of(&place, &first), None).expect(200);
    take(&place, "one more");
    restore(&place, &place.client.get(200, &place.path("/snapshots"))[100]);
}

#[test]
fn many_layers_are_merged_into_few() {
    let server = seeded().arg("--root-backend=overlay").start();
    let place = Place::ready(&server, json!({"name": "deep"}));
    let mut copied = 0;
    for number in 0..56 {
        place.sh(&format!(
            "echo {number} > /root/state; echo {number} > /root/f{number}; rm -f /root/f{}",
            number - 2
        ));
        let taken = take(&place, &format!("s{number}"));
        copied += u32::from(taken["instant"] == false);
    }
    assert_eq!(copied, 1);
    assert_eq!(place.sh("cat /root/state; ls /root | grep -c f"), "55\n2\n");
    let all = place.client.get(200, &place.path("/snapshots"));
    for number in [0, 48, 49, 50, 55] {
        restore(&place, &all[number]);
        assert_eq!(place.sh("cat /root/state"), format!("{number}\n"));
    }
    place.delete();
    wait_for("the layers to be removed", secs(20), || (layers(&server.data) == 0).then_some(()));
}

#[test]
fn synced_files_stay_managed_after_a_restore() {
    let server = seeded().start();
    let owner = server.owner();
    owner.put(
        200,
        "/api/library/skill/greet",
        json!({"content": "---\nname: greet\ndescription: x\n---\nHello.\n"}),
    );
    let place = Place::ready(&server, json!({"name": "synced", "skills": ["greet"]}));
    let file = "/.opencode/skill/greet/SKILL.md";
    let is_synced =
        |place: &Place<'_>| place.exec(json!({"command": format!("test -e {file}")}))["exit_code"] == 0;
    let taken = take(&place, "with skill");
    owner.put(200, &place.path(""), json!({"skills": []}));
    assert!(!is_synced(&place));
    let without = clone(&place, json!({}));
    assert!(!is_synced(&without));
    restore(&place, &taken);
    assert!(is_synced(&place), "the files were not restored");
    let with = clone(&place, json!({}));
    let then = clone(&without, json!({}));
    for place in [&place, &with] {
        assert!(is_synced(place));
        owner.post(200, &place.path("/sync"), json!({}));
        assert!(!is_synced(place), "the sync did not remove the files of berth");
    }
    owner.put(200, &then.path(""), json!({"skills": ["greet"]}));
    assert!(is_synced(&then));
}

/// Stops a `cp` of this server with SIGSTOP as soon as one is running.
fn hold_copy(server: &Server) -> u32 {
    let data = server.data.to_string_lossy().into_owned();
    let found = wait_for("a copy", secs(30), || {
        procs::naming(&data).into_iter().find(|pid| procs::name(*pid) == "cp")
    });
    procs::signal(found, Signal::STOP);
    found
}

/// Starts the request `call` and stops its copy; returns the pid of the copy, and the channel of the response.
fn request_with_stopped_copy(place: &Place<'_>, call: &str, body: Value) -> (u32, mpsc::Receiver<Reply>) {
    let (client, path) = (place.server.owner(), place.path(call));
    let (tell, response) = mpsc::channel();
    let body = serde_json::to_vec(&body).unwrap();
    thread::spawn(move || {
        if let Ok(reply) = client.try_send("POST", &path, &[], Some(&body)) {
            let _ = tell.send(reply);
        }
    });
    (hold_copy(place.server), response)
}

/// A container whose files take some time to copy.
fn slow<'a>(server: &'a Server) -> Place<'a> {
    let place = Place::ready(server, json!({"name": "slow"}));
    place.sh("echo one > /root/state; cd /var; for i in $(seq 40); do mkdir d$i; seq -f d$i/%g 100 | xargs touch; done");
    place
}

#[test]
fn other_operations_are_refused_during_a_snapshot_without_waiting() {
    let server = seeded().arg("--root-backend=copy").start();
    let place = slow(&server);
    let taken = take(&place, "one");
    let again = format!("{}/restore", path_of(&place, &taken));
    place.sh("echo two > /root/state");
    let restoring = again.strip_prefix(&place.path("")).unwrap().to_owned();
    for call in ["/snapshots", "/clone", restoring.as_str()] {
        let (copy, reply) = request_with_stopped_copy(&place, call, json!({}));
        let started = Instant::now();
        for (method, path) in [
            ("POST", place.path("/snapshots")),
            ("POST", place.path("/clone")),
            ("POST", again.clone()),
            ("DELETE", path_of(&place, &taken)),
            ("POST", place.path("/build?rebuild=true")),
            ("POST", place.path("/stop")),
        ] {
            place.client.refused(409, "build_running", method, &path, None);
        }
        let view = place.show()["status"].clone();
        if call == restoring {
            assert_eq!(view, "building");
            place.exec_refused("workspace_not_ready", json!({"command": "true"}));
            place.client.refused(409, "build_running", "POST", &place.path("/sync"), None);
        } else {
            assert_eq!(view, "ready");
        }
        // As many concurrent requests as there are threads.
        for _ in 0..20 {
            for path in ["/debug", "/resources", "/snapshots", "/init-log", ""] {
                place.client.get(200, &place.path(path));
            }
        }
        assert!(started.elapsed() < secs(20), "{call}: {:?}", started.elapsed());
        procs::signal(copy, Signal::CONT);
        reply.recv_timeout(secs(120)).unwrap().expect(200);
    }
    assert_eq!(place.sh("cat /root/state"), "one\n");
}

#[test]
fn snapshots_can_be_cancelled_and_their_workspace_deleted() {
    let server = seeded().arg("--root-backend=copy").start();
    let place = slow(&server);
    let taken = take(&place, "one");
    place.sh("echo two > /root/state");
    let before = server.owner().get(200, "/api/workspaces");
    let restoring = format!("/snapshots/{}/restore", taken["id"].as_str().unwrap());
    for call in ["/snapshots", "/clone", restoring.as_str()] {
        let (_, reply) = request_with_stopped_copy(&place, call, json!({}));
        place.client.call("DELETE", &place.path("/build"), None).expect(200);
        let reply = reply.recv_timeout(secs(60)).unwrap();
        assert_eq!((reply.status, &reply.value()["code"]), (409, &json!("cancelled")), "{reply}");
        assert_eq!(place.sh("cat /root/state"), "two\n");
        assert_eq!(half_made(&server.data), Vec::<String>::new());
    }
    assert_eq!(server.owner().get(200, "/api/workspaces"), before);
    assert_eq!(names(&place), ["one"]);

    let (_, reply) = request_with_stopped_copy(&place, "/clone", json!({}));
    place.delete();
    assert_eq!(reply.recv_timeout(secs(60)).unwrap().status, 409);
    assert_eq!(server.owner().get(200, "/api/workspaces").as_array().unwrap().len(), 1, "the host alone");
}

#[test]
fn only_complete_snapshots_remain_after_kill_9() {
    let setup = seeded().arg("--root-backend=copy");
    let mut server = setup.start();
    let id = {
        let place = slow(&server);
        take(&place, "one");
        place.sh("echo two > /root/state");
        let id = place.id.clone();
        std::mem::forget(place);
        id
    };
    let at = |server: &Server| -> Value { server.owner().get(200, &format!("/api/workspaces/{id}")) };
    for call in ["/snapshots", "/clone", "restore"] {
        {
            let place = Place::of(&server, &at(&server));
            let taken = place.client.get(200, &place.path("/snapshots"))[0]["id"].clone();
            let call = match call {
                "restore" => format!("/snapshots/{}/restore", taken.as_str().unwrap()),
                call => call.to_owned(),
            };
            let (copy, _) = request_with_stopped_copy(&place, &call, json!({}));
            std::mem::forget(place);
            // It may have been stopped before it created a file.
            if call != "/clone" {
                wait_for("a partial copy remains", secs(20), || {
                    let started = !half_made(&server.data).is_empty();
                    if !started {
                        procs::signal(copy, Signal::CONT);
                        thread::sleep(Duration::from_millis(2));
                        procs::signal(copy, Signal::STOP);
                    }
                    started.then_some(())
                });
            }
        }
        server.crash();
        server = setup.start();
        assert_eq!(half_made(&server.data), Vec::<String>::new(), "{call}");
        let all = server.owner().get(200, "/api/workspaces");
        assert_eq!(all.as_array().unwrap().len(), 2, "{call}: the host and the one: {all}");
        let place = Place::of(&server, &at(&server));
        let show = place.show();
        if call == "restore" {
            assert_eq!(show["status"], "error", "{show}");
            assert!(show["error_message"].as_str().unwrap().contains("restore again, or build"), "{show}");
            place.build();
        }
        assert_eq!(place.sh("cat /root/state; ls /var/d40 | wc -l"), "two\n100\n", "{call}");
        assert_eq!(names(&place), ["one"], "{call}");
        std::mem::forget(place);
    }
    let place = Place::of(&server, &at(&server));
    let all = place.client.get(200, &place.path("/snapshots"));
    restore(&place, &all[0]);
    assert_eq!(place.sh("cat /root/state"), "one\n");
}

/// Layers change within a moment, so the kill happens at many different moments.
#[test]
fn a_layered_root_is_the_old_or_the_new_one_after_kill_9() {
    let setup = seeded().arg("--root-backend=overlay");
    let mut server = setup.start();
    let place = Place::ready(&server, json!({"name": "layered"}));
    place.sh("seq 1000 > /root/one; sync");
    let one = take(&place, "one");
    place.sh("rm /root/one; seq 2000 > /root/two; sync");
    let two = take(&place, "two");
    let view = place.show();
    std::mem::forget(place);
    let mut seen = [0, 0];
    for round in 0..16u64 {
        let expected = [&one, &two][(round % 2) as usize];
        {
            let place = Place::of(&server, &view);
            let (client, path) = (server.owner(), format!("{}/restore", path_of(&place, expected)));
            let (pid, other) = (server.pid, clone_later(&server, &place));
            let request = thread::spawn(move || client.try_send("POST", &path, &[], Some(b"{}")).is_ok());
            thread::sleep(std::time::Duration::from_micros(round * 1500));
            procs::kill(pid);
            let _ = (request.join(), other.join());
            std::mem::forget(place);
        }
        server.crash();
        server = setup.start();
        let place = Place::of(&server, &view);
        if place.show()["status"] == "error" {
            place.build();
        }
        let files = place.sh("cat /root/one /root/two 2>/dev/null | wc -l; true");
        match files.as_str() {
            "1000\n" => seen[0] += 1,
            "2000\n" => seen[1] += 1,
            other => panic!("round {round}: {other:?} lines: neither the old root nor the new one"),
        }
        assert_eq!(half_made(&server.data), Vec::<String>::new());
        assert_eq!(names(&place), ["one", "two"]);
        std::mem::forget(place);
    }
    eprintln!("after a crash: {seen:?} times the first and the second");
    let owner = server.owner();
    for workspace in owner.get(200, "/api/workspaces").as_array().unwrap() {
        assert_eq!(workspace["status"], "ready", "{workspace}");
        if workspace["id"] != NIL {
            owner.delete(200, &format!("/api/workspaces/{}", workspace["id"].as_str().unwrap()));
        }
    }
    wait_for("the layers to be removed", secs(20), || (layers(&server.data) == 0).then_some(()));
}

/// Requests a clone concurrently; it may be refused, succeed, or be interrupted.
fn clone_later(server: &Server, place: &Place<'_>) -> thread::JoinHandle<()> {
    let (client, path) = (server.owner(), place.path("/clone"));
    thread::spawn(move || drop(client.try_send("POST", &path, &[], Some(b"{}"))))
}

/// Unmounted when dropped.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn copies_share_their_blocks_on_btrfs() {
    copies_share_their_blocks("btrfs");
}

#[test]
fn copies_share_their_blocks_on_xfs() {
    copies_share_their_blocks("xfs");
}

fn copies_share_their_blocks(file_system: &str) {
    let known = crate::server::read("/proc/filesystems");
    if !known.split_whitespace().any(|name| name == file_system) {
        eprintln!("not tested: this kernel has no {file_system}");
        return;
    }
    let scratch = crate::scratch::Scratch::new();
    let (image, disk) = (scratch.path().join("image"), scratch.folder("disk"));
    fs::File::create(&image).unwrap().set_len(4 << 30).unwrap();
    let run = |program: &str, args: &[&Path]| {
        let ended = std::process::Command::new(program).args(args).output().unwrap();
        assert!(ended.status.success(), "{program} {args:?}: {ended:?}");
    };
    run(&format!("mkfs.{file_system}"), &[Path::new("-q"), &image]);
    run("mount", &[Path::new("-o"), Path::new("loop"), &image, &disk]);
    let mounted = Mounted(disk.clone());
    let (data, seed) = (disk.join("data"), seeded());
    fs::create_dir(&data).unwrap();
    run("cp", &[Path::new("-a"), &seed.data_dir().join("images"), &data.join("images")]);
    let setup = crate::server::Setup::new().data(&data).arg("--root-backend=reflink");
    let server = setup.start();
    let used = || {
        run("sync", &[]);
        let stat = rustix::fs::statvfs(&disk).unwrap();
        ((stat.f_blocks - stat.f_bfree) * stat.f_frsize) >> 20
    };
    let before = used();
    let place = Place::ready(&server, json!({"name": "shared"}));
    place.sh("echo one > /root/state; head -c 100M /dev/urandom > /root/large");
    let taken = take(&place, "one");
    assert_eq!(taken["root_kind"], "reflink", "{taken}");
    place.sh("echo two > /root/state");
    let copy = clone(&place, json!({}));
    restore(&place, &taken);
    assert_eq!(place.sh("cat /root/state; stat -c %s /root/large"), "one\n104857600\n");
    assert_eq!(copy.sh("cat /root/state; stat -c %s /root/large"), "two\n104857600\n");
    let now = used();
    // Four trees of 300 MB and more each; 100 MB were written, the rest shares blocks.
    assert!(now - before < 400, "{} additional MB are used", now - before);
    place.delete();
    copy.delete();
    server.stop();
    drop(mounted);
}
