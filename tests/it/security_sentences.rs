//! Every sentence of the README's section on security, with the tests that show it; `security_promises` checks the list.

/// Marks a sentence that promises nothing: a warning, advice, or a limit of berth.
pub(crate) const NOTICE: &str = "notice";

/// Sentence, tests as `module::function`; `vm::name` is a script in `tests/vm`.
#[rustfmt::skip]
pub(crate) const PROMISES: &[(&str, &[&str])] = &[
    (
        "**The host token is root.**",
        &["exec_host::only_owners_run_commands_on_the_host"],
    ),
    (
        "It runs commands on the host as the user that runs berth.",
        &["exec_host::commands_run_in_the_workspace_folder"],
    ),
    (
        "The client token runs commands in containers only, unless OpenCode runs on the host.",
        &["exec_host::only_owners_run_commands_on_the_host", "container::collaborators_may_run_in_containers", "opencode_programs::manual_mode_asks_before_opencode_can_run_a_program"],
    ),
    (
        "**OpenCode on the host runs programs on the host.",
        &["opencode_programs::no_spelling_starts_a_program_in_a_real_opencode"],
    ),
    (
        "Run OpenCode in a container workspace instead.**",
        &["opencode_programs::opencode_in_a_container_follows_the_rules_of_exec"],
    ),
    (
        "In manual mode, berth asks for approval before it forwards a collaborator's request that could make \
         OpenCode run a program of the caller's choice.",
        &["opencode_programs::manual_mode_asks_before_opencode_can_run_a_program", "opencode_programs::an_approved_request_is_forwarded_once_and_unchanged"],
    ),
    (
        "Such requests are shell commands, terminals, commands, MCP servers, configuration, credentials, start \
         commands, and any write that berth does not know.",
        &["opencode_programs::manual_mode_asks_before_opencode_can_run_a_program"],
    ),
    (
        "Sessions and prompts are forwarded.",
        &["opencode_programs::manual_mode_asks_before_opencode_can_run_a_program"],
    ),
    (
        "OpenCode itself asks before a model acts, according to its `permission` settings; only owners can \
         relax them for a session.",
        &["opencode_programs::sessions_and_prompts_cannot_allow_tools_or_leave_the_workspace", "opencode::only_owners_answer_permission_requests"],
    ),
    (
        "In auto mode, terminals, shell commands and commands with shell parts (``!`…` ``) require an owner \
         (`--opencode-shell`).",
        &["opencode_programs::automatic_mode_limits_commands_with_a_shell_to_owners", "opencode_programs::no_spelling_starts_a_program_in_a_real_opencode"],
    ),
    (
        "**In auto mode, every client that may write MCP servers, plugins or configuration, including \
         commands, can execute code on the host.**",
        &["notice"],
    ),
    (
        "OpenCode finds the sessions of all its directories by their id.",
        &["opencode_confined::no_session_or_file_of_another_directory_is_reached"],
    ),
    (
        "berth forwards only requests about sessions in the workspace, and prompts whose attached files are in \
         it, unless the client is an owner of all workspaces.",
        &["opencode_confined::no_session_or_file_of_another_directory_is_reached"],
    ),
    (
        "A token that is limited to workspaces gets no lists and no events that cover all directories.",
        &["opencode_confined::no_session_or_file_of_another_directory_is_reached"],
    ),
    (
        "Requests that could make OpenCode run a program are recorded in the audit log, whether or not they \
         needed approval.",
        &["opencode_confined::forwarded_writes_that_could_run_a_program_are_in_the_audit_log"],
    ),
    (
        "The password of OpenCode is shown to owners, and to the client token if the password came from a flag \
         or the environment.",
        &["system::viewers_cannot_read_the_password_of_opencode"],
    ),
    (
        "**A container** has its own user, mount, pid, ipc and uts namespaces, nspawn's seccomp filter and \
         capability bounds, and `no_new_privs`.",
        &["security_promises::a_container_has_namespaces_of_its_own_and_few_capabilities"],
    ),
    (
        "Root inside is an unprivileged, unused uid outside.",
        &["container::root_inside_is_unprivileged_outside"],
    ),
    (
        "Commands run as root; `sudo` and `su` work for root, and make no other user root.",
        &["container::root_has_sudo_inside_and_no_other_user_becomes_root"],
    ),
    (
        "The container uses your kernel: this stops accidents and ordinary malice, not a kernel exploit.",
        &["notice"],
    ),
    (
        "**It shares the host's network** unless `network` is `none` or `private`, so it can reach every \
         service that listens on loopback.",
        &["network::network_none_has_no_interfaces_and_host_shares_those_of_the_host"],
    ),
    (
        "berth itself always requires a token.",
        &["network::a_container_on_the_host_network_needs_a_token"],
    ),
    (
        "**Files of containers** cannot be reached by other users of the host.",
        &["isolation::no_other_user_reaches_a_file_of_a_container"],
    ),
    (
        "Images, roots and snapshots, finished or not, are stored below folders of mode 0700 that belong to \
         the server's user.",
        &["isolation::no_other_user_reaches_a_file_of_a_container"],
    ),
    (
        "The `path` of a container becomes such a folder, with the files in `path/root`.",
        &["isolation::no_other_user_reaches_a_file_of_a_container", "isolation::the_owner_of_the_parent_folder_gets_no_root_and_loses_no_file"],
    ),
    (
        "At startup, the server restores the mode of these folders, and moves roots of earlier versions into \
         them.",
        &["isolation::roots_of_earlier_versions_are_moved_into_private_folders"],
    ),
    (
        "**The agent** starts commands in a container; root inside cannot trace or change it.",
        &["isolation::root_in_a_container_cannot_trace_the_agent"],
    ),
    (
        "A process that enters the agent's cgroup is killed at the next timeout, deletion of a run, or stop.",
        &["isolation::a_process_in_the_agents_cgroup_is_killed_at_the_next_deadline_or_deletion"],
    ),
    (
        "**A private network** (`\"network\": \"private\"`) is a network namespace that belongs to the host.",
        &["network::root_in_a_container_cannot_change_a_private_network"],
    ),
    (
        "Root inside cannot change its addresses or rules, and cannot open raw sockets (ping works).",
        &["network::root_in_a_container_cannot_change_a_private_network"],
    ),
    (
        "Outgoing traffic is translated (NAT by nftables, or by iptables on a host without nft).",
        &["network::a_private_network_reaches_the_outside_but_not_the_host", "network::iptables_is_used_without_nft"],
    ),
    (
        "It cannot reach the host's own addresses (including berth's), other workspaces, loopback, link-local \
         and multicast addresses, or the metadata services of clouds.",
        &["network::a_private_network_reaches_the_outside_but_not_the_host", "network::private_networks_cannot_reach_each_other", "network::iptables_is_used_without_nft"],
    ),
    (
        "Only the host can open connections into a private network.",
        &["network::a_private_network_reaches_the_outside_but_not_the_host", "network::private_networks_cannot_reach_each_other"],
    ),
    (
        "The container can reach all other addresses that the host can reach, for instance in a local network.",
        &["network::a_private_network_reaches_the_outside_but_not_the_host"],
    ),
    (
        "IPv6 is off.",
        &["network::root_in_a_container_cannot_change_a_private_network"],
    ),
    (
        "On the host, private networks add one table (with iptables: chains), `berth-XXXXXX`, and a link \
         `vbXXXXXX-N` for each container.",
        &["network::networks_of_a_killed_server_are_adopted_or_removed", "network::stopping_the_server_removes_its_networks", "network::iptables_is_used_without_nft"],
    ),
    (
        "Both are removed with the last container, or at the next start after a crash.",
        &["network::networks_of_a_killed_server_are_adopted_or_removed", "network::stopping_the_server_removes_its_networks"],
    ),
    (
        "If a firewall reload removes all tables, outgoing connections and the protection of the host's own \
         addresses are lost until the next private container or berth itself starts.",
        &["network::rules_inside_the_container_survive_a_firewall_reload"],
    ),
    (
        "The rules in the container's namespace stay.",
        &["network::rules_inside_the_container_survive_a_firewall_reload"],
    ),
    (
        "Private networks need `ip_forward`, which berth enables and leaves enabled.",
        &["security_promises::a_private_network_switches_forwarding_on"],
    ),
    (
        "If the `forward` policy of another firewall is to drop, add `iifname \"vb*\" accept` and `oifname \
         \"vb*\" accept` to it; `berth doctor` reports this.",
        &["doctor::a_firewall_that_drops_forwarded_traffic_is_reported"],
    ),
    (
        "**Mounts**: berth opens the source once, follows all links, and checks the resulting path.",
        &["mounts::forbidden_mounts_are_refused_with_a_reason"],
    ),
    (
        "It mounts exactly the opened source, even if the path changes meanwhile.",
        &["mounts::swapping_the_source_during_a_start_mounts_no_other_folder"],
    ),
    (
        "Each start of the container checks the allowlist again.",
        &["mounts::every_start_reads_the_allowlist_again"],
    ),
    (
        "A path is blocked if one of its names contains a pattern as a whole word (`.env` blocks `.env.local`, \
         not `.environments`).",
        &["mounts::forbidden_mounts_are_refused_with_a_reason", "security_promises::every_pattern_of_the_readme_blocks_a_mount"],
    ),
    (
        "The patterns are OpenWork's `.ssh .gnupg .gpg .aws .azure .gcloud .kube .docker credentials .env \
         .netrc .npmrc .pypirc id_rsa id_ed25519 private_key .secret` and those of the allowlist file.",
        &["security_promises::every_pattern_of_the_readme_blocks_a_mount"],
    ),
    (
        "berth always refuses its data folder, `/proc`, `/sys`, `/dev` and `/run`, a home or any parent of \
         one, `/etc` and `/var` as a whole, and a folder that contains `.ssh` or a similar folder.",
        &["mounts::forbidden_mounts_are_refused_with_a_reason"],
    ),
    (
        "The `.env` of a project is mounted with the project.",
        &["security_promises::every_pattern_of_the_readme_blocks_a_mount"],
    ),
    (
        "Other file systems mounted below the source stay outside.",
        &["security_promises::file_systems_below_the_source_of_a_mount_stay_outside"],
    ),
    (
        "Devices and set-user-id programs do not work in a mount.",
        &["mounts::files_of_a_mount_are_shared_between_host_and_container"],
    ),
    (
        "In a mount, root in the container is the owner of the source on the host (and only there), and other \
         users in the container are uid 65534.",
        &["mounts::files_of_a_mount_are_shared_between_host_and_container"],
    ),
    (
        "This needs systemd 252, and a kernel and file system with id-mapped mounts.",
        &["mounts::files_of_a_mount_are_shared_between_host_and_container"],
    ),
    (
        "Without these, all users in the container are uid 65534 in the mount, and `debug` reports it.",
        &["mounts::file_systems_without_owner_mapping_are_reported"],
    ),
    (
        "A user with write access to a mount can create set-user-id files of that owner there: keep other \
         users of the host from reaching a source that belongs to root, or mount its file system `nosuid`.",
        &["notice"],
    ),
    (
        "`/tmp` is on the container's disk: it survives a stop, is part of snapshots and clones, and uses no \
         memory.",
        &["container_files::temporary_files_are_on_the_disk_of_the_container"],
    ),
    (
        "With `\"resources\": {\"tmpfs_bytes\": 1073741824}`, it is in memory, with that size, from the next \
         start.",
        &["container_files::tmp_is_in_memory_on_request"],
    ),
    (
        "The container's name is in its `/etc/hostname` and resolves through `/etc/hosts`, where your own \
         lines stay.",
        &["container_files::a_container_resolves_its_own_name_in_every_network"],
    ),
    (
        "In its own Docker container, with Docker's default seccomp profile and capabilities, berth runs \
         commands on the host (that container), with timeouts, terminals and detached runs.",
        &["confined::commands_start_with_the_restrictions_of_docker"],
    ),
    (
        "Container workspaces need the options of the profile `privileged` in \
         `assets/packaging/container/docker-compose.yml` there.",
        &["confined::commands_start_with_the_restrictions_of_docker", "container_image::the_privileged_profile_runs_container_workspaces"],
    ),
    (
        "Memory, swap, processors and processes of a container are limited if the kernel permits it (`berth \
         doctor` checks).",
        &["resources::container_limits_are_enforced_and_reported", "resources::limits_that_a_host_cannot_enforce_are_reported"],
    ),
    (
        "Its disk usage (`disk_bytes`) is limited if the data folder, or the `path` of the workspace, is on \
         ext4 (`mke2fs -O project,quota`) or XFS, **mounted with `prjquota`**.",
        &["vm::disk"],
    ),
    (
        "`disk_bytes` counts all data that the container writes above its image; layers kept by snapshots \
         count for the workspace that wrote them.",
        &["vm::disk"],
    ),
    (
        "On other file systems, `resources`, `debug`, the build log and `berth doctor` report that the limit \
         is not enforced.",
        &["resources::limits_that_a_host_cannot_enforce_are_reported"],
    ),
    (
        "The files of a host workspace are not limited.",
        &["notice"],
    ),
    (
        "A container needs 16 `pids` and 0.05 `cpus` to start; berth refuses lower limits for its workspace, \
         but accepts them for a single command.",
        &["resources::limits_too_low_for_a_container_to_start_are_refused"],
    ),
    (
        "When memory runs out, the kernel kills a workload first; the server, each container's nspawn and its \
         first process are killed last.",
        &["resources::the_server_is_the_last_victim_of_the_oom_killer", "isolation::the_oom_killer_prefers_workloads_to_the_agent"],
    ),
    (
        "Without CAP_SYS_RESOURCE, which `berth doctor` checks, this does not hold for commands on the host.",
        &["doctor::a_server_that_the_oom_killer_may_choose_warns"],
    ),
    (
        "`used.pids_refused` is null if the kernel cannot report it (before Linux 6.11, as long as no process \
         directly in the cgroup was refused).",
        &["resources::container_limits_are_enforced_and_reported"],
    ),
    (
        "If cgroup v2 is writable (for root, on any current distribution), killing a command is reliable: \
         berth uses `cgroup.kill` on a cgroup that the command cannot leave.",
        &["exec_host::stopping_the_server_kills_running_commands"],
    ),
    (
        "Elsewhere, berth warns at startup that a command that hides its children well can leave some behind.",
        &["security_promises::a_server_without_cgroups_reports_that_it_searches_for_processes"],
    ),
    (
        "berth opens files in a container's root only with `openat2(RESOLVE_IN_ROOT)`, so links cannot lead to \
         the host.",
        &["hostile_root::folders_that_are_links_are_not_followed", "project_races::project_files_are_never_accessed_through_a_swapped_link"],
    ),
    (
        "Commands do not inherit the server's environment.",
        &["exec_host::the_environment_does_not_inherit_the_servers"],
    ),
    (
        "Tokens never appear in an argument, a log line or a child's environment.",
        &["security_promises::tokens_are_in_no_argument_and_no_environment_of_a_child", "logging::the_log_contains_no_secret"],
    ),
    (
        "Generated tokens are stored in `credentials.json`, mode 0600.",
        &["tokens::the_file_is_private"],
    ),
    (
        "Packages are always verified against the archive's keys.",
        &["other_distros::ubuntu_is_built_by_debootstrap_from_a_signed_archive", "other_distros::arch_is_built_by_pacstrap_from_signed_packages"],
    ),
    (
        "Without keys the build fails, and the message names the package that contains them.",
        &["container_build::a_missing_tool_names_its_package"],
    ),
    (
        "**The HTTP server** accepts only strict HTTP/1.0 and 1.1: heads of at most 16 KiB and 100 headers \
         within 10 s, one Host, one unambiguous length, no request smuggling.",
        &["smuggling::the_server_answers_exactly_what_h11_reads", "wire_limits::deadlines"],
    ),
    (
        "It disconnects a client whose request body makes no progress for 30 s, or that does not read for 30 \
         s.",
        &["wire_limits::deadlines", "slow_clients::readers_may_be_slow_but_must_read"],
    ),
    (
        "When the client of an `exec` request disconnects, its command is killed.",
        &["gate_door::client_disconnects_are_detected"],
    ),
    (
        "On loopback and Unix sockets, the Host must be this machine's (DNS rebinding), and a browser's Origin \
         must be the server's own or a configured one.",
        &["wire_limits::allowed_hosts_and_origins_are_accepted", "system::cors"],
    ),
    (
        "Failed logins are delayed, successful ones never.",
        &["gate_door::only_failed_logins_are_delayed"],
    ),
    (
        "berth has no TLS: connect from other machines through a proxy or an ssh tunnel.",
        &["notice"],
    ),
    (
        "It refuses to listen on an address that other machines can reach until you set tokens, or create them \
         with `berth token make`.",
        &["security_promises::an_exposed_address_needs_tokens"],
    ),
];
