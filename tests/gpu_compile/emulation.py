# SPDX-License-Identifier: Apache-2.0
"""The CUDA C++ kernels compiled by the host's compiler against an emulated runtime."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from headrace.kernels.attention import cuda as attention
from headrace.kernels.common import cuda

from headrace import ops
from tests.ops import compare

ROOT = Path(__file__).parents[2]
HEADERS = Path(__file__).parent / "emulated"
COMPILER = shutil.which("g++") or shutil.which("c++")


def build(out: Path, sources: list[Path]) -> Path:
    assert COMPILER, "no C++ compiler on PATH"
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{ROOT}"]
    done = subprocess.run(
        [COMPILER, *options, f"-I{HEADERS}", "-x", "c++", *map(str, sources), "-o", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


@functools.cache
def library() -> ctypes.CDLL:
    """All of them, built by the first process that asks and kept until a file of theirs changes."""
    files = [p for p in (ROOT / "kernels").rglob("*") if p.suffix in (".cu", ".cuh", ".h")]
    files += [p for p in (*(ROOT / "csrc").rglob("*.h"), *HEADERS.rglob("*")) if p.is_file()]
    key = hashlib.sha256((COMPILER or "").encode())
    for path in sorted(files):
        key.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    folder = Path(tempfile.gettempdir(), f"headrace-emulated-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to another user"
    path = folder / f"{key.hexdigest()[:16]}.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            sources = sorted((ROOT / "kernels").glob("*/*.cu"))
            build(path.with_suffix(".part"), sources).replace(path)
    return cuda.open_library(path)


def launch(op, call, launcher=None):
    """What a launcher gives, the one of the attention op unless said; pages change in place."""
    bound, axes = compare.bind(op, *call)
    outs = [o.fill_(torch.nan) for o in ops.specs()[op].empty_outs(bound, axes)]
    (launcher or getattr(attention, op))(bound, axes, outs, library())
    return tuple(outs)
