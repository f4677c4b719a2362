//! The choice of a container's image, and when the network is used for one: only on request, or if there is no image.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::fixture::{DISTRO, Place, seeded};
use crate::images::with_a_file_more;

/// An empty mirror that counts its requests.
fn mirror() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]);
            let _ =
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    (format!("http://{address}/debian"), asked)
}

#[test]
fn the_network_is_used_only_on_request() {
    let (mirror, asked) = mirror();
    let server = seeded()
        .arg(format!("--mirror=debian-bookworm={mirror}"))
        .arg(format!("--mirror=ubuntu-noble={mirror}"))
        .start();
    let owner = server.owner();
    for body in [json!({}), json!({"pull": "missing"}), json!({"pull": "never"})] {
        let place = Place::pending(&server, json!({"name": "quiet"}));
        place.client.post(200, &place.path("/build"), body);
        assert_eq!(place.settled()["status"], "ready");
    }
    let place = Place::ready(&server, json!({"name": "kept"}));
    place.sh("echo mine > /root/precious");
    let refused = |status, code: &str, body: Value| {
        place.client.refused(status, code, "POST", &place.path("/build"), Some(body))
    };
    let reply = refused(404, "image_not_found", json!({"distro": "noble", "rebuild": true, "pull": "never"}));
    assert!(reply["message"].as_str().unwrap().contains("berth image import ubuntu-noble"), "{reply}");
    refused(400, "invalid_payload", json!({"pull": "sometimes"}));
    refused(400, "invalid_payload", json!({"pull": true}));
    refused(409, "rebuild_required", json!({"pull": "always"}));
    let now = place.show();
    assert_eq!(
        (&now["status"], &now["distro"]),
        (&json!("ready"), &json!(DISTRO)),
        "a refused build changes nothing"
    );
    owner.refused(
        404,
        "image_not_found",
        "POST",
        "/api/images",
        Some(json!({"build": "noble", "pull": "never"})),
    );
    assert_eq!(asked.load(Ordering::SeqCst), 0, "the network was asked");

    // With `pull`, the network is used; the existing image and container stay if that fails.
    place.client.post(200, &place.path("/build"), json!({"pull": "always", "rebuild": true}));
    let done = place.settled();
    assert_eq!(done["status"], "error", "{done}");
    assert!(asked.load(Ordering::SeqCst) > 0, "{done}");
    place.build();
    assert_eq!(place.sh("cat /root/precious"), "mine\n");
    owner.get(200, &format!("/api/images/{DISTRO}"));
}

#[test]
fn templates_and_builds_select_an_image() {
    let (mirror, asked) = mirror();
    let server = seeded().arg(format!("--mirror=ubuntu-noble={mirror}")).start();
    let owner = server.owner();
    let put = |name: &str, body: Value| {
        owner.call("PUT", &format!("/api/library/workspace-template/{name}"), Some(&body))
    };
    put("t", json!({"image": "mine", "distro": "noble"})).expect(200);
    put("noble", json!({"distro": "noble"})).expect(200);
    let reply = put("x", json!({"image": "../x"})).expect(400).value();
    assert_eq!(reply["code"], "invalid_name");
    let row = owner.get(200, "/api/library/workspace-template");
    assert_eq!(row[1]["image"], "mine", "{row}");
    assert_eq!(owner.get(200, "/api/library/workspace-template/t")["image"], "mine");

    // The image does not exist yet: the refused request leaves no workspace.
    let before = owner.get(200, "/api/workspaces");
    let from = |template: &str, more: Value| {
        let mut body = json!({"name": "x", "template": template});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for body in [from("t", json!({})), from("noble", json!({"pull": "never"}))] {
        owner.refused(404, "image_not_found", "POST", "/api/workspaces", Some(body));
    }
    owner.refused(400, "invalid_payload", "POST", "/api/workspaces", Some(from("t", json!({"pull": "no"}))));
    assert_eq!(owner.get(200, "/api/workspaces"), before);

    with_a_file_more(&server, "mine");
    let create = |body: Value| {
        let created = owner.post(200, "/api/workspaces", body);
        let place = Place::of(&server, &created);
        assert_eq!(place.settled()["status"], "ready", "{created}");
        place
    };
    let place = create(from("t", json!({})));
    assert_eq!((&place.show()["image"], &place.show()["distro"]), (&json!("mine"), &json!("ubuntu-noble")));
    assert_eq!(place.sh("cat /usr/more"), "more");
    // A request with another distribution or image does not get the template's image.
    let other = create(from("t", json!({"distro": DISTRO})));
    assert_eq!(other.show()["image"], Value::Null);
    assert_eq!(other.sh("cat /usr/more || echo none"), "none\n");

    // A build changes the image of a container; its files change only with `rebuild`.
    for body in [json!({"image": "mine"}), json!({"distro": "mine"})] {
        let build = |more: Value| {
            let mut body = body.clone();
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Some(body)
        };
        let other = create(from("t", json!({"distro": DISTRO})));
        other.client.refused(409, "rebuild_required", "POST", &other.path("/build"), build(json!({})));
        let always = build(json!({"rebuild": true, "pull": "always"}));
        other.client.refused(400, "invalid_payload", "POST", &other.path("/build"), always);
        assert_eq!(other.show()["image"], Value::Null);
        other.client.post(200, &other.path("/build"), build(json!({"rebuild": true})).unwrap());
        let done = other.settled();
        assert_eq!((&done["status"], &done["image"]), (&json!("ready"), &json!("mine")), "{done}");
        assert_eq!(other.sh("cat /usr/more"), "more");
        // Afterwards a plain build keeps it.
        other.client.post(200, &other.path("/build"), body.clone());
        assert_eq!(other.settled()["status"], "ready");
    }
    other.client.refused(
        404,
        "image_not_found",
        "POST",
        &other.path("/build"),
        Some(json!({"image": "gone"})),
    );
    other.client.refused(
        400,
        "invalid_distro",
        "POST",
        &other.path("/build"),
        Some(json!({"distro": "gone"})),
    );
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
