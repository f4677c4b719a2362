#!/usr/bin/env python3
"""Prints the cost of connections: memory of 500 idle open ones, latency of a request on an open one, and the delay of a
byte from a program in a workspace to a client that waits for it."""

import base64
import os
import socket
import struct
import sys
import time

sys.dont_write_bytecode = True
import table

table.ensure_server()

NIL = "00000000-0000-0000-0000-000000000000"
ROUNDS = int(os.environ.get("ROUNDS", "5000"))
CONNECTIONS = int(os.environ.get("CONNECTIONS", "500"))
PID = int(os.environ["BERTH_PID"])
STAMPS = "import time\nfor _ in range(250): print(time.monotonic_ns(), flush=True); time.sleep(0.01)"


def settled(field="VmRSS"):
    """Memory, once it no longer changes."""
    last = table.memory_kb(PID, field)
    for _ in range(100):
        time.sleep(0.1)
        now = table.memory_kb(PID, field)
        if now == last:
            break
        last = now
    return last


def idle_connections():
    """KiB by which the server grows: for silent connections, then for the same connections after a request on each."""
    table.Connection().call("GET", "/health")
    before = settled()
    opened = [table.Connection() for _ in range(CONNECTIONS)]
    silent = settled() - before
    for connection in opened:
        connection.call("GET", "/health")
    served = settled() - before
    threads = len(os.listdir(f"/proc/{PID}/task"))
    return before, silent, served, threads


def latency(path):
    """Milliseconds of each request on one open connection."""
    api = table.Connection()
    request = api.encode("GET", path)
    times = []
    for n in range(ROUNDS + 100):
        begin = time.perf_counter()
        status, _ = api.send(request)
        took = time.perf_counter() - begin
        if status != 200:
            raise SystemExit(f"GET {path}: {status}")
        if n >= 100:
            times.append(took * 1e3)
    return times


def bare():
    """Baseline of this machine at this moment: a byte to another process over loopback and back."""
    here = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        there, _ = here.accept()
        while there.recv(1):
            there.sendall(b"x")
        os._exit(0)
    times = []
    with socket.create_connection(here.getsockname()) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(1000):
            begin = time.perf_counter()
            stream.sendall(b"x")
            stream.recv(1)
            times.append((time.perf_counter() - begin) * 1e3)
    os.waitpid(child, 0)
    return times


def from_terminal():
    """Milliseconds from a program's write to its terminal until a WebSocket client has received the bytes."""
    api = table.Connection()
    command = {"command": f"read -r _; exec python3 -c '{STAMPS}'", "cols": 80, "rows": 24}
    status, text = api.send(api.encode("POST", f"/api/workspaces/{NIL}/terminals", command))
    if status != 201:
        raise SystemExit(f"terminal: {status} {text!r}")
    terminal = text.decode().split('"id":"')[1].split('"')[0]
    watcher = table.Connection()
    watcher.socket.sendall((
        f"GET /api/workspaces/{NIL}/terminals/{terminal}/ws HTTP/1.1\r\nHost: {watcher.host}\r\n"
        f"Authorization: Bearer {os.environ['T']}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n").encode())
    while b"\r\n\r\n" not in watcher.rest:
        watcher.fill()
    head, watcher.rest = watcher.rest.split(b"\r\n\r\n", 1)
    if b" 101 " not in head.split(b"\r\n")[0]:
        raise SystemExit(f"WebSocket: {head!r}")
    mask = os.urandom(4)
    word = b"\n"
    watcher.socket.sendall(bytes([0x82, 0x80 | len(word)]) + mask + bytes(b ^ m for b, m in zip(word, mask)))
    times, line = [], b""
    while len(times) < 250:
        first, length = watcher.take(2)
        if length == 126:
            length = struct.unpack(">H", watcher.take(2))[0]
        elif length == 127:
            length = struct.unpack(">Q", watcher.take(8))[0]
        data = watcher.take(length)
        now = time.monotonic_ns()
        if first & 15 == 8:
            raise SystemExit(f"the terminal was closed after {len(times)} lines: {data!r}")
        if first & 15 != 2:
            continue
        *lines, line = (line + data).split(b"\n")
        times += [(now - int(text)) / 1e6 for text in lines if text.strip().isdigit()]
    return times[10:]


def from_command():
    """Milliseconds from the last write of a command until its response, which was held open, has arrived."""
    api = table.Connection()
    request = api.encode("POST", f"/api/workspaces/{NIL}/exec", {"command": "date +%s%N"})
    times = []
    for n in range(320):
        status, body = api.send(request)
        now = time.time_ns()
        if status != 200:
            raise SystemExit(f"exec: {status} {body!r}")
        if n >= 20:
            stamp = body.decode().split('"stdout":"')[1].split("\\n")[0]
            times.append((now - int(stamp)) / 1e6)
    return times


def p(values, share):
    return f"{table.percentile(values, share):.2f} ms"


def main():
    before, silent, served, threads = idle_connections()
    floor = bare()
    rows = [
        (f"{CONNECTIONS} open connections, silent", f"{silent / 1024:.1f} MB", "< 30 MB", f"server at rest: {before / 1024:.1f} MB"),
        ("... after a request on each", f"{served / 1024:.1f} MB", "< 30 MB", f"{threads} threads"),
    ]
    for path in ["/health", "/api/workspaces"]:
        times = latency(path)
        share = table.percentile(times, 0.5) / table.percentile(floor, 0.5)
        rows.append((f"GET {path}, open connection, p50", p(times, 0.5), "",
                     f"{share:.1f} x one byte to a process and back ({p(floor, 0.5)})"))
        rows.append(("... p99", p(times, 0.99), "", f"the byte: {p(floor, 0.99)}"))
    for what, times in [("written to a terminal, read from a WebSocket", from_terminal()),
                        ("a command's last byte, read in its answer", from_command())]:
        rows.append((what + ", p50", p(times, 0.5), "<= 10 ms", ""))
        rows.append(("... p99", p(times, 0.99), "", f"longest {p(times, 1)}"))
    table.show("connections", rows)


main()
