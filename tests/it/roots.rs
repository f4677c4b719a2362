//! Roots: layered, with shared blocks, or copied; all follow the same rules: their view from outside, their state
//! after the server ends, snapshots, clones.

use std::fs;

use serde_json::{Value, json};

use crate::fixture::{Place, on_each_backend};
use crate::procs::{self, secs, wait_for};

fn debug(place: &Place<'_>) -> Value {
    place.client.get(200, &place.path("/debug"))
}

fn folder(debug: &Value, name: &str) -> u64 {
    let all = debug["directories"].as_array().unwrap();
    all.iter().find(|folder| folder["path"] == name).unwrap()["file_count"].as_u64().unwrap()
}

#[test]
fn every_kind_of_root_is_created_used_shown_and_deleted() {
    on_each_backend(|server, way| {
        let script = "#!/bin/sh\necho from init; echo made > /root/made\n";
        let place = Place::ready(server, json!({"name": "one", "init_script": script}));
        let reply = debug(&place);
        assert_eq!((&reply["root_kind"], &reply["path_exists"]), (&json!(way), &json!(true)), "{reply}");
        assert_eq!(folder(&reply, "root"), folder(&debug(&place), "root"));
        assert!(place.init_log().contains("from init"));

        // Changed from inside, visible from outside, whether or not the container is running.
        let before = folder(&debug(&place), "root");
        place.sh("echo x > /root/new; rm /etc/hostname 2>/dev/null; chown 33:33 /root/new; sync");
        assert_eq!(folder(&debug(&place), "root"), before + 1);
        place.client.post(200, &place.path("/stop"), json!({}));
        assert_eq!(folder(&debug(&place), "root"), before + 1);
        assert!(place.init_log().contains("from init"));
        assert_eq!(
            place.sh("cat /root/new /root/made; stat -c %u:%g /root/new /etc/passwd /"),
            "x\nmade\n33:33\n0:0\n0:0\n"
        );

        // The data folder has no mount that is visible on the host.
        assert!(procs::mounts_below(&server.data).is_empty(), "{:?}", procs::mounts_below(&server.data));
        let folder = place.root.parent().unwrap().to_owned();
        place.delete();
        assert!(!folder.exists());
        wait_for("its layers to be removed", secs(10), || {
            let remaining = fs::read_dir(server.data.join("layers")).unwrap().flatten();
            let remaining =
                remaining.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count();
            (remaining == 0).then_some(())
        });
    });
}
