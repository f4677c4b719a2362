//! Kills the server with SIGKILL at random moments of creates, builds, commands and deletes, and restarts it on the
//! same data folder. **Invariant:** nothing acknowledged is lost or duplicated, no process keeps running, nothing stays
//! mounted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::client::Client;
use crate::fixture::{DISTRO, seeded};
use crate::procs::{self, secs, unique_secs, wait_for};
use crate::server::{NIL, Server};

const ROUNDS: u32 = 50;
/// Number of workspaces that are kept for the next round.
const KEPT: usize = 8;

/// The state that the clients know from responses and from requests without a response.
#[derive(Default)]
struct Truth {
    /// Acknowledged, and no delete was sent: id → name.
    there: BTreeMap<String, String>,
    /// Ids of acknowledged deletes.
    gone: BTreeSet<String>,
    /// The name of a create without a response.
    unconfirmed_create: Option<String>,
    /// The id of a delete without a response.
    unconfirmed_delete: Option<String>,
    /// Number of containers that were found running.
    adopted: usize,
}

/// xorshift64. The seed is printed and can be set, so that a failure can be reproduced.
struct Random(u64);

impl Random {
    fn new() -> Random {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("CRASH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(clock | 1);
        eprintln!("CRASH_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn sigkill_at_random_moments_loses_no_acknowledged_state() {
    let setup = seeded();
    let mark = format!("it-mark-{}", unique_secs());
    let mut random = Random::new();
    let mut truth = Truth::default();
    for round in 0..ROUNDS {
        let server = setup.start();
        check(&server, &mut truth, &mark, round);
        // Every round checks all of them.
        while truth.there.len() > KEPT {
            let (id, _) = truth.there.pop_first().unwrap();
            server.owner().delete(200, &format!("/api/workspaces/{id}"));
            truth.gone.insert(id);
        }
        let life = Duration::from_millis(random.below(1500));
        let dead = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let deadline = Instant::now() + life;
                while Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(1));
                }
                procs::kill(server.pid);
                dead.store(true, Ordering::Release);
            });
            let mut step = 0;
            while !dead.load(Ordering::Acquire) {
                let name = format!("r{round}-{step}");
                if sequence(&server.owner(), &mut truth, &mut random, name, &mark).is_none() {
                    break;
                }
                step += 1;
            }
        });
        server.crash();
    }
    let server = setup.start();
    check(&server, &mut truth, &mark, ROUNDS);
    let (there, gone, adopted) = (truth.there.len(), truth.gone.len(), truth.adopted);
    eprintln!(
        "{ROUNDS} crashes: {there} workspaces there, {gone} deleted; {adopted} containers kept running"
    );
    assert!(
        truth.there.len() + truth.gone.len() >= ROUNDS as usize / 2,
        "too few workspaces were created for a meaningful test"
    );
    let owner = server.owner();
    for id in truth.there.keys() {
        owner.delete(200, &format!("/api/workspaces/{id}"));
    }
    let body = json!({"name": "after all", "workspace_type": "container", "distro": DISTRO});
    let last = owner.post(200, "/api/workspaces", body);
    let path = format!("/api/workspaces/{}", last["id"].as_str().unwrap());
    owner.call("POST", &format!("{path}/build"), None).expect(200);
    wait_for("the last build", secs(60), || (owner.get(200, &path)["status"] == "ready").then_some(()));
    owner.delete(200, &path);
    server.stop();
    nothing_left(setup.data_dir(), &mark, 0);
    assert!(folders(setup.data_dir()).is_empty(), "{:?}", folders(setup.data_dir()));
}

/// Creates, builds, runs and deletes; `None` as soon as the server has exited.
fn sequence(owner: &Client, truth: &mut Truth, random: &mut Random, name: String, mark: &str) -> Option<()> {
    let post = |path: &str, body: Value| {
        let body = serde_json::to_vec(&body).unwrap();
        owner.try_send("POST", path, &[], Some(&body)).ok()
    };
    truth.unconfirmed_create = Some(name.clone());
    let init = ["", "#!/bin/sh\nsleep 0.2\n"][random.below(2) as usize];
    let created = post(
        "/api/workspaces",
        json!({
            "name": name, "workspace_type": "container", "distro": DISTRO, "init_script": init, "env_vars": {"MARK": mark}
        }),
    )?;
    let created = created.expect(200).value();
    let id = created["id"].as_str().unwrap().to_owned();
    truth.unconfirmed_create = None;
    truth.there.insert(id.clone(), name);
    let path = format!("/api/workspaces/{id}");
    if random.below(8) > 0 {
        post(&format!("{path}/build"), json!({}))?.expect(200);
        // One in three is deleted during its build.
        if random.below(3) > 0 {
            loop {
                let now = owner.try_send("GET", &path, &[], None).ok()?.expect(200).value();
                if now["status"] != "building" {
                    assert_eq!(now["status"], "ready", "{now}");
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
            let reply =
                post(&format!("{path}/exec"), json!({"command": "echo $MARK; setsid sleep 5 & sleep 0.05"}))?;
            assert_eq!(reply.clone().expect(200).value()["stdout"], format!("{mark}\n"), "{reply}");
        }
    }
    if random.below(3) > 0 {
        truth.there.remove(&id);
        truth.unconfirmed_delete = Some(id.clone());
        owner.try_send("DELETE", &path, &[], None).ok()?.expect(200);
        truth.unconfirmed_delete = None;
        truth.gone.insert(id);
    }
    Some(())
}

fn check(server: &Server, truth: &mut Truth, mark: &str, round: u32) {
    let list = server.owner().get(200, "/api/workspaces");
    truth.adopted += adopted(server, &list);
    nothing_left(&server.data, mark, server.pid);
    let mut found = BTreeMap::new();
    for workspace in list.as_array().unwrap() {
        let id = workspace["id"].as_str().unwrap().to_owned();
        let name = workspace["name"].as_str().unwrap().to_owned();
        let status = workspace["status"].as_str().unwrap();
        assert!(["pending", "ready", "error"].contains(&status), "round {round}: {workspace}");
        if status == "error" {
            let message = workspace["error_message"].as_str().unwrap_or_default();
            assert!(message.to_lowercase().contains("interrupted"), "round {round}: {workspace}");
        }
        if id != NIL {
            assert_eq!(found.insert(id, name), None, "round {round}: one id twice in {list}");
        }
    }
    // A request without a response was executed or not; the list now shows which.
    if let Some(name) = truth.unconfirmed_create.take() {
        let created = found.iter().find(|(_, found)| **found == name);
        if let Some((id, name)) = created {
            truth.there.insert(id.clone(), name.clone());
        }
    }
    if let Some(id) = truth.unconfirmed_delete.take() {
        match found.get(&id) {
            Some(name) => _ = truth.there.insert(id, name.clone()),
            None => _ = truth.gone.insert(id),
        }
    }
    assert_eq!(
        found, truth.there,
        "round {round}: the workspaces (left) differ from the acknowledged ones (right)"
    );
    let orphans: Vec<_> = wait_or(secs(10), || {
        let folders = folders(&server.data);
        folders.into_iter().filter(|name| !truth.there.keys().any(|id| name.contains(id.as_str()))).collect()
    });
    assert!(orphans.is_empty(), "round {round}: folders without a workspace: {orphans:?}");
}

/// Checks that the containers that survived the crash work, and stops them, so that every remaining process is an
/// orphan. Returns their number.
fn adopted(server: &Server, list: &Value) -> usize {
    let owner = server.owner();
    let mut count = 0;
    for workspace in list.as_array().unwrap() {
        let path = format!("/api/workspaces/{}", workspace["id"].as_str().unwrap());
        let machine = &owner.get(200, &format!("{path}/debug"))["machine"];
        if machine["state"] != "running" {
            continue;
        }
        assert_eq!(machine["adopted"], true, "{machine}");
        if workspace["status"] == "ready" {
            let reply = owner.post(200, &format!("{path}/exec"), json!({"command": "echo adopted"}));
            assert_eq!(reply["stdout"], "adopted\n", "{reply}");
        }
        assert_eq!(owner.post(200, &format!("{path}/stop"), json!({}))["state"], "stopped");
        count += 1;
    }
    count
}

/// Names in `workspaces` of the data folder, except the record of the default workspace.
fn folders(data: &Path) -> Vec<String> {
    let entries = fs::read_dir(data.join("workspaces")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name != NIL).collect()
}

/// Calls `ask` until the list is empty or the time is over, and returns the last list.
fn wait_or<T>(longest: Duration, mut ask: impl FnMut() -> Vec<T>) -> Vec<T> {
    let deadline = Instant::now() + longest;
    loop {
        let list = ask();
        if list.is_empty() || Instant::now() > deadline {
            return list;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn nothing_left(data: &Path, mark: &str, server: u32) {
    let remaining = wait_or(secs(10), || {
        let mut remaining = procs::mentioning(data);
        remaining.extend(procs::naming(mark).into_iter().map(|pid| (pid, procs::arguments(pid))));
        remaining.retain(|(pid, _)| *pid != server && *pid != std::process::id());
        remaining
    });
    assert!(remaining.is_empty(), "still running: {remaining:?}");
    let mounts = wait_or(secs(10), || procs::mounts_below(data));
    assert!(mounts.is_empty(), "still mounted: {mounts:?}");
}
