#!/usr/bin/env python3
"""Prints by how much the server grows while one command writes 100 MB, and the throughput."""

import os
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
import table

table.ensure_server()

NIL = "00000000-0000-0000-0000-000000000000"
COMMAND = "head -c 100000000 /dev/zero | tr '\\0' x"


def peak_while(pid, work):
    """The largest VmRSS during `work`; VmHWM would include the start."""
    peak, stop = [0], threading.Event()

    def watch():
        while not stop.wait(0.002):
            peak[0] = max(peak[0], table.memory_kb(pid, "VmRSS"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        stop.set()
        watcher.join()
    return peak[0]


def main():
    pid = int(os.environ["BERTH_PID"])
    api = table.Connection()
    begin = time.perf_counter()
    subprocess.run(["bash", "-c", COMMAND + " | cat >/dev/null"], check=True)
    bare = time.perf_counter() - begin
    rows = []
    for place, workspace in [("host", NIL), ("container", None)]:
        workspace = workspace or table.container()
        path = f"/api/workspaces/{workspace}/exec"
        api.call("POST", path, {"command": "true"})
        before = table.memory_kb(pid, "VmRSS")
        told = {}
        begin = time.perf_counter()
        peak = peak_while(pid, lambda: told.update(api.call("POST", path, {"command": COMMAND, "timeout_secs": 120})))
        took = time.perf_counter() - begin
        if told["exit_code"] != 0 or not told["truncated"]:
            raise SystemExit(f"unexpected result: exit {told['exit_code']}, truncated {told['truncated']}")
        after = table.memory_kb(pid, "VmRSS")
        rows += [
            (f"{place}: growth at its peak", f"{max(0, peak - before) / 1024:.1f} MB", "< 32 MB", f"{before / 1024:.1f} MB before"),
            (f"{place}: growth afterwards", f"{max(0, after - before) / 1024:.1f} MB", "", ""),
            (f"{place}: the answer", f"{took:.2f} s", "", f"{took / bare:.2f} x the same into `cat` ({bare:.2f} s)"),
        ]
    table.show("100 MB of output from one exec", rows)


main()
