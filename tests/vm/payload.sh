# Shared by all cases, inside the machine: functions to start berth, to call it, and to check. Sourced.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
here=$(pwd)
DATA=/var/lib/berth
B=http://127.0.0.1:8787
T=vm-host-token-51a2c3d4e5f60718
checks=0

fail() { # fail WHAT: prints the state, and ends the case
    echo "FAILED: $*" >&2
    tail -n 30 /var/log/berth.log >&2 2>/dev/null || true
    journalctl -u berth --no-pager -n 30 >&2 2>/dev/null || true
    exit 1
}
check() { # check WHAT COMMAND…: the command must succeed
    local what=$1
    shift
    if "$@"; then
        checks=$((checks + 1))
        echo "ok: $what"
    else
        fail "$what: $*: ${told-}"
    fi
}
same() { # same WHAT ACTUAL EXPECTED
    [ "$2" = "$3" ] || fail "$1: is '$2', expected '$3'"
    checks=$((checks + 1))
    echo "ok: $1: $2"
}
seed() { # copies the base image, so that no network is needed
    mkdir -p $DATA/images
    chmod 700 $DATA
    tar --extract --numeric-owner --same-permissions --file "$here/images.tar" --directory $DATA/images
}
up() { # waits until the server responds
    for _ in $(seq 600); do
        curl -fsS -o /dev/null $B/health 2>/dev/null && return
        sleep 0.1
    done
    fail "the server does not respond"
}
api() { # api METHOD PATH [BODY]: the body of the response, with any status
    curl -sS -X "$1" "$B$2" -H "Authorization: Bearer $T" -H 'Content-Type: application/json' ${3+-d "$3"}
}
make() { # make BODY: id of a built container
    local id
    id=$(api POST /api/workspaces "$1" | jq -re .id)
    api POST "/api/workspaces/$id/build" '{"distro": "debian-bookworm"}' >/dev/null
    for _ in $(seq 1200); do
        case $(api GET "/api/workspaces/$id" | jq -r .status) in
            ready) echo "$id"; return ;;
            error) fail "build: $(api GET "/api/workspaces/$id/init-log")" ;;
        esac
        sleep 0.2
    done
    fail "the build did not end"
}
run() { # run ID COMMAND [TIMEOUT]: response of exec
    api POST "/api/workspaces/$1/exec" "$(jq -nc --arg c "$2" --argjson t "${3-60}" '{command: $c, timeout_secs: $t}')"
}
detached() { # detached ID FILE: starts a detached run that ends when FILE exists, and prints its path once it runs
    local run
    run=$(api POST "/api/workspaces/$1/runs" "{\"command\": \"echo begun; until [ -e /tmp/$2 ]; do sleep 0.2; done; echo ended; exit 7\", \"detach\": true}" | jq -re .id)
    for _ in $(seq 300); do
        [ "$(api GET "/api/workspaces/$1/runs/$run/output")" != begun ] || break
        sleep 0.1
    done
    echo "/api/workspaces/$1/runs/$run"
}
