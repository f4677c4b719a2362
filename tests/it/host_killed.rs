//! What the commands of `berth host` say about a host that was killed.

use crate::host_command::Place;
use crate::procs::{self, secs, wait_for};

#[test]
fn a_killed_host_is_said_to_have_left_something() {
    let place = Place::misbehaving("");
    let (mut running, _) = place.start(&[]);
    procs::kill(running.child.id());
    // It is a zombie as long as nobody has waited for it, and no running host either.
    wait_for("its end", secs(10), || (!procs::alive(running.child.id())).then_some(()));
    for command in ["status", "stop", "connect"] {
        let ended = place.run(&[command]);
        assert!(ended.code == Some(1) && ended.stderr.contains("was killed"), "{ended:?}");
    }
    running.child.wait().unwrap();
    for command in ["status", "stop", "connect"] {
        let ended = place.run(&[command]);
        assert!(ended.code == Some(1) && ended.stderr.contains("was killed"), "{ended:?}");
    }
    let (_again, _) = place.start(&[]);
    assert_eq!(place.run(&["stop"]).code, Some(0));
}
