#!/usr/bin/env python3
"""Prints the cost of terminals: latency of a key's echo through a WebSocket, output per second, memory of each.

The output of a program is compared with the same program on a bare pty."""

import base64
import json
import os
import pty
import socket
import struct
import sys
import time

sys.dont_write_bytecode = True
import table

table.ensure_server()

NIL = "00000000-0000-0000-0000-000000000000"
API = f"/api/workspaces/{NIL}/terminals"
KEYS = int(os.environ.get("KEYS", "1000"))
MEGABYTES = int(os.environ.get("MEGABYTES", "50"))
COUNT = 60
# Similar to the output of a build: lines of about 40 characters with a little colour, in large writes.
OUTPUT = f"yes \"$(printf '\\033[32mok\\033[0m a line of what a compiler says')\" | head -c {MEGABYTES}000000; echo; echo LAST"


class WebSocket:
    """A minimal, fast client of RFC 6455."""

    def __init__(self, path):
        host, port = os.environ["B"].removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                             f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                             f"Authorization: Bearer {os.environ['T']}\r\n\r\n").encode())
        self.rest = b""
        while b"\r\n\r\n" not in self.rest:
            self.rest += self.socket.recv(4096)
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        if not head.startswith(b"HTTP/1.1 101 "):
            raise SystemExit(head.decode())

    def take(self, size):
        parts, have = [self.rest], len(self.rest)
        while have < size:
            part = self.socket.recv(1 << 20)
            if not part:
                raise SystemExit("the server closed the connection")
            parts.append(part)
            have += len(part)
        whole = b"".join(parts)
        self.rest = whole[size:]
        return whole[:size]

    def receive(self):
        """(opcode, payload)"""
        first, length = self.take(2)
        if length == 126:
            length = struct.unpack(">H", self.take(2))[0]
        elif length == 127:
            length = struct.unpack(">Q", self.take(8))[0]
        return first & 15, self.take(length)

    def send(self, payload):
        """Sends a short binary message, with a mask of zeros."""
        self.socket.sendall(bytes([0x82, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    def until(self, mark):
        """Output up to a mark."""
        total, tail = 0, b""
        while mark not in tail:
            opcode, payload = self.receive()
            if opcode in (0, 2):
                total += len(payload)
                tail = (tail + payload)[-200:]
        return total


api = table.Connection()


def start(command):
    status, body = api.send(api.encode("POST", API, {"command": command}))
    if status != 201:
        raise SystemExit(f"{status} {body!r}")
    return f"{API}/{json.loads(body)['id']}"


def echoes(send, receive):
    times = []
    for n in range(KEYS + 50):
        begin = time.perf_counter()
        send(b"k")
        receive()
        if n >= 50:
            times.append((time.perf_counter() - begin) * 1e3)
    return times


def echo_through_berth():
    path = start("stty raw -echo; echo READY; exec cat")
    ws = WebSocket(path + "/ws")
    ws.until(b"READY")
    time.sleep(0.1)

    def receive():
        while ws.receive()[0] != 2:
            pass

    times = echoes(ws.send, receive)
    api.call("DELETE", path)
    return times


def on_a_bare_pty(command):
    pid, master = pty.fork()
    if pid == 0:
        os.execv("/bin/sh", ["sh", "-c", command])
    return pid, master


def echo_on_a_bare_pty():
    pid, master = on_a_bare_pty("stty raw -echo; echo READY; exec cat")
    text = b""
    while b"READY" not in text:
        text += os.read(master, 4096)
    time.sleep(0.1)
    times = echoes(lambda key: os.write(master, key), lambda: os.read(master, 4096))
    os.close(master)
    os.waitpid(pid, 0)
    return times


def output_on_a_bare_pty():
    begin = time.perf_counter()
    pid, master = on_a_bare_pty(OUTPUT)
    total = 0
    try:
        while part := os.read(master, 1 << 16):
            total += len(part)
    except OSError:
        pass  # EIO: the program has ended
    took = time.perf_counter() - begin
    os.close(master)
    os.waitpid(pid, 0)
    return total / took / 1e6


def output_unwatched(size):
    begin = time.perf_counter()
    path = start(OUTPUT)
    while api.call("GET", path)["status"] != "ended":
        time.sleep(0.005)
    took = time.perf_counter() - begin
    if "LAST" not in api.call("GET", path + "/screen"):
        raise SystemExit("the last line is not on the screen")
    api.call("DELETE", path)
    return size / took / 1e6


def output_watched(size):
    path = start(f"read x; {OUTPUT}; echo THE END; read x")
    ws = WebSocket(path + "/ws")
    ws.receive()
    begin = time.perf_counter()
    ws.send(b"\r")
    received = ws.until(b"THE END")
    took = time.perf_counter() - begin
    api.call("DELETE", path)
    return size / took / 1e6, received / size


def memory():
    pid = int(os.environ["BERTH_PID"])
    paths = [start("cat") for _ in range(COUNT)]
    for path in paths:
        api.call("DELETE", path)
    before = table.memory_kb(pid, "VmRSS")
    paths = [start("seq 1 1000; exec cat") for _ in range(COUNT)]
    for path in paths:
        while "1000" not in api.call("GET", path + "/screen"):
            time.sleep(0.01)
    each = (table.memory_kb(pid, "VmRSS") - before) / COUNT
    for path in paths:
        api.call("DELETE", path)
    return each


ours, bare = echo_through_berth(), echo_on_a_bare_pty()
raw = output_on_a_bare_pty()
size = 0
pid, master = on_a_bare_pty(OUTPUT)
try:
    while part := os.read(master, 1 << 16):
        size += len(part)
except OSError:
    pass
os.waitpid(pid, 0)
unwatched = output_unwatched(size)
watched, share = output_watched(size)
p50, p99 = table.percentile(ours, 0.5), table.percentile(ours, 0.99)
table.show("terminals", [
    ("a key's echo through a WebSocket", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms", "",
     f"{p50 / table.percentile(bare, 0.5):.1f} × a bare pty"),
    ("output without a client", f"{unwatched:.0f} MB/s", "", f"{unwatched / raw:.2f} × a bare pty ({raw:.0f} MB/s)"),
    ("output one client watches", f"{watched:.0f} MB/s", "", f"{watched / raw:.2f} × a bare pty; {share:.0%} of it sent"),
    ("memory of a terminal of 80 × 24", f"{each:.0f} KB" if (each := memory()) else "", "", ""),
])
