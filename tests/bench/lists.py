#!/usr/bin/env python3
"""lists.py [BERTH]: time of the lists and peak memory of the server over trees that a program in a workspace can make (hard
links to one large file, 100,000 entries, sparse files, names of all bytes, deep folders, front matter that is slow to parse),
and time of edits of configuration that is slow to parse. Each time is printed with that of an ordinary workspace in the same
run. Linux; run as the user of the server."""
import concurrent.futures, json, os, subprocess, sys, tempfile, time, urllib.error, urllib.request

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


def names(top):
    for byte in range(1, 256):
        if byte != ord("/"):
            with open(f"{top}/.opencode/commands/x".encode() + bytes([byte]) + b".md", "wb") as file:
                file.write(b"x")
            folder = f"{top}/.opencode/skills/x".encode() + bytes([byte])
            os.mkdir(folder)
            with open(folder + b"/SKILL.md", "w") as file:
                file.write(f"---\nname: n{byte}\ndescription: d\n---\n")


def yaml(top):
    hard = ["k: 1\n" * 30000, "".join(f"k{n}: {n}\n" for n in range(30000)), "a: " + "[" * 200000, "- " * 200000,
            "".join(f"k{n}: &a{n} [{n}]\n" for n in range(20000)), "a: b: c\n" * 60000,
            "a: &a " + "x" * 100000 + "\nb: [" + "*a," * 50000 + "]", 'a: "' + "\\u0041" * 80000]
    for n, text in enumerate(hard):
        os.mkdir(f"{top}/.opencode/skills/s{n}")
        for path in (f"skills/s{n}/SKILL.md", f"commands/c{n}.md"):
            with open(f"{top}/.opencode/{path}", "w") as file:
                file.write(f"---\nname: x\n{text}\n---\nbody\n")


def ordinary(top):
    for n in range(20):
        os.mkdir(f"{top}/.opencode/skills/s{n}")
        for path in (f"skills/s{n}/SKILL.md", f"commands/c{n}.md"):
            with open(f"{top}/.opencode/{path}", "w") as file:
                file.write(f"---\nname: s{n}\ndescription: d\n---\nbody\n")


# Configurations to edit; the first is an ordinary one.
JSONC = (
    ("ordinary", '{"model": "a/b", "plugin": ["p"]}'),
    ("30,000 equal keys", "{" + ",".join('"mcp":{}' for _ in range(30000)) + "}"),
    ("30,000 keys", "{" + ",".join(f'"k{n}":{{}}' for n in range(30000)) + "}"),
    ("19,000 equal keys", "{" + ",".join('"mcp":{}' for _ in range(19000)) + "}"),
    ("19,000 equal plugins", '{"plugin":[' + ",".join(['"a"'] * 19000) + "]}"),
    ("200,000 comments", "{}" + "\n// c" * 200000),
    ("200,000 brackets", "[" * 200000),
)


def call(url, token, path, method="GET", body=None):
    begun = time.monotonic()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
                urllib.request.Request(url + path, headers=headers, method=method, data=data), timeout=60) as answer:
            size = len(answer.read())
    except urllib.error.HTTPError as refused:
        assert refused.code in (413, 422), refused
        size = 0
    return time.monotonic() - begun, size


def peak(pid):
    return next(int(line.split()[1]) >> 10 for line in open(f"/proc/{pid}/status") if line.startswith("VmHWM:"))


def edits(url, base, top):
    """Seconds of the slowest edit of each configuration."""
    took = {}
    for name, text in JSONC:
        times = []
        for method, path, body in (
                ("PATCH", "config", {"opencode": {"model": "x/y"}}), ("DELETE", "plugins/a", None),
                ("POST", "mcp", {"name": "m", "config": {"type": "remote", "url": "http://h"}}), ("GET", "config", None)):
            with open(f"{top}/opencode.json", "w") as file:
                file.write(text)
            times.append(call(url, "client", f"{base}/{path}", method, body)[0])
        took[name] = max(times)
    os.remove(f"{top}/opencode.json")
    return took


rows = []
usual = None
TREES = (("ordinary", ordinary), ("1,990 hard links", links), ("100,000 entries", entries), ("60 GB files", sparse),
         ("names of all bytes", names), ("500 deep", deep), ("hard front matter", yaml))
for name, make in TREES:
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
            usual = usual or took[slowest]
            beside = f"{took[slowest] / usual:.1f} × the ordinary one"
            rows.append((f"{name}: slowest of 20 lists at once ({slowest})", f"{took[slowest]:.2f} s", "< 10 s", beside))
            rows.append((f"{name}: /health beside them", f"{health * 1000:.0f} ms", "< 50 ms", ""))
            rows.append((f"{name}: memory of the server", f"{peak(server.pid) - before} MB more", "< 96 MB", ""))
            if make is ordinary:
                before, took = peak(server.pid), edits(url, base, top)
                for config, seconds in took.items():
                    beside = f"{seconds / took['ordinary']:.0f} × the ordinary one"
                    rows.append((f"opencode.json, {config}: slowest edit", f"{seconds * 1000:.0f} ms", "< 1 s", beside))
                rows.append(("memory of the server", f"{peak(server.pid) - before} MB more", "< 96 MB", ""))
        finally:
            server.terminate()
            server.wait()
        subprocess.run(["rm", "-rf", top], check=False)
show("Lists of hostile trees and edits of hostile configuration", rows)
