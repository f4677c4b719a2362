#!/bin/bash
# Prints the rate of the OpenWork routes in responses per second: the list of workspaces, a workspace's configuration,
# the list of its 50 skills, and /health for comparison.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -n "${B-}" ] || exec "$here/with-server" "$0" "$@"

id=$(curl -fsS "$B/workspaces" -H "Authorization: Bearer $T" | jq -r '.items[0].id')
curl -fsS -o /dev/null -X PATCH "$B/workspace/$id/config" -H "Authorization: Bearer $T" \
    -d '{"opencode": {"model": "acme/large", "mcp": {"docs": {"type": "remote", "url": "http://127.0.0.1:9/mcp"}}}}'
for n in $(seq 50); do
    curl -fsS -o /dev/null "$B/workspace/$id/skills" -H "Authorization: Bearer $T" \
        -d "{\"name\": \"skill-$n\", \"description\": \"Skill $n of a benchmark\", \"content\": \"# Skill $n\\n\\nDo it well.\\n\"}"
done
[ "$(curl -fsS "$B/workspace/$id/skills" -H "Authorization: Bearer $T" | jq '.items | length')" = 50 ]
rate() { # rate PATH: requests per second and the number of responses other than 2xx
    wrk -t2 -c16 -d"${SECONDS_EACH:-8}s" -H "Authorization: Bearer $T" "$B$1" |
        awk '/Requests\/sec/ { rate = $2 } /Non-2xx/ { bad = $NF } END { print rate, bad + 0 }'
}
read -r -a health <<<"$(rate /health)"
read -r -a list <<<"$(rate /workspaces)"
read -r -a config <<<"$(rate "/workspace/$id/config")"
read -r -a skills <<<"$(rate "/workspace/$id/skills")"
python3 - "$here" "${health[@]}" "${list[@]}" "${config[@]}" "${skills[@]}" <<'PYTHON'
import sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
from table import show
health, health_bad, *rest = sys.argv[2:]
rows = []
for name, wanted in (("GET /workspaces", "25,000/s"), ("GET /workspace/:id/config", "15,000/s"), ("GET /workspace/:id/skills, 50 skills", "3,000/s")):
    rate, bad, *rest = rest
    rows.append((name, f"{float(rate):,.0f}/s", f">= {wanted}", f"{float(rate) / float(health):.2f} x /health; {bad} failed responses"))
show("wrk -t2 -c16", rows + [("GET /health", f"{float(health):,.0f}/s", "", f"{health_bad} bad answers")])
PYTHON
