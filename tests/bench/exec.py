#!/usr/bin/env python3
"""Prints the cost of `exec true`, on the host and in a container: latency of one connection, rate of sixteen."""

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

# wrk, because sixteen connections in Python would occupy both cores.
LUA = """
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args)
  bad = 0
  wrk.method = "POST"
  wrk.body = '{"command":"true"}'
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. os.getenv("T")
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


def one_connection(workspace):
    api = table.Connection()
    request = api.encode("POST", f"/api/workspaces/{workspace}/exec", {"command": "true"})
    times = []
    for n in range(ROUNDS + 50):
        begin = time.perf_counter()
        status, body = api.send(request)
        took = time.perf_counter() - begin
        if status != 200 or b'"exit_code":0' not in body:
            raise SystemExit(f"exec true: {status} {body!r}")
        if n >= 50:
            times.append(took * 1e3)
    return times


def sixteen_connections(workspace):
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA)
        script.flush()
        url = f"{os.environ['B']}/api/workspaces/{workspace}/exec"
        done = subprocess.run(["wrk", "-t2", "-c16", f"-d{SECONDS}s", "-s", script.name, url],
                              capture_output=True, text=True, timeout=SECONDS + 60, check=True)
    rate = float(re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)[1])
    bad = int(re.search(r"Bad: (\d+)", done.stdout)[1])
    return rate, bad, done.stdout


def bare():
    """Baseline of this machine at this moment: a shell that runs `true`, without a server."""
    times = []
    for _ in range(300):
        begin = time.perf_counter()
        os.waitpid(os.posix_spawn("/bin/bash", ["bash", "-c", "true"], {"PATH": "/usr/bin:/bin"}), 0)
        times.append((time.perf_counter() - begin) * 1e3)
    return table.percentile(times, 0.5)


def main():
    rows = []
    for place, workspace, p50, rate_wanted in [
        ("host", NIL, "<= 1.5 ms", ">= 1,500/s"),
        ("container", None, "<= 2.5 ms", ">= 800/s"),
    ]:
        workspace = workspace or table.container()
        floor = bare()
        times = one_connection(workspace)
        median = table.percentile(times, 0.5)
        rows.append((f"{place}, 1 connection, p50", f"{median:.2f} ms", p50, f"{median / floor:.2f} x `bash -c true` ({floor:.2f} ms)"))
        rows.append((f"{place}, 1 connection, p95", f"{table.percentile(times, 0.95):.2f} ms", "", ""))
        rows.append((f"{place}, 1 connection, p99", f"{table.percentile(times, 0.99):.2f} ms", "", ""))
        rate, bad, _ = sixteen_connections(workspace)
        rows.append((f"{place}, 16 connections", f"{rate:,.0f}/s", rate_wanted, f"{rate * median / 1e3:.2f} x one connection; {bad} bad answers"))
    table.show("exec true", rows)


main()
