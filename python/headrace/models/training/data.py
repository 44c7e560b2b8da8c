# SPDX-License-Identifier: Apache-2.0
"""Text to train on, from what every machine with Python has: the standard library's own sources
and documentation.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

HELD_OUT = 50  # one file in this many is never trained on
BOUNDARY = 0  # the byte between two files


def files(extra: list[Path] | None = None) -> dict[str, Path]:
    """Relative path -> file: *.py of the standard library (its tests included, site-packages
    not), and *.rst, *.txt under <prefix>/share/doc/python3*. With `extra`: the text files under
    those folders instead.
    """
    found: dict[str, Path] = {}
    if extra:
        for root in extra:
            for path in root.rglob("*"):
                if path.is_file() and path.suffix in (".py", ".rst", ".txt", ".md"):
                    found[path.relative_to(root).as_posix()] = path
        return dict(sorted(found.items()))
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    for path in library.rglob("*.py"):
        relative = path.relative_to(library)
        if not {"site-packages", "dist-packages", "__pycache__"} & set(relative.parts):
            found[relative.as_posix()] = path
    for root in Path(sysconfig.get_config_var("prefix") or paths["data"]).glob(
        "share/doc/python3*"
    ):
        for path in root.rglob("*"):
            if path.suffix in (".rst", ".txt") and path.is_file():
                found[f"doc/{path.relative_to(root).as_posix()}"] = path
    return dict(sorted(found.items()))


def split(extra: list[Path] | None = None) -> tuple[Tensor, Tensor]:
    """(train, held out), each uint8 [bytes]: files joined by a zero byte, in the order of their
    paths' hashes.

    The side of a file depends on its relative path alone, so it stays the same from machine to
    machine.
    """
    sides: tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]] = ([], [])
    for relative, path in files(extra).items():
        digest = int.from_bytes(hashlib.sha256(relative.encode()).digest()[:8], "big")
        sides[digest % HELD_OUT == 0].append((digest, path.read_bytes()))
    joined = []
    for side in sides:
        blob = b"".join(text + bytes([BOUNDARY]) for _, text in sorted(side))
        if not blob:
            raise ValueError(
                "split(extra): expected text on both sides of the split, got none; give more files"
            )
        joined.append(torch.frombuffer(bytearray(blob), dtype=torch.uint8))
    return joined[0], joined[1]


def batch(text: Tensor, count: int, length: int, seed: int, step: int) -> Tensor:
    """int64 [count, length + 1]: random pieces of text, the same for the same seed and step."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(0, len(text) - length, (count,), generator=generator)
    return text[starts[:, None] + torch.arange(length + 1)[None, :]].long()


def spread(text: Tensor, count: int, length: int) -> Tensor:
    """int64 [count, length + 1]: pieces at even distances from the first byte of text to the
    last.
    """
    starts = torch.linspace(0, len(text) - length - 1, count, dtype=torch.float64).long()
    return text[starts[:, None] + torch.arange(length + 1)[None, :]].long()
