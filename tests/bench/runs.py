#!/usr/bin/env python3
"""Prints the cost of runs and checks that no output is lost: 1 GB through one stream, 200 runs with 200 followers, the delay of
a written byte, and timeouts of process trees that try to survive. Arguments select parts by name."""

import hashlib
import http.client
import json
import os
import selectors
import socket
import sys
import threading
import time
import urllib.parse

sys.dont_write_bytecode = True
import table

table.ensure_server()

NIL = "00000000-0000-0000-0000-000000000000"
PID = int(os.environ["BERTH_PID"])
ADDRESS = urllib.parse.urlparse(os.environ["B"])
AUTH = {"Authorization": "Bearer " + os.environ["T"]}
BYTES = int(os.environ.get("BYTES", "1000000000"))
RUNS = int(os.environ.get("RUNS", "200"))
TIMEOUTS = int(os.environ.get("TIMEOUTS", "1000"))
FIRSTS = int(os.environ.get("FIRSTS", "200"))


def call(method, path, body=None, expect=(200, 201)):
    connection = http.client.HTTPConnection(ADDRESS.hostname, ADDRESS.port, timeout=660)
    connection.request(method, path, None if body is None else json.dumps(body), AUTH)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status not in expect:
        raise SystemExit(f"{method} {path}: {answer.status} {text[:300]!r}")
    return json.loads(text) if text else None


def start(workspace, body):
    return f"/api/workspaces/{workspace}/runs/" + call("POST", f"/api/workspaces/{workspace}/runs", body)["id"]


class Peak:
    """The largest VmRSS; VmHWM would include the start."""

    def __enter__(self):
        self.kb, self.before, self.stop = 0, table.memory_kb(PID, "VmRSS"), threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.stop.wait(0.01):
            self.kb = max(self.kb, table.memory_kb(PID, "VmRSS"))

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.kb = max(self.kb, table.memory_kb(PID, "VmRSS"))


def gigabyte():
    """Compares a checksum of the bytes at the writer with one at the reader."""
    rows = []
    for place, workspace in [("host", NIL), ("container", table.container())]:
        command = f"yes 'the quick brown fox jumps over the lazy dog 0123456789' | head -c {BYTES} | tee >(sha256sum >/tmp/sum.$$); " \
                  "while ! [ -s /tmp/sum.$$ ]; do sleep 0.01; done; cat /tmp/sum.$$ >&2; rm /tmp/sum.$$"
        call("POST", f"/api/workspaces/{workspace}/exec", {"command": "true"})
        with Peak() as peak:
            begin = time.perf_counter()
            run = start(workspace, {"command": command})
            connection = http.client.HTTPConnection(ADDRESS.hostname, ADDRESS.port, timeout=660)
            connection.request("GET", run + "/events?stream=ndjson", headers=AUTH)
            answer = connection.getresponse()
            out, total, err, code = hashlib.sha256(), 0, "", None
            for line in answer:
                event = json.loads(line)
                if event["event"] == "stdout":
                    if event["offset"] != total:
                        raise SystemExit(f"{event['offset']} instead of {total}")
                    part = event["text"].encode()
                    out.update(part)
                    total += len(part)
                elif event["event"] == "stderr":
                    err += event["text"]
                elif event["event"] == "exit":
                    code = event["run"]["exit_code"]
                elif event["event"] == "missed":
                    raise SystemExit(f"lost: {event}")
            took = time.perf_counter() - begin
        whole = total == BYTES and code == 0 and err.split()[:1] == [out.hexdigest()]
        call("DELETE", run, expect=(204,))
        rows.append((f"{place}: {BYTES / 1e9:g} GB, checksum", "equal" if whole else f"DIFFERS after {total} bytes", "equal", f"{took:.1f} s, of which Python needs most"))
        rows.append((f"{place}: growth at its peak", f"{max(0, peak.kb - peak.before) / 1024:.1f} MB", "<= 8 MB", f"{peak.before / 1024:.1f} MB before"))
    return rows


def dechunk(raw):
    """The body of a complete chunked response."""
    body, at = bytearray(), raw.index(b"\r\n\r\n") + 4
    while True:
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end], 16)
        if size == 0:
            return bytes(body)
        body += raw[end + 2:end + 2 + size]
        at = end + 4 + size


def crowd():
    """Each run prints 2,000 lines over about three seconds; each follower reads one run."""
    lines = 2000
    with Peak() as peak:
        begin = time.perf_counter()
        runs, sockets = [], {}
        selector = selectors.DefaultSelector()
        for n in range(RUNS):
            program = "BEGIN { for (i = 0; i < 20; i++) { for (j = 0; j < 100; j++) print n \":\" i * 100 + j; fflush(); system(\"sleep 0.15\") } }"
            runs.append(start(NIL, {"args": ["awk", "-v", f"n={n}", program]}))
            link = socket.create_connection((ADDRESS.hostname, ADDRESS.port), timeout=60)
            link.sendall(f"GET {runs[-1]}/events HTTP/1.1\r\nHost: {ADDRESS.netloc}\r\nAuthorization: {AUTH['Authorization']}\r\nConnection: close\r\n\r\n".encode())
            link.setblocking(False)
            sockets[link] = (n, bytearray())
            selector.register(link, selectors.EVENT_READ)
        together = sum(run["status"] == "running" for run in call("GET", f"/api/workspaces/{NIL}/runs"))
        deadline = time.monotonic() + 120
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(1):
                part = key.fileobj.recv(1 << 16)
                if part:
                    sockets[key.fileobj][1].extend(part)
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
        took = time.perf_counter() - begin
    whole = 0
    for n, raw in sockets.values():
        text, ended = [], False
        for event in dechunk(bytes(raw)).decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line and not line.startswith(":"))
            if fields.get("event") == "stdout":
                text.append(json.loads(fields["data"])["text"])
            ended |= fields.get("event") == "exit" and json.loads(fields["data"])["run"]["exit_code"] == 0
        whole += ended and "".join(text) == "".join(f"{n}:{i}\n" for i in range(lines))
    for run in runs:
        call("DELETE", run, expect=(204,))
    return [(f"{RUNS} runs, {RUNS} SSE followers: complete", f"{whole}", f"{RUNS}", f"{together} of them at once, {took:.1f} s"),
            ("memory at its peak (VmRSS)", f"{peak.kb / 1024:.1f} MB", "<= 64 MB", f"{peak.before / 1024:.1f} MB before")]


def first_byte():
    """The command prints the time of its write; the reader compares it with the time of arrival."""
    rows = []
    for place, workspace in [("host", NIL), ("container", table.container())]:
        times = []
        for _ in range(FIRSTS):
            connection = http.client.HTTPConnection(ADDRESS.hostname, ADDRESS.port, timeout=60)
            body = json.dumps({"command": "read -t 0.03 <> <(:); echo $EPOCHREALTIME"})
            connection.request("POST", f"/api/workspaces/{workspace}/exec?stream=ndjson", body, AUTH)
            for line in connection.getresponse():
                now = time.time()
                event = json.loads(line)
                if event["event"] == "stdout":
                    times.append((now - float(event["text"])) * 1e3)
            connection.close()
        if len(times) != FIRSTS:
            raise SystemExit(f"{len(times)} first bytes of {FIRSTS}")
        rows.append((f"{place}: first byte, p50", f"{table.percentile(times, 0.5):.2f} ms", "<= 5 ms", f"p99 {table.percentile(times, 0.99):.2f} ms"))
    return rows


def alive(word):
    """Processes with this argument."""
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found += word.encode() in file.read().split(b"\0")
            except OSError:
                pass
    return found


def timeouts():
    """Process trees that fork, call setsid, ignore TERM and keep the pipes open."""
    rows, at_once, timeout = [], 8, 0.5
    for place, workspace, count in [("host", NIL, TIMEOUTS // 2), ("container", table.container(), TIMEOUTS - TIMEOUTS // 2)]:
        number = f"4{os.getpid()}{0 if workspace == NIL else 1}"
        late, bad, lock = [], [], threading.Lock()
        call("POST", f"/api/workspaces/{workspace}/exec", {"command": "true"})
        command = f"trap '' TERM HUP INT; echo up; (trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep {number} & sleep {number}' & sleep {number}) & " \
                  f"setsid sleep {number} & while :; do sleep {number} & wait; done"

        def work(n):
            api = table.Connection()
            request = api.encode("POST", f"/api/workspaces/{workspace}/exec", {"command": command, "timeout_secs": timeout})
            for _ in range(n):
                begin = time.perf_counter()
                status, body = api.send(request)
                took = time.perf_counter() - begin
                told = json.loads(body)
                with lock:
                    late.append((took - timeout) * 1e3)
                    if status != 200 or not told["timed_out"] or told["stdout"] != "up\n":
                        bad.append(body[:200])

        threads = [threading.Thread(target=work, args=((count + at) // at_once,)) for at in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        survivors = alive(number)
        rows.append((f"{place}: {len(late)} timeouts, survivors", f"{survivors}", "0", f"{len(bad)} wrong answers"))
        rows.append((f"{place}: answered after the deadline, worst", f"{max(late):.0f} ms", "<= 300 ms", f"p50 {table.percentile(late, 0.5):.0f} ms, p99 {table.percentile(late, 0.99):.0f} ms, {at_once} at once"))
        if bad:
            print(bad[0], file=sys.stderr)
    return rows


PARTS = {"gigabyte": ("1 GB of output", gigabyte), "crowd": ("many runs and followers", crowd),
         "first": ("a written byte", first_byte), "timeouts": ("timeouts", timeouts)}
for name in sys.argv[1:] or PARTS:
    title, part = PARTS[name]
    table.show(title, part())
