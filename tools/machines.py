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

ZEN5 = "cpu-2-cores-avx512"
"""The folder of a machine with two 512-bit multiply-adds a cycle, of fp32 or of bf16 pairs."""
ZEN4 = "cpu-2-cores-amd-epyc-zen-4-avx512-bf16"
"""That of one with the same instructions, each in two halves: one multiply-add a cycle."""
XEON = "cpu-2-cores-intel-xeon-avx512-vnni"
"""That of one without bf16 instructions, whose cores have two 512-bit multiply-adds a cycle."""
MAIN = ZEN4
"""The folder of the machine that comes first on every page."""
UNTOLD = {ZEN5: "family 26", XEON: "family 6, model 85"}
"""What hosts of older records, which do not tell it, are: by their instructions and the rate of
their multiply-adds."""
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
    found = {f.name: json.loads(f.read_text("utf-8")) for f in sorted(folder.glob("*.json"))}
    for record in found.values():
        if folder.name in UNTOLD and host(record):
            host(record).setdefault("model", UNTOLD[folder.name])
    return found


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
    their instructions and numbers do. Of a host there the model may be untold, or in part."""
    told = f"{here.get('model', '')},".startswith(f"{there.get('model', here.get('model', ''))},")
    return told and all(there.get(what) == here[what] for what in ("cpu", "processors", "isa"))


def short_name(host: Mapping[str, Any]) -> str:
    """The maker's words for it, its generation and its level: "AMD EPYC Zen 4, avx512_bf16"."""
    return f"{_called(host)}, {host['isa']}" if host else "not known"


def _called(host: Mapping[str, Any]) -> str:
    return f"{brand(host['cpu'])} {generation(host.get('model', ''), host['isa'])}".strip()


def generation(model: str, isa: str) -> str:
    """What processors of a family and model are called that no other name of theirs tells; "" of
    those not known here."""
    family, number = (int(n) for n in (*re.findall(r"\d+", model), "-1", "-1")[:2])
    beyond = {25: ("avx2", "Zen 3", "Zen 4"), (6, 85): ("avx512", "Skylake", "Cascade Lake")}
    if family in beyond or (family, number) in beyond:
        level, upto, after = beyond.get(family) or beyond[family, number]
        return after if _rank(isa) > _rank(level) else upto
    known = {(6, 106): "Ice Lake", (6, 143): "Sapphire Rapids", (6, 207): "Emerald Rapids"}
    return "Zen 5" if family == 26 else known.get((family, number), "")


def brand(cpu: str) -> str:
    """The words of a processor's name without clock, number of cores and what says nothing."""
    return " ".join(re.sub(WORDS, " ", re.sub(CLOCK, " ", cpu, flags=re.I), flags=re.I).split())


def new_folder(results: Path, host: Mapping[str, Any]) -> Path:
    """Made for a machine that has none: by its processors, short name and level."""
    told = f"cpu-{host['processors']}-cores-{_called(host)}-{host['isa']}"
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
