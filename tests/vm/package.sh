#!/bin/bash
# berth as a service on a machine with systemd: `berth install`, the Debian package (install, upgrade during a detached
# run and a running container, reboot, a backup restored at another path, a refused downgrade, remove, purge), and the
# leftovers of both. The reboot runs this script a second time.
. ./lib.sh
NIL=00000000-0000-0000-0000-000000000000

nothing_left() { # nothing_left WHAT
    check "$1: no process is left" sh -c '! pgrep -f "berth (serve|keeper|agent)"'
    check "$1: no mount is left" sh -c '! grep -q /var/lib/berth /proc/self/mountinfo'
    check "$1: no cgroup is left" sh -c '! ls -d /sys/fs/cgroup/berth-* 2>/dev/null'
    check "$1: no unit is left" sh -c '! systemctl cat berth.service 2>/dev/null'
    check "$1: no file is left" sh -c '! ls -d /etc/berth /var/lib/berth /usr/bin/berth /usr/local/bin/berth 2>/dev/null'
}

if [ ! -e rebooted ]; then
# 1. `berth install`
seed
"$here/berth" install --yes
T=$(/usr/local/bin/berth token show | sed -n 's/^Host token: //p')
check "the service is ready when systemctl returns" curl -fsS -o /dev/null $B/health
check "systemctl shows what it does" sh -c 'systemctl status berth | grep -q "Status: \"1 workspace,"'
host=$(detached $NIL one)
"$here/berth" install --yes
told=$(api GET "$host")
check "a detached run keeps running during a second install" jq -e '.status == "running"' <<<"$told"
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
    check "its exit status is kept" jq -e '.status == "exited" and .exit_code == 7' <<<"$told"
done
# Across the reboot: one run in progress, and one that has ended.
host=$(detached $NIL four)
box=$(detached "$id" four)
printf '%s\n' "$id" "$host" "$box" "$run" "$T" >rebooted
sync
systemctl reboot
sleep 600
fail "the machine did not reboot"
fi

# 3. after the reboot
{ read -r id; read -r host; read -r box; read -r ended; read -r T; } <rebooted
up
check "the service started by itself" systemctl is-active --quiet berth
for run in "$host" "$box"; do
    told=$(api GET "$run")
    check "a run that the reboot ended has failed, without an exit status" jq -e '.status == "failed" and .exit_code == null' <<<"$told"
done
told=$(api GET "$ended")
check "a run that had ended keeps its status" jq -e '.status == "exited" and .exit_code == 7' <<<"$told"
told=$(api GET "/api/workspaces/$id")
check "the workspace is ready" jq -e '.status == "ready"' <<<"$told"
told=$(run "$id" 'echo mine >/root/mine; echo works')
check "its container works" jq -e '.stdout == "works\n"' <<<"$told"

# 4. a backup, restored at another path
host=$(detached $NIL five)
berth backup /root/backup 2>/var/log/berth.log
berth restore /root/backup --data-dir /srv/restored 2>/var/log/berth.log
told=$(api GET "$host")
check "the backup does not end a detached run" jq -e '.status == "running"' <<<"$told"
touch /tmp/five
echo 'BERTH_DATA_DIR=/srv/restored' >>/etc/berth/environment
systemctl restart berth
up
same "the tokens are the same" "$(berth token show --data-dir /srv/restored | sed -n 's/^Host token: //p')" "$T"
told=$(run "$id" 'cat /root/mine; rm /root/mine')
check "the restored container works" jq -e '.stdout == "mine\n"' <<<"$told"
told=$(api GET "/api/workspaces/$id")
check "the restored workspace has its new path" jq -e '.path | startswith("/srv/restored/")' <<<"$told"

# 5. Data of a newer version
echo 2 >/srv/restored/format
if told=$(dpkg --install "$here"/berth_*.deb 2>&1); then
    fail "a downgrade was not refused"
fi
check "a downgrade is refused with a reason" grep -q 'data format 2, which a newer berth wrote' <<<"$told"
check "the service goes on" curl -fsS -o /dev/null $B/health
systemctl restart berth || true
for _ in $(seq 100); do
    [ "$(systemctl show -P ActiveState berth)" != failed ] || break
    sleep 0.1
done
same "another start of the old version ends with its status" "$(systemctl show -P ExecMainStatus berth)" 3
same "the failed start is not repeated" "$(systemctl show -P ActiveState berth)" failed
echo 1 >/srv/restored/format
systemctl reset-failed berth
systemctl start berth
up
told=$(run "$id" 'echo again')
check "the refused downgrade changed nothing" jq -e '.stdout == "again\n"' <<<"$told"
sed -i '/^BERTH_DATA_DIR=/d' /etc/berth/environment
systemctl restart berth
up
told=$(run "$id" 'cat /root/mine')
check "the original is unchanged" jq -e '.stdout == "mine\n"' <<<"$told"
rm -rf --one-file-system /srv/restored

# 6. remove and purge
detached "$id" three >/dev/null
dpkg --remove berth
check "remove keeps the data" test -d /var/lib/berth
check "and ends what ran" sh -c '! pgrep -f "berth (serve|keeper|agent)"'
dpkg --purge berth
nothing_left purge

# 7. A socket held by systemd
dpkg --install "$here"/berth_*.deb
systemctl stop berth
systemctl enable --now berth.socket
check "the first connection starts the service" curl -fsS -o /dev/null --max-time 60 $B/health
dpkg --purge berth
nothing_left "purge with a socket"
echo "$checks checks"
