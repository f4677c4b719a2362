#!/bin/bash
# cgroup v2 with its controllers, delegated by systemd or used as root: limits, OOM kills, the server's own share.
. ./lib.sh
seed
NIL=00000000-0000-0000-0000-000000000000
MIB=1048576

unit() { # unit LINES…: creates a service from these lines
    cat >/etc/systemd/system/berth.service <<U
[Service]
Environment=OPENWORK_HOST_TOKEN=$T
ExecStart=$here/berth --data-dir $DATA --approval auto
WorkingDirectory=/srv
$(printf '%s\n' "$@")
U
    systemctl daemon-reload
    systemctl restart berth
    up
}
init() { # init WORKSPACE: pid of its container's first process, which is started if necessary
    run "$1" true >/dev/null
    api GET "/api/workspaces/$1/debug" | jq -r .machine.init_pid
}
limits() { # the checks for both kinds of cgroup tree
    local place=$1 id told pid
    for limit in memory_bytes cpus pids; do
        same "$place: $limit" "$(api GET /api/workspaces/$NIL/resources | jq -r .enforcement.$limit.how)" "cgroup v2"
    done
    pid=$(systemctl show -P MainPID berth)
    same "$place: the server goes last" "$(cat /proc/$pid/oom_score_adj)" -900

    id=$(make '{"name": "box", "workspace_type": "container", "resources": {"memory_bytes": 134217728, "swap_bytes": 0, "pids": 60, "cpus": 0.5}}')
    told=$(run "$id" 'echo up')
    check "$place: a container runs a command" jq -e '.stdout == "up\n"' <<<"$told"
    same "$place: its processes start at 0" "$(run "$id" 'cat /proc/self/oom_score_adj' | jq -r .stdout)" 0
    told=$(run "$id" 'dd if=/dev/zero of=/dev/null bs=400M count=1')
    check "$place: a memory hog fails" jq -e '.exit_code != 0' <<<"$told"
    same "$place: the container keeps running" "$(run "$id" 'echo alive' | jq -r .stdout)" alive
    told=$(api GET "/api/workspaces/$id/resources")
    check "$place: the kill is reported, the peak is at most the limit" \
        jq -e ".used.oom_killed and .used.peak_memory_bytes <= 128*$MIB and .used.peak_memory_bytes > 64*$MIB" <<<"$told"
    run "$id" 'for i in $(seq 100); do sleep 1000 & done; kill $(jobs -p)' >/dev/null
    told=$(api GET "/api/workspaces/$id/resources")
    # Linux before 6.11 does not count refusals for the group with the limit.
    check "$place: too many processes are refused" jq -e '.used.pids_refused != 0 and .used.peak_pids == 60' <<<"$told"
    api PUT "/api/workspaces/$id" '{"resources": {"memory_bytes": 536870912, "pids": 200}}' >/dev/null
    told=$(run "$id" 'for i in $(seq 100); do sleep 1000 & done; kill $(jobs -p); dd if=/dev/zero of=/dev/null bs=200M count=1')
    check "$place: limits are removed while it runs" jq -e '.exit_code == 0' <<<"$told"
    api PUT /api/workspaces/$NIL '{"resources": {"memory_bytes": 67108864, "swap_bytes": 0}}' >/dev/null
    check "$place: a command on the host within its limit" jq -e '.exit_code != 0' <<<"$(run $NIL 'dd if=/dev/zero of=/dev/null bs=200M count=1')"
    api PUT /api/workspaces/$NIL '{"resources": {}}' >/dev/null
    check "$place: a command on the host without a limit" jq -e '.exit_code == 0' <<<"$(run $NIL 'dd if=/dev/zero of=/dev/null bs=200M count=1')"
    check "$place: deleted" grep -q deleted <<<"$(api DELETE "/api/workspaces/$id")"

    # Each process of the crowd is smaller than the agent: whichever process the OOM killer chooses, the container keeps
    # running.
    id=$(make '{"name": "crowded", "workspace_type": "container", "resources": {"memory_bytes": 33554432, "swap_bytes": 0}}')
    pid=$(init "$id")
    same "$place: the container goes last" "$(cat "/proc/$pid/oom_score_adj")" -900
    for _ in 1 2 3 4 5; do
        run "$id" 'for k in $(seq 60); do (x=$(head -c 300000 /dev/zero | tr -c x x); sleep 3) & done; wait' >/dev/null
        same "$place: after a crowd" "$(run "$id" 'cat /proc/self/oom_score_adj' | jq -r .stdout)" 0
    done
    same "$place: a crowd does not end the container" "$(init "$id")" "$pid"
    check "$place: deleted, too" grep -q deleted <<<"$(api DELETE "/api/workspaces/$id")"
}

unit Delegate=yes
same "delegated: the server is in a leaf" "$(sed -n s/^0:://p "/proc/$(systemctl show -P MainPID berth)/cgroup")" /system.slice/berth.service/server
same "delegated: its share" "$(cat /sys/fs/cgroup/system.slice/berth.service/server/cpu.weight)" 1000
limits delegated
systemctl restart berth
up
same "delegated: restarts" "$(run $NIL 'echo again' | jq -r .stdout)" again
systemctl stop berth
same "delegated: nothing stays" "$(ls -d /sys/fs/cgroup/system.slice/berth.service/berth-* 2>/dev/null)" ""

unit Delegate=no
check "as root: a tree at the top" ls -d /sys/fs/cgroup/berth-*
limits "as root"
systemctl stop berth
same "as root: nothing stays" "$(ls -d /sys/fs/cgroup/berth-* 2>/dev/null)" ""
echo "$checks checks"
