#!/usr/bin/env python3
"""Floods the connection table with clients (silent ones, partial heads, partial bodies, connections that stay open after a
response, connections above a token's share, wrong tokens), each for SECONDS_EACH (10), and measures the latency of an owner
and of a token without limits at the same time, each request on a new connection.

tests/bench/with-server tests/bench/crowd.py; BERTH_FLAGS='--max-connections 64' for a smaller table."""

import collections
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

sys.dont_write_bytecode = True
import table

table.ensure_server()

SECONDS = float(os.environ.get("SECONDS_EACH", "10"))
HOST = urllib.parse.urlparse(os.environ["B"])
OWNER = os.environ["T"]
FLOOD = """
import collections, os, socket, sys, time
host, port, text, end = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode(), time.monotonic() + float(sys.argv[4])
held, count = collections.deque(), 0
while time.monotonic() < end:
    try:
        client = socket.create_connection((host, port), timeout=1)
        client.sendall(text)
        held.append(client)
        count += 1
    except OSError:
        pass
    while len(held) > 700:
        held.popleft().close()
print(count)
"""


def head(method, path, token, length=0):
    return (f"{method} {path} HTTP/1.1\r\nHost: {HOST.netloc}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n")


def call(method, path, body=None):
    api = table.Connection()
    status, text = api.send(api.encode(method, path, body))
    return json.loads(text)


def ask(token, times, answers, until):
    while time.monotonic() < until:
        begin = time.perf_counter()
        try:
            client = socket.create_connection((HOST.hostname, HOST.port), timeout=20)
            client.sendall(head("GET", "/api/workspaces", token).encode())
            answers[client.recv(4096)[9:12].decode() or "closed"] += 1
            client.close()
        except OSError as error:
            answers[type(error).__name__] += 1
        times.append((time.perf_counter() - begin) * 1e3)
        time.sleep(0.01)


made = call("POST", "/api/workspaces", {"name": "crowd"})["id"]
limited, other = [
    call("POST", "/tokens", {"scope": "owner", "label": "crowd", "workspaceIds": [made]})["token"] for _ in range(2)
]
kinds = {
    "nothing": "",
    "half heads": "GET /health HTTP/1.1\r\nHost: x",
    "half bodies": head("POST", f"/api/workspaces/{made}/exec", limited, 100000) + "{",
    "kept open": "GET /health HTTP/1.1\r\nHost: x\r\n\r\n".replace("x", HOST.netloc),
    "over share": head("GET", "/api/workspaces", limited),
    "wrong token": head("GET", "/api/workspaces", "wrong"),
}
rows = []
for kind, text in [("no flood", None), *kinds.items()]:
    words = [sys.executable, "-c", FLOOD, HOST.hostname, str(HOST.port), text or "", str(SECONDS)]
    floods = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2 if text is not None else 0)]
    time.sleep(1 if floods else 0)
    until = time.monotonic() + SECONDS - 1
    seen = [([], collections.Counter()) for _ in range(2)]
    askers = [threading.Thread(target=ask, args=(token, *seen[n], until)) for n, token in enumerate([OWNER, other])]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    count = sum(int(flood.communicate()[0]) for flood in floods)
    for (times, answers), name in zip(seen, ["owner", "other token"]):
        figure = f"p50 {table.percentile(times, 0.5):.1f} ms, worst {max(times):.0f} ms"
        rows.append((f"{kind}: {name}", figure, "200 only", f"{dict(answers)}, {count} connections of the flood"))
table.show("A crowd at the door", rows)
sys.exit(0 if all("200 only" == row[2] and "'200'" in row[3] for row in rows) else 1)
