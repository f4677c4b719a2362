//! Tests of audit logs that rotate, are truncated, or are read during writes, and of repeated events.

use std::io::Write as _;

use super::*;
use crate::access::Scope;
use crate::store::scratch::TestFolder;

fn draft(log: &str, action: &str, target: &str) -> AuditDraft {
    AuditDraft { log: log.into(), action: action.into(), target: target.into(), summary: "s".into() }
}

fn actor() -> Actor {
    Actor::remote(Scope::Owner, "h".into(), Some("phone".into()))
}

fn targets(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["target"].as_str().unwrap()).collect()
}

#[test]
fn lines_of_both_files_are_returned_newest_first() {
    let dir = TestFolder::new();
    let audit = Audit::open(&dir).unwrap();
    let long = "x".repeat(limits::APPROVAL_SUMMARY_CHARS);
    let count = limits::AUDIT_FILE_BYTES / 500 * 5;
    for n in 0..count {
        audit.record(&draft("ws_a", &long, &n.to_string()), Some(&actor()), AuditOutcome::Done);
    }
    let lines = audit.recent("ws_a", None, 200).unwrap();
    assert_eq!(lines.len(), 200);
    assert_eq!(
        (lines[0]["target"].as_str(), lines[199]["target"].as_str()),
        (Some(&*(count - 1).to_string()), Some(&*(count - 200).to_string()))
    );
    let all = audit.recent("ws_a", None, usize::MAX).unwrap();
    let numbers: Vec<u64> = targets(&all).iter().map(|target| target.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1] + 1), "lines are missing");
    assert!((all.len() as u64) < count, "no old line was deleted");
    let sizes: Vec<u64> = fs::read_dir(dir.join("audit"))
        .unwrap()
        .flatten()
        .map(|entry| entry.metadata().unwrap().len())
        .collect();
    assert_eq!(sizes.len(), 2);
    assert!(sizes.iter().all(|size| *size <= limits::AUDIT_FILE_BYTES), "{sizes:?}");
    assert!(audit.recent("ws_b", None, 5).unwrap().is_empty());
}

#[test]
fn truncated_long_and_foreign_lines_are_skipped() {
    let dir = TestFolder::new();
    let audit = Audit::open(&dir).unwrap();
    audit.record(&draft("ws_a", "a", "first"), None, AuditOutcome::Done);
    let mut file = OpenOptions::new().append(true).open(dir.join("audit/ws_a.jsonl")).unwrap();
    file.write_all(b"[1]\nnonsense\n").unwrap();
    file.write_all(&vec![b'y'; 3 * limits::AUDIT_LINE_BYTES]).unwrap();
    audit.record(&draft("ws_a", "a", "second"), None, AuditOutcome::Done);
    file.write_all(b"{\"target\": \"torn").unwrap();
    audit.record(&draft("ws_a", "a", "third"), None, AuditOutcome::Failed(500, "internal_error"));
    let lines = audit.recent("ws_a", None, 10).unwrap();
    assert_eq!(targets(&lines), ["third", "second", "first"]);
    assert_eq!((&lines[0]["result"], &lines[0]["status"]), (&json!("failed"), &json!(500)));
    assert_eq!(lines[1].get("result"), None);
}

#[test]
fn the_openwork_log_is_merged_by_time() {
    let dir = TestFolder::new();
    let audit = Audit::open(&dir).unwrap();
    audit.record(&draft("ws_a", "a", "new"), Some(&actor()), AuditOutcome::Done);
    let old = |timestamp: u64| {
        let line = json!({"id": "o", "action": "config.patch", "target": "old", "timestamp": timestamp});
        let mut file = File::create(dir.join("old")).unwrap();
        writeln!(file, "{line}").unwrap();
        Some(File::open(dir.join("old")).unwrap())
    };
    assert_eq!(targets(&audit.recent("ws_a", old(5), 10).unwrap()), ["new", "old"]);
    assert_eq!(targets(&audit.recent("ws_a", old(u64::MAX), 10).unwrap()), ["old", "new"]);
    assert_eq!(audit.last_change("ws_b", || old(77)), Some(77));
    assert_eq!(audit.last_change("ws_b", || unreachable!("the result is cached")), Some(77));
    assert_eq!(audit.last_change("ws_c", || None), None);
}

#[test]
fn the_last_change_is_a_successful_one_of_the_openwork_api() {
    let dir = TestFolder::new();
    let audit = Audit::open(&dir).unwrap();
    audit.record(&draft("ws_a", "config.patch", "opencode.json"), Some(&actor()), AuditOutcome::Done);
    let changed = audit.recent("ws_a", None, 1).unwrap()[0]["timestamp"].as_u64();
    std::thread::sleep(std::time::Duration::from_millis(3));
    audit.record(
        &draft("ws_a", "config.patch", "opencode.json"),
        None,
        AuditOutcome::Denied(403, "write_denied"),
    );
    audit.record(&draft("ws_a", "workspace.exec", "/api/workspaces/x/exec"), None, AuditOutcome::Done);
    audit.record(&draft("ws_a", "approval.allow", "id"), None, AuditOutcome::Done);
    for audit in [&audit, &Audit::open(&dir).unwrap()] {
        assert_eq!(audit.last_change("ws_a", || None), changed);
        audit.record(&draft("ws_a", "approval.allow", "id"), None, AuditOutcome::Done);
        assert_eq!(audit.last_change("ws_a", || None), changed);
    }
    audit.record(&draft("ws_a", "plugins.add", "opencode.json"), None, AuditOutcome::Done);
    assert!(audit.last_change("ws_a", || None) > changed);
}

#[test]
fn repeated_login_failures_are_written_once() {
    let dir = TestFolder::new();
    let audit = Audit::open(&dir).unwrap();
    for _ in 0..100 {
        audit.login_failed("192.0.2.1", None, "/whoami\u{7}", "an unknown token");
    }
    audit.login_failed("192.0.2.2", None, "/tokens", "the client token");
    let lines = audit.recent(SERVER, None, 10).unwrap();
    assert_eq!(targets(&lines), ["/tokens", "/whoami"]);
    assert_eq!(lines[1]["summary"], "an unknown token from 192.0.2.1");
    assert_eq!(lines[1].get("workspaceId"), None);
    drop(audit);
    let lines = Audit::open(&dir).unwrap().recent(SERVER, None, 10).unwrap();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["summary"], "an unknown token from 192.0.2.1 (99 more like this)");
}

#[test]
fn repeated_refusals_do_not_rotate_other_lines_out() {
    let dir = TestFolder::new();
    let audit = Audit::open(&dir).unwrap();
    audit.record(&draft("ws_a", "a", "first"), None, AuditOutcome::Done);
    for n in 0..1000 {
        let refused = draft("ws_a", "config.patch", &n.to_string());
        audit.record(&refused, Some(&actor()), AuditOutcome::Failed(400, "invalid_payload"));
        audit.record(&refused, Some(&actor()), AuditOutcome::Denied(403, "forbidden"));
    }
    for n in 0..50 {
        audit.record(&draft("ws_a", "a", &n.to_string()), Some(&actor()), AuditOutcome::Done);
    }
    drop(audit);
    let lines = Audit::open(&dir).unwrap().recent("ws_a", None, 1000).unwrap();
    let count = |result: Option<&str>| lines.iter().filter(|line| line["result"].as_str() == result).count();
    assert_eq!((count(None), count(Some("failed")), count(Some("denied"))), (51, 21, 21));
    let more = |line: &&Value| line["summary"] == "s (980 more like this)";
    assert_eq!(lines.iter().filter(more).count(), 2);
}

#[test]
fn concurrent_writers_write_whole_lines() {
    let dir = TestFolder::new();
    let audit = Audit::open(&dir).unwrap();
    std::thread::scope(|scope| {
        for n in 0..40 {
            let audit = &audit;
            scope.spawn(move || {
                for m in 0..5 {
                    audit.record(
                        &draft("ws_a", "a", &format!("{n}-{m}")),
                        Some(&actor()),
                        AuditOutcome::Done,
                    );
                }
            });
        }
    });
    assert_eq!(audit.recent("ws_a", None, 1000).unwrap().len(), 200);
}
