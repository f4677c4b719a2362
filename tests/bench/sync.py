#!/usr/bin/env python3
"""Prints the time of a sync of 200 skills into a workspace, the first one and one without changes, compared with writing files
of the same size in Python."""

import os
import sys
import tempfile
import time

sys.dont_write_bytecode = True
import table

SKILLS = 200


def main():
    api = table.Connection()
    text = "---\ndescription: Skill of a benchmark\n---\n" + "Do it well.\n" * 50
    names = [f"skill-{n:03}" for n in range(SKILLS)]
    for name in names:
        api.call("PUT", f"/api/library/skill/{name}", {"content": text})
    made = api.call("POST", "/api/workspaces", {"name": "sync"})
    first, again = [], []
    for _ in range(5):
        api.call("PUT", f"/api/workspaces/{made['id']}", {"skills": []})
        begun = time.perf_counter()
        api.call("PUT", f"/api/workspaces/{made['id']}", {"skills": names})
        first.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        api.call("POST", f"/api/workspaces/{made['id']}/sync", {})
        again.append(time.perf_counter() - begun)
    plain = []
    for _ in range(5):
        with tempfile.TemporaryDirectory(dir=os.path.dirname(made["path"])) as folder:
            begun = time.perf_counter()
            for name in names:
                for place in (".opencode/skill", ".claude/skills"):
                    os.makedirs(os.path.join(folder, place, name))
                    with open(os.path.join(folder, place, name, "SKILL.md"), "w") as file:
                        file.write(text)
            plain.append(time.perf_counter() - begun)
    first, again, plain = (sorted(times)[2] * 1000 for times in (first, again, plain))
    table.show(f"sync of {SKILLS} skills", [
        ("first", f"{first:.0f} ms", "<= 100 ms", f"{first / plain:.1f} x the same files from Python"),
        ("nothing changed", f"{again:.0f} ms", "", f"{again / plain:.1f} x"),
    ])


if not os.environ.get("B"):
    here = os.path.dirname(os.path.abspath(__file__))
    os.execv(os.path.join(here, "with-server"), ["with-server", sys.executable, os.path.abspath(__file__)])
main()
