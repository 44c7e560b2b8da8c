# SPDX-License-Identifier: Apache-2.0
"""The report of a run as data, and where it goes."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import _C
from .fail import Fail, reason
from .track import Bin

FORMAT = "headrace.stream-report.1"


def check_target(option: str, path: Path) -> None:
    """Raises Fail unless a file can be made at path. option: how to name it, `command(--x)`."""
    if path.is_dir():
        raise Fail(f"{option}: expected a file name, got the folder {path}")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        os.unlink(name)
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        raise Fail(f"{option}: cannot write {path}: {reason(error)}") from None


def write(report: Mapping[str, Any], path: Path) -> None:
    """The file appears whole or not at all. Raises Fail when it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Fail(f"cannot write {path}: {reason(error)}", 1) from None


def machine() -> dict[str, Any]:
    """Where the figures were taken."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = _cpuinfo()
    return {
        "cpu": told.get("model name")
        or told.get("Model")
        or platform.processor()
        or platform.machine(),
        "model": _model(told),
        "processors": usable,
        "threads": torch.get_num_threads(),
        "isa": _C.active_isa(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of the packages that the figures depend on."""
    found = {}
    for name in ("headrace", "torch", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def now() -> str:
    """UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def resident_set() -> int | None:
    """Bytes of memory that the process holds now; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def compare(
    ours: Mapping[int, float], theirs: Mapping[int, float], since: int = 0
) -> dict[str, Any] | None:
    """Mean nll of two policies at the positions >= since that both scored, and their difference
    with its standard error; None for fewer than two positions.
    """
    at = sorted(p for p in ours.keys() & theirs.keys() if p >= since)
    if len(at) < 2:
        return None
    a, b = [ours[p] for p in at], [theirs[p] for p in at]
    n = len(at)
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
    gap = mean_a - mean_b
    spread = math.fsum((x - y - gap) ** 2 for x, y in zip(a, b, strict=True)) / (n - 1)
    return {
        "positions": n,
        "nll": round(mean_a, 6),
        "nll_recompute": round(mean_b, 6),
        "difference": round(gap, 6),
        "standard_error": round(math.sqrt(spread / n), 6),
    }


def estimate(
    bins: Sequence[Bin], ours: Mapping[int, float], theirs: Mapping[int, float], points: int = 16
) -> dict[str, list[float]]:
    """The perplexity of a sampled policy along the stream, from what it differs from one that read
    every token (bins, and nll `ours` by position): far less noisy than its samples. low and high
    are two standard errors away. Empty without samples.
    """
    at = sorted(ours.keys() & theirs.keys())
    made: dict[str, list[float]] = {"position": [], "perplexity": [], "low": [], "high": []}
    for group in np.array_split(np.array(at), max(1, min(points, len(at) // 16))):
        pair = compare(ours, {int(p): theirs[int(p)] for p in group})
        read = [
            b for b in bins if b.scored and b.end > group[:1].sum() and b.start <= group[-1:].sum()
        ]
        if pair is None or not read:
            continue
        whole = sum(b.nll for b in read) / sum(b.scored for b in read)
        middle, twice = whole - pair["difference"], 2 * pair["standard_error"]
        made["position"].append(float(np.median(group)))
        made["perplexity"].append(round(math.exp(middle), 5))
        made["low"].append(round(math.exp(middle - twice), 5))
        made["high"].append(round(math.exp(middle + twice), 5))
    return made


def command() -> list[str]:
    """The command line as typed, of absolute paths only the last part."""
    typed = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return [Path(word).name if os.path.isabs(word) else word for word in typed]


def taken(ended: Fail | None = None) -> dict[str, Any]:
    """What every file of figures begins with: command, time, commit, versions, machine. ended: what
    stopped it before it had all."""
    return {
        **({} if ended is None else {"stopped": str(ended)}),
        "command": command(),
        "taken": now(),
        "commit": commit(),
        "versions": versions(),
        "host": machine(),
    }


def commit() -> str | None:
    """Of the checkout that headrace runs from, with "+" if files differ; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        root, at = _git(here, "rev-parse", "--show-toplevel", "HEAD").split("\n")
        if 'name = "headrace"' not in Path(root, "pyproject.toml").read_text(encoding="utf-8"):
            return None
        return at[:12] + ("+" if _git(Path(root), "status", "--porcelain", "-uno") else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    told = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return told.stdout.strip()


def _cpuinfo() -> dict[str, str]:
    """What the system tells of its first processor; empty where it tells nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        if value.strip():
            found.setdefault(key.strip(), value.strip())
    return found


def _model(told: Mapping[str, str]) -> str:
    """Numbers that tell generations of one name apart: of an x86 its family and model, of an Arm
    its maker and part."""
    keys = (("cpu family", "family"), ("model", "model"), ("CPU implementer", "implementer"),
            ("CPU part", "part"))  # fmt: skip
    return ", ".join(f"{name} {told[key]}" for key, name in keys if key in told) or "not told"
