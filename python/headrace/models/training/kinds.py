# SPDX-License-Identifier: Apache-2.0
"""Kinds of text that lie about where this package is installed, for small adapters to learn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import torch
from torch import Tensor

from . import data

HELD_OUT = 10  # one file in this many is never trained on
MOST = 24 << 20  # bytes of a kind that are read


@dataclass(frozen=True)
class Kind:
    """Text beside the packages: files of these patterns below the folder that packages are in."""

    text: str  # what it is
    patterns: tuple[str, ...]


KINDS = {
    "cpp": Kind("C++ headers of the torch package", ("torch/include/**/*.h",)),
    "stubs": Kind("type stubs of numpy and torch", ("numpy/**/*.pyi", "torch/**/*.pyi")),
    "licences": Kind(
        "licences of installed packages",
        ("*.dist-info/**/LICEN[CS]E*", "*.dist-info/**/COPYING*", "*.dist-info/**/NOTICE*"),
    ),
    "cmake": Kind("modules of CMake", ("**/*.cmake",)),
    "rst": Kind("reStructuredText manuals", ("**/*.rst",)),
}


def roots() -> list[Path]:
    """Folders that packages are in: those of torch and numpy."""
    found = []
    for name in ("torch", "numpy"):
        spec = util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found.append(Path(spec.origin).parent.parent)
    return list(dict.fromkeys(found))


def files(kind: str) -> dict[str, Path]:
    """Relative path -> file, each content once; what there is on this machine, maybe nothing."""
    found: dict[str, Path] = {}
    for root in roots():
        for pattern in KINDS[kind].patterns:
            for path in root.glob(pattern):
                if path.is_file():
                    found.setdefault(path.relative_to(root).as_posix(), path)
    seen: set[bytes] = set()
    unique = {}
    for relative, path in sorted(found.items()):
        content = hashlib.sha256(path.read_bytes()).digest()
        if content not in seen:
            seen.add(content)
            unique[relative] = path
    return unique


def split(kind: str, most: int = MOST) -> tuple[Tensor, Tensor]:
    """(train, held out), each uint8 [bytes]: files joined by a zero byte, in the order of their
    paths' hashes, `most` bytes of both at most. Either may be empty.
    """
    sides: tuple[list[tuple[int, Path]], list[tuple[int, Path]]] = ([], [])
    for relative, path in files(kind).items():
        digest = int.from_bytes(hashlib.sha256(relative.encode()).digest()[:8], "big")
        sides[digest % HELD_OUT == 0].append((digest, path))
    made = []
    for side, room in zip(sides, (most - most // HELD_OUT, most // HELD_OUT), strict=True):
        blob = bytearray()
        for _, path in sorted(side):
            if len(blob) < room:
                blob += path.read_bytes() + bytes([data.BOUNDARY])
        made.append(torch.frombuffer(blob, dtype=torch.uint8) if blob else torch.empty(0).byte())
    return made[0], made[1]
