#!/bin/bash
# berth as a service on a machine with systemd: `berth install`, the Debian package (install, upgrade while a detached run
# and a container go on, remove, purge), and what is left of either.
. ./lib.sh
NIL=00000000-0000-0000-0000-000000000000

detached() { # detached ID NAME: its path, once it runs
    local run
    run=$(api POST "/api/workspaces/$1/runs" "{\"command\": \"echo begun; until [ -e /tmp/$2 ]; do sleep 0.2; done; echo ended; exit 7\", \"detach\": true}" | jq -re .id)
    for _ in $(seq 300); do
        [ "$(api GET "/api/workspaces/$1/runs/$run/output")" != begun ] || break
        sleep 0.1
    done
    echo "/api/workspaces/$1/runs/$run"
}
nothing_left() { # nothing_left WHAT
    check "$1: no process is left" sh -c '! pgrep -f "berth (serve|keeper|agent)"'
    check "$1: no mount is left" sh -c '! grep -q /var/lib/berth /proc/self/mountinfo'
    check "$1: no cgroup is left" sh -c '! ls -d /sys/fs/cgroup/berth-* 2>/dev/null'
    check "$1: no unit is left" sh -c '! systemctl cat berth.service 2>/dev/null'
    check "$1: no file is left" sh -c '! ls -d /etc/berth /var/lib/berth /usr/bin/berth /usr/local/bin/berth 2>/dev/null'
}

# 1. `berth install`
seed
"$here/berth" install --yes
T=$(/usr/local/bin/berth token show | sed -n 's/^Host token: //p')
check "the service is ready when systemctl returns" curl -fsS -o /dev/null $B/health
check "systemctl shows what it does" sh -c 'systemctl status berth | grep -q "Status: \"1 workspaces"'
host=$(detached $NIL one)
"$here/berth" install --yes
told=$(api GET "$host")
check "a detached run goes on behind a second install" jq -e '.status == "running"' <<<"$told"
systemctl kill --signal=KILL berth
up
check "the service comes back after a kill" systemctl is-active --quiet berth
/usr/local/bin/berth uninstall --yes
check "the data stays" test -d /var/lib/berth
"$here/berth" install --yes --no-start
/usr/local/bin/berth uninstall --purge --yes
nothing_left "uninstall --purge"

# 2. the package
seed
dpkg --install "$here"/berth_*.deb
up
T=$(berth token show | sed -n 's/^Host token: //p')
id=$(make '{"name": "box", "workspace_type": "container"}')
host=$(detached $NIL two)
box=$(detached "$id" two)
before=$(systemctl show -P MainPID berth)
echo 'OPENWORK_APPROVAL_MODE=auto' >>/etc/berth/environment
dpkg --install --force-confold "$here"/berth_*.deb
up
check "an upgrade restarts the server" test "$(systemctl show -P MainPID berth)" != "$before"
check "settings stay" grep -q '^OPENWORK_APPROVAL_MODE=auto' /etc/berth/environment
for run in "$host" "$box"; do
    told=$(api GET "$run")
    check "a detached run survives the upgrade" jq -e '.status == "running"' <<<"$told"
done
touch /tmp/two
run "$id" 'touch /tmp/two' >/dev/null
for run in "$host" "$box"; do
    told=$(api POST "$run/wait?timeout_secs=60")
    check "and its status is known" jq -e '.status == "exited" and .exit_code == 7' <<<"$told"
done
detached "$id" three >/dev/null
dpkg --remove berth
check "remove keeps the data" test -d /var/lib/berth
check "and ends what ran" sh -c '! pgrep -f "berth (serve|keeper|agent)"'
dpkg --purge berth
nothing_left purge

# 3. a socket that systemd holds
dpkg --install "$here"/berth_*.deb
systemctl stop berth
systemctl enable --now berth.socket
check "the first connection starts the service" curl -fsS -o /dev/null --max-time 60 $B/health
dpkg --purge berth
nothing_left "purge with a socket"
echo "$checks checks"
