#!/bin/bash
# Prints the time from a start until /health responds, the memory of the idle server, and the size of the binary.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ -n "${B-}" ] || exec "$here/with-server" "$0" "$@"
exec python3 - "$here" <<'PYTHON'
import os, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
from table import Connection, memory_kb, percentile, show

binary = os.environ["BERTH_BIN"]
REQUEST = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

def start(folder):
    """Seconds from the fork until the first byte of a response."""
    port = free_port()
    env = {"PATH": os.environ["PATH"], "HOME": folder, "OPENWORK_TOKEN": "bench-client-0123456789", "OPENWORK_HOST_TOKEN": "bench-host-0123456789"}
    begin = time.perf_counter()
    child = subprocess.Popen([binary, f"--port={port}", f"--data-dir={folder}/data", f"--workspace={folder}"],
                             env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - begin < 20:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as http:
                    http.sendall(REQUEST)
                    if http.recv(64).startswith(b"HTTP/1.1 200"):
                        return time.perf_counter() - begin, child
            except ConnectionRefusedError:
                time.sleep(0.0002)
        raise SystemExit("the server did not answer /health within 20 s")
    except BaseException:
        child.kill()
        raise

def spawn():
    begin = time.perf_counter()
    subprocess.run([binary, "--version"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin

folder = tempfile.mkdtemp(prefix="berth-start.")
try:
    times, idle = [], 0
    for n in range(21):
        took, child = start(folder)
        times.append(took)
        if n == 20:
            time.sleep(2)  # memory that only the start needs is released by then
            idle = memory_kb(child.pid, "VmRSS")
        child.send_signal(signal.SIGTERM)
        child.wait(20)
    times.pop(0)  # the start that created the data folder
finally:
    shutil.rmtree(folder, ignore_errors=True)
bare = statistics.median(spawn() for _ in range(20))
median = statistics.median(times)

own = int(os.environ["BERTH_PID"])
api = Connection()
request = api.encode("GET", "/api/workspaces")
for _ in range(5000):
    api.send(request)
show("start", [
    ("until /health answers, p50", f"{median * 1e3:.1f} ms", "<= 30 ms", f"{median / bare:.1f} x `berth --version` ({bare * 1e3:.1f} ms)"),
    ("until /health answers, worst of 20", f"{max(times) * 1e3:.1f} ms", "", ""),
    ("idle memory (VmRSS)", f"{idle / 1024:.1f} MB", "<= 8 MB", ""),
    ("memory after 5,000 requests", f"{memory_kb(own, 'VmRSS') / 1024:.1f} MB", "", f"{memory_kb(own, 'VmRSS') / max(idle, 1):.2f} x idle"),
    ("binary", f"{os.path.getsize(binary) / 1e6:.1f} MB", "<= 6 MB", ""),
])
PYTHON
