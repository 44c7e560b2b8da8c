# SPDX-License-Identifier: Apache-2.0
"""What every kernel takes of a multiprocessor, from the compilers' own reports: needs no GPU."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ("80", "90a")


def cuda_kernels(left: Callable[[], float]) -> list[dict[str, Any]]:
    """Registers, shared and stack bytes and spilled bytes of each CUDA C++ kernel. Raises
    RuntimeError without nvcc, or with the compiler's message."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not on PATH")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "kernels").glob("*/*.cu")):
            for arch in ARCHS:
                command = [nvcc, "-std=c++17", f"-I{ROOT}", "-cubin", "-Xptxas", "-v", str(source)]
                command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-o", f"{folder}/a"]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr.strip().splitlines()[-1])
                for told in _reports(done.stderr + done.stdout):
                    found.append({"kernel": _plain(told.pop("name")), "arch": arch, **told})
    return found


def triton_kernels(left: Callable[[], float]) -> list[dict[str, Any]]:
    """The same of each Triton kernel at the launches of tests/gpu_compile. Raises RuntimeError
    without Triton or its assembler, TimeoutError when `left()` seconds are gone."""
    try:
        from tests.gpu_compile import launches, recording
    except ImportError as error:
        raise RuntimeError(str(error)) from None
    found, reports = [], {}
    with recording.recorder() as record:
        for case, dtype, call in launches.every_case():
            for fn, args, kwargs in record(call):
                for arch in ARCHS:
                    capability = int(arch.rstrip("a"))
                    if left() < 0:
                        raise TimeoutError
                    made = recording.compile_launch(fn, args, kwargs, capability)
                    ptx = made.asm["ptx"]
                    seen = hashlib.sha256(ptx.encode()).hexdigest()
                    if seen not in reports:
                        reports[seen] = _reports(recording.assembled(ptx))[0]
                    told = {n: x for n, x in reports[seen].items() if n != "name"}
                    told["shared"] = made.metadata.shared
                    found.append({"kernel": fn.__name__, "case": f"{case} {dtype}", "arch": arch}
                                 | told | {"warps": made.metadata.num_warps})  # fmt: skip
    return found


def _reports(text: str) -> list[dict[str, Any]]:
    """What ptxas -v says of each entry function."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        if name := re.search(r"Compiling entry function '(\S+)'", line):
            found.append({"name": name[1], "registers": 0, "shared": 0, "stack": 0, "spills": 0})
        elif not found:
            continue
        elif kept := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", line):
            found[-1]["stack"], found[-1]["spills"] = int(kept[1]), int(kept[2]) + int(kept[3])
        elif used := re.search(r"Used (\d+) registers", line):
            found[-1]["registers"] = int(used[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                found[-1]["shared"] = int(shared[1])
    return found


def _plain(mangled: str) -> str:
    """A C++ name without its namespaces and parameters."""
    tool = shutil.which("c++filt")
    if tool is None:
        return mangled
    name = subprocess.run([tool, mangled], capture_output=True, text=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|headrace::|^void ", "", name)
    return name.split("(")[0]
