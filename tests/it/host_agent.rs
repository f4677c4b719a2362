//! What the agent of an OpenCode on the host can do with everything that is in its environment.

use std::fs;

use serde_json::json;

use crate::host_command::{Place, client};
use crate::opencode_serve::program;
use crate::procs::{secs, wait_for};

#[test]
fn nothing_in_its_environment_opens_the_approvals() {
    let place = Place::new(&program("opencode-new"));
    let (_running, document) = place.start(&["--approval=auto"]);
    let url = document["openwork"]["baseUrl"].as_str().unwrap();
    let owner = client(&document["openwork"]["baseUrl"], document["openwork"]["hostToken"].as_str().unwrap());
    let mount = format!("/w/{}/opencode", document["workspaceId"].as_str().unwrap());
    let session = owner.post(200, &format!("{mount}/session"), json!({}));
    let work = place.scratch.path().join("work");
    // In a file: OpenCode has its shell expand the command once more.
    let script = format!(
        "env > variables\nfor value in $(sed 's/^[^=]*=//' variables | sort -u) opencode:$OPENCODE_SERVER_PASSWORD; do\n\
         for header in \"Authorization: Bearer $value\" \"X-OpenWork-Host-Token: $value\"; do\n\
         curl -s -o answer -w '%{{http_code}}\\n' -H \"$header\" {url}/approvals\ndone\ndone > codes\necho done > seen\n"
    );
    fs::write(work.join("ask.sh"), script).unwrap();
    let body =
        json!({"agent": "build", "command": "sh ask.sh", "model": {"providerID": "none", "modelID": "none"}});
    owner.call("POST", &format!("{mount}/session/{}/shell", session["id"].as_str().unwrap()), Some(&body));
    wait_for("the shell to have asked", secs(120), || {
        fs::read_to_string(work.join("seen")).ok().filter(|text| !text.is_empty())
    });
    let codes = fs::read_to_string(work.join("codes")).unwrap();
    let variables = fs::read_to_string(work.join("variables")).unwrap();
    assert!(variables.contains("OPENCODE_SERVER_PASSWORD="), "{variables}");
    assert!(codes.lines().count() >= 10 && codes.lines().all(|code| code == "401"), "{codes}{variables}");
    owner.get(200, "/approvals");
}
