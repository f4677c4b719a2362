#!/usr/bin/env python3
"""Clients that never read their responses: prints the server's memory and its latency for other clients.

tests/bench/with-server tests/bench/memory.py; CLIENTS (64) and MEGABYTES (200) of output each."""

import json
import os
import socket
import sys
import time

sys.dont_write_bytecode = True
import table

table.ensure_server()

CLIENTS = int(os.environ.get("CLIENTS", "64"))
MEGABYTES = int(os.environ.get("MEGABYTES", "200"))
NIL = "00000000-0000-0000-0000-000000000000"


def rss():
    with open(f"/proc/{os.environ['BERTH_PID']}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def main():
    before, peak, slow = rss(), 0, []
    half = MEGABYTES * 500_000
    body = json.dumps({"command": f"head -c {half} /dev/zero; head -c {half} /dev/zero >&2", "timeout_secs": 600})
    head = (f"POST /api/workspaces/{NIL}/exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {os.environ['T']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}")
    address = os.environ["B"].removeprefix("http://").rsplit(":", 1)
    clients = []
    for _ in range(CLIENTS):
        client = socket.socket()
        # The kernel must not buffer the response on behalf of the client.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((address[0], int(address[1])))
        client.sendall(head.encode())
        clients.append(client)
    health = table.Connection()
    request = health.encode("GET", "/health")
    answered, end = set(), time.monotonic() + 300
    while len(answered) < CLIENTS and time.monotonic() < end:
        for n, client in enumerate(clients):
            if n not in answered:
                try:
                    answered.update({n} if client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) else ())
                except BlockingIOError:
                    pass
        begin = time.perf_counter()
        status, _ = health.send(request)
        slow.append((time.perf_counter() - begin) * 1e3)
        assert status == 200
        peak = max(peak, rss())
        time.sleep(0.02)
    time.sleep(2)
    peak = max(peak, rss())
    table.show("memory", [
        ("memory before", f"{before:.0f} MB", "", ""),
        ("memory, most", f"{peak:.0f} MB", "< 96 MB", f"{len(answered)} of {CLIENTS} answers begun, {MEGABYTES} MB of output each"),
        ("/health, p50", f"{table.percentile(sorted(slow), 0.5):.1f} ms", "", ""),
        ("/health, most", f"{max(slow):.1f} ms", "< 50 ms", f"{len(slow)} requests"),
    ])


main()
