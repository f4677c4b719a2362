#!/usr/bin/env python3
"""lists.py [BERTH]: time of the lists and peak memory of the server over trees that a program in a workspace can make:
hard links to one large file, 100,000 entries, sparse files, deep folders. Linux; as the user who runs the server."""
import concurrent.futures, json, os, shutil, subprocess, sys, tempfile, time, urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
from table import show

BERTH = sys.argv[1] if len(sys.argv) > 1 else "target/release/berth"
LISTS = ("skills", "commands", "export", "plugins", "inbox")


def links(top):
    with open(f"{top}/big", "wb") as big:
        big.write(b"---\nname: s\ndescription: d\n---\n".ljust(1 << 20, b"\x01"))
    for n in range(1990):
        os.mkdir(f"{top}/.opencode/skills/s{n}")
        os.link(f"{top}/big", f"{top}/.opencode/skills/s{n}/SKILL.md")
        os.link(f"{top}/big", f"{top}/.opencode/commands/c{n}.md")


def entries(top):
    for n in range(100_000):
        os.mkdir(f"{top}/.opencode/skills/s{n}")
        open(f"{top}/.opencode/commands/c{n}.md", "w").close()


def sparse(top):
    for n in range(50):
        os.mkdir(f"{top}/.opencode/skills/s{n}")
        for path in (f"skills/s{n}/SKILL.md", f"commands/c{n}.md", f"openwork/inbox/f{n}"):
            with open(f"{top}/.opencode/{path}", "w") as file:
                file.truncate(60 << 30)


def deep(top):
    for kind in ("skills", "commands"):
        os.makedirs(f"{top}/.opencode/{kind}/" + "d/" * 500)


def call(url, token, path):
    begun = time.monotonic()
    request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        size = len(answer.read())
    return time.monotonic() - begun, size


def peak(pid):
    return next(int(line.split()[1]) >> 10 for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM:"))


rows = []
for name, make in (("1,990 hard links", links), ("100,000 entries", entries), ("60 GB files", sparse), ("500 deep", deep)):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        top = f"{folder}/work"
        for path in ("skills", "commands", "plugins", "openwork/inbox"):
            os.makedirs(f"{top}/.opencode/{path}")
        make(top)
        environment = os.environ | {"OPENWORK_TOKEN": "client", "OPENWORK_HOST_TOKEN": "host", "HOME": folder}
        server = subprocess.Popen(
            [BERTH, "--port", "0", "--data-dir", f"{folder}/data", "--workspace", top, "--approval", "auto"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            line = next(line for line in server.stdout if "http://" in line)
            url = "http://" + line.split("http://")[1].split()[0].rstrip("/,;")
            workspaces = urllib.request.Request(url + "/workspaces", headers={"Authorization": "Bearer host"})
            base = "/workspace/" + json.load(urllib.request.urlopen(workspaces))["activeId"]
            before = peak(server.pid)
            with concurrent.futures.ThreadPoolExecutor(20) as pool:
                asked = [(path, pool.submit(call, url, "client", f"{base}/{path}")) for path in LISTS for _ in range(4)]
                health = max(call(url, "client", "/health")[0] for _ in range(20))
                took = {path: max(future.result()[0] for other, future in asked if other == path) for path in LISTS}
            slowest = max(took, key=took.get)
            rows.append((f"{name}: slowest of 20 lists at once ({slowest})", f"{took[slowest]:.2f} s", "< 10 s", ""))
            rows.append((f"{name}: /health beside them", f"{health * 1000:.0f} ms", "< 50 ms", ""))
            rows.append((f"{name}: memory of the server", f"{peak(server.pid) - before} MB more", "< 96 MB", ""))
        finally:
            server.terminate()
            server.wait()
        subprocess.run(["rm", "-rf", top], check=False)
show("lists of hostile trees", rows)
