#!/usr/bin/env python3
"""Prints the latency of /health before and while a fork bomb, an endless writer, a memory hog and a disk filler run in one
container. SECONDS_EACH: duration of each part."""

import os
import sys
import threading
import time

sys.dont_write_bytecode = True
import table

table.ensure_server()

SECONDS = float(os.environ.get("SECONDS_EACH", "8"))
HOSTILE = [
    # Each in a separate shell, so that a failed fork is retried.
    "bomb() { while :; do sleep 0.01 & done; }; bomb & bomb & wait",
    "yes",
    "while :; do dd if=/dev/zero of=/dev/null bs=500M count=1 2>/dev/null; done",
    "while :; do head -c 100M /dev/zero >/tmp/full 2>/dev/null; done",
]


def health(seconds):
    """Milliseconds of each request, one after the other, for `seconds`."""
    api, times, end = table.Connection(), [], time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.perf_counter()
        api.call("GET", "/health")
        times.append((time.perf_counter() - begin) * 1e3)
        time.sleep(0.005)
    return times


api = table.Connection()
path = f"/api/workspaces/{table.container()}"
api.call("POST", path + "/exec", {"command": "true"})
quiet = health(min(SECONDS, 2))


def work(command):
    table.Connection().call("POST", path + "/exec", {"command": command, "timeout_secs": SECONDS})


workers = [threading.Thread(target=work, args=(command,)) for command in HOSTILE]
for worker in workers:
    worker.start()
times = health(SECONDS)
for worker in workers:
    worker.join()
told = api.call("POST", path + "/exec", {"command": "echo alive"})["stdout"]
api.call("DELETE", path)
table.show("Fork bomb, yes, memory hog and disk filler side by side, with the default limits", [
    ("/health, p50", f"{table.percentile(times, 0.5):.1f} ms", "", f"{table.percentile(quiet, 0.5):.1f} ms without them"),
    ("/health, worst", f"{max(times):.1f} ms", "< 100 ms", f"{max(quiet):.1f} ms without them; {len(times)} asked"),
    ("the next command", told.strip(), "alive", ""),
])
