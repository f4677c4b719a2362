#!/bin/bash
# A machine without network, without berth and without the tools that make base images receives one bundle. The time from
# the bundle to a command in a workspace made from a template, with its init script executed, is less than a minute.
. ./lib.sh

check "there is no network" sh -c '! ip route get 192.0.2.1 2>/dev/null'
# debootstrap could not reach a mirror; it is removed as well.
mv "$(command -v debootstrap)" /root/debootstrap.away
begun=$(date +%s%N)
tar -xf "$here/stick" berth
./berth bundle --restore "$here/stick" --bin /usr/local/bin
restored=$(date +%s%N)
OPENWORK_TOKEN=vm-client-token-1 OPENWORK_HOST_TOKEN=$T /usr/local/bin/berth > /var/log/berth.log 2>&1 &
server=$!
up
told=$(api POST /api/workspaces '{"name": "stick", "template": "from-the-stick"}')
id=$(jq -re .id <<< "$told") || fail "no workspace: $told"
# The build's event stream ends with the build, so no polling is needed.
api GET "/api/workspaces/$id/build/events?stream=ndjson" > /var/log/build.ndjson
status=$(api GET "/api/workspaces/$id" | jq -r .status)
[ "$status" = ready ] || fail "build: $(api GET "/api/workspaces/$id"; api GET "/api/workspaces/$id/init-log")"
built=$(date +%s%N)
told=$(run "$id" 'cat /root/proof; . /etc/os-release; echo $VERSION_CODENAME; echo $GREETING')
ended=$(date +%s%N)
same "the file of the init script, the system and the template's variable" "$(jq -r .stdout <<< "$told")" "init ran offline
bookworm
hello"
check "the template's skill is in the workspace" \
    test -f "$(api GET "/api/workspaces/$id" | jq -r .path)/root/.claude/skills/packed/SKILL.md" \
    -o -n "$(find / -xdev -path '*/packed/SKILL.md' -not -path '*/library/*' 2>/dev/null)"
seconds() { awk -v ns="$1" 'BEGIN { printf "%.1f", ns / 1e9 }'; }
echo "restored in $(seconds $((restored - begun))) s, built in $(seconds $((built - restored))) s, first response after $(seconds $((ended - begun))) s"
check "all of it took less than a minute" test $(((ended - begun) / 1000000000)) -lt 60
kill $server
wait $server || true
echo "$checks checks passed"
