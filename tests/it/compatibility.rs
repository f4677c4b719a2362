//! The behaviour that clients of the OpenWork server, its headless host and sandboxed.sh rely on, and the faults of
//! these servers that berth avoids: every section of `assets/docs/compatibility.md`, each with the tests that prove it.
//! Tests that belong to no other module follow below.

use berth::api::routes::ROUTES;
use berth::http::{Auth, Method};

use crate::server::Setup;
use crate::tidy_references::{covered, tests_exist};
use crate::trays::Trays;

/// A promise, and its tests as `file::function`.
type Promise = (&'static str, &'static [&'static str]);

/// The sections of `assets/docs/compatibility.md`, each with its promises.
#[rustfmt::skip]
const PROVEN: &[(&str, &[Promise])] = &[
    (
        "flags-and-configuration",
        &[
            ("a flag wins over the environment, the environment over the file", &["config::flag_beats_environment_beats_file"]),
            ("every key of the file and every variable works", &["config::every_field_of_the_file_has_its_effect", "config::every_variable_has_its_effect", "config::the_file_is_found_at_its_default_paths"]),
            ("a mistake is an error that names its place", &["config::mistakes_name_their_source", "config::errors_name_an_invalid_file"]),
            ("an empty token in the environment is an error", &["tokens::an_empty_token_is_an_error"]),
        ],
    ),
    (
        "authentication-and-scopes",
        &[
            ("every route is tried with every credential", &["contract::every_route_requires_its_credential"]),
            ("every 401 and 403 names the credential that came and the one that is needed", &["scoped_tokens::refusals_name_the_credential_sent_and_the_one_required"]),
            ("the scheme is read in any case", &["system::schemes_are_case_insensitive_and_exact"]),
            ("tokens expire and can be limited to workspaces", &["scoped_tokens::a_limited_token_sees_only_its_workspaces", "token_expiry::connections_of_an_expired_token_are_closed"]),
        ],
    ),
    (
        "token-store",
        &[
            ("an existing store is used at its place", &["scoped_tokens::an_existing_openwork_store_is_imported_from_each_location"]),
            ("the file is private and written atomically, and no token is lost", &["scoped_tokens::forty_concurrent_tokens_are_all_stored_in_a_private_file"]),
            ("the file is read again after a change by hand", &["scoped_tokens::editing_the_file_and_expiry_revoke_tokens"]),
            ("a damaged file is moved aside and reported", &["scoped_tokens::a_damaged_token_store_is_moved_aside_and_reported"]),
            ("a revoked token loses its streams and sockets at once", &["scoped_tokens::revoking_a_token_closes_its_connections", "opencode_streams::revoking_a_token_ends_its_proxied_streams", "approvals_feed::the_stream_of_a_revoked_owner_closes_and_limited_owners_are_refused"]),
        ],
    ),
    (
        "errors-and-routing",
        &[
            ("read-only, CORS, mounts and unknown routes", &["contract::a_read_only_server_writes_nothing", "contract::other_methods_are_refused", "system::cors", "system::cors_for_all", "system::options_on_anything", "system::a_workspace_has_its_routes_below_its_mount_as_well", "system::unknown_routes_and_methods"]),
            ("a malformed path is an error of the client", &["system::strange_paths_are_refused_not_served"]),
            ("a body of null is an error of the client", &["compatibility::no_body_causes_an_internal_error"]),
        ],
    ),
    (
        "routes",
        &[
            ("every reply has its shape", &["shapes::every_reply_has_its_observed_shape", "scoped_tokens::replies_have_the_observed_shape"]),
            ("workspaces of every kind are in both lists", &["system::both_apis_list_the_same_workspaces"]),
            ("viewers do not get OpenCode's password", &["system::viewers_cannot_read_the_password_of_opencode"]),
            ("jobs of the scheduler are listed and deleted", &["scheduled_jobs::jobs_are_listed_and_deleted_with_their_units"]),
        ],
    ),
    (
        "approvals",
        &[
            ("manual and auto, deny and timeout; used once; bound to its request", &["approvals::a_command_waits_for_the_host_and_runs_once", "project::writes_wait_for_the_host_in_manual_mode"]),
            ("a waiting request holds no thread; questions are limited for each token", &["approvals::waiting_occupies_no_thread_and_times_out"]),
            ("a write whose client disconnected never runs", &["approvals::a_disconnected_client_is_not_served_after_approval"]),
            ("decisions are audited", &["audit::decisions_tokens_and_failed_logins_are_recorded"]),
            ("there are a live feed and a command line", &["approvals_feed::the_stream_lists_pending_approvals_then_each_start_and_end_and_resumes", "approvals_feed::the_command_line_lists_answers_and_watches_approvals"]),
            ("the end of a token withdraws its questions", &["scoped_tokens::revoking_a_token_withdraws_its_pending_approvals"]),
        ],
    ),
    (
        "capabilities",
        &[
            ("they are the settings of the server", &["system::capabilities", "trays::disabled_trays_are_reported"]),
        ],
    ),
    (
        "project-files",
        &[
            ("comments and unknown keys stay", &["project::config_is_read_and_changed_key_by_key"]),
            ("forty writers at once lose nothing", &["project::forty_concurrent_writers_lose_no_change"]),
            ("a change by hand in between is a conflict, not a loss", &["project::a_concurrent_editor_and_berth_lose_no_change"]),
            ("a configuration that OpenCode would refuse is refused, with its place", &["project::configuration_that_opencode_rejects_is_refused_and_not_written", "project::mcp_servers_are_added_checked_and_removed"]),
            ("no command has a model of null", &["project::commands_are_listed_written_and_removed", "project_transfer::opencode_1_1_accepts_the_written_files", "project_transfer::the_newest_opencode_accepts_the_written_files"]),
            ("one bad file does not break a list", &["project::skills_are_listed_from_all_their_folders", "project::a_damaged_file_is_reported_with_its_line_and_never_overwritten"]),
            ("skills are read, written and deleted", &["project::skills_are_written_and_removed"]),
            ("plugins are keys and files", &["project::plugins_can_be_packages_or_files"]),
            ("references are kept as written, and viewers do not see their values", &["references::reads_and_writes_keep_references_unchanged", "references::viewers_do_not_see_the_values_of_references"]),
            ("links and races do not lead out", &["project::links_out_of_the_workspace_are_neither_read_nor_written", "project_races::project_files_are_never_accessed_through_a_swapped_link"]),
        ],
    ),
    (
        "audit-log",
        &[
            ("denied and failed writes and logins are recorded", &["audit::writes_are_recorded_also_when_denied_or_failed", "audit::decisions_tokens_and_failed_logins_are_recorded"]),
            ("reading takes constant memory, and the old place is read", &["audit::reading_the_log_takes_constant_memory", "audit::the_old_log_in_the_workspace_is_read_without_following_links"]),
        ],
    ),
    (
        "inbox",
        &[
            ("it answers as observed, and as the later version; broken forms and empty files", &["trays::the_inbox_answers_as_observed"]),
            ("the limit is exact", &["trays::the_upload_limit_is_exact_and_refused_early"]),
            ("an upload takes constant memory", &["trays::a_large_upload_is_complete_and_uses_little_memory", "trays::uploads_waiting_for_approval_use_no_memory_and_no_disk"]),
            ("a folder in the way is an error, and nothing is left behind", &["trays::upload_conflicts_are_reported_and_leave_no_files", "trays::a_disconnected_upload_leaves_no_files", "trays::temporary_files_of_a_killed_server_are_removed_but_not_active_ones"]),
        ],
    ),
    (
        "artifacts",
        &[
            ("Range, ETag, HEAD, and names in every script", &["trays::downloads_support_ranges_etags_and_file_names"]),
            ("links are not followed", &["trays::artifacts_are_listed_as_they_are", "trays_races::folders_swapped_for_links_are_never_followed"]),
        ],
    ),
    (
        "export-and-import",
        &[
            ("an export is complete and without secrets", &["project_transfer::an_export_is_imported_completely"]),
            ("an import is done as a whole or not at all, also across a kill", &["project_transfer::an_import_with_one_invalid_part_writes_nothing", "project_transfer::a_kill_during_an_import_leaves_the_old_or_the_new_state", "project_transfer::merge_keeps_and_replace_does_not"]),
        ],
    ),
    (
        "reload-events",
        &[
            ("each change is reported once, also one by hand", &["project_events::writes_of_the_server_are_reported_at_once_and_once", "project_events::changes_by_hand_are_reported"]),
            ("events survive restarts and crashes", &["project_events::numbers_and_events_survive_a_restart_and_a_crash"]),
            ("there is a stream that replays", &["project_events::the_stream_replays_and_follows"]),
        ],
    ),
    (
        "opencode-proxy",
        &[
            ("bodies and streams pass both ways, unbuffered, without a thread of the pool", &["opencode_streams::events_arrive_as_sent_and_hold_no_worker", "opencode_streams::large_bodies_are_forwarded_without_buffering"]),
            ("WebSockets pass", &["opencode_streams::websockets_pass_both_ways", "opencode_real::terminals_of_opencode_work_through_the_proxy"]),
            ("base path, query and encoding stay", &["opencode::paths_and_queries_are_forwarded_unchanged"]),
            ("no credential of berth is passed on", &["opencode::credentials_of_berth_never_reach_the_upstream"]),
            ("gzip and redirects reach the client unchanged", &["opencode::responses_are_returned_unchanged"]),
            ("an upstream that is down is 502, a slow one 504, with the setting's name", &["opencode::upstream_failures_are_reported"]),
            ("connections are used again", &["opencode::upstream_connections_are_reused"]),
            ("directories are inside the workspace", &["opencode::directories_stay_inside_the_workspace"]),
            ("viewers only read; owners answer permission requests", &["opencode::viewers_only_read", "opencode::only_owners_answer_permission_requests"]),
            ("only owners set baseUrl; addresses are refused in every spelling, at every connection", &["opencode_address::an_owner_sets_the_address_of_opencode", "opencode_address::forbidden_addresses_are_refused_in_every_spelling", "opencode_address::a_host_name_is_checked_at_each_connection"]),
            ("a remote workspace works", &["opencode::requests_of_a_remote_workspace_are_forwarded"]),
            ("a silent stream is not closed", &["opencode_real::events_flow_for_minutes"]),
            ("the engine is reloaded", &["opencode::a_reload_is_forwarded_and_its_result_returned", "opencode_real::an_engine_is_reloaded"]),
        ],
    ),
    (
        "page",
        &[
            ("it works in a browser", &["browser::the_page_has_a_strict_content_security_policy", "browser::a_browser_uploads_downloads_and_answers_approvals", "browser::a_browser_uses_the_real_opencode"]),
        ],
    ),
    (
        "log",
        &[
            ("boot and request lines, pretty and as JSON", &["logging::pretty_request_lines", "logging::first_line_names_the_program_and_boot_lines_are_bare", "logging::json_lines"]),
        ],
    ),
    (
        "later-versions",
        &[
            ("events for changes by hand, the list of the inbox, the audit log outside the workspace", &["project_events::changes_by_hand_are_reported", "trays::the_inbox_answers_as_observed", "audit::the_old_log_in_the_workspace_is_read_without_following_links"]),
        ],
    ),
    (
        "reports-of-users",
        &[
            ("refusals, status, invalid configuration", &["scoped_tokens::refusals_name_the_credential_sent_and_the_one_required", "orchestrator::status_and_approvals_of_the_orchestrator_work", "project::configuration_that_opencode_rejects_is_refused_and_not_written"]),
        ],
    ),
    (
        "command-lines",
        &[
            ("the orchestrator's status and approvals work with berth", &["orchestrator::status_and_approvals_of_the_orchestrator_work"]),
            ("--json prints one document; mistakes are errors", &["host_command::stdout_is_one_document_with_every_address_and_token", "host_words::mistakes_in_flags_are_named", "host_command::a_port_in_use_is_an_error_that_names_the_process"]),
        ],
    ),
    (
        "start-and-checks",
        &[
            ("the orchestrator's checks pass with berth, unchanged", &["orchestrator::the_checks_of_the_orchestrator_pass", "orchestrator::the_checks_of_the_orchestrator_pass_with_berth_in_docker"]),
            ("berth host's own checks", &["host_command::checks_pass_with_real_versions_and_leave_the_workspace_unchanged", "host_command::failed_checks_report_the_cause", "host_command::the_host_keeps_running_if_opencode_fails"]),
        ],
    ),
    (
        "sandbox",
        &[
            ("a locked container without a port, in Docker and in Apple's engine", &["host_docker::the_real_opencode_works_in_a_restricted_container_without_a_port", "host_docker::a_server_in_the_container_matches_openworks_layout_and_ends_with_its_host", "host_apple::the_container_program_is_called_as_documented_without_secrets"]),
            ("no silent fallback", &["host_command::auto_without_containers_is_an_error_that_lists_the_attempts"]),
        ],
    ),
    (
        "sandbox-mounts",
        &[
            ("they are refused in OpenWork's words", &["host_mounts::mounts_are_refused_in_openworks_words", "host_mounts::workspaces_larger_than_a_project_are_refused_without_a_flag"]),
        ],
    ),
    (
        "router",
        &[
            ("its routes and its end", &["host_command::the_desktops_daemon_serves_the_router_and_stops_on_request", "host_command::workspace_commands_start_a_daemon_if_none_runs"]),
        ],
    ),
    (
        "clients",
        &[
            ("the desktop's command line", &["host_command::the_desktops_command_line_detaches_when_called_through_a_link"]),
            ("OpenCode's own SDK, both versions", &["opencode_real::the_sdk_sees_no_difference_with_the_old_opencode", "opencode_real::the_sdk_sees_no_difference_with_the_new_opencode"]),
        ],
    ),
    (
        "where-its-documents-and-its-server-differ",
        &[
            ("tools, directories, rebuild and the shell", &["library::skills_and_tools_are_synced_and_only_managed_files_removed", "container::cwd_is_resolved_inside_the_container", "container_build::rebuild_must_be_requested_and_starts_with_an_empty_root", "terminals_shell::the_shell_uses_the_protocol_of_sandboxed_sh", "abuse::stdout_and_stderr_are_separate", "abuse::forty_concurrent_commands_succeed"]),
        ],
    ),
    (
        "requests-errors-and-login",
        &[
            ("bad requests are refused", &["workspaces_refused::shapes", "workspaces_refused::ids", "workspaces_refused::bodies_have_a_size"]),
            ("password login", &["login::the_calls_of_the_dashboard_work_after_a_login", "login::wrong_passwords_and_tokens_are_refused_and_delayed", "login::an_incomplete_login_configuration_stops_the_start"]),
        ],
    ),
    (
        "workspaces",
        &[
            ("create, update and delete", &["workspaces::create_takes_every_field", "workspaces::put_changes_only_the_given_fields", "workspaces::delete_returns_a_message", "workspaces::the_default_workspace_cannot_be_deleted"]),
            ("names and distributions", &["workspaces_refused::names", "workspaces_refused::distros", "workspaces::aliases_are_stored_in_their_canonical_form"]),
        ],
    ),
    (
        "builds-and-init-scripts",
        &[
            ("the script, its log and its repair", &["container_build::the_init_script_runs_inside_with_its_shebang_and_env", "container_build::the_log_has_the_last_500_lines", "container_build::a_failing_init_script_reports_its_error_and_can_be_repaired"]),
            ("restart, races and deletion during a build", &["container_build::a_restart_during_a_build_is_reported_as_its_error", "container_build::eight_concurrent_build_requests_start_one_build", "container_build::rerun_init_and_build_exclude_each_other", "container_build::delete_at_any_moment_of_a_build_leaves_nothing", "builds::a_failed_rerun_keeps_the_root", "workspaces_refused::build_bodies"]),
        ],
    ),
    (
        "commands",
        &[
            ("output, deadlines and process trees", &["abuse::long_output_is_truncated_in_the_middle_with_a_note", "abuse::timeout_returns_the_partial_output", "abuse::timeout_kills_the_whole_process_tree", "abuse::a_background_child_does_not_delay_the_response", "abuse::a_command_that_never_reads_its_stdin_times_out"]),
            ("environment and directory", &["abuse::the_environment_has_no_server_secrets", "exec_host::cwd_does_not_leave_the_workspace"]),
        ],
    ),
    (
        "shell",
        &[
            ("its messages, and its owner's return", &["terminals_shell::the_shell_uses_the_protocol_of_sandboxed_sh", "terminals_shell::a_shell_is_kept_for_a_reconnecting_client"]),
        ],
    ),
    (
        "library",
        &[
            ("entries have their observed shapes", &["library::templates_are_written_listed_and_removed", "library::skills_tools_and_scripts_have_their_observed_shapes"]),
            ("secrets are sealed; archives cannot write outside", &["library::secrets_are_sealed_on_disk_and_hidden_from_viewers", "library_import::invalid_archives_are_refused_and_leave_no_files"]),
        ],
    ),
    (
        "files-for-agents",
        &[
            ("they are written, and people's keys win", &["sync::agents_are_configured_only_on_request", "sync::files_of_the_user_are_kept", "sync::the_real_opencode_accepts_what_berth_writes"]),
        ],
    ),
    (
        "debugging",
        &[
            ("the answer of debug", &["container_build::debug_describes_the_root", "workspaces::debug_and_init_log_of_a_host_workspace"]),
        ],
    ),
    (
        "faults-of-its-server",
        &[
            ("links, names, folders and torn files", &["library::a_sync_does_not_follow_links_out_of_a_workspace", "workspaces_refused::container_folders", "workspaces::workspaces_with_the_same_name_never_share_a_folder", "crash::sigkill_at_random_moments_loses_no_acknowledged_state"]),
            ("networks are isolated", &["network::network_none_has_no_interfaces_and_host_shares_those_of_the_host", "network::a_private_network_reaches_the_outside_but_not_the_host"]),
        ],
    ),
];

#[test]
fn every_section_and_promise_names_existing_tests() {
    covered("compatibility.md", PROVEN.iter().map(|(section, _)| *section));
    for (promise, tests) in PROVEN.iter().flat_map(|(_, promises)| *promises) {
        tests_exist(promise, tests);
    }
}

/// Any JSON, or none, sent to a write with an existing id is a client error, not an internal one.
#[test]
fn no_body_causes_an_internal_error() {
    let trays = Trays::new(Setup::new().arg("--approval=auto"));
    let id = trays.path.trim_start_matches("/workspace/").to_owned();
    let client = trays.server.owner();
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
    let mut request = 0;
    for route in ROUTES.iter().filter(|route| !matches!(route.method, Method::Get)) {
        // The routes of sandboxed.sh have tests of their own, and berth does not parse proxied bodies.
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
                request += 1;
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
                request += 1;
            }
        }
    }
    assert!(request > 150, "{request}");
    // No invalid body was written: the configuration is unchanged.
    let config = client.get(200, &format!("{}/config", trays.path));
    assert_eq!(config["opencode"], serde_json::json!({}));
}
