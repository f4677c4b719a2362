#!/usr/bin/env python3
"""Cost of roots: workspaces from a present image, rebuilds, deletions, snapshots, restores and clones of a root with 1 GB of
its own data, disk usage of 50 unused workspaces, and the size in debug. Runs once with overlays and once with copies, each with
a separate server; the argument `overlay` or `copy` selects one. ROUNDS, GIGABYTES, MANY: smaller amounts."""

import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import table

HERE = os.path.dirname(os.path.abspath(__file__))
ROUNDS = int(os.environ.get("ROUNDS", "9"))
GIGABYTES = float(os.environ.get("GIGABYTES", "1"))
MANY = int(os.environ.get("MANY", "50"))


def timed(work):
    begin = time.perf_counter()
    done = work()
    return (time.perf_counter() - begin) * 1e3, done


def disk_mb(path):
    told = subprocess.run(["du", "-sk", path], capture_output=True, text=True, check=False).stdout
    return int(told.split()[0]) / 1024


class Bench:
    def __init__(self, way):
        self.way, self.api = way, table.Connection()
        self.rows = []

    def make(self, name):
        made = self.api.call("POST", "/api/workspaces", {"name": name, "workspace_type": "container", "distro": "debian-bookworm"})
        return "/api/workspaces/" + made["id"]

    def build(self, path, rebuild=False):
        self.api.call("POST", f"{path}/build" + ("?rebuild=true" if rebuild else ""))
        while True:
            now = self.api.call("GET", path)
            if now["status"] == "ready":
                return
            if now["status"] == "error":
                raise SystemExit(f"build: {now}")
            time.sleep(0.001)

    def new(self, name):
        path = self.make(name)
        self.build(path)
        return path

    def run(self, path, command):
        done = self.api.call("POST", f"{path}/exec", {"command": command, "timeout_secs": 300})
        if done["exit_code"] != 0:
            raise SystemExit(f"{command}: {done}")

    def row(self, what, times, wanted="", note=""):
        p50, worst = table.percentile(times, 0.5), max(times)
        self.rows.append((what, f"{p50:.0f} ms", wanted, f"worst {worst:.0f} ms" + (f"; {note}" if note else "")))

    def basics(self):
        image = [image for image in self.api.call("GET", "/api/images") if "debian-bookworm" in image["names"]]
        root = os.path.join(os.environ["BERTH_DATA"], "images", image[0]["id"], "root")
        to = os.path.join(os.environ["BERTH_DATA"], "cp")
        copies = [timed(lambda: subprocess.run(["cp", "-a", root, to], check=True))[0] for _ in range(1)]
        subprocess.run(["rm", "-rf", to], check=True)
        layered = self.way == "overlay"
        self.new("warm")
        made, rebuilt, deleted = [], [], []
        for n in range(ROUNDS):
            took, path = timed(lambda: self.new(f"new {n}"))
            made.append(took)
            self.run(path, "echo x > /root/x")
            rebuilt.append(timed(lambda: self.build(path, True))[0])
            self.run(path, "echo x > /root/x")
            deleted.append(timed(lambda: self.api.call("DELETE", path))[0])
        self.row("workspace made and ready", made, "<= 100 ms" if layered else "<= 1000 ms", f"cp -a of the image {copies[0]:.0f} ms")
        self.row("rebuild of a running one", rebuilt, "<= 150 ms" if layered else "")
        self.row("delete answered, running", deleted, "<= 50 ms")

    def large(self):
        wanted = "<= 150 ms" if self.way == "overlay" else ""
        rounds = ROUNDS if self.way == "overlay" else 2
        path = self.new("large")
        mb = int(GIGABYTES * 1024 / 64)
        self.run(path, f"mkdir /data && cd /data && for i in $(seq 64); do head -c {mb}M /dev/urandom > f$i; done; sync")
        stopped, idle, restored, cloned = [], [], [], []
        last = None
        for n in range(rounds):
            self.run(path, f"echo {n} > /root/n")
            self.api.call("POST", f"{path}/stop")
            stopped.append(timed(lambda: self.api.call("POST", f"{path}/snapshots"))[0])
            self.run(path, f"echo {n}b > /root/n")
            took, last = timed(lambda: self.api.call("POST", f"{path}/snapshots"))
            idle.append(took)
            self.run(path, "echo other > /root/n")
            restored.append(timed(lambda: self.api.call("POST", f"{path}/snapshots/{last['id']}/restore"))[0])
            self.run(path, f"grep -qx {n}b /root/n && echo more > /root/n")
            took, copy = timed(lambda: self.api.call("POST", f"{path}/clone"))
            cloned.append(took)
            self.run("/api/workspaces/" + copy["id"], "grep -qx more /root/n && test -s /data/f64")
            self.api.call("DELETE", "/api/workspaces/" + copy["id"])
        size = f"{GIGABYTES:g} GB"
        self.row(f"snapshot of {size}, stopped", stopped, wanted)
        self.row(f"snapshot of {size}, running, no command", idle, wanted)
        self.row(f"restore of {size}, running", restored, wanted)
        self.row(f"clone of {size}, running, no command", cloned, wanted)
        self.api.call("GET", f"{path}/debug")
        time.sleep(0.5)
        asked = [timed(lambda: self.api.call("GET", f"{path}/debug")) for _ in range(50)]
        told, du = asked[-1][1]["size_bytes"] / 2**20, GIGABYTES * 1024
        self.row("debug with size_bytes", [took for took, _ in asked], "no walk", f"{told:.0f} MB, of which {du:.0f} MB were written")
        self.api.call("DELETE", path)

    def many(self):
        folders = [os.path.join(os.environ["BERTH_DATA"], name) for name in ("workspaces", "layers")]
        # Deleted roots are removed in the background, after the response.
        deadline = time.monotonic() + 60
        while len(os.listdir(folders[1])) > 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        before = sum(map(disk_mb, folders))
        made = [self.new(f"many {n}") for n in range(MANY)]
        each = (sum(map(disk_mb, folders)) - before) / MANY
        self.rows.append((f"disk of each of {MANY} before use", f"{each:.2f} MB", "< 10 MB" if self.way == "overlay" else "", ""))
        for path in made:
            self.api.call("DELETE", path)


if "ROOT_BACKEND" not in os.environ:
    for way in sys.argv[1:] or ["overlay", "copy"]:
        env = os.environ | {"ROOT_BACKEND": way, "BERTH_FLAGS": f"--no-log-requests --root-backend={way}"}
        subprocess.run([os.path.join(HERE, "with-server"), sys.executable, os.path.abspath(__file__)], env=env, check=True)
    sys.exit()
bench = Bench(os.environ["ROOT_BACKEND"])
bench.basics()
bench.large()
if bench.way == "overlay":
    bench.many()
table.show(f"Roots: {bench.way}", bench.rows)
