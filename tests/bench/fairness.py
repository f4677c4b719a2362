#!/usr/bin/env python3
"""One owner and three limited tokens, one of which floods for a minute: prints the latency of `exec true` for the others with
and without the flood, the refusals, and the time until the owner has ended the flood.

tests/bench/with-server tests/bench/fairness.py; SECONDS_EACH for another duration, FLOOD for another command."""

import json
import os
import sys
import threading
import time

sys.dont_write_bytecode = True
import table

table.ensure_server()

SECONDS = int(os.environ.get("SECONDS_EACH", "60"))
FLOOD = os.environ.get("FLOOD", "true")
CONNECTIONS = int(os.environ.get("CONNECTIONS", "64"))
HOST = table.Connection()


def call(api, method, path, body=None):
    status, text = api.send(api.encode(method, path, body))
    return status, json.loads(text) if text[:1] in (b"{", b"[") else text


def workspace(name):
    status, made = call(HOST, "POST", "/api/workspaces", {"name": name})
    assert status == 200, made
    # Commands on the host need an owner token; this one is limited to its workspace.
    status, token = call(HOST, "POST", "/tokens", {"scope": "owner", "label": name, "workspaceIds": [made["id"]]})
    assert status == 201, token
    return made["id"], token["token"]


class Caller(threading.Thread):
    def __init__(self, place, token, until, command="true"):
        super().__init__(daemon=True)
        self.place, self.token, self.until, self.command = place, token, until, command
        self.times, self.statuses = [], {}

    def run(self):
        api = table.Connection(self.token)
        request = api.encode("POST", f"/api/workspaces/{self.place}/exec", {"command": self.command})
        while time.monotonic() < self.until():
            begin = time.perf_counter()
            try:
                status, _ = api.send(request)
            except OSError:
                # The server closes refused connections.
                status, api = 0, table.Connection(self.token)
            self.times.append((time.perf_counter() - begin) * 1e3)
            self.statuses[status] = self.statuses.get(status, 0) + 1
            time.sleep(0 if self.command != "true" or status == 429 else 0.005)


def measure(others, seconds):
    end = time.monotonic() + seconds
    callers = [Caller(place, token, lambda: end) for place, token in others]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return callers


def main():
    flooder, *others = [workspace(f"fair-{n}") for n in range(3)]
    others.append((flooder[0], os.environ["T"]))
    quiet = measure(others, max(5, SECONDS // 6))
    stop = time.monotonic() + SECONDS + 60
    flood = [Caller(*flooder, lambda: stop, FLOOD) for _ in range(CONNECTIONS)]
    for caller in flood:
        caller.start()
    time.sleep(1)
    loud = measure(others, SECONDS)
    begin = time.perf_counter()
    deleted, _ = call(HOST, "DELETE", f"/api/workspaces/{flooder[0]}")
    ended = time.perf_counter() - begin
    stop = 0
    rows = []
    for name, before, during in zip(("token 2", "token 3", "owner"), quiet, loud):
        p99 = [table.percentile(sorted(caller.times), 0.99) for caller in (before, during)]
        refused = sum(count for status, count in during.statuses.items() if status != 200)
        rows.append((f"{name}, p99", f"{p99[1]:.2f} ms", "<= 5 x", f"{p99[1] / p99[0]:.2f} x unflooded ({p99[0]:.2f} ms)"))
        rows.append((f"{name}, refused", str(refused), "0", f"of {len(during.times)}"))
    told = {}
    for caller in flood:
        for status, count in caller.statuses.items():
            told[status] = told.get(status, 0) + count
    rows.append(("responses to the flood", str(told), "", f"{CONNECTIONS} connections, `{FLOOD}`"))
    rows.append(("owner ends it", f"{ended:.2f} s", "", f"status {deleted}"))
    table.show("fairness", rows)


main()
