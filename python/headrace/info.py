# SPDX-License-Identifier: Apache-2.0
"""What is installed here, what this machine has, and what is off and why.

`headrace info`, `python -m headrace.info`. Every probe is guarded and the module imports nothing
but the standard library at its top, so a broken installation gets a report and not a traceback.
CUDA is not initialised unless asked for with `--gpu`, and Triton is never imported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

# Every variable that headrace reads. docs/environment.md says the same at length.
VARIABLES = {
    "HEADRACE_BACKEND": "backend of every op: auto, reference, cpu, triton or cuda",
    "HEADRACE_CUDA": "at build time, CUDA kernels: AUTO, ON or OFF",
    "HEADRACE_DEBUG": "1: full checks of every view and append",
    "HEADRACE_ISA": "level of the CPU kernels: scalar, avx2, avx512, avx512_vnni or avx512_bf16",
    "HEADRACE_TRACEBACK": "set: the command line shows the traceback of an error",
}
OTHER_VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET")
PACKAGES = ("headrace", "torch", "numpy", "triton", "safetensors", "rich", "matplotlib")


def version(package: str) -> str | None:
    """Version of an installed package, without importing it; None when it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def collect(gpu: bool = False) -> dict[str, Any]:
    """The report as plain data, ready for JSON. gpu: ask torch for devices, which starts CUDA."""
    extension = _guard(_extension)
    report = {
        "versions": {name: version(name) for name in PACKAGES},
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "package": str(Path(__file__).parent),
        "extension": extension,
        "isa": _guard(_isa),
        "threads": _guard(_threads),
        "openmp": _guard(_openmp),
        "torch": _guard(_torch),
        "gpu": _guard(_gpu_devices if gpu else _gpu_files),
        "environment": {
            name: os.environ.get(name) for name in (*sorted(VARIABLES), *OTHER_VARIABLES)
        },
    }
    report["backends"] = _guard(lambda: _backends(extension))
    return report


def _guard(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _extension() -> dict[str, Any]:
    import headrace

    found = util.find_spec("headrace._C")
    path = None if found is None else found.origin
    if headrace.load_error is not None:
        error = headrace.load_error
        return {"loaded": False, "file": path, "error": f"{type(error).__name__}: {error}"}
    from headrace import _C

    return {"loaded": True, "file": path, "build": _C.build_info()}


def _isa() -> dict[str, Any]:
    from headrace import _C

    return {"used": _C.active_isa(), "available": _C.available_isas()}


def _threads() -> dict[str, Any]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"torch": torch.get_num_threads(), "processors": usable}


def _openmp() -> list[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    files = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "omp" in line}
    names = ("libgomp", "libomp", "libiomp")
    return sorted(f for f in files if Path(f).name.startswith(names))


def _torch() -> dict[str, Any]:
    import torch

    return {"file": torch.__file__, "cuda": torch.version.cuda}


def _gpu_files() -> list[str]:
    """Names of the NVIDIA devices that the driver lists as files; starts nothing."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        facts = dict(x.split(":", 1) for x in file.read_text().splitlines() if ":" in x)
        names.append(facts.get("Model", "unknown").strip())
    return names


def _gpu_devices() -> list[str]:
    import torch

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{d.name}, sm_{d.major}{d.minor}, {d.total_memory >> 20} MiB" for d in devices]


def _backends(extension: dict[str, Any]) -> dict[str, str]:
    """ "on", or why not."""
    if not extension.get("loaded"):
        return dict.fromkeys(("reference", "cpu", "triton", "cuda"), "off: headrace did not load")
    import torch

    no_device = None
    if torch.version.cuda is None:
        no_device = "off: this torch is a CPU build"
    elif not _gpu_files() and not os.path.exists("/dev/nvidiactl"):
        no_device = "off: no NVIDIA device"
    triton = None if version("triton") else "off: triton is not installed"
    built = str(extension["build"]["cuda"])
    cuda = None if built.startswith("on") else f"{built} (at build time)"
    return {
        "reference": "on",
        "cpu": "on",
        "triton": triton or no_device or "on",
        "cuda": cuda or no_device or "on",
    }


def render(report: dict[str, Any]) -> str:
    """The report as text, one screen."""
    lines: list[str] = []
    for section, content in report.items():
        if isinstance(content, dict):
            lines.append(section)
            width = max(map(len, content), default=0)
            lines += [f"  {key:<{width}}  {_text(value)}" for key, value in content.items()]
        else:
            lines.append(f"{section}: {_text(content)}")
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the report."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--gpu", action="store_true", help="ask the GPU itself; this starts CUDA")


def run(args: argparse.Namespace) -> int:
    """Prints the report and gives 0."""
    report = collect(gpu=args.gpu)
    print(json.dumps(report, indent=2) if args.json else render(report))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m headrace.info`."""
    parser = argparse.ArgumentParser(prog="python -m headrace.info", description=__doc__)
    add_options(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
