#!/usr/bin/env python3
"""Prints the cost of containers: a command in one compared with the same on the host, alternately; the rate of sixteen
connections over four containers; the first command of a stopped container; and leftovers of KILLS kill -9 of agent, nspawn
and server at random moments. Arguments select parts by name."""

import glob
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

sys.dont_write_bytecode = True
import table

table.ensure_server()

NIL = "00000000-0000-0000-0000-000000000000"
ROUNDS = int(os.environ.get("ROUNDS", "2000"))
SECONDS = int(os.environ.get("SECONDS_EACH", "8"))
STARTS = int(os.environ.get("STARTS", "20"))
KILLS = int(os.environ.get("KILLS", "500"))
# A private network has links and rules that could be left behind.
NETWORK = os.environ.get("NETWORK", "private")

# wrk, because sixteen connections in Python would occupy both cores.
LUA = """
local threads = {}
local paths = {}
for path in string.gmatch(os.getenv("PATHS"), "%S+") do table.insert(paths, path) end
local n = 0
function setup(thread) table.insert(threads, thread) end
function init(args)
  bad = 0
  wrk.method = "POST"
  wrk.body = '{"command":"true"}'
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. os.getenv("T")
end
function request()
  n = n + 1
  return wrk.format(nil, paths[n % #paths + 1])
end
function response(status, headers, body)
  if status ~= 200 or not body:find('"exit_code":0', 1, true) then bad = bad + 1 end
end
function done(summary, latency, requests)
  local bad = 0
  for _, thread in ipairs(threads) do bad = bad + thread:get("bad") end
  io.write("Bad: " .. bad .. "\\n")
end
"""


def build(api, name):
    made = api.call("POST", "/api/workspaces",
                    {"name": name, "workspace_type": "container", "distro": "debian-bookworm"})
    api.call("POST", f"/api/workspaces/{made['id']}/build")
    while True:
        now = api.call("GET", f"/api/workspaces/{made['id']}")
        if now["status"] != "building":
            break
        time.sleep(0.1)
    if now["status"] != "ready":
        raise SystemExit(f"build: {now}")
    return made["id"]


def in_turns(workspaces):
    """One command after the other, alternating between the workspaces, so that all run under the same conditions."""
    api = table.Connection()
    requests = [api.encode("POST", f"/api/workspaces/{id}/exec", {"command": "true"}) for id in workspaces]
    times = [[] for _ in workspaces]
    for n in range(ROUNDS + 50):
        for request, taken in zip(requests, times):
            begin = time.perf_counter()
            status, body = api.send(request)
            took = time.perf_counter() - begin
            if status != 200 or b'"exit_code":0' not in body:
                raise SystemExit(f"exec true: {status} {body!r}")
            if n >= 50:
                taken.append(took * 1e3)
    return times


def sixteen_connections(workspaces):
    paths = " ".join(f"/api/workspaces/{id}/exec" for id in workspaces)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA)
        script.flush()
        done = subprocess.run(["wrk", "-t2", "-c16", f"-d{SECONDS}s", "-s", script.name, os.environ["B"]],
                              capture_output=True, text=True, timeout=SECONDS + 60, check=True,
                              env=os.environ | {"PATHS": paths})
    return float(re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)[1]), int(re.search(r"Bad: (\d+)", done.stdout)[1])


def cold_starts(api, workspace):
    times = []
    for _ in range(STARTS):
        api.call("POST", f"/api/workspaces/{workspace}/stop")
        begin = time.perf_counter()
        api.call("POST", f"/api/workspaces/{workspace}/exec", {"command": "true"})
        times.append((time.perf_counter() - begin) * 1e3)
    return times


class Own:
    """A separate server, which can be killed and restarted with the same data."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="berth-kills.")
        self.data = f"{self.folder}/data"
        os.makedirs(f"{self.folder}/work")
        os.mkdir(self.data, 0o700)
        images = f"{os.environ['BERTH_DATA']}/images"
        if os.path.isdir(images):
            subprocess.run(["cp", "-a", "--reflink=auto", images, f"{self.data}/images"], check=True)
        self.child = None
        self.start()

    def start(self):
        log = open(f"{self.folder}/log", "ab")
        at = log.tell()
        self.child = subprocess.Popen(
            [os.environ["BERTH_BIN"], "--port=0", f"--data-dir={self.data}", f"--workspace={self.folder}/work", "--approval=auto", "--no-log-requests"],
            env={"PATH": os.environ["PATH"], "HOME": self.folder, "OPENWORK_HOST_TOKEN": os.environ["T"]},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.child.poll() is None:
            with open(f"{self.folder}/log", "rb") as log:
                log.seek(at)
                found = re.search(rb"listening on (http://[0-9.:]+)", log.read())
            if found:
                self.address = found[1].decode()
                return
            time.sleep(0.005)
        raise SystemExit(f"the server did not start again; see {self.folder}/log")

    def call(self, method, path, body=None):
        """Status and body of the response; status 0 if the server has exited."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Authorization": "Bearer " + os.environ["T"]}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text.decode()
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")
        except OSError:
            return 0, None


def parent(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
        return int(stat.read().rsplit(")", 1)[1].split()[1])


def networks(data):
    """Links and tables of a server's private networks, found by the name that it gives them."""
    name = hashlib.sha256(os.path.realpath(data).encode()).hexdigest()[:6]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    return [link for link in os.listdir("/sys/class/net") if link.startswith(f"vb{name}-")] + re.findall(rf"berth-{name}", tables)


def leftovers(data):
    """Processes, mounts and cgroups that belong to a data folder."""
    processes = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                if data.encode() in file.read():
                    processes.append(int(name))
                    continue
            if any(os.readlink(f"/proc/{name}/{kind}").startswith(data) for kind in ("cwd", "root")):
                processes.append(int(name))
        except OSError:
            pass
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = [line for line in file if data in line]
    with open(f"{data}/cgroup", encoding="utf-8") as file:
        tree = os.path.basename(file.read())
    return processes, mounts, glob.glob(f"/sys/fs/cgroup/*/{tree}") + glob.glob(f"/sys/fs/cgroup/{tree}")


def kills():
    own = Own()
    try:
        return killed(own)
    finally:
        if own.child.poll() is None:
            own.child.terminate()
            own.child.wait(30)


def killed(own):
    failed = []
    body = {"name": "killed", "workspace_type": "container", "distro": "debian-bookworm", "network": NETWORK}
    status, made = own.call("POST", "/api/workspaces", body)
    path = f"/api/workspaces/{made['id']}"
    own.call("POST", path + "/build")
    while own.call("GET", path)[1]["status"] == "building":
        time.sleep(0.1)
    seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
    chance, counts, times = random.Random(seed), {"agent": 0, "nspawn": 0, "server": 0}, []
    for n in range(KILLS):
        own.call("POST", path + "/exec", {"command": "true"})
        init = own.call("GET", path + "/debug")[1]["machine"]["init_pid"]
        work = threading.Thread(target=own.call, args=("POST", path + "/exec", {"command": "sleep 4713 & setsid sleep 4713 & sleep 4713", "timeout_secs": 0.3}))
        work.start()
        time.sleep(chance.random() * 0.5)
        whom = chance.choice(list(counts))
        counts[whom] += 1
        try:
            os.kill({"agent": lambda: init, "nspawn": lambda: parent(init), "server": lambda: own.child.pid}[whom](), signal.SIGKILL)
        except (OSError, TypeError):
            failed.append(f"{n}: there was no {whom} to kill")
        if whom == "server":
            own.child.wait()
            own.start()
        begin = time.perf_counter()
        status, told = own.call("POST", path + "/exec", {"command": "echo alive"})
        times.append((time.perf_counter() - begin) * 1e3)
        if status != 200 or told["stdout"] != "alive\n":
            failed.append(f"{n}, after {whom}: {status} {told}")
        work.join()
    own.call("DELETE", path)
    own.child.terminate()
    own.child.wait(30)
    time.sleep(0.5)
    processes, mounts, groups = leftovers(own.data)
    new_links = networks(own.data)
    for line in failed[:5]:
        print(line, file=sys.stderr)
    if not (failed or processes or mounts or groups or new_links):
        shutil.rmtree(own.folder, ignore_errors=True)
    count = ", ".join(f"{count} {whom}" for whom, count in counts.items())
    return [(f"{KILLS} kill -9, network {NETWORK}: next command failed", str(len(failed)), "0", f"{count}; seed {seed}"),
            ("the next command took, p50", f"{table.percentile(times, 0.5):.0f} ms", "", f"worst {max(times):.0f} ms"),
            ("processes, mounts, groups, links and tables left", f"{len(processes)}, {len(mounts)}, {len(groups)}, {len(new_links)}", "0, 0, 0, 0", "")]


def cost():
    api = table.Connection()
    boxes = [build(api, f"bench {n}") for n in range(4)]
    rows = []
    host, box = in_turns([NIL, boxes[0]])
    p50, p99 = table.percentile(box, 0.5), table.percentile(box, 0.99)
    floor = table.percentile(host, 0.5)
    rows.append(("exec true, container, p50", f"{p50:.2f} ms", "<= 1.5 x host", f"{p50 / floor:.2f} x host ({floor:.2f} ms)"))
    rows.append(("exec true, container, p99", f"{p99:.2f} ms", "<= 10 ms", f"host {table.percentile(host, 0.99):.2f} ms"))
    rate, bad = sixteen_connections(boxes)
    host_rate, host_bad = sixteen_connections([NIL])
    rows.append(("16 connections, 4 containers", f"{rate:,.0f}/s", ">= 1,000/s", f"{rate / host_rate:.2f} x host; {bad + host_bad} bad answers"))
    if STARTS:
        starts = cold_starts(api, boxes[0])
        rows.append((f"first command of a stopped one, p50 of {STARTS}", f"{table.percentile(starts, 0.5):.0f} ms", "<= 250 ms", f"worst {max(starts):.0f} ms"))
    for box in boxes:
        api.call("DELETE", f"/api/workspaces/{box}")
    return rows


PARTS = {"cost": cost, "kills": kills}
for name in sys.argv[1:] or PARTS:
    table.show("Containers: " + name, PARTS[name]())
