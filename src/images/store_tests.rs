//! Tests of the store: migration, pointers, holds, removal, and crash recovery.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::store::file::write_atomic;
use crate::store::scratch::TestFolder;

fn open(dir: &Path) -> Images {
    Images::open(&dir.join("images"), PackageSources::default(), Cgroups::take("berth-test-images")).unwrap()
}

/// Creates an image in the layout of an older version.
fn old_image(dir: &Path, word: &str) {
    let root = dir.join("images/debian-bookworm");
    for folder in ["etc", "dev", "var/lib/apt/lists", "usr"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    let release = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_CODENAME=bookworm\n";
    write_atomic(&root.join("etc/os-release"), release.as_bytes(), 0o644).unwrap();
    write_atomic(&root.join("usr/word"), word.as_bytes(), 0o4755).unwrap();
    let device = rustix::fs::makedev(1, 3);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, root.join("usr/null"), kind, rustix::fs::Mode::RUSR, device)
        .unwrap();
}

fn entries(dir: &Path) -> Vec<String> {
    names_in(&dir.join("images")).unwrap()
}

#[test]
fn images_of_older_versions_are_converted() {
    let dir = TestFolder::new();
    old_image(&dir, "one");
    let images = open(&dir);
    let image = images.find("debian-bookworm").unwrap();
    assert_eq!(std::fs::read(image.root.join("usr/word")).unwrap(), b"one");
    assert!(!image.root.join("usr/null").exists(), "a device was kept");
    let listing = std::fs::read(image.root.with_file_name("listing")).unwrap();
    use sha2::Digest as _;
    assert_eq!(crate::base::hex::encode(&sha2::Sha256::digest(&listing)), image.id.as_str());
    let shown = images.show(&image.id).unwrap();
    assert_eq!(shown.record.os.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    assert_eq!(shown.names, [ImageName::of(Distro::DebianBookworm)]);
    assert_eq!(images.find(image.id.short()).unwrap().id, image.id);
    let cancel = Cancel::new().unwrap();
    assert!(images.verify(&image.id, &cancel).unwrap().ok);
    write_atomic(&image.root.join("usr/word"), b"two", 0o755).unwrap();
    let damaged = images.verify(&image.id, &cancel).unwrap();
    assert!(!damaged.ok && damaged.differences.len() == 2, "{damaged:?}");
    assert!(damaged.differences[0].starts_with("- f 4755 0 0 3 "), "{damaged:?}");
    assert!(damaged.differences[1].starts_with("+ f 0755 0 0 3 "), "{damaged:?}");
    write_atomic(&image.root.join("usr/word"), b"one", 0o4755).unwrap();
    assert!(images.verify(&image.id, &cancel).unwrap().ok);
    assert!(images.find(&image.id.as_str()[..5]).is_err(), "five digits are too few");
    // The same content gives the same image. Other content gives another image, and the name points to the newest
    // image.
    drop(images);
    old_image(&dir, "one");
    let images = open(&dir);
    assert_eq!(images.list().unwrap().len(), 1);
    old_image(&dir, "two");
    let images = open(&dir);
    assert_eq!(images.list().unwrap().len(), 2);
    assert_ne!(images.find("debian-bookworm").unwrap().id, image.id);
    assert!(images.show(&image.id).unwrap().names.is_empty());
}

#[test]
fn images_damaged_by_a_power_failure_are_discarded() {
    let dir = TestFolder::new();
    old_image(&dir, "one");
    let images = open(&dir);
    let id = images.find("debian-bookworm").unwrap().id.clone();
    let note = dir.join("images").join(id.as_str()).join(UNSYNCED);
    write_atomic(&note, b"another boot", 0o600).unwrap();
    assert!(images.find("debian-bookworm").is_ok() && !note.exists(), "it was whole");
    write_atomic(&note, b"another boot", 0o600).unwrap();
    write_atomic(&dir.join("images").join(id.as_str()).join("root/usr/word"), b"", 0o4755).unwrap();
    assert_eq!(images.find("debian-bookworm").unwrap_err().code(), Code::ImageNotFound);
    drop(open(&dir));
    assert_eq!(entries(&dir), [".lock", "names"]);
}

#[test]
fn held_images_are_not_removed() {
    let dir = TestFolder::new();
    old_image(&dir, "one");
    let images = open(&dir);
    let image = images.find("debian-bookworm").unwrap();
    let id = image.id.clone();
    assert_eq!(images.remove(&id).unwrap_err().code(), Code::ImageInUse, "while it is read");
    images.hold(&image, "workspace-1").unwrap();
    images.hold(&image, "workspace-1").unwrap();
    drop(image);
    let refused = images.remove(&id).unwrap_err();
    assert_eq!(refused.code(), Code::ImageInUse);
    assert_eq!(refused.body()["details"]["held_by"], serde_json::json!(["workspace-1"]));
    drop(images);
    let images = open(&dir);
    images.retain_holders(|holder| holder == "workspace-1").unwrap();
    assert_eq!(images.show(&id).unwrap().held_by, ["workspace-1"]);
    images.retain_holders(|_| false).unwrap();
    images.release(&id, "workspace-1").unwrap();
    assert!(images.hold(&images.get(&id).unwrap(), "../x").is_err());
    images.remove(&id).unwrap();
    assert_eq!(images.remove(&id).unwrap_err().code(), Code::ImageNotFound);
    assert!(images.by_name(&ImageName::of(Distro::DebianBookworm)).unwrap().is_none());
    assert_eq!(entries(&dir), [".lock", "names"]);
    let mut log = BuildLog::create(&dir.join("log")).unwrap();
    let never = images.base(Distro::DebianBookworm, Pull::Never, &mut log, &Cancel::new().unwrap());
    assert_eq!(never.unwrap_err().code(), Code::ImageNotFound);
}

#[test]
fn remains_of_crashes_are_removed_but_work_in_progress_is_kept() {
    let dir = TestFolder::new();
    let images = open(&dir);
    let staging = Staging::new(&images.folder).unwrap();
    std::fs::create_dir_all(images.folder.join(".new-dead/root/usr")).unwrap();
    std::fs::create_dir_all(images.folder.join(".gone-dead/root")).unwrap();
    write_atomic(&images.folder.join(".making-x"), b"", 0o600).unwrap();
    drop(open(&dir));
    let name = staging.folder().file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(entries(&dir), [".lock".to_owned(), name, "names".to_owned()]);
    drop(staging);
    assert_eq!(entries(&dir), [".lock", "names"]);
}
