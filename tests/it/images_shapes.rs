//! Archives of root file systems as they occur in practice: the system one folder down, padding after the compressed
//! data, every format of GNU tar.

use std::fs;
use std::process::Command;

use crate::procs::secs;
use crate::server::{Server, run};
use crate::tape::Tape;

const ARCHIVE: &[(&str, &str)] = &[("Content-Type", "application/octet-stream")];

fn import(server: &Server, name: &str, body: &[u8], status: u16) -> serde_json::Value {
    server
        .owner()
        .send("POST", &format!("/api/images?name={name}"), ARCHIVE, Some(body))
        .expect(status)
        .value()
}

/// `bin/sh` and two more files, below `top`.
fn system(tape: Tape, top: &str) -> Tape {
    tape.folder(top, 0o700)
        .folder(&format!("{top}/usr"), 0o755)
        .folder(&format!("{top}/usr/bin"), 0o755)
        .file(&format!("{top}/usr/bin/sh"), 0o755, b"#!")
        .symlink(&format!("{top}/bin"), "usr/bin")
        .file(&format!("{top}/etc/os-release"), 0o644, b"PRETTY_NAME=\"Below 1\"\n")
}

#[test]
fn a_system_one_folder_down_is_imported_from_there() {
    let server = Server::start();
    for (name, top) in [("lxd", "rootfs"), ("arch", "root.x86_64")] {
        let tape = system(
            Tape::default().file("metadata.yaml", 0o644, b"x").file("templates/a.tpl", 0o644, b"x"),
            top,
        );
        let reply = import(&server, name, &tape.end(), 201);
        assert_eq!(reply["os"], "Below 1", "{reply}");
        let root = server.data.join("images").join(reply["id"].as_str().unwrap()).join("root");
        assert!(root.join("usr/bin/sh").is_file() && !root.join("metadata.yaml").exists());
        assert_eq!(fs::read_link(root.join("bin")).unwrap().to_str(), Some("usr/bin"));
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&root).unwrap());
        assert_eq!(mode & 0o7777, 0o755, "every user may enter");
    }
    // An ambiguous folder is not chosen, and a link that leads out of the tree is not followed.
    let two = system(system(Tape::default(), "a"), "b");
    let reply = import(&server, "two", &two.end(), 400);
    assert!(reply["message"].as_str().unwrap().contains("(a, b)"), "{reply}");
    for link in ["/", "../../..", "/usr"] {
        let tape = Tape::default().symlink("rootfs", link).file("x", 0o644, b"x");
        assert_eq!(import(&server, "out", &tape.end(), 400)["code"], "invalid_image");
    }
    let deeper = system(Tape::default().folder("a", 0o755), "a/b");
    assert_eq!(import(&server, "deeper", &deeper.end(), 400)["code"], "invalid_image");
    // A system at the top is used, whatever folders are below it.
    let reply = import(&server, "top", &system(Tape::system(), "rootfs").end(), 201);
    let root = server.data.join("images").join(reply["id"].as_str().unwrap()).join("root");
    assert!(root.join("rootfs/usr/bin/sh").is_file());
}

#[test]
fn padding_after_compressed_data_is_accepted() {
    use std::io::Write as _;
    let server = Server::start();
    let plain = Tape::system().end();
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let whole = gzip(&plain);
    let members = [gzip(&plain[..700]), gzip(&[]), gzip(&plain[700..])].concat();
    for (name, body) in [
        ("plain", whole.clone()),
        ("one", [&whole[..], &[0]].concat()),
        ("tape", [&whole[..], &vec![0; 1 << 20]].concat()),
        ("members", [&members[..], &[0; 512]].concat()),
    ] {
        import(&server, name, &body, 201);
    }
    for (name, body) in [
        ("garbage", [&whole[..], b"garbage"].concat()),
        ("later", [&whole[..], &[0; 600], b"x"].concat()),
        ("cut", whole[..whole.len() - 4].to_vec()),
    ] {
        let reply = import(&server, name, &body, 400);
        assert_eq!(reply["code"], "invalid_image", "{name}: {reply}");
    }
}

#[test]
fn archives_of_gnu_tar_unpack_as_with_gnu_tar() {
    let server = Server::start();
    let scratch = server.scratch().path().to_owned();
    let make = "set -e; mkdir -p t/bin t/etc t/usr/share/$(printf 'd%.0s' $(seq 120))/deeper; cd t; printf x > bin/sh; chmod 4755 bin/sh; \
        ln bin/sh bin/ash; ln -s ../bin/sh usr/sh; printf 'a' > \"usr/share/with space and \u{fc}\"; \
        cd usr/share/d*/deeper; printf deep > $(printf 'f%.0s' $(seq 150)); cd ../../../..; truncate -s 1M usr/holes; printf end >> usr/holes; \
        mkdir -m 1777 tmp; mkdir -m 2755 usr/sgid; chown -R 0:0 .; chown 7:8 etc";
    let created = run(Command::new("bash").args(["-c", make]).current_dir(&scratch), secs(30));
    assert_eq!(created.code, Some(0), "{}", created.stderr);
    for (format, args) in [
        ("gnu", &["--format=gnu", "--sparse"][..]),
        ("pax", &["--format=pax", "--sparse"]),
        ("posix", &["--format=posix", "--xattrs"]),
        ("oldgnu", &["--format=oldgnu", "--sparse"]),
    ] {
        let archive = scratch.join(format!("{format}.tar"));
        let packed = Command::new("tar")
            .args(["-C", "t", "--sort=name", "-cf"])
            .arg(&archive)
            .args(args)
            .arg(".")
            .current_dir(&scratch)
            .status();
        assert!(packed.unwrap().success(), "{format}");
        let reply = import(&server, format, &fs::read(&archive).unwrap(), 201);
        let root = server.data.join("images").join(reply["id"].as_str().unwrap()).join("root");
        let reference = scratch.join(format!("{format}.d"));
        fs::create_dir(&reference).unwrap();
        let unpacked = Command::new("tar")
            .args(["--same-owner", "-xpf"])
            .arg(&archive)
            .arg("-C")
            .arg(&reference)
            .status();
        assert!(unpacked.unwrap().success(), "{format}");
        // Additions to an image are excluded from the list: folders of a system, files for name resolution.
        let list = "cd \"$1\" && find . -mindepth 1 ! -path './etc/*' ! -path ./etc ! -path ./var ! -path ./root ! -path ./proc ! -path ./sys \
            ! -path ./dev ! -path ./run -printf '%P %y %m %U %G %n %s %l\n' | grep -v ' d ' | LC_ALL=C sort; \
            find . -type f ! -path './etc/*' -exec sha256sum {} + | LC_ALL=C sort";
        let seen = |top: &std::path::Path| {
            run(Command::new("bash").args(["-c", list, "x"]).arg(top), secs(30)).stdout
        };
        assert_eq!(seen(&root), seen(&reference), "{format}");
    }
}
