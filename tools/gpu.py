# SPDX-License-Identifier: Apache-2.0
"""docs/gpu.md: what has been seen on a GPU, and what every kernel takes of one, from the reports
that scripts/gpu_check.py wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpu_aims import aims_table, rows_of

INTRO = """# GPUs

`python scripts/gpu_check.py OUT --budget 9m` builds the CUDA library, runs the tests of the GPU
backends, times every op beside its peers and floors, replays captured steps 100,000 times, runs
compute-sanitizer over the CUDA kernels and tunes the Triton ones; it stops inside the budget, and
`--resume OUT` goes on where it stopped.
Written by `python tools/results.py` from what it recorded in `bench/results`.
"""
NOWHERE = """
**Nothing here has been seen running on a GPU yet.** What is known without one: every kernel
compiles for sm_80 and sm_90 (the table), the Triton kernels equal the references in Triton's
interpreter on small shapes, the CUDA kernels do in an emulation of their threads, `tests/gpu` runs
through on a GPU that is pretended (`python -m pytest -p tests.gpu_compile.pretend tests/gpu`:
launchers and comparisons are the real ones), every call that is timed can be captured there (no
launcher waits for the device or brings it what the host has), and the script with `--dry-run`.
"""
TABLE = """
## What the kernels take

The most that any form of a kernel takes, as the compilers report it; a form is a launch at one
dtype and shape. A block may take 163 KiB of shared memory on sm_80 and 227 KiB on sm_90. Spilled
bytes are stores and loads of one thread; codes count as 16 bits. Products of fp32 operands, and of
mixed dtypes, run without tensor cores.

| kernel | forms | registers, sm_80 and sm_90 | shared KiB | spilled, 16 bits | spilled, fp32 |
| --- | ---: | ---: | ---: | ---: | ---: |
"""


PEERS = {
    "sdpa": "torch's SDPA",
    "flex": "FlexAttention",
    "flash-attention": "flash-attention",
    "FlashInfer": "FlashInfer",
    "flash-linear-attention": "flash-linear-attention",
    "vLLM": "the Triton LoRA kernels of vLLM",
}
"""How a row calls each, and what it is."""


def gpu_page(results: Path) -> str:
    """The page, from bench/results."""
    reports = {p.parent.name: json.loads(p.read_text("utf-8"))
               for p in sorted(results.glob("*/report.json"))}  # fmt: skip
    seen = {name: r for name, r in reports.items() if r["device"] != "none"}
    text = INTRO + (_seen(seen) if seen else NOWHERE) + aims_table(seen) + _unproved(seen)
    for name, report in reports.items():
        kernels = [k for unit in report["units"].values() for k in unit.get("kernels", ())]
        if kernels:
            text += TABLE + "".join(map(_line, _by_kernel(kernels).items())) + _spilled(kernels)
            text += f"\nRecorded at commit {report['commit'][:7]}, `{name}/report.json`.\n"
    return text


def _seen(reports: dict[str, Any]) -> str:
    lines = ["", "## Seen on", ""]
    for name, report in reports.items():
        states = [unit["state"] for unit in report["units"].values()]
        told = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states)))
        lines.append(
            f"- {report['device']}, {report['date'][:10]}, commit {report['commit'][:7]}: {told} "
            f"([table](../bench/results/{name}/report.md))"
        )
    return "\n".join(lines) + "\n"


def _unproved(reports: dict[str, Any]) -> str:
    """What no report of a device shows: ops by backend, and stages of the script."""
    from headrace import ops

    units = {name: unit for r in reports.values() for name, unit in r["units"].items()}
    rows = [row for report in reports.values() for row in rows_of(report)]
    right = {(row["op"], b) for row in rows for b, good in row["correct"].items() if good}
    lines = ["", "## What is unproved", ""]
    for backend, told in (("triton", "Triton"), ("cuda", "CUDA C++")):
        left = [n for n, spec in sorted(ops.specs().items())
                if backend in spec.gpu and (n, backend) not in right]  # fmt: skip
        if left:
            names = ", ".join(f"`{name}`" for name in left)
            lines.append(f"- {told}, results and speed on a device, and the floor there: {names}")
    good = {name for name, unit in units.items() if unit["state"] == "ok"}
    for begins, told in (
        ("tests ", "tests on a device, CUDA graphs among them"),
        ("tests test_gpu_streams", "engines and streams whose pages and model are on a device"),
        ("bench fetch", "tiers: blocks from host memory and disk into pages on a device"),
        ("sanitize ", "compute-sanitizer's four tools"),
        ("tune ", "choices of block shapes: no table of a device is shipped"),
    ):
        if not any(name.startswith(begins) for name in good):
            lines.append(f"- {told}")
    timed = {
        name for row in rows for name, us in row.get("us", {}).items() if isinstance(us, float)
    }
    left = [told for name, told in PEERS.items() if not any(n.startswith(name) for n in timed)]
    if left:
        lines.append(f"- peers on a GPU: {', '.join(left)}")
    return "\n".join(lines) + "\n" if lines[3:] else ""


def _spilled(kernels: list[dict[str, Any]]) -> str:
    """A sentence on registers that do not suffice."""
    forms = [k for k in kernels if k["spills"]]
    if not forms:
        return "\nNo form of any kernel spills a register.\n"
    names = sorted({k["kernel"].split("<")[0] for k in forms})
    told = ", ".join(f"`{name}`" for name in names)
    most = max(k["spills"] for k in forms)
    return (
        f"\n{len(forms)} of the {len(kernels)} forms on both architectures spill registers, {most} "
        f"bytes a thread at most: of {told}.\n"
    )


def _by_kernel(kernels: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for kernel in sorted(kernels, key=lambda k: k["kernel"]):
        found.setdefault(kernel["kernel"].split("<")[0] + " " * ("case" not in kernel), []).append(
            kernel
        )
    return found


def _line(item: tuple[str, list[dict[str, Any]]]) -> str:
    name, forms = item
    backend = "Triton" if "case" in forms[0] else "CUDA C++"

    def most(field: str, arch: str, wide: bool | None = None) -> str:
        values = [
            k[field] for k in forms
            if k["arch"].startswith(arch) and (wide is None or _wide(k) == wide)
        ]  # fmt: skip
        return str(-(-max(values) // (1024 if field == "shared" else 1))) if values else "-"

    def both(field: str, wide: bool | None = None) -> str:
        return f"{most(field, '80', wide)}, {most(field, '90', wide)}"

    count = sum(k["arch"] == "80" for k in forms)
    cells = (both("registers"), both("shared"), both("spills", False), both("spills", True))
    return f"| `{name.strip()}`, {backend} | {count} | {' | '.join(cells)} |\n"


def _wide(kernel: dict[str, Any]) -> bool:
    """Whether it is a form of fp32 operands."""
    if "case" in kernel:
        return kernel["case"].endswith("float32")
    return "<float" in kernel["kernel"]
