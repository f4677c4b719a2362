#!/usr/bin/env python3
"""Kills around `berth host`, and its cost: usage: tests/bench/host.py BERTH OPENCODE [ROUNDS]. With IMAGES, a folder of
images as in a data folder (target/*/it-cache/images), OpenCode runs in a container (--sandbox berth).

Kills OpenCode or the host with SIGKILL at random moments of starts and of operation, ROUNDS times (100), and lists leftovers
after the last stop: processes, cgroups, state files. Then measures with a warm OpenCode: the time until OpenCode alone is
healthy, the time until the document of `berth host`, the memory of the host, and the time from the death of OpenCode to the
next response through the proxy."""

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

berth, opencode = (os.path.abspath(path) for path in sys.argv[1:3])
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 100
folder = tempfile.mkdtemp(prefix="berth-host-")
data = f"{folder}/data"
env = {
    "PATH": os.environ["PATH"],
    "HOME": folder,
    "BERTH_DATA_DIR": data,
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENWORK_OPENCODE_BIN": opencode,
}
os.mkdir(f"{folder}/work")
start = [berth, "host", "start", "--json", "--openwork-port=0", f"--workspace={folder}/work"]
images = os.environ.get("IMAGES")
if images:
    start.append("--sandbox=berth")
    os.mkdir(data)
    subprocess.run(["cp", "-a", "--reflink=auto", images, f"{data}/images"], check=True)


def host():
    log = open(f"{folder}/log", "a")
    return subprocess.Popen(start, env=env, stdout=subprocess.PIPE, stderr=log, start_new_session=True)


def document(process):
    text = ""
    while True:
        text += process.stdout.read(1).decode()
        try:
            return json.loads(text)
        except ValueError:
            pass


def ask(document, path, token="hostToken"):
    request = urllib.request.Request(document["openwork"]["baseUrl"] + path)
    request.add_header("Authorization", "Bearer " + document["openwork"][token])
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


def tree():
    """Name of the host's cgroup subtree, which includes its containers."""
    try:
        return os.path.basename(open(f"{data}/cgroup").read()) or "no tree"
    except OSError:
        return "no tree"


def ours():
    """Processes of this folder, except this script."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            words = b"".join(open(f"/proc/{pid}/{file}", "rb").read() for file in ("environ", "cmdline"))
            group = open(f"/proc/{pid}/cgroup").read()
            state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if (folder.encode() in words or tree() in group) and state != "Z":
            found.append(int(pid))
    return found


def children(parent):
    return [pid for pid in ours() if pid != parent]


for number in range(rounds):
    process = host()
    time.sleep(random.uniform(0, 1.5))
    victims = children(process.pid)
    if number % 2 and victims:
        os.kill(random.choice(victims), signal.SIGKILL)
        time.sleep(random.uniform(0, 0.5))
    process.send_signal(random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]))
    process.wait()
process = host()
document(process)
left = [pid for pid in ours() if pid != process.pid]
print(f"after {rounds} kills and a restart: {len(left)} processes besides the host")
serving = [pid for pid in left if b"serve" in open(f"/proc/{pid}/cmdline", "rb").read()]
assert len(serving) == 1 and (images or len(left) == 1), left
stopped = subprocess.run([berth, "host", "stop"], env=env, capture_output=True)
process.wait()
assert stopped.returncode == 0, stopped
assert ours() == [], ours()
groups = open(f"{data}/cgroup").read()
assert not groups or not os.path.exists(groups), groups
assert not os.path.exists(f"{data}/host/state.json")
assert folder not in open("/proc/self/mountinfo").read()
print("after the stop: no process, no cgroup, no mount, no state file")


def healthy(url, headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


def alone():
    begun = time.monotonic()
    words = [opencode, "serve", "--hostname", "127.0.0.1", "--port", "0", "--print-logs", "--log-level", "WARN"]
    own = dict(env, OPENCODE_SERVER_USERNAME="u", OPENCODE_SERVER_PASSWORD="p")
    process = subprocess.Popen(
        words, env=own, cwd=f"{folder}/work", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    line = next(line for line in process.stdout if b"listening on" in line)
    url = line.decode().split("listening on ")[1].strip()
    basic = {"Authorization": "Basic " + base64.b64encode(b"u:p").decode()}
    while not healthy(url + "/global/health", basic):
        time.sleep(0.01)
    took = time.monotonic() - begun
    process.kill()
    process.wait()
    return took


alone()
own, whole, again = [], [], []
for _ in range(5):
    own.append(alone())
    begun = time.monotonic()
    process = host()
    told = document(process)
    whole.append(time.monotonic() - begun)
    memory = next(line for line in open(f"/proc/{process.pid}/status") if line.startswith("VmRSS")).split()[1]
    state = ask(told, "/status")["opencode"]
    begun = time.monotonic()
    os.kill(state["pid"], signal.SIGKILL)
    bearer = {"Authorization": "Bearer " + told["openwork"]["token"]}
    while not healthy(told["openwork"]["baseUrl"] + "/opencode/global/health", bearer):
        time.sleep(0.01)
    again.append(time.monotonic() - begun)
    process.terminate()
    process.wait()
median = lambda values: sorted(values)[len(values) // 2]
print(f"OpenCode alone {median(own):.2f} s, berth host {median(whole):.2f} s, after a kill {median(again):.2f} s")
print(f"host: {memory} KiB resident")
shutil.rmtree(folder, ignore_errors=True)
