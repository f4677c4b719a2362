//! Temporary files and host names inside containers: their location, lifetime and resolution.

use serde_json::json;

use crate::fixture::{DISTRO, Place, seeded, shared};

#[test]
fn temporary_files_are_on_the_disk_of_the_container() {
    let place = Place::ready(shared(), json!({"name": "temporary"}));
    let kind = |path: &str| place.sh(&format!("stat -f -c %T {path}"));
    assert_ne!(kind("/tmp"), "tmpfs\n");
    assert_eq!(kind("/tmp"), kind("/root"));
    assert_eq!(place.sh("stat -c %a /tmp /var/tmp"), "1777\n1777\n");
    assert_eq!((kind("/run").as_str(), kind("/dev/shm").as_str()), ("tmpfs\n", "tmpfs\n"));
    // The file survives a stop, and snapshots and clones contain it.
    place.sh("umask 077; echo kept > /tmp/mine; chmod 700 /tmp");
    let snapshot = place.client.post(200, &place.path("/snapshots"), json!({"name": "s"}));
    place.client.post(200, &place.path("/stop"), json!({}));
    assert_eq!(place.sh("cat /tmp/mine; stat -c %a /tmp"), "kept\n1777\n");
    let path = place.path(&format!("/snapshots/{}", snapshot["id"].as_str().unwrap()));
    place.sh("rm /tmp/mine");
    place.client.post(200, &format!("{path}/restore"), json!({}));
    assert_eq!(place.sh("cat /tmp/mine"), "kept\n");
}

#[test]
fn tmp_is_in_memory_on_request() {
    let server = shared();
    let place = Place::ready(server, json!({"name": "in memory", "resources": {"tmpfs_bytes": 8 << 20}}));
    assert_eq!(
        place.sh("stat -f -c %T /tmp; stat -c %a /tmp; df -k --output=size /tmp | tail -1 | tr -d ' '"),
        "tmpfs\n1777\n8192\n"
    );
    let field = |reply: serde_json::Value| reply["details"]["field"].clone();
    for wrong in [json!({"tmpfs_bytes": 1}), json!({"tmpfs_bytes": 1_u64 << 60})] {
        let reply = place.client.refused(
            400,
            "invalid_payload",
            "PUT",
            &place.path(""),
            Some(json!({"resources": wrong})),
        );
        assert_eq!(field(reply), "resources.tmpfs_bytes");
    }
    let host = json!({"name": "h", "workspace_type": "host", "resources": {"tmpfs_bytes": 8 << 20}});
    assert_eq!(
        field(server.owner().refused(400, "invalid_payload", "POST", "/api/workspaces", Some(host))),
        "resources.tmpfs_bytes"
    );
    place.client.put(200, &place.path(""), json!({"resources": {}}));
    place.client.post(200, &place.path("/stop"), json!({}));
    assert_ne!(place.sh("stat -f -c %T /tmp"), "tmpfs\n");
}

#[test]
fn a_container_resolves_its_own_name_in_every_network() {
    for network in ["host", "private", "none"] {
        let place = Place::ready(shared(), json!({"name": format!("My Box {network}"), "network": network}));
        let name = format!("my-box-{network}\n");
        assert_eq!(place.sh("hostname; cat /etc/hostname"), format!("{name}{name}"));
        let found = place.sh("getent hosts \"$(hostname)\" && getent hosts localhost");
        assert!(found.contains(name.trim()), "{network}: {found}");
        // Entries that the workload adds stay, also after the workspace is renamed.
        place.sh("echo '10.1.2.3 mine' >> /etc/hosts");
        place.client.put(200, &place.path(""), json!({"name": "Other"}));
        place.client.post(200, &place.path("/stop"), json!({}));
        let hosts = place.sh("getent hosts other mine && cat /etc/hosts /etc/hostname");
        assert!(hosts.contains("10.1.2.3 mine") && hosts.ends_with("other\n"), "{hosts}");
        assert!(!hosts.contains("my-box"), "{hosts}");
        let before = place.sh("stat -c %i /etc/hosts /etc/hostname");
        place.client.post(200, &place.path("/stop"), json!({}));
        assert_eq!(place.sh("stat -c %i /etc/hosts /etc/hostname"), before, "a correct file was rewritten");
        place.sh("rm -rf /etc/hosts /etc/hostname && ln -s /proc/version /etc/hosts");
        place.client.post(200, &place.path("/stop"), json!({}));
        assert!(place.sh("readlink /etc/hosts; cat /etc/hostname").ends_with("other\n"));
    }
}

#[test]
fn a_data_folder_can_be_moved() {
    for backend in [&[][..], &["--root-backend=copy"]] {
        let setup = seeded().args(backend);
        let server = setup.start();
        let place = Place::ready(&server, json!({"name": "moving", "skills": ["kit"], "distro": DISTRO}));
        let id = place.show()["id"].as_str().unwrap().to_owned();
        let owner = server.owner();
        owner.call("PUT", "/api/library/skill/kit", Some(&json!({"content": "# Kit\n"}))).expect(200);
        let host = owner.post(200, "/api/workspaces", json!({"name": "host", "skills": ["kit"]}));
        place.sh("echo mine > /root/precious; echo t > /tmp/t");
        let snapshot = owner.post(200, &format!("/api/workspaces/{id}/snapshots"), json!({"name": "s"}));
        let snapshot = snapshot["id"].as_str().unwrap().to_owned();
        place.sh("echo later > /root/precious");
        std::mem::forget(place);
        assert!(server.stop().success());
        let old = setup.data_dir().to_owned();
        let new = old.with_file_name("moved");
        std::fs::rename(&old, &new).unwrap();
        let named = crate::server::run(
            std::process::Command::new("grep")
                .args(["-rlF", "--include=*.json", old.to_str().unwrap()])
                .arg(new.join("workspaces"))
                .arg(new.join("images")),
            crate::procs::secs(60),
        );
        let own = named.stdout.lines().filter(|path| !path.contains("/files/") && !path.contains("/root/"));
        assert_eq!(own.collect::<Vec<_>>(), Vec::<&str>::new(), "files that contain the old path");
        let setup = setup.data(&new);
        let server = setup.start();
        let owner = server.owner();
        let url = format!("/api/workspaces/{id}");
        let shown = owner.get(200, &url);
        assert_eq!(shown["status"], "ready", "{shown}");
        assert!(shown["path"].as_str().unwrap().starts_with(new.to_str().unwrap()), "{shown}");
        let sh = |command: &str| {
            let reply = owner.post(200, &format!("{url}/exec"), json!({"command": command}));
            assert_eq!(reply["exit_code"], 0, "{command}: {reply}");
            reply["stdout"].as_str().unwrap().to_owned()
        };
        assert_eq!(sh("cat /root/precious /tmp/t"), "later\nt\n");
        owner.post(200, &format!("{url}/snapshots/{snapshot}/restore"), json!({}));
        assert_eq!(sh("cat /root/precious"), "mine\n");
        let clone = owner.post(200, &format!("{url}/clone"), json!({"name": "copy"}));
        let clone = format!("/api/workspaces/{}", clone["id"].as_str().unwrap());
        let reply = owner.post(200, &format!("{clone}/exec"), json!({"command": "cat /root/precious"}));
        assert_eq!(reply["stdout"], "mine\n", "{reply}");
        let files = owner.get(200, &format!("/api/workspaces/{}", host["id"].as_str().unwrap()));
        let files = std::path::PathBuf::from(files["path"].as_str().unwrap());
        crate::procs::wait_for("the agent configuration at the new path", crate::procs::secs(30), || {
            let text = std::fs::read_to_string(files.join("opencode.json")).ok()?;
            (!text.contains(old.to_str().unwrap())).then_some(())
        });
        for created in [url, clone] {
            owner.delete(200, &created);
        }
    }
}
