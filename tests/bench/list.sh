#!/bin/bash
# Prints the server's rate of lists of five workspaces and of /health, per second.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -n "${B-}" ] || exec "$here/with-server" "$0" "$@"

for n in 1 2 3 4; do
    curl -fsS -o /dev/null -X POST "$B/api/workspaces" -H "Authorization: Bearer $T" \
        -H 'Content-Type: application/json' -d "{\"name\": \"bench-$n\"}"
done
rate() { # rate PATH: requests per second and the number of responses other than 2xx
    wrk -t2 -c16 -d"${SECONDS_EACH:-8}s" -H "Authorization: Bearer $T" "$B$1" |
        awk '/Requests\/sec/ { rate = $2 } /Non-2xx/ { bad = $NF } END { print rate, bad + 0 }'
}
read -r health health_bad <<<"$(rate /health)"
read -r list list_bad <<<"$(rate /api/workspaces)"
python3 - "$here" "$health" "$health_bad" "$list" "$list_bad" <<'PYTHON'
import sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
from table import Connection, show
count = len(Connection().call("GET", "/api/workspaces"))
health, health_bad, listed, list_bad = float(sys.argv[2]), sys.argv[3], float(sys.argv[4]), sys.argv[5]
show("wrk -t2 -c16", [
    (f"GET /api/workspaces, {count} workspaces", f"{listed:,.0f}/s", ">= 40,000/s", f"{listed / health:.2f} x /health; {list_bad} bad answers"),
    ("GET /health", f"{health:,.0f}/s", "", f"{health_bad} bad answers"),
])
PYTHON
