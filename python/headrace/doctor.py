# SPDX-License-Identifier: Apache-2.0
"""What is missing here, for which feature, and how to get it.

`headrace doctor`, `python -m headrace.doctor`. Like `headrace.info`, on whose report it rests, it
imports nothing but the standard library at its top and works on a broken installation.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from . import info

OLDEST_TORCH = (2, 11)
OK, OFF, BROKEN = "ok", "off", "broken"


@dataclass(frozen=True)
class Finding:
    """A feature: ok, off (everything else works without it) or broken, why, and what to do."""

    feature: str
    state: str
    why: str = ""
    remedy: str = ""


# Packages that only some features need: the feature, the package, the extra that brings it.
OPTIONAL = (
    ("the live view of `headrace stream`, the tables of `headrace bench`", "rich", "cli"),
    ("plots", "matplotlib", "cli"),
    ("stock models: `integrations.transformers`", "transformers", "transformers"),
    ("a PeftModel in `integrations.peft`; folders need none", "peft", "peft"),
    ("video: `headrace stream --video`", "av", "video"),
    ("the adapter store", "lmdb", None),
    ("models and adapters in files", "safetensors", None),
)


def examine(report: dict[str, Any] | None = None) -> list[Finding]:
    """Every feature, from the report of `info.collect`, which is made if none is given."""
    report = info.collect() if report is None else report
    found = [_extension(report), _torch(report)]
    if found[0].state == OK:
        found += [_kernels(report), _threads(report), _openmp(report)]
    found += [_package(report, *row) for row in OPTIONAL]
    found += _gpu(report)
    return found


def _extension(report: dict[str, Any]) -> Finding:
    part, feature = report["extension"], "the compiled extension"
    if part.get("loaded"):
        return Finding(feature, OK, str(part["file"]))
    remedy = "install headrace again in this environment: pip install --force-reinstall headrace"
    return Finding(feature, BROKEN, str(part.get("error", "not found")), remedy)


def _torch(report: dict[str, Any]) -> Finding:
    version = report["versions"].get("torch")
    least = ".".join(map(str, OLDEST_TORCH))
    remedy = f"pip install 'torch>={least}'"
    if version is None:
        return Finding("torch", BROKEN, "torch is not installed", remedy)
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and tuple(map(int, numbers.groups())) < OLDEST_TORCH:
        return Finding("torch", BROKEN, f"torch {version} is older than {least}", remedy)
    if "error" in report["torch"]:
        return Finding("torch", BROKEN, report["torch"]["error"], "install torch again")
    return Finding("torch", OK, f"torch {version}")


def _package(report: dict[str, Any], feature: str, package: str, extra: str | None) -> Finding:
    version = report["versions"].get(package) or info.version(package)
    wanted = _wanted(package)
    remedy = f"pip install 'headrace[{extra}]'" if extra else f"pip install '{package}{wanted}'"
    if not version:
        return Finding(feature, OFF, f"{package} is not installed", remedy)
    if not _within(version, wanted):
        return Finding(feature, OFF, f"{package} {version} is not in {wanted}", remedy)
    return Finding(feature, OK, f"{package} {version}")


def _wanted(package: str) -> str:
    """The versions that headrace's own metadata ask for, such as `>=5.23,<5.24`; "" if none."""
    try:
        named = metadata.requires("headrace") or []
    except metadata.PackageNotFoundError:
        return ""
    for line in named:
        found = re.match(rf"{package}(?![\w-])\s*([<>=!~.,\d\s]*)", line)
        if found:
            return found[1].replace(" ", "")
    return ""


def _within(version: str, wanted: str) -> bool:
    """Of release numbers alone; what cannot be read is let pass."""
    mine = _release(version)
    for sign, bound in re.findall(r"(>=|<(?!=))([\d.]+)", wanted):
        if mine and (mine >= _release(bound)) != (sign == ">="):
            return False
    return True


def _release(version: str) -> list[int]:
    found = re.match(r"\d+(\.\d+)*", version)
    return [int(n) for n in found[0].split(".")] if found else []


def _kernels(report: dict[str, Any]) -> Finding:
    levels = report["isa"]
    used, best = levels["used"], levels["available"][-1]
    if used == best:
        return Finding("CPU kernels", OK, used)
    return Finding(
        "CPU kernels", OFF, f"{used}, though this machine has {best}", "unset HEADRACE_ISA"
    )


def _threads(report: dict[str, Any]) -> Finding:
    used, there = report["threads"]["torch"], report["threads"]["processors"]
    why = f"{used} of {there} processors"
    if used < there:
        remedy = "raise OMP_NUM_THREADS or torch.set_num_threads, unless this is meant"
        return Finding("threads", OFF, why, remedy)
    return Finding("threads", OK, why)


def _openmp(report: dict[str, Any]) -> Finding:
    loaded = report["openmp"]
    if not isinstance(loaded, list) or len(loaded) < 2:
        return Finding("one OpenMP runtime", OK, _first(loaded))
    remedy = "import headrace after torch, and no other package that brings a runtime before it"
    return Finding("one OpenMP runtime", OFF, "several: " + ", ".join(loaded), remedy)


def _gpu(report: dict[str, Any]) -> Iterator[Finding]:
    remedies = {
        "this torch is a CPU build": "install a torch build for CUDA, if this machine has a GPU",
        "no NVIDIA device": "nothing to do on a machine without a GPU",
        "triton is not installed": "pip install 'headrace[triton]'",
    }
    for name, feature in (("triton", "Triton kernels"), ("cuda", "CUDA kernels")):
        told = str(report["backends"].get(name, "off: unknown"))
        if told == "on":
            yield Finding(feature, OK)
            continue
        why = told.removeprefix("off: ")
        remedy = remedies.get(why, "build with HEADRACE_CUDA=ON where nvcc is installed")
        yield Finding(feature, OFF, why, remedy)
    devices = report["gpu"]
    if isinstance(devices, list) and devices:
        yield Finding("a GPU", OK, ", ".join(devices))
    else:
        why = "no NVIDIA device" if isinstance(devices, list) else _told(devices)
        yield Finding("a GPU", OFF, why, "nothing to do: the CPU kernels are complete")
    nvcc = _nvcc()
    if nvcc is None:
        remedy = "only to build them: install the CUDA toolkit, put nvcc on PATH or set CUDACXX"
        yield Finding("nvcc, for the CUDA kernels", OFF, "not found", remedy)
    else:
        yield Finding("nvcc, for the CUDA kernels", OK, nvcc)


def _nvcc() -> str | None:
    """Where CMake would find it."""
    named = os.environ.get("CUDACXX")
    if named:
        return shutil.which(named)
    root = os.environ.get("CUDA_PATH")
    return shutil.which("nvcc") or (shutil.which(str(Path(root, "bin/nvcc"))) if root else None)


def _told(part: object) -> str:
    return str(part.get("error", part)) if isinstance(part, dict) else str(part)


def _first(loaded: object) -> str:
    return str(loaded[0]) if isinstance(loaded, list) and loaded else ""


def render(found: Sequence[Finding]) -> str:
    """One line per feature, and under what is not ok what to do about it."""
    width = max(len(f.feature) for f in found)
    lines = []
    for f in found:
        lines.append(f"{f.state:<6}  {f.feature:<{width}}  {f.why}".rstrip())
        if f.remedy:
            lines.append(f"{'':<6}  {'':<{width}}  -> {f.remedy}")
    return "\n".join(lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 1 when a part that everything needs is broken."""
    found = examine()
    print(json.dumps([asdict(f) for f in found], indent=2) if args.json else render(found))
    return int(any(f.state == BROKEN for f in found))


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m headrace.doctor`."""
    parser = argparse.ArgumentParser(prog="python -m headrace.doctor", description=__doc__)
    add_options(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
