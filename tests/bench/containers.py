#!/usr/bin/env python3
"""Prints what containers cost: a command in one against the same on the host, taken in turns; the rate of sixteen
connections over four containers; and the first command of a stopped one."""

import os
import re
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
import table

table.ensure_server()

NIL = "00000000-0000-0000-0000-000000000000"
ROUNDS = int(os.environ.get("ROUNDS", "2000"))
SECONDS = int(os.environ.get("SECONDS_EACH", "8"))
STARTS = int(os.environ.get("STARTS", "20"))

# wrk, because sixteen connections of Python would need both cores for themselves.
LUA = """
local threads = {}
local paths = {}
for path in string.gmatch(os.getenv("PATHS"), "%S+") do table.insert(paths, path) end
local n = 0
function setup(thread) table.insert(threads, thread) end
function init(args)
  bad = 0
  wrk.method = "POST"
  wrk.body = '{"command":"true"}'
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. os.getenv("T")
end
function request()
  n = n + 1
  return wrk.format(nil, paths[n % #paths + 1])
end
function response(status, headers, body)
  if status ~= 200 or not body:find('"exit_code":0', 1, true) then bad = bad + 1 end
end
function done(summary, latency, requests)
  local bad = 0
  for _, thread in ipairs(threads) do bad = bad + thread:get("bad") end
  io.write("Bad: " .. bad .. "\\n")
end
"""


def build(api, name):
    made = api.call("POST", "/api/workspaces",
                    {"name": name, "workspace_type": "container", "distro": "debian-bookworm"})
    api.call("POST", f"/api/workspaces/{made['id']}/build")
    while True:
        now = api.call("GET", f"/api/workspaces/{made['id']}")
        if now["status"] != "building":
            break
        time.sleep(0.1)
    if now["status"] != "ready":
        raise SystemExit(f"build: {now}")
    return made["id"]


def in_turns(workspaces):
    """One command after the other, each workspace in its turn, so that all see the same machine."""
    api = table.Connection()
    requests = [api.encode("POST", f"/api/workspaces/{id}/exec", {"command": "true"}) for id in workspaces]
    times = [[] for _ in workspaces]
    for n in range(ROUNDS + 50):
        for request, taken in zip(requests, times):
            begin = time.perf_counter()
            status, body = api.send(request)
            took = time.perf_counter() - begin
            if status != 200 or b'"exit_code":0' not in body:
                raise SystemExit(f"exec true: {status} {body!r}")
            if n >= 50:
                taken.append(took * 1e3)
    return times


def sixteen_connections(workspaces):
    paths = " ".join(f"/api/workspaces/{id}/exec" for id in workspaces)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA)
        script.flush()
        done = subprocess.run(["wrk", "-t2", "-c16", f"-d{SECONDS}s", "-s", script.name, os.environ["B"]],
                              capture_output=True, text=True, timeout=SECONDS + 60, check=True,
                              env=os.environ | {"PATHS": paths})
    return float(re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)[1]), int(re.search(r"Bad: (\d+)", done.stdout)[1])


def cold_starts(api, workspace):
    times = []
    for _ in range(STARTS):
        api.call("POST", f"/api/workspaces/{workspace}/stop")
        begin = time.perf_counter()
        api.call("POST", f"/api/workspaces/{workspace}/exec", {"command": "true"})
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def main():
    api = table.Connection()
    boxes = [build(api, f"bench {n}") for n in range(4)]
    rows = []
    host, box = in_turns([NIL, boxes[0]])
    p50, p99 = table.percentile(box, 0.5), table.percentile(box, 0.99)
    floor = table.percentile(host, 0.5)
    rows.append(("exec true, container, p50", f"{p50:.2f} ms", "<= 1.5 x host", f"{p50 / floor:.2f} x host ({floor:.2f} ms)"))
    rows.append(("exec true, container, p99", f"{p99:.2f} ms", "<= 10 ms", f"host {table.percentile(host, 0.99):.2f} ms"))
    rate, bad = sixteen_connections(boxes)
    host_rate, host_bad = sixteen_connections([NIL])
    rows.append(("16 connections, 4 containers", f"{rate:,.0f}/s", ">= 1,000/s", f"{rate / host_rate:.2f} x host; {bad + host_bad} bad answers"))
    if STARTS:
        starts = cold_starts(api, boxes[0])
        rows.append((f"first command of a stopped one, p50 of {STARTS}", f"{table.percentile(starts, 0.5):.0f} ms", "<= 250 ms", f"worst {max(starts):.0f} ms"))
    table.show("Containers", rows)
    for box in boxes:
        api.call("DELETE", f"/api/workspaces/{box}")


main()
