//! What is promised to whoever puts berth in the OpenWork server's place, and what was seen to be broken there
//! (`openwork-observed.md`, by its sections), each with the tests that prove it; the proofs that belong nowhere else
//! stand below.

use std::fs;
use std::path::Path;

use berth::api::routes::ROUTES;
use berth::http::{Auth, Method};

use crate::server::Setup;
use crate::trays::Desk;

/// Promise or defect, tests as `file::function`.
const PROVEN: &[(&str, &[&str])] = &[
    // Tokens.
    (
        "tokens.json is taken over wherever it lies",
        &["scoped_tokens::an_existing_store_is_taken_over_wherever_it_lies"],
    ),
    (
        "tokens.json: private, atomic, nothing lost (§2, §14)",
        &["scoped_tokens::forty_made_at_once_are_all_kept_and_nobody_else_reads_them"],
    ),
    (
        "tokens.json: read again when changed by hand (§2)",
        &["scoped_tokens::a_hand_in_the_file_and_time_revoke_as_well"],
    ),
    (
        "tokens.json: a corrupt one is moved aside and said (§2)",
        &["scoped_tokens::a_damaged_store_is_moved_aside_and_said"],
    ),
    (
        "tokens expire and are limited to workspaces",
        &[
            "scoped_tokens::a_limited_token_sees_its_workspaces_and_nothing_else",
            "token_expiry::what_an_expired_token_has_open_is_closed",
        ],
    ),
    (
        "revoking is at once, for streams and sockets too",
        &[
            "scoped_tokens::what_a_token_has_opened_ends_with_it",
            "opencode_streams::the_end_of_a_token_ends_its_streams",
            "approvals_feed::the_stream_of_a_revoked_owner_is_cut_and_limited_owners_have_none",
        ],
    ),
    (
        "every 401 and 403 says what was seen and what is needed (§13)",
        &["scoped_tokens::every_refusal_says_what_was_seen_and_what_is_needed"],
    ),
    ("an empty token in the environment is an error (§1)", &["tokens::an_empty_token_is_an_error"]),
    // Approvals.
    (
        "manual and auto, deny and timeout as observed; single use; bound to its request",
        &[
            "approvals::a_command_waits_for_the_host_and_runs_once",
            "project::writes_wait_for_the_host_in_manual_mode",
        ],
    ),
    (
        "waiting holds no thread; pending ones are capped for each token",
        &["approvals::waiting_holds_no_thread_and_has_an_end"],
    ),
    ("a write whose client hung up never runs (§4)", &["approvals::who_has_hung_up_is_not_served_later"]),
    ("decisions are audited (§4)", &["audit::decisions_tokens_and_failed_logins_are_there"]),
    (
        "a live feed, and the command line",
        &[
            "approvals_feed::the_stream_tells_what_waits_then_each_question_and_each_end_and_resumes",
            "approvals_feed::the_command_line_lists_answers_and_watches",
        ],
    ),
    (
        "a token's end withdraws its questions",
        &["scoped_tokens::a_write_that_waits_is_withdrawn_with_its_token"],
    ),
    // Configuration, plugins, skills, MCP, commands.
    ("comments and unknown keys survive", &["project::config_is_read_and_changed_key_by_key"]),
    ("forty writers at once lose nothing (§14)", &["project::forty_writers_at_once_lose_nothing"]),
    (
        "a hand edit in between: conflict, not loss",
        &["project::a_hand_that_writes_at_the_same_time_loses_nothing"],
    ),
    (
        "what OpenCode would reject is refused, with its path (§6, §9, §13: ConfigInvalidError)",
        &[
            "project::what_opencode_would_not_start_with_is_refused_and_not_written",
            "project::mcp_servers_are_added_checked_and_removed",
        ],
    ),
    (
        "no command says model: null (§6, §14)",
        &[
            "project::commands_are_listed_written_and_removed",
            "project_transfer::opencode_1_1_takes_what_was_written",
            "project_transfer::newest_opencode_takes_what_was_written",
        ],
    ),
    (
        "one bad file never breaks a list (§6)",
        &[
            "project::skills_are_listed_from_all_their_places",
            "project::a_damaged_file_is_named_with_the_place_and_never_overwritten",
        ],
    ),
    ("skills: get, put, delete", &["project::skills_are_written_and_removed"]),
    ("plugins", &["project::plugins_are_names_and_files"]),
    (
        "references are kept as written, and no viewer sees what they become",
        &[
            "references::reads_and_writes_leave_them_as_they_are",
            "references::viewers_do_not_see_what_opencode_puts_in_their_place",
        ],
    ),
    (
        "links and races lead nowhere (§14)",
        &[
            "project::what_leads_out_of_the_workspace_is_neither_read_nor_written",
            "project_races::what_agents_read_is_never_read_written_or_deleted_through_a_link",
        ],
    ),
    // Events, audit, transfer.
    (
        "reload events, of hand edits too, once each",
        &[
            "project_events::our_own_writes_are_told_at_once_and_once",
            "project_events::changes_by_hand_are_told",
        ],
    ),
    (
        "reload events outlive restarts and crashes (§8)",
        &["project_events::numbers_and_events_survive_a_restart_and_a_crash"],
    ),
    ("reload events as a stream with replay", &["project_events::the_stream_replays_and_follows"]),
    (
        "the engine is reloaded",
        &["opencode::a_reload_is_passed_on_and_what_it_says_is_told", "opencode_real::an_engine_is_reloaded"],
    ),
    (
        "audit: denied and failed writes, logins",
        &[
            "audit::writes_are_there_in_the_observed_shape_also_those_that_were_denied_or_failed",
            "audit::decisions_tokens_and_failed_logins_are_there",
        ],
    ),
    (
        "audit: constant memory (§6), old place read",
        &[
            "audit::reading_takes_constant_memory",
            "audit::the_old_place_is_read_beneath_the_workspace_and_a_link_leads_nowhere",
        ],
    ),
    (
        "export is complete and without secrets (§7)",
        &["project_transfer::what_is_exported_is_imported_complete"],
    ),
    (
        "import: all or nothing, also after a kill (§7)",
        &[
            "project_transfer::one_bad_part_and_nothing_is_written",
            "project_transfer::a_kill_in_the_middle_leaves_old_or_new",
            "project_transfer::merge_keeps_and_replace_does_not",
        ],
    ),
    // Inbox and artifacts.
    (
        "inbox: as observed and in the later version; broken forms and empty files (§6)",
        &["trays::the_inbox_answers_as_observed"],
    ),
    ("inbox: the cap is exact (§6)", &["trays::the_cap_is_exact_and_told_before_much_is_sent"]),
    (
        "inbox: constant memory (§6, §14)",
        &[
            "trays::a_large_upload_is_whole_and_takes_no_memory",
            "trays::waiting_for_the_host_holds_no_memory_and_takes_no_file",
        ],
    ),
    (
        "inbox: a folder in the way, no leftovers (§6)",
        &[
            "trays::what_stands_in_the_way_is_told_and_nothing_is_left",
            "trays::a_client_that_goes_leaves_nothing",
            "trays::what_a_killed_server_left_is_swept_and_what_is_on_its_way_is_not",
        ],
    ),
    (
        "artifacts: Range, ETag, HEAD, names in any script (§6)",
        &["trays::downloads_have_ranges_tags_and_names"],
    ),
    (
        "artifacts: as observed; links are not followed (§6)",
        &["trays::artifacts_are_listed_as_they_are", "trays_races::folders_that_become_links_lead_nowhere"],
    ),
    // The server.
    (
        "every reply has its shape",
        &["shapes::every_reply_has_its_observed_shape", "scoped_tokens::replies_have_the_observed_shape"],
    ),
    ("every route with every credential", &["contract::every_route_asks_for_its_credential"]),
    (
        "read-only, CORS, mounts, unknown routes",
        &[
            "contract::a_read_only_server_writes_nothing",
            "system::cors",
            "system::cors_for_all",
            "system::a_workspace_has_its_routes_below_its_mount_as_well",
            "system::unknown_routes_and_methods",
        ],
    ),
    ("workspaces of every kind are in both lists", &["system::both_apis_list_the_same_workspaces"]),
    (
        "viewers do not get OpenCode's password (§4, §14)",
        &["system::viewers_are_not_told_the_password_of_opencode"],
    ),
    ("a malformed path is no crash page (§3, §14)", &["system::strange_paths_are_refused_not_served"]),
    ("a body of null is no crash (§3)", &["openwork_promises::no_body_makes_an_internal_error"]),
    // The way to OpenCode.
    (
        "bodies and streams both ways, unbuffered, without a thread of the pool",
        &[
            "opencode_streams::events_come_as_they_are_sent_and_hold_no_thread",
            "opencode_streams::large_bodies_pass_without_being_held",
        ],
    ),
    (
        "WebSockets pass",
        &[
            "opencode_streams::websockets_pass_both_ways",
            "opencode_real::terminals_of_opencode_work_through_the_proxy",
        ],
    ),
    (
        "base path, query and encoding are kept (§9)",
        &["opencode::paths_and_queries_stay_as_they_were_written"],
    ),
    ("no credential of ours is passed on (§9, §14)", &["opencode::nothing_of_ours_reaches_the_upstream"]),
    ("gzip untouched, redirects to the client (§9, §14)", &["opencode::answers_come_back_as_they_were"]),
    (
        "upstream down 502, slow 504, with the setting's name (§9, §14)",
        &["opencode::what_is_wrong_with_the_upstream_is_said"],
    ),
    ("connections are used again", &["opencode::connections_are_used_again"]),
    (
        "directories only inside of the workspace (§9, §14)",
        &["opencode::directories_stay_inside_the_workspace"],
    ),
    (
        "viewers read only; permission replies by owners (§9, §13)",
        &["opencode::viewers_only_read", "opencode::only_owners_answer_permission_requests"],
    ),
    (
        "only owners set baseUrl; addresses are refused in every spelling, at every connection",
        &[
            "opencode_address::an_owner_says_where_opencode_is",
            "opencode_address::some_addresses_are_refused_in_every_spelling",
            "opencode_address::a_name_is_checked_at_each_connection",
        ],
    ),
    ("a remote workspace works", &["opencode::a_remote_workspace_is_passed_on"]),
    ("a silent stream is not cut (§9)", &["opencode_real::events_flow_for_minutes"]),
    (
        "OpenCode's own SDK, both versions",
        &[
            "opencode_real::the_sdk_sees_no_difference_with_the_old_opencode",
            "opencode_real::the_sdk_sees_no_difference_with_the_new_opencode",
        ],
    ),
    (
        "OpenWork's orchestrator, unchanged (§11, §13: status)",
        &["orchestrator::its_checks_are_ok", "orchestrator::its_status_and_approvals_work"],
    ),
    // The page.
    (
        "the page, in a browser (§10)",
        &[
            "browser::the_page_comes_with_a_strict_policy",
            "browser::a_browser_uploads_downloads_and_answers_approvals",
            "browser::a_browser_talks_to_the_real_opencode",
        ],
    ),
];

#[test]
fn every_promise_has_tests_that_are_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    for (promise, tests) in PROVEN {
        assert!(!tests.is_empty(), "{promise}");
        for test in *tests {
            let (file, name) = test.split_once("::").unwrap();
            let text = fs::read_to_string(folder.join(format!("{file}.rs"))).unwrap_or_default();
            assert!(text.contains(&format!("fn {name}(")), "{promise}: there is no {test}");
        }
    }
}

/// (§3) Whatever JSON, or none, is sent to a write, with an id that is there: it is the client's mistake, not ours.
#[test]
fn no_body_makes_an_internal_error() {
    let desk = Desk::new(Setup::new().arg("--approval=auto"));
    let id = desk.path.trim_start_matches("/workspace/").to_owned();
    let client = desk.server.owner();
    let bodies: [&[u8]; 12] = [
        b"null",
        b"[]",
        b"[null]",
        b"\"x\"",
        b"1e999",
        b"{",
        b"",
        b"\xff\xfe",
        b"{\"opencode\": null, \"openwork\": [], \"spec\": 1, \"name\": {}, \"config\": [], \"content\": null}",
        b"{\"name\": \"../x\", \"template\": null, \"config\": null, \"content\": [], \"scope\": null, \"reply\": 1}",
        b"{\"name\": \"\\u0000\", \"template\": \"\\ud800\", \"spec\": \"\", \"baseUrl\": {}, \"skills\": [null]}",
        b"{\"name\": \"a\", \"name\": \"b\", \"skills\": {}, \"commands\": [[]], \"mode\": 1}",
    ];
    let mut asked = 0;
    for route in ROUTES.iter().filter(|route| !matches!(route.method, Method::Get)) {
        // Those of sandboxed.sh have tests of their own, and what is passed on is not ours to read.
        if route.pattern.starts_with("/api/") || route.pattern.contains("/opencode") {
            continue;
        }
        assert!(route.auth != Auth::Public, "{}", route.pattern);
        for named in ["/workspace/:id", "/workspaces/:id"] {
            let Some(rest) = route.pattern.strip_prefix(named) else { continue };
            let path = format!("{}/{id}{rest}", named.trim_end_matches("/:id"));
            let path = path.replace(":name", "nothing").replace("*name", "nothing");
            for body in bodies {
                let reply = client.send(route.method.as_str(), &path, &[], Some(body));
                let text = String::from_utf8_lossy(body);
                assert!(reply.status < 500, "{} {path} {text}: {reply}", route.method.as_str());
                asked += 1;
            }
        }
        if !route.pattern.contains(':') || route.pattern.starts_with("/approvals") {
            for body in bodies {
                let path = route.pattern.replace(":id", "nothing");
                let reply = client.send(route.method.as_str(), &path, &[], Some(body));
                assert!(
                    (400..500).contains(&reply.status),
                    "{} {path} {}: {reply}",
                    route.method.as_str(),
                    String::from_utf8_lossy(body)
                );
                asked += 1;
            }
        }
    }
    assert!(asked > 150, "{asked}");
    // Nothing of it was written, but for what was good: an owner's workspace is as it was.
    let config = client.get(200, &format!("{}/config", desk.path));
    assert_eq!(config["opencode"], serde_json::json!({}));
}
