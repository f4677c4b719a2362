#!/bin/bash
# A job of the opencode-scheduler plugin has a timer in root's own systemd instance: after DELETE of the job its timer
# is stopped and disabled, and the timer of another job keeps running.
. ./lib.sh
seed
export HOME=/root XDG_RUNTIME_DIR=/run/user/0
# Starts the instance directly, without PAM's part of user@.service, because the machine is minimal.
install -d -m 700 $XDG_RUNTIME_DIR
systemd-run --quiet --unit=manager --property=Delegate=yes --setenv=HOME=$HOME --setenv=XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR \
    /lib/systemd/systemd --user
for _ in $(seq 300); do
    [ ! -e $XDG_RUNTIME_DIR/systemd/private ] || break
    sleep 0.1
done
for job in one two; do
    mkdir -p ~/.config/opencode/jobs ~/.config/systemd/user
    jq -n --arg slug $job '{slug: $slug, name: $slug, schedule: "0 9 * * *", prompt: "x", createdAt: "2026-01-01T00:00:00Z"}' \
        >~/.config/opencode/jobs/$job.json
    printf '[Service]\nType=oneshot\nExecStart=/bin/true\n' >~/.config/systemd/user/opencode-job-$job.service
    printf '[Timer]\nOnCalendar=*-*-* 09:00:00\n[Install]\nWantedBy=timers.target\n' \
        >~/.config/systemd/user/opencode-job-$job.timer
done
systemctl --user daemon-reload
systemctl --user enable --now opencode-job-one.timer opencode-job-two.timer
state() { systemctl --user is-active "opencode-job-$1.timer" || true; }
same "the timer runs" "$(state one)" active

cat >/etc/systemd/system/berth.service <<U
[Service]
Environment=OPENWORK_HOST_TOKEN=$T HOME=/root
ExecStart=$here/berth --data-dir $DATA --approval auto
WorkingDirectory=/srv
U
systemctl daemon-reload
systemctl restart berth
up
ws=$(api GET /workspaces | jq -re '.items[0].id')
told=$(api GET "/workspace/$ws/scheduler/jobs")
check "both jobs are listed" jq -e '.items | length == 2' <<<"$told"
told=$(api DELETE "/workspace/$ws/scheduler/jobs/one")
check "one is deleted" jq -e '.job.slug == "one"' <<<"$told"
same "its timer is stopped" "$(state one)" inactive
check "and starts with no later session" sh -c '! ls ~/.config/systemd/user/timers.target.wants | grep -q one'
check "its units are gone" test ! -e ~/.config/systemd/user/opencode-job-one.timer
same "the other one's timer runs" "$(state two)" active
check "nothing was complained of" sh -c '! journalctl -u berth --no-pager | grep "was not stopped"'
echo "$checks checks"
