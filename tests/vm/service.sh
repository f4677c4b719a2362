#!/bin/bash
# The unit of the README: `systemctl restart berth` ends what ends with the server, and with KillMode=process it leaves
# detached runs alone, on the host and in containers; the next server has their output and status.
. ./lib.sh
seed
NIL=00000000-0000-0000-0000-000000000000

unit() { # unit LINES…
    cat >/etc/systemd/system/berth.service <<U
[Service]
Environment=OPENWORK_HOST_TOKEN=$T
ExecStart=$here/berth --data-dir $DATA --approval auto
WorkingDirectory=/srv
Delegate=yes
$(printf '%s\n' "$@")
U
    systemctl daemon-reload
    systemctl restart berth
    up
}
detached() { # detached ID NUMBER: its path, once it runs
    local run
    run=$(api POST "/api/workspaces/$1/runs" "{\"command\": \"echo begun; until [ -e /tmp/go$2 ]; do sleep 0.2; done; echo ended; exit 7\", \"detach\": true}" | jq -re .id)
    for _ in $(seq 300); do
        [ "$(api GET "/api/workspaces/$1/runs/$run/output")" != begun ] || break
        sleep 0.1
    done
    echo "/api/workspaces/$1/runs/$run"
}

unit KillMode=process
id=$(make '{"name": "box", "workspace_type": "container"}')
host=$(detached $NIL 1)
box=$(detached "$id" 1)
plain=$(api POST "/api/workspaces/$NIL/runs" '{"command": "sleep 4713"}' | jq -re .id)
before=$(systemctl show -P MainPID berth)
systemctl restart berth
up
check "another server runs" test "$(systemctl show -P MainPID berth)" != "$before"
for run in "$host" "$box"; do
    told=$(api GET "$run")
    check "a detached run goes on" jq -e '.status == "running"' <<<"$told"
done
check "another one has ended" sh -c '! pgrep -f "sleep 4713"'
told=$(api GET "/api/workspaces/$NIL/runs/$plain")
check "and is said to have" jq -e '.status == "killed"' <<<"$told"
told=$(api GET "/api/workspaces/$id/debug")
check "the container was taken over" jq -e '.machine.adopted' <<<"$told"
touch /tmp/go1
run "$id" 'touch /tmp/go1' >/dev/null
for run in "$host" "$box"; do
    told=$(api POST "$run/wait?timeout_secs=60")
    check "its status is told" jq -e '.status == "exited" and .exit_code == 7' <<<"$told"
    same "its output is whole" "$(api GET "$run/output" | tr '\n' ' ')" "begun ended "
done
# The limits of the groups hold for the next server as well.
check "commands work on" jq -e '.stdout == "again\n"' <<<"$(run "$id" 'echo again')"
told=$(api GET "/api/workspaces/$id/resources")
check "and are bounded" jq -e '.enforcement.memory_bytes.enforced' <<<"$told"

# systemd's own default ends everything of a service, which is what README warns of.
host=$(detached $NIL 2)
unit KillMode=control-group
told=$(api GET "$host")
check "without KillMode=process a detached run ends with the service, and that is said" jq -e '.status != "running" and .status != "exited"' <<<"$told"
systemctl stop berth
same "nothing stays" "$(pgrep -fc 'berth (keeper|agent)' || true)" 0
echo "$checks checks"
