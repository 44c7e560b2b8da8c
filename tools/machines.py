# SPDX-License-Identifier: Apache-2.0
"""The machines whose figures were recorded: a folder of bench/results each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Found = dict[str, dict[str, Any]]

MAIN = "cpu-2-cores-avx512"
"""The folder of the machine that comes first on every page."""
XEON = "cpu-2-cores-intel-xeon-avx512-vnni"
"""That of one without bf16 instructions, whose cores have two 512-bit multiply-adds a cycle."""
LEVELS = ("scalar", "avx2", "avx512", "avx512_vnni", "avx512_bf16")
"""Of instructions, least first: the last that a machine's records name is its own."""
CLOCK = r"@\s*[\d.]+\s*GHz|\b\d+-Core\b|\bw(?:ith\b|/).*"
WORDS = r"\((?:R|TM|C)\)|\bCPU\b|\bProcessor\b|\bQEMU\b|\bVirtual\b"


@dataclass(frozen=True)
class Machine:
    """A folder, what it holds by the names of files, and how pages call it."""

    folder: str
    found: Found
    name: str

    def level(self, file: str) -> str:
        """Of the instructions that a record was taken with, where the machine has more; else ""."""
        isa = host(self.found[file]).get("isa", "")
        return "" if isa == host_of(self.found).get("isa", "") else isa


def load(folder: Path) -> Found:
    """The recorded files of a machine by name."""
    return {f.name: json.loads(f.read_text("utf-8")) for f in sorted(folder.glob("*.json"))}


def machines(results: Path) -> list[Machine]:
    """Every one that has notes, the main one first."""
    folders = [path.parent for path in results.glob("*/notes.md")]
    folders.sort(key=lambda path: (path.name != MAIN, path.name))
    found = [load(folder) for folder in folders]
    names = [short_name(host_of(each)) for each in found]
    return [
        Machine(folder.name, each, name if names.count(name) == 1 else folder.name)
        for folder, each, name in zip(folders, found, names, strict=True)
    ]


def host(record: Mapping[str, Any]) -> dict[str, Any]:
    """Where a record was taken; empty where it does not say."""
    return record.get("host") or record.get("machine") or {}


def host_of(found: Found) -> dict[str, Any]:
    """The machine of a folder's records, at the highest level that they name; empty without one."""
    hosts = [host(record) for record in found.values() if host(record)]
    return max(hosts, key=lambda one: _rank(one["isa"]), default={})


def _rank(isa: str) -> int:
    return LEVELS.index(isa) if isa in LEVELS else -1


def same(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether two hosts are one machine: names of processors do not tell their generation, but
    their instructions do."""
    return all(there.get(what) == here[what] for what in ("cpu", "processors", "isa"))


def short_name(host: Mapping[str, Any]) -> str:
    """The maker's words for it and its level: "Intel Xeon, avx512"."""
    return f"{brand(host['cpu'])}, {host['isa']}" if host else "not known"


def brand(cpu: str) -> str:
    """The words of a processor's name without clock, number of cores and what says nothing."""
    return " ".join(re.sub(WORDS, " ", re.sub(CLOCK, " ", cpu, flags=re.I), flags=re.I).split())


def new_folder(results: Path, host: Mapping[str, Any]) -> Path:
    """Made for a machine that has none: by its processors, maker's words and level."""
    told = f"cpu-{host['processors']}-cores-{brand(host['cpu'])}-{host['isa']}"
    name = re.sub("[^a-z0-9]+", "-", told.lower()).strip("-")
    taken, nth = {path.name for path in results.iterdir()}, 1
    while (made := results / (name if nth == 1 else f"{name}-{nth}")).name in taken:
        nth += 1
    made.mkdir()
    (made / "notes.md").write_text(f"# {short_name(host)}, {host['processors']} processors\n")
    return made


def sections(machines: Sequence[Machine], texts: Sequence[str]) -> str:
    """What there is to say of each, below its name where there are several; "" of one is left
    out."""
    told = [(one.name, text) for one, text in zip(machines, texts, strict=True) if text]
    if len(machines) == 1:
        return "\n".join(text for _, text in told)
    return "\n".join(f"### {name}\n\n{text}" for name, text in told)
