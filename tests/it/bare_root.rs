//! The plain binary in a root that has nothing of what berth can use: `bare_root.sh` beside this file, with the tests' base
//! image as the root. `BERTH_PREVIOUS` names the binary of an earlier release to upgrade from.

use std::process::Command;

use crate::fixture;
use crate::procs::secs;
use crate::scratch::Scratch;
use crate::server::{BINARY, run};

#[test]
fn the_plain_binary_works_is_upgraded_restored_and_removed_in_a_bare_root() {
    let scratch = Scratch::new();
    let data = scratch.folder("data");
    fixture::copy_image(&data);
    let mut script = Command::new("unshare");
    script.args([
        "--mount",
        "--pid",
        "--net",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation=private",
    ]);
    script.args(["bash", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/bare_root.sh")]);
    script.arg(fixture::image_root(&data)).arg(BINARY);
    script.args(std::env::var_os("BERTH_PREVIOUS"));
    let ended = run(&mut script, secs(120));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.ends_with(" checks\n"), "{ended:?}");
}
