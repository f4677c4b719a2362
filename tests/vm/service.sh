#!/bin/bash
# A plain unit: `systemctl restart berth` ends the processes of the server but not detached runs, on the host and in
# containers, because root's cgroups are outside of the unit's; the next server has their output and status.
. ./lib.sh
seed
NIL=00000000-0000-0000-0000-000000000000

unit() { # unit LINES…
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

unit
id=$(make '{"name": "box", "workspace_type": "container"}')
check "the unit runs" test -n "$id"
host=$(detached $NIL go1)
box=$(detached "$id" go1)
check "two detached runs have begun" test "$(api GET "$host/output") $(api GET "$box/output")" = "begun begun"
plain=$(api POST "/api/workspaces/$NIL/runs" '{"command": "sleep 4713"}' | jq -re .id)
before=$(systemctl show -P MainPID berth)
systemctl restart berth
echo "restarted"
up
check "another server runs" test "$(systemctl show -P MainPID berth)" != "$before"
for run in "$host" "$box"; do
    told=$(api GET "$run")
    check "a detached run keeps running" jq -e '.status == "running"' <<<"$told"
done
check "another one has ended" sh -c '! pgrep -fx "sleep 4713"'
told=$(api GET "/api/workspaces/$NIL/runs/$plain")
check "a run without detach is reported as killed" jq -e '.status == "killed"' <<<"$told"
told=$(api GET "/api/workspaces/$id/debug")
check "the next server adopts the container" jq -e '.machine.adopted' <<<"$told"
touch /tmp/go1
run "$id" 'touch /tmp/go1' >/dev/null
for run in "$host" "$box"; do
    told=$(api POST "$run/wait?timeout_secs=60")
    check "its exit status is reported" jq -e '.status == "exited" and .exit_code == 7' <<<"$told"
    same "its output is whole" "$(api GET "$run/output" | tr '\n' ' ')" "begun ended "
done
# The limits of the cgroups apply under the next server as well.
check "commands still work" jq -e '.stdout == "again\n"' <<<"$(run "$id" 'echo again')"
told=$(api GET "/api/workspaces/$id/resources")
check "commands are still limited" jq -e '.enforcement.memory_bytes.enforced' <<<"$told"

# With Delegate=yes all processes are in the unit, and systemd ends all of them: README warns of it.
unit Delegate=yes
host=$(detached $NIL go2)
systemctl restart berth
up
told=$(api GET "$host")
check "with Delegate=yes a detached run ends with the service, which is reported" \
    jq -e '.status != "running" and .status != "exited"' <<<"$told"
# KillMode=process does not help: remaining processes occupy the unit's cgroup, an inner node, in which no process can
# be started.
unit Delegate=yes KillMode=process
host=$(detached $NIL go3)
systemctl restart berth
for _ in $(seq 50); do
    state=$(systemctl show -P ActiveState berth)
    [ "$state" != failed ] || break
    if curl -fsS -o /dev/null $B/health 2>/dev/null; then break; fi
    sleep 0.2
done
echo "Delegate=yes and KillMode=process, restarted while a detached run keeps running: $state, status $(systemctl show -P ExecMainStatus berth)"
touch /tmp/go3
systemctl stop berth || true
unit
told=$(api GET "$host")
check "the detached run is reported nevertheless" jq -e '.status != "running"' <<<"$told"
systemctl stop berth
same "nothing stays" "$(pgrep -fc 'berth (keeper|agent)' || true)" 0
echo "$checks checks"
