#!/usr/bin/env python3
"""Prints the processor time of one `exec true`: that of the server, and that of all processes in its cgroups. Unlike a rate
it is meaningful on a busy machine; BERTH_BIN names another binary for comparison."""

import os
import sys
import threading
import time

sys.dont_write_bytecode = True
import table

table.ensure_server()

NIL = "00000000-0000-0000-0000-000000000000"
COUNT = int(os.environ.get("ROUNDS", "3000"))
PID = int(os.environ["BERTH_PID"])
TICK = os.sysconf("SC_CLK_TCK")


def server_micros():
    """User and system time of the server, without its children, which are in other cgroups."""
    fields = open(f"/proc/{PID}/stat").read().rsplit(")", 1)[1].split()
    return [int(fields[at]) * 1e6 / TICK for at in (11, 12)]


def work_micros():
    """Time of every process that was ever in the server's cgroups: the commands, the agents and their children."""
    tree = open(f"{os.environ['BERTH_DATA']}/cgroup").read()
    return int(open(f"{tree}/cpu.stat").readline().split()[1])


def execs(workspace, count, connections):
    def work():
        api = table.Connection()
        request = api.encode("POST", f"/api/workspaces/{workspace}/exec", {"command": "true"})
        for _ in range(count // connections):
            status, body = api.send(request)
            if status != 200 or b'"exit_code":0' not in body:
                raise SystemExit(f"exec true: {status} {body!r}")

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main():
    rows = []
    for place, workspace in [("host", NIL), ("container", table.container())]:
        for connections in (1, 8):
            execs(workspace, 200, connections)
            before, work, begin = server_micros(), work_micros(), time.perf_counter()
            execs(workspace, COUNT, connections)
            after = server_micros()
            user, system = ((b - a) / COUNT for a, b in zip(before, after))
            work = (work_micros() - work) / COUNT
            took = time.perf_counter() - begin
            rows.append((f"{place}, {connections} at once", f"{user + system + work:,.0f} us", "",
                         f"server {user:.0f} user + {system:.0f} system, commands {work:.0f}; {COUNT / took:,.0f}/s just now"))
    table.show("processor time of one exec true", rows)


main()
