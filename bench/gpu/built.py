# SPDX-License-Identifier: Apache-2.0
"""The headrace that a run is about: digests of its sources, and an installation that is of them.
Imports nothing of headrace, which need not be there."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build/gpu"
PARTS = {"": ROOT / "python/headrace", "kernels": ROOT / "kernels"}  # where each is installed
READ = (".py", ".json")  # what is installed as it is


def sources() -> str:
    """A digest of all that a result depends on, tables of choices among it; a report is resumed
    over the same alone."""
    found = hashlib.sha256()
    for folder in ("csrc", "kernels", "python", "bench/gpu", "tests/gpu", "tests/ops"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".json"):
                found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def kernels() -> dict[str, str]:
    """A digest of each source that a GPU runs, and of the launches that are compiled of them."""
    whole = (ROOT / "kernels").rglob("*")
    paths = [p for p in whole if p.suffix in (".cu", ".cuh") or p.match("triton*.py")]
    paths += [ROOT / "kernels/common/tuned.py", ROOT / "tests/gpu_compile/launches.py"]
    return {str(p.relative_to(ROOT)): hashlib.sha256(p.read_bytes()).hexdigest()[:12]
            for p in sorted(set(paths))}  # fmt: skip


def differs(package: Path) -> str:
    """The first file in which an installed package is not what the tree has, or ''."""
    for part, tree in PARTS.items():
        for path in sorted(p for p in tree.rglob("*") if p.suffix in READ):
            there = package / part / path.relative_to(tree)
            if not there.exists() or there.read_bytes() != path.read_bytes():
                return str(path.relative_to(ROOT))
    return ""


def installed() -> tuple[str, bool]:
    """Why what is installed will not do, '' where it does; and whether a folder that is looked in
    earlier would be found instead."""
    found = importlib.util.find_spec("headrace")
    if found is None or found.origin is None:
        return "headrace is not installed", True
    package = Path(found.origin).parent
    if package.resolve() == PARTS[""].resolve():
        return "", True  # it is the tree
    wrong = differs(package)
    told = f"{package} is of other sources, see {wrong}" if wrong else ""
    return told, any(Path(folder or ".").resolve() == package.parent for folder in sys.path)


def install(out: Path, end: float, digest: str) -> str:
    """Builds headrace into SITE where it is not installed as it is in the tree; the line that says
    why not, or ''."""
    why, hidden = installed()
    if not why:
        return ""
    if not hidden:
        return f"expected the headrace of this tree, but {why}: pip uninstall headrace"
    sys.path.insert(0, str(SITE))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(SITE), os.environ.get("PYTHONPATH")])
    )
    made = SITE / "sources"
    if not made.exists() or made.read_text() != digest:
        print(f"gpu_check: {why}: building it, see {out / 'build.log'}", flush=True)
        if wrong := _build(out, end):
            return wrong
        made.write_text(digest)
    importlib.invalidate_caches()
    return ""


def _build(out: Path, end: float) -> str:
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--target", str(SITE), "--no-deps"]
    command += ["--no-build-isolation", "-v", "-C", "cmake.define.HEADRACE_KERNEL_LEVEL=1"]
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        arch = f"{major}{minor}{'a' if major == 9 else ''}"
        command += ["-C", f"cmake.define.HEADRACE_CUDA_ARCHITECTURES={arch}"]
    log = out / "build.log"
    out.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        pip = subprocess.Popen([*command, str(ROOT)], stdout=file, stderr=subprocess.STDOUT,
                               stdin=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        try:
            status = pip.wait(max(end - time.monotonic(), 0))
        except (subprocess.TimeoutExpired, SystemExit):
            os.killpg(pip.pid, signal.SIGKILL)
            return f"expected headrace to be built within the budget; see {log}"
    if status:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        return f"expected headrace to build, got: {lines[-1].strip() if lines else status}"
    return ""
