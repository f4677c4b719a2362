#!/usr/bin/env python3
"""Prints the cost of the gate: rate and latency of a list of workspaces, in this build and in the last one without a gate,
alternately, so that changes of the machine's speed affect both. The older build is made from the history (WITHOUT: use this
binary instead)."""

import os
import re
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
import table

LAST_WITHOUT = "3c53bf9"
ROUNDS = int(os.environ.get("ROUNDS", "5"))
SECONDS = int(os.environ.get("SECONDS_EACH", "5"))
HERE = os.path.dirname(os.path.abspath(__file__))


def build_without(folder):
    root = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=HERE, capture_output=True, text=True, check=True)
    subprocess.run(["git", "clone", "-q", root.stdout.strip(), folder], check=True)
    subprocess.run(["git", "checkout", "-q", LAST_WITHOUT], cwd=folder, check=True)
    target = os.path.join(folder, "target")
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--target-dir", target], cwd=folder, check=True)
    for place, _, files in os.walk(target):
        if place.endswith("/release") and "berth" in files:
            return os.path.join(place, "berth")
    raise SystemExit("the build without a gate produced no binary")


def measure():
    """Runs beside a server: prints requests per second, the median in microseconds and the number of failed responses."""
    api = table.Connection()
    for n in range(4):
        api.call("POST", "/api/workspaces", {"name": f"bench-{n}"})
    request = api.encode("GET", "/api/workspaces")
    times = []
    for _ in range(3000):
        begin = time.perf_counter()
        status, _ = api.send(request)
        times.append((time.perf_counter() - begin) * 1e6)
        if status != 200:
            raise SystemExit(f"GET /api/workspaces: {status}")
    done = subprocess.run(["wrk", "-t2", "-c16", f"-d{SECONDS}s", "-H", f"Authorization: Bearer {os.environ['T']}",
                           f"{os.environ['B']}/api/workspaces"], capture_output=True, text=True, check=True)
    rate = re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)[1]
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    print(rate, table.percentile(times[300:], 0.5), bad[1] if bad else 0)


def beside(binary):
    env = dict(os.environ)
    if binary:
        env["BERTH_BIN"] = binary
    runner = os.path.join(HERE, "with-server")
    done = subprocess.run([runner, sys.executable, os.path.abspath(__file__)], env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    rate, median, bad = done.stdout.split()
    return float(rate), float(median), int(bad)


def main():
    with tempfile.TemporaryDirectory() as folder:
        without = os.environ.get("WITHOUT") or build_without(folder)
        pairs = [(beside(os.environ.get("BERTH_BIN")), beside(without)) for _ in range(ROUNDS)]
    middle = lambda values: table.percentile(list(values), 0.5)
    rate, plain = middle(a[0] for a, _ in pairs), middle(b[0] for _, b in pairs)
    ratios = sorted(a[0] / b[0] for a, b in pairs)
    more = [a[1] - b[1] for a, b in pairs]
    bad = sum(a[2] + b[2] for a, b in pairs)
    best = max(a[0] for a, _ in pairs)
    table.show(f"GET /api/workspaces, {ROUNDS} rounds of both builds, medians", [
        ("with the gate, wrk -t2 -c16", f"{rate:,.0f}/s", ">= 25,000/s", f"without: {plain:,.0f}/s; best round {best:,.0f}/s; {bad} bad answers"),
        ("share of the rate that is left", f"{middle(ratios):.2f}", ">= 0.65", f"rounds: {', '.join(f'{r:.2f}' for r in ratios)}"),
        ("added by the gate, one connection", f"{middle(more):.0f} us", "< 150 us", f"with: {middle(a[1] for a, _ in pairs):.0f} us"),
    ])


if "B" in os.environ:
    measure()
else:
    main()
