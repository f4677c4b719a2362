//! The format number of the data folder: recorded at the first start, absent in older folders, and checked by every
//! command: a folder of a newer version is refused before anything in it changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::scratch::Scratch;
use crate::server::{self, Setup, berth};

/// Every file below a folder with its content and modification time.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            if meta.is_dir() {
                folders.push(path.clone());
            }
            let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            found.insert(path, (content, meta.modified().unwrap()));
        }
    }
    found
}

#[test]
fn a_newer_data_folder_is_refused_unchanged_by_every_command() {
    let setup = Setup::new();
    setup.start().stop();
    let data = setup.data_dir();
    assert_eq!(server::read(data.join("format")), "1\n");
    // A folder of a version that did not write the file.
    fs::remove_file(data.join("format")).unwrap();
    setup.start().stop();
    assert_eq!(server::read(data.join("format")), "1\n");

    fs::write(data.join("format"), "2\n").unwrap();
    let before = everything(data);
    let refused = setup.run();
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(
        refused.stderr.contains("data format 2") && refused.stderr.contains("a newer berth wrote"),
        "{refused:?}"
    );
    let (flag, file) = (format!("--data-dir={}", data.display()), data.join("../copy"));
    let file = file.to_str().unwrap();
    for words in [
        &["doctor"][..],
        &["token", "show"],
        &["token", "make"],
        &["image", "list"],
        &["bundle", file],
        &["bundle", "--restore", file],
        &["backup", file],
        &["status"],
        &["approvals", "list"],
        &["host", "status"],
        &["host", "--opencode-bin=/bin/true"],
        &["daemon", "status"],
        &["workspace", "list"],
    ] {
        let refused = berth(setup.scratch(), &[words, &[&flag]].concat(), &[]);
        assert_eq!(refused.code, Some(3), "{words:?}: {refused:?}");
    }
    assert!(everything(data) == before, "a file was changed");
    assert!(!Path::new(file).exists());

    // A damaged file is not mistaken for a version.
    fs::write(data.join("format"), "newest\n").unwrap();
    let damaged = setup.run();
    assert_eq!(damaged.code, Some(2), "{damaged:?}");
    assert!(damaged.stderr.contains("'newest' is not the version of a data folder"), "{damaged:?}");
}

#[test]
fn state_of_a_newer_host_is_refused() {
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    scratch.file("data/host/state.json", r#"{"version": 2, "process": {"pid": 1, "start": 1}}"#);
    let flag = format!("--data-dir={}", data.display());
    for verb in ["status", "stop"] {
        let refused = berth(&scratch, &["host", verb, &flag], &[]);
        assert_eq!(refused.code, Some(3), "{verb}: {refused:?}");
        assert!(refused.stderr.contains("state.json"), "{refused:?}");
    }
}
