//! Images in the formats of Docker and registries: a layout that the test writes by the specification, that skopeo
//! accepts and converts, and that umoci unpacks for comparison.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::{Ended, berth, run};
use crate::tape::Tape;

fn sh(folder: &Path, line: &str) -> Ended {
    run(Command::new("sh").args(["-c", line]).current_dir(folder), secs(60))
}

#[track_caller]
fn must(folder: &Path, line: &str) -> String {
    let reply = sh(folder, line);
    assert_eq!(reply.code, Some(0), "{line}: {}{}", reply.stdout, reply.stderr);
    reply.stdout
}

fn image(scratch: &Scratch, args: &[&str]) -> Ended {
    let data = scratch.path().join("data");
    let args: Vec<&str> = ["image"].iter().chain(args).copied().collect();
    berth(scratch, &args, &[("BERTH_DATA_DIR", data.to_str().unwrap())])
}

#[track_caller]
fn import(scratch: &Scratch, name: &str, source: &Path) -> String {
    let reply = image(scratch, &["import", name, source.to_str().unwrap()]);
    assert_eq!(reply.code, Some(0), "{}{}", reply.stdout, reply.stderr);
    reply.stdout.split_whitespace().next().unwrap().to_owned()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// An OCI layout.
struct Layout(PathBuf);

impl Layout {
    fn new(path: PathBuf) -> Layout {
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout(path)
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.0.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// The descriptor of an image with these layers, each with a different compression.
    fn image(&self, layers: &[Vec<u8>], architecture: &str) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": layers.iter().map(|_| json!({"created_by": "a test"})).collect::<Vec<_>>(),
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .enumerate()
            .map(|(number, layer)| match number % 2 {
                0 => self.blob("application/vnd.oci.image.layer.v1.tar", layer),
                _ => {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(layer).unwrap();
                    self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip.finish().unwrap())
                }
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": layers,
        });
        let mut descriptor =
            self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor
    }

    fn index(&self, manifests: &[(Option<&str>, Value)]) {
        let manifests: Vec<Value> = manifests
            .iter()
            .map(|(tag, descriptor)| {
                let mut descriptor = descriptor.clone();
                if let Some(tag) = tag {
                    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
                }
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }
}

/// A system in four layers with every operation of layers.
fn layers() -> Vec<Vec<u8>> {
    let base = Tape::default()
        .folder("bin", 0o755)
        .file("bin/sh", 0o755, b"#!")
        .folder("etc", 0o755)
        .file("etc/kept", 0o644, b"kept")
        .file("etc/gone", 0o644, b"gone")
        .file("etc/changed", 0o644, b"old")
        .folder("opt", 0o755)
        .folder("opt/old", 0o755)
        .file("opt/old/file", 0o644, b"x")
        .folder("srv", 0o755)
        .file("srv/below", 0o644, b"hidden")
        .folder("srv/deep", 0o755)
        .file("srv/deep/below", 0o644, b"hidden")
        .folder("turn", 0o755)
        .file("turn/inside", 0o644, b"x")
        .folder("usr", 0o755)
        .folder("usr/lib", 0o755)
        .file("usr/lib/a", 0o644, b"a");
    let second = Tape::default()
        .folder("etc", 0o755)
        .file("etc/.wh.gone", 0o644, b"")
        .file("etc/.wh.never-there", 0o644, b"")
        .file("etc/changed", 0o4755, b"new")
        .file("opt/.wh.old", 0o644, b"")
        .file("turn", 0o644, b"a file now");
    let third = Tape::default()
        .folder("srv", 0o750)
        .file("srv/above", 0o644, b"stays")
        // The whiteout may come after the entry that it keeps.
        .file("srv/.wh..wh..opq", 0o644, b"")
        .folder("opt/old", 0o700)
        .file("opt/old/again", 0o644, b"y")
        .link("usr/lib/b", "usr/lib/a")
        .special("etc/fifo", EntryType::Fifo);
    let fourth = Tape::default().file("usr/lib/.wh.a", 0o644, b"").symlink("etc/link", "/etc/kept");
    [base, second, third, fourth].map(Tape::end).to_vec()
}

#[test]
fn layouts_and_docker_archives_give_the_same_image() {
    let scratch = Scratch::new();
    let here = scratch.path();
    let layout = Layout::new(here.join("layout"));
    layout.index(&[(Some("v1"), layout.image(&layers(), "amd64"))]);
    // The layout is valid: skopeo reads it, and converts it to the format of `docker save`.
    let reply = must(here, "skopeo inspect oci:layout:v1");
    assert_eq!(serde_json::from_str::<Value>(&reply).unwrap()["Layers"].as_array().unwrap().len(), 4);
    must(here, "skopeo --insecure-policy copy -q oci:layout:v1 docker-archive:docker.tar:berth/test:v1");
    must(here, "skopeo --insecure-policy copy -q oci:layout:v1 oci-archive:oci.tar:v1");
    must(here, "gzip -k docker.tar && zstd -q docker.tar -o docker.tar.zst");
    let id = import(&scratch, "layout", &here.join("layout"));
    for other in ["docker.tar", "docker.tar.gz", "docker.tar.zst", "oci.tar"] {
        assert_eq!(import(&scratch, "other", &here.join(other)), id, "{other}");
    }
    must(here, "mkdir docker && tar -C docker -xf docker.tar");
    assert_eq!(import(&scratch, "other", &here.join("docker")), id, "an unpacked docker archive");
    // Its tree equals the one that umoci unpacks.
    must(here, "umoci unpack --image layout:v1 bundle");
    assert_eq!(import(&scratch, "umoci", &here.join("bundle/rootfs")), id);
    let root = here.join("data/images").join(&id).join("root");
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    for (path, text) in [
        ("etc/kept", Some("kept")),
        ("etc/changed", Some("new")),
        ("etc/link", Some("kept")),
        ("srv/above", Some("stays")),
        ("opt/old/again", Some("y")),
        ("usr/lib/b", Some("a")),
        ("turn", Some("a file now")),
        ("etc/gone", None),
        ("srv/below", None),
        ("srv/deep/below", None),
        ("opt/old/file", None),
        ("usr/lib/a", None),
        ("etc/.wh.gone", None),
        ("etc/fifo", None),
    ] {
        if path == "etc/link" {
            assert_eq!(fs::read_link(root.join(path)).unwrap(), Path::new("/etc/kept"));
            continue;
        }
        assert_eq!(read(path).as_deref(), text, "{path}");
    }
    let remaining: Vec<_> =
        fs::read_dir(root.parent().unwrap()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!remaining.contains(&"parts".into()), "{remaining:?}");
    assert_eq!(image(&scratch, &["verify"]).code, Some(0));
}

#[test]
fn modified_images_and_images_of_other_platforms_are_refused() {
    let scratch = Scratch::new();
    let here = scratch.path();
    let layout = Layout::new(here.join("layout"));
    let good = layout.image(&layers(), "amd64");
    let refused = |what: &str, source: &str, more: &[&str], words: &str| {
        let path = here.join(source);
        let args: Vec<&str> = ["import", "x", path.to_str().unwrap()].iter().chain(more).copied().collect();
        let reply = image(&scratch, &args);
        assert_eq!(reply.code, Some(1), "{what}: {}", reply.stdout);
        assert!(reply.stderr.contains(words), "{what}: {}", reply.stderr);
        let remaining: Vec<_> =
            fs::read_dir(here.join("data/images")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(remaining.len(), 2, "{what}: {remaining:?}");
    };
    layout.index(&[(Some("arm"), layout.image(&layers(), "arm64"))]);
    refused("another machine's", "layout", &[], "no image for linux on amd64");
    layout.index(&[(Some("a"), good.clone()), (Some("b"), layout.image(&layers()[..1], "amd64"))]);
    refused("two images", "layout", &[], "several images; choose one by its tag (reference): a, b");
    refused("a third", "layout", &["--reference", "c"], "does not contain the requested image, but a, b");
    let reply = image(&scratch, &["import", "a", here.join("layout").to_str().unwrap(), "--reference=a"]);
    assert_eq!(reply.code, Some(0), "{}", reply.stderr);
    assert_eq!(image(&scratch, &["remove", "a"]).code, Some(0));

    // Several platforms under one tag: an index in the index.
    let inner = json!({"schemaVersion": 2, "manifests": [layout.image(&layers(), "arm64"), good]});
    let inner = layout.blob("application/vnd.oci.image.index.v1+json", inner.to_string().as_bytes());
    layout.index(&[(Some("all"), inner)]);
    import(&scratch, "all", &here.join("layout"));
    assert_eq!(image(&scratch, &["remove", "all"]).code, Some(0));

    layout.index(&[(None, good.clone())]);
    let blob = |digest: &Value| layout.0.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let manifest: Value = serde_json::from_slice(&fs::read(blob(&good["digest"])).unwrap()).unwrap();
    for (what, digest) in [
        ("manifest", &good["digest"]),
        ("configuration", &manifest["config"]["digest"]),
        ("layer", &manifest["layers"][0]["digest"]),
        ("compressed layer", &manifest["layers"][1]["digest"]),
    ] {
        let path = blob(digest);
        let stored = fs::read(&path).unwrap();
        let mut changed = stored.clone();
        match what {
            // Changes that the archive's own checks do not detect: in the content of a file, in the time of a gzip
            // header.
            "layer" => changed[512 * 2] = b'?',
            "compressed layer" => changed[4] ^= 1,
            _ => changed.push(b' '),
        }
        fs::write(&path, changed).unwrap();
        refused(what, "layout", &[], "has another digest");
        fs::remove_file(&path).unwrap();
        refused(what, "layout", &[], "lacks");
        fs::write(&path, stored).unwrap();
    }
    // Names that lead out of the layout.
    let secret = scratch.file("secret", "x");
    let evil = json!([{"Config": "../secret", "RepoTags": null, "Layers": ["../../secret"]}]);
    let folder = scratch.folder("evil");
    fs::write(folder.join("manifest.json"), evil.to_string()).unwrap();
    refused("a name that leads out", "evil", &[], "lacks its configuration");
    std::os::unix::fs::symlink(&secret, folder.join("link")).unwrap();
    let evil = json!([{"Config": "link", "RepoTags": null, "Layers": []}]);
    fs::write(folder.join("manifest.json"), evil.to_string()).unwrap();
    refused("a link that leads out", "evil", &[], "lacks its configuration");
    let layer = Tape::system().file("../evil", 0o644, b"x").end();
    layout.index(&[(None, layout.image(&[layer], "amd64"))]);
    refused("a layer that leads out", "layout", &[], "leads out");
    let layer = Tape::system().file(".wh...", 0o644, b"").end();
    layout.index(&[(None, layout.image(&[layer], "amd64"))]);
    refused("a whiteout that leads out", "layout", &[], "leads out");
}
