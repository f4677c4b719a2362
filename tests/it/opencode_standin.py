#!/usr/bin/env python3
"""Serves like OpenCode, but badly: OPENCODE_STANDIN names how."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
import time

how = os.environ.get("OPENCODE_STANDIN", "").split(",")
number = next((word.split("=")[1] for word in how if word.startswith("sleep=")), None)
began = time.monotonic()
if number:
    # One that only has the session of its parent's child, and a daemon.
    subprocess.Popen(["sleep", number])
    subprocess.Popen(["setsid", "-f", "sleep", number])
if "dies" in how:
    print("no configuration\nthe reason\n", file=sys.stderr)
    sys.exit(7)
if "secrets" in how:
    for name in ("OPENCODE_SERVER_PASSWORD", "ANTHROPIC_API_KEY"):
        print("the value is", os.environ[name], flush=True)
        print("the value is", os.environ[name], file=sys.stderr, flush=True)
if "flood" in how:

    def flood():
        while True:
            os.write(1, b"flood " * 10000 + b"\n")
            os.write(2, b"\n" * 60000)
            time.sleep(0.005)

    threading.Thread(target=flood, daemon=True).start()
if "deaf-to-term" in how:
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "grows" in how:
    hoard = []
    while True:
        hoard.append(bytearray(b"x" * (1 << 20)))

wanted = f'{os.environ["OPENCODE_SERVER_USERNAME"]}:{os.environ["OPENCODE_SERVER_PASSWORD"]}'
wanted = "Basic " + base64.b64encode(wanted.encode()).decode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if "silent" in how:
            time.sleep(3600)
        if "trickles" in how:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                self.wfile.write(b" ")
                time.sleep(0.1)
        if "slow" in how and time.monotonic() - began < 2.5:
            time.sleep(1.5)
        good = self.headers.get("Authorization") == wanted
        body = json.dumps({"healthy": good, "version": "9.9.9"}).encode()
        self.send_response(200 if good else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
port = server.server_address[1]
for word in how:
    if word.startswith("late"):
        time.sleep(float(word.partition("=")[2] or 60))
if "other-port" in how:
    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = other.server_address[1]
    other.server_close()
host = "0.0.0.0" if "everywhere" in how else "127.0.0.1"
print(f"opencode server listening on http://{host}:{port}", flush=True)
server.serve_forever()
