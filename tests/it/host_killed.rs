//! Messages of the `berth host` commands after a host was killed.

use crate::host_command::Place;
use crate::procs::{self, secs, wait_for};

#[test]
fn commands_report_a_killed_host() {
    let place = Place::misbehaving("");
    let (mut running, _) = place.start(&[]);
    procs::kill(running.child.id());
    // A zombie until it is reaped, and not a running host either.
    wait_for("the host to exit", secs(10), || (!procs::alive(running.child.id())).then_some(()));
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
