//! Every section of `assets/docs/security.md`: published attacks, each with the tests that show that berth withstands
//! them.

use crate::tidy_references::{covered, tests_exist};

/// Section, tests as `file::function`.
#[rustfmt::skip]
const CASES: &[(&str, &[&str])] = &[
    ("requests-on-the-wire", &["wire::every_request_gets_its_expected_status", "smuggling::the_server_answers_exactly_what_h11_reads", "smuggling::handlers_get_what_h11_reads"]),
    ("slow-and-vanished-clients", &["slow_attacks::four_hundred_slow_clients_do_not_delay_others", "slow_clients::large_unread_responses_do_not_delay_others", "wire_limits::ten_thousand_resets_leave_no_thread_or_descriptor", "wire_limits::few_descriptors_limit_only_the_connections"]),
    ("browsers", &["wire_limits::allowed_hosts_and_origins_are_accepted", "system::cors", "terminals_limits::a_socket_accepts_its_token_as_a_subprotocol"]),
    ("credentials-and-scopes", &["contract::every_route_requires_its_credential", "contract::routes_for_limited_tokens_without_a_workspace_are_listed", "tokens::the_file_is_private"]),
    ("requests-passed-on-to-opencode", &["opencode::credentials_of_berth_never_reach_the_upstream", "opencode_address::forbidden_addresses_are_refused_in_every_spelling", "opencode_address::a_host_name_is_checked_at_each_connection", "opencode::paths_and_queries_are_forwarded_unchanged"]),
    ("paths-and-links", &["project_races::project_files_are_never_accessed_through_a_swapped_link", "trays_races::folders_swapped_for_links_are_never_followed", "library::a_sync_does_not_follow_links_out_of_a_workspace", "workspaces::delete_removes_exactly_the_files_of_the_workspace"]),
    ("archives", &["images_hostile::no_entry_is_written_outside_of_the_tree", "images_hostile::ambiguous_archives_are_refused", "images_hostile::decompression_bombs_are_stopped", "images_hostile::safe_archives_unpack_as_with_gnu_tar", "library_import::invalid_archives_are_refused_and_leave_no_files"]),
    ("containers", &["container::root_inside_is_unprivileged_outside", "security_promises::a_container_has_namespaces_of_its_own_and_few_capabilities", "isolation::root_in_a_container_cannot_trace_the_agent"]),
    ("network-of-a-container", &["network::a_private_network_reaches_the_outside_but_not_the_host", "network::root_in_a_container_cannot_change_a_private_network", "network::private_networks_cannot_reach_each_other", "network::a_container_on_the_host_network_needs_a_token"]),
    ("descriptors-and-working-directory", &["abuse::a_missing_cwd_is_refused_and_the_command_does_not_run", "abuse::a_file_as_cwd_is_refused", "exec_host::cwd_does_not_leave_the_workspace", "container::cwd_is_resolved_inside_the_container"]),
    ("environment-and-names", &["exec_host::the_environment_does_not_inherit_the_servers", "abuse::the_environment_has_no_server_secrets", "abuse::bad_env_names_are_refused", "workspaces_refused::names"]),
    ("mounts", &["mounts::forbidden_mounts_are_refused_with_a_reason", "mounts::swapping_the_source_during_a_start_mounts_no_other_folder", "mounts::every_start_reads_the_allowlist_again", "host_mounts::mounts_are_refused_in_openworks_words"]),
    ("logs-and-terminals", &["logging::a_request_cannot_forge_a_log_line", "logging::the_log_contains_no_secret", "terminals::reconnecting_types_nothing_into_the_shell"]),
    ("the-page", &["browser::the_page_has_a_strict_content_security_policy", "trays::downloads_support_ranges_etags_and_file_names"]),
    ("uploads", &["trays::the_upload_limit_is_exact_and_refused_early", "trays::a_large_upload_is_complete_and_uses_little_memory", "trays::a_disconnected_upload_leaves_no_files"]),
    ("approvals", &["approvals_shown::the_approved_request_runs_and_its_secrets_are_in_no_log", "approvals_shown::of_concurrent_replies_only_one_is_accepted", "approvals::waiting_occupies_no_thread_and_times_out"]),
    ("workloads", &["abuse::timeout_kills_daemonized_processes", "abuse::timeout_kills_continuously_forking_processes", "container_faults::commands_work_after_the_container_kills_all_its_processes", "fair_shares::a_flood_from_one_token_does_not_affect_others"]),
    ("crashes", &["crash::sigkill_at_random_moments_loses_no_acknowledged_state", "diskfull::state_files_survive_a_full_disk", "config::a_data_folder_is_locked_by_one_server"]),
    ("exposure", &["security_promises::an_exposed_address_needs_tokens", "tokens::generated_tokens_are_kept_and_printed_once", "tokens::the_file_is_private"]),
];

#[test]
fn every_case_has_tests_that_exist() {
    covered("security.md", CASES.iter().map(|(section, _)| *section));
    for (section, tests) in CASES {
        tests_exist(section, tests);
    }
}
