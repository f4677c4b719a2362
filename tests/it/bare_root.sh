#!/bin/bash
# The plain binary in a Debian root that has nothing of what berth can use, neither systemd nor a package of berth:
# tests/it/bare_root.sh ROOT BINARY [OLD-BINARY]. ROOT is changed. It makes what such a root allows, upgrades from OLD-BINARY
# (BINARY itself unless one is named) while a detached run goes on, restores a backup at another path, and removes
# everything. Runs in namespaces of its own: unshare --mount --pid --net --fork --kill-child --mount-proc --propagation=private
. "$(dirname "$0")/../vm/payload.sh"
root=$1 binary=$2 old=${3:-$2}
NIL=00000000-0000-0000-0000-000000000000
log=$(mktemp)
trap 'rm -f "$log" "$log".*' EXIT
ip link set lo up
mount --bind "$root" "$root"
cd "$root"
enter=(chroot "$root" env -i HOME=/root PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin)
inside() { "${enter[@]}" "$@"; }
files() { find . -xdev ! -path './tmp/*' ! -path './proc/*' -printf '%y %P\n' | LC_ALL=C sort; }
files >"$log.before"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
server=
serve() { # serve DATA
    # No function: a subshell would get the signal that ends it.
    "${enter[@]}" berth serve --approval auto --data-dir "$1" >>"$log" 2>&1 &
    server=$!
    for _ in $(seq 600); do
        ! curl -fsS -o /dev/null $B/health 2>/dev/null || return 0
        sleep 0.1
    done
    cat "$log" >&2
    fail "the server does not answer"
}
end() {
    kill $server
    wait $server
}
place() { # place BINARY: as a person does it, by a copy and a rename
    install -m 755 "$1" usr/local/bin/.berth-new
    mv usr/local/bin/.berth-new usr/local/bin/berth
}

check "this is a bare root" sh -c '! ls usr/bin/systemd-nspawn usr/sbin/debootstrap usr/bin/curl 2>/dev/null'
place "$old"
serve $DATA
T=$(inside berth token show --data-dir $DATA | sed -n 's/^Host token: //p')
check "status finds the server" inside berth status --data-dir $DATA
told=$(run $NIL 'cat /etc/debian_version; pwd')
check "a host workspace runs commands" jq -e '.exit_code == 0 and (.stdout | startswith("12."))' <<<"$told"
id=$(api POST /api/workspaces '{"name": "box", "workspace_type": "container"}' | jq -re .id)
api POST "/api/workspaces/$id/build" '{"distro": "debian-bookworm"}' >/dev/null
for _ in $(seq 300); do
    told=$(api GET "/api/workspaces/$id")
    [ "$(jq -r .status <<<"$told")" != error ] || break
    sleep 0.1
done
check "a container workspace says which package it needs" jq -e '.error_message | contains("install the package debootstrap")' <<<"$told"
check "and doctor ends with 1" sh -c '! chroot . /usr/local/bin/berth doctor --data-dir '$DATA' >/dev/null'

# The upgrade, while a run goes on.
path=$(detached $NIL go)
place "$binary"
end
serve $DATA
told=$(api GET "$path")
check "a detached run survives the upgrade" jq -e '.status == "running"' <<<"$told"
inside berth backup /root/backup --data-dir $DATA 2>>"$log"
check "the backup disturbed nothing" jq -e '.status == "running"' <<<"$(api GET "$path")"
touch tmp/go
told=$(api POST "$path/wait?timeout_secs=60")
check "and its status is known" jq -e '.status == "exited" and .exit_code == 7' <<<"$told"
end

# The backup, at another path.
inside berth restore /root/backup --data-dir /srv/elsewhere 2>>"$log"
serve /srv/elsewhere
check "the tokens are the same" jq -e 'map(.name) | index("box") != null' <<<"$(api GET /api/workspaces)"
told=$(api GET "$path")
check "a run of the time of the backup is lost, and no status is made up" jq -e '.status == "failed" and .exit_code == null' <<<"$told"
groups=$(cat srv/elsewhere/cgroup "./$DATA/cgroup" 2>/dev/null || true)
end

# Removing it.
rm -rf ./$DATA srv/elsewhere root/backup usr/local/bin/berth
check "no process is left" sh -c '! pgrep -f "berth (serve|keeper|agent)"'
for group in $groups; do
    check "no cgroup is left" test ! -d "$group"
done
check "no mount is left" sh -c '! grep -qE "/var/lib/berth|/srv/elsewhere" /proc/self/mountinfo'
umount -l proc sys dev
files >"$log.after"
check "no file is left" diff "$log.before" "$log.after"
echo "$checks checks"
