#!/usr/bin/env python3
"""Writes berth.cdx.json (CycloneDX 1.5) and licences.txt of what is linked into the binary, from `cargo metadata`.

bill-of-materials.py METADATA.json OUT-FOLDER"""

import json
import os
import sys
from pathlib import Path

metadata = json.loads(Path(sys.argv[1]).read_text())
out = Path(sys.argv[2])
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}


def linked(root):
    """What `root` needs at run time, and what those need; tests' and build scripts' crates are not linked."""
    found, waiting = {}, [root]
    while waiting:
        for dependency in nodes[waiting.pop()]["deps"]:
            kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
            is_macro = any("proc-macro" in target["kind"] for target in packages[dependency["pkg"]]["targets"])
            if None in kinds and not is_macro and dependency["pkg"] not in found:
                found[dependency["pkg"]] = True
                waiting.append(dependency["pkg"])
    return sorted((packages[one] for one in found), key=lambda package: (package["name"], package["version"]))


root = packages[metadata["resolve"]["root"]]
crates = linked(root["id"])
components = [
    {
        "type": "library",
        "name": crate["name"],
        "version": crate["version"],
        "purl": f"pkg:cargo/{crate['name']}@{crate['version']}",
        "licenses": [{"expression": (crate["license"] or "NOASSERTION").replace("/", " OR ")}],
    }
    for crate in crates
]
bill = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.5",
    "version": 1,
    "metadata": {"component": {"type": "application", "name": root["name"], "version": root["version"]}},
    "components": components,
}
(out / "berth.cdx.json").write_text(json.dumps(bill, indent=1) + "\n")

with open(out / "licences.txt", "w", encoding="utf-8") as licences:
    for crate in crates:
        licences.write(f"==== {crate['name']} {crate['version']}: {crate['license']}\n")
        folder = Path(crate["manifest_path"]).parent
        names = sorted(name for name in os.listdir(folder) if name.upper().startswith(("LICEN", "COPYING", "NOTICE")))
        for name in names:
            if (folder / name).is_file():
                licences.write(f"\n-- {name}\n{(folder / name).read_text(errors='replace').strip()}\n")
        licences.write("\n")
