//! Output of runs on disk: a window per run, a total limit for which the oldest output is removed, and a full disk.
//! (11)

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use crate::diskfull::SmallDisk;
use crate::events::Events;
use crate::fixture::Place;
use crate::procs::{secs, wait_for};
use crate::runs::{ended, output, start};
use crate::server::Setup;

fn on_disk(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap().flatten();
    files.map(|file| file.metadata().unwrap().blocks() * 512).sum()
}

fn folder(place: &Place<'_>, run: &str) -> std::path::PathBuf {
    place.server.data.join("runs").join(run.rsplit('/').next().unwrap())
}

/// The output of `seq 1 1000000`.
fn numbers() -> String {
    (1..=1_000_000).map(|n| format!("{n}\n")).collect()
}

#[test]
fn offsets_stay_valid_when_the_window_moves() {
    let server = Setup::new().arg("--run-output-limit=1048576").start();
    let place = Place::host(&server);
    let run = start(&place, json!({"command": "seq 1 1000000; echo err >&2"}));
    let response = ended(&place, &run);
    let all = numbers();
    assert_eq!((&response["stdout_bytes"], &response["truncated"]), (&json!(all.len()), &json!(true)));
    let begin = response["stdout_start"].as_u64().unwrap() as usize;
    let stored = all.len() - begin;
    assert!((15 << 16..=1 << 20).contains(&stored), "{stored} bytes are kept");
    let bytes = on_disk(&folder(&place, &run));
    assert!(bytes < (1 << 20) + (64 << 10), "{bytes} bytes on disk");
    let reply = output(&place, &run, "?offset=5");
    assert!(reply.text() == all[begin..], "the bytes at their offsets");
    assert_eq!(reply.header("x-offset"), Some(begin.to_string().as_str()));
    assert_eq!(reply.header("x-missed-bytes"), Some((begin - 5).to_string().as_str()));
    assert_eq!(output(&place, &run, "?offset=-8").text(), "1000000\n");
    let both = output(&place, &run, "?stream=both");
    assert!(both.text() == format!("{}err\n", &all[begin..]));
    assert_eq!(both.header("x-missed-bytes"), Some(begin.to_string().as_str()));
    // A slow follower receives the number of bytes that it missed.
    let mut events = Events::follow(&server, &run, Some("7:0"));
    let missed = events.wait("missed");
    assert_eq!(missed.data, json!({"stream": "stdout", "from": 7, "to": begin}));
    let (out, err, _) = events.collect();
    assert!(out == all.as_bytes()[begin..] && err == b"err\n");
    // A run may request a smaller window.
    let run = start(&place, json!({"command": "seq 1 1000000", "output_limit_bytes": 131072}));
    let response = ended(&place, &run);
    let begin = response["stdout_start"].as_u64().unwrap() as usize;
    assert!((100_000..=131_072).contains(&(all.len() - begin)), "{response}");
    assert!(output(&place, &run, "").text() == all[begin..]);
}

#[test]
fn bytes_dropped_while_reading_are_counted() {
    let place = Place::host(crate::fixture::shared());
    let command = "i=0; while :; do seq -f %09.0f $i $((i+3999)); i=$((i+4000)); sleep 0.01; done";
    for (detach, stream) in [(true, "stdout"), (false, "stdout"), (true, "both")] {
        let body = json!({"command": command, "output_limit_bytes": 131_072, "detach": detach, "hard_timeout_secs": 60});
        let run = start(&place, body);
        let started = Instant::now();
        let mut counted = 0;
        while started.elapsed() < secs(3) {
            let at = if stream == "both" { "0:0" } else { "0" };
            let part = output(&place, &run, &format!("?stream={stream}&offset={at}&limit=65536"));
            let number = |name: &str| {
                let reply = part.header(name).unwrap_or("0").trim_end_matches(":0");
                reply.parse::<usize>().unwrap()
            };
            let (from, next, missed) =
                (number("x-offset"), number("x-next-offset"), number("x-missed-bytes"));
            assert_eq!(missed + part.body.len(), next, "{part}");
            // Numbers of nine digits and a line break.
            let (line, inside) = ((next - part.body.len()) / 10, (next - part.body.len()) % 10);
            let expected = format!("{line:09}\n{:09}\n", line + 1);
            let few = part.body.len().min(10);
            assert_eq!(part.body[..few], expected.as_bytes()[inside..inside + few], "at {from}");
            counted += usize::from(missed > 0 && few > 0);
        }
        assert!(counted > 10, "the window moved {counted} times");
        place.client.delete(204, &run);
    }
}

#[test]
fn the_oldest_output_is_removed_first() {
    let server = Setup::new().arg("--runs-disk-limit=16777216").start();
    let place = Place::host(&server);
    let runs: Vec<String> = (0..4)
        .map(|_| {
            let run = start(&place, json!({"command": "seq 1 1000000"}));
            ended(&place, &run);
            run
        })
        .collect();
    let known: Vec<bool> = runs.iter().map(|run| place.client.call("GET", run, None).status == 200).collect();
    assert_eq!(known, [false, false, true, true]);
    assert!(!folder(&place, &runs[0]).exists() && folder(&place, &runs[3]).exists());
    assert!(output(&place, &runs[3], "").text() == numbers());
    // A run whose output alone exceeds the total keeps its end and is marked as truncated.
    let run = start(&place, json!({"command": "seq 1 4000000"}));
    let reply = ended(&place, &run);
    assert_eq!((&reply["stdout_bytes"], &reply["truncated"]), (&json!(30_888_896), &json!(true)));
    let begin = reply["stdout_start"].as_u64().unwrap();
    assert!(30_888_896 - begin <= 17 << 20 && begin < 30_000_000, "{reply}");
    assert!(output(&place, &run, "").text().ends_with("\n3999999\n4000000\n"));
}

#[test]
fn a_full_disk_is_reported_and_kills_no_run() {
    let setup = Setup::new();
    let disk = SmallDisk::new(&setup, "24m");
    let server = setup.data(disk.0.join("data")).start();
    let place = Place::host(&server);
    let run = start(
        &place,
        json!({"command": "echo begin; read x; seq 1 1000000; echo err >&2; read x; echo end",
        "open_stdin": true}),
    );
    wait_for("its beginning", secs(10), || (output(&place, &run, "").text() == "begin\n").then_some(()));
    disk.fill();
    let put = || {
        let text = [("Content-Type", "text/plain")];
        place.client.send("POST", &format!("{run}/stdin"), &text, Some(b"\n")).expect(200);
    };
    put();
    let all = 6 + numbers().len() as u64;
    wait_for("the complete output", secs(30), || {
        (place.client.get(200, &run)["stderr_bytes"] == 4).then_some(())
    });
    let reply = place.client.get(200, &run);
    assert_eq!(
        (&reply["status"], &reply["disk_full"], &reply["truncated"]),
        (&json!("running"), &json!(true), &json!(true))
    );
    assert_eq!(reply["stdout_bytes"], all);
    // A plain exec needs no disk; a new run is refused with the reason.
    place.sh("true");
    let refused =
        place.client.call("POST", &place.path("/runs"), Some(&json!({"command": "true"}))).expect(507);
    assert_eq!(refused.value()["code"], "disk_full");
    disk.free();
    put();
    let reply = ended(&place, &run);
    assert_eq!((&reply["status"], &reply["exit_code"]), (&json!("exited"), &json!(0)));
    // Output written after space was freed is stored at its correct offset.
    let end = output(&place, &run, &format!("?offset={all}"));
    assert_eq!(
        (end.text().as_str(), end.header("x-next-offset")),
        ("end\n", Some((all + 4).to_string().as_str()))
    );
    let mut events = Events::follow(&server, &run, None);
    let missed = events.wait("missed");
    assert_eq!(missed.data["stream"], "stdout");
    let exit = events.wait("exit");
    assert_eq!(exit.data["run"]["exit_code"], 0);
    drop(place);
    server.stop();
}
