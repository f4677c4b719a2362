#!/usr/bin/env python3
"""Kills around `berth host --sandbox docker`: usage: tests/bench/sandboxes.py BERTH OPENCODE ENGINE [ROUNDS]. ENGINE is a
folder with the files of Debian's packages docker.io, containerd, runc, libdevmapper1.02.1, libseccomp2 and tini
(target/*/it-docker, which the tests `host_docker::` create). With REMAP=1 the engine has `--userns-remap`; /etc/subuid and
/etc/subgid must exist then.

Runs a separate engine in namespaces. ROUNDS times (100) it starts a host and kills, with SIGKILL at a random moment of the
start or of operation, the first process of the container, OpenCode in it, or the host. After every tenth round and at the end a
host is started and stopped, after which no process, container, mount, cgroup or staging folder may remain."""

import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

berth, opencode, engine = (os.path.abspath(path) for path in sys.argv[1:4])
rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 100
seed = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
random.seed(seed)
folder = tempfile.mkdtemp(prefix="berth-sandboxes-")
os.chmod(folder, 0o711)
data, group = f"{folder}/data", f"/berth-sandboxes-{os.getpid()}"
programs = f"{engine}/usr/bin:{engine}/usr/sbin:{os.environ['PATH']}"
libraries = ":".join(path for lib in ("usr/lib", "lib") for path in glob.glob(f"{engine}/{lib}/*"))
env = {
    "PATH": os.environ["PATH"],
    "HOME": folder,
    "BERTH_DATA_DIR": data,
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENWORK_OPENCODE_BIN": opencode,
    "OPENWORK_DOCKER_BIN": f"{engine}/usr/bin/docker",
    "DOCKER_HOST": f"unix://{folder}/sock",
}
image = "debian:bookworm-slim"
os.mkdir(f"{folder}/work")
os.chown(f"{folder}/work", 12345, 12345)


def docker(*words):
    words = [f"{engine}/usr/bin/docker", *words]
    return subprocess.run(words, env=dict(env, PATH=programs), capture_output=True, text=True, timeout=60)


def start_engine():
    for name in ("engine", "exec"):
        os.mkdir(f"{folder}/{name}")
    remap = (
        "echo nobody:100000:65536 > $AT/subids && mount --bind $AT/subids /etc/subuid && "
        "mount --bind $AT/subids /etc/subgid && "
    )
    script = (
        (remap if os.environ.get("REMAP") else "")
        + "mount -t tmpfs -o mode=711 engine $AT/engine && ip link set lo up && exec dockerd --data-root $AT/engine "
        "--exec-root $AT/exec --pidfile $AT/pid --host unix://$AT/sock --iptables=false --ip6tables=false "
        "--ip-forward=false --ip-masq=false --storage-driver overlay2 --exec-opt native.cgroupdriver=cgroupfs "
        "--cgroup-parent $GROUP"
        + (" --userns-remap=nobody:nogroup" if os.environ.get("REMAP") else "")
    )
    words = ["unshare", "--net", "--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc"]
    own = dict(os.environ, AT=folder, GROUP=group, PATH=programs, LD_LIBRARY_PATH=libraries)
    log = open(f"{folder}/dockerd.log", "w")
    process = subprocess.Popen(words + ["sh", "-c", script], env=own, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while docker("version").returncode:
        assert time.monotonic() < deadline and process.poll() is None, open(log.name).read()
        time.sleep(0.1)
    root = f"{folder}/root"
    for name in ("usr/bin", "etc", "tmp", "proc", "sys", "dev"):
        os.makedirs(f"{root}/{name}")
    os.chmod(f"{root}/tmp", 0o1777)
    os.symlink("usr/bin", f"{root}/bin")
    copy = (
        'cd "$0"; for name in sh bash cat ls sleep uname; do from=$(command -v $name); cp -L $from usr/bin/; '
        "ldd $from | grep -o '/[^ ]*'; done | sort -u | while read one; do mkdir -p .$(dirname $one); cp -Ln $one .$one; "
        "done; for name in libpthread.so.0 libdl.so.2 libm.so.6 librt.so.1 libgcc_s.so.1; do "
        'from=$(ldconfig -p | grep -o "/.*/$name$" | head -1); test -z $from || '
        "{ mkdir -p .$(dirname $from); cp -Ln $from .$from; }; done; true"
    )
    subprocess.run(["sh", "-c", copy, root], check=True)
    imported = f'tar -C {root} -c . | "$0" import - {image}'
    subprocess.run(["sh", "-c", imported, f"{engine}/usr/bin/docker"], env=dict(env, PATH=programs), check=True)
    shutil.rmtree(root)
    return process


def host(*words):
    log = open(f"{folder}/log", "a")
    start = [berth, "host", "start", "--json", "--openwork-port=0", f"--workspace={folder}/work", "--sandbox=docker"]
    return subprocess.Popen(start + [*words], env=env, stdout=subprocess.PIPE, stderr=log, start_new_session=True)


def document(process):
    text = ""
    while True:
        more = process.stdout.read(1).decode()
        assert more, open(f"{folder}/log").read()[-2000:]
        text += more
        try:
            return json.loads(text)
        except ValueError:
            pass


def processes(wanted):
    """Processes with one of the words in command line, environment or cgroup, with their command lines."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = open(f"/proc/{pid}/cmdline", "rb").read()
            text = words + b"".join(open(f"/proc/{pid}/{file}", "rb").read() for file in ("environ", "cgroup"))
            state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if any(word.encode() in text for word in wanted) and state not in "ZX" and int(pid) != os.getpid():
            found[int(pid)] = words
    return found


def ours():
    """The host and the processes in its containers; the engine has none of these words in its command lines."""
    mine = processes([data, f"{group}/"])
    return {pid: words for pid, words in mine.items() if engine.encode() not in words and b"dockerd" not in words}


def inside(part):
    return [pid for pid, words in processes([f"{group}/"]).items() if part in words]


def cgroups():
    tops = glob.glob(f"/sys/fs/cgroup{group}/*/") + glob.glob(f"/sys/fs/cgroup/*{group}/*/")
    tree = open(f"{data}/cgroup").read() if os.path.exists(f"{data}/cgroup") else ""
    return tops + ([tree] if tree and os.path.exists(tree) else [])


def settled(what, look, patience=15):
    deadline = time.monotonic() + patience
    while left := look():
        assert time.monotonic() < deadline, f"{what} left (SEED={seed}): {left}"
        time.sleep(0.05)


stops = []


def nothing_is_left():
    process = host("--run-id=last")
    document(process)
    begun = time.monotonic()
    stopped = subprocess.run([berth, "host", "stop"], env=env, capture_output=True)
    stops.append(time.monotonic() - begun)
    process.wait()
    assert stopped.returncode == 0, stopped
    settled("processes", ours)
    settled("containers", lambda: docker("ps", "--all", "--quiet").stdout.split())
    settled("cgroups", cgroups)
    kept = {"opencode.log", "opencode.1.log"}
    left = set(os.listdir(f"{data}/host")) - kept
    assert not left, left
    mounts = open("/proc/self/mountinfo").read()
    assert data not in mounts and f"{folder}/work" not in mounts, mounts
    assert os.listdir(f"{folder}/work") == [], os.listdir(f"{folder}/work")
    homes = os.listdir(f"{data}/sandbox")
    assert len(homes) == 1 and not os.path.exists(f"{data}/sandbox/{homes[0]}/openwork-orchestrator-sandbox"), homes


dockerd = start_engine()
try:
    nothing_is_left()
    counts = dict.fromkeys(("container", "opencode", "host", "none there"), 0)
    for number in range(rounds):
        process = host(f"--run-id=round-{number}")
        if number % 3 == 2:
            document(process)
            time.sleep(random.uniform(0, 0.3))
        else:
            time.sleep(random.uniform(0, 2.5))
        victim = random.choice(["container", "container", "opencode", "host"])
        pids = {"container": inside(b"relay"), "opencode": inside(b"opencode"), "host": [process.pid]}[victim]
        counts[victim if pids else "none there"] += 1
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        # Some are found by the next step, others end before it.
        time.sleep(random.choice([0, 0, 0.2, 1]))
        process.send_signal(random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]))
        process.wait()
        process.stdout.close()
        if number % 10 == 9:
            nothing_is_left()
    nothing_is_left()
    print(f"{rounds} rounds (SEED={seed}), killed: {counts}")
    print(f"stops took {min(stops):.2f} to {max(stops):.2f} s")
    print("left: no process, container, mount, cgroup or staging folder")
finally:
    for pid in ours():
        os.kill(pid, signal.SIGKILL)
    first = [pid for pid, words in processes([f"--data-root\0{folder}/engine"]).items() if b"dockerd" in words[:16]]
    for pid in first:
        os.kill(pid, signal.SIGTERM)
    time.sleep(2)
    dockerd.kill()
    dockerd.wait()
    for path in glob.glob(f"/sys/fs/cgroup{group}") + glob.glob(f"/sys/fs/cgroup/*{group}"):
        try:
            os.rmdir(path)
        except OSError as error:
            print(error)
    if not os.environ.get("KEEP"):
        shutil.rmtree(folder, ignore_errors=True)
