//! A second process that swaps folders and files for links, as fast as it can, while files are uploaded, listed and
//! downloaded: no file outside of the workspace is written, shown or removed.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::procs::{secs, wait_for};
use crate::scratch::Scratch;
use crate::server::Setup;
use crate::trays::{OUTBOX, Trays, id_of};

pub const SECRET: &str = "the-secret-outside-77ab";

/// Swaps the entries named by its arguments for links to look-alikes outside, and back, until it is killed. Prints one
/// line when it has begun.
const SWAPPER: &str = r#"
import os, sys
outside, paths = sys.argv[1], sys.argv[2:]
rounds = 0
while True:
    for path in paths:
        try:
            os.rename(path, path + ".real")
            os.symlink(os.path.join(outside, os.path.basename(path)), path)
            os.unlink(path)
        except OSError:
            pass
        try:
            # What was made at its place meanwhile goes first.
            if os.path.isdir(path): os.rename(path, path + ".made.%d" % rounds)
            os.rename(path + ".real", path)
        except OSError:
            pass
    rounds += 1
    if rounds == 10: print("swapping", flush=True)
"#;

pub struct Swapper(Child);

impl Swapper {
    pub fn start(outside: &str, paths: &[String]) -> Swapper {
        let mut command = Command::new("python3");
        command.args(["-c", SWAPPER, outside]).args(paths).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = [0; 8];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut output).unwrap();
        Swapper(child)
    }

    #[track_caller]
    pub fn still_swaps(&mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "the swapper has exited by itself");
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The targets outside: a look-alike of every swapped entry, with a secret in each file.
fn outside() -> (Scratch, String, Vec<String>) {
    let scratch = Scratch::new();
    for file in [
        "sub/file",
        "sub/deep/file",
        "file",
        "inbox/sub/file",
        "inbox/file",
        "outbox/sub/file",
        "outbox/file",
    ] {
        scratch.file(&format!("outside/{file}"), SECRET);
        scratch.file(&format!("outside/openwork/{file}"), SECRET);
    }
    let path = scratch.path().join("outside").to_str().unwrap().to_owned();
    let before = look(&path);
    (scratch, path, before)
}

pub fn look(folder: &str) -> Vec<String> {
    let listed = Command::new("find").args([folder, "-printf", "%p %y %s %T@ %C@\\n"]).output().unwrap();
    let mut lines: Vec<_> = String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn folders_swapped_for_links_are_never_followed() {
    let trays = Trays::new(Setup::new().arg("--approval=auto"));
    let (_scratch, outside, before) = outside();
    let base = trays.work.join(".opencode/openwork");
    for tray in ["inbox", "outbox"] {
        fs::create_dir_all(base.join(tray).join("sub/deep")).unwrap();
        for file in ["sub/file", "sub/deep/file", "file"] {
            fs::write(base.join(tray).join(file), "inside").unwrap();
        }
    }
    let path = |rel: &str| base.join(rel).to_str().unwrap().to_owned();
    for swapped in [
        vec![path("inbox/sub"), path("outbox/sub")],
        vec![path("inbox/sub/deep"), path("outbox/sub/deep"), path("outbox/file"), path("inbox/file")],
        vec![path("inbox"), path("outbox")],
        vec![trays.work.join(".opencode/openwork").to_str().unwrap().to_owned()],
    ] {
        let mut swapper = Swapper::start(&outside, &swapped);
        let (mut listed, mut fetched, mut refused) = (0, 0, 0);
        let end = Instant::now() + Duration::from_millis(1500);
        let check = |reply: &crate::client::Reply| {
            assert!(!reply.text().contains(SECRET), "{swapped:?}: {reply}");
            assert!(reply.status < 500 || reply.value()["code"] == "busy", "{swapped:?}: {reply}");
        };
        while Instant::now() < end {
            thread::scope(|scope| {
                scope.spawn(|| {
                    for path in ["sub/file", "sub/deep/new", "file"] {
                        let reply =
                            trays.upload(&format!("/inbox?path={path}"), &[("name=file; filename=x", b"up")]);
                        check(&reply);
                    }
                });
                let client = trays.server.owner();
                for path in ["sub/file", "sub/deep/file", "file"] {
                    for tray in ["artifacts", "inbox"] {
                        let reply =
                            client.call("GET", &format!("{}/{tray}/{}", trays.path, id_of(path)), None);
                        check(&reply);
                        if reply.status == 200 { fetched += 1 } else { refused += 1 }
                    }
                }
                for tray in ["artifacts", "inbox"] {
                    let reply = client.call("GET", &format!("{}/{tray}", trays.path), None);
                    check(&reply);
                    if reply.status == 200 {
                        let items = reply.value()["items"].as_array().unwrap().clone();
                        let size = json!(SECRET.len());
                        assert!(
                            items.iter().all(|item: &Value| item["size"] != size),
                            "{swapped:?}: {items:?}"
                        );
                        listed += items.len();
                    }
                }
            });
        }
        swapper.still_swaps();
        drop(swapper);
        assert!(fetched > 0 && refused > 0 && listed > 0, "{swapped:?}: {fetched} {refused} {listed}");
        assert_eq!(look(&outside), before, "{swapped:?}: something outside was changed");
        // Restored to the original state.
        for path in &swapped {
            let _ = fs::remove_file(path);
            let _ = fs::rename(format!("{path}.real"), path);
        }
    }
    // No abandoned upload blocks the next one.
    wait_for("an upload to work again", secs(20), || (trays.put("last", b"1").status == 200).then_some(()));
}

#[test]
fn artifacts_with_names_that_are_not_utf_8_can_be_downloaded() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let trays = Trays::auto();
    let outbox = trays.work.join(OUTBOX);
    let folder = outbox.join(OsStr::from_bytes(b"d\xe9"));
    fs::create_dir_all(&folder).unwrap();
    for name in [&b"caf\xe9.txt"[..], b"caf\xe8.txt", b"\xff", b"a\nb"] {
        fs::write(folder.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let reply = trays.client().get(200, &format!("{}/artifacts", trays.path));
    let items = reply["items"].as_array().unwrap();
    assert_eq!(items.len(), 4, "{reply}");
    let mut bodies = Vec::new();
    for item in items {
        assert!(item["path"].as_str().unwrap().starts_with("d\u{fffd}/"), "{item}");
        let path = format!("{}/artifacts/{}", trays.path, item["id"].as_str().unwrap());
        bodies.push(trays.client().call("GET", &path, None).expect(200).body);
    }
    bodies.sort();
    assert_eq!(bodies, [&b"a\nb"[..], b"caf\xe8.txt", b"caf\xe9.txt", b"\xff"]);
    // The id of a missing file, and ids that would lead elsewhere.
    trays.client().refused(404, "artifact_not_found", "GET", &format!("{}/artifacts/_w", trays.path), None);
}
