#!/usr/bin/env python3
"""Cost of the proxy for requests to a real OpenCode, and the added delay of a stream's first byte.

    tests/bench/proxy.py [BINARY] [OPENCODE]

BINARY is a release build (default: target/*/release/berth), OPENCODE a binary (opencode-old of target/it-npm, which
tests/run installs). Everything runs on loopback for about 30 seconds; apart from the server's processor time per request, the
figures are meaningful on an idle machine only. Prints ratios against the same OpenCode called directly in the same run.
"""
import base64, glob, json, os, re, shutil, socket, statistics, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOKEN, USER, PASSWORD = "bench-client", "opencode", "bench"
SECONDS, ROUNDS, STREAMS = 2, 3, 40


def first(*patterns):
    for pattern in patterns:
        found = sorted(glob.glob(os.path.join(ROOT, pattern)))
        if found:
            return found[-1]
    sys.exit(f"missing: {patterns[0]}")


def start(command, cwd, env, line):
    env = {"PATH": os.environ["PATH"], "HOME": os.path.join(cwd, "home"), **env}
    child = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for text in child.stdout:
        found = re.search(line, text)
        if found:
            # No other thread reads its output, which must not fill the pipe.
            subprocess.Popen(["cat"], stdin=child.stdout, stdout=subprocess.DEVNULL)
            return child, int(found[1])
    sys.exit(f"{command[0]} did not start")


def processor_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rate(port, path, authorization, connections):
    told = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}", "-H", f"Authorization: {authorization}", f"http://127.0.0.1:{port}{path}"],
        capture_output=True, text=True, check=True,
    ).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        sys.exit(told)
    return float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1]), int(re.search(r"(\d+) requests in", told)[1])


def first_byte(port, path, authorization):
    """Milliseconds from a request on a new connection to the first byte of the stream's body."""
    with socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = time.perf_counter()
        peer.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n\r\n".encode())
        told = b""
        while b"data:" not in told:
            piece = peer.recv(65536)
            if not piece:
                sys.exit(f"no stream: {told[:300]}")
            told += piece
        return (time.perf_counter() - begun) * 1000


def main():
    berth = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else first("target/*/release/berth", "target/release/berth")
    opencode = os.path.abspath(sys.argv[2]) if len(sys.argv) > 2 else first("target/it-npm/node_modules/opencode-old/bin/opencode")
    folder = tempfile.mkdtemp(prefix="berth-bench-")
    children = []
    try:
        for name in ("home", "work", "data"):
            os.mkdir(os.path.join(folder, name))
        quiet = {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"}
        child, far = start(
            [opencode, "serve", "--hostname=127.0.0.1", "--port=0"], folder,
            {**quiet, "OPENCODE_SERVER_USERNAME": USER, "OPENCODE_SERVER_PASSWORD": PASSWORD}, r"listening on http://127.0.0.1:(\d+)",
        )
        children.append(child)
        child, near = start(
            [berth, "--port=0", "--no-log-requests", f"--opencode-base-url=http://127.0.0.1:{far}", "--workspace=work"], folder,
            {"BERTH_DATA_DIR": os.path.join(folder, "data"), "OPENWORK_TOKEN": TOKEN, "OPENWORK_HOST_TOKEN": "bench-host",
             "OPENWORK_OPENCODE_USERNAME": USER, "OPENWORK_OPENCODE_PASSWORD": PASSWORD}, r"listening on http://127.0.0.1:(\d+)",
        )
        children.append(child)
        basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        ways = {"direct": (far, "", basic), "proxied": (near, "/opencode", f"Bearer {TOKEN}")}
        figures, own = {}, {}
        for port, mount, authorization in ways.values():
            first_byte(port, f"{mount}/event", authorization)
        for connections in (1, 16):
            # Alternately, so that a busy minute of the machine affects both.
            rates, requests, begun = {way: [] for way in ways}, 0, processor_seconds(child.pid)
            for _ in range(ROUNDS):
                for way, (port, mount, authorization) in ways.items():
                    found, count = rate(port, f"{mount}/global/health", authorization, connections)
                    rates[way].append(found)
                    requests += count if mount else 0
            own[connections] = round((processor_seconds(child.pid) - begun) / requests * 1e6)
            direct, proxied = (statistics.median(rates[way]) for way in ways)
            figures[f"health, {connections} connections"] = [round(direct), round(proxied), round(proxied / direct, 2)]
        waits = {way: [] for way in ways}
        for _ in range(STREAMS):
            for way, (port, mount, authorization) in ways.items():
                waits[way].append(first_byte(port, f"{mount}/event", authorization))
        direct, proxied = (statistics.median(waits[way]) for way in ways)
        print(f"{'':24}{'direct':>10}{'proxied':>10}{'ratio':>8}")
        for name, (one, other, ratio) in figures.items():
            print(f"{name:24}{one:>8}/s{other:>8}/s{ratio:>8}")
        print(f"{'first byte of /event':24}{direct:>8.2f}ms{proxied:>8.2f}ms{proxied - direct:>+7.2f}ms")
        for connections, micros in own.items():
            print(f"{f'berth, {connections} connections':24}{'':10}{micros:>6} µs of processor time per request")
        figures["processor time, µs"] = own
        figures["first byte of /event, ms"] = [round(direct, 2), round(proxied, 2)]
        print(json.dumps(figures))
    finally:
        for child in reversed(children):
            child.terminate()
            child.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


main()
