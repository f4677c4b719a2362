#!/usr/bin/env python3
"""Prints the cost of transferring a large file: the server's peak memory during an upload of 250 MB and during a slow download
of 250 MB, and the throughput of both without delays."""

import base64
import os
import socket
import sys
import time

sys.dont_write_bytecode = True
os.environ.setdefault("OPENWORK_INBOX_MAX_BYTES", "250000000")
import table

table.ensure_server()

PID = int(os.environ["BERTH_PID"])
SIZE = int(os.environ.get("SIZE", "250000000"))
BLOCK = os.urandom(1 << 20)
BOUNDARY = "----berth-bench"


def peak_growth(work):
    """Returns the result of `work` and the growth of the server's resident memory during it, in MB."""
    with open(f"/proc/{PID}/clear_refs", "w", encoding="ascii") as clear:
        clear.write("5")
    before = table.memory_kb(PID, "VmRSS")
    result = work()
    return result, (table.memory_kb(PID, "VmHWM") - before) / 1024


def head(connection, method, path, more=""):
    connection.socket.sendall((f"{method} {path} HTTP/1.1\r\nHost: {connection.host}\r\n"
                               f"Authorization: Bearer {os.environ['T']}\r\n{more}\r\n").encode())


def status_of(connection):
    while b"\r\n\r\n" not in connection.rest:
        connection.fill()
    answer, connection.rest = connection.rest.split(b"\r\n\r\n", 1)
    return int(answer.split()[1])


def upload(workspace, size):
    """Seconds."""
    connection = table.Connection()
    begin = (f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"big.bin\"\r\n\r\n").encode()
    end = f"\r\n--{BOUNDARY}--\r\n".encode()
    start = time.perf_counter()
    head(connection, "POST", f"/workspace/{workspace}/inbox",
         f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(begin) + size + len(end)}\r\n")
    connection.socket.sendall(begin)
    left = size
    while left:
        left -= connection.socket.send(BLOCK[:min(left, len(BLOCK))])
    connection.socket.sendall(end)
    status = status_of(connection)
    if status != 200:
        raise SystemExit(f"upload: {status}")
    return time.perf_counter() - start


def download(workspace, pause):
    """Seconds; `pause` after each megabyte."""
    item = base64.urlsafe_b64encode(b"big.bin").decode().rstrip("=")
    connection = table.Connection()
    # Bytes in transit should be in the server, not in this process's buffers.
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    start = time.perf_counter()
    head(connection, "GET", f"/workspace/{workspace}/inbox/{item}")
    status = status_of(connection)
    if status != 200:
        raise SystemExit(f"download: {status}")
    got = len(connection.rest)
    if pause:
        time.sleep(2)
    due = 1 << 20
    while got < SIZE:
        part = connection.socket.recv(1 << 18)
        if not part:
            raise SystemExit(f"download: ended after {got} bytes")
        got += len(part)
        if pause and got >= due:
            due += 1 << 20
            time.sleep(pause)
    return time.perf_counter() - start


def copy(folder):
    """Seconds that the disk alone needs."""
    path = os.path.join(folder, "bench-copy")
    start = time.perf_counter()
    with open(path, "wb") as out:
        left = SIZE
        while left:
            left -= out.write(BLOCK[:min(left, len(BLOCK))])
        out.flush()
        os.fsync(out.fileno())
    took = time.perf_counter() - start
    os.unlink(path)
    return took


def loopback():
    """Seconds that a transfer of the bytes to another process needs."""
    here = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        there, _ = here.accept()
        while there.recv(1 << 18):
            pass
        os._exit(0)
    start = time.perf_counter()
    with socket.create_connection(here.getsockname()) as stream:
        left = SIZE
        while left:
            left -= stream.send(BLOCK[:min(left, len(BLOCK))])
    os.waitpid(child, 0)
    return time.perf_counter() - start


def main():
    workspace = table.Connection().call("GET", "/workspaces")["activeId"]
    # The first transfer of each kind loads code and buffers that later ones share.
    upload(workspace, 1_000_000)
    took, grown = peak_growth(lambda: upload(workspace, SIZE))
    disk = copy(os.environ["BERTH_DATA"])
    quick = download(workspace, 0)
    wire = loopback()
    slow, slow_grown = peak_growth(lambda: download(workspace, 0.03))
    rate = lambda seconds: f"{SIZE / seconds / 1e6:.0f} MB/s"
    table.show("uploads", [
        (f"upload of {SIZE // 1_000_000} MB: growth of the server", f"{grown:.1f} MB", "<= 4 MB", ""),
        ("... speed", rate(took), "", f"{took / disk:.2f} x writing and syncing it here ({rate(disk)})"),
        ("download by a slow reader: growth", f"{slow_grown:.1f} MB", "<= 4 MB", f"it took {slow:.0f} s"),
        ("download, speed", rate(quick), "", f"{quick / wire:.2f} x the same bytes to a process ({rate(wire)})"),
    ])


main()
