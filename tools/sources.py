# SPDX-License-Identifier: Apache-2.0
"""Which sources a recorded file rests on, and whether they have changed since.

Not shown on any page: every change of a kernel would then write the pages anew.
`tools/results.py --stale` lists what is old, `tools/record.py --stale` takes it again.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from headrace import ops

ROOT = Path(__file__).resolve().parents[1]
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.M)
SHOWING = ("compare", "pictures", "roofline", "tables")
"""Modules of the benchmark that time nothing."""
SHORT = 16
"""Hexadecimal digits of a digest."""


def parts(name: str) -> dict[str, list[Path]]:
    """Of a bench-OP.json or quick.json: the compiled code of the op's family, and what times it.
    Of any other file: all code that is compiled, and the whole package."""
    package = ROOT / "python/headrace"
    timing = sorted(p for p in (package / "bench").glob("*.py") if p.stem not in SHOWING)
    if name.startswith("bench-"):
        op = name.removeprefix("bench-").removesuffix(".json")
        return {"kernels": compiled(ops.specs()[op].family), "bench": timing}
    every = sorted({path for spec in ops.specs().values() for path in compiled(spec.family)})
    if name == "quick.json":
        return {"kernels": every, "bench": timing}
    return {"kernels": every, "package": sorted(package.rglob("*.py"))}


@cache
def compiled(family: str) -> list[Path]:
    """The CPU kernels of a family, its host code and binding, what these include, in turn, and
    the host code of what is included."""
    host = ROOT / "csrc"
    roots = [*(ROOT / "kernels" / family).glob("*.cpp"), host / "bind" / f"{family}.cpp"]
    roots += [p for p in host.glob("*.cpp") if host / f"{family}.h" in _included(p)]
    found: set[Path] = set()
    while roots:
        path = roots.pop()
        if path not in found and path.is_file():
            found.add(path)
            roots += _included(path)
            if host in path.parents:
                roots.append(path.with_suffix(".cpp"))
    return sorted(found)


@cache
def _included(path: Path) -> tuple[Path, ...]:
    """Looked for as the compiler does: beside the file, at the root, in csrc."""
    places = (path.parent, ROOT, ROOT / "csrc")
    names = INCLUDE.findall(path.read_text("utf-8"))
    found = [next((p / n for p in places if (p / n).is_file()), None) for n in names]
    return tuple(one for one in found if one is not None)


def digest(paths: Iterable[Path]) -> str:
    made = hashlib.sha256()
    for path in paths:
        made.update(f"{path.relative_to(ROOT).as_posix()}\n".encode())
        made.update(path.read_bytes())
    return made.hexdigest()[:SHORT]


def digests(name: str) -> dict[str, str]:
    """What a file is recorded with: of each part."""
    return {part: digest(paths) for part, paths in parts(name).items()}


def changed(name: str, record: Mapping[str, Any]) -> list[str]:
    """The parts that are not as they were when it was recorded; of a record without digests as git
    tells from its commit, and "?" where that is not known."""
    if "sources" in record:
        now = digests(name)
        return [part for part, was in record["sources"].items() if now.get(part) != was]
    return [part for part, paths in parts(name).items() if _differ(record["commit"], paths)]


def _differ(commit: str, paths: Sequence[Path]) -> bool:
    """From the commit to the files as they are; true where git does not know it."""
    words = ["git", "-C", str(ROOT), "diff", "--quiet", commit.rstrip("+"), "--", *map(str, paths)]
    return subprocess.run(words, capture_output=True, check=False).returncode != 0
