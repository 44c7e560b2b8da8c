# SPDX-License-Identifier: Apache-2.0
"""What the compilers were seen to make of the GPU kernels is of the kernels as they are; no CUDA
kernel spills a register, and few Triton kernels do, a little."""

from __future__ import annotations

import json
from pathlib import Path

from bench.gpu.built import kernels

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "bench/results/compilers/report.json").read_text())


def changed(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Sources that are new, gone or other."""
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


def test_the_table_is_of_these_kernels():
    differ = changed(REPORT["kernels"], kernels())
    how = "python scripts/gpu_check.py OUT --stages resources --budget 30m"
    told = f"{', '.join(differ)} changed: `{how}`, OUT/report.json to bench/results/compilers"
    assert differ == [], f"{told}, then `python tools/results.py`"


def test_what_changed_is_named():
    now = kernels()
    assert "kernels/select/triton.py" in now
    assert "kernels/lora/decode.cu" in now
    other = now | {"kernels/select/triton.py": "another", "kernels/x/triton.py": "new"}
    assert changed(now, other) == ["kernels/select/triton.py", "kernels/x/triton.py"]
    assert changed(now, dict(now)) == []


KNOWN = {
    "gated_delta_chunk_kernel": 88,
    "linear_attention_chunk_kernel": 48,
    "paged_count_kernel": 16,
    "frame_norms_kernel": 8,
}
"""Bytes a thread that Triton's assembler spills of a kernel, on sm_90 alone."""


def test_no_kernel_spills_more_than_is_known():
    units = REPORT["units"]
    assert {name: unit["state"] for name, unit in units.items()} == {
        "resources cuda": "ok", "resources triton": "ok"
    }  # fmt: skip
    assert sum(len(unit["kernels"]) for unit in units.values()) > 600
    assert [form for form in units["resources cuda"]["kernels"] if form["spills"]] == []
    most = {}
    for form in units["resources triton"]["kernels"]:
        if form["spills"]:
            assert form["arch"] == "90a", form
            most[form["kernel"]] = max(form["spills"], most.get(form["kernel"], 0))
    assert most == KNOWN
