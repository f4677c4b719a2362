#!/usr/bin/env python3
"""Prints how long /health takes while a fork bomb, an endless writer, a memory hog and a disk filler work side by side in
one container, and before that. SECONDS_EACH: how long."""

import os
import sys
import threading
import time

sys.dont_write_bytecode = True
import table

table.ensure_server()

SECONDS = float(os.environ.get("SECONDS_EACH", "8"))
HOSTILE = [
    # Each in a shell of its own, so that a failing fork is tried again.
    "bomb() { while :; do sleep 0.01 & done; }; bomb & bomb & wait",
    "yes",
    "while :; do dd if=/dev/zero of=/dev/null bs=500M count=1 2>/dev/null; done",
    "while :; do head -c 100M /dev/zero >/tmp/full 2>/dev/null; done",
]


def health(seconds):
    """Milliseconds of each of as many as fit, one after the other."""
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
