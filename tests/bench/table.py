"""Shared by the benchmarks: the output table, calls to the server, and reading of its memory."""

import json
import os
import socket
import sys
import time
import urllib.parse


def ensure_server():
    """Runs the script again through with-server if no server was started for it yet."""
    if "B" not in os.environ:
        runner = os.path.join(os.path.dirname(os.path.abspath(__file__)), "with-server")
        os.execv(runner, [runner, sys.executable, *sys.argv])


def show(title, rows):
    """Rows: name, figure, target, reference (a value for comparison, measured in the same run)."""
    rows = [("", "measured", "target", "compared with")] + rows
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) if i == 0 or i == 3 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))).rstrip())
    sys.stdout.flush()


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * share))]


def memory_kb(pid, field):
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0


class Connection:
    """Keep-alive over a plain socket: http.client would need more time than a fast server's whole response."""

    def __init__(self, token=None):
        self.token = token or os.environ["T"]
        url = urllib.parse.urlparse(os.environ["B"])
        self.host = url.netloc
        self.socket = socket.create_connection((url.hostname, url.port), timeout=660)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    def encode(self, method, path, body=None):
        data = b"" if body is None else json.dumps(body).encode()
        head = (f"{method} {path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {self.token}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n")
        return head.encode() + data

    def send(self, request):
        """(status, body) of a request from `encode`."""
        self.socket.sendall(request)
        while b"\r\n\r\n" not in self.rest:
            self.fill()
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = bytearray()
            while True:
                while b"\r\n" not in self.rest:
                    self.fill()
                size, self.rest = self.rest.split(b"\r\n", 1)
                size = int(size, 16)
                body += self.take(size)
                self.take(2)
                if size == 0:
                    break
        else:
            body = self.take(int(headers.get("content-length", 0)))
        return int(lines[0].split()[1]), bytes(body)

    def take(self, size):
        parts, have = [self.rest], len(self.rest)
        while have < size:
            part = self.socket.recv(1 << 20)
            if not part:
                raise ConnectionError("the server closed the connection")
            parts.append(part)
            have += len(part)
        whole = b"".join(parts)
        self.rest = whole[size:]
        return whole[:size]

    def fill(self):
        part = self.socket.recv(1 << 16)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.rest += part

    def call(self, method, path, body=None):
        """The body as an object; any status other than 200 is an error."""
        status, text = self.send(self.encode(method, path, body))
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {text[:500]!r}")
        return json.loads(text) if text[:1] in (b"{", b"[") else text.decode()


def container():
    """Id of a built container workspace."""
    api = Connection()
    made = api.call("POST", "/api/workspaces",
                    {"name": "bench", "workspace_type": "container", "distro": "debian-bookworm"})
    path = f"/api/workspaces/{made['id']}"
    api.call("POST", path + "/build")
    deadline = time.monotonic() + 900
    while True:
        now = api.call("GET", path)
        if now["status"] == "ready":
            return made["id"]
        if now["status"] == "error" or time.monotonic() > deadline:
            raise RuntimeError(f"no container: {now}")
        time.sleep(0.05)
