#!/bin/bash
# A data folder on ext4 and on XFS with project quotas: the disk usage of a container is limited, even against its root,
# and that of its neighbours is not affected. Needs a kernel with quotas, which the build machine may lack.
. ./lib.sh
MIB=1048576

start() { # start [FLAG…]
    (cd /srv && OPENWORK_HOST_TOKEN=$T exec "$here/berth" --data-dir $DATA --approval auto "$@") >>/var/log/berth.log 2>&1 &
    server=$!
    up
}
all() { # all IMAGE: all checks, on the file system in that file
    check "a file system with project quotas" mount -o loop,prjquota "$1" $DATA
    seed
    start
    row=$(api GET /api/doctor | jq -c '.checks[] | select(.name == "limit of disk")')
    check "the doctor sees them: $row" jq -e '.status == "ok"' <<<"$row"
    id=$(make '{"name": "bounded", "workspace_type": "container", "resources": {"disk_bytes": 67108864}}')
    other=$(make '{"name": "neighbour", "workspace_type": "container"}')
    told=$(api GET "/api/workspaces/$id/resources")
    check "its limit is enforced" jq -e '.enforcement.disk_bytes.enforced and .warnings == [] and .limits.disk_bytes == 67108864' <<<"$told"
    check "debug reports the limit" jq -e '.enforcement.disk_bytes.enforced' <<<"$(api GET "/api/workspaces/$id/debug")"
    told=$(run "$id" 'dd if=/dev/zero of=/root/large bs=1M count=200; stat -c %s /root/large')
    check "a filler cannot exceed the limit" jq -e "(.stdout | tonumber) <= 64*$MIB and (.stdout | tonumber) > 32*$MIB and (.stderr | test(\"quota|space\"))" <<<"$told"
    told=$(run "$id" 'cp -a /usr/lib /root/lib2 2>&1 | tail -1; for f in /usr/bin/*; do touch $f; done 2>&1 | tail -1; mkdir -p /root/x && dd if=/dev/zero of=/var/tmp/more bs=1M count=50 2>&1 | head -1')
    check "not in other folders or by changing files of the image either" jq -e '.stdout | test("quota|space")' <<<"$told"
    told=$(api GET "/api/workspaces/$id/debug")
    # Root inside cannot change the project of a file: the kernel permits that only to root of the initial user
    # namespace.
    told=$(run "$id" 'perl -e '"'"'open(F, "<", "/root/x") or exit 2; my $a = pack("L7", 0,0,0,77,0,0,0); exit(ioctl(F, 0x401c5820, $a) ? 0 : 1)'"'")
    check "root inside cannot leave its project" jq -e '.exit_code != 0' <<<"$told"
    told=$(run "$other" 'dd if=/dev/zero of=/root/large bs=1M count=100 2>&1 && rm /root/large')
    check "a neighbour is not limited" jq -e '.exit_code == 0' <<<"$told"
    told=$(run "$id" 'rm -rf /root/large /root/lib2 /var/tmp/more; dd if=/dev/zero of=/root/again bs=1M count=20')
    check "removed files free space" jq -e '.exit_code == 0' <<<"$told"
    kill $server
    wait $server || true
    start
    told=$(run "$id" 'dd if=/dev/zero of=/root/large bs=1M count=200')
    check "the limit holds after a restart" jq -e '.exit_code != 0' <<<"$told"
    api PUT "/api/workspaces/$id" '{"resources": {"disk_bytes": 209715200}}' >/dev/null
    told=$(run "$id" 'dd if=/dev/zero of=/root/large bs=1M count=120')
    check "the limit is removed while the container runs" jq -e '.exit_code == 0' <<<"$told"
    api PUT "/api/workspaces/$id" '{"resources": {"disk_bytes": 67108864}}' >/dev/null
    api POST "/api/workspaces/$id/build" '{"distro": "debian-bookworm", "rebuild": true}' >/dev/null
    for _ in $(seq 600); do
        [ "$(api GET "/api/workspaces/$id" | jq -r .status)" = building ] || break
        sleep 0.2
    done
    told=$(run "$id" 'dd if=/dev/zero of=/root/large bs=1M count=200; rm /root/large; echo alive')
    check "the limit holds after a rebuild, and the container runs" jq -e '(.stderr | test("quota|space")) and .stdout == "alive\n"' <<<"$told"
    check "deleted" grep -q deleted <<<"$(api DELETE "/api/workspaces/$id")"
    kill $server
    wait $server || true
    umount $DATA
    # A copied root contains its image, in addition to the limit.
    mount -o loop,prjquota "$1" $DATA
    start --root-backend=copy
    id=$(make '{"name": "copied", "workspace_type": "container", "resources": {"disk_bytes": 67108864}}')
    check "a copy is one" jq -e '.root_kind == "copy" and .enforcement.disk_bytes.enforced' <<<"$(api GET "/api/workspaces/$id/debug")"
    fills() {
        told=$(run "$id" 'rm -f /root/large; dd if=/dev/zero of=/root/large bs=1M count=200; stat -c %s /root/large')
        check "$1" jq -e "(.stdout | tonumber) <= 64*$MIB and (.stdout | tonumber) > 32*$MIB and (.stderr | test(\"quota|space\"))" <<<"$told"
    }
    fills "a filler of a copy gets no more"
    told=$(run "$id" 'for i in $(seq 40); do cat /usr/bin/bash >> /usr/bin/perl; done 2>&1 | tail -1; stat -c %a /; apt-get --version >/dev/null && echo alive')
    check "not by appending to files of the image either" jq -e '.stdout | test("quota|space") and test("755\nalive")' <<<"$told"
    told=$(run "$id" 'rm /root/large')
    snapshot=$(api POST "/api/workspaces/$id/snapshots" '{}' | jq -r .id)
    api POST "/api/workspaces/$id/snapshots/$snapshot/restore" >/dev/null
    fills "a restored copy is bounded as well"
    kill $server
    wait $server || true
    umount $DATA
    # Without the option the same file system only counts usage.
    mount -o loop $1 $DATA
    start
    told=$(api GET "/api/workspaces/$other/resources")
    check "without prjquota the limit is reported as not enforced" jq -e '.enforcement.disk_bytes | (.enforced | not) and (.how | test("prjquota"))' <<<"$told"
    kill $server
    wait $server || true
    umount $DATA
}

mkdir -p $DATA
truncate -s 3G /srv/quota.img
mke2fs -q -t ext4 -O project,quota -E quotatype=prjquota /srv/quota.img
all /srv/quota.img
rm /srv/quota.img
# The payload contains the file system, since the machine has no mkfs.xfs.
check "the kernel has XFS" modprobe xfs
all "$here/xfs.img"
echo "$checks checks"
