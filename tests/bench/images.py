#!/usr/bin/env python3
"""Speed of imports and builds of images, compared with the tools that only do that.

    [tests/bench/on-ext4] tests/bench/images.py [BERTH] [--bootstrap]

Imports a tar.zst of about 200 MB and runs `tar --zstd -x` into the same file system, alternately, five times each; with
--bootstrap also builds the image of bookworm and runs debootstrap alone, once each. Prints the medians and their ratio. The
archive is made from /usr of this machine and a shell, and is cached.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

args = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
berth = os.path.abspath(args[0]) if args else shutil.which("berth") or sys.exit("pass the path of the berth binary")
place = os.environ.get("TMPDIR", "/var/tmp")
archive = "/var/tmp/berth-bench/usr.tar.zst"
os.makedirs(os.path.dirname(archive), exist_ok=True)


def run(*words, **more):
    begun = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, **more)
    return time.monotonic() - begun


def make_archive():
    """Packs files of /usr until the archive has 200 MB."""
    if os.path.exists(archive) and 190 << 20 < os.path.getsize(archive) < 210 << 20:
        return
    find = "cd / && echo bin && find usr/bin usr -xdev \\( -type f -o -type l -o -type d \\) -print"
    names = list(dict.fromkeys(subprocess.run(["sh", "-c", find], capture_output=True, text=True).stdout.splitlines()))
    wanted = 500 << 20
    for _ in range(4):
        budget, chosen = wanted, []
        for name in names:
            chosen.append(name)
            budget -= os.lstat(f"/{name}").st_size
            if budget < 0:
                break
        line = f"tar --numeric-owner --no-recursion -c -f - -C / -T - 2>/dev/null | zstd -q -3 -T0 -f -o {archive}"
        subprocess.run(["sh", "-c", line], input="\n".join(chosen), text=True, check=True)
        size = os.path.getsize(archive)
        if 190 << 20 < size < 210 << 20:
            break
        wanted = wanted * (200 << 20) // size
    print(f"archive: {size >> 20} MiB, {(wanted - budget) >> 20} MiB in {len(chosen)} files", flush=True)


def remove(path):
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


def imports():
    make_archive()
    times = {"tar": [], "berth": []}
    for _ in range(5):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            os.sync()
            times["tar"].append(run("tar", "--zstd", "-x", "--numeric-owner", "-p", "-f", archive, "-C", folder))
        data = tempfile.mkdtemp(dir=place)
        os.sync()
        env = dict(os.environ, BERTH_DATA_DIR=data)
        times["berth"].append(run(berth, "image", "import", "bench", archive, env=env))
        remove(data)
    tar, ours = (statistics.median(times[name]) for name in ("tar", "berth"))
    print(f"import: tar --zstd -x {tar:.2f} s, berth {ours:.2f} s: {tar / ours:.2f} × its speed (target: 0.8)")


def bootstraps():
    mirror = subprocess.run(
        ["awk", "/^URIs:/ {print $2; exit}", "/etc/apt/sources.list.d/debian.sources"], capture_output=True, text=True
    ).stdout.strip()
    folder, data = tempfile.mkdtemp(dir=place), tempfile.mkdtemp(dir=place)
    alone = run("debootstrap", "--variant=minbase", "bookworm", os.path.join(folder, "root"), mirror)
    ours = run(berth, "image", "build", "debian-bookworm", env=dict(os.environ, BERTH_DATA_DIR=data), stderr=subprocess.DEVNULL)
    remove(folder)
    remove(data)
    print(f"bookworm: debootstrap {alone:.1f} s, berth {ours:.1f} s: {100 * (ours / alone - 1):+.0f} % (target: at most +10 %)")


imports()
if "--bootstrap" in sys.argv:
    bootstraps()
